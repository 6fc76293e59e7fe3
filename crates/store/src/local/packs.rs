//! The packs of the store.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tierce_image::{FileRange, Piece};

use crate::atomic::{PathError, TemporaryLink, sync_directory};
use crate::damage::{self, Damage};
use crate::file::open_regular;
use crate::pieces::verify;

/// The name of a pack's file: letters, digits, `.`, `_` and `-`, the first no dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct PackName(String);

impl PackName {
    /// The name of the file at `path`, if a pack can have it.
    pub(super) fn of(path: &Path) -> Option<Self> {
        Self::try_from(path.file_name()?.to_str()?.to_owned()).ok()
    }

    pub(super) fn within(&self, directory: &Path) -> PathBuf {
        directory.join(&self.0)
    }
}

/// A record names a pack that no pack can be.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not the name of a pack")]
pub(super) struct BadPackName(String);

impl TryFrom<String> for PackName {
    type Error = BadPackName;

    fn try_from(name: String) -> Result<Self, BadPackName> {
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"._-".contains(&letter);
        let is_name =
            (1..=255).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain);
        if is_name {
            Ok(Self(name))
        } else {
            Err(BadPackName(name))
        }
    }
}

impl From<PackName> for String {
    fn from(name: PackName) -> Self {
        name.0
    }
}

/// Whether all packs that `pieces` name are there, long enough, and right as far as is known.
/// None of them is read.
pub(super) fn vouch_for(pieces: &[Piece]) -> bool {
    let mut known: BTreeMap<&Path, Option<(u64, Damage)>> = BTreeMap::new();
    ranges(pieces).all(|range| {
        let pack = known.entry(&range.path).or_insert_with(|| {
            let found = fs::symlink_metadata(&range.path).ok()?;
            found
                .is_file()
                .then(|| (found.len(), Damage::of(&range.path)))
        });
        pack.as_ref()
            .is_some_and(|(length, damage)| end(range) <= *length && !damage.is_on(range))
    })
}

/// Where the store takes packs in.
#[derive(Debug)]
pub(super) struct Packs {
    directory: PathBuf,
    temporary: PathBuf,
    link: fn(&Path, &Path) -> io::Result<()>,
}

impl Packs {
    pub(super) fn new(directory: PathBuf, temporary: PathBuf) -> Self {
        Self {
            directory,
            temporary,
            link: |file, name| fs::hard_link(file, name),
        }
    }

    /// Makes sure that the store has all packs that `pieces` name, durably.
    ///
    /// Each is linked under its own name. One that the store has by that name is kept if the ranges
    /// are right in it: other layers may be made of it too. `false` when a pack cannot be had like
    /// this, most often because it is on another file system; some may have been linked then.
    pub(super) async fn take(&self, pieces: &[Piece]) -> Result<bool, PathError> {
        let mut packs: BTreeMap<PackName, Vec<FileRange>> = BTreeMap::new();
        for range in ranges(pieces) {
            let Some(name) = PackName::of(&range.path) else {
                return Ok(false);
            };
            packs.entry(name).or_default().push(range.clone());
        }
        for (name, ranges) in packs {
            // Names are made from the content, so these would be two copies of one pack.
            let is_one_file = ranges.iter().all(|range| range.path == ranges[0].path);
            if !is_one_file || !self.take_one(&name, &ranges).await? {
                return Ok(false);
            }
        }
        sync_directory(&self.directory)?;
        Ok(true)
    }

    /// Takes the pack that all of `wanted` are of.
    async fn take_one(&self, name: &PackName, wanted: &[FileRange]) -> Result<bool, PathError> {
        let source = &wanted[0].path;
        let target = name.within(&self.directory);
        let own = moved(wanted, &target);
        let damage = Damage::of(&target);
        let is_doubted = own.iter().any(|range| damage.is_on(range));
        let (offered, there) = (OpenPack::open(source), OpenPack::open(&target));
        if let Some(there) = &there {
            let is_linked = offered.as_ref().is_some_and(|offered| offered.is(there));
            if is_linked && !is_doubted && there.reaches(&own) {
                return Ok(true);
            }
            if there.has(&own).await {
                if is_doubted {
                    damage::forget(&target)?;
                }
                return Ok(true);
            }
        }
        let Some(offered) = offered.filter(|offered| offered.reaches(wanted)) else {
            return Ok(false);
        };
        // The word of whoever has the pack is good, until a pack of that name has been found wrong:
        // it may well be this very file.
        let is_suspect = is_doubted || there.is_some();
        if is_suspect && !offered.has(wanted).await {
            return Ok(false);
        }
        self.link(source, &offered, &target)
    }

    /// Gives the pack at `source` the name `target` too, in the place of what has it.
    fn link(&self, source: &Path, pack: &OpenPack, target: &Path) -> Result<bool, PathError> {
        // Nobody sweeps away a name of a file that somebody has locked.
        let _ = pack.file.try_lock_shared();
        let Ok(link) = TemporaryLink::create(&self.temporary, |name| (self.link)(source, name))
        else {
            return Ok(false);
        };
        // Neither a symlink nor what has since taken the name.
        let is_it = fs::symlink_metadata(link.path())
            .is_ok_and(|linked| is_same_file(&linked, &pack.metadata));
        if !is_it || self.let_read(pack).is_err() {
            return Ok(false);
        }
        pack.file
            .sync_all()
            .map_err(PathError::of("write", target))?;
        link.persist(target)?;
        damage::forget(target)?;
        Ok(true)
    }

