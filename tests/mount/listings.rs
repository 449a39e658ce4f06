//! Listings that the kernel keeps, and the mount on the disk: they are of use, and never out of date.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Dir, RawDir};
use rustix::process::{Pid, Signal, kill_process};

use serde_json::Value;

use crate::http::Tree;
use crate::mounted::{TestMount, local_tree, shell, wait_until};
use crate::scripted::Scripted;

/// More than some answers hold.
const FILES: usize = 2000;

/// A mount with a directory of many files.
fn with_many() -> TestMount {
    let test = TestMount::new();
    fs::create_dir(test.at("dir")).unwrap();
    (0..FILES).for_each(|at| fs::write(test.at(name(at)), "").unwrap());
    test
}

fn name(at: usize) -> String {
    format!("dir/file_{at:04}")
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Some names from where an open directory stands: as many as one system call gives with a small buffer.
fn some(dir: &File) -> Vec<String> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        names.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
        if raw.is_buffer_empty() {
            break;
        }
    }
    names
}

/// The same, until there are as many as that.
fn at_least(dir: &File, count: usize) -> Vec<String> {
    let mut names = some(dir);
    while names.len() < count {
        names.extend(some(dir));
    }
    names
}

/// All that is left of an open directory.
fn rest(dir: &File) -> Vec<String> {
    std::iter::from_fn(|| Some(some(dir)).filter(|names| !names.is_empty())).flatten().collect()
}

fn import(test: &TestMount, name: &str) {
    let source = test.beside("imported");
    fs::write(source.join(name), name).unwrap();
    test.oxenfs([OsStr::new("import"), source.join(name).as_os_str(), test.at("dir").as_os_str()]).ok();
}

#[test]
fn a_directory_read_before_is_read_again_without_a_request() {
    let test = with_many();
    let before = names(&test.at("dir"));
    let dir = File::open(test.at("dir")).unwrap();
    // Whoever asks the daemon now waits.
    let daemon = Pid::from_raw(test.signal(Signal::STOP)).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(rest(&dir)));
    let read = receiver.recv_timeout(Duration::from_secs(20));
    kill_process(daemon, Signal::CONT).unwrap();
    let mut read = read.expect("an answer from what the kernel keeps");
    read.retain(|name| name != "." && name != "..");
    assert_eq!(read, before);
}

#[test]
fn what_comes_and_goes_shows_in_the_next_listing() {
    let test = with_many();
    let dir = test.at("dir");
    let has = |name: &str| names(&dir).iter().any(|found| found == name);
    assert_eq!(names(&dir).len(), FILES);
    fs::write(dir.join("written"), "").unwrap();
    assert!(has("written"));
    // Not through the kernel; with a listing open that began before it, and without.
    let open = File::open(&dir).unwrap();
    assert!(!some(&open).is_empty());
    import(&test, "one");
    assert!(has("one"));
    assert!(rest(&open).len() > FILES / 2);
    assert!(has("one"));
    drop(open);
    assert!(has("one"));
    import(&test, "two");
    assert!(has("one") && has("two"));
    fs::remove_file(dir.join("one")).unwrap();
    fs::rename(dir.join("two"), test.at("two")).unwrap();
    assert!(!has("one") && !has("two"));
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(names(&test.dir), ["two"]);
}

#[test]
fn a_listing_goes_on_where_one_ended_that_the_kernel_kept() {
    let test = with_many();
    let dir = test.at("dir");
    let changes: [&dyn Fn(); 3] =
        [&|| fs::write(dir.join("0 is first by name"), "").unwrap(), &|| import(&test, "000 comes by itself"), &|| {
            (0..FILES).step_by(3).for_each(|at| fs::remove_file(test.at(name(at))).unwrap())
        }];
    for change in changes {
        names(&dir);
        let open = File::open(&dir).unwrap();
        let mut seen = at_least(&open, FILES / 3);
        change();
        seen.extend(rest(&open));
        let mut times = BTreeMap::<_, usize>::new();
        seen.into_iter().for_each(|name| *times.entry(name).or_default() += 1);
        assert!(times.values().all(|times| *times == 1), "some are seen twice");
        let missed: Vec<_> = names(&dir).into_iter().filter(|name| !times.contains_key(name)).collect();
        assert!(missed.iter().all(|name| name.starts_with('0')), "{missed:?}");
    }
}

#[test]
fn a_listing_from_before_a_change_adds_nothing_to_what_is_kept() {
    let test = with_many();
    let dir = test.at("dir");
    let before = File::open(&dir).unwrap();
    let mut seen = some(&before);
    (0..200).for_each(|at| fs::write(dir.join(format!("new_{at:03}")), "").unwrap());
    assert_eq!(names(&dir).len(), FILES + 200);
    // The kernel begins to keep what is there by now, and gets no further than a little behind the first.
    let after = File::open(&dir).unwrap();
    let mut later = at_least(&after, seen.len() + 100);
    seen.extend(rest(&before));
    assert!(seen.len() >= FILES);
    assert_eq!(names(&dir).len(), FILES + 200);
    later.extend(rest(&after));
    assert_eq!(later.len(), FILES + 200 + 2, "with the two dots");
}

