//! What programs expect of a local filesystem between processes, at its limits, and of its numbers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, statvfs, utimensat};

use crate::dataset::noise;
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, python, run, shell, wait_until};

/// Two processes and the three kinds of advisory locks, step by step; the second one answers over a pipe. Prints what
/// each attempt gave.
const LOCKS: &str = r#"
import errno, fcntl, struct

open('file', 'w').write('x' * 100)

class Other:
    """A process of its own that does what it is told, and says how that went."""
    def __init__(self):
        (self.orders, orders), (answers, self.answers) = os.pipe()[::-1], os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.orders)
            known = {'fd': os.open('file', os.O_RDWR)}
            with os.fdopen(orders) as orders:
                for order in orders:
                    try:
                        known['r'] = eval(order, {**globals(), **known})
                        said = repr(known['r'])
                    except OSError as error:
                        said = errno.errorcode[error.errno]
                    os.write(self.answers, said.encode() + b'\n')
            os._exit(0)
        os.close(orders)
        os.close(self.answers)
        self.answers = os.fdopen(answers)
    def do(self, order):
        os.write(self.orders, order.encode() + b'\n')
        print(order, '->', self.answers.readline().strip())
    def end(self):
        os.close(self.orders)
        os.waitpid(self.pid, 0)

def lock(fd, command, kind, start, length):
    given = struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0)
    answer = struct.unpack('hhqqi4x', fcntl.fcntl(fd, command, given))
    return (answer[0], answer[2], answer[3]) if command in (fcntl.F_GETLK, fcntl.F_OFD_GETLK) else None

R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
fd = os.open('file', os.O_RDWR)
other = Other()

# Whole files.
fcntl.flock(fd, fcntl.LOCK_SH)
other.do('fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)')
other.do('fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)')
other.do('fcntl.flock(fd, fcntl.LOCK_UN)')
fcntl.flock(fd, fcntl.LOCK_EX)
other.do('fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)')
fcntl.flock(fd, fcntl.LOCK_UN)
other.do('fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)')
try:
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
except BlockingIOError:
    print('the other one has it')
other.end()
fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.flock(fd, fcntl.LOCK_UN)

# Ranges, of a process and of an open file.
for setting, getting in (('F_SETLK', 'F_GETLK'), ('F_OFD_SETLK', 'F_OFD_GETLK')):
    other = Other()
    put = getattr(fcntl, setting)
    lock(fd, put, W, 10, 20)
    lock(fd, put, R, 50, 10)
    for kind, start, length in ((W, 0, 10), (W, 0, 11), (R, 29, 1), (W, 30, 5), (R, 52, 4), (W, 52, 4), (W, 200, 0)):
        other.do(f'lock(fd, fcntl.{setting}, {kind}, {start}, {length})')
        other.do(f'lock(fd, fcntl.{getting}, {kind}, {start}, {length})')
    lock(fd, put, U, 15, 5)
    other.do(f'lock(fd, fcntl.{setting}, W, 15, 5)')
    other.do(f'lock(fd, fcntl.{setting}, W, 14, 1)')
    try:
        lock(fd, put, W, 16, 1)
    except BlockingIOError:
        print('the other one has it')
    # The end of a process is the end of its locks.
    other.end()
    lock(fd, put, W, 0, 0)
    lock(fd, put, U, 0, 0)

# Closing any descriptor of a file ends the locks of the process, and not those of an open file.
other = Other()
lock(fd, fcntl.F_SETLK, W, 0, 1)
again = os.open('file', os.O_RDWR)
lock(again, fcntl.F_OFD_SETLK, W, 5, 1)
os.close(os.open('file', os.O_RDONLY))
other.do('lock(fd, fcntl.F_SETLK, W, 0, 1)')
other.do('lock(fd, fcntl.F_SETLK, W, 5, 1)')
os.close(again)
other.do('lock(fd, fcntl.F_SETLK, W, 5, 1)')
other.end()

# Whoever waits gets it when it is free; two that wait for each other are told.
lock(fd, fcntl.F_SETLK, W, 0, 1)
waiter = os.fork()
if waiter == 0:
    mine = os.open('file', os.O_RDWR)
    lock(mine, fcntl.F_SETLK, W, 1, 1)
    lock(mine, fcntl.F_SETLKW, W, 0, 1)
    os._exit(7)
while not any('->' in line and f' {waiter} ' in line for line in open('/proc/locks')):
    os.sched_yield()
try:
    lock(fd, fcntl.F_SETLKW, W, 1, 1)
