//! What the members of a layer's archive come to, decided by names alone.
//!
//! A layer is unpacked into an empty directory, so that everything that can be on the way of a
//! member is known here. A member whose directory is reached through a symlink of the same layer is
//! put where that leads inside the root, as Docker does it (`FollowSymlinkInScope`); the last
//! component is never followed. Of several members with one path the last wins, except that a
//! directory that is named again keeps what is in it.
//!
//! Deletions concern the layers below and nothing of this one, wherever in the archive they stand
//! (image specification, `layer.md`, "Whiteouts"), so they are looked at in the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tierce_layer::EntryPath;
use tierce_layer::whiteout::Marker;

use super::places::join;

/// Mode and time of a directory or file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) modified: i64,
}

/// As many symlinks as Linux follows on one path.
pub(super) const MOST_SYMLINKS: u32 = 40;
/// As long as Linux takes a path. Symlinks can make it longer than any name in the archive.
const LONGEST_PATH: usize = 4096;

/// Why a member has no place in a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// It lies in something that is no directory.
    #[error("it lies in `{0}`, which is no directory")]
    NotADirectory(String),
    /// The symlinks on its way do not end.
    #[error("the symlinks on its way lead to each other")]
    Loop,
    /// The symlinks on its way make its path too long.
    #[error("its path has more than 4096 bytes")]
    TooLong,
    /// There are too many directories that no member describes.
    #[error("it would be in one directory too many of those that the archive does not describe")]
    TooManyDirectories,
    /// A hardlink to itself, to a directory, or to a member that comes after it.
    #[error("it is a hardlink to `{target}`, which {problem}")]
    Hardlink {
        /// What it names.
        target: String,
        /// What is wrong with that.
        problem: &'static str,
    },
}

/// Names a directory of a [`LayerTree`].
type DirectoryIndex = usize;
const ROOT: DirectoryIndex = 0;

/// A name in a directory.
#[derive(Debug)]
enum Node {
    Directory(DirectoryIndex),
    File,
    Symlink(Box<[u8]>),
    /// A hardlink to what the layers below have at this path.
    Below(Vec<u8>),
}

impl Node {
    /// Whether there is something of it in this layer's directory.
    fn is_made(&self) -> bool {
        !matches!(self, Self::Below(_))
    }
}

#[derive(Debug, Default)]
struct Directory {
    names: BTreeMap<Box<[u8]>, Node>,
    /// `None` when no member describes it.
    attributes: Option<Attributes>,
    /// Whether nothing that lower layers have in its place is seen.
    opaque: bool,
}

/// What has been in the archive so far.
#[derive(Debug)]
pub(super) struct LayerTree {
    directories: Vec<Directory>,
    /// How many directories that no member describes may still be made.
    undescribed: u64,
    /// Deletions.
    markers: Vec<Marker>,
}

/// Where a member goes: what has to be done there, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Directories to be made, each after the one that it lies in.
    pub(super) directories: Vec<Vec<u8>>,
    /// What is at the path now and has to go.
    pub(super) replaces: Option<Replaced>,
    /// Where it goes, without a symlink on its way.
    pub(super) path: Vec<u8>,
}

/// What is removed for a member that comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    /// A file, symlink or hardlink.
    File,
    /// A directory with all that is in it.
    Directory,
}

/// What a hardlink comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Linked {
    /// Another name for this path of the same layer.
    To(Vec<u8>, Place),
    /// The layers below have what it names; nothing has to be made but the place.
    Below(Place),
    /// It is that name already.
    Already,
}

