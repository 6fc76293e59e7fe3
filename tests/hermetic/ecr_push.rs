//! Pushes to ECR by the names that it has in AWS: tokens, repositories, tags that stay, and no secret
//! anywhere.

use std::fs;
use std::path::Path;

use tierce_oci::Digest;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::ecr::FakeEcrBuilder;
use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::sandbox::{Command, DockerConfig, Output};
use tierce_testkit::{FakeEcr, Fault, Gate, Method, MissingRepository};

use crate::support::{World, ended};

const PYTHON: &str = "public.ecr.aws/lambda/python:3.12";

/// The digest in a line `NAME@DIGEST`.
fn digest_in(line: &str) -> Digest {
    let (_, digest) = line.trim().split_once('@').expect("a line of a result");
    digest.parse().expect("a digest")
}

/// A function on a base of ECR Public, and an ECR to push it to.
struct Ecr {
    world: World,
    fake: FakeEcr,
}

impl Ecr {
    /// One with the empty repository `orders`.
    fn new() -> Self {
        Self::with(FakeEcr::builder().repository("orders"))
    }

    fn with(builder: FakeEcrBuilder) -> Self {
        let fake = builder.with_public().start();
        let mut world = World::with_app(PYTHON);
        let public = fake.public().expect("it was asked for");
        lambda_base(Format::Docker, "amd64").put(public, "lambda/python", Some("3.12"));
        let settled = format!(
            "[\"{}\"]\nendpoint = \"{}\"\n\n[\"public.ecr.aws\"]\nendpoint = \"{}\"\n",
            fake.name(),
            fake.registry().url(),
            public.url()
        );
        let directory = world.sandbox.config().join("tierce");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("registries.toml"), settled).unwrap();
        world.call(fake.name(), "ECR");
        Self { world, fake }
    }

    fn tierce(&self, arguments: &[&str]) -> Command {
        let command = self.world.tierce(arguments);
        let environment = self.fake.environment();
        environment
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value))
    }

    /// A build that pushes to `orders`, under that tag.
    fn push(&self, tag: &str, more: &[&str]) -> Command {
        let name = format!("{}/orders:{tag}", self.fake.name());
        let arguments = ["build", "app", "--platform=amd64", "-t", &name, "--push"];
        self.tierce(&[&arguments[..], more].concat())
    }

    fn change(&self, content: &str) {
        self.world.sandbox.write("app/src/app.py", content);
    }

    #[track_caller]
    fn fails(&self, command: Command) -> String {
        self.world.fails_as(1, command)
    }

    #[track_caller]
    fn assert_pushed(&self, tag: &str, output: &Output) {
        let found = self.fake.registry().resolve("orders", tag);
        assert_eq!(found, Some(digest_in(&output.stdout())));
        assert_clean(&Checker::new().registry(self.fake.registry(), "orders", tag));
    }

    fn count(&self, action: &str) -> usize {
        self.fake.calls_of(action).len()
    }

    /// How many bytes of blobs the registry got.
    fn received(&self) -> u64 {
        self.fake.registry().log().blob_bytes_received()
    }
}

#[test]
fn the_first_push_finds_its_token_and_the_second_has_nothing_to_do() {
    let ecr = Ecr::new();
    let output = ecr.push("1", &[]).run().assert_success();
    let line = format!("{}/orders@sha256:", ecr.fake.name());
    assert!(output.stdout().starts_with(&line), "{output:?}");
    ecr.assert_pushed("1", &output);
    assert_eq!(ecr.count("ecr:GetAuthorizationToken"), 1, "one for the run");
    let log = ecr.fake.registry().log();
    assert_eq!(log.count(Method::PATCH, ""), 0, "{log}");

    ecr.fake.registry().clear_log();
    let again = ecr.push("1", &[]).run().assert_success();
    assert_eq!(again.stdout(), output.stdout());
    let log = ecr.fake.registry().log();
    // Once without anything to show, and once with the token.
    assert_eq!(log.len(), 2, "{log}");
    assert_eq!(log.count(Method::HEAD, "/manifests/1"), 2, "{log}");
}

