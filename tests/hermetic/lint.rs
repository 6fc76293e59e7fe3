//! `tierce lint`: each rule where it belongs, and nowhere else.

use serde_json::{Value, json};
use tierce_testkit::FakeRegistry;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{
    Format, ImageBuilder, LayerBuilder, Packing, TestImage, TestIndex, lambda_base,
};

use crate::support::{World, downloads};

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// A library of the system.
fn library(name: &str) -> ElfBuilder {
    ElfBuilder::new("amd64").soname(name)
}

/// The C library of a release of Amazon Linux: versions up to this one.
fn libc(newest: u32) -> ElfBuilder {
    let versions = [2, 14, 17, 25, 26, 28, 29, 32, 33, 34, 35, 36];
    versions
        .into_iter()
        .filter(|minor| *minor <= newest)
        .fold(library("libc.so.6"), |libc, minor| {
            libc.defines(&format!("GLIBC_2.{minor}"))
        })
}

fn program() -> ElfBuilder {
    ElfBuilder::new("amd64")
        .interpreter(LOADER)
        .needs("libc.so.6")
}

/// The system of a base: a shell, a C library of that version and its loader.
fn system(newest: u32) -> LayerBuilder {
    LayerBuilder::new()
        .directory("bin", 0o755)
        .file("bin/sh", 0o755, &program().build())
        .directory("etc", 0o755)
        .file("etc/shadow", 0o640, b"root:*::\n")
        .directory("lib64", 0o755)
        .file(
            "lib64/ld-linux-x86-64.so.2",
            0o755,
            &library("ld-linux-x86-64.so.2").build(),
        )
        .file("lib64/libc.so.6", 0o755, &libc(newest).build())
        .directory("root", 0o700)
        .directory("tmp", 0o1777)
}

/// The runtime of a base of AWS's for Python.
fn runtime() -> LayerBuilder {
    LayerBuilder::new()
        .file(
            "lambda-entrypoint.sh",
            0o755,
            b"#!/bin/sh\nexec /var/runtime/bootstrap \"$@\"\n",
        )
        .directory("var", 0o755)
        .directory("var/lang", 0o755)
        .directory("var/lang/bin", 0o755)
        .symlink("var/lang/bin/python3", "python3.12")
        .file("var/lang/bin/python3.12", 0o755, &program().build())
        .directory("var/runtime", 0o755)
        .file(
            "var/runtime/bootstrap",
            0o755,
            b"#!/bin/sh\nexport AWS_EXECUTION_ENV=AWS_Lambda_python3.12\n",
        )
        .directory("var/task", 0o755)
}

/// A layer with the function, to which a test adds what is wrong with it.
fn code() -> LayerBuilder {
    LayerBuilder::new()
        .directory("var", 0o755)
        .directory("var/task", 0o755)
        .file(
            "var/task/app.py",
            0o644,
            b"def handler(event, context): ...\n",
        )
}

fn settings(config: &mut Value) {
    config["config"] = json!({
        "Env": [
            "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
            "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/task/lib:/opt/lib",
            "LAMBDA_TASK_ROOT=/var/task",
            "LAMBDA_RUNTIME_DIR=/var/runtime",
        ],
        "Entrypoint": ["/lambda-entrypoint.sh"],
        "Cmd": ["app.handler"],
        "WorkingDir": "/var/task",
    });
}

/// A function on a base like AWS's for Python 3.12, with a glibc of that version.
fn function_on(newest: u32, code: &LayerBuilder) -> ImageBuilder {
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&system(newest))
        .layer(&runtime())
        .layer(code)
        .config(settings)
}

fn function(code: &LayerBuilder) -> ImageBuilder {
    function_on(34, code)
}

/// What was found, as `rule layer path`, in order.
#[track_caller]
fn found_with(image: &TestImage, more: &[&str]) -> Vec<String> {
    let world = World::new();
    image.write_layout(&world.path("image"), Some("it"));
    let output = world
        .tierce(&[&["lint", "--json", "oci:image:it"], more].concat())
        .run();
    let document = output.json();
    let errors = document["errors"].as_u64().unwrap();
    assert_eq!(
        output.code(),
        Some(if errors == 0 { 0 } else { 3 }),
        "{output:?}"
    );
    let findings = document["images"][0]["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| {
            let text = |key: &str| match &finding[key] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            format!("{} {} {}", text("rule"), text("layer"), text("path"))
        })
        .collect()
}

#[track_caller]
fn found(image: ImageBuilder) -> Vec<String> {
    found_with(&image.build(), &[])
}

