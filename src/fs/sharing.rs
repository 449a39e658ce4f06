//! A workspace that is shared on purpose: what others stage in it goes along with a commit, and what of ours somebody
//! else committed is known as committed.

use std::sync::atomic::Ordering;

use super::{Fs, FsError, State};
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::report::{Difference, Kind};
use crate::workspace::verify::StagedSet;
use crate::workspace::{ChangeKind, CommitId};
use crate::writeback::index::Staged;

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
                Difference {
                    path,
                    kind,
                    from: None,
                    bytes: 0,
                    staged: true,
                    reason: None,
                    conflict: None,
                    others: true,
                }
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The workspace stands on `commit`. If that is another than the record says, and no commit of our own is under way,
    /// somebody else made it of what was staged, or made the workspace anew: what of ours is in it is committed, and before
    /// anything else is sent the mount stands on it.
    pub(super) fn follow_others(&self, commit: &CommitId) {
        let mut state = self.begin();
        let base = state.tree.base().clone();
        let ours = state.writeback.is_cutting() || state.writeback.intent().is_some();
        if *commit == base || base.0.is_empty() || ours || state.elsewhere {
            return;
        }
        state.elsewhere = true;
        drop(state);
        tracing::info!(%base, %commit, "somebody else committed this workspace");
        // Whoever found it may be at a request, and those are waited for.
        self.wake.notify_one();
    }

    /// What others staged in a workspace that is shared may be something else by now than when it was last looked at: looks
    /// again, where a file is theirs. Whether it did.
    pub(super) async fn look_again_at_others(&self, ino: Ino) -> bool {
        let is_theirs = {
            let state = self.lock();
            let theirs = |path: &RepoPath| state.writeback.account(path).is_some_and(|account| account.theirs);
            state.tree.paths_of(ino).any(|path| theirs(&path))
        };
        is_theirs && self.take_in_others().await.is_ok()
    }

    pub(super) async fn take_in_others(&self) -> Result<(), FsError> {
        let _paused = self.pause().await?;
        self.agree(false, false).await?;
        self.flush().await?;
        self.kernel_knows().await;
        self.progress.notify_waiters();
        Ok(())
    }
}

impl State {
    /// Whether this mount has staged something at a path.
    fn has_staged(&self, path: &RepoPath) -> bool {
        self.writeback.account(path).is_some_and(|account| account.staged != Staged::Nothing && !account.theirs)
    }
}
