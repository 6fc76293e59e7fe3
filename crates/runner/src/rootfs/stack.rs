//! Lays layers over each other.
//!
//! A box needs places that an image may lack: something must be mounted at `/proc`, and on
//! `/etc/resolv.conf`. They are found by following the image's symlinks inside the root, once, here,
//! so that who mounts meets no symlink. What is missing goes into a directory on top of the layers,
//! the scaffold. In overlayfs the uppermost layer says what mode a directory has, so the scaffold
//! repeats those of the image's directories that it goes through; and it says them where a layer
//! cannot: for directories that only lower layers describe, and for those that not even their owner
//! may enter.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fchmod, fstat, futimens, linkat, makedev, mkdirat, mknodat,
    openat, readlinkat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::Serialize;
use tierce_oci::DiffId;

use super::cache::Kept;
use super::id::{Id, Kind};
use super::merged::{FileAt, Merged, Resolved, Seen};
use super::note::{Note, NotePath};
use super::places::{Places, ancestors, beneath, components, join, modified_at, open_root, split};
use super::tree::{Attributes, readable};
use super::{CacheError, FileError, Form, RootfsCache};

/// The files of an image, ready to be a root. What holds it keeps its directories from being pruned.
#[derive(Debug)]
pub struct Root {
    /// Directories, the uppermost first, to be laid over each other by overlayfs with the option
    /// `userxattr`; one alone is the whole root. They are never written to: their files are shared
    /// with other roots. Their owner may not be able to enter every directory in them.
    ///
    /// Who mounts them must have capabilities over their owner's files: their owner in a user
    /// namespace in which that is root, or the system's root, before it becomes somebody else.
    /// overlayfs reads an extended attribute of each directory with the rights of who mounted it,
    /// and does not even show a directory that may not be read with them.
    ///
    /// An image has up to 127 layers, whose paths do not fit into the page that `mount` takes.
    pub directories: Vec<PathBuf>,
    /// Where the mount points that were asked for are, in their order: absolute, there, and without
    /// a symlink on the way.
    pub mount_points: Vec<PathBuf>,
    /// Why overlayfs cannot be used for it, if the layers say so.
    pub not_for_overlay: Option<String>,
    _held: Vec<Arc<Kept>>,
}

impl Root {
    /// A root of these directories, which nothing keeps from being removed.
    pub fn of(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            mount_points: Vec::new(),
            not_for_overlay: None,
            _held: Vec::new(),
        }
    }
}

/// Somewhere in the image that something will be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Absolute. Symlinks of the image are followed, inside the root.
    pub path: PathBuf,
    /// What is made there when nothing is.
    pub kind: MountKind,
}

