//! The registry that keeps the specification, and its faults.

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::{
    Endpoint, FakeRegistry, Fault, Gate, LocationStyle, Method, Redirect, TokenField, TokenSettings,
};

use crate::plain::{INDEX, MANIFEST, begin, client, code, header, image, send, token, with_digest};

#[tokio::test]
async fn a_blob_goes_up_in_one_piece_and_comes_down_in_parts() {
    let registry = FakeRegistry::start();
    let client = client();
    let digest = Digest::of(b"hello");
    let location = begin(&client, &registry, "team/app").await;
    let put = send(client.put(with_digest(&location, &digest)).body("hello")).await;
    assert_eq!(put.status(), 201);
    assert_eq!(header(&put, "docker-content-digest"), digest.to_string());

    let url = format!("{}/v2/team/app/blobs/{digest}", registry.url());
    let head = send(client.head(&url)).await;
    assert_eq!(
        (
            head.status().as_u16(),
            header(&head, "content-length").as_str()
        ),
        (200, "5")
    );
    let part = send(client.get(&url).header("range", "bytes=1-2")).await;
    assert_eq!(part.status(), 206);
    assert_eq!(header(&part, "content-range"), "bytes 1-2/5");
    assert_eq!(part.text().await.unwrap(), "el");
    let tail = send(client.get(&url).header("range", "bytes=3-")).await;
    assert_eq!(tail.text().await.unwrap(), "lo");
    assert_eq!(
        send(client.get(&url).header("range", "bytes=5-"))
            .await
            .status(),
        416
    );

    let log = registry.log();
    assert_eq!(log.blob_bytes_received(), 5);
    assert_eq!(log.blob_bytes_sent(), 4);
    assert_eq!(log.count(Method::HEAD, "/blobs/"), 1);
    assert_eq!(log.repository("team/app").len(), log.len());
    assert_eq!(registry.blob("team/app", &digest).unwrap(), "hello");
    assert!(registry.blob("other", &digest).is_none());
    assert_eq!(registry.open_uploads(), 0);
}

#[tokio::test]
async fn chunks_must_follow_each_other() {
    let registry = FakeRegistry::start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let first = client
        .patch(&location)
        .header("content-range", "0-4")
        .body("01234");
    let first = send(first).await;
    assert_eq!(
        (first.status().as_u16(), header(&first, "range").as_str()),
        (202, "0-4")
    );
    let location = header(&first, "location");
    let gap = client
        .patch(&location)
        .header("content-range", "7-7")
        .body("7");
    let gap = send(gap).await;
    assert_eq!(
        (gap.status().as_u16(), header(&gap, "range").as_str()),
        (416, "0-4")
    );
    let state = send(client.get(&location)).await;
    assert_eq!(state.status(), 204);
    let location = header(&state, "location");
    let second = client
        .patch(&location)
        .header("content-range", "5-6")
        .body("56");
    let second = send(second).await;
    let location = header(&second, "location");
    let digest = Digest::of(b"0123456");
    assert_eq!(
        send(client.put(with_digest(&location, &digest)))
            .await
            .status(),
        201
    );
    assert_eq!(registry.blob("a", &digest).unwrap(), "0123456");
}

