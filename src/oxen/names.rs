//! Names that mean more to the server than to us: tables, and what stands for a moment beside the files of others.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use crate::path::RepoPath;
use crate::workspace::WorkspaceError;

/// What names of staged files begin with that only a moment's work puts there, and the hexadecimal digits that follow.
const ASIDE: &str = ".workspace-mount-aside-";
const ASIDE_DIGITS: usize = 16;

/// Extensions of files that the server treats as tables (0.65.2, read: `has_tabular_extension`).
const TABLES: [&str; 6] = ["csv", "tsv", "parquet", "arrow", "ndjson", "jsonl"];

/// Whether unstaging is not to be trusted with this path (0.65.2, tried): instead of dropping the change the server
/// puts the committed table into a database, answers 200, keeps the change staged, and at the next commit replaces
/// whatever is staged there by what the database has.
pub(super) fn is_table(path: &RepoPath) -> bool {
    let extension = Path::new(path.file_name()).extension().and_then(OsStr::to_str).map(str::to_lowercase);
    extension.is_some_and(|extension| TABLES.contains(&extension.as_str()))
}

/// The name of a file that nobody uses, for a moment in `dir`.
pub(super) fn aside(dir: &RepoPath) -> Result<RepoPath, WorkspaceError> {
    let name = format!("{ASIDE}{:0ASIDE_DIGITS$x}", fastrand::u64(..));
    let name = RepoPath::parse(&name)
        .map_err(|error| WorkspaceError::Protocol { detail: error.to_string(), request: None })?;
    Ok(dir.concat(&name))
}

/// Whether a staged file is there for a moment, by this or another client of ours.
pub(super) fn is_aside(path: &RepoPath) -> bool {
    path.file_name().strip_prefix(ASIDE).is_some_and(|digits| {
        digits.len() == ASIDE_DIGITS && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The directories above a path, from its own to the topmost; without the root, whose mark does no harm.
pub(super) fn dirs_above(path: &RepoPath) -> impl Iterator<Item = RepoPath> + use<> {
    std::iter::successors(path.parent(), RepoPath::parent).take_while(|dir| !dir.is_root())
}

/// All directories above these paths that can be unstaged by their names.
pub(super) fn marked_above(paths: &[RepoPath]) -> BTreeSet<RepoPath> {
    let mut dirs = BTreeSet::new();
    for path in paths {
        for dir in dirs_above(path) {
            // Those above a known one are known.
            if is_table(&dir) {
                continue;
            }
            if !dirs.insert(dir) {
                break;
            }
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    #[test]
    fn only_names_that_are_given_here_are_taken_for_asides() {
        for _ in 0..100 {
            assert!(is_aside(&aside(&RepoPath::root()).unwrap()));
            assert!(is_aside(&aside(&path("d/s")).unwrap()));
        }
        for other in ["x", "", ".workspace-mount-aside-", ".workspace-mount-aside-notes", "d/.workspace-mount-aside-1"]
        {
            assert!(!is_aside(&path(other)), "{other}");
        }
        assert!(!is_aside(&path(".workspace-mount-aside-0123456789ABCDEF")));
        assert!(!is_aside(&path(".workspace-mount-aside-0123456789abcdef/below")));
    }

    #[test]
    fn every_directory_above_is_named_once_but_for_the_root_and_those_named_like_tables() {
        let paths = ["x", "d/s/t/x", "d/s/y", "e/out.parquet/part/0", "d/s/t/z"].map(path);
        let dirs: Vec<String> = marked_above(&paths).iter().map(ToString::to_string).collect();
        assert_eq!(dirs, ["d", "d/s", "d/s/t", "e", "e/out.parquet/part"]);
        let many: Vec<RepoPath> = (0..100_000).map(|at| path(&format!("d/s/{at}"))).collect();
        assert_eq!(marked_above(&many).len(), 2);
    }

    #[test]
    fn tables_are_known_by_their_extension() {
        for (path, expected) in [
            ("t.csv", true),
            ("dir/t.PARQUET", true),
            ("a.b.jsonl", true),
            ("t.csv.gz", false),
            ("csv", false),
            (".csv", false),
            ("dir.csv/t", false),
            ("t.json", false),
        ] {
            assert_eq!(is_table(&RepoPath::parse(path).unwrap()), expected, "{path}");
        }
    }
}
