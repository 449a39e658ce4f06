//! The POSIX operations.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::live::Asked;
use super::passthrough::Way;
use super::room::even;
use super::standing::Event;
use super::{Fs, FsError, Need, Op, State, now, set_mtime};
use crate::hash::ContentHash;
use crate::namespace::{Attrs, Body, Content, Dir, Ino, ROOT, SpoolId, Timestamp};
use crate::path::{Name, RepoPath};
use crate::store::journal::Change;
use crate::workspace::WorkspaceError;
use crate::writeback::index::Staged;
use crate::writeback::queue::Follower;

/// The longest symlink target (`PATH_MAX` less its NUL).
const TARGET_MAX: usize = 4095;

/// The most names of one file, as on ext4: each change of the file looks at all of them.
const LINKS_MAX: usize = 65_000;

/// What `stat` shows.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Number.
    pub ino: Ino,
    /// Modes, owners, times.
    pub attrs: Attrs,
    /// `S_IFREG` and so on.
    pub format: u32,
    /// Length in bytes.
    pub size: u64,
    /// What it takes of the disk, in bytes.
    pub room: u64,
    /// Link count.
    pub nlink: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Whether its size and times may change without a request.
    pub live: bool,
}

/// What `setattr` changes; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// What becomes of the set-id bits where the change takes such away.
    pub set_ids: SetIds,
}

/// Who changes a file with set-id bits, which decides what is left of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetIds {
    /// Somebody with `CAP_FSETID`: changing the content takes none away.
    #[default]
    Privileged,
    /// A member of the file's group: set-group-id stays where the group may not execute.
    Member,
    /// Anybody else: all go.
    Stranger,
}

impl SetIds {
    /// What is left of a mode (`setattr_should_drop_suidgid` in fs/attr.c of Linux).
    fn left(self, mode: u16) -> u16 {
        let set_gid = if mode & 0o010 != 0 || self == Self::Stranger { libc::S_ISGID as u16 } else { 0 };
        mode & !(libc::S_ISUID as u16 | set_gid)
    }
}

/// A time to be set.
#[derive(Debug, Clone, Copy)]
pub enum SetTime {
    /// `UTIME_NOW`: the same as of the change itself.
    Now,
    /// This.
    At(Timestamp),
}

impl SetTime {
    fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Now => now,
            Self::At(time) => time,
        }
    }
}

/// What an open asks for.
#[derive(Debug, Clone, Copy)]
pub struct OpenFlags {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// To empty it.
    pub truncate: bool,
    /// To execute it.
    pub execute: bool,
}

/// `renameat2`'s flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// What stands at the new name goes.
    Replace,
    /// `RENAME_NOREPLACE`: nothing may stand there.
    NoReplace,
    /// `RENAME_EXCHANGE`: the two change places.
    Exchange,
}

/// One entry of a directory listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// What it stands for.
    pub stat: Stat,
    /// Where the listing goes on after it.
    pub next: u64,
}

/// Removes a fresh spool file unless it was put to use.
struct Fresh<'a> {
    fs: &'a Fs,
    id: Option<SpoolId>,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.fs.spool.remove(id);
        }
    }
}

impl State {
    pub(super) fn stat(&self, ino: Ino) -> Op<Stat> {
        let inode = self.tree.get(ino).ok_or(FsError::Stale)?;
        let (format, rdev) = match &inode.body {
            Body::File { .. } => (libc::S_IFREG, 0),
            Body::Dir(_) => (libc::S_IFDIR, 0),
            Body::Symlink(_) => (libc::S_IFLNK, 0),
            Body::Special { format, rdev } => (*format, *rdev),
        };
        // A directory that was removed while it is open has not even its own dot any more.
        let nlink = if inode.links.is_empty() && ino != ROOT { 0 } else { inode.nlink() };
        let live = self.backing.is_live(ino);
        let size = inode.size();
        let room = if format == libc::S_IFREG { even(size) } else { 0 };
        Ok(Stat { ino, attrs: inode.attrs, format, size, room, nlink, rdev, live })
    }

    /// The entry of a directory; `None` when there is none for sure.
    pub(super) fn entry(&self, parent: Ino, name: &Name) -> Op<Option<Ino>> {
        let dir = match self.tree.get(parent).map(|inode| &inode.body) {
            None => return Err(FsError::Stale.into()),
            Some(Body::Dir(dir)) => dir,
            Some(_) => return Err(FsError::NotDir.into()),
        };
        match dir.children.get(name) {
            Some(ino) => Ok(Some(*ino)),
            None if dir.listed || dir.hidden.contains(name) => match self.unreadable.why(parent, name) {
                // It is there, and nobody can tell what it is: nothing may take its place unseen.
                Some(why) => {
                    let detail = format!("{}: {why}", String::from_utf8_lossy(name.as_bytes()));
                    Err(FsError::Remote(WorkspaceError::Protocol { detail, request: None }).into())
                }
                None => Ok(None),
            },
            None => Err(super::Stop::Need(Need::List(parent))),
        }
    }

