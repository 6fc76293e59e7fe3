//! `tierce invoke`: an event to a function that runs here, or that is started for it.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tierce_runner::invoke::PoolSettings;
use tierce_runner::invoke::client::{
    self, Answer, Endpoint, Event, InvocationType, Piece, StreamedAnswer,
};
use tierce_store::atomic::write_file;

use crate::background::in_background;
use crate::diagnostic::{FunctionFailed, Hinted as _, UsageError};
use crate::environment::Environment;
use crate::interrupt::Interrupt;
use crate::output::{LogStyle, Output};
use crate::run::arguments::{EventArgument, InvokeArguments, PORT, RunSource, payloads};
use crate::run::prepare::{Preparation, Subject};
use crate::run::session::{Session, SessionSettings, endpoint, listen, settle};

/// Runs `tierce invoke`.
pub(crate) async fn invoke(
    arguments: InvokeArguments,
    environment: &Environment,
    output: Output,
    interrupt: &Interrupt,
) -> Result<()> {
    if let (Some(sample), true) = (arguments.sample, arguments.show) {
        return output.result_bytes(sample.event().as_bytes());
    }
    let event = arguments.event().await?;
    if let Some(source) = &arguments.image {
        return invoke_once(source, event, &arguments, environment, output, interrupt).await;
    }
    let endpoint = match (&arguments.url, arguments.port) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, port) => format!("http://127.0.0.1:{}", port.unwrap_or(PORT)).parse()?,
    };
    post(&endpoint, event, &arguments, output).await
}

impl InvokeArguments {
    /// The event, read from where it is.
    async fn event(&self) -> Result<Event> {
        let payload = match (&self.event, self.sample) {
            (_, Some(sample)) => Bytes::from_static(sample.event().as_bytes()),
            (None, None) => Bytes::from_static(b"{}"),
            (Some(EventArgument::Inline(text)), _) => Bytes::from(text.clone()),
            (Some(EventArgument::File(path)), _) => {
                let shown = path.display();
                Bytes::from(
                    std::fs::read(path)
                        .with_context(|| format!("could not read the event `{shown}`"))?,
                )
            }
            (Some(EventArgument::Stdin), _) => {
                in_background(|_| {
                    let mut bytes = Vec::new();
                    let read = std::io::stdin().lock().read_to_end(&mut bytes);
                    read.context("could not read the event from stdin")?;
                    Ok(Bytes::from(bytes))
                })
                .await?
            }
        };
        let content_type = match serde_json::from_slice::<serde::de::IgnoredAny>(&payload) {
            Ok(_) => "application/json",
            Err(_) if self.any_payload => "application/octet-stream",
            Err(error) => {
                return Err(UsageError(format!("the event is not JSON: {error}")))
                    .hint("Lambda takes nothing else; a text is JSON in quotes: `'\"text\"'`");
            }
        };
        if let Some(context) = &self.client_context
            && serde_json::from_str::<serde_json::Map<String, Value>>(context).is_err()
        {
            return Err(UsageError("--client-context is not a JSON object".to_owned()).into());
        }
        Ok(Event {
            function: match &self.qualifier {
                Some(qualifier) => format!("{}:{qualifier}", self.function_name),
                None => self.function_name.to_string(),
            },
            payload,
            content_type,
            invocation_type: match (self.is_async, self.dry_run) {
                (true, _) => InvocationType::Event,
                (_, true) => InvocationType::DryRun,
                _ => InvocationType::RequestResponse,
            },
            // The log of a function that is started for it is shown as it comes.
            log_tail: self.log && self.image.is_none(),
            client_context: self.client_context.clone(),
            tenant_id: None,
        })
    }
}

/// Starts the image, invokes it and ends it, whatever comes of that.
async fn invoke_once(
    source: &RunSource,
    event: Event,
    arguments: &InvokeArguments,
    environment: &Environment,
    output: Output,
    interrupt: &Interrupt,
) -> Result<()> {
    let subject = Subject::of(source, output)?;
    let prepared = async {
        let (boxes, surroundings) = settle(
            &arguments.function_name,
            payloads(arguments.any_payload),
            &arguments.function,
            &arguments.registry,
            environment,
            output,
        )
        .await?;
        let preparation = Preparation {
            arguments: &arguments.function,
            registry: &arguments.registry,
            surroundings: &surroundings,
            environment,
            wants_one_directory: boxes.runtime().wants_one_directory,
        };
        Ok::<_, anyhow::Error>((preparation.prepare(&subject, output).await?, boxes))
    };
    let (prepared, boxes) = tokio::select! {
        prepared = prepared => prepared?,
        () = interrupt.comes() => return Ok(()),
    };
    let settings = SessionSettings {
        pool: PoolSettings {
            concurrency: 1,
            // It is never idle for long.
            idle: std::time::Duration::MAX,
            throttle: false,
        },
        hosts: Vec::new(),
        event_retries: Vec::new(),
    };
    let listener = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)?;
    let session = Session::open(listener, &prepared, settings, boxes)?;
    let posted = async {
        let endpoint = endpoint(session.address()).parse()?;
        session.warm_up().await?;
        post(&endpoint, event, arguments, output).await
    };
    let posted = tokio::select! {
        posted = posted => posted,
        () = interrupt.comes() => Ok(()),
    };
    session.end().await;
    posted
}

