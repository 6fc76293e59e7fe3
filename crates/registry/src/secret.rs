//! Texts that must not be shown.

use std::cmp::Reverse;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// What stands where a secret was.
const HIDDEN: &str = "(secret)";

/// Secrets of up to this many bytes are found only where they stand alone: a password `pass` would
/// else be given away by its hole in every `password`.
const LONGEST_WORD: usize = 8;

/// Of fewer bytes nothing can be said to be the secret.
const SHORTEST: usize = 3;

/// A password or token, which no `Debug` or `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be put into a request and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to keep secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HIDDEN)
    }
}

/// The secrets that a server has been shown, which it may repeat in what it answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownSecrets(Vec<Secret>);

impl KnownSecrets {
    pub(crate) fn add(&mut self, secret: impl Into<String>) {
        self.0.push(Secret::new(secret));
    }

    /// The text without these secrets, in whichever of the usual encodings they stand there.
    pub(crate) fn hide(&self, text: &str) -> String {
        let mut forms: Vec<_> = self.0.iter().flat_map(forms).collect();
        // What holds another goes first, so that no part of it is left.
        forms.sort_unstable_by(|one, other| {
            (Reverse(one.len()), one).cmp(&(Reverse(other.len()), other))
        });
        forms.dedup();
        forms
            .iter()
            .filter(|form| form.len() >= SHORTEST)
            .fold(text.to_owned(), |text, form| hide_one(&text, form))
    }
}

fn forms(secret: &Secret) -> [String; 6] {
    let text = secret.expose();
    let quoted = serde_json::Value::from(text).to_string();
    let escaped = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    [
        text.to_owned(),
        // As it stands in a text whose white space was tidied.
        text.split_whitespace().collect::<Vec<_>>().join(" "),
        escaped.unwrap_or(&quoted).to_owned(),
        url::form_urlencoded::byte_serialize(text.as_bytes()).collect(),
        // Padding that follows says nothing.
        STANDARD_NO_PAD.encode(text),
        URL_SAFE_NO_PAD.encode(text),
    ]
}

fn hide_one(text: &str, secret: &str) -> String {
    let mut shown = String::new();
    let mut rest = 0;
    for (start, _) in text.match_indices(secret) {
        let end = start + secret.len();
        let stands_alone = !text[..start].ends_with(char::is_alphanumeric)
            && !text[end..].starts_with(char::is_alphanumeric);
        if secret.len() > LONGEST_WORD || stands_alone {
            shown.push_str(&text[rest..start]);
            shown.push_str(HIDDEN);
            rest = end;
        }
    }
    shown.push_str(&text[rest..]);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "(secret) (secret)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn is_found_in_what_others_write() {
        let hide = |secrets: &[&str], text: &str| {
            let mut known = KnownSecrets::default();
            for secret in secrets {
                known.add(*secret);
            }
            assert!(!format!("{known:?}").contains(secrets[0]));
            known.hide(text)
        };
        for (secret, text, expected) in [
            (
                "correct-horse",
                "a correct-horsecorrect-horse",
                "a (secret)(secret)",
            ),
            ("correct horse\"", "Y29ycmVjdCBob3JzZSI= ", "(secret)= "),
            ("correct horse\"", "correct+horse%22", "(secret)"),
            (
                "correct horse\"",
                "{\"correct horse\\\"\"}",
                "{\"(secret)\"}",
            ),
            ("correct  horse", "correct horse", "(secret)"),
            (">>>???>>>???", "Pj4-Pz8_Pj4-Pz8_", "(secret)"),
            ("pass", "password pass pass.", "password (secret) (secret)."),
            ("pa", "pa", "pa"),
        ] {
            assert_eq!(hide(&[secret], text), expected, "{secret}");
        }
        assert_eq!(
            hide(&["long-secret", "long-secret-longer"], "long-secret-longer"),
            "(secret)"
        );
    }
}
