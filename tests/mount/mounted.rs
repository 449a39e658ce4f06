//! A mount of the real binary in a directory of its own, and nothing left of it afterwards.

use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{self, Tree};
use crate::server;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub exit: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    fn of(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).output().unwrap().into()
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.exit, 0, "{self:#?}");
        self
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            exit: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A repository, a mount point and a state directory that no other test uses.
pub struct TestMount {
    /// The mount point.
    pub dir: PathBuf,
    /// Where the state is.
    pub state: PathBuf,
    /// `NAMESPACE/NAME`.
    pub repo: String,
    pub server: String,
    /// The binary.
    binary: PathBuf,
    /// Who mounts and runs commands, where that is not who tests.
    user: Option<u32>,
    temp: tempfile::TempDir,
}

/// A user and group that own nothing (`nobody` of most systems).
const NOBODY: u32 = 65534;

impl TestMount {
    /// Mounts a new repository of the test server.
    #[track_caller]
    pub fn new() -> Self {
        Self::through(server::url())
    }

    /// Mounts a new repository by way of `server`.
    #[track_caller]
    pub fn through(server: &str) -> Self {
        Self::with(server, &[])
    }

    /// Mounts a new repository by way of `server`, with more options.
    #[track_caller]
    pub fn with(server: &str, options: &[&str]) -> Self {
        let test = Self::unmounted(server);
        test.mount(&[&["--create"], options].concat()).ok();
        test
    }

