//! Shared pieces of the benchmark programs.
#![forbid(unsafe_code)]
