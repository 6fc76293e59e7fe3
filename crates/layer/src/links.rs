//! The symlinks of a base image, and where paths lead through them.
//!
//! On most distributions `lib64` is a link to `usr/lib64`. A layer that brings a directory entry
//! `lib64/` would replace the link and with it hide the C library, so every directory of a tree is
//! first walked through the links of the base, the way the kernel would walk it.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::entry::EntryKind;
use crate::path::{EntryPath, LONGEST_COMPONENT, LONGEST_PATH};
use crate::tree::Tree;
use crate::whiteout::Marker;

/// Where images keep what is theirs: no known base has symlinks on the way there.
const FREE_OF_LINKS: [&str; 6] = ["var/task", "opt", "tmp", "app", "srv", "home"];

/// As many links as Linux follows in one path before it answers `ELOOP`.
const MOST_LINKS: usize = 40;

/// Whether the place of `path` depends on symlinks that a base may have.
pub fn needs_base_links(path: &EntryPath) -> bool {
    !FREE_OF_LINKS.iter().any(|free| {
        path.as_bytes()
            .strip_prefix(free.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    })
}

/// A path goes round in circles through symlinks of the base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` leads through too many symlinks of the base image, the last of them `{link}`")]
pub struct LinkLoop {
    /// The path that was to be resolved.
    pub path: EntryPath,
    /// The link at which it was given up.
    pub link: EntryPath,
}

/// What an entry of a layer means for the symlinks of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// A symlink to these bytes.
    Symlink(Box<[u8]>),
    /// A directory: the end of a symlink in its place.
    Directory,
    /// Anything else that has a place: the end of what was there and below.
    Other,
    /// The path is removed from lower layers.
    Whiteout,
    /// What lower layers have below the path is removed.
    Opaque,
}

/// One entry of a layer, as far as symlinks care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkRecord {
    /// The path it speaks of: for a whiteout what is removed, for an opaque marker the directory,
    /// where `None` is the root.
    pub path: Option<EntryPath>,
    /// What becomes of it.
    pub change: LinkChange,
}

impl LinkRecord {
    /// What an entry at `path` means when its name is that of a marker.
    pub(crate) fn of_marker(path: &EntryPath) -> Option<Self> {
        match Marker::of(path)? {
            Marker::Whiteout(removed) => Some(Self {
                path: Some(removed),
                change: LinkChange::Whiteout,
            }),
            Marker::Opaque(directory) => Some(Self {
                path: directory,
                change: LinkChange::Opaque,
            }),
            Marker::Driver | Marker::Nothing => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    target: Box<[u8]>,
    layer: u32,
}

/// All symlinks of an image.
///
/// Built by applying the records of its layers, the lowest first. Memory is what the links take;
/// the paths of other entries are never kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseLinks {
    links: BTreeMap<EntryPath, Link>,
    layer: u32,
}

impl BaseLinks {
    /// No links at all: the empty base.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there is no link.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The links and their targets, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&EntryPath, &[u8])> {
        self.links.iter().map(|(path, link)| (path, &*link.target))
    }

    /// Begins the next layer up. Whiteouts speak of the layers below theirs only, wherever in its
    /// layer a whiteout stands.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// Takes the next entry of the current layer.
    pub fn apply(&mut self, record: &LinkRecord) -> Result<(), LinkLoop> {
        let path = match (&record.path, &record.change) {
            (None, _) => None,
            // The marker stands in the directory, so all of the directory's path is on its way.
            (Some(path), LinkChange::Opaque) => self.resolve(path)?,
            (Some(path), _) => self.resolve_parent(path)?,
        };
        let layer = self.layer;
        match (&record.change, path) {
            (LinkChange::Symlink(target), Some(path)) => {
                self.remove_below(Some(&path), u32::MAX);
                self.links.insert(
                    path,
                    Link {
                        target: target.clone(),
                        layer,
                    },
                );
            }
            (LinkChange::Directory, Some(path)) => {
                self.links.remove(&path);
            }
            (LinkChange::Other, Some(path)) => {
                self.links.remove(&path);
                self.remove_below(Some(&path), u32::MAX);
            }
            (LinkChange::Whiteout, Some(path)) => {
                if self.links.get(&path).is_some_and(|link| link.layer < layer) {
                    self.links.remove(&path);
                }
                self.remove_below(Some(&path), layer);
            }
            (LinkChange::Opaque, path) => self.remove_below(path.as_ref(), layer),
            (_, None) => {}
        }
        Ok(())
    }

