//! The life of an environment, over a box that is none and a runtime that does as it is told; and
//! over plain processes with a real one.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tierce_runner::environment::{
    Done, Environment, Invocation, LogLine, LogSink, LogSource, Outcome, Patience, Progress, State,
};
use tierce_runner::function::Function;
use tierce_runner::sandbox::{
    Doorkeeper, Event, Exit, Log, NotStarted, Order, Process, ProcessNumber, Sandbox, Written,
};
use tokio::sync::{mpsc, oneshot};

/// Longer than anything here takes on a busy machine: only a fault waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Whether a process that is started runs.
type Start = Result<(), NotStarted>;

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
    fn new(start: Start) -> (Self, Sandbox) {
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
    start: Start,
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
        Self::starting(function, Ok(()))
    }

    fn starting(function: Function, start: Start) -> Self {
        let (fake, sandbox) = FakeBox::new(start);
        let address = sandbox.listener.local_addr().unwrap().to_string();
        let lines = Arc::new(Lines::default());
        let sink = Arc::clone(&lines) as Arc<dyn LogSink>;
        let patience = Patience {
            shutdown: Duration::from_secs(2),
        };
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
    let (mut stage, _, next) = Stage::ready(function()).await;
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
