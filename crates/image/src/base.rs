//! What an image is built on.

use tierce_oci::Reference;

use crate::image::Image;

/// An image to build on, of which only the documents are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// The name in a registry, where it came from one. A path of the build machine never stands
    /// here, because the name is written into the image.
    pub name: Option<Reference>,
    /// The image for the platform that is being built.
    pub image: Image,
}
