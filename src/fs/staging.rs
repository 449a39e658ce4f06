//! What the stager asks of the filesystem: which paths are due and what they should be, and what became of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::live::{Adopted, Asked, Copied};
use super::passthrough::{Seal, Sealing, Urgency};
use super::standing::Event;
use super::tree::Token;
use super::{COPY_LIMIT_BYTES, Fs, FsError, Op, Options, State, base_attrs};
use crate::hash::ContentHash;
use crate::namespace::{Attrs, Body, Content, Generation, Ino, Inode, Namespace, ROOT, Resolved, SpoolId, Timestamp};
use crate::path::RepoPath;
use crate::report::{Counts, FileError, LocalPath, Progress, Tally};
use crate::store::journal::{Change, PathUpload};
use crate::workspace::verify::Deviation;
use crate::workspace::{CommitId, Object, Revision, Source};
use crate::writeback::index::{Account, Staged, Step};
use crate::writeback::queue::{Parked, Pending, Phase, Scope, Tick};

/// How soon a path that cannot be captured just now is looked at again: a write is between two locks.
pub(super) const RECHECK: Duration = Duration::from_millis(20);
/// How soon it is looked again whether it is known what is ignored.
const JUDGED_AGAIN: Duration = Duration::from_secs(1);
/// Errors and local paths that a status shows.
const SHOWN_ERRORS: usize = 20;
const SHOWN_LOCAL: usize = 100;

/// A path and what it should be, as of one moment.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Which path.
    pub path: RepoPath,
    /// Which state of it.
    pub(crate) seq: u64,
    /// What base and workspace have there.
    pub account: Account,
    /// What it should be.
    pub want: Want,
    /// To be sent in a request of its own.
    pub alone: bool,
    /// How far an earlier upload of it came.
    pub upload: Option<PathUpload>,
}

impl Capture {
    /// What keeps its bytes as they are, where they are here.
    pub fn held(&self) -> Option<&Arc<Held>> {
        match &self.want {
            Want::Sealed { held, .. } => Some(held),
            _ => None,
        }
    }

    /// Whether a writer waits for its bytes to be let go of.
    pub fn is_wanted_back(&self) -> bool {
        self.held().is_some_and(|held| held.cancelled().is_cancelled())
    }
}

/// What a path should be.
#[derive(Debug, Clone)]
pub enum Want {
    /// No file.
    Absent,
    /// Whatever the base has.
    AsBase,
    /// Content in the spool, which does not change while this is held.
    Sealed {
        /// Whose content.
        ino: Ino,
        /// Which generation of it.
        generation: Generation,
        /// Its hash, if known.
        hash: Option<ContentHash>,
        /// Its length in bytes.
        size: u64,
        /// Keeps it from changing.
        held: Arc<Held>,
    },
    /// Content that the server had when last heard of.
    Remote {
        /// Whose content.
        ino: Ino,
        /// What.
        object: Object,
        /// Where it can be read.
        source: Option<Source>,
    },
}

impl Want {
    /// The wanted content; `None` twice over: no file, or not hashed yet.
    pub fn object(&self) -> Option<Object> {
        match self {
            Self::Sealed { hash, size, .. } => hash.map(|hash| Object { hash, size: *size }),
            Self::Remote { object, .. } => Some(*object),
            Self::Absent | Self::AsBase => None,
        }
    }

    /// Whether it is this content of this file, on the server.
    pub(super) fn is_remote(&self, ino: Ino, hash: ContentHash) -> bool {
        matches!(self, Self::Remote { ino: whose, object, .. } if (*whose, object.hash) == (ino, hash))
    }

    /// Length in bytes of the wanted content.
    pub fn size(&self) -> u64 {
        match self {
            Self::Sealed { size, .. } => *size,
            Self::Remote { object, .. } => object.size,
            Self::Absent | Self::AsBase => 0,
        }
    }
}

/// A spool file that nobody changes while this lives. A writer in a hurry [cancels](Held::cancelled) it.
pub struct Held {
    fs: Weak<Fs>,
    spool: SpoolId,
    /// Not where very many are held, as for a commit: there are only so many open files.
    file: Option<Arc<File>>,
    by_cut: bool,
    cancel: CancellationToken,
}

impl Held {
    /// The bytes; always there in what [`Fs::due`] hands out.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Completes when a writer waits for the file: let go of it.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({})", self.spool.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(fs) = self.fs.upgrade() {
            fs.let_go(self.spool, self.by_cut);
        }
    }
}

/// A barrier: the paths that somebody waits for.
pub struct Waiting {
    fs: Arc<Fs>,
    pub(super) id: std::num::NonZeroU32,
}

impl Waiting {
    /// How far it is, and whether nothing is left to wait for.
    pub fn progress(&self) -> (Progress, bool) {
        self.fs.lock().writeback.queue().barrier_progress(self.id)
    }

    /// Completes when nothing is left to wait for.
    pub async fn reached(&self) -> Progress {
        loop {
            let moved = self.fs.progress.notified();
            let (progress, reached) = self.progress();
            if reached {
                return progress;
            }
            moved.await;
        }
    }

    /// Completes when nothing is left to wait for, and the record of it is on stable storage: after a power loss an
    /// older one would send older bytes over what was staged.
    ///
    /// # Errors
    /// The journal's.
    pub async fn settled(&self) -> Result<Progress, FsError> {
        let progress = self.reached().await;
        self.fs.flush().await?;
        Ok(progress)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.fs.begin().writeback.drop_barrier(self.id);
    }
}

impl State {
    /// Holds the content of a file, as it may be sealed where it lies.
    fn hold(&mut self, fs: &Fs, ino: Ino, spool: SpoolId, file: Option<Arc<File>>) -> Arc<Held> {
        self.step(ino, Event::Held, |state| state.hold_for(fs, spool, file, false))
    }

    /// A hold of a commit's: very many, so their files are not open.
    pub(super) fn hold_for_cut(&mut self, fs: &Fs, spool: SpoolId) -> Arc<Held> {
        self.hold_for(fs, spool, None, true)
    }

    fn hold_for(&mut self, fs: &Fs, spool: SpoolId, file: Option<Arc<File>>, by_cut: bool) -> Arc<Held> {
        let cancel = self.backing.hold(spool, by_cut);
        Arc::new(Held { fs: fs.this.clone(), spool, file, by_cut, cancel })
    }

    /// A copy of a file's content as something to be staged; it goes when it is let go of.
    pub(super) fn hold_copy(&mut self, fs: &Fs, ino: Ino, copied: Copied, by_cut: bool) -> Want {
        // No generation of the file's: its bytes may be others by now.
        let generation = self.tree.fresh_generation();
        self.backing.was_copied(ino, copied.id, copied.seen);
        let held = self.hold_for(fs, copied.id, Some(copied.file).filter(|_| !by_cut), by_cut);
        self.backing.leave_to_holders(copied.id, copied.counted);
        Want::Sealed { ino, generation, hash: None, size: copied.size, held }
    }

