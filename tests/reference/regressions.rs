//! Shortest ways to what once went wrong.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use oxenfs::fs::{
    Arrival, Arrived, Choice, Frees, Fs, Lender, Limits, Need, OpenFlags, Options, Passthrough, RangeChange,
    RenameMode, SetAttr, Stop, Want,
};
use oxenfs::hash::{ContentHash, HashKind};
use oxenfs::namespace::{Attrs, BodyRecord, Ino, ROOT, Timestamp};
use oxenfs::path::{Name, RepoPath};
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::store::disk::{Act, Disk, Witness};
use oxenfs::store::journal::{Change, Journal};
use oxenfs::workspace::memory::{Fault, Memory, Tree};
use oxenfs::workspace::{ByHash, Object, Workspace};
use oxenfs::writeback::index::{Step, Theirs};

use crate::world::{Op, World, commit_request};

fn path(text: &str) -> Vec<String> {
    text.split('/').map(str::to_owned).collect()
}

fn write(at: &str, letter: &str) -> Op {
    Op::Write { path: path(at), at: 0, text: letter.repeat(400) }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename { from: path(from), to: path(to), mode: 0 }
}

/// Does `before`, throws the copies of what the server has away, does `after`, drains and compares.
fn check(before: &[Op], after: &[Op]) {
    let runtime = crate::world::runtime(1);
    for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
        runtime.block_on(async {
            let mut world = World::new(by_hash, false).await;
            for op in before {
                world.unseen_step(op).await;
            }
            world.lose_cache().await;
            for op in after {
                world.unseen_step(op).await;
            }
            world.step(&Op::Drain).await;
        });
    }
}

#[test]
fn a_staged_file_that_is_renamed_keeps_the_bytes_that_only_the_server_has() {
    check(&[write("x", "x"), Op::Drain], &[rename("x", "z")]);
}

#[test]
fn a_rename_leaves_what_the_base_has_at_the_other_names_of_a_file() {
    let link = Op::Link { from: path("base"), to: path("also") };
    let on = Op::Write { path: path("base"), at: 0, text: "more".into() };
    check(&[link, Op::Commit], &[rename("also", "x"), Op::Drain, on, rename("base", "y"), Op::Drain, Op::Crash]);
}

#[test]
fn renames_that_wait_for_each_other_end() {
    let exchange = Op::Rename { from: path("x"), to: path("y"), mode: 2 };
    let staged = [write("x", "x"), write("y", "y"), write("v", "v"), Op::Drain];
    check(&staged, &[exchange]);
    check(&staged, &[rename("y", "w"), rename("x", "y"), rename("v", "x"), write("v", "n")]);
}

#[test]
fn a_staged_file_takes_a_name_below_its_old_one() {
    let staged = [write("x", "x"), Op::Drain];
    check(&staged, &[rename("x", "t"), Op::Mkdir(path("x")), rename("t", "x/y")]);
}

#[test]
fn a_staged_file_takes_the_name_of_its_directory() {
    let staged = [Op::Mkdir(path("d")), write("d/f", "f"), Op::Drain];
    check(&staged, &[rename("d/f", "t"), Op::Rmdir(path("d")), rename("t", "d")]);
}

#[test]
fn a_name_of_a_staged_file_may_go_while_the_others_bytes_are_only_on_the_server() {
    let link = Op::Link { from: path("x"), to: path("also") };
    check(&[write("x", "x"), Op::Drain], &[link, Op::Unlink(path("x"))]);
}

#[test]
fn a_late_failure_does_not_park_what_the_path_has_become() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let memory = std::sync::Arc::new(Memory::new(ByHash::Never));
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 0 };
        let fs = Fs::recover(dir.path(), RepoPath::root(), options, limits, memory).unwrap();
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let name = Name::new(b"file").unwrap();
        let flags = OpenFlags { read: false, write: true, truncate: false, execute: false };
        let (_, handle) = fs.create(ROOT, &name, crate::world::attrs(), flags).unwrap();
        fs.write(handle, 0, b"content").unwrap();
        fs.release(handle);
        let (captures, _) = fs.due(10);
        assert_eq!(captures.len(), 1);
        fs.unlink(ROOT, &name).unwrap();
        fs.step_failed(&captures[0], "its bytes are nowhere", None);
        let (counts, _, errors, _) = fs.report();
        assert_eq!(counts.failed.files, 0, "{errors:?}");
    });
}

#[test]
fn what_is_stored_through_a_mapping_after_the_close_is_staged_and_the_file_comes_to_rest() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let mut world = World::new(ByHash::Single, true).await;
        world.store_late(&path("new"), "late").await;
        world.store_late(&path("dir/new"), "more").await;
        world.rest().await;
        world.step(&Op::Drain).await;
        world.step(&Op::Crash).await;
        world.step(&Op::Commit).await;
    });
}

/// A kernel that lends nothing, as to a daemon without the privilege.
struct Refusing;

impl Lender for Refusing {
    fn lend(&self, _file: &std::fs::File) -> std::io::Result<u32> {
        Err(std::io::ErrorKind::PermissionDenied.into())
    }

    fn take_back(&self, number: u32) {
        panic!("{number} was never lent");
    }
}

#[test]
fn a_kernel_that_refuses_passthrough_is_asked_once_and_everything_is_a_request() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 0 };
        let memory = Arc::new(Memory::new(ByHash::Never));
        let fs = Fs::recover(dir.path(), RepoPath::root(), options, limits, memory).unwrap();
        let Passthrough::Off(why) = fs.lend_to(Arc::new(Refusing)) else { panic!("it was refused") };
        assert!(why.starts_with("the kernel refuses: "), "{why}");
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
        let (stat, handle) = fs.create(ROOT, &Name::new(b"file").unwrap(), crate::world::attrs(), both).unwrap();
        assert_eq!(fs.reach(handle).past(), None);
        fs.write(handle, 0, b"content").unwrap();
        fs.release(handle);
        let again = fs.open(stat.ino, both).unwrap();
        assert_eq!(fs.reach(again).past(), None);
        assert_eq!(fs.read(again, 0, 10).unwrap(), b"content");
    });
}

/// A kernel that takes every file.
struct Lending;

impl Lender for Lending {
    fn lend(&self, _file: &std::fs::File) -> std::io::Result<u32> {
        Ok(1)
    }

    fn take_back(&self, _number: u32) {}
}

