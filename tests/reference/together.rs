//! Others commit to the branch while this mount has changes of its own: what is merged, what is in conflict, and that nobody
//! loses anything. First each way in which something was lost, then random work of two clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxenfs::fs::{Choice, Fs, FsError, OpenFlags, RenameMode, Stale, Stays, Version};
use oxenfs::mount::commit::finish::{self, Finished};
use oxenfs::namespace::{Ino, ROOT};
use oxenfs::path::{Name, RepoPath};
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::store::disk::Disk;
use oxenfs::workspace::memory::{Fault, Memory};
use oxenfs::workspace::{ByHash, Workspace};
use tokio_util::task::AbortOnDropHandle;

mod late;
mod team;

use crate::tell;
use crate::world::{STUCK, attrs, commit_request, entries_of, go, in_time, runtime, temporary_dir};

type Files = BTreeMap<String, String>;

/// A mount on a server in memory, beside somebody who commits to the branch from elsewhere.
struct Mount {
    fs: Arc<Fs>,
    memory: Arc<Memory>,
    dir: tempfile::TempDir,
    /// Ended with the mount: a task that goes on would keep all of the mount, its open files among it.
    stager: Option<AbortOnDropHandle<()>>,
}

const LABEL: &str = "ann@lab 2026-11-30";

impl Mount {
    async fn new(base: &[(&str, &str)]) -> Self {
        Self::on(ByHash::Single, base).await
    }

    async fn on(by_hash: ByHash, base: &[(&str, &str)]) -> Self {
        let memory = Arc::new(Memory::new(by_hash));
        memory.set_base(tree(base).into_iter().map(|(path, text)| (repo_path(&path), text.into())).collect());
        Self::start(temporary_dir(), memory).await
    }

