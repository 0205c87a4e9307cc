//! Reference pages that are generated from the code: they fail here when they drift from it.
//!
//! `UPDATE_DOCS=1 cargo test -p timberline-tests --test docs` rewrites them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod errors;

use std::path::Path;

/// Compares a page of `docs/` with what it should be, or rewrites it when asked to.
fn check(name: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, generated).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    let mut lines = generated.lines().zip(committed.lines());
    let differs = lines.find(|(now, then)| now != then);
    let (now, then) = differs.unwrap_or(("(its length)", "(its length)"));
    assert!(
        generated == committed,
        "docs/{name} is not what the code says; rewrite it with UPDATE_DOCS=1. First difference:\n  code {now}\n  page {then}"
    );
}

#[test]
fn errors_page_is_true() {
    check("errors.md", &errors::page());
}
