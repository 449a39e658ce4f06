//! Several mounts of one repository: state directories of one user, and copies of them, stage apart.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::{Value, json};

use crate::logs::log_in;
use crate::mounted::{TestMount, run, shell, wait_until};
use crate::scripted::Scripted;
use crate::watched::lines;

/// A second mount of what `test` mounts, with state of its own.
struct Second<'a> {
    test: &'a TestMount,
    dir: std::path::PathBuf,
    state: std::path::PathBuf,
}

impl<'a> Second<'a> {
    fn new(test: &'a TestMount) -> Self {
        Self { test, dir: test.beside("second"), state: test.beside("second-state") }
    }

    fn mount(&self, options: &[&str]) {
        self.test.mount_with(&self.state, &self.dir, options).ok();
    }

    fn status(&self) -> Value {
        let said = self.test.oxenfs_with(&self.state, ["status", self.dir(), "--json"]).ok();
        serde_json::from_str(&said.out).unwrap()
    }

    fn dir(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    fn commit(&self) -> crate::mounted::Said {
        let commit = ["commit", self.dir(), "-m", "second", "--author", "B", "--email", "b@x"];
        self.test.oxenfs_with(&self.state, commit)
    }

    fn run(&self, command: &str) {
        self.test.oxenfs_with(&self.state, [command, self.dir()]).ok();
    }
}

/// A committed file, and a second mount that shows it.
fn with_second<'a>(test: &'a TestMount, name: &str, content: &str) -> Second<'a> {
    write(&test.dir, name, content);
    test.commit();
    let second = Second::new(test);
    second.mount(&[]);
    assert_eq!(fs::read(second.dir.join(name)).unwrap(), content.as_bytes());
    second
}

impl Second<'_> {
    fn oxenfs<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> crate::mounted::Said {
        self.test.oxenfs_with(&self.state, arguments)
    }

    /// A path on it, as text.
    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn conflicts(&self) -> Vec<String> {
        let status = self.status();
        let conflicts = status["conflicts"].as_array().unwrap();
        conflicts.iter().map(|one| one["path"].as_str().unwrap().to_owned()).collect()
    }
}

fn workspace(status: &Value) -> String {
    status["workspace"].as_str().unwrap().to_owned()
}

fn write(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join(name), content).unwrap();
}

#[test]
fn two_state_directories_of_one_user_stage_apart() {
    let test = TestMount::new();
    write(&test.dir, "shared", "old");
    test.commit();
    let second = Second::new(&test);
    second.mount(&[]);
    assert_ne!(workspace(&test.status()), workspace(&second.status()));
    for (dir, who) in [(&test.dir, "first"), (&second.dir, "second")] {
        write(dir, "shared", who);
        write(dir, who, who);
    }
    test.sync();
    second.run("sync");
    test.commit();
    assert_eq!(test.committed_file("shared").unwrap(), b"first");
    assert_eq!(test.committed_file("second"), None);
    // Nothing of the first is replaced, and nothing of the second is gone.
    let said = second.commit();
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("shared"), "{said:?}");
    assert_eq!(test.committed_file("shared").unwrap(), b"first");
    assert_eq!(fs::read(second.dir.join("shared")).unwrap(), b"second");
    assert_eq!(second.oxenfs(["unmount", second.dir(), "--detach"]).exit, 3);
    test.unmount();
    // Mounted again, each goes on in the workspace that it had.
    let before = workspace(&second.status());
    second.mount(&[]);
    assert_eq!(workspace(&second.status()), before);
    assert_eq!(fs::read(second.dir.join("shared")).unwrap(), b"second");
    second.oxenfs(["resolve", &second.path("shared"), "--theirs"]).ok();
    assert_eq!(fs::read(second.dir.join("shared")).unwrap(), b"first");
    second.commit().ok();
    assert_eq!(test.committed_file("second").unwrap(), b"second");
    second.run("unmount");
}

