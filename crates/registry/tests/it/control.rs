//! What a registry's management is asked, and what comes of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tierce_image::BoxError;
use tierce_oci::{Repository, Tag};
use tierce_registry::{Client, ClientSettings, ControlPlane, Manners, RegistryError, Step};
use tierce_testkit::{FakeRegistry, Fault, Method, MissingRepository};

use crate::support::{
    artifact, bytes, client, copy, image, place, push, registry_error, send, settings, told,
};

/// A management that makes the fake's repositories, and writes down what it is asked.
#[derive(Debug)]
struct Management {
    registry: Arc<FakeRegistry>,
    makes: bool,
    refuses: bool,
    immutable: BTreeSet<String>,
    asked: Mutex<Vec<String>>,
}

impl Management {
    fn of(registry: &Arc<FakeRegistry>) -> Self {
        Self {
            registry: Arc::clone(registry),
            makes: false,
            refuses: false,
            immutable: BTreeSet::new(),
            asked: Mutex::default(),
        }
    }

    fn note(&self, what: &str, thing: impl std::fmt::Display) {
        let mut asked = self.asked.lock().expect("no test panics meanwhile");
        asked.push(format!("{what} {thing}"));
    }
}

impl ControlPlane for Management {
    fn exists<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Option<bool>> {
        Box::pin(async move {
            self.note("is there", &repository.path);
            let known = self.registry.repositories();
            Some(known.contains(&repository.path))
        })
    }

    fn is_immutable<'a>(&'a self, _: &'a Repository, tag: &'a Tag) -> BoxFuture<'a, Option<bool>> {
        Box::pin(async move {
            self.note("is immutable", tag);
            Some(self.immutable.contains(tag.as_str()))
        })
    }

    fn create<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async move {
            self.note("make", &repository.path);
            if self.refuses {
                return Err("not allowed".into());
            }
            if self.makes {
                self.registry.create_repository(&repository.path);
            }
            Ok(self.makes)
        })
    }
}

fn managed(management: &Arc<Management>) -> Client {
    Client::new(ClientSettings {
        control: Arc::clone(management) as _,
        manners: |_| Manners {
            drops_uploads_to_missing_repositories: true,
            ..Manners::default()
        },
        ..settings()
    })
    .expect("these settings are fine")
}

fn strict() -> Arc<FakeRegistry> {
    Arc::new(FakeRegistry::builder().without_create_on_push().start())
}

#[tokio::test]
async fn a_missing_repository_is_made_once_before_any_byte() {
    let registry = strict();
    let management = Arc::new(Management {
        makes: true,
        ..Management::of(&registry)
    });
    let client = managed(&management);
    let place = place(&client, &registry, "team/app");
    let image = image();
    push(&artifact(&image), &place, "1", &client).await.unwrap();
    assert_eq!(registry.resolve("team/app", "1"), Some(image.digest()));
    assert_eq!(*management.asked.lock().unwrap(), ["make team/app"]);
    assert_eq!(registry.log().count(Method::PUT, "/uploads/"), 3);
}

