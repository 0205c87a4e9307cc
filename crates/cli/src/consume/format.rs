//! `--format`: a template for each record.

use std::io::{self, Write};

use timberline_client::BatchRecord;

use crate::values::{parse_escaped, show_time};

/// A template, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Headers,
    TimestampMs,
    Date,
    KeyLength,
    ValueLength,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// An unknown letter or escape, named.
    pub(super) fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            push_text(&mut parts, before)?;
            let mut letters = after.chars();
            let part = match letters.next() {
                Some('t') => Part::Topic,
                Some('p') => Part::Partition,
                Some('o') => Part::Offset,
                Some('k') => Part::Key,
                Some('v') => Part::Value,
                Some('h') => Part::Headers,
                Some('T') => Part::TimestampMs,
                Some('D') => Part::Date,
                Some('K') => Part::KeyLength,
                Some('V') => Part::ValueLength,
                Some('%') => Part::Text(b"%".to_vec()),
                Some(other) => {
                    return Err(format!(
                        "unknown %{other}; known are %t %p %o %k %v %h %T %D %K %V %%"
                    ));
                }
                None => return Err("% at the end; a percent sign is %%".to_owned()),
            };
            parts.push(part);
            rest = letters.as_str();
        }
        push_text(&mut parts, rest)?;
        Ok(Template(parts))
    }

    /// Writes a record.
    pub(super) fn write(
        &self,
        out: &mut impl Write,
        topic: &str,
        partition: i32,
        record: &BatchRecord,
    ) -> io::Result<()> {
        for part in &self.0 {
            match part {
                Part::Text(bytes) => out.write_all(bytes)?,
                Part::Topic => out.write_all(topic.as_bytes())?,
                Part::Partition => write!(out, "{partition}")?,
                Part::Offset => write!(out, "{}", record.offset)?,
                Part::Key => out.write_all(record.key.as_deref().unwrap_or_default())?,
                Part::Value => out.write_all(record.value.as_deref().unwrap_or_default())?,
                Part::Headers => write_headers(out, record)?,
                Part::TimestampMs => write!(out, "{}", record.timestamp_ms)?,
                Part::Date => out.write_all(show_time(record.timestamp_ms).as_bytes())?,
                Part::KeyLength => write_length(out, record.key.as_deref())?,
                Part::ValueLength => write_length(out, record.value.as_deref())?,
            }
        }
        Ok(())
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) -> Result<(), String> {
    let bytes = parse_escaped(text)?;
    if !bytes.is_empty() {
        parts.push(Part::Text(bytes));
    }
    Ok(())
}

fn write_headers(out: &mut impl Write, record: &BatchRecord) -> io::Result<()> {
    for (at, (key, value)) in record.headers().enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        out.write_all(key)?;
        out.write_all(b"=")?;
        out.write_all(value.unwrap_or_default())?;
    }
    Ok(())
}

fn write_length(out: &mut impl Write, bytes: Option<&[u8]>) -> io::Result<()> {
    match bytes {
        Some(bytes) => write!(out, "{}", bytes.len()),
        None => out.write_all(b"-1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_parsed_and_mistakes_named() {
        let template = Template::parse(r"%t/%p@%o\t%%%v\n").unwrap();
        assert_eq!(
            template.0,
            [
                Part::Topic,
                Part::Text(b"/".to_vec()),
                Part::Partition,
                Part::Text(b"@".to_vec()),
                Part::Offset,
                Part::Text(b"\t".to_vec()),
                Part::Text(b"%".to_vec()),
                Part::Value,
                Part::Text(b"\n".to_vec()),
            ]
        );
        assert!(Template::parse("%z").unwrap_err().contains("%z"));
        assert!(Template::parse("100%").is_err());
        assert!(Template::parse(r"\q").is_err());
    }
}
