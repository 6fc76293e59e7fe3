//! The life of an environment, phase after phase. It alone owns the state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::function::Function;
use crate::sandbox::{
    Event, Exit, Log, NotStarted, Order, Process, ProcessNumber, Sandbox, Written,
};

use super::call::{Call, Event as Invoked, Refusal, Registration, Reply, Response};
use super::extensions::{self, Extensions, Registered};
use super::failure::{self, Failure, Kind};
use super::journal::Journal;
use super::relay::{Client, Relay};
use super::report::{Report, init_report, rounded};
use super::telemetry::Subscription;
use super::variables::{of_extensions, variables};
use super::{Done, Invocation, Outcome, Patience, Request, SharedSink, State, hints, server};

/// How long internal extensions may take over the end, which they are not told of
/// (Lambda guide, "Lambda execution environment", Shutdown phase).
const INTERNAL_SHUTDOWN: Duration = Duration::from_millis(500);

/// More than anybody waits, and less than a clock's range.
const FOREVER: Duration = Duration::from_hours(10 * 365 * 24);

/// Where the runtime is in its protocol. The names are the public emulator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no runtime.
    Absent,
    Started,
    InitError,
    Ready,
    Running,
    /// The body of its response is on its way.
    InvocationResponse,
    ResponseSent,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Absent => "Absent",
            Self::Started => "Started",
            Self::InitError => "InitError",
            Self::Ready => "Ready",
            Self::Running => "Running",
            Self::InvocationResponse => "InvocationResponse",
            Self::ResponseSent => "ResponseSent",
        }
    }
}

/// The runtime of an environment.
#[derive(Debug)]
struct Runtime {
    process: Option<ProcessNumber>,
    phase: Phase,
    /// Each `next` that hangs, in the order they came.
    waiting: Vec<Reply<Invoked>>,
}

impl Runtime {
    const ABSENT: Self = Self {
        process: None,
        phase: Phase::Absent,
        waiting: Vec::new(),
    };

    fn refuse(&self, to: &'static str) -> Refusal {
        Refusal::Transition {
            whose: "runtime".to_owned(),
            from: self.phase.name(),
            to,
            error_type: "InvalidStateTransition",
        }
    }
}

/// The invocation that is being dealt with.
#[derive(Debug)]
struct Current {
    request_id: String,
    /// What the runtime gets.
    event: Invoked,
    relay: Relay,
    /// Whether that is the runtime's last word.
    is_answered: bool,
    /// What it answered, until the client has it.
    outcome: Option<Outcome>,
}

/// Why a phase ended before its time.
#[derive(Debug)]
enum Stop {
    Failed(Failure),
    /// The box is gone, or it shall end.
    Interrupted,
}

