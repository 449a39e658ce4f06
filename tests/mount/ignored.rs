//! What patterns keep here: `.oxenignore`, `--ignore`, and what is said of it.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, shell, wait_until};
use crate::server;

/// What is to be committed.
fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
}

fn xattr(test: &TestMount, path: &str, name: &str) -> String {
    let mut value = [0; 256];
    let read = rustix::fs::getxattr(test.at(path), format!("user.oxenfs.{name}"), &mut value).unwrap();
    String::from_utf8_lossy(&value[..read]).into_owned()
}

fn ignored(status: &Value) -> (u64, u64) {
    let tally = &status["counts"]["ignored"];
    (tally["files"].as_u64().unwrap(), tally["bytes"].as_u64().unwrap())
}

#[test]
fn what_matches_stays_here_and_the_rest_is_committed() {
    let test = TestMount::new();
    shell(&test.dir, "printf '*.tmp\\nscratch/\\n!kept.tmp\\n' > .oxenignore; mkdir -p d scratch/deep");
    shell(&test.dir, "echo a > a; echo b > d/b.tmp; echo c > scratch/deep/c; echo d > kept.tmp; ln a d/a.tmp");
    let said = commits(&test, &["commit", test.dir.to_str().unwrap(), "-m", "one", "--json"]);
    let committed: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&committed["ignored_files"], &committed["ignored_bytes"]), (&json!(3), &json!(6)));
    assert!(said.err.contains("3 files (6 B) are ignored, and on this disk alone"), "{}", said.err);
    let expected = tree(&[(".oxenignore", "*.tmp\nscratch/\n!kept.tmp\n"), ("a", "a\n"), ("kept.tmp", "d\n")]);
    assert_same(&test.committed(), &expected);
    assert_eq!(xattr(&test, "d/b.tmp", "state"), "local");
    assert_eq!(xattr(&test, "d/b.tmp", "error"), "ignored by .oxenignore, line 1: *.tmp");
    let status = test.status();
    assert_eq!(ignored(&status), (3, 6));
    let local = status["local"].as_array().unwrap();
    let why = |path: &str| local.iter().find(|one| one["path"] == path).map(|one| one["reason"].clone());
    assert_eq!(why("scratch/deep/c"), Some("ignored by .oxenignore, line 2: scratch/".into()));
    assert_eq!(why("d/a.tmp"), Some("ignored by .oxenignore, line 1: *.tmp".into()));
    // All that is new now is ignored.
    shell(&test.dir, "echo more > more.tmp; rm d/a.tmp");
    let said = commits(&test, &["commit", test.dir.to_str().unwrap(), "-m", "none"]);
    let warning = "warning: all that is new is ignored: 3 files (9 B) are ignored, and on this disk alone";
    assert!(said.err.contains(warning), "{}", said.err);
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap()]).ok();
    assert!(said.err.contains("all that is not ignored is on the server"), "{}", said.err);
    assert!(said.err.contains(warning), "{}", said.err);
    test.mount(&[]).ok();
    assert_eq!(fs::read_to_string(test.at("more.tmp")).unwrap(), "more\n");
    test.unmount();
}

#[test]
fn another_ignore_file_unstages_what_it_matches_and_stages_what_it_does_not() {
    let test = TestMount::new();
    shell(&test.dir, "echo a > a.log; mkdir d; echo b > d/b.tmp; echo c > c");
    test.sync();
    assert_eq!(sorted(test.staged_paths()), ["a.log", "c", "d/b.tmp"]);
    shell(&test.dir, "echo '*.tmp' > .oxenignore");
    test.sync();
    assert_eq!(sorted(test.staged_paths()), [".oxenignore", "a.log", "c"]);
    assert_eq!(fs::read_to_string(test.at("d/b.tmp")).unwrap(), "b\n");
    // By a rename over it.
    shell(&test.dir, "echo '*.log' > rules; mv rules .oxenignore");
    test.sync();
    assert_eq!(sorted(test.staged_paths()), [".oxenignore", "c", "d/b.tmp"]);
    // Without a barrier, and by its removal.
    fs::remove_file(test.at(".oxenignore")).unwrap();
    wait_until("what is free again to be staged", || sorted(test.staged_paths()) == ["a.log", "c", "d/b.tmp"]);
    // Renamed to a name that matches, and to one that does not.
    shell(&test.dir, "echo '*.tmp' > .oxenignore; mv c c.tmp; mv d/b.tmp d/b");
    test.sync();
    assert_eq!(sorted(test.staged_paths()), [".oxenignore", "a.log", "d/b"]);
    assert_eq!(fs::read_to_string(test.at("c.tmp")).unwrap(), "c\n");
    test.unmount_commit();
    assert_same(&test.committed(), &tree(&[(".oxenignore", "*.tmp\n"), ("a.log", "a\n"), ("d/b", "b\n")]));
}