/// A layer's tree, when the archive is at its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Finished {
    /// All directories, each before what is in it; the root is the first. Those without attributes
    /// are described by no member.
    pub(super) directories: Vec<(Vec<u8>, Option<Attributes>)>,
    /// Paths that layers below may have and that are deleted there, whatever this layer has.
    pub(super) whiteouts: BTreeSet<Vec<u8>>,
    /// Directories of layers below that are emptied.
    pub(super) emptied: BTreeSet<Vec<u8>>,
    /// Hardlinks to what is in layers below: their paths and what they name.
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl LayerTree {
    /// An empty one, in which at most `undescribed` directories come to be without a member.
    pub(super) fn new(undescribed: u64) -> Self {
        Self {
            directories: vec![Directory::default()],
            undescribed,
            markers: Vec::new(),
        }
    }

    /// A deletion.
    pub(super) fn marker(&mut self, marker: Marker) {
        self.markers.push(marker);
    }

    /// A file.
    pub(super) fn file(&mut self, path: &EntryPath) -> Result<Place, TreeError> {
        self.put(path, Node::File)
    }

    /// A symlink.
    pub(super) fn symlink(&mut self, path: &EntryPath, target: &[u8]) -> Result<Place, TreeError> {
        self.put(path, Node::Symlink(target.into()))
    }

    /// A directory; where one is already there, nothing has to be made but its path is told.
    pub(super) fn directory(
        &mut self,
        path: &EntryPath,
        attributes: Attributes,
    ) -> Result<Place, TreeError> {
        let (parent, mut place) = self.parent(path)?;
        let name = path.name();
        let replaced = match self.directories[parent].names.get(name) {
            Some(Node::Directory(there)) => {
                let there = *there;
                self.directories[there].attributes = Some(attributes);
                return Ok(place);
            }
            replaced => replaced.map(Node::is_made),
        };
        // Had the file lain over a directory of a lower layer, nothing of that would be left.
        let directory = Directory {
            attributes: Some(attributes),
            opaque: replaced.is_some(),
            ..Directory::default()
        };
        place.replaces = (replaced == Some(true)).then_some(Replaced::File);
        place.directories.push(place.path.clone());
        self.add_directory(parent, name, directory);
        Ok(place)
    }

    /// A hardlink to `target`, a path of the image.
    pub(super) fn hardlink(
        &mut self,
        path: &EntryPath,
        target: &EntryPath,
    ) -> Result<Linked, TreeError> {
        let refused = |problem| TreeError::Hardlink {
            target: target.to_string(),
            problem,
        };
        let (found, whole) = self.find(target)?;
        let (node, to) = match found {
            Found::Directory if self.describes(&whole) => {
                return Err(refused("is a directory"));
            }
            Found::Beyond => return Err(refused("lies in something that is no directory")),
            Found::File => (Node::File, Some(whole)),
            Found::Symlink(target) => (Node::Symlink(target), Some(whole)),
            Found::Below(target) => (Node::Below(target), None),
            // A directory that no member describes may be a symlink below.
            Found::Nothing | Found::Directory => (Node::Below(whole), None),
        };
        match to {
            Some(to) => {
                let (_, already) = self.find(path)?;
                if already == to {
                    return Ok(Linked::Already);
                }
                // The target would be removed with a directory that the link takes the place of.
                let inside = to.strip_prefix(&*already);
                if inside.is_some_and(|inside| inside.first() == Some(&b'/')) {
                    return Err(refused("lies in what the link replaces"));
                }
                Ok(Linked::To(to, self.put(path, node)?))
            }
            None => Ok(Linked::Below(self.put(path, node)?)),
        }
    }

    /// Puts something that is no directory at `path`.
    fn put(&mut self, path: &EntryPath, node: Node) -> Result<Place, TreeError> {
        let (parent, mut place) = self.parent(path)?;
        let replaced = self.directories[parent]
            .names
            .insert(path.name().into(), node);
        place.replaces = match replaced {
            None | Some(Node::Below(_)) => None,
            Some(Node::Directory(_)) => Some(Replaced::Directory),
            Some(Node::File | Node::Symlink(_)) => Some(Replaced::File),
        };
        Ok(place)
    }

    /// The directory that `path` lies in, made if it is not there.
    fn parent(&mut self, path: &EntryPath) -> Result<(DirectoryIndex, Place), TreeError> {
        let mut walk = Walk::to(path.parent().as_ref().map(EntryPath::as_bytes));
        let mut made = Vec::new();
        while let Some(step) = walk.step(self)? {
            match step {
                Step::Missing(name) => {
                    self.undescribed = self
                        .undescribed
                        .checked_sub(1)
                        .ok_or(TreeError::TooManyDirectories)?;
                    let index = self.add_directory(walk.directory(), &name, Directory::default());
                    walk.enter(name, index);
                    made.push(walk.path());
                }
                Step::NotADirectory(name) => {
                    let path = join(&walk.path(), &name);
                    return Err(TreeError::NotADirectory(readable(&path)));
                }
            }
        }
        let whole = join(&walk.path(), path.name());
        if whole.len() > LONGEST_PATH {
            return Err(TreeError::TooLong);
        }
        let place = Place {
            directories: made,
            replaces: None,
            path: whole,
        };
        Ok((walk.directory(), place))
    }

    /// What is at `path`, and where that is once symlinks on the way are followed.
    fn find(&self, path: &EntryPath) -> Result<(Found, Vec<u8>), TreeError> {
        let mut walk = Walk::to(path.parent().as_ref().map(EntryPath::as_bytes));
        match walk.step(self)? {
            Some(Step::NotADirectory(name)) => Ok((Found::Beyond, join(&walk.path(), &name))),
            // What is not here may be below; symlinks of lower layers are followed there.
            Some(Step::Missing(name)) => {
                let mut whole = join(&walk.path(), &name);
                for component in walk.left() {
                    match &*component {
                        b".." => whole.truncate(super::places::split(&whole).0.len()),
                        _ => whole = join(&whole, &component),
                    }
                }
                Ok((Found::Nothing, join(&whole, path.name())))
            }
            None => {
                let names = &self.directories[walk.directory()].names;
                let found = match names.get(path.name()) {
                    None => Found::Nothing,
                    Some(Node::Directory(_)) => Found::Directory,
                    Some(Node::File) => Found::File,
                    Some(Node::Symlink(target)) => Found::Symlink(target.clone()),
                    Some(Node::Below(target)) => Found::Below(target.clone()),
                };
                Ok((found, join(&walk.path(), path.name())))
            }
        }
    }

    fn add_directory(
        &mut self,
        parent: DirectoryIndex,
        name: &[u8],
        directory: Directory,
    ) -> DirectoryIndex {
        let index = self.directories.len();
        self.directories.push(directory);
        self.directories[parent]
            .names
            .insert(name.into(), Node::Directory(index));
        index
    }

    /// The archive is at its end. An error comes with the path that it is about.
    pub(super) fn finish(mut self) -> Result<Finished, (Vec<u8>, TreeError)> {
        if let Some((path, target)) = self.early_link() {
            let target = readable(&target);
            let problem = "comes after it";
            return Err((path, TreeError::Hardlink { target, problem }));
        }
        let mut finished = Finished::default();
        for marker in &self.markers {
            self.delete(marker, &mut finished);
        }
        let mut left = vec![(Vec::new(), ROOT)];
        while let Some((path, index)) = left.pop() {
            let directory = std::mem::take(&mut self.directories[index]);
            let mut below = Vec::new();
            for (name, node) in directory.names {
                let path = join(&path, &name);
                match node {
                    Node::Directory(index) => below.push((path, index)),
                    Node::Below(target) => {
                        finished.links.insert(path, target);
                    }
                    Node::File | Node::Symlink(_) => {}
                }
            }
            left.extend(below.into_iter().rev());
            if directory.opaque {
                finished.whiteouts.insert(path.clone());
            }
            finished.directories.push((path, directory.attributes));
        }
        Ok(finished)
    }

    /// A hardlink whose target was not there when it came, and is now.
    fn early_link(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut left = vec![(Vec::new(), ROOT)];
        while let Some((path, index)) = left.pop() {
            for (name, node) in &self.directories[index].names {
                match node {
                    Node::Directory(index) => left.push((join(&path, name), *index)),
                    Node::Below(target) if self.has_own(target) => {
                        return Some((join(&path, name), target.clone()));
                    }
                    Node::Below(_) | Node::File | Node::Symlink(_) => {}
                }
            }
        }
        None
    }

    /// Whether this layer has something of its own at `path`, on which no symlink is followed.
    fn has_own(&self, path: &[u8]) -> bool {
        match self.node(path) {
            None | Some(Node::Below(_)) => false,
            Some(Node::Directory(_)) => self.describes(path),
            Some(Node::File | Node::Symlink(_)) => true,
        }
    }

    /// What is at `path`, on which no symlink is followed; not the root.
    fn node(&self, path: &[u8]) -> Option<&Node> {
        let mut node = None;
        let mut directory = Some(ROOT);
        for name in super::places::components(path) {
            node = self.directories.get(directory?)?.names.get(name);
            directory = match node {
                Some(Node::Directory(index)) => Some(*index),
                _ => None,
            };
        }
        node
    }

    /// Finds out what a deletion deletes: nothing where no file could be.
    fn delete(&self, marker: &Marker, finished: &mut Finished) {
        match marker {
            Marker::Driver | Marker::Nothing => {}
            Marker::Opaque(None) => {
                finished.emptied.insert(Vec::new());
            }
            Marker::Opaque(Some(directory)) => {
                // The directory is reached as the parent of something in it would be.
                let inside = directory.join(b"-");
                let found = inside.ok().and_then(|inside| self.find(&inside).ok());
                if let Some((found, inside)) = found
                    && !matches!(found, Found::Beyond)
                {
                    let directory = super::places::split(&inside).0.to_vec();
                    if self.describes(&directory) {
                        finished.whiteouts.insert(directory);
                    } else {
                        finished.emptied.insert(directory);
                    }
                }
            }
            Marker::Whiteout(path) => {
                // What is a file here hides what is below without that.
                if let Ok((Found::Nothing | Found::Directory, path)) = self.find(path) {
                    finished.whiteouts.insert(path);
                }
            }
        }
    }

    /// Whether a member describes the directory `path`, on which no symlink is followed.
    fn describes(&self, path: &[u8]) -> bool {
        match self.node(path) {
            Some(Node::Directory(index)) => self.directories[*index].attributes.is_some(),
            _ => false,
        }
    }
}

