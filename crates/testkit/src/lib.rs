//! Stand-ins and assertions for tests of tierce; nothing here is part of the program.
//!
//! [`FakeRegistry`] is a registry in the test's own process that does everything right until a
//! [`Fault`] tells it otherwise or a switch of its builder lends it the quirks of another registry,
//! and whose [`RequestLog`] shows what travelled. [`FakeEcr`] is one with the APIs of AWS beside it.
//! [`images`] makes bases to build on, [`elf`] programs to put there and [`mod@zip`] zips, [`check`]
//! judges what came out, [`tree`] shows the files, [`sandbox`] runs the program away from the
//! machine's own settings, and [`process`] starts the real programs that the tests with real parts
//! need. Nothing shares code with the crates under test but the digest type.
//!
//! ```
//! use tierce_testkit::check::{Checker, assert_clean};
//! use tierce_testkit::images::{Format, merged_usr_base};
//! use tierce_testkit::{FakeRegistry, Fault, Method};
//!
//! let registry = FakeRegistry::start();
//! merged_usr_base(Format::Oci, "arm64").put(&registry, "bases/tiny", Some("1"));
//! registry.inject(Fault::disconnect_after_receiving(100).on(Method::PUT, "/blobs/uploads/"));
//!
//! // Here the code under test pushes to `registry.host()`; then:
//! assert_eq!(registry.log().blob_bytes_received(), 0);
//! assert_eq!(registry.log().count(Method::HEAD, "/manifests/"), 0);
//! assert_clean(&Checker::new().registry(&registry, "bases/tiny", "1"));
//! ```

mod between;
pub mod check;
pub mod ecr;
pub mod elf;
mod fault;
mod front;
pub mod images;
mod incoming;
mod limit;
mod log;
mod password;
pub mod process;
mod registry;
pub mod sandbox;
mod server;
mod tls;
mod token;
pub mod tree;
pub mod zip;

pub use axum::http::{Method, StatusCode};
pub use between::{Proxy, TlsEnd};
pub use ecr::FakeEcr;
pub use fault::{Fault, Gate, LocationStyle};
pub use limit::RateLimit;
pub use log::{Endpoint, Record, RequestLog};
pub use registry::{FakeRegistry, FakeRegistryBuilder, MissingRepository, Offsets, Redirect};
pub use token::{TokenField, TokenServer, TokenSettings};