/// What is said of the one finding.
#[track_caller]
fn said(image: ImageBuilder) -> String {
    let world = World::new();
    image.build().write_layout(&world.path("image"), Some("it"));
    let document = world
        .tierce(&["lint", "--json", "oci:image:it"])
        .run()
        .json();
    let findings = document["images"][0]["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings[0]["what"].as_str().unwrap().to_owned()
}

const NOTHING: [String; 0] = [];

#[test]
fn a_good_function_is_clean_in_every_place() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = function(&code()).build();
    image.put(&registry, "fn", Some("1"));
    let name = format!("{}/fn:1", registry.host());
    let mut places = vec![name.clone()];
    for place in [
        "oci:out:1",
        "oci-archive:out.tar:1",
        "docker-archive:d.tar:fn:1",
        "store:fn:1",
    ] {
        world.runs(&["copy", &name, place]);
        places.push(place.to_owned());
    }
    for place in &places {
        let output = world.ok(&["lint", place]);
        assert_eq!(output.stdout(), "", "{place}");
        assert_eq!(
            output.stderr().trim_end(),
            "judged for Lambda: nothing found",
            "{place}"
        );
    }
    world.assert_no_litter();
}

#[test]
fn an_archive_of_older_docker_is_judged_too() {
    let world = World::new();
    for architecture in ["amd64", "arm64"] {
        let image = lambda_base(Format::Docker, architecture);
        image.write_docker_archive(&world.path("saved.tar"), Some("fn:1"));
        let output = world.ok(&["lint", "docker-archive:saved.tar"]);
        assert_eq!(output.stderr().trim_end(), "judged for Lambda: 1 note");
        assert!(
            output
                .stdout()
                .starts_with("note[handler-not-set]: CMD is empty")
        );
    }
}

#[test]
fn layers_are_read_once() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let image = function(&code()).build();
    image.put(&registry, "fn", Some("1"));
    let name = format!("{}/fn:1", registry.host());
    world.runs(&["lint", &name]);
    world.runs(&["lint", &name]);
    // Another image on the same base: only its own layer is new.
    let code = code().file("var/task/more.py", 0o644, b"");
    let other = function(&code).build();
    other.put(&registry, "fn", Some("2"));
    world.runs(&["lint", &format!("{}/fn:2", registry.host())]);
    for layer in image.layers.iter().chain(&other.layers) {
        assert_eq!(downloads(&registry, &layer.digest()), 1);
    }
}

#[test]
fn a_damaged_layer_is_a_failure_and_nothing_is_remembered() {
    let world = World::new();
    let image = function(&code()).build();
    image.write_layout(&world.path("image"), Some("it"));
    let blob = world.path(format!(
        "image/blobs/sha256/{}",
        image.layers[2].digest().hex()
    ));
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let stderr = world.fails(1, &["lint", "oci:image:it"]);
    assert!(stderr.contains("could not read layer"), "{stderr}");
}

#[test]
fn manifest_and_layers_are_judged() {
    let plain = code().packing(Packing::None);
    assert_eq!(found(function(&plain)), ["uncompressed-layer 3 -"]);
    let zstd = ImageBuilder::new(Format::Oci, "amd64")
        .layer(&system(34))
        .layer(&runtime())
        .layer(&code().packing(Packing::Zstd))
        .config(settings);
    assert_eq!(found(zstd), ["zstd-layer 3 -"]);
    let many = |count: usize| {
        let layer = |number: usize| code().file(&format!("var/task/{number}.py"), 0o644, b"");
        (3..count).fold(function(&code()), |image, number| {
            image.layer(&layer(number))
        })
    };
    assert_eq!(found(many(100)), NOTHING);
    assert_eq!(found(many(101)), ["many-layers - -"]);
    assert_eq!(found(many(128)), ["too-many-layers - -"]);
    let annotated = |length: usize| function(&code()).annotation("x", &"x".repeat(length));
    assert_eq!(found(annotated(24_000)), NOTHING);
    assert_eq!(found(annotated(25_400)), ["manifest-size - -"]);
}

#[test]
fn directories_come_before_what_is_in_them() {
    let late = LayerBuilder::new()
        .directory("var", 0o755)
        .directory("var/task", 0o755)
        .file("var/task/app.py", 0o644, b"")
        .file("var/task/lib/a.py", 0o644, b"")
        .file("var/task/lib/b.py", 0o644, b"")
        .directory("var/task/lib", 0o755);
    assert_eq!(
        found(function(&late)),
        ["missing-parent 3 /var/task/lib/a.py"]
    );
    assert_eq!(
        said(function(&late)),
        "its directory /var/task/lib comes only later"
    );
    let missing = code().file("var/task/lib/a.py", 0o644, b"");
    assert_eq!(
        said(function(&missing)),
        "its directory /var/task/lib has no entry"
    );
    let lower = LayerBuilder::new().file("var/task/app.py", 0o644, b"");
    assert_eq!(
        found(function(&lower)),
        ["parent-in-lower-layer 3 /var/task/app.py"]
    );
    // Deletions need no directory, and those of a driver mean nothing.
    let deleted = code()
        .file("opt/.wh.x", 0o644, b"")
        .file(".wh..wh.plnk", 0o644, b"");
    assert_eq!(found(function(&deleted)), NOTHING);
}

