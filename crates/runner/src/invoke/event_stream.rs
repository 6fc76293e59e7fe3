//! The answer of `InvokeWithResponseStream`: frames of `application/vnd.amazon.eventstream`.
//!
//! Frames and their members are those of the service's description (`InvokeWithResponseStreamResponseEvent`).

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use serde::Serialize;

/// What the answer says its content is.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";

/// At most so many bytes of the answer are in one frame.
const CHUNK: usize = 64 * 1024;

/// The last frame: how it ended. What is not there has no member.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct InvokeComplete {
    /// What kind of error ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_code: Option<String>,
    /// The error itself: JSON, as a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_details: Option<String>,
    /// The end of the log in Base64, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_result: Option<String>,
}

/// `X-Amz-Log-Result` and `LogResult`.
pub(crate) fn log_result(log_tail: &[u8]) -> String {
    STANDARD.encode(log_tail)
}

/// Appends the frames of a piece of the answer; none if it is empty.
pub(crate) fn write_piece(piece: &Bytes, frames: &mut BytesMut) {
    let mut rest = piece.clone();
    while !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(CHUNK));
        write("PayloadChunk", "application/octet-stream", chunk, frames);
    }
}

/// Appends the last frame.
pub(crate) fn write_complete(complete: &InvokeComplete, frames: &mut BytesMut) {
    let json = serde_json::to_vec(complete).expect("three texts can be written as JSON");
    write("InvokeComplete", "application/json", json.into(), frames);
}

fn write(event: &'static str, content_type: &'static str, payload: Bytes, frames: &mut BytesMut) {
    let message = [
        (":event-type", event),
        (":content-type", content_type),
        (":message-type", "event"),
    ]
    .into_iter()
    .fold(Message::new(payload), |message, (name, value)| {
        message.add_header(Header::new(name, HeaderValue::String(value.into())))
    });
    write_message_to(&message, frames).expect("the frame is far shorter than 4 GiB");
}

#[cfg(test)]
mod tests {
    use aws_smithy_eventstream::frame::read_message_from;

    use super::*;

    fn read(frames: BytesMut) -> Vec<(String, Bytes)> {
        let mut frames = frames.freeze();
        let mut found = Vec::new();
        while !frames.is_empty() {
            let message = read_message_from(&mut frames).unwrap();
            let event = message
                .headers()
                .iter()
                .find(|header| header.name().as_str() == ":event-type")
                .unwrap();
            found.push((
                event.value().as_string().unwrap().as_str().to_owned(),
                message.payload().clone(),
            ));
        }
        found
    }

    #[test]
    fn a_piece_is_cut_into_frames() {
        for (length, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (CHUNK, vec![CHUNK]),
            (2 * CHUNK + 1, vec![CHUNK, CHUNK, 1]),
        ] {
            let piece: Bytes = (0..=255).cycle().take(length).collect::<Vec<u8>>().into();
            let mut frames = BytesMut::new();
            write_piece(&piece, &mut frames);
            let found = read(frames);
            assert!(found.iter().all(|(event, _)| event == "PayloadChunk"));
            assert_eq!(
                found
                    .iter()
                    .map(|(_, chunk)| chunk.len())
                    .collect::<Vec<_>>(),
                expected
            );
            let together: Vec<u8> = found.iter().flat_map(|(_, chunk)| chunk.to_vec()).collect();
            assert_eq!(together, piece);
        }
    }

    #[test]
    fn the_last_frame_says_what_there_is_to_say() {
        for (complete, expected) in [
            (InvokeComplete::default(), "{}"),
            (
                InvokeComplete {
                    error_code: Some("Unhandled".to_owned()),
                    error_details: Some("{\"a\":1}".to_owned()),
                    log_result: Some(log_result(b"END")),
                },
                r#"{"ErrorCode":"Unhandled","ErrorDetails":"{\"a\":1}","LogResult":"RU5E"}"#,
            ),
        ] {
            let mut frames = BytesMut::new();
            write_complete(&complete, &mut frames);
            assert_eq!(
                read(frames),
                [("InvokeComplete".to_owned(), Bytes::from(expected))]
            );
        }
    }
}
