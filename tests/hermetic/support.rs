//! What the tests of the whole program share: a place to run it in, and what a failure must look
//! like.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::Value;
use tierce_oci::Digest;
use tierce_testkit::FakeRegistry;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::sandbox::{Command, Output, Sandbox};
use tierce_testkit::tree::{Entry, Node};

/// A sandbox, and names for what changes from run to run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    names: Vec<(String, String)>,
}

impl World {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self {
            sandbox: Sandbox::new(env!("CARGO_BIN_EXE_tierce")),
            names: Vec::new(),
        }
    }

    /// One with a function in `app`: `src/app.py`, a config file on `base`, and nothing else.
    pub(crate) fn with_app(base: &str) -> Self {
        let world = Self::new();
        world.app(base, "");
        world
    }

    /// Writes `app/tierce.toml` and `app/src/app.py`; `more` follows the `[image]` table.
    pub(crate) fn app(&self, base: &str, more: &str) {
        self.sandbox.write(
            "app/src/app.py",
            "def handler(event, context):\n    return event\n",
        );
        self.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"{base}\"\n{more}\n[[layer]]\nname = \"code\"\n\
                 add = [{{ from = \"src/\", to = \"/var/task/\" }}]\n"
            ),
        );
    }

    /// Shows `thing` as `[name]` in everything that [`Self::shown`] shows.
    pub(crate) fn call(&mut self, thing: impl Display, name: &str) {
        self.names.push((thing.to_string(), format!("[{name}]")));
    }

    /// Text with names in place of what changes from run to run.
    pub(crate) fn shown(&self, text: &str) -> String {
        let text = self.sandbox.redact(text);
        self.names
            .iter()
            .fold(text, |text, (thing, name)| text.replace(thing, name))
    }

    /// A path below the directory that the program starts in.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.sandbox.path(relative)
    }

    /// A run that has not begun.
    pub(crate) fn tierce(&self, arguments: &[&str]) -> Command {
        self.sandbox.tierce(arguments)
    }

    /// A run through `sh`, where `$0` is the program.
    pub(crate) fn shell(&self, script: &str) -> Command {
        self.sandbox
            .command("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_tierce")])
    }

    /// A run that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> Output {
        self.tierce(arguments).run().assert_success()
    }

    /// A run that must succeed, and of which nothing more is asked.
    #[track_caller]
    pub(crate) fn runs(&self, arguments: &[&str]) {
        drop(self.ok(arguments));
    }

    /// A run that must fail with `code`: gives all of stderr, after seeing that stdout is empty and
    /// that nothing half-written was left.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        self.fails_as(code, self.tierce(arguments))
    }

    /// [`Self::fails`] for a command that was prepared elsewhere.
    #[track_caller]
    pub(crate) fn fails_as(&self, code: i32, command: Command) -> String {
        let before = self.files();
        let output = command.run().assert_code(code);
        assert_eq!(output.stdout(), "", "a failure has no result: {output:?}");
        self.assert_nothing_half_written(&before);
        self.shown(output.stderr().trim_end())
    }

    /// Every file of the sandbox but the notes of credential helpers, with the digest of what is in it.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Digest> {
        let mut files = BTreeMap::new();
        collect(self.sandbox.root(), &mut files);
        files
    }

    /// Demands that, since `before`, no file of the user's was changed or made, and no name given:
    /// only whole blobs, and what the cache is for, may be new.
    #[track_caller]
    pub(crate) fn assert_nothing_half_written(&self, before: &BTreeMap<PathBuf, Digest>) {
        let after = self.files();
        for (path, digest) in before {
            assert_eq!(
                after.get(path),
                Some(digest),
                "{} was changed",
                path.display()
            );
        }
        for (path, digest) in after.iter().filter(|(path, _)| !before.contains_key(*path)) {
            let relative = path
                .strip_prefix(self.sandbox.root())
                .expect("listed from there");
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let whole_blob = name == digest.hex();
            let skeleton = [
                "cache/tierce/scratch/lock",
                "data/tierce/store/lock",
                "data/tierce/store/version",
            ];
            let fixed = skeleton.iter().any(|known| relative == Path::new(known))
                || name == "oci-layout"
                || (name == "index.json" && names_nothing(path))
                || relative.starts_with("data/tierce/store/origins")
                // Whole packs and what is made of them come like blobs before the name.
                || relative.starts_with("data/tierce/store/packs")
                || relative.starts_with("data/tierce/store/recipes")
                // What was found wrong stays wrong.
                || relative.starts_with("data/tierce/store/damage")
                // What was sealed is sealed, whatever became of the build.
                || relative.starts_with("cache/tierce/layers-1")
                // What was resolved is resolved, and who made it had a lock.
                || relative.starts_with("cache/tierce/resolved-1")
                // What was learnt of a base is true whatever became of the build.
                || relative.starts_with("cache/tierce/links-1")
                || relative.starts_with("cache/tierce/bases-1")
                || relative.starts_with("cache/tierce/facts-1")
                // What was found in an image, nobody has to find again.
                || relative.starts_with("cache/tierce/verdicts-1");
            assert!(whole_blob || fixed, "{} was left behind", path.display());
        }
        self.assert_no_litter();
    }

    /// Demands that no temporary file or directory is left anywhere.
    #[track_caller]
    pub(crate) fn assert_no_litter(&self) {
        let mut litter = Vec::new();
        let scratch = self.sandbox.cache().join("tierce/scratch");
        for directory in [self.sandbox.root().join("tmp"), scratch] {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            litter.extend(
                entries
                    .map(|entry| entry.path())
                    .filter(|path| !path.ends_with("scratch/lock")),
            );
        }
        litter.extend(self.files().into_keys().filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(".tierce-") || name.starts_with(".tmp")
        }));
        assert!(litter.is_empty(), "left behind: {litter:?}");
    }

    /// Sends a signal to a run, and waits for its end as [`ended`] does.
    #[track_caller]
    pub(crate) fn interrupt(&self, child: Child, signal: &str) -> (Option<i32>, String, String) {
        let sent = self
            .sandbox
            .command("kill")
            .args([signal, &child.id().to_string()])
            .run();
        drop(sent.assert_success());
        ended(child)
    }

    /// Builds into a fresh OCI layout, has it judged, and reads the image back.
    #[track_caller]
    pub(crate) fn built(&self, arguments: &[&str]) -> LoadedImage {
        self.built_as(self.tierce(arguments))
    }

    /// [`Self::built`] for a `build` that was prepared elsewhere.
    #[track_caller]
    pub(crate) fn built_as(&self, command: Command) -> LoadedImage {
        let directory = self.path("built");
        if directory.exists() {
            fs::remove_dir_all(&directory).expect("the sandbox is ours");
        }
        let output = command.args(["-o", "oci:built:it"]).run();
        drop(output.assert_success());
        assert_clean(&Checker::new().layout(&directory));
        self.assert_no_litter();
        LoadedImage::from_layout(&directory, Some("it")).expect("the layout was judged")
    }
}

