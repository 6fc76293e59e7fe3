//! Functions that run here: `tierce run` and `tierce invoke`, without their last step.
//!
//! ```text
//! arguments → Surroundings ──────────┐
//! folder ──→ build ─┐                ├→ Function ─┐
//! name ────→ place ─┴→ Image ────────┤            ├→ Session: a pool of environments behind a door
//!                        └─ layers ──┴→ Root ─────┘
//! ```
//!
//! * [`prepare`] gets from what is written to what can run, and [`watch`] says when to do it again;
//! * [`session`] keeps it running; [`log`](mod@log) shows what it says;
//! * [`sample`] has the events of AWS's services.

pub(crate) mod arguments;
mod env_file;
pub(crate) mod function;
mod image_config;
mod log;
mod platform;
pub(crate) mod prepare;
pub(crate) mod root;
mod runtime;
pub(crate) mod sample;
pub(crate) mod session;
pub(crate) mod watch;
