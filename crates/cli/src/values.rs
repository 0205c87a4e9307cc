//! Values as they are written on the command line: sizes, spans, TIME, escapes, pairs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use timberline_broker::config::ByteSize;
use timberline_client::Codec;

/// A size with its unit, e.g. `64KiB`; bytes without one.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse()?;
    usize::try_from(size.0).map_err(|_| format!("{text} is too large"))
}

/// A span of time with its unit, e.g. `5ms` or `1h30m`; `0` needs none.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("expected a time such as 250ms or 30s: {error}"))
}

/// The name of a codec.
pub(crate) fn parse_codec(text: &str) -> Result<Codec, String> {
    let names = || Codec::ALL.map(Codec::name).join(", ");
    Codec::ALL
        .into_iter()
        .find(|codec| codec.name() == text)
        .ok_or_else(|| format!("expected one of {}", names()))
}

/// `KEY=VALUE`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("expected KEY=VALUE, found `{text}`")),
    }
}

/// Text with the escapes `\n`, `\r`, `\t`, `\0`, `\\` and `\xNN`.
pub(crate) fn parse_escaped(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                std::str::from_utf8(&digits)
                    .ok()
                    .filter(|digits| digits.len() == 2)
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                    .ok_or("\\x needs two hexadecimal digits")?
            }
            _ => {
                return Err(format!(
                    "unknown escape in `{text}`; known are \\n \\r \\t \\0 \\\\ \\xNN"
                ));
            }
        });
    }
    Ok(out)
}

/// As [`parse_escaped`], of at least one byte.
pub(crate) fn parse_separator(text: &str) -> Result<Separator, String> {
    let bytes = parse_escaped(text)?;
    if bytes.is_empty() {
        return Err("a separator has at least one character".to_owned());
    }
    Ok(Separator(bytes))
}

/// Bytes between two things. A type of its own, lest the command line take it for a list of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Separator(pub(crate) Vec<u8>);

/// Where to begin to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Beginning,
    End,
    Offset(i64),
    /// Milliseconds since the Unix epoch.
    Time(i64),
}

/// `beginning`, `end`, an offset, or a TIME: RFC 3339 with a zone, `@UNIX_MS`, or `-15m`.
pub(crate) fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "beginning" => return Ok(From::Beginning),
        "end" => return Ok(From::End),
        _ => {}
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text
            .parse()
            .map(From::Offset)
            .map_err(|_| format!("offset {text} is too large"));
    }
    parse_time(text, SystemTime::now()).map(From::Time)
}

/// A TIME in milliseconds since the Unix epoch.
fn parse_time(text: &str, now: SystemTime) -> Result<i64, String> {
    if let Some(ms) = text.strip_prefix('@') {
        return ms
            .parse()
            .map_err(|_| format!("`{text}`: @ is followed by milliseconds since 1970"));
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = humantime::parse_duration(ago)
            .map_err(|error| format!("`{text}`: expected a span ago such as -15m: {error}"))?;
        return Ok(unix_ms(now).saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)));
    }
    parse_rfc3339(text).ok_or_else(|| {
        format!(
            "`{text}` is not beginning, end, an offset, or a time: RFC 3339 with a zone \
             (2026-11-23T12:00:00Z, 2026-11-23T13:00:00+01:00), @UNIX_MS, or a span ago (-15m)"
        )
    })
}

fn parse_rfc3339(text: &str) -> Option<i64> {
    let (local, offset_minutes) = match text.strip_suffix(['Z', 'z']) {
        Some(local) => (local, 0),
        None => {
            let (local, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
            let sign = match zone.as_bytes()[0] {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = zone[1..].split_once(':')?;
            let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
            if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
                return None;
            }
            (local, sign * (hours * 60 + minutes))
        }
    };
    let utc = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    Some(unix_ms(utc) - offset_minutes * 60_000)
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A time for people, RFC 3339 in UTC; what can't be one is shown as milliseconds.
pub(crate) fn show_time(unix_ms: i64) -> String {
    /// The end of the year 9999.
    const MS_MAX: u64 = 253_402_300_799_999;
    match u64::try_from(unix_ms) {
        Ok(ms) if ms <= MS_MAX => {
            let time = UNIX_EPOCH + Duration::from_millis(ms);
            humantime::format_rfc3339_millis(time).to_string()
        }
        _ => format!("@{unix_ms}"),
    }
}

/// A number of bytes for people.
pub(crate) fn show_size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    if value.abs() < 1024.0 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    value /= 1024.0;
    while value.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 broker is`, `2 brokers are`.
pub(crate) fn count_are(number: usize, one: &str) -> String {
    let be = if number == 1 { "is" } else { "are" };
    format!("{} {be}", count(number as u64, one))
}

/// `1 broker`, `2 brokers`.
pub(crate) fn count(number: impl TryInto<u64>, one: &str) -> String {
    let number = number.try_into().unwrap_or(0);
    match number {
        1 => format!("1 {one}"),
        many => format!("{many} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_is_a_word_an_offset_or_a_time() {
        for (text, from) in [
            ("beginning", From::Beginning),
            ("end", From::End),
            ("0", From::Offset(0)),
            ("12345", From::Offset(12_345)),
            ("@1700000000000", From::Time(1_700_000_000_000)),
            ("2023-11-14T22:13:20Z", From::Time(1_700_000_000_000)),
            ("2023-11-14T22:13:20.250Z", From::Time(1_700_000_000_250)),
            ("2023-11-14T23:13:20+01:00", From::Time(1_700_000_000_000)),
            ("2023-11-14T16:43:20-05:30", From::Time(1_700_000_000_000)),
        ] {
            assert_eq!(parse_from(text), Ok(from), "{text}");
        }
        for text in [
            "",
            "start",
            "-1",
            "2023-11-14T22:13:20",
            "2023-11-14",
            "@x",
            "-",
            "1.5",
            "2023-11-14T22:13:20+25:00",
            "99999999999999999999",
        ] {
            assert!(parse_from(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_span_ago_counts_from_now() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000);
        assert_eq!(parse_time("-15m", now), Ok(9_100_000));
        assert_eq!(parse_time("-1h30m", now), Ok(4_600_000));
    }

    #[test]
    fn sizes_spans_escapes_and_pairs() {
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("1000"), Ok(1000));
        assert!(parse_size("many").is_err());
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("5ms"), Ok(Duration::from_millis(5)));
        assert!(parse_duration("5").is_err());
        assert_eq!(parse_escaped(r"a\tb\n\x00\\").unwrap(), b"a\tb\n\0\\");
        assert!(parse_escaped(r"\q").is_err() && parse_escaped(r"\x1").is_err());
        assert!(parse_separator("").is_err());
        assert_eq!(parse_pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_pair("=b").is_err() && parse_pair("a").is_err());
        assert_eq!(parse_codec("zstd"), Ok(Codec::Zstd));
        assert!(parse_codec("rar").unwrap_err().contains("lz4"));
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_time(1_700_000_000_250), "2023-11-14T22:13:20.250Z");
        assert_eq!(show_time(-5), "@-5");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(count(0, "broker"), "0 brokers");
        assert_eq!(count(1, "broker"), "1 broker");
        assert_eq!(count_are(1, "broker"), "1 broker is");
        assert_eq!(count_are(2, "broker"), "2 brokers are");
    }
}
