//! What builds remember: how much less a later one does, and that nobody can tell by its image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes, Permissions};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use serde_json::json;
use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestIndex, small_base};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method};

use crate::recorded_facts::facts;
use crate::support::{
    World, copy_directory, digest_in, ended, fixtures, has, layer_digests, noise, top_layer,
};

/// What the layer cache of a world has of one kind: `packs`, `recipes` or `notes`.
fn cached(world: &World, kind: &str) -> Vec<PathBuf> {
    let directory = layer_cache(world).join(kind);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn layer_cache(world: &World) -> PathBuf {
    world.sandbox.cache().join("tierce/layers-1")
}

#[track_caller]
fn only_pack(world: &World) -> PathBuf {
    let packs = cached(world, "packs");
    assert_eq!(packs.len(), 1, "{packs:?}");
    packs[0].clone()
}

/// Writes to a file behind everybody's back.
fn flip_a_bit(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Waits until what is in `directory` has been left alone for so long that builds believe `stat`.
///
/// A file that was changed up to two seconds before a build may be changed once more within the same
/// tick of its file system's clock, so it is read again the next time. The time that counts is the
/// one that nobody can set: it has to pass.
pub(crate) fn settle(directory: &Path) {
    let due = last_change(directory) + Duration::from_millis(2010);
    for _ in 0..100 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        match due.checked_sub(now) {
            None => return,
            Some(left) => std::thread::sleep(left.min(Duration::from_millis(100))),
        }
    }
    panic!("{} was changed in the future", directory.display());
}

fn last_change(path: &Path) -> Duration {
    let metadata = fs::symlink_metadata(path).unwrap();
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    let own = Duration::new(seconds.try_into().unwrap(), nanoseconds.try_into().unwrap());
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).unwrap().flatten();
    let inside = entries.map(|entry| last_change(&entry.path())).max();
    inside.map_or(own, |inside| inside.max(own))
}

/// Sees which files are opened in some directories, by whomever.
pub(crate) struct Opened {
    queue: OwnedFd,
}

impl Opened {
    pub(crate) fn in_each_of(directories: &[PathBuf]) -> Self {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for directory in directories {
            inotify::add_watch(&queue, directory, WatchFlags::OPEN).unwrap();
        }
        Self { queue }
    }

    /// The names of those that were opened since the last question.
    pub(crate) fn since(&self) -> BTreeSet<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.queue, &mut buffer);
        let mut names = BTreeSet::new();
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::ISDIR) => {}
                Ok(event) => {
                    assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW));
                    let name = event.file_name().expect("it was opened in a directory");
                    names.insert(name.to_string_lossy().into_owned());
                }
                Err(Errno::AGAIN) => return names,
                Err(error) => panic!("could not ask what was opened: {error}"),
            }
        }
    }
}

#[test]
fn a_build_in_which_nothing_changed_opens_no_file() {
    let world = World::new();
    world.sandbox.write("app/src/large", noise(1, 1_500_000));
    world.sandbox.write("app/src/lib/code.py", "x = 1\n");
    // Python would not use it; the build says so.
    world
        .sandbox
        .write("app/src/lib/__pycache__/code.cpython-312.pyc", "stale");
    let tar = LayerBuilder::new().file("etc/in-tar", 0o644, b"x").tar();
    world.sandbox.write("app/tars/loose.tar", &tar);
    world.sandbox.write("app/tars/verbatim.tar", &tar);
    world.sandbox.write(
        "app/tierce.toml",
        r#"
[image]
base = "scratch"
platforms = ["arm64"]

[[layer]]
name = "code"
add = [{ from = "src/", to = "/var/task/" }]

[[layer]]
name = "loose"
tar = "tars/loose.tar"

[[layer]]
name = "verbatim"
tar = "tars/verbatim.tar"
verbatim = true
"#,
    );
    settle(&world.path("app"));
    let folders = ["src", "src/lib", "src/lib/__pycache__", "tars"];
    let opened = Opened::in_each_of(&folders.map(|folder| world.path("app").join(folder)));
    let build = |more: &[&str]| {
        let fixed = ["build", "app", "-t=it:1", "--progress=plain"];
        let output = world.ok(&[&fixed[..], more].concat());
        (digest_in(&output), output.stderr(), opened.since())
    };
    let all = BTreeSet::from(
        [
            "large",
            "code.py",
            "code.cpython-312.pyc",
            "loose.tar",
            "verbatim.tar",
        ]
        .map(str::to_owned),
    );

    let (digest, said, read) = build(&[]);
    assert_eq!(read, all);
    assert_eq!(said.matches("making the layer").count(), 3, "{said}");
    assert!(said.contains("was compiled from something other"), "{said}");
    let again = build(&[]);
    assert_eq!((&again.0, again.2), (&digest, BTreeSet::new()));
    // What is to be said of the sources is said nevertheless.
    insta::assert_snapshot!(again.1.trim_end(), @"
    note: `var/task/lib/__pycache__/code.cpython-312.pyc` was compiled from something other than its source and was left out
    store:it:1: already there
    ");
    // Elsewhere it takes bytes, and the cache has them.
    let elsewhere = build(&["-o=oci:out:1"]);
    assert_eq!((&elsewhere.0, elsewhere.2), (&digest, BTreeSet::new()));
    // Nobody who was asked to forget knows that.
    let (forgetful, said, read) = build(&["--no-cache"]);
    assert_eq!((&forgetful, read), (&digest, all));
    assert_eq!(said.matches("making the layer").count(), 3, "{said}");

    // One small file changed: what precedes it in the layer is not read, nor are the other layers.
    world.sandbox.write("app/src/lib/code.py", "x = 2\n");
    opened.since();
    let (changed, said, read) = build(&[]);
    assert_ne!(changed, digest);
    assert!(
        read.contains("code.py") && !read.contains("large"),
        "{read:?}"
    );
    assert!(!read.contains("loose.tar") && !read.contains("verbatim.tar"));
    assert_eq!(said.matches("making the layer").count(), 1, "{said}");
}

/// What one run of a case is: the folder to build, and how it is to be changed.
struct Change {
    name: &'static str,
    make: fn(&Path),
    /// What the builds after the change are told besides.
    arguments: &'static [&'static str],
    /// Whether it is to be seen in the image.
    shows: bool,
}

