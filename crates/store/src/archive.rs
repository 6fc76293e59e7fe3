//! Images in one tar file: `oci-archive:FILE[:NAME]` and `docker-archive:FILE[:REFERENCE]`.
//!
//! Reading never unpacks: the headers are walked once, and a blob is then a range of the archive
//! ([`Content::File`](tierce_image::Content::File)). Writing makes the tar in a temporary file beside
//! the target, which appears by rename when the image is complete.
//!
//! An OCI archive is a tar of an OCI layout. What tierce writes as a docker-archive is the form of
//! newer Docker: the same, with a `manifest.json` that names the config and layers by their paths in
//! the layout. Older `docker load` follows `manifest.json` and finds gzip layers, which it has always
//! taken; whoever knows the layout finds the exact manifest, so that its digest survives.

mod docker;
mod layout;
mod members;
mod sink;
mod writer;

use std::path::PathBuf;

use tierce_image::OpenBlobError;
use tierce_oci::Digest;

use crate::atomic::PathError;
use crate::document::ManifestError;
use crate::listing::{ListingError, shown};

pub use docker::{DockerArchive, PlainImage, Selected};
pub use layout::ArchiveLayout;
pub use members::ArchiveMember;
pub use sink::{ArchiveKind, ArchiveSink};

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive as a whole is compressed; its members must be reachable by offset.
    #[error("the archive `{}` is compressed with {compression}", path.display())]
    Compressed {
        /// The archive.
        path: PathBuf,
        /// With what.
        compression: &'static str,
    },
    /// Not a tar, or one that is damaged.
    #[error("`{}` is not a readable tar archive: {reason} at byte {offset}", path.display())]
    NotATar {
        /// The archive.
        path: PathBuf,
        /// Where it goes wrong.
        offset: u64,
        /// How.
        reason: &'static str,
    },
    /// It ends in the middle of a member.
    #[error("the archive `{}` is cut off: `{member}` should have {size} bytes", path.display())]
    Truncated {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
        /// The size in its header.
        size: u64,
    },
    /// A member that every such archive has is missing.
    #[error("`{}` has no `{member}`: it is not {expected}", path.display())]
    MissingMember {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
        /// What the archive was taken for.
        expected: &'static str,
    },
    /// A member's name occurs twice where the two could mean different images.
    #[error("the archive `{}` has more than one `{member}`", path.display())]
    Duplicate {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
    },
    /// A member that is needed is not a plain file.
    #[error("`{member}` in the archive `{}` is {kind}", path.display())]
    NotAFile {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
        /// What it is instead.
        kind: &'static str,
    },
    /// A document is larger than any real one.
    #[error("`{member}` in the archive `{}` has {size} bytes; more than {limit} are refused", path.display())]
    TooLarge {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
        /// The size in its header.
        size: u64,
        /// What is taken.
        limit: u64,
    },
    /// The layout in it is of a version that tierce does not know.
    #[error("the OCI layout in `{}` has the version `{version}`; only 1.0.0 is known", path.display())]
    OtherVersion {
        /// The archive.
        path: PathBuf,
        /// What stands in `oci-layout`.
        version: String,
    },
    /// `index.json` does not lead to a manifest.
    #[error("could not look up an image in the archive `{}`", path.display())]
    Listing {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ListingError,
    },
    /// `manifest.json` is not what `docker load` takes.
    #[error("`manifest.json` in the archive `{}` is not a list of images", path.display())]
    BadManifestJson {
        /// The archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// No image in it has the wanted reference.
    #[error("the archive `{}` holds no image `{wanted}`; it has {}", path.display(), shown(offered))]
    NoSuchImage {
        /// The archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// No reference was given, and there is a choice (or nothing).
    #[error("the archive `{}` holds {count} images, one must be named: {}", path.display(), shown(offered))]
    ImageNeeded {
        /// The archive.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// The names of those that have one.
        offered: Vec<String>,
    },
    /// An image manifest is asked for where there is an index.
    #[error("{0} is an image index, and a docker-archive holds images for one platform only")]
    IndexInDockerArchive(Digest),
    /// Not a runnable image.
    #[error(
        "{digest} is not an image (its config has the type `{config_type}`), and a docker-archive holds nothing else"
    )]
    ArtifactInDockerArchive {
        /// The manifest.
        digest: Digest,
        /// The media type of its config.
        config_type: String,
    },
    /// The file to write is a directory, a device or the like.
    #[error("`{}` is there already and is not a regular file", .0.display())]
    TargetNotAFile(PathBuf),
    /// A blob was put after the archive was finished, or a manifest without anything before.
    #[error("the archive `{}` is finished already", .0.display())]
    Finished(PathBuf),
    /// The archive was finished before any manifest was put.
    #[error("no manifest was put into the archive `{}`", .0.display())]
    NoManifest(PathBuf),
    /// A manifest could not be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] PathError),
    /// The blob's own place failed.
    #[error(transparent)]
    Blob(#[from] OpenBlobError),
}
