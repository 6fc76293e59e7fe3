//! docker-registry, plain and with both kinds of authentication, and skopeo as the judge.

use std::fs;

use tierce_oci::Digest;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::process::DockerRegistry;
use tierce_testkit::sandbox::{DockerConfig, HelperBehaviour, Sandbox};
use tierce_testkit::{TokenServer, TokenSettings};

use crate::support::{
    Request, digests, inspect, minimal, names, raw_digest, repository, requests, sandbox, skopeo,
    tierce,
};

/// Builds the fixture function on `base` and pushes it.
#[track_caller]
fn build_and_push(sandbox: &Sandbox, base: &str, format: &str, reference: &str) -> Digest {
    let hello = repository("fixtures/functions/hello");
    let hello = hello.to_str().unwrap();
    let arguments = ["build", hello, "--base", base, "--format", format];
    tierce(
        sandbox,
        arguments
            .into_iter()
            .chain(["--platform", "amd64", "-t", reference, "--push"]),
    )
}

/// Demands that the image is sound as skopeo copies it: unchanged into a folder of files, and into a
/// layout, where every digest, size and diff id is computed again.
#[track_caller]
fn judge(sandbox: &Sandbox, reference: &str, digest: Digest, credentials: Option<&str>) {
    let name = format!("docker://{reference}");
    let options = credentials.map_or(vec![], |it| vec!["--src-creds", it]);
    let copy = |target: &str| {
        let places = [name.as_str(), target];
        skopeo(sandbox, "copy", options.iter().copied().chain(places));
    };
    copy("dir:judged");
    let manifest = fs::read(sandbox.path("judged/manifest.json")).unwrap();
    assert_eq!(Digest::of(&manifest), digest, "{reference}");
    copy("oci:judged-layout:t");
    let rules = Checker::new().lambda_rules_from(3);
    assert_clean(&rules.layout(&sandbox.path("judged-layout")));
    for made in ["judged", "judged-layout"] {
        fs::remove_dir_all(sandbox.path(made)).unwrap();
    }
}

#[test]
fn an_open_registry_takes_both_formats_and_skopeo_gets_them_back() {
    let registry = DockerRegistry::start();
    let sandbox = sandbox();
    for format in ["docker", "oci"] {
        let reference = registry.reference("team/hello", format);
        let digest = build_and_push(&sandbox, &minimal("docker"), format, &reference);
        judge(&sandbox, &reference, digest, None);
        let shown = inspect(&sandbox, &format!("docker://{reference}"));
        assert_eq!(shown["Digest"], digest.to_string());
        assert_eq!(shown["Architecture"], "amd64");
        assert_eq!(shown["Layers"].as_array().unwrap().len(), 4);
        assert_eq!(shown["Labels"]["dev.tierce.target"], "lambda");
    }
}

#[test]
fn a_second_push_is_one_head() {
    let registry = DockerRegistry::start();
    let sandbox = sandbox();
    let reference = registry.reference("team/hello", "1");
    let digest = build_and_push(&sandbox, &minimal("docker"), "docker", &reference);
    let before = requests(&registry).len();
    let again = build_and_push(&sandbox, &minimal("docker"), "docker", &reference);
    assert_eq!(again, digest);
    let asked = requests(&registry).split_off(before);
    let head = Request {
        method: "HEAD".to_owned(),
        uri: "/v2/team/hello/manifests/1".to_owned(),
        status: 200,
    };
    assert_eq!(asked, [head]);
}

#[test]
fn base_layers_are_mounted_and_never_travel() {
    let registry = DockerRegistry::start();
    let sandbox = sandbox();
    let base = registry.reference("bases/minimal", "1");
    tierce(&sandbox, ["push", &minimal("docker"), &base]);
    let before = requests(&registry).len();
    let reference = registry.reference("apps/hello", "1");
    let digest = build_and_push(&sandbox, &base, "docker", &reference);
    let asked = requests(&registry).split_off(before);
    let count = |wanted: &dyn Fn(&&Request) -> bool| asked.iter().filter(wanted).count();
    let mounts = count(&|it| it.uri.contains("from=bases/minimal") && it.status == 201);
    assert_eq!(mounts, 3, "{asked:#?}");
    // The base's config is read, and no other blob; the config and the new layer are sent.
    let read = count(&|it| it.method == "GET" && it.uri.contains("/blobs/"));
    assert_eq!(read, 1, "{asked:#?}");
    let sent = count(&|it| it.method == "PUT" && it.uri.contains("/blobs/uploads/"));
    assert_eq!(sent, 2, "{asked:#?}");
    judge(&sandbox, &reference, digest, None);
}

#[test]
fn a_registry_with_passwords_takes_them_from_a_config_file_or_a_helper() {
    let registry = DockerRegistry::start_basic("me", "it's \"secret\"");
    let reference = registry.reference("team/hello", "1");
    let host = registry.host();

    let by_file = sandbox();
    by_file.docker_config(&DockerConfig::new().auth(&host, "me", "it's \"secret\""));
    let digest = build_and_push(&by_file, &minimal("docker"), "docker", &reference);
    judge(&by_file, &reference, digest, Some("me:it's \"secret\""));

    let by_helper = sandbox();
    by_helper.docker_config(&DockerConfig::new().cred_helper(&host, "keeper"));
    by_helper.credential_helper("keeper", &HelperBehaviour::answer("me", "it's \"secret\""));
    let reference = registry.reference("team/hello", "2");
    let digest = build_and_push(&by_helper, &minimal("docker"), "oci", &reference);
    judge(&by_helper, &reference, digest, Some("me:it's \"secret\""));
    assert_eq!(by_helper.helper_calls("keeper"), [format!("get {host}")]);
}

