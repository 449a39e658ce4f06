//! Bad ways to a real server: what passes between the two is cut off anywhere, held up, and answered by others. What was
//! written is on the branch in the end, once; nothing that was confirmed is sent again; and what a daemon sent before it
//! was killed does not undo what the next one did.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::dataset::noise;
use crate::gateway::{Fault, Gateway, Passed};
use crate::http::{Tree, assert_same, commit_messages};
use crate::mounted::{TestMount, local_tree, shell, wait_until};
use crate::server;
use crate::suites::seed;

/// How many changes the server does not have.
fn owed(status: &Value) -> u64 {
    let kinds = ["dirty", "hashing", "queued", "uploading", "failed", "removals"];
    kinds.iter().map(|kind| status["counts"][kind]["files"].as_u64().unwrap()).sum()
}

/// Whether a request changes what the server has.
fn changes(method: &str) -> bool {
    method != "GET"
}

/// What a status says about a fault; `None`: it costs time alone.
fn said_of(fault: &Fault) -> Option<&'static str> {
    match fault {
        Fault::CutBefore | Fault::CutInBody | Fault::CutAfter | Fault::CutInAnswer | Fault::Garbage => {
            Some("cannot reach http://127.0.0.1:")
        }
        Fault::Answer(429 | 503, ..) => Some("the server is busy"),
        Fault::Answer(502, ..) => Some("the server failed: 502"),
        Fault::Answer(..) => Some("unexpected answer"),
        Fault::Delay(_) | Fault::Throttle(_) | Fault::Hold => None,
    }
}

#[test]
fn every_way_to_fail_shows_in_status_and_passes() {
    let gateway = Gateway::new(server::url());
    let test = TestMount::through(&gateway.url());
    let mut expected = Tree::new();
    for (at, fault) in Fault::all().into_iter().enumerate() {
        let said = said_of(&fault);
        let armed = fault.clone();
        gateway.rule(move |method, _| changes(method).then(|| armed.clone()));
        for (lane, size) in [100, 300_000].into_iter().enumerate() {
            let (path, content) = (format!("fault {at}/{lane}"), noise(at as u64 * 10 + lane as u64, size));
            fs::create_dir_all(test.at(format!("fault {at}"))).unwrap();
            fs::write(test.at(&path), &content).unwrap();
            expected.insert(path, content);
        }
        if at > 1 {
            let old = format!("fault {}/0", at - 2);
            fs::remove_file(test.at(&old)).unwrap();
            expected.remove(&old);
        }
        if let Some(said) = said {
            let status = test.wait_status("the fault to show", |status| status["stalled"].is_string());
            let why = status["stalled"].as_str().unwrap();
            assert!(why.contains(said), "{fault:?}: {why}");
            assert!(owed(&status) > 0, "{fault:?}: {status:#}");
            gateway.calm();
        }
        test.wait_status("everything to be staged", |status| owed(status) == 0 && status["stalled"].is_null());
    }
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn a_busy_server_is_left_alone_for_as_long_as_it_asks() {
    let gateway = Gateway::new(server::url());
    let test = TestMount::through(&gateway.url());
    gateway.rule(|method, _| changes(method).then_some(Fault::Answer(429, "Retry-After: 3\r\n", "")));
    fs::write(test.at("file"), "content").unwrap();
    let refused = |passed: &Passed| matches!(passed.fault, Some(Fault::Answer(..)));
    wait_until("three refusals", || gateway.log().iter().filter(|passed| refused(passed)).count() >= 3);
    gateway.calm();
    let times: Vec<u128> = gateway.log().iter().filter(|passed| refused(passed)).map(|passed| passed.at_ms).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 3000), "{times:?}");
    test.unmount_commit();
    assert_same(&test.committed(), &Tree::from([("file".into(), b"content".to_vec())]));
}

