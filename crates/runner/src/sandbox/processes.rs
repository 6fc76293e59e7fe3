//! What `/proc` tells of processes: who descends from whom, and who has which socket.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// The processes below `ancestor` at this moment. One that is born or orphaned while it is looked
/// for may be missed.
pub(super) fn descendants(ancestor: Pid) -> Vec<Pid> {
    // A kernel without CONFIG_PROC_CHILDREN has no such files, and then for no process.
    let families = (!Path::new("/proc/thread-self/children").exists()).then(families);
    let mut found = Vec::new();
    let mut open = vec![ancestor];
    while let Some(parent) = open.pop() {
        let children = match &families {
            None => children(parent),
            Some(families) => families
                .get(&parent.as_raw_pid())
                .cloned()
                .unwrap_or_default(),
        };
        found.extend(&children);
        open.extend(children);
    }
    found
}

/// The children of all threads of a process; none if it is gone.
fn children(parent: Pid) -> Vec<Pid> {
    let Ok(threads) = of(parent).join("task").read_dir() else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|children| {
            let pids = children.split_ascii_whitespace();
            pids.filter_map(parse).collect::<Vec<_>>()
        })
        .collect()
}

/// The children of all processes of the machine.
fn families() -> BTreeMap<i32, Vec<Pid>> {
    let mut families: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(parse) else {
            continue;
        };
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            families.entry(parent).or_default().push(pid);
        }
    }
    families
}

/// The parent in a `stat`, whose second field is a name that may have spaces and parentheses in it:
/// `proc_pid_stat(5)`.
fn parent(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn parse(pid: &str) -> Option<Pid> {
    pid.parse().ok().and_then(Pid::from_raw)
}

/// The directory of a process.
pub(super) fn of(pid: Pid) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// Whether a process has the socket with this inode number open.
pub(super) fn has_socket(pid: Pid, inode: u64) -> bool {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let descriptors = of(pid)
        .join("fd")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| target == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        for (stat, expected) in [
            ("12 (sh) S 7 12 12 0 -1", Some(7)),
            ("12 (a) b (c) S 7 12", Some(7)),
            ("12 ((sd-pam)) S 1 1", Some(1)),
            ("12 (sh", None),
            ("12 (sh) S", None),
            ("", None),
        ] {
            assert_eq!(parent(stat), expected, "{stat}");
        }
    }

    #[test]
    fn both_ways_find_a_child() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = parse(&child.id().to_string()).unwrap();
        let own = rustix::process::getpid();
        assert!(descendants(own).contains(&pid));
        assert!(families()[&own.as_raw_pid()].contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
