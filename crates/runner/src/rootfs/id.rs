//! Names of what is kept.

use std::path::{Path, PathBuf};

use tierce_oci::{DiffId, Digest, Hasher};

use super::Form;

/// Something that is kept: a directory with `files` and `note` in it, under a name that says all
/// that it depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    kind: Kind,
    name: String,
}

/// What is kept, by the name of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// A layer, unpacked.
    Layer,
    /// A layer whose files lie where symlinks of the layers below lead.
    Fitted,
    /// What hardlinks of a layer make of files of the layers below.
    Links,
    /// What a layer deletes of the layers below, in the form of overlayfs.
    Deletions,
    /// A directory to lie on top of layers.
    Scaffold,
    /// Layers and scaffold as one directory.
    Flat,
}

/// What has all kinds in it.
pub(super) const TREES: &str = "trees";

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Layer,
        Self::Fitted,
        Self::Links,
        Self::Deletions,
        Self::Scaffold,
        Self::Flat,
    ];

    /// The directory of its kind in the cache at `root`.
    pub(super) fn path(self, root: &Path) -> PathBuf {
        let name = match self {
            Self::Layer => "layers",
            Self::Fitted => "fitted",
            Self::Links => "links",
            Self::Deletions => "deletions",
            Self::Scaffold => "scaffolds",
            Self::Flat => "flat",
        };
        root.join(TREES).join(name)
    }
}

impl Id {
    pub(super) fn of_layer(diff_id: DiffId, form: Form) -> Self {
        Self {
            kind: Kind::Layer,
            name: format!("{}-{}", diff_id.0.hex(), form.letter()),
        }
    }

    /// Of what the last of these layers, lowest first, comes to above the others.
    pub(super) fn of_top(kind: Kind, layers: &[DiffId], form: Form) -> Self {
        Self::hashed(kind, layers, form, &[])
    }

    pub(super) fn of_scaffold(plan: &[u8]) -> Self {
        Self {
            kind: Kind::Scaffold,
            name: Digest::of(plan).hex(),
        }
    }

    pub(super) fn of_flat(layers: &[DiffId], form: Form, plan: &[u8]) -> Self {
        Self::hashed(Kind::Flat, layers, form, plan)
    }

    fn hashed(kind: Kind, layers: &[DiffId], form: Form, plan: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        for layer in layers {
            hasher.update(layer.0.as_bytes());
        }
        hasher.update(&[0, form.letter() as u8]);
        hasher.update(plan);
        Self {
            kind,
            name: hasher.finish().hex(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is in the cache at `root`.
    pub(super) fn path(&self, root: &Path) -> PathBuf {
        self.kind.path(root).join(&self.name)
    }
}
