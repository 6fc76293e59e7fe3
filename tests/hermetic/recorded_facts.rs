//! What is recorded of a layer while it is made is what reading it afterwards finds.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tierce_testkit::elf::ElfBuilder;
use tierce_testkit::images::{Format, LayerBuilder, merged_usr_base};
use tierce_testkit::zip::{Zip, ZipMember};

use crate::caching::settle;
use crate::support::{World, noise};

const NAME: &[u8] = b"AWS_LAMBDA_RUNTIME_API";

fn facts_directory(world: &World) -> PathBuf {
    world.sandbox.cache().join("tierce/facts-1/sha256")
}

/// The facts that are kept, by the names of their files.
pub(crate) fn facts(world: &World) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(facts_directory(world)).into_iter().flatten();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Demands that the facts of all layers of `store:app` were recorded, and that reading the layers
/// gives the same.
#[track_caller]
fn assert_recorded(world: &World, layers: usize) {
    let recorded = facts(world);
    fs::remove_dir_all(facts_directory(world)).unwrap();
    drop(world.tierce(&["lint", "store:app"]).run());
    let read = facts(world);
    assert_eq!(read.len(), layers);
    for (name, facts) in &read {
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let recorded = recorded.get(name);
        assert_eq!(recorded.map(|it| shown(it)), Some(shown(facts)), "{name}");
    }
    // What is there again is what was.
    for (name, bytes) in recorded {
        fs::write(facts_directory(world).join(name), bytes).unwrap();
    }
}

fn program() -> ElfBuilder {
    ElfBuilder::new("amd64")
        .interpreter("/lib64/ld-linux-x86-64.so.2")
        .needs("libz.so.1")
        .needs_symbol("libc.so.6", "GLIBC_2.34", "dlsym")
        .runpath("$ORIGIN/lib")
}

/// A program of some MiB, which names the Runtime API where one segment of the layer ends and the
/// next begins: the first has a header of 512 bytes before the content.
fn large_program(seed: u64, names_it: bool) -> Vec<u8> {
    let mut bytes = program().content(&noise(seed, 3 << 20)).build();
    if names_it {
        let at = (1 << 20) - 512 - 10;
        bytes[at..at + NAME.len()].copy_from_slice(NAME);
    }
    bytes
}

