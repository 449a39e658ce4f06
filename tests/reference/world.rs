//! The filesystem under test beside its model, and how each operation is done on both.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxenfs::fs::{
    CommitCut, Fs, FsError, Lender, Limits, OpenFlags, Options, Passthrough, RangeChange, RenameMode, SetAttr, Stop,
    XattrMode,
};
use oxenfs::hash::{ContentHash, HashKind};
use oxenfs::mount::commit::finish::{self, Answered, Finished, Unpublished};
use oxenfs::namespace::{Attrs, Ino, ROOT, Timestamp};
use oxenfs::path::{Name, RepoPath};
use oxenfs::stager::{Delays, Meter, Stager};
use oxenfs::store::disk::{Act, Disk};
use oxenfs::store::journal::JournalError;
use oxenfs::workspace::memory::{CommitFault, Fault, Memory};
use oxenfs::workspace::verify::StagedSet;
use oxenfs::workspace::{ByHash, CommitId, CommitRequest, Workspace};

use crate::course::Course;
use crate::model::{MADE_MODE, Meta, Model, Node, PATTERNS, Path, Refusal, Shown, is_ignored, travels};

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
    /// A program writes, all is staged, and it writes more before it closes the file.
    Stream {
        path: Path,
        text: String,
        more: String,
    },
    /// A program reads a file, and another writes to it meanwhile; perhaps all is staged before the one that read is done.
    Beside {
        path: Path,
        text: String,
        stage: bool,
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
    /// A program copies one file over another with `copy_file_range`.
    Copy {
        from: Path,
        to: Path,
    },
    /// A commit is made while programs change the tree: what it holds is what the tree held at its cut. Some happen while
    /// it is staged, some after the server has made it and before anybody knows.
    CommitAmid {
        staging: Vec<Op>,
        answering: Vec<Op>,
    },
    /// The three steps of a commit, for what comes between them: its cut; its staging and the server's answer; its record.
    Cut,
    Publish,
    Rebase,
    /// Everything that was there when a barrier began is staged, under its new name or with its newer content.
    SyncAmid(Vec<Op>),
    /// Some of a file becomes zeros.
    Punch {
        path: Path,
        at: u64,
        length: u64,
    },
    Chmod {
        path: Path,
        mode: u16,
    },
    /// To somebody else, or to whom it is.
    Chown {
        path: Path,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Setxattr {
        path: Path,
        name: &'static str,
        value: String,
        mode: u8,
    },
    Removexattr {
        path: Path,
        name: &'static str,
    },
    /// Flush a file or directory, and the record.
    Fsync(Path),
    /// Stage all, and compare with the workspace.
    Drain,
    Commit,
    /// The daemon ends without a word, and is started again.
    Crash,
    Compact,
    /// What the kernel has forgotten is dropped.
    Evict,
    /// The request after `after` more is lost, or only its answer, or it comes late.
    Fault {
        after: u32,
        fault: Fault,
    },
    /// Somebody else takes away what is staged, or its content.
    Vanish(Vanish),
    /// A commit of which something goes wrong; it is asked for until it is whole.
    CommitAmiss(Amiss),
    /// Somebody else changes a path of the workspace while nothing of ours is pending, seen at the next mount.
    Foreign {
        path: Path,
        text: Option<String>,
    },
}

/// How what is staged goes away.
#[derive(Debug, Clone, Copy)]
pub enum Vanish {
    /// With the workspace.
    Deleted,
    /// By itself.
    Emptied,
    /// It stays, and its content goes.
    Pruned,
}

/// What goes wrong with a commit.
#[derive(Debug, Clone)]
pub enum Amiss {
    /// The request is lost.
    Lost,
    /// It is made, and the answer is lost.
    AnswerLost,
    /// The server drops this of it, so many times.
    Drops(Path, u8),
    /// The server leaves out the changes at and below this path.
    LeavesOut(Path),
    /// Content that is staged is removed just before.
    Pruned,
}

impl Op {
    /// Whether a program sees nothing of it: it neither changes the tree nor is refused.
    pub fn is_unseen(&self) -> bool {
        matches!(
            self,
            Self::Drain
                | Self::Commit
                | Self::CommitAmid { .. }
                | Self::CommitAmiss(_)
                | Self::SyncAmid(_)
                | Self::Cut
                | Self::Publish
                | Self::Rebase
                | Self::Crash
                | Self::Compact
                | Self::Evict
                | Self::Fault { .. }
                | Self::Vanish(_)
                | Self::Foreign { .. }
        )
    }
}

pub struct World {
    dir: Arc<tempfile::TempDir>,
    pub memory: Arc<Memory>,
    fs: Arc<Fs>,
    disk: Disk,
    tasks: Tasks,
    /// Stands for the kernel where programs go past the daemon.
    kernel: Option<Arc<Kernel>>,
    pub model: Model,
    commit: Option<Underway>,
    manner: Manner,
    patience: Duration,
    course: Course,
    /// What others staged: it is not ignored as long as it is theirs.
    foreign: BTreeSet<String>,
}

/// How a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The server keeps what it has; the cache is small.
    Plain,
    /// Anything may happen to the server: commits are made and looked at as a mount does it, and the cache takes all.
    Careful,
}

/// A commit that is being made.
struct Underway {
    cut: CommitCut,
    /// What the tree held at the cut.
    held: BTreeMap<String, Vec<u8>>,
    /// What the server answered.
    made: Option<Made>,
}

enum Made {
    Plain(CommitId),
    Careful(StagedSet, Answered),
}

/// The kernel's side of files that programs reach without a request.
#[derive(Default)]
pub struct Kernel(Mutex<Lent>);

#[derive(Default)]
struct Lent {
    last: u32,
    files: HashMap<u32, File>,
}

impl Lender for Kernel {
    fn lend(&self, file: &File) -> std::io::Result<u32> {
        let mut lent = self.0.lock().unwrap();
        lent.last += 1;
        let number = lent.last;
        lent.files.insert(number, file.try_clone()?);
        Ok(number)
    }

