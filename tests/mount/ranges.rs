//! Ranges of files: allocated, punched, zeroed, found, copied.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::dataset::noise;
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, shell};

#[test]
fn ranges_are_allocated_punched_zeroed_and_found_and_the_result_is_staged() {
    let test = TestMount::new();
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
