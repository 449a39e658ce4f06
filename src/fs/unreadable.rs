//! What the server has and programs cannot read, for `status`: what failed when somebody asked for it.

use std::collections::BTreeMap;

use super::{Fs, State};
use crate::control::Unreadable as Shown;
use crate::namespace::Resolved;
use crate::path::RepoPath;

/// How many are kept: of more, whoever reads the log is told.
const KEPT: usize = 100;

/// Paths that programs could not read, each with the reason, until it can be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    failed: BTreeMap<RepoPath, String>,
}

impl Unreadable {
    /// Somebody could not read it.
    pub fn note(&mut self, path: RepoPath, reason: String) {
        if self.failed.len() < KEPT || self.failed.contains_key(&path) {
            self.failed.insert(path, reason);
        }
    }

    /// Somebody could.
    pub fn forget(&mut self, path: &RepoPath) {
        self.failed.remove(path);
    }
}

impl Fs {
    /// What programs could not read of the server when they last tried, and why; at most a hundred paths.
    pub fn unreadable(&self) -> Vec<Shown> {
        let mut state = self.lock();
        let State { tree, unreadable, .. } = &mut *state;
        // What was removed meanwhile nobody misses.
        unreadable.failed.retain(|path, _| !matches!(tree.resolve(path), Resolved::Absent));
        let failed = unreadable.failed.iter().map(|(path, reason)| (path.as_str().to_owned(), reason.clone()));
        failed.map(|(path, reason)| Shown { path, reason }).collect()
    }
}
