//! Artifacts that are attached to images: `tierce attach`, `tierce referrers`, `copy --referrers`.

use std::fs;

use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::images::{Format, TestImage, lambda_base, multi_platform_base};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method};

use crate::support::{World, digest_in, ended};

const REPORT: &str = "application/vnd.example.report+json";

/// A registry with an image at `app:1`, and two files.
fn world_at(registry: &FakeRegistry) -> (World, TestImage, String) {
    let mut world = World::new();
    let image = lambda_base(Format::Docker, "arm64");
    image.put(registry, "app", Some("1"));
    world.call(registry.host(), "REGISTRY");
    world.call(image.digest(), "IMAGE");
    world.sandbox.write("files/report.json", "{\"errors\":0}\n");
    world.sandbox.write("files/notes.txt", "looks good\n");
    let name = registry.reference("app", "1");
    (world, image, name)
}

fn tag_of(digest: Digest) -> String {
    format!("sha256-{}", digest.hex())
}

fn listed(world: &World, name: &str) -> Vec<String> {
    let document = world.ok(&["referrers", "--json", name]).json();
    let listed = document["referrers"].as_array().expect("it is a list");
    let digest = |it: &Value| it["digest"].as_str().expect("each has one").to_owned();
    listed.iter().map(digest).collect()
}

