//! Benchmark: what a client of the control plane waits for, from a zip with a Dockerfile to warm requests.
//!
//! The client is here, beside the daemon, and does as the AWS CLI does: signed requests over TLS, a connection for
//! each. The endpoint holds a request until its microVM runs, so nobody asks whether it does.

mod client;
mod daemon;

use std::io::{Cursor, Write};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use self::client::{App, Client};
use self::daemon::Daemon;
use crate::bench::{Rounds, Setup};
use crate::record::{Metric, Recorder, Side};
use crate::vm::DEADLINE;

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 20, counted: 3, quick: 2 };
const AT_ONCE: usize = 50;
const AT_ONCE_QUICK: usize = 5;
const WARM_COUNT: usize = 20;
/// Between two questions for a state: the API tells of no event.
const PAUSE: Duration = Duration::from_millis(2);

const DOCKERFILE: &str = "FROM python:3.11
WORKDIR /app
COPY app.py .
RUN python3 -m compileall -q /app
CMD [\"python3\", \"app.py\"]
";
const APP: &str = "
import http.server

class App(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    # Head and body go together: apart, the body waits 40 ms for TCP's delayed acknowledgement.
    wbufsize = -1

    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '5')
        self.end_headers()
        self.wfile.write(b'hello')

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(('0.0.0.0', 8080), App).serve_forever()
";

const MICROVMS: &str = "/2025-09-09/microvms";
const IMAGES: &str = "/2025-09-09/microvm-images";

/// Runs it.
///
/// # Errors
/// There is a peer, the daemon fails, or a microVM does.
pub fn run(setup: &Setup) -> Result<Recorder> {
    if setup.subjects().len() > 1 {
        bail!("a VMM is no peer of a control plane");
    }
    let daemon = Daemon::start(setup)?;
    measure(setup, &daemon).map_err(|error| daemon.explain(&error))
}

fn measure(setup: &Setup, daemon: &Daemon) -> Result<Recorder> {
    let mut recorder = Recorder::default();
    let image = builds(daemon.client(), &mut recorder)?;
    let first = launch(daemon.client(), &image)?;
    add(&mut recorder, "first launch of an image: first byte".into(), first.answered);
    terminate(daemon.client(), &first.id, &mut Recorder::default())?;
    let rounds = setup.rounds(ROUNDS, |_, recorder| round(daemon.client(), &image, recorder))?;
    let count = if setup.quick { AT_ONCE_QUICK } else { AT_ONCE };
    let mut last = Recorder::default();
    at_once(daemon.client(), &image, count, &mut last)?;
    for part in [rounds, last] {
        recorder.extend(part);
    }
    Ok(recorder)
}

/// An image of a new app, the same again, and with another app.
fn builds(client: &Client, recorder: &mut Recorder) -> Result<String> {
    client.put("/code", &[])?;
    let changed = APP.replace("hello", "howdy");
    let kinds = [
        ("nothing", "nothing is cached", APP),
        ("all", "all is cached", APP),
        ("app", "another app.py", &changed),
    ];
    for (name, what, app) in kinds {
        eprintln!("image build, {what}");
        client.put("/code/app.zip", &archive(app)?)?;
        let begin = Instant::now();
        let made = client.ask(
            "POST",
            IMAGES,
            &json!({
                "name": name,
                "codeArtifact": { "uri": "s3://code/app.zip" },
                "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
                "buildRoleArn": "arn:aws:iam::000000000000:role/Build",
                "resources": [{ "minimumMemoryInMiB": 256 }],
            }),
        )?;
        let image = text(&made, "imageArn")?;
        until(client, &format!("{IMAGES}/{}", encoded(&image)), "CREATED", &["CREATING"])?;
        add(recorder, format!("image build, {what}"), begin.elapsed());
    }
    Ok("arn:aws:lambda:us-east-1:000000000000:microvm-image:all".into())
}

fn archive(app: &str) -> Result<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in [("Dockerfile", DOCKERFILE), ("app.py", app)] {
        writer.start_file(name, SimpleFileOptions::default()).context("cannot make a zip")?;
        writer.write_all(content.as_bytes()).context("cannot make a zip")?;
    }
    Ok(writer.finish().context("cannot make a zip")?.into_inner())
}

