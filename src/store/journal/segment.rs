//! One segment's file: made, given room, and cut where a crash left it torn.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::format::{Header, LEAST_ROOM_BYTES, RESERVE_BYTES, ROOM_BYTES};
use super::recover::segment_path;
use crate::store::disk::{Act, Disk};
use crate::sync;

/// How far the segment's room reaches.
pub(super) enum Room {
    /// This many bytes are allocated.
    Until(u64),
    /// The filesystem cannot tell.
    Unknown,
}

/// Makes a segment; with `room` for removals and confirmations.
pub(super) fn create_segment(disk: &Disk, dir: &Path, header: &Header, room: bool) -> io::Result<File> {
    // Complete under its name or not there at all: a header cut short would look foreign.
    let temporary = dir.join("journal.new");
    let mut open = OpenOptions::new();
    open.create(true).read(true).write(true).truncate(true).mode(0o600);
    let file = disk.act(Act::Create(&temporary), || open.open(&temporary))?;
    // One that cannot take a removal is worse than none.
    if room
        && let Err(error @ (Errno::NOSPC | Errno::DQUOT)) =
            fallocate(&file, FallocateFlags::KEEP_SIZE, 0, RESERVE_BYTES)
    {
        let _ = disk.remove(&temporary);
        return Err(error.into());
    }
    disk.write_at(&file, &header.line()?, 0)?;
    disk.flush(&file)?;
    disk.rename(&temporary, &segment_path(dir, header.segment))?;
    disk.flush_dir(dir)?;
    Ok(file)
}

/// Cuts off what a crash left behind the frames, and keeps it beside.
pub(super) fn cut_off(disk: &Disk, path: &Path, file: &File, end: u64, torn: &[u8]) -> io::Result<()> {
    tracing::warn!(path = %path.display(), bytes = torn.len(), "cutting off the journal's torn tail");
    let aside = |n: u32| {
        let mut aside = path.as_os_str().to_owned();
        aside.push(if n == 0 { ".torn".to_owned() } else { format!(".torn.{n}") });
        PathBuf::from(aside)
    };
    // For whoever wants to know; a full disk must not keep what is intact from being used. What an earlier crash left
    // stays.
    let free = (0..).map(aside).find(|aside| fs::symlink_metadata(aside).is_err());
    if let Some(Err(error)) = free.map(|aside| fs::write(aside, torn)) {
        tracing::warn!(%error, path = %path.display(), "the torn tail is not kept");
    }
    disk.resize(file, end)?;
    disk.flush(file)
}

/// Asks the filesystem for room behind `end`: as much as it has. `None` when it has none.
pub(super) fn ask_for_room(file: &File, end: u64) -> Option<Room> {
    sync::may_wait(&"fallocate");
    let mut bytes = ROOM_BYTES;
    while bytes >= LEAST_ROOM_BYTES {
        match fallocate(file, FallocateFlags::KEEP_SIZE, end, bytes) {
            Ok(()) => return Some(Room::Until(end + bytes)),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Some(Room::Unknown),
            Err(Errno::NOSPC | Errno::DQUOT) => bytes /= 2,
            Err(_) => break,
        }
    }
    None
}

/// Whether bytes that are written over others go where those were. Copy-on-write filesystems put them elsewhere each
/// time: zeros ahead would only be room that is taken twice.
pub(super) fn overwrites_in_place(file: &File) -> bool {
    const BTRFS: u32 = 0x9123_683e;
    const ZFS: u32 = 0x2fc1_2fc1;
    const BCACHEFS: u32 = 0xca45_1a4e;
    rustix::fs::fstatfs(file).is_ok_and(|found| ![BTRFS, ZFS, BCACHEFS].contains(&(found.f_type as u32)))
}
