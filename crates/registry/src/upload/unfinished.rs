//! Uploads that broke off, as they are written down for the next run.
//!
//! A note says where an upload goes on and how far it is. It is a hint: whoever takes it up asks the
//! registry first, and the digest in the last request decides. Its address may be a signature, so
//! nobody else may read it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tierce_oci::{Descriptor, Digest, Repository};
use url::Url;

use super::LARGEST_CHUNK;
use super::session::Session;

/// No registry keeps an upload for longer.
const LIFETIME: Duration = Duration::from_hours(7 * 24);

/// The directory of notes. What it cannot do costs no more than an upload that begins anew.
#[derive(Debug)]
pub(crate) struct Unfinished {
    directory: PathBuf,
}

/// The note of one blob for one repository, which this process alone may write.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    repository: String,
    digest: String,
    size: u64,
    /// Held for as long as the upload goes on.
    lock: File,
    lock_path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    repository: String,
    digest: String,
    size: u64,
    at: u64,
    chunk: u64,
    url: String,
}

impl Unfinished {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Takes the note of a blob; `None` when another process has it, or when none can be kept.
    pub(super) fn claim(&self, repository: &Repository, blob: &Descriptor) -> Option<Note> {
        match self.try_claim(repository, blob) {
            Ok(note) => note,
            Err(error) => {
                let directory = self.directory.display();
                tracing::debug!("no notes of uploads in {directory}: {error}");
                None
            }
        }
    }

    fn try_claim(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> std::io::Result<Option<Note>> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        self.sweep()?;
        let (repository, digest) = (repository.to_string(), blob.digest.to_string());
        let key = Digest::of(format!("{repository}\n{digest}").as_bytes());
        let name = key.to_string().replace(':', "-");
        let lock_path = self.directory.join(format!("{name}.lock"));
        let lock = private().create(true).open(&lock_path)?;
        // Its last owner may have removed it between the two: then it keeps nobody out.
        if lock.try_lock().is_err() || lock.metadata()?.nlink() == 0 {
            return Ok(None);
        }
        Ok(Some(Note {
            path: self.directory.join(format!("{name}.json")),
            repository,
            digest,
            size: blob.size,
            lock,
            lock_path,
        }))
    }

    /// Removes what nobody can go on with any more.
    fn sweep(&self) -> std::io::Result<()> {
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let is_old = modified
                .is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > LIFETIME));
            if is_old {
                // Somebody else may be faster.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

impl Note {
    /// What it says, if it is about this very blob.
    pub(super) fn read(&self) -> Option<Session> {
        let saved: Saved = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let is_ours = saved.repository == self.repository
            && saved.digest == self.digest
            && saved.size == self.size
            && saved.at <= saved.size
            && saved.chunk > 0;
        if !is_ours {
            return None;
        }
        Some(Session {
            at: saved.at,
            is_unsure: true,
            ..Session::new(Url::parse(&saved.url).ok()?, saved.chunk.min(LARGEST_CHUNK))
        })
    }

    /// Writes down how far `session` is.
    pub(super) fn write(&self, session: &Session) {
        let saved = Saved {
            repository: self.repository.clone(),
            digest: self.digest.clone(),
            size: self.size,
            at: session.at,
            chunk: session.chunk,
            url: session.url.to_string(),
        };
        if let Err(error) = replace(&self.path, &saved) {
            tracing::debug!("the state of an upload was not written down: {error}");
        }
    }

    /// The upload has ended, either way.
    pub(super) fn remove(&self) {
        // A note that stays is found to be of no use.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if !self.path.exists() {
            let _ = fs::remove_file(&self.lock_path);
        }
        // Closing it would do as well.
        let _ = self.lock.unlock();
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn replace(path: &Path, saved: &Saved) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(saved)?;
    // One writer at a time, so one name for what is not whole yet is enough.
    let temporary = path.with_extension("tmp");
    let mut file = private().create(true).truncate(true).open(&temporary)?;
    file.write_all(&bytes)?;
    drop(file);
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use tierce_oci::MediaType;

    use super::*;

    #[test]
    fn a_note_is_for_one_blob_one_process_and_its_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("uploads");
        let unfinished = Unfinished::new(root.clone());
        let repository: Repository = "r.example/app".parse().unwrap();
        let blob = Descriptor::of(MediaType::from("x/y"), b"twelve bytes");
        let note = unfinished.claim(&repository, &blob).unwrap();
        assert!(note.read().is_none());
        assert!(
            unfinished.claim(&repository, &blob).is_none(),
            "it is taken"
        );
        let url = Url::parse("https://r.example/v2/app/blobs/uploads/1?_state=s").unwrap();
        let session = Session {
            at: 5,
            ..Session::new(url.clone(), 3)
        };
        note.write(&session);
        drop(note);

        let note = unfinished.claim(&repository, &blob).unwrap();
        let read = note.read().unwrap();
        assert_eq!((&read.url, read.at, read.chunk), (&url, 5, 3));
        assert!(read.is_unsure);
        note.write(&Session::new(url, u64::MAX));
        assert_eq!(note.read().unwrap().chunk, LARGEST_CHUNK);
        for entry in fs::read_dir(&root).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().mode();
            assert_eq!(mode & 0o077, 0, "others must not read it");
        }
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o077, 0);

        let other = Descriptor {
            size: 11,
            ..blob.clone()
        };
        drop(note);
        let note = unfinished.claim(&repository, &other).unwrap();
        assert!(note.read().is_none(), "another size");
        fs::write(&note.path, b"{").unwrap();
        assert!(note.read().is_none());
        note.remove();
        drop(note);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
}
