//! The file system of a box: root, `/tmp`, `/proc`, `/dev`, volumes.
//!
//! Everything is mounted onto descriptors that were opened inside the new root with
//! `RESOLVE_IN_ROOT`, so a symlink of the image leads nowhere else, and nothing depends on what a
//! path means to this process.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::sandbox::Feature;
use crate::sandbox::inside::{Refused, Step as _};
use crate::sandbox::protocol::{Place, Room};

/// Devices that every program may expect; there is no terminal.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Links in `/dev` that programs open their own streams by.
const STREAMS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// What of `/proc` is about the machine: visible and not to be written.
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// What of `/proc` is about the machine and nobody's business in a box.
const HIDDEN: [&str; 8] = [
    "acpi",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

/// Keeps what is mounted here from all other namespaces.
pub(super) fn make_private() -> Result<(), Refused> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .step_of(Feature::Namespaces, "make mounts private")
}

/// Makes the file system in a mount namespace of its own and enters it. There is no way back.
pub(super) fn make(room: &Room) -> Result<(), Refused> {
    super::entrance::unshare(rustix::thread::UnshareFlags::NEWNS)
        .step_of(Feature::Namespaces, "make a mount namespace")?;
    make_private()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Before anything is mounted, because paths lead to this machine's files until then.
    let sources = open_sources(room)?;
    let top = make_root(room, &sources)?;
    mount_proc(&top)?;
    mount_tmp(&top, room.tmp_size)?;
    mount_dev(&top, room.shared_memory)?;
    let mut read_only = Vec::new();
    for place in &room.places {
        let tree = mount_place(&top, place, &sources)?;
        read_only.extend(tree.map(|tree| (tree, place.writable)));
    }
    drop(sources);
    change_root(&top)?;
    check_proc()?;
    for (tree, writable) in read_only {
        restrict(&tree, writable)?;
    }
    Ok(())
}

fn open_sources(room: &Room) -> Result<Vec<OwnedFd>, Refused> {
    let open = |source: &PathBuf| {
        rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .step(format!("open `{}`", source.display()))
    };
    room.sources.iter().map(open).collect()
}

/// Bytes of a tmpfs for each file that can be in it: a page. Files that are empty, and links, take
/// memory of the kernel that no size counts. An ext4 has a file for 16 KiB at most (mke2fs(8)), so
/// nothing that fits on Lambda is refused.
const BYTES_PER_FILE: u64 = 4096;

/// So small that a tmpfs of any size may have them.
const FEWEST_FILES: u64 = 1024;

/// A tmpfs of so many bytes that is mounted nowhere yet.
pub(super) fn tmpfs(mode: &str, size: u64) -> Result<OwnedFd, Refused> {
    // Zero would be no limit at all: tmpfs(5).
    let size = size.max(1);
    let files = (size / BYTES_PER_FILE).max(FEWEST_FILES);
    let options = [
        ("mode", mode),
        ("size", &size.to_string()),
        ("nr_inodes", &files.to_string()),
    ];
    mount_of("tmpfs", &options, MountAttrFlags::empty()).step("make a file system in memory")
}

