//! Names of images in any place: the transports of the ecosystem, and the local store.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use tierce_oci::{Digest, Reference, Selector, Tag};
use tierce_store::StoreReference;

/// An image in some place, or the place where one is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImagePlace {
    /// `HOST/REPO:TAG` or `docker://HOST/REPO:TAG`.
    Registry(Reference),
    /// `oci:DIR[:TAG]`.
    Layout {
        directory: PathBuf,
        selector: Option<Selector>,
    },
    /// `oci-archive:FILE[:TAG]`.
    OciArchive {
        file: PathBuf,
        selector: Option<Selector>,
    },
    /// `docker-archive:FILE[:REF]` or `docker-archive:FILE@DIGEST`.
    DockerArchive {
        file: PathBuf,
        /// The name to look for; several only where a build writes them.
        references: Vec<Reference>,
        /// What the image must be.
        digest: Option<Digest>,
    },
    /// `store:NAME[:TAG]`.
    Store(StoreReference),
}

/// The name under which an image called `reference` is stored: Docker Hub's implied parts are left
/// out, as they were when it was typed.
pub(crate) fn store_reference_of(reference: &Reference) -> Option<StoreReference> {
    let full = reference.to_string();
    full.strip_prefix("docker.io/library/")
        .or_else(|| full.strip_prefix("docker.io/"))
        .unwrap_or(&full)
        .parse()
        .ok()
}

/// What picks an image out of those stored under one name.
pub(crate) fn store_selector(reference: &StoreReference) -> Selector {
    match (&reference.digest, &reference.tag) {
        (Some(digest), _) => Selector::Digest(*digest),
        (None, Some(tag)) => Selector::Tag(tag.clone()),
        (None, None) => Selector::Tag(Tag::latest()),
    }
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ParsePlaceError(String);

impl FromStr for ImagePlace {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |message: String| ParsePlaceError(message);
        let Some((transport, rest)) = transport_of(text) else {
            return match text.parse() {
                Ok(reference) => Ok(Self::Registry(reference)),
                Err(error) => Err(bad(error.to_string())),
            };
        };
        match transport {
            "docker" => {
                let name = rest.strip_prefix("//").unwrap_or(rest);
                name.parse()
                    .map(Self::Registry)
                    .map_err(|error| bad(error.to_string()))
            }
            "store" => rest
                .parse()
                .map(Self::Store)
                .map_err(|error| bad(format!("{error}"))),
            "oci" => {
                let (directory, selector) = path_and_selector(text, rest)?;
                Ok(Self::Layout {
                    directory,
                    selector,
                })
            }
            "oci-archive" => {
                let (file, selector) = path_and_selector(text, rest)?;
                Ok(Self::OciArchive { file, selector })
            }
            "docker-archive" => {
                let (rest, digest) = split_digest(rest)?;
                let (file, name) = split_path(rest);
                if file.is_empty() {
                    return Err(bad(format!("`{text}` names no file")));
                }
                let reference = name
                    .map(|name| name.parse().map_err(|error| bad(format!("{error}"))))
                    .transpose()?;
                Ok(Self::DockerArchive {
                    file: PathBuf::from(file),
                    references: reference.into_iter().collect(),
                    digest,
                })
            }
            other => Err(bad(format!(
                "`{other}:` is not a transport: expected docker://, oci:, oci-archive:, docker-archive: or store:"
            ))),
        }
    }
}

/// Splits `transport:rest`, unless the text is a bare reference such as `host:5000/a` or `a:tag`.
fn transport_of(text: &str) -> Option<(&str, &str)> {
    let (transport, rest) = text.split_once(':')?;
    let known = matches!(
        transport,
        "docker" | "store" | "oci" | "oci-archive" | "docker-archive"
    );
    // Transports of other tools, so that `dir:x` is not taken for the image `dir` with tag `x`.
    let foreign = matches!(
        transport,
        "dir" | "docker-daemon" | "containers-storage" | "ostree"
    ) || rest.starts_with("//");
    // `docker:27` and `oci:1` may be images with a tag; `docker` needs its slashes to be told.
    let ambiguous = transport == "docker" && !rest.starts_with("//");
    ((known || foreign) && !ambiguous).then_some((transport, rest))
}

/// The first colon ends the path, as in other tools: a tag or reference may have colons itself.
fn split_path(rest: &str) -> (&str, Option<&str>) {
    match rest.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (rest, None),
    }
}

