//! What the cache does to the work, and that it does nothing to the bytes.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::{TempDir, tempdir};
use tierce_layer::cache::{CacheError, NoteId, Pruned};
use tierce_layer::{
    Effort, Fast1, FileTime, LastTime, LayerCache, SealSettings, SealedLayer, Stored, ZlibRs, seal,
};
use tierce_oci::Digest;

use crate::support::{
    Sealed, cache_in, left_in, plan_of, scanned, sealed, settings, with_blob, write,
};

/// A time after which everything that these tests have written has long settled.
fn later() -> FileTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    FileTime {
        seconds: i64::try_from(now.as_secs()).unwrap() + 3600,
        nanoseconds: 0,
    }
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    /// Text-like bytes that compress somewhat.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| b"etaoin shrdlu\n_()=.:"[self.below(20)])
            .collect()
    }
}

/// Some hundred files of all sizes.
fn source(numbers: &mut Numbers) -> TempDir {
    let source = tempdir().unwrap();
    for index in 0..220 {
        let size = match index {
            0 => 1_200_000,
            40 => 2_097_152 - 512,
            70..80 => 70_000 + index * 100,
            _ => 500 + index * 37,
        };
        let name = format!("package{:02}/module{index:03}.py", index % 13);
        write(source.path().join(name), numbers.bytes(size));
    }
    source
}

/// What the next build knows of a layer whose files were looked at from `began` on.
fn last_time_of(layer: &SealedLayer, began: FileTime) -> LastTime {
    LastTime {
        recipe: layer.recipe.clone(),
        signatures: layer.relied_on(began),
    }
}

/// Seals what is in `source`, with what is known of it.
fn seal_with(source: &Path, cache: &LayerCache, last_time: Option<&LastTime>) -> SealedLayer {
    let (tree, _) = scanned(source, "/var/task");
    let settings = SealSettings {
        last_time,
        ..settings(&Fast1, cache, 3)
    };
    seal(&plan_of(tree), &settings).unwrap()
}

fn seal_cold(source: &Path) -> Sealed {
    let (tree, _) = scanned(source, "/var/task");
    sealed(&plan_of(tree), &Fast1, 2).0
}

fn files_of(source: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = left_in(source)
        .into_iter()
        .map(|path| source.join(path))
        .collect();
    files.sort();
    files
}

/// Makes one change to the source; gives its name. Every written file gets a time of its own: the
/// file system's clock may not have moved since the last look.
fn edit(source: &Path, round: usize, numbers: &mut Numbers) -> &'static str {
    let files = files_of(source);
    let victim = files[numbers.below(files.len())].clone();
    let written = |path: &Path, bytes: Vec<u8>| {
        write(path, bytes);
        let time = UNIX_EPOCH + Duration::from_secs(1_000_000 + round as u64);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    };
    let length = usize::try_from(fs::metadata(&victim).unwrap().len()).unwrap();
    match round % 8 {
        0 | 1 => {
            let mut bytes = fs::read(&victim).unwrap();
            let at = numbers.below(bytes.len());
            bytes[at] ^= 1;
            written(&victim, bytes);
            "change"
        }
        2 => {
            let name = format!("package{:02}/added{round}.py", numbers.below(15));
            let size = [0, 10, 5000, 80_000, 1_100_000][numbers.below(5)];
            written(&source.join(name), numbers.bytes(size));
            "add"
        }
        3 => {
            fs::remove_file(victim).unwrap();
            "remove"
        }
        4 => {
            let name = format!("package{:02}/renamed{round}.py", numbers.below(15));
            let target = source.join(name);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::rename(victim, target).unwrap();
            "rename"
        }
        5 => {
            written(&victim, numbers.bytes(length * 2 + 1));
            "grow"
        }
        6 => {
            written(&victim, numbers.bytes(length / 3 + 1));
            "shrink"
        }
        _ => {
            let mode = fs::metadata(&victim).unwrap().mode() ^ 0o100;
            fs::set_permissions(&victim, Permissions::from_mode(mode)).unwrap();
            "chmod"
        }
    }
}