    /// Makes the pack as readable as the directory is.
    fn let_read(&self, pack: &OpenPack) -> io::Result<()> {
        let directory = fs::metadata(&self.directory)?.permissions().mode();
        let mode = pack.metadata.permissions().mode() & 0o7777;
        let wanted = mode | directory & 0o444;
        if wanted == mode {
            return Ok(());
        }
        pack.file.set_permissions(Permissions::from_mode(wanted))
    }
}

/// A pack that is open for reading.
struct OpenPack {
    file: File,
    metadata: Metadata,
}

impl OpenPack {
    fn open(path: &Path) -> Option<Self> {
        let file = open_regular(path).ok()?;
        let metadata = file.metadata().ok()?;
        Some(Self { file, metadata })
    }

    fn is(&self, other: &Self) -> bool {
        is_same_file(&self.metadata, &other.metadata)
    }

    fn reaches(&self, ranges: &[FileRange]) -> bool {
        ranges.iter().all(|range| end(range) <= self.metadata.len())
    }

    async fn has(&self, ranges: &[FileRange]) -> bool {
        self.reaches(ranges) && verify(&self.file, ranges).await
    }
}

fn is_same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The same ranges of the file at `path`.
fn moved(ranges: &[FileRange], path: &Path) -> Vec<FileRange> {
    let path: Arc<Path> = path.into();
    ranges
        .iter()
        .map(|range| FileRange {
            path: path.clone(),
            ..range.clone()
        })
        .collect()
}

fn ranges(pieces: &[Piece]) -> impl Iterator<Item = &FileRange> {
    pieces.iter().filter_map(|piece| match piece {
        Piece::Range(range) => Some(range),
        Piece::Bytes(_) => None,
    })
}

fn end(range: &FileRange) -> u64 {
    range.offset.saturating_add(range.length)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::pieces::range_of_file;
    use crate::tests::run;

    /// A store's directories, and a pack beside it.
    fn directories() -> (tempfile::TempDir, Packs, PathBuf, Vec<Piece>) {
        let root = tempfile::tempdir().unwrap();
        for name in ["packs", "damage", "tmp", "cache"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let packs = Packs::new(root.path().join("packs"), root.path().join("tmp"));
        let pack = root.path().join("cache/3f9a.pack");
        fs::write(&pack, b"segments").unwrap();
        let pieces = vec![Piece::Range(range_of_file(&pack).unwrap())];
        (root, packs, pack, pieces)
    }

    fn is_empty(directory: &Path) -> bool {
        fs::read_dir(directory).unwrap().next().is_none()
    }

    #[test]
    fn a_pack_that_cannot_be_linked_is_not_taken() {
        let refusals: [fn(&Path, &Path) -> io::Result<()>; 4] = [
            |_, _| Err(Errno::XDEV.into()),
            |_, _| Err(Errno::MLINK.into()),
            |_, _| Err(Errno::PERM.into()),
            |_, _| Err(Errno::OPNOTSUPP.into()),
        ];
        for refusal in refusals {
            let (root, mut packs, _, pieces) = directories();
            packs.link = refusal;
            assert!(!run(packs.take(&pieces)).unwrap());
            assert!(is_empty(&root.path().join("packs")) && is_empty(&root.path().join("tmp")));
        }
    }

    #[test]
    fn what_is_linked_is_what_was_looked_at() {
        let (root, mut packs, pack, pieces) = directories();
        // The pack is swapped for another, or for a link to it, a moment before.
        packs.link = |file, name| {
            fs::write(name, b"another file")?;
            assert!(file.exists());
            Ok(())
        };
        assert!(!run(packs.take(&pieces)).unwrap());
        packs.link = |file, name| std::os::unix::fs::symlink(file, name);
        assert!(!run(packs.take(&pieces)).unwrap());
        assert!(is_empty(&root.path().join("packs")) && is_empty(&root.path().join("tmp")));

        packs.link = |file, name| fs::hard_link(file, name);
        assert!(run(packs.take(&pieces)).unwrap());
        let linked = root.path().join("packs/3f9a.pack");
        let same = [&linked, &pack].map(|path| fs::metadata(path).unwrap());
        assert!(is_same_file(&same[0], &same[1]));
        assert!(is_empty(&root.path().join("tmp")));
    }

    /// Two writers that both found the pack missing link it one after the other.
    #[test]
    fn a_link_in_the_place_of_the_same_file_leaves_one_name() {
        let (root, packs, pack, _) = directories();
        let target = root.path().join("packs/3f9a.pack");
        for _ in 0..2 {
            let open = OpenPack::open(&pack).unwrap();
            assert!(packs.link(&pack, &open, &target).unwrap());
        }
        assert_eq!(fs::metadata(&target).unwrap().nlink(), 2);
        assert!(is_empty(&root.path().join("tmp")));
    }

    #[test]
    fn a_private_pack_becomes_as_readable_as_the_store() {
        let (root, packs, pack, pieces) = directories();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        for (directory, before, after) in [
            (0o755, 0o600, 0o644),
            (0o750, 0o400, 0o440),
            (0o700, 0o444, 0o444),
        ] {
            set(&root.path().join("packs"), directory).unwrap();
            set(&pack, before).unwrap();
            assert!(run(packs.take(&pieces)).unwrap());
            let linked = root.path().join("packs/3f9a.pack");
            let mode = fs::metadata(&linked).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, after);
            fs::remove_file(&linked).unwrap();
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["3f9a.pack", "a", "A-b_c.d", &"x".repeat(255)] {
            let path = Path::new("/somewhere").join(name);
            let read = PackName::of(&path).unwrap();
            assert_eq!(read.within(Path::new("/somewhere")), path);
        }
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(256),
        ] {
            assert!(PackName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}
