//! The event: what it must be.

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::fault::InvokeFault;
use crate::function::Payloads;

/// An event and what it is said to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) bytes: Bytes,
    pub(crate) content_type: String,
}

/// What `body` is as an event; `content_type` is what the client calls it. JSON is called that,
/// whatever `curl -d` and SDKs call it, since runtimes parse what is called so. The service takes
/// nothing else; where `payloads` may be anything it is passed on as it is.
pub(crate) fn event(
    body: Bytes,
    content_type: String,
    payloads: Payloads,
) -> Result<Payload, InvokeFault> {
    match json(body.clone()) {
        Ok(bytes) => Ok(Payload {
            bytes,
            content_type: "application/json".to_owned(),
        }),
        Err(fault) if payloads.are_json() => Err(fault),
        Err(_) => Ok(Payload {
            bytes: body,
            content_type,
        }),
    }
}

/// Looks whether `body` is JSON in UTF-8; nothing at all stands for `{}`, as with the service.
fn json(body: Bytes) -> Result<Bytes, InvokeFault> {
    if body.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    let text = std::str::from_utf8(&body).map_err(|error| {
        InvokeFault::NotJson(format!(
            "invalid UTF-8 at byte {}. (Version 2 of the AWS CLI takes --payload for base64 unless \
             it is told `--cli-binary-format raw-in-base64-out`.)",
            error.valid_up_to()
        ))
    })?;
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| InvokeFault::NotJson(error.to_string()))?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_or_nothing() {
        for (body, expected) in [
            (&b""[..], Ok(&b"{}"[..])),
            (b"{}", Ok(b"{}")),
            (b" [1, 2]\n", Ok(b" [1, 2]\n")),
            (b"null", Ok(b"null")),
            ("\"\u{1f680}\"".as_bytes(), Ok("\"\u{1f680}\"".as_bytes())),
            (b"hello", Err("expected value at line 1 column 1")),
            (b"{} {}", Err("trailing characters at line 1 column 4")),
            (b" ", Err("EOF while parsing a value at line 1 column 1")),
            (b"\"\xff\"", Err("invalid UTF-8 at byte 1.")),
        ] {
            let found = json(Bytes::copy_from_slice(body));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => {
                    let found = found.to_string();
                    assert!(
                        found.starts_with("Could not parse request body into json: "),
                        "{found}"
                    );
                    assert!(found.contains(expected), "{found}");
                }
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn deep_events_are_no_danger() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert!(json(Bytes::from(deep)).is_ok());
    }

    #[test]
    fn anything_goes_if_told_so() {
        let told = |body: &'static [u8], payloads| {
            let event = event(Bytes::from_static(body), "text/plain".to_owned(), payloads)?;
            Ok::<_, InvokeFault>((event.bytes, event.content_type))
        };
        let json = (Bytes::from_static(b"7"), "application/json".to_owned());
        assert_eq!(told(b"7", Payloads::AsOnLambda).unwrap(), json);
        assert_eq!(told(b"7", Payloads::Any).unwrap(), json);
        assert!(told(b"\xff", Payloads::AsOnLambda).is_err());
        let other = (Bytes::from_static(b"\xff"), "text/plain".to_owned());
        assert_eq!(told(b"\xff", Payloads::Any).unwrap(), other);
    }
}
