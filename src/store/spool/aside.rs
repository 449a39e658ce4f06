//! Content for which the disk has no room: it is kept in memory for as long as it is read, and a little of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::MemfdFlags;

use crate::hash::ContentHash;

/// The longest content that is kept in memory, and most of all together, but for what programs have open.
pub const MOST_BYTES: u64 = 64 << 20;

/// Files in memory, the one that was wanted last at the end.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<VecDeque<(ContentHash, Arc<File>, u64)>>);

impl Aside {
    /// A file in memory, gone with its last user.
    ///
    /// # Errors
    /// The system's; there may be too many open files.
    pub fn make() -> io::Result<File> {
        Ok(File::from(rustix::fs::memfd_create("oxenfs", MemfdFlags::CLOEXEC)?))
    }

    /// Keeps a file of this content, in place of those that were wanted longest ago.
    pub fn keep(&self, hash: ContentHash, file: Arc<File>, bytes: u64) {
        let mut files = self.lock();
        files.retain(|(other, ..)| *other != hash);
        files.push_back((hash, file, bytes));
        while files.iter().map(|(.., bytes)| bytes).sum::<u64>() > MOST_BYTES && files.len() > 1 {
            files.pop_front();
        }
    }

    /// The content, if it is here.
    pub fn find(&self, hash: ContentHash) -> Option<File> {
        let mut files = self.lock();
        let at = files.iter().position(|(other, ..)| *other == hash)?;
        let wanted = files.remove(at)?;
        let file = wanted.1.try_clone().ok();
        files.push_back(wanted);
        file
    }

    /// Whether it is.
    pub fn has(&self, hash: ContentHash) -> bool {
        self.lock().iter().any(|(other, ..)| *other == hash)
    }

    /// Has no use of it any more.
    pub fn drop(&self, hash: ContentHash) {
        self.lock().retain(|(other, ..)| *other != hash);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(ContentHash, Arc<File>, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;

    #[test]
    fn what_was_wanted_last_is_kept_within_bounds() {
        let aside = Aside::default();
        let hash = |number: u8| ContentHash::of(HashKind::Xxh3, &[number]);
        let keep = |number, bytes| aside.keep(hash(number), Arc::new(Aside::make().unwrap()), bytes);
        keep(1, MOST_BYTES / 2);
        keep(2, MOST_BYTES / 4);
        assert!(aside.find(hash(1)).is_some());
        keep(3, MOST_BYTES / 2);
        assert!(aside.has(hash(1)) && !aside.has(hash(2)) && aside.has(hash(3)));
        // One that is too long is there for who wants it now.
        keep(4, 2 * MOST_BYTES);
        assert!(!aside.has(hash(1)) && !aside.has(hash(3)) && aside.find(hash(4)).is_some());
        aside.drop(hash(4));
        assert!(aside.find(hash(4)).is_none());
    }
}
