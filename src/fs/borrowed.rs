//! Files of the cache that programs read past the daemon: borrowed from the cache, given back, or made a file's own when
//! somebody comes who writes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use super::live::{Loan, is_alone};
use super::staging::into_plain;
use super::standing::Event;
use super::tree::Token;
use super::{Fs, FsError, State, set_mtime};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, SpoolId};
use crate::store::disk::Act;
use crate::store::spool::{self, Lending, copy_content};

/// How soon it is looked again whether somebody else has done with a file what he was about to: a few calls of the kernel,
/// or a flush.
pub(super) const SOON: Duration = Duration::from_millis(1);
/// How long after a refusal it is tried once more: the kernel, and this daemon, let go of a file an instant after its
/// last close is told.
const AGAIN: Duration = Duration::from_micros(200);

/// That the local file behind an open one is the cache's, and nobody else's meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Borrowed {
    /// Its content. The inode's may be another by now: somebody else's commit changed it, and those who read go on with
    /// what they have.
    pub hash: ContentHash,
    /// Somebody is about to make it the inode's own, and sees to it whatever comes of that.
    leaving: bool,
}

impl Borrowed {
    /// Somebody is about to make it the inode's own, or gives up.
    pub fn set_leaving(&mut self, leaving: bool) {
        self.leaving = leaving;
    }

    /// Whether that is so.
    pub fn is_leaving(self) -> bool {
        self.leaving
    }

    /// Its content, if it is to be given back by whoever closes it.
    pub fn to_give_back(self) -> Option<ContentHash> {
        (!self.leaving).then_some(self.hash)
    }
}

impl State {
    /// What a file's readers have borrowed of the cache.
    pub(super) fn borrowed(&self, ino: Ino) -> Option<Borrowed> {
        self.handles.borrowed(ino)
    }

    /// Whether what a file's readers have borrowed, if anything, is its content still.
    pub(super) fn has_its_content(&self, ino: Ino) -> bool {
        self.borrowed(ino).is_none_or(|borrowed| self.tree.still(Token::of_server(ino, borrowed.hash)))
    }
}

impl Fs {
    /// Whether a file of the cache of this length is borrowed by those who read it.
    pub(super) fn is_worthwhile(&self, size: u64) -> bool {
        self.worthwhile.get().copied().flatten().is_some_and(|least| size >= least)
    }

    /// Whether the spool's filesystem tells who has a file: every other descriptor, and every mapping, of a closed one
    /// too. Those that lie on others may have such mappings of what is below (overlayfs).
    pub(super) fn try_borrowing(&self) -> bool {
        let Ok((id, file)) = self.spool.create() else { return false };
        let tried = file.set_len(1).and_then(|()| {
            drop(file);
            let first = self.spool.file_to_read(id)?;
            let at_first = is_alone(&first)?;
            let page = Page::of(&first)?;
            drop(first);
            let second = self.spool.file_to_read(id)?;
            let mapped = is_alone(&second)?;
            drop(page);
            let unmapped = is_alone(&second)?;
            let third = self.spool.file_to_read(id)?;
            let shared = is_alone(&second)?;
            drop(third);
            Ok((at_first, mapped, unmapped, shared) == (true, false, true, false))
        });
        self.spool.remove(id);
        match tried {
            Ok(true) => return true,
            Ok(false) => tracing::info!("what is cached is read by requests: nobody tells who has a file open"),
            Err(error) => tracing::info!(%error, "what is cached is read by requests"),
        }
        false
    }

