//! The parts of a layer's making, each beside what one would take from the shelf, in the same run.
//!
//! ```text
//! cargo bench -p tierce-layer [-- FILTER]
//! LAYER_BENCH_FOLDER=FOLDER cargo bench -p tierce-layer      a real folder in place of a made one
//! ```
//!
//! Criterion says how long each takes; the ratios are printed at the end, of medians over all calls,
//! warm-up included. Cutting segments has no entry of its own: it is what sealing with stored blocks
//! does besides reading and hashing.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "generated numbers are approximate"
)]

use std::cell::RefCell;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use tierce_layer::{
    BaseLinks, Codec, Destination, Fast1, LayerCache, Plan, ScanAdd, SealSettings, Stored,
    Treatment, Tree, ZlibRs, scan, seal,
};
use tierce_oci::Hasher;
use walkdir::WalkDir;

criterion_group!(parts, walking, settling, encoding, sealing);
criterion_main!(parts);

const SEGMENT: usize = 1 << 20;
const MADE_DIRECTORIES: usize = 150;
const MADE_FILES_EACH: usize = 20;
const MADE_WEIGHTS: usize = 8 << 20;

fn walking(criterion: &mut Criterion) {
    let source = Source::new();
    let race = Race::new("walking");
    let mut group = criterion.benchmark_group("walking");
    group.throughput(Throughput::Elements(source.entries()));
    group.bench_function("scan", |bencher| {
        bencher.iter_custom(|times| race.run("scan", times, || source.scan()));
    });
    group.bench_function("walkdir, sorted, with metadata", |bencher| {
        bencher.iter_custom(|times| {
            race.run("walkdir, sorted, with metadata", times, || {
                let walk = WalkDir::new(source.path()).sort_by_file_name();
                let entries = walk.into_iter().map(|entry| {
                    let entry = entry.expect("the source stays as it is");
                    let metadata = entry.metadata().expect("the source stays as it is");
                    (entry.into_path(), metadata)
                });
                entries.collect::<Vec<_>>()
            })
        });
    });
    group.finish();
    race.finish();
}

/// Where entries go, what becomes of compiled Python, and the order of all.
fn settling(criterion: &mut Criterion) {
    let source = Source::new();
    let mut group = criterion.benchmark_group("settling");
    group.throughput(Throughput::Elements(source.entries()));
    group.sample_size(20);
    group.bench_function("settle", |bencher| {
        bencher.iter_batched(|| source.scan(), settled, BatchSize::LargeInput);
    });
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    for (content, data) in [("text", text(SEGMENT)), ("weights", weights(SEGMENT))] {
        let title = format!("encoding a segment of {content}");
        let race = Race::new(&title);
        let mut group = criterion.benchmark_group(&title);
        group.throughput(Throughput::Bytes(SEGMENT as u64));
        group.sample_size(20);
        let small = ZlibRs::default();
        for (name, codec) in [("fast-1", &Fast1 as &dyn Codec), ("zlib-rs 6", &small)] {
            let mut encoder = codec.encoder();
            let mut blocks = Vec::new();
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|times| {
                    race.run(name, times, || {
                        blocks.clear();
                        let done = encoder.encode(&data, &mut blocks);
                        done.expect("a codec takes a segment");
                    })
                });
            });
        }
        let peer = "flate2 level 1";
        group.bench_function(peer, |bencher| {
            bencher.iter_custom(|times| {
                race.run(peer, times, || {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                    encoder.write_all(&data).expect("memory takes it all");
                    encoder.finish().expect("memory takes it all")
                })
            });
        });
        group.finish();
        race.finish();
    }
}

/// From a plan to a blob on disk with both digests: reading, archive, segments, compression, hashes.
fn sealing(criterion: &mut Criterion) {
    let source = Source::new();
    let plan = settled(source.scan());
    let output = TempDir::new().expect("there is room for a directory");
    let jobs = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    for (name, codec, level) in [
        ("stored", &Stored as &dyn Codec, 0),
        ("fast", &Fast1, 6),
        ("small", &ZlibRs::default(), 6),
    ] {
        let race = Race::new(&format!("sealing, {name}"));
        let mut group = criterion.benchmark_group(format!("sealing, {name}"));
        group.sample_size(10);
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(Throughput::Bytes(source.bytes()));
        group.bench_function("seal", |bencher| {
            bencher.iter_custom(|times| {
                race.run("seal", times, || {
                    // A cache of its own each time: what is known need not be sealed.
                    let directory = TempDir::new_in(output.path()).expect("there is room");
                    let cache = LayerCache::open(directory.path(), directory.path())
                        .expect("the directory is new");
                    let settings = SealSettings {
                        codec,
                        cache: &cache,
                        last_time: None,
                        identity_suffices: false,
                        jobs,
                        progress: None,
                        cancel: None,
                        observer: None,
                    };
                    seal(&plan, &settings).expect("the source stays as it is")
                })
            });
        });
        let peer = format!("tar crate, flate2 level {level}, two hashes, one thread");
        group.bench_function(&peer, |bencher| {
            bencher.iter_custom(|times| {
                race.run(&peer, times, || {
                    from_the_shelf(&source, level, output.path());
                })
            });
        });
        group.finish();
        race.finish();
    }
}

