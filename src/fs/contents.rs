//! What a file's bytes are, and where they are read.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::passthrough::Way;
use super::tree::Token;
use super::{Fs, Op, State, set_mtime};
use crate::namespace::{Body, Content, Ino, Inode, SpoolId, Timestamp};
use crate::path::RepoPath;
use crate::store::holes::{self, even};
use crate::store::journal::Change;
use crate::workspace::{Revision, Source};

impl State {
    /// The content of a regular file.
    pub(super) fn content(&self, ino: Ino) -> Option<(&Content, u64)> {
        self.tree.content(ino)
    }

    /// Whether a file has the same bytes [still](Tree::still), and nobody is changing them or may do so unseen.
    pub(super) fn rests(&self, token: Token) -> bool {
        let ino = token.ino();
        let past = self.handles.way(ino) == Some(Way::Past) || self.backing.is_live(ino);
        self.tree.still(token) && !self.handles.is_changing(ino) && !past
    }

    /// Gives a file other content. What is in the spool counts for its length, until the caller says what else.
    pub(super) fn set_content(&mut self, ino: Ino, content: Content, size: u64) {
        self.note_content(ino, &content);
        if let Some(Inode { body: Body::File { content: old, size: old_size }, .. }) = self.tree.edit(ino) {
            (*old, *old_size) = (content, size);
        }
    }

    /// A file is about to have this content.
    pub(super) fn note_content(&mut self, ino: Ino, content: &Content) {
        if let Some(path) = content.origin_in_workspace() {
            self.backing.reads_at(path, ino);
        }
        self.backing.set_counted(ino, None);
    }

    /// Where a file's remote bytes can be read.
    pub(super) fn source(&self, ino: Ino) -> Option<Source> {
        let (Content::Remote { hash, origin }, _) = self.content(ino)? else {
            return None;
        };
        if let Some(origin) = origin {
            return Some((**origin).clone());
        }
        let staged = |path: &RepoPath| matches!(self.writeback.account(path).map(|a| a.staged), Some(crate::writeback::index::Staged::Put(o)) if o.hash == *hash);
        match self.tree.paths_of(ino).find(staged) {
            Some(path) => Some(Source { revision: Revision::Workspace, path }),
            None => {
                let path = self.tree.paths_of(ino).next()?;
                Some(Source { revision: Revision::Commit(self.tree.base().clone()), path })
            }
        }
    }

    /// Forgets an inode that nothing holds, and its spool file.
    pub(super) fn bury(&mut self, ino: Ino) {
        if !self.tree.is_dead(ino) {
            return;
        }
        if let Some((Content::Local { spool, .. }, _)) = self.content(ino) {
            let spool = *spool;
            self.discard(spool, self.counted(ino));
        }
        self.backing.forget(ino);
        if self.tree.get(ino).is_some_and(|inode| inode.recorded) {
            self.apply(Change::Drop { ino });
        } else {
            self.tree.forget_inode(ino);
        }
    }
}

impl State {
    /// Whether somebody has a file open for writing, or mapped, and what they write comes here sooner or later.
    pub(super) fn is_written_by_requests(&self, ino: Ino) -> bool {
        self.handles.way(ino) == Some(Way::Requests) && self.handles.is_written(ino)
    }

    /// Entries of a directory come or go without the kernel's doing: what it knows of the directory is out of date.
    pub(super) fn shift(&mut self, ino: Ino) {
        if let Some(view) = self.tree.view(ino) {
            view.shifted |= view.read.is_some();
            self.kernel.content_changed(ino);
        }
    }

    /// The spool file of an inode, and its handle if it is open.
    pub(super) fn spooled(&self, ino: Ino) -> Option<(SpoolId, Option<Arc<File>>)> {
        match self.content(ino) {
            Some((Content::Local { spool, .. }, _)) => Some((*spool, self.handles.local(ino).cloned())),
            _ => None,
        }
    }

    /// What is counted for a file, in bytes.
    pub(super) fn counted(&self, ino: Ino) -> u64 {
        match self.content(ino) {
            Some((Content::Local { .. }, size)) => self.backing.counted(ino).unwrap_or(size),
            _ => 0,
        }
    }
}

impl Fs {
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
}

impl State {
    /// A file that was given new content takes `room` of the disk; returns what is counted for it. The caller counts it.
    pub(super) fn note_room(&mut self, ino: Ino, room: u64) -> u64 {
        match self.content(ino) {
            Some((Content::Local { .. }, size)) if even(size) != room => {
                self.backing.set_counted(ino, Some(holes::counted(size, room)));
            }
            _ => self.backing.set_counted(ino, None),
        }
        self.counted(ino)
    }
}

impl Fs {
    /// Opens the spool file of bytes that a file had; `None` when it has another by now: a confirmation moves spool files
    /// away.
    pub(super) fn spool_file(&self, of: Token) -> io::Result<Option<File>> {
        self.unless_replaced(of, |spool| self.spool.file(spool))
    }

    /// The same for reading.
    pub(super) fn spool_file_to_read(&self, of: Token) -> io::Result<Option<File>> {
        self.unless_replaced(of, |spool| self.spool.file_to_read(spool))
    }

    pub(super) fn unless_replaced(
        &self,
        of: Token,
        open: impl FnOnce(SpoolId) -> io::Result<File>,
    ) -> io::Result<Option<File>> {
        let Some(spool) = of.spool() else { return Ok(None) };
        match open(spool) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.lock().tree.still_in(of) => Ok(None),
            opened => opened.map(Some),
        }
    }
}