#[test]
fn a_hundred_edits_come_out_as_from_nothing() {
    let mut numbers = Numbers(7);
    let source = source(&mut numbers);
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let mut last = last_time_of(&seal_with(source.path(), &cache, None), later());
    let mut compressed = 0;
    for round in 0..100 {
        let what = edit(source.path(), round, &mut numbers);
        let layer = seal_with(source.path(), &cache, Some(&last));
        let cold = seal_cold(source.path());
        assert_eq!(layer.recipe.digest, cold.digest, "{round}: {what}");
        assert_eq!(layer.recipe.diff_id, cold.diff_id, "{round}: {what}");
        assert_eq!(layer.recipe.size, cold.size);
        assert_eq!(layer.recipe.entries, cold.entries);
        compressed += layer.effort.compressed;
        last = last_time_of(&layer, later());
        let warm = with_blob(layer, &Fast1, &cache);
        assert!(warm.blob == cold.blob, "{round}: {what}");
    }
    // An edit touches a segment or two, and at most the six of a file of 6 MiB.
    assert!(compressed < 400, "{compressed} segments were compressed");
}

#[test]
fn what_did_not_change_is_not_even_read() {
    let source = source(&mut Numbers(1));
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let first = seal_with(source.path(), &cache, None);
    let count = first.recipe.segments.len() as u64;
    assert_eq!(
        first.effort,
        Effort {
            read: count,
            compressed: count,
            hashed: count
        }
    );
    let before = left_in(kept.path());
    let again = seal_with(source.path(), &cache, Some(&last_time_of(&first, later())));
    assert_eq!(again.effort, Effort::default());
    assert_eq!(again.recipe.digest, first.recipe.digest);
    assert_eq!(left_in(kept.path()), before);
}

#[test]
fn a_changed_file_costs_its_segment_and_what_follows() {
    let source = source(&mut Numbers(2));
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let first = seal_with(source.path(), &cache, None);
    let last = last_time_of(&first, later());
    // The last path among the small files, which come last.
    let changed = source.path().join("package12/module219.py");
    write(&changed, "x = 1\n");
    let again = seal_with(source.path(), &cache, Some(&last));
    // It shrank, so the segment before it may end elsewhere.
    assert!(again.effort.compressed <= 2, "{:?}", again.effort);
    assert!(again.effort.hashed <= 3, "{:?}", again.effort);
    assert!(again.effort.read <= 3, "{:?}", again.effort);
    assert_ne!(again.recipe.digest, first.recipe.digest);
    // And back: the layer was seen before.
    let mut numbers = Numbers(2);
    fs::remove_dir_all(source.path().join("package12")).unwrap();
    let twin = self::source(&mut numbers);
    fs::rename(
        twin.path().join("package12"),
        source.path().join("package12"),
    )
    .unwrap();
    let back = seal_with(source.path(), &cache, Some(&last_time_of(&again, later())));
    assert_eq!((back.effort.compressed, back.effort.hashed), (0, 0));
    assert_eq!(back.recipe.digest, first.recipe.digest);
}

#[test]
fn a_fresh_checkout_is_read_and_nothing_more() {
    let source = source(&mut Numbers(3));
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let first = seal_with(source.path(), &cache, None);
    let last = last_time_of(&first, later());
    let checkout = self::source(&mut Numbers(3));
    let again = seal_with(checkout.path(), &cache, Some(&last));
    assert_eq!((again.effort.compressed, again.effort.hashed), (0, 0));
    assert_eq!(again.recipe.digest, first.recipe.digest);
    // Where the place of the sources is another one, nobody knows of a last time.
    let elsewhere = seal_with(checkout.path(), &cache, None);
    assert_eq!(elsewhere.effort.compressed, 0);
    assert_eq!(elsewhere.recipe.digest, first.recipe.digest);
}

