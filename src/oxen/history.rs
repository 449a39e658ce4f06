//! Commits that exist and branches that have them; where two commits differ; the workspace as it is now.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};

use super::OxenWorkspace;
use super::http::{Request, segment};
use super::listing::{TreeHash, kind, too_much};
use super::retry::Patience;
use super::wire::{self, Commit, Each, WorkspaceInfo};
use crate::hash::{ContentHash, HashKind};
use crate::path::RepoPath;
use crate::workspace::{
    CommitId, CommitInfo, Differences, EntryKind, InHistory, Reopened, Scope, Sides, WorkspaceError, WorkspaceIdentity,
};

/// How many commits of a history are looked at: as many as others make while one of ours is on its way, and then some.
const LOOKED_AT: usize = 256;
/// Listings asked for at once.
const LISTINGS: usize = 8;
/// What a comparison of whole commits may take the server: it walks both trees.
const LONG: Duration = Duration::from_secs(600);

impl OxenWorkspace {
    // ---- the workspace

    pub(super) async fn identity_now(&self) -> Result<Option<WorkspaceIdentity>, WorkspaceError> {
        let id = self.id();
        let mut found = self.repo.workspace(&id).await?;
        if found.is_none() && *id != *self.name {
            // Another client may have made it anew under an id of its own.
            found = self.repo.workspace(&self.name).await?;
        }
        Ok(found.map(|info| {
            self.know(&info.commit.commit_id());
            identity(&info)
        }))
    }

    pub(super) async fn open_again(&self, branch: &str, base: &CommitId) -> Result<Reopened, WorkspaceError> {
        // Where it is gone, all of the server may be another.
        self.repo.http.recognition().doubt();
        let made = self.identity_now().await?.is_none() && self.make_again(branch, base).await?;
        // Of a workspace that was found by its name, the answer has the id that was sent (0.65.2, tried).
        let identity =
            self.identity_now().await?.ok_or_else(|| WorkspaceError::NotFound { what: self.what(), request: None })?;
        *self.id.write().unwrap_or_else(PoisonError::into_inner) = identity.id.clone();
        Ok(Reopened { identity, made })
    }

    pub(super) async fn open_anew(&self, branch: &str) -> Result<Option<WorkspaceIdentity>, WorkspaceError> {
        if self.shared || self.commit.is_some() {
            return Ok(None);
        }
        self.repo.delete_workspace(&self.id()).await?;
        self.make_on(branch).await?;
        let identity =
            self.identity_now().await?.ok_or_else(|| WorkspaceError::NotFound { what: self.what(), request: None })?;
        *self.id.write().unwrap_or_else(PoisonError::into_inner) = identity.id.clone();
        Ok(Some(identity))
    }

    /// Makes the workspace on `base`; says whether it was not there before.
    ///
    /// A workspace is made where a branch stands, and keeps standing there when that branch is deleted (0.65.2, tried). So
    /// where `branch` has moved on, one is made for a moment; a daemon that ends in that moment leaves it, under a name
    /// that says whose it was, and the next to need it takes it away.
    async fn make_again(&self, branch: &str, base: &CommitId) -> Result<bool, WorkspaceError> {
        if base.0.is_empty() || self.head_of(branch).await? == *base {
            return self.make_on(branch).await;
        }
        let name = ContentHash::of(HashKind::Xxh3, self.name.as_bytes());
        let aside = format!("workspace-mount-{name}");
        self.repo.delete_branch(&aside).await?;
        match self.repo.create_branch_at(&aside, base).await {
            Ok(()) => {}
            Err(error) => {
                let is_refused = matches!(error, WorkspaceError::NotFound { .. } | WorkspaceError::Refused { .. });
                if !is_refused && self.look_up(base).await?.is_some() {
                    return Err(error);
                }
                tracing::warn!(%error, %base, branch, "the workspace cannot be made where it stood; it is made on the branch");
                return self.make_on(branch).await;
            }
        }
        let made = self.make_on(&aside).await;
        if let Err(error) = self.repo.delete_branch(&aside).await {
            tracing::warn!(%error, branch = aside, "a branch that was made for a moment is there still");
        }
        made
    }

    async fn make_on(&self, branch: &str) -> Result<bool, WorkspaceError> {
        let answer = self.repo.get_or_create_workspace(&self.id(), &self.name, branch).await?;
        Ok(answer.status_message == "resource_created")
    }

    // ---- commits

    pub(super) async fn head_of(&self, branch: &str) -> Result<CommitId, WorkspaceError> {
        let head = self.repo.branch(branch).await?;
        let head = head.ok_or_else(|| WorkspaceError::NotFound { what: format!("branch {branch}"), request: None })?;
        let id = CommitId(head.commit_id.into());
        self.know(&id);
        Ok(id)
    }

    pub(super) async fn look_up(&self, commit: &CommitId) -> Result<Option<CommitInfo>, WorkspaceError> {
        if commit.0.is_empty() {
            return Ok(None);
        }
        Ok(self.repo.commit(&commit.0).await?.map(info))
    }

