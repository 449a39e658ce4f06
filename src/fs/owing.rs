//! What a change of the tree owes to the server.

use std::collections::HashMap;
use std::time::Duration;

use super::State;
use super::cut::Made;
use crate::namespace::{Content, Ino, Resolved};
use crate::path::RepoPath;
use crate::store::journal::Change;
use crate::workspace::Object;
use crate::writeback::index::Account;

impl State {
    /// Opens the account of a path that is about to differ from the base. What stands there now tells what the base
    /// has, since without an account tree and base agree.
    pub(super) fn open_account(&mut self, path: &RepoPath, stands: Option<Ino>) {
        if self.writeback.account(path).is_some() {
            return;
        }
        let base = stands.and_then(|ino| match self.content(ino)? {
            (Content::Remote { hash, .. }, size) => Some(Object { hash: *hash, size }),
            (Content::Local { .. }, _) => None,
        });
        self.apply(Change::Account { path: path.clone(), account: Some(Account { base, ..Account::default() }) });
    }

    /// Puts paths in the queue, or closes the accounts of those where nothing is or was owed.
    pub(super) fn touch<'a>(&mut self, paths: impl IntoIterator<Item = &'a RepoPath>, settle: Duration) {
        // Nothing of the tree changes in between.
        let mut vacant = HashMap::new();
        for path in paths {
            if self.writeback.account(path) == Some(Account::default())
                && !matches!(self.tree.resolve(path), Resolved::Inode(ino) if self.content(ino).is_some())
                && !self.writeback.queue().is_active(path)
                && !self.is_in_cut(path)
                && !self.kept_base_dir(path, &mut vacant)
            {
                self.writeback.owe_no_more(path);
                self.apply(Change::Account { path: path.clone(), account: None });
            } else {
                self.writeback.owe(path, settle);
            }
        }
    }

    /// Whether the file that was at `path` was the last thing that kept a directory of the base from being removed.
    /// `known` is [`is_vacant`](Self::is_vacant)'s.
    fn kept_base_dir(&self, path: &RepoPath, known: &mut HashMap<Ino, bool>) -> bool {
        let above = || std::iter::successors(path.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
        // What is based in a directory is in all above it, and what travels from it too: the lowest decides.
        let based = above().position(|dir| self.writeback.ledger().based_below(&dir).next().is_some());
        based.is_some_and(|lowest| above().take(lowest + 1).all(|dir| self.is_vacant(&dir, known)))
    }

    /// Whether nothing at or below a directory's path is to travel.
    pub(super) fn is_vacant(&self, dir: &RepoPath, known: &mut HashMap<Ino, bool>) -> bool {
        match self.tree.resolve(dir) {
            Resolved::Absent => true,
            Resolved::Inode(ino) => self.tree.is_vacant(ino, known),
            Resolved::AsBase => false,
        }
    }

    /// Puts every path of a file in the queue.
    pub(super) fn touch_file(&mut self, ino: Ino, settle: Duration) {
        let is_file = self.content(ino).is_some();
        for path in self.tree.file_paths(ino) {
            self.open_account(&path, Some(ino));
            match is_file {
                // Something is owed for it.
                true => self.writeback.owe(&path, settle),
                false => self.touch([&path], settle),
            }
        }
    }
}

impl State {
    /// Whether the cut of a commit holds something for a path that is not staged yet.
    pub(super) fn is_in_cut(&self, path: &RepoPath) -> bool {
        self.writeback.made().is_some_and(|made| made.get(path).is_some())
    }
}

impl State {
    /// The cut, once it is made.
    pub(super) fn made_cut(&self) -> Option<&Made> {
        self.writeback.made()
    }
}
