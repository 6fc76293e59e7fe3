//! Killed, dropped and simultaneous writers, and disks that are full.

use std::fs;
use std::future::Future as _;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use crate::common::*;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tierce_image::{
    Artifact, BlobAt, BlobSource, BlobStream, BoxError, Content, ImageSink, Layer, Placed,
};
use tierce_oci::{Descriptor, ImageFormat};
use tierce_store::{ArchiveKind, ArchiveSink, Layout, LayoutSink, LocalStore};

/// Gives half of a blob and then never goes on.
struct Stuck(Bytes);

impl BlobSource for Stuck {
    async fn open(&self, _: &Descriptor, _: &Content, _: u64) -> Result<BlobStream, BoxError> {
        let half = self.0.slice(..self.0.len() / 2);
        Ok(stream::iter([Ok(half)]).chain(stream::pending()).boxed())
    }
}

fn large() -> (Layer, Bytes) {
    let layer = layer("noise.bin", &noise(600_000));
    let Content::Memory(bytes) = layer.content.clone() else {
        panic!("made in memory")
    };
    (layer, bytes)
}

/// Sends a blob to `sink` and drops it half-way, with its bytes on the disk.
fn interrupt<K: ImageSink>(sink: &K, layer: &Layer, bytes: &Bytes) {
    let stuck = Stuck(bytes.clone());
    let mut context = Context::from_waker(Waker::noop());
    let mut sending = pin!(send_one(sink, &layer.descriptor, &layer.content, &stuck));
    for _ in 0..10 {
        assert!(sending.as_mut().poll(&mut context).is_pending());
    }
}

#[test]
fn a_dropped_transfer_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (layer, bytes) = large();
    let layout = LayoutSink::create(directory.path().join("layout")).unwrap();
    interrupt(&layout, &layer, &bytes);
    let root = directory.path().join("layout");
    assert_eq!(names(&root), ["blobs", "index.json", "oci-layout"]);
    assert!(names(&root.join("blobs/sha256")).is_empty());

    let store = LocalStore::open(directory.path().join("store")).unwrap();
    let sink = store.sink(&"x".parse().unwrap()).unwrap();
    interrupt(&sink, &layer, &bytes);
    assert!(names(&directory.path().join("store/tmp")).is_empty());
    assert!(names(&directory.path().join("store/blobs/sha256")).is_empty());
}

#[test]
fn an_archive_goes_on_after_a_dropped_transfer() {
    let directory = tempfile::tempdir().unwrap();
    let (layer, bytes) = large();
    let built = image_of(vec![layer.clone()], "arm64", ImageFormat::DockerV2S2).to_artifact();
    let straight = directory.path().join("straight.tar");
    let detour = directory.path().join("detour.tar");
    for (path, interrupted) in [(&straight, false), (&detour, true)] {
        let sink = ArchiveSink::create(path, ArchiveKind::Oci(None)).unwrap();
        if interrupted {
            interrupt(&sink, &layer, &bytes);
        }
        run(put(&built, Some(&tag("1")), &Files::default(), &sink)).unwrap();
        let error = run(sink.finish()).unwrap_err().to_string();
        assert!(error.contains("no manifest was put"), "{error}");
    }
    assert_eq!(fs::read(straight).unwrap(), fs::read(detour).unwrap());
}

#[test]
fn an_archive_that_is_not_finished_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let (layer, bytes) = large();
    let path = directory.path().join("oci.tar");
    fs::write(&path, b"what was there").unwrap();
    let sink = ArchiveSink::create(&path, ArchiveKind::Oci(None)).unwrap();
    interrupt(&sink, &layer, &bytes);
    assert_eq!(names(directory.path()).len(), 2);
    drop(sink);
    assert_eq!(names(directory.path()), ["oci.tar"]);
    assert_eq!(fs::read(&path).unwrap(), b"what was there");
}

#[test]
fn what_killed_processes_left_is_swept_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let built = image(ImageFormat::Oci).to_artifact();
    let left = [
        directory.path().join("layout/.tierce-dead01.tmp"),
        directory.path().join("store/tmp/.tierce-dead02.tmp"),
        directory.path().join(".tierce-dead03.tmp"),
    ];
    for place in PLACES {
        place
            .write(directory.path(), &built, &Files::default())
            .unwrap();
    }
    for path in &left {
        fs::write(path, b"half").unwrap();
    }
    // A layout that was killed before it began is an empty directory.
    let begun = directory.path().join("begun");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join(".tierce-dead04.tmp"), b"").unwrap();
    LayoutSink::create(&begun).unwrap();
    assert!(names(&begun).is_empty());
    for place in PLACES {
        place
            .write(directory.path(), &built, &Files::default())
            .unwrap();
    }
    assert!(left.iter().all(|path| !path.exists()));
}