except OSError as error:
    print(errno.errorcode[error.errno])
lock(fd, fcntl.F_SETLK, U, 0, 1)
print(os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]))

# The modes that a lock needs, and a lock on what has no name any more.
for flags, kind in ((os.O_RDONLY, W), (os.O_WRONLY, R)):
    try:
        lock(os.open('file', flags), fcntl.F_SETLK, kind, 0, 1)
    except OSError as error:
        print(errno.errorcode[error.errno])
os.unlink('file')
fcntl.flock(fd, fcntl.LOCK_EX)
lock(fd, fcntl.F_SETLK, W, 0, 1)
"#;

#[test]
fn locks_hold_between_processes_and_end_with_them() {
    let test = TestMount::new();
    let plain = test.beside("plain");
    let said = [&plain, &test.dir].map(|root| python(root, LOCKS));
    assert_eq!(said[0], said[1]);
    let refused = said[1].matches("EAGAIN").count();
    assert!(refused >= 10 && said[1].contains("EDEADL") && said[1].contains("EBADF"), "{}", said[1]);
    test.unmount();
}

#[test]
fn the_numbers_of_the_filesystem_are_those_of_the_disk_and_of_the_limit() {
    let test = TestMount::new();
    let (ours, disk) = (|| statvfs(&test.dir).unwrap(), || statvfs(&test.state).unwrap());
    // Others write to the disk meanwhile: what lies between two looks at it is right.
    let between = |what: &str, of: &dyn Fn(&rustix::fs::StatVfs) -> u64| {
        wait_until(what, || {
            let (before, ours, after) = (of(&disk()), of(&ours()), of(&disk()));
            (before.min(after)..=before.max(after)).contains(&ours)
        });
    };
    between("blocks", &|numbers| numbers.f_blocks * numbers.f_frsize);
    between("free blocks", &|numbers| numbers.f_bfree * numbers.f_frsize);
    between("available blocks", &|numbers| numbers.f_bavail * numbers.f_frsize);
    between("inodes", &|numbers| numbers.f_files);
    between("free inodes", &|numbers| numbers.f_ffree);
    assert_eq!(ours().f_namemax, 255);
    let df = |dir: &Path| shell(dir, "df -P -B 1048576 . | tail -n 1").split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(df(&test.dir), df(&test.state), "what df says");
    test.unmount();

    let test = TestMount::with(crate::server::url(), &["--spool-limit", "8M", "--settle", "600"]);
    let bytes = || {
        let numbers = statvfs(&test.dir).unwrap();
        [numbers.f_blocks, numbers.f_bfree, numbers.f_bavail].map(|blocks| blocks * numbers.f_frsize)
    };
    assert_eq!(bytes(), [8 << 20; 3]);
    fs::write(test.at("file"), noise(1, 3 << 20)).unwrap();
    assert_eq!(bytes(), [8 << 20, 5 << 20, 5 << 20]);
    test.sync();
    assert_eq!(bytes(), [8 << 20; 3], "what the server has takes no room of the spool");
    test.unmount_and_compare();
}

