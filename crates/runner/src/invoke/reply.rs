//! What clients get: responses, whole or streamed.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;

use super::event_stream::{self, InvokeComplete, log_result};
use super::fault::InvokeFault;
use crate::environment::{Done, Outcome, Progress};

/// The body of any answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What every answer to an invocation says in its head.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) request_id: String,
    pub(crate) trace_id: String,
    pub(crate) version: String,
    /// Whether the end of the log is wanted.
    pub(crate) log_tail: bool,
    /// The most bytes of an answer that comes as a whole.
    pub(crate) answer_limit: usize,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const TRACE_ID: HeaderName = HeaderName::from_static("x-amzn-trace-id");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");

/// The only value of `X-Amz-Function-Error` nowadays; `Handled` was Node.js's of long ago.
const UNHANDLED: &str = "Unhandled";

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// Sets a header, unless the text has in it what headers cannot carry.
fn set(response: &mut Response<Body>, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert(name, value);
    }
}

/// A refusal.
pub(crate) fn fault(fault: &InvokeFault, request_id: &str) -> Response<Body> {
    let status = StatusCode::from_u16(fault.status()).expect("faults have statuses of HTTP");
    let mut response = response(status, whole(fault.body()));
    set(&mut response, CONTENT_TYPE, "application/json");
    set(&mut response, REQUEST_ID, request_id);
    set(&mut response, ERROR_TYPE, fault.name());
    if matches!(fault, InvokeFault::WrongMethod(_)) {
        set(&mut response, ALLOW, "POST");
    }
    response
}

/// How to use this server.
pub(crate) fn usage(function: &str, host: &str) -> Response<Body> {
    let mut response = response(
        StatusCode::OK,
        whole(format!(
            "The function `{function}` runs here. To invoke it:\n\n\
             curl -d '{{}}' http://{host}/2015-03-31/functions/{function}/invocations\n\n\
             aws lambda invoke --endpoint-url http://{host} --function-name {function} out.json\n"
        )),
    );
    set(&mut response, CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

/// To an event that was taken, or would be.
pub(crate) fn accepted(head: &Head, status: StatusCode) -> Response<Body> {
    let mut response = response(status, whole(Bytes::new()));
    set(&mut response, REQUEST_ID, &head.request_id);
    set(&mut response, TRACE_ID, &head.trace_id);
    response
}

/// Waits for the end of an invocation, and answers with all of it. A streamed answer is put together.
pub(crate) async fn buffered(
    head: &Head,
    mut progress: mpsc::Receiver<Progress>,
) -> Response<Body> {
    let mut streamed = BytesMut::new();
    let mut too_large = false;
    let done = loop {
        match progress.recv().await {
            Some(Progress::Streaming(_)) => {}
            Some(Progress::Piece(piece)) => {
                too_large |= streamed.len() + piece.len() > head.answer_limit;
                if !too_large {
                    streamed.extend_from_slice(&piece);
                }
            }
            Some(Progress::Done(done)) => break done,
            None => return fault(&ended(), &head.request_id),
        }
    };
    let (payload, is_error) = match done.outcome {
        Outcome::Success { .. } if too_large => (response_too_large(head.answer_limit), true),
        // Empty after a streamed answer.
        Outcome::Success { payload, .. } if streamed.is_empty() => (payload, false),
        Outcome::Success { .. } => (streamed.freeze(), false),
        Outcome::FunctionError { payload, .. } => (payload, true),
        Outcome::Failed(reason) => {
            return fault(&InvokeFault::CannotRun(reason), &head.request_id);
        }
    };
    let mut response = response(StatusCode::OK, whole(payload));
    set_invoked(&mut response, head);
    // Whatever the runtime calls it: the service says this of every answer.
    set(&mut response, CONTENT_TYPE, "application/json");
    if is_error {
        set(&mut response, FUNCTION_ERROR, UNHANDLED);
    }
    if head.log_tail {
        set(&mut response, LOG_RESULT, &log_result(&done.log_tail));
    }
    response
}

/// Answers with an event stream as soon as the function begins to answer, and ends it when it ends.
pub(crate) async fn streamed(head: Head, mut progress: mpsc::Receiver<Progress>) -> Response<Body> {
    let first = match progress.recv().await {
        Some(Progress::Done(Done {
            outcome: Outcome::Failed(reason),
            ..
        })) => return fault(&InvokeFault::CannotRun(reason), &head.request_id),
        Some(first) => first,
        None => return fault(&ended(), &head.request_id),
    };
    let log_tail = head.log_tail;
    let frames = stream::unfold(Some((Some(first), progress)), move |state| async move {
        let (mut next, mut progress) = state?;
        let mut frames = BytesMut::new();
        loop {
            if next.is_none() {
                next = progress.recv().await;
            }
            let goes_on = write_progress(next.take(), log_tail, &mut frames);
            // A beginning has no frames, and nothing is no piece of a body.
            if !frames.is_empty() {
                let rest = goes_on.then_some((None, progress));
                return Some((Ok(Frame::data(frames.freeze())), rest));
            }
        }
    });
    let mut response = response(StatusCode::OK, StreamBody::new(frames).boxed_unsync());
    set_invoked(&mut response, &head);
    set(&mut response, CONTENT_TYPE, event_stream::CONTENT_TYPE);
    response
}

/// Writes the frames of one step of an invocation, and says whether others follow.
fn write_progress(progress: Option<Progress>, log_tail: bool, frames: &mut BytesMut) -> bool {
    let done = match progress {
        Some(Progress::Streaming(_)) => return true,
        Some(Progress::Piece(piece)) => {
            event_stream::write_piece(&piece, frames);
            return true;
        }
        Some(Progress::Done(done)) => done,
        None => Done {
            outcome: Outcome::Failed(ended().to_string()),
            log_tail: Bytes::new(),
        },
    };
    let mut complete = InvokeComplete {
        log_result: log_tail.then(|| log_result(&done.log_tail)),
        ..InvokeComplete::default()
    };
    match done.outcome {
        Outcome::Success { payload, .. } => event_stream::write_piece(&payload, frames),
        Outcome::FunctionError { payload, .. } => {
            complete.error_code = Some(UNHANDLED.to_owned());
            complete.error_details = Some(String::from_utf8_lossy(&payload).into_owned());
        }
        Outcome::Failed(reason) => {
            let fault = InvokeFault::CannotRun(reason);
            complete.error_code = Some(fault.name().to_owned());
            complete.error_details = Some(fault.body());
        }
    }
    event_stream::write_complete(&complete, frames);
    false
}

fn set_invoked(response: &mut Response<Body>, head: &Head) {
    set(response, REQUEST_ID, &head.request_id);
    set(response, TRACE_ID, &head.trace_id);
    set(response, EXECUTED_VERSION, &head.version);
}

/// A pool always tells the end; this is for one that was dropped.
fn ended() -> InvokeFault {
    InvokeFault::CannotRun("the environment is gone".to_owned())
}

/// What the service answers in place of an answer that is too large.
fn response_too_large(limit: usize) -> Bytes {
    format!(
        r#"{{"errorMessage":"Response payload size exceeded maximum allowed payload size ({limit} bytes).","errorType":"Function.ResponseSizeTooLarge"}}"#
    )
    .into()
}
