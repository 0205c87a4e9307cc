//! What a configuration value can be, and how it is read from TOML or from text and printed again.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::units::{ByteSize, Span};

/// A type that a configuration key can have.
pub trait Setting: Sized {
    /// Its name in the reference, e.g. `size`.
    const TYPE: &'static str;

    /// Reads the text of an environment variable or a flag.
    ///
    /// # Errors
    /// One sentence that says what is expected.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Prints the value as it would stand in a TOML file.
    fn to_toml(&self) -> String;

    /// Reads a TOML value; a string is read as text, other scalars by their own text.
    ///
    /// # Errors
    /// One sentence that says what is expected.
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Self::from_text(text),
            toml::Value::Integer(number) => Self::from_text(&number.to_string()),
            toml::Value::Boolean(truth) => Self::from_text(&truth.to_string()),
            other => Err(format!(
                "expected a {}, found a {}",
                Self::TYPE,
                other.type_str()
            )),
        }
    }
}

/// Quotes a string for TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

macro_rules! integer_setting {
    ($($ty:ty),*) => {$(
        impl Setting for $ty {
            const TYPE: &'static str = "integer";
            fn from_text(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| format!("expected a whole number, found `{text}`"))
            }
            fn to_toml(&self) -> String { self.to_string() }
        }
    )*};
}
integer_setting!(i32, u32, u64, usize);

impl Setting for bool {
    const TYPE: &'static str = "boolean";
    fn from_text(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("expected true or false, found `{text}`")),
        }
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    const TYPE: &'static str = "text";
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn to_toml(&self) -> String {
        quoted(self)
    }
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("expected a text, found a {}", value.type_str()))
    }
}

impl Setting for PathBuf {
    const TYPE: &'static str = "path";
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("expected a path, found an empty text".to_owned());
        }
        Ok(PathBuf::from(text))
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for SocketAddr {
    const TYPE: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        text.trim()
            .parse()
            .map_err(|_| format!("expected IP:PORT such as 127.0.0.1:7071, found `{text}`"))
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Setting for ByteSize {
    const TYPE: &'static str = "size";
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Setting for Span {
    const TYPE: &'static str = "time span";
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Most addresses in one list.
const ADDRESSES_MAX: usize = 64;

/// Whether a text is HOST:PORT with a port that can be dialed.
pub(super) fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// A list of HOST:PORT; as a text, separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPorts(
    /// The addresses as written; names are resolved when they are dialed.
    pub Vec<String>,
);

impl HostPorts {
    fn new<'a>(addresses: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut list = Vec::new();
        for address in addresses.map(str::trim).filter(|text| !text.is_empty()) {
            if !is_host_port(address) {
                return Err(format!("`{address}` is not HOST:PORT"));
            }
            if list.len() == ADDRESSES_MAX {
                return Err(format!("more than {ADDRESSES_MAX} addresses"));
            }
            list.push(address.to_owned());
        }
        Ok(HostPorts(list))
    }
}

impl Setting for HostPorts {
    const TYPE: &'static str = "list of HOST:PORT";
    fn from_text(text: &str) -> Result<Self, String> {
        HostPorts::new(text.split(','))
    }
    fn to_toml(&self) -> String {
        let items: Vec<String> = self.0.iter().map(|text| quoted(text)).collect();
        format!("[{}]", items.join(", "))
    }
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Self::from_text(text),
            toml::Value::Array(items) => {
                let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
                HostPorts::new(
                    texts
                        .ok_or_else(|| format!("expected a {} in quotes", Self::TYPE))?
                        .into_iter(),
                )
            }
            other => Err(format!(
                "expected a {}, found a {}",
                Self::TYPE,
                other.type_str()
            )),
        }
    }
}

/// A bound that may be absent, written `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maybe<T>(
    /// The bound; `None` means unlimited.
    pub Option<T>,
);

impl<T: PartialOrd> PartialOrd for Maybe<T> {
    /// Only bounds that are set are ordered, so that "none" is inside every range.
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.0.as_ref()?.partial_cmp(other.0.as_ref()?)
    }
}

impl<T: Setting> Setting for Maybe<T> {
    const TYPE: &'static str = T::TYPE;
    fn from_text(text: &str) -> Result<Self, String> {
        match text.trim() {
            "none" => Ok(Maybe(None)),
            text => T::from_text(text).map(|value| Maybe(Some(value))),
        }
    }
    fn to_toml(&self) -> String {
        self.0
            .as_ref()
            .map_or_else(|| quoted("none"), Setting::to_toml)
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Setting for LogFormat {
    const TYPE: &'static str = "\"human\" or \"json\"";
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("expected \"human\" or \"json\", found `{text}`")),
        }
    }
    fn to_toml(&self) -> String {
        quoted(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}
