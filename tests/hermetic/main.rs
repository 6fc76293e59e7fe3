//! Tests of the whole program against stand-ins: no network, no tool but cargo.
//!
//! | module | what it asks |
//! |---|---|
//! | `architecture` | do the crates depend on each other as the design says |
//! | `build` | does the image hold what files, flags and base say |

mod architecture;
mod bad_input;
mod base_links;
mod build;
mod determinism;
mod inspect;
mod interruptions;
mod lock;
mod platforms;
mod registries;
mod support;
mod transports;
