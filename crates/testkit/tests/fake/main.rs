//! Drives the fake servers with a plain HTTP client: what they promise, they keep.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod ecr;
mod plain;
mod quirks;
mod registry;
