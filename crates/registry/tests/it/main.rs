//! The client against a registry that does what tests tell it to.

mod auth;
mod connection;
mod control;
mod hosts;
mod matrix;
mod mirrors;
mod pace;
mod pull;
mod push;
mod referrers;
mod secrets;
mod support;
mod upload;
