//! Holes: stretches of a file that read as zeros and take no room.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{SeekFrom, seek};

/// Unit of what a filesystem gives a file. Of the usual ones none has a smaller.
pub const BLOCK_BYTES: u64 = 4096;
/// With fewer bytes of holes a file is one like any other: nobody is told of them.
const LARGE_HOLES_BYTES: u64 = 64 << 20;

/// What a file takes of the disk, in bytes.
pub fn room_of(file: &fs::Metadata) -> u64 {
    // The unit of `st_blocks` (`stat(2)`).
    file.blocks().saturating_mul(512)
}

/// What an open file takes of the disk, in bytes, if that can be told.
pub fn room(file: &File) -> Option<u64> {
    file.metadata().ok().map(|file| room_of(&file))
}

/// What a file of this length takes if it has no holes, in bytes.
pub fn even(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// What counts for a limit of a file of this length that takes `room`: the length, which is what the user sees, unless
/// it has holes or room behind its end.
pub fn counted(size: u64, room: u64) -> u64 {
    // A filesystem may keep very short ones beside their names, and say that they take nothing.
    if room == even(size) || (room < BLOCK_BYTES && size > 0 && size <= BLOCK_BYTES) { size } else { room }
}

/// The same for a complete copy, which nobody writes to.
pub fn counted_of(file: &fs::Metadata) -> u64 {
    counted(file.len(), room_of(file)).min(file.len())
}

/// Whether the holes of a file are so large that whoever sends it should know.
pub fn are_large(size: u64, room: u64) -> bool {
    let holes = size.saturating_sub(room);
    holes >= LARGE_HOLES_BYTES && holes > size / 2
}

/// Whether a file of this length has holes, as far as its room tells: prealloced room behind its end may hide some.
pub fn may_have(file: &fs::Metadata) -> bool {
    room_of(file) < even(file.len())
}

/// The next stretch with data from `at` on; `None` when the rest is a hole.
pub fn next_data(file: &File, at: u64, size: u64) -> Option<(u64, u64)> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => {
            let hole = seek(file, SeekFrom::Hole(data)).unwrap_or(size);
            Some((data, hole.max(data + 1)))
        }
        Err(rustix::io::Errno::NXIO) => None,
        // A filesystem that cannot tell.
        Err(_) => Some((at, size)),
    }
}

/// How many bytes writing from `begin` to `end` makes the file take more, at most.
///
/// # Errors
/// The filesystem's.
pub fn lacking(file: &File, begin: u64, end: u64) -> io::Result<u64> {
    let (begin, end) = (begin / BLOCK_BYTES * BLOCK_BYTES, even(end));
    let allocated = match allocated(file, begin, end) {
        Ok(allocated) => allocated,
        // Room that was allocated and not written to counts as none then.
        Err(_) => with_data(file, begin, end)?,
    };
    Ok((end - begin).saturating_sub(allocated))
}

fn with_data(file: &File, begin: u64, end: u64) -> io::Result<u64> {
    let size = even(file.metadata()?.len()).min(end);
    let (mut at, mut data) = (begin, 0);
    while at < size {
        let Some((from, to)) = next_data(file, at, size) else { break };
        let (from, to) = (from.min(size), even(to).min(size));
        data += to.saturating_sub(from / BLOCK_BYTES * BLOCK_BYTES);
        at = to.max(at + 1);
    }
    Ok(data)
}

/// `struct fiemap` of `linux/fiemap.h`, with room for some extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

const EXTENTS: usize = 32;
/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`.
const FIEMAP: libc::c_ulong = 0xc020_660b;
const EXTENT_LAST: u32 = 1;

/// How much of a range a file has room for, written to or not.
fn allocated(file: &File, begin: u64, end: u64) -> io::Result<u64> {
    let (mut at, mut allocated) = (begin, 0);
    while at < end {
        let mut map = Fiemap {
            start: at,
            length: end - at,
            flags: 0,
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the kernel writes as many extents as `count` says there is room for.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP as _, &raw mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let found = &map.extents[..(map.mapped as usize).min(EXTENTS)];
        for extent in found {
            let to = extent.logical.saturating_add(extent.length);
            allocated += to.min(end).saturating_sub(extent.logical.max(at));
            at = at.max(to);
        }
        if found.last().is_none_or(|last| last.flags & EXTENT_LAST != 0) {
            break;
        }
    }
    Ok(allocated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, fallocate};
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_a_write_takes_more_is_what_has_no_room_yet() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&[1; 8192], 4096).unwrap();
        file.write_all_at(&[1; 10], 1 << 20).unwrap();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 1 << 30, 1 << 20).unwrap();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 2 << 20, 8192).unwrap();
        for (begin, end, most) in [
            (0, 1, 4096),
            (4096, 12288, 0),
            (5000, 5001, 0),
            (4000, 12289, 8192),
            (1 << 20, (1 << 20) + 4096, 0),
            (0, 2 << 20, (2 << 20) - 3 * 4096),
            (2 << 20, (2 << 20) + 8192, 0),
            (1 << 30, (1 << 30) + (1 << 20), 0),
            (1 << 30, (1 << 30) + (1 << 20) + 1, 4096),
            (5 << 30, (5 << 30) + 8192, 8192),
        ] {
            assert_eq!(lacking(&file, begin, end).unwrap(), most, "{begin}..{end}");
            // A filesystem without extents takes what was never written to for a hole.
            let data = with_data(&file, begin / 4096 * 4096, even(end)).unwrap();
            assert!(data <= even(end) - begin / 4096 * 4096 - most, "{begin}..{end}");
        }
        assert_eq!(with_data(&file, 0, 2 << 20).unwrap(), 3 * 4096);
    }

    #[test]
    fn a_file_counts_as_long_as_it_is_unless_it_has_holes_or_more_room() {
        for (size, room, is) in [
            (0, 0, 0),
            (1, 4096, 1),
            (60, 0, 60),
            (4097, 8192, 4097),
            (4097, 4096, 4096),
            (1 << 31, 28672, 28672),
            (0, 1 << 20, 1 << 20),
            (100, 1 << 20, 1 << 20),
        ] {
            assert_eq!(counted(size, room), is, "{size} {room}");
        }
    }

    #[test]
    fn holes_are_worth_a_word_above_64_mib_and_half_of_the_file() {
        const MIB: u64 = 1 << 20;
        for (size, room, large) in [
            (2048 * MIB, 28672, true),
            (64 * MIB, 0, true),
            (64 * MIB, 4096, false),
            (1024 * MIB, 600 * MIB, false),
            (1024 * MIB, 500 * MIB, true),
        ] {
            assert_eq!(are_large(size, room), large, "{size} {room}");
        }
    }
}
