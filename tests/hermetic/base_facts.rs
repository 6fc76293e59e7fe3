//! What builds go by of their base: by its name, by the lock, and by what it really has.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tierce_testkit::FakeRegistry;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder, TestImage};
use tierce_testkit::sandbox::Command;

use crate::support::{World, digest_in, downloads};

/// A base with a C library up to this version and this Python, and a directory of its own.
fn base(glibc: &[&str], python: &str) -> TestImage {
    let libc = glibc.iter().fold(
        ElfBuilder::new("amd64").soname("libc.so.6"),
        |libc, minor| libc.defines(&format!("GLIBC_2.{minor}")),
    );
    let of_gcc = |name: &str, version: &str| {
        let library = ElfBuilder::new("amd64").soname(name).defines(version);
        library.build()
    };
    let system = LayerBuilder::new()
        .directory("bin", 0o755)
        .file("bin/sh", 0o755, &ElfBuilder::new("amd64").build())
        .file("lambda-entrypoint.sh", 0o755, b"#!/bin/sh\n")
        .directory("lib64", 0o755)
        .file("lib64/libc.so.6", 0o755, &libc.build())
        .file(
            "lib64/libgcc_s.so.1",
            0o755,
            &of_gcc("libgcc_s.so.1", "GCC_7.0.0"),
        )
        .file(
            "lib64/libstdc++.so.6",
            0o755,
            &of_gcc("libstdc++.so.6", "GLIBCXX_3.4.24"),
        )
        .directory("srv", 0o755)
        .directory("srv/private", 0o700)
        .directory("tmp", 0o1777)
        .directory("var", 0o755)
        .directory("var/lang", 0o755)
        .directory("var/lang/bin", 0o755)
        .file(
            &format!("var/lang/bin/python{python}"),
            0o755,
            &ElfBuilder::new("amd64").build(),
        )
        .directory("var/runtime", 0o755)
        .file("var/runtime/bootstrap", 0o755, b"#!/bin/sh\n");
    ImageBuilder::new(Format::Docker, "amd64")
        .layer(&system)
        .config(|config| config["config"] = json!({"Entrypoint": ["/lambda-entrypoint.sh"]}))
        .build()
}

/// A function with requirements, on `image` under that name, and a stand-in for uv that says into the
/// layer what it was asked for.
struct Bench {
    world: World,
    registry: FakeRegistry,
    image: TestImage,
    name: String,
}

impl Bench {
    fn new(image: TestImage, repository: &str, tag: &str) -> Self {
        let registry = FakeRegistry::start();
        image.put(&registry, repository, Some(tag));
        let mut world = World::new();
        world.call(registry.host(), "REGISTRY");
        world.call(image.digest(), "BASE");
        let name = format!("{}/{repository}:{tag}", registry.host());
        world.sandbox.write("app/requirements.txt", "pkg==1\n");
        let bench = Self {
            world,
            registry,
            image,
            name,
        };
        bench.says("");
        let uv = bench.world.sandbox.root().join("bin/uv");
        let script = "#!/bin/sh\ncase \"$1\" in --version) echo uv 1.0; exit;; esac\n\
            PATH=/usr/bin:/bin\nfor word; do case \"$word\" in --target=*) target=${word#*=};; \
            --python-*) asked=\"$asked ${word#*=}\";; esac; done\n\
            mkdir -p \"$target/pkg\" \"$target/pkg-1.dist-info\"\n\
            echo $asked > \"$target/pkg/asked\"\n: > \"$target/pkg/__init__.py\"\n: > \"$target/pkg-1.dist-info/RECORD\"\n";
        fs::write(&uv, script).unwrap();
        fs::set_permissions(&uv, Permissions::from_mode(0o755)).unwrap();
        bench
    }

    /// Writes `tierce.toml`, with more for the layer.
    fn says(&self, more: &str) {
        let text = format!(
            "[image]\nbase = \"{}\"\nplatforms = [\"amd64\"]\nhandler = \"pkg.handler\"\n\
             [[layer]]\nname = \"dependencies\"\npython = \"requirements.txt\"\n{more}\n",
            self.name
        );
        self.world.sandbox.write("app/tierce.toml", text);
    }

    fn tierce(&self, arguments: &[&str]) -> Command {
        let bin = self.world.sandbox.root().join("bin");
        self.world.tierce(arguments).env("PATH", bin)
    }