    /// Checks that `name` can be made in `parent`.
    pub(super) fn vacancy(&self, parent: Ino, name: &Name) -> Op<()> {
        self.check_open_to_change(parent)?;
        if self.entry(parent, name)?.is_some() {
            return Err(FsError::Exists.into());
        }
        // A directory that was removed while it was open takes no entries.
        if parent != ROOT && self.tree.get(parent).is_none_or(|inode| inode.links.is_empty()) {
            return Err(FsError::NotFound.into());
        }
        Ok(())
    }

    /// Times of a directory whose entries changed.
    pub(super) fn stamp_dir(&mut self, dir: Ino, time: Timestamp) {
        self.materialize(dir);
        if let Some(inode) = self.tree.edit(dir) {
            (inode.attrs.mtime, inode.attrs.ctime) = (time, time);
        }
    }

    /// A set-group-id directory hands its group down, and to directories the bit itself (inode(7)).
    pub(super) fn inherit_group(&self, parent: Ino, attrs: &mut Attrs, body: &Body) {
        if let Some(dir) = self.tree.get(parent)
            && u32::from(dir.attrs.mode) & libc::S_ISGID != 0
        {
            attrs.gid = dir.attrs.gid;
            if matches!(body, Body::Dir(_)) {
                attrs.mode |= libc::S_ISGID as u16;
            }
        }
    }

    /// Adds an inode under a name, and tells the kernel of it.
    fn plant(&mut self, parent: Ino, name: Name, mut attrs: Attrs, body: Body) -> Op<Stat> {
        let time = now();
        (attrs.atime, attrs.mtime, attrs.ctime) = (time, time, time);
        self.inherit_group(parent, &mut attrs, &body);
        self.stamp_dir(parent, time);
        let ino = self.add(attrs, body);
        self.apply(Change::Link { parent, name, ino });
        self.tree.looked_up(ino);
        self.stat(ino)
    }

    /// The spool file of an inode, and its handle if it is open.
    pub(super) fn spooled(&self, ino: Ino) -> Option<(SpoolId, Option<Arc<File>>)> {
        match self.content(ino) {
            Some((Content::Local { spool, .. }, _)) => Some((*spool, self.handles.local(ino).cloned())),
            _ => None,
        }
    }

    /// Whether the base has something at this entry, or gets it should somebody else commit what is staged: then removing
    /// it must hide it.
    fn base_may_have(&self, parent: Ino, name: &Name, ino: Ino) -> bool {
        match self.tree.get(ino).map(|inode| &inode.body) {
            Some(Body::Dir(dir)) => dir.based || !dir.hidden.is_empty(),
            _ => self.tree.path_in(parent, name).is_ok_and(|path| self.base_may_have_file(&path)),
        }
    }

    /// A directory that is on record is where no base has one. What it hid was at another path.
    pub(super) fn detach_from_base(&mut self, dir: Ino) {
        let hidden = self.tree.dir(dir).map(|dir| dir.hidden.iter().cloned().collect::<Vec<_>>());
        for name in hidden.unwrap_or_default() {
            self.apply(Change::Unhide { parent: dir, name });
        }
        self.tree.detach_from_base(dir);
    }

    fn base_may_have_file(&self, path: &RepoPath) -> bool {
        self.writeback.account(path).is_some_and(|account| account.base.is_some() || account.staged != Staged::Nothing)
            // Perhaps with a directory of the base.
            || self.writeback.conflict(path).is_some()
    }

