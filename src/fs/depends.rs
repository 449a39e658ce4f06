//! What a path that is due has to wait for, so that no bytes are lost that the workspace has at it alone, and no file is
//! put above or below another.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::staging::into_plain;
use super::{Fs, FsError, State};
use crate::namespace::{Content, Ino, Namespace, Resolved};
use crate::path::RepoPath;
use crate::workspace::Revision;
use crate::writeback::Depends;
use crate::writeback::index::Step;
use crate::writeback::queue::Pending;

/// Whether a file's bytes are read at `path` of the workspace.
fn is_read_at(tree: &Namespace, ino: Ino, path: &RepoPath) -> bool {
    tree.content(ino).is_some_and(|(content, _)| content.origin_in_workspace() == Some(path))
}

impl Fs {
    /// Gets a file's bytes into the spool, so that it needs those on the server no longer. What it is to be staged as does
    /// not change by that: a path of it that waits for a person or for a commit goes on waiting.
    ///
    /// # Errors
    /// When they cannot be downloaded or stored.
    pub async fn rescue(&self, ino: Ino) -> Result<(), FsError> {
        self.satisfy(super::Need::Own(ino)).await?;
        into_plain(self.change(|state| {
            for path in state.tree.file_paths(ino) {
                state.open_account(&path, Some(ino));
                if !state.writeback.pending(&path).is_some_and(Pending::is_parked) {
                    // Something is owed for it.
                    state.writeback.owe(&path, Duration::ZERO);
                }
            }
            Ok(())
        }))
    }

    /// Gets the bytes of these files into the spool, where they are not in some commit: before what is staged at these
    /// paths is staged no more.
    ///
    /// # Errors
    /// As [`rescue`](Self::rescue).
    pub async fn rescue_all(&self, paths: &[RepoPath]) -> Result<(), FsError> {
        for path in paths {
            let needed = {
                let state = self.lock();
                let committed = |content: &Content| matches!(content, Content::Remote { origin: Some(origin), .. } if origin.revision != Revision::Workspace);
                match state.tree.resolve(path) {
                    Resolved::Inode(ino) => {
                        state.content(ino).is_some_and(|(content, _)| !committed(content)).then_some(ino)
                    }
                    Resolved::Absent | Resolved::AsBase => None,
                }
            };
            if let Some(ino) = needed {
                self.rescue(ino).await?;
            }
        }
        Ok(())
    }
}

impl State {
    /// What a step of `path` [depends on](crate::writeback::Source::depends_on).
    pub(super) fn depends_on(&mut self, path: &RepoPath, step: Step, lost: &HashSet<Ino>) -> Depends {
        let tree = &self.tree;
        self.backing.keep_readers(path, |ino| is_read_at(tree, ino, path));
        // Of a file that was renamed away from there and is not staged under its new name yet.
        let stays = |ino: &Ino| match (step, self.content(*ino)) {
            (Step::Put(object), Some((Content::Remote { hash, .. }, _))) => *hash == object.hash,
            _ => false,
        };
        let needed: Vec<Ino> = self.backing.readers_at(path).filter(|ino| !stays(ino) && !lost.contains(ino)).collect();
        let stranded: Vec<Ino> =
            needed.iter().filter(|ino| !self.comes_free(**ino, &mut vec![path.clone()])).copied().collect();
        if !stranded.is_empty() {
            return Depends::Bytes(stranded);
        }
        if !needed.is_empty() {
            return Depends::Turns;
        }
        let other = matches!(step, Step::Put(_)).then(|| self.in_the_way(path)).flatten();
        match other {
            Some(other) => {
                let waits = self.writeback.pending(&other).is_some_and(Pending::waits_for_somebody);
                if waits { Depends::Somebody(other) } else { Depends::Turns }
            }
            None => Depends::Nothing,
        }
    }