#[test]
fn entries_are_judged() {
    let twice = code().file("var/task/app.py", 0o644, b"again");
    assert_eq!(
        found(function(&twice)),
        ["duplicate-entry 3 /var/task/app.py"]
    );
    let links = code()
        .hardlink("var/task/a.py", "var/task/app.py")
        .hardlink("var/task/b.py", "./var/task/app.py");
    assert_eq!(found(function(&links)), ["hardlink 3 /var/task/a.py"]);
    let broken = code().hardlink("var/task/a.py", "var/task/none.py");
    assert_eq!(
        found(function(&broken)),
        [
            "broken-hardlink 3 /var/task/a.py",
            "hardlink 3 /var/task/a.py"
        ]
    );
    let fifo = code().fifo("var/task/pipe");
    assert_eq!(found(function(&fifo)), ["special-file 3 /var/task/pipe"]);
}

#[test]
fn what_lambda_cannot_read_is_named_once() {
    let closed = code()
        .file("var/task/secret.py", 0o600, b"")
        .directory("var/task/private", 0o700)
        .file("var/task/private/a.py", 0o600, b"")
        .directory("opt", 0o755)
        .file("opt/x.txt", 0o640, b"");
    assert_eq!(
        found(function(&closed)),
        [
            "unreadable-file 3 /opt/x.txt",
            "unreadable-file 3 /var/task/private",
            "unreadable-file 3 /var/task/secret.py"
        ]
    );
    // The same image for another purpose, where root may read it.
    let image = function(&closed).build();
    assert_eq!(found_with(&image, &["--for", "generic"]), NOTHING);
    let replaced = LayerBuilder::new()
        .directory("var", 0o700)
        .directory("var/task", 0o755)
        .file("var/task/app.py", 0o644, b"");
    assert_eq!(found(function(&replaced)), ["unreadable-file 3 /var"]);
}

#[test]
fn settings_are_judged() {
    let with = |change: fn(&mut Value)| found(function(&code()).config(change));
    assert_eq!(
        with(|config| config["config"]["User"] = "app".into()),
        ["ignored-setting - -"]
    );
    assert_eq!(
        with(|config| {
            config["config"]["Healthcheck"] = json!({"Test": ["CMD", "true"]});
            config["config"]["Volumes"] = json!({"/data": {}});
            config["config"]["ExposedPorts"] = json!({});
        }),
        ["ignored-setting - -", "ignored-setting - -"]
    );
    assert_eq!(
        with(|config| config["config"]["Cmd"] = json!(["app.handler", "more"])),
        ["handler-arguments - -"]
    );
    assert_eq!(
        with(|config| config["config"]["Cmd"] = Value::Null),
        ["handler-not-set - -"]
    );
    assert_eq!(
        with(|config| config["config"]["Cmd"] = json!(["lib.app.handler"])),
        ["handler-not-found - -"]
    );
    assert_eq!(
        with(|config| config["config"]["WorkingDir"] = "/srv".into()),
        ["working-directory - -"]
    );
    assert_eq!(
        with(|config| config["config"]["WorkingDir"] = "task".into()),
        ["working-directory - -"]
    );
    let env = |length: usize| {
        let long = format!("LONG={}", "x".repeat(length));
        function(&code()).config(move |config| {
            config["config"]["Env"]
                .as_array_mut()
                .unwrap()
                .push(long.into());
        })
    };
    assert_eq!(found(env(16_000)), NOTHING);
    assert_eq!(found(env(16_384)), ["settings-size - -"]);
}

#[test]
fn the_platform_must_be_one_of_lambda() {
    let image = ImageBuilder::new(Format::Docker, "s390x")
        .layer(&code())
        .config(|config| {
            settings(config);
            config["config"]["Entrypoint"] = Value::Null;
            config["config"]["Cmd"] = Value::Null;
        });
    assert_eq!(found(image), ["platform - -", "no-entrypoint - -"]);
}

