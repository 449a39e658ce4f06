//! Tables and directories: whatever is staged and taken back in a directory, the branch holds what the tree holds.
//!
//! Random work by hand, on the real server, with seeds of your own:
//! `OXENFS_TEST_SEEDS=1..21 cargo test --test mount -- --ignored --nocapture tables::random_work_by_hand`

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::json;

use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, local_tree, shell, wait_until};
use crate::scripted::Scripted;

/// What a server treats in ways of its own, and what not.
const KINDS: [&str; 4] = ["csv", "parquet", "jsonl", "txt"];

/// Commits, and compares the branch with the mount and with what is expected.
#[track_caller]
fn commit_and_compare(test: &TestMount, expected: &Tree) {
    test.commit();
    assert_same(&test.committed(), expected);
    assert_same(&local_tree(&test.dir), expected);
}

fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, content)| ((*path).to_owned(), content.as_bytes().to_vec())).collect()
}

#[test]
fn a_file_that_comes_and_goes_in_a_committed_directory_leaves_it_in_the_branch() {
    for kind in KINDS {
        let test = TestMount::new();
        shell(&test.dir, "mkdir d; echo precious >d/base.txt");
        test.commit();
        shell(&test.dir, &format!("echo 1 >d/tmp.{kind}"));
        test.sync();
        shell(&test.dir, &format!("rm d/tmp.{kind}"));
        test.sync();
        shell(&test.dir, "echo n >README");
        commit_and_compare(&test, &tree(&[("d/base.txt", "precious\n"), ("README", "n\n")]));
        test.unmount();
    }
}

#[test]
fn a_table_changed_and_changed_back_leaves_its_directory_in_the_branch() {
    let test = TestMount::new();
    let mut expected = tree(&[("d/s/base.txt", "precious\n")]);
    shell(&test.dir, "mkdir -p d/s; echo precious >d/s/base.txt");
    for kind in KINDS {
        shell(&test.dir, &format!("printf 'a,b\\n1,2\\n' >d/s/t.{kind}"));
        expected.insert(format!("d/s/t.{kind}"), b"a,b\n1,2\n".to_vec());
    }
    test.commit();
    for (at, kind) in KINDS.into_iter().enumerate() {
        shell(&test.dir, &format!("echo changed >>d/s/t.{kind}"));
        test.sync();
        shell(&test.dir, &format!("printf 'a,b\\n1,2\\n' >d/s/t.{kind}"));
        test.sync();
        shell(&test.dir, &format!("rm d/s/t.{kind}"));
        test.sync();
        shell(&test.dir, &format!("printf 'a,b\\n1,2\\n' >d/s/t.{kind}; echo {at} >README"));
        expected.insert("README".into(), format!("{at}\n").into_bytes());
        commit_and_compare(&test, &expected);
    }
    test.unmount();
}

#[test]
fn a_table_moved_to_another_directory_leaves_both_in_the_branch() {
    let test = TestMount::new();
    shell(&test.dir, "mkdir d e; echo precious >d/base.txt; echo precious >e/base.txt");
    test.commit();
    let mut expected = tree(&[("d/base.txt", "precious\n"), ("e/base.txt", "precious\n")]);
    for kind in KINDS {
        shell(&test.dir, &format!("echo 1 >d/t.{kind}"));
        test.sync();
        shell(&test.dir, &format!("mv d/t.{kind} e/"));
        expected.insert(format!("e/t.{kind}"), b"1\n".to_vec());
        commit_and_compare(&test, &expected);
        shell(&test.dir, &format!("mv e/t.{kind} d/"));
        test.sync();
        shell(&test.dir, &format!("mv d/t.{kind} e/; echo {kind} >README"));
        expected.insert("README".into(), format!("{kind}\n").into_bytes());
        commit_and_compare(&test, &expected);
    }
    test.unmount();
}

/// A release before 0.64 may have no way to what is staged below.
#[test]
fn tables_that_come_and_go_in_a_new_directory_leave_its_removal_whole() {
    let test = TestMount::new();
    fs::write(test.at("keep"), "kept").unwrap();
    let expected = tree(&[("keep", "kept")]);
    for kind in KINDS {
        shell(&test.dir, &format!("mkdir -p d/s; echo 1 >d/s/one.{kind}; echo 2 >d/s/two.{kind}"));
        test.sync();
        shell(&test.dir, &format!("rm d/s/one.{kind}"));
        test.commit();
        shell(&test.dir, &format!("echo 3 >d/s/three.{kind}"));
        test.sync();
        shell(&test.dir, &format!("rm d/s/three.{kind}"));
        test.sync();
        shell(&test.dir, "rm -r d/s");
        commit_and_compare(&test, &expected);
        shell(&test.dir, "rmdir d");
    }
    test.unmount();
}

