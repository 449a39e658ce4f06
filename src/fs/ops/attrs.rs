//! Attributes: what a file is besides its bytes, and how long it is.

use std::sync::Arc;

use crate::fs::ops::data::need_bytes;
use crate::fs::ops::{SetAttr, SetIds, Stat};
use crate::fs::room::even;
use crate::fs::{Fs, FsError, Need, Op, State, now};
use crate::namespace::{Body, Content, Ino, ROOT};

impl State {
    pub(in crate::fs) fn stat(&self, ino: Ino) -> Op<Stat> {
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
}

impl Fs {
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

    pub(in crate::fs) fn truncate(&self, ino: Ino, size: u64) -> Op<()> {
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
                    return Err(crate::fs::Stop::Need(Need::Own(ino)));
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
    pub(in crate::fs) fn touch_times(&self, ino: Ino) -> Op<()> {
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
}
