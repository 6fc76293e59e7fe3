//! The guards of real programs, and the fake judged by real clients.
//!
//! Run with `cargo test -p tierce-testkit --test real -- --ignored`.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::process::Command;

use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::images::{self, Format, ImageBuilder, LayerBuilder, TestImage};
use tierce_testkit::process::{DockerDaemon, DockerRegistry, Moto, crun, prepare_bundle, require};
use tierce_testkit::sandbox::{Output, Sandbox};
use tierce_testkit::{FakeRegistry, Method, Redirect, TokenServer, TokenSettings};

fn skopeo(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    sandbox
        .command(require("skopeo"))
        .arg("--insecure-policy")
        .args(arguments)
        .run()
}

/// Copies a small layout to a registry and back, with the credentials given.
fn round_trip(host: &str, credentials: Option<&str>) {
    let sandbox = Sandbox::new("/bin/false");
    let image = images::merged_usr_base(Format::Oci, "amd64");
    image.write_layout(&sandbox.path("in"), Some("t"));
    let there = format!("docker://{host}/team/app:t");
    let mut push = vec!["copy", "--dest-tls-verify=false", "oci:in:t", &there];
    let mut pull = vec!["copy", "--src-tls-verify=false", &there, "oci:out:t"];
    if let Some(credentials) = credentials {
        push.extend(["--dest-creds", credentials]);
        pull.extend(["--src-creds", credentials]);
    }
    let _ = skopeo(&sandbox, &push).assert_success();
    let _ = skopeo(&sandbox, &pull).assert_success();
    let back = LoadedImage::from_layout(&sandbox.path("out"), Some("t")).unwrap();
    assert_eq!(back.manifest_bytes, image.manifest);
    assert_clean(&Checker::new().layout(&sandbox.path("out")));
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_plain_docker_registry_takes_and_gives() {
    let registry = DockerRegistry::start();
    round_trip(&registry.host(), None);
}

#[test]
#[ignore = "needs docker-registry, htpasswd and skopeo"]
fn a_basic_docker_registry_wants_its_password() {
    let registry = DockerRegistry::start_basic("me", "secret");
    round_trip(&registry.host(), Some("me:secret"));
    let sandbox = Sandbox::new("/bin/false");
    let login = |password: &str| {
        let arguments = ["login", "--tls-verify=false", "-u", "me", "-p", password];
        sandbox
            .command(require("skopeo"))
            .args(arguments)
            .arg(registry.host())
            .run()
    };
    let _ = login("secret").assert_success();
    let _ = login("wrong").assert_code(1);
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_bearer_docker_registry_verifies_our_tokens() {
    let tokens = TokenServer::start(TokenSettings::user("me", "secret").anonymous_pull());
    let registry = DockerRegistry::start_bearer(&tokens);
    round_trip(&registry.host(), Some("me:secret"));
    assert!(tokens.log().count(Method::GET, "/token") > 0);
    let sandbox = Sandbox::new("/bin/false");
    let there = format!("docker://{}", registry.reference("team/app", "t"));
    let _ = skopeo(
        &sandbox,
        &["copy", "--src-tls-verify=false", &there, "oci:out:t"],
    )
    .assert_success();
    let _ = skopeo(
        &sandbox,
        &["copy", "--dest-tls-verify=false", "oci:out:t", &there],
    )
    .assert_code(1);
    let login = |password: &str| {
        let arguments = ["login", "--tls-verify=false", "-u", "me", "-p", password];
        sandbox
            .command(require("skopeo"))
            .args(arguments)
            .arg(registry.host())
            .run()
    };
    let _ = login("secret").assert_success();
    let _ = login("wrong").assert_code(1);
}

#[test]
#[ignore = "needs skopeo"]
fn skopeo_gets_along_with_the_fake() {
    let open = FakeRegistry::start();
    round_trip(&open.host(), None);
    let basic = FakeRegistry::builder()
        .basic("me", "pw")
        .redirect_blobs(Redirect::OtherName);
    let basic = basic.start();
    round_trip(&basic.host(), Some("me:pw"));
    let bearer = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "pw"))
        .start();
    round_trip(&bearer.host(), Some("me:pw"));
    assert_clean(&Checker::new().registry(&bearer, "team/app", "t"));
    let read_only = FakeRegistry::builder()
        .https()
        .redirect_blobs(Redirect::OtherPort)
        .start();
    images::multi_platform_base(Format::Docker).put(&read_only, "base", Some("1"));
    let sandbox = Sandbox::new("/bin/false");
    let there = format!("docker://{}", read_only.reference("base", "1"));
    let authority = read_only.ca_certificate().unwrap();
    std::fs::create_dir(sandbox.path("certs")).unwrap();
    std::fs::copy(authority, sandbox.path("certs/ca.crt")).unwrap();
    let copy = [
        "copy",
        "--all",
        "--src-cert-dir",
        "certs",
        &there,
        "oci:all:1",
    ];
    let _ = skopeo(&sandbox, &copy).assert_success();
}