/// A function whose own program is its entrypoint.
fn own(entrypoint: &str, code: &LayerBuilder) -> ImageBuilder {
    let words = json!([entrypoint]);
    function(code).config(move |config| {
        config["config"]["Entrypoint"] = words;
        config["config"]["Cmd"] = Value::Null;
    })
}

/// A program that speaks the Runtime API.
fn client() -> ElfBuilder {
    program().content(b"AWS_LAMBDA_RUNTIME_API\0")
}

#[test]
fn the_entrypoint_is_looked_for_and_looked_at() {
    let good = code().file("var/task/main", 0o755, &client().build());
    assert_eq!(found(own("/var/task/main", &good)), NOTHING);
    assert_eq!(
        found(own("/var/task/none", &good)),
        ["entrypoint-not-found - -"]
    );
    assert_eq!(found(own("./main", &good)), ["entrypoint-not-absolute - -"]);
    let closed = code().file("var/task/main", 0o744, &client().build());
    assert_eq!(
        found(own("/var/task/main", &closed)),
        ["entrypoint-not-executable 3 /var/task/main"]
    );
    let link = code()
        .file("var/task/main-1", 0o755, &client().build())
        .symlink("var/task/main", "main-1");
    assert_eq!(
        found(own("/var/task/main", &link)),
        ["entrypoint-symlink 3 /var/task/main"]
    );
    let script = |text: &[u8]| code().file("var/task/main", 0o755, text);
    assert_eq!(
        found(own(
            "/var/task/main",
            &script(b"echo AWS_LAMBDA_RUNTIME_API\n")
        )),
        [
            "entrypoint-format 3 /var/task/main",
            "no-runtime-client - -"
        ]
    );
    assert_eq!(
        found(own(
            "/var/task/main",
            &script(b"#!/bin/sh\r\n: AWS_LAMBDA_RUNTIME_API\n")
        )),
        ["missing-interpreter 3 /var/task/main"]
    );
    assert_eq!(
        found(own(
            "/var/task/main",
            &script(b"#!/bin/sh\n: $AWS_LAMBDA_RUNTIME_API\n")
        )),
        NOTHING
    );
    let silent = code().file("var/task/main", 0o755, &program().build());
    assert_eq!(
        found(own("/var/task/main", &silent)),
        ["no-runtime-client - -"]
    );
    let musl = ElfBuilder::new("amd64")
        .interpreter("/lib/ld-musl-x86_64.so.1")
        .content(b"AWS_LAMBDA_RUNTIME_API\0");
    let musl = code().file("var/task/main", 0o755, &musl.build());
    assert_eq!(
        found(own("/var/task/main", &musl)),
        ["missing-interpreter 3 /var/task/main"]
    );
}

#[test]
fn a_base_without_bootstrap_needs_one() {
    let runtime = LayerBuilder::new()
        .file("lambda-entrypoint.sh", 0o755, b"#!/bin/sh\n")
        .directory("var", 0o755)
        .directory("var/runtime", 0o755)
        .directory("var/task", 0o755);
    let provided = |code: &LayerBuilder| {
        ImageBuilder::new(Format::Docker, "amd64")
            .layer(&system(34))
            .layer(&runtime)
            .layer(code)
            .config(settings)
    };
    assert_eq!(found(provided(&code())), ["missing-bootstrap - -"]);
    let good = code().directory("var/runtime", 0o755).file(
        "var/runtime/bootstrap",
        0o755,
        &client().build(),
    );
    assert_eq!(found(provided(&good)), NOTHING);
    let foreign = ElfBuilder::new("arm64").build();
    let foreign =
        code()
            .directory("var/runtime", 0o755)
            .file("var/runtime/bootstrap", 0o755, &foreign);
    assert_eq!(
        said(provided(&foreign)),
        "the bootstrap is for arm64, and the image for amd64"
    );
}