/// What a mount point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// Why layers do not make a root.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A layer is not in the cache.
    #[error("the layer {0} is not unpacked")]
    NotUnpacked(DiffId),
    /// A hardlink's target is in no layer.
    #[error(
        "the layer {layer} cannot be used: `{path}` is a hardlink to `{target}`, which is no file \
         in it or in the layers below"
    )]
    Hardlink {
        /// The layer.
        layer: DiffId,
        /// The hardlink.
        path: String,
        /// What it names.
        target: String,
    },
    /// Symlinks of the layers below lead two members of a layer to one place.
    #[error(
        "the layer {layer} cannot be used: behind symlinks of the layers below, `{path}` is both a \
         directory and none in it"
    )]
    Collision {
        /// The layer.
        layer: DiffId,
        /// Where both lead.
        path: String,
    },
    /// Nothing can be mounted there.
    #[error("nothing can be mounted at `{path}` of the image: {problem}", path = path.display())]
    MountPoint {
        /// The path that was asked for.
        path: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl RootfsCache {
    /// Makes a root of `layers`, lowest first, each of which was unpacked in `form`.
    ///
    /// Where the file system could not say to overlayfs what layers delete it is one directory, as
    /// from [`RootfsCache::flatten`], and says why.
    pub fn stack(
        &self,
        layers: &[DiffId],
        form: Form,
        mount_points: &[MountPoint],
    ) -> Result<Root, StackError> {
        let kept = self.layers_as_fit(layers, form)?;
        let reason = kept
            .iter()
            .find_map(|kept| kept.note.not_for_overlay.clone());
        if reason.is_some() {
            let mut root = self.flatten(layers, form, mount_points)?;
            root.not_for_overlay = reason;
            return Ok(root);
        }
        let mut merged = Merged::new(kept.iter().cloned())?;
        let (plan, mount_points) = Plan::new(&mut merged, form, mount_points)?;
        let scaffold = self.scaffold(&plan, form)?;
        let mut held = vec![scaffold];
        for kept in (0..merged.height()).map(|index| merged.kept(index)) {
            // An image may have a layer twice, which overlayfs refuses. All of the lower one is in the
            // upper one, so nothing is missed.
            if !held.iter().any(|upper| upper.files == kept.files) {
                held.push(kept);
            }
        }
        Ok(Root {
            directories: held.iter().map(|kept| kept.files.clone()).collect(),
            mount_points,
            not_for_overlay: None,
            _held: held,
        })
    }

    /// Makes a root of `layers` as [`RootfsCache::stack`] does, as one directory, for machines
    /// without overlayfs. Its files are hardlinks to those of the layers.
    pub fn flatten(
        &self,
        layers: &[DiffId],
        form: Form,
        mount_points: &[MountPoint],
    ) -> Result<Root, StackError> {
        let kept = self.layers_as_fit(layers, form)?;
        let mut merged = Merged::new(kept)?;
        let (plan, mount_points) = Plan::new(&mut merged, form, mount_points)?;
        let id = Id::of_flat(layers, form, &plan.bytes(form)?);
        let flat = self.hold_or_make(&id, |files| {
            flatten_into(files, &mut merged, &plan, form)?;
            Ok(Note::default())
        })?;
        Ok(Root {
            directories: vec![flat.files.clone()],
            mount_points,
            not_for_overlay: None,
            _held: vec![flat],
        })
    }

    /// The files of a directory of the root that `layers` make: absolute paths, by name. There are
    /// none where there is no such directory. Symlinks on the way to it are followed, inside the root;
    /// what is in it is not looked at, but that it is no directory.
    pub fn files_in(
        &self,
        layers: &[DiffId],
        form: Form,
        directory: &Path,
    ) -> Result<Vec<PathBuf>, StackError> {
        let mut merged = Merged::new(self.layers_as_fit(layers, form)?)?;
        let resolved = merged.resolve(directory.as_os_str().as_bytes(), true)?;
        let Resolved::There(path, Seen::Directory(seen_in)) = resolved else {
            return Ok(Vec::new());
        };
        let names = merged.all_names(&seen_in, &path)?;
        let mut files = Vec::new();
        for name in names {
            let whole = join(&path, &name);
            if let Some(Seen::File(_)) = merged.see(&seen_in, &whole)? {
                files.push(directory.join(OsStr::from_bytes(&name)));
            }
        }
        Ok(files)
    }

    /// Layers, each between what its hardlinks to lower layers come to, above it, and what it
    /// deletes of them, below it. The uppermost is the first.
    fn layers_as_fit(&self, layers: &[DiffId], form: Form) -> Result<Vec<Arc<Kept>>, StackError> {
        let mut below: Vec<Arc<Kept>> = Vec::new();
        for (index, diff_id) in layers.iter().enumerate() {
            let layer = self.hold(&Id::of_layer(*diff_id, form))?;
            let layer = layer.ok_or(StackError::NotUnpacked(*diff_id))?;
            let chain = &layers[..=index];
            let note = &layer.note;
            let deletes = !note.whiteouts.is_empty() || !note.emptied.is_empty();
            let deletions = if deletes && index > 0 {
                let id = Id::of_top(Kind::Deletions, chain, form);
                let make = |files: &Path| {
                    let mut below = Merged::new(below.iter().rev().cloned())?;
                    delete_into(files, &mut below, &layer, form)
                };
                Some(self.hold_or_make(&id, make)?)
            } else {
                None
            };
            // Deletions come before all that the layer has.
            let left: Vec<_> = deletions
                .iter()
                .chain(below.iter().rev())
                .cloned()
                .collect();
            // Most layers describe all directories, and have nothing to be looked for.
            let layer = if index > 0
                && !note.undescribed.is_empty()
                && lies_behind_symlinks(note, &mut Merged::new(left.iter().cloned())?)?
            {
                let id = Id::of_top(Kind::Fitted, chain, form);
                let make = |files: &Path| fit_into(files, left.clone(), &layer, form, *diff_id);
                self.hold_or_make(&id, make)?
            } else {
                layer
            };
            let note = &layer.note;
            let links = if note.links.is_empty() {
                None
            } else {
                let id = Id::of_top(Kind::Links, chain, form);
                let make = |files: &Path| {
                    // A symlink of the layers below may lead back into the layer.
                    let own = std::iter::once(&layer).chain(&left);
                    let mut views = [
                        Merged::new(own.cloned())?,
                        Merged::new(below.iter().rev().cloned())?,
                    ];
                    link_into(files, &mut views, note, form, *diff_id)
                };
                Some(self.hold_or_make(&id, make)?)
            };
            let deletions = deletions.filter(|deletions| !deletions.note.whiteouts.is_empty());
            below.extend(deletions);
            below.push(layer);
            below.extend(links);
        }
        below.reverse();
        Ok(below)
    }

    fn hold_or_make(
        &self,
        id: &Id,
        make: impl FnOnce(&Path) -> Result<Note, StackError>,
    ) -> Result<Arc<Kept>, StackError> {
        if let Some(kept) = self.hold(id)? {
            return Ok(kept);
        }
        let begun = self.begin()?;
        let note = make(&begun.files())?;
        Ok(self.keep(begun, id, note)?)
    }

    fn scaffold(&self, plan: &Plan, form: Form) -> Result<Arc<Kept>, StackError> {
        let id = Id::of_scaffold(&plan.bytes(form)?);
        self.hold_or_make(&id, |files| {
            let mut tree = NewTree::new(files)?;
            plan.add_to(&mut tree, form)?;
            tree.finish(plan.root)?;
            Ok(Note::default())
        })
    }
}

/// What lies on top of layers.
#[derive(Debug, Serialize)]
struct Plan {
    root: Attributes,
    /// Each with all that it lies in, the root apart.
    directories: BTreeMap<NotePath, Attributes>,
    /// Empty files.
    files: BTreeSet<NotePath>,
}

impl Plan {
    /// Decides what layers need on top of them, and where the mount points are.
    fn new(
        merged: &mut Merged,
        form: Form,
        mount_points: &[MountPoint],
    ) -> Result<(Self, Vec<PathBuf>), StackError> {
        let default = undescribed(form);
        let all: Vec<usize> = (0..merged.height()).collect();
        let mut plan = Self {
            root: merged.attributes(&all, b"")?.unwrap_or(default),
            directories: BTreeMap::new(),
            files: BTreeSet::new(),
        };
        plan.repeat_attributes(merged, default)?;
        let mut resolved = Vec::new();
        for mount_point in mount_points {
            resolved.push(plan.add_mount_point(merged, mount_point, default)?);
        }
        Ok((plan, resolved))
    }

    /// Directories whose attributes the uppermost layer that has them does not show.
    fn repeat_attributes(
        &mut self,
        merged: &mut Merged,
        default: Attributes,
    ) -> Result<(), StackError> {
        let mut seen: BTreeMap<Vec<u8>, Option<Vec<usize>>> = BTreeMap::new();
        seen.insert(Vec::new(), Some((0..merged.height()).collect()));
        for index in 0..merged.height() {
            let note = &merged.layer(index).note;
            let paths = note.undescribed.iter().chain(note.closed.keys());
            let paths: Vec<Vec<u8>> = paths.map(|path| path.0.clone()).collect();
            for path in paths {
                let Some(layers) = directory_layers(merged, &mut seen, &path)? else {
                    continue;
                };
                if layers.first() != Some(&index) {
                    continue;
                }
                if let Some(attributes) = merged.attributes(&layers, &path)? {
                    self.add_ancestors(merged, &mut seen, &path, default)?;
                    if !path.is_empty() {
                        self.directories.insert(NotePath(path), attributes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Repeats the directories that `path` lies in, all of which are there.
    fn add_ancestors(
        &mut self,
        merged: &mut Merged,
        seen: &mut BTreeMap<Vec<u8>, Option<Vec<usize>>>,
        path: &[u8],
        default: Attributes,
    ) -> Result<(), StackError> {
        let mut directory = split(path).0;
        while !directory.is_empty() && !self.directories.contains_key(directory) {
            if let Some(layers) = directory_layers(merged, seen, directory)? {
                let attributes = merged.attributes(&layers, directory)?;
                self.directories
                    .insert(NotePath(directory.to_vec()), attributes.unwrap_or(default));
            }
            directory = split(directory).0;
        }
        Ok(())
    }

    fn add_mount_point(
        &mut self,
        merged: &mut Merged,
        mount_point: &MountPoint,
        default: Attributes,
    ) -> Result<PathBuf, StackError> {
        let refused = |problem| StackError::MountPoint {
            path: mount_point.path.clone(),
            problem,
        };
        let wanted = mount_point.path.as_os_str().as_bytes();
        let at = |path: &[u8]| beneath(Path::new("/"), path);
        let (directory, missing) = match merged.resolve(wanted, true)? {
            Resolved::There(path, seen) => {
                return match (mount_point.kind, seen) {
                    (MountKind::Directory, Seen::Directory(_))
                    | (MountKind::File, Seen::File(_)) => Ok(at(&path)),
                    (MountKind::Directory, Seen::File(_)) => {
                        Err(refused("it is a file, and a directory is wanted"))
                    }
                    (MountKind::File, Seen::Directory(_)) => {
                        Err(refused("it is a directory, and a file is wanted"))
                    }
                };
            }
            Resolved::NotADirectory(_) => {
                return Err(refused("it lies in something that is no directory"));
            }
            Resolved::Loop => return Err(refused("symlinks lead to each other")),
            Resolved::Missing(directory, missing) => (directory, missing),
        };
        let mut seen = BTreeMap::new();
        seen.insert(Vec::new(), Some((0..merged.height()).collect()));
        self.add_ancestors(merged, &mut seen, &join(&directory, b"-"), default)?;
        let mut path = directory;
        let last = missing.len().saturating_sub(1);
        for (index, name) in missing.iter().enumerate() {
            path = join(&path, name);
            if index < last || mount_point.kind == MountKind::Directory {
                if self.files.contains(&*path) {
                    return Err(refused(
                        "another mount point is a file that it would lie in",
                    ));
                }
                self.directories
                    .entry(NotePath(path.clone()))
                    .or_insert(default);
            } else if self.directories.contains_key(&*path) {
                return Err(refused("another mount point makes a directory of it"));
            } else {
                self.files.insert(NotePath(path.clone()));
            }
        }
        Ok(at(&path))
    }

    /// All of it as bytes, to be told by.
    fn bytes(&self, form: Form) -> Result<Vec<u8>, CacheError> {
        serde_json::to_vec(&(form.letter(), self)).map_err(|source| CacheError::Note {
            path: PathBuf::from("scaffold"),
            source,
        })
    }

    /// Makes it, where the tree does not have it already.
    fn add_to(&self, tree: &mut NewTree, form: Form) -> Result<(), FileError> {
        for (path, attributes) in &self.directories {
            tree.directory(&path.0, *attributes)?;
        }
        for path in &self.files {
            tree.empty_file(&path.0, form.mode(0o644))?;
        }
        Ok(())
    }
}

/// What a directory has that no layer describes.
fn undescribed(form: Form) -> Attributes {
    Attributes {
        mode: form.mode(0o755),
        modified: 0,
    }
}

/// In which layers the directory `path` is seen, if it is; no symlink is followed.
fn directory_layers(
    merged: &mut Merged,
    seen: &mut BTreeMap<Vec<u8>, Option<Vec<usize>>>,
    path: &[u8],
) -> Result<Option<Vec<usize>>, FileError> {
    let mut at = Vec::new();
    let mut layers = seen.get(&at).cloned().flatten();
    for name in components(path) {
        at = join(&at, name);
        if let Some(known) = seen.get(&at) {
            layers.clone_from(known);
            continue;
        }
        layers = match layers {
            None => None,
            Some(layers) => match merged.see(&layers, &at)? {
                Some(Seen::Directory(layers)) => Some(layers),
                Some(Seen::File(_)) | None => None,
            },
        };
        seen.insert(at.clone(), layers.clone());
    }
    Ok(layers)
}

/// Puts what `layer` deletes of the layers below into `files`. Nothing else is put there, since
/// overlayfs shows a whiteout to whoever lists a directory that no other layer has.
fn delete_into(
    files: &Path,
    merged: &mut Merged,
    layer: &Arc<Kept>,
    form: Form,
) -> Result<Note, StackError> {
    let mut deleted = BTreeSet::new();
    let mut own = Merged::new([Arc::clone(layer)])?;
    for NotePath(path) in &layer.note.whiteouts {
        if replaces_parent(&mut own, merged, path)? {
            continue;
        }
        if let Resolved::There(path, _) = merged.resolve(path, false)?
            && !path.is_empty()
        {
            deleted.insert(NotePath(path));
        }
    }
    for NotePath(directory) in &layer.note.emptied {
        if replaces_parent(&mut own, merged, &join(directory, b"-"))? {
            continue;
        }
        let found = merged.resolve(directory, true)?;
        let Resolved::There(directory, Seen::Directory(layers)) = found else {
            continue;
        };
        for &index in &layers {
            for name in merged.names(index, &directory)? {
                let path = join(&directory, &name);
                if merged.see(&layers, &path)?.is_some() {
                    deleted.insert(NotePath(path));
                }
            }
        }
    }
    let hidden = |path: &NotePath| ancestors(&path.0).any(|ancestor| deleted.contains(ancestor));
    let deleted: BTreeSet<_> = deleted
        .iter()
        .filter(|path| !hidden(path))
        .cloned()
        .collect();
    let mut note = Note::default();
    let mut tree = NewTree::new(files)?;
    let attributes = undescribed(form);
    for NotePath(path) in &deleted {
        tree.undescribed(split(path).0, attributes, &mut note)?;
        if let Some(reason) = tree.whiteout(path)? {
            note.not_for_overlay = Some(reason);
        }
    }
    tree.finish(attributes)?;
    note.whiteouts = deleted;
    Ok(note)
}

/// Whether `path` lies in a directory that the layer `own` puts in the place of something else, so
/// that nothing that is below has to do with it.
fn replaces_parent(own: &mut Merged, below: &mut Merged, path: &[u8]) -> Result<bool, FileError> {
    let mut directory = Vec::new();
    let mut layers: Vec<usize> = (0..below.height()).collect();
    for name in components(split(path).0) {
        directory = join(&directory, name);
        match below.see(&layers, &directory)? {
            Some(Seen::Directory(seen)) => layers = seen,
            Some(Seen::File(_)) => {
                let note = &own.layer(0).note;
                let described = !note.undescribed.contains(&*directory);
                return Ok(
                    described && matches!(own.see(&[0], &directory)?, Some(Seen::Directory(_)))
                );
            }
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// Whether a layer has something in a directory that no member of it describes and that is a
/// symlink in the layers below: such members are where the symlink leads, as if the layer had been
/// unpacked over the others (as containerd does it).
fn lies_behind_symlinks(note: &Note, below: &mut Merged) -> Result<bool, FileError> {
    let mut seen = BTreeMap::new();
    seen.insert(Vec::new(), Some((0..below.height()).collect()));
    for NotePath(path) in &note.undescribed {
        let Some(layers) = directory_layers(below, &mut seen, split(path).0)? else {
            continue;
        };
        match below.see(&layers, path)? {
            Some(Seen::File(file)) if file.is_symlink() => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// Puts the members of a layer where they would be had the layer been unpacked over those below.
///
/// The order that they had in the archive is no longer known. It is taken to be that of their paths,
/// in which most tools write layers.
fn fit_into(
    files: &Path,
    below: Vec<Arc<Kept>>,
    layer: &Arc<Kept>,
    form: Form,
    diff_id: DiffId,
) -> Result<Note, StackError> {
    let default = undescribed(form);
    let mut own = Merged::new([Arc::clone(layer)])?;
    let mut tree = NewTree::new(files)?;
    let made = Arc::new(Kept::in_the_making(files.to_owned()));
    let mut over = Merged::new(std::iter::once(made).chain(below))?;
    let mut note = Note::default();
    let mut described = BTreeSet::new();
    // Where each directory went. All of them are there, so nothing that comes later leads elsewhere.
    let mut places = BTreeMap::from([(Vec::new(), Vec::new())]);
    let mut left: Vec<Vec<u8>> = own_names(&mut own, b"")?;
    while let Some(path) = left.pop() {
        let (directory, name) = split(&path);
        let at = join(&places[directory], name);
        match own.see(&[0], &path)? {
            Some(Seen::Directory(_)) => {
                let attributes = own.attributes(&[0], &path)?;
                let at = match attributes {
                    Some(_) => at,
                    None => behind_symlinks(&mut over, at)?,
                };
                if matches!(over.first_file(&at)?, Some(FileAt { layer: 0, .. })) {
                    return Err(collision(diff_id, &at));
                }
                match attributes {
                    Some(attributes) => {
                        tree.directory(&at, attributes)?;
                        described.insert(NotePath(at.clone()));
                        match layer.note.closed.get(&*path) {
                            Some(closed) => note.closed.insert(NotePath(at.clone()), *closed),
                            None => note.closed.remove(&*at),
                        };
                    }
                    None => tree.undescribed(&at, default, &mut note)?,
                }
                left.extend(own_names(&mut own, &path)?);
                places.insert(path, at);
            }
            Some(Seen::File(file)) => {
                if over.is_directory_of(0, &at)? {
                    return Err(collision(diff_id, &at));
                }
                tree.link(&at, &mut own, file, &path)?;
            }
            None => {}
        }
    }
    for (NotePath(path), target) in &layer.note.links {
        let (directory, name) = split(path);
        let Some(place) = places.get(directory) else {
            return Err(StackError::Hardlink {
                layer: diff_id,
                path: readable(path),
                target: readable(&target.0),
            });
        };
        let at = join(place, name);
        if over.is_directory_of(0, &at)? {
            return Err(collision(diff_id, &at));
        }
        note.links.insert(NotePath(at), target.clone());
    }
    for NotePath(path) in note.links.keys() {
        if let Some(link) = ancestors(path).find(|path| note.links.contains_key(*path)) {
            return Err(collision(diff_id, link));
        }
    }
    note.undescribed.retain(|path| !described.contains(path));
    tree.finish_as_layer(&note, default)?;
    Ok(note)
}

/// What is in a directory of a layer, so that what is taken from the end comes in order.
fn own_names(own: &mut Merged, directory: &[u8]) -> Result<Vec<Vec<u8>>, FileError> {
    let names = own.all_names(&[0], directory)?;
    Ok(names
        .iter()
        .rev()
        .map(|name| join(directory, name))
        .collect())
}

/// Where the directory `path` is if there is a symlink, followed to its end.
fn behind_symlinks(over: &mut Merged, path: Vec<u8>) -> Result<Vec<u8>, FileError> {
    if !over.first_file(&path)?.is_some_and(FileAt::is_symlink) {
        return Ok(path);
    }
    Ok(match over.resolve(&path, true)? {
        Resolved::There(found, Seen::Directory(_)) => found,
        Resolved::Missing(found, missing) => {
            missing.iter().fold(found, |found, name| join(&found, name))
        }
        // It leads to no directory: the layer's takes its place.
        _ => path,
    })
}

fn collision(layer: DiffId, path: &[u8]) -> StackError {
    StackError::Collision {
        layer,
        path: readable(path),
    }
}

/// Puts what hardlinks of a layer name in the layers below into `files`: what the first of `views`
/// that has a file there has.
fn link_into(
    files: &Path,
    views: &mut [Merged; 2],
    layer: &Note,
    form: Form,
    diff_id: DiffId,
) -> Result<Note, StackError> {
    let mut note = Note::default();
    let mut tree = NewTree::new(files)?;
    let attributes = undescribed(form);
    for (NotePath(path), NotePath(target)) in &layer.links {
        tree.undescribed(split(path).0, attributes, &mut note)?;
        let end = end_of_links(&mut views[0], &layer.links, target)?;
        let mut linked = false;
        for view in &mut *views {
            if let Resolved::There(found, Seen::File(file)) = view.resolve(end, false)? {
                tree.link(path, view, file, &found)?;
                linked = true;
                break;
            }
        }
        if !linked {
            return Err(StackError::Hardlink {
                layer: diff_id,
                path: readable(path),
                target: readable(target),
            });
        }
        note.entries += 1;
    }
    tree.finish(attributes)?;
    Ok(note)
}

/// What a hardlink to `target` comes to when that is a hardlink itself, behind symlinks of the layers
/// below.
fn end_of_links<'l>(
    view: &mut Merged,
    links: &'l BTreeMap<NotePath, NotePath>,
    target: &'l [u8],
) -> Result<&'l [u8], FileError> {
    let mut end = target;
    // Links that lead to each other are found out where there is no file.
    for _ in 0..links.len() {
        let place = match view.resolve(end, false)? {
            Resolved::There(place, _) => place,
            Resolved::Missing(place, missing) => {
                missing.iter().fold(place, |place, name| join(&place, name))
            }
            Resolved::NotADirectory(_) | Resolved::Loop => break,
        };
        match links.get(&*place) {
            Some(NotePath(next)) => end = next,
            None => break,
        }
    }
    Ok(end)
}

/// Puts all that is seen, and the plan, into `files`.
fn flatten_into(
    files: &Path,
    merged: &mut Merged,
    plan: &Plan,
    form: Form,
) -> Result<(), FileError> {
    let mut tree = NewTree::new(files)?;
    let all = (0..merged.height()).collect::<Vec<_>>();
    let mut left = vec![(Vec::new(), all)];
    while let Some((directory, layers)) = left.pop() {
        let names = merged.all_names(&layers, &directory)?;
        let mut below = Vec::new();
        for name in names {
            let path = join(&directory, &name);
            match merged.see(&layers, &path)? {
                Some(Seen::Directory(layers)) => {
                    let attributes = merged.attributes(&layers, &path)?;
                    tree.directory(&path, attributes.unwrap_or_else(|| undescribed(form)))?;
                    below.push((path, layers));
                }
                Some(Seen::File(file)) => tree.link(&path, merged, file, &path)?,
                None => {}
            }
        }
        left.extend(below.into_iter().rev());
    }
    plan.add_to(&mut tree, form)?;
    tree.finish(plan.root)
}

/// A tree that is being made in an empty directory.
struct NewTree {
    files: PathBuf,
    places: Places,
    /// With what they get at the end.
    directories: BTreeMap<Vec<u8>, Attributes>,
}

impl NewTree {
    fn new(files: &Path) -> Result<Self, FileError> {
        let root = open_root(files).map_err(FileError::of("open", files))?;
        Ok(Self {
            files: files.to_owned(),
            places: Places::new(root),
            directories: BTreeMap::new(),
        })
    }

    fn failed(&self, path: &[u8]) -> impl FnOnce(Errno) -> FileError + use<> {
        FileError::of("write", beneath(&self.files, path))
    }

    /// Makes a directory if it is not there, and has it get these attributes.
    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), FileError> {
        let failed = self.failed(path);
        let made = self
            .places
            .parent(path)
            .and_then(|(parent, name)| mkdirat(parent, name, Mode::RWXU));
        match made {
            Ok(()) | Err(Errno::EXIST) => {
                self.directories.insert(path.to_vec(), attributes);
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes directories that are only there because something is in them, and notes them.
    fn undescribed(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        note: &mut Note,
    ) -> Result<(), FileError> {
        let mut directory = Vec::new();
        for name in components(path) {
            directory = join(&directory, name);
            if !self.directories.contains_key(&directory) {
                self.directory(&directory, attributes)?;
                note.undescribed.insert(NotePath(directory.clone()));
            }
        }
        Ok(())
    }

    /// Says to overlayfs that `path` is deleted, by the one device that anybody may make, since
    /// Linux 5.8. A file system or a container that does not let us is no reason to fail: it is
    /// told why.
    fn whiteout(&mut self, path: &[u8]) -> Result<Option<String>, FileError> {
        let failed = self.failed(path);
        let made = self.places.parent(path).and_then(|(parent, name)| {
            let device = makedev(0, 0);
            mknodat(
                parent,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                device,
            )
        });
        match made {
            Ok(()) => Ok(None),
            Err(
                error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL | Errno::NOSYS),
            ) => {
                let system = io::Error::from(error);
                Ok(Some(format!("a whiteout cannot be made: {system}")))
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn empty_file(&mut self, path: &[u8], mode: u32) -> Result<(), FileError> {
        let failed = self.failed(path);
        let make = |places: &mut Places| {
            let (parent, name) = places.parent(path)?;
            let file = openat(parent, name, NEW_FILE, Mode::RUSR)?;
            fchmod(&file, Mode::from_raw_mode(mode))?;
            futimens(&file, &modified_at(0))
        };
        make(&mut self.places).map_err(failed)
    }

    /// Gives a file of a layer another name here.
    fn link(
        &mut self,
        path: &[u8],
        merged: &mut Merged,
        file: FileAt,
        at: &[u8],
    ) -> Result<(), FileError> {
        let failed = self.failed(path);
        let mut link = |to: &mut Places| {
            let (from, old_name) = merged.places(file.layer).parent(at)?;
            let (to, name) = to.parent(path)?;
            match linkat(from, old_name, to, name, AtFlags::empty()) {
                // The file has all the names it can have, or the file system gives it none.
                Err(Errno::MLINK | Errno::PERM | Errno::NOTSUP | Errno::XDEV) => {
                    if file.is_symlink() {
                        let target = readlinkat(from, old_name, Vec::new())?;
                        symlinkat(target, to, name)
                    } else {
                        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let from = openat(from, old_name, flags, Mode::empty())?;
                        copy(from, openat(to, name, NEW_FILE, Mode::RUSR)?)
                    }
                }
                // Two members of a layer that came to one place: the later is there.
                Err(Errno::EXIST) => {
                    unlinkat(to, name, AtFlags::empty())?;
                    linkat(from, old_name, to, name, AtFlags::empty())
                }
                linked => linked,
            }
        };
        link(&mut self.places).map_err(failed)
    }

    /// As [`NewTree::finish`], for a tree that will be stacked: closed directories, which are noted,
    /// stay such that they can be linked from.
    fn finish_as_layer(mut self, note: &Note, root: Attributes) -> Result<(), FileError> {
        for (path, attributes) in &mut self.directories {
            if note.closed.contains_key(&**path) {
                attributes.mode |= 0o500;
            }
        }
        self.finish(root)
    }

    /// Gives directories their attributes, the deepest first: there are some that cannot be entered
    /// afterwards.
    fn finish(mut self, root: Attributes) -> Result<(), FileError> {
        self.directories.insert(Vec::new(), root);
        // In the order of bytes a directory comes before all that is in it.
        for (path, attributes) in std::mem::take(&mut self.directories).iter().rev() {
            let failed = self.failed(path);
            let settle = |places: &mut Places| {
                let directory = places.directory(path)?;
                futimens(directory, &modified_at(attributes.modified))?;
                fchmod(directory, Mode::from_raw_mode(attributes.mode))
            };
            settle(&mut self.places).map_err(failed)?;
        }
        Ok(())
    }
}

const NEW_FILE: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::WRONLY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Copies a file with its mode and time.
fn copy(from: std::os::fd::OwnedFd, to: std::os::fd::OwnedFd) -> Result<(), Errno> {
    let stat = fstat(&from)?;
    let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
    io::copy(&mut from, &mut to)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o1777))?;
    futimens(&to, &modified_at(stat.st_mtime))
}
