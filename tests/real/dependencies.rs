//! Real pip, uv and npm: packages for both processors, and credentials that stay where they are.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tierce_testkit::check::{Checker, LoadedImage, assert_clean};
use tierce_testkit::process::require;
use tierce_testkit::sandbox::{self, Sandbox};
use tierce_testkit::tree::Node;

use crate::support::{architecture, minimal, python, repository, sandbox, target};

/// Writes a context with one layer of dependencies on the small base, which has no C library.
fn app(sandbox: &Sandbox, layer: &str) {
    let base = minimal("latest");
    sandbox.write(
        "app/tierce.toml",
        format!(
            "[image]\nbase = \"{base}\"\nplatforms = [\"amd64\"]\nhandler = \"app.handler\"\n\
             [lint]\nallow = [\"missing-library\"]\n\
             [[layer]]\nname = \"dependencies\"\n{layer}\n"
        ),
    );
}

/// Makes the base say that it is for the other processor: only documents are looked at.
fn base_for(sandbox: &Sandbox, architecture: &str) -> String {
    let image =
        tierce_testkit::images::lambda_base(tierce_testkit::images::Format::Docker, architecture);
    let name = format!("base-{architecture}");
    image.write_layout(&sandbox.path(&name), Some("1"));
    format!("oci:{}:1", sandbox.path(name).display())
}

/// A folder for PATH with nothing but Python in it, and uv when that is asked for.
pub(crate) fn tools(sandbox: &Sandbox, with_uv: bool) -> PathBuf {
    let folder = sandbox.path(if with_uv { "with-uv" } else { "with-pip" });
    fs::create_dir_all(&folder).unwrap();
    let mut programs = vec![(
        "python3",
        PathBuf::from(python("import sys; print(sys.executable)", [""; 0]).trim()),
    )];
    if with_uv {
        let own = target().join("uv/bin/uv");
        programs.push(("uv", if own.exists() { own } else { require("uv") }));
    }
    for (name, program) in programs {
        let path = folder.join(name);
        let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", program.display());
        fs::write(&path, script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, executable).unwrap();
    }
    folder
}

/// Lets a tool reach the indexes that the person who runs the tests has settled on.
pub(crate) fn with_own_indexes(mut command: sandbox::Command) -> sandbox::Command {
    for (name, value) in std::env::vars() {
        let lower = name.to_ascii_lowercase();
        let beginnings = ["pip_", "uv_", "npm_config_", "node_extra_ca", "ssl_cert"];
        if lower.ends_with("_proxy") || beginnings.iter().any(|start| lower.starts_with(start)) {
            command = command.env(&name, value);
        }
    }
    command
}

fn built(sandbox: &Sandbox, command: sandbox::Command, place: &str) -> LoadedImage {
    let output = command.args(["-o", &format!("oci:{place}:it")]).run();
    drop(output.assert_success());
    let directory = sandbox.path(place);
    assert_clean(&Checker::new().layout(&directory));
    LoadedImage::from_layout(&directory, Some("it")).unwrap()
}

/// The processor that a program or library is for, as ELF numbers it.
fn machine_of(image: &LoadedImage, named: impl Fn(&str) -> bool) -> u16 {
    let tree = image.tree().unwrap();
    let mut found = tree.iter().filter(|(path, _)| named(path));
    let (path, entry) = found.next().expect("there is such a file");
    assert_eq!(found.next().map(|(path, _)| path), None, "beside {path}");
    let Node::File(bytes) = &entry.node else {
        panic!("{path} is no file");
    };
    assert_eq!(&bytes[..4], b"\x7fELF", "{path}");
    u16::from_le_bytes([bytes[18], bytes[19]])
}

const MACHINES: [(&str, u16); 2] = [("amd64", 62), ("arm64", 183)];

