//! Files in the spool that an earlier daemon left. A mount answers before it has looked at them: each is looked at when
//! it is first asked for, or staged, and all of them behind the mount.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::tree::Token;
use super::{Fs, FsError, Need, Op, State, Stop, now};
use crate::namespace::{Content, Generation, Ino, SpoolId, Timestamp};
use crate::store::holes::room_of;
use crate::store::spool::Spool;

impl Fs {
    /// Looks at all that was not looked at yet, beside everything else; completes when that is done. Lengths are known
    /// from then on, and what the spool uses is counted.
    pub async fn load(&self) {
        let loaded = self.loaded.get_or_try_init(|| self.blocking(Self::look_at_all)).await;
        if let Err(error) = loaded {
            tracing::warn!(%error, "a file in the spool is looked at when it is its turn");
        }
    }

    fn look_at_all(&self) -> Result<(), FsError> {
        let all = self.lock().backing.unseen().map(<[Ino]>::to_vec);
        let looks = all.into_iter().flatten().map(|ino| self.look_at(ino));
        // One that fails keeps nobody from the others.
        if let Some(error) = looks.filter_map(Result::err).last() {
            return Err(error.into());
        }
        self.begin().backing.all_are_seen();
        Ok(())
    }

    /// Looks at one, unless that was done.
    ///
    /// # Errors
    /// The local filesystem's, but when the file is gone: that is known then.
    pub(super) fn look_at(&self, ino: Ino) -> io::Result<()> {
        let Some(spool) = self.lock().unseen_spool(ino) else { return Ok(()) };
        let opened = self.spool.file_to_read(spool);
        self.begin().see(ino, spool, opened, &self.spool)
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
        match self.backing.unseen().is_some() && children.any(|child| self.unseen_spool(*child).is_some()) {
            true => Err(Stop::Need(Need::LookIn(dir))),
            false => Ok(()),
        }
    }

    /// Takes note of what was found in the spool for a file, unless somebody did before, or it has other content by now.
    fn see(&mut self, ino: Ino, id: SpoolId, opened: io::Result<File>, spool: &Spool) -> io::Result<()> {
        if !self.tree.still(Token::of_spool(ino, id, Generation::UNSEEN)) {
            return Ok(());
        }
        let metadata = match opened {
            // First whether somebody can still change it: else it would have another length a moment later.
            Ok(file) => {
                let file = Arc::new(file);
                let before = file.metadata()?;
                self.left_live(ino, &file);
                file.metadata().unwrap_or(before)
            }
            // A power loss took what was never flushed. Shown as failed when it is to be staged.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = self.tree.display_path(ino);
                tracing::error!(%error, path, spool = id.0, "bytes on record are gone from the spool");
                self.tree.seen(ino, id, 0);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.tree.seen(ino, id, metadata.len());
        // Whether it has holes, or more room than it needs, the record does not say.
        let counted = self.note_room(ino, room_of(&metadata));
        spool.charge(counted);
        self.tree.saw(ino, |attrs| {
            attrs.mtime = metadata.modified().map_or(attrs.mtime, Timestamp::from);
            attrs.ctime = attrs.ctime.max(attrs.mtime).min(now());
        });
        Ok(())
    }
}
