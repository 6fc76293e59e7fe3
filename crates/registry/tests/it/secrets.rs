//! Secrets reach whom they are for, and nobody else.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tierce_image::ImageSource as _;
use tierce_registry::{Client, CredentialKind, RegistryError, Secret};
use tierce_testkit::{Endpoint, FakeRegistry, Fault, Redirect, TokenSettings};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{
    Fixed, artifact, by_tag, client_as, copy, image, place, push, settings, told,
};

const PASSWORD: &str = "correct-horse-battery";

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panics here").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Kept {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn nothing_secret_is_logged_or_told() {
    let kept = Kept::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(kept.clone())
        .finish();
    let mut seen = Vec::new();
    let mut bearer_tokens = Vec::new();
    // For the whole process, whose other tests are heard along: what is enabled is remembered for
    // all threads by the first that asks.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", PASSWORD))
        .redirect_blobs(Redirect::OtherPort)
        .start();
    let credentials = Fixed::password("me", PASSWORD);
    let client = client_as(credentials.clone());
    let app = place(&client, &registry, "app");
    push(&artifact(&image()), &app, "1", &client).await.unwrap();
    let other = FakeRegistry::start();
    copy(&app, &place(&client, &other, "app"), "1", &client)
        .await
        .unwrap();
    registry.inject(Fault::status(503).on_path("/manifests/").times(9));
    let error = app.manifest(&by_tag("1")).await.unwrap_err();
    seen.push(format!("{}\n{error:?}", told(&error)));
    registry.clear_faults();
    registry.inject(Fault::status(403).on_path("/storage/"));
    let third = FakeRegistry::start();
    let copied = copy(&app, &place(&client, &third, "app"), "1", &client).await;
    let error = copied.unwrap_err();
    seen.push(format!("{}\n{error:?}", told(&error)));

    let wrong = client_as(Fixed::password("me", "wrong-horse-battery"));
    let refused = place(&wrong, &registry, "app").manifest(&by_tag("1")).await;
    let error = refused.unwrap_err();
    seen.push(format!("{}\n{error:?}", told(&error)));
    let mut settings = settings();
    settings.credentials = Arc::new(credentials);
    seen.push(format!("{settings:?} {client:?} {app:?}"));

    let log = registry.log();
    assert_eq!(log.leaks(PASSWORD), Vec::<String>::new());
    let shown = log
        .records()
        .iter()
        .filter_map(|it| it.authorization_seen());
    bearer_tokens.extend(shown.map(|it| it[7..].to_owned()));
    let signed = log
        .records()
        .iter()
        .filter(|it| it.path.starts_with("/storage/"));
    bearer_tokens.extend(signed.map(|it| it.query.clone()));
    seen.push(String::from_utf8_lossy(&kept.0.lock().unwrap()).into_owned());
    let seen = seen.join("\n");
    assert!(
        seen.contains("answered") && seen.contains("trying again"),
        "something is logged"
    );
    bearer_tokens.sort();
    bearer_tokens.dedup();
    assert!(bearer_tokens.len() > 3, "{bearer_tokens:?}");
    for secret in bearer_tokens.iter().map(String::as_str).chain([
        PASSWORD,
        "wrong-horse",
        // `me:correct` in base64.
        "bWU6Y29ycmVjd",
    ]) {
        let place = seen
            .find(secret)
            .map(|at| &seen[at.saturating_sub(300)..at]);
        assert_eq!(place, None, "{secret}");
    }
}

/// Bodies of answers that repeat secrets: as JSON, as plain text, and as JSON within a page.
fn echoes(secrets: &[&str]) -> [String; 3] {
    let message = format!("no entry with {}", secrets.join(" or "));
    let json = serde_json::json!({"errors": [{"code": secrets[0], "message": message}]});
    [json.to_string(), message, format!("<p>{json}</p>")]
}

#[tokio::test]
async fn servers_that_repeat_what_they_are_shown_are_not_repeated() {
    const SECRET: &str = "hush-hush \"42\"";
    // Of `me:` and of `<token>:` before it.
    const PAIR: &str = "bWU6aHVzaC1odXNoICI0MiI=";
    const TOKEN_PAIR: &str = "PHRva2VuPjpodXNoLWh1c2ggIjQyIg==";
    let header = format!("Basic {PAIR}");
    let read = async |client: &Client, registry: &FakeRegistry, fault: Fault| {
        registry.clear_faults();
        registry.inject(fault);
        let place = place(client, registry, "app");
        place.manifest(&by_tag("1")).await.unwrap_err()
    };
    let assert_hidden = |error: &RegistryError, bearer: &str| {
        let text = format!("{}\n{error:?}", told(error));
        assert!(text.contains("(secret)"), "{text}");
        for secret in ["hush", "aHVzaC", "odXNoLWh", bearer] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    };

    let registry = FakeRegistry::builder().basic("me", SECRET).start();
    for status in [401, 403, 404] {
        for body in echoes(&[SECRET, PAIR, &header]) {
            let client = client_as(Fixed::password("me", SECRET));
            let refused = Fault::status(status).with_body(body);
            let error = read(&client, &registry, refused.on_path("/manifests/").nth(2)).await;
            assert_eq!(error.status(), Some(status));
            assert_hidden(&error, PAIR);
        }
    }

    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", SECRET).identity_token(SECRET))
        .start();
    for (credentials, pair) in [
        (Fixed::password("me", SECRET), PAIR),
        (Fixed::identity_token(SECRET), TOKEN_PAIR),
    ] {
        let [json, ..] = echoes(&[SECRET, pair]);
        let refused = Fault::status(403).with_body(json).at(Endpoint::Token);
        let error = read(&client_as(credentials.clone()), &registry, refused).await;
        assert_hidden(&error, pair);

        let client = client_as(credentials);
        read(
            &client,
            &registry,
            Fault::status(404).on_path("/manifests/").nth(2),
        )
        .await;
        let log = registry.log();
        let bearer = log.records().last().and_then(|it| it.authorization_seen());
        let bearer = bearer.expect("a token was shown");
        for body in echoes(&[&bearer[7..], bearer, SECRET, pair]) {
            let refused = Fault::status(403).with_body(body);
            let error = read(&client, &registry, refused.on_path("/manifests/")).await;
            assert_hidden(&error, &bearer[7..]);
        }
    }

    let own = Fixed(CredentialKind::RegistryToken(Secret::new(SECRET)));
    for body in echoes(&[SECRET]) {
        let client = client_as(own.clone());
        let refused = Fault::status(401).with_body(body);
        let error = read(&client, &registry, refused.on_path("/manifests/").nth(2)).await;
        assert_hidden(&error, SECRET);
    }
}

#[tokio::test]
async fn a_token_server_is_quoted_only_where_it_says_why() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::default())
        .start();
    for (body, end) in [
        (r#"{"errors":[{"code":"DENIED","message":"no"}]}"#, "`: no"),
        ("an inner page", "`"),
    ] {
        let refused = Fault::status(404).with_body(body).at(Endpoint::Token);
        registry.inject(refused);
        let client = crate::support::client();
        let place = place(&client, &registry, "app");
        let error = place.manifest(&by_tag("1")).await.unwrap_err();
        assert!(told(&error).ends_with(end), "{}", told(&error));
    }
}