/// `oxenfs COMMAND DIR ...` with who commits.
#[track_caller]
fn commits(test: &TestMount, arguments: &[&str]) -> Said {
    let who = ["--author", "A. Tester", "--email", "a@example.org"];
    test.oxenfs(arguments.iter().chain(&who)).ok()
}

fn sorted(mut paths: Vec<String>) -> Vec<String> {
    paths.sort();
    paths
}

#[test]
fn what_is_ignored_survives_a_kill_and_a_remount_and_blocks_nothing() {
    let test = TestMount::new();
    shell(&test.dir, "echo '*.tmp' > .oxenignore; echo a > a.tmp; echo b > b");
    test.sync();
    // What was staged and renamed to such a name has its bytes here before the server has them no longer.
    shell(&test.dir, "mv b b.tmp; echo c > c");
    test.sync();
    test.signal(Signal::KILL);
    let known = ["a.tmp", "b.tmp"];
    let status = test.status();
    assert_eq!(ignored(&status), (2, 4), "without a daemon");
    test.mount(&[]).ok();
    for (path, text) in known.iter().zip(["a\n", "b\n"]) {
        assert_eq!(fs::read_to_string(test.at(path)).unwrap(), text);
        assert_eq!(xattr(&test, path, "state"), "local");
    }
    test.commit();
    assert_same(&test.committed(), &tree(&[(".oxenignore", "*.tmp\n"), ("c", "c\n")]));
    // With the base's file alone telling.
    test.signal(Signal::KILL);
    test.mount(&[]).ok();
    assert_eq!(ignored(&test.status()), (2, 4));
    shell(&test.dir, "echo more >> a.tmp; rm b.tmp; : > .oxenignore");
    test.unmount_commit();
    assert_same(&test.committed(), &tree(&[(".oxenignore", ""), ("a.tmp", "a\nmore\n"), ("c", "c\n")]));
}

#[test]
fn what_the_branch_has_is_never_ignored() {
    let test = TestMount::new();
    shell(&test.dir, "mkdir d; echo a > a.tmp; echo b > d/b.tmp; echo c > d/c.tmp");
    test.unmount_commit();
    test.forget();
    test.mount(&[]).ok();
    shell(&test.dir, "echo '*.tmp' > .oxenignore; echo changed > a.tmp; echo new > d/new.tmp; mv d/b.tmp d/moved.tmp");
    // As an editor saves.
    shell(&test.dir, "echo saved > d/c.tmp~.tmp; mv d/c.tmp~.tmp d/c.tmp");
    test.commit();
    let expected = tree(&[(".oxenignore", "*.tmp\n"), ("a.tmp", "changed\n"), ("d/c.tmp", "saved\n")]);
    assert_same(&test.committed(), &expected);
    assert_eq!(fs::read_to_string(test.at("d/moved.tmp")).unwrap(), "b\n");
    test.unmount();
    test.mount(&[]).ok();
    assert_eq!(fs::read_to_string(test.at("d/moved.tmp")).unwrap(), "b\n", "from the commit that has it");
    assert_eq!(ignored(&test.status()), (2, 6));
    shell(&test.dir, "mv d/moved.tmp d/moved; rm -r d/new.tmp");
    test.unmount_commit();
    let moved = tree(&[("d/moved", "b\n")]);
    assert_same(&test.committed(), &expected.into_iter().chain(moved).collect());
}

