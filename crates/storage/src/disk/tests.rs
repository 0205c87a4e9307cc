//! One suite that both disks pass, and what only one of them can be asked.

mod conformance;
mod faults;
mod real;