    async fn start(dir: tempfile::TempDir, memory: Arc<Memory>) -> Self {
        let fs = crate::regressions::listed(&Disk::default(), dir.path(), &memory).await;
        let delays = Delays { first: Duration::from_millis(1), last: Duration::from_millis(4) };
        let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), delays).run());
        let stager = Some(AbortOnDropHandle::new(stager));
        Self { fs, memory, dir, stager }
    }

    /// Ends the daemon without a word, and starts another. As a mount does, the workspace stands on the branch by then if
    /// nothing is staged in it, or if it is there no more.
    async fn remount(self) -> Self {
        let memory = self.memory.clone();
        self.remount_in(memory).await
    }

    /// The same, in another workspace.
    async fn remount_in(mut self, memory: Arc<Memory>) -> Self {
        self.stop().await;
        let Self { fs, dir, .. } = self;
        drop(fs);
        if !memory.changes().await.is_ok_and(|changes| !changes.is_empty()) {
            memory.renew("main").await.unwrap();
        }
        Self::start(dir, memory).await
    }

    /// Another daemon, with no copies of what the server has.
    async fn without_copies(mut self) -> Self {
        self.stop().await;
        let Self { fs, memory, dir, .. } = self;
        fs.tidy_all().unwrap();
        drop(fs);
        std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
        let mount = Self::start(dir, memory).await;
        mount.fs.cache().learn().unwrap();
        assert!(mount.fs.report().0.remote.files > 0, "what is staged is on the server alone");
        mount
    }

    async fn stop(&mut self) {
        if let Some(stager) = self.stager.take() {
            stager.abort();
            let _ = stager.await;
        }
        in_time("what was begun", async {
            while Arc::strong_count(&self.fs) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Others commit: content, or nothing, at these paths.
    fn they(&self, changes: &[(&str, Option<&str>)]) {
        let mut tree = self.memory.head_tree();
        for (path, text) in changes {
            let path = repo_path(path);
            // A file and a directory of one name cannot be.
            if text.is_some() {
                tree.retain(|other, _| !other.is_in(&path) && !path.is_in(other));
            }
            match text {
                Some(text) => drop(tree.insert(path, Bytes::from((*text).to_owned()))),
                None => tree.retain(|other, _| !other.is_in(&path)),
            }
        }
        self.memory.commit_foreign(tree);
    }

    async fn go<T>(&self, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> Result<T, FsError> {
        in_time("an operation", go(&self.fs, op)).await
    }

    async fn find(&self, path: &str) -> Result<Ino, FsError> {
        let mut at = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let name = name_of(part);
            at = self.go(|fs| fs.lookup(at, &name)).await?.ino;
            self.fs.forget(at, 1);
        }
        Ok(at)
    }

    async fn place(&self, path: &str) -> Result<(Ino, Name), FsError> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(dir).await?, name_of(name)))
    }

    /// Makes the directories above a path that are not there.
    async fn make_above(&self, path: &str) -> Result<(), FsError> {
        let mut at = ROOT;
        let (above, _) = path.rsplit_once('/').unwrap_or(("", path));
        for part in above.split('/').filter(|part| !part.is_empty()) {
            let name = name_of(part);
            at = match self.go(|fs| fs.lookup(at, &name)).await {
                Ok(found) => found.ino,
                Err(FsError::NotFound) => self.go(|fs| fs.mkdir(at, &name, attrs())).await?.ino,
                Err(error) => return Err(error),
            };
            self.fs.forget(at, 1);
        }
        Ok(())
    }

    async fn open(&self, path: &str, truncate: bool) -> Result<u64, FsError> {
        for _ in 0..9 {
            match self.open_at_once(path, truncate).await {
                // Replaced since it was looked up: as a kernel does.
                Err(FsError::Stale) => {}
                opened => return opened,
            }
        }
        self.open_at_once(path, truncate).await
    }

    async fn open_at_once(&self, path: &str, truncate: bool) -> Result<u64, FsError> {
        let flags = OpenFlags { read: true, write: true, truncate, execute: false };
        self.make_above(path).await?;
        let (dir, name) = self.place(path).await?;
        match self.go(|fs| fs.lookup(dir, &name)).await {
            Ok(found) => {
                let opened = self.go(|fs| fs.open(found.ino, flags)).await;
                self.fs.forget(found.ino, 1);
                opened
            }
            Err(FsError::NotFound) => {
                let (made, handle) = self.go(|fs| fs.create(dir, &name, attrs(), flags)).await?;
                self.fs.forget(made.ino, 1);
                Ok(handle)
            }
            Err(error) => Err(error),
        }
    }

    async fn try_write(&self, path: &str, text: &str) -> Result<(), FsError> {
        let handle = self.open(path, true).await?;
        let written = self.go(|fs| fs.write(handle, 0, text.as_bytes())).await.map(drop);
        self.fs.release(handle);
        written
    }

    async fn write(&self, path: &str, text: &str) {
        self.try_write(path, text).await.unwrap();
    }

    async fn try_unlink(&self, path: &str) -> Result<(), FsError> {
        let (dir, name) = self.place(path).await?;
        self.go(|fs| fs.unlink(dir, &name)).await
    }

    async fn unlink(&self, path: &str) {
        self.try_unlink(path).await.unwrap();
    }

    async fn try_rename(&self, from: &str, to: &str) -> Result<(), FsError> {
        self.make_above(to).await?;
        let ((from_dir, from), (to_dir, to)) = (self.place(from).await?, self.place(to).await?);
        self.go(|fs| fs.rename(from_dir, &from, to_dir, &to, RenameMode::Replace)).await
    }

    async fn remove_all(&self, path: &str) -> Result<(), FsError> {
        let ino = self.find(path).await?;
        let (dir, name) = self.place(path).await?;
        if self.go(|fs| fs.getattr(ino)).await?.format != libc::S_IFDIR {
            return self.try_unlink(path).await;
        }
        for (below, _) in self.list(ino).await? {
            Box::pin(self.remove_all(&format!("{path}/{below}"))).await?;
        }
        self.go(|fs| fs.rmdir(dir, &name)).await
    }

    async fn list(&self, dir: Ino) -> Result<Vec<(String, Ino)>, FsError> {
        let handle = self.go(|fs| fs.opendir(dir)).await?.handle;
        let found = self.go(|fs| entries_of(fs, handle)).await;
        self.fs.release(handle);
        found
    }

    /// All files that the mount shows. It may follow somebody at that moment: what was replaced since it was listed is
    /// looked up again, as a kernel does.
    async fn view(&self) -> Files {
        for _ in 0..99 {
            match self.view_at_once().await {
                Err(FsError::Stale | FsError::NotFound | FsError::NotDir | FsError::IsDir) => {}
                viewed => return viewed.unwrap(),
            }
        }
        panic!("it changes all the time");
    }

    async fn view_at_once(&self) -> Result<Files, FsError> {
        let (mut files, mut left) = (Files::new(), vec![(String::new(), ROOT)]);
        while let Some((path, dir)) = left.pop() {
            for (name, ino) in self.list(dir).await? {
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                if self.go(|fs| fs.getattr(ino)).await?.format == libc::S_IFDIR {
                    left.push((path, ino));
                } else {
                    let text = self.read(ino).await?;
                    files.insert(path, text);
                }
            }
        }
        Ok(files)
    }

    async fn read(&self, ino: Ino) -> Result<String, FsError> {
        let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
        let handle = self.go(|fs| fs.open(ino, flags)).await?;
        let bytes = self.go(|fs| fs.read(handle, 0, 1 << 16)).await;
        self.fs.release(handle);
        Ok(String::from_utf8(bytes?).unwrap())
    }

    async fn text(&self, path: &str) -> Option<String> {
        let read = match self.find(path).await {
            Ok(ino) => self.read(ino).await,
            Err(error) => Err(error),
        };
        match read {
            Ok(text) => Some(text),
            Err(FsError::NotFound | FsError::NotDir) => None,
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// How many paths could not be staged.
    async fn drain(&self) -> u64 {
        let waiting = self.fs.barrier().unwrap();
        let reached = tokio::time::timeout(STUCK, waiting.reached()).await;
        reached.unwrap_or_else(|_| panic!("a barrier is never reached: {:?}", self.fs.report())).files_failed
    }

    async fn refresh(&self) -> oxenfs::fs::Followed {
        in_time("a refresh", self.fs.follow_branch()).await.unwrap()
    }

    /// As `oxenfs commit` does it. The paths that are in conflict, where it fails.
    async fn commit(&self) -> Result<(), Vec<String>> {
        let mut why = Vec::new();
        for _ in 0..9 {
            if !self.conflicts().is_empty() {
                return Err(self.conflicts());
            }
            let cut = in_time("a cut", self.fs.cut()).await.unwrap();
            let failed = in_time("staging", cut.waiting.reached()).await.files_failed;
            assert!(failed == 0 || !self.conflicts().is_empty(), "{:?}", self.fs.report());
            // The base moved before the cut.
            if failed > 0 {
                return Err(self.conflicts());
            }
            let Some(staged) = self.fs.audit_for_commit().await.unwrap() else {
                why.push("staged otherwise".to_owned());
                continue;
            };
            if !self.fs.stands_on_base().await.unwrap() {
                drop(cut);
                why.push(format!("elsewhere: {:?}", self.refresh().await));
                continue;
            }
            if staged.is_empty() {
                drop(cut);
                self.refresh().await;
                return if self.conflicts().is_empty() { Ok(()) } else { Err(self.conflicts()) };
            }
            let head = self.memory.head("main").await.unwrap();
            if !self.fs.conflicts_with(&head, &[]).await.unwrap().is_empty() {
                drop(cut);
                why.push(format!("conflicts: {:?}", self.refresh().await));
                continue;
            }
            let published = in_time("the commit", finish::publish(&self.fs, &commit_request(), &staged)).await;
            drop(cut);
            match published {
                Ok(Finished::Whole(_)) => return Ok(()),
                // A request of a daemon that was killed came between the last look and the commit, and answers are lost.
                Ok(Finished::Broken { owed: true, what }) => why.push(what),
                published => panic!("not whole: {published:?}"),
            }
        }
        panic!("never committed: {why:?}, {:?}", self.fs.report());
    }

    /// The same in a workspace that others use too: what is in conflict is decided elsewhere. Says whether it was made.
    async fn commit_shared(&self) -> bool {
        for _ in 0..9 {
            if !self.conflicts().is_empty() {
                return false;
            }
            let cut = in_time("a cut", self.fs.cut()).await.unwrap();
            if in_time("staging", cut.waiting.reached()).await.files_failed > 0 {
                return false;
            }
            let Some(staged) = self.fs.audit_for_commit().await.unwrap() else { continue };
            let head = self.memory.head("main").await.unwrap();
            if !self.fs.stands_on_base().await.unwrap() {
                drop(cut);
                self.refresh().await;
                continue;
            }
            let along = self.fs.staged_by_others(&staged);
            if staged.is_empty() || !self.fs.conflicts_with(&head, &along).await.unwrap().is_empty() {
                return false;
            }
            let published = in_time("the commit", finish::publish(&self.fs, &commit_request(), &staged)).await;
            assert!(matches!(published, Ok(Finished::Whole(_))), "not whole: {published:?}");
            return true;
        }
        panic!("never committed: {:?}", self.fs.report());
    }

    fn conflicts(&self) -> Vec<String> {
        self.fs.conflicts().into_iter().map(|path| path.as_str().to_owned()).collect()
    }

    async fn resolve(&self, path: &str, choice: Choice) -> Option<String> {
        let beside = in_time("a decision", self.fs.resolve(&repo_path(path), choice, LABEL)).await.unwrap();
        beside.map(|beside| beside.as_str().to_owned())
    }

    async fn version(&self, path: &str, version: Version) -> Option<String> {
        let file = self.fs.version(&repo_path(path), version).await.unwrap()?;
        Some(std::io::read_to_string(&*file).unwrap())
    }

    fn head(&self) -> Files {
        texts(self.memory.head_tree())
    }

    #[track_caller]
    fn assert_sound(&self) {
        assert_eq!(self.fs.check(), [""; 0]);
    }
}

fn texts(tree: impl IntoIterator<Item = (RepoPath, Bytes)>) -> Files {
    let text = |content: Bytes| String::from_utf8(content.to_vec()).unwrap();
    tree.into_iter().map(|(path, content)| (path.as_str().to_owned(), text(content))).collect()
}

fn tree(files: &[(&str, &str)]) -> Files {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn name_of(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn repo_path(path: &str) -> RepoPath {
    RepoPath::parse(path).unwrap()
}

/// What was owed when the daemon ended was committed by others meanwhile.
#[test]
fn a_conflict_is_there_after_any_number_of_mounts_and_holds_every_commit_and_barrier_back() {
    runtime(1).block_on(async {
        let mut mount = Mount::new(&[("keep", "old"), ("other", "other")]).await;
        mount.stop().await;
        mount.write("keep", "ours").await;
        mount.they(&[("keep", Some("theirs"))]);
        let mut mount = mount.remount().await;
        for _ in 0..2 {
            assert_eq!(mount.conflicts(), ["keep"]);
            assert_eq!(mount.text("keep").await.as_deref(), Some("ours"));
            assert_eq!(mount.version("keep", Version::Theirs).await.as_deref(), Some("theirs"));
            assert_eq!(mount.version("keep", Version::Base).await.as_deref(), Some("old"));
            // Its own path alone is held back, from being staged, and every commit.
            mount.write("own", "own").await;
            assert_eq!(mount.drain().await, 1);
            let failed_by_name = {
                let waiting = mount.fs.barrier_below([repo_path("keep")].into()).unwrap();
                in_time("a barrier", waiting.reached()).await.files_failed
            };
            assert_eq!(failed_by_name, 1);
            assert_eq!(texts(mount.memory.view())["own"], "own");
            assert_eq!(texts(mount.memory.view())["keep"], "theirs");
            let before = mount.head();
            assert_eq!(mount.commit().await, Err(vec!["keep".to_owned()]));
            assert_eq!(mount.head(), before);
            mount.assert_sound();
            mount = mount.remount().await;
        }
        // The branch moves on: theirs is replaced, ours stays.
        mount.they(&[("keep", Some("theirs, again"))]);
        mount.refresh().await;
        assert_eq!(mount.version("keep", Version::Theirs).await.as_deref(), Some("theirs, again"));
        assert_eq!(mount.version("keep", Version::Base).await.as_deref(), Some("old"));
        assert_eq!(mount.resolve("keep", Choice::Ours).await, None);
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[("keep", "ours"), ("other", "other"), ("own", "own")]));
        let mount = mount.remount().await;
        assert_eq!((mount.view().await, mount.conflicts()), (mount.head(), vec![]));
        mount.assert_sound();
    });
}

#[test]
fn what_is_staged_is_judged_too_when_the_workspace_stands_on_another_commit() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("keep", "old"), ("same", "old")]).await;
        mount.write("keep", "ours").await;
        mount.write("same", "alike").await;
        assert_eq!(mount.drain().await, 0);
        mount.they(&[("keep", Some("theirs")), ("same", Some("alike"))]);
        mount.memory.move_workspace();
        let mount = mount.remount().await;
        assert_eq!(mount.conflicts(), ["keep"]);
        mount.assert_sound();
        assert_eq!(mount.commit().await, Err(vec!["keep".to_owned()]));
        assert_eq!(mount.resolve("keep", Choice::Theirs).await, None);
        mount.commit().await.unwrap();
        assert_eq!(mount.view().await, tree(&[("keep", "theirs"), ("same", "alike")]));
        assert_eq!(mount.head(), mount.view().await);
        assert!(mount.fs.staged_paths().is_empty());
    });
}

