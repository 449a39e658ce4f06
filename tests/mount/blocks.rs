//! Large files that are read before all of them is here: what that costs, and that no byte is ever wrong.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::dataset::noise;
use crate::gateway::{Fault, Gateway};
use crate::http::Tree;
use crate::mounted::{TestMount, wait_until};
use crate::proxy::Proxy;
use crate::scripted::Scripted;

const MIB: usize = 1 << 20;

/// A branch with one large file, of which nothing is here.
fn large(server: &str, size: usize) -> (TestMount, Vec<u8>) {
    let content = noise(size as u64, size);
    let test = TestMount::committed_by(server, &Tree::from([("large".to_owned(), content.clone())]));
    (test, content)
}

/// How many requests came whose path contains `path`.
fn asked(server: &Scripted, path: &str) -> usize {
    server.log().iter().filter(|(_, at, _)| at.contains(path)).count()
}

fn forget_traffic(server: &Scripted) {
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
}

fn read_at(file: &File, at: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at as u64).unwrap();
    bytes
}

/// The files in which parts of files are kept.
fn parts(test: &TestMount) -> Vec<PathBuf> {
    let caches = fs::read_dir(&test.state).unwrap().map(|state| state.unwrap().path().join("cache/parts"));
    let mut found: Vec<PathBuf> =
        caches.filter_map(|dir| fs::read_dir(dir).ok()).flatten().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn cache(test: &TestMount, what: &str) -> u64 {
    test.status()["cache"][what].as_u64().unwrap()
}

fn cached(test: &TestMount, name: &str) -> String {
    let mut room = [0; 100];
    let length = rustix::fs::getxattr(test.at(name), "user.oxenfs.cached", &mut room[..]).unwrap();
    String::from_utf8_lossy(&room[..length]).into_owned()
}

#[test]
fn the_end_of_a_large_file_and_reads_here_and_there_move_little() {
    let server = Scripted::new();
    let proxy = Proxy::new(&server.url());
    let (test, content) = large(&proxy.url(), 64 * MIB);
    test.mount(&["--read-only"]).ok();
    let file = File::open(test.at("large")).unwrap();
    assert_eq!(cached(&test, "large"), "no");
    let moved = |work: &dyn Fn()| {
        let before = proxy.total();
        work();
        proxy.total() - before
    };
    let last = moved(&|| assert_eq!(read_at(&file, 64 * MIB - 1024, 1024), content[64 * MIB - 1024..]));
    assert!(last < 4 << 20, "{last} bytes for the last kilobyte");
    assert_eq!(cached(&test, "large"), format!("131072 of {} bytes", 64 * MIB));
    let mut random = fastrand::Rng::with_seed(4);
    let mut each: Vec<u64> = (0..101)
        .map(|_| {
            let at = random.usize(..64 * MIB / 4096) * 4096;
            moved(&|| assert_eq!(read_at(&file, at, 4096), content[at..at + 4096]))
        })
        .collect();
    each.sort_unstable();
    assert!(each[50] <= 256 << 10 && each[100] <= 1 << 20, "{each:?}");
    assert!(cache(&test, "blocks_fetched") < 130, "{:#}", test.status()["cache"]);
    // Of a file of one block as well, and never past its end.
    assert!(server.log().iter().all(|(_, path, status)| !path.contains("/chunk/") || *status == 200));
    drop(file);
    let before = cached(&test, "large");
    test.unmount();
    // It is there at the next mount.
    test.mount(&["--read-only"]).ok();
    let file = File::open(test.at("large")).unwrap();
    let again = moved(&|| assert_eq!(read_at(&file, 64 * MIB - 1024, 1024), content[64 * MIB - 1024..]));
    assert!(again < 64 << 10, "{again}");
    assert_eq!(cached(&test, "large"), before);
    drop(file);
    test.unmount();
}

#[test]
fn what_is_read_in_a_row_comes_in_large_pieces_several_at_once_and_is_a_file_of_the_cache_in_the_end() {
    let mut server = Scripted::new();
    let (test, content) = large(&server.url(), 40 * MIB + 12_345);
    forget_traffic(&server);
    test.mount(&["--read-only"]).ok();
    assert!(fs::read(test.at("large")).unwrap() == content);
    let requests = asked(&server, "/chunk/");
    assert!(requests <= 40, "{requests}");
    assert_eq!(asked(&server, "/file/"), 0);
    wait_until("the file to be compared with its hash", || cached(&test, "large") == "yes" && parts(&test).is_empty());
    server.stop();
    assert!(fs::read(test.at("large")).unwrap() == content);
    test.unmount();
    server.start(None);
    test.mount(&["--read-only"]).ok();
    server.stop();
    assert!(fs::read(test.at("large")).unwrap() == content);
    server.start(None);
    test.unmount();
}

#[test]
fn who_needs_all_of_a_file_fetches_what_is_lacking() {
    let server = Scripted::new();
    let proxy = Proxy::new(&server.url());
    let (test, content) = large(&proxy.url(), 16 * MIB);
    test.mount(&["--settle", "600"]).ok();
    let before = proxy.total();
    let file = File::open(test.at("large")).unwrap();
    for at in [2, 5, 11] {
        assert!(read_at(&file, at * MIB, 2 * MIB) == content[at * MIB..(at + 2) * MIB]);
    }
    // What is written shows to who has had it open.
    let writer = File::options().read(true).write(true).open(test.at("large")).unwrap();
    writer.write_all_at(b"changed", 3).unwrap();
    let mut expected = content;
    expected[3..10].copy_from_slice(b"changed");
    assert!(read_at(&file, 0, 16 * MIB) == expected);
    let moved = proxy.total() - before;
    assert!(moved < 18 << 20, "{moved} bytes for a file of 16 MiB");
    drop((file, writer));
    test.unmount_commit();
    assert!(server.committed(&test.repo)["large"] == expected);
}

#[test]
fn two_who_read_the_same_cost_one_request() {
    let server = Scripted::new();
    let gateway = Gateway::new(&server.url());
    let (test, content) = large(&gateway.url(), 8 * MIB);
    test.mount(&["--read-only"]).ok();
    gateway.rule(|_, path| path.contains("/chunk/").then(|| Fault::Delay(Duration::from_millis(500))));
    std::thread::scope(|scope| {
        for length in [4096, 100, 8192] {
            let (path, content) = (test.at("large"), &content);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                assert_eq!(read_at(&file, 5 * MIB + 10, length), content[5 * MIB + 10..][..length]);
            });
        }
    });
    let asked = gateway.log().iter().filter(|passed| passed.path.contains("/chunk/")).count();
    assert_eq!(asked, 1);
    test.unmount();
}

