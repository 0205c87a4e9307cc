//! Code generated from the protocol definitions, and small conversions.
#![forbid(unsafe_code)]
