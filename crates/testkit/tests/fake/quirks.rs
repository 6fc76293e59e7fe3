//! The quirks of single registries, each by its switch: ECR's, ECR Public's, docker-registry's.

use std::io::Write as _;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::{
    Endpoint, FakeRegistry, Fault, LocationStyle, Method, MissingRepository, Offsets, RateLimit,
    Redirect,
};

use crate::plain::{INDEX, MANIFEST, begin, client, code, header, image, send, token, with_digest};

async fn patch(client: &Client, location: &str, range: &str, body: &'static [u8]) -> Response {
    let request = client.patch(location).header("content-range", range);
    send(request.body(body)).await
}

fn status_and<'r>(response: &'r Response, name: &str) -> (u16, &'r str) {
    let value = response.headers().get(name);
    let value = value.map_or("", |value| value.to_str().unwrap());
    (response.status().as_u16(), value)
}

async fn message(response: Response) -> String {
    let body: Value = response.json().await.unwrap();
    body["errors"][0]["message"].as_str().unwrap().to_owned()
}

fn put_manifest(
    client: &Client,
    registry: &FakeRegistry,
    reference: &str,
    manifest: &Value,
) -> reqwest::RequestBuilder {
    client
        .put(format!("{}/v2/a/manifests/{reference}", registry.url()))
        .header(CONTENT_TYPE, MANIFEST)
        .body(manifest.to_string())
}

#[tokio::test]
async fn ecr_passwords_are_challenged_expire_and_are_renewed() {
    let registry = FakeRegistry::builder()
        .ecr_passwords()
        .name("123456789012.dkr.ecr.eu-west-1.amazonaws.com")
        .start();
    let (client, url) = (client(), format!("{}/v2/", registry.url()));
    let anonymous = send(client.get(&url)).await;
    assert_eq!(
        status_and(&anonymous, "www-authenticate"),
        (
            401,
            "Basic realm=\"https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/\",\
             service=\"ecr.amazonaws.com\""
        )
    );
    assert_eq!(anonymous.text().await.unwrap().trim(), "Not Authorized");
    let old = registry.issue_password();
    let get = |user: &str, password: &str| send(client.get(&url).basic_auth(user, Some(password)));
    assert_eq!(get("AWS", &old).await.status(), 200);
    assert_eq!(get("me", &old).await.status(), 401);
    assert_eq!(get("AWS", "guess").await.status(), 401);
    registry.expire_tokens();
    let expired = get("AWS", &old).await;
    assert_eq!(expired.status(), 403);
    let body: Value = expired.json().await.unwrap();
    let text = "Your authorization token has expired. Reauthenticate and try again.";
    assert_eq!(
        body["errors"][0],
        json!({"code": "DENIED", "message": text})
    );
    let new = registry.issue_password();
    assert_eq!(get("AWS", &new).await.status(), 200);
    assert_eq!(get("AWS", &old).await.status(), 403);
    assert_eq!(registry.secrets().len(), 2);
}

#[tokio::test]
async fn the_range_of_ecr_sticks_at_the_first_chunk() {
    let registry = FakeRegistry::builder()
        .stale_range()
        .chunk_status(201)
        .start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let first = patch(&client, &location, "0-4", b"01234").await;
    assert_eq!(status_and(&first, "range"), (201, "0-4"));
    let second = patch(&client, &header(&first, "location"), "5-9", b"56789").await;
    assert_eq!(status_and(&second, "range"), (201, "0-4"));
    let state = send(client.get(header(&second, "location"))).await;
    assert_eq!(status_and(&state, "range"), (204, "0-4"));
    let digest = Digest::of(b"0123456789");
    let put = client.put(with_digest(&header(&state, "location"), &digest));
    assert_eq!(send(put).await.status(), 201);
}

#[tokio::test]
async fn a_chunk_at_the_wrong_offset_is_refused_in_the_words_of_ecr() {
    let registry = FakeRegistry::builder()
        .location(LocationStyle::Absolute)
        .offsets(Offsets::Ecr)
        .start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    assert_eq!(
        patch(&client, &location, "0-4", b"01234").await.status(),
        202
    );
    for again in [
        patch(&client, &location, "0-4", b"01234").await,
        // A body without a range begins at its beginning.
        send(client.patch(&location).body("01234")).await,
        send(
            client
                .put(with_digest(&location, &Digest::of(b"01234")))
                .body("01234"),
        )
        .await,
    ] {
        assert_eq!(again.status(), 416);
        let text = "First byte of the layer part is 0 instead of 5";
        assert_eq!(message(again).await, text);
    }
    let digest = Digest::of(b"0123456");
    let last = client.put(with_digest(&location, &digest)).body("56");
    let last = send(last.header("content-range", "5-6")).await;
    assert_eq!(last.status(), 201);
    assert_eq!(registry.blob("a", &digest).unwrap(), "0123456");
}

