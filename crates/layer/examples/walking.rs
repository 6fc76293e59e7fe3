//! Tells how long each step takes on the way from a directory to a plan, with the walk beside what
//! `walkdir` needs for the same: `walking DIRECTORY [JOBS [ROUNDS]]`.
//!
//! Run it in release mode. Steps take turns; each line has the best and the median of all rounds, in
//! milliseconds, by the clock and in processor time of all threads. Processor time is what to compare
//! where other programs are running.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tierce_layer::{BaseLinks, Destination, ScanAdd, Treatment, Tree, add_walked, walk};
use walkdir::WalkDir;

const STEPS: [&str; 7] = [
    "walkdir",
    "walk, 1 thread",
    "walk",
    "fingerprint",
    "insert",
    "settle",
    "drop",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let source: PathBuf = arguments.next().ok_or("which directory?")?.into();
    let mut number = |otherwise: usize| match arguments.next() {
        Some(number) => Ok(number.to_str().ok_or("a number?")?.parse()?),
        None => Ok::<_, Box<dyn Error>>(otherwise),
    };
    let jobs = number(std::thread::available_parallelism()?.get())?;
    let rounds = number(15)?;

    let destination = Destination::parse("/var/task/")?;
    let add = ScanAdd {
        source: &source,
        destination: &destination,
        exclude: &[],
        include: None,
        treatment: &Treatment::default(),
        jobs: NonZeroUsize::new(jobs).ok_or("no jobs?")?,
    };
    let alone = ScanAdd {
        jobs: NonZeroUsize::MIN,
        ..add
    };
    let mut taken: [Vec<[Duration; 2]>; STEPS.len()] = Default::default();
    let mut entries = 0;
    for _ in 0..rounds {
        let mut step = 0;
        let mut time = |since: (Instant, Duration)| {
            taken[step].push([since.0.elapsed(), processor_time().saturating_sub(since.1)]);
            step += 1;
        };
        let start = now();
        let mut count = 0_u64;
        for entry in WalkDir::new(&source).min_depth(1).sort_by_file_name() {
            count += u64::from(entry?.metadata()?.len() < u64::MAX);
        }
        time(start);
        let start = now();
        walk(&alone)?;
        time(start);
        let start = now();
        let walked = walk(&add)?;
        time(start);
        let start = now();
        walked.fingerprint();
        time(start);
        let mut tree = Tree::new();
        let mut notices = Vec::new();
        let start = now();
        add_walked(&walked, &add, &mut tree, &mut notices)?;
        time(start);
        entries = count;
        let start = now();
        let plan = tree.settle(Some(&BaseLinks::none()), &mut notices)?;
        time(start);
        let start = now();
        drop((walked, plan));
        time(start);
    }
    println!(
        "{entries} entries, {jobs} jobs, {rounds} rounds: best and median ms, by the clock and of processors"
    );
    for (step, mut taken) in STEPS.into_iter().zip(taken) {
        print!("{step:15}");
        for measure in [0, 1] {
            taken.sort_unstable_by_key(|both| both[measure]);
            for round in [0, rounds / 2] {
                print!(" {:8.1}", taken[round][measure].as_secs_f64() * 1e3);
            }
        }
        println!();
    }
    Ok(())
}

fn now() -> (Instant, Duration) {
    (Instant::now(), processor_time())
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