#[tokio::test]
async fn where_repositories_come_by_pushing_nobody_is_asked() {
    let registry = Arc::new(FakeRegistry::start());
    let management = Arc::new(Management {
        makes: true,
        ..Management::of(&registry)
    });
    let client = managed(&management);
    let place = place(&client, &registry, "app");
    push(&artifact(&image()), &place, "1", &client)
        .await
        .unwrap();
    assert_eq!(*management.asked.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_repository_that_is_made_late_is_waited_for() {
    let registry = strict();
    let management = Arc::new(Management {
        makes: true,
        ..Management::of(&registry)
    });
    let unknown = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not yet"}]}"#;
    registry.inject(
        Fault::status(404)
            .with_body(unknown)
            .on(Method::POST, "/uploads/")
            .times(3),
    );
    let client = managed(&management);
    let bytes = bytes(10);
    let place = place(&client, &registry, "app");
    send(&place, &bytes, &bytes).await.unwrap();
    assert_eq!(*management.asked.lock().unwrap(), ["make app"]);
}

#[tokio::test]
async fn a_connection_that_breaks_because_there_is_no_repository_says_so() {
    for method in [Method::POST, Method::PUT] {
        let registry = strict();
        if method == Method::PUT {
            // It takes the session, and drops the bytes.
            registry.create_repository("app");
        }
        registry.inject(Fault::disconnect().on(method.clone(), "/uploads/").always());
        let management = Arc::new(Management::of(&registry));
        let client = managed(&management);
        let bytes = bytes(10);
        let missing = place(&client, &registry, "app");
        if method == Method::PUT {
            let error = send(&missing, &bytes, &bytes).await.unwrap_err();
            // It is there after all: the break is only a break.
            assert_eq!(error.step(), Some(Step::Transfer));
            assert_eq!(management.asked.lock().unwrap().len(), 4);
            continue;
        }
        let error = send(&missing, &bytes, &bytes).await.unwrap_err();
        assert!(error.is_missing_repository(), "{error:?}");
        let host = registry.host();
        let expected =
            format!("the repository {host}/app does not exist\nthe connection to {host}");
        assert!(told(&error).starts_with(&expected), "{}", told(&error));
        assert_eq!(registry.log().count(Method::POST, "/uploads/"), 1);
        assert_eq!(
            *management.asked.lock().unwrap(),
            ["is there app", "make app"]
        );
    }
}

/// The first upload to a repository can be the mount of a base layer.
#[tokio::test]
async fn a_mount_that_breaks_because_there_is_no_repository_says_so_or_makes_it() {
    for makes in [false, true] {
        let registry = Arc::new(
            FakeRegistry::builder()
                .missing_repository(MissingRepository::DropsPost)
                .start(),
        );
        let image = image();
        image.put(&registry, "base", Some("1"));
        let management = Arc::new(Management {
            makes,
            ..Management::of(&registry)
        });
        let client = managed(&management);
        let from = place(&client, &registry, "base");
        let to = place(&client, &registry, "app");
        let outcome = copy(&from, &to, "1", &client).await;
        if makes {
            assert_eq!(outcome.unwrap().mounted.blobs, 3);
            assert_eq!(registry.resolve("app", "1"), Some(image.digest()));
        } else {
            let error = outcome.unwrap_err();
            assert!(registry_error(&error).is_missing_repository(), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_repository_that_cannot_be_made_is_an_error() {
    let registry = strict();
    let management = Arc::new(Management {
        refuses: true,
        ..Management::of(&registry)
    });
    let client = managed(&management);
    let bytes = bytes(10);
    let error = send(&place(&client, &registry, "app"), &bytes, &bytes).await;
    let error = error.unwrap_err();
    assert!(matches!(error, RegistryError::CreateRepository { .. }));
    let host = registry.host();
    let expected = format!("could not create the repository {host}/app\nnot allowed");
    assert_eq!(told(&error), expected);
}

const TAG_INVALID: &str = r#"{"errors":[{"code":"TAG_INVALID","message":"The image tag '1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable."}]}"#;

#[tokio::test]
async fn an_immutable_tag_of_another_image_stops_a_push_before_any_blob() {
    let registry = Arc::new(FakeRegistry::start());
    let (image, other) = (image(), crate::support::other_image());
    let found = other.put(&registry, "app", Some("1"));
    let management = Arc::new(Management {
        immutable: ["1".to_owned()].into(),
        ..Management::of(&registry)
    });
    let client = managed(&management);
    let place = place(&client, &registry, "app");
    let error = push(&artifact(&image), &place, "1", &client)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the tag `1` stands for {found} already, and is immutable there")
    );
    assert_eq!(registry.log().count(Method::POST, ""), 0);
    // The same image, and other tags, are not concerned.
    push(&artifact(&other), &place, "1", &client).await.unwrap();
    push(&artifact(&image), &place, "2", &client).await.unwrap();
}

#[tokio::test]
async fn a_tag_that_only_the_registry_knows_to_be_immutable_is_told_by_it() {
    let registry = FakeRegistry::start();
    let found = crate::support::other_image().put(&registry, "app", Some("1"));
    registry.inject(
        Fault::status(400)
            .with_body(TAG_INVALID)
            .on(Method::PUT, "/manifests/1"),
    );
    let client = client();
    let place = place(&client, &registry, "app");
    let error = push(&artifact(&image()), &place, "1", &client)
        .await
        .unwrap_err();
    let host = registry.host();
    assert_eq!(
        registry_error(&error).to_string(),
        format!("the tag `1` of {host}/app is immutable and stands for {found} already")
    );
}

#[tokio::test]
async fn an_immutable_tag_that_has_our_digest_is_a_success() {
    let registry = FakeRegistry::start();
    let image = image();
    let client = client();
    let (from, to) = (
        place(&client, &registry, "base"),
        place(&client, &registry, "app"),
    );
    image.put(&registry, "base", Some("1"));
    // The answer to the PUT is lost, and the second one is refused for the first one's sake.
    registry.inject(Fault::lose_answer().on(Method::PUT, "/manifests/1"));
    registry.inject(
        Fault::status(400)
            .with_body(TAG_INVALID)
            .on(Method::PUT, "/manifests/1")
            .nth(2),
    );
    copy(&from, &to, "1", &client).await.unwrap();
    assert_eq!(registry.resolve("app", "1"), Some(image.digest()));
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}
