//! Kafka's rules for topic names.

use timberline_proto::error::{ApiError, Reason};

/// Longest name, in bytes, as in Kafka.
pub(crate) const NAME_LEN_MAX: usize = 249;

/// Checks a name that somebody wants to give to a topic.
///
/// # Errors
/// `INVALID_TOPIC_NAME`, which shows the name shortened and escaped.
pub(crate) fn check(name: &str) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
        Err(ApiError::new(
            Reason::InvalidTopicName,
            format!("topic name `{shown}` {why}"),
        )
        .with_field("name"))
    };
    if name.is_empty() {
        return refuse("is empty");
    }
    if name == "." || name == ".." {
        return refuse("is not allowed");
    }
    if name.len() > NAME_LEN_MAX {
        return refuse("is longer than 249 characters");
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !name.bytes().all(legal) {
        return refuse("has characters other than a-z, A-Z, 0-9, '.', '_' and '-'");
    }
    Ok(())
}

/// The form in which two names collide: metrics can't tell '.' from '_', so Kafka does not let them differ by that alone.
pub(crate) fn collision_key(name: &str) -> String {
    name.replace('.', "_")
}

/// Whether the broker keeps the topic for itself.
pub(crate) fn is_internal(name: &str) -> bool {
    name.starts_with("__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafka_names_pass_and_hostile_ones_do_not() {
        for name in ["a", "orders", "a.b_c-D9", &"x".repeat(249), "...", "-"] {
            check(name).unwrap();
        }
        let long = "x".repeat(250);
        let huge = "y".repeat(10_240);
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0b",
            "a b",
            "ü",
            "a\n",
            "\u{202e}x",
            &long,
            &huge,
        ] {
            let error = check(name).unwrap_err();
            assert_eq!(error.reason, Some(Reason::InvalidTopicName));
            assert!(error.message.len() < 600 && !error.message.contains('\0'));
        }
    }
}
