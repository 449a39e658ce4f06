//! A mount serves before what it owes is loaded: each file is looked at when it is first asked for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oxenfs::fs::{Fs, Limits, Need, OpenFlags, Options, RenameMode};
use oxenfs::namespace::ROOT;
use oxenfs::path::{Name, RepoPath};
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Memory;

use crate::world::{attrs, temporary_dir};

const FILES: usize = 5;
const CONTENT: &[u8] = b"content";

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

fn spool_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let shards = std::fs::read_dir(dir.join("spool")).unwrap();
    let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(test);
}

#[test]
fn what_waits_is_served_and_counted_before_it_is_loaded() {
    run(async {
        let memory = Arc::new(Memory::new(ByHash::Never));
        let dir = left(&memory).await;
        let fs = recovered(dir.path(), &memory).await;
        assert_eq!(fs.spool().used(), 0, "nothing has been looked at");
        assert_eq!(fs.owed(), FILES);
        assert!(!fs.is_drained());
        // Looked up, changed, renamed, replaced, removed.
        let stat = fs.lookup(ROOT, &name(0)).unwrap();
        assert_eq!(stat.size, CONTENT.len() as u64);
        let handle = fs.open(stat.ino, BOTH).unwrap();
        assert_eq!(fs.read(handle, 0, 100).unwrap(), CONTENT);
        fs.write(handle, CONTENT.len() as u64, b", more").unwrap();
        fs.release(handle);
        fs.rename(ROOT, &name(1), ROOT, &name(2), RenameMode::Replace).unwrap();
        fs.unlink(ROOT, &name(3)).unwrap();
        fs.load().await;
        assert_eq!(fs.owed(), 3, "the other two were never staged");
        let (first, others) = (b"content, more".len() as u64, 2 * CONTENT.len() as u64);
        assert_eq!(fs.spool().used(), first + others, "what was replaced or removed counts no more");
        let (counts, ..) = fs.report();
        assert_eq!((counts.dirty.files, counts.dirty.bytes), (3, first + others));
        let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), Delays::default()).run());
        let staged = fs.barrier(|_| true).await.unwrap().settled().await.unwrap();
        assert_eq!(staged.files_failed, 0);
        stager.abort();
        let view: Vec<(String, Vec<u8>)> =
            memory.view().iter().map(|(path, content)| (path.as_str().to_owned(), content.to_vec())).collect();
        let whole = |at: usize, content: &[u8]| (format!("file {at}"), content.to_vec());
        assert_eq!(view, [whole(0, b"content, more"), whole(2, CONTENT), whole(4, CONTENT)]);
        assert_eq!(fs.spool().used(), 0);
    });
}

#[test]
fn who_waits_for_all_that_is_owed_waits_for_it_to_be_loaded() {
    run(async {
        let memory = Arc::new(Memory::new(ByHash::Never));
        let dir = left(&memory).await;
        let fs = recovered(dir.path(), &memory).await;
        let waiting = fs.barrier(|_| true).await.unwrap();
        let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), Delays::default()).run());
        let staged = waiting.settled().await.unwrap();
        assert_eq!((staged.files_done, staged.files_failed), (FILES as u64, 0));
        assert_eq!(memory.view().len(), FILES);
        stager.abort();
    });
}

#[test]
fn bytes_that_a_power_loss_took_are_told_when_they_are_asked_for_or_loaded() {
    run(async {
        let memory = Arc::new(Memory::new(ByHash::Never));
        let dir = left(&memory).await;
        spool_files(dir.path()).iter().for_each(|file| std::fs::remove_file(file).unwrap());
        let fs = recovered(dir.path(), &memory).await;
        assert_eq!(fs.lookup(ROOT, &name(0)).unwrap().size, 0);
        let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), Delays::default()).run());
        let staged = fs.barrier(|_| true).await.unwrap().reached().await;
        assert_eq!(staged.files_failed, FILES as u64);
        stager.abort();
    });
}

#[test]
fn bytes_that_cannot_be_looked_at_now_are_an_error_and_not_an_empty_file() {
    run(async {
        let memory = Arc::new(Memory::new(ByHash::Never));
        let dir = left(&memory).await;
        let files = spool_files(dir.path());
        let fs = recovered(dir.path(), &memory).await;
        // A link to itself cannot be opened, whoever asks: like too many open files.
        let saved = dir.path().join("saved");
        std::fs::create_dir(&saved).unwrap();
        for (at, file) in files.iter().enumerate() {
            std::fs::rename(file, saved.join(at.to_string())).unwrap();
            std::os::unix::fs::symlink(file, file).unwrap();
        }
        assert!(fs.lookup(ROOT, &name(0)).is_err());
        let root = fs.opendir(ROOT).unwrap();
        let mut listed = Vec::new();
        fs.readdir(root, 0, true, |entry| {
            listed.push((entry.name.to_vec(), entry.stat.live));
            false
        })
        .unwrap();
        assert_eq!(listed.len(), 2 + FILES);
        assert!(listed.iter().skip(2).all(|(_, live)| *live), "the kernel asks again: {listed:?}");
        for (at, file) in files.iter().enumerate() {
            std::fs::remove_file(file).unwrap();
            std::fs::rename(saved.join(at.to_string()), file).unwrap();
        }
        assert_eq!(fs.lookup(ROOT, &name(0)).unwrap().size, CONTENT.len() as u64);
    });
}
