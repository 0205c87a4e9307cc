//! The core by example, and by many random histories (`simulation`).

mod examples;
mod simulation;
mod world;
