//! Removals, and going back to what the base has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use reqwest::{Method, StatusCode};

use super::OxenWorkspace;
use super::http::{Request, SILENCE, workspace_path};
use super::names::{aside, dirs_above, is_table, marked_above};
use super::retry::{Patience, retry};
use super::staging::{BACKSLASH, DONE, QUESTIONS, all_or_error, lists};
use super::wire;
use crate::path::RepoPath;
use crate::workspace::{ChangeKind, CommitId, EntryKind, Outcome, WorkspaceError};

/// What a path of a list may take the server: ten times what was seen in a directory of 3,000 files.
const EACH_PATH: Duration = Duration::from_millis(200);

/// Tables on their way back to the base at once.
const MOVES: usize = 4;

/// What no request can name, in [`WorkspaceError::Unsupported`].
const ESCAPE: &str = "move a staged file, or unstage a table, with % and two hexadecimal digits in its path";

impl OxenWorkspace {
    /// Stages removals; of a directory too, which takes along all that is committed or staged below it. Only that
    /// removes the directory itself: without its files alone it stays in the commit, empty (0.65.2, tried).
    pub(super) async fn remove_files(&self, paths: &[RepoPath]) -> Result<Vec<Outcome>, WorkspaceError> {
        // Which of them are only staged, and leave marks, the answer does not tell.
        self.unmark_above(paths).await?;
        let mut outcomes = Vec::with_capacity(paths.len());
        for share in paths.chunks(wire::REMOVED_PATHS) {
            match self.remove_some(share).await {
                Ok(some) => outcomes.extend(some),
                Err(error) => outcomes.extend(share.iter().map(|_| Outcome::Failed(error.clone()))),
            }
        }
        all_or_error(outcomes)
    }

    async fn remove_some(&self, paths: &[RepoPath]) -> Result<Vec<Outcome>, WorkspaceError> {
        let (status, listed) = self.delete("files", paths).await?;
        // Releases before 0.64 leave what is only staged as it is, at the paths and below them (0.53.4, tried).
        let takes_staged = self.completes_marks();
        let partial = status == StatusCode::PARTIAL_CONTENT;
        if takes_staged && !partial {
            return Ok(paths.iter().map(|_| DONE).collect());
        }
        let mut staged = self.kinds_staged().await?;
        let named: HashSet<&RepoPath> = paths.iter().collect();
        let under = |path: &RepoPath| {
            std::iter::successors(Some(path.clone()), RepoPath::parent).any(|above| named.contains(&above))
        };
        let left = |(path, kind): (&RepoPath, &ChangeKind)| *kind == ChangeKind::Added && under(path);
        let left: Vec<RepoPath> = staged.iter().filter(|each| left(*each)).map(|(path, _)| path.clone()).collect();
        let mut kept = HashMap::new();
        if !left.is_empty() {
            kept = self.unstage_added(&left).await?;
            staged = self.kinds_staged().await?;
        }
        // Those in a partial answer were not found, or could not be removed: it does not tell which (0.65.2, read), and
        // `meta/` of the workspace answers 500 for a path that is not there (tried).
        let base = self.standing().await?.id;
        let check = |path: &RepoPath| {
            let suspect = partial && listed.contains(path);
            let staged = staged.get(path).copied();
            let why = kept.iter().find(|(left, _)| left.is_in(path)).map(|(_, error)| error.clone());
            let (path, base) = (path.clone(), base.clone());
            async move {
                if let Some(why) = why {
                    return Outcome::Failed(why);
                }
                let gone = match staged {
                    Some(ChangeKind::Added) => Ok(false),
                    _ if !suspect => Ok(true),
                    Some(kind) => Ok(kind == ChangeKind::Removed),
                    None => self.meta(&base, &path).await.map(|meta| meta.is_none()),
                };
                match gone {
                    Ok(true) => DONE,
                    Ok(false) => unconfirmed("removal", &path),
                    Err(error) => Outcome::Failed(error),
                }
            }
        };
        let checks: Vec<_> = paths.iter().map(check).collect();
        Ok(stream::iter(checks).buffered(QUESTIONS).collect().await)
    }

    /// Unstages what the base does not have, where removing it does not. Returns what stays staged, with the reason.
    async fn unstage_added(&self, paths: &[RepoPath]) -> Result<HashMap<RepoPath, WorkspaceError>, WorkspaceError> {
        let (tables, others): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(is_table);
        for range in lists(others.len(), |at| others[at].as_str().len()) {
            self.delete("changes", &others[range]).await?;
        }
        // A table is read into a database instead; under a name that is none it is a file like any other (0.53.4,
        // tried).
        let mut kept = HashMap::new();
        for table in tables {
            let aside = aside(&RepoPath::root())?;
            match self.patch(&table, &aside).await {
                Ok(()) => drop(self.delete("changes", &[aside]).await?),
                Err(error) => drop(kept.insert(table, error)),
            }
        }
        Ok(kept)
    }

