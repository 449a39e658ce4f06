//! Marks of directories, which make a commit drop them, and names for a moment.
//!
//! Staging a path marks every directory above it on the server, and taking the path back leaves the marks. A commit drops
//! a marked directory in which nothing is staged, with all that the branch has in it (0.65.2, tried; 0.53.4 and 0.58.0,
//! read). Unstaging a directory takes its own mark away and touches nothing else.
//!
//! So whatever takes a change back takes the marks above it away first: in between, what is staged there is committed all
//! the same (0.65.2, tried). Releases before 0.64 lose what is staged below a directory without its mark, and with it the
//! whole tree where nothing is staged in the root (0.53.4 and 0.58.0, read). There, marks stand until a commit, which
//! nothing is staged beside, and go where nothing is staged below them. Before a commit all left ones go that its listing
//! shows, whoever left them.
//!
//! A directory named like a table cannot be unstaged. A file staged at its own path takes its mark's place; moved away
//! under a name for a moment, it leaves none (0.65.2, tried).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::OxenWorkspace;
use super::dialect::HashRoute;
use super::http::{Request, path, segment, workspace_path};
use super::listing::Listed;
use super::names::{aside, is_table, marked_above};
use super::staging::{QUESTIONS, lists};
use super::wire;
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::workspace::{ChangeKind, CommitId, Object, Outcome, Over, Put, WorkspaceError};

/// How often a listing before a commit is repeated: each time, directories named like tables lose one level of marks.
const ROUNDS: u32 = 64;

impl OxenWorkspace {
    /// Whether a commit of this server finds what is staged below a directory whose mark was taken away.
    pub(super) fn completes_marks(&self) -> bool {
        self.dialect.hash_route == HashRoute::Uploads
    }

    /// Takes the marks of all directories above these paths away, where that is safe at any time. To be called before
    /// what is staged at the paths is taken back by other means than unstaging.
    pub(super) async fn unmark_above(&self, paths: &[RepoPath]) -> Result<(), WorkspaceError> {
        if !self.completes_marks() {
            return Ok(());
        }
        self.unmark(&marked_above(paths).into_iter().collect::<Vec<_>>()).await
    }

