//! From the layers of an image to a root filesystem.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tierce_image::{Content, Image, Layer};
use tierce_layer::Limits;
use tierce_runner::rootfs::{CacheError, Form, MountKind, MountPoint, Pruned, Root, RootfsCache};
use tokio::sync::mpsc;

use crate::background::in_background;
use crate::environment::Environment;
use crate::layer_stream::read_layer_with_bar;
use crate::output::{Output, describe_size};
use crate::places::{Places, processors};

/// Where unpacked layers are, below the cache directory. The name counts up with their format.
pub(crate) fn rootfs_in(cache: &Path) -> PathBuf {
    cache.join("rootfs-1")
}

/// How long nobody must have used what is pruned, tried one after the other until enough is gone.
const AGES: [Duration; 5] = [
    Duration::from_hours(30 * 24),
    Duration::from_hours(7 * 24),
    Duration::from_hours(24),
    Duration::from_hours(1),
    Duration::ZERO,
];

/// Removes unpacked layers that were not used for longest, until what is left takes `limit` at most
/// or is in use.
pub(crate) fn prune(cache: &Path, limit: u64) -> Result<Pruned, CacheError> {
    let root = rootfs_in(cache);
    let mut pruned = Pruned {
        left: RootfsCache::info(&root)?,
        ..Pruned::default()
    };
    for age in AGES {
        if pruned.left.bytes <= limit {
            break;
        }
        let since = SystemTime::now().checked_sub(age);
        let more = RootfsCache::prune(&root, since.unwrap_or(SystemTime::UNIX_EPOCH))?;
        pruned.removed.trees += more.removed.trees;
        pruned.removed.bytes += more.removed.bytes;
        pruned.left = more.left;
    }
    Ok(pruned)
}

/// How a root is to be.
#[derive(Debug, Clone)]
pub(crate) struct RootSettings {
    pub(crate) form: Form,
    /// What will be mounted there besides what every box has.
    pub(crate) mount_points: Vec<MountPoint>,
    /// Whether it is to be one directory, for what cannot lay several over each other.
    pub(crate) is_flat: bool,
}

/// What the runner mounts in every box.
const MOUNTED: [(&str, MountKind); 5] = [
    ("/dev", MountKind::Directory),
    ("/proc", MountKind::Directory),
    ("/tmp", MountKind::Directory),
    ("/etc/hosts", MountKind::File),
    ("/etc/resolv.conf", MountKind::File),
];

/// Where external extensions are (AWS Lambda Developer Guide, "Lambda Extensions API").
const EXTENSIONS: &str = "/opt/extensions";

/// Makes the root of `image`, and finds the extensions in it. Layers that were unpacked before are
/// not opened.
pub(crate) async fn unpack(
    image: &Image,
    places: &Places,
    environment: &Environment,
    settings: &RootSettings,
    output: Output,
) -> Result<(Root, Vec<String>)> {
    let cache = Arc::new(RootfsCache::open(rootfs_in(&environment.cache))?);
    let form = settings.form;
    let mut missing: Vec<&Layer> = Vec::new();
    for layer in image.layers() {
        let is_wanted = missing.iter().any(|other| other.diff_id == layer.diff_id);
        if !is_wanted && !cache.has(layer.diff_id, form)? {
            missing.push(layer);
        }
    }
    tell(&missing, output);
    let (working, mut idle) = mpsc::channel(1);
    let unpacked = missing.iter().map(|layer| {
        let (cache, working) = (Arc::clone(&cache), working.clone());
        async move {
            unpack_layer(layer, (cache, working), form, places, output)
                .await
                .with_context(|| format!("could not unpack layer {}", layer.descriptor.digest))
        }
    });
    let unpacked = futures_util::stream::iter(unpacked)
        .buffer_unordered(processors().0.get())
        .try_collect::<()>()
        .await;
    // When one fails the others are given up, and remove what they have: nobody would once this
    // process has ended.
    drop(working);
    let _ = idle.recv().await;
    unpacked?;
    let layers: Vec<_> = image.layers().iter().map(|layer| layer.diff_id).collect();
    let settings = settings.clone();
    let (has_grown, limit) = (!missing.is_empty(), environment.cache_limit / 2);
    let directory = environment.cache.clone();
    let made = in_background(move |_| {
        let mut mount_points: Vec<MountPoint> = MOUNTED
            .into_iter()
            .map(|(path, kind)| MountPoint {
                path: PathBuf::from(path),
                kind,
            })
            .collect();
        mount_points.extend(settings.mount_points);
        let root = if settings.is_flat {
            cache.flatten(&layers, form, &mount_points)?
        } else {
            cache.stack(&layers, form, &mount_points)?
        };
        // Each is taken for a program, and what is none is told when it does not start.
        let extensions = cache.files_in(&layers, form, Path::new(EXTENSIONS))?;
        let extensions = extensions
            .iter()
            .map(|path| path.to_string_lossy().into_owned());
        if has_grown {
            // Nobody waits for the disk: what is not on it after a crash is unpacked again.
            std::thread::spawn(move || {
                if let Err(error) = cache.settle() {
                    tracing::debug!("could not settle what was unpacked: {error}");
                }
                drop(cache);
                if let Err(error) = prune(&directory, limit) {
                    tracing::debug!("could not make room among unpacked layers: {error}");
                }
            });
        }
        Ok((root, extensions.collect()))
    });
    made.await
}

/// Says what takes a while.
fn tell(missing: &[&Layer], output: Output) {
    let bytes: u64 = missing.iter().map(|layer| layer.descriptor.size).sum();
    let is_remote = |layer: &&&Layer| matches!(layer.content, Content::Origin(_));
    let remote = missing.iter().filter(is_remote);
    let remote: u64 = remote.map(|layer| layer.descriptor.size).sum();
    let layers = match missing.len() {
        1 => "1 layer".to_owned(),
        count => format!("{count} layers"),
    };
    let text = format!("unpacking {layers} ({})", describe_size(bytes));
    match remote {
        0 if missing.is_empty() => {}
        0 => output.step(&text),
        remote => output.note(&format!(
            "{text}, of which {} are fetched; it is done once",
            describe_size(remote)
        )),
    }
}

/// Unpacks a layer into a cache, whose companion is dropped when nothing is done any more.
async fn unpack_layer(
    layer: &Layer,
    (cache, working): (Arc<RootfsCache>, mpsc::Sender<()>),
    form: Form,
    places: &Places,
    output: Output,
) -> Result<()> {
    let diff_id = layer.diff_id;
    read_layer_with_bar("unpacking", layer, places, output, move |pieces| {
        let unpacked = cache.unpack(diff_id, form, pieces, Limits::default());
        drop(working);
        unpacked?;
        Ok(())
    })
    .await
}
