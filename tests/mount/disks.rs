//! State directories on small disks of their own, which become full, fail, or are read-only: what programs see, what
//! `status` says, and that all goes on when the disk does.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::damage::{assert_refused, state_of};
use crate::dataset::noise;
use crate::faults::{assert_ends_well, owed};
use crate::http::{Tree, assert_same};
use crate::mounted::{TestMount, local_tree, run, wait_until};
use crate::scripted::Scripted;

/// A disk: a file with an ext4 in it, mounted. Gone, as far as it can, when dropped.
struct SmallDisk {
    temp: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mebibytes: u64) -> Self {
        let temp = tempfile::Builder::new().prefix("oxenfs-test-disk").tempdir().unwrap();
        let disk = Self { temp };
        fs::create_dir(disk.dir()).unwrap();
        fs::File::create(disk.image()).unwrap().set_len(mebibytes << 20).unwrap();
        // Nothing kept back for root, whom the tests run as.
        run("mkfs.ext4", ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", disk.image().to_str().unwrap()]);
        disk.mount("rw");
        disk
    }

    fn image(&self) -> PathBuf {
        self.temp.path().join("image")
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join("disk")
    }

    fn mount(&self, options: &str) {
        let options = format!("loop,{options}");
        run("mount", ["-o", &options, self.image().to_str().unwrap(), self.dir().to_str().unwrap()]);
    }

    fn unmount(&self) {
        run("umount", [self.dir()]);
    }

    fn ballast(&self) -> PathBuf {
        self.dir().join("ballast")
    }

    /// Takes what is left, to the last block.
    fn fill(&self) {
        let file = fs::OpenOptions::new().append(true).create(true).open(self.ballast()).unwrap();
        for block in [1 << 20, 4096] {
            let block = vec![1; block];
            let full = loop {
                if let Err(error) = (&file).write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull);
        }
        file.sync_all().unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-q", "-l"]).arg(self.dir()).status();
    }
}

fn on(disk: &SmallDisk, server: &Scripted) -> TestMount {
    let mut test = TestMount::unmounted(&server.url());
    test.state = disk.dir().join("state");
    test
}

#[track_caller]
fn assert_full<T: std::fmt::Debug>(done: std::io::Result<T>) {
    assert_eq!(done.unwrap_err().kind(), ErrorKind::StorageFull);
}

/// Writes files until there is no room for another; what of them is whole.
fn write_until_full(test: &TestMount) -> Tree {
    let mut tree = Tree::new();
    for at in 0..1000 {
        let (path, content) = (format!("file {at}"), noise(at, 700_000));
        if let Err(error) = fs::write(test.at(&path), &content) {
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            // What fitted in is there, and can be removed.
            let part = fs::read(test.at(&path)).unwrap();
            assert!(content.starts_with(&part));
            fs::remove_file(test.at(&path)).unwrap();
            return tree;
        }
        tree.insert(path, content);
    }
    panic!("the disk was never full");
}

