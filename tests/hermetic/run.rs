//! `tierce run` and `tierce invoke`, with a function that is one static program.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tierce_testkit::sandbox::Output;
use tierce_testkit::{FakeRegistry, Record};

use crate::support::World;

/// Nothing here takes that long; a test that would wait for ever fails instead.
const DEADLINE: Duration = Duration::from_mins(1);

/// The function of `run/bootstrap.rs`, compiled once for all tests, in the edition that is named.
fn bootstrap(edition: &str) -> Vec<u8> {
    static FIRST: OnceLock<Vec<u8>> = OnceLock::new();
    let first = FIRST.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("bootstrap");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hermetic/run/bootstrap.rs");
        let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "-O", "-Ctarget-feature=+crt-static"])
            .args(["-Cstrip=symbols", "-o"])
            .args([&program, &source])
            .status()
            .unwrap();
        assert!(status.success());
        fs::read(program).unwrap()
    });
    // Where the text is in the program does not matter, for it stays as long.
    let mut bytes = first.clone();
    let marker = b"edition-0";
    let start = bytes.windows(marker.len()).position(|it| it == marker);
    let start = start.expect("the program says which edition it is");
    bytes[start..start + marker.len()].copy_from_slice(edition.as_bytes());
    bytes
}

const FIRST: &str = "edition-1";
const SECOND: &str = "edition-2";

/// A world with a project of that function, `app`.
fn world() -> World {
    let world = World::new();
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\ntarget = \"lambda\"\n\n[[layer]]\nname = \"code\"\n\
         add = [{ from = \"src/\", to = \"/var/task/\" }]\n\n[config]\n\
         entrypoint = [\"/var/task/bootstrap\"]\ncmd = [\"app.handler\"]\nworkdir = \"/var/task\"\n\
         env = { GREETING = \"from the image\", TABLE = \"orders\" }\n",
    );
    put_program(&world, FIRST);
    world
}

/// Saves the program as editors do: whole, under another name first.
fn put_program(world: &World, edition: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let new = world.sandbox.write("app/src/.new", bootstrap(edition));
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, world.path("app/src/bootstrap")).unwrap();
}

/// A `tierce run` that says where it is.
struct Running {
    child: Child,
    url: String,
    stdout: BufReader<ChildStdout>,
    log: Receiver<String>,
    heard: Vec<String>,
}

impl Running {
    #[track_caller]
    fn start(world: &World, arguments: &[&str]) -> Self {
        Self::start_as(world.tierce(&["run", "--port=0"]).args(arguments))
    }

    /// [`Self::start`] for a run that was prepared elsewhere.
    #[track_caller]
    fn start_as(command: tierce_testkit::sandbox::Command) -> Self {
        let mut command = command.into_inner();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = lines(child.stderr.take().unwrap());
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut url = String::new();
        stdout.read_line(&mut url).unwrap();
        let mut running = Self {
            child,
            url: url.trim_end().to_owned(),
            stdout,
            log,
            heard: Vec::new(),
        };
        if running.url.is_empty() {
            let _ = running.child.wait();
            running.heard.extend(running.log.iter());
            panic!("it did not start: {:#?}", running.heard);
        }
        running
    }

    fn endpoint(&self) -> &str {
        self.url.split_once("/2015-03-31/").unwrap().0
    }

    /// Invokes it.
    fn invoke(&self, world: &World, arguments: &[&str]) -> Output {
        let all = ["invoke", "--url", self.endpoint()];
        world.tierce(&all).args(arguments).run()
    }

    /// Invokes it with an event, and gives the answer as JSON.
    #[track_caller]
    fn answer(&self, world: &World, event: &Value) -> Value {
        answer_of(self.endpoint(), world, event)
    }

