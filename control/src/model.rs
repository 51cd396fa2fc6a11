//! The services' models: which path is which operation, and what its input has to satisfy.
//!
//! The tables are made from Amazon's own models by `xtask/models`. Clients check only some of the
//! constraints, so a server has to check them all; the texts are the service's.

mod validate;
mod words;

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::answer::ServiceError;

/// The models, as `xtask/models` writes them.
const MODELS: [&str; 2] =
    [include_str!("model/lambda-microvms.json"), include_str!("model/lambda-core.json")];

/// One service.
#[derive(Debug, Deserialize)]
pub struct Model {
    operations: Vec<Operation>,
    shapes: BTreeMap<String, Shape>,
    #[serde(skip)]
    patterns: BTreeMap<String, Regex>,
}

/// One operation.
#[derive(Debug, Deserialize)]
pub struct Operation {
    /// `CreateMicrovmImage`
    pub name: String,
    method: String,
    uri: String,
    /// The HTTP status of success.
    pub status: u16,
    input: String,
    /// The shape of the answer, if it has one.
    pub output: Option<String>,
    /// The shapes of its errors.
    pub errors: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Shape {
    #[serde(rename = "type")]
    kind: Kind,
    min: Option<i64>,
    max: Option<i64>,
    pattern: Option<String>,
    #[serde(rename = "enum")]
    words: Option<Vec<String>>,
    #[serde(default)]
    sensitive: bool,
    #[serde(default)]
    union: bool,
    member: Option<String>,
    key: Option<String>,
    value: Option<String>,
    #[serde(default)]
    members: Vec<Member>,
    /// Of an error.
    status: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Structure,
    List,
    Map,
    String,
    Integer,
    Long,
    Boolean,
    Timestamp,
}

#[derive(Debug, Deserialize)]
struct Member {
    name: String,
    shape: String,
    location: Option<Location>,
    wire: Option<String>,
    #[serde(default)]
    required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Location {
    Uri,
    QueryString,
    Header,
}

/// Why the tables cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ModelError {
    #[error("a service model is not understood")]
    Parse(#[from] serde_json::Error),
    #[error("a service model's pattern of {shape} is not understood")]
    Pattern { shape: String, source: regex::Error },
}

/// The values in a path by the names of their places, percent-encoded as they came.
type Labels<'a> = Vec<(&'a str, &'a str)>;

/// A request that was found to be one for an operation, its input checked.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// Its input: members of path, query and body together.
    pub input: Value,
}

impl Model {
    /// Both services that sign for `lambda`.
    pub fn all() -> Result<Vec<Self>, ModelError> {
        MODELS.iter().map(|text| Self::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<Self, ModelError> {
        let mut model: Self = serde_json::from_str(text)?;
        for (name, shape) in &model.shapes {
            let Some(pattern) = &shape.pattern else { continue };
            let regex = Regex::new(&format!("^(?:{pattern})$"))
                .map_err(|source| ModelError::Pattern { shape: name.clone(), source })?;
            model.patterns.insert(name.clone(), regex);
        }
        Ok(model)
    }

    /// The operation of a request, if it is one of this service's; an error says what is wrong with
    /// its input.
    pub fn parse_request(
        &self,
        method: &str,
        path: &str,
        query: &str,
        body: &[u8],
    ) -> Option<Result<Parsed<'_>, ServiceError>> {
        let (operation, labels) = self.find(method, path)?;
        let input = self.input(operation, labels, query, body);
        Some(input.map(|input| Parsed { operation, input }))
    }

    fn find<'s: 'p, 'p>(
        &'s self,
        method: &str,
        path: &'p str,
    ) -> Option<(&'s Operation, Labels<'p>)> {
        self.operations.iter().find_map(|operation| {
            let labels = operation.matches(method, path)?;
            Some((operation, labels))
        })
    }

