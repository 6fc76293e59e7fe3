//! Speed and size of every codec in the same run, on segments of a MiB.
//!
//! ```text
//! cargo bench -p tierce-layer -- [--rounds N] [--every N] FILE…
//! ```
//!
//! Of large files, `--every 4` takes every fourth 4 MiB. The speed is that of the best round in CPU
//! time of the thread, so that a machine with other work to do tells nearly the same; rounds of the
//! codecs alternate.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(
    clippy::cast_precision_loss,
    reason = "reported figures are approximate"
)]

use std::error::Error;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tierce_layer::{Codec, Fast1, Stored, ZlibLevel, ZlibRs, Zstd, ZstdLevel};

const SEGMENT: usize = 1 << 20;
const STRETCH: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut every, mut files, mut bench) = (3, 1, Vec::new(), false);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().unwrap_or_default().parse();
        match &*argument {
            "--bench" => bench = true,
            "--rounds" => rounds = number()?,
            "--every" => every = number()?,
            _ => files.push(argument),
        }
    }
    // `cargo test --all-targets` runs benchmarks too, without this argument.
    if !bench {
        return Ok(());
    }
    println!("{:16} {:16} {:>7} {:>7}", "data", "codec", "MB/s", "ratio");
    for file in files {
        let content = std::fs::read(&file)?;
        let sample: Vec<_> = content.chunks(STRETCH).step_by(every).collect();
        let name = file.rsplit('/').next().unwrap_or_default();
        compare(name, &sample.concat(), rounds)?;
    }
    Ok(())
}

fn codecs() -> Vec<Box<dyn Codec>> {
    let mut codecs: Vec<Box<dyn Codec>> = vec![Box::new(Stored), Box::new(Fast1)];
    for level in [1, 2, 6, 9].into_iter().filter_map(ZlibLevel::new) {
        codecs.push(Box::new(ZlibRs::new(level)));
    }
    for level in [1, 2, 3, 4, 5, 6, 9, 12, 19]
        .into_iter()
        .filter_map(ZstdLevel::new)
    {
        codecs.push(Box::new(Zstd::new(level)));
    }
    codecs
}

fn compare(name: &str, data: &[u8], rounds: usize) -> Result<(), Box<dyn Error>> {
    let codecs = codecs();
    let mut encoders: Vec<_> = codecs.iter().map(|codec| codec.encoder()).collect();
    let mut results = vec![(Duration::MAX, 0); codecs.len()];
    let mut output = Vec::with_capacity(2 * SEGMENT);
    for _ in 0..rounds {
        for (encoder, (best, size)) in encoders.iter_mut().zip(&mut results) {
            *size = 0;
            let start = cpu_time();
            for segment in data.chunks(SEGMENT) {
                output.clear();
                encoder.encode(segment, &mut output)?;
                *size += output.len();
            }
            *best = cpu_time().saturating_sub(start).min(*best);
        }
    }
    for (codec, (best, size)) in codecs.iter().zip(results) {
        let speed = data.len() as f64 / 1e6 / best.as_secs_f64();
        let ratio = size as f64 / data.len() as f64;
        println!("{name:16} {:16} {speed:7.0} {ratio:7.4}", codec.id());
    }
    Ok(())
}

/// How long this thread has been running.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a clock that starts at zero")
}
