//! Where an entry lies in a layer.
//!
//! A name on Linux is bytes, and a layer must carry it unchanged, so paths are bytes here too. What
//! makes a path safe (no way out of the root, one spelling per place) is checked once, when an
//! [`EntryPath`] is made, and never again.

use std::borrow::Borrow;
use std::fmt::{self, Write as _};

/// Bytes of a path, and of a symlink's target, that Linux takes (`PATH_MAX`). It is also what keeps
/// a hostile name from standing for tens of thousands of directories.
pub(crate) const LONGEST_PATH: usize = 4096;
/// Bytes of one component that Linux takes (`NAME_MAX`).
pub(crate) const LONGEST_COMPONENT: usize = 255;

/// A path inside a layer: relative, `/`-separated, without empty, `.` or `..` components, without
/// NUL, and no longer than Linux can have it. The root has no entry and so no path.
///
/// Ordered by its bytes, which puts every directory before what it holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPath(Box<[u8]>);

/// Why bytes are not the path of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// There are no bytes, or two `/` in a row.
    #[error("has an empty component")]
    Empty,
    /// Starts with `/`.
    #[error("is absolute")]
    Absolute,
    /// Has a `.` component.
    #[error("has a `.` component")]
    Dot,
    /// Has a `..` component and could leave the root.
    #[error("has a `..` component")]
    Parent,
    /// Holds a NUL byte, which ends a name early in a tar header.
    #[error("holds a NUL byte")]
    Nul,
    /// Is longer than any path on Linux.
    #[error("is longer than {LONGEST_PATH} bytes")]
    Long,
    /// Has a component longer than any file name on Linux.
    #[error("has a component of more than {LONGEST_COMPONENT} bytes")]
    LongComponent,
}

impl EntryPath {
    /// Takes a path that must already be in its one valid spelling.
    pub fn new(path: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let path = path.as_ref();
        Self::check(path)?;
        Ok(Self(path.into()))
    }

    fn check(path: &[u8]) -> Result<(), BadPath> {
        if path.len() > LONGEST_PATH {
            return Err(BadPath::Long);
        }
        if path.first() == Some(&b'/') {
            return Err(BadPath::Absolute);
        }
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" => return Err(BadPath::Empty),
                b"." => return Err(BadPath::Dot),
                b".." => return Err(BadPath::Parent),
                _ if component.contains(&0) => return Err(BadPath::Nul),
                _ if component.len() > LONGEST_COMPONENT => return Err(BadPath::LongComponent),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes a path as archives spell them: `./`, doubled and trailing slashes are cleaned away,
    /// `..` and a leading `/` are refused. `None` is the root (`.`, `./`).
    pub fn clean(path: &[u8]) -> Result<Option<Self>, BadPath> {
        if path.is_empty() {
            return Err(BadPath::Empty);
        }
        if path.len() > LONGEST_PATH {
            return Err(BadPath::Long);
        }
        if path[0] == b'/' {
            return Err(BadPath::Absolute);
        }
        if path.contains(&0) {
            return Err(BadPath::Nul);
        }
        let mut cleaned = Vec::with_capacity(path.len());
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(BadPath::Parent),
                _ if component.len() > LONGEST_COMPONENT => return Err(BadPath::LongComponent),
                _ => {
                    if !cleaned.is_empty() {
                        cleaned.push(b'/');
                    }
                    cleaned.extend_from_slice(component);
                }
            }
        }
        Ok(Self::of_checked(cleaned))
    }

    /// The path of components that were each checked; `None` is the root.
    pub(crate) fn of_checked(path: Vec<u8>) -> Option<Self> {
        (!path.is_empty()).then(|| Self(path.into()))
    }

    /// The bytes of the path, without a leading or trailing slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components from the root on.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        let start = self.last_slash().map_or(0, |slash| slash + 1);
        &self.0[start..]
    }

    /// The directory that holds this path, `None` when that is the root.
    pub fn parent(&self) -> Option<Self> {
        self.last_slash().map(|slash| Self(self.0[..slash].into()))
    }

    /// The bytes of [`EntryPath::parent`].
    pub(crate) fn parent_bytes(&self) -> Option<&[u8]> {
        self.last_slash().map(|slash| &self.0[..slash])
    }

    /// Every directory above this path, the nearest first, without the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// This path with one more component.
    pub fn join(&self, name: &[u8]) -> Result<Self, BadPath> {
        Self::under(Some(self), name)
    }

    /// `path` below `directory`, where `None` is the root.
    pub fn under(directory: Option<&Self>, path: &[u8]) -> Result<Self, BadPath> {
        Self::check(path)?;
        Ok(Self(match directory {
            None => path.into(),
            Some(directory) => [directory.as_bytes(), path].join(&b'/').into(),
        }))
    }

    /// Whether this path lies strictly below `directory`.
    pub fn is_below(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(directory.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    fn last_slash(&self) -> Option<usize> {
        self.0.iter().rposition(|&byte| byte == b'/')
    }
}

// Lets a map of paths be searched from bytes that are no valid path, such as `a/`: the order of
// paths is the order of their bytes.
impl Borrow<[u8]> for EntryPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&readable(&self.0))
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", readable(&self.0))
    }
}

