//! Names that go, or go elsewhere: links, removals, renames.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fs::ops::{RenameMode, Stat};
use crate::fs::{Fs, FsError, Need, Op, State, now};
use crate::namespace::{Body, Content, Ino, ROOT};
use crate::path::{Name, RepoPath};
use crate::store::journal::Change;
use crate::writeback::index::Staged;
use crate::writeback::queue::Follower;

/// The most names of one file, as on ext4: each change of the file looks at all of them.
const LINKS_MAX: usize = 65_000;

impl State {
    /// Whether the base has something at this entry, or gets it should somebody else commit what is staged: then removing
    /// it must hide it.
    fn base_may_have(&self, parent: Ino, name: &Name, ino: Ino) -> bool {
        match self.tree.get(ino).map(|inode| &inode.body) {
            Some(Body::Dir(dir)) => dir.based || !dir.hidden.is_empty(),
            _ => self.tree.path_in(parent, name).is_ok_and(|path| self.base_may_have_file(&path)),
        }
    }

    fn base_may_have_file(&self, path: &RepoPath) -> bool {
        self.writeback.account(path).is_some_and(|account| account.base.is_some() || account.staged != Staged::Nothing)
    }

    /// Takes an entry away, with its account and its place in the queue.
    pub(in crate::fs) fn uproot(&mut self, parent: Ino, name: &Name, ino: Ino, fs: &Fs) {
        let time = now();
        let path = self.tree.path_in(parent, name);
        let mut followers = Vec::new();
        if let (Ok(path), Some(_)) = (&path, self.content(ino)) {
            self.open_account(path, Some(ino));
            // A program may publish a file by a link, and then remove its first name.
            if self.writeback.queue().has_followers() && self.tree.get(ino).is_some_and(|inode| inode.links.len() > 1) {
                followers = self.writeback.leave(path, ino);
            }
        }
        if self.tree.get(ino).is_some_and(|inode| inode.links.len() > 1) {
            self.pin_source(ino);
        }
        self.stamp_dir(parent, time);
        self.materialize(ino);
        let hide = self.base_may_have(parent, name, ino);
        self.apply(Change::Unlink { parent, name: name.clone(), hide });
        if let Some(inode) = self.tree.edit(ino) {
            inode.attrs.ctime = time;
        }
        if let Ok(path) = &path
            && self.writeback.account(path).is_some()
        {
            self.touch([path], fs.options.settle);
            // A file that has another name is waited for there, and here until the server has it no longer.
            self.writeback.join(&followers, path, 0, false);
        }
        if !followers.is_empty()
            && let Some((_, size)) = self.content(ino)
        {
            for path in self.tree.file_paths(ino) {
                self.writeback.join(&followers, &path, size, false);
            }
        }
    }

    /// Fixes where the bytes of a remote file can be read, before its paths change.
    fn pin_source(&mut self, ino: Ino) {
        if let Some((Content::Remote { hash, origin: None }, size)) = self.content(ino) {
            let hash = *hash;
            if let Some(source) = self.source(ino) {
                self.set_content(ino, Content::Remote { hash, origin: Some(Arc::new(source)) }, size);
            }
        }
    }

