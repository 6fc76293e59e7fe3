//! Several layers seen as one tree, by the rules of overlayfs and the image specification.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, readlinkat, statat};
use rustix::io::Errno;

use super::FileError;
use super::cache::Kept;
use super::places::{Places, beneath, components, join, open_root, split};
use super::tree::{Attributes, MOST_SYMLINKS};

/// Layers over each other.
#[derive(Debug)]
pub(super) struct Merged {
    /// The uppermost first.
    layers: Vec<(Arc<Kept>, Places)>,
}

/// What is seen at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// A directory, and in which layers it is, the uppermost first.
    Directory(Vec<usize>),
    /// Something else.
    File(FileAt),
}

/// A file, symlink or other of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileAt {
    pub(super) layer: usize,
    pub(super) kind: FileType,
}

impl FileAt {
    pub(super) fn is_symlink(self) -> bool {
        self.kind == FileType::Symlink
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resolved {
    /// To something that is there.
    There(Vec<u8>, Seen),
    /// To nothing; the directory that is there comes first, then the names that are not.
    Missing(Vec<u8>, Vec<Vec<u8>>),
    /// Through something that is no directory.
    NotADirectory(Vec<u8>),
    /// Nowhere: symlinks lead to each other.
    Loop,
}

impl Merged {
    /// Sees `layers`, the uppermost first.
    pub(super) fn new(layers: impl IntoIterator<Item = Arc<Kept>>) -> Result<Self, FileError> {
        let mut opened = Vec::new();
        for layer in layers {
            let root = open_root(&layer.files).map_err(FileError::of("open", &layer.files))?;
            opened.push((layer, Places::new(root)));
        }
        Ok(Self { layers: opened })
    }

    pub(super) fn layer(&self, index: usize) -> &Kept {
        &self.layers[index].0
    }

    pub(super) fn kept(&self, index: usize) -> Arc<Kept> {
        Arc::clone(&self.layers[index].0)
    }

    pub(super) fn places(&mut self, index: usize) -> &mut Places {
        &mut self.layers[index].1
    }

    /// How many layers there are.
    pub(super) fn height(&self) -> usize {
        self.layers.len()
    }

    /// The root.
    pub(super) fn root(&self) -> Seen {
        Seen::Directory((0..self.layers.len()).collect())
    }

    /// What is seen at `path`, whose directory is in `layers`. No symlink is followed.
    pub(super) fn see(&mut self, layers: &[usize], path: &[u8]) -> Result<Option<Seen>, FileError> {
        let mut seen = Vec::new();
        for &index in layers {
            match self.kind(index, path)? {
                None if self.deletes(index, path) => break,
                None => {}
                Some(FileType::Directory) => {
                    seen.push(index);
                }
                Some(kind) if seen.is_empty() => {
                    return Ok(Some(Seen::File(FileAt { layer: index, kind })));
                }
                Some(_) => break,
            }
        }
        Ok((!seen.is_empty()).then_some(Seen::Directory(seen)))
    }

    /// What comes first on the way to `path`, or at it, that is no directory.
    pub(super) fn first_file(&mut self, path: &[u8]) -> Result<Option<FileAt>, FileError> {
        let mut layers: Vec<usize> = (0..self.height()).collect();
        let mut at = Vec::new();
        for name in components(path) {
            at = join(&at, name);
            match self.see(&layers, &at)? {
                Some(Seen::Directory(below)) => layers = below,
                Some(Seen::File(file)) => return Ok(Some(file)),
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether one layer has a directory at `path`.
    pub(super) fn is_directory_of(&mut self, layer: usize, path: &[u8]) -> Result<bool, FileError> {
        Ok(self.kind(layer, path)? == Some(FileType::Directory))
    }

    /// Whether a layer is there to delete, and deletes `path`.
    fn deletes(&self, index: usize, path: &[u8]) -> bool {
        let layer = &self.layers[index].0;
        layer.deletions && layer.note.whiteouts.contains(path)
    }

    /// What one layer has at `path`, deletions apart.
    fn kind(&mut self, index: usize, path: &[u8]) -> Result<Option<FileType>, FileError> {
        let (layer, places) = &mut self.layers[index];
        let look = || {
            let (parent, name) = places.parent(path)?;
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        };
        match { look }() {
            // Layers have no devices: this is a deletion, and it is noted as well.
            Ok(FileType::CharacterDevice) | Err(Errno::NOENT) => Ok(None),
            Ok(kind) => Ok(Some(kind)),
            Err(error) => Err(FileError::of("look at", beneath(&layer.files, path))(error)),
        }
    }

    /// The attributes of a directory that is in `layers`: the uppermost's whose archive has some.
    pub(super) fn attributes(
        &mut self,
        layers: &[usize],
        path: &[u8],
    ) -> Result<Option<Attributes>, FileError> {
        for &index in layers {
            let (layer, places) = &mut self.layers[index];
            if let Some(closed) = layer.note.closed.get(path) {
                return Ok(Some(*closed));
            }
            if layer.note.undescribed.contains(path) {
                continue;
            }
            let stat = places.directory(path).and_then(rustix::fs::fstat);
            let stat = stat.map_err(FileError::of("look at", beneath(&layer.files, path)))?;
            return Ok(Some(Attributes {
                mode: stat.st_mode & 0o7777,
                modified: stat.st_mtime,
            }));
        }
        Ok(None)
    }

    /// Where a symlink leads.
    fn target(&mut self, file: FileAt, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let (layer, places) = &mut self.layers[file.layer];
        let read = || {
            let (parent, name) = places.parent(path)?;
            readlinkat(parent, name, Vec::new())
        };
        let read: Result<_, Errno> = { read }();
        let target = read.map_err(FileError::of("read", beneath(&layer.files, path)))?;
        Ok(target.into_bytes())
    }

    /// Follows `path` inside the root, with or without its last component being followed.
    pub(super) fn resolve(&mut self, path: &[u8], follow: bool) -> Result<Resolved, FileError> {
        let mut left: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        left.reverse();
        let mut way = vec![(Vec::new(), (0..self.height()).collect::<Vec<_>>())];
        let mut symlinks = 0;
        while let Some(name) = left.pop() {
            match &*name {
                b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some((directory, layers)) = way.last() else {
                break;
            };
            let whole = join(directory, &name);
            let layers = layers.clone();
            match self.see(&layers, &whole)? {
                Some(Seen::Directory(layers)) => way.push((whole, layers)),
                Some(Seen::File(file)) if file.is_symlink() && (follow || !left.is_empty()) => {
                    symlinks += 1;
                    if symlinks > MOST_SYMLINKS {
                        return Ok(Resolved::Loop);
                    }
                    let target = self.target(file, &whole)?;
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    let target: Vec<_> = components(&target).map(<[u8]>::to_vec).collect();
                    left.extend(target.into_iter().rev());
                }
                Some(Seen::File(_)) if !left.is_empty() => {
                    return Ok(Resolved::NotADirectory(whole));
                }
                Some(file) => return Ok(Resolved::There(whole, file)),
                None => {
                    let mut missing = vec![name];
                    while let Some(name) = left.pop() {
                        match &*name {
                            b"." => {}
                            b".." if missing.len() > 1 => {
                                missing.pop();
                            }
                            // Out of what is missing again; nobody's mount point.
                            b".." => return Ok(Resolved::NotADirectory(whole)),
                            _ => missing.push(name),
                        }
                    }
                    let directory = split(&whole).0.to_vec();
                    return Ok(Resolved::Missing(directory, missing));
                }
            }
        }
        Ok(match way.pop() {
            Some((path, layers)) => Resolved::There(path, Seen::Directory(layers)),
            None => Resolved::There(Vec::new(), self.root()),
        })
    }

    /// Names in the directory `path` of all these layers, in their order, deletions apart.
    pub(super) fn all_names(
        &mut self,
        layers: &[usize],
        path: &[u8],
    ) -> Result<BTreeSet<Vec<u8>>, FileError> {
        let mut names = BTreeSet::new();
        for &index in layers {
            names.extend(self.names(index, path)?);
        }
        Ok(names)
    }

    /// Names in the directory `path` of one layer, deletions apart.
    pub(super) fn names(&mut self, index: usize, path: &[u8]) -> Result<Vec<Vec<u8>>, FileError> {
        let (layer, places) = &mut self.layers[index];
        let list = || -> io::Result<_> { super::remove::list(places.directory(path)?) };
        let listed = { list }().map_err(FileError::of("read", beneath(&layer.files, path)))?;
        Ok(listed
            .into_iter()
            .filter(|(_, kind)| *kind != FileType::CharacterDevice)
            .map(|(name, _)| name.into_bytes())
            .collect())
    }
}
