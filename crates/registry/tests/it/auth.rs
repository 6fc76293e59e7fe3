//! Meeting what registries demand.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tierce_image::{BoxError, ImageSink as _, ImageSource as _};
use tierce_oci::{MediaType, Repository};
use tierce_registry::{
    Client, ClientSettings, ConfigFiles, CredentialKind, CredentialSource, Credentials, Distrust,
    Manners, Problem, RegistryError, Secret,
};
use tierce_testkit::{Endpoint, FakeRegistry, Fault, Method, TokenField, TokenSettings};

use crate::support::{
    Fixed, artifact, by_tag, bytes, client, client_as, copy, descriptor, fetch, image, place, push,
    registry_error, repository, send, settings, told,
};

fn token_requests(registry: &FakeRegistry) -> usize {
    let log = registry.log();
    log.filter(|record| record.endpoint == Endpoint::Token)
        .len()
}

fn refusals(registry: &FakeRegistry) -> usize {
    registry
        .log()
        .filter(|record| record.status_code() == 401)
        .len()
}

#[tokio::test]
async fn basic_is_shown_once_asked_for() {
    let registry = FakeRegistry::builder().basic("user", "pass:word").start();
    let client = client_as(Fixed::password("user", "pass:word"));
    let place = place(&client, &registry, "app");
    push(&artifact(&image()), &place, "1", &client)
        .await
        .unwrap();
    place.manifest(&by_tag("1")).await.unwrap();
    let log = registry.log();
    assert_eq!(refusals(&registry), 1, "{log}");
    assert_eq!(
        log.records()[0].authorization_seen(),
        None,
        "nothing is shown unasked"
    );
}

#[tokio::test]
async fn a_refused_password_is_told_by_its_place() {
    let registry = FakeRegistry::builder().basic("user", "right").start();
    let client = client_as(Fixed::password("user", "wrong"));
    let place = place(&client, &registry, "app");
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert!(error.is_unauthorized());
    let host = registry.host();
    assert_eq!(
        error.to_string(),
        format!(
            "registry {host} refused `GET /v2/app/manifests/1` with the credentials from the test"
        )
    );
    assert!(told(&error).contains("answered 401"), "{}", told(&error));
    assert_eq!(registry.log().len(), 2);
    place.manifest(&by_tag("1")).await.unwrap_err();
    assert_eq!(registry.log().len(), 3, "the same is not shown twice");
}

#[tokio::test]
async fn missing_credentials_are_said_to_be_missing() {
    let registry = FakeRegistry::builder().basic("user", "right").start();
    let error = place(&client(), &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert!(error.is_unauthorized());
    assert_eq!(registry.log().len(), 1);
    let host = registry.host();
    let expected = format!(
        "registry {host} wants credentials for `GET /v2/app/manifests/1`, and there are none for it"
    );
    assert_eq!(error.to_string(), expected);
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::default())
        .start();
    let error = place(&client(), &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert!(error.is_unauthorized());
    assert!(
        error
            .to_string()
            .contains("/token`, and there are none for it"),
        "{error}"
    );
}

#[tokio::test]
async fn strangers_get_tokens_to_read_with() {
    for field in [TokenField::Both, TokenField::Token, TokenField::AccessToken] {
        let settings = TokenSettings::default()
            .anonymous_pull()
            .field(field)
            .lifetime(None);
        let registry = FakeRegistry::builder().bearer(settings).start();
        let image = image();
        image.put(&registry, "base", Some("1"));
        let client = client();
        let base = place(&client, &registry, "base");
        base.manifest(&by_tag("1")).await.unwrap();
        base.manifest(&by_tag("1")).await.unwrap();
        let bytes = &image.layers[0].blob;
        let repository = repository(&registry, "base");
        fetch(&client, &repository, &descriptor(bytes))
            .await
            .unwrap();
        assert_eq!((refusals(&registry), token_requests(&registry)), (1, 1));
        let error = send(&base, &crate::support::bytes(3), &crate::support::bytes(3)).await;
        let error = error.unwrap_err();
        assert!(error.is_unauthorized(), "{error:?}");
        assert!(
            error.to_string().contains("there are none for it"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_push_costs_one_token() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "hunter2").service("odd service & more"))
        .start();
    let client = client_as(Fixed::password("me", "hunter2"));
    let place = place(&client, &registry, "team/app");
    push(&artifact(&image()), &place, "1", &client)
        .await
        .unwrap();
    place.manifest(&by_tag("1")).await.unwrap();
    assert_eq!((refusals(&registry), token_requests(&registry)), (1, 1));
    assert_eq!(registry.log().leaks("hunter2"), Vec::<String>::new());
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "hunter2"))
        .start();
    image().put(&registry, "base", Some("1"));
    let client = client_as(Fixed::password("me", "hunter2"));
    let (from, to) = (
        place(&client, &registry, "base"),
        place(&client, &registry, "team/app"),
    );
    let report = copy(&from, &to, "1", &client).await.unwrap();
    assert_eq!(report.mounted.blobs, 3);
    assert_eq!(refusals(&registry), 1);
    let log = registry.log();
    let tokens = log.filter(|record| record.endpoint == Endpoint::Token);
    let last = &tokens.records().last().unwrap().query;
    let target = "scope=repository%3Ateam%2Fapp%3Apull%2Cpush";
    let source = "scope=repository%3Abase%3Apull";
    assert!(
        last.find(target) < last.find(source) && last.contains(target),
        "{last}"
    );
}

