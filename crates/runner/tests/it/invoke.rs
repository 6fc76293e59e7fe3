//! The door and the pool, before environments that do what the event says.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod http;
mod pool;
mod stage;
