//! Servers on a bad day, disks that are full, limits that are low: what the writer sees, what `status` says, and that
//! it all ends well by itself when the cause does.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::dataset::{full, noise};
use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, local_tree, wait_until};
use crate::scripted::Scripted;

/// How many changes the server does not have.
pub fn owed(status: &Value) -> u64 {
    let kinds = ["dirty", "hashing", "queued", "uploading", "failed", "removals"];
    kinds.iter().map(|kind| status["counts"][kind]["files"].as_u64().unwrap()).sum()
}

/// Some files of every lane, and what they hold.
fn write_some(test: &TestMount, mark: &str) -> Tree {
    let mut tree = Tree::new();
    for (at, size) in [0, 10, 5000, 70_000, 300_000, 11 << 20].into_iter().enumerate() {
        let (path, content) = (format!("{mark} {at}"), noise(at as u64 + mark.len() as u64 * 100, size));
        fs::write(test.at(&path), &content).unwrap();
        tree.insert(path, content);
    }
    tree
}

/// Everything is staged without help, and the commit holds just this.
#[track_caller]
pub fn assert_ends_well(test: &TestMount, server: &Scripted, expected: &Tree) {
    test.wait_status("everything to be staged", |status| owed(status) == 0 && status["stalled"].is_null());
    assert_same(&local_tree(&test.dir), expected);
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), expected);
}

#[test]
fn a_server_that_is_away_for_long_costs_time_and_nothing_else() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    let mut expected = write_some(&test, "before");
    test.commit();
    server.stop();
    // Reading, writing, renaming and removing go on.
    expected.extend(write_some(&test, "meanwhile"));
    fs::rename(test.at("before 2"), test.at("renamed")).unwrap();
    expected.insert("renamed".into(), expected["before 2"].clone());
    expected.remove("before 2");
    fs::remove_file(test.at("before 3")).unwrap();
    expected.remove("before 3");
    let file = fs::OpenOptions::new().append(true).open(test.at("before 1")).unwrap();
    (&file).write_all(b"more").unwrap();
    file.sync_all().unwrap();
    drop(file);
    expected.get_mut("before 1").unwrap().extend(b"more");
    assert_same(&local_tree(&test.dir), &expected);
    let status = test.wait_status("the outage to show", |status| status["stalled"].is_string());
    assert!(status["stalled"].as_str().unwrap().contains("cannot reach"), "{status:#}");
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap(), "--timeout", "1s"]);
    assert_eq!(said.exit, 3, "{said:#?}");
    assert!(test.is_mounted());
    server.start(None);
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn an_outage_soon_after_a_mount_keeps_nobody_from_writing_in_directories_that_nobody_looked_at() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    fs::create_dir_all(test.at("a/b")).unwrap();
    fs::write(test.at("a/b/old"), "old").unwrap();
    test.unmount_commit();
    test.forget();
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    test.mount(&[]).ok();
    wait_until("all to be listed", || server.log().iter().any(|(_, path, _)| path.contains("/a/b")));
    server.stop();
    wait_until("the listing to be taken in", || fs::write(test.at("a/b/new"), "new").is_ok());
    server.start(None);
    let expected = [("a/b/old", "old"), ("a/b/new", "new")].map(|(path, text)| (path.into(), text.into()));
    assert_ends_well(&test, &server, &expected.into());
}

/// Ticks a second in `/proc`, on every Linux that there is.
const CLOCK_TICKS: f64 = 100.0;

/// Processor time of a process so far.
fn cpu_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // User and system time are the 14th and 15th field; the second may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_secs_f64(ticks as f64 / CLOCK_TICKS)
}

#[test]
fn nothing_spins_while_the_server_is_away_and_much_is_owed() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.stop();
    let count = if full() { 10_000 } else { 2000 };
    for at in 0..count {
        fs::create_dir_all(test.at(format!("{}", at % 20))).unwrap();
        fs::write(test.at(format!("{}/{at}", at % 20)), at.to_string()).unwrap();
    }
    test.wait_status("the outage to show", |status| status["stalled"].is_string() && owed(status) == count);
    let (pid, began) = (test.pid(), Instant::now());
    let before = cpu_time(pid);
    let watched = Duration::from_secs(if full() { 30 } else { 10 });
    wait_until("the time to pass", || began.elapsed() >= watched);
    let used = cpu_time(pid) - before;
    assert!(used < watched / 10, "{used:?} of processor time in {:?}", began.elapsed());
    server.start(None);
    test.wait_status("everything to be staged", |status| owed(status) == 0);
    test.unmount();
}

