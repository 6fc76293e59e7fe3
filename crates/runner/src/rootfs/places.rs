//! Directories by descriptors: how files are reached without following anything.
//!
//! A path here is bytes, relative to a root, `/`-separated, with no component that is empty, `.` or
//! `..`; empty bytes are the root itself. Each component must be a directory, so that not even a
//! symlink that should not be there leads anywhere.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

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

/// What is under a root. The directory that was reached last stays open.
#[derive(Debug)]
pub(super) struct Places {
    root: OwnedFd,
    last: Option<(Box<[u8]>, OwnedFd)>,
}

impl Places {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, last: None }
    }

    /// The directory at `path`.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        let last = match self.last.take() {
            Some(last) if *last.0 == *path => last,
            _ => (path.into(), walk_at_once(&self.root, path)?),
        };
        Ok(self.last.insert(last).1.as_fd())
    }

    /// The directory that holds `path`, and the name in it.
    pub(super) fn parent<'p>(
        &mut self,
        path: &'p [u8],
    ) -> Result<(BorrowedFd<'_>, &'p [u8]), Errno> {
        let (parent, name) = split(path);
        Ok((self.directory(parent)?, name))
    }

    /// Closes what is open: directories are about to be removed.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

/// Opens the directory `path` in one call, where the kernel has it (Linux 5.6) and lets us.
fn walk_at_once(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let opened = rustix::fs::openat2(
        root,
        path,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    );
    match opened {
        // Old sandboxes refuse what they do not know with EPERM.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::NAMETOOLONG) => walk(root, path),
        opened => opened,
    }
}

/// Opens the directory `path`, component by component.
fn walk(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut components = components(path);
    let mut directory = open_directory(root, components.next().unwrap_or(b"."))?;
    for name in components {
        directory = open_directory(&directory, name)?;
    }
    Ok(directory)
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

/// The directories that a path lies in, the nearest first, the root apart.
pub(super) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(split(path).0), |path| Some(split(path).0))
        .take_while(|path| !path.is_empty())
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
        std::os::unix::fs::symlink("below", root.path().join("real/last")).unwrap();
        let opened = open_root(root.path()).unwrap();
        for open in [walk_at_once, walk] {
            assert!(open(&opened, b"real/below").is_ok());
            for path in [&b"link"[..], b"link/below", b"real/last"] {
                let refused = open(&opened, path).unwrap_err();
                assert!([Errno::NOTDIR, Errno::LOOP].contains(&refused), "{refused}");
            }
            assert_eq!(open(&opened, b"real/none").unwrap_err(), Errno::NOENT);
        }
        let mut places = Places::new(opened);
        assert!(places.directory(b"").is_ok());
        assert!(places.parent(b"real/name").is_ok());
        assert_eq!(places.parent(b"name").unwrap().1, b"name");
    }
}
