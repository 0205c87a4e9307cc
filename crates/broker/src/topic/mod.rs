//! What a topic may be called and how it may be configured. Pure; nothing here knows brokers or logs.

pub(crate) mod config;
pub(crate) mod name;
