//! Names: found, made, and what is made under them.

use std::sync::Arc;

use crate::fs::ops::{OpenFlags, Stat};
use crate::fs::{Fs, FsError, Need, Op, State, now};
use crate::namespace::{Attrs, Body, Content, Dir, Ino, ROOT, SpoolId, Timestamp};
use crate::path::Name;
use crate::store::journal::Change;
use crate::workspace::WorkspaceError;

/// The longest symlink target (`PATH_MAX` less its NUL).
const TARGET_MAX: usize = 4095;

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
    /// The entry of a directory; `None` when there is none for sure.
    pub(in crate::fs) fn entry(&self, parent: Ino, name: &Name) -> Op<Option<Ino>> {
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
            None => Err(crate::fs::Stop::Need(Need::List(parent))),
        }
    }

    /// Checks that `name` can be made in `parent`.
    pub(in crate::fs) fn vacancy(&self, parent: Ino, name: &Name) -> Op<()> {
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
    pub(in crate::fs) fn stamp_dir(&mut self, dir: Ino, time: Timestamp) {
        self.materialize(dir);
        if let Some(inode) = self.tree.edit(dir) {
            (inode.attrs.mtime, inode.attrs.ctime) = (time, time);
        }
    }

    /// A set-group-id directory hands its group down, and to directories the bit itself (inode(7)).
    pub(in crate::fs) fn inherit_group(&self, parent: Ino, attrs: &mut Attrs, body: &Body) {
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
            state.tree.forgotten(ino, count);
            state.bury(ino);
            Ok(())
        });
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
}
