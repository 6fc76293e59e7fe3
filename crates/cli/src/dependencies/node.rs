//! Packages of Node, by the manager whose lock file is there.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::python::variables_but;
use super::secrets::{is_secret_of_npm, without_userinfo};
use super::target::Machine;
use super::tool::{Tool, ask, find, option, words};
use crate::diagnostic::Hinted as _;
use crate::environment::Variables;

/// What packages are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeTarget {
    pub(crate) machine: Machine,
    pub(crate) has_musl: bool,
    /// Whether packages may run what they bring for the time of their installation.
    pub(crate) scripts: bool,
}

/// Who installs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manager {
    Npm,
    Pnpm,
    Yarn,
}

/// A lock file with what stands beside it.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) manager: Manager,
    lock: PathBuf,
    lock_text: String,
    package: Value,
    /// Settings of the project: read where they are, for there may be credentials in them.
    settings: Vec<(PathBuf, String)>,
}

/// How npm warns of a file that it could not write, as when the disk is full. It goes on, and succeeds.
pub(crate) const LOST_A_FILE: &str = "TAR_ENTRY_ERROR";

/// From which version on a manager can install for another processor.
const FOREIGN_NPM: (u32, u32) = (10, 3);
const FOREIGN_PNPM: (u32, u32) = (10, 14);

impl Manager {
    /// By the lock's name; `package.json` leads to the lock beside it.
    pub(crate) fn of(file: &Path) -> Result<(Self, PathBuf), String> {
        const LOCKS: [(&str, Manager); 4] = [
            ("npm-shrinkwrap.json", Manager::Npm),
            ("package-lock.json", Manager::Npm),
            ("pnpm-lock.yaml", Manager::Pnpm),
            ("yarn.lock", Manager::Yarn),
        ];
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if let Some((_, manager)) = LOCKS.iter().find(|(lock, _)| *lock == name) {
            return Ok((*manager, file.to_owned()));
        }
        if name != "package.json" {
            return Err(format!(
                "`{name}` is not understood: dependencies of Node stand in `package-lock.json`, \
                 `pnpm-lock.yaml` or `yarn.lock`"
            ));
        }
        let beside = LOCKS
            .iter()
            .map(|(lock, manager)| (*manager, file.with_file_name(lock)))
            .find(|(_, lock)| lock.is_file());
        beside.ok_or_else(|| {
            "`package.json` has no lock beside it: `npm install --package-lock-only` makes one"
                .to_owned()
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Pnpm => "pnpm",
            Self::Yarn => "yarn",
        }
    }

    /// The manager on PATH, if it can install for `target`.
    pub(crate) async fn find(
        self,
        variables: &Variables,
        directory: &Path,
        target: NodeTarget,
    ) -> Result<Tool> {
        let name = self.name();
        let tool = match find(name, variables) {
            Some(program) => version_of(&program, variables, directory)
                .await
                .map(|version| Tool {
                    name,
                    program,
                    version,
                }),
            None => None,
        };
        let tool = tool
            .with_context(|| format!("the lock is read by {name}, which is not on PATH"))
            .hint(match self {
                Self::Npm => "install Node with npm",
                Self::Pnpm => "install it with `npm install -g pnpm`",
                Self::Yarn => "install it with `npm install -g yarn`",
            })?;
        let needed = match self {
            Self::Npm => Some(FOREIGN_NPM),
            Self::Pnpm => Some(FOREIGN_PNPM),
            Self::Yarn => None,
        };
        if Machine::here() == Some(target.machine) && !target.has_musl {
            return Ok(tool);
        }
        let (major, minor) = major_and_minor(&tool.version);
        match needed {
            Some(needed) if (major, minor) >= needed => Ok(tool),
            Some((major, minor)) => Err(anyhow::anyhow!(
                "{name} {} takes packages for this machine alone, not for {}",
                tool.version,
                target.machine.of_linux()
            )
            .hint(format!("{name} {major}.{minor} and later can be told"))),
            None => Err(anyhow::anyhow!(
                "yarn takes packages for this machine alone, not for {}",
                target.machine.of_linux()
            )
            .hint("build on such a machine, or use the lock of npm or pnpm")),
        }
    }
}

/// The version of the Node that scripts run in: what they build is for it.
pub(crate) async fn version_of_node(variables: &Variables, directory: &Path) -> Option<String> {
    let node = find("node", variables)?;
    ask(&node, &["--version"], directory, environment(variables)).await
}

/// npm's version stands beside its program, so that Node need not start for it.
async fn version_of(program: &Path, variables: &Variables, directory: &Path) -> Option<String> {
    let real = program.canonicalize().ok()?;
    if real.ends_with("bin/npm-cli.js") {
        let package = real.parent()?.parent()?.join("package.json");
        let package: Value = serde_json::from_slice(&fs::read(package).ok()?).ok()?;
        return package["version"].as_str().map(str::to_owned);
    }
    ask(program, &["--version"], directory, environment(variables)).await
}

fn major_and_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}

