//! Why a command did not do what it was told, and the exit code that says so.

use std::io::{self, Write};
use std::process::ExitCode;

use timberline_client::{Error as ClientError, Reason};
use timberline_workload::Error as WorkloadError;

/// Exit code: it was tried and did not work.
pub(crate) const FAILED: u8 = 1;
/// Exit code: it was not tried, the command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// Exit code: it worked, and what it looked at is not well.
pub(crate) const UNHEALTHY: u8 = 3;
/// Exit code: no outcome in the time given.
pub(crate) const TIMED_OUT: u8 = 4;

/// Reasons that the client side gives, beside those of brokers ([`Reason`]), for `explain`.
pub(crate) const LOCAL_REASONS: &[(&str, &str, &str)] = &[
    (
        UNREACHABLE,
        "no broker answers at the address",
        "Start one with `timberline server`, or name another with --bootstrap HOST:PORT (TIMBERLINE_BOOTSTRAP).",
    ),
    (
        NO_ANSWER,
        "no answer in the time given; whether a change was made is unknown",
        "See `timberline cluster info`; then try again, or give it longer with --timeout.",
    ),
    (
        BAD_INPUT,
        "the input can't be turned into records",
        "Correct the input; the message names the line.",
    ),
    (
        OUTCOME_UNKNOWN,
        "records may or may not have been written",
        "Read the end of the partition: `timberline consume TOPIC --tail 10 --until-end`.",
    ),
    (
        DATA_DIR_IN_USE,
        "another process has the data directory open",
        "Stop that process, or choose another --data-dir.",
    ),
    (
        DATA_DIR_DAMAGED,
        "a part of the data directory without which it can't be opened is damaged",
        "Look at it with `timberline verify log --data-dir DIR`; nothing was changed.",
    ),
    (
        CONFIG_INVALID,
        "a key or value of the broker's configuration is wrong",
        "See `timberline explain SECTION.KEY`, or docs/configuration.md.",
    ),
    (
        ADDRESS_IN_USE,
        "the address can't be listened on",
        "Stop who listens there, or choose another with --grpc-listen or --http-listen.",
    ),
    (
        NOT_BUILT,
        "this part of the product is not built yet",
        "`timberline --help` lists what is.",
    ),
];

pub(crate) const UNREACHABLE: &str = "UNREACHABLE";
pub(crate) const NO_ANSWER: &str = "NO_ANSWER";
pub(crate) const BAD_INPUT: &str = "BAD_INPUT";
pub(crate) const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
pub(crate) const DATA_DIR_IN_USE: &str = "DATA_DIR_IN_USE";
pub(crate) const DATA_DIR_DAMAGED: &str = "DATA_DIR_DAMAGED";
pub(crate) const CONFIG_INVALID: &str = "CONFIG_INVALID";
pub(crate) const ADDRESS_IN_USE: &str = "ADDRESS_IN_USE";
pub(crate) const NOT_BUILT: &str = "NOT_BUILT";

/// A failure as it is reported.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    cause: String,
    reason: Option<&'static str>,
    next: Option<String>,
    /// Nobody wants to hear of it: standard output was closed.
    quiet: bool,
}

impl Failure {
    fn new(code: u8, cause: impl Into<String>) -> Failure {
        Failure {
            code,
            cause: cause.into(),
            reason: None,
            next: None,
            quiet: false,
        }
    }

    pub(crate) fn failed(cause: impl Into<String>) -> Failure {
        Failure::new(FAILED, cause)
    }

    pub(crate) fn usage(cause: impl Into<String>) -> Failure {
        Failure::new(USAGE, cause)
    }

    pub(crate) fn unhealthy(cause: impl Into<String>) -> Failure {
        Failure::new(UNHEALTHY, cause)
    }

    pub(crate) fn timed_out(cause: impl Into<String>) -> Failure {
        Failure::new(TIMED_OUT, cause).reason(NO_ANSWER)
    }

    pub(crate) fn not_built(cause: impl Into<String>) -> Failure {
        Failure::usage(cause).reason(NOT_BUILT)
    }

    /// Adds the reason code, and the advice that goes with it if there is none yet.
    pub(crate) fn reason(mut self, reason: &'static str) -> Failure {
        self.reason = Some(reason);
        if self.next.is_none() {
            let local = LOCAL_REASONS.iter().find(|(name, ..)| *name == reason);
            self.next = local.map(|(.., next)| (*next).to_owned());
        }
        self
    }

