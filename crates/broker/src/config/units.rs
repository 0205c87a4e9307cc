//! Values with their unit in the text: sizes (`"1GiB"`) and spans of time (`"250ms"`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const SIZE_UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TiB", 1 << 40),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

const SPAN_UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A span of time in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(
    /// Milliseconds.
    pub u64,
);

impl ByteSize {
    /// As `usize`; every size that the ranges allow fits on a 64-bit machine.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Span {
    /// As a standard duration.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// Splits `"250ms"` into number and unit and multiplies. Fractions are refused: a size is exact.
fn parse_with(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let unit = unit.trim();
    let number: u64 = digits
        .replace('_', "")
        .parse()
        .map_err(|_| format!("`{text}` is not a whole number with a unit such as {example}"))?;
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let names: Vec<&str> = units
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| !name.is_empty())
            .collect();
        return Err(format!(
            "`{text}` needs one of the units {}, for example {example}",
            names.join(", ")
        ));
    };
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("`{text}` is too large"))
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_with(text, SIZE_UNITS, "\"64MiB\"").map(ByteSize)
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_with(text, SPAN_UNITS, "\"250ms\"").map(Span)
    }
}

/// Prints with the largest unit that leaves no remainder, so that printing and parsing are inverse.
fn print_with(
    value: u64,
    units: &[(&'static str, u64)],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    for &(name, factor) in units {
        if value >= factor && value.is_multiple_of(factor) {
            return write!(f, "{}{name}", value / factor);
        }
    }
    write!(f, "{value}{}", units.last().map_or("", |unit| unit.0))
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
            ("B", 1),
        ];
        print_with(self.0, &units, f)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ];
        print_with(self.0, &units, f)
    }
}