    /// What it takes to fix a file's content of now.
    pub(super) fn fixable(&mut self, fs: &Fs, ino: Ino, urgency: Urgency) -> Fixable {
        if self.unseen_spool(ino).is_some() {
            return Fixable::Unseen;
        }
        loop {
            let (spool, generation, hash, size) = match self.content(ino) {
                None => return Fixable::NoFile,
                Some((Content::Remote { hash, .. }, size)) => {
                    let object = Object { hash: *hash, size };
                    return Fixable::Remote { object, source: self.source(ino) };
                }
                Some((Content::Local { spool, generation, hash }, size)) => (*spool, *generation, *hash, size),
            };
            self.warn_of_holes(ino);
            if !self.handles.is_open(ino)
                && self.backing.is_live(ino)
                && matches!(self.ask_after(ino, fs), Asked::Still(_))
            {
                self.owe_other_names(ino, fs);
                continue;
            }
            let written = self.handles.is_written(ino);
            let seal = Sealing {
                way: self.handles.way(ino),
                live: self.backing.is_live(ino),
                written,
                large: size > COPY_LIMIT_BYTES,
                urgency,
            };
            let writing = self.handles.is_changing(ino);
            return Fixable::Local { spool, generation, hash, size, how: seal.how(), writing, written };
        }
    }
}

/// What it takes to fix a file's content.
pub(super) enum Fixable {
    /// It is no regular file.
    NoFile,
    /// Nothing has looked at its spool file since the mount.
    Unseen,
    /// Nothing: the server has it.
    Remote { object: Object, source: Option<Source> },
    /// Its spool file has to be sealed.
    Local {
        spool: SpoolId,
        generation: Generation,
        hash: Option<ContentHash>,
        size: u64,
        how: Seal,
        /// A write is under way this instant.
        writing: bool,
        /// Programs have it open for writing.
        written: bool,
    },
}

/// Whether a file's bytes are read at `path` of the workspace.
fn is_read_at(tree: &Namespace, ino: Ino, path: &RepoPath) -> bool {
    tree.content(ino).is_some_and(|(content, _)| content.origin_in_workspace() == Some(path))
}

/// The length of the file at a path, in bytes.
pub(super) fn length_at(tree: &Namespace, path: &RepoPath) -> u64 {
    match tree.resolve(path) {
        Resolved::Inode(ino) => match tree.get(ino).map(|inode| &inode.body) {
            Some(Body::File { size, .. }) => *size,
            _ => 0,
        },
        _ => 0,
    }
}

/// Whether a local error passes without anybody's doing: too many open files, no memory.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
}

/// What the cut of a commit says of a path that is due.
pub(super) enum InCut {
    /// None is made.
    NoCut,
    /// What the path is to hold.
    Holds(Box<Capture>),
    /// It is not part of the commit, or staged for it.
    Lacks,
}

/// Why a path cannot be captured.
enum Miss {
    /// Somebody is writing to it; it comes back by itself.
    Writing,
    /// A write is under way this instant.
    Instant,
    /// The cut of a commit was made meanwhile: what it has of the path counts, and not what came after it.
    Cut,
    /// It may change past the daemon meanwhile: by a copy of this spool file.
    Copy(Token),
    /// Its spool file cannot be opened.
    Lost(std::io::Error),
}

impl Fs {
    /// Up to `limit` due paths, each with what it should be, and when the next one will be due.
    pub fn due(&self, limit: usize) -> (Vec<Capture>, Option<Instant>) {
        self.ask_after_closed();
        if !self.judge_now() {
            return (Vec::new(), Some(Instant::now() + JUDGED_AGAIN));
        }
        let paths = {
            let mut state = self.begin();
            state.writeback.take_due(Instant::now(), limit)
        };
        let mut captures: Vec<Capture> = paths.iter().filter_map(|path| self.capture(path)).collect();
        let mut state = self.begin();
        captures.append(&mut state.writeback.take_copied());
        let lingering = state.backing.next_question();
        let next = state.writeback.next_due();
        (captures, next.into_iter().chain(lingering).min())
    }

    /// Asks after the files that somebody still had mapped when they were closed.
    fn ask_after_closed(&self) {
        if self.lock().backing.next_question().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let mut rested = Vec::new();
        let noted = self.change(|state| {
            state.ask_after_lingering(self, &mut rested);
            Ok(())
        });
        // Also where that could not be put on record: until it can, nothing leaves the spool.
        rested.into_iter().for_each(|confirmed| self.keep(confirmed));
        if let Err(stop) = noted {
            tracing::error!(?stop, "what was closed could not be put on record");
        }
    }

    fn capture(&self, path: &RepoPath) -> Option<Capture> {
        let captured = loop {
            let in_cut = self.lock().in_cut(path);
            let captured = match in_cut {
                InCut::Holds(capture) => self.opened(*capture).map(Some),
                // Left out by the commit, which is to hold nothing that came later.
                InCut::Lacks => Err(Miss::Instant),
                InCut::NoCut => self.capture_now(path),
            };
            if !matches!(captured, Err(Miss::Cut)) {
                break captured;
            }
        };
        match captured {
            Ok(capture) => capture,
            Err(Miss::Writing) => {
                // The last writer's release puts it in the queue again.
                self.begin().writeback.retry(path, Duration::from_secs(1), None);
                None
            }
            Err(Miss::Instant | Miss::Cut) => {
                self.begin().writeback.retry(path, RECHECK, None);
                None
            }
            Err(Miss::Copy(of)) => {
                self.start_copy(path, of);
                None
            }
            Err(Miss::Lost(error)) if is_passing(&error) => {
                let delay = Duration::from_secs(1);
                self.begin().writeback.retry(path, delay, Some(format!("its bytes in the spool wait: {error}")));
                None
            }
            Err(Miss::Lost(error)) => {
                self.lost(path, &error);
                None
            }
        }
    }

    /// A path's bytes cannot be opened: it waits for somebody to act.
    fn lost(&self, path: &RepoPath, error: &std::io::Error) {
        let what = if error.kind() == std::io::ErrorKind::NotFound {
            "its bytes were not flushed before this machine lost power, and are gone; write it again or remove it"
                .to_owned()
        } else {
            format!("its bytes in the spool cannot be read: {error}")
        };
        self.failed(path, &what, None);
    }

    /// What a commit holds for a path, with its bytes open.
    fn opened(&self, capture: Capture) -> Result<Capture, Miss> {
        let Want::Sealed { ino, generation, hash, size, held } = capture.want else {
            return Ok(capture);
        };
        // It has its name as long as it is held.
        let file = Arc::new(self.spool.file(held.spool).map_err(Miss::Lost)?);
        let held = self.begin().hold_for(self, held.spool, Some(file), false);
        Ok(Capture { want: Want::Sealed { ino, generation, hash, size, held }, ..capture })
    }