#[test]
fn a_copied_state_directory_stages_as_another() {
    let test = TestMount::new();
    write(&test.dir, "both", "staged before the copy");
    test.sync();
    let first = workspace(&test.status());
    test.unmount();
    let second = Second::new(&test);
    fs::remove_dir(&second.state).unwrap();
    run("cp", ["-a".as_ref(), test.state.as_os_str(), second.state.as_os_str()]);
    second.mount(&[]);
    assert_ne!(workspace(&second.status()), first);
    write(&second.dir, "copy", "of the copy");
    test.mount(&[]).ok();
    assert_eq!(workspace(&test.status()), first);
    write(&test.dir, "original", "of the original");
    test.commit();
    second.run("sync");
    let said = second.commit();
    assert_eq!(said.exit, 0, "{said:?}");
    let names: Vec<String> = test.committed().into_keys().collect();
    assert_eq!(names, ["both", "copy", "original"]);
    second.run("unmount");
    test.unmount();
}

#[test]
fn both_of_two_mounts_of_one_repository_are_found_without_their_state_directories() {
    let test = TestMount::new();
    let second = Second::new(&test);
    second.mount(&[]);
    // As who never says `--state-dir` sees them.
    let said = test.bare(["status", "--json"]).ok();
    let seen: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let places: Vec<&str> = seen.iter().filter_map(|status| status["mountpoint"].as_str()).collect();
    for dir in [test.dir.to_str().unwrap(), second.dir()] {
        assert!(places.contains(&dir), "{said:?}");
        test.bare(["sync", dir]).ok();
        test.bare(["unmount", dir]).ok();
    }
}

#[test]
fn a_workspace_that_others_may_use_is_not_made_anew_when_the_branch_goes_on() {
    let test = TestMount::new();
    write(&test.dir, "a", "1");
    test.commit();
    let second = Second::new(&test);
    second.mount(&["--workspace", "team"]);
    let stood = second.status()["base"].clone();
    second.run("unmount");
    write(&test.dir, "a", "2");
    test.commit();
    second.mount(&["--workspace", "team"]);
    assert_eq!(second.status()["base"], stood);
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"1");
    // Its commit takes along what the branch has.
    write(&second.dir, "b", "mine");
    let said = second.commit();
    assert_eq!(said.exit, 0, "{said:?}");
    assert_eq!(test.committed_file("a").unwrap(), b"2");
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"2");
    second.run("unmount");
    test.unmount();
}

#[test]
fn a_mount_follows_its_branch_when_it_is_told_to_and_programs_see_it() {
    use std::os::unix::fs::MetadataExt;

    let test = TestMount::new();
    let second = with_second(&test, "a", "one");
    let before = fs::metadata(second.dir.join("a")).unwrap();
    write(&test.dir, "a", "TWO");
    fs::create_dir(test.at("d")).unwrap();
    write(&test.dir, "d/new", "new");
    test.commit();
    // Not by itself: a name that was looked for is not there yet.
    assert!(!second.dir.join("d").exists());
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"one");
    let said = second.oxenfs(["refresh", second.dir(), "--json"]).ok();
    let refreshed: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&refreshed["moved"], &refreshed["conflicts"]), (&true.into(), &0.into()), "{said:?}");
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"TWO");
    assert_eq!(fs::read(second.dir.join("d/new")).unwrap(), b"new");
    let after = fs::metadata(second.dir.join("a")).unwrap();
    assert_ne!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    assert!((before.ctime(), before.ctime_nsec()) < (after.ctime(), after.ctime_nsec()));
    assert_eq!(second.status()["base"], test.status()["base"]);
    // A commit of nothing follows too, and what is staged is staged still.
    write(&test.dir, "a", "three");
    test.commit();
    second.commit().ok();
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"three");
    write(&second.dir, "own", "own");
    second.run("sync");
    write(&test.dir, "a", "four");
    test.commit();
    let said = second.oxenfs(["refresh", second.dir()]).ok();
    assert!(said.err.contains("stands on"), "{said:?}");
    second.run("sync");
    second.commit().ok();
    assert_eq!(test.committed_file("own").unwrap(), b"own");
    assert_eq!(test.committed_file("a").unwrap(), b"four");
    second.run("unmount");
    test.unmount();
}

