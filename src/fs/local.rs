//! The local disk when it fails: what is written all the same, what makes way, and what is tried again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::{Fs, FsError, State};
use crate::namespace::Ino;
use crate::store::disk::{Act, is_full};

/// Freed at a time, beyond what is wanted, for a writer that met a full disk: not once for every write.
const ROOM_BYTES: u64 = 32 << 20;
/// With less than this the disk is called full.
const FULL_BYTES: u64 = 1 << 20;
/// What ext4 keeps for itself and tells root is free: this share, and this much at most.
const KEPT_SHARE: u64 = 50;
const KEPT_BYTES: u64 = 16 << 20;

impl Fs {
    /// Writes to a spool file. Returns how many bytes are there, and why not all of them are. Where the disk is full,
    /// what the cache holds makes way.
    pub(super) fn put(&self, file: &File, data: &[u8], offset: u64) -> (usize, Option<io::Error>) {
        let mut written = 0;
        loop {
            let done = self.spool.disk().act(Act::Write(file), || {
                while written < data.len() {
                    match file.write_at(&data[written..], offset + written as u64) {
                        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                        Ok(more) => written += more,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            });
            match done {
                Err(error) if is_full(&error) && self.make_way(data.len() as u64 + ROOM_BYTES) => {}
                done => return (written, done.err()),
            }
        }
    }

    /// Removes some of what nobody needs, else of what is only a copy; whether there was any.
    fn make_way(&self, bytes: u64) -> bool {
        const AT_ONCE: usize = 1000;
        self.remove_unnamed(AT_ONCE, Duration::ZERO)
            || self.lost.make_way(bytes)
            || self.cache.make_room(bytes)
            || self.give_up_kept()
    }

    /// Has the cache make way for `bytes` that are about to be written.
    pub(super) fn make_room(&self, bytes: u64) {
        self.cache.make_room(bytes);
    }

    /// Tries again what failed on the local disk, has the cache make way where there is little room, and writes the
    /// record anew after a flush that failed. To be called now and then, where it may wait for the disk.
    ///
    /// # Errors
    /// Why it does not work yet.
    pub fn heal(&self) -> Result<(), FsError> {
        if !self.cache.has_some_free() {
            self.lost.make_way(ROOM_BYTES);
        }
        self.cache.keep_some_free();
        self.journal.ready()?;
        if self.journal.must_be_rewritten() {
            self.compact(true)?;
        }
        Ok(())
    }

    /// What is wrong with the local disk, in words for a person, if anything is.
    pub fn trouble(&self) -> Option<String> {
        const UNTIL: &str = "nothing new is accepted until it can";
        match self.journal.trouble() {
            Some(error) if !is_full(&error) => return Some(format!("cannot be written ({error}); {UNTIL}")),
            Some(_) => return Some("full; nothing is accepted until there is room".to_owned()),
            None => {}
        }
        let full = rustix::fs::statvfs(self.spool.dir()).is_ok_and(|disk| {
            let kept = (disk.f_blocks / KEPT_SHARE).saturating_mul(disk.f_frsize).min(KEPT_BYTES);
            let root = rustix::process::geteuid().is_root();
            let (free, least) = if root { (disk.f_bfree, FULL_BYTES + kept) } else { (disk.f_bavail, FULL_BYTES) };
            free.saturating_mul(disk.f_frsize) < least
        });
        if full || !self.journal.has_room() {
            let what = "full or nearly so; what is new is refused until there is room, all else goes on";
            return Some(what.to_owned());
        }
        let limit = self.spool.limit().filter(|limit| self.spool.used() >= *limit);
        limit.map(|_| "the spool has reached its limit; what is new is refused until some of it is staged".to_owned())
    }
}

impl State {
    /// A change of a spool file failed, and nobody knows how much of it was done: what the file holds now is a new
    /// generation.
    pub(super) fn disarrayed(&mut self, ino: Ino, file: &File, fs: &Fs) {
        let Some((_, size)) = self.content(ino) else { return };
        let length = file.metadata().map_or(size, |file| file.len().max(size));
        self.reshaped(ino, |_| length, file, fs);
    }
}

/// A quarter of the files that the daemon may have open: others need some as well.
pub fn quarter_of_descriptors() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.map_or(usize::MAX, |files| usize::try_from(files / 4).unwrap_or(usize::MAX))
}
