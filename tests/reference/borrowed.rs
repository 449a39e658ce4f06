//! Files of the cache that are read past the daemon, where a kernel cannot be told when to do what: a commit that waits,
//! another's commit, a disk that fails, a copy under way.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use oxenfs::fs::{Fs, FsError, Lender, Limits, Need, OpenFlags, Options, Passthrough, RenameMode, Want};
use oxenfs::namespace::{Attrs, Ino, ROOT};
use oxenfs::path::{Name, RepoPath};
use oxenfs::store::disk::{Act, Disk, Witness};
use oxenfs::workspace::memory::Memory;
use oxenfs::workspace::{ByHash, Workspace};

use crate::world::go;

const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, execute: false };
const WRITE: OpenFlags = OpenFlags { read: true, write: true, truncate: false, execute: false };
const CONTENT: &str = "what the base has";

/// A kernel that takes every file, however short, and shows what it was given last.
#[derive(Default)]
struct Kernel(Mutex<Option<File>>);

impl Lender for Kernel {
    fn lend(&self, file: &File) -> io::Result<u32> {
        *self.0.lock().unwrap() = Some(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
        Ok(1)
    }

    fn take_back(&self, _number: u32) {
        *self.0.lock().unwrap() = None;
    }

    fn worthwhile(&self) -> u64 {
        1
    }
}

/// What is done once.
type Once = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// Fails flushes of files while it is told to, and does something before the next flush or write.
#[derive(Default)]
struct Between {
    fail: AtomicBool,
    flush: Once,
    write: Once,
}

impl Witness for Between {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let first = match act {
            Act::Flush(_) => self.flush.lock().unwrap().take(),
            Act::Write(_) => self.write.lock().unwrap().take(),
            _ => None,
        };
        first.into_iter().for_each(|first| first());
        match act {
            Act::Flush(_) if self.fail.load(Ordering::SeqCst) => Err(io::ErrorKind::StorageFull.into()),
            _ => work(),
        }
    }
}

struct Mounted {
    fs: Arc<Fs>,
    memory: Arc<Memory>,
    kernel: Arc<Kernel>,
    disk: Arc<Between>,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// Without a stager: the tests take what is due in hand. The base has these files, all of the same content.
    async fn new(names: &[&str]) -> Self {
        let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Single)));
        let (kernel, between) = (Arc::new(Kernel::default()), Arc::new(Between::default()));
        memory.set_base(names.iter().map(|name| (repo_path(name), Bytes::from_static(CONTENT.as_bytes()))).collect());
        let options = Options { read_only: false, settle: Duration::from_secs(600), uid: 0, gid: 0, umask: 0o022 };
        let limits = Limits { spool: None, cache: 1 << 20 };
        let disk = Disk::witnessed(between.clone());
        let fs = Fs::recover_on(&disk, dir.path(), RepoPath::root(), options, limits, memory.clone()).unwrap();
        assert_eq!(fs.lend_to(kernel.clone()), Passthrough::On);
        fs.reconcile().await.unwrap();
        Self { fs, memory, kernel, disk: between, _dir: dir }
    }

    async fn run<T>(&self, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> Result<T, FsError> {
        go(&self.fs, op).await
    }

    async fn find(&self, name: &str) -> Ino {
        let name = Name::new(name.as_bytes()).unwrap();
        self.run(|fs| fs.lookup(ROOT, &name)).await.unwrap().ino
    }

    /// Opens a file that goes past the daemon.
    async fn past(&self, ino: Ino, flags: OpenFlags) -> u64 {
        let handle = self.run(|fs| fs.open(ino, flags)).await.unwrap();
        assert!(self.fs.reach(handle).past().is_some(), "by requests");
        handle
    }

    /// Writes past the daemon to the file that was lent last.
    fn store(&self, at: u64, text: &str) {
        let fd = self.kernel.0.lock().unwrap().as_ref().unwrap().as_raw_fd();
        let file = File::options().write(true).open(format!("/proc/self/fd/{fd}")).unwrap();
        file.write_all_at(text.as_bytes(), at).unwrap();
    }

    fn read(&self, handle: u64) -> String {
        String::from_utf8(self.fs.read(handle, 0, 100).unwrap()).unwrap()
    }
}

