//! Results on standard output: a table for people; JSON, JSON lines and YAML for programs.
//!
//! The fields of the latter are the contract; a table's columns are not.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use crate::failure::Failure;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// One YAML document.
    Yaml,
}

impl Format {
    /// Whether it is for people.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Format::Table | Format::Wide)
    }

    /// Whether more columns are wanted.
    pub(crate) fn is_wide(self) -> bool {
        self == Format::Wide
    }
}

/// Prints a value that a program can read, or the text for people.
pub(crate) fn print(
    format: Format,
    value: &Value,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table | Format::Wide => table(),
        Format::Json => pretty(value),
        Format::Jsonl => match value {
            Value::Array(items) => items.iter().fold(String::new(), |mut text, item| {
                let _ = writeln!(text, "{item}");
                text
            }),
            one => format!("{one}\n"),
        },
        Format::Yaml => yaml(value),
    };
    print_text(&text)
}

/// Prints text as it is.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Columns without lines; those named in `right` are aligned to the right.
pub(crate) fn columns(headers: &[&str], right: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(headers.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (at, header) in headers.iter().enumerate() {
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 2));
            if right.contains(header) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Names and values, one a line.
pub(crate) fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:width$}  {value}");
        text
    })
}

/// Block style; every string is quoted as in JSON, which YAML reads.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(&mut text, value, 0);
    text
}

fn write_yaml(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                write_yaml(&mut inner, item, depth + 1);
                // The first line goes behind the dash, which is as wide as one level.
                let _ = write!(text, "{indent}- {}", inner.trim_start());
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (key, field) in fields {
                let _ = write!(text, "{indent}{}:", yaml_key(key));
                let nested = matches!(field, Value::Array(items) if !items.is_empty())
                    || matches!(field, Value::Object(fields) if !fields.is_empty());
                if nested {
                    text.push('\n');
                    write_yaml(text, field, depth + 1);
                } else {
                    let _ = writeln!(text, " {field}");
                }
            }
        }
        scalar => {
            let _ = writeln!(text, "{indent}{scalar}");
        }
    }
}

fn yaml_key(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
            .contains(&key.to_ascii_lowercase().as_str());
    if plain {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_nests_and_quotes() {
        let value = json!([
            {"name": "a: b", "parts": [{"m": 1, "list": []}, {"m": 2}], "none": null},
            {"name": "c", "inner": {"x.y": true}},
            7
        ]);
        let expected = "\
- name: \"a: b\"
  parts:
    - m: 1
      list: []
    - m: 2
  none: null
- name: \"c\"
  inner:
    \"x.y\": true
- 7
";
        assert_eq!(yaml(&value), expected);
    }

    #[test]
    fn columns_are_aligned_without_trailing_blanks() {
        let text = columns(
            &["NAME", "N"],
            &["N"],
            vec![
                vec!["long name".to_owned(), "1".to_owned()],
                vec!["x".to_owned(), "10".to_owned()],
            ],
        );
        assert_eq!(text, "NAME        N\nlong name   1\nx          10\n");
    }
}
