//! `rotifer-vmm fork`: asks a running VMM for a fork of its machine, over its API, and says how
//! children of it are started.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use crate::api::http::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::config::report;
use crate::outcome::{FAILURE, WRONG_USAGE};

/// More than any answer has.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What is asked of which VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// Where its API listens.
    pub api_socket: PathBuf,
    /// What is asked.
    pub task: Task,
    /// Whether the VMM's answer is printed as it is.
    pub json: bool,
}

/// What is asked of a VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Make one.
    Make,
    /// Which there are.
    List,
    /// Let go of this one.
    End(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ForkError {
    #[error("{attempt} the VMM at {}", path.display())]
    Socket { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the VMM at {} answers in a way that is not its own", path.display())]
    Answer { path: PathBuf },
    #[error("the VMM refuses: {reason}")]
    Refused { reason: String },
    #[error("write the answer")]
    Output(#[source] io::Error),
}

impl Fork {
    /// Asks, and prints the answer. Returns the exit status.
    pub fn run(&self) -> u8 {
        match self.ask().and_then(|answer| self.print(&answer)) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("rotifer-vmm: {}", report(&error));
                match error {
                    ForkError::Socket { .. } => WRONG_USAGE,
                    _ => FAILURE,
                }
            }
        }
    }

    /// The VMM's answer; null if it has nothing to say.
    fn ask(&self) -> Result<Value, ForkError> {
        let (method, path) = match &self.task {
            Task::Make => ("PUT", "/fork".to_owned()),
            Task::List => ("GET", "/forks".to_owned()),
            Task::End(id) => ("DELETE", format!("/fork/{id}")),
        };
        let failed = |attempt| {
            let path = self.api_socket.clone();
            move |source| ForkError::Socket { attempt, path, source }
        };
        let mut stream = UnixStream::connect(&self.api_socket).map_err(failed("connect to"))?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed("ask"))?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(failed("hear from"))?;
        let parsed = parse(&answer);
        let (status, body) =
            parsed.ok_or_else(|| ForkError::Answer { path: self.api_socket.clone() })?;
        match status {
            200..300 => Ok(body),
            _ => {
                let reason = body["fault_message"].as_str().unwrap_or("without a reason").into();
                Err(ForkError::Refused { reason })
            }
        }
    }

    fn print(&self, answer: &Value) -> Result<(), ForkError> {
        let text = match &self.task {
            _ if self.json => answer.to_string(),
            Task::Make => self.how_to_start(answer),
            Task::List => list(answer),
            Task::End(id) => format!("fork {id} is held no longer"),
        };
        writeln!(io::stdout(), "{text}").map_err(ForkError::Output)
    }

    fn how_to_start(&self, fork: &Value) -> String {
        let text = |key: &str| fork[key].as_str().unwrap_or_default();
        format!(
            "fork {}\n\
             A child, with sockets of its own in CHILD.json (and --pager-sock, to share memory):\n  \
             rotifer-vmm --restore {} --host-file {} --config-file CHILD.json\n\
             Children that run keep what they need. After the last one was started:\n  \
             rotifer-vmm fork --api-sock {} --end {}",
            line(fork),
            text("snapshot_path"),
            text("host_file_path"),
            self.api_socket.display(),
            text("fork_id"),
        )
    }
}

fn list(forks: &Value) -> String {
    let lines: Vec<_> = forks.as_array().into_iter().flatten().map(line).collect();
    if lines.is_empty() { "no fork is held".into() } else { lines.join("\n") }
}

/// What a person wants to know of a fork.
fn line(fork: &Value) -> String {
    let number = |key: &str| fork[key].as_u64().unwrap_or_default();
    format!(
        "{}: {:.1} MiB, taken in {:.1} ms",
        fork["fork_id"].as_str().unwrap_or_default(),
        number("held_bytes") as f64 / f64::from(1 << 20),
        number("pause_us") as f64 / 1e3,
    )
}

/// Status and body of an answer that ends with its connection.
fn parse(answer: &[u8]) -> Option<(u16, Value)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head = answer.get(..HEAD_BYTES_MAX).unwrap_or(answer);
    let httparse::Status::Complete(head_bytes) = response.parse(head).ok()? else { return None };
    let body = &answer[head_bytes..];
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).ok()? };
    Some((response.code?, body))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn asked(task: Task, answer: &'static str) -> (String, Result<Value, ForkError>) {
        let directory = tempfile::tempdir().unwrap();
        let api_socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&api_socket).unwrap();
        let vmm = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let result = Fork { api_socket, task, json: false }.ask();
        (vmm.join().unwrap().lines().next().unwrap().into(), result)
    }

    #[test]
    fn a_vmm_is_asked_over_its_api() {
        let made = "HTTP/1.1 200 OK\r\n\r\n{\"fork_id\":\"7\"}";
        let (line, answer) = asked(Task::Make, made);
        assert_eq!(
            (line.as_str(), &answer.unwrap()["fork_id"]),
            ("PUT /fork HTTP/1.1", &"7".into())
        );
        let (line, answer) = asked(Task::End("7".into()), "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!((line.as_str(), answer.unwrap()), ("DELETE /fork/7 HTTP/1.1", Value::Null));
        let refusal = "HTTP/1.1 400 Bad Request\r\n\r\n{\"fault_message\":\"no\"}";
        let (line, answer) = asked(Task::List, refusal);
        assert_eq!(line, "GET /forks HTTP/1.1");
        assert_eq!(answer.unwrap_err().to_string(), "the VMM refuses: no");
        assert!(matches!(asked(Task::List, "what?").1, Err(ForkError::Answer { .. })));
    }

    #[test]
    fn a_person_is_told_what_to_start() {
        let fork = Fork { api_socket: "a.sock".into(), task: Task::Make, json: false };
        let answer = serde_json::json!({"fork_id": "2", "snapshot_path": "/proc/1/fd/5",
            "host_file_path": "/proc/1/fd/6", "held_bytes": 3 << 19, "pause_us": 2100});
        let text = fork.how_to_start(&answer);
        assert!(text.starts_with("fork 2: 1.5 MiB, taken in 2.1 ms\n"), "{text}");
        assert!(
            text.contains("--restore /proc/1/fd/5 --host-file /proc/1/fd/6 --config"),
            "{text}"
        );
        assert!(text.ends_with("fork --api-sock a.sock --end 2"), "{text}");
        assert_eq!(list(&serde_json::json!([])), "no fork is held");
    }
}