/// Posts the event, and shows what comes of it.
async fn post(
    endpoint: &Endpoint,
    event: Event,
    arguments: &InvokeArguments,
    output: Output,
) -> Result<()> {
    let shown = if arguments.stream {
        let answer = client::invoke_streaming(endpoint, event).await?;
        show_stream(answer, arguments, output).await?
    } else {
        let answer = client::invoke(endpoint, event).await?;
        show(&answer, arguments, output)?;
        answer
    };
    if output.json {
        output.result_json(&document(&shown))?;
    }
    match &shown.function_error {
        Some(_) => Err(FunctionFailed::of(&shown.payload).into()),
        None => Ok(()),
    }
}

/// Shows an answer that is there as a whole.
fn show(answer: &Answer, arguments: &InvokeArguments, output: Output) -> Result<()> {
    if let (Some(log), false) = (&answer.log_tail, output.json) {
        show_log(log, output);
    }
    match (answer.status, &answer.request_id) {
        (202, Some(id)) => output.note(&format!("the event is queued, as {id}")),
        (204, _) => output.note("the function could be invoked"),
        _ => {}
    }
    if let Some(path) = &arguments.output {
        write_file(path, &answer.payload)
            .with_context(|| format!("could not write {}", path.display()))?;
    } else if !output.json {
        output.result_bytes(&answer.payload)?;
        output.end_line(answer.payload.last().copied())?;
    }
    Ok(())
}

/// Shows an answer piece by piece; gives it as one that is there as a whole.
async fn show_stream(
    mut answer: StreamedAnswer,
    arguments: &InvokeArguments,
    output: Output,
) -> Result<Answer> {
    let mut whole = Answer {
        status: 200,
        function_error: None,
        executed_version: answer.executed_version.clone(),
        request_id: answer.request_id.clone(),
        log_tail: None,
        payload: Bytes::new(),
    };
    let mut received = Vec::new();
    let prints = arguments.output.is_none() && !output.json;
    while let Some(piece) = answer.next().await? {
        match piece {
            Piece::Chunk(bytes) => {
                if prints {
                    output.result_bytes(&bytes)?;
                }
                received.extend_from_slice(&bytes);
            }
            Piece::Complete { error, log_tail } => {
                whole.log_tail = log_tail;
                whole.function_error = error.as_ref().map(|_| "Unhandled".to_owned());
                if let Some((kind, details)) = error {
                    // What came before stays the answer; the error is told apart from it.
                    whole.payload = stream_error(&kind, &details);
                }
            }
        }
    }
    if prints {
        output.end_line(received.last().copied())?;
    }
    if let (Some(log), false) = (&whole.log_tail, output.json) {
        show_log(log, output);
    }
    if let Some(path) = &arguments.output {
        write_file(path, &received)
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    if whole.function_error.is_none() {
        whole.payload = Bytes::from(received);
    }
    Ok(whole)
}

/// An error at the end of a stream, as one that an answer consists of.
fn stream_error(kind: &str, details: &str) -> Bytes {
    let mut error =
        serde_json::from_str::<serde_json::Map<String, Value>>(details).unwrap_or_else(|_| {
            [("errorMessage".to_owned(), json!(details))]
                .into_iter()
                .collect()
        });
    error.entry("errorType").or_insert_with(|| json!(kind));
    Bytes::from(Value::Object(error).to_string())
}

fn show_log(log: &Bytes, output: Output) {
    for line in log.split(|&byte| byte == b'\n').filter(|it| !it.is_empty()) {
        output.log_line("", line, LogStyle::Dim);
    }
}

/// An answer as one document. What is no JSON is a text in it.
fn document(answer: &Answer) -> Value {
    let payload = match serde_json::from_slice::<Value>(&answer.payload) {
        Ok(value) => value,
        Err(_) if answer.payload.is_empty() => Value::Null,
        Err(_) => json!(String::from_utf8_lossy(&answer.payload)),
    };
    let log = answer.log_tail.as_ref();
    json!({
        "status": answer.status,
        "functionError": answer.function_error,
        "executedVersion": answer.executed_version,
        "requestId": answer.request_id,
        "payload": payload,
        "log": log.map(|log| String::from_utf8_lossy(log)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_document() {
        let answer = |payload: &'static [u8]| Answer {
            status: 200,
            function_error: Some("Unhandled".to_owned()),
            executed_version: Some("$LATEST".to_owned()),
            request_id: None,
            log_tail: Some(Bytes::from_static(b"START\n\xff")),
            payload: Bytes::from_static(payload),
        };
        for (payload, expected) in [
            (&b"{\"a\":[1]}"[..], json!({"a": [1]})),
            (b"\"text\"", json!("text")),
            (b"no \xff JSON", json!("no \u{fffd} JSON")),
            (b"", Value::Null),
        ] {
            let document = document(&answer(payload));
            assert_eq!(document["payload"], expected);
            assert_eq!(document["functionError"], "Unhandled");
            assert_eq!(document["log"], "START\n\u{fffd}");
        }
    }

    #[test]
    fn an_error_at_the_end_of_a_stream_is_like_any() {
        for (details, kind, message) in [
            ("{\"errorType\":\"A\",\"errorMessage\":\"b\"}", "A", "b"),
            ("{\"errorMessage\":\"b\"}", "Runtime.X", "b"),
            ("broke", "Runtime.X", "broke"),
        ] {
            let made: Value = serde_json::from_slice(&stream_error("Runtime.X", details)).unwrap();
            assert_eq!(made, json!({"errorType": kind, "errorMessage": message}));
        }
    }
}
