//! The HTTP server in front of a pool.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{EXPECT, HOST};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use super::events::Events;
use super::fault::InvokeFault;
use super::payload;
use super::pool::{Invocable, Pool, Throttled};
use super::reply::{self, Body, Head};
use super::request::{self, Asked, InvocationType, InvokeRequest, Known, Operation};
use crate::environment::Invocation;
use crate::function::Function;

/// What a door needs to know.
#[derive(Debug, Clone)]
pub struct DoorSettings {
    /// The function behind it. One that is named `function` answers to every name, others to their
    /// own and to `function`.
    pub function: Arc<Function>,
    /// Names by which clients may call this machine, beside `localhost` and addresses. Others are
    /// refused: a web page can lead a name of its own to this address.
    pub hosts: Vec<String>,
    /// How long to pause before each new attempt at an `Event` that the function failed on. Lambda
    /// makes two more, after one minute and two; none is made here if there is none in the list.
    pub event_retries: Vec<Duration>,
}

/// Why a door could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDoorError {
    /// The system does not say where it listens.
    #[error("could not find out where to listen")]
    NoAddress(#[source] io::Error),
    /// The listener cannot be used.
    #[error("could not listen at {address}")]
    Listener {
        /// Where it listens.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A server that is open until it is closed; dropping it closes it without waiting, and leaves the
/// pool alone.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

/// So many connections at once; the rest waits to be accepted. Lambda's own default is to run so many
/// invocations at once.
const CONNECTIONS: usize = 1_000;
/// How long a client may take for the head of a request, and keep an unused connection.
const HEAD_PATIENCE: Duration = Duration::from_mins(1);
/// How long a client may pause while it sends an event.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// The head of a request may have so many bytes; the longest header is a client context.
const HEAD_LIMIT: usize = 128 * 1024;
/// So much of a refused request is read and thrown away: a client that is still sending when the
/// connection closes does not see the answer.
const DRAINED: usize = 64 * 1024 * 1024;
/// How long answers that are being sent may take after the door was closed.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);
/// The pause after connections could not be accepted, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Door {
    /// Begins to serve at `listener`. Must be called in a tokio runtime.
    pub fn open<E: Invocable>(
        listener: std::net::TcpListener,
        settings: DoorSettings,
        pool: Pool<E>,
    ) -> Result<Self, OpenDoorError> {
        let address = listener.local_addr().map_err(OpenDoorError::NoAddress)?;
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(listener))
            .map_err(|source| OpenDoorError::Listener { address, source })?;
        let (stop, stopped) = watch::channel(false);
        let known = Known {
            name: settings.function.name.clone(),
            hosts: settings.hosts.clone(),
        };
        let hall = Arc::new(Hall {
            known,
            address,
            events: Events::new(pool.clone(), &settings.event_retries),
            settings,
            pool,
        });
        let serving = tokio::spawn(serve(listener, hall, stopped));
        Ok(Self {
            address,
            stop,
            serving,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, shuts the pool down, and waits until nothing is left of it. Whoever waits
    /// for an answer gets one.
    pub async fn close(self) {
        let _ = self.stop.send(true);
        let _ = self.serving.await;
    }
}

/// What all connections share.
struct Hall<E: Invocable> {
    settings: DoorSettings,
    known: Known,
    address: SocketAddr,
    pool: Pool<E>,
    events: Events<E>,
}

async fn serve<E: Invocable>(
    listener: TcpListener,
    hall: Arc<Hall<E>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, Arc::clone(&hall), stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            told = stopped.changed() => {
                if told.is_err() {
                    // The door was dropped, not closed: what is under way may end.
                    connections.detach_all();
                    return;
                }
                break;
            }
        }
    }
    drop(listener);
    hall.pool.shut_down().await;
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSING_PATIENCE, all_ended)
        .await
        .is_err()
    {
        tracing::debug!("clients that did not take their answers are cut off");
    }
}

