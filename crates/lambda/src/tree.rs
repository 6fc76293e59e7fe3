//! What the layers of an image make together.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::facts::{EntryFacts, EntryKind, LayerFacts, name_of, parent_of};

/// The files of an image as a running function sees them.
#[derive(Debug, Default)]
pub(crate) struct Tree<'a> {
    nodes: BTreeMap<Vec<u8>, Node<'a>>,
}

/// One path of the image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node<'a> {
    /// The layer that put it there, counted from the lowest.
    pub(crate) layer: usize,
    /// What it is; of a hardlink, what it is another name of.
    pub(crate) entry: &'a EntryFacts,
}

/// As many links as are followed for one path (`MAXSYMLINKS` of Linux).
const MOST_LINKS: usize = 40;

impl<'a> Tree<'a> {
    /// Puts the layers on top of each other, the lowest first, whose number is `first`.
    pub(crate) fn of(first: usize, layers: &[&'a LayerFacts]) -> Self {
        let mut tree = Self::default();
        for (number, layer) in (first..).zip(layers) {
            // Deletions reach down only, wherever in their layer they stand. Made before all else,
            // none looks at more than it removes.
            for entry in &layer.entries {
                tree.delete(entry);
            }
            // Most entries lie where the one before does.
            let mut last: Option<(&[u8], Vec<u8>)> = None;
            for entry in &layer.entries {
                if matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque) {
                    continue;
                }
                let path = entry.path.as_bytes();
                let parent = parent_of(path).unwrap_or_default();
                let place = match &last {
                    Some((before, place)) if *before == parent => place.clone(),
                    _ => match tree.follow(parent) {
                        Some(place) => place,
                        None => continue,
                    },
                };
                let place_of_entry = join(&place, entry.path.name());
                // Where links led, the entry may stand on the way to its own directory.
                last = (place == parent).then_some((parent, place));
                tree.apply(place_of_entry, number, entry);
            }
        }
        tree
    }

    /// Takes away what an entry deletes.
    fn delete(&mut self, entry: &EntryFacts) {
        let path = entry.path.as_bytes();
        match entry.kind {
            EntryKind::Opaque => {
                if let Some(directory) = self.follow(path) {
                    self.remove_below(&directory);
                }
            }
            EntryKind::Whiteout => {
                if let Some(path) = self.place_of(path) {
                    self.remove_below(&path);
                    self.nodes.remove(&path);
                }
            }
            _ => {}
        }
    }

    /// Where an entry with this path really stands: links are followed to its directory, and the
    /// entry itself is no link but what it is.
    pub(crate) fn place_of(&self, path: &[u8]) -> Option<Vec<u8>> {
        let parent = self.follow(parent_of(path).unwrap_or_default())?;
        Some(join(&parent, name_of(path)))
    }

    fn apply(&mut self, path: Vec<u8>, layer: usize, entry: &'a EntryFacts) {
        match &entry.kind {
            EntryKind::Directory => {
                self.nodes.insert(path, Node { layer, entry });
            }
            EntryKind::Hardlink(target) => {
                let target = self.place_of(target.as_bytes());
                if let Some(found) = target.and_then(|target| self.nodes.get(&target)) {
                    let entry = found.entry;
                    self.remove_below(&path);
                    self.nodes.insert(path, Node { layer, entry });
                }
            }
            _ => {
                self.remove_below(&path);
                self.nodes.insert(path, Node { layer, entry });
            }
        }
    }

    /// Removes all that is below a directory.
    fn remove_below(&mut self, directory: &[u8]) {
        let gone: Vec<Vec<u8>> = self
            .below(directory)
            .map(|(path, _)| path.to_owned())
            .collect();
        for path in gone {
            self.nodes.remove(&path);
        }
    }

    /// All that is below a directory, where the empty path is the root.
    pub(crate) fn below(&self, directory: &[u8]) -> impl Iterator<Item = (&[u8], Node<'a>)> {
        let start = if directory.is_empty() {
            Vec::new()
        } else {
            [directory, b"/"].concat()
        };
        self.nodes
            .range::<[u8], _>((Bound::Included(start.as_slice()), Bound::Unbounded))
            .map(|(path, node)| (path.as_slice(), *node))
            .take_while({
                let start = start.clone();
                move |(path, _)| path.starts_with(&start)
            })
    }