#[test]
fn a_file_that_is_renamed_before_its_copy_is_begun_is_not_staged_under_its_old_name() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 0 };
        // Without a stager: this test takes what is due in hand.
        let fs =
            Fs::recover(dir.path(), RepoPath::root(), options, limits, Arc::new(Memory::new(ByHash::Never))).unwrap();
        assert_eq!(fs.lend_to(Arc::new(Lending)), Passthrough::On);
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
        let (old, new) = (Name::new(b"old").unwrap(), Name::new(b"new").unwrap());
        let (_, handle) = fs.create(ROOT, &old, crate::world::attrs(), both).unwrap();
        fs.write(handle, 0, b"content").unwrap();
        let _all = fs.barrier();
        // What copies is kept busy until the rename is done.
        let (go, wait) = std::sync::mpsc::channel();
        let busy = tokio::task::spawn_blocking(move || wait.recv().unwrap());
        assert!(fs.due(10).0.is_empty(), "a file that is open for writing is copied first");
        fs.rename(ROOT, &old, ROOT, &new, RenameMode::Replace).unwrap();
        go.send(()).unwrap();
        busy.await.unwrap();
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        let (captures, _) = fs.due(10);
        let staged = captures.iter().filter(|capture| matches!(capture.want, Want::Sealed { .. }));
        assert_eq!(staged.map(|capture| capture.path.as_str()).collect::<Vec<_>>(), Vec::<&str>::new());
        assert!(captures.iter().any(|capture| capture.path.as_str() == "old"), "that it is gone");
        drop(captures);
        fs.release(handle);
    });
}

/// A kernel that takes every file, and gives a program another way to write to it, as a mapping is.
#[derive(Default)]
struct Mapping(Mutex<Vec<File>>);

impl Lender for Mapping {
    fn lend(&self, file: &File) -> std::io::Result<u32> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        self.0.lock().unwrap().push(File::options().write(true).open(path)?);
        Ok(1)
    }

    fn take_back(&self, _number: u32) {}
}

#[test]
fn a_file_that_comes_to_rest_while_a_copy_of_it_is_sent_does_not_stay_in_the_spool() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 0 };
        // Without a stager: this test takes what is due in hand.
        let fs =
            Fs::recover(dir.path(), RepoPath::root(), options, limits, Arc::new(Memory::new(ByHash::Never))).unwrap();
        let kernel = Arc::new(Mapping::default());
        assert_eq!(fs.lend_to(kernel.clone()), Passthrough::On);
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
        let (_, handle) = fs.create(ROOT, &Name::new(b"file").unwrap(), crate::world::attrs(), both).unwrap();
        assert!(fs.reach(handle).past().is_some());
        fs.write(handle, 0, b"content").unwrap();
        let object = Object { hash: ContentHash::of(HashKind::Xxh3, b"content"), size: 7 };
        let take = async || {
            let _all = fs.barrier();
            loop {
                let taken = fs.due(10).0.into_iter().find(|capture| matches!(capture.want, Want::Sealed { .. }));
                if let Some(mut capture) = taken {
                    let Want::Sealed { hash, .. } = &mut capture.want else { unreachable!("found by that") };
                    *hash = Some(object.hash);
                    return capture;
                }
                // The copy is being made.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        fs.release(handle);
        // What cannot be told from a file that is written to is copied.
        let copy = take().await;
        kernel.0.lock().unwrap().clear();
        // It is asked after from time to time, until nobody has it.
        while fs.due(0).1.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fs.confirmed(&[(copy, Step::Put(object))]).unwrap();
        assert_eq!(fs.check(), Vec::<String>::new());
        fs.confirmed(&[(take().await, Step::Nothing)]).unwrap();
        assert_eq!(fs.check(), Vec::<String>::new());
        assert_eq!(fs.spool().used(), 0);
    });
}

#[test]
fn what_was_mapped_stays_a_file_of_its_own_as_long_as_somebody_reads_it() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 1 << 20 };
        // Without a stager: this test takes what is due in hand.
        let fs =
            Fs::recover(dir.path(), RepoPath::root(), options, limits, Arc::new(Memory::new(ByHash::Never))).unwrap();
        let kernel = Arc::new(Mapping::default());
        assert_eq!(fs.lend_to(kernel.clone()), Passthrough::On);
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
        let name = Name::new(b"file").unwrap();
        let (stat, handle) = fs.create(ROOT, &name, crate::world::attrs(), both).unwrap();
        fs.write(handle, 0, b"content").unwrap();
        let take = async |hash| {
            let _all = fs.barrier();
            loop {
                let taken = fs.due(10).0.into_iter().find(|capture| matches!(capture.want, Want::Sealed { .. }));
                if let Some(mut capture) = taken {
                    let Want::Sealed { hash: known, .. } = &mut capture.want else { unreachable!("found by that") };
                    *known = Some(hash);
                    return capture;
                }
                // The copy is being made.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Closed, and mapped: a copy of it is staged.
        fs.release(handle);
        let object = Object { hash: ContentHash::of(HashKind::Xxh3, b"content"), size: 7 };
        fs.confirmed(&[(take(object.hash).await, Step::Put(object))]).unwrap();
        let reader = fs.open(stat.ino, OpenFlags { write: false, ..both }).unwrap();
        assert!(fs.reach(reader).past().is_some());
        // The mapping goes while it is read, and it is asked whether anybody has it.
        kernel.0.lock().unwrap().clear();
        while fs.due(0).1.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(fs.check(), Vec::<String>::new());
        // Who writes to it now goes the way of the reader.
        let writer = fs.open(stat.ino, both).unwrap();
        assert!(fs.reach(writer).past().is_some());
        fs.run(Need::List(ROOT), |fs| fs.write(writer, 0, b"CONTENT")).await.unwrap();
        fs.release(writer);
        fs.release(reader);
        let capture = take(object.hash).await;
        let mut staged = [0; 7];
        std::os::unix::fs::FileExt::read_exact_at(&**capture.held().unwrap().file().unwrap(), &mut staged, 0).unwrap();
        assert_eq!(&staged, b"CONTENT");
        drop(capture);
        assert_eq!(fs.check(), Vec::<String>::new());
    });
}

/// What is to be done once.
type Work = Box<dyn FnOnce() + Send>;

/// Does something once, after the next flush of a file.
#[derive(Default)]
struct Meanwhile {
    then: Mutex<Option<Work>>,
}

impl Witness for Meanwhile {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        work()?;
        if matches!(act, Act::Flush(_)) {
            let then = self.then.lock().unwrap().take();
            then.into_iter().for_each(|then| then());
        }
        Ok(())
    }
}

