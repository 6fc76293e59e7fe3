//! Boxes of every kind, with programs of this machine in them.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use tierce_runner::rootfs::Root;
use tierce_runner::sandbox::features::Machine;
use tierce_runner::sandbox::{
    Doorkeeper, Event, Exit, Feature, Log, MemoryKeeper, Network, Order, Process, ProcessNumber,
    Sandbox, SandboxError, Settings, Volume, namespaces, oci_runtime, plain,
};

/// Longer than anything here takes on a busy machine: only a fault waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

fn settings(directories: Vec<PathBuf>) -> Settings {
    Settings {
        root: Arc::new(Root::of(directories)),
        writable_root: false,
        tmp_size: 16 << 20,
        shared_memory: None,
        network: Network::Host,
        volumes: Vec::new(),
        open_files: 1024,
        processes: 1024,
        memory: None,
        user: 993,
        group: 990,
        scratch: std::env::temp_dir(),
        program: stage(),
    }
}

/// Names a copy of the program with the stages.
const STAGE: &str = "TIERCE_TEST_STAGE";

fn stage() -> PathBuf {
    std::env::var_os(STAGE)
        .map_or_else(|| env!("CARGO_BIN_EXE_sandbox-stage").into(), PathBuf::from)
}

fn shell(script: &str) -> Process {
    Process {
        program: "/bin/sh".to_owned(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        directory: "/".to_owned(),
        log: Log::Function,
    }
}

async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    tokio::time::timeout(PATIENCE, events.recv())
        .await
        .expect("the sandbox says something")
        .expect("the sandbox is there")
}

/// Starts a process and waits for its end: how it was, and what it wrote until then.
async fn run(sandbox: &mut Sandbox, process: Process) -> (Exit, String) {
    let number = ProcessNumber(1);
    sandbox.orders.send(Order::Start(number, process)).unwrap();
    let mut output = Vec::new();
    let exit = loop {
        tokio::select! {
            biased;
            Some(written) = sandbox.written.recv() => output.extend(written.bytes),
            event = next(&mut sandbox.events) => match event {
                Event::Started(_) => {}
                Event::Exited(_, exit) => break exit,
                event => panic!("{event:?}"),
            },
        }
    };
    while let Ok(written) = sandbox.written.try_recv() {
        output.extend(written.bytes);
    }
    (exit, String::from_utf8(output).unwrap())
}

/// Starts a process that stays.
async fn start(sandbox: &mut Sandbox, process: Process) {
    let order = Order::Start(ProcessNumber(1), process);
    sandbox.orders.send(order).unwrap();
    match next(&mut sandbox.events).await {
        Event::Started(ProcessNumber(1)) => {}
        event => panic!("{event:?}"),
    }
}

/// Why a process is not started.
async fn not_started(sandbox: &mut Sandbox, process: Process) -> String {
    let order = Order::Start(ProcessNumber(7), process);
    sandbox.orders.send(order).unwrap();
    match next(&mut sandbox.events).await {
        Event::NotStarted(ProcessNumber(7), why) => why.to_string(),
        event => panic!("{event:?}"),
    }
}

async fn kill_all(sandbox: &mut Sandbox) {
    sandbox.orders.send(Order::KillAll).unwrap();
    loop {
        match next(&mut sandbox.events).await {
            Event::Empty => break,
            Event::Exited(..) => {}
            event => panic!("{event:?}"),
        }
    }
}

/// Ends a box, and waits until it is gone.
async fn end(mut sandbox: Sandbox) {
    sandbox.orders.send(Order::End).unwrap();
    loop {
        if let Event::Ended(reason) = next(&mut sandbox.events).await {
            assert_eq!(reason, None);
            break;
        }
    }
}

mod plain_processes {
    use super::*;

    fn plain_box() -> Sandbox {
        plain::start(&settings(vec![PathBuf::from("/")])).unwrap()
    }