#[test]
fn a_name_that_was_only_staged_here_does_not_hide_what_others_commit_there() {
    runtime(1).block_on(async {
        for renamed in [false, true] {
            let mount = Mount::new(&[("d/base", "b")]).await;
            mount.write("d/results.csv", "tmp").await;
            assert_eq!(mount.drain().await, 0);
            if renamed {
                mount.try_rename("d/results.csv", "d/other").await.unwrap();
            } else {
                mount.unlink("d/results.csv").await;
            }
            assert_eq!(mount.drain().await, 0);
            mount.they(&[("d/results.csv", Some("theirs"))]);
            mount.commit().await.unwrap();
            assert_eq!(mount.text("d/results.csv").await.as_deref(), Some("theirs"));
            mount.assert_sound();
            let mount = mount.remount().await;
            assert_eq!(mount.text("d/results.csv").await.as_deref(), Some("theirs"));
            mount.try_rename("d", "e").await.unwrap();
            mount.commit().await.unwrap();
            assert_eq!(mount.head()["e/results.csv"], "theirs");
            assert_eq!(mount.head(), mount.view().await);
        }
    });
}

#[test]
fn a_directory_that_is_removed_here_goes_with_what_it_held_and_what_others_added_stays() {
    runtime(1).block_on(async {
        for staged in [false, true] {
            let mount = Mount::new(&[("d/a", "a"), ("d/s/b", "b"), ("d/s/c", "c"), ("x", "x")]).await;
            mount.view().await;
            mount.remove_all("d").await.unwrap();
            if staged {
                assert_eq!(mount.drain().await, 0);
            }
            mount.they(&[("d/s/new", Some("theirs")), ("d/s/c", Some("changed"))]);
            assert_eq!(mount.commit().await, Err(vec!["d/s/c".to_owned()]));
            assert_eq!(mount.view().await, tree(&[("d/s/new", "theirs"), ("x", "x")]));
            let mount = mount.remount().await;
            assert_eq!(mount.view().await, tree(&[("d/s/new", "theirs"), ("x", "x")]));
            mount.resolve("d/s/c", Choice::Theirs).await;
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), tree(&[("d/s/c", "changed"), ("d/s/new", "theirs"), ("x", "x")]));
            assert_eq!(mount.view().await, mount.head());
            mount.assert_sound();
        }
    });
}

#[test]
fn a_file_that_became_a_directory_and_the_reverse_show_as_what_they_are() {
    runtime(1).block_on(async {
        for how in ["refresh", "commit", "own commit", "remount"] {
            let mut mount = Mount::new(&[("f", "file"), ("d/a", "a"), ("d/s/b", "b")]).await;
            mount.view().await;
            mount.they(&[("f/x", Some("in f")), ("d", Some("file now"))]);
            match how {
                "refresh" => _ = mount.refresh().await,
                "commit" => mount.commit().await.unwrap(),
                "remount" => mount = mount.remount().await,
                _ => {
                    mount.write("own", "own").await;
                    mount.commit().await.unwrap();
                }
            }
            assert_eq!(mount.view().await, mount.head(), "{how}");
            mount.assert_sound();
        }
    });
}

#[test]
fn a_change_below_what_others_made_a_file_of_is_one_conflict_and_lost_by_nobody() {
    runtime(1).block_on(async {
        for choice in [Choice::Ours, Choice::Theirs, Choice::KeepBoth] {
            let mount = Mount::new(&[("d/a", "a"), ("d/b", "b")]).await;
            mount.view().await;
            mount.write("d/a", "appended").await;
            mount.write("d/new", "new").await;
            mount.they(&[("d", Some("file now"))]);
            assert_eq!(mount.commit().await, Err(vec!["d".to_owned()]));
            assert_eq!(mount.text("d/a").await.as_deref(), Some("appended"));
            mount.assert_sound();
            let mount = mount.remount().await;
            assert_eq!(mount.conflicts(), ["d"]);
            let beside = mount.resolve("d", choice).await;
            mount.commit().await.unwrap();
            let expected = match choice {
                Choice::Ours => tree(&[("d/a", "appended"), ("d/new", "new")]),
                Choice::Theirs => tree(&[("d", "file now")]),
                Choice::KeepBoth => {
                    let beside = beside.unwrap();
                    assert!(beside.starts_with("d (oxenfs ann@lab 2026-11-30 "), "{beside}");
                    let mut kept = tree(&[("d", "file now")]);
                    kept.insert(format!("{beside}/a"), "appended".into());
                    kept.insert(format!("{beside}/new"), "new".into());
                    kept
                }
            };
            assert_eq!(mount.head(), expected, "{choice:?}");
            assert_eq!(mount.view().await, expected);
            mount.assert_sound();
        }
    });
}

#[test]
fn a_change_of_what_others_made_a_directory_of_is_a_conflict() {
    runtime(1).block_on(async {
        for choice in [Choice::Ours, Choice::Theirs, Choice::KeepBoth] {
            let mount = Mount::new(&[("x.csv", "1\n")]).await;
            mount.write("x.csv", "1\n2\n").await;
            mount.they(&[("x.csv/part", Some("p")), ("x.csv/s/part", Some("q"))]);
            assert_eq!(mount.commit().await, Err(vec!["x.csv".to_owned()]));
            let beside = mount.resolve("x.csv", choice).await;
            assert_eq!(mount.drain().await, 0);
            let theirs = [("x.csv/part", "p"), ("x.csv/s/part", "q")];
            let expected = match choice {
                Choice::Ours => tree(&[("x.csv", "1\n2\n")]),
                Choice::Theirs => tree(&theirs),
                Choice::KeepBoth => {
                    let mut both = tree(&theirs);
                    both.insert(beside.unwrap(), "1\n2\n".into());
                    both
                }
            };
            assert_eq!(mount.view().await, expected, "{choice:?}");
            assert_eq!(texts(mount.memory.view()), expected, "{choice:?}");
            mount.assert_sound();
        }
    });
}

#[test]
fn both_are_kept_under_names_that_tell_them_apart() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("labels.csv", "old")]).await;
        let mut kept = tree(&[]);
        for round in 0..2 {
            mount.write("labels.csv", &format!("ours {round}")).await;
            let theirs = format!("theirs {round}");
            mount.they(&[("labels.csv", Some(&theirs))]);
            // A program that has it open stays with what it has.
            let ino = mount.find("labels.csv").await.unwrap();
            assert_eq!(mount.commit().await, Err(vec!["labels.csv".to_owned()]));
            let beside = mount.resolve("labels.csv", Choice::KeepBoth).await.unwrap();
            assert!(beside.starts_with("labels (oxenfs ann@lab 2026-11-30 ") && beside.ends_with(").csv"), "{beside}");
            assert_eq!(mount.find(&beside).await.unwrap(), ino);
            kept.insert(beside, format!("ours {round}"));
            kept.insert("labels.csv".into(), theirs);
            assert_eq!(mount.view().await, kept);
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), kept);
        }
        mount.assert_sound();
    });
}