    /// A repository of the server at `server` that holds just these files, of which nothing is here; not mounted.
    #[track_caller]
    pub fn committed_by<'a>(server: &str, files: impl IntoIterator<Item = (&'a String, &'a Vec<u8>)>) -> Self {
        let test = Self::through(server);
        for (path, content) in files {
            std::fs::create_dir_all(test.at(path).parent().unwrap()).unwrap();
            std::fs::write(test.at(path), content).unwrap();
        }
        test.unmount_commit();
        test.forget();
        test
    }

    /// A repository that is not made, and directories where nothing is mounted.
    pub fn unmounted(server: &str) -> Self {
        let temp = tempfile::Builder::new().prefix("oxenfs-test-mount").tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let (dir, state) = (root.join("mnt"), root.join("state"));
        std::fs::create_dir(&dir).unwrap();
        // A server that outlives the process must not meet a name twice.
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let repo = format!("test/mount-{}-{now}-{number}", std::process::id());
        let binary = env!("CARGO_BIN_EXE_oxenfs").into();
        Self { dir, state, repo, server: server.to_owned(), binary, user: None, temp }
    }

    /// Mounts a new repository by way of `server` as a user without privileges: another one where this one is root.
    #[track_caller]
    pub fn unprivileged(server: &str, options: &[&str]) -> Self {
        let mut test = Self::unmounted(server);
        if rustix::process::geteuid().is_root() {
            // Where that user can reach it: the one that was built may be in a home directory.
            let binary = test.beside("bin").join("oxenfs");
            std::fs::copy(&test.binary, &binary).unwrap();
            for path in [test.temp.path(), &test.dir, binary.parent().unwrap()] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
            (test.binary, test.user) = (binary, Some(NOBODY));
        }
        test.mount(&[&["--create"], options].concat()).ok();
        test
    }

    /// Has a command run as who mounted.
    pub fn as_its_user(&self, command: &mut Command) {
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
    }

    /// A directory beside the mount.
    pub fn beside(&self, name: &str) -> PathBuf {
        let path = self.temp.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// A path on the mount.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join(path)
    }

    /// Runs `oxenfs` with the state directory `state`.
    pub fn oxenfs_with<S: AsRef<OsStr>>(&self, state: &Path, arguments: impl IntoIterator<Item = S>) -> Said {
        Said::of(&mut self.command(state, arguments))
    }

    /// Starts `oxenfs`; its words are the child's.
    pub fn spawn<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Child {
        self.spawn_with(&self.state, arguments)
    }

    /// Starts `oxenfs` with the state directory `state`.
    pub fn spawn_with<S: AsRef<OsStr>>(&self, state: &Path, arguments: impl IntoIterator<Item = S>) -> Child {
        let mut command = self.command(state, arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn command<S: AsRef<OsStr>>(&self, state: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--state-dir").arg(state);
        self.as_its_user(&mut command);
        self.at_home(command)
    }

    /// With nothing of the tester's own environment.
    fn at_home(&self, mut command: Command) -> Command {
        command.env("HOME", self.temp.path()).env("OXEN_CONFIG_DIR", self.temp.path().join("oxen"));
        let files = ["OXEN_API_KEY_FILE", "OXENFS_CONFIG"];
        let others = ["OXEN_SERVER", "OXEN_API_KEY", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "OXENFS_LOG"];
        for name in files.into_iter().chain(others) {
            command.env_remove(name);
        }
        command
    }

    /// Runs `oxenfs`.
    pub fn oxenfs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Said {
        self.oxenfs_with(&self.state, arguments)
    }

    /// Runs `oxenfs` without naming a state directory.
    pub fn bare<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Said {
        let mut command = Command::new(&self.binary);
        command.args(arguments);
        self.as_its_user(&mut command);
        Said::of(&mut self.at_home(command))
    }

    /// The binary that runs for this mount.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs another program with these arguments as who mounted, with nothing of the tester's environment.
    pub fn bare_as<S: AsRef<OsStr>>(&self, program: &Path, arguments: impl IntoIterator<Item = S>) -> Said {
        let mut command = Command::new(program);
        command.args(arguments);
        self.as_its_user(&mut command);
        Said::of(&mut self.at_home(command))
    }

    /// Takes the mount away that a killed daemon left.
    pub fn detach(&self) {
        Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(&self.dir).status().unwrap();
    }

    /// `oxenfs mount`, which may be refused.
    pub fn mount(&self, options: &[&str]) -> Said {
        self.mount_with(&self.state, &self.dir, options)
    }

    /// `oxenfs mount --create` by a shell that does something to itself first.
    pub fn mount_after(&self, shell: &str) -> Said {
        let mut command = Command::new("sh");
        command.args(["-ec", &format!("{shell}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_oxenfs")]);
        command.args(["mount", &self.repo, self.dir.to_str().unwrap(), "--create", "--server", &self.server]);
        command.arg("--state-dir").arg(&self.state);
        Said::of(&mut self.at_home(command))
    }

    /// `oxenfs mount` of the same repository with another state directory or mount point.
    pub fn mount_with(&self, state: &Path, dir: &Path, options: &[&str]) -> Said {
        let mut arguments = vec!["mount", &self.repo, dir.to_str().unwrap(), "--server", &self.server];
        // By requests alone, where the kernel would do without.
        if std::env::var_os("OXENFS_TEST_PASSTHROUGH").is_some_and(|when| when == "never") {
            arguments.extend(["-o", "passthrough=never"]);
        }
        arguments.extend(options);
        self.oxenfs_with(state, arguments)
    }

    /// `oxenfs sync DIR`.
    #[track_caller]
    pub fn sync(&self) {
        self.oxenfs([OsStr::new("sync"), self.dir.as_os_str()]).ok();
    }

    /// `oxenfs commit DIR`.
    #[track_caller]
    pub fn commit(&self) {
        let dir = self.dir.to_str().unwrap();
        self.oxenfs(["commit", dir, "-m", "a commit", "--author", "A. Tester", "--email", "a@example.org"]).ok();
    }

    /// `oxenfs unmount DIR`, after which nothing is left.
    #[track_caller]
    pub fn unmount(&self) {
        self.oxenfs([OsStr::new("unmount"), self.dir.as_os_str()]).ok();
        self.assert_gone();
    }

    /// `oxenfs unmount DIR --commit`, after which nothing is left.
    #[track_caller]
    pub fn unmount_commit(&self) {
        let dir = self.dir.to_str().unwrap();
        let arguments =
            ["unmount", dir, "--commit", "-m", "a commit", "--author", "A. Tester", "--email", "a@example.org"];
        self.oxenfs(arguments).ok();
        self.assert_gone();
    }

    /// Unmounts with a commit, and compares: the branch holds the regular files that the mount held, and no other. This
    /// is how every suite ends. Directories that hold none are looked at in `wanted_states.rs`.
    #[track_caller]
    pub fn unmount_and_compare(&self) {
        let held = local_tree(&self.dir);
        self.unmount_commit();
        http::assert_same(&self.committed(), &held);
    }

    /// Empties the local state: the next mount knows only what the server has.
    pub fn forget(&self) {
        std::fs::remove_dir_all(&self.state).unwrap();
    }

    /// `oxenfs status DIR --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let said = self.oxenfs([OsStr::new("status"), self.dir.as_os_str(), OsStr::new("--json")]).ok();
        serde_json::from_str(&said.out).unwrap()
    }

    /// Waits for a status that `enough` likes.
    #[track_caller]
    pub fn wait_status(&self, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if enough(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "waited for {what}: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process that serves the mount.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let pid = self.status()["pid"].as_i64().unwrap();
        assert_ne!(pid, 0);
        pid.try_into().unwrap()
    }

    /// Sends the daemon a signal, and waits until it is gone when that is SIGKILL, and until all of it stands still when
    /// that is SIGSTOP: its other threads go on until the one that takes the signal has run.
    #[track_caller]
    pub fn signal(&self, signal: rustix::process::Signal) -> i32 {
        let pid = self.pid();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
        if signal == rustix::process::Signal::KILL {
            wait_until("the daemon to be gone", || is_over(pid));
        }
        if signal == rustix::process::Signal::STOP {
            wait_until("the daemon to stand still", || is_stopped(pid));
        }
        pid
    }

    /// What branch main holds.
    pub fn committed(&self) -> Tree {
        http::committed_tree(server::url(), &self.repo)
    }

    /// One file of branch main.
    pub fn committed_file(&self, path: &str) -> Option<Vec<u8>> {
        http::committed_file(server::url(), &self.repo, path)
    }

    fn ask(&self, server: &str, path: &str) -> Value {
        let (status, body) = http::get(server, &format!("/api/repos/{}{path}", self.repo)).unwrap();
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    fn workspace_id(&self, server: &str) -> String {
        let name = self.status()["workspace"].clone();
        let workspaces = self.ask(server, "/workspaces");
        let found = workspaces["workspaces"].as_array().unwrap().iter().find(|workspace| workspace["name"] == name);
        found.expect("the workspace is listed")["id"].as_str().unwrap().to_owned()
    }

    /// What the workspace has at a path, staged or as the base has it.
    pub fn staged_content(&self, path: &str) -> Option<Vec<u8>> {
        self.staged_content_on(server::url(), path)
    }

    /// The same, on a server of the test's own.
    pub fn staged_content_on(&self, server: &str, path: &str) -> Option<Vec<u8>> {
        let place = format!("/api/repos/{}/workspaces/{}/files/{path}", self.repo, self.workspace_id(server));
        let (status, body) = http::get(server, &place).unwrap();
        (status == 200).then_some(body)
    }

    /// All paths that the workspace's list of changes names.
    pub fn staged_paths(&self) -> Vec<String> {
        let id = self.workspace_id(server::url());
        let changes = self.ask(server::url(), &format!("/workspaces/{id}/changes?page=1&page_size=100000"));
        let mut paths = Vec::new();
        for kind in ["added_files", "modified_files", "removed_files"] {
            for entry in changes["staged"][kind]["entries"].as_array().into_iter().flatten() {
                paths.push(entry["filename"].as_str().unwrap().to_owned());
            }
        }
        paths
    }

    /// Whether the kernel has a mount at the mount point.
    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.dir)
    }

    /// The oxenfs processes of this test: their command line names its directory.
    pub fn daemons(&self) -> Vec<i32> {
        let mark = self.temp.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            if command.starts_with(self.binary.to_str().unwrap()) && command.contains(mark) {
                found.push(pid);
            }
        }
        found
    }

    /// Nothing is mounted, and no daemon runs, or not for long any more.
    #[track_caller]
    pub fn assert_gone(&self) {
        assert!(!self.is_mounted(), "still mounted");
        wait_until("the daemon to end", || self.daemons().is_empty());
    }
}

