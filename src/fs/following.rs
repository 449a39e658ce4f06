//! The mount follows its branch: at a commit that has nothing to commit, and when somebody asks for it.
//!
//! No request moves a workspace. One that is this mount's own is replaced, under its name, by one on what the branch has
//! become; what was staged is staged there again, by its hash where the server can do that. One that others may use
//! moves by its commit alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::cut::Paused;
use super::latecomers::filled_dirs;
use super::rebase::{LOOKS, Taken};
use super::recovery::{Foreign, Listings};
use super::staging::into_plain;
use super::{Fs, FsError, Phase, State, now_secs};
use crate::hash::ContentHash;
use crate::namespace::{Content, Resolved};
use crate::path::RepoPath;
use crate::store::journal::Change;
use crate::workspace::{ByHash, Change as StagedChange, ChangeKind, CommitId, Object, Revision, WorkspaceError};
use crate::writeback::index::{Account, Staged};
use crate::writeback::queue::Parked;

/// What is staged as removed because its directory was, and what the base has of it.
type Fallen = Vec<(RepoPath, Option<Object>)>;

/// How a mount stands to its branch after it was told to follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Followed {
    /// What was taken in.
    pub taken: Taken,
    /// The branch is ahead still, and why the mount stays.
    pub stays: Option<Stays>,
}

/// Why a mount does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// Others may use its workspace, which moves by its commit alone.
    Shared,
    /// Somebody else staged something in it.
    Foreign,
}

/// How many commits of a branch are counted: one request each, once.
const MOST_COUNTED: usize = 100;

/// Where the branch is, seen from the mount; kept from one look to the next.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// What the mount stood on when it was last looked.
    base: CommitId,
    /// The branch's commit, if that is another.
    head: Option<CommitId>,
    /// Commits that the branch has above the base.
    above: Above,
}

/// Which commits a branch has that the mount does not stand on.
#[derive(Debug, Clone)]
enum Above {
    /// All of these.
    Counted(HashSet<CommitId>),
    /// Some: they are too many to be counted, or the base is not in the branch's history.
    Some,
    /// None: the mount stands on a commit above it, one that was made to another branch, say.
    None,
}

impl Default for Outlook {
    fn default() -> Self {
        Self::at(CommitId("".into()))
    }
}

impl Outlook {
    /// One of a mount on `base`, in which the branch is there too.
    fn at(base: CommitId) -> Self {
        Self { base, head: None, above: Above::Counted(HashSet::new()) }
    }

    /// What the mount stood on at the last look.
    pub fn base(&self) -> &CommitId {
        &self.base
    }

    /// The commit of the branch that the mount does not stand on, and how many such there are, as far as that is known.
    pub fn ahead(&self) -> Option<(&CommitId, Option<u64>)> {
        let head = self.head.as_ref()?;
        match &self.above {
            Above::Counted(above) => Some((head, Some(above.len() as u64))),
            Above::Some => Some((head, None)),
            Above::None => None,
        }
    }
}

impl Fs {
    /// Looks where the branch is: one request, and one more for each commit that was not there before. Says whether it is
    /// somewhere that it was not at the last look.
    ///
    /// # Errors
    /// The server's.
    pub async fn look_at_branch(&self, outlook: &mut Outlook) -> Result<bool, FsError> {
        let base = self.base();
        let head = self.workspace.head(self.branch_name()).await?;
        // Amid a commit of our own the branch may have it already, and the record not yet.
        if self.is_cutting() || self.base() != base {
            return Ok(false);
        }
        let is_new = outlook.head.as_ref() != Some(&head) || outlook.base != base;
        if outlook.base != base || head == base {
            *outlook = Outlook::at(base.clone());
        }
        if head == base || !is_new {
            return Ok(false);
        }
        outlook.above = match outlook.above.clone() {
            Above::Counted(counted) => self.count_above(&base, &head, counted).await?,
            Above::None => self.count_above(&base, &head, HashSet::new()).await?,
            Above::Some => Above::Some,
        };
        outlook.head = Some(head);
        Ok(outlook.ahead().is_some())
    }

    /// The commits from `base`, without it, to `head`; those that are `counted` end at the base.
    async fn count_above(
        &self,
        base: &CommitId,
        head: &CommitId,
        mut counted: HashSet<CommitId>,
    ) -> Result<Above, FsError> {
        if self.history(head, base, &mut counted).await? {
            return Ok(Above::Counted(counted));
        }
        // Not all ways down from the branch end at the base: it may be the other way round.
        let is_below = self.history(base, head, &mut HashSet::new()).await?;
        Ok(if is_below { Above::None } else { Above::Some })
    }

