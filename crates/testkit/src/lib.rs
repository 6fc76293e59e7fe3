//! Stand-ins and assertions for tests of tierce; nothing here is part of the program.

pub mod check;
mod fault;
mod front;
pub mod images;
mod log;
pub mod process;
mod registry;
pub mod sandbox;
mod server;
mod tls;
mod token;
pub mod tree;

pub use axum::http::{Method, StatusCode};
pub use fault::{Fault, Gate, LocationStyle};
pub use log::{Endpoint, Record, RequestLog};
pub use registry::{FakeRegistry, FakeRegistryBuilder, Redirect};
pub use token::{TokenField, TokenServer, TokenSettings};
