//! Who runs what, in which order, and what becomes of environments.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierce_runner::environment::{Invocation, Outcome, Progress, State};
use tierce_runner::invoke::{CannotStart, Pool, PoolSettings, Throttled};
use tokio::sync::mpsc;

use super::stage::{Fake, Stage, Start, soon};

const HOUR: Duration = Duration::from_hours(1);

fn pool(stage: &Stage, start: Start, concurrency: u32) -> Pool<Fake> {
    let settings = PoolSettings {
        concurrency,
        idle: HOUR,
        throttle: false,
    };
    Pool::new(settings, stage.make("a", start))
}

fn invocation(word: &str) -> Invocation {
    Invocation {
        request_id: word.to_owned(),
        payload: Bytes::from(format!("\"{word}\"")),
        content_type: "application/json".to_owned(),
        client_context: None,
        trace_id: String::new(),
        arn: String::new(),
        tenant_id: None,
    }
}

fn begin(pool: &Pool<Fake>, word: &str) -> mpsc::Receiver<Progress> {
    pool.invoke(invocation(word)).expect("nothing is refused")
}

/// What an invocation comes to: the answer, or the failure in words.
async fn end(mut progress: mpsc::Receiver<Progress>) -> Result<String, String> {
    loop {
        match soon(progress.recv()).await.expect("the end is told") {
            Progress::Done(done) => {
                assert!(progress.recv().await.is_none(), "nothing follows the end");
                return match done.outcome {
                    Outcome::Success { payload, .. } => {
                        Ok(String::from_utf8(payload.to_vec()).unwrap())
                    }
                    Outcome::FunctionError { error_type, .. } => Err(error_type),
                    Outcome::Failed(words) => Err(words),
                };
            }
            Progress::Streaming(_) | Progress::Piece(_) => {}
        }
    }
}

async fn run(pool: &Pool<Fake>, word: &str) -> Result<String, String> {
    end(begin(pool, word)).await
}

#[tokio::test]
async fn one_after_the_other_stays_in_one_environment() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 10);
    for _ in 0..100 {
        assert_eq!(run(&pool, "x").await.unwrap(), "a1:x");
    }
    assert_eq!(run(&pool, "fail").await.unwrap_err(), "Oh");
    assert_eq!(run(&pool, "x").await.unwrap(), "a1:x");
}

#[tokio::test]
async fn several_at_once_start_several_up_to_the_limit_and_wait_their_turn() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 2);
    let running = [begin(&pool, "hold-1"), begin(&pool, "hold-2")];
    stage.noted("a1 began \"hold-1\"").await;
    stage.noted("a2 began \"hold-2\"").await;
    let waiting: Vec<_> = (3..20)
        .map(|n| begin(&pool, &format!("hold-{n}")))
        .collect();
    stage.gate.add_permits(100);
    for progress in running.into_iter().chain(waiting) {
        end(progress).await.unwrap();
    }
    let began: Vec<String> = stage
        .record()
        .into_iter()
        .filter(|line| line.contains("began"))
        .map(|line| line.split('"').nth(1).unwrap().to_owned())
        .collect();
    let asked: Vec<String> = (1..20).map(|n| format!("hold-{n}")).collect();
    assert_eq!(began, asked);
    assert_eq!(stage.count("a3 made"), 0);
}

#[tokio::test]
async fn who_waits_takes_whichever_environment_is_first() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::Held, 2);
    let first = begin(&pool, "hold-1");
    stage.starts.add_permits(1);
    stage.noted("a1 began \"hold-1\"").await;
    // A second one is being started for this one, but the first is free earlier.
    let second = begin(&pool, "hold-2");
    stage.noted("a2 made").await;
    stage.gate.add_permits(1);
    end(first).await.unwrap();
    stage.noted("a1 began \"hold-2\"").await;
    // The second is there for the next.
    stage.starts.add_permits(1);
    assert_eq!(run(&pool, "x").await.unwrap(), "a2:x");
    stage.gate.add_permits(1);
    end(second).await.unwrap();
}

#[tokio::test]
async fn too_many_are_refused_if_told_so() {
    let stage = Stage::new();
    let settings = PoolSettings {
        concurrency: 2,
        idle: HOUR,
        throttle: true,
    };
    let pool = Pool::new(settings, stage.make("a", Start::AtOnce));
    // Those that an environment is started for are not too many, though they wait for it.
    let running = [begin(&pool, "hold-1"), begin(&pool, "hold-2")];
    assert_eq!(pool.invoke(invocation("x")).unwrap_err(), Throttled);
    let in_turn = pool.invoke_in_turn(invocation("event"));
    stage.gate.add_permits(2);
    for progress in running {
        end(progress).await.unwrap();
    }
    end(in_turn).await.unwrap();
    run(&pool, "x").await.unwrap();
}

