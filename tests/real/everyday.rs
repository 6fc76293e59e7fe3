//! Images as people make them every day, which work on Lambda: lint must have nothing against them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tierce_testkit::process::{DockerDaemon, DockerRegistry, require};
use tierce_testkit::sandbox::Sandbox;

use crate::support::{architecture, docker, lambda_base, run, sandbox};

/// A name, the warnings that are meant, and what follows `FROM`.
type Everyday = (&'static str, &'static [&'static str], &'static str);

/// `debian` is a Debian with Python and nothing else, `lambda` the Lambda-like base.
const IMAGES: [Everyday; 15] = [
    (
        "a client of Python, by PATH and over links",
        &["entrypoint-not-absolute"],
        "debian
COPY client/ /usr/local/lib/python3.11/dist-packages/
RUN ln -s /usr/bin/python3.11 /usr/local/bin/python3 && ln -s python3 /usr/local/bin/python
WORKDIR /function
COPY app.py .
ENTRYPOINT [\"python\", \"-m\", \"awslambdaric\"]
CMD [\"app.handler\"]",
    ),
    (
        "packages beside the function",
        &[],
        "debian
WORKDIR /function
COPY client/ app.py /function/
USER 1000
ENTRYPOINT [\"/usr/bin/python3.11\", \"-m\", \"awslambdaric\"]
CMD [\"app.handler\"]",
    ),
    (
        "a virtual environment, compiled",
        &[],
        "debian
RUN mkdir /app && python3.11 -m venv --without-pip /app/.venv
COPY client/ /app/.venv/lib/python3.11/site-packages/
COPY app.py /app/
RUN python3.11 -m compileall -q /app
WORKDIR /app
ENTRYPOINT [\"/app/.venv/bin/python\", \"-m\", \"awslambdaric\"]
CMD [\"app.handler\"]",
    ),
    (
        "a script of a virtual environment",
        &[],
        "debian
RUN mkdir /app && python3.11 -m venv --without-pip /app/.venv
RUN printf '#!/app/.venv/bin/python\\n' >/app/.venv/bin/start && chmod 755 /app/.venv/bin/start
COPY client/ /app/.venv/lib/python3.11/site-packages/
ENTRYPOINT [\"/app/.venv/bin/start\"]
CMD [\"app.handler\"]",
    ),
    (
        "AWS's own example of an entrypoint in bash",
        &[],
        "debian
COPY client/ /usr/local/lib/python3.11/dist-packages/
RUN printf '#!/usr/bin/env bash\\nexec python3.11 -m awslambdaric $@\\n' >/entry.sh && chmod +x /entry.sh
ENTRYPOINT [\"/entry.sh\"]
CMD [\"app.handler\"]",
    ),
    (
        "no shell, and only what Python needs",
        &[],
        "debian AS full
FROM scratch
COPY --from=full /usr/lib /usr/lib
COPY --from=full /lib/ /lib/
COPY --from=full /lib64/ /lib64/
COPY --from=full /usr/bin/python3.11 /usr/bin/python3.11
COPY client/ /usr/lib/python3/dist-packages/
ENTRYPOINT [\"/usr/bin/python3.11\", \"-m\", \"awslambdaric\"]
CMD [\"app.handler\"]",
    ),
    (
        "a function on the Lambda-like base",
        &[],
        "lambda
COPY app.py ./
CMD [\"app.handler\"]",
    ),
    (
        "a static program",
        &[],
        "scratch
COPY static /main
ENTRYPOINT [\"/main\"]",
    ),
    (
        "a static program that may lie anywhere",
        &[],
        "scratch
COPY static-pie /var/task/bootstrap
ENTRYPOINT [\"/var/task/bootstrap\"]",
    ),
    (
        "a bootstrap in C",
        &[],
        "lambda
RUN rm /var/lang/bin/* /var/runtime/bootstrap
COPY dynamic /var/runtime/bootstrap
CMD [\"function.handler\"]",
    ),
    (
        "a bootstrap in sh",
        &[],
        "lambda
RUN rm /var/lang/bin/* && printf '#!/bin/sh\\n: $AWS_LAMBDA_RUNTIME_API\\n' >/var/runtime/bootstrap
RUN printf 'handler () { :; }\\n' >/var/task/function.sh
CMD [\"function.handler\"]",
    ),
    (
        "a library by runpath",
        &[],
        "debian
COPY runpath /opt/app/bin/main
COPY libanswer.so.1 /opt/app/lib/
ENTRYPOINT [\"/opt/app/bin/main\"]",
    ),
    (
        "a library by rpath, and one that the loader knows from its configuration",
        &[],
        "debian
COPY rpath /srv/bin/main
COPY libanswer.so.1 /srv/lib/
RUN echo /srv/lib >/etc/ld.so.conf.d/srv.conf && /sbin/ldconfig
ENTRYPOINT [\"/srv/bin/main\"]",
    ),
    (
        "hard links, moved and deleted directories",
        &[],
        "debian
COPY dynamic /usr/local/bin/main
RUN mkdir -p /function/a/b && echo x >/function/a/1 && ln /function/a/1 /function/a/2 && ln /usr/bin/env /function/env
RUN mv /function/a /function/c && rm -r /function/c/b && rm /function/env && ln /function/c/1 /function/3
RUN rm -r /function/c && mkdir /function/c && echo y >/function/c/4
WORKDIR /function
ENTRYPOINT [\"/usr/local/bin/main\"]",
    ),
    (
        "Node, npx over a link, and packages for all the world",
        &[],
        "debian
COPY node/ /
COPY node_modules/ /function/node_modules/
RUN echo 'exports.handler = async () => 1' >/function/index.js
WORKDIR /function
ENTRYPOINT [\"/usr/local/bin/npx\", \"aws-lambda-ric\"]
CMD [\"index.handler\"]",
    ),
];

/// What the images are made of, in `context`.
fn prepare(sandbox: &Sandbox, context: &Path) {
    fs::create_dir(context).unwrap();
    let base = lambda_base(sandbox);
    // The Debian and the client are those that the base is made of.
    let platform = ["--platform", architecture()];
    let copy = ["copy", &base, "oci:base:1"].into_iter().chain(platform);
    drop(sandbox.tierce(copy).run().assert_success());
    let archive = [
        "copy",
        "oci:base:1",
        "docker-archive:context/base.tar:lambda:1",
    ];
    drop(sandbox.tierce(archive).run().assert_success());
    fs::write(context.join("app.py"), "def handler(event, context): ...\n").unwrap();
    let programs = [
        (
            "main.c",
            "#include <stdio.h>\nint main(void) { return puts(\"AWS_LAMBDA_RUNTIME_API\") < 0; }\n",
        ),
        ("answer.c", "int answer(void) { return 42; }\n"),
        (
            "asks.c",
            "#include <stdio.h>\nint answer(void);\n\
             int main(void) { puts(\"AWS_LAMBDA_RUNTIME_API\"); return answer() - 42; }\n",
        ),
    ];
    for (name, text) in programs {
        fs::write(context.join(name), text).unwrap();
    }
    for arguments in [
        "main.c -o dynamic",
        "-static main.c -o static",
        "-static-pie main.c -o static-pie",
        "-shared -fPIC -Wl,-soname,libanswer.so.1 answer.c -o libanswer.so.1",
        "asks.c libanswer.so.1 -Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib -o runpath",
        "asks.c libanswer.so.1 -Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib -o rpath",
    ] {
        let mut compile = Command::new(require("gcc"));
        compile.args(arguments.split(' ')).current_dir(context);
        run(compile);
    }
    // Node as this machine has it, with the libraries that it needs besides Debian's own.
    let node = context.join("node");
    fs::create_dir_all(node.join("usr/local/bin")).unwrap();
    let script = format!(
        "set -e
         node=$(node -p process.execPath)
         cp -L \"$node\" node/usr/local/bin/node
         ldd \"$node\" | sed -n 's/.*=> \\(\\/[^ ]*\\).*/\\1/p' | while read -r library; do
             mkdir -p \"node/usr/local/lib\" && cp -L \"$library\" node/usr/local/lib/
         done
         rm -f node/usr/local/lib/libc.so.6 node/usr/local/lib/libm.so.6 node/usr/local/lib/lib*pthread.so.0
         mkdir -p node/usr/local/lib/node_modules/npm/bin
         printf '#!/usr/bin/env node\\n' >node/usr/local/lib/node_modules/npm/bin/npx-cli.js
         chmod 755 node/usr/local/lib/node_modules/npm/bin/npx-cli.js
         ln -s ../lib/node_modules/npm/bin/npx-cli.js node/usr/local/bin/npx
         npm install --ignore-scripts --no-audit --no-fund --force --silent {PACKAGES}
         chmod -R a+rX ."
    );
    let mut make = Command::new("sh");
    make.args(["-c", &script]).current_dir(context);
    run(make);
}

/// Packages that bring their modules for many systems, and one for another C library.
const PACKAGES: &str = "bcrypt@6.0.0 argon2@0.45.1 sharp@0.35.5 esbuild@0.28.2 @swc/core@1.16.22 \
    @img/sharp-linuxmusl-x64@0.35.5 @swc/core-linux-x64-musl@1.16.22 @esbuild/linux-arm64@0.28.2 \
    fsevents@2.3.3 aws-lambda-ric@3.3.0";

/// Builds an image under a name.
fn build(daemon: &DockerDaemon, context: &Path, dockerfile: &str, name: &str) {
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    // All that the file names, and no more: the daemon is sent a copy.
    let mut names = vec!["Dockerfile"];
    for line in dockerfile.lines() {
        let mut words = line.split(' ');
        let is_copy = matches!(words.next(), Some("COPY" | "ADD"));
        let sources: Vec<&str> = words.collect();
        if is_copy && !sources[0].starts_with("--") {
            names.extend(&sources[..sources.len() - 1]);
        }
    }
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(context).arg("-c").args(&names);
    let mut archive = tar.stdout(Stdio::piped()).spawn().unwrap();
    let mut build = daemon.docker(["build", "--quiet", "--network", "none", "--tag", name, "-"]);
    build
        .env("DOCKER_BUILDKIT", "0")
        .stdin(archive.stdout.take().unwrap());
    run(build);
    assert!(archive.wait().unwrap().success());
}

#[test]
fn everyday_images_built_by_docker_are_let_pass() {
    let Some(daemon) = docker() else { return };
    let sandbox = sandbox();
    let context = sandbox.path("context");
    prepare(&sandbox, &context);
    let mut load = daemon.docker(["load", "--quiet", "--input"]);
    load.arg(context.join("base.tar"));
    run(load);
    run(daemon.docker(["tag", "lambda:1", "lambda:latest"]));
    // Its files without its settings, and the client in a place of its own.
    let container = run(daemon.docker(["create", "lambda", "x"]));
    let mut export = daemon.docker(["export", container.trim(), "--output"]);
    export.arg(context.join("root.tar"));
    run(export);
    let unpack = "mkdir root && tar -xf root.tar -C root && mv root/var/runtime client && \
        rm -rf client/bootstrap root/var/lang root/var/task root/lambda-entrypoint.sh && \
        tar -C root -cf root.tar . && rm -rf root";
    let mut shell = Command::new("sh");
    shell.args(["-ec", unpack]).current_dir(&context);
    run(shell);
    let debian = "FROM scratch\nADD root.tar /\nENV PATH=/usr/local/bin:/usr/sbin:/usr/bin\n";
    build(&daemon, &context, debian, "debian");
    let registry = DockerRegistry::start();

    let mut wrong = String::new();
    for (name, meant, rest) in IMAGES {
        // A registry takes what all have in common once, and lint reads it once.
        let image = registry.reference("everyday", "1");
        build(&daemon, &context, &format!("FROM {rest}\n"), &image);
        run(daemon.docker(["push", "--quiet", &image]));
        let arguments = ["lint", "--json", "--for", "lambda", &image];
        let document = sandbox.tierce(arguments).run().json();
        let findings = document["images"][0]["findings"].as_array().unwrap();
        let loud = |finding: &&Value| finding["severity"] != "note";
        for finding in findings.iter().filter(loud) {
            if !meant.contains(&finding["rule"].as_str().unwrap()) {
                writeln!(wrong, "{name}: {finding:#}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