    /// What a path should be now, with its bytes open.
    fn capture_now(&self, path: &RepoPath) -> Result<Option<Capture>, Miss> {
        loop {
            let unopened = {
                let mut state = self.begin();
                let state = &mut *state;
                if state.is_cut() {
                    return Err(Miss::Cut);
                }
                let Some(entry) = state.writeback.pending(path) else {
                    return Ok(None);
                };
                let (seq, alone) = (entry.seq, entry.alone);
                let overdue = state.writeback.queue().is_overdue(entry, self.options.settle);
                let urgency = match (entry.forced, overdue) {
                    (true, _) => Urgency::Barrier,
                    (false, true) => Urgency::Overdue,
                    (false, false) => Urgency::None,
                };
                let account = state.writeback.account(path).unwrap_or_default();
                let upload = state.writeback.upload(path).cloned();
                let capture = |want| Capture { path: path.clone(), seq, account, want, alone, upload };
                let ino = match state.tree.resolve(path) {
                    Resolved::Absent => return Ok(Some(capture(Want::Absent))),
                    Resolved::AsBase => return Ok(Some(capture(Want::AsBase))),
                    Resolved::Inode(ino) => ino,
                };
                match state.fixable(self, ino, urgency) {
                    Fixable::NoFile => return Ok(Some(capture(Want::Absent))),
                    Fixable::Remote { object, source } => {
                        return Ok(Some(capture(Want::Remote { ino, object, source })));
                    }
                    Fixable::Unseen => Err(ino),
                    Fixable::Local { how: Seal::Later, .. } => return Err(Miss::Writing),
                    Fixable::Local { spool, generation, how, writing, .. } if writing || how == Seal::Copy => {
                        let reshaped = state.handles.is_reshaped(ino);
                        // A barrier ends also beside a program that writes without pause.
                        let by_copy = !reshaped && (how == Seal::Copy || urgency == Urgency::Barrier);
                        return Err(if by_copy {
                            Miss::Copy(Token::of_spool(ino, spool, generation))
                        } else {
                            Miss::Instant
                        });
                    }
                    Fixable::Local { spool, generation, hash, size, .. } => {
                        state.handles.fix(ino);
                        let file = state.handles.local(ino).cloned();
                        if file.is_some() {
                            let held = state.hold(self, ino, spool, file);
                            return Ok(Some(capture(Want::Sealed { ino, generation, hash, size, held })));
                        }
                        Ok((ino, spool, generation, hash, size, seq, account, alone))
                    }
                }
            };
            let (ino, spool, generation, hash, size, seq, account, alone) = match unopened {
                Ok(unopened) => unopened,
                Err(unseen) => {
                    self.look_at(unseen).map_err(Miss::Lost)?;
                    continue;
                }
            };
            let token = Token::of_spool(ino, spool, generation);
            let Some(file) = self.spool_file(token).map_err(Miss::Lost)?.map(Arc::new) else { continue };
            let mut state = self.begin();
            if state.is_cut() {
                return Err(Miss::Cut);
            }
            if state.rests(token) && state.writeback.pending(path).is_some_and(|entry| entry.seq == seq) {
                let held = state.hold(self, ino, spool, Some(file));
                let upload = state.writeback.upload(path).cloned();
                let want = Want::Sealed { ino, generation, hash, size, held };
                return Ok(Some(Capture { path: path.clone(), seq, account, want, alone, upload }));
            }
        }
    }

    /// Fixes a path's content by a copy, in a task; it is taken up when that is done.
    fn start_copy(&self, path: &RepoPath, of: Token) {
        let begun = {
            let mut state = self.begin();
            state.writeback.begin_copy(path)
        };
        let Some(fs) = self.this.upgrade().filter(|_| begun) else { return };
        let path = path.clone();
        tokio::task::spawn_blocking(move || {
            let capture = fs.capture_copy(&path, of);
            let mut state = fs.begin();
            state.writeback.end_copy(&path, capture);
            drop(state);
            fs.wake.notify_one();
        });
    }

    /// A path with a copy of its content. `None`: it has other content by now.
    fn capture_copy(&self, path: &RepoPath, of: Token) -> Result<Option<Capture>, FsError> {
        let ino = of.ino();
        // As of before the copy: what is written while it is made is for the next.
        let (seq, alone) = {
            let mut state = self.begin();
            // The commit has content of its own for the path.
            if state.is_cut() {
                return Ok(None);
            }
            state.look(ino, self);
            let Some((seq, alone)) = state.writeback.pending(path).map(|entry| (entry.seq, entry.alone)) else {
                return Ok(None);
            };
            // Removed, renamed or given other content since it was found to need a copy.
            if !state.tree.still_in(of) || state.tree.resolve(path) != Resolved::Inode(ino) {
                return Ok(None);
            }
            state.handles.fix(ino);
            (seq, alone)
        };
        let Some(copied) = self.copy_live(of)? else { return Ok(None) };
        let mut state = self.begin();
        let state = &mut *state;
        let account = state.writeback.account(path).unwrap_or_default();
        let upload = state.writeback.upload(path).cloned();
        let want = state.hold_copy(self, ino, copied, false);
        Ok(Some(Capture { path: path.clone(), seq, account, want, alone, upload }))
    }

    /// Whether a writer has come to wait for a file that is [held](Held), since this was last asked.
    pub fn some_are_wanted_back(&self) -> bool {
        self.wanted_back.swap(false, Ordering::AcqRel)
    }

    fn let_go(&self, spool: SpoolId, by_cut: bool) {
        let unheld = self.begin().backing.let_go(spool, by_cut);
        if let Some(unheld) = &unheld {
            self.spool.release(unheld.counted);
        }
        self.unheld.notify_waiters();
        if unheld.is_some_and(|unheld| unheld.orphan) {
            self.leave(spool);
        }
    }

    /// Notes the hash of a generation, if it is still the file's.
    pub fn hashed(&self, ino: Ino, generation: Generation, found: ContentHash) {
        self.begin().tree.set_hash(ino, generation, Some(found));
    }

    /// Shows in which phase a path is.
    pub fn set_phase(&self, path: &RepoPath, phase: Phase) {
        self.begin().writeback.set_phase(path, phase);
    }

