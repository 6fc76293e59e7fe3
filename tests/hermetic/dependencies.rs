//! Lock files become layers, with stand-ins in the place of uv, pip and npm.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tierce_testkit::FakeRegistry;
use tierce_testkit::check::LoadedImage;
use tierce_testkit::images::{Format, TestIndex, lambda_base};
use tierce_testkit::sandbox::Command;

use crate::support::{World, copy_directory, ended, file_of, has, top_layer};

/// A world on a base that has the name of AWS's Python, for two platforms, and no tool on PATH but
/// what is put there.
struct Bench {
    world: World,
    registry: FakeRegistry,
}

/// What a stand-in installs: a package with all that real tools leave of a machine. `$target` is where
/// to, `$what` tells trees apart.
const INSTALL_PYTHON: &str = r#"
mkdir -p "$target/pkg" "$target/pkg-1.dist-info" "$target/bin"
echo "built = '$what'" > "$target/pkg/__init__.py"
: > "$target/.lock"
printf '#!/home/somebody/venv/bin/python\n' > "$target/bin/pkg"
cd "$target/pkg-1.dist-info"
echo "Name: pkg" > METADATA
echo "$0" > INSTALLER
: > REQUESTED
echo '{"url": "https://me:password-of-url@host/pkg.whl"}' > direct_url.json
printf '%s,sha256=0,1\n' ../../bin/pkg pkg/__init__.py pkg-1.dist-info/INSTALLER > RECORD
printf '%s,sha256=0,1\n' pkg-1.dist-info/METADATA pkg-1.dist-info/direct_url.json >> RECORD
echo pkg-1.dist-info/RECORD,, >> RECORD
"#;

impl Bench {
    fn new() -> Self {
        let registry = FakeRegistry::start();
        let images = ["amd64", "arm64"].map(|name| lambda_base(Format::Docker, name));
        TestIndex::of(Format::Docker, images.to_vec()).put(
            &registry,
            "lambda/python",
            Some("3.12"),
        );
        let mut world = World::new();
        world.call(registry.host(), "REGISTRY");
        Self { world, registry }
    }

    /// A context with this layer, and this lock file.
    fn app(&self, layer: &str, lock: &str, content: &str) {
        let sandbox = &self.world.sandbox;
        sandbox.write(format!("app/{lock}"), content);
        sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"{}/lambda/python:3.12\"\nplatforms = [\"arm64\"]\nhandler = \"app.handler\"\n\
                 [[layer]]\nname = \"dependencies\"\n{layer}\n",
                self.registry.host()
            ),
        );
    }

    /// A program on PATH, in `sh`. It notes every call but questions for its version.
    fn tool(&self, name: &str, version: &str, script: &str) {
        let calls = self.calls_file(name);
        let script = format!(
            "#!/bin/sh\nPATH=/usr/bin:/bin\ncase \"$1 $2\" in --version*|'-c '*pip.__version__*) \
             echo '{version}'; exit;; esac\nprintf '%s\\n' 'CALL' \"$@\" >> '{}'\n\
             for word; do case \"$word\" in --target=*) target=${{word#--target=}};; \
             --python-platform=*) what=${{word#*=}};; --cpu=*) what=${{word#*=}};; esac; done\n{script}",
            calls.display()
        );
        let path = self.world.sandbox.root().join("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    fn uv(&self) {
        self.tool("uv", "uv 1.0", INSTALL_PYTHON);
    }

    fn calls_file(&self, name: &str) -> PathBuf {
        self.world.sandbox.root().join(format!("{name}.calls"))
    }

    /// The arguments of every call, one a line; paths of a run have no random names.
    fn calls(&self, name: &str) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.calls_file(name)).unwrap_or_default();
        text.split("CALL\n")
            .skip(1)
            .map(|call| call.lines().map(|line| self.world.shown(line)).collect())
            .collect()
    }

    fn tierce(&self, arguments: &[&str]) -> Command {
        let bin = self.world.sandbox.root().join("bin");
        self.world.tierce(arguments).env("PATH", bin)
    }

    fn built(&self, arguments: &[&str]) -> LoadedImage {
        self.world.built_as(self.tierce(arguments))
    }

    fn fails(&self, arguments: &[&str]) -> String {
        self.world.fails_as(1, self.tierce(arguments))
    }
}

/// Every file below `directory` that has `text` in it.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_with(&path, text));
        } else if let Ok(bytes) = fs::read(&path) {
            let has = bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes());
            found.extend(has.then_some(path));
        }
    }
    found
}

