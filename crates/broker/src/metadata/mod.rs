//! The cluster's metadata: a log of commands (group 0), replayed into a table.
//!
//! - `table` is pure: command in, new state out, the same on every replica.
//! - `epochs` is the part of the table that says which producer epochs were granted.
//! - `plan` is pure too: a caller's wish and a table in, a command or a typed error out.
//! - `placement` says where replicas go: racks, levels, preferred leaders. `moves` says which should be elsewhere,
//!   `growth` which should be more, `leaders` who should lead, and what stopping a broker would cost. All of them pure.
//! - `control` sums up what is due; `leadership` is the soft state beside it: who leads, is in sync, lives.
//! - `frontend` puts the two behind the log: it checks against what is already proposed, proposes, waits.
//! - `backend` follows the committed entries: table, local logs, directory.
//!
//! Absence is not deletion: a replica on disk that the table does not know is left alone, counted and logged; only a
//! tombstone with its id deletes one.

pub(crate) mod backend;
pub(crate) mod control;
mod epochs;
pub(crate) mod frontend;
mod growth;
pub(crate) mod leaders;
pub(crate) mod leadership;
pub(crate) mod moves;
mod placement;
pub(crate) mod plan;
pub(crate) mod table;

#[cfg(test)]
mod tests;
