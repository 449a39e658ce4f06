//! Another server comes to the address, with a repository of the same name: nothing of the state goes there.

use std::fs;

use serde_json::{Value, json};

use crate::mounted::TestMount;
use crate::scripted::Scripted;

/// Makes a repository of the same name, with one file.
fn make_alike(server: &Scripted, test: &TestMount) {
    let (namespace, name) = test.repo.split_once('/').unwrap();
    let user = json!({"name": "other", "email": "o@x"});
    let file = json!({"path": "shared", "contents": "of another", "user": user});
    let new = json!({"namespace": namespace, "name": name, "files": [file]});
    let (status, said) = server.ask("POST", "/api/repos", &new);
    assert_eq!(status, 200, "{said}");
}

fn workspaces(server: &Scripted, test: &TestMount) -> Vec<Value> {
    let (_, said) = server.ask("GET", &format!("/api/repos/{}/workspaces", test.repo), &Value::Null);
    serde_json::from_str::<Value>(&said).unwrap()["workspaces"].as_array().unwrap().clone()
}

fn write(test: &TestMount, name: &str, content: &str) {
    fs::write(test.at(name), content).unwrap();
}

#[test]
fn a_mount_is_refused_where_another_repository_has_come() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    write(&test, "shared", "of this one");
    test.commit();
    write(&test, "staged", "not committed");
    test.unmount();
    let ours = server.replace();
    make_alike(&server, &test);
    let said = test.mount(&[]);
    assert_eq!(said.exit, 1, "{said:?}");
    for part in ["has another repository", "that one has the id ", "this one has the id ", "--state-dir DIR"] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    assert_eq!(workspaces(&server, &test), [Value::Null; 0]);
    // With a state of its own it can be mounted.
    let (state, dir) = (test.beside("other-state"), test.beside("other"));
    test.mount_with(&state, &dir, &[]).ok();
    assert_eq!(fs::read(dir.join("shared")).unwrap(), b"of another");
    test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
    // And once the first is back all is as it was.
    drop(server.put_back(ours));
    test.mount(&[]).ok();
    assert_eq!(fs::read(test.at("shared")).unwrap(), b"of this one");
    assert_eq!(fs::read(test.at("staged")).unwrap(), b"not committed");
    test.unmount_commit();
}

#[test]
fn the_queue_is_held_as_long_as_another_repository_is_there() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    write(&test, "shared", "of this one");
    test.commit();
    write(&test, "before", "staged before");
    test.sync();
    let ours = server.replace();
    make_alike(&server, &test);
    write(&test, "after", "written meanwhile");
    let held = |status: &Value| status["stalled_reason"] == "another_repository";
    let status = test.wait_status("the queue to be held", held);
    let why = status["stalled"].as_str().unwrap();
    assert!(why.contains("that one has the id ") && why.contains("this one has the id "), "{why}");
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["sync", dir, "--timeout", "1s"]);
    assert_eq!(said.exit, 3, "{said:?}");
    assert_eq!(workspaces(&server, &test), [Value::Null; 0]);
    let (_, theirs) = server.ask("GET", &format!("/api/repos/{}/file/main/shared", test.repo), &Value::Null);
    assert_eq!(theirs, "of another");
    drop(server.put_back(ours));
    test.sync();
    for name in ["before", "after"] {
        assert!(test.staged_content_on(&server.url(), name).is_some(), "{name}");
    }
    test.unmount_commit();
}

#[test]
fn where_a_branch_was_deleted_the_refusal_has_the_command_that_goes_on_with_another() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    write(&test, "file", "content");
    test.commit();
    test.unmount();
    let branches = format!("/api/repos/{}/branches", test.repo);
    assert_eq!(server.ask("POST", &branches, &json!({"new_name": "dev", "from_name": "main"})).0, 200);
    test.mount(&["--branch", "dev"]).ok();
    write(&test, "staged", "not committed");
    test.unmount();
    assert_eq!(server.ask("DELETE", &format!("{branches}/dev"), &Value::Null).0, 200);
    let said = test.mount(&["--branch", "dev"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("has no branch dev\n") && said.err.contains(" --branch main --workspace "), "{said:?}");
    let command = said.err.split("on another branch: oxenfs ").nth(1).unwrap();
    test.oxenfs(command.split_whitespace()).ok();
    assert_eq!(fs::read(test.at("staged")).unwrap(), b"not committed");
    test.unmount_commit();
    let (_, staged) = server.ask("GET", &format!("/api/repos/{}/file/main/staged", test.repo), &Value::Null);
    assert_eq!(staged, "not committed");
}
