//! Faults that tests script: what a server does wrong, and at which request.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use tokio::sync::watch;

use crate::log::Endpoint;

/// The shapes of an upload's `Location` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocationStyle {
    /// `http://host:port/v2/…?_state=…`, as Debian's docker-registry does.
    AbsoluteWithQuery,
    /// `http://host:port/v2/…`, without a query.
    Absolute,
    /// `/v2/…`, relative to the registry's root.
    Relative,
    /// `/v2/…?_state=…&part=1%2F1`, relative and with a query that has an escape to be kept.
    RelativeWithQuery,
    /// On the second host, which refuses an `Authorization` header.
    OtherHost,
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Disconnect,
    DisconnectAfterReceiving(u64),
    DisconnectAfterSending(usize),
    StallAfterReceiving(u64),
    StallAfterSending(usize),
    Trickle(usize, Duration),
    LoseAnswer,
    Answer {
        status: StatusCode,
        headers: HeaderMap,
        body: Option<Bytes>,
    },
    Endless(StatusCode),
    CorruptByte(usize),
    Truncate(usize),
    Append(Bytes),
    ReplaceBody(Bytes),
    SetHeader(HeaderName, Option<HeaderValue>),
    Location(LocationStyle),
    RefuseMount,
    Hold(Gate),
}

/// One thing that goes wrong, at the first matching request unless told otherwise.
///
/// ```
/// use tierce_testkit::{Fault, Method};
/// let fault = Fault::status(503).on(Method::PUT, "/manifests/").nth(2);
/// assert_eq!(fault.to_string(), "answer 503 on PUT …/manifests/…, from match 2, 1 time");
/// ```
#[derive(Debug, Clone)]
#[must_use = "a fault does nothing until it is injected"]
pub struct Fault {
    pub(crate) action: Action,
    endpoint: Option<Endpoint>,
    method: Option<Method>,
    fragment: String,
    first: usize,
    times: usize,
}

impl Fault {
    fn new(action: Action) -> Self {
        Self {
            action,
            endpoint: None,
            method: None,
            fragment: String::new(),
            first: 1,
            times: 1,
        }
    }

    /// Closes the connection before the request is looked at.
    pub fn disconnect() -> Self {
        Self::new(Action::Disconnect)
    }

    /// Closes the connection once `bytes` of the request's body have been read, or all of it when it
    /// is shorter. They are kept, but where chunks are atomic.
    pub fn disconnect_after_receiving(bytes: u64) -> Self {
        Self::new(Action::DisconnectAfterReceiving(bytes))
    }

    /// Closes the connection after `bytes` of the answer's body; the length promised is the full one.
    pub fn disconnect_after_sending(bytes: usize) -> Self {
        Self::new(Action::DisconnectAfterSending(bytes))
    }

    /// Stops reading once `bytes` of the request's body have come, or all of it when it is shorter,
    /// and neither answers nor closes: the client must give up.
    ///
    /// It acts where the server reads a body. [`Fault::hold`] with a gate that stays closed is the
    /// server that never answers at all.
    pub fn stall_after_receiving(bytes: u64) -> Self {
        Self::new(Action::StallAfterReceiving(bytes))
    }

    /// Sends `bytes` of the answer's body and then nothing more, with the connection left open; the
    /// length promised is the full one.
    pub fn stall_after_sending(bytes: usize) -> Self {
        Self::new(Action::StallAfterSending(bytes))
    }

    /// Sends the answer's body in pieces of `bytes`, with a pause before each.
    pub fn trickle(bytes: usize, pause: Duration) -> Self {
        Self::new(Action::Trickle(bytes.max(1), pause))
    }

    /// Does the work, then closes the connection instead of answering.
    pub fn lose_answer() -> Self {
        Self::new(Action::LoseAnswer)
    }

    /// Answers a status, with the registry's usual JSON error body.
    ///
    /// # Panics
    /// When `status` is not a number that HTTP knows.
    pub fn status(status: u16) -> Self {
        Self::new(Action::Answer {
            status: StatusCode::from_u16(status).expect("the test names an HTTP status"),
            headers: HeaderMap::new(),
            body: None,
        })
    }

