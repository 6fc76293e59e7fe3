//! A folder that is looked at without trusting what is in it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// As much of a file as is read. Files that say what a function is are smaller.
const MOST_BYTES: u64 = 4 << 20;
/// As many names of one folder as are looked at.
const MOST_NAMES: usize = 10_000;

/// The folder, and what is to be said of it.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    remarks: Vec<String>,
}

impl Folder {
    /// Opens a folder that is there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let context = || format!("could not open the context {}", path.display());
        let root = path.canonicalize().with_context(context)?;
        // Says what is wrong with it before anything else does.
        std::fs::read_dir(&root).with_context(context)?;
        Ok(Self {
            root,
            remarks: Vec::new(),
        })
    }

    /// Says something that its owner should know, once and in one line, whatever names are in it.
    pub(super) fn remark(&mut self, mut text: String) {
        text.retain(|letter| !letter.is_control());
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    /// All that is to be said.
    pub(crate) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Where a path really is, when that is inside.
    fn real(&self, path: &str) -> Option<PathBuf> {
        let real = self.root.join(path).canonicalize().ok()?;
        real.starts_with(&self.root).then_some(real)
    }

    /// Whether there is a plain file.
    pub(super) fn has_file(&self, path: &str) -> bool {
        self.real(path).is_some_and(|real| real.is_file())
    }

    /// Whether there is a folder.
    pub(super) fn has_folder(&self, path: &str) -> bool {
        self.real(path).is_some_and(|real| real.is_dir())
    }

    /// Whether there is a folder that no symlink leads to.
    pub(super) fn is_own_folder(&self, path: &str) -> bool {
        let found = self.root.join(path).symlink_metadata();
        found.is_ok_and(|found| found.is_dir())
    }

    /// The real path of a plain file.
    pub(super) fn file(&self, path: &str) -> Option<PathBuf> {
        self.real(path).filter(|real| real.is_file())
    }

    /// The text of a file. What is there and cannot be read is remarked on.
    pub(super) fn text(&mut self, path: &str) -> Option<String> {
        let found = self.root.join(path);
        if found.symlink_metadata().is_err() {
            return None;
        }
        match self.read(path) {
            Ok(text) => Some(text),
            Err(problem) => {
                self.remark(format!("`{path}` {problem}: it is left aside"));
                None
            }
        }
    }

    fn read(&self, path: &str) -> Result<String, String> {
        let cannot = |error: std::io::Error| format!("cannot be read ({error})");
        let real = self.root.join(path).canonicalize().map_err(cannot)?;
        if !real.starts_with(&self.root) {
            return Err("leads out of the folder".to_owned());
        }
        // Before it is opened: a pipe would wait for somebody to write.
        if !real.is_file() {
            return Err("is not a file".to_owned());
        }
        let file = std::fs::File::open(real).map_err(cannot)?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(cannot)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(format!("has more than {} MiB", MOST_BYTES >> 20));
        }
        let text = String::from_utf8(bytes).map_err(|_| "is not text in UTF-8".to_owned())?;
        // As editors of Windows begin it.
        Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
    }

    /// The names in a folder that are text of one line, sorted.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Some(real) = self.real(path) else {
            return Vec::new();
        };
        let entries = std::fs::read_dir(real).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.chars().any(char::is_control))
            .collect();
        // In this order: the same folder has the same names wherever it lies.
        names.sort();
        names.truncate(MOST_NAMES);
        names
    }

    /// The path as the file may say it: relative, inside, without `.` and `..`; empty for the folder
    /// itself.
    pub(super) fn inside(&self, path: &str) -> Option<String> {
        if path.contains(char::is_control) {
            return None;
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" if parts.is_empty() && path.starts_with('/') => return None,
                "" | "." => {}
                ".." => {
                    parts.pop()?;
                }
                part => parts.push(part),
            }
        }
        let path = parts.join("/");
        self.real(&path).map(|_| path)
    }
}
