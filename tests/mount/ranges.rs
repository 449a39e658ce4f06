//! Ranges of files: allocated, punched, zeroed, found, copied.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::dataset::noise;
use crate::gateway::{Fault, Gateway};
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, run, shell};
use crate::passthrough::Page;

#[test]
fn ranges_are_allocated_punched_zeroed_and_found_and_the_result_is_staged() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600"]);
    fs::write(test.at("base"), noise(1, 300_000)).unwrap();
    test.commit();
    let mut expected = noise(1, 300_000);
    let file = File::options().read(true).write(true).open(test.at("base")).unwrap();
    let keep = FallocateFlags::KEEP_SIZE;
    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 65_536, 65_536).unwrap();
    expected[65_536..131_072].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 299_000, 2000).unwrap();
    expected.resize(301_000, 0);
    expected[299_000..].fill(0);
    fallocate(&file, keep, 1 << 20, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().size(), 301_000);
    fallocate(&file, FallocateFlags::empty(), 0, 400_000).unwrap();
    expected.resize(400_000, 0);
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    drop(file);
    let file = File::open(test.at("base")).unwrap();
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(65_536));
    assert_eq!(seek(&file, SeekFrom::Data(65_536)), Ok(131_072));
    assert_eq!(seek(&file, SeekFrom::Data(400_000)), Err(Errno::NXIO));
    let mut found = vec![0; 400_000];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
    drop(file);
    test.unmount_commit();
    assert!(test.committed_file("base").unwrap() == expected);
}

#[test]
fn a_copy_of_what_is_staged_is_made_without_reading_it_through_the_mount_and_is_equal() {
    let test = TestMount::new();
    fs::write(test.at("a"), noise(7, 3_000_001)).unwrap();
    test.commit();
    shell(&test.dir, "cp a b; cp --reflink=auto a c");
    let from = File::open(test.at("a")).unwrap();
    let to = File::options().create(true).truncate(false).write(true).open(test.at("part")).unwrap();
    assert_eq!(copy_file_range(&from, Some(&mut 1000), &to, Some(&mut 5), 2_000_000), Ok(2_000_000));
    assert_eq!(copy_file_range(&from, Some(&mut 3_000_000), &to, Some(&mut 0), 10), Ok(1));
    assert_eq!(copy_file_range(&from, Some(&mut 3_000_001), &to, Some(&mut 0), 10), Ok(0));
    let content = noise(7, 3_000_001);
    let mut part = vec![0; 5];
    part.extend(&content[1000..2_001_000]);
    part[0] = content[3_000_000];
    assert!(fs::read(test.at("part")).unwrap() == part);
    assert!(fs::read(test.at("b")).unwrap() == content);
    drop((from, to));
    let expected = local_tree(&test.dir);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn a_listing_goes_on_rightly_while_entries_come_go_and_are_renamed() {
    let test = TestMount::new();
    let dir = test.at("dir");
    fs::create_dir(&dir).unwrap();
    for at in 0..3000 {
        fs::write(dir.join(format!("file {at:04}")), "").unwrap();
    }
    let mut seen = Vec::new();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if at < 500 {
            fs::remove_file(dir.join(&name)).unwrap();
            fs::write(dir.join(format!("new {at}")), "").unwrap();
        }
        seen.push(name);
    }
    fs::rename(dir.join("file 2999"), dir.join("moved")).unwrap();
    assert!(!dir.join("file 2999").exists());
    seen.retain(|name| name.starts_with("file"));
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), count), (3000, 3000), "each once");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3000);
    test.unmount();
}

