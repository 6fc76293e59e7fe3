//! `tierce lock`: pin the base's tag, or move the pin, and see what the base really has.

use anyhow::Result;
use serde_json::json;
use tierce_oci::Platform;

use crate::arguments::LockArguments;
use crate::base::{self, Lock, LockPolicy};
use crate::base_facts;
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::output::Output;
use crate::places::{Places, PlacesSettings, processors};
use crate::plan::{base_beside, load_file, lock_path};

/// Runs `tierce lock`.
pub(crate) async fn lock(
    arguments: LockArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let file = load_file(&arguments.context, arguments.file.as_deref())?
        .ok_or_else(|| {
            UsageError(format!(
                "there is no tierce.toml in {}",
                arguments.context.display()
            ))
        })
        .hint("a lock belongs to a tierce.toml with `[image] base`")?;
    let base = file
        .values
        .image
        .base
        .as_ref()
        .map(|base| base_beside(&file, base))
        .ok_or_else(|| UsageError(format!("{} names no base", file.path.display())))?;
    if base.place.is_none() {
        return Err(UsageError("`scratch` has nothing that could be pinned".to_owned()).into());
    }
    let settings = PlacesSettings {
        registry: &arguments.registry,
        create_repository: false,
        offline: false,
        remembers: true,
        compress_jobs: processors(),
    };
    let places = Places::open(&settings, environment, output)?;
    let policy = if arguments.update {
        LockPolicy::Update
    } else {
        LockPolicy::Honour
    };
    let mut lock = Lock::open(Some(lock_path(&file)), policy)?;

    // What is built, else what was pinned before, else whatever the base gives.
    let built = &file.values.image.platforms;
    let named = if built.is_empty() {
        lock.platforms(&base)
    } else {
        built.clone()
    };
    let platforms: Vec<Option<Platform>> = if named.is_empty() {
        vec![None]
    } else {
        named.into_iter().map(Some).collect()
    };
    let mut pinned = Vec::new();
    for platform in &platforms {
        if let Some(found) = base::resolve(&base, platform.as_ref(), &mut lock, &places).await? {
            base_facts::check(&found, &base, &mut lock, &places, output).await?;
            pinned.push((found.image.platform().to_string(), found.image.digest()));
        }
    }
    lock.save(&base, output)?;
    if output.json {
        let platforms: serde_json::Map<String, serde_json::Value> = pinned
            .iter()
            .map(|(platform, digest)| (platform.clone(), json!(digest)))
            .collect();
        return output.result_json(&json!({ "name": base.text, "platforms": platforms }));
    }
    // A base that names its digest is shown with that of the platform's image in its place.
    let name = base.text.split("@sha256:").next().unwrap_or(&base.text);
    for (platform, digest) in pinned {
        output.result_line(&format!("{name}@{digest} {platform}"))?;
    }
    Ok(())
}
