//! Journeys with the real AWS CLI and boto3, unmodified, against the real daemon.
//!
//! `./x test control` installs the clients and says where they are in `ROTIFER_PYTHON`.

mod daemon;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use daemon::{Daemon, succeed};

/// What people do first: who am I, a bucket, an archive in it, two roles, an image.
#[test]
fn the_guides_commands_work_with_the_aws_cli() {
    let daemon = Daemon::start();
    let aws = |line: &str| succeed(daemon.aws(line));
    assert!(aws("sts get-caller-identity").contains("\"Account\": \"000000000000\""));
    aws("s3 mb s3://code");
    // More than 8 MiB goes up in parts.
    let bytes: Vec<u8> = (0..9_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (archive, back) = (daemon.file("app.zip"), daemon.file("back.zip"));
    fs::write(&archive, &bytes).unwrap();
    aws(&format!("s3 cp {} s3://code/app.zip --only-show-errors", archive.display()));
    assert!(aws("s3 ls s3://code").contains("9000000 app.zip"));
    aws(&format!("s3 cp s3://code/app.zip {} --only-show-errors", back.display()));
    assert!(fs::read(&back).unwrap() == bytes, "what came back is something else");
    let address = aws("s3 presign s3://code/app.zip");
    assert!(address.starts_with("https://127.0.0.1:"), "{address}");
    let trust = r#"{"Version":"2012-10-17","Statement":[]}"#;
    fs::write(daemon.file("trust.json"), trust).unwrap();
    let trust = daemon.file("trust.json").display().to_string();
    aws(&format!("iam create-role --role-name Build --assume-role-policy-document file://{trust}"));
    aws(
        "iam attach-role-policy --role-name Build --policy-arn arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess",
    );
    let arn = aws("iam get-role --role-name Build --query Role.Arn --output text");
    assert_eq!(arn.trim(), "arn:aws:iam::000000000000:role/Build");
    let created = aws(&format!(
        "lambda-microvms create-microvm-image --code-artifact uri=s3://code/app.zip --name mine \
         --base-image-arn arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1 --build-role-arn {}",
        arn.trim()
    ));
    assert!(created.contains("\"state\": \"CREATING\""), "{created}");
    let run = daemon.aws(
        "lambda-microvms run-microvm --image-identifier arn:aws:lambda:us-east-1:000000000000:microvm-image:mine",
    );
    let (status, _, error) = daemon::output(run);
    assert!(
        !status.success() && error.contains("No active version found for MicroVM image"),
        "{error}"
    );
    aws("s3 rm s3://code/app.zip --only-show-errors");
    aws("s3 rb s3://code");
    daemon.stop();
}

/// Every operation's answers and errors, parsed by botocore's own models.
#[test]
fn boto3_understands_every_operation_of_lambda_microvms() {
    let daemon = Daemon::start();
    let shown = succeed(daemon.python("lambda_microvms.py"));
    assert_eq!(shown.matches("ok ").count(), 8, "{shown}");
    daemon.stop();
}

#[test]
fn boto3_understands_s3_iam_and_logs() {
    let daemon = Daemon::start();
    let shown = succeed(daemon.python("others.py"));
    assert_eq!(shown.matches("ok ").count(), 5, "{shown}");
    daemon.stop();
}

/// What was answered is there after `kill -9` in the middle of writes of all kinds, and the rest is there as a
/// whole or not at all.
#[test]
fn a_killed_daemon_loses_nothing_that_it_answered() {
    /// After so many lines the daemon is killed: at other places in the writes each time.
    const KILLED_AFTER: [usize; 8] = [12, 29, 41, 60, 83, 107, 134, 160];
    let mut daemon = Daemon::start();
    for count in KILLED_AFTER {
        let round = count.to_string();
        let mut writes = daemon.python("writes.py");
        writes.args(["write", &round]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut writer = writes.spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut said: Vec<String> = lines.by_ref().take(count).map(Result::unwrap).collect();
        assert_eq!(said.len(), count, "the writer ended early: {said:#?}");
        daemon = daemon.kill_and_start_again();
        // What was answered between the last line and the kill counts too.
        said.extend(lines.map(Result::unwrap));
        writer.wait().unwrap();
        let mut check = daemon.python("writes.py");
        check.args(["check", &round]).arg(daemon.state().join("rotifer.db"));
        let mut checker = check.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        checker.stdin.take().unwrap().write_all(said.join("\n").as_bytes()).unwrap();
        let output = checker.wait_with_output().unwrap();
        assert!(output.status.success(), "something is lost or by halves of {said:#?}");
        // Nothing lies about that no object refers to, and nothing is missing.
        let blobs = fs::read_dir(daemon.state().join("objects")).unwrap().count();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), blobs.to_string());
    }
    daemon.stop();
}

/// Up to the last page of the disk, and then with room again: what is answered holds.
#[test]
fn a_full_disk_is_told_in_each_services_words_and_loses_nothing() {
    let mut daemon = Daemon::start_on_a_disk_of("8m");
    let run = |daemon: &Daemon, words: &[&str]| {
        let mut script = daemon.python("full.py");
        script.arg(daemon.state()).args(words);
        succeed(script)
    };
    run(&daemon, &["sweep"]);
    // It is killed, and starts again, without any room.
    let done = run(&daemon, &["fill"]);
    daemon = daemon.kill_and_start_again();
    let done: Vec<&str> = done.trim().split(' ').skip(1).collect();
    run(&daemon, &[&["check"], &done[..]].concat());
    // One that was stopped with room to spare starts when somebody else has taken it, and gives back what it has.
    daemon = daemon.stop_and_start_again(|_| ());
    daemon = daemon.stop_and_start_again(|daemon| drop(run(daemon, &["refill"])));
    run(&daemon, &["check-again"]);
    daemon.stop();
}

/// Two daemons do not share a directory, and the second says so.
#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let daemon = Daemon::start();
    let (status, _, error) = daemon::output(Daemon::command(&daemon.state()));
    assert!(!status.success() && error.contains("another daemon serves"), "{error}");
    daemon.stop();
}
