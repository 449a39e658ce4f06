//! What a command calls committed is in the branch, byte for byte, and is still here until it is: servers that leave
//! something out of a commit, name commits that do not exist, or lose what is staged; and other clients that delete the
//! workspace, make it anew or empty it.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::dataset::noise;
use crate::http::{self, assert_same};
use crate::mounted::{Said, TestMount, local_tree, wait_until};
use crate::scripted::Scripted;

fn commit(test: &TestMount) -> Said {
    let dir = test.dir.to_str().unwrap();
    test.oxenfs(["commit", dir, "-m", "a commit", "--author", "A", "--email", "a@x"])
}

/// The JSON of a GET below the repository.
fn ask(server: &Scripted, test: &TestMount, below: &str) -> Value {
    let (status, body) = http::get(&server.url(), &format!("/api/repos/{}/{below}", test.repo)).unwrap();
    assert_eq!(status, 200, "{below}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

fn head(server: &Scripted, test: &TestMount) -> String {
    ask(server, test, "branches/main")["branch"]["commit_id"].as_str().unwrap().to_owned()
}

fn message(server: &Scripted, test: &TestMount) -> String {
    ask(server, test, &format!("commits/{}", head(server, test)))["commit"]["message"].as_str().unwrap().to_owned()
}

/// A request of another client below the repository, which succeeds.
fn other(server: &Scripted, test: &TestMount, method: &str, below: &str, body: &Value) {
    let (status, answer) = server.ask(method, &format!("/api/repos/{}/{below}", test.repo), body);
    assert!((200..300).contains(&status), "{method} {below}: {status} {answer}");
}

fn workspace(test: &TestMount) -> String {
    test.status()["workspace"].as_str().unwrap().to_owned()
}

/// A mount on a server of its own, with a committed directory.
fn with_base() -> (Scripted, TestMount) {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    fs::create_dir_all(test.at("d/deep")).unwrap();
    fs::write(test.at("d/base.txt"), "precious").unwrap();
    fs::write(test.at("d/deep/base.bin"), noise(1, 50_000)).unwrap();
    commit(&test).ok();
    (server, test)
}

/// The branch holds what the mount shows, and nothing is left to commit.
#[track_caller]
fn assert_committed(server: &Scripted, test: &TestMount) {
    assert_same(&server.committed(&test.repo), &local_tree(&test.dir));
    let before = head(server, test);
    commit(test).ok();
    assert_eq!(head(server, test), before, "nothing was left to commit");
}

#[test]
fn a_commit_that_the_branch_does_not_have_is_an_error() {
    let (server, test) = with_base();
    fs::write(test.at("new"), "new").unwrap();
    test.sync();
    let before = head(&server, &test);
    for id in ["0123456789abcdef0123456789abcdef", "", &before] {
        let body = json!({"commit": {"id": id, "parent_ids": [before], "message": "a commit"}}).to_string();
        server.arm("POST", "/merge/", Some(1), json!({"status": {"code": 200, "body": body}}));
        let said = commit(&test);
        assert!(said.exit != 0 && said.out.is_empty(), "{id:?}: {said:#?}");
        assert_eq!(head(&server, &test), before);
    }
    // A commit that was made, and called something else.
    for id in ["0123456789abcdef0123456789abcdef", ""] {
        fs::write(test.at("new"), format!("new {id}")).unwrap();
        server.arm("POST", "/merge/", Some(1), json!({"name_commit": {"id": id}}));
        let said = commit(&test).ok();
        assert_eq!(said.out.trim(), head(&server, &test));
        assert_committed(&server, &test);
    }
    test.unmount();
}

#[test]
fn what_the_server_left_out_of_a_commit_is_committed_once_more() {
    let (server, test) = with_base();
    let faults = [
        (json!({"drop_from_commit": {"path": "d"}}), "2 paths"),
        (json!({"drop_from_commit": {"path": "d/deep"}}), "1 path"),
        (json!({"leave_out": {"path": "d/new"}}), "1 path"),
        (json!({"leave_out": {"path": "gone"}}), "1 path"),
    ];
    for (at, (fault, paths)) in faults.into_iter().enumerate() {
        fs::write(test.at("gone"), "to be removed").unwrap();
        fs::write(test.at("d/new"), format!("old {at}")).unwrap();
        commit(&test).ok();
        fs::remove_file(test.at("gone")).unwrap();
        let deep = fault["drop_from_commit"]["path"] == "d/deep";
        let changed = if deep { "d/new" } else { "README" };
        fs::write(test.at(changed), format!("new {at}")).unwrap();
        if fault["leave_out"]["path"] == "d/new" {
            fs::write(test.at("d/new"), noise(at as u64, 2_000_000)).unwrap();
        }
        let paths = if fault["drop_from_commit"]["path"] == "d" { "3 paths" } else { paths };
        server.arm("POST", "/merge/", Some(1), fault.clone());
        let said = commit(&test).ok();
        assert_eq!(said.out.trim(), head(&server, &test), "{fault}: the one id is that of the last, whole commit");
        assert_eq!(message(&server, &test), format!("a commit (repair: {paths} that the server left out)"), "{fault}");
        assert_committed(&server, &test);
    }
    test.unmount();
}

/// What is left of a change that was taken back makes real servers do this: nothing is staged in that directory.
#[test]
fn a_directory_that_the_server_drops_where_nothing_is_staged_is_committed_once_more() {
    let (server, test) = with_base();
    fs::create_dir_all(test.at("e/s/t")).unwrap();
    fs::write(test.at("e/s/t/base.csv"), "a,b\n1,2\n").unwrap();
    commit(&test).ok();
    for (round, dropped) in ["d/deep", "e/s/t", "e/s", "e/s/t/base.csv"].into_iter().enumerate() {
        // Staged and taken back, and perhaps this daemon knows nothing of it.
        fs::write(test.at("e/s/t/new"), "new").unwrap();
        fs::write(test.at("d/deep/new"), "new").unwrap();
        test.sync();
        fs::remove_file(test.at("e/s/t/new")).unwrap();
        fs::remove_file(test.at("d/deep/new")).unwrap();
        test.sync();
        if round % 2 == 1 {
            test.signal(Signal::KILL);
            test.mount(&[]).ok();
        }
        fs::write(test.at("README"), format!("new {round}")).unwrap();
        server.arm("POST", "/merge/", Some(1), json!({"drop_from_commit": {"path": dropped}}));
        commit(&test).ok();
        assert_eq!(message(&server, &test), "a commit (repair: 1 path that the server left out)", "{dropped}");
        assert_committed(&server, &test);
    }
    // A repair that the server drops it from as well.
    fs::write(test.at("README"), "last").unwrap();
    server.arm("POST", "/merge/", Some(2), json!({"drop_from_commit": {"path": "e/s/t"}}));
    let said = commit(&test);
    assert!(said.exit == 3 && said.out.is_empty() && said.err.contains("e/s/t/base.csv"), "{said:#?}");
    commit(&test).ok();
    assert_committed(&server, &test);
    test.unmount();
}

#[test]
fn what_a_repair_does_not_bring_back_is_named_and_owed() {
    let (server, test) = with_base();
    fs::write(test.at("README"), "new").unwrap();
    server.arm("POST", "/merge/", Some(2), json!({"drop_from_commit": {"path": "d/base.txt"}}));
    fs::write(test.at("d/other"), "other").unwrap();
    let said = commit(&test);
    assert_eq!(said.exit, 3, "{said:#?}");
    assert!(said.out.is_empty() && said.err.contains("1 file") && said.err.contains("d/base.txt"), "{said:#?}");
    assert_eq!(server.committed(&test.repo).len(), 3);
    server.disarm();
    // Still here, and in the next commit.
    assert_eq!(fs::read_to_string(test.at("d/base.txt")).unwrap(), "precious");
    commit(&test).ok();
    assert_committed(&server, &test);
    test.unmount();
}

#[test]
fn another_clients_commit_in_between_keeps_a_repair_away() {
    let (server, test) = with_base();
    fs::write(test.at("README"), "new").unwrap();
    test.sync();
    server.arm("POST", "/merge/", Some(1), json!({"drop_from_commit": {"path": "d"}}));
    // Theirs, made before ours is looked at.
    let theirs = json!({"workspace_id": "theirs", "name": "theirs", "branch_name": "main"});
    other(&server, &test, "PUT", "workspaces", &theirs);
    let begin =
        json!({"hash": hash("precious"), "size": 8, "destination": {"workspace_id": "theirs", "path": "theirs"}});
    other(&server, &test, "POST", "versions/uploads", &begin);
    server.arm("GET", "/dir/", None, json!({"latency": {"ms": 1500}}));
    let before = head(&server, &test);
    let dir = test.dir.to_str().unwrap();
    let child = test.spawn(["commit", dir, "-m", "a commit", "--author", "A", "--email", "a@x"]);
    wait_until("the commit", || head(&server, &test) != before);
    let merge = json!({"author": "B", "email": "b@x", "message": "theirs"});
    other(&server, &test, "POST", "workspaces/theirs/merge/main", &merge);
    let said: Said = child.wait_with_output().unwrap().into();
    assert!(said.exit == 3 && said.out.is_empty() && said.err.contains("d/base.txt"), "{said:#?}");
    assert_eq!(message(&server, &test), "theirs");
    server.disarm();
    assert_eq!(fs::read_to_string(test.at("d/base.txt")).unwrap(), "precious");
    test.unmount();
}

fn hash(content: &str) -> String {
    let hash = oxenfs::hash::ContentHash::of(oxenfs::hash::HashKind::Xxh3, content.as_bytes());
    hash.to_string()
}

#[test]
fn a_workspace_that_was_deleted_is_made_again_and_all_staged_again() {
    let (server, test) = with_base();
    for at in 0..20 {
        fs::write(test.at(format!("file {at}")), noise(at, 3000 * at as usize)).unwrap();
    }
    fs::remove_file(test.at("d/base.txt")).unwrap();
    test.sync();
    let name = workspace(&test);
    other(&server, &test, "DELETE", &format!("workspaces/{name}"), &Value::Null);
    // W2: today that is exit 0 with nothing staged.
    wait_until("a barrier to notice", || {
        test.sync();
        let (status, _) = http::get(&server.url(), &format!("/api/repos/{}/workspaces/{name}", test.repo)).unwrap();
        status == 200
    });
    let staged = ask(&server, &test, &format!("workspaces/{name}/changes?page_size=1000"))["staged"].clone();
    let totals = ["added_files", "removed_files"].map(|kind| staged[kind]["total_entries"].as_u64().unwrap());
    assert_eq!(totals, [20, 1]);
    assert_committed_after(&server, &test, || commit(&test).ok());
    // Also by what is written while nobody asks for anything.
    other(&server, &test, "DELETE", &format!("workspaces/{name}"), &Value::Null);
    fs::write(test.at("later"), "later").unwrap();
    test.wait_status("it to be staged", |status| crate::faults::owed(status) == 0 && status["stalled"].is_null());
    other(&server, &test, "DELETE", &format!("workspaces/{name}"), &Value::Null);
    let expected = local_tree(&test.dir);
    test.unmount();
    let staged = ask(&server, &test, &format!("workspaces/{name}/changes?page_size=1000"))["staged"].clone();
    assert_eq!(staged["added_files"]["total_entries"], 1, "unmount said that everything is on the server");
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &expected);
    assert_committed_after(&server, &test, || commit(&test).ok());
    test.unmount();
}

/// Stages content in a workspace of their own and commits it.
fn theirs(server: &Scripted, test: &TestMount, path: &str, number: u32) {
    let name = format!("theirs-{number}");
    other(server, test, "PUT", "workspaces", &json!({"workspace_id": name, "name": name, "branch_name": "main"}));
    let begin = json!({"hash": hash("precious"), "size": 8, "destination": {"workspace_id": name, "path": path}});
    other(server, test, "POST", "versions/uploads", &begin);
    let merge = json!({"author": "B", "email": "b@x", "message": "theirs"});
    other(server, test, "POST", &format!("workspaces/{name}/merge/main"), &merge);
}

#[test]
fn a_workspace_that_was_deleted_while_the_branch_went_on_is_made_again_and_collisions_are_found() {
    let (server, test) = with_base();
    let workspace = format!("workspaces/{}", workspace(&test));
    fs::write(test.at("ours"), "ours").unwrap();
    fs::write(test.at("both"), "ours too").unwrap();
    test.sync();
    theirs(&server, &test, "theirs", 1);
    other(&server, &test, "DELETE", &workspace, &Value::Null);
    commit(&test).ok();
    let committed = server.committed(&test.repo);
    assert_eq!((&committed["ours"][..], &committed["theirs"][..]), (&b"ours"[..], &b"precious"[..]));
    assert_committed(&server, &test);
    // What collides is found all the same.
    fs::write(test.at("both"), "ours again").unwrap();
    test.sync();
    theirs(&server, &test, "both", 2);
    other(&server, &test, "DELETE", &workspace, &Value::Null);
    let said = commit(&test);
    assert!(said.exit == 1 && said.err.contains("both"), "{said:#?}");
    assert_eq!(server.committed(&test.repo)["both"], b"precious");
    assert_eq!(fs::read(test.at("both")).unwrap(), b"ours again");
    assert_eq!(ask(&server, &test, "branches")["branches"].as_array().unwrap().len(), 1);
    // It is on record, and nothing passes it by, until somebody decides.
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap()]);
    assert!(said.exit == 3 && said.err.contains("oxenfs resolve"), "{said:#?}");
    test.oxenfs(["resolve", "--ours", test.at("both").to_str().unwrap()]).ok();
    commit(&test).ok();
    assert_eq!(server.committed(&test.repo)["both"], b"ours again");
    assert_committed(&server, &test);
    test.unmount();
}

