//! What each POSIX operation means here, over one tree that is always in memory and never waits for the network.
//!
//! An operation either completes from what is known, or stops with the one thing it [needs](Need): a listing, a
//! file's bytes, a spool file to write to. [`Fs::run`] gets it and begins the operation again, so an operation is plain
//! synchronous code that sees one consistent state, and the FUSE thread that met a need is free at once.
//!
//! Every change is made under one lock, written as one journal frame, and acknowledged once that frame is in the
//! kernel. The lock is held for memory work alone: not across a write, a copy or a request.

mod ahead;
mod backing;
mod barriers;
mod belief;
mod borrowed;
mod check;
mod commits;
mod contents;
mod copies;
#[cfg(test)]
mod costs;
mod cut;
mod depends;
mod diff;
mod errors;
mod fetching;
mod fixing;
mod handles;
mod import;
mod kernel;
mod latecomers;
mod layers;
mod listing;
mod live;
mod local;
mod lost;
mod mapped;
mod needs;
mod neighbours;
mod ops;
mod owing;
mod passthrough;
mod presence;
mod ranges;
mod recovery;
mod repair;
mod report;
mod room;
#[cfg(test)]
mod schedules;
mod source;
mod staging;
mod standing;
mod tidy;
mod tree;
mod txn;
mod unreadable;
mod unseen;
mod verify;
mod warm;
mod writeback;
mod xattrs;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use backing::Backing;
use fetching::{Flights, Who};
use handles::Handles;
use kernel::{Kernel, Told};
use tokio::sync::Notify;
use tree::Tree;
use txn::Draft;
use writeback::Writeback;

use crate::hash::{ContentHash, HashKind};
use crate::namespace::{Attrs, Body, Dir, Ino, Inode, Namespace, SpoolId, Timestamp};
use crate::path::RepoPath;
use crate::store::cache::Cache;
use crate::store::journal::{Change, Journal};
use crate::store::spool::Spool;
use crate::sync::Mutex;
use crate::workspace::{CommitId, Workspace};

pub use barriers::Waiting;
pub use cut::CommitCut;
pub use diff::recorded_differences;
pub use errors::{FsError, Need, Op, Stop};
pub use import::{Arrival, Arrived, Spooled};
pub use kernel::Stale;
pub use listing::{GRANTED, Keep, OpenedDir};
pub use live::Lender;
pub use lost::{LOST, LostFound};
pub use mapped::Unflushed;
pub use neighbours::Where;
pub use ops::{DirEntry, OpenFlags, RenameMode, SetAttr, SetIds, SetTime, Stat};
pub use passthrough::{Passthrough, Reach};
pub use ranges::{RangeChange, Seek};
pub use recovery::{BaseAccess, Foreign, Limits, Shown, survey};
pub use repair::{Label, Repair, Rescued, repair};
pub use room::Statfs;
pub use warm::{Contents, NotWarmed, Warming};
pub use xattrs::XattrMode;

/// A file of at most this size is copied when a writer meets its sealed generation; a larger one makes its upload
/// stop instead, unless the filesystem shares blocks. 16 MiB copies in a few milliseconds.
const COPY_LIMIT_BYTES: u64 = 16 << 20;

/// Directories listed at a time when a whole subtree is needed.
const LISTINGS_AT_ONCE: usize = 8;

/// How long a reader waits for what went with the workspace to be staged again.
const STAGED_AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// How a mount behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nothing may be changed.
    pub read_only: bool,
    /// How long a path must rest before it is staged.
    pub settle: Duration,
    /// Owner of what the base has.
    pub uid: u32,
    /// Group of what the base has.
    pub gid: u32,
    /// Bits taken from the modes of what the base has: 0666 for files, 0777 for directories.
    pub umask: u16,
}

/// The filesystem.
pub struct Fs {
    this: Weak<Fs>,
    options: Options,
    hash_kind: HashKind,
    workspace: Arc<dyn Workspace>,
    journal: Journal,
    spool: Spool,
    cache: Cache,
    state: Mutex<State>,
    /// Something may be due for staging.
    pub wake: Notify,
    /// A path was confirmed, failed or given up: barriers look again.
    pub progress: Notify,
    /// A spool file is no longer held.
    unheld: Notify,
    /// A writer waits for a spool file that is held.
    wanted_back: AtomicBool,
    /// Told what the kernel must look up anew.
    watcher: Mutex<Option<std::sync::mpsc::Sender<Told>>>,
    /// Has the kernel write back a file; set when the mount is served.
    write_back: OnceLock<Arc<mapped::WriteBack>>,
    /// Spool files that no file has any more. Each is removed when the record of that is on stable storage: after a
    /// power loss an older record may count, which still names them.
    leaving: Mutex<Vec<SpoolId>>,
    /// Spool files that a crash left without a name; they are set aside bit by bit.
    strays: Mutex<Vec<SpoolId>>,
    /// Where they go.
    lost: LostFound,
    /// When it is next looked which of those have lain there for long enough.
    expiry: Mutex<Option<Instant>>,
    /// Those that no record names any more; they go bit by bit.
    unnamed: Mutex<VecDeque<SpoolId>>,
    /// Downloads under way, so that many readers of one content share one.
    fetching: Flights<(ContentHash, Who), Arc<File>>,
    /// Caches of other mounts.
    neighbours: OnceLock<neighbours::Neighbours>,
    /// How long programs wait for a server from which nothing comes.
    read_timeout: OnceLock<Option<Duration>>,
    /// Listings under way.
    listing: Flights<(Ino, Who), ()>,
    /// Directories that are listed at a time for what is to be staged.
    learning: tokio::sync::Semaphore,
    /// The workspace, as it was when it was last looked at.
    presence: tokio::sync::Mutex<presence::Presence>,
    /// How often it was made again.
    remade: AtomicU64,
    /// The branch that the workspace is made on, where it has to be made again.
    branch: OnceLock<String>,
    /// The kernel, where it can go past the daemon; set before anything is served.
    lender: OnceLock<Option<Arc<dyn Lender>>>,
    passthrough: OnceLock<Passthrough>,
    /// From which length on a file of the cache is borrowed by those who read it; `None`: none is.
    worthwhile: OnceLock<Option<u64>>,
    /// Set when all that an earlier daemon left in the spool has been looked at.
    loaded: tokio::sync::OnceCell<()>,
}

