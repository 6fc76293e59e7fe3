//! Names of images in registries.
//!
//! The grammar is Docker's (distribution/reference). It is parsed here and not by `oci-spec`, whose
//! parser refuses IPv6 hosts, takes upper-case repositories, and adds `latest` without telling
//! whether a tag was given.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, ParseDigestError};

/// Where Docker Hub's short names live.
const DOCKER_HUB: &str = "docker.io";

/// A repository of a registry: `public.ecr.aws/lambda/python`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// Host and optional port; `docker.io` for Docker Hub.
    pub registry: String,
    /// The path in the registry, `library/` included for Docker Hub's official images.
    pub path: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.path)
    }
}

/// A tag: up to 128 letters, digits, `_`, `.` and `-` (distribution-spec, "Pulling manifests").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag that a reference without one means.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A text that is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a tag: expected at most 128 letters, digits, `_`, `.` or `-`, not beginning with `.` or `-`"
)]
pub struct ParseTagError(pub String);

impl FromStr for Tag {
    type Err = ParseTagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let mut bytes = text.bytes();
        let valid = text.len() <= 128
            && bytes.next().is_some_and(word)
            && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseTagError(text.to_owned()))
        }
    }
}

/// What picks one manifest out of a repository or a layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// By a name that may move.
    Tag(Tag),
    /// By content.
    Digest(Digest),
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(formatter),
            Self::Digest(digest) => digest.fmt(formatter),
        }
    }
}

/// A name of an image: repository, and tag or digest or both or neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Registry and path.
    pub repository: Repository,
    /// The tag, if one was written.
    pub tag: Option<Tag>,
    /// The digest, if one was written.
    pub digest: Option<Digest>,
}

impl Reference {
    /// The tag, or `latest` when neither tag nor digest was written.
    pub fn effective_tag(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, None) => Some(Tag::latest()),
            (None, Some(_)) => None,
        }
    }

    /// What to ask the registry for: the digest when there is one, for it cannot move.
    pub fn selector(&self) -> Selector {
        match &self.digest {
            Some(digest) => Selector::Digest(*digest),
            None => Selector::Tag(self.tag.clone().unwrap_or_else(Tag::latest)),
        }
    }

    /// The same name, held to `digest`.
    pub fn pinned(&self, digest: Digest) -> PinnedReference {
        PinnedReference {
            repository: self.repository.clone(),
            tag: self.tag.clone(),
            digest,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(formatter)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

/// A name of an image that cannot move: shown as `repository@digest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedReference {
    /// Registry and path.
    pub repository: Repository,
    /// The tag under which it was found or put, for people; not shown.
    pub tag: Option<Tag>,
    /// The manifest's digest.
    pub digest: Digest,
}

impl fmt::Display for PinnedReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.repository, self.digest)
    }
}

/// Why a text is not a reference. Every variant carries the whole text first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// No text, or white space in it.
    #[error("`{0}` is not an image reference: it is empty or has white space")]
    Blank(String),
    /// The host is not a host name or address with an optional port.
    #[error(
        "`{reference}` names the registry `{host}`, which is not a host name with an optional port"
    )]
    BadRegistry {
        /// The whole text.
        reference: String,
        /// Its host part.
        host: String,
    },
    /// The repository has upper-case letters, the mistake most often made.
    #[error(
        "`{reference}` has upper-case letters in its repository `{path}`: repositories are lower-case"
    )]
    UpperCase {
        /// The whole text.
        reference: String,
        /// Its repository part.
        path: String,
    },
    /// The repository breaks the grammar in another way.
    #[error(
        "`{reference}` has the repository `{path}`, which is not lower-case words joined by `.`, `_`, `-` and `/`"
    )]
    BadRepository {
        /// The whole text.
        reference: String,
        /// Its repository part.
        path: String,
    },
    /// The tag breaks the grammar.
    #[error("`{0}` has a bad tag")]
    BadTag(String, #[source] ParseTagError),
    /// The digest breaks the grammar.
    #[error("`{0}` has a bad digest")]
    BadDigest(String, #[source] ParseDigestError),
    /// `scratch` is the absence of an image.
    #[error("`scratch` is the empty base, not an image in a registry")]
    Scratch,
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.chars().any(char::is_whitespace) {
            return Err(ParseReferenceError::Blank(text.to_owned()));
        }
        if text == "scratch" {
            return Err(ParseReferenceError::Scratch);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|error| ParseReferenceError::BadDigest(text.to_owned(), error))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it belongs to a port.
        let path_start = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[path_start..].rfind(':') {
            Some(colon) => {
                let colon = path_start + colon;
                let tag = name[colon + 1..]
                    .parse()
                    .map_err(|error| ParseReferenceError::BadTag(text.to_owned(), error))?;
                (&name[..colon], Some(tag))
            }
            None => (name, None),
        };
        let repository = parse_repository(text, name)?;
        Ok(Self {
            repository,
            tag,
            digest,
        })
    }
}

