//! Mounts that begin while their server is away, from a state of before: what they show, what they owe, and how they go on
//! when it is back.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::faults::owed;
use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, local_tree, wait_until};
use crate::scripted::Scripted;

const EIO: Option<i32> = Some(libc::EIO);

fn files(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, content)| ((*path).to_owned(), content.as_bytes().to_vec())).collect()
}

/// The listings that are kept, by the directories that they are of.
fn kept(test: &TestMount) -> Vec<(String, PathBuf)> {
    let states = fs::read_dir(&test.state).unwrap().flatten();
    let listings = states.flat_map(|state| fs::read_dir(state.path().join("cache/listings")).into_iter().flatten());
    let of = |file: io::Result<fs::DirEntry>| {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).ok()?;
        let header: Value = serde_json::from_slice(bytes.split(|byte| *byte == b'\n').next()?).ok()?;
        Some((header["path"].as_str()?.to_owned(), path))
    };
    listings.filter_map(of).collect()
}

/// A repository with these files, of which a mount has listed everything and read `read`, and which is not mounted any more.
fn seen_before(server: &Scripted, all: &Tree, read: &[&str], options: &[&str]) -> TestMount {
    let test = TestMount::committed_by(&server.url(), all);
    test.mount(options).ok();
    assert_eq!(crate::mounted::shell(&test.dir, "find . -type f | wc -l").trim(), all.len().to_string());
    for path in read {
        assert_eq!(fs::read(test.at(path)).unwrap(), all[*path]);
    }
    let dirs = all.keys().map(|path| path.rsplit_once('/').map_or("", |(dir, _)| dir));
    for dir in dirs {
        wait_until("its listing to be kept", || kept(&test).iter().any(|(of, _)| of == dir));
    }
    test.unmount();
    test
}

#[track_caller]
fn assert_eio<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().raw_os_error(), EIO);
}

#[track_caller]
fn mount_offline(test: &TestMount, options: &[&str]) -> Said {
    let said = test.mount(options).ok();
    assert!(said.err.contains("it is mounted offline: what was read here before can be read"), "{said:?}");
    assert!(said.err.contains("warning: cannot reach http://127.0.0.1:"), "{said:?}");
    assert!(test.status()["offline"] == true, "{:#}", test.status());
    said
}

/// Waits until the server was found and has all.
#[track_caller]
fn wait_online(test: &TestMount) -> Value {
    test.wait_status("the server to be found", |status| {
        status["offline"] == false && status["stalled"].is_null() && owed(status) == 0
    })
}