    fn take_back(&self, number: u32) {
        self.0.lock().unwrap().files.remove(&number).expect("lent before");
    }

    fn worthwhile(&self) -> u64 {
        1
    }
}

impl Kernel {
    /// The file that a program has which opened number `number`, perhaps to write to it.
    fn open(&self, number: u32, write: bool) -> File {
        let lent = self.0.lock().unwrap();
        let path = format!("/proc/self/fd/{}", lent.files[&number].as_raw_fd());
        File::options().read(true).write(write).open(path).unwrap()
    }
}

/// What runs beside the filesystem; ends when dropped.
struct Tasks([tokio::task::JoinHandle<()>; 3]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// How long an operation is tried again that the server does not let succeed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a drain may take: less than what it is part of, so that it is the drain that says how far it was.
const UNDRAINED: Duration = Duration::from_secs(60);
/// Longer than anything here takes on a slow machine: what is not done by then never is.
pub const STUCK: Duration = Duration::from_secs(120);

/// What a filesystem under test runs on. A panic on one of its threads ends the whole run: what that thread was doing,
/// others would wait for without end.
pub fn runtime(workers: usize) -> tokio::runtime::Runtime {
    const THREAD: &str = "under-test";
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            usual(info);
            if std::thread::current().name() == Some(THREAD) {
                // Not by a macro: the test runner keeps what those print until the test is over.
                let told = format!("{info}\n{}\n", std::backtrace::Backtrace::force_capture());
                let _ = std::io::stderr().write_all(told.as_bytes());
                std::process::exit(101);
            }
        }));
    });
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(workers).thread_name(THREAD).enable_all().build().unwrap()
}

/// Carries an operation through, with all that it needs.
pub async fn go<T>(fs: &Fs, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> Result<T, FsError> {
    match op(fs) {
        Ok(out) => Ok(out),
        Err(Stop::Need(need)) => fs.run(need, op).await,
        Err(Stop::Error(error)) => Err(error),
    }
}

/// Waits for what has to end.
pub async fn in_time<T>(what: &str, ending: impl Future<Output = T>) -> T {
    tokio::time::timeout(STUCK, ending).await.unwrap_or_else(|_| panic!("{what} has not ended in {STUCK:?}"))
}

/// The names in an open directory, whose names are text, and what they stand for.
pub fn entries_of(fs: &Fs, handle: u64) -> oxenfs::fs::Op<Vec<(String, Ino)>> {
    let mut found = Vec::new();
    fs.readdir(handle, 0, false, |entry| {
        let name = String::from_utf8(entry.name.to_vec()).unwrap();
        if !matches!(name.as_str(), "." | "..") {
            found.push((name, entry.stat.ino));
        }
        false
    })?;
    Ok(found)
}

/// In memory where there is such a place: what is tested here does not depend on the disk.
pub fn temporary_dir() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

/// Writes a file, with a hole for the zeros at its end: the journal has up to a mebibyte of them, and hundreds of copies
/// wait in memory.
pub fn write_with_hole(path: &std::path::Path, bytes: &[u8]) {
    const PAGE: [u8; 4096] = [0; 4096];
    let pages = bytes.chunks(PAGE.len()).rposition(|page| *page != PAGE[..page.len()]).map_or(0, |last| last + 1);
    let file = std::fs::File::create(path).unwrap();
    file.write_all_at(&bytes[..bytes.len().min(pages * PAGE.len())], 0).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

pub fn commit_request() -> CommitRequest {
    CommitRequest { branch: "main".into(), message: "m".into(), author: "a".into(), email: "e".into() }
}

pub fn attrs() -> Attrs {
    let zero = Timestamp(0, 0);
    Attrs { mode: MADE_MODE, uid: 0, gid: 0, atime: zero, mtime: zero, ctime: zero }
}

/// What the base commit holds.
const BASE: [(&str, &str); 4] =
    [("base", "base content"), ("dir/a", "a"), ("dir/base", "base content"), ("dir/dir/b", "b")];

/// The model of the base commit.
pub fn base_model() -> Model {
    model_of(&BASE)
}

/// The model of a base that holds these files.
pub fn model_of(base: &[(&str, &str)]) -> Model {
    let mut model = Model::default();
    for (path, text) in base {
        model.insert_base(&split(path), (*text).into());
    }
    model
}

pub fn split(path: &str) -> Path {
    path.split('/').map(str::to_owned).collect()
}

async fn start(
    dir: &std::path::Path,
    memory: &Arc<Memory>,
    disk: &Disk,
    kernel: Option<&Arc<Kernel>>,
    manner: Manner,
) -> Result<(Arc<Fs>, Tasks), JournalError> {
    let options = Options { read_only: false, settle: Duration::from_millis(1), uid: 0, gid: 0, umask: 0o022 };
    let limits = Limits { spool: None, cache: if manner == Manner::Careful { 1 << 30 } else { 200 } };
    if manner == Manner::Careful {
        // As a mount opens it.
        loop {
            match memory.identity().await {
                Ok(Some(_)) => break,
                Ok(None) => drop(memory.reopen("main", &CommitId("".into())).await),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }
    let workspace: Arc<dyn Workspace> = memory.clone();
    let fs = Fs::recover_on(disk, dir, RepoPath::root(), options, limits, workspace)?;
    if let Some(kernel) = kernel {
        assert_eq!(fs.lend_to(kernel.clone()), Passthrough::On);
    }
    for attempt in 0.. {
        let resumed = if manner == Manner::Careful { finish::resume(&fs).await.map(drop) } else { Ok(()) };
        let reconciled = match resumed {
            Ok(()) => fs.reconcile().await,
            Err(error) => Err(error),
        };
        match reconciled {
            Ok(()) => break,
            Err(error) => assert!(attempt < 10, "{error}"),
        }
    }
    fs.drop_intent().unwrap();
    for attempt in 0.. {
        match fs.judge().await {
            Ok(()) => break,
            Err(error) => assert!(attempt < 10, "{error}"),
        }
    }
    let delays = Delays { first: Duration::from_millis(1), last: Duration::from_millis(4) };
    let stager = tokio::spawn(Stager::new(fs.clone(), Arc::new(Meter::default()), delays).run());
    let housekeeping = fs.clone();
    let tidying = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let fs = housekeeping.clone();
            // Cancelled with the runtime.
            let work = move || fs.heal().and_then(|()| fs.tidy());
            let Ok(done) = tokio::task::spawn_blocking(work).await else { return };
            if let Err(error) = done {
                refusal(&error);
            }
        }
    });
    let loaded = fs.clone();
    let loading = tokio::spawn(async move { loaded.load().await });
    Ok((fs, Tasks([stager, tidying, loading])))
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
        FsError::NoData => Refusal::NoData,
        FsError::NoSpace | FsError::Io(_) => Refusal::Disk,
        other => panic!("the model knows no {other:?}"),
    }
}

