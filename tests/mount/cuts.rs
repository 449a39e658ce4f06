//! What a commit, a `sync` and an `unmount` hold when programs rename, replace, remove and link meanwhile, as dataset
//! libraries and trainers do. `OXENFS_TEST_FULL=1` makes the runs long.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::dataset::{full, noise};
use crate::http::{assert_same, committed_paths};
use crate::mounted::{TestMount, local_tree, wait_until};
use crate::server;

/// Nothing is staged before somebody waits for it.
const PATIENT: [&str; 2] = ["--settle", "3600"];

/// So many that staging takes a while.
fn files() -> u64 {
    if full() { 6000 } else { 500 }
}

fn many(test: &TestMount, dir: &str) {
    fs::create_dir(test.at(dir)).unwrap();
    for at in 0..files() {
        fs::write(test.at(dir).join(format!("{at}.arrow")), noise(at, 300)).unwrap();
    }
}

fn under(dir: &str) -> BTreeSet<String> {
    (0..files()).map(|at| format!("{dir}/{at}.arrow")).collect()
}

/// Fails unless `found` has the files of `dir`, and no other of any directory.
#[track_caller]
fn assert_whole(found: &BTreeSet<String>, dir: &str) {
    let (expected, missing) = (under(dir), under(dir).difference(found).count());
    assert!(*found == expected, "of {} files {missing} are not under {dir}; in all there are {}", files(), found.len());
}

fn staged(test: &TestMount) -> u64 {
    test.status()["counts"]["staged"]["files"].as_u64().unwrap()
}

/// Does `meanwhile` when staging has begun; nothing is staged before `command`.
fn amid(test: &TestMount, command: impl Fn() + Sync, meanwhile: impl Fn()) {
    std::thread::scope(|scope| {
        let commanded = scope.spawn(&command);
        wait_until("staging to be under way", || staged(test) > 0 || commanded.is_finished());
        meanwhile();
        commanded.join().unwrap();
    });
}

#[test]
fn a_directory_published_by_a_rename_during_a_commit_is_in_it_whole() {
    let test = TestMount::with(server::url(), &PATIENT);
    many(&test, "ds.incomplete");
    amid(&test, || test.commit(), || fs::rename(test.at("ds.incomplete"), test.at("ds")).unwrap());
    assert_whole(&committed_paths(server::url(), &test.repo), "ds.incomplete");
    test.commit();
    assert_whole(&committed_paths(server::url(), &test.repo), "ds");
    for at in [0, files() / 2, files() - 1] {
        assert_eq!(test.committed_file(&format!("ds/{at}.arrow")), Some(noise(at, 300)));
    }
    test.unmount();
}

#[test]
fn a_directory_published_by_a_rename_during_a_sync_or_an_unmount_is_staged_whole() {
    let test = TestMount::with(server::url(), &PATIENT);
    many(&test, "ds.incomplete");
    amid(&test, || test.sync(), || fs::rename(test.at("ds.incomplete"), test.at("ds")).unwrap());
    assert_whole(&test.staged_paths().into_iter().collect(), "ds");

    let other = TestMount::with(server::url(), &PATIENT);
    many(&other, "ds.incomplete");
    amid(&other, || other.unmount_commit(), || fs::rename(other.at("ds.incomplete"), other.at("ds")).unwrap());
    assert_whole(&committed_paths(server::url(), &other.repo), "ds");
    test.unmount_commit();
}

#[test]
fn files_replaced_during_a_commit_are_in_it_in_one_version_or_the_other() {
    let test = TestMount::with(server::url(), &PATIENT);
    many(&test, "images");
    let names: Vec<String> = (0..50).map(|at| format!("labels {at}.json")).collect();
    for name in &names {
        fs::write(test.at(name), "v1").unwrap();
    }
    fs::write(test.at("data.bin"), noise(1, 40 << 20)).unwrap();
    let replace = || {
        for name in &names {
            let temporary = test.at(format!("{name}.tmp"));
            fs::write(&temporary, "v2 which is longer").unwrap();
            fs::rename(&temporary, test.at(name)).unwrap();
        }
        fs::write(test.at("t"), "v2").unwrap();
        fs::rename(test.at("t"), test.at("data.bin")).unwrap();
    };
    amid(&test, || test.commit(), replace);
    for name in &names {
        assert_eq!(test.committed_file(name).as_deref(), Some(b"v1".as_slice()), "{name}");
    }
    assert!(test.committed_file("data.bin") == Some(noise(1, 40 << 20)), "data.bin is not what it was at the cut");
    test.commit();
    for name in names.iter().chain([&"data.bin".to_owned()]) {
        assert_eq!(test.committed_file(name), Some(fs::read(test.at(name)).unwrap()), "{name}");
    }
    test.unmount();
}

