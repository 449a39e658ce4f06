//! Requests that come late. One that went without an answer, as the daemon was killed or the way broke, may be carried
//! out by the server at any later time: also after a newer one for the same path was confirmed. So the paths of such
//! requests are watched: what is staged there is compared again and again, and before each commit. What differs is staged
//! once more, by its hash, or from the cache where the server does not know hashes.
//!
//! A removal of a directory takes along whatever has come into it by then, so what is removed below one that is watched is
//! put back as well.
//!
//! Somebody else's change of such a path in the same workspace is taken for one of ours: nothing tells them apart.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::cut::Made;
use super::recovery::Listings;
use super::staging::into_plain;
use super::{Fs, FsError, State, now_secs};
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::store::journal::Change;
use crate::workspace::verify::{Expected, StagedSet};
use crate::workspace::{Change as StagedChange, ChangeKind, Object, Revision, Source, WorkspaceError};
use crate::writeback::index::{Account, Staged};
use crate::writeback::queue::Pending;

/// How long a request is expected: longer than gateways, which give up after a minute or a few, and servers under load
/// hold one.
const EXPECTED: Duration = Duration::from_secs(10 * 60);

/// What the server has staged, compared with the record.
enum Comparison {
    /// Nothing on record can tell, and the server was not asked.
    NotAsked,
    /// All that can be told agrees; this is staged.
    Agrees(StagedSet),
    /// Something differed, and was queued.
    Differs,
}

impl Comparison {
    fn differs(&self) -> bool {
        matches!(self, Self::Differs)
    }
}

