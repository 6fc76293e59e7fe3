//! What must not be seen: credentials of indexes and registries.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use super::settings;
use crate::environment::Variables;

/// What stands in the place of a secret.
const HIDDEN: &str = "****";

/// Texts that are taken out of whatever is shown.
#[derive(Default, Clone)]
pub(crate) struct Secrets {
    /// The longest first: one may be part of another.
    texts: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secrets(…)")
    }
}

/// Shorter ones would be found in words that have nothing to do with them.
const SHORTEST: usize = 4;

/// Users are shorter; the known tokens (of npm, GitHub, GitLab, and of indexes of Python) are
/// longer.
const SHORTEST_TOKEN: usize = 20;

impl Secrets {
    /// What the environment is known to keep secret, and the passwords of `.netrc`, which most tools
    /// read.
    pub(crate) fn of(variables: &Variables) -> Self {
        let mut secrets = Self::default();
        for (name, value) in variables.iter() {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            let name = name.to_ascii_uppercase();
            let words = [
                "TOKEN", "PASSWORD", "PASSWD", "SECRET", "_AUTH", "API_KEY", "APIKEY",
            ];
            if words.iter().any(|word| name.contains(word)) {
                secrets.add(&value);
            }
            secrets.add_of_urls(&value);
        }
        let netrc = match variables.get("NETRC") {
            Some(path) => Some(PathBuf::from(path)),
            None => variables
                .get("HOME")
                .map(|home| PathBuf::from(home).join(".netrc")),
        };
        if let Some(text) = netrc.as_deref().and_then(settings::read) {
            let mut words = text.split_whitespace();
            while let Some(word) = words.next() {
                if word == "password" {
                    secrets.add(words.next().unwrap_or_default());
                }
            }
        }
        secrets
    }

    /// Adds a secret.
    pub(crate) fn add(&mut self, secret: &str) {
        if secret.len() < SHORTEST || self.texts.iter().any(|known| known == secret) {
            return;
        }
        self.texts.push(secret.to_owned());
        self.texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    }

    /// Adds the passwords of URLs in `text`, and what `${NAME}` there stands for.
    pub(crate) fn add_of_urls(&mut self, text: &str) {
        for_each_userinfo(text, |userinfo| {
            // A user without a password is a token; one that is as long as a token may be one too,
            // with anything for a password.
            let (user, password) = userinfo.split_once(':').unwrap_or(("", userinfo));
            let token =
                Some(user).filter(|user| user.len() >= SHORTEST_TOKEN || password.is_empty());
            for secret in [Some(password), token].into_iter().flatten() {
                self.add(secret);
                self.add(&percent_decoded(secret));
            }
        });
    }

    /// Adds what the variables that `text` names stand for, as pip and npm put them in.
    pub(crate) fn add_of_variables(&mut self, text: &str, variables: &Variables) {
        for part in text.split("${").skip(1) {
            // Some know `${NAME:-default}` and `${NAME?}`.
            let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            let end = part.find(|letter| !is_of_name(letter));
            let name = &part[..end.unwrap_or(part.len())];
            if let Some(value) = variables.get(name).and_then(OsStr::to_str) {
                self.add(value);
            }
        }
    }

    /// Adds the tokens and passwords of an `.npmrc` or `.yarnrc`.
    pub(crate) fn add_of_npmrc(&mut self, text: &str) {
        for line in text.lines().filter(|line| is_secret_of_npm(line)) {
            let (_, value) = setting_of_npm(line);
            self.add(value);
        }
        self.add_of_urls(text);
    }

    /// `text` without any of them, and without what else URLs may hide: users, passwords, queries.
    pub(crate) fn hide(&self, text: &str) -> String {
        let mut shown = without_credentials(text);
        for secret in &self.texts {
            if shown.contains(secret.as_str()) {
                shown = shown.replace(secret.as_str(), HIDDEN);
            }
        }
        shown
    }
}

/// Name and value of a line: `name = value` in an `.npmrc`, `"name" "value"` in a `.yarnrc`.
fn setting_of_npm(line: &str) -> (&str, &str) {
    let line = line.trim();
    let (name, value) = match line.split_once('=') {
        Some((name, value)) if !name.trim().contains(char::is_whitespace) => (name, value),
        _ => line.split_once(char::is_whitespace).unwrap_or((line, "")),
    };
    (
        name.trim().trim_matches('"'),
        value.trim().trim_matches(['"', '\'']),
    )
}

