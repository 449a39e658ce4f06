//! What commands say when all goes well, and while they wait.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::mounted::TestMount;
use crate::proxy::Proxy;
use crate::scripted::Scripted;
use crate::server;

#[test]
fn a_command_says_why_it_waits_and_when_it_goes_on() {
    let proxy = Proxy::new(server::url());
    let test = TestMount::through(&proxy.url());
    proxy.cut(true);
    fs::write(test.at("file"), "content").unwrap();
    let stalled = test.oxenfs([OsStr::new("sync"), test.dir.as_os_str(), "--timeout".as_ref(), "8s".as_ref()]);
    assert_eq!(stalled.exit, 3, "{stalled:#?}");
    let waiting = stalled.err.lines().find(|line| line.starts_with("waiting: "));
    let waiting = waiting.unwrap_or_else(|| panic!("{stalled:#?}"));
    assert!(waiting.contains(&proxy.url()), "{waiting}");
    assert!(waiting.ends_with("; nothing is lost, and Ctrl-C leaves it safely queued"), "{waiting}");
    proxy.cut(false);
    test.unmount_commit();
    assert_eq!(test.committed_file("file").unwrap(), b"content");
}

#[test]
fn doctor_names_a_mount_whose_daemon_died_and_the_command_that_mends_it() {
    let test = TestMount::new();
    let doctor = || test.oxenfs([OsStr::new("doctor"), test.dir.as_os_str()]);
    let about = format!("mount {}: ", test.dir.display());
    assert!(doctor().ok().out.contains(&format!("ok       {about}works\n")));
    fs::write(test.at("file"), "content").unwrap();
    test.signal(rustix::process::Signal::KILL);
    let said = doctor();
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.out.contains(&format!("failed   {about}no daemon runs; owed to the server, ")), "{}", said.out);
    let hint = format!("         hint: oxenfs mount {} {} --server ", test.repo, test.dir.display());
    assert!(said.out.contains(&hint), "{}", said.out);
    test.mount(&[]).ok();
    assert!(doctor().ok().out.contains(&format!("ok       {about}works\n")));
    test.unmount_commit();
}

#[test]
fn unmount_says_what_is_not_committed_and_what_stays_here() {
    let test = TestMount::new();
    fs::write(test.at("file"), "content").unwrap();
    std::os::unix::fs::symlink("file", test.at("link")).unwrap();
    let unmount = || test.oxenfs([OsStr::new("unmount"), test.dir.as_os_str()]).ok().err;
    let said = unmount();
    let dir = test.dir.display();
    let what = |there: &str| format!("unmounted {dir}; {there} is on the server");
    let there = what("all that Oxen can store");
    assert!(said.contains(&format!("{there}, 1 change staged and not committed\n")), "{said}");
    let here = format!("1 path is on this disk alone, which Oxen cannot store: oxenfs status {dir} lists what stays\n");
    assert!(said.ends_with(&here), "{said}");
    test.mount(&[]).ok();
    test.commit();
    fs::remove_file(test.at("link")).unwrap();
    // A file that everybody may execute, as many programs make them, is there but for that.
    fs::set_permissions(test.at("file"), fs::Permissions::from_mode(0o755)).unwrap();
    let everything = what("everything");
    let partly = format!("of 1 path Oxen stores the content alone: oxenfs status {dir} lists what stays\n");
    assert_eq!(unmount(), format!("{everything}\n{partly}"));
    test.mount(&[]).ok();
    fs::remove_file(test.at("file")).unwrap();
    test.commit();
    assert_eq!(unmount(), format!("{everything}\n"));
}

#[test]
fn nothing_to_commit_agrees_with_what_was_staged() {
    let test = TestMount::new();
    fs::write(test.at("file"), "one").unwrap();
    test.commit();
    fs::write(test.at("file"), "two").unwrap();
    test.sync();
    fs::write(test.at("file"), "one").unwrap();
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["commit", dir, "-m", "x", "--author", "A", "--email", "a@x"]).ok();
    assert_eq!(said.out, "");
    let lines: Vec<_> = said.err.lines().collect();
    assert!(lines[0].starts_with("1 file, 3 B staged in "), "{said:?}");
    assert_eq!(lines[1..], [format!("nothing to commit in {dir}: what was staged is what the last commit holds")]);
    test.unmount();
}

#[test]
fn one_change_that_is_left_is_one_in_every_sentence() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.stop();
    fs::write(test.at("file"), "abc").unwrap();
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["unmount", dir, "--detach"]);
    let left = "1 change (3 B) is not on the server yet, and ";
    assert!(said.err.starts_with(&format!("unmounted {dir}; {left}safely queued on this disk\n")), "{said:?}");
    let said = test.oxenfs(["unmount", dir]);
    assert!(said.err.contains(&format!("no daemon runs, and {left}safe on this disk\n")), "{said:?}");
    assert_eq!(said.exit, 3);
    server.start(None);
    let said = test.mount(&[]).ok();
    assert!(said.err.contains("1 change of an earlier mount is being sent\n"), "{said:?}");
    test.unmount();
}
