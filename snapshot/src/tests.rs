//! Tests of the crate as a whole: snapshots written, read back, damaged and cut short.
#![allow(clippy::arithmetic_side_effects)]

mod chain;
mod crash;
mod damage;
mod golden;
mod hostile;
mod machine;
mod tools;