impl Project {
    /// Reads lock and `package.json`, and refuses what is not in a registry: it is not copied.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let (manager, lock) = Manager::of(file).map_err(anyhow::Error::msg)?;
        let lock_text = read(&lock)?;
        let path = lock.with_file_name("package.json");
        let package: Value = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let local = match manager {
            Manager::Npm => local_of_npm(&lock_text)
                .with_context(|| format!("{} is not a lock of npm", lock.display()))?,
            Manager::Pnpm => local_of_pnpm(&lock_text),
            Manager::Yarn if lock_text.contains("\n__metadata:") => {
                return Err(anyhow::anyhow!("the lock is of Yarn 2 or later"))
                    .hint("npm, pnpm and Yarn 1 are understood");
            }
            Manager::Yarn => local_of_yarn(&lock_text),
        };
        if let Some(local) = local {
            return Err(anyhow::anyhow!(
                "`{local}` is a folder of the project and not a package of a registry"
            )
            .hint(
                "publish it, or bundle the function with it (esbuild, ncc) and add the bundle: \
                 `add = [{ from = \"dist/\", to = … }]`",
            ));
        }
        let names: &[&str] = match manager {
            Manager::Npm => &[".npmrc"],
            Manager::Pnpm => &[".npmrc", "pnpm-workspace.yaml"],
            Manager::Yarn => &[".npmrc", ".yarnrc"],
        };
        let mut settings = Vec::new();
        for path in names.iter().map(|name| lock.with_file_name(name)) {
            if path.exists() {
                let text = read(&path)?;
                settings.push((path, text));
            }
        }
        Ok(Self {
            manager,
            lock,
            lock_text,
            package,
            settings,
        })
    }

    /// What the tree depends on, without secrets.
    pub(crate) fn parts(&self, scripts: bool) -> Vec<Vec<u8>> {
        const DECISIVE: [&str; 10] = [
            "bundleDependencies",
            "bundledDependencies",
            "dependencies",
            "optionalDependencies",
            "overrides",
            "packageManager",
            "peerDependencies",
            "peerDependenciesMeta",
            "pnpm",
            "resolutions",
        ];
        let mut parts = vec![without_userinfo(&self.lock_text).into_bytes()];
        // A new version number of the function itself is no new dependency.
        for name in DECISIVE.iter().chain(scripts.then_some(&"scripts")) {
            let member = self.package.get(name).unwrap_or(&Value::Null);
            parts.push(tierce_oci::json::to_canonical(member));
        }
        for (path, text) in &self.settings {
            let name = path.file_name().unwrap_or_default();
            parts.push(name.as_encoded_bytes().to_vec());
            parts.push(without_secrets(text).into_bytes());
        }
        parts
    }

    /// Packages for one machine that a lock of npm lacks: who wants them, and what. They were left out
    /// by <https://github.com/npm/cli/issues/4828>, and then are missing when the function runs.
    pub(crate) fn lacks(&self, machine: Machine) -> Option<(String, String)> {
        let lock: Value = match self.manager {
            Manager::Npm => serde_json::from_str(&self.lock_text).ok()?,
            Manager::Pnpm | Manager::Yarn => return None,
        };
        let packages = lock["packages"].as_object()?;
        let names: BTreeSet<&str> = packages.keys().map(|path| name_of(path)).collect();
        packages.iter().find_map(|(path, package)| {
            let wanted = package["optionalDependencies"].as_object()?;
            let missing = wanted.keys().find(|name| {
                let words: Vec<&str> = name.split(['-', '/', '.', '_']).collect();
                let is_for_target = words.contains(&"linux") && words.contains(&machine.of_node());
                is_for_target && !names.contains(name.as_str())
            })?;
            Some((name_of(path).to_owned(), missing.clone()))
        })
    }

    /// The texts in which there may be credentials.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let settings = self.settings.iter().map(|(_, text)| text.as_str());
        settings.chain([self.lock_text.as_str()])
    }

    /// Puts what the manager needs into a folder of its own. Settings are links: what is secret in
    /// them is not written anywhere.
    pub(crate) fn set_up(&self, folder: &Path) -> Result<()> {
        let context = || format!("could not prepare {}", folder.display());
        fs::create_dir_all(folder).with_context(context)?;
        let package = serde_json::to_vec(&self.package)?;
        fs::write(folder.join("package.json"), package).with_context(context)?;
        let lock = self.lock.file_name().unwrap_or_default();
        fs::write(folder.join(lock), &self.lock_text).with_context(context)?;
        for (path, _) in &self.settings {
            let name = path.file_name().unwrap_or_default();
            symlink(path, folder.join(name)).with_context(context)?;
        }
        Ok(())
    }

    /// Whether the project itself has something to say about a setting.
    fn sets(&self, name: &str) -> bool {
        self.settings.iter().any(|(_, text)| {
            let names = text
                .lines()
                .filter_map(|line| line.split(['=', '[']).next());
            names.map(str::trim).any(|found| found == name)
        })
    }

    /// The arguments for an installation in the folder that was set up.
    pub(crate) fn arguments(&self, target: NodeTarget) -> Vec<OsString> {
        let mut arguments = match self.manager {
            Manager::Npm => words([
                "ci",
                "--omit=dev",
                "--no-audit",
                "--no-fund",
                // The usual one: no warning goes unheard.
                "--loglevel=notice",
            ]),
            Manager::Pnpm => words([
                "install",
                "--frozen-lockfile",
                "--prod",
                "--reporter=append-only",
                // Node's own way to lay packages out, and files instead of links into the store.
                "--config.node-linker=hoisted",
                "--config.package-import-method=copy",
            ]),
            Manager::Yarn => words([
                "install",
                "--frozen-lockfile",
                "--production",
                "--non-interactive",
                "--no-progress",
            ]),
        };
        if !target.scripts {
            arguments.push("--ignore-scripts".into());
        }
        if self.manager == Manager::Npm {
            let settings = USUAL_OF_NPM.iter();
            let usual = settings.filter(|(name, _)| !self.sets(name));
            arguments.extend(usual.map(|(name, value)| option(&format!("--{name}"), value)));
        }
        if self.manager != Manager::Yarn {
            let libc = if target.has_musl { "musl" } else { "glibc" };
            arguments.push(option("--cpu", target.machine.of_node()));
            arguments.push("--os=linux".into());
            arguments.push(option("--libc", libc));
        }
        arguments
    }
}

