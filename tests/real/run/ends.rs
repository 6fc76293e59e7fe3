//! Starting, swapping and ending, and what is left.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tierce_testkit::process::have_programs_end_by_hang_up;

use super::running::{EVERYBODY, PATIENCE, Person, Place, Running, prepared};

/// The processes that have this text in their command line or environment.
fn marked(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let of = |name: &str| {
            let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        if pid != std::process::id() && (of("cmdline") + &of("environ")).contains(text) {
            found.push(format!("{pid}: {}", of("cmdline")));
        }
    }
    found
}

/// What lies where boxes and half made things are while a run goes on.
fn left_behind(place: &Place) -> Vec<String> {
    let cache = place.path("home/.cache/tierce");
    ["boxes-1", "rootfs-1/begun"]
        .iter()
        .flat_map(|folder| fs::read_dir(cache.join(folder)).unwrap().flatten())
        .map(|entry| entry.path().display().to_string())
        // What is known of the machine is no box.
        .filter(|path| !path.ends_with("/tried"))
        .collect()
}

/// Waits until nothing that has the mark runs, and then looks at mounts and files.
#[track_caller]
fn assert_nothing_left(place: &Place, mark: &str) {
    let until = Instant::now() + PATIENCE;
    while !marked(mark).is_empty() {
        assert!(Instant::now() < until, "still there: {:#?}", marked(mark));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Others of these tests mount things too, elsewhere.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let folder = place.path("home").display().to_string();
    assert!(!mounts.contains(&folder), "{mounts}");
    assert_eq!(left_behind(place), Vec::<String>::new());
}

#[test]
fn nothing_is_left_however_it_ends() {
    have_programs_end_by_hang_up();
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let mark = format!("of-{person:?}-{}", std::process::id());
        let variable = format!("TRIAL_MARK={mark}");
        let begin = |concurrency: &str| -> Running {
            let flags = [
                "-e",
                &variable,
                "--concurrency",
                concurrency,
                "--timeout",
                "60",
            ];
            let running = place.run(&image, &flags);
            running.post("{}").success();
            assert!(!marked(&mark).is_empty());
            running
        };

        assert_eq!(begin("1").interrupt(), Some(130));
        assert_nothing_left(&place, &mark);

        // The terminal is closed.
        assert_eq!(begin("1").end_by(Signal::HUP), Some(129));
        assert_nothing_left(&place, &mark);

        // In the middle of an invocation that has started processes of its own.
        let busy = begin("2");
        let url = busy.url.clone();
        let asker = std::thread::spawn(move || {
            let _ = std::process::Command::new("curl")
                .args(["-s", "-d", r#"{"do":"sleep","seconds":50}"#, &url])
                .output();
        });
        let until = Instant::now() + PATIENCE;
        while busy.log().matches("START RequestId").count() < 2 {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(busy.interrupt(), Some(130));
        asker.join().unwrap();
        assert_nothing_left(&place, &mark);

        // `Running` is killed when it is dropped.
        drop(begin("2"));
        let until = Instant::now() + PATIENCE;
        while !marked(&mark).is_empty() {
            assert!(Instant::now() < until, "still there: {:#?}", marked(&mark));
            std::thread::sleep(Duration::from_millis(20));
        }
        // What a killed run could not remove, the next one does.
        assert_eq!(begin("1").interrupt(), Some(130));
        assert_nothing_left(&place, &mark);
    }
}

#[test]
fn an_edit_is_answered_by_the_new_code() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let context = place.copy(&prepared(&["python", "4.2.2"]), "context");
        let base = place.build(&["python", "4.2.2"]);
        let toml = fs::read_to_string(context.join("tierce.toml")).unwrap();
        let toml = toml.replace("base = \"scratch\"", &format!("base = \"{base}\""));
        fs::write(context.join("tierce.toml"), toml).unwrap();
        let running = place.run(context.to_str().unwrap(), &["--watch"]);
        running.post("{}").success();
        let code = context.join("code/trial.py");
        let before = fs::read_to_string(&code).unwrap();

        // As editors save: another file takes the name.
        let new = context.join("code/.trial.py.swp");
        fs::write(
            &new,
            format!("{before}\n\ndef do_new(event, context):\n    return 'new'\n"),
        )
        .unwrap();
        fs::rename(&new, &code).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let reply = running.post(r#"{"do":"new"}"#);
            if !reply.headers.contains_key("x-amz-function-error") {
                assert_eq!(reply.json(), "new");
                break;
            }
            assert!(
                Instant::now() < until,
                "the old code stays:\n{}",
                running.log()
            );
        }

        // What cannot be built changes nothing.
        let toml = fs::read_to_string(context.join("tierce.toml")).unwrap();
        fs::write(
            context.join("tierce.toml"),
            toml.replace("[image]", "[imago]"),
        )
        .unwrap();
        running.wait_for_log("imago");
        assert_eq!(running.post(r#"{"do":"new"}"#).success(), "new");
        fs::write(context.join("tierce.toml"), toml).unwrap();
        fs::write(
            &code,
            before.replace("\"event\": event", "\"again\": event"),
        )
        .unwrap();
        let until = Instant::now() + PATIENCE;
        while running.post("{}").json().get("again").is_none() {
            assert!(
                Instant::now() < until,
                "the old code stays:\n{}",
                running.log()
            );
        }
        assert_eq!(running.interrupt(), Some(130));
    }
}

#[test]
fn invoke_posts_to_what_runs_or_runs_it_for_once() {
    for person in EVERYBODY {
        let place = Place::of(person);
        let image = place.build(&["python", "4.2.2"]);
        let running = place.run(&image, &[]);
        let port = running.endpoint().rsplit(':').next().unwrap().to_owned();
        let invoke = |arguments: &[&str]| {
            let output = place.tierce(["invoke"]).args(arguments).output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (
                output.status.code(),
                text(&output.stdout),
                text(&output.stderr),
            )
        };
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();

        let (code, answer, _) = invoke(&["-p", &port, r#"{"a":1}"#]);
        assert_eq!(
            (code, &json(&answer)["event"]),
            (Some(0), &json!({ "a": 1 }))
        );
        let file = place.path("home/event.json");
        fs::write(&file, r#"{"b":2}"#).unwrap();
        let (code, answer, _) = invoke(&["-p", &port, file.to_str().unwrap()]);
        assert_eq!(
            (code, &json(&answer)["event"]),
            (Some(0), &json!({ "b": 2 }))
        );
        let (code, answer, _) = invoke(&["-p", &port, "--sample", "sqs"]);
        assert_eq!(code, Some(0));
        assert_eq!(
            json(&answer)["event"]["Records"][0]["eventSource"],
            "aws:sqs"
        );
        let (code, answer, told) = invoke(&["-p", &port, r#"{"do":"fail"}"#]);
        assert_eq!(
            (code, &json(&answer)["errorType"]),
            (Some(1), &json!("ValueError"))
        );
        assert!(
            told.contains("ValueError") && told.contains("the dough is too wet"),
            "{told}"
        );
        assert_eq!(running.interrupt(), Some(130));

        let (code, answer, told) = invoke(&["-p", &port, "{}"]);
        assert_eq!((code, answer.as_str()), (Some(1), ""));
        assert!(told.contains("tierce run"), "{told}");

        let (code, answer, told) = invoke(&["--image", &image, r#"{"c":3}"#]);
        assert_eq!(code, Some(0), "{told}");
        assert_eq!(json(&answer)["event"], json!({ "c": 3 }));
        assert!(told.contains("REPORT RequestId"), "{told}");
    }
}

#[test]
fn a_function_cannot_reach_the_runtime_api_of_another() {
    // With the network of the host all Runtime APIs listen beside each other.
    let attack = r#"
import http.client, json, os

def handler(event, context):
    own = os.environ["AWS_LAMBDA_RUNTIME_API"]
    if event.get("do") == "address":
        return own
    host, port = event["of"].split(":")
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request("GET", "/2018-06-01/runtime/invocation/next")
        return {"status": connection.getresponse().status}
    except OSError as error:
        return {"refused": str(error)}
"#;
    for person in EVERYBODY {
        let place = Place::of(person);
        let context = place.copy(&prepared(&["python", "4.2.2"]), "context");
        fs::write(context.join("code/trial.py"), attack).unwrap();
        let image = place.build_folder(&context, "python", "attack");
        let [victim, attacker] = [(), ()].map(|()| place.run(&image, &["--timeout", "20"]));
        let address = victim.post(r#"{"do":"address"}"#).success();
        let told = attacker
            .post(&json!({ "of": address }).to_string())
            .success();
        assert!(
            told.get("refused").is_some() || told["status"] == 403,
            "{told}"
        );
        // Nor can another process of this machine.
        let address = address.as_str().unwrap();
        let output = std::process::Command::new("curl")
            .args([
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--max-time",
                "5",
            ])
            .arg(format!(
                "http://{address}/2018-06-01/runtime/invocation/next"
            ))
            .output()
            .unwrap();
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(["000", "403"].contains(&status.as_str()), "{status}");
        assert_eq!(victim.post(r#"{"do":"address"}"#).success(), address);
    }
}

#[test]
fn an_oci_runtime_opens_the_door() {
    let place = Place::of(Person::Nobody);
    let image = place.build(&["python", "4.2.2"]);
    let mark = format!("of-runc-{}", std::process::id());
    let variable = format!("TRIAL_MARK={mark}");
    let running = place.run(&image, &["--runtime", "runc", "-e", &variable]);
    let look = running.post(r#"{"do":"look"}"#).success();
    assert_eq!([&look["user"], &look["group"]], [&json!(993), &json!(990)]);
    assert_eq!(look["shm"], false);
    assert_eq!(running.interrupt(), Some(130));
    assert_nothing_left(&place, &mark);
}

#[test]
fn a_machine_without_user_namespaces_is_told_what_is_missing() {
    let place = Place::of(Person::Nobody);
    let image = place.build(&["python", "4.2.2"]);
    // None may be made in this namespace, which is how a machine with the setting at 0 behaves.
    let told = told_where(&place, "0", &[], &["run", &image, "-p", "0"]);
    assert!(told.contains("user namespaces"), "{told}");
    assert!(told.contains("max_user_namespaces"), "{told}");
    assert!(told.contains("hint: "), "{told}");
    // It is root there, who needs no other program.
    assert!(!told.contains("runc"), "{told}");
}

#[test]
fn oci_runtimes_are_tried_where_there_are_no_user_namespaces() {
    let place = Place::of(Person::Nobody);
    let image = place.build(&["python", "4.2.2"]);
    // One more, in which the user is nobody in particular, and no more in that.
    let user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"];
    let told = told_where(&place, "1", &user, &["run", &image, "-p", "0"]);
    for name in ["crun", "runc"] {
        let tried = format!("/{name} makes none either: could not open a container by ");
        assert!(told.contains(&tried), "{told}");
    }
    assert!(
        told.contains("error: this machine lets you make no user namespaces"),
        "{told}"
    );
}

/// What `tierce` says with these arguments where it fails, in a user namespace that has at most so
/// many others in it.
fn told_where(place: &Place, namespaces: &str, within: &[&str], arguments: &[&str]) -> String {
    let script = format!("echo {namespaces} >/proc/sys/user/max_user_namespaces && exec \"$@\"");
    let mut inside = place.command("unshare");
    inside
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .args(within)
        .arg(place.path("tierce"))
        .args(arguments);
    let output = inside.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    told
}
