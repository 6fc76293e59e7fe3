//! What is known to be wrong with the packs of the local store.
//!
//! The store believes that a pack is right as long as it is there and long enough: it is never
//! written to, and reading all of it each time an image is asked for would cost what the store is
//! there to save. A bad disk changes bytes all the same. So reading compares each range, and one that
//! is wrong is written down in `damage/<pack>`, a line `offset length check` for each: whoever needs
//! that range then finds its layer missing and brings the pack again. Ranges that were not found
//! wrong are still good, and the pack stays for them: nobody may have them but the store.
//!
//! This is not done with times as [`Mark`](crate::stamp::Mark) does for blobs, because the cache has
//! the same file under another name, and may do as it likes with its times.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use tierce_image::FileRange;

use crate::atomic::PathError;
use crate::file::read_limited;

/// The directory of packs in a store.
pub(crate) const PACKS: &str = "packs";

/// The directory beside it, with a file for each pack that has been found wrong.
pub(crate) const DAMAGE: &str = "damage";

/// A line has up to 75 bytes, and a pack some thousand ranges.
const MAX_NOTES: u64 = 4 << 20;

/// The ranges of a pack that had other bytes when they were last read.
#[derive(Debug, Default)]
pub(crate) struct Damage(BTreeSet<(u64, u64, u128)>);

impl Damage {
    /// What was written down about the pack at `pack`. Nothing, if that cannot be read: it is
    /// written down again when the pack is next read.
    pub(crate) fn of(pack: &Path) -> Self {
        let notes = notes_of(pack).and_then(|path| read_limited(&path, MAX_NOTES).ok().flatten());
        let lines = notes.unwrap_or_default();
        let lines = String::from_utf8_lossy(&lines);
        Self(lines.lines().filter_map(parse).collect())
    }

    pub(crate) fn is_on(&self, range: &FileRange) -> bool {
        self.0.contains(&(range.offset, range.length, range.check))
    }
}

/// Writes down that `range` is wrong, if its pack is one of a store.
///
/// Failing is no error: then the store goes on to believe the pack, and the next reader notices.
pub(crate) fn note(range: &FileRange) {
    if let Some(path) = notes_of(&range.path)
        && !Damage::of(&range.path).is_on(range)
        // There is no such directory beside other packs than those of a store.
        && let Ok(mut file) = File::options().append(true).create(true).open(path)
    {
        let line = format!("{} {} {:032x}\n", range.offset, range.length, range.check);
        let _ = file.write_all(line.as_bytes());
    }
}

/// Forgets what was wrong with the pack that another now has the name of.
pub(crate) fn forget(pack: &Path) -> Result<(), PathError> {
    let Some(path) = notes_of(pack) else {
        return Ok(());
    };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(PathError::of("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

fn notes_of(pack: &Path) -> Option<PathBuf> {
    let directory = pack.parent().filter(|parent| parent.ends_with(PACKS))?;
    Some(directory.with_file_name(DAMAGE).join(pack.file_name()?))
}

fn parse(line: &str) -> Option<(u64, u64, u128)> {
    let mut words = line.split(' ');
    let range = (
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        u128::from_str_radix(words.next()?, 16).ok()?,
    );
    words.next().is_none().then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(pack: &Path, offset: u64) -> FileRange {
        FileRange {
            path: pack.into(),
            offset,
            length: 5,
            check: u128::MAX,
        }
    }

    #[test]
    fn notes_are_of_ranges_and_only_beside_packs_of_a_store() {
        let directory = tempfile::tempdir().unwrap();
        let pack = directory.path().join("packs/3f9a.pack");
        note(&range(&pack, 1));
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());

        fs::create_dir(directory.path().join(DAMAGE)).unwrap();
        note(&range(&directory.path().join("other/3f9a.pack"), 1));
        for offset in [1, 1 << 60, 1] {
            note(&range(&pack, offset));
        }
        let notes = directory.path().join("damage/3f9a.pack");
        let check = "f".repeat(32);
        assert_eq!(
            fs::read_to_string(&notes).unwrap(),
            format!("1 5 {check}\n{} 5 {check}\n", 1_u64 << 60)
        );
        let damage = Damage::of(&pack);
        assert!(damage.is_on(&range(&pack, 1)) && !damage.is_on(&range(&pack, 2)));
        // What a killed process began to write says nothing.
        fs::write(&notes, format!("2 5\n1 5 {check} 7\nx\n\n3 5 {check}\n1 5")).unwrap();
        let damage = Damage::of(&pack);
        assert!(damage.is_on(&range(&pack, 3)) && !damage.is_on(&range(&pack, 1)));
        for _ in 0..2 {
            forget(&pack).unwrap();
            assert!(!Damage::of(&pack).is_on(&range(&pack, 3)));
        }
    }
}
