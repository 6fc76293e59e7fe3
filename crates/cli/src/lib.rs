//! The command line of tierce: arguments in, one result out.
//!
//! [`main`] reads the arguments and the environment, once, and hands both as values to the command.
//! Libraries report facts; words for people, hints and exit codes are made here.

mod arguments;
mod base;
mod commands;
mod config_file;
mod diagnostic;
mod documents;
mod environment;
mod layers;
mod lock;
mod output;
mod places;
mod plan;
mod progress;
mod registries;
mod sealed;
mod transport;
mod written;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command};
use crate::diagnostic::Diagnostic;
use crate::environment::Environment;
use crate::output::Output;

/// Runs the program: reads arguments and environment, runs the command, reports.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(&arguments.global);
    start_log(arguments.global.verbose, environment::colours_are_welcome());
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            Output::error(&format!("error: could not start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // Dropping the command removes what it has half made.
    let ended = runtime.block_on(async {
        let _handler = survive_file_size_limit();
        tokio::select! {
            result = run(arguments.command, output) => Ended::Itself(result),
            signal = asked_to_end() => Ended::By(signal),
        }
    });
    // Threads that still compress something work for nobody now.
    runtime.shutdown_background();
    match ended {
        Ended::Itself(Ok(())) => ExitCode::SUCCESS,
        Ended::Itself(Err(error)) if diagnostic::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Ended::Itself(Err(error)) => {
            let diagnostic = Diagnostic::of(&error);
            Output::error(&diagnostic.text);
            diagnostic.exit_code()
        }
        // As shells report it: 128 and the signal's number.
        Ended::By(signal) => ExitCode::from(128 + signal),
    }
}

/// How a run came to its end.
enum Ended {
    Itself(anyhow::Result<()>),
    By(u8),
}

/// Makes a write over the limit on the size of files an error like that of a full disk. Without a
/// handler the signal would end the process where it stands, with its temporary files.
fn survive_file_size_limit() -> Option<tokio::signal::unix::Signal> {
    use tokio::signal::unix::{SignalKind, signal};
    /// The same number on every Unix but those for MIPS.
    const SIGXFSZ: i32 = 25;
    signal(SignalKind::from_raw(SIGXFSZ)).ok()
}

/// Waits for Ctrl-C, or for the polite signal of whoever supervises us; gives its number.
async fn asked_to_end() -> u8 {
    const SIGINT: u8 = 2;
    const SIGTERM: u8 = 15;
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => SIGINT,
        _ = terminate.recv() => SIGTERM,
    }
}

async fn run(command: Command, output: Output) -> anyhow::Result<()> {
    let environment = Environment::read()?;
    match command {
        Command::Build(arguments) => commands::build::build(*arguments, &environment, output).await,
        Command::Push(arguments) => commands::copy::push(arguments, &environment, output).await,
        Command::Pull(arguments) => commands::copy::pull(arguments, &environment, output).await,
        Command::Copy(arguments) => commands::copy::copy(arguments, &environment, output).await,
        Command::Inspect(arguments) => {
            commands::inspect::inspect(arguments, &environment, output).await
        }
        Command::Lock(arguments) => commands::lock::lock(arguments, &environment, output).await,
    }
}

/// `-v` shows what tierce does, `-vv` what it says to registries.
fn start_log(verbose: u8, coloured: bool) {
    let filter = match verbose {
        0 => "warn",
        1 => "warn,tierce_cli=info,tierce_registry=info,tierce_store=info,tierce_layer=info",
        _ => "warn,tierce_cli=debug,tierce_registry=debug,tierce_store=debug,tierce_layer=debug",
    };
    // Only a second initialisation fails, and there is none.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .without_time()
        .with_target(false)
        .with_ansi(coloured)
        .try_init();
}
