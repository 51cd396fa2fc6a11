use super::*;
use crate::config::report;

fn parse(line: &str) -> Result<Command, Error> {
    super::parse(line.split_whitespace().map(OsString::from))
}

fn run(line: &str) -> Options {
    match parse(line).unwrap() {
        Command::Run(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_options_the_api_listens_at_the_default_path() {
    let options = run("");
    assert_eq!(options.api_socket, Some(DEFAULT_API_SOCKET.into()));
    assert_eq!((options.config_file, &*options.id), (None, DEFAULT_ID));
}

#[test]
fn a_configuration_file_needs_no_api() {
    assert_eq!(run("--config-file vm.json").api_socket, None);
    assert_eq!(run("--config-file vm.json --no-api").api_socket, None);
    assert_eq!(run("--config-file=vm.json --api-sock a").api_socket, Some("a".into()));
}

#[test]
fn a_restore_needs_neither_a_configuration_nor_an_api() {
    let options = run("--restore vm.snap");
    assert_eq!((options.restore, options.api_socket), (Some("vm.snap".into()), None));
    assert_eq!(run("--restore s --config-file c --api-sock a").config_file, Some("c".into()));
    assert!(parse("--restore s --no-api").is_ok());
    assert!(matches!(parse("--restore s --restore t"), Err(Error::Twice { option: "restore" })));
}

#[test]
fn a_machines_memory_is_shared_or_recorded_only_when_it_is_restored() {
    assert_eq!(run("--restore s --pager-sock p").pager_socket, Some("p".into()));
    assert_eq!(run("--restore s --pager-sock p --base b").base, Some("b".into()));
    assert!(matches!(parse("--base b"), Err(Error::NoSnapshot { option: "base" })));
    assert!(run("--restore s --record-working-set").record_working_set);
    let error = parse("--config-file c --pager-sock p").unwrap_err();
    assert!(error.to_string().contains("--pager-sock needs --restore"), "{error}");
    assert!(matches!(parse("--record-working-set"), Err(Error::NoSnapshot { .. })));
    assert!(run("--restore s --load-eagerly").load_eagerly);
    assert!(matches!(parse("--load-eagerly"), Err(Error::NoSnapshot { .. })));
    let pager = |line: &str| match parse(line) {
        Ok(Command::Pager(pager)) => pager,
        other => panic!("{other:?}"),
    };
    let expected = Pager { socket: "p".into(), keep_mib: DEFAULT_KEEP_MIB };
    assert_eq!(pager("pager --socket p"), expected);
    assert_eq!(pager("pager --socket p --keep-mib 0").keep_mib, 0);
    for wrong in ["pager", "pager --socket p --keep-mib all"] {
        assert!(matches!(parse(wrong), Err(Error::Pager)), "{wrong}");
    }
    assert!(matches!(parse("pager --socket p now"), Err(Error::Usage(_))));
}

#[test]
fn a_fork_is_asked_for_listed_and_ended() {
    let asked = |line: &str| match parse(line) {
        Ok(Command::Fork(fork)) => fork,
        other => panic!("{other:?}"),
    };
    let make = Fork { api_socket: "a".into(), task: fork::Task::Make, json: false };
    assert_eq!(asked("fork --api-sock a"), make);
    let list = asked("fork --list --json --api-sock a");
    assert_eq!((list.task, list.json), (fork::Task::List, true));
    assert_eq!(asked("fork --api-sock a --end 3").task, fork::Task::End("3".into()));
    for wrong in ["", "--api-sock a --end 3/4", "--api-sock a --list --end 3", "--api-sock a now"] {
        assert!(matches!(parse(&format!("fork {wrong}")), Err(Error::Fork)), "{wrong}");
    }
    assert_eq!(run("--restore s --host-file h").host_file, Some("h".into()));
    assert!(matches!(parse("--host-file h"), Err(Error::NoSnapshot { option: "host-file" })));
}

#[test]
fn questions_about_snapshots_name_one_or_two() {
    let asked = |line: &str| match parse(line) {
        Ok(Command::Tool(tool)) => tool,
        other => panic!("{other:?}"),
    };
    let tool = asked("snapshot inspect a --json");
    assert_eq!(tool, Tool { task: Task::Inspect("a".into()), json: true });
    assert_eq!(asked("snapshot verify a").task, Task::Verify("a".into()));
    assert_eq!(asked("snapshot diff a b").task, Task::Diff("a".into(), "b".into()));
    assert_eq!(asked("snapshot prune a b").task, Task::Prune(vec!["a".into(), "b".into()]));
    for wrong in
        ["snapshot", "snapshot prune", "snapshot diff a", "snapshot verify a b", "snapshot eat a"]
    {
        assert!(matches!(parse(wrong), Err(Error::Tool)), "{wrong}");
    }
    assert!(parse("--no-api snapshot inspect a").is_err());
}

#[test]
fn every_option_arrives() {
    let options = run("--api-sock a --id vm-1 --log-path l --level wArn \
                       --show-level --show-log-origin --module api");
    assert_eq!(options.id, "vm-1");
    let logger = Logger {
        log_path: Some("l".into()),
        level: Some(LogLevel::Warn),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: Some("api".into()),
    };
    assert_eq!(options.logger, logger);
    assert_eq!(run("--log-level debug").logger.level, Some(LogLevel::Debug));
    assert_eq!(parse("--version").unwrap(), Command::Version);
    assert!(parse("--nothing --help").is_err());
    assert_eq!(parse("-h --nothing").unwrap(), Command::Help);
}

#[test]
fn refusals_name_the_option_and_the_reason() {
    let long = format!("--id {}", "x".repeat(65));
    for (line, texts) in [
        ("--no-api", ["--no-api", "needs --config-file"]),
        ("--no-api --api-sock a --config-file c", ["--no-api", "--api-sock"]),
        ("--no-seccomp", ["--no-seccomp", "no seccomp filters yet"]),
        ("--seccomp-filter f", ["--seccomp-filter", "not supported"]),
        ("--mmds-size-limit 1", ["--mmds-size-limit", "no metadata service"]),
        ("--boot-timer", ["--boot-timer", "not supported"]),
        ("--enable-pci", ["--enable-pci", "virtio-mmio"]),
        ("--start-time-us 1", ["--start-time-us", "jailer"]),
        ("--zebra", ["--zebra", "--help"]),
        ("stray", ["stray", "--help"]),
        ("--config-file", ["--config-file", "missing argument"]),
        ("--level loud", ["loud", "Warning"]),
        ("--id a_b", ["--id \"a_b\"", "letters, digits and dashes"]),
        ("--id=", ["--id", "1 to 64"]),
        (&long, ["--id", "1 to 64"]),
        ("--id a --id b", ["--id", "given twice"]),
        ("--config-file a --config-file b", ["--config-file", "given twice"]),
    ] {
        let text = report(&parse(line).expect_err(line));
        for expected in texts {
            assert!(text.contains(expected), "{line}: {expected:?} is not in {text:?}");
        }
    }
}