#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn a_full_disk_stops_writers_alone_and_nothing_has_to_be_mounted_again() {
    let disk = SmallDisk::new(64);
    let mut server = Scripted::new();
    let test = on(&disk, &server);
    test.mount(&["--create"]).ok();
    let base = noise(77, 500_000);
    fs::write(test.at("base"), &base).unwrap();
    test.commit();
    server.stop();
    let mut expected = write_until_full(&test);
    assert!(expected.len() > 30, "{} files fitted in", expected.len());
    disk.fill();

    // Nothing new, in words; reading, renaming and removing go on.
    let status = test.wait_status("the full disk to show", |status| status["disk"].is_string());
    assert!(status["disk"].as_str().unwrap().contains("full"), "{status:#}");
    // What was removed a moment ago still makes room.
    wait_until("the disk to stay full", || {
        disk.fill();
        fs::write(test.at("new"), noise(1, 100_000)).is_err_and(|error| error.kind() == ErrorKind::StorageFull)
    });
    fs::remove_file(test.at("new")).ok();
    // Of what the server has, a copy may be gone: it made way.
    for (path, content) in &expected {
        assert!(fs::read(test.at(path)).unwrap() == *content, "{path}");
    }
    expected.insert("base".into(), base);
    fs::rename(test.at("file 1"), test.at("renamed")).unwrap();
    expected.insert("renamed".into(), expected["file 1"].clone());
    expected.remove("file 1");
    fs::remove_file(test.at("file 2")).unwrap();
    expected.remove("file 2");
    disk.fill();

    // The queue drains, and what is staged makes way.
    server.start(None);
    test.wait_status("everything to be staged", |status| owed(status) == 0 && status["stalled"].is_null());
    let late = noise(5, 3 << 20);
    wait_until("room", || fs::write(test.at("late"), &late).is_ok());
    expected.insert("late".into(), late);
    disk.free();
    test.wait_status("the disk to be well", |status| status["disk"].is_null());
    assert_ends_well(&test, &server, &expected);
}

/// What makes way for writers is read all the same: from memory, and nothing of it is kept.
#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn what_is_on_the_server_alone_is_read_on_a_full_disk() {
    let disk = SmallDisk::new(40);
    let server = Scripted::new();
    let test = on(&disk, &server);
    test.mount(&["--create"]).ok();
    let content = |at: u64| noise(at, 100_000 + 300_000 * at as usize);
    (0..4).for_each(|at| fs::write(test.at(format!("file {at}")), content(at)).unwrap());
    test.commit();
    test.unmount();
    test.mount(&[]).ok();
    test.oxenfs([OsStr::new("warm"), OsStr::new("--evict"), test.dir.as_os_str()]).ok();
    disk.fill();
    for _ in 0..2 {
        for at in 0..4 {
            assert!(fs::read(test.at(format!("file {at}"))).unwrap() == content(at), "file {at}");
        }
    }
    // To be kept, there is no room for it.
    let refused = test.oxenfs([OsStr::new("warm"), test.dir.as_os_str()]);
    assert!(refused.exit == 1 && refused.err.contains("the disk of the cache is full"), "{refused:?}");
    disk.free();
    test.oxenfs([OsStr::new("warm"), test.dir.as_os_str()]).ok();
    test.unmount();
}

#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn changes_go_on_record_on_a_full_disk_and_when_they_no_longer_can_they_do_again_by_themselves() {
    let disk = SmallDisk::new(40);
    let mut server = Scripted::new();
    let test = on(&disk, &server);
    test.mount(&["--create"]).ok();
    let mut expected = Tree::from([("kept".into(), noise(3, 100_000))]);
    fs::write(test.at("kept"), &expected["kept"]).unwrap();
    fs::write(test.at("name 0"), "renamed").unwrap();
    server.stop();
    disk.fill();
    // All that is kept back for removals and renames is used, and more is asked for.
    let mut last = 0;
    let refused = loop {
        let (from, to) = (format!("name {last}"), format!("name {}", last + 1));
        match fs::rename(test.at(from), test.at(to)) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
        assert!(last < 1_000_000, "the disk was never full");
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert!(last > 1000, "only {last} renames on a full disk");
    let status = test.status();
    assert!(status["disk"].as_str().unwrap().contains("nothing is accepted"), "{status:#}");
    // The refused one shows or does not; either way it is the same after a kill, and reading goes on.
    assert_eq!(fs::read(test.at("kept")).unwrap(), expected["kept"]);
    for _ in 0..10 {
        assert_full(fs::remove_file(test.at("kept")));
        assert_full(fs::create_dir(test.at("dir")));
    }
    assert_eq!(fs::read(test.at("kept")).unwrap(), expected["kept"]);

    disk.free();
    wait_until("changes to be taken again", || fs::create_dir(test.at("dir")).is_ok());
    let shown = fs::read_dir(&test.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let renamed: Vec<String> = shown.filter(|name| name.starts_with("name")).collect();
    assert!([format!("name {last}"), format!("name {}", last + 1)].contains(&renamed[0]), "{renamed:?} after {last}");
    expected.insert(renamed[0].clone(), b"renamed".to_vec());
    fs::write(test.at("dir/after"), "after").unwrap();
    expected.insert("dir/after".into(), b"after".to_vec());
    server.start(None);
    assert_ends_well(&test, &server, &expected);
}

#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn a_daemon_killed_on_a_full_disk_is_followed_by_one_that_sends_everything() {
    let disk = SmallDisk::new(40);
    let mut server = Scripted::new();
    let test = on(&disk, &server);
    test.mount(&["--create"]).ok();
    server.stop();
    let mut expected = write_until_full(&test);
    disk.fill();
    fs::remove_file(test.at("file 3")).unwrap();
    expected.remove("file 3");
    test.signal(Signal::KILL);
    disk.fill();
    assert_eq!(test.status()["counts"]["dirty"]["files"], expected.len());
    server.start(None);
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &expected);
    assert_ends_well(&test, &server, &expected);
}