    /// Writes down that the server's state of these paths is in doubt, before a request that changes it is sent, and
    /// that it may remove `dirs` at any later time, whatever is in them by then. Returns those of them that no request
    /// threatened before; to be told when this one is [answered](Self::was_answered).
    ///
    /// # Errors
    /// When the journal cannot be written: do not send.
    pub fn intend<'a>(
        &self,
        paths: impl Iterator<Item = &'a RepoPath>,
        dirs: impl Iterator<Item = &'a RepoPath>,
    ) -> Result<Vec<RepoPath>, FsError> {
        let done = self.change(|state| {
            for path in paths {
                let account = state.writeback.account(path).unwrap_or_default();
                if account.staged != Staged::Doubt {
                    let before = match account.staged {
                        Staged::Put(object) => Some(object),
                        _ => account.before,
                    };
                    let account = Account { staged: Staged::Doubt, before, ..account };
                    state.apply(Change::Account { path: path.clone(), account: Some(account) });
                }
            }
            let mut threatened = Vec::new();
            for dir in dirs {
                if state.writeback.account(dir).is_none_or(|account| account.late.is_none()) {
                    state.watch(dir);
                    threatened.push(dir.clone());
                }
            }
            Ok(threatened)
        });
        into_plain(done)
    }

    /// Returns when everything on record is on stable storage. A request that changes the server waits for it: after
    /// a power loss, what a lost record does not explain would look like somebody else's change.
    ///
    /// # Errors
    /// The journal's.
    pub async fn flush(&self) -> Result<(), FsError> {
        self.blocking(|fs| Ok(fs.journal.sync(fs.journal.append(&[]))?)).await
    }

    /// The server confirmed these steps.
    ///
    /// # Errors
    /// When the journal cannot be written; the steps are repeated after the next mount, which does no harm.
    pub fn confirmed(&self, steps: &[(Capture, Step)]) -> Result<(), FsError> {
        let mut adopt = Vec::new();
        // Letting go of a spool file takes the lock, so captures are dropped when it is free again.
        let mut staged = Vec::new();
        let done = self.change(|state| {
            for (capture, step) in steps {
                adopt.extend(state.confirm(capture, *step));
                staged.extend(state.take_from_cut(capture));
            }
            if steps.iter().any(|(_, step)| *step != Step::Nothing) {
                state.writeback.let_in();
            }
            Ok(())
        });
        drop(staged);
        // Before it comes into the cache, where what is committed makes way for it.
        for (_, step) in steps {
            if let Step::Put(object) = step {
                self.cache.note_staged(object.hash);
            }
        }
        adopt.into_iter().for_each(|confirmed| self.keep(confirmed));
        self.progress.notify_waiters();
        into_plain(done)
    }

    /// Hands a spool file whose content the server has to the cache.
    pub(super) fn keep(&self, Adopted { spool, hash, size, counted }: Adopted) {
        self.spool.release(counted);
        // What was allocated behind the end is of no use any more.
        if counted != size
            && let Err(error) = self.spool.file(spool).and_then(|file| self.spool.disk().resize(&file, size))
        {
            tracing::debug!(%error, "a cached file keeps the room behind its end");
        }
        if !self.cache.adopt(&self.spool, spool, hash, size) {
            let free = self.begin().backing.abandon(spool);
            free.into_iter().for_each(|spool| self.leave(spool));
        }
    }

    /// A step of `capture` did not work. A path that has changed since, and that no commit waits for as it was, is
    /// looked at again: the failure tells nothing about what it is now.
    pub fn step_failed(&self, capture: &Capture, error: &str, retry: Option<Duration>) {
        if !self.has_changed_since(capture, error) {
            self.failed(&capture.path, error, retry);
        }
    }

    /// A step of `capture` works only once a commit has [made way](Self::made_way) for it.
    pub fn step_waits_for_commit(&self, capture: &Capture, error: &str) {
        if self.has_changed_since(capture, error) {
            return;
        }
        tracing::info!(path = %capture.path, error, "not staged; it goes with the next commit");
        self.begin().writeback.park(&capture.path, error.to_owned(), Parked::Commit);
        self.progress.notify_waiters();
    }

    /// Whether what failed is out of date, and nobody waits for it: the path is looked at again then.
    fn has_changed_since(&self, capture: &Capture, error: &str) -> bool {
        let path = &capture.path;
        let mut state = self.begin();
        let in_cut = state.made_cut().and_then(|made| made.get(path));
        let awaited = in_cut.is_some_and(|in_cut| in_cut.seq == capture.seq);
        let stale = state.writeback.pending(path).is_some_and(|entry| entry.seq != capture.seq);
        if stale && !awaited {
            tracing::debug!(%path, error, "not staged, and changed since");
            state.writeback.retry(path, RECHECK, None);
        }
        stale && !awaited
    }

    /// A path cannot be staged: tried again after `retry`, or parked.
    fn failed(&self, path: &RepoPath, error: &str, retry: Option<Duration>) {
        match retry {
            Some(_) => tracing::debug!(%path, error, ?retry, "not staged; it is tried again"),
            None => tracing::warn!(%path, error, "not staged; it waits for somebody"),
        }
        {
            let mut state = self.begin();
            match retry {
                Some(delay) => state.writeback.retry(path, delay, Some(error.to_owned())),
                None => {
                    state.writeback.park(path, error.to_owned(), Parked::Person);
                }
            }
        }
        self.progress.notify_waiters();
    }

    /// Puts a path back for later, through no fault of its own.
    pub fn put_back(&self, path: &RepoPath, delay: Duration) {
        self.begin().writeback.retry(path, delay, None);
    }

    /// Puts a path back, to be sent in a request of its own.
    pub fn put_back_alone(&self, path: &RepoPath) {
        let mut state = self.begin();
        state.writeback.retry_alone(path);
    }

    /// How often staging a path has failed.
    pub fn attempts(&self, path: &RepoPath) -> u32 {
        self.lock().writeback.pending(path).map_or(0, Pending::attempts)
    }

    /// Whether a file may be put at `path`: nothing above or below it is a file in the workspace's view, which takes
    /// both and keeps one of them.
    pub fn clear_for_put(&self, path: &RepoPath) -> bool {
        self.lock().is_clear_for_put(path)
    }

    /// What keeps a file from being put at `path` until somebody acts, if the first thing in its way waits for that.
    pub fn kept_out_by(&self, path: &RepoPath) -> Option<RepoPath> {
        let state = self.lock();
        let waits = |other: &RepoPath| state.writeback.pending(other).is_some_and(Pending::waits_for_somebody);
        state.in_the_way(path).filter(waits)
    }

    /// A step of `capture` works only when somebody has acted about `other`, which is in its way: it waits as well, and is
    /// looked at again when anything has been done to what the workspace has.
    pub fn step_kept_out(&self, capture: &Capture, other: &RepoPath) {
        let error = format!("cannot be staged before {other}, which is in its way and waits for somebody itself");
        if self.has_changed_since(capture, &error) {
            return;
        }
        let mut state = self.begin();
        let undecided = state.writeback.conflict(other).is_some();
        if undecided || state.writeback.pending(other).is_some_and(Pending::waits_for_somebody) {
            tracing::debug!(path = %capture.path, error, "not staged");
            state.writeback.keep_out(&capture.path, error);
        } else {
            // Somebody has acted meanwhile, and nobody lets in what is kept out from now on.
            state.writeback.retry(&capture.path, Duration::ZERO, None);
        }
        drop(state);
        self.progress.notify_waiters();
    }

    /// Whether `path` may be given to `step` without losing bytes that the workspace has nowhere else: those of a file
    /// that was renamed away from there and is not staged under its new name yet.
    pub fn frees(&self, path: &RepoPath, step: Step) -> Frees {
        let mut state = self.begin();
        let state = &mut *state;
        let tree = &state.tree;
        state.backing.keep_readers(path, |ino| is_read_at(tree, ino, path));
        let pinned: Vec<Ino> = state.backing.readers_at(path).collect();
        let stays = |ino: &Ino| match (step, state.content(*ino)) {
            (Step::Put(object), Some((Content::Remote { hash, .. }, _))) => *hash == object.hash,
            _ => false,
        };
        let needed: Vec<Ino> = pinned.into_iter().filter(|ino| !stays(ino)).collect();
        let stranded: Vec<Ino> =
            needed.iter().filter(|ino| !state.comes_free(**ino, &mut vec![path.clone()])).copied().collect();
        match (needed.is_empty(), stranded.is_empty()) {
            (true, _) => Frees::Now,
            (false, true) => Frees::Later,
            (false, false) => Frees::Once(stranded),
        }
    }

    /// Where somebody waits for `path`: what it cannot be staged before does not wait out its quiet period either, that is
    /// the new names of files whose bytes the workspace has there alone, and what it shows above or below. Says whether any of
    /// them comes sooner by that.
    pub fn hasten_before(&self, path: &RepoPath) -> bool {
        let mut state = self.begin();
        let state = &mut *state;
        if !state.writeback.pending(path).is_some_and(|entry| entry.forced) {
            return false;
        }
        let pinned: Vec<Ino> = state.backing.readers_at(path).collect();
        let names =
            pinned.into_iter().filter(|ino| state.is_pinned(*ino, path)).flat_map(|ino| state.tree.paths_of(ino));
        let shows = |dir: &RepoPath| state.writeback.account(dir).is_some_and(|account| account.may_show());
        let above = std::iter::successors(path.parent(), RepoPath::parent).filter(shows);
        let below = state.writeback.ledger().shown_below(path).filter(|below| *below != path).cloned();
        let before: Vec<RepoPath> = names.chain(above).chain(below).filter(|before| before != path).collect();
        before.iter().filter(|before| state.writeback.hasten(before)).count() > 0
    }

    /// Gets a file's bytes into the spool, so that it needs those on the server no longer. What it is to be staged as does
    /// not change by that: a path of it that waits for a person or for a commit goes on waiting.
    ///
    /// # Errors
    /// When they cannot be downloaded or stored.
    pub async fn rescue(&self, ino: Ino) -> Result<(), FsError> {
        self.satisfy(super::Need::Own(ino)).await?;
        // What the server has no longer, it cannot give back after a power loss.
        let token = self.lock().tree.token(ino).filter(|token| token.on_server().is_none());
        if let Some(token) = token {
            self.blocking(move |fs| fs.flush_bytes(token)).await?;
        }
        into_plain(self.change(|state| {
            for path in state.tree.file_paths(ino) {
                state.open_account(&path, Some(ino));
                if !state.writeback.pending(&path).is_some_and(Pending::is_parked) {
                    // Something is owed for it.
                    state.writeback.owe(&path, Duration::ZERO);
                }
            }
            Ok(())
        }))
    }

    /// Gets the bytes of these files into the spool, where they are not in some commit: before what is staged at these
    /// paths is staged no more.
    ///
    /// # Errors
    /// As [`rescue`](Self::rescue).
    pub async fn rescue_all(&self, paths: &[RepoPath]) -> Result<(), FsError> {
        for path in paths {
            let needed = {
                let state = self.lock();
                let committed = |content: &Content| matches!(content, Content::Remote { origin: Some(origin), .. } if origin.revision != Revision::Workspace);
                match state.tree.resolve(path) {
                    Resolved::Inode(ino) => {
                        state.content(ino).is_some_and(|(content, _)| !committed(content)).then_some(ino)
                    }
                    Resolved::Absent | Resolved::AsBase => None,
                }
            };
            if let Some(ino) = needed {
                self.rescue(ino).await?;
            }
        }
        Ok(())
    }

    /// The topmost directories of the base that are left without anything once `files` are removed or unstaged: a server
    /// keeps them, empty, unless they are removed by name (0.65.2, tried). Nothing may be put below them meanwhile. What others
    /// have below a path in conflict is not known, and not to go with a directory.
    pub fn emptied_dirs(&self, files: &HashSet<&RepoPath>) -> BTreeSet<RepoPath> {
        let state = self.lock();
        // A commit removes what was vacant at its cut, whatever came into the tree since. What is sent yet that was decided
        // before is none of it, nor is anything where staging only pauses.
        let made = state.made_cut().filter(|made| files.iter().any(|file| made.get(file).is_some()));
        let mut dirs = BTreeSet::new();
        let mut known = HashMap::new();
        // Of each directory, whether the workspace will show nothing below it; asked once, not for every file in it.
        let mut clear: HashMap<RepoPath, bool> = HashMap::new();
        for file in files {
            let mut top = None;
            let above = std::iter::successors(file.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
            for dir in above {
                let is_clear = *clear.entry(dir.clone()).or_insert_with(|| {
                    let vacant = match made {
                        Some(made) => made.is_vacant(&dir),
                        None => state.is_vacant(&dir, &mut known),
                    };
                    let undecided = state.writeback.is_in_conflict_below(&dir);
                    vacant && !undecided && state.writeback.ledger().shown_below(&dir).all(|path| files.contains(path))
                });
                if !is_clear {
                    break;
                }
                top = Some(dir);
            }
            if let Some(dir) = top
                && state.writeback.ledger().based_below(&dir).next().is_some()
            {
                dirs.insert(dir);
            }
        }
        dirs
    }

    /// Writes down how far the upload of a path is; `None`: it is over.
    pub fn note_upload(&self, path: &RepoPath, upload: Option<PathUpload>) {
        let noted = self.change(|state| {
            if upload.is_some() || state.writeback.upload(path).is_some() {
                state.apply(Change::Upload { path: path.clone(), upload });
            }
            Ok(())
        });
        if into_plain(noted).is_err() {
            tracing::warn!(%path, "upload progress is not on record; after a crash the upload begins anew");
        }
    }

    /// Makes everything that is pending due now, and lets the caller wait for it.
    pub fn barrier(&self) -> Option<Waiting> {
        self.barrier_below(HashSet::from([RepoPath::root()]))
    }

    /// Makes every pending path of `dirs` and below due now, and lets the caller wait for them, under their new names
    /// where they are renamed meanwhile.
    pub fn barrier_below(&self, dirs: HashSet<RepoPath>) -> Option<Waiting> {
        self.barrier_among(|state| {
            let chosen = |path: &RepoPath| path.is_in_any(&dirs);
            state.stir(&chosen, self);
            let pending = state.writeback.queue().iter().map(|(path, _)| path);
            let pending = pending.filter(|path| chosen(path)).cloned().collect();
            (pending, Scope::Below(dirs))
        })
    }

    /// Makes those of `paths` that are pending due now, and lets the caller wait for them, under their new names where
    /// they are renamed meanwhile. Takes no longer when many others are pending.
    pub fn barrier_on(&self, paths: Vec<RepoPath>) -> Option<Waiting> {
        self.barrier_among(|state| {
            state.stir_at(&paths, self);
            (paths, Scope::Waited)
        })
    }

    fn barrier_among(&self, paths: impl FnOnce(&mut State) -> (Vec<RepoPath>, Scope)) -> Option<Waiting> {
        let fs = self.this.upgrade()?;
        self.judge_now();
        let waiting = {
            let mut state = self.begin();
            let (paths, scope) = paths(&mut state);
            state.barrier(fs, &paths, scope)
        };
        self.wake.notify_one();
        Some(waiting)
    }

    /// Staged files that stand where the base has a directory: no server commits such a change as one (0.65.2, tried in
    /// every order: the commit then has an empty directory).
    pub fn files_over_directories(&self) -> Vec<RepoPath> {
        let state = self.lock();
        let over = |path: &RepoPath| state.writeback.ledger().based_below(path).any(|below| below != path);
        let staged = state.writeback.ledger().iter().filter(|(_, account)| matches!(account.staged, Staged::Put(_)));
        staged.map(|(path, _)| path).filter(|path| over(path)).cloned().collect()
    }

    /// What waits for a commit, if nothing else of the cut, or of all that is owed where there is none, is left.
    pub fn waits_for_commit_alone(&self) -> Option<Vec<RepoPath>> {
        let state = self.lock();
        let left: Vec<&RepoPath> = match state.made_cut() {
            Some(made) => made.paths().collect(),
            None => {
                state.writeback.queue().iter().filter(|(_, entry)| entry.is_parked()).map(|(path, _)| path).collect()
            }
        };
        let waits = |path: &&RepoPath| state.writeback.pending(path).and_then(Pending::parked) == Some(Parked::Commit);
        left.iter().all(waits).then(|| left.into_iter().cloned().collect())
    }

    /// Nothing of these paths is staged by the commit that is under way: they wait for the next cut.
    pub fn set_aside(&self, paths: &[RepoPath]) {
        let mut state = self.begin();
        let left: Vec<Capture> = paths.iter().filter_map(|path| state.leave_out_of_cut(path)).collect();
        drop(state);
        // Letting go of captures takes the lock.
        drop(left);
    }

    /// The server has these files staged as removed, so that their content can be staged when that is committed.
    ///
    /// # Errors
    /// When the journal cannot be written: do not commit.
    pub fn made_way(&self, paths: &[RepoPath]) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            for path in paths {
                let account = state.writeback.account(path).unwrap_or_default();
                let account = Account { staged: Staged::Removed, ..account };
                state.apply(Change::Account { path: path.clone(), account: Some(account) });
            }
            Ok(())
        }))
    }

    /// These files are staged no more, and owed again.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn unstaged(&self, paths: &[RepoPath]) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            for path in paths {
                let account = state.writeback.account(path).unwrap_or_default();
                let account = Account { staged: Staged::Nothing, ..account };
                state.apply(Change::Account { path: path.clone(), account: Some(account) });
                state.writeback.owe(path, Duration::ZERO);
            }
            Ok(())
        }))
    }

    /// What is staged and not committed.
    pub fn staged_paths(&self) -> Vec<RepoPath> {
        let state = self.lock();
        let staged = state.writeback.ledger().iter().filter(|(_, account)| account.staged != Staged::Nothing);
        staged.map(|(path, _)| path.clone()).collect()
    }

    /// The staged changes have become `commit`; `alone`: it holds nothing else over the old base. On stable storage
    /// when this returns.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn rebased(&self, commit: CommitId, alone: bool) -> Result<(), FsError> {
        self.rebased_but(commit, alone, &CommitId("".into()), &[]).await.map(drop)
    }

    /// The same, but for what deviates in the commit from what was staged over `parent`: that is owed, as far as the tree
    /// still wants it. Returns how many paths are.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn rebased_but(
        &self,
        commit: CommitId,
        alone: bool,
        parent: &CommitId,
        deviations: &[Deviation],
    ) -> Result<usize, FsError> {
        let mut owed = None;
        while owed.is_none() {
            // What others committed is merged as anywhere else.
            let moved = if alone { None } else { Some(self.look_at_commit(&commit).await?) };
            owed = into_plain(self.change(|state| {
                if moved.as_ref().is_some_and(|moved| state.free_taken(moved)) {
                    return Ok(None);
                }
                let merging = moved.as_ref().map(|moved| (moved, state.plan(moved, |_, account| account.rebased())));
                if merging.as_ref().is_some_and(|(_, plan)| plan.is_outdated()) {
                    return Ok(None);
                }
                state.apply(Change::Rebase { commit: commit.clone(), alone });
                if state.writeback.intent().is_some() {
                    state.apply(Change::Intent { intent: None });
                }
                let owed = state.owe_deviations(parent, deviations, &self.options);
                if let Some((moved, mut plan)) = merging {
                    for deviation in deviations {
                        plan.keep(&deviation.path, state.writeback.account(&deviation.path).unwrap_or_default());
                    }
                    state.carry_out(&plan, moved, &self.options);
                }
                state.judge_vanished();
                state.record_hidden();
                state.record_pending_accounts();
                Ok(Some(owed))
            }))?;
        }
        let owed = owed.unwrap_or_default();
        self.note_uncommitted();
        self.flush().await?;
        // What others committed and came along shows as soon as the commit is said to be made.
        self.kernel_knows().await;
        self.wake.notify_one();
        Ok(owed)
    }

    /// Tells the cache which content is staged and not committed, or was staged and is owed again: what there is of it
    /// here may be all there is.
    pub(super) fn note_uncommitted(&self) {
        let staged: Vec<ContentHash> = {
            let state = self.lock();
            let put = |(_, account): (&RepoPath, Account)| match account.staged {
                Staged::Put(object) => Some(object.hash),
                Staged::Nothing | Staged::Removed | Staged::Doubt => None,
            };
            let owed = |path: &RepoPath| match state.tree.resolve(path) {
                Resolved::Inode(ino) => match state.content(ino)? {
                    (Content::Remote { hash, .. }, _) => Some(*hash),
                    (Content::Local { .. }, _) => None,
                },
                Resolved::AsBase | Resolved::Absent => None,
            };
            let pending = state.writeback.queue().iter().filter_map(|(path, _)| owed(path));
            state.writeback.ledger().iter().filter_map(put).chain(pending).collect()
        };
        self.cache.note_all_staged(staged.into_iter());
    }

    /// Whether nothing is owed to the server, but what is held back.
    pub fn is_drained(&self) -> bool {
        self.lock().writeback.queue().iter().all(|(_, entry)| entry.is_held())
    }

    /// Whether all that is owed waits for somebody to act.
    pub fn all_parked(&self) -> bool {
        self.lock().writeback.queue().iter().all(|(_, entry)| entry.is_parked())
    }

    /// How many paths are owed.
    pub fn owed(&self) -> usize {
        self.lock().writeback.queue().len()
    }

    /// How much of the files that go in parts the server has taken already, in bytes.
    pub fn uploaded_bytes(&self) -> u64 {
        let state = self.lock();
        let uploads = state.writeback.uploads().filter(|(path, _)| state.writeback.is_pending(path));
        let sent = uploads.map(|(path, upload)| {
            let parts = upload.state.parts.len() as u64;
            parts.saturating_mul(upload.state.part_bytes).min(length_at(&state.tree, path))
        });
        sent.fold(0, u64::saturating_add)
    }

    /// Numbers for a status: counts per state, age of the oldest change in seconds, errors, local paths.
    pub fn report(&self) -> (Counts, Option<u64>, Vec<FileError>, Vec<LocalPath>) {
        let state = self.lock();
        let mut counts = Counts::default();
        let mut errors = Vec::new();
        let mut oldest: Option<Tick> = None;
        let mut waiting = Vec::new();
        let add = |tally: &mut Tally, bytes| {
            tally.files += 1;
            tally.bytes = tally.bytes.saturating_add(bytes);
        };
        for (path, entry) in state.writeback.queue().iter() {
            oldest = Some(oldest.map_or(entry.since, |oldest| oldest.min(entry.since)));
            let size = match state.tree.resolve(path) {
                Resolved::Inode(ino) => state.content(ino).map(|(_, size)| size),
                _ => None,
            };
            let tally = match (entry.is_parked(), size, entry.phase) {
                _ if entry.is_held() => &mut counts.dirty,
                (true, ..) => &mut counts.failed,
                (_, None, _) => &mut counts.removals,
                (_, _, Phase::Waiting) => &mut counts.dirty,
                (_, _, Phase::Hashing) => &mut counts.hashing,
                (_, _, Phase::Ready) => &mut counts.queued,
                (_, _, Phase::Sending) => &mut counts.uploading,
            };
            add(tally, size.unwrap_or(0));
            if entry.is_held() {
                add(&mut counts.held, size.unwrap_or(0));
            }
            let account = state.writeback.account(path).unwrap_or_default();
            waiting.extend(state.only_staged(path, &account));
            if entry.is_in_conflict() {
                add(&mut counts.conflicts, size.unwrap_or(0));
            }
            if let Some(error) = entry.error() {
                errors.push((
                    entry.since,
                    FileError {
                        path: path.as_str().to_owned(),
                        error: error.to_owned(),
                        attempts: entry.attempts(),
                        parked: entry.is_parked(),
                    },
                ));
            }
        }
        let mut staged = Vec::new();
        for (path, account) in state.writeback.ledger().iter() {
            if let Staged::Put(object) = account.staged
                && !state.writeback.is_pending(path)
            {
                add(&mut counts.staged, object.size);
                staged.push(object);
            } else if account.staged == Staged::Removed && !state.writeback.is_pending(path) {
                add(&mut counts.staged, 0);
            }
        }
        errors.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        let errors = errors.into_iter().map(|(_, error)| error).take(SHOWN_ERRORS).collect();
        let local = state.local_paths(&self.options, &mut counts, |_, size| size);
        let oldest = oldest.map(|oldest| state.writeback.queue().instant(oldest).elapsed().as_secs());
        drop(state);
        // What is empty is never lost.
        for (objects, tally) in [(staged, &mut counts.remote), (waiting, &mut counts.absent)] {
            for object in objects.iter().filter(|object| object.size > 0 && self.cache.lacks(object.hash)) {
                add(tally, object.size);
            }
        }
        (counts, oldest, errors, local)
    }
}

