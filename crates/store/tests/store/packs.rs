//! The local store and the packs that it shares with the cache.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use tempfile::TempDir;
use tierce_image::{
    Artifact, BlobAt, Content, FileRange, ImageSink as _, Layer, Piece, Placed, WriteError,
    WriteReport,
};
use tierce_oci::{Digest, ImageFormat, Selector};
use tierce_store::{LocalStore, PieceError, StoreSink};

/// A cache with packs, and a store on the same file system.
struct World {
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn cache(&self) -> PathBuf {
        self.path().join("cache/packs")
    }

    fn root(&self) -> PathBuf {
        Place::Store.path(self.path())
    }

    fn store(&self) -> LocalStore {
        LocalStore::open(self.root()).unwrap()
    }

    fn sink(&self) -> StoreSink {
        self.store().sink(&"name".parse().unwrap()).unwrap()
    }

    /// The two layers of the usual image in as many packs.
    fn sealed(&self, packs: usize) -> Artifact {
        sealed_in(&self.cache(), packs)
    }

    fn write(&self, built: &Artifact) -> WriteReport {
        self.try_write(built).unwrap()
    }

    fn try_write(&self, built: &Artifact) -> Result<WriteReport, WriteError> {
        Place::Store.write(self.path(), built, &Files::default())
    }

    /// Reads all blobs of the stored image.
    fn read(&self) -> Result<(), String> {
        read_all(&Place::Store.read(self.path()), &Files::default()).map(|_| ())
    }

    /// Copies the stored image out of the store.
    fn copy_out(&self) -> Result<WriteReport, WriteError> {
        let stored = Place::Store.read(self.path());
        let layout = tempfile::tempdir().unwrap();
        Place::Layout.write(layout.path(), &stored, &Files::default())
    }

    /// What an unchanged build asks first.
    fn current(&self) -> Option<Digest> {
        run(self.sink().current(&Selector::Tag(tag("1.0")))).unwrap()
    }

    fn pack(&self, name: &str) -> PathBuf {
        self.root().join("packs").join(name)
    }
}

fn two_layers() -> Vec<Layer> {
    vec![
        layer("hello.txt", b"hello"),
        layer("noise.bin", &noise(700_000)),
    ]
}

fn sealed_in(cache: &Path, packs: usize) -> Artifact {
    image_of(
        packed(two_layers(), cache, packs),
        "arm64",
        ImageFormat::Oci,
    )
    .to_artifact()
}

/// The moved blobs: linked, sent.
fn moved(report: &WriteReport) -> (usize, usize) {
    (report.linked.blobs, report.sent.blobs)
}

fn inode(path: &Path) -> (u64, u64) {
    let found = fs::metadata(path).unwrap();
    (found.dev(), found.ino())
}

/// Which pack a failed walk says is of no use, as the program finds it.
fn useless_pack(error: &WriteError) -> PathBuf {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<PieceError>() {
            return error.path().to_owned();
        }
        next = error.source();
    }
    panic!("{}", chain(error))
}

#[test]
fn packs_are_linked_and_recipes_lead_to_them() {
    let world = World::new();
    let built = world.sealed(2);
    let report = world.write(&built);
    assert_eq!(moved(&report), (2, 1));
    let packs = names(&world.cache());
    assert_eq!(names(&world.root().join("packs")), packs);
    for name in &packs {
        assert_eq!(inode(&world.pack(name)), inode(&world.cache().join(name)));
    }
    let mut recipes: Vec<String> = built.blobs[..2]
        .iter()
        .map(|blob| blob.descriptor.digest.hex())
        .collect();
    recipes.sort();
    assert_eq!(names(&world.root().join("recipes/sha256")), recipes);
    assert_eq!(names(&world.root().join("blobs/sha256")).len(), 2);
    assert!(names(&world.root().join("tmp")).is_empty());
    assert!(names(&world.root().join("damage")).is_empty());

    let stored = Place::Store.read(world.path());
    for blob in &stored.blobs[..2] {
        let Content::Pieces(pieces) = &blob.content else {
            panic!("{blob:?}")
        };
        for piece in &**pieces {
            if let Piece::Range(range) = piece {
                assert!(range.path.starts_with(world.root().join("packs")));
            }
        }
    }
    let again = world.write(&built);
    assert!(again.up_to_date);
    world.read().unwrap();
}

