//! How much memory the processes of a box use, and the end of those that use too much.
//!
//! What counts is the sum of their proportional set sizes (PSS): a page that several of them share
//! counts once, and files in `/tmp` do not count unless they are mapped, as on Lambda, where `/tmp`
//! has a size of its own. A watchdog looks at the sum again and again.
//!
//! Where a cgroup can be made it is a wall behind the watchdog, for what grows faster than anybody
//! looks. A cgroup counts files in memory too, and cannot tell `/tmp` from the rest, so the wall
//! stands at the limit and the sizes of all such file systems: a function that fills its `/tmp` is
//! not killed for it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tokio::sync::mpsc;

use super::{Event, processes};

/// Looks are not closer to each other, and not farther.
const SOONEST: Duration = Duration::from_millis(10);
/// See [`SOONEST`].
const LATEST: Duration = Duration::from_millis(100);

/// A process fills no more than this in a second: what zeroing pages takes on a fast machine.
const FILLED_PER_SECOND: u64 = 4 << 30;

/// Looking may take this part of the time.
const LOOKING: u32 = 10;

/// What keeps the box within its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryKeeper {
    /// The watchdog and a wall of the unified hierarchy.
    Unified(PathBuf),
    /// The watchdog and a wall of the memory controller's own hierarchy (cgroups v1).
    Legacy(PathBuf),
    /// The watchdog alone.
    Watchdog,
}

impl fmt::Display for MemoryKeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unified(_) => formatter.write_str("a watchdog and a cgroup"),
            Self::Legacy(_) => formatter.write_str("a watchdog and a cgroup (v1)"),
            Self::Watchdog => formatter.write_str("a watchdog"),
        }
    }
}

impl MemoryKeeper {
    /// What this machine lets us have: tried, not guessed.
    pub fn of_this_machine() -> Self {
        candidates()
            .into_iter()
            .find(|keeper| Wall::raise(keeper, u64::MAX >> 1).is_ok())
            .unwrap_or(Self::Watchdog)
    }
}

/// Where a cgroup may be made, best first: at our own, or at one that ours is below of.
fn candidates() -> Vec<MemoryKeeper> {
    // Of a machine's mounts some may be at paths that are no text.
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut candidates = Vec::new();
    if let Some(own) = own_cgroup(&mounts, &memberships, Hierarchy::Unified) {
        let above = own.ancestors().skip(1).filter(|at| controls_memory(at));
        // Our own is no place for another, unless it is the root: a cgroup that divides its memory
        // has no processes (cgroups(7)). But who may write to it, may write beside it.
        let all = std::iter::once(own.as_path()).chain(above);
        candidates.extend(all.map(|at| MemoryKeeper::Unified(at.to_owned())));
    }
    candidates
        .extend(own_cgroup(&mounts, &memberships, Hierarchy::Memory).map(MemoryKeeper::Legacy));
    candidates
}

/// Whether cgroups in a directory have a limit of memory each.
fn controls_memory(at: &Path) -> bool {
    let enabled = fs::read_to_string(at.join("cgroup.subtree_control")).unwrap_or_default();
    enabled
        .split_ascii_whitespace()
        .any(|name| name == "memory")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hierarchy {
    Unified,
    Memory,
}

/// The directory of our own cgroup: cgroups(7), `proc_pid_mountinfo(5)`.
fn own_cgroup(mounts: &str, memberships: &str, hierarchy: Hierarchy) -> Option<PathBuf> {
    let path = memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let wanted = match hierarchy {
            Hierarchy::Unified => controllers.is_empty(),
            Hierarchy::Memory => controllers.split(',').any(|name| name == "memory"),
        };
        wanted.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        let wanted = match hierarchy {
            Hierarchy::Unified => kind == "cgroup2",
            Hierarchy::Memory => {
                kind == "cgroup" && options.split(',').any(|name| name == "memory")
            }
        };
        let below = Path::new(path).strip_prefix(root).ok().filter(|_| wanted)?;
        Some(Path::new(point).join(below))
    })
}