#[test]
fn a_server_that_gives_no_parts_is_asked_for_the_whole_once() {
    for code in [404, 405, 501] {
        let server = Scripted::new();
        let (test, content) = large(&server.url(), 6 * MIB);
        server.arm("GET", "/chunk/", None, json!({"status": {"code": code}}));
        forget_traffic(&server);
        test.mount(&["--read-only"]).ok();
        let file = File::open(test.at("large")).unwrap();
        for at in [4 * MIB, 17, 2 * MIB] {
            assert_eq!(read_at(&file, at, 5000), content[at..at + 5000], "{code}");
        }
        assert_eq!(asked(&server, "/file/"), 1, "{code}");
        assert!(asked(&server, "/chunk/") <= 4, "{code}: {:#?}", server.log());
        drop(file);
        test.unmount();
    }
}

#[test]
fn a_server_that_is_away_costs_a_reader_time_and_nothing_else() {
    let mut server = Scripted::new();
    let (test, content) = large(&server.url(), 8 * MIB);
    test.mount(&["--read-only"]).ok();
    let file = File::open(test.at("large")).unwrap();
    assert_eq!(read_at(&file, 0, 100), content[..100]);
    server.stop();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_at(&file, 4 * MIB, 100_000));
        // Its first attempt has failed by then.
        wait_until("the daemon to notice", || !test.status()["phase"].is_null());
        server.start(None);
        assert_eq!(reader.join().unwrap(), content[4 * MIB..][..100_000]);
    });
    drop(file);
    test.unmount();
}