#[test]
fn a_stored_image_needs_no_cache() {
    let world = World::new();
    world.write(&world.sealed(2));
    fs::remove_dir_all(world.cache()).unwrap();
    assert!(world.current().is_some());
    assert_eq!(world.copy_out().unwrap().sent.blobs, 3);
    world.store().collect_garbage().unwrap();
    world.read().unwrap();
}

#[test]
fn an_unchanged_build_reads_no_pack() {
    let world = World::new();
    let built = world.sealed(2);
    world.write(&built);
    assert_eq!(world.current(), Some(built.document.digest()));
    // Other bytes are not noticed, other lengths are.
    for name in names(&world.cache()) {
        rot(&world.pack(&name), 20);
    }
    assert_eq!(world.current(), Some(built.document.digest()));
    let name = &names(&world.cache())[0];
    let path = world.pack(name);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    // The index at the end is nothing that a recipe needs.
    file.set_len(length - 1).unwrap();
    assert!(world.current().is_some());
    file.set_len(length - 100).unwrap();
    assert_eq!(world.current(), None);
    file.set_len(length).unwrap();
    assert!(world.current().is_some());
    fs::remove_file(&path).unwrap();
    assert_eq!(world.current(), None);
    fs::create_dir(&path).unwrap();
    assert_eq!(world.current(), None);
}

/// The store's pack and the cache's are one file, so both are damaged.
#[test]
fn a_damaged_pack_is_noticed_when_read_and_healed_when_written() {
    let world = World::new();
    let built = world.sealed(1);
    world.write(&built);
    let name = names(&world.cache()).remove(0);
    let (own, cached) = (world.pack(&name), world.cache().join(&name));
    // In the second segment of the larger layer; the smaller one comes first.
    rot(&own, 150_000);
    let shared = inode(&own);
    let error = world.copy_out().unwrap_err();
    assert_eq!(useless_pack(&error), own);
    let shown = chain(&error);
    assert!(
        shown.contains("could not read blob sha256:")
            && shown.contains("is damaged: the 100000 bytes from")
            && shown.ends_with("on are others than were written"),
        "{shown}"
    );
    assert_eq!(world.current(), None, "known by now");

    // The cache still offers what it has; reading that says that it is as bad.
    for _ in 0..2 {
        let error = world.try_write(&built).unwrap_err();
        assert_eq!(useless_pack(&error), cached);
    }
    // It is taken away, and the layer sealed again.
    fs::remove_file(&cached).unwrap();
    let resealed = world.sealed(1);
    let report = world.write(&resealed);
    assert_eq!(moved(&report), (1, 0));
    assert_ne!(inode(&own), shared);
    assert_eq!(inode(&own), inode(&cached));
    assert!(names(&world.root().join("damage")).is_empty());
    assert!(world.current().is_some());
    world.read().unwrap();
}

#[test]
fn layers_of_the_good_ranges_of_a_damaged_pack_stay_good() {
    let world = World::new();
    let name = |name: &str| name.parse().unwrap();
    let layers = packed(two_layers(), &world.cache(), 1);
    let store = world.store();
    let image =
        |layer: &Layer| image_of(vec![layer.clone()], "arm64", ImageFormat::Oci).to_artifact();
    let images = [image(&layers[0]), image(&layers[1])];
    let put_under = |image: &Artifact, under: &str| {
        let sink = store.sink(&name(under)).unwrap();
        run(put(image, Some(&tag("1")), &Files::default(), &sink)).unwrap()
    };
    put_under(&images[0], "small");
    put_under(&images[1], "large");
    fs::remove_dir_all(world.cache()).unwrap();
    let pack = world.pack(&names(&world.root().join("packs"))[0]);
    rot(&pack, 150_000);
    let read = |under: &str| {
        let image = store.image(&name(under));
        let stored = run(tierce_image::read_artifact(
            &image,
            &Selector::Tag(tag("1")),
        ));
        read_all(&stored.unwrap(), &Files::default())
    };
    read("large").unwrap_err();
    read("small").unwrap();
    assert!(put_under(&images[0], "small").up_to_date);
    assert!(pack.exists(), "nobody else has it any more");

    // Sealed again it takes the place of the damaged one, for both.
    let resealed = packed(two_layers(), &world.cache(), 1);
    assert_eq!(moved(&put_under(&image(&resealed[1]), "large")), (1, 0));
    read("large").unwrap();
    read("small").unwrap();
}

