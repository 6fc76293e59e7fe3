//! The files of a layer before it is one.
//!
//! Adds meet here: later ones win, directories merge, and every directory above an entry exists
//! from the moment the entry does. A tree knows nothing of the base image; what stands in it is
//! moved through the base's symlinks when it is [settled](Tree::settle).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ops::Bound;

use crate::entry::{Attributes, DIRECTORY_MODE, Entry, EntryKind};
use crate::links::{BaseLinks, LinkLoop};
use crate::notice::Notice;
use crate::path::EntryPath;
use crate::whiteout::{Marker, WHITEOUT_PREFIX, opaque_marker_of, whiteout_of};

/// The attributes of directories that nobody described.
///
/// A directory entry overwrites what the base says of that directory, so the few that must not be
/// 0755 have their mode here: `tmp` and `var/tmp` are 1777, `root` is 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryDefaults(BTreeMap<EntryPath, Attributes>);

impl Default for DirectoryDefaults {
    fn default() -> Self {
        let known = [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)];
        Self(
            known
                .into_iter()
                .map(|(path, mode)| {
                    let path = EntryPath::new(path).expect("the known paths are valid");
                    (path, Attributes::root(mode))
                })
                .collect(),
        )
    }
}

impl DirectoryDefaults {
    /// Sets what `path` gets, as measured on a base. Only facts that the lock file states may come
    /// here, or a digest would depend on what a cache happens to know.
    pub fn set(&mut self, path: EntryPath, attributes: Attributes) {
        self.0.insert(path, attributes);
    }

    /// What `path` gets.
    pub fn of(&self, path: &EntryPath) -> Attributes {
        self.0
            .get(path)
            .cloned()
            .unwrap_or(Attributes::root(DIRECTORY_MODE))
    }
}

/// A name starts with `.wh.`, which in a layer is not a file but a deletion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: names that start with `.wh.` delete files in a layer and cannot be in one")]
pub struct ReservedName {
    /// The path with that name.
    pub path: EntryPath,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) entry: Entry,
    /// False for a directory that is only there because something is below it.
    described: bool,
    /// When it was added, so that adds can be repeated in order elsewhere.
    sequence: u64,
}

/// A map from path to entry.
///
/// Whiteouts and opaque markers stand under the name they have in the archive (`a/.wh.b`). They
/// speak of lower layers only, so their order among the adds does not matter: a file at the path of
/// a whiteout makes it needless, and a directory there becomes an opaque directory, because readers
/// apply a whiteout to a directory of the same layer too.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<EntryPath, Node>,
    defaults: DirectoryDefaults,
    sequence: u64,
    /// Whether a whiteout was ever added. Most trees have none, and need not look for them.
    has_whiteouts: bool,
}

