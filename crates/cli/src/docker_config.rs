//! Logins for other tools, kept where `docker login` keeps them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use tierce_aws::Login;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::diagnostic::Hinted as _;

/// How long a credential helper may think; some ask a person to unlock a key ring.
const HELPER_PATIENCE: Duration = Duration::from_mins(1);

/// How the names of files begin that are not written to their end yet.
const UNFINISHED: &str = ".tierce-login-";

/// Where a login was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Into the file itself.
    File(PathBuf),
    /// Into what keeps credentials for the registry: `docker-credential-` and this.
    Helper(String),
}

/// Puts a login into `path`, or into the helper that the file names for the registry.
///
/// All else that the file says stays. Nothing is written when it cannot be understood.
pub(crate) async fn store(path: &Path, login: &Login, helper_path: &OsStr) -> Result<Stored> {
    if let Some(helper) = helper_for(&read(path)?, &login.registry) {
        let helper = helper.to_owned();
        give_to_helper(&helper, login, helper_path).await?;
        return Ok(Stored::Helper(helper));
    }
    // A link stays one: people keep such files elsewhere.
    let target = followed(path);
    let directory = directory_of(&target);
    let _alone = directory
        .and_then(|directory| alone_in(&directory))
        .with_context(|| format!("could not write {}", path.display()))?;
    let mut config = read(&target)?;
    let auths = config
        .entry("auths")
        .and_modify(|auths| {
            if auths.is_null() {
                *auths = json!({});
            }
        })
        .or_insert_with(|| json!({}));
    let Some(auths) = auths.as_object_mut() else {
        bail!("the `auths` of {} are not an object", path.display());
    };
    auths.insert(
        login.registry.clone(),
        json!({"auth": login.basic().expose()}),
    );
    write(&target, &Value::Object(config))?;
    Ok(Stored::File(path.to_owned()))
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("could not read {}", path.display()));
        }
    };
    if text.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    // Of the text, which holds secrets, nothing is quoted.
    match serde_json::from_slice(&text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => bail!("{} holds JSON that is not an object", path.display()),
        Err(error) => bail!(
            "{} is not JSON: line {}, column {}",
            path.display(),
            error.line(),
            error.column()
        ),
    }
}

/// The helper of that registry, or the store for all, as when credentials are read.
fn helper_for<'a>(config: &'a Map<String, Value>, registry: &str) -> Option<&'a str> {
    let own = config
        .get("credHelpers")
        .and_then(|helpers| helpers.get(registry))
        .and_then(Value::as_str);
    let store = || config.get("credsStore").and_then(Value::as_str);
    own.or_else(store).filter(|helper| !helper.is_empty())
}

async fn give_to_helper(name: &str, login: &Login, helper_path: &OsStr) -> Result<()> {
    let helper = format!("docker-credential-{name}");
    // The name must not lead elsewhere.
    let program = std::env::split_paths(helper_path)
        .map(|directory| directory.join(&helper))
        .find(|program| !name.contains(['/', '\0']) && program.is_file())
        .ok_or_else(|| anyhow!("the credential helper `{helper}` is not installed"))?;
    let entry = json!({
        "ServerURL": login.registry,
        "Username": login.username,
        "Secret": login.password.expose(),
    });
    let run = async {
        let mut child = Command::new(program)
            .arg("store")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper need not read all of it; how it ends tells.
            let _ = stdin.write_all(entry.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_PATIENCE, run)
        .await
        .map_err(|_| anyhow!("the credential helper `{helper}` did not end in time"))?
        .with_context(|| format!("could not run the credential helper `{helper}`"))?;
    if output.status.success() {
        return Ok(());
    }
    // Helpers complain on stdout; some repeat what they were given.
    let told = [output.stderr, output.stdout].concat();
    let told = String::from_utf8_lossy(&told);
    let mut told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for secret in [login.password.expose(), login.basic().expose()] {
        told = told.replace(secret, "(secret)");
    }
    if told.is_empty() {
        told = output.status.to_string();
    }
    let told: String = told.chars().take(300).collect();
    Err(anyhow!("the credential helper `{helper}` failed: {told}"))
        .hint("`--auth-file FILE` writes another file, `--print` prints the password")
}

/// Where the links at `path` end, also when nothing is there yet.
fn followed(path: &Path) -> PathBuf {
    /// As many as Linux follows.
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(next) = fs::read_link(&path) else {
            break;
        };
        path = match path.parent() {
            Some(directory) => directory.join(next),
            None => next,
        };
    }
    path
}

/// The directory that a file is to be in, made if it is missing.
fn directory_of(path: &Path) -> io::Result<PathBuf> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    // As Docker makes it.
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)?;
    Ok(directory.to_owned())
}

/// Lets no other login of ours write there until it is dropped: of two that read the same file, the
/// second would undo the first. The directory itself is locked, so that nothing is left in it.
fn alone_in(directory: &Path) -> io::Result<File> {
    let handle = File::open(directory)?;
    // Not every file system can; there it is as with other tools, which lock nothing.
    if handle.lock().is_ok() {
        remove_leftovers(directory)?;
    }
    Ok(handle)
}

/// Removes what logins have left that were killed while they wrote: there are secrets in it. Nobody
/// else writes such files while the directory is locked.
fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // One that cannot be removed is no reason to keep no login.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Writes the file anew, for its owner alone, in one step.
fn write(path: &Path, config: &Value) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut text = Vec::new();
        // As Docker indents it.
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        serde::Serialize::serialize(config, &mut serializer)?;
        text.push(b'\n');
        // Temporary files are their owner's alone from the beginning.
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(directory_of(path)?)?;
        io::Write::write_all(&mut file, &text)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("could not write {}", path.display()))
}
