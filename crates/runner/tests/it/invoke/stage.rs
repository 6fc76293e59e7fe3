//! Environments that do as they are told, and a record of what became of them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierce_runner::environment::{Done, Invocation, Outcome, Progress, State, StreamingHead};
use tierce_runner::invoke::{CannotStart, Invocable, MakeEnvironment};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Anything that takes longer has hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for what must come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("it comes before the deadline")
}

/// More than any of the events makes a function write, so that an end waits for nobody.
const ROOM: usize = 32;

/// How environments start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    AtOnce,
    /// When [`Stage::starts`] has a permit.
    Held,
    /// Initialisation fails, and what comes then is run.
    InitFails,
    /// It ends while it initialises.
    Dies,
    /// It cannot be made.
    Impossible,
}

/// Where environments are made and watched.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    record: watch::Sender<Vec<String>>,
    /// Lets invocations of `"hold"` go on.
    pub(crate) gate: Arc<Semaphore>,
    /// Lets starts that are held go on.
    pub(crate) starts: Arc<Semaphore>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            record: watch::Sender::new(Vec::new()),
            gate: Arc::new(Semaphore::new(0)),
            starts: Arc::new(Semaphore::new(0)),
        }
    }

    fn note(&self, line: String) {
        self.record.send_modify(|record| record.push(line));
    }

    pub(crate) fn record(&self) -> Vec<String> {
        self.record.borrow().clone()
    }

    /// How often something was noted.
    pub(crate) fn count(&self, line: &str) -> usize {
        self.record
            .borrow()
            .iter()
            .filter(|noted| *noted == line)
            .count()
    }

    /// Waits until something was noted.
    pub(crate) async fn noted(&self, line: &str) {
        self.noted_times(line, 1).await;
    }

    /// Waits until something was noted so often.
    pub(crate) async fn noted_times(&self, line: &str, times: usize) {
        let mut record = self.record.subscribe();
        let seen =
            record.wait_for(|record| record.iter().filter(|noted| *noted == line).count() >= times);
        let noted = tokio::time::timeout(DEADLINE, seen).await.is_ok();
        assert!(noted, "`{line}` was not noted: {:?}", self.record());
    }

    /// Makes environments that start like this, and are noted under `name`.
    pub(crate) fn make(&self, name: &'static str, start: Start) -> MakeEnvironment<Fake> {
        self.make_each(name, move |_| start)
    }

    /// Makes environments that start as their number says.
    pub(crate) fn make_each(
        &self,
        name: &'static str,
        start: impl Fn(u32) -> Start + Send + Sync + 'static,
    ) -> MakeEnvironment<Fake> {
        let stage = self.clone();
        Arc::new(move |number| {
            let stage = stage.clone();
            let start = start(number);
            Box::pin(async move {
                let name = format!("{name}{number}");
                stage.note(format!("{name} made"));
                if start == Start::Impossible {
                    return Err(CannotStart(format!("no room for {name}")));
                }
                let (requests, received) = mpsc::unbounded_channel();
                let (told, seen) = watch::channel(State::Initialising);
                tokio::spawn(live(name, start, stage, told, received));
                Ok(Fake {
                    requests,
                    state: seen,
                })
            })
        })
    }
}

#[derive(Debug)]
enum Request {
    Invoke(Invocation, mpsc::Sender<Progress>),
    ShutDown(oneshot::Sender<()>),
}

/// An environment without a sandbox.
#[derive(Debug)]
pub(crate) struct Fake {
    requests: mpsc::UnboundedSender<Request>,
    state: watch::Receiver<State>,
}

impl Invocable for Fake {
    fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    fn invoke(&self, invocation: Invocation) -> mpsc::Receiver<Progress> {
        let (sender, receiver) = mpsc::channel(ROOM);
        let _ = self.requests.send(Request::Invoke(invocation, sender));
        receiver
    }

    async fn shut_down(self) {
        let (sender, receiver) = oneshot::channel();
        if self.requests.send(Request::ShutDown(sender)).is_ok() {
            let _ = receiver.await;
        }
    }
}

