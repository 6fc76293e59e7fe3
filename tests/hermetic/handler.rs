//! Compiled handlers: where they go, what comes along, and what is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use tierce_testkit::FakeRegistry;
use tierce_testkit::check::LoadedImage;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestImage, TestIndex};

use crate::support::{World, downloads, listing, top_layer};

const LOADERS: [(&str, &str); 2] = [
    ("amd64", "/lib64/ld-linux-x86-64.so.2"),
    ("arm64", "/lib/ld-linux-aarch64.so.1"),
];

fn loader(architecture: &str) -> &'static str {
    let known = LOADERS.iter().find(|(name, _)| *name == architecture);
    known.unwrap().1
}

/// A program that is linked to glibc.
fn program_for(architecture: &str) -> ElfBuilder {
    ElfBuilder::new(architecture)
        .interpreter(loader(architecture))
        .needs("libc.so.6")
        .content(b"2018-06-01/runtime/invocation/next")
}

fn program() -> ElfBuilder {
    program_for("amd64")
}

fn library(name: &str) -> ElfBuilder {
    ElfBuilder::new("amd64").soname(name).needs("libc.so.6")
}

/// The settings of AWS's bases.
fn aws_settings(config: &mut Value) {
    config["config"] = json!({
        "Env": [
            "PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
            "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
            "LAMBDA_TASK_ROOT=/var/task",
            "LAMBDA_RUNTIME_DIR=/var/runtime",
        ],
        "Entrypoint": ["/lambda-entrypoint.sh"],
        "WorkingDir": "/var/task",
    });
}

/// A base for programs, as AWS's are. Its system is not looked into: its name says what it has.
fn provided(architecture: &str) -> TestImage {
    let system = LayerBuilder::new()
        .directory("var", 0o755)
        .directory("var/runtime", 0o755)
        .directory("var/task", 0o755)
        .file("lambda-entrypoint.sh", 0o755, b"#!/bin/sh\n");
    ImageBuilder::new(Format::Docker, architecture)
        .layer(&system)
        .config(aws_settings)
        .build()
}

/// A base of another maker, with a C library of that version, a C++ library and one more.
fn distribution(newest: &str) -> TestImage {
    let libc = ElfBuilder::new("amd64")
        .soname("libc.so.6")
        .defines("GLIBC_2.17")
        .defines(&format!("GLIBC_{newest}"));
    let of_gcc = ElfBuilder::new("amd64")
        .soname("libstdc++.so.6")
        .defines("GLIBCXX_3.4.30");
    let system = LayerBuilder::new()
        .directory("usr", 0o755)
        .directory("usr/lib", 0o755)
        .symlink("lib64", "usr/lib")
        .file(
            "usr/lib/ld-linux-x86-64.so.2",
            0o755,
            &ElfBuilder::new("amd64").build(),
        )
        .file("usr/lib/libc.so.6", 0o755, &libc.build())
        .file("usr/lib/libstdc++.so.6", 0o644, &of_gcc.build())
        .file(
            "usr/lib/libhere.so.1",
            0o644,
            &library("libhere.so.1").build(),
        );
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&system)
        .config(|config| {
            config["config"] = json!({"Env": ["PATH=/usr/bin"], "Cmd": ["sh"]});
        })
        .build()
}

struct Bench {
    world: World,
    registry: FakeRegistry,
}

impl Bench {
    /// A world with these bases: `lambda/provided:al2` and `:al2023` for both platforms,
    /// `team/system:1`, which no table knows, and `team/musl:1`.
    fn new() -> Self {
        let registry = FakeRegistry::start();
        for tag in ["al2", "al2023"] {
            let images = ["amd64", "arm64"].map(provided);
            let index = TestIndex::of(Format::Docker, images.to_vec());
            index.put(&registry, "lambda/provided", Some(tag));
        }
        distribution("2.36").put(&registry, "team/system", Some("1"));
        let musl = LayerBuilder::new().directory("lib", 0o755).file(
            "lib/ld-musl-x86_64.so.1",
            0o755,
            &ElfBuilder::new("amd64").build(),
        );
        ImageBuilder::new(Format::Docker, "amd64")
            .layer(&musl)
            .build()
            .put(&registry, "team/musl", Some("1"));
        let mut world = World::new();
        world.call(registry.host(), "REGISTRY");
        Self { world, registry }
    }

