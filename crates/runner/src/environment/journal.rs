//! The log of an environment: output cut into lines, Lambda's own lines between them, the tail for
//! whoever asked for it.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use crate::sandbox::{Log, Network, Written};

use super::hints;
use super::telemetry::{Kind, Telemetry};
use super::{LogLine, LogSource, SharedSink};

/// A longer line is cut: `CloudWatch` Logs takes events of up to 256 KiB
/// (`CloudWatch` Logs quotas, "Event size").
const LINE_LIMIT: usize = 256 * 1024;
/// What `LogType=Tail` gives (Lambda API, Invoke, "X-Amz-Log-Result").
const TAIL: usize = 4096;

/// Takes all that is to be logged and hands it on as lines.
#[derive(Debug)]
pub(super) struct Journal {
    environment: u32,
    sink: SharedSink,
    pub(super) telemetry: Telemetry,
    function: Lines,
    extension: Lines,
    tail: Tail,
    /// What the lines since [`Journal::begin`] hint at.
    hints: BTreeSet<&'static str>,
}

impl Journal {
    pub(super) fn new(environment: u32, sink: SharedSink, network: Network) -> Self {
        Self {
            environment,
            telemetry: Telemetry::new(environment, SharedSink::clone(&sink), network),
            sink,
            function: Lines::default(),
            extension: Lines::default(),
            tail: Tail::default(),
            hints: BTreeSet::new(),
        }
    }

    /// An invocation or an initialisation begins.
    pub(super) fn begin(&mut self) {
        self.tail = Tail::default();
        self.hints.clear();
    }

    /// A piece of output.
    pub(super) fn written(&mut self, written: &Written) {
        let (lines, source) = match written.log {
            Log::Function => (&mut self.function, LogSource::Function),
            Log::Extension => (&mut self.extension, LogSource::Extension),
        };
        for line in lines.push(&written.bytes) {
            self.line(source, line);
        }
    }

    /// What was written without a line feed is a line now.
    pub(super) fn flush(&mut self) {
        if let Some(line) = self.function.rest() {
            self.line(LogSource::Function, line);
        }
        if let Some(line) = self.extension.rest() {
            self.line(LogSource::Extension, line);
        }
    }

    /// A line of Lambda's own.
    pub(super) fn platform(&mut self, text: String) {
        self.line(LogSource::Platform, text.into());
    }

    /// An event of Lambda's own, for subscribers alone.
    pub(super) fn event(&mut self, name: &str, record: impl FnOnce() -> Value) {
        if self.telemetry.wants(Kind::Platform) {
            self.telemetry.event(Kind::Platform, name, &record());
        }
    }

    /// A word of ours. It is not in the tail, which a client may compare with Lambda's.
    pub(super) fn hint(&self, text: impl Into<Bytes>) {
        self.tell(LogSource::Hint, text.into());
    }

    /// Tells what the lines since [`Journal::begin`] hint at, after a failure.
    pub(super) fn explain(&mut self) {
        for hint in std::mem::take(&mut self.hints) {
            self.hint(hint);
        }
    }

    /// The last lines since [`Journal::begin`].
    pub(super) fn tail(&self) -> Bytes {
        self.tail.bytes()
    }

    fn line(&mut self, source: LogSource, text: Bytes) {
        self.tail.push(&text);
        let kind = match source {
            LogSource::Function => Some((Kind::Function, "function")),
            LogSource::Extension => Some((Kind::Extension, "extension")),
            LogSource::Platform | LogSource::Hint => None,
        };
        if let Some((kind, name)) = kind {
            if let Some(hint) = hints::hint(&text) {
                self.hints.insert(hint);
            }
            if self.telemetry.wants(kind) {
                let record = String::from_utf8_lossy(&text).into_owned().into();
                self.telemetry.event(kind, name, &record);
            }
        }
        self.tell(source, text);
    }

    fn tell(&self, source: LogSource, text: Bytes) {
        self.sink.line(LogLine {
            environment: self.environment,
            source,
            text,
        });
    }
}

/// Cuts a stream into lines. A carriage return ends one too: Python's runtime client writes them
/// between the lines of a traceback.
#[derive(Debug, Default)]
struct Lines {
    begun: BytesMut,
    /// Whether the last byte was a carriage return, of which a line feed is a part.
    after_return: bool,
}