#[test]
fn content_of_others_has_new_times_and_an_open_file_waits_for_its_close() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("a", "old"), ("b", "old"), ("c", "old")]).await;
        let mut before = BTreeMap::new();
        for name in ["a", "b", "c"] {
            let ino = mount.find(name).await.unwrap();
            before.insert(name, mount.go(|fs| fs.getattr(ino)).await.unwrap().attrs);
        }
        let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
        let reader = mount.find("b").await.unwrap();
        let reader = mount.go(|fs| fs.open(reader, flags)).await.unwrap();
        let writer = mount.open("c", false).await.unwrap();
        mount.they(&[("a", Some("longer than before")), ("b", Some("theirs")), ("c", Some("theirs"))]);
        assert!(mount.refresh().await.taken.moved);
        let ino = mount.find("a").await.unwrap();
        let now = mount.go(|fs| fs.getattr(ino)).await.unwrap();
        assert_eq!(now.size, 18);
        assert!(now.attrs.mtime != before["a"].mtime && now.attrs.ctime > before["a"].ctime);
        // Whole, and as it was, for all who open it meanwhile.
        assert_eq!(mount.text("b").await.as_deref(), Some("old"));
        mount.fs.release(reader);
        assert_eq!(mount.text("b").await.as_deref(), Some("theirs"));
        // What is written to it is a change of what was read.
        mount.go(|fs| fs.write(writer, 3, b" and appended")).await.unwrap();
        mount.fs.release(writer);
        assert_eq!(mount.conflicts(), ["c"]);
        assert_eq!(mount.text("c").await.as_deref(), Some("old and appended"));
        assert_eq!(mount.version("c", Version::Theirs).await.as_deref(), Some("theirs"));
        mount.assert_sound();
        let mount = mount.remount().await;
        assert_eq!(mount.conflicts(), ["c"]);
        assert_eq!(mount.commit().await, Err(vec!["c".to_owned()]));
    });
}

#[test]
fn an_idle_mount_follows_at_a_commit_of_nothing_and_keeps_what_is_staged_when_it_is_refreshed() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mount = Mount::on(by_hash, &[("a", "a"), ("gone", "g")]).await;
            mount.view().await;
            mount.they(&[("a", Some("theirs")), ("new/x", Some("x")), ("gone", None)]);
            assert_eq!(mount.view().await, tree(&[("a", "a"), ("gone", "g")]), "not by itself");
            mount.commit().await.unwrap();
            assert_eq!(mount.view().await, mount.head());
            mount.write("own", "staged").await;
            assert_eq!(mount.drain().await, 0);
            mount.try_rename("own", "moved").await.unwrap();
            mount.they(&[("a", Some("again"))]);
            let followed = mount.refresh().await;
            assert!(followed.taken.moved && followed.stays.is_none() && followed.taken.conflicts == 0);
            assert_eq!(mount.drain().await, 0);
            let expected = tree(&[("a", "again"), ("moved", "staged"), ("new/x", "x")]);
            assert_eq!(mount.view().await, expected);
            assert_eq!(texts(mount.memory.view()), expected, "staged again");
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), expected);
            mount.assert_sound();
        }
    });
}

#[test]
fn what_the_server_has_in_the_workspace_alone_is_here_before_that_is_replaced() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mount = Mount::on(by_hash, &[("a", "a"), ("kept", "k")]).await;
            mount.view().await;
            mount.write("own", "staged").await;
            mount.write("old", "renamed").await;
            mount.write("a", "also the branch's").await;
            assert_eq!(mount.drain().await, 0);
            let mount = mount.without_copies().await;
            mount.try_rename("old", "new").await.unwrap();
            assert_eq!(mount.drain().await, 0);
            mount.memory.keep_in_workspace();
            mount.they(&[("kept", Some("theirs")), ("a", Some("also the branch's"))]);
            let followed = mount.refresh().await;
            assert!(followed.taken.moved && followed.stays.is_none(), "{followed:?}");
            assert_eq!(mount.drain().await, 0, "{:?}", mount.fs.report().2);
            let expected =
                tree(&[("a", "also the branch's"), ("kept", "theirs"), ("new", "renamed"), ("own", "staged")]);
            assert_eq!(mount.view().await, expected);
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), expected);
            mount.assert_sound();
        }
    });
}

/// To refuse would help nobody: the file is named where it is to be staged again.
#[test]
fn what_the_server_lost_and_is_not_here_keeps_no_mount_from_following_its_branch() {
    runtime(1).block_on(async {
        let mount = Mount::on(ByHash::Single, &[("a", "a")]).await;
        mount.write("own", "staged").await;
        mount.write("lost", "pruned").await;
        assert_eq!(mount.drain().await, 0);
        let mount = mount.without_copies().await;
        mount.memory.prune();
        mount.write("later", "l").await;
        assert_eq!(mount.drain().await, 0);
        mount.they(&[("a", Some("theirs"))]);
        // One that does not answer is no server that lost something: nothing is changed.
        mount.memory.set_fault(|request| match request {
            "fetch" => Fault::Refused(503),
            _ => Fault::None,
        });
        assert!(mount.fs.follow_branch().await.is_err());
        mount.memory.forget_faults();
        assert_eq!(mount.memory.changes().await.unwrap().len(), 3);
        assert!(mount.refresh().await.taken.moved);
        assert_eq!(mount.text("a").await.as_deref(), Some("theirs"));
        assert_eq!(mount.drain().await, 2);
        let named: Vec<String> = mount.fs.report().2.into_iter().map(|error| error.path).collect();
        assert_eq!(named.into_iter().collect::<BTreeSet<_>>(), ["lost", "own"].map(str::to_owned).into());
        assert_eq!(texts(mount.memory.view()), tree(&[("a", "theirs"), ("later", "l")]));
    });
}

#[test]
fn a_workspace_that_others_use_is_never_replaced() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("a", "a")]).await;
        mount.memory.share_workspace();
        mount.write("own", "staged").await;
        assert_eq!(mount.drain().await, 0);
        mount.they(&[("a", Some("theirs"))]);
        assert_eq!(mount.refresh().await.stays, Some(Stays::Shared));
        assert_eq!(texts(mount.memory.view()), tree(&[("a", "a"), ("own", "staged")]));
        let other = Mount::new(&[("a", "a")]).await;
        other.they(&[("a", Some("theirs"))]);
        other.memory.stage_foreign(repo_path("b"), Some(Bytes::from_static(b"by hand")));
        assert_eq!(other.refresh().await.stays, Some(Stays::Foreign));
        assert_eq!(texts(other.memory.view())["b"], "by hand");
    });
}

#[test]
fn removals_and_edits_that_meet_are_conflicts_and_a_rename_is_hinted() {
    runtime(1).block_on(async {
        let base = [("edited", "old"), ("removed", "old"), ("renamed", "content")];
        let mount = Mount::new(&base).await;
        mount.write("edited", "ours").await;
        mount.unlink("removed").await;
        mount.try_rename("renamed", "d/to").await.unwrap();
        mount.they(&[("edited", None), ("removed", Some("theirs")), ("renamed", Some("theirs"))]);
        mount.refresh().await;
        let told: Vec<(String, String)> =
            mount.fs.told_conflicts(9).into_iter().map(|one| (one.path, one.what)).collect();
        let expected = [
            ("edited", "was changed here and removed on the branch"),
            ("removed", "was removed here and changed on the branch"),
            ("renamed", "was renamed to d/to here and changed on the branch"),
        ];
        assert_eq!(told, expected.map(|(path, what)| (path.to_owned(), what.to_owned())));
        assert_eq!(mount.view().await, tree(&[("d/to", "content"), ("edited", "ours")]));
        // What is removed on both sides is decided by that.
        mount.unlink("edited").await;
        assert_eq!(mount.conflicts(), ["removed", "renamed"]);
        mount.resolve("removed", Choice::KeepBoth).await;
        mount.resolve("renamed", Choice::Ours).await;
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[("d/to", "content"), ("removed", "theirs")]));
        assert_eq!(mount.view().await, mount.head());
        mount.assert_sound();
    });
}

