//! What a build changes in the base's config.

use std::collections::{BTreeMap, BTreeSet};

/// Changes to a base's config. What is `None` or empty stays as the base has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigEdits {
    /// Replaces ENTRYPOINT; the base's CMD goes with it unless [`ConfigEdits::cmd`] is set too,
    /// because it was written for the other entrypoint (Dockerfile reference, "Understand how CMD
    /// and ENTRYPOINT interact").
    pub entrypoint: Option<Vec<String>>,
    /// Replaces CMD: the handler, on AWS's bases.
    pub cmd: Option<Vec<String>>,
    /// Changes to ENV, in order. A new variable is appended; a known one keeps its place.
    pub env: Vec<(String, EnvEdit)>,
    /// Replaces WORKDIR.
    pub working_dir: Option<String>,
    /// Replaces USER.
    pub user: Option<String>,
    /// Added to the base's labels, replacing those of the same name.
    pub labels: BTreeMap<String, String>,
    /// Added to the base's exposed ports: `8080`, `8080/tcp`, `53/udp`, `8000-8010`.
    pub exposed_ports: BTreeSet<String>,
    /// Replaces STOPSIGNAL.
    pub stop_signal: Option<String>,
    /// Annotations of the manifest; only OCI manifests can have them.
    pub annotations: BTreeMap<String, String>,
}

/// A change to one environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvEdit {
    /// The variable has this value.
    Set(String),
    /// This text follows the base's value, as in `PATH` + `:/opt/bin`.
    Append(String),
    /// This text precedes the base's value.
    Prepend(String),
}

/// A change that no image config can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEdit {
    /// Empty, or with `=` or NUL in it.
    #[error("`{0}` cannot be the name of an environment variable")]
    EnvName(String),
    /// A NUL byte, which no process argument or environment can carry.
    #[error("`{field}` has a NUL byte in it")]
    Nul {
        /// Which setting.
        field: &'static str,
    },
    /// The entrypoint's first word is empty.
    #[error("`entrypoint` begins with an empty word")]
    EmptyEntrypoint,
    /// Not a path from the root.
    #[error("the working directory `{0}` is not absolute")]
    RelativeWorkingDir(String),
    /// Not `PORT`, `PORT/tcp`, `PORT/udp` or `PORT/sctp`, or a range of them.
    #[error("`{0}` is not a port: expected `8080`, `8080/tcp` or `53/udp`")]
    Port(String),
    /// A label or annotation without a name.
    #[error("a label or annotation has an empty name")]
    EmptyLabel,
    /// Not a signal's name or number.
    #[error("`{0}` is not a signal: expected a name such as `SIGTERM` or a number")]
    StopSignal(String),
}

impl ConfigEdits {
    /// Finds the first change that no image config can hold.
    pub fn check(&self) -> Result<(), BadEdit> {
        for (name, _) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(BadEdit::EnvName(name.clone()));
            }
        }
        let env_values = self.env.iter().map(|(_, edit)| match edit {
            EnvEdit::Set(text) | EnvEdit::Append(text) | EnvEdit::Prepend(text) => ("env", text),
        });
        let arguments = |field, list: &'_ Option<Vec<String>>| {
            list.iter()
                .flatten()
                .map(move |text| (field, text.clone()))
                .collect::<Vec<_>>()
        };
        let entrypoint = arguments("entrypoint", &self.entrypoint);
        let cmd = arguments("cmd", &self.cmd);
        let texts = env_values
            .chain(
                entrypoint
                    .iter()
                    .chain(&cmd)
                    .map(|(field, text)| (*field, text)),
            )
            .chain(self.user.iter().map(|text| ("user", text)))
            .chain(self.working_dir.iter().map(|text| ("workdir", text)));
        for (field, text) in texts {
            if text.contains('\0') {
                return Err(BadEdit::Nul { field });
            }
        }
        if self
            .entrypoint
            .as_ref()
            .and_then(|words| words.first())
            .is_some_and(String::is_empty)
        {
            return Err(BadEdit::EmptyEntrypoint);
        }
        if let Some(path) = self
            .working_dir
            .as_ref()
            .filter(|path| !path.starts_with('/'))
        {
            return Err(BadEdit::RelativeWorkingDir(path.clone()));
        }
        if let Some(port) = self.exposed_ports.iter().find(|port| ports(port).is_none()) {
            return Err(BadEdit::Port(port.clone()));
        }
        if self.labels.contains_key("") || self.annotations.contains_key("") {
            return Err(BadEdit::EmptyLabel);
        }
        if let Some(signal) = self
            .stop_signal
            .as_ref()
            .filter(|signal| !is_signal(signal))
        {
            return Err(BadEdit::StopSignal(signal.clone()));
        }
        Ok(())
    }
}

