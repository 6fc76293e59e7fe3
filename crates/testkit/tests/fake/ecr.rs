//! ECR and the APIs around it, in the wire forms that the SDKs use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::ecr::Function;
use tierce_testkit::{FakeEcr, Fault};

use crate::plain::{INDEX, MANIFEST, client, code, header, image, send, token};

fn key(ecr: &FakeEcr) -> String {
    let environment = ecr.environment();
    let mut named = environment.iter();
    let (_, id) = named.find(|(name, _)| name == "AWS_ACCESS_KEY_ID").unwrap();
    id.clone()
}

/// Signs a request as far as the fake looks.
fn sign(request: RequestBuilder, key: &str, region: &str, service: &str) -> RequestBuilder {
    let scope = format!("{key}/20260701/{region}/{service}/aws4_request");
    let fields = "SignedHeaders=host;x-amz-date, Signature=00";
    request.header(
        "authorization",
        format!("AWS4-HMAC-SHA256 Credential={scope}, {fields}"),
    )
}

fn request(ecr: &FakeEcr, action: &str, body: &Value) -> RequestBuilder {
    let target = format!("AmazonEC2ContainerRegistry_V20150921.{action}");
    let request = client().post(ecr.control_endpoint());
    let request = request.header("x-amz-target", target);
    request
        .header("content-type", "application/x-amz-json-1.1")
        .body(body.to_string())
}

async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

