//! `tierce cache`: what is remembered of earlier builds.

use anyhow::Result;
use serde_json::json;
use tierce_layer::LayerCache;
use tierce_layer::cache::{CacheInfo, CacheUse};

use crate::arguments::{CacheArguments, CacheCommand};
use crate::environment::Environment;
use crate::output::{Output, describe_size};
use crate::places::layer_cache_in;

/// Runs `tierce cache`.
pub(crate) fn cache(
    arguments: &CacheArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    match &arguments.command {
        CacheCommand::Info => info(environment, output),
        CacheCommand::Prune { to } => {
            let limit = to.map_or(environment.cache_limit, |size| size.0);
            prune(limit, environment, output)
        }
        CacheCommand::Verify => verify(environment, output),
    }
}

fn info(environment: &Environment, output: Output) -> Result<()> {
    let root = layer_cache_in(&environment.cache);
    let info = LayerCache::info(&root)?;
    let CacheInfo {
        packs,
        recipes,
        notes,
    } = info;
    let limit = environment.cache_limit;
    if output.json {
        let of = |kind: CacheUse| json!({"files": kind.files, "bytes": kind.bytes});
        return output.result_json(&json!({
            "path": root,
            "limit": limit,
            "bytes": info.bytes(),
            "packs": of(packs),
            "recipes": of(recipes),
            "notes": of(notes),
        }));
    }
    output.result_line(&format!("path     {}", root.display()))?;
    output.result_line(&format!(
        "size     {} of at most {}",
        describe_size(info.bytes()),
        describe_size(limit)
    ))?;
    for (name, kind) in [("packs", packs), ("recipes", recipes), ("notes", notes)] {
        output.result_line(&format!(
            "{name:<8} {} ({})",
            kind.files,
            describe_size(kind.bytes)
        ))?;
    }
    Ok(())
}

fn prune(limit: u64, environment: &Environment, output: Output) -> Result<()> {
    let pruned = LayerCache::prune(&layer_cache_in(&environment.cache), limit)?;
    let (removed, left) = (pruned.removed, pruned.left);
    if output.json {
        return output.result_json(&json!({
            "removed": {"files": removed.files, "bytes": removed.bytes},
            "left": {"files": left.files, "bytes": left.bytes},
        }));
    }
    output.result_line(&format!(
        "removed {} files ({}), {} left",
        removed.files,
        describe_size(removed.bytes),
        describe_size(left.bytes)
    ))
}

fn verify(environment: &Environment, output: Output) -> Result<()> {
    let root = layer_cache_in(&environment.cache);
    // Nothing is written but what is damaged is removed, so that no directory of its own is needed.
    let verified = LayerCache::open(&root, &root)?.verify()?;
    if output.json {
        return output.result_json(&json!({
            "sound": {"files": verified.sound.files, "bytes": verified.sound.bytes},
            "segments": verified.segments,
            "removed": verified.removed,
        }));
    }
    for path in &verified.removed {
        output.warn(&format!("{} was damaged and is removed", path.display()));
    }
    output.result_line(&format!(
        "{} files ({}) with {} segments are sound, {} were damaged",
        verified.sound.files,
        describe_size(verified.sound.bytes),
        verified.segments,
        verified.removed.len()
    ))
}
