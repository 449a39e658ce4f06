//! What is true between any two operations: docs/INVARIANTS.md has the list, with the reason for each. The reference
//! tests ask after every step.

use super::{Fs, State};
use crate::ledger::Step;
use crate::namespace::{Content, Ino, Resolved};
use crate::path::RepoPath;
use crate::workspace::Object;

impl Fs {
    /// Every invariant that does not hold: its name in docs/INVARIANTS.md, and where. Looks at everything that there is,
    /// under the lock: for tests.
    pub fn check(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut broken = |name: &'static str, what: String| found.push(format!("{name}: {what}"));
        let state = self.lock();
        if state.is_changed() {
            broken("record.appended", format!("{} changes are not appended", state.draft.len()));
        }
        state.tree.check(&mut broken);
        state.writeback.check(&mut broken);
        state.handles.check(&state.tree, &mut broken);
        state.backing.check(&state.tree, &mut broken);
        state.check_standing(&mut broken);
        state.check_owed(&mut broken);
        found
    }
}

impl State {
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
    fn is_held_back(&self, path: &RepoPath) -> bool {
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