    /// Moves an entry to another name, with all below it. Barriers follow the files to their new names, those of an
    /// earlier move too; returns those that were `followed` to a name that no server can have.
    fn transplant(&mut self, from: (Ino, &Name), ino: Ino, to: (Ino, &Name), followed: Followed, fs: &Fs) -> Followed {
        let (old_parent, old_name) = from;
        // Files below, by their old paths, before anything moves.
        let below = if self.tree.dir(ino).is_some() { self.tree.walk(ino) } else { Vec::new() };
        let mut files: Vec<(Ino, Name, Ino)> = vec![(old_parent, old_name.clone(), ino)];
        files.extend(below.iter().cloned());
        let mut old_paths: Vec<RepoPath> = Vec::new();
        let mut dirs: Vec<Ino> = Vec::new();
        let mut followed = followed;
        let follow = self.writeback.queue().has_followers();
        for (nth, (parent, name, file)) in files.iter().enumerate() {
            if self.content(*file).is_none() {
                dirs.push(*file);
                continue;
            }
            if let Ok(path) = self.tree.path_in(*parent, name) {
                self.pin_source(*file);
                self.open_account(&path, Some(*file));
                if follow {
                    let followers = self.writeback.leave(&path, *file);
                    followed.insert(nth, Follow { followers, old: Some(path.clone()) });
                }
                old_paths.push(path);
            }
        }
        let hide =
            self.base_may_have(old_parent, old_name, ino) || old_paths.iter().any(|path| self.base_may_have_file(path));
        let time = now();
        self.stamp_dir(old_parent, time);
        self.stamp_dir(to.0, time);
        // All of it goes on record: the base does not have it where it will be.
        self.materialize(ino);
        for (.., child) in &below {
            self.materialize(*child);
        }
        dirs.into_iter().for_each(|dir| self.tree.detach_from_base(dir));
        self.apply(Change::Unlink { parent: old_parent, name: old_name.clone(), hide });
        self.apply(Change::Link { parent: to.0, name: to.1.clone(), ino });
        if let Some(inode) = self.tree.edit(ino) {
            inode.attrs.ctime = time;
        }
        if old_parent != to.0 {
            // Its `..`.
            self.shift(ino);
        }
        self.touch(&old_paths, fs.options.settle);
        // Not all paths of these files: their names elsewhere did not change, and the base may have those.
        for (nth, (parent, name, file)) in [(to.0, to.1.clone(), ino)].into_iter().chain(below).enumerate() {
            let Some((_, size)) = self.content(file) else { continue };
            if let Ok(path) = self.tree.path_in(parent, &name) {
                self.open_account(&path, None);
                // Something is owed for it.
                self.writeback.owe(&path, fs.options.settle);
                if let Some(Follow { followers, old }) = followed.remove(&nth) {
                    self.writeback.join(&followers, &path, size, false);
                    // What is staged under its old name is to go from there, too.
                    old.iter().for_each(|old| self.writeback.join(&followers, old, 0, false));
                }
            }
        }
        followed
    }
}

/// Those who wait for the files of a tree that is moved, by the order in which it is walked.
type Followed = HashMap<usize, Follow>;

/// Those who wait for a file that gets another name.
struct Follow {
    followers: Vec<Follower>,
    /// Its old path.
    old: Option<RepoPath>,
}

