//! A function without a runtime client: speaks the Runtime API over plain sockets, so that one static
//! program is all that an image needs. The event says what to do:
//!
//! | `do` | what comes of it |
//! |---|---|
//! | `echo` | the event |
//! | `about` | number of the invocation, process, variables, handler, directory, context |
//! | `error` | an error of the handler, `Function.Refused` |
//! | `exit` | the process ends with code 3 |
//! | `hang` | no answer |
//! | `wait` | an answer after 300 ms |
//! | `stream` | three pieces, one after the other |
//! | `break` | two pieces, and an error in a trailer |
//! | `write` | what the system says to writing at `path` |
//! | `read` | the file at `path` |
//! | `say` | a line on stdout and one on stderr |
//!
//! With the variable `FAIL_INIT` it reports an error of its initialisation.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

/// What `about` says, so that a test can see which build it is: it writes another digit there.
static EDITION: &str = "edition-0";

fn main() {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").expect("run by Lambda");
    if std::env::var_os("FAIL_INIT").is_some() {
        let body = r#"{"errorType":"Runtime.NoLuck","errorMessage":"asked to fail"}"#;
        post(
            &api,
            "runtime/init/error",
            "Lambda-Runtime-Function-Error-Type: Runtime.NoLuck\r\n",
            body.as_bytes(),
        );
        std::process::exit(1);
    }
    let mut number = 0;
    loop {
        let (head, event) = exchange(&api, b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n");
        number += 1;
        let id = header(&head, "lambda-runtime-aws-request-id");
        let event = String::from_utf8(event).expect("events are JSON");
        let answer = match member(&event, "do").as_str() {
            "about" => about(number, &head),
            "error" => {
                let body = r#"{"errorType":"Function.Refused","errorMessage":"it says no","stackTrace":[]}"#;
                let kind = "Lambda-Runtime-Function-Error-Type: Function.Refused\r\n";
                post(
                    &api,
                    &format!("runtime/invocation/{id}/error"),
                    kind,
                    body.as_bytes(),
                );
                continue;
            }
            "exit" => std::process::exit(3),
            "hang" => loop {
                std::thread::park();
            },
            "wait" => {
                std::thread::sleep(std::time::Duration::from_millis(300));
                about(number, &head)
            }
            "stream" => {
                stream(&api, &id, &["one ", "two ", "three"], "");
                continue;
            }
            "break" => {
                // The body of an error is base64 in a trailer: {"errorType":"Function.Broke",…}.
                let trailers = "Lambda-Runtime-Function-Error-Type: Function.Broke\r\n\
                    Lambda-Runtime-Function-Error-Body: eyJlcnJvclR5cGUiOiJGdW5jdGlvbi5Ccm9rZSIsImVycm9yTWVzc2FnZSI6ImJyb2tlIn0=\r\n";
                stream(&api, &id, &["one ", "two "], trailers);
                continue;
            }
            "write" => quoted(&match std::fs::write(member(&event, "path"), "written") {
                Ok(()) => "written".to_owned(),
                Err(error) => error.kind().to_string(),
            }),
            "read" => quoted(&match std::fs::read_to_string(member(&event, "path")) {
                Ok(text) => text,
                Err(error) => error.kind().to_string(),
            }),
            "talk" => loop {
                println!("and so on");
            },
            "say" => {
                println!("said aloud");
                eprintln!("said aside");
                "null".to_owned()
            }
            _ => event,
        };
        post(
            &api,
            &format!("runtime/invocation/{id}/response"),
            "",
            answer.as_bytes(),
        );
    }
}

fn about(number: u32, head: &str) -> String {
    let variables: BTreeMap<String, String> = std::env::vars().collect();
    let variables: Vec<String> = variables
        .iter()
        .map(|(name, value)| format!("{}:{}", quoted(name), quoted(value)))
        .collect();
    let directory = std::env::current_dir().expect("there is one");
    let arguments: Vec<String> = std::env::args().map(|argument| quoted(&argument)).collect();
    format!(
        "{{\"edition\":{},\"number\":{number},\"arguments\":[{}],\"directory\":{},\"arn\":{},\
         \"context\":{},\"variables\":{{{}}}}}",
        quoted(std::hint::black_box(EDITION)),
        arguments.join(","),
        quoted(&directory.display().to_string()),
        quoted(&header(head, "lambda-runtime-invoked-function-arn")),
        quoted(&header(head, "lambda-runtime-client-context")),
        variables.join(",")
    )
}

fn stream(api: &str, id: &str, pieces: &[&str], trailers: &str) {
    let mut connection = TcpStream::connect(api).expect("it listens");
    let announced = if trailers.is_empty() {
        ""
    } else {
        "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
    };
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: api\r\n\
         Connection: close\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n\
         Content-Type: text/plain\r\n{announced}Transfer-Encoding: chunked\r\n\r\n"
    );
    let mut send = |text: &str| {
        // Who no longer listens has told the function so in the answer.
        let _ = connection.write_all(text.as_bytes());
        let _ = connection.flush();
    };
    send(&head);
    for piece in pieces {
        send(&format!("{:x}\r\n{piece}\r\n", piece.len()));
    }
    send(&format!("0\r\n{trailers}\r\n"));
    let _ = connection.read_to_end(&mut Vec::new());
}

fn post(api: &str, path: &str, headers: &str, body: &[u8]) {
    let mut request = format!(
        "POST /2018-06-01/{path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\
         Content-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    exchange(api, &request);
}

/// Sends a request; gives the head of the answer and its body.
fn exchange(api: &str, request: &[u8]) -> (String, Vec<u8>) {
    let mut connection = TcpStream::connect(api).expect("it listens");
    connection.write_all(request).expect("it reads");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).expect("it answers");
    let end = answer
        .windows(4)
        .position(|it| it == b"\r\n\r\n")
        .expect("a head ends");
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).expect("heads are ASCII");
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        return (head, unchunked(&body));
    }
    (head, body)
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|it| it == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).expect("sizes are ASCII");
        let size = usize::from_str_radix(size, 16).expect("sizes are hexadecimal");
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
    whole
}

fn header(head: &str, name: &str) -> String {
    let found = head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    });
    found.unwrap_or_default()
}

/// A member of a flat object whose value is a text without escapes.
fn member(event: &str, name: &str) -> String {
    let found = event
        .split_once(&format!("\"{name}\""))
        .and_then(|(_, rest)| {
            let value = rest
                .trim_start()
                .strip_prefix(':')?
                .trim_start()
                .strip_prefix('"')?;
            Some(value.split_once('"')?.0.to_owned())
        });
    found.unwrap_or_default()
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            letter if u32::from(letter) < 0x20 => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