fn repo_path(text: &str) -> RepoPath {
    RepoPath::parse(text).unwrap()
}

#[test]
fn a_commit_that_waits_for_what_is_read_gets_its_own_copy_when_a_writer_comes() {
    crate::world::runtime(1).block_on(async {
        let mount = Mounted::new(&["old"]).await;
        let ino = mount.find("old").await;
        let (old, new) = (Name::new(b"old").unwrap(), Name::new(b"new").unwrap());
        mount.fs.rename(ROOT, &old, ROOT, &new, RenameMode::Replace).unwrap();
        let frozen = mount.fs.cut().await.unwrap();
        let reader = mount.past(ino, READ).await;
        let writer = mount.past(ino, WRITE).await;
        mount.store(0, "HERE");
        assert_eq!(mount.read(reader), "HERE the base has");
        let (captures, _) = mount.fs.due(10);
        let wanted = captures.iter().find(|capture| capture.path.as_str() == "new").unwrap();
        let Want::Sealed { held, hash: Some(_), .. } = &wanted.want else { panic!("{:?}", wanted.want) };
        let mut bytes = vec![0; CONTENT.len()];
        held.file().unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, CONTENT.as_bytes());
        drop((captures, frozen));
        mount.fs.release(writer);
        mount.fs.release(reader);
        // What was copied for it alone is counted no more.
        assert_eq!(mount.fs.spool().used(), CONTENT.len() as u64);
    });
}

#[test]
fn who_reads_while_another_commits_keeps_what_there_was_until_the_close() {
    crate::world::runtime(1).block_on(async {
        for written in [false, true] {
            let mount = Mounted::new(&["file"]).await;
            let ino = mount.find("file").await;
            let reader = mount.past(ino, READ).await;
            mount.memory.set_base([(repo_path("file"), Bytes::from_static(b"of another's commit"))].into());
            let base = mount.memory.base().await.unwrap();
            mount.fs.rebased(base, false).await.unwrap();
            assert_eq!(mount.fs.getattr(ino).unwrap().size, CONTENT.len() as u64);
            let beside = mount.past(ino, READ).await;
            assert_eq!((mount.read(reader), mount.read(beside)), (CONTENT.to_owned(), CONTENT.to_owned()));
            if written {
                // To what they read, which others changed: that is to be decided.
                let writer = mount.past(ino, WRITE).await;
                mount.store(0, "HERE");
                assert_eq!(mount.read(reader), "HERE the base has");
                mount.fs.release(writer);
                assert_eq!(mount.fs.conflicts(), [repo_path("file")]);
            }
            mount.fs.release(reader);
            mount.fs.release(beside);
            let again = mount.past(ino, READ).await;
            let expected = if written { "HERE the base has" } else { "of another's commit" };
            assert_eq!(mount.read(again), expected);
            mount.fs.release(again);
            assert_eq!(mount.fs.check(), [""; 0]);
        }
    });
}

#[test]
fn a_disk_that_takes_no_more_refuses_the_writer_and_keeps_the_reader() {
    crate::world::runtime(1).block_on(async {
        let mount = Mounted::new(&["file", "other"]).await;
        let (ino, other) = (mount.find("file").await, mount.find("other").await);
        let reader = mount.past(ino, READ).await;
        for _ in 0..2 {
            mount.disk.fail.store(true, Ordering::SeqCst);
            assert!(matches!(mount.run(|fs| fs.open(ino, WRITE)).await, Err(FsError::NoSpace)));
            mount.disk.fail.store(false, Ordering::SeqCst);
            assert_eq!((mount.read(reader), mount.fs.spool().used()), (CONTENT.to_owned(), 0));
        }
        // It is the cache's again.
        mount.fs.release(reader);
        let beside = mount.past(other, READ).await;
        assert_eq!(mount.read(beside), CONTENT);
        mount.fs.release(beside);
        let reader = mount.past(ino, READ).await;
        let writer = mount.past(ino, WRITE).await;
        mount.store(0, "NEW.");
        assert_eq!(mount.read(reader), "NEW. the base has");
        mount.fs.release(reader);
        mount.fs.release(writer);
    });
}