#[tokio::test]
async fn short_parts_are_refused_when_another_follows() {
    let registry = FakeRegistry::builder()
        .location(LocationStyle::Absolute)
        .minimum_part(4)
        .start();
    let client = client();
    let begun = send(client.post(format!("{}/v2/a/blobs/uploads/", registry.url()))).await;
    assert!(begun.headers().get("oci-chunk-min-length").is_none());
    let location = header(&begun, "location");
    for (range, body, status) in [("0-3", b"0123".as_slice(), 202), ("4-4", b"4", 202)] {
        assert_eq!(
            patch(&client, &location, range, body).await.status(),
            status
        );
    }
    let third = patch(&client, &location, "5-8", b"5678").await;
    assert_eq!(
        message(third).await,
        "Layer parts must be at least 4 bytes in size"
    );
    // The short part was the last one: the upload can be ended.
    let digest = Digest::of(b"01234");
    assert_eq!(
        send(client.put(with_digest(&location, &digest)))
            .await
            .status(),
        201
    );
}

#[tokio::test]
async fn atomic_chunks_leave_nothing_when_they_break_and_all_when_the_answer_is_lost() {
    let registry = FakeRegistry::builder()
        .location(LocationStyle::Absolute)
        .atomic_chunks()
        .start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let range = async || header(&send(client.get(&location)).await, "range");
    registry.inject(Fault::disconnect_after_receiving(3).on(Method::PATCH, ""));
    registry.inject(Fault::disconnect_after_receiving(6).on(Method::PUT, ""));
    registry.inject(Fault::lose_answer().on(Method::PATCH, "").nth(2));
    let chunk = || {
        let chunk = client.patch(&location).header("content-range", "0-5");
        chunk.body("012345").send()
    };
    let digest = Digest::of(b"012345");
    let whole = || client.put(with_digest(&location, &digest));
    assert!(chunk().await.is_err());
    assert_eq!(range().await, "0-0");
    assert!(whole().body("012345").send().await.is_err());
    assert_eq!(range().await, "0-0");
    assert!(chunk().await.is_err());
    assert_eq!(range().await, "0-5");
    assert_eq!(send(whole()).await.status(), 201);
    assert_eq!(registry.log().blob_bytes_received(), 15);
}

#[tokio::test]
async fn a_client_that_dies_in_a_chunk_leaves_nothing_of_it() {
    let registry = FakeRegistry::builder()
        .location(LocationStyle::Absolute)
        .atomic_chunks()
        .start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let (_, path) = location.split_once(&registry.host()).unwrap();
    let mut stream = std::net::TcpStream::connect(registry.host()).unwrap();
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(b"0123").unwrap();
    drop(stream);
    let chunk = patch(&client, &location, "0-4", b"01234").await;
    assert_eq!(status_and(&chunk, "range"), (202, "0-4"));
    let digest = Digest::of(b"01234");
    let put = client.put(with_digest(&location, &digest));
    assert_eq!(send(put).await.status(), 201);
}

#[tokio::test]
async fn the_state_of_an_upload_need_not_be_told() {
    for status in [404, 405] {
        let registry = FakeRegistry::builder().upload_status(status).start();
        let client = client();
        let location = begin(&client, &registry, "a").await;
        assert_eq!(send(client.get(&location)).await.status(), status);
        assert_eq!(
            patch(&client, &location, "0-0", b"0").await.status(),
            202,
            "the upload is there all the same"
        );
    }
}

