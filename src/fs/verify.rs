//! The first mount after a repair. What was salvaged of the record may be older than what the server has: frames that
//! told of later stagings, renames and commits are among those that were lost. So nothing that it says of the server is
//! taken for granted: each path is looked at there.
//!
//! Where the record has nothing that the server lacks, what is on the server shows. Where it has bytes of its own, or would
//! replace what is staged there and nowhere else, the path is parked as a conflict: neither replaces the other before a
//! person says so. What it would remove of that kind shows again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::recovery::Listings;
use super::{Fs, FsError, State, now_secs};
use crate::hash::ContentHash;
use crate::namespace::{Body, Content, Inode, Resolved};
use crate::path::RepoPath;
use crate::store::journal::Change;
use crate::workspace::{Change as StagedChange, ChangeKind, Object, Revision, Source};
use crate::writeback::index::{Account, Staged};

/// A path that is parked, and why.
pub(super) type Conflict = (RepoPath, &'static str);

const CONFLICT: &str = "is on the server otherwise than the repaired record says";
const LAST: &str = "would replace what is staged there, which a repaired record knows under no other name";

impl Fs {
    /// Compares every path of a repaired record with the server, and brings the record up to what is found. Returns the
    /// paths that differ in bytes which are here alone.
    ///
    /// # Errors
    /// The server's, or the journal's: to be repeated.
    pub(super) async fn verify_repaired(&self) -> Result<Vec<Conflict>, FsError> {
        tracing::warn!("the record was repaired: every path in it is compared with the server");
        let commit = self.workspace.base().await?;
        let changes = self.workspace.changes().await?;
        let changes: HashMap<RepoPath, StagedChange> =
            changes.into_iter().map(|change| (change.path.clone(), change)).collect();
        let mut paths = self.lock().recorded_paths();
        for path in changes.keys() {
            paths.entry(path.clone()).or_default();
        }
        let mut listings = Listings::new(self, commit.clone());
        let mut found = Vec::with_capacity(paths.len());
        for (path, content) in paths {
            let base = listings.object(&path).await?;
            let staged = match changes.get(&path) {
                None => Staged::Nothing,
                Some(change) if change.kind == ChangeKind::Removed => Staged::Removed,
                Some(change) => self.staged_now(change).await?.map_or(Staged::Nothing, Staged::Put),
            };
            // Not under the lock: what was cached before the machine was started is read and hashed.
            let is_here = match content {
                Some(Content::Remote { hash, .. }) => staged == Staged::Nothing && self.is_cached(hash),
                Some(Content::Local { spool, .. }) => self.spool.path_of(spool).exists(),
                None => false,
            };
            found.push((path, Account { base, staged, ..Account::default() }, is_here));
        }
        let mut conflicts = Vec::new();
        super::staging::into_plain(self.change(|state| {
            if *state.tree.base() != commit {
                state.apply(Change::Base { commit: commit.clone() });
            }
            state.find_content(&found);
            let (as_known, otherwise): (Vec<_>, Vec<_>) =
                found.iter().partition(|(path, there, _)| state.is_as_known(path, *there));
            for (path, there, is_here) in otherwise {
                if !state.bring_up_to(path, *there, &self.options, *is_here) {
                    conflicts.push((path.clone(), CONFLICT));
                }
            }
            let named = state.named_content();
            for (path, there, _) in as_known {
                if !state.keep_last(path, *there, &self.options, &named) {
                    conflicts.push((path.clone(), LAST));
                }
            }
            Ok(())
        }))?;
        for (path, why) in &conflicts {
            tracing::warn!(%path, why, "to be decided by a person");
        }
        // As long as there are conflicts, the next mount looks again.
        if conflicts.is_empty() {
            self.journal.note_verified();
        }
        Ok(conflicts)
    }

    fn is_cached(&self, hash: ContentHash) -> bool {
        self.cache.file(hash).or_else(|| self.cache.check(hash)).is_some()
    }
}

impl State {
    /// The paths of all accounts, and of all files that are on record; with the content that these have.
    fn recorded_paths(&self) -> BTreeMap<RepoPath, Option<Content>> {
        let mut paths: BTreeMap<_, _> = self.writeback.ledger().iter().map(|(path, _)| (path.clone(), None)).collect();
        for (ino, inode) in self.tree.iter().filter(|(_, inode)| inode.recorded) {
            if let Body::File { content, .. } = &inode.body {
                paths.extend(self.tree.file_paths(ino).into_iter().map(|path| (path, Some(content.clone()))));
            }
        }
        paths
    }

    /// The content of the file at a path, if the tree has one there.
    fn content_at(&self, path: &RepoPath) -> Option<(Content, u64)> {
        match self.tree.resolve(path) {
            Resolved::Inode(ino) => self.content(ino).map(|(content, size)| (content.clone(), size)),
            Resolved::Absent | Resolved::AsBase => None,
        }
    }

    /// Whether the server shows at a path what the record says that it does.
    fn is_as_known(&self, path: &RepoPath, there: Account) -> bool {
        let known = match (self.writeback.account(path), self.content_at(path)) {
            (Some(account), _) => account.shown(),
            // Without an account a file is as the base has it, unless it came from elsewhere.
            (None, Some((Content::Remote { hash, origin: None }, size))) => Some(Some(Object { hash, size })),
            (None, Some(_)) => None,
            (None, None) => Some(None),
        };
        known.is_some_and(|known| is_same(known, there.shown().flatten()))
    }

    /// Brings the record up to what is on the server at a path where it knows otherwise; `false` where that differs from
    /// bytes which are here alone. `is_here`: the content that the record has there is on this disk.
    fn bring_up_to(&mut self, path: &RepoPath, there: Account, options: &super::Options, is_here: bool) -> bool {
        let shown = there.shown().flatten();
        let account = self.writeback.account(path);
        let may_go = match (self.content_at(path), self.tree.resolve(path)) {
            (Some((Content::Local { .. }, _)), _) => !is_here && shown.is_some(),
            (Some((Content::Remote { hash, .. }, _)), _) if shown.is_some_and(|shown| shown.hash == hash) => true,
            // Not staged any more, and what the base has there is not newer: the file is owed again.
            (Some(_), _)
                if there.staged == Staged::Nothing && account.is_some_and(|it| is_same(it.base, there.base)) =>
            {
                self.note_found(path, there);
                return true;
            }
            (Some((Content::Remote { origin, .. }, _)), _) => {
                let is_owed = account.map_or(origin.is_some(), |account| self.owes(path, &account));
                !is_owed && !is_here
            }
            (None, Resolved::Inode(_)) => shown.is_none(),
            (None, _) => true,
        };
        if may_go && self.take(path, there, options) {
            return true;
        }
        let staged = if there.staged == Staged::Nothing { Staged::Nothing } else { Staged::Doubt };
        let late = (staged == Staged::Doubt).then(now_secs);
        self.note_found(path, Account { staged, late, ..there });
        false
    }

    /// Keeps what is staged at a path, where the record is right about that and would replace or remove it, and no file of
    /// the tree has the same content: a frame that is lost may have renamed it. `false` where it would be replaced. So does a
    /// removal that is staged where the record has lost it.
    fn keep_last(
        &mut self,
        path: &RepoPath,
        there: Account,
        options: &super::Options,
        named: &HashSet<ContentHash>,
    ) -> bool {
        let Some(account) = self.writeback.account(path) else { return true };
        self.note_found(path, Account { late: account.late, ..there });
        let owes = self.owes(path, &account);
        let is_named = matches!(there.staged, Staged::Put(object) if named.contains(&object.hash));
        if owes && self.tree.resolve(path) == Resolved::AsBase {
            // The frame that hid what the base has there is lost. What such a path wants is fixed here: otherwise a
            // listing, which shows nothing at a path that has an account, would change it while it is staged.
            return match is_named {
                true => {
                    self.show(path, there.base, there.base.is_some(), options);
                    true
                }
                false => self.take(path, there, options),
            };
        }
        if !owes || is_named || !matches!(there.staged, Staged::Put(_)) {
            return true;
        }
        self.content_at(path).is_none() && self.take(path, there, options)
    }

    /// Shows what the server has; whether that worked. A directory stays, and what else is here alone.
    fn take(&mut self, path: &RepoPath, there: Account, options: &super::Options) -> bool {
        let shown = there.shown().flatten();
        if matches!(self.tree.resolve(path), Resolved::Inode(ino) if self.content(ino).is_none()) {
            if shown.is_none() {
                self.note_found(path, there);
            }
            return shown.is_none();
        }
        self.show(path, shown, there.base.is_some(), options);
        self.note_found(path, there);
        self.agrees(path, shown)
    }

    /// Has the files whose content is not where the record says it is on the server be read where it is staged. As any file
    /// that was renamed they are staged under their own names before what is staged there goes.
    fn find_content(&mut self, found: &[(RepoPath, Account, bool)]) {
        let mut staged: HashMap<ContentHash, &RepoPath> = HashMap::new();
        let mut shown: HashMap<&RepoPath, ContentHash> = HashMap::new();
        for (path, there, _) in found {
            if let Staged::Put(object) = there.staged {
                staged.insert(object.hash, path);
            }
            if let Some(object) = there.shown().flatten() {
                shown.insert(path, object.hash);
            }
        }
        let mut moved = Vec::new();
        for (ino, inode) in self.tree.iter().filter(|(_, inode)| inode.recorded) {
            let Body::File { content: Content::Remote { hash, .. }, size } = &inode.body else { continue };
            let Some(path) = staged.get(hash) else { continue };
            let is_there = self.source(ino).is_some_and(|source| shown.get(&source.path) == Some(hash));
            if !is_there && !self.tree.paths_of(ino).any(|own| own == **path) {
                let source = Source { revision: Revision::Workspace, path: (*path).clone() };
                moved.push((ino, Content::Remote { hash: *hash, origin: Some(Arc::new(source)) }, *size));
            }
        }
        for (ino, content, size) in moved {
            self.set_content(ino, content, size);
        }
    }

    /// The content that files of the tree have which the server has too.
    fn named_content(&self) -> HashSet<ContentHash> {
        let hash = |inode: &Inode| match &inode.body {
            Body::File { content: Content::Remote { hash, .. }, .. } if !inode.links.is_empty() => Some(*hash),
            _ => None,
        };
        self.tree.iter().filter_map(|(_, inode)| hash(inode)).collect()
    }

    /// Has a path's account say what was found.
    fn note_found(&mut self, path: &RepoPath, found: Account) {
        if self.writeback.account(path) != Some(found) {
            self.apply(Change::Account { path: path.clone(), account: Some(found) });
        }
    }
}

fn is_same(a: Option<Object>, b: Option<Object>) -> bool {
    a.map(|object| object.hash) == b.map(|object| object.hash)
}