#[test]
fn a_workspace_that_others_made_on_a_later_commit_is_followed_and_nothing_is_lost() {
    let (server, test) = with_base();
    let name = workspace(&test);
    fs::write(test.at("ours"), noise(5, 100_000)).unwrap();
    fs::remove_file(test.at("d/base.txt")).unwrap();
    test.sync();
    theirs(&server, &test, "theirs", 1);
    other(&server, &test, "DELETE", &format!("workspaces/{name}"), &Value::Null);
    other(&server, &test, "PUT", "workspaces", &json!({"workspace_id": name, "name": name, "branch_name": "main"}));
    commit(&test).ok();
    assert_eq!(fs::read(test.at("ours")).unwrap(), noise(5, 100_000));
    wait_until("what others committed to show", || fs::read(test.at("theirs")).is_ok_and(|there| there == b"precious"));
    assert!(!test.at("d/base.txt").exists());
    let committed = server.committed(&test.repo);
    assert!(committed["ours"] == noise(5, 100_000) && !committed.contains_key("d/base.txt"));
    assert_committed(&server, &test);
    test.unmount();
}

#[test]
fn what_went_with_a_workspace_and_is_not_here_is_read_when_it_is_staged_again() {
    let server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--cache-limit", "0"]);
    for round in 0..3 {
        let name = format!("file {round}");
        fs::write(test.at(&name), noise(round, 300_000)).unwrap();
        test.sync();
        let next = std::cell::Cell::new(100 * (round + 1));
        wait_until("the cache to let go", || {
            let seed = next.replace(next.get() + 1);
            fs::write(test.at("newest"), noise(seed, 300_000)).unwrap();
            test.sync();
            !holds(&test, round)
        });
        let workspace = format!("workspaces/{}", workspace(&test));
        other(&server, &test, "DELETE", &workspace, &Value::Null);
        if round == 2 {
            test.unmount();
            test.mount(&["--cache-limit", "0"]).ok();
        }
        // Not before it is asked for, with nothing else that would notice.
        assert!(fs::read(test.at(&name)).unwrap() == noise(round, 300_000), "{name}");
    }
    let expected = local_tree(&test.dir);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &expected);
}