#[tokio::test]
async fn a_mount_without_leave_falls_back_to_sending() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "hunter2").deny("base", "pull"))
        .start();
    let bytes = bytes(10);
    registry.put_blob("base", bytes.clone());
    let client = client_as(Fixed::password("me", "hunter2"));
    let to = place(&client, &registry, "app");
    let blob = tierce_image::BlobAt {
        descriptor: descriptor(&bytes),
        content: tierce_image::Content::Origin(repository(&registry, "base")),
    };
    assert_eq!(to.place(&blob).await.unwrap(), None);
    send(&to, &bytes, &bytes).await.unwrap();
}

#[tokio::test]
async fn identity_tokens_are_exchanged() {
    for without_post in [false, true] {
        let mut server = TokenSettings::user("<token>", "refresh-me").identity_token("refresh-me");
        if without_post {
            server = server.without_post();
        }
        let registry = FakeRegistry::builder().bearer(server).start();
        let client = client_as(Fixed::identity_token("refresh-me"));
        let place = place(&client, &registry, "app");
        push(&artifact(&image()), &place, "1", &client)
            .await
            .unwrap();
        let log = registry.log();
        let tokens = log.filter(|record| record.endpoint == Endpoint::Token);
        let methods: Vec<_> = tokens
            .records()
            .iter()
            .map(|it| it.method.clone())
            .collect();
        if without_post {
            assert_eq!(methods, [Method::POST, Method::GET]);
        } else {
            assert_eq!(methods, [Method::POST]);
        }
        assert_eq!(log.leaks("refresh-me"), Vec::<String>::new());
    }
    let registry = FakeRegistry::builder().basic("a", "b").start();
    let client = client_as(Fixed::identity_token("refresh-me"));
    let error = place(&client, &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::WantsPassword));
}

#[tokio::test]
async fn registry_tokens_are_shown_as_they_are() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::default())
        .start();
    let client = client_as(Fixed(CredentialKind::RegistryToken(Secret::new("abc"))));
    let error = place(&client, &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert!(error.is_unauthorized());
    let log = registry.log();
    assert_eq!(log.records()[1].authorization_seen(), Some("Bearer abc"));
    assert_eq!(token_requests(&registry), 0);
}

#[tokio::test]
async fn a_refused_login_at_the_token_server_is_told_by_its_place() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "right"))
        .start();
    let client = client_as(Fixed::password("me", "wrong"));
    let error = place(&client, &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert!(error.is_unauthorized());
    let token = registry.token_host().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "registry {} refused `GET http://{token}/token` with the credentials from the test",
            registry.host()
        )
    );
    assert!(
        told(&error).contains("incorrect username or password"),
        "{}",
        told(&error)
    );
    assert_eq!(token_requests(&registry), 1, "a no is not asked for twice");
}

