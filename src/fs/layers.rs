//! How the base shows through: taking in its listings, and moving to a new base.

use std::collections::HashMap;

use super::{Fs, State, base_attrs, unlisted_dir};
use crate::namespace::{Body, Content, Ino, Resolved, Timestamp};
use crate::path::{Name, RepoPath};
use crate::store::journal::Change;
use crate::workspace::{CommitId, Entry, EntryKind, Flawed, Listing, Object};
use crate::writeback::index::{Account, Conflict, Staged, Theirs};

impl Fs {
    /// Takes in the base's entries of a directory, unless the base or the directory moved meanwhile.
    pub(super) fn absorb(&self, dir: Ino, base: &CommitId, path: &RepoPath, listing: Listing) {
        self.eviction.note_listed();
        let absorbed = self.change(|state| {
            let here = state.tree.dir(dir);
            if here.is_none_or(|here| here.listed)
                || state.tree.base() != base
                || state.tree.dir_path(dir).ok().as_ref() != Some(path)
            {
                return Ok(());
            }
            let mut seen = std::collections::HashSet::new();
            let Listing { entries, mut flawed } = listing;
            for entry in entries {
                let Some(name) = shown(&entry.name) else {
                    let why = "the server lists a name that no file can have here".into();
                    flawed.push(Flawed { name: Some(entry.name), why });
                    continue;
                };
                if !seen.insert(name.clone()) {
                    continue;
                }
                state.absorb_entry(dir, name, &entry, &self.options);
            }
            // What it was before, it may be still.
            let names = flawed.iter().filter_map(|one| shown(one.name.as_deref()?));
            seen.extend(names);
            state.unreadable.note_flawed(dir, path, flawed);
            state.note_vanished(dir, &seen);
            state.drop_vanished(dir, &seen);
            // The first listing is what the kernel waits for.
            if state.tree.dir(dir).is_some_and(|dir| dir.view.read.is_some()) {
                state.shift(dir);
            }
            state.tree.set_listed(dir);
            Ok(())
        });
        if let Err(stop) = absorbed {
            tracing::error!(?stop, "a listing could not be put on record");
        }
    }
}

/// A name of the server's that can be shown.
pub(super) fn shown(name: &str) -> Option<Name> {
    Name::new(name.as_bytes()).ok().filter(|name| name.storable().is_ok())
}

impl State {
    fn absorb_entry(&mut self, dir: Ino, name: Name, entry: &Entry, options: &super::Options) {
        let Ok(path) = self.tree.path_at(dir, &name) else {
            return;
        };
        let object = match entry.kind {
            EntryKind::File(object) => Some(object),
            EntryKind::Dir => None,
        };
        if self.tree.is_ignored(dir, &name) {
            // What the base has is not ignored: it was added on both sides.
            if let Some(object) = object {
                let account = Account { base: Some(object), ..self.writeback.account(&path).unwrap_or_default() };
                self.apply(Change::Account { path: path.clone(), account: Some(account) });
                let (commit, theirs) = (self.tree.base().clone(), Theirs::File(object));
                self.hold_conflict(&path, Conflict { base: None, commit, theirs });
            }
            return;
        }
        let child = self.tree.child(dir, &name);
        let hidden = self.tree.dir(dir).is_some_and(|dir| dir.hidden.contains(&name));
        if let Some(account) = self.writeback.account(&path) {
            // What is neither here nor removed here is wanted as the base has it, though a request about it may be due.
            let changed_here = (child.is_some() || hidden) && self.is_at_work(&path, &account);
            // The listing says what it differs from, or will.
            if account.base != object {
                self.apply(Change::Account { path, account: Some(Account { base: object, ..account }) });
            }
            if changed_here {
                return;
            }
        }
        if let Some(child) = child {
            // Unchanged here since an earlier base.
            self.bring_up(dir, &name, child, entry, None, options);
            return;
        }
        if hidden {
            return;
        }
        let body = match object {
            Some(object) => {
                Body::File { content: Content::Remote { hash: object.hash, origin: None }, size: object.size }
            }
            None => unlisted_dir(),
        };
        let attrs = base_attrs(options, object.is_none(), Timestamp(entry.modified_secs, 0));
        self.tree.show(dir, name, attrs, body);
    }