#[test]
fn a_mount_without_its_server_reads_what_is_here_owes_what_is_written_and_sends_it_when_it_is_back() {
    let mut server = Scripted::new();
    let all = files(&[("a", "one"), ("d/b", "two"), ("d/e/c", "three"), ("never/x", "four"), ("never/deep/y", "five")]);
    let test = seen_before(&server, &all, &["a", "d/e/c"], &[]);
    for (_, listing) in kept(&test).into_iter().filter(|(dir, _)| dir.starts_with("never")) {
        fs::remove_file(listing).unwrap();
    }
    let version = server.ask("GET", "/api/version", &Value::Null).1;
    server.stop();
    let said = mount_offline(&test, &[]);
    assert!(said.err.contains("(offline)"), "{said:?}");
    let status = test.status();
    assert_eq!((&status["phase"], &status["stalled_reason"]), (&json!("mounted"), &json!("unreachable")), "{status:#}");
    assert!(version.contains(status["server_version"].as_str().unwrap()), "{version}");
    let shown = test.oxenfs([OsStr::new("status"), test.dir.as_os_str()]).ok();
    assert!(shown.out.contains("  offline     cannot reach"), "{}", shown.out);
    // What is here.
    assert_eq!(fs::read(test.at("a")).unwrap(), all["a"]);
    assert_eq!(fs::read(test.at("d/e/c")).unwrap(), all["d/e/c"]);
    assert_eq!(fs::metadata(test.at("d/b")).unwrap().len(), 3);
    // What is not, at once: it would wait for two minutes in an outage.
    assert_eio(fs::read(test.at("d/b")));
    assert_eio(
        fs::OpenOptions::new().append(true).open(test.at("d/b")).and_then(|mut file| io::Write::write(&mut file, b"+")),
    );
    assert!(test.status()["unreadable"][0]["path"] == "d/b", "{:#}", test.status());
    assert_eio(fs::read_dir(test.at("never")));
    assert_eio(fs::metadata(test.at("never/x")));
    assert_eio(fs::write(test.at("never/new"), "new"));
    assert_eio(fs::create_dir(test.at("never/dir")));
    assert_eio(fs::rename(test.at("a"), test.at("never/a")));
    assert_eio(fs::remove_dir(test.at("never")));
    // Changes.
    fs::write(test.at("a"), "one, changed").unwrap();
    fs::write(test.at("d/b"), "two, written anew").unwrap();
    fs::create_dir(test.at("made")).unwrap();
    fs::write(test.at("made/new"), "new").unwrap();
    fs::rename(test.at("d/e/c"), test.at("made/c")).unwrap();
    assert!(owed(&test.status()) >= 4, "{:#}", test.status());
    for command in ["commit", "refresh"] {
        let options: &[&str] =
            if command == "commit" { &["-m", "m", "--author", "A", "--email", "a@b.c"] } else { &[] };
        let said = test.oxenfs([&[command, test.dir.to_str().unwrap()][..], options].concat());
        assert_ne!(said.exit, 0, "{said:?}");
        assert!(said.err.contains("it is offline: cannot reach") && said.err.contains("hint: "), "{said:?}");
    }
    server.start(None);
    let status = wait_online(&test);
    assert_eq!(fs::read(test.at("never/x")).unwrap(), all["never/x"], "{status:#}");
    fs::write(test.at("never/new"), "new").unwrap();
    let held = local_tree(&test.dir);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &held);
    let expected = files(&[
        ("a", "one, changed"),
        ("d/b", "two, written anew"),
        ("made/new", "new"),
        ("made/c", "three"),
        ("never/x", "four"),
        ("never/deep/y", "five"),
        ("never/new", "new"),
    ]);
    assert_same(&held, &expected);
}

#[test]
fn what_was_written_offline_outlives_a_kill_and_is_owed_by_the_next_mount_offline_or_not() {
    let mut server = Scripted::new();
    let all = files(&[("a", "one"), ("d/b", "two")]);
    let test = seen_before(&server, &all, &["a"], &[]);
    server.stop();
    mount_offline(&test, &[]);
    fs::write(test.at("first"), "1").unwrap();
    fs::remove_file(test.at("d/b")).unwrap();
    test.signal(Signal::KILL);
    test.detach();
    let said = mount_offline(&test, &[]);
    assert!(said.err.contains("2 changes of an earlier mount wait for the server"), "{said:?}");
    assert_eq!(fs::read(test.at("first")).unwrap(), b"1");
    assert!(!test.at("d/b").exists());
    fs::write(test.at("second"), "2").unwrap();
    let unmount = |option: &str| test.oxenfs(["unmount", test.dir.to_str().unwrap(), option]);
    let said = unmount("--detach");
    assert_eq!(said.exit, 3, "{said:?}");
    test.assert_gone();
    mount_offline(&test, &[]);
    server.start(None);
    wait_online(&test);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &files(&[("a", "one"), ("first", "1"), ("second", "2")]));
}

#[test]
fn a_state_that_never_met_the_server_and_a_server_that_refuses_are_refused() {
    let mut server = Scripted::with_token(Some("right"));
    let test = TestMount::unmounted(&server.url());
    server.stop();
    for _ in 0..2 {
        let said = test.mount(&["--create"]);
        assert_eq!(said.exit, 1, "{said:?}");
        assert!(said.err.contains("cannot reach http://127.0.0.1:"), "{said:?}");
        test.assert_gone();
    }
    let mut server = Scripted::new();
    let test = seen_before(&server, &files(&[("a", "one")]), &["a"], &[]);
    server.stop();
    server.start(Some("other"));
    let said = test.mount(&[]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("does not accept the credentials"), "{said:?}");
    test.assert_gone();
}

