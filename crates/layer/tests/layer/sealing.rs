//! What sealing promises beside the bytes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tempfile::tempdir;
use tierce_layer::{
    Codec, Compression, EncodeError, Encoder, EntryCounts, Limits, Observed, Observer, RecordKind,
    SealError, SealSettings, Stored, TarCheck, Tree, ZlibRs, Zstd, seal, seal_tar,
};

use crate::support::{
    Sealed, archive_of, cache_in, chain, file, gzip, left_in, path, plan_of, scanned, settings,
    tree_of, unpacked, until_it_shows, with_blob, write,
};

fn seal_after(change: impl FnOnce(&Path)) -> String {
    let source = tempdir().unwrap();
    let output = tempdir().unwrap();
    let victim = source.path().join("victim");
    write(&victim, vec![1; 3 << 20]);
    let (tree, _) = scanned(source.path(), "/opt");
    let plan = plan_of(tree);
    change(&victim);
    let cache = cache_in(output.path());
    let error = seal(&plan, &settings(&Stored, &cache, 2)).unwrap_err();
    assert!(left_in(output.path()).is_empty(), "nothing is left behind");
    chain(&error).replace(&source.path().display().to_string(), "SOURCE")
}

#[test]
fn a_file_that_changes_after_the_scan_is_an_error() {
    let changed =
        "could not write `opt/victim` into the layer: `SOURCE/victim` changed while it was read";
    assert_eq!(seal_after(|victim| write(victim, "shorter")), changed);
    assert_eq!(
        seal_after(|victim| write(victim, vec![1; 4 << 20])),
        changed
    );
    assert_eq!(
        seal_after(|victim| {
            let file = File::options().write(true).open(victim).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1))
                .unwrap();
        }),
        changed
    );
    // Other content with the same size and time.
    assert_eq!(
        seal_after(|victim| {
            let time = fs::metadata(victim).unwrap().modified().unwrap();
            until_it_shows(victim, || {
                let mut file = File::options().write(true).open(victim).unwrap();
                file.write_all(b"\x02").unwrap();
                file.set_modified(time).unwrap();
            });
        }),
        changed
    );
    // Another file with the same size and time.
    assert_eq!(
        seal_after(|victim| {
            let time = fs::metadata(victim).unwrap().modified().unwrap();
            let other = victim.with_file_name("other");
            write(&other, vec![2; 3 << 20]);
            File::options()
                .write(true)
                .open(&other)
                .unwrap()
                .set_modified(time)
                .unwrap();
            fs::rename(other, victim).unwrap();
        }),
        changed
    );
    assert_eq!(
        seal_after(|victim| {
            fs::remove_file(victim).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", victim).unwrap();
        }),
        "could not write `opt/victim` into the layer: could not open `SOURCE/victim`: Too many \
         levels of symbolic links (os error 40)"
    );
    assert_eq!(
        seal_after(|victim| fs::remove_file(victim).unwrap()),
        "could not write `opt/victim` into the layer: could not open `SOURCE/victim`: No such \
         file or directory (os error 2)"
    );
    assert_eq!(
        seal_after(|victim| {
            fs::remove_file(victim).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                victim,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .unwrap();
        }),
        changed
    );
}

#[test]
fn a_cache_that_is_not_there_any_more_is_named() {
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    fs::remove_dir_all(output.path().join("scratch")).unwrap();
    let plan = plan_of(Tree::new());
    let error = seal(&plan, &settings(&Stored, &cache, 1)).unwrap_err();
    let shown = chain(&error).replace(&output.path().display().to_string(), "OUTPUT");
    assert!(
        shown.starts_with("could not write the layer to `OUTPUT/scratch`: No such file"),
        "{shown}"
    );
    let error = seal_tar(&b"x"[..], TarCheck::AsIs, &settings(&Stored, &cache, 1));
    assert_eq!(
        chain(&error.unwrap_err()),
        chain(&seal(&plan, &settings(&Stored, &cache, 1)).unwrap_err())
    );
}

fn large() -> Tree {
    tree_of((0..24).map(|index| {
        (
            format!("opt/{index:02}"),
            file(vec![index; 1_000_000 + usize::from(index) * 10_000]),
        )
    }))
}

#[test]
fn progress_is_told_in_order_and_to_the_end() {
    let plan = plan_of(large());
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    let seen = RefCell::new(Vec::new());
    let progress = |bytes| seen.borrow_mut().push(bytes);
    let settings = SealSettings {
        progress: Some(&progress),
        ..settings(&Stored, &cache, 3)
    };
    let layer = seal(&plan, &settings).unwrap().recipe;
    let seen = seen.into_inner();
    assert!(seen.is_sorted());
    assert_eq!(seen.len(), layer.segments.len());
    assert_eq!(seen.last(), Some(&layer.uncompressed_size));
    let counts = EntryCounts {
        directories: 1,
        files: 24,
        ..EntryCounts::default()
    };
    assert_eq!(layer.entries, counts);
}

/// Keeps all pieces, by entry and place.
#[derive(Default)]
struct Watcher(Mutex<BTreeMap<(usize, u64), Vec<u8>>>);

impl Observer for Watcher {
    fn observe(&self, piece: Observed<'_>) {
        let mut pieces = self.0.lock().unwrap();
        let place = (piece.position, piece.offset);
        pieces.insert(place, piece.bytes.to_vec());
    }
}