/// A layer of files and archives with entries of all kinds, one of files that are split into
/// several, one of a zip, and one of a tar's own bytes.
fn world() -> World {
    let world = World::new();
    let write = |path: &str, bytes: &[u8]| world.sandbox.write(format!("app/{path}"), bytes);
    write("src/app.py", b"def handler(event, context): ...\n");
    write("src/empty", b"");
    write(
        "src/run",
        b"#!/usr/bin/env python3\nprint('AWS_LAMBDA_RUNTIME_API')\n",
    );
    write("src/small", &program().content(NAME).build());
    write("src/large", &large_program(1, true));
    write("src/other", &large_program(2, false));
    write(
        "src/text",
        &[&b"#!/bin/sh\n"[..], &noise(3, 2 << 20), NAME].concat(),
    );
    write("src/module.so", b"\xcf\xfa\xed\xfe\x0c\0\0\x01");
    write(
        "src/x-1.0.dist-info/WHEEL",
        b"Tag: cp312-cp312-manylinux2014_x86_64\n",
    );
    write("etc/ld.so.conf.d/x.conf", b"/opt/x\n");
    let source = world.path("app/src/app.py");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let modified = fs::FileTimes::new().set_modified(time);
    fs::File::open(&source)
        .unwrap()
        .set_times(modified)
        .unwrap();
    let size = fs::metadata(&source).unwrap().len();
    let mut compiled = b"\xcb\x0d\x0d\x0a\0\0\0\0".to_vec();
    compiled.extend(1_700_000_000_u32.to_le_bytes());
    compiled.extend(u32::try_from(size).unwrap().to_le_bytes());
    compiled.extend(noise(4, 3000));
    write("src/__pycache__/app.cpython-312.pyc", &compiled);
    std::os::unix::fs::symlink("app.py", world.path("app/src/link.py")).unwrap();
    let tar = LayerBuilder::new()
        .directory("var", 0o755)
        .directory("var/task", 0o755)
        .file("var/task/one", 0o755, &program().build())
        .hardlink("var/task/another", "var/task/one")
        .whiteout("var/task/gone")
        .opaque("var/cleared");
    write("in.tar", &tar.tar());
    let verbatim =
        LayerBuilder::new()
            .directory("opt", 0o755)
            .file("opt/verbatim", 0o755, &program().build());
    write("verbatim.tar", &verbatim.tar());
    let zip = Zip::of([
        ZipMember::file("bootstrap", 0o755, "#!/bin/sh\n"),
        ZipMember::file("large", 0o755, large_program(5, true)),
    ]);
    write("function.zip", &zip.build());
    for package in ["one", "two", "three", "four"] {
        let seed = package.len() as u64;
        write(&format!("lib/{package}/__init__.py"), b"");
        write(
            &format!("lib/{package}/m.so"),
            &program().content(&noise(seed, 200_000)).build(),
        );
    }
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\n\
         [[layer]]\nname = \"files\"\ntar = \"in.tar\"\nhardlinks = \"keep\"\nadd = [\
         { from = \"src/\", to = \"/var/task/\" }, { from = \"etc/\", to = \"/etc/\" }]\n\
         [[layer]]\nname = \"packages\"\nadd = [{ from = \"lib/\", to = \"/opt/python/\" }]\n\
         split = { budget = \"100 kB\", most = 4 }\n\
         [[layer]]\nname = \"zip\"\nzip = \"function.zip\"\nto = \"/srv/\"\n",
    );
    settle(&world.path("app"));
    world
}

/// The layers of [`world`]'s image: of files, packages and the zip.
const LAYERS: usize = 1 + 4 + 1;

/// The facts that a build leaves before anybody asks for them.
#[track_caller]
fn build(world: &World, more: &[&str]) {
    world.runs(&[&["build", "app"], more].concat());
}

