//! Which of the small services a verified request goes to.

use std::sync::Arc;

use crate::answer::{Answer, Protocol, ServiceError};
use crate::http::Call;
use crate::iam::Iam;
use crate::lambda::Lambda;
use crate::logs::Logs;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::sts;

/// Every service but S3.
pub struct Services {
    /// The settings.
    pub settings: Arc<Settings>,
    /// Images, microVMs, network connectors.
    pub lambda: Arc<Lambda>,
    /// Credentials of execution roles.
    pub sessions: Arc<Sessions>,
    /// Roles.
    pub iam: Iam,
    /// Log groups.
    pub logs: Arc<Logs>,
}

impl Services {
    /// Answers a request; may wait for the disk.
    pub fn answer(&self, call: &Call) -> Answer {
        let protocol = match call.service.as_str() {
            "logs" => Protocol::Json,
            "sts" | "iam" => Protocol::Query,
            _ => Protocol::RestJson,
        };
        let result = self.allowed(call).and_then(|()| self.dispatch(call));
        result.unwrap_or_else(|error| match call.service.as_str() {
            "lambda" => self.lambda.spell(call, error).answer(protocol),
            _ => error.answer(protocol),
        })
    }

    fn dispatch(&self, call: &Call) -> Result<Answer, ServiceError> {
        match call.service.as_str() {
            "lambda" => self.in_region(call).and_then(|()| self.lambda.answer(call)),
            "logs" => self.in_region(call).and_then(|()| self.logs.answer(call)),
            "iam" => self.iam.answer(call),
            "sts" => sts::answer(call, &self.settings),
            other => Err(ServiceError::new(
                400,
                "UnknownOperationException",
                format!("There is no service '{other}' here: lambda, s3, sts, iam and logs are."),
            )),
        }
    }

    /// The code inside of a microVM has little to say here.
    fn allowed(&self, call: &Call) -> Result<(), ServiceError> {
        let Some(session) = &call.session else { return Ok(()) };
        let target = call.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
        let operation = target.and_then(|target| target.split_once('.')).map(|(_, name)| name);
        let is_read = operation.is_some_and(|name| {
            ["Get", "Describe", "Filter"].iter().any(|word| name.starts_with(word))
        });
        if self.sessions.allows(session, &call.service, is_read)? {
            return Ok(());
        }
        let text = format!(
            "{} is not authorized to use {} here.",
            sts::session_arn(session, &self.settings),
            call.service
        );
        Err(ServiceError::new(403, "AccessDeniedException", text))
    }

    /// `sts` and `iam` are the same everywhere; what the others keep is in one region.
    fn in_region(&self, call: &Call) -> Result<(), ServiceError> {
        if call.region == self.settings.region {
            return Ok(());
        }
        let text = format!(
            "Credential should be scoped to a valid region: everything here is in '{}', not '{}'.",
            self.settings.region, call.region
        );
        Err(ServiceError::new(403, "InvalidSignatureException", text))
    }
}
