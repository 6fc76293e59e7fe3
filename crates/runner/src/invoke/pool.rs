//! The environments of one function: started as they are needed, reused, ended when idle.
//!
//! All decisions are taken under one lock by short, blocking-free steps over a [`Roster`]; what takes
//! time (making, waiting, relaying, ending) happens in tasks that come back to the lock with what they
//! have to tell. Two invariants hold whenever the lock is free:
//!
//! * while invocations wait, no environment is idle, so nobody is overtaken;
//! * while invocations wait, an environment is starting or busy, so nobody waits for nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::environment::{Done, Environment, Invocation, Outcome, Progress, State};

/// How many environments there may be, and how long they stay.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// At most so many at once, and never less than one. Those that are ending are not counted.
    pub concurrency: u32,
    /// One that had no invocation for so long is shut down; the last one stays.
    pub idle: Duration,
    /// Whether an invocation that finds all of them busy is refused as Lambda refuses it (429),
    /// instead of waiting.
    pub throttle: bool,
}

/// What a pool asks of an environment; see [`Environment`] for what each verb promises.
pub trait Invocable: Send + Sync + 'static {
    /// What it is about, now and later. A closed channel means the same as [`State::Gone`].
    fn state(&self) -> watch::Receiver<State>;
    /// Takes an invocation; the next one may come after `Done`, which waits for nobody, but is not
    /// begun before the state is another than [`State::Busy`]. Who does not take what comes before
    /// `Done` holds the function up.
    fn invoke(&self, invocation: Invocation) -> mpsc::Receiver<Progress>;
    /// Ends it, and waits until nothing is left of it.
    fn shut_down(self) -> impl Future<Output = ()> + Send;
}

impl Invocable for Environment {
    fn state(&self) -> watch::Receiver<State> {
        Self::state(self)
    }

    fn invoke(&self, invocation: Invocation) -> mpsc::Receiver<Progress> {
        Self::invoke(self, invocation)
    }

    fn shut_down(self) -> impl Future<Output = ()> + Send {
        Self::shut_down(self)
    }
}

/// Makes an environment with this number, or says in words why it cannot be.
pub type MakeEnvironment<E = Environment> =
    Arc<dyn Fn(u32) -> BoxFuture<'static, Result<E, CannotStart>> + Send + Sync>;

/// No environment could be made: a fault of this machine, in words for the user.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(pub String);

/// All environments are busy, and the pool was told not to let anybody wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all environments are busy")]
pub struct Throttled;

/// The environments of one function. Clones are handles to the same ones; all that they are asked must
/// be asked in a tokio runtime, where the pool's tasks run.
///
/// When the last handle is dropped, environments that are idle end without being waited for, and
/// those that are busy end after their invocation; [`Pool::shut_down`] is how to wait for that.
pub struct Pool<E: Invocable = Environment> {
    shared: Arc<Shared<E>>,
}

impl<E: Invocable> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<E: Invocable> fmt::Debug for Pool<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pool")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

