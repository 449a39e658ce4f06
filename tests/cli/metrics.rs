//! `oxenfs metrics` and `oxenfs events` with daemons that do not run, or do not know them.

use oxenfs::control::{Event, Failure};

use crate::daemon::{Daemon, Then, stopped};
use crate::{User, text};

#[test]
fn a_mount_whose_daemon_does_not_tell_is_not_left_out() {
    let user = User::new();
    let dir = user.dir("mnt");
    // As an older daemon answers what it does not know, and to status as well here.
    let _daemon = Daemon::start(&user.state(), &dir, |_| {
        let failure = Failure { message: "the request is not understood".into(), hint: None, owed: false };
        (vec![Event::Failed(failure)], Then::HangUp)
    });
    let seen = user.run(["metrics"]);
    assert_eq!((seen.exit, seen.err.as_str()), (0, ""), "{seen:?}");
    let of = format!("{{mountpoint=\"{}\",repo=\"ox/cats\",server=\"http://127.0.0.1:3000\"}}", text(&dir));
    assert!(seen.out.contains(&format!("\noxenfs_up{of} 0.0\n")), "{}", seen.out);
    assert!(seen.out.contains(&format!("\noxenfs_owed_files{of} 0.0\n")), "{}", seen.out);
}

#[test]
fn of_what_is_neither_mounted_nor_owed_there_is_nothing_to_tell_unless_it_is_named() {
    let user = User::new();
    let dir = user.dir("mnt");
    stopped(&user.state(), &dir);
    assert!(!user.run(["metrics"]).out.contains("oxenfs_up{"));
    assert!(user.run(["metrics", text(&dir)]).out.contains("oxenfs_up{"));
    let elsewhere = user.run(["metrics", text(&user.dir("other"))]);
    assert_eq!(elsewhere.exit, 1);
    assert!(elsewhere.err.contains("no oxenfs mount is there"), "{elsewhere:?}");
    let followed = user.run(["events", text(&dir)]);
    assert_eq!(followed.exit, 1);
    assert!(followed.err.contains("its daemon does not run"), "{followed:?}");
}

#[test]
fn an_address_that_is_none_is_named_with_what_would_be_one() {
    let user = User::new();
    let dir = user.dir("mnt");
    for arguments in [
        vec!["metrics", "--listen", "localhost"],
        vec!["mount", "ox/cats", text(&dir), "--server", "h", "--metrics", "localhost"],
    ] {
        let seen = user.run(&arguments);
        assert_eq!(seen.exit, 2, "{seen:?}");
        let expected = "\"localhost\" is not an address such as 127.0.0.1:9184, or unix:/run/oxenfs.sock";
        assert!(seen.err.contains(expected), "{seen:?}");
    }
}
