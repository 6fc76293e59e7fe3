//! Python packages, by uv or pip.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::secrets::without_userinfo;
use super::target::{Glibc, Machine, PythonVersion, wheel_platforms};
use super::tool::{Tool, ask, find, option, words};
use crate::diagnostic::Hinted as _;
use crate::environment::Variables;

/// What wheels are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PythonTarget {
    pub(crate) machine: Machine,
    pub(crate) version: PythonVersion,
    pub(crate) glibc: Glibc,
}

/// Who installs.
#[derive(Debug, Clone)]
pub(crate) enum Installer {
    Uv(Tool),
    Pip(Tool),
}

/// What the packages are named in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// A file of requirements, for pip and uv.
    Requirements,
    /// `uv.lock`, which uv alone reads.
    UvLock,
    /// `poetry.lock`, which poetry alone reads.
    PoetryLock,
}

/// What makes pip take another machine's place.
const PIP_FOR_TARGET: &str = include_str!("pip_for_target.py");

/// The shortest question for pip's version: pip itself is not loaded.
const VERSION_OF_PIP: &str = "import sys; sys.path[:] = [entry for entry in sys.path if entry]; import pip; print(pip.__version__)";

impl Manifest {
    /// By the file's name; `pyproject.toml` leads to the lock beside it.
    pub(crate) fn of(file: &Path) -> Result<(Self, PathBuf), String> {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let beside = |name: &str| Some(file.with_file_name(name)).filter(|file| file.is_file());
        let ending = file.extension().and_then(OsStr::to_str);
        match name {
            "uv.lock" => Ok((Self::UvLock, file.to_owned())),
            "poetry.lock" => Ok((Self::PoetryLock, file.to_owned())),
            "pyproject.toml" => beside("uv.lock")
                .map(|lock| (Self::UvLock, lock))
                .or_else(|| beside("poetry.lock").map(|lock| (Self::PoetryLock, lock)))
                .ok_or_else(|| {
                    "`pyproject.toml` has neither `uv.lock` nor `poetry.lock` beside it: \
                     `uv lock` or `poetry lock` makes one"
                        .to_owned()
                }),
            _ if matches!(ending, Some("lock" | "toml")) => Err(format!(
                "`{name}` is not understood: dependencies of Python stand in a file of requirements, \
                 `uv.lock`, `poetry.lock`, or `pyproject.toml` beside one of these"
            )),
            _ => Ok((Self::Requirements, file.to_owned())),
        }
    }
}

impl Installer {
    /// uv when there is one, else the pip of `python3`.
    pub(crate) async fn find(variables: &Variables, directory: &Path) -> Result<Self> {
        if let Some(uv) = find_uv(variables, directory).await {
            return Ok(Self::Uv(uv));
        }
        if let Some(program) = find("python3", variables) {
            let arguments = ["-c", VERSION_OF_PIP];
            let environment = environment_of_pip(variables);
            if let Some(version) = ask(&program, &arguments, directory, environment).await {
                return Ok(Self::Pip(Tool {
                    name: "pip",
                    program,
                    version,
                }));
            }
        }
        Err(anyhow::anyhow!(
            "there is neither `uv` nor a `python3` with pip on PATH"
        ))
        .hint("install one of them: `pip install uv`, or python3-pip of the distribution")
    }

    pub(crate) fn tool(&self) -> &Tool {
        match self {
            Self::Uv(tool) | Self::Pip(tool) => tool,
        }
    }

