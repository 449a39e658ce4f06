//! Daemons that are killed, told to end, or lose their mount; and servers that go away. Nothing that was written is.

use std::fs;
use std::io::Write;
use std::process::Command;

use rustix::process::Signal;

use crate::dataset::{full, noise};
use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, local_tree, run, wait_until};

/// Writes many files, and says what they are.
fn write_many(test: &TestMount) -> Tree {
    let mut tree = Tree::new();
    for at in 0..if full() { 3000 } else { 400 } {
        let path = format!("dir{}/file {at}", at % 9);
        let content = noise(at, 200 + 40 * at as usize);
        fs::create_dir_all(test.at(format!("dir{}", at % 9))).unwrap();
        fs::write(test.at(&path), &content).unwrap();
        tree.insert(path, content);
    }
    tree
}

/// How many changes the server does not have.
fn owed(status: &serde_json::Value) -> u64 {
    let kinds = ["dirty", "hashing", "queued", "uploading", "failed", "removals"];
    kinds.iter().map(|kind| status["counts"][kind]["files"].as_u64().unwrap()).sum()
}

#[test]
fn a_daemon_killed_while_it_stages_loses_nothing() {
    let test = TestMount::new();
    let mut expected = write_many(&test);
    test.wait_status("staging to be under way", |status| status["counts"]["staged"]["files"].as_u64() > Some(0));
    // More, so that the kill certainly meets changes of every age.
    fs::remove_file(test.at("dir1/file 1")).unwrap();
    expected.remove("dir1/file 1");
    fs::rename(test.at("dir2"), test.at("moved")).unwrap();
    expected = expected
        .into_iter()
        .map(|(path, content)| match path.strip_prefix("dir2/") {
            Some(rest) => (format!("moved/{rest}"), content),
            None => (path, content),
        })
        .collect();
    fs::write(test.at("last"), "the last word").unwrap();
    expected.insert("last".into(), b"the last word".to_vec());
    test.signal(Signal::KILL);

    // The kernel still has the dead mount; mounting again clears it away.
    assert!(test.is_mounted());
    let said = test.mount(&[]).ok();
    assert!(said.err.contains("removed the broken mount"), "{}", said.err);
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn a_mount_that_asks_while_the_daemon_dies_takes_the_broken_mount_away() {
    let test = TestMount::new();
    fs::write(test.at("file"), "kept").unwrap();
    test.signal(Signal::STOP);
    let pid = test.daemons()[0];
    let said = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| test.mount(&[]));
        // The mount's question is in the kernel and nobody answers it: statfs(2), with the mount point open to it.
        let asks = |pid: &i32| {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            call.split(' ').next() == Some(&libc::SYS_statfs.to_string())
        };
        wait_until("the mount to ask", || test.daemons().iter().any(asks));
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        mounting.join().unwrap()
    });
    let said = said.ok();
    assert!(said.err.contains("removed the broken mount"), "{}", said.err);
    assert_eq!(fs::read_to_string(test.at("file")).unwrap(), "kept");
    test.unmount_commit();
}

#[test]
fn what_a_program_wrote_before_the_kill_is_there_though_it_never_closed_the_file() {
    let test = TestMount::new();
    fs::write(test.at("base"), noise(3, 200_000)).unwrap();
    test.commit();
    let mut half = fs::File::create(test.at("half")).unwrap();
    let mut base = fs::OpenOptions::new().append(true).open(test.at("base")).unwrap();
    let mut expected = Tree::new();
    let mut written = Vec::new();
    for at in 0..10 {
        let part = noise(at, 70_001);
        half.write_all(&part).unwrap();
        written.extend(part);
    }
    base.write_all(b"appended").unwrap();
    expected.insert("half".into(), written);
    expected.insert("base".into(), [noise(3, 200_000), b"appended".to_vec()].concat());
    test.signal(Signal::KILL);
    drop((half, base));
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn a_plain_umount_goes_on_sending_and_unmount_waits_for_it() {
    let test = TestMount::new();
    let expected = write_many(&test);
    let pid = test.pid();
    run("umount", [&test.dir]);
    assert!(!test.is_mounted());
    // The daemon notices a moment after the kernel.
    let status = test.wait_status("the daemon to notice", |status| status["phase"] != "mounted");
    if status["phase"] != "stopped" {
        assert_eq!((&status["phase"], status["pid"].as_i64()), (&"draining".into(), Some(pid.into())), "{status:#}");
    }
    test.unmount();
    test.mount(&[]).ok();
    assert_eq!(owed(&test.status()), 0);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn fusermount3_leaves_a_daemon_that_a_mount_takes_over_from() {
    let test = TestMount::new();
    let expected = write_many(&test);
    run("fusermount3", ["-u".as_ref(), test.dir.as_os_str()]);
    // At once, while the first daemon may still send.
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn a_daemon_told_to_end_sends_everything_and_unmounts() {
    let test = TestMount::new();
    let expected = write_many(&test);
    let pid = test.signal(Signal::TERM);
    wait_until("the daemon to end", || !test.daemons().contains(&pid));
    assert!(!test.is_mounted());
    assert_eq!(owed(&test.status()), 0, "{:#}", test.status());
    test.mount(&[]).ok();
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn detach_leaves_at_once_and_the_next_mount_sends_the_rest() {
    let test = TestMount::new();
    let expected = write_many(&test);
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap(), "--detach"]);
    assert_eq!(said.exit, 3, "{said:#?}");
    test.assert_gone();
    assert!(owed(&test.status()) > 0);
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn the_working_directory_of_a_shell_keeps_the_mount_and_says_so() {
    let test = TestMount::new();
    fs::write(test.at("a"), "a").unwrap();
    let mut inside = Command::new("sleep").arg("600").current_dir(&test.dir).spawn().unwrap();
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap()]);
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert_ne!(said.exit, 0, "{said:#?}");
    assert!(said.err.contains("error: cannot unmount") && said.err.contains("hint: close what is open"), "{said:#?}");
    test.unmount_commit();
    assert_eq!(test.committed_file("a").unwrap(), b"a");
}