#[test]
fn a_cache_serves_another_machine() {
    let source = source(&mut Numbers(4));
    let (kept, carried) = (tempdir().unwrap(), tempdir().unwrap());
    let first = seal_with(source.path(), &cache_in(kept.path()), None);
    for file in left_in(kept.path()) {
        let target = carried.path().join(&file);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(kept.path().join(&file), target).unwrap();
    }
    drop(kept);
    let cache = cache_in(carried.path());
    let again = seal_with(source.path(), &cache, None);
    assert_eq!(again.effort.compressed, 0);
    assert_eq!(again.recipe.digest, first.recipe.digest);
    with_blob(again, &Fast1, &cache);
}

#[test]
fn a_file_that_was_just_written_is_looked_at_again() {
    let source = source(&mut Numbers(5));
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let first = seal_with(source.path(), &cache, None);
    let newest = files_of(source.path())
        .iter()
        .map(|path| fs::metadata(path).unwrap().ctime())
        .max()
        .unwrap();
    let began = |seconds| FileTime {
        seconds,
        nanoseconds: 0,
    };
    let told = |last: &LastTime| last.signatures.iter().flatten().count();
    // Directories and the end blocks have no content.
    assert_eq!(told(&last_time_of(&first, began(newest - 3600))), 2);
    assert_eq!(
        told(&last_time_of(&first, began(newest + 3))),
        first.recipe.segments.len()
    );
    let last = last_time_of(&first, began(newest - 3600));
    let again = seal_with(source.path(), &cache, Some(&last));
    assert_eq!(again.effort.read, first.recipe.segments.len() as u64 - 2);
    assert_eq!((again.effort.compressed, again.effort.hashed), (0, 0));
    assert_eq!(again.recipe.digest, first.recipe.digest);
}

#[test]
fn codecs_do_not_meet_in_a_cache() {
    let source = source(&mut Numbers(6));
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let (tree, _) = scanned(source.path(), "/var/task");
    let plan = plan_of(tree);
    let mut digests = Vec::new();
    for codec in [
        &Stored as &dyn tierce_layer::Codec,
        &Fast1,
        &ZlibRs::default(),
    ] {
        let layer = seal(&plan, &settings(codec, &cache, 2)).unwrap();
        assert_eq!(layer.effort.compressed, layer.recipe.segments.len() as u64);
        digests.push(layer.recipe.digest);
        assert_eq!(
            with_blob(layer, codec, &cache).digest,
            sealed(&plan, codec, 1).0.digest
        );
    }
    digests.dedup();
    assert_eq!(digests.len(), 3);
}

/// The largest pack.
fn pack_in(cache: &Path) -> PathBuf {
    left_in(cache)
        .into_iter()
        .map(|path| cache.join(path))
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "pack")
        })
        .unwrap()
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn a_flipped_bit_is_noticed_and_made_again() {
    let source = source(&mut Numbers(8));
    let expected = seal_cold(source.path());
    let kept = tempdir().unwrap();
    let first = seal_with(source.path(), &cache_in(kept.path()), None);
    let last = last_time_of(&first, later());
    // In the blocks of the first and of a later segment, in the index, in the footer.
    for (half, back) in [(0, 0), (1, 0), (2, 300), (2, 5)] {
        let cache = cache_in(kept.path());
        let pack = pack_in(kept.path());
        let offset = fs::metadata(&pack).unwrap().len() / 2 * half - back;
        flip(&pack, offset);
        // Whoever has no last time reads everything, and finds out.
        let again = seal_with(source.path(), &cache, None);
        assert_eq!(again.recipe.digest, expected.digest, "{offset}");
        assert!(again.effort.compressed > 0, "{offset}");
        assert_eq!(with_blob(again, &Fast1, &cache).digest, expected.digest);
        assert!(cache.verify().unwrap().removed.is_empty(), "{offset}");
    }
    // Whoever has one and reads no blocks finds out when somebody else does.
    let cache = cache_in(kept.path());
    flip(&pack_in(kept.path()), 77);
    assert_eq!(cache.verify().unwrap().removed.len(), 1);
    let again = seal_with(source.path(), &cache, Some(&last));
    assert_eq!(again.recipe.digest, expected.digest);
    with_blob(again, &Fast1, &cache);

    for file in left_in(kept.path()) {
        let path = kept.path().join(file);
        if path.parent().unwrap().ends_with("recipes") {
            flip(&path, 100);
        }
    }
    assert!(cache.recipe(&last.recipe.id()).is_none());
    assert!(!cache.verify().unwrap().removed.is_empty());
    let again = seal_with(source.path(), &cache, Some(&last));
    assert_eq!(again.recipe.digest, expected.digest);
}