impl World {
    pub async fn new(by_hash: ByHash, past: bool) -> Self {
        Self::of(by_hash, past, Manner::Plain).await
    }

    pub async fn of(by_hash: ByHash, past: bool, manner: Manner) -> Self {
        let memory = Arc::new(Memory::new(by_hash));
        Self::watched(Arc::new(temporary_dir()), memory, Disk::default(), past, manner).await
    }

    /// A world that begins in `dir`, on `memory`, with somebody between it and the disk; whether programs go `past` the
    /// daemon.
    pub async fn watched(
        dir: Arc<tempfile::TempDir>,
        memory: Arc<Memory>,
        disk: Disk,
        past: bool,
        manner: Manner,
    ) -> Self {
        let model = base_model();
        let base = BASE.map(|(path, text)| (RepoPath::parse(path).unwrap(), Bytes::from_static(text.as_bytes())));
        memory.set_base(base.into_iter().collect());
        Self::recovered(dir, memory, disk, model, past, manner).await
    }

    /// The world that a crash left in `dir` and on `memory`.
    pub async fn recovered(
        dir: Arc<tempfile::TempDir>,
        memory: Arc<Memory>,
        disk: Disk,
        model: Model,
        past: bool,
        manner: Manner,
    ) -> Self {
        Self::try_recovered(dir, memory, disk, model, past, manner).await.unwrap()
    }

    /// The same, if the record is not refused.
    pub async fn try_recovered(
        dir: Arc<tempfile::TempDir>,
        memory: Arc<Memory>,
        disk: Disk,
        model: Model,
        past: bool,
        manner: Manner,
    ) -> Result<Self, JournalError> {
        let kernel = past.then(Arc::<Kernel>::default);
        let (fs, tasks) = start(dir.path(), &memory, &disk, kernel.as_ref(), manner).await?;
        Ok(Self {
            dir,
            memory,
            fs,
            disk,
            tasks,
            kernel,
            model,
            commit: None,
            manner,
            patience: PATIENCE,
            course: Course::default(),
            foreign: BTreeSet::new(),
        })
    }

    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// Where nobody mends what the server lacks: an operation is tried again for so long.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Tells `course` what is done here.
    pub fn along(self, course: &Course) -> Self {
        course.on(&self.fs);
        Self { course: course.clone(), ..self }
    }

