//! Every way in which a daemon ends: nothing is lost, and none of them waits for ever. More of them in `crashes.rs`;
//! `scripts/exits` measures how long they take.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::dataset::noise;
use crate::faults::{assert_ends_well, owed};
use crate::http::Tree;
use crate::mounted::{TestMount, wait_until};
use crate::scripted::Scripted;

fn write_some(test: &TestMount) -> Tree {
    let mut tree = Tree::new();
    for at in 0..50 {
        let (path, content) = (format!("file {at}"), noise(at, 2000 * at as usize));
        fs::write(test.at(&path), &content).unwrap();
        tree.insert(path, content);
    }
    tree
}

#[test]
fn an_interrupted_daemon_sends_everything_and_unmounts() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let expected = write_some(&test);
    test.signal(Signal::INT);
    test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
    assert!(!test.is_mounted());
    assert_eq!(owed(&test.status()), 0);
    test.mount(&[]).ok();
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn a_daemon_told_to_end_while_the_server_is_away_does_not_wait_for_it() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    server.stop();
    let expected = write_some(&test);
    let told = Instant::now();
    test.signal(Signal::TERM);
    test.wait_status("the daemon to end", |status| status["phase"] == "stopped");
    assert!(told.elapsed() < Duration::from_secs(19), "it took {:?}", told.elapsed());
    assert!(!test.is_mounted());
    assert_eq!(owed(&test.status()), expected.len() as u64);
    server.start(None);
    test.mount(&[]).ok();
    assert_ends_well(&test, &server, &expected);
}

#[test]
#[ignore = "needs root, for a mount namespace of its own: scripts/test has it"]
fn a_machine_that_stops_everything_at_once_loses_nothing() {
    let mut server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let state = test.state.to_str().unwrap();
    // In a namespace that nobody else is in, as a container has it.
    let script = format!(
        "{} mount {} \"$0\" --server {} --create --state-dir {state} && echo mounted && cd \"$0\" \
         && for at in $(seq 0 49); do seq 0 $((at * 100)) > \"file $at\"; done && echo written && exec sleep 600",
        env!("CARGO_BIN_EXE_oxenfs"),
        test.repo,
        server.url(),
    );
    let mut machine = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(&test.dir)
        .env("HOME", test.beside("home"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(machine.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "mounted");
    assert_eq!(said.next().unwrap().unwrap(), "written");
    // The server first; then everybody is told to end, and not waited for.
    server.stop();
    let daemons = test.daemons();
    for signal in [Signal::TERM, Signal::KILL] {
        for pid in daemons.iter().copied().chain([machine.id() as i32]) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }
    machine.wait().unwrap();
    wait_until("the daemon to be gone", || test.daemons().is_empty());
    assert!(!test.is_mounted());
    server.start(None);
    test.mount(&[]).ok();
    let numbers = |upto: u32| (0..=upto).map(|number| format!("{number}\n")).collect::<String>().into_bytes();
    let expected = (0..50).map(|at| (format!("file {at}"), numbers(at * 100))).collect();
    assert_ends_well(&test, &server, &expected);
}