/// All that changes, under one lock. Each part is in a file of its own, and its fields are that file's alone.
struct State {
    tree: Tree,
    writeback: Writeback,
    backing: Backing,
    handles: Handles,
    kernel: Kernel,
    /// What the transaction under way has changed.
    draft: Draft,
    /// Known while the record is replayed.
    left_behind: belief::LeftBehind,
    /// What a repair salvaged, and shows.
    salvaged: lost::SalvagedFiles,
    /// What the server has and programs cannot read.
    unreadable: unreadable::Unreadable,
    /// Changes since it was last checked whether all is as it should be.
    #[cfg(debug_assertions)]
    unchecked: usize,
}

/// The time now, as `stat` shows it.
fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The time now, as the journal has it.
fn now_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl State {
    /// Makes a change in memory: of one that goes on record, or is there.
    fn replay(&mut self, change: &Change) {
        match change {
            Change::Account { path, account } => self.writeback.set_account(path.clone(), *account),
            Change::Upload { path, upload } => self.writeback.set_upload(path, upload.as_ref()),
            Change::Base { commit } if self.tree.base() == commit => {}
            Change::Base { commit } => self.tree.move_base(commit),
            Change::Rebase { commit, alone } => self.rebase(commit, *alone),
            Change::Intent { intent } => self.writeback.set_intent(intent.as_ref()),
            change => self.tree.apply(change),
        }
    }
}

impl Fs {
    /// Refuses what makes something new when the record or the spool has no room for it.
    fn admit(&self) -> Op<()> {
        self.writable_mount()?;
        if !self.journal.has_room() || self.spool.limit().is_some_and(|limit| self.spool.used() >= limit) {
            return Err(FsError::NoSpace.into());
        }
        Ok(())
    }

    /// Refuses every change where none is allowed or none can be put on record.
    fn writable_mount(&self) -> Op<()> {
        if self.options.read_only {
            return Err(FsError::ReadOnly.into());
        }
        Ok(self.journal.ready()?)
    }

    /// Runs work that waits for the local disk off the caller's thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Fs) -> Result<T, FsError> + Send + 'static,
    ) -> Result<T, FsError> {
        let Some(fs) = self.this.upgrade() else {
            return Err(FsError::Stale);
        };
        match tokio::task::spawn_blocking(move || work(&fs)).await {
            Ok(done) => done,
            Err(error) => Err(FsError::Io(Arc::new(io::Error::other(error)))),
        }
    }

    /// What the mount's root is in the repository.
    pub fn root_path(&self) -> RepoPath {
        self.lock().tree.root_path().clone()
    }

    /// The commit under the workspace.
    pub fn base(&self) -> CommitId {
        self.lock().tree.base().clone()
    }

    /// The backend.
    pub fn workspace(&self) -> &Arc<dyn Workspace> {
        &self.workspace
    }

    /// The function that names content.
    pub fn hash_kind(&self) -> HashKind {
        self.hash_kind
    }

    /// The spool, to ask what it holds.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The cache, to [learn](Cache::learn) what it holds.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }
}

/// Sets a spool file's modification time, which is what counts after a crash.
fn set_mtime(file: &File, Timestamp(secs, nanos): Timestamp) -> io::Result<()> {
    let mtime = rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos.into() };
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = rustix::fs::Timestamps { last_access: omit, last_modification: mtime };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// Whether a write to a file takes more from it than its old bytes: set-id bits, or a capability.
fn is_guarded(inode: &Inode) -> bool {
    u32::from(inode.attrs.mode) & (libc::S_ISUID | libc::S_ISGID) != 0
        || inode.xattrs.as_ref().is_some_and(|xattrs| xattrs.iter().any(|(name, _)| **name == *b"security.capability"))
}

/// The tree before anything is known: an unlisted root.
fn empty_tree(root_path: RepoPath, options: &Options) -> Namespace {
    Namespace::new(root_path, base_attrs(options, true, now()))
}

/// The attributes of what the base has; it knows none but a time.
fn base_attrs(options: &Options, dir: bool, time: Timestamp) -> Attrs {
    let mode = if dir { 0o777 } else { 0o666 } & !options.umask;
    Attrs { mode, uid: options.uid, gid: options.gid, atime: time, mtime: time, ctime: time }
}

/// A directory that the base has and that has not been listed.
fn unlisted_dir() -> Body {
    Body::Dir(Box::new(Dir { based: true, ..Dir::default() }))
}
