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
mod belief;
mod blocks;
mod borrowed;
mod check;
mod conflicts;
#[cfg(test)]
mod costs;
mod cut;
mod diff;
mod eviction;
mod fetching;
mod following;
mod handles;
mod ignored;
mod ignoring;
mod import;
mod kept;
mod kernel;
mod latecomers;
mod layers;
mod listing;
mod live;
mod local;
mod lost;
mod mapped;
mod merge;
mod neighbours;
mod offline;
mod ops;
mod passthrough;
mod presence;
mod ranges;
mod rebase;
mod recovery;
mod repair;
mod restore;
mod room;
#[cfg(test)]
mod schedules;
mod sharing;
mod staging;
mod standing;
mod tree;
mod txn;
mod unreadable;
mod unseen;
mod verify;
mod warm;
mod writeback;
mod xattrs;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use crate::hash::{ContentHash, HashKind};
use crate::namespace::{Attrs, Body, Content, Dir, Ino, Inode, Namespace, Resolved, SpoolId, Timestamp};
use crate::path::RepoPath;
use crate::store::disk::Act;
use crate::store::journal::{Change, Journal};
use crate::store::spool::{self, Cache, Spool, copy_content};
use crate::sync::{Mutex, MutexGuard};
use crate::workspace::{CommitId, Object, Revision, Source, Workspace, WorkspaceError};
use crate::writeback::index::Account;
use backing::Backing;
use fetching::{Flights, Who};
use handles::Handles;
use ignored::Ignored;
use kernel::{Kernel, Told};
use passthrough::Way;
use standing::Event;
use tree::{Token, Tree};
use txn::Draft;
use writeback::Writeback;

pub use crate::writeback::queue::Phase;
pub use conflicts::{Choice, Version};
pub use cut::{CommitCut, Paused};
pub use diff::recorded_differences;
pub use eviction::KEPT_NODES;
pub use following::{Followed, Outlook, Stays};
pub use import::{Arrival, Arrived, Spooled};
pub use kernel::Stale;
pub use listing::{GRANTED, Keep, OpenedDir};
pub use live::Lender;
pub use local::quarter_of_descriptors;
pub use lost::{LOST, LostFound};
pub use mapped::Unflushed;
pub use neighbours::{Neighbour, Of, Where};
pub use ops::{DirEntry, OpenFlags, RenameMode, SetAttr, SetIds, SetTime, Stat};
pub use passthrough::{Passthrough, Reach};
pub use ranges::{RangeChange, Seek};
pub use rebase::{Meets, Taken};
pub use recovery::{BaseAccess, Foreign, Limits, Shown, Survey, survey};
pub use repair::{Label, Repair, Rescued, repair};
pub use restore::{NotRestored, Target};
pub use room::Statfs;
pub use staging::{Capture, Frees, Held, Waiting, Want};
pub use warm::{Contents, NotWarmed, Warming};
pub use xattrs::XattrMode;

/// A file of at most this size is copied when a writer meets its sealed generation; a larger one makes its upload
/// stop instead, unless the filesystem shares blocks. 16 MiB copies in a few milliseconds.
const COPY_LIMIT_BYTES: u64 = 16 << 20;
/// How long a writer waits for whoever holds a file: a question to a server that does not answer can take minutes.
const HOLDERS_PATIENCE: Duration = Duration::from_secs(1);
/// Directories listed at a time when a whole subtree is needed.
const LISTINGS_AT_ONCE: usize = 8;
/// How long a reader waits for what went with the workspace to be staged again.
const STAGED_AGAIN_WITHIN: Duration = Duration::from_secs(30);
/// Directories that are listed ahead before it is counted again how much is known.
const LISTED_BETWEEN_COUNTS: usize = 1000;
/// Of the small spool files that nobody needs, about how many go a second: at least so many, and so that half a minute
/// sees most of them gone. ext4 does not give away an inode for some time after it was freed, and looks at each such
/// before it finds another (`recently_deleted` in fs/ext4/ialloc.c): new files are made slowly after very many were
/// removed at once.
const LEAST_REMOVED: usize = 200;
const REMOVED_WITHIN: usize = 30;
/// How many of them go in a row, and the pause after that.
const REMOVED_IN_A_ROW: usize = 16;
const REMOVAL_PAUSE: Duration = Duration::from_millis(2);
/// What is so long is removed at once: its room is missed.
const LARGE_BYTES: u64 = 1 << 20;

