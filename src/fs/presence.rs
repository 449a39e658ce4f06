//! The staging area may vanish: anybody may delete the workspace, make it anew or empty it. Then what was staged is owed
//! again, and staged by its hash, or from the cache where the server lacks it.
//!
//! A workspace that was deleted or made anew is noticed by [`look_at_workspace`](Fs::look_at_workspace), which barriers ask
//! for, and by a request that does not find it. One that was emptied is noticed where all that is staged is listed: before
//! a commit and before an unmount, by [`audit`](Fs::audit).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::staging::into_plain;
use super::{Fs, FsError, Options, State};
use crate::namespace::{Content, Resolved};
use crate::path::RepoPath;
use crate::store::journal::{Change, CommitIntent};
use crate::workspace::verify::{Deviation, Expected, StagedSet};
use crate::workspace::{CommitId, EntryKind, Revision, Source, WorkspaceIdentity};
use crate::writeback::index::{Account, Staged};

/// How often the workspace is looked at, at most, however many barriers ask.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The branch of a filesystem that was told none.
const MAIN: &str = "main";

/// What is known of the workspace.
#[derive(Default)]
pub(super) struct Presence {
    identity: Option<WorkspaceIdentity>,
    looked: Option<Instant>,
}

impl Fs {
    /// This filesystem, for what goes on beside.
    pub fn shared(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// Where the workspace is made if it has to be made again. To be called once, before anything is served.
    pub fn set_branch(&self, branch: &str) {
        let _ = self.branch.set(branch.to_owned());
    }

    /// Notes which workspace it is that the record is compared with.
    pub(super) async fn meet_workspace(&self) -> Result<(), FsError> {
        let mut presence = self.presence.lock().await;
        presence.identity = self.workspace.identity().await?;
        presence.looked = Some(Instant::now());
        Ok(())
    }

    /// Looks whether the workspace is still the one that this mount staged in, at most once a second. If not, it is made
    /// again, all that was staged is owed again, and the answer is yes.
    ///
    /// # Errors
    /// The server's, or the journal's.
    pub async fn look_at_workspace(&self) -> Result<bool, FsError> {
        let mut presence = self.presence.lock().await;
        if presence.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(false);
        }
        self.look_again(&mut presence).await
    }

    /// The same, at once: a request did not find the workspace, or what is staged is about to be listed.
    ///
    /// # Errors
    /// As [`look_at_workspace`](Self::look_at_workspace).
    pub async fn find_workspace(&self) -> Result<bool, FsError> {
        let mut presence = self.presence.lock().await;
        self.look_again(&mut presence).await
    }

    /// The branch that the mount follows.
    pub(super) fn branch_name(&self) -> &str {
        self.branch.get().map_or(MAIN, String::as_str)
    }

    /// Replaces the workspace by one on what `branch` has become, with nothing staged in it. `false`: others may use it.
    pub(super) async fn renew_workspace(&self, branch: &str) -> Result<bool, FsError> {
        let mut presence = self.presence.lock().await;
        let Some(identity) = self.workspace.renew(branch).await? else { return Ok(false) };
        tracing::info!(commit = %identity.commit, branch, "the workspace was replaced by one on what the branch has become");
        self.remade.fetch_add(1, Ordering::AcqRel);
        (presence.identity, presence.looked) = (Some(identity), Some(Instant::now()));
        Ok(true)
    }

    /// How often the workspace was made again since the start: a barrier during which it was has not waited for what was
    /// owed anew.
    pub fn times_remade(&self) -> u64 {
        self.remade.load(Ordering::Acquire)
    }

