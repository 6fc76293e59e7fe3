//! The pure assembler: a base, layers and edits in, an image out; and the one walk that moves
//! images between places.
//!
//! An [`Image`] is a value whose digests are known. Where the bytes of a blob are is a field of it
//! ([`Content`]), and opening them is the business of a [`BlobSource`]. Whatever can be read from is
//! an [`ImageSource`], whatever can be written to an [`ImageSink`]; [`write()`] is the only code that
//! moves an image, and it never moves a byte that the other end already has. [`move_ahead()`] gives it a
//! head start while the image is still being made.
//!
//! Nothing here touches a file, a socket, a clock or the environment, and no async runtime is
//! assumed.

mod ahead;
mod artifact;
mod assemble;
mod base;
mod blob;
mod content;
mod edits;
mod image;
mod layer;
mod pieces;
mod read;
mod sink;
mod source;
mod write;

pub use ahead::{Ahead, Novelty, Offer, move_ahead};
pub use artifact::{Artifact, BlobAt};
pub use assemble::{AssembleError, TARGET_LABEL, assemble, assemble_index};
pub use base::BaseImage;
pub use blob::{Blob, BlobSource, BlobStream, BoxError, OpenBlobError, VerifyError};
pub use content::Content;
pub use edits::{BadEdit, ConfigEdits, EnvEdit};
pub use image::{Image, InvalidImage};
pub use layer::{Facts, Layer};
pub use pieces::{FileRange, Piece};
pub use read::{ReadError, read_artifact, read_blob, read_image};
pub use sink::{ImageSink, Placed};
pub use source::ImageSource;
pub use write::{Jobs, Progress, Tally, WriteError, WriteReport, write, write_after};
