//! The protocol of `sts` and `iam`: a form goes in, XML comes out.

use std::collections::BTreeMap;
use std::fmt::Write;

use percent_encoding::percent_decode_str;
use quick_xml::escape::escape;
use uuid::Uuid;

use crate::answer::{Answer, ServiceError};
use crate::http::Call;

/// More than any operation takes.
const FIELDS_MAX: usize = 256;

/// The fields of a request.
#[derive(Debug)]
pub struct Form {
    fields: BTreeMap<String, String>,
}

impl Form {
    /// From the body, or from the query of a GET.
    pub fn of(call: &Call) -> Result<Self, ServiceError> {
        let text = if call.body.is_empty() {
            &call.query
        } else {
            std::str::from_utf8(&call.body).map_err(|_| malformed("the form is not UTF-8"))?
        };
        let mut fields = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if fields.insert(decode(name)?, decode(value)?).is_some() {
                return Err(malformed("a field of the form is given twice"));
            }
            if fields.len() > FIELDS_MAX {
                return Err(malformed("the form has too many fields"));
            }
        }
        Ok(Self { fields })
    }

    /// A field's value, if it is there. Each is taken once.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.fields.remove(name)
    }

    /// A field that has to be there.
    pub fn required(&mut self, name: &str) -> Result<String, ServiceError> {
        self.take(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            let text = format!("The request must contain the parameter {name}.");
            ServiceError::new(400, "MissingParameter", text)
        })
    }

    /// What nobody has taken is not supported.
    pub fn finish(self) -> Result<(), ServiceError> {
        match self.fields.into_keys().find(|name| name != "Version") {
            None => Ok(()),
            Some(name) => {
                let text = format!("The parameter {name} is not supported here.");
                Err(ServiceError::new(400, "ValidationError", text))
            }
        }
    }
}

fn decode(text: &str) -> Result<String, ServiceError> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| malformed("the form is not UTF-8"))
}

fn malformed(text: &str) -> ServiceError {
    ServiceError::new(400, "MalformedQueryString", format!("The request cannot be read: {text}."))
}

/// An XML document in the making.
#[derive(Debug, Default)]
pub struct Xml {
    text: String,
}

impl Xml {
    /// An element with text in it.
    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        // Writing to a string cannot fail.
        let _always_ok = write!(self.text, "<{name}>{}</{name}>", escape(value));
        self
    }

    /// An element with elements in it.
    pub fn element(&mut self, name: &str, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let _always_ok = write!(self.text, "<{name}>");
        inner(self);
        let _always_ok = write!(self.text, "</{name}>");
        self
    }
}

/// The response of an operation: `<OpResponse><OpResult>...</OpResult>...</OpResponse>`.
pub fn response(namespace: &str, operation: &str, result: impl FnOnce(&mut Xml)) -> Answer {
    let mut xml = Xml::default();
    xml.element(&format!("{operation}Result"), result);
    xml.element("ResponseMetadata", |xml| {
        xml.text("RequestId", &Uuid::new_v4().to_string());
    });
    let body = xml.text;
    Answer::xml(format!("<{operation}Response xmlns=\"{namespace}\">{body}</{operation}Response>"))
}