    pub(super) async fn drop_changes(&self, paths: &[RepoPath]) -> Result<Vec<Outcome>, WorkspaceError> {
        let (tables, others): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(is_table);
        let mut outcomes: HashMap<&RepoPath, Outcome> = HashMap::new();
        for range in lists(others.len(), |at| others[at].as_str().len()) {
            let share = &others[range];
            let dropped = self.drop_some(share).await;
            outcomes.extend(each(share, dropped));
        }
        if !tables.is_empty() {
            let restored = self.restore_tables(&tables).await;
            outcomes.extend(each(&tables, restored));
        }
        let in_order = paths.iter().map(|path| outcomes.remove(path).unwrap_or(DONE));
        all_or_error(in_order.collect())
    }

    /// Unstages files, and the directories above them: the removal of a directory stays staged when a file below it is
    /// unstaged, and takes the file along at the commit, and so does its mark. Unstaging a directory drops its own entry
    /// and no other (0.65.2, tried). Where that must wait, or cannot be, those whose removal may be staged are marked anew.
    async fn drop_some(&self, paths: &[RepoPath]) -> Result<Vec<Outcome>, WorkspaceError> {
        let doubtful: Vec<RepoPath> = if self.completes_marks() {
            let in_table = |path: &&RepoPath| dirs_above(path).any(|dir| is_table(&dir));
            paths.iter().filter(in_table).cloned().collect()
        } else {
            let staged = self.kinds_staged().await?;
            let is_removed = |path: &&RepoPath| staged.get(*path) == Some(&ChangeKind::Removed);
            paths.iter().filter(is_removed).cloned().collect()
        };
        let (mut all, unmarked) = self.mark_anew(&doubtful).await?;
        let in_unmarked = |path: &RepoPath| path.parent().and_then(|dir| unmarked.get(&dir)).cloned();
        let kept: HashSet<&RepoPath> = doubtful.iter().filter(|path| in_unmarked(path).is_some()).collect();
        if self.completes_marks() {
            all.extend(marked_above(paths));
        }
        all.extend(paths.iter().filter(|path| !kept.contains(path)).cloned());
        let mut is_sure = true;
        for range in lists(all.len(), |at| all[at].as_str().len()) {
            match self.delete("changes", &all[range]).await {
                Ok((StatusCode::PARTIAL_CONTENT, _)) => is_sure = false,
                Ok(_) => {}
                // Nothing staged, or no workspace: the listing below tells.
                Err(WorkspaceError::NotFound { .. }) => is_sure = false,
                Err(error) => return Err(error),
            }
        }
        let staged = if is_sure { BTreeMap::new() } else { self.kinds_staged().await? };
        let outcome = |path: &RepoPath| match in_unmarked(path).filter(|_| kept.contains(path)) {
            Some(why) => Outcome::Failed(why),
            None if staged.contains_key(path) => unconfirmed("unstaging", path),
            None => DONE,
        };
        Ok(paths.iter().map(outcome).collect())
    }

    /// Brings tables back to the base, by a way round that does not unstage them: moving a staged table makes the
    /// server drop what is staged at its old path, a database included, and removing the moved one leaves nothing
    /// (0.65.2, tried). Servers that treat tables like any other file stage the old path as removed by that; there,
    /// unstaging works.
    async fn restore_tables(&self, paths: &[RepoPath]) -> Result<Vec<Outcome>, WorkspaceError> {
        // Also where nothing is staged any more: a process may have ended before it came to that.
        self.unmark_above(paths).await?;
        let listed = self.listed_staged().await?;
        let staged = listed.changes;
        // Left behind by a process that ended between moving and removing.
        self.drop_asides(&listed.asides).await?;
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for path in paths {
            match staged.get(path) {
                None => {}
                Some(ChangeKind::Added) => added.push(path.clone()),
                Some(kind) => changed.push((path, *kind)),
            }
        }
        let mut failed: HashMap<RepoPath, Outcome> = each(&added, self.remove_files(&added).await)
            .filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
            .map(|(path, outcome)| (path.clone(), outcome))
            .collect();
        if !changed.is_empty() {
            let base = self.standing().await?.commit_id();
            let moves: Vec<_> = changed.iter().map(|(path, kind)| self.drop_by_moving(path, *kind, &base)).collect();
            let results: Vec<_> = stream::iter(moves).buffered(MOVES).collect().await;
            for ((path, _), result) in changed.iter().zip(results) {
                if let Err(error) = result {
                    failed.insert((*path).clone(), Outcome::Failed(error));
                }
            }
            let staged = self.kinds_staged().await?;
            let untouched = |path: &&RepoPath| staged.contains_key(*path) && !failed.contains_key(*path);
            let left: Vec<RepoPath> = changed.iter().map(|(path, _)| *path).filter(untouched).cloned().collect();
            if !left.is_empty() {
                self.drop_some(&left).await?;
                let staged = self.kinds_staged().await?;
                for path in left.into_iter().filter(|path| staged.contains_key(path)) {
                    let outcome = unconfirmed("unstaging", &path);
                    failed.insert(path, outcome);
                }
            }
        }
        Ok(paths.iter().map(|path| failed.remove(path).unwrap_or(DONE)).collect())
    }

