//! What loads, measures and checks a cluster from outside.
#![forbid(unsafe_code)]