#[test]
fn a_daemon_killed_while_it_puts_a_table_back_leaves_nothing_of_it() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let base = tree(&[("d/base.txt", "precious\n"), ("d/t.csv", "a,b\n1,2\n")]);
    shell(&test.dir, "mkdir d; echo precious >d/base.txt; printf 'a,b\\n1,2\\n' >d/t.csv");
    test.commit();
    shell(&test.dir, "echo changed >>d/t.csv");
    test.sync();
    // What was moved out of the way is not removed.
    server.arm("DELETE", "/files", None, json!("drop_before"));
    shell(&test.dir, "printf 'a,b\\n1,2\\n' >d/t.csv");
    let moved =
        |(method, path, status): &(String, String, u64)| method == "PATCH" && path.contains("t.csv") && *status == 200;
    wait_until("the table to be moved out of the way", || server.log().iter().any(moved));
    test.signal(Signal::KILL);
    server.disarm();
    let staged = || {
        let changes = server.ask("GET", &format!("/api/repos/{}/workspaces", test.repo), &json!(null)).1;
        let workspaces: serde_json::Value = serde_json::from_str(&changes).unwrap();
        let id = workspaces["workspaces"][0]["id"].as_str().unwrap().to_owned();
        server.ask("GET", &format!("/api/repos/{}/workspaces/{id}/changes", test.repo), &json!(null)).1
    };
    assert!(staged().contains("aside"), "{}", staged());
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &base);
    assert!(!staged().contains("aside"), "{}", staged());
    shell(&test.dir, "echo n >README");
    test.unmount_commit();
    let mut expected = base;
    expected.insert("README".into(), b"n\n".to_vec());
    assert_same(&server.committed(&test.repo), &expected);
}

/// Random work in a mount and in a plain directory, with some of it staged at random points, and commits that are
/// compared with the plain directory.
struct Random {
    test: TestMount,
    plain: std::path::PathBuf,
    rng: Rng,
    /// What the last commit holds.
    committed: Tree,
    done: Vec<String>,
}

impl Random {
    fn new(seed: u64) -> Self {
        let test = TestMount::unmounted(crate::server::url());
        test.mount(&["--create", "--settle", "0.05"]).ok();
        let plain = test.beside("plain");
        Self { test, plain, rng: Rng::with_seed(seed), committed: Tree::new(), done: Vec::new() }
    }

