//! Caches of several mounts of one user on one machine: what they take from each other, and that neither kills nor damage
//! show.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::dataset::noise;
use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, is_over, local_tree, wait_until};
use crate::scripted::Scripted;

const MIB: usize = 1 << 20;

/// Small files, and some that come in blocks.
fn files() -> Tree {
    let mut files = Tree::new();
    for at in 0..40 {
        files.insert(format!("small/{at:02}"), noise(at, 40_000));
    }
    for at in 0..4 {
        files.insert(format!("large/{at}"), noise(100 + at, 3 * MIB + 77));
    }
    files
}

fn forget_traffic(server: &Scripted) {
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
}

/// How often content was asked for.
fn asked(server: &Scripted) -> usize {
    let of_content = |path: &str| ["/file/", "/chunk/", "/versions"].iter().any(|part| path.contains(part));
    server.log().iter().filter(|(method, path, _)| ["GET", "QUERY"].contains(&&**method) && of_content(path)).count()
}

fn read_at(file: &File, at: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at as u64).unwrap();
    bytes
}

/// All files below the caches of a directory of states, by the directory of the mount's and the name.
fn in_caches(states: &Path, part: &str) -> BTreeMap<(PathBuf, String), PathBuf> {
    let mut found = BTreeMap::new();
    for state in fs::read_dir(states).unwrap().map(|state| state.unwrap().path()) {
        let mut dirs = vec![state.join("cache")];
        while let Some(dir) = dirs.pop() {
            for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    dirs.push(path);
                } else if path.to_str().unwrap().contains(part) {
                    found.insert((state.clone(), path.file_name().unwrap().to_str().unwrap().to_owned()), path);
                }
            }
        }
    }
    found
}

fn unmount(test: &TestMount, dir: &Path) {
    test.oxenfs(["unmount", dir.to_str().unwrap()]).ok();
}

/// Ends the daemon of a mount as a power cut would, but for the machine.
fn kill(test: &TestMount, dir: &Path) {
    let said = test.oxenfs(["status", dir.to_str().unwrap(), "--json"]).ok();
    let status: Value = serde_json::from_str(&said.out).unwrap();
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_until("the daemon to be gone", || is_over(pid));
    Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(dir).status().unwrap();
}

#[test]
fn blocks_that_another_mount_has_are_not_asked_for_again() {
    let mut server = Scripted::new();
    let content = noise(1, 24 * MIB);
    let test = TestMount::committed_by(&server.url(), &Tree::from([("large".to_owned(), content.clone())]));
    test.mount(&["--read-only"]).ok();
    assert!(read_at(&File::open(test.at("large")).unwrap(), 8 * MIB, 4 * MIB) == content[8 * MIB..12 * MIB]);
    // What came is written down, as it is every second.
    test.unmount();
    let parts = in_caches(&test.state, "/cache/parts/");
    assert_eq!(parts.len(), 2, "a file and its map");
    let map = fs::read(parts.values().find(|path| path.extension().is_some()).unwrap()).unwrap();
    let header: Value = serde_json::from_slice(map.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    // One of the blocks is not any more what came.
    let data = parts.values().find(|path| path.extension().is_none()).unwrap();
    File::options().write(true).open(data).unwrap().write_all_at(b"damaged", 9 * MIB as u64 + 5).unwrap();
    let other = test.beside("other");
    test.mount_with(&test.state, &other, &[]).ok();
    let names: Vec<_> = fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["large"]);
    server.stop();
    let file = File::open(other.join("large")).unwrap();
    assert!(read_at(&file, 10 * MIB, MIB) == content[10 * MIB..11 * MIB]);
    server.start(None);
    assert!(read_at(&file, 0, 24 * MIB) == content);
    drop(file);
    let said = test.oxenfs(["status", other.to_str().unwrap(), "--json"]).ok();
    let status: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(status["cache"]["wrong_files"], 0, "{status:#}");
    let fetched = status["cache"]["blocks_fetched"].as_u64().unwrap();
    assert_eq!(fetched, 192 - header["blocks"].as_u64().unwrap() + 1, "what is not to be had beside, and no more");
    unmount(&test, &other);
}