    #[tokio::test]
    async fn a_process_runs_and_is_heard_before_it_ends() {
        let mut sandbox = plain_box();
        let said = run(&mut sandbox, shell("echo out; echo err >&2; exit 3")).await;
        assert_eq!(said, (Exit::Code(3), "out\nerr\n".to_owned()));
        let killed = run(&mut sandbox, shell("kill -9 $$")).await;
        assert_eq!(killed, (Exit::Signal(9), String::new()));
        end(sandbox).await;
    }

    #[tokio::test]
    async fn what_is_not_started_is_told_in_the_words_of_go() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("text"), "hello").unwrap();
        let mut sandbox = plain::start(&settings(vec![directory.path().to_owned()])).unwrap();
        let at = |program: &str, directory: &str| Process {
            program: program.to_owned(),
            directory: directory.to_owned(),
            ..shell("true")
        };
        for (process, words) in [
            (
                at("/absent", "/"),
                "fork/exec /absent: no such file or directory",
            ),
            (
                at("absent", "/"),
                "fork/exec absent: no such file or directory",
            ),
            (at("/text", "/"), "fork/exec /text: permission denied"),
            (
                at("/text", "/nowhere"),
                "chdir /nowhere: no such file or directory",
            ),
            (at("/text", "/text"), "chdir /text: not a directory"),
        ] {
            assert_eq!(not_started(&mut sandbox, process).await, words);
        }
        end(sandbox).await;
    }

    #[tokio::test]
    async fn kill_all_leaves_no_orphan() {
        let mut sandbox = plain_box();
        // Its own session, so no process group of ours.
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & exec sleep 1000";
        let order = Order::Start(ProcessNumber(1), shell(script));
        sandbox.orders.send(order).unwrap();
        assert!(matches!(next(&mut sandbox.events).await, Event::Started(_)));
        let orphan = sandbox.written.recv().await.unwrap().bytes;
        let orphan = String::from_utf8(orphan.to_vec()).unwrap();
        let orphan = Path::new("/proc").join(orphan.trim());
        assert!(orphan.exists());
        sandbox.orders.send(Order::KillAll).unwrap();
        assert!(matches!(
            next(&mut sandbox.events).await,
            Event::Exited(ProcessNumber(1), Exit::Signal(9))
        ));
        assert!(matches!(next(&mut sandbox.events).await, Event::Empty));
        assert!(!orphan.exists());
        end(sandbox).await;
    }
}

mod in_namespaces {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_process_sees_what_lambda_shows() {
        let root = TwoDirectories::new();
        let unreadable = root.upper().join("var/task/secret");
        std::fs::write(&unreadable, "secret").unwrap();
        // What unpacking makes of 0600: the owner may do what others may.
        std::fs::set_permissions(&unreadable, PermissionsExt::from_mode(0o000)).unwrap();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        for (script, expected) in [
            ("id -u; id -g", "993\n990\n"),
            (
                "ls -m /",
                "bin, dev, etc, lib, lib64, proc, tmp, usr, var\n",
            ),
            (
                "echo x > /x",
                "/bin/sh: 1: cannot create /x: Read-only file system\n",
            ),
            (
                "echo x > /dev/x",
                "/bin/sh: 1: cannot create /dev/x: Read-only file system\n",
            ),
            (
                "echo x > /usr/x",
                "/bin/sh: 1: cannot create /usr/x: Read-only file system\n",
            ),
            (
                "cat /var/task/secret",
                "cat: /var/task/secret: Permission denied\n",
            ),
            (
                "stat -c %a /tmp; df -k --output=size /tmp",
                "1777\n1K-blocks\n    16384\n",
            ),
            (
                "dd if=/dev/zero of=/tmp/x bs=1M count=17 2>&1 | head -1; rm /tmp/x",
                "dd: error writing '/tmp/x': No space left on device\n",
            ),
            (
                "n=0; while [ $n -lt 9999 ] && true >/tmp/$n; do n=$((n+1)); done 2>/dev/null; \
                 rm -f /tmp/*; echo $n",
                "4095\n",
            ),
            (
                "ls -m /dev",
                "fd, full, null, random, stderr, stdin, stdout, urandom, zero\n",
            ),
            (
                "echo again > /dev/stderr; echo out > /dev/stdout",
                "again\nout\n",
            ),
            ("ulimit -n; ulimit -Hn; ulimit -c", "1024\n1024\n0\n"),
            (
                // The keeper has its own again once it has started this.
                "of() { cat /proc/$1/oom_score_adj; }; \
                 while [ $(of 1) = $(of self) ]; do :; done; echo more",
                "more\n",
            ),
            ("cat; hostname; umask", "localhost\n0022\n"),
            ("env", "PATH=/usr/bin:/bin\nPWD=/\n"),
            ("ls -m /proc/self/fd", "0, 1, 2, 3\n"),
            (
                "grep -h '^Cap\\|NoNew' /proc/self/status | cut -f2 | sort -u",
                "0000000000000000\n1\n",
            ),
        ] {
            let (_, said) = run(&mut sandbox, shell(script)).await;
            assert_eq!(said, expected, "{script}");
        }
        std::fs::set_permissions(&unreadable, PermissionsExt::from_mode(0o600)).unwrap();
        end(sandbox).await;
    }

