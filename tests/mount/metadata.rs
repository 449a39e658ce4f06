//! What Oxen cannot store, and what a program sees of it: extended attributes, modes, links, times, odd names.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use rustix::process::Signal;

use rustix::fs::{AtFlags, StatxFlags};

use crate::dataset::noise;
use crate::mounted::{TestMount, run, shell};

/// `u::rw-,g::r--,o::r--` as the kernel takes it: version 2, then tag, permissions and no id.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0; 70_000];
    getxattr(path, name, &mut room[..]).map(|length| room[..length].to_vec())
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    setxattr(path, name, value, XattrFlags::empty())
}

fn names(path: &Path) -> Vec<String> {
    let mut room = vec![0; 70_000];
    let length = listxattr(path, &mut room[..]).unwrap();
    let list = room[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    list.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[test]
fn extended_attributes_are_set_listed_and_refused_as_on_a_local_filesystem() {
    let test = TestMount::new();
    let (file, dir) = (test.at("file"), test.at("dir"));
    fs::write(&file, "content").unwrap();
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink("file", test.at("link")).unwrap();
    for path in [&file, &dir] {
        assert_eq!(get(path, "user.a"), Err(Errno::NODATA));
        set(path, "user.a", b"one\0two").unwrap();
        set(path, "trusted.t", b"").unwrap();
        assert_eq!(get(path, "user.a").unwrap(), b"one\0two");
        assert_eq!(names(path), ["trusted.t", "user.a"]);
        assert_eq!(getxattr(path, "user.a", &mut [0; 3]), Err(Errno::RANGE));
        assert_eq!(setxattr(path, "user.a", b"x", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(setxattr(path, "user.b", b"x", XattrFlags::REPLACE), Err(Errno::NODATA));
        removexattr(path, "trusted.t").unwrap();
        assert_eq!(removexattr(path, "trusted.t"), Err(Errno::NODATA));
        assert_eq!(set(path, "user.", b"x"), Err(Errno::INVAL));
        assert_eq!(set(path, "system.posix_acl_access", ACL), Err(Errno::OPNOTSUPP));
        assert_eq!(get(path, "security.capability"), Err(Errno::OPNOTSUPP));
        assert_eq!(set(path, &format!("user.{}", "n".repeat(251)), b""), Err(Errno::RANGE));
        set(path, &format!("user.{}", "n".repeat(250)), &[7; 65_536]).unwrap();
        assert_eq!(set(path, "user.long", &[7; 65_537]), Err(Errno::TOOBIG));
    }
    // Names of 256 bytes with their NUL: 256 of them fill the longest list there can be.
    let filled = (0..300).map(|at| set(&dir, &format!("user.{at:0250}"), b"")).find(Result::is_err);
    assert_eq!(filled, Some(Err(Errno::NOSPC)));
    assert!(names(&dir).len() > 250);
    assert_eq!(rustix::fs::lsetxattr(test.at("link"), "user.a", b"x", XattrFlags::empty()), Err(Errno::PERM));
    let before = fs::metadata(&file).unwrap();
    set(&file, "user.a", b"changed").unwrap();
    let after = fs::metadata(&file).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    test.unmount();
}

#[test]
fn attributes_of_the_mount_tell_where_a_file_is_and_are_not_copied() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600"]);
    let file = test.at("file");
    fs::write(&file, "content").unwrap();
    assert_eq!(get(&file, "user.oxenfs.state").unwrap(), b"dirty");
    assert_eq!(get(&file, "user.oxenfs.attempts").unwrap(), b"0");
    assert_eq!(get(&file, "user.oxenfs.error"), Err(Errno::NODATA));
    assert_eq!(get(&file, "user.oxenfs.other"), Err(Errno::NODATA));
    test.sync();
    assert_eq!(get(&file, "user.oxenfs.state").unwrap(), b"staged");
    assert_eq!(get(&file, "user.oxenfs.hash").unwrap().len(), 32);
    assert_eq!(set(&file, "user.oxenfs.state", b"clean"), Err(Errno::PERM));
    assert_eq!(removexattr(&file, "user.oxenfs.state"), Err(Errno::PERM));
    assert_eq!(names(&file), [""; 0]);
    test.commit();
    assert_eq!(get(&file, "user.oxenfs.state").unwrap(), b"clean");
    fs::write(test.at(OsStr::from_bytes(b"\xff")), "local").unwrap();
    assert_eq!(get(&test.at(OsStr::from_bytes(b"\xff")), "user.oxenfs.state").unwrap(), b"local");
    test.unmount();
}

#[test]
fn what_oxen_cannot_store_outlives_a_kill_and_a_restart() {
    let test = TestMount::new();
    fs::write(test.at("base"), noise(1, 5000)).unwrap();
    test.commit();
    shell(
        &test.dir,
        "mkdir empty dir; chmod 2770 dir; chown 1234:4321 dir
         echo text > dir/file; chmod 6711 dir/file; ln dir/file twin; ln -s nowhere link; mkfifo fifo; mknod node c 1 3
         chmod 1640 base; chown 7:8 base
         touch -d 2001-02-03T04:05:06.123456789Z dir/file; touch -d 1930-01-01T00:00:00.25Z base",
    );
    fs::write(test.at(OsStr::from_bytes(b"\xff\n\x01")), "odd").unwrap();
    let attributes = [("twin", "user.on twin", &b"\xff\0"[..]), ("dir", "user.d", b"dir"), ("base", "trusted.b", b"")];
    for (path, name, value) in attributes {
        set(&test.at(path), name, value).unwrap();
    }
    let written = fs::metadata(test.at("dir/file")).unwrap();
    let seen = || -> Vec<_> {
        ["base", "dir", "dir/file", "empty", "fifo", "link", "node", "twin"]
            .into_iter()
            .map(|path| {
                let m = fs::symlink_metadata(test.at(path)).unwrap();
                let owner = (m.uid(), m.gid());
                (path, m.mode(), m.nlink(), owner, m.rdev(), m.size(), (m.mtime(), m.mtime_nsec()), m.atime())
            })
            .collect()
    };
    let before = seen();
    let check = || {
        assert_eq!(seen(), before);
        for (path, name, value) in attributes {
            assert_eq!(get(&test.at(path), name).unwrap(), value, "{path}");
        }
        let (file, twin) = (fs::metadata(test.at("dir/file")).unwrap(), fs::metadata(test.at("twin")).unwrap());
        assert_eq!(file.ino(), twin.ino());
        assert_eq!(get(&test.at("dir/file"), "user.on twin").unwrap(), b"\xff\0");
        assert_eq!((file.mtime(), file.mtime_nsec()), (981_173_106, 123_456_789));
        assert_eq!(fs::metadata(test.at("base")).unwrap().mtime_nsec(), 250_000_000);
        assert!(fs::symlink_metadata(test.at("node")).unwrap().file_type().is_char_device());
        assert_eq!(fs::read(test.at(OsStr::from_bytes(b"\xff\n\x01"))).unwrap(), b"odd");
    };
    check();
    let listed = || {
        let status = test.status();
        let local = status["local"].as_array().unwrap().iter();
        local.map(|path| format!("{}: {}", path["path"].as_str().unwrap(), path["reason"].as_str().unwrap())).collect()
    };
    let reasons: Vec<String> = listed();
    let expected = [
        "base: permissions 1640; owner 7:8; extended attributes",
        "dir: permissions 2770; owner 1234:4321; extended attributes",
        "dir/file: hard links, which become copies; permissions 6711; owner 0:4321; extended attributes",
        "empty: empty directory",
        "fifo: special file",
        "link: symbolic link",
        "node: special file",
    ];
    assert_eq!(reasons[..7], expected);
    assert_eq!(reasons.len(), 8, "and the odd name: {reasons:#?}");
    assert_eq!(test.status()["counts"]["local"]["files"], 8);
    test.signal(Signal::KILL);
    assert_eq!(listed(), reasons, "without a daemon too");
    test.mount(&[]).ok();
    check();
    fs::rename(test.at("twin"), test.at("renamed")).unwrap();
    fs::rename(test.at("renamed"), test.at("twin")).unwrap();
    removexattr(test.at("dir"), "user.d").unwrap();
    set(&test.at("dir"), "user.d", b"dir").unwrap();
    test.commit();
    check();
    test.unmount();
    test.mount(&[]).ok();
    check();
    assert_eq!(written.mode() & 0o7777, 0o6711);
    test.unmount();
}

#[test]
fn a_modification_time_is_the_same_after_a_restart() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600"]);
    fs::write(test.at("staged and emptied"), "content").unwrap();
    test.commit();
    let write = |name: &str| fs::File::options().write(true).open(test.at(name)).unwrap();
    fs::write(test.at("written"), "content").unwrap();
    for cut in ["cut", "open and cut"] {
        fs::write(test.at(cut), "content").unwrap();
    }
    for emptied in ["emptied", "open and emptied"] {
        fs::write(test.at(emptied), "content").unwrap();
    }
    let open = ["open and cut", "open and emptied"].map(write);
    for cut in ["cut", "open and cut"] {
        write(cut).set_len(3).unwrap();
    }
    for emptied in ["emptied", "open and emptied", "staged and emptied"] {
        fs::File::create(test.at(emptied)).unwrap();
    }
    let times = || {
        ["written", "cut", "open and cut", "emptied", "open and emptied", "staged and emptied"].map(|path| {
            let metadata = fs::metadata(test.at(path)).unwrap();
            (path, metadata.mtime(), metadata.mtime_nsec())
        })
    };
    let before = times();
    test.signal(Signal::KILL);
    drop(open);
    test.mount(&[]).ok();
    assert_eq!(times(), before);
    test.sync();
    assert_eq!(times(), before, "staged");
    test.signal(Signal::KILL);
    test.mount(&[]).ok();
    assert_eq!(times(), before, "staged, and after another restart");
    test.unmount();
}

#[test]
fn set_id_bits_go_when_somebody_without_the_privilege_changes_a_file() {
    for passthrough in ["auto", "never"] {
        set_id_bits_go(passthrough);
    }
}

fn set_id_bits_go(passthrough: &str) {
    let test = TestMount::with(crate::server::url(), &["--allow-other", "--passthrough", passthrough]);
    let path = test.at("file");
    let as_nobody = |script: &str| {
        // The test's directory is private: the mount is entered before the privilege is given up.
        let script = format!(
            "cd '{}' && exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '{script}'",
            test.dir.display()
        );
        run("sh", ["-c", &script]);
    };
    let mode_after = |change: &dyn Fn()| {
        fs::write(&path, "#!/bin/sh\n").unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        change();
        // Alone: who asks for more brings the mode up to date by the way.
        let alone = rustix::fs::statx(rustix::fs::CWD, &path, AtFlags::empty(), StatxFlags::MODE).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(u32::from(alone.stx_mode) & 0o7777, mode, "the kernel was not told");
        mode
    };
    assert_eq!(mode_after(&|| as_nobody("echo more >> file")), 0o777);
    assert_eq!(mode_after(&|| as_nobody("echo more 1<> file")), 0o777);
    assert_eq!(mode_after(&|| as_nobody("dd if=/dev/zero of=file bs=4096 count=1 oflag=direct status=none")), 0o777);
    assert_eq!(mode_after(&|| as_nobody("fallocate -l 100000 file")), 0o777);
    assert_eq!(mode_after(&|| as_nobody("echo other > file")), 0o777);
    assert_eq!(mode_after(&|| as_nobody("truncate -s 3 file")), 0o777);
    assert_eq!(mode_after(&|| as_nobody("chmod 6775 file")), 0o6775);
    assert_eq!(mode_after(&|| fs::write(&path, "by root").unwrap()), 0o6777);
    assert_eq!(mode_after(&|| drop(shell(&test.dir, "truncate -s 3 file; echo more >> file"))), 0o6777);
    // Whoever changes the owner, even to whom it is.
    assert_eq!(mode_after(&|| std::os::unix::fs::chown(&path, None, Some(0)).unwrap()), 0o777);
    assert_eq!(mode_after(&|| std::os::unix::fs::chown(&path, None, None).unwrap()), 0o777);
    let weak = "exec setpriv --bounding-set -fsetid --inh-caps -fsetid sh -c 'echo x > file'";
    assert_eq!(mode_after(&|| drop(shell(&test.dir, weak))), 0o777);
    test.unmount();
}
