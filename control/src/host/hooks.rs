//! An app's hooks: requests that tell it what happens to its microVM.

use std::io;
use std::path::Path;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::wire;
use crate::fleet::records::Hooks;

/// Where hooks are when the image does not say.
const DEFAULT_PORT: u16 = 9000;
/// Before the name of each.
const PREFIX: &str = "/aws/lambda-microvms/runtime/v1";
/// How long a hook may take when the image does not say.
const IMAGE_TIMEOUT_SECONDS: u64 = 30;
const RUNTIME_TIMEOUT_SECONDS: u64 = 1;
/// How long to wait before an app is asked again that said "not yet", or that does not listen yet.
const RETRY_PERIOD: Duration = Duration::from_millis(200);

/// The hooks, as the service names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Ready,
    Validate,
    Run,
    Resume,
    Suspend,
    Terminate,
}

impl Name {
    fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Validate => "validate",
            Self::Run => "run",
            Self::Resume => "resume",
            Self::Suspend => "suspend",
            Self::Terminate => "terminate",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Validate => "Validate",
            Self::Run => "Run",
            Self::Resume => "Resume",
            Self::Suspend => "Suspend",
            Self::Terminate => "Terminate",
        }
    }

    fn is_of_images(self) -> bool {
        matches!(self, Self::Ready | Self::Validate)
    }
}

/// A hook that an image has enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    name: Name,
    port: u16,
    timeout: Duration,
}

/// Why an app's answer is none that lets it go on. The texts are the service's, for users.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("{title} hook check failed")]
    Check { title: &'static str },
    #[error(
        "{title} lifecycle hook returned HTTP status {status}. Please check your hook endpoint and application \
         logs for more details."
    )]
    Status { title: &'static str, status: u16 },
    #[error("{title} hook invocation timed out after {}", iso8601(*.after))]
    Slow { title: &'static str, after: Duration },
    #[error("{title} lifecycle hook could not be invoked: {source}")]
    Unreachable { title: &'static str, source: io::Error },
}

impl Hook {
    /// The hook of this name, if the image has it.
    pub fn of(hooks: Option<&Hooks>, name: Name) -> Option<Self> {
        let hooks = hooks?;
        let group = if name.is_of_images() {
            hooks.microvm_image_hooks.as_ref()
        } else {
            hooks.microvm_hooks.as_ref()
        }?;
        group.get(name.word()).filter(|state| *state == "ENABLED")?;
        let default =
            if name.is_of_images() { IMAGE_TIMEOUT_SECONDS } else { RUNTIME_TIMEOUT_SECONDS };
        let seconds = group.get(&format!("{}TimeoutInSeconds", name.word()));
        let seconds = seconds.and_then(Value::as_u64).unwrap_or(default);
        let port = hooks.port.unwrap_or(DEFAULT_PORT);
        Some(Self { name, port, timeout: Duration::from_secs(seconds) })
    }

    /// Asks the app in the guest behind this vsock socket. An image's hooks are asked again until they have
    /// an answer; those of a microVM have one chance.
    pub async fn call(&self, vsock: &Path, body: Option<&Value>) -> Result<(), HookError> {
        let title = self.name.title();
        let asked = async {
            loop {
                let answer = self.ask(vsock, body).await;
                match answer {
                    Ok(StatusCode::OK) => return Ok(()),
                    Ok(StatusCode::SERVICE_UNAVAILABLE) if self.name.is_of_images() => {}
                    // It has not started to listen.
                    Err(_) if self.name.is_of_images() => {}
                    Ok(_) if self.name.is_of_images() => return Err(HookError::Check { title }),
                    Ok(status) => {
                        return Err(HookError::Status { title, status: status.as_u16() });
                    }
                    Err(source) => return Err(HookError::Unreachable { title, source }),
                }
                sleep(RETRY_PERIOD).await;
            }
        };
        let slow = |_| HookError::Slow { title, after: self.timeout };
        timeout(self.timeout, asked).await.map_err(slow)?
    }

    async fn ask(&self, vsock: &Path, body: Option<&Value>) -> io::Result<StatusCode> {
        let stream = wire::connect(vsock, self.port).await?;
        let host = format!("localhost:{}", self.port);
        let path = format!("{PREFIX}/{}", self.name.word());
        Ok(wire::ask(stream, Method::POST, &host, &path, body).await?.0)
    }
}

/// `PT1H`, `PT5M`, `PT1M30S`
fn iso8601(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 3600, 'H'), (seconds / 60 % 60, 'M'), (seconds % 60, 'S')];
    let shown = parts.iter().filter(|(count, _)| *count > 0);
    let text: String = shown.map(|(count, letter)| format!("{count}{letter}")).collect();
    format!("PT{text}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hook_is_there_when_it_is_enabled() {
        let hooks: Hooks = serde_json::from_value(json!({
            "microvmHooks": { "run": "ENABLED", "suspend": "DISABLED" },
            "microvmImageHooks": { "ready": "ENABLED", "readyTimeoutInSeconds": 300 },
        }))
        .unwrap();
        let hook = |name| Hook::of(Some(&hooks), name);
        let seconds = Duration::from_secs;
        let (port, ready) = (DEFAULT_PORT, Name::Ready);
        assert_eq!(hook(ready), Some(Hook { name: ready, port, timeout: seconds(300) }));
        assert_eq!(hook(Name::Run), Some(Hook { name: Name::Run, port, timeout: seconds(1) }));
        for name in [Name::Suspend, Name::Resume, Name::Validate, Name::Terminate] {
            assert_eq!(hook(name), None);
        }
        assert_eq!(Hook::of(None, Name::Run), None);
    }

    #[test]
    fn failures_are_told_in_the_services_words() {
        let slow = HookError::Slow { title: "Ready", after: Duration::from_secs(300) };
        assert_eq!(slow.to_string(), "Ready hook invocation timed out after PT5M");
        let status = HookError::Status { title: "Run", status: 400 };
        assert_eq!(
            status.to_string(),
            "Run lifecycle hook returned HTTP status 400. Please check your hook endpoint and application logs for \
             more details."
        );
        assert_eq!(iso8601(Duration::from_secs(3690)), "PT1H1M30S");
    }
}