/// The kernel's table of mounts. Tests run side by side, and some have names that are not text.
pub fn kernel_mounts() -> String {
    String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo").unwrap()).into_owned()
}

/// Whether the kernel has a mount at a directory.
pub fn is_mounted(dir: &Path) -> bool {
    kernel_mounts().lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

/// The states of a process's threads, as `/proc` has them (`proc_pid_stat(5)`); none of one that is gone.
fn thread_states(pid: i32) -> Vec<Option<char>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |thread: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // After the name, which may hold anything, in parentheses.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    threads.map(state).collect()
}

/// Whether every thread of a process is stopped.
fn is_stopped(pid: i32) -> bool {
    let states = thread_states(pid);
    !states.is_empty() && states.into_iter().all(|state| state == Some('T'))
}

/// Whether a process has closed its files: its command line is gone before (`do_exit` in kernel/exit.c of Linux), and
/// whoever reaps it may take a while.
pub fn is_over(pid: i32) -> bool {
    thread_states(pid).into_iter().all(|state| matches!(state, Some('Z' | 'X')))
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_what_the_daemon_said();
        }
        let mut mounted = vec![self.dir.clone()];
        mounted.extend(std::fs::read_dir(self.temp.path()).into_iter().flatten().flatten().map(|entry| entry.path()));
        mounted.retain(|dir| is_mounted(dir));
        mounted.dedup();
        for dir in mounted {
            let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(dir).status();
        }
        for pid in self.daemons() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        // What cannot be removed while a daemon ends is removed a moment later.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.daemons().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl TestMount {
    /// The ends of the daemons' logs, for whoever reads why a test failed.
    #[expect(clippy::print_stderr, reason = "the test harness shows it with the failure")]
    fn tell_what_the_daemon_said(&self) {
        for entry in std::fs::read_dir(&self.state).into_iter().flatten().flatten() {
            for log in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                if log.path().extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read(log.path()).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    let lines: Vec<_> = text.lines().collect();
                    let last = &lines[lines.len().saturating_sub(30)..];
                    eprintln!("{}:\n{}", log.path().display(), last.join("\n"));
                }
            }
        }
    }
}

