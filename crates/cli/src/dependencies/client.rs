//! The Runtime Interface Client on a base that has none: AWS's package for Python in a layer of its
//! own, and the settings that start it.
//!
//! The package has a folder of its own, below `/opt`, where the links of a base need not be known, and
//! PYTHONPATH leads there. `python -m` looks in the working directory first, so what the function
//! brings itself is found before it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_image::{BaseImage, ConfigEdits, EnvEdit};
use tierce_lambda::{AWS_ENTRYPOINT, BaseFacts, TASK_ROOT};

use super::{Dependencies, Language};
use crate::config_file::RuntimeClient;
use crate::diagnostic::Hinted as _;
use crate::plan::LayerPlan;

/// Where the client is.
const ROOT: &str = "/opt/runtime-client";

/// What AWS's bases have already.
pub(crate) const NOT_NEEDED: &str = "AWS's bases have the client: leave `runtime-client` out";

/// How the client starts on one base.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClientStart {
    /// The path of the base's Python.
    interpreter: Option<String>,
    /// WORKDIR, when the base has none.
    pub(crate) working_dir: Option<String>,
    /// Whether the base sets PYTHONPATH.
    has_path: bool,
}

/// The layer of the client, without the version of Python.
pub(crate) fn layer(client: &RuntimeClient) -> LayerPlan {
    let mut layer = LayerPlan::of_files("runtime-client", Vec::new());
    let mut requirements = client.packages.join("\n");
    requirements.push('\n');
    layer.dependencies = Some(Dependencies {
        language: Language::Python {
            version: None,
            glibc: None,
        },
        file: PathBuf::from("runtime-client.txt"),
        requirements: Some(requirements),
        shown: "runtime-client".to_owned(),
        to: Some(format!("{ROOT}/")),
        include: Vec::new(),
        exclude: Vec::new(),
    });
    layer
}

impl ClientStart {
    /// Finds out how the client starts on `base`, of which `facts` are known.
    pub(crate) fn find(base: &BaseImage, facts: &BaseFacts, edits: &ConfigEdits) -> Result<Self> {
        let config = base.image.config();
        if config.entrypoint.first().map(String::as_str) == Some(AWS_ENTRYPOINT) {
            return Err(
                anyhow::anyhow!("the base has a Runtime Interface Client of its own")
                    .hint(NOT_NEEDED),
            );
        }
        let variable = |name: &str| {
            let mut env = config.env.iter();
            env.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let has_directory = config
            .working_dir
            .as_ref()
            .is_some_and(|directory| !directory.is_empty() && directory != "/");
        let mut start = Self {
            interpreter: None,
            working_dir: (!has_directory).then(|| TASK_ROOT.to_owned()),
            has_path: variable("PYTHONPATH").is_some(),
        };
        if edits.entrypoint.is_none() {
            let interpreter = facts.interpreter.clone();
            start.interpreter = Some(interpreter.context(
                "no Python was found in the base, for which the runtime client could be added",
            )
            .hint(
                "the client of other languages comes with the function: `tierce lint` says how; a base \
                 with Python has it on PATH, or in /usr/local/bin or /usr/bin",
            )?);
        }
        Ok(start)
    }

    /// The settings of an image with the client.
    pub(crate) fn edit(&self, edits: &mut ConfigEdits) {
        if let (None, Some(python)) = (&edits.entrypoint, &self.interpreter) {
            let words = [python, "-m", RuntimeClient::PACKAGE];
            edits.entrypoint = Some(words.map(str::to_owned).to_vec());
        }
        if edits.working_dir.is_none() {
            edits.working_dir.clone_from(&self.working_dir);
        }
        let own = edits
            .env
            .iter_mut()
            .rev()
            .find(|(name, _)| name == "PYTHONPATH");
        let edit = match own {
            Some((_, EnvEdit::Set(value))) => {
                value.push(':');
                value.push_str(ROOT);
                return;
            }
            Some(_) => EnvEdit::Append(format!(":{ROOT}")),
            None if self.has_path => EnvEdit::Append(format!(":{ROOT}")),
            None => EnvEdit::Set(ROOT.to_owned()),
        };
        edits.env.push(("PYTHONPATH".to_owned(), edit));
    }
}

/// The packages in a tree, as requirements, sorted.
pub(super) fn packages_in(tree: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(tree).into_iter().flatten().flatten();
    let mut packages: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (name, version) = name.strip_suffix(".dist-info")?.split_once('-')?;
            Some(format!("{}=={version}", name.replace('_', "-")))
        })
        .collect();
    packages.sort();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_found_behind_what_the_function_brings() {
        let start = ClientStart {
            interpreter: Some("/usr/bin/python3.11".to_owned()),
            working_dir: Some("/var/task".to_owned()),
            has_path: false,
        };
        let mut edits = ConfigEdits::default();
        start.edit(&mut edits);
        assert_eq!(
            edits.entrypoint.unwrap(),
            ["/usr/bin/python3.11", "-m", "awslambdaric"]
        );
        assert_eq!(edits.working_dir.as_deref(), Some("/var/task"));
        let path = |before: Option<EnvEdit>, has_path: bool| {
            let start = ClientStart {
                has_path,
                ..ClientStart::default()
            };
            let before = before.map(|edit| ("PYTHONPATH".to_owned(), edit));
            let mut edits = ConfigEdits {
                entrypoint: Some(vec!["/own".to_owned()]),
                env: before.into_iter().collect(),
                ..ConfigEdits::default()
            };
            start.edit(&mut edits);
            assert_eq!(edits.entrypoint.unwrap(), ["/own"], "what is said counts");
            edits.env.pop().unwrap().1
        };
        let ours = || ":/opt/runtime-client".to_owned();
        assert_eq!(
            path(None, false),
            EnvEdit::Set("/opt/runtime-client".to_owned())
        );
        assert_eq!(path(None, true), EnvEdit::Append(ours()));
        let set = EnvEdit::Set("/x".to_owned());
        assert_eq!(
            path(Some(set), true),
            EnvEdit::Set("/x:/opt/runtime-client".to_owned())
        );
        let prepend = EnvEdit::Prepend("/x:".to_owned());
        assert_eq!(path(Some(prepend), true), EnvEdit::Append(ours()));
    }
}
