//! What a commit holds: the names and the bytes of its cut, whatever programs do while it is made; and what a barrier has
//! staged when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use oxenfs::fs::{CommitCut, Fs, Need, OpenFlags, RenameMode};
use oxenfs::hash::ContentHash;
use oxenfs::namespace::{Ino, ROOT};
use oxenfs::path::{Name, RepoPath};
use oxenfs::report::Kind;
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::store::disk::Disk;
use oxenfs::workspace::memory::{Fault, Memory};
use oxenfs::workspace::{ByHash, Object, Workspace};
use oxenfs::writeback::index::Step;

use crate::world::{Manner, Op, Vanish, World, attrs, commit_request, go, in_time, runtime, temporary_dir};

/// A filesystem on a server in memory. Nothing is staged before [`run`](Self::run).
struct Bench {
    fs: Arc<Fs>,
    memory: Arc<Memory>,
    dir: tempfile::TempDir,
    stager: Option<tokio::task::JoinHandle<()>>,
}

impl Bench {
    async fn new(base: &[(&str, &str)]) -> Self {
        let memory = Arc::new(Memory::new(ByHash::Single));
        memory.set_base(base.iter().map(|(path, text)| (repo_path(path), text.to_string().into())).collect());
        Self::start(temporary_dir(), memory).await
    }

    async fn start(dir: tempfile::TempDir, memory: Arc<Memory>) -> Self {
        let fs = crate::regressions::listed(&Disk::default(), dir.path(), &memory).await;
        fs.satisfy(Need::ListAll(ROOT)).await.unwrap();
        Self { fs, memory, dir, stager: None }
    }

    /// As after the end of the process.
    async fn restart(mut self) -> Self {
        self.stop().await;
        let Self { fs, memory, dir, .. } = self;
        drop(fs);
        Self::start(dir, memory).await
    }

    /// Stages nothing any more.
    async fn stop(&mut self) {
        if let Some(stager) = self.stager.take() {
            stager.abort();
            let _ = stager.await;
        }
    }

    /// Stages what is due, from now on.
    fn run(&mut self) {
        let delays = Delays { first: std::time::Duration::from_millis(1), last: std::time::Duration::from_millis(4) };
        self.stager = Some(tokio::spawn(Stager::new(self.fs.clone(), Arc::new(Meter::default()), delays).run()));
    }

    fn dir(&self, path: &str) -> Ino {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(ROOT, |dir, name| match self.fs.lookup(dir, &name_of(name)) {
            Ok(found) => found.ino,
            Err(_) => self.fs.mkdir(dir, &name_of(name), attrs()).unwrap().ino,
        })
    }

    fn split<'a>(&self, path: &'a str) -> (Ino, &'a str) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.dir(dir), name)
    }

    /// Creates a file, or empties it, writes, and leaves it open.
    async fn open_and_write(&self, path: &str, text: &str) -> u64 {
        let (dir, name) = self.split(path);
        let flags = OpenFlags { read: false, write: true, truncate: true, execute: false };
        let handle = match self.fs.lookup(dir, &name_of(name)) {
            Ok(found) => self.go(|fs| fs.open(found.ino, flags)).await,
            Err(_) => self.fs.create(dir, &name_of(name), attrs(), flags).unwrap().1,
        };
        self.go(|fs| fs.write(handle, 0, text.as_bytes())).await;
        handle
    }

    async fn append(&self, handle: u64, at: usize, text: &str) {
        self.go(|fs| fs.write(handle, at as u64, text.as_bytes())).await;
    }

    async fn write(&self, path: &str, text: &str) {
        let handle = self.open_and_write(path, text).await;
        self.fs.release(handle);
    }

    async fn go<T>(&self, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> T {
        in_time("an operation", go(&self.fs, op)).await.unwrap()
    }

    async fn rename(&self, from: &str, to: &str) {
        let ((from_dir, from), (to_dir, to)) = (self.split(from), self.split(to));
        self.go(|fs| fs.rename(from_dir, &name_of(from), to_dir, &name_of(to), RenameMode::Replace)).await;
    }

    async fn unlink(&self, path: &str) {
        let (dir, name) = self.split(path);
        self.go(|fs| fs.unlink(dir, &name_of(name))).await;
    }

    async fn cut(&self) -> CommitCut {
        in_time("the cut", self.fs.cut()).await.unwrap()
    }

    async fn staged(&self, cut: &CommitCut) {
        assert_eq!(in_time("staging", cut.waiting.reached()).await.files_failed, 0, "{:?}", self.fs.report());
    }

    /// The commit that the server makes.
    async fn publish(&self) {
        let committed = self.memory.commit(&commit_request()).await.unwrap();
        self.fs.rebased(committed.id, true).await.unwrap();
    }

    async fn commit(&self) {
        let cut = self.cut().await;
        self.staged(&cut).await;
        self.publish().await;
    }

    async fn drain(&self) {
        let waiting = self.fs.barrier().unwrap();
        assert_eq!(in_time("a barrier", waiting.reached()).await.files_failed, 0, "{:?}", self.fs.report());
    }

    fn branch(&self) -> BTreeMap<String, String> {
        texts(self.memory.base_tree())
    }

    fn workspace(&self) -> BTreeMap<String, String> {
        texts(self.memory.view())
    }
}

