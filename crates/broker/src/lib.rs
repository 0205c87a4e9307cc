//! The server: partitions, metadata, gRPC, HTTP, metrics.
#![forbid(unsafe_code)]
