//! What is true between any two operations: docs/INVARIANTS.md has the list, with the reason for each. The reference
//! tests ask after every step, and a build with debug assertions asks itself every so many changes.

use super::{Fs, State};
use crate::namespace::{Content, Ino, Resolved};
use crate::path::RepoPath;
use crate::workspace::Object;
use crate::writeback::index::Step;

/// With debug assertions, everything is looked at after so many changes, or after as many as there are inodes and accounts,
/// whichever is more: a check takes no longer than the changes since the one before.
#[cfg(debug_assertions)]
const CHANGES_BETWEEN_CHECKS: usize = 1000;
/// Where there is more than this, nothing is: everybody would wait for it, for tens of milliseconds.
#[cfg(debug_assertions)]
const MOST_CHECKED: usize = 10_000;

/// What an operation of several changes leaves open between two of them: the second says that something is owed.
#[cfg(debug_assertions)]
const HOLDS_AT_THE_END: &str = "owed.pending: ";

impl Fs {
    /// Every invariant that does not hold: its name in docs/INVARIANTS.md, and where. Looks at everything that there is,
    /// under the lock: for tests.
    pub fn check(&self) -> Vec<String> {
        self.lock().broken()
    }
}

impl State {
    fn broken(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut broken = |name: &'static str, what: String| found.push(format!("{name}: {what}"));
        if self.is_changed() {
            broken("record.appended", format!("{} changes are not appended", self.draft.len()));
        }
        self.tree.check(&mut broken);
        self.writeback.check(&mut broken);
        self.handles.check(&self.tree, &mut broken);
        self.backing.check(&self.tree, &mut broken);
        self.check_standing(&mut broken);
        self.check_owed(&mut broken);
        self.check_ignored(&mut broken);
        found
    }

    /// To be called after each change.
    ///
    /// # Panics
    /// When something is not true that is true between any two.
    #[cfg(debug_assertions)]
    pub(super) fn check_now_and_then(&mut self) {
        self.unchecked += 1;
        let things = self.tree.len() + self.writeback.ledger().len();
        if things > MOST_CHECKED || self.unchecked < CHANGES_BETWEEN_CHECKS.max(things) {
            return;
        }
        self.unchecked = 0;
        let mut found = self.broken();
        found.retain(|what| !what.starts_with(HOLDS_AT_THE_END));
        let amid_a_panic = std::thread::panicking();
        assert!(amid_a_panic || found.is_empty(), "not as docs/INVARIANTS.md has it:\n{}", found.join("\n"));
    }

    /// Nothing that is owed is forgotten.
    fn check_owed(&self, broken: &mut impl FnMut(&'static str, String)) {
        for (path, account) in self.writeback.ledger().iter() {
            if !self.writeback.is_pending(path) && !self.is_held_back(path) {
                let wanted = match self.tree.resolve(path) {
                    Resolved::AsBase => continue,
                    Resolved::Absent => Wanted::Is(None),
                    Resolved::Inode(ino) => self.wanted(ino),
                };
                let settled = match wanted {
                    Wanted::Is(wanted) => account.step(wanted) == Step::Nothing,
                    Wanted::Unknown => false,
                };
                if !settled {
                    broken("owed.pending", format!("{path} is not pending; wanted {wanted:?}, {account:?}"));
                }
            }
        }
    }

    /// Whether a path's turn comes by itself later: at the close of a file, or at the end of a commit.
    pub(super) fn is_held_back(&self, path: &RepoPath) -> bool {
        let unclosed = matches!(self.tree.resolve(path),
            Resolved::Inode(ino) if self.handles.is_busy(ino) || self.backing.is_live(ino));
        unclosed || self.is_in_cut(path)
    }

    fn wanted(&self, ino: Ino) -> Wanted {
        match self.content(ino) {
            None => Wanted::Is(None),
            Some((Content::Remote { hash, .. }, size)) => Wanted::Is(Some(Object { hash: *hash, size })),
            Some((Content::Local { hash: Some(hash), .. }, size)) => Wanted::Is(Some(Object { hash: *hash, size })),
            Some((Content::Local { hash: None, .. }, _)) => Wanted::Unknown,
        }
    }
}

/// What is wanted at a path.
#[derive(Debug)]
enum Wanted {
    /// This, or no file.
    Is(Option<Object>),
    /// Bytes that nobody has hashed.
    Unknown,
}
