//! Where the mount and a local filesystem differ, each with the reason. What is not here has to be equal.

use super::op::{Op, Step};
use super::world::Outcome;

/// What the mount does or does not do as a whole. Switched on here when it does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Names that are no UTF-8 or have a backslash.
    AnyName,
    /// `fallocate` with its modes.
    Fallocate,
    /// `copy_file_range`.
    CopyRange,
    /// `SEEK_HOLE`, `SEEK_DATA`.
    SeekHole,
    /// `user.*` and `trusted.*`.
    Xattrs,
    /// Who may keep set-user-id and set-group-id bits over a write, a truncation, a change of owner.
    SetIds,
    /// `O_TMPFILE`.
    Tmpfile,
}

/// Whether the mount has it.
pub fn has(capability: Capability) -> bool {
    match capability {
        Capability::AnyName
        | Capability::Fallocate
        | Capability::CopyRange
        | Capability::SeekHole
        | Capability::Xattrs
        | Capability::SetIds => true,
        // fuser 0.18 has no O_TMPFILE: the kernel answers EOPNOTSUPP by itself.
        Capability::Tmpfile => false,
    }
}

/// A difference in an operation's answer that is as it should be.
pub struct Divergence {
    pub name: &'static str,
    /// Why it is right, or cannot be otherwise.
    pub why: &'static str,
    /// Whether this is it; what the plain directory answered, and the mount.
    pub is: fn(&Step, &Outcome, &Outcome) -> bool,
}

/// In answers. In attributes, [`compare`](super::compare) leaves out, everywhere:
///
/// - `st_dev`, inode numbers as such (that equal numbers mean the same file is compared), `st_blksize`;
/// - the size of directories: a local filesystem tells its own blocks, the mount 0;
/// - the access time, but for that which `utimensat` just set: the kernel keeps no access times for FUSE (`noatime`);
/// - modification and change time of what was written through a mapping: the kernel tells a FUSE filesystem of such
///   writes when it writes the pages back, not at the first touch; nor how much of the disk it takes;
/// - holes: once the server has a file, its length is all there is to tell of the room that it takes; and a copy of a
///   hole is one here, where many a local filesystem makes it zeros; and room that was allocated and not written to is not
///   kept once the file is staged;
/// - these two times of a FIFO that was written to: the kernel tells a FUSE filesystem nothing of what goes through one;
/// - by how much two clocks read one after the other differ.
///
/// What is never asked of either: seeking in directories to other offsets than they gave, which mean nothing; seeking
/// beyond what a local filesystem can hold, where each has a limit of its own (the kernel gives every FUSE filesystem the largest there is; writing and truncating there is asked, and refused by
/// both); mapped writes behind the end of the file, which nobody promises anything of; a change of owner to nobody else
/// (`chown(-1, -1)`), which takes the set-id bits of a local file and of which the kernel tells a FUSE filesystem
/// nothing but that something changed; a lock (`flock(2)`) of a closed descriptor that only a mapping keeps: with
/// passthrough the kernel maps the local file in place of the open one (`backing_file_mmap`), which ends with its
/// descriptor, and the lock with it.
pub const DIVERGENCES: &[Divergence] = &[Divergence {
    name: "data where a local file has a hole to its end",
    why: "A hole may be told as data (lseek(2)), and is once the server has the file, which knows no holes.",
    is: |step, plain, mount| {
        matches!(step.op, Op::Seek { whence: libc::SEEK_DATA, .. })
            && plain.result == Err(libc::ENXIO)
            && mount.result.is_ok()
    },
}];

/// The divergence that this is.
pub fn explained(step: &Step, plain: &Outcome, mount: &Outcome) -> Option<&'static Divergence> {
    DIVERGENCES.iter().find(|divergence| (divergence.is)(step, plain, mount))
}
