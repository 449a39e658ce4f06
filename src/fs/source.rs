//! What the engine of write-back asks of the filesystem: which paths are due and what they should be, and what became of
//! them.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::staging::into_plain;
use super::{Fs, FsError};
use crate::hash::ContentHash;
use crate::namespace::{Generation, Ino, SpoolId};
use crate::path::RepoPath;
use crate::store::journal::{Change, PathUpload};
use crate::workspace::{self, Object};
use crate::writeback::index::Step;
use crate::writeback::queue::{Parked, Pending, Phase};
use crate::writeback::{Asked, Back, Capture, Depends, Failed, Keeper, Source, SourceError};

impl From<FsError> for SourceError {
    fn from(error: FsError) -> Self {
        match error {
            FsError::Remote(error) => Self::Remote(error),
            error => Self::Local(error.to_string()),
        }
    }
}

/// What takes a while, as the engine is told of it.
fn asked<'a, T: Send + 'a>(answer: impl Future<Output = Result<T, FsError>> + Send + 'a) -> Asked<'a, T> {
    async move { Ok(answer.await?) }.boxed()
}

impl Keeper for Fs {
    fn let_go(&self, spool: SpoolId, by_cut: bool) {
        let unheld = self.begin().backing.let_go(spool, by_cut);
        if let Some(unheld) = &unheld {
            self.spool.release(unheld.counted);
        }
        self.unheld.notify_waiters();
        if unheld.is_some_and(|unheld| unheld.orphan) {
            self.leave(spool);
        }
    }
}

impl Source for Fs {
    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn tell_progress(&self) {
        self.progress.notify_waiters();
    }

    fn take_due(&self, limit: usize) -> (Vec<Capture>, Option<Instant>) {
        self.ask_after_closed();
        let paths = {
            let mut state = self.begin();
            state.writeback.take_due(Instant::now(), limit)
        };
        let mut captures: Vec<Capture> = paths.iter().filter_map(|path| self.capture(path)).collect();
        let mut state = self.begin();
        captures.append(&mut state.writeback.take_copied());
        let lingering = state.backing.next_question();
        let next = state.writeback.next_due();
        (captures, next.into_iter().chain(lingering).min())
    }

    fn attempts(&self, path: &RepoPath) -> u32 {
        self.lock().writeback.pending(path).map_or(0, Pending::attempts)
    }

    fn some_are_wanted_back(&self) -> bool {
        self.wanted_back.swap(false, Ordering::AcqRel)
    }

    fn set_phase(&self, path: &RepoPath, phase: Phase) {
        self.begin().writeback.set_phase(path, phase);
    }

    fn hashed(&self, ino: Ino, generation: Generation, found: ContentHash) {
        self.begin().tree.set_hash(ino, generation, Some(found));
    }

    fn knows_base_of(&self, path: &RepoPath) -> bool {
        Fs::knows_base_of(self, path)
    }

    fn learn_base_of<'a>(&'a self, path: &'a RepoPath) -> Asked<'a, ()> {
        asked(Fs::learn_base_of(self, path))
    }

    fn emptied_dirs(&self, files: &HashSet<&RepoPath>) -> BTreeSet<RepoPath> {
        self.lock().emptied_dirs(files)
    }

    fn depends_on(&self, path: &RepoPath, step: Step, lost: &HashSet<Ino>) -> Depends {
        self.begin().depends_on(path, step, lost)
    }

    fn hasten_before(&self, path: &RepoPath) -> bool {
        self.begin().hasten_before(path)
    }

    fn rescue(&self, ino: Ino) -> Asked<'_, ()> {
        asked(Fs::rescue(self, ino))
    }

    fn fetch(&self, object: Object, source: Option<workspace::Source>) -> Asked<'_, Arc<File>> {
        asked(self.fetch_checked(object.hash, object.size, source))
    }

    fn intend(&self, paths: &[&RepoPath], dirs: &BTreeSet<RepoPath>) -> Result<Vec<RepoPath>, SourceError> {
        Ok(Fs::intend(self, paths.iter().copied(), dirs.iter())?)
    }

    fn flush(&self) -> Asked<'_, ()> {
        asked(Fs::flush(self))
    }

    fn went_unanswered(&self, paths: &[&RepoPath]) -> Result<(), SourceError> {
        Ok(Fs::went_unanswered(self, paths.iter().copied())?)
    }

    fn was_answered(&self, dirs: &[RepoPath]) -> Result<(), SourceError> {
        Ok(Fs::was_answered(self, dirs)?)
    }

    fn checkpoint(&self, path: &RepoPath, upload: PathUpload) {
        let noted = self.change(|state| {
            state.apply(Change::Upload { path: path.clone(), upload: Some(upload) });
            Ok(())
        });
        if into_plain(noted).is_err() {
            tracing::warn!(%path, "upload progress is not on record; after a crash the upload begins anew");
        }
    }

    fn find_workspace(&self) -> Asked<'_, bool> {
        asked(Fs::find_workspace(self))
    }

    fn note_others_commit<'a>(&'a self, paths: &'a [RepoPath]) -> Asked<'a, bool> {
        asked(Fs::note_others_commit(self, paths))
    }

    fn confirm(&self, steps: &[(Capture, Step)]) -> Result<(), SourceError> {
        Ok(self.confirmed(steps)?)
    }

    fn fail(&self, capture: &Capture, error: &str, then: Failed) {
        let path = &capture.path;
        if self.has_changed_since(capture, error) {
            return;
        }
        match then {
            Failed::Again(delay) => self.failed(path, error, Some(delay)),
            Failed::Parked => self.failed(path, error, None),
            Failed::UntilCommit => {
                tracing::info!(%path, error, "not staged; it goes with the next commit");
                self.begin().writeback.park(path, error.to_owned(), Parked::Commit);
                self.progress.notify_waiters();
            }
            Failed::KeptOut => {
                tracing::debug!(%path, error, "not staged");
                self.begin().writeback.keep_out(path, error.to_owned());
                self.progress.notify_waiters();
            }
        }
    }

    fn put_back(&self, path: &RepoPath, back: Back) {
        let mut state = self.begin();
        match back {
            Back::After(delay) => state.writeback.retry(path, delay, None),
            Back::Alone => state.writeback.retry_alone(path),
        }
    }
}