#[test]
fn a_missing_pack_is_told_and_linked_again() {
    let world = World::new();
    let built = world.sealed(2);
    world.write(&built);
    let name = names(&world.cache()).remove(1);
    fs::remove_file(world.pack(&name)).unwrap();
    let error = world.copy_out().unwrap_err();
    assert_eq!(useless_pack(&error), world.pack(&name));
    assert!(chain(&error).ends_with("is not there"), "{}", chain(&error));
    let report = world.write(&built);
    assert_eq!((report.up_to_date, moved(&report).1), (false, 0));
    world.read().unwrap();

    // From the other end: the cache has let go of it between sealing and writing.
    fs::remove_file(world.pack(&name)).unwrap();
    fs::remove_file(world.cache().join(&name)).unwrap();
    let error = world.try_write(&built).unwrap_err();
    assert_eq!(useless_pack(&error), world.cache().join(&name));
}

#[test]
fn a_pack_that_the_store_has_is_not_asked_of_the_cache() {
    let world = World::new();
    let built = world.sealed(1);
    world.write(&built);
    fs::remove_dir_all(world.cache()).unwrap();
    for recipe in names(&world.root().join("recipes/sha256")) {
        fs::remove_file(world.root().join("recipes/sha256").join(recipe)).unwrap();
    }
    assert_eq!(moved(&world.write(&built)), (2, 0));
    world.read().unwrap();
}

#[test]
fn another_file_of_the_name_is_kept_where_it_serves_and_else_replaced() {
    let world = World::new();
    let built = world.sealed(1);
    world.store();
    let name = names(&world.cache()).remove(0);
    let (own, cached) = (world.pack(&name), world.cache().join(&name));
    let good = fs::read(&cached).unwrap();
    let mut bad = good.clone();
    bad[150_000] ^= 1;
    let longer = [&good[..], b"more"].concat();
    for (there, is_kept) in [
        (&good[..], true),
        (&longer[..], true),
        (&bad[..], false),
        (&good[..1000], false),
        (b"", false),
    ] {
        fs::write(&own, there).unwrap();
        let before = inode(&own);
        for recipe in names(&world.root().join("recipes/sha256")) {
            fs::remove_file(world.root().join("recipes/sha256").join(recipe)).unwrap();
        }
        assert_eq!(moved(&world.write(&built)).0, 2);
        assert_eq!(inode(&own) == before, is_kept, "{}", there.len());
        assert_eq!(inode(&own) == inode(&cached), !is_kept);
        assert!(names(&world.root().join("damage")).is_empty());
        world.read().unwrap();
        fs::remove_file(&own).unwrap();
    }
    // Where neither is of use the store's stays as it is: other layers may need it.
    fs::write(&own, &bad).unwrap();
    world.read().unwrap_err();
    fs::write(&cached, &bad[..200_000]).unwrap();
    let error = world.try_write(&built).unwrap_err();
    assert_eq!(useless_pack(&error), cached);
    assert_eq!(fs::read(&own).unwrap(), bad);
}

#[test]
fn a_damaged_recipe_is_like_none() {
    let world = World::new();
    let built = world.sealed(2);
    world.write(&built);
    let digest = built.blobs[1].descriptor.digest;
    let recipe = world.root().join("recipes/sha256").join(digest.hex());
    let good = fs::read(&recipe).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let other = world
        .root()
        .join("recipes/sha256")
        .join(built.blobs[0].descriptor.digest.hex());
    let others = fs::read(other).unwrap();
    let too_large = vec![b' '; (4 << 20) + 1];
    for bad in [
        &flipped[..],
        &good[..good.len() / 2],
        b"",
        &others,
        &too_large,
    ] {
        fs::write(&recipe, bad).unwrap();
        assert_eq!(world.current(), None);
        let error = world.read().unwrap_err();
        assert!(
            error.contains(&format!("could not read blob {digest}")),
            "{error}"
        );
        assert_eq!(moved(&world.write(&built)), (1, 0));
        assert_eq!(fs::read(&recipe).unwrap(), good);
        world.read().unwrap();
    }
    // Nobody can tell which packs it needs: they go when nothing else needs them.
    fs::write(&recipe, flipped).unwrap();
    let garbage = world.store().collect_garbage().unwrap();
    assert_eq!((garbage.blobs, garbage.packs), (0, 1));
    assert_eq!(moved(&world.write(&built)), (1, 0));
    world.read().unwrap();
}

