//! What both ends of the emulated host's command ports share: the framing and the messages.

pub mod frame;
pub mod message;