impl<E: Invocable> Pool<E> {
    /// A pool without an environment yet.
    pub fn new(settings: PoolSettings, make: MakeEnvironment<E>) -> Self {
        let idle = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            settings,
            roster: Mutex::new(Roster {
                make,
                generation: 0,
                wanted: watch::Sender::new(()),
                next_number: 1,
                starting: 0,
                idle: Vec::new(),
                busy: BTreeMap::new(),
                waiting: VecDeque::new(),
                warming: Vec::new(),
                is_crowd_told: false,
                closed: false,
            }),
            alive: watch::Sender::new(0),
            idle: Arc::clone(&idle),
        });
        tokio::spawn(end_idle(Arc::downgrade(&shared), idle));
        Self { shared }
    }

    /// Has `invocation` run by an environment, and tells how it goes; [`Progress::Done`] comes in any
    /// case. It runs to its end even if nobody listens.
    ///
    /// Where all environments are busy it waits its turn, or is refused if the settings say so or
    /// a thousand wait already.
    pub fn invoke(&self, invocation: Invocation) -> Result<mpsc::Receiver<Progress>, Throttled> {
        let mut roster = self.shared.lock();
        Shared::purge(&mut roster);
        let refuse = roster.waiting.len() >= WAITING
            || self.shared.settings.throttle && self.shared.would_wait(&roster);
        if refuse {
            return Err(Throttled);
        }
        Ok(self.shared.accept(&mut roster, invocation))
    }

    /// As [`Pool::invoke`], but always waits its turn: for events, which Lambda queues.
    pub fn invoke_in_turn(&self, invocation: Invocation) -> mpsc::Receiver<Progress> {
        let mut roster = self.shared.lock();
        Shared::purge(&mut roster);
        self.shared.accept(&mut roster, invocation)
    }

    /// Starts an environment unless there is one, and waits until one has initialised: `Ready` or
    /// `InitFailed`. Dropping the future does not stop the environment.
    pub async fn warm_up(&self) -> Result<State, CannotStart> {
        let warm = {
            let mut roster = self.shared.lock();
            if roster.closed {
                return Err(CannotStart(SHUT_DOWN.to_owned()));
            }
            Shared::purge(&mut roster);
            if let Some(member) = roster.idle.last() {
                return Ok(member.environment.state().borrow().clone());
            }
            if let Some(member) = roster.current_busy().next() {
                return Ok(member.environment.state().borrow().clone());
            }
            if roster.starting == 0 {
                self.shared.start(&mut roster);
            }
            let (sender, receiver) = oneshot::channel();
            roster.warming.push(sender);
            receiver
        };
        warm.await
            .unwrap_or_else(|_| Err(CannotStart(SHUT_DOWN.to_owned())))
    }

    /// From now on invocations, those that wait included, go to environments made by `make`, the
    /// first of which starts at once. Older ones end: the idle now, the busy after their invocation.
    pub fn replace(&self, make: MakeEnvironment<E>) {
        let mut roster = self.shared.lock();
        if roster.closed {
            return;
        }
        roster.make = make;
        roster.generation += 1;
        roster.wanted = watch::Sender::new(());
        roster.starting = 0;
        for member in std::mem::take(&mut roster.idle) {
            end(member);
        }
        self.shared.start(&mut roster);
        self.shared.start_needed(&mut roster);
    }

    /// Ends all environments at once, the busy ones too, and waits until nothing is left of them.
    /// Invocations that wait, and later ones, are told so.
    pub async fn shut_down(&self) {
        let mut alive = {
            let mut roster = self.shared.lock();
            roster.closed = true;
            roster.wanted = watch::Sender::new(());
            roster.warming.clear();
            for waiting in std::mem::take(&mut roster.waiting) {
                waiting.fail(SHUT_DOWN);
            }
            for member in std::mem::take(&mut roster.idle) {
                end(member);
            }
            for member in std::mem::take(&mut roster.busy).into_values() {
                end(member);
            }
            self.shared.alive.subscribe()
        };
        // The sender lives in `shared`, so this ends only with zero.
        let _ = alive.wait_for(|alive| *alive == 0).await;
    }
}

/// So many pieces of an answer lie between a function and a client that takes them slowly.
const PIECES: usize = 16;

/// So many invocations may wait, of clients that wait and of those that have gone; each has an event of
/// up to 6 MiB, unless any payload is taken.
const WAITING: usize = 1_000;

/// How long who waits counts on an environment that has answered, before another is started: about
/// as long as a start takes.
const SETTLING: Duration = Duration::from_millis(500);

const SHUT_DOWN: &str = "the function was shut down";

struct Shared<E: Invocable> {
    settings: PoolSettings,
    roster: Mutex<Roster<E>>,
    /// How many environments there are in any form, from being made to the end of being ended.
    alive: watch::Sender<usize>,
    /// Wakes who ends idle environments.
    idle: Arc<Notify>,
}

/// Who does what.
struct Roster<E> {
    make: MakeEnvironment<E>,
    /// Counts the makers so far.
    generation: u64,
    /// Dropped when environments of this generation are not wanted any more.
    wanted: watch::Sender<()>,
    next_number: u32,
    /// How many of this generation are being made or initialise for the first time.
    starting: usize,
    /// All of this generation, the most recently used last.
    idle: Vec<Member<E>>,
    /// Of all generations, by number.
    busy: BTreeMap<u32, Member<E>>,
    waiting: VecDeque<Waiting>,
    /// Who waits for the first environment.
    warming: Vec<oneshot::Sender<Result<State, CannotStart>>>,
    /// Whether it was told that invocations wait because there may be no more environments.
    is_crowd_told: bool,
    closed: bool,
}

