//! `oxenfs run`: a mount for as long as one command runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, wait_until};
use crate::scripted::Scripted;

/// Runs commands with mounts of one repository, in a home of their own.
struct Runs {
    server: Scripted,
    test: TestMount,
    home: PathBuf,
}

impl Runs {
    fn new() -> Self {
        let server = Scripted::new();
        let test = TestMount::with(&server.url(), &[]);
        test.unmount();
        let home = test.beside("home");
        Self { server, test, home }
    }

    fn command(&self, options: &[&str], shell: &str) -> Command {
        let mut command = Command::new(self.test.binary());
        command.args(["run", &self.test.repo, "--server", &self.server.url(), "--json"]).args(options);
        command.args(["--", "sh", "-ec", shell]).env("HOME", &self.home).env("XDG_STATE_HOME", self.home.join("state"));
        for name in ["OXEN_SERVER", "OXEN_API_KEY", "OXENFS_JOB_STATE", "SLURM_TMPDIR", "OXENFS_LOG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, options: &[&str], shell: &str) -> (Said, Value) {
        let said = Said::from(self.command(options, shell).output().unwrap());
        let last = said.out.lines().last().unwrap_or_default();
        let ended = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
        (said, ended)
    }

    /// The state directories that are left, and the links to them.
    fn left(&self) -> Vec<PathBuf> {
        let below = ["state/oxenfs-jobs", "state/oxenfs"].map(|dir| self.home.join(dir));
        let entries = |dir: &PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        below.iter().flat_map(entries).filter(|path| !path.ends_with("README")).collect()
    }

    fn send(&self, state: &Value) -> Said {
        let mut command = Command::new(self.test.binary());
        command.args(["--state-dir", state.as_str().unwrap(), "send"]).env("HOME", &self.home);
        Said::from(command.output().unwrap())
    }
}

const COMMIT: [&str; 7] = ["--commit", "-m", "by a job", "--author", "Ann", "--email", "ann@example.com"];

fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, text)| (path.to_string(), text.as_bytes().to_vec())).collect()
}

#[test]
fn what_a_command_wrote_is_committed_when_it_ends_well_and_nothing_is_left() {
    let runs = Runs::new();
    let (said, ended) =
        runs.run(&COMMIT, r#"cd "$OXENFS_DIR"; mkdir d; echo one >d/a; echo two >b; echo "$OXENFS_DIR""#);
    assert_eq!(said.exit, 0, "{said:#?}");
    assert_same(&runs.server.committed(&runs.test.repo), &tree(&[("d/a", "one\n"), ("b", "two\n")]));
    assert!(ended["commit"].as_str().is_some_and(|id| !id.is_empty()), "{ended}");
    assert_eq!((&ended["exit"], &ended["owed_files"], &ended["state"]), (&json!(0), &json!(0), &Value::Null));
    // The command saw what was mounted, and wrote its own words first.
    assert_eq!(said.out.lines().next(), ended["mountpoint"].as_str());
    assert!(!Path::new(ended["mountpoint"].as_str().unwrap()).exists());
    assert_eq!(runs.left(), [""; 0].map(PathBuf::from));
}

#[test]
fn its_mount_is_seen_by_the_command_alone() {
    let runs = Runs::new();
    let (dir, go_on) = (runs.test.beside("m"), runs.test.beside("flags").join("go on"));
    let shell = format!("echo here >$OXENFS_DIR/seen; until [ -e '{}' ]; do sleep 0.05; done", go_on.display());
    let mut child = runs.command(&[dir.to_str().unwrap()], &shell).stdout(Stdio::piped()).spawn().unwrap();
    // The command is that process's child, and its root is that of everybody.
    let seen_by =
        |pid: u32| PathBuf::from(format!("/proc/{pid}/root")).join(dir.strip_prefix("/").unwrap()).join("seen");
    let in_it = |child: &Child| fs::read_to_string(seen_by(child.id())).is_ok_and(|text| text == "here\n");
    wait_until("the command to write", || in_it(&child));
    assert!(!dir.join("seen").exists(), "seen from outside");
    fs::write(&go_on, "").unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
    assert!(child.wait().unwrap().success());
    let ended: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&ended["namespace"], &ended["staged_files"]), (&json!("mount"), &json!(1)));
}

