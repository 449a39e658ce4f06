//! What ordinary programs do to files.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use crate::dataset::noise;
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, python, run, shell};

#[test]
fn a_temporary_file_never_appears_on_the_server() {
    let test = TestMount::new();
    for at in 0..20 {
        let temporary = test.at(format!(".target {at}.tmp"));
        fs::write(&temporary, noise(at, 10_000)).unwrap();
        fs::rename(&temporary, test.at(format!("target {at}"))).unwrap();
        fs::write(test.at("scratch"), "soon gone").unwrap();
        fs::remove_file(test.at("scratch")).unwrap();
    }
    test.sync();
    let mut staged = test.staged_paths();
    staged.sort();
    let mut names: Vec<_> = (0..20).map(|at| format!("target {at}")).collect();
    names.sort();
    assert_eq!(staged, names);
    let expected = (0..20).map(|at| (format!("target {at}"), noise(at, 10_000))).collect();
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn editors_save_in_every_way_they_know() {
    let test = TestMount::new();
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        fs::write(root.join("config"), "color = red\nsize = 3\n").unwrap();
        fs::write(root.join("notes"), "one\n").unwrap();
        fs::write(root.join("backed up"), "before\n").unwrap();
    }
    test.commit();
    for root in [&test.dir, &plain] {
        shell(root, "sed -i s/red/green/ config");
        // As vim: write beside, keep the old one as a backup, then remove the backup.
        shell(root, "mv notes notes~; echo two > notes; rm notes~");
        // As emacs: a lock that is a symbolic link, a backup that stays.
        shell(
            root,
            "ln -s me@host.1 '.#backed up'; cp -p 'backed up' 'backed up~'; echo after > 'backed up'; rm '.#backed up'",
        );
        // As an atomic writer: synced, then renamed over.
        let mut file = fs::File::create(root.join(".config.swp")).unwrap();
        file.write_all(b"color = blue\n").unwrap();
        file.sync_all().unwrap();
        fs::rename(root.join(".config.swp"), root.join("config")).unwrap();
        fs::File::open(root).unwrap().sync_all().unwrap();
    }
    assert_same(&local_tree(&test.dir), &local_tree(&plain));
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&plain));
}

#[test]
fn rsync_finds_nothing_to_do_the_second_time() {
    let test = TestMount::new();
    let source = test.beside("source");
    crate::dataset::write(&source, 100);
    let from = format!("{}/", source.display());
    let transferred = |to: &str| {
        let said = run("rsync", ["-a", "--stats", &from, to]);
        said.lines().find_map(|line| line.strip_prefix("Number of regular files transferred: ")).unwrap().to_owned()
    };
    let to = test.dir.to_str().unwrap();
    assert_eq!(transferred(to), local_tree(&source).len().to_string());
    assert_eq!(transferred(to), "0");
    test.commit();
    assert_eq!(transferred(to), "0");
    // Times outlive the daemon, as long as the state is there.
    test.unmount();
    test.mount(&[]).ok();
    assert_eq!(transferred(to), "0");
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&source));
}

#[test]
fn tar_restores_modes_and_times() {
    let test = TestMount::new();
    let source = test.beside("source");
    crate::dataset::write(&source, 80);
    fs::write(source.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("script"), fs::Permissions::from_mode(0o750)).unwrap();
    run("touch", ["-d".as_ref(), "2001-02-03T04:05:06.789Z".as_ref(), source.join("script").as_os_str()]);
    let archive = test.beside("archive").join("a.tar");
    run("tar", ["-C".as_ref(), source.as_os_str(), "-cf".as_ref(), archive.as_os_str(), ".".as_ref()]);
    run("tar", ["-C".as_ref(), test.dir.as_os_str(), "-xpf".as_ref(), archive.as_os_str()]);
    let metadata = test.at("script").metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o750, 981_173_106));
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&source));
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let test = TestMount::new();
    fs::write(test.at("kept"), "kept").unwrap();
    fs::write(test.at("base"), noise(1, 300_000)).unwrap();
    test.commit();
    let options = fs::OpenOptions::new().read(true).write(true).clone();
    let mut base = options.open(test.at("base")).unwrap();
    let mut new = options.clone().create(true).truncate(false).open(test.at("new")).unwrap();
    fs::remove_file(test.at("base")).unwrap();
    fs::remove_file(test.at("new")).unwrap();
    new.write_all(b"to nobody").unwrap();
    base.write_all_at(b"changed", 100).unwrap();
    test.sync();
    let mut content = String::new();
    new.seek(SeekFrom::Start(0)).unwrap();
    new.read_to_string(&mut content).unwrap();
    assert_eq!(content, "to nobody");
    let mut content = Vec::new();
    base.read_to_end(&mut content).unwrap();
    let mut expected = noise(1, 300_000);
    expected[100..107].copy_from_slice(b"changed");
    assert!(content == expected);
    assert_eq!(base.metadata().unwrap().nlink(), 0);
    drop((base, new));
    test.unmount_commit();
    assert_same(&test.committed(), &[("kept".to_owned(), b"kept".to_vec())].into());
}

