//! Pushes that are killed, and then end well.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, Packing};
use tierce_testkit::process::DockerRegistry;

use crate::support::{raw_digest, sandbox};

/// Bytes of the large layer, above what is worth going on with.
const LARGE: usize = 160 << 20;

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The bytes of all files below.
fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            // docker-registry has moved it meanwhile.
            Err(_) => 0,
        })
        .sum()
}

/// Kills a push as soon as the registry has written so many bytes more.
fn kill_after(mut child: Child, registry: &DockerRegistry, bytes: u64) {
    let had = size(&registry.data());
    let patience = Instant::now() + Duration::from_mins(2);
    while size(&registry.data()) < had + bytes {
        let ended = child.try_wait().expect("it is our child");
        assert_eq!(ended, None, "it was over before it was killed");
        assert!(Instant::now() < patience, "nothing moves");
    }
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
}

#[test]
fn docker_registry_gets_the_whole_image_however_often_the_push_is_killed() {
    let registry = DockerRegistry::start();
    let sandbox = sandbox();
    let layer = LayerBuilder::new()
        .packing(Packing::None)
        .file("large", 0o644, &noise(LARGE));
    let image = ImageBuilder::new(Format::Oci, "amd64")
        .layer(&layer)
        .build();
    image.write_layout(&sandbox.path("from"), Some("1"));
    let target = format!("docker://{}", registry.reference("app", "1"));
    let arguments = ["copy", "oci:from:1", &target];
    let mut state = 0x5eed_u64;
    for _ in 0..10 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let bytes = state % (LARGE as u64 / 2);
        kill_after(sandbox.tierce(arguments).spawn(), &registry, bytes);
    }
    drop(sandbox.tierce(arguments).run().assert_success());
    assert_eq!(raw_digest(&sandbox, &target), image.digest());
    drop(
        sandbox
            .tierce(["copy", &target, "oci:back:1"])
            .run()
            .assert_success(),
    );
    assert_clean(&Checker::new().layout(&sandbox.path("back")));
}