/// A cgroup of one box. It is removed when this is dropped, if nothing is in it any more.
#[derive(Debug)]
pub(super) struct Wall {
    directory: PathBuf,
    hierarchy: Hierarchy,
}

/// How often it is tried to remove a wall: what was killed with the keeper of a box takes some
/// milliseconds to be gone.
const PULLS: u32 = 200;
/// See [`PULLS`].
const BETWEEN_PULLS: Duration = Duration::from_millis(5);

/// Numbers the walls of this process.
static WALLS: AtomicU64 = AtomicU64::new(0);

const PREFIX: &str = "tierce-";

impl Wall {
    /// Makes a cgroup that holds at most so many bytes.
    fn raise(keeper: &MemoryKeeper, bytes: u64) -> io::Result<Self> {
        let (at, hierarchy) = match keeper {
            MemoryKeeper::Unified(at) => (at, Hierarchy::Unified),
            MemoryKeeper::Legacy(at) => (at, Hierarchy::Memory),
            MemoryKeeper::Watchdog => return Err(io::ErrorKind::Unsupported.into()),
        };
        sweep(at);
        if hierarchy == Hierarchy::Unified && !controls_memory(at) {
            fs::write(at.join("cgroup.subtree_control"), "+memory")?;
        }
        let number = WALLS.fetch_add(1, Ordering::Relaxed);
        let directory = at.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&directory)?;
        let wall = Self {
            directory,
            hierarchy,
        };
        let (limit, swap) = match hierarchy {
            Hierarchy::Unified => ("memory.max", ("memory.swap.max", "0")),
            Hierarchy::Memory => ("memory.limit_in_bytes", ("memory.swappiness", "0")),
        };
        fs::write(wall.directory.join(limit), bytes.to_string())?;
        // Not where the kernel has no swap for cgroups.
        let _ = fs::write(wall.directory.join(swap.0), swap.1);
        Ok(wall)
    }

    fn enclose(&self, process: u32) -> io::Result<()> {
        fs::write(self.directory.join("cgroup.procs"), process.to_string())
    }

    /// Waits until the processes are gone that were killed, and removes it.
    async fn pull_down(&self) {
        for _ in 0..PULLS {
            match fs::remove_dir(&self.directory) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tokio::time::sleep(BETWEEN_PULLS).await;
                }
                _ => return,
            }
        }
    }

    /// How many processes the kernel killed for having come to the wall.
    fn killed(&self) -> u64 {
        let file = match self.hierarchy {
            Hierarchy::Unified => "memory.events",
            Hierarchy::Memory => "memory.oom_control",
        };
        let events = fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        counted(&events, "oom_kill")
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        // What remains is swept away by the next start.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// The way of a keeper out of its wall, for when nobody else is left to pull it down: a process that
/// is killed removes nothing.
#[derive(Debug)]
pub(super) struct WayOut {
    wall: PathBuf,
    /// `cgroup.procs` of the cgroup that the wall is in. It is opened before there is a namespace of
    /// cgroups, because what counts is the one of who opened it (cgroups(7), `nsdelegate`).
    outside: File,
}

impl WayOut {
    /// Finds it; nothing where processes may not be moved.
    pub(super) fn of(wall: &Path) -> Option<Self> {
        let outside = wall.parent()?.join("cgroup.procs");
        Some(Self {
            wall: wall.to_owned(),
            outside: File::options().write(true).open(outside).ok()?,
        })
    }

    /// Leads whoever is left out of the wall, and removes it.
    pub(super) fn take(self) {
        let inside = fs::read_to_string(self.wall.join("cgroup.procs")).unwrap_or_default();
        for process in inside.lines() {
            // One that is gone needs no way out.
            let _ = rustix::io::pwrite(&self.outside, process.as_bytes(), 0);
        }
        // What remains is swept away by the next start.
        let _ = fs::remove_dir(&self.wall);
    }
}

/// Removes cgroups of runs that were killed. One with a process in it cannot be removed.
fn sweep(at: &Path) {
    for entry in at.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'))
            .map(|(owner, _)| Path::new("/proc").join(owner));
        if owner.is_some_and(|owner| !owner.exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The number behind a name in a file of lines.
fn counted(lines: &str, name: &str) -> u64 {
    lines
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, count)| count.trim().parse().ok())
        .unwrap_or(0)
}

/// The memory of one box.
#[derive(Debug)]
pub(super) struct Memory {
    limit: Option<u64>,
    wall: Option<Wall>,
    /// How many the wall had killed when it was last asked.
    told: AtomicU64,
    /// Whether too much was told of and is not over yet.
    exceeded: AtomicBool,
    peak: Arc<AtomicU64>,
}

impl Memory {
    /// Puts a wall round the process `keeper` and what it will start, where that is possible.
    /// `files` are the bytes that file systems of the box may have in memory.
    pub(super) fn enclose(limit: Option<u64>, files: u64, keeper: Option<u32>) -> Self {
        let raised = limit.zip(keeper).and_then(|(limit, keeper)| {
            let bytes = limit.saturating_add(files);
            candidates().into_iter().find_map(|candidate| {
                let wall = Wall::raise(&candidate, bytes).ok()?;
                wall.enclose(keeper).is_ok().then_some(wall)
            })
        });
        Self {
            limit,
            wall: raised,
            told: AtomicU64::new(0),
            exceeded: AtomicBool::new(false),
            peak: Arc::new(AtomicU64::new(0)),
        }
    }

    /// The cgroup of the box, if it has one.
    pub(super) fn wall(&self) -> Option<PathBuf> {
        self.wall.as_ref().map(|wall| wall.directory.clone())
    }

    /// Removes what was made for a box whose keeper is gone.
    pub(super) async fn end(&self) {
        if let Some(wall) = &self.wall {
            wall.pull_down().await;
        }
    }

    pub(super) fn peak(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.peak)
    }

    /// The bytes that were too many, if the kernel killed a process for them and nobody knows.
    pub(super) fn stopped_by_wall(&self) -> Option<u64> {
        let killed = self.wall.as_ref()?.killed();
        let before = self.told.fetch_max(killed, Ordering::Relaxed);
        let limit = self.limit.filter(|_| killed > before)?;
        self.first(limit.max(self.peak.load(Ordering::Relaxed)))
    }

    /// `bytes`, unless it is known already that there are too many.
    fn first(&self, bytes: u64) -> Option<u64> {
        let known = self.exceeded.swap(true, Ordering::Relaxed);
        (!known).then_some(bytes)
    }

    /// Watches the descendants of `keeper` until the future is dropped. When they use too much they are all
    /// killed through `kills`, and `events` tells of it.
    pub(super) async fn watch(
        self: Arc<Self>,
        keeper: Pid,
        kills: mpsc::UnboundedSender<()>,
        events: mpsc::UnboundedSender<Event>,
    ) {
        let mut pause = SOONEST;
        let mut before = 0;
        loop {
            tokio::time::sleep(pause).await;
            let memory = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let sizes = memory.look(keeper);
                (sizes, begun.elapsed())
            });
            let Ok((Sizes { resident, used }, took)) = looked.await else {
                return;
            };
            let by_wall = self.stopped_by_wall();
            let too_many = self.limit.filter(|limit| used > *limit).map(|_| used);
            if let Some(bytes) = by_wall.or_else(|| self.first(too_many?)) {
                let _ = events.send(Event::OutOfMemory(bytes));
                let _ = kills.send(());
            } else if too_many.is_none() {
                self.exceeded.store(false, Ordering::Relaxed);
            }
            pause = next_pause(pause, resident != before, self.limit, resident);
            pause = pause.max(took * LOOKING);
            before = resident;
        }
    }

    fn look(&self, keeper: Pid) -> Sizes {
        let processes = processes::descendants(keeper);
        let resident = processes.iter().filter_map(|pid| resident(*pid)).sum();
        let peak = self.peak.load(Ordering::Relaxed);
        let enough = self.limit.map_or(peak, |limit| peak.min(limit));
        if resident <= enough {
            // No sum of shares is larger than the sum of wholes, which costs next to nothing.
            return Sizes { resident, used: 0 };
        }
        let used = processes.iter().filter_map(|pid| proportional(*pid)).sum();
        self.peak.fetch_max(used, Ordering::Relaxed);
        Sizes { resident, used }
    }
}

