//! A real broker on loopback ports, driven with plain tonic clients.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

mod admin;
mod bad_input;
mod cluster;
mod consume;
mod disk;
mod lifecycle;
mod many;
mod produce;