#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn a_disk_that_turns_read_only_is_told_and_what_was_flushed_is_there_when_it_is_back() {
    let disk = SmallDisk::new(40);
    let mut server = Scripted::new();
    let test = on(&disk, &server);
    test.mount(&["--create"]).ok();
    server.stop();
    let mut expected = Tree::new();
    for at in 0..20 {
        let (path, content) = (format!("file {at}"), noise(at, 100_000));
        let file = fs::File::create(test.at(&path)).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
        expected.insert(path, content);
    }
    // What ext4 does when its device fails.
    run("mount", ["-o", "remount,abort", disk.dir().to_str().unwrap()]);
    let refused = |done: std::io::Result<()>| {
        let code = done.unwrap_err().raw_os_error();
        assert!([libc::EROFS, libc::EIO].map(Some).contains(&code), "{code:?}");
    };
    refused(fs::write(test.at("new"), "new"));
    refused(fs::remove_file(test.at("file 1")));
    refused(fs::create_dir(test.at("dir")));
    let status = test.wait_status("the disk to show", |status| status["disk"].is_string());
    assert!(status["disk"].as_str().unwrap().contains("cannot be written"), "{status:#}");
    // The removal that met the failure may show until the daemon ends.
    for (path, content) in expected.iter().filter(|(path, _)| *path != "file 1") {
        assert!(fs::read(test.at(path)).unwrap() == *content, "{path}");
    }
    // The server gets nothing that no record explains.
    server.start(None);
    let status = test.wait_status("staging to pause", |status| status["stalled"].is_string());
    assert!(status["stalled"].as_str().unwrap().contains("local disk"), "{status:#}");

    test.signal(Signal::KILL);
    run("fusermount3", ["-u".as_ref(), test.dir.as_os_str()]);
    disk.unmount();
    // Its own journal is replayed first.
    disk.mount("rw");
    disk.unmount();
    disk.mount("ro");
    // Looking works, mounting is refused in words.
    assert_eq!(owed(&test.status()), expected.len() as u64);
    let said = test.mount(&[]);
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.contains("Read-only file system") && said.err.contains(disk.dir().to_str().unwrap()), "{said:#?}");
    assert!(!test.is_mounted());
    disk.unmount();
    disk.mount("rw");
    test.mount(&[]).ok();
    assert_ends_well(&test, &server, &expected);
}

