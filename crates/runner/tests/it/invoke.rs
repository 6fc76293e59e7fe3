//! The door and the pool, before environments that do what the event says.

mod http;
mod pool;
mod stage;
