//! Conflicts with a branch, and commits to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use reqwest::Method;

use super::OxenWorkspace;
use super::http::{Request, segments};
use super::retry::{Patience, pause};
use super::wire::{self, Commit};
use crate::path::RepoPath;
use crate::workspace::{Change, ChangeKind, CommitId, CommitRequest, Committed, EntryKind, InHistory, WorkspaceError};

/// What a commit or a check before it may take the server: both read everything staged.
const LONG: Duration = Duration::from_secs(600);
/// Attempts at a commit that the server itself says it did not make.
const ATTEMPTS: u32 = 4;
/// How often the branch is looked at after a lost answer, and how long apart: the server may still be at it.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// How far behind the branch's head a commit made by a lost request is looked for: others commit meanwhile.
const BEHIND: usize = 32;

impl OxenWorkspace {
    fn merge_request(&self, method: Method, branch: &str) -> Request {
        Request::new(
            method,
            self.url(&format!("merge/{}", segments(branch))),
            format!("{} or branch {branch}", self.what()),
        )
        .patience(LONG)
    }

    // ---- conflicts

    pub(super) async fn find_conflicts(&self, branch: &str) -> Result<Vec<RepoPath>, WorkspaceError> {
        let request = self.merge_request(Method::GET, branch);
        let answer: wire::MergeAnswer = self.repo.http.json_with(Patience::Several, &request).await?;
        let mut found: BTreeSet<RepoPath> =
            answer.conflicts.iter().filter_map(|conflict| wire::normalized(&conflict.path)).collect();
        if !self.dialect.finds_conflicts {
            found.extend(self.compare_with(branch).await?);
        }
        Ok(found.into_iter().collect())
    }

    /// Staged paths at which `branch` has something else than the base, and something else than what is staged.
    async fn compare_with(&self, branch: &str) -> Result<Vec<RepoPath>, WorkspaceError> {
        let base = self.standing().await?.commit_id();
        let head = self.repo.branch(branch).await?;
        let head = head.ok_or_else(|| WorkspaceError::NotFound { what: format!("branch {branch}"), request: None })?;
        if *head.commit_id == *base.0 {
            return Ok(Vec::new());
        }
        let mut trees = Trees { workspace: self, base, head: CommitId(head.commit_id.into()), listed: HashMap::new() };
        let mut conflicts = Vec::new();
        for change in self.staged_changes().await? {
            if trees.conflict(&change).await? {
                conflicts.push(change.path);
            }
        }
        Ok(conflicts)
    }

    // ---- commits

