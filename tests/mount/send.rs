//! `oxenfs send`: what a mount that has ended owes reaches the server without a mount.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::dataset::noise;
use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, local_tree};
use crate::scripted::Scripted;

/// Files of a mount whose daemon was killed before any of them was sent.
fn left_behind(test: &TestMount, files: u64) -> Tree {
    let mut tree = Tree::new();
    for at in 0..files {
        let (path, content) = (format!("dir{}/file {at}", at % 3), noise(at, 3000 + at as usize));
        fs::create_dir_all(test.at(format!("dir{}", at % 3))).unwrap();
        fs::write(test.at(&path), &content).unwrap();
        tree.insert(path, content);
    }
    test.signal(Signal::KILL);
    test.detach();
    tree
}

fn sent(out: &str) -> Value {
    let sent: Value = serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"));
    assert_eq!(sent.as_array().map(Vec::len), Some(1), "{sent}");
    sent[0].clone()
}

#[test]
fn what_a_killed_daemon_owes_is_sent_without_a_mount_and_committed_by_the_next() {
    let server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--settle", "3600"]);
    let tree = left_behind(&test, 60);
    let said = test.oxenfs(["send", "--json"]).ok();
    let one = sent(&said.out);
    assert_eq!((&one["sent_files"], &one["owed_files"], &one["staged_files"]), (&json!(60), &json!(0), &json!(60)));
    assert!(!test.is_mounted(), "nothing was mounted for it");
    // Nothing is left to do.
    let again = test.oxenfs(["send"]).ok();
    assert!(again.err.contains("no mount that has ended owes anything"), "{again:?}");
    server.disarm();
    let puts = || server.log().iter().filter(|(method, path, _)| method == "POST" && path.contains("/files")).count();
    let before = puts();
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &tree);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &tree);
    assert_eq!(puts(), before, "none was sent again");
}

#[test]
fn a_server_that_is_away_leaves_all_of_it_on_this_disk() {
    let mut server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--settle", "3600"]);
    let tree = left_behind(&test, 9);
    server.stop();
    let said = test.oxenfs(["send"]);
    assert_eq!(said.exit, 3, "{said:?}");
    assert!(said.err.contains("cannot send what ") && said.err.contains("\nhint: "), "{said:?}");
    server.start(None);
    // One that is there and answers nothing that is asked of it in time.
    server.arm("", "/workspaces/", None, json!({"latency": {"ms": 60_000}}));
    let said = test.oxenfs(["send", "--timeout", "2s", test.dir.to_str().unwrap()]);
    assert_eq!(said.exit, 3, "{said:?}");
    server.disarm();
    let one = sent(&test.oxenfs(["send", "--json", test.dir.to_str().unwrap()]).ok().out);
    assert_eq!(one["owed_files"], 0);
    test.mount(&[]).ok();
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &tree);
}

#[test]
fn one_that_is_killed_while_it_sends_is_gone_on_with_and_a_mount_takes_one_over() {
    let server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--settle", "3600"]);
    let tree = left_behind(&test, 90);
    server.arm("POST", "/workspaces/", None, json!({"latency": {"ms": 5_000}}));
    for how in [Signal::KILL, Signal::TERM] {
        let mut sending = test.spawn(["send"]);
        test.wait_status("something to be on its way", |status| {
            status["phase"] == "draining" && status["counts"]["uploading"]["files"].as_u64() > Some(0)
        });
        kill_process(Pid::from_child(&sending), how).unwrap();
        sending.wait().unwrap();
    }
    let mut sending = test.spawn(["send"]);
    test.wait_status("it to begin anew", |status| status["phase"] == "draining");
    test.mount(&[]).ok();
    assert_eq!(sending.wait().unwrap().code(), Some(3), "the mount goes on with it");
    server.disarm();
    assert_same(&local_tree(&test.dir), &tree);
    // With a mount there is nothing for it to do but to wait.
    test.oxenfs(["send", test.dir.to_str().unwrap()]).ok();
    assert_eq!(test.status()["counts"]["staged"]["files"], 90);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &tree);
}

#[test]
fn what_is_no_state_directory_is_said_to_be_none() {
    let test = TestMount::new();
    let said = test.oxenfs(["send", "/nowhere"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("/nowhere is no state directory") && said.err.contains("oxenfs status"), "{said:?}");
    test.unmount();
}
