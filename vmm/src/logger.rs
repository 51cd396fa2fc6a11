//! Our own log: one line an event, to standard error or to a file or FIFO.
//!
//! ```text
//! 2026-11-23T18:30:01.123456Z INFO rotifer_vmm::machine: the guest is shut down
//! time in UTC                 level target: message key=value ...
//! ```
//! The settings are those of Firecracker's `logger`. A line is one `write`, never split, and one
//! that a full FIFO does not take is lost: a slow reader must not stop the machine.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Metadata};

use crate::config::{LogLevel, Logger};

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Error {
    #[error("logger.log_path: cannot open {} for writing", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("logger.log_path: {}: not a file or FIFO; choose another path", path.display())]
    NotAFile { path: PathBuf },
    #[error("the log belongs to another subscriber already")]
    Taken,
}

/// Where lines go and which are written.
struct State {
    /// The least severe level, as a number that grows with detail; 0 is off.
    detail: AtomicUsize,
    settings: RwLock<Settings>,
}

struct Settings {
    /// Standard error when absent.
    file: Option<File>,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

static STATE: OnceLock<&'static State> = OnceLock::new();

/// Applies `settings`; what they leave out stays as it is. The first call starts the log, which
/// writes levels up to Info to standard error unless told otherwise.
pub fn configure(settings: &Logger) -> Result<(), Error> {
    let file = settings.log_path.as_deref().map(open).transpose()?;
    let state = start()?;
    let mut current = state.settings.write().unwrap_or_else(PoisonError::into_inner);
    if file.is_some() {
        current.file = file;
    }
    current.show_level = settings.show_level.unwrap_or(current.show_level);
    current.show_origin = settings.show_log_origin.unwrap_or(current.show_origin);
    if settings.module.is_some() {
        current.module.clone_from(&settings.module);
    }
    drop(current);
    if let Some(level) = settings.level {
        state.detail.store(detail_of(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }
    Ok(())
}

fn start() -> Result<&'static State, Error> {
    if let Some(state) = STATE.get() {
        return Ok(state);
    }
    let state: &'static State = Box::leak(Box::new(State {
        detail: AtomicUsize::new(detail_of(LogLevel::default())),
        settings: RwLock::new(Settings {
            file: None,
            show_level: true,
            show_origin: false,
            module: None,
        }),
    }));
    tracing::subscriber::set_global_default(Log(state)).map_err(|_| Error::Taken)?;
    Ok(STATE.get_or_init(|| state))
}

fn open(path: &Path) -> Result<File, Error> {
    // A FIFO opened for reading too never waits for its reader, nor fails without one.
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| Error::Open { path: path.into(), source })?;
    let kind =
        file.metadata().map_err(|source| Error::Open { path: path.into(), source })?.file_type();
    // A terminal and /dev/null are character devices.
    if kind.is_file() || kind.is_fifo() || kind.is_char_device() {
        Ok(file)
    } else {
        Err(Error::NotAFile { path: path.into() })
    }
}

fn detail_of(level: LogLevel) -> usize {
    match level {
        LogLevel::Off => 0,
        LogLevel::Error => 1,
        LogLevel::Warn => 2,
        LogLevel::Info => 3,
        LogLevel::Debug => 4,
        LogLevel::Trace => 5,
    }
}

/// The other way around, as `tracing` has it.
fn filter_of(detail: usize) -> LevelFilter {
    match detail {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// What `tracing` talks to.
struct Log(&'static State);

impl Subscriber for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Kept until the level changes, so that a line below it costs one comparison.
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= filter_of(self.0.detail.load(Ordering::Relaxed))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter_of(self.0.detail.load(Ordering::Relaxed)))
    }

    fn event(&self, event: &Event<'_>) {
        let settings = self.0.settings.read().unwrap_or_else(PoisonError::into_inner);
        let metadata = event.metadata();
        if !settings.module.as_deref().is_none_or(|module| is_inside(metadata.target(), module)) {
            return;
        }
        let style = line::Style { level: settings.show_level, origin: settings.show_origin };
        let text = line::format(SystemTime::now(), event, style);
        // There is nobody to tell when the log itself cannot be written.
        let _ = match &settings.file {
            Some(file) => (&*file).write(text.as_bytes()),
            None => io::stderr().write(text.as_bytes()),
        };
    }

    // Spans are not used: a line says itself what it is about.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Whether `target` is `module` or inside it. `api` alone means the
/// module of that name in this crate, too.
fn is_inside(target: &str, module: &str) -> bool {
    let own = target.strip_prefix("rotifer_vmm::").unwrap_or(target);
    [target, own].iter().any(|name| {
        name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

#[cfg(test)]
mod tests;
