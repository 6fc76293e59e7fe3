//! The places on disk, from outside: round trips, hostile input, interruptions, and other tools.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod common;
mod hostile;
mod interruptions;
mod packs;
mod places;
mod real;
