//! Images over the registry HTTP API.
//!
//! A [`Client`] is made once and gives a [`RepositoryClient`] for each repository, which is an
//! [`ImageSource`](tierce_image::ImageSource) and an [`ImageSink`](tierce_image::ImageSink).
//! [`tierce_image::write()`] does the walking; here is what one step of it costs:
//!
//! * is the manifest there: one HEAD;
//! * is a blob there: one HEAD; else, when another repository of the same registry has it, one POST
//!   that mounts it; else one POST and one PUT that send it;
//! * the manifest: one PUT.
//!
//! The first request to a registry that wants to know who we are costs one more, and one to its
//! token server. Blobs of other registries are read by [`Client::open_blob`] while they are sent, and
//! land on no disk.
//!
//! ```
//! use tierce_registry::{Client, ClientSettings};
//!
//! let client = Client::new(ClientSettings::default())?;
//! let repository = client.repository(&"public.ecr.aws/lambda/python".parse()?);
//! // tierce_image::read_image(&repository, …).await
//! assert_eq!(repository.repository().path, "lambda/python");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod auth;
mod certificates;
mod challenge;
mod client;
mod control;
mod credentials;
mod endpoint;
mod error;
mod hosts;
mod manners;
mod mirror;
mod pull;
mod push;
mod retry;
mod secret;
mod settings;
mod transport;

pub use client::{Client, RepositoryClient};
pub use control::{ControlPlane, Unmanaged};
pub use credentials::{
    Anonymous, BadConfig, ConfigFiles, CredentialFilesError, CredentialKind, CredentialSource,
    Credentials, FirstOf, HelperError,
};
pub use endpoint::{BadRegistryName, Distrust, Endpoint, PlainHttp, Scheme};
pub use error::{
    Answer, BadAnswer, Cause, ConnectionFailure, Problem, Refusal, RegistryError, Reported,
    RequestLine, Step,
};
pub use hosts::{BadAddress, ClientCertificate, HostSettings, Hosts};
pub use manners::{Manners, Pace};
pub use retry::{RetryPolicy, Tally};
pub use secret::Secret;
pub use settings::{ClientSettings, SettingsError, Timeouts};
