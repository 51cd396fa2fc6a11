//! The vCPU threads: each runs the vCPU it is given and hands it back when it stops.
//!
//! ```text
//!   main ── start: Vcpu ──▶ vcpu-N: Vcpu::run ... ── report: Vcpu and why it stopped ──▶ main
//! ```
//! A vCPU is owned by its thread while it runs and by the main thread otherwise, so nothing of it
//! needs a lock, and a machine whose vCPUs the main thread holds *is* paused.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::kick::{self, Kick};
use super::vcpu::{Exit, Vcpu, VcpuError};
use crate::bus::Bus;

/// Stack of a vCPU thread, in bytes. A device access is a few calls deep.
const STACK_BYTES: usize = 128 << 10;

/// Why vCPU threads cannot be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The host refuses a thread, descriptor or signal handler.
    #[error("start the thread of vCPU {index}")]
    Start {
        /// Which vCPU.
        index: u8,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// KVM refuses.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The thread cannot be signalled.
    #[error("interrupt vCPU {index}")]
    Kick {
        /// Which vCPU.
        index: u8,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ended, which only a panic in it can cause.
    #[error("the thread of vCPU {index} has ended")]
    Ended {
        /// Which vCPU.
        index: u8,
    },
}

/// A vCPU that stopped, and why.
struct Report {
    vcpu: Vcpu,
    exit: Result<Exit, VcpuError>,
}

/// All vCPU threads of a machine. Dropping it ends them.
pub struct Threads {
    threads: Vec<Thread>,
    reports: Receiver<Report>,
    /// Of the threads that are not running one, by index.
    stopped: Vec<Option<Vcpu>>,
    /// Reports that wait to be looked at by [`Self::take_exit`].
    exits: Vec<Result<Exit, VcpuError>>,
}

struct Thread {
    start: Sender<Vcpu>,
    kick: Kick,
    handle: JoinHandle<()>,
}

impl Threads {
    /// Starts a thread for each of `vcpus`, none of which runs yet. `wake` is written when a vCPU
    /// has stopped.
    ///
    /// # Errors
    /// [`ThreadError::Start`] and [`ThreadError::Vcpu`].
    pub fn start(vcpus: Vec<Vcpu>, bus: &Arc<Bus>, wake: &EventFd) -> Result<Self, ThreadError> {
        kick::prepare().map_err(|source| ThreadError::Start { index: 0, source })?;
        let (sender, reports) = channel();
        let threads = vcpus
            .iter()
            .map(|vcpu| thread(vcpu, bus.clone(), wake, sender.clone()))
            .collect::<Result<_, _>>()?;
        let stopped = vcpus.into_iter().map(Some).collect();
        Ok(Self { threads, reports, stopped, exits: Vec::new() })
    }

    /// Lets every stopped vCPU run.
    ///
    /// # Errors
    /// [`ThreadError::Ended`].
    pub fn run(&mut self) -> Result<(), ThreadError> {
        for (slot, thread) in self.stopped.iter_mut().zip(&self.threads) {
            if let Some(mut vcpu) = slot.take() {
                let index = vcpu.index();
                vcpu.forget_kick();
                thread.start.send(vcpu).map_err(|_| ThreadError::Ended { index })?;
            }
        }
        Ok(())
    }

    /// Returns when no vCPU runs any more.
    ///
    /// # Errors
    /// [`ThreadError::Kick`] and [`ThreadError::Ended`].
    pub fn stop(&mut self) -> Result<(), ThreadError> {
        self.collect();
        for (index, thread) in (0..).zip(&self.threads) {
            if self.stopped[usize::from(index)].is_none() {
                let kicked = thread.kick.kick(&thread.handle);
                kicked.map_err(|source| ThreadError::Kick { index, source })?;
            }
        }
        while let Some(running) = self.stopped.iter().position(Option::is_none) {
            let index = u8::try_from(running).unwrap_or(u8::MAX);
            let report = self.reports.recv().map_err(|_| ThreadError::Ended { index })?;
            self.take(report);
        }
        Ok(())
    }

    /// Those that do not run, in their order.
    pub fn stopped(&self) -> impl Iterator<Item = &Vcpu> {
        self.stopped.iter().flatten()
    }

    /// Whether a vCPU has ended, and nobody has been told yet.
    pub fn has_exit(&self) -> bool {
        !self.exits.is_empty()
    }

    /// What ended a vCPU since the last call, kicks aside.
    pub fn take_exit(&mut self) -> Option<Result<Exit, VcpuError>> {
        self.collect();
        if self.exits.is_empty() { None } else { Some(self.exits.remove(0)) }
    }

    fn collect(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.take(report);
        }
    }

    fn take(&mut self, Report { vcpu, exit }: Report) {
        let index = usize::from(vcpu.index());
        self.stopped[index] = Some(vcpu);
        if !matches!(exit, Ok(Exit::Kicked)) {
            self.exits.push(exit);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // Waiting for what does not answer would hang the end of the process.
            tracing::error!(%error, "end the vCPU threads");
            return;
        }
        for Thread { start, handle, .. } in self.threads.drain(..) {
            // Without a sender, the thread's wait for a vCPU ends.
            drop(start);
            if handle.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

fn thread(
    vcpu: &Vcpu,
    bus: Arc<Bus>,
    wake: &EventFd,
    reports: Sender<Report>,
) -> Result<Thread, ThreadError> {
    let index = vcpu.index();
    let failed = |source| ThreadError::Start { index, source };
    let wake = wake.try_clone().map_err(failed)?;
    let (start, starts) = channel();
    let handle = std::thread::Builder::new()
        .name(format!("vcpu-{index}"))
        .stack_size(STACK_BYTES)
        .spawn(move || serve(&starts, &bus, &reports, &wake))
        .map_err(failed)?;
    Ok(Thread { start, kick: vcpu.kick()?, handle })
}

fn serve(starts: &Receiver<Vcpu>, bus: &Bus, reports: &Sender<Report>, wake: &EventFd) {
    while let Ok(mut vcpu) = starts.recv() {
        let exit = vcpu.run(bus);
        if reports.send(Report { vcpu, exit }).is_err() {
            return;
        }
        // A full counter wakes as well.
        let _ = wake.write(1);
    }
}
