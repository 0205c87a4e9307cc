//! Scripts of a few replicas: each reads like a page of the protocol's documentation.
//!
//! `world` has the replicas, their logs in memory, and a network that delivers when it is told to. Nothing here runs by
//! itself: a script says who ticks, whose sync ends, which messages arrive.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod elections;
mod hostile;
mod logs;
mod members;
mod quiescence;
mod real;
mod snapshots;
mod world;
