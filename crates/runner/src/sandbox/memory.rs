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
use std::mem;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::{Event, processes};

/// Looks are not closer to each other, and not farther.
const SOONEST: Duration = Duration::from_millis(10);
/// While the sum grows, with much left.
const GROWING: Duration = Duration::from_millis(30);
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
    /// As [`Enclosure::enters`].
    enters: bool,
}

/// A wall as the keeper of its box is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Enclosure {
    /// The cgroup.
    pub(super) directory: PathBuf,
    /// Whether the keeper has yet to go in.
    pub(super) enters: bool,
}

impl Enclosure {
    /// Goes in, with what this process starts from now on. It has one thread.
    pub(super) fn enter(&self) -> io::Result<()> {
        if self.enters {
            fs::write(self.directory.join(OWN_THREAD), "0")?;
        }
        Ok(())
    }
}

/// The file by which a thread puts itself into a cgroup of version 1. Whoever moves another, or a
/// process, waits until no processor is in the middle of a fork: some 9 ms
/// (`cgroup_procs_write_start` of the kernel). The unified hierarchy has no such file for memory.
const OWN_THREAD: &str = "tasks";

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
        if hierarchy == Hierarchy::Unified {
            // Who may make a cgroup may not move a process into it yet: between two cgroups that
            // needs the right to the list of the one that both are below (cgroups(7)).
            fs::File::options()
                .append(true)
                .open(at.join("cgroup.procs"))?;
            if !controls_memory(at) {
                fs::write(at.join("cgroup.subtree_control"), "+memory")?;
            }
        }
        let number = WALLS.fetch_add(1, Ordering::Relaxed);
        let directory = at.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&directory)?;
        // Others than root might be allowed to move a process alone.
        let enters = hierarchy == Hierarchy::Memory
            && rustix::process::geteuid().is_root()
            && directory.join(OWN_THREAD).exists();
        let wall = Self {
            directory,
            hierarchy,
            enters,
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
        let read = |file| fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        match self.hierarchy {
            Hierarchy::Unified => killed_at_limit(&read("memory.events")),
            Hierarchy::Memory => counted(&read("memory.oom_control"), "oom_kill"),
        }
    }
}

/// Rings when the kernel has counted something at a wall: a change of `memory.events` is an event of
/// that file (cgroup-v2.rst of the kernel's documentation). Without it a process that is not the
/// keeper's own child could be killed, and the function answer before the next look.
#[derive(Debug)]
struct Bell(AsyncFd<fs::File>);

impl Bell {
    #[expect(unsafe_code, reason = "tokio has no safe way to wait for a file")]
    fn of(wall: &Wall) -> Option<Self> {
        // There is nothing like it in cgroups v1 that tells of kills alone.
        let file = fs::File::open(wall.directory.join("memory.events")).ok()?;
        // SAFETY: a file is open as long as it is there, and nobody else has this one.
        let waited_for = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        waited_for.ok().map(Self)
    }

