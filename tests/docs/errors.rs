//! `docs/errors.md`, from `timberline_proto::error::Reason`.

use std::fmt::Write;

use timberline_proto::error::{DOMAIN, Reason};

const INTRODUCTION: &str = "\
Every failure that a Timberline broker reports has a *reason*: a stable text that clients act on. It comes in
`google.rpc.ErrorInfo` of a gRPC status (with the domain below), or in `ItemError.reason` where one message answers for
many items. The code beside it is the gRPC status code. A reason may be added; none changes its meaning.

*Retriable* says that the same call may succeed later without being changed; `RetryInfo`, or `retry_after_ms`, says how
long to wait where the broker knows. The error's metadata holds facts for a program, such as `leader_id`.
";

/// The whole page.
pub(crate) fn page() -> String {
    let mut out = String::from(
        "<!-- Generated from crates/proto/src/error.rs: UPDATE_DOCS=1 cargo test -p timberline-tests --test docs -->\n\n",
    );
    writeln!(
        out,
        "# Error reasons\n\n{INTRODUCTION}\nDomain: `{DOMAIN}`\n"
    )
    .unwrap();
    out.push_str("| reason | gRPC code | retriable | what to do |\n|---|---|---|---|\n");
    for reason in Reason::ALL {
        let retriable = if reason.is_retriable() { "yes" } else { "no" };
        let advice = reason.advice().replace('|', "\\|");
        writeln!(
            out,
            "| `{reason}` | `{}` | {retriable} | {advice} |",
            code_name(*reason)
        )
        .unwrap();
    }
    out
}

/// The code as gRPC's documents spell it, `NOT_FOUND` for `NotFound`.
fn code_name(reason: Reason) -> String {
    let mut name = String::new();
    for (at, letter) in format!("{:?}", reason.code()).char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