async fn call(ecr: &FakeEcr, action: &str, body: Value) -> Value {
    let request = sign(request(ecr, action, &body), &key(ecr), "eu-west-1", "ecr");
    let (status, body) = answer(send(request).await).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn refused(ecr: &FakeEcr, action: &str, body: Value) -> String {
    let request = sign(request(ecr, action, &body), &key(ecr), "eu-west-1", "ecr");
    let (status, body) = answer(send(request).await).await;
    assert_eq!(status, 400, "{body}");
    assert!(body["message"].is_string());
    body["__type"].as_str().unwrap().to_owned()
}

fn password(token: &str) -> String {
    let text = String::from_utf8(STANDARD.decode(token).unwrap()).unwrap();
    text.strip_prefix("AWS:").unwrap().to_owned()
}

#[tokio::test]
async fn a_password_of_the_api_opens_the_registry() {
    let ecr = FakeEcr::builder().repository("orders").start();
    ecr.set_token_lifetime(Duration::from_hours(1));
    let answer = call(&ecr, "GetAuthorizationToken", json!({})).await;
    let data = &answer["authorizationData"][0];
    let endpoint = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    assert_eq!(data["proxyEndpoint"], endpoint);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let left = data["expiresAt"].as_f64().unwrap() - now.as_secs_f64();
    assert!((3500.0..=3600.0).contains(&left), "{left}");

    let token = data["authorizationToken"].as_str().unwrap();
    let url = format!("{}/v2/orders/tags/list", ecr.registry().url());
    let list = |token: &str| {
        let request = client().get(&url);
        send(request.header("authorization", format!("Basic {token}")))
    };
    assert_eq!(list(token).await.status(), 200);
    ecr.registry().expire_tokens();
    assert_eq!(list(token).await.status(), 403);
    let again = call(&ecr, "GetAuthorizationToken", json!({})).await;
    let renewed = again["authorizationData"][0]["authorizationToken"].as_str();
    assert_eq!(list(renewed.unwrap()).await.status(), 200);

    let secrets = ecr.secrets();
    assert!(secrets.contains(&token.to_owned()) && secrets.contains(&password(token)));
    assert_eq!(
        secrets.len(),
        5,
        "two passwords as such and as tokens, and a key"
    );
    assert_eq!(ecr.calls_of("GetAuthorizationToken").len(), 2);
    assert_eq!(ecr.calls()[0].access_key, Some(key(&ecr)));
}

#[tokio::test]
async fn only_known_keys_for_the_right_region_may_call() {
    let ecr = FakeEcr::start();
    let describe = || request(&ecr, "DescribeRepositories", &json!({}));
    let kind = async |request: RequestBuilder| {
        let (status, body) = answer(send(request).await).await;
        assert_eq!(status, 400);
        body["__type"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        kind(describe()).await,
        "MissingAuthenticationTokenException"
    );
    let unknown = sign(describe(), "AKIAUNKNOWN", "eu-west-1", "ecr");
    assert_eq!(kind(unknown).await, "UnrecognizedClientException");
    for (region, service) in [("us-east-1", "ecr"), ("eu-west-1", "lambda")] {
        let elsewhere = sign(describe(), &key(&ecr), region, service);
        assert_eq!(kind(elsewhere).await, "InvalidSignatureException");
    }
    let (other, secret) = ecr.add_access_key();
    let signed = sign(describe(), &other, "eu-west-1", "ecr");
    assert_eq!(send(signed).await.status(), 200);
    assert!(ecr.secrets().contains(&secret));
    let errors = ecr
        .calls()
        .iter()
        .filter(|call| call.error.is_some())
        .count();
    assert_eq!((ecr.calls().len(), errors), (5, 4));
}

#[tokio::test]
async fn repositories_are_made_and_described() {
    let ecr = FakeEcr::builder().page_size(2).start();
    let made = call(
        &ecr,
        "CreateRepository",
        json!({
            "repositoryName": "team/orders",
            "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters":
                [{"filterType": "WILDCARD", "filter": "dev-*"}],
            "imageScanningConfiguration": {"scanOnPush": true},
            "encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "alias/a"},
            "tags": [{"Key": "team", "Value": "orders"}],
        }),
    )
    .await;
    let repository = &made["repository"];
    let arn = "arn:aws:ecr:eu-west-1:123456789012:repository/team/orders";
    assert_eq!(repository["repositoryArn"], arn);
    let uri = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/orders";
    assert_eq!(repository["repositoryUri"], uri);
    assert_eq!(repository["encryptionConfiguration"]["kmsKey"], "alias/a");
    let filters = &repository["imageTagMutabilityExclusionFilters"];
    assert_eq!(filters[0]["filter"], "dev-*");
    let name = json!({"repositoryName": "team/orders"});
    assert_eq!(
        refused(&ecr, "CreateRepository", name.clone()).await,
        "RepositoryAlreadyExistsException"
    );
    let bad = json!({"repositoryName": "Orders"});
    assert_eq!(
        refused(&ecr, "CreateRepository", bad).await,
        "InvalidParameterException"
    );
    let missing = json!({"repositoryNames": ["team/orders", "nowhere"]});
    assert_eq!(
        refused(&ecr, "DescribeRepositories", missing).await,
        "RepositoryNotFoundException"
    );

    for more in ["a1", "b2", "c3", "d4"] {
        ecr.registry().create_repository(more);
    }
    let (mut names, mut pages, mut next) = (Vec::new(), 0, Value::Null);
    loop {
        let answer = call(&ecr, "DescribeRepositories", json!({"nextToken": next})).await;
        let page = answer["repositories"].as_array().unwrap().iter();
        names.extend(page.map(|found| found["repositoryName"].as_str().unwrap().to_owned()));
        pages += 1;
        next = answer["nextToken"].clone();
        if next.is_null() {
            break;
        }
    }
    assert_eq!((names.len(), pages), (5, 3));

    let mut change = name.clone();
    change["imageTagMutability"] = "MUTABLE".into();
    change["imageScanningConfiguration"] = json!({"scanOnPush": false});
    call(&ecr, "PutImageTagMutability", change.clone()).await;
    call(&ecr, "PutImageScanningConfiguration", change).await;
    let label = json!({"resourceArn": arn, "tags": [{"Key": "stage", "Value": "test"}]});
    call(&ecr, "TagResource", label).await;
    let labels = call(&ecr, "ListTagsForResource", json!({"resourceArn": arn})).await;
    assert_eq!(labels["tags"].as_array().unwrap().len(), 2);
    let one = json!({"repositoryNames": ["team/orders"]});
    let described = call(&ecr, "DescribeRepositories", one).await;
    let described = &described["repositories"][0];
    assert_eq!(described["imageTagMutability"], "MUTABLE");
    assert_eq!(
        described["imageScanningConfiguration"]["scanOnPush"],
        json!(false)
    );
    call(&ecr, "DeleteRepository", name).await;
    assert_eq!(ecr.registry().repositories().len(), 4);
}

#[tokio::test]
async fn lifecycle_policies_come_and_go() {
    let ecr = FakeEcr::builder().repository("a").start();
    let name = json!({"repositoryName": "a"});
    let none = "LifecyclePolicyNotFoundException";
    assert_eq!(
        refused(&ecr, "GetLifecyclePolicy", name.clone()).await,
        none
    );
    let text = r#"{"rules": [{"rulePriority": 1, "selection": {"tagStatus": "untagged", "countType":
        "imageCountMoreThan", "countNumber": 1}, "action": {"type": "expire"}}]}"#;
    let put = |text: &str| json!({"repositoryName": "a", "lifecyclePolicyText": text});
    let invalid = refused(&ecr, "PutLifecyclePolicy", put("{}")).await;
    assert_eq!(invalid, "InvalidParameterException");
    call(&ecr, "PutLifecyclePolicy", put(text)).await;
    assert_eq!(ecr.lifecycle_policy("a").as_deref(), Some(text));
    let got = call(&ecr, "GetLifecyclePolicy", name.clone()).await;
    assert_eq!(got["lifecyclePolicyText"], text);
    call(&ecr, "DeleteLifecyclePolicy", name.clone()).await;
    assert_eq!(refused(&ecr, "DeleteLifecyclePolicy", name).await, none);
}

