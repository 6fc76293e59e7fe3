//! Where entries go on a base with symlinks.

use tierce_layer::{
    BaseLinks, Compression, Entry, EntryKind, SettleError, Tree, needs_base_links, read_links,
};

use crate::support::{Raw, SMALL, chain, file, gzip, path, plan_of, tree_of};

fn links(pairs: &[(&str, &str)]) -> BaseLinks {
    pairs
        .iter()
        .map(|(link, target)| (path(link), target.as_bytes().to_vec()))
        .collect()
}

fn merged_usr() -> BaseLinks {
    links(&[
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("var/run", "/run"),
    ])
}

fn resolved(base: &BaseLinks, text: &str) -> String {
    match base.resolve(&path(text)) {
        Ok(Some(path)) => path.to_string(),
        Ok(None) => "/".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn paths_are_walked_as_the_kernel_walks_them() {
    let base = links(&[
        ("lib64", "usr/lib64"),
        ("usr/lib64", "lib"),
        ("var/run", "/run"),
        ("a/up", ".."),
        ("a/far", "../../../../etc"),
        ("a/here", "."),
        ("root", "/"),
        ("odd", "x//./y/"),
        ("loop", "loop"),
        ("ping", "pong/x"),
        ("pong", "ping/x"),
    ]);
    for (from, to) in [
        ("lib64/foo", "usr/lib/foo"),
        ("lib64", "usr/lib"),
        ("usr/lib/x", "usr/lib/x"),
        ("var/run/lock/x", "run/lock/x"),
        ("a/up/b", "b"),
        ("a/up", "/"),
        ("a/far/x", "etc/x"),
        ("a/here/here/here/x", "a/x"),
        ("root/root/a/up/lib64", "usr/lib"),
        ("odd/z", "x/y/z"),
        ("lib64x", "lib64x"),
        (
            "loop/x",
            "`loop/x` leads through too many symlinks of the base image, the last of them `loop`",
        ),
        (
            "ping",
            "`ping` leads through too many symlinks of the base image, the last of them `ping`",
        ),
    ] {
        assert_eq!(resolved(&base, from), to, "{from}");
    }
}

/// Links that lead to longer and longer places would cost more with each of them.
#[test]
fn targets_that_grow_a_path_beyond_all_bounds_are_given_up() {
    let growing = "n/".repeat(1500);
    let base = links(&[
        ("a", &format!("{growing}b")),
        (&format!("{growing}b"), &format!("{growing}c")),
    ]);
    let error = base.resolve(&path("a")).unwrap_err();
    assert_eq!(error.link, path(format!("{growing}b")));
    // What no link has a part in stays as it is.
    let long = path("n/".repeat(2047) + "n");
    assert_eq!(base.resolve(&long).unwrap(), Some(long));
}

fn places(tree: Tree, base: &BaseLinks) -> Vec<String> {
    let plan = tree.settle(Some(base), &mut Vec::new()).unwrap();
    plan.records()
        .iter()
        .map(|record| record.path.to_string())
        .collect()
}

#[test]
fn a_symlink_of_the_base_is_never_replaced_by_a_directory() {
    let mut tree = tree_of([
        ("lib64/foo.so", file("x")),
        ("bin/tool", file("x")),
        ("usr/bin/other", file("x")),
        ("var/run/app/pid", file("x")),
        ("lib/empty", Entry::directory(0o755)),
    ]);
    tree.insert_whiteout(&path("lib/gone"), &mut Vec::new())
        .unwrap();
    assert_eq!(
        places(tree, &merged_usr()),
        [
            "run",
            "run/app",
            "usr",
            "usr/bin",
            "usr/lib",
            "usr/lib/empty",
            "usr/lib64",
            "var",
            "usr/lib/.wh.gone",
            "run/app/pid",
            "usr/bin/other",
            "usr/bin/tool",
            "usr/lib64/foo.so",
        ]
    );
}

#[test]
fn a_file_or_link_in_the_place_of_a_symlink_replaces_it() {
    let tree = tree_of([("lib64", Entry::symlink("elsewhere")), ("bin", file("x"))]);
    assert_eq!(places(tree, &merged_usr()), ["bin", "lib64"]);
}

#[test]
fn later_adds_win_also_where_links_bring_them_together() {
    for (first, second) in [("lib64/x", "usr/lib64/x"), ("usr/lib64/x", "lib64/x")] {
        let mut notices = Vec::new();
        let tree = tree_of([(first, file("first")), (second, file("second!"))]);
        let plan = tree.settle(Some(&merged_usr()), &mut notices).unwrap();
        let sizes: Vec<u64> = plan
            .records()
            .iter()
            .filter_map(|record| match &record.kind {
                tierce_layer::RecordKind::File(content) => Some(content.size()),
                _ => None,
            })
            .collect();
        assert_eq!(sizes, [7]);
        assert_eq!(notices.len(), 1);
        assert_eq!(
            notices[0].to_string(),
            "`usr/lib64/x`: a file takes the place of a file"
        );
    }
}

#[test]
fn what_needs_the_base_says_so() {
    for (text, needs) in [
        ("var/task", false),
        ("var/task/a/b", false),
        ("opt/x", false),
        ("tmp", false),
        ("app", false),
        ("srv/www", false),
        ("home/user", false),
        ("var", true),
        ("var/tasks", true),
        ("optional", true),
        ("lib64/x", true),
        ("etc", true),
    ] {
        assert_eq!(needs_base_links(&path(text)), needs, "{text}");
    }
    let mut notices = Vec::new();
    let inside = tree_of([("var/task/a", file("")), ("opt/b", Entry::directory(0o755))]);
    assert_eq!(inside.needs_base_links(), None);
    inside.settle(None, &mut notices).unwrap();
    let outside = tree_of([("var/task/a", file("")), ("usr/lib/b", file(""))]);
    assert_eq!(outside.needs_base_links(), Some(&path("usr/lib/b")));
    let error = outside.settle(None, &mut notices).unwrap_err();
    assert!(matches!(error, SettleError::BaseUnknown { .. }));
    assert_eq!(
        error.to_string(),
        "the place of `usr/lib/b` depends on the symlinks of the base image, which are not known"
    );
    let looped = tree_of([("loop/x", file(""))]);
    let error = looped
        .settle(Some(&links(&[("loop", "loop")])), &mut notices)
        .unwrap_err();
    assert_eq!(
        chain(&error),
        "could not find the place of an entry in the base image: `loop` leads through too many \
         symlinks of the base image, the last of them `loop`"
    );
}

fn base_of(layers: &[Raw]) -> Vec<String> {
    let mut base = BaseLinks::none();
    for layer in layers {
        base.begin_layer();
        let archive = gzip(&layer.clone().end());
        read_links(&*archive, Compression::Gzip, SMALL, |record| {
            base.apply(&record)
        })
        .unwrap();
    }
    base.iter()
        .map(|(path, target)| format!("{path} -> {}", String::from_utf8_lossy(target)))
        .collect()
}

#[test]
fn layers_shadow_the_symlinks_below_them() {
    let raw = Raw::default;
    let lower = || {
        raw()
            .symlink("lib", "usr/lib")
            .symlink("a/x", "1")
            .symlink("a/b/y", "2")
            .symlink("a-b/z", "3")
    };
    for (upper, expected) in [
        (
            raw(),
            &["a-b/z -> 3", "a/b/y -> 2", "a/x -> 1", "lib -> usr/lib"][..],
        ),
        (
            raw().directory("lib"),
            &["a-b/z -> 3", "a/b/y -> 2", "a/x -> 1"],
        ),
        (
            raw().file("lib", b""),
            &["a-b/z -> 3", "a/b/y -> 2", "a/x -> 1"],
        ),
        (
            raw().symlink("lib", "new"),
            &["a-b/z -> 3", "a/b/y -> 2", "a/x -> 1", "lib -> new"],
        ),
        (raw().file(".wh.a", b""), &["a-b/z -> 3", "lib -> usr/lib"]),
        (raw().file("a", b""), &["a-b/z -> 3", "lib -> usr/lib"]),
        (
            raw().directory("a"),
            &["a-b/z -> 3", "a/b/y -> 2", "a/x -> 1", "lib -> usr/lib"],
        ),
        (
            raw().file("a/.wh.x", b""),
            &["a-b/z -> 3", "a/b/y -> 2", "lib -> usr/lib"],
        ),
        (
            raw().file("a/b/.wh..wh..opq", b""),
            &["a-b/z -> 3", "a/x -> 1", "lib -> usr/lib"],
        ),
        (raw().file(".wh..wh..opq", b""), &[]),
        // Whiteouts speak of lower layers, before or after what their own layer brings.
        (
            raw()
                .symlink("a/new", "4")
                .file("a/.wh..wh..opq", b"")
                .file("a/.wh.new", b""),
            &["a-b/z -> 3", "a/new -> 4", "lib -> usr/lib"],
        ),
        // Through the link of the lower layer.
        (
            raw().symlink("lib/m", "5").file("lib/.wh.n", b""),
            &[
                "a-b/z -> 3",
                "a/b/y -> 2",
                "a/x -> 1",
                "lib -> usr/lib",
                "usr/lib/m -> 5",
            ],
        ),
    ] {
        assert_eq!(base_of(&[lower(), upper]), expected);
    }
}

#[test]
fn a_further_layer_meets_the_links_of_ours() {
    let mut base = merged_usr();
    let tree = tree_of([
        ("opt/current", Entry::symlink("v2")),
        ("lib", Entry::directory(0o755)),
        ("bin", file("no longer a link")),
    ]);
    base.apply_tree(&tree).unwrap();
    assert_eq!(resolved(&base, "opt/current/x"), "opt/v2/x");
    assert_eq!(resolved(&base, "bin/x"), "bin/x");
    // A tree is settled through the base, so its directories are no end of a link; this one was
    // given before that.
    assert_eq!(resolved(&base, "lib/x"), "lib/x");
}

#[test]
fn without_links_nothing_moves() {
    let tree = tree_of([("lib64/x", file("")), ("a", Entry::symlink("lib64"))]);
    let plan = plan_of(tree);
    let names: Vec<_> = plan
        .records()
        .iter()
        .map(|record| record.path.to_string())
        .collect();
    assert_eq!(names, ["lib64", "a", "lib64/x"]);
    let whiteout = tree_of([("b", file(""))]);
    assert!(matches!(
        whiteout.get(&path("b")).unwrap().kind,
        EntryKind::File(_)
    ));
}

/// umoci's `insert` leaves off the padding of the last member and the two end blocks.
#[test]
fn a_base_layer_that_ends_with_its_last_byte_is_read() {
    let whole = Raw::default()
        .symlink("lib64", "usr/lib64")
        .file("last", b"five!");
    let mut archive = whole.end();
    let cut = archive.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    archive.truncate(cut);
    assert!(archive.ends_with(b"five!"));
    let mut base = BaseLinks::none();
    base.begin_layer();
    read_links(&*archive, Compression::None, SMALL, |record| {
        base.apply(&record)
    })
    .unwrap();
    assert_eq!(base.iter().count(), 1);
}