#[test]
fn a_reader_who_closes_while_a_writer_comes_gives_back_what_nobody_wrote_to() {
    crate::world::runtime(1).block_on(async {
        let mount = Mounted::new(&["file", "other"]).await;
        let (ino, other) = (mount.find("file").await, mount.find("other").await);
        let reader = mount.past(ino, READ).await;
        let fs = mount.fs.clone();
        *mount.disk.flush.lock().unwrap() = Some(Box::new(move || fs.release(reader)));
        let writer = mount.run(|fs| fs.open(ino, WRITE)).await.unwrap();
        mount.run(|fs| fs.write(writer, 0, b"mine")).await.unwrap();
        let beside = mount.past(other, READ).await;
        assert_eq!(mount.read(beside), CONTENT);
        assert_eq!(mount.read(writer), "mine the base has");
        mount.fs.release(writer);
        mount.fs.release(beside);
    });
}

#[test]
fn a_time_that_is_set_while_a_writer_comes_counts() {
    crate::world::runtime(1).block_on(async {
        let mount = Mounted::new(&["file"]).await;
        let ino = mount.find("file").await;
        let reader = mount.past(ino, READ).await;
        let fs = mount.fs.clone();
        let time = oxenfs::namespace::Timestamp(1_000_000_000, 5);
        *mount.disk.flush.lock().unwrap() = Some(Box::new(move || {
            let mtime = Some(oxenfs::fs::SetTime::At(time));
            fs.setattr(ino, &oxenfs::fs::SetAttr { mtime, ..Default::default() }).unwrap();
        }));
        let writer = mount.past(ino, WRITE).await;
        assert_eq!(mount.fs.getattr(ino).unwrap().attrs.mtime, time);
        let found = mount.kernel.0.lock().unwrap().as_ref().unwrap().metadata().unwrap().modified().unwrap();
        assert_eq!(oxenfs::namespace::Timestamp::from(found), time);
        mount.fs.release(reader);
        mount.fs.release(writer);
    });
}

#[test]
fn a_copy_that_a_writer_overtakes_is_not_taken_for_the_content_it_was_begun_with() {
    crate::world::runtime(1).block_on(async {
        let mount = Mounted::new(&["file"]).await;
        let ino = mount.find("file").await;
        let reader = mount.past(ino, READ).await;
        for (name, overtaken) in [("calm", false), ("overtaken", true)] {
            // Not live itself: what takes more of a file than its old bytes is a request.
            let attrs = Attrs { mode: 0o4644, ..crate::world::attrs() };
            let (_, to) = mount.fs.create(ROOT, &Name::new(name.as_bytes()).unwrap(), attrs, WRITE).unwrap();
            let (fs, runtime) = (mount.fs.clone(), tokio::runtime::Handle::current());
            if overtaken {
                *mount.disk.write.lock().unwrap() = Some(Box::new(move || {
                    let opened = runtime.block_on(fs.run(Need::Own(ino), |fs| fs.open(ino, WRITE)));
                    fs.release(opened.unwrap());
                }));
            }
            let fs = mount.fs.clone();
            let copied = tokio::task::spawn_blocking(move || fs.copy_range((reader, 0), (to, 0), 100)).await.unwrap();
            assert_eq!(copied.unwrap(), CONTENT.len() as u64);
            mount.fs.release(to);
            let _all = mount.fs.barrier();
            let (captures, _) = mount.fs.due(10);
            let found = captures.iter().find(|capture| capture.path.as_str() == name).unwrap();
            assert_eq!(found.want.object().is_none(), overtaken, "{found:?}");
        }
        mount.fs.release(reader);
    });
}
