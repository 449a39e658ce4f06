//! What programs read past the daemon of files that the server has, and what becomes of it when somebody writes: to the
//! same file, to another of the same content, or over it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;

use crate::dataset::noise;
use crate::mounted::{TestMount, shell, wait_until};
use crate::passthrough::{assert_committed, passing, passing_through};
use crate::proxy::Proxy;

/// Long enough to be worth it.
const BYTES: usize = 3 << 20;

/// A mount that has these files in its cache, and the server has them too.
fn cached(test: &TestMount, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        fs::write(test.at(path), content).unwrap();
    }
    test.unmount_commit();
    test.mount(&["--settle", "3600"]).ok();
}

/// Reads all of an open file while the daemon stands still.
#[track_caller]
fn assert_read_past(test: &TestMount, file: &File, expected: &[u8]) {
    test.signal(Signal::STOP);
    let (tell, told) = mpsc::channel();
    let same = file.try_clone().unwrap();
    let reading = std::thread::spawn(move || drop(tell.send(whole(&same))));
    let read = told.recv_timeout(Duration::from_secs(20));
    let pid = rustix::process::Pid::from_raw(test.daemons()[0]).unwrap();
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    reading.join().unwrap();
    assert!(read.expect("the daemon was asked") == expected);
}

/// All of an open file, wherever it stands. Asks for nothing but its bytes.
fn whole(file: &File) -> Vec<u8> {
    let (mut bytes, mut at) = (vec![0; 2 * BYTES], 0);
    loop {
        match file.read_at(&mut bytes[at..], at as u64).unwrap() {
            0 => break,
            read => at += read,
        }
    }
    bytes.truncate(at);
    bytes
}

fn reader(test: &TestMount, path: &str) -> File {
    File::open(test.at(path)).unwrap()
}

fn writer(test: &TestMount, path: &str) -> File {
    File::options().read(true).write(true).open(test.at(path)).unwrap()
}