/// A person's view: from the refusal to all files in the branch, with not a block to spare until they are repaired.
#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn a_damaged_record_is_repaired_on_a_full_disk_and_every_file_comes_back() {
    let disk = SmallDisk::new(40);
    let server = Scripted::new();
    let mut test = TestMount::unmounted(&server.url());
    test.state = disk.dir().join("state");
    test.mount(&["--create", "--settle", "600s"]).ok();
    fs::create_dir(test.at("d")).unwrap();
    let mut contents = BTreeSet::new();
    for at in 0..60 {
        let content = noise(at, 20_000);
        let file = fs::File::create(test.at(format!("d/f{at}"))).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
        contents.insert(content);
    }
    test.signal(Signal::KILL);
    test.detach();
    // A block of the record is lost, with some ten of its frames.
    let state = state_of(&test);
    let segment = state.join("journal/journal.00000001");
    let frames = fs::read(&segment).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
    assert!(frames > 3 * 4096, "the record has {frames} bytes");
    fs::File::options().write(true).open(&segment).unwrap().write_all_at(&[0; 4096], frames / 4096 / 2 * 4096).unwrap();
    disk.fill();

    let place = format!("{} is damaged at byte ", segment.display());
    let command = format!("hint: oxenfs repair {}", state.display());
    assert_refused(&test, &[&place, "files here that it may lack: 60, 1200000 bytes", &command]);
    test.bare(["repair", state.to_str().unwrap(), "--yes"]).ok();
    disk.fill();
    test.mount(&["--settle", "600s"]).ok();
    let tree = local_tree(&test.dir);
    assert!(tree.values().cloned().collect::<BTreeSet<_>>() == contents, "{} came back: {:?}", tree.len(), tree.keys());
    let salvaged: Vec<&String> = tree.keys().filter(|path| path.starts_with("lost+found/")).collect();
    assert!((2..40).contains(&salvaged.len()), "{salvaged:?}");
    let named = tree.keys().filter(|path| path.starts_with("d/")).count();
    assert_eq!(named + salvaged.len(), 60);
    // They are not sent where they lie.
    let said = test.oxenfs(["sync", test.dir.to_str().unwrap()]);
    assert_eq!(said.exit, 0, "{said:#?} {:#}", test.status());
    assert_eq!(test.status()["counts"]["staged"]["files"], named);
    for (at, path) in salvaged.iter().enumerate() {
        fs::rename(test.at(path), test.at(format!("d/back {at}"))).unwrap();
    }
    test.sync();
    assert_eq!(test.status()["counts"]["staged"]["files"], 60);
    test.commit();
    let committed = server.committed(&test.repo);
    assert_eq!(committed.len(), 60);
    assert!(committed.into_values().collect::<BTreeSet<_>>() == contents);
    test.unmount();
    // The damaged part is still here, and nothing else is.
    assert!(state.join("journal/damaged/journal.00000001").is_file());
    assert_eq!(fs::read_dir(state.join("lost+found")).unwrap().count(), 0);
}

/// Nothing is left mounted or attached for what was just dropped.
#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn a_small_disk_leaves_nothing_behind() {
    let disk = SmallDisk::new(8);
    let dir = disk.dir();
    let mounted = |dir: &Path| crate::mounted::kernel_mounts().contains(dir.to_str().unwrap());
    assert!(mounted(&dir));
    drop(disk);
    assert!(!mounted(&dir) && !dir.exists());
}

#[test]
#[ignore = "needs root, to mount a small disk: scripts/test has it"]
fn a_large_file_is_read_whose_blocks_find_no_room() {
    let (disk, server) = (SmallDisk::new(48), Scripted::new());
    let content = noise(9, 12 << 20);
    let mut test = TestMount::committed_by(&server.url(), &Tree::from([("large".to_owned(), content.clone())]));
    test.state = disk.dir().join("state");
    test.mount(&["--read-only"]).ok();
    disk.fill();
    let file = fs::File::open(test.at("large")).unwrap();
    let mut bytes = vec![0; 1 << 20];
    for at in (0..12).rev().chain(0..12) {
        file.read_exact_at(&mut bytes, at << 20).unwrap();
        assert!(bytes == content[(at as usize) << 20..][..1 << 20], "{at}");
    }
    disk.free();
    drop(file);
    assert!(fs::read(test.at("large")).unwrap() == content);
    test.unmount();
}
