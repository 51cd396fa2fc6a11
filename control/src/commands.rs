//! `rotifer ps`, `images`, `run`, `suspend`, `resume`, `rm`, `logs`: thin over the API.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Ask, Client, ClientError};
use crate::state::Directory;

const MICROVMS: &str = "/2025-09-09/microvms";
const IMAGES: &str = "/2025-09-09/microvm-images";
/// How often `logs -f` asks.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

/// A command for the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The daemon's directory.
    pub state: PathBuf,
    /// Whether to print JSON: a document for each line of the table.
    pub json: bool,
    /// What to do.
    pub what: What,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the help says it")]
pub enum What {
    Ps,
    Images,
    Run { image: String },
    Suspend { ids: Vec<String> },
    Resume { ids: Vec<String> },
    Remove { ids: Vec<String> },
    Logs { of: String, follow: bool },
}

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    #[error("there is no image {name:?}; `rotifer images` lists them")]
    NoImage { name: String },
    #[error("cannot write what came of it")]
    Write(#[source] std::io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("{failed} of {all} microVMs were left as they are")]
    Some { failed: usize, all: usize },
}

/// Carries a command out and prints what comes of it.
pub fn run(request: &Request) -> Result<(), CommandError> {
    let client = Client::new(&Directory::open(&request.state)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    runtime.block_on(Commands { client, json: request.json }.run(&request.what))
}

struct Commands {
    client: Client,
    json: bool,
}

impl Commands {
    async fn run(&self, what: &What) -> Result<(), CommandError> {
        match what {
            What::Ps => {
                let members = ["microvmId", "state", "imageArn", "imageVersion", "startedAt"];
                self.table(&self.list(MICROVMS).await?, &members)?;
            }
            What::Images => {
                let members = ["name", "state", "latestActiveImageVersion", "createdAt"];
                self.table(&self.list(IMAGES).await?, &members)?;
            }
            What::Run { image } => {
                let image = self.image(image).await?;
                let body = json!({ "imageIdentifier": image });
                let made = self.lambda("POST", MICROVMS, &body).await?;
                self.line(&made, &["microvmId", "endpoint"])?;
            }
            What::Suspend { ids } => self.each("POST", "/suspend", ids).await?,
            What::Resume { ids } => self.each("POST", "/resume", ids).await?,
            What::Remove { ids } => self.each("DELETE", "", ids).await?,
            What::Logs { of, follow } => self.logs(of, *follow).await?,
        }
        Ok(())
    }

    async fn lambda(&self, method: &str, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.client.ask(Ask { service: "lambda", method, path, operation: None, body }).await
    }

    /// All pages of a list.
    async fn list(&self, path: &str) -> Result<Vec<Value>, ClientError> {
        let (mut items, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.lambda("GET", &format!("{path}{token}"), &Value::Null).await?;
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["nextToken"].as_str() {
                Some(next) => token = format!("?nextToken={next}"),
                None => return Ok(items),
            }
        }
    }

    /// The ARN of an image that is named.
    async fn image(&self, name: &str) -> Result<String, CommandError> {
        if name.starts_with("arn:") {
            return Ok(name.into());
        }
        let images = self.list(IMAGES).await?;
        let found = images.iter().find(|image| image["name"] == name);
        let arn = found.and_then(|image| image["imageArn"].as_str());
        arn.map(str::to_owned).ok_or_else(|| CommandError::NoImage { name: name.into() })
    }

    /// The same for several microVMs; one that fails does not keep the others from it.
    async fn each(&self, method: &str, tail: &str, ids: &[String]) -> Result<(), CommandError> {
        let mut failed = 0;
        for id in ids {
            let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
            match self.lambda(method, &format!("{MICROVMS}/{id}{tail}"), &Value::Null).await {
                Ok(_) => {}
                Err(error @ ClientError::Refused { .. }) => {
                    eprintln!("rotifer: {error}");
                    failed += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if failed > 0 {
            return Err(CommandError::Some { failed, all: ids.len() });
        }
        Ok(())
    }

    async fn logs(&self, of: &str, follow: bool) -> Result<(), CommandError> {
        let (image, stream) = match of.strip_prefix("microvm-") {
            Some(_) => {
                let shown = self.lambda("GET", &format!("{MICROVMS}/{of}"), &Value::Null).await?;
                (short(&shown["imageArn"]), Some(of))
            }
            None => (of.to_owned(), None),
        };
        let mut ask = json!({ "logGroupName": format!("/aws/lambda-microvms/{image}") });
        if let Some(stream) = stream {
            ask["logStreamNames"] = json!([stream]);
        }
        // What was shown of the last millisecond: more of it may come.
        let mut shown = BTreeSet::new();
        let mut since = 0;
        loop {
            ask["startTime"] = json!(since);
            let mut token = Value::Null;
            loop {
                let mut page = ask.clone();
                if !token.is_null() {
                    page["nextToken"] = token;
                }
                let operation = Some("FilterLogEvents");
                let (service, method, path) = ("logs", "POST", "/");
                let page = self.client.ask(Ask { service, method, path, operation, body: &page });
                let page = page.await?;
                for event in page["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
                    let time = event["timestamp"].as_i64().unwrap_or_default();
                    if time > since {
                        since = time;
                        shown.clear();
                    }
                    if shown.insert(event["eventId"].to_string()) {
                        self.event(event)?;
                    }
                }
                token = page["nextToken"].clone();
                if token.is_null() {
                    break;
                }
            }
            if !follow {
                return Ok(());
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }

    fn event(&self, event: &Value) -> Result<(), CommandError> {
        if self.json {
            return say(&event.to_string());
        }
        say(&printable(event["message"].as_str().unwrap_or_default().trim_end()))
    }

    fn table(&self, items: &[Value], members: &[&str]) -> Result<(), CommandError> {
        if self.json {
            return items.iter().try_for_each(|item| say(&item.to_string()));
        }
        let head = members.iter().map(|name| name.to_uppercase()).collect();
        let cells = |item: &Value| members.iter().map(|name| cell(item, name)).collect();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(items.iter().map(cells)).collect();
        let width = |column: usize| {
            rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..members.len()).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            say(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }

    fn line(&self, item: &Value, members: &[&str]) -> Result<(), CommandError> {
        if self.json {
            return say(&item.to_string());
        }
        let cells = members.iter().map(|name| cell(item, name));
        say(&cells.collect::<Vec<_>>().join("  "))
    }
}

/// Prints a line. Whoever reads it may have gone.
fn say(line: &str) -> Result<(), CommandError> {
    writeln!(std::io::stdout(), "{line}").map_err(CommandError::Write)
}

/// A member as people read it.
fn cell(item: &Value, member: &str) -> String {
    match (&item[member], member) {
        (value, "imageArn") => short(value),
        (Value::Number(seconds), _) => {
            let seconds = seconds.as_f64().unwrap_or_default();
            let time = OffsetDateTime::from_unix_timestamp(seconds as i64);
            time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
        }
        (Value::String(text), _) => printable(text),
        _ => "-".into(),
    }
}

/// The name in an ARN.
fn short(arn: &Value) -> String {
    arn.as_str().and_then(|arn| arn.rsplit(':').next()).map(printable).unwrap_or_default()
}

/// What a guest writes must not command the terminal of who reads it.
fn printable(text: &str) -> String {
    let safe =
        |letter: char| if letter.is_control() && letter != '\t' { '\u{fffd}' } else { letter };
    text.chars().map(safe).collect()
}