    /// The arguments for an installation into `target` of what the file at `requirements` says.
    pub(crate) fn arguments(
        &self,
        requirements: &Path,
        has_hashes: bool,
        python: PythonTarget,
        target: &Path,
    ) -> Vec<OsString> {
        let PythonTarget {
            machine,
            version,
            glibc,
        } = python;
        let mut arguments = match self {
            Self::Uv(_) => {
                let platform = format!(
                    "{}-manylinux_2_{}",
                    machine.of_linux(),
                    glibc.of_wheels().minor
                );
                let mut arguments = words([
                    "pip",
                    "install",
                    // Else uv runs what the context has as `.venv/bin/python`, to ask what it is.
                    "--system",
                    "--no-progress",
                    "--link-mode=copy",
                    "--no-compile-bytecode",
                    "--only-binary=:all:",
                ]);
                arguments.push(option("--python-platform", platform));
                arguments
            }
            Self::Pip(_) => {
                let mut arguments = words(["-c", PIP_FOR_TARGET]);
                arguments.push(version.to_string().into());
                arguments.push(machine.of_linux().into());
                arguments.extend(words([
                    "install",
                    "--disable-pip-version-check",
                    "--no-input",
                    "--no-warn-conflicts",
                    "--progress-bar=off",
                    "--no-compile",
                    "--only-binary=:all:",
                    "--implementation=cp",
                ]));
                let platforms = wheel_platforms(machine, glibc).into_iter();
                arguments.extend(platforms.map(|platform| option("--platform", platform)));
                arguments
            }
        };
        arguments.push(option("--python-version", version.to_string()));
        arguments.push(option("--target", target));
        if has_hashes {
            arguments.push("--require-hashes".into());
        }
        // The path is absolute, so that no name of a file looks like an option.
        arguments.push(option("--requirement", requirements));
        arguments
    }

    /// What the tool finds in its environment.
    pub(crate) fn environment(&self, variables: &Variables) -> Vec<(OsString, OsString)> {
        match self {
            Self::Uv(_) => environment_of_uv(variables),
            Self::Pip(_) => environment_of_pip(variables),
        }
    }
}

async fn find_uv(variables: &Variables, directory: &Path) -> Option<Tool> {
    let program = find("uv", variables)?;
    let environment = environment_of_uv(variables);
    let answer = ask(&program, &["--version"], directory, environment).await?;
    Some(Tool {
        name: "uv",
        program,
        version: answer,
    })
}

/// The tool that turns a lock into a file of requirements, and how it does.
pub(crate) async fn exporter(
    manifest: Manifest,
    lock: &Path,
    exported: &Path,
    variables: &Variables,
) -> Result<(Tool, Vec<OsString>, Vec<(OsString, OsString)>)> {
    let directory = lock.parent().unwrap_or(lock);
    match manifest {
        Manifest::PoetryLock => {
            let environment = variables_but(variables, |name| name == "VIRTUAL_ENV");
            let tool = match find("poetry", variables) {
                Some(program) => ask(&program, &["--version"], directory, environment.clone())
                    .await
                    .map(|version| Tool {
                        name: "poetry",
                        program,
                        version,
                    }),
                None => None,
            };
            let tool = tool
                .context("`poetry.lock` is read by poetry, which is not on PATH")
                .hint(
                    "install it with `pip install poetry poetry-plugin-export`, or name a file of \
                     requirements that `poetry export` has written",
                )?;
            let mut arguments = words([
                "export",
                "--no-interaction",
                "--no-ansi",
                "--format=requirements.txt",
            ]);
            arguments.push(option("--output", exported));
            Ok((tool, arguments, environment))
        }
        Manifest::UvLock | Manifest::Requirements => {
            let tool = find_uv(variables, directory)
                .await
                .context("`uv.lock` is read by uv, which is not on PATH")
                .hint(
                    "install it with `pip install uv`, or name a file of requirements that \
                     `uv export` has written",
                )?;
            let mut arguments = words([
                "export",
                "--quiet",
                "--frozen",
                // `dev` is one of them.
                "--no-default-groups",
                "--no-emit-project",
                "--format=requirements-txt",
            ]);
            arguments.push(option("--project", directory));
            arguments.push(option("--output-file", exported));
            Ok((tool, arguments, environment_of_uv(variables)))
        }
    }
}