/// Waits for the end of a run: its exit code, stdout and stderr.
pub(crate) fn ended(mut child: Child) -> (Option<i32>, String, String) {
    drop(child.stdin.take());
    let status = child.wait().expect("it was started");
    let (mut stdout, mut stderr) = (String::new(), String::new());
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut stdout).expect("all text is UTF-8");
    }
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut stderr).expect("all text is UTF-8");
    }
    (status.code(), stdout, stderr)
}

/// Whether an OCI layout's index is that of a new, empty layout.
fn names_nothing(index: &Path) -> bool {
    let bytes = fs::read(index).expect("the sandbox is ours");
    let index: Value = serde_json::from_slice(&bytes).expect("an index is JSON");
    index["manifests"].as_array().is_some_and(Vec::is_empty)
}

fn collect(directory: &Path, files: &mut BTreeMap<PathBuf, Digest>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a listed entry has a type");
        if kind.is_dir() {
            collect(&path, files);
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).expect("a link has a target");
            files.insert(path, Digest::of(target.to_string_lossy().as_bytes()));
        } else if kind.is_file() && path.extension().is_none_or(|it| it != "calls") {
            let bytes = fs::read(&path).expect("the sandbox is ours");
            files.insert(path, Digest::of(&bytes));
        }
    }
}

/// The digest that a `NAME@sha256:…` line ends in.
#[track_caller]
pub(crate) fn digest_in(output: &Output) -> String {
    let stdout = output.stdout();
    let (_, digest) = stdout
        .trim_end()
        .rsplit_once('@')
        .unwrap_or_else(|| panic!("no NAME@DIGEST: {output:?}"));
    digest.to_owned()
}

/// Digests of a manifest's layers, the lowest first.
pub(crate) fn layer_digests(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().into_iter().flatten();
    layers
        .map(|layer| layer["digest"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// The entries of an image's topmost layer, one a line.
#[track_caller]
pub(crate) fn top_layer(image: &LoadedImage) -> String {
    listing(image, image.tars.len() - 1)
}

/// The entries of one layer in their order, one a line.
#[track_caller]
pub(crate) fn listing(image: &LoadedImage, layer: usize) -> String {
    let entries = image.entries(layer).expect("the layer can be read");
    let mut text = String::new();
    for entry in &entries {
        writeln!(text, "{}", line(entry)).expect("a string takes all text");
    }
    text.trim_end().to_owned()
}

fn line(entry: &Entry) -> String {
    let (kind, more) = match &entry.node {
        Node::Directory => ("d", String::new()),
        Node::File(bytes) if bytes.is_empty() => ("f", String::new()),
        Node::File(bytes) => ("f", format!(" {} bytes", bytes.len())),
        Node::Symlink(target) => ("l", format!(" -> {target}")),
        Node::Hardlink(target) => ("h", format!(" = {target}")),
        Node::Other(_) => ("?", String::new()),
    };
    let owner = match (entry.uid, entry.gid) {
        (0, 0) => String::new(),
        (uid, gid) => format!(" {uid}:{gid}"),
    };
    format!("{kind} {:04o}{owner} {}{more}", entry.mode, entry.path)
}

/// The content of a file in an image's tree.
#[track_caller]
pub(crate) fn file_of(image: &LoadedImage, path: &str) -> String {
    let tree = image.tree().expect("the layers can be applied");
    match tree.get(path).map(|entry| &entry.node) {
        Some(Node::File(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{path} is {other:?}"),
    }
}

/// Whether an image's tree has something at `path`.
pub(crate) fn has(image: &LoadedImage, path: &str) -> bool {
    image
        .tree()
        .expect("the layers can be applied")
        .contains_key(path)
}

/// Bytes that no compressor makes smaller, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// How often the bytes of a blob were asked for.
pub(crate) fn downloads(registry: &FakeRegistry, digest: &Digest) -> usize {
    let log = registry.log();
    log.filter(|record| record.is_blob_download() && record.path.contains(&digest.hex()))
        .len()
}

/// Copies a directory with all that is in it.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the sandbox is writable");
    for entry in fs::read_dir(from).expect("the fixture is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("the sandbox is writable");
        }
    }
}

/// The repository's `fixtures`.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A record of the cache as the program seals it, for a test that says something else in it.
pub(crate) fn sealed(file: &Path, json: &str) -> String {
    let name = file.file_name().unwrap().to_str().unwrap();
    let seal = Digest::of(format!("{name}\n{json}").as_bytes());
    format!("{seal}\n{json}")
}
