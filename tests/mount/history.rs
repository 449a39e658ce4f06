//! `oxenfs log`: what was committed, of a mount, of a path in it, and of a repository.

use std::fs;

use serde_json::{Value, json};

use crate::mounted::TestMount;
use crate::scripted::Scripted;
use crate::server;

fn commit(test: &TestMount, message: &str) -> String {
    let who = ["--author", "Ann Smith", "--email", "ann@example.com", "--json"];
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs([&["commit", dir, "-m", message], &who[..]].concat()).ok();
    let said: Value = serde_json::from_str(&said.out).unwrap();
    said["commit"].as_str().unwrap().to_owned()
}

fn ids(test: &TestMount, arguments: &[&str]) -> Vec<String> {
    let said = test.oxenfs([&["log", "--json"], arguments].concat()).ok();
    let listed: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    listed.iter().map(|commit| commit["commit"].as_str().unwrap().to_owned()).collect()
}

/// Commits `a/one`, then `two`, then `a/one` again; newest first.
fn three_commits(test: &TestMount) -> [String; 3] {
    fs::create_dir(test.at("a")).unwrap();
    fs::write(test.at("a/one"), "1").unwrap();
    let first = commit(test, "First\n\nwith more");
    fs::write(test.at("two"), "1").unwrap();
    let second = commit(test, "Second");
    fs::write(test.at("a/one"), "2").unwrap();
    [commit(test, "Third"), second, first]
}

#[test]
fn a_history_is_shown_of_a_branch_and_of_a_path_mounted_or_not() {
    let test = TestMount::new();
    let made = three_commits(&test);
    let dir = test.dir.to_str().unwrap().to_owned();
    let (one, a) = (format!("{dir}/a/one"), format!("{dir}/a"));
    let changed_one = [made[0].clone(), made[2].clone()];
    let look = || {
        assert_eq!(ids(&test, &[&dir])[..3], made);
        assert_eq!(ids(&test, &[&dir, "-n", "2"]), made[..2]);
        assert_eq!(ids(&test, &[&one]), changed_one);
        assert_eq!(ids(&test, &[&a]), changed_one);
        assert_eq!(ids(&test, &[&dir, "--branch", &made[1]])[..2], made[1..]);
        assert_eq!(ids(&test, &[&test.repo, "--server", server::url()])[..3], made);
        let (namespace, name) = test.repo.split_once('/').unwrap();
        let url = format!("oxen://{namespace}:{name}@main/a/one");
        assert_eq!(ids(&test, &[&url, "--server", server::url()]), changed_one);
    };
    look();
    let said = test.oxenfs(["log", &dir, "-n", "3"]).ok();
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[..2], [format!("commit {}", made[0]).as_str(), "Author: Ann Smith <ann@example.com>"]);
    assert!(lines[2].starts_with("Date:   20"), "{said:?}");
    assert_eq!(lines[3..6], ["", "    Third", ""]);
    assert!(said.out.ends_with("    First\n    \n    with more\n"), "{said:?}");
    // What is here alone has no history, and that is said.
    fs::write(test.at("new"), "1").unwrap();
    let said = test.oxenfs(["log", &format!("{dir}/new")]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("main has no new"), "{said:?}");
    let said = test.oxenfs(["log", &dir, "--branch", "no"]);
    assert!(said.exit == 1 && said.err.contains("has no branch and no commit no"), "{said:?}");
    // A removed file's is that of the commit which still had it.
    fs::remove_file(test.at("two")).unwrap();
    commit(&test, "Fourth");
    let two = format!("{dir}/two");
    assert_eq!(test.oxenfs(["log", &two]).exit, 1);
    assert_eq!(ids(&test, &[&two, "--branch", &made[0]]), made[1..2]);
    fs::write(test.at("two"), "1").unwrap();
    test.unmount_commit();
    let said = test.oxenfs(["log", &dir, "-n", "1"]).ok();
    assert_eq!(said.err, "1 commit shown; -n N shows more\n");
}

#[test]
fn a_mount_of_a_directory_or_of_a_commit_shows_its_own_history() {
    let test = TestMount::new();
    let made = three_commits(&test);
    let (state, dir) = (test.beside("other-state"), test.beside("other"));
    test.mount_with(&state, &dir, &["--subdir", "a"]).ok();
    let log = |path: &str| {
        let said = test.oxenfs_with(&state, ["log", "--json", path]).ok();
        let listed: Vec<Value> = serde_json::from_str(&said.out).unwrap();
        listed.iter().map(|commit| commit["commit"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let dir_text = dir.to_str().unwrap();
    let changed_one = [made[0].clone(), made[2].clone()];
    assert_eq!(log(dir_text), changed_one);
    assert_eq!(log(&format!("{dir_text}/one")), changed_one);
    test.oxenfs_with(&state, ["unmount", dir_text]).ok();
    let (state, dir) = (test.beside("third-state"), test.beside("third"));
    test.mount_with(&state, &dir, &["--revision", &made[1]]).ok();
    let said = test.oxenfs_with(&state, ["log", dir.to_str().unwrap(), "-n", "1"]).ok();
    assert!(said.out.starts_with(&format!("commit {}", made[1])), "{said:?}");
    test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
    test.unmount_commit();
}

#[test]
fn every_dialect_shows_its_history_or_says_that_it_cannot() {
    for (dialect, tells) in [("0.65", true), ("0.58", true), ("0.50", true), ("documented", false)] {
        let server = Scripted::speaking(dialect);
        let test = TestMount::through(&server.url());
        let made = three_commits(&test);
        let dir = test.dir.to_str().unwrap().to_owned();
        let one = format!("{dir}/a/one");
        if tells {
            assert_eq!(ids(&test, &[&dir, "-n", "3"]), made, "{dialect}");
            assert_eq!(ids(&test, &[&one]), [made[0].clone(), made[2].clone()], "{dialect}");
        } else {
            for path in [&dir, &one] {
                let said = test.oxenfs(["log", path]);
                assert_eq!(said.exit, 1, "{dialect}: {said:?}");
                assert!(said.err.contains("does not tell what was committed"), "{dialect}: {said:?}");
            }
        }
        let said = test.oxenfs(["log", &format!("{dir}/no")]);
        assert!(said.exit == 1 && said.err.contains("main has no no"), "{dialect}: {said:?}");
        test.unmount();
    }
}

#[test]
fn more_commits_than_a_page_has_are_all_shown_and_a_page_that_comes_again_ends_it() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let dir = test.dir.to_str().unwrap().to_owned();
    let answer = |place: &str, numbers: std::ops::Range<usize>| {
        let commits: Vec<Value> = numbers.map(|number| json!({"id": format!("{number:032x}")})).collect();
        let body = json!({"commits": commits, "total_pages": 1_000_000}).to_string();
        server.arm("GET", place, None, json!({"status": {"code": 200, "body": body}}));
    };
    for page in 0..3 {
        answer(&format!("?page={}&", page + 1), page * 1000..(page + 1) * 1000);
    }
    let expected: Vec<String> = (0..2500).map(|number| format!("{number:032x}")).collect();
    assert_eq!(ids(&test, &[&dir, "-n", "2500"]), expected);
    let asked = || server.log().iter().filter(|(_, path, _)| path.contains("/commits/history/")).count();
    assert_eq!(asked(), 3);
    // Pages that never end, all alike.
    server.disarm();
    answer("/commits/history/", 0..1000);
    assert_eq!(ids(&test, &[&dir, "-n", "2500"]), expected[..1000]);
    assert_eq!(asked(), 5);
    server.disarm();
    test.unmount();
}