/// What a look found.
struct Sizes {
    /// The sum of resident set sizes.
    resident: u64,
    /// The sum of proportional set sizes, zero if it is neither a peak nor too much.
    used: u64,
}

/// How long to wait for the next look: longer while nothing changes, and not so long that what is
/// left could be filled.
fn next_pause(last: Duration, changed: bool, limit: Option<u64>, resident: u64) -> Duration {
    let pause = if changed { SOONEST } else { last * 2 };
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(resident));
    let filled = Duration::from_millis(left / (FILLED_PER_SECOND / 1000));
    pause.min(filled).clamp(SOONEST, LATEST)
}

/// The resident set size of a process: `proc_pid_statm(5)`.
fn resident(pid: Pid) -> Option<u64> {
    let sizes = fs::read_to_string(processes::of(pid).join("statm")).ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// The proportional set size of a process, what was swapped out included.
fn proportional(pid: Pid) -> Option<u64> {
    let rollup = fs::read_to_string(processes::of(pid).join("smaps_rollup")).ok()?;
    proportional_of(&rollup)
}

fn proportional_of(rollup: &str) -> Option<u64> {
    let kibibytes = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let swapped = kibibytes("SwapPss:").unwrap_or(0);
    Some((kibibytes("Pss:")?.saturating_add(swapped)).saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_below_what_is_mounted() {
        let mounts = "\
30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
31 24 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
32 24 0:28 /box /mnt rw - cgroup cgroup rw,cpu,memory
";
        for (memberships, hierarchy, expected) in [
            ("0::/a/b\n", Hierarchy::Unified, Some("/sys/fs/cgroup/a/b")),
            ("0::/\n", Hierarchy::Unified, Some("/sys/fs/cgroup/")),
            (
                "4:memory:/a\n0::/b\n",
                Hierarchy::Memory,
                Some("/sys/fs/cgroup/memory/a"),
            ),
            (
                "4:cpu,memory:/a:b\n",
                Hierarchy::Memory,
                Some("/sys/fs/cgroup/memory/a:b"),
            ),
            ("4:cpu:/a\n", Hierarchy::Memory, None),
            ("4:memory:/a\n", Hierarchy::Unified, None),
        ] {
            let found = own_cgroup(mounts, memberships, hierarchy);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{memberships}");
        }
    }

    #[test]
    fn shares_are_what_the_kernel_says_they_are() {
        let rollup = "5581-7ffd ---p 00000000 00:00 0 [rollup]\n\
                      Rss:     884 kB\nPss:     385 kB\nPss_Dirty:  68 kB\nSwapPss:   5 kB\n";
        assert_eq!(proportional_of(rollup), Some(390 * 1024));
        assert_eq!(proportional_of("Pss: many kB"), None);
        assert_eq!(proportional_of(""), None);
    }

    #[test]
    fn looks_come_closer_when_little_is_left() {
        let ms = Duration::from_millis;
        let gib = 1 << 30;
        for (last, changed, limit, resident, expected) in [
            (ms(10), true, None, 5, ms(10)),
            (ms(10), false, None, 5, ms(20)),
            (ms(80), false, None, 5, ms(100)),
            (ms(80), false, Some(gib), 0, ms(100)),
            (ms(80), false, Some(gib), gib - (gib >> 3), ms(31)),
            (ms(80), false, Some(gib), 2 * gib, ms(10)),
        ] {
            assert_eq!(next_pause(last, changed, limit, resident), expected);
        }
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(counted(events, "oom_kill"), 2);
        assert_eq!(counted("oom_kill_disable 0\n", "oom_kill"), 0);
    }
}