/// Settings, as they belong to a key.
pub(crate) fn without_secrets(settings: &str) -> String {
    let lines = settings.lines().filter(|line| !is_secret_of_npm(line));
    let lines: Vec<&str> = lines.collect();
    without_userinfo(&lines.join("\n"))
}

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("could not read {}", path.display()))?;
    // The mark that Windows puts at the beginning; Node leaves it out too.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}

/// The name of the package at a path in a lock of npm.
fn name_of(path: &str) -> &str {
    path.rsplit("node_modules/").next().unwrap_or(path)
}

/// The first package of a lock that is a folder of the project.
fn local_of_npm(lock: &str) -> Result<Option<String>> {
    let lock: Value = serde_json::from_str(lock)?;
    let packages = lock["packages"].as_object().into_iter().flatten();
    let local = packages
        .filter(|(path, _)| !path.is_empty())
        .find(|(_, package)| {
            let is_file = |text: &str| text.starts_with("file:");
            package["link"] == true || package["resolved"].as_str().is_some_and(is_file)
        });
    let local = local.map(|(path, _)| name_of(path).to_owned());
    Ok(local.or_else(|| local_of_old_npm(&lock)))
}

/// The same in a lock that npm 6 has written, where packages stand within those that need them.
fn local_of_old_npm(lock: &Value) -> Option<String> {
    // serde_json bounds how deep a lock can be.
    let packages = lock["dependencies"].as_object()?;
    packages.iter().find_map(|(name, package)| {
        let version = package["version"].as_str().unwrap_or_default();
        if version.starts_with("file:") {
            return Some(name.clone());
        }
        local_of_old_npm(package)
    })
}