#[test]
fn a_conflict_is_named_by_every_command_and_ends_by_a_decision_alone() {
    let test = TestMount::new();
    let second = with_second(&test, "keep", "old");
    write(&second.dir, "keep", "ours");
    // Owed when the daemon ends.
    let said = second.oxenfs(["unmount", second.dir(), "--detach"]);
    assert!([0, 3].contains(&said.exit), "{said:?}");
    write(&test.dir, "keep", "theirs");
    test.commit();
    for _ in 0..2 {
        second.mount(&[]);
        if said.exit == 0 {
            // All was staged by then: a commit finds it.
            assert_eq!(second.commit().exit, 1);
        }
        assert_eq!(second.conflicts(), ["keep"]);
        let committed = second.commit();
        assert_eq!(committed.exit, 1, "{committed:?}");
        assert!(committed.err.contains("keep was changed here and on the branch"), "{committed:?}");
        assert!(committed.err.contains("oxenfs resolve"), "{committed:?}");
        for command in [vec!["sync", second.dir()], vec!["sync", &second.path("keep")], vec!["unmount", second.dir()]] {
            let barrier = second.oxenfs(&command);
            assert_eq!(barrier.exit, 3, "{command:?}: {barrier:?}");
            assert!(barrier.err.contains("keep"), "{command:?}: {barrier:?}");
        }
        let shown = second.oxenfs(["status", second.dir()]).ok();
        assert!(shown.out.contains("keep was changed here and on the branch"), "{shown:?}");
        let shown = second.oxenfs(["diff", second.dir()]).ok();
        assert!(shown.out.contains("conflict"), "{shown:?}");
        let told = run("getfattr", ["-n", "user.oxenfs.error", "--only-values", &second.path("keep")]);
        assert!(told.contains("oxenfs resolve"), "{told}");
        for (version, content) in [("--ours", "ours"), ("--theirs", "theirs"), ("--base", "old")] {
            let shown = second.oxenfs(["show", &second.path("keep"), version]).ok();
            assert_eq!(shown.out, content, "{version}");
        }
        assert_eq!(test.committed_file("keep").unwrap(), b"theirs");
        assert_eq!(second.oxenfs(["unmount", second.dir(), "--detach"]).exit, 3);
        let stopped = second.oxenfs(["status", second.dir()]).ok();
        assert!(stopped.out.contains("keep was changed here and on the branch"), "{stopped:?}");
    }
    second.mount(&[]);
    let decided = second.oxenfs(["resolve", &second.path("keep"), "--ours", "--json"]).ok();
    let decided: Value = serde_json::from_str(&decided.out).unwrap();
    assert_eq!(decided[0]["path"], "keep");
    assert_eq!(second.oxenfs(["resolve", &second.path("keep"), "--ours"]).exit, 1, "nothing is in conflict any more");
    second.commit().ok();
    assert_eq!(test.committed_file("keep").unwrap(), b"ours");
    second.run("unmount");
    test.unmount();
}

