//! Media types, as pairs of a role and the format that governs it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which of the two families of media types an image is written in.
///
/// Chosen once for an image; it governs every media type of that image. The documents themselves
/// are the same JSON (image-spec, `media-types.md`, compatibility matrix), except that Docker V2
/// Schema 2 has no annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageFormat {
    /// Docker Image Manifest Version 2, Schema 2: what AWS's own Lambda bases are.
    DockerV2S2,
    /// OCI image format specification 1.x.
    Oci,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::DockerV2S2 => "docker",
            Self::Oci => "oci",
        })
    }
}

/// A format name other than `docker` and `oci`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image format: expected `docker` or `oci`")]
pub struct ParseFormatError(pub String);

impl FromStr for ImageFormat {
    type Err = ParseFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "docker" => Ok(Self::DockerV2S2),
            "oci" => Ok(Self::Oci),
            _ => Err(ParseFormatError(text.to_owned())),
        }
    }
}

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// RFC 1952; the only one that Lambda is known to take in both formats.
    Gzip,
    /// RFC 8878; has no media type in Docker V2 Schema 2.
    Zstd,
}

/// A media type that appears in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MediaType {
    /// An image manifest.
    Manifest(ImageFormat),
    /// An index, which Docker calls a manifest list.
    Index(ImageFormat),
    /// An image config.
    Config(ImageFormat),
    /// A layer that may be distributed.
    Layer(ImageFormat, Compression),
    /// Anything else, exactly as it was written: foreign layers and artifacts among it.
    Other(String),
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
// Not in the V2S2 specification, but written by several tools; Lambda answers it with
// UnsupportedImageLayerDetected (bazel-contrib/rules_oci#777).
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// The type of a blob that says nothing, for configs of artifacts that have none (image-spec,
/// `manifest.md`, "Guidance for an Empty Descriptor").
const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

impl MediaType {
    /// Every type of manifest that tierce reads, in the order in which it asks for them.
    ///
    /// All four go into every `Accept` header: a registry that is asked for less may convert a
    /// manifest, which changes its digest.
    pub const MANIFESTS: [&'static str; 4] =
        [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];

    /// The type of the blob `{}`, which stands where a manifest must name one and has none to name.
    pub fn empty() -> Self {
        Self::Other(OCI_EMPTY.to_owned())
    }

    /// The type as it stands in documents and headers.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Manifest(ImageFormat::DockerV2S2) => DOCKER_MANIFEST,
            Self::Manifest(ImageFormat::Oci) => OCI_MANIFEST,
            Self::Index(ImageFormat::DockerV2S2) => DOCKER_INDEX,
            Self::Index(ImageFormat::Oci) => OCI_INDEX,
            Self::Config(ImageFormat::DockerV2S2) => DOCKER_CONFIG,
            Self::Config(ImageFormat::Oci) => OCI_CONFIG,
            Self::Layer(ImageFormat::DockerV2S2, Compression::None) => DOCKER_LAYER,
            Self::Layer(ImageFormat::DockerV2S2, Compression::Gzip) => DOCKER_LAYER_GZIP,
            Self::Layer(ImageFormat::DockerV2S2, Compression::Zstd) => DOCKER_LAYER_ZSTD,
            Self::Layer(ImageFormat::Oci, Compression::None) => OCI_LAYER,
            Self::Layer(ImageFormat::Oci, Compression::Gzip) => OCI_LAYER_GZIP,
            Self::Layer(ImageFormat::Oci, Compression::Zstd) => OCI_LAYER_ZSTD,
            Self::Other(text) => text,
        }
    }

    /// The format that the type belongs to, if it is one of those tierce knows.
    pub fn format(&self) -> Option<ImageFormat> {
        match self {
            Self::Manifest(format)
            | Self::Index(format)
            | Self::Config(format)
            | Self::Layer(format, _) => Some(*format),
            Self::Other(_) => None,
        }
    }

    /// Whether the type names a manifest or an index, which live apart from blobs in a registry.
    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::Manifest(_) | Self::Index(_))
    }
}

