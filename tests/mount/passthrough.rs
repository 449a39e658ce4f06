//! What programs do to files past the daemon: it is all there, and it is all staged.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::process::Signal;

use crate::dataset::noise;
use crate::mounted::TestMount;

/// A mount with passthrough; `None` where this user or kernel cannot have it, which the mount says.
pub fn passing(options: &[&str]) -> Option<TestMount> {
    able(TestMount::with(crate::server::url(), options))
}

/// [`passing`], by way of `server`.
pub fn passing_through(server: &str) -> Option<TestMount> {
    able(TestMount::through(server))
}

fn able(test: TestMount) -> Option<TestMount> {
    let status = test.status();
    let passthrough = status["passthrough"].as_str().unwrap();
    if passthrough == "on" {
        return Some(test);
    }
    assert!(passthrough.starts_with("off: "), "{passthrough}");
    assert!(!rustix::process::geteuid().is_root() || never(), "root has no passthrough: {passthrough}");
    None
}

fn never() -> bool {
    std::env::var_os("OXENFS_TEST_PASSTHROUGH").is_some_and(|when| when == "never")
}

/// The first page of a file, mapped for writing.
pub struct Page(*mut u8);

impl Page {
    pub const BYTES: usize = 4096;

    pub fn of(file: &File) -> Self {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), Self::BYTES, access, flags, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at.cast())
    }

    pub fn load(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= Self::BYTES);
        // SAFETY: within the mapping, which nothing in this process refers to otherwise.
        unsafe { std::slice::from_raw_parts(self.0.add(at), length) }.to_vec()
    }

    pub fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= Self::BYTES);
        // SAFETY: within the mapping, which nothing in this process refers to otherwise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made.
        unsafe { libc::munmap(self.0.cast(), Self::BYTES) };
    }
}

/// What the server's branch has at a path after a commit of all.
#[track_caller]
pub fn assert_committed(test: &TestMount, path: &str, expected: &[u8]) {
    let found = test.committed_file(path).unwrap_or_default();
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert!(found == expected, "{path}: {} bytes, not {}, which differ at {at:?}", found.len(), expected.len());
}

#[test]
fn a_writer_goes_on_past_a_killed_daemon_and_every_byte_is_staged() {
    let Some(test) = passing(&["--settle", "0.1"]) else { return };
    let mut writer = File::create(test.at("log")).unwrap();
    writer.write_all(b"before\n").unwrap();
    test.signal(Signal::KILL);
    writer.write_all(b"while nobody serves\n").unwrap();
    test.mount(&["--settle", "0.1"]).ok();
    assert_eq!(fs::read(test.at("log")).unwrap(), b"before\nwhile nobody serves\n");
    test.sync();
    // The descriptor is of the mount that is gone, and its file is that of the new one.
    writer.write_all(b"after\n").unwrap();
    assert_eq!(fs::read(test.at("log")).unwrap(), b"before\nwhile nobody serves\nafter\n");
    drop(writer);
    test.unmount_commit();
    assert_committed(&test, "log", b"before\nwhile nobody serves\nafter\n");
}

#[test]
fn what_is_stored_through_a_mapping_after_the_close_is_staged() {
    let Some(test) = passing(&["--settle", "0.1"]) else { return };
    let file = File::options().read(true).write(true).create(true).truncate(false).open(test.at("mapped")).unwrap();
    file.set_len(Page::BYTES as u64).unwrap();
    let page = Page::of(&file);
    drop(file);
    let mut expected = vec![0; Page::BYTES];
    for (round, word) in [(0, b"early"), (1, b"later"), (2, b"last.")] {
        page.store(round * 1000, word);
        expected[round * 1000..][..word.len()].copy_from_slice(word);
        test.sync();
        assert!(fs::read(test.at("mapped")).unwrap() == expected, "round {round}");
        test.commit();
        assert_committed(&test, "mapped", &expected);
    }
    // Nobody asks for it any more: it is found to be changed, and staged, by itself.
    page.store(3000, b"unasked");
    expected[3000..3007].copy_from_slice(b"unasked");
    drop(page);
    test.wait_status("the spool to be empty", |status| status["spool_bytes"] == 0);
    test.commit();
    assert_committed(&test, "mapped", &expected);
    test.unmount();
}

#[test]
fn a_barrier_has_all_that_was_written_before_it_and_the_writer_goes_on() {
    let Some(test) = passing(&["--settle", "3600"]) else { return };
    let mut writer = File::create(test.at("stream")).unwrap();
    let chunk = noise(7, 100_000);
    let mut written = Vec::new();
    for round in 0..3 {
        writer.write_all(&chunk).unwrap();
        written.extend_from_slice(&chunk);
        if round == 1 {
            test.sync()
        } else {
            test.commit()
        }
        assert_eq!(test.status()["counts"]["dirty"]["files"], 0, "round {round}");
        if round != 1 {
            assert_committed(&test, "stream", &written);
        }
        // The same length: only the times tell.
        writer.write_all_at(b"changed", 10).unwrap();
        written[10..17].copy_from_slice(b"changed");
    }
    assert_eq!(fs::read(test.at("stream")).unwrap().len(), written.len());
    drop(writer);
    test.unmount_commit();
    assert_committed(&test, "stream", &written);
}

