//! The three-way merge of one path: what both began with, what the branch has now, what is here. Decisions alone, no I/O.

use crate::hash::ContentHash;
use crate::writeback::index::Theirs;

/// What one side has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Nothing.
    Gone,
    /// A file with this content.
    File(ContentHash),
    /// A file whose content nobody has hashed, or that a program is writing: it counts as unlike any other.
    Written,
    /// A directory.
    Dir,
}

impl Side {
    /// Whether there is a file.
    pub fn is_file(self) -> bool {
        matches!(self, Self::File(_) | Self::Written)
    }

    /// What it is as far as files go: a directory is none.
    fn as_file(self) -> Self {
        if self == Self::Dir { Self::Gone } else { self }
    }
}

impl From<Theirs> for Side {
    fn from(theirs: Theirs) -> Self {
        match theirs {
            Theirs::Gone => Self::Gone,
            Theirs::File(object) => Self::File(object.hash),
            Theirs::Dir => Self::Dir,
        }
    }
}

/// What becomes of a path when the base moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Both did the same: nothing is owed for it.
    Settled,
    /// Only this side changed it.
    KeepOurs,
    /// Only the others did.
    TakeTheirs,
    /// Both did.
    Conflict,
}

/// Judges a path at which the base had `base`, the branch has `theirs`, and the tree `ours`. A path without a file of the
/// base may have been a directory then; what is below one is judged path by path.
pub(super) fn judge(base: Option<ContentHash>, theirs: Side, ours: Side) -> Verdict {
    let before = base.map_or(Side::Gone, Side::File);
    match (theirs, ours) {
        // A file on one side and a directory on the other: one of them would have to go.
        (Side::Dir, ours) if ours.is_file() && ours != before => Verdict::Conflict,
        (theirs, Side::Dir) if theirs.is_file() && theirs != before => Verdict::Conflict,
        _ if ours.as_file() == theirs.as_file() && ours != Side::Written => Verdict::Settled,
        _ if theirs.as_file() == before => Verdict::KeepOurs,
        _ if ours.as_file() == before => Verdict::TakeTheirs,
        _ => Verdict::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;
    use Verdict::{Conflict, KeepOurs, Settled, TakeTheirs};

    fn hash(text: &str) -> ContentHash {
        ContentHash::of(HashKind::Xxh3, text.as_bytes())
    }

    #[test]
    fn every_pair_of_changes_has_the_verdict_that_loses_nothing() {
        let (a, b, c) = (hash("a"), hash("b"), hash("c"));
        let [file_a, file_b, file_c] = [a, b, c].map(Side::File);
        let sides = [Side::Gone, file_a, file_b, file_c, Side::Dir];
        // By what the branch has, then by what is here: gone, a, b, c, a directory, a file of unknown content.
        let of_a_file = [
            [Settled, TakeTheirs, Conflict, Conflict, Settled, Conflict],
            [KeepOurs, Settled, KeepOurs, KeepOurs, KeepOurs, KeepOurs],
            [Conflict, TakeTheirs, Settled, Conflict, Conflict, Conflict],
            [Conflict, TakeTheirs, Conflict, Settled, Conflict, Conflict],
            [Settled, TakeTheirs, Conflict, Conflict, Settled, Conflict],
        ];
        // Of nothing, or of a directory.
        let of_none = [
            [Settled, KeepOurs, KeepOurs, KeepOurs, Settled, KeepOurs],
            [TakeTheirs, Settled, Conflict, Conflict, Conflict, Conflict],
            [TakeTheirs, Conflict, Settled, Conflict, Conflict, Conflict],
            [TakeTheirs, Conflict, Conflict, Settled, Conflict, Conflict],
            [Settled, Conflict, Conflict, Conflict, Settled, Conflict],
        ];
        for (base, expected) in [(Some(a), of_a_file), (None, of_none)] {
            for (theirs, expected) in sides.into_iter().zip(expected) {
                let ours = sides.into_iter().chain([Side::Written]);
                for (ours, expected) in ours.zip(expected) {
                    assert_eq!(judge(base, theirs, ours), expected, "of {base:?}: there {theirs:?}, here {ours:?}");
                }
            }
        }
    }

    #[test]
    fn neither_sides_bytes_go_without_a_conflict_unless_the_other_knew_them() {
        let sides = [Side::Gone, Side::File(hash("a")), Side::File(hash("b")), Side::Dir, Side::Written];
        for base in [None, Some(hash("a"))] {
            for (theirs, ours) in sides.iter().flat_map(|theirs| sides.iter().map(move |ours| (*theirs, *ours))) {
                if theirs == Side::Written {
                    continue;
                }
                let before = base.map_or(Side::Gone, Side::File);
                match judge(base, theirs, ours) {
                    TakeTheirs => assert!(ours.as_file() == before, "{ours:?} would be lost"),
                    KeepOurs => assert!(theirs.as_file() == before, "{theirs:?} would be lost"),
                    Settled => assert!(ours.as_file() == theirs.as_file()),
                    Conflict => assert!(ours != theirs),
                }
            }
        }
    }
}
