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
}

impl Output {
    /// Works out the form from the flags and from what stderr is.
    pub(crate) fn new(arguments: &GlobalArguments) -> Self {
        let quiet = arguments.quiet;
        let style = arguments.progress;
        Self {
            quiet,
            json: arguments.json,
            bars: !quiet && style == ProgressStyle::Auto && io::stderr().is_terminal(),
            plain: !quiet && (style == ProgressStyle::Plain || arguments.verbose > 0),
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