#[test]
fn pip_and_uv_make_the_same_layer_for_either_processor() {
    let sandbox = sandbox();
    app(
        &sandbox,
        "python = \"requirements.txt\"\npython-version = \"3.12\"\nglibc = \"2.34\"",
    );
    // The second is for every processor but the target's, the third for every Python but its own.
    sandbox.write(
        "app/requirements.txt",
        "markupsafe==3.0.2\n\
         six==1.17.0; platform_machine != 'x86_64' and platform_machine != 'aarch64'\n\
         tomli==2.0.1; python_version < '3.12'\n\
         typing_extensions==4.12.2; python_version == '3.12'\n",
    );
    for (architecture, machine) in MACHINES {
        let base = base_for(&sandbox, architecture);
        let platform = format!("--platform={architecture}");
        let mut layers = Vec::new();
        for with_uv in [false, true] {
            let arguments = ["build", "app", "--base", &base, &platform];
            let path = tools(&sandbox, with_uv);
            let command = || with_own_indexes(sandbox.tierce(arguments)).env("PATH", &path);
            let image = built(&sandbox, command(), "built");
            let library = |path: &str| path.contains("/_speedups.") && path.contains(".so");
            assert_eq!(machine_of(&image, library), machine);
            let tree = image.tree().unwrap();
            let has = |name: &str| tree.keys().any(|path| path.as_str() == name);
            assert!(has("var/task/typing_extensions.py"));
            assert!(!has("var/task/six.py") && !has("var/task/tomli"));
            assert!(!tree.keys().any(|path| path.ends_with("/INSTALLER")));
            layers.push(image.manifest["layers"].clone());
            // Again, without any index.
            let offline = command().args(["--offline", "-o=store:again:1"]).run();
            let said = offline.assert_success().stderr();
            assert!(!said.contains("resolving"), "{said}");
        }
        assert_eq!(layers[0], layers[1], "{architecture}");
    }
}

