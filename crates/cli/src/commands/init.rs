//! `tierce init`: look at a folder → choose → write a file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};
use tierce_store::atomic::AtomicFile;

use crate::arguments::InitArguments;
use crate::diagnostic::{Hinted as _, UsageError};
use crate::init::{Draft, DraftLayer, Folder, LOOKED_FOR, LayerSource, draft, left_out, written};
use crate::output::Output;

/// Runs `tierce init`.
pub(crate) fn init(arguments: &InitArguments, output: Output) -> Result<()> {
    let context = &arguments.context;
    let path = arguments
        .file
        .clone()
        .unwrap_or_else(|| context.join("tierce.toml"));
    let prints = arguments.dry_run || path == Path::new("-");
    if !prints && !arguments.force && path.symlink_metadata().is_ok() {
        return Err(is_there(&path));
    }
    let mut folder = Folder::open(context)?;
    let found = draft(&mut folder, arguments.function.as_deref()).map_err(UsageError)?;
    let Some(draft) = found else {
        for remark in folder.remarks() {
            output.note(remark);
        }
        return Err(anyhow!(
            "nothing in {} looks like a function",
            context.display()
        ))
        .hint(LOOKED_FOR);
    };
    let text = written(&draft);
    let (secret, rest) = left_out(&folder, &draft);
    for line in draft.reasons.iter().chain(folder.remarks()) {
        output.note(line);
    }
    if !rest.is_empty() {
        output.note(&format!("left out: {}", listed(&rest)));
    }
    if !secret.is_empty() {
        output.note(&format!(
            "left out, for it may be secret: {}",
            listed(&secret)
        ));
    }
    if !prints {
        write(&path, &text, arguments.force)?;
    }
    if output.json {
        let mut document = described(&draft);
        document["text"] = json!(text);
        document["file"] = if prints { Value::Null } else { json!(path) };
        document["remarks"] = json!(folder.remarks());
        document["left_out"] = json!({ "secret": secret, "other": rest });
        return output.result_json(&document);
    }
    if prints {
        return output.result_line(text.trim_end());
    }
    output.note("`tierce build` makes the image, `tierce lint` judges it");
    output.result_line(&path.display().to_string())
}

fn is_there(path: &Path) -> anyhow::Error {
    anyhow!("{} is there already", path.display())
        .hint("`--force` replaces it, `--dry-run` prints what would be written")
}

fn write(path: &PathBuf, text: &str, replaces: bool) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(text.as_bytes())?;
    if replaces {
        return Ok(file.persist()?);
    }
    match file.persist_new() {
        // Somebody else was faster.
        Err(error) if error.source.kind() == ErrorKind::AlreadyExists => Err(is_there(path)),
        result => result.with_context(|| format!("could not write {}", path.display())),
    }
}

/// As many names as are said of what was left out.
const LISTED: usize = 12;

fn listed(paths: &[String]) -> String {
    let mut shown: Vec<String> = paths
        .iter()
        .take(LISTED)
        .map(|path| format!("`{path}`"))
        .collect();
    if paths.len() > LISTED {
        shown.push(format!("and {} more", paths.len() - LISTED));
    }
    shown.join(", ")
}

fn described(draft: &Draft) -> Value {
    let layer = |layer: &DraftLayer| {
        let (kind, path) = match &layer.source {
            LayerSource::Python(path) => ("python", path),
            LayerSource::Node(path) => ("node", path),
            LayerSource::Zip(path) => ("zip", path),
            LayerSource::LambdaLayer(path) => ("lambda-layer", path),
            LayerSource::Binary { path, .. } => ("binary", path),
            LayerSource::Script(path) => ("script", path),
            LayerSource::Folder { from, .. } => ("add", from),
        };
        json!({ "name": layer.name, "kind": kind, "path": path, "missing": layer.missing })
    };
    json!({
        "base": draft.base,
        "platform": draft.architecture,
        "handler": draft.handler,
        "layers": draft.layers.iter().map(layer).collect::<Vec<_>>(),
        "reasons": draft.reasons,
    })
}