#[test]
fn everyday_images_have_no_errors() {
    // What `FROM python` and `pip install awslambdaric` come to: a link that PATH leads to.
    let python = LayerBuilder::new()
        .directory("usr", 0o755)
        .directory("usr/local", 0o755)
        .directory("usr/local/bin", 0o755)
        .symlink("usr/local/bin/python", "python3")
        .symlink("usr/local/bin/python3", "python3.12")
        .file("usr/local/bin/python3.12", 0o755, &program().build())
        .directory("usr/local/lib", 0o755)
        .directory("usr/local/lib/python3.12", 0o755)
        .directory("usr/local/lib/python3.12/site-packages", 0o755)
        .directory("usr/local/lib/python3.12/site-packages/awslambdaric", 0o755)
        .file(
            "usr/local/lib/python3.12/site-packages/awslambdaric/__init__.py",
            0o644,
            b"",
        )
        .directory("app", 0o755)
        .file("app/app.py", 0o644, b"")
        .hardlink("app/same.py", "app/app.py");
    let image = ImageBuilder::new(Format::Oci, "amd64")
        .layer(&system(34))
        .layer(&python)
        .config(|config| {
            config["config"] = json!({
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "Entrypoint": ["python", "-m", "awslambdaric"],
                "Cmd": ["app.handler"],
                "WorkingDir": "/app",
            });
        });
    assert_eq!(
        found(image),
        [
            "entrypoint-not-absolute - -",
            "hardlink 2 /app/same.py",
            "entrypoint-symlink 2 /usr/local/bin/python"
        ]
    );
    // bcrypt and its like bring a module for every machine.
    let module = |architecture: &str| ElfBuilder::new(architecture).needs("libc.so.6").build();
    let musl = ElfBuilder::new("amd64")
        .needs("libc.musl-x86_64.so.1")
        .build();
    let node = code()
        .directory("var/task/node_modules", 0o755)
        .directory("var/task/node_modules/bcrypt", 0o755)
        .directory("var/task/node_modules/bcrypt/prebuilds", 0o755)
        .directory("var/task/node_modules/bcrypt/prebuilds/linux-x64", 0o755)
        .file(
            "var/task/node_modules/bcrypt/prebuilds/linux-x64/bcrypt.glibc.node",
            0o755,
            &module("amd64"),
        )
        .file(
            "var/task/node_modules/bcrypt/prebuilds/linux-x64/bcrypt.musl.node",
            0o755,
            &musl,
        )
        .directory("var/task/node_modules/bcrypt/prebuilds/linux-arm64", 0o755)
        .file(
            "var/task/node_modules/bcrypt/prebuilds/linux-arm64/bcrypt.glibc.node",
            0o755,
            &module("arm64"),
        )
        .directory("var/task/node_modules/bcrypt/prebuilds/darwin-arm64", 0o755)
        .file(
            "var/task/node_modules/bcrypt/prebuilds/darwin-arm64/bcrypt.node",
            0o755,
            b"\xcf\xfa\xed\xfe\x0c\0\0\x01\0\0\0\0",
        );
    let bcrypt = "/var/task/node_modules/bcrypt/prebuilds";
    assert_eq!(
        found(function(&node)),
        [
            format!("foreign-prebuild 3 {bcrypt}/darwin-arm64/bcrypt.node"),
            format!("foreign-prebuild 3 {bcrypt}/linux-arm64/bcrypt.glibc.node"),
            format!("foreign-prebuild 3 {bcrypt}/linux-x64/bcrypt.musl.node"),
        ]
    );
}

fn package(name: &str, tag: &str) -> LayerBuilder {
    code()
        .directory(&format!("var/task/{name}-1.0.dist-info"), 0o755)
        .file(
            &format!("var/task/{name}-1.0.dist-info/WHEEL"),
            0o644,
            format!("Wheel-Version: 1.0\nTag: {tag}\n").as_bytes(),
        )
}

#[test]
fn packages_for_another_machine_are_errors() {
    for (tag, expected) in [
        ("cp312-cp312-manylinux_2_17_x86_64", None),
        ("py3-none-any", None),
        ("cp39-abi3-manylinux_2_28_x86_64", None),
        ("cp312-cp312-manylinux_2_17_aarch64", Some("wheel-platform")),
        ("cp312-cp312-macosx_11_0_arm64", Some("wheel-platform")),
        ("cp312-cp312-win_amd64", Some("wheel-platform")),
        ("cp311-cp311-manylinux_2_17_x86_64", Some("wheel-python")),
    ] {
        let wheel = "/var/task/x-1.0.dist-info/WHEEL";
        let expected: Vec<String> = expected
            .into_iter()
            .map(|rule| format!("{rule} 3 {wheel}"))
            .collect();
        assert_eq!(found(function(&package("x", tag))), expected, "{tag}");
    }
    let arm = ElfBuilder::new("arm64").build();
    let module = code().file("var/task/_x.cpython-312-aarch64-linux-gnu.so", 0o755, &arm);
    assert_eq!(
        found(function(&module)),
        ["wrong-architecture 3 /var/task/_x.cpython-312-aarch64-linux-gnu.so"]
    );
    let mac = b"\xcf\xfa\xed\xfe\x0c\0\0\x01\0\0\0\0";
    let module = code().file("var/task/_x.cpython-312-darwin.so", 0o755, mac);
    assert_eq!(
        said(function(&module)),
        "it is for macOS, and the image for amd64"
    );
    let tool = code().file("var/task/attach_linux_arm64.so", 0o755, &arm);
    assert_eq!(
        found(function(&tool)),
        ["foreign-binary 3 /var/task/attach_linux_arm64.so"]
    );
    // What the system itself has for others is nobody's business.
    let elsewhere = code()
        .directory("usr", 0o755)
        .directory("usr/share", 0o755)
        .file("usr/share/firmware", 0o644, &arm);
    assert_eq!(found(function(&elsewhere)), NOTHING);
}