/// Whether a line of an `.npmrc` or `.yarnrc` sets something secret.
pub(crate) fn is_secret_of_npm(line: &str) -> bool {
    let (name, _) = setting_of_npm(line);
    let name = name.rsplit(':').next().unwrap_or(name);
    let names = [
        "_auth",
        "_authToken",
        "_password",
        "username",
        "email",
        "key",
    ];
    names.contains(&name)
}

/// Where a URL that begins before `rest` ends.
fn end_of_url(rest: &str) -> usize {
    rest.find(|letter: char| letter.is_whitespace() || "\"'<>`,;()[]{}".contains(letter))
        .unwrap_or(rest.len())
}

/// Where the user, password and host of a URL end that begins before `rest`. `${NAME}` may stand in
/// it, so that only what cannot be part of one ends it.
fn end_of_authority(rest: &str) -> usize {
    rest.find(|letter: char| letter.is_whitespace() || "/\"'<>`".contains(letter))
        .unwrap_or(rest.len())
}

fn for_each_userinfo(text: &str, mut act: impl FnMut(&str)) {
    for rest in text.split("://").skip(1) {
        if let Some((userinfo, _)) = rest[..end_of_authority(rest)].rsplit_once('@') {
            act(userinfo);
        }
    }
}

/// `text` with every URL's user and password left out: what is the same when a password is not.
pub(crate) fn without_userinfo(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        shown.push_str("://");
        let authority = &rest[..end_of_authority(rest)];
        match authority.rfind('@') {
            Some(at) => {
                shown.push_str(HIDDEN);
                shown.push_str(&rest[at..]);
            }
            None => shown.push_str(rest),
        }
    }
    shown
}

/// `text` with every URL's user and password, and its query, left out.
pub(crate) fn without_credentials(text: &str) -> String {
    let text = without_userinfo(text);
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        shown.push_str("://");
        let end = end_of_url(rest);
        match rest[..end].find('?') {
            Some(query) => {
                shown.push_str(&rest[..=query]);
                shown.push_str(HIDDEN);
                shown.push_str(&rest[end..]);
            }
            None => shown.push_str(rest),
        }
    }
    shown
}

/// `text` with its `%XX` undone.
pub(super) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let value = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(value.unwrap_or(byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_what_they_hide() {
        for (text, shown) in [
            ("plain text", "plain text"),
            (
                "Looking in https://user:pass@host.example/simple, and more",
                "Looking in https://****@host.example/simple, and more",
            ),
            ("http://token@host", "http://****@host"),
            ("https://a:b@c@host/x@y", "https://****@host/x@y"),
            ("https://user:${SECRET}@host/", "https://****@host/"),
            (
                "'https://host/x.whl?signature=abc' failed",
                "'https://host/x.whl?****' failed",
            ),
            (
                "https://host/a@1 https://u:p@h",
                "https://host/a@1 https://****@h",
            ),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let variables = Variables::of([
            ("REGISTRY_TOKEN", "token-of-environment"),
            ("PIP_INDEX_URL", "https://me:p%40ssword@host/"),
            ("INNER", "expanded-secret"),
        ]);
        let mut secrets = Secrets::of(&variables);
        secrets.add_of_npmrc("//host/:_authToken=npm-secret-value\nregistry=https://host/\n");
        secrets.add_of_variables("https://me:${INNER}@host/", &variables);
        for secret in [
            "token-of-environment",
            "p%40ssword",
            "p@ssword",
            "npm-secret-value",
            "expanded-secret",
        ] {
            assert_eq!(secrets.hide(&format!("so: {secret}!")), "so: ****!");
        }
        assert!(!format!("{secrets:?}{variables:?}").contains("secret"));
        assert_eq!(
            secrets.hide("registry=https://host/"),
            "registry=https://host/"
        );
        let mut secrets = Secrets::default();
        let variables = Variables::of([("ONE", "first-secret"), ("TWO", "second-secret")]);
        secrets.add_of_npmrc("registry \"https://host/\"\n\"//host/:_authToken\" \"of-yarn\"\n");
        secrets.add_of_npmrc("//host/:_password = 'of-npm='\n");
        secrets.add_of_variables("${ONE:-nothing} ${TWO?}", &variables);
        secrets.add_of_urls("https://ghp_0123456789abcdef0123:x-oauth-basic@host/");
        assert_eq!(
            secrets.hide("of-yarn of-npm= first-secret second-secret ghp_0123456789abcdef0123"),
            "**** **** **** **** ****"
        );
    }

    #[test]
    fn a_query_is_part_of_what_is_fetched_and_a_password_is_not() {
        assert_eq!(
            without_userinfo("https://u:p@h/a.whl?version=2#sha256=0 http://h"),
            "https://****@h/a.whl?version=2#sha256=0 http://h"
        );
    }
}
