//! `rotifer build`: from a directory to an image, with all of the service's own steps in between.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use super::logs::{Tail, is_missing};
use super::{CommandError, Commands, FOLLOW_PAUSE, IMAGES, printable, say};
use crate::client::{ClientError, Content};
use crate::s3::KEY_ENCODED;

/// Where archives go.
const BUCKET: &str = "rotifer-builds";
/// The role that builds are said to act in. Nobody is refused anything because of it.
const ROLE: &str = "rotifer-builds";
/// What is read of a file at once.
const READ_BYTES: usize = 256 << 10;
/// The exit status of what Ctrl-C has ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// A build that goes on.
struct Going<'a> {
    name: &'a str,
    arn: String,
    version: String,
}

impl Commands {
    pub(super) async fn build(
        &self,
        directory: &Path,
        name: &str,
        memory_mib: Option<u64>,
    ) -> Result<ExitCode, CommandError> {
        let uri = self.upload(directory, name).await?;
        let going = self.begin_build(name, &uri, memory_mib).await?;
        tokio::select! {
            built = self.follow_build(&going) => built.map(|()| ExitCode::SUCCESS),
            _ = tokio::signal::ctrl_c() => {
                let Going { name, version, .. } = going;
                eprintln!("rotifer: the build of {name} {version} goes on; `rotifer logs -f {name}` follows it");
                Ok(INTERRUPTED.into())
            }
        }
    }

    /// Packs a directory and puts it where builds find it. What is there already is not sent again.
    async fn upload(&self, directory: &Path, name: &str) -> Result<String, CommandError> {
        if !directory.join("Dockerfile").is_file() {
            return Err(CommandError::NoDockerfile { directory: directory.into() });
        }
        let archive = rotifer_build::directory::pack(directory)?;
        let file = archive.reopen().map_err(CommandError::Archive)?;
        // It has no name from here on, so that nothing of it is left however this ends.
        drop(archive);
        let content = content(file).map_err(CommandError::Archive)?;
        let key = utf8_percent_encode(name, &KEY_ENCODED);
        let path = format!("/{BUCKET}/{key}/{}.zip", content.sha256);
        let uri = format!("s3://{BUCKET}/{name}/{}.zip", content.sha256);
        if !self.client.has_object(&path).await? {
            self.note(&format!("Uploading {} KiB.", content.length.div_ceil(1024)));
            match self.client.put(&format!("/{BUCKET}"), None).await {
                Err(ClientError::Refused { code, .. }) if code == "BucketAlreadyOwnedByYou" => {}
                made => made?,
            }
            self.client.put(&path, Some(content)).await?;
        }
        Ok(uri)
    }

    async fn begin_build<'a>(
        &self,
        name: &'a str,
        uri: &str,
        memory_mib: Option<u64>,
    ) -> Result<Going<'a>, CommandError> {
        let (region, account) = (self.client.region(), self.client.account());
        let mut image = json!({
            "codeArtifact": { "uri": uri },
            "baseImageArn": format!("arn:aws:lambda:{region}:aws:microvm-image:al2023-1"),
            "buildRoleArn": format!("arn:aws:iam::{account}:role/{ROLE}"),
        });
        if let Some(memory_mib) = memory_mib {
            image["resources"] = json!([{ "minimumMemoryInMiB": memory_mib }]);
        }
        let made = match self.image(name).await {
            Ok(arn) => self.lambda("PUT", &image_path(&arn), &image).await?,
            Err(CommandError::NoImage { .. }) => {
                image["name"] = json!(name);
                self.lambda("POST", IMAGES, &image).await?
            }
            Err(error) => return Err(error),
        };
        let text = |member: &str| {
            let text = made[member].as_str().map(str::to_owned);
            text.ok_or_else(|| ClientError::Answer { reason: format!("it has no {member}") })
        };
        let (arn, version) = (text("imageArn")?, text("imageVersion")?);
        self.note(&format!("Building {name} {version}."));
        Ok(Going { name, arn, version })
    }

    /// Shows what a build says until it has ended.
    async fn follow_build(&self, going: &Going<'_>) -> Result<(), CommandError> {
        let Going { name, arn, version } = going;
        let path = format!("{}/versions/{version}/builds", image_path(arn));
        let mut tail = None;
        loop {
            let builds = self.lambda("GET", &path, &Value::Null).await?;
            let build = &builds["items"][0];
            let id = build["buildId"].as_str().unwrap_or_default();
            let tail =
                tail.get_or_insert_with(|| Tail::of(name, Some(&format!("build/{version}/{id}"))));
            match self.show_more(tail).await {
                Err(error) if is_missing(&error) => {}
                shown => shown?,
            }
            // All that it had said was there when it had ended.
            match build["buildState"].as_str() {
                Some("SUCCESSFUL") => {
                    return if self.json {
                        say(&build.to_string())
                    } else {
                        say(&format!("{name} {version}"))
                    };
                }
                Some("FAILED") => {
                    let reason =
                        printable(build["stateReason"].as_str().unwrap_or("no reason is known"));
                    let (name, version) = ((*name).to_owned(), version.clone());
                    return Err(CommandError::Build { name, version, reason });
                }
                _ => tokio::time::sleep(FOLLOW_PAUSE).await,
            }
        }
    }

    /// For who watches; not among what programs read.
    fn note(&self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }
}

fn image_path(arn: &str) -> String {
    let arn = utf8_percent_encode(arn, NON_ALPHANUMERIC);
    format!("{IMAGES}/{arn}")
}

/// A file to send, from its beginning.
fn content(mut file: File) -> io::Result<Content> {
    let (mut hasher, mut length) = (Context::new(&SHA256), 0);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        length += count as u64;
    }
    io::Seek::rewind(&mut file)?;
    let digest = hasher.finish();
    let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Content { file, length, sha256 })
}