    /// Waits until it rings.
    async fn rung(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut rings) => rings.clear_ready(),
            Err(_) => std::future::pending().await,
        }
        // It rings for what comes after this.
        let _ = rustix::io::pread(&self.0, &mut [0; 512], 0);
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
    pub(super) fn of(wall: &Enclosure) -> Option<Self> {
        let outside = wall.directory.parent()?.join("cgroup.procs");
        Some(Self {
            wall: wall.directory.clone(),
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

/// The kills in a `memory.events`. They count too when another limit than the cgroup's own was
/// reached, one above it or the machine's; `oom` counts how often it was this one.
fn killed_at_limit(events: &str) -> u64 {
    if counted(events, "oom") == 0 {
        return 0;
    }
    counted(events, "oom_kill")
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
    known: Mutex<Known>,
    peak: Arc<AtomicU64>,
}

/// What is known of too much memory.
#[derive(Debug, Default)]
struct Known {
    /// How often all processes were gone.
    generation: u64,
    /// Whether those of now were told of.
    told: bool,
    /// How many the wall had killed when it was last asked.
    killed: u64,
}

impl Memory {
    /// Puts a wall round the process `keeper` and what it will start, where that is possible; or
    /// has it go in by itself, as [`Memory::wall`] says.
    /// `files` are the bytes that file systems of the box may have in memory.
    pub(super) fn enclose(limit: Option<u64>, files: u64, keeper: Option<u32>) -> Self {
        let raised = limit.zip(keeper).and_then(|(limit, keeper)| {
            let bytes = limit.saturating_add(files);
            candidates().into_iter().find_map(|candidate| {
                let wall = Wall::raise(&candidate, bytes).ok()?;
                let done = wall.enters || wall.enclose(keeper).is_ok();
                done.then_some(wall)
            })
        });
        Self {
            limit,
            wall: raised,
            known: Mutex::default(),
            peak: Arc::new(AtomicU64::new(0)),
        }
    }

    /// The cgroup of the box, if it has one.
    pub(super) fn wall(&self) -> Option<Enclosure> {
        self.wall.as_ref().map(|wall| Enclosure {
            directory: wall.directory.clone(),
            enters: wall.enters,
        })
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

    fn known(&self) -> MutexGuard<'_, Known> {
        // It is consistent between any two statements.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears that no process is left, so that too much is told of again. Who comes next may use too
    /// much at once.
    pub(super) fn emptied(&self) {
        let killed = self.wall.as_ref().map_or(0, Wall::killed);
        let mut known = self.known();
        known.generation += 1;
        known.told = false;
        known.killed = killed;
    }

    /// The bytes that were too many, if the kernel killed a process for them and nobody knows.
    pub(super) fn stopped_by_wall(&self) -> Option<u64> {
        let killed = self.wall.as_ref()?.killed();
        let limit = self.limit?;
        let mut known = self.known();
        if killed <= known.killed {
            return None;
        }
        known.killed = killed;
        // What reached the wall is above the limit, also if it was nothing that a look would find.
        let peak = self.peak.fetch_max(limit, Ordering::Relaxed);
        let told = mem::replace(&mut known.told, true);
        (!told).then_some(limit.max(peak))
    }

    /// The bytes that were found to be too many, if those who used them are not gone and nobody
    /// knows.
    fn stopped_by_look(&self, used: u64, generation: u64) -> Option<u64> {
        self.limit.filter(|limit| used > *limit)?;
        let mut known = self.known();
        if known.generation != generation {
            return None;
        }
        let told = mem::replace(&mut known.told, true);
        (!told).then_some(used)
    }

    /// Watches the descendants of `keeper` until the future is dropped. When they use too much they are all
    /// killed through `kills`, and `events` tells of it.
    pub(super) async fn watch(
        self: Arc<Self>,
        keeper: Pid,
        kills: mpsc::UnboundedSender<()>,
        events: mpsc::UnboundedSender<Event>,
    ) {
        let tell = |bytes| {
            let _ = events.send(Event::OutOfMemory(bytes));
            let _ = kills.send(());
        };
        let bell = self.wall.as_ref().and_then(Bell::of);
        let mut pause = SOONEST;
        let mut before = 0;
        loop {
            let mut paused = pin!(tokio::time::sleep(pause));
            loop {
                tokio::select! {
                    () = &mut paused => break,
                    () = rung(bell.as_ref()) => {
                        self.stopped_by_wall().map(tell);
                    }
                }
            }
            let generation = self.known().generation;
            let memory = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let sizes = memory.look(keeper);
                (sizes, begun.elapsed())
            });
            let Ok((Sizes { resident, used }, took)) = looked.await else {
                return;
            };
            let by_look = || self.stopped_by_look(used, generation);
            self.stopped_by_wall().or_else(by_look).map(tell);
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

/// Waits for a bell; for ever if there is none.
async fn rung(bell: Option<&Bell>) {
    match bell {
        Some(bell) => bell.rung().await,
        None => std::future::pending().await,
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
    let pause = if changed { GROWING } else { last * 2 };
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
            (ms(10), true, None, 5, ms(30)),
            (ms(10), true, Some(gib), gib - (gib >> 6), ms(10)),
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

    #[test]
    fn kills_for_other_limits_are_not_of_the_wall() {
        for (events, expected) in [
            ("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n", 2),
            ("low 0\nhigh 0\nmax 0\noom 0\noom_kill 2\n", 0),
            ("", 0),
        ] {
            assert_eq!(killed_at_limit(events), expected, "{events}");
        }
    }

    /// A directory with the files of a cgroup, in which the kernel would make new ones.
    fn cgroup(controllers: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.procs"), "").unwrap();
        let control = directory.path().join("cgroup.subtree_control");
        fs::write(control, controllers).unwrap();
        directory
    }

    fn limit_of(wall: &Wall) -> [String; 2] {
        ["memory.max", "memory.swap.max"]
            .map(|file| fs::read_to_string(wall.directory.join(file)).unwrap())
    }

    #[test]
    fn a_wall_has_a_limit_and_no_swap() {
        for (controllers, expected) in [("cpu memory pids\n", "cpu memory pids\n"), ("", "+memory")]
        {
            let parent = cgroup(controllers);
            let at = MemoryKeeper::Unified(parent.path().to_owned());
            let wall = Wall::raise(&at, 5 << 20).unwrap();
            assert_eq!(limit_of(&wall), ["5242880", "0"]);
            assert_eq!(wall.killed(), 0);
            let control = parent.path().join("cgroup.subtree_control");
            assert_eq!(fs::read_to_string(control).unwrap(), expected);
        }
    }

    #[test]
    fn there_is_no_wall_where_no_process_may_be_moved() {
        let parent = cgroup("memory");
        fs::remove_file(parent.path().join("cgroup.procs")).unwrap();
        let at = MemoryKeeper::Unified(parent.path().to_owned());
        assert!(Wall::raise(&at, 5 << 20).is_err());
        assert_eq!(walls_in(parent.path()), 0);
    }

    #[test]
    fn walls_of_runs_that_are_gone_are_swept_away() {
        let parent = cgroup("memory");
        let own = format!("{PREFIX}{}-0", std::process::id());
        // No process has so high a number: `proc_sys_kernel(5)`.
        for name in ["tierce-4194305-0", "tierce-4194305-7", own.as_str()] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        for name in ["tierce", "tierce-x", "other-4194305-0"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        sweep(parent.path());
        assert_eq!(walls_in(parent.path()), 2);
        assert!(parent.path().join(own).exists());
        assert!(parent.path().join("other-4194305-0").exists());
    }

    fn walls_in(parent: &Path) -> usize {
        let names = parent.read_dir().unwrap().flatten();
        names
            .filter(|entry| entry.file_name().to_str().unwrap().starts_with(PREFIX))
            .count()
    }

    fn memory(limit: u64, wall: Option<Wall>) -> Memory {
        Memory {
            limit: Some(limit),
            wall,
            known: Mutex::default(),
            peak: Arc::new(AtomicU64::new(1)),
        }
    }

    #[test]
    fn what_reached_the_wall_is_a_peak_and_is_told_once() {
        let parent = cgroup("memory");
        let at = MemoryKeeper::Unified(parent.path().to_owned());
        let wall = Wall::raise(&at, 5 << 20).unwrap();
        let events = wall.directory.join("memory.events");
        let kills = |count| fs::write(&events, format!("oom 1\noom_kill {count}\n")).unwrap();
        let limit = 3 << 20;
        let memory = memory(limit, Some(wall));
        assert_eq!(memory.stopped_by_wall(), None);
        kills(1);
        assert_eq!(memory.stopped_by_wall(), Some(limit));
        assert_eq!(memory.peak().load(Ordering::Relaxed), limit);
        kills(2);
        assert_eq!(memory.stopped_by_wall(), None);
        assert_eq!(memory.stopped_by_look(limit + 1, 0), None);
        // Of those that are gone nobody asks any more.
        kills(3);
        memory.emptied();
        assert_eq!(memory.stopped_by_wall(), None);
        kills(4);
        assert_eq!(memory.stopped_by_wall(), Some(limit));
    }

    #[test]
    fn who_comes_next_is_told_of_again_and_not_for_who_is_gone() {
        let memory = memory(100, None);
        assert_eq!(memory.stopped_by_look(100, 0), None);
        assert_eq!(memory.stopped_by_look(101, 0), Some(101));
        assert_eq!(memory.stopped_by_look(102, 0), None);
        memory.emptied();
        assert_eq!(memory.stopped_by_look(103, 0), None, "looked at before");
        assert_eq!(memory.stopped_by_look(104, 1), Some(104));
    }
}
