//! The Invoke API over HTTP, and the environments behind it.
//!
//! ```text
//! client → door ── request: what is asked, or a fault ──→ pool → environment
//!               ←─ reply, or frames of an event stream ── progress ──┘
//! ```
//!
//! * `request` decides what a client asks, without doing any of it; `fault` is every way to say no;
//! * [`Pool`] has the environments: one invocation each, warm ones reused, idle ones ended;
//! * [`Door`] speaks HTTP as the service does, so that the AWS CLI and SDKs need nothing but
//!   `--endpoint-url`;
//! * [`client`] is the other side, for `tierce invoke`.

pub mod client;
mod door;
mod event_stream;
mod events;
mod fault;
mod payload;
mod pool;
mod reply;
mod request;

pub use door::{Door, DoorSettings, OpenDoorError};
pub use pool::{CannotStart, Invocable, MakeEnvironment, Pool, PoolSettings, Throttled};
