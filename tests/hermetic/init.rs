//! A folder becomes a `tierce.toml` that builds it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::zip::{Zip, ZipMember};
use tierce_testkit::{FakeRegistry, sandbox::Output};

use crate::support::{World, copy_directory, file_of, fixtures, has};

const PYTHON: &str = "def handler(event, context):\n    return event\n";
const NODE: &str = "exports.handler = async (event) => event;\n";

/// A folder `app` with these files.
fn world(files: &[(&str, &str)]) -> World {
    let world = World::new();
    for (path, content) in files {
        world.sandbox.write(format!("app/{path}"), content);
    }
    world
}

/// The file that is written for the folder, without its lists of patterns, and what is said.
#[track_caller]
fn init(world: &World) -> String {
    let output = world.ok(&["init", "app"]);
    assert_eq!(output.stdout(), "app/tierce.toml\n");
    let text = fs::read_to_string(world.path("app/tierce.toml")).unwrap();
    let printed = world.ok(&["init", "--dry-run", "app"]);
    assert_eq!(printed.stdout(), text, "the same folder, the same file");
    format!("{}---\n{}", short(&text), said(world, &output))
}

fn said(world: &World, output: &Output) -> String {
    world.shown(output.stderr().trim_end())
}

/// The file without its first comment, what every file has at its end, and patterns.
fn short(text: &str) -> String {
    let mut shown = String::new();
    let mut in_patterns = false;
    for line in text.lines().skip(2) {
        in_patterns &= !line.ends_with("] }]");
        let always = ["# tag = ", "# [config]", "# env = "];
        if !in_patterns && !always.iter().any(|start| line.starts_with(start)) {
            shown.push_str(line);
            shown.push('\n');
        }
        in_patterns |= line.ends_with("exclude = [");
    }
    shown.replace("\n\n\n", "\n\n").replace("\n\n---", "\n---")
}

/// Builds what was written on a base that has the name of AWS's, with stand-ins for uv and npm.
#[track_caller]
fn builds(world: &World, repository: &str, tag: &str) -> tierce_testkit::check::LoadedImage {
    let registry = FakeRegistry::start();
    lambda_base(Format::Docker, "amd64").put(&registry, repository, Some(tag));
    let bin = world.sandbox.root().join("bin");
    let installs = "PATH=/usr/bin:/bin\ncase \"$*\" in *--version*) echo 11.0.0; exit;; esac\n\
        for word; do case \"$word\" in --target=*) target=${word#--target=};; esac; done\n";
    for (name, script) in [
        (
            "uv",
            "mkdir -p \"$target/pkg\"; : > \"$target/pkg/__init__.py\"",
        ),
        (
            "npm",
            "mkdir -p node_modules/pkg; echo {} > node_modules/pkg/package.json",
        ),
    ] {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{installs}{script}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let base = format!("{}/{repository}:{tag}", registry.host());
    let command = world.tierce(&["build", "app", "--base", &base, "--platform=amd64"]);
    world.built_as(command.env("PATH", bin))
}

#[test]
fn python_with_requirements() {
    let world = world(&[
        ("requirements.txt", "pkg==1\n"),
        ("app.py", PYTHON),
        ("lib/more.py", ""),
        (".env", "PASSWORD=secret\n"),
        ("keys/server.pem", ""),
        (".python-version", "3.12.4\n"),
        (".venv/bin/activate", ""),
        ("__pycache__/app.cpython-312.pyc", ""),
    ]);
    let output = world.ok(&["init", "app"]);
    insta::assert_snapshot!(fs::read_to_string(world.path("app/tierce.toml")).unwrap(), @r#"
    # What `tierce build` makes an image of.

    [image]
    base = "public.ecr.aws/lambda/python:3.12"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "app.handler"
    # tag = "ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG"

    [[layer]]
    name = "dependencies"
    python = "requirements.txt"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
        # Not of the function.
        "requirements.txt", "tierce.toml", "tierce.lock", ".dockerignore",
        "Dockerfile", "target", "**/.git", "**/.github", "**/.aws-sam",
        "**/.serverless", "**/.venv", "**/venv", "**/node_modules",
        "**/__pycache__",
        # For this machine alone: these may be secret.
        "**/.env*", "**/.npmrc", "**/.yarnrc*", "**/.pypirc", "**/.netrc",
        "**/.git-credentials", "**/.aws", "**/.docker", "**/.ssh", "**/*.jks",
        "**/*.pem", "**/*.key", "**/*.p12", "**/*.pfx", "**/.terraform",
        "**/*.tfstate*", "**/*.tfvars*", "**/id_rsa*", "**/id_ed25519*",
    ] }]

    # [config]
    # env = { LOG_LEVEL = "info" }
    "#);
    insta::assert_snapshot!(said(&world, &output), @"
    base: public.ecr.aws/lambda/python:3.12 (`.python-version`)
    platform: x86_64, Lambda's default
    handler: app.handler (`app.py`)
    dependencies: `requirements.txt`
    left out: `.venv`, `__pycache__`, `requirements.txt`
    left out, for it may be secret: `.env`, `keys/server.pem`
    `tierce build` makes the image, `tierce lint` judges it
    ");
    let image = builds(&world, "lambda/python", "3.12");
    assert_eq!(file_of(&image, "var/task/app.py"), PYTHON);
    assert!(has(&image, "var/task/lib/more.py") && has(&image, "var/task/pkg/__init__.py"));
    for path in [
        ".env",
        "keys/server.pem",
        ".venv",
        "__pycache__",
        "requirements.txt",
        "tierce.toml",
    ] {
        assert!(!has(&image, &format!("var/task/{path}")), "{path}");
    }
    let mode = fs::metadata(world.path("app/tierce.toml"))
        .unwrap()
        .permissions();
    let own = fs::metadata(world.path("app/app.py"))
        .unwrap()
        .permissions();
    assert_eq!(mode, own, "as any other file");
}

