//! Credentials, certificates and refusals: what a registry asks of those who come.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::images::{Format, lambda_base, small_base};
use tierce_testkit::sandbox::{DockerConfig, HelperBehaviour};
use tierce_testkit::{FakeRegistry, FakeRegistryBuilder, Fault, Method, Redirect, TokenSettings};

use crate::support::World;

const USER: &str = "builder";
const PASSWORD: &str = "s3cret-Passw0rd";
/// `builder:s3cret-Passw0rd` in Base64.
const ENCODED: &str = "YnVpbGRlcjpzM2NyZXQtUGFzc3cwcmQ=";

/// A base at `base:1` of a registry that wants credentials, and a function on it.
fn world_at(builder: FakeRegistryBuilder) -> (World, FakeRegistry) {
    let registry = builder.start();
    lambda_base(Format::Docker, "amd64").put(&registry, "base", Some("1"));
    let mut world = World::with_app(&format!("{}/base:1", registry.host()));
    world.call(registry.host(), "REGISTRY");
    if let Some(host) = registry.token_host() {
        world.call(host, "TOKEN SERVER");
    }
    (world, registry)
}

/// Builds and pushes with everything said, then looks for secrets in all that was said and kept.
#[track_caller]
fn assert_builds_and_pushes(world: &World, registry: &FakeRegistry, more: &[&str]) {
    let name = format!("{}/team/app:1", registry.host());
    let arguments = [
        "build",
        "app",
        "-vv",
        "--progress=plain",
        "-t",
        &name,
        "--push",
    ];
    let output = world.ok(&[&arguments[..], more].concat());
    assert_clean(&Checker::new().registry(registry, "team/app", "1"));
    let said = format!("{}{}", output.stdout(), output.stderr());
    for secret in [PASSWORD, ENCODED] {
        assert!(!said.contains(secret), "a secret was said: {said}");
    }
    let tokens: Vec<String> = registry
        .log()
        .records()
        .iter()
        .filter_map(|record| record.authorization_seen().map(str::to_owned))
        .collect();
    assert!(!tokens.is_empty(), "nobody logged in");
    for header in &tokens {
        let token = header
            .split_once(' ')
            .map_or(header.as_str(), |(_, token)| token);
        assert!(!said.contains(token), "a token was said: {said}");
        assert_no_file_has(world, token);
    }
    assert_no_file_has(world, PASSWORD);
}

/// Looks into every file of the sandbox but those that the test put the secret into.
#[track_caller]
fn assert_no_file_has(world: &World, secret: &str) {
    for path in world.files().into_keys() {
        let name = path.to_string_lossy().into_owned();
        let given = [
            "config.json",
            "auth.json",
            "docker-credential-",
            "tierce.toml",
        ];
        if given.iter().any(|given| name.contains(given)) {
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_default();
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "{name} has a secret in it");
    }
}

