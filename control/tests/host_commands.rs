//! `rotifer doctor`, `base` and `completions`, which need no daemon, as people run them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn rotifer(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rotifer")).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_doctor_names_the_remedy_of_all_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state").display().to_string();
    let config = directory.path().join("settings.json");
    let code = r#"{"code": {"endpoint": "https://s3.example", "credentials-file": "keys.json", "ca": "ca.pem"}}"#;
    let host = format!(
        r#"{{"host": {{"vmm": "vmm", "kernel": "Image", "initramfs": "i", "code-endpoints": {code}}}}}"#
    );
    fs::write(&config, host).unwrap();
    // Everybody may read it.
    fs::write(directory.path().join("keys.json"), "{}").unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(directory.path().join("keys.json"), readable).unwrap();
    let config = config.display().to_string();
    let words = ["doctor", "--state", &state, "--config", &config];
    let output = rotifer(&[&words[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let findings: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is = |check: &str, level: &str, word: &str| {
        findings.iter().any(|finding| {
            finding["check"] == check
                && finding["level"] == level
                && finding["text"].as_str().unwrap().contains(word)
        })
    };
    assert!(is("settings", "error", "host.kernel"), "{findings:#?}");
    assert!(is("settings", "error", "keys.json: others may use it"), "{findings:#?}");
    assert!(is("settings", "error", "ca.pem"), "{findings:#?}");
    assert!(is("builds", "warning", "host.builds"), "{findings:#?}");
    for finding in &findings {
        assert_eq!(finding["level"] == "ok", finding["remedy"].is_null(), "{finding}");
    }
    if std::env::consts::ARCH != "aarch64" {
        assert!(is("architecture", "error", "ARM64"), "{findings:#?}");
    }
    for check in ["kvm", "userfaultfd", "huge pages", "memory", "clock", "networks", "disk"] {
        assert!(findings.iter().any(|finding| finding["check"] == check), "{check}: {findings:#?}");
    }
    let output = text(&rotifer(&words).stdout);
    assert!(output.contains("remedy: ") && output.contains("This host cannot run"), "{output}");
    assert!(!Path::new(&state).exists());
}

#[test]
fn a_daemon_logs_json_if_it_shall() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rotifer"));
    command.args(["serve", "--log-json", "--listen", "127.0.0.1:0", "--state", &state]);
    let mut daemon = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(daemon.stderr.take().unwrap()).read_line(&mut said).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(said["timestamp"].is_string() && said["level"] == "WARN", "{said}");
    assert!(said["fields"]["message"].as_str().unwrap().contains("no host"), "{said}");
}

#[test]
fn base_images_are_taken_in_listed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write(
        "settings.json",
        r#"{"host": {"vmm": "x", "kernel": "x", "initramfs": "x", "builds": "builds.json"}}"#,
    );
    write(
        "builds.json",
        r#"{"vmm": "x", "kernel": "x", "initramfs": "x", "builder_disk": "x", "worker": "x", "store": "store"}"#,
    );
    let config = directory.path().join("settings.json").display().to_string();
    let base = |words: &[&str]| rotifer(&[&["base"], words, &["--config", &config]].concat());
    // Real layouts are taken in by the builder's own tests.
    let none = base(&["add", "mine:1", "/is/not/there"]);
    let error = text(&none.stderr);
    assert!(none.status.code() == Some(1) && error.contains("/is/not/there"), "{error}");
    let (description, listed) =
        (r#"{"name": "mine:1", "config": {}, "layers": []}"#, base(&["list"]));
    assert_eq!((listed.status.code(), text(&listed.stdout).as_str()), (Some(0), ""));
    write("store/bases/x.json", description);
    let listed = text(&base(&["list", "--json"]).stdout);
    let listed: Value = serde_json::from_str(listed.trim()).unwrap();
    assert_eq!((&listed["name"], &listed["layers"]), (&"mine:1".into(), &0.into()));
    let removed = base(&["rm", "other"]);
    let error = text(&removed.stderr);
    assert!(removed.status.code() == Some(1) && error.contains("other:latest"), "{error}");
}

/// Bash itself is asked what it would offer.
#[test]
fn bash_completes_commands_options_and_words() {
    let script = text(&rotifer(&["completions", "bash"]).stdout);
    let offers = |line: &[&str]| {
        let words = line.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={}; _rotifer; echo \"${{COMPREPLY[*]}}\"",
            line.len() - 1
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    assert_eq!(offers(&["rotifer", "re"]), "resume");
    assert_eq!(offers(&["rotifer", "serve", "--li"]), "--listen --listen-anywhere");
    assert_eq!(offers(&["rotifer", "ps", "--c"]), "");
    assert_eq!(offers(&["rotifer", "base", "l"]), "list");
    assert_eq!(
        offers(&["rotifer", "serve", "--config", "/etc/host"]),
        offers(&["rotifer", "build", "/etc/host"])
    );
    assert!(offers(&["rotifer", "serve", "--config", "/etc/pass"]).contains("/etc/passwd"));
}

#[test]
fn every_shell_knows_every_command_that_the_help_has() {
    let help = text(&rotifer(&["--help"]).stdout);
    let commands = help.split("\n\n").nth(2).unwrap();
    let commands: Vec<&str> =
        commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 10 && commands.contains(&"completions"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&rotifer(&["completions", shell]).stdout);
        for command in &commands {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
}
