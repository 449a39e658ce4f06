//! Marks of directories, and what a commit makes of them.
//!
//! Staging a path marks every directory above it, and taking the path back leaves the marks. A commit works through the
//! directories in which something is staged, be it a mark; it takes the others that are marked for new, finds nothing in
//! them, and leaves them out of the new tree with all that the branch has there (0.65.2, tried; why: read,
//! `read_entries_below_path`, `export_tabular_data_frames` and `r_create_dir_node`).

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::super::Dialect;
use super::super::tree::{Change, Node};
use super::{Base, Mark, Staged, Staging};
use crate::path::RepoPath;

impl Staging {
    /// Marked directories in which nothing is staged, not even another mark.
    pub(in super::super) fn left_dirs(&self) -> Vec<RepoPath> {
        let holding = self.holding(|_| true);
        self.dirs.keys().filter(|dir| !holding.contains(*dir)).cloned().collect()
    }

    /// What a commit changes in the tree of `head`; `None` when there is nothing to commit.
    pub(in super::super) fn changes(
        &self,
        dialect: Dialect,
        head: &Base<'_>,
    ) -> io::Result<Option<BTreeMap<RepoPath, Change>>> {
        let is_committed = |path: &RepoPath| !self.is_back_at_base(path);
        let mut holding = self.holding(is_committed);
        if holding.is_empty() {
            return Ok(None);
        }
        let completes = completes_marks(dialect);
        if completes {
            let above: Vec<RepoPath> = holding.iter().flat_map(above).collect();
            holding.extend(above);
        }
        let mut changes = BTreeMap::new();
        if !holding.contains(&RepoPath::root()) {
            // Such a server finds nothing to write for the root, and writes nothing.
            for (name, node) in head.trees.load(&head.root.id)?.iter() {
                let change = if matches!(node, Node::Dir(_)) { Change::RemoveDir } else { Change::Remove };
                changes.insert(RepoPath::parse(name).map_err(io::Error::other)?, change);
            }
            return Ok(Some(changes));
        }
        for (dir, mark) in &self.dirs {
            if *mark == Mark::Removed || !holding.contains(dir) {
                changes.insert(dir.clone(), Change::RemoveDir);
            }
        }
        for (path, staged) in self.files.iter().filter(|(path, _)| is_committed(path)) {
            if completes || self.is_reached(path, &holding, head)? {
                changes.insert(path.clone(), staged.content().map_or(Change::Remove, Change::Put));
            }
        }
        Ok(Some(changes))
    }

    /// The directories that something is staged directly in: files that are wanted, and marks.
    fn holding(&self, wanted: impl Fn(&RepoPath) -> bool) -> HashSet<RepoPath> {
        let files = self.files.keys().filter(|path| wanted(path));
        files.chain(self.dirs.keys()).filter_map(RepoPath::parent).collect()
    }

    /// Whether a server that works its way down from the root comes to the path.
    fn is_reached(&self, path: &RepoPath, holding: &HashSet<RepoPath>, head: &Base<'_>) -> io::Result<bool> {
        for dir in above(path).filter(|dir| !dir.is_root()) {
            let is_known = self.dirs.contains_key(&dir) || matches!(head.find(&dir)?, Some(Node::Dir(_)));
            if !is_known || !holding.contains(&dir) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the staged table was unstaged, which put the base's into a database: a commit finds that it has changed
    /// nothing, and leaves it out (0.65.2, tried).
    fn is_back_at_base(&self, path: &RepoPath) -> bool {
        self.indexed.contains(path) && matches!(self.files.get(path), Some(Staged::Modified(_)))
    }
}

/// Whether a commit finds what is staged below a directory whose mark was taken away (0.65.2, tried: `with_parent_dirs`;
/// 0.53.4 and 0.58.0, read: they do not).
fn completes_marks(dialect: Dialect) -> bool {
    matches!(dialect, Dialect::V0_65 | Dialect::Documented)
}

/// The directories above a path, the root too.
fn above(path: &RepoPath) -> impl Iterator<Item = RepoPath> + use<> {
    std::iter::successors(path.parent(), RepoPath::parent)
}

/// Whether the server, asked to unstage a committed table of this name, puts the base's content in place of what is
/// staged there. It reads tables of other kinds as well, and what is staged stands (0.65.2, tried).
pub(in super::super) fn goes_back_to_base(path: &RepoPath) -> bool {
    path.file_name()
        .rsplit_once('.')
        .is_some_and(|(_, extension)| ["csv", "tsv"].iter().any(|table| extension.eq_ignore_ascii_case(table)))
}