#[track_caller]
fn assert_committed_after(server: &Scripted, test: &TestMount, act: impl FnOnce() -> Said) {
    act();
    assert_committed(server, test);
}

#[test]
fn a_workspace_that_others_made_anew_or_emptied_is_filled_again() {
    let (server, test) = with_base();
    let name = workspace(&test);
    for round in 0..2 {
        fs::write(test.at("ours"), noise(round, 200_000)).unwrap();
        fs::write(test.at("d/base.txt"), format!("changed {round}")).unwrap();
        test.sync();
        if round == 0 {
            // W3: made anew on the same commit, with something staged.
            other(&server, &test, "DELETE", &format!("workspaces/{name}"), &Value::Null);
            let anew = json!({"workspace_id": name, "name": name, "branch_name": "main"});
            other(&server, &test, "PUT", "workspaces", &anew);
            let destination = json!({"workspace_id": name, "path": "theirs"});
            let begin = json!({"hash": hash("precious"), "size": 8, "destination": destination});
            other(&server, &test, "POST", "versions/uploads", &begin);
        } else {
            other(&server, &test, "DELETE", &format!("workspaces/{name}/changes"), &json!(["ours", "d/base.txt", "d"]));
        }
        commit(&test).ok();
        let committed = server.committed(&test.repo);
        assert_eq!(committed["theirs"], b"precious");
        assert_eq!(committed["ours"], noise(round, 200_000));
        assert_eq!(committed["d/base.txt"], format!("changed {round}").into_bytes());
        assert_same(&committed, &local_tree(&test.dir));
    }
    test.unmount();
}