#[tokio::test]
async fn the_query_of_a_location_must_come_back_and_a_stale_one_is_refused() {
    let registry = FakeRegistry::builder()
        .location(LocationStyle::RelativeWithQuery)
        .start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let (bare, _) = location.split_once('?').unwrap();
    let digest = Digest::of(b"x");
    let lost = send(client.put(with_digest(bare, &digest)).body("x")).await;
    assert_eq!(
        (lost.status().as_u16(), code(lost).await.as_str()),
        (404, "BLOB_UPLOAD_INVALID")
    );
    assert_eq!(
        send(client.put(with_digest(&location, &digest)).body("x"))
            .await
            .status(),
        201
    );
    let again = send(client.put(with_digest(&location, &digest)).body("x")).await;
    assert_eq!(code(again).await, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn wrong_digests_are_refused_and_cancelled_uploads_are_gone() {
    let registry = FakeRegistry::start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let wrong = Digest::of(b"other");
    let put = send(client.put(with_digest(&location, &wrong)).body("bytes")).await;
    assert_eq!(
        (put.status().as_u16(), code(put).await.as_str()),
        (400, "DIGEST_INVALID")
    );
    let location = begin(&client, &registry, "a").await;
    assert_eq!(registry.open_uploads(), 1);
    assert_eq!(send(client.delete(&location)).await.status(), 204);
    assert_eq!(registry.open_uploads(), 0);
    assert_eq!(registry.blobs("a"), []);
}

#[tokio::test]
async fn large_uploads_are_spooled_and_read_back() {
    let registry = FakeRegistry::start();
    let client = client();
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let digest = Digest::of(&bytes);
    let location = begin(&client, &registry, "a").await;
    let put = client
        .put(with_digest(&location, &digest))
        .body(bytes.clone());
    assert_eq!(send(put).await.status(), 201);
    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    let back = send(client.get(&url)).await.bytes().await.unwrap();
    assert!(back == bytes);
    let part = client.get(&url).header("range", "bytes=15000000-15000003");
    assert_eq!(
        send(part).await.bytes().await.unwrap(),
        bytes[15_000_000..15_000_004]
    );
    assert_eq!(registry.log().blob_bytes_received(), 20_000_000);
}

#[tokio::test]
async fn mounts_need_the_blob_at_the_source() {
    let registry = FakeRegistry::start();
    let client = client();
    let digest = registry.put_blob("base", b"layer".as_slice());
    let post =
        |query: String| client.post(format!("{}/v2/app/blobs/uploads/?{query}", registry.url()));
    assert_eq!(send(post(format!("mount={digest}"))).await.status(), 202);
    assert_eq!(
        send(post(format!("mount={digest}&from=nowhere")))
            .await
            .status(),
        202
    );
    registry.inject(Fault::refuse_mount().on(Method::POST, "/blobs/uploads/"));
    assert_eq!(
        send(post(format!("mount={digest}&from=base")))
            .await
            .status(),
        202
    );
    let mounted = send(post(format!("mount={digest}&from=base"))).await;
    assert_eq!(mounted.status(), 201);
    assert!(registry.blob("app", &digest).is_some());
    assert_eq!(registry.log().blob_bytes_received(), 0);
}

#[tokio::test]
async fn manifests_are_verified_before_they_are_tagged() {
    let registry = FakeRegistry::start();
    let client = client();
    let good = image(&registry, "a");
    let put = |reference: &str, kind: &'static str, body: &Value| {
        let url = format!("{}/v2/a/manifests/{reference}", registry.url());
        client
            .put(url)
            .header(CONTENT_TYPE, kind)
            .body(body.to_string())
    };
    let refused = async |request: RequestBuilder| {
        let response = send(request).await;
        assert_eq!(response.status(), 400);
        code(response).await
    };
    assert_eq!(refused(put("t", INDEX, &good)).await, "MANIFEST_INVALID");
    assert_eq!(
        refused(put("t", "application/json", &good)).await,
        "MANIFEST_INVALID"
    );
    assert_eq!(refused(put(".t", MANIFEST, &good)).await, "TAG_INVALID");
    let other = Digest::of(b"").to_string();
    assert_eq!(
        refused(put(&other, MANIFEST, &good)).await,
        "DIGEST_INVALID"
    );
    let mut unknown = good.clone();
    unknown["config"]["digest"] = other.clone().into();
    assert_eq!(
        refused(put("t", MANIFEST, &unknown)).await,
        "MANIFEST_BLOB_UNKNOWN"
    );
    let mut oversize = good.clone();
    oversize["config"]["size"] = 3.into();
    assert_eq!(
        refused(put("t", MANIFEST, &oversize)).await,
        "MANIFEST_INVALID"
    );
    assert_eq!(registry.tags("a"), Vec::<String>::new());

    assert_eq!(send(put("t", MANIFEST, &good)).await.status(), 201);
    let digest = registry.resolve("a", "t").unwrap();
    assert_eq!(registry.manifest("a", "t").unwrap().1, good.to_string());

    let url = format!("{}/v2/a/manifests/t", registry.url());
    let get = send(
        client
            .get(&url)
            .header(ACCEPT, format!("{INDEX}, {MANIFEST}")),
    )
    .await;
    assert_eq!(header(&get, "docker-content-digest"), digest.to_string());
    assert_eq!(header(&get, "content-type"), MANIFEST);
    let blind = send(client.get(&url).header(ACCEPT, "*/*")).await;
    assert_eq!(code(blind).await, "MANIFEST_UNKNOWN");
    let head = send(client.head(&url).header(ACCEPT, MANIFEST)).await;
    assert_eq!(
        header(&head, "content-length"),
        good.to_string().len().to_string()
    );

    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MANIFEST, "digest": digest.to_string(), "size": good.to_string().len()}
    ]});
    assert_eq!(send(put("index", INDEX, &index)).await.status(), 201);
    let mut orphan = index.clone();
    orphan["manifests"][0]["digest"] = other.into();
    assert_eq!(
        refused(put("orphan", INDEX, &orphan)).await,
        "MANIFEST_BLOB_UNKNOWN"
    );
}