#[test]
fn a_commit_with_a_policy_decides_all_conflicts() {
    let test = TestMount::new();
    let second = with_second(&test, "file.txt", "old");
    write(&second.dir, "gone", "old");
    second.commit().ok();
    test.oxenfs(["refresh", test.dir.to_str().unwrap()]).ok();
    for (policy, expected) in [("ours", "ours"), ("theirs", "theirs"), ("keep-both", "theirs")] {
        write(&test.dir, "file.txt", "theirs");
        write(&test.dir, policy, policy);
        write(&second.dir, "file.txt", "ours");
        write(&second.dir, "second", policy);
        second.run("sync");
        test.commit();
        let commit = ["commit", second.dir(), "-m", "x", "--author", "B", "--email", "b@x", "--on-conflict"];
        let refused = second.oxenfs(commit.iter().chain(&["fail"]));
        assert_eq!(refused.exit, 1, "{refused:?}");
        second.oxenfs(commit.iter().chain(&[policy])).ok();
        assert_eq!(test.committed_file("file.txt").unwrap(), expected.as_bytes(), "{policy}");
        assert_eq!(test.committed_file("second").unwrap(), policy.as_bytes());
        assert_eq!(test.committed_file(policy).unwrap(), policy.as_bytes());
        let beside: Vec<String> = test.committed().into_keys().filter(|path| path.contains("(oxenfs ")).collect();
        assert_eq!(beside.len(), usize::from(policy == "keep-both"), "{beside:?}");
        assert!(second.conflicts().is_empty());
        test.oxenfs(["refresh", test.dir.to_str().unwrap()]).ok();
        assert_eq!(fs::read(test.at("file.txt")).unwrap(), expected.as_bytes());
        // Both begin the next round with the same.
        write(&test.dir, "file.txt", &format!("after {policy}"));
        test.commit();
        second.oxenfs(["refresh", second.dir()]).ok();
    }
    second.run("unmount");
    test.unmount();
}

#[test]
fn what_is_removed_here_and_there_leaves_no_empty_directory() {
    let files = ["keep", "same/a/b", "halves/a", "halves/b", "more/a", "more/b"];
    let files = files.map(|path| (path.to_owned(), path.as_bytes().to_vec()));
    let test = TestMount::committed_by(crate::server::url(), files.iter().map(|(path, bytes)| (path, bytes)));
    test.mount(&[]).ok();
    let second = Second::new(&test);
    second.mount(&[]);
    shell(&second.dir, "rm same/a/b halves/a more/a");
    second.run("sync");
    shell(&test.dir, "rm -r same halves/b; echo changed > more/b");
    test.commit();
    second.commit().ok();
    assert_eq!(test.committed().into_keys().collect::<Vec<_>>(), ["keep", "more/b"]);
    assert_eq!(test.committed_file("more/b").unwrap(), b"changed\n");
    second.run("unmount");
    test.unmount();
}

#[test]
fn what_others_turned_from_a_file_into_a_directory_is_never_lost_in_a_commit() {
    let test = TestMount::new();
    fs::create_dir(test.at("d")).unwrap();
    write(&test.dir, "d/x", "x");
    let second = with_second(&test, "f", "file");
    assert_eq!(fs::read(second.dir.join("d/x")).unwrap(), b"x");
    fs::remove_file(test.at("f")).unwrap();
    fs::create_dir(test.at("f")).unwrap();
    write(&test.dir, "f/below", "below");
    fs::remove_file(test.at("d/x")).unwrap();
    fs::remove_dir(test.at("d")).unwrap();
    write(&test.dir, "d", "file now");
    test.commit();
    let mut appended = fs::OpenOptions::new().append(true).open(second.dir.join("f")).unwrap();
    std::io::Write::write_all(&mut appended, b" and more").unwrap();
    drop(appended);
    let said = second.commit();
    assert_eq!(said.exit, 1, "{said:?}");
    assert_eq!(second.conflicts(), ["f"]);
    assert_eq!(fs::read(second.dir.join("f")).unwrap(), b"file and more");
    assert_eq!(fs::read(second.dir.join("d")).unwrap(), b"file now");
    assert_eq!(test.committed_file("f/below").unwrap(), b"below");
    second.oxenfs(["resolve", second.dir(), "--keep-both"]).ok();
    second.commit().ok();
    let committed = test.committed();
    assert_eq!(committed["f/below"], b"below");
    assert_eq!(committed["d"], b"file now");
    assert!(committed.iter().any(|(path, content)| path.starts_with("f (oxenfs ") && content == b"file and more"));
    assert_eq!(fs::read(second.dir.join("f/below")).unwrap(), b"below");
    second.run("unmount");
    test.unmount();
}

