//! The life of a microVM.
//!
//! ```text
//!             launched              suspend, idle            suspended
//!  Launching ──────────▶ Running ─────────────────▶ Suspending ───────▶ Suspended
//!   PENDING               RUNNING ◀──────────────── SUSPENDING            SUSPENDED
//!                            ▲     suspend failed                       │         │
//!                            │                                   resume │         │ request
//!                            ├──────────── resumed ─── Resuming ◀───────┘         │
//!                            │                         SUSPENDED                  │
//!                            └──────────── resumed ─── Waking ◀───────────────────┘
//!                                                      PENDING
//!  any of these ── terminate, expired, its end ──▶ Terminating ──▶ Terminated
//! ```
//!
//! The service shows a resume that was asked for as SUSPENDED until it is done, and one that a request
//! to the endpoint caused as PENDING.

use serde::{Deserialize, Serialize};

/// Where a microVM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the diagram says it")]
pub enum Phase {
    Launching,
    Running,
    Suspending,
    Suspended,
    Resuming,
    Waking,
    Terminating,
    Terminated,
}

/// What happens to a microVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client asks for it.
    Suspend,
    /// A client asks for it.
    Resume,
    /// A client asks for it.
    Terminate,
    /// Something came to the endpoint of one that may be woken so.
    Request,
    /// Nothing came to the endpoint for as long as its policy says.
    Idle,
    /// Its time is over.
    Expired,
    /// The worker has launched it, and its hook said yes.
    Launched,
    /// The worker could not launch it.
    LaunchFailed,
    /// The worker has suspended it.
    Suspended,
    /// The worker could not suspend it: it runs on.
    SuspendFailed,
    /// The worker has taken it up again.
    Resumed,
    /// The worker could not take it up again: it is suspended as before.
    ResumeFailed,
    /// It has ended by itself, or its process has died.
    Exited,
    /// The worker has ended it and removed what it had.
    Terminated,
}

/// What a worker has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Order {
    None,
    Suspend,
    Resume,
    Terminate,
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is so already, or the event came too late to matter.
    Stay,
    /// To another phase, with an order for the worker.
    Go(Phase, Order),
    /// A client asks for what cannot be now.
    Refuse,
    /// A client asks for a change of one that has ended.
    RefuseEnded,
}

/// What somebody is told who wants to a microVM's endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Come in.
    Pass,
    /// It is suspended, and what comes to its endpoint wakes it.
    Wake,
    /// It will be there soon, or can be woken soon.
    Wait,
    /// It is not there, and will not be because of this.
    Refuse,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 8] = [
        Self::Launching,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Resuming,
        Self::Waking,
        Self::Terminating,
        Self::Terminated,
    ];

    /// What the service calls it.
    pub fn state(self) -> &'static str {
        match self {
            Self::Launching | Self::Waking => "PENDING",
            Self::Running => "RUNNING",
            Self::Suspending => "SUSPENDING",
            Self::Suspended | Self::Resuming => "SUSPENDED",
            Self::Terminating => "TERMINATING",
            Self::Terminated => "TERMINATED",
        }
    }

    /// Whether it has memory, or will have again.
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Terminating | Self::Terminated)
    }

    /// Who may come to its endpoint. Nobody does before it runs: its hook has said yes then.
    pub fn admit(self, may_wake: bool) -> Admission {
        match self {
            Self::Running => Admission::Pass,
            Self::Launching | Self::Resuming | Self::Waking => Admission::Wait,
            Self::Suspending if may_wake => Admission::Wait,
            Self::Suspended if may_wake => Admission::Wake,
            Self::Suspending | Self::Suspended | Self::Terminating | Self::Terminated => {
                Admission::Refuse
            }
        }
    }

    /// What an event makes of it.
    pub fn next(self, event: Event) -> Step {
        match event {
            Event::Suspend => self.asked_to_suspend(),
            Event::Resume => self.asked_to_resume(),
            Event::Terminate | Event::Expired | Event::Exited => self.end(),
            Event::LaunchFailed if self == Self::Launching => self.end(),
            Event::LaunchFailed => Step::Stay,
            Event::Request => self.only_from(Self::Suspended, Self::Waking, Order::Resume),
            Event::Idle => self.only_from(Self::Running, Self::Suspending, Order::Suspend),
            Event::Launched => self.only_from(Self::Launching, Self::Running, Order::None),
            Event::Suspended => self.only_from(Self::Suspending, Self::Suspended, Order::None),
            Event::SuspendFailed => self.only_from(Self::Suspending, Self::Running, Order::None),
            Event::Resumed if matches!(self, Self::Resuming | Self::Waking) => {
                Step::Go(Self::Running, Order::None)
            }
            Event::ResumeFailed if matches!(self, Self::Resuming | Self::Waking) => {
                Step::Go(Self::Suspended, Order::None)
            }
            Event::Resumed | Event::ResumeFailed => Step::Stay,
            Event::Terminated => self.only_from(Self::Terminating, Self::Terminated, Order::None),
        }
    }

    fn asked_to_suspend(self) -> Step {
        match self {
            Self::Running => Step::Go(Self::Suspending, Order::Suspend),
            Self::Suspending | Self::Suspended => Step::Stay,
            Self::Launching | Self::Resuming | Self::Waking => Step::Refuse,
            Self::Terminating | Self::Terminated => Step::RefuseEnded,
        }
    }

    fn asked_to_resume(self) -> Step {
        match self {
            Self::Suspended => Step::Go(Self::Resuming, Order::Resume),
            Self::Running | Self::Resuming | Self::Waking => Step::Stay,
            Self::Launching | Self::Suspending => Step::Refuse,
            Self::Terminating | Self::Terminated => Step::RefuseEnded,
        }
    }

    fn end(self) -> Step {
        match self {
            Self::Terminating | Self::Terminated => Step::Stay,
            _ => Step::Go(Self::Terminating, Order::Terminate),
        }
    }

    fn only_from(self, from: Self, to: Self, order: Order) -> Step {
        if self == from { Step::Go(to, order) } else { Step::Stay }
    }
}

#[cfg(test)]
mod tests;