#[test]
fn half_a_pack_is_none() {
    let source = source(&mut Numbers(9));
    let kept = tempdir().unwrap();
    let expected = seal_with(source.path(), &cache_in(kept.path()), None)
        .recipe
        .digest;
    let whole = fs::read(pack_in(kept.path())).unwrap();
    for length in [0, 1, 39, 40, whole.len() / 2, whole.len() - 1] {
        let cache = cache_in(kept.path());
        fs::write(pack_in(kept.path()), &whole[..length]).unwrap();
        let again = seal_with(source.path(), &cache, None);
        assert_eq!(again.recipe.digest, expected);
        with_blob(again, &Fast1, &cache);
    }
}

#[test]
fn what_is_gone_is_made_again_when_the_bytes_are_asked_for() {
    let source = source(&mut Numbers(10));
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let first = seal_with(source.path(), &cache, None);
    let last = last_time_of(&first, later());
    drop(cache);
    fs::remove_file(pack_in(kept.path())).unwrap();
    let cache = cache_in(kept.path());
    let (tree, _) = scanned(source.path(), "/var/task");
    let plan = plan_of(tree);
    // A registry that has the layer wants no more than its name.
    let identity = SealSettings {
        last_time: Some(&last),
        identity_suffices: true,
        ..settings(&Fast1, &cache, 2)
    };
    let known = seal(&plan, &identity).unwrap();
    assert_eq!(known.effort, Effort::default());
    assert!(!cache.has_packs_of(&known.recipe));
    let bytes = SealSettings {
        identity_suffices: false,
        ..identity
    };
    let made = seal(&plan, &bytes).unwrap();
    assert_eq!(made.recipe.digest, first.recipe.digest);
    assert!(cache.has_packs_of(&made.recipe));
    with_blob(made, &Fast1, &cache);
}

#[test]
fn what_was_used_last_stays() {
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let sources: Vec<_> = (20..23).map(|seed| source(&mut Numbers(seed))).collect();
    let layers: Vec<_> = sources
        .iter()
        .map(|source| seal_with(source.path(), &cache, None))
        .collect();
    let old = SystemTime::now() - Duration::from_secs(1000);
    for file in left_in(kept.path()) {
        let file = File::open(kept.path().join(file)).unwrap();
        file.set_modified(old).unwrap();
    }
    assert!(cache.recipe(&layers[1].recipe.id()).is_some());
    let root = kept.path().join("cache");
    assert!(matches!(
        LayerCache::prune(&root, 0),
        Err(CacheError::InUse(_))
    ));
    drop(cache);
    let all = LayerCache::info(&root).unwrap();
    assert_eq!((all.packs.files, all.recipes.files), (3, 3));
    // All three have the same directories and the same end, which are in the first pack.
    let limit = all.bytes() / 4 * 3;
    let pruned = LayerCache::prune(&root, limit).unwrap();
    assert!(pruned.left.bytes <= limit);
    assert_eq!(pruned.left.bytes + pruned.removed.bytes, all.bytes());
    let cache = cache_in(kept.path());
    let used = cache.recipe(&layers[1].recipe.id()).unwrap();
    assert!(cache.has_packs_of(&used));
    drop(cache);
    LayerCache::prune(&root, 0).unwrap();
    assert_eq!(LayerCache::info(&root).unwrap().bytes(), 0);
    assert_eq!(
        LayerCache::prune(&kept.path().join("none"), 0).unwrap(),
        Pruned::default()
    );
}

