//! Calls an agent through the vsock socket of its VMM, and shows how the client is used.
//!
//! ```text
//! call SOCKET health | app | logs | exec WORD... | terminal WORD... | put FILE PATH | get PATH FILE
//!             | tunnel HOST:PORT REQUEST | poweroff | reboot
//! ```

use rotifer_agent::agent::ShutdownMode;
use rotifer_agent::client::{AgentClient, ExecEvent};
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::limits::AGENT_PORT;
use rotifer_agent::process::Exit;
use rotifer_agent::process::spawn::WindowSize;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match call(&words) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("call: {text}");
            ExitCode::FAILURE
        }
    }
}

fn call(words: &[&str]) -> Result<u8, Box<dyn Error>> {
    let Some((socket, words)) = words.split_first() else {
        return Err("which socket?".into());
    };
    let agent = AgentClient::over_vsock(*socket, AGENT_PORT);
    match words {
        ["health"] => println!("{}", agent.health()?),
        ["app"] => println!("{}", agent.app()?),
        ["logs"] => print!("{}", agent.logs(0, false)?.text()?),
        ["exec", command @ ..] => return exec(&agent, command, None),
        ["terminal", command @ ..] => {
            return exec(&agent, command, Some(WindowSize { rows: 24, columns: 80 }));
        }
        ["put", file, path] => {
            let file = File::open(file)?;
            let length_bytes = file.metadata()?.len();
            agent.put_file(Path::new(path), "mkdir=true", file, length_bytes)?;
        }
        ["get", path, file] => {
            let length_bytes = agent.get_file(Path::new(path), File::create(file)?)?;
            println!("{length_bytes} bytes");
        }
        ["tunnel", target, request] => {
            let mut tunnel = agent.tunnel(target)?;
            tunnel.write_all(request.as_bytes())?;
            tunnel.finish_writing()?;
            let mut answer = Vec::new();
            tunnel.read_to_end(&mut answer)?;
            stdout().write_all(&answer)?;
        }
        ["poweroff"] => agent.shutdown(ShutdownMode::Poweroff)?,
        ["reboot"] => agent.shutdown(ShutdownMode::Reboot)?,
        _ => return Err("there is no such call; see the head of examples/call.rs".into()),
    }
    Ok(0)
}

fn exec(
    agent: &AgentClient,
    command: &[&str],
    tty: Option<WindowSize>,
) -> Result<u8, Box<dyn Error>> {
    let command = command.iter().map(ToString::to_string).collect();
    let mut stream = agent.exec_stream(&ExecRequest { command, tty, ..Default::default() })?;
    stream.close_stdin()?;
    loop {
        match stream.next_event()? {
            ExecEvent::Stdout(bytes) => stdout().write_all(&bytes)?,
            ExecEvent::Stderr(bytes) => stderr().write_all(&bytes)?,
            ExecEvent::Exit(report) => {
                return Ok(match report.exit {
                    Exit::Code(code) => u8::try_from(code).unwrap_or(1),
                    Exit::Signal(signal) => 128 + u8::try_from(signal).unwrap_or(0),
                });
            }
        }
    }
}
