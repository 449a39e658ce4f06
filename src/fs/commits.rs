//! What a commit takes and leaves: what goes in its way before it, and what is owed after it.

use std::sync::Arc;
use std::time::Duration;

use super::staging::into_plain;
use super::{Fs, FsError, Options, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Resolved};
use crate::path::RepoPath;
use crate::store::journal::Change;
use crate::workspace::verify::{Deviation, Expected};
use crate::workspace::{CommitId, EntryKind, Revision, Source};
use crate::writeback::Capture;
use crate::writeback::index::{Account, Staged};
use crate::writeback::queue::{Parked, Pending};

impl Fs {
    /// Staged files that stand where the base has a directory: no server commits such a change as one (0.65.2, tried in
    /// every order: the commit then has an empty directory).
    pub fn files_over_directories(&self) -> Vec<RepoPath> {
        let state = self.lock();
        let over = |path: &RepoPath| state.writeback.ledger().based_below(path).any(|below| below != path);
        let staged = state.writeback.ledger().iter().filter(|(_, account)| matches!(account.staged, Staged::Put(_)));
        staged.map(|(path, _)| path).filter(|path| over(path)).cloned().collect()
    }

    /// What waits for a commit, if nothing else of the cut, or of all that is owed where there is none, is left.
    pub fn waits_for_commit_alone(&self) -> Option<Vec<RepoPath>> {
        let state = self.lock();
        let left: Vec<&RepoPath> = match state.made_cut() {
            Some(made) => made.paths().collect(),
            None => {
                state.writeback.queue().iter().filter(|(_, entry)| entry.is_parked()).map(|(path, _)| path).collect()
            }
        };
        let waits = |path: &&RepoPath| state.writeback.pending(path).and_then(Pending::parked) == Some(Parked::Commit);
        left.iter().all(waits).then(|| left.into_iter().cloned().collect())
    }

    /// Nothing of these paths is staged by the commit that is under way: they wait for the next cut.
    pub fn set_aside(&self, paths: &[RepoPath]) {
        let mut state = self.begin();
        let left: Vec<Capture> = paths.iter().filter_map(|path| state.leave_out_of_cut(path)).collect();
        drop(state);
        // Letting go of captures takes the lock.
        drop(left);
    }

    /// The server has these files staged as removed, so that their content can be staged when that is committed.
    ///
    /// # Errors
    /// When the journal cannot be written: do not commit.
    pub fn made_way(&self, paths: &[RepoPath]) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            for path in paths {
                let account = state.writeback.account(path).unwrap_or_default();
                let account = Account { staged: Staged::Removed, ..account };
                state.apply(Change::Account { path: path.clone(), account: Some(account) });
            }
            Ok(())
        }))
    }

    /// These files are staged no more, and owed again.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn unstaged(&self, paths: &[RepoPath]) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            for path in paths {
                let account = state.writeback.account(path).unwrap_or_default();
                let account = Account { staged: Staged::Nothing, ..account };
                state.apply(Change::Account { path: path.clone(), account: Some(account) });
                state.writeback.owe(path, Duration::ZERO);
            }
            Ok(())
        }))
    }

    /// What is staged and not committed.
    pub fn staged_paths(&self) -> Vec<RepoPath> {
        let state = self.lock();
        let staged = state.writeback.ledger().iter().filter(|(_, account)| account.staged != Staged::Nothing);
        staged.map(|(path, _)| path.clone()).collect()
    }

    /// The staged changes have become `commit`; `alone`: it holds nothing else over the old base. On stable storage
    /// when this returns.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn rebased(&self, commit: CommitId, alone: bool) -> Result<(), FsError> {
        self.rebased_but(commit, alone, &CommitId("".into()), &[]).await.map(drop)
    }

    /// The same, but for what deviates in the commit from what was staged over `parent`: that is owed, as far as the tree
    /// still wants it. Returns how many paths are.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn rebased_but(
        &self,
        commit: CommitId,
        alone: bool,
        parent: &CommitId,
        deviations: &[Deviation],
    ) -> Result<usize, FsError> {
        let owed = into_plain(self.change(|state| {
            state.apply(Change::Rebase { commit, alone });
            if state.writeback.intent().is_some() {
                state.apply(Change::Intent { intent: None });
            }
            let owed = state.owe_deviations(parent, deviations, &self.options);
            state.record_hidden();
            state.record_pending_accounts();
            Ok(owed)
        }))?;
        self.note_uncommitted();
        self.flush().await?;
        self.wake.notify_one();
        Ok(owed)
    }

    /// Tells the cache which content is staged and not committed, or was staged and is owed again: what there is of it
    /// here may be all there is.
    pub(super) fn note_uncommitted(&self) {
        let staged: Vec<ContentHash> = {
            let state = self.lock();
            let put = |(_, account): (&RepoPath, Account)| match account.staged {
                Staged::Put(object) => Some(object.hash),
                Staged::Nothing | Staged::Removed | Staged::Doubt => None,
            };
            let owed = |path: &RepoPath| match state.tree.resolve(path) {
                Resolved::Inode(ino) => match state.content(ino)? {
                    (Content::Remote { hash, .. }, _) => Some(*hash),
                    (Content::Local { .. }, _) => None,
                },
                Resolved::AsBase | Resolved::Absent => None,
            };
            let pending = state.writeback.queue().iter().filter_map(|(path, _)| owed(path));
            state.writeback.ledger().iter().filter_map(put).chain(pending).collect()
        };
        self.cache.note_all_staged(staged.into_iter());
    }
}

impl State {
    /// These paths are not in the new base as they should be. Those that the tree still wants otherwise are owed, and read
    /// where `parent`, the commit before, has them; what no listing has shown yet is wanted as that had it. Returns how
    /// many are owed.
    pub(super) fn owe_deviations(&mut self, parent: &CommitId, deviations: &[Deviation], options: &Options) -> usize {
        let mut owed = 0;
        for Deviation { path, expected, found } in deviations {
            let base = match found {
                Some(EntryKind::File(object)) => Some(*object),
                Some(EntryKind::Dir) | None => None,
            };
            let before = Arc::new(Source { revision: Revision::Commit(parent.clone()), path: path.clone() });
            match (self.tree.resolve(path), expected) {
                (Resolved::AsBase, Expected::File(object)) => self.show_file(path, *object, Some(before), options),
                (Resolved::Inode(ino), _) => {
                    // Shown by a listing of before, and on record only from now on.
                    self.materialize(ino);
                    if let Some((Content::Remote { hash, origin: None }, size)) = self.content(ino) {
                        let content = Content::Remote { hash: *hash, origin: Some(before) };
                        self.set_content(ino, content, size);
                    }
                }
                (Resolved::AsBase | Resolved::Absent, _) => {}
            }
            let account = self.writeback.account(path).unwrap_or_default();
            let account = Account { base, staged: Staged::Nothing, ..account };
            self.apply(Change::Account { path: path.clone(), account: Some(account) });
            if self.owes(path, &account) {
                self.writeback.owe(path, Duration::ZERO);
                owed += 1;
            }
        }
        owed
    }
}