#[tokio::test]
async fn oversize_manifests_are_413() {
    let registry = FakeRegistry::start();
    let url = format!("{}/v2/a/manifests/t", registry.url());
    let put = client()
        .put(url)
        .header(CONTENT_TYPE, MANIFEST)
        .body(vec![b' '; 4_194_305]);
    assert_eq!(send(put).await.status(), 413);
}

#[tokio::test]
async fn unknown_things_have_their_codes() {
    let registry = FakeRegistry::builder()
        .without_create_on_push()
        .repository("known")
        .start();
    let client = client();
    let get = |path: &str| client.get(format!("{}{path}", registry.url()));
    assert_eq!(
        code(send(get("/v2/nope/manifests/t")).await).await,
        "NAME_UNKNOWN"
    );
    assert_eq!(
        code(send(get("/v2/nope/tags/list")).await).await,
        "NAME_UNKNOWN"
    );
    assert_eq!(
        code(send(get("/v2/known/manifests/t")).await).await,
        "MANIFEST_UNKNOWN"
    );
    let blob = format!("/v2/known/blobs/{}", Digest::of(b""));
    assert_eq!(code(send(get(&blob)).await).await, "BLOB_UNKNOWN");
    assert_eq!(
        code(send(get("/v2/Known/tags/list")).await).await,
        "NAME_INVALID"
    );
    let post = client.post(format!("{}/v2/nope/blobs/uploads/", registry.url()));
    assert_eq!(code(send(post).await).await, "NAME_UNKNOWN");
    let referrers = format!("/v2/known/referrers/{}", Digest::of(b""));
    assert_eq!(send(get(&referrers)).await.status(), 404);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let registry = FakeRegistry::builder().page_size(2).start();
    let digest = registry.put_manifest("a", Some("v3"), MANIFEST, "{}");
    registry.tag("a", "v1", digest);
    registry.tag("a", "v2", digest);
    let client = client();
    let first = send(client.get(format!("{}/v2/a/tags/list", registry.url()))).await;
    let link = header(&first, "link");
    assert_eq!(link, "</v2/a/tags/list?n=2&last=v2>; rel=\"next\"");
    let body: Value = first.json().await.unwrap();
    assert_eq!(body, json!({"name": "a", "tags": ["v1", "v2"]}));
    let next = send(client.get(format!("{}/v2/a/tags/list?n=2&last=v2", registry.url()))).await;
    assert!(next.headers().get("link").is_none());
    assert_eq!(next.json::<Value>().await.unwrap()["tags"], json!(["v3"]));
}

#[tokio::test]
async fn read_only_registries_answer_405() {
    let registry = FakeRegistry::builder().repository("a").read_only().start();
    let post = client().post(format!("{}/v2/a/blobs/uploads/", registry.url()));
    assert_eq!(send(post).await.status(), 405);
}

#[tokio::test]
async fn basic_credentials_are_demanded_and_never_shown() {
    let registry = FakeRegistry::builder().basic("me", "hunter2").start();
    let client = client();
    let url = format!("{}/v2/", registry.url());
    let anonymous = send(client.get(&url)).await;
    assert_eq!(anonymous.status(), 401);
    assert_eq!(
        header(&anonymous, "www-authenticate"),
        "Basic realm=\"testkit registry\""
    );
    let wrong = client.get(&url).basic_auth("me", Some("wrong"));
    assert_eq!(send(wrong).await.status(), 401);
    let right = client.get(&url).basic_auth("me", Some("hunter2"));
    assert_eq!(send(right).await.status(), 200);
    let log = registry.log();
    let record = &log.records()[2];
    assert!(record.authorised && record.scheme.as_deref() == Some("basic"));
    let secret = record.authorization_seen().unwrap();
    assert!(!format!("{log:?}{record:?}{log}{:?}", record.headers).contains(secret));
    assert_eq!(log.leaks(secret), Vec::<String>::new());
}

