//! The filesystem under test beside its model, and how each operation is done on both.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use oxenfs::fs::{Fs, FsError, Limits, OpenFlags, Options, RenameMode, SetAttr, Stop};
use oxenfs::namespace::{Attrs, Ino, ROOT, Timestamp};
use oxenfs::path::{Name, RepoPath};
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::workspace::memory::{Fault, Memory, Tree};
use oxenfs::workspace::{ByHash, CommitRequest, Workspace};

use crate::model::{Model, Node, Path, Refusal};

#[derive(Debug, Clone)]
pub enum Op {
    Write {
        path: Path,
        at: u64,
        text: String,
    },
    Replace {
        path: Path,
        text: String,
    },
    Truncate {
        path: Path,
        size: u64,
    },
    Unlink(Path),
    Mkdir(Path),
    Rmdir(Path),
    RemoveAll(Path),
    Rename {
        from: Path,
        to: Path,
        mode: u8,
    },
    Link {
        from: Path,
        to: Path,
    },
    Symlink(Path),
    /// Stage all, and compare with the workspace.
    Drain,
    Commit,
    /// The daemon ends without a word, and is started again.
    Crash,
    Compact,
    /// The request after `after` more is lost, or only its answer.
    Fault {
        after: u32,
        effect: bool,
    },
    /// Somebody else changes a path of the workspace while nothing of ours is pending, seen at the next mount.
    Foreign {
        path: Path,
        text: Option<String>,
    },
}

pub struct World {
    dir: tempfile::TempDir,
    memory: Arc<Memory>,
    fs: Arc<Fs>,
    stager: tokio::task::JoinHandle<()>,
    model: Model,
    /// What the last commit held, by the model.
    committed: std::collections::BTreeMap<String, Vec<u8>>,
}

fn attrs() -> Attrs {
    let zero = Timestamp(0, 0);
    Attrs { mode: 0o644, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero }
}

fn split(path: &str) -> Path {
    path.split('/').map(str::to_owned).collect()
}

async fn start(dir: &std::path::Path, memory: &Arc<Memory>) -> (Arc<Fs>, tokio::task::JoinHandle<()>) {
    let options = Options { read_only: false, settle: Duration::from_millis(1), uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: None, cache: 200 };
    let workspace: Arc<dyn Workspace> = memory.clone();
    let fs = Fs::recover(dir, RepoPath::root(), options, limits, workspace).unwrap();
    for attempt in 0.. {
        match fs.reconcile().await {
            Ok(()) => break,
            Err(error) => assert!(attempt < 10, "{error}"),
        }
    }
    let delays = Delays { first: Duration::from_millis(1), last: Duration::from_millis(4) };
    let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), delays).run());
    (fs, stager)
}

fn refusal(error: &FsError) -> Refusal {
    match error {
        FsError::NotFound => Refusal::NotFound,
        FsError::Exists => Refusal::Exists,
        FsError::NotDir => Refusal::NotDir,
        FsError::IsDir => Refusal::IsDir,
        FsError::NotEmpty => Refusal::NotEmpty,
        FsError::Invalid | FsError::Unsupported => Refusal::Invalid,
        FsError::NotPermitted => Refusal::NotPermitted,
        other => panic!("the model knows no {other:?}"),
    }
}

impl World {
    pub async fn new(by_hash: ByHash) -> Self {
        // In memory where there is such a place: what is tested here does not depend on the disk.
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let memory = Arc::new(Memory::new(by_hash));
        let mut model = Model::default();
        let mut base = Tree::new();
        for (path, text) in [("base", "base content"), ("dir/a", "a"), ("dir/base", "base content"), ("dir/dir/b", "b")]
        {
            base.insert(RepoPath::parse(path).unwrap(), Bytes::from_static(text.as_bytes()));
            model.insert_base(&split(path), text.into());
        }
        memory.set_base(base);
        let (fs, stager) = start(dir.path(), &memory).await;
        let committed = model.files();
        Self { dir, memory, fs, stager, model, committed }
    }

