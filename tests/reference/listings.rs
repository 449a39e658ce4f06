//! What a commit has in its directories is asked for once, whatever becomes of the daemon; and what is damaged of it here
//! is asked for again, and shows nothing wrong.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxenfs::fs::{Fs, Limits, Op, Options};
use oxenfs::namespace::{Ino, ROOT};
use oxenfs::path::RepoPath;
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::{Fault, Memory, Tree};

use crate::world::{entries_of, temporary_dir};

/// Every file, by its path, with its length.
type Shown = BTreeMap<String, u64>;

/// A repository, and a count of the listings that it was asked for.
fn repository(random: &mut fastrand::Rng) -> (Arc<Memory>, Arc<AtomicUsize>) {
    let memory = Arc::new(Memory::new(ByHash::Batch));
    memory.set_base(tree(random));
    let asked = Arc::<AtomicUsize>::default();
    let counts = asked.clone();
    memory.set_witness(Arc::new(move |name| {
        if name == "list" {
            counts.fetch_add(1, Ordering::SeqCst);
        }
    }));
    (memory, asked)
}

fn tree(random: &mut fastrand::Rng) -> Tree {
    let file = |random: &mut fastrand::Rng| {
        let dirs: String = (0..random.usize(..4)).map(|_| format!("d\u{fc} {}/", random.u8(..3))).collect();
        let path = RepoPath::parse(&format!("{dirs}file {}", random.u8(..50))).unwrap();
        (path, Bytes::from(vec![b'x'; random.usize(..50)]))
    };
    (0..120).map(|_| file(random)).collect()
}

fn expected(memory: &Memory) -> Shown {
    memory.base_tree().iter().map(|(path, content)| (path.to_string(), content.len() as u64)).collect()
}

async fn mount(dir: &Path, memory: &Arc<Memory>) -> Arc<Fs> {
    let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: None, cache: 1 << 30 };
    let fs = Fs::recover(dir, RepoPath::root(), options, limits, memory.clone()).unwrap();
    fs.reconcile().await.unwrap();
    fs
}

/// How often; each request is told when it arrives and when its answer leaves.
fn times(told: &AtomicUsize) -> usize {
    told.load(Ordering::SeqCst) / 2
}

/// Ends a daemon, which has nothing to say in that.
async fn kill(fs: Arc<Fs>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    // What it had begun ends by itself.
    while Arc::strong_count(&fs) > 1 {
        assert!(Instant::now() < deadline, "somebody is still at work");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn go<T>(fs: &Fs, op: impl Fn(&Fs) -> Op<T>) -> T {
    crate::world::go(fs, op).await.unwrap()
}

async fn entries(fs: &Fs, dir: Ino) -> Vec<(String, Ino)> {
    let handle = go(fs, |fs| fs.opendir(dir)).await.handle;
    let found = go(fs, |fs| entries_of(fs, handle)).await;
    fs.release(handle);
    found
}

async fn shown(fs: &Fs) -> Shown {
    let (mut files, mut left) = (Shown::new(), vec![(String::new(), ROOT)]);
    while let Some((path, dir)) = left.pop() {
        for (name, ino) in entries(fs, dir).await {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            let stat = go(fs, |fs| fs.getattr(ino)).await;
            match stat.format == libc::S_IFDIR {
                true => left.push((path, ino)),
                false => drop(files.insert(path, stat.size)),
            }
        }
    }
    files
}

fn kept(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir.join("cache/listings")).unwrap().map(|file| file.unwrap().path()).collect()
}

#[test]
fn a_listing_is_asked_for_once_whatever_becomes_of_the_daemon_or_its_nodes() {
    crate::world::runtime(2).block_on(async {
        let (memory, asked) = repository(&mut fastrand::Rng::with_seed(1));
        let dir = temporary_dir();
        let fs = mount(dir.path(), &memory).await;
        assert_eq!(shown(&fs).await, expected(&memory));
        let all = times(&asked);
        assert!(all > 10, "{all}");
        let is_kept = Instant::now() + Duration::from_secs(20);
        while kept(dir.path()).len() < all {
            assert!(Instant::now() < is_kept, "they are not kept");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(fs.evict() > 100);
        assert_eq!(shown(&fs).await, expected(&memory));
        kill(fs).await;
        // Not even a server that fails is missed.
        memory.set_fault(|name| if name == "list" { Fault::Lost } else { Fault::None });
        let fs = mount(dir.path(), &memory).await;
        assert_eq!(shown(&fs).await, expected(&memory));
        fs.cache().learn().unwrap();
        fs.evict();
        assert_eq!(shown(&fs).await, expected(&memory));
        assert_eq!(times(&asked), all);
        memory.set_fault(|_| Fault::None);
        // Another commit has other listings, and what is as it was is no less right.
        memory.commit_foreign(tree(&mut fastrand::Rng::with_seed(2)));
        memory.move_workspace();
        kill(fs).await;
        let fs = mount(dir.path(), &memory).await;
        assert_eq!(shown(&fs).await, expected(&memory));
        assert!(times(&asked) > all);
        kill(fs).await;
        let before = times(&asked);
        std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
        let fs = mount(dir.path(), &memory).await;
        assert_eq!(shown(&fs).await, expected(&memory));
        assert!(times(&asked) > before, "nothing was left of them");
    });
}

#[test]
fn no_damage_of_what_is_kept_shows_in_a_directory() {
    crate::world::runtime(2).block_on(async {
        for seed in 1..=30 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (memory, asked) = repository(&mut random);
            let dir = temporary_dir();
            for round in 0..4 {
                let fs = mount(dir.path(), &memory).await;
                if random.bool() {
                    fs.cache().learn().unwrap();
                }
                assert_eq!(shown(&fs).await, expected(&memory), "seed {seed}, round {round}");
                kill(fs).await;
                let files = kept(dir.path());
                for path in &files {
                    let length = std::fs::metadata(path).unwrap().len();
                    let file = || std::fs::File::options().write(true).open(path).unwrap();
                    let at = random.u64(..length.max(1));
                    match random.u8(..8) {
                        0 => file().write_all_at(&[random.u8(..)], at).unwrap(),
                        1 => file().set_len(at).unwrap(),
                        2 => file().write_all_at(&vec![0; length as usize], 0).unwrap(),
                        3 => file().write_all_at(b"x", length).unwrap(),
                        4 => drop(std::fs::copy(random.choice(&files).unwrap(), path)),
                        _ => {}
                    }
                }
                if random.u8(..4) == 0 {
                    memory.commit_foreign(tree(&mut random));
                    memory.move_workspace();
                }
            }
            assert!(times(&asked) > 0);
        }
    });
}