#[test]
fn a_wrong_password_says_so_and_leaves_nothing_behind() {
    let registry = DockerRegistry::start_basic("me", "secret");
    let sandbox = sandbox();
    let reference = registry.reference("team/hello", "1");
    for config in [
        DockerConfig::new(),
        DockerConfig::new().auth(&registry.host(), "me", "wrong"),
    ] {
        sandbox.docker_config(&config);
        let push = ["push", &minimal("docker"), &reference];
        let failed = sandbox.tierce(push).run().assert_code(1);
        assert!(failed.stderr().contains(&registry.host()), "{failed:?}");
        assert!(failed.stderr().contains("hint"), "{failed:?}");
        assert!(!failed.stderr().contains("wrong"), "{failed:?}");
        assert_eq!(failed.stdout(), "");
    }
    let sent = requests(&registry);
    let taken = sent.iter().find(|it| it.status < 300);
    assert_eq!(taken, None);
}

#[test]
fn a_registry_with_tokens_gets_one_for_what_is_done() {
    let tokens = TokenServer::start(TokenSettings::user("me", "secret").anonymous_pull());
    let registry = DockerRegistry::start_bearer(&tokens);
    let sandbox = sandbox();
    let config = DockerConfig::new().auth(&registry.host(), "me", "secret");
    sandbox.docker_config(&config);
    let base = registry.reference("bases/minimal", "1");
    tierce(&sandbox, ["push", &minimal("docker"), &base]);
    let reference = registry.reference("team/hello", "1");
    let digest = build_and_push(&sandbox, &base, "docker", &reference);
    let asked = requests(&registry);
    let mounted = |it: &&Request| it.uri.contains("from=bases/minimal") && it.status == 201;
    assert_eq!(asked.iter().filter(mounted).count(), 3, "{asked:#?}");
    judge(&sandbox, &reference, digest, Some("me:secret"));

    // Without credentials it may read, and not write.
    let nobody = crate::support::sandbox();
    assert_eq!(
        tierce(&nobody, ["pull", &reference, "oci:pulled:t"]),
        digest
    );
    let push = [
        "push",
        "oci:pulled:t",
        &registry.reference("team/other", "1"),
    ];
    let refused = nobody.tierce(push).run().assert_code(1);
    assert!(refused.stderr().contains("team/other"), "{refused:?}");
}

#[test]
fn an_index_goes_from_registry_to_registry_and_leaves_nothing_on_disk() {
    let from = DockerRegistry::start_basic("me", "secret");
    let tokens = TokenServer::start(TokenSettings::user("you", "other"));
    let to = DockerRegistry::start_bearer(&tokens);
    let sandbox = sandbox();
    let config = DockerConfig::new().auth(&from.host(), "me", "secret");
    sandbox.docker_config(&config.auth(&to.host(), "you", "other"));
    let hello = repository("fixtures/functions/hello");
    let there = from.reference("team/hello", "1");
    for format in ["docker", "oci"] {
        let build = [
            "--platform",
            "arm64,amd64",
            "--index",
            "--format",
            format,
            "--push",
        ];
        let output = sandbox
            .tierce([
                "build",
                hello.to_str().unwrap(),
                "--base",
                &minimal("docker"),
            ])
            .args(["-t", &there])
            .args(build)
            .run()
            .assert_success();
        let [arm64, amd64, index] = digests(&output)[..] else {
            panic!("two images and an index: {output:?}");
        };
        let here = to.reference("copies/hello", format);
        let source = format!("docker://{there}");
        let copied = tierce(&sandbox, ["copy", &source, &format!("docker://{here}")]);
        assert_eq!(copied, index);
        let creds = |image: &str| {
            let options = ["--raw", "--creds", "you:other", image];
            Digest::of(&skopeo(&sandbox, "inspect", options))
        };
        assert_eq!(creds(&format!("docker://{here}")), index);
        for child in [arm64, amd64] {
            let name = to.reference("copies/hello", &child.to_string());
            assert_eq!(creds(&format!("docker://{name}")), child);
        }
        let image = format!("docker://{here}");
        let all = ["--all", "--src-creds", "you:other", &image, "dir:all"];
        skopeo(&sandbox, "copy", all);
        let manifest = fs::read(sandbox.path("all/manifest.json")).unwrap();
        assert_eq!(Digest::of(&manifest), index);
        fs::remove_dir_all(sandbox.path("all")).unwrap();
    }
    assert!(names(&sandbox.root().join("tmp")).is_empty());
    assert!(names(&sandbox.work()).is_empty());
}

#[test]
fn several_tags_at_once_and_images_by_digest() {
    let registry = DockerRegistry::start();
    let sandbox = sandbox();
    let a = registry.reference("team/hello", "a");
    let b = registry.reference("team/hello", "b");
    let source = minimal("docker");
    let output = sandbox
        .tierce(["push", &source, &a, &b])
        .run()
        .assert_success();
    let [first, second] = digests(&output)[..] else {
        panic!("a line for each tag: {output:?}");
    };
    assert_eq!(first, second);
    for tag in [&a, &b] {
        assert_eq!(raw_digest(&sandbox, &format!("docker://{tag}")), first);
    }
    let by_digest = registry.reference("team/hello", &first.to_string());
    assert_eq!(tierce(&sandbox, ["pull", &by_digest, "oci:all:t"]), first);
    assert_clean(&Checker::new().layout(&sandbox.path("all")));
    let shown = inspect(&sandbox, &format!("docker://{a}"));
    let tags = shown["RepoTags"].as_array().unwrap();
    assert_eq!(tags.len(), 2, "{shown}");
}