#[tokio::test]
async fn docker_registry_appends_whatever_comes_and_keeps_what_broke_off() {
    let registry = FakeRegistry::builder().like_docker_registry().start();
    let client = client();
    let location = begin(&client, &registry, "a").await;
    let first = patch(&client, &location, "7-9", b"012").await;
    assert_eq!(status_and(&first, "range"), (202, "0-2"));
    let location = header(&first, "location");
    assert_eq!(
        status_and(&send(client.get(&location)).await, "range"),
        (204, "0-2")
    );
    registry.inject(Fault::disconnect_after_receiving(2).on(Method::PATCH, ""));
    assert!(client.patch(&location).body("3456").send().await.is_err());
    // The address tells of three bytes, and there are five.
    let lost = send(client.get(&location)).await;
    assert_eq!(lost.status(), 404);
    assert_eq!(code(lost).await, "BLOB_UPLOAD_INVALID");
    assert_eq!(registry.open_uploads(), 0);

    let lenient = FakeRegistry::builder().offsets(Offsets::Ignored).start();
    let location = begin(&client, &lenient, "a").await;
    lenient.inject(Fault::disconnect_after_receiving(2).on(Method::PUT, ""));
    let put = client.put(with_digest(&location, &Digest::of(b"0123")));
    assert!(put.body("0123").send().await.is_err());
    let state = send(client.get(&location)).await;
    assert_eq!(status_and(&state, "range"), (204, "0-1"));
}

#[tokio::test]
async fn a_missing_repository_shows_in_three_ways() {
    let client = client();
    let start = |missing| {
        FakeRegistry::builder()
            .missing_repository(missing)
            .account("123456789012")
            .location(LocationStyle::Absolute)
            .start()
    };
    let post = |registry: &FakeRegistry| {
        client
            .post(format!("{}/v2/a/blobs/uploads/", registry.url()))
            .send()
    };
    let registry = start(MissingRepository::NameUnknown);
    let text = "The repository with name 'a' does not exist in the registry with id '123456789012'";
    assert_eq!(message(post(&registry).await.unwrap()).await, text);

    let registry = start(MissingRepository::DropsPost);
    assert!(post(&registry).await.is_err());
    let put = send(put_manifest(&client, &registry, "t", &json!({}))).await;
    assert_eq!(code(put).await, "NAME_UNKNOWN");
    registry.create_repository("a");
    assert_eq!(post(&registry).await.unwrap().status(), 202);

    let registry = start(MissingRepository::DropsUpload);
    let location = header(&post(&registry).await.unwrap(), "location");
    let digest = Digest::of(b"x");
    let put = || client.put(with_digest(&location, &digest)).body("x").send();
    assert!(client.patch(&location).body("x").send().await.is_err());
    assert!(put().await.is_err());
    assert_eq!(registry.repositories(), Vec::<String>::new());
    registry.create_repository("a");
    assert_eq!(put().await.unwrap().status(), 201);
}

#[tokio::test]
async fn immutable_tags_stay_with_their_digest() {
    let registry = FakeRegistry::builder().immutable_tags().start();
    let client = client();
    let first = image(&registry, "a");
    let mut second = first.clone();
    second["annotations"] = json!({"a": "b"});
    let put = async |manifest: &Value| send(put_manifest(&client, &registry, "t", manifest)).await;
    assert_eq!(put(&first).await.status(), 201);
    assert_eq!(put(&first).await.status(), 201);
    let refused = put(&second).await;
    assert_eq!(refused.status(), 400);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(
        body["errors"][0],
        json!({
            "code": "TAG_INVALID",
            "message": "The image tag 't' already exists in the 'a' repository and cannot be \
                        overwritten because the repository is immutable."
        })
    );
    let digest = Digest::of(second.to_string().as_bytes()).to_string();
    let by_digest = put_manifest(&client, &registry, &digest, &second);
    assert_eq!(send(by_digest).await.status(), 201);
    registry.set_immutable_tags("a", false);
    assert_eq!(put(&second).await.status(), 201);

    let strict = FakeRegistry::builder()
        .immutable_tags()
        .refuse_identical_manifests()
        .start();
    let manifest = image(&strict, "a");
    let put = async || send(put_manifest(&client, &strict, "t", &manifest)).await;
    assert_eq!(put().await.status(), 201);
    assert_eq!(code(put().await).await, "TAG_INVALID");
}

#[tokio::test]
async fn long_bodies_are_413_and_chunks_below_the_limit_pass() {
    let registry = FakeRegistry::builder().body_limit(1_000_000).start();
    let client = client();
    let bytes = vec![7_u8; 3_000_000];
    let digest = Digest::of(&bytes);
    let location = begin(&client, &registry, "a").await;
    let put = client.put(with_digest(&location, &digest));
    let refused = send(put.body(bytes)).await;
    assert_eq!(status_and(&refused, "content-type"), (413, "text/html"));
    let pieces = [(); 8].map(|()| Ok::<_, std::io::Error>(vec![7_u8; 400_000]));
    let pieces = futures_util::stream::iter(pieces);
    let unsized_body = client
        .patch(&location)
        .body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(send(unsized_body).await.status(), 413);
    assert_eq!(
        registry.log().records()[1].bytes_received,
        0,
        "what the proxy read and threw away does not count"
    );
}