#[tokio::test]
async fn a_token_that_allows_too_little_ends_in_a_refusal() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "hunter2").deny("app", "push"))
        .start();
    registry.create_repository("app");
    let client = client_as(Fixed::password("me", "hunter2"));
    let app = place(&client, &registry, "app");
    assert_eq!(
        app.current(&by_tag("1")).await.unwrap(),
        None,
        "reading is allowed"
    );
    let error = send(&app, &bytes(3), &bytes(3)).await.unwrap_err();
    let expected = format!(
        "registry {} refused `POST /v2/app/blobs/uploads/` with the credentials from the test",
        registry.host()
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_scope_that_is_no_repository_is_echoed() {
    let settings = TokenSettings::default().anonymous_pull().fixed_scope("aws");
    let registry = FakeRegistry::builder().bearer(settings).start();
    image().put(&registry, "a", Some("1"));
    image().put(&registry, "b", Some("1"));
    let client = client();
    for path in ["a", "b"] {
        place(&client, &registry, path)
            .manifest(&by_tag("1"))
            .await
            .unwrap();
    }
    let log = registry.log();
    let tokens = log.filter(|record| record.endpoint == Endpoint::Token);
    assert!(
        tokens.records()[0].query.ends_with("scope=aws"),
        "{}",
        tokens.records()[0].query
    );
    assert_eq!(refusals(&registry), 1);
}

#[tokio::test]
async fn a_token_that_ends_is_replaced() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::user("me", "hunter2"))
        .start();
    let client = client_as(Fixed::password("me", "hunter2"));
    let place = place(&client, &registry, "app");
    let bytes = bytes(100_000);
    send(&place, &bytes, &bytes).await.unwrap();
    registry.expire_tokens();
    send(&place, &crate::support::bytes(3), &crate::support::bytes(3))
        .await
        .unwrap();
    assert_eq!((refusals(&registry), token_requests(&registry)), (2, 2));

    // Between the beginning of an upload and its bytes, which cannot be sent twice.
    let token = registry.token_host().unwrap();
    let challenge = format!("Bearer realm=\"http://{token}/token\",service=\"testkit\"");
    let expired = Fault::status(401).with_header("www-authenticate", &challenge);
    registry.inject(expired.clone().on(Method::PUT, "/uploads/"));
    let other = crate::support::bytes(50_000);
    send(&place, &other, &other).await.unwrap();
    assert_eq!(registry.blobs("app").len(), 3);
    registry.inject(expired.on(Method::PUT, "/uploads/").always());
    let error = send(&place, &crate::support::bytes(7), &crate::support::bytes(7)).await;
    assert!(error.unwrap_err().is_unauthorized());
}