impl Fs {
    /// Gives a file another name. On the server that is another path with the same content.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`] for a directory; [`FsError::TooManyLinks`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Op<Stat> {
        self.admit()?;
        self.change(|state| {
            state.vacancy(parent, name)?;
            state.need_seen(ino)?;
            let inode = state.tree.get(ino).ok_or(FsError::Stale)?;
            if inode.is_dir() {
                return Err(FsError::NotPermitted.into());
            }
            if inode.links.is_empty() {
                return Err(FsError::NotFound.into());
            }
            if inode.links.len() >= LINKS_MAX {
                return Err(FsError::TooManyLinks.into());
            }
            state.materialize(ino);
            let time = now();
            state.stamp_dir(parent, time);
            state.apply(Change::Link { parent, name: name.clone(), ino });
            if let Some(inode) = state.tree.edit(ino) {
                inode.attrs.ctime = time;
            }
            state.tree.looked_up(ino);
            if state.content(ino).is_some()
                && let Ok(path) = state.tree.path_in(parent, name)
            {
                state.open_account(&path, None);
                state.touch([&path], self.options.settle);
            }
            self.stat(state, ino)
        })
    }

    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDir`].
    pub fn unlink(&self, parent: Ino, name: &Name) -> Op<()> {
        self.writable_mount()?;
        self.change(|state| {
            let ino = state.entry(parent, name)?.ok_or(FsError::NotFound)?;
            if state.tree.dir(ino).is_some() {
                return Err(FsError::IsDir.into());
            }
            state.uproot(parent, name, ino, self);
            state.bury(ino);
            Ok(())
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`FsError::NotEmpty`], [`FsError::NotDir`].
    pub fn rmdir(&self, parent: Ino, name: &Name) -> Op<()> {
        self.writable_mount()?;
        self.change(|state| {
            let ino = state.entry(parent, name)?.ok_or(FsError::NotFound)?;
            state.check_empty(ino)?;
            state.uproot(parent, name, ino, self);
            state.bury(ino);
            Ok(())
        })
    }

    /// Moves an entry to another name.
    ///
    /// # Errors
    /// As `rename(2)` has them.
    pub fn rename(&self, parent: Ino, name: &Name, to_parent: Ino, to_name: &Name, mode: RenameMode) -> Op<()> {
        self.writable_mount()?;
        self.change(|state| {
            let ino = state.entry(parent, name)?.ok_or(FsError::NotFound)?;
            let target = state.entry(to_parent, to_name)?;
            if state.tree.lost().is_some_and(|lost| [ino, to_parent].contains(&lost) || target == Some(lost)) {
                return Err(FsError::ReadOnly.into());
            }
            if to_parent != ROOT && state.tree.get(to_parent).is_none_or(|dir| dir.links.is_empty()) {
                return Err(FsError::NotFound.into());
            }
            let is_dir = state.tree.dir(ino).is_some();
            if is_dir && state.tree.is_below(to_parent, ino) {
                return Err(FsError::Invalid.into());
            }
            match (mode, target) {
                (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists.into()),
                (RenameMode::Exchange, None) => return Err(FsError::NotFound.into()),
                (RenameMode::Exchange, Some(target)) => {
                    if target == ino {
                        return Ok(());
                    }
                    if state.tree.dir(target).is_some() && state.tree.is_below(parent, target) {
                        return Err(FsError::Invalid.into());
                    }
                    for dir in [ino, target] {
                        if state.tree.dir(dir).is_some() && state.tree.first_unlisted(dir).is_some() {
                            return Err(crate::fs::Stop::Need(Need::ListAll(dir)));
                        }
                    }
                    // Through a name that nobody can have: it is no UTF-8, so nothing is owed for it on the way.
                    let aside = state.aside_name(parent);
                    let followed = state.transplant((parent, name), ino, (parent, &aside), Followed::new(), self);
                    state.transplant((to_parent, to_name), target, (parent, name), Followed::new(), self);
                    state.transplant((parent, &aside), ino, (to_parent, to_name), followed, self);
                    return Ok(());
                }
                (_, Some(target)) if target == ino => return Ok(()),
                (_, Some(target)) => match (is_dir, state.tree.dir(target).is_some()) {
                    (true, false) => return Err(FsError::NotDir.into()),
                    (false, true) => return Err(FsError::IsDir.into()),
                    (true, true) => state.check_empty(target)?,
                    (false, false) => {}
                },
                (_, None) => {}
            }
            if is_dir && state.tree.first_unlisted(ino).is_some() {
                return Err(crate::fs::Stop::Need(Need::ListAll(ino)));
            }
            let to_path = state.tree.path_in(to_parent, to_name);
            let replaced = match (target, &to_path) {
                (Some(_), Ok(path)) => state.writeback.leave_replaced(path),
                _ => Vec::new(),
            };
            if let Some(target) = target {
                state.uproot(to_parent, to_name, target, self);
                state.bury(target);
            }
            state.transplant((parent, name), ino, (to_parent, to_name), Followed::new(), self);
            if let Ok(path) = to_path {
                let size = state.content(ino).map_or(0, |(_, size)| size);
                state.writeback.join(&replaced, &path, size, true);
            }
            Ok(())
        })
    }
}

impl State {
    fn check_empty(&self, ino: Ino) -> Op<()> {
        let dir = self.tree.dir(ino).ok_or(FsError::NotDir)?;
        if !dir.children.is_empty() || self.unreadable.has_flawed(ino) {
            return Err(FsError::NotEmpty.into());
        }
        if !dir.listed { Err(crate::fs::Stop::Need(Need::List(ino))) } else { Ok(()) }
    }

    /// A name that nothing in `dir` has and that never travels.
    fn aside_name(&self, dir: Ino) -> Name {
        let mut number = 0u64;
        loop {
            // Sixteen digits after bytes that are no UTF-8 always make a name.
            let bytes = [b"\xff\xfe.exchange.", format!("{number:016x}").as_bytes()].concat();
            match Name::new(&bytes) {
                Ok(name) if self.tree.child(dir, &name).is_none() => return name,
                _ => number += 1,
            }
        }
    }
}