#[test]
fn many_builders_and_a_pruner_share_a_cache() {
    let kept = tempdir().unwrap();
    let sources: Vec<_> = (30..32).map(|seed| source(&mut Numbers(seed))).collect();
    let expected: Vec<Digest> = sources
        .iter()
        .map(|source| seal_cold(source.path()).digest)
        .collect();
    std::thread::scope(|scope| {
        for (number, source) in sources.iter().enumerate().cycle().take(4) {
            let (kept, expected) = (kept.path(), &expected);
            scope.spawn(move || {
                for _ in 0..3 {
                    let cache = cache_in(kept);
                    let layer = seal_with(source.path(), &cache, None);
                    let last = last_time_of(&layer, later());
                    assert_eq!(layer.recipe.digest, expected[number]);
                    let again = seal_with(source.path(), &cache, Some(&last));
                    let again = with_blob(again, &Fast1, &cache);
                    assert_eq!(Digest::of(&again.blob), expected[number]);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..200 {
                // In use most of the time.
                let _ = LayerCache::prune(&kept.path().join("cache"), 0);
            }
        });
    });
    let verified = cache_in(kept.path()).verify().unwrap();
    assert!(verified.removed.is_empty());
}

#[test]
fn notes_are_whole_or_not_there() {
    let kept = tempdir().unwrap();
    let cache = cache_in(kept.path());
    let id = NoteId::of([&b"a"[..], b"bc"]);
    assert_ne!(id, NoteId::of([&b"ab"[..], b"c"]));
    assert_eq!(cache.note(&id), None);
    for note in [&b"first"[..], b"", b"second"] {
        cache.keep_note(&id, note);
        assert_eq!(cache.note(&id).as_deref(), Some(note));
    }
    let file = kept.path().join(left_in(kept.path()).remove(0));
    // One in another's place answers another question.
    let other = NoteId::of([&b"other"[..]]);
    cache.keep_note(&other, b"other");
    let others = left_in(kept.path())
        .into_iter()
        .map(|path| kept.path().join(path))
        .find(|path| *path != file)
        .unwrap();
    fs::copy(&file, &others).unwrap();
    assert_eq!(cache.note(&other), None);
    assert_eq!(cache.verify().unwrap().removed, [others]);
    flip(&file, 5);
    assert_eq!(cache.note(&id), None);
}

#[test]
fn what_is_no_file_in_the_cache_is_stepped_over() {
    let source = source(&mut Numbers(40));
    let kept = tempdir().unwrap();
    let first = seal_with(source.path(), &cache_in(kept.path()), None);
    let pack = pack_in(kept.path());
    let (name, root) = (pack.file_name().unwrap(), kept.path().join("cache"));
    let pipe = |path: &Path| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    for put in [&pipe as &dyn Fn(&Path), &directory] {
        fs::remove_file(&pack).unwrap();
        put(&pack);
        let strange = root.join("recipes/strange");
        put(&strange);
        let cache = cache_in(kept.path());
        assert!(cache.verify().unwrap().removed.is_empty());
        let again = seal_with(source.path(), &cache, None);
        assert_eq!(again.recipe.digest, first.recipe.digest);
        assert_eq!(pack_in(kept.path()).file_name(), Some(name));
        with_blob(again, &Fast1, &cache);
        drop(cache);
        LayerCache::prune(&root, u64::MAX).unwrap();
        let _ = fs::remove_dir(&strange).or_else(|_| fs::remove_file(&strange));
    }
}
