//! The function's log on its way to stderr.

use std::sync::atomic::{AtomicU32, Ordering};

use tierce_runner::environment::{LogLine, LogSink, LogSource};

use crate::output::{LogStyle, Output};

/// Shows the lines of a function's log.
#[derive(Debug)]
pub(crate) struct Log {
    output: Output,
    /// The number of the one environment that was heard so far; [`SEVERAL`] once there were more.
    only: AtomicU32,
}

const NOBODY: u32 = 0;
const SEVERAL: u32 = u32::MAX;

impl Log {
    /// Nobody was heard yet.
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            only: AtomicU32::new(NOBODY),
        }
    }

    /// Takes note that an environment spoke; says whether others did before.
    fn are_several(&self, environment: u32) -> bool {
        let seen =
            self.only
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| match seen {
                    NOBODY => Some(environment),
                    seen if seen == environment => None,
                    _ => Some(SEVERAL),
                });
        match seen {
            Ok(NOBODY) => false,
            Ok(_) => true,
            Err(seen) => seen == SEVERAL,
        }
    }
}

impl LogSink for Log {
    fn line(&self, line: LogLine) {
        let prefix = if self.are_several(line.environment) {
            format!("[{}] ", line.environment)
        } else {
            String::new()
        };
        match line.source {
            LogSource::Hint => {
                let text = String::from_utf8_lossy(&line.text);
                self.output.note(&format!("{prefix}tierce: {text}"));
            }
            LogSource::Platform => self.output.log_line(&prefix, &line.text, LogStyle::Dim),
            LogSource::Function | LogSource::Extension => {
                self.output.log_line(&prefix, &line.text, LogStyle::Plain);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{GlobalArguments, ProgressStyle};

    #[test]
    fn environments_are_told_apart_from_the_second_on() {
        let arguments = GlobalArguments {
            verbose: 0,
            quiet: true,
            json: false,
            progress: ProgressStyle::None,
        };
        let log = Log::new(Output::new(&arguments, false));
        let heard: Vec<bool> = [1, 1, 2, 1, 2]
            .map(|number| log.are_several(number))
            .to_vec();
        assert_eq!(heard, [false, false, true, true, true]);
    }
}