/// What is taken from the branch shows after any number of mounts, in whatever became of its directory here.
#[test]
fn what_the_branch_has_shows_in_a_directory_that_was_removed_here_or_made_again() {
    runtime(1).block_on(async {
        for made_again in [false, true] {
            for remounted in [false, true] {
                let mount = Mount::new(&[("e/a", "a"), ("e/b", "b"), ("x", "x")]).await;
                mount.remove_all("e").await.unwrap();
                mount.they(&[("e/a", Some("theirs"))]);
                assert_eq!(mount.commit().await, Err(vec!["e/a".to_owned()]));
                assert_eq!(mount.view().await, tree(&[("x", "x")]));
                if made_again {
                    mount.write("e/own", "own").await;
                }
                let mut mount = if remounted { mount.remount().await } else { mount };
                mount.resolve("e/a", Choice::Theirs).await;
                let mut expected = tree(&[("e/a", "theirs"), ("x", "x")]);
                expected.extend(made_again.then(|| ("e/own".to_owned(), "own".to_owned())));
                for _ in 0..3 {
                    assert_eq!(mount.view().await, expected, "again: {made_again}, remounted: {remounted}");
                    assert_eq!(mount.drain().await, 0);
                    assert_eq!(texts(mount.memory.view()), expected);
                    mount.assert_sound();
                    mount = mount.remount().await;
                }
                mount.they(&[("e/a", Some("theirs, again")), ("e/new", Some("new"))]);
                mount.refresh().await;
                expected.extend(tree(&[("e/a", "theirs, again"), ("e/new", "new")]));
                for _ in 0..2 {
                    assert_eq!(mount.view().await, expected, "again: {made_again}, remounted: {remounted}");
                    mount.assert_sound();
                    mount = mount.remount().await;
                }
                mount.commit().await.unwrap();
                assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
            }
        }
    });
}

#[test]
fn a_directory_that_was_made_again_here_shows_nothing_of_before_when_the_base_moves_elsewhere() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("e/a", "a"), ("e/s/b", "b"), ("x", "x")]).await;
        mount.remove_all("e").await.unwrap();
        mount.write("e/own", "own").await;
        mount.they(&[("x", Some("theirs"))]);
        mount.refresh().await;
        let expected = tree(&[("e/own", "own"), ("x", "theirs")]);
        let mut mount = mount;
        for _ in 0..2 {
            assert_eq!(mount.view().await, expected);
            assert_eq!(mount.drain().await, 0);
            assert_eq!(texts(mount.memory.view()), expected);
            mount.assert_sound();
            mount = mount.remount().await;
        }
        mount.commit().await.unwrap();
        assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
    });
}

#[test]
fn a_file_that_replaced_a_directory_in_which_others_changed_something_is_one_conflict() {
    runtime(1).block_on(async {
        for (choice, added) in [Choice::Ours, Choice::Theirs, Choice::KeepBoth]
            .into_iter()
            .flat_map(|choice| [(choice, false), (choice, true)])
        {
            let mount = Mount::new(&[("e/a", "a"), ("e/s/b", "b"), ("x", "x")]).await;
            mount.remove_all("e").await.unwrap();
            mount.write("e", "ours").await;
            let mut theirs = tree(&[("e/a", "theirs"), ("e/s/b", "b"), ("x", "x")]);
            mount.they(&[("e/a", Some("theirs"))]);
            if added {
                mount.they(&[("e/s/new", Some("new"))]);
                theirs.insert("e/s/new".into(), "new".into());
            }
            assert_eq!(mount.commit().await, Err(vec!["e".to_owned()]));
            assert_eq!(mount.view().await, tree(&[("e", "ours"), ("x", "x")]));
            mount.assert_sound();
            let mount = mount.remount().await;
            let beside = mount.resolve("e", choice).await;
            let expected = match choice {
                Choice::Ours => tree(&[("e", "ours"), ("x", "x")]),
                Choice::Theirs => theirs,
                Choice::KeepBoth => {
                    theirs.insert(beside.unwrap(), "ours".into());
                    theirs
                }
            };
            assert_eq!(mount.view().await, expected, "{choice:?}, {added}");
            let mount = mount.remount().await;
            assert_eq!(mount.view().await, expected, "{choice:?}, {added}");
            mount.assert_sound();
            mount.commit().await.unwrap();
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
        }
    });
}

#[test]
fn a_file_that_was_made_where_the_directory_of_a_conflict_was_is_in_the_way_until_it_is_moved() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("e/a", "a"), ("x", "x")]).await;
        mount.remove_all("e").await.unwrap();
        mount.they(&[("e/a", Some("theirs"))]);
        mount.refresh().await;
        mount.write("e", "ours").await;
        for choice in [Choice::Theirs, Choice::KeepBoth] {
            let refused = in_time("a decision", mount.fs.resolve(&repo_path("e/a"), choice, LABEL)).await;
            assert!(matches!(refused, Err(FsError::NotDir)), "{refused:?}");
        }
        assert_eq!(mount.conflicts(), ["e/a"]);
        mount.try_rename("e", "f").await.unwrap();
        mount.resolve("e/a", Choice::Theirs).await;
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[("e/a", "theirs"), ("f", "ours"), ("x", "x")]));
        assert_eq!(mount.view().await, mount.head());
        mount.assert_sound();
    });
}

#[test]
fn who_removes_the_file_that_is_in_conflict_with_a_directory_has_not_decided_about_that() {
    runtime(1).block_on(async {
        for (choice, moved) in
            [Choice::Ours, Choice::Theirs].into_iter().flat_map(|choice| [(choice, false), (choice, true)])
        {
            let mount = Mount::new(&[("e/a", "a"), ("e/b", "b"), ("x", "x")]).await;
            mount.remove_all("e").await.unwrap();
            mount.write("e", "ours").await;
            mount.they(&[("e/a", Some("theirs"))]);
            assert_eq!(mount.commit().await, Err(vec!["e".to_owned()]));
            mount.unlink("e").await;
            if moved {
                mount.they(&[("e/b", None)]);
                mount.refresh().await;
            }
            let mount = mount.remount().await;
            assert_eq!((mount.conflicts(), mount.view().await), (vec!["e".to_owned()], tree(&[("x", "x")])));
            mount.assert_sound();
            mount.resolve("e", choice).await;
            let mut expected = tree(&[("x", "x")]);
            if choice == Choice::Theirs {
                expected = mount.head();
            }
            assert_eq!(mount.view().await, expected, "{choice:?}, {moved}");
            mount.commit().await.unwrap();
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
            mount.assert_sound();
        }
    });
}

/// A directory's removal would take along what others have in it, of which nobody knows here as long as a file hides it.
#[test]
fn what_was_removed_below_a_conflict_is_sent_when_that_is_decided() {
    for choice in [Choice::Ours, Choice::Theirs, Choice::KeepBoth] {
        runtime(2).block_on(async {
            let mount = Mount::new(&[("e/a", "old"), ("x", "x")]).await;
            mount.remove_all("e").await.unwrap();
            mount.write("e", "ours").await;
            mount.drain().await;
            mount.they(&[("e/s/new", Some("theirs"))]);
            mount.refresh().await;
            assert_eq!(mount.conflicts(), ["e"]);
            assert_eq!(mount.drain().await, 2);
            assert_eq!(texts(mount.memory.view()), tree(&[("e/a", "old"), ("e/s/new", "theirs"), ("x", "x")]));
            let mount = mount.remount().await;
            let beside = mount.resolve("e", choice).await;
            let mut expected = mount.head();
            match choice {
                Choice::Ours => expected = tree(&[("e", "ours"), ("x", "x")]),
                Choice::Theirs => {}
                Choice::KeepBoth => drop(expected.insert(beside.unwrap(), "ours".into())),
            }
            mount.commit().await.unwrap();
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected), "{choice:?}");
            mount.assert_sound();
        });
    }
}

#[test]
fn a_directory_that_was_removed_leaves_in_the_commit_what_is_in_conflict_in_it() {
    runtime(2).block_on(async {
        for choice in [Choice::Ours, Choice::Theirs] {
            let mount = Mount::new(&[("d/a", "a"), ("d/s", "old"), ("x", "x")]).await;
            mount.write("d/s", "ours").await;
            mount.drain().await;
            mount.they(&[("d/s/new", Some("theirs"))]);
            mount.refresh().await;
            mount.remove_all("d").await.unwrap();
            assert_eq!((mount.drain().await, mount.conflicts()), (1, vec!["d/s".to_owned()]));
            assert_eq!(texts(mount.memory.view()), tree(&[("d/s/new", "theirs"), ("x", "x")]));
            mount.resolve("d/s", choice).await;
            mount.commit().await.unwrap();
            let theirs = tree(&[("d/s/new", "theirs"), ("x", "x")]);
            let expected = if choice == Choice::Ours { tree(&[("x", "x")]) } else { theirs };
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected), "{choice:?}");
            mount.assert_sound();
        }
    });
}

