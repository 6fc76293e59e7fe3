//! An OCI layout inside a tar.

use std::path::Path;

use tierce_image::{Content, ImageSource};
use tierce_oci::{Descriptor, Digest, Document, MediaType, Selector};

use super::ArchiveError;
use super::members::Members;
use crate::document::{MAX_MANIFEST, ManifestError, parse_document};
use crate::layout::{BLOBS, INDEX_FILE, LAYOUT_FILE, layout_version};
use crate::listing::{Listing, MAX_LISTING};

/// An OCI layout inside a tar, to read from: an OCI archive, or a docker-archive of newer Docker.
#[derive(Debug, Clone)]
pub struct ArchiveLayout {
    members: Members,
    listing: Listing,
}

impl ArchiveLayout {
    /// Opens the OCI archive at `path`; its headers are read once, here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        let members = Members::scan(path.as_ref())?;
        let missing = |member: &str| ArchiveError::MissingMember {
            path: members.path().to_owned(),
            member: member.to_owned(),
            expected: "an OCI archive",
        };
        for member in [LAYOUT_FILE, INDEX_FILE] {
            if members.file(member)?.is_none() {
                return Err(missing(member));
            }
        }
        Self::within(members.clone())?.ok_or_else(|| missing(LAYOUT_FILE))
    }

    /// The layout that `members` make up, if they do.
    pub(super) fn within(members: Members) -> Result<Option<Self>, ArchiveError> {
        let path = members.path().to_owned();
        let (Some(layout), Some(listing)) = (
            members.document(LAYOUT_FILE, 4096)?,
            members.document(INDEX_FILE, MAX_LISTING)?,
        ) else {
            return Ok(None);
        };
        let version = layout_version(&layout).unwrap_or_default();
        if version != "1.0.0" {
            return Err(ArchiveError::OtherVersion { path, version });
        }
        let listing =
            Listing::parse(&listing).map_err(|source| ArchiveError::Listing { path, source })?;
        Ok(Some(Self { members, listing }))
    }

    /// Where the archive is.
    pub fn path(&self) -> &Path {
        self.members.path()
    }

    /// Looks a manifest up by name: a tag, or a whole reference. Without a name, the only one.
    pub fn find(&self, name: Option<&str>) -> Result<Descriptor, ArchiveError> {
        let found = self.listing.find(name);
        found.cloned().map_err(|source| ArchiveError::Listing {
            path: self.path().to_owned(),
            source,
        })
    }

    /// What the layout lists, in its order.
    pub fn entries(&self) -> &[Descriptor] {
        self.listing.entries()
    }

    pub(super) fn read(
        &self,
        digest: Digest,
        served: Option<&MediaType>,
    ) -> Result<Document, ArchiveError> {
        let missing = || ManifestError::Missing {
            digest,
            place: self.path().to_owned(),
        };
        let member = self
            .members
            .file(&blob_name(&digest))?
            .ok_or_else(missing)?;
        if member.size > MAX_MANIFEST {
            let size = member.size;
            return Err(ManifestError::TooLarge { digest, size }.into());
        }
        let bytes = member.read(MAX_MANIFEST)?;
        Ok(parse_document(bytes, digest, served, self.path())?)
    }
}

/// The name of a blob in a layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("{BLOBS}/{}", digest.hex())
}

impl ImageSource for ArchiveLayout {
    type Error = ArchiveError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, ArchiveError> {
        match selector {
            Selector::Tag(tag) => {
                let found = self.find(Some(tag.as_str()))?;
                self.read(found.digest, Some(&found.media_type))
            }
            Selector::Digest(digest) => self.read(*digest, self.listing.media_type(digest)),
        }
    }

    fn content(&self, blob: &Descriptor) -> Content {
        match self.members.file(&blob_name(&blob.digest)) {
            Ok(Some(member)) => member.content(),
            // Opening it fails, and says which member is missing.
            Ok(None) | Err(_) => Content::File {
                path: self.path().join(blob_name(&blob.digest)),
                offset: 0,
            },
        }
    }
}
