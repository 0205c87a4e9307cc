//! Harness shared by the product tests.
#![forbid(unsafe_code)]

pub mod rng;
