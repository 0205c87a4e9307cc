//! Consumer groups: who reads which partitions, and up to where. `docs/groups.md` has the whole picture.
//!
//! - `core`: the state machine, sans-I/O. `assign`: who should hold what. `subscription`: which topics that is about. `record`: what
//!   is kept. `parts`, `topics`, `limits`, `error`: what they are made of.
//! - `serve`: coordinators at work. `view`: the metadata's topics, for the core.
//!
//! The core knows no wire format, so that classic Kafka groups can be served by it as well.

pub(crate) mod assign;
pub(crate) mod core;
pub(crate) mod error;
pub(crate) mod limits;
pub(crate) mod parts;
pub(crate) mod record;
pub(crate) mod serve;
pub(crate) mod subscription;
pub(crate) mod topics;
mod view;