#[test]
fn a_write_to_the_original_while_another_writer_gets_a_copy_is_kept() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let (dir, witness) = (tempfile::tempdir().unwrap(), Arc::new(Meanwhile::default()));
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 0 };
        let memory = Arc::new(Memory::new(ByHash::Never));
        let disk = Disk::witnessed(witness.clone());
        // Without a stager: this test takes what is due in hand.
        let fs = Fs::recover_on(&disk, dir.path(), RepoPath::root(), options, limits, memory).unwrap();
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let zero = Timestamp(0, 0);
        let attrs = Attrs { mode: 0o644, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero };
        let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
        let (_, handle) = fs.create(ROOT, &Name::new(b"file").unwrap(), attrs, both).unwrap();
        fs.write(handle, 0, b"......").unwrap();
        let _all = fs.barrier();
        let (in_hand, _) = fs.due(10);
        assert_eq!(in_hand.len(), 1);
        // The copy is made and not in place yet; the stager lets go of the original, and somebody else writes to it.
        let other = fs.clone();
        *witness.then.lock().unwrap() = Some(Box::new(move || {
            drop(in_hand);
            other.write(handle, 4, b"B").unwrap();
        }));
        let Err(Stop::Need(need)) = fs.write(handle, 0, b"A") else { panic!("the file is held") };
        fs.run(need, |fs| fs.write(handle, 0, b"A")).await.unwrap();
        assert_eq!(fs.read(handle, 0, 10).unwrap(), b"A...B.");
        fs.release(handle);
    });
}

#[test]
fn what_is_staged_under_its_new_name_needs_the_old_one_no_longer_whichever_was_confirmed_first() {
    let runtime = crate::world::runtime(1);
    let _guard = runtime.enter();
    let (old, new) = (Name::new(b"old").unwrap(), Name::new(b"new").unwrap());
    for order in [[0, 1], [1, 0]] {
        let dir = tempfile::tempdir().unwrap();
        let fs = start_in(dir.path(), Duration::ZERO);
        runtime.block_on(fs.run(Need::List(ROOT), |_| Ok(()))).unwrap();
        let write = OpenFlags { read: false, write: true, truncate: false, execute: false };
        let (_, handle) = fs.create(ROOT, &old, crate::world::attrs(), write).unwrap();
        fs.write(handle, 0, b"content").unwrap();
        fs.release(handle);
        let object = Object { hash: ContentHash::of(HashKind::Xxh3, b"content"), size: 7 };
        // Both are under way when the first is confirmed.
        let take = || {
            let _all = fs.barrier();
            let taken = fs.due(10).0.into_iter().find(|capture| matches!(capture.want, Want::Sealed { .. }));
            let mut capture = taken.expect("the file is due");
            let Want::Sealed { hash, .. } = &mut capture.want else { unreachable!("found by that") };
            *hash = Some(object.hash);
            (capture, Step::Put(object))
        };
        let first = take();
        fs.rename(ROOT, &old, ROOT, &new, RenameMode::Replace).unwrap();
        let both = [first, take()];
        for which in order {
            fs.confirmed(&both[which..=which]).unwrap();
        }
        assert_eq!(fs.frees(&both[0].0.path, Step::Unstage), Frees::Now, "confirmed in the order {order:?}");
    }
}

#[test]
fn what_is_removed_while_a_commit_is_under_way_stays_removed() {
    let runtime = crate::world::runtime(1);
    let removed = Name::new(b"removed").unwrap();
    for alone in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let memory = Arc::new(Memory::new(ByHash::Single));
        memory.set_base([(RepoPath::parse("removed").unwrap(), "content".into())].into_iter().collect());
        let start = || runtime.block_on(listed(&Disk::default(), dir.path(), &memory));
        let shows = |fs: &Arc<Fs>| runtime.block_on(fs.run(Need::List(ROOT), |fs| fs.lookup(ROOT, &removed))).is_ok();
        let fs = start();
        assert!(shows(&fs));
        let frozen = runtime.block_on(fs.cut()).unwrap();
        fs.unlink(ROOT, &removed).unwrap();
        let committed = runtime.block_on(memory.commit(&commit_request())).unwrap();
        runtime.block_on(fs.rebased(committed.id, alone)).unwrap();
        drop(frozen);
        assert!(!shows(&fs), "in the same daemon, alone: {alone}");
        drop(fs);
        let fs = start();
        assert!(!shows(&fs), "after a restart, alone: {alone}");
        assert_eq!(fs.owed(), 1, "the removal is staged yet");
    }
}

/// Does something once, before the act of a kind that is so many further.
struct Amid {
    which: fn(&Act<'_>) -> bool,
    then: Mutex<Option<(usize, Work)>>,
}

impl Amid {
    fn new(which: fn(&Act<'_>) -> bool) -> Arc<Self> {
        Arc::new(Self { which, then: Mutex::default() })
    }
}

impl Witness for Amid {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        if (self.which)(act) {
            let mut then = self.then.lock().unwrap();
            match then.take() {
                Some((0, now)) => {
                    drop(then);
                    now();
                }
                Some((left, later)) => *then = Some((left - 1, later)),
                None => {}
            }
        }
        work()
    }
}

#[test]
fn a_file_that_is_closed_while_it_is_cut_is_not_staged_until_that_is_done() {
    let runtime = crate::world::runtime(1);
    let _guard = runtime.enter();
    let (dir, witness) = (tempfile::tempdir().unwrap(), Amid::new(|act| matches!(act, Act::Resize(_))));
    let memory = Arc::new(Memory::new(ByHash::Never));
    let fs = runtime.block_on(listed(&Disk::witnessed(witness.clone()), dir.path(), &memory));
    let write = OpenFlags { read: false, write: true, truncate: false, execute: false };
    let (stat, handle) = fs.create(ROOT, &Name::new(b"file").unwrap(), crate::world::attrs(), write).unwrap();
    fs.write(handle, 0, b"content").unwrap();
    let (other, (taken, took)) = (fs.clone(), channel());
    let now = move || {
        other.release(handle);
        let _all = other.barrier();
        taken.send(other.due(10).0.len()).unwrap();
    };
    *witness.then.lock().unwrap() = Some((0, Box::new(now)));
    let cut = SetAttr { size: Some(3), ..SetAttr::default() };
    assert_eq!(fs.setattr(stat.ino, &cut).unwrap().size, 3);
    assert_eq!(took.recv().unwrap(), 0, "nothing is taken in hand while the file changes");
    let _all = fs.barrier();
    let deadline = std::time::Instant::now() + crate::world::STUCK;
    let sizes = loop {
        let sizes: Vec<u64> = fs.due(10).0.iter().map(|capture| capture.want.size()).collect();
        if !sizes.is_empty() || std::time::Instant::now() > deadline {
            break sizes;
        }
        std::thread::yield_now();
    };
    assert_eq!(sizes, [3]);
}

/// Whether it is the small file beside the record.
fn is_mark(file: &File) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file))).unwrap();
    name.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal.mark"))
}

