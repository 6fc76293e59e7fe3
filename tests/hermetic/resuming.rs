//! Pushes that are killed, and go on.

use std::process::Child;
use std::time::{Duration, Instant};

use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, Packing, TestImage};
use tierce_testkit::{FakeRegistry, FakeRegistryBuilder, LocationStyle, Method, Offsets};

use crate::support::{World, noise};

const MIB: usize = 1 << 20;

/// Bytes of the large layer: above what is worth going on with, and more than ten kills let pass.
const LARGE: usize = 192 * MIB;

/// How large a chunk is.
const CHUNK: u64 = 10 << 20;

fn large_image() -> TestImage {
    // Uncompressed, because only the bytes on the wire matter here.
    let layer = LayerBuilder::new()
        .packing(Packing::None)
        .file("large", 0o644, &noise(7, LARGE));
    let small = LayerBuilder::new().file("small", 0o644, b"small");
    ImageBuilder::new(Format::Oci, "amd64")
        .layer(&layer)
        .layer(&small)
        .build()
}

/// ECR's ways with chunks, without its passwords.
fn keeps_whole_chunks() -> FakeRegistryBuilder {
    FakeRegistry::builder()
        .location(LocationStyle::Absolute)
        .chunk_status(201)
        .offsets(Offsets::Ecr)
        .stale_range()
        .atomic_chunks()
        .minimum_part(5 << 20)
}

/// Kills a push as soon as the registry has got so many bytes more, and so many requests.
fn kill_after(mut child: Child, registry: &FakeRegistry, bytes: u64, requests: usize) -> bool {
    let begin = registry.log();
    let (had, asked) = (begin.blob_bytes_received(), begin.len());
    let patience = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            assert!(status.success(), "it ended by itself, with {status}");
            return false;
        }
        let log = registry.log();
        if log.blob_bytes_received() >= had + bytes && log.len() >= asked + requests {
            break;
        }
        assert!(Instant::now() < patience, "nothing moves");
    }
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
    true
}

/// Kills one push at ten moments, and lets it end at last. Gives how many bytes were sent in all.
fn kill_ten_times(builder: FakeRegistryBuilder, seed: u64) -> u64 {
    let world = World::new();
    let registry = builder.start();
    let image = large_image();
    image.write_layout(&world.path("from"), Some("1"));
    let target = format!("docker://{}/app:1", registry.host());
    let arguments = ["copy", "--jobs=1", "oci:from:1", &target];
    let mut state = seed;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for kill in 0..10 {
        // Some before any byte, some in the midst of a chunk, some between two.
        let (bytes, requests) = match random(4) {
            0 => (0, usize::try_from(random(8)).expect("it is small")),
            1 => (CHUNK, 0),
            _ => (random(CHUNK), 0),
        };
        let child = world.tierce(&arguments).spawn();
        assert!(
            kill_after(child, &registry, bytes, requests),
            "the push was over before kill {kill}"
        );
        assert_eq!(registry.resolve("app", "1"), None);
    }
    world.runs(&arguments);
    assert_eq!(registry.resolve("app", "1"), Some(image.digest()));
    let digest = image.layers[0].digest();
    let stored = registry.blob("app", &digest).expect("it was pushed");
    assert!(stored == image.layers[0].blob, "the blob is another");
    world.assert_no_litter();
    let notes = world.sandbox.cache().join("tierce/uploads-1");
    let left: Vec<_> = std::fs::read_dir(notes).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    registry.log().blob_bytes_received()
}

#[test]
fn a_push_that_is_killed_ten_times_goes_on_where_the_registry_is() {
    let sent = kill_ten_times(FakeRegistry::builder(), 0x5eed_0001);
    let whole = large_image().layers[0].blob.len() as u64;
    // What was on its way when the process died, and the small blobs.
    assert!(sent < whole + 11 * CHUNK, "{sent} of {whole}");
}

#[test]
fn a_push_to_a_registry_that_keeps_whole_chunks_loses_no_more_than_those() {
    let sent = kill_ten_times(keeps_whole_chunks(), 0x5eed_0002);
    let whole = large_image().layers[0].blob.len() as u64;
    // The first try was one body, of which nothing is kept. It may have got further than the moment
    // at which it was to be killed.
    assert!(sent < whole + 14 * CHUNK, "{sent} of {whole}");
}

#[test]
fn a_second_push_of_the_same_blob_leaves_the_first_one_alone() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = large_image();
    image.write_layout(&world.path("from"), Some("1"));
    let gate = tierce_testkit::Gate::new();
    let hold = tierce_testkit::Fault::hold(&gate).on(Method::PUT, "/app/blobs/uploads/");
    registry.inject(hold);
    let target = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
    let first = world
        .tierce(&["copy", "--jobs=1", "oci:from:1", &target("1")])
        .spawn();
    gate.wait_for(1);
    world.runs(&["copy", "--jobs=1", "oci:from:1", &target("2")]);
    gate.open();
    let (code, _, stderr) = crate::support::ended(first);
    assert_eq!(code, Some(0), "{stderr}");
    for tag in ["1", "2"] {
        assert_eq!(registry.resolve("app", tag), Some(image.digest()));
    }
}