/// Two mounts of one workspace that is shared on purpose.
fn shared(options: [&[&str]; 2]) -> (TestMount, std::path::PathBuf, std::path::PathBuf) {
    let test = TestMount::new();
    write(&test.dir, "shared", "old");
    for dir in ["a", "b"] {
        fs::create_dir(test.dir.join(dir)).unwrap();
        write(&test.dir, &format!("{dir}/base"), dir);
    }
    test.commit();
    test.unmount();
    test.forget();
    let team = ["--workspace", "team"];
    test.mount(&[&team[..], options[0]].concat()).ok();
    let (dir, state) = (test.beside("second"), test.beside("second-state"));
    test.mount_with(&state, &dir, &[&team[..], options[1]].concat()).ok();
    (test, dir, state)
}

#[test]
fn a_commit_of_a_shared_workspace_says_what_it_takes_along_and_the_other_mount_knows_what_is_committed() {
    let (test, dir, state) = shared([&[], &[]]);
    let second = Second { test: &test, dir, state };
    for number in 0..3 {
        write(&test.dir, &format!("first-{number}"), "first");
        write(&second.dir, &format!("second-{number}"), "second");
    }
    test.sync();
    second.run("sync");
    let diff = ["diff", test.dir.to_str().unwrap()];
    let takes = |whose: &str| format!("takes along 3 files that others staged: {whose}-0, {whose}-1, {whose}-2");
    let said = test.oxenfs(diff).ok();
    assert!(said.err.contains(&format!("3 added; {}", takes("second"))), "{said:?}");
    let said = test.oxenfs([&diff[..], &["--json"]].concat()).ok();
    let found: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let others = found.iter().filter(|one| one["others"] == true).count();
    assert_eq!((found.len(), others), (6, 3), "{said:?}");
    let commit = ["commit", second.dir(), "-m", "second", "--author", "B", "--email", "b@x", "--json"];
    let said = test.oxenfs_with(&second.state, commit).ok();
    assert!(said.err.contains(&takes("first")), "{said:?}");
    let told: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(told["others"]["files"], 3);
    // The first finds out by itself, and goes on without being mounted again.
    test.wait_status("what was committed to be known", |status| status["counts"]["staged"]["files"] == 0);
    assert_eq!(fs::read(test.dir.join("second-1")).unwrap(), b"second");
    write(&test.dir, "later", "x");
    test.commit();
    assert_eq!(test.committed().len(), 3 + 6 + 1);
    // One that has not looked yet commits as well.
    write(&second.dir, "last", "y");
    assert_eq!(second.commit().ok().exit, 0);
    assert_eq!(test.committed().len(), 3 + 6 + 2);
    second.run("unmount");
    test.unmount();
}

#[test]
fn what_somebody_else_committed_over_ours_in_a_shared_workspace_waits_for_a_person() {
    let (test, dir, state) = shared([&[], &[]]);
    let second = Second { test: &test, dir, state };
    write(&test.dir, "shared", "first");
    test.sync();
    write(&second.dir, "shared", "second");
    second.run("sync");
    second.commit().ok();
    assert_eq!(test.committed_file("shared").unwrap(), b"second");
    write(&test.dir, "beside", "x");
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["commit", dir, "-m", "first", "--author", "A", "--email", "a@x"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("shared") && said.err.contains("oxenfs resolve"), "{said:?}");
    assert_eq!(test.committed_file("shared").unwrap(), b"second");
    assert_eq!(fs::read(test.dir.join("shared")).unwrap(), b"first");
    // Decided, it is staged over that.
    test.oxenfs(["resolve", "--ours", test.dir.join("shared").to_str().unwrap()]).ok();
    test.commit();
    assert_eq!(test.committed_file("shared").unwrap(), b"first");
    second.run("unmount");
    test.unmount();
}

#[test]
fn two_subdirectories_in_one_workspace_are_committed_by_either() {
    let (test, dir, state) = shared([&["--subdir", "a"], &["--subdir", "b"]]);
    let second = Second { test: &test, dir, state };
    for (dir, who) in [(&test.dir, "first"), (&second.dir, "second")] {
        write(dir, "new", who);
    }
    test.sync();
    second.run("sync");
    test.commit();
    assert_eq!(test.committed_file("b/new").unwrap(), b"second");
    write(&second.dir, "more", "x");
    second.commit().ok();
    assert_eq!(test.committed_file("a/new").unwrap(), b"first");
    assert_eq!(test.committed_file("b/more").unwrap(), b"x");
    write(&test.dir, "more", "y");
    test.commit();
    assert_eq!(test.committed_file("a/more").unwrap(), b"y");
    second.run("unmount");
    test.unmount();
}

