//! What is done behind everybody: spool files that nobody needs go, and confirmed ones come into the cache.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use super::{Fs, FsError};
use crate::namespace::SpoolId;
use crate::store::spool::Spool;
use crate::sync::MutexGuard;

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

impl Fs {
    /// Flushes the record, and then moves to the cache the spool files that it no longer names, and removes a share of
    /// those that nobody needs. To be called about once a second, where it may wait for the disk.
    ///
    /// # Errors
    /// When the record cannot be flushed; what was to be done is done the next time, or at the next mount.
    pub fn tidy(&self) -> Result<(), FsError> {
        self.journal.note_written();
        self.settle_spool()?;
        self.forget_salvaged()?;
        let waiting = self.unnamed().len();
        let (most, pause) = match self.cache.has_some_free() {
            true => (LEAST_REMOVED.max(waiting / REMOVED_WITHIN), REMOVAL_PAUSE),
            false => (usize::MAX, Duration::ZERO),
        };
        self.put_strays_aside(most, Duration::ZERO);
        self.expire_strays();
        self.remove_unnamed(most, pause);
        Ok(())
    }

    /// The same, and all are removed: nobody is kept waiting any more.
    ///
    /// # Errors
    /// As [`tidy`](Self::tidy).
    pub fn tidy_all(&self) -> Result<(), FsError> {
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
    pub(super) fn remove_unnamed(&self, most: usize, pause: Duration) -> bool {
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
}
