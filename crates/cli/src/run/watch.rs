//! What tells `tierce run --watch` that the folder changed.
//!
//! The kernel tells it (inotify(7)), directory by directory. What is told may be too much: a build
//! that changes nothing takes a moment and swaps nothing. So only what changes all the time and
//! never matters is left out, and what tierce writes itself, which would go on for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tierce_layer::Matcher;

use crate::background::in_background;

/// Folders that tools fill. They matter only where they, or what is in them, are named as what goes
/// into the image.
const FILLED_BY_TOOLS: [&str; 5] = ["target", "node_modules", "__pycache__", ".venv", "venv"];

/// Never part of an image.
const NEVER_MEANT: &str = ".git";

/// A change is complete when nothing followed for so long: editors write, rename and set modes.
const QUIET: Duration = Duration::from_millis(30);

/// How long a thread that waits may not notice that nobody waits for it any more.
const HEED: Duration = Duration::from_millis(200);

/// A folder that does not come to rest is looked at all the same.
const RESTLESS: Duration = Duration::from_millis(300);

/// Files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The kernel gives no more queues, or none at all.
    #[error("could not watch files")]
    Begin(#[source] io::Error),
    /// The kernel watches no more directories of this user.
    #[error("could not watch {}: the user's limit of watched directories is reached", .0.display())]
    TooMany(PathBuf),
    /// A directory cannot be watched.
    #[error("could not watch {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// What changed cannot be read.
    #[error("could not read which files changed")]
    Read(#[source] io::Error),
}

/// What is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    queue: Arc<OwnedFd>,
    context: PathBuf,
    /// Where tierce itself writes.
    own: Vec<PathBuf>,
    /// By the kernel's number.
    watched: BTreeMap<i32, Watched>,
    ignored: Option<Matcher>,
}

#[derive(Debug)]
struct Watched {
    directory: PathBuf,
    names: Names,
}

/// Which names of a directory matter.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    All,
    Only(BTreeSet<OsString>),
}

impl Watch {
    /// Watches nothing yet. `own` are directories that tierce itself writes to.
    pub(crate) fn new(context: &Path, own: &[&Path]) -> Result<Self, WatchError> {
        let begin = |error: Errno| WatchError::Begin(error.into());
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(begin)?;
        Ok(Self {
            queue: Arc::new(queue),
            context: real(context),
            own: own.iter().map(|path| real(path)).collect(),
            watched: BTreeMap::new(),
            ignored: None,
        })
    }

    /// Watches the folder, and the files and folders of `inputs` wherever they are, as they are now.
    ///
    /// To be called before each build: what changes from then on is told.
    pub(crate) fn cover(&mut self, inputs: &[PathBuf]) -> Result<(), WatchError> {
        // A file with a mistake is the build's to complain of.
        let ignore_file = self.context.join(".dockerignore");
        self.ignored = std::fs::read(&ignore_file)
            .ok()
            .and_then(|text| Matcher::parse(&text, &ignore_file).ok());
        // A directory has one name here, or it would be watched twice for different names.
        let inputs = inputs.iter().map(|input| real(input));
        let mut wanted = BTreeMap::new();
        self.want_tree(&self.context, &FILLED_BY_TOOLS, &mut wanted);
        for input in inputs {
            if input.is_dir() {
                self.want_tree(&input, &[], &mut wanted);
            } else {
                want_file(&input, &mut wanted);
            }
        }
        let mut watched: BTreeMap<i32, Watched> = BTreeMap::new();
        for (directory, names) in wanted {
            if let Some(number) = self.watch(&directory)? {
                let one = Watched { directory, names };
                match watched.get_mut(&number) {
                    // Mounted in two places, and wanted in both.
                    Some(other) => other.names = Names::All,
                    None => drop(watched.insert(number, one)),
                }
            }
        }
        for number in self.watched.keys().filter(|it| !watched.contains_key(it)) {
            // It is gone if its directory is.
            let _ = inotify::remove_watch(&self.queue, *number);
        }
        self.watched = watched;
        Ok(())
    }

    /// Waits until something changed that may matter, and until that has come to rest.
    pub(crate) async fn changed(&mut self) -> anyhow::Result<()> {
        loop {
            self.wait(None).await?;
            if self.news()? {
                break;
            }
        }
        let end = Instant::now() + RESTLESS;
        while Instant::now() < end && self.wait(Some(QUIET)).await? {
            self.news()?;
        }
        Ok(())
    }