/// The same job by the crates that one would take for it.
fn from_the_shelf(source: &Source, level: u32, output: &Path) {
    let file = tempfile::tempfile_in(output).expect("there is room for a file");
    let blob = Hashing::new(io::BufWriter::with_capacity(SEGMENT, file));
    let archive = Hashing::new(GzEncoder::new(blob, Compression::new(level)));
    let mut builder = tar::Builder::new(archive);
    builder.follow_symlinks(false);
    builder
        .append_dir_all("var/task", source.path())
        .expect("the source stays as it is");
    let archive = builder.into_inner().expect("there is room for a file");
    let (encoder, diff_id) = archive.finish();
    let blob = encoder.finish().expect("there is room for a file");
    black_box((diff_id, blob.finish().1.finish()));
}

/// Hashes what passes through.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        let hasher = Hasher::new();
        Self { inner, hasher }
    }

    fn finish(self) -> (W, Hasher) {
        (self.inner, self.hasher)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Several ways to do one thing, of which the first is ours.
struct Race {
    title: String,
    times: RefCell<Vec<(String, Vec<Duration>)>>,
}

impl Race {
    fn new(title: &str) -> Self {
        let title = title.to_owned();
        let times = RefCell::default();
        Self { title, times }
    }

    /// Does it so many times, as criterion's `iter_custom` asks, and remembers how long one took.
    fn run<R>(&self, name: &str, times: u64, mut work: impl FnMut() -> R) -> Duration {
        let start = Instant::now();
        for _ in 0..times {
            black_box(work());
        }
        let took = start.elapsed();
        let mut all = self.times.borrow_mut();
        let one = took / u32::try_from(times).unwrap_or(u32::MAX).max(1);
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, times)) => times.push(one),
            None => all.push((name.to_owned(), vec![one])),
        }
        took
    }

    /// Prints how the others compare with the first. Filters may have left nobody to compare.
    fn finish(self) {
        let mut medians = self.times.into_inner().into_iter().map(|(name, times)| {
            let mut times = times;
            times.sort_unstable();
            (name, times[times.len() / 2].as_secs_f64())
        });
        let Some((own, time)) = medians.next() else {
            return;
        };
        for (peer, peers_time) in medians {
            let ratio = peers_time / time;
            println!(
                "{}: {own} is {ratio:.2} times as fast as {peer}",
                self.title
            );
        }
    }
}

/// The folder that is measured: a made one, or what `LAYER_BENCH_FOLDER` names.
enum Source {
    Made(TempDir),
    Real(PathBuf),
}

impl Source {
    fn new() -> Self {
        match std::env::var_os("LAYER_BENCH_FOLDER") {
            Some(folder) => Self::Real(folder.into()),
            None => Self::Made(made().expect("there is room for a made folder")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Made(directory) => directory.path(),
            Self::Real(path) => path,
        }
    }

    fn entries(&self) -> u64 {
        WalkDir::new(self.path()).into_iter().count() as u64
    }

    fn bytes(&self) -> u64 {
        let entries = WalkDir::new(self.path()).into_iter().flatten();
        let files = entries.filter(|entry| entry.file_type().is_file());
        files
            .map(|file| file.metadata().map_or(0, |metadata| metadata.len()))
            .sum()
    }

    fn scan(&self) -> Tree {
        let mut tree = Tree::new();
        let add = ScanAdd {
            source: self.path(),
            destination: &Destination::parse("/var/task/").expect("a destination"),
            exclude: &[],
            include: None,
            treatment: &Treatment::default(),
            jobs: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        scan(&add, &mut tree, &mut Vec::new()).expect("the source stays as it is");
        tree
    }
}

fn settled(tree: Tree) -> Plan {
    tree.settle(Some(&BaseLinks::none()), &mut Vec::new())
        .expect("a folder settles on an empty base")
}

/// Some 40 MB: packages of small modules, and a few large files of weights.
fn made() -> io::Result<TempDir> {
    let root = TempDir::new()?;
    let words = text(SEGMENT);
    for directory in 0..MADE_DIRECTORIES {
        let package = root.path().join(format!("package_{directory:03}/part"));
        fs::create_dir_all(&package)?;
        for file in 0..MADE_FILES_EACH {
            let start = (directory * MADE_FILES_EACH + file) * 331 % (SEGMENT / 2);
            let length = 500 + file * file * 50;
            let module = package.join(format!("module_{file}.py"));
            fs::write(module, &words[start..start + length])?;
        }
    }
    for number in 0..4 {
        let shard = root.path().join(format!("weights_{number}.bin"));
        fs::write(shard, weights(MADE_WEIGHTS))?;
    }
    Ok(root)
}

/// Code as people write it: the workspace's own, over and over.
fn text(length: usize) -> Vec<u8> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let walk = WalkDir::new(crates).sort_by_file_name().into_iter();
    let sources = walk
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".rs"))
        .map(|entry| fs::read(entry.path()).expect("the sources stay where they are"));
    let text = sources.collect::<Vec<_>>().concat();
    text.into_iter().cycle().take(length).collect()
}

/// Normally distributed 16-bit floats.
fn weights(length: usize) -> Vec<u8> {
    let mut numbers = Numbers(0x0fed_cba9_8765_4321);
    let weights = (0..length / 2).flat_map(|_| {
        let sum: u64 = (0..12).map(|_| numbers.next() >> 33).sum();
        let weight = (sum as f64 / f64::from(1_u32 << 31) - 6.0) * 0.02;
        let bytes = (weight as f32).to_bits().to_le_bytes();
        [bytes[2], bytes[3]]
    });
    weights.collect()
}

/// Marsaglia's xorshift64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
