//! Seals a directory or an archive and tells how long it took: `measure SOURCE [JOBS [OUTPUT]]`.
//!
//! Run it in release mode. The layer goes to OUTPUT, by default the system's temporary directory,
//! and is gone at the end; the numbers are one line of JSON.

#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "an example prints, and rounds what it prints"
)]

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use tierce_layer::{
    ArchiveAdd, BaseLinks, Destination, Fast1, LayerCache, Limits, ScanAdd, SealSettings,
    Treatment, Tree, add_archive, scan, seal,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let source: PathBuf = arguments
        .next()
        .ok_or("which directory or archive?")?
        .into();
    let jobs = match arguments.next() {
        Some(jobs) => jobs.to_str().ok_or("how many jobs?")?.parse()?,
        None => std::thread::available_parallelism()?,
    };
    let output = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);

    let start = Instant::now();
    let mut notices = Vec::new();
    let mut tree = Tree::new();
    let destination = Destination::parse("/var/task/")?;
    let treatment = Treatment::default();
    if source.is_dir() {
        let add = ScanAdd {
            source: &source,
            destination: &destination,
            exclude: &[],
            include: None,
            treatment: &treatment,
            jobs,
        };
        scan(&add, &mut tree, &mut notices)?;
    } else {
        let add = ArchiveAdd {
            destination: &destination,
            exclude: None,
            include: None,
            treatment: &treatment,
            scratch: &output,
            limits: Limits::default(),
        };
        add_archive(&source, &add, &mut tree, &mut notices)?;
    }
    let scanned = start.elapsed();
    let start = Instant::now();
    let plan = tree.settle(Some(&BaseLinks::none()), &mut notices)?;
    let settled = start.elapsed();
    let start = Instant::now();
    let directory = tempfile::tempdir_in(&output)?;
    let cache = LayerCache::open(directory.path().join("cache"), directory.path())?;
    let layer = seal(&plan, &settings(jobs, &cache))?.recipe;
    let sealed = start.elapsed();

    let seconds = sealed.as_secs_f64();
    let megabytes = layer.uncompressed_size as f64 / 1e6;
    println!(
        "{{\"jobs\": {jobs}, \"entries\": {entries}, \"notices\": {notices}, \
         \"segments\": {segments}, \"archive\": {archive}, \"blob\": {blob}, \
         \"scan_s\": {scan:.3}, \"settle_s\": {settle:.3}, \"seal_s\": {seconds:.3}, \
         \"mb_per_s\": {speed:.1}, \"peak_rss_mb\": {rss:.1}, \"diff_id\": \"{diff_id}\", \"digest\": \"{digest}\"}}",
        entries = plan.records().len(),
        notices = notices.len(),
        segments = layer.segments.len(),
        archive = layer.uncompressed_size,
        blob = layer.size,
        scan = scanned.as_secs_f64(),
        settle = settled.as_secs_f64(),
        speed = megabytes / seconds,
        rss = peak_rss()? as f64 / 1e3,
        diff_id = layer.diff_id,
        digest = layer.digest,
    );
    Ok(())
}

fn settings(jobs: NonZeroUsize, cache: &LayerCache) -> SealSettings<'_> {
    SealSettings {
        codec: &Fast1,
        cache,
        last_time: None,
        identity_suffices: false,
        jobs,
        progress: None,
        cancel: None,
        observer: None,
    }
}

/// The most memory this process ever had, in kB.
fn peak_rss() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