    /// The content that a file has at the server is of another length than it was listed with. Whether it is the file's
    /// still, and was not known to be so long.
    pub(super) fn correct_size(&mut self, ino: Ino, object: Object) -> bool {
        let Some((Content::Remote { hash, origin }, size)) = self.content(ino) else { return false };
        if *hash != object.hash || size == object.size {
            return false;
        }
        let content = Content::Remote { hash: *hash, origin: origin.clone() };
        self.note_content(ino, &content);
        if let Some(inode) = self.tree.amend(ino) {
            inode.body = Body::File { content, size: object.size };
        }
        self.kernel.content_changed(ino);
        true
    }

    /// Takes away what an earlier base had and this one has not, where nothing was changed here.
    fn drop_vanished(&mut self, dir: Ino, seen: &std::collections::HashSet<Name>) {
        let Some(here) = self.tree.dir(dir) else { return };
        let gone: Vec<(Name, Ino)> = here
            .children
            .iter()
            .filter(|(name, _)| !seen.contains(*name))
            .filter(|(name, ino)| match self.tree.get(**ino).map(|inode| &inode.body) {
                Some(Body::File { content: Content::Remote { .. }, .. }) => {
                    self.tree.path_in(dir, name).is_ok_and(|path| {
                        self.writeback.account(&path).is_none_or(|account| !self.is_at_work(&path, &account))
                    })
                }
                Some(Body::Dir(below)) => {
                    below.children.is_empty() && !self.tree.get(**ino).is_some_and(|i| i.recorded)
                }
                _ => false,
            })
            .map(|(name, ino)| (name.clone(), *ino))
            .collect();
        for (name, ino) in gone {
            self.kernel.name_changed(dir, name.clone());
            if self.tree.get(ino).is_some_and(|inode| inode.recorded) {
                self.apply(Change::Unlink { parent: dir, name, hide: false });
            } else {
                self.tree.take_away(dir, &name, false);
            }
            self.bury(ino);
        }
    }

    /// What an earlier base had in a directory and this one has not is not what changes differ from.
    fn note_vanished(&mut self, dir: Ino, seen: &std::collections::HashSet<Name>) {
        let Some(here) = self.tree.dir(dir) else { return };
        let names = here.children.keys().chain(&here.hidden);
        let vanished = names.filter(|name| !seen.contains(*name)).filter_map(|name| {
            let path = self.tree.path_in(dir, name).ok()?;
            let account = self.writeback.account(&path).filter(|account| account.base.is_some())?;
            Some((path, account))
        });
        for (path, account) in vanished.collect::<Vec<_>>() {
            self.apply(Change::Account { path, account: Some(Account { base: None, ..account }) });
        }
    }

    /// The directory around `path`, if it is there and not listed.
    pub(super) fn unlisted_around(&self, path: &RepoPath) -> Option<Ino> {
        match self.tree.resolve(&path.parent()?) {
            Resolved::Inode(dir) => self.tree.dir(dir).is_some_and(|dir| !dir.listed).then_some(dir),
            Resolved::Absent | Resolved::AsBase => None,
        }
    }