/// Commits these files, and removals, from a mount with a state of its own, as somebody else would.
#[track_caller]
fn commit_elsewhere(test: &TestMount, files: &[(&str, Option<&str>)]) {
    let (dir, state) = (test.beside("elsewhere"), test.beside("elsewhere-state"));
    test.mount_with(&state, &dir, &[]).ok();
    for (path, content) in files {
        match content {
            Some(content) => fs::write(dir.join(path), content).unwrap(),
            None => fs::remove_file(dir.join(path)).unwrap(),
        }
    }
    let dir = dir.to_str().unwrap();
    let commit = ["unmount", dir, "--commit", "-m", "elsewhere", "--author", "B", "--email", "b@x"];
    test.oxenfs_with(&state, commit).ok();
}

#[test]
fn what_others_committed_before_it_was_mounted_offline_is_merged_when_the_server_is_back() {
    let mut server = Scripted::new();
    let all = files(&[("a", "one"), ("d/b", "two"), ("d/c", "three"), ("d/gone", "four")]);
    let test = seen_before(&server, &all, &["a", "d/b", "d/c"], &[]);
    commit_elsewhere(
        &test,
        &[("a", Some("theirs")), ("d/c", Some("theirs")), ("d/new", Some("new")), ("d/gone", None)],
    );
    server.stop();
    mount_offline(&test, &[]);
    let open = fs::File::options().read(true).write(true).open(test.at("d/c")).unwrap();
    fs::write(test.at("a"), "ours").unwrap();
    fs::write(test.at("d/ours"), "ours").unwrap();
    assert_eq!(fs::read(test.at("d/c")).unwrap(), b"three");
    server.start(None);
    let status = test.wait_status("a conflict", |status| status["conflicts"][0]["path"] == "a");
    assert_eq!(status["offline"], false, "{status:#}");
    drop(open);
    wait_until("what others committed to show", || fs::read(test.at("d/c")).is_ok_and(|read| read == b"theirs"));
    assert_eq!(fs::read(test.at("d/new")).unwrap(), b"new");
    assert!(!test.at("d/gone").exists());
    assert_eq!(fs::read(test.at("a")).unwrap(), b"ours");
    test.oxenfs([OsStr::new("resolve"), test.at("a").as_os_str(), OsStr::new("--keep-both")]).ok();
    let held = local_tree(&test.dir);
    assert_eq!(held.len(), 6, "{held:?}");
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &held);
}

#[test]
fn what_was_staged_is_staged_again_where_the_workspace_is_gone_when_the_server_is_back() {
    let mut server = Scripted::new();
    let all = files(&[("a", "one"), ("d/b", "two")]);
    let test = seen_before(&server, &all, &["a"], &[]);
    test.mount(&[]).ok();
    fs::write(test.at("staged"), "staged").unwrap();
    fs::remove_file(test.at("d/b")).unwrap();
    test.sync();
    let workspace = test.status()["workspace"].as_str().unwrap().to_owned();
    test.unmount();
    let place = format!("/api/repos/{}/workspaces/{workspace}", test.repo);
    assert_eq!(server.ask("DELETE", &place, &Value::Null).0, 200);
    server.stop();
    mount_offline(&test, &[]);
    assert_eq!(fs::read(test.at("staged")).unwrap(), b"staged");
    assert_eq!(owed(&test.status()), 0);
    fs::write(test.at("written"), "written").unwrap();
    server.start(None);
    wait_online(&test);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &files(&[("a", "one"), ("staged", "staged"), ("written", "written")]));
}

#[test]
fn nothing_is_sent_to_another_server_nor_before_the_token_is_accepted() {
    let mut server = Scripted::new();
    let test = seen_before(&server, &files(&[("a", "one")]), &["a"], &[]);
    server.stop();
    mount_offline(&test, &[]);
    fs::write(test.at("b"), "two").unwrap();
    // Nothing of that name.
    let before = server.replace();
    let says = |what: &str, reason: &str, word: &str| {
        test.wait_status(what, |status| {
            status["offline"] == true
                && status["stalled_reason"] == reason
                && status["stalled"].as_str().is_some_and(|why| why.contains(word))
        })
    };
    says("the repository to be missed", "not_found", "does not exist");
    // Programs are not told that what they ask for is not there.
    assert_eq!(fs::read(test.at("a")).unwrap(), b"one");
    assert_eq!(
        server.ask("POST", "/api/repos", &json!({"namespace": "test", "name": test.repo.split_once('/').unwrap().1})).0,
        200
    );
    says("another to be found", "another_repository", &test.repo);
    let changing = |(method, path, _): &(String, String, u64)| {
        method != "GET" && path.contains(&test.repo) && !path.ends_with("/api/repos")
    };
    assert!(!server.log().iter().any(changing), "{:#?}", server.log());
    assert_eq!(owed(&test.status()), 1);
    // The one that is meant, which wants a token.
    server.put_back(before);
    server.stop();
    server.start(Some("secret"));
    says("the token to be missed", "unauthorized", "does not accept the credentials");
    assert_eq!(fs::read(test.at("b")).unwrap(), b"two");
    server.stop();
    server.start(None);
    wait_online(&test);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &files(&[("a", "one"), ("b", "two")]));
}