#[test]
fn files_are_attached_listed_and_not_attached_again() {
    for keeps_lists in [true, false] {
        let builder = FakeRegistry::builder();
        let registry = if keeps_lists {
            builder.referrers().start()
        } else {
            builder.start()
        };
        let (mut world, image, name) = world_at(&registry);
        let none = world.ok(&["referrers", &name]);
        assert_eq!(none.stdout(), "");
        insta::allow_duplicates! {
            insta::assert_snapshot!(
                world.shown(&none.stderr()), @"nothing is attached to [IMAGE]");
        }
        let attach = [
            "attach",
            "--artifact-type",
            REPORT,
            &name,
            "files/report.json:application/json",
            "files/notes.txt",
            "--annotation",
            "by=team-a",
        ];
        let output = world.ok(&attach);
        let digest = digest_in(&output);
        assert_eq!(
            output.stdout(),
            format!("{}\n", registry.reference("app", &digest))
        );
        insta::allow_duplicates! {
            insta::assert_snapshot!(
                world.shown(&output.stderr()),
                @"[REGISTRY]/app:1: attached, blobs: 3 sent (26 B)");
            let (media_type, bytes) = registry.manifest("app", &digest).unwrap();
            assert_eq!(media_type, "application/vnd.oci.image.manifest.v1+json");
            let manifest: Value = serde_json::from_slice(&bytes).unwrap();
            insta::assert_snapshot!(world.shown(&format!("{manifest:#}")), @r#"
            {
              "annotations": {
                "by": "team-a"
              },
              "artifactType": "application/vnd.example.report+json",
              "config": {
                "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                "mediaType": "application/vnd.oci.empty.v1+json",
                "size": 2
              },
              "layers": [
                {
                  "annotations": {
                    "org.opencontainers.image.title": "report.json"
                  },
                  "digest": "sha256:396372442830dc3e0bb38e13f80ebb520738ffb6ce98db00f0ac189faa98d91f",
                  "mediaType": "application/json",
                  "size": 13
                },
                {
                  "annotations": {
                    "org.opencontainers.image.title": "notes.txt"
                  },
                  "digest": "sha256:4c7cedfabdc9c683bd0d04a8d032e57ee74faa5803c466dd995785547029e83c",
                  "mediaType": "application/octet-stream",
                  "size": 11
                }
              ],
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "schemaVersion": 2,
              "subject": {
                "digest": "[IMAGE]",
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "size": 693
              }
            }
            "#);
        }
        // The image is what it was, and there is a tag for the list only where it is needed.
        assert_eq!(registry.resolve("app", "1"), Some(image.digest()));
        let mut tags = vec!["1".to_owned()];
        if !keeps_lists {
            tags.push(tag_of(image.digest()));
        }
        assert_eq!(registry.tags("app"), tags);

        // Files elsewhere with the same names and content are the same artifact.
        fs::rename(world.path("files"), world.path("moved")).unwrap();
        world.sandbox.write("files/report.json", "{\"errors\":0}\n");
        world.sandbox.write("files/notes.txt", "looks good\n");
        registry.clear_log();
        let again = world.ok(&attach);
        assert_eq!(again.stdout(), output.stdout());
        let log = registry.log();
        assert_eq!(log.count(Method::PUT, ""), 0, "{log}");
        assert_eq!(log.count(Method::POST, ""), 0, "{log}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(
                world.shown(&again.stderr()), @"[REGISTRY]/app:1: already attached");
        }

        let dated = world
            .tierce(&[
                "attach",
                "--json",
                "--artifact-type=a/b",
                &name,
                "files/notes.txt",
            ])
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .run()
            .assert_success();
        let dated = dated.json();
        world.call(&digest, "REPORT");
        world.call(dated["digest"].as_str().unwrap(), "NOTES");
        let table = world.ok(&["referrers", &name]);
        assert_eq!(table.stderr(), "");
        let by_digest = registry.reference("app", &image.digest().to_string());
        let of_type = world.ok(&["referrers", "--json", "--artifact-type", REPORT, &by_digest]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(world.shown(&format!("{dated:#}")), @r#"
            {
              "annotations": {
                "org.opencontainers.image.created": "2023-11-14T22:13:20Z"
              },
              "artifactType": "a/b",
              "digest": "[NOTES]",
              "files": [
                {
                  "annotations": {
                    "org.opencontainers.image.title": "notes.txt"
                  },
                  "digest": "sha256:4c7cedfabdc9c683bd0d04a8d032e57ee74faa5803c466dd995785547029e83c",
                  "mediaType": "application/octet-stream",
                  "size": 11
                }
              ],
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "reference": "[REGISTRY]/app@[NOTES]",
              "size": 701,
              "subject": {
                "digest": "[IMAGE]",
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "size": 693
              },
              "upToDate": false
            }
            "#);
            insta::assert_snapshot!(world.shown(&table.stdout()), @"
            artifact                                                                 type                                 size   created
            [NOTES]  a/b                                  701 B  2023-11-14T22:13:20Z
            [REPORT]  application/vnd.example.report+json  878 B  -
            ");
            insta::assert_snapshot!(world.shown(&of_type.stdout()), @r#"
            {
              "name": "[REGISTRY]/app@[IMAGE]",
              "referrers": [
                {
                  "annotations": {
                    "by": "team-a"
                  },
                  "artifactType": "application/vnd.example.report+json",
                  "digest": "[REPORT]",
                  "mediaType": "application/vnd.oci.image.manifest.v1+json",
                  "size": 878
                }
              ],
              "subject": "[IMAGE]"
            }
            "#);
        }
        let other = world.ok(&["referrers", "--artifact-type", "a/c", &name]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(world.shown(&other.stderr()), @"nothing of the type `a/c` is attached to [IMAGE]");
        }
        world.assert_no_litter();
    }
}

#[test]
fn the_order_and_the_types_of_the_files_count() {
    let registry = FakeRegistry::builder().referrers().start();
    let (world, _, name) = world_at(&registry);
    let attach = |files: &[&str]| {
        let command = ["attach", "--artifact-type", REPORT, &name];
        digest_in(&world.ok(&[&command, files].concat()))
    };
    let mut digests = vec![
        attach(&["files/report.json", "files/notes.txt"]),
        attach(&["files/notes.txt", "files/report.json"]),
        attach(&["files/notes.txt:text/plain", "files/report.json"]),
        attach(&["files/notes.txt"]),
        attach(&["files/notes.txt", "--annotation=a=b"]),
    ];
    digests.sort();
    assert_eq!(listed(&world, &name), digests);
    digests.dedup();
    assert_eq!(digests.len(), 5);
}

#[test]
fn an_index_is_attached_to_as_a_whole_or_one_image_of_it() {
    let registry = FakeRegistry::start();
    let (world, ..) = world_at(&registry);
    let index = multi_platform_base(Format::Oci);
    index.put(&registry, "multi", Some("1"));
    let name = registry.reference("multi", "1");
    let attach = |more: &[&str]| {
        let command = [
            "attach",
            "--artifact-type",
            REPORT,
            &name,
            "files/notes.txt",
        ];
        digest_in(&world.ok(&[&command, more].concat()))
    };
    let (whole, one) = (attach(&[]), attach(&["--platform", "arm64"]));
    let subject = |digest: &str| {
        let (_, bytes) = registry.manifest("multi", digest).unwrap();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        manifest["subject"].clone()
    };
    let arm = index.image("arm64");
    assert_eq!(subject(&whole)["digest"], index.digest().to_string());
    assert_eq!(
        subject(&one),
        json!({
            "digest": arm.digest(),
            "mediaType": Format::Oci.manifest(),
            "size": arm.manifest.len(),
        })
    );
    assert_eq!(listed(&world, &name), [whole]);
    let arm = world.ok(&["referrers", "--json", "--platform=arm64", &name]);
    assert_eq!(arm.json()["referrers"][0]["digest"], one);
    let amd = world.ok(&["referrers", "--json", "--platform=x86_64", &name]);
    assert_eq!(amd.json()["referrers"], json!([]));
}

#[test]
fn what_was_put_and_never_listed_is_listed_by_the_next_run() {
    let registry = FakeRegistry::start();
    let (world, image, name) = world_at(&registry);
    let attach = [
        "attach",
        "--artifact-type",
        REPORT,
        &name,
        "files/notes.txt",
    ];
    registry.inject(Fault::status(403).on(Method::PUT, "/manifests/sha256-"));
    let stderr = world.fails(1, &attach);
    assert!(stderr.contains("403"), "{stderr}");
    assert_eq!(registry.tags("app"), ["1"]);
    let output = world.ok(&attach);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"[REGISTRY]/app:1: was there, and is attached now");
    assert_eq!(listed(&world, &name), [digest_in(&output)]);
    // A list that somebody else has put in the meantime.
    let empty = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    });
    let tag = tag_of(image.digest());
    registry.put_manifest("app", Some(&tag), Format::Oci.index(), empty.to_string());
    assert_eq!(listed(&world, &name), Vec::<String>::new());
    world.runs(&attach);
    assert_eq!(listed(&world, &name), [digest_in(&output)]);
}

