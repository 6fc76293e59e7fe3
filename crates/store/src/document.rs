//! Manifests kept in files.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tierce_oci::{Digest, Document, MediaType, ParseDocumentError};

use crate::atomic::PathError;

/// What every registry must take (distribution-spec, "Pushing manifests").
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;

/// Why a manifest could not be read from its file.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not there.
    #[error("`{}` has no manifest {digest}", place.display())]
    Missing {
        /// Which manifest.
        digest: Digest,
        /// The layout, archive or store.
        place: PathBuf,
    },
    /// It is larger than any registry must take.
    #[error("the manifest {digest} has {size} bytes; more than {MAX_MANIFEST} are refused")]
    TooLarge {
        /// Which manifest.
        digest: Digest,
        /// Its size, or that of the part that was looked at.
        size: u64,
    },
    /// Its bytes are not those of its digest.
    #[error("the file of the manifest {digest} in `{}` is corrupted: its bytes have the digest {found}", place.display())]
    Corrupted {
        /// Which manifest.
        digest: Digest,
        /// The digest of its bytes.
        found: Digest,
        /// The layout, archive or store.
        place: PathBuf,
    },
    /// It is something else.
    #[error("{digest} is not a manifest")]
    Invalid {
        /// Which blob.
        digest: Digest,
        /// Why not.
        #[source]
        source: ParseDocumentError,
    },
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] PathError),
}

/// Checks `bytes` against `digest` and reads them as what they were listed as.
pub(crate) fn parse_document(
    bytes: Bytes,
    digest: Digest,
    served: Option<&MediaType>,
    place: &Path,
) -> Result<Document, ManifestError> {
    let found = Digest::of(&bytes);
    if found != digest {
        return Err(ManifestError::Corrupted {
            digest,
            found,
            place: place.to_owned(),
        });
    }
    Document::parse(bytes, served).map_err(|source| ManifestError::Invalid { digest, source })
}

/// Reads the manifest `digest` of `place` from `path`, where all blobs are files.
pub(crate) fn read_document(
    path: &Path,
    digest: Digest,
    served: Option<&MediaType>,
    place: &Path,
) -> Result<Document, ManifestError> {
    let bytes = match crate::file::read_limited(path, MAX_MANIFEST) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            return Err(ManifestError::TooLarge {
                digest,
                size: MAX_MANIFEST + 1,
            });
        }
        Err(error) if error.is_not_found() => {
            return Err(ManifestError::Missing {
                digest,
                place: place.to_owned(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    parse_document(bytes, digest, served, place)
}