    /// Waits until a line of the log has this in it.
    #[track_caller]
    fn hears(&mut self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        if let Some(line) = self.heard.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.log.recv_timeout(left) else {
                panic!("`{text}` was not said: {:#?}", self.heard);
            };
            self.heard.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Sends a signal, and waits for the end: the exit code, and what more was on stdout.
    fn ends_by(mut self, world: &World, signal: &str) -> (Option<i32>, String, Vec<String>) {
        let id = self.child.id().to_string();
        let sent = world.sandbox.command("kill").args([signal, &id]).run();
        drop(sent.assert_success());
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "{signal} does not end it");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        self.heard.extend(self.log.iter());
        (status.code(), rest, std::mem::take(&mut self.heard))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that fails half-way leaves nothing either.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer of the function there to an event.
#[track_caller]
fn answer_of(endpoint: &str, world: &World, event: &Value) -> Value {
    let output = world.ok(&["invoke", "--url", endpoint, &event.to_string()]);
    serde_json::from_str(&output.stdout()).unwrap()
}

/// The lines of a pipe as they come.
fn lines(pipe: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
        }
    });
    receiver
}

/// Processes that were started in the sandbox of a world, by its own name in their environment.
fn processes_of(world: &World) -> Vec<String> {
    let name = world.sandbox.root().to_string_lossy().into_owned();
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter_map(|entry| {
            let of = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let said = [of("environ"), of("cmdline")].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            said.contains(&name).then_some(said)
        })
        .collect()
}

#[test]
fn a_project_is_built_and_answers() {
    let world = world();
    let mut running = Running::start(&world, &["app"]);
    let expected = format!(
        "{}/2015-03-31/functions/function/invocations",
        running.endpoint()
    );
    assert_eq!(running.url, expected);
    let event = json!({"do": "echo", "text": "zażółć 🦀"});
    assert_eq!(running.answer(&world, &event), event);
    let about = running.answer(&world, &json!({"do": "about"}));
    assert_eq!(about["edition"], FIRST);
    assert_eq!(about["number"], 2, "it is the same process");
    assert_eq!(about["directory"], "/var/task");
    assert_eq!(
        about["arguments"],
        json!(["/var/task/bootstrap", "app.handler"])
    );
    assert_eq!(
        about["arn"],
        "arn:aws:lambda:us-east-1:012345678912:function:function"
    );
    let variables = &about["variables"];
    for (name, value) in [
        ("_HANDLER", "app.handler"),
        ("AWS_LAMBDA_FUNCTION_NAME", "function"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_REGION", "us-east-1"),
        ("GREETING", "from the image"),
    ] {
        assert_eq!(variables[name], value, "{name}");
    }
    assert_eq!(variables["AWS_ACCESS_KEY_ID"], Value::Null);
    assert_eq!(variables["XDG_CACHE_HOME"], Value::Null, "of this machine");
    running.hears("START RequestId: ");
    running.hears("REPORT RequestId: ");
    let (code, rest, heard) = running.ends_by(&world, "-INT");
    assert_eq!((code, rest.as_str()), (Some(130), ""), "{heard:#?}");
}

#[test]
fn what_lambda_forbids_is_forbidden() {
    let world = world();
    let running = Running::start(&world, &["app"]);
    let write = |path: &str| running.answer(&world, &json!({"do": "write", "path": path}));
    assert_eq!(write("/tmp/x"), "written");
    assert_eq!(
        write("/var/task/x"),
        "read-only filesystem or storage medium"
    );
    assert_ne!(write("/dev/shm/x"), "written");
    drop(running.ends_by(&world, "-TERM"));
}

#[test]
fn flags_change_what_the_function_is() {
    let world = world();
    world.sandbox.write("data/file.txt", "of this machine");
    world
        .sandbox
        .write("local.env", "# mine\nGREETING=from a file\nFROM_HERE\n");
    let arguments = [
        "app",
        "--name=orders",
        "--memory=256",
        "--region=eu-west-1",
        "--env-file=local.env",
        "-e",
        "TABLE=flag",
        "-e",
        "NOWHERE",
        "--cmd=other.handler",
        "--workdir=/",
        "--writable",
        "--shm-size=1MiB",
        "-v",
        "data:/mnt/data",
        "--aws-credentials",
    ];
    let command = world.tierce(&["run", "--port=0"]).args(arguments);
    let command = command
        .env("FROM_HERE", "here")
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "not a secret");
    let running = Running::start_as(command);
    let all = [
        "invoke",
        "--url",
        running.endpoint(),
        "--function-name=orders",
    ];
    let ask = |event: Value| -> Value {
        let output = world
            .tierce(&all)
            .arg(event.to_string())
            .run()
            .assert_success();
        serde_json::from_str(&output.stdout()).unwrap()
    };
    let about = ask(json!({"do": "about"}));
    assert_eq!(about["directory"], "/");
    assert_eq!(about["arguments"][1], "other.handler");
    assert_eq!(
        about["arn"],
        "arn:aws:lambda:eu-west-1:012345678912:function:orders"
    );
    for (name, value) in [
        ("AWS_LAMBDA_FUNCTION_NAME", json!("orders")),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", json!("256")),
        ("AWS_REGION", json!("eu-west-1")),
        ("GREETING", json!("from a file")),
        ("TABLE", json!("flag")),
        ("FROM_HERE", json!("here")),
        ("NOWHERE", Value::Null),
        ("AWS_ACCESS_KEY_ID", json!("AKIDEXAMPLE")),
        ("AWS_SECRET_ACCESS_KEY", json!("not a secret")),
        ("AWS_SESSION_TOKEN", Value::Null),
    ] {
        assert_eq!(about["variables"][name], value, "{name}");
    }
    let read = ask(json!({"do": "read", "path": "/mnt/data/file.txt"}));
    assert_eq!(read, "of this machine");
    let write = |path: &str| ask(json!({"do": "write", "path": path}));
    assert_eq!(
        write("/mnt/data/new"),
        "read-only filesystem or storage medium"
    );
    assert_eq!(write("/var/task/new"), "written");
    assert_eq!(write("/dev/shm/new"), "written");
    assert!(!world.path("data/new").exists());
    drop(running.ends_by(&world, "-INT"));
}