#[tokio::test]
async fn so_many_may_wait_and_no_more() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 1);
    let running = begin(&pool, "hold");
    stage.noted("a1 began \"hold\"").await;
    let waiting: Vec<_> = (0..1_000).map(|_| begin(&pool, "x")).collect();
    assert_eq!(pool.invoke(invocation("y")).unwrap_err(), Throttled);
    stage.gate.add_permits(1);
    end(running).await.unwrap();
    for progress in waiting {
        end(progress).await.unwrap();
    }
    run(&pool, "y").await.unwrap();
}

#[tokio::test]
async fn who_waits_for_what_cannot_be_made_is_told_why() {
    for (start, first, second) in [
        (Start::Impossible, "no room for a1", "no room for a2"),
        (
            Start::Dies,
            "environment 1 ended while it was starting: the box broke",
            "environment 2 ended while it was starting: the box broke",
        ),
    ] {
        let stage = Stage::new();
        let pool = pool(&stage, start, 1);
        let waiting = [begin(&pool, "x"), begin(&pool, "y")];
        let mut told = Vec::new();
        for progress in waiting {
            told.push(end(progress).await.unwrap_err());
        }
        assert_eq!(told, [first, second]);
        soon(pool.shut_down()).await;
    }
}

#[tokio::test]
async fn an_environment_whose_initialisation_failed_gets_the_invocation() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::InitFails, 1);
    assert_eq!(run(&pool, "x").await.unwrap(), "a1:x");
}

#[tokio::test]
async fn an_environment_that_dies_takes_nobody_along() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 1);
    let dying = begin(&pool, "die");
    let waiting = begin(&pool, "x");
    assert_eq!(
        end(dying).await.unwrap_err(),
        "environment 1 ended during the invocation"
    );
    assert_eq!(end(waiting).await.unwrap(), "a2:x");
    // One that ends while it is idle is not used either.
    assert_eq!(run(&pool, "last").await.unwrap(), "a2:last");
    stage.noted("a2 left").await;
    assert_eq!(run(&pool, "x").await.unwrap(), "a3:x");
    soon(pool.shut_down()).await;
}

#[tokio::test]
async fn who_does_not_listen_is_served_all_the_same() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 1);
    drop(begin(&pool, "hold-1"));
    drop(begin(&pool, "stream"));
    stage.gate.add_permits(2);
    assert_eq!(run(&pool, "x").await.unwrap(), "a1:x");
    assert_eq!(stage.count("a1 did \"hold-1\""), 1);
    assert_eq!(stage.count("a1 did \"stream\""), 1);
}

#[tokio::test]
async fn who_listens_slowly_holds_no_environment_that_is_done() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 1);
    let mut slow = begin(&pool, "streamlong");
    stage.noted("a1 did \"streamlong\"").await;
    assert_eq!(run(&pool, "x").await.unwrap(), "a1:x");
    let mut pieces = 0;
    while let Some(progress) = soon(slow.recv()).await {
        match progress {
            Progress::Streaming(_) => {}
            Progress::Piece(piece) => {
                assert_eq!(piece, format!("{pieces} "));
                pieces += 1;
            }
            Progress::Done(_) => break,
        }
    }
    assert_eq!(pieces, 25);
}

#[tokio::test(start_paused = true)]
async fn what_follows_an_answer_is_waited_for_but_not_for_long() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 2);
    assert_eq!(run(&pool, "linger-1").await.unwrap(), "a1:linger-1");
    let next = begin(&pool, "x");
    stage.gate.add_permits(1);
    assert_eq!(end(next).await.unwrap(), "a1:x");

    assert_eq!(run(&pool, "linger-2").await.unwrap(), "a1:linger-2");
    assert_eq!(run(&pool, "y").await.unwrap(), "a2:y");
    assert_eq!(stage.count("a1 began \"y\""), 0);
    // It is there again when it has come to an end of it.
    let (first, second) = (begin(&pool, "hold-1"), begin(&pool, "hold-2"));
    stage.gate.add_permits(1);
    stage.noted("a1 began \"hold-2\"").await;
    stage.gate.add_permits(2);
    assert_eq!(end(first).await.unwrap(), "a2:hold-1");
    assert_eq!(end(second).await.unwrap(), "a1:hold-2");
}

