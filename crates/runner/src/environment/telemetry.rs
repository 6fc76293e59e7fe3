//! What extensions subscribe to: platform events and log lines, in batches over HTTP
//! (Lambda guide, "Lambda Telemetry API reference").

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::sandbox::Network;

use super::call::Refusal;
use super::{LogLine, LogSource, SharedSink};

/// What a batch may hold, as the service allows it and does by default.
const ITEMS: (RangeInclusive<u64>, u64) = (1000..=10_000, 10_000);
const BYTES: (RangeInclusive<u64>, u64) = (262_144..=1_048_576, 262_144);
const MILLISECONDS: (RangeInclusive<u64>, u64) = (25..=30_000, 1000);

/// Events on their way to one subscriber. One that takes none loses those that come then.
const WAITING: usize = 10_000;
/// Events of an initialisation, kept for those that subscribe later in it.
const KEPT: usize = 1000;
/// How often a batch is tried.
const ATTEMPTS: u32 = 3;
/// A subscriber that does not answer for so long has failed.
const ANSWER: Duration = Duration::from_secs(5);

/// Which stream an event is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Platform,
    Function,
    Extension,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Function => "function",
            Self::Extension => "extension",
        }
    }

    fn of(name: &str) -> Option<Self> {
        match name {
            "platform" => Some(Self::Platform),
            "function" => Some(Self::Function),
            "extension" => Some(Self::Extension),
            _ => None,
        }
    }
}

/// What an extension asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    kinds: BTreeSet<Kind>,
    port: u16,
    /// Path and query.
    path: String,
    /// The URI as it was given.
    uri: String,
    items: usize,
    bytes: usize,
    timeout: Duration,
}

impl Subscription {
    /// What it asks for, as it was written.
    pub(super) fn types(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|kind| kind.name()).collect()
    }

    /// Reads the body of a request.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let body: Value =
            serde_json::from_slice(body).map_err(|_| invalid("the body is not JSON"))?;
        let kinds = body["types"]
            .as_array()
            .filter(|types| !types.is_empty())
            .ok_or_else(|| invalid("types must be a list that is not empty"))?
            .iter()
            .map(|kind| {
                kind.as_str()
                    .and_then(Kind::of)
                    .ok_or_else(|| invalid("types may be platform, function and extension"))
            })
            .collect::<Result<_, _>>()?;
        let destination = &body["destination"];
        if !destination["protocol"]
            .as_str()
            .is_some_and(|protocol| protocol.eq_ignore_ascii_case("HTTP"))
        {
            return Err(invalid("destination.protocol must be HTTP"));
        }
        let text = destination["URI"]
            .as_str()
            .or_else(|| destination["uri"].as_str())
            .ok_or_else(|| invalid("destination.URI is missing"))?;
        let uri: Uri = text
            .parse()
            .map_err(|_| invalid("destination.URI is not a URI"))?;
        if uri.scheme_str() != Some("http")
            || !matches!(uri.host(), Some("sandbox.localdomain" | "sandbox"))
        {
            return Err(invalid(
                "destination.URI must begin with http://sandbox.localdomain",
            ));
        }
        let buffering = &body["buffering"];
        Ok(Self {
            kinds,
            port: uri.port_u16().unwrap_or(80),
            path: uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
            uri: text.to_owned(),
            items: limit(buffering, "maxItems", &ITEMS)?,
            bytes: limit(buffering, "maxBytes", &BYTES)?,
            timeout: Duration::from_millis(limit(buffering, "timeoutMs", &MILLISECONDS)? as u64),
        })
    }
}

fn invalid(what: &str) -> Refusal {
    Refusal::Validation(what.to_owned())
}

