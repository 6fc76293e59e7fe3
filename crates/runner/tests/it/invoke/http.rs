//! What clients see.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_eventstream::frame::read_message_from;
use bytes::Bytes;
use tierce_runner::function::{Function, Payloads};
use tierce_runner::invoke::client::{
    Endpoint, Event, InvocationType, Piece, PostError, invoke, invoke_streaming,
};
use tierce_runner::invoke::{Door, DoorSettings, Pool, PoolSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stage::{Fake, Stage, Start, soon};

fn function(name: &str) -> Function {
    Function {
        name: name.to_owned(),
        version: "$LATEST".to_owned(),
        account: "012345678912".to_owned(),
        region: "us-east-1".to_owned(),
        memory: 128,
        timeout: Duration::from_secs(3),
        init_limit: Duration::from_secs(10),
        payloads: Payloads::AsOnLambda,
        extensions: Vec::new(),
        command: vec!["/bootstrap".to_owned()],
        handler: None,
        directory: "/".to_owned(),
        image_environment: std::collections::BTreeMap::new(),
        environment: std::collections::BTreeMap::new(),
        credentials: None,
    }
}

struct Served {
    stage: Stage,
    door: Door,
    endpoint: Endpoint,
}

fn settings(name: &str) -> DoorSettings {
    DoorSettings {
        function: Arc::new(function(name)),
        hosts: vec!["lambda.test".to_owned()],
        event_retries: Vec::new(),
    }
}

fn settings_for_any_payload(name: &str) -> DoorSettings {
    DoorSettings {
        function: Arc::new(Function {
            payloads: Payloads::Any,
            ..function(name)
        }),
        ..settings(name)
    }
}

fn serve(settings: DoorSettings, concurrency: u32, throttle: bool) -> Served {
    let stage = Stage::new();
    let pool: Pool<Fake> = Pool::new(
        PoolSettings {
            concurrency,
            idle: Duration::from_hours(1),
            throttle,
        },
        stage.make("a", Start::AtOnce),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let door = Door::open(listener, settings, pool).unwrap();
    let endpoint = format!("http://{}", door.address()).parse().unwrap();
    Served {
        stage,
        door,
        endpoint,
    }
}

fn event(payload: &str) -> Event {
    Event {
        function: "function".to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        content_type: "application/json",
        invocation_type: InvocationType::RequestResponse,
        log_tail: false,
        client_context: None,
        tenant_id: None,
    }
}

const INVOKE: &str = "/2015-03-31/functions/function/invocations";

/// Answers of the service: status, headers that matter, body.
async fn post(
    served: &Served,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> reqwest::Response {
    let mut request = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}{path}", served.endpoint))
        .body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    soon(request.send()).await.unwrap()
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    Some(response.headers().get(name)?.to_str().unwrap())
}

#[tokio::test]
async fn an_event_is_answered_as_the_service_answers() {
    let served = serve(settings("function"), 1, false);
    let response = post(
        &served,
        INVOKE,
        &[("X-Amzn-Trace-Id", "Root=1-2-3")],
        "\"x\"",
    )
    .await;
    assert_eq!(response.status(), 200);
    // Not what the runtime calls it.
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    assert_eq!(header(&response, "x-amz-executed-version"), Some("$LATEST"));
    assert_eq!(header(&response, "x-amzn-trace-id"), Some("Root=1-2-3"));
    assert_eq!(header(&response, "x-amz-function-error"), None);
    assert_eq!(header(&response, "x-amz-log-result"), None);
    assert!(header(&response, "date").is_some());
    let request_id = header(&response, "x-amzn-requestid").unwrap();
    assert_eq!(
        request_id.split('-').map(str::len).collect::<Vec<_>>(),
        [8, 4, 4, 4, 12]
    );
    assert_eq!(response.text().await.unwrap(), "a1:x");
    soon(served.door.close()).await;
    assert_eq!(served.stage.count("a1 ended"), 1);
}

#[tokio::test]
async fn what_is_asked_reaches_the_function() {
    let served = serve(settings("orders"), 1, false);
    let path = "/2015-03-31/functions/orders:live/invocations";
    let headers = [
        ("X-Amz-Client-Context", "eyJhIjoxfQ=="),
        ("X-Amz-Tenant-Id", "blue"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    let text = post(&served, path, &headers, "\"describe\"")
        .await
        .text()
        .await
        .unwrap();
    for part in [
        "payload: b\"\\\"describe\\\"\"",
        "content_type: \"application/json\"",
        "client_context: Some(\"{\\\"a\\\":1}\")",
        "arn: \"arn:aws:lambda:us-east-1:012345678912:function:orders:live\"",
        "tenant_id: Some(\"blue\")",
        "trace_id: \"Root=1-",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // Nothing stands for an empty object.
    assert_eq!(
        post(&served, path, &[], "").await.text().await.unwrap(),
        "a1:{}"
    );

    let served = serve(settings_for_any_payload("orders"), 1, false);
    let text = post(&served, path, &headers, "describe")
        .await
        .text()
        .await
        .unwrap();
    assert!(text.contains("content_type: \"application/x-www-form-urlencoded\""));
}

#[tokio::test]
async fn a_failing_function_is_told_by_a_header() {
    let served = serve(settings("function"), 1, false);
    let response = post(&served, INVOKE, &[("X-Amz-Log-Type", "Tail")], "\"fail\"").await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "x-amz-function-error"), Some("Unhandled"));
    assert!(
        header(&response, "x-amz-log-result")
            .unwrap()
            .starts_with("RU5EIFJlcXVlc3RJZD")
    );
    assert_eq!(
        response.text().await.unwrap(),
        r#"{"errorType":"Oh","errorMessage":"no"}"#
    );
}

#[tokio::test]
async fn faults_are_what_sdks_make_exceptions_of() {
    let served = serve(settings("orders"), 1, false);
    let event = &[("X-Amz-Invocation-Type", "Event")];
    for (path, headers, length, status, name) in [
        (
            INVOKE,
            &[][..],
            6_291_457,
            413,
            "RequestEntityTooLargeException",
        ),
        (
            INVOKE,
            event,
            1_048_577,
            413,
            "RequestEntityTooLargeException",
        ),
        (
            INVOKE,
            &[("X-Amz-Log-Type", "?")],
            2,
            400,
            "ValidationException",
        ),
        (
            INVOKE,
            &[("Origin", "http://x")],
            2,
            403,
            "AccessDeniedException",
        ),
        ("/", &[], 2, 404, "ResourceNotFoundException"),
        (
            "/2015-03-31/functions/other/invocations",
            &[],
            9_000_000,
            404,
            "ResourceNotFoundException",
        ),
    ] {
        let response = post(&served, path, headers, vec![b'1'; length]).await;
        assert_eq!(response.status(), status);
        assert_eq!(header(&response, "x-amzn-errortype"), Some(name));
        assert_eq!(header(&response, "content-type"), Some("application/json"));
        assert!(header(&response, "x-amzn-requestid").is_some());
        let body: serde_json::Value = response.json().await.unwrap();
        assert!(
            body.get("message").or(body.get("Message")).is_some(),
            "{body}"
        );
    }
    for (event, message) in [
        ("\"cannot\"", "the box is broken"),
        ("\"die\"", "environment 1 ended during the invocation"),
    ] {
        let response = post(&served, INVOKE, &[], event).await;
        assert_eq!(response.status(), 500);
        assert_eq!(
            header(&response, "x-amzn-errortype"),
            Some("ServiceException")
        );
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["Message"], message);
    }
    // Nothing of all that began, but for the last two.
    assert_eq!(
        served
            .stage
            .record()
            .iter()
            .filter(|line| line.contains("began"))
            .count(),
        2
    );
}

#[tokio::test]
async fn the_largest_event_is_taken_and_nothing_is_cut() {
    let served = serve(settings("function"), 1, false);
    let largest = format!("\"{}\"", "x".repeat(6_291_456 - 2));
    let response = post(&served, INVOKE, &[], largest.clone()).await;
    assert_eq!(response.status(), 200);
    let expected = format!("a1:{}", "x".repeat(6_291_456 - 2));
    assert!(response.text().await.unwrap() == expected);
    // Whether its length is announced or not.
    let chunked = || {
        let chunks = [Ok::<_, std::io::Error>(largest.clone()), Ok(" ".to_owned())];
        reqwest::Body::wrap_stream(futures_util::stream::iter(chunks))
    };
    assert_eq!(post(&served, INVOKE, &[], chunked()).await.status(), 413);

    let served = serve(settings_for_any_payload("function"), 1, false);
    let response = post(&served, INVOKE, &[], chunked()).await;
    assert!(response.text().await.unwrap().len() > 6_291_456);
}

#[tokio::test]
async fn an_answer_that_was_streamed_comes_whole_up_to_the_limit() {
    let served = serve(settings("function"), 1, false);
    served.stage.gate.add_permits(2);
    let response = post(&served, INVOKE, &[], "\"stream\"").await;
    assert_eq!(response.text().await.unwrap(), "first second");
    let response = post(&served, INVOKE, &[], "\"streamhuge\"").await;
    assert_eq!(header(&response, "x-amz-function-error"), Some("Unhandled"));
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["errorType"], "Function.ResponseSizeTooLarge");

    let served = serve(settings_for_any_payload("function"), 1, false);
    served.stage.gate.add_permits(1);
    let response = post(&served, INVOKE, &[], "\"streamhuge\"").await;
    assert_eq!(header(&response, "x-amz-function-error"), None);
    assert!(response.text().await.unwrap().len() > 6_291_556);
}

#[tokio::test]
async fn events_run_behind_the_answer() {
    let served = serve(settings("function"), 1, false);
    let event = [("X-Amz-Invocation-Type", "Event")];
    let response = post(&served, INVOKE, &event, "\"hold-1\"").await;
    assert_eq!(response.status(), 202);
    assert_eq!(header(&response, "content-length"), Some("0"));
    served.stage.noted("a1 began \"hold-1\"").await;
    served.stage.gate.add_permits(1);
    served.stage.noted("a1 did \"hold-1\"").await;
    // Lambda would try again; here it does so only if told so.
    post(&served, INVOKE, &event, "\"fail\"").await;
    assert_eq!(post(&served, INVOKE, &[], "\"x\"").await.status(), 200);
    assert_eq!(served.stage.count("a1 began \"fail\""), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_run_in_the_order_in_which_they_were_taken() {
    let served = serve(settings("function"), 1, false);
    let events: Vec<String> = (0..100).map(|n| format!("\"{n}\"")).collect();
    for event in &events {
        let kind = [("X-Amz-Invocation-Type", "Event")];
        assert_eq!(
            post(&served, INVOKE, &kind, event.clone()).await.status(),
            202
        );
    }
    served.stage.noted("a1 did \"99\"").await;
    let record = served.stage.record();
    let begun: Vec<&str> = record
        .iter()
        .filter_map(|line| line.strip_prefix("a1 began "))
        .collect();
    assert_eq!(begun, events);
}

#[tokio::test]
async fn events_are_tried_again_if_told_so() {
    let mut settings = settings("function");
    settings.event_retries = vec![Duration::ZERO; 2];
    let served = serve(settings, 1, false);
    post(
        &served,
        INVOKE,
        &[("X-Amz-Invocation-Type", "Event")],
        "\"fail\"",
    )
    .await;
    served.stage.noted_times("a1 did \"fail\"", 3).await;
    assert_eq!(post(&served, INVOKE, &[], "\"x\"").await.status(), 200);
    assert_eq!(served.stage.count("a1 began \"fail\""), 3);
}

#[tokio::test]
async fn a_dry_run_runs_nothing() {
    let served = serve(settings("function"), 1, false);
    let dry = [("X-Amz-Invocation-Type", "DryRun")];
    assert_eq!(post(&served, INVOKE, &dry, "\"x\"").await.status(), 204);
    assert_eq!(post(&served, INVOKE, &dry, "x").await.status(), 400);
    assert!(served.stage.record().is_empty());
}

#[tokio::test]
async fn too_many_at_once_are_refused_if_told_so() {
    let served = serve(settings("function"), 1, true);
    let (endpoint, stage) = (served.endpoint.clone(), served.stage.clone());
    let first = tokio::spawn(async move { invoke(&endpoint, event("\"hold\"")).await });
    stage.noted("a1 began \"hold\"").await;
    let response = post(&served, INVOKE, &[], "\"x\"").await;
    assert_eq!(response.status(), 429);
    assert_eq!(
        header(&response, "x-amzn-errortype"),
        Some("TooManyRequestsException")
    );
    stage.gate.add_permits(1);
    assert_eq!(soon(first).await.unwrap().unwrap().payload, "a1:hold");
}

#[tokio::test]
async fn a_client_that_goes_away_stops_nothing() {
    let served = serve(settings("function"), 1, false);
    let (endpoint, stage) = (served.endpoint.clone(), served.stage.clone());
    let impatient = tokio::spawn(async move { invoke(&endpoint, event("\"hold\"")).await });
    stage.noted("a1 began \"hold\"").await;
    impatient.abort();
    assert!(impatient.await.unwrap_err().is_cancelled());
    stage.gate.add_permits(1);
    // The environment is not lost: it is the only one that there may be.
    let answer = soon(invoke(&served.endpoint, event("\"x\"")))
        .await
        .unwrap();
    assert_eq!(answer.payload, "a1:x");
    assert_eq!(stage.count("a1 did \"hold\""), 1);
}

#[tokio::test]
async fn a_slow_client_holds_no_environment() {
    let served = serve(settings("function"), 1, false);
    let mut slow = TcpStream::connect(served.door.address()).await.unwrap();
    let head = format!("POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n\"");
    slow.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(post(&served, INVOKE, &[], "\"x\"").await.status(), 200);
    slow.write_all(b"y\"").await.unwrap();
    // Ending its own side is no goodbye.
    slow.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(slow.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("a1:y"), "{answer}");
}

#[tokio::test]
async fn who_asks_whether_to_go_on_is_answered() {
    let served = serve(settings("function"), 1, false);
    for (length, expected) in [
        (3, "HTTP/1.1 100 Continue\r\n"),
        (7_000_000, "HTTP/1.1 413 "),
    ] {
        let mut client = TcpStream::connect(served.door.address()).await.unwrap();
        let head = format!(
            "POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; expected.len()];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), expected);
    }
}

#[tokio::test]
async fn how_to_use_it_can_be_seen_in_a_browser() {
    let served = serve(settings("orders"), 1, false);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = soon(client.get(served.endpoint.to_string()).send()).await;
    let text = response.unwrap().text().await.unwrap();
    let address = served.door.address();
    let line = format!("curl -d '{{}}' http://{address}/2015-03-31/functions/orders/invocations\n");
    assert!(text.contains(&line), "{text}");
}

#[tokio::test]
async fn frames_come_as_the_function_writes() {
    let served = serve(settings("function"), 1, false);
    let mut event = event("\"stream\"");
    event.log_tail = true;
    let mut answer = soon(invoke_streaming(&served.endpoint, event))
        .await
        .unwrap();
    assert_eq!(answer.executed_version.as_deref(), Some("$LATEST"));
    let first = soon(answer.next()).await.unwrap();
    assert_eq!(first, Some(Piece::Chunk(Bytes::from_static(b"first "))));
    // The function waits for this, so the first piece came before the last was written.
    served.stage.gate.add_permits(1);
    let second = soon(answer.next()).await.unwrap();
    assert_eq!(second, Some(Piece::Chunk(Bytes::from_static(b"second"))));
    let Some(Piece::Complete {
        error: None,
        log_tail: Some(log_tail),
    }) = soon(answer.next()).await.unwrap()
    else {
        panic!("the stream is complete");
    };
    assert!(log_tail.starts_with(b"END RequestId: "));
    assert_eq!(soon(answer.next()).await.unwrap(), None);
}

#[tokio::test]
async fn every_end_of_a_stream_is_told() {
    let served = serve(settings("function"), 1, false);
    served.stage.gate.add_permits(10);
    for (word, chunks, error) in [
        ("x", "a1:x", None),
        ("stream", "first second", None),
        (
            "fail",
            "",
            Some(("Unhandled", r#"{"errorType":"Oh","errorMessage":"no"}"#)),
        ),
        (
            "streamfail",
            "first ",
            Some(("Unhandled", r#"{"errorType":"Late"}"#)),
        ),
        (
            "streamdie",
            "first ",
            Some((
                "ServiceException",
                r#"{"Type":"Service","Message":"environment 1 ended during the invocation"}"#,
            )),
        ),
    ] {
        let event = event(&format!("\"{word}\""));
        let mut answer = soon(invoke_streaming(&served.endpoint, event))
            .await
            .unwrap();
        let mut written = Vec::new();
        let complete = loop {
            match soon(answer.next()).await.unwrap().unwrap() {
                Piece::Chunk(chunk) => written.extend_from_slice(&chunk),
                Piece::Complete { error, .. } => break error,
            }
        };
        assert_eq!(String::from_utf8_lossy(&written), chunks, "{word}");
        let error = error.map(|(code, details)| (code.to_owned(), details.to_owned()));
        assert_eq!(complete, error, "{word}");
    }
    // What fails before anything was written is an answer like any other.
    let refused = soon(invoke_streaming(&served.endpoint, event("\"cannot\""))).await;
    assert!(
        matches!(refused, Err(PostError::Refused { status: 500, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn large_pieces_are_cut_into_frames() {
    let served = serve(settings("function"), 1, false);
    served.stage.gate.add_permits(1);
    let path = "/2021-11-15/functions/function/response-streaming-invocations";
    let response = post(&served, path, &[], "\"streamhuge\"").await;
    assert_eq!(
        header(&response, "content-type"),
        Some("application/vnd.amazon.eventstream")
    );
    let mut frames = soon(response.bytes()).await.unwrap();
    let mut lengths = Vec::new();
    while !frames.is_empty() {
        lengths.push(read_message_from(&mut frames).unwrap().payload().len());
    }
    assert_eq!(lengths.first(), Some(&6));
    assert_eq!(lengths[1..lengths.len() - 1], [64 * 1024; 7 * 16]);
}

#[tokio::test]
async fn a_client_says_what_went_wrong() {
    let served = serve(settings("orders"), 1, false);
    let mut asked = event("{}");
    asked.function = "arn:aws:lambda:eu-west-1:012345678912:function:other".to_owned();
    let refused = soon(invoke(&served.endpoint, asked)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "{} answered 404 ResourceNotFoundException: Function not found: \
             arn:aws:lambda:eu-west-1:012345678912:function:other (here runs `orders`, which also \
             answers to `function`)",
            served.endpoint
        )
    );
    let endpoint = served.endpoint.clone();
    soon(served.door.close()).await;
    let nobody = soon(invoke(&endpoint, event("{}"))).await.unwrap_err();
    assert!(
        matches!(nobody, PostError::NobodyListens { .. }),
        "{nobody:?}"
    );
    let mut asked = event("{}");
    asked.tenant_id = Some("\n".to_owned());
    let unsendable = soon(invoke(&endpoint, asked)).await.unwrap_err();
    assert_eq!(
        unsendable.to_string(),
        "`\n` cannot be sent as the tenant id"
    );
}

#[tokio::test]
async fn a_client_sends_what_it_is_given() {
    let served = serve(settings("function"), 1, false);
    let mut asked = event("\"describe\"");
    asked.function = "orders:live".to_owned();
    asked.client_context = Some("{\"a\":1}".to_owned());
    asked.tenant_id = Some("blue".to_owned());
    asked.log_tail = true;
    let answer = soon(invoke(&served.endpoint, asked)).await.unwrap();
    let text = String::from_utf8_lossy(&answer.payload);
    for part in [
        "Some(\"{\\\"a\\\":1}\")",
        "function:function:live",
        "Some(\"blue\")",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let request_id = answer.request_id.unwrap();
    assert_eq!(
        answer.log_tail.unwrap(),
        format!("END RequestId: {request_id}\n")
    );
    for (kind, status) in [(InvocationType::Event, 202), (InvocationType::DryRun, 204)] {
        let mut asked = event("{}");
        asked.invocation_type = kind;
        let answer = soon(invoke(&served.endpoint, asked)).await.unwrap();
        assert_eq!((answer.status, answer.payload), (status, Bytes::new()));
    }
}

#[tokio::test]
async fn closing_answers_those_who_wait() {
    let served = serve(settings("function"), 1, false);
    let mut waiting = Vec::new();
    for word in ["\"hold-1\"", "\"hold-2\""] {
        let endpoint = served.endpoint.clone();
        waiting.push(tokio::spawn(
            async move { invoke(&endpoint, event(word)).await },
        ));
        served.stage.noted("a1 began \"hold-1\"").await;
    }
    // An idle connection is not waited for.
    let mut idle = TcpStream::connect(served.door.address()).await.unwrap();
    soon(served.door.close()).await;
    for waiting in waiting {
        // The second may have come too late to be accepted.
        soon(waiting).await.unwrap().unwrap_err();
    }
    assert_eq!(soon(idle.read(&mut [0])).await.unwrap_or(0), 0);
    assert_eq!(served.stage.count("a1 ended"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_all_answered() {
    let served = serve(settings("function"), 8, false);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{INVOKE}", served.endpoint);
    let ask = |n: usize| {
        let request = client.post(&url).body(format!("\"{n}\""));
        async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            let text = response.text().await.unwrap();
            assert!(text.ends_with(&format!(":{n}")), "{text}");
        }
    };
    for n in 0..5_000 {
        ask(n).await;
    }
    assert_eq!(
        served
            .stage
            .record()
            .iter()
            .filter(|line| line.ends_with("made"))
            .count(),
        1
    );
    let at_once = (5_000..5_050).map(ask);
    soon(futures_util::future::join_all(at_once)).await;
    let began = served
        .stage
        .record()
        .iter()
        .filter(|line| line.contains("began"))
        .count();
    assert_eq!(began, 5_050);
    soon(served.door.close()).await;
}
