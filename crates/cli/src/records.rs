//! Small files that the cache keeps by digest, one for each thing that was learnt: the facts of
//! layers and bases, what was found in images, the symlinks of bases.
//!
//! Each is whole or not believed, and none is needed: what is gone is learnt again.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tierce_layer::cache::{CacheUse, Pruned, Verified};
use tierce_oci::Digest;

use crate::documents::{are_links_sound, links_in};
use crate::layer_facts::{bases_in, facts_in};
use crate::verdict_cache::verdicts_in;

/// The share of the cache's limit that records may take. They are small beside what they are about.
const SHARE: u64 = 8;

/// One file.
struct Found {
    path: PathBuf,
    used: SystemTime,
    bytes: u64,
}

/// Separates the seal of a record from what it says.
const SEPARATOR: u8 = b'\n';

/// How much there is of the facts of layers, bases and images, and of the symlinks of bases.
pub(crate) fn info(cache: &Path) -> Result<[CacheUse; 2]> {
    let mut uses = [CacheUse::default(); 2];
    for (number, root) in [
        (0, facts_in(cache)),
        (0, bases_in(cache)),
        (0, verdicts_in(cache)),
        (1, links_in(cache)),
    ] {
        for found in list(&root)? {
            count(&mut uses[number], &found);
        }
    }
    Ok(uses)
}

/// Removes what was not used for longest, until what is left takes its share of `limit` at most.
pub(crate) fn prune(cache: &Path, limit: u64) -> Result<Pruned> {
    let mut found = list(&facts_in(cache))?;
    found.extend(list(&bases_in(cache))?);
    found.extend(list(&verdicts_in(cache))?);
    found.extend(list(&links_in(cache))?);
    found.sort_by(|one, other| (one.used, &one.path).cmp(&(other.used, &other.path)));
    let mut left: u64 = found.iter().map(|found| found.bytes).sum();
    let mut pruned = Pruned::default();
    for found in &found {
        if left <= limit / SHARE {
            count(&mut pruned.left, found);
            continue;
        }
        remove(&found.path)?;
        left -= found.bytes;
        count(&mut pruned.removed, found);
    }
    Ok(pruned)
}

/// Reads all of them and removes what is damaged.
pub(crate) fn verify(cache: &Path) -> Result<Verified> {
    let mut verified = Verified::default();
    for (root, is_sound) in [
        (facts_in(cache), is_whole as fn(&Path, &[u8]) -> bool),
        (bases_in(cache), is_whole),
        (verdicts_in(cache), is_whole),
        (links_in(cache), |_, bytes| are_links_sound(bytes)),
    ] {
        for found in list(&root)? {
            // What cannot be read is of no more use than what is wrong.
            if fs::read(&found.path).is_ok_and(|bytes| is_sound(&found.path, &bytes)) {
                count(&mut verified.sound, &found);
            } else {
                remove(&found.path)?;
                verified.removed.push(found.path);
            }
        }
    }
    Ok(verified)
}

/// Notes that a record was of use: what was used last is pruned last. Says whether there is one.
pub(crate) fn touch(path: &Path) -> bool {
    let now = FileTimes::new().set_modified(SystemTime::now());
    let touched = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        opened => opened.and_then(|record| record.set_times(now)),
    };
    if let Err(error) = touched {
        tracing::debug!("could not touch {}: {error}", path.display());
    }
    true
}

/// Whether a record that [`write_whole`] made is as it was written, and where.
fn is_whole(path: &Path, bytes: &[u8]) -> bool {
    checked(path, bytes).is_some()
}

/// What a record says, if it is whole and about what it is named after.
fn checked<'a>(path: &Path, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let end = bytes.iter().position(|&byte| byte == SEPARATOR)?;
    let (stated, json) = (&bytes[..end], &bytes[end + 1..]);
    // A flipped bit here would hide a defect, or make one up; so would a record of something else.
    (seal(path, json).to_string().as_bytes() == stated).then_some(json)
}

/// The digest of the name of the file, which is what it is about, and of what it says.
fn seal(path: &Path, json: &[u8]) -> Digest {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    Digest::of(&[name, &[SEPARATOR], json].concat())
}

/// What was written by [`write_whole`], if it is whole.
pub(crate) fn read_whole(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let json = checked(path, &bytes)?.len();
    touch(path);
    bytes.drain(..bytes.len() - json);
    Some(bytes)
}

/// Writes a record with its own digest in front, by way of `scratch`. A cache that cannot be written
/// is only slower, never an error.
pub(crate) fn write_whole(path: &Path, json: &[u8], scratch: &Path) {
    let write = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(scratch)?;
        file.write_all(seal(path, json).to_string().as_bytes())?;
        file.write_all(&[SEPARATOR])?;
        file.write_all(json)?;
        file.persist(path)?;
        Ok::<_, io::Error>(())
    };
    if let Err(error) = write() {
        tracing::debug!("could not keep {}: {error}", path.display());
    }
}

fn count(used: &mut CacheUse, found: &Found) {
    used.files += 1;
    used.bytes += found.bytes;
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn list(root: &Path) -> Result<Vec<Found>> {
    let root = root.join("sha256");
    let could_not = || format!("could not list {}", root.display());
    let entries = match fs::read_dir(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(could_not)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(could_not)?;
        // Another run may prune meanwhile.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_file() {
            found.push(Found {
                path: entry.path(),
                used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                bytes: metadata.len(),
            });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}