#[test]
fn content_that_was_pruned_while_it_was_staged_is_sent_again() {
    let (server, test) = with_base();
    // W17: exit 0, the branch lists the file, and its content is nowhere.
    fs::write(test.at("staged.bin"), vec![0; 100_000]).unwrap();
    fs::write(test.at("large.bin"), noise(3, 12_000_000)).unwrap();
    fs::write(test.at("small.txt"), "small").unwrap();
    test.sync();
    other(&server, &test, "POST", "prune", &json!({"dry_run": false}));
    commit(&test).ok();
    assert_committed(&server, &test);
    test.unmount();
}

#[test]
fn content_that_is_nowhere_any_more_is_named() {
    let server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--cache-limit", "0"]);
    for at in 0..3 {
        fs::write(test.at(format!("staged {at}")), noise(at, 300_000)).unwrap();
        test.sync();
    }
    // What comes last stays: which of them that is, is told by nobody.
    let next = std::cell::Cell::new(3);
    wait_until("the cache to let go", || {
        let at = next.replace(next.get() + 1);
        fs::write(test.at(format!("staged {at}")), noise(at, 300_000)).unwrap();
        test.sync();
        !holds(&test, 0)
    });
    other(&server, &test, "POST", "prune", &json!({"dry_run": false}));
    let said = commit(&test);
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.out.is_empty() && said.err.contains("staged 0") && said.err.contains("lost"), "{said:#?}");
    test.unmount();
}