#[test]
fn times_are_set_to_the_nanosecond_to_now_or_not_at_all() {
    let test = TestMount::new();
    let path = test.at("file");
    fs::write(&path, "content").unwrap();
    std::os::unix::fs::symlink("file", test.at("link")).unwrap();
    let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let (now, omit) = (at(0, UTIME_NOW), at(0, UTIME_OMIT));
    let set = |name: &str, last_access, last_modification, flags| {
        utimensat(CWD, test.at(name), &Timestamps { last_access, last_modification }, flags)
    };
    let seen = |name: &str| {
        let stat = fs::symlink_metadata(test.at(name)).unwrap();
        [(stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec())]
    };
    let follow = AtFlags::empty();
    set("file", at(1, 999_999_999), at(-5, 1), follow).unwrap();
    assert_eq!(seen("file")[..2], [(1, 999_999_999), (-5, 1)]);
    let before = seen("file");
    set("file", omit, at(7, 7), follow).unwrap();
    assert_eq!(seen("file")[..2], [(1, 999_999_999), (7, 7)]);
    assert!(seen("file")[2] > before[2], "a change of times is a change");
    let before = seen("file");
    set("file", omit, omit, follow).unwrap();
    assert_eq!(seen("file"), before, "nothing was asked for");
    set("file", now, omit, follow).unwrap();
    let after = seen("file");
    assert_eq!((after[0], after[1]), (after[2], (7, 7)), "now is when it was changed");
    set("file", at(3, 3), now, follow).unwrap();
    let after = seen("file");
    assert_eq!((after[0], after[1]), ((3, 3), after[2]));
    set("link", at(11, 12), at(13, 14), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(seen("link")[..2], [(11, 12), (13, 14)]);
    assert_eq!(seen("file"), after, "through a link that was not followed");
    assert_eq!(set("file", at(0, 1_000_000_000), omit, follow), Err(rustix::io::Errno::INVAL));
    let before = [seen("file"), seen("link")];
    test.signal(rustix::process::Signal::KILL);
    test.mount(&[]).ok();
    assert_eq!([seen("file"), seen("link")].map(|seen| [seen[0], seen[1]]), before.map(|seen| [seen[0], seen[1]]));
    test.unmount_and_compare();
}

#[test]
fn names_hold_255_bytes_of_any_kind_and_paths_go_as_deep_as_one_walks() {
    let test = TestMount::new();
    let plain = test.beside("plain");
    let any: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let (first, second) = any.split_at(127);
    let longest = [b'n'; 255];
    let wide = "\u{732b}".repeat(85);
    let names: [&[u8]; 9] = [first, second, &longest, wide.as_bytes(), b"\n", b" ", b"\\", b"\xff", b"..."];
    for root in [&plain, &test.dir] {
        for name in names {
            fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
            fs::create_dir(root.join(OsStr::from_bytes(&[b"dir ", &name[..name.len().min(200)]].concat()))).unwrap();
        }
        let too_long = fs::write(root.join(OsStr::from_bytes(&[b'n'; 256])), "").unwrap_err();
        assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
    let listed = |root: &Path| {
        let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let read = |root: &Path| names.map(|name| fs::read(root.join(OsStr::from_bytes(name))).unwrap());
    assert_eq!((listed(&test.dir), read(&test.dir)), (listed(&plain), read(&plain)));
    // Twice as deep as a path can name in one go (`PATH_MAX`).
    let mut dir = rustix::fs::open(&test.dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let step = "d".repeat(200);
    for _ in 0..40 {
        rustix::fs::mkdirat(&dir, &step, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &step, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let deepest = rustix::fs::openat(&dir, "deepest", OFlags::CREATE | OFlags::RDWR, Mode::RWXU).unwrap();
    rustix::io::write(&deepest, b"deep").unwrap();
    drop(deepest);
    let path = vec![step.as_str(); 40].join("/");
    let too_long = fs::metadata(test.at(&path)).unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
    test.commit();
    assert_eq!(test.committed_file(&format!("{path}/deepest")).as_deref(), Some(&b"deep"[..]));
    test.signal(rustix::process::Signal::KILL);
    test.mount(&[]).ok();
    fs::create_dir(plain.join(&step)).unwrap();
    assert_eq!((listed(&test.dir), read(&test.dir)), (listed(&plain), read(&plain)));
    let found = shell(&test.dir, &format!("find {step} -name deepest -printf '%s %d\\n'"));
    assert_eq!(found, "4 40\n");
    shell(&test.dir, &format!("rm -r {step}"));
    test.unmount_and_compare();
}

#[test]
fn pages_that_come_after_the_last_close_are_staged() {
    let test = TestMount::with(crate::server::url(), &["--settle", "0.05"]);
    let path = test.at("mapped");
    fs::write(&path, vec![b'.'; 20_000]).unwrap();
    test.commit();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let (length, protection) = (20_000, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a new mapping of an open file.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0).cast::<u8>()
    };
    assert_ne!(address.cast(), libc::MAP_FAILED);
    drop(file);
    test.sync();
    let mut expected = vec![b'.'; 20_000];
    for (round, at) in [0, 4096, 19_990].into_iter().enumerate() {
        let text = format!("round {round}");
        // SAFETY: within the mapping, which nobody else looks at.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), address.add(at), text.len()) };
        expected[at..at + text.len()].copy_from_slice(text.as_bytes());
        // Written back by the kernel: in the last round only because the mapping goes.
        if round < 2 {
            // SAFETY: the mapping is there.
            assert_eq!(unsafe { libc::msync(address.cast(), length, libc::MS_SYNC) }, 0);
            test.commit();
            assert!(test.committed_file("mapped").unwrap() == expected, "round {round}");
        }
    }
    // SAFETY: the mapping is there, and not used any more.
    assert_eq!(unsafe { libc::munmap(address.cast(), length) }, 0);
    test.unmount_commit();
    assert!(test.committed_file("mapped").unwrap() == expected);
}

#[test]
fn a_tree_is_removed_while_others_write_into_it() {
    let test = TestMount::with(crate::server::url(), &["--settle", "0.02"]);
    fs::write(test.at("stays"), "stays").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut said = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (done, root) = (&done, test.at("tree"));
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let dir = root.join(format!("{}/{}", random.u8(..4), random.u8(..4)));
                    // Whatever is gone by the time it is used is gone; also a directory that was there a moment ago.
                    let gone = |error: std::io::Error| {
                        let expected = [std::io::ErrorKind::NotFound, std::io::ErrorKind::AlreadyExists];
                        assert!(expected.contains(&error.kind()), "{error}");
                    };
                    fs::create_dir_all(&dir).unwrap_or_else(gone);
                    let (from, to) = (dir.join(format!("new {thread}")), dir.join(format!("{thread}")));
                    fs::write(&from, noise(thread, 5000)).unwrap_or_else(gone);
                    fs::rename(&from, &to).unwrap_or_else(gone);
                }
            });
        }
        for _ in 0..30 {
            let rm = std::process::Command::new("rm").args(["-rf", "tree"]).current_dir(&test.dir).output();
            said.extend(rm.map(|rm| String::from_utf8_lossy(&rm.stderr).into_owned()));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(said.len(), 30);
    for words in said {
        // What comes while it is at work is in its way, and it says so; a tree that was not there when it looked, and
        // is when it removes it, it takes for a file.
        let known = |line: &str| line.ends_with("Directory not empty") || line.ends_with("'tree': Is a directory");
        assert!(words.lines().all(known), "{words}");
    }
    shell(&test.dir, "rm -rf tree; test ! -e tree");
    test.unmount_and_compare();
    assert_same(&test.committed(), &[("stays".to_owned(), b"stays".to_vec())].into());
}

#[test]
fn one_of_many_that_make_or_take_a_name_at_once_succeeds() {
    let test = TestMount::new();
    let race = |work: &(dyn Fn(u64, u64) -> std::io::Result<()> + Sync)| {
        let won = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let won = &won;
                scope.spawn(move || {
                    for at in 0..40 {
                        won.fetch_add(u64::from(work(thread, at).is_ok()), std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        won.into_inner()
    };
    let at = |kind: &str, at: u64| test.at(format!("{kind} {at}"));
    assert_eq!(race(&|_, n| File::create_new(at("file", n)).map(drop)), 40);
    assert_eq!(race(&|_, n| fs::create_dir(at("dir", n))), 40);
    assert_eq!(race(&|_, n| fs::hard_link(at("file", 0), at("link", n))), 40);
    assert_eq!(race(&|thread, n| fs::rename(at("file", n), test.at(format!("moved {n} {thread}")))), 40);
    assert_eq!(race(&|_, n| fs::remove_dir(at("dir", n))), 40);
    assert_eq!(race(&|_, n| fs::remove_file(at("link", n))), 40);
    // Each line whole, and none lost.
    let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(test.at("log")).unwrap();
    assert_eq!(race(&|thread, n| std::io::Write::write_all(&mut &log, format!("{thread} {n:03}\n").as_bytes())), 320);
    let text = fs::read_to_string(test.at("log")).unwrap();
    let lines: std::collections::BTreeSet<&str> = text.lines().collect();
    assert!(lines.len() == 320 && lines.iter().all(|line| line.len() == 5), "{} lines", lines.len());
    assert_eq!(local_tree(&test.dir).len(), 41);
    let mut byte = [0];
    log.read_at(&mut byte, 0).unwrap_err();
    drop(log);
    test.unmount_and_compare();
}

#[test]
fn a_running_program_is_not_emptied() {
    let test = TestMount::new();
    // By a program: a descriptor of this one would live on, for an instant, in what other tests fork.
    run("cp", ["/bin/sleep".as_ref(), test.at("sleep").as_os_str()]);
    let content = fs::read(test.at("sleep")).unwrap();
    for _ in 0..20 {
        let mut running = std::process::Command::new(test.at("sleep")).arg("600").spawn().unwrap();
        for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
            let path = std::ffi::CString::new(test.at("sleep").as_os_str().as_encoded_bytes()).unwrap();
            // SAFETY: the path is a string of C.
            let opened = unsafe { libc::open(path.as_ptr(), access | libc::O_TRUNC) };
            assert_eq!((opened, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ETXTBSY)));
        }
        assert!(fs::read(test.at("sleep")).unwrap() == content && running.try_wait().unwrap().is_none());
        running.kill().unwrap();
        running.wait().unwrap();
    }
    test.unmount_and_compare();
}