#[test]
fn a_reader_sees_what_a_later_writer_does() {
    let Some(test) = passing(&["--settle", "3600"]) else { return };
    fs::write(test.at("file"), "one two three").unwrap();
    let mut reader = File::open(test.at("file")).unwrap();
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "one two three");
    let writer = File::options().append(true).open(test.at("file")).unwrap();
    (&writer).write_all(b" four").unwrap();
    seen.clear();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, " four");
    // A barrier while both have it, and the file emptied under them.
    test.sync();
    drop(File::create(test.at("file")).unwrap());
    assert_eq!(reader.metadata().unwrap().len(), 0);
    (&writer).write_all(b"again").unwrap();
    reader.seek(SeekFrom::Start(0)).unwrap();
    seen.clear();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "again");
    drop(writer);
    drop(reader);
    test.unmount_commit();
    assert_committed(&test, "file", b"again");
}

#[test]
fn two_files_of_the_same_staged_content_part_when_one_is_written_to() {
    let Some(test) = passing(&[]) else { return };
    let content = noise(3, 300_000);
    for path in ["a", "b"] {
        fs::write(test.at(path), &content).unwrap();
    }
    test.sync();
    let readers = ["a", "b"].map(|path| File::open(test.at(path)).unwrap());
    let whole = |mut reader: &File| {
        let mut bytes = Vec::new();
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert!(readers.iter().all(|reader| whole(reader) == content));
    let writer = File::options().write(true).open(test.at("a")).unwrap();
    writer.write_all_at(b"mine", 5).unwrap();
    let mut changed = content.clone();
    changed[5..9].copy_from_slice(b"mine");
    assert!(whole(&readers[0]) == changed && whole(&readers[1]) == content);
    drop((readers, writer));
    test.unmount_commit();
    assert_committed(&test, "a", &changed);
    assert_committed(&test, "b", &content);
}

#[test]
fn a_file_without_a_name_is_read_and_written_as_long_as_it_is_open() {
    let Some(test) = passing(&[]) else { return };
    let options = || File::options().read(true).write(true).create(true).truncate(true).clone();
    let mut file = options().open(test.at("gone")).unwrap();
    file.write_all(b"some").unwrap();
    fs::remove_file(test.at("gone")).unwrap();
    file.write_all(b" more").unwrap();
    let mut replaced = options().open(test.at("replaced")).unwrap();
    replaced.write_all(b"old").unwrap();
    fs::write(test.at("new"), "new").unwrap();
    fs::rename(test.at("new"), test.at("replaced")).unwrap();
    replaced.write_all(b" and going").unwrap();
    for (file, expected) in [(&mut file, "some more"), (&mut replaced, "old and going")] {
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), (expected, 0));
    }
    drop((file, replaced));
    test.unmount_commit();
    assert_committed(&test, "replaced", b"new");
    assert_eq!(test.committed_file("gone"), None);
}

#[test]
fn sizes_and_times_follow_what_is_written() {
    let Some(test) = passing(&["--settle", "3600"]) else { return };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(test.at("file")).unwrap();
    let stat = || {
        let found = fs::metadata(test.at("file")).unwrap();
        (found.len(), (found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()))
    };
    let mut before = stat();
    for (at, length) in [(0, 10), (10, 20), (0, 20), (100, 104)] {
        file.write_all_at(b"word", length - 4).unwrap();
        let now = stat();
        assert_eq!(now.0, length.max(before.0));
        assert!(now.1 > before.1 && now.2 > before.2, "{before:?} {now:?} at {at}");
        before = now;
    }
    let set = std::time::UNIX_EPOCH + std::time::Duration::new(4_000_000_000, 5);
    file.set_times(fs::FileTimes::new().set_modified(set)).unwrap();
    assert_eq!(stat().1, (4_000_000_000, 5));
    file.write_all_at(b"x", 0).unwrap();
    assert!(stat().1.0 < 4_000_000_000);
    let page = Page::of(&file);
    let before = stat();
    page.store(0, b"mapped");
    assert!(stat().1 > before.1, "a store through a mapping is a change too");
    drop(page);
    drop(file);
    let before = stat();
    test.signal(Signal::KILL);
    test.mount(&["--settle", "3600"]).ok();
    assert_eq!((stat().0, stat().1), (before.0, before.1));
    test.unmount();
}

#[test]
fn without_it_a_mount_works_the_same_and_says_why() {
    let test = TestMount::with(crate::server::url(), &["--passthrough", "never"]);
    assert_eq!(test.status()["passthrough"], "off: --passthrough never");
    let limited = TestMount::with(crate::server::url(), &["--spool-limit", "1M"]);
    let why = limited.status()["passthrough"].as_str().unwrap().to_owned();
    assert!(never() || why == "off: --spool-limit counts every write before it is made", "{why}");
    for test in [&test, &limited] {
        let mut file = File::create(test.at("file")).unwrap();
        file.write_all(b"content").unwrap();
        test.sync();
        file.write_all(b" and more").unwrap();
        drop(file);
        test.unmount_commit();
        assert_committed(test, "file", b"content and more");
    }
}

#[test]
fn a_file_that_is_kept_open_comes_back_to_what_the_base_has() {
    let Some(test) = passing(&[]) else { return };
    fs::write(test.at("file"), "base").unwrap();
    test.unmount_commit();
    test.mount(&["--settle", "3600"]).ok();
    // It is in the spool when it is opened again.
    fs::write(test.at("file"), "one.").unwrap();
    let kept = File::options().write(true).open(test.at("file")).unwrap();
    // The server ignores what the base has where something else is staged: that must be taken away instead.
    for text in ["base", "two.", "base"] {
        kept.write_all_at(text.as_bytes(), 0).unwrap();
        test.sync();
    }
    drop(kept);
    test.unmount_commit();
    assert_committed(&test, "file", b"base");
}