#[test]
fn bytes_and_recipes_stand_in_for_each_other() {
    let world = World::new();
    let in_memory = image_of(two_layers(), "arm64", ImageFormat::Oci).to_artifact();
    let built = world.sealed(1);
    let content = |number: usize| {
        Place::Store.read(world.path()).blobs[number]
            .content
            .clone()
    };

    // Bytes first: nothing needs linking.
    assert_eq!(world.write(&in_memory).sent.blobs, 3);
    assert!(world.write(&built).up_to_date);
    // They rot: a recipe takes their place.
    let digest = built.blobs[1].descriptor.digest;
    let file = world.root().join("blobs/sha256").join(digest.hex());
    rot(&file, 20);
    world.read().unwrap_err();
    assert_eq!(moved(&world.write(&built)), (1, 0));
    assert!(matches!(content(1), Content::Pieces(_)));
    assert!(matches!(content(0), Content::File { .. }));
    world.read().unwrap();
    // Neither is a blob without a mark believed where there is a recipe.
    fs::write(
        &file,
        vec![0; usize::try_from(built.blobs[1].descriptor.size).unwrap()],
    )
    .unwrap();
    assert!(world.current().is_some());
    world.read().unwrap();

    // The pack goes: bytes take its place, and garbage collection drops the recipe.
    fs::remove_dir_all(world.cache()).unwrap();
    let pack = world.pack(&names(&world.root().join("packs"))[0]);
    rot(&pack, 150_000);
    world.read().unwrap_err();
    assert_eq!(world.write(&in_memory).sent.blobs, 1);
    assert!(matches!(content(1), Content::File { .. }));
    world.read().unwrap();
    let garbage = world.store().collect_garbage().unwrap();
    assert_eq!((garbage.blobs, garbage.packs), (0, 1));
    assert!(garbage.bytes > 700_000);
    for directory in ["packs", "recipes/sha256", "damage"] {
        assert!(names(&world.root().join(directory)).is_empty());
    }
    world.read().unwrap();
}

#[test]
fn a_damaged_pack_leads_to_the_origin_where_there_is_one() {
    let world = World::new();
    let built = world.sealed(1);
    let bytes = bytes_of(&two_layers()[1]);
    let origin: tierce_oci::Repository = "ghcr.io/team/app".parse().unwrap();
    let mut pulled = built.clone();
    pulled.blobs[1].content = Content::Origin(origin.clone());
    assert_eq!(world.write(&pulled).noted.blobs, 1);
    let at = BlobAt::clone(&built.blobs[1]);
    let placed = run(world.sink().place(&at)).unwrap();
    assert_eq!(placed, Some(Placed::Linked));
    let content = || Place::Store.read(world.path()).blobs[1].content.clone();
    assert!(matches!(content(), Content::Pieces(_)));
    rot(&world.pack(&names(&world.cache())[0]), 150_000);
    world.read().unwrap_err();
    assert_eq!(content(), Content::Origin(origin));
    let mut files = Files::default();
    files.origins.insert(at.descriptor.digest, bytes);
    read_all(&Place::Store.read(world.path()), &files).unwrap();
}

