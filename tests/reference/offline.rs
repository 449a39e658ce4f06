//! A mount that begins without its server: what is written meanwhile meets what others committed, and the workspace ends up
//! with both, whatever is lost on the way and however often it is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxenfs::fs::{Fs, FsError, Limits, OpenFlags, Options};
use oxenfs::namespace::{Ino, ROOT};
use oxenfs::path::{Name, RepoPath};
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::workspace::deferred::Deferred;
use oxenfs::workspace::memory::{Fault, Memory, Tree};
use oxenfs::workspace::{ByHash, CommitId, Workspace, WorkspaceError};

use crate::world::{attrs, entries_of, go, in_time, runtime, temporary_dir};

/// Directories, and files in each; others commit those with even numbers, and programs here write the odd ones.
const DIRS: u8 = 3;
const FILES: u8 = 8;

fn path(dir: u8, file: u8) -> RepoPath {
    RepoPath::parse(&format!("d{dir}/f{file}")).unwrap()
}

fn content(random: &mut fastrand::Rng) -> Bytes {
    Bytes::from(vec![random.alphanumeric() as u8; random.usize(1..2000)])
}

fn away() -> WorkspaceError {
    WorkspaceError::Unreachable { server: "memory".into(), cause: "it is away".into(), request: None }
}

fn open(dir: &Path, workspace: Arc<dyn Workspace>) -> Arc<Fs> {
    let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: None, cache: 1 << 30 };
    Fs::recover(dir, RepoPath::root(), options, limits, workspace).unwrap()
}

async fn find(fs: &Fs, parent: Ino, name: &str) -> Result<Ino, FsError> {
    let name = Name::new(name.as_bytes()).unwrap();
    let ino = go(fs, |fs| fs.lookup(parent, &name)).await?.ino;
    fs.forget(ino, 1);
    Ok(ino)
}

async fn write(fs: &Fs, dir: u8, file: u8, content: &[u8]) {
    let flags = OpenFlags { read: false, write: true, truncate: true, execute: false };
    let parent = find(fs, ROOT, &format!("d{dir}")).await.unwrap();
    let name = format!("f{file}");
    let handle = match find(fs, parent, &name).await {
        Ok(ino) => go(fs, |fs| fs.open(ino, flags)).await.unwrap(),
        Err(FsError::NotFound) => {
            let name = Name::new(name.as_bytes()).unwrap();
            let (stat, handle) = go(fs, |fs| fs.create(parent, &name, attrs(), flags)).await.unwrap();
            fs.forget(stat.ino, 1);
            handle
        }
        Err(error) => panic!("{error}"),
    };
    go(fs, |fs| fs.write(handle, 0, content)).await.unwrap();
    fs.release(handle);
}

