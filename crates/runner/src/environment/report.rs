//! The lines that Lambda itself writes into the log of a function.

use std::time::Duration;

use serde_json::{Value, json};

use super::failure::{Failure, Kind};

/// What a REPORT is made of.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) request_id: &'a str,
    pub(super) duration: Duration,
    /// In MiB.
    pub(super) memory: u32,
    /// In bytes.
    pub(super) memory_peak: u64,
    /// Of the first invocation of an environment.
    pub(super) init: Option<Duration>,
    pub(super) failure: Option<&'a Failure>,
}

impl Report<'_> {
    /// The line. A function's init is billed with its first invocation, as of all functions of
    /// images.
    pub(super) fn line(&self) -> String {
        let init = self
            .init
            .map(|init| format!("Init Duration: {}\t", milliseconds(init)))
            .unwrap_or_default();
        let status = self.failure.map(status).unwrap_or_default();
        format!(
            "REPORT RequestId: {}\tDuration: {}\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {} MB\t{init}{status}",
            self.request_id,
            milliseconds(self.duration),
            self.billed(),
            self.memory,
            self.memory_used(),
        )
    }

    /// The same for telemetry.
    pub(super) fn metrics(&self) -> Value {
        let mut metrics = json!({
            "durationMs": rounded(self.duration),
            "billedDurationMs": self.billed(),
            "memorySizeMB": self.memory,
            "maxMemoryUsedMB": self.memory_used(),
        });
        if let Some(init) = self.init {
            metrics["initDurationMs"] = rounded(init).into();
        }
        metrics
    }

    /// Whole milliseconds, rounded up.
    pub(super) fn billed(&self) -> u64 {
        let nanoseconds = (self.duration + self.init.unwrap_or_default()).as_nanos();
        u64::try_from(nanoseconds.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// In MiB, rounded up, at most what there is.
    pub(super) fn memory_used(&self) -> u64 {
        self.memory_peak
            .div_ceil(1024 * 1024)
            .min(u64::from(self.memory))
    }
}

/// `INIT_REPORT`, which Lambda writes of an init that failed.
/// `phase` is `init`, or `invoke` for one that was tried again.
pub(super) fn init_report(duration: Duration, phase: &str, failure: &Failure) -> String {
    format!(
        "INIT_REPORT Init Duration: {}\tPhase: {phase}\t{}",
        milliseconds(duration),
        status(failure)
    )
}

fn status(failure: &Failure) -> String {
    match failure.kind {
        Kind::Timeout => "Status: timeout".to_owned(),
        Kind::Error => format!("Status: error\tError Type: {}", failure.error_type),
    }
}

/// Milliseconds with three digits after the point, as telemetry has them.
pub(super) fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_lambdas() {
        let failure = Failure::new("Runtime.OutOfMemory", "");
        let timeout = Failure::timed_out(Duration::from_secs(3));
        let report = |micros, init, failure| {
            Report {
                request_id: "7",
                duration: Duration::from_micros(micros),
                memory: 128,
                memory_peak: 3 * 1024 * 1024 + 1,
                init,
                failure,
            }
            .line()
        };
        for (line, expected) in [
            (
                report(1234, None, None),
                "REPORT RequestId: 7\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 4 MB\t",
            ),
            (
                report(1000, Some(Duration::from_micros(500)), None),
                "REPORT RequestId: 7\tDuration: 1.00 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 4 MB\tInit Duration: 0.50 ms\t",
            ),
            (
                report(3_000_000, None, Some(&timeout)),
                "REPORT RequestId: 7\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 4 MB\tStatus: timeout",
            ),
            (
                report(1000, None, Some(&failure)),
                "REPORT RequestId: 7\tDuration: 1.00 ms\tBilled Duration: 1 ms\tMemory Size: 128 MB\tMax Memory Used: 4 MB\tStatus: error\tError Type: Runtime.OutOfMemory",
            ),
            (
                init_report(Duration::from_secs(10), "init", &timeout),
                "INIT_REPORT Init Duration: 10000.00 ms\tPhase: init\tStatus: timeout",
            ),
        ] {
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn no_more_memory_was_used_than_there_is() {
        let report = Report {
            request_id: "7",
            duration: Duration::ZERO,
            memory: 128,
            memory_peak: 200 * 1024 * 1024,
            init: None,
            failure: None,
        };
        assert_eq!(report.memory_used(), 128);
    }
}
