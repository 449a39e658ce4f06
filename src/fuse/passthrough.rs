//! Telling the kernel to use local files in place of requests (`FUSE_DEV_IOC_BACKING_OPEN`, Linux 6.9).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use fuser::{BackingId, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};
use rustix::ioctl::{Setter, ioctl, opcode};

use super::{GRANTED, attr};
use crate::fs::{Lender, Stat};

/// `FUSE_DEV_IOC_BACKING_CLOSE` (`linux/fuse.h`).
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(229, 2);
/// Filesystems that lie on others (`linux/magic.h`): overlayfs, eCryptfs.
const STACKED: [u32; 2] = [0x794c_7630, 0xf15f];

/// How deep the filesystem of `dir` is stacked, itself included. No more than needed: what is as deep as the kernel
/// allows cannot be a layer of an overlay in turn.
pub(super) fn stack_depth(dir: &Path) -> u32 {
    let stacked = rustix::fs::statfs(dir).is_ok_and(|found| STACKED.contains(&(found.f_type as u32)));
    if stacked { 2 } else { 1 }
}

/// The kernel's end of a connection.
pub(super) struct Device(pub OwnedFd);

impl Lender for Device {
    fn lend(&self, file: &File) -> io::Result<u32> {
        BackingId::create_raw(&self.0, file)
    }

    fn take_back(&self, number: u32) {
        // SAFETY: the call reads a number, which is what is passed to it.
        let done = unsafe { ioctl(&self.0, Setter::<BACKING_CLOSE, u32>::new(number)) };
        // Of a connection that is over, the kernel has forgotten all.
        let _ = done.inspect_err(|error| tracing::trace!(%error, number, "not taken back"));
    }
}

pub(super) fn opened(reply: ReplyOpen, handle: u64, flags: FopenFlags, number: u32) {
    // SAFETY: the number is of this connection, and `into_raw` keeps it: whoever lent it takes it back.
    let backing = unsafe { reply.wrap_backing(number) };
    reply.opened_passthrough(FileHandle(handle), past(flags), &backing);
    backing.into_raw();
}

pub(super) fn created(reply: ReplyCreate, stat: &Stat, handle: u64, flags: FopenFlags, number: u32) {
    // SAFETY: as above.
    let backing = unsafe { reply.wrap_backing(number) };
    // What makes it longer makes the kernel ask anew.
    reply.created_passthrough(&GRANTED, &attr(stat), Generation(0), FileHandle(handle), past(flags), &backing);
    backing.into_raw();
}

/// The kernel caches nothing of what it reads past the daemon, and refuses to be told to keep it.
fn past(flags: FopenFlags) -> FopenFlags {
    flags - FopenFlags::FOPEN_KEEP_CACHE
}