#[test]
fn patterns_of_the_mount_hold_beside_the_files_and_check_ignore_tells_which() {
    let test = TestMount::with(server::url(), &["--ignore", "*.bin", "-o", "ignore=/top/,ignore=*.obj"]);
    shell(&test.dir, "printf '*.tmp\\n[z-a]\\n!free.bin\\n' > .oxenignore; mkdir top; echo a > a.bin; echo b > top/b");
    shell(&test.dir, "echo c > c.obj; echo d > d.tmp; echo e > e");
    test.sync();
    assert_eq!(sorted(test.staged_paths()), [".oxenignore", "e"]);
    let check = |arguments: &[&str]| {
        let paths = arguments.iter().map(|argument| match argument.strip_prefix('@') {
            Some(path) => test.dir.join(path).into_os_string(),
            None => (*argument).into(),
        });
        test.oxenfs([std::ffi::OsString::from("check-ignore")].into_iter().chain(paths))
    };
    let at = |path: &str| test.at(path).display().to_string();
    let said = check(&["@a.bin", "@e", "@d.tmp"]).ok();
    assert_eq!(said.out, format!("{}\n{}\n", at("a.bin"), at("d.tmp")));
    let said = check(&["-v", "@top", "@none/x.tmp", "@.oxenignore"]).ok();
    assert_eq!(said.out, format!("--ignore::/top/  {}\n.oxenignore:1:*.tmp  {}\n", at("top"), at("none/x.tmp")));
    let none = check(&["@e"]);
    assert_eq!((none.exit, none.out.as_str(), none.err.as_str()), (1, "", ""));
    let said = check(&["--json", "@d.tmp", "@e"]).ok();
    let by = json!({"source": ".oxenignore", "line": 1, "pattern": "*.tmp"});
    let expected = json!([{"path": at("d.tmp"), "by": by}, {"path": at("e"), "by": null}]);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap(), expected);
    let status = test.status();
    assert_eq!(status["bad_patterns"][0]["line"], 2, "{}", status["bad_patterns"]);
    let shown = test.oxenfs(["status", test.dir.to_str().unwrap()]).ok();
    assert!(shown.out.contains(".oxenignore, line 2: [z-a]: "), "{}", shown.out);
    test.unmount();
    // Those of the command hold for its mount.
    test.mount(&["--ignore", "*.obj"]).ok();
    test.unmount_commit();
    let patterns = "*.tmp\n[z-a]\n!free.bin\n";
    assert_same(
        &test.committed(),
        &tree(&[(".oxenignore", patterns), ("a.bin", "a\n"), ("top/b", "b\n"), ("e", "e\n")]),
    );
    let bad = TestMount::unmounted(server::url()).mount(&["--ignore", "[z-a]"]);
    assert_eq!(bad.exit, 2, "{bad:?}");
    assert!(bad.err.contains("--ignore \"[z-a]\" is not a pattern as of .gitignore"), "{}", bad.err);
}