    /// Builds: which Python the packages were asked for, and what was said.
    #[track_caller]
    fn build(&self, more: &[&str]) -> (String, String, String) {
        let arguments = [&["build", "app"], more].concat();
        let output = self.tierce(&arguments).run().assert_success();
        let said = self.world.shown(&output.stderr());
        let image = self.world.built_as(self.tierce(&arguments));
        let asked = crate::support::file_of(&image, "var/task/pkg/asked");
        (asked.trim_end().to_owned(), said, digest_in(&output))
    }

    fn reads(&self) -> usize {
        downloads(&self.registry, &self.image.layers[0].digest())
    }

    fn lock(&self) -> String {
        self.world
            .shown(&fs::read_to_string(self.world.path("app/tierce.lock")).unwrap())
    }

    /// As another machine, which has no cache.
    fn forget(&self) {
        fs::remove_dir_all(self.world.sandbox.cache()).unwrap();
    }
}

#[test]
fn a_base_that_is_known_by_name_is_not_read() {
    let bench = Bench::new(base(&["26", "34"], "3.12"), "mirror/lambda/python", "3.12");
    let (asked, said, _) = bench.build(&["-o", "store:app"]);
    assert_eq!(asked, "x86_64-manylinux_2_34 3.12");
    assert!(!said.contains("warning"), "{said}");
    assert!(!bench.lock().contains("facts"), "{}", bench.lock());
    // That it is as its name says is nothing to record, whoever has looked.
    bench.world.runs(&["lint", &bench.name]);
    let lock = bench.lock();
    let (_, said, _) = bench.build(&["--locked"]);
    assert!(!said.contains("warning"), "{said}");
    assert_eq!(bench.lock(), lock);
}