/// What a file takes of the disk, in bytes, as `du` counts it.
fn room(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_file_takes_the_room_that_it_takes_on_the_disk_and_holes_stay_holes() {
    let gateway = Gateway::new(crate::server::url());
    let test = TestMount::with(&gateway.url(), &["--settle", "600"]);
    let at = |name: &str| test.at(name);
    let open = |name: &str| File::options().read(true).write(true).create(true).truncate(false).open(at(name)).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("byte"), "x").unwrap();
    fs::write(at("dense"), noise(1, 1 << 20)).unwrap();
    assert_eq!(["empty", "byte", "dense"].map(|name| room(&at(name))), [0, 4096, 1 << 20]);
    assert_eq!(fs::symlink_metadata(&test.dir).unwrap().blocks(), 0);
    // Grown by a truncation, by a write behind the end, and holed.
    open("cut").set_len(64 << 20).unwrap();
    open("cut").write_all_at(b"x", 32 << 20).unwrap();
    open("far").write_all_at(b"x", 64 << 20).unwrap();
    fs::write(at("holed"), noise(2, 1 << 20)).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(open("holed"), punch, 65_536, 900_000 / 4096 * 4096).unwrap();
    fs::write(at("reserved"), "x").unwrap();
    fallocate(open("reserved"), FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    // What copies and unpacks holes.
    let zeros = test.beside("plain").join("zeros");
    fs::write(&zeros, vec![0; 8 << 20]).unwrap();
    run("cp", ["--sparse=always".as_ref(), zeros.as_os_str(), at("copied").as_os_str()]);
    shell(&test.dir, "cp cut again; cp --reflink=auto --sparse=always cut twice; tar --sparse -cf cut.tar cut");
    shell(&test.dir, "mkdir unpacked; tar -C unpacked -xf cut.tar");
    let sparse = ["cut", "far", "holed", "copied", "again", "twice", "unpacked/cut"];
    let seen = || {
        for name in sparse {
            assert!(room(&at(name)) < 256 << 10, "{name} takes {}", room(&at(name)));
        }
        assert!(fs::metadata(at("cut.tar")).unwrap().size() < 64 << 10);
        assert!((1 << 20..2 << 20).contains(&room(&at("reserved"))), "{}", room(&at("reserved")));
        let du = shell(&test.dir, "du -sk .").split_whitespace().next().unwrap().parse::<u64>().unwrap();
        assert!((2 << 10..4 << 10).contains(&du), "du says {du} KiB");
    };
    seen();
    // What is written into a hole takes room, and what is cut off takes none.
    open("far").write_all_at(&noise(3, 1 << 20), 1 << 20).unwrap();
    assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&room(&at("far"))), "{}", room(&at("far")));
    open("far").set_len(4096).unwrap();
    open("far").set_len(64 << 20).unwrap();
    seen();
    // A mount stages at once what it finds. As long as that cannot be, it is local.
    gateway.rule(|method, path| {
        (method == "POST" && path.contains("/workspaces/")).then_some(Fault::Answer(503, "", "{}"))
    });
    test.signal(rustix::process::Signal::KILL);
    test.mount(&[]).ok();
    seen();
    gateway.calm();
    // The server knows no holes: of what only it has, there is nothing but the length to tell.
    let expected = local_tree(&test.dir);
    test.unmount_commit();
    test.forget();
    test.mount(&[]).ok();
    assert_eq!(["byte", "cut", "reserved"].map(|name| room(&at(name))), [4096, 64 << 20, 4096]);
    test.unmount();
    assert_same(&test.committed(), &expected);
}

#[test]
fn what_is_in_the_pages_of_a_mapping_is_never_taken_for_a_hole() {
    for way in ["auto", "never"] {
        let test = TestMount::with(crate::server::url(), &["--settle", "600", "--passthrough", way]);
        let file = File::options().read(true).write(true).create_new(true).open(test.at("file")).unwrap();
        file.set_len(1 << 20).unwrap();
        let page = Page::of(&file);
        page.store(100, b"mapped");
        assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(0), "{way}");
        shell(&test.dir, "cp --reflink=never file copied; mkdir un; tar --sparse -cf - file | tar -C un -xf -");
        for name in ["copied", "un/file"] {
            assert_eq!(fs::read(test.at(name)).unwrap()[100..106], *b"mapped", "{way}: {name}");
        }
        drop((page, file));
        test.unmount_and_compare();
    }
}

#[test]
fn emptying_an_empty_file_gives_the_room_behind_its_end_back() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600", "--spool-limit", "1M"]);
    fallocate(File::create(test.at("file")).unwrap(), FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(room(&test.at("file")), 1 << 20);
    drop(File::create(test.at("file")).unwrap());
    assert_eq!(room(&test.at("file")), 0);
    fs::write(test.at("other"), noise(1, 1 << 20)).unwrap();
    test.unmount_and_compare();
}

#[test]
fn room_behind_the_end_of_a_file_counts_for_the_limit_and_is_there_for_the_writer() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600", "--spool-limit", "1M"]);
    let used = || test.status()["spool_bytes"].as_u64().unwrap();
    let file = File::create(test.at("file")).unwrap();
    let other = File::create(test.at("other")).unwrap();
    let keep = FallocateFlags::KEEP_SIZE;
    fallocate(&file, keep, 0, 900 << 10).unwrap();
    assert_eq!((file.metadata().unwrap().size(), used()), (0, 900 << 10));
    assert_eq!(fallocate(&other, keep, 0, 200 << 10), Err(Errno::NOSPC));
    assert_eq!(other.write_all_at(&noise(1, 200 << 10), 0).unwrap_err().kind(), ErrorKind::StorageFull);
    drop(other);
    fs::remove_file(test.at("other")).unwrap();
    // Somebody else fills what is left.
    fs::write(test.at("filler"), noise(2, 124 << 10)).unwrap();
    assert_eq!(used(), 1 << 20);
    // Not a byte more for what was promised, and none that was not.
    file.write_all_at(&noise(3, 800 << 10), 0).unwrap();
    assert_eq!(used(), 1 << 20);
    assert_eq!(file.write_all_at(b"x", 900 << 10).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_all_at(&noise(4, 100 << 10), 800 << 10).unwrap();
    assert_eq!(used(), 1 << 20);
    // Given back by cutting, by removing and by staging.
    file.set_len(4096).unwrap();
    assert_eq!(used(), 128 << 10);
    fallocate(&file, keep, 0, 500 << 10).unwrap();
    assert_eq!(used(), 624 << 10);
    drop(file);
    fs::remove_file(test.at("file")).unwrap();
    assert_eq!(used(), 124 << 10);
    let again = File::create(test.at("again")).unwrap();
    again.write_all_at(b"text", 0).unwrap();
    fallocate(&again, keep, 0, 500 << 10).unwrap();
    assert_eq!(used(), 624 << 10);
    drop(again);
    test.sync();
    assert_eq!(used(), 0);
    test.unmount_and_compare();
}