/// Whether a path of the workspace may change.
#[derive(Debug, PartialEq, Eq)]
pub enum Frees {
    /// It may.
    Now,
    /// When other paths of the queue have had their turn.
    Later,
    /// When these files have been [rescued](Fs::rescue): nothing else will free it.
    Once(Vec<Ino>),
}

impl State {
    /// Makes those of `paths` that are pending due now, and lets the caller wait for them.
    pub(super) fn barrier(&mut self, fs: Arc<Fs>, paths: &[RepoPath], scope: Scope) -> Waiting {
        let tree = &self.tree;
        let first_new = tree.next_ino();
        let id = self.writeback.barrier(paths, scope, first_new, |path| length_at(tree, path));
        Waiting { fs, id }
    }

    /// Whether a file's bytes are read at `path` of the workspace.
    fn is_pinned(&self, ino: Ino, path: &RepoPath) -> bool {
        is_read_at(&self.tree, ino, path)
    }

    /// See [`Fs::clear_for_put`].
    fn is_clear_for_put(&self, path: &RepoPath) -> bool {
        self.in_the_way(path).is_none()
    }

    /// The first that a file at `path` would be put above or below.
    fn in_the_way(&self, path: &RepoPath) -> Option<RepoPath> {
        let mut above = std::iter::successors(path.parent(), RepoPath::parent);
        let above = above.find(|dir| self.writeback.account(dir).is_some_and(|account| account.may_show()));
        above.or_else(|| self.writeback.ledger().shown_below(path).find(|below| *below != path).cloned())
    }

