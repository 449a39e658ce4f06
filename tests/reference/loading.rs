//! A mount answers before it has looked at what it owes: each file is looked at when it is first asked for, or staged.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oxenfs::fs::{Fs, Limits, Need, Op, OpenFlags, Options, RenameMode, Stop};
use oxenfs::namespace::ROOT;
use oxenfs::path::{Name, RepoPath};
use oxenfs::report::Progress;
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Memory;
use oxenfs::writeback::{Delays, Engine, Meter};

use crate::world::{attrs, temporary_dir};

const FILES: usize = 5;
const CONTENT: &[u8] = b"content";
const LENGTH: u64 = CONTENT.len() as u64;

async fn recovered(dir: &Path, memory: &Arc<Memory>) -> Arc<Fs> {
    let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: Some(1000), cache: 0 };
    let fs = Fs::recover(dir, RepoPath::root(), options, limits, memory.clone()).unwrap();
    fs.reconcile().await.unwrap();
    fs.satisfy(Need::List(ROOT)).await.unwrap();
    fs
}

fn name(at: usize) -> Name {
    Name::new(format!("file {at}").as_bytes()).unwrap()
}

const BOTH: OpenFlags = OpenFlags { read: true, write: true, truncate: false, execute: false };

/// What a daemon left that was killed before it staged anything.
async fn left(memory: &Arc<Memory>) -> tempfile::TempDir {
    let dir = temporary_dir();
    let fs = recovered(dir.path(), memory).await;
    for at in 0..FILES {
        let (_, handle) = fs.create(ROOT, &name(at), attrs(), BOTH).unwrap();
        fs.write(handle, 0, CONTENT).unwrap();
        fs.release(handle);
    }
    dir
}

/// The next mount of it, and what it stands on.
async fn owing() -> (Arc<Fs>, Arc<Memory>, tempfile::TempDir) {
    let memory = Arc::new(Memory::new(ByHash::Never));
    let dir = left(&memory).await;
    (recovered(dir.path(), &memory).await, memory, dir)
}

/// Does what must not be possible without a look.
async fn seen<T>(fs: &Fs, op: impl Fn(&Fs) -> Op<T>) -> T {
    let Err(Stop::Need(need)) = op(fs) else { panic!("it was looked at before") };
    fs.run(need, op).await.unwrap()
}

/// Stages all that waits.
async fn stage(fs: &Arc<Fs>) -> Progress {
    let waiting = fs.barrier().unwrap();
    let stager = tokio::spawn(
        Engine::new(fs.clone(), fs.workspace().clone(), Arc::new(Meter::default()), Delays::default()).run(),
    );
    let staged = waiting.settled().await.unwrap();
    stager.abort();
    staged
}

fn run(test: impl Future<Output = ()>) {
    crate::world::runtime(1).block_on(test);
}

#[test]
fn what_waits_is_served_and_counted_before_it_is_looked_at() {
    run(async {
        let (fs, memory, _dir) = owing().await;
        assert_eq!((fs.owed(), fs.spool().used()), (FILES, 0), "nothing has been looked at");
        // Looked up, changed, renamed, replaced, removed.
        let stat = seen(&fs, |fs| fs.lookup(ROOT, &name(0))).await;
        assert_eq!((stat.size, fs.spool().used()), (LENGTH, LENGTH), "that one and no other");
        let handle = fs.open(stat.ino, BOTH).unwrap();
        assert_eq!(fs.read(handle, 0, 100).unwrap(), CONTENT);
        fs.write(handle, LENGTH, b", more").unwrap();
        fs.release(handle);
        fs.rename(ROOT, &name(1), ROOT, &name(2), RenameMode::Replace).unwrap();
        fs.unlink(ROOT, &name(3)).unwrap();
        assert_eq!(fs.owed(), 3, "the other two were never staged");
        fs.load().await;
        let bytes = LENGTH + b", more".len() as u64 + 2 * LENGTH;
        assert_eq!(fs.spool().used(), bytes, "what was replaced or removed counts no more");
        let (counts, ..) = fs.report();
        assert_eq!((counts.dirty.files, counts.dirty.bytes), (3, bytes));
        assert_eq!(stage(&fs).await.files_failed, 0);
        let view: Vec<(String, Vec<u8>)> =
            memory.view().iter().map(|(path, content)| (path.as_str().to_owned(), content.to_vec())).collect();
        let whole = |at: usize, content: &[u8]| (format!("file {at}"), content.to_vec());
        assert_eq!(view, [whole(0, b"content, more"), whole(2, CONTENT), whole(4, CONTENT)]);
        assert_eq!(fs.spool().used(), 0);
    });
}

#[test]
fn a_listing_shows_what_waits_as_it_is() {
    run(async {
        let (fs, ..) = &owing().await;
        let root = seen(fs, |fs| fs.opendir(ROOT)).await.handle;
        let mut sizes = Vec::new();
        fs.readdir(root, 2, true, |entry| {
            sizes.push(entry.stat.size);
            false
        })
        .unwrap();
        assert_eq!(sizes, [LENGTH; FILES]);
    });
}

#[test]
fn what_waits_is_staged_whether_or_not_anybody_looked_at_it() {
    run(async {
        let (fs, memory, _dir) = owing().await;
        let staged = stage(&fs).await;
        assert_eq!((staged.files_done, staged.files_failed), (FILES as u64, 0));
        assert!(memory.view().values().all(|content| content == CONTENT));
        assert_eq!((memory.view().len(), fs.spool().used()), (FILES, 0));
    });
}

#[test]
fn bytes_that_a_power_loss_took_are_told() {
    run(async {
        let memory = Arc::new(Memory::new(ByHash::Never));
        let dir = left(&memory).await;
        let shards = std::fs::read_dir(dir.path().join("spool")).unwrap();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
        files.for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
        let fs = recovered(dir.path(), &memory).await;
        let stat = seen(&fs, |fs| fs.lookup(ROOT, &name(0))).await;
        assert!(fs.open(stat.ino, BOTH).is_err());
        assert_eq!(stage(&fs).await.files_failed, FILES as u64);
        fs.unlink(ROOT, &name(0)).unwrap();
        assert_eq!(fs.owed(), FILES - 1);
    });
}

#[test]
fn spool_files_that_nobody_needs_go_bit_by_bit() {
    const MANY: usize = 1000;
    let memory = Arc::new(Memory::new(ByHash::Never));
    let dir = temporary_dir();
    run(async {
        let fs = recovered(dir.path(), &memory).await;
        let make_and_remove = || {
            for at in 0..MANY {
                let (stat, handle) = fs.create(ROOT, &name(at), attrs(), BOTH).unwrap();
                fs.release(handle);
                fs.unlink(ROOT, &name(at)).unwrap();
                fs.forget(stat.ino, 1);
            }
        };
        make_and_remove();
        let left = || files_below(fs.spool().dir());
        let mut before = left();
        assert_eq!(before, MANY, "none goes before the record of it is safe");
        fs.tidy().unwrap();
        assert!((1..MANY).contains(&left()), "{} are left", left());
        while left() > 0 {
            fs.tidy().unwrap();
            assert!(left() < before);
            before = left();
        }
        // At the end nobody is kept waiting.
        make_and_remove();
        fs.tidy_all().unwrap();
        assert_eq!(left(), 0);
    });
}

fn files_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}
