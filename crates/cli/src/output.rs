//! Everything that is printed.
//!
//! stdout carries the result and nothing else; all other words go to stderr.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use tierce_image::{Tally, WriteReport};

use crate::arguments::{GlobalArguments, ProgressStyle};

/// How much is said, and in which form.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each answers a question of its own"
)]
pub(crate) struct Output {
    quiet: bool,
    pub(crate) json: bool,
    pub(crate) bars: bool,
    plain: bool,
    /// Whether stderr is one.
    terminal: bool,
    coloured: bool,
}

/// How a line of a log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogStyle {
    /// As it is.
    Plain,
    /// Less than the others.
    Dim,
}

impl Output {
    /// Works out the form from the flags and from what stderr is.
    pub(crate) fn new(arguments: &GlobalArguments, coloured: bool) -> Self {
        let quiet = arguments.quiet;
        let style = arguments.progress;
        let terminal = io::stderr().is_terminal();
        Self {
            quiet,
            json: arguments.json,
            bars: !quiet && style == ProgressStyle::Auto && terminal,
            terminal,
            coloured,
            plain: !quiet && (style == ProgressStyle::Plain || arguments.verbose > 0),
        }
    }

    /// One that says what went wrong and nothing else.
    pub(crate) fn hushed(self) -> Self {
        Self {
            quiet: true,
            bars: false,
            plain: false,
            ..self
        }
    }

    /// Prints one line of the result.
    #[expect(
        clippy::unused_self,
        reason = "asked of whoever prints, like all other words"
    )]
    pub(crate) fn result_line(self, line: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()?;
        Ok(())
    }

    /// Prints the result as one JSON document.
    #[expect(
        clippy::unused_self,
        reason = "asked of whoever prints, like all other words"
    )]
    pub(crate) fn result_json(self, value: &serde_json::Value) -> Result<()> {
        let mut text = harmless(&serde_json::to_string_pretty(value)?);
        text.push('\n');
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Says something that a user wants to know but a program does not.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            say(&printable(text));
        }
    }

    /// Says something that the user should look at.
    pub(crate) fn warn(self, text: &str) {
        if !self.quiet {
            say(&format!("warning: {}", printable(text)));
        }
    }

    /// Says that a step begins, where every step is wanted.
    pub(crate) fn step(self, text: &str) {
        if self.plain {
            say(&printable(text));
        }
    }

    /// Shows a line of a function's log, which is not always UTF-8.
    ///
    /// On a terminal it is made harmless, but for its colours; elsewhere it is what was written.
    pub(crate) fn log_line(self, prefix: &str, line: &[u8], style: LogStyle) {
        if self.quiet {
            return;
        }
        let mut shown = prefix.as_bytes().to_vec();
        match (self.terminal, self.coloured && style == LogStyle::Dim) {
            (false, _) => shown.extend_from_slice(line),
            (true, dim) => {
                let text = coloured(&String::from_utf8_lossy(line), self.coloured);
                let (before, after) = if dim {
                    ("\x1b[2m", "\x1b[0m")
                } else {
                    ("", "")
                };
                shown.extend_from_slice(format!("{before}{text}{after}").as_bytes());
            }
        }
        shown.push(b'\n');
        let _ = io::stderr().lock().write_all(&shown);
    }

    /// Writes bytes of the result as they are.
    #[expect(
        clippy::unused_self,
        reason = "asked of whoever prints, like all other words"
    )]
    pub(crate) fn result_bytes(self, bytes: &[u8]) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }

    /// Ends the last line of a result that was written as bytes, where a person reads it.
    pub(crate) fn end_line(self, last: Option<u8>) -> Result<()> {
        if io::stdout().is_terminal() && last.is_some_and(|last| last != b'\n') {
            self.result_bytes(b"\n")?;
        }
        Ok(())
    }

    /// Says why it did not work.
    pub(crate) fn error(text: &str) {
        say(&printable(text));
    }
}

/// Writes a line to stderr. When nobody reads it there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Text without what would move the cursor of a terminal or change its state: much of it comes out
/// of images and registries. Line ends stay.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| {
            if (letter.is_control() && letter != '\n') || is_direction(letter) {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}

