//! What is known of a layer once it has been read, so that it need not be read again.
//!
//! [`LayerFacts`] are plain values of the layer's bytes alone: no rule, no base and no other layer
//! plays a part in them, so they can be kept by the layer's digest. They are written as JSON with a
//! version; what another version wrote is read again from the layer.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bytecode::BytecodeFacts;
use crate::elf::ElfFacts;

/// Counts up whenever facts say more or something else than before.
pub const FACTS_VERSION: u32 = 2;

/// All that rules ask of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    version: u32,
    /// Bytes of the uncompressed archive.
    pub uncompressed_size: u64,
    /// How the blob really is compressed.
    pub packing: Packing,
    /// The entries in the order of the archive.
    pub entries: Vec<EntryFacts>,
    /// Whether so much was to be said of contents that some of it was left out.
    #[serde(default, skip_serializing_if = "is_false")]
    leaves_contents_out: bool,
}

impl LayerFacts {
    /// Joins what was found.
    pub fn new(uncompressed_size: u64, packing: Packing, entries: Vec<EntryFacts>) -> Self {
        Self {
            version: FACTS_VERSION,
            uncompressed_size,
            packing,
            entries,
            leaves_contents_out: false,
        }
    }

    pub(crate) fn with_contents_left_out(mut self, left_out: bool) -> Self {
        self.leaves_contents_out = left_out;
        self
    }

    /// Whether what is not said of an entry's content may be said elsewhere.
    pub(crate) fn leaves_contents_out(&self) -> bool {
        self.leaves_contents_out
    }

    /// Reads what [`Self::to_json`] wrote; `None` when this version did not.
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let facts: Self = serde_json::from_slice(bytes).ok()?;
        (facts.version == FACTS_VERSION).then_some(facts)
    }

    /// The facts as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are strings and all values have a form in JSON")
    }
}

/// How a blob is compressed, as its first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Not at all.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryFacts {
    /// Where it is, from the root on.
    #[serde(rename = "p")]
    pub path: RawPath,
    /// What it is.
    #[serde(rename = "k")]
    pub kind: EntryKind,
    /// Permissions, with setuid, setgid and sticky.
    #[serde(rename = "m")]
    pub mode: u32,
    /// The owner.
    #[serde(rename = "u", default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// The group.
    #[serde(rename = "g", default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Bytes of its content.
    #[serde(rename = "s", default, skip_serializing_if = "is_zero_64")]
    pub size: u64,
    /// When it was changed, in seconds of Unix time.
    #[serde(rename = "t", default)]
    pub modified: i64,
    /// What its content is, where that matters.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ContentFacts>,
    /// Whether the content names the Runtime API, as clients of it do.
    #[serde(rename = "r", default, skip_serializing_if = "is_false")]
    pub speaks_runtime_api: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero_64(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symlink with its target.
    Symlink(RawPath),
    /// Another name of an earlier file.
    Hardlink(RawPath),
    /// The removal of this path from the layers below.
    Whiteout,
    /// The removal of all that the layers below have in this directory, which may be the root.
    Opaque,
    /// A device, FIFO or something else that is no file.
    Other(String),
}

/// What a file's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentFacts {
    /// A program or library of Linux.
    Elf(Box<ElfFacts>),
    /// A program or library of another system, by the name of its format.
    Foreign(String),
    /// A script with the words of its `#!` line.
    Script(Vec<String>),
    /// Compiled Python.
    Bytecode(BytecodeFacts),
    /// The platform tags that a wheel was made for.
    Wheel(Vec<String>),
    /// Short text: the configuration of the loader.
    Text(String),
}

/// A path in an image as bytes, without a slash in front.
///
/// In JSON it is a string; what is not UTF-8 is escaped there, and so is the backslash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawPath(Box<[u8]>);

impl RawPath {
    /// Takes bytes as they are.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The path as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        name_of(&self.0)
    }

    /// The directory that holds it, `None` when that is the root.
    pub fn parent(&self) -> Option<&[u8]> {
        parent_of(&self.0)
    }
}

/// The last component of a path.
pub(crate) fn name_of(path: &[u8]) -> &[u8] {
    let start = path.iter().rposition(|&byte| byte == b'/');
    &path[start.map_or(0, |slash| slash + 1)..]
}

/// The directory that holds a path, `None` when that is the root.
pub(crate) fn parent_of(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().rposition(|&byte| byte == b'/')?;
    Some(&path[..slash])
}

impl From<&str> for RawPath {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl fmt::Debug for RawPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", escaped(&self.0))
    }
}

impl fmt::Display for RawPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

fn escaped(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('\\') {
            bytes.push(b'\\');
            rest = after;
        } else {
            let digits = rest.strip_prefix('x')?;
            bytes.push(u8::from_str_radix(digits.get(..2)?, 16).ok()?);
            rest = &digits[2..];
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escaped(&self.0))
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = unescaped(&text).ok_or_else(|| de::Error::custom("a path is badly escaped"))?;
        Ok(Self(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_another_version_are_not_believed() {
        let entry = EntryFacts {
            path: RawPath::new(*b"a\\b\xff/c"),
            kind: EntryKind::Symlink(RawPath::from("x")),
            mode: 0o777,
            uid: 0,
            gid: 0,
            size: 0,
            modified: 1,
            content: Some(ContentFacts::Script(vec!["/bin/sh".to_owned()])),
            speaks_runtime_api: false,
        };
        let facts = LayerFacts::new(1024, Packing::Gzip, vec![entry]);
        let json = facts.to_json();
        assert_eq!(LayerFacts::from_json(&json), Some(facts));
        let text = String::from_utf8(json).unwrap();
        let other = text.replacen(&format!("\"version\":{FACTS_VERSION}"), "\"version\":0", 1);
        assert_eq!(LayerFacts::from_json(other.as_bytes()), None);
        assert_eq!(LayerFacts::from_json(b"{"), None);
    }

    #[test]
    fn every_path_survives_json() {
        for path in [
            &b"a/b"[..],
            b"",
            b"\\",
            b"\\xff",
            b"\xff\\x41",
            "é\n".as_bytes(),
        ] {
            let raw = RawPath::new(path);
            let json = serde_json::to_string(&raw).unwrap();
            assert_eq!(serde_json::from_str::<RawPath>(&json).unwrap(), raw);
        }
        assert!(serde_json::from_str::<RawPath>("\"\\\\q\"").is_err());
    }
}
