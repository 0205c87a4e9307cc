//! Configuration: TOML file, then environment, then flags; every error names its key and where it stands.
//!
//! The keys are declared once, in `schema`; the reference (`docs/configuration.md`), [`explain`] and the checks come from
//! that declaration. Nothing is read after start.

mod load;
mod nearest;
mod reference;
mod schema;
mod setting;
mod units;

pub use load::{ConfigError, Overrides, load};
pub(crate) use nearest::nearest;
pub use reference::{default_file, explain, reference_markdown, topic_keys};
pub use schema::{
    BrokerConfig, BrokerSection, ClusterSection, GroupsSection, Key, LimitsSection, ListenSection,
    LogSection, LoggingSection, ShutdownSection, StorageSection, keys,
};
pub use setting::{HostPorts, LogFormat, Maybe, Setting};
pub use units::{ByteSize, Span};

#[cfg(test)]
mod tests;