#[test]
fn failures_are_told_apart() {
    let world = world();
    let mut running = Running::start(&world, &["app", "--timeout=2s"]);
    let fails = |event: Value, words: &str| {
        let output = running.invoke(&world, &[&event.to_string()]).assert_code(1);
        let stderr = output.stderr();
        assert!(
            stderr.contains(&format!("error: the function failed: {words}")),
            "{stderr}"
        );
        serde_json::from_str::<Value>(&output.stdout()).unwrap()
    };
    let payload = fails(json!({"do": "error"}), "Function.Refused: it says no");
    assert_eq!(payload["errorType"], "Function.Refused");
    fails(json!({"do": "exit"}), "Runtime.ExitError: ");
    fails(json!({"do": "hang"}), "Sandbox.Timedout: ");
    let about = running.answer(&world, &json!({"do": "about"}));
    assert_eq!(about["number"], 1, "another process");
    let output = running.invoke(&world, &["--json", "--log", "{\"do\": \"error\"}"]);
    let document = output.assert_code(1).json();
    assert_eq!(document["status"], 200);
    assert_eq!(document["functionError"], "Unhandled");
    assert_eq!(document["executedVersion"], "$LATEST");
    assert_eq!(document["payload"]["errorMessage"], "it says no");
    let log = document["log"].as_str().unwrap();
    assert!(log.starts_with("START RequestId: "), "{log}");
    running.hears("Task timed out after 2.00 seconds");
    drop(running.ends_by(&world, "-INT"));
}

