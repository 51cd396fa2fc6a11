//! STS, as far as people ask it who they are.

use crate::answer::{Answer, ServiceError};
use crate::form::{Form, response};
use crate::http::Call;
use crate::sessions::Session;
use crate::settings::Settings;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Answers a request.
pub fn answer(call: &Call, settings: &Settings) -> Result<Answer, ServiceError> {
    let mut form = Form::of(call)?;
    let action = form.required("Action")?;
    if action != "GetCallerIdentity" {
        let text = format!("STS has no action {action} here; GetCallerIdentity is the only one.");
        return Err(ServiceError::new(400, "InvalidAction", text));
    }
    form.finish()?;
    let account = &settings.account;
    Ok(response(NAMESPACE, "GetCallerIdentity", |xml| {
        match &call.session {
            None => {
                xml.text("Arn", &format!("arn:aws:iam::{account}:root"));
                xml.text("UserId", account);
            }
            Some(session) => {
                xml.text("Arn", &session_arn(session, settings));
                xml.text("UserId", &format!("{}:{}", session.role, session.microvm));
            }
        }
        xml.text("Account", account);
    }))
}

/// Who a session is.
pub fn session_arn(session: &Session, settings: &Settings) -> String {
    let Session { role, microvm, .. } = session;
    format!("arn:aws:sts::{}:assumed-role/{role}/{microvm}", settings.account)
}