#[test]
fn garbage_is_counted_by_the_room_that_it_makes() {
    let world = World::new();
    let own = |number: u8| {
        let layers = vec![layer("noise.bin", &noise(300_000 + usize::from(number)))];
        let cache = world.cache();
        image_of(packed(layers, &cache, 1), "arm64", ImageFormat::Oci).to_artifact()
    };
    let images = [own(0), own(1), own(2)];
    let store = world.store();
    let name = "app".parse().unwrap();
    for (number, image) in images.iter().enumerate() {
        let sink = store.sink(&name).unwrap();
        let tag = tag(&number.to_string());
        run(put(image, Some(&tag), &Files::default(), &sink)).unwrap();
    }
    assert_eq!(
        store.collect_garbage().unwrap(),
        tierce_store::Garbage::default()
    );
    let packs = || names(&world.root().join("packs"));
    assert_eq!(packs().len(), 3);

    // While the cache has the pack, the store's name of it takes no room.
    store.remove(&name, Some(&tag("0"))).unwrap();
    let garbage = store.collect_garbage().unwrap();
    assert_eq!((garbage.blobs, garbage.packs), (3, 1));
    assert!(garbage.bytes < 10_000, "{garbage:?}");
    assert_eq!(names(&world.cache()).len(), 3);
    assert_eq!(packs().len(), 2);

    fs::remove_dir_all(world.cache()).unwrap();
    store.remove(&name, Some(&tag("1"))).unwrap();
    let garbage = store.collect_garbage().unwrap();
    assert_eq!((garbage.blobs, garbage.packs), (3, 1));
    assert!(garbage.bytes > 300_000, "{garbage:?}");
    let image = store.image(&name);
    let stored = run(tierce_image::read_artifact(
        &image,
        &Selector::Tag(tag("2")),
    ))
    .unwrap();
    read_all(&stored, &Files::default()).unwrap();

    store.remove(&name, None).unwrap();
    assert_eq!(store.collect_garbage().unwrap().packs, 1);
    for directory in ["packs", "recipes/sha256", "blobs/sha256", "damage"] {
        assert!(names(&world.root().join(directory)).is_empty());
    }
}

#[test]
fn two_stores_share_packs_and_need_each_other_for_nothing() {
    let world = World::new();
    world.write(&world.sealed(2));
    let other = tempfile::tempdir_in(world.path()).unwrap();
    let files = Files::default();
    let report = Place::Store
        .write(other.path(), &Place::Store.read(world.path()), &files)
        .unwrap();
    assert_eq!(moved(&report), (2, 1));
    let packs = names(&Place::Store.path(other.path()).join("packs"));
    assert_eq!(packs, names(&world.cache()));
    fs::remove_dir_all(world.cache()).unwrap();

    // One of them finds the damage, each learns it for itself, and a good copy heals one of them.
    let pack = Place::Store
        .path(other.path())
        .join("packs")
        .join(&packs[0]);
    rot(&pack, 150_000);
    read_all(&Place::Store.read(other.path()), &files).unwrap_err();
    assert!(world.current().is_some());
    world.read().unwrap_err();
    assert_eq!(world.current(), None);
    let resealed = world.sealed(2);
    assert_eq!(moved(&world.write(&resealed)), (1, 0));
    world.read().unwrap();
    read_all(&Place::Store.read(other.path()), &files).unwrap_err();
    let report = Place::Store
        .write(other.path(), &Place::Store.read(world.path()), &files)
        .unwrap();
    assert_eq!(moved(&report), (1, 0));

    fs::remove_dir_all(world.root()).unwrap();
    fs::remove_dir_all(world.cache()).unwrap();
    read_all(&Place::Store.read(other.path()), &files).unwrap();
}

/// The path of each layer's pack leads through `/proc`, which is a file system of its own on every
/// Linux: nothing in it can be linked from elsewhere. Where there is a memory file system too, a
/// cache on that.
#[test]
fn packs_on_another_file_system_are_copied_as_blobs() {
    let world = World::new();
    world.store();
    let built = world.sealed(1);
    let pack = fs::File::open(world.cache().join(&names(&world.cache())[0])).unwrap();
    let far: Arc<Path> = Path::new(&format!("/proc/self/fd/{}", pack.as_raw_fd())).into();
    let mut through_proc = built.clone();
    for blob in &mut through_proc.blobs[..2] {
        let Content::Pieces(pieces) = &blob.content else {
            panic!("{blob:?}")
        };
        let moved = pieces.iter().map(|piece| match piece {
            Piece::Range(range) => Piece::Range(FileRange {
                path: far.clone(),
                ..range.clone()
            }),
            bytes @ Piece::Bytes(_) => bytes.clone(),
        });
        blob.content = Content::Pieces(moved.collect());
    }
    let refused = fs::hard_link(&far, world.path().join("linked")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::CrossesDevices);

    let elsewhere = tempfile::tempdir_in("/dev/shm").ok();
    let in_memory = elsewhere
        .iter()
        .filter(|directory| inode(directory.path()).0 != inode(world.path()).0)
        .map(|directory| sealed_in(directory.path(), 2));
    for built in [through_proc].into_iter().chain(in_memory) {
        assert_eq!(moved(&world.write(&built)), (0, 3));
        for directory in ["packs", "recipes/sha256", "tmp"] {
            assert!(names(&world.root().join(directory)).is_empty());
        }
        assert!(world.current().is_some());
        world.read().unwrap();
        fs::remove_dir_all(world.root()).unwrap();
    }
}

