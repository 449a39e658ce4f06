//! Asks the server for what the check of a commit needs, in the cheaper of two ways.

use std::collections::{BTreeSet, VecDeque};

use futures_util::{StreamExt, TryStreamExt};

use super::{Known, StagedSet, Verdict, judge, touched};
use crate::path::RepoPath;
use crate::workspace::{CommitId, Differences, EntryKind, Scope, Sides, Workspace, WorkspaceError};

/// Listings of one commit asked for at once.
const LISTINGS: usize = 8;

/// What the two ways cost, in listings.
///
/// By directory, a commit costs a listing for each directory to be looked at that only it has, and two for each that its
/// parent has too. Comparing everything costs the server a walk over both trees, whatever was touched, and for each directory
/// that both have and that changed a walk over all files (read, 0.65.2): it pays for many new directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// So many listings of new directories cost what comparing everything does.
    pub everything: usize,
    /// With more changed directories than this, comparing everything is never asked for.
    pub changed_dirs: usize,
}

impl Default for Costs {
    fn default() -> Self {
        Self { everything: 400, changed_dirs: 64 }
    }
}

/// Compares `commit`, made from `staged`, with its `parent`.
///
/// # Errors
/// As the server answers: nothing is known of the commit then.
pub async fn examine(
    workspace: &dyn Workspace,
    staged: &StagedSet,
    parent: &CommitId,
    commit: &CommitId,
    costs: Costs,
) -> Result<Verdict, WorkspaceError> {
    let examination = Examination { workspace, parent, commit };
    let mut known = examination.compare_changed(staged, costs).await?;
    loop {
        let judgement = judge(staged, &known);
        if judgement.unlisted.is_empty() && judgement.unseen.is_empty() {
            return Ok(judgement.verdict);
        }
        let unlisted: Vec<RepoPath> = judgement.unlisted;
        known.differences.extend(examination.list_side(&unlisted, Side::Parent).await?);
        if let Some(listed) = &mut known.listed {
            listed.extend(unlisted);
        }
        let dirs: BTreeSet<RepoPath> = judgement.unseen.iter().filter_map(RepoPath::parent).collect();
        let dirs: Vec<RepoPath> = dirs.into_iter().collect();
        let there = examination.list_side(&dirs, Side::Commit).await?;
        for path in judgement.unseen {
            let found = there.get(&path).and_then(|sides| sides.new);
            known.seen.insert(path, found);
        }
    }
}

/// Which of the two commits is listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Parent,
    Commit,
}

struct Examination<'a> {
    workspace: &'a dyn Workspace,
    parent: &'a CommitId,
    commit: &'a CommitId,
}

/// Directories of one depth, by which of the two commits has them.
#[derive(Default)]
struct Level {
    both: Vec<RepoPath>,
    parent: Vec<RepoPath>,
    commit: Vec<RepoPath>,
}

impl Examination<'_> {
    /// From the root down: a directory that one of the two does not have costs nothing there, and neither does what is
    /// below it. Those that were not touched and differ are found by the listings above them.
    async fn compare_changed(&self, staged: &StagedSet, costs: Costs) -> Result<Known, WorkspaceError> {
        let mut levels: VecDeque<BTreeSet<RepoPath>> = VecDeque::new();
        for dir in touched(staged) {
            let depth = dir.components().count();
            if levels.len() <= depth {
                levels.resize_with(depth + 1, BTreeSet::new);
            }
            levels[depth].insert(dir);
        }
        let mut known = Known { listed: Some(BTreeSet::new()), ..Known::default() };
        let mut both: BTreeSet<RepoPath> = BTreeSet::new();
        while let Some(dirs) = levels.pop_front() {
            let left: usize = levels.iter().map(BTreeSet::len).sum();
            let level = split(dirs, &known.differences, &both);
            // What is below a new directory is new, and there is no telling of the others yet: they count as new, so that
            // a tree of new directories is not walked level by level first.
            if level.commit.len() + left >= costs.everything && both.len() + level.both.len() <= costs.changed_dirs {
                match self.workspace.compare(self.parent, self.commit, Scope::Everything).await {
                    Ok(differences) => return Ok(Known { differences, listed: None, ..known }),
                    Err(error) => tracing::debug!(%error, "the commits are compared directory by directory"),
                }
            }
            let (compared, of_parent, of_commit) = tokio::try_join!(
                self.workspace.compare(self.parent, self.commit, Scope::Directories(&level.both)),
                self.list_side(&level.parent, Side::Parent),
                self.list_side(&level.commit, Side::Commit),
            )?;
            let changed = compared.iter().filter(|(_, sides)| sides.are_dirs()).map(|(dir, _)| dir.clone());
            let changed: Vec<RepoPath> = changed.collect();
            if !changed.is_empty() {
                levels.resize_with(levels.len().max(1), BTreeSet::new);
                levels[0].extend(changed);
            }
            for differences in [compared, of_parent, of_commit] {
                known.differences.extend(differences);
            }
            if let Some(listed) = &mut known.listed {
                listed.extend(level.both.iter().chain(&level.parent).chain(&level.commit).cloned());
            }
            both.extend(level.both);
        }
        Ok(known)
    }

    /// The entries of directories that one side has, as differences from nothing.
    async fn list_side(&self, dirs: &[RepoPath], side: Side) -> Result<Differences, WorkspaceError> {
        let listings = dirs.iter().cloned().map(|dir| self.list_dir(dir, side));
        let listed: Vec<Differences> =
            futures_util::stream::iter(listings).buffer_unordered(LISTINGS).try_collect().await?;
        Ok(listed.into_iter().flatten().collect())
    }

    async fn list_dir(&self, dir: RepoPath, side: Side) -> Result<Differences, WorkspaceError> {
        let commit = if side == Side::Parent { self.parent } else { self.commit };
        let entries = self.workspace.list(commit, &dir).await?.into_iter().filter_map(|entry| {
            let name = RepoPath::parse(&entry.name).ok()?;
            let sides = match side {
                Side::Parent => Sides { old: Some(entry.kind), new: None },
                Side::Commit => Sides { old: None, new: Some(entry.kind) },
            };
            Some((dir.concat(&name), sides))
        });
        Ok(entries.collect())
    }
}

/// Which of the two commits has each of `dirs`, by what is known of the directory above it. `both` are those that both
/// have.
fn split(dirs: BTreeSet<RepoPath>, differences: &Differences, both: &BTreeSet<RepoPath>) -> Level {
    let mut level = Level::default();
    for dir in dirs {
        let is_below_both = dir.parent().is_none_or(|above| both.contains(&above));
        match differences.get(&dir) {
            Some(sides) if sides.are_dirs() => level.both.push(dir),
            Some(Sides { old: Some(EntryKind::Dir), .. }) => level.parent.push(dir),
            Some(Sides { new: Some(EntryKind::Dir), .. }) => level.commit.push(dir),
            // Not a difference: both have it, or neither does, which costs two answers of nothing.
            None if is_below_both => level.both.push(dir),
            _ => {}
        }
    }
    level
}
