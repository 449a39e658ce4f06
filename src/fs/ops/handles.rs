//! Open files: opened, flushed, closed.

use std::sync::Arc;

use crate::fs::live::Asked;
use crate::fs::ops::OpenFlags;
use crate::fs::passthrough::Way;
use crate::fs::standing::Event;
use crate::fs::{Fs, FsError, Need, Op, State, set_mtime};
use crate::namespace::{Body, Content, Ino};
use crate::path::RepoPath;

impl Fs {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`FsError::IsDir`]; [`FsError::TextBusy`]; the server's when its bytes must be fetched.
    pub fn open(&self, ino: Ino, flags: OpenFlags) -> Op<u64> {
        if flags.write || flags.truncate {
            self.writable_mount()?;
            self.lock().check_open_to_change(ino)?;
        }
        let handle = self.attach(ino, flags)?;
        // Who writes past the daemon is told by nobody whether the file's place in the spool is on record: another thread
        // may have found it that place, and not written that down yet.
        if flags.write
            && let Err(error) = self.journal.commit(self.journal.append(&[]))
        {
            self.release(handle);
            return Err(error.into());
        }
        Ok(handle)
    }

    pub(in crate::fs) fn attach(&self, ino: Ino, flags: OpenFlags) -> Op<u64> {
        self.lock().need_seen(ino)?;
        // Of those that open it for writing the kernel sees to that itself, before it asks.
        if flags.truncate && !flags.write && self.lock().handles.is_executed(ino) {
            return Err(FsError::TextBusy.into());
        }
        let empty = |state: &mut State| {
            state.look(ino, self);
            state.content(ino).is_some_and(|(_, size)| size == 0 && state.counted(ino) == 0)
        };
        if flags.truncate && empty(&mut self.begin()) {
            // Emptying what is empty is a change too, by its times.
            self.touch_times(ino)?;
        }
        loop {
            let (content, token, way) = {
                let mut state = self.begin();
                state.look(ino, self);
                let (content, size) = match state.tree.get(ino).map(|inode| &inode.body) {
                    Some(Body::File { content, size }) => (content.clone(), *size),
                    Some(Body::Dir(_)) => return Err(FsError::IsDir.into()),
                    Some(_) => return Err(FsError::Unsupported.into()),
                    None => return Err(FsError::Stale.into()),
                };
                if flags.write || flags.truncate {
                    state.keep_closed_for_cut(self, ino);
                }
                // O_TRUNC counts with O_RDONLY too: the kernel has checked that the file may be written. Room that was
                // allocated behind the end goes with it.
                if flags.truncate && (size > 0 || state.counted(ino) > 0) {
                    // Those who go past the daemon stay with the file that they have.
                    if state.backing.is_live(ino) || state.handles.way(ino) == Some(Way::Past) {
                        drop(state);
                        self.truncate(ino, 0)?;
                        continue;
                    }
                    return Err(crate::fs::Stop::Need(Need::Empty(ino)));
                }
                // Who writes to what others read past the daemon writes to the same file.
                if flags.write && state.borrowed(ino).is_some() {
                    return Err(crate::fs::Stop::Need(Need::Own(ino)));
                }
                let able = if state.backing.is_live(ino) { self.able() } else { self.may_pass(&state) };
                let way = state.opening(ino, flags.write, able, self);
                let attached = state.handles.local(ino).is_some();
                let unread = way == Way::Requests && !flags.read && matches!(content, Content::Remote { .. });
                if attached || unread {
                    return Ok(state.step(ino, Event::Opened, |state| state.open_handle(ino, flags)));
                }
                (content, state.tree.token(ino).ok_or(FsError::Stale)?, way)
            };
            let lent = match &content {
                Content::Local { .. } if way == Way::Past => match self.spool_file_to_read(token)? {
                    Some(file) => self.lend(&file).map(|loan| (Arc::new(file), loan, None)),
                    None => continue,
                },
                Content::Remote { hash, .. } if way == Way::Past => {
                    self.borrow(ino, *hash).map(|(file, loan, borrowed)| (file, loan, Some(borrowed)))
                }
                _ => None,
            };
            let (file, loan, borrowed) = match (lent, &content) {
                (Some((file, loan, borrowed)), _) => (file, Some(loan), borrowed),
                (None, Content::Local { .. }) => match self.spool_file(token)? {
                    Some(file) => (Arc::new(file), None, None),
                    None => continue,
                },
                (None, Content::Remote { hash, .. }) => {
                    let file = self.cache.file(*hash).ok_or(crate::fs::Stop::Need(Need::Fetch(ino)))?;
                    (Arc::new(file), None, None)
                }
            };
            let mut state = self.begin();
            let same = state.tree.still(token);
            // Somebody may have been faster, and decided; then it is done again after them.
            let decides = same && state.handles.way(ino).is_none();
            if decides && (loan.is_none() || state.opening(ino, flags.write, true, self) == way) {
                return Ok(state.step(ino, Event::Opened, |state| {
                    state.handles.attach(ino, file, loan, borrowed);
                    state.open_handle(ino, flags)
                }));
            }
            if same && state.handles.way(ino) == Some(Way::Requests) && loan.is_none() {
                return Ok(state.step(ino, Event::Opened, |state| {
                    state.handles.attach_first(ino, file);
                    state.open_handle(ino, flags)
                }));
            }
            drop(state);
            // Closed first: it is lent again to nobody else as long as it is open here.
            drop((file, loan));
            if let Some(borrowed) = borrowed {
                self.give_back(borrowed.hash);
            }
        }
    }

    /// Flushes a file, its name and the record to stable storage; returns the paths whose staging a caller may want
    /// to wait for.
    ///
    /// # Errors
    /// The local filesystem's.
    pub fn fsync(&self, handle: u64) -> Op<Vec<RepoPath>> {
        let (file, spool, paths) = {
            let state = self.lock();
            match state.handles.file(handle) {
                Ok(ino) => {
                    let spool = match state.content(ino) {
                        Some((Content::Local { spool, .. }, _)) => Some(*spool),
                        _ => None,
                    };
                    (state.handles.local(ino).cloned(), spool, state.tree.file_paths(ino))
                }
                Err(_) => {
                    state.handles.dir(handle)?;
                    drop(state);
                    // What the record names must be there, or the directory's new files are names of nothing.
                    self.spool.sync_names()?;
                    (None, None, Vec::new())
                }
            }
        };
        if let (Some(file), Some(spool)) = (file, spool) {
            // A concurrent confirmation may have moved the file to the cache; its bytes are on the server then.
            self.spool.sync(spool, &file)?;
        }
        let ticket = self.journal.append(&[]);
        self.journal.sync(ticket)?;
        Ok(paths)
    }

    /// The paths of a file that is open for writing: closing any other waits for nothing.
    pub fn handle_paths(&self, handle: u64) -> Vec<RepoPath> {
        let state = self.lock();
        state.handles.writer(handle).map_or_else(|_| Vec::new(), |ino| state.tree.file_paths(ino))
    }

    /// Closes a handle. The last writer's makes the file due for staging after its quiet period.
    pub fn release(&self, handle: u64) {
        let mut closed = None;
        let mut written = None;
        let mut rested = None;
        // Of a large directory it takes a while to go.
        let mut order = None;
        // As for `forget`.
        let done = self.change(|state| {
            let Some(handle) = state.handles.close(handle) else { return Ok(()) };
            let ino = handle.ino;
            order = state.tree.closed(ino);
            state.step(ino, Event::Closed, |state| {
                if handle.write {
                    state.look(ino, self);
                }
                let live = state.backing.is_live(ino);
                let past = state.handles.way(ino) == Some(Way::Past);
                let staged = state.backing.staged_live(ino).is_some();
                // What was done past the daemon need not show.
                let left_open = state.handles.leave(&handle, live && !staged);
                if left_open.stale {
                    state.kernel.content_changed(ino);
                }
                closed = left_open.last;
                let borrowed = closed.as_ref().and_then(|closed| closed.borrowed?.to_give_back());
                borrowed.into_iter().for_each(|hash| self.give_back(hash));
                // The spool file's time counts after the daemon's end, and is of another clock yet.
                if let (Some(file), Some((Content::Local { .. }, _))) = (left_open.written, state.content(ino)) {
                    written = state.tree.get(ino).map(|inode| (file, inode.attrs.mtime));
                }
                if left_open.settled {
                    state.touch_file(ino, self.options.settle);
                }
                // One that may change without a request is asked after however it was open here.
                if past || live {
                    let asked = state.ask_after(ino, self);
                    if let (Asked::Still(staged), None) = (asked, state.handles.way(ino)) {
                        rested = state.come_to_rest(ino, staged, self);
                    }
                }
            });
            state.bury(ino);
            Ok(())
        });
        if let Some((file, mtime)) = written
            && let Err(error) = set_mtime(&file, mtime)
        {
            tracing::debug!(%error, "a restart will show another modification time");
        }
        drop(order);
        if closed.is_some_and(|closed| closed.borrowed.is_some()) {
            self.cache.evict();
        }
        if done.is_err() {
            tracing::error!("what was closed could not be put on record");
        }
        // Also then: until it can, nothing leaves the spool.
        rested.into_iter().for_each(|adopted| self.keep(adopted));
    }
}

impl State {
    pub(in crate::fs) fn open_handle(&mut self, ino: Ino, flags: OpenFlags) -> u64 {
        let handle = self.handles.open_file(ino, flags, self.kernel.may_leave_uncached());
        if let Some(file) = self.handles.local(ino).filter(|_| flags.write && self.handles.is_lent(ino)).cloned() {
            self.enliven(ino, &file);
        }
        self.tree.opened(ino);
        handle
    }
}
