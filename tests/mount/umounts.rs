//! A plain `umount`: its helper waits for the drain, not for long, and unmounts whatever becomes of that.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::dataset::noise;
use crate::faults::owed;
use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount};
use crate::scripted::Scripted;

/// What nothing takes that does not wait for a server, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(4);
/// What a server that does not answer is waited for, and as much again.
const BOUND: Duration = Duration::from_secs(11);

fn write_some(test: &TestMount) -> Tree {
    let mut tree = Tree::new();
    for at in 0..50 {
        tree.insert(format!("file {at}"), noise(at, 2000 * at as usize));
    }
    copy_in(test, &tree);
    tree
}

/// Puts files on the mount as who mounted it: nobody else may.
fn copy_in(test: &TestMount, tree: &Tree) {
    let source = test.beside("source");
    let mut copying = Command::new("cp");
    copying.arg("--");
    for (path, content) in tree {
        fs::write(source.join(path), content).unwrap();
        copying.arg(source.join(path));
    }
    copying.arg(&test.dir);
    test.as_its_user(&mut copying);
    assert!(copying.status().unwrap().success());
}

/// Everything comes to the server, and into its branch.
fn assert_comes(test: &TestMount, server: &Scripted, expected: &Tree) {
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), expected);
}

/// Calls the helper by the name that `umount(8)` calls it by.
fn helper(test: &TestMount, options: &[&str]) -> (Said, Duration) {
    let link = test.beside("sbin").join("umount.fuse.oxenfs");
    let _ = std::os::unix::fs::symlink(test.binary(), &link);
    let begun = Instant::now();
    let said = test.bare_as(&link, [&[test.dir.to_str().unwrap()], options].concat());
    (said, begun.elapsed())
}

#[test]
fn a_plain_umount_waits_until_everything_is_on_the_server() {
    let server = Scripted::new();
    for unprivileged in [false, true] {
        let options = ["--settle", "3600"];
        let test = match unprivileged {
            false => TestMount::with(&server.url(), &options),
            true => TestMount::unprivileged(&server.url(), &options),
        };
        let expected = write_some(&test);
        assert_eq!(owed(&test.status()), expected.len() as u64);
        // As umount(8) gives them.
        let (said, _) = helper(&test, &["-v", "-n", "-r"]);
        assert_eq!((said.exit, said.out.as_str()), (0, ""), "{said:?}");
        // Before anybody could have waited for it.
        test.assert_gone();
        assert_eq!(owed(&test.status()), 0);
        test.mount(&[]).ok();
        assert_comes(&test, &server, &expected);
    }
}

#[test]
fn a_plain_umount_takes_the_mount_away_from_a_server_that_does_not_answer_and_says_what_is_owed() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.stop();
    let expected = write_some(&test);
    let (said, took) = helper(&test, &[]);
    assert_eq!((said.exit, said.out.as_str()), (0, ""), "{said:?}");
    assert!(took < BOUND, "{took:?}");
    assert!(!test.is_mounted());
    let owes = format!(
        "unmounted {}; 50 changes (2.3 MiB) are not on the server yet, and safe on this disk",
        test.dir.display()
    );
    assert!(said.err.contains(&owes) && said.err.contains("cannot reach"), "{said:?}");
    assert!(said.err.contains("goes on sending; oxenfs status shows how far it is"), "{said:?}");
    // It does.
    server.start(None);
    test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
    assert_eq!(owed(&test.status()), 0);
    test.mount(&[]).ok();
    assert_comes(&test, &server, &expected);
}

#[test]
fn a_plain_umount_does_not_wait_long_for_a_server_that_takes_requests_and_says_nothing() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.arm("", "/api/", None, serde_json::json!({"latency": {"ms": 14_000}}));
    let expected = write_some(&test);
    let (said, took) = helper(&test, &[]);
    assert_eq!((said.exit, said.out.as_str()), (0, ""), "{said:?}");
    assert!(took < BOUND && !test.is_mounted(), "{took:?}");
    assert!(said.err.contains(&format!("({} does not answer with 50 files", server.url())), "{said:?}");
    server.disarm();
    test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
    test.mount(&[]).ok();
    assert_comes(&test, &server, &expected);
}

#[test]
fn how_long_a_plain_umount_waits_is_an_option_of_the_mount() {
    let server = Scripted::new();
    let test = TestMount::with(&server.url(), &["-o", "drain-timeout=1"]);
    // It is there, and takes its time.
    server.arm("", "/workspaces/", None, serde_json::json!({"latency": {"ms": 3000}}));
    server.arm("", "/versions/", None, serde_json::json!({"latency": {"ms": 3000}}));
    let expected = write_some(&test);
    let (said, took) = helper(&test, &[]);
    assert_eq!((said.exit, said.out.as_str()), (0, ""), "{said:?}");
    assert!(took > Duration::from_secs(1) && took < AT_ONCE, "{took:?}");
    assert!(said.err.contains("(timed out with 50 files"), "{said:?}");
    server.disarm();
    test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
    test.mount(&[]).ok();
    assert_comes(&test, &server, &expected);
}

#[test]
fn a_lazy_and_a_forced_umount_wait_for_nobody() {
    for option in ["-l", "-f"] {
        let mut server = Scripted::new();
        let test = TestMount::through(&server.url());
        server.stop();
        let expected = write_some(&test);
        let (said, took) = helper(&test, &[option]);
        assert_eq!((said.exit, said.out.as_str(), said.err.as_str()), (0, "", ""), "{option}");
        assert!(took < AT_ONCE, "{option}: {took:?}");
        assert!(!test.is_mounted());
        server.start(None);
        test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
        test.mount(&[]).ok();
        assert_comes(&test, &server, &expected);
    }
}

