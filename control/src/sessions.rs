//! Credentials of execution roles, for the code inside of microVMs.
//!
//! Nothing of them is kept: the secret key follows from the access key, and the session token says whose they
//! are and until when, so they outlive the daemon and not their time. Policies are not evaluated here, so a
//! session may do little: what the managed policies of its role are known for, and never change the fleet.

use std::sync::Arc;

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::{Clock, Timestamp};
use crate::iam;
use crate::seal::{Kind, Seal};
use crate::state::Credentials;
use crate::store::{Store, StoreError};

/// Access keys of sessions begin so; the daemon's own does not.
const PREFIX: &str = "RTSS";
/// How long credentials are good. SDKs ask for new ones in time.
const SECONDS: i64 = 3600;
/// The header, and the parameter of presigned addresses, that a session's token is in.
pub const TOKEN_HEADER: &str = "x-amz-security-token";
const TOKEN_PARAMETER: &str = "X-Amz-Security-Token=";

/// Mints and verifies.
pub struct Sessions {
    /// What session tokens are sealed with.
    pub seal: Seal,
    /// Knows the roles' policies.
    pub store: Arc<Store>,
    /// The time.
    pub clock: Clock,
}

/// Whose credentials they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The access key.
    #[serde(rename = "key")]
    pub access_key_id: String,
    /// The role's name.
    pub role: String,
    /// The microVM's id.
    #[serde(rename = "sub")]
    pub microvm: String,
    /// They are good until then.
    #[serde(rename = "exp_ms")]
    pub expires: Timestamp,
}

/// New credentials.
#[derive(Debug)]
pub struct Minted {
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`
    pub credentials: Credentials,
    /// `AWS_SESSION_TOKEN`
    pub token: String,
    /// They are good until then.
    pub expires: Timestamp,
}

impl Sessions {
    /// Credentials of a role for a microVM, if there is such a role.
    pub fn mint(&self, microvm: &str, role_arn: &str) -> Result<Option<Minted>, StoreError> {
        let role = role_arn.rsplit('/').next().unwrap_or_default();
        if self.policies(role)?.is_none() {
            return Ok(None);
        }
        let number = Uuid::new_v4().simple().to_string().to_uppercase();
        let access_key_id = format!("{PREFIX}{}", number.get(..16).unwrap_or_default());
        let secret_access_key = self.secret(&access_key_id);
        let expires = self.clock.now().plus_seconds(SECONDS);
        let (role, microvm) = (role.to_owned(), microvm.to_owned());
        let session = Session { access_key_id: access_key_id.clone(), role, microvm, expires };
        let token = self.seal.seal(Kind::Session, &session);
        let credentials = Credentials { access_key_id, secret_access_key };
        Ok(Some(Minted { credentials, token, expires }))
    }

    /// Whether an access key could be a session's.
    pub fn is_one(access_key: &str) -> bool {
        access_key.starts_with(PREFIX)
    }

    /// The secret key of a session's access key, whether there is such a session or not.
    pub fn secret(&self, access_key: &str) -> String {
        self.seal.derive(&format!("session {access_key}"))
    }

    /// Whose an access key is, as its token says.
    pub fn verify(&self, access_key: &str, token: &str) -> Option<Session> {
        let session: Session = self.seal.open(Kind::Session, token).ok()?;
        let is_good = session.access_key_id == access_key && self.clock.now() < session.expires;
        is_good.then_some(session)
    }

    /// Whether a session may use a service: by the policies that its role has at this moment.
    pub fn allows(
        &self,
        session: &Session,
        service: &str,
        is_read: bool,
    ) -> Result<bool, StoreError> {
        if service == "sts" {
            return Ok(true);
        }
        let policies = self.policies(&session.role)?.unwrap_or_default();
        let has = |names: &[&str]| {
            let managed =
                policies.iter().filter_map(|arn| arn.strip_prefix("arn:aws:iam::aws:policy/"));
            let mut names_of =
                managed.map(|name| name.strip_prefix("service-role/").unwrap_or(name));
            names_of.any(|name| names.contains(&name))
        };
        Ok(match service {
            "s3" if is_read => {
                has(&["AmazonS3ReadOnlyAccess", "AmazonS3FullAccess", "AdministratorAccess"])
            }
            "s3" => has(&["AmazonS3FullAccess", "AdministratorAccess"]),
            "logs" if is_read => has(&[
                "CloudWatchLogsReadOnlyAccess",
                "CloudWatchLogsFullAccess",
                "AdministratorAccess",
            ]),
            "logs" => has(&[
                "CloudWatchLogsFullAccess",
                "AWSLambdaBasicExecutionRole",
                "AdministratorAccess",
            ]),
            _ => false,
        })
    }

    /// The policies of a role, if there is such a role.
    fn policies(&self, role: &str) -> Result<Option<Vec<String>>, StoreError> {
        self.store.read(|transaction| iam::policies_of(transaction, role))
    }
}

/// Who gets into S3: the daemon's own key, and sessions whose role may.
#[derive(Clone)]
pub struct Gatekeeper {
    /// The daemon's own key.
    pub credentials: Credentials,
    /// Sessions.
    pub sessions: Arc<Sessions>,
}

#[async_trait]
impl S3Auth for Gatekeeper {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.credentials.access_key_id {
            return Ok(SecretKey::from(self.credentials.secret_access_key.as_str()));
        }
        if Sessions::is_one(access_key) {
            return Ok(SecretKey::from(self.sessions.secret(access_key)));
        }
        Err(s3_error!(InvalidAccessKeyId))
    }
}

#[async_trait]
impl S3Access for Gatekeeper {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        };
        let access_key = &credentials.access_key;
        let header = context.headers().get(TOKEN_HEADER).and_then(|value| value.to_str().ok());
        let token = match header {
            Some(token) => Some(token.to_owned()),
            None => {
                let mut pairs = context.uri().query().unwrap_or_default().split('&');
                pairs.find_map(|pair| pair.strip_prefix(TOKEN_PARAMETER)).map(str::to_owned)
            }
        };
        match token {
            None if *access_key == self.credentials.access_key_id => return Ok(()),
            Some(token) if Sessions::is_one(access_key) => {
                let session = self.sessions.verify(access_key, &token);
                let session = session.ok_or_else(|| s3_error!(ExpiredToken))?;
                let is_read = ["Get", "Head", "List"]
                    .iter()
                    .any(|word| context.s3_op().name().starts_with(word));
                let sessions = Arc::clone(&self.sessions);
                let work =
                    tokio::task::spawn_blocking(move || sessions.allows(&session, "s3", is_read));
                if matches!(work.await, Ok(Ok(true))) {
                    return Ok(());
                }
                Err(s3_error!(AccessDenied, "The execution role's policies do not allow it."))
            }
            _ => Err(s3_error!(InvalidToken)),
        }
    }
}

#[cfg(test)]
mod tests;