/// Why an operation cannot be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such file or directory.
    #[error("not found")]
    NotFound,
    /// The name is taken.
    #[error("exists already")]
    Exists,
    /// A directory was expected.
    #[error("not a directory")]
    NotDir,
    /// Anything but a directory was expected.
    #[error("is a directory")]
    IsDir,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The name is over 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// Mounted read-only.
    #[error("read-only mount")]
    ReadOnly,
    /// The caller may not.
    #[error("not permitted")]
    NotPermitted,
    /// The spool's limit or the local disk is reached.
    #[error("no space left in the spool")]
    NoSpace,
    /// Not an open handle, or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// A program runs from it.
    #[error("being executed")]
    TextBusy,
    /// Programs still read what it was before somebody else's commit.
    #[error("being read as it was before another commit")]
    Busy,
    /// The inode is gone.
    #[error("stale handle")]
    Stale,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoData,
    /// Nothing of the kind from there to the end of the file.
    #[error("past the end")]
    PastEnd,
    /// A file has as many names as it may.
    #[error("too many links")]
    TooManyLinks,
    /// It does not fit where it is wanted.
    #[error("out of range")]
    Range,
    /// An extended attribute's value is longer than any may be.
    #[error("value too long")]
    TooBig,
    /// Whoever waits for it was killed.
    #[error("interrupted")]
    Interrupted,
    /// Not on this kind of file, or not with these flags.
    #[error("not supported")]
    Unsupported,
    /// The server or the way to it said no.
    #[error(transparent)]
    Remote(#[from] WorkspaceError),
    /// The local filesystem said no.
    #[error("local filesystem: {0}")]
    Io(#[source] Arc<io::Error>),
}

impl FsError {
    /// In words, without what differs each time: two that have the same are one and the same trouble.
    pub fn reason(&self) -> String {
        match self {
            Self::Remote(error) => error.reason(),
            error => error.to_string(),
        }
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

/// What an operation lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// The base's entries of a directory.
    List(Ino),
    /// The base's entries of a directory and all below it.
    ListAll(Ino),
    /// A file's bytes, to read.
    Fetch(Ino),
    /// Some of them, or to know whether they come one by one: from the first to before the second.
    Blocks(Ino, u64, u64),
    /// A spool file with a file's bytes, to change.
    Own(Ino),
    /// An empty spool file in place of a file's bytes.
    Empty(Ino),
    /// A look at a file in the spool that an earlier daemon left.
    Look(Ino),
    /// A look at all such files of a directory.
    LookIn(Ino),
}

/// Why an operation stopped.
#[derive(Debug)]
pub enum Stop {
    /// It cannot be done.
    Error(FsError),
    /// It can, once this is there.
    Need(Need),
}

impl<E: Into<FsError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// What an operation answers.
pub type Op<T> = Result<T, Stop>;

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
    /// What restores dropped.
    kept: kept::Kept,
    /// When it is next looked which of those have lain there for long enough.
    expiry: Mutex<Option<Instant>>,
    /// Those that no record names any more; they go bit by bit.
    unnamed: Mutex<VecDeque<SpoolId>>,
    /// Downloads under way, so that many readers of one content share one.
    fetching: Flights<(ContentHash, Who), Arc<File>>,
    /// Large files that are here in part.
    blocks: blocks::Blocks,
    /// Small files that are fetched before they are asked for.
    ahead: ahead::Ahead,
    /// Caches of other mounts.
    neighbours: OnceLock<neighbours::Neighbours>,
    /// How long programs wait for a server from which nothing comes.
    read_timeout: OnceLock<Option<Duration>>,
    /// Listings under way.
    listing: Flights<(Ino, Who), ()>,
    /// When nodes are dropped that the kernel has forgotten.
    eviction: eviction::Eviction,
    /// Directories that are listed at a time for what is to be staged.
    learning: tokio::sync::Semaphore,
    /// The workspace, as it was when it was last looked at.
    presence: tokio::sync::Mutex<presence::Presence>,
    /// How often it was made again.
    remade: AtomicU64,
    /// Others may stage in it.
    shared: AtomicBool,
    /// The server was not met yet.
    offline: AtomicBool,
    /// The base was listed, and has nothing at the root.
    is_root_empty: AtomicBool,
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
    /// What stays here because a pattern says so.
    ignored: Ignored,
    /// What a repair salvaged, and shows.
    salvaged: lost::SalvagedFiles,
    /// What the server has and programs cannot read.
    unreadable: unreadable::Unreadable,
    /// Files that others changed, and that programs have open.
    waiting: conflicts::Waiting,
    /// The workspace stands on another commit than the tree: others committed it, or it was deleted and made again. Nothing
    /// is sent to it before the tree has followed: what others have there is not known here.
    elsewhere: bool,
    /// Changes since it was last checked whether all is as it should be.
    #[cfg(debug_assertions)]
    unchecked: usize,
}

/// A copy of a file's bytes that is to take their place.
#[derive(Clone, Copy)]
struct Copy {
    of: Token,
    /// Length in bytes.
    size: u64,
    /// Bytes that are reserved for it.
    reserved: u64,
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
            Change::Conflict { path, conflict } => self.writeback.set_conflict(path, conflict.as_ref()),
            Change::Upload { path, upload } => self.writeback.set_upload(path, upload.as_ref()),
            Change::Base { commit } if self.tree.base() == commit => {}
            Change::Base { commit } => {
                self.elsewhere = false;
                self.tree.move_base(commit);
            }
            Change::Rebase { commit, alone } => {
                self.elsewhere = false;
                self.rebase(commit, *alone);
            }
            Change::Intent { intent } => self.writeback.set_intent(intent.as_ref()),
            change => self.tree.apply(change),
        }
    }

    /// The content of a regular file.
    fn content(&self, ino: Ino) -> Option<(&Content, u64)> {
        self.tree.content(ino)
    }

    /// Whether a file has the same bytes [still](Tree::still), and nobody is changing them or may do so unseen.
    fn rests(&self, token: Token) -> bool {
        let ino = token.ino();
        let past = self.handles.way(ino) == Some(Way::Past) || self.backing.is_live(ino);
        self.tree.still(token) && !self.handles.is_changing(ino) && !past
    }

    /// Gives a file other content. What is in the spool counts for its length, until the caller says what else.
    fn set_content(&mut self, ino: Ino, content: Content, size: u64) {
        self.note_content(ino, &content);
        if let Some(Inode { body: Body::File { content: old, size: old_size }, .. }) = self.tree.edit(ino) {
            (*old, *old_size) = (content, size);
        }
    }

    /// A file is about to have this content.
    fn note_content(&mut self, ino: Ino, content: &Content) {
        if let Some(path) = content.origin_in_workspace() {
            self.backing.reads_at(path, ino);
        }
        self.backing.set_counted(ino, None);
    }

    /// Opens the account of a path that is about to differ from the base. What stands there now tells what the base
    /// has, since without an account tree and base agree.
    fn open_account(&mut self, path: &RepoPath, stands: Option<Ino>) {
        if self.writeback.account(path).is_some() || self.clash_deferred(path) {
            return;
        }
        let base = stands.and_then(|ino| match self.content(ino)? {
            (Content::Remote { hash, .. }, size) => Some(Object { hash: *hash, size }),
            (Content::Local { .. }, _) => None,
        });
        self.apply(Change::Account { path: path.clone(), account: Some(Account { base, ..Account::default() }) });
    }

    /// Puts paths in the queue, or closes the accounts of those where nothing is or was owed.
    fn touch<'a>(&mut self, paths: impl IntoIterator<Item = &'a RepoPath>, settle: Duration) {
        // Nothing of the tree changes in between.
        let mut vacant = HashMap::new();
        for path in paths {
            self.end_agreed_conflict(path);
            self.hold_no_more(path);
            if self.writeback.account(path) == Some(Account::default())
                && self.writeback.conflict(path).is_none()
                && !matches!(self.tree.resolve(path), Resolved::Inode(ino) if self.content(ino).is_some())
                && !self.writeback.queue().is_active(path)
                && !self.is_in_cut(path)
                && !self.kept_base_dir(path, &mut vacant)
            {
                self.writeback.owe_no_more(path);
                self.apply(Change::Account { path: path.clone(), account: None });
            } else {
                self.writeback.owe(path, settle);
            }
        }
    }

    /// Whether the file that was at `path` was the last thing that kept a directory of the base from being removed.
    /// `known` is [`is_vacant`](Self::is_vacant)'s.
    fn kept_base_dir(&self, path: &RepoPath, known: &mut HashMap<Ino, bool>) -> bool {
        let above = || std::iter::successors(path.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
        // What is based in a directory is in all above it, and what travels from it too: the lowest decides.
        let based = above().position(|dir| self.writeback.ledger().based_below(&dir).next().is_some());
        based.is_some_and(|lowest| above().take(lowest + 1).all(|dir| self.is_vacant(&dir, known)))
    }

    /// Whether nothing at or below a directory's path is to travel.
    fn is_vacant(&self, dir: &RepoPath, known: &mut HashMap<Ino, bool>) -> bool {
        match self.tree.resolve(dir) {
            Resolved::Absent => true,
            Resolved::Inode(ino) => self.tree.is_vacant(ino, known),
            Resolved::AsBase => false,
        }
    }

    /// Puts every path of a file in the queue.
    fn touch_file(&mut self, ino: Ino, settle: Duration) {
        let is_file = self.content(ino).is_some();
        for path in self.tree.file_paths(ino) {
            self.open_account(&path, Some(ino));
            self.hold_no_more(&path);
            match is_file {
                // Something is owed for it.
                true => self.writeback.owe(&path, settle),
                false => self.touch([&path], settle),
            }
        }
    }

    /// Where a file's remote bytes can be read.
    fn source(&self, ino: Ino) -> Option<Source> {
        let (Content::Remote { hash, origin }, _) = self.content(ino)? else {
            return None;
        };
        if let Some(origin) = origin {
            return Some((**origin).clone());
        }
        let staged = |path: &RepoPath| matches!(self.writeback.account(path).map(|a| a.staged), Some(crate::writeback::index::Staged::Put(o)) if o.hash == *hash);
        match self.tree.paths_of(ino).find(staged) {
            Some(path) => Some(Source { revision: Revision::Workspace, path }),
            None => {
                let path = self.tree.paths_of(ino).next()?;
                Some(Source { revision: Revision::Commit(self.tree.base().clone()), path })
            }
        }
    }

    /// Forgets an inode that nothing holds, and its spool file.
    fn bury(&mut self, ino: Ino) {
        if !self.tree.is_dead(ino) {
            return;
        }
        if let Some((Content::Local { spool, .. }, _)) = self.content(ino) {
            let spool = *spool;
            self.discard(spool, self.counted(ino));
        }
        self.backing.forget(ino);
        if self.tree.get(ino).is_some_and(|inode| inode.recorded) {
            self.apply(Change::Drop { ino });
        } else {
            self.tree.forget_inode(ino);
        }
    }
}