#[test]
fn busy_and_failing_servers_are_asked_again() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.arm("", "/workspaces/", Some(3), json!({"status": {"code": 429, "retry_after": 1}}));
    server.arm("", "/versions/", Some(3), json!({"status": {"code": 503}}));
    server.arm("", "/workspaces/", Some(6), json!({"status": {"code": 500}}));
    let expected = write_some(&test, "busy");
    server.wait_answered("/workspaces/", 429);
    server.wait_answered("/workspaces/", 500);
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn connections_that_break_before_or_after_the_effect_double_and_lose_nothing() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let mut expected = write_some(&test, "first");
    test.commit();
    for method in ["POST", "PUT", "DELETE"] {
        server.arm(method, "/workspaces/", Some(4), json!("drop_after"));
        server.arm(method, "/workspaces/", Some(4), json!("drop_before"));
        server.arm(method, "/versions/", Some(3), json!("drop_after"));
    }
    expected.extend(write_some(&test, "second"));
    fs::write(test.at("first 2"), "changed").unwrap();
    expected.insert("first 2".into(), b"changed".to_vec());
    fs::remove_file(test.at("first 1")).unwrap();
    expected.remove("first 1");
    test.wait_status("everything to be staged", |status| owed(status) == 0);
    server.disarm();
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn what_an_answer_does_not_name_is_sent_again() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.arm("", "/workspaces/", Some(2), json!({"omit_paths": {"containing": "x"}}));
    let mut expected = Tree::new();
    for at in 0..30 {
        let path = format!("{} {at}", if at % 3 == 0 { "x" } else { "y" });
        fs::write(test.at(&path), &path).unwrap();
        expected.insert(path.clone(), path.into_bytes());
    }
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn a_body_that_is_cut_short_is_never_read_as_the_file() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let content = noise(1, 200_000);
    fs::write(test.at("file"), &content).unwrap();
    test.unmount_commit();
    test.forget();
    test.mount(&[]).ok();
    server.arm("GET", "/file/", None, json!({"truncate": {"bytes": 1000}}));
    server.arm("GET", "/chunk/", None, json!({"truncate": {"bytes": 1000}}));
    assert_eq!(fs::read(test.at("file")).unwrap_err().raw_os_error(), Some(libc::EIO));
    server.disarm();
    assert!(fs::read(test.at("file")).unwrap() == content);
    test.unmount();
}

/// Writes the token down as `oxen config --auth` does.
fn store_token(test: &TestMount, server: &Scripted, token: &str) {
    let host = server.url().replace("http://", "");
    let text = format!("[[host_configs]]\nhost = \"{host}\"\nauth_token = \"{token}\"\n");
    fs::write(test.beside("oxen").join("auth_config.toml"), text).unwrap();
}

#[test]
fn a_renewed_token_resumes_the_queue_without_a_remount() {
    let mut server = Scripted::with_token(Some("old"));
    let test = TestMount::unmounted(&server.url());
    store_token(&test, &server, "old");
    test.mount(&["--create"]).ok();
    server.stop();
    server.start(Some("new"));
    let expected = write_some(&test, "meanwhile");
    let status = test.wait_status("the refusal to show", |status| {
        status["stalled"].as_str().is_some_and(|why| why.contains("credentials"))
    });
    assert!(owed(&status) > 0, "{status:#}");
    store_token(&test, &server, "new");
    test.wait_status("everything to be staged", |status| owed(status) == 0);
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    server.stop();
    server.start(None);
    assert_same(&server.committed(&test.repo), &expected);
}

/// The path of the one workspace that a server has.
fn workspace(test: &TestMount, server: &Scripted) -> String {
    let workspaces = format!("/api/repos/{}/workspaces", test.repo);
    let listed: Value = serde_json::from_str(&server.ask("GET", &workspaces, &Value::Null).1).unwrap();
    format!("{workspaces}/{}", listed["workspaces"][0]["id"].as_str().unwrap())
}

