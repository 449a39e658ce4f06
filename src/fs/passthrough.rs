//! Which way the kernel reaches the bytes of an open file: by requests to this daemon, or past it, straight to a file on
//! the local disk. Decisions alone, no I/O.
//!
//! The kernel has one rule: all who have an inode open at a time go the same way, and to the same file (a mixture fails
//! with EIO, tried on Linux 6.18). So the first open decides and the others follow, until the last one is closed. Whether
//! the kernel caches what goes by requests is decided in the same way: not where the first only writes.
//!
//! What goes past the daemon changes without a word to it. A file that may be changed so is **live**: its size and times
//! are looked up, it is never sealed where it lies, and it stays live after the last close as long as somebody has it
//! mapped, which the kernel does not tell either.
//!
//! A file of the cache that goes past the daemon is **borrowed**: other files of the same content share it, so it is lent
//! to one alone, and only if nobody else has it open or mapped. By the rule above a writer who comes must write to that
//! very file, which then is no copy of what the server has any more but the file's own, in the spool.

/// Why nothing goes past the daemon, or that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passthrough {
    /// Reads and writes go straight to the local disk.
    On,
    /// They do not, for a reason in words.
    Off(String),
}

impl std::fmt::Display for Passthrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::On => f.write_str("on"),
            Self::Off(why) => write!(f, "off: {why}"),
        }
    }
}

/// The way that those go who have a file open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Every read and write is a request, but for what the kernel has cached.
    Requests,
    /// To a local file.
    Past,
}

/// How the kernel is to reach the bytes of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By requests, keeping what it reads and writes.
    Cached,
    /// By requests, keeping nothing.
    Uncached,
    /// In the local file of this number.
    Past(u32),
}

impl Reach {
    /// The number of the local file, if it is one.
    pub fn past(self) -> Option<u32> {
        match self {
            Self::Past(number) => Some(number),
            Self::Cached | Self::Uncached => None,
        }
    }
}

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// In a spool file that may be changed.
    Own,
    /// In a spool file that the engine reads.
    Sealed,
    /// On the server; a copy in the cache would be worth borrowing.
    Cached,
    /// Nowhere that could be passed through to.
    Away,
}

/// An open, and what it finds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    /// Whether the kernel can go past the daemon.
    pub able: bool,
    /// How those go who have it open; `None`: nobody has.
    pub way: Option<Way>,
    /// Where its bytes are.
    pub bytes: Bytes,
    /// Whether somebody may be changing it unseen.
    pub live: bool,
    /// Whether it is opened for writing.
    pub write: bool,
    /// Whether each write takes more than bytes: set-id bits, or a capability.
    pub guarded: bool,
}

impl Opening {
    /// Which way the open goes.
    pub fn way(self) -> Way {
        match self {
            Self { way: Some(way), .. } => way,
            Self { able: false, .. } => Way::Requests,
            // What the kernel would cache of it now could be out of date at once.
            Self { live: true, bytes: Bytes::Own, .. } => Way::Past,
            Self { guarded: true, write: true, .. } => Way::Requests,
            Self { bytes: Bytes::Own, .. } => Way::Past,
            // Who begins by writing gets a copy, which is the file's own from the start.
            Self { bytes: Bytes::Cached, write: false, .. } => Way::Past,
            Self { bytes: Bytes::Sealed | Bytes::Cached | Bytes::Away, .. } => Way::Requests,
        }
    }
}

/// A file whose content is to be fixed, so that it can be hashed and sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealing {
    /// How those go who have it open; `None`: nobody has.
    pub way: Option<Way>,
    /// Whether somebody may be changing it unseen.
    pub live: bool,
    /// Whether it is open for writing.
    pub written: bool,
    /// Whether it is too large to be copied for a writer who meets it sealed.
    pub large: bool,
    /// How urgent it is.
    pub urgency: Urgency,
}

