//! The command line of tierce: arguments in, one result out.
//!
//! [`main`] reads the arguments and the environment, once, and hands both as values to the command.
//! Libraries report facts; words for people, hints and exit codes are made here.

mod age;
mod arguments;
mod background;
mod base;
mod base_facts;
mod base_links;
mod byte_size;
mod commands;
mod config_file;
mod dependencies;
mod diagnostic;
mod docker_config;
mod documents;
mod ecr_name;
mod environment;
mod gate;
mod handler;
mod head_start;
mod init;
mod interrupt;
mod layer_facts;
mod layer_stream;
mod layers;
mod lock;
mod memory;
mod notices;
mod output;
mod places;
mod plan;
mod prebuilds;
mod profile;
mod progress;
mod quantity;
mod records;
mod registries;
mod registries_file;
mod run;
mod sarif;
mod sealed;
mod source;
mod sources;
mod time_span;
mod transport;
mod verdict;
mod verdict_cache;
mod written;

use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::arguments::{Arguments, Command};
use crate::diagnostic::Diagnostic;
use crate::environment::Environment;
use crate::interrupt::Interrupt;
use crate::output::Output;

/// Runs the program: reads arguments and environment, runs the command, reports.
pub fn main() -> ExitCode {
    // First of all, while there is one thread: a box is begun by this program too.
    if let Some(ended) = tierce_runner::sandbox::stage_main(std::env::args_os().skip(1)) {
        return ended;
    }
    let arguments = Arguments::parse();
    let coloured = environment::colours_are_welcome();
    let output = Output::new(&arguments.global, coloured);
    start_log(arguments.global.verbose, coloured);
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
    let ended = run_until_told_to_end(&runtime, arguments.command, output);
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

/// How long a run that is asked to end may take to remove what it has half made. What it then
/// leaves is swept by the next run.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a command that ends by itself may take over that. Extensions of a function have two
/// seconds for their last words, after an environment that may still be starting.
const LAST_WORDS: Duration = Duration::from_secs(6);

/// Runs the command on a thread of its own, so that a signal is heeded even while the command waits
/// for a disk or a lock.
fn run_until_told_to_end(runtime: &Runtime, command: Command, output: Output) -> Ended {
    let (sender, receiver) = mpsc::channel();
    let told = Arc::new(Notify::new());
    let (interrupt, interrupted) = Interrupt::new();
    let ends_by_itself = ends_by_itself(&command);
    let (handle, own_sender, own_told) =
        (runtime.handle().clone(), sender.clone(), Arc::clone(&told));
    let signalled = interrupted.clone();
    let begun = std::thread::Builder::new().spawn(move || {
        let result = handle.block_on(async {
            let _handler = survive_file_size_limit();
            tokio::select! {
                result = run(command, output, interrupted) => Some(result),
                // Dropping the command removes what it has half made.
                () = own_told.notified() => None,
            }
        });
        match result {
            // It has ended because it was told to: how is for the one who told it to say.
            Some(Ok(())) if signalled.has_come() => {}
            Some(result) => drop(own_sender.send(Ended::Itself(result))),
            None => {}
        }
    });
    let thread = match begun {
        Ok(thread) => thread,
        Err(error) => return Ended::Itself(Err(error.into())),
    };
    // On a thread and a runtime of their own: a log that nobody reads may block all others for ever.
    let listening = std::thread::Builder::new().spawn(move || {
        let listener = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(listener) = listener else {
            // A signal ends the process where it stands, as it does by default.
            return;
        };
        listener.block_on(async {
            let mut signals = Signals::listen();
            let signal = signals.next().await;
            if ends_by_itself {
                interrupt.send_replace(true);
                tokio::select! {
                    () = end_of(&thread) => {}
                    () = tokio::time::sleep(LAST_WORDS) => {}
                    _ = signals.next() => {}
                }
            }
            told.notify_one();
            let _ = tokio::time::timeout(PATIENCE, end_of(&thread)).await;
            let _ = sender.send(Ended::By(signal));
        });
    });
    if let Err(error) = listening {
        return Ended::Itself(Err(error.into()));
    }
    receiver.recv().unwrap_or(Ended::Itself(Err(anyhow::anyhow!(
        "the command ended without a result: this is a bug in tierce"
    ))))
}

/// Waits until a thread has ended.
async fn end_of(thread: &JoinHandle<()>) {
    while !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a command has more to do at its end than what dropping it does.
fn ends_by_itself(command: &Command) -> bool {
    match command {
        Command::Run(_) => true,
        Command::Invoke(arguments) => arguments.image.is_some(),
        _ => false,
    }
}

/// How a run came to its end.
enum Ended {
    Itself(anyhow::Result<()>),
    By(u8),
}

/// Makes a write over the limit on the size of files an error like that of a full disk. Without a
/// handler the signal would end the process where it stands, with its temporary files.
fn survive_file_size_limit() -> Option<Signal> {
    /// The same number on every Unix but those for MIPS.
    const SIGXFSZ: i32 = 25;
    signal(SignalKind::from_raw(SIGXFSZ)).ok()
}

/// Ctrl-C, the polite signal of whoever supervises us, and the end of the terminal.
struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    /// Nothing where it is ignored, as under `nohup`.
    hang_up: Option<Signal>,
}

impl Signals {
    fn listen() -> Self {
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
            hang_up: (!ignores_hang_up())
                .then(|| signal(SignalKind::hangup()).ok())
                .flatten(),
        }
    }

    /// Waits for the next one; gives its number.
    async fn next(&mut self) -> u8 {
        const SIGINT: u8 = 2;
        const SIGTERM: u8 = 15;
        let (Some(interrupt), Some(terminate)) = (&mut self.interrupt, &mut self.terminate) else {
            return std::future::pending().await;
        };
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => SIGINT,
            _ = terminate.recv() => SIGTERM,
            _ = hang_up => SIGHUP,
        }
    }
}