#[test]
fn a_commit_that_ends_amid_a_compaction_leaves_what_was_removed_meanwhile_removed() {
    let runtime = crate::world::runtime(1);
    let removed = Name::new(b"removed").unwrap();
    // The header, the inodes, the names, the accounts: at each of these writes.
    for write in 0..4 {
        let (dir, witness) =
            (tempfile::tempdir().unwrap(), Amid::new(|act| matches!(act, Act::Write(file) if !is_mark(file))));
        let memory = Arc::new(Memory::new(ByHash::Single));
        memory.set_base([(RepoPath::parse("removed").unwrap(), "content".into())].into_iter().collect());
        let start = |disk: &Disk| runtime.block_on(listed(disk, dir.path(), &memory));
        let fs = start(&Disk::witnessed(witness.clone()));
        fs.unlink(ROOT, &removed).unwrap();
        let committed = runtime.block_on(memory.commit(&commit_request())).unwrap().id;
        let (other, handle, (begun, begins)) = (fs.clone(), runtime.handle().clone(), channel());
        let now = move || {
            let (fs, commit) = (other.clone(), committed.clone());
            begun.send(handle.spawn(async move { fs.rebased(commit, true).await.unwrap() })).unwrap();
            // Until it is in the record's order: it cannot be written before the write that is under way. At the first
            // write the compaction has the tree.
            while write > 0 && other.base() != committed {
                std::thread::yield_now();
            }
        };
        *witness.then.lock().unwrap() = Some((write, Box::new(now)));
        fs.compact(true).unwrap();
        runtime.block_on(begins.recv().unwrap()).unwrap();
        drop((fs, witness));
        let fs = start(&Disk::default());
        let shows = runtime.block_on(fs.run(Need::List(ROOT), |fs| fs.lookup(ROOT, &removed))).is_ok();
        assert!(!shows, "at write {write}");
    }
}

/// Keeps whoever writes to the record, once, until somebody else has done what he may not be done with by then.
struct Slow {
    record: PathBuf,
    then: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Slow {
    /// Longer than any call here takes that waits for nothing.
    const PATIENCE: Duration = Duration::from_millis(500);
}

impl Witness for Slow {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        let is_record = |file: &File| {
            let record = std::fs::metadata(&self.record).map(|record| record.ino());
            record.is_ok_and(|record| record == file.metadata().unwrap().ino())
        };
        let then = match act {
            Act::Write(file) if is_record(file) => self.then.lock().unwrap().take(),
            _ => None,
        };
        if let Some((begun, other)) = then {
            begun.send(()).unwrap();
            let _ = other.recv_timeout(Self::PATIENCE);
        }
        work()
    }
}

/// Has one thread find a file its place in the spool, and be slow to put it on record; returns whether the record has it
/// once another is through with `then` on the file.
fn is_on_record_after(then: impl FnOnce(&Fs, Ino, u64) + Send + 'static) -> bool {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let record = dir.path().join("journal");
        let witness = Arc::new(Slow { record: record.join("journal.00000001"), then: Mutex::default() });
        let memory = Arc::new(Memory::new(ByHash::Single));
        memory.set_base([(RepoPath::parse("file").unwrap(), "content".into())].into_iter().collect());
        let fs = listed(&Disk::witnessed(witness.clone()), dir.path(), &memory).await;
        let ino = fs.lookup(ROOT, &Name::new(b"file").unwrap()).unwrap().ino;
        fs.satisfy(Need::Fetch(ino)).await.unwrap();
        let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
        let handle = fs.open(ino, both).unwrap();

        let ((begun, begins), (done, other)) = (channel(), channel());
        *witness.then.lock().unwrap() = Some((begun, other));
        let slow = tokio::spawn({
            let fs = fs.clone();
            async move { fs.satisfy(Need::Own(ino)).await.unwrap() }
        });
        let found = tokio::task::spawn_blocking(move || {
            begins.recv().unwrap();
            then(&fs, ino, handle);
            let mut found = false;
            Journal::read(&record, |change| {
                found |= matches!(change, Change::Inode { record, .. } if matches!(record.body, BodyRecord::Spool(_)));
            })
            .unwrap();
            let _ = done.send(());
            found
        });
        slow.await.unwrap();
        found.await.unwrap()
    })
}

#[test]
fn a_write_is_acknowledged_when_its_spool_file_is_on_record_whoever_put_it_there() {
    assert!(is_on_record_after(|fs, _, handle| {
        assert_eq!(fs.write(handle, 0, b"written").unwrap(), 7);
    }));
}

#[test]
fn a_file_is_open_for_writing_when_its_spool_file_is_on_record_whoever_put_it_there() {
    assert!(is_on_record_after(|fs, ino, _| {
        let write = OpenFlags { read: false, write: true, truncate: false, execute: false };
        fs.open(ino, write).unwrap();
    }));
}

/// A filesystem in `dir` on `memory`, as an earlier one left it, with its root listed. Without a stager.
pub async fn listed(disk: &Disk, dir: &Path, memory: &Arc<Memory>) -> Arc<Fs> {
    let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
    let limits = Limits { spool: None, cache: 1 << 20 };
    let fs = Fs::recover_on(disk, dir, RepoPath::root(), options, limits, memory.clone()).unwrap();
    if memory.is_shared() {
        fs.share();
    }
    fs.reconcile().await.unwrap();
    fs.run(Need::List(ROOT), |_| Ok(())).await.unwrap();
    fs
}

/// A filesystem in `dir`, as an earlier one left it, that knows of an empty workspace.
fn start_in(dir: &Path, settle: Duration) -> Arc<Fs> {
    let options = Options { read_only: false, settle, uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: None, cache: 200 };
    Fs::recover(dir, RepoPath::root(), options, limits, Arc::new(Memory::new(ByHash::Never))).unwrap()
}

#[test]
fn what_is_imported_is_whole_and_waits_for_no_quiet_period_but_a_long_one() {
    let runtime = crate::world::runtime(1);
    let _guard = runtime.enter();
    for (settle, due) in [(Duration::from_secs(1), 1), (Duration::from_secs(600), 0)] {
        let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(b"whole", 0).unwrap();
        let fs = start_in(dir.path(), settle);
        runtime.block_on(fs.run(Need::List(ROOT), |_| Ok(()))).unwrap();
        let flags = OpenFlags { read: false, write: true, truncate: false, execute: false };
        let (stat, handle) = fs.create(ROOT, &Name::new(b"written").unwrap(), crate::world::attrs(), flags).unwrap();
        fs.release(handle);
        fs.forget(stat.ino, 1);
        let (file, attrs) = fs.spool_in(&source, &mut Vec::new(), |_| Ok(())).unwrap();
        let name = Name::new(b"imported").unwrap();
        let mut arrivals = [Arrival { parent: ROOT, name, attrs, arrived: Arrived::File(file) }];
        fs.take_in(&mut arrivals).unwrap().into_iter().for_each(|outcome| outcome.unwrap());
        let found: Vec<String> = fs.due(10).0.iter().map(|capture| capture.path.to_string()).collect();
        assert_eq!(found, vec!["imported"; due], "{settle:?}");
    }
}