    /// Takes an entry away, with its account and its place in the queue.
    pub(super) fn uproot(&mut self, parent: Ino, name: &Name, ino: Ino, fs: &Fs) {
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
    pub(super) fn pin_source(&mut self, ino: Ino) {
        if let Some((Content::Remote { hash, origin: None }, size)) = self.content(ino) {
            let hash = *hash;
            if let Some(source) = self.source(ino) {
                self.set_content(ino, Content::Remote { hash, origin: Some(Arc::new(source)) }, size);
            }
        }
    }

    /// Moves an entry to another name, with all below it. Barriers follow the files to their new names, those of an
    /// earlier move too; returns those that were `followed` to a name that no server can have.
    pub(super) fn transplant(
        &mut self,
        from: (Ino, &Name),
        ino: Ino,
        to: (Ino, &Name),
        followed: Followed,
        fs: &Fs,
    ) -> Followed {
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
        dirs.into_iter().for_each(|dir| self.detach_from_base(dir));
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
pub(super) type Followed = HashMap<usize, Follow>;

/// Those who wait for a file that gets another name.
pub(super) struct Follow {
    followers: Vec<Follower>,
    /// Its old path.
    old: Option<RepoPath>,
}

impl Fs {
    /// Finds an entry, and counts the kernel's knowledge of it.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn lookup(&self, parent: Ino, name: &Name) -> Op<Stat> {
        let mut state = self.begin();
        let ino = state.entry(parent, name)?.ok_or(FsError::NotFound)?;
        let stat = self.stat(&mut state, ino)?;
        state.tree.looked_up(ino);
        Ok(stat)
    }

    /// The kernel has forgotten `count` lookups.
    pub fn forget(&self, ino: Ino, count: u64) {
        // What cannot be put on record now is with the next change.
        let _ = self.change(|state| {
            if state.tree.forgotten(ino, count) {
                self.eviction.note_forgotten();
            }
            state.bury(ino);
            Ok(())
        });
    }

    /// What `stat` shows.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn getattr(&self, ino: Ino) -> Op<Stat> {
        self.stat(&mut self.begin(), ino)
    }

    /// Changes attributes; a size truncates or extends. A change of owner takes the set-id bits away, whoever makes it
    /// (`chown(2)`), and so does one that sets nothing: `chown` to nobody, and the kernel's call for this before a write.
    ///
    /// # Errors
    /// What truncating gives.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Op<Stat> {
        self.writable_mount()?;
        self.lock().check_open_to_change(ino)?;
        self.lock().need_seen(ino)?;
        if let Some(size) = set.size {
            self.truncate(ino, size)?;
        }
        let mut spool = None;
        let stat = self.change(|state| {
            self.stat(state, ino)?;
            let time = now();
            let before = state.tree.get(ino).ok_or(FsError::Stale)?.attrs.mtime;
            let mtime = set.mtime.map_or(before, |to| to.at(time));
            // First, as it may fail.
            if (set.mtime.is_some() || set.size.is_some()) && !state.backing.stamp(ino, mtime)? {
                spool = state.spooled(ino);
            }
            let inode = state.tree.edit(ino).ok_or(FsError::Stale)?;
            let owner = set.uid.is_some() || set.gid.is_some();
            let times = set.atime.is_some() || set.mtime.is_some();
            let nothing = !owner && !times && set.mode.is_none() && set.size.is_none();
            let content = set.size.is_some() && set.set_ids != SetIds::Privileged;
            if (owner || nothing || content) && !inode.is_dir() {
                inode.attrs.mode = set.set_ids.left(inode.attrs.mode);
            }
            let attrs = &mut inode.attrs;
            attrs.uid = set.uid.unwrap_or(attrs.uid);
            attrs.gid = set.gid.unwrap_or(attrs.gid);
            attrs.mode = set.mode.unwrap_or(attrs.mode) & 0o7777;
            attrs.atime = set.atime.map_or(attrs.atime, |to| to.at(time));
            (attrs.mtime, attrs.ctime) = (mtime, time);
            self.stat(state, ino)
        })?;
        if spool.is_some() {
            self.stamp_spool(spool, stat.attrs.mtime)?;
        }
        Ok(stat)
    }

    /// Gives a spool file the time of its inode: after a crash the spool file's own is what counts.
    pub(super) fn stamp_spool(&self, spooled: Option<(SpoolId, Option<Arc<File>>)>, mtime: Timestamp) -> Op<()> {
        match spooled {
            Some((_, Some(file))) => set_mtime(&file, mtime)?,
            Some((id, None)) => {
                if let Ok(file) = self.spool.file(id) {
                    set_mtime(&file, mtime)?;
                }
            }
            None => {}
        }
        Ok(())
    }

    /// The group of a file with set-id bits; `None`: there is nothing to clear.
    pub fn set_id_group(&self, ino: Ino) -> Option<u32> {
        let state = self.lock();
        let inode = state.tree.get(ino).filter(|inode| !inode.is_dir())?;
        (u32::from(inode.attrs.mode) & (libc::S_ISUID | libc::S_ISGID) != 0).then_some(inode.attrs.gid)
    }