fn filtered(bind: impl FnOnce()) {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"/run-\w+/resolve-\w+", "/[RUN]");
    settings.bind(bind);
}

#[test]
fn uv_is_told_what_the_base_has() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    let image = bench.built(&["build", "app"]);
    filtered(|| {
        insta::assert_snapshot!(bench.calls("uv").concat().join("\n"), @"
        pip
        install
        --system
        --no-progress
        --link-mode=copy
        --no-compile-bytecode
        --only-binary=:all:
        --python-platform=aarch64-manylinux_2_34
        --python-version=3.12
        --target=[SANDBOX]/cache/tierce/scratch/[RUN]/made/tree
        --requirement=[SANDBOX]/work/app/requirements.txt
        --deps
        ");
    });
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/pkg
    d 0755 var/task/pkg-1.dist-info
    f 0644 var/task/pkg-1.dist-info/METADATA 10 bytes
    f 0644 var/task/pkg-1.dist-info/RECORD 88 bytes
    f 0644 var/task/pkg/__init__.py 33 bytes
    ");
    insta::assert_snapshot!(file_of(&image, "var/task/pkg-1.dist-info/RECORD"), @"
    pkg-1.dist-info/METADATA,sha256=0,1
    pkg-1.dist-info/RECORD,,
    pkg/__init__.py,sha256=0,1
    ");
}

#[test]
fn pip_stands_in_for_uv_and_makes_the_same_layer() {
    let bench = Bench::new();
    bench.app(
        "python = \"-r.txt\"\nto = \"/opt/python\"\nglibc = \"2.26\"\npython-version = \"3.9\"",
        "-r.txt",
        "pkg==1 --hash=sha256:0\n",
    );
    // Something that both are told alike tells the trees apart.
    bench.tool("python3", "23.0", &format!("what=same\n{INSTALL_PYTHON}"));
    let by_pip = bench.built(&["build", "app"]);
    let mut call = bench.calls("python3").concat();
    let program = call.iter().position(|word| word == "3.9").unwrap();
    assert!(call[1].contains("Runs pip as if"), "{call:?}");
    call.drain(..program);
    filtered(|| {
        insta::assert_snapshot!(call.join("\n"), @"
        3.9
        aarch64
        install
        --disable-pip-version-check
        --no-input
        --no-warn-conflicts
        --progress-bar=off
        --no-compile
        --only-binary=:all:
        --implementation=cp
        --platform=manylinux_2_17_aarch64
        --platform=manylinux2014_aarch64
        --platform=linux_aarch64
        --python-version=3.9
        --target=[SANDBOX]/cache/tierce/scratch/[RUN]/made/tree
        --require-hashes
        --requirement=[SANDBOX]/work/app/-r.txt
        ");
    });
    assert!(has(&by_pip, "opt/python/pkg/__init__.py"));
    bench.tool("uv", "uv 1.0", &format!("what=same\n{INSTALL_PYTHON}"));
    let by_uv = bench.built(&["build", "app"]);
    assert_eq!(bench.calls("uv").len(), 1);
    assert_eq!(by_pip.manifest["layers"], by_uv.manifest["layers"]);
}

#[test]
fn a_tool_runs_only_when_something_changed() {
    let bench = Bench::new();
    bench.uv();
    let layer = "python = \"requirements.txt\"";
    bench.app(layer, "requirements.txt", "-r more.txt\n");
    bench.world.sandbox.write("app/more.txt", "pkg==1\n");
    let runs = |arguments: &[&str]| {
        let before = bench.calls("uv").len();
        let image = bench.built(arguments);
        (bench.calls("uv").len() - before, image)
    };
    let (count, first) = runs(&["build", "app"]);
    assert_eq!(count, 1);
    let (count, second) = runs(&["build", "app"]);
    assert_eq!(
        (count, second.manifest_bytes),
        (0, first.manifest_bytes.clone())
    );
    // Another checkout, and other code beside it.
    copy_directory(&bench.world.path("app"), &bench.world.path("fresh"));
    bench.world.sandbox.write("fresh/app.py", "");
    let (count, fresh) = runs(&["build", "fresh"]);
    assert_eq!((count, fresh.manifest_bytes), (0, first.manifest_bytes));
    let offline = bench.tierce(&["build", "fresh", "--offline", "-o=store:fresh:1"]);
    drop(offline.run().assert_success());
    assert_eq!(bench.calls("uv").len(), 1);
    // What another file says counts, and so do platform, tool, Python and the index.
    bench.world.sandbox.write("app/more.txt", "pkg==2\n");
    assert_eq!(runs(&["build", "app"]).0, 1);
    assert_eq!(runs(&["build", "app", "--platform=amd64"]).0, 1);
    bench.tool("uv", "uv 1.1", INSTALL_PYTHON);
    assert_eq!(runs(&["build", "app"]).0, 1);
    let indexed = |url: &str| {
        let before = bench.calls("uv").len();
        let command = bench.tierce(&["build", "app"]).env("UV_INDEX_URL", url);
        drop(bench.world.built_as(command));
        bench.calls("uv").len() - before
    };
    assert_eq!(indexed("https://me:first@host/simple"), 1);
    assert_eq!(
        indexed("https://me:second@host/simple"),
        0,
        "a new password"
    );
    bench.app(
        &format!("{layer}\npython-version = \"3.13\""),
        "requirements.txt",
        "-r more.txt\n",
    );
    assert_eq!(runs(&["build", "app"]).0, 1);
    assert_eq!(runs(&["build", "app", "--no-cache"]).0, 1);
    assert_eq!(runs(&["build", "app"]).0, 0);
}

#[test]
fn what_steers_a_tool_from_outside_counts() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        // As Windows and people write it.
        "\u{feff}--pre -r more.txt\r\npkg==${VERSION}\r\n",
    );
    let sandbox = &bench.world.sandbox;
    sandbox.write("app/more.txt", "more==1\n");
    let runs = |version: &str| {
        let before = bench.calls("uv").len();
        let command = bench.tierce(&["build", "app"]).env("VERSION", version);
        drop(bench.world.built_as(command));
        bench.calls("uv").len() - before
    };
    assert_eq!([runs("1"), runs("1"), runs("2"), runs("1")], [1, 0, 1, 0]);
    sandbox.write("app/more.txt", "more==2\n");
    assert_eq!(
        [runs("1"), runs("1")],
        [1, 0],
        "a file behind another option"
    );
    let settings = sandbox.config().join("uv/uv.toml");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    let index = |text: &str| fs::write(&settings, format!("index-url = \"{text}\"\n")).unwrap();
    index("https://me:first@host/simple");
    assert_eq!([runs("1"), runs("1")], [1, 0], "settings of the user");
    index("https://me:second@host/simple");
    assert_eq!(runs("1"), 0, "a new password");
    sandbox.write("app/uv.toml", "prerelease = \"allow\"\n");
    assert_eq!([runs("1"), runs("1")], [1, 0], "settings of the project");
}

