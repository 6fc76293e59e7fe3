//! Lint of what compilers and package managers really make.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, ImageBuilder, LayerBuilder};
use tierce_testkit::sandbox::Sandbox;

use crate::support::{architecture, lambda_base, run, sandbox, target, tierce, wheels};

/// The findings of one image, as `severity rule path`, notes left out; and what was said of them.
#[track_caller]
fn findings(sandbox: &Sandbox, image: &str) -> Vec<(String, String)> {
    let document = sandbox
        .tierce(["lint", "--json", "--platform", architecture(), image])
        .run()
        .json();
    let findings = document["images"][0]["findings"].as_array().unwrap();
    findings
        .iter()
        .filter(|finding| finding["severity"] != "note")
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or("-").to_owned();
            let shown = format!("{} {} {}", text("severity"), text("rule"), text("path"));
            (shown, text("what"))
        })
        .collect()
}

#[test]
fn a_lambda_like_base_is_clean() {
    let sandbox = sandbox();
    let base = lambda_base(&sandbox);
    assert_eq!(findings(&sandbox, &base), []);
}

#[test]
fn real_wheels_on_a_lambda_like_base_are_clean() {
    if architecture() != "amd64" {
        return;
    }
    let sandbox = sandbox();
    let base = lambda_base(&sandbox);
    let wheels = wheels();
    sandbox.write("app.py", "def handler(event, context): ...\n");
    let add = "tree-amd64:/var/task/";
    let context = wheels.to_str().unwrap();
    tierce(
        &sandbox,
        [
            "build",
            context,
            "--base",
            &base,
            "--platform",
            "amd64",
            "--add",
            add,
            "-o",
            "oci:image:1",
        ],
    );
    assert_eq!(findings(&sandbox, "oci:image:1"), []);
}

/// The C library of a base as far as its symbol versions go, with the loader of this machine.
fn base(glibc: &[u32]) -> LayerBuilder {
    let (loader, directory) = match architecture() {
        "arm64" => ("lib/ld-linux-aarch64.so.1", "lib"),
        _ => ("lib64/ld-linux-x86-64.so.2", "lib64"),
    };
    let mut libc = ElfBuilder::new(architecture()).soname("libc.so.6");
    libc = libc.defines("GLIBC_2.2.5");
    for minor in glibc {
        libc = libc.defines(&format!("GLIBC_2.{minor}"));
    }
    LayerBuilder::new()
        .directory(directory, 0o755)
        .file(loader, 0o755, &ElfBuilder::new(architecture()).build())
        .file(&format!("{directory}/libc.so.6"), 0o755, &libc.build())
}

/// An image that starts `program` on that base.
fn image(sandbox: &Sandbox, name: &str, glibc: &[u32], program: &Path) -> String {
    let code = LayerBuilder::new()
        .directory("var", 0o755)
        .directory("var/task", 0o755)
        .file("var/task/bootstrap", 0o755, &fs::read(program).unwrap());
    ImageBuilder::new(Format::Docker, architecture())
        .layer(&base(glibc))
        .layer(&code)
        .config(|config| {
            config["config"]["Entrypoint"] = Value::from(vec!["/var/task/bootstrap"]);
        })
        .build()
        .write_layout(&sandbox.path(name), Some("1"));
    format!("oci:{name}:1")
}

#[test]
fn a_program_of_this_machine_is_refused_on_amazon_linux_2() {
    let sandbox = sandbox();
    // What every program is started with is of glibc 2.34 where it was linked with that or later.
    let source = sandbox.write(
        "main.c",
        "#include <stdio.h>\nint main(void) { return puts(\"AWS_LAMBDA_RUNTIME_API\") < 0; }\n",
    );
    let program = sandbox.path("main");
    let mut compile = Command::new("gcc");
    compile.arg("-O2").arg(&source).arg("-o").arg(&program);
    run(compile);
    let al2 = image(&sandbox, "al2", &[3, 4, 14, 17, 25, 26], &program);
    let [(refused, what)] = &findings(&sandbox, &al2)[..] else {
        panic!("not one finding: {:?}", findings(&sandbox, &al2));
    };
    assert_eq!(refused, "error glibc-version /var/task/bootstrap");
    assert!(
        what.starts_with("it needs glibc 2.34 (GLIBC_2.34 for `__libc_start_main` of libc.so.6)")
            && what.ends_with("libc.so.6 offers 2.26"),
        "{what}"
    );
    let newer = [3, 4, 14, 17, 25, 26, 28, 29, 32, 33, 34];
    let al2023 = image(&sandbox, "al2023", &newer, &program);
    assert_eq!(findings(&sandbox, &al2023), []);
    // Linked statically it needs nobody.
    let fixed = sandbox.path("static");
    let mut compile = Command::new("gcc");
    compile
        .args(["-static", "-O2"])
        .arg(&source)
        .arg("-o")
        .arg(&fixed);
    run(compile);
    let al2 = image(&sandbox, "static-al2", &[3, 4, 26], &fixed);
    assert_eq!(findings(&sandbox, &al2), []);
}

