//! What commands say when all goes well, and while they wait.

use std::ffi::OsStr;
use std::fs;

use crate::mounted::TestMount;
use crate::proxy::Proxy;
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
    let everything = format!("unmounted {dir}; everything is on the server");
    assert!(said.contains(&format!("{everything}, 1 change staged and not committed\n")), "{said}");
    assert!(
        said.contains("on this disk alone: 1 path, which Oxen cannot store in full; oxenfs status lists"),
        "{said}"
    );
    test.mount(&[]).ok();
    test.commit();
    fs::remove_file(test.at("link")).unwrap();
    assert_eq!(unmount(), format!("{everything}\n"));
}