#[test]
fn libraries_are_looked_for_as_the_loader_does() {
    let module = |elf: ElfBuilder| {
        code()
            .directory("var/task/lib", 0o755)
            .file(
                "var/task/lib/libfound.so.1",
                0o755,
                &library("libfound.so.1").build(),
            )
            .directory("var/task/x.libs", 0o755)
            .file(
                "var/task/x.libs/libnear.so.1",
                0o755,
                &library("libnear.so.1").build(),
            )
            .directory("var/task/x", 0o755)
            .file(
                "var/task/x/_x.cpython-312-x86_64-linux-gnu.so",
                0o755,
                &elf.build(),
            )
    };
    let needs = |name: &str| ElfBuilder::new("amd64").needs(name).needs("libc.so.6");
    let path = "/var/task/x/_x.cpython-312-x86_64-linux-gnu.so";
    assert_eq!(found(function(&module(needs("libfound.so.1")))), NOTHING);
    for near in [
        needs("libnear.so.1").runpath("$ORIGIN/../x.libs"),
        needs("libnear.so.1").rpath("/nowhere:${ORIGIN}/../x.libs"),
    ] {
        assert_eq!(found(function(&module(near))), NOTHING);
    }
    assert_eq!(
        found(function(&module(needs("libnear.so.1")))),
        [format!("library-off-path 3 {path}")]
    );
    assert_eq!(
        said(function(&module(needs("libpq.so.5")))),
        "it needs `libpq.so.5`, which the image does not have"
    );
    // A library that nothing is seen to load may never be loaded.
    let optional = code().file(
        "var/task/libprovider_cuda.so",
        0o755,
        &needs("libcuda.so.1").build(),
    );
    assert_eq!(
        found(function(&optional)),
        ["missing-optional-library 3 /var/task/libprovider_cuda.so"]
    );
    let foreign = code()
        .directory("var/task/lib", 0o755)
        .file(
            "var/task/lib/libx.so.1",
            0o755,
            &ElfBuilder::new("arm64").build(),
        )
        .file("var/task/_x.abi3.so", 0o755, &needs("libx.so.1").build());
    assert_eq!(
        found(function(&foreign)),
        [
            "wrong-architecture 3 /var/task/_x.abi3.so",
            "foreign-binary 3 /var/task/lib/libx.so.1"
        ]
    );
}

#[test]
fn what_needs_a_newer_c_library_is_refused_on_an_older_base() {
    let program = client().needs_symbol("libc.so.6", "GLIBC_2.34", "__libc_start_main");
    let code = code().file("var/task/main", 0o755, &program.build());
    let on = |newest: u32| {
        function_on(newest, &code).config(|config| {
            config["config"]["Entrypoint"] = json!(["/var/task/main"]);
            config["config"]["Cmd"] = Value::Null;
        })
    };
    assert_eq!(found(on(34)), NOTHING);
    assert_eq!(found(on(26)), ["glibc-version 3 /var/task/main"]);
    assert_eq!(
        said(on(26)),
        "it needs glibc 2.34 (GLIBC_2.34 for `__libc_start_main` of libc.so.6), and \
         /lib64/libc.so.6 offers 2.26"
    );
}

#[test]
fn what_needs_a_newer_version_of_another_library_is_refused() {
    let stdcxx = library("libstdc++.so.6").defines("GLIBCXX_3.4.29");
    let module = ElfBuilder::new("amd64")
        .needs("libstdc++.so.6")
        .needs_symbol(
            "libstdc++.so.6",
            "GLIBCXX_3.4.30",
            "_ZSt21ios_base_library_initv",
        );
    let code = code()
        .directory("var/task/lib", 0o755)
        .file("var/task/lib/libstdc++.so.6", 0o755, &stdcxx.build())
        .file("var/task/_x.abi3.so", 0o755, &module.build());
    assert_eq!(
        said(function(&code)),
        "it needs GLIBCXX_3.4.30 for `_ZSt21ios_base_library_initv`, which \
         /var/task/lib/libstdc++.so.6 does not have"
    );
}