#[test]
fn events_come_from_anywhere() {
    let world = world();
    let running = Running::start(&world, &["app"]);
    let file = world.sandbox.write("event.json", "{\"from\": \"file\"}");
    let file = file.to_string_lossy().into_owned();
    let said = |arguments: &[&str]| running.invoke(&world, arguments).assert_success().stdout();
    assert_eq!(said(&[]), "{}");
    assert_eq!(said(&[&file]), "{\"from\": \"file\"}");
    assert_eq!(said(&["[1, 2]"]), "[1, 2]");
    let piped = ["invoke", "--url", running.endpoint(), "-"];
    let output = world.tierce(&piped).stdin("{\"from\": \"stdin\"}").run();
    assert_eq!(output.assert_success().stdout(), "{\"from\": \"stdin\"}");
    let sample = world.ok(&["invoke", "--sample=sqs", "--show"]).stdout();
    assert_eq!(said(&["--sample=sqs"]), sample);
    assert_eq!(said(&["--dry-run"]), "");
    assert_eq!(said(&["--async"]), "");
    assert_eq!(said(&["-o", "answer.json", "[3]"]), "");
    assert_eq!(
        fs::read_to_string(world.path("answer.json")).unwrap(),
        "[3]"
    );
    let context = "{\"client\": {\"app\": \"test\"}}";
    let about = said(&["--client-context", context, "{\"do\": \"about\"}"]);
    let about: Value = serde_json::from_str(&about).unwrap();
    assert_eq!(about["context"], context);
    drop(running.ends_by(&world, "-INT"));
}

#[test]
fn answers_can_be_streams() {
    let world = world();
    let running = Running::start(&world, &["app"]);
    let stream = |what: &str| {
        let event = json!({ "do": what }).to_string();
        running.invoke(&world, &["--stream", &event])
    };
    assert_eq!(stream("stream").assert_success().stdout(), "one two three");
    let broken = stream("break").assert_code(1);
    assert_eq!(broken.stdout(), "one two ");
    assert!(broken.stderr().contains("Function.Broke"), "{broken:?}");
    drop(running.ends_by(&world, "-INT"));
}

#[test]
fn several_invocations_have_several_environments() {
    let world = world();
    let mut running = Running::start(&world, &["app", "--concurrency=3"]);
    let endpoint = running.endpoint().to_owned();
    let end = Instant::now() + DEADLINE;
    // Whoever comes late may meet one that is free again, but not for ever.
    while !running.heard.iter().any(|line| line.starts_with("[2] ")) {
        assert!(Instant::now() < end, "{:#?}", running.heard);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let answer = answer_of(&endpoint, &world, &json!({"do": "wait"}));
                    assert_eq!(answer["edition"], FIRST);
                });
            }
        });
        running.heard.extend(running.log.try_iter());
    }
    drop(running.ends_by(&world, "-INT"));
}

#[test]
fn an_image_can_be_invoked_once() {
    let world = world();
    world.runs(&["build", "app"]);
    let once = |arguments: &[&str]| {
        let all = ["invoke", "--image=store:app"];
        world.tierce(&all).args(arguments).run()
    };
    let output = once(&["{\"do\": \"say\"}"]).assert_success();
    assert_eq!(output.stdout(), "null");
    for line in ["said aloud", "said aside", "REPORT RequestId: "] {
        assert!(output.stderr().contains(line), "{output:?}");
    }
    let failed = once(&["{\"do\": \"error\"}"]).assert_code(1);
    assert!(
        failed.stderr().contains("Function.Refused: it says no"),
        "{failed:?}"
    );
    let failed = once(&["-e", "FAIL_INIT=yes"]).assert_code(1);
    assert!(
        failed.stderr().contains("Runtime.NoLuck: asked to fail"),
        "{failed:?}"
    );
    world.assert_no_litter();
}