fn texts(tree: impl IntoIterator<Item = (RepoPath, Bytes)>) -> BTreeMap<String, String> {
    let text = |content: Bytes| String::from_utf8(content.to_vec()).unwrap();
    tree.into_iter().map(|(path, content)| (path.as_str().to_owned(), text(content))).collect()
}

fn tree(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn name_of(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn repo_path(path: &str) -> RepoPath {
    RepoPath::parse(path).unwrap()
}

/// Many files in a directory that gets its name when they are whole, as dataset libraries publish one.
const FILES: usize = 300;

async fn incomplete(bench: &Bench) {
    for at in 0..FILES {
        bench.write(&format!("ds.incomplete/{at}"), &at.to_string()).await;
    }
}

fn published(dir: &str) -> BTreeMap<String, String> {
    (0..FILES).map(|at| (format!("{dir}/{at}"), at.to_string())).collect()
}

#[test]
fn a_directory_that_is_renamed_during_a_commit_is_in_it_whole_under_its_old_name() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        incomplete(&bench).await;
        let cut = bench.cut().await;
        bench.rename("ds.incomplete", "ds").await;
        bench.run();
        bench.staged(&cut).await;
        bench.publish().await;
        drop(cut);
        assert_eq!(bench.branch(), published("ds.incomplete"));
        bench.commit().await;
        assert_eq!(bench.branch(), published("ds"));
    });
}

#[test]
fn a_directory_that_is_renamed_while_a_barrier_waits_is_staged_under_its_new_name() {
    runtime(1).block_on(async {
        for staged_before in [0, FILES / 2] {
            let mut bench = Bench::new(&[]).await;
            incomplete(&bench).await;
            for some in bench.fs.due(staged_before).0 {
                bench.fs.put_back(&some.path, std::time::Duration::ZERO);
            }
            let waiting = bench.fs.barrier().unwrap();
            bench.rename("ds.incomplete", "ds").await;
            bench.run();
            assert_eq!(in_time("a barrier", waiting.reached()).await.files_failed, 0);
            assert_eq!(bench.workspace(), published("ds"));
        }
    });
}

#[test]
fn what_is_staged_already_is_staged_under_its_new_name_when_a_barrier_ends() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        bench.run();
        incomplete(&bench).await;
        bench.drain().await;
        bench.write("other", "other").await;
        let waiting = bench.fs.barrier().unwrap();
        bench.rename("ds.incomplete", "ds").await;
        assert_eq!(in_time("a barrier", waiting.reached()).await.files_failed, 0);
        let mut expected = published("ds");
        expected.insert("other".into(), "other".into());
        assert_eq!(bench.workspace(), expected);
    });
}

