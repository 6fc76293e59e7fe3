//! The real Runtime Interface Clients: what they answer, and how they fail.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::running::{EVERYBODY, Place, prepared};

#[test]
fn awslambdaric_of_four_generations_answers_and_fails() {
    for person in EVERYBODY {
        let place = Place::of(person);
        for version in ["2.0.11", "2.2.1", "3.1.1", "4.2.2"] {
            let image = place.build(&["python", version]);
            let running = place.run(&image, &["--timeout", "2", "--name", "dough"]);
            let answer = running.post(r#"{"grain":"žito 🌾"}"#).success();
            assert_eq!(answer["event"], json!({ "grain": "žito 🌾" }), "{version}");
            assert_eq!(
                answer["arn"].as_str().unwrap().split(':').next_back(),
                Some("dough")
            );
            let left = answer["milliseconds"].as_u64().unwrap();
            assert!((1..=2000).contains(&left), "{left}");
            // What Python writes as escapes, and what it writes as it is, arrive alike.
            let echo = running
                .post(r#"{"do":"echo","text":"\ud83e\udd56 ěšč"}"#)
                .success();
            assert_eq!(echo["text"], "🥖 ěšč");

            let failed = running.post(r#"{"do":"fail","text":"burnt"}"#);
            assert_eq!(
                failed.function_error(),
                ("ValueError".to_owned(), "burnt".to_owned())
            );
            assert!(!failed.json()["stackTrace"].as_array().unwrap().is_empty());
            // It is the same process still.
            assert_eq!(running.post("{}").success()["invocations"], 4);

            let (kind, message) = running.post(r#"{"do":"exit"}"#).function_error();
            assert_eq!(kind, "Runtime.ExitError");
            assert!(
                message.ends_with("Error: Runtime exited with error: exit status 3"),
                "{message}"
            );
            let (kind, message) = running.post(r#"{"do":"exit","code":0}"#).function_error();
            assert_eq!(kind, "Runtime.ExitError");
            assert!(
                message.ends_with("Error: Runtime exited without providing a reason"),
                "{message}"
            );
            let (kind, message) = running.post(r#"{"do":"kill"}"#).function_error();
            assert_eq!(kind, "Runtime.ExitError");
            assert!(
                message.ends_with("Error: Runtime exited with error: signal: killed"),
                "{message}"
            );
            assert_eq!(
                running.post("{}").success()["invocations"],
                1,
                "it began anew"
            );

            let (kind, message) = running
                .post(r#"{"do":"sleep","seconds":30}"#)
                .function_error();
            assert_eq!(kind, "Sandbox.Timedout");
            assert!(
                message.ends_with("Error: Task timed out after 2.00 seconds"),
                "{message}"
            );
            assert_eq!(
                running.post("{}").success()["invocations"],
                1,
                "it began anew"
            );
            assert_eq!(running.interrupt(), Some(130));
        }
    }
}

#[test]
fn python_that_cannot_be_initialised_says_why_at_once_and_to_who_asks() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);

        let running = place.run(&image, &["-e", "TRIAL_AT_INIT=raise"]);
        running.wait_for_log("the oven is cold");
        running.wait_for_log("INIT_REPORT");
        let (kind, message) = running.post("{}").function_error();
        assert_eq!(
            (kind.as_str(), message.as_str()),
            ("RuntimeError", "the oven is cold")
        );

        let running = place.run(&image, &["-e", "TRIAL_AT_INIT=exit"]);
        let (kind, message) = running.post("{}").function_error();
        assert_eq!(kind, "Runtime.ExitError");
        assert!(message.ends_with("exit status 7"), "{message}");

        // Longer than Init may take, and not longer than the function: it succeeds at the second
        // attempt, as on Lambda.
        let flags = ["--init-timeout", "1", "--timeout", "60"];
        let slow = ["-e", "TRIAL_AT_INIT=sleep", "-e", "TRIAL_SECONDS=2"];
        let running = place.run(&image, &[flags, slow].concat());
        running.post("{}").success();
        running.wait_for_log("Status: timeout");

        let running = place.run(&image, &["--entrypoint", "/var/task/not-there"]);
        let (kind, message) = running.post("{}").function_error();
        assert_eq!(kind, "Runtime.InvalidEntrypoint");
        assert!(
            message.contains("fork/exec /var/task/not-there: no such file or directory"),
            "{message}"
        );
        let running = place.run(&image, &["--workdir", "/not/there"]);
        assert_eq!(
            running.post("{}").function_error().0,
            "Runtime.InvalidWorkingDir"
        );
    }
}

#[test]
fn awss_client_for_node_answers_streams_and_fails() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["node"]);
        let running = place.run(&image, &["--timeout", "20"]);
        assert_eq!(
            running.post(r#"{"text":"ěšč"}"#).success()["event"]["text"],
            "ěšč"
        );
        let failed = running.post(r#"{"do":"fail"}"#).function_error();
        assert_eq!(
            failed,
            ("TypeError".to_owned(), "the dough is too wet".to_owned())
        );
        assert_eq!(
            running.post(r#"{"do":"exit"}"#).function_error().0,
            "Runtime.ExitError"
        );
        running.post("{}").success();

        let running = place.run(&image, &["--timeout", "20", "--cmd", "trial.stream"]);
        let reply = running.post(r#"{"pieces":3}"#);
        assert_eq!(reply.status, 200);
        assert_eq!(
            String::from_utf8_lossy(&reply.body),
            "piece 0\npiece 1\npiece 2\n"
        );
        let failed = running.post(r#"{"pieces":3,"failAfter":1}"#);
        assert_eq!(
            failed.headers["x-amz-function-error"], "Unhandled",
            "{failed:?}"
        );
    }
}

#[test]
fn lambda_runtime_for_rust_answers_streams_and_fails() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["rust"]);
        let running = place.run(&image, &["--timeout", "20"]);
        assert_eq!(
            running.post(r#"{"text":"ěšč"}"#).success()["event"]["text"],
            "ěšč"
        );
        assert_eq!(
            running.post(r#"{"do":"fail"}"#).function_error().1,
            "the dough is too wet"
        );
        assert!(
            running
                .post(r#"{"do":"panic"}"#)
                .function_error()
                .1
                .contains("the bowl fell")
        );
        assert_eq!(
            running.post(r#"{"do":"exit"}"#).function_error().0,
            "Runtime.ExitError"
        );
        // What comes first is for function URLs, which take it off: status, headers, cookies, eight NULs.
        let reply = running.post(r#"{"do":"stream","pieces":4}"#);
        let text = String::from_utf8_lossy(&reply.body);
        let (prelude, text) = text.split_once("\0\0\0\0\0\0\0\0").unwrap();
        assert!(prelude.contains("\"statusCode\":200"), "{prelude}");
        assert_eq!(text, "piece 0\npiece 1\npiece 2\npiece 3\n");
        // This client writes the trailers of HTTP into the body, where nobody looks for them.
        let broken = running.post(r#"{"do":"stream","fail-after":1}"#);
        let text = String::from_utf8_lossy(&broken.body);
        assert!(text.contains("piece 1\nLambda-Runtime-Function-Error-Type: Runtime.StreamError"));
        running.post("{}").success();
        let running = place.run(&image, &["-e", "TRIAL_AT_INIT=panic"]);
        assert_eq!(running.post("{}").function_error().0, "Runtime.ExitError");
        running.wait_for_log("the oven is cold");
    }
}

#[test]
fn a_shell_with_curl_is_a_runtime() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["shell"]);
        let running = place.run(&image, &["--timeout", "20"]);
        for count in 0..5 {
            let event = json!({ "count": count });
            assert_eq!(
                running.post(&event.to_string()).success(),
                json!({ "heard": event })
            );
        }
        let (kind, message) = running.post(r#""fail""#).function_error();
        assert_eq!(
            (kind.as_str(), message.as_str()),
            ("Function.TooWet", "the dough is too wet")
        );
        assert_eq!(
            running.post(r#""exit""#).function_error().0,
            "Runtime.ExitError"
        );
        assert_eq!(running.post("1").success(), json!({ "heard": 1 }));
        assert!(running.log().contains("handling "));
    }
}

/// An external extension in a few lines of shell.
const EXTENSION: &str = r#"#!/bin/sh
set -eu
api="http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension"
headers=/tmp/extension.$$
curl -sS -D "$headers" -o /dev/null -H "Lambda-Extension-Name: ${0##*/}" \
    -d '{"events":["INVOKE","SHUTDOWN"]}' "$api/register"
id=$(sed -n 's/^lambda-extension-identifier: *\([^[:space:]]*\).*/\1/Ip' "$headers")
while :; do
    event=$(curl -sS -H "Lambda-Extension-Identifier: $id" "$api/event/next")
    echo "the extension got $event"
    case $event in *SHUTDOWN*) exit 0 ;; esac
done
"#;

#[test]
fn external_extensions_get_invocations_and_the_end() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let context = place.copy(&prepared(&["shell"]), "context");
        std::fs::create_dir_all(context.join("extensions")).unwrap();
        let extension = context.join("extensions/proofer");
        std::fs::write(&extension, EXTENSION).unwrap();
        std::fs::set_permissions(&extension, Permissions::from_mode(0o755)).unwrap();
        let toml = context.join("tierce.toml");
        let layer = "[[layer]]\nname = \"extension\"\n\
            add = [{ from = \"extensions/\", to = \"/opt/extensions/\" }]\n\n[config]";
        let text = std::fs::read_to_string(&toml)
            .unwrap()
            .replace("[config]", layer);
        std::fs::write(&toml, text).unwrap();
        let image = place.build_folder(&context, "shell", "extended");
        let running = place.run(&image, &["--timeout", "20"]);
        assert_eq!(running.post("1").success(), json!({ "heard": 1 }));
        running.wait_for_log(r#""eventType":"INVOKE""#);
        let log = running.log.clone();
        assert_eq!(running.interrupt(), Some(130));
        let text = std::fs::read_to_string(log).unwrap();
        assert!(
            text.contains(r#""eventType":"SHUTDOWN""#) && text.contains("spindown"),
            "{text}"
        );
    }
}
