//! Staging, as the filesystem has part in it: what a path that is due should be, what that waits for, and what follows
//! from what became of it.
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cut::InCut;
use super::fixing::{Fixable, RECHECK};
use super::live::Adopted;
use super::passthrough::{Seal, Urgency};
use super::standing::Event;
use super::tree::Token;
use super::{Fs, FsError, Op, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, Resolved};
use crate::path::RepoPath;
use crate::store::journal::Change;
use crate::workspace::{self, Revision};
use crate::writeback::index::{Account, Staged, Step};
use crate::writeback::queue::Parked;
use crate::writeback::{Capture, Want};

/// Whether a local error passes without anybody's doing: too many open files, no memory.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
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
    /// Asks after the files that somebody still had mapped when they were closed.
    pub(super) fn ask_after_closed(&self) {
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

    /// A path that is due, with what it should be. `None`: it cannot be told just now, and it is looked at again.
    pub(super) fn capture(&self, path: &RepoPath) -> Option<Capture> {
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
        let file = Arc::new(self.spool.file(held.spool()).map_err(Miss::Lost)?);
        let held = self.begin().hold_for(self, held.spool(), Some(file));
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
                let (seq, alone, attempts) = (entry.seq, entry.alone, entry.attempts());
                let overdue = state.writeback.queue().is_overdue(entry, self.options.settle);
                let urgency = match (entry.forced, overdue) {
                    (true, _) => Urgency::Barrier,
                    (false, true) => Urgency::Overdue,
                    (false, false) => Urgency::None,
                };
                let account = state.writeback.account(path).unwrap_or_default();
                let upload = state.writeback.upload(path).cloned();
                let capture = |want| Capture { path: path.clone(), seq, account, want, alone, attempts, upload };
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
                        if let Some(file) = state.handles.local(ino).cloned() {
                            let held = state.hold(self, ino, spool, file);
                            return Ok(Some(capture(Want::Sealed { ino, generation, hash, size, held })));
                        }
                        Ok((ino, spool, generation, hash, size, seq, account, alone, attempts))
                    }
                }
            };
            let (ino, spool, generation, hash, size, seq, account, alone, attempts) = match unopened {
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
                let held = state.hold(self, ino, spool, file);
                let upload = state.writeback.upload(path).cloned();
                let want = Want::Sealed { ino, generation, hash, size, held };
                return Ok(Some(Capture { path: path.clone(), seq, account, want, alone, attempts, upload }));
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
        let (seq, alone, attempts) = {
            let mut state = self.begin();
            // The commit has content of its own for the path.
            if state.is_cut() {
                return Ok(None);
            }
            state.look(ino, self);
            let pending = state.writeback.pending(path).map(|entry| (entry.seq, entry.alone, entry.attempts()));
            let Some((seq, alone, attempts)) = pending else {
                return Ok(None);
            };
            // Removed, renamed or given other content since it was found to need a copy.
            if !state.tree.still_in(of) || state.tree.resolve(path) != Resolved::Inode(ino) {
                return Ok(None);
            }
            state.handles.fix(ino);
            (seq, alone, attempts)
        };
        let Some(copied) = self.copy_live(of)? else { return Ok(None) };
        let mut state = self.begin();
        let state = &mut *state;
        let account = state.writeback.account(path).unwrap_or_default();
        let upload = state.writeback.upload(path).cloned();
        let want = state.hold_copy(self, ino, copied, false);
        Ok(Some(Capture { path: path.clone(), seq, account, want, alone, attempts, upload }))
    }

    /// Writes down that the server's state of these paths is in doubt, before a request that changes it is sent, and
    /// that it may remove `dirs` at any later time, whatever is in them by then. Returns those of them that no request
    /// threatened before; to be told when this one is [answered](crate::writeback::Source::was_answered).
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
                    let account = Account { staged: Staged::Doubt, ..account };
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

    /// [`crate::writeback::Source::confirm`].
    ///
    /// # Errors
    /// The journal's.
    pub(super) fn confirmed(&self, steps: &[(Capture, Step)]) -> Result<(), FsError> {
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

    /// Whether what failed is out of date, and nobody waits for it: the path is looked at again then.
    pub(super) fn has_changed_since(&self, capture: &Capture, error: &str) -> bool {
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
    pub(super) fn failed(&self, path: &RepoPath, error: &str, retry: Option<Duration>) {
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
}

impl State {
    /// Where the bytes of a file that was just staged at `path` are found: there, if it has that name no longer.
    fn staged_origin(&self, ino: Ino, path: &RepoPath) -> Option<Arc<workspace::Source>> {
        let moved = self.tree.resolve(path) != Resolved::Inode(ino);
        moved.then(|| Arc::new(workspace::Source { revision: Revision::Workspace, path: path.clone() }))
    }

    /// A file's bytes were just staged at `path`: if they are read somewhere else, they are read there from now on.
    fn found_at(&mut self, ino: Ino, staged: ContentHash, path: &RepoPath) {
        if let Some((Content::Remote { hash, origin: Some(_) }, size)) = self.content(ino)
            && *hash == staged
        {
            let origin = self.staged_origin(ino, path);
            self.set_content(ino, Content::Remote { hash: staged, origin }, size);
        }
    }

    /// Applies a confirmation; returns the spool file that the cache may take over.
    fn confirm(&mut self, capture: &Capture, step: Step) -> Option<Adopted> {
        let path = &capture.path;
        let account = self.writeback.account(path).unwrap_or_default();
        let account = Account { staged: account.after(step), ..account };
        self.apply(Change::Account { path: path.clone(), account: Some(account) });
        if self.writeback.upload(path).is_some() {
            self.apply(Change::Upload { path: path.clone(), upload: None });
        }
        let mut adopted = None;
        match (&capture.want, capture.want.object()) {
            (Want::Sealed { ino, generation, size, held, .. }, Some(object)) => {
                self.backing.copy_is_staged(*ino, held.spool(), object.hash);
                if self.tree.still(Token::of_spool(*ino, held.spool(), *generation)) {
                    let origin = self.staged_origin(*ino, path);
                    let counted = self.counted(*ino);
                    let content = Content::Remote { hash: object.hash, origin };
                    self.step(*ino, Event::Confirmed, |state| state.set_content(*ino, content, *size));
                    adopted = Some(Adopted { spool: held.spool(), hash: object.hash, size: *size, counted });
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
}

/// An operation that needs nothing.
pub(super) fn into_plain<T>(done: Op<T>) -> Result<T, FsError> {
    done.map_err(|stop| match stop {
        super::Stop::Error(error) => error,
        super::Stop::Need(_) => FsError::Stale,
    })
}