#[test]
fn layers_of_a_registry_are_fetched_once() {
    let world = world();
    let registry = FakeRegistry::start();
    let name = format!("{}/app:1", registry.host());
    world.runs(&["build", "app", "-t", &name, "--push"]);
    let invoke = || {
        let output = world.ok(&["invoke", "--image", &name, "{\"do\": \"about\"}"]);
        let about: Value = serde_json::from_str(&output.stdout()).unwrap();
        assert_eq!(about["edition"], FIRST);
        registry.log().filter(Record::is_blob_download).len()
    };
    let first = invoke();
    assert!(first > 0);
    assert_eq!(invoke(), first);
    // Unpacked layers are no more than a cache.
    let pruned = world.ok(&["cache", "prune", "--to=0"]);
    assert!(pruned.stdout().starts_with("removed "), "{pruned:?}");
    assert!(invoke() > first);
}

#[test]
fn a_folder_is_followed() {
    let world = world();
    let mut running = Running::start(&world, &["--watch", "app"]);
    running.hears("watching app");
    let edition = || running.answer(&world, &json!({"do": "about"}))["edition"].clone();
    let becomes = |wanted: &str| {
        let end = Instant::now() + DEADLINE;
        while edition() != wanted {
            assert!(Instant::now() < end, "{wanted} did not come");
        }
    };
    assert_eq!(edition(), FIRST);
    put_program(&world, SECOND);
    becomes(SECOND);
    let settings = fs::read_to_string(world.path("app/tierce.toml")).unwrap();
    world.sandbox.write("app/tierce.toml", "[image\n");
    running.hears("the function goes on as it was");
    let answer = running.answer(&world, &json!({"do": "about"}));
    assert_eq!(answer["edition"], SECOND);
    put_program(&world, FIRST);
    world.sandbox.write("app/tierce.toml", settings);
    let end = Instant::now() + DEADLINE;
    while running.answer(&world, &json!({"do": "about"}))["edition"] != FIRST {
        assert!(Instant::now() < end);
    }
    drop(running.ends_by(&world, "-INT"));
}

#[test]
fn the_end_leaves_nothing() {
    tierce_testkit::process::have_programs_end_by_hang_up();
    for (signal, code) in [
        ("-INT", Some(130)),
        ("-TERM", Some(143)),
        ("-HUP", Some(129)),
        ("-KILL", None),
    ] {
        let world = world();
        let running = Running::start(&world, &["app"]);
        let mut busy = world
            .tierce(&["invoke", "--url", running.endpoint(), "{\"do\": \"hang\"}"])
            .spawn();
        let (ended, _, heard) = running.ends_by(&world, signal);
        assert_eq!(ended, code, "{heard:#?}");
        busy.wait().unwrap();
        let end = Instant::now() + DEADLINE;
        loop {
            let left = processes_of(&world);
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "{left:#?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&*world.sandbox.root().to_string_lossy()),
            "{mounts}"
        );
        if code.is_some() {
            world.assert_no_litter();
        }
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_up_the_end() {
    let world = world();
    // With more threads each of them would have to be held up.
    let run = world
        .tierce(&["run", "--port=0", "app"])
        .env("TOKIO_WORKER_THREADS", "1");
    let mut child = run
        .into_inner()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut url).unwrap();
    let endpoint = url.split_once("/2015-03-31/").unwrap().0;
    let mut busy = world
        .tierce(&["invoke", "--url", endpoint, "{\"do\": \"talk\"}"])
        .spawn();
    // Nearly as much as a pipe takes.
    let log = child.stderr.as_ref().unwrap();
    let end = Instant::now() + DEADLINE;
    while rustix::io::ioctl_fionread(log).unwrap() < 60_000 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let asked = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(asked, rustix::process::Signal::INT).unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::yield_now();
    };
    assert_eq!(status.code(), Some(130));
    busy.wait().unwrap();
}

