//! Names in the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tierce_oci::{Digest, ParseReferenceError, Reference, Tag};

/// File names have at most 255 bytes on every file system of note.
const MAX_FILE_NAME: usize = 255;

/// The name of images in the store: `hello`, `team/hello`, or a repository of a registry.
///
/// The grammar is that of repositories, the text is kept as it is: `hello` is not Docker Hub's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreName(String);

impl StoreName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one component of a path.
    pub(super) fn to_file_name(&self) -> String {
        use std::fmt::Write as _;
        let mut name = String::new();
        for byte in self.0.bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => name.push(char::from(byte)),
                _ => write!(name, "%{byte:02x}").expect("writing to a string cannot fail"),
            }
        }
        if name.len() > MAX_FILE_NAME {
            name = format!("~{}", Digest::of(self.0.as_bytes()).hex());
        }
        name
    }
}

impl fmt::Display for StoreName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A name in the store with tag or digest, as in `store:team/hello:1.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreReference {
    /// The name.
    pub name: StoreName,
    /// The tag, if one was written.
    pub tag: Option<Tag>,
    /// The digest, if one was written.
    pub digest: Option<Digest>,
}

/// A text that names nothing in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseStoreReferenceError {
    /// It breaks the grammar of references.
    #[error("`{0}` is not a name in the store")]
    BadReference(String, #[source] ParseReferenceError),
    /// A tag or digest where only a name can be.
    #[error("`{0}` has a tag or digest where a name alone is expected")]
    NotAName(String),
}

impl FromStr for StoreReference {
    type Err = ParseStoreReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let reference: Reference = text
            .parse()
            .map_err(|error| ParseStoreReferenceError::BadReference(text.to_owned(), error))?;
        let name = text.split('@').next().unwrap_or(text);
        let name = match &reference.tag {
            Some(tag) => name
                .strip_suffix(tag.as_str())
                .and_then(|name| name.strip_suffix(':'))
                .unwrap_or(name),
            None => name,
        };
        Ok(Self {
            name: StoreName(name.to_owned()),
            tag: reference.tag,
            digest: reference.digest,
        })
    }
}

impl fmt::Display for StoreReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(formatter)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for StoreName {
    type Err = ParseStoreReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let reference: StoreReference = text.parse()?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(ParseStoreReferenceError::NotAName(text.to_owned()));
        }
        Ok(reference.name)
    }
}

impl Serialize for StoreName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StoreName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_and_more() {
        let digest = Digest::of(b"");
        let long = format!("localhost:5000/a@{digest}");
        let both = format!("a:1@{digest}");
        for (text, name, tag) in [
            ("hello", "hello", None),
            ("hello:1.0", "hello", Some("1.0")),
            ("team/hello", "team/hello", None),
            ("localhost:5000/a/b:x", "localhost:5000/a/b", Some("x")),
            (&long, "localhost:5000/a", None),
            (&both, "a", Some("1")),
        ] {
            let reference: StoreReference = text.parse().unwrap();
            assert_eq!(reference.name.as_str(), name);
            assert_eq!(reference.tag.as_ref().map(Tag::as_str), tag);
            assert_eq!(reference.digest.is_some(), text.contains('@'));
            assert_eq!(reference.to_string(), text);
        }
        for text in ["", "a b", "../x", "/x", "A", "a:", "x/..", "scratch"] {
            assert!(text.parse::<StoreReference>().is_err(), "{text}");
        }
        assert!("hello:1".parse::<StoreName>().is_err());
    }

    #[test]
    fn a_file_name_is_one_component_and_never_too_long() {
        let name = |text: &str| text.parse::<StoreName>().unwrap().to_file_name();
        assert_eq!(name("hello.x_y-z"), "hello.x_y-z");
        assert_eq!(name("team/hello"), "team%2fhello");
        assert_eq!(name("[::1]:5000/a"), "%5b%3a%3a1%5d%3a5000%2fa");
        let long = name(&["a"; 120].join("/"));
        assert_eq!(long.len(), 65);
        assert!(long.starts_with('~'));
    }
}