#[test]
fn python_by_its_project_and_locks() {
    let project =
        "[project]\nname = \"x\"\nrequires-python = \">=3.11,<3.13\"\ndependencies = [\"pkg\"]\n";
    let files = [("pyproject.toml", project), ("src/main.py", PYTHON)];
    let without = world(&files);
    insta::assert_snapshot!(init(&without), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.12"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "main.handler"

    # `uv lock` makes the lock file that its packages are taken from:
    # [[layer]]
    # name = "dependencies"
    # python = "uv.lock"

    [[layer]]
    name = "code"
    add = [{ from = "src/", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.12 (the newest Python that fits `>=3.11,<3.13`)
    platform: x86_64, Lambda's default
    handler: main.handler (`src/main.py`)
    dependencies: `uv lock` makes the lock file that its packages are taken from
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    drop(builds(&without, "lambda/python", "3.12"));
    let locked = world(&files);
    locked.sandbox.write("app/uv.lock", "version = 1\n");
    locked.sandbox.write("app/requirements.txt", "pkg\n");
    insta::assert_snapshot!(init(&locked), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.12"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "main.handler"

    [[layer]]
    name = "dependencies"
    python = "uv.lock"

    [[layer]]
    name = "code"
    add = [{ from = "src/", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.12 (the newest Python that fits `>=3.11,<3.13`)
    platform: x86_64, Lambda's default
    handler: main.handler (`src/main.py`)
    dependencies: `uv.lock`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let poetry = world(&[
        (
            "pyproject.toml",
            "[tool.poetry.dependencies]\npython = \"^3.9\"\npkg = \"1\"\n",
        ),
        ("poetry.lock", ""),
        ("orders/__init__.py", ""),
        ("orders/handler.py", "lambda_handler = make()\n"),
        ("orders/other.py", PYTHON),
    ]);
    insta::assert_snapshot!(init(&poetry), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.14"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "orders.handler.lambda_handler"

    [[layer]]
    name = "dependencies"
    python = "poetry.lock"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.14 (the newest Python that fits `^3.9`)
    platform: x86_64, Lambda's default
    handler: orders.handler.lambda_handler (`orders/handler.py`); others are there: orders.other.handler
    dependencies: `poetry.lock`
    left out: `poetry.lock`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
}

#[test]
fn node_with_each_lock_and_without() {
    let package = r#"{"main": "src/orders.js", "engines": {"node": ">=18 <21"}, "dependencies": {"pkg": "1"}}"#;
    let files = [
        ("package.json", package),
        ("src/orders.js", NODE),
        ("index.mjs", "export const handler = 1\n"),
    ];
    let without = world(&files);
    insta::assert_snapshot!(init(&without), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:20"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "src/orders.handler"

    # `npm install --package-lock-only` makes the lock file that packages are taken from:
    # [[layer]]
    # name = "dependencies"
    # node = "package-lock.json"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/nodejs:20 (the newest Node that fits `>=18 <21`)
    platform: x86_64, Lambda's default
    handler: src/orders.handler; others are there: index.handler
    dependencies: `npm install --package-lock-only` makes the lock file that packages are taken from
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    for lock in ["package-lock.json", "pnpm-lock.yaml", "yarn.lock"] {
        let world = world(&files);
        world.sandbox.write(format!("app/{lock}"), "");
        let shown = init(&world);
        assert!(shown.contains(&format!("\nnode = \"{lock}\"\n")), "{shown}");
    }
    let locked = world(&files);
    locked.sandbox.write(
        "app/package-lock.json",
        r#"{"lockfileVersion": 3, "packages": {}}"#,
    );
    locked.sandbox.write("app/node_modules/own/index.js", "");
    insta::assert_snapshot!(init(&locked), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:20"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "src/orders.handler"

    [[layer]]
    name = "dependencies"
    node = "package-lock.json"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/nodejs:20 (the newest Node that fits `>=18 <21`)
    platform: x86_64, Lambda's default
    handler: src/orders.handler; others are there: index.handler
    dependencies: `package-lock.json`
    left out: `node_modules`, `package-lock.json`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let image = builds(&locked, "lambda/nodejs", "20");
    assert!(has(&image, "var/task/package.json") && has(&image, "var/task/src/orders.js"));
    assert!(has(&image, "var/task/node_modules/pkg/package.json"));
    assert!(!has(&image, "var/task/node_modules/own"));
    let berry = world(&files);
    berry
        .sandbox
        .write("app/yarn.lock", "# x\n\n__metadata:\n  version: 8\n");
    berry.sandbox.write("app/.nvmrc", "v22\n");
    insta::assert_snapshot!(init(&berry), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:22"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "src/orders.handler"

    # `npm install --package-lock-only` makes a lock file that is understood; that of Yarn 2 and later is not:
    # [[layer]]
    # name = "dependencies"
    # node = "package-lock.json"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/nodejs:22 (`.nvmrc`)
    platform: x86_64, Lambda's default
    handler: src/orders.handler; others are there: index.handler
    dependencies: `npm install --package-lock-only` makes a lock file that is understood; that of Yarn 2 and later is not
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let typed = world(&[
        ("package.json", "{}"),
        ("src/index.ts", "export const handler = 1"),
    ]);
    insta::assert_snapshot!(init(&typed), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:24"
    platforms = ["x86_64"] # or "arm64", or both
    # handler = "FILE.FUNCTION"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/nodejs:24 (the newest Node)
    platform: x86_64, Lambda's default
    handler: none was found; name it in the file
    Node runs no TypeScript: compile it, and name the handler of what comes out
    `tierce build` makes the image, `tierce lint` judges it
    "#);
}

#[test]
fn programs_of_rust_and_go_and_ready_ones() {
    let rust = world(&[(
        "Cargo.toml",
        "[package]\nname = \"orders\"\n[dependencies]\nlambda_runtime = \"1\"\n\
         [[bin]]\nname = \"one\"\n[[bin]]\nname = \"two\"\n",
    )]);
    let program = ElfBuilder::new("arm64").build();
    rust.sandbox
        .write("app/target/lambda/two/bootstrap", program.clone());
    insta::assert_snapshot!(init(&rust), @r#"
    [image]
    base = "public.ecr.aws/lambda/provided:al2023"
    platforms = ["arm64"] # or "x86_64", or both
    handler = "two"

    [[layer]]
    name = "handler"
    binary = "target/lambda/two/bootstrap"

    ---
    base: public.ecr.aws/lambda/provided:al2023 (for compiled programs)
    platform: arm64, as the program
    handler: two, the program's name; it may be any word
    program: `target/lambda/two/bootstrap`
    `Cargo.toml` has several programs (one, two): one image runs one of them, here two
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let go = world(&[
        (
            "go.mod",
            "module x\nrequire github.com/aws/aws-lambda-go v1.47.0\n",
        ),
        ("main.go", "package main\n"),
    ]);
    insta::assert_snapshot!(init(&go), @r#"
    [image]
    base = "public.ecr.aws/lambda/provided:al2023"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "bootstrap"

    [[layer]]
    name = "handler"
    binary = "bootstrap"

    ---
    base: public.ecr.aws/lambda/provided:al2023 (for compiled programs)
    platform: x86_64, Lambda's default
    handler: bootstrap, the program's name; it may be any word
    program: `bootstrap`, which is not there yet: `GOOS=linux GOARCH=amd64 CGO_ENABLED=0 go build -tags lambda.norpc -o bootstrap .` makes it, with GOARCH=arm64 for that platform
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let ready = World::new();
    ready.sandbox.write("app/build/bootstrap", program);
    insta::assert_snapshot!(init(&ready), @r#"
    [image]
    base = "public.ecr.aws/lambda/provided:al2023"
    platforms = ["arm64"] # or "x86_64", or both
    handler = "bootstrap"

    [[layer]]
    name = "handler"
    binary = "build/bootstrap"

    ---
    base: public.ecr.aws/lambda/provided:al2023 (for compiled programs)
    platform: arm64, as the program
    handler: bootstrap, the program's name; it may be any word
    program: `build/bootstrap`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let both = World::new();
    for (machine, architecture) in [("x86_64", "amd64"), ("aarch64", "arm64")] {
        let program = ElfBuilder::new(architecture).content(b"AWS_LAMBDA_RUNTIME_API");
        let write = |name: &str, bytes| {
            both.sandbox
                .write(format!("app/build/{machine}/{name}"), bytes);
        };
        write("greet", program.build());
        write("libgreeting.so.1", ElfBuilder::new(architecture).build());
        write("another", ElfBuilder::new(architecture).build());
    }
    insta::assert_snapshot!(init(&both), @r#"
    [image]
    base = "public.ecr.aws/lambda/provided:al2023"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "greet"

    [[layer]]
    name = "handler"
    binary = "build/{machine}/greet"
    libraries = ["build/{machine}"]

    ---
    base: public.ecr.aws/lambda/provided:al2023 (for compiled programs)
    platform: x86_64, as the program
    handler: greet, the program's name; it may be any word
    program: `build/x86_64/greet`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let script = world(&[("bootstrap", "#!/bin/sh\nexec true\n")]);
    fs::set_permissions(script.path("app/bootstrap"), Permissions::from_mode(0o755)).unwrap();
    insta::assert_snapshot!(init(&script), @r#"
    [image]
    base = "public.ecr.aws/lambda/provided:al2023"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "bootstrap"

    [[layer]]
    name = "handler"
    add = [{ from = "bootstrap", to = "/var/runtime/bootstrap" }]

    ---
    base: public.ecr.aws/lambda/provided:al2023 (for compiled programs)
    platform: x86_64, Lambda's default
    handler: bootstrap, the program's name; it may be any word
    program: `bootstrap`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let image = builds(&script, "lambda/provided", "al2023");
    assert!(has(&image, "var/runtime/bootstrap"));
}

#[test]
fn zips_of_functions_and_layers() {
    let world = World::new();
    let zip = |names: &[&str]| {
        let members = names.iter().map(|name| ZipMember::file(name, 0o644, "x"));
        Zip::of(members).build()
    };
    world
        .sandbox
        .write("app/function.zip", zip(&["index.mjs", "lib/more.js"]));
    world.sandbox.write(
        "app/tools-layer.zip",
        zip(&["nodejs/node_modules/a/index.js"]),
    );
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:24"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "index.handler"

    [[layer]]
    name = "tools-layer"
    lambda-layer = "tools-layer.zip"

    [[layer]]
    name = "code"
    zip = "function.zip"

    ---
    base: public.ecr.aws/lambda/nodejs:24 (the newest Node, by the names in `function.zip`)
    platform: x86_64, Lambda's default
    handler: index.handler, the usual one for the names in `function.zip`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let image = builds(&world, "lambda/nodejs", "22");
    assert!(has(&image, "var/task/index.mjs"));
    assert!(has(&image, "opt/nodejs/node_modules/a/index.js"));
    // Beside code zips are not part of it.
    world.sandbox.write("app/index.js", NODE);
    drop(world.ok(&["init", "--force", "app"]));
    let image = builds(&world, "lambda/nodejs", "22");
    assert!(has(&image, "var/task/index.js"));
    assert!(has(&image, "opt/nodejs/node_modules/a/index.js"));
    assert!(!has(&image, "var/task/function.zip") && !has(&image, "var/task/tools-layer.zip"));
    // A player is no layer.
    fs::remove_file(world.path("app/index.js")).unwrap();
    fs::rename(world.path("app/function.zip"), world.path("app/player.zip")).unwrap();
    drop(world.ok(&["init", "--force", "app"]));
    let text = fs::read_to_string(world.path("app/tierce.toml")).unwrap();
    assert!(text.contains("zip = \"player.zip\""), "{text}");
}

#[test]
fn templates_of_sam() {
    let template = "Transform: AWS::Serverless-2016-10-31
Parameters:
  Runtime: {Type: String, Default: python3.13}
Globals:
  Function:
    Runtime: !Ref Runtime
    Architectures: [arm64]
Resources:
  Table:
    Type: AWS::DynamoDB::Table
  Orders:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: orders/
      Handler: app.run
      Layers:
        - !Ref Tools
        - !Sub 'arn:aws:lambda:${AWS::Region}:1:layer:x:1'
      Environment: {Variables: {TABLE: !GetAtt Table.Arn}}
  Bills:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: bills/
      Runtime: nodejs22.x
      Architectures: [x86_64]
      Handler: index.handler
  Packed:
    Type: AWS::Serverless::Function
    Properties: {PackageType: Image, ImageConfig: {Command: [app.other]}}
    Metadata: {DockerContext: ./packed, Dockerfile: Dockerfile.lambda}
  Tools:
    Type: AWS::Serverless::LayerVersion
    Properties: {ContentUri: tools}
    Metadata: {BuildMethod: python3.13}
";
    let files = [
        ("template.yaml", template),
        ("orders/app.py", "def run(event, context): pass\n"),
        ("orders/requirements.txt", "pkg\n"),
        ("bills/index.js", NODE),
        ("tools/requirements.txt", "tool\n"),
        ("packed/app.py", PYTHON),
        (
            "packed/Dockerfile.lambda",
            "FROM public.ecr.aws/lambda/python:3.11\nENV A=1 B=2\nCOPY app.py ./\nCMD [\"app.handler\"]\n",
        ),
    ];
    let world = world(&files);
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.13"
    platforms = ["arm64"] # or "x86_64", or both
    handler = "app.run"

    [[layer]]
    name = "Tools"
    python = "tools/requirements.txt"
    to = "/opt/python/"

    [[layer]]
    name = "dependencies"
    python = "orders/requirements.txt"

    [[layer]]
    name = "code"
    add = [{ from = "orders/", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.13 (the runtime of Orders of `template.yaml`)
    platform: arm64 (Orders of `template.yaml`)
    handler: app.run (Orders of `template.yaml`)
    dependencies: `orders/requirements.txt`
    `template.yaml` has several functions: this is Orders; --function chooses another (Bills, Packed)
    a layer of Orders is not in this folder: get its zip, and name it as `lambda-layer`
    left out: `orders/requirements.txt`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let image = builds(&world, "lambda/python", "3.13");
    assert!(has(&image, "var/task/app.py") && has(&image, "opt/python/pkg/__init__.py"));
    let of = |function: &str| {
        let output = world.ok(&["init", "--dry-run", "app", "--function", function]);
        format!("{}---\n{}", short(&output.stdout()), said(&world, &output))
    };
    insta::assert_snapshot!(of("Bills"), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:22"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "index.handler"

    [[layer]]
    name = "code"
    add = [{ from = "bills/", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/nodejs:22 (the runtime of Bills of `template.yaml`)
    platform: x86_64 (Bills of `template.yaml`)
    handler: index.handler (Bills of `template.yaml`)
    "#);
    insta::assert_snapshot!(of("Packed"), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.11"
    platforms = ["arm64"] # or "x86_64", or both
    handler = "app.other"

    [[layer]]
    name = "code"
    add = [{ from = "packed/", to = "/var/task/", exclude = [
    ] }]

    [config.env]
    A = "1"
    B = "2"
    ---
    base: public.ecr.aws/lambda/python:3.11 (the runtime of Packed of `template.yaml`)
    platform: arm64 (Packed of `template.yaml`)
    handler: app.other (Packed of `template.yaml`)
    of `packed/Dockerfile.lambda` base, CMD, ENV and WORKDIR are taken over: check what COPY, RUN and ENTRYPOINT do
    "#);
    insta::assert_snapshot!(world.fails(2, &["init", "--dry-run", "app", "--function", "Gone"]), @"error: `template.yaml` has no function `Gone`; it has Orders, Bills, Packed");
}

#[test]
fn serverless_and_dockerfiles() {
    let world_of = world;
    let world = world_of(&[
        (
            "serverless.yml",
            "provider:\n  name: aws\n  runtime: nodejs20.x\n  architecture: arm64\n\
             functions:\n  orders:\n    handler: src/orders.run\n",
        ),
        ("src/orders.js", "exports.run = 1\n"),
    ]);
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/nodejs:20"
    platforms = ["arm64"] # or "x86_64", or both
    handler = "src/orders.run"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/nodejs:20 (the runtime of orders of `serverless.yml`)
    platform: arm64 (orders of `serverless.yml`)
    handler: src/orders.run (orders of `serverless.yml`)
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let world = world_of(&[
        (
            "Dockerfile",
            "ARG X=1\nFROM node:20 AS build\nRUN npm ci\nFROM public.ecr.aws/lambda/python:3.12-arm64 AS own\n\
             ENV GREETING=hello\nFROM own\nCOPY src ${LAMBDA_TASK_ROOT}\nCMD [ \"app.handler\" ]\n",
        ),
        ("src/app.py", PYTHON),
        ("requirements.txt", "# nothing\n"),
    ]);
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.12"
    platforms = ["arm64"] # or "x86_64", or both
    handler = "app.handler"

    [[layer]]
    name = "code"
    add = [{ from = "src/", to = "/var/task/", exclude = [
    ] }]

    [config.env]
    GREETING = "hello"
    ---
    base: public.ecr.aws/lambda/python:3.12 (the runtime of `Dockerfile`)
    platform: arm64 (`Dockerfile`)
    handler: app.handler (`Dockerfile`)
    dependencies: none, `requirements.txt` names no package
    of `Dockerfile` base, CMD, ENV and WORKDIR are taken over: check what COPY, RUN and ENTRYPOINT do
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let other = world_of(&[
        ("Dockerfile", "FROM debian\nCMD [\"x\"]\n"),
        ("app.py", PYTHON),
    ]);
    insta::assert_snapshot!(init(&other), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.14"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "app.handler"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.14 (the newest Python)
    platform: x86_64, Lambda's default
    handler: app.handler (`app.py`)
    `Dockerfile` is not on a base of AWS's that is known: it is left aside
    left out: `Dockerfile`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
}

#[test]
fn mixed_folders_take_what_has_a_handler() {
    let world = world(&[
        ("package.json", r#"{"devDependencies": {"aws-cdk": "2"}}"#),
        ("requirements.txt", "pkg\n"),
        (
            "lambda_function.py",
            "def lambda_handler(event, context): pass\n",
        ),
        ("app.py", PYTHON),
        ("main.py", PYTHON),
    ]);
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.14"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "lambda_function.lambda_handler"

    [[layer]]
    name = "dependencies"
    python = "requirements.txt"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.14 (the newest Python)
    platform: x86_64, Lambda's default
    handler: lambda_function.lambda_handler (`lambda_function.py`); others are there: app.handler, main.handler
    dependencies: `requirements.txt`
    there are files of Node too, which are not used
    left out: `requirements.txt`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
}

#[test]
fn the_functions_of_the_fixtures() {
    for folder in fs::read_dir(fixtures().join("functions"))
        .unwrap()
        .flatten()
    {
        let world = World::new();
        copy_directory(&folder.path(), &world.path("app"));
        let name = folder.file_name();
        if name == "compiled" {
            // It is a function when it has been compiled.
            let program = ElfBuilder::new("amd64").content(b"AWS_LAMBDA_RUNTIME_API");
            world
                .sandbox
                .write("app/build/x86_64/greet", program.build());
        }
        let output = world.ok(&["init", "--force", "app", "--json"]);
        let found = output.json();
        assert!(found["base"].is_string(), "{name:?}: {found}");
        if name == "hello" {
            assert_eq!(found["handler"], "app.handler");
            let image = builds(&world, "lambda/python", "3.14");
            assert!(has(&image, "var/task/greeting.py"));
            insta::assert_snapshot!(serde_json::to_string_pretty(&found["layers"]).unwrap(), @r#"
            [
              {
                "kind": "add",
                "missing": null,
                "name": "code",
                "path": "src/"
              }
            ]
            "#);
        }
    }
}

#[test]
fn what_is_there_is_not_overwritten() {
    let world = world(&[("app.py", PYTHON), ("tierce.toml", "mine\n")]);
    insta::assert_snapshot!(world.fails(1, &["init", "app"]), @"
    error: app/tierce.toml is there already
    hint: `--force` replaces it, `--dry-run` prints what would be written
    ");
    let printed = world.ok(&["init", "app", "-f", "-"]).stdout();
    assert_eq!(
        fs::read_to_string(world.path("app/tierce.toml")).unwrap(),
        "mine\n"
    );
    let other = world.ok(&["init", "app", "--file", "app/other.toml"]);
    assert_eq!(other.stdout(), "app/other.toml\n");
    symlink("nowhere", world.path("app/link.toml")).unwrap();
    assert!(
        world
            .fails(1, &["init", "app", "-f", "app/link.toml"])
            .contains("is there already")
    );
    world.runs(&["init", "app", "--force"]);
    assert_eq!(
        fs::read_to_string(world.path("app/tierce.toml")).unwrap(),
        printed
    );
    world.assert_no_litter();
    let missing = world.fails(1, &["init", "app", "-f", "nowhere/tierce.toml"]);
    insta::assert_snapshot!(missing, @"
    base: public.ecr.aws/lambda/python:3.14 (the newest Python)
    platform: x86_64, Lambda's default
    handler: app.handler (`app.py`)
    left out: `tierce.toml`
    error: could not create a file in `nowhere`
      caused by: No such file or directory (os error 2)
    ");
}

#[test]
fn a_folder_without_a_function_says_what_is_looked_for() {
    let world = world(&[("README.md", "")]);
    insta::assert_snapshot!(world.fails(1, &["init", "app"]), @"
    error: nothing in app looks like a function
    hint: it looks for template.yaml (SAM), serverless.yml, a Dockerfile on one of AWS's bases, Python (requirements.txt, pyproject.toml, uv.lock, poetry.lock, *.py), Node (package.json, index.js), Rust (Cargo.toml with lambda_runtime), Go (go.mod with aws-lambda-go), a `bootstrap` or other program that speaks the Runtime API, and zips (function.zip)
    ");
    insta::assert_snapshot!(world.fails(1, &["init", "gone"]), @"
    error: could not open the context gone
      caused by: No such file or directory (os error 2)
    ");
    let asked = world.fails(2, &["init", "app", "--function", "Orders"]);
    insta::assert_snapshot!(asked, @"error: there is no template that could describe the function `Orders`");
}

#[test]
fn hostile_folders_are_survived() {
    let world = world(&[
        ("app.py", PYTHON),
        ("package.json", "{\"main\": \"../../etc/passwd\", "),
        ("template.yaml", "a: [\n"),
        ("src/odd \"name\".py", PYTHON),
    ]);
    let made = world
        .sandbox
        .command("mkfifo")
        .args(["app/requirements.txt"])
        .run();
    drop(made.assert_success());
    let app = world.path("app");
    world
        .sandbox
        .write("outside.toml", "[project]\nrequires-python = \"==3.9.*\"\n");
    symlink("../outside.toml", app.join("pyproject.toml")).unwrap();
    symlink("loop", app.join("loop")).unwrap();
    symlink("..", app.join("up")).unwrap();
    symlink(".", app.join("here")).unwrap();
    symlink(".python-version", app.join(".python-version")).unwrap();
    fs::write(app.join("serverless.yml"), b"\xff\xfe").unwrap();
    fs::write(app.join("function.zip"), b"PK").unwrap();
    let huge = fs::File::create(app.join("main.py")).unwrap();
    huge.set_len(1 << 40).unwrap();
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.14"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "app.handler"

    [[layer]]
    name = "code"
    add = [{ from = ".", to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.14 (the newest Python)
    platform: x86_64, Lambda's default
    handler: app.handler (`app.py`)
    `template.yaml` is not YAML: it is left aside
    `serverless.yml` is not text in UTF-8: it is left aside
    `pyproject.toml` leads out of the folder: it is left aside
    `main.py` has more than 4 MiB: it is left aside
    `requirements.txt` is not a file: it is left aside
    `.python-version` cannot be read (Too many levels of symbolic links (os error 40)): it is left aside
    `package.json` is not JSON: it is left aside
    there are files of Node too, which are not used
    the code itself is taken, and not `function.zip`
    left out: `function.zip`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let image = {
        fs::remove_file(app.join("main.py")).unwrap();
        fs::remove_file(app.join("requirements.txt")).unwrap();
        builds(&world, "lambda/python", "3.14")
    };
    assert!(has(&image, "var/task/app.py"));
}

#[test]
fn names_that_are_written_stay_what_they_are() {
    let world = world(&[
        (
            "template.yaml",
            "Resources:\n  A:\n    Type: AWS::Serverless::Function\n    Properties:\n      Runtime: python3.12\n      \
             CodeUri: 'a \"b\" \\c'\n      Handler: \"app.x\\n[image]\\nbase = 'evil'\"\n",
        ),
        ("a \"b\" \\c/app.py", PYTHON),
        ("a \"b\" \\c/requirements.txt", "pkg\n"),
    ]);
    insta::assert_snapshot!(init(&world), @r#"
    [image]
    base = "public.ecr.aws/lambda/python:3.12"
    platforms = ["x86_64"] # or "arm64", or both
    handler = "app.x\u000a[image]\u000abase = 'evil'"

    [[layer]]
    name = "dependencies"
    python = 'a "b" \c/requirements.txt'

    [[layer]]
    name = "code"
    add = [{ from = 'a "b" \c/', to = "/var/task/", exclude = [
    ] }]

    ---
    base: public.ecr.aws/lambda/python:3.12 (the runtime of A of `template.yaml`)
    platform: x86_64, Lambda's default
    handler: app.x[image]base = 'evil' (A of `template.yaml`)
    dependencies: `a "b" \c/requirements.txt`
    left out: `a "b" \c/requirements.txt`
    `tierce build` makes the image, `tierce lint` judges it
    "#);
    let image = builds(&world, "lambda/python", "3.12");
    assert!(has(&image, "var/task/app.py") && !has(&image, "var/task/requirements.txt"));
}

/// The layer that must be compiled first stands in a comment, which a line's end would end.
#[test]
fn no_path_ends_a_comment() {
    let name = "x\n[config]\nentrypoint = ['evil']\n#";
    let world = world(&[(
        "template.yaml",
        "Resources:\n  A:\n    Type: AWS::Serverless::Function\n    Properties:\n      Runtime: java21\n      \
         Handler: a.B::c\n      CodeUri: \"x\\n[config]\\nentrypoint = ['evil']\\n#\"\n",
    )]);
    fs::create_dir(world.path("app").join(name)).unwrap();
    let text = init(&world);
    assert!(!text.contains("\nentrypoint"), "{text}");
    assert!(text.contains("is no folder here"), "{text}");
}

#[test]
fn variables_that_may_be_secret_stay_in_the_dockerfile() {
    let world = world(&[
        (
            "Dockerfile",
            "FROM public.ecr.aws/lambda/python:3.12\nENV LEVEL=info DB_PASSWORD=hunter2\n\
             ENV Api_Token=hunter2\nCMD [\"app.handler\"]\n",
        ),
        ("app.py", PYTHON),
    ]);
    let text = init(&world);
    assert!(
        text.contains("LEVEL = \"info\"") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(
        text.contains("the variable DB_PASSWORD of `Dockerfile` is left out, for it may be secret"),
        "{text}"
    );
}

#[test]
fn templates_of_any_length_end() {
    let mut template = "Resources:\n".to_owned();
    template.extend(
        (0..20_000).map(|number| format!("  R{number}: {{Type: AWS::Lambda::Function}}\n")),
    );
    template.push_str("  \"a\\nb\":\n    Type: AWS::Serverless::Function\n    Properties:\n      Runtime: python3.12\n      Layers:\n");
    template.push_str(&"      - !Ref L\n".repeat(100_000));
    let world = world(&[("template.yaml", &template), ("app.py", PYTHON)]);
    let several = world.ok(&["init", "--dry-run", "app"]);
    assert!(several.stderr().contains("(R1, R2, R3, "), "names");
    assert!(
        several.stderr().contains("R12, and 19988 more)"),
        "{}",
        several.stderr()
    );
    let layers = world.ok(&["init", "--dry-run", "app", "--function", "a\nb"]);
    assert!(
        layers
            .stderr()
            .contains("ab has more than 5 layers: the first of them are taken"),
        "{}",
        layers.stderr()
    );
}