#[tokio::test]
async fn bearer_tokens_allow_what_they_were_issued_for() {
    let settings = TokenSettings::user("me", "secret")
        .anonymous_pull()
        .deny("base", "pull");
    let registry = FakeRegistry::builder().bearer(settings).start();
    registry.put_blob("a", b"x".as_slice());
    let digest = registry.put_blob("base", b"layer".as_slice());
    let client = client();
    let tags = format!("{}/v2/a/tags/list", registry.url());
    let challenge = async |response: Response| {
        assert_eq!(response.status(), 401);
        header(&response, WWW_AUTHENTICATE.as_str())
    };

    let asked = challenge(send(client.get(&tags)).await).await;
    assert!(asked.ends_with("scope=\"repository:a:pull\""), "{asked}");
    let answer: Value = token(&client, &asked, None).await.json().await.unwrap();
    assert_eq!(answer["expires_in"], 300);
    let pull = answer["token"].as_str().unwrap().to_owned();
    assert_eq!(
        send(client.get(&tags).bearer_auth(&pull)).await.status(),
        200
    );

    let uploads = format!("{}/v2/a/blobs/uploads/", registry.url());
    let asked = challenge(send(client.post(&uploads).bearer_auth(&pull)).await).await;
    assert!(asked.contains("scope=\"repository:a:pull,push\",error=\"insufficient_scope\""));
    assert_eq!(
        token(&client, &asked, Some(("me", "no"))).await.status(),
        401
    );
    let answer: Value = token(&client, &asked, Some(("me", "secret")))
        .await
        .json()
        .await
        .unwrap();
    let push = answer["access_token"].as_str().unwrap().to_owned();
    assert_eq!(
        send(client.post(&uploads).bearer_auth(&push))
            .await
            .status(),
        202
    );

    let mount = format!("{uploads}?mount={digest}&from=base");
    let asked = challenge(send(client.post(&mount).bearer_auth(&push)).await).await;
    assert!(
        asked.contains("repository:a:pull,push repository:base:pull"),
        "{asked}"
    );
    let answer: Value = token(&client, &asked, Some(("me", "secret")))
        .await
        .json()
        .await
        .unwrap();
    let less = answer["token"].as_str().unwrap();
    assert_eq!(
        send(client.post(&mount).bearer_auth(less)).await.status(),
        401
    );

    registry.expire_tokens();
    assert_eq!(
        send(client.get(&tags).bearer_auth(&pull)).await.status(),
        401
    );
    let log = registry.log();
    assert_eq!(
        log.filter(|record| record.endpoint == Endpoint::Token)
            .len(),
        4
    );
    assert_eq!(log.leaks("secret"), Vec::<String>::new());
}

#[tokio::test]
async fn identity_tokens_are_traded_by_post() {
    let settings = TokenSettings::default().identity_token("identity");
    let registry = FakeRegistry::builder().bearer(settings).start();
    registry.create_repository("a");
    let client = client();
    let realm = format!("http://{}/token", registry.token_host().unwrap());
    let trade = |secret: &str| {
        client.post(&realm).form(&[
            ("grant_type", "refresh_token"),
            ("service", "testkit"),
            ("client_id", "test"),
            ("scope", "repository:a:pull"),
            ("refresh_token", secret),
        ])
    };
    assert_eq!(send(trade("wrong")).await.status(), 401);
    let answer: Value = send(trade("identity")).await.json().await.unwrap();
    assert_eq!(answer["scope"], "repository:a:pull");
    let token = answer["access_token"].as_str().unwrap();
    let tags = client
        .get(format!("{}/v2/a/tags/list", registry.url()))
        .bearer_auth(token);
    assert_eq!(send(tags).await.status(), 200);
}