#[test]
fn of_packages_with_one_file_the_first_by_name_wins() {
    let bench = Bench::new();
    // uv installs with several threads: it may be either.
    let install = "winner=beta\n\
         for word; do case \"$word\" in --reinstall-package=*) winner=${word#*=};; esac; done\n\
         mkdir -p \"$target/tests\"; echo \"$winner\" > \"$target/tests/__init__.py\"\n\
         for name in alpha beta; do mkdir -p \"$target/$name-1.dist-info\"\n\
         echo \"tests/__init__.py,sha256=$name,1\" > \"$target/$name-1.dist-info/RECORD\"; done\n";
    bench.tool("uv", "uv 1.0", install);
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "alpha\nbeta\n",
    );
    let image = bench.built(&["build", "app"]);
    assert_eq!(file_of(&image, "var/task/tests/__init__.py"), "alpha\n");
    let calls = bench.calls("uv");
    let again: Vec<_> = calls.iter().map(|call| call.last().unwrap()).collect();
    assert_eq!(
        again,
        [
            "--deps",
            "--reinstall-package=beta",
            "--reinstall-package=alpha"
        ]
    );
}

#[test]
fn a_tree_that_was_damaged_is_made_again() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    let first = bench.built(&["build", "app"]);
    let kept = bench.world.sandbox.cache().join("tierce");
    for file in files_with(&kept, "built = '") {
        // As long as before.
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("built", "bUilt")).unwrap();
    }
    let again = bench.built(&["build", "app"]);
    assert_eq!(bench.calls("uv").len(), 2);
    assert_eq!(first.manifest_bytes, again.manifest_bytes);
    let verify = || bench.world.ok(&["cache", "verify"]);
    assert!(verify().stdout().contains(" and 1 tree ("));
    for file in files_with(&kept, "built = '") {
        fs::write(&file, "").unwrap();
    }
    let verified = verify();
    assert!(verified.stderr().contains(" was damaged and is removed"));
    assert!(
        verified.stdout().contains("; damaged: 0 files and 1 tree"),
        "{verified:?}"
    );
    drop(bench.built(&["build", "app"]));
    assert_eq!(bench.calls("uv").len(), 3);
}

