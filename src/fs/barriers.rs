//! Barriers: somebody waits for what is pending.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Fs, FsError, State};
use crate::namespace::{Body, Namespace, Resolved};
use crate::path::RepoPath;
use crate::report::Progress;
use crate::writeback::queue::Scope;

/// A barrier: the paths that somebody waits for.
pub struct Waiting {
    fs: Arc<Fs>,
    id: std::num::NonZeroU32,
}

impl Waiting {
    /// How far it is, and whether nothing is left to wait for.
    pub fn progress(&self) -> (Progress, bool) {
        self.fs.lock().writeback.queue().barrier_progress(self.id)
    }

    /// Completes when nothing is left to wait for.
    pub async fn reached(&self) -> Progress {
        loop {
            let moved = self.fs.progress.notified();
            let (progress, reached) = self.progress();
            if reached {
                return progress;
            }
            moved.await;
        }
    }

    /// Completes when nothing is left to wait for, and the record of it is on stable storage: after a power loss an
    /// older one would send older bytes over what was staged.
    ///
    /// # Errors
    /// The journal's.
    pub async fn settled(&self) -> Result<Progress, FsError> {
        let progress = self.reached().await;
        self.fs.flush().await?;
        Ok(progress)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.fs.begin().writeback.drop_barrier(self.id);
    }
}

/// The length of the file at a path, in bytes.
pub(super) fn length_at(tree: &Namespace, path: &RepoPath) -> u64 {
    match tree.resolve(path) {
        Resolved::Inode(ino) => match tree.get(ino).map(|inode| &inode.body) {
            Some(Body::File { size, .. }) => *size,
            _ => 0,
        },
        _ => 0,
    }
}

impl Fs {
    /// Makes everything that is pending due now, and lets the caller wait for it.
    pub fn barrier(&self) -> Option<Waiting> {
        self.barrier_below(HashSet::from([RepoPath::root()]))
    }

    /// Makes every pending path of `dirs` and below due now, and lets the caller wait for them, under their new names
    /// where they are renamed meanwhile.
    pub fn barrier_below(&self, dirs: HashSet<RepoPath>) -> Option<Waiting> {
        self.barrier_among(|state| {
            let chosen = |path: &RepoPath| path.is_in_any(&dirs);
            state.stir(&chosen, self);
            let pending = state.writeback.queue().iter().map(|(path, _)| path);
            let pending = pending.filter(|path| chosen(path)).cloned().collect();
            (pending, Scope::Below(dirs))
        })
    }

    /// Makes those of `paths` that are pending due now, and lets the caller wait for them, under their new names where
    /// they are renamed meanwhile. Takes no longer when many others are pending.
    pub fn barrier_on(&self, paths: Vec<RepoPath>) -> Option<Waiting> {
        self.barrier_among(|state| {
            state.stir_at(&paths, self);
            (paths, Scope::Waited)
        })
    }

    fn barrier_among(&self, paths: impl FnOnce(&mut State) -> (Vec<RepoPath>, Scope)) -> Option<Waiting> {
        let fs = self.this.upgrade()?;
        let waiting = {
            let mut state = self.begin();
            let (paths, scope) = paths(&mut state);
            state.barrier(fs, &paths, scope)
        };
        self.wake.notify_one();
        Some(waiting)
    }
}

impl State {
    /// Makes those of `paths` that are pending due now, and lets the caller wait for them.
    pub(super) fn barrier(&mut self, fs: Arc<Fs>, paths: &[RepoPath], scope: Scope) -> Waiting {
        let tree = &self.tree;
        let first_new = tree.next_ino();
        let id = self.writeback.barrier(paths, scope, first_new, |path| length_at(tree, path));
        Waiting { fs, id }
    }
}