    /// All paths in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&[u8], Node<'a>)> {
        self.nodes
            .iter()
            .map(|(path, node)| (path.as_slice(), *node))
    }

    /// What is at exactly this path, links unfollowed.
    pub(crate) fn at(&self, path: &[u8]) -> Option<Node<'a>> {
        self.nodes.get(path).copied()
    }

    /// Whether there is a directory, by its own entry or by what is in it.
    pub(crate) fn is_directory(&self, path: &[u8]) -> bool {
        path.is_empty()
            || match self.at(path) {
                Some(node) => node.entry.kind == EntryKind::Directory,
                None => self.below(path).next().is_some(),
            }
    }

    /// The path that is reached by following all links, inside the image alone. It need not exist.
    /// `None` when links go round in circles.
    pub(crate) fn follow(&self, path: &[u8]) -> Option<Vec<u8>> {
        let mut pending: Vec<&[u8]> = path.split(|&byte| byte == b'/').rev().collect();
        let mut current = Vec::new();
        let mut links = 0;
        while let Some(component) = pending.pop() {
            match component {
                b"" | b"." => {}
                b".." => current.truncate(parent_of(&current).map_or(0, <[u8]>::len)),
                name => {
                    let next = join(&current, name);
                    let kind = self.nodes.get(&next).map(|node| &node.entry.kind);
                    let Some(EntryKind::Symlink(target)) = kind else {
                        current = next;
                        continue;
                    };
                    links += 1;
                    if links > MOST_LINKS {
                        return None;
                    }
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        current.clear();
                    }
                    pending.extend(target.split(|&byte| byte == b'/').rev());
                }
            }
        }
        Some(current)
    }

    /// What a path leads to, all links followed.
    pub(crate) fn find(&self, path: &[u8]) -> Option<(Vec<u8>, Node<'a>)> {
        let path = self.follow(path)?;
        let node = self.at(&path)?;
        Some((path, node))
    }
}

/// A name in a directory, where the empty path is the root.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_owned()
    } else {
        [directory, name].join(&b'/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Packing, RawPath};

    fn entry(path: &str, kind: EntryKind) -> EntryFacts {
        EntryFacts {
            path: RawPath::from(path),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            modified: 1,
            content: None,
            speaks_runtime_api: false,
        }
    }

    fn directory(path: &str) -> EntryFacts {
        entry(path, EntryKind::Directory)
    }

    fn file(path: &str) -> EntryFacts {
        entry(path, EntryKind::File)
    }

    fn link(path: &str, target: &str) -> EntryFacts {
        entry(path, EntryKind::Symlink(RawPath::from(target)))
    }

    fn layers(layers: Vec<Vec<EntryFacts>>) -> Vec<LayerFacts> {
        let of = |entries| LayerFacts::new(0, Packing::Gzip, entries);
        layers.into_iter().map(of).collect()
    }

    fn shown(layers: &[LayerFacts]) -> Vec<String> {
        let layers: Vec<&LayerFacts> = layers.iter().collect();
        let tree = Tree::of(0, &layers);
        let show = |(path, node): (&[u8], Node<'_>)| {
            format!("{} {}", node.layer, String::from_utf8_lossy(path))
        };
        tree.all().map(show).collect()
    }

    #[test]
    fn later_layers_win_and_deletions_reach_down_only() {
        let layers = layers(vec![
            vec![
                directory("a"),
                file("a/b"),
                file("a/c"),
                directory("d"),
                file("d/e"),
            ],
            vec![
                entry("a/b", EntryKind::Whiteout),
                file("a/b"),
                entry("a/c", EntryKind::Whiteout),
                file("d/f"),
                entry("d", EntryKind::Opaque),
            ],
            vec![file("a")],
        ]);
        assert_eq!(shown(&layers[..2]), ["0 a", "1 a/b", "0 d", "1 d/f"]);
        assert_eq!(shown(&layers), ["2 a", "0 d", "1 d/f"]);
    }

    #[test]
    fn entries_behind_links_of_lower_layers_land_where_the_links_lead() {
        let layers = layers(vec![
            vec![
                directory("usr"),
                directory("usr/lib"),
                link("lib", "usr/lib"),
            ],
            vec![
                directory("x"),
                file("lib/a"),
                entry("b", EntryKind::Hardlink(RawPath::from("lib/a"))),
            ],
        ]);
        assert_eq!(
            shown(&layers),
            ["1 b", "0 lib", "0 usr", "0 usr/lib", "1 usr/lib/a", "1 x"]
        );
    }

    #[test]
    fn links_stay_in_the_image_and_end() {
        let layers = layers(vec![vec![
            link("a", "/../../b"),
            link("b", "c/./d"),
            link("round", "round"),
            directory("c"),
            file("c/d"),
        ]]);
        let layers: Vec<&LayerFacts> = layers.iter().collect();
        let tree = Tree::of(0, &layers);
        assert_eq!(tree.find(b"/a").unwrap().0, b"c/d");
        assert_eq!(tree.follow(b"round/x"), None);
        assert_eq!(tree.follow(b"../../e").unwrap(), b"e");
        assert!(tree.is_directory(b"c") && !tree.is_directory(b"c/d") && tree.is_directory(b""));
    }
}
