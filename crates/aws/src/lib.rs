//! What AWS is: ECR's tokens and repositories, on the AWS SDK.
//!
//! [`Aws`] is the way to it: as whom, and by which way. Nothing of it is set up before something of
//! AWS is needed. On it stand:
//!
//! * [`EcrCredentials`], which gives a registry client the tokens that ECR's registries want,
//! * [`EcrControl`], which tells it of repositories what the registry API does not,
//! * [`Repositories`], which makes and tidies repositories for people,
//! * [`Functions`], which tells what functions run, and
//! * [`Caller`], the credentials themselves, for a function that runs here.
//!
//! [`EcrHost`] says which registries are ECR's, and [`manners()`] what ways they have.

mod caller;
mod control;
mod credentials;
mod error;
mod functions;
mod host;
mod http;
mod manners;
mod prune;
mod repositories;
mod session;
mod time;
mod wildcard;

pub use caller::Caller;
pub use control::{CreateMissing, EcrControl};
pub use credentials::{EcrCredentials, EcrRegistry, Login};
pub use error::{AwsError, Refused, Told};
pub use functions::{Functions, UnknownImage, Use, digests_in_use};
pub use host::{EcrHost, is_public_ecr};
pub use manners::manners;
pub use prune::{DeleteReason, Deletion, KeepReason, Kept, PrunePlan, PruneRules};
pub use repositories::{
    CreateError, DeleteReport, Encryption, Failure, Image, LifecyclePolicy, LifecyclePolicyError,
    Made, Mutability, Repositories, RepositoryDescription, RepositoryWishes,
};
pub use session::{Aws, AwsSettings, Identity};
pub use wildcard::Wildcard;
