//! The same digests from other folders, by other builds of the program, and after a journey.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tierce_oci::Digest;
use tierce_testkit::process::DockerRegistry;
use tierce_testkit::sandbox::Sandbox;

use crate::support::{minimal, one_digest, release, repository, sandbox, skopeo, tierce};

/// Copies the fixture function, with other times and other group bits.
fn copy_fixture(to: &Path, age: u64) {
    let source = repository("fixtures/functions/hello/src");
    fs::create_dir_all(to.join("src")).unwrap();
    let mut files: Vec<_> = fs::read_dir(source).unwrap().map(Result::unwrap).collect();
    files.retain(|file| file.path().is_file());
    if age % 2 == 1 {
        files.reverse();
    }
    for file in files {
        let copy = to.join("src").join(file.file_name());
        fs::copy(file.path(), &copy).unwrap();
        let mode = if age % 2 == 1 { 0o600 } else { 0o664 };
        fs::set_permissions(&copy, Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + age);
        let file = fs::File::options().write(true).open(&copy).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
}

/// Builds what is in `folder` and pushes it.
#[track_caller]
fn push(sandbox: &Sandbox, program: &Path, folder: &Path, reference: &str, jobs: &str) -> Digest {
    let command = sandbox.command(program).arg("build").arg(folder);
    let output = command
        .args([
            "--base",
            &minimal("docker"),
            "--platform",
            "amd64",
            "--handler",
            "app.handler",
        ])
        .args([
            "--add",
            "src:/var/task/",
            "-t",
            reference,
            "--push",
            "--jobs",
            jobs,
        ])
        .run();
    one_digest(&output.assert_success())
}

#[test]
fn folders_machines_profiles_and_journeys_change_no_digest() {
    let registry = DockerRegistry::start();
    let mut digests = Vec::new();
    let debug = Path::new(env!("CARGO_BIN_EXE_tierce")).to_owned();
    for (number, program) in [debug.clone(), debug, release()].into_iter().enumerate() {
        let sandbox = sandbox();
        let folder = sandbox.path(format!("some/where-{number}"));
        copy_fixture(&folder, u64::try_from(number).unwrap());
        let reference = registry.reference(&format!("team/hello-{number}"), "1");
        let jobs = (number + 1).to_string();
        let digest = push(&sandbox, &program, &folder, &reference, &jobs);
        // To a folder and to another repository by skopeo, and back by tierce.
        let there = format!("docker://{reference}");
        let other = registry.reference(&format!("back/hello-{number}"), "1");
        skopeo(&sandbox, "copy", [&there, "dir:journey"]);
        skopeo(
            &sandbox,
            "copy",
            ["dir:journey", &format!("docker://{other}")],
        );
        assert_eq!(tierce(&sandbox, ["pull", &other, "store:back:1"]), digest);
        digests.push(digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}