#[test]
fn a_plain_umount_of_what_is_in_use_or_no_mount_fails_as_umount_does() {
    let test = TestMount::new();
    let open = fs::File::create(test.at("open")).unwrap();
    let (said, _) = helper(&test, &[]);
    assert_eq!(said.exit, 32, "{said:?}");
    assert!(said.err.contains("it is in use by ") && test.is_mounted(), "{said:?}");
    drop(open);
    let (said, _) = helper(&test, &[]);
    assert_eq!((said.exit, said.err.as_str()), (0, ""));
    test.assert_gone();
    let (said, _) = helper(&test, &[]);
    assert_eq!(said.exit, 32);
    assert!(said.err.contains("nothing is mounted there"), "{said:?}");
    let (said, _) = helper(&test, &["--what"]);
    assert_eq!(said.exit, 1, "{said:?}");
}

#[test]
fn a_plain_umount_takes_the_mount_away_from_a_daemon_that_is_stopped_or_dead() {
    let server = Scripted::new();
    for unprivileged in [false, true] {
        let options = ["--settle", "3600"];
        let test = match unprivileged {
            false => TestMount::with(&server.url(), &options),
            true => TestMount::unprivileged(&server.url(), &options),
        };
        let expected = write_some(&test);
        let pid = test.signal(Signal::STOP);
        // Somebody waits for it, and has nothing open there yet.
        let mut waiting = Command::new("cat");
        waiting.arg(test.at("no such file")).stderr(Stdio::null());
        test.as_its_user(&mut waiting);
        let mut waiting = waiting.spawn().unwrap();
        let (said, took) = helper(&test, &[]);
        assert_eq!((said.exit, said.out.as_str()), (0, ""), "{said:?}");
        assert!(took < BOUND, "{took:?}");
        assert!(!test.is_mounted());
        assert!(said.err.contains("50 changes (2.3 MiB) are not on the server yet, and safe on this disk"), "{said:?}");
        assert!(said.err.contains("is stopped") && said.err.contains(&format!("kill -CONT {pid}")), "{said:?}");
        // One that goes on sends it all.
        kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).unwrap();
        waiting.wait().unwrap();
        test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
        test.mount(&options).ok();
        copy_in(&test, &[("more".to_owned(), b"more".to_vec())].into());
        test.signal(Signal::KILL);
        let (said, took) = helper(&test, &[]);
        assert_eq!((said.exit, said.out.as_str()), (0, ""), "{said:?}");
        assert!(took < AT_ONCE, "{took:?}");
        assert!(!test.is_mounted());
        let owes = "1 change (4 B) is not on the server yet, and safe on this disk\nhint: mount again to send them: oxenfs mount ";
        assert!(said.err.contains(owes), "{said:?}");
        test.mount(&[]).ok();
        let mut expected = expected;
        expected.insert("more".into(), b"more".to_vec());
        assert_comes(&test, &server, &expected);
    }
}

#[test]
#[ignore = "needs root, for a mount namespace of its own: scripts/test has it"]
fn umount_itself_calls_the_helper_that_is_installed() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let (links, sbin, foreign) = (test.beside("links"), test.beside("original"), test.beside("foreign"));
    // The machine's own /sbin, and the links in it, for nobody else to see.
    let script = format!(
        "set -e; sbin=$(readlink -f /sbin); mount --bind $sbin {sbin}; ln -s {sbin}/* {links}; \
         ln -s {binary} {links}/umount.fuse.oxenfs; ln -s {binary} {links}/umount.fuse; mount --bind {links} $sbin; \
         mount -t tmpfs none {foreign}; $sbin/umount.fuse {foreign} -v; \
         for options in '' -c; do \
           {binary} mount {repo} \"$0\" --server {url} --create --settle 3600 --state-dir {state} || exit; \
           for at in $(seq 300); do echo $at$options > \"$0/$at\"; done; \
           umount $options \"$0\"; echo unmounted $?; {binary} status --json --state-dir {state}; \
         done",
        sbin = sbin.display(),
        links = links.display(),
        foreign = foreign.display(),
        binary = env!("CARGO_BIN_EXE_oxenfs"),
        repo = test.repo,
        url = server.url(),
        state = test.state.display(),
    );
    let mut machine = Command::new("unshare");
    machine.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(&test.dir);
    let said: Said = machine.env("HOME", test.beside("home")).stdin(Stdio::null()).output().unwrap().into();
    // Nothing is owed, and no daemon there, when it returns.
    let foreign = format!("umount: {} unmounted\n", foreign.display());
    assert_eq!((said.exit, said.out), (0, "unmounted 0\n[]\nunmounted 0\n[]\n".to_owned()), "{}", said.err);
    assert!(said.err.contains(&foreign), "{}", said.err);
    let expected = (1..=300).map(|at| (at.to_string(), format!("{at}-c\n").into_bytes())).collect();
    test.mount(&[]).ok();
    assert_comes(&test, &server, &expected);
}

#[test]
fn doctor_says_whether_the_helper_is_installed() {
    let test = TestMount::new();
    let said = test.oxenfs(["doctor"].map(OsStr::new));
    let line = said.out.lines().find(|line| line.contains(" umount: ")).expect("a line about umount");
    let there = ["umount.fuse.oxenfs", "umount.fuse"].map(|name| std::path::Path::new("/sbin").join(name).exists());
    match there == [true, true] {
        true => assert!(line.starts_with("ok "), "{line}"),
        false => {
            assert!(line.starts_with("warning  umount: a plain umount may not wait"), "{line}");
            assert!(said.out.contains("hint: sudo ln -s ") && said.out.contains(" /sbin/umount.fuse\n"), "{said:?}");
        }
    }
}
