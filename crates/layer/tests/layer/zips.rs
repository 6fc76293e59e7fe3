//! Zips as sources: what they become, and which are refused.

use std::fs::{self, File};
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::tempdir;
use tierce_layer::{
    ArchiveAdd, ArchiveError, BaseLinks, ContentError, Destination, EntryKind, Keep, Limits,
    Matcher, Notice, Treatment, Tree, ZipError, add_zip,
};
use tierce_testkit::zip::{Zip, ZipMember, extra_field};

use crate::support::{SMALL, archive_of, chain, listing, path};

struct Options {
    destination: &'static str,
    include: Matcher,
    exclude: Matcher,
    treatment: Treatment,
    limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            destination: "/",
            include: Matcher::default(),
            exclude: Matcher::default(),
            treatment: Treatment::default(),
            limits: Limits::default(),
        }
    }
}

fn matcher(pattern: &str) -> Matcher {
    Matcher::new([pattern]).unwrap()
}

fn add_file(file: &Path, options: &Options) -> Result<(Tree, Vec<Notice>), ArchiveError> {
    let scratch = tempdir().unwrap();
    let add = ArchiveAdd {
        destination: &Destination::parse(options.destination).unwrap(),
        exclude: Some(&options.exclude),
        include: (!options.include.is_empty()).then_some(&options.include),
        treatment: &options.treatment,
        scratch: scratch.path(),
        limits: options.limits,
    };
    let (mut tree, mut notices) = (Tree::new(), Vec::new());
    let result = add_zip(file, &add, &mut tree, &mut notices);
    assert!(result.is_ok() || (tree.is_empty() && notices.is_empty()));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    result.map(|_| (tree, notices))
}

fn try_add(zip: &[u8], options: &Options) -> Result<(Tree, Vec<Notice>), ArchiveError> {
    let directory = tempdir().unwrap();
    let file = directory.path().join("x.zip");
    fs::write(&file, zip).unwrap();
    add_file(&file, options)
}

#[track_caller]
fn add(zip: &Zip, options: &Options) -> (Tree, Vec<Notice>) {
    match try_add(&zip.build(), options) {
        Ok(added) => added,
        Err(error) => panic!("{}", chain(&error)),
    }
}

