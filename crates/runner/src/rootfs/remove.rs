//! Removing trees that somebody else described.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, chmodat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::places::{open_directory, open_root};

/// Removes the directory `path`, one of our own, with all that is in it, however deep that is and
/// whatever modes directories in it have. Nothing may change it meanwhile.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open_root(path)?;
    empty(&top)?;
    drop(top);
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes the directory `name` in `parent` with all that is in it, by way of `trash`, an empty
/// directory of the same file system.
pub(super) fn remove_directory(parent: impl AsFd, name: &[u8], trash: &OwnedFd) -> io::Result<()> {
    make_enterable(&parent, name)?;
    renameat(&parent, name, trash, "0")?;
    empty(trash)
}

/// Empties a directory. What is too deep for one step is moved up into it, so that the depth needs
/// neither stack nor descriptors.
fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let entries = list(top)?;
        if entries.is_empty() {
            return Ok(());
        }
        for (name, kind) in entries {
            if kind != FileType::Directory {
                unlinkat(top, &name, AtFlags::empty())?;
                continue;
            }
            make_enterable(top, name.as_bytes())?;
            let directory = open_directory(top, name.as_bytes())?;
            for (below, kind) in list(&directory)? {
                if kind != FileType::Directory {
                    unlinkat(&directory, &below, AtFlags::empty())?;
                } else if unlinkat(&directory, &below, AtFlags::REMOVEDIR).is_err() {
                    // Moving a directory writes its `..`.
                    make_enterable(&directory, below.as_bytes())?;
                    move_up(&directory, &below, top, &mut moved)?;
                }
            }
            unlinkat(top, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Moves `name` to a name in `top` that is free.
fn move_up(directory: &OwnedFd, name: &CString, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match renameat(directory, name, top, format!(".moved-{moved}")) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives a directory a mode with which its owner can empty it.
fn make_enterable(parent: impl AsFd, name: &[u8]) -> io::Result<()> {
    let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_mode & 0o700 != 0o700
    {
        chmodat(&parent, name, Mode::RWXU, AtFlags::empty())?;
    }
    Ok(())
}

/// Names and kinds of what is in a directory.
pub(super) fn list(directory: impl AsFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say it here.
            FileType::Unknown => {
                let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        entries.push((name.to_owned(), kind));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn any_depth_is_removed_with_few_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut directory = open_root(&tree).unwrap();
        for _ in 0..1100 {
            mkdirat(&directory, "d", Mode::RWXU).unwrap();
            directory = open_directory(&directory, b"d").unwrap();
        }
        drop(directory);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn closed_directories_and_links_are_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c/d")).unwrap();
        fs::create_dir_all(tree.join(".moved-1/x/y")).unwrap();
        fs::write(tree.join(".moved-2"), "").unwrap();
        fs::write(tree.join("a/b/c/d/file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/b/link")).unwrap();
        for closed in ["a/b/c/d", "a/b/c", "a/b", "a"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
    }
}