async fn live(
    name: String,
    start: Start,
    stage: Stage,
    told: watch::Sender<State>,
    mut requests: mpsc::UnboundedReceiver<Request>,
) {
    match start {
        Start::Held => {
            tokio::select! {
                permit = stage.starts.acquire() => permit.expect("the stage is open").forget(),
                done = next_shut_down(&mut requests) => {
                    stage.note(format!("{name} ended"));
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                    return;
                }
            }
        }
        Start::Dies => {
            told.send_replace(State::Gone(Some("the box broke".to_owned())));
            return;
        }
        Start::AtOnce | Start::InitFails | Start::Impossible => {}
    }
    told.send_replace(match start {
        Start::InitFails => State::InitFailed("no such module".to_owned()),
        _ => State::Ready,
    });
    while let Some(request) = requests.recv().await {
        let (invocation, progress) = match request {
            Request::Invoke(invocation, progress) => (invocation, progress),
            Request::ShutDown(done) => {
                told.send_replace(State::Gone(None));
                stage.note(format!("{name} ended"));
                let _ = done.send(());
                return;
            }
        };
        told.send_replace(State::Busy);
        let event = String::from_utf8_lossy(&invocation.payload).into_owned();
        stage.note(format!("{name} began {event}"));
        let run = run(&name, &event, &stage, &invocation, &progress);
        let outcome = tokio::select! {
            outcome = run => outcome,
            // As a real one, it lets go of what it does when it is shut down.
            done = next_shut_down(&mut requests) => {
                stage.note(format!("{name} ended"));
                if let Some(done) = done {
                    let _ = done.send(());
                }
                return;
            }
        };
        let Some(outcome) = outcome else {
            stage.note(format!("{name} died"));
            return;
        };
        stage.note(format!("{name} did {event}"));
        let lingers = event.starts_with("\"linger");
        if !lingers {
            told.send_replace(State::Ready);
        }
        let _ = progress
            .send(Progress::Done(Done {
                outcome,
                log_tail: Bytes::from(format!("END RequestId: {}\n", invocation.request_id)),
            }))
            .await;
        if lingers {
            let permit = stage.gate.acquire().await;
            permit.expect("the stage is open").forget();
            told.send_replace(State::Ready);
        }
        if event.starts_with("\"last") {
            drop(told);
            stage.note(format!("{name} left"));
            return;
        }
    }
    stage.note(format!("{name} was dropped"));
}

async fn next_shut_down(
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> Option<oneshot::Sender<()>> {
    match requests.recv().await? {
        Request::ShutDown(done) => Some(done),
        Request::Invoke(..) => panic!("an environment takes one invocation at a time"),
    }
}

/// Does what the event says; `None` is the end of the environment.
async fn run(
    name: &str,
    event: &str,
    stage: &Stage,
    invocation: &Invocation,
    progress: &mpsc::Sender<Progress>,
) -> Option<Outcome> {
    let succeed = |payload: Bytes| Outcome::Success {
        payload,
        content_type: "application/x-of-the-runtime".to_owned(),
    };
    let hold = || async {
        let permit = stage.gate.acquire().await;
        permit.expect("the stage is open").forget();
    };
    let word = event.trim_matches('"');
    match word.split('-').next().unwrap_or_default() {
        "hold" => hold().await,
        "die" => return None,
        "fail" => {
            return Some(Outcome::FunctionError {
                payload: Bytes::from_static(br#"{"errorType":"Oh","errorMessage":"no"}"#),
                error_type: "Oh".to_owned(),
            });
        }
        "cannot" => return Some(Outcome::Failed("the box is broken".to_owned())),
        "describe" => {
            return Some(succeed(Bytes::from(format!("{invocation:?}"))));
        }
        "streamlong" => {
            let _ = progress
                .send(Progress::Streaming(StreamingHead { content_type: None }))
                .await;
            for n in 0..25 {
                let _ = progress
                    .send(Progress::Piece(Bytes::from(format!("{n} "))))
                    .await;
            }
            return Some(succeed(Bytes::new()));
        }
        "stream" | "streamfail" | "streamdie" | "streamhuge" => {
            let _ = progress
                .send(Progress::Streaming(StreamingHead { content_type: None }))
                .await;
            let _ = progress
                .send(Progress::Piece(Bytes::from_static(b"first ")))
                .await;
            hold().await;
            match word {
                "streamdie" => return None,
                "streamfail" => {
                    return Some(Outcome::FunctionError {
                        payload: Bytes::from_static(br#"{"errorType":"Late"}"#),
                        error_type: "Late".to_owned(),
                    });
                }
                "streamhuge" => {
                    for _ in 0..7 {
                        let _ = progress
                            .send(Progress::Piece(vec![b'x'; 1 << 20].into()))
                            .await;
                    }
                }
                _ => {
                    let _ = progress
                        .send(Progress::Piece(Bytes::from_static(b"second")))
                        .await;
                }
            }
            return Some(succeed(Bytes::new()));
        }
        _ => {}
    }
    Some(succeed(Bytes::from(format!("{name}:{word}"))))
}