/// Variables for pip that say where packages come from and how they are reached; others, such as
/// `PIP_TARGET` and `PIP_USER`, would change what is made.
const OF_PIP: [&str; 17] = [
    "PIP_CACHE_DIR",
    "PIP_CERT",
    "PIP_CLIENT_CERT",
    "PIP_CONFIG_FILE",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_KEYRING_PROVIDER",
    "PIP_NO_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_PRE",
    "PIP_PROXY",
    "PIP_RETRIES",
    "PIP_TIMEOUT",
    "PIP_TRUSTED_HOST",
    "PIP_USE_FEATURE",
];

/// Variables for uv of the same kind, besides those that begin with `UV_INDEX`. Others, such as
/// `UV_NO_BINARY` and `UV_OVERRIDE`, would change what is made.
const OF_UV: [&str; 38] = [
    "UV_AZURE_ENDPOINT_URL",
    "UV_CACHE_DIR",
    "UV_CONCURRENT_DOWNLOADS",
    "UV_CONCURRENT_INSTALLS",
    "UV_CONFIG_FILE",
    "UV_CREDENTIALS_DIR",
    "UV_DEFAULT_INDEX",
    "UV_EXCLUDE_NEWER",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_GCS_ENDPOINT_URL",
    "UV_HTTP_CONNECT_TIMEOUT",
    "UV_HTTP_RETRIES",
    "UV_HTTP_TIMEOUT",
    "UV_INSECURE_HOST",
    "UV_INSECURE_NO_ZIP_VALIDATION",
    "UV_KEYRING_PROVIDER",
    "UV_LOCK_TIMEOUT",
    "UV_MANAGED_PYTHON",
    "UV_NATIVE_TLS",
    "UV_NO_CACHE",
    "UV_NO_CONFIG",
    "UV_NO_INDEX",
    "UV_NO_MANAGED_PYTHON",
    "UV_OFFLINE",
    "UV_PRERELEASE",
    "UV_PYTHON",
    "UV_PYTHON_DOWNLOADS",
    "UV_PYTHON_DOWNLOADS_JSON_URL",
    "UV_PYTHON_INSTALL_DIR",
    "UV_PYTHON_INSTALL_MIRROR",
    "UV_PYTHON_PREFERENCE",
    "UV_REQUEST_TIMEOUT",
    "UV_RESOLUTION",
    "UV_S3_ENDPOINT_URL",
    "UV_STACK_SIZE",
    "UV_SYSTEM_CERTS",
    "UV_SYSTEM_PYTHON",
];

/// Variables that decide which packages are found.
const DECISIVE: [&str; 17] = [
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_NO_INDEX",
    "PIP_PRE",
    "UV_DEFAULT_INDEX",
    "UV_EXCLUDE_NEWER",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_INDEX",
    "UV_INDEX_STRATEGY",
    "UV_INDEX_URL",
    "UV_NO_CONFIG",
    "UV_NO_INDEX",
    "UV_PRERELEASE",
    "UV_RESOLUTION",
    "UV_CONFIG_FILE",
];

/// What of the environment belongs to the key of a tree: nothing secret.
pub(crate) fn decisive(variables: &Variables) -> String {
    let set = DECISIVE.iter().filter_map(|name| {
        let value = variables.get(name)?.to_string_lossy();
        Some(format!("{name}={}\n", without_userinfo(&value)))
    });
    set.collect()
}

fn environment_of_pip(variables: &Variables) -> Vec<(OsString, OsString)> {
    let mut environment = variables_but(variables, |name| {
        name.starts_with("PIP_") && !OF_PIP.contains(&name)
    });
    // pip.conf may say otherwise: pip then refuses a target, or leaves half of the packages out.
    environment.push(("PIP_USER".into(), "0".into()));
    environment.push(("PIP_NO_DEPS".into(), "0".into()));
    environment.push(("PIP_REQUIRE_VIRTUALENV".into(), "0".into()));
    environment.push(("PIP_ROOT_USER_ACTION".into(), "ignore".into()));
    environment
}

fn environment_of_uv(variables: &Variables) -> Vec<(OsString, OsString)> {
    variables_but(variables, |name| {
        name.starts_with("UV_") && !name.starts_with("UV_INDEX") && !OF_UV.contains(&name)
    })
}

