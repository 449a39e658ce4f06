//! Which way content travels: pure, by size and by what the server can do.

use crate::workspace::ByHash;

/// From this size on a question comes before the bytes, where a question stages one file. Below it a file in a
/// batch of a hundred costs the server less than a question (measured on 0.65.2: 1,290 to 1,370 files/s of 16 KiB
/// sent in batches, 1,646 questions/s), and at 64 KiB an answer saves more than it costs on any slower link.
const ASK_FROM_BYTES: u64 = 64 << 10;
/// From this size on a file goes in parts: the part size of every released server, 10 MiB.
const PARTS_FROM_BYTES: u64 = 10 << 20;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// By hash, without bytes.
    Ask,
    /// With others in one request.
    Small,
    /// Alone, asking first, in one part.
    Middle,
    /// Alone, asking first, in many parts.
    Large,
}

/// The lane of content of `size` bytes, which are `here` or only on the server, and which the server may have been
/// `asked` for in vain.
pub(super) fn lane(by_hash: ByHash, size: u64, here: bool, asked: bool) -> Lane {
    if !here {
        return Lane::Ask;
    }
    match by_hash {
        ByHash::Single if size >= PARTS_FROM_BYTES => Lane::Large,
        ByHash::Single if size >= ASK_FROM_BYTES => Lane::Middle,
        ByHash::Batch if !asked && size > 0 => Lane::Ask,
        _ if size >= PARTS_FROM_BYTES => Lane::Large,
        _ => Lane::Small,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stages_one_by_hash_is_asked_for_what_is_worth_it() {
        assert_eq!(lane(ByHash::Single, 0, true, false), Lane::Small);
        assert_eq!(lane(ByHash::Single, ASK_FROM_BYTES - 1, true, false), Lane::Small);
        assert_eq!(lane(ByHash::Single, ASK_FROM_BYTES, true, false), Lane::Middle);
        assert_eq!(lane(ByHash::Single, PARTS_FROM_BYTES, true, false), Lane::Large);
    }

    #[test]
    fn a_server_that_stages_many_by_hash_is_always_asked_once() {
        assert_eq!(lane(ByHash::Batch, 1, true, false), Lane::Ask);
        assert_eq!(lane(ByHash::Batch, 1, true, true), Lane::Small);
        assert_eq!(lane(ByHash::Batch, PARTS_FROM_BYTES, true, true), Lane::Large);
    }

    #[test]
    fn what_is_only_on_the_server_is_asked_for_and_nothing_else() {
        for by_hash in [ByHash::Single, ByHash::Batch, ByHash::Never] {
            assert_eq!(lane(by_hash, 5, false, false), Lane::Ask);
        }
        assert_eq!(lane(ByHash::Never, 5, true, false), Lane::Small);
    }
}