#[test]
fn a_workspace_that_others_deleted_is_made_anew_by_the_next_mount() {
    for killed in [false, true] {
        let server = Scripted::new();
        let test = TestMount::through(&server.url());
        let mut expected = write_some(&test, "staged");
        test.sync();
        let workspace = workspace(&test, &server);
        if killed {
            expected.extend(write_some(&test, "later"));
            test.signal(rustix::process::Signal::KILL);
        } else {
            test.unmount();
        }
        assert_eq!(server.ask("DELETE", &workspace, &Value::Null).0, 200);
        test.mount(&[]).ok();
        assert_same(&local_tree(&test.dir), &expected);
        assert_ends_well(&test, &server, &expected);
    }
}

/// The server cannot stage by hash, and the cache let go of what was staged.
#[test]
fn what_went_with_a_workspace_and_is_not_here_is_not_called_safe() {
    let server = Scripted::speaking("0.58");
    let test = TestMount::through(&server.url());
    fs::write(test.at("gone"), "staged").unwrap();
    test.sync();
    let workspace = workspace(&test, &server);
    test.unmount();
    for state in fs::read_dir(&test.state).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let _ = fs::remove_dir_all(state.join("cache"));
    }
    test.mount(&[]).ok();
    assert_eq!(test.status()["counts"]["remote"]["files"], 1);
    assert_eq!(server.ask("DELETE", &workspace, &Value::Null).0, 200);
    // Or it would be had by its hash. No request of this dialect prunes; its command line does.
    server.arm("GET", "/branches", Some(1), json!({"meanwhile": "prune"}));
    assert_eq!(server.ask("GET", &format!("/api/repos/{}/branches", test.repo), &Value::Null).0, 200);
    fs::write(test.at("here"), "later").unwrap();
    let dir = test.dir.to_str().unwrap();
    let synced = test.oxenfs(["sync", dir]);
    assert!(synced.exit == 3 && synced.err.contains("gone"), "{synced:?}");
    let but = "but for the bytes of 1 file, which the server alone had";
    assert_eq!(test.status()["counts"]["absent"]["files"], 1);
    assert!(test.oxenfs(["status", dir]).ok().out.contains(but));
    let unmounted = test.oxenfs(["unmount", dir]);
    assert_eq!(unmounted.exit, 3, "{unmounted:?}");
    let detached = test.oxenfs(["unmount", dir, "--detach"]);
    assert_eq!(detached.exit, 3, "{detached:?}");
    assert!(detached.err.contains(but) && !detached.err.contains("safely"), "{detached:?}");
    let again = test.oxenfs(["unmount", dir]);
    assert!(again.exit == 3 && again.err.contains(but), "{again:?}");
    assert_eq!(test.status()["counts"]["absent"]["files"], 1, "also where no daemon runs");
}

#[test]
fn an_unmount_waits_a_moment_for_what_is_just_being_closed() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let expected = write_some(&test, "some");
    let open = fs::File::open(test.at(expected.keys().next().unwrap())).unwrap();
    std::thread::scope(|scope| {
        let unmounting = scope.spawn(|| test.unmount());
        test.wait_status("it to be unmounted", |status| status["phase"] != "mounted");
        drop(open);
        unmounting.join().unwrap();
    });
    test.mount(&[]).ok();
    assert_ends_well(&test, &server, &expected);
}

/// Somebody else commits what is staged.
fn commit_by_another(test: &TestMount, server: &Scripted) {
    let message = json!({"author": "B", "email": "b@example.org", "message": "by another"});
    assert_eq!(server.ask("POST", &format!("{}/merge/main", workspace(test, server)), &message).0, 200);
}

