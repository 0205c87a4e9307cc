//! Clusters of several brokers on loopback, and what happens when some of them go.
//!
//! Each broker has a runtime and a disk of its own, so that it can be ended as a crash ends a process: its sockets close, its
//! threads stop, its disk is what the crash left. All tests wait for conditions with a deadline; none looks at how long
//! anything took.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "shared with the tests of one broker")]
#[path = "../e2e/support.rs"]
mod wire;

mod support;

mod failover;
mod founding;
mod groups;
mod loss;
mod metadata;
mod operations;
mod refused;