fn mount_of(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let system = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(&system, *name, *value)?;
    }
    rustix::mount::fsconfig_create(&system)?;
    rustix::mount::fsmount(
        &system,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

/// Mounts what has no place yet onto what `point` is.
pub(super) fn attach(mount: &OwnedFd, point: impl AsFd) -> rustix::io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        point,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Makes something to mount on in a directory of ours.
pub(super) fn make_point(
    directory: impl AsFd,
    name: &str,
    is_directory: bool,
) -> Result<(), Refused> {
    let made = if is_directory {
        rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    made.step("make a mount point")
}

/// A path to what a descriptor is.
fn path_of(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// Opens `path` of the box, wherever symlinks lead inside it.
fn resolve(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Mounts the root somewhere.
fn make_root(room: &Room, sources: &[OwnedFd]) -> Result<OwnedFd, Refused> {
    let layers = sources.get(..room.layers).unwrap_or_default();
    let first = layers.first().ok_or(Errno::NOENT).step("find the root")?;
    // The uppermost directory of the root is a place to mount on that is there for sure.
    let workshop = tmpfs("0755", room.tmp_size)?;
    attach(&workshop, first).step_of(Feature::Namespaces, "mount a directory to work in")?;
    for name in ["root", "scaffold", "upper", "work"] {
        make_point(&workshop, name, true)?;
    }
    let targets = targets(room)?;
    let has = |target: &Target| resolve(first, &target.path).is_ok();
    if let ([only], false) = (layers, room.writable_root)
        && targets.iter().all(has)
    {
        return bind_root(only, &workshop);
    }
    for target in &targets {
        make_scaffold(
            &path_of(&workshop).join("scaffold").join(&target.path),
            target.is_directory,
        )
        .step("make mount points")?;
    }
    match (overlay_root(room, layers, &workshop), layers) {
        // Where there is no overlay, one directory does without what is not needed.
        (Err(_), [only])
            if !room.writable_root && targets.iter().all(|it| it.is_optional || has(it)) =>
        {
            bind_root(only, &workshop)
        }
        (made, _) => made,
    }
}

/// What has to be in the root to be mounted on.
struct Target {
    /// Relative to the root.
    path: PathBuf,
    is_directory: bool,
    is_optional: bool,
}

fn targets(room: &Room) -> Result<Vec<Target>, Refused> {
    let own = ["dev", "proc", "tmp"].map(|name| Target {
        path: PathBuf::from(name),
        is_directory: true,
        is_optional: false,
    });
    let mut targets = Vec::from(own);
    for place in &room.places {
        targets.push(Target {
            path: inner(&place.target)?,
            is_directory: place.directory,
            is_optional: place.optional,
        });
    }
    Ok(targets)
}

/// `target` without its leading slash, if it names something below the root.
fn inner(target: &Path) -> Result<PathBuf, Refused> {
    let mut components = target.components();
    let inner = components.as_path().strip_prefix("/").ok();
    components.next();
    inner
        .filter(|_| components.all(|component| matches!(component, Component::Normal(_))))
        .filter(|inner| !inner.as_os_str().is_empty())
        .map(Path::to_owned)
        .ok_or(Errno::INVAL)
        .step(format!("mount at `{}`", target.display()))
}

fn make_scaffold(path: &Path, is_directory: bool) -> io::Result<()> {
    if is_directory {
        return fs::create_dir_all(path);
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map(drop)
}

/// One directory alone needs no overlay.
fn bind_root(only: &OwnedFd, workshop: &OwnedFd) -> Result<OwnedFd, Refused> {
    let root = clone_tree(only, OpenTreeFlags::empty()).step("mount the root")?;
    rustix::mount::move_mount(
        &root,
        "",
        workshop,
        "root",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .step("mount the root")?;
    remount(&path_of(&root), MountFlags::RDONLY).step("make the root read-only")?;
    Ok(root)
}

/// The layers over a scaffold of mount points, which shows where no layer has something.
fn overlay_root(room: &Room, layers: &[OwnedFd], workshop: &OwnedFd) -> Result<OwnedFd, Refused> {
    // Names in /proc/self/fd are short and need no escaping: the options of a mount have to fit into
    // one page of memory, and paths of a hundred layers would not.
    rustix::process::chdir("/proc/self/fd").step("name the layers")?;
    let layers: Vec<_> = layers.iter().map(OwnedFd::as_raw_fd).collect();
    let options = overlay_options(&layers, workshop.as_raw_fd(), room.writable_root);
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if !room.writable_root {
        flags |= MountFlags::RDONLY;
    }
    let options = std::ffi::CString::new(options)
        .map_err(io::Error::from)
        .step("name the layers")?;
    rustix::mount::mount(
        "overlay",
        path_of(workshop).join("root"),
        "overlay",
        flags,
        options.as_c_str(),
    )
    .step_of(Feature::Overlay, "mount the root by overlay")?;
    rustix::fs::openat(
        workshop,
        "root",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step("open the root")
}

/// `userxattr` because the layers were unpacked by users, whose marks of whiteouts are of that kind.
fn overlay_options(layers: &[RawFd], workshop: RawFd, writable: bool) -> String {
    let scaffold = format!("{workshop}/scaffold");
    let names = layers.iter().map(RawFd::to_string).chain([scaffold]);
    let names = names.collect::<Vec<_>>().join(":");
    let upper = if writable {
        format!(",upperdir={workshop}/upper,workdir={workshop}/work")
    } else {
        String::new()
    };
    format!("userxattr,lowerdir={names}{upper}")
}

fn clone_tree(of: &OwnedFd, flags: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    rustix::mount::open_tree(
        of,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | flags,
    )
}

/// Adds flags to a mount. Those that it has may be locked, so they are given again
/// (`mount_namespaces(7)`).
fn remount(path: &Path, flags: MountFlags) -> rustix::io::Result<()> {
    let has = rustix::fs::statvfs(path)?.f_flag;
    let kept = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| has.contains(*flag))
    .fold(MountFlags::empty(), |all, (_, flag)| all | flag);
    let base = MountFlags::BIND | MountFlags::NOSUID;
    rustix::mount::mount_remount(path, base | kept | flags, "")
}

fn mount_proc(root: &OwnedFd) -> Result<(), Refused> {
    let step = "mount /proc";
    let point = resolve(root, Path::new("proc")).step(step)?;
    let proc =
        mount_of("proc", &[], MountAttrFlags::MOUNT_ATTR_NOEXEC).step_of(Feature::Proc, step)?;
    attach(&proc, point).step(step)
}

fn mount_tmp(root: &OwnedFd, size: u64) -> Result<(), Refused> {
    let point = resolve(root, Path::new("tmp")).step("mount /tmp")?;
    let tmp = tmpfs("1777", size)?;
    attach(&tmp, point).step("mount /tmp")
}

fn mount_dev(root: &OwnedFd, shared_memory: Option<u64>) -> Result<(), Refused> {
    let step = "mount /dev";
    let point = resolve(root, Path::new("dev")).step(step)?;
    // Nothing but names is in it, and it is read-only in the end.
    let dev = tmpfs("0755", 0)?;
    attach(&dev, point).step(step)?;
    for name in DEVICES {
        make_point(&dev, name, false)?;
        let device = Path::new("/dev").join(name);
        let device = rustix::fs::open(&device, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .and_then(|device| clone_tree(&device, OpenTreeFlags::empty()))
            .step(step)?;
        rustix::mount::move_mount(
            &device,
            "",
            &dev,
            name,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .step(step)?;
    }
    for (name, leads_to) in STREAMS {
        rustix::fs::symlinkat(leads_to, &dev, name).step(step)?;
    }
    if let Some(size) = shared_memory {
        make_point(&dev, "shm", true)?;
        let shm = tmpfs("1777", size)?;
        rustix::mount::move_mount(
            &shm,
            "",
            &dev,
            "shm",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .step("mount /dev/shm")?;
    }
    remount(&path_of(&dev), MountFlags::RDONLY | MountFlags::NOEXEC).step("make /dev read-only")
}

/// Mounts a volume, and says what was mounted; nothing if it has no place and needs none.
fn mount_place(
    root: &OwnedFd,
    place: &Place,
    sources: &[OwnedFd],
) -> Result<Option<OwnedFd>, Refused> {
    let step = format!("mount at `{}`", place.target.display());
    let source = sources.get(place.source).ok_or(Errno::NOENT).step(&step)?;
    let point = match resolve(root, &inner(&place.target)?) {
        Err(_) if place.optional => return Ok(None),
        point => point.step(&step)?,
    };
    let kind = rustix::fs::fstat(&point).step(&step)?.st_mode;
    if place.optional && FileType::from_raw_mode(kind) != FileType::RegularFile {
        return Ok(None);
    }
    let tree = clone_tree(source, OpenTreeFlags::AT_RECURSIVE).step(&step)?;
    attach(&tree, point).step(&step)?;
    Ok(Some(tree))
}

/// Makes `root` the root, and nothing else reachable.
fn change_root(root: &OwnedFd) -> Result<(), Refused> {
    let step = "enter the root";
    rustix::process::fchdir(root).step(step)?;
    // Both in one place, as pivot_root(2) describes: the old root lies upon the new one.
    rustix::process::pivot_root(".", ".").step(step)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("leave the files of this machine")?;
    rustix::process::chdir("/").step(step)
}

/// Makes sure that `/proc` is what it should be, because it is where the box is closed: symlinks of
/// an image, or a volume, may put something else there.
fn check_proc() -> Result<(), Refused> {
    match rustix::fs::statfs("/proc") {
        Ok(found) if found.f_type == rustix::fs::PROC_SUPER_MAGIC => Ok(()),
        _ => Err(Errno::BUSY).step("have /proc in the box, with a volume or an image in its way"),
    }
}

/// Restricts a volume and all that is mounted below it.
fn restrict(tree: &OwnedFd, writable: bool) -> Result<(), Refused> {
    let step = "restrict a volume";
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if !writable {
        flags |= MountFlags::RDONLY;
    }
    remount(&path_of(tree), flags).step(step)?;
    let own = fs::canonicalize(path_of(tree)).step(step)?;
    let table = fs::read("/proc/self/mountinfo").step(step)?;
    for mount in mounts_below(&table, &own) {
        remount(&mount, flags).step(step)?;
    }
    Ok(())
}

/// The mount points of a `mountinfo` that are truly below `path`: `proc_pid_mountinfo(5)`.
fn mounts_below(table: &[u8], path: &Path) -> Vec<PathBuf> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(path) && point != path)
        .collect()
}

/// A path with its spaces, tabs, line feeds and backslashes, which are octal in tables.
fn unescape(path: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *byte == b'\\');
        let octal = octal.and_then(|octal| std::str::from_utf8(octal).ok());
        match octal.map(|octal| u8::from_str_radix(octal, 8)) {
            Some(Ok(escaped)) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            _ => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

/// Takes away what `/proc` tells of the machine, and every way to change it.
pub(super) fn close_proc() -> Result<(), Refused> {
    let step = "close /proc";
    let null = open(Path::new("/dev/null")).step(step)?;
    for name in HIDDEN {
        // Not every kernel has all of them.
        let Ok(hidden) = open(&Path::new("/proc").join(name)) else {
            continue;
        };
        let kind = rustix::fs::fstat(&hidden).step(step)?.st_mode;
        // One empty directory for each: before Linux 6.15 none can be copied that is mounted nowhere.
        let cover = if FileType::from_raw_mode(kind).is_dir() {
            mount_of(
                "tmpfs",
                &[("mode", "0555")],
                MountAttrFlags::MOUNT_ATTR_RDONLY,
            )
        } else {
            clone_tree(&null, OpenTreeFlags::empty())
        };
        attach(&cover.step(step)?, hidden).step(step)?;
    }
    for name in READ_ONLY {
        let Ok(part) = open(&Path::new("/proc").join(name)) else {
            continue;
        };
        let same = clone_tree(&part, OpenTreeFlags::empty()).step(step)?;
        attach(&same, part).step(step)?;
        remount(&path_of(&same), MountFlags::RDONLY).step(step)?;
    }
    Ok(())
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_layers_fit_into_a_page() {
        let layers: Vec<_> = (1000..1127).collect();
        assert!(overlay_options(&layers, 2000, true).len() < 4096);
        assert_eq!(
            overlay_options(&[3, 4], 5, false),
            "userxattr,lowerdir=3:4:5/scaffold"
        );
        assert_eq!(
            overlay_options(&[3], 5, true),
            "userxattr,lowerdir=3:5/scaffold,upperdir=5/upper,workdir=5/work"
        );
    }

    #[test]
    fn a_target_is_below_the_root() {
        for (target, expected) in [
            ("/mnt/data", Some("mnt/data")),
            ("/a", Some("a")),
            ("/a/./b/", Some("a/b")),
            ("/", None),
            ("", None),
            ("a", None),
            ("/a/../b", None),
            ("/..", None),
        ] {
            let inner = inner(Path::new(target)).ok();
            assert_eq!(inner.as_deref(), expected.map(Path::new), "{target}");
        }
    }

    #[test]
    fn mounts_below_a_volume_are_found_by_whole_names() {
        let table = b"\
21 1 0:20 / / rw - overlay overlay rw
22 21 8:1 /d /mnt/data ro - ext4 /dev/sda1 rw
23 22 8:2 / /mnt/data/a\\040b\\134c rw - ext4 /dev/sda2 rw
24 21 8:1 /e /mnt/database rw - ext4 /dev/sda1 rw
";
        assert_eq!(
            mounts_below(table, Path::new("/mnt/data")),
            [PathBuf::from("/mnt/data/a b\\c")]
        );
    }

    #[test]
    fn what_is_no_escape_stays() {
        for (written, expected) in [
            ("/a", "/a"),
            ("/a\\011b", "/a\tb"),
            ("/a\\9", "/a\\9"),
            ("/a\\777", "/a\\777"),
            ("/a\\ü0", "/a\\ü0"),
        ] {
            assert_eq!(
                unescape(written.as_bytes()),
                PathBuf::from(expected),
                "{written}"
            );
        }
    }
}
