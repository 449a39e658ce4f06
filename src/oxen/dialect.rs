//! What a server speaks: found out by asking for the routes themselves, since numbers alone do not tell.

use crate::hash::HashKind;
use crate::workspace::ByHash;

/// A server's way of doing things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    /// For a person to read.
    pub name: &'static str,
    /// `workspaces/get_or_create` as the documentation has it, rather than `workspaces`.
    pub documented: bool,
    /// How content is staged without bytes.
    pub staging: Staging,
    /// A multipart filename keeps its directories (0.51 and later).
    pub nested_filenames: bool,
    /// The function that names content.
    pub hash_kind: HashKind,
}

/// Staging by hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Staging {
    /// `POST versions/uploads`, and parts (0.64 and later).
    Uploads,
    /// `POST workspaces/{id}/versions/{dir}` (0.50 to 0.53).
    Versions,
    /// `POST workspaces/{id}/files/batch/{dir}` (documented).
    FilesBatch,
    /// None (0.54 to 0.63).
    None,
}

impl Dialect {
    /// From what the probes found. `version` is only asked for what no probe can tell: whether multipart filenames
    /// keep their directories.
    pub(super) fn new(version: &str, documented: bool, uploads: bool, versions: bool, hash_kind: HashKind) -> Self {
        let staging = match (documented, uploads, versions) {
            (true, ..) => Staging::FilesBatch,
            (_, true, _) => Staging::Uploads,
            (.., true) => Staging::Versions,
            _ => Staging::None,
        };
        let nested_filenames = !documented && release(version).is_some_and(|release| release >= (0, 51));
        let name = match staging {
            Staging::FilesBatch => "documented",
            Staging::Uploads => "0.65",
            Staging::Versions => "0.50",
            Staging::None => "0.58",
        };
        Self { name, documented, staging, nested_filenames, hash_kind }
    }

    pub(super) fn by_hash(&self) -> ByHash {
        match self.staging {
            Staging::Uploads => ByHash::Single,
            Staging::Versions | Staging::FilesBatch => ByHash::Batch,
            Staging::None => ByHash::Never,
        }
    }
}

/// The first two numbers of a version.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_release_is_told_by_what_it_answers() {
        let dialect = |version, documented, uploads, versions| {
            let found = Dialect::new(version, documented, uploads, versions, HashKind::Xxh3);
            (found.name, found.by_hash(), found.nested_filenames)
        };
        assert_eq!(dialect("0.65.2", false, true, false), ("0.65", ByHash::Single, true));
        assert_eq!(dialect("0.58.0", false, false, false), ("0.58", ByHash::Never, true));
        assert_eq!(dialect("0.53.4", false, false, true), ("0.50", ByHash::Batch, true));
        assert_eq!(dialect("0.50.7", false, false, true), ("0.50", ByHash::Batch, false));
        assert_eq!(dialect("0.50.0", true, false, false), ("documented", ByHash::Batch, false));
        assert_eq!(dialect("garbage", false, false, false), ("0.58", ByHash::Never, false));
    }
}