/// The single ports that `text` stands for, as configs have them; `None` when it is no port.
///
/// Docker's EXPOSE takes ranges, the image specification does not: they are written out.
pub(crate) fn ports(text: &str) -> Option<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (number(first)?, number(last)?);
    if first > last || !matches!(protocol, "tcp" | "udp" | "sctp") {
        return None;
    }
    Some(
        (first..=last)
            .map(|port| format!("{port}/{protocol}"))
            .collect(),
    )
}

/// The names of Linux's signals (signal(7)), without `SIG`.
const SIGNALS: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

fn is_signal(text: &str) -> bool {
    let numbered = text
        .parse::<u8>()
        .is_ok_and(|number| (1..=64).contains(&number));
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let real_time = ["RTMIN", "RTMAX"].iter().any(|end| {
        name.strip_prefix(end).is_some_and(|offset| {
            let distance = offset.strip_prefix(['+', '-']).map(str::parse::<u8>);
            offset.is_empty() || distance.is_some_and(|it| it.is_ok_and(|distance| distance < 32))
        })
    });
    numbered || real_time || SIGNALS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_no_config_can_hold() {
        let ok = ConfigEdits {
            env: vec![("PATH".into(), EnvEdit::Append(":/opt/bin".into()))],
            exposed_ports: ["8080".into(), "53/udp".into(), "8000-8010/tcp".into()].into(),
            stop_signal: Some("SIGRTMIN+3".into()),
            working_dir: Some("/var/task".into()),
            ..ConfigEdits::default()
        };
        assert_eq!(ok.check(), Ok(()));
        let set = |text: &str| EnvEdit::Set(text.into());
        let default = ConfigEdits::default;
        for (edits, expected) in [
            (
                ConfigEdits {
                    env: vec![("A=B".into(), set(""))],
                    ..default()
                },
                BadEdit::EnvName("A=B".into()),
            ),
            (
                ConfigEdits {
                    env: vec![("A".into(), set("\0"))],
                    ..default()
                },
                BadEdit::Nul { field: "env" },
            ),
            (
                ConfigEdits {
                    cmd: Some(vec!["\0".into()]),
                    ..default()
                },
                BadEdit::Nul { field: "cmd" },
            ),
            (
                ConfigEdits {
                    entrypoint: Some(vec![String::new()]),
                    ..default()
                },
                BadEdit::EmptyEntrypoint,
            ),
            (
                ConfigEdits {
                    working_dir: Some("task".into()),
                    ..default()
                },
                BadEdit::RelativeWorkingDir("task".into()),
            ),
            (
                ConfigEdits {
                    exposed_ports: ["http".into()].into(),
                    ..default()
                },
                BadEdit::Port("http".into()),
            ),
            (
                ConfigEdits {
                    exposed_ports: ["0".into()].into(),
                    ..default()
                },
                BadEdit::Port("0".into()),
            ),
            (
                ConfigEdits {
                    stop_signal: Some("term".into()),
                    ..default()
                },
                BadEdit::StopSignal("term".into()),
            ),
            (
                ConfigEdits {
                    labels: [(String::new(), String::new())].into(),
                    ..default()
                },
                BadEdit::EmptyLabel,
            ),
            (
                ConfigEdits {
                    exposed_ports: ["9000-8000".into()].into(),
                    ..default()
                },
                BadEdit::Port("9000-8000".into()),
            ),
            (
                ConfigEdits {
                    stop_signal: Some("SIGFOO".into()),
                    ..default()
                },
                BadEdit::StopSignal("SIGFOO".into()),
            ),
        ] {
            assert_eq!(edits.check(), Err(expected));
        }
    }
}
