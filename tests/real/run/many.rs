//! Many at once, many after each other, and the clients of AWS.

use std::process::Command;

use serde_json::{Value, json};

use super::running::{EVERYBODY, PATIENCE, Place};
use crate::support::{repository, target};

/// Asks a running function from Python, over as many connections as it is told.
fn ask_often(url: &str, at_once: u32, each: u32, event: &Value) -> Value {
    let mut command = Command::new("python3");
    command.arg(repository("tests/real/run/ask-often"));
    command.args([
        url,
        &at_once.to_string(),
        &each.to_string(),
        &event.to_string(),
    ]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn fifty_at_once_all_get_their_own_answer() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &["--concurrency", "6", "--timeout", "60"]);
        let event = json!({ "do": "sleep", "seconds": 0.2 });
        let told = ask_often(&running.url, 50, 1, &event);
        assert_eq!(told["answers"], 50, "{told}");
        assert_eq!(told["wrong"], 0, "{told}");
        let log = running.log();
        assert_eq!(log.matches("START RequestId").count(), 50);
        let started = log.matches("Init Duration").count();
        assert!((2..=6).contains(&started), "{started} environments\n{log}");
    }
}

#[test]
fn five_thousand_after_each_other_lose_nothing() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &[]);
        let told = ask_often(&running.url, 1, 5000, &json!({ "do": "echo" }));
        assert_eq!(told["answers"], 5000, "{told}");
        assert_eq!(told["wrong"], 0, "{told}");
        let log = running.log();
        for line in ["START RequestId", "END RequestId", "REPORT RequestId"] {
            assert_eq!(log.matches(line).count(), 5000, "{line}");
        }
        assert_eq!(log.matches("Init Duration").count(), 1);
    }
}

#[test]
fn idle_environments_end() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let flags = ["--concurrency", "3", "--idle", "1", "--timeout", "60"];
        let running = place.run(&image, &flags);
        let told = ask_often(&running.url, 3, 1, &json!({ "do": "sleep", "seconds": 4 }));
        assert_eq!(told["answers"], 3);
        assert!(running.log().matches("Init Duration").count() > 1);
        // What one environment is: the two stages and the function.
        let until = std::time::Instant::now() + PATIENCE;
        while descendants(running.child.id()) > 3 {
            assert!(std::time::Instant::now() < until, "the idle do not end");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        running.post("{}").success();
    }
}

/// How many processes stand below one.
pub(super) fn descendants(pid: u32) -> usize {
    let path = format!("/proc/{pid}/task");
    let tasks = std::fs::read_dir(path).into_iter().flatten().flatten();
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|line| {
            line.split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect();
    children.iter().map(|child| 1 + descendants(*child)).sum()
}

/// `aws`, with credentials that are nobody's.
fn aws(endpoint: &str, arguments: &[&str]) -> std::process::Output {
    let installed = target().join("awscli/bin/aws");
    let program = if installed.exists() {
        installed
    } else {
        "aws".into()
    };
    let mut command = Command::new(program);
    command
        .env("AWS_ACCESS_KEY_ID", "nobody")
        .env("AWS_SECRET_ACCESS_KEY", "nothing");
    command
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_MAX_ATTEMPTS", "1");
    command
        .args(["lambda", "--endpoint-url", endpoint])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_aws_command_line_invokes() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &["--name", "dough"]);
        let answer = place.path("answer.json");
        let answer = answer.to_str().unwrap();
        let invoke = |arguments: &[&str]| {
            let mut all = vec!["invoke", "--cli-binary-format", "raw-in-base64-out"];
            // Version 1 of the command line knows no such option and needs none.
            if !String::from_utf8_lossy(&aws("http://127.0.0.1:1", &["help"]).stdout)
                .contains("cli-binary-format")
            {
                all.truncate(1);
            }
            all.extend(arguments);
            all.push(answer);
            let output = aws(running.endpoint(), &all);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stderr}");
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        };
        let payload = || serde_json::from_slice::<Value>(&std::fs::read(answer).unwrap()).unwrap();

        let told = invoke(&["--function-name", "function", "--payload", r#"{"a":"ě"}"#]);
        assert_eq!(
            told,
            json!({ "StatusCode": 200, "ExecutedVersion": "$LATEST" })
        );
        assert_eq!(payload()["event"], json!({ "a": "ě" }));
        let arn = payload()["arn"].as_str().unwrap().to_owned();
        let told = invoke(&[
            "--function-name",
            &arn,
            "--log-type",
            "Tail",
            "--payload",
            r#"{"do":"fail"}"#,
        ]);
        assert_eq!(told["FunctionError"], "Unhandled");
        assert!(told["LogResult"].as_str().unwrap().len() > 100);
        assert_eq!(payload()["errorType"], "ValueError");
        let context = [
            "--function-name",
            "dough",
            "--client-context",
            "eyJjdXN0b20iOnsiYSI6IjEifX0=",
        ];
        invoke(
            &[
                context.as_slice(),
                &["--payload", r#"{"do":"client-context"}"#],
            ]
            .concat(),
        );
        assert_eq!(payload(), json!({ "custom": { "a": "1" } }));
        let told = invoke(&[
            "--function-name",
            "dough",
            "--invocation-type",
            "Event",
            "--payload",
            r#"{"do":"log","text":"later"}"#,
        ]);
        assert_eq!(told["StatusCode"], 202);
        running.wait_for_log("to stderr: later");
        let told = invoke(&["--function-name", "dough", "--invocation-type", "DryRun"]);
        assert_eq!(told["StatusCode"], 204);
        let refused = aws(
            running.endpoint(),
            &["invoke", "--function-name", "bread", answer],
        );
        assert!(String::from_utf8_lossy(&refused.stderr).contains("ResourceNotFoundException"));
    }
}

#[test]
fn boto3_gets_a_stream_piece_by_piece() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let python = target().join("moto/bin/python");
        let python = if python.exists() {
            python
        } else {
            "python3".into()
        };
        for (language, flags) in [
            ("rust", [].as_slice()),
            ("node", &["--cmd", "trial.stream"]),
        ] {
            let image = place.build(&[language]);
            let running = place.run(&image, &[&["--timeout", "20"], flags].concat());
            let output = Command::new(&python)
                .arg(repository("tests/real/run/stream-with-boto3"))
                .args([running.endpoint(), language])
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stderr}");
        }
    }
}
