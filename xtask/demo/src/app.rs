//! The web app in the guest, as its visitors see it.

use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, bail};
use rotifer_agent::client::AgentClient;
use serde_json::Value;

/// Where the app listens inside the guest.
const APP: &str = "127.0.0.1:8080";
/// What gunicorn says once connections are taken.
const LISTENING: &str = "Listening at";

/// Follows the app's log until it says that it listens.
pub fn await_listening(agent: &AgentClient) -> Result<()> {
    let log = agent.logs(0, true).context("cannot read the guest's log")?;
    for line in BufReader::new(log).lines() {
        let line = line.context("the guest's log breaks off")?;
        if line.contains(LISTENING) {
            return Ok(());
        }
    }
    bail!("the guest's log ended before the web app listened");
}

/// One HTTP request to the app, through the agent's tunnel; its JSON.
pub fn get(agent: &AgentClient) -> Result<String> {
    let mut tunnel = agent.tunnel(APP).context("cannot connect to the web app")?;
    let request =
        "GET / HTTP/1.1\r\nHost: app\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    tunnel.write_all(request.as_bytes()).context("cannot ask the web app")?;
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).context("the web app's answer breaks off")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the web app speaks no HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the web app answers {:?}", head.lines().next().unwrap_or_default());
    }
    Ok(body.trim().to_owned())
}

/// Visits the app; the number of the visit.
pub fn visit(agent: &AgentClient) -> Result<u64> {
    let answer = get(agent)?;
    let value: Value = serde_json::from_str(&answer).context("the web app's answer is no JSON")?;
    value["visits"].as_u64().context("the web app does not count")
}
