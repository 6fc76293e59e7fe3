//! A root filesystem out of layers.

use std::path::PathBuf;

/// The files of an image, ready to be a root. What holds it keeps its directories from being pruned.
#[derive(Debug)]
pub struct Root {
    /// Directories, the uppermost first, to be laid over each other by overlayfs; one alone is the
    /// whole root. They are never written to.
    pub directories: Vec<PathBuf>,
}