    /// Borrows content of the cache for the readers of a file. `None` when it is not there, or anybody else has it.
    pub(super) fn borrow(&self, ino: Ino, hash: ContentHash) -> Option<(Arc<File>, Arc<Loan>, Borrowed)> {
        let alone = |file: &File| is_alone(file).unwrap_or(false);
        let then = if self.options.read_only { Lending::IsRead } else { Lending::MayBeWritten };
        let file = match self.cache.lend(hash, ino, then, alone) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(AGAIN);
                self.cache.lend(hash, ino, then, alone)
            }
            lent => lent,
        };
        let file = file.ok()?;
        match self.lend(&file) {
            Some(loan) => Some((file, loan, Borrowed { hash, leaving: false })),
            None => {
                self.give_back(hash);
                None
            }
        }
    }

    /// Lets others have what was borrowed. No disk work.
    pub(super) fn give_back(&self, hash: ContentHash) {
        if let Some(spool) = self.cache.give_back(hash) {
            self.leave(spool);
        }
    }

    /// Whether the readers of a file have what they read from the cache.
    pub(super) fn is_borrowed(&self, ino: Ino) -> bool {
        self.lock().borrowed(ino).is_some()
    }

    /// Whether somebody is borrowing a file's content for it this instant, or making what was borrowed its own.
    pub(super) fn is_being_borrowed(&self, ino: Ino) -> bool {
        let state = self.lock();
        match state.content(ino) {
            Some((Content::Remote { hash, .. }, _)) => self.cache.lent_to(*hash) == Some(ino),
            _ => false,
        }
    }

    /// A copy of what is lent, if that still has this content.
    pub(super) fn copy_lent(&self, hash: ContentHash, size: u64, from: &File) -> Result<Option<Arc<File>>, FsError> {
        self.make_room(size);
        let copy = self.cache.begin()?;
        let copied = self.spool.disk().act(Act::Write(&copy.file), || copy_content(from, &copy.file))?;
        Ok(self.keep_fetched(copy, hash, (copied, size))?.ok())
    }

    /// Makes what a file's readers have borrowed the file's own, where it lies open: a writer has come, and must write to
    /// what they read. Says whether it was this call that did it, or found nothing to do.
    ///
    /// # Errors
    /// [`FsError::Busy`] when the file's content is another by now; the local filesystem's. It stays borrowed then.
    pub(super) fn take_borrowed(&self, ino: Ino) -> Result<bool, FsError> {
        let (hash, file) = {
            let mut state = self.begin();
            let Some(Borrowed { hash, leaving }) = state.borrowed(ino) else { return Ok(true) };
            if !state.has_its_content(ino) {
                return Err(FsError::Busy);
            }
            if leaving {
                return Ok(false);
            }
            let file = state.handles.local(ino).cloned().ok_or(FsError::Stale)?;
            state.handles.set_leaving(ino, hash, true);
            (hash, file)
        };
        let mut taken = false;
        let done = self.own_borrowed(ino, hash, file, &mut taken);
        if taken {
            self.cache.part_with(hash);
            return done.map(|()| true);
        }
        self.cache.return_from(&self.spool, hash);
        let mut state = self.begin();
        // Closed meanwhile, and perhaps opened again with other content.
        if !state.handles.set_leaving(ino, hash, false) {
            self.give_back(hash);
        }
        drop(state);
        done.map(|()| true)
    }

    fn own_borrowed(&self, ino: Ino, hash: ContentHash, file: Arc<File>, taken: &mut bool) -> Result<(), FsError> {
        let (mtime, awaited) = {
            let state = self.lock();
            let inode = state.tree.get(ino).ok_or(FsError::Stale)?;
            (inode.attrs.mtime, state.awaits(ino, hash))
        };
        let size = file.metadata()?.len();
        // After a restart the spool file's own is what counts.
        set_mtime(&file, mtime)?;
        let mut copy = if awaited { Some(Copy::of(self, &file)?) } else { None };
        let id = self.cache.depart(&self.spool, hash)?;
        // What the server has is on stable storage: the record must not move on to bytes that are not.
        self.spool.sync(id, &file)?;
        let room = spool::room(&file);
        into_plain(self.change(|state| {
            let borrowed = state.borrowed(ino).is_some_and(|borrowed| borrowed.hash == hash && borrowed.leaving);
            let dated = state.tree.get(ino).is_some_and(|inode| inode.attrs.mtime == mtime);
            // A commit may have begun to wait for it.
            let copied = copy.is_some() || !state.awaits(ino, hash);
            if !borrowed || !state.tree.still(Token::of_server(ino, hash)) || !dated || !copied {
                return Ok(());
            }
            for path in state.tree.file_paths(ino) {
                state.open_account(&path, Some(ino));
            }
            let generation = state.tree.fresh_generation();
            let content = Content::Local { spool: id, generation, hash: Some(hash) };
            state.step(ino, Event::Promoted, |state| {
                state.set_content(ino, content, size);
                state.handles.owns_borrowed(ino);
            });
            let counted = room.map_or(size, |room| state.note_room(ino, room));
            self.spool.charge(counted);
            *taken = true;
            if let Some(copy) = &mut copy
                && state.pin_copy_for_cut(self, ino, hash, copy.id, (size, copy.counted))
            {
                copy.unused = false;
            }
            Ok(())
        }))
    }
}

/// A copy for the commit that waits for it. Gone when dropped, unless it was put to use.
struct Copy<'a> {
    fs: &'a Fs,
    id: SpoolId,
    counted: u64,
    unused: bool,
}

impl<'a> Copy<'a> {
    fn of(fs: &'a Fs, from: &File) -> Result<Self, FsError> {
        // Its holes are the copy's.
        let counted = spool::holes::counted_of(&from.metadata()?);
        fs.make_room(counted);
        let (id, to) = fs.spool.create()?;
        fs.spool.charge(counted);
        let copy = Self { fs, id, counted, unused: true };
        fs.spool.disk().act(Act::Write(&to), || copy_content(from, &to))?;
        Ok(copy)
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if self.unused {
            self.fs.spool.remove(self.id);
            self.fs.spool.release(self.counted);
        }
    }
}

/// The first page of a file, mapped for reading.
struct Page(*mut libc::c_void);

impl Page {
    const BYTES: usize = 4096;

    fn of(file: &File) -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses, which nobody reads.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), Self::BYTES, access, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(at)) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made.
        unsafe { libc::munmap(self.0, Self::BYTES) };
    }
}