impl Change {
    const fn new(name: &'static str, make: fn(&Path)) -> Self {
        Self {
            name,
            make,
            arguments: &[],
            shows: true,
        }
    }

    const fn hidden(name: &'static str, make: fn(&Path)) -> Self {
        Self {
            shows: false,
            ..Self::new(name, make)
        }
    }

    const fn told(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self {
            arguments,
            ..Self::new(name, |_| {})
        }
    }
}

const CHANGES: [Change; 28] = [
    Change::new("content", |app| {
        write(app, "src/main.py", "def handler():\n    return 2\n");
    }),
    Change::new("content of the same length", |app| {
        write(app, "src/data/one", "ONE");
    }),
    Change::new("content, with the time put back", |app| {
        let path = app.join("src/data/one");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        write(app, "src/data/one", "eno");
        let times = FileTimes::new().set_modified(before);
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_times(times)
            .unwrap();
    }),
    Change::new("the middle of a large file", |app| {
        flip_a_bit(&app.join("src/data/large"), 700_000);
    }),
    Change::new("a file more", |app| write(app, "src/data/aaa", "new")),
    Change::new("an empty directory more", |app| {
        fs::create_dir(app.join("src/data/empty")).unwrap();
    }),
    Change::new("a file less", |app| {
        fs::remove_file(app.join("src/data/two")).unwrap();
    }),
    Change::new("a directory less", |app| {
        fs::remove_dir_all(app.join("src/data")).unwrap();
    }),
    Change::new("another name", |app| {
        fs::rename(app.join("src/data/two"), app.join("src/data/three")).unwrap();
    }),
    Change::new("two names swapped", |app| {
        let path = |name: &str| app.join("src/data").join(name);
        fs::rename(path("one"), path("between")).unwrap();
        fs::rename(path("two"), path("one")).unwrap();
        fs::rename(path("between"), path("two")).unwrap();
    }),
    Change::new("a file in the place of a directory", |app| {
        fs::remove_dir_all(app.join("src/data")).unwrap();
        write(app, "src/data", "no longer a directory");
    }),
    Change::new("a link in the place of a file", |app| {
        fs::remove_file(app.join("src/data/two")).unwrap();
        symlink("one", app.join("src/data/two")).unwrap();
    }),
    Change::new("the execute bit", |app| {
        let mode = Permissions::from_mode(0o755);
        fs::set_permissions(app.join("src/data/one"), mode).unwrap();
    }),
    Change::hidden("a bit of the mode that layers do not have", |app| {
        let mode = Permissions::from_mode(0o640);
        fs::set_permissions(app.join("src/data/one"), mode).unwrap();
    }),
    Change::hidden("times alone", |app| {
        let file = File::options()
            .write(true)
            .open(app.join("src/data/one"))
            .unwrap();
        file.set_times(FileTimes::new().set_modified(UNIX_EPOCH))
            .unwrap();
    }),
    Change::hidden("the same file anew", |app| {
        fs::remove_file(app.join("src/data/one")).unwrap();
        write(app, "src/data/one", "one");
    }),
    Change::new("where a link leads", |app| {
        fs::remove_file(app.join("src/link")).unwrap();
        symlink("data/two", app.join("src/link")).unwrap();
    }),
    Change::new("where a link below other layers leads", |app| {
        fs::remove_file(app.join("below/opt/way")).unwrap();
        symlink("other", app.join("below/opt/way")).unwrap();
    }),
    Change::new(".dockerignore", |app| {
        write(app, ".dockerignore", "**/*.log\n**/two\n");
    }),
    Change::hidden("a file that is left out", |app| {
        write(app, "src/debug.log", "more");
    }),
    Change::new("`exclude`", |app| {
        edit(app, "\"*.tmp\"", "\"*.tmp\", \"data/two\"");
    }),
    Change::new("`to`", |app| edit(app, "\"/var/task/\"", "\"/srv/\"")),
    Change::new("the name of a layer", |app| {
        edit(app, "name = \"code\"", "name = \"function\"");
    }),
    Change::new("`modes`", |app| {
        edit(app, "name = \"code\"", "name = \"code\"\nmodes = \"keep\"");
    }),
    Change::new("`split` on", |app| {
        edit(
            app,
            "split = false",
            "split = { budget = \"64 KiB\", most = 4 }",
        );
    }),
    Change::new("a layer less", |app| {
        edit(
            app,
            "{ from = \"src/\", to = \"/var/task/\", exclude = [\"*.tmp\"] },",
            "",
        );
    }),
    Change::told("compression", &["--compression=small"]),
    Change::told("the platform", &["--platform=arm64"]),
];