impl From<&str> for MediaType {
    fn from(text: &str) -> Self {
        // Parameters are not part of the type (RFC 9110, section 8.3.1).
        let essence = text.split(';').next().unwrap_or_default().trim();
        match essence {
            DOCKER_MANIFEST => Self::Manifest(ImageFormat::DockerV2S2),
            OCI_MANIFEST => Self::Manifest(ImageFormat::Oci),
            DOCKER_INDEX => Self::Index(ImageFormat::DockerV2S2),
            OCI_INDEX => Self::Index(ImageFormat::Oci),
            DOCKER_CONFIG => Self::Config(ImageFormat::DockerV2S2),
            OCI_CONFIG => Self::Config(ImageFormat::Oci),
            DOCKER_LAYER => Self::Layer(ImageFormat::DockerV2S2, Compression::None),
            DOCKER_LAYER_GZIP => Self::Layer(ImageFormat::DockerV2S2, Compression::Gzip),
            DOCKER_LAYER_ZSTD => Self::Layer(ImageFormat::DockerV2S2, Compression::Zstd),
            OCI_LAYER => Self::Layer(ImageFormat::Oci, Compression::None),
            OCI_LAYER_GZIP => Self::Layer(ImageFormat::Oci, Compression::Gzip),
            OCI_LAYER_ZSTD => Self::Layer(ImageFormat::Oci, Compression::Zstd),
            other => Self::Other(other.to_owned()),
        }
    }
}

/// A text that cannot be a media type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a media type: expected `TYPE/SUBTYPE`, for example `application/json`")]
pub struct ParseMediaTypeError(pub String);

/// Reads a type that is to stand in a new document: both names must be ones that can be registered
/// (RFC 6838, section 4.2). What stands in the documents of others is taken as it is, by `From`.
impl FromStr for MediaType {
    type Err = ParseMediaTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |name: &str| {
            name.len() <= 127
                && name.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
        };
        match text.split_once('/') {
            Some((kind, subtype)) if is_name(kind) && is_name(subtype) => Ok(Self::from(text)),
            _ => Err(ParseMediaTypeError(text.to_owned())),
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(String::deserialize(deserializer)?.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_parses_back() {
        use Compression::{Gzip, None, Zstd};
        for format in [ImageFormat::DockerV2S2, ImageFormat::Oci] {
            for media_type in [
                MediaType::Manifest(format),
                MediaType::Index(format),
                MediaType::Config(format),
                MediaType::Layer(format, None),
                MediaType::Layer(format, Gzip),
                MediaType::Layer(format, Zstd),
            ] {
                assert_eq!(MediaType::from(media_type.as_str()), media_type);
                assert_eq!(media_type.format(), Some(format));
            }
        }
    }

    #[test]
    fn parameters_are_not_part_of_the_type() {
        assert_eq!(
            MediaType::from("application/vnd.oci.image.index.v1+json; charset=utf-8"),
            MediaType::Index(ImageFormat::Oci)
        );
    }

    #[test]
    fn a_typed_type_must_be_one_that_can_be_registered() {
        let longest = format!("application/{}", "a".repeat(127));
        for text in [
            "application/json",
            "application/vnd.example.sbom.v1+json",
            "x/y_z-1",
            OCI_CONFIG,
            &longest,
        ] {
            let parsed: MediaType = text.parse().unwrap();
            assert_eq!(parsed.as_str(), text);
        }
        let too_long = format!("{longest}a");
        for text in [
            "",
            "json",
            "/json",
            "application/",
            "a/b/c",
            "a/b; charset=utf-8",
            " a/b",
            "-a/b",
            "a/é",
            &too_long,
        ] {
            assert!(text.parse::<MediaType>().is_err(), "{text}");
        }
    }
}