#[test]
fn basic_credentials_come_from_docker_s_file() {
    let (world, registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
    let config = DockerConfig::new().auth(&registry.host(), USER, PASSWORD);
    world.sandbox.docker_config(&config);
    assert_builds_and_pushes(&world, &registry, &[]);
}

#[test]
fn bearer_tokens_are_fetched_for_credentials_of_docker_s_file() {
    let settings = TokenSettings::user(USER, PASSWORD);
    let (world, registry) = world_at(FakeRegistry::builder().bearer(settings));
    let config = DockerConfig::new().auth(&registry.host(), USER, PASSWORD);
    world.sandbox.docker_config(&config);
    assert_builds_and_pushes(&world, &registry, &[]);
}

#[test]
fn an_identity_token_is_exchanged() {
    let settings = TokenSettings::user("other", "password").identity_token("identity-0123456789");
    let (world, registry) = world_at(FakeRegistry::builder().bearer(settings));
    let config = DockerConfig::new().identity_token(&registry.host(), "identity-0123456789");
    world.sandbox.docker_config(&config);
    assert_builds_and_pushes(&world, &registry, &[]);
    assert_no_file_has(&world, "identity-0123456789");
}

#[test]
fn a_public_image_needs_no_credentials() {
    let settings = TokenSettings::user(USER, PASSWORD).anonymous_pull();
    let (world, registry) = world_at(FakeRegistry::builder().bearer(settings));
    world.runs(&["build", "app"]);
    // To push there one must log in.
    let name = format!("{}/team/app:1", registry.host());
    let stderr = world.fails(1, &["push", "--jobs=1", "store:app", &name]);
    insta::assert_snapshot!(stderr, @"
    error: could not write `[REGISTRY]/team/app:1`
      caused by: could not write blob sha256:177efbbbb72793332f3335d4715146e686506855f08e3707ed0f01da9cdf4837 (184 bytes)
      caused by: registry [REGISTRY] wants credentials for `POST /v2/team/app/blobs/uploads/`, and there are none for it
      caused by: registry [REGISTRY] answered 401 UNAUTHORIZED to `POST /v2/team/app/blobs/uploads/`: authentication required
    hint: log in with `docker login`, `podman login` or `skopeo login`: tierce reads what they write
    ");
    assert!(registry.tags("team/app").is_empty());
}

#[test]
fn helpers_are_asked_by_name() {
    for settings in [None, Some(TokenSettings::user(USER, PASSWORD))] {
        let builder = FakeRegistry::builder();
        let builder = match settings {
            Some(settings) => builder.bearer(settings),
            None => builder.basic(USER, PASSWORD),
        };
        let (world, registry) = world_at(builder);
        world
            .sandbox
            .credential_helper("fake", &HelperBehaviour::answer(USER, PASSWORD));
        let config = DockerConfig::new().cred_helper(&registry.host(), "fake");
        world.sandbox.docker_config(&config);
        assert_builds_and_pushes(&world, &registry, &[]);
        let calls = world.sandbox.helper_calls("fake");
        assert!(!calls.is_empty());
        for call in calls {
            assert_eq!(call, format!("get {}", registry.host()));
        }
    }
}

#[test]
fn a_store_for_all_hosts_is_asked_too() {
    let (world, registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
    world
        .sandbox
        .credential_helper("all", &HelperBehaviour::answer(USER, PASSWORD));
    let config = DockerConfig::new()
        .empty_auth(&registry.host())
        .creds_store("all");
    world.sandbox.docker_config(&config);
    assert_builds_and_pushes(&world, &registry, &[]);
}

#[test]
fn podman_s_file_is_read() {
    for place in [
        "runtime/containers/auth.json",
        "config/containers/auth.json",
    ] {
        let (world, registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
        let auth = json!({"auths": {registry.host(): {"auth": ENCODED}}}).to_string();
        let path = world.sandbox.root().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, auth).unwrap();
        let name = format!("{}/team/app:1", registry.host());
        let pushed = world.tierce(&["build", "app", "-t", &name, "--push"]).run();
        assert_eq!(pushed.code(), Some(0), "{place}: {pushed:?}");
    }
}

#[test]
fn a_file_may_be_named_by_the_environment() {
    let (world, registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
    let auth = json!({"auths": {registry.host(): {"auth": ENCODED}}}).to_string();
    world.sandbox.write("config.json", &auth);
    let path = world.path("config.json");
    let docker = world
        .tierce(&["build", "app"])
        .env("DOCKER_CONFIG", world.path(""));
    drop(docker.run().assert_success());
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    let podman = world
        .tierce(&["build", "app"])
        .env("REGISTRY_AUTH_FILE", path);
    drop(podman.run().assert_success());
    fs::remove_dir_all(world.sandbox.cache()).unwrap();
    let inline = world
        .tierce(&["build", "app"])
        .env("DOCKER_AUTH_CONFIG", auth);
    drop(inline.run().assert_success());
}

#[test]
fn without_credentials_the_error_says_how_to_log_in() {
    let (world, registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: registry [REGISTRY] wants credentials for `GET /v2/base/manifests/1`, and there are none for it
      caused by: registry [REGISTRY] answered 401 UNAUTHORIZED to `GET /v2/base/manifests/1`: authentication required
    hint: log in with `docker login`, `podman login` or `skopeo login`: tierce reads what they write
    ");
    // Wrong ones are told apart, and not shown.
    let config = DockerConfig::new().auth(&registry.host(), USER, "wrong-Passw0rd");
    world.sandbox.docker_config(&config);
    let stderr = world.fails(1, &["build", "app"]);
    assert!(!stderr.contains("wrong-Passw0rd"));
    insta::assert_snapshot!(stderr, @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: registry [REGISTRY] refused `GET /v2/base/manifests/1` with the credentials from [SANDBOX]/home/.docker/config.json
      caused by: registry [REGISTRY] answered 401 UNAUTHORIZED to `GET /v2/base/manifests/1`: authentication required
    hint: log in again, or correct what is stored there
    ");
}

#[test]
fn a_token_server_that_refuses_is_named() {
    let settings = TokenSettings::user(USER, PASSWORD);
    let (world, registry) = world_at(FakeRegistry::builder().bearer(settings));
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: registry [REGISTRY] wants credentials for `GET http://[TOKEN SERVER]/token`, and there are none for it
      caused by: [TOKEN SERVER] answered 401 UNAUTHORIZED to `GET http://[TOKEN SERVER]/token`: incorrect username or password
    hint: log in with `docker login`, `podman login` or `skopeo login`: tierce reads what they write
    ");
    let config = DockerConfig::new().auth(&registry.host(), USER, "wrong-Passw0rd");
    world.sandbox.docker_config(&config);
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: registry [REGISTRY] refused `GET http://[TOKEN SERVER]/token` with the credentials from [SANDBOX]/home/.docker/config.json
      caused by: [TOKEN SERVER] answered 401 UNAUTHORIZED to `GET http://[TOKEN SERVER]/token`: incorrect username or password
    hint: log in again, or correct what is stored there
    ");
}

#[test]
fn who_may_only_pull_is_told_so_when_pushing() {
    let settings = TokenSettings::user(USER, PASSWORD).deny("team/app", "push");
    let (world, registry) = world_at(FakeRegistry::builder().bearer(settings));
    let config = DockerConfig::new().auth(&registry.host(), USER, PASSWORD);
    world.sandbox.docker_config(&config);
    world.runs(&["build", "app"]);
    let name = format!("{}/team/app:1", registry.host());
    let stderr = world.fails(1, &["push", "--jobs=1", "store:app", &name]);
    insta::assert_snapshot!(stderr, @"
    error: could not write `[REGISTRY]/team/app:1`
      caused by: could not write blob sha256:177efbbbb72793332f3335d4715146e686506855f08e3707ed0f01da9cdf4837 (184 bytes)
      caused by: registry [REGISTRY] refused `POST /v2/team/app/blobs/uploads/` with the credentials from [SANDBOX]/home/.docker/config.json
      caused by: registry [REGISTRY] answered 401 UNAUTHORIZED to `POST /v2/team/app/blobs/uploads/`: authentication required
    hint: log in again, or correct what is stored there
    ");
    assert!(registry.tags("team/app").is_empty());
}

#[test]
fn a_helper_that_fails_is_named() {
    let (world, registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
    let config = DockerConfig::new().cred_helper(&registry.host(), "fake");
    world.sandbox.docker_config(&config);
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not get the credentials for registry [REGISTRY]
      caused by: [SANDBOX]/home/.docker/config.json names a credential helper that does not work
      caused by: the credential helper `docker-credential-fake` is not installed
    ");
    let failing = HelperBehaviour::Fail {
        code: 3,
        message: "the keyring is locked".to_owned(),
    };
    world.sandbox.credential_helper("fake", &failing);
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not get the credentials for registry [REGISTRY]
      caused by: [SANDBOX]/home/.docker/config.json names a credential helper that does not work
      caused by: the credential helper `docker-credential-fake` failed: the keyring is locked
    ");
    let nonsense = HelperBehaviour::Print("not json at all".to_owned());
    world.sandbox.credential_helper("fake", &nonsense);
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not get the credentials for registry [REGISTRY]
      caused by: [SANDBOX]/home/.docker/config.json names a credential helper that does not work
      caused by: the credential helper `docker-credential-fake` wrote something that is not credentials
    ");
}

#[test]
fn a_credential_file_that_is_none_is_named() {
    let (world, _registry) = world_at(FakeRegistry::builder().basic(USER, PASSWORD));
    let path = world.sandbox.home().join(".docker/config.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "{\"auths\": ").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not get the credentials for registry [REGISTRY]
      caused by: [SANDBOX]/home/.docker/config.json cannot be used
      caused by: it is not JSON: line 1, column 10
    ");
}

#[test]
fn https_with_a_given_authority() {
    let settings = TokenSettings::user(USER, PASSWORD);
    let builder = FakeRegistry::builder().https().bearer(settings);
    let (world, registry) = world_at(builder);
    let config = DockerConfig::new().auth(&registry.host(), USER, PASSWORD);
    world.sandbox.docker_config(&config);
    let authority = registry.ca_certificate().unwrap();
    let authority = authority.to_string_lossy();
    assert_builds_and_pushes(&world, &registry, &["--ca-file", &authority]);
}

#[test]
fn https_with_an_authority_of_the_system() {
    let (world, registry) = world_at(FakeRegistry::builder().https());
    let command = world
        .tierce(&["build", "app"])
        .env("SSL_CERT_FILE", registry.ca_certificate().unwrap());
    drop(command.run().assert_success());
}

#[test]
fn an_unknown_authority_is_an_error() {
    let (mut world, registry) = world_at(FakeRegistry::builder().https());
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not set up TLS with [REGISTRY]
      caused by: invalid peer certificate: UnknownIssuer
    hint: `--ca-file FILE` trusts a private authority; `--plain-http HOST` speaks without TLS
    ");
    let other = FakeRegistry::builder().https().start();
    let authority = other.ca_certificate().unwrap();
    world.call(authority.display(), "AUTHORITY");
    let authority = authority.to_string_lossy().into_owned();
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--ca-file", &authority]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: could not set up TLS with [REGISTRY]
      caused by: invalid peer certificate: BadSignature
    hint: `--ca-file FILE` trusts a private authority; `--plain-http HOST` speaks without TLS
    ");
    assert!(registry.log().is_empty());
}

#[test]
fn a_ca_file_that_is_none_is_an_error() {
    let world = World::with_app("scratch");
    world.sandbox.write("not.pem", "hello");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--ca-file=nowhere.pem"]), @"
    error: could not read the certificate authorities in nowhere.pem
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--ca-file=not.pem"]), @"error: not.pem has no certificate in PEM form");
}

/// The second host refuses whoever brings `Authorization`, so that a leak fails the transfer too.
#[test]
fn redirects_do_not_carry_credentials() {
    for redirect in [
        Redirect::OtherPort,
        Redirect::OtherName,
        Redirect::OtherNameSamePort,
    ] {
        let builder = FakeRegistry::builder()
            .basic(USER, PASSWORD)
            .redirect_blobs(redirect);
        let (world, registry) = world_at(builder);
        let config = DockerConfig::new().auth(&registry.host(), USER, PASSWORD);
        world.sandbox.docker_config(&config);
        let name = format!("{}/base:1", registry.host());
        world.runs(&["copy", &name, "oci:out:1"]);
        assert_clean(&Checker::new().layout(&world.path("out")));
        assert_eq!(registry.log().leaks(PASSWORD), Vec::<String>::new());
    }
}

#[test]
fn a_registry_that_stumbles_is_asked_again() {
    let registry = FakeRegistry::start();
    small_base(Format::Oci, "amd64").put(&registry, "from", Some("1"));
    registry.inject(Fault::status(503).on(Method::GET, "/manifests/"));
    registry.inject(Fault::disconnect().on(Method::GET, "/blobs/"));
    registry.inject(Fault::too_many_requests(0).on(Method::POST, "/uploads/"));
    let world = World::new();
    let [from, to] = ["from", "to"].map(|name| format!("{}/{name}:1", registry.host()));
    world.runs(&["copy", &from, "oci:out:1"]);
    world.runs(&["copy", "oci:out:1", &to]);
    assert_clean(&Checker::new().registry(&registry, "to", "1"));
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

#[test]
fn a_repository_that_must_be_made_first_is_said() {
    let registry = FakeRegistry::builder().without_create_on_push().start();
    let mut world = World::with_app("scratch");
    world.call(registry.host(), "REGISTRY");
    let name = format!("{}/team/app:1", registry.host());
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--jobs=1", "-t", &name, "--push"]), @"
    building for linux/amd64, Lambda's default; --platform names another
    error: could not write `[REGISTRY]/team/app:1`
      caused by: could not write blob sha256:073d6f4ac23000569fc2276b6c12d958a94354ace50afee57fa48beba3f07c4d (209 bytes)
      caused by: registry [REGISTRY] answered 404 NAME_UNKNOWN to `POST /v2/team/app/blobs/uploads/`: repository team/app does not exist
    hint: check the repository's name; some registries want it created before the first push
    ");
    assert!(registry.repositories().is_empty());
}

#[test]
fn a_registry_that_only_reads_is_said() {
    let registry = FakeRegistry::builder().read_only().start();
    let mut world = World::with_app("scratch");
    world.call(registry.host(), "REGISTRY");
    let name = format!("{}/team/app:1", registry.host());
    insta::assert_snapshot!(world.fails(1, &["build", "app", "--jobs=1", "-t", &name, "--push"]), @"
    building for linux/amd64, Lambda's default; --platform names another
    error: could not write `[REGISTRY]/team/app:1`
      caused by: could not write blob sha256:073d6f4ac23000569fc2276b6c12d958a94354ace50afee57fa48beba3f07c4d (209 bytes)
      caused by: registry [REGISTRY] answered 405 UNSUPPORTED to `POST /v2/team/app/blobs/uploads/`: the registry is read-only
    ");
    assert!(registry.tags("team/app").is_empty());
}

#[test]
fn what_a_registry_warns_of_is_shown_once() {
    let registry = FakeRegistry::start();
    let world = World::with_app("scratch");
    let warning = "299 - \"this mirror\tends in May\"";
    let fault = Fault::header("warning", warning).on_path("/v2/").always();
    registry.inject(fault);
    let odd = Fault::header("warning", "199 - \"nothing of ours\"").on(Method::PUT, "/manifests/");
    registry.inject(odd);
    let name = format!("{}/app:1", registry.host());
    let output = world.ok(&["build", "app", "--platform=amd64", "-t", &name, "--push"]);
    let stderr = output.stderr();
    let host = registry.host();
    let line = format!("registry {host} warns: this mirror ends in May");
    assert_eq!(stderr.matches(&line).count(), 1, "{stderr}");
    assert!(!stderr.contains("nothing of ours"), "{stderr}");
}