    /// Moves what is staged at the path of a committed table out of the way, and removes it there.
    async fn drop_by_moving(&self, at: &RepoPath, kind: ChangeKind, base: &CommitId) -> Result<(), WorkspaceError> {
        // Before anything is changed.
        if workspace_path(at).is_none() {
            return Err(WorkspaceError::Unsupported { what: ESCAPE });
        }
        if kind == ChangeKind::Removed {
            // What is removed cannot be moved; anything else than the base's content makes it a change.
            let size = match self.meta(&base.0, at).await?.map(|meta| meta.kind) {
                Some(EntryKind::File(object)) => object.size,
                _ => 0,
            };
            let filler: &[u8] = if size == 1 { b"--" } else { b"-" };
            match self.put_fillers(std::slice::from_ref(at), filler).await?.pop() {
                Some(Outcome::Done { .. }) => {}
                Some(Outcome::Failed(error)) => return Err(error),
                _ => return Err(WorkspaceError::Unconfirmed { what: at.to_string() }),
            }
            // It has marked the directories.
            self.unmark_above(std::slice::from_ref(at)).await?;
        }
        let aside = aside(&RepoPath::root())?;
        match self.patch(at, &aside).await {
            Ok(()) => {}
            // Nothing was moved, or by an attempt before; the listing tells.
            Err(WorkspaceError::Refused { .. } | WorkspaceError::Conflict { .. } | WorkspaceError::NotFound { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        match self.remove_files(&[aside]).await?.pop() {
            Some(Outcome::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// `DELETE` with a list of paths: the status, and the paths in the answer.
    pub(super) async fn delete(
        &self,
        route: &str,
        paths: &[RepoPath],
    ) -> Result<(StatusCode, HashSet<RepoPath>), WorkspaceError> {
        let patience = SILENCE + EACH_PATH * u32::try_from(paths.len()).unwrap_or(u32::MAX);
        let request = Request::new(Method::DELETE, self.url(route), self.what()).patience(patience).json(&paths)?;
        retry(Patience::Quick, || async {
            let answer = self.repo.http.send(&request).await?;
            let status = answer.status;
            let listed: wire::PathsAnswer = answer.json().await?;
            Ok((status, listed.paths.iter().filter_map(|path| wire::normalized(path)).collect()))
        })
        .await
    }

    pub(super) async fn move_file(&self, from: &RepoPath, to: &RepoPath) -> Result<(), WorkspaceError> {
        if to.as_str().contains('\\') {
            return Err(WorkspaceError::Unsupported { what: BACKSLASH });
        }
        if is_table(from) {
            // Where the base has it, the old path shows the base again instead of nothing (0.65.2, tried).
            return Err(WorkspaceError::Unsupported { what: "move a table" });
        }
        self.unmark_above(std::slice::from_ref(from)).await?;
        self.patch(from, to).await
    }

    /// Not repeated: after a lost answer the source is gone, which would look like a failure.
    pub(super) async fn patch(&self, from: &RepoPath, to: &RepoPath) -> Result<(), WorkspaceError> {
        let Some(at) = workspace_path(from) else {
            return Err(WorkspaceError::Unsupported { what: ESCAPE });
        };
        let request = Request::new(Method::PATCH, self.url(&format!("files/{at}")), from.to_string())
            .json(&wire::Rename { new_path: to.as_str() })?;
        self.repo.http.json::<wire::Anything>(&request).await.map(drop)
    }
}

fn unconfirmed(what: &str, path: &RepoPath) -> Outcome {
    Outcome::Failed(WorkspaceError::Unconfirmed { what: format!("the {what} of {path}") })
}

/// Each path with its outcome, which is the error where there are none.
fn each(
    paths: &[RepoPath],
    outcomes: Result<Vec<Outcome>, WorkspaceError>,
) -> impl Iterator<Item = (&RepoPath, Outcome)> {
    let outcomes = outcomes.unwrap_or_else(|error| paths.iter().map(|_| Outcome::Failed(error.clone())).collect());
    paths.iter().zip(outcomes)
}

/// A file that is gone when it is closed.
pub(super) fn nameless_file(content: &[u8]) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir())?;
    file.write_all_at(content, 0)?;
    Ok(file)
}