    /// Runs an operation, and what it needs; lost requests are repeated as a program would repeat the call.
    async fn run<T>(&self, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> Result<T, Refusal> {
        loop {
            let done = match op(&self.fs) {
                Err(Stop::Need(need)) => self.fs.run(need, &op).await,
                Err(Stop::Error(error)) => Err(error),
                Ok(done) => Ok(done),
            };
            match done {
                Err(FsError::Remote(error)) if error.is_transient() => {}
                Err(error) => return Err(refusal(&error)),
                Ok(done) => return Ok(done),
            }
        }
    }

    async fn lookup(&self, path: &[String]) -> Result<Ino, Refusal> {
        let mut at = ROOT;
        for part in path {
            let name = Name::new(part.as_bytes()).unwrap();
            let stat = self.run(|fs| fs.lookup(at, &name)).await?;
            self.fs.forget(stat.ino, 1);
            at = stat.ino;
        }
        Ok(at)
    }

    async fn place(&self, path: &[String]) -> Result<(Ino, Name), Refusal> {
        let (last, above) = path.split_last().unwrap();
        Ok((self.lookup(above).await?, Name::new(last.as_bytes()).unwrap()))
    }

    async fn open(&self, path: &[String], truncate: bool) -> Result<u64, Refusal> {
        let flags = OpenFlags { read: true, write: true, truncate };
        let (parent, name) = self.place(path).await?;
        match self.run(|fs| fs.lookup(parent, &name)).await {
            Ok(stat) => {
                let opened = self.run(|fs| fs.open(stat.ino, flags)).await;
                self.fs.forget(stat.ino, 1);
                opened
            }
            Err(Refusal::NotFound) => {
                let (stat, handle) = self.run(|fs| fs.create(parent, &name, attrs(), flags)).await?;
                self.fs.forget(stat.ino, 1);
                Ok(handle)
            }
            Err(other) => Err(other),
        }
    }

    async fn write(&self, path: &[String], at: u64, text: &[u8], truncate: bool) -> Result<(), Refusal> {
        let handle = self.open(path, truncate).await?;
        let done = if text.is_empty() { Ok(()) } else { self.run(|fs| fs.write(handle, at, text)).await };
        self.fs.release(handle);
        done
    }

    async fn real(&self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::Write { path, at, text } => self.write(path, *at, text.as_bytes(), false).await,
            Op::Replace { path, text } => self.write(path, 0, text.as_bytes(), true).await,
            Op::Truncate { path, size } => {
                let ino = self.lookup(path).await?;
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                self.run(|fs| fs.setattr(ino, &set)).await.map(|_| ())
            }
            Op::Unlink(path) => {
                let (parent, name) = self.place(path).await?;
                self.run(|fs| fs.unlink(parent, &name)).await
            }
            Op::Mkdir(path) => {
                let (parent, name) = self.place(path).await?;
                let stat = self.run(|fs| fs.mkdir(parent, &name, attrs())).await?;
                self.fs.forget(stat.ino, 1);
                Ok(())
            }
            Op::Symlink(path) => {
                let (parent, name) = self.place(path).await?;
                let stat = self.run(|fs| fs.symlink(parent, &name, b"target", attrs())).await?;
                self.fs.forget(stat.ino, 1);
                Ok(())
            }
            Op::Rmdir(path) => {
                let (parent, name) = self.place(path).await?;
                self.run(|fs| fs.rmdir(parent, &name)).await
            }
            Op::RemoveAll(path) => {
                let (parent, name) = self.place(path).await?;
                self.remove_all(parent, name).await
            }
            Op::Rename { from, to, mode } => {
                let (parent, name) = self.place(from).await?;
                // The kernel looks the source up before the target's directory.
                self.run(|fs| fs.lookup(parent, &name)).await.map(|stat| self.fs.forget(stat.ino, 1))?;
                let (to_parent, to_name) = self.place(to).await?;
                let mode = match mode {
                    1 => RenameMode::NoReplace,
                    2 => RenameMode::Exchange,
                    _ => RenameMode::Replace,
                };
                self.run(|fs| fs.rename(parent, &name, to_parent, &to_name, mode)).await
            }
            Op::Link { from, to } => {
                let ino = self.lookup(from).await?;
                let (parent, name) = self.place(to).await?;
                let stat = self.run(|fs| fs.link(ino, parent, &name)).await?;
                self.fs.forget(stat.ino, 1);
                Ok(())
            }
            Op::Drain | Op::Commit | Op::Crash | Op::Compact | Op::Fault { .. } | Op::Foreign { .. } => Ok(()),
        }
    }