/// Splits host from path the way Docker does: the first component is a host when it has a dot, a
/// port, or is `localhost`. (Docker also takes `Foo/bar` for a host `Foo`; it is far more often a
/// repository in the wrong case, and is refused as one.)
fn parse_repository(reference: &str, name: &str) -> Result<Repository, ParseReferenceError> {
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':', '[']) || host == "localhost" => {
            if !is_host(host) {
                return Err(ParseReferenceError::BadRegistry {
                    reference: reference.to_owned(),
                    host: host.to_owned(),
                });
            }
            (host.to_ascii_lowercase(), path)
        }
        _ => (DOCKER_HUB.to_owned(), name),
    };
    let registry = match registry.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        _ => registry,
    };
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ParseReferenceError::UpperCase {
            reference: reference.to_owned(),
            path: path.to_owned(),
        });
    }
    // 255 is Docker's limit for host and path together; ECR allows 256 for the path alone.
    if path.len() > 255 || !path.split('/').all(is_path_component) {
        return Err(ParseReferenceError::BadRepository {
            reference: reference.to_owned(),
            path: path.to_owned(),
        });
    }
    let path = if registry == DOCKER_HUB && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    Ok(Repository { registry, path })
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port != 0)
        && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution-spec, "Pulling manifests").
fn is_path_component(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes
        .split(word)
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
        })
}

macro_rules! serde_as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Tag, Reference, Repository);

impl FromStr for Repository {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_repository(text, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_like_docker() {
        let digest = Digest::of(b"");
        let with_digest = format!("ghcr.io/a/b:1@{digest}");
        for (text, registry, path, tag) in [
            ("alpine", "docker.io", "library/alpine", None),
            ("alpine:3.20", "docker.io", "library/alpine", Some("3.20")),
            ("my-host/foo", "docker.io", "my-host/foo", None),
            (
                "index.docker.io/alpine",
                "docker.io",
                "library/alpine",
                None,
            ),
            ("localhost/foo", "localhost", "foo", None),
            ("localhost:5000/foo:a", "localhost:5000", "foo", Some("a")),
            ("127.0.0.1:5000/a/b__c", "127.0.0.1:5000", "a/b__c", None),
            ("[::1]:5000/a/b:T.1", "[::1]:5000", "a/b", Some("T.1")),
            (
                "public.ecr.aws/lambda/python:3.12",
                "public.ecr.aws",
                "lambda/python",
                Some("3.12"),
            ),
            (with_digest.as_str(), "ghcr.io", "a/b", Some("1")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.repository.registry, registry, "{text}");
            assert_eq!(reference.repository.path, path, "{text}");
            assert_eq!(reference.tag.as_ref().map(Tag::as_str), tag, "{text}");
            let shown = reference.to_string();
            assert_eq!(shown.parse::<Reference>().unwrap(), reference, "{shown}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        let long = format!("ghcr.io/{}", "a".repeat(256));
        let long_tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            " ",
            "a b",
            "scratch",
            "Foo/bar",
            "a.b/Foo",
            "a.b/",
            "a.b//c",
            "a.b/c..d",
            "a.b/-c",
            "a.b/c___d",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@b@c",
            "a.b:0/c",
            "a.b:99999/c",
            "[::x]/c",
            "-a.b/c",
            "a.b:+80/c",
            "http://a.b/c",
            "a.b/../c",
            &long,
            &long_tag,
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(
                error.to_string().contains(&format!("`{text}`")),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn latest_is_only_meant_where_nothing_is_written() {
        let plain: Reference = "a".parse().unwrap();
        assert_eq!(plain.selector(), Selector::Tag(Tag::latest()));
        let digest = Digest::of(b"");
        let pinned: Reference = format!("a:1@{digest}").parse().unwrap();
        assert_eq!(pinned.selector(), Selector::Digest(digest));
        let by_digest: Reference = format!("a@{digest}").parse().unwrap();
        assert_eq!(by_digest.effective_tag(), None);
    }
}