#[test]
fn a_wrong_block_of_the_servers_is_found_when_the_file_is_complete() {
    let server = Scripted::new();
    let (test, content) = large(&server.url(), 3 * MIB);
    test.mount(&["--read-only"]).ok();
    let stored = server.stored(&content);
    let time = fs::metadata(&stored).unwrap().modified().unwrap();
    let mut wrong = content.clone();
    wrong[MIB + 5] ^= 1;
    let store = |content: &[u8]| {
        fs::write(&stored, content).unwrap();
        File::options().write(true).open(&stored).unwrap().set_modified(time).unwrap();
    };
    store(&wrong);
    let file = File::open(test.at("large")).unwrap();
    assert!(read_at(&file, 2 * MIB, MIB) == content[2 * MIB..]);
    assert!(read_at(&file, MIB, MIB) == wrong[MIB..2 * MIB], "until all is here a block is what the server sent");
    store(&content);
    assert!(read_at(&file, 0, MIB) == content[..MIB]);
    test.wait_status("the file to be found wrong", |status| status["cache"]["wrong_files"] == 1);
    wait_until("the kernel to be told", || read_at(&file, 0, 3 * MIB) == content);
    drop(file);
    assert!(fs::read(test.at("large")).unwrap() == content);
    assert_eq!(cached(&test, "large"), "yes");
    test.unmount();
}

#[test]
fn no_damage_of_what_is_here_in_part_shows() {
    let server = Scripted::new();
    let (test, content) = large(&server.url(), 10 * MIB);
    let mut random = fastrand::Rng::with_seed(10);
    for round in 0..6 {
        test.mount(&["--read-only"]).ok();
        let file = File::open(test.at("large")).unwrap();
        for _ in 0..12 {
            let at = random.usize(..10 * MIB - 100_000);
            assert!(read_at(&file, at, 100_000) == content[at..at + 100_000], "round {round}");
        }
        drop(file);
        test.unmount();
        for path in parts(&test) {
            let damaged = File::options().write(true).open(&path).unwrap();
            let length = damaged.metadata().unwrap().len();
            let time = damaged.metadata().unwrap().modified().unwrap();
            for _ in 0..if path.extension().is_some() { round % 2 } else { 30 } {
                let at = random.u64(..length);
                match random.u8(..3) {
                    0 => damaged.write_all_at(&[random.u8(..)], at).unwrap(),
                    1 => damaged.write_all_at(&vec![0; 5000.min(length - at) as usize], at).unwrap(),
                    _ => damaged.write_all_at(&noise(at, 70_000.min(length - at) as usize), at).unwrap(),
                }
            }
            if round == 4 {
                damaged.set_len(length / 2).unwrap();
            }
            // Nothing but the bytes tells.
            damaged.set_modified(time).unwrap();
        }
    }
    test.mount(&["--read-only"]).ok();
    assert!(fs::read(test.at("large")).unwrap() == content);
    test.unmount();
}

#[test]
fn a_daemon_that_is_killed_while_blocks_come_leaves_no_wrong_byte() {
    let server = Scripted::new();
    let proxy = Proxy::new(&server.url());
    let (test, content) = large(&proxy.url(), 24 * MIB);
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..6 {
        test.mount(&["--read-only"]).ok();
        std::thread::scope(|scope| {
            let (path, content, from) = (test.at("large"), &content, random.usize(..12) * MIB);
            let enough = proxy.total() + random.u64(MIB as u64..6 << 20);
            let reader = scope.spawn(move || {
                let Ok(file) = File::open(path) else { return };
                let mut bytes = vec![0; 64 << 10];
                for at in (from..24 * MIB).step_by(bytes.len()) {
                    // The daemon is gone by then.
                    if file.read_exact_at(&mut bytes, at as u64).is_err() {
                        return;
                    }
                    assert!(bytes == content[at..at + bytes.len()], "at {at}");
                }
            });
            wait_until("some blocks to come", || proxy.total() >= enough || reader.is_finished());
            test.signal(Signal::KILL);
            reader.join().unwrap();
        });
        test.detach();
    }
    test.mount(&["--read-only"]).ok();
    assert!(fs::read(test.at("large")).unwrap() == content);
    test.unmount();
}

#[test]
fn parts_of_files_stay_within_the_caches_limit() {
    let server = Scripted::new();
    let (test, content) = large(&server.url(), 24 * MIB);
    test.mount(&["--read-only", "--cache-limit", "8M"]).ok();
    assert!(fs::read(test.at("large")).unwrap() == content);
    let file = File::open(test.at("large")).unwrap();
    for at in (0..24).rev() {
        assert!(read_at(&file, at * MIB, MIB) == content[at * MIB..(at + 1) * MIB]);
        assert!(cache(&test, "bytes") <= 9 << 20, "{:#}", test.status()["cache"]);
    }
    drop(file);
    test.unmount();
}