impl Tree {
    /// An empty tree with the usual directory modes.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty tree with other directory modes.
    pub fn with_defaults(defaults: DirectoryDefaults) -> Self {
        Self {
            defaults,
            ..Self::default()
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries there are, directories above others included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at `path`.
    pub fn get(&self, path: &EntryPath) -> Option<&Entry> {
        self.entries.get(path).map(|node| &node.entry)
    }

    /// All entries by path.
    pub fn iter(&self) -> impl Iterator<Item = (&EntryPath, &Entry)> {
        self.entries.iter().map(|(path, node)| (path, &node.entry))
    }

    /// Adds an entry, over whatever was added there before.
    ///
    /// Directories above it are made as needed. A directory on a directory merges and the later
    /// attributes count; anything else takes the place of what was there, with all that was below
    /// it, and tells so in `notices`. Whiteouts and opaque markers are added with
    /// [`Tree::insert_whiteout`] and [`Tree::insert_opaque`], or here under their archive name.
    pub fn insert(
        &mut self,
        path: EntryPath,
        entry: Entry,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ReservedName> {
        let fits = match (&entry.kind, Marker::of(&path)) {
            (EntryKind::OpaqueMarker, Some(Marker::Opaque(_)))
            | (EntryKind::Whiteout, Some(Marker::Whiteout(_))) => true,
            (EntryKind::OpaqueMarker | EntryKind::Whiteout, _) => false,
            (_, marker) => marker.is_none(),
        };
        if !fits {
            return Err(ReservedName { path });
        }
        self.place(path, entry, true, notices);
        Ok(())
    }

    /// Makes `path` a directory without describing it: its attributes are the default ones unless
    /// another add describes it.
    pub fn require_directory(
        &mut self,
        path: &EntryPath,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ReservedName> {
        if path
            .components()
            .any(|component| component.starts_with(WHITEOUT_PREFIX))
        {
            return Err(ReservedName { path: path.clone() });
        }
        self.place_default(path.clone(), notices);
        Ok(())
    }

    /// Removes `path` of lower layers.
    pub fn insert_whiteout(
        &mut self,
        path: &EntryPath,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ReservedName> {
        let marker = whiteout_of(path).ok_or_else(|| ReservedName { path: path.clone() })?;
        self.insert(marker, Entry::marker(EntryKind::Whiteout), notices)
    }

    /// Hides what lower layers have in `directory`, where `None` is the root.
    pub fn insert_opaque(
        &mut self,
        directory: Option<&EntryPath>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ReservedName> {
        self.insert(
            opaque_marker_of(directory),
            Entry::marker(EntryKind::OpaqueMarker),
            notices,
        )
    }

    /// Takes an entry out, with all that is below it, and the directories above that hold nothing
    /// else.
    pub fn remove(&mut self, path: &EntryPath) {
        if self.entries.remove(path).is_none() {
            return;
        }
        self.drop_children(path);
        for ancestor in path.ancestors() {
            if self.has_children(&ancestor) {
                return;
            }
            self.entries.remove(&ancestor);
        }
    }

    /// Adds what is in `later`, in the order in which it was added there.
    pub fn merge(&mut self, later: Self, notices: &mut Vec<Notice>) {
        for (path, node) in later.in_order() {
            if node.described {
                self.place(path, node.entry, true, notices);
            } else {
                self.place_default(path, notices);
            }
        }
    }

    fn in_order(self) -> Vec<(EntryPath, Node)> {
        let mut nodes: Vec<_> = self.entries.into_iter().collect();
        nodes.sort_by_key(|(_, node)| node.sequence);
        nodes
    }

    /// The first entry that lies where only the base's symlinks can tell its real place.
    pub fn needs_base_links(&self) -> Option<&EntryPath> {
        self.entries
            .iter()
            .filter(|(path, node)| !(is_directory(&node.entry) && self.has_children(path)))
            .map(|(path, _)| path)
            .find(|path| crate::links::needs_base_links(path))
    }

    /// The same adds, in the same order, at the places that the base's symlinks lead to.
    pub(crate) fn resolved(
        self,
        base: &BaseLinks,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, LinkLoop> {
        if base.is_empty() {
            return Ok(self);
        }
        let mut resolved = Self::with_defaults(self.defaults.clone());
        for (path, node) in self.in_order() {
            let place = if is_directory(&node.entry) {
                base.resolve(&path)?
            } else {
                let parent = match path.parent() {
                    Some(parent) => base.resolve(&parent)?,
                    None => None,
                };
                let place = EntryPath::under(parent.as_ref(), path.name());
                Some(place.expect("the name of a path is a path"))
            };
            // A directory that the base's links lead to the root needs no entry.
            let Some(place) = place else { continue };
            if node.described {
                resolved.place(place, node.entry, true, notices);
            } else {
                resolved.place_default(place, notices);
            }
        }
        Ok(resolved)
    }

    pub(crate) fn into_entries(self) -> impl Iterator<Item = (EntryPath, Entry)> {
        self.entries
            .into_iter()
            .map(|(path, node)| (path, node.entry))
    }

    pub(crate) fn entries_mut(&mut self) -> &mut BTreeMap<EntryPath, Node> {
        &mut self.entries
    }

    fn place_default(&mut self, path: EntryPath, notices: &mut Vec<Notice>) {
        let attributes = self.defaults.of(&path);
        let entry = Entry {
            kind: EntryKind::Directory,
            attributes,
        };
        self.place(path, entry, false, notices);
    }

    fn place(&mut self, path: EntryPath, entry: Entry, described: bool, notices: &mut Vec<Notice>) {
        self.make_ancestors(&path, notices);
        if let (EntryKind::Whiteout, Some(Marker::Whiteout(target))) =
            (&entry.kind, Marker::of(&path))
        {
            match self.entries.get(&target) {
                Some(node) if is_directory(&node.entry) => {
                    let marker = opaque_marker_of(Some(&target));
                    self.put(marker, Entry::marker(EntryKind::OpaqueMarker), true);
                }
                Some(_) => {}
                None => {
                    self.has_whiteouts = true;
                    self.put(path, entry, true);
                }
            }
            return;
        }
        if self.has_whiteouts && !self.entries.contains_key(&path) {
            self.lift_whiteout(&path, is_directory(&entry));
        }
        let slot = match self.entries.entry(path) {
            Slot::Vacant(slot) => {
                self.sequence += 1;
                slot.insert(Node {
                    entry,
                    described,
                    sequence: self.sequence,
                });
                return;
            }
            Slot::Occupied(slot) => slot,
        };
        let before = slot.get();
        let merges = is_directory(&before.entry) && is_directory(&entry);
        if merges && !described {
            return;
        }
        let same_link = matches!(
            (&before.entry.kind, &entry.kind),
            (EntryKind::Symlink(old), EntryKind::Symlink(new)) if old == new
        );
        let same_marker = matches!(entry.kind, EntryKind::OpaqueMarker);
        let path = slot.key().clone();
        if !merges && !same_link && !same_marker {
            let before = before.entry.kind.noun();
            let dropped = self.drop_children(&path);
            let after = entry.kind.noun();
            notices.push(Notice::Replaced {
                path: path.clone(),
                before,
                after,
                dropped,
            });
        }
        self.put(path, entry, described);
    }

    fn make_ancestors(&mut self, path: &EntryPath, notices: &mut Vec<Notice>) {
        let parent = path.parent_bytes().map(|parent| self.entries.get(parent));
        if parent.is_none_or(|node| node.is_some_and(|node| is_directory(&node.entry))) {
            return;
        }
        for ancestor in path.ancestors() {
            match self.entries.get(&ancestor) {
                // Whatever is in the tree has all its ancestors there too.
                Some(node) if is_directory(&node.entry) => return,
                Some(node) => notices.push(Notice::Replaced {
                    path: ancestor.clone(),
                    before: node.entry.kind.noun(),
                    after: EntryKind::Directory.noun(),
                    dropped: 0,
                }),
                None => self.lift_whiteout(&ancestor, true),
            }
            let attributes = self.defaults.of(&ancestor);
            self.put(
                ancestor,
                Entry {
                    kind: EntryKind::Directory,
                    attributes,
                },
                false,
            );
        }
    }

    fn lift_whiteout(&mut self, path: &EntryPath, directory: bool) {
        if !self.has_whiteouts {
            return;
        }
        let lifted = whiteout_of(path).and_then(|marker| self.entries.remove(&marker));
        if lifted.is_some() && directory {
            let marker = opaque_marker_of(Some(path));
            self.put(marker, Entry::marker(EntryKind::OpaqueMarker), true);
        }
    }

    fn put(&mut self, path: EntryPath, entry: Entry, described: bool) {
        self.sequence += 1;
        self.entries.insert(
            path,
            Node {
                entry,
                described,
                sequence: self.sequence,
            },
        );
    }

    fn has_children(&self, path: &EntryPath) -> bool {
        self.children(path).next().is_some()
    }

    fn children(&self, path: &EntryPath) -> impl Iterator<Item = &EntryPath> {
        // Names such as `a-b` sort between `a` and `a/b`, so the range starts at `a/` itself.
        let start = [path.as_bytes(), b"/"].concat();
        self.entries
            .range::<[u8], _>((Bound::Excluded(start.as_slice()), Bound::Unbounded))
            .map(|(child, _)| child)
            .take_while(|child| child.is_below(path))
    }

    fn drop_children(&mut self, path: &EntryPath) -> usize {
        let children: Vec<EntryPath> = self.children(path).cloned().collect();
        for child in &children {
            self.entries.remove(child);
        }
        children.len()
    }
}

fn is_directory(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;

    #[test]
    fn what_is_taken_out_leaves_no_empty_directories() {
        let path = |text: &str| EntryPath::new(text).unwrap();
        let mut tree = Tree::new();
        for name in ["a/b/c/one", "a/b/d/two", "a/b-c", "e/f/three"] {
            let file = Entry::file(Content::bytes(*b"x"), 0o644);
            tree.insert(path(name), file, &mut Vec::new()).unwrap();
        }
        let listed = |tree: &Tree| {
            let names = tree.iter().map(|(path, _)| path.to_string());
            names.collect::<Vec<_>>().join(" ")
        };
        tree.remove(&path("a/b/c/one"));
        tree.remove(&path("e"));
        tree.remove(&path("nowhere"));
        assert_eq!(listed(&tree), "a a/b a/b-c a/b/d a/b/d/two");
        tree.remove(&path("a/b"));
        assert_eq!(listed(&tree), "a a/b-c");
        tree.remove(&path("a/b-c"));
        assert!(tree.is_empty());
    }
}