#[test]
fn what_a_command_wrote_that_failed_is_kept_dropped_or_committed() {
    let runs = Runs::new();
    let with = |more: &[&'static str]| [&COMMIT[..], more].concat();
    let (said, ended) = runs.run(&with(&[]), "echo kept >$OXENFS_DIR/kept; exit 7");
    assert_eq!((said.exit, &ended["commit"], &ended["staged_files"]), (7, &Value::Null, &json!(1)), "{said:#?}");
    let kept = ended["workspace"].as_str().unwrap();
    let (status, _) = runs.server.ask("GET", &format!("/api/repos/{}/workspaces/{kept}", runs.test.repo), &Value::Null);
    assert_eq!(status, 200, "{kept}");

    let workspaces = || runs.server.ask("GET", &format!("/api/repos/{}/workspaces", runs.test.repo), &Value::Null).1;
    let before = workspaces();
    let (said, ended) = runs.run(&with(&["--on-fail", "discard"]), "echo dropped >$OXENFS_DIR/dropped; kill -9 $$");
    assert_eq!((said.exit, &ended["workspace"], &ended["state"]), (128 + 9, &Value::Null, &Value::Null), "{said:#?}");
    assert_eq!(workspaces(), before, "its own is gone");

    let (said, ended) = runs.run(&with(&["--on-fail", "commit"]), "echo all the same >$OXENFS_DIR/c; exit 3");
    assert_eq!((said.exit, &ended["command_exit"]), (3, &json!(3)));
    assert_same(&runs.server.committed(&runs.test.repo), &tree(&[("c", "all the same\n")]));
}

#[test]
fn each_end_has_an_exit_code_of_its_own() {
    let runs = Runs::new();
    let direct = |command: &str, repo: &str| {
        let mut run = Command::new(runs.test.binary());
        run.args(["run", repo, "--server", &runs.server.url(), "--", command]).env("HOME", &runs.home);
        Said::from(run.env("XDG_STATE_HOME", runs.home.join("state")).output().unwrap())
    };
    assert_eq!(direct("/no/such/command", &runs.test.repo).exit, 127);
    assert_eq!(direct("/dev/null", &runs.test.repo).exit, 126);
    let refused = direct("true", "ox/no-such-repository");
    assert_eq!(refused.exit, 125, "{refused:#?}");
    assert!(refused.err.contains("does not exist"), "{refused:#?}");

    // All of it is on the server, and the commit is refused.
    runs.server.arm("POST", "/merge/", None, json!({"status": {"code": 403}}));
    let (said, ended) = runs.run(&COMMIT, "echo x >$OXENFS_DIR/x");
    assert_eq!((said.exit, &ended["owed_files"], &ended["staged_files"]), (4, &json!(0), &json!(1)), "{said:#?}");
    runs.server.disarm();
}

#[test]
fn what_the_server_did_not_take_is_kept_and_sent_later() {
    let runs = Runs::new();
    runs.server.arm("POST", "/files", None, json!({"status": {"code": 403}}));
    let (said, ended) = runs.run(&["--timeout", "2s"], "echo owed >$OXENFS_DIR/owed");
    assert_eq!((said.exit, &ended["owed_files"]), (3, &json!(1)), "{said:#?}");
    assert!(said.err.contains(" send"), "{said:#?}");
    runs.server.disarm();
    assert_eq!(runs.send(&ended["state"]).exit, 0);
    let workspace = ended["workspace"].as_str().unwrap();
    let (_, staged) =
        runs.server.ask("GET", &format!("/api/repos/{}/workspaces/{workspace}/changes", runs.test.repo), &Value::Null);
    assert!(staged.contains("owed"), "{staged}");
}

#[test]
fn what_a_command_leaves_running_is_ended_and_what_it_wrote_is_there() {
    let runs = Runs::new();
    let shell =
        "(trap 'echo told >$OXENFS_DIR/told; exit' TERM; while :; do sleep 0.1; done) </dev/null >/dev/null 2>&1 &";
    let (said, _) = runs.run(&COMMIT, shell);
    assert_eq!(said.exit, 0, "{said:#?}");
    assert_same(&runs.server.committed(&runs.test.repo), &tree(&[("told", "told\n")]));
}

#[test]
fn killed_at_any_moment_it_leaves_no_mount_and_loses_nothing() {
    let runs = Runs::new();
    let acknowledged = runs.test.beside("flags").join("acknowledged");
    let mut random = fastrand::Rng::with_seed(23);
    let kills = std::env::var("OXENFS_TEST_KILLS").map_or(5, |many| many.parse().unwrap());
    for kill in 0..kills {
        fs::write(&acknowledged, "").unwrap();
        let state = runs.test.beside("states").join(kill.to_string());
        let shell = format!(
            "i=0; while :; do i=$((i+1)); echo {kill}-$i >$OXENFS_DIR/f$i; echo $i >>'{}'; done",
            acknowledged.display()
        );
        let mut command = runs.command(&["--workspace", &format!("job-{kill}")], &shell);
        let mut child = command.env("OXENFS_JOB_STATE", &state).stdout(Stdio::null()).spawn().unwrap();
        let written = || fs::read_to_string(&acknowledged).unwrap().lines().count();
        let enough = random.usize(1..400);
        wait_until("files to be written", || written() >= enough);
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        let daemons = || {
            let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
            let text = |path: PathBuf| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            all.filter_map(|path| text(path).ok()).filter(|line| line.contains(&*state.to_string_lossy())).count()
        };
        wait_until("the daemon to end", || daemons() == 0);
        assert!(!crate::mounted::kernel_mounts().contains(&*state.to_string_lossy()));
        assert_eq!(runs.send(&json!(state)).exit, 0);
        let (_, staged) = runs.server.ask(
            "GET",
            &format!("/api/repos/{}/workspaces/job-{kill}/changes?page_size=100000", runs.test.repo),
            &Value::Null,
        );
        let lines = fs::read_to_string(&acknowledged).unwrap();
        for number in lines.lines() {
            assert!(staged.contains(&format!("\"f{number}\"")), "f{number} of {kill} is lost: {staged}");
        }
    }
}

#[test]
fn another_user_than_root_has_a_namespace_too() {
    let server = Scripted::new();
    let test = TestMount::unprivileged(&server.url(), &[]);
    test.unmount();
    let arguments = ["run", &test.repo, "--server", &server.url(), "--json"];
    let shell = ["--", "sh", "-ec", "id -u >$OXENFS_DIR/id; grep CapEff /proc/self/status; id -u"];
    let said = test.bare(arguments.into_iter().chain(COMMIT).chain(shell)).ok();
    let ended: Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
    let user = server.committed(&test.repo)["id"].clone();
    assert_ne!(user, b"0\n", "as who it is");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[1].as_bytes(), user.trim_ascii_end(), "{said:#?}");
    if ended["namespace"] == "user" {
        assert_eq!(
            lines[0].trim_start_matches("CapEff:").trim(),
            "0000000000000000",
            "the command has no rights by it"
        );
    }
}