#[test]
fn what_others_have_in_a_directory_that_was_made_again_here_shows_once_it_is_decided_for_them() {
    runtime(2).block_on(async {
        for choice in [Choice::Theirs, Choice::KeepBoth] {
            let mount = Mount::new(&[("e/s/a", "a"), ("x", "x")]).await;
            mount.remove_all("e/s").await.unwrap();
            mount.write("e/s", "ours").await;
            mount.they(&[("e/s/a", Some("theirs")), ("e/s/b", Some("theirs"))]);
            mount.refresh().await;
            mount.unlink("e/s").await;
            mount.write("e/s/a", "ours").await;
            mount.write("e/s/b", "ours").await;
            assert_eq!(mount.conflicts(), ["e/s"]);
            mount.drain().await;
            let beside = mount.resolve("e/s", choice).await;
            let mut expected = mount.head();
            if let Some(beside) = beside {
                expected.extend(["a", "b"].map(|name| (format!("{beside}/{name}"), "ours".to_owned())));
            }
            assert_eq!(mount.view().await, expected, "{choice:?}");
            mount.commit().await.unwrap();
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected), "{choice:?}");
            mount.assert_sound();
        }
    });
}

/// What was asked of a workspace that went is in doubt, and a request about it is due: that alone removes nothing.
#[test]
fn what_others_have_where_something_was_removed_before_shows_though_a_request_about_it_is_due() {
    runtime(2).block_on(async {
        for deleted in [false, true] {
            let mount = Mount::new(&[("d/b", "b"), ("d/s", "s"), ("x", "x")]).await;
            mount.remove_all("d").await.unwrap();
            mount.write("d", "ours").await;
            mount.drain().await;
            mount.they(&[("d/b", None), ("d/s/a", Some("theirs"))]);
            mount.memory.remake_on_head();
            if deleted {
                mount.memory.delete_workspace()
            } else {
                mount.memory.remake_workspace()
            }
            assert_eq!(mount.commit().await, Err(vec!["d".to_owned()]));
            let beside = mount.resolve("d", Choice::KeepBoth).await.unwrap();
            let expected = tree(&[(&beside, "ours"), ("d/s/a", "theirs"), ("x", "x")]);
            assert_eq!(mount.view().await, expected);
            mount.commit().await.unwrap();
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
            mount.assert_sound();
        }
    });
}

#[test]
fn nothing_is_written_to_a_file_that_others_removed_since_it_was_looked_up() {
    runtime(1).block_on(async {
        for truncate in [false, true] {
            let mount = Mount::new(&[("a", "old"), ("x", "x")]).await;
            let name = name_of("a");
            let found = mount.go(|fs| fs.lookup(ROOT, &name)).await.unwrap();
            mount.they(&[("a", None)]);
            mount.refresh().await;
            let flags = OpenFlags { read: true, write: true, truncate, execute: false };
            let opened = mount.go(|fs| fs.open(found.ino, flags)).await;
            assert!(matches!(opened, Err(FsError::Stale)), "{opened:?}");
            mount.fs.forget(found.ino, 1);
            mount.write("a", "ours").await;
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), tree(&[("a", "ours"), ("x", "x")]));
        }
    });
}

/// Without anybody else's doing in the workspace itself.
#[test]
fn what_was_staged_here_and_removed_is_in_conflict_with_the_same_of_another_client() {
    runtime(2).block_on(async {
        let mount = Mount::new(&[("a", "old"), ("x", "x")]).await;
        mount.write("a", "same").await;
        mount.drain().await;
        mount.they(&[("a", Some("same"))]);
        mount.unlink("a").await;
        mount.drain().await;
        let head = mount.head();
        assert_eq!(mount.commit().await, Err(vec!["a".to_owned()]));
        assert_eq!(mount.head(), head);
        mount.resolve("a", Choice::Ours).await;
        mount.commit().await.unwrap();
        assert_eq!((mount.head(), mount.view().await), (tree(&[("x", "x")]), tree(&[("x", "x")])));
        mount.assert_sound();
    });
}

#[test]
fn a_file_in_conflict_with_a_directory_is_so_until_it_is_decided_however_the_branch_moves() {
    runtime(2).block_on(async {
        let mount = Mount::new(&[("e/a", "a"), ("x", "x")]).await;
        mount.remove_all("e").await.unwrap();
        mount.write("e", "ours").await;
        mount.they(&[("e/s", Some("theirs"))]);
        for round in 0..3 {
            mount.refresh().await;
            assert_eq!(mount.conflicts(), ["e"], "after {round} more");
            mount.they(&[("x", Some(&format!("{round}")))]);
        }
        let beside = mount.resolve("e", Choice::KeepBoth).await.unwrap();
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[(&beside, "ours"), ("e/a", "a"), ("e/s", "theirs"), ("x", "2")]));
        assert_eq!(mount.view().await, mount.head());
        mount.assert_sound();
    });
}

#[test]
fn nothing_is_sent_to_a_workspace_that_was_made_anew_elsewhere_before_the_mount_has_followed() {
    runtime(2).block_on(async {
        for (by_others, commits) in [(false, false), (false, true), (true, false), (true, true)] {
            let mount = Mount::new(&[("d/a", "a"), ("x", "x")]).await;
            assert_eq!(mount.view().await, mount.head());
            mount.write("x", "staged before").await;
            mount.drain().await;
            mount.they(&[("d/new", Some("theirs")), ("f/new", Some("theirs"))]);
            mount.memory.remake_on_head();
            if by_others {
                mount.memory.remake_workspace()
            } else {
                mount.memory.delete_workspace()
            }
            mount.remove_all("d").await.unwrap();
            mount.write("f", "ours").await;
            if !commits {
                mount.drain().await;
            }
            assert_eq!(mount.commit().await, Err(vec!["f".to_owned()]));
            mount.resolve("f", Choice::Theirs).await;
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), tree(&[("d/new", "theirs"), ("f/new", "theirs"), ("x", "staged before")]));
            assert_eq!(mount.view().await, mount.head());
            mount.assert_sound();
        }
    });
}

/// The workspace shows the base again, where a file of the cut is to be: its directory's files were removed before the cut.
#[test]
fn a_commit_whose_workspace_went_is_cut_again_where_the_first_cut_lacks_what_is_in_its_way() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let mount = Mount::on(by_hash, &[("d/a", "a"), ("x", "x")]).await;
            mount.remove_all("d").await.unwrap();
            mount.write("d", "staged before").await;
            mount.drain().await;
            mount.write("d", "in the cut").await;
            mount.memory.delete_workspace();
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), tree(&[("d", "in the cut"), ("x", "x")]));
            mount.assert_sound();
        }
    });
}

/// While the workspace is made again nothing is sent, and it is not known on which commit it will stand.
#[test]
fn a_cut_that_was_made_while_the_workspace_was_made_again_passes_for_no_commit_of_nothing() {
    runtime(2).block_on(async {
        let mount = Mount::new(&[("x", "old")]).await;
        let (arrived, mut reopening) = tokio::sync::mpsc::unbounded_channel();
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        let first = std::sync::Mutex::new(Some(waits));
        mount.memory.set_witness(Arc::new(move |request| {
            if request == "reopen"
                && let Some(waits) = first.lock().unwrap().take()
            {
                arrived.send(()).unwrap();
                waits.recv().unwrap();
            }
        }));
        mount.memory.delete_workspace();
        let fs = mount.fs.clone();
        let look = tokio::spawn(async move { fs.find_workspace().await });
        in_time("the workspace to be missed", reopening.recv()).await.unwrap();
        mount.write("x", "new").await;
        let cut = in_time("a cut", mount.fs.cut()).await.unwrap();
        in_time("it to be given up", cut.waiting.reached()).await;
        go_on.send(()).unwrap();
        assert!(look.await.unwrap().unwrap());
        assert!(mount.fs.audit_for_commit().await.unwrap().is_none());
        drop(cut);
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[("x", "new")]));
        mount.assert_sound();
    });
}