#[test]
fn two_runs_at_the_same_time_are_both_listed() {
    let registry = FakeRegistry::start();
    let (world, image, name) = world_at(&registry);
    let tag = tag_of(image.digest());
    let (both_have_read, both_have_put) = (Gate::new(), Gate::new());
    let hold = |gate: &Gate, method| Fault::hold(gate).on(method, &tag).times(2);
    registry.inject(hold(&both_have_read, Method::PUT));
    registry.inject(hold(&both_have_put, Method::GET).nth(3));
    let runs = ["files/notes.txt", "files/report.json"].map(|file| {
        world
            .tierce(&["attach", "--artifact-type", REPORT, &name, file])
            .spawn()
    });
    both_have_read.wait_for(2);
    both_have_read.open();
    both_have_put.wait_for(2);
    both_have_put.open();
    let mut digests: Vec<String> = runs
        .map(|run| {
            let (code, stdout, stderr) = ended(run);
            assert_eq!(code, Some(0), "{stderr}");
            let (_, digest) = stdout.trim_end().rsplit_once('@').unwrap();
            digest.to_owned()
        })
        .to_vec();
    digests.sort();
    assert_eq!(listed(&world, &name), digests);
}

#[test]
fn an_image_that_is_gone_can_still_have_something_attached() {
    let registry = FakeRegistry::builder().referrers().start();
    let (world, image, _) = world_at(&registry);
    let digest = image.digest().to_string();
    let name = registry.reference("app", &digest);
    world.runs(&["inspect", &name]);
    // It is remembered here; the registry no longer has it.
    registry.inject(
        Fault::status(404)
            .on_path(&format!("/manifests/{digest}"))
            .always(),
    );
    let output = world.ok(&[
        "attach",
        "--artifact-type",
        REPORT,
        &name,
        "files/notes.txt",
    ]);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    warning: [REGISTRY]/app has no [IMAGE]: it is attached to all the same
    [REGISTRY]/app@[IMAGE]: attached, blobs: 2 sent (13 B)
    ");
    assert_eq!(listed(&world, &name), [digest_in(&output)]);
}

