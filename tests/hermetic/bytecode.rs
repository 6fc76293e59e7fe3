//! Python is compiled for layers that ask for it, with a stand-in in the place of the interpreter.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tierce_oci::Digest;
use tierce_testkit::check::LoadedImage;
use tierce_testkit::sandbox::Command;
use tierce_testkit::tree::Node;

use crate::support::{World, copy_directory, has, top_layer};

struct Bench {
    world: World,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            world: World::new(),
        };
        let sandbox = &bench.world.sandbox;
        sandbox.write("app/src/app.py", "import helper\n");
        sandbox.write("app/src/helper.py", "x = 1\n");
        sandbox.write("app/src/template.py", "broken {{ }}\n");
        bench.layer("bytecode = true\npython-version = \"3.12\"");
        fs::create_dir_all(sandbox.root().join("bin")).unwrap();
        bench
    }

    fn layer(&self, more: &str) {
        self.world.sandbox.write(
            "app/tierce.toml",
            format!(
                "[image]\nbase = \"scratch\"\nplatforms = [\"amd64\"]\ntarget = \"lambda\"\n\
                 [[layer]]\nname = \"code\"\nadd = [{{ from = \"src/\", to = \"/var/task/\" }}]\n{more}\n"
            ),
        );
    }

    /// A stand-in for Python: it says that it is `version`, and notes what it compiles.
    fn python(&self, name: &str, version: &str) {
        let minor = version.split('.').nth(1).unwrap();
        let calls = self.calls_file();
        let script = format!(
            r#"#!/bin/sh
PATH=/usr/bin:/bin
case "$*" in *MAGIC_NUMBER.hex*)
    echo 'cpython cpython-3{minor} {version}.final.0 cb0d0d0a'; echo "$0"; exit;;
esac
echo "CALL ${{*%%-c*}} $PYTHONPATH" >> '{calls}'
tr '\0' '\n' | while read -r source && read -r shown && read -r target; do
    echo "$shown" >> '{calls}'
    grep -q broken "$source" && continue
    {{ printf '\313\015\015\012\0\0\0\0\0\0\0\0\0\0\0\0'; printf '\363\001\0\0\0x'; }} > "$target"
done
"#,
            calls = calls.display()
        );
        self.program(name, &script);
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.world.sandbox.root().join("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    fn calls_file(&self) -> PathBuf {
        self.world.sandbox.root().join("python.calls")
    }

    /// What was compiled since this was asked last.
    fn calls(&self) -> String {
        let calls = fs::read_to_string(self.calls_file()).unwrap_or_default();
        let _ = fs::remove_file(self.calls_file());
        calls
    }

    fn tierce(&self, arguments: &[&str]) -> Command {
        let bin = self.world.sandbox.root().join("bin");
        let command = self.world.tierce(arguments).env("PATH", bin);
        command.env("PYTHONPATH", "/elsewhere")
    }

    fn built(&self, arguments: &[&str]) -> LoadedImage {
        self.world.built_as(self.tierce(arguments))
    }
}

fn bytes_of(image: &LoadedImage, path: &str) -> Vec<u8> {
    let tree = image.tree().unwrap();
    match &tree[path].node {
        Node::File(bytes) => bytes.clone(),
        other => panic!("{path} is {other:?}"),
    }
}

/// An unchecked `.pyc` around this code.
fn unchecked(source: &[u8], code: &[u8]) -> Vec<u8> {
    let hash = Digest::of(source);
    let header = b"\xcb\x0d\x0d\x0a\x01\0\0\0";
    [&header[..], &hash.as_bytes()[..8], code].concat()
}