#[test]
fn a_workspace_that_others_commit_under_the_mount_keeps_what_is_written_later() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let mut expected = write_some(&test, "staged");
    test.sync();
    commit_by_another(&test, &server);
    assert_same(&server.committed(&test.repo), &expected);
    expected.extend(write_some(&test, "later"));
    fs::write(test.at("staged 2"), "changed").unwrap();
    expected.insert("staged 2".into(), b"changed".to_vec());
    let arguments = ["commit", test.dir.to_str().unwrap(), "-m", "m", "--author", "a", "--email", "e@example.org"];
    // What they committed was ours: the rest is committed over it.
    test.oxenfs(arguments).ok();
    assert_same(&local_tree(&test.dir), &expected);
    assert_same(&server.committed(&test.repo), &expected);
    test.unmount();
    test.mount(&[]).ok();
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn what_is_removed_after_others_committed_it_does_not_come_back() {
    for (settle, killed) in [("0", false), ("0", true), ("600", false), ("600", true)] {
        let server = Scripted::new();
        let test = TestMount::with(&server.url(), &["--settle", settle]);
        let mut expected = write_some(&test, "staged");
        for path in ["dir/gone", "dir/below/gone", "first/kept"] {
            fs::create_dir_all(test.at(path).parent().unwrap()).unwrap();
            fs::write(test.at(path), path).unwrap();
        }
        test.sync();
        commit_by_another(&test, &server);
        fs::remove_dir_all(test.at("dir")).unwrap();
        fs::rename(test.at("first"), test.at("second")).unwrap();
        expected.insert("second/kept".into(), b"first/kept".to_vec());
        for removed in ["staged 1", "staged 2"] {
            fs::remove_file(test.at(removed)).unwrap();
        }
        fs::rename(test.at("staged 3"), test.at("moved")).unwrap();
        // What was there is not known, and what comes to its place is.
        fs::write(test.at("staged 2"), "new").unwrap();
        expected.remove("staged 1");
        expected.insert("staged 2".into(), b"new".to_vec());
        let moved = expected.remove("staged 3").unwrap();
        expected.insert("moved".into(), moved);
        if settle == "0" {
            test.wait_status("everything to be staged", |status| owed(status) == 0);
        }
        if killed {
            test.signal(rustix::process::Signal::KILL);
        } else {
            test.unmount();
        }
        test.mount(&[]).ok();
        assert_same(&local_tree(&test.dir), &expected);
        assert!(!test.at("dir").exists() && !test.at("first").exists());
        assert_ends_well(&test, &server, &expected);
    }
}

