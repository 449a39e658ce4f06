//! Several mounts of one branch, as many daemons, beside somebody who uses the bare API: random work of them all, in which
//! nobody loses anything. In workspaces of their own, and two of them in one that they share; one is a copy of another's
//! state directory, as of a machine that was cloned.
//!
//! `OXENFS_TEAM` is how many operations, `OXENFS_TEST_SEED` where the seeds begin, `OXENFS_TEAM_DIALECT` which server
//! (`scripts/together` has them all): without it that of all tests, of which nothing is lost on the way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::http;
use crate::matrix::paths_in;
use crate::mounted::{Said, TestMount, is_mounted, run, wait_until};
use crate::scripted::Scripted;
use crate::server;

/// Files, and what is in them.
type Files = BTreeMap<String, String>;

const PATHS: [&str; 9] = ["a", "b", "d", "d/a", "d/b", "d/s", "d/s/a", "e/a", "e"];
/// How many operations a team does before all is committed.
const STEPS: u64 = 40;
/// After how many of them everybody is looked at, not only who acted.
const ROUND: u64 = 10;
/// How much of a daemon's log is shown with a failure.
const LOG_LINES: usize = 60;
/// How often a commit is repeated that others got ahead of, or that the way to the server broke.
const TRIES: usize = 6;

/// One of them.
struct Member {
    name: String,
    dir: PathBuf,
    state: PathBuf,
    /// The workspace that it shares with another, and what it keeps to there.
    shared: Option<(&'static str, &'static str)>,
    /// What it wrote and did not remove or replace itself, by content; each is unique.
    alive: BTreeSet<String>,
    view: Files,
}

impl Member {
    fn new(test: &TestMount, name: &str, shared: Option<(&'static str, &'static str)>) -> Self {
        let (dir, state) = (test.beside(name), test.beside(&format!("{name}-state")));
        let (alive, view) = (BTreeSet::new(), Files::new());
        Self { name: name.to_owned(), dir, state, shared, alive, view }
    }