#[test]
fn part_of_a_base_file_is_changed_and_the_rest_is_kept() {
    let test = TestMount::new();
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        for (at, name) in ["overwritten", "appended", "cut", "grown", "emptied", "holed", "mapped"].iter().enumerate() {
            fs::write(root.join(name), noise(at as u64, 3_000_000 + at)).unwrap();
        }
    }
    test.unmount_commit();
    // Nothing of it is on this disk any more.
    test.forget();
    test.mount(&[]).ok();
    for root in [&test.dir, &plain] {
        let open = |name: &str| fs::OpenOptions::new().read(true).write(true).open(root.join(name)).unwrap();
        let file = open("overwritten");
        for at in [0, 4095, 1_000_000, 2_999_990] {
            file.write_all_at(b"overwritten", at).unwrap();
        }
        let mut file = fs::OpenOptions::new().append(true).open(root.join("appended")).unwrap();
        file.write_all(b"at the end").unwrap();
        open("cut").set_len(1_234_567).unwrap();
        open("grown").set_len(3_100_000).unwrap();
        open("emptied").set_len(0).unwrap();
        open("holed").write_all_at(b"far away", 4_000_000).unwrap();
        python(
            root,
            "import mmap\nwith open('mapped', 'r+b') as f:\n  with mmap.mmap(f.fileno(), 0) as m:\n    \
             m[5000:5006] = b'mapped'\n    m[2999000:2999003] = b'end'\n",
        );
    }
    assert_same(&local_tree(&test.dir), &local_tree(&plain));
    test.sync();
    assert_same(&local_tree(&test.dir), &local_tree(&plain));
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&plain));
}