/// What is at a path.
enum Found {
    Nothing,
    Directory,
    File,
    Symlink(Box<[u8]>),
    Below(Vec<u8>),
    /// Something on the way is no directory.
    Beyond,
}

/// What a walk stopped at; [`Walk::directory`] is where.
enum Step {
    Missing(Box<[u8]>),
    NotADirectory(Box<[u8]>),
}

/// A walk through directories and symlinks.
struct Walk {
    /// Where it is, from the root on.
    way: Vec<(Box<[u8]>, DirectoryIndex)>,
    /// Bytes of the path there.
    length: usize,
    left: VecDeque<Box<[u8]>>,
    symlinks: u32,
}

impl Walk {
    fn to(path: Option<&[u8]>) -> Self {
        let left = super::places::components(path.unwrap_or_default());
        Self {
            way: Vec::new(),
            length: 0,
            left: left.map(Into::into).collect(),
            symlinks: 0,
        }
    }

    fn directory(&self) -> DirectoryIndex {
        self.way.last().map_or(ROOT, |(_, index)| *index)
    }

    fn enter(&mut self, name: Box<[u8]>, index: DirectoryIndex) {
        self.length += name.len() + 1;
        self.way.push((name, index));
    }

    fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.way.iter().map(|(name, _)| &**name).collect();
        names.join(&b'/')
    }

    /// The components that were not walked.
    fn left(self) -> VecDeque<Box<[u8]>> {
        self.left
    }

    /// Walks until something has to be done or, with `None`, to the end.
    fn step(&mut self, tree: &LayerTree) -> Result<Option<Step>, TreeError> {
        while let Some(name) = self.left.pop_front() {
            match &*name {
                b"." => continue,
                b".." => {
                    if let Some((name, _)) = self.way.pop() {
                        self.length -= name.len() + 1;
                    }
                    continue;
                }
                _ => {}
            }
            if self.length > LONGEST_PATH {
                return Err(TreeError::TooLong);
            }
            match tree.directories[self.directory()].names.get(&name) {
                Some(Node::Directory(index)) => self.enter(name, *index),
                Some(Node::Symlink(target)) => {
                    self.symlinks += 1;
                    if self.symlinks > MOST_SYMLINKS {
                        return Err(TreeError::Loop);
                    }
                    if target.first() == Some(&b'/') {
                        self.way.clear();
                        self.length = 0;
                    }
                    let components: Vec<_> = super::places::components(target).collect();
                    for component in components.into_iter().rev() {
                        self.left.push_front(component.into());
                    }
                }
                Some(Node::File | Node::Below(_)) => return Ok(Some(Step::NotADirectory(name))),
                None => return Ok(Some(Step::Missing(name))),
            }
        }
        Ok(None)
    }
}

/// Bytes of a path for people.
pub(super) fn readable(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}
