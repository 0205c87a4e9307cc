//! The examples, as users run them: real processes against a real broker. What they promise is tried with `kill -9`.
//!
//! Every test has a broker of its own on free ports over a temporary directory, and every wait is bounded. Processes are ended by
//! their id.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds something missing is to fail there"
)]

mod harness;
mod postgres;
mod sqlite;
mod told;
mod windowed;