    /// Says what to try next.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Failure {
        self.next = Some(next.into());
        self
    }

    /// Puts what was being done before the cause.
    pub(crate) fn while_doing(mut self, what: &str) -> Failure {
        self.cause = format!("{what}: {}", self.cause);
        self
    }

    /// Prints it to standard error.
    pub(crate) fn report(&self) -> ExitCode {
        if self.quiet {
            return ExitCode::SUCCESS;
        }
        let mut text = format!("error: {}", self.cause.trim_end());
        if let Some(reason) = self.reason {
            text.push_str(&format!(" [{reason}]"));
        }
        if let Some(next) = &self.next {
            text.push_str(&format!("\n  next: {next}"));
        }
        // With standard error closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(self.code)
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match &error {
            ClientError::Api(api) => {
                let code = match api.reason {
                    Some(Reason::Timeout) => TIMED_OUT,
                    _ => FAILED,
                };
                let mut failure = Failure::new(code, api.message.clone());
                let unnamed = api.reason == Some(Reason::InvalidArgument);
                if let Some(field) = api.field.as_ref().filter(|_| unnamed) {
                    failure.cause = format!("{} (field {field})", failure.cause);
                }
                if let Some(reason) = api.reason {
                    failure = failure.next(reason.advice()).reason(reason.as_str());
                }
                failure
            }
            ClientError::Transport { address, message } => {
                Failure::failed(format!("cannot reach {address}: {message}")).reason(UNREACHABLE)
            }
            ClientError::Timeout { what, after } => {
                Failure::timed_out(format!("{what} got no answer within {after:?}"))
            }
            ClientError::DeliveryTimeout {
                outcome_unknown, ..
            } => {
                let failure = Failure::timed_out(error.to_string()).next(
                    "See `timberline cluster health` and `timberline partition list --troubled`; then try again, or give it longer with --timeout.",
                );
                if *outcome_unknown {
                    failure.reason(OUTCOME_UNKNOWN)
                } else {
                    failure
                }
            }
            ClientError::OutcomeUnknown { .. } => {
                Failure::failed(error.to_string()).reason(OUTCOME_UNKNOWN)
            }
            ClientError::InvalidRecord { .. } => Failure::failed(error.to_string()).reason(BAD_INPUT),
            ClientError::InvalidOption { .. } => Failure::usage(error.to_string()),
            ClientError::OffsetOutOfRange { log_start, high_watermark, offset, topic, partition } => {
                Failure::failed(format!(
                    "offset {offset} of {topic}/{partition} is out of range, there are offsets {log_start} to {high_watermark}"
                ))
                .next("Start --from beginning, --from end, or from an offset in the range.")
                .reason(Reason::OffsetOutOfRange.as_str())
            }
            ClientError::DataDamaged { .. } | ClientError::CorruptBatch { .. } => {
                Failure::failed(error.to_string())
                    .next("Read on behind the damage with `--skip-damaged`; `timberline verify log` lists all of it.")
                    .reason(Reason::DataDamaged.as_str())
            }
            _ => Failure::failed(error.to_string()),
        }
    }
}

impl From<WorkloadError> for Failure {
    fn from(error: WorkloadError) -> Failure {
        match error {
            WorkloadError::Client(error) => error.into(),
            WorkloadError::Invalid(what) => Failure::usage(what),
            WorkloadError::Starved { .. } => Failure::timed_out(error.to_string()).next(
                "Ask for fewer --records, or produce more: `timberline bench produce TOPIC --records N`.",
            ),
            _ => Failure::failed(error.to_string()),
        }
    }
}

/// Errors of standard output. Whoever closed it has seen enough.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let mut failure = Failure::failed(format!("writing to standard output: {error}"));
        failure.quiet = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_cause() {
        let timeout = ClientError::Timeout {
            what: "X".to_owned(),
            after: std::time::Duration::from_secs(1),
        };
        assert_eq!(Failure::from(timeout).code(), TIMED_OUT);
        let transport = ClientError::Transport {
            address: "a".to_owned(),
            message: "refused".to_owned(),
        };
        let failure = Failure::from(transport);
        assert_eq!(
            (failure.code(), failure.reason),
            (FAILED, Some(UNREACHABLE))
        );
        assert!(
            failure
                .next
                .is_some_and(|next| next.contains("timberline server"))
        );
        assert_eq!(
            Failure::from(WorkloadError::Invalid(String::new())).code(),
            USAGE
        );
    }
}