#[test]
fn small_files_that_the_server_has_are_staged_by_their_hash_where_the_way_is_slow() {
    let gateway = Gateway::new(server::url());
    let test = TestMount::with(&gateway.url(), &["--settle", "600"]);
    let (files, size) = (1200, 8192);
    let mut expected = Tree::new();
    for dir in ["first", "again"] {
        fs::create_dir(test.at(dir)).unwrap();
        for at in 0..files {
            let (path, content) = (format!("{dir}/{at}"), noise(at, size));
            fs::write(test.at(&path), &content).unwrap();
            expected.insert(path, content);
        }
        let before = gateway.log().iter().map(|passed| passed.bytes).sum::<u64>();
        test.sync();
        let sent = gateway.log().iter().map(|passed| passed.bytes).sum::<u64>() - before;
        let all = files * size as u64;
        match dir {
            "first" => assert!(sent >= all, "{sent} of {all}"),
            // Some hundred are in hand before anything is learned.
            _ => assert!(sent < all * 3 / 4, "{sent} of {all}"),
        }
        // From here on bytes take their time, and questions do not.
        gateway.rule(|method, _| changes(method).then_some(Fault::Throttle(Duration::from_secs(1))));
    }
    gateway.calm();
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

/// Writes, renames and removes, some of it again and again.
struct Dataset<'a> {
    test: &'a TestMount,
    tree: Tree,
    written_bytes: u64,
}

impl Dataset<'_> {
    fn write(&mut self, path: &str, content: Vec<u8>) {
        if let Some((dir, _)) = path.rsplit_once('/') {
            fs::create_dir_all(self.test.at(dir)).unwrap();
        }
        fs::write(self.test.at(path), &content).unwrap();
        self.written_bytes += content.len() as u64;
        self.tree.insert(path.to_owned(), content);
    }

    fn rename(&mut self, from: &str, to: &str) {
        if let Some((dir, _)) = to.rsplit_once('/') {
            fs::create_dir_all(self.test.at(dir)).unwrap();
        }
        fs::rename(self.test.at(from), self.test.at(to)).unwrap();
        let content = self.tree.remove(from).unwrap();
        self.tree.insert(to.to_owned(), content);
    }

    fn remove(&mut self, path: &str) {
        fs::remove_file(self.test.at(path)).unwrap();
        self.tree.remove(path);
    }

    fn wait_staged(&self) {
        self.test.wait_status("everything to be staged", |status| owed(status) == 0);
    }
}

#[test]
fn a_dataset_crosses_a_way_that_fails_at_random_once_and_whole() {
    let seed = seed("a way that fails at random");
    let gateway = Gateway::new(server::url());
    let test = TestMount::through(&gateway.url());
    let mut random = fastrand::Rng::with_seed(seed);
    let storm = |gateway: &Gateway, seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let faults = Fault::all();
        gateway.rule(move |_, _| (random.u8(0..4) == 0).then(|| random.choice(&faults).unwrap().clone()));
    };
    let mut data = Dataset { test: &test, tree: Tree::new(), written_bytes: 0 };
    let mut messages = Vec::new();
    for round in 0..3 {
        storm(&gateway, random.u64(..));
        for at in 0..60 {
            let size = random.usize(0..20_000);
            data.write(&format!("round {round}/dir {}/file {at}", at % 7), noise(random.u64(..), size));
        }
        for at in 0..3 {
            data.write(&format!("round {round}/middle {at}"), noise(random.u64(..), 400_000));
        }
        data.write(&format!("round {round}/large"), noise(random.u64(..), 25 << 20));
        data.wait_staged();
        // What is staged, and what a round before committed.
        for at in 0..10 {
            data.rename(&format!("round {round}/dir {}/file {at}", at % 7), &format!("moved {round}/file {at}"));
            data.remove(&format!("round {round}/dir {}/file {}", (at + 20) % 7, at + 20));
        }
        if round > 0 {
            data.rename(&format!("round {}/large", round - 1), &format!("round {}/renamed", round - 1));
            data.remove(&format!("round {}/middle 1", round - 1));
            data.write(&format!("round {}/middle 2", round - 1), noise(random.u64(..), 300_000));
        }
        // A commit that is cut off is made or not; said again, it is made.
        let message = format!("round {round} of {seed}");
        let dir = test.dir.to_str().unwrap();
        let arguments = ["commit", dir, "-m", &message, "--author", "A. Tester", "--email", "a@example.org"];
        let tries = AtomicU64::new(0);
        wait_until("the commit", || {
            if tries.fetch_add(1, Ordering::Relaxed) > 3 {
                gateway.calm();
            }
            test.oxenfs(arguments).exit == 0
        });
        gateway.calm();
        messages.push(message);
        assert_same(&test.committed(), &data.tree);
    }
    storm(&gateway, random.u64(..));
    for at in 0..20 {
        data.write(&format!("last {at}"), noise(random.u64(..), 5000));
    }
    data.wait_staged();
    gateway.calm();
    assert_same(&local_tree(&test.dir), &data.tree);
    test.unmount_commit();
    assert_same(&test.committed(), &data.tree);
    let made = commit_messages(server::url(), &test.repo);
    for message in &messages {
        assert_eq!(made.iter().filter(|made| *made == message).count(), 1, "{message}: {made:?}");
    }
    let log = gateway.log();
    let hit = log.iter().filter(|passed| passed.fault.is_some()).count();
    assert!(hit > 30, "only {hit} of {} requests were hit", log.len());
    assert_sent_once(&log, data.written_bytes);
}