#[tokio::test]
async fn redirects_lead_to_a_host_that_wants_no_authorization() {
    for (redirect, host) in [
        (Redirect::OtherPort, "127.0.0.1"),
        (Redirect::OtherName, "localhost"),
        (Redirect::OtherNameSamePort, "localhost"),
    ] {
        let registry = FakeRegistry::builder()
            .basic("me", "pw")
            .redirect_blobs(redirect)
            .start();
        let digest = registry.put_blob("a", b"bytes".as_slice());
        let client = client();
        let url = format!("{}/v2/a/blobs/{digest}", registry.url());
        let first = send(client.get(&url).basic_auth("me", Some("pw"))).await;
        assert_eq!(first.status(), 307);
        let location = header(&first, LOCATION.as_str());
        assert!(
            location.starts_with(&format!("http://{host}:")),
            "{location}"
        );
        let leaky = client
            .get(&location)
            .header(AUTHORIZATION, "Basic bWU6cHc=");
        assert_eq!(send(leaky).await.status(), 400);
        let right = send(client.get(&location).header("range", "bytes=1-")).await;
        assert_eq!(
            (
                right.status().as_u16(),
                right.text().await.unwrap().as_str()
            ),
            (206, "ytes")
        );
        let log = registry.log();
        assert_eq!(log.leaks("bWU6cHc=").len(), 1);
        assert_eq!(log.blob_bytes_sent(), 4);
        let storage = log.filter(|record| record.endpoint == Endpoint::Storage);
        assert_eq!(storage.len(), 2);
    }
}

#[tokio::test]
async fn uploads_on_another_host_work_without_authorization() {
    let registry = FakeRegistry::builder().basic("me", "pw").start();
    registry.inject(Fault::location(LocationStyle::OtherHost).on(Method::POST, "/uploads/"));
    let client = client();
    let url = format!("{}/v2/a/blobs/uploads/", registry.url());
    let post = send(client.post(url).basic_auth("me", Some("pw"))).await;
    let location = header(&post, "location");
    assert!(location.starts_with("http://localhost:"));
    let digest = Digest::of(b"x");
    let put = client.put(with_digest(&location, &digest)).body("x");
    let leaky = put.try_clone().unwrap().basic_auth("me", Some("pw"));
    assert_eq!(send(leaky).await.status(), 400);
    assert_eq!(send(put).await.status(), 201);
    assert!(registry.blob("a", &digest).is_some());
}

#[tokio::test]
async fn https_is_trusted_only_with_its_authority() {
    let registry = FakeRegistry::builder().https().start();
    let url = format!("{}/v2/", registry.url());
    assert!(client().get(&url).send().await.is_err());
    let pem = registry.ca_certificate_pem().unwrap();
    let authority = reqwest::Certificate::from_pem(&pem).unwrap();
    let client = Client::builder()
        .no_proxy()
        .tls_certs_only([authority])
        .build()
        .unwrap();
    assert_eq!(send(client.get(&url)).await.status(), 200);
    let named = format!("https://{}/v2/", registry.localhost());
    assert_eq!(send(client.get(named)).await.status(), 200);
}

#[tokio::test]
async fn connections_drop_where_the_script_says() {
    let registry = FakeRegistry::start();
    let client = client();
    let bytes = vec![7_u8; 200_000];
    let digest = registry.put_blob("a", bytes.clone());
    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    registry.inject(Fault::disconnect().on(Method::GET, "/blobs/"));
    registry.inject(
        Fault::disconnect_after_sending(50_000)
            .on(Method::GET, "/blobs/")
            .nth(2),
    );
    assert_eq!(registry.pending_faults().len(), 2);
    assert!(client.get(&url).send().await.is_err());
    let mut broken = send(client.get(&url)).await;
    assert_eq!(header(&broken, "content-length"), "200000");
    let mut received = 0;
    let end = loop {
        match broken.chunk().await {
            Ok(Some(chunk)) => received += chunk.len(),
            end => break end,
        }
    };
    assert!(end.is_err());
    assert_eq!(received, 50_000);
    assert_eq!(send(client.get(&url)).await.bytes().await.unwrap(), bytes);
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
    assert_eq!(registry.log().records()[0].status, None);

    let location = begin(&client, &registry, "b").await;
    registry.inject(Fault::disconnect_after_receiving(70_000).on(Method::PATCH, "/uploads/"));
    let patch = client.patch(&location).body(bytes.clone());
    assert!(patch.send().await.is_err());
    let state = send(client.get(&location)).await;
    assert_eq!(header(&state, "range"), "0-69999");
    let location = header(&state, "location");
    let rest = client
        .patch(&location)
        .header("content-range", "70000-199999");
    let rest = send(rest.body(bytes[70_000..].to_vec())).await;
    let location = header(&rest, "location");
    registry.inject(Fault::lose_answer().on(Method::PUT, "/uploads/"));
    assert!(
        client
            .put(with_digest(&location, &digest))
            .send()
            .await
            .is_err()
    );
    assert!(
        registry.blob("b", &digest).is_some(),
        "the work was done, the answer was lost"
    );
    assert_eq!(registry.log().blob_bytes_received(), 200_000);
}