impl Fs {
    /// Refuses what makes something new when the record or the spool has no room for it.
    fn admit(&self) -> Op<()> {
        self.writable_mount()?;
        if !self.journal.has_room() || self.spool.is_full() {
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

    /// Carries an operation through: gets what it needs until it is done.
    ///
    /// # Errors
    /// The operation's own, or that a need could not be met.
    pub async fn run<T>(&self, mut stopped: Need, op: impl Fn(&Fs) -> Op<T>) -> Result<T, FsError> {
        loop {
            self.satisfy(stopped).await?;
            match op(self) {
                Ok(out) => return Ok(out),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Need(need)) => stopped = need,
            }
        }
    }

    /// Gets one thing that an operation needs.
    ///
    /// # Errors
    /// From the server for listings and bytes, from the local filesystem for spool files.
    pub async fn satisfy(&self, need: Need) -> Result<(), FsError> {
        match need {
            Need::List(dir) => self.list(dir, Who::Program).await,
            Need::ListAll(dir) => self.list_all(dir).await,
            Need::Fetch(ino) if self.is_being_borrowed(ino) => {
                tokio::time::sleep(borrowed::SOON).await;
                Ok(())
            }
            Need::Fetch(ino) => {
                self.note_miss(ino);
                self.bring(ino).await
            }
            Need::Blocks(ino, from, to) => self.bring_blocks(ino, from..to).await,
            Need::Own(ino) => self.own(ino).await,
            Need::Empty(ino) => self.blocking(move |fs| fs.empty(ino)).await,
            Need::Look(ino) => self.blocking(move |fs| Ok(fs.look_at(ino)?)).await,
            Need::LookIn(dir) => self.blocking(move |fs| Ok(fs.look_in(dir)?)).await,
        }
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

    /// Gives a file a spool file of its own that nobody else reads, with its bytes in it.
    async fn own(&self, ino: Ino) -> Result<(), FsError> {
        let mut waits_until = None;
        loop {
            if self.is_borrowed(ino) {
                if !self.blocking(move |fs| fs.take_borrowed(ino)).await? {
                    tokio::time::sleep(borrowed::SOON).await;
                }
                continue;
            }
            let remote = self.fetch(ino, true).await?;
            let unheld = self.unheld.notified();
            let mut wait = Duration::ZERO;
            match remote {
                Some((hash, from)) => {
                    let of = Token::of_server(ino, hash);
                    self.blocking(move |fs| fs.take_copy(of, &from)).await?;
                }
                None => {
                    let held = {
                        let state = self.lock();
                        let Some((Content::Local { spool, generation, .. }, size)) = state.content(ino) else {
                            continue;
                        };
                        let of = Token::of_spool(ino, *spool, *generation);
                        let pinned = state.backing.is_pinned_by_cut(*spool);
                        let holders = state.backing.holders(*spool);
                        holders.map(|cancel| (of, size, cancel, pinned))
                    };
                    match held {
                        None => {}
                        Some((of, size, cancel, pinned)) => {
                            let now = Instant::now();
                            let waited = waits_until.is_some_and(|until| until <= now);
                            let copied = self
                                .blocking(move |fs| {
                                    let Some(from) = fs.spool_file(of)? else { return Ok(true) };
                                    match fs.take_copy_if(of, &from, size <= COPY_LIMIT_BYTES || pinned || waited) {
                                        // No room now; the file itself comes free some time.
                                        Err(FsError::NoSpace) if waited => Ok(false),
                                        copied => copied,
                                    }
                                })
                                .await?;
                            if !copied {
                                let until = *waits_until.get_or_insert(now + HOLDERS_PATIENCE);
                                wait = if waited { HOLDERS_PATIENCE } else { until - now };
                                cancel.cancel();
                                self.wanted_back.store(true, Ordering::Release);
                                self.wake.notify_one();
                            }
                        }
                    }
                }
            }
            if !wait.is_zero() {
                // A reader lets go within a mebibyte's work.
                let _ = tokio::time::timeout(wait, unheld).await;
            }
            let state = self.lock();
            match state.content(ino) {
                None => return Err(FsError::Stale),
                Some((Content::Local { spool, .. }, _)) if !state.backing.is_held(*spool) => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// Copies when the filesystem shares blocks or `whatever_it_costs`; says whether it did.
    fn take_copy_if(&self, of: Token, from: &File, whatever_it_costs: bool) -> Result<bool, FsError> {
        if !whatever_it_costs {
            let (probe, file) = self.spool.create()?;
            let shares = rustix::fs::ioctl_ficlone(&file, from).is_ok();
            self.spool.remove(probe);
            if !shares {
                return Ok(false);
            }
        }
        self.take_copy(of, from).map(|()| true)
    }

    /// Puts a copy of `from`, which has the bytes `of` a file, in the place of these, unless they are others by now: the reader that made the copy necessary may let go before it is done, and writers go on with the original.
    fn take_copy(&self, of: Token, from: &File) -> Result<(), FsError> {
        let found = from.metadata()?;
        // Its holes are the copy's.
        let (size, reserved) = (found.len(), spool::holes::counted_of(&found));
        self.spool.reserve(reserved)?;
        self.make_room(reserved);
        let (id, to) = self.spool.create().inspect_err(|_| self.spool.release(reserved))?;
        let copied = self.spool.disk().act(Act::Write(&to), || copy_content(from, &to));
        if let Err(error) = copied {
            self.scrap(id, reserved);
            return Err(error.into());
        }
        // The old bytes may be on stable storage, by an `fsync` or on the server: the record must not move on to
        // bytes that are not.
        if let Err(error) = self.spool.sync(id, &to) {
            self.scrap(id, reserved);
            return Err(error.into());
        }
        self.install(of.ino(), id, to, Some(Copy { of, size, reserved }))
    }

    /// Puts an empty spool file in the place of a file's content.
    fn empty(&self, ino: Ino) -> Result<(), FsError> {
        let (id, file) = self.spool.create()?;
        self.install(ino, id, file, None)?;
        // Unlike a copy, this is a change, whether or not a write follows.
        let noted = self.change(|state| {
            state.wrote(ino, |size| size, self);
            Ok(state.tree.get(ino).map(|inode| inode.attrs.mtime).zip(state.spooled(ino)))
        });
        match staging::into_plain(noted)? {
            Some((mtime, spooled)) => staging::into_plain(self.stamp_spool(Some(spooled), mtime)),
            None => Ok(()),
        }
    }

    /// Makes a spool file a file's content: an empty one, or a copy, if the file rests with what that is of.
    fn install(&self, ino: Ino, id: SpoolId, file: File, copy: Option<Copy>) -> Result<(), FsError> {
        let (size, reserved) = copy.map_or((0, 0), |copy| (copy.size, copy.reserved));
        let room = spool::room(&file);
        let mtime = {
            let state = self.lock();
            state.tree.get(ino).map(|inode| inode.attrs.mtime)
        };
        if let Some(mtime) = mtime
            && let Err(error) = set_mtime(&file, mtime)
        {
            self.scrap(id, reserved);
            return Err(error.into());
        }
        let done = self.change(|state| {
            // What a write under way puts into the original is in no copy. And where programs go past the daemon, they stay
            // with the file that they went to.
            let ready = match copy {
                Some(copy) => state.rests(copy.of),
                None => state.handles.way(ino) != Some(Way::Past) && !state.backing.is_live(ino),
            };
            let Some(old) = state.tree.token(ino).filter(|_| ready) else { return Ok(false) };
            let counted = state.counted(ino);
            for path in state.tree.file_paths(ino) {
                state.open_account(&path, Some(ino));
            }
            let generation = state.tree.fresh_generation();
            let hash = copy.and_then(|copy| copy.of.on_server());
            let content = Content::Local { spool: id, generation, hash };
            state.step(ino, Event::Installed, |state| state.set_content(ino, content, size));
            let counted_now = room.map_or(size, |room| state.note_room(ino, room));
            self.spool.recount(reserved, counted_now);
            state.handles.replace(ino, Arc::new(file));
            if hash.is_some() {
                state.pin_for_cut(self, ino);
            }
            if let Some(spool) = old.spool() {
                state.discard(spool, counted);
            }
            Ok(true)
        });
        if !staging::into_plain(done)? {
            self.scrap(id, reserved);
        }
        Ok(())
    }

    /// Removes a spool file that was never on record, and what is counted for it.
    fn scrap(&self, id: SpoolId, size: u64) {
        self.spool.remove(id);
        self.spool.release(size);
    }

    /// Removes a spool file that the record no longer names, soon.
    fn leave(&self, spool: SpoolId) {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).push(spool);
    }

    /// Flushes the record, and then moves to the cache the spool files that it no longer names, and removes a share of
    /// those that nobody needs. To be called about once a second, where it may wait for the disk.
    ///
    /// # Errors
    /// When the record cannot be flushed; what was to be done is done the next time, or at the next mount.
    pub fn tidy(&self) -> Result<(), FsError> {
        self.tidy_parts();
        self.journal.note_written();
        self.settle_spool()?;
        self.forget_salvaged()?;
        let waiting = self.unnamed().len();
        let (most, pause) = match self.cache.has_some_free() {
            true => (LEAST_REMOVED.max(waiting / REMOVED_WITHIN), REMOVAL_PAUSE),
            false => (usize::MAX, Duration::ZERO),
        };
        self.put_strays_aside(most, Duration::ZERO);
        self.clear_kept();
        self.evict_forgotten();
        self.expire_strays();
        self.remove_unnamed(most, pause);
        Ok(())
    }

    /// The same, and all are removed: nobody is kept waiting any more.
    ///
    /// # Errors
    /// As [`tidy`](Self::tidy).
    pub fn tidy_all(&self) -> Result<(), FsError> {
        self.tidy_parts();
        self.settle_spool()?;
        self.forget_salvaged()?;
        self.put_strays_aside(usize::MAX, Duration::ZERO);
        self.journal.note_written();
        self.remove_unnamed(usize::MAX, Duration::ZERO);
        Ok(())
    }

    fn settle_spool(&self) -> Result<(), FsError> {
        let leaving = std::mem::take(&mut *self.leaving.lock().unwrap_or_else(PoisonError::into_inner));
        // Before the flush: what arrives meanwhile need not be covered by it.
        let arrived = {
            let state = self.lock();
            // What is held keeps its name: it may be opened by it.
            self.cache.arrived(|spool| !state.backing.is_held(spool))
        };
        if leaving.is_empty() && arrived.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.journal.sync(self.journal.append(&[])) {
            self.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(leaving);
            return Err(error.into());
        }
        let (large, small): (Vec<SpoolId>, Vec<SpoolId>) =
            leaving.into_iter().partition(|spool| Spool::length(self.spool.dir(), *spool) >= LARGE_BYTES);
        large.into_iter().for_each(|spool| self.spool.remove(spool));
        self.unnamed().extend(small);
        self.cache.settle(arrived);
        Ok(())
    }

    /// Removes up to `most` small spool files that nobody needs, with a pause after every few. Whether there were any.
    fn remove_unnamed(&self, most: usize, pause: Duration) -> bool {
        for removed in 0..most {
            let Some(spool) = self.unnamed().pop_front() else { return removed > 0 };
            self.spool.remove(spool);
            if removed % REMOVED_IN_A_ROW == 0 && !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        most > 0
    }

    fn unnamed(&self) -> MutexGuard<'_, VecDeque<SpoolId>> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the mount's root, as far as that needs no more patience than any request has.
    ///
    /// # Errors
    /// The server's.
    pub async fn list_root(&self) -> Result<(), FsError> {
        self.list(crate::namespace::ROOT, Who::Staging).await
    }

    /// Opens the spool file of bytes that a file had; `None` when it has another by now: a confirmation moves spool files
    /// away.
    fn spool_file(&self, of: Token) -> io::Result<Option<File>> {
        self.unless_replaced(of, |spool| self.spool.file(spool))
    }

    /// The same for reading.
    fn spool_file_to_read(&self, of: Token) -> io::Result<Option<File>> {
        self.unless_replaced(of, |spool| self.spool.file_to_read(spool))
    }

    fn unless_replaced(&self, of: Token, open: impl FnOnce(SpoolId) -> io::Result<File>) -> io::Result<Option<File>> {
        let Some(spool) = of.spool() else { return Ok(None) };
        match open(spool) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.lock().tree.still_in(of) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// What the mount's root is in the repository.
    pub fn root_path(&self) -> RepoPath {
        self.lock().tree.root_path().clone()
    }

    /// Whether an account says what the base has at `path`: others' commit may have changed that until the directory is
    /// listed again.
    pub fn knows_base_of(&self, path: &RepoPath) -> bool {
        self.lock().unlisted_around(path).is_none()
    }

    /// Lists the directory around `path`, so that its account says what the base has there.
    ///
    /// # Errors
    /// The server's.
    pub async fn learn_base_of(&self, path: &RepoPath) -> Result<(), FsError> {
        let Some(dir) = self.lock().unlisted_around(path) else { return Ok(()) };
        let _turn = self.learning.acquire().await;
        self.list(dir, Who::Staging).await
    }

    /// Whether all is known that tells which directories a removed file was the last of.
    pub fn knows_above(&self, removed: &RepoPath) -> bool {
        self.lock().unlisted_above(removed, &mut HashMap::new()).is_none()
    }

    /// Lists the lowest directory around a removed file of which that is not known.
    ///
    /// # Errors
    /// The server's.
    pub async fn learn_above(&self, removed: &RepoPath) -> Result<(), FsError> {
        let Some(dir) = self.lock().unlisted_above(removed, &mut HashMap::new()) else { return Ok(()) };
        let _turn = self.learning.acquire().await;
        self.list(dir, Who::Staging).await
    }

    /// Lists every known directory anew, after the base moved.
    ///
    /// # Errors
    /// The server's; what is not listed then is listed when it is needed.
    pub async fn relist(&self) -> Result<(), FsError> {
        use futures_util::{StreamExt, TryStreamExt, stream};
        let known: Vec<Ino> = {
            let state = self.lock();
            let unlisted = state.tree.iter().filter(|(_, inode)| matches!(&inode.body, Body::Dir(dir) if !dir.listed));
            unlisted.filter(|(_, inode)| inode.lookups > 0).map(|(ino, _)| ino).collect()
        };
        stream::iter(known)
            .map(|dir| self.list(dir, Who::Staging))
            .buffer_unordered(LISTINGS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Lists directories of the base that nobody asked for yet, from the top down, until `most` files and directories are
    /// known or nothing is left: what is known can be changed while the server is away.
    ///
    /// # Errors
    /// The server's; what was listed stays.
    pub async fn list_ahead(&self, most: usize) -> Result<(), FsError> {
        use futures_util::{StreamExt, TryStreamExt, stream};
        let mut before = Vec::new();
        loop {
            let level: Vec<Ino> = {
                let state = self.lock();
                if state.tree.len() >= most {
                    return Ok(());
                }
                let dirs = state.tree.iter().filter(|(_, inode)| matches!(&inode.body, Body::Dir(dir) if !dir.listed));
                dirs.map(|(ino, _)| ino).take(LISTED_BETWEEN_COUNTS).collect()
            };
            // Those that are on their way out are never listed.
            if level.is_empty() || level == before {
                return Ok(());
            }
            before.clone_from(&level);
            let listings =
                stream::iter(level).map(|dir| self.list(dir, Who::Staging)).buffer_unordered(LISTINGS_AT_ONCE);
            // One that is gone meanwhile has nothing to list.
            let gone = |done| if matches!(done, Err(FsError::Stale | FsError::NotFound)) { Ok(()) } else { done };
            listings.map(gone).try_collect::<()>().await?;
        }
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