#[test]
fn room_behind_the_end_of_a_file_is_counted_after_a_crash_too() {
    let runtime = crate::world::runtime(1);
    let _guard = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let start = || start_in(dir.path(), Duration::from_secs(600));
    let fs = start();
    runtime.block_on(fs.run(Need::List(ROOT), |_| Ok(()))).unwrap();
    let (name, flags) =
        (Name::new(b"file").unwrap(), OpenFlags { read: true, write: true, truncate: false, execute: false });
    let (stat, handle) = fs.create(ROOT, &name, crate::world::attrs(), flags).unwrap();
    fs.write(handle, 0, &[7; 8192]).unwrap();
    fs.fallocate(handle, 0, 1 << 20, RangeChange::Allocate { grow: false }).unwrap();
    assert_eq!((fs.spool().used(), fs.getattr(stat.ino).unwrap().size), (1 << 20, 8192));
    drop(fs);
    let fs = start();
    runtime.block_on(fs.load());
    assert_eq!(fs.spool().used(), 1 << 20);
    let stat = fs.lookup(ROOT, &name).unwrap();
    assert_eq!((stat.size, stat.room), (8192, 1 << 20));
    fs.forget(stat.ino, 1);
    fs.unlink(ROOT, &name).unwrap();
    assert_eq!(fs.spool().used(), 0);
}

fn shows_below(memory: &Memory, dir: &str) -> bool {
    let dir = RepoPath::parse(dir).unwrap();
    memory.view().keys().any(|file| file.is_in(&dir))
}

/// A directory of the base is removed, by requests whose answers are lost; files come into it anew.
async fn removed_and_made_anew(by_hash: ByHash) -> World {
    let mut world = World::new(by_hash, false).await;
    let memory = Arc::downgrade(&world.memory);
    world.memory.set_fault(move |request| match memory.upgrade() {
        Some(memory) if request == "remove" && shows_below(&memory, "dir") => Fault::AnswerLost,
        _ => Fault::None,
    });
    world.unseen_step(&Op::RemoveAll(path("dir"))).await;
    world.unseen_step(&Op::Commit).await;
    world.memory.set_fault(|_| Fault::None);
    world.unseen_step(&Op::Mkdir(path("dir"))).await;
    world.unseen_step(&write("dir/new", "n")).await;
    world.unseen_step(&write("dir/changed", "o")).await;
    world.unseen_step(&Op::Commit).await;
    world.unseen_step(&write("dir/changed", "c")).await;
    world.unseen_step(&Op::Drain).await;
    world
}

/// That request, once more.
async fn comes_late(world: &World) {
    world.memory.remove(&[RepoPath::parse("dir").unwrap()]).await.unwrap();
    assert!(!shows_below(&world.memory, "dir"), "a server does what it is told");
}

#[test]
fn a_removal_of_a_directory_that_comes_late_is_undone_for_what_has_come_into_it_since() {
    let runtime = crate::world::runtime(1);
    for by_hash in [ByHash::Batch, ByHash::Single] {
        runtime.block_on(async {
            let mut world = removed_and_made_anew(by_hash).await;
            comes_late(&world).await;
            world.step(&Op::Drain).await;

            let mut world = removed_and_made_anew(by_hash).await;
            comes_late(&world).await;
            world.step(&Op::Crash).await;
            world.step(&Op::Commit).await;
        });
    }
}

/// A filesystem that knows of an empty workspace, without a stager, and its directory.
async fn unstaged() -> (Arc<Fs>, tempfile::TempDir) {
    let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Never)));
    (listed(&Disk::default(), dir.path(), &memory).await, dir)
}

/// Longer than what is copied at once for a writer.
const LARGE: u64 = 17 << 20;

/// A new file of [`LARGE`] bytes, nearly all of them a hole.
fn large_file(fs: &Fs, name: &str) -> Ino {
    new_file(fs, name, LARGE - 1, b"e")
}

/// A new file with these bytes at `offset`.
fn new_file(fs: &Fs, name: &str, offset: u64, bytes: &[u8]) -> Ino {
    let write = OpenFlags { read: false, write: true, truncate: false, execute: false };
    let name = Name::new(name.as_bytes()).unwrap();
    let (stat, handle) = fs.create(ROOT, &name, crate::world::attrs(), write).unwrap();
    fs.write(handle, offset, bytes).unwrap();
    fs.release(handle);
    stat.ino
}

/// Writes its first byte, as a program would that opens it, and leaves it open.
async fn write_first(fs: &Arc<Fs>, ino: Ino) {
    let both = OpenFlags { read: true, write: true, truncate: false, execute: false };
    let open = |fs: &Fs| fs.open(ino, both);
    let write = |fs: &Fs, handle| fs.write(handle, 0, b"b");
    crate::world::in_time("a write", async {
        let handle = match open(fs) {
            Err(Stop::Need(need)) => fs.run(need, open).await.unwrap(),
            opened => opened.unwrap(),
        };
        let written = match write(fs, handle) {
            Err(Stop::Need(need)) => fs.run(need, |fs| write(fs, handle)).await.unwrap(),
            written => written.unwrap(),
        };
        assert_eq!((written, fs.read(handle, 0, 1).unwrap().as_slice()), (1, b"b".as_slice()));
    })
    .await;
}

/// Waits for what nobody tells of.
async fn comes(what: &str, is_there: impl Fn() -> bool) {
    crate::world::in_time(what, async {
        while !is_there() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[test]
fn a_write_to_a_large_file_that_is_held_for_long_goes_to_a_copy() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        // Without a stager: this test takes what is due in hand, and does not let go of it.
        let (fs, _dir) = unstaged().await;
        let ino = large_file(&fs, "file");
        let (in_hand, _) = fs.due(10);
        assert_eq!(in_hand.len(), 1);
        write_first(&fs, ino).await;
        let held = in_hand[0].held().unwrap().file().unwrap();
        let mut first = [0; 1];
        held.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [0], "what is in hand does not change");
    });
}

