//! Several workers stage in workspaces of their own, and `oxenfs gather` makes one commit of it, or none.

use std::fs;

use serde_json::Value;

use crate::mounted::{Said, TestMount, shell};
use crate::scripted::Scripted;

/// A repository in which workers stage, one after the other, each with a state directory of its own.
struct Job {
    test: TestMount,
    url: String,
    workers: Vec<String>,
}

impl Job {
    fn on(url: &str) -> Self {
        let files = ["keep", "d/a", "d/b", "e/x"].map(|path| (path.to_owned(), path.as_bytes().to_vec()));
        let test = TestMount::committed_by(url, files.iter().map(|(path, bytes)| (path, bytes)));
        Self { test, url: url.to_owned(), workers: Vec::new() }
    }

    /// A worker does this in a mount of its own, which ends.
    fn works(&mut self, script: &str) {
        let at = self.workers.len();
        let (dir, state) = (self.test.beside(&format!("worker-{at}")), self.test.beside(&format!("state-{at}")));
        self.test.mount_with(&state, &dir, &["--workspace", &format!("job-{at}")]).ok();
        shell(&dir, script);
        self.test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
        self.workers.push(format!("job-{at}"));
    }

    fn gather(&self, more: &[&str]) -> Said {
        let mut arguments = vec!["gather", &self.test.repo, "--server", &self.url, "-m", "gathered"];
        arguments.extend(["--author", "G", "--email", "g@x"]);
        self.workers.iter().for_each(|name| arguments.extend(["--from", name]));
        self.test.oxenfs(arguments.into_iter().chain(more.iter().copied()))
    }

    /// Paths and content of the branch.
    fn committed(&self) -> Vec<(String, String)> {
        let tree = crate::http::tree_of(&self.url, &self.test.repo, "main");
        tree.into_iter().map(|(path, bytes)| (path, String::from_utf8(bytes).unwrap())).collect()
    }

