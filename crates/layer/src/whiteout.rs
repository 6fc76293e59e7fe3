//! Names that are deletions: `.wh.NAME` and `.wh..wh..opq` of the image specification.

use crate::path::EntryPath;

/// Start of the names that are not files but deletions.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Name of the opaque marker.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// What a name with the prefix means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marker {
    /// Removes the path from lower layers.
    Whiteout(EntryPath),
    /// Hides what lower layers have in the directory, where `None` is the root.
    Opaque(Option<EntryPath>),
    /// A name that aufs kept for itself, such as `.wh..wh.plnk`; readers skip it and all below.
    Driver,
    /// `.wh.`, `.wh..` and `.wh...` with nothing, `.` or `..` to remove.
    Nothing,
}

impl Marker {
    /// What `path` means, `None` when it is an ordinary name in ordinary directories.
    pub fn of(path: &EntryPath) -> Option<Self> {
        let in_marker = path
            .components()
            .rev()
            .skip(1)
            .any(|directory| directory.starts_with(WHITEOUT_PREFIX));
        if in_marker {
            return Some(Self::Driver);
        }
        let removed = path.name().strip_prefix(WHITEOUT_PREFIX)?;
        Some(if path.name() == OPAQUE_NAME {
            Self::Opaque(path.parent())
        } else if removed.starts_with(WHITEOUT_PREFIX) {
            Self::Driver
        } else {
            EntryPath::under(path.parent().as_ref(), removed).map_or(Self::Nothing, Self::Whiteout)
        })
    }
}

/// The name under which an archive removes `path`, `None` when `path` is itself named like that.
pub(crate) fn whiteout_of(path: &EntryPath) -> Option<EntryPath> {
    let name = path.name();
    if name.starts_with(WHITEOUT_PREFIX) {
        return None;
    }
    let marker = [WHITEOUT_PREFIX, name].concat();
    EntryPath::under(path.parent().as_ref(), &marker).ok()
}

/// The name of the marker that makes `directory` opaque, where `None` is the root.
pub(crate) fn opaque_marker_of(directory: Option<&EntryPath>) -> EntryPath {
    EntryPath::under(directory, OPAQUE_NAME).expect("the marker's name is a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_read_and_named() {
        let path = |text: &str| EntryPath::new(text).unwrap();
        let marker = |text: &str| Marker::of(&path(text));
        assert_eq!(marker("a/b"), None);
        assert_eq!(marker("a/.wh.b"), Some(Marker::Whiteout(path("a/b"))));
        assert_eq!(marker(".wh.b"), Some(Marker::Whiteout(path("b"))));
        assert_eq!(
            marker("a/.wh..wh..opq"),
            Some(Marker::Opaque(Some(path("a"))))
        );
        assert_eq!(marker(".wh..wh..opq"), Some(Marker::Opaque(None)));
        assert_eq!(marker(".wh..wh.plnk/3.4"), Some(Marker::Driver));
        assert_eq!(marker(".wh..wh.aufs"), Some(Marker::Driver));
        assert_eq!(marker("a/.wh."), Some(Marker::Nothing));
        assert_eq!(marker("a/.wh..."), Some(Marker::Nothing));
        assert_eq!(whiteout_of(&path("a/b")), Some(path("a/.wh.b")));
        assert_eq!(whiteout_of(&path("a/.wh.b")), None);
        assert_eq!(opaque_marker_of(None), path(".wh..wh..opq"));
    }
}