#[test]
fn what_is_here_is_taken_from_repositories_of_the_same_owner_alone() {
    let server = Scripted::new();
    let files = Tree::from([("a".to_owned(), noise(1, 5000)), ("b".to_owned(), noise(2, 2 * MIB))]);
    let test = TestMount::committed_by(&server.url(), &files);
    test.mount(&["--read-only"]).ok();
    assert_same(&local_tree(&test.dir), &files);
    // What came has its name then.
    test.unmount();
    let (other, elsewhere, url) = (test.beside("other"), test.beside("elsewhere"), server.url());
    let other = other.to_str().unwrap();
    let who = ["-m", "m", "--author", "A", "--email", "a@example.org"];
    for (repo, is_taken) in [("test/of-the-same", true), ("stranger/of-another", false)] {
        test.oxenfs_with(&elsewhere, ["mount", repo, other, "--server", &url, "--create"]).ok();
        files.iter().for_each(|(name, content)| fs::write(Path::new(other).join(name), content).unwrap());
        test.oxenfs_with(&elsewhere, [&["unmount", other, "--commit"][..], &who].concat()).ok();
        forget_traffic(&server);
        test.oxenfs(["mount", repo, other, "--server", &url, "--read-only"]).ok();
        assert_same(&local_tree(Path::new(other)), &files);
        assert_eq!(asked(&server) == 0, is_taken, "{repo}: {:#?}", server.log());
        test.oxenfs(["unmount", other]).ok();
    }
}

#[test]
fn mounts_that_only_read_have_one_file_for_one_content_and_need_nothing_of_each_other() {
    let mut server = Scripted::new();
    let files = files();
    let test = TestMount::committed_by(&server.url(), &files);
    test.mount(&["--read-only"]).ok();
    assert_same(&local_tree(&test.dir), &files);
    let commit = test.status()["base"].as_str().unwrap().to_owned();
    // What came has its name then.
    test.unmount();
    test.mount(&["--read-only"]).ok();
    forget_traffic(&server);
    let other = test.beside("other");
    test.mount_with(&test.state, &other, &["--revision", &commit]).ok();
    assert_same(&local_tree(&other), &files);
    assert_eq!(asked(&server), 0, "{:#?}", server.log());
    // Both read the same large file at a time.
    let both = [&test.dir, &other].map(|dir| File::open(dir.join("large/1")).unwrap());
    for at in (0..3 * MIB).step_by(100_000) {
        both.iter().for_each(|file| assert!(read_at(file, at, 77) == files["large/1"][at..at + 77]));
    }
    drop(both);
    unmount(&test, &other);
    let shared: Vec<PathBuf> = in_caches(&test.state, "/cache/boot-").into_values().collect();
    assert_eq!(shared.len(), 2 * files.len());
    assert!(shared.iter().all(|path| fs::metadata(path).unwrap().nlink() == 2), "{shared:#?}");
    // What one is done with, the other has still, also where nobody else is there to ask.
    test.oxenfs(["warm", "--evict", test.dir.to_str().unwrap()]).ok();
    test.mount_with(&test.state, &other, &["--revision", &commit]).ok();
    assert_same(&local_tree(&other), &files);
    forget_traffic(&server);
    // A mount that takes changes has files of its own.
    let writer = test.beside("writer");
    test.mount_with(&test.state, &writer, &[]).ok();
    assert_same(&local_tree(&writer), &files);
    assert_eq!(asked(&server), 0, "{:#?}", server.log());
    for at in 0..4 {
        let path = format!("large/{at}");
        let both = File::options().read(true).write(true).open(writer.join(&path)).unwrap();
        both.write_all_at(b"changed", 5).unwrap();
        assert!(fs::read(other.join(&path)).unwrap() == files[&path]);
    }
    server.stop();
    unmount(&test, &other);
    unmount(&test, &test.dir);
    server.start(None);
    test.mount_with(&test.state, &other, &["--revision", &commit]).ok();
    assert_same(&local_tree(&other), &files);
    unmount(&test, &other);
    unmount(&test, &writer);
}