#[test]
fn links_stay_links_after_a_remount() {
    let test = TestMount::new();
    fs::create_dir(test.at("dir")).unwrap();
    fs::write(test.at("dir/original"), noise(1, 100_000)).unwrap();
    fs::hard_link(test.at("dir/original"), test.at("hard")).unwrap();
    std::os::unix::fs::symlink("dir/original", test.at("soft")).unwrap();
    std::os::unix::fs::symlink("nowhere", test.at("dangling")).unwrap();
    test.sync();
    test.unmount();
    test.mount(&[]).ok();
    assert_eq!(fs::read_link(test.at("soft")).unwrap().to_str(), Some("dir/original"));
    assert_eq!(fs::read_link(test.at("dangling")).unwrap().to_str(), Some("nowhere"));
    assert!(fs::read(test.at("soft")).unwrap() == noise(1, 100_000));
    let (a, b) = (test.at("hard").metadata().unwrap(), test.at("dir/original").metadata().unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    // A change through one name shows under the other, and travels under both.
    let mut file = fs::OpenOptions::new().append(true).open(test.at("hard")).unwrap();
    file.write_all(b" and more").unwrap();
    drop(file);
    let content = [noise(1, 100_000), b" and more".to_vec()].concat();
    assert!(fs::read(test.at("dir/original")).unwrap() == content);
    test.unmount_commit();
    assert_same(&test.committed(), &[("dir/original".into(), content.clone()), ("hard".into(), content)].into());
}

#[test]
fn a_listing_under_way_does_not_bring_back_what_was_removed() {
    let test = TestMount::new();
    // More than one answer to a listing holds. The order comes from the names alone: another directory tells which are
    // last.
    for dir in ["dir", "other"] {
        fs::create_dir(test.at(dir)).unwrap();
        (0..1000).for_each(|at| fs::write(test.at(dir).join(format!("{at:0100}")), "").unwrap());
    }
    let order: Vec<_> = fs::read_dir(test.at("other")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let (replaced, last) = (test.at("dir").join(&order[998]), test.at("dir").join(&order[999]));
    let open = fs::File::open(&last).unwrap();
    let mut listing = fs::read_dir(test.at("dir")).unwrap();
    assert_eq!(listing.next().unwrap().unwrap().file_name(), order[0]);
    fs::remove_file(&last).unwrap();
    fs::write(test.at("aside"), "renamed over another").unwrap();
    fs::rename(test.at("aside"), &replaced).unwrap();
    let names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.contains(&order[998]), "it was there all the time");
    assert_eq!(fs::metadata(&last).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(fs::read(&replaced).unwrap(), b"renamed over another");
    drop(open);
}

#[test]
fn what_opening_and_setting_times_changes_is_as_on_a_local_disk() {
    let test = TestMount::new();
    let file = test.at("file");
    fs::write(&file, "").unwrap();
    let changed = || {
        let stat = file.metadata().unwrap();
        (stat.mtime(), stat.mtime_nsec())
    };
    // Emptying what is empty is a change.
    let before = changed();
    fs::File::create(&file).unwrap();
    assert_ne!(changed(), before);
    // Also for whoever comes after a crash.
    python(&test.dir, "os.utime('file', (0, 0)); open('file', 'w').close()");
    let before = changed();
    test.signal(rustix::process::Signal::KILL);
    test.mount(&[]).ok();
    assert_eq!(changed(), before);
    // Even opened to be read alone.
    fs::write(&file, "content").unwrap();
    python(&test.dir, "os.close(os.open('file', os.O_RDONLY | os.O_TRUNC))");
    assert_eq!(file.metadata().unwrap().len(), 0);
    // A second and a half before 1970.
    python(&test.dir, "os.utime('file', ns=(-1_500_000_000, -1_500_000_000))");
    assert_eq!(changed(), (-2, 500_000_000));
    // A directory that is gone has no links.
    fs::create_dir(test.at("dir")).unwrap();
    let dir = fs::File::open(test.at("dir")).unwrap();
    fs::remove_dir(test.at("dir")).unwrap();
    assert_eq!(dir.metadata().unwrap().nlink(), 0);
}

#[test]
fn a_length_that_no_disk_has_takes_no_room() {
    let test = TestMount::new();
    let file = fs::File::create(test.at("file")).unwrap();
    assert_eq!(file.set_len(1 << 60).unwrap_err().kind(), std::io::ErrorKind::FileTooLarge);
    assert_eq!(test.status()["spool_bytes"], 0);
    drop(file);
    test.unmount_and_compare();
}

#[test]
fn eight_threads_write_at_once() {
    let test = TestMount::new();
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                scope.spawn(move || {
                    let dir = root.join(format!("shared {}", thread % 3));
                    fs::create_dir_all(&dir).unwrap();
                    for at in 0..25 {
                        let path = dir.join(format!("{thread} {at}"));
                        fs::write(&path, noise(thread * 100 + at, 1000 * at as usize)).unwrap();
                        match at % 5 {
                            0 => fs::rename(&path, dir.join(format!("{thread} {at} moved"))).unwrap(),
                            1 => fs::remove_file(&path).unwrap(),
                            2 => fs::write(&path, "again").unwrap(),
                            _ => {}
                        }
                    }
                });
            }
        });
    }
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&plain));
}

#[test]
fn eight_threads_write_to_one_file() {
    let test = TestMount::new();
    let file = fs::File::create(test.at("one")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let file = &file;
            scope.spawn(move || {
                for at in (thread..160).step_by(8) {
                    file.write_all_at(&noise(at, 10_000), at * 10_000).unwrap();
                }
            });
        }
    });
    drop(file);
    let expected: Vec<u8> = (0..160).flat_map(|at| noise(at, 10_000)).collect();
    test.unmount_commit();
    assert!(test.committed_file("one").unwrap() == expected);
}