#[test]
fn the_stager_lets_go_of_what_waits_there_when_a_writer_wants_it() {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Never)));
        let fs = listed(&Disk::default(), dir.path(), &memory).await;
        memory.set_fault(|_| Fault::Lost);
        let (meter, for_long) = (Arc::new(Meter::default()), Duration::from_secs(3600));
        let stager = Stager::new(fs.clone(), meter.clone(), Delays { first: for_long, last: for_long });
        let stager = tokio::spawn(stager.run());
        // Once a request has failed, what is due next waits for the pause to end.
        large_file(&fs, "first");
        comes("a pause", || meter.stalled().is_some()).await;
        let ino = large_file(&fs, "second");
        comes("a turn in the stager", || fs.report().0.queued.files == 1).await;
        write_first(&fs, ino).await;
        comes("letting go", || fs.report().0.queued.files == 0).await;
        stager.abort();
    });
}

#[test]
fn whoever_waits_for_a_file_hears_of_its_removal() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        // Without a stager: nothing else ends the wait.
        let (fs, _dir) = unstaged().await;
        large_file(&fs, "file");
        let waiting = fs.barrier().unwrap();
        let mut reached = std::pin::pin!(waiting.reached());
        assert!(reached.as_mut().now_or_never().is_none());
        fs.unlink(ROOT, &Name::new(b"file").unwrap()).unwrap();
        assert_eq!(crate::world::in_time("the wait", reached).await.files_done, 1);
    });
}

#[test]
fn a_commit_does_not_wait_for_a_writer_whose_file_was_given_up() {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let (dir, witness) = (crate::world::temporary_dir(), Amid::new(|act| matches!(act, Act::Resize(_))));
        let memory = Arc::new(Memory::new(ByHash::Never));
        let fs = listed(&Disk::witnessed(witness.clone()), dir.path(), &memory).await;
        let write = OpenFlags { read: false, write: true, truncate: false, execute: false };
        let (_, handle) = fs.create(ROOT, &Name::new(b"written").unwrap(), crate::world::attrs(), write).unwrap();
        fs.write(handle, 0, b"content").unwrap();
        let cut = large_file(&fs, "cut");

        // The one is cut meanwhile, and the commit waits for that; the other is given up.
        let _all = fs.barrier();
        let in_hand = fs.due(10).0;
        let given_up = in_hand.iter().find(|capture| capture.path.as_str() == "written").expect("it is due").clone();
        drop(in_hand);
        let (go, wait) = channel();
        let (cutting, cuts) = channel();
        let now = move || {
            cutting.send(()).unwrap();
            let _ = wait.recv();
        };
        *witness.then.lock().unwrap() = Some((0, Box::new(now)));
        let other = fs.clone();
        let size = SetAttr { size: Some(3), ..SetAttr::default() };
        let cut = tokio::task::spawn_blocking(move || other.setattr(cut, &size).map(|_| ()));
        tokio::task::block_in_place(|| cuts.recv()).unwrap();
        let mut freezing = std::pin::pin!(fs.cut());
        assert!(freezing.as_mut().now_or_never().is_none(), "it waits for the cut");
        fs.step_failed(&given_up, "refused", None);
        drop(given_up);
        go.send(()).unwrap();
        cut.await.unwrap().unwrap();
        drop(crate::world::in_time("the commit", freezing).await.unwrap());
        fs.release(handle);
    });
}

#[test]
fn what_a_commit_waits_for_waits_for_nothing_that_comes_after_it() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let (fs, _dir) = unstaged().await;
        large_file(&fs, "old");
        let mut captures = fs.due(10).0;
        let (mut capture, object) = (captures.pop().unwrap(), Object { hash: ContentHash::Xxh3([0; 16]), size: LARGE });
        let Want::Sealed { ino, generation, hash, .. } = &mut capture.want else { panic!("it has bytes here") };
        *hash = Some(object.hash);
        fs.hashed(*ino, *generation, object.hash);
        fs.confirmed(&[(capture, Step::Put(object))]).unwrap();
        let frozen = fs.cut().await.unwrap();
        let (old, new) = (Name::new(b"old").unwrap(), Name::new(b"new").unwrap());
        fs.rename(ROOT, &old, ROOT, &new, RenameMode::Replace).unwrap();
        let path = RepoPath::parse("old").unwrap();
        assert!(matches!(fs.frees(&path, Step::Unstage), Frees::Once(files) if files.len() == 1));
        drop(frozen);
        assert_eq!(fs.frees(&path, Step::Unstage), Frees::Later);
    });
}

#[test]
fn a_path_that_waits_for_bytes_that_somebody_else_replaced_says_so() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let mut world = World::new(ByHash::Never, false).await;
        for name in ["x", "y"] {
            world.unseen_step(&write(name, name)).await;
        }
        world.unseen_step(&Op::Drain).await;
        world.lose_cache().await;
        for name in ["x", "y"] {
            world.memory.stage_foreign(RepoPath::parse(name).unwrap(), Some("theirs".into()));
            // Or it would be had by its hash.
            world.memory.lose(name.repeat(400).as_bytes());
        }
        world.unseen_step(&Op::Rename { from: path("x"), to: path("y"), mode: 2 }).await;
        let told = || format!("{:?}", world.report()).contains("has its bytes here yet");
        comes("an error that says what is waited for", told).await;
    });
}

#[test]
fn a_removed_file_that_comes_and_goes_again_in_a_removed_directory_is_known_to_be_removed() {
    let runtime = crate::world::runtime(1);
    let before = [write("dir/dir/z", "z"), Op::Commit, Op::Unlink(path("dir/dir/b")), Op::Unlink(path("dir/dir/z"))];
    let again = [write("dir/dir/z", "n"), Op::Unlink(path("dir/dir/z")), Op::Drain];
    let as_base = vec![write("dir/dir/z", "z"), Op::Commit];
    let as_dir = vec![Op::Mkdir(path("dir/dir/z")), write("dir/dir/z/y", "y"), Op::Commit];
    for after in [as_base, as_dir] {
        runtime.block_on(async {
            let mut world = World::new(ByHash::Never, false).await;
            for op in before.iter().chain([&Op::Drain]).chain(&again).chain(&after) {
                world.unseen_step(op).await;
            }
        });
    }
}

