//! Clients' tokens: a request that is sent again with the same token is not done again.

use serde_json::Value;

use super::records::Token;
use super::{Change, Context, Decision, Fleet, conflict};
use crate::answer::ServiceError;
use crate::clock::Timestamp;

/// How long a token is remembered: a day.
pub const TOKEN_SECONDS: i64 = 24 * 3600;

/// What is known of a request's token.
#[derive(Debug)]
pub struct Replay {
    token: Option<(String, String)>,
    at: Timestamp,
    /// What the same request made before.
    pub resource: Option<String>,
}

impl Fleet {
    pub(super) fn replay(
        &self,
        operation: &str,
        input: &Value,
        context: &Context<'_>,
    ) -> Result<Replay, ServiceError> {
        let at = context.now;
        let mut rest = input.clone();
        let members = rest.as_object_mut();
        let given =
            members.and_then(|it| it.remove("clientToken").or_else(|| it.remove("ClientToken")));
        let Some(given) = given.as_ref().and_then(Value::as_str) else {
            return Ok(Replay { token: None, at, resource: None });
        };
        let (token, request) = (format!("{operation}/{given}"), digest(&rest));
        let known = self.tokens.get(&token);
        let known = known.filter(|known| at.seconds_since(known.at) <= TOKEN_SECONDS);
        if known.is_some_and(|known| known.request != request) {
            return Err(conflict("The client token was used before, with other parameters."));
        }
        let resource = known.map(|known| known.resource.clone());
        Ok(Replay { token: Some((token, request)), at, resource })
    }

    pub(super) fn tokens_of<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Token> {
        self.tokens.values().filter(move |token| token.resource == resource)
    }
}

impl Replay {
    /// The decision, and that the token has come to this.
    pub fn remember(self, decision: Decision, resource: &str) -> Decision {
        let Some((token, request)) = self.token else { return decision };
        let (resource, at) = (resource.to_owned(), self.at);
        decision.change(Change::PutToken(Token { token, request, resource, at }))
    }
}

/// Requests can be long and have secrets in them, so a digest is kept.
fn digest(request: &Value) -> String {
    use s3s::crypto::{Checksum, Sha256};
    let mut hash = Sha256::default();
    hash.update(request.to_string().as_bytes());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