    /// Waits until the kernel has something to tell; says whether it has within `limit`.
    async fn wait(&self, limit: Option<Duration>) -> anyhow::Result<bool> {
        let queue = Arc::clone(&self.queue);
        in_background(move |is_cancelled| {
            let end = limit.map(|limit| Instant::now() + limit);
            while !is_cancelled.load(Ordering::Relaxed) {
                let left = end.map(|end| end.saturating_duration_since(Instant::now()));
                let pause = left.unwrap_or(HEED).min(HEED);
                // Both are some milliseconds.
                let pause = Timespec::try_from(pause).ok();
                let mut queues = [PollFd::new(&queue, PollFlags::IN)];
                match poll(&mut queues, pause.as_ref()) {
                    Ok(0) if left == Some(Duration::ZERO) => return Ok(false),
                    Ok(0) | Err(Errno::INTR) => {}
                    Ok(_) => return Ok(true),
                    Err(error) => return Err(WatchError::Read(error.into()).into()),
                }
            }
            Ok(false)
        })
        .await
    }

    /// Reads what the kernel has to tell.
    fn news(&mut self) -> Result<bool, WatchError> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&*self.queue, &mut buffer);
        let mut matters = false;
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(matters),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(WatchError::Read(error.into())),
            };
            // Some of it was lost: it may have been anything.
            matters |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            if event.events().contains(ReadFlags::IGNORED) {
                continue;
            }
            if let Some(watched) = self.watched.get(&event.wd()) {
                let name = event
                    .file_name()
                    .map(|name| OsStr::from_bytes(name.to_bytes()));
                matters |= self.may_matter(watched, name);
            }
        }
    }

    fn may_matter(&self, watched: &Watched, name: Option<&OsStr>) -> bool {
        let Some(name) = name else {
            // The directory itself came or went.
            return true;
        };
        match &watched.names {
            Names::Only(names) => names.contains(name),
            Names::All => {
                let path = watched.directory.join(name);
                let is_ours = self.own.iter().any(|own| path.starts_with(own));
                name != NEVER_MEANT && !is_ours && !self.is_ignored(&path)
            }
        }
    }

    /// Whether `.dockerignore` keeps a path out.
    fn is_ignored(&self, path: &Path) -> bool {
        let Some(ignored) = &self.ignored else {
            return false;
        };
        let inside = path.strip_prefix(&self.context);
        inside.is_ok_and(|path| ignored.is_match(path.as_os_str().as_bytes()))
    }

    /// Wants a directory and all below it but folders of the names that are `left_out`.
    fn want_tree(&self, root: &Path, left_out: &[&str], wanted: &mut BTreeMap<PathBuf, Names>) {
        let mut open = vec![root.to_owned()];
        while let Some(directory) = open.pop() {
            // What cannot be listed, or no longer, has nothing that a build could read.
            for entry in std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
            {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let (name, path) = (entry.file_name(), entry.path());
                let is_left_out = name == NEVER_MEANT
                    || self.own.contains(&path)
                    || left_out.iter().any(|it| name == *it)
                    || (self.is_ignored(&path)
                        && !self.ignored.as_ref().is_some_and(Matcher::reincludes));
                if !is_left_out {
                    open.push(path);
                }
            }
            wanted.insert(directory, Names::All);
        }
    }

    /// Has the kernel watch a directory; `None` if it is gone.
    fn watch(&self, directory: &Path) -> Result<Option<i32>, WatchError> {
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.queue, directory, flags) {
            Ok(number) => Ok(Some(number)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            Err(Errno::NOSPC) => Err(WatchError::TooMany(directory.to_owned())),
            Err(error) => Err(WatchError::Directory(directory.to_owned(), error.into())),
        }
    }
}

/// The path without symlinks, as far as it leads to something.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return path.to_owned(),
    };
    match path.file_name() {
        Some(name) => real(parent).join(name),
        None => path.to_owned(),
    }
}