    /// Takes from a file's set-id bits what a change of its content by `who` takes. Says whether that was any: the kernel
    /// goes on showing them until it is told.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`].
    pub fn clear_set_ids(&self, ino: Ino, who: SetIds) -> Op<bool> {
        let left = self.lock().tree.get(ino).is_none_or(|inode| who.left(inode.attrs.mode) == inode.attrs.mode);
        if who == SetIds::Privileged || left {
            return Ok(false);
        }
        self.setattr(ino, &SetAttr { set_ids: who, ..SetAttr::default() }).map(|_| true)
    }

    fn truncate(&self, ino: Ino, size: u64) -> Op<()> {
        if i64::try_from(size).is_err() {
            return Err(FsError::Invalid.into());
        }
        let (file, spool, shaped) = {
            let mut state = self.begin();
            match state.tree.get(ino).map(|inode| &inode.body) {
                None => return Err(FsError::Stale.into()),
                Some(Body::File { .. }) => {}
                Some(Body::Dir(_)) => return Err(FsError::IsDir.into()),
                Some(_) => return Err(FsError::Invalid.into()),
            }
            state.look(ino, self);
            state.keep_closed_for_cut(self, ino);
            let Some((content, old)) = state.content(ino) else {
                return Err(FsError::Stale.into());
            };
            match content {
                Content::Remote { .. } if old == size => {
                    drop(state);
                    return self.touch_times(ino);
                }
                // Those who read it stay with the file that they have.
                Content::Remote { .. } if state.borrowed(ino).is_some() => {
                    return Err(super::Stop::Need(Need::Own(ino)));
                }
                Content::Remote { .. } => return Err(need_bytes(ino, size)),
                Content::Local { spool, .. } => {
                    let spool = *spool;
                    if state.backing.is_held(spool) {
                        return Err(need_bytes(ino, size));
                    }
                    let shaped = size > old || state.backing.is_uneven(ino);
                    state.handles.begin_reshaping(ino);
                    let file = state.handles.local(ino).filter(|_| !state.handles.is_lent(ino)).cloned();
                    (file, spool, shaped)
                }
            }
        };
        // What it grows by is a hole.
        let file = file.map_or_else(|| self.spool.file(spool).map(Arc::new), Ok);
        let done = file.and_then(|file| self.spool.disk().resize(&file, size).map(|()| file));
        self.change(|state| {
            state.handles.end_reshaping(ino);
            if let Ok(file) = &done {
                match shaped {
                    true => state.reshaped(ino, |_| size, file, self),
                    false => state.wrote(ino, |_| size, self),
                }
                if size == 0 {
                    self.spool.emptied(spool);
                }
            }
            Ok(())
        })?;
        Ok(done.map(drop)?)
    }