/// Serves one client.
async fn converse<E: Invocable>(
    stream: TcpStream,
    hall: Arc<Hall<E>>,
    mut stopped: watch::Receiver<bool>,
) {
    // Answers are small and awaited.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let service = service_fn(|request| {
        let hall = Arc::clone(&hall);
        async move { Ok::<_, Infallible>(answer(&hall, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_LIMIT)
        // Simple clients end their side when they have sent the request.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn answer<E: Invocable>(hall: &Hall<E>, request: Request<Incoming>) -> Response<Body> {
    let request_id = Uuid::new_v4().to_string();
    let (head, mut body) = request.into_parts();
    let answered = match request::read(&head, &hall.known) {
        Ok(Asked::Usage) => Ok(reply::usage(&hall.known.name, &host(&head, hall.address))),
        Ok(Asked::Invoke(asked)) => invoke(hall, asked, &request_id, &mut body).await,
        Err(fault) => Err(fault),
    };
    match answered {
        Ok(response) => response,
        Err(fault) => {
            // Who waits to be told to go on sends nothing, and who stopped has nothing to send.
            let may_be_sending = !head.headers.contains_key(EXPECT)
                && !matches!(fault, InvokeFault::SlowBody | InvokeFault::BrokenBody);
            if may_be_sending {
                drain(&mut body).await;
            }
            reply::fault(&fault, &request_id)
        }
    }
}

/// How the client calls this server.
fn host(head: &Parts, address: SocketAddr) -> String {
    head.headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .map_or_else(|| address.to_string(), str::to_owned)
}

async fn invoke<E: Invocable>(
    hall: &Hall<E>,
    asked: InvokeRequest,
    request_id: &str,
    body: &mut Incoming,
) -> Result<Response<Body>, InvokeFault> {
    let function = &hall.settings.function;
    let payloads = function.payloads;
    // All of it is here before an environment is asked for, so that slow clients hold none.
    let body = read_body(body, asked.payload_limit(payloads)).await?;
    let event = payload::event(body, asked.content_type, payloads)?;
    let trace_id = asked.trace_id.unwrap_or_else(made_up_trace_id);
    let head = Head {
        request_id: request_id.to_owned(),
        trace_id: trace_id.clone(),
        version: function.version.clone(),
        log_tail: asked.log_tail,
        answer_limit: payloads.answer(),
    };
    let invocation = Invocation {
        request_id: request_id.to_owned(),
        payload: event.bytes,
        content_type: event.content_type,
        // "For synchronous invocations only", says the API's description.
        client_context: asked
            .client_context
            .filter(|_| asked.invocation_type == InvocationType::RequestResponse),
        trace_id,
        arn: match &asked.qualifier {
            Some(qualifier) => format!("{}:{qualifier}", function.arn()),
            None => function.arn(),
        },
        tenant_id: asked.tenant_id,
    };
    match asked.invocation_type {
        InvocationType::DryRun => Ok(reply::accepted(&head, StatusCode::NO_CONTENT)),
        InvocationType::Event => {
            hall.events.take(invocation)?;
            Ok(reply::accepted(&head, StatusCode::ACCEPTED))
        }
        InvocationType::RequestResponse => {
            let progress = hall
                .pool
                .invoke(invocation)
                .map_err(|Throttled| InvokeFault::Throttled)?;
            Ok(match asked.operation {
                Operation::Invoke => reply::buffered(&head, progress).await,
                Operation::InvokeWithResponseStream => reply::streamed(head, progress).await,
            })
        }
    }
}

/// All of a body, which must have no more than `limit` bytes.
async fn read_body(body: &mut Incoming, limit: usize) -> Result<Bytes, InvokeFault> {
    let limit_in_length = u64::try_from(limit).unwrap_or(u64::MAX);
    if body.size_hint().lower() > limit_in_length {
        return Err(InvokeFault::TooLarge(limit));
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(BODY_PATIENCE, body.frame())
            .await
            .map_err(|_| InvokeFault::SlowBody)?;
        let Some(frame) = frame else {
            return Ok(whole.freeze());
        };
        let frame = frame.map_err(|_| InvokeFault::BrokenBody)?;
        if let Some(data) = frame.data_ref() {
            if whole.len() + data.len() > limit {
                return Err(InvokeFault::TooLarge(limit));
            }
            whole.extend_from_slice(data);
        }
    }
}

/// Reads what a client still sends, within bounds.
async fn drain(body: &mut Incoming) {
    let mut left = DRAINED;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(BODY_PATIENCE, body.frame()).await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// A trace header as the service makes one for a request that has none: not sampled.
fn made_up_trace_id() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let root = Uuid::new_v4().simple().to_string();
    let parent = Uuid::new_v4().simple().to_string();
    format!(
        "Root=1-{seconds:08x}-{};Parent={};Sampled=0",
        &root[..24],
        &parent[..16]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_that_is_made_up_has_the_form_of_real_ones() {
        let made_up = made_up_trace_id();
        let lengths: Vec<usize> = made_up.split(['=', '-', ';']).map(str::len).collect();
        assert_eq!(lengths, [4, 1, 8, 24, 6, 16, 7, 1], "{made_up}");
        assert_ne!(made_up, made_up_trace_id());
    }
}
