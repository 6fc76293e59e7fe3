//! What is remembered of a layer beside its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::tree::Attributes;

/// A path as bytes, written as text in which each character stands for a byte: lossless, and
/// readable where the path is ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NotePath(pub(super) Vec<u8>);

impl std::borrow::Borrow<[u8]> for NotePath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for NotePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().copied().map(char::from).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for NotePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = NotePath;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a path whose characters stand for bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<NotePath, E> {
                let bytes: Result<_, _> = text.chars().map(u8::try_from).collect();
                bytes.map(NotePath).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text).map_err(D::Error::custom)
    }
}

/// What is remembered of a layer beside its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Directories that no member of the archive describes: they are only there because something
    /// is in them, and have the attributes that the layers below give them.
    pub(super) undescribed: BTreeSet<NotePath>,
    /// Directories whose owner may not do everything in them. They have another mode on disk, so
    /// that they can be linked from and removed; where they are seen they get this one.
    pub(super) closed: BTreeMap<NotePath, Attributes>,
    /// Paths at which nothing of the layers below is seen.
    pub(super) whiteouts: BTreeSet<NotePath>,
    /// Directories of the layers below in which nothing is seen.
    pub(super) emptied: BTreeSet<NotePath>,
    /// Hardlinks to what only layers below have.
    pub(super) links: BTreeMap<NotePath, NotePath>,
    /// Why overlayfs cannot be told what is deleted, if it cannot.
    pub(super) not_for_overlay: Option<String>,
    /// What the archive had that no root gets.
    pub(super) skipped: u64,
    /// Bytes of the files.
    pub(super) bytes: u64,
    /// How many files, symlinks, links and directories.
    pub(super) entries: u64,
}
