//! The life of an environment, over a box that is none and a runtime that does as it is told; and
//! over plain processes with a real one.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tierce_runner::environment::{
    Done, Environment, Invocation, LogLine, LogSink, LogSource, Outcome, Patience, Progress, State,
};
use tierce_runner::function::{Function, Payloads};
use tierce_runner::sandbox::{
    Doorkeeper, Event, Exit, Log, Network, NotStarted, Order, Process, ProcessNumber, Sandbox,
    Written,
};
use tokio::sync::{mpsc, oneshot};

/// Longer than anything here takes on a busy machine: only a fault waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Keeps the lines of a log.
#[derive(Debug, Default)]
struct Lines(Mutex<Vec<(LogSource, String)>>);

impl LogSink for Lines {
    fn line(&self, line: LogLine) {
        let text = String::from_utf8_lossy(&line.text).into_owned();
        self.0.lock().unwrap().push((line.source, text));
    }
}

impl Lines {
    fn of(&self, source: LogSource) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines
            .iter()
            .filter(|(of, _)| *of == source)
            .map(|(_, text)| text.clone())
            .collect()
    }

    fn has(&self, part: &str) -> bool {
        let lines = self.0.lock().unwrap();
        lines.iter().any(|(_, text)| text.contains(part))
    }
}

/// Whether a process that is started runs, and on whose network.
type Start = (Result<(), NotStarted>, Network);

/// A box that has no processes: the test is all of them.
struct FakeBox {
    /// What was started and runs.
    started: mpsc::UnboundedReceiver<(ProcessNumber, Process)>,
    /// What else was ordered.
    ordered: mpsc::UnboundedReceiver<Order>,
    events: mpsc::UnboundedSender<Event>,
    written: mpsc::Sender<Written>,
    memory_peak: Arc<AtomicU64>,
    alive: Alive,
}

type Alive = Arc<Mutex<Vec<ProcessNumber>>>;

impl FakeBox {
    fn new((start, network): Start) -> (Self, Sandbox) {
        let (orders, taken_orders) = mpsc::unbounded_channel();
        let (told_events, events) = mpsc::unbounded_channel();
        let (writer, written) = mpsc::channel(16);
        let (drain, drains) = mpsc::unbounded_channel();
        let (tell_started, started) = mpsc::unbounded_channel();
        let (tell_ordered, ordered) = mpsc::unbounded_channel();
        let memory_peak = Arc::new(AtomicU64::new(0));
        let alive = Alive::default();
        tokio::spawn(obey(
            taken_orders,
            drains,
            told_events.clone(),
            tell_started,
            tell_ordered,
            Arc::clone(&alive),
            start,
        ));
        let sandbox = Sandbox {
            orders,
            events,
            written,
            drain,
            memory_peak: Arc::clone(&memory_peak),
            network,
            listener: TcpListener::bind(("127.0.0.1", 0)).unwrap(),
            doorkeeper: Doorkeeper::Anybody,
        };
        let fake = Self {
            started,
            ordered,
            events: told_events,
            written: writer,
            memory_peak,
            alive,
        };
        (fake, sandbox)
    }

    /// The next process that is started.
    async fn start(&mut self) -> (ProcessNumber, Process) {
        soon(self.started.recv()).await.expect("the box is there")
    }

    /// The next order that is not a start.
    async fn order(&mut self) -> Order {
        soon(self.ordered.recv()).await.expect("the box is there")
    }

    fn exit(&self, number: ProcessNumber, exit: Exit) {
        self.alive.lock().unwrap().retain(|alive| *alive != number);
        self.events.send(Event::Exited(number, exit)).unwrap();
    }

    async fn write(&self, log: Log, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        self.written.send(Written { log, bytes }).await.unwrap();
    }
}

/// What a box does by itself.
async fn obey(
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut drains: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    events: mpsc::UnboundedSender<Event>,
    started: mpsc::UnboundedSender<(ProcessNumber, Process)>,
    ordered: mpsc::UnboundedSender<Order>,
    alive: Alive,
    start: Result<(), NotStarted>,
) {
    loop {
        let order = tokio::select! {
            Some(drained) = drains.recv() => {
                let _ = drained.send(());
                continue;
            }
            order = orders.recv() => order,
        };
        let tell = |event| {
            let _ = events.send(event);
        };
        match &order {
            None => return,
            Some(Order::Start(number, process)) => match &start {
                Ok(()) => {
                    alive.lock().unwrap().push(*number);
                    tell(Event::Started(*number));
                    let _ = started.send((*number, process.clone()));
                }
                Err(reason) => tell(Event::NotStarted(*number, reason.clone())),
            },
            Some(Order::Terminate(_)) => {}
            Some(Order::KillAll) => {
                for number in std::mem::take(&mut *alive.lock().unwrap()) {
                    tell(Event::Exited(number, Exit::Signal(9)));
                }
                tell(Event::Empty);
            }
            Some(Order::End) => tell(Event::Ended(None)),
        }
        if let Some(order) = order
            && !matches!(order, Order::Start(..))
        {
            let _ = ordered.send(order);
        }
    }
}

/// What is waited for, which comes.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it comes soon")
}

/// An environment over a box that is none.
struct Stage {
    environment: Environment,
    fake: FakeBox,
    lines: Arc<Lines>,
    address: String,
    http: reqwest::Client,
}

fn function() -> Function {
    Function {
        name: "orders".to_owned(),
        version: "$LATEST".to_owned(),
        account: "123456789012".to_owned(),
        region: "eu-west-1".to_owned(),
        memory: 128,
        timeout: PATIENCE,
        init_limit: PATIENCE,
        payloads: Payloads::AsOnLambda,
        command: vec!["/run".to_owned(), "app.handler".to_owned()],
        handler: Some("app.handler".to_owned()),
        extensions: Vec::new(),
        directory: "/".to_owned(),
        image_environment: BTreeMap::new(),
        environment: BTreeMap::new(),
        credentials: None,
    }
}

fn invocation(id: &str) -> Invocation {
    Invocation {
        request_id: id.to_owned(),
        payload: Bytes::from_static(b"{\"x\": 1}"),
        content_type: "application/json".to_owned(),
        client_context: None,
        trace_id: "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0".to_owned(),
        arn: function().arn(),
        tenant_id: None,
    }
}

impl Stage {
    fn new(function: Function) -> Self {
        Self::starting(function, (Ok(()), Network::Host))
    }

    fn starting(function: Function, start: Start) -> Self {
        let (fake, sandbox) = FakeBox::new(start);
        Self::over(function, fake, sandbox, Duration::from_secs(2))
    }

