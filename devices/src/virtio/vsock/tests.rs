//! The device as a driver and host programs see it.

mod credit;
mod guest;
mod hostile;
mod listener;
mod restore;
mod streams;