#[test]
fn a_missing_repository_is_told_before_any_byte() {
    for missing in [
        MissingRepository::NameUnknown,
        MissingRepository::DropsPost,
        MissingRepository::DropsUpload,
    ] {
        let builder = FakeEcr::builder().registry(move |it| it.missing_repository(missing));
        let ecr = Ecr::with(builder);
        let stderr = ecr.fails(ecr.push("1", &["--progress=none"]));
        assert!(
            stderr.contains("hint: make it with `tierce ecr create [ECR]/orders`, or push with `--create-repository`"),
            "{missing:?}: {stderr}"
        );
        assert!(stderr.contains("does not exist"), "{missing:?}: {stderr}");
        let log = ecr.fake.registry().log();
        assert_eq!(log.count(Method::PUT, "/manifests/"), 0);
        assert_eq!(ecr.count("ecr:CreateRepository"), 0);

        let output = ecr.push("1", &["--create-repository"]).run();
        let output = output.assert_success();
        ecr.assert_pushed("1", &output);
        assert_eq!(ecr.count("ecr:CreateRepository"), 1);
        let made = format!("made the repository {}/orders", ecr.fake.name());
        assert!(output.stderr().contains(&made), "{}", output.stderr());

        // Where it is, nobody asks to make it.
        ecr.change("def handler(event, context):\n    return 1\n");
        let output = ecr.push("2", &["--create-repository"]).run();
        ecr.assert_pushed("2", &output.assert_success());
        assert_eq!(ecr.count("ecr:CreateRepository"), 1);
    }
}

#[test]
fn a_repository_that_may_not_be_made_names_the_permission() {
    let ecr = Ecr::with(FakeEcr::builder());
    ecr.fake.deny("CreateRepository");
    let stderr = ecr.fails(ecr.push("1", &["--create-repository"]));
    assert!(
        stderr.contains("could not create the repository [ECR]/orders"),
        "{stderr}"
    );
    assert!(stderr.contains("ecr:CreateRepository"), "{stderr}");
}

#[test]
fn a_registry_that_makes_repositories_by_itself_just_works() {
    let builder =
        FakeEcr::builder().registry(|it| it.missing_repository(MissingRepository::Created));
    let ecr = Ecr::with(builder);
    let output = ecr.push("1", &[]).run().assert_success();
    ecr.assert_pushed("1", &output);
    assert_eq!(ecr.count("ecr:DescribeRepositories"), 0);
}

#[test]
fn a_tag_that_stays_is_a_success_for_its_own_image_alone() {
    for may_ask in [true, false] {
        let ecr = Ecr::new();
        ecr.fake.registry().set_immutable_tags("orders", true);
        if !may_ask {
            ecr.fake.deny("DescribeRepositories");
        }
        let output = ecr.push("1", &[]).run().assert_success();
        ecr.assert_pushed("1", &output);
        let again = ecr.push("1", &[]).run().assert_success();
        assert_eq!(again.stdout(), output.stdout());

        ecr.change("def handler(event, context):\n    return 1\n");
        ecr.fake.registry().clear_log();
        let other = ecr.push("1", &["--progress=none"]).run().assert_code(1);
        let stderr = other.stderr();
        let found = digest_in(&output.stdout()).to_string();
        assert!(stderr.contains("immutable"), "{stderr}");
        assert!(stderr.contains(&found), "{stderr}");
        assert!(stderr.contains("hint: push under another tag"), "{stderr}");
        assert_eq!(
            ecr.received() == 0,
            may_ask,
            "{}",
            ecr.fake.registry().log()
        );
        assert_eq!(
            ecr.fake.registry().resolve("orders", "1"),
            Some(digest_in(&output.stdout()))
        );
    }
}

#[test]
fn a_token_that_ends_in_the_middle_is_replaced() {
    for (method, fragment) in [
        (Method::HEAD, "/blobs/"),
        (Method::POST, "/blobs/uploads/"),
        (Method::PUT, "/blobs/uploads/"),
        (Method::PUT, "/manifests/"),
    ] {
        let ecr = Ecr::new();
        let gate = Gate::new();
        let hold = Fault::hold(&gate).on(method.clone(), fragment);
        ecr.fake.registry().inject(hold);
        let child = ecr.push("1", &[]).spawn();
        gate.wait_for(1);
        ecr.fake.registry().expire_tokens();
        gate.open();
        let (code, stdout, stderr) = ended(child);
        assert_eq!(code, Some(0), "{method} {fragment}: {stderr}");
        assert_eq!(
            ecr.fake.registry().resolve("orders", "1"),
            Some(digest_in(&stdout))
        );
        assert_eq!(ecr.count("ecr:GetAuthorizationToken"), 2, "{method}");
    }
}

#[test]
fn a_login_is_heard_first_and_one_that_has_ended_does_not_stand_in_the_way() {
    let ecr = Ecr::new();
    let password = ecr.fake.registry().issue_password();
    let config = DockerConfig::new().auth(ecr.fake.name(), "AWS", &password);
    ecr.world.sandbox.docker_config(&config);
    let output = ecr.push("1", &[]).run().assert_success();
    ecr.assert_pushed("1", &output);
    assert_eq!(ecr.count("ecr:GetAuthorizationToken"), 0);

    ecr.fake.registry().expire_tokens();
    ecr.change("def handler(event, context):\n    return 1\n");
    let output = ecr.push("2", &[]).run().assert_success();
    ecr.assert_pushed("2", &output);
    assert_eq!(ecr.count("ecr:GetAuthorizationToken"), 1);
}