impl Fs {
    /// Writes down that a request about these paths was sent and went without an answer.
    ///
    /// # Errors
    /// When the journal cannot be written; the paths are watched for as long as this daemon runs.
    pub fn went_unanswered<'a>(&self, paths: impl Iterator<Item = &'a RepoPath>) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            paths.for_each(|path| state.watch(path));
            Ok(())
        }))
    }

    /// The request that was to remove these directories is over, and not to be expected again.
    ///
    /// # Errors
    /// When the journal cannot be written; they are watched for longer than they need be.
    pub fn was_answered(&self, dirs: &[RepoPath]) -> Result<(), FsError> {
        into_plain(self.change(|state| {
            dirs.iter().for_each(|dir| state.watch_no_longer(dir));
            Ok(())
        }))
    }

    /// Whether some request may still come late.
    pub fn expects_latecomers(&self) -> bool {
        self.lock().writeback.ledger().expects_latecomers()
    }

    /// Whether what is staged at a path, and nobody here wants, is to be taken for a request of ours that came late. Where
    /// others stage in the same workspace it is taken for theirs.
    pub fn may_have_come_late(&self, path: &RepoPath) -> bool {
        !self.is_shared() && self.lock().writeback.account(path).is_some_and(|account| account.late.is_some())
    }

    /// Compares all that the server has staged with the record. Queues what differs, as where others emptied the workspace
    /// or made it anew; says whether there was any.
    ///
    /// # Errors
    /// The server's, or the journal's.
    pub async fn audit(&self) -> Result<bool, FsError> {
        Ok(self.find_workspace().await? || self.compare(|_| true).await?.differs())
    }

    /// [`audit`](Self::audit), and all that is staged; `None`: something differed, and was queued.
    ///
    /// # Errors
    /// As [`audit`](Self::audit).
    pub async fn audit_for_commit(&self) -> Result<Option<StagedSet>, FsError> {
        if self.find_workspace().await? {
            return Ok(None);
        }
        // Where the tree need not follow first: what the cut has may not have been sent.
        let given_up = self.is_elsewhere() || self.lock().made_cut().is_some_and(Made::is_given_up);
        if given_up && self.stands_on_base().await? {
            self.begin().elsewhere = false;
            return Ok(None);
        }
        match self.compare(|_| true).await? {
            Comparison::Differs => Ok(None),
            Comparison::Agrees(staged) => Ok(Some(staged)),
            // What is staged and pending again is in the commit all the same.
            Comparison::NotAsked => Ok(Some(self.list_staged().await?)),
        }
    }

    /// Compares what the server has staged with the record as long as a request may come late, but not while a commit is
    /// under way, which does so itself and stages nothing else. Says whether anything differed.
    ///
    /// # Errors
    /// As [`audit`](Self::audit).
    pub async fn audit_between_commits(&self) -> Result<bool, FsError> {
        let may = |state: &State| !state.writeback.is_cutting() && state.writeback.ledger().expects_latecomers();
        Ok(self.compare(may).await?.differs())
    }

    async fn compare(&self, may: impl Fn(&State) -> bool) -> Result<Comparison, FsError> {
        let (accounts, base): (Vec<(RepoPath, Account)>, _) = {
            let state = self.lock();
            if !may(&state) {
                return Ok(Comparison::NotAsked);
            }
            // Owed since the cut was made, as the workspace was made again: the commit would lack it.
            let owed_since = |(path, account): (&RepoPath, Account)| {
                account.staged == Staged::Doubt && state.made_cut().is_some() && !state.is_in_cut(path)
            };
            if state.writeback.ledger().iter().any(owed_since) {
                return Ok(Comparison::Differs);
            }
            // What waits is settled by its turn. A late removal of a directory takes along what was not part of it.
            let looked_at = |path: &RepoPath, account: &Account| {
                state.is_at_rest(path)
                    && account.staged != Staged::Doubt
                    && (account.late.is_some()
                        || account.staged != Staged::Nothing
                        || state.writeback.ledger().may_fall(path))
            };
            let accounts = state.writeback.ledger().iter().filter(|(path, account)| looked_at(path, account));
            (accounts.map(|(path, account)| (path.clone(), account)).collect(), state.tree.base().clone())
        };
        if accounts.is_empty() {
            return Ok(Comparison::NotAsked);
        }
        if self.workspace.base().await? != base {
            // Somebody else moved the workspace, and the changes over its base tell nothing: the next mount compares.
            return Ok(Comparison::NotAsked);
        }
        let changes = self.workspace.changes().await?;
        let staged: HashMap<&RepoPath, &StagedChange> = changes.iter().map(|change| (&change.path, change)).collect();
        let filled = filled_dirs(&changes);
        let mut looks = Vec::new();
        for (path, account) in accounts {
            let agrees = match (account.staged, staged.get(&path)) {
                (Staged::Nothing, None) => true,
                (Staged::Removed, None) => filled.contains(&path),
                (Staged::Removed, Some(change)) => change.kind == ChangeKind::Removed,
                (Staged::Put(_), Some(change)) if change.kind == ChangeKind::Removed => false,
                (Staged::Put(object), Some(change)) if account.late.is_some() => {
                    self.staged_now(change).await? == Some(object)
                }
                (Staged::Put(_), Some(_)) => true,
                _ => false,
            };
            looks.push((path, account, agrees));
        }
        // What came into a directory and was committed has no account.
        let fallen: Vec<&RepoPath> = {
            let state = self.lock();
            let fell =
                |path: &RepoPath| state.writeback.account(path).is_none() && state.writeback.ledger().may_fall(path);
            let removed = changes.iter().filter(|change| change.kind == ChangeKind::Removed);
            removed.map(|change| &change.path).filter(|path| fell(path)).collect()
        };
        let mut listings = Listings::new(self, base.clone());
        let mut restored = Vec::with_capacity(fallen.len());
        for path in fallen {
            restored.push((path, Account { base: listings.object(path).await?, ..Account::default() }));
        }
        let over = now_secs().saturating_sub(EXPECTED.as_secs());
        let found = into_plain(self.change(|state| {
            let mut any = false;
            for (path, account) in restored {
                if may(state) && *state.tree.base() == base && state.writeback.account(path).is_none() {
                    state.doubt(path, account);
                    any = true;
                }
            }
            for (path, account, agrees) in looks {
                // Changed meanwhile: to be looked at another time.
                if !may(state) || state.writeback.account(&path) != Some(account) || !state.is_at_rest(&path) {
                    continue;
                }
                if !agrees && account.theirs {
                    // Whoever staged it took it back. Where something of ours is in the way, it stays.
                    any |= state.take_back_of_others(&path, self).is_ok();
                } else if !agrees {
                    state.doubt(&path, account);
                    any = true;
                } else if account.late.is_some_and(|late| late < over) {
                    state.watch_no_longer(&path);
                }
            }
            Ok(any)
        }))?;
        self.wake.notify_one();
        Ok(if found { Comparison::Differs } else { Comparison::Agrees(self.expected_of(&changes)) })
    }

    /// What is staged, as the server lists it, and what a commit of it should hold.
    ///
    /// # Errors
    /// The server's.
    pub async fn list_staged(&self) -> Result<StagedSet, FsError> {
        let changes = self.workspace.changes().await?;
        Ok(self.expected_of(&changes))
    }

    /// What a commit of these staged changes should hold.
    fn expected_of(&self, changes: &[StagedChange]) -> StagedSet {
        let state = self.lock();
        let expected = |change: &StagedChange| match (change.kind, state.writeback.account(&change.path)) {
            (ChangeKind::Removed, _) => Expected::Gone,
            (_, Some(Account { staged: Staged::Put(object), theirs: false, .. })) => Expected::File(object),
            // Somebody else's, in the same workspace, and maybe another by now than was seen.
            _ => Expected::SomeFile,
        };
        changes.iter().map(|change| (change.path.clone(), expected(change))).collect()
    }

    /// Why what was fetched is not what it should be: the way garbled it, or a request came late, which passes; or it is not
    /// there any more, which the server says itself and which does not pass.
    pub(super) async fn why_not(&self, source: &Source, hash: ContentHash, what: String) -> WorkspaceError {
        let is_undone = {
            let state = self.lock();
            let late = state.writeback.account(&source.path).is_some_and(|account| account.late.is_some());
            let waits = state.writeback.pending(&source.path).is_some_and(Pending::waits_for_somebody);
            source.revision == Revision::Workspace && late && !waits
        };
        match self.object_at(source).await {
            Ok(None) if !is_undone => WorkspaceError::NotFound { what, request: None },
            // Nobody else's bytes go for the sake of ours.
            Ok(Some(there)) if !is_undone && there.hash != hash => {
                WorkspaceError::Conflict { message: what, request: None }
            }
            _ => WorkspaceError::Protocol { detail: what, request: None },
        }
    }

    /// What the server says that it has where content is read.
    async fn object_at(&self, source: &Source) -> Result<Option<Object>, FsError> {
        let commit = match &source.revision {
            Revision::Commit(commit) => commit.clone(),
            Revision::Workspace => {
                let changes = self.workspace.changes().await?;
                match changes.iter().find(|change| change.path == source.path) {
                    Some(change) if change.kind == ChangeKind::Removed => return Ok(None),
                    Some(change) => return self.staged_now(change).await,
                    None => self.workspace.base().await?,
                }
            }
        };
        Listings::new(self, commit).object(&source.path).await
    }

    /// What is staged there at this moment.
    pub(super) async fn staged_now(&self, change: &StagedChange) -> Result<Option<Object>, FsError> {
        match self.workspace.staged_object(change).await {
            Ok(object) => Ok(Some(object)),
            Err(WorkspaceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The directories that staged files are in. A file's removal is not listed any more once something is staged below its
/// path, and holds all the same (0.65.2, tried). To remove it again takes along what is below where the server speaks as
/// before 0.64: there a removal unstages what was only staged at and below its path.
pub(super) fn filled_dirs<'a>(changes: impl IntoIterator<Item = &'a StagedChange>) -> HashSet<RepoPath> {
    let mut dirs = HashSet::new();
    for change in changes.into_iter().filter(|change| change.kind != ChangeKind::Removed) {
        let mut above = change.path.parent();
        while let Some(dir) = above {
            above = dir.parent();
            if !dirs.insert(dir) {
                break;
            }
        }
    }
    dirs
}

impl State {
    /// Whether no request changes what is staged at a path: nothing is owed there, or a commit keeps what is from its turn.
    fn is_at_rest(&self, path: &RepoPath) -> bool {
        !self.writeback.is_pending(path) || self.made_cut().is_some() && !self.is_in_cut(path)
    }

    /// A request about a path may come late from now on.
    pub(super) fn watch(&mut self, path: &RepoPath) {
        let account = Account { late: Some(now_secs()), ..self.writeback.account(path).unwrap_or_default() };
        self.apply(Change::Account { path: path.clone(), account: Some(account) });
    }

    /// None is to be expected any more.
    fn watch_no_longer(&mut self, path: &RepoPath) {
        let Some(account) = self.writeback.account(path) else { return };
        let account = Account { late: None, ..account };
        let closed = account.is_settled() && !self.writeback.is_pending(path) && self.agrees(path, account.base);
        self.apply(Change::Account { path: path.clone(), account: (!closed).then_some(account) });
    }

    /// A path is staged otherwise than it should be: it is brought to that again in its turn.
    pub(super) fn doubt(&mut self, path: &RepoPath, account: Account) {
        tracing::warn!(%path, "staged otherwise than confirmed: by a request that came late, or by somebody else");
        let account = Account { staged: Staged::Doubt, late: Some(now_secs()), ..account };
        self.apply(Change::Account { path: path.clone(), account: Some(account) });
        self.writeback.owe(path, Duration::ZERO);
    }
}