#[tokio::test(start_paused = true)]
async fn one_that_has_just_answered_is_not_too_busy() {
    let stage = Stage::new();
    let settings = PoolSettings {
        concurrency: 1,
        idle: HOUR,
        throttle: true,
    };
    let pool = Pool::new(settings, stage.make("a", Start::AtOnce));
    assert_eq!(run(&pool, "linger").await.unwrap(), "a1:linger");
    let next = begin(&pool, "x");
    assert_eq!(
        pool.invoke(invocation("y")).unwrap_err(),
        Throttled,
        "one waits for it already"
    );
    stage.gate.add_permits(1);
    assert_eq!(end(next).await.unwrap(), "a1:x");
}

#[tokio::test(start_paused = true)]
async fn idle_environments_end_but_for_the_last() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 3);
    let running: Vec<_> = (1..=3)
        .map(|n| begin(&pool, &format!("hold-{n}")))
        .collect();
    stage.gate.add_permits(3);
    for progress in running {
        end(progress).await.unwrap();
    }
    // The most recently used one is used again, so the two others are idle.
    tokio::time::advance(HOUR / 2).await;
    let used = run(&pool, "x").await.unwrap();
    assert_eq!(used, "a3:x");
    tokio::time::advance(HOUR / 2).await;
    stage.noted("a1 ended").await;
    stage.noted("a2 ended").await;
    tokio::time::advance(HOUR * 10).await;
    assert_eq!(run(&pool, "x").await.unwrap(), "a3:x");
    assert_eq!(stage.count("a3 ended"), 0);
}

#[tokio::test]
async fn new_environments_take_over() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 2);
    let old = begin(&pool, "hold-old");
    stage.noted("a1 began \"hold-old\"").await;
    run(&pool, "x").await.unwrap();
    pool.replace(stage.make("b", Start::AtOnce));
    stage.noted("a2 ended").await;
    assert_eq!(soon(pool.warm_up()).await.unwrap(), State::Ready);
    assert_eq!(run(&pool, "y").await.unwrap(), "b3:y");
    assert_eq!(stage.count("a1 ended"), 0);
    stage.gate.add_permits(1);
    assert_eq!(end(old).await.unwrap(), "a1:hold-old");
    stage.noted("a1 ended").await;
    assert_eq!(run(&pool, "z").await.unwrap(), "b3:z");
}

#[tokio::test]
async fn who_waits_goes_to_new_environments() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::Held, 1);
    let waiting = begin(&pool, "x");
    stage.noted("a1 made").await;
    pool.replace(stage.make("b", Start::AtOnce));
    assert_eq!(end(waiting).await.unwrap(), "b2:x");
    // What was still starting is not waited for.
    stage.noted("a1 ended").await;
}

#[tokio::test]
async fn the_first_environment_can_be_started_before_it_is_needed() {
    for (start, expected) in [
        (Start::AtOnce, Ok(State::Ready)),
        (
            Start::InitFails,
            Ok(State::InitFailed("no such module".to_owned())),
        ),
        (Start::Impossible, Err("no room for a1")),
    ] {
        let stage = Stage::new();
        let pool = pool(&stage, start, 1);
        let found = soon(pool.warm_up()).await;
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found, expected);
                assert_eq!(soon(pool.warm_up()).await.unwrap(), expected);
                assert_eq!(run(&pool, "x").await.unwrap(), "a1:x");
            }
            (Err(CannotStart(found)), Err(expected)) => assert_eq!(found, expected),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

#[tokio::test]
async fn even_a_panic_is_told() {
    let settings = PoolSettings {
        concurrency: 1,
        idle: HOUR,
        throttle: false,
    };
    let pool: Pool<Fake> = Pool::new(
        settings,
        Arc::new(|number| Box::pin(async move { panic!("no environment {number}") })),
    );
    let words = run(&pool, "x").await.unwrap_err();
    assert!(
        words.starts_with("environment 1 could not be made: "),
        "{words}"
    );
    soon(pool.shut_down()).await;
}

#[tokio::test]
async fn dropping_the_pool_drops_its_environments() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 2);
    let busy = begin(&pool, "hold");
    stage.noted("a1 began \"hold\"").await;
    run(&pool, "x").await.unwrap();
    drop(pool);
    stage.gate.add_permits(1);
    end(busy).await.unwrap();
    stage.noted("a1 was dropped").await;
    stage.noted("a2 was dropped").await;
}