    /// See [`crate::writeback::Source::hasten_before`]: those are the new names of files whose bytes the workspace has at `path` alone, and
    /// what it shows above or below.
    pub(super) fn hasten_before(&mut self, path: &RepoPath) -> bool {
        if !self.writeback.pending(path).is_some_and(|entry| entry.forced) {
            return false;
        }
        let pinned: Vec<Ino> = self.backing.readers_at(path).collect();
        let names = pinned.into_iter().filter(|ino| self.is_pinned(*ino, path)).flat_map(|ino| self.tree.paths_of(ino));
        let shows = |dir: &RepoPath| self.writeback.account(dir).is_some_and(|account| account.may_show());
        let above = std::iter::successors(path.parent(), RepoPath::parent).filter(shows);
        let below = self.writeback.ledger().shown_below(path).filter(|below| *below != path).cloned();
        let before: Vec<RepoPath> = names.chain(above).chain(below).filter(|before| before != path).collect();
        before.iter().filter(|before| self.writeback.hasten(before)).count() > 0
    }

    /// The [topmost directories](crate::writeback::Source::emptied_dirs) that are left empty.
    pub(super) fn emptied_dirs(&self, files: &HashSet<&RepoPath>) -> BTreeSet<RepoPath> {
        let mut dirs = BTreeSet::new();
        let mut known = HashMap::new();
        // Of each directory, whether the workspace will show nothing below it; asked once, not for every file in it.
        let mut clear: HashMap<RepoPath, bool> = HashMap::new();
        for file in files {
            let mut top = None;
            let above = std::iter::successors(file.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
            for dir in above {
                let is_clear = *clear.entry(dir.clone()).or_insert_with(|| {
                    // A commit removes what was vacant at its cut, whatever came into the tree since.
                    let vacant = match self.made_cut() {
                        Some(made) => made.is_vacant(&dir),
                        None => self.is_vacant(&dir, &mut known),
                    };
                    vacant && self.writeback.ledger().shown_below(&dir).all(|path| files.contains(path))
                });
                if !is_clear {
                    break;
                }
                top = Some(dir);
            }
            if let Some(dir) = top
                && self.writeback.ledger().based_below(&dir).next().is_some()
            {
                dirs.insert(dir);
            }
        }
        dirs
    }

    /// Whether a file's bytes are read at `path` of the workspace.
    fn is_pinned(&self, ino: Ino, path: &RepoPath) -> bool {
        is_read_at(&self.tree, ino, path)
    }

    /// Whether a file may be put at `path`: nothing above or below it is a file in the workspace's view, which takes
    /// both and keeps one of them.
    fn is_clear_for_put(&self, path: &RepoPath) -> bool {
        self.in_the_way(path).is_none()
    }

    /// The first that a file at `path` would be put above or below.
    fn in_the_way(&self, path: &RepoPath) -> Option<RepoPath> {
        let mut above = std::iter::successors(path.parent(), RepoPath::parent);
        let above = above.find(|dir| self.writeback.account(dir).is_some_and(|account| account.may_show()));
        above.or_else(|| self.writeback.ledger().shown_below(path).find(|below| *below != path).cloned())
    }

    /// Whether the queue will stage a pinned file under a name of its own, without waiting for one of `waiting`, for
    /// what stands in the way of that name, or for the end of a commit: it may be what the file is waited for with.
    fn comes_free(&self, ino: Ino, waiting: &mut Vec<RepoPath>) -> bool {
        const DEEPEST: usize = 64;
        self.tree.paths_of(ino).any(|path| {
            if waiting.contains(&path) || waiting.len() > DEEPEST {
                return false;
            }
            let has_its_turn = self.made_cut().is_none_or(|made| made.get(&path).is_some());
            let is_owed = self.writeback.pending(&path).is_some_and(|entry| !entry.is_parked());
            let coming = has_its_turn && is_owed && self.is_clear_for_put(&path);
            waiting.push(path.clone());
            let mut pinned =
                self.backing.readers_at(&path).filter(|other| *other != ino && self.is_pinned(*other, &path));
            coming && pinned.all(|other| self.comes_free(other, waiting))
        })
    }
}