#[test]
fn sources_without_compiled_code_get_some() {
    let bench = Bench::new();
    bench.python("python3.12", "3.12.1");
    let image = bench.built(&["build", "app"]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/__pycache__
    f 0644 var/task/__pycache__/app.cpython-312.pyc 22 bytes
    f 0644 var/task/__pycache__/helper.cpython-312.pyc 22 bytes
    f 0644 var/task/app.py 14 bytes
    f 0644 var/task/helper.py 6 bytes
    f 0644 var/task/template.py 13 bytes
    ");
    // Isolated, by the paths in the image, and without the mark.
    insta::assert_snapshot!(bench.calls(), @"
    CALL -I -S -B -W ignore  
    /var/task/app.py
    /var/task/helper.py
    /var/task/template.py
    ");
    let compiled = bytes_of(&image, "var/task/__pycache__/helper.cpython-312.pyc");
    assert_eq!(compiled, unchecked(b"x = 1\n", b"\x73\x01\0\0\0x"));
}

#[test]
fn nothing_is_compiled_twice() {
    let bench = Bench::new();
    bench.python("python3.12", "3.12.1");
    let first = bench.built(&["build", "app"]);
    assert_ne!(bench.calls(), "");
    let second = bench.built(&["build", "app"]);
    assert_eq!(second.manifest_bytes, first.manifest_bytes);
    // Another checkout, with other times, through a shell with another umask and another zone.
    copy_directory(&bench.world.path("app"), &bench.world.path("fresh"));
    let helper = bench.world.path("fresh/src/helper.py");
    let file = fs::File::options().write(true).open(helper);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = FileTimes::new().set_modified(time);
    file.unwrap().set_times(times).unwrap();
    let fresh = bench.tierce(&["build", "fresh"]).env("TZ", "Asia/Tokyo");
    let fresh = bench.world.built_as(fresh);
    assert_eq!(fresh.manifest["layers"], first.manifest["layers"]);
    assert_eq!(bench.calls(), "");
    // Without what was kept it comes out the same, whatever the umask and the number of threads.
    let script = "umask 077; exec \"$0\" build fresh --no-cache --jobs 3 \"$@\"";
    let bin = bench.world.sandbox.root().join("bin");
    let path = std::env::join_paths([&bin, Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
    let again = bench.world.shell(script).env("PATH", path);
    let again = bench.world.built_as(again);
    assert_eq!(again.manifest["layers"], first.manifest["layers"]);
    assert_ne!(bench.calls(), "");
    // Another release of the same Python may compile otherwise.
    bench.python("python3.12", "3.12.2");
    drop(bench.built(&["build", "app"]));
    assert_ne!(bench.calls(), "");
}

#[test]
fn compiled_code_that_would_be_used_stays() {
    let bench = Bench::new();
    bench.python("python3.12", "3.12.1");
    let source = bench.world.path("app/src/helper.py");
    let modified = source.metadata().unwrap().modified().unwrap();
    let modified = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let modified = u32::try_from(modified.as_secs()).unwrap().to_le_bytes();
    let pyc = |modified: &[u8], code: &[u8]| {
        let size = 6_u32.to_le_bytes();
        [b"\xcb\x0d\x0d\x0a\0\0\0\0", modified, &size[..], code].concat()
    };
    let cache = "app/src/__pycache__/helper.cpython-312.pyc";
    let own = b"\x73\x03\0\0\0own";
    bench.world.sandbox.write(cache, pyc(&modified, own));
    let compiled = "var/task/__pycache__/helper.cpython-312.pyc";
    let image = bench.built(&["build", "app"]);
    assert_eq!(bytes_of(&image, compiled), unchecked(b"x = 1\n", own));
    assert!(!bench.calls().contains("helper"));
    // What is stale is replaced, and nothing has to be said about it.
    bench.world.sandbox.write(cache, pyc(&[0; 4], own));
    let output = bench.tierce(&["build", "app", "-o=store:it:1"]).run();
    let said = output.assert_success().stderr();
    assert!(!said.contains("helper"), "{said}");
    let image = bench.built(&["build", "app"]);
    let made = unchecked(b"x = 1\n", b"\x73\x01\0\0\0x");
    assert_eq!(bytes_of(&image, compiled), made);
    assert!(bench.calls().contains("helper"));
    // Nobody compiles without being asked to.
    bench.layer("");
    let image = bench.built(&["build", "app"]);
    assert!(!has(&image, compiled));
    assert_eq!(bench.calls(), "");
}

#[test]
fn only_the_very_version_will_do() {
    let bench = Bench::new();
    let fails = || {
        let command = bench.tierce(&["build", "app"]);
        bench.world.fails_as(1, command)
    };
    bench.python("python3", "3.11.2");
    // A wrapper that leads nowhere.
    bench.program("python3.12", "#!/bin/sh\nexit 127\n");
    insta::assert_snapshot!(fails(), @"
    error: could not make the layer `code`
      caused by: `bytecode` needs Python 3.12 to compile with, and there is none on PATH
    hint: install it, as with `uv python install 3.12`, or leave `bytecode` out
    ");
    // One that uv knows of.
    bench.python("hidden", "3.12.7");
    let hidden = bench.world.sandbox.root().join("bin/hidden");
    // Without `--system` it would run the `.venv/bin/python` of the context.
    let only_system = "case \"$*\" in 'python find --system '*) ;; *) exit 1;; esac";
    bench.program(
        "uv",
        &format!("#!/bin/sh\n{only_system}\necho '{}'\n", hidden.display()),
    );
    drop(bench.built(&["build", "app"]));
    assert_ne!(bench.calls(), "");
    bench.python("python3", "3.12.3");
    bench.program("uv", "#!/bin/sh\nexit 1\n");
    drop(bench.built(&["build", "app"]));
    assert_ne!(bench.calls(), "");
    bench.layer("bytecode = true");
    insta::assert_snapshot!(fails(), @r#"
    error: could not make the layer `code`
      caused by: the base does not say which Python it has
    hint: say it in tierce.toml, in the layer `code`: `python-version = "3.13"`
    "#);
}

#[test]
fn an_interpreter_that_fails_is_told() {
    let bench = Bench::new();
    let who = "case \"$*\" in *MAGIC_NUMBER.hex*) \
        echo 'cpython cpython-312 3.12.1.final.0 cb0d0d0a'; exit;; esac";
    let fails = |script: &str| {
        bench.program(
            "python3.12",
            &format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{who}\n{script}\n"),
        );
        let said = bench.world.fails_as(1, bench.tierce(&["build", "app"]));
        let lines = said.lines().filter(|line| !line.starts_with("compiling"));
        lines.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(fails("echo Traceback >&2; echo MemoryError >&2; exit 1"), @"
    error: could not make the layer `code`
      caused by: Python 3.12 could not compile (exit status: 1): MemoryError
    ");
    insta::assert_snapshot!(fails(
        "tr '\\0' '\\n' | while read -r source && read -r shown && read -r target; do \
         echo '0123456789abcdefghij' > \"$target\"; done"
    ), @"
    error: could not make the layer `code`
      caused by: could not read what Python 3.12 made of `/var/task/app.py`
      caused by: it is not the code of a Python that is known
    hint: leave `bytecode` out for this Python
    ");
}

#[test]
fn what_cannot_be_compiled_is_refused() {
    let bench = Bench::new();
    bench.world.sandbox.write("app/it.tar", "");
    bench.world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\n[[layer]]\nname = \"x\"\ntar = \"it.tar\"\nverbatim = true\n\
         bytecode = true\n",
    );
    let said = bench.world.fails_as(1, bench.tierce(&["build", "app"]));
    assert!(
        said.contains("nothing of a `verbatim` tar is compiled"),
        "{said}"
    );
}