#[test]
fn what_cannot_be_a_recipe_is_kept_as_bytes() {
    let world = World::new();
    let built = world.sealed(1);
    let with = |change: &dyn Fn(&mut Vec<Piece>)| {
        let mut built = built.clone();
        let Content::Pieces(pieces) = &built.blobs[1].content else {
            panic!("made of pieces")
        };
        let mut changed = pieces.to_vec();
        change(&mut changed);
        built.blobs[1].content = Content::Pieces(changed.into());
        built
    };
    let rename = |name: &str| {
        let path: Arc<Path> = world.cache().join(name).into();
        fs::copy(world.cache().join(&names(&world.cache())[0]), &path).unwrap();
        path
    };
    // A name that the store does not want, and one name for two files.
    let (hidden, twin) = (rename(".hidden"), rename("twin"));
    fs::create_dir(world.cache().join("more")).unwrap();
    fs::copy(&twin, world.cache().join("more/twin")).unwrap();
    let other_twin: Arc<Path> = world.cache().join("more/twin").into();
    let set = |pieces: &mut Vec<Piece>, number: usize, path: &Arc<Path>| {
        if let Piece::Range(range) = &mut pieces[number] {
            range.path = path.clone();
        }
    };
    for built in [
        with(&|pieces| set(pieces, 1, &hidden)),
        with(&|pieces| {
            set(pieces, 1, &twin);
            set(pieces, 2, &other_twin);
        }),
    ] {
        let report = world.write(&built);
        assert_eq!(moved(&report), (1, 2));
        world.read().unwrap();
        fs::remove_dir_all(world.root()).unwrap();
    }
    // Pieces that are not the blob: the sending finds out.
    let error = world
        .try_write(&with(&|pieces| {
            pieces.pop();
        }))
        .unwrap_err();
    assert!(chain(&error).contains("bytes where"), "{}", chain(&error));
}

#[test]
fn half_of_a_write_disturbs_nobody() {
    let world = World::new();
    let built = world.sealed(2);
    world.store();
    let packs = names(&world.cache());
    // Killed before the rename, and killed before the recipe.
    let begun = world.root().join("tmp/.tierce-dead01.tmp");
    fs::hard_link(world.cache().join(&packs[1]), &begun).unwrap();
    fs::hard_link(world.cache().join(&packs[0]), world.pack(&packs[0])).unwrap();
    assert_eq!(world.current(), None);
    assert!(!begun.exists(), "opening the store swept it away");
    assert_eq!(world.store().collect_garbage().unwrap().packs, 1);
    fs::hard_link(world.cache().join(&packs[0]), world.pack(&packs[0])).unwrap();
    assert_eq!(moved(&world.write(&built)), (2, 1));
    world.read().unwrap();

    // Killed before the manifest: the recipe has no name that leads to it.
    let world = World::new();
    let built = world.sealed(1);
    let placed = run(world.sink().place(&built.blobs[1])).unwrap();
    assert_eq!(placed, Some(Placed::Linked));
    let garbage = world.store().collect_garbage().unwrap();
    assert_eq!((garbage.blobs, garbage.packs), (1, 1));
    assert_eq!(moved(&world.write(&built)), (2, 1));
}

#[test]
fn a_store_without_packs_becomes_one_with_packs() {
    let world = World::new();
    let in_memory = image_of(two_layers(), "arm64", ImageFormat::Oci).to_artifact();
    world.write(&in_memory);
    fs::write(world.root().join("version"), "1\n").unwrap();
    for directory in ["packs", "recipes/sha256", "recipes", "damage"] {
        fs::remove_dir(world.root().join(directory)).unwrap();
    }
    fs::write(world.root().join("notes.txt"), "mine").unwrap();
    assert!(world.current().is_some());
    let version = fs::read_to_string(world.root().join("version")).unwrap();
    assert_eq!(version, "2\n");
    world.read().unwrap();
    let layers = vec![layer("other", &noise(1000))];
    let built = image_of(packed(layers, &world.cache(), 1), "arm64", ImageFormat::Oci);
    assert_eq!(moved(&world.write(&built.to_artifact())), (1, 1));
    world.read().unwrap();
}

