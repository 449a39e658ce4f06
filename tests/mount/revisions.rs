//! Mounts that only read: of a branch or a commit, of a server that refuses whatever may change something.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, local_tree};
use crate::scripted::Scripted;

/// Methods of requests that may change something.
const CHANGING: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];

fn below(test: &TestMount, path: &str) -> String {
    format!("/api/repos/{}/{path}", test.repo)
}

fn ask(server: &Scripted, path: &str) -> Value {
    let (status, body) = server.ask("GET", path, &Value::Null);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn head(server: &Scripted, test: &TestMount) -> String {
    ask(server, &below(test, "branches/main"))["branch"]["commit_id"].as_str().unwrap().to_owned()
}

fn workspaces(server: &Scripted, test: &TestMount) -> Vec<String> {
    let found = ask(server, &below(test, "workspaces"))["workspaces"].clone();
    found.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// Commits these files and what was there, and returns the commit.
fn commit(server: &Scripted, test: &TestMount, files: &[(&str, &str)]) -> String {
    for (path, content) in files {
        fs::create_dir_all(test.at(path).parent().unwrap()).unwrap();
        fs::write(test.at(path), content).unwrap();
    }
    test.commit();
    head(server, test)
}

fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, content)| ((*path).to_owned(), content.as_bytes().to_vec())).collect()
}

/// A repository with two commits and no workspace, on a server that from now on refuses whatever may change something.
fn refusing(server: &Scripted) -> (TestMount, String, String) {
    let test = TestMount::through(&server.url());
    let first = commit(server, &test, &[("a", "1"), ("dir/b", "2")]);
    let second = commit(server, &test, &[("a", "changed"), ("dir/deep/c", "3")]);
    test.unmount();
    test.forget();
    for id in workspaces(server, &test) {
        assert_eq!(server.ask("DELETE", &below(&test, &format!("workspaces/{id}")), &Value::Null).0, 200);
    }
    for method in CHANGING {
        server.arm(method, "/api/", None, json!({"status": {"code": 403}}));
    }
    (test, first, second)
}

/// How often each method came, but for what scripts the server.
fn methods(server: &Scripted) -> BTreeSet<String> {
    server.log().into_iter().filter(|(_, path, _)| path.starts_with("/api/")).map(|(method, ..)| method).collect()
}

#[test]
fn a_revision_is_mounted_with_requests_that_change_nothing_and_no_workspace() {
    let server = Scripted::new();
    let (test, first, second) = refusing(&server);
    let old = tree(&[("a", "1"), ("dir/b", "2")]);
    let new = tree(&[("a", "changed"), ("dir/b", "2"), ("dir/deep/c", "3")]);
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    let dir = test.dir.to_str().unwrap();
    for (option, revision, commit, expected) in [
        (&["--revision", &first][..], &first[..], &first, &old),
        (&["--revision", "main"], "main", &second, &new),
        (&["--read-only"], "main", &second, &new),
    ] {
        test.mount(option).ok();
        assert_same(&local_tree(&test.dir), expected);
        let refused = fs::write(test.at("a"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        assert_eq!(fs::create_dir(test.at("new")).unwrap_err().raw_os_error(), Some(libc::EROFS));
        let status = test.status();
        assert_eq!((&status["revision"], &status["base"]), (&json!(revision), &json!(commit)), "{status:#}");
        assert_eq!(status["workspace"], "");
        let shown = test.oxenfs(["status", dir]).ok().out;
        assert!(shown.contains(&format!("  shows       {revision}, commit {commit}, read-only\n")), "{shown}");
        assert!(!shown.contains("to send"), "{shown}");
        test.sync();
        test.oxenfs(["diff", dir]).ok();
        let who = ["-m", "m", "--author", "A", "--email", "a@b"];
        for command in [&["commit", dir][..], &["unmount", dir, "--commit"]] {
            let said = test.oxenfs([command, &who].concat());
            let cause = format!("cannot commit {dir}: it shows {revision}, read-only: there is nothing to commit\n");
            assert_eq!((said.exit, said.err.lines().next().unwrap()), (1, format!("error: {cause}").trim_end()));
        }
        let said = test.oxenfs(["unmount", dir]).ok();
        assert_eq!(said.err, format!("unmounted {dir}\n"));
        test.assert_gone();
    }
    // What others name it by.
    let name = format!("oxen://{}@{first}/dir", test.repo.replace('/', ":"));
    test.oxenfs(["mount", &name, dir, "--server", &server.url()]).ok();
    assert_same(&local_tree(&test.dir), &tree(&[("b", "2")]));
    test.unmount();
    let methods = methods(&server);
    assert!(methods.iter().all(|method| ["GET", "HEAD", "QUERY"].contains(&&**method)), "{methods:?}");
    assert_eq!(workspaces(&server, &test), [""; 0]);

    let said = test.mount(&["--revision", "nowhere"]);
    assert_eq!(said.exit, 1);
    let expected = format!("not found: branch or commit nowhere of {}\n", test.repo);
    assert!(said.err.contains(&expected), "{said:#?}");

    // The same state directory still serves who writes.
    server.disarm();
    test.mount(&[]).ok();
    fs::write(test.at("a"), "written").unwrap();
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &tree(&[("a", "written"), ("dir/b", "2"), ("dir/deep/c", "3")]));
    // A branch is shown as it is when it is mounted.
    test.mount(&["--read-only"]).ok();
    assert_eq!(fs::read(test.at("a")).unwrap(), b"written");
    test.unmount();
}

#[test]
fn a_mount_that_only_reads_tells_of_what_waits_to_be_sent_and_does_not_show() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    commit(&server, &test, &[("a", "1")]);
    server.arm("POST", "/workspaces/", None, json!({"status": {"code": 503}}));
    server.arm("POST", "/versions/", None, json!({"status": {"code": 503}}));
    fs::write(test.at("waits"), "2").unwrap();
    let dir = test.dir.to_str().unwrap();
    assert_eq!(test.oxenfs(["unmount", dir, "--detach"]).exit, 3);
    let said = test.mount(&["--read-only"]).ok();
    let warning = "warning: 1 change (1 B) is not on the server yet, and this does not show them\n";
    assert!(said.err.contains(warning), "{said:#?}");
    assert_same(&local_tree(&test.dir), &tree(&[("a", "1")]));
    test.unmount();
    server.disarm();
    let said = test.mount(&[]).ok();
    assert!(said.err.contains("1 change of an earlier mount is being sent"), "{said:#?}");
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &tree(&[("a", "1"), ("waits", "2")]));
}