#[test]
fn a_file_that_is_replaced_during_a_commit_is_in_it_as_it_was() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        bench.write("data.bin", "v1").await;
        let cut = bench.cut().await;
        bench.write("t", "v2").await;
        bench.rename("t", "data.bin").await;
        bench.run();
        bench.staged(&cut).await;
        bench.publish().await;
        drop(cut);
        assert_eq!(bench.branch(), tree(&[("data.bin", "v1")]));
        bench.commit().await;
        assert_eq!(bench.branch(), tree(&[("data.bin", "v2")]));
    });
}

#[test]
fn a_file_that_is_replaced_while_a_barrier_waits_is_staged_with_its_newer_content() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        bench.write("config.json", "v1").await;
        let waiting = bench.fs.barrier().unwrap();
        for version in 2..9 {
            bench.write("config.json.tmp", &format!("v{version}")).await;
            bench.rename("config.json.tmp", "config.json").await;
        }
        bench.run();
        assert_eq!(in_time("a barrier", waiting.reached()).await.files_failed, 0);
        assert_eq!(bench.workspace(), tree(&[("config.json", "v8")]));
    });
}

#[test]
fn a_file_published_by_a_link_while_a_barrier_waits_is_staged_under_that_name() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        bench.write("tmp", "text").await;
        let waiting = bench.fs.barrier().unwrap();
        let ino = bench.fs.lookup(ROOT, &name_of("tmp")).unwrap().ino;
        bench.fs.link(ino, ROOT, &name_of("message")).unwrap();
        bench.unlink("tmp").await;
        bench.run();
        assert_eq!(in_time("a barrier", waiting.reached()).await.files_failed, 0);
        assert_eq!(bench.workspace(), tree(&[("message", "text")]));
    });
}

#[test]
fn what_is_removed_during_a_commit_is_in_it() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        bench.write("d/s/gone", "text").await;
        let cut = bench.cut().await;
        bench.unlink("d/s/gone").await;
        let (d, root) = (bench.dir("d"), ROOT);
        bench.fs.rmdir(d, &name_of("s")).unwrap();
        bench.fs.rmdir(root, &name_of("d")).unwrap();
        bench.run();
        bench.staged(&cut).await;
        bench.publish().await;
        drop(cut);
        assert_eq!(bench.branch(), tree(&[("d/s/gone", "text")]));
        bench.commit().await;
        assert_eq!(bench.branch(), tree(&[]));
    });
}

#[test]
fn a_directory_that_is_emptied_before_a_commit_and_filled_during_it_is_removed_by_it() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[("d/a", "a"), ("keep", "k")]).await;
        bench.unlink("d/a").await;
        let cut = bench.cut().await;
        bench.write("d/new", "new").await;
        bench.run();
        bench.staged(&cut).await;
        bench.publish().await;
        drop(cut);
        assert_eq!(bench.branch(), tree(&[("keep", "k")]));
        bench.commit().await;
        assert_eq!(bench.branch(), tree(&[("d/new", "new"), ("keep", "k")]));
    });
}

#[test]
fn an_open_file_is_committed_as_it_was_before_what_was_closed_earlier_than_the_cut() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        // An index that stays open names the shards that are closed.
        let index = bench.open_and_write("index", "shard-0\n").await;
        bench.write("shard-0", "0").await;
        let cut = bench.cut().await;
        bench.write("shard-1", "1").await;
        bench.append(index, "shard-0\n".len(), "shard-1\n").await;
        bench.run();
        bench.staged(&cut).await;
        bench.publish().await;
        drop(cut);
        assert_eq!(bench.branch(), tree(&[("index", "shard-0\n"), ("shard-0", "0")]));
        bench.fs.release(index);
        bench.commit().await;
        let whole = [("index", "shard-0\nshard-1\n"), ("shard-0", "0"), ("shard-1", "1")];
        assert_eq!(bench.branch(), tree(&whole));
    });
}

