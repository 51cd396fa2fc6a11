//! Tags of images and network connectors.

use serde_json::{Value, json};

use super::names::ConnectorName;
use super::records::Tags;
use super::{Change, Decided, Decision, Fleet, invalid, not_found, parse, text};
use crate::answer::ServiceError;

/// Tags of one resource.
const TAGS_MAX: usize = 50;

/// A change of tags.
type Edit<'a> = &'a dyn Fn(&mut Tags);

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
        let arn = text(input, "Resource");
        let tags = match self.names.connector_name(arn) {
            Some(ConnectorName::Own(id)) => {
                self.connectors.get(id).map(|connector| &connector.tags)
            }
            Some(ConnectorName::Managed(_)) => None,
            None => Some(&self.image(arn)?.tags),
        };
        let tags = tags.ok_or_else(|| not_found(format!("Resource not found: {arn}")))?;
        Ok(Decision::answer(json!({ "Tags": tags })))
    }

    fn edit_tags(&self, arn: &str, edit: Edit<'_>) -> Decided {
        let own = match self.names.connector_name(arn) {
            Some(ConnectorName::Own(id)) => self.connectors.get(id),
            Some(ConnectorName::Managed(_)) => None,
            None => {
                let mut image = self.image(arn)?.clone();
                edit(&mut image.tags);
                check(&image.tags)?;
                return Ok(Decision::answer(Value::Null).change(Change::PutImage(image)));
            }
        };
        let mut connector =
            own.ok_or_else(|| not_found(format!("Resource not found: {arn}")))?.clone();
        edit(&mut connector.tags);
        check(&connector.tags)?;
        Ok(Decision::answer(Value::Null).change(Change::PutConnector(connector)))
    }
}

pub(super) fn check(tags: &Tags) -> Result<(), ServiceError> {
    if tags.len() > TAGS_MAX {
        return Err(invalid(format!("A resource has at most {TAGS_MAX} tags.")));
    }
    match tags.keys().find(|key| key.to_lowercase().starts_with("aws:")) {
        None => Ok(()),
        Some(key) => {
            Err(invalid(format!("The tag key '{key}' begins with aws:, which is reserved.")))
        }
    }
}
