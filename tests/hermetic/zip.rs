//! Functions and Lambda layers that were zips become images.

use std::fs;

use tierce_testkit::images::{Format, lambda_base};
use tierce_testkit::zip::{Zip, ZipMember, extra_field};

use crate::caching::{Opened, settle};
use crate::support::{World, digest_in, file_of, layer_digests, listing, top_layer};

const HANDLER: &str = "#!/bin/sh\necho \"$1\"\n";

fn function() -> Vec<ZipMember> {
    vec![
        ZipMember::file("bootstrap", 0o755, HANDLER),
        ZipMember::file(
            "app.py",
            0o644,
            "def handler(event, context):\n    return event\n",
        ),
        ZipMember::directory("lib/"),
        ZipMember::file("lib/libx.so.1.2", 0o775, b"\x7fELF..."),
        ZipMember::symlink("lib/libx.so", "libx.so.1.2"),
        ZipMember::file("lib/set-id", 0o4755, "x"),
    ]
}

/// The same with other orders, times and levels, by a program that goes on while it writes.
fn function_otherwise() -> Vec<u8> {
    let members = function().into_iter().rev();
    let members = members.map(|member| {
        member.deflated(1).deferred().both(|header| {
            header.time = 0x2821_0000;
            header.extra = extra_field(0x5455, &[1, 0, 0, 0, 0]);
        })
    });
    let reversed = true;
    let zip = Zip {
        reversed,
        ..Zip::of(members)
    };
    zip.build()
}

fn on_lambda(config: &str) -> World {
    let world = World::new();
    lambda_base(Format::Docker, "amd64").write_layout(&world.path("base"), Some("1"));
    world
        .sandbox
        .write("app/function.zip", Zip::of(function()).build());
    world.sandbox.write(
        "app/tierce.toml",
        format!("[image]\nbase = \"oci:../base:1\"\nhandler = \"app.handler\"\n{config}"),
    );
    world
}

const FUNCTION: &str = "[[layer]]\nname = \"code\"\nzip = \"function.zip\"\n";

