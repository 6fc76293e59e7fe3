//! `tierce cache`: what is remembered of earlier builds.

use anyhow::Result;
use serde_json::json;
use tierce_layer::LayerCache;
use tierce_layer::cache::{CacheInfo, CacheUse, Verified};
use tierce_runner::rootfs::RootfsCache;

use crate::arguments::{CacheArguments, CacheCommand};
use crate::dependencies::kept::{Kept, resolved_in};
use crate::environment::Environment;
use crate::output::{Output, describe_size};
use crate::places::layer_cache_in;
use crate::records;
use crate::run::root::{self, rootfs_in};

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
    let resolved = Kept::info(&resolved_in(&environment.cache))?;
    let [facts, links] = records::info(&environment.cache)?;
    let unpacked = RootfsCache::info(&rootfs_in(&environment.cache))?;
    let bytes = info.bytes() + resolved.bytes + facts.bytes + links.bytes + unpacked.bytes;
    let limit = environment.cache_limit;
    if output.json {
        let of = |kind: CacheUse| json!({"files": kind.files, "bytes": kind.bytes});
        return output.result_json(&json!({
            "path": root,
            "limit": limit,
            "bytes": bytes,
            "packs": of(packs),
            "recipes": of(recipes),
            "notes": of(notes),
            "facts": of(facts),
            "links": of(links),
            "resolved": {
                "trees": resolved.trees,
                "files": resolved.files,
                "bytes": resolved.bytes,
            },
            "unpacked": {"trees": unpacked.trees, "bytes": unpacked.bytes},
        }));
    }
    output.result_line(&format!("path     {}", root.display()))?;
    output.result_line(&format!(
        "size     {} of at most {}",
        describe_size(bytes),
        describe_size(limit)
    ))?;
    for (name, kind) in [
        ("packs", packs),
        ("recipes", recipes),
        ("notes", notes),
        ("facts", facts),
        ("links", links),
    ] {
        output.result_line(&format!(
            "{name:<8} {} ({})",
            kind.files,
            describe_size(kind.bytes)
        ))?;
    }
    if resolved.trees > 0 {
        output.result_line(&format!(
            "resolved {} ({})",
            counted(resolved.trees, "tree"),
            describe_size(resolved.bytes)
        ))?;
    }
    if unpacked.trees > 0 {
        output.result_line(&format!(
            "unpacked {} ({})",
            counted(unpacked.trees, "tree"),
            describe_size(unpacked.bytes)
        ))?;
    }
    Ok(())
}

fn prune(limit: u64, environment: &Environment, output: Output) -> Result<()> {
    // Unpacked layers are soonest made again: half of it may be theirs.
    let unpacked = root::prune(&environment.cache, limit / 2)?;
    let limit = limit.saturating_sub(unpacked.left.bytes);
    // As after a build: half of it may be resolved dependencies.
    let trees = Kept::prune(&resolved_in(&environment.cache), limit / 2)?;
    let limit = limit.saturating_sub(trees.left.bytes);
    let records = records::prune(&environment.cache, limit)?;
    let limit = limit.saturating_sub(records.left.bytes);
    let layers = LayerCache::prune(&layer_cache_in(&environment.cache), limit)?;
    let removed = (
        layers.removed.files + trees.removed.files + records.removed.files + unpacked.removed.trees,
        layers.removed.bytes + trees.removed.bytes + records.removed.bytes + unpacked.removed.bytes,
    );
    let left = (
        layers.left.files + trees.left.files + records.left.files + unpacked.left.trees,
        layers.left.bytes + trees.left.bytes + records.left.bytes + unpacked.left.bytes,
    );
    if output.json {
        return output.result_json(&json!({
            "removed": {"files": removed.0, "bytes": removed.1},
            "left": {"files": left.0, "bytes": left.1},
        }));
    }
    output.result_line(&format!(
        "removed {} ({}), {} left",
        counted(removed.0, "file"),
        describe_size(removed.1),
        describe_size(left.1)
    ))
}

fn verify(environment: &Environment, output: Output) -> Result<()> {
    let root = layer_cache_in(&environment.cache);
    let mut verified = if root.exists() {
        // Nothing is written, and what is damaged is removed: no directory of its own is needed.
        LayerCache::open(&root, &root)?.verify()?
    } else {
        Verified::default()
    };
    let records = records::verify(&environment.cache)?;
    verified.sound.files += records.sound.files;
    verified.sound.bytes += records.sound.bytes;
    verified.removed.extend(records.removed);
    let trees = Kept::verify(&resolved_in(&environment.cache))?;
    let removed: Vec<_> = verified.removed.iter().chain(&trees.removed).collect();
    if output.json {
        return output.result_json(&json!({
            "sound": {"files": verified.sound.files, "bytes": verified.sound.bytes},
            "segments": verified.segments,
            "resolved": {"trees": trees.sound.trees, "bytes": trees.sound.bytes},
            "removed": removed,
        }));
    }
    for path in &removed {
        output.warn(&format!("{} was damaged and is removed", path.display()));
    }
    let sound_trees = match trees.sound.trees {
        0 => String::new(),
        number => format!(
            " and {} ({})",
            counted(number, "tree"),
            describe_size(trees.sound.bytes)
        ),
    };
    let damaged_trees = match trees.removed.len() as u64 {
        0 => String::new(),
        number => format!(" and {}", counted(number, "tree")),
    };
    output.result_line(&format!(
        "sound: {} ({}) with {}{sound_trees}; damaged: {}{damaged_trees}",
        counted(verified.sound.files, "file"),
        describe_size(verified.sound.bytes),
        counted(verified.segments, "segment"),
        counted(verified.removed.len() as u64, "file")
    ))
}

/// `1 file`, `2 files`.
fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}