/// Splits off a digest at the end.
fn split_digest(rest: &str) -> Result<(&str, Option<Digest>), ParsePlaceError> {
    let Some((rest, hex)) = rest.rsplit_once("@sha256:") else {
        return Ok((rest, None));
    };
    match format!("sha256:{hex}").parse() {
        Ok(digest) => Ok((rest, Some(digest))),
        Err(error) => Err(ParsePlaceError(format!("{error}"))),
    }
}

fn path_and_selector(
    text: &str,
    rest: &str,
) -> Result<(PathBuf, Option<Selector>), ParsePlaceError> {
    let bad = |message: String| ParsePlaceError(message);
    let (rest, digest) = split_digest(rest)?;
    let (path, tag) = split_path(rest);
    let tag = tag
        .map(|tag| {
            tag.parse::<Tag>()
                .map_err(|error| bad(format!("in `{text}`: {error}")))
        })
        .transpose()?;
    if path.is_empty() {
        return Err(bad(format!("`{text}` names no path")));
    }
    let selector = digest.map(Selector::Digest).or(tag.map(Selector::Tag));
    Ok((PathBuf::from(path), selector))
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selected =
            |formatter: &mut fmt::Formatter<'_>, selector: &Option<Selector>| match selector {
                Some(Selector::Tag(tag)) => write!(formatter, ":{tag}"),
                Some(Selector::Digest(digest)) => write!(formatter, "@{digest}"),
                None => Ok(()),
            };
        match self {
            Self::Registry(reference) => reference.fmt(formatter),
            Self::Store(reference) => {
                write!(formatter, "store:{}", reference.name)?;
                selected(formatter, &Some(store_selector(reference)))
            }
            Self::Layout {
                directory,
                selector,
            } => {
                write!(formatter, "oci:{}", directory.display())?;
                selected(formatter, selector)
            }
            Self::OciArchive { file, selector } => {
                write!(formatter, "oci-archive:{}", file.display())?;
                selected(formatter, selector)
            }
            Self::DockerArchive {
                file,
                references,
                digest,
            } => {
                write!(formatter, "docker-archive:{}", file.display())?;
                if let Some(reference) = references.first() {
                    write!(formatter, ":{}", familiar(reference))?;
                }
                digest.map_or(Ok(()), |digest| write!(formatter, "@{digest}"))
            }
        }
    }
}

/// A reference as people write it, with its tag.
fn familiar(reference: &Reference) -> String {
    let tagged = Reference {
        tag: reference.effective_tag(),
        ..reference.clone()
    };
    store_reference_of(&tagged).map_or_else(|| tagged.to_string(), |short| short.to_string())
}

impl ImagePlace {
    /// The place without tag or digest: what precedes `@sha256:…` in a result line.
    pub(crate) fn stem(&self) -> String {
        match self {
            Self::Registry(reference) => reference.repository.to_string(),
            Self::Store(reference) => format!("store:{}", reference.name),
            Self::Layout { directory, .. } => format!("oci:{}", directory.display()),
            Self::OciArchive { file, .. } => format!("oci-archive:{}", file.display()),
            Self::DockerArchive { file, .. } => format!("docker-archive:{}", file.display()),
        }
    }

    /// The tag under which an image put here gets its name.
    pub(crate) fn tag(&self) -> Option<Tag> {
        let of_selector = |selector: &Selector| match selector {
            Selector::Tag(tag) => Some(tag.clone()),
            Selector::Digest(_) => None,
        };
        match self {
            Self::Registry(reference) => reference.effective_tag(),
            Self::Store(reference) => of_selector(&store_selector(reference)),
            Self::Layout { selector, .. } | Self::OciArchive { selector, .. } => {
                selector.as_ref().and_then(of_selector)
            }
            Self::DockerArchive { references, .. } => {
                references.first().and_then(Reference::effective_tag)
            }
        }
    }

    /// This destination with a name, if it has room for one and none was written: that of `source`.
    pub(crate) fn named_after(&self, source: &Self) -> Self {
        let mut place = self.clone();
        match &mut place {
            Self::Layout { selector, .. } | Self::OciArchive { selector, .. }
                if selector.is_none() =>
            {
                *selector = source.tag().map(Selector::Tag);
            }
            Self::DockerArchive { references, .. } if references.is_empty() => match source {
                Self::Registry(reference) => {
                    references.extend(reference.tag.is_some().then(|| reference.clone()));
                }
                Self::Store(stored) => references.extend(stored.to_string().parse().ok()),
                _ => {}
            },
            _ => {}
        }
        place
    }

