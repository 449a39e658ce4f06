//! Room: how much of the disk a file takes, and how much there is.
//!
//! A file of the spool mostly takes what its length says. One that may not, because it has holes or has room behind its
//! end, is *uneven*: the disk is asked each time. Of what is only on the server the length is all there is to tell.
//!
//! The spool's limit counts lengths, holes included: filling them must not fail. Room that was allocated behind a file's
//! end counts too, or a limit would be none.

use super::{Fs, Op, State, Stop};
use crate::namespace::{Content, Ino};

/// Unit of what a filesystem gives a file. Of the usual ones none has a smaller.
pub(super) const BLOCK_BYTES: u64 = 4096;

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

/// What a file of this length takes if it has no holes, in bytes.
pub(super) fn even(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

impl State {
    /// A file may take more or less room than its length says from now on.
    pub(super) fn set_uneven(&mut self, ino: Ino) {
        self.uneven.entry(ino).or_insert(0);
    }

    /// A file that was given new content takes `bytes` of the disk.
    pub(super) fn set_room(&mut self, ino: Ino, bytes: u64) {
        match self.content(ino) {
            Some((Content::Local { .. }, size)) if even(size) != bytes => self.set_uneven(ino),
            _ => drop(self.uneven.remove(&ino)),
        }
    }

    /// How many bytes behind its end are counted for a file.
    pub(super) fn beyond(&self, ino: Ino) -> u64 {
        self.uneven.get(&ino).copied().unwrap_or(0)
    }

    /// How many bytes behind the end of a file are counted for it from now on.
    pub(super) fn set_beyond(&mut self, ino: Ino, bytes: u64) {
        if bytes > 0 || self.uneven.contains_key(&ino) {
            self.uneven.insert(ino, bytes);
        }
    }
}

impl Fs {
    /// What `stat` shows, as the disk has it.
    pub(super) fn stat(&self, state: &mut State, ino: Ino) -> Op<super::Stat> {
        state.need_seen(ino)?;
        state.look(ino, self);
        let mut stat = state.stat(ino)?;
        if (stat.live || state.uneven.contains_key(&ino))
            && let Some((Content::Local { spool, .. }, _)) = state.content(ino)
        {
            let open = state.open.get(&ino).and_then(|open| open.file.as_ref());
            // Gone only if a power loss took it.
            stat.room = open.map_or_else(|| self.spool.room(*spool), |file| crate::spool::room(file)).unwrap_or(0);
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
            available = available.min(limit.saturating_sub(self.spool.used()) / block);
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