#[tokio::test]
async fn answers_can_be_wrong_in_many_ways() {
    let registry = FakeRegistry::start();
    let client = client();
    let digest = registry.put_blob("a", b"right".as_slice());
    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    let first = |fault: Fault| {
        registry.clear_faults();
        registry.inject(fault.on(Method::GET, "/blobs/"));
        send(client.get(&url))
    };
    let limited = first(Fault::too_many_requests(2)).await;
    assert_eq!(
        (
            limited.status().as_u16(),
            header(&limited, "retry-after").as_str()
        ),
        (429, "2")
    );
    assert_eq!(code(limited).await, "TOOMANYREQUESTS");
    let html = first(Fault::status(502).with_body("<html>")).await;
    assert_eq!(
        (html.status().as_u16(), html.text().await.unwrap().as_str()),
        (502, "<html>")
    );
    let text = async |response: Response| response.bytes().await.unwrap().to_vec();
    assert_eq!(
        text(first(Fault::corrupt_byte(0)).await).await,
        [b'r' ^ 0xff, b'i', b'g', b'h', b't']
    );
    assert_eq!(text(first(Fault::truncate(2)).await).await, b"ri");
    assert_eq!(text(first(Fault::append("!")).await).await, b"right!");
    assert_eq!(
        text(first(Fault::replace_body("wrong!")).await).await,
        b"wrong!"
    );
    let lying = first(Fault::digest_header("sha256:00")).await;
    assert_eq!(header(&lying, "docker-content-digest"), "sha256:00");
    let silent = first(Fault::without_header("docker-content-digest")).await;
    assert!(silent.headers().get("docker-content-digest").is_none());
    let mut endless = first(Fault::endless_body(500)).await;
    let mut received = 0;
    while received < 1_000_000 {
        received += endless.chunk().await.unwrap().unwrap().len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_holds_requests_until_it_opens() {
    let registry = FakeRegistry::start();
    let gate = Gate::new();
    registry.inject(Fault::hold(&gate).on_path("/v2/").always());
    let client = client();
    let url = format!("{}/v2/", registry.url());
    let waiting: Vec<_> = (0..3)
        .map(|_| tokio::spawn(client.get(&url).send()))
        .collect();
    let arrived = gate.clone();
    tokio::task::spawn_blocking(move || arrived.wait_for(3))
        .await
        .unwrap();
    assert!(waiting.iter().all(|request| !request.is_finished()));
    gate.open();
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(registry.log().peak(), 3);
}

#[tokio::test]
async fn referrers_are_listed_when_switched_on() {
    let registry = FakeRegistry::builder().referrers().start();
    let client = client();
    let mut signature = image(&registry, "a");
    let subject = Digest::of(b"subject");
    signature["artifactType"] = "application/x.signature".into();
    signature["subject"] = json!({"mediaType": MANIFEST, "digest": subject.to_string(), "size": 7});
    let url = format!("{}/v2/a/manifests/sig", registry.url());
    let put = client
        .put(url)
        .header(CONTENT_TYPE, MANIFEST)
        .body(signature.to_string());
    assert_eq!(header(&send(put).await, "oci-subject"), subject.to_string());
    let list = async |query: &str| {
        let url = format!("{}/v2/a/referrers/{subject}{query}", registry.url());
        let index: Value = send(client.get(url)).await.json().await.unwrap();
        index["manifests"].as_array().unwrap().len()
    };
    assert_eq!(list("").await, 1);
    assert_eq!(list("?artifactType=application/x.signature").await, 1);
    assert_eq!(list("?artifactType=other").await, 0);
}

#[tokio::test]
async fn switches_of_uploads_and_downloads_do_what_they_say() {
    let client = client();
    let digest = Digest::of(b"0123456789");
    let registry = FakeRegistry::builder()
        .single_post_uploads()
        .ignore_ranges()
        .require_content_length()
        .minimum_chunk(4)
        .chunk_status(201)
        .start();
    let post = format!("{}/v2/a/blobs/uploads/?digest={digest}", registry.url());
    assert_eq!(
        send(client.post(&post).body("0123456789")).await.status(),
        201
    );
    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    let all = send(client.get(url).header("range", "bytes=3-")).await;
    assert_eq!(
        (all.status().as_u16(), all.text().await.unwrap().len()),
        (200, 10)
    );

    let begun = send(client.post(format!("{}/v2/a/blobs/uploads/", registry.url()))).await;
    assert_eq!(header(&begun, "oci-chunk-min-length"), "4");
    let location = header(&begun, "location");
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("0123")]);
    let unsized_chunk = client
        .patch(&location)
        .body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(send(unsized_chunk).await.status(), 411);
    let short = send(client.patch(&location).body("01")).await;
    assert_eq!(short.status(), 201);
    let location = header(&short, "location");
    let next = send(client.patch(&location).body("23456789")).await;
    assert_eq!(code(next).await, "SIZE_INVALID");
    assert_eq!(registry.log().blob_bytes_received(), 12);
}