#[test]
fn what_others_commit_brings_their_patterns_and_takes_nothing_that_is_here_alone() {
    let test = TestMount::new();
    shell(&test.dir, "mkdir d; echo '*.tmp' > .oxenignore; echo base > d/base");
    test.commit();
    shell(&test.dir, "echo ours > d/ours.tmp; echo same > same.tmp; echo log > a.log");
    test.sync();
    let other = test.beside("other");
    let state = test.beside("other-state");
    test.mount_with(&state, &other, &["--ignore", "!*.tmp", "--workspace", "other"]).ok();
    shell(&other, "rm -r d; echo '*.log' > .oxenignore; echo theirs > theirs.tmp; echo other > same.tmp");
    let who = ["--author", "B. Tester", "--email", "b@example.org"];
    let unmount = ["unmount", other.to_str().unwrap(), "--commit", "-m", "others"];
    test.oxenfs_with(&state, unmount.iter().chain(&who)).ok();
    test.oxenfs(["refresh", test.dir.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(test.at("d/ours.tmp")).unwrap(), "ours\n", "the directory stays with it");
    let status = test.wait_status("their patterns to hold", |status| ignored(status) == (1, 4));
    // What both have is in conflict, and is not lost.
    assert_eq!(status["conflicts"][0]["path"], "same.tmp");
    assert_eq!(fs::read_to_string(test.at("same.tmp")).unwrap(), "same\n");
    let said = test.oxenfs(["resolve", test.at("same.tmp").to_str().unwrap(), "--ours"]);
    said.ok();
    test.unmount_commit();
    let expected =
        [(".oxenignore", "*.log\n"), ("d/ours.tmp", "ours\n"), ("same.tmp", "same\n"), ("theirs.tmp", "theirs\n")];
    assert_same(&test.committed(), &tree(&expected));
}

#[test]
fn a_restore_leaves_what_is_ignored() {
    let test = TestMount::new();
    shell(&test.dir, "mkdir d; echo '*.tmp' > .oxenignore; echo base > d/base");
    test.commit();
    shell(&test.dir, "echo new > d/new; echo kept > d/kept.tmp; mkdir e; echo e > e/e; echo kept > e/kept.tmp");
    shell(&test.dir, "echo changed > d/base");
    test.oxenfs(["restore", "--yes", test.dir.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(test.at("d/base")).unwrap(), "base\n");
    assert!(!test.at("d/new").exists() && !test.at("e/e").exists());
    assert_eq!(fs::read_to_string(test.at("d/kept.tmp")).unwrap(), "kept\n");
    assert_eq!(fs::read_to_string(test.at("e/kept.tmp")).unwrap(), "kept\n");
    test.unmount();
}

#[test]
fn what_is_sent_without_the_mount_leaves_out_what_it_ignored() {
    let test = TestMount::with(server::url(), &["--ignore", "*.bin", "--settle", "600"]);
    shell(&test.dir, "echo a > a.bin; echo b > b");
    test.signal(Signal::KILL);
    test.oxenfs(["send"]).ok();
    assert_eq!(test.staged_paths(), ["b"]);
    test.mount(&[]).ok();
    test.unmount_commit();
    assert_same(&test.committed(), &tree(&[("a.bin", "a\n"), ("b", "b\n")]));
}

#[test]
fn of_a_subdirectory_the_branchs_patterns_hold() {
    let test = TestMount::new();
    shell(&test.dir, "mkdir sub; echo 'sub/*.tmp' > .oxenignore; echo a > sub/a");
    test.unmount_commit();
    test.forget();
    test.mount(&["--subdir", "sub"]).ok();
    shell(&test.dir, "echo b > b.tmp; echo c > c");
    test.unmount_commit();
    let expected = [(".oxenignore", "sub/*.tmp\n"), ("sub/a", "a\n"), ("sub/c", "c\n")];
    assert_same(&test.committed(), &tree(&expected));
}

#[test]
fn who_waits_for_what_is_ignored_is_told_that_it_stays() {
    let test = TestMount::with(server::url(), &["--fsync", "staged", "--write-through", "--ignore", "*.bin"]);
    shell(&test.dir, "mkdir d; echo '*.tmp' > .oxenignore; echo a > d/a.tmp; echo b > d/b; echo c > d/c.bin");
    fs::File::open(test.at("d/a.tmp")).unwrap().sync_all().unwrap();
    let said = test.oxenfs(["sync", test.at("d/a.tmp").to_str().unwrap()]).ok();
    assert!(said.err.contains("1 file (2 B) is ignored, and on this disk alone"), "{}", said.err);
    let said = test.oxenfs(["sync", "--json", test.at("d").to_str().unwrap()]).ok();
    let synced: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&synced["ignored_files"], &synced["ignored_bytes"]), (&json!(2), &json!(4)));
    let said = test.oxenfs(["sync", test.at("d/b").to_str().unwrap()]).ok();
    assert!(!said.err.contains("ignored"), "{}", said.err);
    assert_eq!(sorted(test.staged_paths()), [".oxenignore", "d/b"]);
    test.unmount();
}
