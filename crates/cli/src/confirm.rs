//! What destroys something is confirmed by typing its name.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// Asks for a name on standard error, and reads it from standard input, terminal or not. `noun` says what is named, e.g.
/// `topic's name`.
pub(crate) fn confirm(noun: &str, name: &str, what: &str) -> Result<(), Failure> {
    let mut errors = io::stderr();
    let _ = write!(errors, "Type the {noun} to {what} ({name}): ");
    let _ = errors.flush();
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    if !io::stdin().is_terminal() {
        let _ = writeln!(errors);
    }
    match read {
        Ok(0) | Err(_) => Err(Failure::usage(format!(
            "nobody typed the {noun}; nothing was changed"
        ))
        .next("Run it on a terminal, or with --yes.")),
        Ok(_) if line.trim_end_matches(['\r', '\n']) == name => Ok(()),
        Ok(_) => Err(Failure::failed(format!(
            "that is not the {noun}; nothing was changed"
        ))),
    }
}