    async fn look_again(&self, presence: &mut Presence) -> Result<bool, FsError> {
        let there = self.workspace.identity().await?;
        let same = match (&there, &presence.identity) {
            (Some(there), Some(known)) => there.is_same_as(known),
            // Nothing is known of an earlier one.
            (Some(_), None) => true,
            (None, _) => false,
        };
        if same {
            let commit = there.as_ref().map(|there| there.commit.clone());
            (presence.identity, presence.looked) = (there, Some(Instant::now()));
            commit.iter().for_each(|commit| self.follow_others(commit));
            return Ok(false);
        }
        // Also between its making and the owing nothing is sent.
        let (base, before) = {
            let mut state = self.begin();
            let base = state.tree.base().clone();
            let before = std::mem::replace(&mut state.elsewhere, !base.0.is_empty());
            (base, before)
        };
        let reopened = match self.workspace.reopen(self.branch_name(), &base).await {
            Ok(reopened) => reopened,
            Err(error) => {
                self.begin().elsewhere = before;
                return Err(error.into());
            }
        };
        tracing::warn!(
            made = reopened.made,
            commit = %reopened.identity.commit,
            "the workspace was deleted or made anew by somebody else; what was staged is staged again"
        );
        self.owe_staged(&reopened.identity.commit)?;
        self.remade.fetch_add(1, Ordering::AcqRel);
        (presence.identity, presence.looked) = (Some(reopened.identity), Some(Instant::now()));
        Ok(true)
    }

    /// All that is staged is owed again, in a workspace on `commit`. A request of before may still be carried out: what is
    /// there is in doubt.
    fn owe_staged(&self, commit: &CommitId) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            let base = state.tree.base();
            state.elsewhere = !base.0.is_empty() && base != commit;
            let staged = state.writeback.ledger().iter().filter(|(_, account)| account.staged != Staged::Nothing);
            let staged: Vec<(RepoPath, Account)> = staged.map(|(path, account)| (path.clone(), account)).collect();
            let mut lacks = false;
            for (path, account) in staged {
                let account = Account { staged: Staged::Doubt, ..account };
                state.apply(Change::Account { path: path.clone(), account: Some(account) });
                state.writeback.owe(&path, Duration::ZERO);
                lacks |= !state.is_in_cut(&path);
            }
            if lacks || state.elsewhere {
                state.writeback.give_up_cut();
            }
            Ok(())
        }))?;
        self.wake.notify_one();
        self.progress.notify_waiters();
        Ok(())
    }

    /// Whether the workspace stands on another commit than the tree, as it was made again: nothing may be sent to it.
    pub fn is_elsewhere(&self) -> bool {
        self.lock().elsewhere
    }

    /// Has the tree follow a workspace that stands elsewhere.
    ///
    /// # Errors
    /// [`FsError::Exists`] while a commit is under way, which does so itself; the server's, or the journal's.
    pub async fn follow_workspace(&self) -> Result<(), FsError> {
        // It may have gone once more since: as nothing is sent, nobody else would notice.
        self.find_workspace().await?;
        self.take_in_others().await
    }

    // ---- a commit that was asked for

    /// What this mount has staged, as far as it knows.
    pub fn staged_set(&self) -> StagedSet {
        let state = self.lock();
        let expected = |(path, account): (&RepoPath, Account)| {
            let expected = match account.staged {
                Staged::Nothing | Staged::Doubt => return None,
                Staged::Put(object) => Expected::File(object),
                Staged::Removed => Expected::Gone,
            };
            Some((path.clone(), expected))
        };
        state.writeback.ledger().iter().filter_map(expected).collect()
    }

    /// The commit that was asked for, if it is not known what became of it.
    pub fn intent(&self) -> Option<CommitIntent> {
        self.lock().writeback.intent().cloned()
    }

    /// Puts on stable storage that a commit is asked for.
    ///
    /// # Errors
    /// The journal's: do not ask.
    pub async fn note_intent(&self, intent: CommitIntent) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            state.apply(Change::Intent { intent: Some(intent) });
            Ok(())
        }))?;
        self.flush().await
    }

    /// That commit was not made, and will not be.
    ///
    /// # Errors
    /// The journal's: it is looked for once more, to no harm.
    pub fn drop_intent(&self) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            if state.writeback.intent().is_some() {
                state.apply(Change::Intent { intent: None });
            }
            Ok(())
        }))
    }

    /// Whether the workspace stands where the record says.
    ///
    /// # Errors
    /// The server's.
    pub async fn stands_on_base(&self) -> Result<bool, FsError> {
        let base: CommitId = self.workspace.base().await?;
        Ok(base == self.base())
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
                (Resolved::AsBase, Expected::Gone) => self.show(path, None, true, options),
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