#[tokio::test]
async fn images_that_were_pushed_are_listed_described_and_deleted() {
    let ecr = FakeEcr::start();
    let registry = ecr.registry();
    let manifest = image(registry, "a").to_string();
    let child = registry.put_manifest("a", Some("v1"), MANIFEST, manifest.clone());
    registry.tag("a", "v2", child);
    ecr.set_pushed_at("a", &child, 1_700_000_000);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": child.to_string(), "size": manifest.len()}
    ]});
    let parent = registry.put_manifest("a", None, INDEX, index.to_string());
    let name = json!({"repositoryName": "a"});

    let listed = call(&ecr, "ListImages", name.clone()).await;
    assert_eq!(listed["imageIds"].as_array().unwrap().len(), 3);
    let untagged = json!({"repositoryName": "a", "filter": {"tagStatus": "UNTAGGED"}});
    let untagged = call(&ecr, "ListImages", untagged).await;
    assert_eq!(
        untagged["imageIds"],
        json!([{"imageDigest": parent.to_string()}])
    );
    let asked = json!({"repositoryName": "a", "imageIds": [{"imageTag": "v1"}]});
    let details = call(&ecr, "DescribeImages", asked.clone()).await;
    assert_eq!(
        details["imageDetails"],
        json!([{
            "registryId": "123456789012",
            "repositoryName": "a",
            "imageDigest": child.to_string(),
            "imageTags": ["v1", "v2"],
            "imageSizeInBytes": 2,
            "imagePushedAt": 1_700_000_000,
            "imageManifestMediaType": MANIFEST,
            "artifactMediaType": "application/vnd.oci.image.config.v1+json",
            "imageStatus": "ACTIVE",
        }])
    );
    let absent = json!({"repositoryName": "a", "imageIds": [{"imageTag": "v9"}]});
    assert_eq!(
        refused(&ecr, "DescribeImages", absent.clone()).await,
        "ImageNotFoundException"
    );
    let got = call(&ecr, "BatchGetImage", asked).await;
    assert_eq!(got["images"][0]["imageManifest"], manifest);
    let got = call(&ecr, "BatchGetImage", absent).await;
    assert_eq!(got["failures"][0]["failureCode"], "ImageNotFound");

    let delete = async |ids: Value| {
        let body = json!({"repositoryName": "a", "imageIds": ids});
        call(&ecr, "BatchDeleteImage", body).await
    };
    let untag = delete(json!([{"imageTag": "v1"}])).await;
    assert_eq!(untag["imageIds"].as_array().unwrap().len(), 1);
    assert_eq!(registry.tags("a"), ["v2"]);
    let both = json!([{"imageDigest": parent.to_string()}, {"imageDigest": child.to_string()}]);
    let referenced = delete(both).await;
    let failure = &referenced["failures"][0];
    assert_eq!(failure["failureCode"], "ImageReferencedByManifestList");
    let last = delete(json!([
        {"imageTag": "v2", "imageDigest": Digest::of(b"").to_string()},
        {"imageDigest": child.to_string()}, {}, {"imageDigest": "sha256:0"},
        {"imageDigest": child.to_string()},
    ]))
    .await;
    let id = json!({"imageDigest": child.to_string(), "imageTag": "v2"});
    assert_eq!(last["imageIds"], json!([id]));
    let codes: Vec<&Value> = last["failures"].as_array().unwrap().iter().collect();
    let codes: Vec<&str> = codes
        .into_iter()
        .map(|failure| failure["failureCode"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        [
            "ImageTagDoesNotMatchDigest",
            "MissingDigestAndTag",
            "InvalidImageDigest",
            "ImageNotFound"
        ]
    );
    assert_eq!(registry.manifests("a"), []);
}