    /// The lowest directory around a removed file that is there and not listed, if nothing that travels is known to be below:
    /// the file may have been the last that kept it. `known` is [`Namespace::is_vacant`](crate::namespace::Namespace::is_vacant)'s.
    pub(super) fn unlisted_above(&self, removed: &RepoPath, known: &mut HashMap<Ino, bool>) -> Option<Ino> {
        let above = std::iter::successors(removed.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
        for dir in above {
            match self.tree.resolve(&dir) {
                Resolved::Inode(ino) if self.tree.dir(ino).is_some_and(|dir| !dir.listed) => return Some(ino),
                Resolved::Inode(ino) if self.tree.is_vacant(ino, known) => {}
                Resolved::Absent => {}
                Resolved::Inode(_) | Resolved::AsBase => return None,
            }
        }
        None
    }

    /// Whether a path with an account is more than watched: changed here, staged or owed.
    fn is_at_work(&self, path: &RepoPath, account: &Account) -> bool {
        account.late.is_none() || account.staged != Staged::Nothing || self.writeback.is_pending(path)
    }

    /// What was staged has become `commit`, which is the base from now on. Unless it did so `alone`, the base may have
    /// changed elsewhere too.
    pub(super) fn rebase(&mut self, commit: &CommitId, alone: bool) {
        self.writeback.rebase();
        let accounts: Vec<(RepoPath, Account)> =
            self.writeback.ledger().iter().map(|(path, account)| (path.clone(), account)).collect();
        // As long as what is hidden tells: of a directory that is not listed nothing else does.
        let changed = |(path, account): &&(RepoPath, Account)| {
            account.base.is_some() && self.tree.resolve(path) != Resolved::AsBase
        };
        let changed: Vec<RepoPath> = accounts.iter().filter(changed).map(|(path, _)| path.clone()).collect();
        self.tree.rebase(commit, alone);
        changed.iter().for_each(|path| self.tree.hide(path));
        for (path, account) in accounts {
            if account.is_settled() && self.agrees(&path, account.base) {
                self.is_of_base(&path);
                if !self.writeback.is_pending(&path) {
                    self.writeback.set_account(path, None);
                }
            }
        }
    }

    /// The base has a file's content at its path, so it need not be known where else it is read.
    fn is_of_base(&mut self, path: &RepoPath) {
        if let Resolved::Inode(ino) = self.tree.resolve(path)
            && let Some(inode) = self.tree.get(ino)
            // Another name of it may have something else in the base.
            && inode.links.len() == 1
            && matches!(&inode.body, Body::File { content: Content::Remote { origin: Some(_), .. }, .. })
            && let Some(inode) = self.tree.amend(ino)
            && let Body::File { content: Content::Remote { origin, .. }, .. } = &mut inode.body
        {
            *origin = None;
        }
    }

    /// Puts the accounts on record that a rebase keeps because their paths are pending: a replay knows no queue and no
    /// listing, and closes them, also where a name is gone that the new base has. Without its account, what such a path
    /// differs from would be forgotten.
    pub(super) fn record_pending_accounts(&mut self) {
        let pending = self.writeback.queue().iter().filter_map(|(path, _)| Some((path, self.writeback.account(path)?)));
        let closes = |path: &RepoPath, account: &Account| {
            self.tree.resolve(path) == Resolved::Absent || self.agrees(path, account.base)
        };
        let kept = pending.filter(|(path, account)| account.is_settled() && closes(path, account));
        let kept = kept.map(|(path, account)| Change::Account { path: path.clone(), account: Some(account) });
        let kept: Vec<Change> = kept.collect();
        self.note(kept);
    }

    /// Puts what is hidden on record once more, after a rebase: where that falls into a compaction, the new segment does not
    /// have the accounts yet by which a replay would find it.
    pub(super) fn record_hidden(&mut self) {
        let dirs = self.tree.iter().filter_map(|(ino, inode)| match &inode.body {
            Body::Dir(dir) => Some((ino, dir)),
            _ => None,
        });
        let hidden: Vec<Change> = dirs
            .flat_map(|(parent, dir)| dir.hidden.iter().map(move |name| Change::Hide { parent, name: name.clone() }))
            .collect();
        self.note(hidden);
    }

    /// Whether the tree shows at `path` just what the base has.
    pub(super) fn agrees(&self, path: &RepoPath, base: Option<Object>) -> bool {
        match self.tree.resolve(path) {
            Resolved::AsBase => true,
            Resolved::Absent => base.is_none(),
            Resolved::Inode(ino) => match self.content(ino) {
                Some((Content::Remote { hash, .. }, _)) => base.is_some_and(|base| base.hash == *hash),
                Some((Content::Local { .. }, _)) => false,
                None => base.is_none(),
            },
        }
    }
}
