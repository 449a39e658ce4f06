//! Spool files of their own: an empty one, or a copy, in the place of bytes that nobody may change.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::passthrough::Way;
use super::staging::into_plain;
use super::standing::Event;
use super::tree::Token;
use super::{COPY_LIMIT_BYTES, Fs, FsError, borrowed, set_mtime};
use crate::namespace::{Content, Ino, SpoolId};
use crate::store::copy::copy_content;
use crate::store::disk::Act;
use crate::store::holes;

/// How long a writer waits for whoever holds a file: a question to a server that does not answer can take minutes.
const HOLDERS_PATIENCE: Duration = Duration::from_secs(1);

/// A copy of a file's bytes that is to take their place.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    of: Token,
    /// Length in bytes.
    size: u64,
    /// Bytes that are reserved for it.
    reserved: u64,
}

impl Fs {
    /// Gives a file a spool file of its own that nobody else reads, with its bytes in it.
    pub(super) async fn own(&self, ino: Ino) -> Result<(), FsError> {
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
        let (size, reserved) = (found.len(), holes::counted_of(&found));
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
    pub(super) fn empty(&self, ino: Ino) -> Result<(), FsError> {
        let (id, file) = self.spool.create()?;
        self.install(ino, id, file, None)?;
        // Unlike a copy, this is a change, whether or not a write follows.
        let noted = self.change(|state| {
            state.wrote(ino, |size| size, self);
            Ok(state.tree.get(ino).map(|inode| inode.attrs.mtime).zip(state.spooled(ino)))
        });
        match into_plain(noted)? {
            Some((mtime, spooled)) => into_plain(self.stamp_spool(Some(spooled), mtime)),
            None => Ok(()),
        }
    }

    /// Makes a spool file a file's content: an empty one, or a copy, if the file rests with what that is of.
    fn install(&self, ino: Ino, id: SpoolId, file: File, copy: Option<Copy>) -> Result<(), FsError> {
        let (size, reserved) = copy.map_or((0, 0), |copy| (copy.size, copy.reserved));
        let room = holes::room(&file);
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
        if !into_plain(done)? {
            self.scrap(id, reserved);
        }
        Ok(())
    }

    /// Removes a spool file that was never on record, and what is counted for it.
    fn scrap(&self, id: SpoolId, size: u64) {
        self.spool.remove(id);
        self.spool.release(size);
    }
}