#[test]
fn a_repository_that_is_gone_is_told_and_takes_nothing_with_it() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    assert_eq!(server.ask("DELETE", &format!("/api/repos/{}", test.repo), &Value::Null).0, 200);
    let expected = write_some(&test, "kept");
    test.wait_status("the loss to show", |status| status["stalled"].is_string());
    assert_same(&local_tree(&test.dir), &expected);
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap(), "--detach"]);
    assert_eq!(said.exit, 3, "{said:#?}");
    test.assert_gone();
    assert_eq!(owed(&test.status()), expected.len() as u64);
    // Made again, it gets what it is owed.
    test.mount(&["--create"]).ok();
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn a_full_spool_stops_writers_alone_and_empties_by_itself() {
    let mut server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    test.mount(&["--create", "--spool-limit", "1M"]).ok();
    let mut expected = Tree::from([("old".into(), noise(9, 300_000))]);
    fs::write(test.at("old"), &expected["old"]).unwrap();
    test.sync();
    server.stop();
    let mut refused = None;
    for at in 0..20 {
        let (path, content) = (format!("file {at}"), noise(at, 100_000));
        match fs::write(test.at(&path), &content) {
            Ok(()) => drop(expected.insert(path, content)),
            Err(error) => {
                refused = Some(error);
                // What was made of it before there was no room.
                fs::remove_file(test.at(&path)).ok();
                break;
            }
        }
    }
    assert_eq!(refused.expect("the limit is met").kind(), ErrorKind::StorageFull);
    assert!(expected.len() >= 9, "{} files fitted in", expected.len());
    // Reading and removing go on, and removing makes room.
    assert_same(&local_tree(&test.dir), &expected);
    fs::remove_file(test.at("file 0")).unwrap();
    expected.insert("again".into(), noise(50, 50_000));
    expected.remove("file 0");
    fs::write(test.at("again"), &expected["again"]).unwrap();
    server.start(None);
    // With the server comes the room.
    wait_until("room in the spool", || fs::write(test.at("after"), noise(60, 900_000)).is_ok());
    expected.insert("after".into(), noise(60, 900_000));
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn more_changes_than_open_files_are_committed_all_the_same() {
    let mut server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    test.mount_after("ulimit -n 128").ok();
    server.stop();
    let mut expected = Tree::new();
    for at in 0..600 {
        let path = format!("file {at}");
        fs::write(test.at(&path), &path).unwrap();
        expected.insert(path.clone(), path.into_bytes());
    }
    server.start(None);
    test.commit();
    assert_same(&server.committed(&test.repo), &expected);
    test.unmount();
}

#[test]
fn more_open_files_than_the_daemon_may_have_are_refused_by_name_and_hinder_nothing_else() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    test.mount_after("ulimit -n 96").ok();
    let mut expected = Tree::from([("before".into(), noise(1, 50_000))]);
    fs::write(test.at("before"), &expected["before"]).unwrap();
    let mut open = Vec::new();
    let refused = loop {
        assert!(open.len() < 96, "the limit was never met");
        match fs::File::create(test.at(format!("open {}", open.len()))) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
    };
    assert!([libc::EMFILE, libc::ENFILE].map(Some).contains(&refused.raw_os_error()), "{refused}");
    assert!(open.len() > 20, "only {} files could be open", open.len());
    // What is open works on, and so does all that opens nothing.
    for (at, file) in open.iter().enumerate() {
        let (path, content) = (format!("open {at}"), noise(at as u64, 3000));
        file.write_all_at(&content, 0).unwrap();
        expected.insert(path, content);
    }
    fs::create_dir(test.at("dir")).unwrap();
    fs::rename(test.at("open 3"), test.at("dir/renamed")).unwrap();
    expected.insert("dir/renamed".into(), expected["open 3"].clone());
    expected.remove("open 3");
    // With the descriptors comes the rest.
    drop(open);
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused_in_words() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let said = test.mount_with("/proc/oxenfs-state".as_ref(), &test.dir, &["--create"]);
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.starts_with("error: ") && said.err.contains("/proc/oxenfs-state"), "{said:#?}");
    assert!(!test.is_mounted());
}

#[test]
fn a_record_of_a_newer_version_is_refused_and_left_alone() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    fs::write(test.at("file"), "content").unwrap();
    test.unmount();
    let segments = |dir: &std::path::Path| {
        let found = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path().join("journal"));
        found.filter(|dir| dir.is_dir()).flat_map(|dir| fs::read_dir(dir).unwrap().flatten()).map(|file| file.path())
    };
    let segment = segments(&test.state).next().expect("a journal");
    fs::write(&segment, "{\"oxenfs_journal\":99}\nwho knows\n").unwrap();
    let said = test.mount(&[]);
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.contains("was written by a newer oxenfs (format 99"), "{said:#?}");
    assert!(!test.is_mounted());
    assert_eq!(fs::read_to_string(&segment).unwrap(), "{\"oxenfs_journal\":99}\nwho knows\n");
}

#[test]
fn a_file_that_is_written_to_while_it_is_uploaded_arrives_whole() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.arm("PUT", "/parts/", None, json!({"throttle": {"bytes_per_second": 20_000_000}}));
    let mut content = noise(5, 40 << 20);
    fs::write(test.at("large"), &content).unwrap();
    server.wait_answered("/parts/", 200);
    let file = fs::OpenOptions::new().write(true).open(test.at("large")).unwrap();
    file.write_all_at(b"the newer bytes", 1000).unwrap();
    drop(file);
    content[1000..1015].copy_from_slice(b"the newer bytes");
    server.disarm();
    assert_ends_well(&test, &server, &Tree::from([("large".into(), content)]));
}