#[test]
fn a_copy_that_was_made_before_a_commit_does_not_stand_for_what_the_commit_has() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        let index = bench.open_and_write("index", "shard-0\n").await;
        let _waiting = bench.fs.barrier();
        let copied = async {
            loop {
                let woken = bench.fs.wake.notified();
                if let Some(capture) = bench.fs.due(8).0.pop() {
                    return capture;
                }
                woken.await;
            }
        };
        let copied = in_time("a copy of what is open", copied).await;
        bench.append(index, "shard-0\n".len(), "shard-1\n").await;
        bench.write("shard-1", "1").await;
        let cut = bench.cut().await;
        let hash = ContentHash::of(bench.memory.info().hash_kind, b"shard-0\n");
        let confirmed = Step::Put(Object { hash, size: "shard-0\n".len() as u64 });
        bench.fs.confirmed(&[(copied, confirmed)]).unwrap();
        bench.run();
        bench.staged(&cut).await;
        bench.publish().await;
        assert_eq!(bench.branch(), tree(&[("index", "shard-0\nshard-1\n"), ("shard-1", "1")]));
        drop(cut);
        bench.fs.release(index);
    });
}

#[test]
fn a_committed_file_that_is_renamed_away_and_back_during_a_commit_is_still_the_branchs() {
    runtime(1).block_on(async {
        for linked in [false, true] {
            let mut bench = Bench::new(&[("data/f", "text"), ("data/g", "text")]).await;
            bench.run();
            bench.write("other", "other").await;
            let cut = bench.cut().await;
            bench.staged(&cut).await;
            if linked {
                // As `dvc checkout --relink` does.
                bench.unlink("data/f").await;
                let ino = bench.fs.lookup(bench.dir("data"), &name_of("g")).unwrap().ino;
                bench.fs.link(ino, bench.dir("data"), &name_of("f")).unwrap();
            } else {
                bench.rename("data/f", "away").await;
                bench.rename("away", "data/f").await;
            }
            bench.publish().await;
            drop(cut);
            // Of which only what Oxen cannot store stays here.
            let differences = bench.fs.differences();
            assert!(differences.iter().all(|difference| difference.kind == Kind::Local), "{differences:?}");
            let mut bench = if linked { bench.restart().await } else { bench };
            bench.run();
            bench.drain().await;
            assert!(bench.fs.staged_paths().is_empty(), "{:?}", bench.fs.staged_paths());
            bench.unlink("data/f").await;
            bench.commit().await;
            assert_eq!(bench.branch(), tree(&[("data/g", "text"), ("other", "other")]));
            let bench = bench.restart().await;
            assert!(bench.fs.lookup(bench.dir("data"), &name_of("f")).is_err());
        }
    });
}

#[test]
fn what_the_branch_has_is_known_after_a_restart_though_it_was_pending_when_a_commit_ended() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[("f", "text")]).await;
        bench.run();
        bench.write("other", "other").await;
        let cut = bench.cut().await;
        bench.staged(&cut).await;
        bench.stop().await;
        bench.rename("f", "away").await;
        bench.rename("away", "f").await;
        bench.publish().await;
        // Removed before its turn in the queue, and before the daemon ends.
        bench.unlink("f").await;
        drop(cut);
        let mut bench = bench.restart().await;
        bench.run();
        bench.commit().await;
        assert_eq!(bench.branch(), tree(&[("other", "other")]));
    });
}

#[test]
fn what_is_removed_while_a_commit_is_staged_and_in_it_is_owed_after_a_restart() {
    let file = || vec!["file".to_owned()];
    let ops = [
        Op::CommitAmid { staging: vec![], answering: vec![Op::Write { path: file(), at: 0, text: "text".to_owned() }] },
        Op::CommitAmid { staging: vec![Op::Unlink(file())], answering: vec![] },
        Op::Crash,
        Op::Drain,
    ];
    for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
        runtime(1).block_on(async {
            let mut world = World::new(by_hash, false).await;
            for op in &ops {
                world.step(op).await;
            }
        });
    }
}