    pub(super) async fn commit_staged(&self, request: &CommitRequest) -> Result<Committed, WorkspaceError> {
        let head = self.repo.branch(&request.branch).await?;
        let head =
            head.ok_or_else(|| WorkspaceError::NotFound { what: format!("branch {}", request.branch), request: None })?;
        let staged = self.staged_for_commit(&CommitId(head.commit_id.as_str().into())).await?;
        if let Some(path) = lost_by_commit(&staged) {
            let message = format!(
                "{path} was a directory and is a file now, which this server loses in one commit; \
                 move the file away, commit, move it back, and commit again"
            );
            return Err(WorkspaceError::Refused { status: 0, message, request: None });
        }
        let before = self.standing().await?.commit_id();
        let body = wire::NewCommit { author: &request.author, email: &request.email, message: &request.message };
        let post = self.merge_request(Method::POST, &request.branch).json(&body)?;
        let mut attempt = 1;
        loop {
            match self.repo.http.json::<wire::CommitAnswer>(&post).await {
                Ok(answer) => return self.confirmed(answer.commit, request, &before, &head.commit_id).await,
                // Another commit was being made, and this one was not (0.65.2, read); or the request did not arrive in
                // the time that the server had for it (RFC 9110, 15.5.9).
                Err(error @ (WorkspaceError::Busy { .. } | WorkspaceError::Server { status: 408, .. }))
                    if attempt < ATTEMPTS =>
                {
                    tokio::time::sleep(pause(attempt, &error)).await;
                    attempt += 1;
                }
                Err(
                    error @ (WorkspaceError::Unreachable { .. }
                    | WorkspaceError::TimedOut { .. }
                    | WorkspaceError::Server { .. }
                    | WorkspaceError::Protocol { .. }),
                ) => {
                    return match self.look_for(request, &before, &head.commit_id).await {
                        Ok(Some(commit)) => Ok(committed(&commit)),
                        Ok(None) => Err(error),
                        Err(look) => {
                            tracing::warn!(error = %look, "cannot tell whether the commit was made");
                            Err(error)
                        }
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The commit that an answer names, as the branch has it. `before` is where the workspace stood, `head` where the
    /// branch did: a commit made since is above it.
    async fn confirmed(
        &self,
        named: Commit,
        request: &CommitRequest,
        before: &CommitId,
        head: &str,
    ) -> Result<Committed, WorkspaceError> {
        let (id, head_before) = (named.commit_id(), CommitId(head.into()));
        match self.look_in_history(&request.branch, &id, Some(&head_before)).await? {
            InHistory::Yes => {
                // What the answer says of it need not be what is kept.
                let kept = self.repo.commit(&id.0).await?;
                Ok(committed(&kept.unwrap_or(named)))
            }
            InHistory::Unknown if self.repo.has_commit(&id).await? => Ok(committed(&named)),
            InHistory::Unknown | InHistory::No => match self.look_for(request, before, head).await? {
                Some(commit) => Ok(committed(&commit)),
                None => {
                    let detail = match id.0.is_empty() {
                        true => format!("the server names no commit, and {} has none of this message", request.branch),
                        false => {
                            format!("the server says that it made commit {id}, which {} does not have", request.branch)
                        }
                    };
                    Err(WorkspaceError::Protocol { detail, request: None })
                }
            },
        }
    }

    /// The commit that a request without an answer may have made. `before` is where the workspace stood, `head` where
    /// the branch did.
    async fn look_for(
        &self,
        request: &CommitRequest,
        before: &CommitId,
        head: &str,
    ) -> Result<Option<Commit>, WorkspaceError> {
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            // A named workspace stands on the commit that was made from it (0.65.2, tried).
            let standing = self.standing().await?;
            if standing.commit_id() != *before && is_of(&standing, request) {
                return Ok(Some(standing));
            }
            if let Some(commit) = self.newest_of(request, head).await?
                && self.staged_changes().await?.is_empty()
            {
                return Ok(Some(commit));
            }
        }
        Ok(None)
    }

    /// The newest commit of the branch, back to `head`, that `request` describes.
    async fn newest_of(&self, request: &CommitRequest, head: &str) -> Result<Option<Commit>, WorkspaceError> {
        let Some(branch) = self.repo.branch(&request.branch).await? else { return Ok(None) };
        let mut id = branch.commit_id;
        for _ in 0..BEHIND {
            if id == head {
                break;
            }
            let Some(commit) = self.repo.commit(&id).await? else { break };
            if is_of(&commit, request) {
                return Ok(Some(commit));
            }
            let Some(parent) = commit.parent_ids.into_iter().next() else { break };
            id = parent;
        }
        Ok(None)
    }
}

/// A staged file where the base has a directory whose files are staged as removed: a commit keeps the emptied directory
/// and loses the file (0.65.2, tried, in any order of the requests). The other way round works.
fn lost_by_commit(changes: &BTreeMap<RepoPath, ChangeKind>) -> Option<RepoPath> {
    let is_file = |path: &RepoPath| changes.get(path).is_some_and(|kind| *kind != ChangeKind::Removed);
    let mut removed = changes.iter().filter(|(_, kind)| **kind == ChangeKind::Removed);
    removed.find_map(|(path, _)| std::iter::successors(path.parent(), RepoPath::parent).find(is_file))
}

fn committed(commit: &Commit) -> Committed {
    Committed {
        id: commit.commit_id(),
        parents: commit.parent_ids.iter().map(|id| CommitId(id.as_str().into())).collect(),
    }
}

fn is_of(commit: &Commit, request: &CommitRequest) -> bool {
    commit.author == request.author && commit.email == request.email && commit.message == request.message
}

/// Two commits, listed as far as they were looked at.
struct Trees<'a> {
    workspace: &'a OxenWorkspace,
    base: CommitId,
    head: CommitId,
    listed: HashMap<(CommitId, RepoPath), HashMap<String, EntryKind>>,
}

impl Trees<'_> {
    /// Whether committing `change` would undo what the branch did since the base.
    async fn conflict(&mut self, change: &Change) -> Result<bool, WorkspaceError> {
        let mut above = change.path.parent();
        while let Some(dir) = above.filter(|dir| !dir.is_root()) {
            // A file where the change needs a directory.
            let there = self.at(self.head.clone(), &dir).await?;
            if matches!(there, Some(EntryKind::File(_))) && there != self.at(self.base.clone(), &dir).await? {
                return Ok(true);
            }
            above = dir.parent();
        }
        let base = self.at(self.base.clone(), &change.path).await?;
        let head = self.at(self.head.clone(), &change.path).await?;
        if base == head {
            return Ok(false);
        }
        Ok(match (change.kind, head) {
            (ChangeKind::Removed, head) => head.is_some(),
            (_, Some(EntryKind::File(there))) => self.workspace.what_is_staged(change).await? != there,
            (_, _) => true,
        })
    }

    async fn at(&mut self, commit: CommitId, path: &RepoPath) -> Result<Option<EntryKind>, WorkspaceError> {
        let dir = path.parent().unwrap_or_default();
        let key = (commit, dir);
        if !self.listed.contains_key(&key) {
            let entries = self.workspace.list_commit(&key.0, &key.1).await?;
            let entries = entries.into_iter().map(|entry| (entry.name, entry.kind)).collect();
            self.listed.insert(key.clone(), entries);
        }
        Ok(self.listed.get(&key).and_then(|entries| entries.get(path.file_name())).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_a_removed_directory_is_noticed() {
        let path = |text| RepoPath::parse(text).unwrap();
        let change = |text, kind| (path(text), kind);
        let lost = [change("data/sub/deep/c.txt", ChangeKind::Removed), change("data/sub", ChangeKind::Added)];
        assert_eq!(lost_by_commit(&lost.into()), Some(path("data/sub")));
        let kept = [
            change("data/sub/c.txt", ChangeKind::Removed),
            change("data/sub.txt", ChangeKind::Added),
            change("data/sub/d.txt", ChangeKind::Added),
            change("a", ChangeKind::Removed),
            change("a/b", ChangeKind::Added),
        ];
        assert_eq!(lost_by_commit(&kept.into()), None);
    }
}
