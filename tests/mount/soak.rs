//! Writers that never stop, while daemons are killed, mounts taken away, servers cut off and restarted, and commits
//! made; at the end the tree, the branch and a plain copy of all that was acknowledged are equal.
//!
//! `OXENFS_SOAK_SECS` says for how long (`scripts/soak`), `OXENFS_TEST_SEED` or `PROPTEST_RNG_SEED` what is drawn.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::dataset::noise;
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, wait_until};
use crate::scripted::Scripted;

const WRITERS: u64 = 3;
/// How long a writer tries again: longer than any mount is away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does `act` until it is acknowledged; each act may have happened before its answer was lost.
fn insist(what: &str, act: impl Fn() -> io::Result<()>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = act() {
        assert!(Instant::now() < deadline, "{what}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes the directories of `path`, but none above `mount`: those are not there while nothing is mounted.
fn make_dirs(mount: &Path, path: &str) -> io::Result<()> {
    for (at, _) in path.match_indices('/') {
        match fs::create_dir(mount.join(&path[..at])) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// One change of a random file of this writer, on the mount and then on the copy.
fn change(mount: &Path, copy: &Path, random: &mut fastrand::Rng) {
    let name =
        |random: &mut fastrand::Rng| format!("{}/{}", random.choice(["a", "b", "c/d"]).unwrap(), random.u8(0..12));
    let (from, to) = (name(random), name(random));
    let exists = copy.join(&from).exists();
    match random.u8(0..10) {
        0..=5 => {
            let size = *random.choice(&[0, 20, 3000, 90_000, 700_000]).unwrap();
            let content = noise(random.u64(..), size);
            insist("write", || {
                make_dirs(mount, &from)?;
                fs::write(mount.join(&from), &content)
            });
            fs::create_dir_all(copy.join(&from).parent().unwrap()).unwrap();
            fs::write(copy.join(&from), &content).unwrap();
        }
        6..=7 if exists => {
            insist("remove", || match fs::remove_file(mount.join(&from)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && mount.join("mounted").exists() => Ok(()),
                done => done,
            });
            fs::remove_file(copy.join(&from)).unwrap();
        }
        8..=9 if exists && from != to => {
            insist("rename", || {
                make_dirs(mount, &to)?;
                match fs::rename(mount.join(&from), mount.join(&to)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && mount.join("mounted").exists() => Ok(()),
                    done => done,
                }
            });
            fs::create_dir_all(copy.join(&to).parent().unwrap()).unwrap();
            fs::rename(copy.join(&from), copy.join(&to)).unwrap();
        }
        _ => {}
    }
}

#[test]
fn kills_faults_and_remounts_under_load_lose_nothing() {
    let secs = std::env::var("OXENFS_SOAK_SECS").map_or(25, |secs| secs.parse().expect("a number of seconds"));
    let given = ["OXENFS_TEST_SEED", "PROPTEST_RNG_SEED"].into_iter().find_map(|name| std::env::var(name).ok());
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    tell(&format!("seed {seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    let copy = test.beside("copy");
    for writer in 0..WRITERS {
        fs::create_dir(test.at(writer.to_string())).unwrap();
        fs::write(test.at(format!("{writer}/mounted")), "").unwrap();
        fs::create_dir(copy.join(writer.to_string())).unwrap();
        fs::write(copy.join(format!("{writer}/mounted")), "").unwrap();
    }
    let stop = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    let mut kills = 0;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (stop, changes, test, copy) = (&stop, &changes, &test, &copy);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ writer);
                let (mount, copy) = (test.at(writer.to_string()), copy.join(writer.to_string()));
                while !stop.load(Ordering::Relaxed) {
                    insist("the mount", || fs::metadata(mount.join("mounted")).map(drop));
                    change(&mount, &copy, &mut random);
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(secs);
        // A writer's panic must not leave the others going for ever.
        let _end = StopAtEnd(&stop);
        while Instant::now() < until {
            let seen = changes.load(Ordering::Relaxed);
            wait_until("the writers to go on", || changes.load(Ordering::Relaxed) > seen + 30);
            let (action, started) = (random.u8(0..8), Instant::now());
            match action {
                0..=2 => {
                    server.disarm();
                    test.signal(Signal::KILL);
                    test.mount(&[]).ok();
                    kills += 1;
                }
                3 => {
                    server.disarm();
                    let away = std::process::Command::new("umount").arg("-l").arg(&test.dir).status().unwrap();
                    assert!(away.success());
                    test.mount(&[]).ok();
                }
                4 => {
                    server.stop();
                    let seen = changes.load(Ordering::Relaxed);
                    wait_until("the writers to go on", || changes.load(Ordering::Relaxed) > seen + 30);
                    server.start(None);
                }
                5 => {
                    let action = *random.choice(&["drop_before", "drop_after"]).unwrap();
                    server.arm("", "/workspaces/", Some(5), json!(action));
                    server.arm("", "/versions/", Some(5), json!({"status": {"code": 503}}));
                }
                6 => {
                    server.disarm();
                    test.sync();
                }
                _ => {
                    server.disarm();
                    test.commit();
                }
            }
            if started.elapsed() > Duration::from_secs(15) {
                tell(&format!("action {action} took {:?}", started.elapsed()));
            }
        }
    });
    server.disarm();
    assert_same(&local_tree(&test.dir), &local_tree(&copy));
    test.sync();
    assert_same(&local_tree(&test.dir), &local_tree(&copy));
    test.unmount_commit();
    assert_same(&server.committed(&test.repo), &local_tree(&copy));
    tell(&format!("{} changes, {kills} kills in {secs} s, nothing lost", changes.load(Ordering::Relaxed)));
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[expect(clippy::print_stderr, reason = "the seed, and how much was tried; shown with a failure or with --nocapture")]
fn tell(what: &str) {
    eprintln!("{what}");
}
