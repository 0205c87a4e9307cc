//! The real binary, as users run it: processes, files, pipes, signals. What it prints is a contract.
//!
//! Every test has a broker of its own on free ports over a temporary directory, and every wait is bounded. Processes are
//! ended by their id.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds something missing is to fail there"
)]

mod admin;
mod chaos;
mod cluster;
mod consume;
mod dev;
mod errors;
mod group;
mod harness;
mod kill;
mod produce;
mod readme;
mod server;