#[tokio::test]
async fn ecr_public_has_its_own_way_with_tokens() {
    let limit = RateLimit::after(3).refusing(1);
    let registry = FakeRegistry::builder()
        .like_public_ecr()
        .anonymous_limit(&limit)
        .start();
    let digest = registry.put_blob("lambda/provided", b"bytes".as_slice());
    let client = client();
    let url = format!("{}/v2/lambda/provided/blobs/{digest}", registry.url());
    let challenge = header(&send(client.get(&url)).await, "www-authenticate");
    let service = "/token/\",service=\"public.ecr.aws\",scope=\"aws\"";
    assert!(challenge.ends_with(service), "{challenge}");
    let obtain = async |user: Option<(&str, &str)>| {
        let answer: Value = token(&client, &challenge, user).await.json().await.unwrap();
        answer["token"].as_str().unwrap().to_owned()
    };
    let anonymous = obtain(None).await;
    let get = |token: &str| send(client.get(&url).bearer_auth(token));
    assert_eq!(get(&anonymous).await.status(), 307);
    let head = send(client.head(&url).bearer_auth(&anonymous)).await;
    assert_eq!(head.status(), 401);
    assert_eq!(get(&anonymous).await.status(), 307);
    assert_eq!(get(&anonymous).await.status(), 307);
    let limited = get(&anonymous).await;
    assert_eq!(limited.status(), 429);
    assert_eq!(message(limited).await, "Rate exceeded");
    assert_eq!(get(&anonymous).await.status(), 307);

    let wrong = token(&client, &challenge, Some(("AWS", "guess"))).await;
    assert_eq!(wrong.status(), 401);
    let password = registry.issue_password();
    let known = obtain(Some(("AWS", &password))).await;
    for _ in 0..5 {
        assert_eq!(get(&known).await.status(), 307);
    }
    registry.expire_tokens();
    let old = get(&known).await;
    assert_eq!(status_and(&old, "www-authenticate"), (400, ""));
    assert_eq!(limit.refused(), 1);
    assert_eq!(registry.secrets().len(), 3);
}

#[tokio::test]
async fn manifests_come_no_faster_than_the_limit() {
    let limit = RateLimit::after(1);
    let registry = FakeRegistry::builder().manifest_limit(&limit).start();
    let client = client();
    let manifest = image(&registry, "a");
    let put = async |tag: &str| send(put_manifest(&client, &registry, tag, &manifest)).await;
    assert_eq!(put("1").await.status(), 201);
    let limited = put("2").await;
    assert_eq!(limited.status(), 429);
    assert_eq!(code(limited).await, "TOOMANYREQUESTS");
    limit.reset();
    assert_eq!(put("2").await.status(), 201);
}

