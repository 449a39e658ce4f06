//! Clocks that jump: the time of day forward and backward, and the time since the start forward, as after a suspend.
//! What waits, waits no longer for it, and nothing is lost. The daemon runs with a library that shifts its clocks.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::faults::{assert_ends_well, owed};
use crate::http::Tree;
use crate::mounted::{TestMount, run};
use crate::scripted::Scripted;

const DAY: i64 = 86_400;

struct Clocks {
    offsets: fs::File,
    shell: String,
}

impl Clocks {
    fn of(test: &TestMount) -> Self {
        let dir = test.beside("clocks");
        let (library, file) = (dir.join("clock.so"), dir.join("offsets"));
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/mount/clock.c");
        run("cc", ["-shared", "-fPIC", "-O1", "-o", library.to_str().unwrap(), source.to_str().unwrap()]);
        let offsets = fs::File::create_new(&file).unwrap();
        offsets.set_len(16).unwrap();
        let shell = format!("export LD_PRELOAD={} OXENFS_TEST_CLOCK={}", library.display(), file.display());
        Self { offsets, shell }
    }

    fn set(&self, at: u64, seconds: i64) {
        self.offsets.write_all_at(&seconds.to_ne_bytes(), at).unwrap();
    }

    fn day(&self, seconds: i64) {
        self.set(0, seconds);
    }

    fn since_start(&self, seconds: i64) {
        self.set(8, seconds);
    }
}

fn now() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs().cast_signed()
}

/// Writes some, and waits until they are staged: not much longer than a quiet period.
fn stage_some(test: &TestMount, mark: &str, tree: &mut Tree) {
    for at in 0..10 {
        let (path, content) = (format!("{mark} {at}"), format!("{mark} {at}"));
        fs::write(test.at(&path), &content).unwrap();
        tree.insert(path, content.into_bytes());
    }
    let began = Instant::now();
    let status = test.wait_status("it to be staged", |status| owed(status) == 0);
    assert!(began.elapsed() < Duration::from_secs(30), "{mark}: it took {:?}", began.elapsed());
    assert!(status["oldest_unstaged_secs"].is_null(), "{status:#}");
}

#[test]
fn jumps_of_the_time_of_day_hold_nothing_up() {
    let mut server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let clocks = Clocks::of(&test);
    test.mount_after(&clocks.shell).ok();
    let mut expected = Tree::new();
    stage_some(&test, "in time", &mut expected);
    for (mark, offset) in [("tomorrow", DAY), ("yesterday", -DAY), ("1970", 1000 - now()), ("later", 20 * 365 * DAY)] {
        clocks.day(offset);
        stage_some(&test, mark, &mut expected);
        // The daemon did see the jump: it is what gives a directory its time.
        let shown = fs::metadata(&test.dir).unwrap().mtime();
        assert!((shown - now() - offset).abs() < 120, "{mark}: {shown}");
    }
    // In the middle of an outage, too.
    server.stop();
    fs::write(test.at("waiting"), "waiting").unwrap();
    expected.insert("waiting".into(), b"waiting".to_vec());
    test.wait_status("the outage to show", |status| status["stalled"].is_string());
    clocks.day(1000 - now());
    let age = test.status()["oldest_unstaged_secs"].as_u64();
    assert!(age.is_some_and(|age| age < 120), "{age:?}");
    server.start(None);
    clocks.day(0);
    assert_ends_well(&test, &server, &expected);
}

#[test]
fn a_suspended_machine_goes_on_where_it_was() {
    let mut server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let clocks = Clocks::of(&test);
    test.mount_after(&clocks.shell).ok();
    let mut expected = Tree::new();
    stage_some(&test, "before", &mut expected);
    server.stop();
    fs::write(test.at("waiting"), "waiting").unwrap();
    expected.insert("waiting".into(), b"waiting".to_vec());
    test.wait_status("the outage to show", |status| status["stalled"].is_string());
    clocks.since_start(DAY);
    clocks.day(DAY);
    server.start(None);
    stage_some(&test, "after", &mut expected);
    assert_ends_well(&test, &server, &expected);
}
