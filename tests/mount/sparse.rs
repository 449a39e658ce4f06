//! Files with holes: what they cost on the disk, of the limit and on the way, and who is told.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::process::Signal;

use crate::mounted::{TestMount, shell};

const MIB: u64 = 1 << 20;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The whole of a file, mapped as a database maps its map.
struct Map(*mut libc::c_void, usize);

impl Map {
    fn of(file: &File) -> Self {
        use std::os::fd::AsRawFd;
        let bytes = file.metadata().unwrap().len() as usize;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at, bytes)
    }

    fn store(&self, at: usize, text: &[u8]) {
        assert!(at + text.len() <= self.1);
        // SAFETY: within the mapping, which nobody else uses.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast::<u8>().add(at), text.len()) };
    }

    fn flush(&self) {
        // SAFETY: the mapping that was made.
        assert_eq!(unsafe { libc::msync(self.0, self.1, libc::MS_SYNC) }, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn used(test: &TestMount) -> u64 {
    test.status()["spool_bytes"].as_u64().unwrap()
}

fn room(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// What all files of the state directory take of the disk.
fn taken(test: &TestMount) -> u64 {
    shell(&test.state, "du -s -B1 . | cut -f1").trim().parse().unwrap()
}

#[test]
fn a_database_with_a_large_map_counts_what_it_holds_for_the_limit_and_after_a_crash() {
    let options = ["--settle", "3600", "--spool-limit", "64M"];
    let test = TestMount::with(crate::server::url(), &options);
    // LMDB: `map_size` is a length, and pages are stored through a mapping and by writes.
    for (name, length) in [("data.mdb", 256 * MIB), ("large.mdb", 2048 * MIB)] {
        let file = open(&test.at(name));
        let before = used(&test);
        file.set_len(length).unwrap();
        assert_eq!(used(&test), before);
        let map = Map::of(&file);
        for page in 0..6 {
            map.store((length / 7 * page) as usize & !4095, b"a page");
        }
        map.flush();
        drop(map);
        file.write_all_at(&[1; 4096], length - 4096).unwrap();
        // With what the filesystem needs to find that many stretches.
        let room = room(&test.at(name));
        assert!((7 * 4096..=9 * 4096).contains(&room), "{name}: {room}");
        assert_eq!(used(&test) - before, room, "{name}");
    }
    let before = used(&test);
    test.signal(Signal::KILL);
    test.detach();
    test.mount(&options).ok();
    test.wait_status("what is in the spool to be looked at", |status| status["spool_bytes"] == before);
    for name in ["data.mdb", "large.mdb"] {
        fs::remove_file(test.at(name)).unwrap();
    }
    assert_eq!(used(&test), 0);
    test.unmount();
}

#[test]
fn what_has_room_can_be_written_again_at_the_limit_and_a_hole_cannot() {
    let test = TestMount::with(crate::server::url(), &["--settle", "3600", "--spool-limit", "1M"]);
    let (file, keep) = (open(&test.at("sparse")), FallocateFlags::KEEP_SIZE);
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&[1; 100 << 10], 8 * MIB).unwrap();
    fallocate(&file, keep, 16 * MIB, 100 << 10).unwrap();
    assert_eq!(used(&test), 200 << 10);
    // All but one block of the limit is somebody else's.
    fs::write(test.at("filler"), vec![2; (824 << 10) - 4096]).unwrap();
    assert_eq!(used(&test), MIB - 4096);
    file.write_all_at(&[3; 100 << 10], 8 * MIB).unwrap();
    file.write_all_at(&[4; 50 << 10], 16 * MIB).unwrap();
    assert_eq!(used(&test), MIB - 4096);
    assert_eq!(file.write_all_at(&[5; 8192], 32 * MIB).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_all_at(&[6; 10], 32 * MIB).unwrap();
    assert_eq!(used(&test), MIB);
    assert_eq!(file.write_all_at(&[7], 40 * MIB).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(fallocate(&file, keep, 40 * MIB, 4096), Err(rustix::io::Errno::NOSPC));
    // A hole where there was data is room, and so is a shorter file.
    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 8 * MIB, 48 << 10).unwrap();
    assert_eq!(used(&test), MIB - (48 << 10));
    file.write_all_at(&[7], 40 * MIB).unwrap();
    file.set_len(16 * MIB + 4096).unwrap();
    assert_eq!(used(&test), (824 << 10) + (52 << 10));
    file.set_len(0).unwrap();
    assert_eq!(used(&test), (824 << 10) - 4096);
    drop(file);
    test.unmount_and_compare();
}

#[test]
fn holes_are_told_of_once_and_copies_for_staging_keep_them() {
    for options in [&["--settle", "3600"][..], &["--settle", "3600", "--passthrough", "never"]] {
        let test = TestMount::with(crate::server::url(), options);
        let file = open(&test.at("sparse"));
        file.set_len(96 * MIB).unwrap();
        file.write_all_at(b"data", 80 * MIB).unwrap();
        // One that is half data, and one whose holes are small: nothing to tell.
        let dense = open(&test.at("dense"));
        dense.write_all_at(&vec![1; 3 << 20], 2 * MIB).unwrap();
        drop(dense);
        let told = test.status()["sparse"].clone();
        let expected = serde_json::json!([{"path": "sparse", "bytes": 96 * MIB, "allocated_bytes": 4096}]);
        assert_eq!(told, expected);
        let dir = test.dir.to_str().unwrap();
        let said = test.oxenfs(["status", dir]).ok().out;
        let section = "  holes are sent as zeros (compact the file, or keep it elsewhere)\n    \
                       sparse: 96.0 MiB to send, 4.0 KiB of data\n";
        assert!(said.contains(section), "{said}");
        // Staged by a copy, while somebody has it open.
        for _ in 0..2 {
            test.sync();
            assert!(taken(&test) < 16 * MIB, "{} bytes", taken(&test));
            file.write_all_at(b"more", 81 * MIB).unwrap();
        }
        assert_eq!(test.status()["sparse"][0]["allocated_bytes"], 8192);
        let state = fs::read_dir(&test.state).unwrap().flatten().find(|entry| entry.path().join("log").exists());
        let log = fs::read_to_string(state.unwrap().path().join("log")).unwrap();
        assert_eq!(log.matches("holes are sent as zeros").count(), 1, "{log}");
        assert!(log.contains("path=sparse") && log.contains("allocated_bytes=4096"), "{log}");
        drop(file);
        test.commit();
        assert_eq!((test.status()["sparse"].clone(), used(&test)), (serde_json::json!([]), 0));
        assert!(taken(&test) < 16 * MIB, "{} bytes", taken(&test));
        let mut expected = vec![0; 96 << 20];
        expected[80 << 20..][..4].copy_from_slice(b"data");
        expected[81 << 20..][..4].copy_from_slice(b"more");
        assert!(test.committed_file("sparse").unwrap() == expected);
        assert!(fs::read(test.at("sparse")).unwrap() == expected);
        test.unmount();
    }
}

#[test]
fn holes_are_where_the_mount_says_and_cp_keeps_them() {
    for options in [&["--settle", "3600"][..], &["--settle", "3600", "--spool-limit", "16M"]] {
        let test = TestMount::with(crate::server::url(), options);
        let outside = test.beside("outside");
        let local = open(&outside.join("file"));
        local.set_len(40 * MIB).unwrap();
        for at in [MIB, 20 * MIB + 4096, 39 * MIB] {
            local.write_all_at(&[7; 8192], at).unwrap();
        }
        let (from, to) = (outside.join("file"), test.at("file"));
        shell(&test.dir, &format!("cp --sparse=auto {} file; cp --sparse=always file again", from.display()));
        for name in ["file", "again"] {
            assert_eq!((room(&test.at(name)), fs::metadata(&to).unwrap().len()), (6 * 4096, 40 * MIB), "{name}");
            let ours = File::open(test.at(name)).unwrap();
            for at in [0, MIB, MIB + 5000, 2 * MIB, 20 * MIB, 20 * MIB + 4096, 30 * MIB, 39 * MIB, 39 * MIB + 8192] {
                assert_eq!(seek(&ours, SeekFrom::Data(at)), seek(&local, SeekFrom::Data(at)), "{name} data {at}");
                assert_eq!(seek(&ours, SeekFrom::Hole(at)), seek(&local, SeekFrom::Hole(at)), "{name} hole {at}");
            }
        }
        shell(
            &test.dir,
            &format!("cp --sparse=auto file {0}/back; cmp file {0}/file; cmp {0}/back again", outside.display()),
        );
        assert_eq!(room(&outside.join("back")), 6 * 4096);
        assert_eq!(used(&test), 12 * 4096);
        test.unmount_and_compare();
    }
}