/// What somebody else staged in a shared workspace, and took back, goes from the view of a mount that showed it.
#[test]
fn what_others_took_back_of_a_shared_workspace_does_not_become_ours() {
    runtime(1).block_on(async {
        for (mounted, other) in [(true, false), (false, false), (false, true)] {
            let memory = Arc::new(Memory::new(ByHash::Batch));
            memory.set_base(
                tree(&[("a", "a"), ("b", "b")]).into_iter().map(|(p, t)| (repo_path(&p), t.into())).collect(),
            );
            memory.share_workspace();
            for (path, text) in [("a", Some("other a")), ("b", None), ("new/c", Some("other c"))] {
                memory.stage_foreign(repo_path(path), text.map(Bytes::from));
            }
            let mut mount = Mount::start(temporary_dir(), memory.clone()).await;
            assert_eq!(mount.view().await, tree(&[("a", "other a"), ("new/c", "other c")]));
            memory.stage_foreign(repo_path("a"), Some("other a, again".into()));
            memory.stage_foreign(repo_path("new/d"), Some("other d".into()));
            mount.refresh().await;
            let all = tree(&[("a", "other a, again"), ("new/c", "other c"), ("new/d", "other d")]);
            assert_eq!(mount.view().await, all);
            memory.unstage_foreign(&repo_path("new/d"));
            mount.write("ours", "ours").await;
            mount.drain().await;
            for path in ["a", "b", "new/c"] {
                memory.unstage_foreign(&repo_path(path));
            }
            if mounted {
                assert!(mount.fs.audit().await.unwrap(), "nothing differs");
                assert!(!mount.fs.audit().await.unwrap(), "it differs again");
            } else if other {
                // In a workspace of one's own nothing is staged of theirs.
                mount = mount.remount_in(Arc::new(memory.beside())).await;
            } else {
                mount = mount.remount().await;
            }
            assert_eq!(mount.drain().await, 0);
            let left = tree(&[("a", "a"), ("b", "b"), ("ours", "ours")]);
            assert_eq!(mount.view().await, left, "mounted: {mounted}, elsewhere: {other}");
            assert_eq!(texts(mount.memory.view()), left);
            mount.assert_sound();
        }
    });
}

/// What others staged in a shared workspace is replaced by them between a look and a reader.
#[test]
fn what_others_replaced_in_a_shared_workspace_is_read_as_it_is_by_now() {
    runtime(1).block_on(async {
        let memory = Arc::new(Memory::new(ByHash::Batch));
        memory.set_base([(repo_path("a"), "a".into())].into());
        memory.share_workspace();
        let mount = Mount::start(temporary_dir(), memory.clone()).await;
        memory.stage_foreign(repo_path("a"), Some("their first".into()));
        memory.stage_foreign(repo_path("b"), Some("of them".into()));
        mount.refresh().await;
        memory.stage_foreign(repo_path("a"), Some("their second, which is longer".into()));
        memory.stage_foreign(repo_path("b"), Some("shorter".into()));
        // Servers that give content by its hash have what they looked at.
        memory.lose(b"their first");
        memory.lose(b"of them");
        // At which the kernel looks the name up again.
        let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
        let before = mount.find("a").await.unwrap();
        assert!(matches!(mount.go(|fs| fs.open(before, flags)).await, Err(FsError::Stale)));
        let expected = tree(&[("a", "their second, which is longer"), ("b", "shorter")]);
        assert_eq!(mount.view().await, expected);
        assert_eq!(mount.drain().await, 0);
        assert_eq!(texts(mount.memory.view()), expected);
    });
}

/// What a mount shows of others in a shared workspace is what it saw last, and not what a commit is to hold.
#[test]
fn a_commit_takes_along_what_others_stage_at_that_moment_and_nobody_undoes_it() {
    runtime(1).block_on(async {
        for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
            let memory = Arc::new(Memory::new(by_hash));
            memory.set_base(
                tree(&[("a", "a"), ("b", "b")]).into_iter().map(|(p, t)| (repo_path(&p), t.into())).collect(),
            );
            memory.share_workspace();
            memory.stage_foreign(repo_path("a"), Some("other 1".into()));
            let mount = Mount::start(temporary_dir(), memory.clone()).await;
            assert_eq!(mount.text("a").await.as_deref(), Some("other 1"));
            mount.write("ours", "ours").await;
            let other = Arc::downgrade(&memory);
            memory.set_witness(Arc::new(move |request| {
                if request == "commit"
                    && let Some(memory) = other.upgrade()
                {
                    memory.stage_foreign(repo_path("a"), Some("other 2".into()));
                }
            }));
            assert!(mount.commit_shared().await);
            let expected = tree(&[("a", "other 2"), ("b", "b"), ("ours", "ours")]);
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected.clone()));
            assert_eq!(mount.drain().await, 0);
            assert_eq!(texts(memory.view()), expected, "something is staged again");
            let mount = mount.remount().await;
            assert_eq!(mount.view().await, expected);
            mount.assert_sound();
        }
    });
}

/// Others removed a file, and here its name became a directory: what others take back does not take that along.
#[test]
fn what_others_take_back_costs_nothing_that_is_in_its_place_here() {
    runtime(1).block_on(async {
        for elsewhere in [false, true] {
            let memory = Arc::new(Memory::new(ByHash::Batch));
            memory.set_base(
                tree(&[("a", "a"), ("e", "e")]).into_iter().map(|(p, t)| (repo_path(&p), t.into())).collect(),
            );
            memory.share_workspace();
            memory.stage_foreign(repo_path("e"), None);
            let mut mount = Mount::start(temporary_dir(), memory.clone()).await;
            mount.write("e/a", "ours").await;
            mount.drain().await;
            let expected = tree(&[("a", "a"), ("e/a", "ours")]);
            if elsewhere {
                mount = mount.remount_in(Arc::new(memory.beside())).await;
            } else {
                memory.unstage_foreign(&repo_path("e"));
                mount.fs.audit().await.unwrap();
            }
            assert_eq!(mount.view().await, expected);
            mount.assert_sound();
            assert_eq!(mount.drain().await, 0);
            mount = mount.remount().await;
            assert_eq!(mount.view().await, expected, "elsewhere: {elsewhere}");
            if elsewhere {
                mount.commit().await.unwrap();
                assert_eq!(mount.head(), expected);
            }
            mount.assert_sound();
        }
    });
}

/// A file of the branch is where a directory is here, with what was staged in another workspace in it.
#[test]
fn what_is_staged_in_a_workspace_that_is_left_is_not_lost_to_a_file_in_its_directorys_place() {
    runtime(1).block_on(async {
        for (shared, committed) in [(false, false), (true, false), (false, true), (true, true)] {
            for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
                let memory = Arc::new(Memory::new(by_hash));
                memory.set_base(tree(&[("a", "a")]).into_iter().map(|(p, t)| (repo_path(&p), t.into())).collect());
                if shared {
                    memory.share_workspace();
                }
                let mount = Mount::start(temporary_dir(), memory.clone()).await;
                if committed {
                    mount.write("e/a", "before").await;
                    assert!(mount.commit_shared().await);
                }
                mount.write("e/a", "ours").await;
                mount.drain().await;
                mount.they(&[("e", Some("theirs"))]);
                let mount = mount.remount_in(Arc::new(memory.beside())).await;
                assert_eq!(mount.conflicts(), ["e"], "{shared}, {committed}, {by_hash:?}");
                assert_eq!(mount.view().await, tree(&[("a", "a"), ("e/a", "ours")]));
                mount.assert_sound();
            }
        }
    });
}

/// What others add to a directory that was renamed here to its name shows, now and at the next mount.
#[test]
fn what_others_add_under_the_new_name_of_a_directory_shows_after_a_remount() {
    runtime(1).block_on(async {
        for case in 0..16 {
            let is = |bit: u8| case >> bit & 1 == 1;
            let mut mount = Mount::new(&[("d/a", "a"), ("d/b", "b"), ("x", "x")]).await;
            if is(3) {
                // What the base had there is hidden, under the old name.
                mount.try_rename("d/b", "d/c").await.unwrap();
            }
            mount.try_rename("d", "e").await.unwrap();
            if is(0) {
                mount.drain().await;
            }
            let name = if is(3) { "e/b" } else { "e/c" };
            mount.they(&[(name, Some("theirs"))]);
            if is(1) {
                mount.write("d/a", "new").await;
            }
            mount.refresh().await;
            if is(2) {
                mount.drain().await;
            }
            let view = mount.view().await;
            assert_eq!(view[name], "theirs");
            mount = mount.remount().await;
            assert_eq!(mount.view().await, view, "case {case:b}");
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), view, "case {case:b}");
            mount.assert_sound();
        }
    });
}