/// Text with the colours that it has, if they are `welcome`, and otherwise as [`printable`] makes it.
/// A colour is `ESC [ digits and semicolons m` (ECMA-48, "SGR"), which moves nothing.
fn coloured(text: &str, welcome: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['\u{1b}', '\t']) {
        shown.push_str(&printable(&rest[..start]));
        rest = &rest[start..];
        let colour = rest.strip_prefix("\u{1b}[").and_then(|after| {
            let end = after.find(|letter: char| !letter.is_ascii_digit() && letter != ';')?;
            after[end..].starts_with('m').then_some(end + 3)
        });
        let (kept, length) = match colour {
            Some(length) if welcome => (&rest[..length], length),
            Some(length) => ("", length),
            None if rest.starts_with('\t') => ("\t", 1),
            None => ("\u{fffd}", 1),
        };
        shown.push_str(kept);
        rest = &rest[length..];
    }
    shown.push_str(&printable(rest));
    shown
}

/// Whether a letter changes the direction of those around it, or ends a line where not every program
/// sees an end: names with these show as other names.
fn is_direction(letter: char) -> bool {
    matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// JSON in which no letter is one that a terminal obeys. Those below a space are escaped by whoever
/// writes JSON; all others stand in strings alone, where an escape means the same.
fn harmless(json: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if (letter.is_control() && letter != '\n') || is_direction(letter) {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\u{:04x}", u32::from(letter));
        } else {
            text.push(letter);
        }
    }
    text
}

/// Text out of an image, on one line.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\u{fffd}")
}

/// What a walk did, in one line: `3 layers already there, 1 mounted, 1 sent (214 KiB)`.
pub(crate) fn describe_report(report: &WriteReport) -> String {
    if report.up_to_date {
        return "already there".to_owned();
    }

    let part = |tally: &Tally, what: &str| match tally.blobs {
        0 => None,
        count => Some(format!("{count} {what} ({})", describe_size(tally.bytes))),
    };
    let parts: Vec<String> = [
        part(&report.already_there, "already there"),
        part(&report.mounted, "mounted"),
        part(&report.linked, "linked"),
        part(&report.noted, "left where they are"),
        part(&report.sent, "sent"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        // The target has the manifest under another name, and with it all that it names.
        return "all blobs already there".to_owned();
    }
    format!("blobs: {}", parts.join(", "))
}

/// A size for people, in binary units as Lambda's own limits are.
pub(crate) fn describe_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes;
    let mut unit = 0;
    while scaled >= 1024 * 1024 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!(
        "{}.{} {}",
        scaled / 1024,
        scaled % 1024 * 10 / 1024,
        UNITS[unit]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_letter_is_an_order_to_the_terminal() {
        let hostile = "a\u{1b}[31m\u{9b}31m\u{7f}\u{202e}\u{2028}é";
        let shown = "a\u{fffd}[31m\u{fffd}31m\u{fffd}\u{fffd}\u{fffd}é";
        assert_eq!(printable(hostile), shown);
        let json = serde_json::json!({ hostile: [hostile] });
        let text = harmless(&serde_json::to_string_pretty(&json).unwrap());
        assert!(
            text.chars()
                .all(|letter| letter == '\n' || !letter.is_control() && !is_direction(letter))
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            json
        );
    }

    #[test]
    fn a_log_keeps_its_colours_and_nothing_else_that_a_terminal_obeys() {
        for (text, with, without) in [
            ("a\tb", "a\tb", "a\tb"),
            (
                "\u{1b}[31;1mred\u{1b}[0m",
                "\u{1b}[31;1mred\u{1b}[0m",
                "red",
            ),
            ("\u{1b}[mx", "\u{1b}[mx", "x"),
            ("\u{1b}[2Jx", "\u{fffd}[2Jx", "\u{fffd}[2Jx"),
            ("\u{1b}[31", "\u{fffd}[31", "\u{fffd}[31"),
            (
                "\u{1b}]0;title\u{7}",
                "\u{fffd}]0;title\u{fffd}",
                "\u{fffd}]0;title\u{fffd}",
            ),
            ("é\u{1b}", "é\u{fffd}", "é\u{fffd}"),
        ] {
            assert_eq!(coloured(text, true), with);
            assert_eq!(coloured(text, false), without);
        }
    }

    #[test]
    fn sizes_are_shown_in_binary_units() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
        ] {
            assert_eq!(describe_size(bytes), shown);
        }
    }
}
