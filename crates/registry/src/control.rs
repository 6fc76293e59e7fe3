//! What a registry's management API knows and does, beside the registry API itself.

use std::fmt;

use futures_util::future::BoxFuture;
use tierce_image::BoxError;
use tierce_oci::{Repository, Tag};

/// The management of repositories, where a registry has one that we can speak to.
///
/// It is asked when the registry API leaves something open, and all its questions are best effort:
/// who may push need not be allowed to ask.
pub trait ControlPlane: fmt::Debug + Send + Sync {
    /// Whether there is such a repository; `None` when that cannot be told.
    fn exists<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Option<bool>>;

    /// Whether `tag`, once it is there, stays with its digest for ever; `None` when that cannot be
    /// told.
    fn is_immutable<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
    ) -> BoxFuture<'a, Option<bool>>;

    /// Makes a missing repository when its user wants that: `false` when it is not to be made here.
    fn create<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Result<bool, BoxError>>;
}

/// Knows of no management API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmanaged;

impl ControlPlane for Unmanaged {
    fn exists<'a>(&'a self, _: &'a Repository) -> BoxFuture<'a, Option<bool>> {
        Box::pin(async { None })
    }

    fn is_immutable<'a>(&'a self, _: &'a Repository, _: &'a Tag) -> BoxFuture<'a, Option<bool>> {
        Box::pin(async { None })
    }

    fn create<'a>(&'a self, _: &'a Repository) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async { Ok(false) })
    }
}