fn limit(
    buffering: &Value,
    name: &str,
    (allowed, default): &(RangeInclusive<u64>, u64),
) -> Result<usize, Refusal> {
    let value = match &buffering[name] {
        Value::Null => *default,
        value => value
            .as_u64()
            .filter(|value| allowed.contains(value))
            .ok_or_else(|| {
                invalid(&format!(
                    "buffering.{name} must be from {} to {}",
                    allowed.start(),
                    allowed.end()
                ))
            })?,
    };
    usize::try_from(value).map_err(|_| invalid("a number is too large"))
}

/// The subscriptions of one life of an environment.
#[derive(Debug)]
pub(super) struct Telemetry {
    environment: u32,
    sink: SharedSink,
    network: Network,
    subscribers: Vec<Subscriber>,
    /// Whether it was told that nothing can be delivered.
    is_told: bool,
    /// The events so far, while an initialisation goes on.
    kept: Option<Vec<(Kind, String)>>,
}

#[derive(Debug)]
struct Subscriber {
    kinds: BTreeSet<Kind>,
    events: mpsc::Sender<String>,
}

impl Telemetry {
    pub(super) fn new(environment: u32, sink: SharedSink, network: Network) -> Self {
        Self {
            environment,
            sink,
            network,
            subscribers: Vec::new(),
            is_told: false,
            kept: None,
        }
    }

    /// An initialisation begins: there are no subscribers, and those that come get all of it.
    pub(super) fn open(&mut self) {
        self.subscribers.clear();
        self.kept = Some(Vec::new());
    }

    /// It has ended.
    pub(super) fn close(&mut self) {
        self.kept = None;
    }

    /// Nobody is a subscriber any more; what waits is delivered at once.
    pub(super) fn clear(&mut self) {
        self.subscribers.clear();
        self.kept = None;
    }

    pub(super) fn subscribe(&mut self, subscription: Subscription) {
        if self.network == Network::None {
            // Its loopback is not ours, where something else may listen at that port.
            if !std::mem::replace(&mut self.is_told, true) {
                self.sink.line(LogLine {
                    environment: self.environment,
                    source: LogSource::Hint,
                    text: "telemetry is not delivered without the network of this machine".into(),
                });
            }
            return;
        }
        let (events, waiting) = mpsc::channel(WAITING);
        let subscriber = Subscriber {
            kinds: subscription.kinds.clone(),
            events,
        };
        for (kind, event) in self.kept.iter().flatten() {
            subscriber.tell(*kind, event);
        }
        self.subscribers.push(subscriber);
        tokio::spawn(deliver(
            subscription,
            waiting,
            self.environment,
            SharedSink::clone(&self.sink),
        ));
    }

    /// Whether events of this kind are of use to anybody.
    pub(super) fn wants(&self, kind: Kind) -> bool {
        self.kept.is_some()
            || self
                .subscribers
                .iter()
                .any(|subscriber| subscriber.kinds.contains(&kind))
    }

    /// Tells those who want it of something that happens now.
    pub(super) fn event(&mut self, kind: Kind, name: &str, record: &Value) {
        let event = json!({
            "time": format!("{:.3}", jiff::Timestamp::now()),
            "type": name,
            "record": record,
        })
        .to_string();
        for subscriber in &self.subscribers {
            subscriber.tell(kind, &event);
        }
        if let Some(kept) = &mut self.kept
            && kept.len() < KEPT
        {
            kept.push((kind, event));
        }
    }
}

impl Subscriber {
    fn tell(&self, kind: Kind, event: &str) {
        if self.kinds.contains(&kind) {
            // One that is too slow loses it: a function does not wait for who listens to it.
            let _ = self.events.try_send(event.to_owned());
        }
    }
}

