//! `tierce run`: prepare → listen → start → say where → until Ctrl-C, and anew when something changed.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tierce_oci::Digest;
use tierce_runner::environment::State;
use tierce_runner::invoke::PoolSettings;

use crate::diagnostic::{Diagnostic, Hinted as _, UsageError};
use crate::environment::Environment;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::run::arguments::{RunArguments, payloads};
use crate::run::prepare::{Preparation, Prepared, Subject};
use crate::run::session::{Session, SessionSettings, endpoint, listen, settle};
use crate::run::watch::Watch;

/// Runs `tierce run`.
pub(crate) async fn run(
    arguments: RunArguments,
    environment: &Environment,
    output: Output,
    interrupt: &Interrupt,
) -> Result<()> {
    let subject = Subject::of(&arguments.image, output)?;
    let context = match (&subject, arguments.watch) {
        (Subject::Context(context), true) => Some(context.clone()),
        (Subject::Image(_), true) => {
            return Err(UsageError(
                "--watch is for a folder, and an image is named".to_owned(),
            ))
            .hint("`tierce run --watch CONTEXT` builds and runs what is in a folder");
        }
        (_, false) => None,
    };
    let listener = listen(arguments.listen, arguments.port)?;
    let settled = settle(
        &arguments.name,
        payloads(arguments.any_payload),
        &arguments.function,
        &arguments.registry,
        environment,
        output,
    );
    let Some((boxes, surroundings)) = unless_interrupted(interrupt, settled).await? else {
        return Ok(());
    };
    let preparation = Preparation {
        arguments: &arguments.function,
        registry: &arguments.registry,
        surroundings: &surroundings,
        environment,
        wants_one_directory: boxes.runtime().wants_one_directory,
    };
    let mut watching = match context {
        Some(context) => Some(Watching::begin(context, &preparation)?),
        None => None,
    };
    let prepared = preparation.prepare(&subject, output);
    let Some(prepared) = unless_interrupted(interrupt, prepared).await? else {
        return Ok(());
    };
    let settings = SessionSettings {
        pool: PoolSettings {
            concurrency: arguments.concurrency.get(),
            idle: arguments.idle.0.unwrap_or(std::time::Duration::MAX),
            throttle: arguments.throttle,
        },
        hosts: arguments.host.clone(),
        event_retries: event_retries(arguments.event_retries),
    };
    let session = Session::open(listener, &prepared, settings, boxes)?;
    let running = async {
        announce(&session, &prepared, &arguments, output).await?;
        match &mut watching {
            Some(watching) => {
                watching
                    .follow(&session, &preparation, prepared.digest, output)
                    .await
            }
            None => std::future::pending().await,
        }
    };
    let ended = unless_interrupted(interrupt, running).await;
    session.end().await;
    ended.map(drop)
}

/// Runs `work` to its end, or gives it up when the user wants an end.
async fn unless_interrupted<T>(
    interrupt: &Interrupt,
    work: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    let work = pin!(work);
    tokio::select! {
        done = work => done.map(Some),
        () = interrupt.comes() => Ok(None),
    }
}

/// The pauses before an event is tried again: Lambda waits a minute, then two (AWS Lambda Developer
/// Guide, "Error handling for asynchronous invocation").
fn event_retries(attempts: u8) -> Vec<Duration> {
    (1..=u64::from(attempts))
        .map(|minutes| Duration::from_secs(60 * minutes))
        .collect()
}

/// Starts the function, and says where it is.
async fn announce(
    session: &Session,
    prepared: &Prepared,
    arguments: &RunArguments,
    output: Output,
) -> Result<()> {
    let state = session.warm_up().await?;
    let function = &prepared.function;
    if !arguments.listen.is_loopback() {
        output.warn(&format!(
            "whoever reaches {} can invoke the function, and with it what it may do here",
            session.address()
        ));
    }
    match state {
        State::InitFailed(words) => output.note(&format!(
            "tierce: the function did not start ({words}); the next invocation tries again"
        )),
        _ => output.note(&format!(
            "tierce: ready, with {} MiB{} and {} for an invocation",
            function.memory,
            match &session.runtime().memory {
                Some(keeper) => format!(" (kept by {keeper})"),
                None => String::new(),
            },
            match arguments.function.timeout.0 {
                Some(limit) => format!("{} s", limit.as_secs_f64()),
                None => "no limit".to_owned(),
            }
        )),
    }
    let base = endpoint(session.address());
    let url = format!("{base}/2015-03-31/functions/{}/invocations", function.name);
    if output.json {
        return output.result_json(&json!({
            "url": url,
            "endpoint": base,
            "function": function.name,
            "arn": function.arn(),
            "image": prepared.digest,
        }));
    }
    output.result_line(&url)
}

/// A folder whose changes are followed.
struct Watching {
    context: PathBuf,
    watch: Watch,
    /// What the image was made of when that was last known.
    inputs: Vec<PathBuf>,
}

impl Watching {
    /// Watches from now on, before the first build.
    fn begin(context: PathBuf, preparation: &Preparation<'_>) -> Result<Self> {
        let environment = preparation.environment;
        let own: [&Path; 2] = [&environment.cache, &environment.store];
        let mut watching = Self {
            watch: Watch::new(&context, &own)?,
            context,
            inputs: Vec::new(),
        };
        watching.cover(preparation)?;
        Ok(watching)
    }

    /// Watches what the image is made of as it is now.
    fn cover(&mut self, preparation: &Preparation<'_>) -> Result<()> {
        // What cannot be planned now goes on being made of what it was made of.
        if let Ok(plan) = preparation.plan(&self.context) {
            self.inputs = plan.inputs();
        }
        Ok(self.watch.cover(&self.inputs)?)
    }

    /// Builds whenever something changed, and goes on with that when it is another image. What
    /// cannot be built is told, and what runs goes on. Ends with an error alone.
    async fn follow(
        &mut self,
        session: &Session,
        preparation: &Preparation<'_>,
        mut running: Digest,
        output: Output,
    ) -> Result<()> {
        let subject = Subject::Context(self.context.clone());
        let shown = self.context.display().to_string();
        output.note(&format!("tierce: watching {shown}"));
        loop {
            self.watch.changed().await?;
            let begun = Instant::now();
            self.cover(preparation)?;
            // What the first build said of the folder is not said again each time.
            match preparation.prepare(&subject, output.hushed()).await {
                Ok(prepared) if prepared.digest == running => {}
                Ok(prepared) => {
                    running = prepared.digest;
                    session.replace(&prepared);
                    output.note(&format!(
                        "tierce: {shown} changed; built anew in {} ms",
                        begun.elapsed().as_millis()
                    ));
                }
                Err(error) => {
                    Output::error(&Diagnostic::of(&error).text);
                    output.note("tierce: the function goes on as it was");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_tried_again_as_often_as_it_is_said() {
        let seconds = |attempts| -> Vec<u64> {
            event_retries(attempts)
                .iter()
                .map(Duration::as_secs)
                .collect()
        };
        assert_eq!(seconds(0), Vec::<u64>::new());
        assert_eq!(seconds(1), [60]);
        assert_eq!(seconds(2), [60, 120]);
    }
}
