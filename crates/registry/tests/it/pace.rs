//! Keeping to the pace of a registry that counts requests.

use std::num::NonZeroU32;
use std::time::Duration;

use tierce_image::{ImageSink as _, ImageSource as _};
use tierce_registry::{Client, ClientSettings, Manners, Pace};
use tierce_testkit::{FakeRegistry, Method, TokenSettings};

use crate::support::{Fixed, by_tag, image, place, settings, tag};

/// One request an hour: whoever waits for the second does not see it sent.
const HOURLY: Pace = Pace {
    requests: NonZeroU32::MIN,
    per: Duration::from_hours(1),
};

/// How long something that must not come is waited for.
const MOMENT: Duration = Duration::from_millis(100);

fn client(change: impl FnOnce(&mut ClientSettings)) -> Client {
    let mut settings = settings();
    change(&mut settings);
    Client::new(settings).expect("these settings are fine")
}

fn registry() -> FakeRegistry {
    let tokens = TokenSettings::user("me", "hunter2").anonymous_pull();
    let registry = FakeRegistry::builder().bearer(tokens).start();
    image().put(&registry, "app", Some("1"));
    registry
}

#[tokio::test]
async fn what_anybody_may_read_is_read_at_the_pace_for_anybody() {
    let registry = registry();
    let manners = |_: &str| Manners {
        anonymous_pace: Some(HOURLY),
        ..Manners::default()
    };
    let anonymous = client(|settings| settings.manners = manners);
    let app = place(&anonymous, &registry, "app");
    app.manifest(&by_tag("1")).await.unwrap();
    registry.clear_log();
    let name = by_tag("1");
    let second = app.manifest(&name);
    assert!(tokio::time::timeout(MOMENT, second).await.is_err());
    assert!(registry.log().is_empty(), "{}", registry.log());

    // Who is known is not counted so.
    let known = client(|settings| {
        settings.manners = manners;
        settings.credentials = std::sync::Arc::new(Fixed::password("me", "hunter2"));
    });
    let app = place(&known, &registry, "app");
    app.manifest(&by_tag("1")).await.unwrap();
    app.manifest(&by_tag("1")).await.unwrap();
}

#[tokio::test]
async fn manifests_are_put_at_the_pace_for_manifests() {
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let client = client(|settings| {
        settings.manners = |_| Manners {
            manifest_pace: Some(HOURLY),
            ..Manners::default()
        };
    });
    let app = place(&client, &registry, "app");
    let document = app.manifest(&by_tag("1")).await.unwrap();
    app.put_manifest(&document, Some(&tag("2"))).await.unwrap();
    let third = tag("3");
    let second = app.put_manifest(&document, Some(&third));
    assert!(tokio::time::timeout(MOMENT, second).await.is_err());
    assert_eq!(registry.log().count(Method::PUT, "/manifests/"), 1);
    // Nothing else is held up.
    app.manifest(&by_tag("2")).await.unwrap();
}