    fn dir(&mut self) -> &'static str {
        ["", "a/", "a/b/", "a/b/c/", "d/", "d/e/", "d/out.parquet/"][self.rng.usize(..7)]
    }

    fn name(&mut self) -> String {
        let kind = KINDS[self.rng.usize(..KINDS.len())];
        format!("{}{}.{kind}", self.dir(), ["x", "y"][self.rng.usize(..2)])
    }

    /// Of the files that are there.
    fn some(&mut self) -> Option<String> {
        let files: Vec<String> = local_tree(&self.plain).into_keys().collect();
        (!files.is_empty()).then(|| files[self.rng.usize(..files.len())].clone())
    }

    fn content(&mut self, name: &str) -> String {
        let rows = 1 + self.rng.usize(..4);
        let row = |rng: &mut Rng| match name.rsplit_once('.') {
            Some((_, "jsonl")) => format!("{{\"a\": {}}}\n", rng.u32(..1000)),
            Some((_, "csv")) => format!("{},{}\n", rng.u32(..1000), rng.u32(..1000)),
            _ => format!("{:x}\n", rng.u64(..)),
        };
        let head = if name.ends_with(".csv") { "a,b\n" } else { "" };
        head.to_owned() + &(0..rows).map(|_| row(&mut self.rng)).collect::<String>()
    }

    fn write(&mut self, name: &str, content: &[u8]) {
        self.both(&format!("write {name}, {} bytes", content.len()), |root| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        });
    }

    fn both(&mut self, what: &str, act: impl Fn(&Path)) {
        self.done.push(what.to_owned());
        act(&self.test.dir);
        act(&self.plain);
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..35 => {
                let name = self.name();
                let content = self.content(&name);
                self.write(&name, content.as_bytes());
            }
            35..55 => self.take_back(),
            55..70 => {
                if let Some(name) = self.some() {
                    self.both(&format!("remove {name}"), |root| fs::remove_file(root.join(&name)).unwrap());
                }
            }
            70..82 => {
                if let Some(from) = self.some() {
                    let kind = from.rsplit_once('.').map_or("txt", |(_, kind)| kind);
                    let to = format!("{}{}.{kind}", self.dir(), ["x", "y", "z"][self.rng.usize(..3)]);
                    self.both(&format!("move {from} to {to}"), |root| {
                        fs::create_dir_all(root.join(&to).parent().unwrap()).unwrap();
                        fs::rename(root.join(&from), root.join(&to)).unwrap();
                    });
                }
            }
            82..88 => {
                let dir = self.dir();
                if !dir.is_empty() && self.plain.join(dir).exists() {
                    self.both(&format!("remove all of {dir}"), |root| fs::remove_dir_all(root.join(dir)).unwrap());
                }
            }
            88..92 => {
                let (from, to) = (["a/b", "d/e", "a/b/c"][self.rng.usize(..3)], ["a/m", "d/m"][self.rng.usize(..2)]);
                if self.plain.join(from).exists() && !self.plain.join(to).exists() {
                    self.both(&format!("move all of {from} to {to}"), |root| {
                        fs::create_dir_all(root.join(to).parent().unwrap()).unwrap();
                        fs::rename(root.join(from), root.join(to)).unwrap();
                    });
                }
            }
            _ => {
                self.done.push("sync".to_owned());
                self.test.sync();
            }
        }
    }

    /// Brings one path back to what is committed there.
    fn take_back(&mut self) {
        let there = local_tree(&self.plain);
        let differs = |path: &&String| there.get(*path) != self.committed.get(*path);
        let paths: BTreeSet<String> = there.keys().chain(self.committed.keys()).filter(differs).cloned().collect();
        let chosen = self.rng.usize(..paths.len().max(1));
        let Some(name) = paths.into_iter().nth(chosen) else { return };
        match self.committed.get(&name).cloned() {
            Some(content) => self.write(&name, &content),
            None => self.both(&format!("remove {name}"), |root| fs::remove_file(root.join(&name)).unwrap()),
        }
    }

    fn commit(&mut self, number: usize) -> Result<(), String> {
        self.write("number.txt", format!("{number}\n").as_bytes());
        self.done.push("commit".to_owned());
        let dir = self.test.dir.to_str().unwrap();
        let said = self.test.oxenfs(["commit", dir, "-m", "random", "--author", "A", "--email", "a@example.org"]);
        if said.exit != 0 {
            return Err(format!("commit {number}: {said:#?}"));
        }
        let expected = local_tree(&self.plain);
        let found = self.test.committed();
        let differ: BTreeMap<&String, (Option<usize>, Option<usize>)> = found
            .keys()
            .chain(expected.keys())
            .filter(|path| found.get(*path) != expected.get(*path))
            .map(|path| (path, (found.get(path).map(Vec::len), expected.get(path).map(Vec::len))))
            .collect();
        if !differ.is_empty() {
            return Err(format!("commit {number} holds, and should hold, of lengths: {differ:#?}"));
        }
        assert_same(&local_tree(&self.test.dir), &expected);
        self.committed = expected;
        Ok(())
    }
}

/// Says what was done before a commit that is wrong.
fn random_work(seed: u64, commits: usize) -> Result<(), String> {
    let mut random = Random::new(seed);
    for number in 0..commits {
        for _ in 0..3 + random.rng.usize(..9) {
            random.step();
        }
        // Most of what is staged is taken back, so that directories are left with nothing staged in them.
        random.done.push("sync".to_owned());
        random.test.sync();
        for _ in 0..random.rng.usize(..8) {
            random.take_back();
        }
        if let Err(why) = random.commit(number) {
            return Err(format!("seed {seed}: {why}\n{}", random.done.join("\n")));
        }
    }
    random.test.unmount();
    Ok(())
}

#[test]
fn random_tables_and_directories_are_committed_as_the_tree_has_them() {
    let seeds = [1, 2, 3];
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = seeds.map(|seed| scope.spawn(move || random_work(seed, 10))).into();
        runs.into_iter().filter_map(|run| run.join().unwrap().err()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
#[ignore = "takes minutes: run it by hand, as the head of this file says"]
#[expect(clippy::print_stderr, reason = "whoever runs it by hand watches")]
fn random_work_by_hand() {
    let seeds = std::env::var("OXENFS_TEST_SEEDS").unwrap_or_else(|_| "1..21".into());
    let (from, to) = seeds.split_once("..").expect("OXENFS_TEST_SEEDS is FROM..TO");
    let (from, to): (u64, u64) = (from.parse().expect("a number"), to.parse().expect("a number"));
    let mut wrong = Vec::new();
    for seed in from..to {
        let result = random_work(seed, 20);
        eprintln!("seed {seed}: {}", if result.is_ok() { "20 commits are right" } else { "WRONG" });
        wrong.extend(result.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