/// Name bytes for people: UTF-8 stays as it is, while other bytes and control characters are
/// escaped, so that a hostile name can neither hide nor move the cursor.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string takes every write");
        }
    }
    text
}

/// Name bytes for people, and of a name that is too long to be one its beginning.
pub(crate) fn shortened(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN) {
        Some(start) if bytes.len() > LONGEST_COMPONENT => readable(start) + "…",
        _ => readable(bytes),
    }
}

/// Bytes of a long name that are shown.
pub(crate) const SHOWN: usize = 60;

/// Where added files go: the `DEST` of `COPY SRC DEST`.
///
/// A directory's content goes to it; a file becomes it or, when it is written with a trailing
/// slash (or is the root), goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    path: Option<EntryPath>,
    into: bool,
}

impl Destination {
    /// Reads a destination as people write it. A leading `/` means nothing, since everything is
    /// relative to the root of the image; `..` is refused.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let text = text.as_ref();
        let relative = &text[text.iter().take_while(|&&byte| byte == b'/').count()..];
        if relative.is_empty() {
            return if text.is_empty() {
                Err(BadPath::Empty)
            } else {
                Ok(Self::root())
            };
        }
        let path = EntryPath::clean(relative)?;
        let into = path.is_none() || relative.ends_with(b"/") || relative.ends_with(b"/.");
        Ok(Self { path, into })
    }

    /// The root of the image.
    pub const fn root() -> Self {
        Self {
            path: None,
            into: true,
        }
    }

    /// The place itself; `None` is the root.
    pub fn path(&self) -> Option<&EntryPath> {
        self.path.as_ref()
    }

    /// Whether a single file goes into this place instead of becoming it.
    pub fn takes_files_in(&self) -> bool {
        self.into
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_spelling_is_a_path() {
        for (path, expected) in [
            (&b"a"[..], None),
            (b"a/b.c/..d", None),
            (b"\xff/\n", None),
            (b"", Some(BadPath::Empty)),
            (b"a//b", Some(BadPath::Empty)),
            (b"a/", Some(BadPath::Empty)),
            (b"/a", Some(BadPath::Absolute)),
            (b"./a", Some(BadPath::Dot)),
            (b"a/../b", Some(BadPath::Parent)),
            (b"a\0b", Some(BadPath::Nul)),
            (&[b'n'; 255], None),
            (&[b'n'; 256], Some(BadPath::LongComponent)),
            (&b"ab/".repeat(1366)[..4096], None),
            (&b"ab/".repeat(1366)[..4097], Some(BadPath::Long)),
        ] {
            assert_eq!(EntryPath::new(path).err(), expected, "{}", readable(path));
        }
    }

    #[test]
    fn archive_spellings_are_cleaned_or_refused() {
        let clean = |path: &[u8]| EntryPath::clean(path).map(|path| path.map(|p| p.to_string()));
        assert_eq!(clean(b"./a//b/./c/"), Ok(Some("a/b/c".to_owned())));
        assert_eq!(clean(b"./"), Ok(None));
        assert_eq!(clean(b"."), Ok(None));
        assert_eq!(clean(b""), Err(BadPath::Empty));
        assert_eq!(clean(b"/etc"), Err(BadPath::Absolute));
        assert_eq!(clean(b"a/../../b"), Err(BadPath::Parent));
        assert_eq!(clean(b"a\0"), Err(BadPath::Nul));
        assert_eq!(
            clean(&[&[b'n'; 256], &b"/a"[..]].concat()),
            Err(BadPath::LongComponent)
        );
        assert_eq!(clean(&b"./".repeat(2049)), Err(BadPath::Long));
    }

    #[test]
    fn relations_between_paths() {
        let path = EntryPath::new("a/b/c").unwrap();
        assert_eq!(path.name(), b"c");
        let ancestors: Vec<_> = path.ancestors().map(|path| path.to_string()).collect();
        assert_eq!(ancestors, ["a/b", "a"]);
        assert!(path.is_below(&EntryPath::new("a").unwrap()));
        assert!(!path.is_below(&path));
        assert!(
            !EntryPath::new("ab")
                .unwrap()
                .is_below(&EntryPath::new("a").unwrap())
        );
    }

    #[test]
    fn destinations_follow_copy() {
        for (text, path, into) in [
            ("/var/task/", Some("var/task"), true),
            ("/var/task", Some("var/task"), false),
            ("var/./task/.", Some("var/task"), true),
            ("/", None, true),
            (".", None, true),
            ("//opt", Some("opt"), false),
        ] {
            let destination = Destination::parse(text).unwrap();
            assert_eq!(
                destination.path().map(ToString::to_string).as_deref(),
                path,
                "{text}"
            );
            assert_eq!(destination.takes_files_in(), into, "{text}");
        }
        assert_eq!(Destination::parse(""), Err(BadPath::Empty));
        assert_eq!(Destination::parse("/a/../../etc"), Err(BadPath::Parent));
    }

    #[test]
    fn hostile_names_are_shown_escaped() {
        assert_eq!(readable("é\n\u{1b}[2J".as_bytes()), "é\\n\\u{1b}[2J");
        assert_eq!(readable(b"a\xff"), "a\\xff");
        assert_eq!(shortened(&[b'n'; 255]), "n".repeat(255));
        assert_eq!(shortened(&[b'n'; 300]), "n".repeat(60) + "…");
    }
}
