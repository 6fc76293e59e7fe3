//! The stages of a sandbox as a program, for the tests of this crate: `tierce` has them in itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    tierce_runner::sandbox::stage_main(std::env::args_os().skip(1)).unwrap_or(ExitCode::from(2))
}
