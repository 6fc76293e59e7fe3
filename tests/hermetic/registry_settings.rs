//! What a user settles about registries: in `registries.toml`, in directories of certificates, and by
//! the proxies of the environment.

use std::fs;

use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::sandbox::{Command, DockerConfig};
use tierce_testkit::{FakeRegistry, FakeRegistryBuilder, LocationStyle, Proxy, TlsEnd};

use crate::support::{World, digest_in};

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const PASSWORD: &str = "s3cret-Passw0rd";
/// `AWS:s3cret-Passw0rd` in Base64.
const ENCODED: &str = "QVdTOnMzY3JldC1QYXNzdzByZA==";

/// A registry with the base `base:1`.
fn with_base(builder: FakeRegistryBuilder) -> FakeRegistry {
    let registry = builder.start();
    lambda_base(Format::Docker, "amd64").put(&registry, "base", Some("1"));
    registry
}

/// A function on `HOST/base:1`, in a world where this is settled about registries.
fn world_on(host: &str, settled: &str) -> World {
    let world = World::with_app(&format!("{host}/base:1"));
    settle(&world, settled);
    world
}

fn settle(world: &World, settled: &str) {
    let directory = world.sandbox.config().join("tierce");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("registries.toml"), settled).unwrap();
}

#[test]
fn the_real_name_of_a_registry_stands_for_an_endpoint_on_this_machine() {
    let registry = with_base(FakeRegistry::builder().basic("AWS", PASSWORD));
    let settled = format!("[\"{ECR}\"]\nendpoint = \"{}\"\n", registry.url());
    let world = world_on(ECR, &settled);
    let config = DockerConfig::new().auth(ECR, "AWS", PASSWORD);
    world.sandbox.docker_config(&config);
    let name = format!("{ECR}/team/app:1");
    let output = world.ok(&["build", "app", "-vv", "-t", &name, "--push"]);
    assert!(
        output
            .stdout()
            .starts_with(&format!("{ECR}/team/app@sha256:"))
    );
    assert_clean(&Checker::new().registry(&registry, "team/app", "1"));
    // Layers of the base are mounted: it is one registry, by its name.
    let log = registry.log();
    let mounts = log.filter(|it| it.query.contains("from=base"));
    assert!(!mounts.is_empty(), "{log}");
    for said in [output.stdout(), output.stderr()] {
        assert!(
            !said.contains(PASSWORD) && !said.contains(ENCODED),
            "{said}"
        );
    }
    // What is kept of the image names the registry, not the address.
    let kept = world.ok(&["inspect", "--json", &name]);
    assert!(
        kept.stdout().contains(&format!("{ECR}/base")),
        "{}",
        kept.stdout()
    );
    assert!(!kept.stdout().contains(&registry.host()));
}

#[test]
fn a_mirror_is_read_first_and_the_image_does_not_know() {
    let mirror = with_base(FakeRegistry::builder());
    let directly = World::with_app(&format!("{}/base:1", mirror.host()));
    directly.runs(&["build", "app"]);
    mirror.clear_log();
    lambda_base(Format::Docker, "amd64").put(&mirror, "hub/base", Some("1"));
    let settled = format!(
        "[\"registry.invalid\"]\nmirror = [\"{}/hub\"]\n",
        mirror.url()
    );
    let world = world_on("registry.invalid", &settled);
    let built = world.built(&["build", "app"]);
    assert!(!mirror.log().repository("hub/base").is_empty());
    let config = built.config.to_string();
    assert!(config.contains("registry.invalid/base:1"), "{config}");
    assert!(!config.contains(&mirror.host()), "{config}");
    // A mirror that has nothing leaves it to the registry, which is not there.
    mirror.untag("hub/base", "1");
    let world = world_on("registry.invalid", &settled);
    let stderr = world.fails(1, &["build", "app"]);
    assert!(
        stderr.contains("could not find the address of registry.invalid"),
        "{stderr}"
    );
}