/// Writes shards and an index that stays open, and checkpoints with a pointer to the last, until it is told to stop; at
/// most so many `steps`, so that a slow server is not left behind for ever.
fn train(dir: &Path, steps: &AtomicU64, stop: &AtomicBool) {
    let mut index = File::create(dir.join("index")).unwrap();
    for step in 0.. {
        while step >= steps.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let shard = format!("shard-{step}");
        fs::write(dir.join(&shard), noise(step, 2000)).unwrap();
        writeln!(index, "{shard}").unwrap();
        let checkpoint = format!("checkpoint-{step}");
        fs::write(dir.join(&checkpoint), noise(step, 5000)).unwrap();
        fs::write(dir.join("latest.tmp"), &checkpoint).unwrap();
        fs::rename(dir.join("latest.tmp"), dir.join("latest")).unwrap();
        if step >= 3 {
            fs::remove_file(dir.join(format!("checkpoint-{}", step - 3))).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many steps a program does for each commit.
const STEPS: u64 = 10;

#[test]
fn a_commit_names_only_what_it_holds() {
    let test = TestMount::with(server::url(), &["--settle", "0"]);
    let (steps, stop) = (AtomicU64::new(STEPS), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let trainer = scope.spawn(|| train(&test.dir, &steps, &stop));
        wait_until("a checkpoint", || test.at("latest").exists());
        for commit in 0..if full() { 200 } else { 5 } {
            steps.fetch_add(STEPS, Ordering::Relaxed);
            test.commit();
            let paths = committed_paths(server::url(), &test.repo);
            let text = |path: &str| String::from_utf8(test.committed_file(path).unwrap()).unwrap();
            let latest = text("latest");
            assert!(paths.contains(&latest), "commit {commit} lacks {latest}, which its latest names");
            for shard in text("index").lines() {
                assert!(paths.contains(shard), "commit {commit} lacks {shard}, which its index names");
            }
        }
        stop.store(true, Ordering::Relaxed);
        trainer.join().unwrap();
    });
    test.unmount_and_compare();
}

/// Paths of `oxenfs diff` that are more than what stays here.
fn differing(test: &TestMount) -> Vec<(String, String)> {
    let said = test.oxenfs(["diff", test.dir.to_str().unwrap(), "--json"]).ok();
    let found: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = found.iter().map(|one| (text(&one["kind"]), text(&one["path"])));
    found.filter(|(kind, _)| kind != "local").collect()
}

#[test]
fn what_is_renamed_away_and_back_or_linked_anew_during_commits_stays_known() {
    let test = TestMount::with(server::url(), &["--settle", "0"]);
    for name in ["f", "g", "h"] {
        fs::create_dir_all(test.at("data")).unwrap();
        fs::write(test.at("data").join(name), noise(7, 900)).unwrap();
    }
    test.commit();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let program = scope.spawn(|| {
            let (f, away) = (test.at("data/f"), test.at("away"));
            for step in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if step % 2 == 0 {
                    fs::rename(&f, &away).unwrap();
                    fs::rename(&away, &f).unwrap();
                } else {
                    fs::remove_file(&f).unwrap();
                    fs::hard_link(test.at("data/g"), &f).unwrap();
                }
            }
        });
        for commit in 0..if full() { 200 } else { 5 } {
            fs::write(test.at("log"), format!("commit {commit}")).unwrap();
            test.commit();
        }
        stop.store(true, Ordering::Relaxed);
        program.join().unwrap();
    });
    test.commit();
    assert_eq!(differing(&test), []);
    assert_same(&test.committed(), &local_tree(&test.dir));
    fs::remove_file(test.at("data/f")).unwrap();
    test.commit();
    assert_same(&test.committed(), &local_tree(&test.dir));
    test.unmount();
    test.mount(&[]).ok();
    assert_eq!(differing(&test), []);
    assert!(!test.at("data/f").exists());
    test.unmount_and_compare();
}

#[test]
fn barriers_end_beside_a_program_that_writes_without_pause() {
    for passthrough in ["auto", "never"] {
        let test = TestMount::with(server::url(), &["--passthrough", passthrough]);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(test.at("large")).unwrap();
        file.write_all(&noise(3, 20 << 20)).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for step in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    file.write_all_at(&step.to_le_bytes(), step % (20 << 20)).unwrap();
                }
            });
            for _ in 0..3 {
                test.sync();
                test.commit();
                let committed = test.committed();
                assert_eq!(committed["large"].len(), 20 << 20);
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
        drop(file);
        test.unmount_and_compare();
    }
}