/// Damages each file of all caches in some way, and tells how many it found.
fn damage(states: &Path, random: &mut fastrand::Rng) -> usize {
    let all = in_caches(states, "/cache/");
    for path in all.values() {
        // A daemon that runs drops what it finds damaged, and puts new files in place by their names.
        let file = match File::options().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => file.unwrap(),
        };
        let length = file.metadata().unwrap().len();
        let at = random.u64(..length.max(1));
        match random.u8(..5) {
            0 => file.write_all_at(&[random.u8(..)], at).unwrap(),
            1 => file.write_all_at(&vec![0; 5000.min(length - at) as usize], at).unwrap(),
            2 => file.write_all_at(&noise(at, 70_000.min(length - at) as usize), at).unwrap(),
            3 => file.set_len(at).unwrap(),
            _ => file.write_all_at(b"behind the end", length).unwrap(),
        }
    }
    all.len()
}

#[test]
fn no_damage_of_any_file_of_two_caches_shows_as_a_wrong_byte() {
    let server = Scripted::new();
    let (files, mut random) = (files(), fastrand::Rng::with_seed(22));
    let test = TestMount::committed_by(&server.url(), &files);
    let other = test.beside("other");
    for round in 0..6 {
        test.mount(&["--read-only"]).ok();
        test.mount_with(&test.state, &other, &[]).ok();
        // Under the daemons, too, which have opened none of them yet.
        if round % 2 == 1 {
            assert!(damage(&test.state, &mut random) >= 2 * files.len());
        }
        let dirs = if random.bool() { [&test.dir, &other] } else { [&other, &test.dir] };
        for dir in dirs {
            assert_same(&local_tree(dir), &files);
        }
        // A part of one.
        test.oxenfs(["warm", "--evict", test.at("large/0").to_str().unwrap()]).ok();
        assert!(read_at(&File::open(test.at("large/0")).unwrap(), MIB, 1000) == files["large/0"][MIB..MIB + 1000]);
        unmount(&test, &other);
        test.unmount();
        if round % 2 == 0 {
            assert!(damage(&test.state, &mut random) >= 2 * files.len());
        }
    }
}

#[test]
fn two_daemons_that_are_killed_while_they_take_from_each_other_show_no_wrong_byte() {
    let server = Scripted::new();
    let files = files();
    let test = TestMount::committed_by(&server.url(), &files);
    let other = test.beside("other");
    // Neither holds all of it: what one drops the other may be about to take.
    let options = [&["--read-only", "--cache-limit", "6M"][..], &["--cache-limit", "8M"]];
    let dirs = [&test.dir, &other];
    let mount = |at: usize| test.mount_with(&test.state, dirs[at], options[at]).ok();
    mount(0);
    mount(1);
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..10 {
        let reads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|thread| {
                    let (dir, files, reads) = (dirs[thread % 2], &files, &reads);
                    let mut random = fastrand::Rng::with_seed((round * 4 + thread) as u64);
                    scope.spawn(move || {
                        let mut order: Vec<_> = files.iter().collect();
                        random.shuffle(&mut order);
                        for (path, content) in order.into_iter().take(25) {
                            // The daemon is gone by then.
                            let Ok(file) = File::open(dir.join(path)) else { return };
                            let at = random.usize(..content.len());
                            let mut bytes = vec![0; (content.len() - at).min(1 << random.u8(10..23))];
                            if file.read_exact_at(&mut bytes, at as u64).is_err() {
                                return;
                            }
                            assert!(bytes == content[at..at + bytes.len()], "{path} from {at}");
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let (enough, victim) = (random.usize(5..60), random.usize(..2));
            let is_time =
                || reads.load(Ordering::Relaxed) >= enough || readers.iter().all(|reader| reader.is_finished());
            wait_until("some to have been read", is_time);
            kill(&test, dirs[victim]);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            mount(victim);
        });
    }
    for dir in dirs {
        assert_same(&local_tree(dir), &files);
    }
    unmount(&test, &other);
    test.unmount();
}
