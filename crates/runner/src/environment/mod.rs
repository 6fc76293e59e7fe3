//! One execution environment: a sandbox with the function in it, one invocation after the other.
//!
//! ```text
//! Environment ─ requests ─┐              ┌─ orders ──→ sandbox
//! server ────── calls ────┼→ life (actor)┼─ answers ─→ server → runtime, extensions
//! sandbox ───── events ───┘              └─ journal ─→ log, tail, telemetry
//! ```
//!
//! `life` alone owns the state and goes through the phases; `server` turns HTTP into calls
//! and answers back; the others are what their names say and decide nothing.

mod call;
mod extensions;
mod failure;
mod hints;
mod journal;
mod life;
mod relay;
mod report;
mod server;
mod telemetry;
mod variables;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::function::Function;
use crate::sandbox::Sandbox;

use life::Life;
use relay::Client;

pub use variables::is_reserved;

/// What is invoked, and with what.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// A UUID.
    pub request_id: String,
    /// The event.
    pub payload: Bytes,
    /// Of the request, `application/json` if it had none.
    pub content_type: String,
    /// `X-Amz-Client-Context`, decoded: JSON.
    pub client_context: Option<String>,
    /// `X-Amzn-Trace-Id` of the request, or one made up.
    pub trace_id: String,
    /// What `Lambda-Runtime-Invoked-Function-Arn` says: with the qualifier that was asked for.
    pub arn: String,
    /// The tenant, for functions that have such.
    pub tenant_id: Option<String>,
}

/// How an invocation went, told as it goes.
#[derive(Debug)]
pub enum Progress {
    /// The function began to answer by streaming; pieces follow, then `Done`.
    Streaming(StreamingHead),
    /// A piece of a streamed answer.
    Piece(Bytes),
    /// The end, exactly once and last.
    Done(Done),
}

/// What is known when a streamed answer begins.
#[derive(Debug, Clone)]
pub struct StreamingHead {
    /// The content type that the runtime gave, if any
    /// (`application/vnd.awslambda.http-integration-response` for a function URL's prelude).
    pub content_type: Option<String>,
}

/// How an invocation ended.
#[derive(Debug, Clone)]
pub struct Done {
    /// What the client gets.
    pub outcome: Outcome,
    /// The last 4 KiB of the log of this invocation, with START, END and REPORT.
    pub log_tail: Bytes,
}

/// What a client gets.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The function's answer; empty after a streamed one.
    Success {
        /// As the function wrote it.
        payload: Bytes,
        /// As the runtime said it, `application/json` if it did not.
        content_type: String,
    },
    /// The function failed: `X-Amz-Function-Error: Unhandled`. After a streamed answer had begun,
    /// its `InvokeComplete` says so.
    FunctionError {
        /// `{"errorType":…,"errorMessage":…}` and what the runtime added.
        payload: Bytes,
        /// As `Sandbox.Timedout` or what the runtime said.
        error_type: String,
    },
    /// It could not be tried: the machine's fault, not the function's. In words.
    Failed(String),
}

/// A handle to an environment that runs by itself. When the last is dropped the environment shuts
/// down as on Lambda.
#[derive(Debug, Clone)]
pub struct Environment {
    requests: mpsc::UnboundedSender<Request>,
    state: watch::Receiver<State>,
}

/// What an environment is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Extensions and runtime are starting; also again after a failure.
    Initialising,
    /// It waits for an invocation.
    Ready,
    /// The first initialisation failed, in words; the next invocation tries once more.
    InitFailed(String),
    /// It has an invocation.
    Busy,
    /// Nothing is left of it, and it takes nothing more; with the reason if nobody asked for that.
    Gone(Option<String>),
}

#[derive(Debug)]
enum Request {
    Invoke(Invocation, Client),
    /// Shut down; answered when nothing is left.
    ShutDown(oneshot::Sender<()>),
}

impl Environment {
    /// Starts the function in `sandbox`, at once and beside the caller. `number` names the
    /// environment in its log lines. Must be called within a tokio runtime.
    pub fn begin(
        number: u32,
        function: Arc<Function>,
        sandbox: Sandbox,
        sink: SharedSink,
        patience: Patience,
    ) -> Self {
        let (requests, received) = mpsc::unbounded_channel();
        let (told, state) = watch::channel(State::Initialising);
        let life = Life::new(number, function, sandbox, sink, patience, received, told);
        tokio::spawn(life.live());
        Self { requests, state }
    }

    /// What it is about, now and later.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Takes an invocation. One at a time: the next is taken after `Done`. Who does not take what
    /// comes holds up a streaming function, as a slow client does on Lambda, and nothing else. Who
    /// drops the receiver does not end the invocation.
    pub fn invoke(&self, invocation: Invocation) -> mpsc::Receiver<Progress> {
        let (client, receiver) = Client::new();
        if let Err(mpsc::error::SendError(Request::Invoke(_, client))) =
            self.requests.send(Request::Invoke(invocation, client))
        {
            client.finish(Done {
                outcome: Outcome::Failed("the environment has ended".to_owned()),
                log_tail: Bytes::new(),
            });
        }
        receiver
    }

    /// Shuts the environment down, extensions and all, and waits until nothing is left of it.
    pub async fn shut_down(self) {
        let (sender, receiver) = oneshot::channel();
        if self.requests.send(Request::ShutDown(sender)).is_ok() {
            let _ = receiver.await;
        }
    }
}

/// Where the lines of the log go: the function's own, START, END, REPORT and `INIT_REPORT`, those of
/// extensions. Whole lines, without the line feed, of one environment in their order.
pub trait LogSink: std::fmt::Debug + Send + Sync {
    /// Takes a line.
    fn line(&self, line: LogLine);
}

/// A line of the log.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// Which environment it is of, counted from 1.
    pub environment: u32,
    /// Whose words these are.
    pub source: LogSource,
    /// Not always UTF-8.
    pub text: Bytes,
}

/// Whose words a line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSource {
    /// Lambda's.
    Platform,
    /// The function's.
    Function,
    /// An extension's.
    Extension,
    /// Ours: why something fails here as it does on Lambda.
    Hint,
}

/// Durations of an environment's life that are Lambda's, in one place for tests to shorten.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How long external extensions may take over SHUTDOWN: 2 s.
    pub shutdown: Duration,
}

/// Shared by what makes environments.
pub type SharedSink = Arc<dyn LogSink>;