async fn remove(fs: &Fs, dir: u8, file: u8) {
    let parent = find(fs, ROOT, &format!("d{dir}")).await.unwrap();
    let name = Name::new(format!("f{file}").as_bytes()).unwrap();
    match go(fs, |fs| fs.unlink(parent, &name)).await {
        Ok(()) | Err(FsError::NotFound) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Some changes to files with odd numbers, also to what is to become of all.
async fn change(fs: &Fs, random: &mut fastrand::Rng, expected: &mut Tree) {
    for _ in 0..random.u8(1..8) {
        let (dir, file) = (random.u8(..DIRS), random.u8(..FILES / 2) * 2 + 1);
        match random.u8(..3) {
            0 => {
                remove(fs, dir, file).await;
                expected.remove(&path(dir, file));
            }
            _ => {
                let content = content(random);
                write(fs, dir, file, &content).await;
                expected.insert(path(dir, file), content);
            }
        }
    }
}

/// Every file that shows, with its length.
async fn shown(fs: &Fs) -> BTreeMap<String, u64> {
    let entries = async |dir| {
        let handle = go(fs, |fs| fs.opendir(dir)).await.unwrap().handle;
        let found = go(fs, |fs| entries_of(fs, handle)).await.unwrap();
        fs.release(handle);
        found
    };
    let mut files = BTreeMap::new();
    for (dir, ino) in entries(ROOT).await {
        for (file, ino) in entries(ino).await {
            files.insert(format!("{dir}/{file}"), go(fs, |fs| fs.getattr(ino)).await.unwrap().size);
        }
    }
    files
}

fn lengths(tree: &Tree) -> BTreeMap<String, u64> {
    tree.iter().map(|(path, content)| (path.to_string(), content.len() as u64)).collect()
}

/// Ends a daemon, with what it had begun.
async fn kill(fs: Arc<Fs>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Arc::strong_count(&fs) > 1 {
        assert!(Instant::now() < deadline, "somebody is still at work");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Stages all that is owed.
async fn stage(fs: &Arc<Fs>) {
    let delays = Delays { first: Duration::from_millis(1), last: Duration::from_millis(4) };
    let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), delays).run());
    if let Some(waiting) = fs.barrier() {
        let progress = in_time("all to be staged", waiting.settled()).await.unwrap();
        assert_eq!(progress.files_failed, 0, "{:?}", fs.report());
    }
    stager.abort();
    let _ = stager.await;
}

#[test]
fn what_is_written_offline_meets_what_others_committed_and_nothing_is_lost() {
    runtime(2).block_on(async {
        for seed in 1..=60 {
            one(seed).await;
        }
    });
}

async fn one(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let memory = Arc::new(Memory::new(*random.choice(&[ByHash::Never, ByHash::Batch, ByHash::Single]).unwrap()));
    let mut expected = Tree::new();
    for (dir, file) in (0..DIRS).flat_map(|dir| (0..FILES).map(move |file| (dir, file))) {
        // None of the directories goes.
        if file == 0 || random.bool() {
            expected.insert(path(dir, file), content(&mut random));
        }
    }
    memory.set_base(expected.clone());
    let dir = temporary_dir();
    let fs = open(dir.path(), memory.clone());
    fs.reconcile().await.unwrap();
    assert_eq!(shown(&fs).await, lengths(&expected));
    let is_staged = random.bool();
    if is_staged {
        change(&fs, &mut random, &mut expected).await;
        stage(&fs).await;
    }
    fs.cache().write_listings();
    kill(fs).await;

    // What a mount finds that comes with the server there: the workspace on what the branch has become, where nothing is
    // staged or it was made anew.
    let mut theirs = memory.head_tree();
    let commits = random.bool();
    if commits {
        for _ in 0..random.u8(1..6) {
            let path = path(random.u8(..DIRS), random.u8(..FILES / 2) * 2);
            match random.u8(..4) == 0 && !path.file_name().ends_with('0') {
                true => drop(theirs.remove(&path)),
                false => drop(theirs.insert(path, content(&mut random))),
            }
        }
        memory.commit_foreign(theirs.clone());
    }
    let is_deleted = random.u8(..4) == 0;
    if is_deleted {
        memory.delete_workspace();
    }
    let moves = commits && (is_deleted || !is_staged);

    let mut fs;
    let mut deferred;
    let before = expected.clone();
    loop {
        deferred = Arc::new(Deferred::new(memory.info().clone(), away()));
        fs = open(dir.path(), deferred.clone());
        fs.begin_offline(false).await.unwrap();
        assert_eq!(shown(&fs).await, lengths(&expected), "seed {seed}");
        change(&fs, &mut random, &mut expected).await;
        assert_eq!(shown(&fs).await, lengths(&expected), "seed {seed}");
        assert!(before == expected || fs.owed() > 0, "seed {seed}");
        if random.u8(..3) > 0 {
            break;
        }
        kill(fs).await;
    }

    if moves {
        // What others committed shows, where nothing was changed here.
        expected.retain(|path, _| path.file_name().as_bytes()[1] % 2 == 1);
        expected.extend(theirs.into_iter().filter(|(path, _)| path.file_name().as_bytes()[1] % 2 == 0));
    }
    let mut attempts = random.u8(..4);
    loop {
        while memory.identity().await.unwrap().is_none() {
            memory.reopen("main", &CommitId("".into())).await.unwrap();
        }
        if moves {
            memory.move_workspace();
        }
        if attempts > 0 {
            attempts -= 1;
            let mut after = random.u8(..6);
            memory.set_fault(move |_| {
                after = after.saturating_sub(1);
                if after == 0 { Fault::Lost } else { Fault::None }
            });
        }
        let paused = fs.pause().await.unwrap();
        deferred.put(memory.clone());
        let met = fs.meet_server().await;
        drop(paused);
        memory.set_fault(|_| Fault::None);
        match met {
            Ok(()) => break,
            Err(error) => assert!(fs.is_offline(), "seed {seed}: {error}"),
        }
        deferred.take(away());
        change(&fs, &mut random, &mut expected).await;
    }
    deferred.stays();
    change(&fs, &mut random, &mut expected).await;
    stage(&fs).await;
    assert!(fs.conflicts().is_empty(), "seed {seed}: {:?}", fs.conflicts());
    assert_eq!(memory.view(), expected, "seed {seed}");
    assert_eq!(shown(&fs).await, lengths(&expected), "seed {seed}");
    kill(fs).await;
}