#[test]
fn an_observer_sees_all_of_every_entry() {
    let mut tree = large();
    for (name, entry) in [("srv/empty", file("")), ("srv/small", file("small"))] {
        tree.insert(path(name), entry, &mut Vec::new()).unwrap();
    }
    let plan = plan_of(tree);
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    let watcher = Watcher::default();
    let settings = SealSettings {
        observer: Some(&watcher),
        ..settings(&Stored, &cache, 3)
    };
    seal(&plan, &settings).unwrap();
    let mut pieces = watcher.0.into_inner().unwrap();
    let mut in_pieces = 0;
    for (position, record) in plan.records().iter().enumerate() {
        let mut seen = Vec::new();
        while let Some(piece) = pieces.remove(&(position, seen.len() as u64)) {
            in_pieces += usize::from(!seen.is_empty());
            seen.extend(piece);
            if seen.is_empty() {
                break;
            }
        }
        let mut expected = Vec::new();
        if let RecordKind::File(content) = &record.kind {
            content
                .append_range(0..content.size(), &mut expected)
                .unwrap();
        }
        assert!(seen == expected, "{}", record.path);
    }
    assert!(pieces.is_empty() && in_pieces > 10);
}

#[test]
fn a_raised_flag_ends_sealing() {
    let plan = plan_of(large());
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    let cancel = AtomicBool::new(false);
    let progress = |_| cancel.store(true, Ordering::Relaxed);
    let settings = SealSettings {
        progress: Some(&progress),
        cancel: Some(&cancel),
        observer: None,
        ..settings(&Stored, &cache, 2)
    };
    assert!(matches!(seal(&plan, &settings), Err(SealError::Cancelled)));
    assert!(left_in(output.path()).is_empty());
}

/// Fails, or panics, at the first segment that begins with a byte.
struct Broken {
    panics: bool,
}

impl Codec for Broken {
    fn id(&self) -> &'static str {
        "broken"
    }

    fn compression(&self) -> Compression {
        Compression::None
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Self {
            panics: self.panics,
        })
    }
}

impl Encoder for Broken {
    fn encode(&mut self, segment: &[u8], _: &mut Vec<u8>) -> Result<(), EncodeError> {
        assert!(!self.panics, "the codec is broken");
        Err(EncodeError {
            codec: "broken",
            length: segment.len(),
        })
    }
}

#[test]
fn a_codec_that_fails_ends_sealing() {
    let plan = plan_of(large());
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    for jobs in [1, 3] {
        let error = seal(&plan, &settings(&Broken { panics: false }, &cache, jobs));
        assert!(chain(&error.unwrap_err()).starts_with(
            "could not compress the layer: codec `broken` could not compress a segment of "
        ));
    }
}

#[test]
fn a_codec_that_panics_does_not_hang() {
    let plan = plan_of(large());
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    let result = std::panic::catch_unwind(|| {
        drop(seal(&plan, &settings(&Broken { panics: true }, &cache, 2)));
    });
    assert!(result.is_err());
}

fn seal_bytes(archive: impl Read + Send, check: TarCheck, jobs: usize) -> Sealed {
    seal_bytes_with(&ZlibRs::default(), archive, check, jobs)
}

fn seal_bytes_with(
    codec: &dyn Codec,
    archive: impl Read + Send,
    check: TarCheck,
    jobs: usize,
) -> Sealed {
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    let layer = seal_tar(archive, check, &settings(codec, &cache, jobs)).unwrap();
    with_blob(layer, codec, &cache)
}

#[test]
fn an_archive_becomes_a_layer_byte_for_byte() {
    let mut archive = archive_of(large());
    for padding in [0, 512, 8192] {
        archive.resize(archive.len() + padding, 0);
        let layer = seal_bytes(&*archive, TarCheck::Strict(Limits::default()), 2);
        assert!(unpacked(&layer) == archive);
        assert_eq!(layer.entries.files, 24);
        assert_eq!(layer.segments.len(), archive.len().div_ceil(1 << 20));
    }
    for codec in [&ZlibRs::default() as &dyn Codec, &Zstd::default()] {
        for bytes in [&b"whatever it is"[..], b""] {
            let layer = seal_bytes_with(codec, bytes, TarCheck::AsIs, 2);
            assert_eq!(unpacked(&layer), bytes, "{}", codec.id());
            assert_eq!(Compression::detect(&layer.blob), codec.compression());
        }
    }
}

/// Gives a byte less than was asked for, and now and then says that it was interrupted.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(7) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buffer.len().min(1 + self.1 * 37 % 5000);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn how_an_archive_arrives_does_not_show() {
    let archive = archive_of(large());
    let expected = seal_bytes(&*archive, TarCheck::AsIs, 2);
    for check in [TarCheck::AsIs, TarCheck::Strict(Limits::default())] {
        let layer = seal_bytes(Slow(&archive, 0), check, 1);
        assert_eq!(layer.digest, expected.digest);
    }
}

#[test]
fn a_compressed_archive_is_no_layer_to_be() {
    let output = tempdir().unwrap();
    let cache = cache_in(output.path());
    let archive = gzip(&archive_of(tree_of([("a", file("x"))])));
    let check = TarCheck::Strict(Limits::default());
    let error = seal_tar(&*archive, check, &settings(&Stored, &cache, 1)).unwrap_err();
    assert!(
        chain(&error)
            .starts_with("could not make a layer of an archive: not a tar archive but gzip")
    );
}