    fn over(function: Function, fake: FakeBox, sandbox: Sandbox, shutdown: Duration) -> Self {
        let address = sandbox.listener.local_addr().unwrap().to_string();
        let lines = Arc::new(Lines::default());
        let sink = Arc::clone(&lines) as Arc<dyn LogSink>;
        let patience = Patience { shutdown };
        let environment = Environment::begin(1, Arc::new(function), sandbox, sink, patience);
        Self {
            environment,
            fake,
            lines,
            address,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// An environment whose runtime is ready; its `next` hangs.
    async fn ready(function: Function) -> (Self, ProcessNumber, Next) {
        let mut stage = Self::new(function);
        let (runtime, _) = stage.fake.start().await;
        let next = stage.next();
        stage.wait_for(&State::Ready).await;
        (stage, runtime, next)
    }

    async fn wait_for(&self, state: &State) {
        let mut told = self.environment.state();
        soon(told.wait_for(|now| now == state)).await.unwrap();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks for an invocation, beside the test.
    fn next(&self) -> Next {
        let url = self.url("/2018-06-01/runtime/invocation/next");
        let request = self.http.get(url);
        tokio::spawn(async move {
            let response = request.send().await.unwrap();
            Invoked {
                status: response.status().as_u16(),
                headers: response.headers().clone(),
                body: response.bytes().await.unwrap(),
            }
        })
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        send(self.http.post(self.url(path)).body(body)).await
    }

    async fn respond(&self, id: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        let path = format!("/2018-06-01/runtime/invocation/{id}/response");
        self.post(&path, body).await
    }

    /// Posts an error with a type.
    async fn fail(&self, path: &str, error_type: &str, body: &'static str) -> (u16, Value) {
        let request = self
            .http
            .post(self.url(path))
            .header("Lambda-Runtime-Function-Error-Type", error_type)
            .body(body);
        send(request).await
    }
}

type Next = tokio::task::JoinHandle<Invoked>;

/// What an invocation comes to.
async fn done(progress: mpsc::Receiver<Progress>) -> Done {
    collect(progress).await.1
}

async fn collect(mut progress: mpsc::Receiver<Progress>) -> (Vec<Progress>, Done) {
    let mut before = Vec::new();
    loop {
        match soon(progress.recv()).await.expect("the end is told") {
            Progress::Done(done) => return (before, done),
            other => before.push(other),
        }
    }
}

async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = soon(request.send()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

struct Invoked {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Bytes,
}

fn success(done: &Done) -> &Bytes {
    match &done.outcome {
        Outcome::Success { payload, .. } => payload,
        other => panic!("{other:?}"),
    }
}

fn failure(done: &Done) -> (&str, Value) {
    match &done.outcome {
        Outcome::FunctionError {
            payload,
            error_type,
        } => (
            error_type,
            serde_json::from_slice(payload).unwrap_or(Value::Null),
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_invocation_goes_to_the_runtime_and_comes_back() {
    let (stage, _, next) = Stage::ready(function()).await;
    let mut given = invocation("8476a536-e9f4-11e8-9739-2dfe598c3fcd");
    given.client_context = Some("{\n\"custom\": \"ü\"}".to_owned());
    let progress = stage.environment.invoke(given.clone());
    let invoked = next.await.unwrap();
    assert_eq!(invoked.status, 200);
    assert_eq!(invoked.body, given.payload);
    let header = |name: &str| {
        let value = invoked.headers.get(name)?;
        Some(String::from_utf8(value.as_bytes().to_vec()).unwrap())
    };
    for (name, value) in [
        ("content-type", Some("application/json")),
        (
            "lambda-runtime-aws-request-id",
            Some(given.request_id.as_str()),
        ),
        (
            "lambda-runtime-invoked-function-arn",
            Some("arn:aws:lambda:eu-west-1:123456789012:function:orders"),
        ),
        ("lambda-runtime-trace-id", Some(given.trace_id.as_str())),
        (
            "lambda-runtime-client-context",
            Some("{ \"custom\": \"ü\"}"),
        ),
        ("lambda-runtime-aws-tenant-id", None),
        ("lambda-runtime-cognito-identity", None),
    ] {
        assert_eq!(header(name).as_deref(), value, "{name}");
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let deadline: u128 = header("lambda-runtime-deadline-ms")
        .unwrap()
        .parse()
        .unwrap();
    assert!(deadline <= now + PATIENCE.as_millis());
    assert!(deadline > now);

    // Written before the response, and no line yet.
    stage.fake.write(Log::Function, "one\ntw").await;
    stage.fake.memory_peak.store(5 << 20, Ordering::Relaxed);
    let (status, body) = stage.respond(&given.request_id, "{\"ok\": true}").await;
    assert_eq!((status, body), (202, json!({"status": "OK"})));
    let done = done(progress).await;
    assert_eq!(success(&done), "{\"ok\": true}");
    let tail = String::from_utf8(done.log_tail.to_vec()).unwrap();
    let lines: Vec<&str> = tail.lines().collect();
    assert_eq!(
        &lines[..4],
        [
            "START RequestId: 8476a536-e9f4-11e8-9739-2dfe598c3fcd Version: $LATEST",
            "one",
            "tw",
            "END RequestId: 8476a536-e9f4-11e8-9739-2dfe598c3fcd",
        ]
    );
    assert!(lines[4].starts_with("REPORT RequestId: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\t"));
    assert!(lines[4].contains("Memory Size: 128 MB\tMax Memory Used: 5 MB\tInit Duration: "));
    assert_eq!(stage.lines.of(LogSource::Function), ["one", "tw"]);

    // The second one has no init.
    let next = stage.next();
    let progress = stage.environment.invoke(invocation("2"));
    assert_eq!(
        next.await.unwrap().headers["lambda-runtime-aws-request-id"],
        "2"
    );
    stage.respond("2", "2").await;
    let done = self::done(progress).await;
    assert_eq!(success(&done), "2");
    assert!(!String::from_utf8_lossy(&done.log_tail).contains("Init Duration"));
}

#[tokio::test]
async fn errors_of_the_function_reach_the_client_as_they_are() {
    for (header, error_type) in [
        ("Function.KeyError", "Function.KeyError"),
        ("KeyError", "Function.Unknown"),
    ] {
        let (stage, _, next) = Stage::ready(function()).await;
        let progress = stage.environment.invoke(invocation("1"));
        next.await.unwrap();
        let body = "{\"errorMessage\": \"ü\",  \"stackTrace\": []}";
        let path = "/2018-06-01/runtime/invocation/1/error";
        let (status, _) = stage.fail(path, header, body).await;
        assert_eq!(status, 202);
        match done(progress).await.outcome {
            Outcome::FunctionError {
                payload,
                error_type: got,
            } => {
                assert_eq!(payload, body);
                assert_eq!(got, error_type);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_exit_ends_the_invocation_and_the_next_one_starts_anew() {
    for (exit, message) in [
        (Exit::Code(0), "Runtime exited without providing a reason"),
        (Exit::Code(1), "Runtime exited with error: exit status 1"),
        (Exit::Signal(9), "Runtime exited with error: signal: killed"),
        (
            Exit::Signal(11),
            "Runtime exited with error: signal: segmentation fault",
        ),
    ] {
        let (mut stage, runtime, next) = Stage::ready(function()).await;
        let progress = stage.environment.invoke(invocation("1"));
        next.await.unwrap();
        stage.fake.exit(runtime, exit);
        let ended = done(progress).await;
        let (error_type, payload) = failure(&ended);
        assert_eq!(error_type, "Runtime.ExitError");
        assert_eq!(
            payload,
            json!({
                "errorType": "Runtime.ExitError",
                "errorMessage": format!("RequestId: 1 Error: {message}"),
            })
        );
        let tail = String::from_utf8(ended.log_tail.to_vec()).unwrap();
        assert!(
            tail.contains("Status: error\tError Type: Runtime.ExitError"),
            "{tail}"
        );

        let progress = stage.environment.invoke(invocation("2"));
        let (again, _) = stage.fake.start().await;
        assert_ne!(again, runtime);
        let next = stage.next();
        next.await.unwrap();
        stage.respond("2", "2").await;
        assert_eq!(success(&done(progress).await), "2");
    }
}

/// What a failed initialisation comes to, at first and for the invocation after it.
async fn init_fails(
    stage: &mut Stage,
    failing: impl AsyncFn(&mut Stage),
    init_report: &str,
    payload: &Value,
) {
    failing(stage).await;
    let mut told = stage.environment.state();
    soon(told.wait_for(|now| matches!(now, State::InitFailed(_))))
        .await
        .unwrap();
    let platform = stage.lines.of(LogSource::Platform);
    assert!(platform[0].starts_with("INIT_REPORT Init Duration: "));
    assert!(platform[0].ends_with(init_report), "{platform:?}");

    let progress = stage.environment.invoke(invocation("1"));
    failing(stage).await;
    let ended = done(progress).await;
    let (error_type, got) = failure(&ended);
    assert_eq!(got, *payload);
    assert_eq!(error_type, payload["errorType"]);
    let tail = String::from_utf8(ended.log_tail.to_vec()).unwrap();
    let phase = init_report.replace("Phase: init", "Phase: invoke");
    assert!(tail.contains(&phase), "{tail}");
    assert!(!tail.contains("\tInit Duration"), "{tail}");
}

#[tokio::test]
async fn an_init_that_fails_is_tried_again_for_the_next_invocation() {
    for (exit, message) in [
        (Exit::Code(0), "Runtime exited without providing a reason"),
        (Exit::Code(1), "Runtime exited with error: exit status 1"),
        (
            Exit::Signal(6),
            "Runtime exited with error: signal: aborted",
        ),
    ] {
        let mut stage = Stage::new(function());
        let exits = async |stage: &mut Stage| {
            let (runtime, process) = stage.fake.start().await;
            assert_eq!(process.program, "/run");
            assert_eq!(process.arguments, ["app.handler"]);
            assert_eq!(process.environment["AWS_LAMBDA_RUNTIME_API"], stage.address);
            stage.fake.exit(runtime, exit);
        };
        let payload = json!({
            "errorType": "Runtime.ExitError",
            "errorMessage": format!("RequestId: 1 Error: {message}"),
        });
        let report = "\tPhase: init\tStatus: error\tError Type: Runtime.ExitError";
        init_fails(&mut stage, exits, report, &payload).await;
    }
}

#[tokio::test]
async fn what_a_runtime_says_of_its_init_reaches_the_client() {
    const ERROR: &str =
        r#"{"errorMessage": "No module named 'x'", "errorType": "Runtime.ImportModuleError"}"#;
    let mut stage = Stage::new(function());
    let fails = async |stage: &mut Stage| {
        stage.fake.start().await;
        let path = "/2018-06-01/runtime/init/error";
        let (status, _) = stage.fail(path, "Runtime.ImportModuleError", ERROR).await;
        assert_eq!(status, 202);
    };
    let report = "\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError";
    let payload = serde_json::from_str(ERROR).unwrap();
    init_fails(&mut stage, fails, report, &payload).await;
    let now = stage.environment.state().borrow().clone();
    assert!(!matches!(now, State::Gone(_)), "{now:?}");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_an_invalid_entrypoint() {
    for (reason, error_type, message) in [
        (
            NotStarted::Program("/run".to_owned(), "exec format error".to_owned()),
            "Runtime.InvalidEntrypoint",
            "fork/exec /run: exec format error",
        ),
        (
            NotStarted::Directory("/work".to_owned(), "no such file or directory".to_owned()),
            "Runtime.InvalidWorkingDir",
            "chdir /work: no such file or directory",
        ),
    ] {
        let mut stage = Stage::starting(function(), (Err(reason), Network::Host));
        let payload = json!({
            "errorType": error_type,
            "errorMessage": format!("RequestId: 1 Error: {message}"),
        });
        let report = format!("\tPhase: init\tStatus: error\tError Type: {error_type}");
        init_fails(&mut stage, async |_: &mut Stage| {}, &report, &payload).await;
        assert_eq!(
            stage.lines.has("another processor"),
            error_type == "Runtime.InvalidEntrypoint"
        );
    }
}

#[tokio::test]
async fn an_init_has_a_limit_and_then_the_functions_time() {
    let mut stage = Stage::new(Function {
        init_limit: Duration::from_millis(20),
        ..function()
    });
    let _first = stage.fake.start().await;
    let words = "Sandbox.Timedout: Task timed out after 0.02 seconds".to_owned();
    stage.wait_for(&State::InitFailed(words)).await;
    assert_eq!(
        stage.lines.of(LogSource::Platform),
        ["INIT_REPORT Init Duration: 20.00 ms\tPhase: init\tStatus: timeout"]
    );
    let progress = stage.environment.invoke(invocation("1"));
    stage.fake.start().await;
    stage.next().await.unwrap();
    stage.respond("1", "1").await;
    assert_eq!(success(&done(progress).await), "1");
}

#[tokio::test]
async fn a_function_that_takes_too_long_is_killed_and_starts_anew() {
    let (mut stage, _, next) = Stage::ready(Function {
        timeout: Duration::from_millis(500),
        ..function()
    })
    .await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    stage.fake.write(Log::Function, "working\n").await;
    let ended = done(progress).await;
    assert_eq!(
        failure(&ended),
        (
            "Sandbox.Timedout",
            json!({
                "errorType": "Sandbox.Timedout",
                "errorMessage": "RequestId: 1 Error: Task timed out after 0.50 seconds",
            })
        )
    );
    let tail = String::from_utf8(ended.log_tail.to_vec()).unwrap();
    let lines: Vec<&str> = tail.lines().collect();
    assert_eq!(lines[1], "working");
    assert!(
        lines[2].ends_with("Z 1 Task timed out after 0.50 seconds"),
        "{tail}"
    );
    assert_eq!(lines[3], "END RequestId: 1");
    assert!(
        lines[4].starts_with("REPORT RequestId: 1\tDuration: 500.00 ms\tBilled Duration: "),
        "{tail}"
    );
    assert!(lines[4].ends_with("\tStatus: timeout"), "{tail}");
    assert!(matches!(stage.fake.order().await, Order::KillAll));
    stage.wait_for(&State::Ready).await;
    // What comes too late is nobody's answer.
    assert_eq!(stage.respond("1", "1").await.0, 400);
}

#[tokio::test]
async fn answers_may_have_six_mebibytes() {
    const LIMIT: usize = 6 * 1024 * 1024 + 100;
    for (length, status) in [(LIMIT, 202), (LIMIT + 1, 413), (LIMIT * 3, 413)] {
        let (stage, _, next) = Stage::ready(function()).await;
        let progress = stage.environment.invoke(invocation("1"));
        next.await.unwrap();
        let (got, body) = stage.respond("1", vec![b'x'; length]).await;
        assert_eq!(got, status, "{length}");
        let ended = done(progress).await;
        if status == 202 {
            assert_eq!(success(&ended).len(), length);
        } else {
            assert_eq!(body["errorType"], "RequestEntityTooLarge");
            assert_eq!(
                failure(&ended),
                (
                    "Function.ResponseSizeTooLarge",
                    json!({
                        "errorType": "Function.ResponseSizeTooLarge",
                        "errorMessage": "Response payload size exceeded maximum allowed payload \
                            size (6291556 bytes).",
                    })
                )
            );
        }
        // The runtime lives on.
        let progress = stage.environment.invoke(invocation("2"));
        stage.next().await.unwrap();
        stage.respond("2", "2").await;
        assert_eq!(success(&done(progress).await), "2");
    }
}

#[tokio::test]
async fn answers_may_be_longer_where_anything_may_be_in_them() {
    let (stage, _, next) = Stage::ready(Function {
        payloads: Payloads::Any,
        ..function()
    })
    .await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    let length = 7 * 1024 * 1024;
    assert_eq!(stage.respond("1", vec![b'x'; length]).await.0, 202);
    assert_eq!(success(&done(progress).await).len(), length);
}

#[tokio::test]
async fn what_is_out_of_turn_is_refused() {
    let mut stage = Stage::new(function());
    stage.fake.start().await;
    let refused = |(status, body): (u16, Value)| {
        (status, body["errorType"].as_str().unwrap_or("").to_owned())
    };
    let invalid_id = (400, "InvalidRequestID".to_owned());
    let invalid_state = (403, "InvalidStateTransition".to_owned());
    // No invocation yet.
    assert_eq!(refused(stage.respond("1", "").await), invalid_id);
    let next = stage.next();
    stage.wait_for(&State::Ready).await;
    let init_error = "/2018-06-01/runtime/init/error";
    assert_eq!(
        refused(stage.fail(init_error, "Runtime.X", "{}").await),
        invalid_state
    );
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    assert_eq!(refused(stage.respond("2", "").await), invalid_id);
    // One that was lost is given once more.
    let again = stage.next().await.unwrap();
    assert_eq!(again.headers["lambda-runtime-aws-request-id"], "1");
    assert_eq!(stage.respond("1", "one").await.0, 202);
    assert_eq!(refused(stage.respond("1", "two").await), invalid_state);
    let error = "/2018-06-01/runtime/invocation/1/error";
    assert_eq!(
        refused(stage.fail(error, "Function.X", "{}").await),
        invalid_state
    );
    assert_eq!(success(&done(progress).await), "one");
    let _next = stage.next();
    stage.wait_for(&State::Ready).await;
    assert_eq!(refused(stage.respond("1", "two").await), invalid_id);

    for (path, status) in [
        ("/2018-06-01/runtime/invocation/next", 405),
        ("/2018-06-01/nothing", 404),
        ("/", 404),
    ] {
        assert_eq!(stage.post(path, "x").await.0, status, "{path}");
    }
    let ping = stage.http.get(stage.url("/2018-06-01/ping")).send().await;
    assert_eq!(ping.unwrap().text().await.unwrap(), "pong");
}

#[tokio::test]
async fn a_runtime_that_went_away_and_asked_again_gets_it() {
    let (stage, _, next) = Stage::ready(function()).await;
    next.abort();
    let next = stage.next();
    let progress = stage.environment.invoke(invocation("1"));
    assert_eq!(
        next.await.unwrap().headers["lambda-runtime-aws-request-id"],
        "1"
    );
    stage.respond("1", "1").await;
    assert_eq!(success(&done(progress).await), "1");
}

/// Sends the head of a streamed response and what follows, as it is, and takes the answer's head.
async fn stream(stage: &Stage, id: &str, chunks: &[&str]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut connection = tokio::net::TcpStream::connect(&stage.address)
        .await
        .unwrap();
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: x\r\n\
         Content-Type: text/plain\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n\
         Transfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    for chunk in chunks {
        connection.write_all(chunk.as_bytes()).await.unwrap();
    }
    connection.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(connection.read_to_string(&mut answer))
        .await
        .unwrap_or(0);
    answer.lines().next().unwrap_or("").to_owned()
}

#[tokio::test]
async fn streamed_answers_come_piece_by_piece_to_whatever_end() {
    for (chunks, answer, expected) in [
        (
            &["5\r\nhello\r\n", "6\r\n world\r\n", "0\r\n\r\n"][..],
            "HTTP/1.1 202 Accepted",
            None,
        ),
        (
            &[
                "5\r\nhello\r\n6\r\n world\r\n0\r\n",
                "Lambda-Runtime-Function-Error-Type: Function.Broken\r\n",
                // {"errorMessage":"x"}
                "Lambda-Runtime-Function-Error-Body: eyJlcnJvck1lc3NhZ2UiOiJ4In0=\r\n\r\n",
            ],
            "HTTP/1.1 202 Accepted",
            Some(("Function.Broken", json!({"errorMessage": "x"}))),
        ),
        (
            &["5\r\nhello\r\n", "6\r\n world\r\n", "9\r\nand"],
            "",
            Some((
                "Runtime.TruncatedResponse",
                json!({
                    "errorType": "Runtime.TruncatedResponse",
                    "errorMessage": "RequestId: 1 Error: the response was cut off",
                }),
            )),
        ),
    ] {
        let (stage, _, next) = Stage::ready(function()).await;
        let progress = stage.environment.invoke(invocation("1"));
        next.await.unwrap();
        let answered = async {
            let said = stream(&stage, "1", chunks).await;
            (said, stage.next())
        };
        let ((said, _next), (before, ended)) = tokio::join!(answered, collect(progress));
        if !answer.is_empty() {
            assert_eq!(said, answer);
        }
        let mut pieces = before.into_iter();
        match pieces.next() {
            Some(Progress::Streaming(head)) => {
                assert_eq!(head.content_type.as_deref(), Some("text/plain"));
            }
            other => panic!("{other:?}"),
        }
        let mut whole = Vec::new();
        for piece in pieces {
            match piece {
                Progress::Piece(piece) => whole.extend_from_slice(&piece),
                other => panic!("{other:?}"),
            }
        }
        assert!(whole.starts_with(b"hello world"));
        match expected {
            None => assert_eq!(success(&ended), ""),
            Some(expected) => assert_eq!(failure(&ended), expected),
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_up_nothing_but_the_stream() {
    let (stage, _, next) = Stage::ready(Function {
        timeout: Duration::from_millis(200),
        ..function()
    })
    .await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    let body = vec![b'x'; 64 << 20];
    let request = stage
        .http
        .post(stage.url("/2018-06-01/runtime/invocation/1/response"))
        .header("Lambda-Runtime-Function-Response-Mode", "streaming")
        .body(body);
    let sending = tokio::spawn(async move { request.send().await.map(|it| it.status()) });
    stage.wait_for(&State::Ready).await;
    let (before, ended) = collect(progress).await;
    assert!(before.len() <= 17);
    assert_eq!(failure(&ended).0, "Sandbox.Timedout");
    // Nobody waits any more, so the rest is read, and told to be of no use.
    assert_eq!(soon(sending).await.unwrap().unwrap(), 400);
}

#[tokio::test]
async fn another_response_mode_is_refused() {
    let (stage, _, next) = Stage::ready(function()).await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    let request = stage
        .http
        .post(stage.url("/2018-06-01/runtime/invocation/1/response"))
        .header("Lambda-Runtime-Function-Response-Mode", "rushing")
        .body("x");
    let (status, body) = send(request).await;
    assert_eq!(
        (status, &body["errorType"]),
        (400, &json!("InvalidFunctionResponseMode"))
    );
    assert_eq!(
        failure(&done(progress).await).0,
        "Runtime.InvalidResponseModeHeader"
    );
}

#[tokio::test]
async fn a_time_beyond_all_clocks_is_no_limit() {
    let (stage, _, next) = Stage::ready(Function {
        timeout: Duration::MAX,
        init_limit: Duration::MAX,
        ..function()
    })
    .await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    stage.respond("1", "1").await;
    assert_eq!(success(&done(progress).await), "1");
}

#[tokio::test]
async fn a_function_goes_on_without_its_client() {
    let (stage, _, next) = Stage::ready(function()).await;
    drop(stage.environment.invoke(invocation("1")));
    next.await.unwrap();
    assert_eq!(stage.respond("1", "1").await.0, 202);
    let progress = stage.environment.invoke(invocation("2"));
    stage.next().await.unwrap();
    stage.respond("2", "2").await;
    assert_eq!(success(&done(progress).await), "2");
}

#[tokio::test]
async fn too_much_memory_is_told_whichever_event_comes_first() {
    for exit_first in [true, false] {
        let (stage, runtime, next) = Stage::ready(function()).await;
        let progress = stage.environment.invoke(invocation("1"));
        next.await.unwrap();
        stage.fake.memory_peak.store(150 << 20, Ordering::Relaxed);
        if exit_first {
            stage.fake.exit(runtime, Exit::Signal(9));
        }
        stage
            .fake
            .events
            .send(Event::OutOfMemory(150 << 20))
            .unwrap();
        if !exit_first {
            stage.fake.exit(runtime, Exit::Signal(9));
        }
        let ended = done(progress).await;
        assert_eq!(
            failure(&ended),
            (
                "Runtime.OutOfMemory",
                json!({
                    "errorType": "Runtime.OutOfMemory",
                    "errorMessage": "RequestId: 1 Error: Runtime exited with error: signal: killed",
                })
            )
        );
        let tail = String::from_utf8(ended.log_tail.to_vec()).unwrap();
        assert!(
            tail.contains("Max Memory Used: 128 MB")
                && tail.contains("Error Type: Runtime.OutOfMemory"),
            "{tail}"
        );
        stage.wait_for(&State::Ready).await;
        assert_eq!(
            stage.lines.of(LogSource::Hint),
            [
                "the processes used 150 MiB of memory together and the function has 128 MiB: raise --memory, or use less"
            ]
        );
    }
}

#[tokio::test]
async fn traps_are_explained_after_a_failure_and_only_then() {
    let (stage, _, next) = Stage::ready(function()).await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    let trap = "OSError: [Errno 38] Function not implemented\n";
    stage.fake.write(Log::Function, trap).await;
    stage.respond("1", "1").await;
    success(&done(progress).await);
    assert!(stage.lines.of(LogSource::Hint).is_empty());

    let progress = stage.environment.invoke(invocation("2"));
    stage.next().await.unwrap();
    stage.fake.write(Log::Function, trap).await;
    let path = "/2018-06-01/runtime/invocation/2/error";
    stage.fail(path, "Runtime.Unhandled", "{}").await;
    failure(&done(progress).await);
    let _next = stage.next();
    stage.wait_for(&State::Ready).await;
    let hints = stage.lines.of(LogSource::Hint);
    assert_eq!(hints.len(), 1);
    assert!(hints[0].contains("/dev/shm"), "{hints:?}");
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let (fake, mut sandbox) = FakeBox::new((Ok(()), Network::Host));
    // Nobody is a descendant of itself.
    sandbox.doorkeeper = Doorkeeper::Descendants(std::process::id());
    let stage = Stage::over(function(), fake, sandbox, PATIENCE);
    let ping = stage.http.get(stage.url("/2018-06-01/ping")).send();
    assert!(soon(ping).await.is_err());
}

#[tokio::test]
async fn a_box_that_is_gone_fails_what_is_asked_of_it() {
    let (stage, _, next) = Stage::ready(function()).await;
    let first = stage.environment.invoke(invocation("1"));
    let second = stage.environment.invoke(invocation("2"));
    next.await.unwrap();
    let reason = "the keeper was killed".to_owned();
    stage.fake.events.send(Event::Ended(Some(reason))).unwrap();
    let reason = Some("the keeper was killed".to_owned());
    stage.wait_for(&State::Gone(reason)).await;
    for progress in [first, second] {
        match done(progress).await.outcome {
            Outcome::Failed(words) => assert_eq!(words, "the keeper was killed"),
            other => panic!("{other:?}"),
        }
    }
    let late = done(stage.environment.invoke(invocation("3"))).await;
    assert!(matches!(late.outcome, Outcome::Failed(_)));
}

#[tokio::test]
async fn a_shutdown_waits_for_no_invocation() {
    let (mut stage, _, next) = Stage::ready(function()).await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    soon(stage.environment.clone().shut_down()).await;
    match done(progress).await.outcome {
        Outcome::Failed(words) => assert_eq!(words, "the environment was shut down"),
        other => panic!("{other:?}"),
    }
    // Nobody has to be told, so nobody is waited for.
    assert!(matches!(stage.fake.order().await, Order::KillAll));
    assert!(matches!(stage.fake.order().await, Order::End));
    stage.wait_for(&State::Gone(None)).await;
}

#[tokio::test]
async fn one_that_nobody_holds_ends_after_its_invocation() {
    let (stage, _, next) = Stage::ready(function()).await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    let Stage {
        environment,
        mut fake,
        address,
        http,
        ..
    } = stage;
    drop(environment);
    let url = format!("http://{address}/2018-06-01/runtime/invocation/1/response");
    send(http.post(url).body("1")).await;
    assert_eq!(success(&done(progress).await), "1");
    let url = format!("http://{address}/2018-06-01/runtime/invocation/next");
    let _next = tokio::spawn(http.get(url).send());
    assert!(matches!(fake.order().await, Order::KillAll));
    assert!(matches!(fake.order().await, Order::End));
}

#[tokio::test]
async fn one_that_nobody_holds_does_not_finish_its_init() {
    let mut stage = Stage::new(function());
    stage.fake.start().await;
    drop(stage.environment);
    assert!(matches!(stage.fake.order().await, Order::KillAll));
    assert!(matches!(stage.fake.order().await, Order::End));
}

#[tokio::test]
async fn a_response_that_was_cut_off_by_the_runtimes_end_is_told_as_such() {
    use tokio::io::AsyncWriteExt as _;
    for exit_first in [true, false] {
        let (stage, runtime, next) = Stage::ready(function()).await;
        let mut progress = stage.environment.invoke(invocation("1"));
        next.await.unwrap();
        let mut connection = tokio::net::TcpStream::connect(&stage.address)
            .await
            .unwrap();
        let head = "POST /2018-06-01/runtime/invocation/1/response HTTP/1.1\r\nHost: x\r\n\
        Lambda-Runtime-Function-Response-Mode: streaming\r\nContent-Length: 9\r\n\r\nhello";
        connection.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..2 {
            assert!(!matches!(
                soon(progress.recv()).await.unwrap(),
                Progress::Done(_)
            ));
        }
        if exit_first {
            stage.fake.exit(runtime, Exit::Code(1));
            // When this is answered the exit is known.
            assert_eq!(stage.respond("2", "").await.0, 400);
            drop(connection);
        } else {
            drop(connection);
            // The connection's end is known when its response is no longer on its way.
            while stage.respond("1", "").await.1["errorMessage"]
                .as_str()
                .is_none_or(|words| !words.contains("from ResponseSent"))
            {}
            stage.fake.exit(runtime, Exit::Code(1));
        }
        assert_eq!(failure(&done(progress).await).0, "Runtime.ExitError");
    }
}

#[tokio::test]
async fn a_runtime_that_ends_between_invocations_is_replaced() {
    let (mut stage, runtime, next) = Stage::ready(function()).await;
    stage.fake.exit(runtime, Exit::Code(3));
    drop(next);
    assert!(matches!(stage.fake.order().await, Order::KillAll));
    let progress = stage.environment.invoke(invocation("1"));
    stage.fake.start().await;
    stage.next().await.unwrap();
    stage.respond("1", "1").await;
    assert_eq!(success(&done(progress).await), "1");
    assert!(stage.lines.has("exit status 3"));
}

/// The identifier that a registration comes to.
async fn register(stage: &Stage, name: &str, events: Value) -> Result<String, (u16, String)> {
    let request = stage
        .http
        .post(stage.url("/2020-01-01/extension/register"))
        .header("Lambda-Extension-Name", name)
        .header("Lambda-Extension-Accept-Feature", "other, accountId")
        .body(json!({"events": events}).to_string());
    let response = soon(request.send()).await.unwrap();
    let status = response.status().as_u16();
    let identifier = response
        .headers()
        .get("lambda-extension-identifier")
        .map(|value| value.to_str().unwrap().to_owned());
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    match identifier {
        Some(identifier) => {
            let told = json!({
                "functionName": "orders",
                "functionVersion": "$LATEST",
                "handler": "app.handler",
                "accountId": "123456789012",
            });
            assert_eq!(body, told);
            Ok(identifier)
        }
        None => Err((status, body["errorType"].as_str().unwrap().to_owned())),
    }
}

/// Asks for an event, beside the test.
fn event(stage: &Stage, identifier: &str) -> tokio::task::JoinHandle<(u16, Value)> {
    let request = stage
        .http
        .get(stage.url("/2020-01-01/extension/event/next"))
        .header("Lambda-Extension-Identifier", identifier);
    tokio::spawn(send(request))
}

fn with_extension() -> Function {
    Function {
        extensions: vec!["/opt/extensions/watch".to_owned()],
        ..function()
    }
}

#[tokio::test]
async fn an_external_extension_comes_first_and_goes_last() {
    let mut stage = Stage::new(with_extension());
    let (process, started) = stage.fake.start().await;
    assert_eq!(started.program, "/opt/extensions/watch");
    assert_eq!(started.log, Log::Extension);
    assert!(!started.environment.contains_key("_HANDLER"));
    let watch = register(&stage, "watch", json!(["INVOKE", "SHUTDOWN"]))
        .await
        .unwrap();
    // The runtime starts when all are registered, and not before.
    let (runtime, started) = stage.fake.start().await;
    assert_eq!(started.program, "/run");
    let inner = register(&stage, "inner", json!(["INVOKE"])).await.unwrap();
    let next = stage.next();
    let watching = event(&stage, &watch);
    assert_eq!(*stage.environment.state().borrow(), State::Initialising);
    let inside = event(&stage, &inner);
    stage.wait_for(&State::Ready).await;
    assert_eq!(
        register(&stage, "late", json!([])).await,
        Err((403, "Extension.RegistrationClosed".to_owned()))
    );

    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    for told in [watching, inside] {
        let (status, told) = soon(told).await.unwrap();
        assert_eq!(status, 200);
        assert_eq!(told["eventType"], "INVOKE");
        assert_eq!(told["requestId"], "1");
        assert_eq!(told["invokedFunctionArn"], function().arn());
        assert_eq!(told["tracing"]["type"], "X-Amzn-Trace-Id");
        assert!(told["deadlineMs"].is_u64());
    }
    stage.respond("1", "1").await;
    // The client has its answer while the extensions are still busy.
    assert_eq!(success(&done(progress).await), "1");
    let next = stage.next();
    assert_eq!(*stage.environment.state().borrow(), State::Busy);
    let watching = event(&stage, &watch);
    assert_eq!(*stage.environment.state().borrow(), State::Busy);
    let _inside = event(&stage, &inner);
    stage.wait_for(&State::Ready).await;

    let ending = tokio::spawn(stage.environment.clone().shut_down());
    match stage.fake.order().await {
        Order::Terminate(number) => assert_eq!(number, runtime),
        other => panic!("{other:?}"),
    }
    stage.fake.exit(runtime, Exit::Signal(15));
    let (_, told) = soon(watching).await.unwrap();
    assert_eq!(told["eventType"], "SHUTDOWN");
    assert_eq!(told["shutdownReason"], "spindown");
    stage.fake.exit(process, Exit::Code(0));
    soon(ending).await.unwrap();
    assert!(matches!(stage.fake.order().await, Order::KillAll));
    assert!(matches!(stage.fake.order().await, Order::End));
    drop(next);
    let platform = stage.lines.of(LogSource::Platform);
    assert_eq!(
        platform[..2],
        [
            "EXTENSION\tName: watch\tState: Ready\tEvents: [INVOKE, SHUTDOWN]",
            "EXTENSION\tName: inner\tState: Ready\tEvents: [INVOKE]",
        ]
    );
}

#[tokio::test]
async fn extensions_are_told_why_they_end_and_not_waited_for_forever() {
    for reason in ["spindown", "timeout", "failure"] {
        let (fake, sandbox) = FakeBox::new((Ok(()), Network::Host));
        let timeout = match reason {
            "timeout" => Duration::from_millis(300),
            _ => PATIENCE,
        };
        let function = Function {
            timeout,
            ..with_extension()
        };
        let mut stage = Stage::over(function, fake, sandbox, Duration::from_millis(300));
        stage.fake.start().await;
        let watch = register(&stage, "watch", json!(["SHUTDOWN"]))
            .await
            .unwrap();
        let (runtime, _) = stage.fake.start().await;
        let watching = event(&stage, &watch);
        let next = stage.next();
        stage.wait_for(&State::Ready).await;
        if reason == "spindown" {
            soon(stage.environment.clone().shut_down()).await;
        } else {
            let progress = stage.environment.invoke(invocation("1"));
            next.await.unwrap();
            if reason == "failure" {
                stage.fake.exit(runtime, Exit::Code(1));
            }
            failure(&done(progress).await);
        }
        let (_, told) = soon(watching).await.unwrap();
        assert_eq!(told["shutdownReason"], reason);
        // A runtime that is there is asked to end; neither it nor the extension does.
        if reason != "failure" {
            match stage.fake.order().await {
                Order::Terminate(number) => assert_eq!(number, runtime),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(stage.fake.order().await, Order::KillAll));
    }
}

#[tokio::test]
async fn internal_extensions_are_not_told_of_the_end() {
    let mut stage = Stage::new(function());
    let (runtime, _) = stage.fake.start().await;
    let inner = register(&stage, "inner", json!(["INVOKE"])).await.unwrap();
    let waiting = event(&stage, &inner);
    let _next = stage.next();
    stage.wait_for(&State::Ready).await;
    let ending = tokio::spawn(stage.environment.clone().shut_down());
    match stage.fake.order().await {
        Order::Terminate(number) => assert_eq!(number, runtime),
        other => panic!("{other:?}"),
    }
    stage.fake.exit(runtime, Exit::Signal(15));
    assert!(matches!(stage.fake.order().await, Order::KillAll));
    soon(ending).await.unwrap();
    let (status, body) = soon(waiting).await.unwrap();
    assert_eq!(
        (status, &body["errorType"]),
        (500, &json!("InternalServerError"))
    );
}

#[tokio::test]
async fn an_extension_that_fails_fails_the_init() {
    for (way, error_type, message) in [
        ("exit", "Extension.Crash", "exit status 2"),
        ("init", "Extension.InitError", "watch: Extension.Config"),
        (
            "late exit",
            "Extension.ExitError",
            "watch: Extension.Config",
        ),
    ] {
        let mut stage = Stage::new(with_extension());
        let fails = async |stage: &mut Stage| {
            let (process, _) = stage.fake.start().await;
            if way == "exit" {
                stage.fake.exit(process, Exit::Code(2));
                return;
            }
            let watch = register(stage, "watch", json!(["INVOKE"])).await.unwrap();
            stage.fake.start().await;
            let path = if way == "init" { "init" } else { "exit" };
            let request = stage
                .http
                .post(stage.url(&format!("/2020-01-01/extension/{path}/error")))
                .header("Lambda-Extension-Identifier", &watch)
                .header("Lambda-Extension-Function-Error-Type", "Extension.Config");
            assert_eq!(send(request).await.0, 202);
        };
        let report = format!("\tPhase: init\tStatus: error\tError Type: {error_type}");
        let payload = json!({
            "errorType": error_type,
            "errorMessage": format!("RequestId: 1 Error: {message}"),
        });
        init_fails(&mut stage, fails, &report, &payload).await;
    }
}

#[tokio::test]
async fn more_than_ten_extensions_are_not_started() {
    let mut stage = Stage::new(Function {
        extensions: (0..11).map(|n| format!("/opt/extensions/{n}")).collect(),
        ..function()
    });
    let words = "Extension.LaunchError: the image has 11 extensions, and 10 is the most";
    stage.wait_for(&State::InitFailed(words.to_owned())).await;
    assert!(stage.fake.started.try_recv().is_err());
}

#[tokio::test]
async fn extensions_that_ask_amiss_are_refused() {
    let mut stage = Stage::new(with_extension());
    stage.fake.start().await;
    let invalid_event = Err((403, "Extension.InvalidEventType".to_owned()));
    let invalid_state = Err((403, "Extension.InvalidExtensionState".to_owned()));
    for (name, events, expected) in [
        (
            "",
            json!([]),
            Err((403, "Extension.InvalidExtensionName".to_owned())),
        ),
        ("a", json!(["SHUTDOWN"]), invalid_event.clone()),
        ("watch", json!(["PAUSE"]), invalid_event),
        (
            "a",
            json!("INVOKE"),
            Err((403, "InvalidRequestFormat".to_owned())),
        ),
    ] {
        assert_eq!(register(&stage, name, events).await, expected, "{name}");
    }
    for name in ["watch", "1", "2", "3", "4", "5", "6", "7", "8", "9"] {
        register(&stage, name, json!(["INVOKE"])).await.unwrap();
    }
    for (name, expected) in [
        ("watch", invalid_state.clone()),
        ("1", invalid_state),
        ("10", Err((403, "Extension.TooManyExtensions".to_owned()))),
    ] {
        assert_eq!(register(&stage, name, json!([])).await, expected, "{name}");
    }
    for (identifier, error_type) in [
        ("", "Extension.MissingExtensionIdentifier"),
        ("x", "Extension.InvalidExtensionIdentifier"),
        (
            "5ee9ecb5-9ad5-4d8f-a5a0-0f1d0a7b9f46",
            "Extension.UnknownExtensionIdentifier",
        ),
    ] {
        let (status, body) = event(&stage, identifier).await.unwrap();
        assert_eq!((status, &body["errorType"]), (403, &json!(error_type)));
    }
}

/// Takes the batches that are posted to it, until it has seen what it waits for.
async fn listen(listener: tokio::net::TcpListener, last: &str) -> Vec<Value> {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    let mut events = Vec::new();
    loop {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        let mut stream = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        loop {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let batch: Vec<Value> = serde_json::from_slice(&body).unwrap();
        events.extend(batch);
        if events.iter().any(|event| event["type"] == last) {
            return events;
        }
    }
}

#[tokio::test]
async fn telemetry_comes_to_those_who_subscribed() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stage = Stage::new(with_extension());
    stage.fake.start().await;
    let watch = register(&stage, "watch", json!([])).await.unwrap();
    let subscribe = async |path: &str, identifier: &str, types: Value| {
        let request = stage
            .http
            .put(stage.url(path))
            .header("Lambda-Extension-Identifier", identifier)
            .body(
                json!({
                    "types": types,
                    "buffering": {"timeoutMs": 25},
                    "destination": {
                        "protocol": "HTTP",
                        "URI": format!("http://sandbox.localdomain:{port}/x"),
                    },
                })
                .to_string(),
            );
        send(request).await
    };
    for (path, identifier, types, status) in [
        ("/2022-07-01/telemetry", "x", json!(["platform"]), 403),
        ("/2022-07-01/telemetry", &watch, json!(["x"]), 400),
        (
            "/2022-07-01/telemetry",
            &watch,
            json!(["platform", "function"]),
            200,
        ),
    ] {
        let (got, body) = subscribe(path, identifier, types).await;
        assert_eq!(got, status, "{body}");
        if status == 200 {
            assert_eq!(body, json!("OK"));
        }
    }
    stage.fake.start().await;
    let next = stage.next();
    let _watching = event(&stage, &watch);
    stage.wait_for(&State::Ready).await;
    let progress = stage.environment.invoke(invocation("1"));
    next.await.unwrap();
    stage.fake.write(Log::Function, "hello\n").await;
    stage.respond("1", "1").await;
    done(progress).await;
    let events = listen(listener, "platform.report").await;
    let types: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "platform.initStart",
            "platform.telemetrySubscription",
            "platform.initRuntimeDone",
            "platform.extension",
            "platform.initReport",
            "platform.start",
            "function",
            "platform.runtimeDone",
            "platform.report",
        ]
    );
    assert_eq!(
        events[1]["record"],
        json!({"name": "watch", "state": "Subscribed", "types": ["platform", "function"]})
    );
    assert_eq!(
        events[3]["record"],
        json!({"name": "watch", "state": "Ready", "events": []})
    );
    assert_eq!(events[6]["record"], "hello");
    assert_eq!(events[8]["record"]["status"], "success");
    assert_eq!(events[8]["record"]["metrics"]["memorySizeMB"], 128);
}

#[tokio::test]
async fn telemetry_that_reaches_nobody_is_told_once() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let uri = format!("http://sandbox:{port}");
    for (network, words) in [
        (
            Network::Host,
            format!("telemetry could not be delivered to `{uri}`: "),
        ),
        (
            Network::None,
            "telemetry is not delivered without the network of this machine".to_owned(),
        ),
    ] {
        let mut stage = Stage::starting(with_extension(), (Ok(()), network));
        stage.fake.start().await;
        let watch = register(&stage, "watch", json!([])).await.unwrap();
        let request = stage
            .http
            .put(stage.url("/2020-08-15/logs"))
            .header("Lambda-Extension-Identifier", &watch)
            .body(
                json!({
                    "types": ["platform"],
                    "buffering": {"timeoutMs": 25},
                    "destination": {"protocol": "HTTP", "URI": uri},
                })
                .to_string(),
            );
        assert_eq!(send(request).await.0, 200);
        soon(async {
            while stage.lines.of(LogSource::Hint).is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let hints = stage.lines.of(LogSource::Hint);
        assert!(hints[0].starts_with(&words), "{hints:?}");
    }
}

/// Real processes, of this machine.
mod plain_processes {
    use super::*;
    use tierce_runner::rootfs::Root;
    use tierce_runner::sandbox::{Settings, plain};

    /// A runtime that answers with its event and says what it does.
    const RUNTIME: &str = r#"
        api=${AWS_LAMBDA_RUNTIME_API/:/\/}
        # ask METHOD PATH BODY: sets id and body
        ask() {
            exec 3<>"/dev/tcp/$api"
            printf '%s /2018-06-01/runtime/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' \
                "$1" "$2" "${#3}" "$3" >&3
            while IFS=$'\r' read -r line <&3 && [ -n "$line" ]; do
                case $line in Lambda-Runtime-Aws-Request-Id:*) id=${line#*: } ;; esac
            done
            body=$(cat <&3)
            exec 3>&-
        }
        echo "$_HANDLER starts"
        while ask GET invocation/next ''; do
            case $body in
                exit) echo exits; exit 7 ;;
                kill) kill -9 $$ ;;
                sleep) echo sleeps; sleep 1000 ;;
            esac
            echo "does $body"
            printf 'no end'
            ask POST "invocation/$id/response" "$body"
        done
    "#;

    fn begin(timeout: Duration) -> (Environment, Arc<Lines>) {
        let settings = Settings {
            root: Arc::new(Root::of(vec!["/".into()])),
            writable_root: false,
            tmp_size: 16 << 20,
            shared_memory: None,
            network: Network::Host,
            volumes: Vec::new(),
            open_files: 1024,
            processes: 1024,
            memory: None,
            user: 993,
            group: 990,
            scratch: std::env::temp_dir(),
            program: env!("CARGO_BIN_EXE_sandbox-stage").into(),
        };
        let function = Function {
            command: ["/bin/bash", "-c", RUNTIME].map(str::to_owned).to_vec(),
            handler: Some("app.handler".to_owned()),
            timeout,
            ..function()
        };
        let lines = Arc::new(Lines::default());
        let environment = Environment::begin(
            1,
            Arc::new(function),
            plain::start(&settings).unwrap(),
            Arc::clone(&lines) as Arc<dyn LogSink>,
            Patience {
                shutdown: Duration::from_secs(2),
            },
        );
        (environment, lines)
    }

    fn event(id: u32, payload: &'static str) -> Invocation {
        Invocation {
            payload: Bytes::from_static(payload.as_bytes()),
            ..invocation(&format!("00000000-0000-0000-0000-{id:012}"))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_written_before_an_answer_is_logged_before_the_end() {
        let (environment, lines) = begin(PATIENCE);
        for id in 0..100 {
            let done = done(environment.invoke(event(id, "this"))).await;
            assert_eq!(success(&done), "this");
            let tail = String::from_utf8(done.log_tail.to_vec()).unwrap();
            let lines: Vec<&str> = tail.lines().collect();
            assert!(lines[0].starts_with("START RequestId: "), "{tail}");
            assert_eq!(lines[1..3], ["does this", "no end"], "{tail}");
            assert!(lines[3].starts_with("END RequestId: "), "{tail}");
            assert!(lines[4].starts_with("REPORT RequestId: "), "{tail}");
            assert_eq!(lines.len(), 5, "{tail}");
        }
        assert_eq!(lines.of(LogSource::Function)[0], "app.handler starts");
        soon(environment.shut_down()).await;
    }

    #[tokio::test]
    async fn a_runtime_may_end_however_it_likes() {
        let (environment, lines) = begin(Duration::from_secs(2));
        for (id, (payload, message)) in [
            ("exit", Some("Runtime exited with error: exit status 7")),
            ("fine", None),
            ("kill", Some("Runtime exited with error: signal: killed")),
            ("sleep", Some("Task timed out after 2.00 seconds")),
            ("fine", None),
        ]
        .into_iter()
        .enumerate()
        {
            let invocation = event(u32::try_from(id).unwrap(), payload);
            let request_id = invocation.request_id.clone();
            let done = done(environment.invoke(invocation)).await;
            match message {
                None => assert_eq!(success(&done), "fine"),
                Some(message) => assert_eq!(
                    failure(&done).1["errorMessage"],
                    format!("RequestId: {request_id} Error: {message}")
                ),
            }
        }
        assert!(lines.has("exits"));
        assert!(lines.has("sleeps"));
        soon(environment.shut_down()).await;
    }
}