#[test]
fn many_writers_at_once_lose_no_name() {
    let directory = tempfile::tempdir().unwrap();
    let store_path = directory.path().join("store");
    let layout_path = directory.path().join("layout");
    let shared = layer("shared", &noise(300_000));
    let images: Vec<Artifact> = (0..6)
        .map(|number| {
            let own = layer("own", format!("{number}").as_bytes());
            image_of(vec![shared.clone(), own], "arm64", ImageFormat::Oci).to_artifact()
        })
        .collect();
    let collected = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (number, image) in images.iter().enumerate() {
            let (layout_path, store_path) = (&layout_path, &store_path);
            scope.spawn(move || {
                let files = Files::default();
                for round in 0..5 {
                    let tag = tag(&format!("{number}.{round}"));
                    let sink = LayoutSink::create(layout_path).unwrap();
                    run(put(image, Some(&tag), &files, &sink)).unwrap();
                    let store = LocalStore::open(store_path).unwrap();
                    let sink = store.sink(&"shared/name".parse().unwrap()).unwrap();
                    run(put(image, Some(&tag), &files, &sink)).unwrap();
                }
            });
        }
        let (store_path, collected) = (&store_path, &collected);
        scope.spawn(move || {
            for _ in 0..50 {
                let store = LocalStore::open(store_path).unwrap();
                if store.collect_garbage().is_ok() {
                    collected.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    });
    let layout = Layout::open(&layout_path).unwrap();
    let store = LocalStore::open(&store_path).unwrap();
    assert_eq!(layout.entries().unwrap().len(), 30);
    assert_eq!(store.list().unwrap().len(), 30);
    assert_eq!(store.collect_garbage().unwrap().blobs, 0);
    for (number, image) in images.iter().enumerate() {
        let found = layout.find(Some(&format!("{number}.4"))).unwrap();
        assert_eq!(found.digest, image.document.digest());
    }
    assert_eq!(names(&layout_path), ["blobs", "index.json", "oci-layout"]);
    assert!(names(&store_path.join("tmp")).is_empty());
}

/// Whoever looks at a directory in which another writer is just beginning a layout sees files there
/// that were not there a moment ago.
#[test]
fn a_layout_that_somebody_else_begins_meanwhile_is_no_strangers_directory() {
    const WRITERS: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let image = image(ImageFormat::Oci).to_artifact();
    for round in 0..100 {
        let path = directory.path().join(round.to_string());
        let together = std::sync::Barrier::new(WRITERS);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (path, image, together) = (&path, &image, &together);
                scope.spawn(move || {
                    let tag = tag(&writer.to_string());
                    together.wait();
                    let sink = LayoutSink::create(path).unwrap();
                    run(put(image, Some(&tag), &Files::default(), &sink)).unwrap();
                });
            }
        });
        let layout = Layout::open(&path).unwrap();
        assert_eq!(layout.entries().unwrap().len(), WRITERS);
    }
}

#[test]
fn a_sink_does_not_believe_what_was_swapped_under_it() {
    let directory = tempfile::tempdir().unwrap();
    let (layer, bytes) = large();
    let sink = LayoutSink::create(directory.path()).unwrap();
    let at = BlobAt {
        descriptor: layer.descriptor.clone(),
        content: layer.content.clone(),
    };
    assert_eq!(run(sink.place(&at)).unwrap(), None);
    run(send_one(
        &sink,
        &at.descriptor,
        &at.content,
        &Files::default(),
    ))
    .unwrap();
    assert_eq!(run(sink.place(&at)).unwrap(), Some(Placed::AlreadyThere));
    let path = directory
        .path()
        .join("blobs/sha256")
        .join(layer.descriptor.digest.hex());
    fs::write(&path, &bytes[1..]).unwrap();
    assert_eq!(run(sink.place(&at)).unwrap(), None);
}

/// The limit on the size of a file acts like a full disk; it is for a whole process, so the test
/// runs itself again.
#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    const CHILD: &str = "TIERCE_STORE_TEST_FULL_DISK";
    if let Ok(directory) = std::env::var(CHILD) {
        let directory = std::path::Path::new(&directory);
        for place in PLACES {
            let built = image(ImageFormat::DockerV2S2).to_artifact();
            let error = place
                .write(directory, &built, &Files::default())
                .unwrap_err();
            let shown = chain(&error);
            assert!(
                shown.contains("could not write `")
                    && shown.contains("File too large")
                    && !shown.contains(".tmp`"),
                "{place:?}: {shown}"
            );
        }
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // XFSZ ignored, as in a shell with `trap '' XFSZ`, makes the write fail instead of the process.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 400; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "interruptions::a_full_disk_is_named_and_leaves_nothing",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(names(directory.path()), ["layout", "store"]);
    assert_eq!(
        names(&directory.path().join("layout")),
        ["blobs", "index.json", "oci-layout"]
    );
    assert!(names(&directory.path().join("store/tmp")).is_empty());
    let store = LocalStore::open(directory.path().join("store")).unwrap();
    assert!(store.list().unwrap().is_empty());
}