#[test]
fn what_is_no_json_is_taken_where_it_is_allowed() {
    let mut world = world();
    let text = "a text with \"do\": \"echo\"";
    world.sandbox.write("event.txt", text);
    let once = ["invoke", "--any-payload", "--image", "app", "event.txt"];
    assert_eq!(world.ok(&once).stdout().trim_end(), text);
    let invoke = |endpoint| ["invoke", "--any-payload", "--url", endpoint, "event.txt"];
    let running = Running::start(&world, &["--any-payload", "app"]);
    let output = world.ok(&invoke(running.endpoint()));
    assert_eq!(output.stdout().trim_end(), text);
    let running = Running::start(&world, &["app"]);
    let endpoint = running.endpoint().to_owned();
    world.call(&endpoint, "URL");
    insta::assert_snapshot!(world.fails(1, &invoke(&endpoint)), @"error: [URL] answered 400 InvalidRequestContentException: Could not parse request body into json: Could not parse payload into json: expected value at line 1 column 1");
}

#[test]
fn what_cannot_run_is_told_before_it_starts() {
    let mut world = world();
    world.sandbox.write("empty/file", "");
    insta::assert_snapshot!(world.fails(2, &["run", "./empty"]), @"
    error: there is no tierce.toml in `./empty`
    hint: `tierce init` writes one; an image is named as elsewhere: HOST/REPO:TAG, store:NAME, oci:DIR, oci-archive:FILE or docker-archive:FILE
    ");
    insta::assert_snapshot!(world.fails(1, &["run", "-p0", "app", "-v", "nowhere:/x"]), @"
    error: could not find `nowhere`, to put it into the function
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(world.fails(2, &["run", "--watch", "store:app"]), @"
    error: --watch is for a folder, and an image is named
    hint: `tierce run --watch CONTEXT` builds and runs what is in a folder
    ");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    world.call(&port, "PORT");
    insta::assert_snapshot!(world.fails(1, &["run", "app", "-p", &port]), @"
    error: could not listen at 127.0.0.1:[PORT]
      caused by: Address already in use (os error 98)
    hint: something listens there, perhaps another `tierce run`; `--port 0` takes a free one
    ");
    drop(taken);
    insta::assert_snapshot!(world.fails(1, &["invoke", "-p", &port]), @"
    error: nothing listens at http://127.0.0.1:[PORT]
    hint: start the function with `tierce run`, or for this one event: `tierce invoke --image IMAGE`
    ");
    insta::assert_snapshot!(world.fails(2, &["invoke", "{no JSON"]), @"
    error: the event is not JSON: key must be a string at line 1 column 2
    hint: Lambda takes nothing else; a text is JSON in quotes: `'\"text\"'`
    ");
    insta::assert_snapshot!(world.fails(1, &["invoke", "no-file.json"]), @"
    error: could not read the event `no-file.json`
      caused by: No such file or directory (os error 2)
    ");
}

#[test]
fn what_lambda_would_refuse_of_a_function_is_refused() {
    let world = world();
    // What this machine can do is tried before, in a directory of the cache.
    let fails = |code, arguments: &[&str]| {
        let output = world.tierce(&["run", "-p0", "app"]).args(arguments).run();
        let output = output.assert_code(code);
        assert_eq!(output.stdout(), "");
        world.assert_no_litter();
        world.shown(output.stderr().trim_end())
    };
    insta::assert_snapshot!(fails(2, &["-e", "AWS_REGION=x"]), @"
    error: the variable AWS_REGION is Lambda's own, and no function can be configured with it
    hint: --region sets it
    ");
    world.sandbox.write("bad.env", "A1=b\nexport B1=c\n");
    insta::assert_snapshot!(fails(1, &["--env-file=bad.env"]), @"error: bad.env:2: the name `export B1` has spaces in it");
    insta::assert_snapshot!(fails(2, &["--workdir=task"]), @"
    error: WORKDIR `task` does not begin with a slash
    hint: name a directory of the image with `--workdir`, from the root on
    ");
    insta::assert_snapshot!(fails(1, &["--entrypoint=/lambda-entrypoint.sh", "--cmd=a", "--cmd=b"]), @"
    error: /lambda-entrypoint.sh ends at once unless CMD is exactly one word, the handler, and there are 2
    hint: name it with `--cmd app.handler`, or `handler` of tierce.toml
    ");
}