const SIGHUP: u8 = 1;

/// Whether whoever started us wants us to outlive the terminal. Listening to a signal ends that it
/// is ignored, so it is asked for before (`proc_pid_status(5)`).
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|ignored| u64::from_str_radix(ignored.trim(), 16).ok())
        .is_some_and(|ignored| ignored & 1 << (SIGHUP - 1) != 0)
}

async fn run(command: Command, output: Output, interrupt: Interrupt) -> anyhow::Result<()> {
    let environment = Environment::read()?;
    match command {
        Command::Init(arguments) => commands::init::init(&arguments, output),
        Command::Build(arguments) => commands::build::build(*arguments, &environment, output).await,
        Command::Push(arguments) => commands::copy::push(arguments, &environment, output).await,
        Command::Pull(arguments) => commands::copy::pull(arguments, &environment, output).await,
        Command::Copy(arguments) => commands::copy::copy(arguments, &environment, output).await,
        Command::Inspect(arguments) => {
            commands::inspect::inspect(arguments, &environment, output).await
        }
        Command::Lint(arguments) => commands::lint::lint(arguments, &environment, output).await,
        Command::Run(arguments) => {
            Box::pin(commands::run::run(
                *arguments,
                &environment,
                output,
                &interrupt,
            ))
            .await
        }
        Command::Invoke(arguments) => {
            let invoked = commands::invoke::invoke(*arguments, &environment, output, &interrupt);
            Box::pin(invoked).await
        }
        Command::Attach(arguments) => {
            commands::referrers::attach(arguments, &environment, output).await
        }
        Command::Referrers(arguments) => {
            commands::referrers::referrers(arguments, &environment, output).await
        }
        Command::Lock(arguments) => commands::lock::lock(arguments, &environment, output).await,
        Command::Cache(arguments) => commands::cache::cache(&arguments, &environment, output),
        Command::Ecr(arguments) => {
            commands::ecr::ecr(arguments.command, &environment, output).await
        }
    }
}

/// `-v` shows what tierce does, `-vv` what it says to registries.
fn start_log(verbose: u8, coloured: bool) {
    // What the AWS SDK warns of comes as an error too, or is no matter.
    let filter = match verbose {
        0 => "warn,aws_config=off,aws_runtime=off,aws_smithy_runtime=off",
        1 => {
            "warn,aws_config=off,aws_runtime=off,aws_smithy_runtime=off,tierce_cli=info,\
             tierce_registry=info,tierce_aws=info,tierce_store=info,tierce_layer=info,\
             tierce_runner=info"
        }
        _ => {
            "warn,tierce_cli=debug,tierce_registry=debug,tierce_aws=debug,tierce_store=debug,\
             tierce_layer=debug,tierce_runner=debug"
        }
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
