//! Daemons that say nothing: those that work are waited for, those that hang are not.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oxenfs::control::{Event, Request};

use crate::daemon::{Daemon, Hanging, Then, stopped};
use crate::{User, said, text};

#[test]
fn a_daemon_that_works_in_silence_is_waited_for() {
    let user = User::new();
    let dir = user.dir("mnt");
    // Longer than one that hangs is waited for; it answers whoever asks whether it works.
    fn slow(request: &Request) -> (Vec<Event>, Then) {
        match request {
            Request::Ping => (vec![Event::Done], Then::HangUp),
            _ => {
                std::thread::sleep(Duration::from_secs(7));
                (vec![Event::Done], Then::HangUp)
            }
        }
    }
    let daemon = Daemon::start(&user.state(), &dir, slow);
    let synced = user.run(["sync", text(&dir)]);
    assert_eq!((synced.exit, synced.err.as_str()), (0, ""));
    let asked: Vec<Request> = daemon.requests.try_iter().collect();
    assert!(matches!(asked[..], [Request::Sync { .. }, Request::Ping, ..]), "{asked:?}");
}

#[test]
fn a_daemon_that_hangs_is_given_up_in_seconds_with_the_way_out() {
    let user = User::new();
    let dir = user.dir("mnt");
    let hanging = Hanging::start(&user.state(), &dir);
    let (dir, pid) = (text(&dir), hanging.pid());
    let who = ["-m", "x", "--author", "A", "--email", "a@x"];
    let cases: [Vec<&str>; 6] = [
        vec!["diff", dir],
        vec!["sync", dir],
        ["commit", dir].into_iter().chain(who).collect(),
        vec!["unmount", dir],
        vec!["unmount", dir, "--detach"],
        vec!["import", dir, dir],
    ];
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for case in &cases {
            let user = &user;
            scope.spawn(move || {
                let said = said(&mut user.command(case));
                let is = format!("its daemon, process {pid}, does not answer; what was written is safe on this disk\n");
                assert!(said.err.contains(&is), "{case:?}: {said:?}");
                let out = format!(
                    "hint: end it, which loses nothing of that: kill -9 {pid}; oxenfs unmount {dir}; oxenfs mount "
                );
                assert!(said.err.contains(&out), "{case:?}: {said:?}");
                assert_eq!((said.exit, said.out.as_str()), (1, ""));
            });
        }
        scope.spawn(|| {
            let said = user.run(["status", dir]);
            assert!(said.out.contains(&format!("unresponsive (process {pid})")), "{said:?}");
            assert!(said.out.contains("stalled     its daemon"), "{said:?}");
        });
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn a_process_that_has_not_the_state_directory_is_no_daemon_however_much_it_works() {
    let user = User::new();
    let dir = user.dir("mnt");
    let state = stopped(&user.state(), &dir);
    let _listener = UnixListener::bind(state.join("control.sock")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let begun = Instant::now();
        let said = user.run(["diff", text(&dir)]);
        over.store(true, Ordering::Relaxed);
        assert!(said.err.contains("does not answer; what was written is safe on this disk\n"), "{said:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    });
}
