//! What tells a state directory from its copies: an id that is drawn anew where the directory is not where it was.

use std::io;
use std::os::fd::AsFd;

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

/// Where a directory is. The number of its device is no part of it: that may change from boot to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The machine's id; empty where it has none.
    pub machine: String,
    /// The filesystem's id (`f_fsid` of `statvfs(3)`).
    pub filesystem: u64,
    /// The directory's inode number.
    pub inode: u64,
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
    let inode = rustix::fs::fstat(&dir)?.st_ino;
    let filesystem = rustix::fs::fstatvfs(&dir)?.f_fsid;
    let machine = std::fs::read_to_string(MACHINE_ID).unwrap_or_default().trim().to_owned();
    Ok(Place { machine, filesystem, inode })
}
