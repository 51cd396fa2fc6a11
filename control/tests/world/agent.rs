//! The real agent, on a Unix socket, in a thread of its own.

use std::path::PathBuf;
use std::rc::Rc;

use rotifer_agent::agent::Agent;
use rotifer_agent::server::{Listener, serve};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{DEADLINE, World};

impl World {
    /// From now on microVMs have an agent: what it runs are processes of this host.
    pub fn start_agent(&self) {
        let socket: PathBuf = self.file("agent.sock");
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            tokio::task::LocalSet::new().block_on(&runtime.unwrap(), async {
                let listener = tokio::net::UnixListener::bind(socket).unwrap();
                let agent = Rc::new(Agent::guest_of_a_process().unwrap());
                let reaper = Rc::clone(&agent);
                tokio::task::spawn_local(async move { reaper.reaper.run().await });
                ready.send(()).unwrap();
                serve(Listener::Unix(listener), agent).await;
            });
        });
        is_ready.recv_timeout(DEADLINE).unwrap();
    }

    /// Has the agent start an app, whose environment its commands have from then on.
    pub async fn start_app(&self, description: &Value) {
        let mut stream = UnixStream::connect(self.file("agent.sock")).await.unwrap();
        let (body, mut answer) = (description.to_string(), [0; 12]);
        let head = format!(
            "POST /v1/app HTTP/1.1\r\nhost: agent\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 201");
    }
}