    /// Whether the name holds a digest, which a destination cannot choose.
    pub(crate) fn states_digest(&self) -> bool {
        match self {
            Self::Registry(reference) => reference.digest.is_some(),
            Self::Store(reference) => reference.digest.is_some(),
            Self::Layout { selector, .. } | Self::OciArchive { selector, .. } => {
                matches!(selector, Some(Selector::Digest(_)))
            }
            Self::DockerArchive { digest, .. } => digest.is_some(),
        }
    }

    /// The same place with another tag. Places without a tag stay without.
    pub(crate) fn with_tag(&self, tag: &Tag) -> Self {
        let mut place = self.clone();
        match &mut place {
            Self::Registry(reference) => reference.tag = Some(tag.clone()),
            Self::Store(reference) => reference.tag = Some(tag.clone()),
            Self::Layout { selector, .. } | Self::OciArchive { selector, .. } => {
                if selector.is_some() {
                    *selector = Some(Selector::Tag(tag.clone()));
                }
            }
            Self::DockerArchive { references, .. } => {
                for reference in references {
                    reference.tag = Some(tag.clone());
                }
            }
        }
        place
    }
}

/// What an image is built on, as it is written: any place, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseName {
    /// The text as it was written, which is how `tierce.lock` calls it.
    pub(crate) text: String,
    /// `None` for `scratch`.
    pub(crate) place: Option<ImagePlace>,
}

impl FromStr for BaseName {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let place = if text == "scratch" {
            None
        } else {
            Some(text.parse()?)
        };
        Ok(Self {
            text: text.to_owned(),
            place,
        })
    }
}

/// An image to read, of which a bare name may mean the local store or a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PushSource {
    /// The transport was written.
    Place(ImagePlace),
    /// It was not: the local store is asked first.
    Bare(Reference, StoreReference),
}

impl FromStr for PushSource {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse()? {
            ImagePlace::Registry(reference) if transport_of(text).is_none() => Self::Bare(
                reference,
                text.parse()
                    .map_err(|error| ParsePlaceError(format!("{error}")))?,
            ),
            place => Self::Place(place),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_those_of_the_ecosystem() {
        let digest = Digest::of(b"");
        let by_digest = format!("oci:a/b@{digest}");
        for (text, shown) in [
            ("alpine", "docker.io/library/alpine"),
            ("docker:27", "docker.io/library/docker:27"),
            ("docker://localhost:5000/a:1", "localhost:5000/a:1"),
            ("localhost:5000/a", "localhost:5000/a"),
            ("oci:out", "oci:out"),
            ("oci:../out:1.0", "oci:../out:1.0"),
            (by_digest.as_str(), by_digest.as_str()),
            ("oci-archive:a.tar:x", "oci-archive:a.tar:x"),
            ("docker-archive:a.tar", "docker-archive:a.tar"),
            (
                "docker-archive:a.tar:hello:1",
                "docker-archive:a.tar:hello:1",
            ),
            (
                "docker-archive:a.tar:localhost:5000/x",
                "docker-archive:a.tar:localhost:5000/x:latest",
            ),
            ("store:hello", "store:hello:latest"),
            ("store:team/hello:2", "store:team/hello:2"),
        ] {
            let place: ImagePlace = text.parse().unwrap();
            assert_eq!(place.to_string(), shown, "{text}");
        }
        for text in [
            "",
            "dir:x",
            "docker-daemon:x",
            "oci:",
            "oci::x",
            "oci:a:b/c",
            "store:",
            "http://x/y",
            "scratch",
        ] {
            assert!(text.parse::<ImagePlace>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tag_can_be_replaced() {
        let tag: Tag = "1-arm64".parse().unwrap();
        let place: ImagePlace = "oci:out:1".parse().unwrap();
        assert_eq!(place.with_tag(&tag).to_string(), "oci:out:1-arm64");
        let place: ImagePlace = "store:hello:1".parse().unwrap();
        assert_eq!(place.with_tag(&tag).to_string(), "store:hello:1-arm64");
    }
}