#[test]
fn without_credentials_the_ways_to_have_some_are_named() {
    let ecr = Ecr::new();
    let name = format!("{}/orders:1", ecr.fake.name());
    let arguments = ["build", "app", "--platform=amd64", "-t", &name, "--push"];
    let bare = ecr
        .tierce(&arguments)
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let stderr = ecr.fails(bare);
    assert!(stderr.contains("--aws-profile"), "{stderr}");
}

#[test]
fn too_many_images_at_once_are_waited_for() {
    let ecr = Ecr::new();
    let message = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#;
    let fault = Fault::too_many_requests(0).with_body(message);
    let fault = fault.on(Method::PUT, "/manifests/").times(2);
    ecr.fake.registry().inject(fault);
    let output = ecr.push("1", &["-v"]).run().assert_success();
    ecr.assert_pushed("1", &output);
    let said = output.stderr();
    assert_eq!(said.matches("trying again").count(), 2, "{said}");
    assert!(said.contains("429 TOOMANYREQUESTS"), "{said}");
}

/// Every file below, with what is in it.
fn files(directory: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if let Ok(bytes) = fs::read(&path) {
            into.push((path.display().to_string(), bytes));
        }
    }
}

/// Looks for everything secret in what runs say and leave, and where no server should see it.
#[track_caller]
fn assert_no_secret(ecr: &Ecr, outputs: &[Output]) {
    let mut texts = Vec::new();
    for output in outputs {
        texts.push(("stdout".to_owned(), output.stdout().into_bytes()));
        texts.push(("stderr".to_owned(), output.stderr().into_bytes()));
    }
    files(ecr.world.sandbox.root(), &mut texts);
    let secrets = ecr.fake.secrets();
    assert!(secrets.len() > 3, "the runs have used some");
    for secret in &secrets {
        for (place, text) in &texts {
            let found = text
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{place} has {secret}");
        }
    }
    // Credentials are for their own host: never in an address, and never at the storage.
    for log in [
        ecr.fake.registry().log(),
        ecr.fake.public().expect("it was asked for").log(),
    ] {
        for record in log.records() {
            let secret = secrets.iter().find(|it| record.query.contains(*it));
            assert!(secret.is_none(), "{} has it in its query", record.path);
            if record.endpoint == tierce_testkit::Endpoint::Storage {
                assert_eq!(record.authorization_seen(), None, "{}", record.path);
            }
        }
    }
}

#[test]
fn no_log_no_error_and_no_file_has_a_secret() {
    let ecr = Ecr::new();
    let mut outputs = Vec::new();
    let levels: [&[&str]; 5] = [&["--quiet"], &[], &["-v"], &["-vv"], &["-vvv", "--json"]];
    for (number, level) in levels.iter().enumerate() {
        ecr.change(&format!("NUMBER = {number}\n"));
        let tag = number.to_string();
        outputs.push(ecr.push(&tag, level).run().assert_success());
    }
    // What fails talks most.
    let registry = ecr.fake.registry();
    for (number, fault) in [
        Fault::status(401).on(Method::POST, "/uploads/").always(),
        Fault::status(403).on(Method::POST, "/uploads/").always(),
        Fault::status(400).on(Method::PUT, "/uploads/").always(),
        Fault::disconnect().on(Method::PUT, "/manifests/").always(),
        Fault::header("location", "https://u:pw@a.example/x?X-Amz-Signature=s")
            .on(Method::POST, "/uploads/")
            .always(),
    ]
    .into_iter()
    .enumerate()
    {
        registry.inject(fault);
        ecr.change(&format!("FAILS = {number}\n"));
        outputs.push(ecr.push("fails", &["-vv"]).run().assert_code(1));
        registry.clear_faults();
    }
    ecr.fake.deny("GetAuthorizationToken");
    outputs.push(ecr.push("denied", &["-vv"]).run().assert_code(1));
    ecr.fake.allow("GetAuthorizationToken");
    // A copy reads from where it has written, by way of the storage.
    let from = format!("{}/orders:1", ecr.fake.name());
    let copied = ecr.tierce(&["copy", "-vv", &from, "oci:copy:1"]).run();
    outputs.push(copied.assert_success());
    for output in &outputs {
        assert!(!output.stderr().contains("X-Amz-Signature=s"), "{output:?}");
        assert!(!output.stderr().contains("u:pw@"), "{output:?}");
    }
    assert_no_secret(&ecr, &outputs);
}
