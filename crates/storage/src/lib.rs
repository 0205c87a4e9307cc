//! The log: segments, the journal, recovery and retention.
#![deny(unsafe_code)]

pub mod disk;
