//! Ranges of a file: allocated, punched, zeroed, found, copied.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::tree::Token;
use super::{Fs, FsError, Need, Op, State, Stop};
use crate::namespace::{Content, Ino};
use crate::store::copy::{copy_content, copy_range};
use crate::store::disk::Act;
use crate::store::holes::{self, counted, even};

/// The most that one call copies, in bytes; the caller asks for the rest (`copy_file_range(2)`).
const COPY_MAX_BYTES: u64 = 1 << 30;

/// What `fallocate` does to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeChange {
    /// Room is made for it; whether the file grows to hold it.
    Allocate {
        /// Not with `FALLOC_FL_KEEP_SIZE`.
        grow: bool,
    },
    /// `FALLOC_FL_PUNCH_HOLE`: it reads as zeros and takes no room.
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`: it reads as zeros and has room; whether the file grows to hold it.
    Zero {
        /// Not with `FALLOC_FL_KEEP_SIZE`.
        grow: bool,
    },
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

/// A file that is being written to, outside the lock.
struct Writing {
    ino: Ino,
    file: Arc<File>,
    size: u64,
    /// Whether it may take more or less room than its length says.
    uneven: bool,
}

impl State {
    /// The local file of a handle that may be changed, and until [`end_reshaping`](super::handles::Handles::end_reshaping) is not captured.
    fn begin_change(&mut self, handle: u64, fs: &Fs) -> Op<Writing> {
        let ino = self.handles.writer(handle)?;
        self.look(ino, fs);
        let (content, size) = self.content(ino).ok_or(FsError::Stale)?;
        let uneven = self.backing.is_uneven(ino);
        match content {
            Content::Local { spool, .. } if !self.backing.is_held(*spool) => {}
            _ => return Err(Stop::Need(Need::Own(ino))),
        }
        let file = self.writable(ino, fs)?;
        self.handles.begin_reshaping(ino);
        Ok(Writing { ino, file, size, uneven })
    }
}

impl Fs {
    /// Allocates, punches or zeroes a range of an open file, on the filesystem that holds the spool.
    ///
    /// Room behind the end of a file is made there too, and counts for the spool's limit at once.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]; [`FsError::Unsupported`] where that filesystem cannot.
    pub fn fallocate(&self, handle: u64, offset: u64, length: u64, change: RangeChange) -> Op<()> {
        let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()).ok_or(FsError::Invalid)?;
        let (flags, grow) = match change {
            RangeChange::Allocate { grow } => (FallocateFlags::empty(), grow),
            RangeChange::Punch => (FallocateFlags::PUNCH_HOLE, false),
            RangeChange::Zero { grow } => (FallocateFlags::ZERO_RANGE, grow),
        };
        let flags = if grow { flags } else { flags | FallocateFlags::KEEP_SIZE };
        let Writing { ino, file, size, uneven } = self.begin().begin_change(handle, self)?;
        let reserved = match change {
            RangeChange::Punch => Ok(0),
            _ => self.reserve_range(&file, size, uneven, offset, end),
        };
        let taken = *reserved.as_ref().unwrap_or(&0);
        let done = reserved
            .and_then(|_| self.spool.disk().act(Act::Resize(&file), || Ok(fallocate(&*file, flags, offset, length)?)));
        let ok = done.is_ok();
        self.change(|state| {
            state.handles.end_reshaping(ino);
            self.spool.release(taken);
            if ok {
                let grown = if grow { size.max(end) } else { size };
                state.reshaped(ino, |size| size.max(grown), &file, self);
            } else {
                state.disarrayed(ino, &file, self);
            }
            Ok(())
        })?;
        match done {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Err(FsError::Unsupported.into()),
            done => Ok(done?),
        }
    }

    /// Where the next data or hole begins. What is only on the server counts as data, and so does all of a file that is
    /// being written by requests: what is in the pages of a mapping has not come here yet (`fuse_file_llseek` of the
    /// kernel does not write them out first).
    ///
    /// # Errors
    /// [`FsError::PastEnd`] when there is none.
    pub fn seek(&self, handle: u64, offset: u64, what: Seek) -> Op<u64> {
        let (file, size) = {
            let mut state = self.begin();
            let ino = state.handles.file(handle)?;
            state.look(ino, self);
            let (content, size) = state.content(ino).ok_or(FsError::Stale)?;
            let local = matches!(content, Content::Local { .. });
            let told = local && !state.is_written_by_requests(ino);
            (state.handles.local(ino).cloned().filter(|_| told), size)
        };
        if offset >= size {
            return Err(FsError::PastEnd.into());
        }
        let Some(file) = file else {
            return Ok(if what == Seek::Data { offset } else { size });
        };
        // Moves the position of a descriptor that many share, which nobody uses.
        let found = seek(&*file, if what == Seek::Data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) });
        match found {
            Ok(at) => Ok(at.min(size)),
            Err(Errno::NXIO) => Err(FsError::PastEnd.into()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// Copies a range of one open file to another, or within one; returns how much. A copy of a whole file shares its
    /// blocks where the spool's filesystem can, and is known to have its content: the server gets no bytes it has.
    /// May take long.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]; the server's when the bytes must be fetched.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), length: u64) -> Op<u64> {
        let (source, known, length, writing) = {
            let mut state = self.begin();
            let ino = state.handles.reader(from.0)?;
            state.look(ino, self);
            let (_, size) = state.content(ino).ok_or(FsError::Stale)?;
            let token = state.tree.token(ino).ok_or(FsError::Stale)?;
            let left = size.saturating_sub(from.1);
            let length = length.min(left).min(COPY_MAX_BYTES);
            if length == 0 {
                return Ok(0);
            }
            let source = self.attached(&state, ino)?;
            let whole = length == size && to.1 == 0;
            let writing = state.begin_change(to.0, self)?;
            let known = (whole && writing.size == 0 && ino != writing.ino && state.has_its_content(ino))
                .then_some((token, state.borrowed(ino).is_some()));
            (source, known, length, writing)
        };
        let Writing { ino, file, size, uneven } = writing;
        let reserved = match (&known, holes::room(&source)) {
            // Its holes are the copy's.
            (Some(_), Some(room)) => {
                let most = counted(length, room).min(even(length));
                self.spool.reserve(most).map(|()| most)
            }
            _ => self.reserve_range(&file, size, uneven, to.1, to.1.saturating_add(length)),
        };
        let taken = *reserved.as_ref().unwrap_or(&0);
        let done = reserved.and_then(|_| {
            self.spool.disk().act(Act::Write(&file), || match known {
                Some(_) => {
                    // Of the length it had, whatever becomes of the source meanwhile.
                    if copy_content(&source, &file)? != length {
                        file.set_len(length)?;
                    }
                    Ok(length)
                }
                None => copy_range(&source, from.1, &file, to.1, length),
            })
        });
        let copied = done.as_ref().ok().copied();
        self.change(|state| {
            state.handles.end_reshaping(ino);
            self.spool.release(taken);
            match copied {
                Some(copied) => {
                    let end = size.max(to.1 + copied);
                    // A hole in the one may be a hole in the other.
                    state.reshaped(ino, |size| size.max(end), &file, self);
                    // What was borrowed and is not any more may have been written to.
                    if let Some((source, borrowed)) = known
                        && (!borrowed || state.borrowed(source.ino()).is_some())
                    {
                        state.copied(source, ino, length);
                    }
                }
                None => state.disarrayed(ino, &file, self),
            }
            Ok(())
        })?;
        Ok(done?)
    }
}

impl State {
    /// Gives a copy the hash of what it was copied from, if that is known and did not change meanwhile.
    fn copied(&mut self, source: Token, copy: Ino, length: u64) {
        let busy = |ino| self.backing.is_live(ino) || self.handles.is_changing(ino);
        let found = match (source.on_server(), self.content(source.ino())) {
            (Some(hash), _) => Some(hash),
            (None, Some((Content::Local { hash, .. }, _))) if self.tree.still(source) && !busy(source.ino()) => *hash,
            _ => None,
        };
        if busy(copy) {
            return;
        }
        if let Some((Content::Local { generation, .. }, size)) = self.content(copy)
            && size == length
        {
            let generation = *generation;
            self.tree.set_hash(copy, generation, found);
        }
    }
}