/// Bytes of which the client was told that they have arrived came once: all there are, and some for what is around them.
fn assert_sent_once(log: &[Passed], written_bytes: u64) {
    let told = |passed: &&Passed| changes(&passed.method) && passed.told.is_some_and(|status| status < 300);
    let confirmed: Vec<&Passed> = log.iter().filter(told).collect();
    let bytes: u64 = confirmed.iter().map(|passed| passed.bytes).sum();
    let around = confirmed.len() as u64 * 1000 + written_bytes / 50;
    assert!(bytes <= written_bytes + around, "{bytes} bytes were confirmed of {written_bytes} that were written");
    let mut parts: Vec<&str> =
        confirmed.iter().filter(|passed| passed.path.contains("/parts/")).map(|passed| passed.path.as_str()).collect();
    let all = parts.len();
    parts.sort_unstable();
    parts.dedup();
    assert_eq!(parts.len(), all, "a part was sent again though it was confirmed");
}

#[test]
fn what_a_killed_daemon_sent_does_not_undo_what_the_next_one_staged() {
    let gateway = Gateway::new(server::url());
    let test = TestMount::through(&gateway.url());
    shell(&test.dir, "mkdir d; echo base > base; echo gone > gone; echo 1 > d/1; echo 2 > d/2");
    test.commit();
    // One request with all that is new, one with all that is gone; neither arrives before the daemon is dead.
    gateway.rule(|method, _| changes(method).then_some(Fault::Hold));
    shell(&test.dir, "echo old > new; echo old > base; echo old > again; rm gone; rm -r d");
    gateway.wait_held(2);
    test.signal(Signal::KILL);
    gateway.calm();
    test.mount(&[]).ok();
    shell(
        &test.dir,
        "echo newer > new; echo newer > base; rm again; echo back > gone; mkdir d; echo back > d/1; echo 3 > d/3",
    );
    test.sync();
    gateway.release();
    let expected = local_tree(&test.dir);
    assert_eq!(expected["new"], b"newer\n");
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn what_comes_late_is_found_after_a_while_and_after_a_commit() {
    let gateway = Gateway::new(server::url());
    let test = TestMount::through(&gateway.url());
    gateway.rule(|method, _| changes(method).then_some(Fault::Hold));
    fs::write(test.at("file"), "old").unwrap();
    gateway.wait_held(1);
    test.signal(Signal::KILL);
    gateway.calm();
    test.mount(&[]).ok();
    fs::write(test.at("file"), "newer").unwrap();
    test.commit();
    assert_eq!(test.committed_file("file").unwrap(), b"newer");
    gateway.release();
    assert_eq!(test.staged_paths(), ["file"]);
    // Nobody asks for anything: the daemon looks by itself.
    wait_until("the daemon to find it", || test.staged_paths().is_empty());
    fs::write(test.at("other"), "other").unwrap();
    test.unmount_commit();
    let expected = [("file", "newer"), ("other", "other")].map(|(path, text)| (path.into(), text.into()));
    assert_same(&test.committed(), &expected.into());
}
