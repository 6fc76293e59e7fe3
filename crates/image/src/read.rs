//! From a name at a place to a value.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tierce_oci::{
    Descriptor, Digest, Document, Manifest, ParseDocumentError, Platform, Raw, Selector,
};

use crate::artifact::{Artifact, BlobAt};
use crate::blob::{Blob, BlobSource, BoxError, OpenBlobError};
use crate::content::Content;
use crate::image::{Image, InvalidImage};
use crate::source::ImageSource;

/// Configs over this size are refused: real ones have some kilobytes, and it is read into memory
/// on the word of a stranger.
const MAX_CONFIG: u64 = 8 << 20;

/// How deep indexes may nest. Real ones do not nest at all.
const MAX_DEPTH: usize = 4;

/// How many manifests an index may hold, all levels together.
const MAX_MANIFESTS: usize = 1000;

/// How many bytes the manifests below an index may have together; real ones have some kilobytes.
const MAX_MANIFEST_BYTES: usize = 64 << 20;

/// Why an image could not be read from a place.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The manifest could not be had.
    #[error("could not read the manifest `{selector}`")]
    Manifest {
        /// Which one.
        selector: Selector,
        /// What the place said.
        #[source]
        source: BoxError,
    },
    /// A manifest is not the one that was asked for.
    #[error("asked for the manifest {asked} and got {found}")]
    OtherManifest {
        /// The digest asked for.
        asked: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The config could not be read.
    #[error(transparent)]
    Config(#[from] OpenBlobError),
    /// The config is larger than any real one.
    #[error("the config {digest} claims {size} bytes; more than {MAX_CONFIG} are refused")]
    ConfigTooLarge {
        /// Which config.
        digest: Digest,
        /// What its descriptor says.
        size: u64,
    },
    /// The config is not one.
    #[error("the config {digest} cannot be used")]
    BadConfig {
        /// Which config.
        digest: Digest,
        /// Why.
        #[source]
        source: ParseDocumentError,
    },
    /// Manifest and config contradict each other.
    #[error("the image {digest} contradicts itself")]
    Invalid {
        /// Which manifest.
        digest: Digest,
        /// How.
        #[source]
        source: InvalidImage,
    },
    /// The manifest is of something that does not run.
    #[error("{digest} is not an image: its config has the type `{config_type}`")]
    NotAnImage {
        /// Which manifest.
        digest: Digest,
        /// The config's media type.
        config_type: String,
    },
    /// An index has nothing for the platform.
    #[error("there is no image for {wanted}; it has {}", list(offered))]
    NoSuchPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: Vec<Platform>,
    },
    /// The one image there is runs on something else.
    #[error("the image is for {found}, not for {wanted}")]
    OtherPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What it is.
        found: Platform,
    },
    /// An index that no honest tool makes.
    #[error("the index {0} nests too deep, or holds too many or too large manifests")]
    Overgrown(Digest),
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none that names a platform".to_owned();
    }
    let names: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Reads the manifest behind `selector` and checks it against the digest when that was asked for.
async fn fetch<P: ImageSource>(place: &P, selector: &Selector) -> Result<Document, ReadError> {
    let document = place
        .manifest(selector)
        .await
        .map_err(|source| ReadError::Manifest {
            selector: selector.clone(),
            source: Box::new(source),
        })?;
    match selector {
        Selector::Digest(asked) if *asked != document.digest() => Err(ReadError::OtherManifest {
            asked: *asked,
            found: document.digest(),
        }),
        _ => Ok(document),
    }
}

/// Reads the image that `selector` stands for, choosing out of an index by `platform`.
///
/// Without a `platform` an index must hold exactly one, or have one for `linux/amd64`, Lambda's
/// default architecture. Only manifests and the config are read.
pub async fn read_image<P: ImageSource, B: BlobSource>(
    place: &P,
    blobs: &B,
    selector: &Selector,
    platform: Option<&Platform>,
) -> Result<Image, ReadError> {
    let mut document = fetch(place, selector).await?;
    let mut chosen = platform.cloned();
    for _ in 0..MAX_DEPTH {
        let index = match document {
            Document::Manifest(manifest) => {
                let image = join(place, blobs, manifest).await?;
                return match platform {
                    Some(wanted) if !wanted.accepts(image.platform()) => {
                        Err(ReadError::OtherPlatform {
                            wanted: wanted.clone(),
                            found: image.platform().clone(),
                        })
                    }
                    _ => Ok(image),
                };
            }
            Document::Index(index) => index,
        };
        let offered = index.platforms();
        let wanted = chosen.get_or_insert_with(|| match &offered[..] {
            [only] => only.clone(),
            _ => Platform::linux("amd64"),
        });
        let child = index
            .child(wanted)
            .ok_or_else(|| ReadError::NoSuchPlatform {
                wanted: wanted.clone(),
                offered: offered.clone(),
            })?;
        document = fetch(place, &Selector::Digest(child.digest)).await?;
    }
    Err(ReadError::Overgrown(document.digest()))
}

