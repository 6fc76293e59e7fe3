//! `tierce ecr` against a fake ECR: repositories made, shown and tidied, and logins for other tools.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::check::{Checker, assert_clean};
use tierce_testkit::ecr::Function;
use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::sandbox::{Command, DockerConfig, HelperBehaviour, Output};
use tierce_testkit::{FakeEcr, Fault, Gate, Method};

use crate::support::{World, ended};

const DAY: u64 = 24 * 60 * 60;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A sandbox and an ECR with the repository `orders`.
struct Ecr {
    world: World,
    fake: FakeEcr,
}

impl Ecr {
    fn new() -> Self {
        Self::with(FakeEcr::builder().repository("orders").start())
    }

    fn with(fake: FakeEcr) -> Self {
        let mut world = World::new();
        world.call(fake.control_endpoint(), "AWS");
        Self { world, fake }
    }

    /// A run that finds the fake as the SDKs do.
    fn tierce(&self, arguments: &[&str]) -> Command {
        let command = self.world.tierce(arguments);
        let environment = self.fake.environment();
        environment
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> Output {
        self.tierce(arguments).run().assert_success()
    }

    #[track_caller]
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        self.world.fails_as(code, self.tierce(arguments))
    }

    /// The answer of a run with `--json`.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&output.stdout()).unwrap()
    }

    fn orders(&self) -> String {
        format!("{}/orders", self.fake.name())
    }

    /// Puts an image of its own into `orders`, pushed so many days ago.
    fn image(&self, tag: &str, days: u64) -> Digest {
        self.put(
            Some(tag),
            IMAGE,
            &json!({"annotations": {"name": tag}}),
            days,
        )
    }

    fn index(&self, tag: &str, days: u64, children: &[Digest]) -> Digest {
        let children: Vec<Value> = children
            .iter()
            .map(|digest| json!({"mediaType": IMAGE, "digest": digest, "size": 1}))
            .collect();
        self.put(Some(tag), INDEX, &json!({"manifests": children}), days)
    }

    fn put(&self, tag: Option<&str>, media_type: &str, more: &Value, days: u64) -> Digest {
        let mut manifest = json!({"schemaVersion": 2, "mediaType": media_type});
        if media_type == IMAGE {
            manifest["config"] = json!({
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(b"{}"),
                "size": 2,
            });
            manifest["layers"] = json!([]);
        }
        for (name, value) in more.as_object().unwrap() {
            manifest[name] = value.clone();
        }
        let registry = self.fake.registry();
        let digest = registry.put_manifest("orders", tag, media_type, manifest.to_string());
        self.fake
            .set_pushed_at("orders", &digest, now() - days * DAY);
        digest
    }

    /// What is in `orders`.
    fn left(&self) -> BTreeSet<Digest> {
        self.fake
            .registry()
            .manifests("orders")
            .into_iter()
            .collect()
    }

    /// Demands that no secret was said, and none kept but in `but`.
    #[track_caller]
    fn assert_no_secret(&self, said: &str, but: &[&str]) {
        let secrets = self.fake.secrets();
        assert!(!secrets.is_empty());
        for secret in &secrets {
            assert!(!said.contains(secret.as_str()), "a secret was said: {said}");
            for path in self.world.files().into_keys() {
                let name = path.to_string_lossy();
                if but.iter().any(|but| name.contains(but)) {
                    continue;
                }
                let text = fs::read(&path).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                assert!(!text.contains(secret.as_str()), "{name} has a secret in it");
            }
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn said(output: &Output) -> String {
    format!("{}{}", output.stdout(), output.stderr())
}

#[test]
fn a_repository_is_made_once() {
    let ecr = Ecr::new();
    let name = format!("{}/team/new", ecr.fake.name());
    let output = ecr.ok(&["ecr", "create", &name, "-vv"]);
    assert_eq!(output.stdout(), format!("{name}\n"));
    assert!(output.stderr().contains(&format!("made {name}\n")));
    ecr.assert_no_secret(&said(&output), &[]);
    assert!(
        ecr.fake
            .registry()
            .repositories()
            .contains(&"team/new".to_owned())
    );
    // Again: the same answer, and nothing else is done.
    let output = ecr.ok(&["ecr", "create", &name]);
    assert_eq!(output.stdout(), format!("{name}\n"));
    assert_eq!(output.stderr(), format!("{name} was there\n"));
    assert!(ecr.fake.calls_of("PutImageTagMutability").is_empty());
}

#[test]
fn the_caller_s_own_registry_needs_no_host() {
    let ecr = Ecr::new();
    let output = ecr.ok(&["ecr", "create", "team/new"]);
    assert_eq!(output.stdout(), format!("{}/team/new\n", ecr.fake.name()));
    // --region says where, against what is configured.
    let other = ecr.tierce(&["ecr", "describe", "orders", "--region", "us-east-1"]);
    drop(other.run().assert_code(1));
    let calls = ecr.fake.calls();
    let regions: Vec<_> = calls
        .iter()
        .filter_map(|call| call.region.as_deref())
        .collect();
    assert_eq!(regions.first(), Some(&"eu-west-1"));
    assert_eq!(regions.last(), Some(&"us-east-1"));
}

#[test]
fn a_new_repository_is_as_it_was_asked_for() {
    let ecr = Ecr::new();
    ecr.world.sandbox.write("policy.json", POLICY);
    let made = ecr.json(&[
        "ecr",
        "create",
        "new",
        "--immutable-tags",
        "--scan-on-push",
        "--kms-key=alias/images",
        "--resource-tag=team=shop",
        "--resource-tag=env=prod",
        "--lifecycle-policy=policy.json",
    ]);
    assert_eq!(made["created"], true);
    assert_eq!(made["tagMutability"], "immutable");
    assert_eq!(made["scanOnPush"], true);
    assert_eq!(
        made["encryption"],
        json!({"type": "KMS", "kmsKey": "alias/images"})
    );
    assert_eq!(ecr.fake.lifecycle_policy("new").as_deref(), Some(POLICY));
    let call = &ecr.fake.calls_of("CreateRepository")[0];
    assert_eq!(
        call.body["tags"],
        json!([{"Key": "env", "Value": "prod"}, {"Key": "team", "Value": "shop"}])
    );
}

const POLICY: &str = r#"{
  "rules": [{
    "rulePriority": 1,
    "selection": {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 5},
    "action": {"type": "expire"}
  }]
}
"#;

#[test]
fn a_repository_that_is_there_is_brought_in_line() {
    let ecr = Ecr::new();
    ecr.world.sandbox.write("policy.json", POLICY);
    let arguments = [
        "ecr",
        "create",
        "orders",
        "--immutable-tags",
        "--scan-on-push",
        "--encryption=aes256",
        "--resource-tag=team=shop",
        "--lifecycle-policy=policy.json",
    ];
    let output = ecr.ok(&arguments);
    assert_eq!(
        output.stderr(),
        format!(
            "{} was there; set: immutable tags, scan on push, resource tags, lifecycle policy\n",
            ecr.orders()
        )
    );
    let shown = ecr.json(&["ecr", "describe", "orders"]);
    assert_eq!(shown["tagMutability"], "immutable");
    assert_eq!(shown["scanOnPush"], true);
    assert_eq!(shown["resourceTags"], json!({"team": "shop"}));
    assert_eq!(shown["lifecyclePolicy"]["rules"][0]["rulePriority"], 1);
    // What is right already is not set again.
    ecr.fake.clear_calls();
    drop(ecr.ok(&arguments[..5]));
    for action in ["PutImageTagMutability", "PutImageScanningConfiguration"] {
        assert!(ecr.fake.calls_of(action).is_empty(), "{action}");
    }
    // And what is not asked for stays as it is.
    drop(ecr.ok(&["ecr", "create", "orders"]));
    let shown = ecr.json(&["ecr", "describe", "orders"]);
    assert_eq!(shown["tagMutability"], "immutable");
}

#[test]
fn a_key_cannot_be_changed() {
    let ecr = Ecr::new();
    let stderr = ecr.fails(1, &["ecr", "create", "orders", "--kms-key=1234abcd"]);
    insta::assert_snapshot!(stderr, @r"
    error: could not make the repository `orders`
      caused by: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/orders is there and encrypted by AES256; KMS with 1234abcd was asked for
    hint: a repository keeps its key: take another name, or leave out --encryption and --kms-key
    ");
    // Nothing of the rest was done either.
    ecr.world.sandbox.write("policy.json", POLICY);
    let arguments = ["--immutable-tags", "--lifecycle-policy=policy.json"];
    let all = [
        &["ecr", "create", "orders", "--encryption=kms"],
        &arguments[..],
    ]
    .concat();
    drop(ecr.fails(1, &all));
    assert_eq!(ecr.fake.lifecycle_policy("orders"), None);
    assert!(ecr.fake.calls_of("PutImageTagMutability").is_empty());
}

#[test]
fn refusals_are_quoted_and_name_what_is_needed() {
    let ecr = Ecr::new();
    ecr.fake.deny("CreateRepository");
    let stderr = ecr.fails(1, &["ecr", "create", "new"]);
    insta::assert_snapshot!(stderr, @r"
    error: could not make the repository `new`
      caused by: AWS refused ecr:CreateRepository in eu-west-1 with 400 AccessDeniedException: User: arn:aws:iam::123456789012:user/testkit is not authorized to perform: ecr:CreateRepository on resource: arn:aws:ecr:eu-west-1:123456789012:repository/new because no identity-based policy allows the ecr:CreateRepository action
    hint: the caller needs ecr:CreateRepository; `aws sts get-caller-identity` tells who that is
    ");
    ecr.fake.allow("CreateRepository");
    let stderr = ecr.fails(1, &["ecr", "describe", "absent"]);
    insta::assert_snapshot!(stderr, @r"
    error: AWS refused ecr:DescribeRepositories in eu-west-1 with 400 RepositoryNotFoundException: The repository with name 'absent' does not exist in the registry with id '123456789012'
    hint: make it with `tierce ecr create`, or check its name and region
    ");
    // AWS wants fewer requests at first, and then it is done.
    ecr.fake.throttle("CreateRepository", 2);
    drop(ecr.ok(&["ecr", "create", "new"]));
    assert_eq!(ecr.fake.calls_of("CreateRepository").len(), 4);
}

#[test]
fn bad_usage_asks_nobody() {
    let ecr = Ecr::new();
    ecr.world.sandbox.write("broken.json", "{\n\"rules\": [}\n");
    ecr.world.sandbox.write("empty.json", "{\"rules\": []}");
    for (code, arguments) in [
        (2, &["ecr", "create", "orders:1"][..]),
        (2, &["ecr", "create", "registry.example/orders"]),
        (2, &["ecr", "create", "public.ecr.aws/x/orders"]),
        (2, &["ecr", "create", "Orders"]),
        (
            2,
            &[
                "ecr",
                "create",
                "orders",
                "--encryption=aes256",
                "--kms-key=k",
            ],
        ),
        (
            1,
            &["ecr", "create", "orders", "--lifecycle-policy=broken.json"],
        ),
        (
            1,
            &["ecr", "create", "orders", "--lifecycle-policy=empty.json"],
        ),
        (
            1,
            &["ecr", "create", "orders", "--lifecycle-policy=absent.json"],
        ),
        (2, &["ecr", "prune", "orders"]),
        (2, &["ecr", "prune", "orders", "--older-than=30"]),
        (2, &["ecr", "login", "registry.example"]),
        (2, &["ecr", "login", "--print", "--json"]),
        (2, &["ecr", "login", "--print", "--auth-file=x"]),
    ] {
        drop(ecr.fails(code, arguments));
    }
    assert!(ecr.fake.calls().is_empty());
    let name = ecr.orders();
    let stderr = ecr.fails(2, &["ecr", "describe", &name, "--region=us-east-1"]);
    assert!(stderr.contains("is not that of"), "{stderr}");
}

#[test]
fn who_has_no_credentials_is_told_how_to_get_some() {
    let ecr = Ecr::new();
    let without = |arguments: &[&str]| {
        let command = ecr.tierce(arguments).env_remove("AWS_ACCESS_KEY_ID");
        command.env_remove("AWS_SECRET_ACCESS_KEY")
    };
    let stderr = ecr
        .world
        .fails_as(1, without(&["ecr", "describe", "orders"]));
    insta::assert_snapshot!(stderr, @r"
    error: no AWS credentials were found: not in the environment, in the shared config files, or from a role of the container or the instance
    hint: name a profile with `--aws-profile` or AWS_PROFILE, log in with `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; `docker login` does too
    ");
    let arguments = ["ecr", "describe", "orders", "--aws-profile=absent"];
    let stderr = ecr.world.fails_as(1, without(&arguments));
    insta::assert_snapshot!(stderr, @r"
    error: no AWS credentials were found in the profile `absent`
    hint: name a profile with `--aws-profile` or AWS_PROFILE, log in with `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; `docker login` does too
    ");
    let no_region = ecr
        .tierce(&["ecr", "describe", "orders"])
        .env_remove("AWS_REGION");
    insta::assert_snapshot!(ecr.world.fails_as(1, no_region), @r"
    error: no AWS region is configured
    hint: name one with `--region` or AWS_REGION, or name the repository with its host
    ");
    assert!(ecr.fake.calls().is_empty());
    // Unknown credentials are another thing.
    let unknown = ecr.tierce(&["ecr", "describe", "orders"]);
    let unknown = unknown.env("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN");
    insta::assert_snapshot!(ecr.world.fails_as(1, unknown), @r"
    error: AWS refused ecr:DescribeRepositories in eu-west-1 with 400 UnrecognizedClientException: The security token included in the request is invalid.
    hint: `aws sts get-caller-identity` tells who you are; `aws sso login` renews a session
    ");
}

#[test]
fn profiles_and_roles_say_as_whom() {
    let ecr = Ecr::new();
    let (id, secret) = ecr.fake.add_access_key();
    let config = ecr.world.sandbox.write(
        "aws-config",
        format!(
            "[profile shop]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             region = eu-west-1\n"
        ),
    );
    let run = |arguments: &[&str]| {
        let command = ecr
            .tierce(arguments)
            .env("AWS_CONFIG_FILE", &config)
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env_remove("AWS_REGION");
        ecr.fake.clear_calls();
        drop(command.run().assert_success());
        ecr.fake.calls()
    };
    let calls = run(&["ecr", "describe", "orders", "--aws-profile=shop"]);
    assert!(
        calls
            .iter()
            .all(|call| call.access_key.as_ref() == Some(&id))
    );
    let role = "arn:aws:iam::123456789012:role/pusher";
    let calls = run(&[
        "ecr",
        "describe",
        "orders",
        "--aws-profile=shop",
        "--aws-role",
        role,
    ]);
    let assume = &calls[0];
    assert_eq!(assume.action, "AssumeRole");
    assert_eq!(assume.body["RoleArn"], role);
    assert_eq!(assume.body["RoleSessionName"], "tierce");
    assert_eq!(assume.access_key.as_ref(), Some(&id));
    let with_role = |key: &Option<String>| key.as_ref().is_some_and(|key| key.starts_with("ASIA"));
    assert!(calls[1..].iter().all(|call| with_role(&call.access_key)));
    // It is assumed once for a run.
    assert_eq!(ecr.fake.calls_of("AssumeRole").len(), 1);
}

#[test]
fn a_role_that_may_not_be_assumed_is_named() {
    let ecr = Ecr::new();
    ecr.fake.deny("AssumeRole");
    let role = "--aws-role=arn:aws:iam::123456789012:role/pusher";
    let stderr = ecr.fails(1, &["ecr", "describe", "orders", role]);
    insta::assert_snapshot!(stderr, @r"
    error: the AWS credentials of the role `arn:aws:iam::123456789012:role/pusher` cannot be used
      caused by: AccessDenied: User: arn:aws:iam::123456789012:user/testkit is not authorized to perform: sts:AssumeRole on resource: * because no identity-based policy allows the sts:AssumeRole action
    hint: `aws sts get-caller-identity` tells who you are; `aws sso login` renews a session
    ");
}

#[test]
fn the_endpoint_of_one_service_is_heeded() {
    let ecr = Ecr::new();
    // Also for hosts of other forms, which no endpoint of one's own has.
    let host = ecr.fake.name().replace("dkr.ecr.", "dkr.ecr-fips.");
    let command = ecr
        .tierce(&["ecr", "describe", &format!("{host}/orders")])
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        .env("AWS_ENDPOINT_URL_ECR", ecr.fake.control_endpoint());
    drop(command.run().assert_success());
    assert!(!ecr.fake.calls_of("DescribeRepositories").is_empty());
}

#[test]
fn nobody_at_the_endpoint_is_told() {
    let ecr = Ecr::new();
    let command = ecr
        .tierce(&["ecr", "describe", "orders"])
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let stderr = ecr.world.fails_as(1, command);
    assert!(
        stderr.starts_with("error: AWS gave no answer to ecr:DescribeRepositories in eu-west-1\n"),
        "{stderr}"
    );
    assert!(stderr.contains("Connection refused"), "{stderr}");
    assert!(stderr.contains("\nhint: check "), "{stderr}");
}

#[test]
fn a_login_goes_where_docker_looks() {
    let ecr = Ecr::new();
    let output = ecr.ok(&["ecr", "login", "-vv"]);
    assert_eq!(output.stdout(), "");
    let path = ecr.world.sandbox.home().join(".docker/config.json");
    let text = fs::read_to_string(&path).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let auth = config["auths"][ecr.fake.name()]["auth"].as_str().unwrap();
    assert!(ecr.fake.secrets().contains(&auth.to_owned()));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    ecr.assert_no_secret(&said(&output), &["config.json"]);
    // Of a registry that is named the host is kept as it is written, and a repository does too.
    let other = ecr.fake.name().replace("dkr.ecr.", "dkr.ecr-fips.");
    let said = ecr.json(&["ecr", "login", &format!("{other}/orders:1")]);
    assert_eq!(said["registry"], other);
    assert_eq!(said["file"], path.to_string_lossy().as_ref());
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.contains(&other) && text.contains(ecr.fake.name()),
        "{text}"
    );
}

#[test]
fn all_else_in_the_file_stays() {
    let ecr = Ecr::new();
    let mut before = json!({
        "auths": {
            "registry.example": {"auth": "dXNlcjpwYXNz", "email": "a@b"},
            ecr.fake.name(): {"auth": "b2xkOm9sZA==", "identitytoken": "old"},
        },
        "HttpHeaders": {"User-Agent": "Docker-Client/20.10.5 (linux)"},
        "proxies": {"default": {"httpProxy": "http://proxy:3128"}},
        "psFormat": "table {{.ID}}\\t{{.Names}}",
        "credHelpers": {"gcr.io": "gcloud"},
        "plugins": {"x": {"hooks": "a,b"}},
        "experimental": "enabled",
        "number": 1.5,
        "nothing": null,
    });
    let elsewhere = ecr
        .world
        .sandbox
        .write("dotfiles/docker.json", before.to_string());
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o644)).unwrap();
    let directory = ecr.world.sandbox.home().join(".docker");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("config.json");
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    drop(ecr.ok(&["ecr", "login"]));
    assert!(path.is_symlink());
    let after = fs::read_to_string(&elsewhere).unwrap();
    let after: Value = serde_json::from_str(&after).unwrap();
    let entry = after["auths"][ecr.fake.name()].clone();
    let auth = entry["auth"].as_str().unwrap().to_owned();
    assert!(ecr.fake.secrets().contains(&auth));
    assert_eq!(entry, json!({"auth": auth}));
    before["auths"][ecr.fake.name()] = entry;
    assert_eq!(after, before);
    let mode = fs::metadata(&elsewhere).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_that_cannot_be_understood_is_left_alone() {
    let ecr = Ecr::new();
    for text in ["{", "[]", r#"{"auths": []}"#, r#"{"auths": 1}"#] {
        let path = ecr.world.sandbox.write("config.json", text);
        let stderr = ecr.fails(1, &["ecr", "login", "--auth-file=config.json"]);
        assert!(stderr.contains("could not keep the login"), "{stderr}");
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }
    for text in ["", "\n", "{}", r#"{"auths": null}"#] {
        let path = ecr.world.sandbox.write("config.json", text);
        drop(ecr.ok(&["ecr", "login", "--auth-file=config.json"]));
        assert!(fs::read_to_string(path).unwrap().contains("\"auth\""));
    }
}

#[test]
fn two_logins_at_once_keep_both() {
    let ecr = Ecr::new();
    let file = ecr.world.sandbox.home().join(".docker/config.json");
    let directory = file.parent().unwrap();
    fs::create_dir_all(directory).unwrap();
    // Another one is about to write.
    let other = fs::File::open(directory).unwrap();
    other.lock().unwrap();
    let gate = Gate::new();
    ecr.fake
        .inject_control(Fault::hold(&gate).on(Method::POST, "/"));
    let run = ecr.tierce(&["ecr", "login"]).spawn();
    gate.wait_for(1);
    gate.open();
    let theirs = json!({"auths": {"other.example": {"auth": "eDp5"}}});
    fs::write(&file, theirs.to_string()).unwrap();
    other.unlock().unwrap();
    let (code, _, stderr) = ended(run);
    assert_eq!(code, Some(0), "{stderr}");
    let config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let auths = config["auths"].as_object().unwrap();
    assert_eq!(auths["other.example"], theirs["auths"]["other.example"]);
    assert!(auths.contains_key(ecr.fake.name()), "{auths:?}");
}

#[test]
fn nothing_of_a_login_that_was_killed_stays() {
    let ecr = Ecr::new();
    let directory = ecr.world.sandbox.home().join(".docker");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(".tierce-login-x1"), "a token").unwrap();
    drop(ecr.ok(&["ecr", "login"]));
    let names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["config.json"]);
}

#[test]
fn a_link_to_nothing_yet_stays_a_link() {
    let ecr = Ecr::new();
    let file = ecr.world.sandbox.home().join(".docker/config.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("../elsewhere/docker.json", &file).unwrap();
    drop(ecr.ok(&["ecr", "login"]));
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
    let target = ecr.world.sandbox.home().join("elsewhere/docker.json");
    assert!(
        fs::read_to_string(&target)
            .unwrap()
            .contains(ecr.fake.name())
    );
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&target), 0o600);
    assert_eq!(mode(target.parent().unwrap()), 0o700);
}

#[test]
fn a_helper_keeps_what_is_its_own() {
    let ecr = Ecr::new();
    for (config, helper) in [
        (
            DockerConfig::new().cred_helper(ecr.fake.name(), "own"),
            "own",
        ),
        (DockerConfig::new().creds_store("all"), "all"),
        (
            DockerConfig::new()
                .creds_store("all")
                .cred_helper(ecr.fake.name(), "own"),
            "own",
        ),
    ] {
        let path = ecr.world.sandbox.docker_config(&config);
        let before = fs::read(&path).unwrap();
        let kept = ecr.world.path("kept");
        let script = format!("#!/bin/sh\necho \"$1\" > {0}\ncat >> {0}\n", kept.display());
        let program = ecr
            .world
            .sandbox
            .root()
            .join(format!("bin/docker-credential-{helper}"));
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let said = ecr.json(&["ecr", "login"]);
        assert_eq!(said["helper"], helper);
        assert_eq!(fs::read(&path).unwrap(), before);
        let text = fs::read_to_string(&kept).unwrap();
        let (verb, entry) = text.split_once('\n').unwrap();
        let entry: Value = serde_json::from_str(entry).unwrap();
        assert_eq!(verb, "store");
        assert_eq!(entry["ServerURL"], ecr.fake.name());
        assert_eq!(entry["Username"], "AWS");
        let secret = entry["Secret"].as_str().unwrap().to_owned();
        assert!(ecr.fake.secrets().contains(&secret));
        fs::remove_file(&program).unwrap();
    }
}

#[test]
fn a_helper_that_fails_is_an_error_without_the_secret() {
    let ecr = Ecr::new();
    let config = DockerConfig::new().creds_store("broken");
    ecr.world.sandbox.docker_config(&config);
    let stderr = ecr.fails(1, &["ecr", "login"]);
    assert!(
        stderr.contains("`docker-credential-broken` is not installed"),
        "{stderr}"
    );
    ecr.world.sandbox.credential_helper(
        "broken",
        &HelperBehaviour::Fail {
            code: 1,
            message: "no key ring".to_owned(),
        },
    );
    let stderr = ecr.fails(1, &["ecr", "login"]);
    assert!(stderr.contains("failed: no key ring"), "{stderr}");
    // One that repeats what it was given.
    let program = ecr
        .world
        .sandbox
        .root()
        .join("bin/docker-credential-broken");
    fs::write(&program, "#!/bin/sh\ncat >&2\nexit 1\n").unwrap();
    let stderr = ecr.fails(1, &["ecr", "login", "-vv"]);
    assert!(stderr.contains("(secret)"), "{stderr}");
    ecr.assert_no_secret(&stderr, &[]);
}

#[test]
fn a_printed_password_is_all_that_is_printed() {
    let ecr = Ecr::new();
    let output = ecr.ok(&["ecr", "login", "--print", "-vv"]);
    let stdout = output.stdout();
    let password = stdout.strip_suffix('\n').unwrap();
    assert!(!password.contains('\n'));
    assert!(ecr.fake.secrets().contains(&password.to_owned()));
    ecr.assert_no_secret(&output.stderr(), &[]);
    assert!(!ecr.world.sandbox.home().join(".docker").exists());
}

#[test]
fn ecr_public_is_logged_in_to_from_its_own_region() {
    let ecr = Ecr::with(FakeEcr::builder().with_public().start());
    let output = ecr.ok(&["ecr", "login", "--print", "public.ecr.aws"]);
    assert!(
        ecr.fake
            .secrets()
            .contains(&output.stdout().trim_end().to_owned())
    );
    let calls = ecr.fake.calls_of("ecr-public:GetAuthorizationToken");
    assert_eq!(calls[0].region.as_deref(), Some("us-east-1"));
}

#[test]
fn a_description_shows_settings_and_images() {
    let mut ecr = Ecr::new();
    let stdout = ecr.ok(&["ecr", "describe", "orders"]).stdout();
    assert!(
        stdout.contains("images           0 images, 0 tagged, up to 0 B\n"),
        "{stdout}"
    );
    let one = ecr.image("1.0", 3);
    let two = ecr.image("1.1", 2);
    ecr.fake.registry().tag("orders", "latest", two);
    for (digest, name) in [(one, "ONE"), (two, "TWO")] {
        ecr.world.call(digest, name);
    }
    let shown = ecr.json(&["ecr", "describe", "orders"]);
    assert_eq!(shown["images"]["count"], 2);
    assert_eq!(shown["images"]["tagged"], 2);
    assert_eq!(
        shown["images"]["newest"][0]["tags"],
        json!(["1.1", "latest"])
    );
    assert_eq!(shown["images"]["newest"][1]["digest"], one.to_string());
    assert_eq!(shown["repository"], ecr.orders());
    assert_eq!(shown["lifecyclePolicy"], Value::Null);
    let stdout = ecr
        .world
        .shown(&ecr.ok(&["ecr", "describe", "orders"]).stdout());
    insta::with_settings!({filters => vec![(r"\d{4}-\d\d-\d\dT[\d:]+Z", "[TIME]")]}, {
        insta::assert_snapshot!(stdout, @r"
        repository       123456789012.dkr.ecr.eu-west-1.amazonaws.com/orders
        created          [TIME]
        tags             mutable
        scan on push     no
        encryption       AES256
        lifecycle policy none
        images           2 images, 2 tagged, up to 4 B
         image                                                                    tags        pushed                size
         [TWO]  1.1 latest  [TIME]   2 B
         [ONE]  1.0         [TIME]   2 B
        ");
    });
    // What may not be asked is not there, and no more than that.
    ecr.fake.deny("GetLifecyclePolicy");
    ecr.fake.deny("ListTagsForResource");
    let stdout = ecr.ok(&["ecr", "describe", "orders"]).stdout();
    assert!(
        stdout.contains("lifecycle policy not for these credentials to see\n"),
        "{stdout}"
    );
    ecr.fake.deny("DescribeImages");
    drop(ecr.fails(1, &["ecr", "describe", "orders"]));
}

#[test]
fn old_images_are_deleted() {
    let mut ecr = Ecr::new();
    let digests: Vec<Digest> = [("1.0", 40), ("1.1", 30), ("1.2", 20), ("1.3", 10)]
        .iter()
        .map(|(tag, days)| ecr.image(tag, *days))
        .collect();
    for (digest, name) in digests.iter().zip(["ONE", "TWO", "THREE", "FOUR"]) {
        ecr.world.call(digest, name);
    }
    let arguments = ["ecr", "prune", "orders", "--keep=1", "--older-than=25d"];
    // A dry run says the same and does nothing.
    let dry = ecr.ok(&[&arguments[..], &["--dry-run"]].concat());
    assert_eq!(ecr.left().len(), 4);
    assert!(ecr.fake.calls_of("BatchDeleteImage").is_empty());
    let done = ecr.ok(&arguments);
    assert_eq!(dry.stdout(), done.stdout());
    assert_eq!(ecr.left(), BTreeSet::from([digests[2], digests[3]]));
    let shown = ecr
        .world
        .shown(&format!("{}{}", done.stderr(), done.stdout()));
    insta::with_settings!({filters => vec![(r"\d{4}-\d\d-\d\dT[\d:]+Z", "[TIME]")]}, {
        insta::assert_snapshot!(shown, @r"
        deleted 2 images of up to 4 B, kept 2 images
         image                                                                    tags  pushed                size  why
         [ONE]  1.0   [TIME]   2 B  not among the newest 1, older than 25 days
         [TWO]  1.1   [TIME]   2 B  not among the newest 1, older than 25 days
        ");
    });
    // And again: there is nothing to do.
    let again = ecr.ok(&arguments);
    assert_eq!(again.stdout(), "");
    assert_eq!(ecr.left().len(), 2);
}

#[test]
fn no_image_that_a_function_runs_is_deleted() {
    let ecr = Ecr::new();
    let digests: Vec<Digest> = (0..4)
        .map(|n| ecr.image(&format!("1.{n}"), 50 - n))
        .collect();
    let uri = ecr.orders();
    let resolved = |digest: &Digest| format!("{uri}@{digest}");
    ecr.fake.add_function(Function::archive("zipped"));
    let latest = Function::image("shop", &format!("{uri}:1.0"), &resolved(&digests[0]));
    ecr.fake.add_function(latest);
    // A version of long ago may still be what an alias means.
    let old = Function::image("shop", &format!("{uri}:1.1"), &resolved(&digests[1]));
    ecr.fake.add_function(old.version(3));
    let output = ecr.json(&["ecr", "prune", "orders", "--keep=0"]);
    assert_eq!(ecr.left(), BTreeSet::from([digests[0], digests[1]]));
    let kept = output["kept"].as_array().unwrap();
    let reasons: Vec<_> = kept
        .iter()
        .map(|kept| kept["reason"].as_str().unwrap())
        .collect();
    assert_eq!(reasons, ["run by shop:3", "run by shop:$LATEST"]);
    let deleted = output["deleted"].as_array().unwrap();
    assert_eq!(deleted.len(), 2);
    assert_eq!(deleted[0]["reason"], "not among the newest 0");
}

/// Begins a prune that keeps no image, does something when it is about to read the functions for the
/// second time, and lets it go on.
fn prune_meanwhile(ecr: &Ecr, meanwhile: impl FnOnce()) -> (Option<i32>, String, String) {
    let gate = Gate::new();
    let second = Fault::hold(&gate)
        .on(Method::GET, "/2015-03-31/functions")
        .nth(2);
    ecr.fake.inject_control(second);
    let run = ecr.tierce(&["ecr", "prune", "orders", "--keep=0"]).spawn();
    gate.wait_for(1);
    meanwhile();
    gate.open();
    ended(run)
}

#[test]
fn a_function_deployed_meanwhile_keeps_its_image() {
    let ecr = Ecr::new();
    let (one, two) = (ecr.image("1.0", 50), ecr.image("1.1", 40));
    let uri = ecr.orders();
    let (code, stdout, stderr) = prune_meanwhile(&ecr, || {
        let function = Function::image("shop", &uri, &format!("{uri}@{one}"));
        ecr.fake.add_function(function);
    });
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(ecr.left(), BTreeSet::from([one]));
    assert!(
        stdout.contains(&two.to_string()) && !stdout.contains(&one.to_string()),
        "{stdout}"
    );
    assert_eq!(stderr, "deleted 1 image of up to 2 B, kept 1 image\n");
}

#[test]
fn functions_are_read_again_before_anything_goes() {
    let ecr = Ecr::new();
    ecr.image("1.0", 50);
    drop(ecr.ok(&["ecr", "prune", "orders", "--keep=0"]));
    let calls = ecr.fake.calls();
    let at = |action: &str| -> Vec<usize> {
        let calls = calls.iter().enumerate();
        calls
            .filter(|(_, call)| call.action == action)
            .map(|(at, _)| at)
            .collect()
    };
    let (read, deleted) = (at("ListFunctions"), at("BatchDeleteImage"));
    assert_eq!((read.len(), deleted.len()), (2, 1));
    assert_eq!(read[1] + 1, deleted[0]);
}

#[test]
fn functions_that_cannot_be_listed_stop_it() {
    let ecr = Ecr::new();
    let digest = ecr.image("1.0", 50);
    let uri = ecr.orders();
    let function = Function::image("shop", &uri, &format!("{uri}@{digest}"));
    ecr.fake.add_function(function);
    for action in ["ListFunctions", "GetFunction"] {
        ecr.fake.deny(action);
        let stderr = ecr.fails(1, &["ecr", "prune", "orders", "--keep=0"]);
        assert!(
            stderr.contains(&format!("caller needs lambda:{action}")),
            "{stderr}"
        );
        assert_eq!(ecr.left().len(), 1);
        ecr.fake.allow(action);
    }
    ecr.fake.deny("ListFunctions");
    let stderr = ecr.fails(1, &["ecr", "prune", "orders", "--keep=0"]);
    insta::assert_snapshot!(stderr, @r"
    error: could not see what functions run
      caused by: AWS refused lambda:ListFunctions in eu-west-1 with 403 AccessDeniedException: User: arn:aws:iam::123456789012:user/testkit is not authorized to perform: lambda:ListFunctions on resource: * because no identity-based policy allows the lambda:ListFunctions action
    hint: `--without-functions` prunes without knowing what functions run
    hint: the caller needs lambda:ListFunctions; `aws sts get-caller-identity` tells who that is
    ");
    // One that is named is asked about all the same.
    let arguments = ["ecr", "prune", "orders", "--keep=0", "--without-functions"];
    for name in [
        "shop",
        "arn:aws:lambda:eu-west-1:210987654321:function:shop:live",
    ] {
        drop(ecr.ok(&[&arguments[..], &["--function", name]].concat()));
        assert_eq!(ecr.left().len(), 1, "{name}");
    }
    let stderr = ecr.fails(1, &[&arguments[..], &["--function=shopp"]].concat());
    assert!(stderr.contains("could not see what shopp runs"), "{stderr}");
    assert_eq!(ecr.left().len(), 1);
    drop(ecr.ok(&arguments));
    assert!(ecr.left().is_empty());
}

#[test]
fn a_function_whose_image_nobody_tells_stops_it() {
    let ecr = Ecr::new();
    ecr.image("1.0", 50);
    let uri = ecr.orders();
    ecr.fake
        .add_function(Function::image("shop", &format!("{uri}:1.0"), "odd"));
    let stderr = ecr.fails(1, &["ecr", "prune", "orders", "--keep=0"]);
    insta::assert_snapshot!(stderr, @r"
    error: the function shop:$LATEST runs `123456789012.dkr.ecr.eu-west-1.amazonaws.com/orders:1.0`, and Lambda does not tell its digest
    hint: `--without-functions` prunes without knowing what functions run
    ");
    assert_eq!(ecr.left().len(), 1);
}

#[test]
fn the_functions_of_one_account_are_not_taken_for_those_of_another() {
    let mut ecr = Ecr::new();
    ecr.image("1.0", 50);
    let name = ecr.orders();
    ecr.world.call(&name, "ORDERS");
    // Whoever asks may delete there, and would see the functions of an account of their own.
    let role = "--aws-role=arn:aws:iam::210987654321:role/tidier";
    let arguments = ["ecr", "prune", &name, role, "--keep=0"];
    insta::assert_snapshot!(ecr.fails(1, &arguments), @"
    error: [ORDERS] belongs to another account, whose functions cannot be listed from here
    hint: ask as a role of that account with `--aws-role`, or name its functions with `--function ARN` beside `--without-functions`
    ");
    assert_eq!(ecr.left().len(), 1);
    assert!(ecr.fake.calls_of("ListFunctions").is_empty());
    drop(ecr.ok(&[&arguments[..], &["--without-functions"]].concat()));
    assert!(ecr.left().is_empty());
}

#[test]
fn protected_tags_stay() {
    let ecr = Ecr::new();
    let prod = ecr.image("prod-7", 90);
    let live = ecr.image("live", 80);
    ecr.image("dev", 70);
    let arguments = ["--keep=0", "--protect=prod*", "--protect=live"];
    drop(ecr.ok(&[&["ecr", "prune", "orders"], &arguments[..]].concat()));
    assert_eq!(ecr.left(), BTreeSet::from([prod, live]));
}

#[test]
fn an_index_goes_before_its_children_and_keeps_them_while_it_stays() {
    let ecr = Ecr::new();
    let child = |name: &str, days| {
        let more = json!({"annotations": {"name": name}});
        ecr.put(None, IMAGE, &more, days)
    };
    let (arm, amd, shared) = (child("arm", 60), child("amd", 60), child("shared", 60));
    let old = ecr.index("1.0", 60, &[arm, amd, shared]);
    let new = ecr.index("1.1", 50, &[shared]);
    let about = json!({"subject": {"mediaType": INDEX, "digest": new, "size": 1}});
    let signature = ecr.put(None, IMAGE, &about, 40);
    let about = json!({"subject": {"mediaType": INDEX, "digest": old, "size": 1}});
    let old_signature = ecr.put(None, IMAGE, &about, 40);
    drop(ecr.ok(&["ecr", "prune", "orders", "--keep=1"]));
    assert_eq!(ecr.left(), BTreeSet::from([new, shared, signature]));
    let deletions = ecr.fake.calls_of("BatchDeleteImage");
    let asked: Vec<String> = deletions.iter().map(|call| call.body.to_string()).collect();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].contains(&old.to_string()) && asked[0].contains(&old_signature.to_string()));
    assert!(asked[1].contains(&arm.to_string()) && asked[1].contains(&amd.to_string()));
}

#[test]
fn what_ecr_does_not_delete_is_reported() {
    let ecr = Ecr::new();
    let child = ecr.put(None, IMAGE, &json!({"annotations": {"name": "child"}}), 60);
    let index = ecr.index("1.0", 60, &[child]);
    let other = ecr.image("1.1", 50);
    // An index of indexes comes when the images have been read.
    let (code, stdout, stderr) = prune_meanwhile(&ecr, || {
        ecr.index("all", 0, &[index]);
    });
    assert_eq!(code, Some(1));
    assert!(stdout.contains(&other.to_string()), "{stdout}");
    assert!(!stdout.contains(&index.to_string()) && !stdout.contains(&child.to_string()));
    for (digest, why) in [
        (index, "Requested image referenced by manifest list"),
        (child, "an index that names it could not be deleted"),
    ] {
        let warning = format!("warning: {digest} stays: ImageReferencedByManifestList {why}");
        assert!(stderr.contains(&warning), "{stderr}");
    }
    assert!(
        stderr.ends_with("error: 2 images could not be deleted\n"),
        "{stderr}"
    );
    let left = ecr.left();
    assert!(left.len() == 3 && left.contains(&child) && left.contains(&index));
    // And when nothing at all may be deleted:
    ecr.fake.deny("BatchDeleteImage");
    let stderr = ecr.fails(1, &["ecr", "prune", "orders", "--keep=0"]);
    assert!(
        stderr.contains("the caller needs ecr:BatchDeleteImage"),
        "{stderr}"
    );
    assert_eq!(ecr.left().len(), 3);
}

#[test]
fn what_somebody_else_deletes_meanwhile_is_no_failure() {
    let ecr = Ecr::new();
    let child = ecr.put(None, IMAGE, &json!({"annotations": {"name": "child"}}), 60);
    ecr.index("1.0", 60, &[child]);
    ecr.image("1.1", 50);
    let (code, stdout, stderr) = prune_meanwhile(&ecr, || {
        drop(ecr.ok(&["ecr", "prune", "orders", "--keep=0"]));
    });
    assert_eq!(code, Some(0), "{stderr}");
    assert!(ecr.left().is_empty());
    assert_eq!(stdout, "");
    assert_eq!(stderr, "deleted 0 images of up to 0 B, kept 0 images\n");
}

#[test]
fn what_was_deleted_before_an_error_is_told() {
    let ecr = Ecr::new();
    for number in 0..130 {
        ecr.image(&format!("1.{number}"), 400 - number);
    }
    // One question for the repository, three for what is in it, asked twice, and the first batch.
    let second_batch = 1 + 2 * 3 + 2;
    let fault = Fault::status(403).on(Method::POST, "/").nth(second_batch);
    ecr.fake.inject_control(fault);
    let output = ecr
        .tierce(&["ecr", "prune", "orders", "--keep=0", "--json"])
        .run();
    assert_eq!(output.code(), Some(1));
    assert_eq!(ecr.left().len(), 30);
    let document: Value = serde_json::from_str(&output.stdout()).unwrap();
    assert_eq!(document["deleted"].as_array().unwrap().len(), 100);
    let stderr = output.stderr();
    assert!(
        stderr.starts_with("deleted 100 images of up to 200 B, kept 0 images\n")
            && stderr.contains("error: 30 images could not be deleted\n  caused by: AWS refused"),
        "{stderr}"
    );
}

#[test]
fn what_is_on_this_machine_is_reached_without_a_proxy() {
    let ecr = Ecr::new();
    // Nobody listens at that port, and no authority is known.
    let nowhere = "http://127.0.0.1:1";
    let empty = tempfile::tempdir().unwrap();
    let command = ecr
        .tierce(&["ecr", "describe", "orders"])
        .env("http_proxy", nowhere)
        .env("HTTPS_PROXY", nowhere)
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", empty.path());
    drop(command.run().assert_success());
}

#[test]
fn many_images_go_in_batches() {
    let fake = FakeEcr::builder()
        .repository("orders")
        .page_size(40)
        .start();
    let ecr = Ecr::with(fake);
    for number in 0..230 {
        ecr.image(&format!("1.{number}"), 400 - number);
    }
    let output = ecr.json(&["ecr", "prune", "orders", "--keep=10"]);
    assert_eq!(output["deleted"].as_array().unwrap().len(), 220);
    assert_eq!(ecr.left().len(), 10);
    let sizes: Vec<usize> = ecr
        .fake
        .calls_of("BatchDeleteImage")
        .iter()
        .map(|call| call.body["imageIds"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [100, 100, 20]);
    let most = ecr.fake.calls_of("BatchGetImage").into_iter().map(|call| {
        let ids = call.body["imageIds"].as_array().unwrap();
        ids.len()
    });
    assert_eq!(most.max(), Some(100));
}

#[test]
fn tokens_of_any_lifetime_do() {
    let ecr = Ecr::new();
    for lifetime in [
        Duration::ZERO,
        Duration::from_secs(1),
        Duration::from_hours(12),
    ] {
        ecr.fake.set_token_lifetime(lifetime);
        ecr.fake.clear_calls();
        drop(ecr.ok(&["ecr", "login", "--print"]));
        assert_eq!(ecr.fake.calls_of("GetAuthorizationToken").len(), 1);
    }
}

/// A sandbox in which ECR's real names lead to the fake, with a function on a base of ECR Public.
fn with_function() -> Ecr {
    let fake = FakeEcr::builder()
        .repository("orders")
        .with_public()
        .start();
    let public = fake.public().unwrap();
    lambda_base(Format::Docker, "amd64").put(public, "lambda/python", Some("3.12"));
    let ecr = Ecr::with(fake);
    ecr.world.app("public.ecr.aws/lambda/python:3.12", "");
    ecr.settle("");
    ecr
}

impl Ecr {
    /// Writes `registries.toml`; `more` follows the table of the private registry.
    fn settle(&self, more: &str) {
        let directory = self.world.sandbox.config().join("tierce");
        fs::create_dir_all(&directory).unwrap();
        let table = |name: &str, url: &str| format!("[\"{name}\"]\nendpoint = \"{url}\"\n");
        let public = self
            .fake
            .public()
            .map(|it| table("public.ecr.aws", &it.url()));
        let private = table(self.fake.name(), &self.fake.registry().url());
        let text = format!("{}{private}{more}\n", public.unwrap_or_default());
        fs::write(directory.join("registries.toml"), text).unwrap();
    }

    /// A build that is pushed, with everything said.
    fn push(&self) -> Command {
        let name = format!("{}:1", self.orders());
        self.tierce(&["build", "app", "-vv", "-t", &name, "--push"])
    }
}

#[test]
fn a_push_gets_its_token_from_aws() {
    let ecr = with_function();
    let output = ecr.push().run().assert_success();
    assert_clean(&Checker::new().registry(ecr.fake.registry(), "orders", "1"));
    // One token for all of a run, and one for the base, which then counts as somebody's.
    assert_eq!(ecr.fake.calls_of("ecr:GetAuthorizationToken").len(), 1);
    assert_eq!(
        ecr.fake.calls_of("ecr-public:GetAuthorizationToken").len(),
        1
    );
    ecr.assert_no_secret(&said(&output), &[]);
}

#[test]
fn a_login_by_hand_comes_before_aws() {
    let ecr = with_function();
    let password = ecr.fake.registry().issue_password();
    let config = DockerConfig::new().auth(ecr.fake.name(), "AWS", &password);
    ecr.world.sandbox.docker_config(&config);
    let output = ecr.push().run().assert_success();
    assert!(ecr.fake.calls_of("ecr:GetAuthorizationToken").is_empty());
    ecr.assert_no_secret(&said(&output), &["config.json"]);
    // So does a helper.
    let helper = HelperBehaviour::answer("AWS", &password);
    ecr.world.sandbox.credential_helper("kept", &helper);
    let config = DockerConfig::new().cred_helper(ecr.fake.name(), "kept");
    ecr.world.sandbox.docker_config(&config);
    drop(ecr.push().run().assert_success());
    assert!(ecr.fake.calls_of("ecr:GetAuthorizationToken").is_empty());
    assert!(!ecr.world.sandbox.helper_calls("kept").is_empty());
}

#[test]
fn a_public_base_needs_no_credentials() {
    let ecr = with_function();
    let build = || {
        let build = ecr.tierce(&["build", "app", "-v", "-o", "oci:out:1"]);
        build.env("TIERCE_CACHE", ecr.world.path("a-cache"))
    };
    // Who has none is anonymous, and so is who may not have a token.
    let without = build()
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let output = without.run().assert_success();
    let why = "public.ecr.aws is asked without credentials: ";
    assert!(
        output
            .stderr()
            .contains(&format!("{why}no AWS credentials")),
        "{output:?}"
    );
    ecr.fake.deny("ecr-public:GetAuthorizationToken");
    fs::remove_dir_all(ecr.world.path("a-cache")).unwrap();
    let output = build().run().assert_success();
    assert!(
        output.stderr().contains(&format!("{why}AWS refused")),
        "{output:?}"
    );
    assert_eq!(
        ecr.fake.calls_of("ecr-public:GetAuthorizationToken").len(),
        1
    );
}

#[test]
fn a_push_without_credentials_tells_the_ways_of_aws() {
    let ecr = with_function();
    let push = ecr.tierce(&[
        "push",
        "--jobs=1",
        "store:app",
        &format!("{}:1", ecr.orders()),
    ]);
    drop(ecr.ok(&["build", "app"]));
    let push = push
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    insta::assert_snapshot!(ecr.world.fails_as(1, push), @"
    judged for Lambda: 1 note; the base by what is known of AWS's python 3.12; `tierce lint store:app:latest` says more
    error: could not write `123456789012.dkr.ecr.eu-west-1.amazonaws.com/orders:1`
      caused by: could not ask the target for the manifest `1`
      caused by: could not get the credentials for registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com
      caused by: no AWS credentials were found: not in the environment, in the shared config files, or from a role of the container or the instance
    hint: name a profile with `--aws-profile` or AWS_PROFILE, log in with `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; `docker login` does too
    ");
    assert!(ecr.fake.calls_of("ecr:GetAuthorizationToken").is_empty());
}

#[test]
fn each_registry_may_have_its_own_profile() {
    let ecr = with_function();
    let (id, secret) = ecr.fake.add_access_key();
    let config = ecr.world.sandbox.write(
        "aws-config",
        format!("[profile shop]\naws_access_key_id={id}\naws_secret_access_key={secret}\n"),
    );
    let role = "arn:aws:iam::123456789012:role/pusher";
    ecr.settle(&format!("aws-profile = \"shop\"\naws-role = \"{role}\""));
    let push = ecr.push().env("AWS_CONFIG_FILE", config);
    drop(push.run().assert_success());
    let assumed = ecr.fake.calls_of("AssumeRole");
    assert_eq!(assumed.len(), 1);
    assert_eq!(assumed[0].access_key.as_deref(), Some(id.as_str()));
    let token = &ecr.fake.calls_of("ecr:GetAuthorizationToken")[0];
    assert!(
        token
            .access_key
            .as_ref()
            .is_some_and(|key| key.starts_with("ASIA"))
    );
    // The other registry is asked as ever.
    let public = &ecr.fake.calls_of("ecr-public:GetAuthorizationToken")[0];
    assert_ne!(public.access_key.as_deref(), Some(id.as_str()));
}

#[test]
fn how_to_make_a_missing_repository_is_told() {
    let ecr = with_function();
    drop(ecr.ok(&["build", "app"]));
    let name = format!("{}/team/new:1", ecr.fake.name());
    let stderr = ecr.fails(1, &["push", "--jobs=1", "store:app", &name]);
    let hint = format!(
        "hint: make it with `tierce ecr create {}/team/new`, or push with `--create-repository`",
        ecr.fake.name()
    );
    assert!(stderr.ends_with(&hint), "{stderr}");
}
