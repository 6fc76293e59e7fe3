//! The event: what it must be.

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::fault::InvokeFault;
use crate::payload::Payloads;

/// Looks whether `body` is an event as the service takes it, JSON in UTF-8; nothing at all stands
/// for `{}`, as there. Where `payloads` may be anything it is passed on as it is.
pub(crate) fn event(body: Bytes, payloads: Payloads) -> Result<Bytes, InvokeFault> {
    if !payloads.are_json() {
        return Ok(body);
    }
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
            let found = event(Bytes::copy_from_slice(body), Payloads::AsOnLambda);
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
        assert!(event(Bytes::from(deep), Payloads::AsOnLambda).is_ok());
    }

    #[test]
    fn anything_goes_if_told_so() {
        assert_eq!(
            event(Bytes::from_static(b"\xff"), Payloads::Any).unwrap(),
            b"\xff"[..]
        );
        assert_eq!(event(Bytes::new(), Payloads::Any).unwrap(), b""[..]);
    }
}
