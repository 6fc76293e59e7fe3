//! From the name of a base to its documents, by way of `tierce.lock`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use tierce_image::BaseImage;
use tierce_lambda::BaseFacts;
use tierce_oci::{Digest, Platform, Reference, Selector};

use crate::diagnostic::Hinted as _;
use crate::lock::LockFile;
use crate::output::Output;
use crate::places::Places;
use crate::transport::{BaseName, ImagePlace, store_selector};

/// How a build treats `tierce.lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockPolicy {
    /// Hold to what is pinned, pin what is not.
    Honour,
    /// Hold to what is pinned, and fail on anything that is not.
    Demand,
    /// Ask anew, and pin the answer.
    Update,
}

/// The lock file of one build.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Where it is; `None` when there is no `tierce.toml` that it could stand beside.
    path: Option<PathBuf>,
    policy: LockPolicy,
    before: LockFile,
    after: LockFile,
}

impl Lock {
    /// Reads the lock file at `path`.
    pub(crate) fn open(path: Option<PathBuf>, policy: LockPolicy) -> Result<Self> {
        let before = match &path {
            Some(path) => LockFile::read(path)?,
            None => LockFile::default(),
        };
        // An update begins anew: a platform that is no longer built is no longer pinned.
        let after = match policy {
            LockPolicy::Update => LockFile::default(),
            LockPolicy::Honour | LockPolicy::Demand => before.clone(),
        };
        Ok(Self {
            path,
            policy,
            before,
            after,
        })
    }

    /// The platforms for which `base` is pinned.
    pub(crate) fn platforms(&self, base: &BaseName) -> Vec<Platform> {
        let names = self.before.platforms(&base.text);
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// What is held to be true of the base with this digest.
    pub(crate) fn facts(&self, base: &BaseName, digest: &Digest) -> Option<&BaseFacts> {
        self.after.facts(&base.text, digest)
    }

    /// Holds `facts` to be true of the base with this digest, where there is a file that may say it.
    pub(crate) fn record(&mut self, base: &BaseName, digest: Digest, facts: BaseFacts) {
        if self.may_record() {
            self.after.record(&base.text, digest, facts);
        }
    }

    /// Whether what is recorded is written, and found by the next build.
    pub(crate) fn may_record(&self) -> bool {
        self.path.is_some() && self.policy != LockPolicy::Demand
    }

    /// Whether there is a file that could be more complete.
    pub(crate) fn has_file(&self) -> bool {
        self.path.is_some()
    }

    /// Writes the file, if anything in it changed; says so.
    pub(crate) fn save(mut self, base: &BaseName, output: Output) -> Result<()> {
        if base.place.is_none() {
            return Ok(());
        }
        self.after.retain(&base.text);
        let Some(path) = &self.path else {
            return Ok(());
        };
        if self.after != self.before {
            self.after.write(path)?;
            output.note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }
}

/// Reads the documents of `base` for `platform`; `None` for `scratch`.
///
/// A base named by tag is held to the digest in `lock`, and pinned there if it is not yet.
pub(crate) async fn resolve(
    base: &BaseName,
    platform: Option<&Platform>,
    lock: &mut Lock,
    places: &Places,
) -> Result<Option<BaseImage>> {
    let Some(place) = &base.place else {
        return Ok(None);
    };
    let fixed = matches!(selector(place), Some(Selector::Digest(_)));
    let pinned = match platform {
        Some(platform) if !fixed && lock.policy != LockPolicy::Update => {
            lock.before.pinned(&base.text, &platform.to_string())
        }
        _ => None,
    };
    if !fixed && pinned.is_none() && lock.policy == LockPolicy::Demand {
        let platform = platform.map_or_else(String::new, |platform| format!(" for {platform}"));
        return Err(anyhow::anyhow!(
            "--locked: tierce.lock does not pin `{}`{platform}",
            base.text
        )
        .hint(if lock.path.is_some() {
            "run `tierce lock` (or build once without --locked) and commit tierce.lock"
        } else {
            "a lock belongs to the base of a tierce.toml; another one can be named by digest: `--base NAME@sha256:…`"
        }));
    }
    let image = places
        .read_image(place, pinned, platform)
        .await
        .with_context(|| format!("could not read the base `{}`", base.text));
    let image = match (image, pinned) {
        (Err(error), Some(digest)) if !places.is_offline() => {
            return Err(error.hint(format!(
                "tierce.lock holds the base to {digest}; `tierce lock --update` takes what the tag stands for now"
            )));
        }
        (result, _) => result?,
    };
    if let Some(digest) = pinned
        && digest != image.digest()
    {
        // Only a place that cannot be asked by digest gets here.
        return Err(anyhow::anyhow!(
            "the base `{}` is {}, but tierce.lock holds it to {digest}",
            base.text,
            image.digest()
        )
        .hint("`tierce lock --update` takes the new one"));
    }
    if !fixed {
        let platform = image.platform().to_string();
        if pinned.is_none() {
            lock.after.pin(&base.text, platform, image.digest());
        }
    }
    if image.platform().os != "linux" {
        bail!(
            "the base `{}` is for {}: only linux images can be assembled",
            base.text,
            image.platform()
        );
    }
    Ok(Some(BaseImage {
        name: published_name(place),
        image,
    }))
}

/// The name that may stand in an image: only one of a registry, never a path of this machine.
fn published_name(place: &ImagePlace) -> Option<Reference> {
    match place {
        ImagePlace::Registry(reference) => Some(reference.clone()),
        _ => None,
    }
}

fn selector(place: &ImagePlace) -> Option<Selector> {
    match place {
        ImagePlace::Registry(reference) => Some(reference.selector()),
        ImagePlace::Store(reference) => Some(store_selector(reference)),
        ImagePlace::Layout { selector, .. } | ImagePlace::OciArchive { selector, .. } => {
            selector.clone()
        }
        ImagePlace::DockerArchive { .. } => None,
    }
}