/// Writes to a file and to what is expected of it.
fn put(file: &File, expected: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.write_all_at(bytes, at as u64).unwrap();
    expected.resize(expected.len().max(at + bytes.len()), 0);
    expected[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The first page of a file, mapped to be read.
struct View(*const u8);

impl View {
    fn of(file: &File) -> Self {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at.cast())
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: within the mapping; a copy, since others may change what is mapped.
        (0..4096).map(|at| unsafe { self.0.add(at).read_volatile() }).collect()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made.
        unsafe { libc::munmap(self.0.cast_mut().cast(), 4096) };
    }
}

#[test]
fn what_is_cached_is_read_past_the_daemon_and_so_is_what_was_just_fetched() {
    let Some(test) = passing(&[]) else { return };
    let content = noise(1, BYTES);
    cached(&test, &[("file", &content)]);
    for _ in 0..3 {
        let first = reader(&test, "file");
        assert_read_past(&test, &first, &content);
        assert!(whole(&reader(&test, "file")) == content, "another reader");
        drop(first);
        // The kernel has told of the close when it is looked up anew.
        test.status();
    }
    assert_eq!(test.status()["spool_bytes"], 0);
    test.unmount();
    test.forget();
    test.mount(&[]).ok();
    // What comes in blocks is read by requests until all of it was compared with its hash, and past the daemon by who
    // opens it then.
    let first = reader(&test, "file");
    assert!(whole(&first) == content);
    drop(first);
    wait_until("the file to be whole", || {
        let mut told = [0; 20];
        let length = rustix::fs::getxattr(test.at("file"), "user.oxenfs.cached", &mut told[..]).unwrap();
        &told[..length] == b"yes"
    });
    test.status();
    assert_read_past(&test, &reader(&test, "file"), &content);
    test.unmount_and_compare();
}

#[test]
fn a_read_only_mount_reads_past_the_daemon() {
    let Some(test) = passing(&[]) else { return };
    let content = noise(2, BYTES);
    cached(&test, &[("file", &content)]);
    test.unmount();
    test.mount(&["--read-only"]).ok();
    assert_read_past(&test, &reader(&test, "file"), &content);
    test.unmount();
}

#[test]
fn a_reader_sees_what_a_writer_does_to_what_was_cached_and_both_go_on() {
    let Some(test) = passing(&[]) else { return };
    let mut expected = noise(3, BYTES);
    cached(&test, &[("file", &expected)]);
    let first = reader(&test, "file");
    assert_read_past(&test, &first, &expected);
    let before = first.metadata().unwrap();
    let writing = writer(&test, "file");
    assert_eq!(first.metadata().unwrap().mtime_nsec(), before.mtime_nsec(), "nothing was written yet");
    put(&writing, &mut expected, 5000, b"in the middle");
    put(&writing, &mut expected, BYTES, b"and behind the end");
    for file in [&first, &writing, &reader(&test, "file")] {
        assert!(whole(file) == expected);
    }
    assert!(first.metadata().unwrap().modified().unwrap() > before.modified().unwrap());
    assert_read_past(&test, &first, &expected);
    // Both still have it at a barrier, and after it.
    writing.sync_all().unwrap();
    test.sync();
    put(&writing, &mut expected, 0, b"after the barrier");
    assert!(whole(&first) == expected);
    test.commit();
    assert_committed(&test, "file", &expected);
    drop(writing);
    put(&writer(&test, "file"), &mut expected, 1 << 20, b"another writer");
    assert!(whole(&first) == expected);
    drop(first);
    assert!(whole(&reader(&test, "file")) == expected);
    test.unmount_commit();
    assert_committed(&test, "file", &expected);
}

#[test]
fn another_file_of_the_same_content_keeps_its_bytes_whoever_was_first() {
    let proxy = Proxy::new(crate::server::url());
    let Some(test) = passing_through(&proxy.url()) else { return };
    let content = noise(4, BYTES);
    let names = ["a", "b", "c"];
    cached(&test, &names.map(|name| (name, content.as_slice())));
    let mut changed = content.clone();
    // Past the daemon; the others beside it, one of them while the server is away.
    let first = reader(&test, "a");
    assert_read_past(&test, &first, &content);
    let second = reader(&test, "b");
    assert!(whole(&second) == content);
    proxy.cut(true);
    let third = reader(&test, "c");
    assert!(whole(&third) == content);
    put(&writer(&test, "a"), &mut changed, 4096, b"mine alone");
    assert!(whole(&first) == changed);
    for other in [&second, &third, &reader(&test, "b"), &reader(&test, "c")] {
        assert!(whole(other) == content);
    }
    proxy.cut(false);
    drop((first, second, third));
    // By requests first: who opens it for writing is.
    let mut other = content.clone();
    let writing = writer(&test, "b");
    assert!(whole(&writing) == content);
    let third = reader(&test, "c");
    assert!(whole(&third) == content);
    put(&writer(&test, "c"), &mut changed.clone(), 0, b"by the third");
    let mut last = content.clone();
    last[..12].copy_from_slice(b"by the third");
    put(&writing, &mut other, 9000, b"by the second");
    assert!(whole(&third) == last && whole(&writing) == other && whole(&reader(&test, "a")) == changed);
    drop((third, writing));
    test.unmount_commit();
    for (name, expected) in names.into_iter().zip([&changed, &other, &last]) {
        assert_committed(&test, name, expected);
    }
}

#[test]
fn a_copy_of_what_is_read_past_the_daemon_has_the_content_of_its_moment() {
    let Some(test) = passing(&[]) else { return };
    let content = noise(5, BYTES);
    cached(&test, &[("a", &content)]);
    let first = reader(&test, "a");
    assert_read_past(&test, &first, &content);
    shell(&test.dir, "cp a before");
    let mut changed = content.clone();
    let writing = writer(&test, "a");
    put(&writing, &mut changed, 77, b"changed");
    shell(&test.dir, "cp a after; cp before again");
    for (name, expected) in [("before", &content), ("after", &changed), ("again", &content)] {
        assert!(fs::read(test.at(name)).unwrap() == **expected, "{name}");
    }
    drop((first, writing));
    test.unmount_and_compare();
}

#[test]
fn a_mapping_that_outlives_the_close_shows_the_old_bytes_when_another_file_of_the_content_is_written() {
    let Some(test) = passing(&[]) else { return };
    let content = noise(6, BYTES);
    cached(&test, &[("a", &content), ("b", &content)]);
    let first = reader(&test, "a");
    assert_read_past(&test, &first, &content);
    let view = View::of(&first);
    drop(first);
    let (beside, mut changed) = (reader(&test, "b"), content.clone());
    assert!(whole(&beside) == content);
    put(&writer(&test, "b"), &mut changed, 0, b"of another file");
    assert!(whole(&reader(&test, "b")) == changed);
    assert!(view.bytes() == content[..4096], "what is mapped is another file");
    drop(beside);
    // While it lives, and after.
    assert!(whole(&reader(&test, "a")) == content);
    drop(view);
    let (again, mut last) = (reader(&test, "a"), content.clone());
    put(&writer(&test, "a"), &mut last, 1, b"of the file itself");
    assert!(whole(&again) == last);
    drop(again);
    test.unmount_commit();
    assert_committed(&test, "a", &last);
    assert_committed(&test, "b", &changed);
}

#[test]
fn a_daemon_killed_while_it_has_lent_loses_neither_what_was_written_nor_what_was_cached() {
    let proxy = Proxy::new(crate::server::url());
    let Some(test) = passing_through(&proxy.url()) else { return };
    let (content, mut changed) = (noise(7, BYTES), noise(8, BYTES));
    cached(&test, &[("read", &content), ("written", &changed)]);
    let files = [reader(&test, "read"), reader(&test, "written")];
    assert_read_past(&test, &files[0], &content);
    assert_read_past(&test, &files[1], &changed);
    let writing = writer(&test, "written");
    put(&writing, &mut changed, 123, b"before the kill");
    test.signal(Signal::KILL);
    put(&writing, &mut changed, BYTES, b"after it");
    assert!(whole(&files[0]) == content, "who reads goes on");
    test.mount(&[]).ok();
    proxy.cut(true);
    assert!(fs::read(test.at("read")).unwrap() == content, "it is in the cache still");
    assert!(fs::read(test.at("written")).unwrap() == changed);
    proxy.cut(false);
    // Nobody may write to what the program of the first mount reads.
    let mut other = content.clone();
    let beside = reader(&test, "read");
    put(&writer(&test, "read"), &mut other, 0, b"by another mount");
    assert!(whole(&beside) == other && whole(&files[0]) == content);
    drop((files, writing, beside));
    test.unmount_commit();
    assert_committed(&test, "read", &other);
    assert_committed(&test, "written", &changed);
}

#[test]
fn what_is_removed_replaced_or_cut_while_it_is_read_stays_with_its_readers() {
    let Some(test) = passing(&[]) else { return };
    let contents = [10, 11, 12, 13, 14].map(|seed| noise(seed, BYTES));
    let names = ["removed", "replaced", "cut", "emptied", "moved"];
    let files: Vec<_> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    cached(&test, &files);
    let readers = names.map(|name| reader(&test, name));
    for (file, content) in readers.iter().zip(&contents) {
        assert_read_past(&test, file, content);
    }
    fs::remove_file(test.at("removed")).unwrap();
    fs::write(test.at("new"), "new").unwrap();
    fs::rename(test.at("new"), test.at("replaced")).unwrap();
    fs::rename(test.at("moved"), test.at("elsewhere")).unwrap();
    for at in [0, 1, 4] {
        assert!(whole(&readers[at]) == contents[at], "{}", names[at]);
    }
    // Without a name, by way of who has it open.
    let path = format!("/proc/self/fd/{}", readers[0].as_raw_fd());
    let mut expected = contents[0].clone();
    put(&File::options().write(true).open(path).unwrap(), &mut expected, 50, b"nameless");
    assert!(whole(&readers[0]) == expected);
    let mut moved = contents[4].clone();
    put(&writer(&test, "elsewhere"), &mut moved, 99, b"moved");
    assert!(whole(&readers[4]) == moved);
    shell(&test.dir, "truncate -s 100000 cut");
    assert!(whole(&readers[2]) == contents[2][..100_000]);
    File::create(test.at("emptied")).unwrap().write_all(b"anew").unwrap();
    assert_eq!(whole(&readers[3]), b"anew");
    let replaced = fs::read(test.at("replaced")).unwrap();
    assert_eq!(replaced, b"new");
    drop(readers);
    test.unmount_commit();
    assert_eq!(test.committed_file("removed"), None);
    assert_eq!(test.committed_file("moved"), None);
    assert_committed(&test, "replaced", b"new");
    assert_committed(&test, "elsewhere", &moved);
    assert_committed(&test, "cut", &contents[2][..100_000]);
    assert_committed(&test, "emptied", b"anew");
}

#[test]
fn what_the_kernel_cached_of_a_file_is_gone_when_it_was_written_past_the_daemon() {
    let Some(test) = passing(&[]) else { return };
    let mut expected = noise(20, BYTES);
    cached(&test, &[("file", &expected)]);
    for round in 0..3u8 {
        // By requests: what is opened to be written to before anybody reads it.
        assert!(whole(&writer(&test, "file")) == expected, "round {round}");
        let first = reader(&test, "file");
        assert!(whole(&first) == expected, "round {round}");
        put(&writer(&test, "file"), &mut expected, 4096 * usize::from(round), &[round; 4096]);
        assert!(whole(&first) == expected, "round {round}");
        drop(first);
        test.sync();
        assert!(fs::read(test.at("file")).unwrap() == expected, "round {round}");
    }
    test.unmount_commit();
    assert_committed(&test, "file", &expected);
}

#[test]
fn times_that_are_set_while_it_is_read_are_those_of_the_file_that_is_then_written() {
    let Some(test) = passing(&[]) else { return };
    let content = noise(21, BYTES);
    cached(&test, &[("file", &content)]);
    let first = reader(&test, "file");
    assert_read_past(&test, &first, &content);
    let set = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 7);
    first.set_times(fs::FileTimes::new().set_modified(set)).unwrap();
    let writing = writer(&test, "file");
    drop(writing);
    let shown = || fs::metadata(test.at("file")).unwrap().modified().unwrap();
    assert_eq!(shown(), set);
    test.signal(Signal::KILL);
    drop(first);
    test.mount(&[]).ok();
    assert_eq!(shown(), set);
    test.unmount_and_compare();
}