/// Waits for `done`, with a deadline.
#[track_caller]
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program, which must succeed.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run scripts/setup --test"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program prints, which must succeed.
#[track_caller]
pub fn run_for_bytes<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Vec<u8> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs a shell script in `dir`.
#[track_caller]
pub fn shell(dir: &Path, script: &str) -> String {
    run("sh", [OsStr::new("-c"), OsStr::new(&format!("set -eu; cd \"$0\"; {script}")), dir.as_os_str()])
}

/// Runs a Python script in `dir`.
#[track_caller]
pub fn python(dir: &Path, script: &str) -> String {
    let script = format!("import os, sys\nos.chdir(sys.argv[1])\n{script}");
    run("python3", [OsStr::new("-c"), OsStr::new(&script), dir.as_os_str()])
}

/// All regular files below a directory with names that a server can hold; what else there is, is left out.
pub fn local_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                match entry.path().strip_prefix(root).unwrap().to_str() {
                    Some(name) if !name.contains('\\') => {
                        tree.insert(name.to_owned(), std::fs::read(entry.path()).unwrap());
                    }
                    _ => {}
                }
            } else {
                assert!(kind.is_symlink() || kind.is_fifo() || kind.is_socket(), "{}", entry.path().display());
            }
        }
    }
    tree
}