#[test]
fn a_revision_that_was_mounted_before_is_shown_without_its_server_as_it_was() {
    let mut server = Scripted::new();
    let all = files(&[("a", "one"), ("d/b", "two")]);
    let test = seen_before(&server, &all, &["a"], &["--read-only"]);
    commit_elsewhere(&test, &[("a", Some("theirs"))]);
    server.stop();
    mount_offline(&test, &["--read-only"]);
    assert_eq!(fs::read(test.at("a")).unwrap(), b"one");
    assert_eio(fs::read(test.at("d/b")));
    assert_eq!(fs::write(test.at("new"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    server.start(None);
    test.wait_status("the server to be found", |status| status["offline"] == false);
    assert_same(&local_tree(&test.dir), &all);
    test.unmount();
    test.mount(&["--read-only"]).ok();
    assert_eq!(fs::read(test.at("a")).unwrap(), b"theirs");
    test.unmount();
}

#[test]
fn what_was_committed_or_only_staged_by_the_mount_before_is_there_without_the_server() {
    let mut server = Scripted::new();
    // Of a repository that has nothing yet.
    let test = TestMount::through(&server.url());
    fs::create_dir_all(test.at("d/e")).unwrap();
    fs::write(test.at("d/e/a"), "one").unwrap();
    test.sync();
    test.unmount();
    server.stop();
    mount_offline(&test, &[]);
    let mut expected = files(&[("d/e/a", "one")]);
    assert_same(&local_tree(&test.dir), &expected);
    fs::write(test.at("b"), "two").unwrap();
    expected.insert("b".into(), b"two".to_vec());
    server.start(None);
    wait_online(&test);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &expected);
    // Of a commit of its own.
    server.stop();
    mount_offline(&test, &[]);
    assert_same(&local_tree(&test.dir), &expected);
    fs::write(test.at("d/e/c"), "three").unwrap();
    fs::remove_file(test.at("d/e/a")).unwrap();
    server.start(None);
    wait_online(&test);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &files(&[("b", "two"), ("d/e/c", "three")]));
}

/// Also where its patterns are on the server alone: they are read before anything is sent.
#[test]
fn what_is_ignored_stays_here_while_the_server_is_away_and_when_it_is_back() {
    for patterns_are_here in [true, false] {
        let mut server = Scripted::new();
        let mut all = files(&[(".oxenignore", "*.tmp\n"), ("a", "one")]);
        let test = seen_before(&server, &all, &[".oxenignore"], &[]);
        if !patterns_are_here {
            let cache = crate::damage::state_of(&test).join("cache");
            let content = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap());
            let content = content.filter(|entry| entry.file_name().to_str().unwrap().starts_with("boot-"));
            content.for_each(|entry| fs::remove_dir_all(entry.path()).unwrap());
        }
        server.stop();
        mount_offline(&test, &[]);
        fs::write(test.at("new.tmp"), "stays").unwrap();
        fs::write(test.at("new"), "travels").unwrap();
        server.start(None);
        let status = wait_online(&test);
        assert_eq!(status["counts"]["ignored"], json!({"files": 1, "bytes": 5}), "{status:#}");
        all.insert("new".into(), b"travels".to_vec());
        test.commit();
        assert_same(&server.committed(&test.repo), &all);
        assert_eq!(fs::read(test.at("new.tmp")).unwrap(), b"stays");
    }
}
