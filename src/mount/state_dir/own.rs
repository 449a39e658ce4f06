//! What tells a state directory from its copies: an id that is drawn anew where the directory is not where it was.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};

/// What a machine is called, by its operating system (`machine-id(5)`).
const MACHINE_ID: &str = "/etc/machine-id";

/// One state directory, in its `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Eight hexadecimal digits, drawn at random.
    pub id: String,
    /// Where it was when they were drawn.
    #[serde(flatten)]
    pub place: Place,
}

/// Where a directory is. Neither its device's number nor its filesystem's id is part of it: both may change from boot to
/// boot (`xfs_fs_statfs` in fs/xfs/xfs_super.c of Linux makes the one of the other).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The machine's id; empty where it has none.
    pub machine: String,
    /// The directory's inode number.
    pub inode: u64,
    /// When the directory was made, in nanoseconds since the epoch (`statx(2)`): a copy is younger; 0 where the filesystem
    /// does not tell.
    pub born: u64,
}

impl Own {
    /// A new one.
    pub(super) fn new(place: Place) -> Self {
        Self { id: format!("{:08x}", fastrand::u32(..)), place }
    }

    /// The name of its workspace: `stem` is what all of a user's are called.
    pub(super) fn workspace(&self, stem: &str) -> String {
        format!("{stem}-{}", self.id)
    }
}

/// Where an open directory is.
pub(super) fn here(dir: impl AsFd) -> io::Result<Place> {
    let found = rustix::fs::statx(&dir, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME)?;
    let secs = u64::try_from(found.stx_btime.tv_sec).unwrap_or(0);
    let born = match found.stx_mask & StatxFlags::BTIME.bits() {
        0 => 0,
        _ => secs.saturating_mul(1_000_000_000).saturating_add(found.stx_btime.tv_nsec.into()),
    };
    let machine = std::fs::read_to_string(MACHINE_ID).unwrap_or_default().trim().to_owned();
    Ok(Place { machine, inode: found.stx_ino, born })
}