    /// Takes a whole tree as the next layer up, so that a further layer of the same image meets
    /// its links too.
    pub fn apply_tree(&mut self, tree: &Tree) -> Result<(), LinkLoop> {
        self.begin_layer();
        for (path, entry) in tree.iter() {
            let change = match &entry.kind {
                EntryKind::Symlink(target) => LinkChange::Symlink(target.clone()),
                EntryKind::Directory => LinkChange::Directory,
                EntryKind::File(_) => LinkChange::Other,
                EntryKind::Whiteout | EntryKind::OpaqueMarker => {
                    if let Some(record) = LinkRecord::of_marker(path) {
                        self.apply(&record)?;
                    }
                    continue;
                }
            };
            self.apply(&LinkRecord {
                path: Some(path.clone()),
                change,
            })?;
        }
        Ok(())
    }

    /// Where `path` leads when every symlink on it is followed, its last component included.
    /// `None` is the root. Nothing on the way needs to exist.
    pub fn resolve(&self, path: &EntryPath) -> Result<Option<EntryPath>, LinkLoop> {
        if self.is_empty() {
            return Ok(Some(path.clone()));
        }
        let mut pending: Vec<&[u8]> = path.components().rev().collect();
        // Empty at the root.
        let mut place: Vec<u8> = Vec::with_capacity(path.as_bytes().len());
        let mut last = None;
        let mut followed = 0;
        while let Some(component) = pending.pop() {
            let parent = place.len();
            match component {
                b"" | b"." => continue,
                // Above the root is the root.
                b".." => {
                    let slash = place.iter().rposition(|&byte| byte == b'/');
                    place.truncate(slash.unwrap_or(0));
                    continue;
                }
                // The target of a link may hold what no path can; nothing can be below that.
                _ if component.contains(&0) || component.len() > LONGEST_COMPONENT => continue,
                _ => {
                    if parent > 0 {
                        place.push(b'/');
                    }
                    place.extend_from_slice(component);
                }
            }
            let found = self.links.get_key_value(place.as_slice());
            if let Some((from, link)) = found {
                followed += 1;
                last = Some(from);
                let absolute = link.target.first() == Some(&b'/');
                place.truncate(if absolute { 0 } else { parent });
                pending.extend(link.target.split(|&byte| byte == b'/').rev());
            }
            // Targets could otherwise make a path of any length, and the next one a longer one.
            let endless = followed > MOST_LINKS || place.len() > LONGEST_PATH;
            if let (true, Some(link)) = (endless, last) {
                return Err(LinkLoop {
                    path: path.clone(),
                    link: link.clone(),
                });
            }
        }
        Ok(EntryPath::of_checked(place))
    }

    fn resolve_parent(&self, path: &EntryPath) -> Result<Option<EntryPath>, LinkLoop> {
        let parent = match path.parent() {
            Some(parent) => self.resolve(&parent)?,
            None => None,
        };
        Ok(EntryPath::under(parent.as_ref(), path.name()).ok())
    }

    /// Forgets the links below `directory` that come from layers under `layer`.
    fn remove_below(&mut self, directory: Option<&EntryPath>, layer: u32) {
        let Some(directory) = directory else {
            self.links.retain(|_, link| link.layer >= layer);
            return;
        };
        let start = [directory.as_bytes(), b"/"].concat();
        let gone: Vec<EntryPath> = self
            .links
            .range::<[u8], _>((Bound::Excluded(start.as_slice()), Bound::Unbounded))
            .take_while(|(path, _)| path.is_below(directory))
            .filter(|(_, link)| link.layer < layer)
            .map(|(path, _)| path.clone())
            .collect();
        for path in &gone {
            self.links.remove(path);
        }
    }
}

impl FromIterator<(EntryPath, Vec<u8>)> for BaseLinks {
    /// Takes links that are already known, as shipped facts or a cache hold them.
    fn from_iter<I: IntoIterator<Item = (EntryPath, Vec<u8>)>>(links: I) -> Self {
        let links = links
            .into_iter()
            .map(|(path, target)| {
                (
                    path,
                    Link {
                        target: target.into(),
                        layer: 0,
                    },
                )
            })
            .collect();
        Self { links, layer: 0 }
    }
}