fn write(app: &Path, relative: &str, content: impl AsRef<[u8]>) {
    let path = app.join(relative);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Replaces words of `tierce.toml`.
#[track_caller]
fn edit(app: &Path, words: &str, others: &str) {
    let path = app.join("tierce.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(words), "{text}");
    fs::write(path, text.replace(words, others)).unwrap();
}

/// A function with dependencies, on a layer with links.
fn lay_out(app: &Path) {
    write(app, "src/main.py", "def handler():\n    return 1\n");
    write(app, "src/data/one", "one");
    let mode = Permissions::from_mode(0o600);
    fs::set_permissions(app.join("src/data/one"), mode).unwrap();
    write(app, "src/data/two", "two");
    write(app, "src/data/large", noise(2, 1_200_000));
    write(app, "src/debug.log", "log");
    symlink("data/one", app.join("src/link")).unwrap();
    write(app, "below/opt/real/a", "a");
    write(app, "below/opt/other/b", "b");
    symlink("real", app.join("below/opt/way")).unwrap();
    write_libraries(&app.join("libraries"));
    write(app, ".dockerignore", "**/*.log\n");
    write(
        app,
        "tierce.toml",
        r#"
[image]
base = "scratch"

[[layer]]
name = "below"
add = [{ from = "below/", to = "/" }]

[[layer]]
name = "libraries"
add = [{ from = "libraries/", to = "/opt/python/" }]
split = false

[[layer]]
name = "code"
add = [
    { from = "src/", to = "/var/task/", exclude = ["*.tmp"] },
    { from = "src/main.py", to = "/opt/way/main.py" },
]
"#,
    );
}

/// What a package manager would have installed: one large library and four small ones.
fn write_libraries(site: &Path) {
    for (seed, (name, length)) in (10..).zip([
        ("numpy", 100_000),
        ("certifi", 30_000),
        ("idna", 30_000),
        ("requests", 30_000),
        ("urllib3", 30_000),
    ]) {
        write(site, &format!("{name}/__init__.py"), "");
        write(site, &format!("{name}/data"), noise(seed, length));
        write(site, &format!("{name}-1.0.dist-info/METADATA"), name);
    }
}

#[test]
fn after_any_change_a_warm_build_gives_what_a_cold_one_does() {
    let world = World::new();
    let build = |folder: &str, more: &[&str]| {
        let folder = format!("{folder}/app");
        digest_in(&world.ok(&[&["build", &folder], more].concat()))
    };
    for (number, change) in CHANGES.iter().enumerate() {
        for state in ["warm", "cold"] {
            let app = world.path(format!("{state}/{number}/app"));
            lay_out(&app);
            if state == "cold" {
                (change.make)(&app);
            }
        }
    }
    lay_out(&world.path("before/app"));
    let from_nothing = ["--no-cache", "--dry-run"];
    let before = build("before", &from_nothing);
    let numbered = CHANGES.iter().enumerate();
    let cold: Vec<String> = numbered
        .clone()
        .map(|(number, change)| {
            let arguments = [change.arguments, &from_nothing].concat();
            build(&format!("cold/{number}"), &arguments)
        })
        .collect();
    // Files that are known by `stat` are where a mistake could be made.
    settle(&world.path("warm"));
    for ((number, change), cold) in numbered.zip(cold) {
        let (name, folder) = (change.name, format!("warm/{number}"));
        let app = world.path(format!("{folder}/app"));
        assert_eq!(build(&folder, &["--dry-run"]), before, "{name}");
        (change.make)(&app);
        // A layout takes the bytes, and finds out if they are not those of the digests.
        let output = format!("-o=oci:out:{number}");
        let warm = build(&folder, &[change.arguments, &[&output]].concat());
        assert_eq!(warm, cold, "{name}");
        assert_eq!(warm != before, change.shows, "{name}");
        // What is remembered of the change is as good.
        let again = build(&folder, &[change.arguments, &["--dry-run"]].concat());
        assert_eq!(again, cold, "{name}");
        fs::remove_dir_all(&app).unwrap();
        lay_out(&app);
        assert_eq!(build(&folder, &["--dry-run"]), before, "{name}, and back");
    }
    assert_clean(&Checker::new().layout(&world.path("out")));
    world.assert_no_litter();
}

/// A folder that nobody has touched for long, so that nothing has to be waited for.
fn settled_folder() -> String {
    let folder = fixtures().join("functions/hello/src");
    settle(&folder);
    folder.to_string_lossy().into_owned()
}

#[test]
fn what_is_said_of_the_sources_is_said_every_time() {
    let mut world = World::new();
    let folder = settled_folder();
    world.call(&folder, "FOLDER");
    world.sandbox.write(
        "tierce.toml",
        r#"
[image]
base = "scratch"
platforms = ["arm64"]
tag = "it"

[[layer]]
name = "nothing"
add = [{ from = ".", to = "/opt/", exclude = ["**"] }]

[[layer]]
name = "twice"
add = [
    { from = "app.py", to = "/opt/app.py" },
    { from = ".", to = "/opt/app.py/" },
]
"#,
    );
    let build = |more: &[&str]| {
        let fixed = ["build", &folder, "--file=tierce.toml", "--progress=plain"];
        let output = world.ok(&[&fixed[..], more].concat());
        world.shown(output.stderr().trim_end())
    };
    let forgetful = build(&["--no-cache", "--dry-run"]);
    insta::assert_snapshot!(forgetful, @"
    making the layer `nothing`
    warning: nothing was added from `[FOLDER]/.`
    making the layer `twice`
    note: `opt/app.py`: a directory takes the place of a file
    dry run: nothing is written
    ");
    assert_eq!(build(&["--dry-run"]), forgetful);
    let remembering = build(&["--dry-run"]);
    insta::assert_snapshot!(remembering, @"
    warning: nothing was added from `[FOLDER]/.`
    note: `opt/app.py`: a directory takes the place of a file
    dry run: nothing is written
    ");
    // Once for all platforms.
    assert_eq!(build(&["--dry-run", "--platform=arm64,amd64"]), remembering);
}

#[test]
fn links_of_the_base_are_followed_wherever_they_lead_this_time() {
    let world = World::new();
    let folder = settled_folder();
    for (name, target) in [("one", "usr/lib64"), ("two", "usr/lib")] {
        let base = ImageBuilder::new(Format::Oci, "amd64").layer(
            &LayerBuilder::new()
                .directory("usr", 0o755)
                .directory(target, 0o755)
                .symlink("lib64", target),
        );
        base.build().write_layout(&world.path(name), Some("1"));
    }
    let place = |base: &str, more: &[&str]| {
        let base = format!("--base=oci:{base}:1");
        let fixed = ["build", &folder, &base, "--add=app.py:/lib64/app.py"];
        let image = world.built(&[&fixed[..], more].concat());
        let places = ["usr/lib64/app.py", "usr/lib/app.py"];
        let found: Vec<&str> = places
            .into_iter()
            .filter(|place| has(&image, place))
            .collect();
        (found.join(" "), image.manifest_bytes)
    };
    let bases = ["one", "two"];
    let cold = bases.map(|base| place(base, &["--no-cache"]));
    assert_eq!(cold[0].0, "usr/lib64/app.py");
    assert_eq!(cold[1].0, "usr/lib/app.py");
    for _ in 0..2 {
        assert_eq!(bases.map(|base| place(base, &[])), cold);
    }
}

#[test]
fn what_came_out_is_remembered_for_each_platform() {
    let world = World::new();
    let folder = settled_folder();
    let bases = [("amd64", "usr/lib64"), ("arm64", "usr/lib")].map(|(architecture, target)| {
        let layer = LayerBuilder::new()
            .directory("usr", 0o755)
            .directory(target, 0o755)
            .symlink("lib64", target);
        let base = ImageBuilder::new(Format::Oci, architecture);
        base.layer(&layer).build()
    });
    TestIndex::of(Format::Oci, bases.to_vec()).write_layout(&world.path("base"), Some("1"));
    let build = |more: &[&str]| {
        let fixed = [
            "build",
            &folder,
            "--base=oci:base:1",
            "--platform=amd64,arm64",
        ];
        let added = [
            "--add=app.py:/lib64/app.py",
            "-o=oci:out:it",
            "--progress=plain",
        ];
        let output = world.ok(&[&fixed[..], &added, more].concat());
        let made = output.stderr().matches("making the layer").count();
        (output.stdout(), made)
    };
    let (digests, made) = build(&["--no-cache"]);
    assert_eq!(made, 2);
    assert_eq!(build(&[]), (digests.clone(), 2));
    for _ in 0..2 {
        assert_eq!(build(&[]), (digests.clone(), 0));
    }
    for (tag, place) in [
        ("it-amd64", "usr/lib64/app.py"),
        ("it-arm64", "usr/lib/app.py"),
    ] {
        let image = LoadedImage::from_layout(&world.path("out"), Some(tag)).unwrap();
        assert!(has(&image, place), "{tag}");
    }
}

#[test]
fn the_same_files_for_other_places_are_another_layer() {
    let world = World::new();
    let folder = settled_folder();
    small_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    let layer = |arguments: &[&str], more: &[&str]| {
        let image = world.built(&[&["build", &folder], arguments, more].concat());
        top_layer(&image)
    };
    let builds: [&[&str]; 7] = [
        // A file of this name on nothing; on anything else a file in a directory of this name.
        &["--base=scratch", "--add=app.py:/opt"],
        &["--base=oci:base:1", "--add=app.py:/opt"],
        &["--base=oci:base:1", "--add=app.py:/srv"],
        &["--base=oci:base:1", "--add=app.py:x", "--workdir=/a"],
        &["--base=oci:base:1", "--add=app.py:x", "--workdir=/b"],
        &[
            "--base=oci:base:1",
            "--add=app.py:/x",
            "--add=greeting.py:/x",
        ],
        &[
            "--base=oci:base:1",
            "--add=greeting.py:/x",
            "--add=app.py:/x",
        ],
    ];
    let cold = builds.map(|arguments| layer(arguments, &["--no-cache"]));
    assert_eq!(cold.iter().collect::<BTreeSet<_>>().len(), builds.len());
    for _ in 0..2 {
        assert_eq!(builds.map(|arguments| layer(arguments, &[])), cold);
    }
}

/// Pushes, and gives the digests of the blobs whose bytes were sent.
#[track_caller]
fn push(world: &World, registry: &FakeRegistry, arguments: &[&str]) -> BTreeSet<String> {
    registry.clear_log();
    world.runs(&[arguments, &["--push"]].concat());
    let log = registry.log();
    let uploads = log.filter(|record| record.is_upload() && record.method == Method::PUT);
    let uploads = uploads.records().iter();
    let digests = uploads.filter_map(|record| record.query.split("digest=").nth(1));
    digests.map(|digest| digest.replace("%3A", ":")).collect()
}

#[test]
fn a_push_of_what_is_there_asks_one_question() {
    let registry = FakeRegistry::start();
    let fresh = World::with_app("scratch");
    let settled = World::new();
    let folder = settled_folder();
    let name = |repository: &str| format!("{}/{repository}:1", registry.host());
    let (fresh_name, settled_name) = (name("fresh"), name("settled"));
    for (world, arguments) in [
        // Its files were written just now, and are read again; what comes of it is known.
        (
            &fresh,
            [
                "build",
                "app",
                "-t",
                &fresh_name,
                "--base=scratch",
                "--add=src:/x",
            ],
        ),
        (
            &settled,
            [
                "build",
                &folder,
                "-t",
                &settled_name,
                "--base=scratch",
                "--add=.:/x",
            ],
        ),
    ] {
        assert!(!push(world, &registry, &arguments).is_empty());
        for _ in 0..2 {
            assert!(push(world, &registry, &arguments).is_empty());
            let log = registry.log();
            assert_eq!(log.len(), 1, "{log:?}");
            assert_eq!(log.count(Method::HEAD, "/manifests/1"), 1, "{log:?}");
        }
    }
}

/// The one layer in which two images differ: how it was, and how it is.
#[track_caller]
fn the_other_layer(registry: &FakeRegistry, before: &str, after: &str) -> [String; 2] {
    let layers = |tag: &str| {
        let image = LoadedImage::from_registry(registry, "app", tag).unwrap();
        layer_digests(&image.manifest)
    };
    let (before, after) = (layers(before), layers(after));
    assert_eq!(before.len(), after.len());
    let pairs = before.into_iter().zip(after);
    let others: Vec<_> = pairs.filter(|(before, after)| before != after).collect();
    assert_eq!(others.len(), 1, "{others:?}");
    let (before, after) = others.into_iter().next().unwrap();
    [before, after]
}

#[test]
fn a_push_sends_the_layer_of_the_changed_file_alone() {
    let registry = FakeRegistry::start();
    let world = World::new();
    let app = world.path("app");
    lay_out(&app);
    edit(
        &app,
        "split = false",
        "split = { budget = \"64 KiB\", most = 4 }",
    );
    let send = |tag: &str| {
        let name = format!("{}/app:{tag}", registry.host());
        let sent = push(&world, &registry, &["build", "app", "-t", &name]);
        assert_clean(&Checker::new().registry(&registry, "app", tag));
        let image = LoadedImage::from_registry(&registry, "app", tag).unwrap();
        let config = image.manifest["config"]["digest"].as_str().unwrap();
        let layers = layer_digests(&image.manifest);
        // Below, three parts of the libraries, and the code.
        assert_eq!(layers.len(), 5);
        // The config has its own digest in every case.
        assert!(sent.contains(config), "{sent:?}");
        let layers: Vec<String> = layers
            .into_iter()
            .filter(|layer| sent.contains(layer))
            .collect();
        assert_eq!(sent.len(), layers.len() + 1, "{sent:?}");
        layers
    };
    assert_eq!(send("1").len(), 5);
    write(&app, "src/main.py", "x = 1");
    assert_eq!(
        send("2"),
        [the_other_layer(&registry, "1", "2")[1].as_str()]
    );
    write(&app, "libraries/idna/data", noise(3, 30_000));
    assert_eq!(
        send("3"),
        [the_other_layer(&registry, "2", "3")[1].as_str()]
    );
    write(&app, "libraries/numpy/data", noise(4, 100_000));
    assert_eq!(
        send("4"),
        [the_other_layer(&registry, "3", "4")[1].as_str()]
    );
    // What the registry has of an earlier image it is not sent again.
    write(&app, "src/main.py", "def handler():\n    return 1\n");
    assert!(send("5").is_empty());
}

/// A world whose one layer takes three segments.
fn world_with_noise() -> World {
    let world = World::with_app("scratch");
    world.sandbox.write("app/src/noise", noise(6, 3_000_000));
    world
}

#[test]
fn a_damaged_pack_is_made_again_by_whoever_needs_its_bytes() {
    let world = world_with_noise();
    let registry = FakeRegistry::start();
    let expected = world.built(&["build", "app", "--no-cache"]).manifest_bytes;
    world.runs(&["build", "app", "--dry-run"]);
    let pack = only_pack(&world);
    let whole = fs::read(&pack).unwrap();
    let again = |offset: usize, build: &dyn Fn()| {
        flip_a_bit(&pack, offset);
        build();
        assert!(fs::read(&pack).unwrap() == whole, "{offset}");
        assert_eq!(only_pack(&world), pack);
        world.assert_no_litter();
    };
    // The first segment, the last, and one of those between.
    for offset in [0, 1_500_000, 2_900_000] {
        again(offset, &|| {
            let built = world.built(&["build", "app"]);
            assert_eq!(built.manifest_bytes, expected);
        });
        again(offset, &|| {
            let (repository, name) = (
                format!("at-{offset}"),
                format!("{}/at-{offset}:1", registry.host()),
            );
            let sent = push(&world, &registry, &["build", "app", "-t", &name]);
            assert_eq!(sent.len(), 2);
            assert_clean(&Checker::new().registry(&registry, &repository, "1"));
            let built = LoadedImage::from_registry(&registry, &repository, "1").unwrap();
            assert_eq!(built.manifest_bytes, expected);
        });
        again(offset, &|| {
            // Half of the images are written when it turns out.
            world.runs(&[
                "build",
                "app",
                "-o=oci-archive:out.tar",
                "-o=docker-archive:docker.tar:x:1",
            ]);
            assert_clean(&Checker::new().oci_archive(&world.path("out.tar")));
            assert_clean(&Checker::new().docker_archive(&world.path("docker.tar")));
        });
    }
    // A change before the damage: the damaged segment is needed while the layer is being hashed.
    flip_a_bit(&world.path("app/src/noise"), 10);
    flip_a_bit(&pack, 2_900_000);
    let changed = world.built(&["build", "app"]).manifest_bytes;
    assert_eq!(
        world.built(&["build", "app", "--no-cache"]).manifest_bytes,
        changed
    );
    assert_ne!(changed, expected);
}

#[test]
fn a_pack_that_ends_early_is_made_again() {
    let world = world_with_noise();
    let expected = world.built(&["build", "app"]).manifest_bytes;
    let pack = only_pack(&world);
    let whole = fs::read(&pack).unwrap();
    for left in [0, 1, 1_000_000, whole.len() - 1] {
        fs::write(&pack, &whole[..left]).unwrap();
        assert_eq!(
            world.built(&["build", "app"]).manifest_bytes,
            expected,
            "{left}"
        );
        assert!(fs::read(&pack).unwrap() == whole, "{left}");
    }
}

#[test]
fn a_damaged_recipe_or_note_is_like_none() {
    let world = world_with_noise();
    let expected = world.built(&["build", "app"]).manifest_bytes;
    for kind in ["recipes", "notes"] {
        let path = cached(&world, kind).remove(0);
        let length = fs::read(&path).unwrap().len();
        for damage in 0..5 {
            match damage {
                0..3 => flip_a_bit(&path, [0, length / 2, length - 1][damage]),
                3 => fs::write(&path, "").unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
            let built = world.built(&["build", "app"]);
            assert_eq!(built.manifest_bytes, expected, "{kind} {damage}");
            // It is as it was.
            assert_eq!(cached(&world, kind), [path.as_path()], "{kind} {damage}");
        }
    }
    only_pack(&world);
}

#[test]
fn bytes_that_nobody_needs_are_not_made() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let folder = settled_folder();
    let name = |image: &str| format!("{}/{image}", registry.host());
    let (first, other_name, other_config, elsewhere) = (
        name("app:1"),
        name("app:2"),
        name("app:3"),
        name("elsewhere:1"),
    );
    let build = |more: &[&'static str], name: &str| {
        let fixed = [
            "build",
            &folder,
            "--base=scratch",
            "--add=.:/var/task",
            "-t",
            name,
        ];
        push(&world, &registry, &[&fixed[..], more].concat())
    };
    assert_eq!(build(&[], &first).len(), 2);
    let pack = only_pack(&world);
    let whole = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();

    assert!(build(&[], &first).is_empty());
    // Under its digest it is known; no blob is asked for.
    assert!(build(&[], &other_name).is_empty());
    let log = registry.log();
    assert_eq!(log.count(Method::HEAD, "/blobs/"), 0, "{log:?}");
    // The config alone is new.
    assert_eq!(build(&["--label=it=2"], &other_config).len(), 1);
    assert!(cached(&world, "packs").is_empty());

    assert_eq!(build(&[], &elsewhere).len(), 2);
    assert_clean(&Checker::new().registry(&registry, "elsewhere", "1"));
    assert!(fs::read(&pack).unwrap() == whole);

    fs::remove_file(&pack).unwrap();
    let image = world.built(&["build", &folder, "--base=scratch", "--add=.:/var/task"]);
    assert!(has(&image, "var/task/app.py"));
    assert!(fs::read(&pack).unwrap() == whole);
}

#[test]
fn without_the_cache_nothing_is_remembered() {
    let world = World::with_app("scratch");
    let forgetful = world.built(&["build", "app", "--no-cache"]);
    // A run with a place of its own in there is all that was.
    assert!(!layer_cache(&world).exists());
    let remembering = world.built(&["build", "app"]);
    assert_eq!(remembering.manifest_bytes, forgetful.manifest_bytes);
    let before = world.files();
    assert!(!cached(&world, "notes").is_empty());
    // Neither is what is there looked at or brought up to date.
    flip_a_bit(&only_pack(&world), 3);
    let damaged = fs::read(only_pack(&world)).unwrap();
    world.sandbox.write("app/src/more", "more");
    assert_ne!(
        world.built(&["build", "app", "--no-cache"]).manifest_bytes,
        forgetful.manifest_bytes
    );
    assert_eq!(fs::read(only_pack(&world)).unwrap(), damaged);
    let kept = |files: &BTreeMap<PathBuf, _>| {
        files
            .keys()
            .filter(|path| path.starts_with(layer_cache(&world)))
            .count()
    };
    assert_eq!(kept(&world.files()), kept(&before));
}

/// What a cache has of each kind takes some bytes, which depend on the machine: shown without them.
fn without_sizes() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d+(\.\d)? ([KMG]iB|B)\b", "[SIZE]");
    settings.add_filter("\"bytes\": [1-9]\\d*", "\"bytes\": [BYTES]");
    settings.add_filter("[0-9a-f]{32,64}", "[ID]");
    settings
}

/// The sum of the sizes of all that is remembered.
fn size_of_cache(world: &World) -> u64 {
    let kinds = ["packs", "recipes", "notes"];
    let files = kinds.into_iter().flat_map(|kind| cached(world, kind));
    files.map(|path| fs::metadata(path).unwrap().len()).sum()
}

#[test]
fn the_cache_tells_what_it_takes() {
    let world = World::with_app("scratch");
    let info = |more: &[&str]| {
        let output = world.ok(&[&["cache", "info"], more].concat());
        assert_eq!(output.stderr(), "");
        world.shown(output.stdout().trim_end())
    };
    insta::assert_snapshot!(info(&[]), @"
    path     [SANDBOX]/cache/tierce/layers-1
    size     0 B of at most 10.0 GiB
    packs    0 (0 B)
    recipes  0 (0 B)
    notes    0 (0 B)
    facts    0 (0 B)
    links    0 (0 B)
    ");
    assert!(!layer_cache(&world).exists());
    world.runs(&["build", "app"]);
    without_sizes().bind(|| {
        insta::assert_snapshot!(info(&[]), @"
        path     [SANDBOX]/cache/tierce/layers-1
        size     [SIZE] of at most [SIZE]
        packs    1 ([SIZE])
        recipes  1 ([SIZE])
        notes    1 ([SIZE])
        facts    1 ([SIZE])
        links    0 ([SIZE])
        ");
        insta::assert_snapshot!(info(&["--json"]), @r#"
        {
          "bytes": [BYTES],
          "facts": {
            "bytes": [BYTES],
            "files": 1
          },
          "limit": 10737418240,
          "links": {
            "bytes": 0,
            "files": 0
          },
          "notes": {
            "bytes": [BYTES],
            "files": 1
          },
          "packs": {
            "bytes": [BYTES],
            "files": 1
          },
          "path": "[SANDBOX]/cache/tierce/layers-1",
          "recipes": {
            "bytes": [BYTES],
            "files": 1
          },
          "resolved": {
            "bytes": 0,
            "files": 0,
            "trees": 0
          },
          "unpacked": {
            "bytes": 0,
            "trees": 0
          }
        }
        "#);
    });
    let json = world.ok(&["cache", "info", "--json"]).json();
    let facts = facts(&world).into_values().map(|facts| facts.len() as u64);
    assert_eq!(json["bytes"], size_of_cache(&world) + facts.sum::<u64>());
    let limited = world
        .tierce(&["cache", "info", "--json"])
        .env("TIERCE_CACHE_LIMIT", "2 MiB");
    let json = limited.run().assert_success().json();
    assert_eq!(json["limit"], 2 << 20);
}

#[test]
fn the_cache_is_emptied_when_asked() {
    let world = World::with_app("scratch");
    let prune = |more: &[&str]| {
        let output = world.ok(&[&["cache", "prune"], more].concat());
        assert_eq!(output.stderr(), "");
        world.shown(output.stdout().trim_end())
    };
    insta::assert_snapshot!(prune(&["--to=0"]), @"removed 0 files (0 B), 0 B left");
    assert!(!layer_cache(&world).exists());
    let digest = digest_in(&world.ok(&["build", "app"]));
    without_sizes().bind(|| {
        // The limit is far away.
        insta::assert_snapshot!(prune(&[]), @"removed 0 files ([SIZE]), [SIZE] left");
        insta::assert_snapshot!(prune(&["--to=0"]), @"removed 4 files ([SIZE]), [SIZE] left");
    });
    assert_eq!(size_of_cache(&world), 0);
    assert_eq!(digest_in(&world.ok(&["build", "app"])), digest);
    without_sizes().bind(|| {
        insta::assert_snapshot!(prune(&["--to=0", "--json"]), @r#"
        {
          "left": {
            "bytes": 0,
            "files": 0
          },
          "removed": {
            "bytes": [BYTES],
            "files": 4
          }
        }
        "#);
    });
    let bad = world.fails(2, &["cache", "prune", "--to=lots"]);
    insta::assert_snapshot!(bad, @"
    error: invalid value 'lots' for '--to <SIZE>': `lots` is not a size: expected a whole number of bytes, kB, MB, GB, KiB, MiB or GiB

    For more information, try '--help'.
    ");
}

#[test]
fn what_is_damaged_in_the_cache_is_found_and_removed() {
    let world = world_with_noise();
    let verify = |more: &[&str]| {
        let output = world.ok(&[&["cache", "verify"], more].concat());
        format!(
            "{}--\n{}",
            world.shown(&output.stderr()),
            world.shown(output.stdout().trim_end())
        )
    };
    insta::assert_snapshot!(verify(&[]), @"
    --
    sound: 0 files (0 B) with 0 segments; damaged: 0 files
    ");
    assert!(!layer_cache(&world).exists());
    let expected = world.built(&["build", "app"]).manifest_bytes;
    let settings = without_sizes();
    settings.bind(|| {
        insta::assert_snapshot!(verify(&[]), @"
        --
        sound: 4 files ([SIZE]) with 6 segments; damaged: 0 files
        ");
        flip_a_bit(&only_pack(&world), 1_000_000);
        flip_a_bit(&cached(&world, "recipes")[0], 200);
        insta::assert_snapshot!(verify(&[]), @"
        warning: [SANDBOX]/cache/tierce/layers-1/packs/[ID].pack was damaged and is removed
        warning: [SANDBOX]/cache/tierce/layers-1/recipes/[ID] was damaged and is removed
        --
        sound: 2 files ([SIZE]) with 0 segments; damaged: 2 files
        ");
        insta::assert_snapshot!(verify(&["--json"]), @r#"
        --
        {
          "removed": [],
          "resolved": {
            "bytes": 0,
            "trees": 0
          },
          "segments": 0,
          "sound": {
            "bytes": [BYTES],
            "files": 2
          }
        }
        "#);
    });
    assert!(cached(&world, "packs").is_empty() && cached(&world, "recipes").is_empty());
    assert_eq!(world.built(&["build", "app"]).manifest_bytes, expected);
    settings.bind(|| {
        flip_a_bit(&cached(&world, "notes")[0], 20);
        insta::assert_snapshot!(verify(&["--json"]), @r#"
        --
        {
          "removed": [
            "[SANDBOX]/cache/tierce/layers-1/notes/[ID]"
          ],
          "resolved": {
            "bytes": 0,
            "trees": 0
          },
          "segments": 6,
          "sound": {
            "bytes": [BYTES],
            "files": 3
          }
        }
        "#);
    });
    assert_eq!(world.built(&["build", "app"]).manifest_bytes, expected);
}

#[test]
fn a_limit_that_is_none_is_an_error_and_a_small_one_is_kept() {
    let world = world_with_noise();
    let limited =
        |limit: &str, arguments: &[&str]| world.tierce(arguments).env("TIERCE_CACHE_LIMIT", limit);
    for arguments in [&["build", "app"][..], &["cache", "info"]] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(world.fails_as(1, limited("some", arguments)), @"
            error: TIERCE_CACHE_LIMIT cannot be used
              caused by: `some` is not a size: expected a whole number of bytes, kB, MB, GB, KiB, MiB or GiB
            ");
        }
    }
    let expected = world.built(&["build", "app", "--no-cache"]).manifest_bytes;
    for limit in ["1kB", "0", "1kB"] {
        let built = world.built_as(limited(limit, &["build", "app"]));
        assert_eq!(built.manifest_bytes, expected, "{limit}");
        assert!(size_of_cache(&world) <= 1000, "{limit}");
    }
    // With room for it all is kept.
    world.built_as(limited("", &["build", "app"]));
    let older = only_pack(&world);
    // What was made longer ago goes first.
    world.sandbox.write("app/src/noise", noise(7, 2_000_000));
    world.built_as(limited("4 MB", &["build", "app"]));
    assert_ne!(only_pack(&world), older);
    assert!(size_of_cache(&world) <= 4_000_000);
}

#[test]
fn a_cache_in_use_is_not_pruned() {
    let world = World::with_app("scratch");
    let registry = FakeRegistry::start();
    let gate = Gate::new();
    registry.inject(Fault::hold(&gate).on(Method::PUT, "/blobs/uploads/"));
    let name = format!("{}/app:1", registry.host());
    let child = world
        .tierce(&["build", "app", "-t", &name, "--push"])
        .spawn();
    gate.wait_for(1);
    let pruned = world.tierce(&["cache", "prune", "--to=0"]).run();
    insta::assert_snapshot!(world.shown(pruned.assert_code(1).stderr().trim_end()), @"error: another process is using the cache `[SANDBOX]/cache/tierce/layers-1`");
    // Looking at it does no harm.
    for looks in ["info", "verify"] {
        world.runs(&["cache", looks]);
    }
    gate.open();
    let (code, _, stderr) = ended(child);
    assert_eq!(code, Some(0), "{stderr}");
    only_pack(&world);
    world.runs(&["cache", "prune", "--to=0"]);
    assert_eq!(size_of_cache(&world), 0);
}

#[test]
fn a_stored_image_outlives_cache_and_sources() {
    let world = world_with_noise();
    let digest = digest_in(&world.ok(&["build", "app", "-t=it:1"]));
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    fs::remove_dir_all(world.path("app")).unwrap();
    let copied = digest_in(&world.ok(&["copy", "store:it:1", "oci:out:1"]));
    assert_eq!(copied, digest);
    assert_clean(&Checker::new().layout(&world.path("out")));
    let registry = FakeRegistry::start();
    let name = format!("{}/it:1", registry.host());
    world.runs(&["push", "it:1", &name]);
    assert_clean(&Checker::new().registry(&registry, "it", "1"));
    assert_eq!(registry.resolve("it", "1").unwrap().to_string(), digest);
}

#[test]
fn a_stored_image_that_was_damaged_with_the_cache_is_mended_by_a_build() {
    let world = world_with_noise();
    world.runs(&["build", "app", "-t=it:1"]);
    // The store and the cache have this file together.
    flip_a_bit(&only_pack(&world), 1_000_000);
    let stderr = world.fails(1, &["copy", "store:it:1", "oci:out:1"]);
    assert!(stderr.contains("hint: build the image again"), "{stderr}");
    world.runs(&["build", "app", "-t=it:1"]);
    world.runs(&["copy", "store:it:1", "oci:out:1"]);
    assert_clean(&Checker::new().layout(&world.path("out")));
}

#[test]
fn dependencies_are_split_as_the_file_says_and_are_the_same_tree() {
    let world = World::new();
    write_libraries(&world.path("app/libraries"));
    let built = |split: &str| {
        world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"scratch\"\nplatforms = [\"arm64\"]\n\
                 [[layer]]\nname = \"dependencies\"\n{split}\n\
                 add = [{{ from = \"libraries/\", to = \"/opt/python/\" }}]\n"
            ),
        );
        let image = world.built(&["build", "app"]);
        assert_clean(
            &Checker::new()
                .lambda_rules_from(0)
                .layout(&world.path("built")),
        );
        image
    };
    let made_by = |image: &LoadedImage| {
        let history = image.config["history"].as_array().unwrap();
        let made_by = history
            .iter()
            .map(|entry| entry["created_by"].as_str().unwrap());
        made_by.collect::<Vec<_>>().join("\n")
    };
    let split = built("split = { budget = \"64 KiB\", most = 4 }");
    insta::assert_snapshot!(made_by(&split), @"
    tierce layer-format-1 fast-1 dependencies (numpy)
    tierce layer-format-1 fast-1 dependencies (1 of 2)
    tierce layer-format-1 fast-1 dependencies (2 of 2)
    ");
    let two = built("split = { budget = \"64 KiB\", most = 2 }");
    insta::assert_snapshot!(made_by(&two), @"
    tierce layer-format-1 fast-1 dependencies (numpy)
    tierce layer-format-1 fast-1 dependencies (others)
    ");
    let whole = built("split = false");
    insta::assert_snapshot!(made_by(&whole), @"tierce layer-format-1 fast-1 dependencies");
    assert_eq!(split.tree().unwrap(), whole.tree().unwrap());
    assert_eq!(two.tree().unwrap(), whole.tree().unwrap());
    // All of it is far below the budget that is usual.
    for usual in ["", "split = true", "split = { most = 4 }"] {
        assert_eq!(built(usual).manifest_bytes, whole.manifest_bytes, "{usual}");
    }
    // And what was split before is again.
    let again = built("split = { budget = \"64 KiB\", most = 4 }");
    assert_eq!(again.manifest_bytes, split.manifest_bytes);
}

#[test]
fn a_carried_cache_serves_another_folder() {
    let here = World::new();
    lay_out(&here.path("app"));
    let expected = here.built(&["build", "app"]).manifest_bytes;
    let there = World::new();
    lay_out(&there.path("some/where/else"));
    copy_directory(&here.sandbox.cache(), &there.sandbox.cache());
    let kept = |kind: &str| cached(&there, kind).len();
    let before = ["packs", "recipes", "notes"].map(kept);
    assert_eq!(
        there.built(&["build", "some/where/else"]).manifest_bytes,
        expected
    );
    let [packs, recipes, notes] = before;
    // Nothing was compressed; what is known of the other folder stands beside what is of this one.
    assert_eq!(
        ["packs", "recipes", "notes"].map(kept),
        [packs, recipes, notes + 3]
    );
}

#[test]
fn builds_at_the_same_time_share_the_cache() {
    let world = World::new();
    let folders = ["1", "2", "3"];
    let expected = folders.map(|folder| {
        lay_out(&world.path(folder));
        write(&world.path(folder), "src/main.py", folder);
        digest_in(&world.ok(&["build", folder, "--no-cache", "--dry-run"]))
    });
    for _ in 0..2 {
        let children = folders.map(|folder| world.tierce(&["build", folder, "--dry-run"]).spawn());
        for (child, expected) in children.into_iter().zip(&expected) {
            let (code, stdout, stderr) = ended(child);
            assert_eq!(code, Some(0), "{stderr}");
            assert!(stdout.trim_end().ends_with(expected), "{stdout}");
        }
    }
    let json = world.ok(&["cache", "verify", "--json"]).json();
    assert_eq!(json["removed"], json!([]));
}