/// A microVM's life.
fn round(client: &Client, image: &str, recorder: &mut Recorder) -> Result<()> {
    let launched = launch(client, image)?;
    let Launched { id, endpoint, token, .. } = &launched;
    add(recorder, "launch: RunMicrovm is answered".into(), launched.run);
    add(recorder, "launch: there is a token".into(), launched.token_made);
    add(recorder, "launch: TLS with the endpoint".into(), launched.connected);
    add(recorder, "launch: first byte, with token (AWS: 3540)".into(), launched.answered);
    add_steps(client, id, "launch", recorder)?;

    let mut app = client.connect(endpoint)?;
    for _ in 0..WARM_COUNT {
        let begin = Instant::now();
        app.get(token)?;
        add(recorder, "warm request, connection kept".into(), begin.elapsed());
    }
    for _ in 0..WARM_COUNT {
        let begin = Instant::now();
        client.connect(endpoint)?.get(token)?;
        add(recorder, "warm request, new connection (AWS: 111)".into(), begin.elapsed());
    }

    let path = format!("{MICROVMS}/{id}");
    let begin = Instant::now();
    client.ask("POST", &format!("{path}/suspend"), &Value::Null)?;
    add(recorder, "suspend: answered".into(), begin.elapsed());
    until(client, &path, "SUSPENDED", &["RUNNING", "SUSPENDING"])?;
    add(recorder, "suspend: SUSPENDED".into(), begin.elapsed());

    let begin = Instant::now();
    let mut app = client.connect(endpoint)?;
    app.get(token)?;
    add(recorder, "auto-resume: first byte (AWS: 700)".into(), begin.elapsed());
    add_steps(client, id, "auto-resume", recorder)?;

    terminate(client, id, recorder)
}

fn terminate(client: &Client, id: &str, recorder: &mut Recorder) -> Result<()> {
    let path = format!("{MICROVMS}/{id}");
    let begin = Instant::now();
    client.ask("DELETE", &path, &Value::Null)?;
    until(client, &path, "TERMINATED", &["RUNNING", "TERMINATING"])?;
    add(recorder, "terminate: TERMINATED".into(), begin.elapsed());
    Ok(())
}

/// Many launches side by side.
fn at_once(client: &Client, image: &str, count: usize, recorder: &mut Recorder) -> Result<()> {
    eprintln!("{count} at once");
    let barrier = Barrier::new(count);
    let begin = Instant::now();
    let launched = thread::scope(|scope| {
        let one = || {
            barrier.wait();
            launch(client, image)
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(launched) => launched,
            Err(_) => bail!("a thread panicked"),
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    let all = begin.elapsed();
    for one in &launched {
        add(recorder, format!("{count} launches at once: first byte of each"), one.answered);
    }
    add(recorder, format!("{count} launches at once: first byte of the last"), all);
    launched.iter().try_for_each(|one| terminate(client, &one.id, &mut Recorder::default()))
}

/// A microVM that has answered, and how long after the beginning each step was done.
struct Launched {
    id: String,
    endpoint: String,
    token: String,
    run: Duration,
    token_made: Duration,
    connected: Duration,
    answered: Duration,
}

fn launch(client: &Client, image: &str) -> Result<Launched> {
    let begin = Instant::now();
    let idle = json!({
        "maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": true,
    });
    let asked = json!({ "imageIdentifier": image, "idlePolicy": idle });
    let made = client.ask("POST", MICROVMS, &asked)?;
    let run = begin.elapsed();
    let (id, endpoint) = (text(&made, "microvmId")?, text(&made, "endpoint")?);
    let asked = json!({ "expirationInMinutes": 60, "allowedPorts": [{ "port": 8080 }] });
    let made = client.ask("POST", &format!("{MICROVMS}/{id}/auth-token"), &asked)?;
    let token = text(&made["authToken"], "X-aws-proxy-auth")?;
    let token_made = begin.elapsed();
    let mut app: App = client.connect(&endpoint)?;
    let connected = begin.elapsed();
    app.get(&token)?;
    let answered = begin.elapsed();
    Ok(Launched { id, endpoint, token, run, token_made, connected, answered })
}

/// What the daemon says that each step of the last launch or resume took.
fn add_steps(client: &Client, id: &str, what: &str, recorder: &mut Recorder) -> Result<()> {
    let timeline = client.ask("GET", &format!("/rotifer/usage?microvm={id}"), &Value::Null)?;
    let phases = timeline["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let steps = phases.iter().rev().find_map(|phase| phase["steps"].as_array());
    let steps = steps.with_context(|| format!("no steps are told: {timeline}"))?;
    for step in steps {
        let (name, ms) = (text(step, "name")?, step["ms"].as_f64());
        let ms = ms.with_context(|| format!("a step without a time: {step}"))?;
        recorder.add(Side::Own, Metric::lower_of(format!("{what}, step: {name}"), "ms"), ms);
    }
    Ok(())
}

/// Asks until something is in the state that is awaited.
fn until(client: &Client, path: &str, wanted: &str, passing: &[&str]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let answer = client.ask("GET", path, &Value::Null)?;
        let state = text(&answer, "state")?;
        if state == wanted {
            return Ok(());
        }
        if !passing.contains(&state.as_str()) || begin.elapsed() > DEADLINE {
            bail!("it does not become {wanted}: {answer}");
        }
        thread::sleep(PAUSE);
    }
}

fn text(answer: &Value, member: &str) -> Result<String> {
    let found = answer[member].as_str().map(str::to_owned);
    found.with_context(|| format!("the answer has no {member}: {answer}"))
}

/// An ARN in a path.
fn encoded(arn: &str) -> String {
    arn.replace(':', "%3A")
}

fn add(recorder: &mut Recorder, name: String, duration: Duration) {
    recorder.add(Side::Own, Metric::lower_of(name, "ms"), duration.as_secs_f64() * 1e3);
}
