//! What the kernel is owed: word of what changed behind its back, and of what it may not take for granted.

use std::sync::PoisonError;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;

use super::Fs;
use crate::namespace::Ino;
use crate::path::Name;

/// Something that the kernel may have cached and that changed without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// A file's content and size.
    Content(Ino),
    /// What a name stands for.
    Name(Ino, Name),
}

/// What the watcher is told.
pub(super) enum Told {
    Stale(Stale),
    /// All before this has been passed on once this is dropped.
    Mark(#[expect(dead_code, reason = "dropping it is the message")] oneshot::Sender<()>),
}

/// What the kernel has yet to be told, and what was settled with it.
#[derive(Default)]
pub(super) struct Kernel {
    /// What changed behind its back, until the lock is free.
    stale: Vec<Stale>,
    /// How many changes were made that could not be put on record: it heard of a failure.
    doubts: u32,
    /// Whether it may be told to cache nothing of one file.
    may_leave_uncached: bool,
}

impl Kernel {
    /// A file's content and size are others than it knows, or a directory's entries.
    pub fn content_changed(&mut self, ino: Ino) {
        self.stale.push(Stale::Content(ino));
    }

    /// A name stands for something else than it knows.
    pub fn name_changed(&mut self, parent: Ino, name: Name) {
        self.stale.push(Stale::Name(parent, name));
    }

    /// What it is to be told, when the lock is free.
    pub fn take_stale(&mut self) -> Vec<Stale> {
        std::mem::take(&mut self.stale)
    }

    /// Whether there is anything to tell it.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// It was told that a change failed which is made in memory: what it keeps of any directory may lack that.
    pub fn heard_of_failure(&mut self) {
        self.doubts += 1;
    }

    /// How often it [heard of a failure](Self::heard_of_failure).
    pub fn doubts(&self) -> u32 {
        self.doubts
    }

    /// It can be told to cache nothing of one file.
    pub fn leave_uncached(&mut self) {
        self.may_leave_uncached = true;
    }

    /// Whether it may be told to cache nothing of one file.
    pub fn may_leave_uncached(&self) -> bool {
        self.may_leave_uncached
    }
}

impl Fs {
    /// From now on a file that is opened for writing alone, and by nobody else yet, is not cached by the kernel: each
    /// write is a request all the same, and a copy in the cache would cost as much again. All who open it meanwhile go
    /// the same way, so that each sees what the others do.
    pub fn leave_uncached(&self) {
        self.begin().kernel.leave_uncached();
    }

    /// Passes on what [`Kernel::take_stale`] gave. To be called when the lock is free.
    pub(super) fn tell_kernel(&self, stale: Vec<Stale>) {
        if stale.is_empty() {
            return;
        }
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        // A mount that ends needs to know no more.
        stale.into_iter().for_each(|stale| drop(watcher.as_ref().map(|watcher| watcher.send(Told::Stale(stale)))));
    }

    /// Calls `tell`, on a thread of its own, for everything that others change behind the kernel's back.
    pub fn watch_staleness(&self, tell: impl Fn(Stale) + Send + 'static) {
        let (sender, receiver): (Sender<Told>, _) = channel();
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        let spawned = std::thread::Builder::new().name("invalidate".into()).spawn(move || {
            for told in receiver {
                match told {
                    Told::Stale(stale) => tell(stale),
                    Told::Mark(_) => {}
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "what others change shows up only when the kernel's caches expire");
        }
    }

    /// Completes when the kernel has been told of everything that changed behind its back up to now.
    pub async fn kernel_knows(&self) {
        let (mark, passed) = oneshot::channel();
        match &*self.watcher.lock().unwrap_or_else(PoisonError::into_inner) {
            // A mount that ends needs to know no more.
            Some(watcher) => _ = watcher.send(Told::Mark(mark)),
            // Nobody is to be told.
            None => drop(mark),
        }
        let _ = passed.await;
    }
}