#[test]
fn facts_are_the_same_as_if_the_layers_were_read() {
    let world = world();
    build(&world, &[]);
    assert_recorded(&world, LAYERS);
    let text = facts(&world)
        .into_values()
        .map(|it| String::from_utf8(it).unwrap());
    let text: String = text.collect();
    for part in [
        "\"whiteout\"",
        "\"opaque\"",
        "\"hardlink\"",
        "\"symlink\"",
        "\"bytecode\":{\"magic\":3531,\"check\":\"hash\"}",
        "GLIBC_2.34",
        "\"foreign\":\"macOS\"",
        "\"wheel\"",
        "\"text\":\"/opt/x\\n\"",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // In the small program, the large ones with the name, and the script.
    assert_eq!(text.matches("\"r\":true").count(), 4);

    // Nothing changed, and nothing is recorded or read.
    let before = facts(&world);
    build(&world, &[]);
    assert_eq!(facts(&world), before);
    assert_recorded(&world, LAYERS);

    // What is not read again is known from the last time.
    world
        .sandbox
        .write("app/src/app.py", "def handler(event, context): return 1\n");
    settle(&world.path("app"));
    build(&world, &[]);
    assert_recorded(&world, LAYERS);
    world
        .sandbox
        .write("app/src/large", large_program(6, false));
    settle(&world.path("app"));
    build(&world, &[]);
    assert_recorded(&world, LAYERS);

    // Nor is it known when those facts are gone: then the layer is read.
    fs::remove_dir_all(facts_directory(&world)).unwrap();
    world.sandbox.write("app/src/run", "#!/bin/sh\n");
    settle(&world.path("app"));
    build(&world, &[]);
    drop(world.tierce(&["lint", "store:app"]).run());
    assert_recorded(&world, LAYERS);
}

#[test]
fn facts_do_not_depend_on_what_the_cache_holds() {
    let world = world();
    build(&world, &["--no-cache", "--jobs=1"]);
    assert_recorded(&world, LAYERS);
    let expected = facts(&world);
    fs::remove_dir_all(facts_directory(&world)).unwrap();
    build(&world, &["--jobs=3"]);
    assert_recorded(&world, LAYERS);
    assert_eq!(facts(&world), expected);

    // Files with other times, as in a fresh checkout.
    for name in ["src/large", "src/run", "lib/one/m.so"] {
        let path = world.path("app").join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    settle(&world.path("app"));
    build(&world, &[]);
    assert_recorded(&world, LAYERS);

    // Packs are damaged, and what they held is made again.
    fs::remove_dir_all(world.sandbox.cache().join("tierce/layers-1/notes")).unwrap();
    fs::remove_dir_all(facts_directory(&world)).unwrap();
    build(&world, &["-o=oci:out:1"]);
    drop(world.tierce(&["lint", "store:app"]).run());
    assert_recorded(&world, LAYERS);
}

#[test]
fn a_verbatim_layer_is_read_when_somebody_asks() {
    let world = world();
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\n\
         [[layer]]\nname = \"tar\"\ntar = \"verbatim.tar\"\nverbatim = true\n",
    );
    build(&world, &[]);
    assert_eq!(facts(&world).len(), 0);
    drop(world.tierce(&["lint", "store:app"]).run());
    assert_recorded(&world, 1);
}

#[test]
fn what_was_learnt_is_counted_pruned_and_verified() {
    let world = World::new();
    merged_usr_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    world.sandbox.write("app/library", "x");
    let build = ["build", "app", "--base=oci:base:1", "--add=library:/lib64/"];
    world.runs(&build);
    let cache = world.sandbox.cache().join("tierce");
    let links = || fs::read_dir(cache.join("links-1/sha256")).unwrap().count();
    let counted = |kind: &str| {
        let json = world.ok(&["cache", "info", "--json"]).json();
        json[kind]["files"].as_u64().unwrap()
    };
    assert_eq!((counted("facts"), counted("links"), links()), (1, 1, 1));
    // A tree of dependencies of which a file is gone, as after a power cut.
    let tree = cache.join("resolved-1/00");
    fs::create_dir_all(tree.join("tree")).unwrap();
    fs::write(tree.join("size"), "1 3\n").unwrap();

    let verify = || world.ok(&["cache", "verify", "--json"]).json();
    let removed = verify()["removed"].clone();
    assert_eq!(removed, serde_json::json!([tree]));
    let name = facts(&world).into_keys().next().unwrap();
    let file = facts_directory(&world).join(name);
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let kept = fs::read_dir(cache.join("links-1/sha256")).unwrap();
    let kept = kept.map(|entry| entry.unwrap().path()).next().unwrap();
    fs::write(&kept, "{}").unwrap();
    let removed = verify()["removed"].clone();
    assert_eq!(removed, serde_json::json!([file, kept]));
    assert_eq!(verify()["removed"], serde_json::json!([]));

    // The next build learns the links anew, and the next lint the facts.
    world.sandbox.write("app/library", "y");
    world.runs(&build);
    drop(world.tierce(&["lint", "store:app"]).run());
    assert_eq!((counted("facts") > 1, counted("links")), (true, 1));
    world.runs(&["cache", "prune"]);
    assert_eq!(counted("links"), 1);
    world.runs(&["cache", "prune", "--to=0"]);
    assert_eq!((counted("facts"), counted("links"), links()), (0, 0, 0));

    // A build makes room among them too; what was not used for longest goes first.
    world.sandbox.write("app/library", "z");
    let limited = world.tierce(&build).env("TIERCE_CACHE_LIMIT", "0");
    drop(limited.run().assert_success());
    assert_eq!((counted("facts"), counted("links")), (0, 0));
}