fn local_of_pnpm(lock: &str) -> Option<String> {
    let line = lock.lines().find(|line| {
        let value = line.split_once(": ").map_or("", |(_, value)| value);
        value.starts_with("link:") || value.starts_with("file:")
    })?;
    line.split_once(": ").map(|(_, value)| value.to_owned())
}

fn local_of_yarn(lock: &str) -> Option<String> {
    let entries = lock.lines().filter(|line| !line.starts_with([' ', '#']));
    let mut local = entries.filter(|line| line.contains("@file:") || line.contains("@link:"));
    let entry = local.next()?;
    Some(entry.trim_end_matches(':').trim_matches('"').to_owned())
}

/// Settings of npm that say how packages are reached; others, such as `omit` and `prefix`, would
/// change what is made. Those of one registry begin with its name.
const OF_NPM: [&str; 19] = [
    "ca",
    "cache",
    "cafile",
    "cert",
    "fetch-retries",
    "fetch-retry-factor",
    "fetch-retry-maxtimeout",
    "fetch-retry-mintimeout",
    "fetch-timeout",
    "globalconfig",
    "https-proxy",
    "key",
    "legacy-peer-deps",
    "maxsockets",
    "noproxy",
    "proxy",
    "registry",
    "strict-ssl",
    "userconfig",
];

/// Settings that change what is made, and what they usually are. The user's own do not count, for the
/// same project is to be the same on every machine; the project's do.
const USUAL_OF_NPM: [(&str, &str); 5] = [
    ("bin-links", "true"),
    ("global", "false"),
    ("include", "prod"),
    ("install-links", "false"),
    ("install-strategy", "hoisted"),
];

