//! What Lambda forbids is forbidden here, and what it says is said.

use serde_json::json;

use super::running::{EVERYBODY, Person, Place};

#[test]
fn the_function_finds_itself_where_lambda_would_put_it() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let flags = ["--name", "dough", "--memory", "512", "-e", "GRAIN=rye"];
        let running = place.run(&image, &flags);
        let look = running.post(r#"{"do":"look"}"#).success();
        assert_eq!([&look["user"], &look["group"]], [&json!(993), &json!(990)]);
        assert_eq!(look["shm"], false);
        assert_eq!(look["tmp"], 512 << 20);
        assert_eq!(look["directory"], "/var/task");
        assert_eq!(look["home"], "/home/sbx_user1051");
        let seen = look["processes"].as_array().unwrap();
        assert!(seen.len() <= 4, "it sees processes of others: {seen:?}");
        let environment = look["environment"].as_object().unwrap();
        for (name, value) in [
            ("AWS_LAMBDA_FUNCTION_NAME", "dough"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/dough"),
            ("LAMBDA_TASK_ROOT", "/var/task"),
            ("_HANDLER", "trial.handler"),
            ("GRAIN", "rye"),
        ] {
            assert_eq!(environment[name], value, "{name}");
        }
        for absent in [
            "TRIAL_SECRET",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_PROFILE",
        ] {
            assert!(!environment.contains_key(absent), "{absent}");
        }

        // Only /tmp can be written to, and only so much.
        let refused = running
            .post(r#"{"do":"write","path":"/var/task/crumb"}"#)
            .function_error();
        assert_eq!(refused.0, "OSError");
        assert!(
            refused.1.contains("[Errno 30] Read-only file system"),
            "{refused:?}"
        );
        assert_eq!(
            running
                .post(r#"{"do":"write","path":"/tmp/crumb"}"#)
                .success(),
            1
        );
        let event = json!({ "do": "write", "path": "/tmp/loaf", "size": 600 << 20 });
        assert!(
            running
                .post(&event.to_string())
                .function_error()
                .1
                .contains("[Errno 28]")
        );

        // The trap of many a first image with PyTorch. The C library says it in one of two ways: since
        // 2.34 it opens /dev/shm without asking whether there is one.
        let (kind, message) = running.post(r#"{"do":"queue"}"#).function_error();
        let known = [
            ("OSError", "[Errno 38] Function not implemented"),
            ("FileNotFoundError", "[Errno 2] No such file or directory"),
        ];
        assert!(known.contains(&(&kind, &message)), "{kind}: {message}");
        running.wait_for_log("--shm-size");

        let opened = running.post(r#"{"do":"open-files"}"#).success();
        assert_eq!(opened["error"], 24);
        assert!(
            (1000..1024).contains(&opened["opened"].as_u64().unwrap()),
            "{opened}"
        );
    }
}

#[test]
fn what_is_relaxed_is_relaxed() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        std::fs::write(place.path("home/recipe"), "500 g of rye").unwrap();
        place.hand_over(&place.path("home/recipe"));
        let volume = format!("{}:/mnt/recipe", place.path("home/recipe").display());
        let writable = format!("{}:/mnt/home:rw", place.path("home").display());
        let flags = [
            ["--writable", "--shm-size=64MiB"].as_slice(),
            &["--tmp-size", "1GiB", "--network", "none"],
            &["-v", &volume, "-v", &writable],
        ];
        let running = place.run(&image, &flags.concat());
        let ask = |event: serde_json::Value| running.post(&event.to_string());
        assert_eq!(
            ask(json!({ "do": "write", "path": "/var/task/crumb" })).success(),
            1
        );
        assert_eq!(ask(json!({ "do": "look" })).success()["tmp"], 1 << 30);
        assert_eq!(ask(json!({ "do": "queue" })).success(), json!(null));
        let read = ask(json!({ "do": "read", "path": "/mnt/recipe" }));
        assert_eq!(read.success(), "500 g of rye");
        let refused = ask(json!({ "do": "write", "path": "/mnt/recipe" })).function_error();
        // Root's file is not the function's to change anyway.
        let words = if person == Person::Root {
            "[Errno 13]"
        } else {
            "[Errno 30]"
        };
        assert!(refused.1.contains(words), "{refused:?}");
    }
}

#[test]
fn too_much_memory_is_an_end_that_is_told_as_such() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &["--memory", "128", "--timeout", "60"]);
        running.post(r#"{"do":"eat","mebibytes":20}"#).success();
        let (kind, message) = running
            .post(r#"{"do":"eat","mebibytes":2000}"#)
            .function_error();
        assert_eq!(kind, "Runtime.OutOfMemory");
        assert!(message.contains("signal: killed"), "{message}");
        running.wait_for_log("128 MB");
        running.post("{}").success();
    }
}

#[test]
fn payloads_have_lambdas_limits() {
    const LIMIT: usize = 6_291_556;
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &["--timeout", "60", "--memory", "1024"]);
        // Two bytes are the quotes.
        let event = json!({ "do": "big", "size": LIMIT - 2 });
        assert_eq!(
            running
                .post(&event.to_string())
                .success()
                .as_str()
                .unwrap()
                .len(),
            LIMIT - 2
        );
        let event = json!({ "do": "big", "size": LIMIT - 1 });
        let (kind, message) = running.post(&event.to_string()).function_error();
        assert_eq!(kind, "Function.ResponseSizeTooLarge");
        assert!(message.contains("6291556 bytes"), "{message}");

        let text = "x".repeat((6 << 20) - r#"{"do":"echo","x":""}"#.len());
        let event = json!({ "do": "echo", "x": text });
        assert_eq!(
            running.post(&event.to_string()).success()["x"].as_str(),
            Some(text.as_str())
        );
        let event = json!({ "do": "echo", "x": text.clone() + "x" });
        let refused = running.post(&event.to_string());
        assert_eq!(refused.status, 413);
        assert!(refused.headers["x-amzn-errortype"].starts_with("RequestEntityTooLargeException"));

        let running = place.run(
            &image,
            &["--any-payload", "--timeout", "60", "--memory", "1024"],
        );
        let event = json!({ "do": "echo", "x": text + "more" });
        let answer = running.post(&event.to_string()).success();
        assert!(answer["x"] == event["x"], "what is too large elsewhere");
    }
}

#[test]
fn the_log_is_lambdas() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &["--memory", "512"]);
        let event = r#"{"do":"log","text":"the oven is warm"}"#;
        let reply = running.post_with(event, &["X-Amz-Log-Type: Tail"]);
        let request = &reply.headers["x-amzn-requestid"];
        let decode = "import base64, sys; sys.stdout.write(base64.b64decode(sys.argv[1]).decode())";
        let tail = std::process::Command::new("python3")
            .args(["-c", decode, &reply.headers["x-amz-log-result"]])
            .output()
            .unwrap();
        let tail = String::from_utf8(tail.stdout).unwrap();
        let lines: Vec<&str> = tail.lines().collect();
        assert_eq!(
            lines[0],
            format!("START RequestId: {request} Version: $LATEST")
        );
        assert!(lines.contains(&"the oven is warm"), "{tail}");
        assert!(lines.contains(&"to stderr: the oven is warm"), "{tail}");
        assert_eq!(lines[lines.len() - 2], format!("END RequestId: {request}"));
        let report = lines[lines.len() - 1];
        for part in [
            "Duration: ",
            "Billed Duration: ",
            "Memory Size: 512 MB",
            "Max Memory Used: ",
            "Init Duration: ",
        ] {
            assert!(report.contains(part), "{report}");
        }
        running.wait_for_log(report);
    }
}
