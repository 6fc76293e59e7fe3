//! What clients see.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierce_runner::function::Function;
use tierce_runner::invoke::client::{Endpoint, Event, InvocationType, invoke};
use tierce_runner::invoke::{Door, DoorSettings, Pool, PoolSettings};

use super::stage::{Fake, Stage, Start, soon};

fn function(name: &str) -> Function {
    Function {
        name: name.to_owned(),
        version: "$LATEST".to_owned(),
        account: "012345678912".to_owned(),
        region: "us-east-1".to_owned(),
        memory: 128,
        timeout: Duration::from_secs(3),
        init_limit: Duration::from_secs(10),
        command: vec!["/bootstrap".to_owned()],
        handler: None,
        directory: "/".to_owned(),
        image_environment: std::collections::BTreeMap::new(),
        environment: std::collections::BTreeMap::new(),
        credentials: None,
    }
}

struct Served {
    stage: Stage,
    door: Door,
    endpoint: Endpoint,
}

fn settings(name: &str) -> DoorSettings {
    DoorSettings {
        function: Arc::new(function(name)),
        hosts: vec!["lambda.test".to_owned()],
        any_payload: false,
        event_retries: Vec::new(),
    }
}

fn serve(settings: DoorSettings, concurrency: u32, throttle: bool) -> Served {
    let stage = Stage::new();
    let pool: Pool<Fake> = Pool::new(
        PoolSettings {
            concurrency,
            idle: Duration::from_secs(3600),
            throttle,
        },
        stage.make("a", Start::AtOnce),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let door = Door::open(listener, settings, pool).unwrap();
    let endpoint = format!("http://{}", door.address()).parse().unwrap();
    Served {
        stage,
        door,
        endpoint,
    }
}

fn event(payload: &str) -> Event {
    Event {
        function: "function".to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        invocation_type: InvocationType::RequestResponse,
        log_tail: false,
        client_context: None,
        tenant_id: None,
    }
}

#[tokio::test]
async fn an_event_is_answered() {
    let served = serve(settings("function"), 1, false);
    let answer = soon(invoke(&served.endpoint, event("\"x\"")))
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.payload, "a1:x");
    assert_eq!(answer.function_error, None);
    assert_eq!(answer.executed_version.as_deref(), Some("$LATEST"));
    assert_eq!(answer.log_tail, None);
    soon(served.door.close()).await;
    assert_eq!(served.stage.count("a1 ended"), 1);
}