    fn dir(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    fn mount(&self, test: &TestMount) {
        let mut options = vec!["--settle", "0.05"];
        if let Some((workspace, _)) = self.shared {
            options.extend(["--workspace", workspace]);
        }
        test.mount_with(&self.state, &self.dir, &options).ok();
    }

    fn oxenfs(&self, test: &TestMount, arguments: &[&str]) -> Said {
        test.oxenfs_with(&self.state, arguments)
    }

    fn status(&self, test: &TestMount) -> Value {
        serde_json::from_str(&self.oxenfs(test, &["status", self.dir(), "--json"]).ok().out).unwrap()
    }

    fn conflicts(&self, test: &TestMount) -> Vec<String> {
        let status = self.status(test);
        let conflicts = status["conflicts"].as_array().unwrap().iter();
        conflicts.map(|one| one["path"].as_str().unwrap().to_owned()).collect()
    }

    /// As a person does it who is in a hurry: what is owed stays here.
    fn unmount(&self, test: &TestMount) {
        let said = self.oxenfs(test, &["unmount", self.dir()]);
        match said.exit {
            0 => assert!(!is_mounted(&self.dir)),
            // Something waits for a decision.
            3 if is_mounted(&self.dir) => _ = self.oxenfs(test, &["unmount", self.dir(), "--detach"]),
            3 => {}
            _ => panic!("{said:?}"),
        }
    }

    /// Ends the daemon without a word.
    fn kill(&self, test: &TestMount) {
        let pid = i32::try_from(self.status(test)["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        wait_until("the daemon to be gone", || !Path::new(&format!("/proc/{pid}/exe")).exists());
        run("fusermount3", ["-u", "-z", "-q", self.dir()]);
    }

    fn look(&mut self) {
        self.view = files_in(&self.dir);
    }

    /// What it itself removed or replaced is nobody's loss.
    fn acted(&mut self) {
        let before = std::mem::take(&mut self.view);
        self.look();
        let shown: BTreeSet<&String> = self.view.values().collect();
        before.values().filter(|text| !shown.contains(text)).for_each(|text| {
            self.alive.remove(text);
        });
    }
}

fn files_in(root: &Path) -> Files {
    let read = || {
        let text = |path: String| fs::read_to_string(root.join(&path)).map(|text| (path, text));
        paths_in(root).into_iter().map(text).collect::<Result<Files, _>>()
    };
    // What others took back in a workspace that is shared is listed until it is looked at the next time.
    let found = RefCell::new(read());
    let is_amid = || found.borrow().as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    wait_until("what others took back to go", || {
        if is_amid() {
            *found.borrow_mut() = read();
        }
        !is_amid()
    });
    found.into_inner().unwrap()
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// Where the repository is.
enum Place {
    /// One that loses requests and answers when it is told to.
    Scripted(Scripted),
    /// That of all tests.
    Common,
}

struct Team {
    members: Vec<Member>,
    test: TestMount,
    place: Place,
    dialect: String,
    rng: fastrand::Rng,
    /// All content that the branch ever had.
    history: BTreeSet<String>,
    /// What commits hold.
    trees: BTreeMap<String, Files>,
    /// Directories that a commit of a shared workspace left empty, with a slash at the end.
    left_empty: BTreeSet<String>,
    written: u32,
    done: Vec<String>,
}

/// What was done until something failed.
impl Drop for Team {
    #[expect(clippy::print_stderr, reason = "the test harness shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}", self.done);
            if let Place::Scripted(server) = &self.place {
                let log = server.log();
                eprintln!("{:#?}", log.iter().rev().take(LOG_LINES).rev().collect::<Vec<_>>());
            }
        }
        for member in &self.members {
            if std::thread::panicking() && is_mounted(&member.dir) {
                eprintln!("{}: {}", member.name, self.test.oxenfs_with(&member.state, ["status", member.dir()]).out);
                let log = crate::logs::log_in(&member.state);
                let last: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
                eprintln!("{:#?}", last.into_iter().rev().collect::<Vec<_>>());
            }
        }
    }
}

impl Team {
    fn new(seed: u64, dialect: Option<&'static str>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let place = dialect.map_or(Place::Common, |dialect| Place::Scripted(Scripted::speaking(dialect)));
        let url = match &place {
            Place::Scripted(server) => server.url(),
            Place::Common => server::url().to_owned(),
        };
        let test = TestMount::through(&url);
        for (path, text) in [("a", "base a"), ("d/a", "base d/a"), ("d/s/a", "base d/s/a"), ("e/a", "base e/a")] {
            fs::create_dir_all(test.at(path).parent().unwrap()).unwrap();
            fs::write(test.at(path), text).unwrap();
        }
        test.unmount_commit();
        let mut members = vec![Member::new(&test, "own", None)];
        match rng.u8(..3) {
            0 => members.push(Member::new(&test, "another", None)),
            1 => members.extend(
                [("shared-d", "d"), ("shared-e", "e")]
                    .map(|(name, place)| Member::new(&test, name, Some(("of-two", place)))),
            ),
            _ => {
                members.push(Member::new(&test, "another", None));
                members.push(Member::new(&test, "third", None));
            }
        }
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let done = vec![format!("seed {seed}, {}: {}", dialect.unwrap_or("the server of all tests"), names.join(", "))];
        let dialect = dialect.unwrap_or("0.65").to_owned();
        let (history, trees, left_empty) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let mut team = Self { members, test, place, dialect, rng, history, trees, left_empty, written: 0, done };
        team.remember();
        for member in &mut team.members {
            member.mount(&team.test);
            member.look();
        }
        team
    }

    fn url(&self) -> &str {
        &self.test.server
    }

    fn below(&self, path: &str) -> String {
        format!("/api/repos/{}/{path}", self.test.repo)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = http::ask(self.url(), method, &self.below(path), body).unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    fn head_commit(&self) -> String {
        self.ask("GET", "branches/main", &Value::Null)["branch"]["commit_id"].as_str().unwrap().to_owned()
    }

    /// What a commit holds. No directory of it is empty, but for those that a shared workspace left so.
    fn tree_of(&mut self, commit: &str) -> Files {
        if let Some(files) = self.trees.get(commit) {
            return files.clone();
        }
        let tree = http::tree_of(self.url(), &self.test.repo, commit);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let mut files: Files = tree.into_iter().map(|(path, bytes)| (path, text(bytes))).collect();
        files.retain(|path, _| !self.left_empty.contains(path));
        assert!(files.keys().all(|path| !path.ends_with('/')), "an empty directory in {commit}: {files:?}");
        self.trees.insert(commit.to_owned(), files.clone());
        files
    }

    /// The branch's head is a commit of a shared workspace that the branch had left behind: no client puts the two together
    /// first, and of a directory that each side emptied in part the server keeps the empty rest.
    fn allow_empty_dirs_of_head(&mut self) {
        let tree = http::tree_of(self.url(), &self.test.repo, &self.head_commit());
        self.left_empty.extend(tree.into_keys().filter(|path| path.ends_with('/')));
    }

    fn head(&mut self) -> Files {
        let commit = self.head_commit();
        self.tree_of(&commit)
    }

    fn remember(&mut self) {
        let head = self.head();
        self.history.extend(head.into_values());
    }

    fn path(&mut self, at: usize) -> &'static str {
        let place = self.members[at].shared.map(|(_, place)| place);
        let is_its = |path: &&&str| place.is_none_or(|place| path.starts_with(place));
        let paths: Vec<&str> = PATHS.iter().filter(is_its).copied().collect();
        paths[self.rng.usize(..paths.len())]
    }

    fn text(&mut self, who: &str) -> String {
        self.written += 1;
        // As long as others, now and then: servers tell content from the base's by its length first.
        let filler = "x".repeat(self.rng.usize(..3));
        format!("{} of {who}{filler}", self.written)
    }

    fn note(&mut self, at: usize, what: &str) {
        let line = format!("{}: {what}", self.members[at].name);
        self.done.push(line);
    }

    fn step(&mut self, number: u64) {
        let at = self.rng.usize(..self.members.len());
        match self.rng.u8(..34) {
            0..=8 => self.write(at),
            9 | 10 => {
                let path = self.path(at);
                self.note(at, &format!("remove {path}"));
                let member = &mut self.members[at];
                member.look();
                let place = member.dir.join(path);
                let _ = if place.is_dir() { fs::remove_dir_all(place) } else { fs::remove_file(place) };
                member.acted();
            }
            11..=13 => {
                let (from, to) = (self.path(at), self.path(at));
                self.note(at, &format!("rename {from} {to}"));
                let member = &mut self.members[at];
                member.look();
                let to = member.dir.join(to);
                let _ = to.parent().map(fs::create_dir_all);
                let _ = fs::rename(member.dir.join(from), to);
                member.acted();
            }
            14..=17 => self.another_commits(),
            18..=21 => _ = self.commit(at),
            22 | 23 => {
                self.note(at, "refresh");
                let member = &self.members[at];
                let said = member.oxenfs(&self.test, &["refresh", member.dir()]);
                assert!([0, 1, 3].contains(&said.exit), "{said:?}");
            }
            24 => {
                self.note(at, "sync");
                let member = &self.members[at];
                let said = member.oxenfs(&self.test, &["sync", member.dir()]);
                assert!(said.exit == 0 || said.exit == 3 && !member.conflicts(&self.test).is_empty(), "{said:?}");
            }
            25 | 26 => {
                self.note(at, "killed and mounted again");
                self.members[at].kill(&self.test);
                self.members[at].mount(&self.test);
            }
            27 => {
                self.note(at, "unmounted and mounted again");
                let member = &self.members[at];
                member.unmount(&self.test);
                member.mount(&self.test);
            }
            28 => self.lose_answers(at),
            // Of a workspace that is shared, that would be the end of what the other has staged.
            29 if self.members[at].shared.is_none() => {
                self.note(at, "its workspace is deleted");
                let workspace = self.members[at].status(&self.test)["workspace"].as_str().unwrap().to_owned();
                let _ = http::ask(self.url(), "DELETE", &self.below(&format!("workspaces/{workspace}")), &Value::Null);
            }
            30 if self.members.len() < 4 && self.members[at].shared.is_none() => self.clone_one(at),
            _ => self.decide_one(at),
        }
        self.remember();
        match number % ROUND {
            0 => (0..self.members.len()).for_each(|member| self.check(member)),
            _ => self.check(at),
        }
    }

    fn write(&mut self, at: usize) {
        let name = self.members[at].name.clone();
        let (path, text) = (self.path(at), self.text(&name));
        self.note(at, &format!("write {path} {text}"));
        let member = &mut self.members[at];
        member.look();
        let place = member.dir.join(path);
        let _ = place.parent().map(fs::create_dir_all);
        if fs::write(place, &text).is_ok() {
            member.alive.insert(text);
        }
        member.acted();
    }

    /// Somebody who has no mount commits a file, or the end of one.
    fn another_commits(&mut self) {
        let (path, text) = (PATHS[self.rng.usize(..PATHS.len())], self.text("the API"));
        let text = (self.rng.u8(..3) > 0).then_some(text);
        self.done.push(format!("the API: {path} {text:?}"));
        let head = self.head();
        // A server takes no commit in which a file and a directory change places.
        let gone: Vec<&String> = match &text {
            Some(_) => head.keys().filter(|other| is_below(other, path) || is_below(path, other)).collect(),
            None => head.keys().filter(|other| *other == path || is_below(other, path)).collect(),
        };
        // A server keeps a directory whose files are removed, empty, unless it is removed itself.
        let stays = |dir: &str| head.keys().any(|other| is_below(other, dir) && !gone.contains(&other));
        let topmost = |path: &'_ String| {
            let above = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
            above.into_iter().find(|dir| !stays(dir)).unwrap_or_else(|| path.clone())
        };
        let gone: BTreeSet<String> = gone.iter().map(|path| topmost(path)).collect();
        if !gone.is_empty() {
            self.by_api(|team, workspace| {
                _ = team.ask("DELETE", &format!("workspaces/{workspace}/files"), &json!(gone))
            });
        }
        if let Some(text) = &text {
            self.by_api(|team, workspace| {
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                let files = team.below(&format!("workspaces/{workspace}/files"));
                let (status, answer) = http::add_file(team.url(), &files, dir, name, text).unwrap();
                assert!((200..300).contains(&status), "{path}: {status} {}", String::from_utf8_lossy(&answer));
            });
            assert_eq!(self.head().get(path), Some(text));
        }
    }

    /// A commit of what `stage` does to a workspace.
    fn by_api(&mut self, stage: impl Fn(&Self, &str)) {
        let new = json!({"workspace_id": "by-api", "name": "by-api", "branch_name": "main"});
        let at = if self.dialect == "documented" { "workspaces/get_or_create" } else { "workspaces" };
        let workspace = self.ask("PUT", at, &new)["workspace"]["id"].as_str().unwrap().to_owned();
        stage(self, &workspace);
        let commit = json!({"author": "API", "email": "api@x", "message": "by the API"});
        self.ask("POST", &format!("workspaces/{workspace}/merge/main"), &commit);
        let _ = http::ask(self.url(), "DELETE", &self.below(&format!("workspaces/{workspace}")), &Value::Null);
        self.remember();
    }

    /// Some requests have no effect, or have theirs, and are not answered.
    fn lose_answers(&mut self, at: usize) {
        let Place::Scripted(server) = &self.place else { return };
        let name = self.members[at].name.clone();
        let mut lost = Vec::new();
        for method in ["POST", "PUT", "DELETE"] {
            let (action, times) = (["drop_after", "drop_before"][self.rng.usize(..2)], self.rng.u32(..3));
            // Not what those who have no mount ask: they have nobody who asks again. Nor a commit, which is known by its
            // author and message.
            if times > 0 {
                server.arm(method, if method == "PUT" { "/versions/" } else { "/files" }, Some(times), json!(action));
                lost.push(format!("{method} {action} {times}"));
            }
        }
        self.done.push(format!("{name}: some is lost on the way: {}", lost.join(", ")));
        // The daemons come through all of it; the API has to be served again.
        for member in 0..self.members.len() {
            let member = &self.members[member];
            let said = member.oxenfs(&self.test, &["sync", member.dir()]);
            assert!([0, 3].contains(&said.exit), "{said:?}");
        }
        server.disarm();
    }

    /// Another machine with a copy of a member's state directory.
    fn clone_one(&mut self, at: usize) {
        let name = format!("clone-{}", self.members.len());
        self.note(at, &format!("cloned as {name}"));
        self.members[at].kill(&self.test);
        let clone = Member::new(&self.test, &name, None);
        fs::remove_dir(&clone.state).unwrap();
        run("cp", [OsStr::new("-a"), self.members[at].state.as_os_str(), clone.state.as_os_str()]);
        for member in [&self.members[at], &clone] {
            member.mount(&self.test);
        }
        let both = [&self.members[at], &clone].map(|member| member.status(&self.test)["workspace"].clone());
        assert_ne!(both[0], both[1], "a clone stages where the other does");
        self.members.push(clone);
        self.check(at);
        self.check(self.members.len() - 1);
    }

    /// What was closed is in its mount's view, or was in the branch.
    fn check(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.look();
        let shown: BTreeSet<&String> = member.view.values().collect();
        let lost = member.alive.iter().find(|text| !shown.contains(text) && !self.history.contains(*text));
        assert_eq!(lost, None, "{} lost it", member.name);
    }

    fn decide_one(&mut self, at: usize) {
        let choice = ["--ours", "--theirs", "--keep-both"][self.rng.usize(..3)];
        let Some(path) = self.members[at].conflicts(&self.test).first().cloned() else { return };
        self.note(at, &format!("resolve {path} {choice}"));
        let member = &mut self.members[at];
        member.look();
        let place = member.dir.join(&path);
        let said = member.oxenfs(&self.test, &["resolve", place.to_str().unwrap(), choice]);
        if said.exit != 0 {
            // A file that is not of the conflict is in the way of what the branch has.
            assert!(choice != "--ours" && said.err.contains("hint:"), "{said:?}");
            member.oxenfs(&self.test, &["resolve", place.to_str().unwrap(), "--ours"]).ok();
        }
        if choice == "--theirs" {
            member.acted();
        }
    }

    /// A commit, most of them without a policy. Says whether it was made.
    fn commit(&mut self, at: usize) -> bool {
        let policy = ["fail", "fail", "fail", "ours", "theirs", "keep-both"][self.rng.usize(..6)];
        self.commit_with(at, policy)
    }

    /// A commit changes what its author changed, and nothing else. Says whether it was made.
    fn commit_with(&mut self, at: usize, policy: &str) -> bool {
        self.note(at, &format!("commit --on-conflict {policy}"));
        let (before, head) = (self.head_commit(), self.head());
        let member = &mut self.members[at];
        // Where its workspace was made anew it may be about to follow.
        let base = loop {
            let base = member.status(&self.test)["base"].as_str().unwrap().to_owned();
            member.look();
            if member.status(&self.test)["base"] == base.as_str() {
                break base;
            }
        };
        let said = member.oxenfs(
            &self.test,
            &["commit", member.dir(), "-m", "m", "--author", &member.name, "--email", "e@x", "--on-conflict", policy],
        );
        let (view, name, is_own) = (member.view.clone(), member.name.clone(), member.shared.is_none());
        if policy == "theirs" {
            // Also where it was not made then: it was decided.
            member.acted();
        }
        if !is_own && base != before && said.exit == 0 {
            self.allow_empty_dirs_of_head();
        }
        let base = self.tree_of(&base);
        let after = self.head();
        self.history.extend(after.values().cloned());
        if said.exit != 0 {
            self.note(at, &format!("not committed: {}", said.err));
            assert_eq!(after, head, "{name}: {said:?}");
            assert!([1, 3].contains(&said.exit) && said.err.contains("hint:"), "{said:?}");
            return false;
        }
        let paths: BTreeSet<&String> = base.keys().chain(head.keys()).chain(view.keys()).collect();
        // What the original had staged when it was copied is a copy's too: when the original has committed it, the copy's
        // next change of it is one of what the branch has.
        let is_copy = name.starts_with("clone-");
        match (is_own, policy) {
            (true, "fail") if !is_copy => {
                let mut merged = Files::new();
                for path in paths {
                    let side = if base.get(path) == head.get(path) { &view } else { &head };
                    merged.extend(side.get(path).map(|text| (path.clone(), text.clone())));
                }
                assert_eq!(after, merged, "{name} committed something else than its work");
            }
            (true, _) => {
                let is_in_the_way = |path: &str| view.keys().any(|ours| is_below(path, ours) || is_below(ours, path));
                for path in paths {
                    if base.get(path) == view.get(path) && !is_in_the_way(path) {
                        assert_eq!(after.get(path), head.get(path), "{name} changed {path}, which it had not");
                    }
                }
            }
            (false, _) => {
                for path in paths.into_iter().filter(|path| !path.starts_with(['d', 'e'])) {
                    assert_eq!(after.get(path), head.get(path), "{name} changed {path}, which it has nothing in");
                }
            }
        }
        let member = &mut self.members[at];
        member.look();
        if is_own {
            assert_eq!(member.view, after, "{name} shows another tree than it committed");
        }
        true
    }

    /// In the end everybody's work is in the branch, and everybody shows it.
    fn end(mut self) {
        self.done.push("end".into());
        for at in 0..self.members.len() {
            self.check(at);
        }
        // A workspace that two share moves by its commits alone: what collides in it with the branch waits there.
        for member in self.members.extract_if(.., |member| member.shared.is_some()) {
            member.unmount(&self.test);
        }
        for at in 0..self.members.len() {
            let mut tries = 0;
            while !self.commit_with(at, "keep-both") {
                tries += 1;
                assert!(tries < TRIES, "{} never commits", self.members[at].name);
                // A file that is not of the conflict is in the way of what the branch has: that is for its author to decide.
                let member = &self.members[at];
                for path in member.conflicts(&self.test) {
                    member.oxenfs(&self.test, &["resolve", member.dir.join(path).to_str().unwrap(), "--ours"]).ok();
                }
            }
        }
        // Nobody has anything to say any more: no commit undoes another's.
        let head = self.head();
        for at in 0..self.members.len() {
            assert!(self.commit_with(at, "fail"), "{} is in conflict", self.members[at].name);
            assert_eq!(self.head(), head, "{} undoes what others did", self.members[at].name);
            assert_eq!(self.members[at].view, head, "{}", self.members[at].name);
            self.check(at);
        }
        for member in &mut self.members {
            member.oxenfs(&self.test, &["unmount", member.dir()]).ok();
            member.mount(&self.test);
            member.look();
            assert_eq!(member.view, head, "{}", member.name);
            member.oxenfs(&self.test, &["unmount", member.dir()]).ok();
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nobody_of_several_mounts_loses_anything() {
    let operations = number("OXENFS_TEAM").unwrap_or(80);
    let first = number("OXENFS_TEST_SEED").unwrap_or(1);
    let dialect = std::env::var("OXENFS_TEAM_DIALECT").ok().map(|dialect| {
        let known = ["0.65", "0.58", "0.50", "documented"];
        known.into_iter().find(|known| **known == dialect).unwrap_or_else(|| panic!("a dialect of {known:?}"))
    });
    for seed in first..first + operations.div_ceil(STEPS) {
        let mut team = Team::new(seed, dialect);
        (1..=STEPS).for_each(|number| team.step(number));
        team.end();
    }
}
