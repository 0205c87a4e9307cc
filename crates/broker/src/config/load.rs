//! Reading the layers and checking what they say.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::schema::{self, BrokerConfig, SetError};
use super::setting::is_host_port;

/// Why there is no configuration. The text names key, place and, for an unknown key, the nearest valid one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// A key or section that does not exist.
    #[error("{place}: unknown key `{key}`{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    UnknownKey {
        /// The key as written, with its section.
        key: String,
        /// File and line, variable or flag.
        place: String,
        /// The nearest valid key.
        suggestion: Option<String>,
    },
    /// A value of the wrong kind or out of range.
    #[error("{place}: `{key}`: {message}")]
    Value {
        /// The key, with its section.
        key: String,
        /// File and line, variable or flag.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// Values that do not go together.
    #[error("`{key}`: {message}")]
    Conflict {
        /// The key that should change.
        key: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
}

/// What the command line says; absent is left as it is.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--broker-id`
    pub broker_id: Option<i32>,
    /// `--rack`
    pub rack: Option<String>,
    /// `--grpc-listen`
    pub grpc_listen: Option<SocketAddr>,
    /// `--grpc-advertise`
    pub grpc_advertise: Option<String>,
    /// `--peer-listen`
    pub peer_listen: Option<SocketAddr>,
    /// `--peer-advertise`
    pub peer_advertise: Option<String>,
    /// `--seeds`, separated by commas
    pub seeds: Option<String>,
    /// `--http-listen`
    pub http_listen: Option<SocketAddr>,
    /// Any other key as `section.key` and its value as text.
    pub set: Vec<(String, String)>,
}

const ENVIRONMENT_PREFIX: &str = "TIMBERLINE_";

/// Reads file, environment and flags over the defaults, in this order, and checks the result.
///
/// `environment` is usually `std::env::vars()`; only `TIMBERLINE_SECTION__KEY` counts, a variable without the double
/// underscore belongs to the client commands.
///
/// # Errors
/// [`ConfigError`], see there.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<BrokerConfig, ConfigError> {
    let mut config = BrokerConfig::default();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        apply_file(&mut config, &text, &path.display().to_string())?;
    }
    apply_environment(&mut config, environment)?;
    apply_overrides(&mut config, overrides)?;
    check(&config)?;
    Ok(config)
}

/// Applies the text of a file; `name` is used in errors.
pub(super) fn apply_file(
    config: &mut BrokerConfig,
    text: &str,
    name: &str,
) -> Result<(), ConfigError> {
    let line = |at: usize| {
        let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
        format!(
            "{name}:{}",
            1 + before.iter().filter(|&&b| b == b'\n').count()
        )
    };
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: error
            .span()
            .map_or_else(|| name.to_owned(), |span| line(span.start)),
        message: error.message().to_owned(),
    })?;
    for (section, content) in document.get_ref() {
        let place = line(section.span().start);
        let DeValue::Table(table) = content.get_ref() else {
            return Err(unknown(section.get_ref(), None, place));
        };
        if !schema::sections()
            .iter()
            .any(|(name, _)| *name == section.get_ref().as_ref())
        {
            return Err(unknown(section.get_ref(), None, place));
        }
        for (key, value) in table {
            let place = line(key.span().start);
            let value = plain_value(value.get_ref());
            apply_one(config, section.get_ref(), key.get_ref(), &value, place)?;
        }
    }
    Ok(())
}

/// A value that a key can take, owned; tables, which no key takes, keep only their kind.
fn plain_value(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(
                |_| toml::Value::String(number.to_string()),
                toml::Value::Integer,
            ),
        DeValue::Boolean(truth) => toml::Value::Boolean(*truth),
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(items) => toml::Value::Array(
            items
                .iter()
                .map(|item| plain_value(item.get_ref()))
                .collect(),
        ),
        DeValue::Table(_) => toml::Value::Table(toml::Table::new()),
    }
}

fn apply_environment(
    config: &mut BrokerConfig,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    for (name, text) in environment {
        let Some((section, key)) = name
            .strip_prefix(ENVIRONMENT_PREFIX)
            .and_then(|rest| rest.split_once("__"))
        else {
            continue;
        };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        let place = format!("environment variable {name}");
        apply_one(config, &section, &key, &toml::Value::String(text), place)?;
    }
    Ok(())
}