#[tokio::test]
async fn what_the_api_makes_the_registry_has() {
    let ecr = FakeEcr::start();
    let password = ecr.registry().issue_password();
    let http = client();
    let url = format!("{}/v2/a1/blobs/uploads/", ecr.registry().url());
    let post = async |query: &str| {
        let request = http.post(format!("{url}{query}"));
        send(request.basic_auth("AWS", Some(&password))).await
    };
    assert_eq!(code(post("").await).await, "NAME_UNKNOWN");
    let immutable = json!({"repositoryName": "a1", "imageTagMutability": "IMMUTABLE"});
    call(&ecr, "CreateRepository", immutable).await;
    assert_eq!(post("").await.status(), 202);

    let digest = ecr.registry().put_blob("base", b"layer".as_slice());
    let mount = format!("?mount={digest}&from=base");
    assert_eq!(post(&mount).await.status(), 202);
    let setting = json!({"name": "BLOB_MOUNTING", "value": "ENABLED"});
    let name = json!({"name": "BLOB_MOUNTING"});
    let before = call(&ecr, "GetAccountSetting", name.clone()).await;
    assert_eq!(before["value"], "DISABLED");
    call(&ecr, "PutAccountSetting", setting.clone()).await;
    assert_eq!(call(&ecr, "GetAccountSetting", name).await, setting);
    assert_eq!(post(&mount).await.status(), 201);

    let first = image(ecr.registry(), "a1");
    ecr.registry()
        .put_manifest("a1", Some("t"), MANIFEST, first.to_string());
    let mut second = first.clone();
    second["annotations"] = json!({"a": "b"});
    let put = http
        .put(format!("{}/v2/a1/manifests/t", ecr.registry().url()))
        .header("content-type", MANIFEST)
        .body(second.to_string());
    let put = send(put.basic_auth("AWS", Some(&password))).await;
    assert_eq!(code(put).await, "TAG_INVALID");
}

