//! A workspace that is shared on purpose: what others stage in it goes along with a commit, and what of ours somebody
//! else committed is known as committed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::recovery::Listings;
use super::staging::into_plain;
use super::{Fs, FsError, State};
use crate::namespace::Resolved;
use crate::path::RepoPath;
use crate::report::{Difference, Kind};
use crate::store::journal::Change as Record;
use crate::workspace::verify::{self, Costs, StagedSet};
use crate::workspace::{Change, ChangeKind, CommitId, Object};
use crate::writeback::index::{Account, Staged};
use crate::writeback::queue::Parked;

const COMMITTED: &str =
    "was changed by somebody else, and committed; `oxenfs sync` on it by name stages yours over that";

impl Fs {
    /// Others may stage in the workspace. To be called before the record is compared with it.
    pub fn share(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }

    /// Whether others may stage in the workspace.
    pub fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// Of what is `staged`, as the server lists it, what others staged, in the order of paths.
    pub fn staged_by_others(&self, staged: &StagedSet) -> Vec<RepoPath> {
        let state = self.lock();
        staged.keys().filter(|path| !state.has_staged(path)).cloned().collect()
    }

    /// What others have staged that this mount does not show.
    ///
    /// # Errors
    /// The server's.
    pub async fn changes_of_others(&self) -> Result<Vec<Difference>, FsError> {
        let changes = self.workspace.changes().await?;
        let state = self.lock();
        // What is shown is among the differences already, and so is what is being staged just now.
        let unknown = changes.into_iter().filter(|change| state.writeback.account(&change.path).is_none());
        let mut found: Vec<Difference> = unknown
            .map(|change| {
                let kind = match change.kind {
                    ChangeKind::Added => Kind::Added,
                    ChangeKind::Modified => Kind::Modified,
                    ChangeKind::Removed => Kind::Removed,
                };
                let path = change.path.to_string();
                Difference { path, kind, from: None, bytes: 0, staged: true, reason: None, others: true }
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The workspace stands on `commit`. If that is another than the record says, and no commit of our own is under way,
    /// somebody else made it of what was staged: what of ours is in it is committed, and the mount stands on it. What it
    /// has otherwise than we have it waits for a person, as does what is not staged yet and was changed there too.
    ///
    /// # Errors
    /// The server's, or the journal's: nothing has changed then.
    pub(super) async fn follow_others(&self, commit: CommitId) -> Result<(), FsError> {
        let base = self.base();
        let pending: Vec<(RepoPath, Account)> = {
            let state = self.lock();
            if commit == base || base.0.is_empty() || state.writeback.is_cutting() || state.writeback.intent().is_some()
            {
                return Ok(());
            }
            let pending = state.writeback.queue().iter();
            pending.map(|(path, _)| (path.clone(), state.writeback.account(path).unwrap_or_default())).collect()
        };
        tracing::info!(%base, %commit, "somebody else committed this workspace");
        // What is staged there now was staged over that commit, and is in none yet.
        let changes = self.workspace.changes().await?;
        let still: Vec<(RepoPath, Account)> = {
            let state = self.lock();
            let account = |change: &Change| Some((change.path.clone(), state.writeback.account(&change.path)?));
            let is_still = |change: &Change, account: &Account| match account.staged {
                Staged::Put(_) => change.kind != ChangeKind::Removed,
                Staged::Removed => change.kind == ChangeKind::Removed,
                Staged::Nothing | Staged::Doubt => false,
            };
            let known = changes.iter().filter_map(|change| Some((change, account(change)?)));
            known.filter(|(change, (_, account))| is_still(change, account)).map(|(_, known)| known).collect()
        };
        let mut staged = self.staged_set();
        for (path, _) in &still {
            staged.remove(path);
        }
        let verdict = verify::examine(self.workspace.as_ref(), &staged, &base, &commit, Costs::default()).await?;
        let kept: HashSet<&RepoPath> = still.iter().map(|(path, _)| path).collect();
        let mut listings = Listings::new(self, commit.clone());
        let mut now: HashMap<RepoPath, Option<Object>> = HashMap::new();
        for (path, _) in pending.iter().chain(&still) {
            now.insert(path.clone(), listings.object(path).await?);
        }
        // At once: what was owed for a moment would be staged.
        into_plain(self.change(|state| {
            let gone: Vec<&RepoPath> = now.keys().filter(|path| state.tree.resolve(path) == Resolved::Absent).collect();
            state.apply(Record::Rebase { commit, alone: false });
            state.owe_deviations(&base, &verdict.deviations, &self.options);
            for (path, account) in &still {
                let account = Account { base: now.get(path).copied().flatten(), ..*account };
                state.apply(Record::Account { path: path.clone(), account: Some(account) });
            }
            for (path, account) in pending.iter().filter(|(path, _)| !kept.contains(path)) {
                let there = now.get(path).copied().flatten();
                state.meet(path, account, there);
            }
            // What the new base may have there does not show through.
            gone.into_iter().for_each(|path| state.tree.hide(path));
            state.record_hidden();
            state.record_pending_accounts();
            for deviation in &verdict.deviations {
                if state.writeback.is_pending(&deviation.path) {
                    state.writeback.park(&deviation.path, COMMITTED.to_owned(), Parked::Conflict);
                }
            }
            Ok(())
        }))?;
        self.note_uncommitted();
        self.flush().await?;
        self.wake.notify_one();
        self.progress.notify_waiters();
        if let Some(fs) = self.shared() {
            tokio::spawn(async move {
                if let Err(error) = fs.relist().await {
                    tracing::warn!(%error, "the new base could not be listed yet");
                }
            });
        }
        Ok(())
    }
}

impl State {
    /// Whether this mount has staged something at a path.
    fn has_staged(&self, path: &RepoPath) -> bool {
        self.writeback.account(path).is_some_and(|account| account.staged != Staged::Nothing && !account.theirs)
    }

    /// The base has `there` at a pending path from now on, where its account was `before`.
    fn meet(&mut self, path: &RepoPath, before: &Account, there: Option<Object>) {
        let hash = |object: Option<Object>| object.map(|object| object.hash);
        if hash(there) == hash(before.base) {
            return;
        }
        let account = Account { base: there, ..self.writeback.account(path).unwrap_or_default() };
        self.apply(Record::Account { path: path.clone(), account: Some(account) });
        let ours = match before.staged {
            Staged::Put(object) => Some(Some(object.hash)),
            Staged::Removed => Some(None),
            Staged::Nothing | Staged::Doubt => None,
        };
        if self.owes(path, &account) {
            self.writeback.owe(path, Duration::ZERO);
            // Over what was ours before there is nothing to lose.
            if ours != Some(hash(there)) {
                self.writeback.park(path, COMMITTED.to_owned(), Parked::Conflict);
            }
        }
    }
}
