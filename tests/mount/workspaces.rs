//! `oxenfs workspaces` and `oxenfs branches`: what there is, and what is deleted.

use std::fs;

use serde_json::Value;

use crate::mounted::{Said, TestMount};
use crate::server;

fn workspaces(test: &TestMount, arguments: &[&str]) -> Said {
    test.oxenfs([&["workspaces"], arguments, &["--server", server::url()]].concat())
}

fn listed(test: &TestMount) -> Vec<Value> {
    serde_json::from_str(&workspaces(test, &[&test.repo, "--json"]).ok().out).unwrap()
}

fn find<'a>(listed: &'a [Value], name: &str) -> &'a Value {
    listed.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {listed:#?}"))
}

#[test]
fn workspaces_are_listed_with_what_is_staged_own_first_and_deleted_by_name() {
    let test = TestMount::new();
    fs::write(test.at("file"), "content").unwrap();
    test.commit();
    fs::write(test.at("staged"), "content").unwrap();
    test.sync();
    let own = test.status()["workspace"].as_str().unwrap().to_owned();
    let (state, dir) = (test.beside("other-state"), test.beside("a-team"));
    test.mount_with(&state, &dir, &["--workspace", "a-team"]).ok();
    fs::write(dir.join("theirs"), "content").unwrap();
    test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
    let found = listed(&test);
    assert_eq!(found[0]["name"], own.as_str(), "own first: {found:#?}");
    let mine = find(&found, &own);
    assert_eq!((&mine["own"], &mine["staged"]["added"]), (&true.into(), &1.into()), "{mine:#}");
    assert_eq!(mine["mounted"][0], test.dir.to_str().unwrap());
    let team = find(&found, "a-team");
    assert_eq!((&team["own"], &team["staged"]["added"]), (&false.into(), &1.into()), "{team:#}");
    let said = workspaces(&test, &[&test.repo]).ok();
    assert!(said.out.lines().next().unwrap().contains("1 change staged"), "{said:?}");
    // One that is mounted stays, whatever is said.
    let said = workspaces(&test, &["delete", &test.repo, &own, "--yes", "--force"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("hint: oxenfs unmount "), "{said:?}");
    // One with something staged is not deleted by the way, and nobody can be asked here.
    let said = workspaces(&test, &["delete", &test.repo, "a-team", "--yes"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("1 change staged in it, and not committed"), "{said:?}");
    let said = workspaces(&test, &["delete", &test.repo, "a-team", "--force"]);
    assert_eq!(said.exit, 2, "{said:?}");
    let said = workspaces(&test, &["delete", &test.repo, "a-team", "--force", "--yes", "--json"]).ok();
    assert_eq!(said.out, "{\"deleted\":[\"a-team\"]}\n");
    assert_eq!(listed(&test).len(), 1);
    assert_eq!(workspaces(&test, &["delete", &test.repo, "a-team", "--yes"]).exit, 1);
    test.unmount_commit();
}

#[test]
fn own_workspaces_that_are_empty_and_old_are_pruned() {
    let test = TestMount::new();
    fs::write(test.at("file"), "content").unwrap();
    test.commit();
    let (state, dir) = (test.beside("other-state"), test.beside("other"));
    test.mount_with(&state, &dir, &["--workspace", "team"]).ok();
    test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
    let own = test.status()["workspace"].as_str().unwrap().to_owned();
    let prune = |older: &str, yes: &[&str]| {
        workspaces(&test, &[&["prune", &test.repo, "--older", older, "--json"], yes].concat())
    };
    // Mounted, or too young, or another's: none goes.
    assert_eq!(prune("0s", &["--yes"]).ok().out, "{\"deleted\":[]}\n");
    test.unmount();
    assert_eq!(prune("30d", &["--yes"]).ok().out, "{\"deleted\":[]}\n");
    assert_eq!(prune("0s", &[]).exit, 2);
    assert_eq!(prune("0s", &["--yes"]).ok().out, format!("{{\"deleted\":[\"{own}\"]}}\n"));
    let left: Vec<String> = listed(&test).iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(left, ["team"]);
    // Mounting makes it again.
    test.mount(&[]).ok();
    assert_eq!(fs::read(test.at("file")).unwrap(), b"content");
    test.unmount_commit();
}

#[test]
fn branches_are_listed_with_their_age() {
    let test = TestMount::new();
    fs::write(test.at("file"), "content").unwrap();
    test.commit();
    let branches = ["branches", &test.repo, "--server", server::url()];
    let said = test.oxenfs([&branches[..], &["--json"]].concat()).ok();
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(found[0]["name"], "main");
    assert!(found[0]["modified"].is_string(), "{said:?}");
    let said = test.oxenfs(branches).ok();
    assert!(said.out.starts_with("main  ") && said.out.trim_end().ends_with(" s"), "{said:?}");
    test.unmount_commit();
}