    /// A change of nothing: only the times move.
    fn touch_times(&self, ino: Ino) -> Op<()> {
        let time = now();
        let spooled = self.change(|state| {
            // First, as it may fail.
            let live = state.backing.stamp(ino, time)?;
            if let Some(inode) = state.tree.edit(ino) {
                (inode.attrs.mtime, inode.attrs.ctime) = (time, time);
            }
            Ok(if live { None } else { state.spooled(ino) })
        })?;
        self.stamp_spool(spooled, time)
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for anything else.
    pub fn readlink(&self, ino: Ino) -> Op<Vec<u8>> {
        match self.lock().tree.get(ino).map(|inode| &inode.body) {
            Some(Body::Symlink(target)) => Ok(target.to_vec()),
            Some(_) => Err(FsError::Invalid.into()),
            None => Err(FsError::Stale.into()),
        }
    }

    /// Makes and opens a regular file.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NoSpace`].
    pub fn create(&self, parent: Ino, name: &Name, attrs: Attrs, flags: OpenFlags) -> Op<(Stat, u64)> {
        self.admit()?;
        let set_ids = u32::from(attrs.mode) & (libc::S_ISUID | libc::S_ISGID) != 0;
        let past = {
            let state = self.lock();
            state.vacancy(parent, name)?;
            self.may_pass(&state) && !set_ids
        };
        let (id, mut file) = if past { self.spool.create_to_read()? } else { self.spool.create()? };
        let mut fresh = Fresh { fs: self, id: Some(id) };
        let loan = if past { self.lend(&file) } else { None };
        if past && loan.is_none() {
            file = self.spool.file(id)?;
        }
        let file = Arc::new(file);
        let mut opened = None;
        let done = self.change(|state| {
            let stat = self.plant_file(state, parent, name, attrs, id)?;
            fresh.id = None;
            if flags.write && loan.is_some() {
                state.enliven(stat.ino, &file);
            }
            state.handles.attach(stat.ino, file, loan, None);
            let handle = state.open_handle(stat.ino, flags);
            opened = Some((stat.ino, handle));
            Ok((stat, handle))
        });
        // Not on record, so the kernel is not told of it, and will close and forget nothing.
        if let (Err(_), Some((ino, handle))) = (&done, opened) {
            self.release(handle);
            self.forget(ino, 1);
        }
        done
    }

    fn plant_file(&self, state: &mut State, parent: Ino, name: &Name, attrs: Attrs, id: SpoolId) -> Op<Stat> {
        state.vacancy(parent, name)?;
        let generation = state.tree.fresh_generation();
        let content = Content::Local { spool: id, generation, hash: None };
        let stat = state.plant(parent, name.clone(), attrs, Body::File { content, size: 0 })?;
        if let Ok(path) = state.tree.path_in(parent, name) {
            state.open_account(&path, None);
            state.writeback.owe(&path, self.options.settle);
        }
        Ok(stat)
    }

    /// Makes a file that is not a directory or symlink; only regular ones travel.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn mknod(&self, parent: Ino, name: &Name, attrs: Attrs, format: u32, rdev: u32) -> Op<Stat> {
        self.admit()?;
        if format != libc::S_IFREG && format != 0 {
            return self.change(|state| {
                state.vacancy(parent, name)?;
                state.plant(parent, name.clone(), attrs, Body::Special { format, rdev })
            });
        }
        self.lock().vacancy(parent, name)?;
        let (id, _) = self.spool.create()?;
        let mut fresh = Fresh { fs: self, id: Some(id) };
        self.change(|state| {
            let stat = self.plant_file(state, parent, name, attrs, id)?;
            fresh.id = None;
            Ok(stat)
        })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn mkdir(&self, parent: Ino, name: &Name, attrs: Attrs) -> Op<Stat> {
        self.admit()?;
        self.change(|state| {
            state.vacancy(parent, name)?;
            state.plant(parent, name.clone(), attrs, Body::Dir(Box::new(Dir { listed: true, ..Dir::default() })))
        })
    }

    /// Makes a symbolic link; it stays local.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`FsError::NameTooLong`] for the target.
    pub fn symlink(&self, parent: Ino, name: &Name, target: &[u8], attrs: Attrs) -> Op<Stat> {
        self.admit()?;
        if target.len() > TARGET_MAX {
            return Err(FsError::NameTooLong.into());
        }
        self.change(|state| {
            state.vacancy(parent, name)?;
            state.plant(parent, name.clone(), attrs, Body::Symlink(target.into()))
        })
    }

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
                            return Err(super::Stop::Need(Need::ListAll(dir)));
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
                return Err(super::Stop::Need(Need::ListAll(ino)));
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

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`FsError::IsDir`]; [`FsError::TextBusy`]; [`FsError::Stale`] where others have removed it since it was looked up: the
    /// kernel looks its name up again; the server's when its bytes must be fetched.
    pub fn open(&self, ino: Ino, flags: OpenFlags) -> Op<u64> {
        if flags.write || flags.truncate {
            self.writable_mount()?;
            self.lock().check_open_to_change(ino)?;
        }
        let handle = self.attach(ino, flags)?;
        // Who writes past the daemon is told by nobody whether the file's place in the spool is on record: another thread
        // may have found it that place, and not written that down yet.
        if flags.write
            && let Err(error) = self.journal.commit(self.journal.append(&[]))
        {
            self.release(handle);
            return Err(error.into());
        }
        Ok(handle)
    }

