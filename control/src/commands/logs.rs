//! What builds and apps say: log events, in the order of their times.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{CommandError, Commands, FOLLOW_PAUSE, MICROVMS, printable, say, short};
use crate::client::{Ask, ClientError};

/// Where a reader of events is.
pub struct Tail {
    ask: Value,
    since: i64,
    /// What was shown of the last millisecond: more of it may come.
    shown: BTreeSet<String>,
}

impl Tail {
    /// Before the first event of an image, or of one of its streams.
    pub fn of(image: &str, stream: Option<&str>) -> Self {
        let mut ask = json!({ "logGroupName": format!("/aws/lambda-microvms/{image}") });
        if let Some(stream) = stream {
            ask["logStreamNames"] = json!([stream]);
        }
        Self { ask, since: 0, shown: BTreeSet::new() }
    }
}

/// Whether there is no such log, which begins with its first line.
pub fn is_missing(error: &CommandError) -> bool {
    let CommandError::Client(ClientError::Refused { code, .. }) = error else { return false };
    code == "ResourceNotFoundException"
}

impl Commands {
    /// `rotifer logs`
    pub(super) async fn logs(&self, of: &str, follow: bool) -> Result<(), CommandError> {
        let mut tail = match of.strip_prefix("microvm-") {
            Some(_) => {
                let shown = self.lambda("GET", &format!("{MICROVMS}/{of}"), &Value::Null).await?;
                Tail::of(&short(&shown["imageArn"]), Some(of))
            }
            None => Tail::of(of, None),
        };
        loop {
            match self.show_more(&mut tail).await {
                // There is no log before its first line.
                Err(error) if is_missing(&error) && of.starts_with("microvm-") => {}
                Err(error) if is_missing(&error) => drop(self.image(of).await?),
                shown => shown?,
            }
            if !follow {
                return Ok(());
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }

    /// Prints what has come since the last time.
    pub(super) async fn show_more(&self, tail: &mut Tail) -> Result<(), CommandError> {
        tail.ask["startTime"] = json!(tail.since);
        let mut token = Value::Null;
        loop {
            let mut page = tail.ask.clone();
            if !token.is_null() {
                page["nextToken"] = token;
            }
            let operation = Some("FilterLogEvents");
            let (service, method, path) = ("logs", "POST", "/");
            let page = self.client.ask(Ask { service, method, path, operation, body: &page });
            let page = page.await?;
            for event in page["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let time = event["timestamp"].as_i64().unwrap_or_default();
                if time > tail.since {
                    tail.since = time;
                    tail.shown.clear();
                }
                if tail.shown.insert(event["eventId"].to_string()) {
                    self.event(event)?;
                }
            }
            token = page["nextToken"].clone();
            if token.is_null() {
                return Ok(());
            }
        }
    }

    fn event(&self, event: &Value) -> Result<(), CommandError> {
        if self.json {
            return say(&event.to_string());
        }
        say(&printable(event["message"].as_str().unwrap_or_default().trim_end()))
    }
}