    /// Whether the queue will stage a pinned file under a name of its own, without waiting for one of `waiting`, for
    /// what stands in the way of that name, or for the end of a commit: it may be what the file is waited for with.
    fn comes_free(&self, ino: Ino, waiting: &mut Vec<RepoPath>) -> bool {
        const DEEPEST: usize = 64;
        self.tree.paths_of(ino).any(|path| {
            if waiting.contains(&path) || waiting.len() > DEEPEST {
                return false;
            }
            let has_its_turn = self.made_cut().is_none_or(|made| made.get(&path).is_some());
            let is_owed = self.writeback.pending(&path).is_some_and(|entry| !entry.is_parked());
            let coming = has_its_turn && is_owed && self.is_clear_for_put(&path);
            waiting.push(path.clone());
            let mut pinned =
                self.backing.readers_at(&path).filter(|other| *other != ino && self.is_pinned(*other, &path));
            coming && pinned.all(|other| self.comes_free(other, waiting))
        })
    }

    /// Where the bytes of a file that was just staged at `path` are found: there, if it has that name no longer.
    fn staged_origin(&self, ino: Ino, path: &RepoPath) -> Option<Arc<Source>> {
        let moved = self.tree.resolve(path) != Resolved::Inode(ino);
        moved.then(|| Arc::new(Source { revision: Revision::Workspace, path: path.clone() }))
    }

