use super::*;

/// Tests run in threads of one process and `tracing` has one global log, so a test's own log is
/// the default of its thread.
fn logged(settings: Settings, level: LogLevel, events: impl FnOnce()) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let file = Some(open(&path).unwrap());
    let state: &'static State = Box::leak(Box::new(State {
        detail: AtomicUsize::new(detail_of(level)),
        settings: RwLock::new(Settings { file, ..settings }),
    }));
    tracing::subscriber::with_default(Log(state), events);
    std::fs::read_to_string(path).unwrap()
}

fn settings() -> Settings {
    Settings { file: None, show_level: true, show_origin: false, module: None }
}

#[test]
fn a_line_has_time_level_target_message_and_fields() {
    let text = logged(settings(), LogLevel::Info, || {
        tracing::warn!(target: "rotifer_vmm::machine", vcpu = 3, "the host is odd");
    });
    let (time, rest) = text.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 27, "{time}");
    assert_eq!(rest, "WARN rotifer_vmm::machine: the host is odd vcpu=3\n");
}

#[test]
fn lines_below_the_level_are_not_written() {
    let text = logged(settings(), LogLevel::Warn, || {
        tracing::info!("not this");
        tracing::error!("but this");
    });
    assert!(text.contains("but this") && !text.contains("not this"), "{text}");
    let text = logged(settings(), LogLevel::Off, || tracing::error!("not even this"));
    assert_eq!(text, "");
}

#[test]
fn the_level_can_be_left_out_and_the_origin_added() {
    let style = Settings { show_level: false, show_origin: true, ..settings() };
    let text = logged(style, LogLevel::Info, || tracing::info!(target: "t", "m"));
    assert!(text.contains("src/logger/tests.rs:"), "{text}");
    assert!(text.ends_with(": m\n"), "{text}");
}

#[test]
fn a_module_filter_keeps_that_module_and_what_is_inside() {
    let filter = Settings { module: Some("api".into()), ..settings() };
    let inside = || {
        tracing::info!(target: "rotifer_vmm::api::server", "yes");
        tracing::info!(target: "rotifer_vmm::api", "yes");
    };
    let outside = || {
        tracing::info!(target: "rotifer_vmm::apiary", "no");
        tracing::info!(target: "rotifer_vmm::machine", "no");
    };
    let text = logged(filter, LogLevel::Info, || {
        inside();
        outside();
    });
    assert_eq!((text.matches(": yes").count(), text.matches(": no").count()), (2, 0));
}

#[test]
fn a_message_cannot_forge_a_line_nor_be_endless() {
    let text = logged(settings(), LogLevel::Info, || {
        tracing::info!("a\n2026 ERROR forged\x1b[31m");
        tracing::info!("{}", "\u{e4}".repeat(10_000));
    });
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains("a\\n2026 ERROR forged\\u{1b}[31m"), "{text}");
    assert!(text.lines().all(|line| line.len() < line::LINE_BYTES_MAX));
}

#[test]
fn a_fifo_without_a_reader_or_full_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let file = Some(open(&path).unwrap());
    let state: &'static State = Box::leak(Box::new(State {
        detail: AtomicUsize::new(detail_of(LogLevel::Info)),
        settings: RwLock::new(Settings { file, ..settings() }),
    }));
    tracing::subscriber::with_default(Log(state), || {
        for _ in 0..100 {
            tracing::info!("{}", "x".repeat(4000));
        }
    });
}

#[test]
fn a_log_path_that_cannot_be_written_is_named() {
    let text = crate::config::report(&open(Path::new("/nowhere/log")).unwrap_err());
    assert!(text.contains("logger.log_path") && text.contains("/nowhere/log"), "{text}");
    assert!(matches!(open(Path::new("/")), Err(Error::Open { .. })));
}
