//! The command server: one thread per port, one job at a time on each.

use std::{convert::Infallible, io, sync::Arc, thread};

use host_init::{
    frame::Decoder,
    message::{Message, PORT_COUNT},
};

use crate::{
    attach, boot,
    job::Running,
    port::{Error, Port},
};

/// Serves all ports; returns only if the first of them cannot be served.
pub fn run() -> Result<Infallible, boot::Error> {
    let mut threads = Vec::new();
    for number in 1..=PORT_COUNT {
        let path = format!("/dev/vport0p{number}");
        let port = Port::open(&path)
            .map_err(|source| boot::Error::Step { what: format!("open {path}"), source })?;
        threads.push(thread::spawn(move || serve(&Arc::new(port))));
    }
    println!("host-init: ready");
    for thread in threads {
        let _unless_it_panicked = thread.join();
    }
    let source = io::Error::other("all of them failed");
    Err(boot::Error::Step { what: "serve the command ports".into(), source })
}

fn serve(port: &Arc<Port>) {
    loop {
        let served = port.wait_for_client().and_then(|()| converse(port));
        match served {
            Ok(()) | Err(Error::Left | Error::TooLarge(_)) => {}
            Err(error @ Error::Device(_)) => {
                eprintln!("host-init: {error}");
                return;
            }
        }
    }
}

/// One connection, or several when the clients change faster than the port reports it.
fn converse(port: &Arc<Port>) -> Result<(), Error> {
    let mut decoder = Decoder::default();
    let mut session = 0;
    let mut running: Option<Running> = None;
    loop {
        // Leaving this function drops `running`, and that ends the job.
        for frame in port.receive(&mut decoder)? {
            let of = frame.session;
            let Some(message) = Message::from_frame(frame) else { continue };
            if let Message::Hello(hello) = &message {
                running = None;
                session = of;
                let answer = match attach::attach(hello) {
                    Ok(()) => Message::Ready,
                    Err(error) => Message::Failed(error.to_string()),
                };
                match port.send(session, answer.clone()) {
                    // What a client says may be here before the kernel knows that there is one.
                    Err(Error::Left) => {
                        port.wait_for_client()?;
                        port.send(session, answer)?;
                    }
                    sent => sent?,
                }
            }
            if of != session {
                continue;
            }
            match (message, &running) {
                (Message::Start(job), _) => {
                    drop(running.take());
                    match Running::start(job, Arc::clone(port), session) {
                        Ok(started) => running = Some(started),
                        Err(error) => port.send(session, Message::Failed(error.to_string()))?,
                    }
                }
                (Message::PowerOff, _) => boot::power_off(),
                (message, Some(running)) => running.tell(message),
                (_, None) => {}
            }
        }
    }
}
