//! What a server can do, found out by asking.
//!
//! A version number alone does not tell: gateways answer for others, and the documented API was never released under
//! a number. So routes are asked with requests that change nothing, and the number decides only what no request can
//! tell without an effect.

use crate::workspace::ByHash;

/// How to stage content that the server holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HashRoute {
    /// `POST versions/uploads`, one file a request.
    Uploads,
    /// `POST workspaces/{id}/versions/{dir}`, many.
    WorkspaceVersions,
    /// `POST workspaces/{id}/files/batch/{dir}`, many.
    FilesBatch,
    /// Not at all.
    None,
}

impl HashRoute {
    /// As the rest of the program knows it.
    pub(super) fn by_hash(self) -> ByHash {
        match self {
            Self::Uploads => ByHash::Single,
            Self::WorkspaceVersions | Self::FilesBatch => ByHash::Batch,
            Self::None => ByHash::Never,
        }
    }
}

/// What a multipart add makes of a part's filename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartNames {
    /// A path below the request's directory.
    Relative,
    /// Its last component: one directory a request.
    Last,
}

/// How a large file travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LargeRoute {
    /// Begun, then in parts that the server hashes as they come.
    Parts,
    /// In chunks of a fixed size, assembled by a last request.
    Chunks,
    /// In one multipart request.
    Multipart,
}

/// The ways of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    /// The first release that spoke it, or `documented`.
    pub name: &'static str,
    /// Staging without bytes.
    pub hash_route: HashRoute,
    /// Multipart filenames.
    pub part_names: PartNames,
    /// Large files.
    pub large: LargeRoute,
    /// Whether the server's own check before a commit finds every conflict.
    pub finds_conflicts: bool,
}

/// Which routes answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Routes {
    /// `POST versions/uploads`.
    pub uploads: bool,
    /// `POST workspaces/{id}/versions/{dir}`.
    pub workspace_versions: bool,
    /// `POST workspaces/{id}/files/batch/{dir}`.
    pub files_batch: bool,
    /// `POST versions/{hash}/create`.
    pub chunks: bool,
}

impl Dialect {
    /// The dialect of a server with these routes that calls itself `version`.
    pub(super) fn of(routes: Routes, version: &str) -> Self {
        let at_least = |minor| release(version).is_some_and(|release| release >= (0, minor));
        let hash_route = match routes {
            Routes { uploads: true, .. } => HashRoute::Uploads,
            Routes { workspace_versions: true, .. } => HashRoute::WorkspaceVersions,
            Routes { files_batch: true, .. } => HashRoute::FilesBatch,
            _ => HashRoute::None,
        };
        let large = match routes {
            Routes { uploads: true, .. } => LargeRoute::Parts,
            Routes { chunks: true, .. } => LargeRoute::Chunks,
            _ => LargeRoute::Multipart,
        };
        // One directory a request is right everywhere, only slower.
        let relative = match hash_route {
            HashRoute::Uploads => true,
            HashRoute::WorkspaceVersions | HashRoute::None => at_least(51),
            HashRoute::FilesBatch => false,
        };
        let name = match hash_route {
            HashRoute::Uploads => "0.64",
            HashRoute::WorkspaceVersions if relative => "0.51",
            HashRoute::WorkspaceVersions => "0.50",
            HashRoute::FilesBatch => "documented",
            HashRoute::None if large == LargeRoute::Chunks => "0.54",
            HashRoute::None => "plain",
        };
        Self {
            name,
            hash_route,
            part_names: if relative { PartNames::Relative } else { PartNames::Last },
            large,
            // 0.65.2, tried; 0.54 misses two kinds, read.
            finds_conflicts: hash_route == HashRoute::Uploads,
        }
    }
}

/// The first two numbers of a version such as `0.65.2`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Routes = Routes { uploads: false, workspace_versions: false, files_batch: false, chunks: false };

    #[test]
    fn every_server_of_the_contract_has_its_dialect() {
        let (relative, last) = (PartNames::Relative, PartNames::Last);
        let table = [
            ("0.65.2", Routes { uploads: true, ..NONE }, "0.64", HashRoute::Uploads, relative, LargeRoute::Parts),
            ("0.58.0", Routes { chunks: true, ..NONE }, "0.54", HashRoute::None, relative, LargeRoute::Chunks),
            (
                "0.53.4",
                Routes { workspace_versions: true, chunks: true, ..NONE },
                "0.51",
                HashRoute::WorkspaceVersions,
                relative,
                LargeRoute::Chunks,
            ),
            (
                "0.50.7",
                Routes { workspace_versions: true, chunks: true, ..NONE },
                "0.50",
                HashRoute::WorkspaceVersions,
                last,
                LargeRoute::Chunks,
            ),
            (
                "0.50.0",
                Routes { files_batch: true, ..NONE },
                "documented",
                HashRoute::FilesBatch,
                last,
                LargeRoute::Multipart,
            ),
            ("", NONE, "plain", HashRoute::None, last, LargeRoute::Multipart),
        ];
        for (version, routes, name, hash_route, part_names, large) in table {
            let dialect = Dialect::of(routes, version);
            assert_eq!(
                (dialect.name, dialect.hash_route, dialect.part_names, dialect.large),
                (name, hash_route, part_names, large),
                "{version}"
            );
        }
    }

    #[test]
    fn routes_count_more_than_the_number() {
        let dialect = Dialect::of(Routes { files_batch: true, ..NONE }, "0.65.2");
        assert_eq!((dialect.name, dialect.part_names), ("documented", PartNames::Last));
        let dialect = Dialect::of(Routes { uploads: true, ..NONE }, "unheard of");
        assert_eq!((dialect.name, dialect.part_names), ("0.64", PartNames::Relative));
    }

    #[test]
    fn versions_are_read_leniently() {
        assert_eq!(release("0.65.2"), Some((0, 65)));
        assert_eq!(release("v1.2-rc1"), Some((1, 2)));
        assert_eq!(release("0"), None);
        assert_eq!(release("main"), None);
    }
}
