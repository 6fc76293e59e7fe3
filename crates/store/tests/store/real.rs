//! What other tools make of what is written here, and the other way round.
//!
//! Ignored unless asked for, because they need `skopeo`, `umoci` and, as root, `dockerd`:
//! `cargo test -p tierce-store -- --ignored`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::*;
use serde_json::Value;
use tierce_image::{read_artifact, read_image};
use tierce_oci::{Digest, ImageFormat, Platform, Selector};
use tierce_store::{ArchiveLayout, DockerArchive, Layout, Selected};

/// Runs a tool to its end and gives what it printed.
fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn skopeo(arguments: &[&str]) -> String {
    tool("skopeo", &[&["--insecure-policy"], arguments].concat())
}

fn at(transport: &str, path: &Path, name: &str) -> String {
    format!("{transport}:{}:{name}", path.display())
}

#[test]
#[ignore = "needs skopeo"]
fn skopeo_reads_what_is_written() {
    for format in [ImageFormat::DockerV2S2, ImageFormat::Oci] {
        let directory = tempfile::tempdir().unwrap();
        let built = image(format);
        let digest = built.digest().to_string();
        for (place, transport, name) in [
            (Place::Layout, "oci", "1.0"),
            (Place::OciArchive, "oci-archive", "1.0"),
            (Place::DockerArchive, "docker-archive", "name:1.0"),
        ] {
            let files = Files::default();
            place
                .write(directory.path(), &built.to_artifact(), &files)
                .unwrap();
            // skopeo finds a name only on OCI manifests, and takes the only manifest without one.
            let path = place.path(directory.path());
            let from = match (format, place) {
                (ImageFormat::DockerV2S2, Place::Layout | Place::OciArchive) => {
                    format!("{transport}:{}", path.display())
                }
                _ => at(transport, &path, name),
            };
            let shown: Value =
                serde_json::from_str(&skopeo(&["inspect", "--override-arch=arm64", &from]))
                    .unwrap();
            assert_eq!(shown["Architecture"], "arm64", "{from}");
            assert_eq!(shown["Layers"].as_array().unwrap().len(), 3);
            if place != Place::DockerArchive {
                assert_eq!(shown["Digest"], digest, "{from}");
            }
            let copy = directory.path().join("copy");
            let to = format!("dir:{}", copy.display());
            skopeo(&["copy", "--override-arch=arm64", &from, &to]);
            let manifest = fs::read(copy.join("manifest.json")).unwrap();
            if place != Place::DockerArchive {
                assert_eq!(Digest::of(&manifest), built.digest(), "{from}");
            }
            fs::remove_dir_all(&copy).unwrap();
        }
    }
}

#[test]
#[ignore = "needs skopeo"]
fn skopeo_copies_an_index_with_all_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let built = index(ImageFormat::Oci);
    for (place, transport) in [(Place::Layout, "oci"), (Place::OciArchive, "oci-archive")] {
        place
            .write(directory.path(), &built, &Files::default())
            .unwrap();
        let copy = directory.path().join("copy");
        let from = at(transport, &place.path(directory.path()), "1.0");
        skopeo(&["copy", "--all", &from, &at("oci", &copy, "x")]);
        let layout = Layout::open(&copy).unwrap();
        let read = run(read_artifact(&layout, &Selector::Tag(tag("x")))).unwrap();
        assert_eq!(read.document, built.document);
        read_all(&read, &Files::default()).unwrap();
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
#[ignore = "needs skopeo"]
fn what_skopeo_writes_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let built = image(ImageFormat::Oci);
    let files = Files::default();
    Place::Layout
        .write(directory.path(), &built.to_artifact(), &files)
        .unwrap();
    let from = at("oci", &Place::Layout.path(directory.path()), "1.0");
    let path = |name: &str| directory.path().join(name);
    let arm64 = Platform::linux("arm64");

    skopeo(&[
        "copy",
        &from,
        &at("oci-archive", &path("s.tar"), "ghcr.io/a/b:2"),
    ]);
    let archive = ArchiveLayout::open(path("s.tar")).unwrap();
    let image = run(read_image(
        &archive,
        &files,
        &Selector::Tag(tag("2")),
        Some(&arm64),
    ))
    .unwrap();
    assert_eq!(image.digest(), built.digest());
    read_all(&image.to_artifact(), &files).unwrap();

    skopeo(&[
        "copy",
        &from,
        &at("docker-archive", &path("d.tar"), "a/b:2"),
    ]);
    let archive = DockerArchive::open(path("d.tar")).unwrap();
    let Selected::Plain(plain) = archive.select(Some(&"a/b:2".parse().unwrap())).unwrap() else {
        panic!("skopeo writes no manifest");
    };
    assert_eq!(plain.layers.len(), 3);
    for (member, layer) in plain.layers.iter().zip(built.layers()) {
        let bytes = fs::read(&member.path).unwrap();
        let start = usize::try_from(member.offset).unwrap();
        let end = start + usize::try_from(member.size).unwrap();
        assert_eq!(Digest::of(&bytes[start..end]), layer.diff_id.0);
    }
}