/// Wheels that all bring a `tests` of their own, into a folder.
const CONTENDERS: &str = r#"
import base64, hashlib, sys, zipfile
def record(path, text):
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"{path},sha256={digest},{len(text)}\n"
for name in sys.argv[2:]:
    files = {
        f"{name}/__init__.py": "",
        "tests/__init__.py": name,
        f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files.update({f"{name}/m{number}.py": "pass\n" for number in range(100)})
    lines = [record(path, text) for path, text in files.items()]
    files[f"{name}-1.dist-info/RECORD"] = "".join(lines) + f"{name}-1.dist-info/RECORD,,\n"
    with zipfile.ZipFile(f"{sys.argv[1]}/{name}-1-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
"#;

#[test]
fn packages_with_one_file_make_the_same_layer_every_time() {
    let sandbox = sandbox();
    app(
        &sandbox,
        "python = \"requirements.txt\"\npython-version = \"3.12\"\nglibc = \"2.34\"",
    );
    let wheels = sandbox.path("app/wheels");
    fs::create_dir_all(&wheels).unwrap();
    let names = ["delta", "alpha", "echo", "bravo", "charlie"];
    let folder = [wheels.to_str().unwrap()];
    python(CONTENDERS, folder.into_iter().chain(names));
    let lines = names.map(|name| format!("./wheels/{name}-1-py3-none-any.whl\n"));
    sandbox.write("app/requirements.txt", lines.concat());
    let mut layers = Vec::new();
    // The first of uv's runs finds its own cache empty.
    for with_uv in [false, true, true, true] {
        let command = sandbox
            .tierce(["build", "app", "--no-cache"])
            .env("PATH", tools(&sandbox, with_uv));
        let image = built(&sandbox, with_own_indexes(command), "built");
        let tree = image.tree().unwrap();
        let winner = &tree["var/task/tests/__init__.py"].node;
        assert!(matches!(winner, Node::File(bytes) if bytes[..] == *b"alpha"));
        layers.push(image.manifest["layers"].clone());
    }
    assert!(layers.iter().all(|layer| *layer == layers[0]), "{layers:?}");
}

#[test]
fn settings_of_the_user_leave_nothing_out() {
    let sandbox = sandbox();
    app(
        &sandbox,
        "python = \"requirements.txt\"\npython-version = \"3.12\"\nglibc = \"2.34\"",
    );
    for (file, text) in [
        (
            "pip/pip.conf",
            "[install]\nno-deps = true\nuser = true\ncompile = true\n",
        ),
        (
            "uv/uv.toml",
            "[pip]\nno-deps = true\ncompile-bytecode = true\n",
        ),
    ] {
        let path = sandbox.config().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    sandbox.write("app/requirements.txt", "jinja2==3.1.4\n");
    for with_uv in [false, true] {
        let command = sandbox
            .tierce(["build", "app"])
            .env("PATH", tools(&sandbox, with_uv));
        let image = built(&sandbox, with_own_indexes(command), "built");
        let tree = image.tree().unwrap();
        assert!(tree.contains_key("var/task/markupsafe/__init__.py"));
        assert!(!tree.keys().any(|path| path.ends_with(".pyc")));
    }
}

#[test]
fn a_package_without_a_wheel_for_the_target_is_told() {
    let sandbox = sandbox();
    app(
        &sandbox,
        "python = \"requirements.txt\"\npython-version = \"3.12\"\nglibc = \"2.34\"",
    );
    // Of that time there are wheels for older Pythons alone.
    sandbox.write("app/requirements.txt", "markupsafe==1.1.1\n");
    for with_uv in [false, true] {
        let path = tools(&sandbox, with_uv);
        let command = sandbox.tierce(["build", "app"]).env("PATH", path);
        let said = with_own_indexes(command).run().assert_code(1).stderr();
        let hint = "hint: there is no wheel for that Python, processor and glibc";
        assert!(said.contains(hint), "{said}");
        assert!(said.contains("could not resolve `requirements.txt` for linux/amd64, Python 3.12"));
    }
}

#[test]
fn npm_installs_the_program_of_the_target() {
    let sandbox = sandbox();
    app(&sandbox, "node = \"package-lock.json\"");
    sandbox.write(
        "app/package.json",
        r#"{"name": "app", "dependencies": {"esbuild": "0.21.5"}}"#,
    );
    let npm = require("npm");
    let lock = sandbox.command(&npm).args([
        "install",
        "--package-lock-only",
        "--no-audit",
        "--no-fund",
        "--prefix=app",
    ]);
    drop(with_own_indexes(lock).run().assert_success());
    let version = sandbox
        .command(&npm)
        .arg("--version")
        .run()
        .assert_success();
    let version = version.stdout();
    let mut numbers = version
        .trim()
        .split('.')
        .map(|number| number.parse::<u32>().unwrap());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    // What one user likes decides nothing.
    let liked = "omit[]=optional\ninclude[]=dev\nbin-links=false\nloglevel=silent\n";
    fs::write(sandbox.home().join(".npmrc"), liked).unwrap();
    for (name, machine) in MACHINES {
        let base = base_for(&sandbox, name);
        let platform = format!("--platform={name}");
        let command = sandbox.tierce(["build", "app", "--base", &base, &platform]);
        let command = with_own_indexes(command);
        if version < (10, 3) && name != architecture() {
            // Debian 12 has one that cannot be told.
            let said = command.run().assert_code(1).stderr();
            assert!(said.contains("for this machine alone"), "{said}");
            continue;
        }
        let image = built(&sandbox, command, "built");
        let program = |path: &str| path.contains("@esbuild/") && path.ends_with("/bin/esbuild");
        assert_eq!(machine_of(&image, program), machine);
        let tree = image.tree().unwrap();
        assert!(!tree.keys().any(|path| path.ends_with(".package-lock.json")));
        assert!(tree.contains_key("var/task/node_modules/.bin/esbuild"));
    }
}

const PASSWORD: &str = "password-that-was-planted";
const TOKEN: &str = "token-that-was-planted";

/// `tests/real/private-index`, ended with it.
struct PrivateIndex {
    child: Child,
    host: String,
    integrity: String,
}

impl PrivateIndex {
    fn start() -> Self {
        let mut child = Command::new(require("python3"))
            .arg(repository("tests/real/private-index"))
            .args(["somebody", PASSWORD, TOKEN])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let (port, integrity) = line.trim().split_once(' ').unwrap();
        Self {
            host: format!("127.0.0.1:{port}"),
            integrity: integrity.to_owned(),
            child,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://somebody:{PASSWORD}@{}/{path}", self.host)
    }
}

impl Drop for PrivateIndex {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Demands that nothing planted is in what was said, in the image, or in what tierce keeps.
fn assert_nothing_planted(sandbox: &Sandbox, said: &str, image: &Path) {
    let mut places = vec![("stderr".to_owned(), said.as_bytes().to_vec())];
    let loaded = LoadedImage::from_layout(image, Some("it")).unwrap();
    places.extend(loaded.tars.into_iter().map(|tar| ("layer".to_owned(), tar)));
    collect(image, &mut places);
    collect(&sandbox.cache().join("tierce"), &mut places);
    for (name, bytes) in places {
        for secret in [PASSWORD, TOKEN] {
            let is_there = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!is_there, "{secret} is in {name}");
        }
    }
}

fn collect(directory: &Path, places: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            collect(&path, places);
        } else if let Ok(bytes) = fs::read(&path) {
            places.push((path.display().to_string(), bytes));
        }
    }
}

#[test]
fn credentials_of_an_index_of_wheels_stay_where_they_are() {
    let index = PrivateIndex::start();
    let simple = index.url("simple");
    let bare = format!("http://{}/simple", index.host);
    let wheel = index.url("wheels/planted-1.0-py3-none-any.whl");
    for with_uv in [false, true] {
        for (way, requirements) in [
            ("file", format!("--index-url {simple}\nplanted\n")),
            ("variable", "planted\n".to_owned()),
            ("netrc", format!("--index-url {bare}\nplanted\n")),
            ("url", format!("planted @ {wheel}\n")),
            (
                "expanded",
                "planted @ ".to_owned() + &wheel.replace(PASSWORD, "${SECRET}") + "\n",
            ),
        ] {
            let sandbox = sandbox();
            app(
                &sandbox,
                "python = \"requirements.txt\"\npython-version = \"3.12\"\nglibc = \"2.34\"",
            );
            sandbox.write("app/requirements.txt", requirements);
            let mut command = sandbox
                .tierce(["build", "app", "-vv", "-o=oci:built:it"])
                .env("PATH", tools(&sandbox, with_uv))
                .env("PIP_CONFIG_FILE", "/dev/null")
                .env("UV_NO_CONFIG", "1");
            match way {
                "variable" => {
                    command = command.env("PIP_INDEX_URL", &simple);
                    command = command.env("UV_INDEX_URL", &simple);
                }
                "netrc" => {
                    let netrc = format!("machine 127.0.0.1 login somebody password {PASSWORD}\n");
                    let path = sandbox.home().join(".netrc");
                    fs::write(&path, netrc).unwrap();
                    let ours = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                    fs::set_permissions(path, ours).unwrap();
                }
                "expanded" => command = command.env("SECRET", PASSWORD),
                _ => {}
            }
            let output = command.run().assert_success();
            assert_nothing_planted(&sandbox, &output.stderr(), &sandbox.path("built"));
            let image = LoadedImage::from_layout(&sandbox.path("built"), Some("it")).unwrap();
            let tree = image.tree().unwrap();
            assert!(tree.contains_key("var/task/planted/__init__.py"), "{way}");
            assert!(!tree.contains_key("var/task/bin/planted"), "{way}");
        }
    }
}

#[test]
fn credentials_of_a_registry_of_npm_stay_where_they_are() {
    let index = PrivateIndex::start();
    let sandbox = sandbox();
    app(&sandbox, "node = \"package-lock.json\"");
    sandbox.write(
        "app/package.json",
        r#"{"name": "app", "dependencies": {"planted": "1.0.0"}}"#,
    );
    let tarball = format!("http://{}/planted/-/planted-1.0.0.tgz", index.host);
    sandbox.write(
        "app/package-lock.json",
        format!(
            r#"{{"name": "app", "lockfileVersion": 3, "requires": true, "packages": {{
                "": {{"name": "app", "dependencies": {{"planted": "1.0.0"}}}},
                "node_modules/planted": {{"version": "1.0.0", "resolved": "{tarball}",
                    "integrity": "{}"}}}}}}"#,
            index.integrity
        ),
    );
    let npmrc = format!(
        "registry=http://{host}/\n//{host}/:_authToken={TOKEN}\n",
        host = index.host
    );
    let build = |platform: &str| {
        let base = base_for(&sandbox, platform);
        let platform = format!("--platform={platform}");
        let arguments = [
            "build",
            "app",
            "-vv",
            "-o=oci:built:it",
            "--base",
            &base,
            &platform,
        ];
        sandbox.tierce(arguments).run()
    };
    // Without, it is told what is missing.
    let said = build(architecture()).assert_code(1).stderr();
    assert!(said.contains("hint: the index wants credentials"), "{said}");

    sandbox.write("app/.npmrc", &npmrc);
    let output = build(architecture()).assert_success();
    assert_nothing_planted(&sandbox, &output.stderr(), &sandbox.path("built"));
    let image = LoadedImage::from_layout(&sandbox.path("built"), Some("it")).unwrap();
    let tree = image.tree().unwrap();
    assert!(tree.contains_key("var/task/node_modules/planted/index.js"));
    assert!(!tree.keys().any(|path| path.ends_with(".npmrc")));
    fs::remove_file(sandbox.path("app/.npmrc")).unwrap();

    // In the user's own file.
    sandbox.write(
        "app/package.json",
        r#"{"dependencies": {"planted": "1.0.0"}, "overrides": {}}"#,
    );
    fs::write(sandbox.home().join(".npmrc"), npmrc).unwrap();
    let output = build(architecture()).assert_success();
    assert_nothing_planted(&sandbox, &output.stderr(), &sandbox.path("built"));
}
