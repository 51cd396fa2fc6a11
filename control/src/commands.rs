//! The commands that ask the daemon: `rotifer ps`, `images`, `run`, `build` and their like, thin over the API.

mod build;
mod logs;
mod session;
mod terminal;
pub mod usage;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Ask, Client, ClientError};
use crate::state::Directory;

const MICROVMS: &str = "/2025-09-09/microvms";
const IMAGES: &str = "/2025-09-09/microvm-images";
/// How often is asked whether there is more.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// The exit status of `shell` and `exec` when it is not that of what they run.
const NOT_RUN: u8 = 255;

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
    Shell { id: String },
    Exec { id: String, command: Vec<String>, tty: bool },
    Build { directory: PathBuf, name: String, memory_mib: Option<u64> },
    Suspend { ids: Vec<String> },
    Resume { ids: Vec<String> },
    Remove { ids: Vec<String> },
    Logs { of: String, follow: bool },
    Usage { of: usage::Of },
}

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    #[error(transparent)]
    Session(#[from] session::SessionError),
    #[error("there is no image {name:?}; `rotifer images` lists them")]
    NoImage { name: String },
    #[error(transparent)]
    Directory(#[from] rotifer_build::directory::DirectoryError),
    #[error("there is no Dockerfile in {directory:?}")]
    NoDockerfile { directory: PathBuf },
    #[error("cannot read the archive")]
    Archive(#[source] std::io::Error),
    #[error("the build of {name} {version} failed: {reason}")]
    Build { name: String, version: String, reason: String },
    #[error("cannot write what came of it")]
    Write(#[source] std::io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("{failed} of {all} microVMs were left as they are")]
    Some { failed: usize, all: usize },
}

impl What {
    /// The exit status if it fails.
    pub fn failure(&self) -> ExitCode {
        match self {
            Self::Shell { .. } | Self::Exec { .. } => NOT_RUN.into(),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Carries a command out and prints what comes of it.
pub fn run(request: &Request) -> Result<ExitCode, CommandError> {
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
    async fn run(&self, what: &What) -> Result<ExitCode, CommandError> {
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
                // Who has the access key may look inside.
                let ingress = ["HTTP_INGRESS", "SHELL_INGRESS"].map(|word| self.connector(word));
                let body = json!({ "imageIdentifier": image, "ingressNetworkConnectors": ingress });
                let made = self.lambda("POST", MICROVMS, &body).await?;
                self.line(&made, &["microvmId", "endpoint"])?;
            }
            What::Shell { id } => return self.session(id, session::shell()).await,
            What::Exec { id, command, tty } => {
                return self.session(id, session::command(command, *tty)).await;
            }
            What::Suspend { ids } => self.each("POST", "/suspend", ids).await?,
            What::Resume { ids } => self.each("POST", "/resume", ids).await?,
            What::Remove { ids } => self.each("DELETE", "", ids).await?,
            What::Build { directory, name, memory_mib } => {
                return self.build(directory, name, *memory_mib).await;
            }
            What::Logs { of, follow } => self.logs(of, *follow).await?,
            What::Usage { of } => self.usage(of).await?,
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn session(&self, id: &str, command: Value) -> Result<ExitCode, CommandError> {
        Ok(session::run(&self.client, id, command).await?.into())
    }

    /// A connector that every account has.
    fn connector(&self, word: &str) -> String {
        let region = self.client.region();
        format!("arn:aws:lambda:{region}:aws:network-connector:aws-network-connector:{word}")
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
