//! A local Lambda: an image's function, run here as the service would run it.
//!
//! ```text
//! layers → rootfs → Root ─┐
//! function.rs → Function ─┼→ sandbox → Sandbox ─→ environment → Environment ─→ invoke → HTTP
//!                         ┘   processes            Runtime API      one function,   many environments,
//!                             and nothing else     extensions       one at a time   as clients expect
//! ```
//!
//! * [`rootfs`] makes a root filesystem of the layers of an image;
//! * [`sandbox`] runs processes in it and knows nothing of Lambda;
//! * [`environment`] is one execution environment: it starts extensions and the runtime in a sandbox,
//!   serves them the Runtime API, and takes one invocation after the other;
//! * [`invoke`] is the door: the Invoke API over as many environments as are needed.

pub mod environment;
pub mod function;
pub mod invoke;
pub mod rootfs;
pub mod sandbox;
