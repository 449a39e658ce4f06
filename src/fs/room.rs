//! Room: how much of the disk a file takes, and how much there is.
//!
//! A file of the spool mostly takes what its length says. One that may not, because it has holes or has room behind its
//! end, is *uneven*: the disk is asked each time. Of what is only on the server the length is all there is to tell.
//!
//! The spool's limit counts the length of the others, and of an uneven file what it takes of the disk: holes cost nothing,
//! and room that was allocated behind a file's end counts, or a limit would be none.
//!
//! What the spool has in use is the sum of what is counted for each file, and of what is reserved for changes under way:
//! who changes a length or what is counted keeps that up, under the lock.

use std::fs::File;
use std::io;

use super::{Fs, Op, State, Stop};
use crate::namespace::{Content, Ino};
use crate::report::SparseFile;
pub(super) use crate::store::spool::holes::even;
use crate::store::spool::holes::{self, BLOCK_BYTES};

/// How many files with large holes a status names.
const SHOWN_SPARSE: usize = 20;

/// What `statfs` shows, in blocks and files.
#[derive(Debug, Clone, Copy)]
pub struct Statfs {
    /// Block size in bytes.
    pub block_bytes: u32,
    /// Size in blocks.
    pub blocks: u64,
    /// Blocks that nothing is in.
    pub free_blocks: u64,
    /// Those of them that can still be written by anybody.
    pub available_blocks: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes that can still be made.
    pub free_files: u64,
}

impl State {
    /// What is counted for a file, in bytes.
    pub(super) fn counted(&self, ino: Ino) -> u64 {
        match self.content(ino) {
            Some((Content::Local { .. }, size)) => self.backing.counted(ino).unwrap_or(size),
            _ => 0,
        }
    }

    /// A file that was given new content takes `room` of the disk; returns what is counted for it. The caller counts it.
    pub(super) fn note_room(&mut self, ino: Ino, room: u64) -> u64 {
        match self.content(ino) {
            Some((Content::Local { .. }, size)) if even(size) != room => {
                self.backing.set_counted(ino, Some(holes::counted(size, room)));
            }
            _ => self.backing.set_counted(ino, None),
        }
        self.counted(ino)
    }

    /// A file takes `room` of the disk from now on, which counts.
    pub(super) fn set_room(&mut self, ino: Ino, room: u64, fs: &Fs) {
        let before = self.counted(ino);
        let after = self.note_room(ino, room);
        fs.spool.recount(before, after);
    }

    /// [`wrote`](Self::wrote) where holes may have been made or filled: what is counted is what `file` takes now.
    pub(super) fn reshaped(&mut self, ino: Ino, length: impl FnOnce(u64) -> u64, file: &File, fs: &Fs) {
        // Until it is known.
        let counted = self.counted(ino);
        self.backing.set_counted(ino, Some(counted));
        self.wrote(ino, length, fs);
        if let Some(room) = crate::store::spool::room(file) {
            self.set_room(ino, room, fs);
        }
    }

    /// What a file whose holes are large takes; `None` for any other.
    fn large_holes(&self, ino: Ino) -> Option<SparseFile> {
        let (bytes, allocated_bytes) = (self.content(ino)?.1, self.backing.counted(ino)?);
        if !holes::are_large(bytes, allocated_bytes) {
            return None;
        }
        let path = self.tree.paths_of(ino).find(|path| self.writeback.is_pending(path))?.to_string();
        Some(SparseFile { path, bytes, allocated_bytes })
    }

    /// Files to send whose holes are large, the largest first.
    pub(super) fn sparse_files(&self) -> Vec<SparseFile> {
        let mut found: Vec<SparseFile> = self.backing.uneven().filter_map(|ino| self.large_holes(ino)).collect();
        found.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
        found.truncate(SHOWN_SPARSE);
        found
    }

    /// Says once of a file that its holes are going to be sent.
    pub(super) fn warn_of_holes(&mut self, ino: Ino) {
        if let Some(SparseFile { path, bytes, allocated_bytes }) = self.large_holes(ino)
            && self.backing.tell_of_holes(ino)
        {
            tracing::warn!(
                path,
                bytes,
                allocated_bytes,
                "holes are sent as zeros; compact the file, or keep it elsewhere"
            );
        }
    }
}

impl Fs {
    /// Files to send that are for the most part holes, which are sent as zeros: the largest ones.
    pub fn sparse_files(&self) -> Vec<SparseFile> {
        let mut state = self.begin();
        let live: Vec<Ino> = state.backing.live().collect();
        live.into_iter().for_each(|ino| state.look(ino, self));
        state.sparse_files()
    }

    /// Reserves room for what is about to be put into a file from `begin` to `end`; returns how much. To be called under
    /// the lock, with the length that the file has.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when that passes the limit.
    pub(super) fn reserve_range(&self, file: &File, size: u64, uneven: bool, begin: u64, end: u64) -> io::Result<u64> {
        let reserve = |bytes: u64| self.spool.reserve(bytes).map(|()| bytes);
        if !uneven && begin <= size {
            return reserve(end.saturating_sub(size));
        }
        // As if all of it were a hole; near the limit it is worth a look whether it is.
        let most = even(end) - begin / BLOCK_BYTES * BLOCK_BYTES;
        match reserve(most) {
            Err(error) if self.spool.limit().is_some() => match holes::lacking(file, begin, end) {
                Ok(lacking) => reserve(lacking),
                Err(_) => Err(error),
            },
            reserved => reserved,
        }
    }

    /// What `stat` shows, as the disk has it.
    pub(super) fn stat(&self, state: &mut State, ino: Ino) -> Op<super::Stat> {
        state.need_seen(ino)?;
        state.look(ino, self);
        let mut stat = state.stat(ino)?;
        if (stat.live || state.backing.is_uneven(ino))
            && let Some((Content::Local { spool, .. }, _)) = state.content(ino)
        {
            let open = state.handles.local(ino);
            // Gone only if a power loss took it.
            stat.room =
                open.map_or_else(|| self.spool.room(*spool), |file| crate::store::spool::room(file)).unwrap_or(0);
            // The pages of a mapping may not have come here yet, and who copies takes a file of no blocks for a hole.
            if stat.room == 0 && stat.size > 0 && state.is_written_by_requests(ino) {
                stat.room = BLOCK_BYTES;
            }
        }
        Ok(stat)
    }

    /// Room in the spool: what the disk and the limit leave.
    ///
    /// # Errors
    /// The local filesystem's.
    pub fn statfs(&self) -> Op<Statfs> {
        let disk = rustix::fs::statvfs(self.spool.dir()).map_err(|error| Stop::from(std::io::Error::from(error)))?;
        let block = disk.f_frsize.max(1);
        let (mut blocks, mut free, mut available) = (disk.f_blocks, disk.f_bfree, disk.f_bavail);
        if let Some(limit) = self.spool.limit() {
            blocks = blocks.min(limit / block);
            let used = self.spool.used().saturating_sub(self.spool.spare());
            available = available.min(limit.saturating_sub(used) / block);
            // What only root could write on the disk is nobody's under a limit.
            free = available;
        }
        Ok(Statfs {
            block_bytes: u32::try_from(block).unwrap_or(4096),
            blocks,
            free_blocks: free,
            available_blocks: available,
            files: disk.f_files,
            free_files: disk.f_favail,
        })
    }
}