#[test]
fn a_library_beside_a_program_is_found_by_its_runpath() {
    let sandbox = sandbox();
    let library = sandbox.write("answer.c", "int answer(void) { return 42; }\n");
    let main = sandbox.write(
        "main.c",
        "int answer(void);\nint main(void) { return answer() - 42; }\n",
    );
    let built = sandbox.path("libanswer.so.1");
    let mut compile = Command::new("gcc");
    compile
        .args(["-shared", "-fPIC", "-Wl,-soname,libanswer.so.1", "-o"])
        .arg(&built)
        .arg(&library);
    run(compile);
    for (name, runpath, expected) in [
        ("with", "-Wl,-rpath,$ORIGIN/lib", None),
        (
            "without",
            "-O2",
            Some("warning library-off-path /var/task/main"),
        ),
    ] {
        let program = sandbox.path(name);
        let mut compile = Command::new("gcc");
        compile
            .arg(&main)
            .arg(&built)
            .arg(runpath)
            .arg("-o")
            .arg(&program);
        run(compile);
        let code = LayerBuilder::new()
            .directory("var", 0o755)
            .directory("var/task", 0o755)
            .file("var/task/main", 0o755, &fs::read(&program).unwrap())
            .directory("var/task/lib", 0o755)
            .file(
                "var/task/lib/libanswer.so.1",
                0o755,
                &fs::read(&built).unwrap(),
            );
        ImageBuilder::new(Format::Oci, architecture())
            .layer(&base(&[3, 4, 14, 17, 25, 26, 28, 29, 32, 33, 34]))
            .layer(&code)
            .config(|config| {
                config["config"]["Entrypoint"] = Value::from(vec!["/var/task/main"]);
            })
            .build()
            .write_layout(&sandbox.path("image"), Some(name));
        let found = findings(&sandbox, &format!("oci:image:{name}"));
        let found: Vec<&str> = found.iter().map(|(finding, _)| finding.as_str()).collect();
        assert_eq!(found, Vec::from_iter(expected), "{name}");
    }
}

#[test]
fn sarif_is_what_its_schema_says() {
    let sandbox = sandbox();
    // Findings of an image, of a layer and of paths, allowed and not, with names that need escapes.
    let code = LayerBuilder::new()
        .directory("opt", 0o755)
        .file("opt/a b#c?d%2f:é\u{1b}\n", 0o600, b"")
        .file("opt/x/y", 0o644, b"")
        .fifo("opt/pipe");
    ImageBuilder::new(Format::Docker, architecture())
        .layer(&code)
        .config(|config| config["config"]["User"] = "app".into())
        .build()
        .write_layout(&sandbox.path("image"), Some("1"));
    let arguments = ["lint", "--for", "lambda", "--allow", "ignored-setting"];
    let arguments = arguments
        .into_iter()
        .chain(["--sarif", "out.sarif", "oci:image:1"]);
    let output = sandbox.tierce(arguments).run().assert_code(3);
    assert!(output.stdout().lines().count() > 8, "{output:?}");
    let environment = target().join("sarif");
    assert!(
        environment.join("schema.json").is_file(),
        "tests/setup/install brings the schema"
    );
    let check = "import json, sys, jsonschema
schema, log = (json.load(open(path, encoding='utf-8')) for path in sys.argv[1:])
validator = jsonschema.Draft4Validator(schema)
sys.exit('\\n'.join(f'{list(e.path)}: {e.message}' for e in validator.iter_errors(log)) or None)";
    let mut python = Command::new(environment.join("bin/python"));
    python
        .args(["-c", check])
        .arg(environment.join("schema.json"))
        .arg(sandbox.path("out.sarif"));
    run(python);
}