#[test]
fn an_upload_goes_on_after_a_kill_at_the_part_where_it_was() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.arm("PUT", "/parts/", None, json!({"throttle": {"bytes_per_second": 5_000_000}}));
    let content = noise(6, 100 << 20);
    fs::write(test.at("large"), &content).unwrap();
    let parts = |server: &Scripted| -> Vec<String> {
        let done = server.log().into_iter().filter(|(_, path, status)| path.contains("/parts/") && *status == 200);
        done.map(|(_, path, _)| path).collect()
    };
    wait_until("some parts", || parts(&server).len() >= 3);
    test.signal(Signal::KILL);
    let before = parts(&server);
    server.disarm();
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    test.mount(&[]).ok();
    test.sync();
    let after = parts(&server);
    // Those of which the answer was on its way may come twice; a client has a few under way at once.
    let twice: Vec<&String> = after.iter().filter(|part| before.contains(part)).collect();
    assert!(!before.is_empty() && after.len() < 10, "{before:?}, then {after:?}");
    assert!(twice.len() < before.len(), "all were sent again: {twice:?}");
    assert_ends_well(&test, &server, &Tree::from([("large".into(), content)]));
}

#[test]
fn a_lazy_umount_under_an_open_file_loses_nothing() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let mut file = fs::File::create(test.at("open")).unwrap();
    file.write_all(b"before").unwrap();
    let status = Command::new("umount").arg("-l").arg(&test.dir).status().unwrap();
    assert!(status.success() && !test.is_mounted());
    file.write_all(b" and after").unwrap();
    drop(file);
    wait_until("the daemon to end", || test.daemons().is_empty());
    test.mount(&[]).ok();
    assert_ends_well(&test, &server, &Tree::from([("open".into(), b"before and after".to_vec())]));
}

#[test]
fn fsync_and_close_wait_for_the_server_where_they_were_asked_to() {
    for option in [["--fsync", "staged"].as_slice(), ["--write-through"].as_slice()] {
        let mut server = Scripted::new();
        let test = TestMount::unmounted(&server.url());
        test.mount(&[&["--create"], option].concat()).ok();
        // With the server there, what returned is staged.
        let write = |path: &str| {
            let mut file = fs::File::create(test.at(path)).unwrap();
            file.write_all(path.as_bytes()).unwrap();
            if option[0] == "--fsync" { file.sync_all() } else { close(file) }
        };
        write("first").unwrap();
        assert_eq!(owed(&test.status()), 0, "{option:?}");
        // Without it they wait, and nothing is lost.
        server.stop();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| write("second"));
            test.wait_status("the outage to show", |status| status["stalled"].is_string());
            assert!(!waiting.is_finished(), "{option:?}");
            assert_eq!(fs::read_to_string(test.at("second")).unwrap(), "second");
            server.start(None);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(owed(&test.status()), 0, "{option:?}");
        let expected = ["first", "second"].map(|path| (path.to_owned(), path.as_bytes().to_vec()));
        assert_ends_well(&test, &server, &expected.into());
    }
}

#[test]
fn a_portal_that_comes_and_goes_costs_nothing_and_is_named_meanwhile() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let mut expected = Tree::new();
    let portal = "<html><body>Please log in</body></html>";
    for (code, body, named) in [
        (302, Some(portal), "302"),
        (200, Some(portal), "unexpected answer"),
        (511, Some(portal), "511"),
        (400, None, "400"),
        (408, None, "408"),
        (409, None, "conflict"),
        (425, None, "425"),
        (426, None, "426"),
        (429, None, "busy"),
    ] {
        server.arm("", "/api/", None, json!({"status": {"code": code, "body": body}}));
        for at in 0..3 {
            let path = format!("{code} {at}");
            fs::write(test.at(&path), &path).unwrap();
            expected.insert(path.clone(), path.into_bytes());
        }
        let status = test.wait_status("the portal to show", |status| {
            status["stalled"].as_str().is_some_and(|why| why.contains(named))
        });
        assert_eq!(status["counts"]["failed"]["files"], 0, "{status:#}");
        server.disarm();
        // Without anybody's asking for it.
        test.wait_status("all to be staged", |status| owed(status) == 0 && status["stalled"].is_null());
    }
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn a_commit_that_the_server_finds_nothing_in_says_how_to_look() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    fs::write(test.at("file"), "content").unwrap();
    test.sync();
    let body = json!({"error": {"type": "no_changes", "title": "NoChanges"}, "status": "error"}).to_string();
    server.arm("POST", "/merge/", Some(1), json!({"status": {"code": 422, "body": body}}));
    let dir = test.dir.to_str().unwrap();
    let commit = ["commit", dir, "-m", "x", "--author", "A", "--email", "a@x"];
    let said = test.oxenfs(commit);
    assert_eq!((said.exit, said.out.as_str()), (1, ""), "{said:?}");
    assert!(said.err.contains("the server refused: 422 NoChanges"), "{said:?}");
    let hint = "\nhint: oxenfs diff names what it would hold; unmount and mount again, which compares that with the branch, and repeat the command\n";
    assert!(said.err.ends_with(hint), "{said:?}");
    test.oxenfs(commit).ok();
    assert_ends_well(&test, &server, &[("file".to_owned(), b"content".to_vec())].into());
}

