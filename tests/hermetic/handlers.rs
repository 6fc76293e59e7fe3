//! Handlers of languages whose files can be told by their names, and advice on the client of each.

use serde_json::json;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder};

use crate::support::World;

/// What lint says by one rule of an image with these files, an entrypoint and a CMD.
fn findings(rule: &str, files: &[&str], entrypoint: &str, handler: &str) -> Vec<String> {
    let world = World::new();
    let mut layer = LayerBuilder::new();
    let mut directories = std::collections::BTreeSet::new();
    for file in files {
        let parts: Vec<&str> = file.split('/').collect();
        for end in 1..parts.len() {
            let directory = parts[..end].join("/");
            if directories.insert(directory.clone()) {
                layer = layer.directory(&directory, 0o755);
            }
        }
        layer = layer.file(file, 0o755, b"#!/bin/sh\n");
    }
    let image = ImageBuilder::new(Format::Docker, "amd64")
        .config(|config| {
            config["config"] = json!({ "Entrypoint": [entrypoint], "Cmd": [handler] });
        })
        .layer(&layer)
        .build();
    image.write_layout(&world.path("image"), Some("1"));
    let output = world
        .tierce(&["lint", "--json", "--for=lambda", "oci:image:1"])
        .run();
    let found = output.json();
    let list = found["images"][0]["findings"].as_array().unwrap().clone();
    let of_rule = list.iter().filter(|it| it["rule"] == rule);
    of_rule
        .map(|it| it["what"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn handlers_of_ruby_java_and_dotnet_are_looked_for() {
    for (language, handler, missing, there) in [
        (
            "ruby",
            "app.Orders::Handler.process",
            "app.rb",
            "var/task/app.rb",
        ),
        ("ruby", "app.handler", "app.rb", "opt/ruby/gems/x/app.rb"),
        (
            "ruby",
            "lib/app.handler",
            "lib/app.rb",
            "var/task/lib/app.rb",
        ),
        (
            "dotnet",
            "Orders::Orders.Function::Run",
            "Orders.dll",
            "var/task/Orders.dll",
        ),
        (
            "java",
            "com.x.Orders::handle",
            "com/x/Orders.class",
            "var/task/com/x/Orders.class",
        ),
        (
            "java",
            "com.x.Orders",
            "com/x/Orders.class",
            "var/task/lib/orders.jar",
        ),
    ] {
        let program = format!("var/lang/bin/{language}");
        let base = [
            "lambda-entrypoint.sh",
            "var/runtime/bootstrap",
            "var/task/other",
            &program,
        ];
        let said = |more: &[&str]| {
            let files = [&base, more].concat();
            findings(
                "handler-not-found",
                &files,
                "/lambda-entrypoint.sh",
                handler,
            )
        };
        let expected = format!("the handler is `{handler}`, and there is no /var/task/{missing}");
        assert_eq!(said(&[]), [expected]);
        assert_eq!(said(&[there]), [""; 0], "{there}");
    }
    // Of these nobody knows.
    for (language, handler) in [("dotnet", "Orders"), ("ruby", "app"), ("other", "any.word")] {
        let program = format!("var/lang/bin/{language}");
        let files = ["lambda-entrypoint.sh", "var/runtime/bootstrap", &program];
        let said = findings(
            "handler-not-found",
            &files,
            "/lambda-entrypoint.sh",
            handler,
        );
        assert_eq!(said, [""; 0], "{handler}");
    }
}

#[test]
fn whoever_has_no_client_is_told_how_to_get_that_of_the_language() {
    for (program, advice) in [
        ("usr/bin/python3", "runtime-client = true"),
        ("usr/local/bin/node", "scripts = true"),
        ("usr/bin/ruby", "gem install aws_lambda_ric"),
    ] {
        let files = ["bin/sh", "app", program];
        let said = findings("no-runtime-client", &files, "/app", "x");
        assert!(said.len() == 1 && said[0].contains(advice), "{said:?}");
    }
    let said = findings("no-runtime-client", &["bin/sh", "app"], "/app", "x");
    assert_eq!(said, ["no Runtime Interface Client was found"]);
}
