//! The journal: one prewritten ring per data directory, one sync per cycle, however many partitions it touches.
//!
//! Invariants: a cycle is written only after the one before it is synced; it carries boot number and sequence, so
//! that nothing of an older lap is taken for it; a lap is freed when both checkpoint tables cover it.
//!
//! Not here: which records a cycle holds (`cycles`), and what they mean when they are read again (`recovery`).

pub(crate) mod cycle;
pub(crate) mod ring;