    #[tokio::test]
    async fn nothing_of_this_machine_is_in_reach() {
        let root = TwoDirectories::new();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        // One of the scripts below must fail for another reason than that it is not there.
        let (exit, said) = run(&mut sandbox, shell("perl -e 'exit 0'")).await;
        assert_eq!(exit, Exit::Code(0), "perl is needed: {said}");
        let here = root.directory.path().display().to_string();
        let own = std::process::id();
        for script in [
            format!("ls {here}"),
            "ls /proc/1/root /proc/1/cwd/ ".to_owned(),
            "ls /proc/1/fd".to_owned(),
            "cat /proc/1/environ".to_owned(),
            "cat /proc/1/maps".to_owned(),
            "head -c 1 /proc/1/mem".to_owned(),
            "readlink /proc/1/exe".to_owned(),
            "echo 0 > /proc/sys/kernel/hostname".to_owned(),
            "echo b > /proc/sysrq-trigger".to_owned(),
            "mount -t tmpfs none /tmp".to_owned(),
            "mount -o remount,rw /usr".to_owned(),
            "umount /proc/sys".to_owned(),
            "unshare --user true".to_owned(),
            "unshare --mount true".to_owned(),
            "mknod /tmp/null c 1 3".to_owned(),
            "chroot / true".to_owned(),
            "test -s /proc/keys".to_owned(),
            // KEYCTL_GET_KEYRING_ID of the session.
            format!(
                "perl -e 'exit(syscall({}, 0, -3, 1) == -1)'",
                libc::SYS_keyctl
            ),
        ] {
            let (exit, said) = run(&mut sandbox, shell(&script)).await;
            assert!(
                matches!(exit, Exit::Code(code) if code != 0),
                "{script}: {said}"
            );
        }
        // Processes: the keeper and the shell, which lists without a child.
        let (_, said) = run(
            &mut sandbox,
            shell("set -- /proc/[0-9]*; echo $#; kill -0 $0"),
        )
        .await;
        assert!(said.starts_with("2\n"), "{said}");
        let (_, mounts) = run(&mut sandbox, shell("cat /proc/self/mountinfo")).await;
        assert!(!mounts.contains(&here), "{mounts}");
        let outside = format!("kill -0 {own}");
        let (exit, _) = run(&mut sandbox, shell(&outside)).await;
        assert_ne!(exit, Exit::Code(0));
        end(sandbox).await;
    }

