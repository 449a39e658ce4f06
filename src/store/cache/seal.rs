//! The seal of a cached file: a modification time that it has as long as nobody writes to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::known::Key;
use crate::hash::ContentHash;

/// The modification time that a cached file of this content and length has as long as nobody writes to it: it follows
/// from both, so it need not be noted anywhere.
fn seal_of(hash: ContentHash, size: u64) -> (i64, u32) {
    // Over sixty years from 1972 on, before 2038: every filesystem can note them.
    const YEARS_60: u64 = 60 * 365 * 24 * 3600;
    const YEARS_2: i64 = 2 * 365 * 24 * 3600;
    let key = u128::from_be_bytes(Key::of(hash).0);
    let (high, low) = ((key >> 64) as u64 ^ size, key as u64 ^ size.rotate_left(32));
    // In whole microseconds: not every filesystem notes less.
    (YEARS_2 + (high % YEARS_60) as i64, (low % 1_000_000) as u32 * 1000)
}

pub(super) fn seal(hash: ContentHash, file: &File) -> io::Result<()> {
    let (secs, nanos) = seal_of(hash, file.metadata()?.len());
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// Whether nobody wrote to a cached file, or cut it, since it was sealed.
pub(super) fn is_sealed(hash: ContentHash, file: &File) -> bool {
    file.metadata().is_ok_and(|found| {
        let (secs, nanos) = seal_of(hash, found.len());
        // Some filesystems note seconds alone.
        found.mtime() == secs && [0, i64::from(nanos)].contains(&found.mtime_nsec())
    })
}