    /// Waits until what is owed is staged or given up, without anybody asking for it; not for what is never done.
    pub async fn settle(&self) {
        let until = Instant::now() + self.patience;
        let is_under_way = || {
            let (counts, ..) = self.fs.report();
            let waiting = [counts.dirty, counts.hashing, counts.queued, counts.uploading, counts.removals];
            waiting.iter().any(|tally| tally.files > 0)
        };
        while is_under_way() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Has the record's frames end within some hundred bytes before `end`, by what no model knows.
    pub async fn lengthen_record(&self, end: u64) {
        const VALUE_MAX: u64 = 64 << 10;
        const FRAME: u64 = 200;
        let record = self.dir.path().join("journal");
        let frames = || {
            let segments = std::fs::read_dir(&record).unwrap().map(|entry| entry.unwrap().path());
            let bytes = std::fs::read(segments.max().unwrap()).unwrap();
            bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64
        };
        while let Some(left) = end.checked_sub(frames() + FRAME).filter(|left| *left > FRAME) {
            let value = "x".repeat(left.min(VALUE_MAX) as usize);
            let fill = |fs: &Fs| fs.setxattr(ROOT, b"user.filler", value.as_bytes(), XattrMode::Set);
            self.run(fill).await.unwrap();
        }
    }

    /// Runs an operation, and what it needs; lost requests are repeated as a program would repeat the call.
    async fn run<T>(&self, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> Result<T, Refusal> {
        self.attempt(op).await.map_err(|error| refusal(&error))
    }

    async fn attempt<T>(&self, op: impl Fn(&Fs) -> oxenfs::fs::Op<T>) -> Result<T, FsError> {
        let deadline = Instant::now() + self.patience;
        let op = |fs: &Fs| {
            let done = op(fs);
            if let Err(Stop::Need(need)) = &done {
                self.course.needs(*need);
            }
            done
        };
        loop {
            let done = go(&self.fs, &op).await;
            match done {
                Err(FsError::Remote(_)) if Instant::now() > deadline => return done,
                // What came late may have taken the place of what is to be read, until the daemon looks.
                Err(FsError::Remote(_)) if self.fs.expects_latecomers() => {
                    let _ = self.fs.audit_between_commits().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(FsError::Remote(error)) if error.is_transient() => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                done => return done,
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
        let flags = OpenFlags { read: true, write: true, truncate, execute: false };
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
        let past = self.past(handle);
        let done = self.put(handle, past.as_ref(), at, text).await;
        // The kernel closes its own before it tells of it.
        drop(past);
        self.fs.release(handle);
        done
    }

    /// What a program writes to that has opened `handle`, where that is not this daemon.
    fn past(&self, handle: u64) -> Option<File> {
        Some(self.kernel.as_ref()?.open(self.fs.reach(handle).past()?, true))
    }

    async fn beside(&self, path: &[String], text: &[u8], stage: bool) -> Result<(), Refusal> {
        let ino = self.lookup(path).await?;
        let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
        let reader = self.run(|fs| fs.open(ino, flags)).await?;
        let past = self.fs.reach(reader).past().and_then(|number| Some(self.kernel.as_ref()?.open(number, false)));
        let done = self.write(path, 0, text, false).await;
        if stage {
            self.stage_all().await;
        }
        let mut seen = vec![0; text.len()];
        match &past {
            Some(file) if done.is_ok() => file.read_exact_at(&mut seen, 0).unwrap(),
            Some(_) => {}
            None => seen = self.run(|fs| fs.read(reader, 0, text.len())).await?,
        }
        assert!(seen == text || done.is_err(), "{seen:?}, not {text:?}");
        drop(past);
        self.fs.release(reader);
        done
    }

    async fn put(&self, handle: u64, past: Option<&File>, at: u64, text: &[u8]) -> Result<(), Refusal> {
        match past {
            _ if text.is_empty() => Ok(()),
            Some(file) => {
                // The daemon does not see it, and the tests that stand at the disk do.
                self.disk.act(Act::Write(file), || file.write_all_at(text, at)).unwrap();
                Ok(())
            }
            None => {
                let written = self.run(|fs| fs.write(handle, at, text)).await?;
                assert_eq!(written, text.len(), "a short write");
                Ok(())
            }
        }
    }

    async fn stream(&self, path: &[String], text: &[u8], more: &[u8]) -> Result<(), Refusal> {
        let handle = self.open(path, false).await?;
        let past = self.past(handle);
        let mut done = self.put(handle, past.as_ref(), 0, text).await;
        self.stage_all().await;
        if done.is_ok() {
            done = self.put(handle, past.as_ref(), text.len() as u64, more).await;
        }
        drop(past);
        self.fs.release(handle);
        done
    }

    /// A program maps a file, closes it, and stores into it when all is staged; then it goes.
    pub async fn store_late(&mut self, path: &[String], text: &str) {
        let handle = self.open(path, false).await.unwrap();
        let mapped = self.past(handle).expect("the kernel goes past the daemon");
        self.model.write(path, 0, b"").unwrap();
        self.fs.release(handle);
        for (at, byte) in text.bytes().enumerate() {
            self.drain().await;
            mapped.write_all_at(&[byte], at as u64).unwrap();
            self.model.write(path, at, &[byte]).unwrap();
        }
        self.drain().await;
        mapped.write_all_at(b"!", 0).unwrap();
        self.model.write(path, 0, b"!").unwrap();
        drop(mapped);
    }

    /// Waits until nothing is in the spool.
    pub async fn rest(&self) {
        let deadline = Instant::now() + STUCK;
        while self.fs.spool().used() > 0 {
            assert!(Instant::now() < deadline, "still in the spool: {:?}", self.fs.report());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn real(&self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::Write { path, at, text } => self.write(path, *at, text.as_bytes(), false).await,
            Op::Replace { path, text } => self.write(path, 0, text.as_bytes(), true).await,
            Op::Stream { path, text, more } => self.stream(path, text.as_bytes(), more.as_bytes()).await,
            Op::Beside { path, text, stage } => self.beside(path, text.as_bytes(), *stage).await,
            Op::Truncate { path, size } => {
                let ino = self.lookup(path).await?;
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                self.run(|fs| fs.setattr(ino, &set)).await.map(|_| ())
            }
            Op::Copy { from, to } => {
                let ino = self.lookup(from).await?;
                let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
                let source = self.run(|fs| fs.open(ino, flags)).await?;
                // Opened to be read first: a copy of a file over itself finds it empty.
                let done = match self.open(to, true).await {
                    Ok(target) => {
                        let copied = self.run(|fs| fs.copy_range((source, 0), (target, 0), 1 << 20)).await;
                        self.fs.release(target);
                        copied.map(|_| ())
                    }
                    Err(refusal) => Err(refusal),
                };
                self.fs.release(source);
                done
            }
            Op::Punch { path, at, length } => {
                let ino = self.lookup(path).await?;
                let flags = OpenFlags { read: true, write: true, truncate: false, execute: false };
                let handle = self.run(|fs| fs.open(ino, flags)).await?;
                let done = self.run(|fs| fs.fallocate(handle, *at, *length, RangeChange::Punch)).await;
                self.fs.release(handle);
                done
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
            Op::Chmod { path, mode } => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                self.changed(path, |fs, ino| fs.setattr(ino, &set).map(|_| ())).await
            }
            Op::Chown { path, uid, gid } => {
                let set = SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() };
                self.changed(path, |fs, ino| fs.setattr(ino, &set).map(|_| ())).await
            }
            Op::Setxattr { path, name, value, mode } => {
                let mode = match mode {
                    1 => XattrMode::Create,
                    2 => XattrMode::Replace,
                    _ => XattrMode::Set,
                };
                self.changed(path, |fs, ino| fs.setxattr(ino, name.as_bytes(), value.as_bytes(), mode)).await
            }
            Op::Removexattr { path, name } => self.changed(path, |fs, ino| fs.removexattr(ino, name.as_bytes())).await,
            Op::Fsync(path) => {
                let ino = self.lookup(path).await?;
                let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
                let handle = match self.run(|fs| fs.open(ino, flags)).await {
                    Err(Refusal::IsDir) => self.run(|fs| fs.opendir(ino)).await?.handle,
                    opened => opened?,
                };
                let flushed = self.run(|fs| fs.fsync(handle)).await;
                self.fs.release(handle);
                flushed.map(|_| ())
            }
            unseen => {
                assert!(unseen.is_unseen(), "{unseen:?}");
                Ok(())
            }
        }
    }

    /// Changes what is not content: the time of change moves if it succeeds, and no other time.
    async fn changed(&self, path: &[String], change: impl Fn(&Fs, Ino) -> oxenfs::fs::Op<()>) -> Result<(), Refusal> {
        let ino = self.lookup(path).await?;
        let before = self.run(|fs| fs.getattr(ino)).await?;
        // Neither mode nor owner of a symbolic link matters, and the kernel asks for no attributes of it.
        if before.format == libc::S_IFLNK {
            return Err(Refusal::NotPermitted);
        }
        let done = self.run(|fs| change(fs, ino)).await;
        let after = self.run(|fs| fs.getattr(ino)).await?;
        assert_eq!((before.attrs.atime, before.attrs.mtime), (after.attrs.atime, after.attrs.mtime));
        assert_eq!(after.attrs.ctime > before.attrs.ctime, done.is_ok(), "{:?} {:?}", before.attrs, after.attrs);
        done
    }

    /// What belongs to every file and directory.
    async fn metas(&self) -> BTreeMap<Path, Meta> {
        let mut all = BTreeMap::new();
        let mut todo: Vec<(Path, Ino)> = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for (name, ino, format, _) in self.list(dir).await {
                let below = [path.clone(), vec![String::from_utf8(name.as_bytes().to_vec()).unwrap()]].concat();
                match format {
                    libc::S_IFDIR => todo.push((below.clone(), ino)),
                    libc::S_IFREG => {}
                    _ => continue,
                }
                let attrs = self.run(|fs| fs.getattr(ino)).await.unwrap().attrs;
                let names = self.run(|fs| fs.listxattr(ino, true)).await.unwrap();
                let mut xattrs = BTreeMap::new();
                for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                    let value = self.run(|fs| fs.getxattr(ino, name)).await.unwrap();
                    xattrs.insert(String::from_utf8(name.to_vec()).unwrap(), value);
                }
                all.insert(below, Meta { mode: attrs.mode, uid: attrs.uid, gid: attrs.gid, xattrs });
            }
        }
        all
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
        let handle = self.run(|fs| fs.opendir(dir)).await.unwrap().handle;
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

    pub fn modelled(&mut self, op: &Op) -> Result<(), Refusal> {
        on_model(&mut self.model, op)
    }

    pub async fn step(&mut self, op: &Op) {
        self.unseen_step(op).await;
        in_time("a comparison", self.compare(op)).await;
    }

    /// A step after which nobody reads anything, so that nothing is fetched.
    pub async fn unseen_step(&mut self, op: &Op) {
        let real = in_time("an operation", self.real(op)).await;
        let modelled = self.modelled(op);
        assert_eq!(real, modelled, "{op:?}");
        match op {
            Op::Drain
            | Op::Commit
            | Op::CommitAmiss(_)
            | Op::Vanish(_)
            | Op::Cut
            | Op::Publish
            | Op::Rebase
            | Op::Compact
            | Op::Evict => self.keep(op).await,
            Op::CommitAmid { staging, answering } => {
                let committed = tokio::time::timeout(UNDRAINED, Box::pin(self.commit_amid(staging, answering))).await;
                committed.unwrap_or_else(|_| panic!("never committed: {:?}", self.fs.report()));
            }
            Op::SyncAmid(meanwhile) => {
                let synced = tokio::time::timeout(UNDRAINED, Box::pin(self.sync_amid(meanwhile))).await;
                synced.unwrap_or_else(|_| panic!("never synced: {:?}", self.fs.report()));
            }
            Op::Crash => self.crash().await,
            Op::Fault { after, fault } => {
                let left = AtomicI64::new(i64::from(*after));
                let fault = *fault;
                self.memory.set_fault(move |method| {
                    // A commit is not repeated blindly: the caller of `commit` decides.
                    if method == "commit" || left.fetch_sub(1, Ordering::Relaxed) != 0 { Fault::None } else { fault }
                });
            }
            Op::Foreign { path, text } => self.foreign(path, text.as_deref()).await,
            _ => {}
        }
        let broken = self.fs.check();
        assert!(broken.is_empty(), "after {op:?}: {broken:#?}");
    }

    /// Removes all copies of what the server has.
    pub async fn lose_cache(&mut self) {
        self.crash_after(|dir| std::fs::remove_dir_all(dir.join("cache")).unwrap()).await;
    }

    /// What changes nothing that a program sees.
    pub async fn keep(&mut self, op: &Op) {
        match op {
            Op::Drain => self.drain().await,
            Op::Commit => self.commit().await,
            Op::Cut => self.begin_commit().await,
            Op::Publish => self.answer_commit().await,
            Op::Rebase => self.end_commit().await,
            Op::Compact => self.fs.compact(true).unwrap(),
            Op::Evict => _ = self.fs.evict(),
            Op::Vanish(Vanish::Deleted) => self.memory.delete_workspace(),
            Op::Vanish(Vanish::Emptied) => self.memory.empty_workspace(),
            Op::Vanish(Vanish::Pruned) => self.memory.prune(),
            Op::CommitAmiss(amiss) => {
                self.go_amiss(amiss);
                self.commit().await;
                // Where there was nothing to commit.
                self.memory.forget_faults();
            }
            _ => {}
        }
    }

    /// Stages everything, as `unmount` does; how many files could not be.
    pub async fn stage_all(&self) -> u64 {
        let drained = tokio::time::timeout(UNDRAINED, self.stage_until_nothing_differs()).await;
        drained.unwrap_or_else(|_| panic!("never drained: {:?}", self.fs.report()))
    }

    async fn stage_until_nothing_differs(&self) -> u64 {
        loop {
            let remade = self.fs.times_remade();
            let _ = self.fs.heed_patterns(|_| true).await;
            let progress = self.fs.barrier().unwrap().settled().await.unwrap();
            let come = self.memory.come_late();
            match self.fs.audit().await {
                // Whatever comes late, while it is looked or after, is found in the end.
                Ok(false) if self.memory.end_late() != come => {}
                // As a drain waits for all of it.
                Ok(false) if self.fs.times_remade() != remade => {}
                Ok(false) => return progress.files_failed,
                Ok(true) => {}
                Err(FsError::Remote(error)) if error.is_transient() => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn drain(&self) {
        assert_eq!(self.stage_all().await, 0, "{:?}", self.fs.report());
        let (staged, expected) = (self.undisputed(self.view()), self.undisputed(self.travelling()));
        assert!(staged == expected, "the workspace differs from the tree: {}", unequal(&staged, &expected));
    }

    /// What of the tree the server is to have.
    pub fn travelling(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.model.files();
        let travels = travels(&files, &self.based());
        files.retain(|path, _| travels.contains(path));
        files
    }

    /// The paths that the base has.
    pub fn based(&self) -> BTreeSet<String> {
        self.memory.base_tree().keys().map(|path| path.as_str().to_owned()).collect()
    }

    fn patterns(&self) -> String {
        let text = self.model.file(&[PATTERNS.to_owned()]).cloned().unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Without what others staged, and what is ignored if it is ours by now.
    fn undisputed(&self, mut files: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
        let patterns = self.patterns();
        files.retain(|path, _| !(self.foreign.contains(path) && is_ignored(&patterns, path)));
        files
    }

    /// What the workspace shows.
    pub fn view(&self) -> BTreeMap<String, Vec<u8>> {
        let view = self.memory.view().into_iter();
        view.map(|(path, content)| (path.as_str().to_owned(), content.to_vec())).collect()
    }

    /// What a status would say.
    pub fn report(&self) -> impl std::fmt::Debug {
        self.fs.report()
    }

    /// What does not hold that always should.
    pub fn broken(&self) -> Vec<String> {
        self.fs.check().iter().map(|broken| format!("{broken:?}")).collect()
    }

    /// The paths that a status would name with an error.
    pub fn errors(&self) -> std::collections::BTreeSet<String> {
        let (_, _, errors, _) = self.fs.report();
        errors.into_iter().map(|error| error.path).collect()
    }

    async fn commit(&self) {
        let committed = tokio::time::timeout(UNDRAINED, self.commit_at_last()).await;
        committed.unwrap_or_else(|_| panic!("never committed: {:?}", self.fs.report()));
    }

    fn go_amiss(&self, amiss: &Amiss) {
        let repo_path = |path: &Path| RepoPath::parse(&path.join("/")).unwrap();
        let lose = |fault: Fault| {
            let mut left = 1;
            self.memory.set_fault(move |method| {
                let is_lost = method == "commit" && std::mem::take(&mut left) == 1;
                if is_lost { fault } else { Fault::None }
            });
        };
        match amiss {
            Amiss::Lost => lose(Fault::Lost),
            Amiss::AnswerLost => lose(Fault::AnswerLost),
            Amiss::Drops(path, times) => {
                (0..*times).for_each(|_| self.memory.fault_commit(vec![CommitFault::Drops(repo_path(path))]));
            }
            Amiss::LeavesOut(path) => self.memory.fault_commit(vec![CommitFault::LeavesOut(repo_path(path))]),
            Amiss::Pruned => {
                let memory = Arc::downgrade(&self.memory);
                self.memory.set_fault(move |method| {
                    if let (true, Some(memory)) = (method == "commit", memory.upgrade()) {
                        memory.prune();
                    }
                    Fault::None
                });
            }
        }
    }

    /// A commit as a mount makes it, asked for until it is whole.
    async fn commit_carefully(&self) {
        const ASKED: u32 = 8;
        for _ in 0..ASKED {
            let (cut, staged) = self.careful_cut().await;
            match finish::resume(&self.fs).await {
                Ok(None) => {}
                // Another look at what is staged.
                Ok(Some(_)) => continue,
                Err(error) => {
                    assert_passes(&error);
                    continue;
                }
            }
            match self.fs.stands_on_base().await {
                Ok(stands) => assert!(stands, "nobody else moved the workspace"),
                Err(error) => {
                    assert_passes(&error);
                    continue;
                }
            }
            if self.fs.staged_paths().is_empty() {
                self.assert_committed(&self.travelling());
                return;
            }
            let finished = finish::publish(&self.fs, &commit_request(), &staged).await;
            drop(cut);
            match finished {
                Ok(Finished::Whole(id)) => {
                    assert_eq!(self.memory.head("main").await.ok(), Some(id));
                    self.assert_committed(&self.travelling());
                    self.assert_stored().await;
                    return;
                }
                Ok(Finished::Broken { what, owed }) => assert!(owed, "{what}"),
                Err(Unpublished::Unasked(error) | Unpublished::Unseen { error, .. }) => assert_passes(&error),
                Err(Unpublished::Refused(error)) => assert!(error.is_transient(), "{error}"),
            }
        }
        panic!("no commit was whole: {:?}", self.fs.report());
    }

    async fn careful_cut(&self) -> (CommitCut, StagedSet) {
        loop {
            let _ = self.fs.heed_patterns(|_| true).await;
            let cut = self.fs.cut().await.unwrap();
            assert_eq!(cut.waiting.reached().await.files_failed, 0, "{:?}", self.report());
            self.memory.part_late();
            match self.fs.audit_for_commit().await {
                Ok(Some(staged)) => return (cut, staged),
                Ok(None) => {}
                Err(error) => assert_passes(&error),
            }
        }
    }

    /// The server has all content of the branch.
    async fn assert_stored(&self) {
        let tree = self.memory.head_tree();
        let hashes = tree.values().map(|content| ContentHash::of(HashKind::Xxh3, content)).collect::<Vec<_>>();
        let lost = self.memory.missing(&hashes).await;
        assert!(matches!(&lost, Ok(Some(lost)) if lost.is_empty()), "{lost:?}");
    }

    async fn commit_at_last(&self) {
        if self.manner == Manner::Careful {
            return self.commit_carefully().await;
        }
        let (cut, held) = self.staged_cut().await;
        self.publish().await;
        self.assert_committed(&held);
        drop(cut);
    }

    async fn commit_amid(&mut self, staging: &[Op], answering: &[Op]) {
        self.begin_commit().await;
        for op in staging {
            Box::pin(self.unseen_step(op)).await;
        }
        self.answer_commit().await;
        for op in answering {
            Box::pin(self.unseen_step(op)).await;
        }
        self.end_commit().await;
    }

    async fn begin_commit(&mut self) {
        let _ = self.fs.heed_patterns(|_| true).await;
        let cut = self.fs.cut().await.unwrap();
        self.commit = Some(Underway { cut, held: self.travelling(), made: None });
    }

    async fn answer_commit(&mut self) {
        let staged = loop {
            let underway = self.commit.as_ref().expect("a cut");
            assert_eq!(underway.cut.waiting.reached().await.files_failed, 0, "{:?}", self.report());
            self.memory.part_late();
            match self.fs.audit_for_commit().await {
                Ok(Some(staged)) => break staged,
                Ok(None) => {}
                Err(error) => assert_passes(&error),
            }
            // What came late, or went away, is staged by another cut.
            self.commit = None;
            self.begin_commit().await;
        };
        let made = match self.manner {
            Manner::Plain => {
                self.fs.flush().await.unwrap();
                Made::Plain(self.memory.commit(&commit_request()).await.unwrap().id)
            }
            Manner::Careful => loop {
                match finish::ask(&self.fs, &commit_request()).await {
                    Ok(answered) => break Made::Careful(staged, answered),
                    Err(Unpublished::Unasked(error)) => assert_passes(&error),
                    Err(error) => panic!("{error}"),
                }
            },
        };
        self.commit.as_mut().expect("a cut").made = Some(made);
    }

    async fn end_commit(&mut self) {
        let Underway { cut, held, made } = self.commit.take().expect("a cut");
        match made.expect("an answer") {
            Made::Plain(id) => self.fs.rebased(id, true).await.unwrap(),
            Made::Careful(staged, answered) => loop {
                match finish::look_at(&self.fs, &commit_request(), &staged, &answered).await {
                    Ok(Finished::Whole(_)) => break,
                    Ok(Finished::Broken { what, .. }) => panic!("{what}"),
                    Err(error) => assert_passes(&error),
                }
            },
        }
        self.assert_committed(&held);
        drop(cut);
    }

    /// A cut of what the tree holds now, all of it staged.
    async fn staged_cut(&self) -> (CommitCut, BTreeMap<String, Vec<u8>>) {
        loop {
            let _ = self.fs.heed_patterns(|_| true).await;
            let cut = self.fs.cut().await.unwrap();
            assert_eq!(cut.waiting.reached().await.files_failed, 0, "{:?}", self.report());
            if self.is_as_confirmed().await {
                return (cut, self.travelling());
            }
        }
    }

    async fn is_as_confirmed(&self) -> bool {
        // What is late comes before this look or after the commit.
        self.memory.part_late();
        match self.fs.audit().await {
            Ok(differs) => !differs,
            Err(FsError::Remote(error)) if error.is_transient() => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn publish(&self) {
        self.fs.flush().await.unwrap();
        let committed = self.memory.commit(&commit_request()).await.unwrap();
        self.fs.rebased(committed.id, true).await.unwrap();
    }

    fn assert_committed(&self, expected: &BTreeMap<String, Vec<u8>>) {
        let tree: BTreeMap<String, Vec<u8>> = self
            .memory
            .head_tree()
            .into_iter()
            .map(|(path, content)| (path.as_str().to_owned(), content.to_vec()))
            .collect();
        let (tree, expected) = (self.undisputed(tree), self.undisputed(expected.clone()));
        assert!(tree == expected, "the commit differs from the tree: {}", unequal(&tree, &expected));
    }

    /// Renames, replacements and removals while a barrier waits: what it waited for is staged under the names that it has
    /// at the end, and what was removed is not.
    async fn sync_amid(&mut self, meanwhile: &[Op]) {
        // A barrier asks for the workspace once a second at most, and what was emptied is found by a commit or an unmount.
        if self.manner == Manner::Careful {
            loop {
                match self.fs.audit().await {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(error) => assert_passes(&error),
                }
            }
        }
        let before: HashSet<Ino> = self.inodes().await.into_values().collect();
        let free = self.patterns().is_empty();
        let _ = self.fs.heed_patterns(|_| true).await;
        let mut remade = self.fs.times_remade();
        let waiting = self.fs.barrier().unwrap();
        for op in meanwhile {
            Box::pin(self.unseen_step(op)).await;
        }
        assert_eq!(waiting.reached().await.files_failed, 0, "{:?}", self.report());
        while self.fs.times_remade() != remade {
            remade = self.fs.times_remade();
            let again = self.fs.barrier().unwrap();
            assert_eq!(again.reached().await.files_failed, 0, "{:?}", self.report());
        }
        // What was ignored for a moment is not followed.
        if !free || !self.patterns().is_empty() {
            return;
        }
        let staged = self.view();
        let after = self.inodes().await;
        for (path, ino) in &after {
            // A name that was made by a link meanwhile is not waited for, where the file has its old one.
            let linked = after.values().filter(|other| *other == ino).count() > 1;
            if before.contains(ino) && !linked {
                let path = path.join("/");
                assert!(staged.contains_key(&path), "{path} was there when the barrier began, and is not staged");
            }
        }
    }

    /// The inodes of the regular files, by path.
    async fn inodes(&self) -> BTreeMap<Path, Ino> {
        let mut all = BTreeMap::new();
        let mut todo: Vec<(Path, Ino)> = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for (name, ino, format, _) in self.list(dir).await {
                let mut below = path.clone();
                below.push(String::from_utf8(name.as_bytes().to_vec()).unwrap());
                match format {
                    libc::S_IFDIR => todo.push((below, ino)),
                    libc::S_IFREG => drop(all.insert(below, ino)),
                    _ => {}
                }
            }
        }
        all
    }

    async fn crash(&mut self) {
        self.crash_after(|_| ()).await;
    }

    /// Ends the daemon, as a kill does: nothing of it is at work any more.
    pub async fn killed(mut self) {
        self.stop().await;
    }

    async fn stop(&mut self) {
        self.commit = None;
        // The old tasks must be gone before the new ones read the directory, as a process would be.
        for task in &mut self.tasks.0 {
            task.abort();
            let _ = task.await;
        }
        // What they had begun on threads that may block ends by itself.
        let deadline = Instant::now() + STUCK;
        while Arc::strong_count(&self.fs) > 1 {
            assert!(Instant::now() < deadline, "somebody is still at work in the filesystem");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the daemon, changes what it left, and starts another.
    async fn crash_after(&mut self, change: impl FnOnce(&std::path::Path)) {
        self.stop().await;
        change(self.dir.path());
        let kernel = self.kernel.as_ref();
        (self.fs, self.tasks) = start(self.dir.path(), &self.memory, &self.disk, kernel, self.manner).await.unwrap();
    }

    async fn foreign(&mut self, path: &Path, text: Option<&str>) {
        self.drain().await;
        if self.fs.expects_latecomers() {
            // Another's change of a path that is watched is taken for one of ours that came late.
            return;
        }
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
                self.foreign.insert(parsed.as_str().to_owned());
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

    /// Compacts the record, on a disk that may not let it.
    pub fn try_compact(&self) -> Result<(), Refusal> {
        self.fs.compact(true).map_err(|error| refusal(&error))
    }

    /// The whole tree equals the model.
    pub async fn compare(&self, after: &Op) {
        let (shown, expected) = (self.shown().await, self.model.shown());
        assert!(shown == expected, "after {after:?}: {}", difference(&shown, &expected));
        assert_eq!(self.metas().await, self.model.metas(), "after {after:?}");
    }

    /// What a program sees.
    pub async fn shown(&self) -> BTreeMap<Path, Shown> {
        let mut all = BTreeMap::new();
        let mut todo: Vec<(Path, Ino)> = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            self.course.step(format!("{} is listed", path.join("/")));
            for (name, ino, format, size) in self.list(dir).await {
                let mut below = path.clone();
                below.push(String::from_utf8(name.as_bytes().to_vec()).unwrap());
                self.course.step(format!("{} is read", below.join("/")));
                let shown = match format {
                    libc::S_IFDIR => {
                        todo.push((below.clone(), ino));
                        Shown::Dir
                    }
                    libc::S_IFLNK => Shown::Symlink,
                    _ => self.content(ino, size).await.map_or(Shown::Unreadable, Shown::File),
                };
                all.insert(below, shown);
            }
        }
        all
    }

    async fn content(&self, ino: Ino, size: u64) -> Option<Vec<u8>> {
        let flags = OpenFlags { read: true, write: false, truncate: false, execute: false };
        let handle = self.attempt(|fs| fs.open(ino, flags)).await.ok()?;
        let bytes = self.attempt(|fs| fs.read(handle, 0, size as usize + 1)).await;
        self.fs.release(handle);
        let bytes = bytes.ok()?;
        assert_eq!(bytes.len() as u64, size, "the size in the listing");
        Some(bytes)
    }
}

/// It is the server's, and passes.
fn assert_passes(error: &FsError) {
    assert!(matches!(error, FsError::Remote(error) if error.is_transient()), "{error}");
}

/// Where two sets of files differ, in words: contents may be long.
fn unequal(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) -> String {
    let paths: std::collections::BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let differing = paths.into_iter().filter(|path| found.get(*path) != expected.get(*path));
    let told = differing.map(|path| match (found.get(path), expected.get(path)) {
        (Some(found), Some(expected)) => {
            let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
            format!("{path}: {} bytes, not {}, which differ at {at:?}", found.len(), expected.len())
        }
        (found, _) => format!("{path}: {}", if found.is_some() { "should not be there" } else { "is not there" }),
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Where two trees differ, in words.
pub fn difference(found: &BTreeMap<Path, Shown>, expected: &BTreeMap<Path, Shown>) -> String {
    let paths: std::collections::BTreeSet<&Path> = found.keys().chain(expected.keys()).collect();
    let differing = paths.into_iter().filter(|path| found.get(*path) != expected.get(*path));
    let lines: Vec<String> = differing
        .map(|path| format!("{}: found {:?}, expected {:?}", path.join("/"), found.get(path), expected.get(path)))
        .collect();
    lines.join("\n")
}

/// What an operation does to the model.
pub fn on_model(model: &mut Model, op: &Op) -> Result<(), Refusal> {
    match op {
        Op::Write { path, at, text } => model.write(path, *at as usize, text.as_bytes()),
        Op::Replace { path, text } => model.replace(path, text.as_bytes()),
        Op::Stream { path, text, more } => {
            model.write(path, 0, text.as_bytes())?;
            model.write(path, text.len(), more.as_bytes())
        }
        Op::Beside { path, text, .. } => model.overwrite(path, text.as_bytes()),
        Op::Truncate { path, size } => model.truncate(path, *size as usize),
        Op::Copy { from, to } => model.copy(from, to),
        Op::Punch { path, at, length } => model.punch(path, *at as usize, *length as usize),
        Op::Unlink(path) => model.unlink(path),
        Op::Mkdir(path) => model.mkdir(path),
        Op::Symlink(path) => model.symlink(path),
        Op::Rmdir(path) => model.rmdir(path),
        Op::RemoveAll(path) => model.remove_all(path),
        Op::Rename { from, to, mode } => model.rename(from, to, *mode),
        Op::Link { from, to } => model.link(from, to),
        Op::Chmod { path, mode } => model.chmod(path, *mode),
        Op::Chown { path, uid, gid } => model.chown(path, *uid, *gid),
        Op::Setxattr { path, name, value, mode } => model.set_xattr(path, name, value.as_bytes(), *mode),
        Op::Removexattr { path, name } => model.remove_xattr(path, name),
        Op::Fsync(path) => model.flush(path),
        unseen => {
            assert!(unseen.is_unseen(), "{unseen:?}");
            Ok(())
        }
    }
}