    async fn unmark(&self, dirs: &[RepoPath]) -> Result<(), WorkspaceError> {
        for range in lists(dirs.len(), |at| dirs[at].as_str().len()) {
            match self.delete("changes", &dirs[range]).await {
                // Without a workspace the next request tells.
                Ok(_) | Err(WorkspaceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes away what was staged for a moment.
    pub(super) async fn drop_asides(&self, asides: &[RepoPath]) -> Result<(), WorkspaceError> {
        self.unmark_above(asides).await?;
        // Removing files takes what is only staged, and their data with it; before 0.64 it does not.
        let route = if self.completes_marks() { "files" } else { "changes" };
        for range in lists(asides.len(), |at| asides[at].as_str().len()) {
            self.delete(route, &asides[range]).await?;
        }
        Ok(())
    }

    /// Marks the directories of these files anew, where their removal may be staged: that would take the files along
    /// once they are unstaged. Returns files for a moment, to be unstaged with them, and the directories in which no
    /// request can stage one.
    pub(super) async fn mark_anew(
        &self,
        files: &[RepoPath],
    ) -> Result<(Vec<RepoPath>, HashMap<RepoPath, WorkspaceError>), WorkspaceError> {
        let dirs: BTreeSet<RepoPath> = files.iter().filter_map(RepoPath::parent).filter(|dir| !dir.is_root()).collect();
        let (mut asides, mut unmarked) = (dirs.iter().map(aside).collect::<Result<Vec<_>, _>>()?, HashMap::new());
        if asides.is_empty() {
            return Ok((asides, unmarked));
        }
        let outcomes = self.put_fillers(&asides, b"-").await?;
        for (dir, outcome) in dirs.into_iter().zip(outcomes) {
            if let Outcome::Failed(error) = outcome {
                unmarked.insert(dir, error);
            }
        }
        asides.retain(|aside| aside.parent().is_none_or(|dir| !unmarked.contains_key(&dir)));
        Ok((asides, unmarked))
    }

    /// Stages some content of no meaning.
    pub(super) async fn put_fillers(
        &self,
        paths: &[RepoPath],
        filler: &'static [u8],
    ) -> Result<Vec<Outcome>, WorkspaceError> {
        let object = Object { hash: ContentHash::of(self.info.hash_kind, filler), size: filler.len() as u64 };
        let file = super::http::blocking(move || super::removal::nameless_file(filler)).await??;
        let file = std::sync::Arc::new(file);
        let put = |path: &RepoPath| Put { path: path.clone(), object, file: Some(file.clone()), over: Over::Other };
        self.send_batch(&paths.iter().map(put).collect::<Vec<_>>()).await
    }

    /// What is staged, once nothing is left of a moment's work and no mark that would make a commit onto `head` drop a
    /// directory.
    pub(super) async fn staged_for_commit(
        &self,
        head: &CommitId,
    ) -> Result<BTreeMap<RepoPath, ChangeKind>, WorkspaceError> {
        let mut dropped = Vec::new();
        for _ in 0..ROUNDS {
            let listed = self.listed_staged().await?;
            dropped = self.dropped_dirs(&listed, head).await?;
            if listed.asides.is_empty() && dropped.is_empty() {
                return Ok(listed.changes);
            }
            tracing::debug!(asides = listed.asides.len(), marks = dropped.len(), "taken away before a commit");
            self.drop_asides(&listed.asides).await?;
            self.unmark_left(&dropped, &listed).await?;
        }
        let message = match dropped.first() {
            Some(dir) => format!("the server would drop the directory {dir}, of which a change was taken back"),
            None => "somebody else goes on staging files that no commit is to hold".to_owned(),
        };
        Err(WorkspaceError::Refused { status: 0, message, request: None })
    }

    /// The left directories in which the branch has something, and those that it does not have: where one of these stays
    /// marked, the commit makes those above it, empty (0.65.2, tried).
    async fn dropped_dirs(&self, listed: &Listed, head: &CommitId) -> Result<Vec<RepoPath>, WorkspaceError> {
        let questions: Vec<_> = listed.left_dirs.iter().map(|dir| self.is_spoilt(head, dir)).collect();
        let answers: Vec<bool> = stream::iter(questions).buffered(QUESTIONS).try_collect().await?;
        let dropped = listed.left_dirs.iter().zip(answers).filter(|(_, holds)| *holds);
        Ok(dropped.map(|(dir, _)| dir.clone()).collect())
    }

    async fn is_spoilt(&self, commit: &CommitId, dir: &RepoPath) -> Result<bool, WorkspaceError> {
        let place = format!("dir/{}/{}?page=1&page_size=1", segment(&commit.0), path(dir));
        let request = Request::get(self.repo.url(&place), format!("directory {dir} of commit {commit}"));
        let page: Option<wire::DirPage> = self.repo.http.find(&request).await?;
        Ok(page.is_none_or(|page| !page.entries.is_empty()))
    }

    async fn unmark_left(&self, left: &[RepoPath], listed: &Listed) -> Result<(), WorkspaceError> {
        let mut dirs = marked_above(left);
        let (tables, others): (Vec<_>, Vec<_>) = left.iter().cloned().partition(is_table);
        dirs.extend(others);
        if !self.completes_marks() {
            let busy = marked_above(&listed.changes.keys().cloned().collect::<Vec<_>>());
            dirs.retain(|dir| !busy.contains(dir));
        }
        for dir in tables {
            self.unmark_by_moving(&dir).await?;
        }
        self.unmark(&dirs.into_iter().collect::<Vec<_>>()).await
    }

    /// Takes the mark of a directory away that cannot be unstaged.
    async fn unmark_by_moving(&self, dir: &RepoPath) -> Result<(), WorkspaceError> {
        if workspace_path(dir).is_none() {
            let message = format!(
                "the server would drop the directory {dir}, and no request can prevent it; rename it to a name \
                 without % and two hexadecimal digits"
            );
            return Err(WorkspaceError::Refused { status: 0, message, request: None });
        }
        if let Some(Outcome::Failed(error)) = self.put_fillers(std::slice::from_ref(dir), b"-").await?.pop() {
            return Err(error);
        }
        let aside = aside(&RepoPath::root())?;
        self.patch(dir, &aside).await?;
        self.drop_asides(&[aside]).await
    }
}