struct Member<E> {
    number: u32,
    generation: u64,
    /// Whether it is busy only with what comes after an answer, and most likely not for long.
    settling: bool,
    /// Since when it has been idle.
    since: Instant,
    environment: E,
    alive: Alive,
}

/// Counts an environment for as long as it is held.
struct Alive(watch::Sender<usize>);

impl Alive {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl<E: Invocable> Member<E> {
    fn is_gone(&self) -> bool {
        is_over(&self.environment.state())
    }
}

/// Whether an environment with this state takes nothing more.
fn is_over(state: &watch::Receiver<State>) -> bool {
    // `has_changed` fails when whoever would tell has ended.
    matches!(*state.borrow(), State::Gone(_)) || state.has_changed().is_err()
}

struct Waiting {
    invocation: Invocation,
    progress: mpsc::Sender<Progress>,
}

impl Waiting {
    fn fail(self, words: &str) {
        // It is the first word in there, so there is room.
        let _ = self.progress.try_send(failed(words));
    }
}

fn failed(words: &str) -> Progress {
    Progress::Done(Done {
        outcome: Outcome::Failed(words.to_owned()),
        log_tail: Bytes::new(),
    })
}

impl<E> Roster<E> {
    fn current_busy(&self) -> impl Iterator<Item = &Member<E>> {
        self.busy
            .values()
            .filter(|member| member.generation == self.generation)
    }

    /// How many environments of this generation there are.
    fn count(&self) -> usize {
        self.starting + self.idle.len() + self.current_busy().count()
    }

    /// How many of them will take who waits before long.
    fn coming(&self) -> usize {
        self.starting + self.current_busy().filter(|member| member.settling).count()
    }
}

impl<E: Invocable> Shared<E> {
    /// The roster is whole whenever the lock is free, whatever became of who held it.
    fn lock(&self) -> MutexGuard<'_, Roster<E>> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn concurrency(&self) -> usize {
        usize::try_from(self.settings.concurrency.max(1)).unwrap_or(usize::MAX)
    }

    /// Whether one more invocation could neither begin nor have an environment started for it.
    fn would_wait(&self, roster: &Roster<E>) -> bool {
        roster.idle.is_empty()
            && roster.count() >= self.concurrency()
            && roster.waiting.len() >= roster.coming()
    }

    fn accept(
        self: &Arc<Self>,
        roster: &mut Roster<E>,
        invocation: Invocation,
    ) -> mpsc::Receiver<Progress> {
        let (progress, receiver) = mpsc::channel(PIECES);
        let waiting = Waiting {
            invocation,
            progress,
        };
        if roster.closed {
            waiting.fail(SHUT_DOWN);
        } else if let Some(member) = take_warm(&mut roster.idle) {
            self.begin(roster, member, waiting);
        } else {
            roster.waiting.push_back(waiting);
            self.start_needed(roster);
            if roster.coming() < roster.waiting.len()
                && !std::mem::replace(&mut roster.is_crowd_told, true)
            {
                // A function that waits for itself would wait until its time is over.
                tracing::warn!(
                    "invocations wait, because all environments that --concurrency allows ({}) are \
                     busy",
                    self.concurrency()
                );
            }
        }
        receiver
    }

    /// Forgets idle environments that ended by themselves.
    fn purge(roster: &mut Roster<E>) {
        for gone in roster.idle.extract_if(.., |member| member.is_gone()) {
            end(gone);
        }
    }

    /// Starts as many environments as there are invocations that none of those coming will take.
    fn start_needed(self: &Arc<Self>, roster: &mut Roster<E>) {
        while roster.coming() < roster.waiting.len() && roster.count() < self.concurrency() {
            self.start(roster);
        }
    }