/// How urgently the content of a file is to be fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// When programs are done with it.
    None,
    /// It has been due for so long that it is looked at whoever reads it.
    Overdue,
    /// Somebody waits for its state of now.
    Barrier,
}

/// How content is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    /// It does not change as long as it is held.
    InPlace,
    /// By a copy.
    Copy,
    /// Not now.
    Later,
}

impl Sealing {
    /// How to fix the content.
    pub fn how(self) -> Seal {
        match self {
            Self { written: true, urgency: Urgency::None | Urgency::Overdue, .. } => Seal::Later,
            // Those who read it could not go on beside a writer who comes now, and may be gone soon.
            Self { way: Some(Way::Past), urgency: Urgency::None, .. } => Seal::Later,
            Self { way: Some(Way::Past), .. } | Self { live: true, .. } => Seal::Copy,
            // Its writers would have to wait for whoever reads it.
            Self { written: true, large: true, .. } => Seal::Copy,
            _ => Seal::InPlace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: Opening =
        Opening { able: true, way: None, bytes: Bytes::Own, live: false, write: false, guarded: false };
    const FLAGS: [bool; 2] = [false, true];

    #[test]
    fn the_first_open_decides_and_the_others_follow() {
        for bytes in [Bytes::Own, Bytes::Sealed, Bytes::Cached, Bytes::Away] {
            for (live, guarded) in [(false, false), (false, true), (true, false)] {
                for (way, write) in [Way::Requests, Way::Past].into_iter().flat_map(|way| FLAGS.map(|w| (way, w))) {
                    assert_eq!(Opening { way: Some(way), bytes, live, write, guarded, ..OPENING }.way(), way);
                }
            }
        }
        for write in FLAGS {
            assert_eq!(Opening { write, ..OPENING }.way(), Way::Past);
            assert_eq!(Opening { write, bytes: Bytes::Sealed, ..OPENING }.way(), Way::Requests);
            assert_eq!(Opening { write, bytes: Bytes::Away, ..OPENING }.way(), Way::Requests);
        }
        assert_eq!(Opening { guarded: true, write: true, ..OPENING }.way(), Way::Requests);
        assert_eq!(Opening { guarded: true, ..OPENING }.way(), Way::Past, "a reader takes nothing");
    }

    #[test]
    fn what_is_cached_is_borrowed_by_readers_alone_and_only_where_the_kernel_can() {
        for guarded in FLAGS {
            let cached = Opening { bytes: Bytes::Cached, guarded, ..OPENING };
            assert_eq!(cached.way(), Way::Past);
            assert_eq!(Opening { write: true, ..cached }.way(), Way::Requests);
            for write in FLAGS {
                assert_eq!(Opening { able: false, write, ..cached }.way(), Way::Requests);
            }
        }
    }

    #[test]
    fn what_may_change_unseen_is_never_cached_by_the_kernel() {
        assert_eq!(Opening { live: true, write: true, guarded: true, ..OPENING }.way(), Way::Past);
        assert_eq!(Opening { live: true, able: false, ..OPENING }.way(), Way::Requests, "there is no other way");
    }

    #[test]
    fn only_what_nobody_reaches_past_the_daemon_is_sealed_where_it_lies() {
        for live in [false, true] {
            for written in [false, true] {
                for urgency in [Urgency::None, Urgency::Overdue, Urgency::Barrier] {
                    let forced = urgency == Urgency::Barrier;
                    for (way, large) in
                        [None, Some(Way::Requests), Some(Way::Past)].into_iter().flat_map(|way| FLAGS.map(|l| (way, l)))
                    {
                        let how = Sealing { way, live, written, large, urgency }.how();
                        assert!(how != Seal::InPlace || way != Some(Way::Past) && !live);
                        assert!(!forced || how != Seal::Later, "a barrier waits for nobody");
                        assert!(forced || !written || how == Seal::Later, "a writer has its time");
                        assert!(how != Seal::InPlace || !(written && large), "a writer waits for no upload");
                    }
                }
            }
        }
    }
}