fn apply_overrides(config: &mut BrokerConfig, overrides: &Overrides) -> Result<(), ConfigError> {
    let mut set = |path: &str, flag: &str, text: Option<String>| match text {
        Some(text) => {
            let (section, key) = path.split_once('.').unwrap_or((path, ""));
            apply_one(
                config,
                section,
                key,
                &toml::Value::String(text),
                flag.to_owned(),
            )
        }
        None => Ok(()),
    };
    let data_dir = overrides
        .data_dir
        .as_ref()
        .map(|p| p.to_string_lossy().into_owned());
    set("storage.data_dir", "--data-dir", data_dir)?;
    set(
        "broker.id",
        "--broker-id",
        overrides.broker_id.map(|v| v.to_string()),
    )?;
    set("broker.rack", "--rack", overrides.rack.clone())?;
    set(
        "listen.grpc",
        "--grpc-listen",
        overrides.grpc_listen.map(|v| v.to_string()),
    )?;
    set(
        "listen.grpc_advertise",
        "--grpc-advertise",
        overrides.grpc_advertise.clone(),
    )?;
    set(
        "listen.http",
        "--http-listen",
        overrides.http_listen.map(|v| v.to_string()),
    )?;
    set(
        "listen.peer",
        "--peer-listen",
        overrides.peer_listen.map(|v| v.to_string()),
    )?;
    set(
        "listen.peer_advertise",
        "--peer-advertise",
        overrides.peer_advertise.clone(),
    )?;
    set("cluster.seeds", "--seeds", overrides.seeds.clone())?;
    for (path, text) in &overrides.set {
        set(path, &format!("flag for {path}"), Some(text.clone()))?;
    }
    Ok(())
}

fn apply_one(
    config: &mut BrokerConfig,
    section: &str,
    key: &str,
    value: &toml::Value,
    place: String,
) -> Result<(), ConfigError> {
    config
        .set(section, key, value)
        .map_err(|error| match error {
            SetError::UnknownKey => unknown(section, Some(key), place),
            SetError::Value(message) => ConfigError::Value {
                key: format!("{section}.{key}"),
                place,
                message,
            },
        })
}

fn unknown(section: &str, key: Option<&str>, place: String) -> ConfigError {
    let written = key.map_or_else(|| section.to_owned(), |key| format!("{section}.{key}"));
    let keys = schema::keys();
    let sections = schema::sections();
    let suggestion = match key {
        // A misspelt key of a known section, before a similar one elsewhere.
        Some(key) => {
            let same = keys.iter().filter(|k| k.section == section).map(|k| k.name);
            nearest(key, same)
                .map(|name| format!("{section}.{name}"))
                .or_else(|| {
                    let paths: Vec<String> = keys.iter().map(schema::Key::path).collect();
                    nearest(&written, paths.iter().map(String::as_str)).map(str::to_owned)
                })
        }
        // A key without its section, or a misspelt section.
        None => keys
            .iter()
            .find(|k| k.name == section)
            .map(schema::Key::path)
            .or_else(|| {
                nearest(section, sections.iter().map(|(name, _)| *name)).map(|s| format!("[{s}]"))
            }),
    };
    ConfigError::UnknownKey {
        key: written,
        place,
        suggestion,
    }
}

/// What no single key can check.
fn check(config: &BrokerConfig) -> Result<(), ConfigError> {
    for (key, address) in [
        ("listen.grpc", config.listen.grpc),
        ("listen.peer", config.listen.peer),
        ("listen.http", config.listen.http),
    ] {
        if !address.ip().is_loopback() && !config.listen.insecure {
            return Err(ConfigError::Conflict {
                key,
                message: format!(
                    "{address} is not loopback and the listener has no TLS; anybody who reaches it may read and write. \
                     Listen on 127.0.0.1, or set listen.insecure = true if the network is trusted"
                ),
            });
        }
    }
    if config.log.max_message_bytes > config.limits.message_bytes_max {
        return Err(ConfigError::Conflict {
            key: "log.max_message_bytes",
            message: format!(
                "{} is more than limits.message_bytes_max, {}",
                config.log.max_message_bytes, config.limits.message_bytes_max
            ),
        });
    }
    if config.limits.partition_in_flight_bytes < config.limits.message_bytes_max
        || config.limits.broker_in_flight_bytes < config.limits.message_bytes_max
        || config.limits.stream_in_flight_bytes < config.limits.message_bytes_max
    {
        return Err(ConfigError::Conflict {
            key: "limits.message_bytes_max",
            message: "a message of this size would not fit into limits.partition_in_flight_bytes, \
                      limits.stream_in_flight_bytes or limits.broker_in_flight_bytes; raise those"
                .to_owned(),
        });
    }
    for (key, advertise) in [
        ("listen.grpc_advertise", &config.listen.grpc_advertise),
        ("listen.peer_advertise", &config.listen.peer_advertise),
    ] {
        if !advertise.is_empty() && !is_host_port(advertise) {
            return Err(ConfigError::Conflict {
                key,
                message: format!("`{advertise}` is not HOST:PORT"),
            });
        }
    }
    let cluster = &config.cluster;
    if cluster.heartbeat_interval >= cluster.election_timeout {
        return Err(ConfigError::Conflict {
            key: "cluster.heartbeat_interval",
            message: format!(
                "{} is not shorter than cluster.election_timeout, {}: followers would replace a healthy leader between \
                 two of its beats. A third of the timeout is right",
                cluster.heartbeat_interval, cluster.election_timeout
            ),
        });
    }
    Ok(())
}