    fn attach(&self, ino: Ino, flags: OpenFlags) -> Op<u64> {
        self.lock().need_seen(ino)?;
        // Of those that open it for writing the kernel sees to that itself, before it asks.
        if flags.truncate && !flags.write && self.lock().handles.is_executed(ino) {
            return Err(FsError::TextBusy.into());
        }
        let empty = |state: &mut State| {
            state.look(ino, self);
            state.content(ino).is_some_and(|(_, size)| size == 0 && state.counted(ino) == 0)
        };
        if flags.truncate && empty(&mut self.begin()) {
            // Emptying what is empty is a change too, by its times.
            self.touch_times(ino)?;
        }
        loop {
            let (content, size, token, way) = {
                let mut state = self.begin();
                state.look(ino, self);
                let (content, size) = match state.tree.get(ino).map(|inode| &inode.body) {
                    Some(Body::File { content, size }) => (content.clone(), *size),
                    Some(Body::Dir(_)) => return Err(FsError::IsDir.into()),
                    Some(_) => return Err(FsError::Unsupported.into()),
                    None => return Err(FsError::Stale.into()),
                };
                if flags.write || flags.truncate {
                    if state.is_gone(ino) {
                        return Err(FsError::Stale.into());
                    }
                    state.keep_closed_for_cut(self, ino);
                }
                // O_TRUNC counts with O_RDONLY too: the kernel has checked that the file may be written. Room that was
                // allocated behind the end goes with it.
                if flags.truncate && (size > 0 || state.counted(ino) > 0) {
                    // Those who go past the daemon stay with the file that they have.
                    if state.backing.is_live(ino) || state.handles.way(ino) == Some(Way::Past) {
                        drop(state);
                        self.truncate(ino, 0)?;
                        continue;
                    }
                    return Err(super::Stop::Need(Need::Empty(ino)));
                }
                // Who writes to what others read past the daemon writes to the same file.
                if flags.write && state.borrowed(ino).is_some() {
                    return Err(super::Stop::Need(Need::Own(ino)));
                }
                let able = if state.backing.is_live(ino) { self.able() } else { self.may_pass(&state) };
                let way = state.opening(ino, flags.write, able, self);
                let attached = state.handles.local(ino).is_some();
                let unread = way == Way::Requests && !flags.read && matches!(content, Content::Remote { .. });
                if attached || unread {
                    return Ok(state.step(ino, Event::Opened, |state| state.open_handle(ino, flags)));
                }
                (content, size, state.tree.token(ino).ok_or(FsError::Stale)?, way)
            };
            let lent = match &content {
                Content::Local { .. } if way == Way::Past => match self.spool_file_to_read(token)? {
                    Some(file) => self.lend(&file).map(|loan| (Arc::new(file), loan, None)),
                    None => continue,
                },
                Content::Remote { hash, .. } if way == Way::Past => {
                    self.borrow(ino, *hash).map(|(file, loan, borrowed)| (file, loan, Some(borrowed)))
                }
                _ => None,
            };
            let (file, loan, borrowed) = match (lent, &content) {
                (Some((file, loan, borrowed)), _) => (file, Some(loan), borrowed),
                (None, Content::Local { .. }) => match self.spool_file(token)? {
                    Some(file) => (Arc::new(file), None, None),
                    None => continue,
                },
                (None, Content::Remote { hash, .. }) => match self.cache.file(*hash) {
                    Some(file) => {
                        self.note_open(ino, false);
                        (Arc::new(file), None, None)
                    }
                    None if flags.write || !self.comes_in_blocks(size) => {
                        return Err(super::Stop::Need(Need::Fetch(ino)));
                    }
                    // It is read before all of it is here, if it can be.
                    None => match self.blocks.get(*hash) {
                        None => return Err(super::Stop::Need(Need::Blocks(ino, 0, 0))),
                        Some(partial) if partial.is_whole() => return Err(super::Stop::Need(Need::Fetch(ino))),
                        Some(partial) => {
                            self.note_reader(&partial, ino);
                            let mut state = self.begin();
                            if state.tree.still(token) {
                                return Ok(state.step(ino, Event::Opened, |state| state.open_handle(ino, flags)));
                            }
                            continue;
                        }
                    },
                },
            };
            let mut state = self.begin();
            let same = state.tree.still(token) && !(flags.write && state.is_gone(ino));
            // Somebody may have been faster, and decided; then it is done again after them.
            let decides = same && state.handles.way(ino).is_none();
            if decides && (loan.is_none() || state.opening(ino, flags.write, true, self) == way) {
                return Ok(state.step(ino, Event::Opened, |state| {
                    state.handles.attach(ino, file, loan, borrowed);
                    state.open_handle(ino, flags)
                }));
            }
            if same && state.handles.way(ino) == Some(Way::Requests) && loan.is_none() {
                return Ok(state.step(ino, Event::Opened, |state| {
                    state.handles.attach_first(ino, file);
                    state.open_handle(ino, flags)
                }));
            }
            drop(state);
            // Closed first: it is lent again to nobody else as long as it is open here.
            drop((file, loan));
            if let Some(borrowed) = borrowed {
                self.give_back(borrowed.hash);
            }
        }
    }