#[tokio::test]
async fn tokens_are_not_fetched_just_anywhere() {
    let refused = |realm: &str, https: bool| {
        let realm = realm.to_owned();
        async move {
            let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
            let mut builder = FakeRegistry::builder();
            if https {
                builder = builder.https();
            }
            let registry = builder.start();
            let mut settings = settings();
            settings.ca_files.extend(registry.ca_certificate());
            settings.credentials = std::sync::Arc::new(Fixed::password("me", "hunter2"));
            let client = Client::new(settings).unwrap();
            registry.inject(
                Fault::status(401)
                    .with_header("www-authenticate", &challenge)
                    .on_path("/manifests/"),
            );
            let error = place(&client, &registry, "app")
                .manifest(&by_tag("1"))
                .await;
            let error = error.unwrap_err();
            assert!(
                told(&error).contains("could not get a token"),
                "{}",
                told(&error)
            );
            assert_eq!(registry.log().len(), 1);
            let shown = format!("{}\n{error:?}", told(&error));
            assert!(!shown.contains("topsecret"), "{shown}");
            if realm.starts_with("file:") {
                assert!(
                    shown.contains("it sends us to a `file:` address\n"),
                    "{shown}"
                );
            }
            match error.problem() {
                Some(Problem::Distrusted { source, .. }) => Some(*source),
                Some(Problem::BadRealm) => None,
                other => panic!("{other:?}"),
            }
        }
    };
    let inner = Some(Distrust::InnerAddress);
    assert_eq!(refused("http://169.254.169.254/token", false).await, inner);
    assert_eq!(refused("http://192.168.1.1/token", false).await, inner);
    assert_eq!(refused("https://169.254.169.254/token", true).await, inner);
    let downgrade = Some(Distrust::Downgrade);
    assert_eq!(refused("http://auth.example/token", true).await, downgrade);
    assert_eq!(
        refused("file:///etc/passwd", false).await,
        Some(Distrust::NotHttp)
    );
    assert_eq!(refused("not a url", false).await, None);
    let with_user = Some(Distrust::UserInfo);
    for host in ["10.0.0.1", "auth.example"] {
        let realm = format!("http://topsecret:topsecret@{host}/");
        assert_eq!(refused(&realm, false).await, with_user);
        assert_eq!(refused(&realm, true).await, downgrade);
    }
    assert_eq!(
        refused("ftp://topsecret:topsecret@a.b/", false).await,
        Some(Distrust::NotHttp)
    );
}

#[tokio::test]
async fn demands_that_cannot_be_met_are_said_to_be_such() {
    let registry = FakeRegistry::start();
    let client = client_as(Fixed::password("me", "hunter2"));
    let place = place(&client, &registry, "app");
    let challenge = |text: &str| Fault::status(401).with_header("www-authenticate", text);
    registry.inject(challenge("Negotiate"));
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::UnknownChallenge));
    registry.inject(Fault::status(401));
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert!(error.is_unauthorized());
}

#[tokio::test]
async fn token_servers_have_bad_days_too() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::default().anonymous_pull())
        .start();
    image().put(&registry, "base", Some("1"));
    let token = || Fault::status(503).at(Endpoint::Token);
    let read = async || {
        let client = client();
        place(&client, &registry, "base")
            .manifest(&by_tag("1"))
            .await
    };
    registry.inject(token().times(2));
    registry.inject(Fault::disconnect().at(Endpoint::Token).nth(3));
    read().await.unwrap();
    registry.inject(token().always());
    let error = read().await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { .. }));
    assert_eq!(error.status(), Some(503));
    let text = told(&error);
    let host = registry.host();
    let first = format!("could not get a token for registry {host}\n");
    assert!(
        text.starts_with(&first) && text.contains(", after 4 attempts in"),
        "{text}"
    );
    registry.clear_faults();
    registry.inject(Fault::endless_body(200).at(Endpoint::Token));
    let error = read().await.unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::TooLarge { limit: 65536 }));
    for body in ["{}", "<html>", "{\"token\":\"a\\nb\"}"] {
        registry.inject(Fault::replace_body(body).at(Endpoint::Token));
        let error = read().await.unwrap_err();
        assert_eq!(error.problem(), Some(&Problem::NoToken), "{body}");
    }
}

/// Files of credentials, and a helper, for a registry.
fn config(directory: &Path, text: &str) -> ConfigFiles {
    let file = directory.join("config.json");
    fs::write(&file, text).expect("a temporary directory can be written");
    ConfigFiles {
        inline: None,
        files: vec![file],
        helper_path: OsString::from(directory),
        helper_patience: Duration::from_secs(30),
    }
}