    async fn remove_all(&self, parent: Ino, name: Name) -> Result<(), Refusal> {
        match self.run(|fs| fs.unlink(parent, &name)).await {
            Err(Refusal::IsDir) => {}
            done => return done,
        }
        let stat = self.run(|fs| fs.lookup(parent, &name)).await?;
        self.fs.forget(stat.ino, 1);
        for (below, ..) in self.list(stat.ino).await {
            Box::pin(self.remove_all(stat.ino, below)).await?;
        }
        self.run(|fs| fs.rmdir(parent, &name)).await
    }

    async fn list(&self, dir: Ino) -> Vec<(Name, Ino, u32, u64)> {
        let handle = self.run(|fs| fs.opendir(dir)).await.unwrap();
        let mut entries = Vec::new();
        self.run(|fs| {
            let mut found = Vec::new();
            fs.readdir(handle, 0, false, |entry| {
                if let Ok(name) = Name::new(entry.name) {
                    found.push((name, entry.stat.ino, entry.stat.format, entry.stat.size));
                }
                false
            })?;
            Ok(found)
        })
        .await
        .unwrap()
        .into_iter()
        .for_each(|entry| entries.push(entry));
        self.fs.release(handle);
        entries
    }

    fn modelled(&mut self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::Write { path, at, text } => self.model.write(path, *at as usize, text.as_bytes()),
            Op::Replace { path, text } => self.model.replace(path, text.as_bytes()),
            Op::Truncate { path, size } => self.model.truncate(path, *size as usize),
            Op::Unlink(path) => self.model.unlink(path),
            Op::Mkdir(path) => self.model.mkdir(path),
            Op::Symlink(path) => self.model.symlink(path),
            Op::Rmdir(path) => self.model.rmdir(path),
            Op::RemoveAll(path) => self.model.remove_all(path),
            Op::Rename { from, to, mode } => self.model.rename(from, to, *mode),
            Op::Link { from, to } => self.model.link(from, to),
            Op::Drain | Op::Commit | Op::Crash | Op::Compact | Op::Fault { .. } | Op::Foreign { .. } => Ok(()),
        }
    }

    pub async fn step(&mut self, op: &Op) {
        let real = self.real(op).await;
        let modelled = self.modelled(op);
        assert_eq!(real, modelled, "{op:?}");
        match op {
            Op::Drain => self.drain().await,
            Op::Commit => self.commit().await,
            Op::Crash => self.crash().await,
            Op::Compact => self.fs.compact(true).unwrap(),
            Op::Fault { after, effect } => {
                let left = AtomicI64::new(i64::from(*after));
                let effect = if *effect { Fault::AnswerLost } else { Fault::Lost };
                self.memory.set_fault(move |method| {
                    // A commit is not repeated blindly: the caller of `commit` decides.
                    if method == "commit" || left.fetch_sub(1, Ordering::Relaxed) != 0 { Fault::None } else { effect }
                });
            }
            Op::Foreign { path, text } => self.foreign(path, text.as_deref()).await,
            _ => {}
        }
        self.compare(op).await;
    }

    async fn drain(&mut self) {
        let waiting = self.fs.barrier(|_| true).unwrap();
        let reached = tokio::time::timeout(Duration::from_secs(20), waiting.reached()).await;
        let report = self.fs.report();
        let progress = reached.unwrap_or_else(|_| panic!("never drained: {report:?}"));
        assert_eq!(progress.files_failed, 0, "{report:?}");
        let view: std::collections::BTreeMap<String, Vec<u8>> = self
            .memory
            .view()
            .into_iter()
            .map(|(path, content)| (path.as_str().to_owned(), content.to_vec()))
            .collect();
        assert_eq!(view, self.model.files(), "the workspace differs from the tree");
    }

    async fn commit(&mut self) {
        let frozen = self.fs.freeze().await.unwrap();
        let reached = tokio::time::timeout(Duration::from_secs(20), frozen.waiting.reached()).await;
        let progress = reached.unwrap_or_else(|_| panic!("never drained: {:?}", self.fs.report()));
        assert_eq!(progress.files_failed, 0);
        let request =
            CommitRequest { branch: "main".into(), message: "m".into(), author: "a".into(), email: "e".into() };
        let committed = self.memory.commit(&request).await.unwrap();
        self.fs.rebased(committed.id).unwrap();
        drop(frozen);
        self.committed = self.model.files();
        let tree: std::collections::BTreeMap<String, Vec<u8>> = self
            .memory
            .base_tree()
            .into_iter()
            .map(|(path, content)| (path.as_str().to_owned(), content.to_vec()))
            .collect();
        assert_eq!(tree, self.committed, "the commit differs from the tree");
    }

    async fn crash(&mut self) {
        self.stager.abort();
        let _ = (&mut self.stager).await;
        // The old state must be gone before the new one reads the directory, as a process would be.
        (self.fs, self.stager) = start(self.dir.path(), &self.memory).await;
    }

    async fn foreign(&mut self, path: &Path, text: Option<&str>) {
        self.drain().await;
        let parsed = RepoPath::parse(&path.join("/")).unwrap();
        // Only what one client can do to a file without touching directories of the other.
        let exists = self.model.file(path).is_some();
        let parents = (1..path.len()).all(|length| self.model.get(&path[..length]) == Some(&Node::Dir));
        let linked =
            self.model.get(path).is_some_and(|node| self.model.nodes.values().filter(|n| *n == node).count() > 1);
        match text {
            Some(text) if parents && !exists && self.model.get(path).is_none() => {
                if self.memory.base_tree().contains_key(&parsed) {
                    return;
                }
                self.memory.stage_foreign(parsed, Some(Bytes::from(text.to_owned())));
                self.model.insert_file(path.clone(), text.into());
            }
            None if exists
                && !linked
                && self.memory.base_tree().contains_key(&parsed)
                && self.memory.view().get(&parsed) == self.memory.base_tree().get(&parsed) =>
            {
                self.memory.stage_foreign(parsed, None);
                self.model.unlink(path).unwrap();
            }
            _ => return,
        }
        self.crash().await;
    }

    /// The whole tree equals the model.
    async fn compare(&self, after: &Op) {
        let mut seen = 0;
        let mut todo: Vec<(Path, Ino)> = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for (name, ino, format, size) in self.list(dir).await {
                let mut below = path.clone();
                below.push(String::from_utf8(name.as_bytes().to_vec()).unwrap());
                seen += 1;
                match self.model.get(&below) {
                    Some(Node::Dir) => {
                        assert_eq!(format, libc::S_IFDIR, "{below:?} after {after:?}");
                        todo.push((below, ino));
                    }
                    Some(Node::Symlink) => assert_eq!(format, libc::S_IFLNK, "{below:?} after {after:?}"),
                    Some(Node::File(_)) => {
                        assert_eq!(format, libc::S_IFREG, "{below:?} after {after:?}");
                        let content = self.model.file(&below).unwrap();
                        assert_eq!(size, content.len() as u64, "size of {below:?} after {after:?}");
                        let flags = OpenFlags { read: true, write: false, truncate: false };
                        let handle = self.run(|fs| fs.open(ino, flags)).await.unwrap();
                        let bytes = self.run(|fs| fs.read(handle, 0, 1000)).await.unwrap();
                        self.fs.release(handle);
                        assert_eq!(&bytes, content, "{below:?} after {after:?}");
                    }
                    None => panic!("{below:?} should not be there after {after:?}"),
                }
            }
        }
        assert_eq!(seen, self.model.nodes.len(), "entries are missing after {after:?}: {:?}", self.model.nodes.keys());
    }
}
