//! Tags of images and network connectors.

use serde_json::{Value, json};

use super::connectors::busy;
use super::names::ConnectorName;
use super::records::{Connector, ConnectorState, Image, Tags};
use super::{Change, Decided, Decision, Fleet, invalid, invalid_parameter, not_found, parse, text};
use crate::answer::ServiceError;

/// Tags of one resource.
const TAGS_MAX: usize = 50;

/// A change of tags.
type Edit<'a> = &'a dyn Fn(&mut Tags);

/// What has tags.
enum Tagged<'a> {
    Image(&'a Image),
    Connector(&'a Connector),
}

impl Fleet {
    pub(super) fn tag(&self, input: &Value) -> Decided {
        let new: Tags = parse(input["Tags"].clone())?;
        self.edit_tags(text(input, "Resource"), &|tags| tags.extend(new.clone()))
    }

    pub(super) fn untag(&self, input: &Value) -> Decided {
        let keys: Vec<String> = parse(input["TagKeys"].clone())?;
        self.edit_tags(text(input, "Resource"), &|tags| tags.retain(|key, _| !keys.contains(key)))
    }

    pub(super) fn list_tags(&self, input: &Value) -> Decided {
        let tags = match self.tagged(text(input, "Resource"))? {
            Tagged::Image(image) => &image.tags,
            Tagged::Connector(connector) => &connector.tags,
        };
        Ok(Decision::answer(json!({ "Tags": tags })))
    }

    fn edit_tags(&self, arn: &str, edit: Edit<'_>) -> Decided {
        let change = match self.tagged(arn)? {
            Tagged::Image(image) => {
                let mut image = image.clone();
                edit(&mut image.tags);
                check(&image.tags).map_err(invalid)?;
                Change::PutImage(image)
            }
            Tagged::Connector(connector) if connector.state == ConnectorState::Deleting => {
                return Err(busy(connector));
            }
            Tagged::Connector(connector) => {
                let mut connector = connector.clone();
                edit(&mut connector.tags);
                check(&connector.tags).map_err(invalid_parameter)?;
                Change::PutConnector(connector)
            }
        };
        Ok(Decision::answer(Value::Null).change(change))
    }

    fn tagged(&self, arn: &str) -> Result<Tagged<'_>, ServiceError> {
        match self.names.connector_name(arn) {
            Some(ConnectorName::Own(id)) => {
                let connector = self.connectors.get(id).map(Tagged::Connector);
                connector.ok_or_else(|| not_found(format!("Resource not found: {arn}")))
            }
            None if arn.contains(":microvm-image:") => self.image(arn).map(Tagged::Image),
            _ => Err(invalid_parameter(format!(
                "{arn} has no tags here: MicroVM images and network connectors of this account have."
            ))),
        }
    }
}

/// What is wrong with tags, if anything is.
pub(super) fn check(tags: &Tags) -> Result<(), String> {
    if tags.len() > TAGS_MAX {
        return Err(format!("A resource has at most {TAGS_MAX} tags."));
    }
    match tags.keys().find(|key| key.to_lowercase().starts_with("aws:")) {
        None => Ok(()),
        Some(key) => Err(format!("The tag key '{key}' begins with aws:, which is reserved.")),
    }
}
