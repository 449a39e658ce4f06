//! Files in the spool that an earlier daemon left. A mount answers before it has looked at them: each is looked at when
//! it is first asked for, or staged, and all of them behind the mount.

use std::io;

use super::room::even;
use super::staging::is_passing;
use super::{Fs, FsError, Need, Op, State, Stop, now};
use crate::namespace::{Content, Generation, Ino, SpoolId, Timestamp};
use crate::spool::{Found, Spool, room_of};

impl Fs {
    /// Looks at all that was not looked at yet, beside everything else; completes when that is done. Lengths are known
    /// from then on, and what the spool uses is counted.
    pub async fn load(&self) {
        let load = async || {
            if let Err(error) = self.blocking(Self::look_at_all).await {
                tracing::warn!(%error, "what waits in the spool is looked at when it is its turn");
            }
        };
        self.loaded.get_or_init(load).await;
    }

    fn look_at_all(&self) -> Result<(), FsError> {
        let all = self.lock().unseen.clone();
        for ino in all.into_iter().flatten() {
            self.look_at(ino)?;
        }
        self.lock().unseen = None;
        Ok(())
    }

    /// Looks at one, unless that was done.
    ///
    /// # Errors
    /// What passes without anybody's doing: too many open files, say.
    pub(super) fn look_at(&self, ino: Ino) -> io::Result<()> {
        let Some(spool) = self.lock().unseen_spool(ino) else { return Ok(()) };
        let found = self.spool.find(spool);
        self.lock().see(ino, spool, found, &self.spool)
    }

    /// [`look_at`](Self::look_at) the files of a directory.
    ///
    /// # Errors
    /// As for one.
    pub(super) fn look_in(&self, dir: Ino) -> io::Result<()> {
        let children: Vec<Ino> = {
            let state = self.lock();
            let children = state.tree.dir(dir).map(|dir| dir.children.values().copied()).into_iter().flatten();
            children.filter(|child| state.unseen_spool(*child).is_some()).collect()
        };
        children.into_iter().try_for_each(|child| self.look_at(child))
    }
}

impl State {
    /// The spool file of a file that nobody has looked at since the mount.
    pub(super) fn unseen_spool(&self, ino: Ino) -> Option<SpoolId> {
        match self.content(ino)?.0 {
            Content::Local { spool, generation: Generation::UNSEEN, .. } => Some(*spool),
            _ => None,
        }
    }

    /// Fails where a file is yet to be looked at.
    pub(super) fn need_seen(&self, ino: Ino) -> Op<()> {
        if self.unseen_spool(ino).is_some() { Err(Stop::Need(Need::Look(ino))) } else { Ok(()) }
    }

    /// Fails where a directory, which is to be listed, has files that are yet to be looked at.
    pub(super) fn need_seen_in(&self, dir: Ino) -> Op<()> {
        let mut children = self.tree.dir(dir).map(|dir| dir.children.values()).into_iter().flatten();
        match self.unseen.is_some() && children.any(|child| self.unseen_spool(*child).is_some()) {
            true => Err(Stop::Need(Need::LookIn(dir))),
            false => Ok(()),
        }
    }

    /// Takes note of what was found in the spool for a file, unless somebody did before, or it has other content by now.
    fn see(&mut self, ino: Ino, id: SpoolId, found: io::Result<Found>, spool: &Spool) -> io::Result<()> {
        if self.unseen_spool(ino) != Some(id) {
            return Ok(());
        }
        let found = match found {
            Err(error) if is_passing(&error) => return Err(error),
            // A power loss took what was never flushed, say. Shown as failed when it is to be staged.
            Err(error) => {
                let path = self.tree.display_path(ino);
                tracing::error!(%error, path, spool = id.0, "bytes on record are gone from the spool");
                None
            }
            Ok(found) => Some(found),
        };
        let generation = self.fresh_generation();
        let content = Content::Local { spool: id, generation, hash: None };
        let Some(Found { file, metadata }) = found else {
            self.set_content(ino, content, 0);
            return Ok(());
        };
        self.set_content(ino, content, metadata.len());
        // What was allocated behind its end, or close to it: the record does not say.
        let room = room_of(&metadata);
        let beyond = room.saturating_sub(even(metadata.len()));
        self.set_room(ino, room);
        self.set_beyond(ino, beyond);
        spool.charge(metadata.len().saturating_add(beyond));
        if let Some(inode) = self.tree.get_mut(ino) {
            let mtime = metadata.modified().ok().map(Timestamp::from);
            inode.attrs.mtime = mtime.unwrap_or(inode.attrs.mtime);
            inode.attrs.ctime = inode.attrs.ctime.max(inode.attrs.mtime).min(now());
        }
        self.left_live(ino, file);
        Ok(())
    }
}
