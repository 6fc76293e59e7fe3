//! The crate from outside: files and archives in, layers out, read back with other readers.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be had in a test fails it, in its helpers too"
)]

mod archives;
mod caching;
mod golden;
mod hostile;
mod linking;
mod properties;
mod round_trip;
mod scanning;
mod sealing;
mod splitting;
mod support;
mod walking;
mod zips;
