//! Nodes that a listing of the base tells again are not held for ever: what the kernel has forgotten, and nobody changed,
//! is dropped a part at a time, and its directory counts as not listed. That is how a directory is after a mount, so all
//! that meets one lists it first.
//!
//! A walk that lists a whole subtree must find it listed at its end: as long as directories are being listed nothing is
//! dropped, nor for a moment after.

use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Fs, State};
use crate::namespace::{Body, Content, Ino, Inode, ROOT};
use crate::path::Name;

/// Entries that are looked at while the lock is held: a tenth of a millisecond's work or so.
const AT_ONCE: usize = 1024;
/// So many nodes are forgotten before it is worth looking for them: fewer are a few megabytes.
const WORTHWHILE: u64 = 10_000;
/// So many files and directories are held in any case, some 30 MB: what is known can be changed while the server is away.
pub const KEPT_NODES: usize = 100_000;
/// After a listing: longer than what needed it takes to go on, on a machine that is busy.
const REST: Duration = Duration::from_secs(5);
/// So many dropped nodes are worth giving their memory back to the system.
const WORTH_TRIMMING: usize = 50_000;

/// When nodes are dropped.
pub(super) struct Eviction {
    began: Instant,
    /// What the kernel has forgotten since it was last looked for.
    forgotten: AtomicU64,
    /// When a listing was last taken in, in milliseconds since `began`.
    listed: AtomicU64,
}

impl Default for Eviction {
    fn default() -> Self {
        Self { began: Instant::now(), forgotten: AtomicU64::new(0), listed: AtomicU64::new(0) }
    }
}

impl Eviction {
    /// The kernel has forgotten one more.
    pub fn note_forgotten(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    /// A listing was taken in.
    pub fn note_listed(&self) {
        let now = self.began.elapsed().as_millis();
        self.listed.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn has_rested(&self) -> bool {
        let listed = Duration::from_millis(self.listed.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(listed) >= REST
    }
}

impl Fs {
    /// Drops what the kernel has forgotten, if it is much, and nobody is listing directories.
    pub(super) fn evict_forgotten(&self) {
        let rests = || self.nodes() > KEPT_NODES && self.eviction.has_rested() && self.listing.are_over();
        if self.eviction.forgotten.load(Ordering::Relaxed) < WORTHWHILE || !rests() {
            return;
        }
        self.eviction.forgotten.store(0, Ordering::Relaxed);
        let dropped = self.evict_while(rests);
        tracing::debug!(dropped, "nodes that the kernel has forgotten were dropped");
        if dropped >= WORTH_TRIMMING {
            give_memory_back();
        }
    }

    /// How many files, directories and other things are held.
    pub fn nodes(&self) -> usize {
        self.lock().tree.len()
    }

    /// Drops every node that nobody knows and that a listing tells again; returns how many. The lock is held for a moment
    /// at a time.
    pub fn evict(&self) -> usize {
        self.evict_while(|| true)
    }

    fn evict_while(&self, go_on: impl Fn() -> bool) -> usize {
        let mut dropped = 0;
        // What is in a directory goes before it does itself.
        for dir in self.dirs_from_the_root().into_iter().rev() {
            let mut after = None;
            let mut is_begun = false;
            while go_on() {
                let done = self.change(|state| Ok(state.evict_some(dir, after.take(), &mut is_begun)));
                // What cannot be put on record stops it: nothing of this is.
                let Ok((some, next)) = done else { return dropped };
                dropped += some;
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        dropped
    }

    /// Every directory, after those that it is in.
    fn dirs_from_the_root(&self) -> Vec<Ino> {
        let mut found = vec![ROOT];
        let mut next = 0;
        while let Some(&dir) = found.get(next) {
            next += 1;
            let mut after: Option<Name> = None;
            loop {
                let state = self.lock();
                let mut last = None;
                for (name, child) in state.entries_after(dir, after.as_ref()).take(AT_ONCE) {
                    if state.tree.get(child).is_some_and(Inode::is_dir) {
                        found.push(child);
                    }
                    last = Some(name);
                }
                let last = last.cloned();
                drop(state);
                match last {
                    Some(name) => after = Some(name),
                    None => break,
                }
            }
        }
        found
    }
}

impl State {
    fn entries_after(&self, dir: Ino, after: Option<&Name>) -> impl Iterator<Item = (&Name, Ino)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let children = self.tree.dir(dir).map(|dir| dir.children.range::<Name, _>((from, Bound::Unbounded)));
        children.into_iter().flatten().map(|(name, ino)| (name, *ino))
    }

    /// Drops some of a directory's entries; returns how many, and the name behind which it goes on.
    fn evict_some(&mut self, dir: Ino, after: Option<Name>, is_begun: &mut bool) -> (usize, Option<Name>) {
        let is_at_rest = self.tree.get(dir).is_some_and(|inode| match &inode.body {
            // One that somebody reads goes on from the entries that it has.
            Body::Dir(here) => here.based && (here.listed || *is_begun) && inode.opens == 0,
            _ => false,
        });
        if !is_at_rest || self.tree.lost() == Some(dir) || self.unreadable.is_flawed(dir) {
            return (0, None);
        }
        let some: Vec<(Name, Ino)> =
            self.entries_after(dir, after.as_ref()).take(AT_ONCE).map(|(name, ino)| (name.clone(), ino)).collect();
        let last = some.last().map(|(name, _)| name.clone());
        let mut dropped = 0;
        for (name, child) in some {
            if !self.is_told_again(dir, &name, child) {
                continue;
            }
            if !std::mem::replace(is_begun, true) {
                self.tree.set_unlisted(dir);
                // What the kernel kept of its listing has the numbers of what goes.
                self.shift(dir);
            }
            self.tree.take_away(dir, &name, false);
            self.tree.forget_inode(child);
            dropped += 1;
        }
        (dropped, last)
    }

    /// Whether nobody knows of a node, and a listing of its directory makes just the same.
    fn is_told_again(&self, dir: Ino, name: &Name, ino: Ino) -> bool {
        let Some(inode) = self.tree.get(ino) else { return false };
        let is_known = inode.lookups > 0 || inode.opens > 0 || self.handles.is_open(ino) || self.handles.is_busy(ino);
        let is_clean = !inode.recorded && inode.links.len() == 1 && inode.xattrs.is_none();
        let is_of_the_base = match &inode.body {
            Body::File { content: Content::Remote { origin, .. }, .. } => origin.is_none(),
            Body::Dir(below) => {
                below.based && below.children.is_empty() && below.hidden.is_empty() && !self.unreadable.is_flawed(ino)
            }
            _ => false,
        };
        !is_known && is_clean && is_of_the_base && self.is_none_of_writebacks(dir, name)
    }

    /// Whether nothing is known of a path but what the base has there.
    fn is_none_of_writebacks(&self, dir: Ino, name: &Name) -> bool {
        let Ok(path) = self.tree.path_in(dir, name) else { return false };
        let writeback = &self.writeback;
        writeback.account(&path).is_none() && !writeback.is_pending(&path) && writeback.conflict(&path).is_none()
    }
}

/// Has the allocator give back what is free: freed between what is in use, it stays with the process by itself.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and changes nothing that is in use (`malloc_trim(3)`).
    unsafe {
        libc::malloc_trim(0);
    }
}