/// A filesystem in which the base's only file, `file`, was replaced when others' commit made it `theirs`, or took it away,
/// of which nobody has looked yet; and its directory.
async fn changed_beside_others(theirs: Option<&'static str>) -> (Arc<Fs>, Arc<Memory>, tempfile::TempDir) {
    let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Never)));
    memory.set_base(only_file(Some("ours")));
    let fs = listed(&Disk::default(), dir.path(), &memory).await;
    fs.unlink(ROOT, &Name::new(b"file").unwrap()).unwrap();
    large_file(&fs, "file");
    memory.set_base(only_file(theirs));
    fs.rebased(memory.base().await.unwrap(), false).await.unwrap();
    (fs, memory, dir)
}

fn only_file(text: Option<&'static str>) -> Tree {
    text.map(|text| (RepoPath::parse("file").unwrap(), text.into())).into_iter().collect()
}

#[test]
fn what_others_removed_is_not_what_a_change_differs_from() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let (fs, _memory, _dir) = changed_beside_others(None).await;
        fs.run(Need::List(ROOT), |_| Ok(())).await.unwrap();
        // Nobody stages it over that before it is decided; then it is new.
        assert_eq!(fs.due(10).0.len(), 0);
        let path = RepoPath::parse("file").unwrap();
        assert_eq!(fs.conflict(&path).map(|conflict| conflict.theirs), Some(Theirs::Gone));
        fs.resolve(&path, Choice::Ours, "ann@lab 2026-11-30").await.unwrap();
        let bases: Vec<Option<Object>> = fs.due(10).0.iter().map(|capture| capture.account.base).collect();
        assert_eq!(bases, [None]);
    });
}

/// Counts, whenever an older part of the record is removed, the names that what is left of it has.
struct Whole {
    record: PathBuf,
    found: Mutex<Vec<usize>>,
}

impl Witness for Whole {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        work()?;
        if matches!(act, Act::Remove(path) if path.starts_with(&self.record)) {
            let mut names = std::collections::BTreeSet::new();
            let record = Journal::read(&self.record, |change| {
                if let Change::Link { name, .. } = change {
                    names.insert(name);
                }
            });
            record.unwrap();
            self.found.lock().unwrap().push(names.len());
        }
        Ok(())
    }
}

#[test]
fn compactions_at_once_leave_a_whole_record() {
    const FILES: usize = 300;
    let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Never)));
    let whole = Arc::new(Whole { record: dir.path().join("journal"), found: Mutex::default() });
    let fs = crate::world::runtime(1).block_on(listed(&Disk::witnessed(whole.clone()), dir.path(), &memory));
    for file in 0..FILES {
        new_file(&fs, &file.to_string(), 0, b"");
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| fs.compact(true).unwrap()));
        }
    });
    let found = whole.found.lock().unwrap();
    assert_eq!(*found, vec![FILES; found.len()]);
    assert!(!found.is_empty());
}

#[test]
fn what_others_changed_meanwhile_is_not_taken_for_what_a_file_was_given_back() {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let (fs, memory, _dir) = changed_beside_others(Some("theirs")).await;
        fs.unlink(ROOT, &Name::new(b"file").unwrap()).unwrap();
        new_file(&fs, "file", 0, b"ours");
        let delay = Duration::from_millis(1);
        let stager = tokio::spawn(Stager::new(fs.clone(), Arc::default(), Delays { first: delay, last: delay }).run());
        let settled = async || fs.barrier().unwrap().settled().await.unwrap();
        // Both sides changed it.
        assert_eq!(crate::world::in_time("staging", settled()).await.files_failed, 1);
        assert_eq!(memory.view(), only_file(Some("theirs")));
        let path = RepoPath::parse("file").unwrap();
        fs.resolve(&path, Choice::Ours, "ann@lab 2026-11-30").await.unwrap();
        assert_eq!(crate::world::in_time("staging", settled()).await.files_failed, 0);
        assert_eq!(memory.view(), only_file(Some("ours")));
        stager.abort();
    });
}

/// A filesystem that has staged one new file, and whose stager has ended.
async fn staged(dir: &Path, memory: &Arc<Memory>, text: &[u8]) -> Arc<Fs> {
    let fs = listed(&Disk::default(), dir, memory).await;
    new_file(&fs, "file", 0, text);
    let delay = Duration::from_millis(1);
    let stager = tokio::spawn(Stager::new(fs.clone(), Arc::default(), Delays { first: delay, last: delay }).run());
    let settled = async { fs.barrier().unwrap().settled().await.unwrap() };
    assert_eq!(crate::world::in_time("staging", settled).await.files_failed, 0);
    stager.abort();
    let _ = stager.await;
    fs
}

/// The bytes had not come into the cache when the daemon was killed, and the server forgets what is staged.
#[test]
fn what_was_confirmed_just_before_a_kill_outlives_a_prune_of_the_server() {
    let runtime = crate::world::runtime(2);
    for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
        runtime.block_on(async {
            let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(by_hash)));
            // Killed before the housekeeping of that second.
            drop(staged(dir.path(), &memory, b"confirmed, and in the spool").await);
            memory.prune();
            let fs = listed(&Disk::default(), dir.path(), &memory).await;
            let name = Name::new(b"file").unwrap();
            let ino = fs.lookup(ROOT, &name).unwrap().ino;
            crate::world::in_time("the bytes", fs.satisfy(Need::Fetch(ino))).await.unwrap();
        });
    }
}

#[test]
fn what_others_unstaged_is_not_let_go_before_it_is_staged_again() {
    crate::world::runtime(2).block_on(async {
        let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Batch)));
        let text = b"here alone once the workspace is empty".as_slice();
        let fs = staged(dir.path(), &memory, text).await;
        fs.tidy_all().unwrap();
        drop(fs);
        memory.empty_workspace();
        memory.prune();
        let fs = listed(&Disk::default(), dir.path(), &memory).await;
        assert_eq!(fs.owed(), 1);
        let given_up = fs.cache().give_up(ContentHash::of(fs.hash_kind(), text));
        assert_eq!(given_up.unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    });
}

