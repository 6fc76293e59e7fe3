//! Native files for other platforms, left out where a layer asks for it.

use tierce_testkit::FakeRegistry;
use tierce_testkit::check::LoadedImage;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, TestIndex, lambda_base};
use tierce_testkit::zip::{Zip, ZipMember};

use crate::support::{World, has};

/// Packages as npm leaves them when they bring files for every platform.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let amd64 = || ElfBuilder::new("amd64").needs("libc.so.6");
    let arm64 = || ElfBuilder::new("arm64").needs("libc.so.6");
    let musl = ElfBuilder::new("amd64").needs("libc.musl-x86_64.so.1");
    let mach = b"\xcf\xfa\xed\xfe\x07\0\0\x01".to_vec();
    vec![
        ("bcrypt/index.js", b"1".to_vec()),
        (
            "bcrypt/prebuilds/linux-x64/bcrypt.glibc.node",
            amd64().build(),
        ),
        ("bcrypt/prebuilds/linux-x64/bcrypt.musl.node", musl.build()),
        (
            "bcrypt/prebuilds/linux-arm64/bcrypt.glibc.node",
            arm64().build(),
        ),
        ("bcrypt/prebuilds/darwin-arm64/bcrypt.node", mach.clone()),
        ("@img/sharp-linux-x64/package.json", b"{}".to_vec()),
        (
            "@img/sharp-linux-x64/lib/sharp-linux-x64.node",
            amd64().build(),
        ),
        ("@img/sharp-linux-arm64/package.json", b"{}".to_vec()),
        (
            "@img/sharp-linux-arm64/lib/sharp-linux-arm64.node",
            arm64().build(),
        ),
        ("@img/sharp-darwin-arm64/package.json", b"{}".to_vec()),
        ("@img/sharp-darwin-arm64/lib/sharp-darwin-arm64.node", mach),
        ("only-arm64/build/only.node", arm64().build()),
    ]
}

struct Bench {
    world: World,
    registry: FakeRegistry,
}

impl Bench {
    fn new() -> Self {
        let registry = FakeRegistry::start();
        let images = ["amd64", "arm64"].map(|name| lambda_base(Format::Docker, name));
        let index = TestIndex::of(Format::Docker, images.to_vec());
        index.put(&registry, "lambda/python", Some("3.12"));
        let world = World::new();
        for (path, content) in files() {
            world
                .sandbox
                .write(format!("app/node_modules/{path}"), content);
        }
        Self { world, registry }
    }

    /// Builds the layer that is said, and gives the image with what was said.
    fn build(&self, layer: &str, platform: &str) -> (LoadedImage, String) {
        self.world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"{}/lambda/python:3.12\"\n[[layer]]\nname = \"code\"\n{layer}\n",
                self.registry.host()
            ),
        );
        let platform = format!("--platform={platform}");
        // What is there for another processor alone is refused otherwise.
        let allowed = ["--allow=wrong-architecture", "--allow=missing-library"];
        let arguments = [&["build", "app", &platform, "-o=oci:it:it"], &allowed[..]].concat();
        let output = self.world.ok(&arguments);
        let image = LoadedImage::from_layout(&self.world.path("it"), Some("it")).unwrap();
        (image, output.stderr())
    }
}

const ADD: &str = "add = [{ from = \"node_modules\", to = \"/var/task/node_modules\" }]";

fn left(image: &LoadedImage) -> Vec<&'static str> {
    let is_there = |path: &&str| has(image, &format!("var/task/node_modules/{path}"));
    files()
        .into_iter()
        .map(|(path, _)| path)
        .filter(is_there)
        .collect()
}

#[test]
fn files_for_other_platforms_are_left_out_where_the_right_one_is_there() {
    let bench = Bench::new();
    let (all, said) = bench.build(ADD, "amd64");
    assert_eq!(left(&all).len(), files().len());
    assert!(!said.contains("other platforms"), "{said}");
    let pruned = format!("{ADD}\nprune-prebuilds = true");
    let (image, said) = bench.build(&pruned, "amd64");
    assert_eq!(
        left(&image),
        [
            "bcrypt/index.js",
            "bcrypt/prebuilds/linux-x64/bcrypt.glibc.node",
            "@img/sharp-linux-x64/package.json",
            "@img/sharp-linux-x64/lib/sharp-linux-x64.node",
            // There is none for this machine, which is an error to be told.
            "only-arm64/build/only.node",
        ]
    );
    assert!(!has(
        &image,
        "var/task/node_modules/bcrypt/prebuilds/darwin-arm64"
    ));
    assert!(!has(
        &image,
        "var/task/node_modules/@img/sharp-darwin-arm64"
    ));
    let remark = said.lines().find(|line| line.contains("other platforms"));
    insta::assert_snapshot!(remark.unwrap(), @"note: 7 files for other platforms were left out (964 bytes), such as `var/task/node_modules/@img/sharp-darwin-arm64/lib/sharp-darwin-arm64.node`");
    let (again, said) = bench.build(&pruned, "amd64");
    assert_eq!(again.manifest_bytes, image.manifest_bytes);
    assert!(said.contains("other platforms"), "{said}");
    let (other, _) = bench.build(&pruned, "arm64");
    assert_eq!(
        left(&other),
        [
            "bcrypt/index.js",
            "bcrypt/prebuilds/linux-arm64/bcrypt.glibc.node",
            "@img/sharp-linux-arm64/package.json",
            "@img/sharp-linux-arm64/lib/sharp-linux-arm64.node",
            "only-arm64/build/only.node",
        ]
    );
}

#[test]
fn what_lint_finds_is_what_goes() {
    let bench = Bench::new();
    let findings = |layer: &str| {
        drop(bench.build(layer, "amd64"));
        let output = bench.world.tierce(&["lint", "--json", "oci:it:it"]).run();
        let found = output.json();
        let list = found["images"][0]["findings"].as_array().unwrap().clone();
        let ours = list.iter().filter(|it| it["rule"] == "foreign-prebuild");
        ours.cloned().collect::<Vec<_>>()
    };
    let before = findings(ADD);
    assert!(before.len() >= 4, "{before:?}");
    let fix = before[0]["fix"].as_str().unwrap();
    assert!(fix.contains("prune-prebuilds = true"), "{fix}");
    let after = findings(&format!("{ADD}\nprune-prebuilds = true"));
    assert_eq!(after, Vec::<serde_json::Value>::new());
}

#[test]
fn zips_are_pruned_too_and_without_such_files_nothing_changes() {
    let bench = Bench::new();
    let members = files()
        .into_iter()
        .map(|(path, content)| ZipMember::file(format!("node_modules/{path}"), 0o644, content));
    bench
        .world
        .sandbox
        .write("app/function.zip", Zip::of(members).build());
    let (zip, _) = bench.build("zip = \"function.zip\"\nprune-prebuilds = true", "amd64");
    let (add, _) = bench.build(&format!("{ADD}\nprune-prebuilds = true"), "amd64");
    assert_eq!(left(&zip), left(&add));
    bench.world.sandbox.write("app/src/app.py", "1\n");
    let plain = "add = [{ from = \"src\", to = \"/var/task/\" }]";
    let (without, _) = bench.build(plain, "amd64");
    let (with, _) = bench.build(&format!("{plain}\nprune-prebuilds = true"), "amd64");
    assert_eq!(with.manifest_bytes, without.manifest_bytes);
}