#[test]
fn every_platform_gets_its_own() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    let arguments = ["build", "app", "--platform=amd64,arm64", "-o=oci:both:it"];
    drop(bench.tierce(&arguments).run().assert_success());
    for (name, machine) in [("amd64", "x86_64"), ("arm64", "aarch64")] {
        let tag = format!("it-{name}");
        let image = LoadedImage::from_layout(&bench.world.path("both"), Some(&tag)).unwrap();
        assert_eq!(
            file_of(&image, "var/task/pkg/__init__.py"),
            format!("built = '{machine}-manylinux_2_34'\n")
        );
    }
}

#[test]
fn files_of_the_layer_override_and_patterns_leave_out() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"\nexclude = [\"**/RECORD\"]\n\
         add = [{ from = \"own.py\", to = \"/var/task/pkg/__init__.py\" }]",
        "requirements.txt",
        "pkg==1\n",
    );
    bench.world.sandbox.write("app/own.py", "mine\n");
    // What is said of the context does not count for a cache in it.
    bench.world.sandbox.write("app/.dockerignore", ".cache\n");
    let command = bench
        .tierce(&["build", "app"])
        .env("TIERCE_CACHE", bench.world.path("app/.cache"));
    let image = bench.world.built_as(command);
    assert_eq!(file_of(&image, "var/task/pkg/__init__.py"), "mine\n");
    assert!(has(&image, "var/task/pkg-1.dist-info/METADATA"));
    assert!(!has(&image, "var/task/pkg-1.dist-info/RECORD"));
}

#[test]
fn without_the_network_what_is_not_in_the_cache_is_missing() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    drop(bench.built(&["build", "app"]));
    bench
        .world
        .sandbox
        .write("app/requirements.txt", "pkg==2\n");
    insta::assert_snapshot!(bench.fails(&["build", "app", "--offline"]), @"
    error: could not make the layer `dependencies`
      caused by: --offline: what `requirements.txt` leads to for linux/arm64, Python 3.12, glibc 2.34 is not in the cache
    hint: run the same build once without --offline
    ");
}

#[test]
fn a_failure_is_told_in_the_terms_of_the_user_and_without_secrets() {
    let bench = Bench::new();
    bench.tool(
        "uv",
        "uv 1.0",
        "echo 'Looking in https://me:password-of-url@host/simple'\n\
         echo \"with $UV_INDEX_TEAM_PASSWORD and secret-of-netrc\"\n\
         echo 'ERROR: Could not find a version that satisfies pkg==1 (from versions: none)' >&2\n\
         echo 'ERROR: No matching distribution found for pkg==1 at https://me:password-of-url@host/x?signature=abc' >&2\n\
         exit 1\n",
    );
    fs::write(
        bench.world.sandbox.home().join(".netrc"),
        "machine host login me password secret-of-netrc\n",
    )
    .unwrap();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "--index-url https://me:password-of-url@host/simple\npkg==1\n",
    );
    let command = |more: &[&str]| {
        let secret = "secret-of-environment";
        bench
            .tierce(&[&["build", "app", "--platform=arm64"], more].concat())
            .env("UV_INDEX_TEAM_PASSWORD", secret)
    };
    let said = bench.world.fails_as(1, command(&[]));
    insta::assert_snapshot!(said, @"
    resolving `requirements.txt` for linux/arm64, Python 3.12, glibc 2.34 with uv
    Looking in https://****@host/simple
    with **** and ****
    ERROR: Could not find a version that satisfies pkg==1 (from versions: none)
    ERROR: No matching distribution found for pkg==1 at https://****@host/x?****
    error: could not make the layer `dependencies`
      caused by: `uv` could not resolve `requirements.txt` for linux/arm64, Python 3.12, glibc 2.34 (exit status: 1); its last words:
        Looking in https://****@host/simple
        with **** and ****
        ERROR: Could not find a version that satisfies pkg==1 (from versions: none)
        ERROR: No matching distribution found for pkg==1 at https://****@host/x?****
    hint: there is no wheel for that Python, processor and glibc (source packages are not built), no package of that name, or an index that lets nobody in: look for a slip in the name, and at `python-version`, `glibc` and credentials
    ");
    let quiet = bench.world.fails_as(1, command(&["-q"]));
    assert!(quiet.starts_with("error: could not make"), "{quiet}");
}

