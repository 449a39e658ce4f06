//! What it takes to fix the content of a file that is to be staged, and holds on what is fixed.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::live::{Asked, Copied};
use super::passthrough::{Seal, Sealing, Urgency};
use super::standing::Event;
use super::{COPY_LIMIT_BYTES, Fs, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Generation, Ino, SpoolId};
use crate::workspace::{self, Object};
use crate::writeback::{Held, Want};

/// How soon a path that cannot be captured just now is looked at again: a write is between two locks.
pub(super) const RECHECK: Duration = Duration::from_millis(20);

impl State {
    /// Holds the content of a file, as it may be sealed where it lies.
    pub(super) fn hold(&mut self, fs: &Fs, ino: Ino, spool: SpoolId, file: Arc<File>) -> Arc<Held> {
        self.step(ino, Event::Held, |state| state.hold_for(fs, spool, Some(file)))
    }

    /// A hold of a commit's: very many, so their files are not open.
    pub(super) fn hold_for_cut(&mut self, fs: &Fs, spool: SpoolId) -> Arc<Held> {
        self.hold_for(fs, spool, None)
    }

    /// Without a file it is a commit's.
    pub(super) fn hold_for(&mut self, fs: &Fs, spool: SpoolId, file: Option<Arc<File>>) -> Arc<Held> {
        let cancel = self.backing.hold(spool, file.is_none());
        Arc::new(Held::new(fs.this.clone(), spool, file, cancel))
    }

    /// A copy of a file's content as something to be staged; it goes when it is let go of.
    pub(super) fn hold_copy(&mut self, fs: &Fs, ino: Ino, copied: Copied, by_cut: bool) -> Want {
        // No generation of the file's: its bytes may be others by now.
        let generation = self.tree.fresh_generation();
        self.backing.was_copied(ino, copied.id, copied.seen);
        let held = self.hold_for(fs, copied.id, Some(copied.file).filter(|_| !by_cut));
        self.backing.leave_to_holders(copied.id, copied.counted);
        Want::Sealed { ino, generation, hash: None, size: copied.size, held }
    }

    /// What it takes to fix a file's content of now.
    pub(super) fn fixable(&mut self, fs: &Fs, ino: Ino, urgency: Urgency) -> Fixable {
        if self.unseen_spool(ino).is_some() {
            return Fixable::Unseen;
        }
        loop {
            let (spool, generation, hash, size) = match self.content(ino) {
                None => return Fixable::NoFile,
                Some((Content::Remote { hash, .. }, size)) => {
                    let object = Object { hash: *hash, size };
                    return Fixable::Remote { object, source: self.source(ino) };
                }
                Some((Content::Local { spool, generation, hash }, size)) => (*spool, *generation, *hash, size),
            };
            self.warn_of_holes(ino);
            if !self.handles.is_open(ino)
                && self.backing.is_live(ino)
                && matches!(self.ask_after(ino, fs), Asked::Still(_))
            {
                continue;
            }
            let written = self.handles.is_written(ino);
            let seal = Sealing {
                way: self.handles.way(ino),
                live: self.backing.is_live(ino),
                written,
                large: size > COPY_LIMIT_BYTES,
                urgency,
            };
            let writing = self.handles.is_changing(ino);
            return Fixable::Local { spool, generation, hash, size, how: seal.how(), writing, written };
        }
    }
}

/// What it takes to fix a file's content.
pub(super) enum Fixable {
    /// It is no regular file.
    NoFile,
    /// Nothing has looked at its spool file since the mount.
    Unseen,
    /// Nothing: the server has it.
    Remote { object: Object, source: Option<workspace::Source> },
    /// Its spool file has to be sealed.
    Local {
        spool: SpoolId,
        generation: Generation,
        hash: Option<ContentHash>,
        size: u64,
        how: Seal,
        /// A write is under way this instant.
        writing: bool,
        /// Programs have it open for writing.
        written: bool,
    },
}