#[test]
fn a_barrier_ends_beside_a_program_that_writes_without_pause() {
    runtime(2).block_on(async {
        let mut bench = Bench::new(&[]).await;
        bench.run();
        const LARGE: usize = 17 << 20;
        let handle = bench.open_and_write("large", "begin").await;
        bench.append(handle, LARGE, "end").await;
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = {
            let (fs, stop) = (bench.fs.clone(), stop.clone());
            tokio::task::spawn_blocking(move || {
                let mut written = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    written += u32::from(fs.write(handle, 1 << 20, b"again").is_ok());
                }
                written
            })
        };
        for _ in 0..3 {
            bench.drain().await;
            bench.commit().await;
            assert_eq!(bench.memory.base_tree()[&repo_path("large")].len(), LARGE + 3);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(writer.await.unwrap() > 0);
        bench.fs.release(handle);
    });
}

#[test]
fn a_commit_whose_staging_is_interrupted_leaves_the_tree_to_be_staged_as_it_is() {
    runtime(1).block_on(async {
        let mut bench = Bench::new(&[]).await;
        incomplete(&bench).await;
        let cut = bench.cut().await;
        bench.rename("ds.incomplete", "ds").await;
        let mut left = FILES / 2;
        bench.memory.set_fault(move |_| {
            left = left.saturating_sub(1);
            if left == 0 { Fault::Lost } else { Fault::None }
        });
        bench.run();
        while cut.waiting.progress().0.files_done < 10 {
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        drop(cut);
        bench.memory.set_fault(|_| Fault::None);
        bench.drain().await;
        assert_eq!(bench.workspace(), published("ds"));
    });
}

#[test]
fn a_commit_amid_renames_removals_and_crashes_holds_its_cut() {
    let path = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
    let rename = |from, to| Op::Rename { from: path(from), to: path(to), mode: 0 };
    let replace = |at: &str, text: &str| Op::Replace { path: path(at), text: text.to_owned() };
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mut world = World::new(by_hash, false).await;
            let staging = vec![rename("dir", "a"), replace("a/a", "b"), Op::Unlink(path("a/dir/b"))];
            let answering =
                vec![rename("a", "dir"), Op::Link { from: path("base"), to: path("b") }, rename("b", "base")];
            world.step(&replace("dir/base", "c")).await;
            world.step(&Op::CommitAmid { staging: staging.clone(), answering: answering.clone() }).await;
            world.step(&Op::Crash).await;
            world.step(&Op::CommitAmid { staging: vec![], answering: staging }).await;
            world.step(&Op::CommitAmid { staging: answering, answering: vec![] }).await;
            world.step(&Op::Drain).await;
            world.step(&Op::Commit).await;
        }
    });
}

#[test]
fn a_removal_that_met_no_workspace_is_in_the_commit() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mut world = World::of(by_hash, false, Manner::Careful).await;
            world.step(&Op::Vanish(Vanish::Deleted)).await;
            world.step(&Op::Unlink(vec!["base".to_owned()])).await;
            world.step(&Op::Commit).await;
        }
    });
}

/// What was staged before the cut goes with the workspace, and the first request of the cut's own meets that.
#[test]
fn what_went_with_a_workspace_while_a_cut_was_staged_is_in_the_commit() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mut world = World::of(by_hash, false, Manner::Careful).await;
            let replace = |at: &str, text: &str| Op::Replace { path: vec![at.to_owned()], text: text.to_owned() };
            world.step(&replace("base", "staged before")).await;
            world.step(&Op::Drain).await;
            world.step(&replace("a", "in the cut")).await;
            world.step(&Op::Cut).await;
            world.step(&Op::Vanish(Vanish::Deleted)).await;
            world.step(&Op::Publish).await;
            world.step(&Op::Rebase).await;
            world.step(&Op::Drain).await;
        }
    });
}

/// The barrier that waits for one file meets that the workspace is gone, with another that was staged before.
#[test]
fn what_went_with_a_workspace_while_a_barrier_waited_is_staged_when_it_has_ended_again() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mut world = World::of(by_hash, false, Manner::Careful).await;
            let replace = |at: &str, text: &str| Op::Replace { path: vec![at.to_owned()], text: text.to_owned() };
            world.step(&replace("base", "staged before")).await;
            world.step(&Op::Drain).await;
            world.step(&Op::Vanish(Vanish::Deleted)).await;
            world.step(&replace("a", "waited for")).await;
            world.step(&Op::Drain).await;
        }
    });
}
