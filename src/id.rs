//! Numbers that name things here: an inode, a file in the spool, one state of a file's bytes. The tree, the record and the
//! spool all have them, and none of these need know another for it.

use serde::{Deserialize, Serialize};

/// An inode number. Never reused while a daemon lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ino(pub u64);

/// The mount's root, as FUSE wants it (`FUSE_ROOT_ID`).
pub const ROOT: Ino = Ino(1);

/// A file in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpoolId(pub u64);

/// One state of a file's bytes; grows with every change that follows a seal.
///
/// Big-endian, in as many bytes as are left in an inode: 48 bits last for nine years of a million a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation([u8; 6]);

impl Generation {
    /// Of what only the record tells: nobody has looked at the spool file since the mount, and its length is not known.
    pub const UNSEEN: Self = Self([0; 6]);

    /// The one with this number.
    pub fn nth(number: u64) -> Self {
        let [_, _, low @ ..] = number.to_be_bytes();
        Self(low)
    }
}