#[tokio::test]
async fn nothing_is_left_after_the_end() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 2);
    run(&pool, "x").await.unwrap();
    let busy = begin(&pool, "hold-1");
    let starting = begin(&pool, "hold-2");
    let waiting = begin(&pool, "hold-3");
    stage.noted("a1 began \"hold-1\"").await;
    soon(pool.shut_down()).await;
    assert_eq!(
        end(waiting).await.unwrap_err(),
        "the function was shut down"
    );
    assert_eq!(
        end(busy).await.unwrap_err(),
        "environment 1 ended during the invocation"
    );
    end(starting).await.unwrap_err();
    assert_eq!(stage.count("a1 ended"), 1);
    assert_eq!(stage.count("a2 ended"), stage.count("a2 made"));
    assert_eq!(
        run(&pool, "x").await.unwrap_err(),
        "the function was shut down"
    );
    soon(pool.warm_up()).await.unwrap_err();
    soon(pool.shut_down()).await;
}

#[tokio::test]
async fn what_is_still_starting_does_not_hold_up_the_end() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::Held, 2);
    let waiting = begin(&pool, "x");
    let warming = tokio::spawn({
        let pool = pool.clone();
        async move { pool.warm_up().await }
    });
    stage.noted("a1 made").await;
    soon(pool.shut_down()).await;
    assert_eq!(stage.count("a1 ended"), 1);
    end(waiting).await.unwrap_err();
    soon(warming).await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_run_twice() {
    let stage = Stage::new();
    let pool = pool(&stage, Start::AtOnce, 7);
    let mut all = tokio::task::JoinSet::new();
    for n in 0..900 {
        let pool = pool.clone();
        all.spawn(async move {
            let word = if n % 97 == 0 {
                format!("die-{n}")
            } else {
                format!("x-{n}")
            };
            (run(&pool, &word).await, word)
        });
    }
    while let Some(ended) = soon(all.join_next()).await {
        match ended.unwrap() {
            (Ok(answer), word) => assert!(answer.ends_with(&format!(":{word}"))),
            (Err(words), word) => {
                assert!(word.starts_with("die-"), "{word}: {words}");
            }
        }
    }
    let mut began: Vec<String> = stage
        .record()
        .into_iter()
        .filter_map(|line| Some(line.split_once(" began ")?.1.to_owned()))
        .collect();
    began.sort();
    began.dedup();
    assert_eq!(began.len(), 900);
    assert_eq!(
        stage
            .record()
            .iter()
            .filter(|line| line.contains(" began "))
            .count(),
        900
    );
    soon(pool.shut_down()).await;
}

/// What came of an invocation that was noted to have begun or not.
fn times(record: &[String], verb: &str, word: &str) -> usize {
    let noted = format!(" {verb} \"{word}\"");
    record.iter().filter(|line| line.ends_with(&noted)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_everybody_is_told() {
    let stage = Stage::new();
    let troubled = |number| match number % 11 {
        3 => Start::Impossible,
        5 => Start::Dies,
        7 => Start::InitFails,
        _ => Start::AtOnce,
    };
    let settings = PoolSettings {
        concurrency: 5,
        idle: Duration::ZERO,
        throttle: false,
    };
    let pool = Pool::new(settings, stage.make_each("a", troubled));
    let mut listening = tokio::task::JoinSet::new();
    let mut words = Vec::new();
    for n in 0..600 {
        let kind = match n % 13 {
            0 => "die",
            4 => "fail",
            6 => "streamlong",
            8 => "last",
            _ => "x",
        };
        let word = format!("{kind}-{n}");
        let progress = begin(&pool, &word);
        if n % 17 != 0 {
            listening.spawn(end(progress));
        }
        if n % 101 == 100 {
            pool.replace(stage.make_each("b", troubled));
        }
        if n % 7 == 0 {
            tokio::task::yield_now().await;
        }
        words.push(word);
    }
    let mut told = 0;
    while let Some(ended) = soon(listening.join_next()).await {
        if let Err(words) = ended.unwrap() {
            let known = ["Oh", "no room for ", "environment "];
            assert!(
                known.iter().any(|known| words.starts_with(known)),
                "{words}"
            );
        }
        told += 1;
    }
    assert_eq!(told, (0..600).filter(|n| n % 17 != 0).count());
    soon(pool.shut_down()).await;
    let record = stage.record();
    for word in &words {
        assert!(times(&record, "began", word) <= 1, "{word} ran twice");
    }
}
