//! Artifacts attached at docker-registry, which keeps no list of what refers to what: the tag stands
//! in for it, and others can read what is put.

use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::process::DockerRegistry;

use crate::support::{digests, minimal, one_digest, raw_digest, requests, sandbox, skopeo, tierce};

#[test]
fn attached_files_are_found_and_skopeo_reads_them() {
    let registry = DockerRegistry::start();
    let sandbox = sandbox();
    let image = registry.reference("team/hello", "1");
    let subject = tierce(&sandbox, ["push", &minimal("docker"), &image]);
    sandbox.write("sbom.json", "{\"packages\":[]}\n");
    sandbox.write("notes.txt", "looks good\n");
    let attach = |artifact_type: &str, file: &str| {
        let arguments = ["attach", "--artifact-type", artifact_type, &image, file];
        tierce(&sandbox, arguments)
    };
    let sbom = attach("application/spdx+json", "sbom.json:application/json");
    let notes = attach("application/vnd.example.notes", "notes.txt:text/plain");

    let raw = |reference: &str| -> Value {
        let name = format!("docker://{}", registry.reference("team/hello", reference));
        serde_json::from_slice(&skopeo(&sandbox, "inspect", ["--raw", &name])).unwrap()
    };
    let artifact = raw(&sbom.to_string());
    assert_eq!(artifact["artifactType"], "application/spdx+json");
    assert_eq!(artifact["subject"]["digest"], subject.to_string());
    let content = Digest::of(b"{\"packages\":[]}\n").to_string();
    assert_eq!(artifact["layers"][0]["digest"], content);
    let list = raw(&format!("sha256-{}", subject.hex()));
    let entries = |list: &Value| -> Vec<Value> {
        let entries = list["manifests"].as_array().unwrap().iter();
        let told = |it: &Value| json!([it["digest"], it["artifactType"]]);
        entries.map(told).collect()
    };
    let expected = [
        json!([sbom, "application/spdx+json"]),
        json!([notes, "application/vnd.example.notes"]),
    ];
    assert_eq!(entries(&list), expected);
    let shown = sandbox
        .tierce(["referrers", "--json", &image])
        .run()
        .assert_success();
    let shown = shown.json();
    assert_eq!(shown["subject"], subject.to_string());
    assert_eq!(shown["referrers"].as_array().unwrap().len(), 2);

    // Once more is one question each for the image, the artifact and the list; that for the API,
    // which it does not have, is not in its log.
    let before = requests(&registry).len();
    assert_eq!(
        attach("application/vnd.example.notes", "notes.txt:text/plain"),
        notes
    );
    let asked = requests(&registry).split_off(before);
    let methods: Vec<&str> = asked.iter().map(|it| it.method.as_str()).collect();
    assert_eq!(methods, ["GET", "HEAD", "GET"], "{asked:#?}");

    // The image with all that is attached to it, in another repository.
    let copied = registry.reference("copied/hello", "1");
    let copy = ["copy", "--referrers", &image, &copied];
    let output = sandbox.tierce(copy).run().assert_success();
    assert_eq!(digests(&output), [subject, sbom, notes]);
    let by_digest = registry.reference("copied/hello", &notes.to_string());
    assert_eq!(
        raw_digest(&sandbox, &format!("docker://{by_digest}")),
        notes
    );
    let of_type = [
        "referrers",
        "--artifact-type=application/vnd.example.notes",
        &copied,
    ];
    let table = sandbox.tierce(of_type).run().assert_success().stdout();
    assert!(table.contains(&notes.to_string()), "{table}");
    assert!(!table.contains(&sbom.to_string()), "{table}");

    // An artifact is pulled like an image, and its files are its blobs.
    let pull = ["pull", &by_digest, "oci:notes"];
    let pulled = sandbox.tierce(pull).run().assert_success();
    assert_eq!(one_digest(&pulled), notes);
    let blob = format!("notes/blobs/sha256/{}", Digest::of(b"looks good\n").hex());
    assert_eq!(std::fs::read(sandbox.path(blob)).unwrap(), b"looks good\n");
}
