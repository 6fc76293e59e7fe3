//! The operating system and processor that an image is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor architecture, in Go's names as the image specification has
/// them (`linux/amd64`, `linux/arm64`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` for everything that Lambda runs.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, …; absent when the architecture has one meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// `linux/<architecture>`, with the usual other names of the architecture understood.
    pub fn linux(architecture: &str) -> Self {
        let (architecture, variant) = normalise(architecture, None);
        Self {
            os: "linux".to_owned(),
            architecture,
            variant,
        }
    }

    /// The platform that a document states, in the one spelling that compares and prints the same:
    /// `arm64` with the variant `v8`, as Docker's official images say it, is `arm64`.
    pub fn stated(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.filter(|variant| !variant.is_empty());
        let (architecture, variant) = normalise(architecture, variant);
        Self {
            os: os.to_owned(),
            architecture,
            variant,
        }
    }

    /// Whether an image for `offered` runs where `self` was asked for.
    ///
    /// A missing variant is taken as the architecture's usual one (`v8` for arm64, `v7` for arm).
    pub fn accepts(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && self.usual_variant() == offered.usual_variant()
    }

    fn usual_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None) => Some("v8"),
            ("arm", None) => Some("v7"),
            ("amd64", None) => Some("v1"),
            (_, variant) => variant,
        }
    }
}

fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.map(str::to_owned);
    match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", Some("v1") | None) => ("amd64".to_owned(), None),
        ("x86_64" | "x86-64", _) => ("amd64".to_owned(), variant),
        ("aarch64" | "arm64", Some("v8") | None) => ("arm64".to_owned(), None),
        ("aarch64", _) => ("arm64".to_owned(), variant),
        ("armhf" | "armv7l", None) => ("arm".to_owned(), Some("v7".to_owned())),
        ("i386", _) => ("386".to_owned(), variant),
        (other, _) => (other.to_owned(), variant),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: expected `linux/amd64`, `linux/arm64`, `x86_64` or `arm64`")]
pub struct ParsePlatformError(pub String);

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParsePlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let known_part = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte)
                })
        };
        if !parts.iter().all(known_part) {
            return Err(bad());
        }
        let (os, architecture, variant) = match parts[..] {
            [architecture] => {
                let (name, _) = normalise(architecture, None);
                if !matches!(name.as_str(), "amd64" | "arm64" | "arm" | "386") {
                    return Err(bad());
                }
                ("linux", architecture, None)
            }
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(bad()),
        };
        let (architecture, variant) = normalise(architecture, variant);
        Ok(Self {
            os: os.to_owned(),
            architecture,
            variant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_lambda_docker_and_uname_mean_the_same() {
        for (text, shown) in [
            ("arm64", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("x86_64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(
                text.parse::<Platform>().unwrap().to_string(),
                shown,
                "{text}"
            );
        }
        for text in [
            "",
            "linux/",
            "sparc",
            "linux/arm64/v8/x",
            "Linux/arm64",
            "linux",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_variant_is_the_usual_one() {
        let arm64 = Platform::linux("arm64");
        let written_out = Platform {
            variant: Some("v8".into()),
            ..arm64.clone()
        };
        assert!(arm64.accepts(&written_out) && written_out.accepts(&arm64));
        assert!(!arm64.accepts(&Platform::linux("amd64")));
        let v6: Platform = "linux/arm/v6".parse().unwrap();
        assert!(!Platform::linux("arm").accepts(&v6));
    }
}
