//! Stand-ins and assertions for tests of tierce; nothing here is part of the program.

mod fault;
mod front;
mod log;
mod registry;
mod server;
mod tls;
mod token;

pub use axum::http::{Method, StatusCode};
pub use fault::{Fault, Gate, LocationStyle};
pub use log::{Endpoint, Record, RequestLog};
pub use registry::{FakeRegistry, FakeRegistryBuilder, Redirect};
pub use token::{TokenField, TokenServer, TokenSettings};