/// All variables but those that `leaves` names.
pub(crate) fn variables_but(
    variables: &Variables,
    leaves: impl Fn(&str) -> bool,
) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .filter(|(name, _)| name.to_str().is_none_or(|name| !leaves(name)))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &'static str) -> Tool {
        Tool {
            name,
            program: PathBuf::from("/bin/x"),
            version: "1".to_owned(),
        }
    }

    fn arguments(installer: &Installer, minor: u32, file: &str, has_hashes: bool) -> Vec<String> {
        let python = PythonTarget {
            machine: Machine::Aarch64,
            version: PythonVersion { minor: 12 },
            glibc: Glibc { minor },
        };
        let arguments = installer.arguments(Path::new(file), has_hashes, python, Path::new("/t"));
        let texts = arguments.into_iter().map(OsString::into_string);
        texts.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn both_tools_are_told_the_same_target() {
        let uv = arguments(&Installer::Uv(tool("uv")), 34, "/c/-r.txt", true);
        for argument in [
            "--system",
            "--python-platform=aarch64-manylinux_2_34",
            "--python-version=3.12",
            "--only-binary=:all:",
            "--target=/t",
            "--require-hashes",
            "--requirement=/c/-r.txt",
        ] {
            assert!(uv.iter().any(|given| given == argument), "{argument}");
        }
        let pip = arguments(&Installer::Pip(tool("pip")), 26, "/c/r.txt", false);
        assert_eq!(pip[2..5], ["3.12", "aarch64", "install"]);
        let platforms: Vec<_> = pip
            .iter()
            .filter_map(|argument| argument.strip_prefix("--platform="))
            .collect();
        assert_eq!(
            platforms,
            [
                "manylinux_2_17_aarch64",
                "manylinux2014_aarch64",
                "linux_aarch64"
            ]
        );
        assert!(!pip.iter().any(|argument| argument == "--require-hashes"));
    }

    #[test]
    fn what_decides_has_no_secrets_and_what_changes_the_place_is_left_out() {
        let variables = Variables::of([
            ("PIP_INDEX_URL", "https://me:secret@host/simple"),
            ("PIP_TARGET", "/elsewhere"),
            ("UV_INDEX_TEAM_PASSWORD", "secret"),
            ("UV_NO_BINARY", "1"),
            ("UV_DEV", "1"),
            ("HOME", "/home/me"),
        ]);
        assert_eq!(
            decisive(&variables),
            "PIP_INDEX_URL=https://****@host/simple\n"
        );
        let names = |environment: Vec<(OsString, OsString)>| {
            let names = environment.into_iter().map(|(name, _)| name);
            names.collect::<Vec<_>>()
        };
        let pip = names(environment_of_pip(&variables));
        assert!(pip.contains(&"PIP_INDEX_URL".into()) && pip.contains(&"HOME".into()));
        assert!(!pip.contains(&"PIP_TARGET".into()));
        let uv = names(environment_of_uv(&variables));
        assert_eq!(
            uv,
            [
                "HOME",
                "PIP_INDEX_URL",
                "PIP_TARGET",
                "UV_INDEX_TEAM_PASSWORD"
            ]
        );
    }

    #[test]
    fn files_are_told_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(
            Manifest::of(&at("pyproject.toml"))
                .unwrap_err()
                .contains("uv lock")
        );
        assert!(
            Manifest::of(&at("Pipfile.lock"))
                .unwrap_err()
                .contains("not understood")
        );
        for (name, manifest) in [
            ("requirements.txt", Manifest::Requirements),
            ("-r.in", Manifest::Requirements),
            ("uv.lock", Manifest::UvLock),
            ("poetry.lock", Manifest::PoetryLock),
        ] {
            assert_eq!(Manifest::of(&at(name)).unwrap(), (manifest, at(name)));
        }
        std::fs::write(at("poetry.lock"), "").unwrap();
        assert_eq!(
            Manifest::of(&at("pyproject.toml")).unwrap(),
            (Manifest::PoetryLock, at("poetry.lock"))
        );
    }
}