/// A filesystem whose stager takes 16 ms for long, with one new file.
async fn refused_by(fault: impl FnMut(&'static str) -> Fault + Send + 'static) -> Refused {
    let (dir, memory) = (crate::world::temporary_dir(), Arc::new(Memory::new(ByHash::Never)));
    let fs = listed(&Disk::default(), dir.path(), &memory).await;
    memory.set_fault(fault);
    new_file(&fs, "file", 0, b"ours");
    let (meter, delays) =
        (Arc::new(Meter::default()), Delays { first: Duration::from_millis(1), last: Duration::from_millis(4) });
    let stager = tokio::spawn(Stager::new(fs.clone(), meter.clone(), delays).run());
    Refused { fs, memory, meter, stager, _dir: dir }
}

struct Refused {
    fs: Arc<Fs>,
    memory: Arc<Memory>,
    meter: Arc<Meter>,
    stager: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Refused {
    fn error(&self) -> Option<oxenfs::report::FileError> {
        self.fs.report().2.into_iter().next()
    }
}

#[test]
fn a_gate_that_refuses_everything_is_waited_for_however_long_it_stands() {
    let runtime = crate::world::runtime(2);
    for status in [302, 400, 409, 426] {
        runtime.block_on(async {
            let gate = refused_by(move |_| Fault::Refused(status)).await;
            // By then long has passed several times over: the pauses are half of 4 ms at least.
            comes("many attempts", || gate.error().is_some_and(|error| error.attempts >= 40)).await;
            let error = gate.error().unwrap();
            assert!(!error.parked && error.error.contains(&status.to_string()), "{error:?}");
            // Told a moment after the path was put back.
            comes("the reason", || gate.meter.stalled().is_some_and(|why| why.contains(&status.to_string()))).await;
            // Nobody has to ask for it.
            gate.memory.set_fault(|_| Fault::None);
            comes("staging", || gate.fs.is_drained() && gate.meter.stalled().is_none()).await;
            assert_eq!(gate.memory.view(), only_file(Some("ours")));
            gate.stager.abort();
        });
    }
}

#[test]
fn what_a_server_refuses_for_long_while_it_answers_otherwise_waits_for_somebody() {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let refusal = |request| if request == "identity" { Fault::None } else { Fault::Refused(400) };
        let refused = refused_by(refusal).await;
        comes("parking", || refused.error().is_some_and(|error| error.parked)).await;
        let error = refused.error().unwrap();
        assert!(error.attempts > 3, "{error:?}");
        assert!(
            error.error.contains("refused: 400 no") && error.error.ends_with("s, and answers otherwise"),
            "{error:?}"
        );
        comes("the end of the pause", || refused.meter.stalled().is_none()).await;
        // A barrier tries it again, and fails as soon as it is refused for as long.
        let waiting = refused.fs.barrier().unwrap();
        assert_eq!(crate::world::in_time("the barrier", waiting.reached()).await.files_failed, 1);
        refused.memory.set_fault(|_| Fault::None);
        let waiting = refused.fs.barrier().unwrap();
        assert_eq!(crate::world::in_time("the barrier", waiting.reached()).await.files_failed, 0);
        assert_eq!(refused.memory.view(), only_file(Some("ours")));
        refused.stager.abort();
    });
}

#[test]
fn what_a_server_understands_and_refuses_waits_for_somebody_at_once() {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let refused = refused_by(|request| if request == "identity" { Fault::None } else { Fault::Refused(422) }).await;
        comes("parking", || refused.error().is_some_and(|error| error.parked)).await;
        assert_eq!(refused.error().unwrap().attempts, 1);
        refused.stager.abort();
    });
}

#[test]
fn a_sparse_file_counts_what_it_takes_through_every_change_and_after_a_crash() {
    let runtime = crate::world::runtime(1);
    let _guard = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let start = || start_in(dir.path(), Duration::from_secs(600));
    let fs = start();
    runtime.block_on(fs.run(Need::List(ROOT), |_| Ok(()))).unwrap();
    let (name, flags) =
        (Name::new(b"file").unwrap(), OpenFlags { read: true, write: true, truncate: false, execute: false });
    let (stat, handle) = fs.create(ROOT, &name, crate::world::attrs(), flags).unwrap();
    let room = || fs.getattr(stat.ino).unwrap().room;
    let resize = |size| fs.setattr(stat.ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
    fs.write(handle, 0, b"short").unwrap();
    assert_eq!(fs.spool().used(), 5);
    resize(1 << 31);
    assert_eq!((fs.spool().used(), room()), (4096, 4096));
    fs.write(handle, (1 << 31) - 1, b"ends").unwrap();
    fs.write(handle, 1 << 20, &[7; 65_536]).unwrap();
    fs.write(handle, 1 << 20, &[8; 65_536]).unwrap();
    assert_eq!((fs.spool().used(), room()), (77_824, 77_824));
    fs.fallocate(handle, 1 << 21, 8192, RangeChange::Allocate { grow: true }).unwrap();
    fs.fallocate(handle, 1 << 20, 32_768, RangeChange::Punch).unwrap();
    assert_eq!((fs.spool().used(), room()), (53_248, 53_248));
    drop(fs);
    let fs = start();
    runtime.block_on(fs.load());
    assert_eq!(fs.spool().used(), 53_248);
    fs.unlink(ROOT, &name).unwrap();
    assert_eq!(fs.spool().used(), 0);
}

#[test]
fn a_file_in_the_place_of_a_directory_that_was_removed_amid_a_commit_hides_it_also_when_it_is_gone() {
    let file = Op::Write { path: path("dir"), at: 0, text: "in its place".into() };
    let amid = Op::CommitAmid { staging: vec![Op::RemoveAll(path("dir"))], answering: vec![file] };
    check(&[amid], &[Op::Unlink(path("dir")), Op::Drain, Op::Crash]);
}

#[test]
fn files_that_change_places_with_directories_again_are_waited_for_where_they_are() {
    let exchange = || Op::Rename { from: path("dir"), to: path("base"), mode: 2 };
    let back = || Op::SyncAmid(vec![exchange()]);
    check(&[exchange(), back()], &[]);
    check(&[exchange(), Op::Drain, exchange(), back()], &[]);
}

#[test]
fn what_the_kernel_has_forgotten_is_dropped_and_listed_again() {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let mut world = World::new(ByHash::Batch, false).await;
        let change = [write("dir/new", "n"), Op::Unlink(path("dir/a")), rename("dir/base", "dir/moved")];
        for op in change {
            world.step(&op).await;
        }
        let before = world.fs().nodes();
        let dropped = world.fs().evict();
        assert!(dropped > 0, "of {before}");
        assert_eq!(world.fs().nodes(), before - dropped);
        assert_eq!(world.fs().evict(), 0);
        // Equal, and listed again on the way.
        world.step(&Op::Evict).await;
        assert_eq!(world.fs().nodes(), before);
        for op in [
            Op::Evict,
            Op::Drain,
            Op::Evict,
            Op::Commit,
            Op::Evict,
            Op::Crash,
            Op::Evict,
            Op::RemoveAll(path("dir")),
            Op::Evict,
        ] {
            world.step(&op).await;
        }
    });
}

#[test]
fn a_file_of_the_base_whose_other_name_was_renamed_is_not_taken_for_ignored() {
    let link = Op::Link { from: path("one"), to: path("two") };
    check(&[write("one", "1"), link, Op::Commit, rename("one", "three"), Op::Crash], &[Op::Crash, Op::Commit]);
}