#[test]
fn many_writers_and_a_collector_lose_no_pack() {
    let world = World::new();
    // Six images that share a layer; each writer seals it into a cache of its own, under the same
    // name.
    let sealed = |number: u8| {
        let cache = world.path().join(format!("cache{number}"));
        let shared = packed(vec![layer("shared", &noise(300_000))], &cache, 1);
        let own = packed(vec![layer("own", &[number])], &cache, 1);
        image_of([shared, own].concat(), "arm64", ImageFormat::Oci).to_artifact()
    };
    let images: Vec<Artifact> = (0..6).map(sealed).collect();
    let root = world.root();
    let collected = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (number, image) in images.iter().enumerate() {
            let root = &root;
            scope.spawn(move || {
                for round in 0..8 {
                    let store = LocalStore::open(root).unwrap();
                    let name = format!("app{number}").parse().unwrap();
                    let sink = store.sink(&name).unwrap();
                    run(put(image, Some(&tag("1")), &Files::default(), &sink)).unwrap();
                    drop(sink);
                    if round % 2 == 0 {
                        store.remove(&name, None).unwrap();
                    }
                }
            });
        }
        let (root, collected) = (&root, &collected);
        scope.spawn(move || {
            for _ in 0..100 {
                let store = LocalStore::open(root).unwrap();
                if store.collect_garbage().is_ok() {
                    collected.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    });
    let store = world.store();
    store.collect_garbage().unwrap();
    assert_eq!(names(&root.join("packs")).len(), 7);
    assert_eq!(names(&root.join("recipes/sha256")).len(), 7);
    assert!(names(&root.join("tmp")).is_empty() && names(&root.join("damage")).is_empty());
    for image in store.list().unwrap() {
        let source = store.image(&image.name);
        let stored = run(tierce_image::read_artifact(
            &source,
            &Selector::Tag(image.tag),
        ));
        read_all(&stored.unwrap(), &Files::default()).unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 6);
}

/// The writer tells of every image that it has written, and is killed while it writes the next.
#[test]
fn a_writer_killed_at_any_moment_leaves_a_usable_store() {
    const CHILD: &str = "TIERCE_STORE_TEST_KILLED_WRITER";
    let built = |directory: &Path, number: usize| {
        let layers = vec![
            layer("shared", &noise(200_000)),
            layer("own", &noise(1000 + number)),
        ];
        let layers = packed(layers, &directory.join(format!("cache{number}")), 2);
        image_of(layers, "arm64", ImageFormat::Oci).to_artifact()
    };
    let name = "app".parse().unwrap();
    if let Ok(directory) = std::env::var(CHILD) {
        let directory = Path::new(&directory);
        for number in 0.. {
            let image = built(directory, number);
            let store = LocalStore::open(Place::Store.path(directory)).unwrap();
            let sink = store.sink(&name).unwrap();
            let tag = tag(&number.to_string());
            run(put(&image, Some(&tag), &Files::default(), &sink)).unwrap();
            println!("written {number}");
        }
    }
    for rounds in 1..=6 {
        let world = World::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "packs::a_writer_killed_at_any_moment_leaves_a_usable_store",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, world.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let written = lines
            .map(Result::unwrap)
            .filter(|line| line.contains("written "))
            .take(rounds)
            .count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(written, rounds);

        let store = world.store();
        let images = store.list().unwrap();
        assert!(images.len() >= rounds);
        let garbage = store.collect_garbage().unwrap();
        assert!(garbage.packs <= 2, "{garbage:?}");
        for number in 0..images.len() {
            fs::remove_dir_all(world.path().join(format!("cache{number}"))).unwrap();
        }
        for image in images {
            let source = store.image(&image.name);
            let selector = Selector::Tag(image.tag);
            let stored = run(tierce_image::read_artifact(&source, &selector)).unwrap();
            read_all(&stored, &Files::default()).unwrap();
        }
        // And it goes on where it was.
        let sink = store.sink(&name).unwrap();
        let next = built(world.path(), 1000);
        run(put(&next, Some(&tag("next")), &Files::default(), &sink)).unwrap();
    }
}
