//! What cannot be done is said in one line, with the act that mends it in a second; and nothing is left behind.

use std::fs;

use crate::mounted::{Said, TestMount};
use crate::server;

/// Exactly these lines on standard error, none on standard output.
#[track_caller]
fn assert_refused(said: &Said, exit: i32, error: &str, hint: &str) {
    assert_eq!((said.exit, said.out.as_str()), (exit, ""), "{said:#?}");
    assert_eq!(said.err, format!("error: {error}\nhint: {hint}\n"));
}

#[test]
fn an_unknown_repository_is_not_made_unasked() {
    let test = TestMount::unmounted(server::url());
    let said = test.mount(&[]);
    let lines: Vec<_> = said.err.lines().collect();
    assert_eq!((said.exit, lines.len()), (1, 2), "{said:#?}");
    assert!(lines[0].starts_with(&format!("error: cannot mount {}: ", test.repo)), "{said:#?}");
    assert_eq!(lines[1], "hint: add --create to make it, or check the name: NAMESPACE/NAME");
    test.assert_gone();
    // And it still is not there.
    assert_eq!(test.mount(&[]).exit, 1);
    test.assert_gone();
    let left: Vec<_> = fs::read_dir(&test.state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["README"], "a mount that came to nothing leaves no state");
}

#[test]
fn a_server_that_is_down_is_named() {
    let server = format!("http://127.0.0.1:{}", server::free_port());
    let test = TestMount::unmounted(&server);
    let said = test.mount(&["--create"]);
    let lines: Vec<_> = said.err.lines().collect();
    assert_eq!((said.exit, lines.len()), (1, 2), "{said:#?}");
    assert!(lines[0].starts_with(&format!("error: cannot mount {}: ", test.repo)), "{said:#?}");
    assert!(lines[0].contains(&server), "{said:#?}");
    assert_eq!(lines[1], format!("hint: is it running? curl {server}/api/health"));
    test.assert_gone();
}

#[test]
fn a_mount_point_that_will_not_do_is_refused() {
    let test = TestMount::unmounted(server::url());
    let (repo, dir) = (&test.repo, test.dir.display());

    fs::remove_dir(&test.dir).unwrap();
    let error = format!("cannot mount {repo}: {dir} does not exist");
    assert_refused(&test.mount(&["--create"]), 1, &error, &format!("mkdir -p {dir}"));

    fs::write(&test.dir, "").unwrap();
    let error = format!("cannot mount {repo}: {dir} is not a directory");
    assert_refused(&test.mount(&["--create"]), 1, &error, "name an empty directory");

    fs::remove_file(&test.dir).unwrap();
    fs::create_dir(&test.dir).unwrap();
    fs::write(test.at("precious"), "kept").unwrap();
    let error = format!("cannot mount {repo}: {dir} is not empty");
    let hint = "name an empty directory; files are added by copying them there once it is mounted";
    assert_refused(&test.mount(&["--create"]), 1, &error, hint);
    assert_eq!(fs::read_to_string(test.at("precious")).unwrap(), "kept");
    test.assert_gone();
}

#[test]
fn a_directory_is_mounted_once() {
    let test = TestMount::new();
    let pid = test.pid();
    let (repo, dir) = (&test.repo, test.dir.display());
    let error = format!("cannot mount {repo}: oxenfs is already mounted at {dir}");
    assert_refused(&test.mount(&[]), 1, &error, &format!("oxenfs unmount {dir}"));
    assert_eq!(test.daemons(), [pid]);
    fs::write(test.at("still"), "works").unwrap();
    test.unmount_commit();
    assert_eq!(test.committed_file("still").unwrap(), b"works");
}

#[test]
fn a_workspace_is_mounted_by_one_daemon_per_state_directory() {
    let test = TestMount::new();
    let pid = test.pid();
    let other = test.beside("other");
    let said = test.mount_with(&test.state, &other, &[]);
    let lines: Vec<_> = said.err.lines().collect();
    assert_eq!((said.exit, lines.len()), (1, 2), "{said:#?}");
    assert!(lines[0].starts_with(&format!("error: cannot mount {}: ", test.repo)), "{said:#?}");
    assert!(lines[0].contains(&format!("{pid}")), "{said:#?}");
    assert_eq!(lines[1], format!("hint: oxenfs unmount {}", test.dir.display()));
    assert_eq!(test.daemons(), [pid]);
    assert_eq!(fs::read_dir(other).unwrap().count(), 0);
}

#[test]
fn what_is_not_mounted_cannot_be_unmounted_or_committed() {
    let test = TestMount::unmounted(server::url());
    let dir = test.dir.to_str().unwrap();
    let author = ["-m", "m", "--author", "a", "--email", "a@example.org"];
    for arguments in [vec!["unmount", dir], vec!["sync", dir], [vec!["commit", dir], author.to_vec()].concat()] {
        let said = test.oxenfs(&arguments);
        let lines: Vec<_> = said.err.lines().collect();
        assert_eq!((said.exit, lines.len()), (1, 2), "{said:#?}");
        assert!(lines[0].starts_with(&format!("error: cannot {} ", arguments[0])), "{said:#?}");
        assert_eq!(lines[1], "hint: oxenfs status lists the mounts");
    }
}