async fn join<P: ImageSource, B: BlobSource>(
    place: &P,
    blobs: &B,
    manifest: Raw<Manifest>,
) -> Result<Image, ReadError> {
    let digest = manifest.digest();
    let descriptor = manifest.config.clone();
    if !manifest.is_image() {
        return Err(ReadError::NotAnImage {
            digest,
            config_type: descriptor.media_type.to_string(),
        });
    }
    if descriptor.size > MAX_CONFIG {
        return Err(ReadError::ConfigTooLarge {
            digest: descriptor.digest,
            size: descriptor.size,
        });
    }
    let bytes = read_blob(blobs, &descriptor, &place.content(&descriptor)).await?;
    let config =
        Raw::parse_config(bytes, descriptor.media_type).map_err(|source| ReadError::BadConfig {
            digest: descriptor.digest,
            source,
        })?;
    Image::new(manifest, config, |layer| place.content(layer))
        .map_err(|source| ReadError::Invalid { digest, source })
}

/// Reads a whole blob into memory, verified. The caller has judged its size.
pub async fn read_blob<B: BlobSource>(
    blobs: &B,
    descriptor: &Descriptor,
    content: &Content,
) -> Result<Bytes, OpenBlobError> {
    let ignore = |_| ();
    let blob = Blob::new(descriptor, content, blobs, &ignore);
    let mut stream = blob.open().await?;
    let mut bytes = BytesMut::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes.freeze())
}

/// Reads all that `selector` stands for, an index with all its children, attestations included.
///
/// Only manifests are read; the blobs stay where they are. For one platform out of an index there
/// is [`read_image`].
pub async fn read_artifact<P: ImageSource>(
    place: &P,
    selector: &Selector,
) -> Result<Artifact, ReadError> {
    let document = fetch(place, selector).await?;
    let root = document.digest();
    let mut budget = Budget {
        manifests: MAX_MANIFESTS,
        bytes: MAX_MANIFEST_BYTES,
    };
    grow(place, document, root, MAX_DEPTH, &mut budget).await
}

/// What may still be read of an index.
struct Budget {
    manifests: usize,
    bytes: usize,
}

impl Budget {
    /// Whether one more manifest of `length` bytes may be kept.
    fn allows(&mut self, length: usize) -> bool {
        let rest = self
            .manifests
            .checked_sub(1)
            .zip(self.bytes.checked_sub(length));
        let allowed = rest.is_some();
        if let Some((manifests, bytes)) = rest {
            *self = Self { manifests, bytes };
        }
        allowed
    }
}

/// Reads what is below `document`; `depth` and `budget` end an index made to exhaust us.
async fn grow<P: ImageSource>(
    place: &P,
    document: Document,
    root: Digest,
    depth: usize,
    budget: &mut Budget,
) -> Result<Artifact, ReadError> {
    if depth == 0 || !budget.allows(document.bytes().len()) {
        return Err(ReadError::Overgrown(root));
    }
    let (mut blobs, mut children) = (Vec::new(), Vec::new());
    match &document {
        Document::Manifest(manifest) => {
            for descriptor in manifest.layers.iter().chain([&manifest.config]) {
                blobs.push(BlobAt {
                    content: place.content(descriptor),
                    descriptor: descriptor.clone(),
                });
            }
        }
        Document::Index(index) => {
            for child in &index.manifests {
                let child = fetch(place, &Selector::Digest(child.digest)).await?;
                let next = Box::pin(grow(place, child, root, depth - 1, budget));
                children.push(next.await?);
            }
        }
    }
    Ok(Artifact {
        document,
        blobs,
        children,
    })
}