    /// A file's bytes were just staged at `path`: if they are read somewhere else in the workspace, they are read there from
    /// now on. Those that a commit has are best read there: nobody takes them away.
    fn found_at(&mut self, ino: Ino, staged: ContentHash, path: &RepoPath) {
        if let Some((Content::Remote { hash, origin: Some(origin) }, size)) = self.content(ino)
            && *hash == staged
            && origin.revision == Revision::Workspace
        {
            let origin = self.staged_origin(ino, path);
            self.set_content(ino, Content::Remote { hash: staged, origin }, size);
        }
    }

    /// Applies a confirmation; returns the spool file that the cache may take over.
    fn confirm(&mut self, capture: &Capture, step: Step) -> Option<Adopted> {
        let path = &capture.path;
        let account = self.writeback.account(path).unwrap_or_default();
        let account = Account { staged: account.after(step), theirs: false, held: false, ..account };
        self.apply(Change::Account { path: path.clone(), account: Some(account) });
        if self.writeback.upload(path).is_some() {
            self.apply(Change::Upload { path: path.clone(), upload: None });
        }
        let mut adopted = None;
        match (&capture.want, capture.want.object()) {
            (Want::Sealed { ino, generation, size, held, .. }, Some(object)) => {
                self.backing.copy_is_staged(*ino, held.spool, object.hash);
                if self.tree.still(Token::of_spool(*ino, held.spool, *generation)) {
                    let origin = self.staged_origin(*ino, path);
                    let counted = self.counted(*ino);
                    let content = Content::Remote { hash: object.hash, origin };
                    self.step(*ino, Event::Confirmed, |state| state.set_content(*ino, content, *size));
                    adopted = Some(Adopted { spool: held.spool, hash: object.hash, size: *size, counted });
                } else {
                    // Staged under another name of before, meanwhile, and no more to be read there.
                    self.found_at(*ino, object.hash, path);
                }
            }
            (Want::Remote { ino, .. }, Some(object)) => self.found_at(*ino, object.hash, path),
            _ => {}
        }
        self.writeback.done(path, capture.seq);
        // What changed meanwhile still needs its account, to know what it differs from; and so does what programs have
        // open, of which a copy was staged: its own bytes do not tell what the base has.
        if account.is_settled() && !self.writeback.is_pending(path) && self.agrees(path, account.base) {
            self.apply(Change::Account { path: path.clone(), account: None });
        }
        adopted
    }

