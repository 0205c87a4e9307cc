//! A record in JSON, the same for reading and writing.
//!
//! Bytes that are not UTF-8 stand in a field of their own, `…_base64`; null is null. What `consume -o jsonl` writes,
//! `produce --format json` takes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use timberline_client::{BatchRecord, ProducerRecord};

/// A header.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderJson {
    key: String,
    #[serde(default, skip_serializing_if = "Field::is_missing")]
    value: Field,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// A record.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Field::is_missing")]
    key: Field,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Field::is_missing")]
    value: Field,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(default)]
    headers: Vec<HeaderJson>,
}

/// A text, null, or no field at all: told apart when writing.
#[derive(Debug, Default)]
enum Field {
    #[default]
    Missing,
    Null,
    Text(String),
}

impl Field {
    fn is_missing(&self) -> bool {
        matches!(self, Field::Missing)
    }
}

impl Serialize for Field {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Field::Text(text) => serializer.serialize_str(text),
            Field::Null | Field::Missing => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::<String>::deserialize(deserializer)? {
            Some(text) => Field::Text(text),
            None => Field::Null,
        })
    }
}

/// The text field and the base64 field of these bytes.
fn written(bytes: Option<&[u8]>) -> (Field, Option<String>) {
    match bytes {
        None => (Field::Null, None),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => (Field::Text(text.to_owned()), None),
            Err(_) => (Field::Missing, Some(STANDARD.encode(bytes))),
        },
    }
}

/// The bytes of a pair of fields.
fn read(name: &str, text: Field, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (text, base64) {
        (Field::Text(_), Some(_)) => Err(format!("both `{name}` and `{name}_base64` are given")),
        (Field::Text(text), None) => Ok(Some(text.into())),
        (_, Some(base64)) => STANDARD
            .decode(&base64)
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| format!("`{name}_base64`: {error}")),
        (_, None) => Ok(None),
    }
}

impl RecordJson {
    /// A record from its text, which must be an object.
    pub(crate) fn parse(text: &[u8]) -> Result<RecordJson, String> {
        // A list of fields without names would be taken too.
        if !text.starts_with(b"{") {
            return Err("a record is a JSON object, {\"value\": …}".to_owned());
        }
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// A record as it was read.
    pub(crate) fn of(topic: &str, partition: i32, record: &BatchRecord) -> RecordJson {
        let (key, key_base64) = written(record.key.as_deref());
        let (value, value_base64) = written(record.value.as_deref());
        let header = |(key, bytes): (&[u8], Option<&[u8]>)| {
            let (value, value_base64) = written(bytes);
            HeaderJson {
                key: String::from_utf8_lossy(key).into_owned(),
                value,
                value_base64,
            }
        };
        RecordJson {
            topic: Some(topic.to_owned()),
            partition: Some(partition),
            offset: Some(record.offset),
            timestamp_ms: Some(record.timestamp_ms),
            key,
            key_base64,
            value,
            value_base64,
            headers: record.headers().map(header).collect(),
        }
    }

    /// A record to be sent to `topic`. Topic and offset in the JSON are where it came from and do not count.
    pub(crate) fn into_record(self, topic: std::sync::Arc<str>) -> Result<ProducerRecord, String> {
        let mut record = ProducerRecord::new(topic);
        record.partition = self.partition;
        record.timestamp_ms = self.timestamp_ms;
        record.key = read("key", self.key, self.key_base64)?;
        record.value = read("value", self.value, self.value_base64)?;
        for header in self.headers {
            let value = read("value", header.value, header.value_base64)?;
            record.headers.push((header.key, value));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ProducerRecord, String> {
        RecordJson::parse(text.as_bytes())?.into_record("t".into())
    }

    #[test]
    fn every_kind_of_bytes_is_read() {
        let record = parse(
            r#"{"topic":"x","partition":3,"offset":9,"timestamp_ms":5,"key":null,"value_base64":"AP8=","headers":[{"key":"a","value":"1"},{"key":"a","value":null},{"key":"b","value_base64":"/w=="}]}"#,
        )
        .unwrap();
        assert_eq!(
            (&*record.topic, record.partition, record.timestamp_ms),
            ("t", Some(3), Some(5))
        );
        assert_eq!(record.key, None);
        assert_eq!(record.value.as_deref(), Some(&[0, 255][..]));
        assert_eq!(record.headers[0], ("a".to_owned(), Some("1".into())));
        assert_eq!(record.headers[1], ("a".to_owned(), None));
        assert_eq!(record.headers[2].1.as_deref(), Some(&[255][..]));
        assert_eq!(parse(r#"{"value":""}"#).unwrap().value, Some(Bytes::new()));
        assert_eq!(parse("{}").unwrap().value, None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            (r#"{"vlaue":"x"}"#, "vlaue"),
            (r#"{"value":"x","value_base64":"AA=="}"#, "both"),
            (r#"{"key_base64":"?"}"#, "key_base64"),
            (r#"{"value":1}"#, "string"),
            ("[]", "object"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
