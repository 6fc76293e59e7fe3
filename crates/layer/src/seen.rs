//! What the members of an archive have put where so far.
//!
//! Whether a member lies behind a symlink is asked for each of them, and names may be deep, so the
//! directories on the way are remembered: each is climbed to once, and not once for each member.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::path::EntryPath;

/// What stands at a path, as far as the way through it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The way goes on.
    Directory,
    /// The way goes somewhere else.
    Symlink,
    /// The way ends.
    Other,
}

/// Something that stands at a path.
pub(crate) trait Stands {
    fn standing(&self) -> Standing;
}

impl Stands for Standing {
    fn standing(&self) -> Standing {
        *self
    }
}

/// What is in the way of a member.
#[derive(Debug)]
pub(crate) struct Obstacle {
    pub(crate) path: EntryPath,
    pub(crate) standing: Standing,
}

/// The members so far by path, and the directories that are only there because of them.
///
/// Above whatever is a directory in here, described or implied, are directories only.
#[derive(Debug)]
pub(crate) struct Seen<T> {
    members: BTreeMap<EntryPath, T>,
    implied: BTreeSet<EntryPath>,
}

impl<T: Stands> Seen<T> {
    pub(crate) fn new() -> Self {
        Self {
            members: BTreeMap::new(),
            implied: BTreeSet::new(),
        }
    }

    /// The last member at `path`.
    pub(crate) fn get(&self, path: &EntryPath) -> Option<&T> {
        self.members.get(path)
    }

    /// Whether there is a member at `path` or something below it.
    pub(crate) fn is_taken(&self, path: &EntryPath) -> bool {
        self.members.contains_key(path) || self.is_implied(path)
    }

    /// Whether there is something below `path`, which no member describes.
    pub(crate) fn is_implied(&self, path: &EntryPath) -> bool {
        self.implied.contains(path)
    }

    /// Goes through the directories above `path`, and ends at what `stops`. What does not stop
    /// becomes a directory. Gives the number of bytes of names that are kept for it.
    pub(crate) fn enter(
        &mut self,
        path: &EntryPath,
        stops: impl Fn(Standing) -> bool,
    ) -> Result<u64, Obstacle> {
        let mut kept = 0;
        for ancestor in path.ancestors() {
            if self.implied.contains(&ancestor) {
                break;
            }
            match self.members.get(&ancestor).map(Stands::standing) {
                Some(Standing::Directory) => break,
                Some(standing) if stops(standing) => {
                    return Err(Obstacle {
                        path: ancestor,
                        standing,
                    });
                }
                _ => {}
            }
            kept += ancestor.as_bytes().len() as u64;
            self.implied.insert(ancestor);
        }
        Ok(kept)
    }

    /// Puts a member at `path`. One that is no directory ends what was below its path.
    pub(crate) fn insert(&mut self, path: EntryPath, member: T) {
        let implied = self.implied.remove(&path);
        if member.standing() != Standing::Directory
            && (implied
                || self.members.get(&path).map(Stands::standing) == Some(Standing::Directory))
        {
            self.forget_below(&path);
        }
        self.members.insert(path, member);
    }

    fn forget_below(&mut self, directory: &EntryPath) {
        let start = [directory.as_bytes(), b"/"].concat();
        let range = (Bound::Excluded(start.as_slice()), Bound::Unbounded);
        let described = self.members.range::<[u8], _>(range).map(|(path, _)| path);
        let described: Vec<EntryPath> = described
            .take_while(|path| path.is_below(directory))
            .cloned()
            .collect();
        for path in &described {
            self.members.remove(path);
        }
        let implied = self.implied.range::<[u8], _>(range);
        let implied: Vec<EntryPath> = implied
            .take_while(|path| path.is_below(directory))
            .cloned()
            .collect();
        for path in &implied {
            self.implied.remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text).unwrap()
    }

    fn links(standing: Standing) -> bool {
        standing == Standing::Symlink
    }

    #[test]
    fn a_directory_is_kept_once() {
        let mut seen = Seen::<Standing>::new();
        assert_eq!(seen.enter(&path("a/b/c"), links).unwrap(), 3 + 1);
        assert_eq!(seen.enter(&path("a/b/d"), links).unwrap(), 0);
        assert_eq!(seen.enter(&path("a/e/f"), links).unwrap(), 3);
        assert!(seen.is_implied(&path("a/b")) && !seen.is_taken(&path("a/b/c")));
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_in_the_way_again() {
        let mut seen = Seen::new();
        seen.enter(&path("a/b/c"), links).unwrap();
        seen.insert(path("a/b/c"), Standing::Other);
        seen.insert(path("a"), Standing::Symlink);
        assert_eq!(seen.get(&path("a/b/c")), None);
        let obstacle = seen.enter(&path("a/b/d"), links).unwrap_err();
        assert_eq!(obstacle.path, path("a"));
    }
}