#[test]
fn a_base_that_contradicts_its_name_wins_and_is_recorded() {
    let bench = Bench::new(base(&["26"], "3.11"), "lambda/python", "3.12");
    let (asked, _, by_name) = bench.build(&["-o", "store:app"]);
    assert_eq!(asked, "x86_64-manylinux_2_34 3.12");
    let pins_alone = fs::read(bench.world.path("app/tierce.lock")).unwrap();
    bench.world.runs(&["lint", &bench.name]);

    // Who has looked may not build otherwise in silence.
    let refused = bench.tierce(&["build", "app", "--locked"]);
    insta::assert_snapshot!(bench.world.fails_as(1, refused), @"
    error: the base `[REGISTRY]/lambda/python:3.12` for linux/amd64 is not as its name says: it has glibc 2.26, and not glibc 2.34; Python 3.11, and not Python 3.12; tierce.lock does not say so
    hint: run `tierce lock`, and commit tierce.lock
    ");
    let (asked, said, by_base) = bench.build(&["-o", "store:app"]);
    assert_eq!(asked, "x86_64-manylinux_2_17 3.11");
    insta::assert_snapshot!(said.lines().take(2).collect::<Vec<_>>().join("\n"), @"
    warning: the base `[REGISTRY]/lambda/python:3.12` has glibc 2.26 for linux/amd64, and not glibc 2.34 as its name says: the build goes by the base
    warning: the base `[REGISTRY]/lambda/python:3.12` has Python 3.11 for linux/amd64, and not Python 3.12 as its name says: the build goes by the base
    ");
    insta::assert_snapshot!(bench.lock(), @r#"
    # What the base's tag stood for, by platform. Written by tierce; keep it in version control.
    # `tierce lock --update` moves it.

    version = 2

    [[base]]
    name = "[REGISTRY]/lambda/python:3.12"

    [base.platforms]
    "linux/amd64" = "[BASE]"

    [base.facts."[BASE]"]
    libc = "glibc 2.26"
    python = "3.11"
    "#);
    assert_ne!(by_name, by_base);
    let recorded = bench.lock();

    // From now on everybody makes the same, whatever they know of the base, and nobody is warned.
    let (_, said, digest) = bench.build(&["--locked"]);
    assert_eq!(digest, by_base);
    assert!(!said.contains("warning"), "{said}");
    bench.forget();
    let (asked, said, digest) = bench.build(&["-o", "store:app"]);
    assert_eq!(
        (asked.as_str(), digest),
        ("x86_64-manylinux_2_17 3.11", by_base)
    );
    assert!(!said.contains("warning"), "{said}");
    assert_eq!(bench.lock(), recorded);

    // `tierce lock` finds it by itself, and with it what else is unusual.
    fs::write(bench.world.path("app/tierce.lock"), pins_alone).unwrap();
    bench.forget();
    let output = bench.world.ok(&["lock", "app"]);
    assert!(output.stderr().contains("Python 3.11"), "{output:?}");
    let lock = bench.lock();
    let facts = lock.split_once("[base.facts.").unwrap().1;
    insta::assert_snapshot!(facts, @r#"
    "[BASE]"]
    libc = "glibc 2.26"
    python = "3.11"

    [base.facts."[BASE]".directories]
    "srv/private" = "0700"
    "#);
    // What is said of the layer itself comes before all.
    bench.says("python-version = \"3.10\"\nglibc = \"2.28\"");
    let (asked, _, _) = bench.build(&["--locked"]);
    assert_eq!(asked, "x86_64-manylinux_2_28 3.10");
}

/// `tierce lock` is what a refused build says to run, so it has to help.
#[test]
fn what_a_build_recorded_in_part_is_completed() {
    let bench = Bench::new(base(&["26"], "3.11"), "lambda/python", "3.12");
    bench.world.runs(&["lock", "app"]);
    let whole = fs::read_to_string(bench.world.path("app/tierce.lock")).unwrap();
    let in_part = whole.replace("libc = \"glibc 2.26\"\n", "");
    assert_ne!(in_part, whole);
    fs::write(bench.world.path("app/tierce.lock"), in_part).unwrap();
    let refused = bench.tierce(&["build", "app", "--locked"]);
    let refused = bench.world.fails_as(1, refused);
    assert!(
        refused.contains("glibc 2.26") && refused.contains("run `tierce lock`"),
        "{refused}"
    );
    bench.world.runs(&["lock", "app"]);
    let lock = fs::read_to_string(bench.world.path("app/tierce.lock")).unwrap();
    assert_eq!(lock, whole);
    let (asked, _, _) = bench.build(&["--locked"]);
    assert_eq!(asked, "x86_64-manylinux_2_17 3.11");
}

#[test]
fn what_no_table_knows_is_read_once_and_locked() {
    let bench = Bench::new(base(&["28", "31"], "3.10"), "team/base", "1");
    let (asked, said, first) = bench.build(&["-o", "store:app"]);
    assert_eq!(asked, "x86_64-manylinux_2_31 3.10");
    assert!(!said.contains("warning"), "{said}");
    let lock = bench.lock();
    insta::assert_snapshot!(lock.split_once("[base.facts.").unwrap().1, @r#"
    "[BASE]"]
    complete = true
    libc = "glibc 2.31"
    python = "3.10"
    interpreter = "/var/lang/bin/python3.10"
    bootstrap = true
    library-directories = ["/lib64"]
    libraries = [
        "libc.so.6",
        "libgcc_s.so.1",
        "libstdc++.so.6",
    ]

    [base.facts."[BASE]".versions]
    GCC = "7.0.0"
    GLIBCXX = "3.4.24"

    [base.facts."[BASE]".directories]
    "srv/private" = "0700"
    "#);
    bench.forget();
    bench.registry.clear_log();
    let again = bench.tierce(&["build", "app", "-o", "store:app", "--locked"]);
    let again = again.run().assert_success();
    assert_eq!((digest_in(&again), bench.reads()), (first.clone(), 0));

    // Without the lock the base itself says the same.
    fs::remove_file(bench.world.path("app/tierce.lock")).unwrap();
    bench.forget();
    bench.registry.clear_log();
    let (_, _, digest) = bench.build(&["-o", "store:app"]);
    assert_eq!(digest, first);
    assert!(bench.reads() > 0);
    // `tierce lock` has nothing to add to what a build recorded, nor a build to what it did.
    assert_eq!(bench.lock(), lock);
    bench.world.runs(&["lock", "app"]);
    assert_eq!(bench.lock(), lock);
    bench.world.runs(&["lock", "--update", "app"]);
    assert_eq!(bench.lock(), lock);
}

#[test]
fn offline_says_how_the_base_can_become_known() {
    let bench = Bench::new(base(&["31"], "3.10"), "team/base", "1");
    // The documents are known, the layers are not: nothing but files is built.
    let plain = bench.name.clone();
    bench.world.sandbox.write(
        "app/tierce.toml",
        format!(
            "[image]\nbase = \"{plain}\"\nplatforms = [\"amd64\"]\n[[layer]]\nname = \"code\"\n\
             add = [{{ from = \"requirements.txt\", to = \"/srv/private/\" }}]\n"
        ),
    );
    bench.world.runs(&["build", "app", "-o", "store:app"]);
    assert!(!bench.lock().contains("facts"));
    bench.says("");
    let offline = bench.tierce(&["build", "app", "-o", "store:app", "--offline"]);
    let failed = bench.world.fails_as(1, offline);
    assert!(
        failed.contains("could not find out what the base `[REGISTRY]/team/base:1` has")
            && failed.contains("hint: run it once without --offline, or `tierce lock`"),
        "{failed}"
    );
    // Said by hand it need not be known.
    bench.says("python-version = \"3.10\"\nglibc = \"2.31\"");
    drop(
        bench
            .tierce(&["build", "app", "-o", "store:app"])
            .run()
            .assert_success(),
    );
}

#[test]
fn directories_keep_the_modes_that_the_lock_states() {
    let bench = Bench::new(base(&["31"], "3.10"), "team/base", "1");
    bench.world.sandbox.write(
        "app/tierce.toml",
        format!(
            "[image]\nbase = \"{}\"\nplatforms = [\"amd64\"]\n[[layer]]\nname = \"code\"\n\
             add = [{{ from = \"requirements.txt\", to = \"/srv/private/\" }}]\n",
            bench.name
        ),
    );
    let listing = || crate::support::top_layer(&bench.world.built(&["build", "app"]));
    assert!(listing().contains("d 0755 srv/private"));
    bench.world.runs(&["lint", &bench.name]);
    assert!(listing().contains("d 0755 srv/private"), "by the cache");
    bench.world.runs(&["lock", "app"]);
    assert!(listing().contains("d 0700 srv/private"));
    bench.forget();
    assert!(listing().contains("d 0700 srv/private"));
}

/// A tag that tells the Python and not the C library: the base is read wherever it is built on.
#[test]
fn what_a_name_tells_in_part_is_completed_and_corrected_by_the_base() {
    let bench = Bench::new(base(&["31"], "3.11"), "team/python", "3.12");
    let (asked, said, first) = bench.build(&["-o", "store:app"]);
    assert_eq!(asked, "x86_64-manylinux_2_31 3.11");
    insta::assert_snapshot!(said.lines().next().unwrap(), @"warning: the base `[REGISTRY]/team/python:3.12` has Python 3.11 for linux/amd64, and not Python 3.12 as its name says: the build goes by the base");
    let lock = bench.lock();
    assert!(lock.contains("complete = true"), "{lock}");
    // The same where it cannot be recorded, whoever has looked before.
    fs::write(
        bench.world.path("app/tierce.lock"),
        lock.split("[base.facts")
            .next()
            .unwrap()
            .replace("version = 2", "version = 1")
            .replace("[REGISTRY]", &bench.registry.host())
            .replace("[BASE]", &bench.image.digest().to_string()),
    )
    .unwrap();
    for _ in 0..2 {
        let (asked, _, digest) = bench.build(&["--locked", "-o", "store:app"]);
        assert_eq!(
            (asked.as_str(), &digest),
            ("x86_64-manylinux_2_31 3.11", &first)
        );
        bench.forget();
    }
}

/// What a cache knows cannot be recorded without a lock, so it must not count either.
#[test]
fn without_a_lock_a_contradiction_is_an_error() {
    let bench = Bench::new(base(&["26"], "3.11"), "lambda/python", "3.12");
    bench.world.runs(&["lint", &bench.name]);
    let other = bench.tierce(&["build", "app", "--base", &bench.name]);
    insta::assert_snapshot!(bench.world.fails_as(1, other), @"
    error: the base `[REGISTRY]/lambda/python:3.12` for linux/amd64 is not as its name says: it has glibc 2.26, and not glibc 2.34; Python 3.11, and not Python 3.12; tierce.lock does not say so
    hint: name the base in a tierce.toml, beside which a tierce.lock can hold to it
    ");
}
