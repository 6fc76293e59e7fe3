//! Directories by descriptors: how files are reached without following anything.
//!
//! A path here is bytes, relative to a root, `/`-separated, with no component that is empty, `.` or
//! `..`; empty bytes are the root itself. Each component is opened for itself and must be a
//! directory, so that not even a symlink that should not be there leads anywhere.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

/// How many directories are held open at once. What lies deeper is walked to again each time, and
/// who has a hundred directories in each other has other worries.
const MOST_OPEN: usize = 64;

/// Opens the directory at `path`, one of our own.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens the directory `name` in `parent`.
pub(super) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What is under a root, with the way to the last place kept open.
#[derive(Debug)]
pub(super) struct Places {
    root: OwnedFd,
    /// The components from the root on.
    open: Vec<(Box<[u8]>, OwnedFd)>,
}

/// A directory, held by [`Places`] or for the moment.
#[derive(Debug)]
pub(super) enum Directory<'a> {
    Held(BorrowedFd<'a>),
    Own(OwnedFd),
}

impl AsFd for Directory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(directory) => *directory,
            Self::Own(directory) => directory.as_fd(),
        }
    }
}

impl Places {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            open: Vec::new(),
        }
    }

    /// The directory at `path`.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Directory<'_>, Errno> {
        let mut components = components(path).peekable();
        let mut shared = 0;
        while let Some((name, _)) = self.open.get(shared)
            && components.next_if(|next| **next == **name).is_some()
        {
            shared += 1;
        }
        self.open.truncate(shared);
        while self.open.len() < MOST_OPEN
            && let Some(name) = components.next()
        {
            let parent = self.open.last().map_or(&self.root, |(_, open)| open);
            let directory = open_directory(parent, name)?;
            self.open.push((name.into(), directory));
        }
        let mut deep = None;
        for name in components {
            let next = match &deep {
                None => {
                    let parent = self.open.last().map_or(&self.root, |(_, open)| open);
                    open_directory(parent, name)?
                }
                Some(parent) => open_directory(parent, name)?,
            };
            deep = Some(next);
        }
        Ok(match deep {
            Some(directory) => Directory::Own(directory),
            None => {
                let held = self.open.last().map_or(&self.root, |(_, open)| open);
                Directory::Held(held.as_fd())
            }
        })
    }

    /// The directory that holds `path`, and the name in it.
    pub(super) fn parent<'p>(
        &mut self,
        path: &'p [u8],
    ) -> Result<(Directory<'_>, &'p [u8]), Errno> {
        let (parent, name) = split(path);
        Ok((self.directory(parent)?, name))
    }

    /// Closes what is open: directories are about to be removed.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }
}

/// The parts of a path.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|component| !component.is_empty())
}

/// The directory and the name of a path; both are empty for the root.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// `name` in `directory`.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, name].join(&b'/')
}

/// Where a path below `root` is, for people and for paths that are handed on.
pub(super) fn beneath(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        return root.to_owned();
    }
    root.join(OsStr::from_bytes(path))
}

/// Times of a file that was last changed then.
pub(super) fn modified_at(seconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn paths_come_apart_and_together() {
        for (path, directory, name) in [
            (&b"a/b/c"[..], &b"a/b"[..], &b"c"[..]),
            (b"a", b"", b"a"),
            (b"", b"", b""),
        ] {
            assert_eq!(split(path), (directory, name));
            assert_eq!(join(directory, name), path);
        }
        assert_eq!(components(b"").count(), 0);
    }

    #[test]
    fn symlinks_are_no_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("real/below")).unwrap();
        std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
        let mut places = Places::new(open_root(root.path()).unwrap());
        assert!(places.directory(b"real/below").is_ok());
        assert!(places.directory(b"").is_ok());
        let refused = places.directory(b"link/below").unwrap_err();
        assert!([Errno::NOTDIR, Errno::LOOP].contains(&refused), "{refused}");
        assert!(places.parent(b"real/name").is_ok());
    }

    #[test]
    fn any_depth_is_reached_with_few_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let mut places = Places::new(open_root(root.path()).unwrap());
        let mut path = Vec::new();
        for _ in 0..600 {
            let directory = places.directory(&path).unwrap();
            rustix::fs::mkdirat(&directory, "d", Mode::from_raw_mode(0o700)).unwrap();
            path = join(&path, b"d");
        }
        assert!(matches!(
            places.directory(&path).unwrap(),
            Directory::Own(_)
        ));
        assert_eq!(places.open.len(), MOST_OPEN);
        super::super::remove::remove_tree(root.path()).unwrap();
        assert!(!root.path().exists());
    }
}
