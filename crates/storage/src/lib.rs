//! The log: segments, the journal, recovery and retention.
#![forbid(unsafe_code)]