#[test]
#[ignore = "needs skopeo"]
fn skopeo_reads_every_archive() {
    let sandbox = Sandbox::new("/bin/false");
    let image = images::merged_usr_base(Format::Docker, "amd64");
    image.write_docker_archive(&sandbox.path("old.tar"), Some("localhost/a:1"));
    image.write_hybrid_archive(&sandbox.path("new.tar"), Some("localhost/a:1"));
    // By name, skopeo 1.9 finds only OCI manifests in a layout.
    let oci = images::merged_usr_base(Format::Oci, "amd64");
    oci.write_oci_archive(&sandbox.path("oci.tar"), Some("1"));
    for source in [
        "docker-archive:old.tar",
        "docker-archive:new.tar",
        "oci-archive:oci.tar:1",
    ] {
        let out = format!("oci:{}:t", source.replace([':', '.'], "-"));
        let _ = skopeo(&sandbox, &["copy", source, &out]).assert_success();
    }
    let _ = skopeo(
        &sandbox,
        &[
            "copy",
            "oci:docker-archive-old-tar:t",
            "docker-archive:back.tar:a:1",
        ],
    )
    .assert_success();
    assert_clean(&Checker::new().docker_archive(&sandbox.path("back.tar")));
}

#[test]
#[ignore = "needs moto"]
fn moto_makes_repositories_and_ends_with_its_guard() {
    let moto = Moto::start();
    let call = |action: &str, body: &'static str| {
        let request = reqwest::Client::builder().no_proxy().build().unwrap();
        let target = format!("AmazonEC2ContainerRegistry_V20150921.{action}");
        let scope = "testing/20260701/eu-west-1/ecr/aws4_request";
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=00");
        request
            .post(moto.endpoint())
            .header("authorization", authorization)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .body(body)
            .send()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let name = r#"{"repositoryName": "orders"}"#;
    let made = runtime.block_on(call("CreateRepository", name)).unwrap();
    assert_eq!(made.status(), 200, "{}", moto.log());
    let again = runtime.block_on(call("CreateRepository", name)).unwrap();
    let text = runtime.block_on(again.text()).unwrap();
    assert!(text.contains("RepositoryAlreadyExistsException"), "{text}");
    assert!(moto.log().contains("POST / HTTP"), "{}", moto.log());
    let endpoint = moto.endpoint();
    assert!(
        moto.environment("eu-west-1")
            .iter()
            .any(|(_, value)| *value == endpoint)
    );
    let address = endpoint.strip_prefix("http://").unwrap().to_owned();
    drop(moto);
    assert!(std::net::TcpStream::connect(address).is_err());
}

/// An image with the machine's own `sh` and the libraries it needs, which echoes its arguments.
fn with_shell(format: Format) -> TestImage {
    let output = Command::new(require("ldd"))
        .arg("/bin/sh")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    let mut layer = LayerBuilder::new();
    for path in libraries.chain(["/bin/sh"]) {
        layer = layer.file(
            path.trim_start_matches('/'),
            0o755,
            &std::fs::read(path).unwrap(),
        );
    }
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let entrypoint = vec!["/bin/sh", "-c", "echo \"$0\""];
    ImageBuilder::new(format, architecture)
        .layer(&layer)
        .config(|config| config["config"]["Entrypoint"] = entrypoint.into())
        .build()
}

#[test]
#[ignore = "needs umoci, crun and root"]
fn an_unpacked_image_runs_under_crun() {
    let sandbox = Sandbox::new("/bin/false");
    with_shell(Format::Oci).write_layout(&sandbox.path("layout"), Some("t"));
    let umoci = ["unpack", "--image", "layout:t", "bundle"];
    let _ = sandbox
        .command(require("umoci"))
        .args(umoci)
        .run()
        .assert_success();
    let bundle = sandbox.path("bundle");
    prepare_bundle(&bundle);
    let mut run = crun(&sandbox.path("state"));
    run.args(["run", "--bundle"])
        .arg(&bundle)
        .arg(format!("testkit-{}", std::process::id()));
    let output = run.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(output.stdout, b"/bin/sh\n");
}

#[test]
#[ignore = "needs dockerd and root"]
fn a_docker_daemon_loads_and_runs() {
    let daemon = DockerDaemon::start().unwrap();
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {text}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let directory = tempfile::tempdir().unwrap();
    let image = with_shell(Format::Docker);
    for (name, tag) in [("old.tar", "old:1"), ("new.tar", "new:1")] {
        let file = directory.path().join(name);
        if name == "old.tar" {
            image.write_docker_archive(&file, Some(tag));
        } else {
            image.write_hybrid_archive(&file, Some(tag));
        }
        let loaded = run(daemon.docker(["load", "-i"]).arg(&file));
        assert!(loaded.contains(tag), "{loaded}");
        let id = run(&mut daemon.docker(["inspect", "--format", "{{.Id}}", tag]));
        assert_eq!(id.trim(), image.config_digest().to_string());
        let said = run(&mut daemon.docker(["run", "--rm", "--network", "none", tag, "hello"]));
        assert_eq!(said, "hello\n");
    }
}