    fn start(self: &Arc<Self>, roster: &mut Roster<E>) {
        let number = roster.next_number;
        roster.next_number = roster.next_number.wrapping_add(1);
        roster.starting += 1;
        let generation = roster.generation;
        let mut wanted = roster.wanted.subscribe();
        let make = Arc::clone(&roster.make);
        let alive = Alive::new(&self.alive);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            // A task of its own, so that even a panic in there is told to who waits.
            let starting = tokio::spawn(async move {
                let environment = make(number).await?;
                let mut state = environment.state();
                let initialised = tokio::select! {
                    state = state.wait_for(|state| *state != State::Initialising) => {
                        state.map_or(State::Gone(None), |state| state.clone())
                    }
                    // It will be ended, so it need not come to an end of this.
                    _ = wanted.changed() => State::Initialising,
                };
                let member = Member {
                    number,
                    generation,
                    settling: false,
                    since: Instant::now(),
                    environment,
                    alive,
                };
                Ok((member, initialised))
            });
            let started = starting.await.unwrap_or_else(|error| {
                Err(CannotStart(format!(
                    "environment {number} could not be made: {error}"
                )))
            });
            shared.started(number, generation, started);
        });
    }

    fn started(
        self: &Arc<Self>,
        number: u32,
        generation: u64,
        started: Result<(Member<E>, State), CannotStart>,
    ) {
        let mut roster = self.lock();
        let expected = generation == roster.generation && !roster.closed;
        if !expected {
            if let Ok((member, _)) = started {
                end(member);
            }
            return;
        }
        roster.starting -= 1;
        let outcome = match started {
            Ok((member, State::Gone(reason))) => {
                end(member);
                let reason = reason.map(|reason| format!(": {reason}"));
                Err(CannotStart(format!(
                    "environment {number} ended while it was starting{}",
                    reason.unwrap_or_default()
                )))
            }
            Ok((member, state)) => {
                self.free(&mut roster, member);
                Ok(state)
            }
            Err(reason) => Err(reason),
        };
        let warming = std::mem::take(&mut roster.warming);
        let is_told = !warming.is_empty();
        for warming in warming {
            let _ = warming.send(outcome.clone());
        }
        if let Err(CannotStart(reason)) = outcome {
            if !is_told {
                tracing::warn!(environment = number, reason, "environment did not start");
            }
            // It was started for one invocation, and that one is told. So as many fail as were tried,
            // and a machine that can make none does not try for ever.
            if let Some(waiting) = roster.waiting.pop_front() {
                waiting.fail(&reason);
            }
        }
        self.start_needed(&mut roster);
    }

    /// Gives an environment that has nothing to do to who waits longest.
    fn free(self: &Arc<Self>, roster: &mut Roster<E>, mut member: Member<E>) {
        if member.is_gone() {
            end(member);
            self.start_needed(roster);
            return;
        }
        match roster.waiting.pop_front() {
            Some(waiting) => self.begin(roster, member, waiting),
            None => {
                member.since = Instant::now();
                roster.idle.push(member);
                self.idle.notify_one();
            }
        }
    }

    /// Hands an invocation to an environment, and what that says to who waits for it.
    fn begin(self: &Arc<Self>, roster: &mut Roster<E>, member: Member<E>, waiting: Waiting) {
        let number = member.number;
        let state = member.environment.state();
        let told = member.environment.invoke(waiting.invocation);
        roster.busy.insert(number, member);
        let shared = Arc::clone(self);
        // A task of its own, so that a client that is gone or slow changes nothing here.
        tokio::spawn(shared.relay(number, state, told, waiting.progress));
    }

    /// Relays what an environment says. While the function writes, a slow listener slows it down, as
    /// on Lambda; when it is done, its environment is free, however much the listener has not taken.
    async fn relay(
        self: Arc<Self>,
        number: u32,
        mut state: watch::Receiver<State>,
        mut told: mpsc::Receiver<Progress>,
        listener: mpsc::Sender<Progress>,
    ) {
        let mut pieces = VecDeque::new();
        let mut is_deaf = false;
        let mut is_over = false;
        let last = loop {
            tokio::select! {
                progress = told.recv(), if pieces.is_empty() || is_over => match progress {
                    Some(Progress::Done(done)) => break Some(done),
                    Some(_) if is_deaf => {}
                    Some(piece) => pieces.push_back(piece),
                    None => break None,
                },
                room = listener.reserve(), if !pieces.is_empty() => {
                    if let (Ok(room), Some(piece)) = (room, pieces.pop_front()) {
                        room.send(piece);
                    } else {
                        pieces.clear();
                        is_deaf = true;
                    }
                }
                // Something was written, so it has been busy; and it is so no more.
                _ = state.wait_for(|state| *state != State::Busy),
                    if !pieces.is_empty() && !is_over => is_over = true,
            }
        };
        let is_usable = last.is_some();
        let last = last.map_or_else(
            || failed(&format!("environment {number} ended during the invocation")),
            Progress::Done,
        );
        // First: whoever gets the answer may ask again at once, and shall find it warm.
        self.settling(number, is_usable);
        let tell = async move {
            for progress in pieces.into_iter().chain([last]) {
                if listener.send(progress).await.is_err() {
                    return;
                }
            }
        };
        let settle = async {
            if is_usable {
                self.settle(number, state).await;
            }
            self.finished(number, is_usable);
        };
        tokio::join!(settle, tell);
    }

    /// Waits until an environment that has answered has nothing more to do: its extensions may go
    /// on, or it ends what failed. Who waits does not wait for that longer than a start would take.
    async fn settle(self: &Arc<Self>, number: u32, mut state: watch::Receiver<State>) {
        let mut settled = std::pin::pin!(state.wait_for(|state| *state != State::Busy));
        if tokio::time::timeout(SETTLING, settled.as_mut())
            .await
            .is_err()
        {
            self.settling(number, false);
            let _ = settled.await;
        }
    }

    fn settling(self: &Arc<Self>, number: u32, is_settling: bool) {
        let mut roster = self.lock();
        // It is not there when all are being shut down.
        if let Some(member) = roster.busy.get_mut(&number) {
            member.settling = is_settling;
        }
        self.start_needed(&mut roster);
    }

    /// Takes an environment back, unless it must end.
    fn finished(self: &Arc<Self>, number: u32, is_usable: bool) {
        let mut roster = self.lock();
        // It is not there when all are being shut down.
        let Some(mut member) = roster.busy.remove(&number) else {
            return;
        };
        member.settling = false;
        if is_usable && member.generation == roster.generation {
            self.free(&mut roster, member);
        } else {
            end(member);
            self.start_needed(&mut roster);
        }
    }

    /// Ends those that have been idle for too long, and says when to look again.
    fn end_idle(self: &Arc<Self>) -> Option<Instant> {
        let mut roster = self.lock();
        Self::purge(&mut roster);
        while roster.count() > 1 {
            let deadline = roster.idle.first()?.since.checked_add(self.settings.idle)?;
            if deadline > Instant::now() {
                return Some(deadline);
            }
            end(roster.idle.remove(0));
        }
        None
    }
}