/// What a manager finds in its environment.
pub(crate) fn environment(variables: &Variables) -> Vec<(OsString, OsString)> {
    let mut environment = variables_but(variables, |name| {
        let lower = name.to_ascii_lowercase().replace('_', "-");
        let settings = ["npm-config-", "pnpm-config-"];
        match settings.iter().find_map(|start| lower.strip_prefix(start)) {
            Some(setting) => {
                let of_registry = setting.starts_with("//") || setting.starts_with('@');
                !of_registry && !OF_NPM.contains(&setting)
            }
            // Of an `npm run` that tierce may be part of.
            None => lower.starts_with("npm-package-") || lower.starts_with("npm-lifecycle-"),
        }
    });
    environment.push(("npm_config_update_notifier".into(), "false".into()));
    // pnpm asks nobody then.
    environment.push(("CI".into(), "true".into()));
    // Yarn runs the file of the project that `yarn-path` in `.yarnrc` names, whatever it is asked.
    environment.push(("YARN_IGNORE_PATH".into(), "1".into()));
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_told_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(
            Manager::of(&at("package.json"))
                .unwrap_err()
                .contains("no lock")
        );
        assert!(
            Manager::of(&at("bun.lock"))
                .unwrap_err()
                .contains("not understood")
        );
        fs::write(at("pnpm-lock.yaml"), "").unwrap();
        for (name, manager, lock) in [
            ("package-lock.json", Manager::Npm, "package-lock.json"),
            ("yarn.lock", Manager::Yarn, "yarn.lock"),
            ("package.json", Manager::Pnpm, "pnpm-lock.yaml"),
        ] {
            assert_eq!(Manager::of(&at(name)).unwrap(), (manager, at(lock)));
        }
    }

    #[test]
    fn what_is_no_package_of_a_registry_is_found() {
        let npm = r#"{"packages": {"": {}, "node_modules/a": {"resolved": "https://h/a.tgz"},
            "node_modules/@s/b": {"resolved": "lib/b", "link": true}, "lib/b": {}}}"#;
        assert_eq!(local_of_npm(npm).unwrap().as_deref(), Some("@s/b"));
        let npm = r#"{"packages": {"node_modules/a": {"resolved": "file:a.tgz"}}}"#;
        assert_eq!(local_of_npm(npm).unwrap().as_deref(), Some("a"));
        assert_eq!(local_of_npm(r#"{"packages": {"": {}}}"#).unwrap(), None);
        let npm = r#"{"lockfileVersion": 1, "dependencies": {"a": {"version": "1.0.0",
            "dependencies": {"b": {"version": "file:../b"}}}}}"#;
        assert_eq!(local_of_npm(npm).unwrap().as_deref(), Some("b"));
        assert!(local_of_npm("lock").is_err());
        let pnpm = "importers:\n  .:\n    dependencies:\n      b:\n        version: link:../b\n";
        assert_eq!(local_of_pnpm(pnpm).as_deref(), Some("link:../b"));
        let yarn = "# yarn lockfile v1\n\n\"b@file:./b\":\n  version \"1.0.0\"\n";
        assert_eq!(local_of_yarn(yarn).as_deref(), Some("b@file:./b"));
        assert_eq!(local_of_yarn("a@^1:\n  resolved \"x@file:y\"\n"), None);
    }

    #[test]
    fn the_key_has_what_decides_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let parts = |scripts| {
            let project = Project::read(&folder.path().join("package-lock.json")).unwrap();
            project.parts(scripts)
        };
        write(
            "package.json",
            r#"{"version": "1.0.0", "dependencies": {"a": "1"}}"#,
        );
        write("package-lock.json", r#"{"packages": {}}"#);
        let npmrc = "registry=https://h/\n//h/:_authToken=one\n";
        write(".npmrc", npmrc);
        let first = parts(false);
        assert_ne!(first, parts(true));
        let whole = String::from_utf8(parts(true).concat()).unwrap();
        assert!(
            whole.contains("https://h/") && !whole.contains("one"),
            "{whole}"
        );
        // Neither a release of the function nor a new token is a new dependency.
        write(
            "package.json",
            r#"{"version": "1.0.1", "dependencies": {"a": "1"}}"#,
        );
        write(".npmrc", &npmrc.replace("one", "two"));
        assert_eq!(first, parts(false));
        write(
            "package.json",
            r#"{"version": "1.0.1", "dependencies": {"a": "2"}}"#,
        );
        assert_ne!(first, parts(false));
    }

    #[test]
    fn settings_of_the_project_count_and_those_of_the_user_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("package.json"), "\u{feff}{}").unwrap();
        fs::write(at("package-lock.json"), r#"{"packages": {}}"#).unwrap();
        fs::write(at(".npmrc"), "bin-links = false\ninclude[]=peer\n").unwrap();
        let project = Project::read(&at("package-lock.json")).unwrap();
        let arguments = project.arguments(NodeTarget {
            machine: Machine::Aarch64,
            has_musl: false,
            scripts: false,
        });
        assert!(arguments.contains(&"--install-strategy=hoisted".into()));
        let texts = arguments.iter().map(|argument| argument.to_str().unwrap());
        let own = ["--bin-links", "--include"];
        assert!(
            !texts
                .clone()
                .any(|text| own.iter().any(|own| text.starts_with(own)))
        );
    }

    #[test]
    fn settings_that_change_the_tree_are_left_out() {
        let variables = Variables::of([
            ("npm_config_registry", "https://h/"),
            ("NPM_CONFIG_USERCONFIG", "/u"),
            ("npm_config_//h/:_authToken", "t"),
            ("npm_config_omit", "optional"),
            ("NPM_CONFIG_PREFIX", "/p"),
            ("pnpm_config_node_linker", "isolated"),
            ("npm_lifecycle_event", "build"),
            ("HOME", "/h"),
        ]);
        let names: Vec<_> = environment(&variables)
            .into_iter()
            .map(|(name, _)| name.into_string().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "HOME",
                "NPM_CONFIG_USERCONFIG",
                "npm_config_//h/:_authToken",
                "npm_config_registry",
                "npm_config_update_notifier",
                "CI",
                "YARN_IGNORE_PATH"
            ]
        );
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(major_and_minor("11.19.1"), (11, 19));
        assert_eq!(major_and_minor("9.2"), (9, 2));
        assert!(major_and_minor("9.9.4") < FOREIGN_NPM);
    }
}