fn bytes_at(tree: &Tree, name: &str) -> Vec<u8> {
    let EntryKind::File(file) = &tree.get(&path(name)).unwrap().kind else {
        panic!("a file")
    };
    let mut bytes = Vec::new();
    let read = file.content.read_pieces::<ContentError>(1000, |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    read.unwrap();
    bytes
}

/// What is said of a zip that is refused, without the words that are always the same.
#[track_caller]
fn refusal(zip: &[u8]) -> String {
    let limits = SMALL;
    let options = Options {
        limits,
        ..Options::default()
    };
    let error = try_add(zip, &options).map(drop).unwrap_err();
    let text = chain(&error);
    let (before, problem) = text.split_once("x.zip`: ").unwrap();
    assert!(before.starts_with("could not add the archive `/"), "{text}");
    problem.to_owned()
}

fn sample() -> Vec<ZipMember> {
    vec![
        ZipMember::file("bootstrap", 0o755, "#!/bin/sh\nexec true\n"),
        ZipMember::directory("lib/"),
        ZipMember::file("lib/data", 0o600, vec![7; 70_000]),
        ZipMember::file("lib/set-id", 0o6711, "x"),
        ZipMember::symlink("lib/link", "../bootstrap"),
        ZipMember::file("é", 0o644, "").both(|header| header.flags |= 1 << 11),
        ZipMember::file("a/b\\c", 0o644, "of Unix"),
    ]
}

const SAMPLE: &str = "0755 0:0 directory a\n\
                      0644 0:0 file a/b\\c\n\
                      0755 0:0 file bootstrap\n\
                      0755 0:0 directory lib\n\
                      0644 0:0 file lib/data\n\
                      0777 0:0 symlink lib/link\n\
                      0755 0:0 file lib/set-id\n\
                      0644 0:0 file é\n";

/// Each way in which programs write the same files.
fn ways() -> Vec<(&'static str, Zip)> {
    let each = |edit: fn(ZipMember) -> ZipMember| Zip::of(sample().into_iter().map(edit));
    let plain = each(|member| member);
    vec![
        (
            "another order",
            Zip {
                members: sample().into_iter().rev().collect(),
                ..plain.clone()
            },
        ),
        (
            "another order in the directory",
            Zip {
                reversed: true,
                ..plain.clone()
            },
        ),
        ("stored", each(ZipMember::stored)),
        ("another level", each(|member| member.deflated(1))),
        ("sizes after the data", each(ZipMember::deferred)),
        (
            "sizes after the data, without a signature",
            each(|member| {
                member
                    .deferred()
                    .with(|member| drop(member.descriptor.drain(..4)))
            }),
        ),
        (
            "large sizes after the data",
            each(|member| {
                member.deferred().with(|member| {
                    member.descriptor.truncate(8);
                    let sizes = [member.central.compressed, member.central.size];
                    let sizes = sizes.into_iter().flat_map(u64::to_le_bytes);
                    member.descriptor.extend(sizes);
                })
            }),
        ),
        ("large numbers", each(ZipMember::large)),
        (
            "a large end, and a comment",
            Zip {
                large: true,
                comment: b"made by hand".to_vec(),
                ..plain.clone()
            },
        ),
        (
            "other times, and fields that say nothing",
            each(|member| {
                member.both(|header| {
                    header.time += 0x0101_0101;
                    header.extra.extend(extra_field(0x5455, &[1, 1, 2, 3, 4]));
                    header
                        .extra
                        .extend(extra_field(0x7875, &[1, 4, 1, 2, 3, 4]));
                    header.extra.extend([0; 3]);
                })
            }),
        ),
        (
            "names in a field of their own",
            each(|member| {
                let name = member.central.name.clone();
                let strange = [&b"x"[..], &name].concat();
                let sum = crc32fast::hash(&strange).to_le_bytes();
                let field = extra_field(0x7075, &[&[1], &sum[..], &name].concat());
                member.both(|header| {
                    header.name.clone_from(&strange);
                    header.extra.extend(&field);
                })
            }),
        ),
    ]
}

#[test]
fn all_ways_to_write_a_zip_give_one_layer() {
    let (tree, notices) = add(&Zip::of(sample()), &Options::default());
    assert_eq!(notices, []);
    assert_eq!(listing(&tree), SAMPLE);
    assert_eq!(bytes_at(&tree, "lib/data"), vec![7; 70_000]);
    let EntryKind::Symlink(target) = &tree.get(&path("lib/link")).unwrap().kind else {
        panic!("a symlink")
    };
    assert_eq!(**target, *b"../bootstrap");
    let archive = archive_of(tree);
    for (name, zip) in ways() {
        let (tree, notices) = add(&zip, &Options::default());
        assert_eq!(notices, [], "{name}");
        assert!(archive_of(tree) == archive, "{name}");
    }
}

#[test]
fn modes_count_where_a_unix_system_wrote_them() {
    let keep = Options {
        treatment: Treatment {
            modes: Keep::Keep,
            ..Treatment::default()
        },
        ..Options::default()
    };
    let (tree, _) = add(&Zip::of(sample()), &keep);
    let text = listing(&tree);
    assert!(text.contains("0600 0:0 file lib/data"), "{text}");
    assert!(text.contains("6711 0:0 file lib/set-id"), "{text}");

    // Elsewhere the upper half of the attributes is no mode, nor is it one of a link.
    let windows = |member: ZipMember| member.with(|member| member.system = 0);
    let members = sample().into_iter().take(5).map(windows);
    let (tree, notices) = add(&Zip::of(members), &Options::default());
    let text = listing(&tree);
    assert!(text.contains("0644 0:0 file lib/set-id"), "{text}");
    assert!(text.contains("0644 0:0 file lib/link"), "{text}");
    assert_eq!(notices.len(), 1);
}

#[test]
fn programs_of_a_zip_without_modes_are_executable() {
    let members = [
        ZipMember::file("bin/run", 0, "#!/bin/sh\n"),
        ZipMember::file("bootstrap", 0, b"\x7fELF\x02"),
        ZipMember::file("readme", 0, "# no program"),
        ZipMember::file("short", 0, "#"),
    ];
    let none = members.clone().map(ZipMember::without_mode);
    let (tree, notices) = add(&Zip::of(none.clone()), &Options::default());
    let text = listing(&tree);
    assert!(text.contains("0755 0:0 file bin/run"), "{text}");
    assert!(text.contains("0755 0:0 file bootstrap"), "{text}");
    assert!(text.contains("0644 0:0 file readme"), "{text}");
    assert!(text.contains("0644 0:0 file short"), "{text}");
    let [Notice::ModesGuessed { first, .. }] = &notices[..] else {
        panic!("{notices:?}")
    };
    assert_eq!(*first, path("bin/run"));

    // `git archive` writes a mode for executables alone: the others have been decided about.
    let [_, bootstrap, ..] = members;
    let executable = bootstrap.with(|member| member.attributes |= 0o755 << 16);
    let mixed = none.into_iter().enumerate();
    let mixed = mixed.map(|(place, member)| {
        if place == 1 {
            executable.clone()
        } else {
            member
        }
    });
    let (tree, notices) = add(&Zip::of(mixed), &Options::default());
    let text = listing(&tree);
    assert!(text.contains("0644 0:0 file bin/run"), "{text}");
    assert!(text.contains("0755 0:0 file bootstrap"), "{text}");
    assert_eq!(notices, []);
}

#[test]
fn patterns_choose_members() {
    let options = Options {
        destination: "/opt/",
        include: matcher("lib"),
        exclude: matcher("**/set-id"),
        ..Options::default()
    };
    let (tree, notices) = add(&Zip::of(sample()), &options);
    assert_eq!(
        listing(&tree),
        "0755 0:0 directory opt\n\
         0755 0:0 directory opt/lib\n\
         0644 0:0 file opt/lib/data\n\
         0777 0:0 symlink opt/lib/link\n"
    );
    assert_eq!(bytes_at(&tree, "opt/lib/data").len(), 70_000);
    assert_eq!(notices, []);

    // The directories above what is taken are those of the zip.
    let options = Options {
        include: matcher("d/x"),
        treatment: Treatment {
            modes: Keep::Keep,
            ..Treatment::default()
        },
        ..Options::default()
    };
    let members = [
        ZipMember::directory("d/").with(|member| member.attributes = 0o40_700 << 16),
        ZipMember::file("d-e", 0o644, ""),
        ZipMember::file("d/x", 0o644, ""),
    ];
    let (tree, _) = add(&Zip::of(members), &options);
    assert_eq!(listing(&tree), "0700 0:0 directory d\n0644 0:0 file d/x\n");

    for large in [false, true] {
        let empty = Zip {
            large,
            ..Zip::of([])
        };
        let (tree, notices) = add(&empty, &Options::default());
        assert!(tree.is_empty());
        assert!(matches!(notices[..], [Notice::NothingAdded { .. }]));
    }
}

#[test]
fn compiled_python_is_known_by_unix_times() {
    let time = 1_700_000_001_u32;
    let pyc = [
        &[1, 2, 3, 4, 0, 0, 0, 0],
        &time.to_le_bytes()[..],
        &[1, 0, 0, 0],
    ]
    .concat();
    let source = ZipMember::file("x.py", 0o644, "1");
    let compiled = ZipMember::file("__pycache__/x.cpython-312.pyc", 0o644, pyc);
    let settled = |source: ZipMember| {
        let (tree, mut notices) = add(&Zip::of([compiled.clone(), source]), &Options::default());
        tree.settle(Some(&BaseLinks::none()), &mut notices).unwrap();
        notices.len()
    };
    let field = extra_field(0x5455, &[&[1], &time.to_le_bytes()[..]].concat());
    let timed = source.clone().both(|header| header.extra = field.clone());
    assert_eq!(settled(timed), 0);
    assert_eq!(settled(source), 1, "left out, and said so");
}

#[test]
fn what_is_harmless_is_taken() {
    let members = [
        ZipMember::directory("./"),
        ZipMember::file("./A//b", 0o644, "1"),
        ZipMember::file("a/b", 0o644, "2"),
        ZipMember::directory("d/"),
        ZipMember::directory("d/"),
        ZipMember::file("dir-by-name/", 0o644, ""),
        ZipMember::directory("dir-by-mode"),
        ZipMember::file("x:y", 0o644, ""),
        ZipMember::symlink("outside", "../../../etc/passwd"),
        ZipMember::symlink("absolute", "/etc/passwd"),
        ZipMember::file(b"\xff", 0o644, ""),
    ];
    let (tree, notices) = add(&Zip::of(members), &Options::default());
    assert_eq!(notices, []);
    assert_eq!(
        listing(&tree),
        "0755 0:0 directory A\n\
         0644 0:0 file A/b\n\
         0755 0:0 directory a\n\
         0644 0:0 file a/b\n\
         0777 0:0 symlink absolute\n\
         0755 0:0 directory d\n\
         0755 0:0 directory dir-by-mode\n\
         0755 0:0 directory dir-by-name\n\
         0777 0:0 symlink outside\n\
         0644 0:0 file x:y\n\
         0644 0:0 file \\xff\n"
    );
}

/// Where the second member of [`one`] begins.
const AFTER_GOOD: u64 = 30 + 4 + 4;

fn one(member: ZipMember) -> Vec<u8> {
    Zip::of([ZipMember::file("good", 0o644, "good").stored(), member]).build()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn hostile_members_are_refused() {
    let file = |name: &str| ZipMember::file(name, 0o644, "content");
    let x = || file("x");
    let mode = |mode: u32| move |member: &mut ZipMember| member.attributes = mode << 16;
    let parent = "its name has a `..` component";
    let cases: Vec<(ZipMember, String)> = [
        (file("../x"), parent),
        (file("a/../../x"), parent),
        (file("a/.."), parent),
        (file("/x"), "its name is absolute"),
        (file("/"), "its name is absolute"),
        (file(""), "its name has an empty component"),
        (file("x\0y"), "its name holds a NUL byte"),
        (file("C:/x"), "its name begins with a drive letter"),
        (file("c:\\x"), "its name begins with a drive letter"),
        (
            file("a\\x").without_mode(),
            "its name has backslashes for slashes: the program that made the zip writes names as \
             on Windows",
        ),
        (
            file("..\\x").without_mode(),
            "its name has backslashes for slashes: the program that made the zip writes names as \
             on Windows",
        ),
        (
            ZipMember::file(b"\xff", 0o644, "").without_mode(),
            "its name is in an unknown encoding: the zip should say that it is UTF-8",
        ),
        (
            ZipMember::file(b"\xff", 0o644, "").both(|header| header.flags = 1 << 11),
            "its name is in an unknown encoding: the zip should say that it is UTF-8",
        ),
        (
            x().both(|header| {
                let sum = crc32fast::hash(b"x").to_le_bytes();
                header.extra = extra_field(0x7075, &[&[1], &sum[..], b"../y"].concat());
            }),
            parent,
        ),
        (x().with(mode(0o010_644)), "it is a FIFO"),
        (x().with(mode(0o140_644)), "it is a socket"),
        (x().with(mode(0o020_644)), "it is a device"),
        (x().with(mode(0o060_644)), "it is a device"),
        (x().with(mode(0o170_644)), "it is a member of unknown type"),
        (
            ZipMember::symlink("x/", "y"),
            "it is a symlink whose name ends in `/`",
        ),
        (file("x/"), "it is a directory with content"),
        (x().with(mode(0o040_755)), "it is a directory with content"),
        (x().both(|header| header.flags = 1), "it is encrypted"),
        (x().both(|header| header.flags = 1 << 6), "it is encrypted"),
        (x().with(|member| member.local.flags = 1), "it is encrypted"),
        (
            x().both(|header| header.flags = 1 << 5),
            "it is a patch for other data",
        ),
        (
            x().both(|header| header.method = 93),
            "it is compressed with zstd (method 93); what is read is stored and deflate",
        ),
        (
            x().both(|header| header.method = 99),
            "it is compressed with method 99; what is read is stored and deflate",
        ),
        (
            x().both(|header| header.extra = vec![1, 0, 200, 0, 1]),
            "its extra fields are damaged",
        ),
        (
            x().both(|header| header.extra = extra_field(1, &[]).repeat(2)),
            "its extra fields are damaged",
        ),
        (
            x().both(|header| {
                header.compressed = u32::MAX.into();
                header.extra = extra_field(1, &[]);
            }),
            "its zip64 field lacks a number",
        ),
        (
            x().stored().both(|header| header.size += 1),
            "it is not compressed and has two sizes",
        ),
        (
            x().both(|header| header.size = 1 << 19),
            "9 compressed bytes cannot hold the 524288 bytes that are stated",
        ),
        (
            x().both(|header| header.size += 1),
            "it holds less than the 8 bytes that are stated",
        ),
        (
            x().both(|header| header.size -= 1),
            "it holds more than the 6 bytes that are stated",
        ),
        (
            x().both(|header| header.crc ^= 1),
            "its checksum does not match",
        ),
        (
            x().with_data(8, vec![0xff; 9]),
            "its compressed data are damaged",
        ),
        (
            x().with(|member| member.data.push(0))
                .both(|header| header.compressed += 1),
            "its compressed data are damaged",
        ),
        (
            x().with(|member| member.data.truncate(8))
                .both(|header| header.compressed -= 1),
            "its compressed data are damaged",
        ),
        (
            x().with(|member| member.local.name = b"y".to_vec()),
            "its local header has another name",
        ),
        (
            x().with(|member| member.local.method = 0),
            "its local header has another compression method",
        ),
        (
            x().with(|member| member.local.size += 1),
            "its local header has other sizes",
        ),
        (
            x().with(|member| member.local.compressed -= 1),
            "its local header has other sizes",
        ),
        (
            x().with(|member| member.local.crc ^= 1),
            "its local header has another checksum",
        ),
        (
            x().with(|member| member.local.extra = vec![1, 2, 3, 4, 5]),
            "its local extra fields are damaged",
        ),
        (
            x().deferred().with(|member| member.descriptor[4] ^= 1),
            "what follows its data contradicts the directory",
        ),
        (
            x().deferred().with(|member| member.descriptor.clear()),
            "what follows its data contradicts the directory",
        ),
        (
            x().with(|member| member.offset = Some(AFTER_GOOD + 1)),
            "its local header is not where the directory says",
        ),
        (
            x().large().with(|member| member.offset = Some(u64::MAX)),
            "its local header is not where the directory says",
        ),
        (
            x().with(|member| member.data.truncate(3)),
            "its data overlap with what follows them in the file",
        ),
    ]
    .into_iter()
    .map(|(member, problem)| (member, problem.to_owned()))
    .collect();
    for (member, problem) in cases {
        let name = member.central.name.clone();
        let said = refusal(&one(member));
        let name = String::from_utf8_lossy(&name)
            .replace('\0', "\\u{0}")
            .replace('\u{fffd}', "\\xff");
        assert_eq!(said, format!("member `{name}` is refused: {problem}"));
    }
    for (target, problem) in [
        (
            "",
            "link `x` is refused: its target `` has an empty component",
        ),
        (
            "a\0b",
            "link `x` is refused: its target `a\\u{0}b` holds a NUL byte",
        ),
        (
            &*"t".repeat(4097),
            "link `x` is refused: its target `…` is longer than 4096 bytes",
        ),
    ] {
        assert_eq!(refusal(&one(ZipMember::symlink("x", target))), problem);
    }
}

#[test]
fn members_in_each_others_way_are_refused() {
    let file = |name: &str| ZipMember::file(name, 0o644, "content");
    for (members, problem) in [
        (
            vec![file("x"), file("y"), file("x")],
            "member `x` is refused: another member has its path",
        ),
        (
            vec![file("x"), file("./x")],
            "member `x` is refused: another member has its path",
        ),
        (
            vec![file("x"), ZipMember::directory("x/")],
            "member `x` is refused: another member has its path",
        ),
        (
            vec![file("x/y/z"), file("x-y"), ZipMember::symlink("x", "/etc")],
            "member `x/y/z` is refused: it lies behind the symlink `x`",
        ),
        (
            vec![file("x/y"), file("x")],
            "member `x/y` is refused: `x`, which it lies in, is no directory",
        ),
        (
            // The same bytes for many members: what makes the worst of bombs.
            vec![
                file("x"),
                file("x").with(|member| {
                    *member = member.clone().both(|header| header.name = b"y".to_vec());
                    member.offset = Some(0);
                }),
            ],
            "member `x` is refused: its data overlap with what follows them in the file",
        ),
    ] {
        assert_eq!(refusal(&Zip::of(members).build()), problem);
    }
}

#[test]
fn a_member_within_another_is_refused() {
    // The outer member is not compressed, and its content is the whole of the inner one.
    let inner = ZipMember::file("inner", 0o644, "content");
    let whole = Zip::of([inner.clone()]).build();
    let length = 30 + inner.central.name.len() + inner.data.len();
    let outer = ZipMember::file("outer", 0o644, &whole[..length]).stored();
    let within = inner.with(|member| {
        member.offset = Some(30 + 5);
    });
    assert_eq!(
        refusal(&Zip::of([outer, within]).build()),
        "member `outer` is refused: its data overlap with what follows them in the file"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn damaged_directories_are_refused() {
    let good = Zip::of(sample()).build();
    let end = good.len() - 22;
    let edited = |at: usize, bytes: &[u8]| {
        let mut edited = good.clone();
        edited[at..at + bytes.len()].copy_from_slice(bytes);
        edited
    };
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    let large = Zip {
        large: true,
        ..Zip::of(sample())
    };
    let large = large.build();
    let large_end = large.len() - 22 - 20 - 56;
    let mut other_length = good[end + 8..end + 20].to_vec();
    other_length[4] ^= 1;
    let edited_large = |at: usize, bytes: &[u8]| {
        let mut edited = large.clone();
        edited[at..at + bytes.len()].copy_from_slice(bytes);
        edited
    };
    let after = format!("data after the end of the zip, at byte {}", good.len());
    let misplaced = "bad central directory: it does not lie where its end says";
    let part =
        "the zip is one part of several: put them together first (`zip -s 0 PART --out WHOLE`)";
    let last = good.windows(4).rposition(|bytes| bytes == b"PK\x01\x02");
    let mut in_comment = good.clone();
    in_comment[last.unwrap() + 32] = 20;
    in_comment[end + 12..end + 16]
        .copy_from_slice(&u32::try_from(end - directory + 20).unwrap().to_le_bytes());
    in_comment.splice(end..end, [&b"PK\x06\x07"[..], &[0; 16]].concat());
    for (zip, problem) in [
        (vec![], "not a zip"),
        (b"this is text".to_vec(), "not a zip"),
        (b"\x1f\x8b\x08\0".to_vec(), "not a zip but gzip"),
        (
            good[..good.len() / 2].to_vec(),
            "the zip is truncated: it has no whole end record",
        ),
        (
            good[..end].to_vec(),
            "the zip is truncated: it has no whole end record",
        ),
        (
            good[..good.len() - 1].to_vec(),
            "the zip is truncated: it has no whole end record",
        ),
        ([&good, &b"more"[..]].concat(), &after),
        (
            // One zip in the comment of another.
            Zip {
                comment: Zip::of([]).build(),
                ..Zip::of(sample())
            }
            .build(),
            misplaced,
        ),
        (
            Zip {
                comment: b"PK\x05\x06".to_vec(),
                ..Zip::of(sample())
            }
            .build(),
            "the zip is truncated: it has no whole end record",
        ),
        ([&b"#!/bin/sh\n"[..], &good].concat(), misplaced),
        (good[1..].to_vec(), misplaced),
        (edited(end + 12, &[1]), misplaced),
        (edited(end + 4, &[1]), part),
        (
            edited(end + 8, &[6, 0, 6, 0]),
            "bad central directory: it has more members than its end says",
        ),
        (
            edited(end + 8, &[8, 0, 8, 0]),
            "bad central directory: it has fewer members than its end says",
        ),
        (
            edited(end + 8, &[0xff, 0xff, 0xff, 0xff]),
            "the zip is refused: it holds more than 100 members",
        ),
        (
            edited(directory, b"PKxx"),
            "bad central directory: a header in it does not begin as one",
        ),
        (
            edited(directory + 28, &[0xff, 0xff]),
            "bad central directory: it ends within a header",
        ),
        (edited_large(large_end, b"x"), misplaced),
        (edited_large(large_end + 4, &[0xff; 8]), misplaced),
        (edited_large(large_end + 48, &[0xff; 8]), misplaced),
        (edited_large(large.len() - 22 - 12, &[0xff; 8]), misplaced),
        (edited_large(large_end + 40, &[0xff; 8]), misplaced),
        (edited_large(large_end + 4, &[45]), misplaced),
        (edited_large(large.len() - 14, &[1, 0, 1, 0]), misplaced),
        (
            edited_large(large.len() - 14, &other_length),
            "bad central directory: its two ends contradict each other",
        ),
        (edited_large(large_end + 16, &[1]), part),
        (edited_large(large.len() - 22 - 16, &[1]), part),
        (edited(directory + 34, &[1]), part),
        // One reader takes it for a comment, another for the way to an end.
        (in_comment, misplaced),
    ] {
        assert_eq!(refusal(&zip), problem);
    }
}

#[test]
fn limits_are_of_what_is_stated() {
    let zeros = |name: &str| ZipMember::file(name, 0o644, vec![0; 600 << 10]);
    assert!(try_add(&one(zeros("a")), &Options::default()).is_ok());
    assert_eq!(
        refusal(&Zip::of([zeros("a"), zeros("b")]).build()),
        "the zip is refused: it holds more than 1048576 bytes"
    );
    let many = (0..101).map(|number| ZipMember::file(number.to_string(), 0o644, ""));
    assert_eq!(
        refusal(&Zip::of(many).build()),
        "the zip is refused: it holds more than 100 members"
    );
    // A short name may stand for two thousand directories.
    let deep = "d/".repeat(2040) + "x";
    let many = (0..100).map(|number| ZipMember::file(format!("{number}{deep}"), 0o644, ""));
    assert_eq!(
        refusal(&Zip::of(many).build()),
        "the zip is refused: it holds more than 268435456 bytes of names and attributes"
    );
}

#[test]
fn only_a_file_that_stays_as_it_is_is_read() {
    let directory = tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    made.unwrap();
    for path in [&*fifo, directory.path()] {
        let error = add_file(path, &Options::default()).map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                ArchiveError::Zip {
                    source: ZipError::NotAFile,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let missing = directory.path().join("missing");
    let error = add_file(&missing, &Options::default())
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, ArchiveError::Open { .. }), "{error:?}");

    // What was read is kept: the zip may go.
    let file = directory.path().join("x.zip");
    fs::write(&file, Zip::of(sample()).build()).unwrap();
    let (tree, _) = add_file(&file, &Options::default()).unwrap();
    File::create(&file).unwrap();
    assert_eq!(bytes_at(&tree, "lib/data"), vec![7; 70_000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// However a zip is damaged, it is refused or read, and never more comes out than is allowed.
    #[test]
    fn damage_never_panics(
        large in any::<bool>(),
        deferred in any::<bool>(),
        edits in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let mut members = sample();
        members.remove(2);
        let members = members.into_iter().map(|member| match (large, deferred) {
            (true, _) => member.large(),
            (_, true) => member.deferred(),
            _ => member,
        });
        let mut bytes = Zip { large, ..Zip::of(members) }.build();
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let options = Options { limits: SMALL, ..Options::default() };
        if let Ok((tree, _)) = try_add(&bytes, &options) {
            let size: u64 = tree
                .iter()
                .map(|(_, entry)| match &entry.kind {
                    EntryKind::File(file) => file.content.size(),
                    _ => 0,
                })
                .sum();
            prop_assert!(size <= SMALL.bytes);
        }
    }
}