    pub(super) async fn look_in_history(
        &self,
        branch: &str,
        commit: &CommitId,
        since: Option<&CommitId>,
    ) -> Result<InHistory, WorkspaceError> {
        if commit.0.is_empty() || Some(commit) == since {
            return Ok(InHistory::No);
        }
        let head = self.head_of(branch).await?;
        let (mut seen, mut next) = (HashSet::from([head.clone()]), VecDeque::from([head]));
        let mut looked_at = 0;
        while let Some(id) = next.pop_front() {
            if id == *commit {
                return Ok(InHistory::Yes);
            }
            if Some(&id) == since {
                continue;
            }
            if looked_at == LOOKED_AT {
                return Ok(InHistory::Unknown);
            }
            looked_at += 1;
            // The branch has it, so it exists: this server does not show commits.
            let Some(found) = self.look_up(&id).await? else { return Ok(InHistory::Unknown) };
            next.extend(found.parents.into_iter().filter(|parent| seen.insert(parent.clone())));
        }
        Ok(InHistory::No)
    }

    // ---- differences

    pub(super) async fn compare_commits(
        &self,
        old: &CommitId,
        new: &CommitId,
        scope: Scope<'_>,
    ) -> Result<Differences, WorkspaceError> {
        match scope {
            Scope::Directories(dirs) => self.compare_directories(old, new, dirs).await,
            Scope::Everything => self.compare_everything(old, new).await,
        }
    }

    async fn compare_directories(
        &self,
        old: &CommitId,
        new: &CommitId,
        dirs: &[RepoPath],
    ) -> Result<Differences, WorkspaceError> {
        let listings = dirs.iter().cloned().map(|dir| self.compare_directory(old, new, dir));
        let listed: Vec<Differences> =
            futures_util::stream::iter(listings).buffer_unordered(LISTINGS).try_collect().await?;
        Ok(listed.into_iter().flatten().collect())
    }

    async fn compare_directory(
        &self,
        old: &CommitId,
        new: &CommitId,
        dir: RepoPath,
    ) -> Result<Differences, WorkspaceError> {
        let (old, new) = tokio::try_join!(self.list_with_trees(old, &dir), self.list_with_trees(new, &dir))?;
        let mut differences = Differences::new();
        let mut trees: HashMap<RepoPath, TreeHash> = HashMap::new();
        let mut changed = HashSet::new();
        for (entries, is_new) in [(old, false), (new, true)] {
            for (entry, tree) in entries {
                // What no mount can show is no difference to one.
                let Ok(name) = RepoPath::parse(&entry.name) else { continue };
                let path = dir.concat(&name);
                note(&mut differences, path.clone(), entry.kind, is_new);
                if entry.kind == EntryKind::Dir
                    && let Some(other) = trees.insert(path.clone(), tree)
                    && trees.get(&path).is_some_and(|tree| tree.may_differ(&other))
                {
                    changed.insert(path);
                }
            }
        }
        differences.retain(|path, sides| sides.old != sides.new || changed.contains(path));
        Ok(differences)
    }

    async fn compare_everything(&self, old: &CommitId, new: &CommitId) -> Result<Differences, WorkspaceError> {
        const UNSUPPORTED: WorkspaceError = WorkspaceError::Unsupported { what: "compare commits" };
        if self.no_compare.load(Ordering::Relaxed) {
            return Err(UNSUPPORTED);
        }
        let mut differences = Differences::new();
        for page in 1.. {
            let place = format!(
                "compare/entries/{}..{}?page={page}&page_size={}",
                segment(&old.0),
                segment(&new.0),
                wire::PAGE_CHANGES
            );
            let request = Request::get(self.repo.url(&place), format!("commits {old} and {new}"));
            let request = request.patience(LONG).answer_bytes(wire::PAGE_BYTES);
            let answer: wire::CompareAnswer = match self.repo.http.json_with(Patience::Several, &request).await {
                Ok(answer) => answer,
                Err(
                    WorkspaceError::NotFound { .. }
                    | WorkspaceError::Refused { status: 405, .. }
                    | WorkspaceError::Server { status: 501, .. },
                ) => {
                    // One of the commits is not there, or the route is not.
                    for commit in [old, new] {
                        self.check_commit(commit).await?;
                    }
                    self.no_compare.store(true, Ordering::Relaxed);
                    return Err(UNSUPPORTED);
                }
                Err(error) => return Err(error),
            };
            let last = answer.compare.entries.is_empty() || page >= answer.total_pages;
            if differences.len() > wire::MOST_LISTED {
                return Err(too_much(&format!("commits {old} and {new}")));
            }
            for found in answer.compare.entries.into_iter().filter_map(Each::sound) {
                let Some(path) = wire::normalized(&found.filename).filter(|path| !path.is_root()) else { continue };
                for (entry, is_new) in [(found.base_entry, false), (found.head_entry, true)] {
                    if let Some(entry) = entry {
                        note(&mut differences, path.clone(), kind(&entry)?, is_new);
                    }
                }
            }
            if last {
                break;
            }
        }
        differences.retain(|_, sides| sides.old != sides.new);
        Ok(differences)
    }
}

/// Puts one side of a path into `differences`.
fn note(differences: &mut Differences, path: RepoPath, kind: EntryKind, is_new: bool) {
    let sides = differences.entry(path).or_insert(Sides { old: None, new: None });
    let side = if is_new { &mut sides.new } else { &mut sides.old };
    *side = Some(kind);
}

fn identity(info: &WorkspaceInfo) -> WorkspaceIdentity {
    WorkspaceIdentity {
        id: info.id.as_str().into(),
        commit: info.commit.commit_id(),
        created_at: info.created_at.as_deref().map(Into::into),
    }
}

fn info(commit: Commit) -> CommitInfo {
    CommitInfo {
        id: commit.commit_id(),
        parents: commit.parent_ids.iter().map(|id| CommitId(id.as_str().into())).collect(),
        author: commit.author,
        email: commit.email,
        message: commit.message,
    }
}