    /// Adds the commits from `to` down to `from` to those that are `seen`. Whether all ways down end at `from`, or at what was
    /// seen before; a way that ends elsewhere, or is very long, is not.
    async fn history(&self, to: &CommitId, from: &CommitId, seen: &mut HashSet<CommitId>) -> Result<bool, FsError> {
        let mut next = vec![to.clone()];
        while let Some(id) = next.pop() {
            if id == *from || !seen.insert(id.clone()) {
                continue;
            }
            if seen.len() > MOST_COUNTED {
                return Ok(false);
            }
            match self.workspace.commit_info(&id).await? {
                Some(info) if !info.parents.is_empty() => next.extend(info.parents),
                // This server does not show commits; or it is another way from the beginning on.
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether a commit of our own, or a move of the base, is under way.
    fn is_cutting(&self) -> bool {
        let state = self.lock();
        state.writeback.is_cutting() || state.writeback.intent().is_some()
    }

    /// Takes in what the branch has become. What was changed here stays, staged or not; what both sides changed is in
    /// conflict from now on.
    ///
    /// # Errors
    /// [`FsError::Exists`] while a commit is under way; the server's, or the journal's.
    pub async fn follow_branch(&self) -> Result<Followed, FsError> {
        let paused = self.pause_in_turn().await?;
        self.follow_paused(&paused).await
    }

    /// The same, if nobody has a file open and nothing is being sent; `None` where that is not so. A file that is opened in
    /// that very moment stays as it was until its close.
    ///
    /// # Errors
    /// As [`follow_branch`](Self::follow_branch).
    pub async fn follow_branch_if_idle(&self) -> Result<Option<Followed>, FsError> {
        // A pause waits for what is being sent, and all else waits for the pause.
        if !self.lock().is_idle() {
            return Ok(None);
        }
        let paused = self.pause().await?;
        if !self.lock().is_idle() {
            return Ok(None);
        }
        self.follow_paused(&paused).await.map(Some)
    }

    async fn follow_paused(&self, _paused: &Paused) -> Result<Followed, FsError> {
        self.find_workspace().await?;
        let branch = self.branch_name();
        let head = self.workspace.head(branch).await?;
        let (mut stays, mut renewed) = (None, false);
        let stands_on = self.workspace.base().await?;
        if stands_on != head {
            stays = self.replace_workspace(branch, &head).await?;
            renewed = stays.is_none() && stands_on == self.base();
        }
        // What others stage in a workspace that is shared shows as well.
        let taken = self.agree(self.is_shared(), renewed).await?;
        self.flush().await?;
        self.kernel_knows().await;
        // Who waits for what was staged waits for it again.
        self.progress.notify_waiters();
        Ok(Followed { taken, stays })
    }

    /// Has the workspace stand on what the branch has become. Says why not, where it stays.
    async fn replace_workspace(&self, branch: &str, head: &CommitId) -> Result<Option<Stays>, FsError> {
        let changes = self.workspace.changes().await?;
        let is_foreign = |change: &StagedChange| self.lock().writeback.account(&change.path).is_none();
        if changes.iter().any(is_foreign) {
            return Ok(Some(Stays::Foreign));
        }
        // What is only staged must not go with the workspace: nobody asks for what is in conflict again, and some servers
        // take nothing but bytes.
        let mut needed: BTreeSet<RepoPath> = self.conflicts_with(head, &[]).await?.into_iter().collect();
        needed.extend(self.conflicts());
        // Nor what is in a directory that is in conflict, which waits as that does.
        let below: Vec<RepoPath> = self.lock().files_in(&needed);
        needed.extend(below);
        if self.workspace.info().by_hash == ByHash::Never {
            needed.extend(changes.into_iter().map(|change| change.path));
            needed.extend(self.lock().read_in_workspace());
        }
        let needed: Vec<RepoPath> = needed.into_iter().collect();
        self.rescue_all(&needed).await?;
        self.rescue_unstored().await?;
        self.flush().await?;
        match self.renew_workspace(branch).await? {
            true => Ok(None),
            false => Ok(Some(Stays::Shared)),
        }
    }

    /// Gets here what the server may have in the workspace alone: what is staged is staged again by its hash, and that is
    /// to be found once the workspace is gone.
    async fn rescue_unstored(&self) -> Result<(), FsError> {
        let staged = self.lock().staged_elsewhere();
        let hashes: Vec<ContentHash> = staged.iter().map(|(_, object)| object.hash).collect();
        let missing = match hashes.is_empty() {
            true => return Ok(()),
            false => self.workspace.missing(&hashes).await?,
        };
        let missing: Option<HashSet<ContentHash>> = missing.map(|missing| missing.into_iter().collect());
        for (path, object) in staged {
            if missing.as_ref().is_some_and(|missing| !missing.contains(&object.hash)) {
                continue;
            }
            match self.rescue_all(std::slice::from_ref(&path)).await {
                // It is neither in the workspace nor here: there is nothing to lose with the workspace, and to stage it
                // again fails by its name.
                Err(FsError::Remote(error)) if missing.is_some() && is_answer(&error) => {
                    tracing::warn!(%path, %error, "the server lost what is staged there, and it is not here");
                }
                rescued => rescued?,
            }
        }
        Ok(())
    }

    /// Brings the record up to the workspace as it is now: a base that moved, answers that were lost, and, before anything
    /// is served, what others staged. `renewed`: nobody committed the workspace, which was replaced by another.
    ///
    /// # Errors
    /// The server's, or the journal's.
    pub(super) async fn agree(&self, at_mount: bool, renewed: bool) -> Result<Taken, FsError> {
        for _ in 0..LOOKS {
            if let Some(taken) = self.try_agree(at_mount, renewed).await? {
                self.note_uncommitted();
                self.wake.notify_one();
                return Ok(taken);
            }
        }
        let what = "the base: the tree changes all the time".to_owned();
        Err(WorkspaceError::Unconfirmed { what }.into())
    }

    /// `None`: the tree or the workspace became another meanwhile.
    async fn try_agree(&self, at_mount: bool, renewed: bool) -> Result<Option<Taken>, FsError> {
        let base = self.workspace.base().await?;
        let staged: HashMap<RepoPath, StagedChange> =
            self.workspace.changes().await?.into_iter().map(|change| (change.path.clone(), change)).collect();
        let filled = filled_dirs(staged.values());
        let known = self.base();
        let is_move = !known.0.is_empty() && known != base;
        if is_move {
            tracing::info!(%known, %base, "the base moves");
        }
        // Of a tree that stands on nothing yet there is nothing to be compared.
        let mut moved = self.look_at_commit(if is_move { &base } else { &known }).await?;
        moved.may_hold_staged = !renewed;
        let accounts: Vec<(RepoPath, Account)> =
            self.lock().writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        let (mut updates, mut doubled, mut taken_back) = (HashMap::new(), Vec::new(), Vec::new());
        let mut foreign = Vec::new();
        for (path, account) in &accounts {
            if account.theirs && account.staged != Staged::Doubt {
                let now = self.staged_of_others(staged.get(path)).await?;
                if now != Some(account.staged) {
                    taken_back.push(path);
                    foreign.extend(now.map(|staged| (path.clone(), account.base, staged)));
                }
            }
            let listed = staged.get(path).map(|change| change.kind);
            let implied = || account.staged == Staged::Removed && filled.contains(path);
            let listed = listed.or_else(|| implied().then_some(ChangeKind::Removed));
            let (now_staged, is_doubled) = self.now_staged(path, *account, listed);
            if is_doubled {
                doubled.push(path.clone());
            }
            // The daemon before sent a request, and was killed before it had the answer on record.
            let late = if account.staged == Staged::Doubt { Some(now_secs()) } else { account.late };
            updates.insert(path.clone(), (now_staged, late));
        }
        let foreign = foreign.into_iter().map(|(path, base, staged)| {
            let staged = if let Staged::Put(object) = staged { Some(object) } else { None };
            Foreign { path, base, staged }
        });
        let mut foreign: Vec<Foreign> = foreign.collect();
        let mut fallen = Vec::new();
        if at_mount || is_move {
            let found;
            (found, fallen) = self.foreign(&staged, &base, is_move).await?;
            foreign.extend(found.into_iter().filter(|_| at_mount));
        }
        // What is removed makes way for what is in its place.
        foreign.sort_by(|a, b| (a.staged.is_some(), &a.path).cmp(&(b.staged.is_some(), &b.path)));
        if is_move && self.workspace.base().await? != base {
            return Ok(None);
        }
        into_plain(self.change(|state| {
            if *state.tree.base() != known {
                return Ok(None);
            }
            for path in &taken_back {
                match state.take_back_of_others(path, self) {
                    Ok(()) => _ = updates.remove(*path),
                    // Something of ours is in the way.
                    Err(_) => tracing::debug!(%path, "what others unstaged cannot go"),
                }
            }
            let now = |path: &RepoPath, account: Account| match updates.get(path) {
                Some((staged, late)) => Account {
                    staged: *staged,
                    late: *late,
                    theirs: account.theirs && *staged == account.staged,
                    ..account
                },
                None => account,
            };
            // Once more, with what they have compared.
            if state.free_taken(&moved) {
                return Ok(None);
            }
            let plan = state.plan(&moved, now);
            if plan.is_outdated() {
                return Ok(None);
            }
            for path in updates.keys() {
                // Settled since it was asked for, by a decision: what it differs from is not to be told any more.
                let Some(before) = state.writeback.account(path) else { continue };
                let account = now(path, before);
                if before != account {
                    state.apply(Change::Account { path: path.clone(), account: Some(account) });
                }
            }
            if *state.tree.base() != base {
                state.apply(Change::Base { commit: base.clone() });
            }
            state.elsewhere = false;
            state.carry_out(&plan, &moved, &self.options);
            // By now the tree shows what others have in those directories.
            for (path, base) in &fallen {
                let account = state.writeback.account(path);
                let account = account.unwrap_or(Account { base: *base, ..Account::default() });
                if account.staged == Staged::Nothing {
                    state.doubt(path, account);
                }
            }
            for change in &foreign {
                // What was written here meanwhile is ours.
                if state.writeback.account(&change.path).is_none() && state.clear_for_import(&change.path) {
                    state.import(change, self.is_shared(), &self.options);
                }
            }
            state.queue_owed();
            state.judge_vanished();
            for path in &doubled {
                if state.writeback.is_pending(path) && state.writeback.conflict(path).is_none() {
                    let error = "was also changed in this workspace by somebody else; `oxenfs sync` on it by name \
                                 stages yours over that";
                    state.writeback.park(path, error.to_owned(), Parked::Conflict);
                }
            }
            let conflicts = state.writeback.conflicts().count();
            Ok(Some(Taken { moved: is_move, conflicts }))
        }))
    }

    /// What others have staged, by the change that the server lists.
    async fn staged_of_others(&self, listed: Option<&StagedChange>) -> Result<Option<Staged>, FsError> {
        Ok(match listed {
            None => None,
            Some(change) if change.kind == ChangeKind::Removed => Some(Staged::Removed),
            Some(change) => Some(Staged::Put(self.workspace.staged_object(change).await?)),
        })
    }

    /// What the workspace has of ours at a path, where it lists a change of this kind; and whether that is somebody else's.
    fn now_staged(&self, path: &RepoPath, account: Account, listed: Option<ChangeKind>) -> (Staged, bool) {
        let fell = |kind| kind == ChangeKind::Removed && self.lock().writeback.ledger().may_fall(path);
        let staged = match (account.staged, listed) {
            // What came late is undone by its turn in the queue.
            (Staged::Nothing, Some(kind)) if account.late.is_some() || fell(kind) => Staged::Doubt,
            // A request that a killed daemon sent may still be carried out: in doubt until it is repeated.
            (Staged::Doubt, _) => Staged::Doubt,
            (_, None) => Staged::Nothing,
            (Staged::Put(object), Some(ChangeKind::Added | ChangeKind::Modified)) => Staged::Put(object),
            (Staged::Removed, Some(ChangeKind::Removed)) => Staged::Removed,
            // As long as nobody decides, the next mount is to see that too.
            (Staged::Nothing, Some(_)) => return (Staged::Nothing, true),
            (_, Some(_)) => Staged::Doubt,
        };
        (staged, false)
    }

    /// What others staged in this workspace; what fell with a directory, by a request of ours, is to be staged again: also
    /// what a request removed that was made for a workspace of before and came to this one (`is_move`), where others have
    /// more in the directory, or a file in its place.
    async fn foreign(
        &self,
        staged: &HashMap<RepoPath, StagedChange>,
        base: &CommitId,
        is_move: bool,
    ) -> Result<(Vec<Foreign>, Fallen), FsError> {
        let (mut foreign, mut fallen) = (Vec::new(), Vec::new());
        let mut listings = Listings::new(self, base.clone());
        let fell = |path: &RepoPath| (is_move && !self.is_shared()) || self.lock().writeback.ledger().may_fall(path);
        for change in staged.values().filter(|change| self.lock().writeback.account(&change.path).is_none()) {
            let (path, base) = (change.path.clone(), listings.object(&change.path).await?);
            let staged = match change.kind {
                // With its directory, by a request of ours: undone as well.
                ChangeKind::Removed if fell(&path) => {
                    fallen.push((path, base));
                    continue;
                }
                ChangeKind::Removed => None,
                ChangeKind::Added | ChangeKind::Modified => Some(self.workspace.staged_object(change).await?),
            };
            foreign.push(Foreign { path, base, staged });
        }
        Ok((foreign, fallen))
    }
}

/// Whether the server said that it does not have what it was asked for.
fn is_answer(error: &WorkspaceError) -> bool {
    matches!(
        error,
        WorkspaceError::NotFound { .. } | WorkspaceError::Conflict { .. } | WorkspaceError::Server { status: 500, .. }
    )
}

impl State {
    /// Files whose content is staged, and neither in the spool nor in a commit.
    fn staged_elsewhere(&self) -> Vec<(RepoPath, Object)> {
        let accounts = self.writeback.ledger().iter();
        accounts.filter_map(|(path, account)| Some((path.clone(), self.only_staged(path, &account)?))).collect()
    }

    /// The content of a file that has it neither from the spool nor from a commit: it was staged.
    pub(super) fn only_staged(&self, path: &RepoPath, account: &Account) -> Option<Object> {
        let Resolved::Inode(ino) = self.tree.resolve(path) else { return None };
        let (content, size) = self.content(ino)?;
        let Content::Remote { hash, origin } = content else { return None };
        let committed = origin.as_ref().is_some_and(|origin| origin.revision != Revision::Workspace)
            || account.base.is_some_and(|base| base.hash == *hash);
        (!committed).then_some(Object { hash: *hash, size })
    }

    /// Whether no program uses a file, and nothing is being sent.
    fn is_idle(&self) -> bool {
        !self.handles.are_any_open() && self.writeback.queue().iter().all(|(_, entry)| entry.phase == Phase::Waiting)
    }

    /// The paths of the files in those of `paths` that are directories.
    fn files_in(&self, paths: &BTreeSet<RepoPath>) -> Vec<RepoPath> {
        let dirs = paths.iter().filter_map(|path| match self.tree.resolve(path) {
            Resolved::Inode(dir) if self.tree.dir(dir).is_some() => Some(dir),
            _ => None,
        });
        let files = dirs.flat_map(|dir| self.tree.walk(dir)).filter(|(.., child)| self.content(*child).is_some());
        files.filter_map(|(parent, name, _)| self.tree.path_in(parent, &name).ok()).collect()
    }

    /// The paths of files whose bytes are read at another path of the workspace.
    fn read_in_workspace(&self) -> Vec<RepoPath> {
        let moved = self
            .tree
            .iter()
            .filter(|(ino, _)| self.content(*ino).is_some_and(|(content, _)| content.origin_in_workspace().is_some()));
        moved.flat_map(|(ino, _)| self.tree.file_paths(ino)).collect()
    }

    /// Queues every path whose wanted state the workspace does not have, and closes the accounts of those that agree
    /// with the base.
    pub(super) fn queue_owed(&mut self) {
        let accounts: Vec<(RepoPath, Account)> =
            self.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        for (path, account) in accounts {
            if !self.queue_if_owed(&path, &account) {
                self.close_settled(&path);
            }
        }
    }

    /// Queues a path whose wanted state the workspace does not have; whether it is one.
    pub(super) fn queue_if_owed(&mut self, path: &RepoPath, account: &Account) -> bool {
        let owes = self.owes(path, account);
        if owes && !self.writeback.is_pending(path) && !self.is_held_back(path) {
            self.writeback.owe(path, Duration::ZERO);
            if account.held {
                self.writeback.park(path, super::restore::HELD.to_owned(), Parked::Held);
            }
        }
        owes
    }
}