    /// All that the repository has.
    fn workspaces(&self) -> Vec<String> {
        let said = self.test.oxenfs(["workspaces", &self.test.repo, "--server", &self.url, "--json"]).ok();
        let listed: Value = serde_json::from_str(&said.out).unwrap();
        let names = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn what_many_workers_staged_becomes_one_commit() {
    let mut job = Job::on(crate::server::url());
    job.works("mkdir w0; printf 0 > w0/f; printf same > both; rm d/a");
    job.works("mkdir -p w1/deep; printf 1 > w1/deep/f; printf same > both; printf new > keep; rm d/b");
    job.works("true");
    let before = job.workspaces();
    let said = job.gather(&["--json"]).ok();
    let told: Value = serde_json::from_str(&said.out).unwrap();
    assert!(told["commit"].is_string(), "{said:?}");
    assert_eq!((&told["put_files"], &told["removed_files"]), (&Value::from(4), &Value::from(2)));
    let changes: Vec<i64> =
        told["workspaces"].as_array().unwrap().iter().map(|one| one["changes"].as_i64().unwrap()).collect();
    assert_eq!(changes, [3, 4, 0]);
    let expected = pairs(&[("both", "same"), ("e/x", "e/x"), ("keep", "new"), ("w0/f", "0"), ("w1/deep/f", "1")]);
    assert_eq!(job.committed(), expected);
    assert_eq!(job.workspaces(), before, "they stay, and nothing else does");
    // Once more: the branch has it. Then they go.
    let again = job.gather(&["--json", "--delete-workspaces"]).ok();
    let told: Value = serde_json::from_str(&again.out).unwrap();
    assert!(told["commit"].is_null(), "{again:?}");
    assert_eq!(told["deleted"].as_array().unwrap().len(), 3, "{again:?}");
    assert_eq!(job.committed(), expected);
    assert_eq!(job.workspaces().len(), before.len() - 3, "{:?}", job.workspaces());
}

#[test]
fn what_collides_is_named_and_nothing_is_committed() {
    let mut job = Job::on(crate::server::url());
    job.works("printf first > both; printf 0 > own-0");
    job.works("printf second > both; rm e/x");
    let before = job.committed();
    let refused = job.gather(&[]);
    assert_eq!(refused.exit, 1);
    assert!(refused.err.contains("both") && refused.err.contains("job-0 and job-1"), "{refused:?}");
    assert_eq!(job.committed(), before);
    job.gather(&["--on-collision", "last"]).ok();
    let with = |both: &str| pairs(&[("both", both), ("d/a", "d/a"), ("d/b", "d/b"), ("keep", "keep"), ("own-0", "0")]);
    assert_eq!(job.committed(), with("second"));
    // The branch has other content there by now than where the first worker began.
    let refused = job.gather(&["--on-collision", "first"]);
    assert_eq!(refused.exit, 1);
    assert!(refused.err.contains("changed here and on main: both"), "{refused:?}");
    job.gather(&["--on-collision", "first", "--on-conflict", "theirs"]).ok();
    assert_eq!(job.committed(), with("second"));
    job.gather(&["--on-collision", "first", "--on-conflict", "ours"]).ok();
    assert_eq!(job.committed(), with("first"));
}

#[test]
fn a_file_where_another_worker_or_the_branch_has_a_directory_is_refused() {
    let mut job = Job::on(crate::server::url());
    job.works("mkdir new; printf 0 > new/f");
    job.works("printf 1 > new");
    let before = job.committed();
    let refused = job.gather(&["--on-collision", "last"]);
    assert_eq!(refused.exit, 1);
    assert!(refused.err.contains("new (a file and a directory)"), "{refused:?}");
    job.workers = Vec::from(["absent".to_owned()]);
    let refused = job.gather(&[]);
    assert_eq!(refused.exit, 1);
    assert!(refused.err.contains("there is no workspace absent"), "{refused:?}");
    assert!(job.test.oxenfs(["workspaces", &job.test.repo, "--server", &job.url]).ok().out.lines().count() < 4);
    assert_eq!(job.committed(), before);
}

#[test]
fn a_workspace_in_which_somebody_stages_meanwhile_is_not_deleted_and_one_in_use_neither() {
    let mut job = Job::on(crate::server::url());
    job.works("printf 0 > f");
    let (dir, state) = (job.test.beside("live"), job.test.beside("live-state"));
    job.test.mount_with(&state, &dir, &["--workspace", "live"]).ok();
    fs::write(dir.join("g"), "1").unwrap();
    job.test.oxenfs_with(&state, ["sync", dir.to_str().unwrap()]).ok();
    job.workers.push("live".to_owned());
    let mut arguments =
        vec!["gather", &job.test.repo, "--server", &job.url, "-m", "x", "--author", "G", "--email", "g@x"];
    arguments.extend(["--from", "job-0", "--from", "live", "--delete-workspaces", "--json"]);
    let said = job.test.oxenfs_with(&state, arguments).ok();
    let told: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(told["deleted"], serde_json::json!(["job-0"]));
    assert_eq!(told["kept"][0]["name"], "live", "{said:?}");
    assert!(job.committed().contains(&("g".to_owned(), "1".to_owned())));
    job.test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
}

#[test]
fn where_a_server_cannot_stage_by_hash_the_bytes_travel() {
    for dialect in ["0.50", "0.58"] {
        let server = Scripted::speaking(dialect);
        let mut job = Job::on(&server.url());
        job.works("printf zero > f0; head -c 9000000 /dev/zero > large; rm -r d");
        job.works("printf one > f1; printf keeP > keep");
        job.gather(&[]).ok();
        let committed = job.committed();
        let names: Vec<&str> = committed.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(names, ["e/x", "f0", "f1", "keep", "large"], "{dialect}");
        assert_eq!(committed[3].1, "keeP", "{dialect}");
        assert_eq!(committed[4].1.len(), 9_000_000, "{dialect}");
    }
}

/// Before the commit nothing is changed but a workspace that nobody has; after it the next run finds nothing to do.
#[test]
fn a_gathering_that_is_killed_is_repeated() {
    let server = Scripted::new();
    let mut job = Job::on(&server.url());
    job.works("mkdir many; for i in $(seq 40); do printf $i > many/$i; done; rm e/x");
    job.works("printf 1 > f1");
    let before = job.committed();
    for (method, path) in [("PUT", "/workspaces"), ("POST", "/versions"), ("DELETE", "/files"), ("POST", "/merge/")] {
        server.arm(method, path, None, serde_json::json!("drop_before"));
        assert_eq!(job.gather(&[]).exit, 1, "{method} {path}");
        server.disarm();
        assert_eq!(job.committed(), before, "{method} {path}");
    }
    server.arm("POST", "/merge/", Some(1), serde_json::json!("drop_after"));
    let said = job.gather(&[]);
    server.disarm();
    assert_eq!(said.exit, 0, "{said:?}");
    let committed = job.committed();
    assert_eq!(committed.len(), 3 + 40 + 1);
    job.gather(&[]).ok();
    assert_eq!(job.committed(), committed);
}
