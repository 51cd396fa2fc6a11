//! What the VMM answers, and how it is written.

use serde::Serialize;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done; there is nothing to say.
    Done,
    /// A JSON document.
    Json(String),
    /// Not done; the text says why and becomes the `fault_message`.
    Refused(String),
}

impl Response {
    /// A document made of `value`.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => Response::Json(text),
            Err(error) => Response::Refused(format!("cannot write the answer: {error}")),
        }
    }

    /// Appends the answer in HTTP to `out`.
    pub fn encode(&self, keep_alive: bool, out: &mut Vec<u8>) {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let (status, body) = match self {
            Response::Done => ("204 No Content", None),
            Response::Json(text) => ("200 OK", Some(text.clone())),
            Response::Refused(text) => {
                let body = serde_json::json!({ "fault_message": text });
                ("400 Bad Request", Some(body.to_string()))
            }
        };
        let mut text =
            format!("HTTP/1.1 {status}\r\nServer: rotifer-vmm\r\nConnection: {connection}\r\n");
        match body {
            None => text.push_str("\r\n"),
            Some(body) => {
                let length = body.len();
                text.push_str(&format!(
                    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                ));
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
}
