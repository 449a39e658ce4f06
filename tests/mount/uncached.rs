//! Files that programs only write, by requests: the kernel keeps no copy, and whoever reads sees every byte.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::dataset::noise;
use crate::mounted::{TestMount, wait_until};
use crate::passthrough::Page;

const BY_REQUESTS: [&str; 4] = ["-o", "passthrough=never", "--settle", "0.1"];

fn mount() -> TestMount {
    TestMount::with(crate::server::url(), &BY_REQUESTS)
}

/// How many pages of a file the kernel has in memory for those who read it through the mount.
fn pages_cached(file: &File) -> usize {
    let bytes = file.metadata().unwrap().len() as usize;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let mut resident = vec![0u8; bytes.div_ceil(Page::BYTES)];
    // SAFETY: of this mapping, with a byte for each of its pages.
    let told = unsafe { libc::mincore(at, bytes, resident.as_mut_ptr()) };
    assert_eq!(told, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping that was made.
    unsafe { libc::munmap(at, bytes) };
    resident.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn what_is_only_written_leaves_nothing_in_the_kernels_cache_and_is_kept_there_once_it_is_read() {
    let test = mount();
    let content = noise(1, 3 << 20);
    fs::write(test.at("written"), &content).unwrap();
    assert_eq!(pages_cached(&File::open(test.at("written")).unwrap()), 0);
    // The daemon hears of a close after the program that closed: until then whoever opens it goes the writer's way.
    wait_until("what is read to be kept", || {
        let mut found = Vec::new();
        let mut file = File::open(test.at("written")).unwrap();
        file.read_to_end(&mut found).unwrap();
        assert!(found == content);
        pages_cached(&file) == content.len() / Page::BYTES
    });
    let file = File::open(test.at("written")).unwrap();
    // Who writes beside a reader leaves the reader its pages.
    let writer = File::options().write(true).open(test.at("written")).unwrap();
    writer.write_all_at(b"changed", 1 << 20).unwrap();
    assert_eq!(pages_cached(&file), content.len() / Page::BYTES);
    let mut changed = [0; 7];
    file.read_exact_at(&mut changed, 1 << 20).unwrap();
    assert_eq!(&changed, b"changed");
    drop((file, writer));
    test.unmount_and_compare();
}

#[test]
fn who_reads_what_is_being_written_sees_each_byte_whichever_way() {
    let test = mount();
    let mut writer = File::create(test.at("log")).unwrap();
    writer.write_all(&[b'.'; Page::BYTES]).unwrap();
    let mut reader = File::open(test.at("log")).unwrap();
    let both = File::options().read(true).write(true).open(test.at("log")).unwrap();
    let page = Page::of(&both);
    for (round, word) in ["one", "two", "three"].into_iter().enumerate() {
        let at = round * 100;
        writer.write_all_at(word.as_bytes(), at as u64).unwrap();
        assert_eq!(page.load(at, word.len()), word.as_bytes(), "through a mapping");
        reader.seek(SeekFrom::Start(at as u64)).unwrap();
        let mut found = vec![0; word.len()];
        reader.read_exact(&mut found).unwrap();
        assert_eq!(found, word.as_bytes());
        // What is stored through the mapping shows to those who read by calls.
        page.store(at + 50, word.as_bytes());
        reader.read_exact_at(&mut found, at as u64 + 50).unwrap();
        assert_eq!(found, word.as_bytes());
    }
    writer.write_all(b"the end").unwrap();
    drop((writer, page, both));
    let mut expected = vec![b'.'; Page::BYTES];
    for (round, word) in ["one", "two", "three"].into_iter().enumerate() {
        for at in [round * 100, round * 100 + 50] {
            expected[at..at + word.len()].copy_from_slice(word.as_bytes());
        }
    }
    // The file's position is where the writer left it, behind the page that it began with.
    expected.extend_from_slice(b"the end");
    assert!(fs::read(test.at("log")).unwrap() == expected);
    drop(reader);
    assert!(fs::read(test.at("log")).unwrap() == expected);
    test.unmount_and_compare();
}

#[test]
fn writers_that_append_do_not_overwrite_each_other() {
    let test = mount();
    fs::write(test.at("log"), "").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = test.at("log");
            scope.spawn(move || {
                let mut log = File::options().append(true).open(path).unwrap();
                (0..200).for_each(|_| log.write_all(&[b'a' + writer; 100]).unwrap());
            });
        }
    });
    let content = fs::read(test.at("log")).unwrap();
    assert_eq!(content.len(), 4 * 200 * 100);
    let whole = |line: &[u8]| line.iter().all(|byte| *byte == line[0]);
    assert!(content.chunks(100).all(whole), "a line within another");
    for writer in 0..4u8 {
        assert_eq!(content.iter().filter(|byte| **byte == b'a' + writer).count(), 200 * 100);
    }
    test.unmount_and_compare();
}

#[test]
fn a_synchronous_write_is_a_write_and_an_fsync() {
    let options = [&BY_REQUESTS[..2], &["--settle", "3600", "--fsync", "staged"]].concat();
    let test = TestMount::with(crate::server::url(), &options);
    let open = |name: &str, flags: i32| {
        File::options().write(true).create_new(true).custom_flags(flags).open(test.at(name)).unwrap()
    };
    let mut lazy = open("lazy", 0);
    lazy.write_all(b"nobody waits for it").unwrap();
    for (name, flags) in [("data", libc::O_DSYNC), ("all", libc::O_SYNC)] {
        let mut file = open(name, flags);
        for word in ["each word", " is there", " once it is written"] {
            file.write_all(word.as_bytes()).unwrap();
            let content = fs::read(test.at(name)).unwrap();
            assert_eq!(test.staged_content(name), Some(content), "{name}: {word}");
        }
    }
    assert!(!test.staged_paths().contains(&"lazy".to_owned()));
    drop(lazy);
    test.unmount_and_compare();
}
