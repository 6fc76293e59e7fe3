//! Speed and size against flate2 with zlib-rs, in the same run, on segments of a MiB.
//!
//! ```text
//! cargo bench -p tierce-deflate -- [--rounds N] [--every N] [FILE…]
//! ```
//!
//! Files are added to what is generated; of large ones, `--every 4` takes every fourth 4 MiB. The
//! speed is that of the best round in CPU time of the thread, so that a machine with other work to
//! do tells nearly the same; rounds of the encoders alternate.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "generated numbers and reported figures are approximate"
)]

use std::error::Error;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use rustix::time::{ClockId, clock_gettime};
use tierce_deflate::Encoder;

const SEGMENT: usize = 1 << 20;
/// What `--every` counts, as in the measurements that the encoder was designed by.
const STRETCH: usize = 4 << 20;
const GENERATED: usize = 32 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let (mut rounds, mut every, mut files, mut bench) = (5, 1, Vec::new(), false);
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
    println!("{:16} {:12} {:>7} {:>7}", "data", "codec", "MB/s", "ratio");
    for file in files {
        let content = std::fs::read(&file)?;
        let sample: Vec<_> = content.chunks(STRETCH).step_by(every).collect();
        let name = file.rsplit('/').next().unwrap_or_default();
        compare(name, &sample.concat(), rounds);
    }
    for (name, data) in generated() {
        compare(name, &data, rounds);
    }
    Ok(())
}

type Codec = (&'static str, Box<dyn FnMut(&[u8], &mut Vec<u8>)>);

fn codecs() -> Vec<Codec> {
    let mut encoder = Encoder::new();
    let mut codecs: Vec<Codec> = vec![(
        "fast-1",
        Box::new(move |segment, output| {
            let result = encoder.encode_segment(segment, output);
            result.expect("a MiB is not too long");
        }),
    )];
    for (name, level) in [("zlib-rs 1", 1), ("zlib-rs 2", 2), ("zlib-rs 6", 6)] {
        let mut state = Compress::new(Compression::new(level), false);
        codecs.push((
            name,
            Box::new(move |segment, output| {
                state.reset();
                output.reserve(segment.len() + segment.len() / 8 + 1024);
                let status = state.compress_vec(segment, output, FlushCompress::Sync);
                status.expect("a reset state takes a segment");
                assert_eq!(state.total_in(), segment.len() as u64);
            }),
        ));
    }
    codecs
}

fn compare(name: &str, data: &[u8], rounds: usize) {
    let mut codecs = codecs();
    let mut results = vec![(Duration::MAX, 0); codecs.len()];
    let mut output = Vec::with_capacity(2 * SEGMENT);
    for _ in 0..rounds {
        for ((_, encode), (best, size)) in codecs.iter_mut().zip(&mut results) {
            *size = 0;
            let start = cpu_time();
            for segment in data.chunks(SEGMENT) {
                output.clear();
                encode(segment, &mut output);
                *size += output.len();
            }
            *best = (cpu_time().saturating_sub(start)).min(*best);
        }
    }
    for ((codec, _), (best, size)) in codecs.iter().zip(results) {
        let speed = data.len() as f64 / 1e6 / best.as_secs_f64();
        let ratio = size as f64 / data.len() as f64;
        println!("{name:16} {codec:12} {speed:7.0} {ratio:7.4}");
    }
}

/// How long this thread has been running.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a clock that starts at zero")
}

fn generated() -> [(&'static str, Vec<u8>); 4] {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let bf16 = (0..GENERATED / 2).flat_map(|_| {
        let weight = numbers.weight().to_bits().to_le_bytes();
        [weight[2], weight[3]]
    });
    let bf16 = bf16.collect();
    let fp32 = (0..GENERATED / 4).flat_map(|_| numbers.weight().to_le_bytes());
    let fp32 = fp32.collect();
    let noise = (0..GENERATED / 8).flat_map(|_| numbers.next().to_le_bytes());
    let noise = noise.collect();
    [
        ("bf16 weights", bf16),
        ("fp32 weights", fp32),
        ("noise", noise),
        ("zeros", vec![0; GENERATED]),
    ]
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

    /// A weight as models have them: normally distributed, here as the sum of twelve even
    /// distributions, with a deviation of 0.02.
    fn weight(&mut self) -> f32 {
        let sum: u64 = (0..12).map(|_| self.next() >> 33).sum();
        ((sum as f64 / f64::from(1_u32 << 31) - 6.0) * 0.02) as f32
    }
}