    /// What never travels, and why: files as such, and what Oxen does not store of those that do. Times are left out: no
    /// file's travel. What is counted are paths, and the bytes of regular files that stay.
    /// `length` tells a spool file's, which may be longer than the tree knows.
    pub(super) fn local_paths(
        &self,
        options: &Options,
        counts: &mut Counts,
        length: impl Fn(SpoolId, u64) -> u64,
    ) -> Vec<LocalPath> {
        let mut shown = Vec::new();
        for (ino, inode) in
            self.tree.iter().filter(|(ino, inode)| *ino != ROOT && (inode.recorded || self.tree.is_lost(*ino)))
        {
            let Some((parent, name)) = inode.links.iter().find(|(dir, name)| !self.tree.is_ignored(*dir, name)) else {
                continue;
            };
            let mut reasons = Vec::new();
            let mut stored = false;
            match &inode.body {
                Body::Symlink(_) => reasons.push("symbolic link".to_owned()),
                Body::Special { .. } => reasons.push("special file".to_owned()),
                Body::Dir(dir) => {
                    if dir.children.is_empty() && dir.listed && (dir.hidden.is_empty() || !dir.based) {
                        reasons.push("empty directory".to_owned());
                    }
                    stored = reasons.is_empty();
                    reasons.extend(inode.unstored(options));
                }
                Body::File { .. } => match self.tree.path_in(*parent, name) {
                    Err(error) => {
                        let bytes = self.local_bytes(ino, &length);
                        counts.local.bytes = counts.local.bytes.saturating_add(bytes);
                        reasons.push(error.to_string());
                    }
                    Ok(_) => {
                        stored = true;
                        if inode.links.len() > 1 {
                            reasons.push("hard links, which become copies".to_owned());
                        }
                        reasons.extend(inode.unstored(options));
                    }
                },
            }
            if !reasons.is_empty() {
                counts.local.files += 1;
                counts.partly.files += u64::from(stored);
                if shown.len() < SHOWN_LOCAL {
                    shown.push(LocalPath { path: self.tree.display_path(ino), reason: reasons.join("; ") });
                }
            }
        }
        self.tell_ignored(counts, &length, &mut shown);
        shown.sort_by(|a, b| a.path.cmp(&b.path));
        shown
    }

    /// What is ignored, and why, as far as there is room for it among what is `shown`.
    pub(super) fn tell_ignored(
        &self,
        counts: &mut Counts,
        length: &impl Fn(SpoolId, u64) -> u64,
        shown: &mut Vec<LocalPath>,
    ) {
        for (parent, name) in self.tree.all_ignored() {
            let Some(ino) = self.tree.child(parent, name) else { continue };
            let bytes = self.local_bytes(ino, length);
            for tally in [&mut counts.ignored, &mut counts.local] {
                tally.files += 1;
                tally.bytes = tally.bytes.saturating_add(bytes);
            }
            if shown.len() < SHOWN_LOCAL
                && let Some(reason) = self.why_ignored(parent, name)
            {
                let dir = self.tree.display_path(parent);
                let path = if dir.is_empty() { name.to_string() } else { format!("{dir}/{name}") };
                shown.push(LocalPath { path, reason });
            }
        }
    }

    pub(super) fn local_bytes(&self, ino: Ino, length: &impl Fn(SpoolId, u64) -> u64) -> u64 {
        match self.content(ino) {
            Some((Content::Local { spool, .. }, size)) => length(*spool, size),
            Some((Content::Remote { .. }, size)) => size,
            None => 0,
        }
    }
}

impl Inode {
    /// What a mount elsewhere would not show of a file or directory that travels.
    fn unstored(&self, options: &Options) -> Vec<String> {
        let Attrs { mode, uid, gid, .. } = self.attrs;
        let shown = base_attrs(options, self.is_dir(), Timestamp::default());
        let mut reasons = Vec::new();
        if mode != shown.mode {
            reasons.push(format!("permissions {mode:04o}"));
        }
        if (uid, gid) != (shown.uid, shown.gid) {
            reasons.push(format!("owner {uid}:{gid}"));
        }
        if self.xattrs.is_some() {
            reasons.push("extended attributes".to_owned());
        }
        reasons
    }
}

/// An operation that needs nothing.
pub(super) fn into_plain<T>(done: Op<T>) -> Result<T, FsError> {
    done.map_err(|stop| match stop {
        super::Stop::Error(error) => error,
        super::Stop::Need(_) => FsError::Stale,
    })
}
