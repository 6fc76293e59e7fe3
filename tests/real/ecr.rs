//! ECR in two real parts: moto for its API, and docker-registry for the images, which is reached by
//! the host name that the registry has in AWS.

use std::fs;

use serde_json::Value;
use tierce_testkit::process::{DockerRegistry, Moto};
use tierce_testkit::sandbox::{Command, Sandbox};

use crate::support::{minimal, one_digest, raw_digest, repository, requests, sandbox};

const NAME: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// The password in the tokens that moto gives for the account 123456789012.
const PASSWORD: &str = "123456789012-auth-token";

fn run(sandbox: &Sandbox, moto: &Moto, arguments: &[&str]) -> Command {
    let environment = moto.environment("eu-west-1");
    environment
        .iter()
        .fold(sandbox.tierce(arguments), |command, (name, value)| {
            command.env(name, value)
        })
}

#[test]
fn a_function_is_built_and_pushed_with_a_token_of_aws() {
    let (registry, moto) = (DockerRegistry::start_basic("AWS", PASSWORD), Moto::start());
    let sandbox = sandbox();
    let settings = sandbox.config().join("tierce");
    fs::create_dir_all(&settings).unwrap();
    let endpoint = format!("[\"{NAME}\"]\nendpoint = \"{}\"\n", registry.url());
    fs::write(settings.join("registries.toml"), endpoint).unwrap();

    let orders = format!("{NAME}/team/orders");
    for arguments in [&["--immutable-tags", "--scan-on-push"][..], &[]] {
        let create = [&["ecr", "create", &orders], arguments].concat();
        let output = run(&sandbox, &moto, &create).run().assert_success();
        assert_eq!(output.stdout().trim(), orders);
    }
    let describe = run(&sandbox, &moto, &["ecr", "describe", &orders, "--json"]);
    let shown: Value = serde_json::from_str(&describe.run().assert_success().stdout()).unwrap();
    // What the second call did not ask for has stayed.
    assert_eq!(shown["tagMutability"], "immutable", "{shown}");
    assert_eq!(shown["scanOnPush"], true, "{shown}");

    let hello = repository("fixtures/functions/hello");
    let hello = hello.to_str().unwrap();
    let (tag, base) = (format!("{orders}:1"), minimal("docker"));
    let build = ["build", hello, "--base", &base, "--platform", "amd64"];
    let push = [&build[..], &["-t", &tag, "--push", "-vv"]].concat();
    let output = run(&sandbox, &moto, &push).run().assert_success();
    let digest = one_digest(&output);
    for said in [output.stdout(), output.stderr()] {
        assert!(!said.contains(PASSWORD), "{said}");
    }
    // The other way round: by the registry's own address, with the same password.
    let config =
        tierce_testkit::sandbox::DockerConfig::new().auth(&registry.host(), "AWS", PASSWORD);
    sandbox.docker_config(&config);
    let direct = format!("docker://{}", registry.reference("team/orders", "1"));
    assert_eq!(raw_digest(&sandbox, &direct), digest);

    let before = requests(&registry).len();
    let again = run(&sandbox, &moto, &push).run().assert_success();
    assert_eq!(one_digest(&again), digest);
    // One question; the log has no line for those that come without credentials.
    assert_eq!(requests(&registry).len() - before, 1);
}