#[test]
#[ignore = "needs umoci"]
fn umoci_unpacks_and_changes_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let built = image(ImageFormat::Oci);
    let root = Place::Layout.path(directory.path());
    let write = || Place::Layout.write(directory.path(), &built.to_artifact(), &Files::default());
    write().unwrap();
    let image = format!("{}:1.0", root.display());
    let bundle = directory.path().join("bundle");
    tool(
        "umoci",
        &[
            "unpack",
            "--rootless",
            "--image",
            &image,
            bundle.to_str().unwrap(),
        ],
    );
    assert_eq!(fs::read(bundle.join("rootfs/hello.txt")).unwrap(), b"hello");
    tool("umoci", &["tag", "--image", &image, "2.0"]);
    tool("umoci", &["gc", "--layout", root.to_str().unwrap()]);
    write().unwrap();
    let layout = Layout::open(&root).unwrap();
    for name in ["1.0", "2.0"] {
        assert_eq!(layout.find(Some(name)).unwrap().digest, built.digest());
    }
    tool("umoci", &["list", "--layout", root.to_str().unwrap()]);
}

/// How long a daemon may take to answer for the first time.
const PATIENCE: Duration = Duration::from_mins(1);

/// A Docker daemon of the test's own.
struct Daemon {
    directory: PathBuf,
    process: Child,
}

impl Daemon {
    /// Starts one and waits until it answers. `None` where it cannot run: not root, no cgroups.
    fn start(directory: &Path) -> Option<Self> {
        let log = fs::File::create(directory.join("log")).unwrap();
        let process = Command::new("dockerd")
            .args(["--iptables=false", "--bridge=none", "--storage-driver=vfs"])
            .arg(format!("--data-root={}", directory.join("data").display()))
            .arg(format!("--exec-root={}", directory.join("exec").display()))
            .arg(format!("--pidfile={}", directory.join("pid").display()))
            .arg(format!(
                "--host=unix://{}",
                directory.join("socket").display()
            ))
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .ok()?;
        let mut daemon = Self {
            directory: directory.to_owned(),
            process,
        };
        let begun = Instant::now();
        // `docker version` itself takes a while, so that this is no busy loop.
        while daemon.process.try_wait().unwrap().is_none() && begun.elapsed() < PATIENCE {
            if daemon.docker(&["version"]).status.success() {
                return Some(daemon);
            }
        }
        None
    }

    fn docker(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("docker")
            .arg(format!(
                "--host=unix://{}",
                self.directory.join("socket").display()
            ))
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").arg(&pid).status();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs dockerd, as root"]
fn docker_loads_what_is_written_and_what_it_saves_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path()).unwrap_or_else(|| {
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("dockerd does not run here\n{log}")
    });
    println!(
        "{}",
        String::from_utf8_lossy(&daemon.docker(&["version"]).stdout)
    );
    for format in [ImageFormat::DockerV2S2, ImageFormat::Oci] {
        let built = image(format);
        let files = Files::default();
        Place::DockerArchive
            .write(directory.path(), &built.to_artifact(), &files)
            .unwrap();
        let archive = Place::DockerArchive.path(directory.path());
        let loaded = daemon.docker(&["load", "--input", archive.to_str().unwrap()]);
        let shown = String::from_utf8_lossy(&loaded.stdout);
        assert!(shown.contains("Loaded image: name:1.0"), "{loaded:?}");
        let inspected = daemon.docker(&["image", "inspect", "name:1.0"]);
        let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(inspected[0]["Id"], built.config().digest().to_string());
        let layers = inspected[0]["RootFS"]["Layers"].as_array().unwrap();
        assert_eq!(layers.len(), 3);

        let saved = directory.path().join("saved.tar");
        let output = daemon.docker(&["save", "--output", saved.to_str().unwrap(), "name:1.0"]);
        assert!(output.status.success(), "{output:?}");
        let read = DockerArchive::open(&saved).unwrap();
        let plain = read.select_plain(None).unwrap();
        assert_eq!(plain.config, built.config().bytes());
        assert_eq!(plain.repo_tags, ["name:1.0"]);
        let bytes = fs::read(&saved).unwrap();
        for (member, layer) in plain.layers.iter().zip(built.layers()) {
            let start = usize::try_from(member.offset).unwrap();
            let end = start + usize::try_from(member.size).unwrap();
            assert_eq!(Digest::of(&bytes[start..end]), layer.diff_id.0);
        }
        daemon.docker(&["image", "rm", "--force", "name:1.0"]);
    }
}
