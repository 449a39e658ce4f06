//! What the server has and programs cannot read, for `status`: what failed when somebody asked for it, and entries of
//! listings that cannot be used.

use std::collections::{BTreeMap, HashMap};

use super::layers::shown;
use super::{Fs, State};
use crate::namespace::{Body, Content, Ino, Resolved};
use crate::path::{Name, RepoPath};
use crate::report::Unreadable as Shown;
use crate::workspace::Flawed;

/// How many of each kind are shown, and how many that failed are kept: of more, whoever reads the log is told.
const SHOWN: usize = 100;

/// Paths that programs could not read, each with the reason, until it can be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    failed: BTreeMap<RepoPath, String>,
    /// By directory; none that has none.
    flawed: HashMap<Ino, InDir>,
}

/// The flawed entries of a directory.
#[derive(Debug, Default)]
struct InDir {
    path: RepoPath,
    /// Nobody makes anything else under these names.
    named: BTreeMap<Name, String>,
    /// Those with a name that no file can have, or none.
    others: Vec<(String, String)>,
}

impl Unreadable {
    /// Somebody could not read it.
    pub fn note(&mut self, path: RepoPath, reason: String) {
        if self.failed.len() < SHOWN || self.failed.contains_key(&path) {
            self.failed.insert(path, reason);
        }
    }

    /// Somebody could.
    pub fn forget(&mut self, path: &RepoPath) {
        self.failed.remove(path);
    }

    /// The flawed entries of a directory that was listed.
    pub fn note_flawed(&mut self, dir: Ino, path: &RepoPath, flawed: Vec<Flawed>) {
        self.flawed.remove(&dir);
        let mut here = InDir { path: path.clone(), ..InDir::default() };
        for Flawed { name, why } in flawed {
            match name.as_deref().and_then(shown) {
                Some(name) => _ = here.named.insert(name, why),
                None if here.others.len() < SHOWN => here.others.push((name.unwrap_or_default(), why)),
                None => {}
            }
        }
        if !(here.named.is_empty() && here.others.is_empty()) {
            self.flawed.insert(dir, here);
        }
    }

    /// What is wrong with an entry that the server lists; `None` where it lists none, or nothing is.
    pub fn why(&self, dir: Ino, name: &Name) -> Option<&str> {
        // Almost always there are none at all.
        self.flawed.get(&dir)?.named.get(name).map(String::as_str)
    }

    /// Whether the server lists entries of a directory that cannot be used.
    pub fn is_flawed(&self, dir: Ino) -> bool {
        self.flawed.contains_key(&dir)
    }

    /// Whether a directory has entries with a name that cannot be used.
    pub fn has_flawed(&self, dir: Ino) -> bool {
        self.flawed.get(&dir).is_some_and(|here| !here.named.is_empty())
    }
}

impl Fs {
    /// What the server has and programs cannot read, and why: entries of listed directories, and what somebody asked for
    /// in vain the last time; at most a hundred of each.
    pub fn unreadable(&self) -> Vec<Shown> {
        let here = self.here_again();
        let mut state = self.begin();
        here.iter().for_each(|path| state.unreadable.forget(path));
        let State { tree, unreadable, .. } = &mut *state;
        // What was removed meanwhile nobody misses.
        unreadable.failed.retain(|path, _| !matches!(tree.resolve(path), Resolved::Absent));
        unreadable.flawed.retain(|dir, _| tree.dir(*dir).is_some());
        let failed = unreadable.failed.iter().map(|(path, reason)| (path.as_str().to_owned(), reason.clone()));
        let flawed = unreadable.flawed.values().flat_map(|here| {
            let below = |name: &str| match here.path.is_root() {
                true => name.to_owned(),
                false => format!("{}/{name}", here.path),
            };
            let named =
                here.named.iter().map(move |(name, why)| (below(&String::from_utf8_lossy(name.as_bytes())), why));
            named.chain(here.others.iter().map(move |(name, why)| (below(name), why)))
        });
        let flawed = flawed.take(SHOWN).map(|(path, why)| (path, why.clone()));
        let mut shown: Vec<_> = failed.chain(flawed).map(|(path, reason)| Shown { path, reason }).collect();
        shown.sort_by(|one, other| one.path.cmp(&other.path));
        shown
    }

    /// What could not be read and is here by now: it came ahead of a program, or for another one, and is read without a
    /// question.
    fn here_again(&self) -> Vec<RepoPath> {
        let (mut here, mut files) = (Vec::new(), Vec::new());
        {
            let state = self.lock();
            for path in state.unreadable.failed.keys() {
                let Resolved::Inode(ino) = state.tree.resolve(path) else { continue };
                match state.tree.get(ino).map(|inode| &inode.body) {
                    Some(Body::Dir(dir)) if dir.listed => here.push(path.clone()),
                    Some(Body::File { content: Content::Remote { hash, .. }, .. }) => files.push((path.clone(), *hash)),
                    _ => {}
                }
            }
        }
        let held = files.into_iter().filter(|(_, hash)| self.cache.holds(*hash));
        here.extend(held.map(|(path, _)| path));
        here
    }
}
