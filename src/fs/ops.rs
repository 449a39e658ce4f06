//! The POSIX operations, and what they take and give.

mod attrs;
mod data;
mod handles;
mod moves;
mod names;

use crate::namespace::{Attrs, Ino, Timestamp};

/// What `stat` shows.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Number.
    pub ino: Ino,
    /// Modes, owners, times.
    pub attrs: Attrs,
    /// `S_IFREG` and so on.
    pub format: u32,
    /// Length in bytes.
    pub size: u64,
    /// What it takes of the disk, in bytes.
    pub room: u64,
    /// Link count.
    pub nlink: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Whether its size and times may change without a request.
    pub live: bool,
}

/// What `setattr` changes; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// What becomes of the set-id bits where the change takes such away.
    pub set_ids: SetIds,
}

/// Who changes a file with set-id bits, which decides what is left of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetIds {
    /// Somebody with `CAP_FSETID`: changing the content takes none away.
    #[default]
    Privileged,
    /// A member of the file's group: set-group-id stays where the group may not execute.
    Member,
    /// Anybody else: all go.
    Stranger,
}

impl SetIds {
    /// What is left of a mode (`setattr_should_drop_suidgid` in fs/attr.c of Linux).
    pub(in crate::fs) fn left(self, mode: u16) -> u16 {
        let set_gid = if mode & 0o010 != 0 || self == Self::Stranger { libc::S_ISGID as u16 } else { 0 };
        mode & !(libc::S_ISUID as u16 | set_gid)
    }
}

/// A time to be set.
#[derive(Debug, Clone, Copy)]
pub enum SetTime {
    /// `UTIME_NOW`: the same as of the change itself.
    Now,
    /// This.
    At(Timestamp),
}

impl SetTime {
    pub(in crate::fs) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Now => now,
            Self::At(time) => time,
        }
    }
}

/// What an open asks for.
#[derive(Debug, Clone, Copy)]
pub struct OpenFlags {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// To empty it.
    pub truncate: bool,
    /// To execute it.
    pub execute: bool,
}

/// `renameat2`'s flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// What stands at the new name goes.
    Replace,
    /// `RENAME_NOREPLACE`: nothing may stand there.
    NoReplace,
    /// `RENAME_EXCHANGE`: the two change places.
    Exchange,
}

/// One entry of a directory listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// What it stands for.
    pub stat: Stat,
    /// Where the listing goes on after it.
    pub next: u64,
}
