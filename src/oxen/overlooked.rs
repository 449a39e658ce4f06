//! Content that a server takes for the base's, answers 200 to, and does not stage.
//!
//! Released servers compare what is to be staged with the base's file by length and by the times at which the two were
//! stored, and read neither where both agree: whatever was staged there before stays (0.53.4 and 0.65.2, read:
//! `is_modified_from_node`; 0.65.2, tried: of 400 files of one length that exchanged their contents 2 kept their old
//! ones). Two cases are known. Contents that were stored together have the same time, to the nanosecond or to the 4 ms
//! of a kernel's clock. And a server tries once for each repository how exact its disk's times are; two requests that
//! do so at the same time disturb each other, and from then on times within two seconds are the same.
//!
//! So where the base has other content of the same length, nothing is left staged before, and the server is asked
//! afterwards whether something is. What it overlooked is sent in chunks: assembling them stores the content anew, with
//! a time of its own. That time may be within the two seconds still; the caller's next attempt is later.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, StreamExt};

use super::OxenWorkspace;
use super::dialect::LargeRoute;
use super::staging::{QUESTIONS, Unwatched, again};
use crate::path::RepoPath;
use crate::workspace::{ChangeKind, Outcome, Over, Put, Upload, UploadProgress, WorkspaceError};

/// How many paths are looked up in a listing of all changes, rather than asked for one by one; and how many entries of a
/// listing take as long as a question (0.65.2, tried: 2,000 entries 0.11 s, a question 4 ms).
const LEAST_LISTED: usize = 16;
const LISTED_PER_QUESTION: usize = 50;

impl OxenWorkspace {
    pub(super) async fn stage_known(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        self.uncover(puts).await?;
        let mut outcomes = self.stage_hashes(puts).await?;
        for at in self.check(puts, &mut outcomes).await {
            outcomes[at] = Outcome::NeedsBytes;
        }
        Ok(outcomes)
    }

    pub(super) async fn send_files(&self, puts: &[Put]) -> Result<Vec<Outcome>, WorkspaceError> {
        self.uncover(puts).await?;
        let mut outcomes = self.send_batch(puts).await?;
        for at in self.check(puts, &mut outcomes).await {
            outcomes[at] = self.send_anew(&puts[at], &Unwatched).await.unwrap_or_else(Outcome::Failed);
        }
        Ok(outcomes)
    }

    pub(super) async fn send_file(
        &self,
        put: &Put,
        resume: Option<Upload>,
        progress: &dyn UploadProgress,
    ) -> Result<Outcome, WorkspaceError> {
        let puts = std::slice::from_ref(put);
        self.uncover(puts).await?;
        let mut outcome = [self.send_one(put, resume, progress).await?];
        let overlooked = self.check(puts, &mut outcome).await;
        let [outcome] = outcome;
        match put.file {
            _ if overlooked.is_empty() => Ok(outcome),
            None => Ok(Outcome::NeedsBytes),
            Some(_) => self.send_anew(put, progress).await,
        }
    }

    /// Unstages what would stand if content were overlooked: another content of this length, or a removal.
    async fn uncover(&self, puts: &[Put]) -> Result<(), WorkspaceError> {
        let covered = puts.iter().filter(|put| put.over == Over::SameLength { staged: true });
        let covered: Vec<RepoPath> = covered.map(|put| put.path.clone()).collect();
        if covered.is_empty() {
            return Ok(());
        }
        for outcome in self.drop_changes(&covered).await? {
            if let Outcome::Failed(error) = outcome {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Which of these were overlooked. Where that cannot be told, the outcome is the error.
    async fn check(&self, puts: &[Put], outcomes: &mut [Outcome]) -> Vec<usize> {
        let doubtful = puts.iter().zip(&*outcomes).enumerate().filter(|(_, (put, outcome))| {
            matches!(put.over, Over::SameLength { .. }) && matches!(outcome, Outcome::Done { .. })
        });
        let (places, paths): (Vec<usize>, Vec<&RepoPath>) = doubtful.map(|(at, (put, _))| (at, &put.path)).unzip();
        let answers = self.have_staged(&paths).await;
        let mut overlooked = Vec::new();
        for ((at, path), answer) in places.into_iter().zip(paths).zip(answers) {
            match answer {
                Ok(true) => {}
                Ok(false) => {
                    tracing::debug!(%path, "the server took it for what the base has; it is sent anew");
                    overlooked.push(at);
                }
                Err(error) => outcomes[at] = Outcome::Failed(again(&error)),
            }
        }
        overlooked
    }

    /// For each path whether content is staged there: by one listing of all changes, or by a question for each path,
    /// whichever is likely to be cheaper.
    async fn have_staged(&self, paths: &[&RepoPath]) -> Vec<Result<bool, WorkspaceError>> {
        let listed = self.listed_changes.load(Ordering::Relaxed);
        if paths.len() < LEAST_LISTED || listed > paths.len().saturating_mul(LISTED_PER_QUESTION) {
            let questions: Vec<_> = paths.iter().map(|path| self.has_staged(path)).collect();
            return stream::iter(questions).buffered(QUESTIONS).collect().await;
        }
        match self.staged_changes().await {
            Ok(changes) => {
                self.listed_changes.store(changes.len(), Ordering::Relaxed);
                let staged = changes.iter().filter(|change| change.kind != ChangeKind::Removed);
                let staged: HashSet<&RepoPath> = staged.map(|change| &change.path).collect();
                paths.iter().map(|path| Ok(staged.contains(path))).collect()
            }
            Err(error) => paths.iter().map(|_| Err(again(&error))).collect(),
        }
    }

    async fn has_staged(&self, path: &RepoPath) -> Result<bool, WorkspaceError> {
        Ok(self.meta(&self.id, path).await?.is_some_and(|meta| meta.put))
    }

    /// Has the content stored anew, which stages it.
    async fn send_anew(&self, put: &Put, progress: &dyn UploadProgress) -> Result<Outcome, WorkspaceError> {
        let unconfirmed = || Outcome::Failed(WorkspaceError::Unconfirmed { what: put.path.to_string() });
        if put.file.is_none() {
            return Ok(Outcome::NeedsBytes);
        }
        if self.dialect.large == LargeRoute::Multipart {
            return Ok(unconfirmed());
        }
        let sent_bytes = match self.send_chunks(put, None, progress).await {
            Ok(sent_bytes) => sent_bytes,
            Err(error @ (WorkspaceError::Io(_) | WorkspaceError::Refused { .. })) => return Ok(Outcome::Failed(error)),
            Err(error) => return Err(error),
        };
        Ok(if self.has_staged(&put.path).await? { Outcome::Done { sent_bytes } } else { unconfirmed() })
    }
}