/// What happens in a mount, as `oxenfs events` prints it.
struct Events {
    child: Child,
    lines: Receiver<Value>,
}

impl Events {
    /// From here on all is told.
    fn of(second: &Second<'_>) -> Self {
        let mut command = Command::new(second.test.binary());
        command.args(["events", second.dir(), "--state-dir"]).arg(&second.state);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        let events = Self { child, lines };
        events.wait("following", |_| true);
        events
    }

    #[track_caller]
    fn wait(&self, event: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let seen = self.lines.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("no {event}"));
            if seen["event"] == event && is_it(&seen) {
                return seen;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often it was looked where the branch is.
fn looks(server: &Scripted) -> usize {
    server.log().iter().filter(|(method, path, _)| method == "GET" && path.contains("/branches/")).count()
}

fn wait_looks(server: &Scripted, more: usize) {
    let before = looks(server);
    wait_until("looks where the branch is", || looks(server) >= before + more);
}

/// A mount of a server of its own that commits, and looks at nothing by itself.
fn committer(server: &Scripted) -> TestMount {
    let test = TestMount::with(&server.url(), &["--refresh", "0"]);
    write(&test.dir, "a", "0");
    test.commit();
    test
}

#[test]
fn an_idle_mount_says_how_far_its_branch_has_gone_on_and_stays() {
    let server = Scripted::new();
    let test = committer(&server);
    let second = Second::new(&test);
    second.mount(&["--refresh", "look:0.1"]);
    let events = Events::of(&second);
    assert_eq!(second.status()["ahead"], Value::Null);
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"0");
    for number in 1..=3 {
        write(&test.dir, "a", &number.to_string());
        test.commit();
        let told = events.wait("branch-ahead", |_| true);
        assert_eq!(told["commits"], number, "{told}");
    }
    let base = test.status()["base"].as_str().unwrap().to_owned();
    // A second look at the same is told to nobody.
    wait_looks(&server, 2);
    let shown = second.oxenfs(["status", second.dir()]).ok();
    let expected = format!("the branch is 3 commits ahead: oxenfs refresh {} takes them in", second.dir());
    assert!(shown.out.contains(&expected), "{shown:?}");
    assert_eq!(second.status()["ahead"], json!({"head": base, "commits": 3}));
    let log = log_in(&second.state);
    let line = |line: &&str| line.contains(&base) && line.contains("the branch is 3 commits ahead");
    assert_eq!(log.lines().filter(line).count(), 1, "{log}");
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"0");
    // Who does not look does not know, nor ever moves.
    write(&second.dir, "b", "1");
    second.oxenfs(["refresh", second.dir()]).ok();
    assert_eq!(second.status()["ahead"], Value::Null);
    assert_eq!(events.wait("refreshed", |_| true)["base"], *base);
    second.commit().ok();
    wait_looks(&server, 3);
    assert_eq!((&second.status()["ahead"], &test.status()["ahead"]), (&Value::Null, &Value::Null));
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"3");
    assert!(!log_in(&test.state).contains("the branch is"));
    second.run("unmount");
    test.unmount();
}