    /// Bytes of an open file; shorter at its end.
    ///
    /// # Errors
    /// [`FsError::BadHandle`]; the server's when the bytes must be fetched.
    pub fn read(&self, handle: u64, offset: u64, length: usize) -> Op<Vec<u8>> {
        let (ino, file, size, hash) = {
            let mut state = self.begin();
            let ino = state.handles.reader(handle)?;
            state.look(ino, self);
            match (state.handles.local(ino), state.content(ino).ok_or(FsError::Stale)?) {
                (None, (Content::Remote { hash, .. }, size)) => (ino, None, size, Some(*hash)),
                (_, (_, size)) => (ino, Some(self.attached(&state, ino)?), size, None),
            }
        };
        let length = length.min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let Some(file) = file else { return self.read_blocks(ino, hash, size, offset, length) };
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// [`read`](Self::read) of a file that is not here, or not all of it.
    fn read_blocks(&self, ino: Ino, hash: Option<ContentHash>, size: u64, offset: u64, length: usize) -> Op<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        if !self.comes_in_blocks(size) {
            return Err(super::Stop::Need(Need::Fetch(ino)));
        }
        let end = offset + length as u64;
        if let Some(partial) = hash.and_then(|hash| self.blocks.get(hash))
            && !partial.is_whole()
            && let Some(bytes) = partial.read(offset, length)
        {
            self.read_ahead(ino, &partial, &(offset..end));
            return Ok(bytes);
        }
        Err(super::Stop::Need(Need::Blocks(ino, offset, end)))
    }

    /// The local file behind an open one.
    pub(super) fn attached(&self, state: &State, ino: Ino) -> Op<Arc<File>> {
        match state.handles.local(ino) {
            Some(file) => Ok(file.clone()),
            None => Err(super::Stop::Need(Need::Fetch(ino))),
        }
    }

    /// Writes to an open file, and returns how many bytes: fewer where the disk fails on the way. They are in the spool
    /// file, in the kernel, when this returns.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] when the spool's limit or the disk is reached.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Op<usize> {
        let end = offset.checked_add(data.len() as u64).ok_or(FsError::Invalid)?;
        let (ino, file, shaped, reserved) = {
            let mut state = self.begin();
            let ino = state.handles.writer(handle)?;
            state.look(ino, self);
            let (content, size) = state.content(ino).ok_or(FsError::Stale)?;
            match content {
                Content::Remote { .. } => return Err(super::Stop::Need(Need::Own(ino))),
                Content::Local { spool, .. } if state.backing.is_held(*spool) => {
                    return Err(super::Stop::Need(Need::Own(ino)));
                }
                Content::Local { .. } => {}
            }
            let file = state.writable(ino, self)?;
            let uneven = state.backing.is_uneven(ino);
            let reserved = self.reserve_range(&file, size, uneven, offset, end)?;
            state.handles.begin_writing(ino);
            (ino, file, uneven || offset > size, reserved)
        };
        let (written, failed) = self.put(&file, data, offset);
        let end = if failed.is_some() { offset + written as u64 } else { end };
        self.change(|state| {
            state.handles.end_writing(ino);
            self.spool.release(reserved);
            // What a failed write left counts: it may be in the middle of what was there.
            if written > 0 || failed.is_none() {
                match shaped || state.backing.is_uneven(ino) {
                    true => state.reshaped(ino, |size| size.max(end), &file, self),
                    false => state.wrote(ino, |size| size.max(end), self),
                }
            }
            Ok(())
        })?;
        match failed {
            Some(error) if written == 0 => Err(error.into()),
            _ => Ok(written),
        }
    }

    /// Flushes a file, its name and the record to stable storage; returns the paths whose staging a caller may want
    /// to wait for.
    ///
    /// # Errors
    /// The local filesystem's.
    pub fn fsync(&self, handle: u64) -> Op<Vec<RepoPath>> {
        let (file, spool, paths) = {
            let state = self.lock();
            match state.handles.file(handle) {
                Ok(ino) => {
                    let spool = match state.content(ino) {
                        Some((Content::Local { spool, .. }, _)) => Some(*spool),
                        _ => None,
                    };
                    (state.handles.local(ino).cloned(), spool, state.tree.file_paths(ino))
                }
                Err(_) => {
                    state.handles.dir(handle)?;
                    drop(state);
                    // What the record names must be there, or the directory's new files are names of nothing.
                    self.spool.sync_names()?;
                    (None, None, Vec::new())
                }
            }
        };
        if let (Some(file), Some(spool)) = (file, spool) {
            // A concurrent confirmation may have moved the file to the cache; its bytes are on the server then.
            self.spool.sync(spool, &file)?;
        }
        let ticket = self.journal.append(&[]);
        self.journal.sync(ticket)?;
        Ok(paths)
    }

    /// The paths of a file that is open for writing: closing any other waits for nothing.
    pub fn handle_paths(&self, handle: u64) -> Vec<RepoPath> {
        let state = self.lock();
        state.handles.writer(handle).map_or_else(|_| Vec::new(), |ino| state.tree.file_paths(ino))
    }

    /// Closes a handle. The last writer's makes the file due for staging after its quiet period.
    pub fn release(&self, handle: u64) {
        let mut closed = None;
        let mut written = None;
        let mut rested = None;
        // Of a large directory it takes a while to go.
        let mut order = None;
        // As for `forget`.
        let done = self.change(|state| {
            let Some(handle) = state.handles.close(handle) else { return Ok(()) };
            let ino = handle.ino;
            order = state.tree.closed(ino);
            state.step(ino, Event::Closed, |state| {
                if handle.write {
                    state.look(ino, self);
                }
                let live = state.backing.is_live(ino);
                let past = state.handles.way(ino) == Some(Way::Past);
                let staged = state.backing.staged_live(ino).is_some();
                // What was done past the daemon need not show.
                let left_open = state.handles.leave(&handle, live && !staged);
                if left_open.stale {
                    state.kernel.content_changed(ino);
                }
                closed = left_open.last;
                if closed.is_some() {
                    self.blocks.closed(ino);
                }
                let borrowed = closed.as_ref().and_then(|closed| closed.borrowed?.to_give_back());
                borrowed.into_iter().for_each(|hash| self.give_back(hash));
                // The spool file's time counts after the daemon's end, and is of another clock yet.
                if let (Some(file), Some((Content::Local { .. }, _))) = (left_open.written, state.content(ino)) {
                    written = state.tree.get(ino).map(|inode| (file, inode.attrs.mtime));
                }
                if left_open.settled {
                    state.touch_file(ino, self.options.settle);
                }
                // One that may change without a request is asked after however it was open here.
                if past || live {
                    let asked = state.ask_after(ino, self);
                    match (asked, state.handles.way(ino)) {
                        (Asked::Still(staged), None) => rested = state.come_to_rest(ino, staged, self),
                        (Asked::Still(_), Some(_)) if live => state.owe_other_names(ino, self),
                        _ => {}
                    }
                }
            });
            state.take_deferred(ino, self);
            state.bury(ino);
            Ok(())
        });
        if let Some((file, mtime)) = written
            && let Err(error) = set_mtime(&file, mtime)
        {
            tracing::debug!(%error, "a restart will show another modification time");
        }
        drop(order);
        if closed.is_some_and(|closed| closed.borrowed.is_some()) {
            self.cache.evict();
        }
        if done.is_err() {
            tracing::error!("what was closed could not be put on record");
        }
        // Also then: until it can, nothing leaves the spool.
        rested.into_iter().for_each(|adopted| self.keep(adopted));
    }
}

