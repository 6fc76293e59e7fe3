//! Files that appear whole or not at all.
//!
//! A file is written under a temporary name on the same file system, synced, and renamed. Whoever
//! looks sees the old file or the new one, also after a power cut. Dropping an [`AtomicFile`]
//! removes it.
//!
//! A killed process leaves its temporary files behind. They are named `.tierce-….tmp`, nothing reads
//! them, and a later process sweeps them away when it writes to the same place. Which of them are
//! still in use is told by a lock (`flock`) that the writer holds and that the kernel drops when the
//! writer dies; no clock and no process id comes into it. Where the file system knows no such locks
//! nothing is swept.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

/// Something that the operating system refused, with the path.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} `{}`", path.display())]
pub struct PathError {
    /// What was being done: `read`, `write`, `create`, …
    pub action: &'static str,
    /// To what.
    pub path: PathBuf,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl PathError {
    /// Makes `io::Error`s into errors about `path`, for `map_err`.
    pub(crate) fn of(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the path was not there.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    }
}

const PREFIX: &str = ".tierce-";
const SUFFIX: &str = ".tmp";

/// Whether `name` is one of ours, in use or left by a killed process.
pub(crate) fn is_temporary_name(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// A file that is being written under a temporary name.
#[derive(Debug)]
pub struct AtomicFile {
    temporary: NamedTempFile,
    /// Where it will be; errors name this, because nobody knows the temporary name.
    target: PathBuf,
}

impl AtomicFile {
    /// Begins a file that will be at `target`, in a directory that is there.
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, PathError> {
        let target = target.into();
        let directory = parent(&target).to_owned();
        Self::create_through(&directory, target)
    }

    /// Begins a file in the directory `temporary`, which is on the file system of `target`.
    pub(crate) fn create_through(temporary: &Path, target: PathBuf) -> Result<Self, PathError> {
        loop {
            let temporary = tempfile::Builder::new()
                .prefix(PREFIX)
                .suffix(SUFFIX)
                // Created here, with the mode that any program's new file has, because `tempfile`
                // would write the temporary name into the error.
                .make_in(temporary, |path| File::create_new(path))
                .map_err(PathError::of("create a file in", temporary))?;
            // A file system without locks has no sweepers either: see `sweep`.
            let _ = temporary.as_file().lock();
            let metadata = temporary
                .as_file()
                .metadata()
                .map_err(PathError::of("write", &target))?;
            // A sweeper may have come between creation and lock, and taken it for abandoned.
            if metadata.nlink() > 0 {
                return Ok(Self { temporary, target });
            }
        }
    }

    /// Appends `bytes`.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), PathError> {
        let written = self.temporary.as_file_mut().write_all(bytes);
        written.map_err(PathError::of("write", &self.target))
    }

    /// Cuts the file to `length` bytes, to be gone on with from there.
    pub(crate) fn cut(&mut self, length: u64) -> Result<(), PathError> {
        let file = self.temporary.as_file_mut();
        file.set_len(length)
            .and_then(|()| file.seek(SeekFrom::Start(length)))
            .map(|_| ())
            .map_err(PathError::of("write", &self.target))
    }

    /// Gives the file its name, replacing what has it, and makes that durable.
    pub fn persist(self) -> Result<(), PathError> {
        let target = self.target.clone();
        self.persist_unsynced()?;
        sync_directory(parent(&target))
    }

    /// Gives the file its name, which nothing may have yet, and makes that durable.
    pub fn persist_new(self) -> Result<(), PathError> {
        let failed = PathError::of("write", &self.target);
        self.temporary.as_file().sync_all().map_err(&failed)?;
        self.temporary
            .persist_noclobber(&self.target)
            .map_err(|error| failed(error.error))?;
        sync_directory(parent(&self.target))
    }

    /// Gives the file its name; the directory entry is durable after [`sync_directory`].
    pub(crate) fn persist_unsynced(self) -> Result<(), PathError> {
        let failed = PathError::of("write", &self.target);
        self.temporary.as_file().sync_all().map_err(&failed)?;
        self.temporary
            .persist(&self.target)
            .map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// A second name of a file, to take the place of another file's.
#[derive(Debug)]
pub(crate) struct TemporaryLink(TempPath);

impl TemporaryLink {
    /// Has `link` make the name, in the directory `temporary`. As long as the file is not locked
    /// by the caller the name may be swept away.
    pub(crate) fn create(
        temporary: &Path,
        link: impl FnMut(&Path) -> io::Result<()>,
    ) -> io::Result<Self> {
        let link = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(SUFFIX)
            .make_in(temporary, link)?;
        Ok(Self(link.into_temp_path()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives the file the name `target` instead, replacing what has it; the directory entry is
    /// durable after [`sync_directory`].
    pub(crate) fn persist(self, target: &Path) -> Result<(), PathError> {
        let path = self.0.to_path_buf();
        self.0
            .persist(target)
            .map_err(|error| PathError::of("write", target)(error.error))?;
        // Where the file had that name already both are left.
        let _ = fs::remove_file(path);
        Ok(())
    }
}

/// Makes the names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), PathError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(PathError::of("sync", directory))
}

/// Writes a whole small file, replacing what is at `path`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PathError> {
    write_file_through(parent(path), path, bytes)
}

/// Like [`write_file`], with the temporary file in `temporary`.
pub(crate) fn write_file_through(
    temporary: &Path,
    path: &Path,
    bytes: &[u8],
) -> Result<(), PathError> {
    let mut file = AtomicFile::create_through(temporary, path.to_owned())?;
    file.write_all(bytes)?;
    file.persist()
}

/// Makes `directory` and what is above it, if missing.
pub(crate) fn create_directory(directory: &Path) -> Result<(), PathError> {
    fs::create_dir_all(directory).map_err(PathError::of("create", directory))
}

/// The directory that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes what killed processes left in `directory`. Whatever goes wrong is left for next time.
pub(crate) fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !is_temporary_name(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        // The lock is held while the name goes, so that a writer that is just creating the file
        // finds out: see `AtomicFile::create_through`.
        if let Ok(file) = crate::file::open_regular(&path)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(file);
        assert!(names(directory.path()).is_empty());

        write_file(&target, b"one").unwrap();
        write_file(&target, b"two").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"two");
        assert_eq!(names(directory.path()), ["target"]);
    }

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let held = AtomicFile::create(&target).unwrap();
        let abandoned = directory.path().join(".tierce-abcdef.tmp");
        fs::write(&abandoned, b"half").unwrap();
        let foreign = directory.path().join(".tierce-notes");
        fs::write(&foreign, b"kept").unwrap();
        std::os::unix::fs::symlink(&foreign, directory.path().join(".tierce-link.tmp")).unwrap();
        sweep(directory.path());
        assert!(!abandoned.exists());
        assert!(foreign.exists() && held.temporary.path().exists());
        assert_eq!(names(directory.path()).len(), 3);
        held.persist().unwrap();
        assert!(target.exists());
    }

    #[test]
    fn errors_name_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing/file");
        let error = write_file(&missing, b"").unwrap_err();
        assert!(error.is_not_found());
        let shown = error.to_string();
        assert!(
            shown.starts_with("could not create a file in `") && shown.ends_with("/missing`"),
            "{shown}"
        );
        assert_eq!(error.source.raw_os_error(), Some(2), "{}", error.source);
    }

    #[test]
    fn writers_and_sweepers_do_not_disturb_each_other() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let directory = directory.path();
                scope.spawn(move || {
                    for round in 0..50 {
                        let target = directory.join(format!("{writer}-{round}"));
                        write_file(&target, target.as_os_str().as_encoded_bytes()).unwrap();
                    }
                });
            }
            scope.spawn(|| (0..200).for_each(|_| sweep(directory.path())));
        });
        assert_eq!(names(directory.path()).len(), 200);
    }
}
