//! What builds and apps say, line by line, on its way into the log store.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::files::blocking;
use crate::clock::Timestamp;
use crate::fleet::records::{Microvm, Version};
use crate::logs::Logs;

/// Lines that wait; who says more waits for the store.
const WAITING_MAX: usize = 1024;
/// Lines that are stored at once.
const BATCH_MAX: usize = 256;
/// A longer line is cut: an event of the service is not longer.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Before an image's name, where its logging does not name a group.
const GROUP_PREFIX: &str = "/aws/lambda-microvms/";

/// The log store, for those who write.
#[derive(Clone)]
pub struct LogBook(Arc<Logs>);

/// A place that lines go to. Clones go to the same.
#[derive(Clone)]
pub struct Lines(Option<mpsc::Sender<Note>>);

enum Note {
    Line(Timestamp, String),
    /// Everything before it is stored.
    Flush(oneshot::Sender<()>),
}

impl LogBook {
    /// On this store.
    pub fn new(logs: Arc<Logs>) -> Self {
        Self(logs)
    }

    /// Where a version's build goes. Has to be called on a runtime.
    pub fn of_build(&self, version: &Version) -> Lines {
        let stream = format!("build/{}/{}", version.text(), build_id(version));
        self.open(version.spec.logging.as_ref(), &version.id.image, stream)
    }

    /// Where a microVM's app goes. Has to be called on a runtime.
    pub fn of_microvm(&self, microvm: &Microvm, version: &Version) -> Lines {
        let logging = microvm.logging.as_ref().or(version.spec.logging.as_ref());
        self.open(logging, &version.id.image, microvm.id.clone())
    }

    fn open(&self, logging: Option<&Value>, image: &str, stream: String) -> Lines {
        let Some((group, stream)) = place(logging, image, stream) else { return Lines(None) };
        let (sender, notes) = mpsc::channel(WAITING_MAX);
        tokio::spawn(store(Arc::clone(&self.0), group, stream, notes));
        Lines(Some(sender))
    }
}

fn build_id(version: &Version) -> &str {
    version.builds.first().map_or("", |build| build.id.as_str())
}

/// Group and stream; none if logging is disabled.
fn place(logging: Option<&Value>, image: &str, stream: String) -> Option<(String, String)> {
    let logging = logging.unwrap_or(&Value::Null);
    if logging.get("disabled").is_some_and(Value::is_object) {
        return None;
    }
    let wanted = |name: &str| logging["cloudWatch"][name].as_str().map(str::to_owned);
    let group = wanted("logGroup").unwrap_or_else(|| format!("{GROUP_PREFIX}{image}"));
    Some((group, wanted("logStream").unwrap_or(stream)))
}

impl Lines {
    /// One more line; it is lost if a thousand others wait.
    pub fn say(&self, line: &str) {
        if let Some(sender) = &self.0 {
            let _nobody_stores = sender.try_send(note(line));
        }
    }

    /// One more line, from a thread that may wait for room.
    pub fn say_waiting(&self, line: &str) {
        if let Some(sender) = &self.0 {
            let _nobody_stores = sender.blocking_send(note(line));
        }
    }

    /// One more line, once there is room for it.
    pub async fn say_in_turn(&self, line: &str) {
        if let Some(sender) = &self.0 {
            let _nobody_stores = sender.send(note(line)).await;
        }
    }

    /// Waits until everything that was said is stored, or could not be.
    pub async fn flushed(&self) {
        let Some(sender) = &self.0 else { return };
        let (done, is_done) = oneshot::channel();
        if sender.send(Note::Flush(done)).await.is_ok() {
            let _nobody_stores = is_done.await;
        }
    }
}

fn note(line: &str) -> Note {
    let mut end = line.len().min(LINE_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let line = line[..end].trim_end();
    // The service has no empty events.
    let line = if line.is_empty() { " " } else { line };
    Note::Line(Timestamp::now(), line.to_owned())
}

/// Stores what comes until nobody speaks any more.
async fn store(logs: Arc<Logs>, group: String, stream: String, mut notes: mpsc::Receiver<Note>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while notes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (mut lines, mut flushes) = (Vec::new(), Vec::new());
        for note in batch.drain(..) {
            match note {
                Note::Line(time, line) => lines.push((time, line)),
                Note::Flush(done) => flushes.push(done),
            }
        }
        if !lines.is_empty() {
            let (logs, group, stream) = (Arc::clone(&logs), group.clone(), stream.clone());
            let stored = blocking(move || logs.add_lines(&group, &stream, lines)).await;
            if let Err(error) = stored {
                tracing::warn!("lines of a log are lost: {error}");
            }
        }
        for done in flushes {
            let _nobody_waits = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_go_where_the_logging_says() {
        let place = |logging: Value| place(Some(&logging), "mine", "own".into());
        let pair = |group: &str, stream: &str| Some((group.to_owned(), stream.to_owned()));
        assert_eq!(place(Value::Null), pair("/aws/lambda-microvms/mine", "own"));
        assert_eq!(place(json!({ "disabled": {} })), None);
        let named = json!({ "cloudWatch": { "logGroup": "g", "logStream": "s" } });
        assert_eq!(place(named), pair("g", "s"));
    }

    #[test]
    fn a_line_is_cut_between_characters() {
        let Note::Line(_, line) = note(&"\u{e4}".repeat(LINE_BYTES_MAX)) else { panic!() };
        assert_eq!(line.len(), LINE_BYTES_MAX);
        let Note::Line(_, line) = note("\n") else { panic!() };
        assert_eq!(line, " ");
    }
}
