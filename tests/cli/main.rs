//! The command as a user meets it: what it prints where, and its exit code. No kernel mount and no server: where a
//! daemon is needed, a scripted one answers.

mod config;
mod daemon;
mod directions;
mod metrics;
mod packaging;
mod promises;
mod schema;
mod shown;
mod silence;
mod trust;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use daemon::{Daemon, Then, stopped};
use oxenfs::control::{Event, Failure, Request, Status};
use oxenfs::report::{Counts, Progress, Tally};

/// A user with nothing configured and a place of their own.
struct User {
    home: tempfile::TempDir,
}

#[derive(Debug)]
struct Said {
    exit: i32,
    out: String,
    err: String,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().canonicalize().unwrap().join(name)
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Where the state root of this user is.
    fn state(&self) -> PathBuf {
        self.path("state/oxenfs")
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oxenfs"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("OXEN_CONFIG_DIR", self.path("oxen"))
            .stdin(Stdio::null());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Said {
        said(&mut self.command(arguments))
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        exit: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_import_wants_a_source_and_a_directory_on_a_mount() {
    let user = User::new();
    let dir = user.dir("plain");
    let alone = said(&mut user.command(["import", text(&dir)]));
    assert_eq!(alone.exit, 2);
    assert!(alone.err.contains("Usage: oxenfs import [OPTIONS] <SRC>... <DIR>"), "{}", alone.err);
    let nowhere = said(&mut user.command(["import", text(&dir), text(&dir)]));
    let expected = "no oxenfs mount is there\nhint: oxenfs status lists the mounts\n";
    assert_eq!((nowhere.exit, nowhere.err), (1, format!("error: cannot import into {}: {expected}", text(&dir))));
}

#[test]
fn a_level_in_the_environment_is_checked_too_and_an_option_goes_before_it() {
    let user = User::new();
    let dir = user.dir("mnt");
    // What is wrong after the level is checked tells that the option was taken.
    let arguments = ["mount", "ox/cats", text(&dir), "--server", "h", "--log", "debug", "--umask", "9"];
    let right = said(user.command(arguments).env("OXENFS_LOG", "loud"));
    assert_eq!(right.exit, 2);
    assert!(right.err.contains("--umask") && !right.err.contains("OXENFS_LOG"), "{}", right.err);
    let arguments = ["mount", "ox/cats", text(&dir), "--server", "h"];
    let wrong = said(user.command(arguments).env("OXENFS_LOG", "loud"));
    assert_eq!(wrong.exit, 2);
    assert!(wrong.err.contains("OXENFS_LOG \"loud\" is not error, warn, info, debug, trace"), "{}", wrong.err);
}

#[test]
fn the_level_of_a_mount_is_shown_and_changed_by_its_daemon() {
    let user = User::new();
    let dir = user.dir("mnt");
    let daemon = Daemon::start(&user.state(), &dir, |request| match request {
        Request::LogLevel { level } => {
            (vec![Event::LogLevel { level: level.clone().unwrap_or_else(|| "warn".into()) }], Then::HangUp)
        }
        _ => (vec![], Then::HangUp),
    });
    let shown = user.run(["log-level", text(&dir)]);
    assert_eq!((shown.exit, shown.out.as_str(), shown.err.as_str()), (0, "warn\n", ""));
    assert_eq!(daemon.requests.recv().unwrap(), Request::LogLevel { level: None });
    let changed = user.run(["log-level", text(&dir), "DEBUG"]);
    let said = format!("{} logs debug from now on\n", text(&dir));
    assert_eq!((changed.exit, changed.out.as_str(), changed.err), (0, "", said));
    assert_eq!(daemon.requests.recv().unwrap(), Request::LogLevel { level: Some("debug".into()) });
    let nowhere = user.run(["log-level", text(&user.dir("other"))]);
    assert_eq!(nowhere.exit, 1);
    assert!(nowhere.err.contains("no oxenfs mount is there"), "{}", nowhere.err);
}

#[test]
fn wrong_settings_are_named_with_exit_code_2() {
    let user = User::new();
    let dir = user.dir("mnt");
    let dir = text(&dir);
    let help = "hint: oxenfs --help, or oxenfs mount --help\n";
    let levels = "is not error, warn, info, debug, trace, or a list such as warn,oxenfs::oxen=debug";
    let cases: [(&[&str], String); 13] = [
        (
            &["mount", "ox/cats", dir, "--server", "h", "--log", "loud"],
            format!("error: cannot mount ox/cats: --log \"loud\" {levels}\n{help}"),
        ),
        (
            &["mount", "ox/cats", dir, "--server", "h", "-o", "log=info=debug=x"],
            format!("error: cannot mount ox/cats: --log \"info=debug=x\" {levels}\n{help}"),
        ),
        (&["dev-server", dir, "--log", "9"], format!("error: cannot serve {dir}: --log \"9\" {levels}\n{help}")),
        (
            &["log-level", dir, "info,oxenfs"],
            format!("error: cannot change what {dir} logs: LEVEL \"info,oxenfs\" {levels}\n{help}"),
        ),
        (
            &["mount", "cats", dir],
            format!(
                "error: cannot mount cats: REPO \"cats\" is not NAMESPACE/NAME or a URL such as \
                 http://127.0.0.1:3000/ox/cats\n{help}"
            ),
        ),
        (
            &["mount", "ox/cats", dir],
            "error: cannot mount ox/cats: no server is named\n\
             hint: name one: --server http://127.0.0.1:3000, or set OXEN_SERVER\n"
                .into(),
        ),
        (
            &["mount", "https://u:sesame@h/ox/cats", dir],
            "error: cannot mount ...@h/ox/cats: REPO contains credentials, which other users could read in the \
             process list\nhint: leave them out and set OXEN_API_KEY to the token\n"
                .into(),
        ),
        (
            &["mount", "ox/cats", dir, "--server", "h", "-o", "ro,bogus"],
            "error: cannot mount ox/cats: unknown mount option \"bogus\"\n\
             hint: options are named as in: oxenfs mount --help\n"
                .into(),
        ),
        (
            &["mount", "ox/cats", dir, "--server", "h", "--spool-limit", "lots"],
            format!("error: cannot mount ox/cats: --spool-limit \"lots\" is not a size such as 512MiB or 10G\n{help}"),
        ),
        (
            &["mount", "ox/cats", dir, "--server", "h", "--public"],
            format!("error: cannot mount ox/cats: --public needs --create\n{help}"),
        ),
        (
            &["mount", "ox/cats", dir, "--server", "h", "--subdir", "../x"],
            format!("error: cannot mount ox/cats: --subdir \"../x\" is not a path inside the repository\n{help}"),
        ),
        (
            &["mount", "http://a/ox/cats", dir, "--server", "http://b"],
            format!("error: cannot mount http://a/ox/cats: REPO is on http://a, but --server says http://b\n{help}"),
        ),
        (
            &["commit", dir, "-m", "x", "--branch", "a b"],
            format!("error: cannot commit {dir}: --branch \"a b\" is not a branch name\n{help}"),
        ),
    ];
    for (arguments, expected) in cases {
        let said = user.run(arguments);
        assert_eq!((said.exit, said.err.as_str(), said.out.as_str()), (2, &*expected, ""), "{arguments:?}");
    }
}

#[test]
fn what_clap_refuses_exits_with_2_and_help_with_0() {
    let user = User::new();
    for arguments in [
        &["mount"][..],
        &["frobnicate"],
        &["unmount", "/x", "--commit"],
        &["unmount", "/x", "-m", "x"],
        &["unmount", "/x", "--timeout", "soon"],
        &["commit", "/x"],
        &["sync"],
        &[],
    ] {
        let said = user.run(arguments);
        assert_eq!((said.exit, said.out.as_str()), (2, ""), "{arguments:?}");
        assert!(!said.err.is_empty());
    }
    let help = user.run(["--help"]);
    assert_eq!((help.exit, help.err.as_str()), (0, ""));
    for command in
        ["mount", "unmount", "status", "diff", "doctor", "sync", "commit", "repo", "dev-server", "completions"]
    {
        assert!(help.out.contains(command), "{command}");
    }
    let version = user.run(["--version"]);
    assert_eq!(version.out, concat!("oxenfs ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_directory_that_cannot_be_mounted_on_is_named_before_anything_happens() {
    let user = User::new();
    let full = user.dir("full");
    std::fs::write(full.join("file"), "x").unwrap();
    let missing = user.path("missing");
    let cases = [
        (
            full.clone(),
            format!(
                "error: cannot mount ox/cats: {} is not empty\nhint: name an empty directory; files are added by \
                 copying them there once it is mounted\n",
                full.display()
            ),
        ),
        (
            full.join("file"),
            format!(
                "error: cannot mount ox/cats: {} is not a directory\nhint: name an empty directory\n",
                full.join("file").display()
            ),
        ),
        (
            missing.clone(),
            format!("error: cannot mount ox/cats: {0} does not exist\nhint: mkdir -p {0}\n", missing.display()),
        ),
        (
            "/proc".into(),
            "error: cannot mount ox/cats: /proc is already a mount point, of type proc\n\
             hint: name another directory\n"
                .into(),
        ),
    ];
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        // The device is looked at first; its own message is this one's turn.
        let said = user.run(["mount", "ox/cats", text(&full), "--server", "127.0.0.1:1"]);
        assert_eq!(said.exit, 1);
        assert!(said.err.starts_with("error: cannot mount ox/cats: /dev/fuse "), "{}", said.err);
        return;
    }
    for (dir, expected) in cases {
        let said = user.run(["mount", "ox/cats", text(&dir), "--server", "127.0.0.1:1"]);
        assert_eq!((said.exit, said.err.as_str(), said.out.as_str()), (1, &*expected, ""));
    }
    assert!(!user.state().exists());
}

#[test]
fn a_daemon_that_cannot_start_reports_through_its_command() {
    let user = User::new();
    let dir = user.dir("mnt");
    // Nobody listens on port 1.
    let said = user.run(["mount", "ox/cats", text(&dir), "--server", "http://127.0.0.1:1"]);
    assert_eq!((said.exit, said.out.as_str()), (1, ""));
    assert!(said.err.starts_with("error: cannot mount ox/cats: "), "{}", said.err);
    assert!(!said.err.contains("panicked"), "{}", said.err);
    assert!(std::fs::read_dir(&dir).unwrap().next().is_none());
}

#[test]
fn a_state_directory_inside_the_mount_point_is_refused() {
    let user = User::new();
    let dir = user.dir("mnt");
    let state = dir.join("state");
    let said = user.run(["mount", "ox/cats", text(&dir), "--server", "h", "--state-dir", text(&state)]);
    assert_eq!(said.exit, 1);
    let refused = format!("the state directory {} and the mount point lie inside each other", state.display());
    assert!(said.err.contains(&refused) || said.err.contains("/dev/fuse"), "{}", said.err);
    assert!(!state.exists());
}

#[test]
fn called_by_mount_it_takes_specification_directory_and_options() {
    let user = User::new();
    let dir = user.dir("mnt");
    let helper = |options: &[&str]| {
        let mut command = user.command(["ox/cats", text(&dir)]);
        command.arg0("/sbin/mount.oxenfs").args(options);
        said(&mut command)
    };
    let unknown = helper(&["-o", "rw,server=h,bogus=1"]);
    assert_eq!(unknown.exit, 2);
    assert!(unknown.err.contains("unknown mount option \"bogus=1\""), "{}", unknown.err);
    let fake = helper(&["-s", "-f", "-v", "-o", "rw,_netdev,server=127.0.0.1:1,bogus=1"]);
    assert!(fake.exit == 0 || fake.err.contains("/dev/fuse"), "{fake:?}");
}

#[test]
fn a_directory_that_is_no_mount_is_said_to_be_none() {
    let user = User::new();
    let dir = user.dir("plain");
    let dir = text(&dir);
    let hint = "hint: oxenfs status lists the mounts\n";
    let cases: [(&[&str], String); 5] = [
        (&["unmount", dir], format!("error: cannot unmount {dir}: it is not an oxenfs mount\n{hint}")),
        (&["sync", dir], format!("error: cannot sync {dir}: no oxenfs mount is there\n{hint}")),
        (&["commit", dir, "-m", "x"], format!("error: cannot commit {dir}: no oxenfs mount is there\n{hint}")),
        (&["status", dir], format!("error: cannot show {dir}: no oxenfs mount is there\n{hint}")),
        (&["unmount", "/proc"], "error: cannot unmount /proc: what is mounted there is proc, not oxenfs\n".into()),
    ];
    for (arguments, expected) in cases {
        let said = user.run(arguments);
        assert_eq!((said.exit, said.err.as_str(), said.out.as_str()), (1, &*expected, ""), "{arguments:?}");
    }
}

#[test]
fn without_mounts_status_says_so_and_json_is_an_empty_list() {
    let user = User::new();
    let plain = user.run(["status"]);
    assert_eq!((plain.exit, plain.out.as_str()), (0, ""));
    assert_eq!(plain.err, "nothing is mounted, and nothing is owed to a server\n");
    let json = user.run(["status", "--json"]);
    assert_eq!((json.exit, json.out.as_str(), json.err.as_str()), (0, "[]\n", ""));
}

#[test]
fn doctor_fails_for_a_server_that_is_not_there_and_says_what_to_do() {
    let user = User::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{nobody}");
    let said = user.run(["doctor", "--server", &server]);
    assert_eq!((said.exit, said.err.as_str()), (1, ""), "{said:?}");
    assert!(said.out.starts_with("ok       kernel: Linux "), "{}", said.out);
    assert!(said.out.contains(&format!("failed   server: cannot reach {server}: ")), "{}", said.out);
    assert!(said.out.contains(&format!("         hint: is it running? curl {server}/api/health\n")), "{}", said.out);
    let json: serde_json::Value =
        serde_json::from_str(&user.run(["doctor", "--json", "--server", &server]).out).unwrap();
    assert!(json.as_array().unwrap().iter().any(|line| line["about"] == "server" && line["verdict"] == "failed"));
    assert!(!user.state().exists(), "looking makes nothing");
}

fn mounted(_: &Request) -> (Vec<Event>, Then) {
    let status = Status {
        mountpoint: Some("/mnt".into()),
        server: "http://127.0.0.1:3000".into(),
        repo: "ox/cats".into(),
        branch: "main".into(),
        workspace: "w".into(),
        phase: "mounted".into(),
        pid: 77,
        counts: Counts {
            queued: Tally { files: 310, bytes: 5 << 20 },
            staged: Tally { files: 12000, bytes: 3 << 30 },
            ..Counts::default()
        },
        eta_secs: Some(14),
        errors: vec![oxenfs::report::FileError {
            path: "a\x1b[2J".into(),
            error: "refused".into(),
            attempts: 3,
            parked: true,
        }],
        ..Status::default()
    };
    (vec![Event::Status(Box::new(status))], Then::HangUp)
}

#[test]
fn status_shows_what_the_daemon_says() {
    let user = User::new();
    let dir = user.dir("mnt");
    let _daemon = Daemon::start(&user.state(), &dir, mounted);
    let plain = user.run(["status", text(&dir)]);
    assert_eq!((plain.exit, plain.err.as_str()), (0, ""));
    for line in [
        "  state       mounted (process 77)\n",
        "  to send     310 changes, 5.0 MiB (310 queued), about 14 s left\n",
        "  staged      12,000 files, 3.0 GiB, not committed\n",
        "    a\\u{1b}[2J: refused (tried 3 times, waits for you)\n",
    ] {
        assert!(plain.out.contains(line), "{line}\nin\n{}", plain.out);
    }
    // Also from below, and from elsewhere as an element of the list.
    let one: Status = serde_json::from_str(&user.run(["status", "--json", text(&dir.join("x/y"))]).out).unwrap();
    let all: Vec<Status> = serde_json::from_str(&user.run(["status", "--json"]).out).unwrap();
    assert_eq!(all, [one]);
}

/// One large file waits, and this many seconds are left; 0: nobody knows.
fn waiting<const LEFT_SECS: u64>(_: &Request) -> (Vec<Event>, Then) {
    let counts = Counts { queued: Tally { files: 1, bytes: 20 << 30 }, ..Counts::default() };
    let eta_secs = (LEFT_SECS > 0).then_some(LEFT_SECS);
    let status = Status { phase: "mounted".into(), pid: 77, counts, eta_secs, ..Status::default() };
    (vec![Event::Status(Box::new(status))], Then::HangUp)
}

#[test]
fn status_says_how_long_it_will_take_where_that_is_known_and_of_days_no_more_than_that() {
    let told = |script| {
        let user = User::new();
        let dir = user.dir("mnt");
        let _daemon = Daemon::start(&user.state(), &dir, script);
        let said = user.run(["status", text(&dir)]).out;
        said.lines().find(|line| line.contains("to send")).unwrap().to_owned()
    };
    assert_eq!(told(waiting::<0>), "  to send     1 change, 20.0 GiB (1 queued)");
    assert_eq!(told(waiting::<7500>), "  to send     1 change, 20.0 GiB (1 queued), about 2 h 5 min left");
    assert_eq!(told(waiting::<{ 50 * 86_400 }>), "  to send     1 change, 20.0 GiB (1 queued), more than a day left");
}

#[test]
fn nothing_panics_when_nobody_reads() {
    let user = User::new();
    let dir = user.dir("mnt");
    let _daemon = Daemon::start(&user.state(), &dir, mounted);
    for arguments in [&["status"][..], &["status", "--json"], &["completions", "bash"], &["--help"]] {
        let mut child = user.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert!(output.status.code().is_some());
    }
}

#[test]
fn sync_names_paths_from_the_mounts_root() {
    let user = User::new();
    let dir = user.dir("mnt");
    std::os::unix::fs::symlink(&dir, user.path("link")).unwrap();
    let daemon = Daemon::start(&user.state(), &dir, |_| (vec![Event::Done], Then::HangUp));
    let paths = [dir.join("a/b"), user.path("link/removed")];
    let synced = user.run(std::iter::once("sync").chain(paths.iter().map(|path| text(path))));
    assert_eq!((synced.exit, synced.out.as_str(), synced.err.as_str()), (0, "", ""));
    let paths = vec!["a/b".to_owned(), "removed".to_owned()];
    assert_eq!(daemon.requests.recv().unwrap(), Request::Sync { paths, before_commit: false });
    assert_eq!(user.run(["sync", text(&dir)]).exit, 0);
    assert_eq!(daemon.requests.recv().unwrap(), Request::Sync { paths: vec![], before_commit: false });
}

#[test]
fn commit_prints_its_id_and_nothing_else_on_standard_output() {
    let user = User::new();
    let dir = user.dir("mnt");
    let script = |request: &Request| match request {
        Request::Commit { message, .. } if message == "none" => (vec![Event::Committed { id: None }], Then::HangUp),
        _ => {
            let id = Some("abc123".to_owned());
            (vec![Event::Committed { id }], Then::HangUp)
        }
    };
    let daemon = Daemon::start(&user.state(), &dir, script);
    let commit = |message: &str| user.run(["commit", text(&dir), "-m", message]);
    let unknown = commit("x");
    assert_eq!(unknown.exit, 1);
    assert_eq!(
        unknown.err,
        format!(
            "error: cannot commit {}: it is not known who commits\n\
             hint: oxen config --name NAME --email ADDRESS, or give --author and --email\n",
            dir.display()
        )
    );
    std::fs::write(user.dir("oxen").join("user_config.toml"), "name = \"Ann\"\nemail = \"ann@lab\"\n").unwrap();
    let made = commit("Label batch 7");
    assert_eq!((made.exit, made.out.as_str(), made.err.as_str()), (0, "abc123\n", ""));
    let expected = Request::Commit {
        branch: None,
        message: "Label batch 7".into(),
        author: "Ann".into(),
        email: "ann@lab".into(),
        on_conflict: None,
    };
    assert_eq!(daemon.requests.recv().unwrap(), expected);
    let nothing = commit("none");
    assert_eq!((nothing.exit, nothing.out.as_str()), (0, ""));
    assert_eq!(nothing.err, format!("nothing to commit in {}\n", dir.display()));
}

#[test]
fn files_for_a_new_repository_are_checked_before_the_server_is_asked() {
    let user = User::new();
    let (file, dir) = (user.path("a.txt"), user.dir("d"));
    std::fs::write(&file, "x").unwrap();
    std::fs::write(dir.join("a.txt"), "y").unwrap();
    let create = |files: &[&Path]| {
        let start = ["repo", "create", "ox/cats", "--server", "http://127.0.0.1:1"].map(PathBuf::from);
        let files = files.iter().flat_map(|file| [PathBuf::from("--file"), file.to_path_buf()]);
        user.run(start.into_iter().chain(files))
    };
    let cases: [(i32, &[&Path], String); 4] = [
        (2, &[&file, &dir.join("a.txt")], "two files would both be called a.txt".into()),
        (1, &[&dir], format!("{} is not a regular file", dir.display())),
        (1, &[&user.path("no")], format!("cannot read {}: No such file", user.path("no").display())),
        (1, &[&file], "it is not known who commits".into()),
    ];
    for (exit, files, cause) in cases {
        let said = create(files);
        assert_eq!((said.exit, said.out.as_str()), (exit, ""));
        let start = format!("error: cannot create ox/cats: {cause}");
        assert!(said.err.starts_with(&start), "{}", said.err);
    }
}

/// Drains for ever; says how it is when asked.
fn draining(request: &Request) -> (Vec<Event>, Then) {
    if matches!(request, Request::Status) {
        return mounted(request);
    }
    let progress = Progress { files_done: 1, files_total: 311, bytes_done: 0, bytes_total: 5 << 20, files_failed: 0 };
    (vec![Event::Progress(progress)], Then::Wait)
}

#[test]
fn giving_up_after_a_time_leaves_the_rest_queued_and_says_so() {
    let user = User::new();
    let dir = user.dir("mnt");
    let _daemon = Daemon::start(&user.state(), &dir, draining);
    let dir = text(&dir);
    for (command, verb) in [("unmount", "unmount"), ("sync", "sync")] {
        let said = user.run([command, dir, "--timeout", "300ms"]);
        assert_eq!((said.exit, said.out.as_str()), (3, ""));
        assert_eq!(
            said.err,
            format!(
                "error: cannot {verb} {dir}: timed out with 310 files (5.0 MiB) not on the server yet; \
                 the rest is safe on this disk, and staging goes on in the background\n\
                 hint: wait for it again with: oxenfs {verb} {dir}\n"
            )
        );
    }
}

#[test]
fn a_timeout_holds_for_all_that_a_command_waits_for() {
    let user = User::new();
    let dir = user.dir("mnt");
    // Each step takes its time, and none takes too long.
    fn slow(request: &Request) -> (Vec<Event>, Then) {
        match request {
            Request::Status => mounted(request),
            Request::Sync { .. } => {
                std::thread::sleep(std::time::Duration::from_secs(3));
                (vec![Event::Done], Then::HangUp)
            }
            _ => (vec![], Then::Wait),
        }
    }
    let dir = text(&dir);
    let who = ["-m", "x", "--author", "A", "--email", "a@x", "--timeout"];
    let unknown = "nothing was lost, staging goes on in the background, and the commit may or may not have been made";
    for (command, timeout, says) in [
        (&["unmount", dir, "--commit"][..], "300ms", "nothing was committed; the rest is safe on this disk"),
        (&["unmount", dir, "--commit"], "5s", unknown),
        (&["commit", dir], "300ms", unknown),
    ] {
        let own = User::new();
        let state = own.state();
        // Each with a daemon that nothing else was asked before.
        let _daemon = Daemon::start(&state, Path::new(dir), slow);
        let begun = std::time::Instant::now();
        let said = user.run([command, &["--state-dir", text(&state)], &who, &[timeout]].concat());
        let took = begun.elapsed();
        assert_eq!((said.exit, said.out.as_str()), (3, ""), "{said:?}");
        assert!(said.err.contains(&format!("timed out; {says}")), "{said:?}");
        assert!(said.err.contains("\nhint: "), "{said:?}");
        // Each step alone would have had three seconds more.
        assert!(took < std::time::Duration::from_millis(7900), "{command:?} took {took:?}");
    }
    // One that does not even say how it is.
    let silent = user.dir("silent");
    let other = user.path("other/oxenfs");
    let _silent = Daemon::start(&other, &silent, |_| (vec![], Then::Wait));
    let begun = std::time::Instant::now();
    let said = user.run(["unmount", text(&silent), "--timeout", "1s", "--state-dir", text(&other)]);
    assert!(said.err.contains("the mount's daemon did not answer within 1 s\n"), "{said:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(3));
}

#[test]
fn ctrl_c_leaves_the_rest_queued_and_says_so() {
    let user = User::new();
    let dir = user.dir("mnt");
    let daemon = Daemon::start(&user.state(), &dir, draining);
    let mut child = user.command(["unmount", text(&dir)]).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(daemon.requests.recv().unwrap(), Request::Status);
    assert_eq!(daemon.requests.recv().unwrap(), Request::Unmount);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{err}");
    let start = format!("error: cannot unmount {}: interrupted", dir.display());
    assert!(err.starts_with(&start), "{err}");
    assert!(err.contains("the rest is safe on this disk, and staging goes on in the background"), "{err}");
}

#[test]
fn unmount_with_commit_drains_then_commits_what_is_there_then() {
    let user = User::new();
    let dir = user.dir("mnt");
    let script = |request: &Request| match request {
        Request::Commit { .. } => {
            let id = Some("abc123".to_owned());
            (vec![Event::Committed { id }], Then::HangUp)
        }
        Request::Sync { .. } | Request::Unmount => (vec![Event::Done], Then::HangUp),
        other => mounted(other),
    };
    let daemon = Daemon::start(&user.state(), &dir, script);
    let who = ["--author", "Ann", "--email", "ann@lab"];
    let said = user.run(["unmount", text(&dir), "--commit", "-m", "x"].into_iter().chain(who));
    assert_eq!((said.exit, said.out.as_str()), (0, "abc123\n"), "{}", said.err);
    assert_eq!(said.err, format!("unmounted {}; everything is on the server\n", dir.display()));
    let asked: Vec<Request> = daemon.requests.try_iter().collect();
    assert!(
        matches!(&asked[..], [Request::Status, Request::Sync { paths, before_commit: true }, Request::Commit { .. }, Request::Unmount] if paths.is_empty()),
        "{asked:?}"
    );
}

#[test]
fn what_the_daemon_refuses_is_shown_with_its_hint() {
    let user = User::new();
    let dir = user.dir("mnt");
    let script = |request: &Request| match request {
        Request::Unmount => {
            let failure = Failure {
                message: "2 files were refused by the server".into(),
                hint: Some("oxenfs status".into()),
                owed: true,
            };
            (vec![Event::Failed(failure)], Then::HangUp)
        }
        Request::Sync { .. } => (vec![], Then::HangUp),
        other => mounted(other),
    };
    let _daemon = Daemon::start(&user.state(), &dir, script);
    let dir = text(&dir);
    let refused = user.run(["unmount", dir]);
    assert_eq!(refused.exit, 3);
    assert_eq!(
        refused.err,
        format!("error: cannot unmount {dir}: 2 files were refused by the server\nhint: oxenfs status\n")
    );
    let gone = user.run(["sync", dir]);
    assert_eq!(gone.exit, 1);
    assert!(gone.err.starts_with(&format!("error: cannot sync {dir}: the mount's daemon ended before it answered\n")));
}

#[test]
fn where_no_daemon_runs_the_command_that_mends_it_can_be_pasted() {
    let user = User::new();
    let dir = user.dir("my mnt");
    stopped(&user.state(), &dir);
    let said = user.run(["sync", text(&dir)]);
    assert_eq!(said.exit, 1);
    assert_eq!(
        said.err,
        format!(
            "error: cannot sync '{0}': its daemon does not run; what was written is safe on this disk\n\
             hint: mount it again: oxenfs mount ox/cats '{0}' --server http://127.0.0.1:3000 --branch main --workspace w\n",
            dir.display()
        )
    );
}

#[test]
fn a_mount_whose_state_is_held_is_not_made_twice() {
    let user = User::new();
    let (first, second) = (user.dir("a"), user.dir("b"));
    let _daemon = Daemon::start(&user.state(), &first, mounted);
    let arguments = ["mount", "ox/cats", text(&second), "--server", "http://127.0.0.1:3000", "--workspace", "w"];
    let said = user.run(arguments);
    assert_eq!(said.exit, 1);
    let expected = format!(
        "error: cannot mount ox/cats: it is in use by process {}, mounted at {1}\nhint: oxenfs unmount {1}\n",
        std::process::id(),
        first.display()
    );
    assert!(said.err == expected || said.err.contains("/dev/fuse"), "{}", said.err);
}

#[test]
fn watching_prints_one_json_value_a_line() {
    let user = User::new();
    let dir = user.dir("mnt");
    let _daemon = Daemon::start(&user.state(), &dir, mounted);
    let mut child = user.command(["status", "--json", "--watch", text(&dir)]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.take(2) {
        let status: Status = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(status.pid, 77);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn completions_are_generated_for_every_common_shell() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish"] {
        let said = user.run(["completions", shell]);
        assert_eq!((said.exit, said.err.as_str()), (0, ""));
        assert!(said.out.contains("spool-limit"), "{shell}");
    }
}

/// A state directory as a daemon left it that was killed, with a flipped bit in the middle of its record.
fn damaged(user: &User) -> PathBuf {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                std::fs::write(to, std::fs::read(entry.path()).unwrap()).unwrap();
            }
        }
    }
    let state = user.state().join("ox-cats-golden");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-2"), &state);
    std::fs::set_permissions(user.state(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    state
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_record_is_told_with_its_place_and_repaired_on_request() {
    let user = User::new();
    let state = damaged(&user);
    let record = state.join("journal/journal.00000001");
    let whole = std::fs::read(&record).unwrap();
    // In the frame that gave `new` its name.
    let at = whole.windows(9).position(|part| part == br#""n":"new""#).unwrap();
    let frame = whole[..at].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    flip(&record, at);
    let hurt = std::fs::read(&record).unwrap();
    let place = format!("{} is damaged at byte {frame}: what is there is no frame that oxenfs wrote", text(&record));
    let hint = format!("oxenfs repair {} shows what can be salvaged", text(&state));

    let status = user.run(["status"]);
    assert!(status.out.contains(&place) && status.out.contains(&hint), "{status:#?}");
    assert!(status.out.contains("files here that it may lack: 3, 40027 bytes"), "{status:#?}");
    assert!(!status.out.contains("all is staged") && !status.out.contains("nothing to commit"), "{status:#?}");
    let diff = user.run(["diff", "/mnt/cats"]);
    assert_eq!(diff.exit, 1);
    assert!(diff.err.contains(&place) && diff.err.ends_with(&format!("hint: {hint}\n")), "{diff:#?}");
    let doctor = user.run(["doctor"]);
    assert!(doctor.out.contains(&place) && doctor.out.contains(&hint), "{doctor:#?}");
    for said in [&status, &diff, &doctor] {
        assert!(!format!("{said:?}").contains("df -h"), "{said:#?}");
    }

    let shown = user.run(["repair", text(&state)]);
    assert_eq!(shown.exit, 1, "{shown:#?}");
    assert!(shown.out.contains(&place), "{shown:#?}");
    assert!(
        shown.out.contains("come back under lost+found of the mount:\n  new.3.hard 11 B (was hard)\n"),
        "{shown:#?}"
    );
    assert!(shown.out.ends_with(&format!("to do it: oxenfs repair {} --yes\n", text(&state))), "{shown:#?}");
    assert!(std::fs::read(&record).unwrap() == hurt && !state.join("lost+found").exists(), "shown, and done");

    let done = user.run(["repair", text(&state), "--yes"]);
    assert_eq!(done.exit, 0, "{done:#?}");
    assert_eq!(std::fs::read(state.join("lost+found/new.3.hard")).unwrap(), b"new content");
    assert!(std::fs::read(state.join("journal/damaged/journal.00000001")).unwrap() == hurt);
    for again in [vec!["repair", text(&state)], vec!["repair", text(&state), "--yes"]] {
        let said = user.run(again);
        assert_eq!((said.exit, said.out.as_str()), (0, "nothing is damaged\n"));
    }
    let status = user.run(["status"]);
    assert!(status.out.contains("not mounted, no daemon runs") && status.out.contains("to send"), "{status:#?}");
}

#[test]
fn a_damaged_description_is_set_aside_by_a_repair() {
    let user = User::new();
    let state = damaged(&user);
    let meta = state.join("meta.json");
    flip(&meta, 30);
    let status = user.run(["status"]);
    assert!(status.err.contains("meta.json is damaged: "), "{status:#?}");
    let shown = user.run(["repair", text(&state)]);
    assert_eq!(shown.exit, 1, "{shown:#?}");
    assert!(shown.out.contains("would be set aside") && meta.exists(), "{shown:#?}");
    assert_eq!(user.run(["repair", text(&state), "--yes"]).exit, 0);
    assert!(!meta.exists() && state.join("meta.json.damaged").exists());
    assert_eq!(user.run(["repair", text(&state)]).out, "nothing is damaged\n");
}