/// Wants one file by its name: others beside it may change all the time. Where its folder is not
/// there yet, the name that is missing is waited for.
fn want_file(file: &Path, wanted: &mut BTreeMap<PathBuf, Names>) {
    let mut path = file;
    while let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
        if directory.is_dir() {
            let names = wanted
                .entry(directory.to_owned())
                .or_insert_with(|| Names::Only(BTreeSet::new()));
            if let Names::Only(names) = names {
                names.insert(name.to_owned());
            }
            return;
        }
        path = directory;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A folder with these files, watched.
    fn watched(files: &[&str], inputs: &[&str]) -> (TempDir, Watch) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        for file in files {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "").unwrap();
        }
        let mut watch = Watch::new(&root, &[&root.join("cache")]).unwrap();
        let inputs: Vec<_> = inputs.iter().map(|input| root.join(input)).collect();
        watch.cover(&inputs).unwrap();
        assert!(!watch.news().unwrap());
        (directory, watch)
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_seen() {
        let (directory, mut watch) = watched(&["src/app.py", "src/old.py"], &["src"]);
        let at = |name: &str| directory.path().join(name);
        for change in [
            &|| fs::write(at("src/app.py"), "x").unwrap(),
            &|| fs::write(at("src/new.py"), "x").unwrap(),
            &|| fs::remove_file(at("src/new.py")).unwrap(),
            // As editors save: a new file, renamed over the old one.
            &|| {
                fs::write(at("swap"), "y").unwrap();
                fs::rename(at("swap"), at("src/app.py")).unwrap();
            },
            &|| fs::rename(at("src/old.py"), at("src/other.py")).unwrap(),
            &|| fs::create_dir(at("src/more")).unwrap(),
            &|| fs::write(at("tierce.toml"), "").unwrap(),
            &|| fs::write(at("tierce.lock"), "").unwrap(),
            &|| std::os::unix::fs::symlink("app.py", at("src/link")).unwrap(),
        ] as [&dyn Fn(); 9]
        {
            change();
            tokio::time::timeout(Duration::from_secs(10), watch.changed())
                .await
                .expect("it changed")
                .unwrap();
            watch.cover(&[at("src")]).unwrap();
            watch.news().unwrap();
        }
        fs::write(at("src/more/deep.py"), "x").unwrap();
        assert!(watch.news().unwrap(), "a folder that came later");
    }

    #[tokio::test]
    async fn a_file_is_watched_by_whatever_path_it_is_named() {
        let (directory, mut watch) = watched(&["tierce.toml", "src/app.py"], &["src"]);
        let at = |name: &str| directory.path().join(name);
        // It is not there, and in a directory that is watched as a whole.
        watch.cover(&[at("src/../tierce.lock")]).unwrap();
        watch.news().unwrap();
        fs::write(at("tierce.toml"), "x").unwrap();
        assert!(watch.news().unwrap());
    }

    #[tokio::test]
    async fn what_tools_and_tierce_write_is_not_looked_at() {
        let (directory, mut watch) = watched(
            &[
                ".git/index",
                "target/debug/x",
                "node_modules/a/index.js",
                "cache/x",
                "logs/a.log",
                "src/app.py",
            ],
            &["src"],
        );
        let at = |name: &str| directory.path().join(name);
        fs::write(at(".dockerignore"), "logs\n*.tmp\n").unwrap();
        assert!(watch.news().unwrap());
        watch.cover(&[at("src")]).unwrap();
        watch.news().unwrap();
        for quiet in [
            ".git/index",
            "target/debug/x",
            "target/debug/y",
            "node_modules/a/index.js",
            "cache/x",
            "cache/y",
            "logs/a.log",
            "x.tmp",
        ] {
            fs::write(at(quiet), "x").unwrap();
            assert!(!watch.news().unwrap(), "{quiet}");
        }
        fs::write(at("src/app.py"), "x").unwrap();
        assert!(watch.news().unwrap());
    }

    #[tokio::test]
    async fn what_is_named_matters_wherever_it_is() {
        let outside = tempfile::tempdir().unwrap();
        let program = outside.path().canonicalize().unwrap().join("out/program");
        let (directory, mut watch) = watched(
            &[
                "target/release/orders",
                "node_modules/a/index.js",
                "src/app.py",
            ],
            &["target/release/orders", "node_modules"],
        );
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        fs::write(at("target/release/other"), "x").unwrap();
        assert!(!watch.news().unwrap());
        fs::write(at("target/release/orders"), "x").unwrap();
        assert!(watch.news().unwrap());
        fs::write(at("node_modules/a/index.js"), "x").unwrap();
        assert!(watch.news().unwrap());
        // Neither it nor its folder is there yet.
        watch.cover(std::slice::from_ref(&program)).unwrap();
        watch.news().unwrap();
        fs::create_dir(program.parent().unwrap()).unwrap();
        assert!(watch.news().unwrap());
        watch.cover(std::slice::from_ref(&program)).unwrap();
        watch.news().unwrap();
        fs::write(&program, "x").unwrap();
        assert!(watch.news().unwrap());
    }
}