/// Eight bytes that say whose they are.
fn mark(file: usize) -> [u8; 8] {
    [b"<file a>", b"<file b>", b"<file c>"].map(|mark| *mark)[file]
}

#[test]
fn files_of_one_content_never_show_each_others_bytes_however_many_read_and_write() {
    let Some(test) = passing(&[]) else { return };
    let (names, length) = (["a", "b", "c"], 1 << 20);
    let content = vec![b'.'; length];
    // Of no content that comes again: staged and cached is what it becomes.
    cached(&test, &names.map(|name| (name, name.as_bytes())));
    names.iter().for_each(|name| fs::write(test.at(name), &content).unwrap());
    test.sync();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (test, content) = (&test, &content);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                for _ in 0..120 {
                    let file = random.usize(0..names.len());
                    let slot = random.usize(0..length / 8) * 8;
                    match random.u8(0..12) {
                        0..6 => {
                            let bytes = whole(&reader(test, names[file]));
                            let own = |bytes: &[u8]| bytes == b"........" || bytes == mark(file);
                            assert!(bytes.chunks(8).all(own), "{} has the bytes of another", names[file]);
                        }
                        6..8 => {
                            let beside = reader(test, names[file]);
                            let writing = writer(test, names[file]);
                            writing.write_all_at(&mark(file), slot as u64).unwrap();
                            let mut seen = [0; 8];
                            beside.read_exact_at(&mut seen, slot as u64).unwrap();
                            assert!(seen == mark(file) || &seen == b"........", "{seen:?}");
                        }
                        8 => writer(test, names[file]).write_all_at(&mark(file), slot as u64).unwrap(),
                        // Of one content again.
                        9 => writer(test, names[file]).write_all_at(content, 0).unwrap(),
                        10 => test.sync(),
                        _ => {
                            let view = View::of(&reader(test, names[file]));
                            let bytes = view.bytes();
                            assert!(bytes.chunks(8).all(|bytes| bytes == b"........" || bytes == mark(file)));
                        }
                    }
                }
            });
        }
    });
    test.unmount_and_compare();
}