#[tokio::test]
async fn calls_fail_as_the_test_wants_it() {
    let ecr = FakeEcr::builder().repository("a").start();
    let name = json!({"repositoryNames": ["a"]});
    let describe = "DescribeRepositories";
    ecr.throttle(describe, 2);
    for _ in 0..2 {
        let throttled = refused(&ecr, describe, name.clone()).await;
        assert_eq!(throttled, "ThrottlingException");
    }
    call(&ecr, describe, name.clone()).await;
    ecr.deny("ecr:DescribeRepositories");
    ecr.deny("ecr-public:GetAuthorizationToken");
    let denied = refused(&ecr, describe, name.clone()).await;
    assert_eq!(denied, "AccessDeniedException");
    call(&ecr, "GetAuthorizationToken", json!({})).await;
    ecr.allow("ecr:DescribeRepositories");
    ecr.fail(describe, 1, "ServerException", "out of order");
    let request = request(&ecr, describe, &name);
    let failed = send(sign(request, &key(&ecr), "eu-west-1", "ecr")).await;
    assert_eq!(failed.status(), 500);
    ecr.clear_calls();
    ecr.inject_control(Fault::status(503));
    let request = client().post(ecr.control_endpoint());
    assert_eq!(send(request).await.status(), 503);
    assert_eq!((ecr.calls().len(), ecr.control_log().len()), (0, 7));
}

#[tokio::test]
async fn the_public_registry_has_an_api_of_its_own() {
    let ecr = FakeEcr::builder().with_public().start();
    let public = ecr.public().unwrap();
    let digest = public.put_blob("lambda/provided", b"bytes".as_slice());
    let target = "SpencerFrontendService.GetAuthorizationToken";
    let post = |region: &str| {
        let post = client().post(ecr.control_endpoint()).body("{}");
        let post = post.header("x-amz-target", target);
        send(sign(post, &key(&ecr), region, "ecr-public"))
    };
    assert_eq!(post("eu-west-1").await.status(), 400);
    let (_, data) = answer(post("us-east-1").await).await;
    let data = &data["authorizationData"];
    assert!(data["expiresAt"].is_number());
    let password = password(data["authorizationToken"].as_str().unwrap());

    let http = client();
    let url = format!("{}/v2/lambda/provided/blobs/{digest}", public.url());
    let challenge = header(&send(http.get(&url)).await, "www-authenticate");
    let known = token(&http, &challenge, Some(("AWS", &password))).await;
    let known: Value = known.json().await.unwrap();
    let bearer = known["token"].as_str().unwrap();
    let get = send(http.get(&url).bearer_auth(bearer)).await;
    assert_eq!(get.status(), 307);
    assert!(ecr.secrets().contains(&bearer.to_owned()));
    let private = ecr.registry().issue_password();
    let refused = token(&http, &challenge, Some(("AWS", &private))).await;
    assert_eq!(refused.status(), 401);
}

#[tokio::test]
async fn roles_are_assumed_and_sign_with_their_session() {
    let ecr = FakeEcr::start();
    let sts = |key: &str, form: &[(&str, &str)]| {
        let post = client().post(ecr.control_endpoint()).form(form);
        sign(post, key, "eu-west-1", "sts")
    };
    let role = [
        ("Action", "AssumeRole"),
        ("RoleArn", "arn:aws:iam::999999999999:role/ci/push"),
        ("RoleSessionName", "s"),
        ("DurationSeconds", "900"),
    ];
    ecr.deny("sts:AssumeRole");
    let denied = send(sts(&key(&ecr), &role)).await;
    assert_eq!(denied.status(), 403);
    let text = denied.text().await.unwrap();
    assert!(text.contains("<Code>AccessDenied</Code>"), "{text}");
    ecr.allow("sts:AssumeRole");
    let text = send(sts(&key(&ecr), &role)).await.text().await.unwrap();
    let field = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.to_owned()
    };
    let arn = "arn:aws:sts::999999999999:assumed-role/push/s";
    assert_eq!(field("Arn"), arn);
    assert!(field("Expiration").ends_with('Z'));
    let temporary = field("AccessKeyId");
    let who = || sts(&temporary, &[("Action", "GetCallerIdentity")]);
    assert_eq!(send(who()).await.status(), 403);
    let session = who().header("x-amz-security-token", field("SessionToken"));
    let identity = send(session).await.text().await.unwrap();
    assert!(
        identity.contains(&format!("<Arn>{arn}</Arn>")),
        "{identity}"
    );
    for secret in ["SecretAccessKey", "SessionToken"] {
        assert!(ecr.secrets().contains(&field(secret)));
    }
    assert_eq!(ecr.calls_of("AssumeRole")[1].body["RoleSessionName"], "s");
}