#[test]
fn the_dots_of_a_directory_that_moved_are_those_of_its_place() {
    let test = with_many();
    let parent = |dir: &Path| {
        let all = Dir::read_from(File::open(dir).unwrap()).unwrap();
        all.map(Result::unwrap).find(|entry| entry.file_name() == c"..").unwrap().ino()
    };
    fs::create_dir(test.at("other")).unwrap();
    assert_eq!(parent(&test.at("dir")), fs::metadata(&test.dir).unwrap().ino());
    assert_eq!(names(&test.at("dir")).len(), FILES);
    fs::rename(test.at("dir"), test.at("other/dir")).unwrap();
    wait_until("the kernel to know", || parent(&test.at("other/dir")) == fs::metadata(test.at("other")).unwrap().ino());
}

#[test]
fn a_listing_that_begins_after_a_change_has_it_whoever_else_reads() {
    let test = with_many();
    let dir = test.at("dir");
    let first = File::open(&dir).unwrap();
    let mut half = at_least(&first, FILES / 2);
    // Some of these have places in the half that was read, and some that go were there.
    let new: Vec<String> = (0..50).map(|at| format!("new_{at:02}")).collect();
    new.iter().for_each(|name| fs::write(dir.join(name), "").unwrap());
    let gone: Vec<String> = half.iter().filter(|name| name.starts_with("file_")).step_by(100).cloned().collect();
    gone.iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap());
    let second = File::open(&dir).unwrap();
    let mut seen = some(&second);
    half.extend(rest(&first));
    seen.extend(rest(&second));
    assert!(new.iter().all(|name| seen.contains(name)));
    assert!(!gone.iter().any(|name| seen.contains(name)));
}

/// How many listings of directories the server was asked for, but for the short ones in which a client that only reads
/// looks for the kind of hash.
fn asked(server: &Scripted) -> usize {
    let is_listing = |path: &str| path.contains("/dir/") && !path.ends_with("page_size=20");
    server.log().iter().filter(|(method, path, _)| method == "GET" && is_listing(path)).count()
}

fn forget_traffic(server: &Scripted) {
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
}

#[test]
fn what_was_listed_is_not_asked_for_by_a_later_mount_nor_by_another_beside_it() {
    let mut server = Scripted::new();
    let files: Tree = (0..40).map(|at| (format!("d {}/e/{at}", at % 7), vec![b'x'; at])).collect();
    let test = TestMount::committed_by(&server.url(), &files);
    let listed = |dir: &Path| shell(dir, "find . -mindepth 1 -printf '%P %y %s %m %T@\\n' | sort");
    forget_traffic(&server);
    test.mount(&["--read-only"]).ok();
    let first = listed(&test.dir);
    assert!(asked(&server) >= 15, "{:#?}", server.log());
    let commit = test.status()["base"].as_str().unwrap().to_owned();
    test.unmount();
    forget_traffic(&server);
    // Again, and after a kill.
    for ends in ["unmount", "kill"] {
        test.mount(&["--read-only"]).ok();
        assert_eq!(listed(&test.dir), first);
        assert_eq!(asked(&server), 0, "{ends}: {:#?}", server.log());
        match ends {
            "kill" => {
                test.signal(Signal::KILL);
                test.detach();
            }
            _ => test.unmount(),
        }
    }
    test.mount(&["--read-only"]).ok();
    assert_eq!(listed(&test.dir), first);
    // Beside it, of a revision, and one that takes changes.
    let other = test.beside("other");
    for options in [&["--revision", &commit][..], &[]] {
        test.mount_with(&test.state, &other, options).ok();
        assert_eq!(listed(&other), first, "{options:?}");
        assert_eq!(asked(&server), 0, "{options:?}: {:#?}", server.log());
        test.oxenfs([OsStr::new("unmount"), other.as_os_str()]).ok();
    }
    test.unmount();
    // Who is by himself now, and has been told by the other.
    test.mount_with(&test.state, &other, &["--revision", &commit]).ok();
    server.stop();
    assert_eq!(listed(&other), first);
    server.start(None);
    test.oxenfs([OsStr::new("unmount"), other.as_os_str()]).ok();
    // What somebody commits is asked for, and shows.
    test.mount(&[]).ok();
    fs::write(test.at("d 1/e/new"), "new").unwrap();
    test.unmount_commit();
    test.mount(&["--read-only"]).ok();
    assert_eq!(local_tree(&test.dir).len(), files.len() + 1);
    test.unmount();
}
