//! Tells which layers a directory would become:
//! `split DIRECTORY DESTINATION [BUDGET_IN_MIB [MOST]]`, for example
//! `split node_modules /var/task/node_modules 64`.
//!
//! For each its uncompressed size and label, the lowest layer first; then how long it took to find
//! out, which is measured best in release mode.

#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "an example prints, and rounds what it prints"
)]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use tierce_layer::{BaseLinks, Destination, ScanAdd, SplitSettings, Treatment, Tree, scan};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let source: PathBuf = arguments.next().ok_or("which directory?")?.into();
    let destination = arguments.next().ok_or("which destination?")?;
    let destination = Destination::parse(destination.as_encoded_bytes())?;
    let mut settings = SplitSettings::default();
    if let Some(budget) = arguments.next() {
        let mebibytes: u64 = budget.to_str().ok_or("which budget?")?.parse()?;
        settings.budget = mebibytes << 20;
    }
    if let Some(most) = arguments.next() {
        settings.most = most.to_str().ok_or("how many layers?")?.parse()?;
    }

    let mut notices = Vec::new();
    let mut tree = Tree::new();
    let add = ScanAdd {
        source: &source,
        destination: &destination,
        exclude: &[],
        include: None,
        treatment: &Treatment::default(),
        jobs: std::thread::available_parallelism()?,
    };
    scan(&add, &mut tree, &mut notices)?;
    let plan = tree.settle(Some(&BaseLinks::none()), &mut notices)?;
    let what = if plan.looks_like_dependencies() {
        "dependencies"
    } else {
        "no dependencies"
    };

    let start = Instant::now();
    let parts = plan.split(&settings);
    let seconds = start.elapsed().as_secs_f64();
    for part in &parts {
        let mebibytes = part.plan.archive_size() as f64 / f64::from(1 << 20);
        let label = part.label.as_deref().unwrap_or("everything");
        println!("{mebibytes:8.1} MiB  {label}");
    }
    println!("{what}, {} layers, {seconds:.3} s", parts.len());
    Ok(())
}