/// Whether the state directory has a file with this content.
fn holds(test: &TestMount, seed: u64) -> bool {
    let wanted = noise(seed, 300_000);
    let mut dirs = vec![test.state.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() && fs::read(entry.path()).is_ok_and(|content| content == wanted) => {
                    return true;
                }
                _ => {}
            }
        }
    }
    false
}

#[test]
fn a_daemon_killed_while_a_commit_is_looked_at_is_followed_by_one_that_ends_it() {
    let (server, test) = with_base();
    for round in 0..2 {
        fs::write(test.at("README"), format!("new {round}")).unwrap();
        test.sync();
        let before = head(&server, &test);
        if round == 1 {
            server.arm("POST", "/merge/", Some(1), json!({"drop_from_commit": {"path": "d"}}));
        }
        server.arm("GET", "/dir/", None, json!({"latency": {"ms": 30_000}}));
        let dir = test.dir.to_str().unwrap();
        let mut child = test.spawn(["commit", dir, "-m", "a commit", "--author", "A", "--email", "a@x"]);
        wait_until("the commit", || head(&server, &test) != before);
        test.signal(Signal::KILL);
        assert_ne!(child.wait().unwrap().code(), Some(0));
        server.disarm();
        test.mount(&[]).ok();
        assert_committed(&server, &test);
        let found = message(&server, &test);
        let expected = ["a commit", "a commit (repair: 2 paths that the server left out)"][round];
        assert_eq!(found, expected);
    }
    test.unmount();
}