#[tokio::test]
async fn functions_tell_which_images_they_run() {
    let ecr = FakeEcr::builder().page_size(2).start();
    let uri = |tag: &str| ecr.reference("orders", tag);
    let digest = Digest::of(b"image").to_string();
    ecr.add_function(Function::image("orders", &uri("v2"), &uri(&digest)));
    ecr.add_function(Function::image("orders", &uri("v1"), &uri(&digest)).version(1));
    ecr.add_function(Function::archive("old"));
    let get = async |path: &str| {
        let url = format!("{}/2015-03-31/functions{path}", ecr.control_endpoint());
        let get = client().request(Method::GET, url);
        answer(send(sign(get, &key(&ecr), "eu-west-1", "lambda")).await).await
    };
    let (_, latest) = get("/").await;
    assert_eq!(latest["Functions"].as_array().unwrap().len(), 2);
    assert!(latest["NextMarker"].is_null());
    assert_eq!(latest["Functions"][0]["PackageType"], "Image");
    assert_eq!(latest["Functions"][1]["PackageType"], "Zip");
    let (_, first) = get("/?FunctionVersion=ALL").await;
    let marker = first["NextMarker"].as_str().unwrap();
    let (_, second) = get(&format!("/?FunctionVersion=ALL&Marker={marker}")).await;
    assert_eq!(second["Functions"].as_array().unwrap().len(), 1);
    assert!(second["NextMarker"].is_null());
    let arn = first["Functions"][1]["FunctionArn"].as_str().unwrap();
    assert!(arn.ends_with(":function:orders:1"), "{arn}");

    let resolved = json!({
        "RepositoryType": "ECR",
        "ImageUri": uri("v1"),
        "ResolvedImageUri": uri(&digest),
    });
    for path in [
        "/orders?Qualifier=1",
        &format!("/{}", arn.replace(':', "%3A")),
    ] {
        assert_eq!(get(path).await.1["Code"], resolved, "{path}");
    }
    assert_eq!(get("/orders").await.1["Code"]["ImageUri"], uri("v2"));
    let (status, body) = get("/nowhere").await;
    assert_eq!(status, 404);
    assert!(body["Message"].as_str().unwrap().contains("nowhere"));
    ecr.throttle("ListFunctions", 1);
    assert_eq!(get("/").await.0, 429);
}

#[tokio::test]
async fn the_registry_can_be_made_otherwise_and_served_over_https() {
    let ecr = FakeEcr::builder()
        .account("210987654321")
        .region("cn-north-1")
        .registry(|registry| registry.without_create_on_push().minimum_part(4))
        .https()
        .start();
    assert_eq!(
        ecr.name(),
        "210987654321.dkr.ecr.cn-north-1.amazonaws.com.cn"
    );
    assert!(ecr.registry().url().starts_with("https://"));
    assert!(ecr.control_endpoint().starts_with("http://"));
    let open = FakeEcr::builder()
        .registry(|registry| registry.basic("me", "pw"))
        .start();
    let get = client().get(format!("{}/v2/", open.registry().url()));
    let get = get.basic_auth("me", Some("pw"));
    assert_eq!(send(get).await.status(), 200);
}
