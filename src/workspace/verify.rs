//! Whether a commit holds what was staged, and still holds what its parent did. Pure, but for [`examine`].
//!
//! Expected is the parent with the staged set over it, and that is compared in the directories that something was staged
//! in, in those above them, and in every other one that is not the parent's. A server may lose a directory of which nothing
//! is staged: a mark is left there of a change that was taken back, by this or another client, before or after a restart
//! (0.65.2, tried). Nobody need remember where: listings name each directory by a hash of all that is in it, so from the
//! root down the listings that are read anyway tell which others differ, and a commit without a loss has none.
//!
//! The parent is the commit that the branch stood on just before, so what other clients committed meanwhile is in it, and
//! need not be told apart. Released servers make commits with this one parent, also when the workspace stood on an older
//! commit (0.65.2, tried). Of a commit with several, [`parent_of`] takes that one.

mod examine;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::examine::{Costs, examine};
use super::{CommitId, CommitInfo, Differences, EntryKind, Object};
use crate::path::RepoPath;

/// What a commit should have at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// A file with this content.
    File(Object),
    /// A file; whoever staged it knows its content.
    SomeFile,
    /// No file.
    Gone,
    /// A directory.
    Dir,
}

impl Expected {
    fn is_met_by(&self, found: Option<EntryKind>) -> bool {
        match (self, found) {
            (Self::File(object), found) => found == Some(EntryKind::File(*object)),
            (Self::SomeFile, found) => matches!(found, Some(EntryKind::File(_))),
            (Self::Gone, found) => !matches!(found, Some(EntryKind::File(_))),
            (Self::Dir, found) => found == Some(EntryKind::Dir),
        }
    }
}

/// What is staged: each changed path, and what a commit should have there.
pub type StagedSet = BTreeMap<RepoPath, Expected>;

/// A path at which a commit is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// Which path.
    pub path: RepoPath,
    /// What should be there.
    pub expected: Expected,
    /// What is there.
    pub found: Option<EntryKind>,
}

/// What the check of a commit found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What is missing or wrong, in the order of paths; empty: the commit is whole.
    pub deviations: Vec<Deviation>,
    /// Files that the commit changed and nobody here staged, and what the parent has there: another client did, in the same
    /// workspace, after the staged set was listed, or a request of ours that came late.
    pub extra: Vec<Deviation>,
}

impl Verdict {
    /// Whether nothing is missing or wrong.
    pub fn is_whole(&self) -> bool {
        self.deviations.is_empty()
    }
}

/// The directories that a commit of these changes is looked at in: those of the changed paths and all above, the root too.
pub fn touched(staged: &StagedSet) -> BTreeSet<RepoPath> {
    let mut dirs = BTreeSet::from([RepoPath::root()]);
    for path in staged.keys() {
        let mut above = path.parent();
        while let Some(dir) = above
            && dirs.insert(dir.clone())
        {
            above = dir.parent();
        }
    }
    dirs
}

/// The parent that a commit is compared with. `head` is what the branch stood on when it was last looked at before the
/// commit; another client may have moved it since, and the first parent is the branch's own line then.
pub fn parent_of<'a>(commit: &'a CommitInfo, head: &CommitId) -> Option<&'a CommitId> {
    let known = commit.parents.iter().find(|parent| *parent == head);
    known.or(commit.parents.first())
}

/// A staged set in 32 bytes: SHA-256 over its paths and what is at each.
pub fn digest(staged: &StagedSet) -> String {
    let mut digest = Sha256::new();
    for (path, expected) in staged {
        // No path holds a NUL.
        let line = match expected {
            Expected::File(object) => format!("{path}\0{} {}\0", object.hash, object.size),
            Expected::SomeFile => format!("{path}\0file\0"),
            Expected::Gone => format!("{path}\0gone\0"),
            Expected::Dir => format!("{path}\0dir\0"),
        };
        digest.update(line.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is known of a commit and its parent so far.
#[derive(Debug, Default)]
struct Known {
    differences: Differences,
    /// Directories whose entries were compared; `None`: all.
    listed: Option<BTreeSet<RepoPath>>,
    /// What the commit has at paths that are no difference.
    seen: BTreeMap<RepoPath, Option<EntryKind>>,
}

impl Known {
    fn is_listed(&self, dir: &RepoPath) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.contains(dir))
    }
}

/// A verdict as far as it can be given, and what is to be found out for the rest of it.
#[derive(Debug, Default)]
struct Judgement {
    verdict: Verdict,
    /// Directories of the parent that the commit does not have, and whose entries are not known.
    unlisted: Vec<RepoPath>,
    /// Staged paths at which the two are alike: what that is has to be looked up.
    unseen: Vec<RepoPath>,
}

/// Judges a commit by what is known of it.
fn judge(staged: &StagedSet, known: &Known) -> Judgement {
    let mut judgement = Judgement::default();
    for (path, expected) in staged {
        let found = match (known.differences.get(path), known.seen.get(path)) {
            (Some(sides), _) => sides.new,
            (None, Some(found)) => *found,
            (None, None) => {
                judgement.unseen.push(path.clone());
                continue;
            }
        };
        if !expected.is_met_by(found) {
            judgement.verdict.deviations.push(Deviation { path: path.clone(), expected: *expected, found });
        }
    }
    for (path, sides) in &known.differences {
        if sides.are_dirs() {
            continue;
        }
        let is_staged = staged.contains_key(path);
        // What a directory held that is gone is judged path by path. One that held nothing is no loss.
        if sides.old == Some(EntryKind::Dir) && !known.is_listed(path) {
            judgement.unlisted.push(path.clone());
        }
        if is_staged {
            continue;
        }
        match (sides.old, sides.new) {
            // A directory takes the place of a file that something was staged below.
            (Some(EntryKind::File(_)), Some(EntryKind::Dir)) if has_put_below(staged, path) => {}
            (Some(EntryKind::File(old)), found @ (None | Some(EntryKind::Dir))) => {
                let expected = Expected::File(old);
                judgement.verdict.deviations.push(Deviation { path: path.clone(), expected, found });
            }
            (Some(EntryKind::Dir), found @ Some(EntryKind::File(_))) => {
                let expected = Expected::Dir;
                judgement.verdict.deviations.push(Deviation { path: path.clone(), expected, found });
            }
            (Some(EntryKind::File(_)) | None, found @ Some(EntryKind::File(_))) => {
                let expected = match sides.old {
                    Some(EntryKind::File(old)) => Expected::File(old),
                    _ => Expected::Gone,
                };
                judgement.verdict.extra.push(Deviation { path: path.clone(), expected, found });
            }
            (Some(EntryKind::Dir) | None, _) => {}
        }
    }
    judgement.verdict.deviations.sort_by(|one, other| one.path.cmp(&other.path));
    judgement
}

fn has_put_below(staged: &StagedSet, path: &RepoPath) -> bool {
    let below = staged.range(path.clone()..).take_while(|(staged, _)| staged.is_in(path));
    below.into_iter().any(|(_, expected)| *expected != Expected::Gone)
}

#[cfg(test)]
mod tests;