#[tokio::test]
async fn a_fixed_scope_is_challenged_and_grants_pulls() {
    let settings = TokenSettings::default()
        .anonymous_pull()
        .fixed_scope("aws")
        .field(TokenField::AccessToken)
        .lifetime(None);
    let registry = FakeRegistry::builder().bearer(settings).start();
    registry.create_repository("a");
    let client = client();
    let tags = format!("{}/v2/a/tags/list", registry.url());
    let challenge = header(&send(client.get(&tags)).await, WWW_AUTHENTICATE.as_str());
    assert!(challenge.ends_with("scope=\"aws\""), "{challenge}");
    let answer: Value = token(&client, &challenge, None).await.json().await.unwrap();
    assert!(answer["token"].is_null() && answer["expires_in"].is_null());
    let token = answer["access_token"].as_str().unwrap();
    assert_eq!(
        send(client.get(&tags).bearer_auth(token)).await.status(),
        200
    );
    let post = client.post(format!("{}/v2/a/blobs/uploads/", registry.url()));
    assert_eq!(send(post.bearer_auth(token)).await.status(), 401);
}

#[tokio::test]
async fn faults_reach_the_token_server_and_the_second_host() {
    let registry = FakeRegistry::builder()
        .bearer(TokenSettings::default().anonymous_pull())
        .redirect_blobs(Redirect::OtherPort)
        .start();
    let digest = registry.put_blob("a", b"bytes".as_slice());
    registry.inject(Fault::endless_body(200).at(Endpoint::Token));
    registry.inject(
        Fault::status(403)
            .with_body("<Error/>")
            .at(Endpoint::Storage),
    );
    let client = client();
    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    let challenge = header(&send(client.get(&url)).await, WWW_AUTHENTICATE.as_str());
    let mut endless = token(&client, &challenge, None).await;
    assert!(endless.chunk().await.unwrap().is_some());
    let answer: Value = token(&client, &challenge, None).await.json().await.unwrap();
    let token = answer["token"].as_str().unwrap();
    let location = header(&send(client.get(&url).bearer_auth(token)).await, "location");
    assert_eq!(send(client.get(&location)).await.status(), 403);
    assert_eq!(
        send(client.get(&location)).await.text().await.unwrap(),
        "bytes"
    );
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

#[test]
fn dropping_the_registry_closes_its_port() {
    let registry = FakeRegistry::start();
    let host = registry.host();
    std::net::TcpStream::connect(&host).unwrap();
    drop(registry);
    assert!(std::net::TcpStream::connect(&host).is_err());
}