    fn name(&self, base: &str) -> String {
        match base {
            "scratch" => base.to_owned(),
            _ => format!("{}/{base}", self.registry.host()),
        }
    }

    /// Writes `tierce.toml` with a layer `handler` that says this.
    fn app(&self, base: &str, layer: &str) {
        let text = format!(
            "[image]\nbase = \"{}\"\nplatforms = [\"amd64\"]\n[[layer]]\nname = \"handler\"\n{layer}\n",
            self.name(base)
        );
        self.world.sandbox.write("app/tierce.toml", text);
    }

    fn file(&self, path: &str, elf: &ElfBuilder) {
        self.world.sandbox.write(format!("app/{path}"), elf.build());
    }

    #[track_caller]
    fn built(&self) -> LoadedImage {
        self.world.built(&["build", "app"])
    }

    #[track_caller]
    fn fails(&self) -> String {
        self.world.fails(1, &["build", "app"])
    }
}

#[test]
fn a_program_and_what_the_base_lacks_become_two_layers() {
    let bench = Bench::new();
    bench.app(
        "lambda/provided:al2",
        "binary = \"target/orders\"\nlibraries = [\"vendor\"]",
    );
    // `target` is what people leave out of everything else, and modes get lost on the way.
    bench
        .world
        .sandbox
        .write("app/.dockerignore", "target\nvendor\n");
    bench.file(
        "target/orders",
        &program().needs("libtiny.so.1").needs("libgcc_s.so.1"),
    );
    bench.file(
        "vendor/libtiny.so.1.2.3",
        &library("libtiny.so.1")
            .needs("libdeep.so.2")
            .needs("libm.so.6"),
    );
    std::os::unix::fs::symlink(
        "libtiny.so.1.2.3",
        bench.world.path("app/vendor/libtiny.so.1"),
    )
    .unwrap();
    bench.file("vendor/libdeep.so.2", &library("libdeep.so.2"));
    let output = bench.world.ok(&["build", "app"]);
    let said = bench.world.shown(&output.stderr());
    insta::assert_snapshot!(said.lines().next().unwrap(), @"`orders` for linux/amd64 brings along: libdeep.so.2 (vendor/libdeep.so.2), libtiny.so.1 (vendor/libtiny.so.1.2.3)");
    let image = bench.built();
    let base = image.tars.len() - 2;
    assert_eq!(base, 1, "what it brings along and itself");
    let libraries = listing(&image, base);
    let sizes = regex_sizes(&libraries);
    insta::assert_snapshot!(sizes, @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/lib
    f 0755 var/task/lib/libdeep.so.2
    f 0755 var/task/lib/libtiny.so.1
    ");
    insta::assert_snapshot!(regex_sizes(&top_layer(&image)), @"
    d 0755 var
    d 0755 var/runtime
    f 0755 var/runtime/bootstrap
    ");
    let config = &image.config["config"];
    assert_eq!(config["Entrypoint"], json!(["/lambda-entrypoint.sh"]));
    assert_eq!(config["Cmd"], json!(["orders"]));
    assert_eq!(config["Labels"]["dev.tierce.target"], "lambda");
    let history = image.config["history"].to_string();
    assert!(history.contains("handler libraries"), "{history}");
    // No layer of the base was needed to know any of it.
    let base = provided("amd64");
    bench.registry.clear_log();
    bench.world.runs(&["build", "app", "-o", "store:app"]);
    assert_eq!(downloads(&bench.registry, &base.layers[0].digest()), 0);
}

/// A listing without the sizes of files.
fn regex_sizes(listing: &str) -> String {
    let lines = listing.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').take(3).collect();
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_handler_or_entrypoint_of_the_user_stays() {
    let bench = Bench::new();
    bench.file("orders", &program());
    bench.app("lambda/provided:al2023", "binary = \"orders\"");
    let image = bench.world.built(&["build", "app", "--handler", "by.name"]);
    assert_eq!(image.config["config"]["Cmd"], json!(["by.name"]));
    let image = bench
        .world
        .built(&["build", "app", "--entrypoint", "/var/task/orders"]);
    assert_eq!(
        image.config["config"]["Entrypoint"],
        json!(["/var/task/orders"])
    );
    assert!(top_layer(&image).contains("f 0755 var/task/orders"));
    bench.app(
        "lambda/provided:al2023",
        "binary = \"orders\"\nto = \"/opt/bin/\"",
    );
    let image = bench.built();
    assert_eq!(
        image.config["config"]["Entrypoint"],
        json!(["/opt/bin/orders"])
    );
    assert!(top_layer(&image).contains("f 0755 opt/bin/orders"));
    // A directory stays one, with or without its slash.
    for to in ["/opt", "/var/task", "."] {
        let layer = format!("binary = \"orders\"\nto = \"{to}\"");
        bench.app("lambda/provided:al2023", &layer);
        let image = bench.built();
        let place = if to == "/opt" { to } else { "/var/task" };
        let place = format!("{place}/orders");
        assert_eq!(image.config["config"]["Entrypoint"], json!([place]));
        assert!(top_layer(&image).contains(&format!("f 0755 {}", &place[1..])));
    }
}

#[test]
fn the_flag_needs_no_config_file() {
    let bench = Bench::new();
    bench.world.sandbox.write("app/extra.txt", "extra");
    bench.file("orders", &program());
    let image = bench.world.built(&[
        "build",
        "app",
        "--base",
        &bench.name("lambda/provided:al2023"),
        "--platform",
        "amd64",
        "--add",
        "extra.txt:/var/task/",
        "--binary",
        "orders",
    ]);
    assert!(top_layer(&image).contains("f 0755 var/runtime/bootstrap"));
    assert_eq!(image.config["config"]["Cmd"], json!(["orders"]));
    let labels = image.config["config"]["Labels"].to_string();
    assert!(labels.contains("lambda"), "{labels}");
}

#[test]
fn on_another_base_it_is_the_entrypoint() {
    let bench = Bench::new();
    bench.file(
        "orders",
        &program().needs("libhere.so.1").needs("libtiny.so.1"),
    );
    bench.file("vendor/libtiny.so.1", &library("libtiny.so.1"));
    bench.app(
        "team/system:1",
        "binary = \"orders\"\nlibraries = [\"vendor\"]",
    );
    let image = bench.built();
    let config = &image.config["config"];
    assert_eq!(config["Entrypoint"], json!(["/var/task/orders"]));
    assert_eq!(
        config["Cmd"],
        Value::Null,
        "`sh` was for another entrypoint"
    );
    assert_eq!(
        config["Env"],
        json!(["PATH=/usr/bin", "LD_LIBRARY_PATH=/var/task/lib"])
    );
    assert!(listing(&image, 1).contains("var/task/lib/libtiny.so.1"));
    assert!(!listing(&image, 1).contains("libhere"));
    // What was read of the base is in the lock; the next machine reads nothing.
    fs::remove_dir_all(bench.world.sandbox.cache()).unwrap();
    bench.registry.clear_log();
    bench
        .world
        .runs(&["build", "app", "--locked", "-o", "store:app"]);
    let layer = distribution("2.36").layers[0].digest();
    assert_eq!(downloads(&bench.registry, &layer), 0);
    // Without libraries nothing is said of where they are.
    bench.file("orders", &program());
    assert_eq!(
        bench.built().config["config"]["Env"],
        json!(["PATH=/usr/bin"])
    );
}

#[test]
fn what_needs_a_newer_base_is_refused_with_symbols_and_versions() {
    let bench = Bench::new();
    bench.file(
        "orders",
        &program()
            .needs("libtiny.so.1")
            .needs_symbol("libc.so.6", "GLIBC_2.2.5", "printf")
            .needs_symbol("libc.so.6", "GLIBC_2.34", "dlsym"),
    );
    bench.file(
        "vendor/libtiny.so.1",
        &library("libtiny.so.1").needs_symbol("libc.so.6", "GLIBC_2.28", "fcntl64"),
    );
    let layer = "binary = \"orders\"\nlibraries = [\"vendor\"]";
    bench.app("lambda/provided:al2", layer);
    insta::assert_snapshot!(bench.fails(), @"
    error: could not make the layer `handler`
      caused by: `orders` needs GLIBC_2.34 for `dlsym`: the base `[REGISTRY]/lambda/provided:al2` offers GLIBC_2.26 at most
        `vendor/libtiny.so.1` needs GLIBC_2.28 for `fcntl64`: the base `[REGISTRY]/lambda/provided:al2` offers GLIBC_2.26 at most
    hint: build it on the base's own system (Amazon Linux 2 or 2023), against an older glibc (`cargo zigbuild --target x86_64-unknown-linux-gnu.2.26`), or statically for musl; a newer base has a newer glibc
    ");
    bench.app("lambda/provided:al2023", layer);
    drop(bench.built());
    bench.app("lambda/provided:al2", &format!("{layer}\nglibc = \"2.34\""));
    drop(bench.built());
    // Of a base that was read more is known.
    bench.file(
        "orders",
        &program()
            .needs("libstdc++.so.6")
            .needs("libtiny.so.1")
            .needs_symbol(
                "libstdc++.so.6",
                "GLIBCXX_3.4.32",
                "_ZSt21ios_base_library_initv",
            )
            .needs_symbol("libtiny.so.1", "TINY_2", "tiny"),
    );
    bench.file(
        "vendor/libtiny.so.1",
        &library("libtiny.so.1").defines("TINY_1"),
    );
    bench.app("team/system:1", layer);
    let refused = bench.fails();
    assert!(
        refused.contains(
            "`orders` needs GLIBCXX_3.4.32 for `_ZSt21ios_base_library_initv`: the base \
             `[REGISTRY]/team/system:1` offers GLIBCXX_3.4.30 at most"
        ) && refused
            .contains("`orders` needs TINY_2 for `tiny`: `vendor/libtiny.so.1` does not have it"),
        "{refused}"
    );
}

#[test]
fn files_beside_the_program_stay_beside_it() {
    let bench = Bench::new();
    bench.file(
        "build/bin/orders",
        &program().needs("libtiny.so.1").runpath("$ORIGIN/../lib"),
    );
    bench.file(
        "build/lib/libtiny.so.1",
        &library("libtiny.so.1")
            .needs("libdeep.so.2")
            .runpath("${ORIGIN}/deep"),
    );
    bench.file("build/lib/deep/libdeep.so.2", &library("libdeep.so.2"));
    bench.app(
        "lambda/provided:al2",
        "binary = \"build/bin/orders\"\nto = \"/opt/orders/bin/\"",
    );
    let image = bench.built();
    let libraries = listing(&image, 1);
    assert!(
        libraries.contains("f 0755 opt/orders/lib/libtiny.so.1")
            && libraries.contains("f 0755 opt/orders/lib/deep/libdeep.so.2"),
        "{libraries}"
    );
    // Of a link the program's own place counts.
    std::os::unix::fs::symlink("build/bin/orders", bench.world.path("app/orders")).unwrap();
    bench.app(
        "lambda/provided:al2",
        "binary = \"orders\"\nto = \"/opt/orders/bin/\"",
    );
    let linked = bench.built();
    assert_eq!(listing(&linked, 1), libraries);
    assert!(top_layer(&linked).contains("f 0755 opt/orders/bin/orders"));
    // An rpath comes before everything, so its library does too although the base has one.
    bench.file(
        "build/bin/orders",
        &program().needs("libhere.so.1").rpath("$ORIGIN/../lib"),
    );
    bench.file("build/lib/libhere.so.1", &library("libhere.so.1"));
    let layer = "binary = \"build/bin/orders\"\nto = \"/opt/orders/bin/\"";
    bench.app("team/system:1", layer);
    assert!(listing(&bench.built(), 1).contains("opt/orders/lib/libhere.so.1"));
    bench.file(
        "build/bin/orders",
        &program().needs("libhere.so.1").runpath("$ORIGIN/../lib"),
    );
    assert_eq!(bench.built().tars.len(), 2, "of the base, and the program");
}

#[test]
fn a_library_that_is_nowhere_is_named_with_who_needs_it() {
    let bench = Bench::new();
    bench.file("orders", &program().needs("libtierce-test.so.1"));
    bench.file(
        "vendor/libtierce-test.so.1",
        &library("libtierce-test.so.1").needs("libtierce-deep.so.2"),
    );
    let layer = "binary = \"orders\"\nlibraries = [\"vendor\"]";
    bench.app("lambda/provided:al2", layer);
    let failed = bench.fails();
    let (first, rest) = failed.split_once("looked in: ").unwrap();
    insta::assert_snapshot!(first.trim_end(), @"
    error: could not make the layer `handler`
      caused by: `vendor/libtierce-test.so.1` needs `libtierce-deep.so.2`, which the base `[REGISTRY]/lambda/provided:al2` does not have, nor this machine for amd64
    ");
    assert!(
        rest.contains("vendor") && rest.contains("hint: `libraries = [\"FOLDER\"]`"),
        "{failed}"
    );
    bench.world.sandbox.write(
        "app/vendor/libtierce-deep.so.2",
        ElfBuilder::new("arm64")
            .soname("libtierce-deep.so.2")
            .build(),
    );
    let failed = bench.fails();
    assert!(
        failed.contains("vendor/libtierce-deep.so.2 is for arm64"),
        "{failed}"
    );
}

/// Names out of a program are anybody's.
#[test]
fn programs_that_lie_are_refused_or_stay_in_the_image() {
    let bench = Bench::new();
    bench.app(
        "lambda/provided:al2",
        "binary = \"orders\"\nlibraries = [\"vendor\"]",
    );
    fs::create_dir(bench.world.path("app/vendor")).unwrap();
    bench.file("orders", &program().needs("../../etc/passwd"));
    let failed = bench.fails();
    assert!(
        failed.contains("`orders` needs the library `../../etc/passwd` by its path"),
        "{failed}"
    );
    for name in ["", ".", ".."] {
        bench.file("orders", &program().needs(name));
        let failed = bench.fails();
        assert!(failed.contains(&format!("needs `{name}`")), "{failed}");
    }
    bench.file("orders", &program().needs(".wh.var"));
    bench.file("vendor/.wh.var", &library(".wh.var"));
    let failed = bench.fails();
    assert!(failed.contains("`.wh.`"), "{failed}");
    // Nobody says anything in tierce's name.
    bench.file("orders", &program().needs("liba.so\nerror: x"));
    bench.file("vendor/liba.so\nerror: x", &library("liba.so"));
    let output = bench.world.ok(&["build", "app"]);
    assert!(!output.stderr().contains("\nerror"), "{output:?}");
    // Two that need each other, and a way out of the root.
    bench.file(
        "orders",
        &program()
            .needs("liba.so")
            .runpath("$ORIGIN/vendor/../../../../../../../../../../../.."),
    );
    bench.file("vendor/liba.so", &library("liba.so").needs("libb.so"));
    bench.file(
        "vendor/libb.so",
        &library("libb.so").needs("liba.so").needs("libb.so"),
    );
    let image = bench.built();
    assert!(listing(&image, 1).contains("var/task/lib/libb.so"));
    bench.file(
        "vendor/libb.so",
        &library("libb.so")
            .runpath("$ORIGIN/../../../../../x")
            .needs("libd.so"),
    );
    let failed = bench.fails();
    assert!(
        failed.contains("`vendor/libb.so` needs `libd.so`"),
        "{failed}"
    );
}

/// It would go into the image as if it needed nothing.
#[test]
fn a_program_of_which_it_is_not_known_what_it_needs_is_refused() {
    const DYNAMIC: [u8; 4] = [2, 0, 0, 0];
    let damaged = |elf: &ElfBuilder| {
        let mut bytes = elf.build();
        // Program headers begin at 64, and each is 56 bytes; where it lies in the file is at 8.
        let header = (0..3).map(|number| 64 + 56 * number);
        let mut found = header.filter(|&at| bytes[at..at + 4] == DYNAMIC);
        let at = found.next().unwrap();
        bytes[at + 8..at + 16].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        bytes
    };
    let bench = Bench::new();
    bench.app(
        "lambda/provided:al2",
        "binary = \"orders\"\nlibraries = [\"vendor\"]",
    );
    let sandbox = &bench.world.sandbox;
    sandbox.write(
        "app/vendor/libtiny.so.1",
        damaged(&library("libtiny.so.1").needs("libgone.so.1")),
    );
    sandbox.write("app/orders", damaged(&program().needs("libtiny.so.1")));
    insta::assert_snapshot!(bench.fails(), @"
    error: could not make the layer `handler`
      caused by: what `orders` needs of its system cannot be read: it contradicts itself, or is cut off
    hint: build it again; tools that rewrite or pack programs may have damaged it
    ");
    bench.file("orders", &program().needs("libtiny.so.1"));
    let failed = bench.fails();
    assert!(
        failed.contains("what `vendor/libtiny.so.1` needs of its system cannot be read"),
        "{failed}"
    );
}

/// As Nix links them.
#[test]
fn a_loader_that_no_base_has_is_refused() {
    let bench = Bench::new();
    let loader = "/nix/store/glibc/lib/ld-linux-x86-64.so.2";
    bench.file("orders", &program().interpreter(loader));
    bench.app("lambda/provided:al2023", "binary = \"orders\"");
    insta::assert_snapshot!(bench.fails(), @"
    error: could not make the layer `handler`
      caused by: `orders` is started by `/nix/store/glibc/lib/ld-linux-x86-64.so.2`, which the base `[REGISTRY]/lambda/provided:al2023` does not have
    hint: link it with the loader that is there (`-Wl,--dynamic-linker=/lib64/ld-linux-x86-64.so.2`), change it (`patchelf --set-interpreter /lib64/ld-linux-x86-64.so.2`), or link it statically
    ");
}

#[test]
fn another_c_library_is_an_error_before_it_is_one_in_production() {
    let bench = Bench::new();
    bench.file("orders", &program());
    bench.app("team/musl:1", "binary = \"orders\"");
    insta::assert_snapshot!(bench.fails(), @"
    error: could not make the layer `handler`
      caused by: `orders` is linked to glibc, and the base `[REGISTRY]/team/musl:1` has musl
    hint: link it statically (Rust: `--target x86_64-unknown-linux-musl`, or aarch64; Go: `CGO_ENABLED=0`), or use a base that has it, such as public.ecr.aws/lambda/provided:al2023 for glibc
    ");
    bench.app("scratch", "binary = \"orders\"");
    let failed = bench.fails();
    assert!(
        failed.contains("`orders` is linked to glibc, and the base `scratch` has none"),
        "{failed}"
    );
    bench.file(
        "orders",
        &ElfBuilder::new("amd64")
            .interpreter("/lib/ld-musl-x86_64.so.1")
            .needs("libc.musl-x86_64.so.1"),
    );
    bench.app("team/musl:1", "binary = \"orders\"");
    drop(bench.built());
    bench.app("lambda/provided:al2", "binary = \"orders\"");
    let failed = bench.fails();
    assert!(
        failed.contains("is linked to musl, and the base"),
        "{failed}"
    );
    // A static one asks for nothing, and nothing is read of any base, but to judge a function.
    bench.file("orders", &ElfBuilder::new("amd64"));
    bench.app("scratch", "binary = \"orders\"");
    let image = bench.built();
    assert_eq!(
        image.config["config"]["Entrypoint"],
        json!(["/var/task/orders"])
    );
    bench.app("team/system:1", "binary = \"orders\"");
    let text = fs::read_to_string(bench.world.path("app/tierce.toml")).unwrap();
    let text = text.replacen("[image]", "[image]\ntarget = \"generic\"", 1);
    bench.world.sandbox.write("app/tierce.toml", text);
    bench.registry.clear_log();
    bench.world.runs(&["build", "app", "-o", "store:app"]);
    let layer = distribution("2.36").layers[0].digest();
    assert_eq!(downloads(&bench.registry, &layer), 0);
}

#[test]
fn what_is_no_program_for_the_platform_is_refused_by_name() {
    let bench = Bench::new();
    bench.app("lambda/provided:al2023", "binary = \"orders\"");
    let failed = bench.fails();
    assert!(
        failed.contains("there is no program for linux/amd64")
            && failed.contains("`orders` is not there"),
        "{failed}"
    );
    // A pipe is not waited for.
    let pipe = bench.world.shell("mkfifo app/orders").run();
    drop(pipe.assert_success());
    let failed = bench.fails();
    assert!(
        failed.contains("`orders` is no program of Linux"),
        "{failed}"
    );
    fs::remove_file(bench.world.path("app/orders")).unwrap();
    bench.world.sandbox.write("app/orders", "#!/bin/sh\n");
    let failed = bench.fails();
    assert!(
        failed.contains("`orders` is no program of Linux: it is not an ELF file"),
        "{failed}"
    );
    bench.file("orders", &library("liborders.so"));
    assert!(
        bench
            .fails()
            .contains("`orders` is a library or an object file, and no program")
    );
    bench.file("orders", &program_for("arm64"));
    insta::assert_snapshot!(bench.fails(), @r#"
    error: could not make the layer `handler`
      caused by: `orders` is for arm64, and the image for amd64
    hint: compile it for amd64, or build the other image: `--platform arm64`; `binary = { amd64 = "…", arm64 = "…" }` names one for each
    "#);
}

#[test]
fn each_platform_gets_its_own_program() {
    let bench = Bench::new();
    for architecture in ["amd64", "arm64"] {
        bench.file(
            &format!("target/{architecture}/orders"),
            &program_for(architecture),
        );
    }
    let both = [
        "binary = { x86_64 = \"target/amd64/orders\", arm64 = \"target/arm64/orders\" }",
        "binary = \"target/{arch}/orders\"",
    ];
    let mut made = Vec::new();
    for binary in both {
        bench.app("lambda/provided:al2023", binary);
        let output = bench
            .world
            .ok(&["build", "app", "--platform=amd64,arm64", "-o", "store:app"]);
        made.push(output.stdout());
    }
    assert_eq!(made[0], made[1]);
    bench.app(
        "lambda/provided:al2023",
        "binary = { amd64 = \"target/amd64/orders\" }",
    );
    let failed = bench.world.fails(1, &["build", "app", "--platform=arm64"]);
    assert!(
        failed.contains("no `binary` is named for linux/arm64"),
        "{failed}"
    );
}

#[test]
fn a_library_that_changes_changes_the_layer_and_nothing_else_does() {
    let bench = Bench::new();
    bench.file("orders", &program().needs("libtiny.so.1"));
    bench.file("vendor/libtiny.so.1", &library("libtiny.so.1"));
    bench.app(
        "lambda/provided:al2",
        "binary = \"orders\"\nlibraries = [\"vendor\"]",
    );
    let layers = || crate::support::layer_digests(&bench.built().manifest);
    let first = layers();
    let mode = Permissions::from_mode(0o600);
    fs::set_permissions(bench.world.path("app/orders"), mode).unwrap();
    assert_eq!(layers(), first, "modes are always the same");
    fs::remove_dir_all(bench.world.sandbox.cache()).unwrap();
    assert_eq!(layers(), first);
    bench.file(
        "vendor/libtiny.so.1",
        &library("libtiny.so.1").content(b"fixed"),
    );
    let second = layers();
    assert_eq!((&second[0], &second[2]), (&first[0], &first[2]));
    assert_ne!(second[1], first[1]);
    // A folder that is searched earlier counts as soon as it has one.
    bench.app(
        "lambda/provided:al2",
        "binary = \"orders\"\nlibraries = [\"first\", \"vendor\"]",
    );
    fs::create_dir(bench.world.path("app/first")).unwrap();
    assert_eq!(layers(), second);
    bench.file("first/libtiny.so.1", &library("libtiny.so.1"));
    assert_eq!(layers(), first);
}

#[test]
fn keys_that_do_not_belong_together_are_pointed_at() {
    let bench = Bench::new();
    bench.file("orders", &program());
    for (layer, reason) in [
        (
            "libraries = [\"vendor\"]\nadd = [{ from = \"orders\", to = \"/\" }]",
            "`libraries` of a layer belong to its `binary`",
        ),
        (
            "binary = \"orders\"\nzip = \"a.zip\"",
            "make two layers of them",
        ),
        (
            "binary = \"orders\"\npython = \"requirements.txt\"",
            "make two layers of them",
        ),
        (
            "binary = \"orders\"\nexclude = [\"a\"]",
            "`include` and `exclude` of a layer belong to",
        ),
        (
            "binary = \"orders\"\npython-version = \"3.12\"",
            "`python-version` of a layer belongs to its `python`",
        ),
        ("binary = 3", "expected a path, or"),
        (
            "binary = \"orders\"\n[[layer]]\nname = \"again\"\nbinary = \"orders\"",
            "an image has one compiled handler",
        ),
    ] {
        bench.app("lambda/provided:al2", layer);
        let output = bench.world.tierce(&["build", "app"]).run();
        let stderr = output.stderr();
        assert_ne!(output.code(), Some(0), "{layer}");
        assert!(stderr.contains(reason), "{layer}: {stderr}");
    }
    bench.app("lambda/provided:al2", "binary = \"../orders\"");
    assert!(bench.fails().contains("outside the context"));
}