#[tokio::test]
async fn a_stalled_server_leaves_the_client_waiting_and_the_upload_usable() {
    let registry = FakeRegistry::builder()
        .location(LocationStyle::Absolute)
        .atomic_chunks()
        .start();
    let client = client();
    let impatient = Client::builder()
        .no_proxy()
        .read_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let location = begin(&client, &registry, "a").await;
    registry.inject(Fault::stall_after_receiving(2).on(Method::PATCH, ""));
    let chunk = |client: &Client| {
        let chunk = client.patch(&location).header("content-range", "0-3");
        chunk.body("0123").send()
    };
    assert!(chunk(&impatient).await.unwrap_err().is_timeout());
    assert_eq!(chunk(&client).await.unwrap().status(), 202);
    let digest = Digest::of(b"0123");
    assert_eq!(
        send(client.put(with_digest(&location, &digest)))
            .await
            .status(),
        201
    );

    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    registry.inject(Fault::stall_after_sending(2).on(Method::GET, "/blobs/"));
    let mut stalled = impatient.get(&url).send().await.unwrap();
    assert_eq!(stalled.chunk().await.unwrap().unwrap(), "01");
    assert!(stalled.chunk().await.unwrap_err().is_timeout());
    registry.inject(Fault::trickle(1, Duration::from_millis(1)).on(Method::GET, "/blobs/"));
    let trickled = send(client.get(&url)).await;
    assert_eq!(header(&trickled, "content-length"), "4");
    assert_eq!(trickled.bytes().await.unwrap(), "0123");
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

#[tokio::test]
async fn an_early_refusal_is_seen_however_long_the_body() {
    let registry = FakeRegistry::builder().basic("me", "pw").start();
    let digest = Digest::of(b"");
    let url = format!("{}/v2/a/blobs/uploads/7?digest={digest}", registry.url());
    let put = client().put(url).body(vec![0_u8; 20_000_000]);
    assert_eq!(send(put).await.status(), 401);
    assert_eq!(registry.log().blob_bytes_received(), 0);
}

#[tokio::test]
async fn referrers_come_in_pages() {
    let registry = FakeRegistry::builder()
        .referrers()
        .referrers_page_size(2)
        .start();
    let client = client();
    let subject = Digest::of(b"subject");
    let mut manifest = image(&registry, "a");
    manifest["artifactType"] = "application/x.y+z".into();
    manifest["subject"] = json!({"mediaType": MANIFEST, "digest": subject.to_string(), "size": 7});
    for number in 0..5 {
        manifest["annotations"] = json!({"number": number.to_string()});
        registry.put_manifest("a", None, MANIFEST, manifest.to_string());
    }
    let mut path = format!("/v2/a/referrers/{subject}?artifactType=application%2Fx.y%2Bz");
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let response = send(client.get(format!("{}{path}", registry.url()))).await;
        assert_eq!(header(&response, "content-type"), INDEX);
        let link = response.headers().get("link");
        let link = link.map(|link| link.to_str().unwrap().to_owned());
        let index: Value = response.json().await.unwrap();
        for descriptor in index["manifests"].as_array().unwrap() {
            found.push(descriptor["digest"].to_string());
        }
        pages += 1;
        let Some(link) = link else { break };
        let next = link.strip_suffix(">; rel=\"next\"").unwrap();
        next[1..].clone_into(&mut path);
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!((found.len(), pages), (5, 3));
}

#[tokio::test]
async fn the_preset_of_ecr_has_its_quirks_together() {
    let registry = FakeRegistry::builder()
        .like_ecr("123456789012", "eu-west-1")
        .minimum_part(4)
        .repository("a")
        .start();
    let password = registry.issue_password();
    let client = client();
    let signed =
        |request: reqwest::RequestBuilder| send(request.basic_auth("AWS", Some(password.clone())));
    let uploads = |name: &str| format!("{}/v2/{name}/blobs/uploads/", registry.url());
    assert_eq!(
        code(signed(client.post(uploads("missing"))).await).await,
        "NAME_UNKNOWN"
    );
    let location = header(&signed(client.post(uploads("a"))).await, "location");
    for (range, body) in [("0-3", "0123"), ("4-7", "4567")] {
        let chunk = client.patch(&location).header("content-range", range);
        let chunk = signed(chunk.body(body)).await;
        assert_eq!(status_and(&chunk, "range"), (201, "0-3"));
    }
    let digest = Digest::of(b"01234567");
    let put = signed(client.put(with_digest(&location, &digest))).await;
    assert_eq!(put.status(), 201);
    let get = signed(client.get(format!("{}/v2/a/blobs/{digest}", registry.url()))).await;
    let storage = header(&get, "location");
    assert_eq!(signed(client.get(&storage)).await.status(), 400);
    assert_eq!(
        send(client.get(&storage)).await.text().await.unwrap(),
        "01234567"
    );
    let many = format!("{}/v2/a/tags/list?n=1001", registry.url());
    assert_eq!(signed(client.get(many)).await.status(), 400);
    let mount = format!("{}?mount={digest}&from=a", uploads("a"));
    assert_eq!(signed(client.post(mount)).await.status(), 202);
    let log = registry.log();
    assert!(
        log.filter(|record| record.endpoint == Endpoint::Storage)
            .len()
            == 2
    );
    assert_eq!(log.leaks(&password), Vec::<String>::new());
}

#[tokio::test]
async fn heads_of_blobs_can_be_redirected_too() {
    let registry = FakeRegistry::builder()
        .redirect_blobs(Redirect::OtherName)
        .redirect_heads()
        .start();
    let digest = registry.put_blob("a", b"bytes".as_slice());
    let client = client();
    let url = format!("{}/v2/a/blobs/{digest}", registry.url());
    let head = send(client.head(&url)).await;
    assert_eq!(head.status(), 307);
    let there = send(client.head(header(&head, "location"))).await;
    assert_eq!(status_and(&there, "content-length"), (200, "5"));
}