#[test]
fn a_function_goes_where_lambda_has_it() {
    let world = on_lambda(FUNCTION);
    let image = world.built(&["build", "app"]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/lib
    f 0644 var/task/app.py 46 bytes
    f 0755 var/task/bootstrap 20 bytes
    l 0777 var/task/lib/libx.so -> libx.so.1.2
    f 0755 var/task/lib/libx.so.1.2 7 bytes
    f 0755 var/task/lib/set-id 1 bytes
    ");
    assert_eq!(file_of(&image, "var/task/bootstrap"), HANDLER);
    // The same by flags alone: only the name of the layer in the history is another.
    let flags = [
        "build",
        "app",
        "-f=none.toml",
        "--base=oci:base:1",
        "--handler=app.handler",
    ];
    world.sandbox.write("none.toml", "");
    let by_flags = world.built(&[&flags[..], &["--zip=function.zip"]].concat());
    assert_eq!(
        layer_digests(&by_flags.manifest),
        layer_digests(&image.manifest)
    );
    assert_eq!(
        by_flags.config["history"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()["created_by"],
        "tierce layer-format-1 fast-1 function.zip"
    );
    let moved = world.built(&[&flags[..], &["--zip=function.zip:code"]].concat());
    assert_eq!(file_of(&moved, "var/task/code/bootstrap"), HANDLER);
    // `--add` is COPY: a zip is a file.
    let copied = world.built(&[&flags[..], &["--add=function.zip:/var/task/"]].concat());
    insta::assert_snapshot!(top_layer(&copied).lines().last().unwrap().split(' ').nth(2).unwrap(), @"var/task/function.zip");
}

#[test]
fn later_lambda_layers_win() {
    let world = on_lambda(
        "[[layer]]\nname = \"first\"\nlambda-layer = \"first.zip\"\n\
         [[layer]]\nname = \"second\"\nlambda-layer = \"second.zip\"\nexclude = [\"docs\"]\n\
         [[layer]]\nname = \"code\"\nzip = \"function.zip\"\ninclude = [\"*.py\"]\nto = \"/srv\"\n\
         add = [{ from = \"own.py\", to = \"/srv/app.py\" }]\n",
    );
    let first = [
        ZipMember::file("python/both.py", 0o644, "first"),
        ZipMember::file("python/one.py", 0o644, "one"),
        ZipMember::file("extensions/watch", 0o755, "#!/bin/sh\n"),
    ];
    let second = [
        ZipMember::file("python/both.py", 0o644, "second"),
        ZipMember::file("docs/readme", 0o644, "long"),
    ];
    world.sandbox.write("app/first.zip", Zip::of(first).build());
    world
        .sandbox
        .write("app/second.zip", Zip::of(second).build());
    world.sandbox.write("app/own.py", "own");
    let image = world.built(&["build", "app"]);
    let base = image.tars.len() - 3;
    insta::assert_snapshot!(listing(&image, base), @"
    d 0755 opt
    d 0755 opt/extensions
    d 0755 opt/python
    f 0755 opt/extensions/watch 10 bytes
    f 0644 opt/python/both.py 5 bytes
    f 0644 opt/python/one.py 3 bytes
    ");
    insta::assert_snapshot!(listing(&image, base + 1), @"
    d 0755 opt
    d 0755 opt/python
    f 0644 opt/python/both.py 6 bytes
    ");
    assert_eq!(file_of(&image, "opt/python/both.py"), "second");
    assert_eq!(file_of(&image, "opt/python/one.py"), "one");
    assert_eq!(
        file_of(&image, "srv/app.py"),
        "own",
        "files override the archive's"
    );

    // Of several flags too, and the function comes above them whatever stands first.
    world.sandbox.write("none.toml", "");
    let flags = ["build", "app", "-f=none.toml", "--base=oci:base:1"];
    let more = [
        "--zip=function.zip",
        "--lambda-layer=first.zip",
        "--lambda-layer=second.zip",
    ];
    let by_flags = world.built(&[&flags[..], &more].concat());
    assert_eq!(file_of(&by_flags, "opt/python/both.py"), "second");
    assert!(top_layer(&by_flags).contains("var/task/bootstrap"));
    let other = ["--lambda-layer=second.zip", "--lambda-layer=first.zip"];
    let by_flags = world.built(&[&flags[..], &other].concat());
    assert_eq!(file_of(&by_flags, "opt/python/both.py"), "first");
}

#[test]
fn how_a_zip_was_written_does_not_show() {
    let world = on_lambda(FUNCTION);
    let digest = || digest_in(&world.ok(&["build", "app", "-t=it:1", "--no-cache"]));
    let expected = digest();
    world
        .sandbox
        .write("app/function.zip", function_otherwise());
    assert_eq!(digest(), expected);
    // Nor that it was a zip.
    for member in function() {
        let path = format!("app/src/{}", String::from_utf8_lossy(&member.central.name));
        match (member.attributes >> 28, member.stored().data) {
            (0o04, _) => fs::create_dir_all(world.path(path)).unwrap(),
            (0o12, _) => {}
            (_, content) => drop(world.sandbox.write(path, content)),
        }
    }
    std::os::unix::fs::symlink("libx.so.1.2", world.path("app/src/lib/libx.so")).unwrap();
    for executable in ["bootstrap", "lib/libx.so.1.2", "lib/set-id"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = world.path("app/src").join(executable);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = fs::read_to_string(world.path("app/tierce.toml")).unwrap();
    let add = "add = [{ from = \"src\", to = \"/var/task/\" }]";
    world.sandbox.write(
        "app/tierce.toml",
        config.replace("zip = \"function.zip\"", add),
    );
    assert_eq!(digest(), expected);
}

#[test]
fn an_unchanged_zip_is_not_opened() {
    let world = World::new();
    world
        .sandbox
        .write("app/zips/function.zip", Zip::of(function()).build());
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\nplatforms = [\"arm64\"]\n\
         [[layer]]\nname = \"code\"\nzip = \"zips/function.zip\"\n",
    );
    settle(&world.path("app"));
    let opened = Opened::in_each_of(&[world.path("app/zips")]);
    let build = || {
        let output = world.ok(&["build", "app", "-t=it:1", "--progress=plain"]);
        let read = !opened.since().is_empty();
        (digest_in(&output), read, output.stderr())
    };
    let (digest, read, _) = build();
    assert!(read);
    let (again, read, said) = build();
    assert_eq!((again, read), (digest.clone(), false));
    insta::assert_snapshot!(said.trim_end(), @"store:it:1: already there");

    // Another zip of the same files is read, and nothing comes of it.
    world
        .sandbox
        .write("app/zips/function.zip", function_otherwise());
    opened.since();
    let (again, read, said) = build();
    assert_eq!((again, read), (digest.clone(), true));
    assert!(said.ends_with("store:it:1: already there\n"), "{said}");

    let mut members = function();
    members[1] = ZipMember::file("app.py", 0o644, "pass");
    world
        .sandbox
        .write("app/zips/function.zip", Zip::of(members).build());
    assert_ne!(build().0, digest);
}

#[test]
fn a_zip_without_modes_is_told_of() {
    let world = on_lambda(FUNCTION);
    let members = [
        ZipMember::file("bootstrap", 0, HANDLER),
        ZipMember::file("bin/tool", 0, b"\x7fELF"),
        ZipMember::file("data.txt", 0, "text"),
    ];
    let members = members.map(ZipMember::without_mode);
    world
        .sandbox
        .write("app/function.zip", Zip::of(members).build());
    let said = || {
        let output = world.ok(&["build", "app", "-t=it:1"]).stderr();
        let notes = output.lines().filter(|line| line.starts_with("note:"));
        world.shown(&notes.collect::<Vec<_>>().join("\n"))
    };
    insta::assert_snapshot!(said(), @"note: `[SANDBOX]/work/app/function.zip` has no Unix modes: files in it that begin with `#!` or as ELF are executable, such as `bin/tool`");
    assert_eq!(said(), said(), "also when nothing is read");
    let image = world.built(&["build", "app"]);
    insta::assert_snapshot!(top_layer(&image), @"
    d 0755 var
    d 0755 var/task
    d 0755 var/task/bin
    f 0755 var/task/bin/tool 4 bytes
    f 0755 var/task/bootstrap 20 bytes
    f 0644 var/task/data.txt 4 bytes
    ");
}

/// What `build` says of a zip.
fn refusal(zip: &[u8]) -> String {
    let world = World::new();
    world.sandbox.write("app/x.zip", zip);
    world.sandbox.write(
        "app/tierce.toml",
        "[image]\nbase = \"scratch\"\nplatforms = [\"arm64\"]\n[[layer]]\nname = \"a\"\nzip = \"x.zip\"\n",
    );
    world.fails(1, &["build", "app"])
}

#[test]
fn a_hostile_zip_is_refused_by_name() {
    let file = |name: &str| ZipMember::file(name, 0o644, "content");
    let mut said = String::new();
    for members in [
        vec![file("../../etc/passwd")],
        vec![file("/etc/passwd")],
        vec![file("C:/windows/x")],
        vec![file("lib\\x.py").without_mode()],
        vec![file("a\0b")],
        vec![file("x"), file("./x")],
        vec![ZipMember::symlink("out", "/etc"), file("out/passwd")],
        vec![file("x"), file("x/y")],
        vec![file("x").both(|header| header.flags |= 1)],
        vec![file("x").both(|header| header.method = 14)],
        vec![file("x").both(|header| header.crc ^= 1)],
        vec![file("x").both(|header| header.size = 1 << 30)],
        vec![file("x").with(|member| member.local.name = b"y".to_vec())],
        vec![file("x").with(|member| member.local.size = 0)],
        vec![file("x"), file("y").with(|member| member.offset = Some(0))],
        vec![file("pipe").with(|member| member.attributes = 0o010_644 << 16)],
        vec![file(".wh.etc")],
        vec![ZipMember::symlink("x", "")],
    ] {
        said += &refusal(&Zip::of(members).build());
        said.push('\n');
    }
    let said = said
        .replace("error: could not make the layer `a`\n", "")
        .replace(
            "  caused by: could not add the archive `[SANDBOX]/work/app/x.zip`\n",
            "",
        );
    insta::assert_snapshot!(said.trim_end(), @r"
      caused by: member `../../etc/passwd` is refused: its name has a `..` component
      caused by: member `/etc/passwd` is refused: its name is absolute
      caused by: member `C:/windows/x` is refused: its name begins with a drive letter
      caused by: member `lib\x.py` is refused: its name has backslashes for slashes: the program that made the zip writes names as on Windows
    hint: PowerShell 7, `tar -a -cf FILE.zip` and Python's zipfile write names as they should be
      caused by: member `a\u{0}b` is refused: its name holds a NUL byte
      caused by: member `x` is refused: another member has its path
      caused by: member `out/passwd` is refused: it lies behind the symlink `out`
      caused by: member `x/y` is refused: `x`, which it lies in, is no directory
      caused by: member `x` is refused: it is encrypted
      caused by: member `x` is refused: it is compressed with LZMA (method 14); what is read is stored and deflate
      caused by: member `x` is refused: its checksum does not match
      caused by: member `x` is refused: 9 compressed bytes cannot hold the 1073741824 bytes that are stated
      caused by: member `x` is refused: its local header has another name
      caused by: member `x` is refused: its local header has other sizes
      caused by: member `x` is refused: its data overlap with what follows them in the file
      caused by: member `pipe` is refused: it is a FIFO
      caused by: `var/task/.wh.etc`: names that start with `.wh.` delete files in a layer and cannot be in one
      caused by: link `x` is refused: its target `` has an empty component
    ");
}

#[test]
fn what_is_no_zip_is_named() {
    let good = Zip::of(function()).build();
    insta::assert_snapshot!(refusal(b"this is no zip"), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: not a zip
    ");
    insta::assert_snapshot!(refusal(b"\x1f\x8b\x08\0\0\0\0\0"), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: not a zip but gzip
    hint: a tar is named by `tar`
    ");
    insta::assert_snapshot!(refusal(&good[..good.len() - 30]), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: the zip is truncated: it has no whole end record
    ");
    insta::assert_snapshot!(refusal(&[&good, &b"x"[..]].concat()), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: data after the end of the zip, at byte 678
    ");
    insta::assert_snapshot!(refusal(&[&b"x"[..], &good].concat()), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: bad central directory: it does not lie where its end says
    ");
    let mut part = good.clone();
    let at = part.len() - 18;
    part[at] = 2;
    insta::assert_snapshot!(refusal(&part), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: the zip is one part of several: put them together first (`zip -s 0 PART --out WHOLE`)
    ");

    let world = World::new();
    world.sandbox.write("app/x.zip", &good);
    let build = |layer: &str| {
        world.sandbox.write(
            "app/tierce.toml",
            format!("[image]\nbase = \"scratch\"\nplatforms = [\"arm64\"]\n[[layer]]\nname = \"a\"\n{layer}\n"),
        );
        world.fails(1, &["build", "app"])
    };
    insta::assert_snapshot!(build("tar = \"x.zip\""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/x.zip`
      caused by: not a tar archive but zip: what is read is plain tar, and tar compressed once with gzip or zstd
    hint: a zip is named by `zip`, or by `lambda-layer`
    ");
    insta::assert_snapshot!(build("zip = \"y.zip\""), @r#"
    error: app/tierce.toml:6:7: `y.zip` is not there (looked in [SANDBOX]/work/app)
      |
    6 | zip = "y.zip"
      |       ^^^^^^^
    "#);
    insta::assert_snapshot!(build("zip = \"../x.zip\""), @r#"
    error: app/tierce.toml:6:7: `../x.zip` is outside the context [SANDBOX]/work/app
      |
    6 | zip = "../x.zip"
      |       ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(build("zip = \".\""), @"
    error: could not make the layer `a`
      caused by: could not add the archive `[SANDBOX]/work/app/.`
      caused by: not a regular file: a zip is read from its end
    ");
    insta::assert_snapshot!(build("zip = \"x.zip\"\nlambda-layer = \"x.zip\""), @"
    error: app/tierce.toml:4:1: a layer is made of one archive: `tar`, `zip` or `lambda-layer`; each of several is a [[layer]] of its own
      |
    4 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(build("zip = \"x.zip\"\nverbatim = true"), @"
    error: app/tierce.toml:4:1: `verbatim` belongs to a `tar`: the bytes of a zip are no layer
      |
    4 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(build("lambda-layer = \"x.zip\"\nto = \"/srv\""), @"
    error: app/tierce.toml:4:1: a `lambda-layer` goes to `/opt/`; `zip` goes wherever `to` says
      |
    4 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(build("zip = \"x.zip\"\nowners = \"keep\""), @"
    error: app/tierce.toml:4:1: a zip has no owners, hardlinks or extended attributes to keep
      |
    4 | [[layer]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(build("zips = \"x.zip\""), @r#"
    error: app/tierce.toml:6:1: unknown field `zips`, expected one of `name`, `add`, `tar`, `zip`, `lambda-layer`, `python`, `python-version`, `bytecode`, `glibc`, `node`, `scripts`, `binary`, `libraries`, `to`, `include`, `exclude`, `verbatim`, `modes`, `owners`, `hardlinks`, `xattrs`, `mtime`, `prune-prebuilds`, `split`
      |
    6 | zips = "x.zip"
      | ^^^^
    hint: did you mean `zip`?
    "#);
    fs::remove_file(world.path("app/tierce.toml")).unwrap();
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--zip=:/x"]), @"
    error: invalid value ':/x' for '--zip <FILE[:DEST]>': expected FILE or FILE:DEST, for example function.zip

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(world.fails(2, &["build", "app", "--lambda-layer=y.zip", "--base=scratch"]), @"error: --lambda-layer y.zip: `y.zip` is not there (looked in [SANDBOX]/work/app)");
}
