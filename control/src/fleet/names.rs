//! Names: ARNs of images and network connectors.

use crate::answer::ServiceError;
use crate::settings::Settings;

/// The image that is always there, and its versions, the newest first.
pub const MANAGED_IMAGE: &str = "al2023-1";
/// Its versions.
pub const MANAGED_VERSIONS: [&str; 2] = ["1", "0"];
/// Connectors that are always there.
const MANAGED_INGRESS: [&str; 4] = ["ALL_INGRESS", "HTTP_INGRESS", "SHELL_INGRESS", "NO_INGRESS"];
const MANAGED_EGRESS: [&str; 2] = [INTERNET_EGRESS, "NO_EGRESS"];
/// Every public address. `NO_EGRESS` is an addition of ours.
pub const INTERNET_EGRESS: &str = "INTERNET_EGRESS";

/// Makes and reads ARNs of one account in one region.
#[derive(Clone, Debug)]
pub struct Names {
    region: String,
    account: String,
    domain: String,
}

/// What an ARN of a connector means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectorName<'a> {
    /// One that is always there: its last word.
    Managed(&'a str),
    /// One of the account's: its id.
    Own(&'a str),
}

impl Names {
    /// Those of the account and region in the settings.
    pub fn new(settings: &Settings) -> Self {
        let Settings { region, account, endpoint_domain, .. } = settings;
        Self { region: region.clone(), account: account.clone(), domain: endpoint_domain.clone() }
    }

    /// `arn:aws:lambda:us-east-1:000000000000:microvm-image:mine`
    pub fn image(&self, name: &str) -> String {
        format!("arn:aws:lambda:{}:{}:microvm-image:{name}", self.region, self.account)
    }

    /// The same of the image that is always there.
    pub fn managed_image(&self) -> String {
        format!("arn:aws:lambda:{}:aws:microvm-image:{MANAGED_IMAGE}", self.region)
    }

    /// `...:network-connector:nc-<uuid>`
    pub fn connector(&self, id: &str) -> String {
        format!("arn:aws:lambda:{}:{}:network-connector:{id}", self.region, self.account)
    }

    /// `...:aws:network-connector:aws-network-connector:HTTP_INGRESS`
    pub fn managed_connector(&self, word: &str) -> String {
        format!("arn:aws:lambda:{}:aws:network-connector:aws-network-connector:{word}", self.region)
    }

    /// A host name for a microVM's endpoint.
    pub fn endpoint(&self, id: &str) -> String {
        format!("{id}.lambda-microvm.{}.{}", self.region, self.domain)
    }

    /// The name in an image's ARN. A bare name is refused, as the service does.
    pub fn image_name<'a>(&self, identifier: &'a str) -> Result<&'a str, ServiceError> {
        if !identifier.starts_with("arn:") {
            return Err(super::invalid("Malformed ARN - doesn't start with 'arn:'"));
        }
        let fields: Vec<&str> = identifier.splitn(6, ':').collect();
        let [_, "aws", "lambda", region, account, resource] = fields[..] else {
            return Err(super::invalid(format!("Invalid ARN format: {identifier}")));
        };
        let name = resource.strip_prefix("microvm-image:").filter(|name| !name.is_empty());
        if name.is_none() && !resource.starts_with("microvm-image/") {
            return Err(super::invalid(format!("Invalid ARN format: {identifier}")));
        }
        match name {
            Some(name)
                if region == self.region && (account == self.account || account == "aws") =>
            {
                Ok(name)
            }
            _ => {
                let text = format!("User is not authorized to access the resource: {identifier}");
                Err(ServiceError::new(403, "AccessDeniedException", text))
            }
        }
    }

    /// What a connector's ARN means; nothing if it is none of this region's.
    pub fn connector_name<'a>(&self, arn: &'a str) -> Option<ConnectorName<'a>> {
        if let Some(word) = arn.strip_prefix(self.managed_connector("").as_str()) {
            let is_known = MANAGED_INGRESS.contains(&word) || MANAGED_EGRESS.contains(&word);
            return is_known.then_some(ConnectorName::Managed(word));
        }
        let id = arn.strip_prefix(self.connector("").as_str())?;
        Some(ConnectorName::Own(id.split(':').next().unwrap_or(id)))
    }
}

/// Whether a managed connector lets traffic in.
pub fn is_ingress(word: &str) -> bool {
    MANAGED_INGRESS.contains(&word)
}