#[tokio::test]
async fn files_and_helpers_lead_to_a_push() {
    let registry = FakeRegistry::builder().basic("user", "pass").start();
    let host = registry.host();
    let directory = tempfile::tempdir().unwrap();
    // Written by another process, so that no process of this one has it open for writing.
    let script = "read host; printf '{\"Username\":\"user\",\"Secret\":\"pass\"}'";
    let program = directory.path().join("docker-credential-kept");
    let status = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\"; chmod 755 \"$1\"",
            "sh",
        ])
        .args([program.as_os_str(), OsStr::new(script)])
        .status();
    assert!(status.unwrap().success());
    for text in [
        format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"dXNlcjpwYXNz\"}}}}}}"),
        format!("{{\"auths\":{{\"{host}/team\":{{\"auth\":\"dXNlcjpwYXNz\"}}}}}}"),
        format!("{{\"credHelpers\":{{\"{host}\":\"kept\"}}}}"),
        "{\"credsStore\":\"kept\"}".to_owned(),
    ] {
        let client = client_as(config(directory.path(), &text));
        let place = place(&client, &registry, "team/app");
        push(&artifact(&image()), &place, "1", &client)
            .await
            .unwrap_or_else(|error| panic!("{text}: {}", told(&error)));
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_told() {
    let registry = FakeRegistry::builder().basic("user", "pass").start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let client = client_as(config(directory.path(), "{\"auths\":"));
    let error = place(&client, &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    let expected = format!(
        "could not get the credentials for registry {}\n{} cannot be used\n\
         it is not JSON: line 1, column 9",
        registry.host(),
        file.display()
    );
    assert_eq!(told(&error), expected);
    let client = client_as(config(directory.path(), "{\"credsStore\":\"absent\"}"));
    let error = place(&client, &registry, "app")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    let text = told(&error);
    assert!(text.ends_with("the credential helper `docker-credential-absent` is not installed"));
    assert!(matches!(
        registry_error(&error),
        RegistryError::Credentials { .. }
    ));
    // Nobody is asked where nothing is demanded.
    let open = FakeRegistry::start();
    image().put(&open, "base", Some("1"));
    let document = place(&client, &open, "base")
        .manifest(&by_tag("1"))
        .await
        .unwrap();
    assert!(matches!(
        document.descriptor().media_type,
        MediaType::Manifest(_)
    ));
}

/// Has another password whenever it is asked for a newer one, and counts.
#[derive(Debug, Clone)]
struct Issuing {
    registry: Arc<FakeRegistry>,
    renewals: Arc<AtomicUsize>,
}

impl CredentialSource for Issuing {
    fn credentials<'a>(
        &'a self,
        _: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        let credentials = Credentials {
            kind: CredentialKind::Password {
                username: "AWS".to_owned(),
                password: Secret::new(self.registry.issue_password()),
            },
            origin: "the test".to_owned(),
            good_until: None,
        };
        Box::pin(async { Ok(Some(credentials)) })
    }

    fn renew<'a>(
        &'a self,
        repository: &'a Repository,
        _: &'a Credentials,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.credentials(repository)
    }
}

/// Who may not ask for a manifest is refused by a HEAD without a word as well: that costs one
/// renewal, and not one with each question.
#[tokio::test]
async fn a_new_password_that_is_refused_like_the_old_one_is_kept() {
    let registry = Arc::new(FakeRegistry::builder().ecr_passwords().start());
    let issuing = Issuing {
        registry: Arc::clone(&registry),
        renewals: Arc::default(),
    };
    let client = Client::new(ClientSettings {
        credentials: Arc::new(issuing.clone()),
        manners: |_| Manners {
            answers_403_to_old_tokens: true,
            ..Manners::default()
        },
        ..settings()
    })
    .unwrap();
    let place = place(&client, &registry, "app");
    let refused = Fault::status(403).on(Method::HEAD, "/manifests/");
    // The first question is not answered for want of a password.
    registry.inject(refused.nth(2).always());
    for _ in 0..3 {
        let error = place.current(&by_tag("1")).await.unwrap_err();
        assert_eq!(error.status(), Some(403));
    }
    assert_eq!(issuing.renewals.load(Ordering::SeqCst), 1);
    assert_eq!(registry.log().count(Method::HEAD, "/manifests/"), 5);

    // One that was good meanwhile may have ended.
    registry.clear_faults();
    assert_eq!(place.current(&by_tag("1")).await.unwrap(), None);
    registry.expire_tokens();
    assert_eq!(place.current(&by_tag("1")).await.unwrap(), None);
    assert_eq!(issuing.renewals.load(Ordering::SeqCst), 2);
}
