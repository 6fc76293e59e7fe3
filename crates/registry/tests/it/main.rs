//! The client against a registry that does what tests tell it to.

mod auth;
mod connection;
mod hosts;
mod mirrors;
mod pull;
mod push;
mod secrets;
mod support;