    fn input(
        &self,
        operation: &Operation,
        labels: Labels<'_>,
        query: &str,
        body: &[u8],
    ) -> Result<Value, ServiceError> {
        let shape = self.shapes.get(&operation.input);
        let members = shape.map(|shape| shape.members.as_slice()).unwrap_or_default();
        let mut input = body_members(members, body)?;
        for (wire, raw) in labels {
            let member = members.iter().find(|member| member.wire.as_deref() == Some(wire));
            if let Some(member) = member {
                input.insert(member.name.clone(), Value::String(decode(raw)?));
            }
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (wire, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (wire, value) =
                (decode(&wire.replace('+', " "))?, decode(&value.replace('+', " "))?);
            let is_it = |member: &&Member| {
                member.location == Some(Location::QueryString)
                    && member.wire.as_deref() == Some(wire.as_str())
            };
            let Some(member) = members.iter().find(is_it) else {
                return Err(unknown(&wire));
            };
            self.insert_query(&mut input, member, value)?;
        }
        let input = Value::Object(input);
        self.validate(&operation.input, &input)?;
        Ok(input)
    }

    fn insert_query(
        &self,
        input: &mut Map<String, Value>,
        member: &Member,
        text: String,
    ) -> Result<(), ServiceError> {
        let kind = self.shapes.get(&member.shape).map_or(Kind::String, |shape| shape.kind);
        let value = match kind {
            Kind::Integer | Kind::Long => match text.parse::<i64>() {
                Ok(number) => number.into(),
                Err(_) => return Err(serialization(&format!("'{text}' is not a number"))),
            },
            Kind::List => {
                let list = input.entry(member.name.clone()).or_insert_with(|| Value::Array(vec![]));
                if let Value::Array(list) = list {
                    list.push(Value::String(text));
                }
                return Ok(());
            }
            _ => Value::String(text),
        };
        match input.insert(member.name.clone(), value) {
            None => Ok(()),
            Some(_) => Err(serialization(&format!("'{}' is given twice", member.name))),
        }
    }
}

impl Operation {
    /// The values of the labels in the path, percent-encoded as they came, if the path is this
    /// operation's. Segments are split first and decoded later: an ARN may have a `/` in it.
    fn matches<'a>(&'a self, method: &str, path: &'a str) -> Option<Labels<'a>> {
        if self.method != method {
            return None;
        }
        let (mut wanted, mut given) = (self.uri.split('/'), path.split('/'));
        let mut labels = Vec::new();
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return Some(labels),
                (Some(wanted), Some(given)) => {
                    let label = wanted.strip_prefix('{').and_then(|word| word.strip_suffix('}'));
                    match label {
                        Some(_) if given.is_empty() => return None,
                        Some(label) => labels.push((label, given)),
                        None if wanted == given => {}
                        None => return None,
                    }
                }
                _ => return None,
            }
        }
    }
}

fn body_members(members: &[Member], body: &[u8]) -> Result<Map<String, Value>, ServiceError> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    let Ok(Value::Object(mut given)) = serde_json::from_slice(body) else {
        return Err(serialization("the body is not a JSON object"));
    };
    given.retain(|_, value| !value.is_null());
    let is_known = |name: &String| {
        members.iter().any(|member| member.name == *name && member.location.is_none())
    };
    match given.keys().find(|name| !is_known(name)) {
        None => Ok(given),
        Some(name) => Err(unknown(name)),
    }
}

fn decode(raw: &str) -> Result<String, ServiceError> {
    let decoded = percent_decode_str(raw).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| serialization("the address is not UTF-8"))
}

fn unknown(name: &str) -> ServiceError {
    let text = format!("The operation has no member '{name}', or it is not supported here.");
    ServiceError::new(400, "ValidationException", text)
}

fn serialization(what: &str) -> ServiceError {
    ServiceError::new(
        400,
        "SerializationException",
        format!("The request is not understood: {what}."),
    )
}

#[cfg(test)]
mod tests;