    /// Answers 429 with `Retry-After: seconds`.
    pub fn too_many_requests(seconds: u64) -> Self {
        Self::status(429).with_header("retry-after", &seconds.to_string())
    }

    /// Answers a status with a body that never ends (256 MiB, then the test has failed anyway).
    ///
    /// # Panics
    /// When `status` is not a number that HTTP knows.
    pub fn endless_body(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("the test names an HTTP status");
        Self::new(Action::Endless(status))
    }

    /// Flips the bits of the answer's byte at `offset`.
    pub fn corrupt_byte(offset: usize) -> Self {
        Self::new(Action::CorruptByte(offset))
    }

    /// Sends only the first `length` bytes, as a complete answer of that length.
    pub fn truncate(length: usize) -> Self {
        Self::new(Action::Truncate(length))
    }

    /// Sends `bytes` after the right ones, as one answer of the longer length.
    pub fn append(bytes: impl Into<Bytes>) -> Self {
        Self::new(Action::Append(bytes.into()))
    }

    /// Sends other bytes with the headers of the right answer.
    pub fn replace_body(bytes: impl Into<Bytes>) -> Self {
        Self::new(Action::ReplaceBody(bytes.into()))
    }

    /// Sends `Docker-Content-Digest: text`.
    pub fn digest_header(text: &str) -> Self {
        Self::header("docker-content-digest", text)
    }

    /// Sets a header of the right answer.
    ///
    /// # Panics
    /// When name or value cannot stand in a header.
    pub fn header(name: &str, value: &str) -> Self {
        let (name, value) = header(name, value);
        Self::new(Action::SetHeader(name, Some(value)))
    }

    /// Leaves a header out of the right answer.
    ///
    /// # Panics
    /// When the name cannot be a header's.
    pub fn without_header(name: &str) -> Self {
        Self::new(Action::SetHeader(header(name, "").0, None))
    }

    /// Gives an upload's `Location` in another shape.
    pub fn location(style: LocationStyle) -> Self {
        Self::new(Action::Location(style))
    }

    /// Answers a mount with 202, as a registry that does not mount: an upload begins.
    pub fn refuse_mount() -> Self {
        Self::new(Action::RefuseMount)
    }

    /// Lets the request wait until the gate opens, then goes on as usual.
    pub fn hold(gate: &Gate) -> Self {
        Self::new(Action::Hold(gate.clone()))
    }

    /// Adds a header to the answer of [`Fault::status`].
    ///
    /// # Panics
    /// When name or value cannot stand in a header.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Action::Answer { headers, .. } = &mut self.action {
            let (name, value) = header(name, value);
            headers.insert(name, value);
        }
        self
    }

    /// Gives the answer of [`Fault::status`] a body of another kind than JSON.
    pub fn with_body(mut self, bytes: impl Into<Bytes>) -> Self {
        if let Action::Answer { body, .. } = &mut self.action {
            *body = Some(bytes.into());
        }
        self
    }

    /// Only at requests of this method whose path contains `fragment`.
    pub fn on(mut self, method: Method, fragment: &str) -> Self {
        self.method = Some(method);
        fragment.clone_into(&mut self.fragment);
        self
    }

    /// Only at requests whose path contains `fragment`, of any method.
    pub fn on_path(mut self, fragment: &str) -> Self {
        fragment.clone_into(&mut self.fragment);
        self
    }

    /// Only at one of the servers.
    pub fn at(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Begins at the `number`-th matching request, counted from 1.
    pub fn nth(mut self, number: usize) -> Self {
        self.first = number;
        self
    }

    /// Happens at this many matching requests in a row.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Happens at every matching request from the first on.
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    fn matches(&self, endpoint: Endpoint, method: &Method, path: &str) -> bool {
        self.endpoint.is_none_or(|wanted| wanted == endpoint)
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && path.contains(&self.fragment)
    }
}

fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (
        name.parse().expect("the test names a header"),
        value.parse().expect("the test gives a header's value"),
    )
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Answer { status, .. } => write!(formatter, "answer {}", status.as_u16())?,
            action => write!(formatter, "{action:?}")?,
        }
        let method = self.method.as_ref().map_or("*", Method::as_str);
        let (fragment, first) = (&self.fragment, self.first);
        write!(formatter, " on {method} …{fragment}…, from match {first}, ")?;
        match self.times {
            usize::MAX => formatter.write_str("always"),
            1 => formatter.write_str("1 time"),
            times => write!(formatter, "{times} times"),
        }
    }
}

/// A door that requests wait at, so that a test can look at, or kill, a client in mid-work.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<GateInner>,
}

struct GateInner {
    waiting: Mutex<usize>,
    arrived: Condvar,
    open: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(GateInner {
                waiting: Mutex::new(0),
                arrived: Condvar::new(),
                open: watch::Sender::new(false),
            }),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, usize> {
        let lock = self.inner.waiting.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until `number` requests have arrived at the gate.
    ///
    /// # Panics
    /// When they have not come within 30 seconds.
    #[track_caller]
    pub fn wait_for(&self, number: usize) {
        let limit = Duration::from_secs(30);
        let (waiting, outcome) = self
            .inner
            .arrived
            .wait_timeout_while(self.waiting(), limit, |waiting| *waiting < number)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(
            !outcome.timed_out(),
            "only {} of {number} requests came to the gate",
            *waiting
        );
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        self.inner.open.send_replace(true);
    }

    pub(crate) async fn pass(&self) {
        *self.waiting() += 1;
        self.inner.arrived.notify_all();
        let mut open = self.inner.open.subscribe();
        // The sender lives in `self`, so the wait ends only because the gate opened.
        let _ = open.wait_for(|open| *open).await;
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Gate(open: {})", *self.inner.open.borrow())
    }
}

/// The faults that are planted at a server; clones share the same list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    planted: Arc<Mutex<Vec<Planted>>>,
}

#[derive(Debug)]
struct Planted {
    fault: Fault,
    matched: usize,
    fired: usize,
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, Vec<Planted>> {
        self.planted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn plant(&self, fault: Fault) {
        self.lock().push(Planted {
            fault,
            matched: 0,
            fired: 0,
        });
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// The faults that have happened less often than they were scripted to.
    pub(crate) fn pending(&self) -> Vec<String> {
        let planted = self.lock();
        planted
            .iter()
            .filter(|planted| match planted.fault.times {
                usize::MAX => planted.fired == 0,
                times => planted.fired < times,
            })
            .map(|planted| planted.fault.to_string())
            .collect()
    }

    /// The actions that this request sets off, in the order they were planted.
    pub(crate) fn fire(&self, endpoint: Endpoint, method: &Method, path: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        for planted in self.lock().iter_mut() {
            if !planted.fault.matches(endpoint, method, path) {
                continue;
            }
            planted.matched += 1;
            if planted.matched >= planted.fault.first && planted.fired < planted.fault.times {
                planted.fired += 1;
                actions.push(planted.fault.action.clone());
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_fires_from_its_match_on_and_as_often_as_told() {
        let faults = Faults::default();
        faults.plant(
            Fault::disconnect()
                .on(Method::GET, "/blobs/")
                .nth(2)
                .times(2),
        );
        let fire =
            |method: Method, path: &str| faults.fire(Endpoint::Registry, &method, path).len();
        assert_eq!(fire(Method::GET, "/v2/a/blobs/x"), 0);
        assert_eq!(fire(Method::HEAD, "/v2/a/blobs/x"), 0);
        assert_eq!(fire(Method::GET, "/v2/a/manifests/x"), 0);
        assert_eq!(fire(Method::GET, "/v2/a/blobs/x"), 1);
        assert_eq!(faults.pending().len(), 1);
        assert_eq!(fire(Method::GET, "/v2/a/blobs/x"), 1);
        assert_eq!(fire(Method::GET, "/v2/a/blobs/x"), 0);
        assert_eq!(faults.pending(), Vec::<String>::new());
    }
}