#[test]
fn a_copy_takes_along_what_is_attached() {
    for (from_lists, to_lists) in [(true, false), (false, true)] {
        let start = |lists| {
            let builder = FakeRegistry::builder();
            let builder = if lists { builder.referrers() } else { builder };
            builder.start()
        };
        let (source, target) = (start(from_lists), start(to_lists));
        let (mut world, image, name) = world_at(&source);
        world.call(target.host(), "TARGET");
        let attach = |file: &str| {
            let attach = ["attach", "--artifact-type", REPORT, &name, file];
            digest_in(&world.ok(&attach))
        };
        let mut attached = vec![attach("files/notes.txt"), attach("files/report.json")];
        attached.sort();
        let copied = target.reference("copied", "1");
        world.runs(&["copy", &name, &copied]);
        assert_eq!(listed(&world, &copied), Vec::<String>::new());
        let output = world.ok(&["copy", "--referrers", &name, &copied]);
        let mut lines = vec![image.digest().to_string()];
        lines.extend(attached.iter().cloned());
        let lines: Vec<String> = lines
            .iter()
            .map(|digest| target.reference("copied", digest))
            .collect();
        assert_eq!(output.stdout().lines().collect::<Vec<_>>(), lines);
        assert_eq!(listed(&world, &copied), attached);
        target.clear_log();
        let again = world.ok(&["copy", "--referrers", "--json", &name, &copied]);
        let log = target.log();
        assert_eq!(log.count(Method::PUT, ""), 0, "{log}");
        let kinds: Vec<_> = again.json()["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds, ["image", "artifact", "artifact"]);
    }
}

#[test]
fn a_copy_leaves_out_what_is_listed_and_gone() {
    let registry = FakeRegistry::start();
    let (mut world, image, name) = world_at(&registry);
    let gone = Digest::of(b"gone");
    world.call(gone, "GONE");
    let list = json!({
        "schemaVersion": 2,
        "mediaType": Format::Oci.index(),
        "manifests": [{
            "mediaType": Format::Oci.manifest(),
            "digest": gone,
            "size": 4,
        }],
    });
    let tag = tag_of(image.digest());
    registry.put_manifest("app", Some(&tag), Format::Oci.index(), list.to_string());
    let target = registry.reference("copied", "1");
    let output = world.ok(&["copy", "--referrers", &name, &target]);
    assert_eq!(output.stdout().lines().count(), 1);
    insta::assert_snapshot!(world.shown(&output.stderr()), @"
    [REGISTRY]/copied:1: blobs: 3 mounted (1.4 KiB)
    warning: `[REGISTRY]/app@[GONE]` is listed, but no longer there
    ");
    let table = world.ok(&["referrers", &name]);
    insta::assert_snapshot!(world.shown(&table.stdout()), @"
    artifact                                                                 type  size  created
    [GONE]  -     4 B   -
    ");
}

#[test]
fn what_cannot_be_attached_is_named_and_nothing_is_asked() {
    let registry = FakeRegistry::builder().referrers().start();
    let (world, _, name) = world_at(&registry);
    world.sandbox.write("other/notes.txt", "");
    world.sandbox.write("a:b", "");
    let attach = |code, artifact_type: &str, image: &str, files: &[&str]| {
        let command = ["attach", "--artifact-type", artifact_type, image];
        world.fails(code, &[&command, files].concat())
    };
    insta::assert_snapshot!(attach(1, REPORT, &name, &["files/none"]), @"
    error: could not attach files/none
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(attach(1, REPORT, &name, &["files"]), @"
    error: could not attach files
      caused by: it is not a regular file
    ");
    insta::assert_snapshot!(
        attach(2, REPORT, &name, &["files/notes.txt", "other/notes.txt"]), @"error: two of the files are called `notes.txt`");
    insta::assert_snapshot!(attach(2, "report", &name, &["files/notes.txt"]), @"
    error: invalid value 'report' for '--artifact-type <TYPE>': `report` is not a media type: expected `TYPE/SUBTYPE`, for example `application/json`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(attach(2, REPORT, &name, &["files/notes.txt:text"]), @"
    error: invalid value 'files/notes.txt:text' for '<FILE[:MEDIATYPE]>...': `text` is not a media type: expected `TYPE/SUBTYPE`, for example `application/json` (a file with a colon in its name needs one after another colon)

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(attach(2, REPORT, &name, &["a:b"]), @"
    error: invalid value 'a:b' for '<FILE[:MEDIATYPE]>...': `b` is not a media type: expected `TYPE/SUBTYPE`, for example `application/json` (a file with a colon in its name needs one after another colon)

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(attach(2, REPORT, &name, &[":text/plain"]), @"
    error: invalid value ':text/plain' for '<FILE[:MEDIATYPE]>...': expected FILE or FILE:MEDIATYPE

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(attach(2, REPORT, "store:app:1", &["files/notes.txt"]), @"
    error: `store:app:1` is not in a registry, and only there can something be attached
    hint: push it first: `tierce push store:app:1 HOST/REPOSITORY:TAG`
    ");
    insta::assert_snapshot!(world.fails(2, &["referrers", "oci:out:1"]), @"
    error: `oci:out:1` is not in a registry, and only there can something be attached
    hint: push it first: `tierce push oci:out:1 HOST/REPOSITORY:TAG`
    ");
    insta::assert_snapshot!(
        world.fails(2, &["copy", "--referrers", &name, "oci:out:1"]), @"error: --referrers goes from registry to registry: no other place lists what is attached");
    assert!(registry.log().is_empty(), "{}", registry.log());
    // A colon in the name is possible.
    world.runs(&["attach", "--artifact-type", REPORT, &name, "a:b:text/plain"]);
}

#[test]
fn an_unknown_image_and_a_bad_list_are_named() {
    let registry = FakeRegistry::start();
    let (mut world, image, name) = world_at(&registry);
    let tag = tag_of(image.digest());
    world.call(&tag, "LIST");
    let unknown = registry.reference("app", "2");
    let attach = |image: &str| {
        let command = [
            "attach",
            "--artifact-type",
            REPORT,
            image,
            "files/notes.txt",
        ];
        world.fails(1, &command)
    };
    insta::assert_snapshot!(attach(&unknown), @"
    error: could not read `[REGISTRY]/app:2`
      caused by: registry [REGISTRY] answered 404 MANIFEST_UNKNOWN to `GET /v2/app/manifests/2`: manifest unknown: 2
    hint: check the repository and the tag
    ");
    insta::assert_snapshot!(world.fails(1, &["referrers", &unknown]), @"
    error: could not read `[REGISTRY]/app:2`
      caused by: registry [REGISTRY] answered 404 MANIFEST_UNKNOWN to `GET /v2/app/manifests/2`: manifest unknown: 2
    hint: check the repository and the tag
    ");
    // The one that is meant may not have been pushed yet.
    world.runs(&["copy", &name, &format!("store:{unknown}")]);
    insta::assert_snapshot!(attach(&unknown), @"
    error: could not read `[REGISTRY]/app:2`
      caused by: registry [REGISTRY] answered 404 MANIFEST_UNKNOWN to `GET /v2/app/manifests/2`: manifest unknown: 2
    hint: the local store has one, to be pushed first: `tierce push store:[REGISTRY]/app:2`
    hint: check the repository and the tag
    ");
    registry.tag("app", &tag, image.digest());
    insta::assert_snapshot!(world.fails(1, &["referrers", &name]), @"
    error: could not list what is attached to `[REGISTRY]/app:1`
      caused by: the tag [LIST] of [REGISTRY]/app should list what refers to [IMAGE], but is of the type `application/vnd.docker.distribution.manifest.v2+json`
    hint: this registry needs the tag for the list of what is attached: remove it there
    ");
    let refused = attach(&name);
    assert!(
        refused.contains("[LIST]") && refused.contains("hint: "),
        "{refused}"
    );
    assert_eq!(registry.resolve("app", &tag), Some(image.digest()));

    registry.untag("app", &tag);
    let lists = Fault::status(200)
        .with_body("{\"schemaVersion\":2,\"manifests\":{}}")
        .with_header("content-type", Format::Oci.index());
    registry.inject(lists.on(Method::GET, "/referrers/"));
    insta::assert_snapshot!(world.fails(1, &["referrers", &name]), @"
    error: could not list what is attached to `[REGISTRY]/app:1`
      caused by: the list of what refers to [IMAGE] in [REGISTRY]/app cannot be used
      caused by: the index does not follow the image specification
      caused by: invalid type: map, expected a sequence
    ");
    let endless = Fault::status(200)
        .with_body("{\"schemaVersion\":2,\"manifests\":[]}")
        .with_header("content-type", Format::Oci.index())
        .with_header("link", "<?page=1>; rel=next");
    registry.inject(endless.on(Method::GET, "/referrers/").always());
    insta::assert_snapshot!(world.fails(1, &["referrers", &name]), @"
    error: could not list what is attached to `[REGISTRY]/app:1`
      caused by: the list of what refers to [IMAGE] in [REGISTRY]/app has no end
    ");

    registry.clear_faults();
    registry.inject(Fault::status(403).on(Method::GET, "/referrers/"));
    insta::assert_snapshot!(world.fails(1, &["referrers", &name]), @"
    error: could not list what is attached to `[REGISTRY]/app:1`
      caused by: registry [REGISTRY] answered 403 DENIED to `GET /v2/app/referrers/[IMAGE]`: scripted by the test
    hint: the credentials are known, but are not allowed to do this
    ");
}