impl State {
    fn open_handle(&mut self, ino: Ino, flags: OpenFlags) -> u64 {
        let handle = self.handles.open_file(ino, flags, self.kernel.may_leave_uncached());
        if let Some(file) = self.handles.local(ino).filter(|_| flags.write && self.handles.is_lent(ino)).cloned() {
            self.enliven(ino, &file);
        }
        self.tree.opened(ino);
        handle
    }

    /// The content changed: a new generation, new times, and the paths are owed again.
    pub(super) fn wrote(&mut self, ino: Ino, length: impl FnOnce(u64) -> u64, fs: &Fs) {
        if self.tree.get(ino).is_none() {
            return;
        }
        if let Some((before, after)) = self.tree.wrote(ino, now(), length)
            && !self.backing.is_uneven(ino)
        {
            fs.spool.recount(before, after);
        }
        self.saw(ino, fs);
        self.changed(ino, fs);
    }

    /// The paths of a file are owed again: once, until its writers have closed it.
    pub(super) fn changed(&mut self, ino: Ino, fs: &Fs) {
        if self.handles.note_change(ino) {
            self.touch_file(ino, fs.options.settle);
        }
    }

    fn check_empty(&self, ino: Ino) -> Op<()> {
        let dir = self.tree.dir(ino).ok_or(FsError::NotDir)?;
        if !dir.children.is_empty() || self.unreadable.has_flawed(ino) {
            return Err(FsError::NotEmpty.into());
        }
        if !dir.listed { Err(super::Stop::Need(Need::List(ino))) } else { Ok(()) }
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

impl State {
    /// The local file of an open one, to be changed.
    pub(super) fn writable(&self, ino: Ino, fs: &Fs) -> Op<Arc<File>> {
        match (self.handles.local(ino), self.content(ino)) {
            // What is lent is open for reading alone, or it would count as a writer. Few come this way.
            (Some(_), Some((Content::Local { spool, .. }, _))) if self.handles.is_lent(ino) => {
                Ok(Arc::new(fs.spool.file(*spool)?))
            }
            (Some(file), _) => Ok(file.clone()),
            _ => Err(FsError::BadHandle.into()),
        }
    }
}

fn need_bytes(ino: Ino, size: u64) -> super::Stop {
    super::Stop::Need(if size == 0 { Need::Empty(ino) } else { Need::Own(ino) })
}