/// A file that others put in the place of a directory which was removed here, and made again, shows at the next mount too.
#[test]
fn a_file_in_the_place_of_a_directory_that_was_made_again_here_shows_after_a_remount() {
    runtime(1).block_on(async {
        for drained in [false, true] {
            let mount = Mount::new(&[("d/a", "a"), ("x", "x")]).await;
            mount.try_rename("d", "b").await.unwrap();
            mount.make_above("d/nothing").await.unwrap();
            if drained {
                mount.drain().await;
            }
            mount.they(&[("d", Some("theirs"))]);
            mount.refresh().await;
            let view = tree(&[("b/a", "a"), ("d", "theirs"), ("x", "x")]);
            assert_eq!(mount.view().await, view);
            let mount = mount.remount().await;
            assert_eq!(mount.view().await, view, "drained: {drained}");
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), view, "drained: {drained}");
            mount.assert_sound();
        }
    });
}

/// Random work of a mount and of somebody who commits from elsewhere.
struct Pair {
    mount: Option<Mount>,
    rng: fastrand::Rng,
    /// What this mount wrote and did not remove or replace itself, by content; each is unique.
    alive: BTreeSet<String>,
    /// All content that the branch ever had.
    history: BTreeSet<String>,
    written: u32,
    done: Vec<String>,
}

const PATHS: [&str; 9] = ["a", "b", "d", "d/a", "d/b", "d/s", "d/s/a", "e/a", "e"];

/// What was done until something failed.
impl Drop for Pair {
    #[expect(clippy::print_stderr, reason = "the test harness shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}", self.done);
        }
    }
}

impl Pair {
    async fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let by_hash = [ByHash::Never, ByHash::Batch, ByHash::Single][rng.usize(..3)];
        let mount = Mount::on(by_hash, &[("a", "base a"), ("d/a", "base d/a"), ("d/s/a", "base d/s/a")]).await;
        let history = mount.head().into_values().collect();
        let (alive, done) = (BTreeSet::new(), vec![format!("seed {seed}, {by_hash:?}")]);
        Self { mount: Some(mount), rng, alive, history, written: 0, done }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    fn path(&mut self) -> &'static str {
        PATHS[self.rng.usize(..PATHS.len())]
    }

    fn fresh(&mut self, who: &str) -> String {
        self.written += 1;
        format!("{who} {}", self.written)
    }

    async fn step(&mut self) {
        let before = self.mount().view().await;
        match self.rng.u8(..24) {
            0..=5 => {
                let (path, text) = (self.path(), self.fresh("ours"));
                self.done.push(format!("write {path} {text}"));
                if self.mount().try_write(path, &text).await.is_ok() {
                    self.alive.insert(text);
                }
                self.bury(&before).await;
            }
            6 | 7 => {
                let path = self.path();
                self.done.push(format!("remove {path}"));
                let _ = self.mount().remove_all(path).await;
                self.bury(&before).await;
            }
            8..=10 => {
                let (from, to) = (self.path(), self.path());
                self.done.push(format!("rename {from} {to}"));
                let _ = self.mount().try_rename(from, to).await;
                self.bury(&before).await;
            }
            11..=15 => {
                let (path, text) = (self.path(), self.fresh("theirs"));
                let text = (self.rng.u8(..3) > 0).then_some(text);
                self.done.push(format!("they {path} {text:?}"));
                self.mount().they(&[(path, text.as_deref())]);
                // Nothing of that shows yet.
                assert_eq!(self.mount().view().await, before);
            }
            16 | 17 => {
                self.done.push("commit".into());
                self.commit().await;
            }
            18 | 19 => {
                self.done.push("refresh".into());
                self.mount().refresh().await;
            }
            20 => {
                self.done.push("drain".into());
                self.mount().drain().await;
            }
            21 => {
                self.done.push("remount".into());
                let mount = self.mount.take().expect("mounted").remount().await;
                self.mount = Some(mount);
            }
            _ => {
                let choice = [Choice::Ours, Choice::Theirs, Choice::KeepBoth][self.rng.usize(..3)];
                if let Some(path) = self.mount().conflicts().first().cloned() {
                    self.done.push(format!("resolve {path} {choice:?}"));
                    if self.decide(&path, choice).await == Choice::Theirs {
                        self.bury(&before).await;
                    }
                }
            }
        }
        self.history.extend(self.mount().head().into_values());
        let view = self.mount().view().await;
        let shown: BTreeSet<&String> = view.values().collect();
        let lost = self.alive.iter().find(|text| !shown.contains(text) && !self.history.contains(*text));
        assert_eq!(lost, None);
        assert_eq!(self.mount().fs.check(), [""; 0]);
    }

    /// What this mount itself removed or replaced is nobody's loss.
    async fn bury(&mut self, before: &Files) {
        let after: BTreeSet<String> = self.mount().view().await.into_values().collect();
        before.values().filter(|text| !after.contains(*text)).for_each(|text| {
            self.alive.remove(text);
        });
    }

    /// A commit is what the branch has where others changed it since the base, and what is here elsewhere.
    async fn commit(&mut self) {
        let mount = self.mount();
        let (base, head, view) = (texts(mount.memory.base_tree()), mount.head(), mount.view().await);
        let held = mount.conflicts();
        match mount.commit().await {
            Err(conflicts) => {
                assert!(!conflicts.is_empty());
                assert_eq!(mount.head(), head);
            }
            Ok(()) => {
                assert_eq!(held, [""; 0]);
                let mut merged = Files::new();
                for path in base.keys().chain(head.keys()).chain(view.keys()) {
                    let side = if base.get(path) == head.get(path) { &view } else { &head };
                    merged.extend(side.get(path).map(|text| (path.clone(), text.clone())));
                }
                assert_eq!(mount.head(), merged);
                assert_eq!(mount.view().await, merged);
            }
        }
    }

    /// Decides a conflict; where a file is in the way of what the branch has, in favour of what is here.
    async fn decide(&self, path: &str, choice: Choice) -> Choice {
        let mount = self.mount();
        match in_time("a decision", mount.fs.resolve(&repo_path(path), choice, LABEL)).await {
            Ok(_) => choice,
            Err(FsError::NotDir) => {
                assert_eq!(mount.text(path).await, None);
                mount.resolve(path, Choice::Ours).await;
                Choice::Ours
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// In the end all is decided, committed, and the same everywhere.
    async fn end(&mut self) {
        self.done.push("end".into());
        while self.mount().commit().await.is_err() {
            let path = self.mount().conflicts().remove(0);
            self.decide(&path, Choice::KeepBoth).await;
        }
        assert_eq!(self.mount().view().await, self.mount().head());
        let mount = self.mount.take().expect("mounted").remount().await;
        assert_eq!(mount.view().await, mount.head());
        mount.assert_sound();
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// `OXENFS_TOGETHER` is how many operations, `OXENFS_TOGETHER_SEED` where the seeds begin.
#[test]
fn neither_of_two_clients_that_commit_in_turn_loses_anything() {
    const STEPS: u64 = 100;
    let operations = number("OXENFS_TOGETHER").unwrap_or(8_000);
    let first = number("OXENFS_TOGETHER_SEED").unwrap_or(1);
    runtime(1).block_on(async {
        for seed in first..first + operations.div_ceil(STEPS) {
            let mut pair = Pair::new(seed).await;
            for _ in 0..STEPS {
                pair.step().await;
            }
            pair.end().await;
        }
    });
    tell(&format!("{operations} operations"));
}

/// Else a program would read what the kernel keeps of before.
#[test]
fn a_commit_is_made_when_the_kernel_knows_what_of_others_came_along() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("theirs", "old"), ("kept", "kept")]).await;
        let ino = mount.find("theirs").await.unwrap();
        let told = Arc::<std::sync::Mutex<Vec<Stale>>>::default();
        let telling = told.clone();
        mount.fs.watch_staleness(move |stale| {
            // A kernel that is busy.
            std::thread::sleep(Duration::from_millis(50));
            telling.lock().unwrap().push(stale);
        });
        mount.write("ours", "new").await;
        mount.they(&[("theirs", Some("newer"))]);
        mount.commit().await.unwrap();
        assert!(told.lock().unwrap().contains(&Stale::Content(ino)), "{told:?}");
        assert_eq!(mount.view().await, mount.head());
    });
}