#[test]
fn trust_is_settled_by_host() {
    let registry = with_base(FakeRegistry::builder().https());
    let host = registry.host();
    // Seen from the file, and so is the address that a certificate is for.
    let world = world_on(&host, &format!("[\"{host}\"]\nca = [\"corporate.pem\"]\n"));
    let beside = world.sandbox.config().join("tierce/corporate.pem");
    fs::copy(registry.ca_certificate().unwrap(), &beside).unwrap();
    world.runs(&["build", "app"]);
    fs::write(&beside, "nothing of the kind").unwrap();
    let name = format!("{host}/base:1");
    let mut world = world;
    world.call(&host, "REGISTRY");
    insta::assert_snapshot!(world.fails(1, &["inspect", &name]), @"
    error: could not read `[REGISTRY]/base:1`
      caused by: the settings for [REGISTRY] cannot be used
      caused by: [SANDBOX]/config/tierce/corporate.pem has no certificate in PEM form
    ");
    settle(&world, &format!("[\"{host}\"]\ninsecure = true\n"));
    let output = world.ok(&["inspect", &name]);
    insta::assert_snapshot!(world.shown(output.stderr().trim()), @"WARN [REGISTRY] is insecure by its settings: its certificate is not verified");
}

#[test]
fn certificates_are_found_where_podman_keeps_them() {
    let registry = with_base(FakeRegistry::builder());
    let end = TlsEnd::before(&registry.host());
    let mut world = World::with_app(&format!("{}/base:1", end.host()));
    world.call(end.host(), "REGISTRY");
    let directory = world
        .sandbox
        .config()
        .join("containers/certs.d")
        .join(end.host());
    fs::create_dir_all(&directory).unwrap();
    let (certificate, key) = end.client_certificate();
    fs::copy(end.ca_certificate(), directory.join("ca.crt")).unwrap();
    fs::copy(certificate, directory.join("me.cert")).unwrap();
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: could not read the base `[REGISTRY]/base:1`
      caused by: could not read the manifest `1`
      caused by: the settings for [REGISTRY] cannot be used
      caused by: [SANDBOX]/config/containers/certs.d/[REGISTRY]/me.cert is there without me.key
    ");
    fs::copy(key, directory.join("me.key")).unwrap();
    world.runs(&["build", "app"]);
}

#[test]
fn a_mistake_in_the_file_is_pointed_at() {
    let world = world_on("registry.invalid", "[\"registry.invalid\"]\nmirrors = []\n");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: [SANDBOX]/config/tierce/registries.toml:2:1: unknown field `mirrors`, expected one of `endpoint`, `mirror`, `insecure`, `ca`, `client-certificate`, `client-key`, `connect-timeout`, `header-timeout`, `read-timeout`, `upload-answer-timeout`, `concurrency`, `chunk-size`, `aws-profile`, `aws-role`
      |
    2 | mirrors = []
      | ^^^^^^^
    hint: did you mean `mirror`?
    ");
    settle(&world, "[ghcr.io]\ninsecure = true\n");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @"
    error: [SANDBOX]/config/tierce/registries.toml:1:2: `ghcr` is not the name of a registry: expected a host and perhaps a port, in quotes when it has dots
      |
    1 | [ghcr.io]
      |  ^^^^
    ");
    settle(&world, "[\"ghcr.io\"]\nendpoint = \"http://10.0.0.1\"\n");
    insta::assert_snapshot!(world.fails(1, &["build", "app"]), @r#"
    error: [SANDBOX]/config/tierce/registries.toml:2:12: `10.0.0.1` is another machine, and without TLS only `insecure` ones are spoken to
      |
    2 | endpoint = "http://10.0.0.1"
      |            ^^^^^^^^^^^^^^^^^
    "#);
    // Another file may be named, and must be there then.
    let named = world
        .tierce(&["build", "app"])
        .env("TIERCE_REGISTRIES", "other.toml");
    insta::assert_snapshot!(world.fails_as(1, named), @"
    error: could not read other.toml
      caused by: No such file or directory (os error 2)
    hint: TIERCE_REGISTRIES names it
    ");
    let registry = with_base(FakeRegistry::builder());
    let path = world.sandbox.write(
        "other.toml",
        format!(
            "[\"registry.invalid\"]\nendpoint = \"{}\"\n",
            registry.url()
        ),
    );
    let named = world
        .tierce(&["build", "app"])
        .env("TIERCE_REGISTRIES", path);
    drop(named.run().assert_success());
}

/// A run in which every proxy of the environment is this one.
fn through(command: Command, variables: &[&str], user: &str, proxy: &Proxy) -> Command {
    let address = format!("http://{user}{}", proxy.host());
    variables
        .iter()
        .fold(command, |command, name| command.env(name, &address))
}

#[test]
fn proxies_of_the_environment_are_used() {
    let registry = with_base(FakeRegistry::builder().location(LocationStyle::Relative));
    for name in ["HTTP_PROXY", "http_proxy"] {
        let proxy = Proxy::to(&registry.host(), Some(("me", PASSWORD)));
        let world = World::with_app("registry.test/base:1");
        let build = world.tierce(&[
            "build",
            "app",
            "-vv",
            "--plain-http=registry.test",
            "-t=registry.test/team/app:1",
            "--push",
        ]);
        let output = through(build, &[name], &format!("me:{PASSWORD}@"), &proxy).run();
        let output = output.assert_success();
        let begun = proxy.asked();
        assert!(
            begun[0].ends_with(" http://registry.test/v2/base/manifests/1 HTTP/1.1"),
            "{begun:?}"
        );
        let digest = digest_in(&output);
        let pushed = registry.resolve("team/app", "1");
        assert_eq!(pushed.map(|it| it.to_string()), Some(digest));
        assert!(!output.stderr().contains(PASSWORD), "{}", output.stderr());
        registry.untag("team/app", "1");
    }
}

#[test]
fn tls_goes_through_a_proxy_untouched() {
    let registry = with_base(FakeRegistry::builder().https().basic("AWS", PASSWORD));
    let authority = registry.ca_certificate().unwrap();
    let authority = authority.to_string_lossy();
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let proxy = Proxy::to(&registry.host(), None);
        let world = World::with_app("registry.test/base:1");
        let config = DockerConfig::new().auth("registry.test", "AWS", PASSWORD);
        world.sandbox.docker_config(&config);
        let build = world.tierce(&["build", "app", "--ca-file", &authority]);
        let output = through(build, &[name], "", &proxy).run();
        drop(output.assert_success());
        let begun = proxy.asked();
        assert!(!begun.is_empty());
        for line in begun {
            assert_eq!(line, "CONNECT registry.test:443 HTTP/1.1");
        }
    }
}

#[test]
fn a_proxy_that_refuses_is_told_without_its_password() {
    let registry = with_base(FakeRegistry::builder());
    let proxy = Proxy::to(&registry.host(), Some(("me", PASSWORD)));
    let world = World::with_app("registry.test/base:1");
    let variables = ["HTTP_PROXY", "HTTPS_PROXY"];
    let wrong = "wrong-Passw0rd";
    let mut told = Vec::new();
    for more in [&["--plain-http=registry.test"][..], &[]] {
        let build = world.tierce(&[&["build", "app", "-vv"], more].concat());
        let build = through(build, &variables, &format!("me:{wrong}@"), &proxy);
        let output = build.run().assert_code(1);
        assert!(!output.stderr().contains(wrong), "{}", output.stderr());
        let error = output.stderr().find("error: ").unwrap_or_default();
        told.push(output.stderr()[error..].trim_end().to_owned());
    }
    insta::assert_snapshot!(told.join("\n"), @"
    error: could not read the base `registry.test/base:1`
      caused by: could not read the manifest `1`
      caused by: registry registry.test answered 407 to `GET /v2/base/manifests/1`
    hint: the proxy that HTTPS_PROXY or HTTP_PROXY names refuses; NO_PROXY goes around it
    error: could not read the base `registry.test/base:1`
      caused by: could not read the manifest `1`
      caused by: could not connect to registry.test
      caused by: tunnel error: proxy authorization required
    hint: the proxy that HTTPS_PROXY or HTTP_PROXY names refuses; NO_PROXY goes around it
    ");
    assert_eq!(proxy.asked().len(), 2);
    assert!(registry.log().is_empty());
}

#[test]
fn no_proxy_is_honoured() {
    let registry = with_base(FakeRegistry::builder());
    let proxy = Proxy::to(&registry.host(), None);
    let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let world = World::with_app("registry.test/base:1");
    for (name, value) in [("NO_PROXY", "registry.test"), ("no_proxy", "other,.test")] {
        let build = world.tierce(&["build", "app", "--plain-http=registry.test"]);
        let build = through(build, &variables, "", &proxy).env(name, value);
        let stderr = world.fails_as(1, build);
        assert!(
            stderr.contains("could not find the address of registry.test"),
            "{stderr}"
        );
    }
    // This machine is never reached through a proxy, by whatever name.
    let settled = format!("[\"registry.test\"]\nendpoint = \"{}\"\n", registry.url());
    settle(&world, &settled);
    for base in [&registry.host(), &registry.localhost(), "registry.test"] {
        world.app(&format!("{base}/base:1"), "");
        let build = through(world.tierce(&["build", "app"]), &variables, "", &proxy);
        drop(build.run().assert_success());
        fs::remove_file(world.path("app/tierce.lock")).unwrap();
    }
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[test]
fn an_insecure_registry_may_be_without_tls() {
    let registry = with_base(FakeRegistry::builder());
    let proxy = Proxy::to(&registry.host(), None);
    let variables = ["HTTP_PROXY", "HTTPS_PROXY"];
    for host in ["registry.test:5000", "registry.test"] {
        let world = World::with_app(&format!("{host}/base:1"));
        let build = || through(world.tierce(&["build", "app"]), &variables, "", &proxy);
        let stderr = world.fails_as(1, build());
        assert!(
            stderr.contains("could not set up TLS with registry.test"),
            "{stderr}"
        );
        settle(&world, &format!("[\"{host}\"]\ninsecure = true\n"));
        drop(build().run().assert_success());
    }
}
