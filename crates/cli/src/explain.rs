//! `timberline explain`.

use std::fmt::Write;

use clap::Args;
use timberline_broker::config;
use timberline_client::Reason;

use crate::failure::{Failure, LOCAL_REASONS};
use crate::output::{columns, print_text};

/// Explain an error's reason code or a configuration key.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline explain OUT_OF_ORDER_SEQUENCE
  timberline explain storage.journal_bytes
  timberline explain                            lists all")]
pub(crate) struct ExplainArgs {
    /// A reason such as NOT_LEADER, or a key such as log.segment_bytes.
    #[arg(value_name = "REASON|CONFIG-KEY")]
    name: Option<String>,
}

pub(crate) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    match &args.name {
        None => print_text(&everything()),
        Some(name) => match explain(name) {
            Some(text) => print_text(&text),
            None => Err(Failure::failed(format!(
                "`{name}` is neither a reason code nor a configuration key"
            ))
            .next("`timberline explain` lists both.")),
        },
    }
}

fn explain(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase().replace('-', "_");
    if let Some(reason) = Reason::parse(&upper) {
        let retry = if reason.is_retriable() {
            "yes: the same call may succeed later"
        } else {
            "no: the same call fails again"
        };
        return Some(format!(
            "{reason}\n  {}\n\n  gRPC code    {:?}\n  retriable    {retry}\n",
            reason.advice(),
            reason.code(),
        ));
    }
    if let Some((name, what, next)) = LOCAL_REASONS.iter().find(|(name, ..)| *name == upper) {
        return Some(format!(
            "{name}\n  {what}.\n  {next}\n\n  given by     this program, not by a broker\n"
        ));
    }
    config::explain(name).or_else(|| topic_key(name))
}

/// A topic's key, and the broker's key that gives its default, if one does.
fn topic_key(name: &str) -> Option<String> {
    let (name, what) = config::topic_keys().find(|(key, _)| *key == name)?;
    let prefix = format!("Default of {name}:");
    let keys = config::keys().into_iter();
    let default = keys
        .filter(|key| key.documentation.starts_with(&prefix))
        .map(|key| {
            format!(
                "  default      the broker's {}, {} unless configured\n",
                key.path(),
                key.default
            )
        });
    Some(format!(
        "{name}\n  {what}\n\n  set it with  timberline topic config TOPIC --set {name}=VALUE\n{}",
        default.collect::<String>()
    ))
}

fn everything() -> String {
    let mut rows: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| vec![reason.as_str().to_owned(), reason.advice().to_owned()])
        .collect();
    let local = |(name, what, _): &(&str, &str, &str)| vec![(*name).to_owned(), format!("{what}.")];
    rows.extend(LOCAL_REASONS.iter().map(local));
    let mut text = columns(&["REASON", "WHAT TO DO"], &[], rows);
    let keys = config::keys().into_iter();
    let rows = keys
        .map(|key| vec![key.path(), key.default.clone(), key.documentation])
        .collect();
    let _ = write!(
        text,
        "\n{}",
        columns(&["KEY", "DEFAULT", "WHAT IT DOES"], &[], rows)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_key_is_explained() {
        for reason in Reason::ALL {
            assert!(explain(reason.as_str()).unwrap().contains(reason.advice()));
        }
        for (name, ..) in LOCAL_REASONS {
            assert!(explain(name).is_some(), "{name}");
        }
        for key in config::keys() {
            assert!(explain(&key.path()).is_some(), "{}", key.path());
        }
        assert!(
            explain("retention.ms")
                .unwrap()
                .contains("log.retention_time")
        );
        for (key, what) in config::topic_keys() {
            assert!(explain(key).unwrap().contains(what), "{key}");
        }
        assert!(explain("not-leader").unwrap().starts_with("NOT_LEADER"));
        assert!(explain("nonsense").is_none());
    }
}
