//! What is started: the settings of the image, overridden as a function's `ImageConfig` does.

use std::collections::BTreeMap;

use anyhow::Result;
use tierce_oci::ImageConfig;

use crate::diagnostic::{Hinted as _, UsageError};

/// What a function's `ImageConfig` may say in place of the image (AWS Lambda API reference,
/// `ImageConfig`). What is empty says nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides<'a> {
    pub(crate) entrypoint: &'a [String],
    pub(crate) cmd: &'a [String],
    pub(crate) working_dir: Option<&'a str>,
}

/// What is started, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Never empty.
    pub(crate) command: Vec<String>,
    pub(crate) handler: Option<String>,
    pub(crate) directory: String,
}

/// The program that AWS's bases start, which wants the handler as its only argument.
const AWS_ENTRYPOINT: &str = "/lambda-entrypoint.sh";

impl Start {
    /// Works out what the image starts.
    ///
    /// Each override stands for itself: another ENTRYPOINT leaves CMD as it is, as on Lambda and
    /// otherwise than in Docker.
    pub(crate) fn of(config: &ImageConfig, overrides: &Overrides<'_>) -> Result<Self> {
        let instead = |said: &[String], image: &[String]| match said {
            [] => image.to_vec(),
            said => said.to_vec(),
        };
        let mut command = instead(overrides.entrypoint, &config.entrypoint);
        command.extend(instead(overrides.cmd, &config.cmd));
        match &command[..] {
            [] => {
                return Err(anyhow::anyhow!("the image has neither ENTRYPOINT nor CMD"))
                    .hint("say what is to be started: `--entrypoint /var/task/bootstrap`");
            }
            [program, arguments @ ..] if program == AWS_ENTRYPOINT && arguments.len() != 1 => {
                return Err(anyhow::anyhow!(
                    "{AWS_ENTRYPOINT} ends at once unless CMD is exactly one word, the handler, \
                     and there are {}",
                    arguments.len()
                ))
                .hint("name it with `--cmd app.handler`, or `handler` of tierce.toml");
            }
            _ => {}
        }
        // As AWS's emulator does it: a program alone has none.
        let handler = command.last().filter(|_| command.len() > 1).cloned();
        let said = overrides.working_dir.or(config.working_dir.as_deref());
        let directory = said
            .filter(|directory| !directory.is_empty())
            .unwrap_or("/");
        if !directory.starts_with('/') {
            return Err(UsageError(format!(
                "WORKDIR `{directory}` does not begin with a slash"
            )))
            .hint("name a directory of the image with `--workdir`, from the root on");
        }
        Ok(Self {
            command,
            handler,
            directory: directory.to_owned(),
        })
    }
}

/// ENV of the image. Of several values for one name the last counts.
pub(crate) fn image_environment(config: &ImageConfig) -> BTreeMap<String, String> {
    let pairs = config.env.iter();
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (pair.clone(), String::new()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tierce_oci::Platform;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn config(entrypoint: &str, cmd: &str, working_dir: Option<&str>) -> ImageConfig {
        ImageConfig {
            platform: Platform::linux("amd64"),
            created: None,
            diff_ids: Vec::new(),
            history: Vec::new(),
            env: vec!["A=1".to_owned(), "B=x=y".to_owned(), "A=2".to_owned()],
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            working_dir: working_dir.map(str::to_owned),
            user: None,
            labels: BTreeMap::new(),
            exposed_ports: Vec::new(),
            volumes: Vec::new(),
            stop_signal: None,
        }
    }

    #[test]
    fn overrides_take_the_place_of_what_the_image_says() {
        let image = config("/entry -x", "app.handler", Some("/var/task"));
        for (entrypoint, cmd, working_dir, command, handler, directory) in [
            (
                "",
                "",
                None,
                "/entry -x app.handler",
                Some("app.handler"),
                "/var/task",
            ),
            (
                "",
                "other.go",
                None,
                "/entry -x other.go",
                Some("other.go"),
                "/var/task",
            ),
            (
                "/b",
                "",
                Some("/"),
                "/b app.handler",
                Some("app.handler"),
                "/",
            ),
            ("/b", "c d", None, "/b c d", Some("d"), "/var/task"),
        ] {
            let (entrypoint, cmd) = (words(entrypoint), words(cmd));
            let overrides = Overrides {
                entrypoint: &entrypoint,
                cmd: &cmd,
                working_dir,
            };
            let start = Start::of(&image, &overrides).unwrap();
            assert_eq!(
                start,
                Start {
                    command: words(command),
                    handler: handler.map(str::to_owned),
                    directory: directory.to_owned(),
                }
            );
        }
    }

    #[test]
    fn a_program_alone_has_no_handler() {
        let start = Start::of(&config("/bootstrap", "", None), &Overrides::default()).unwrap();
        assert_eq!(start.handler, None);
        assert_eq!(start.directory, "/");
    }

    #[test]
    fn what_cannot_start_is_told_before() {
        for (image, told) in [
            (config("", "", None), "neither ENTRYPOINT nor CMD"),
            (config("/lambda-entrypoint.sh", "", None), "there are 0"),
            (config("/lambda-entrypoint.sh", "a b", None), "there are 2"),
            (config("/bootstrap", "", Some("task")), "begin with a slash"),
        ] {
            let error = Start::of(&image, &Overrides::default()).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let environment = image_environment(&config("/a", "", None));
        let pairs: Vec<_> = environment
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(pairs, [("A", "2"), ("B", "x=y")]);
    }
}