#[test]
fn no_barrier_waits_out_the_quiet_period_of_a_path_that_it_did_not_name() {
    for option in ["write-through", "fsync=staged", "sync"] {
        let server = Scripted::new();
        let test = TestMount::unmounted(&server.url());
        // Longer than any test waits.
        let given: &[&str] = if option == "sync" { &[] } else { &["-o", option] };
        test.mount(&[&["--create", "--settle", "3600"], given].concat()).ok();
        let store = |path: &str, content: &str| {
            let mut file = fs::File::create(test.at(path)).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            file.sync_all().unwrap();
            close(file).unwrap();
            if option == "sync" {
                test.oxenfs(["sync".as_ref(), test.at(path).as_os_str()]).ok();
            }
        };
        let begun = Instant::now();
        // The usual way to replace a file: the temporary name is used again while the server knows the last file by it.
        for round in 0..10 {
            store("x.tmp", &format!("round {round}"));
            fs::rename(test.at("x.tmp"), test.at("x")).unwrap();
        }
        let rounds = begun.elapsed();
        // In a chain.
        for at in ["a", "b", "c"] {
            store(at, at);
        }
        fs::rename(test.at("c"), test.at("d")).unwrap();
        fs::rename(test.at("b"), test.at("c")).unwrap();
        fs::rename(test.at("a"), test.at("b")).unwrap();
        store("a", "new");
        // A file where a directory was, and the reverse.
        fs::create_dir(test.at("kind")).unwrap();
        store("kind/of", "1");
        store("other", "2");
        fs::remove_dir_all(test.at("kind")).unwrap();
        fs::remove_file(test.at("other")).unwrap();
        store("kind", "3");
        fs::create_dir(test.at("other")).unwrap();
        store("other/kind", "4");
        let took = begun.elapsed();
        // Each of these took an hour; a busy machine may take its time.
        assert!(took < Duration::from_secs(30), "{option}: {took:?}, of that {rounds:?} for ten rounds");
        let expected =
            [("x", "round 9"), ("a", "new"), ("b", "a"), ("c", "b"), ("d", "c"), ("kind", "3"), ("other/kind", "4")];
        let expected = expected.map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec()));
        test.sync();
        assert_ends_well(&test, &server, &expected.into());
    }
}

/// `close(2)`, whose error `drop` does not tell.
fn close(file: fs::File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the file gave its descriptor away.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn a_commit_that_is_cut_off_is_made_once_or_not_at_all() {
    for action in ["drop_before", "drop_after"] {
        let server = Scripted::new();
        let test = TestMount::through(&server.url());
        fs::write(test.at("base"), "base").unwrap();
        test.commit();
        let mut expected = write_some(&test, "committed");
        expected.insert("base".into(), b"base".to_vec());
        test.sync();
        let before = server.committed(&test.repo);
        server.arm("POST", "/merge/", Some(1), json!(action));
        let arguments = ["commit", test.dir.to_str().unwrap(), "-m", "m", "--author", "a", "--email", "e@example.org"];
        let said = test.oxenfs(arguments);
        let after = server.committed(&test.repo);
        assert_same(&after, if said.exit == 0 || action == "drop_after" { &expected } else { &before });
        server.disarm();
        // Said again, it does what is left to do.
        assert_eq!(test.oxenfs(arguments).exit, 0, "{action}: after {said:#?}");
        assert_same(&server.committed(&test.repo), &expected);
        assert_ends_well(&test, &server, &expected);
    }
}