#[test]
fn nothing_secret_is_kept() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "--index-url https://me:password-of-url@host/simple\npkg==1\n",
    );
    let output = bench
        .tierce(&["build", "app", "-vv", "-o=oci:built:it"])
        .env("PIP_EXTRA_INDEX_URL", "https://me:password-of-url@host/")
        .run()
        .assert_success();
    assert!(!output.stderr().contains("password-of-url"), "{output:?}");
    let image = LoadedImage::from_layout(&bench.world.path("built"), Some("it")).unwrap();
    for tar in &image.tars {
        assert!(!String::from_utf8_lossy(tar).contains("password-of-url"));
    }
    // Arguments are everybody's to see.
    let calls = bench.calls("uv").concat().join("\n");
    assert!(!calls.contains("password-of-url"), "{calls}");
    for directory in [bench.world.sandbox.cache(), bench.world.path("built")] {
        assert_eq!(
            files_with(&directory, "password-of-url"),
            [] as [PathBuf; 0]
        );
    }
}

#[test]
fn tools_that_are_not_there_are_named() {
    let bench = Bench::new();
    let said = |layer: &str, lock: &str, content: &str| {
        bench.app(layer, lock, content);
        bench.fails(&["build", "app"])
    };
    insta::assert_snapshot!(said("python = \"requirements.txt\"", "requirements.txt", "pkg"), @"
    error: could not make the layer `dependencies`
      caused by: there is neither `uv` nor a `python3` with pip on PATH
    hint: install one of them: `pip install uv`, or python3-pip of the distribution
    ");
    bench.world.sandbox.write("app/package.json", "{}");
    insta::assert_snapshot!(said("node = \"package-lock.json\"", "package-lock.json", "{}"), @"
    error: could not make the layer `dependencies`
      caused by: the lock is read by npm, which is not on PATH
    hint: install Node with npm
    ");
    bench.tool("python3", "23.0", "exit 1");
    bench.world.sandbox.write("app/pyproject.toml", "");
    insta::assert_snapshot!(said("python = \"uv.lock\"", "uv.lock", ""), @"
    error: could not make the layer `dependencies`
      caused by: `uv.lock` is read by uv, which is not on PATH
    hint: install it with `pip install uv`, or name a file of requirements that `uv export` has written
    ");
    insta::assert_snapshot!(said("python = \"poetry.lock\"", "poetry.lock", ""), @"
    error: could not make the layer `dependencies`
      caused by: `poetry.lock` is read by poetry, which is not on PATH
    hint: install it with `pip install poetry poetry-plugin-export`, or name a file of requirements that `poetry export` has written
    ");
    insta::assert_snapshot!(said("python = \"requirements.txt\"", "requirements.txt", "-e ./lib\n"), @"
    error: could not make the layer `dependencies`
      caused by: [SANDBOX]/work/app/requirements.txt:1: `./lib` is not a wheel: it would be built for this machine, by running its code
    hint: a wheel of it that was built beforehand is taken: `pip wheel --no-deps --wheel-dir wheels …`, and `./wheels/NAME.whl` in its place; code of the project goes into the image with `add`
    ");
}

#[test]
fn a_base_that_does_not_say_which_python_it_has_must_be_helped() {
    let bench = Bench::new();
    bench.uv();
    lambda_base(Format::Docker, "arm64").put(&bench.registry, "team/base", Some("1"));
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    let base = format!("--base={}/team/base:1", bench.registry.host());
    let arguments = ["build", "app", &base];
    insta::assert_snapshot!(bench.fails(&arguments), @r#"
    error: could not make the layer `dependencies`
      caused by: the base does not say which Python it has
    hint: say it in tierce.toml, in the layer `dependencies`: `python-version = "3.13"`
    "#);
    bench.app(
        "python = \"requirements.txt\"\npython-version = \"3.13\"",
        "requirements.txt",
        "pkg==1\n",
    );
    drop(bench.built(&arguments));
    let call = bench.calls("uv").concat();
    // Wheels for the oldest glibc run on any.
    assert!(call.contains(&"--python-platform=aarch64-manylinux_2_17".to_owned()));
}

#[test]
fn lock_files_are_turned_into_requirements_by_their_own_tools() {
    let bench = Bench::new();
    let export = format!(
        "for word; do case \"$word\" in --output-file=*|--output=*) \
         echo 'pkg==1 --hash=sha256:0' > \"${{word#*=}}\"; exit;; esac; done\n{INSTALL_PYTHON}"
    );
    bench.tool("uv", "uv 1.0", &export);
    bench.tool("poetry", "Poetry 2.0", &export);
    bench
        .world
        .sandbox
        .write("app/pyproject.toml", "[project]\nname = \"app\"\n");
    bench.app("python = \"pyproject.toml\"", "uv.lock", "version = 1\n");
    let image = bench.built(&["build", "app"]);
    assert!(has(&image, "var/task/pkg/__init__.py"));
    let calls = bench.calls("uv");
    assert_eq!(calls.len(), 2);
    filtered(|| {
        insta::assert_snapshot!(calls[0].join("\n"), @"
        export
        --quiet
        --frozen
        --no-default-groups
        --no-emit-project
        --format=requirements-txt
        --project=[SANDBOX]/work/app
        --output-file=[SANDBOX]/cache/tierce/scratch/[RUN]/requirements.txt
        ");
    });
    assert!(calls[1].contains(&"--require-hashes".to_owned()));
    drop(bench.built(&["build", "app"]));
    assert_eq!(bench.calls("uv").len(), 2, "neither is asked again");
    fs::remove_file(bench.world.path("app/uv.lock")).unwrap();
    bench.app("python = \"pyproject.toml\"", "poetry.lock", "");
    drop(bench.built(&["build", "app"]));
    filtered(|| {
        insta::assert_snapshot!(bench.calls("poetry").concat().join("\n"), @"
        export
        --no-interaction
        --no-ansi
        --format=requirements.txt
        --output=[SANDBOX]/cache/tierce/scratch/[RUN]/requirements.txt
        ");
    });
}

/// What npm leaves: a package, a link to its program, and notes for itself.
const INSTALL_NODE: &str = r#"
mkdir -p node_modules/pkg node_modules/.bin
cat package.json > node_modules/pkg/seen.json
echo "module.exports = '$what'" > node_modules/pkg/index.js
ln -s ../pkg/index.js node_modules/.bin/pkg
echo '{}' > node_modules/.package-lock.json
test ! -e .npmrc || grep -c token-of-npm .npmrc
"#;

#[test]
fn npm_installs_for_the_target_and_without_scripts() {
    let bench = Bench::new();
    bench.tool("npm", "11.0.0", INSTALL_NODE);
    bench
        .world
        .sandbox
        .write("app/package.json", r#"{"name": "app"}"#);
    bench
        .world
        .sandbox
        .write("app/.npmrc", "//host/:_authToken=token-of-npm\n");
    let lock = r#"{"lockfileVersion": 3, "packages": {"": {}}}"#;
    bench.app("node = \"package-lock.json\"", "package-lock.json", lock);
    let image = bench.built(&["build", "app"]);
    insta::assert_snapshot!(bench.calls("npm").concat().join("\n"), @"
    ci
    --omit=dev
    --no-audit
    --no-fund
    --loglevel=notice
    --ignore-scripts
    --bin-links=true
    --global=false
    --include=prod
    --install-links=false
    --install-strategy=hoisted
    --cpu=arm64
    --os=linux
    --libc=glibc
    ");
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/node_modules
    d 0755 var/task/node_modules/.bin
    d 0755 var/task/node_modules/pkg
    l 0777 var/task/node_modules/.bin/pkg -> ../pkg/index.js
    f 0644 var/task/node_modules/pkg/index.js 25 bytes
    f 0644 var/task/node_modules/pkg/seen.json 14 bytes
    ");
    assert_eq!(
        files_with(&bench.world.sandbox.cache(), "token-of-npm"),
        [] as [PathBuf; 0]
    );
    drop(bench.built(&["build", "app"]));
    assert_eq!(bench.calls("npm").len(), 1);
    // A new token is no new dependency.
    bench
        .world
        .sandbox
        .write("app/.npmrc", "//host/:_authToken=token-of-npm-2\n");
    drop(bench.built(&["build", "app"]));
    assert_eq!(bench.calls("npm").len(), 1);
}

#[test]
fn a_lock_that_was_made_for_one_machine_is_told_of() {
    let bench = Bench::new();
    bench.tool("npm", "11.0.0", INSTALL_NODE);
    bench.world.sandbox.write("app/package.json", "{}");
    let lock = r#"{"packages": {
        "node_modules/fast": {"optionalDependencies": {"@fast/linux-arm64": "1", "@fast/linux-x64": "1"}},
        "node_modules/@fast/linux-x64": {"optional": true}}}"#;
    bench.app("node = \"package-lock.json\"", "package-lock.json", lock);
    let told = "warning: `fast` has `@fast/linux-arm64` for this target, and the lock does not: \
                npm leaves such packages out where it finds those of another machine";
    for (platform, is_told) in [("arm64", true), ("amd64", false)] {
        let platform = format!("--platform={platform}");
        let output = bench
            .tierce(&["build", "app", &platform, "-o=store:x:1"])
            .run();
        let said = output.assert_success().stderr();
        assert_eq!(said.contains(told), is_told, "{said}");
    }
}

#[test]
fn a_file_that_npm_could_not_write_is_no_success() {
    let bench = Bench::new();
    let warning = "npm warn tar TAR_ENTRY_ERROR ENOSPC: no space left on device, write";
    bench.tool(
        "npm",
        "11.0.0",
        &format!("{INSTALL_NODE}\necho '{warning}' >&2"),
    );
    bench.world.sandbox.write("app/package.json", "{}");
    let lock = r#"{"packages": {}}"#;
    bench.app("node = \"package-lock.json\"", "package-lock.json", lock);
    let said = bench.fails(&["build", "app"]);
    insta::assert_snapshot!(said, @"
    resolving `package-lock.json` for linux/arm64 with npm
    npm warn tar TAR_ENTRY_ERROR ENOSPC: no space left on device, write
    error: could not make the layer `dependencies`
      caused by: `npm` could not write every file of a package, and calls that a success
      caused by: npm warn tar TAR_ENTRY_ERROR ENOSPC: no space left on device, write
    hint: free some space; TIERCE_CACHE and TIERCE_STORE move the files to another disk
    ");
    // Nothing of it is kept.
    bench.tool("npm", "11.0.0", INSTALL_NODE);
    drop(bench.built(&["build", "app"]));
    assert_eq!(bench.calls("npm").len(), 2);
}

#[test]
fn what_npm_cannot_do_for_the_target_is_refused() {
    let bench = Bench::new();
    bench.world.sandbox.write("app/package.json", "{}");
    let lock = r#"{"packages": {}}"#;
    let (here, other) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    };
    let other = format!("--platform={other}");
    let here = format!("--platform={here}");
    bench.tool("npm", "9.2.0", INSTALL_NODE);
    bench.app("node = \"package-lock.json\"", "package-lock.json", lock);
    let said = bench.fails(&["build", "app", &other]);
    assert!(
        said.contains("npm 9.2.0 takes packages for this machine alone"),
        "{said}"
    );
    assert!(said.contains("hint: npm 10.3 and later"), "{said}");
    assert_eq!(bench.calls("npm").len(), 0);
    drop(bench.built(&["build", "app", &here]));

    bench.tool("npm", "11.0.0", INSTALL_NODE);
    bench.app(
        "node = \"package-lock.json\"\nscripts = true",
        "package-lock.json",
        lock,
    );
    let said = bench.fails(&["build", "app", &other]);
    assert!(
        said.contains("`scripts = true` runs code of packages"),
        "{said}"
    );
    drop(bench.built(&["build", "app", &here]));
    let calls = bench.calls("npm");
    assert!(
        !calls[1].contains(&"--ignore-scripts".to_owned()),
        "{calls:?}"
    );

    let lock = r#"{"packages": {"node_modules/own": {"resolved": "own", "link": true}}}"#;
    bench.app("node = \"package-lock.json\"", "package-lock.json", lock);
    insta::assert_snapshot!(bench.fails(&["build", "app"]), @r#"
    error: could not make the layer `dependencies`
      caused by: `own` is a folder of the project and not a package of a registry
    hint: publish it, or bundle the function with it (esbuild, ncc) and add the bundle: `add = [{ from = "dist/", to = … }]`
    "#);
}

#[test]
fn keys_that_do_not_fit_are_pointed_at() {
    let bench = Bench::new();
    let said = |layer: &str| {
        bench.app(layer, "requirements.txt", "");
        bench.fails(&["build", "app"])
    };
    for (layer, reason) in [
        ("glibc = \"2.34\"", "belongs to its `python` or `binary`"),
        ("scripts = true", "belongs to its `node`"),
        (
            "python = \"requirements.txt\"\nnode = \"requirements.txt\"",
            "8:8: a layer has dependencies of one language",
        ),
        (
            "python = \"requirements.txt\"\ntar = \"requirements.txt\"",
            "7:10: a layer has either an archive or dependencies",
        ),
        (
            "python = \"../secret\"",
            "7:10: `../secret` is outside the context",
        ),
        ("python = \"gone.txt\"", "7:10: `gone.txt` is not there"),
        (
            "python = \"requirements.txt\"\nverbatim = true",
            "belong to its archive",
        ),
        (
            "python = \"requirements.txt\"\npython-version = \"2.7\"",
            "8:18: `2.7` is not a version of Python 3",
        ),
        (
            "python = \"requirements.txt\"\nglibc = \"2.5\"",
            "8:9: there are no wheels for glibc 2.5",
        ),
        ("pyton = \"requirements.txt\"", "did you mean `python`?"),
    ] {
        let said = said(layer);
        assert!(said.contains(reason), "{layer}: {said}");
    }
}

#[test]
fn the_cache_counts_and_prunes_trees() {
    let bench = Bench::new();
    bench.uv();
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    drop(bench.built(&["build", "app"]));
    let info = || bench.world.ok(&["cache", "info", "--json"]).json();
    assert_eq!(info()["resolved"]["trees"], 1);
    let text = bench.world.ok(&["cache", "info"]).stdout();
    assert!(text.contains("\nresolved 1 tree ("), "{text}");
    bench.world.runs(&["cache", "prune", "--to=0"]);
    assert_eq!(info()["bytes"], 0);
    drop(bench.built(&["build", "app"]));
    assert_eq!(bench.calls("uv").len(), 2);
}

/// A stand-in that waits until it is let go, or for ever.
const WAIT: &str = "echo waiting\nread -r word < \"$HOME/gate\"\n";

fn gate(bench: &Bench) -> PathBuf {
    let path = bench.world.sandbox.home().join("gate");
    let made = bench.world.sandbox.command("mkfifo").arg(&path).run();
    drop(made.assert_success());
    path
}

#[test]
fn a_build_that_is_ended_takes_the_tool_with_it() {
    let bench = Bench::new();
    drop(gate(&bench));
    let note = bench.world.sandbox.root().join("pids");
    // One that was started by another, as by a script around it, ends too.
    let inner = format!("({WAIT}) & echo $! >> \"$note\"; wait");
    bench.tool(
        "uv",
        "uv 1.0",
        &format!("note='{}'\necho $$ > \"$note\"\n{inner}\n", note.display()),
    );
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    for (signal, code) in [("-TERM", Some(143)), ("-KILL", None)] {
        let mut child = bench.tierce(&["build", "app", "--progress=plain"]).spawn();
        wait_for(&mut child, "waiting");
        let (ended, stdout, _) = bench.world.interrupt(child, signal);
        assert_eq!((ended, stdout.as_str()), (code, ""));
        if signal == "-TERM" {
            bench.world.assert_no_litter();
        }
        let pids = fs::read_to_string(&note).unwrap();
        for pid in pids.lines() {
            assert!(ends_soon(pid), "{signal}: the tool goes on");
        }
    }
    // What the killed one left is no tree, and in nobody's way.
    bench.uv();
    assert!(has(
        &bench.built(&["build", "app"]),
        "var/task/pkg/__init__.py"
    ));
}

/// Whether a process that was sent its end comes to it.
fn ends_soon(pid: &str) -> bool {
    (0..500).any(|_| {
        let state = fs::read_to_string(format!("/proc/{pid}/stat"));
        let is_gone = state.map_or(true, |state| state.contains(") Z "));
        if !is_gone {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        is_gone
    })
}

#[test]
fn two_builds_at_once_run_the_tool_once() {
    let bench = Bench::new();
    let gate = gate(&bench);
    bench.tool("uv", "uv 1.0", &format!("{WAIT}{INSTALL_PYTHON}"));
    bench.app(
        "python = \"requirements.txt\"",
        "requirements.txt",
        "pkg==1\n",
    );
    let build = |place: &str| bench.tierce(&["build", "app", "-o", place]).spawn();
    let mut first = build("oci:first:it");
    wait_for(&mut first, "waiting");
    let second = build("oci:second:it");
    fs::write(gate, "go\n").unwrap();
    for child in [first, second] {
        let (code, _, stderr) = ended(child);
        assert_eq!(code, Some(0), "{stderr}");
    }
    assert_eq!(bench.calls("uv").len(), 1);
    let image = |name: &str| LoadedImage::from_layout(&bench.world.path(name), Some("it"));
    assert_eq!(
        image("first").unwrap().manifest_bytes,
        image("second").unwrap().manifest_bytes
    );
}

/// Reads what a run says until `line` comes.
fn wait_for(child: &mut std::process::Child, line: &str) {
    use std::io::Read as _;
    let stderr = child.stderr.as_mut().unwrap();
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said)
        .lines()
        .any(|said| said == line)
    {
        assert_eq!(
            stderr.read(&mut byte).unwrap(),
            1,
            "it ended early: {said:?}"
        );
        said.push(byte[0]);
    }
}