#[test]
fn a_branch_that_is_not_above_the_mount_has_gone_on_by_nobody_knows_how_much() {
    let server = Scripted::new();
    let test = committer(&server);
    let repo = format!("/api/repos/{}", test.repo);
    let ask = |path: String| serde_json::from_str::<Value>(&server.ask("GET", &path, &Value::Null).1).unwrap();
    let head = ask(format!("{repo}/branches/main"))["branch"]["commit_id"].clone();
    let first = ask(format!("{repo}/commits/{}", head.as_str().unwrap()))["commit"]["parent_ids"][0].clone();
    let make = |commit: &Value| {
        let dev = json!({"new_name": "dev", "commit_id": commit});
        assert_eq!(server.ask("POST", &format!("{repo}/branches"), &dev).0, 200);
    };
    make(&head);
    let second = Second::new(&test);
    second.mount(&["--branch", "dev", "--refresh", "look:0.1"]);
    let events = Events::of(&second);
    assert_eq!(server.ask("DELETE", &format!("{repo}/branches/dev"), &Value::Null).0, 200);
    make(&first);
    // That it was set back is no news of anybody's work.
    wait_looks(&server, 3);
    assert_eq!(second.status()["ahead"], Value::Null);
    let third = Second { dir: test.beside("third"), state: test.beside("third-state"), ..Second::new(&test) };
    third.mount(&["--branch", "dev", "--refresh", "0"]);
    write(&third.dir, "a", "another");
    third.commit().ok();
    let head = third.status()["base"].clone();
    let told = events.wait("branch-ahead", |_| true);
    assert_eq!((&told["commits"], &told["head"]), (&Value::Null, &head), "{told}");
    let shown = second.oxenfs(["status", second.dir()]).ok();
    assert!(shown.out.contains(&format!("the branch has gone on, to {}", head.as_str().unwrap())), "{shown:?}");
    third.run("unmount");
    second.run("unmount");
    test.unmount();
}

#[test]
fn a_mount_that_moves_by_itself_waits_until_no_file_is_open() {
    let server = Scripted::new();
    let test = committer(&server);
    let second = Second::new(&test);
    second.mount(&["--refresh", "0.1"]);
    let events = Events::of(&second);
    let base = second.status()["base"].clone();
    let mut open = fs::File::open(second.dir.join("a")).unwrap();
    write(&test.dir, "a", "1");
    write(&test.dir, "new", "1");
    test.commit();
    events.wait("branch-ahead", |_| true);
    wait_looks(&server, 4);
    assert_eq!(second.status()["base"], base);
    assert_eq!(second.status()["ahead"]["commits"], 1);
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), second.dir.join("new").exists()), ("0", false));
    drop(open);
    let refreshed = events.wait("refreshed", |_| true);
    assert_eq!((&refreshed["base"], &refreshed["conflicts"]), (&test.status()["base"], &json!(0)), "{refreshed}");
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"1");
    assert_eq!(fs::read(second.dir.join("new")).unwrap(), b"1");
    // What both sides changed is on record, and nothing of it is lost.
    write(&second.dir, "a", "ours");
    write(&second.dir, "b", "ours");
    second.run("sync");
    write(&test.dir, "a", "theirs");
    test.commit();
    events.wait("conflict", |told| told["path"] == "a");
    assert_eq!(second.conflicts(), ["a"]);
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"ours");
    second.oxenfs(["resolve", second.dir(), "--ours"]).ok();
    second.commit().ok();
    let committed = server.committed(&test.repo);
    assert_eq!((&committed["a"][..], &committed["b"][..]), (&b"ours"[..], &b"ours"[..]));
    second.run("unmount");
    test.unmount();
}

#[test]
fn a_workspace_that_others_may_use_does_not_move_by_itself() {
    let server = Scripted::new();
    let test = committer(&server);
    let second = Second::new(&test);
    second.mount(&["--workspace", "team", "--refresh", "0.1"]);
    let events = Events::of(&second);
    let base = second.status()["base"].clone();
    write(&test.dir, "a", "1");
    test.commit();
    events.wait("branch-ahead", |told| told["commits"] == 1);
    wait_looks(&server, 4);
    assert_eq!(second.status()["base"], base);
    let shown = second.oxenfs(["status", second.dir()]).ok();
    assert!(shown.out.contains(&format!("1 commit ahead: the next oxenfs commit {}", second.dir())), "{shown:?}");
    write(&second.dir, "b", "1");
    second.commit().ok();
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"1");
    second.run("unmount");
    test.unmount();
}
