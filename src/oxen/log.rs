//! What was committed, newest first.

use std::collections::HashSet;

use super::Repository;
use super::http::{Request, path, segment};
use super::retry::Patience;
use super::wire::{self, Commit};
use crate::path::RepoPath;
use crate::workspace::{CommitId, WorkspaceError};

/// Commits asked for in one page at most: some hundreds of bytes each.
const PAGE_COMMITS: usize = 1000;

/// What a server says when it is asked for a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// Commits, newest first.
    Commits(Vec<Commit>),
    /// There is no branch and no commit of that name.
    NoRevision,
    /// Nothing is at that path in the revision.
    NoPath,
    /// It has no route for that.
    Untold,
}

impl Repository {
    /// Up to `most` commits that led to a branch or commit, newest first; with a path that is not the root, those that
    /// changed what is there.
    ///
    /// # Errors
    /// [`WorkspaceError::NotFound`] without the repository; else as the server answers.
    pub async fn history(&self, revision: &str, at: &RepoPath, most: usize) -> Result<History, WorkspaceError> {
        let branch = self.branch(revision).await?;
        // All pages are of one commit, whatever others commit meanwhile; and a slash in a branch's name begins no path.
        let (commit, is_branch) = match branch {
            Some(branch) => (branch.commit_id, true),
            None => (revision.to_owned(), false),
        };
        if let Some(commits) = self.commits_before(&commit, at, most).await? {
            return Ok(History::Commits(commits));
        }
        if self.get().await?.is_none() {
            return Err(WorkspaceError::NotFound { what: self.what(), request: None });
        }
        if !is_branch && !self.has_commit(&CommitId(revision.into())).await? {
            return Ok(History::NoRevision);
        }
        if at.is_root() {
            return Ok(History::Untold);
        }
        let url = self.url(&format!("meta/{}/{}", segment(&commit), path(at)));
        let is_there = self.http.find::<wire::Anything>(&Request::get(url, at.to_string())).await?.is_some();
        Ok(if is_there { History::Untold } else { History::NoPath })
    }

    /// `None`: there is no such commit, path or route.
    async fn commits_before(
        &self,
        commit: &str,
        at: &RepoPath,
        most: usize,
    ) -> Result<Option<Vec<Commit>>, WorkspaceError> {
        let page_size = most.clamp(1, PAGE_COMMITS);
        let resource = match at.is_root() {
            true => segment(commit),
            false => format!("{}/{}", segment(commit), path(at)),
        };
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        for page in 1.. {
            let url = self.url(&format!("commits/history/{resource}?page={page}&page_size={page_size}"));
            let request = Request::get(url, format!("the history of commit {commit}"));
            let answer: wire::HistoryAnswer = match self.http.json_with(Patience::Several, &request).await {
                Ok(answer) => answer,
                Err(
                    WorkspaceError::NotFound { .. }
                    | WorkspaceError::Refused { status: 405, .. }
                    | WorkspaceError::Server { status: 501, .. },
                ) => return Ok(None),
                Err(error) => return Err(error),
            };
            let is_last = answer.is_last(page, page_size);
            let before = found.len();
            found.extend(answer.commits.into_iter().filter(|commit| seen.insert(commit.id.clone())));
            // One that brings nothing new is the same page again, and so would be the next.
            if is_last || found.len() == before || found.len() >= most.min(wire::MOST_LISTED) {
                break;
            }
        }
        found.truncate(most);
        Ok(Some(found))
    }
}
