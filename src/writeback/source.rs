//! What the engine knows of the filesystem: where its work comes from, and who is told what became of it.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::index::Step;
use super::item::Capture;
use super::queue::Phase;
use crate::hash::ContentHash;
use crate::namespace::{Generation, Ino};
use crate::path::RepoPath;
use crate::store::journal::PathUpload;
use crate::workspace::{self, Object, WorkspaceError};

/// Why a source could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The server or the way to it said no.
    #[error(transparent)]
    Remote(#[from] WorkspaceError),
    /// The local disk or the record said no, in these words.
    #[error("{0}")]
    Local(String),
}

impl SourceError {
    /// In words, without what differs each time: two that have the same are one and the same trouble.
    pub fn reason(&self) -> String {
        match self {
            Self::Remote(error) => error.reason(),
            Self::Local(why) => why.clone(),
        }
    }
}

/// What waits for the server or for the disk.
pub type Asked<'a, T> = BoxFuture<'a, Result<T, SourceError>>;

/// What has to be so before a step of a path is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Depends {
    /// Nothing: it may be taken.
    Nothing,
    /// Other paths of the queue have had their turn.
    Turns,
    /// The bytes of these files, which the workspace has at this path alone, are [here](Source::rescue): nothing else
    /// will free it.
    Bytes(Vec<Ino>),
    /// Somebody has acted about this path, which is in its way.
    Somebody(RepoPath),
}

/// What becomes of a path that could not be staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It is tried again after so long.
    Again(Duration),
    /// It waits until it changes, or somebody asks for it.
    Parked,
    /// It waits for a commit that makes way for it.
    UntilCommit,
    /// It waits for another path that waits for somebody, and is looked at again when anything has been staged.
    KeptOut,
}

/// When a path that is put back comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// After so long.
    After(Duration),
    /// Now, in a request of its own.
    Alone,
}

/// Who owes something to the server, for one [`Engine`](super::Engine).
///
/// A path that was taken is in the engine's hand until it is confirmed, has failed or is put back; each is done once, and
/// the path may be taken again from then on. What changes meanwhile is the source's to notice: an answer that is about an
/// older state of a path leaves the newer one owed.
///
/// Nothing that is no future waits for a request; the record is written by the time that [`intend`](Self::intend),
/// [`confirm`](Self::confirm), [`went_unanswered`](Self::went_unanswered) and [`was_answered`](Self::was_answered) return,
/// which `kill -9` does not undo, and [flushed](Self::flush) by nobody but who asks for it.
pub trait Source: Send + Sync + 'static {
    /// Told when something may be due that was not when it was last asked, or when a writer wants something back.
    fn wake(&self) -> &Notify;

    /// Those who wait for what is owed look again how far it is.
    fn tell_progress(&self);

    /// Up to `limit` due paths, oldest first, each with what it should be, and when the next one will be due. Those are
    /// in hand from now on, and their bytes, where they are here, are open and do not change.
    fn take_due(&self, limit: usize) -> (Vec<Capture>, Option<Instant>);

    /// How often staging a path has failed in a row.
    fn attempts(&self, path: &RepoPath) -> u32;

    /// Whether a writer has come to wait for something that is [held](super::Held), since this was last asked.
    fn some_are_wanted_back(&self) -> bool;

    /// Shows in which phase a path is.
    fn set_phase(&self, path: &RepoPath, phase: Phase);

    /// The hash of a file's bytes is this, if they are still of that generation.
    fn hashed(&self, ino: Ino, generation: Generation, found: ContentHash);

    /// Whether a capture of `path` tells for sure what the base has there: others' commit may have changed that.
    fn knows_base_of(&self, path: &RepoPath) -> bool;

    /// Asks the server, so that the next capture does.
    fn learn_base_of<'a>(&'a self, path: &'a RepoPath) -> Asked<'a, ()>;

    /// The topmost directories of the base that are left without anything once `files` are removed or unstaged: a server
    /// keeps them, empty, unless they are removed by name (0.65.2, tried). Nothing may be put below them meanwhile.
    fn emptied_dirs(&self, files: &HashSet<&RepoPath>) -> BTreeSet<RepoPath>;

    /// What `step` of `path` depends on: no bytes are lost that the workspace has there alone, but for those of files that
    /// are `lost` already; and no file is put above or below what the workspace shows as one, as it takes both and keeps
    /// one of them.
    fn depends_on(&self, path: &RepoPath, step: Step, lost: &HashSet<Ino>) -> Depends;

    /// Where somebody waits for `path`: what it cannot be staged before does not wait out its quiet period either. Says
    /// whether any of that comes sooner by it.
    fn hasten_before(&self, path: &RepoPath) -> bool;

    /// Gets a file's bytes from the workspace, so that it needs those there no longer.
    fn rescue(&self, ino: Ino) -> Asked<'_, ()>;

    /// Content that the server has, as a file here that was compared with its hash.
    fn fetch(&self, object: Object, source: Option<workspace::Source>) -> Asked<'_, Arc<File>>;

    /// Writes down, before a request is sent, that the server's state of these paths is unknown from now on, and that it
    /// may remove `dirs` at any later time, whatever is in them by then. Returns those of them that no request threatened
    /// before: to be told when this one was [answered](Self::was_answered).
    ///
    /// # Errors
    /// When it cannot be written: do not send.
    fn intend(&self, paths: &[&RepoPath], dirs: &BTreeSet<RepoPath>) -> Result<Vec<RepoPath>, SourceError>;

    /// Returns when what was written down before is on stable storage; many share one flush. A request waits for it: after
    /// a power loss, what a lost record does not explain would look like somebody else's change.
    fn flush(&self) -> Asked<'_, ()>;

    /// Writes down that a request about these paths was sent and went without an answer: it may be carried out yet.
    ///
    /// # Errors
    /// When it cannot be written; the paths are watched for as long as this daemon runs.
    fn went_unanswered(&self, paths: &[&RepoPath]) -> Result<(), SourceError>;

    /// The request that was to remove these directories is over, and not to be expected again.
    ///
    /// # Errors
    /// When it cannot be written; they are watched for longer than they need be.
    fn was_answered(&self, dirs: &[RepoPath]) -> Result<(), SourceError>;

    /// How far the upload of a path is, for a resume after a crash.
    fn checkpoint(&self, path: &RepoPath, upload: PathUpload);

    /// A request found something missing: looks whether it is the workspace, and makes it again if so. Then everything
    /// that was staged is owed again, and the answer is yes.
    fn find_workspace(&self) -> Asked<'_, bool>;

    /// What was staged for these paths was dropped. Where somebody else had committed it before, it shows now: it is owed
    /// over that commit, and the answer is yes.
    fn note_others_commit<'a>(&'a self, paths: &'a [RepoPath]) -> Asked<'a, bool>;

    /// The server confirmed these steps. Those whose path has not changed since are owed no more.
    ///
    /// # Errors
    /// When it cannot be written; the steps are repeated after the next mount, which does no harm.
    fn confirm(&self, steps: &[(Capture, Step)]) -> Result<(), SourceError>;

    /// A step of `capture` did not work, for this reason. A path that has changed since is looked at again instead: the
    /// failure tells nothing about what it is now.
    fn fail(&self, capture: &Capture, error: &str, then: Failed);

    /// Puts a path back, through no fault of its own.
    fn put_back(&self, path: &RepoPath, back: Back);
}
