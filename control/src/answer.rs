//! What a service answers, and how each protocol writes an error.

use quick_xml::escape::escape;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::store::StoreError;

/// A response of one of our services; S3's are s3s's.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers besides those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// The type of the body; nothing if there is none.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
}

/// How a service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `lambda`: JSON, the error's class in a header.
    RestJson,
    /// `logs`: JSON, the error's class in the body.
    Json,
    /// `sts`, `iam`: forms in, XML out.
    Query,
}

/// Why a service does not do what it is asked. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ServiceError {
    /// The HTTP status.
    pub status: u16,
    /// The error's class.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Further members of the error's shape.
    pub members: Members,
}

/// The members of an error besides its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// None.
    None,
    /// `resourceId` and `resourceType`, which the service leaves null.
    Resource,
    /// Those, `serviceCode` and `quotaCode`.
    Quota,
    /// The text is called `Message`, as lambda-core does at times.
    CapitalMessage,
    /// `Reason`, as lambda-core has it of too many requests.
    Throttle,
}

impl ServiceError {
    /// An error without further members.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), members: Members::None }
    }

    /// The same with further members.
    #[must_use]
    pub fn with(mut self, members: Members) -> Self {
        self.members = members;
        self
    }

    /// The error's class as a protocol's services call it, so that SDKs know it.
    fn code(&self, protocol: Protocol) -> &'static str {
        match (protocol, self.code) {
            (Protocol::Json, INTERNAL) => "ServiceUnavailableException",
            (Protocol::Query, INTERNAL) => "ServiceFailure",
            (_, code) => code,
        }
    }

    /// As a response.
    pub fn answer(&self, protocol: Protocol) -> Answer {
        let code = self.code(protocol);
        match protocol {
            Protocol::RestJson => {
                let mut answer = Answer::json(self.status, &self.json());
                answer.headers.push(("x-amzn-errortype", code.into()));
                if self.status == 429 {
                    answer.headers.push(("retry-after", RETRY_AFTER_SECONDS.into()));
                }
                answer
            }
            Protocol::Json => {
                let mut body = self.json();
                body["__type"] = json!(code);
                Answer { content_type: Some(JSON_1_1), ..Answer::json(self.status, &body) }
            }
            Protocol::Query => {
                let side = if self.status < 500 { "Sender" } else { "Receiver" };
                let body = format!(
                    "<ErrorResponse><Error><Type>{side}</Type><Code>{code}</Code><Message>{}</Message>\
                     </Error><RequestId>{}</RequestId></ErrorResponse>",
                    escape(self.message.as_str()),
                    Uuid::new_v4()
                );
                Answer { status: self.status, ..Answer::xml(body) }
            }
        }
    }

    fn json(&self) -> Value {
        let text = &self.message;
        match self.members {
            Members::None => json!({ "message": text }),
            Members::Resource => {
                json!({ "message": text, "resourceId": null, "resourceType": null })
            }
            Members::Quota => json!({
                "message": text, "resourceId": null, "resourceType": null,
                "serviceCode": null, "quotaCode": null,
            }),
            Members::CapitalMessage => json!({ "Message": text }),
            Members::Throttle => json!({ "message": text, "Reason": "CallerRateLimitExceeded" }),
        }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        if error.is_full() {
            tracing::error!("the disk of the control plane's state is full: {error}");
            let text = "The disk that the control plane keeps its state on is full. Nothing was \
                        changed; make room and try again.";
            return Self::new(500, INTERNAL, text);
        }
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!("{error}: {}", source.unwrap_or_default());
        Self::new(500, INTERNAL, format!("The control plane failed: {error}."))
    }
}

/// What lambda's services call a failure of ours.
const INTERNAL: &str = "InternalServerException";
/// A rate is so many requests a second.
const RETRY_AFTER_SECONDS: &str = "1";
const JSON_1_1: &str = "application/x-amz-json-1.1";

impl Answer {
    /// A JSON document.
    pub fn json(status: u16, body: &Value) -> Self {
        let body = body.to_string().into_bytes();
        Self { status, headers: Vec::new(), content_type: Some("application/json"), body }
    }

    /// A JSON document of the protocol that `logs` speaks.
    pub fn json_1_1(body: &Value) -> Self {
        Self { content_type: Some(JSON_1_1), ..Self::json(200, body) }
    }

    /// An XML document.
    pub fn xml(body: String) -> Self {
        let headers = Vec::new();
        Self { status: 200, headers, content_type: Some("text/xml"), body: body.into_bytes() }
    }

    /// A line of text.
    pub fn text(status: u16, body: &str) -> Self {
        let (headers, body) = (Vec::new(), body.as_bytes().to_vec());
        Self { status, headers, content_type: Some("text/plain"), body }
    }

    /// No body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), content_type: None, body: Vec::new() }
    }
}