/// Why extensions are shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Spindown,
    Timeout,
    Failure,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Spindown => "spindown",
            Self::Timeout => "timeout",
            Self::Failure => "failure",
        }
    }

    fn of(failure: &Failure) -> Self {
        match failure.kind {
            Kind::Timeout => Self::Timeout,
            Kind::Error => Self::Failure,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Life {
    function: Arc<Function>,
    patience: Patience,
    variables: BTreeMap<String, String>,
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::UnboundedReceiver<Event>,
    written: mpsc::Receiver<Written>,
    drain: mpsc::UnboundedSender<oneshot::Sender<()>>,
    memory_peak: Arc<AtomicU64>,
    requests: mpsc::UnboundedReceiver<Request>,
    calls: mpsc::UnboundedReceiver<Call>,
    state: watch::Sender<State>,
    server: Option<AbortHandle>,
    journal: Journal,
    runtime: Runtime,
    extensions: Extensions,
    last_process: u32,
    queue: VecDeque<(Invocation, Client)>,
    current: Option<Current>,
    /// Why the processes are of no use any more, until they are replaced.
    trouble: Option<Failure>,
    /// What the processes came to when they were killed for it.
    out_of_memory: Option<u64>,
    /// Whether the box told that no process is left.
    is_empty: bool,
    /// Why there is no box any more.
    gone: Option<String>,
    /// Who waits for the end.
    ending: Vec<oneshot::Sender<()>>,
    /// Whether nobody can ask for anything any more.
    is_forgotten: bool,
}

impl Life {
    pub(super) fn new(
        number: u32,
        function: Arc<Function>,
        sandbox: Sandbox,
        sink: SharedSink,
        patience: Patience,
        requests: mpsc::UnboundedReceiver<Request>,
        state: watch::Sender<State>,
    ) -> Self {
        let Sandbox {
            orders,
            events,
            written,
            drain,
            memory_peak,
            network,
            listener,
            doorkeeper,
        } = sandbox;
        let address = listener
            .local_addr()
            .map(|address| address.to_string())
            .unwrap_or_default();
        let log_stream = log_stream(jiff::Timestamp::now(), &function.version, Uuid::new_v4());
        let variables = variables(&function, &address, &log_stream);
        let (sender, calls) = mpsc::unbounded_channel();
        let (server, gone) = match server::listen(listener) {
            Ok(listener) => {
                let payloads = function.payloads;
                let calls = server::Calls { sender, payloads };
                let serving = tokio::spawn(server::serve(listener, doorkeeper, calls));
                (Some(serving.abort_handle()), None)
            }
            Err(error) => (
                None,
                Some(format!("the Runtime API cannot be served: {error}")),
            ),
        };
        Self {
            function,
            patience,
            variables,
            orders,
            events,
            written,
            drain,
            memory_peak,
            requests,
            calls,
            state,
            server,
            journal: Journal::new(number, sink, network),
            runtime: Runtime::ABSENT,
            extensions: Extensions::default(),
            last_process: 0,
            queue: VecDeque::new(),
            current: None,
            trouble: None,
            out_of_memory: None,
            is_empty: false,
            gone,
            ending: Vec::new(),
            is_forgotten: false,
        }
    }

    /// From the first initialisation to the end.
    pub(super) async fn live(mut self) {
        let mut init = self.first_initialisation().await;
        while !self.is_interrupted() {
            if let Some(failure) = self.trouble.take() {
                // Between invocations nobody has to be told; the next one initialises again.
                let failure = self.kill_if_memory(failure).await;
                self.log_failure(None, &failure);
                self.explain(&failure);
                self.wind_down(Reason::of(&failure)).await;
            } else if let Some((invocation, client)) = self.queue.pop_front() {
                self.state.send_replace(State::Busy);
                self.invoke(invocation, client, init.take()).await;
                self.state.send_replace(State::Ready);
            } else {
                self.step(None).await;
            }
        }
        self.end().await;
    }

    /// Its duration if it was a success, to be told with the first invocation.
    async fn first_initialisation(&mut self) -> Option<Duration> {
        let begun = Instant::now();
        self.journal.begin();
        let limit = self.function.init_limit;
        let result = self.initialise(begun, limit, "init").await;
        let failure = match result {
            Ok(()) => {
                let duration = begun.elapsed();
                self.state.send_replace(State::Ready);
                return Some(duration);
            }
            Err(Stop::Failed(failure)) => failure,
            Err(Stop::Interrupted) => return None,
        };
        let failure = self.kill_if_memory(failure).await;
        self.drain().await;
        let duration = match failure.kind {
            Kind::Timeout => limit,
            Kind::Error => begun.elapsed(),
        };
        self.journal
            .platform(init_report(duration, "init", &failure));
        self.explain(&failure);
        self.wind_down(Reason::of(&failure)).await;
        self.state.send_replace(State::InitFailed(failure.words()));
        None
    }

    /// Starts all processes and waits until they wait for an invocation.
    /// `phase` is `init`, or `invoke` within an invocation, which began then and is limited so.
    async fn initialise(
        &mut self,
        phase_begun: Instant,
        limit: Duration,
        phase: &str,
    ) -> Result<(), Stop> {
        let begun = Instant::now();
        self.journal.telemetry.open();
        self.journal.event("platform.initStart", || {
            json!({
                "initializationType": "on-demand",
                "phase": phase,
                "functionName": self.function.name,
                "functionVersion": self.function.version,
            })
        });
        let result = self.start_and_wait(phase_begun, limit).await;
        let mut record = json!({"initializationType": "on-demand", "phase": phase});
        match &result {
            Ok(()) => record["status"] = "success".into(),
            Err(Stop::Failed(failure)) => {
                record["status"] = failure.status().into();
                record["errorType"] = failure.error_type.as_str().into();
            }
            Err(Stop::Interrupted) => return result,
        }
        self.journal
            .event("platform.initRuntimeDone", || record.clone());
        if result.is_ok() {
            for extension in self.extensions.records() {
                self.journal.event("platform.extension", || extension);
            }
        }
        record["metrics"] = json!({"durationMs": rounded(begun.elapsed())});
        self.journal.event("platform.initReport", || record);
        self.journal.telemetry.close();
        result
    }

    async fn start_and_wait(&mut self, begun: Instant, limit: Duration) -> Result<(), Stop> {
        let deadline = after(begun, limit);
        self.extensions = Extensions::default();
        self.runtime = Runtime::ABSENT;
        self.out_of_memory = None;
        self.start_extensions();
        loop {
            if self.is_interrupted() {
                return Err(Stop::Interrupted);
            }
            if let Some(failure) = self.trouble.take() {
                return Err(Stop::Failed(failure));
            }
            if self.runtime.phase == Phase::Absent && self.extensions.are_registered() {
                self.start_runtime();
            }
            if self.runtime.phase == Phase::Ready && self.extensions.are_ready() {
                break;
            }
            if self.step(Some(deadline)).await {
                return Err(Stop::Failed(Failure::timed_out(limit)));
            }
        }
        self.extensions.close();
        // What they wrote until now is of no invocation.
        self.drain().await;
        for line in self.extensions.lines() {
            self.journal.platform(line);
        }
        Ok(())
    }

    fn start_extensions(&mut self) {
        let function = Arc::clone(&self.function);
        if function.extensions.len() > extensions::LIMIT {
            self.fail(Failure::new(
                "Extension.LaunchError",
                format!(
                    "the image has {} extensions, and {} is the most",
                    function.extensions.len(),
                    extensions::LIMIT
                ),
            ));
            return;
        }
        for program in &function.extensions {
            let number = self.new_process();
            let name = program.rsplit('/').next().unwrap_or(program);
            self.extensions.add_external(name, number);
            self.order(Order::Start(
                number,
                Process {
                    program: program.clone(),
                    arguments: Vec::new(),
                    environment: of_extensions(&self.variables),
                    directory: "/".to_owned(),
                    log: Log::Extension,
                },
            ));
        }
    }

    fn start_runtime(&mut self) {
        let number = self.new_process();
        self.runtime.process = Some(number);
        self.runtime.phase = Phase::Started;
        let (program, arguments) = match self.function.command.split_first() {
            Some((program, arguments)) => (program.clone(), arguments.to_vec()),
            None => (String::new(), Vec::new()),
        };
        self.order(Order::Start(
            number,
            Process {
                program,
                arguments,
                environment: self.variables.clone(),
                directory: self.function.directory.clone(),
                log: Log::Function,
            },
        ));
    }

    /// One invocation, until everybody is done with it.
    async fn invoke(&mut self, invocation: Invocation, client: Client, init: Option<Duration>) {
        let begun = Instant::now();
        let deadline = after(begun, self.function.timeout);
        let request_id = invocation.request_id.clone();
        self.journal.begin();
        let mut result = Ok(());
        if self.runtime.phase == Phase::Absent {
            result = self
                .initialise(begun, self.function.timeout, "invoke")
                .await;
            if let Err(Stop::Failed(failure)) = &result {
                self.drain().await;
                self.journal
                    .platform(init_report(begun.elapsed(), "invoke", failure));
            }
        }
        self.journal.platform(format!(
            "START RequestId: {request_id} Version: {}",
            self.function.version
        ));
        self.journal.event("platform.start", || {
            json!({
                "requestId": request_id,
                "version": self.function.version,
                "tracing": {"type": "X-Amzn-Trace-Id", "value": invocation.trace_id},
            })
        });
        if result.is_ok() {
            self.hand_out(invocation, &client, deadline);
            result = self.until_answered(deadline).await;
        }
        let outcome = self
            .current
            .as_mut()
            .and_then(|current| current.outcome.take());
        let failure = match (result, outcome) {
            (Ok(()), Some(outcome)) => {
                self.answer(client, &request_id, begun, init, outcome, None)
                    .await;
                match self.until_done(deadline).await {
                    Ok(()) | Err(Stop::Interrupted) => {
                        self.current = None;
                        return;
                    }
                    Err(Stop::Failed(failure)) => {
                        let failure = self.kill_if_memory(failure).await;
                        self.drain().await;
                        self.log_failure(Some(&request_id), &failure);
                        self.explain(&failure);
                        failure
                    }
                }
            }
            (Err(Stop::Failed(failure)), _) => {
                let failure = self.kill_if_memory(failure).await;
                let outcome = Outcome::FunctionError {
                    payload: failure.payload(&request_id),
                    error_type: failure.error_type.clone(),
                };
                self.answer(client, &request_id, begun, init, outcome, Some(&failure))
                    .await;
                failure
            }
            (Err(Stop::Interrupted) | Ok(()), _) => {
                self.current = None;
                client.finish(Done {
                    outcome: Outcome::Failed(self.why_interrupted()),
                    log_tail: self.journal.tail(),
                });
                return;
            }
        };
        self.current = None;
        self.wind_down(Reason::of(&failure)).await;
    }

    /// Gives an invocation to the runtime and tells the extensions of it.
    fn hand_out(&mut self, invocation: Invocation, client: &Client, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let deadline = epoch_milliseconds(SystemTime::now() + left);
        let told = json!({
            "eventType": "INVOKE",
            "deadlineMs": deadline,
            "requestId": invocation.request_id,
            "invokedFunctionArn": invocation.arn,
            "tracing": {"type": "X-Amzn-Trace-Id", "value": invocation.trace_id},
        });
        let event = Invoked {
            headers: vec![
                (
                    "lambda-runtime-aws-request-id",
                    invocation.request_id.clone(),
                ),
                ("lambda-runtime-deadline-ms", deadline.to_string()),
                ("lambda-runtime-invoked-function-arn", invocation.arn),
                ("lambda-runtime-trace-id", invocation.trace_id),
                (
                    "lambda-runtime-client-context",
                    invocation.client_context.unwrap_or_default(),
                ),
                (
                    "lambda-runtime-aws-tenant-id",
                    invocation.tenant_id.unwrap_or_default(),
                ),
            ],
            content_type: invocation.content_type,
            payload: invocation.payload,
        };
        self.current = Some(Current {
            request_id: invocation.request_id,
            event,
            relay: client.relay(),
            is_answered: false,
            outcome: None,
        });
        self.deliver();
        self.extensions.invoke(&told.to_string().into());
    }

    /// Gives the current invocation to a runtime that waits for one. The latest that asked is the
    /// one most surely alive.
    fn deliver(&mut self) {
        let Some(current) = &self.current else {
            return;
        };
        if self.runtime.phase != Phase::Ready || current.is_answered {
            return;
        }
        while let Some(waiting) = self.runtime.waiting.pop() {
            if waiting.send(Ok(current.event.clone())).is_ok() {
                self.runtime.phase = Phase::Running;
                return;
            }
        }
    }

    async fn until_answered(&mut self, deadline: Instant) -> Result<(), Stop> {
        loop {
            if self
                .current
                .as_ref()
                .is_some_and(|current| current.is_answered)
            {
                return Ok(());
            }
            if self.is_interrupted() {
                return Err(Stop::Interrupted);
            }
            // A response that was on its way when the runtime ended comes to some end by itself.
            if self.runtime.phase != Phase::InvocationResponse
                && let Some(failure) = self.trouble.take()
            {
                return Err(Stop::Failed(failure));
            }
            if self.step(Some(deadline)).await {
                return Err(Stop::Failed(Failure::timed_out(self.function.timeout)));
            }
        }
    }

    /// Waits until the runtime and the extensions are ready for the next.
    async fn until_done(&mut self, deadline: Instant) -> Result<(), Stop> {
        loop {
            if self.is_interrupted() {
                return Err(Stop::Interrupted);
            }
            if let Some(failure) = self.trouble.take() {
                return Err(Stop::Failed(failure));
            }
            if self.runtime.phase == Phase::Ready && self.extensions.are_done() {
                return Ok(());
            }
            if self.step(Some(deadline)).await {
                return Err(Stop::Failed(Failure::timed_out(self.function.timeout)));
            }
        }
    }

    /// Ends the log of an invocation and gives its client what it waits for.
    async fn answer(
        &mut self,
        client: Client,
        request_id: &str,
        begun: Instant,
        init: Option<Duration>,
        outcome: Outcome,
        failure: Option<&Failure>,
    ) {
        let duration = match failure {
            Some(failure) if failure.kind == Kind::Timeout => self.function.timeout,
            _ => begun.elapsed(),
        };
        self.drain().await;
        if let Some(failure) = failure {
            self.log_failure(Some(request_id), failure);
        }
        let report = Report {
            request_id,
            duration,
            memory: self.function.memory,
            memory_peak: self.memory_peak.load(Ordering::Relaxed),
            init,
            failure,
        };
        self.journal
            .platform(format!("END RequestId: {request_id}"));
        self.journal.platform(report.line());
        let failed = failure.is_some() || matches!(outcome, Outcome::FunctionError { .. });
        let record = || told(&report, &outcome);
        self.journal.event("platform.runtimeDone", || {
            let mut record = record();
            record["metrics"] = json!({"durationMs": rounded(duration)});
            record
        });
        self.journal.event("platform.report", record);
        client.finish(Done {
            outcome,
            log_tail: self.journal.tail(),
        });
        match failure {
            Some(failure) => self.explain(failure),
            None if failed => self.journal.explain(),
            None => {}
        }
    }

    /// What Lambda writes of a failure.
    fn log_failure(&mut self, request_id: Option<&str>, failure: &Failure) {
        let request_id = request_id.unwrap_or("-");
        match failure.kind {
            Kind::Timeout => self.journal.platform(format!(
                "{:.3} {request_id} {}",
                jiff::Timestamp::now(),
                failure.message
            )),
            Kind::Error if failure.is_reported() => {}
            Kind::Error => {
                self.journal.platform(format!(
                    "RequestId: {request_id} Error: {}",
                    failure.message
                ));
                self.journal.platform(failure.error_type.clone());
            }
        }
    }

    /// What we know of why.
    fn explain(&mut self, failure: &Failure) {
        self.journal.explain();
        if let Some(bytes) = self.out_of_memory {
            self.journal.hint(format!(
                "the processes used {} MiB of memory together and the function has {} MiB: raise \
                 --memory, or use less",
                bytes.div_ceil(1024 * 1024),
                self.function.memory
            ));
        }
        if failure.error_type == "Runtime.InvalidEntrypoint"
            && let Some(hint) = hints::of_start(&failure.message)
        {
            self.journal.hint(hint);
        }
    }

    /// A runtime that was killed may have been killed for its memory; which it was is known when
    /// nothing is left of it.
    async fn kill_if_memory(&mut self, failure: Failure) -> Failure {
        if failure == Failure::exited(Exit::Signal(9)) {
            self.kill_all().await;
        }
        match self.out_of_memory {
            Some(_) => Failure::out_of_memory(),
            None => failure,
        }
    }

    /// Reads what the processes wrote until now.
    async fn drain(&mut self) {
        let (sender, mut drained) = oneshot::channel();
        let _ = self.drain.send(sender);
        loop {
            tokio::select! {
                biased;
                _ = &mut drained => break,
                Some(written) = self.written.recv() => self.journal.written(&written),
            }
        }
        // No more than fits, or a process that never stops writing would be listened to forever.
        for _ in 0..self.written.max_capacity() {
            match self.written.try_recv() {
                Ok(written) => self.journal.written(&written),
                Err(_) => break,
            }
        }
        self.journal.flush();
    }

    /// Ends all processes as Lambda does: those that may prepare for it do so, within limits.
    async fn wind_down(&mut self, reason: Reason) {
        let (any, external) = self.extensions.living();
        if any && self.gone.is_none() {
            let budget = if external {
                self.patience.shutdown
            } else {
                self.patience.shutdown.min(INTERNAL_SHUTDOWN)
            };
            let deadline = after(Instant::now(), budget);
            if let Some(process) = self.runtime.process {
                self.order(Order::Terminate(process));
                // The runtime's share of the time, as in the public emulator.
                let share = after(Instant::now(), budget / 10 * 3);
                while self.gone.is_none() && self.runtime.process.is_some() {
                    if self.step(Some(share)).await {
                        break;
                    }
                }
            }
            let event = json!({
                "eventType": "SHUTDOWN",
                "shutdownReason": reason.name(),
                "deadlineMs": epoch_milliseconds(
                    SystemTime::now() + deadline.saturating_duration_since(Instant::now())
                ),
            });
            // What they subscribed to comes while there is still time to pass it on.
            self.journal.telemetry.clear();
            self.extensions.shut_down(&event.to_string().into());
            while self.gone.is_none() && self.extensions.are_ending() {
                if self.step(Some(deadline)).await {
                    break;
                }
            }
        }
        self.journal.telemetry.clear();
        self.kill_all().await;
        self.drain().await;
        self.runtime = Runtime::ABSENT;
        self.extensions = Extensions::default();
        self.trouble = None;
        // What the dead asked for is not asked by who comes next.
        while self.calls.try_recv().is_ok() {}
    }

    async fn kill_all(&mut self) {
        self.is_empty = false;
        self.order(Order::KillAll);
        while self.gone.is_none() && !self.is_empty {
            self.step(None).await;
        }
    }

    /// Ends the box and tells everybody.
    async fn end(mut self) {
        self.wind_down(Reason::Spindown).await;
        let reason = self.gone.clone();
        if reason.is_none() {
            self.order(Order::End);
            while self.gone.is_none() {
                self.step(None).await;
            }
        }
        self.drain().await;
        self.state.send_replace(State::Gone(reason));
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            self.take_request(request);
        }
        let why = self.why_interrupted();
        for (_, client) in self.queue.drain(..) {
            client.finish(Done {
                outcome: Outcome::Failed(why.clone()),
                log_tail: Bytes::new(),
            });
        }
        for waiting in self.ending.drain(..) {
            let _ = waiting.send(());
        }
    }

    /// Whether nothing more is to be done. What nobody holds any more ends when it has nothing to
    /// do for anybody.
    fn is_interrupted(&self) -> bool {
        let is_of_use = || *self.state.borrow() == State::Busy || !self.queue.is_empty();
        self.gone.is_some() || !self.ending.is_empty() || (self.is_forgotten && !is_of_use())
    }

    fn why_interrupted(&self) -> String {
        match &self.gone {
            Some(reason) if self.ending.is_empty() => reason.clone(),
            _ => "the environment was shut down".to_owned(),
        }
    }

    /// Takes one thing that happens; whether instead the time came.
    async fn step(&mut self, deadline: Option<Instant>) -> bool {
        tokio::select! {
            biased;
            () = until(deadline) => return true,
            event = self.events.recv(), if self.gone.is_none() => self.take_event(event),
            Some(call) = self.calls.recv() => self.take_call(call),
            request = self.requests.recv(), if !self.is_forgotten => match request {
                Some(request) => self.take_request(request),
                None => self.is_forgotten = true,
            },
            Some(written) = self.written.recv() => self.journal.written(&written),
        }
        false
    }

    fn take_request(&mut self, request: Request) {
        match request {
            Request::Invoke(invocation, client) => self.queue.push_back((invocation, client)),
            Request::ShutDown(waiting) => self.ending.push(waiting),
        }
    }

    fn take_event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Started(_)) => {}
            Some(Event::NotStarted(process, reason)) => self.not_started(process, &reason),
            Some(Event::Exited(process, exit)) => self.exited(process, exit),
            Some(Event::OutOfMemory(bytes)) => {
                self.out_of_memory = Some(bytes);
                self.trouble = Some(Failure::out_of_memory());
            }
            Some(Event::Empty) => self.is_empty = true,
            Some(Event::Ended(reason)) => {
                self.gone = Some(reason.unwrap_or_else(|| "the sandbox has ended".to_owned()));
            }
            None => self.gone = Some("the sandbox is gone without a word".to_owned()),
        }
    }

    fn not_started(&mut self, process: ProcessNumber, reason: &NotStarted) {
        if self.runtime.process == Some(process) {
            self.runtime.process = None;
            self.fail(Failure::not_started(reason));
        } else if let Some(failure) = self.extensions.not_started(process, reason) {
            self.fail(failure);
        }
    }

    fn exited(&mut self, process: ProcessNumber, exit: Exit) {
        if self.runtime.process == Some(process) {
            self.runtime.process = None;
            self.fail(Failure::exited(exit));
        } else if let Some(failure) = self.extensions.exited(process, exit) {
            self.fail(failure);
        }
    }

    /// The first reason is the true one; what follows follows from it.
    fn fail(&mut self, failure: Failure) {
        self.trouble.get_or_insert(failure);
    }

    fn take_call(&mut self, call: Call) {
        match call {
            Call::Next(reply) => self.next(reply),
            Call::ResponseBegins(id, reply) => {
                let _ = reply.send(self.response_begins(&id));
            }
            Call::ResponseEnds(id, response, reply) => {
                let _ = reply.send(self.response_ends(&id, response));
            }
            Call::InvocationError(id, reported, reply) => {
                let outcome = Outcome::FunctionError {
                    payload: reported.payload,
                    error_type: reported.error_type,
                };
                let result = self
                    .check_running(&id, "InvocationErrorResponse")
                    .map(|()| self.answered(outcome));
                let _ = reply.send(result);
            }
            Call::InitError(reported, reply) => {
                let result = if self.runtime.phase == Phase::Started {
                    self.runtime.phase = Phase::InitError;
                    self.fail(Failure::reported(reported));
                    Ok(())
                } else {
                    Err(self.runtime.refuse("InitError"))
                };
                let _ = reply.send(result);
            }
            Call::Register(registration, reply) => {
                let _ = reply.send(self.register(&registration));
            }
            Call::ExtensionNext(identifier, reply) => self.extensions.next(&identifier, reply),
            Call::ExtensionError(identifier, fault, error_type, reply) => {
                let result = self
                    .extensions
                    .fail(&identifier, fault, &error_type)
                    .map(|failure| self.fail(failure));
                let _ = reply.send(result);
            }
            Call::Subscribe(identifier, subscription, reply) => {
                let result = self
                    .extensions
                    .name(&identifier)
                    .map(|name| self.subscribe(&name, subscription));
                let _ = reply.send(result);
            }
        }
    }

    fn next(&mut self, reply: Reply<Invoked>) {
        if reply.is_closed() {
            return;
        }
        self.runtime.waiting.retain(|waiting| !waiting.is_closed());
        match (self.runtime.phase, &mut self.current) {
            (Phase::ResponseSent, Some(current)) if !current.is_answered => {
                current.is_answered = true;
                self.runtime.phase = Phase::Ready;
                self.runtime.waiting.push(reply);
            }
            (Phase::Started | Phase::Ready | Phase::ResponseSent, _) => {
                self.runtime.phase = Phase::Ready;
                self.runtime.waiting.push(reply);
                self.deliver();
            }
            // The runtime did not get it, or has forgotten it: it gets it once more.
            (Phase::Running, Some(current)) => {
                let _ = reply.send(Ok(current.event.clone()));
            }
            _ => {
                let _ = reply.send(Err(self.runtime.refuse("Ready")));
            }
        }
    }

    fn response_begins(&mut self, id: &str) -> Result<Relay, Refusal> {
        self.check_running(id, "InvocationResponse")?;
        let current = self.current.as_ref().ok_or(Refusal::RequestId)?;
        self.runtime.phase = Phase::InvocationResponse;
        Ok(current.relay.clone())
    }

    fn response_ends(&mut self, id: &str, response: Response) -> Result<(), Refusal> {
        self.check_id(id)?;
        if self.runtime.phase != Phase::InvocationResponse {
            return Err(self.runtime.refuse("ResponseSent"));
        }
        let is_truncated = matches!(response, Response::Truncated);
        let failed = |error_type: &str, message: String| Outcome::FunctionError {
            payload: failure::error(error_type, &message),
            error_type: error_type.to_owned(),
        };
        let (outcome, result) = match response {
            Response::Buffered {
                payload,
                content_type,
            } => (
                Outcome::Success {
                    payload,
                    content_type: content_type.unwrap_or_else(|| "application/json".to_owned()),
                },
                Ok(()),
            ),
            Response::Streamed => (
                Outcome::Success {
                    payload: Bytes::new(),
                    content_type: "application/octet-stream".to_owned(),
                },
                Ok(()),
            ),
            Response::StreamedError {
                error_type,
                payload,
            } => (
                Outcome::FunctionError {
                    payload,
                    error_type,
                },
                Ok(()),
            ),
            Response::TooLarge(limit) => (
                failed(
                    "Function.ResponseSizeTooLarge",
                    format!(
                        "Response payload size exceeded maximum allowed payload size ({limit} bytes)."
                    ),
                ),
                Err(Refusal::TooLarge(limit)),
            ),
            Response::Truncated => (
                failed(
                    "Runtime.TruncatedResponse",
                    format!("RequestId: {id} Error: the response was cut off"),
                ),
                Err(Refusal::Truncated),
            ),
            Response::InvalidMode => (
                failed(
                    "Runtime.InvalidResponseModeHeader",
                    format!("RequestId: {id} Error: Invalid function response mode"),
                ),
                Err(Refusal::ResponseMode),
            ),
        };
        self.answered(outcome);
        if is_truncated && let Some(current) = &mut self.current {
            // Most likely the runtime is ending, and how it ends says more. If it asks for the next
            // it is not.
            current.is_answered = false;
        }
        result
    }

    fn answered(&mut self, outcome: Outcome) {
        self.runtime.phase = Phase::ResponseSent;
        if let Some(current) = &mut self.current {
            current.is_answered = true;
            current.outcome = Some(outcome);
        }
    }

    fn check_id(&self, id: &str) -> Result<(), Refusal> {
        match &self.current {
            Some(current) if current.request_id == id => Ok(()),
            _ => Err(Refusal::RequestId),
        }
    }

    fn check_running(&self, id: &str, to: &'static str) -> Result<(), Refusal> {
        self.check_id(id)?;
        if self.runtime.phase == Phase::Running {
            Ok(())
        } else {
            Err(self.runtime.refuse(to))
        }
    }

    fn register(&mut self, registration: &Registration) -> Result<Registered, Refusal> {
        let identifier = self.extensions.register(registration)?;
        Ok(Registered {
            identifier,
            name: self.function.name.clone(),
            version: self.function.version.clone(),
            handler: self.function.handler.clone(),
            account: registration.account.then(|| self.function.account.clone()),
        })
    }

    fn subscribe(&mut self, name: &str, subscription: Subscription) {
        let types = subscription.types();
        self.journal.telemetry.subscribe(subscription);
        self.journal.event(
            "platform.telemetrySubscription",
            || json!({"name": name, "state": "Subscribed", "types": types}),
        );
    }

    fn new_process(&mut self) -> ProcessNumber {
        self.last_process += 1;
        ProcessNumber(self.last_process)
    }

    /// A box that is gone tells so by itself.
    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// A moment so much later, or one that nobody waits for.
fn after(begun: Instant, duration: Duration) -> Instant {
    begun + duration.min(FOREVER)
}

/// What telemetry is told of an invocation.
fn told(report: &Report<'_>, outcome: &Outcome) -> Value {
    let mut record = json!({
        "requestId": report.request_id,
        "status": match (report.failure, outcome) {
            (Some(failure), _) => failure.status(),
            (None, Outcome::FunctionError { .. }) => "error",
            (None, _) => "success",
        },
        "metrics": report.metrics(),
    });
    if let Outcome::FunctionError { error_type, .. } = outcome {
        record["errorType"] = error_type.as_str().into();
    }
    record
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn epoch_milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// As `2026/11/26/[$LATEST]0123…`.
fn log_stream(now: jiff::Timestamp, version: &str, id: Uuid) -> String {
    let day = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    format!(
        "{:04}/{:02}/{:02}/[{version}]{}",
        day.year(),
        day.month(),
        day.day(),
        id.simple()
    )
}