/// Delivers until nobody is left who tells, and then what is left.
async fn deliver(
    subscription: Subscription,
    mut waiting: mpsc::Receiver<String>,
    environment: u32,
    sink: SharedSink,
) {
    let mut has_failed = false;
    while let Some(first) = waiting.recv().await {
        let batch = batch(&subscription, first, &mut waiting).await;
        let mut result = post(&subscription, batch.clone()).await;
        for _ in 1..ATTEMPTS {
            if result.is_ok() {
                break;
            }
            sleep(subscription.timeout).await;
            result = post(&subscription, batch.clone()).await;
        }
        if let Err(error) = result
            && !has_failed
        {
            has_failed = true;
            sink.line(LogLine {
                environment,
                source: LogSource::Hint,
                text: format!(
                    "telemetry could not be delivered to `{}`: {error}",
                    subscription.uri
                )
                .into(),
            });
        }
    }
}

/// A batch: a list of events in JSON.
async fn batch(
    subscription: &Subscription,
    first: String,
    waiting: &mut mpsc::Receiver<String>,
) -> Bytes {
    let deadline = Instant::now() + subscription.timeout;
    let mut batch = format!("[{first}");
    let mut items = 1;
    while items < subscription.items && batch.len() < subscription.bytes {
        tokio::select! {
            event = waiting.recv() => match event {
                Some(event) => {
                    batch.push(',');
                    batch.push_str(&event);
                    items += 1;
                }
                None => break,
            },
            () = sleep_until(deadline) => break,
        }
    }
    batch.push(']');
    batch.into()
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("the answer was {0}")]
    Status(hyper::StatusCode),
    #[error("no answer came")]
    Silence,
    #[error("the request could not be made")]
    Request(#[from] hyper::http::Error),
}

async fn post(subscription: &Subscription, batch: Bytes) -> Result<(), PostError> {
    let exchange = async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, subscription.port)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&subscription.path)
            .header(HOST, format!("sandbox.localdomain:{}", subscription.port))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(batch))?;
        let answer = sender.send_request(request);
        tokio::pin!(answer, connection);
        let answer = tokio::select! {
            answer = &mut answer => answer?,
            ended = &mut connection => {
                ended?;
                answer.await?
            }
        };
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(PostError::Status(answer.status()))
        }
    };
    tokio::time::timeout(ANSWER, exchange)
        .await
        .unwrap_or(Err(PostError::Silence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_are_read_and_checked() {
        let http = json!({"protocol": "HTTP", "URI": "http://sandbox.localdomain:8080/lambda?x=1"});
        let subscription = |body: Value| Subscription::parse(body.to_string().as_bytes());
        assert_eq!(
            subscription(json!({
                "schemaVersion": "2022-07-01",
                "types": ["platform", "function"],
                "buffering": {"maxItems": 1000, "timeoutMs": 25},
                "destination": http,
            })),
            Ok(Subscription {
                kinds: [Kind::Platform, Kind::Function].into(),
                port: 8080,
                path: "/lambda?x=1".to_owned(),
                uri: "http://sandbox.localdomain:8080/lambda?x=1".to_owned(),
                items: 1000,
                bytes: 262_144,
                timeout: Duration::from_millis(25),
            })
        );
        let elsewhere = json!({"protocol": "HTTP", "URI": "http://example.com"});
        let tcp = json!({"protocol": "TCP", "port": 8080});
        for (body, refused) in [
            (json!({"types": ["platform"], "destination": http}), false),
            (json!({"types": [], "destination": http}), true),
            (json!({"types": ["other"], "destination": http}), true),
            (json!({"destination": http}), true),
            (json!({"types": ["platform"]}), true),
            (
                json!({"types": ["platform"], "destination": elsewhere}),
                true,
            ),
            (json!({"types": ["platform"], "destination": tcp}), true),
            (
                json!({"types": ["platform"], "destination": http, "buffering": {"maxItems": 1}}),
                true,
            ),
            (
                json!({"types": ["platform"], "destination": http, "buffering": {"timeoutMs": "x"}}),
                true,
            ),
            (json!("x"), true),
        ] {
            let text = body.to_string();
            assert_eq!(subscription(body).is_err(), refused, "{text}");
        }
        assert!(Subscription::parse(b"{").is_err());
    }
}