#[test]
fn stale_bytecode_is_named_once_for_each_directory() {
    let pyc = |flags: u8, modified: u8, size: u8| {
        let mut bytes = b"\xcb\x0d\x0d\x0a".to_vec();
        bytes.extend([flags, 0, 0, 0, modified, 0, 0, 0, size, 0, 0, 0]);
        bytes
    };
    let with = |cached: &[u8]| {
        let code = code()
            .directory("var/task/__pycache__", 0o755)
            .file("var/task/__pycache__/app.cpython-312.pyc", 0o644, cached)
            .file(
                "var/task/__pycache__/gone.cpython-312.pyc",
                0o644,
                &pyc(0, 9, 9),
            );
        found(function(&code))
    };
    // Test layers have the time 1, and the source 33 bytes.
    assert_eq!(with(&pyc(0, 1, 33)), NOTHING);
    assert_eq!(with(&pyc(1, 9, 9)), NOTHING);
    assert_eq!(with(b"damaged"), NOTHING);
    let stale = ["stale-bytecode 3 /var/task/__pycache__/app.cpython-312.pyc"];
    assert_eq!(with(&pyc(0, 2, 33)), stale);
    assert_eq!(with(&pyc(0, 1, 32)), stale);
}

#[test]
fn an_index_is_judged_with_its_images() {
    let world = World::new();
    let index = TestIndex::of(
        Format::Docker,
        vec![
            function(&code()).build(),
            lambda_base(Format::Docker, "arm64"),
        ],
    );
    index.write_layout(&world.path("image"), Some("it"));
    let output = world
        .tierce(&["lint", "--json", "oci:image:it"])
        .run()
        .assert_code(3);
    let document = output.json();
    let images = document["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    assert_eq!(images[0]["kind"], "index");
    assert_eq!(images[0]["findings"][0]["rule"], "image-index");
    assert_eq!(images[1]["findings"], json!([]));
    world.runs(&["lint", "--platform", "amd64", "oci:image:it"]);
    let generic = ["lint", "--json", "--for", "generic", "oci:image:it"];
    let document = world.tierce(&generic).run().json();
    assert_eq!(document["images"][0]["findings"], json!([]));
}

#[test]
fn findings_are_shown_with_reason_and_remedy() {
    let world = World::new();
    let code = code()
        .file("var/task/secret.py", 0o600, b"")
        .file("var/task/x/y.py", 0o644, b"")
        .fifo("var/task/pipe");
    function(&code)
        .build()
        .write_layout(&world.path("image"), Some("it"));
    let output = world.tierce(&["lint", "oci:image:it"]).run().assert_code(3);
    insta::assert_snapshot!(output.stdout(), @r"
    error[missing-parent] layer 3: /var/task/x/y.py: its directory /var/task/x has no entry
      why: Lambda refuses an entry whose directory has no entry before it (`InvalidImage: MissingParentDirectory`)
      fix: write the archive with all directories, each before what is in it; `tierce build` does
    error[unreadable-file] layer 3: /var/task/secret.py: mode 0600
      why: functions run as a user of Lambda's own, whatever USER says: what others may not read is not there for them
      fix: give others the right to read (`chmod -R o+rX`); `tierce build` does
    note[special-file] layer 3: /var/task/pipe: a FIFO
      why: it is not known what Lambda makes of entries that are no files, directories or links
      fix: leave it out
    ");
    insta::assert_snapshot!(output.stderr(), @r"
    judged for Lambda: 2 errors, 1 note
    error: `oci:image:it` has 2 errors
    hint: what is meant to be so can be allowed by name: `--allow RULE`
    ");
    let allowed = [
        "lint",
        "oci:image:it",
        "--allow",
        "unreadable-file",
        "--allow",
        "missing-parent",
    ];
    let output = world.ok(&allowed);
    insta::assert_snapshot!(output.stderr(), @"judged for Lambda: 1 note, 2 allowed");
    let stderr = world.fails(2, &["lint", "oci:image:it", "--allow", "missing-parents"]);
    insta::assert_snapshot!(stderr, @r"
    error: there is no rule `missing-parents`
    hint: did you mean `missing-parent`?
    ");
}

#[test]
fn sarif_has_every_rule_and_finding() {
    let world = World::new();
    let code = code().file("var/task/a b.py", 0o600, b"");
    function(&code)
        .config(|config| config["config"]["User"] = "app".into())
        .build()
        .write_layout(&world.path("image"), Some("it"));
    let arguments = [
        "lint",
        "--sarif",
        "out.sarif",
        "--allow",
        "ignored-setting",
        "oci:image:it",
    ];
    drop(world.tierce(&arguments).run().assert_code(3));
    let log: Value =
        serde_json::from_slice(&std::fs::read(world.path("out.sarif")).unwrap()).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        let level = result["level"].as_str().unwrap();
        assert!(["error", "warning", "note"].contains(&level));
        assert!(result["message"]["text"].as_str().unwrap().ends_with('.'));
    }
    let place = &results[0]["locations"][0]["physicalLocation"]["artifactLocation"];
    assert_eq!(place["uri"], "var/task/a%20b.py");
    assert_eq!(results[0]["suppressions"], Value::Null);
    assert_eq!(results[1]["suppressions"][0]["kind"], "external");
}

#[test]
fn names_cannot_pretend_to_be_findings() {
    let world = World::new();
    let name = "var/task/a\u{1b}[2J\u{9b}m\u{202e}\nerror[fake] layer 1: b";
    function(&code().file(name, 0o600, b""))
        .build()
        .write_layout(&world.path("image"), Some("it"));
    let output = world.tierce(&["lint", "oci:image:it"]).run().assert_code(3);
    let stdout = output.stdout();
    let findings: Vec<&str> = stdout
        .lines()
        .filter(|line| !line.starts_with(' '))
        .collect();
    // The parent in the name, `…error[fake] layer 1: b`, is one file: no slash is in it.
    assert_eq!(
        findings,
        [
            "error[unreadable-file] layer 3: /var/task/a\u{fffd}[2J\u{fffd}m\u{fffd}\u{fffd}error[fake] \
             layer 1: b: mode 0600"
        ]
    );
    let output = world
        .tierce(&["lint", "--json", "oci:image:it"])
        .run()
        .assert_code(3);
    let dangerous = |letter: char| letter.is_control() && letter != '\n' || letter == '\u{202e}';
    assert!(!output.stdout().contains(dangerous));
    let finding = &output.json()["images"][0]["findings"][0];
    assert_eq!(finding["path"], format!("/{name}"));
}

#[test]
fn findings_have_one_order_in_every_place() {
    let world = World::new();
    let registry = FakeRegistry::start();
    let code = code()
        .file("var/task/z.py", 0o600, b"")
        .file("var/task/lib/x.py", 0o644, b"")
        .fifo("var/task/pipe");
    let upper = LayerBuilder::new().file("var/task/a.py", 0o600, b"");
    let image = function(&code)
        .layer(&upper)
        .config(|config| config["config"]["User"] = "app".into())
        .build();
    image.put(&registry, "fn", Some("1"));
    image.write_docker_archive(&world.path("old.tar"), Some("fn:1"));
    image.write_hybrid_archive(&world.path("hybrid.tar"), Some("fn:1"));
    let name = format!("{}/fn:1", registry.host());
    let mut places = vec![name.clone()];
    for place in ["oci:out:1", "oci-archive:out.tar:1", "store:fn:1"] {
        world.runs(&["copy", &name, place]);
        places.push(place.to_owned());
    }
    places.push("docker-archive:old.tar:fn:1".to_owned());
    places.push("docker-archive:hybrid.tar:fn:1".to_owned());
    for place in places {
        let document = world.tierce(&["lint", "--json", &place]).run().json();
        let findings = document["images"][0]["findings"].as_array().unwrap();
        let found: Vec<String> = findings
            .iter()
            .map(|finding| {
                let path = finding["path"].as_str().unwrap_or("-");
                format!("{} {} {path}", finding["rule"], finding["layer"])
            })
            .collect();
        assert_eq!(
            found,
            [
                r#""missing-parent" 3 /var/task/lib/x.py"#,
                r#""unreadable-file" 3 /var/task/z.py"#,
                r#""unreadable-file" 4 /var/task/a.py"#,
                r#""parent-in-lower-layer" 4 /var/task/a.py"#,
                r#""special-file" 3 /var/task/pipe"#,
                r#""ignored-setting" null -"#,
            ],
            "{place}"
        );
    }
}

/// The table in the documentation is that of the program.
#[test]
fn every_rule_is_documented() {
    let document = include_str!("../../docs/lint.md");
    let world = World::new();
    function(&code())
        .build()
        .write_layout(&world.path("image"), Some("it"));
    world.runs(&["lint", "--sarif", "out.sarif", "oci:image:it"]);
    let log: Value =
        serde_json::from_slice(&std::fs::read(world.path("out.sarif")).unwrap()).unwrap();
    let rules = log["runs"][0]["tool"]["driver"]["rules"]
        .as_array()
        .unwrap();
    assert!(rules.len() > 40);
    for rule in rules {
        let name = rule["id"].as_str().unwrap();
        let level = rule["defaultConfiguration"]["level"].as_str().unwrap();
        let row = format!("| `{name}` | {level} |");
        assert!(document.contains(&row), "no row `{row}` in docs/lint.md");
    }
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(rows, rules.len());
}