    #[tokio::test]
    async fn what_is_not_started_is_told_in_the_words_of_go() {
        let root = TwoDirectories::new();
        let task = root.upper().join("var/task");
        for (name, content, mode) in [
            ("text", "hello", 0o644),
            ("garbage", "\0\x01\x02", 0o755),
            ("no_interpreter", "#!/absent\n", 0o755),
            ("script", "echo ran as $0", 0o755),
        ] {
            std::fs::write(task.join(name), content).unwrap();
            std::fs::set_permissions(task.join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        for (program, directory, words) in [
            (
                "/absent",
                "/",
                "fork/exec /absent: no such file or directory",
            ),
            ("absent", "/", "fork/exec absent: no such file or directory"),
            ("/var/task", "/", "fork/exec /var/task: permission denied"),
            ("./text", "/var/task", "fork/exec ./text: permission denied"),
            (
                "./garbage",
                "/var/task",
                "fork/exec ./garbage: exec format error",
            ),
            (
                "/var/task/script",
                "/",
                "fork/exec /var/task/script: exec format error",
            ),
            (
                "/var/task/no_interpreter",
                "/",
                "fork/exec /var/task/no_interpreter: no such file or directory",
            ),
            (
                "/bin/sh",
                "/nowhere",
                "chdir /nowhere: no such file or directory",
            ),
            (
                "/bin/sh",
                "/var/task/text",
                "chdir /var/task/text: not a directory",
            ),
        ] {
            let process = Process {
                program: program.to_owned(),
                directory: directory.to_owned(),
                ..shell("true")
            };
            assert_eq!(not_started(&mut sandbox, process).await, words);
        }
        end(sandbox).await;
    }

    #[tokio::test]
    async fn kill_all_ends_every_process_and_keeps_tmp() {
        let root = TwoDirectories::new();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        run(&mut sandbox, shell("echo kept > /tmp/file")).await;
        let bomb = "exec 2> /dev/null; bomb() { bomb | bomb & }; bomb; setsid sleep 1000 & exec sleep 1000";
        start(&mut sandbox, shell(bomb)).await;
        kill_all(&mut sandbox).await;
        let (_, said) = run(
            &mut sandbox,
            shell("cat /tmp/file; set -- /proc/[0-9]*; echo $#"),
        )
        .await;
        assert_eq!(said, "kept\n2\n");
        end(sandbox).await;
    }

    #[tokio::test]
    async fn the_keeper_is_not_stopped_from_inside() {
        let root = TwoDirectories::new();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        let script = "for signal in KILL STOP TERM SEGV INT HUP PIPE CHLD; do kill -$signal 1; done; \
                      kill -KILL -1";
        run(&mut sandbox, shell(script)).await;
        let (exit, said) = run(&mut sandbox, shell("echo alive")).await;
        assert_eq!((exit, said.as_str()), (Exit::Code(0), "alive\n"));
        end(sandbox).await;
    }

    #[tokio::test]
    async fn a_terminated_process_may_say_goodbye() {
        let root = TwoDirectories::new();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        let script = "trap 'echo goodbye; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
        start(&mut sandbox, shell(script)).await;
        assert_eq!(&sandbox.written.recv().await.unwrap().bytes[..], b"ready\n");
        let order = Order::Terminate(ProcessNumber(1));
        sandbox.orders.send(order).unwrap();
        assert_eq!(
            &sandbox.written.recv().await.unwrap().bytes[..],
            b"goodbye\n"
        );
        assert!(matches!(
            next(&mut sandbox.events).await,
            Event::Exited(ProcessNumber(1), Exit::Code(7))
        ));
        end(sandbox).await;
    }

    #[tokio::test]
    async fn processes_end_at_their_limit() {
        let root = TwoDirectories::new();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        // The count is of a builtin: nothing can be started then. The keeper is one of them.
        let script = "trap 'set -- /proc/[0-9]*; echo $#' EXIT
            i=0; while [ $i -lt 1100 ]; do sleep 1000 & i=$((i+1)); done";
        let (exit, said) = run(&mut sandbox, shell(script)).await;
        assert_eq!(exit, Exit::Code(2), "{said}");
        assert!(said.ends_with("Cannot fork\n1025\n"), "{said}");
        kill_all(&mut sandbox).await;
        end(sandbox).await;
    }

    #[tokio::test]
    async fn too_much_memory_is_the_end_of_all_processes_but_not_of_the_box() {
        let root = TwoDirectories::new();
        let settings = Settings {
            memory: Some(64 << 20),
            ..root.settings()
        };
        let mut sandbox = namespaces::start(&settings).unwrap();
        let full_tmp = shell("head -c 16000000 /dev/zero > /tmp/x");
        assert_eq!(run(&mut sandbox, full_tmp).await.0, Exit::Code(0));
        // `tail` keeps what has no line feeds.
        start(
            &mut sandbox,
            shell("sleep 1000 & head -c 3G /dev/zero | tail"),
        )
        .await;
        let mut bytes = 0;
        let mut exited = false;
        while bytes == 0 || !exited {
            match next(&mut sandbox.events).await {
                Event::OutOfMemory(used) => bytes = used,
                Event::Exited(..) => exited = true,
                event => panic!("{event:?}"),
            }
        }
        assert!(bytes >= 64 << 20, "{bytes}");
        assert!(sandbox.memory_peak.load(Ordering::Relaxed) > 0);
        let (_, said) = run(&mut sandbox, shell("set -- /proc/[0-9]*; echo $#")).await;
        // The shell before it may have said that a child was killed.
        assert!(said.ends_with("2\n"), "{said}");
        end(sandbox).await;
    }

    #[tokio::test]
    async fn what_is_written_to_a_writable_root_ends_with_the_box() {
        let root = TwoDirectories::new();
        let settings = Settings {
            writable_root: true,
            shared_memory: Some(1 << 20),
            ..root.settings()
        };
        let mut sandbox = namespaces::start(&settings).unwrap();
        let task = root.upper().join("var/task");
        std::fs::write(task.join("old"), "old").unwrap();
        std::fs::set_permissions(&task, PermissionsExt::from_mode(0o777)).unwrap();
        let script = "echo new > /var/task/new; rm /var/task/old; ls /var/task; \
                      stat -c %a /dev/shm; stat -fc %b /dev/shm";
        let (_, said) = run(&mut sandbox, shell(script)).await;
        end(sandbox).await;
        assert_eq!(said, "new\n1777\n256\n");
        assert!(!task.join("new").exists());
        assert!(task.join("old").exists());
    }

    #[tokio::test]
    async fn volumes_are_what_they_are_said_to_be() {
        let root = TwoDirectories::new();
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("file"), "here").unwrap();
        // As the user of the box, who is another when root starts it.
        std::fs::set_permissions(data.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let volume = |target: &str, writable| Volume {
            source: data.path().to_owned(),
            target: PathBuf::from(target),
            writable,
        };
        let mut settings = root.settings();
        settings.volumes.extend([
            volume("/mnt/data", false),
            volume("/mnt/work", true),
            Volume {
                source: data.path().join("file"),
                target: PathBuf::from("/opt/bootstrap"),
                writable: false,
            },
        ]);
        let mut sandbox = namespaces::start(&settings).unwrap();
        let script =
            "cat /mnt/data/file /opt/bootstrap; echo x > /mnt/data/x; echo y > /mnt/work/y";
        let (_, said) = run(&mut sandbox, shell(script)).await;
        end(sandbox).await;
        assert_eq!(
            said,
            "herehere/bin/sh: 1: cannot create /mnt/data/x: Read-only file system\n"
        );
        assert_eq!(std::fs::read(data.path().join("y")).unwrap(), b"y\n");
    }

    #[test]
    fn a_symlink_of_the_image_leads_no_mount_outside() {
        let root = TwoDirectories::new();
        let outside = tempfile::tempdir().unwrap();
        let link = root.upper().join("escape");
        std::os::unix::fs::symlink(outside.path(), link).unwrap();
        let mut settings = root.settings();
        for (target, expected) in [
            ("/escape", "could not mount at `/escape`"),
            ("/var/../../x", "could not mount at `/var/../../x`"),
            ("/", "could not mount at `/`"),
        ] {
            settings.volumes.truncate(1);
            settings.volumes.push(Volume {
                source: PathBuf::from("/usr"),
                target: PathBuf::from(target),
                writable: true,
            });
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let _context = runtime.enter();
            let error = namespaces::start(&settings).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_box_is_known_by_its_doorkeeper() {
        let root = TwoDirectories::new();
        let mut here = namespaces::start(&root.settings()).unwrap();
        let mut there = namespaces::start(&root.settings()).unwrap();
        let address = here.listener.local_addr().unwrap();
        start(&mut here, connect(address.port())).await;
        assert!(admitted(&here));
        start(&mut there, connect(address.port())).await;
        assert!(!admitted(&here));
        let _stranger = TcpStream::connect(address).unwrap();
        assert!(!admitted(&here));
        end(here).await;
        end(there).await;
    }

    #[tokio::test]
    async fn a_network_of_its_own_has_nothing_but_the_box() {
        let root = TwoDirectories::new();
        let settings = Settings {
            network: Network::None,
            ..root.settings()
        };
        let mut sandbox = namespaces::start(&settings).unwrap();
        let port = sandbox.listener.local_addr().unwrap().port();
        let script = format!("echo hello > /dev/tcp/127.0.0.1/{port}");
        let process = Process {
            program: "/bin/bash".to_owned(),
            ..shell(&script)
        };
        assert_eq!(run(&mut sandbox, process).await.0, Exit::Code(0));
        sandbox.listener.set_nonblocking(false).unwrap();
        let mut said = String::new();
        let (mut stream, _) = sandbox.listener.accept().unwrap();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello\n");

        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let process = connect(host.local_addr().unwrap().port());
        assert_eq!(run(&mut sandbox, process).await.0, Exit::Code(1));
        end(sandbox).await;
    }

    /// Connects to a port of loopback and stays.
    fn connect(port: u16) -> Process {
        Process {
            program: "/bin/bash".to_owned(),
            ..shell(&format!(
                "exec 3<>/dev/tcp/127.0.0.1/{port} || exit 1; exec sleep 1000"
            ))
        }
    }

    fn admitted(sandbox: &Sandbox) -> bool {
        sandbox.listener.set_nonblocking(false).unwrap();
        let (stream, peer) = sandbox.listener.accept().unwrap();
        let local = stream.local_addr().unwrap();
        sandbox.doorkeeper.admits(peer, local).unwrap()
    }

    #[tokio::test]
    async fn a_box_whose_keeper_is_killed_says_so_and_is_gone() {
        let root = TwoDirectories::new();
        let mut sandbox = namespaces::start(&root.settings()).unwrap();
        start(&mut sandbox, shell("sleep 1000 & exec sleep 1000")).await;
        let Doorkeeper::Descendants(entrance) = sandbox.doorkeeper else {
            panic!("{:?}", sandbox.doorkeeper);
        };
        let family = family(entrance);
        let entrance = i32::try_from(entrance).unwrap();
        let entrance = rustix::process::Pid::from_raw(entrance).unwrap();
        rustix::process::kill_process(entrance, rustix::process::Signal::KILL).unwrap();
        match next(&mut sandbox.events).await {
            Event::Ended(Some(reason)) => assert_eq!(
                reason,
                "the keeper of the sandbox ended: signal: 9 (SIGKILL)"
            ),
            event => panic!("{event:?}"),
        }
        wait_for_end(&family);
    }

    #[test]
    fn nothing_is_left_after_tierce_is_killed() {
        // Two stages or a keeper, then a shell and two children.
        for (kind, processes) in [("namespaces", 5), ("plain", 4)] {
            // What the holder itself makes is removed here, because it is killed.
            let directory = tempfile::tempdir().unwrap();
            let mut holder = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "--nocapture"])
                .arg("sandbox::in_namespaces::a_tierce_to_be_killed")
                .env(KIND, kind)
                .env("TMPDIR", directory.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = Vec::new();
            let mut output = holder.stdout.take().unwrap();
            while !said.ends_with(b"started\n") {
                let mut byte = [0];
                assert_eq!(output.read(&mut byte).unwrap(), 1, "the holder ended");
                said.push(byte[0]);
            }
            let family = family(holder.id());
            assert!(family.len() >= processes, "{kind}: {family:?}");
            holder.kill().unwrap();
            holder.wait().unwrap();
            wait_for_end(&family);
            assert_eq!(cgroups_of(holder.id()), Vec::<PathBuf>::new(), "{kind}");
        }
    }

    /// The cgroups that a process made for its boxes.
    fn cgroups_of(process: u32) -> Vec<PathBuf> {
        let (MemoryKeeper::Unified(at) | MemoryKeeper::Legacy(at)) =
            MemoryKeeper::of_this_machine()
        else {
            return Vec::new();
        };
        let made_by = format!("tierce-{process}-");
        let entries = at.read_dir().unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with(&made_by)
            })
            .collect()
    }

    /// Which kind of box is held.
    const KIND: &str = "TIERCE_TEST_KIND";

    #[ignore = "killed by the test before it"]
    #[tokio::test]
    async fn a_tierce_to_be_killed() {
        let root = TwoDirectories::new();
        let is_plain = std::env::var(KIND).unwrap() == "plain";
        let settings = Settings {
            memory: Some(1 << 30),
            ..if is_plain {
                settings(vec![PathBuf::from("/")])
            } else {
                root.settings()
            }
        };
        let start_box = if is_plain {
            plain::start
        } else {
            namespaces::start
        };
        let mut sandbox = start_box(&settings).unwrap();
        let script = "setsid sleep 1000 & sleep 1000 & echo started; wait";
        start(&mut sandbox, shell(script)).await;
        let started = sandbox.written.recv().await.unwrap().bytes;
        print!("\n{}", String::from_utf8(started.to_vec()).unwrap());
        std::future::pending::<()>().await;
    }

    /// The descendants of a process.
    fn family(of: u32) -> Vec<u32> {
        let children = std::fs::read_dir(format!("/proc/{of}/task"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|children| {
                let children = children.split_ascii_whitespace();
                children
                    .map(|child| child.parse().unwrap())
                    .collect::<Vec<u32>>()
            });
        children
            .flat_map(|child| std::iter::once(child).chain(family(child)))
            .collect()
    }

    fn wait_for_end(family: &[u32]) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(alive) = family.iter().find(|pid| alive(**pid)) {
            assert!(Instant::now() < deadline, "{alive} is alive");
            std::thread::yield_now();
        }
    }

    /// A zombie is dead: whoever adopted it reaps it when it likes.
    fn alive(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[tokio::test]
    async fn this_machine_can_do_all_that_a_box_needs() {
        let scratch = tempfile::tempdir().unwrap();
        let machine = Machine::probe(&stage(), scratch.path()).unwrap();
        machine.namespaces.unwrap();
        machine.overlay.unwrap();
        let left: Vec<_> = scratch.path().read_dir().unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");

        // It is not tried again while nothing has changed, with a program that could not do it.
        let no_stage = PathBuf::from("/bin/true");
        let machine = Machine::probe(&no_stage, scratch.path()).unwrap();
        machine.overlay.unwrap();
        std::fs::write(left[0].path(), "another boot").unwrap();
        let machine = Machine::probe(&no_stage, scratch.path()).unwrap();
        assert!(matches!(
            machine.namespaces,
            Err(SandboxError::NoStage { .. })
        ));
    }

    #[tokio::test]
    async fn paths_need_not_be_text() {
        use std::os::unix::ffi::OsStrExt as _;

        let root = TwoDirectories::new();
        let name = std::ffi::OsStr::from_bytes(b"\xff:,\\\n");
        let odd = root.directory.path().join(name);
        std::fs::create_dir(&odd).unwrap();
        std::fs::write(odd.join("file"), "read").unwrap();
        let mut settings = root.settings();
        settings.volumes.push(Volume {
            source: odd.clone(),
            target: Path::new("/mnt").join(name),
            writable: false,
        });
        let mut directories = settings.root.directories.clone();
        directories.push(odd);
        settings.root = Arc::new(Root::of(directories));
        let mut sandbox = namespaces::start(&settings).unwrap();
        let (_, output) = run(&mut sandbox, shell("cat /file /mnt/*/file")).await;
        assert_eq!(output, "readread");
    }

    #[tokio::test]
    async fn nothing_is_put_in_the_place_of_proc() {
        let root = TwoDirectories::new();
        let mut covered = root.settings();
        covered.volumes.push(Volume {
            source: root.upper(),
            target: PathBuf::from("/proc"),
            writable: false,
        });
        let mut all = vec![covered];
        let roots = ["dev", "tmp"].map(|name| {
            let root = TwoDirectories::new();
            std::os::unix::fs::symlink("proc", root.upper().join(name)).unwrap();
            root
        });
        all.extend(roots.iter().map(TwoDirectories::settings));
        for settings in all {
            for network in [Network::Host, Network::None] {
                let settings = Settings {
                    network,
                    ..settings.clone()
                };
                let error = namespaces::start(&settings).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    "could not have /proc in the box, with a volume or an image in its way"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_missing_feature_is_named() {
        let root = TwoDirectories::new();
        // Overlayfs has no layers that are files.
        let mut settings = root.settings();
        let file = root.upper().join("file");
        std::fs::write(&file, "").unwrap();
        settings.root = Arc::new(Root::of(vec![root.upper(), file]));
        let error = namespaces::start(&settings).unwrap_err();
        assert_eq!(error.to_string(), "could not mount the root by overlay");
        assert_eq!(error.missing().unwrap().feature, Feature::Overlay);
        settings.program = PathBuf::from("/bin/true");
        let error = namespaces::start(&settings).unwrap_err();
        assert!(matches!(error, SandboxError::NoStage { .. }));
        assert_eq!(
            error.to_string(),
            "`/bin/true` did not become a sandbox (it ended without a word)"
        );
        settings.program = PathBuf::from("/absent");
        let error = namespaces::start(&settings).unwrap_err();
        assert_eq!(error.to_string(), "could not start `/absent` as a sandbox");
    }

    #[ignore = "needs runc, and is of a user who is not root"]
    #[tokio::test]
    async fn a_runtime_opens_the_door_to_the_same_box() {
        let root = TwoDirectories::new();
        let scratch = tempfile::tempdir().unwrap();
        let settings = Settings {
            scratch: scratch.path().to_owned(),
            ..root.settings()
        };
        let runtime = std::env::var("TIERCE_TEST_RUNTIME").unwrap();
        let mut sandbox = oci_runtime::start(&settings, Path::new(&runtime)).unwrap();
        let address = sandbox.listener.local_addr().unwrap();
        start(&mut sandbox, connect(address.port())).await;
        assert!(admitted(&sandbox));
        kill_all(&mut sandbox).await;
        let script = "id -u; id -g; ls -m /; ls -m /dev; set -- /proc/[0-9]*; echo $#";
        let (_, said) = run(&mut sandbox, shell(script)).await;
        end(sandbox).await;
        assert_eq!(
            said,
            "993\n990\nbin, dev, etc, lib, lib64, proc, tmp, usr, var\n\
             fd, full, null, random, stderr, stdin, stdout, urandom, zero\n2\n"
        );
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0);
    }

    /// All of the above once more as a user who may do nothing, if it was root until now.
    #[test]
    fn all_of_it_again_without_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let everybody = |mode| PermissionsExt::from_mode(mode);
        std::fs::set_permissions(directory.path(), everybody(0o1777)).unwrap();
        // Where they were built the user may not be allowed to look.
        let tests = directory.path().join("tests");
        std::fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
        std::fs::copy(stage(), directory.path().join("stage")).unwrap();
        let output = std::process::Command::new(tests)
            .args(["sandbox::", "--skip", "all_of_it_again_without_root"])
            .env(STAGE, directory.path().join("stage"))
            .env("TMPDIR", directory.path())
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("test result: ok."), "{said}");
    }
}

/// A root of two directories, with the programs of this machine as a volume.
struct TwoDirectories {
    directory: tempfile::TempDir,
}

impl TwoDirectories {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Self { directory };
        let lower = root.directory.path().join("lower");
        std::fs::create_dir_all(root.upper().join("var/task")).unwrap();
        std::fs::create_dir_all(lower.join("usr")).unwrap();
        for name in ["bin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), lower.join(name)).unwrap();
        }
        root
    }

    fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    fn settings(&self) -> Settings {
        Settings {
            volumes: vec![Volume {
                source: PathBuf::from("/usr"),
                target: PathBuf::from("/usr"),
                writable: false,
            }],
            ..settings(vec![self.upper(), self.directory.path().join("lower")])
        }
    }
}