impl<E: Invocable> Drop for Shared<E> {
    fn drop(&mut self) {
        self.idle.notify_one();
    }
}

/// Ends environments that are idle for too long, for as long as the pool is there.
async fn end_idle<E: Invocable>(shared: Weak<Shared<E>>, idle: Arc<Notify>) {
    loop {
        let Some(deadline) = shared.upgrade().map(|shared| shared.end_idle()) else {
            return;
        };
        match deadline {
            Some(deadline) => {
                tokio::select! {
                    () = tokio::time::sleep_until(deadline) => {}
                    () = idle.notified() => {}
                }
            }
            None => idle.notified().await,
        }
    }
}

/// Ends an environment, beside everything else.
fn end<E: Invocable>(member: Member<E>) {
    tokio::spawn(async move {
        let Member {
            environment, alive, ..
        } = member;
        environment.shut_down().await;
        drop(alive);
    });
}

/// The most recently used environment, so that others go idle; one that is ready before one that
/// initialises again after a failure.
fn take_warm<E: Invocable>(idle: &mut Vec<Member<E>>) -> Option<Member<E>> {
    let ready = idle
        .iter()
        .rposition(|member| *member.environment.state().borrow() == State::Ready);
    match ready {
        Some(position) => Some(idle.remove(position)),
        None => idle.pop(),
    }
}