impl Lines {
    /// The lines that are complete with this piece, without their ends.
    fn push(&mut self, piece: &[u8]) -> Vec<Bytes> {
        let mut lines = Vec::new();
        let mut rest = piece;
        if self.after_return && !rest.is_empty() {
            self.after_return = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            self.extend(&rest[..end], &mut lines);
            lines.push(self.begun.split().freeze());
            let is_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_return {
                self.after_return = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
        }
        self.extend(rest, &mut lines);
        lines
    }

    fn extend(&mut self, text: &[u8], lines: &mut Vec<Bytes>) {
        self.begun.extend_from_slice(text);
        while self.begun.len() > LINE_LIMIT {
            lines.push(self.begun.split_to(LINE_LIMIT).freeze());
        }
    }

    /// What is left without an end.
    fn rest(&mut self) -> Option<Bytes> {
        (!self.begun.is_empty()).then(|| self.begun.split().freeze())
    }
}

/// The last [`TAIL`] bytes of lines.
#[derive(Debug, Default)]
struct Tail {
    kept: Vec<u8>,
}

impl Tail {
    fn push(&mut self, line: &[u8]) {
        // One byte less, for the line feed.
        let line = &line[line.len().saturating_sub(TAIL - 1)..];
        self.kept.extend_from_slice(line);
        self.kept.push(b'\n');
        // Only now and then, so that many short lines do not each move all that is kept.
        if self.kept.len() > 4 * TAIL {
            self.kept.drain(..self.kept.len() - TAIL);
        }
    }

    fn bytes(&self) -> Bytes {
        let tail = &self.kept[self.kept.len().saturating_sub(TAIL)..];
        // The rest of a character that was cut would spoil it for who reads it as UTF-8.
        let rest = tail.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80);
        Bytes::copy_from_slice(&tail[rest.count()..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_into_lines_however_it_comes() {
        for (pieces, lines, rest) in [
            (vec!["a\nb\n"], vec!["a", "b"], None),
            (vec!["a", "b\nc"], vec!["ab"], Some("c")),
            (vec!["\n\n"], vec!["", ""], None),
            (vec![""], vec![], None),
            (vec!["a\r\nb\r\n"], vec!["a", "b"], None),
            (vec!["a\r", "\nb"], vec!["a"], Some("b")),
            (vec!["a\r", "", "\n\n"], vec!["a", ""], None),
            (vec!["a\rb\r", "c\n"], vec!["a", "b", "c"], None),
        ] {
            let mut cut = Lines::default();
            let got: Vec<Bytes> = pieces
                .iter()
                .flat_map(|piece| cut.push(piece.as_bytes()))
                .collect();
            assert_eq!(got, lines, "{pieces:?}");
            assert_eq!(cut.rest().as_deref(), rest.map(str::as_bytes), "{pieces:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut cut = Lines::default();
        let lines = cut.push(&vec![b'x'; LINE_LIMIT * 2 + 5]);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() == LINE_LIMIT));
        assert_eq!(cut.rest().map(|rest| rest.len()), Some(5));
    }

    #[test]
    fn the_tail_is_the_last_four_kibibytes() {
        let mut tail = Tail::default();
        tail.push(b"START");
        assert_eq!(tail.bytes(), "START\n");
        for number in 0..10_000 {
            tail.push(format!("line {number}").as_bytes());
        }
        let bytes = tail.bytes();
        assert_eq!(bytes.len(), TAIL);
        assert!(bytes.ends_with(b"line 9998\nline 9999\n"));
        tail.push(&[b'y'; TAIL * 3]);
        assert_eq!(tail.bytes().len(), TAIL);
        assert!(tail.bytes().ends_with(b"yyy\n"));
    }

    #[test]
    fn no_character_of_the_tail_is_cut() {
        for character in ["x", "\u{17e}", "\u{20ac}", "\u{1f956}"] {
            for before in 0..4 {
                let mut tail = Tail::default();
                tail.push((character.repeat(TAIL) + &"-".repeat(before)).as_bytes());
                let bytes = tail.bytes();
                assert!(bytes.len() > TAIL - character.len(), "{character}");
                assert!(std::str::from_utf8(&bytes).is_ok(), "{character} {before}");
            }
        }
    }
}
