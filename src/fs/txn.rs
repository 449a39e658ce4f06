//! Transactions: the one way to change what the filesystem knows.
//!
//! Whoever has the lock sees everything; to change anything takes a [`Txn`]. Its changes go on record as one frame, and
//! with them every inode that was changed, as it is then: nobody does that by hand. What is to be done when the lock is
//! free is collected meanwhile.
//!
//! A transaction that ends early, by an error or a panic, leaves nothing to another's frame: what it did up to then is in
//! memory, so it goes on record too, as a frame of its own. Each change by itself is one that a replay believes, so the
//! record of any number of them is, and memory and record agree whatever happens.

use std::ops::{Deref, DerefMut};

use super::{Fs, FsError, Op, Stale, State};
use crate::namespace::{Attrs, Body, Ino, ROOT, SpoolId};
use crate::store::journal::{Change, Ticket};
use crate::sync::{self, Locked};

/// What a transaction has changed, and leaves to do.
#[derive(Default)]
pub(super) struct Draft {
    /// Changes that were made and are yet to be appended to the record.
    changes: Vec<Change>,
    /// Bytes that are counted for no file any more, and spool files that no file has, but for those that are held.
    left: Vec<(u64, Option<SpoolId>)>,
}

impl Draft {
    /// How many changes are yet to be appended.
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}

/// All that the filesystem knows, to be looked at.
pub(super) struct Reading<'a>(Locked<'a, State>);

impl Deref for Reading<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

/// All that the filesystem knows, to be changed. [`commit`](Self::commit) returns when that is written. Dropped, it is
/// appended all the same, and written with what comes next: enough for what the record need not know, as most of what
/// changes outside of [`Fs::change`].
pub(super) struct Txn<'a> {
    fs: &'a Fs,
    // Dropped before what is to be done when the lock is free.
    state: Locked<'a, State>,
    after: Option<After<'a>>,
}

impl Deref for Txn<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Txn<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl<'a> Txn<'a> {
    /// Returns once the changes, and all that was changed before, are in the kernel.
    ///
    /// # Errors
    /// When they cannot be written. They are made all the same, and go on record as soon as that works.
    pub fn commit(mut self) -> Result<(), FsError> {
        let after = self.seal();
        drop(self);
        after.written()
    }

    /// Appends what was changed to the record.
    fn seal(&mut self) -> After<'a> {
        let frame = self.state.take_frame();
        let judge = !frame.is_empty() && self.state.patterns_changed();
        let after = After {
            fs: self.fs,
            ticket: self.fs.journal.append(&frame),
            recorded: !frame.is_empty(),
            stale: self.state.kernel.take_stale(),
            left: std::mem::take(&mut self.state.draft.left),
            // Not for every change: waking a sleeping thread costs more than the change.
            news: self.state.writeback.has_news() || judge,
            withdrawn: self.state.writeback.has_withdrawn(),
        };
        #[cfg(debug_assertions)]
        self.state.check_now_and_then();
        after
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if self.state.is_changed() {
            self.after = Some(self.seal());
        }
    }
}

/// What is to be done when the lock is free; done when this is dropped.
struct After<'a> {
    fs: &'a Fs,
    ticket: Ticket,
    /// Whether there is anything to be written for it.
    recorded: bool,
    stale: Vec<Stale>,
    left: Vec<(u64, Option<SpoolId>)>,
    /// Something is due before all that the stager knows of, or what is ignored is to be judged again.
    news: bool,
    /// What somebody waited for is owed no more.
    withdrawn: bool,
}

impl After<'_> {
    fn tell(&mut self) {
        if std::mem::take(&mut self.news) {
            self.fs.wake.notify_one();
        }
        if std::mem::take(&mut self.withdrawn) {
            self.fs.progress.notify_waiters();
        }
        self.fs.tell_kernel(std::mem::take(&mut self.stale));
    }

    /// Waits until it is written.
    fn written(mut self) -> Result<(), FsError> {
        self.tell();
        // With nothing to put on record too: what this relies on may be in a frame that another thread has yet to write,
        // as the spool file that a write went to.
        let written = self.fs.journal.commit(self.ticket);
        if written.is_err() && self.recorded {
            self.fs.begin().kernel.heard_of_failure();
        }
        Ok(written?)
    }
}

impl Drop for After<'_> {
    fn drop(&mut self) {
        self.tell();
        // Also of what could not be put on record: until it can, nothing leaves.
        for (counted, spool) in self.left.drain(..) {
            self.fs.spool.release(counted);
            spool.into_iter().for_each(|spool| self.fs.leave(spool));
        }
    }
}

impl Fs {
    /// All that the filesystem knows, to be looked at.
    pub(super) fn lock(&self) -> Reading<'_> {
        Reading(sync::lock(&self.state))
    }

    /// All that the filesystem knows, to be changed.
    pub(super) fn begin(&self) -> Txn<'_> {
        Txn { fs: self, state: sync::lock(&self.state), after: None }
    }

    /// Makes changes under the lock, and returns once they, and all that was changed before, are in the kernel. An
    /// operation that fails has found out before it changed anything that goes on record.
    pub(super) fn change<T>(&self, op: impl FnOnce(&mut State) -> Op<T>) -> Op<T> {
        let mut txn = self.begin();
        let out = op(&mut txn);
        debug_assert!(out.is_ok() || !txn.is_changed(), "an operation failed half-way");
        txn.commit()?;
        out
    }
}

impl State {
    /// Makes a change, in memory and in the frame. The same code replays the journal.
    pub(super) fn apply(&mut self, change: Change) {
        self.replay(&change);
        let judged = match &change {
            Change::Link { .. } | Change::Rebase { .. } | Change::Account { .. } => self.judge_change(&change),
            _ => Vec::new(),
        };
        self.draft.changes.push(change);
        judged.into_iter().for_each(|change| self.apply(change));
    }

    /// Puts on record what memory has already.
    pub(super) fn note(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.draft.changes.extend(changes);
    }

    /// Adds an inode, whose name is to follow.
    pub(super) fn add(&mut self, attrs: Attrs, body: Body) -> Ino {
        let ino = self.tree.add(attrs, body);
        self.record(ino);
        ino
    }

    /// Puts an inode of the base on record, with the directories above it: before its names or entries change. What is
    /// [edited](super::tree::Tree::edit) is put on record anyway.
    pub(super) fn materialize(&mut self, ino: Ino) {
        let Some(inode) = self.tree.get(ino) else { return };
        if inode.recorded || self.tree.lost() == Some(ino) {
            return;
        }
        let links = inode.links.to_vec();
        for (parent, _) in &links {
            self.materialize(*parent);
        }
        self.record(ino);
        let lost = self.tree.lost();
        for (parent, name) in links.into_iter().filter(|(parent, _)| Some(*parent) != lost) {
            self.draft.changes.push(Change::Link { parent, name, ino });
        }
    }

    /// Puts an inode on record as it is now.
    fn record(&mut self, ino: Ino) {
        // Made anew by every mount.
        if self.tree.lost() == Some(ino) {
            return;
        }
        if let Some(record) = self.tree.record(ino) {
            self.apply(Change::Inode { ino, record });
        }
    }

    /// No file has this spool file any more, and so much is not counted any more. It goes when the record of that is on
    /// stable storage, and nobody holds it.
    pub(super) fn discard(&mut self, spool: SpoolId, counted: u64) {
        let free = self.backing.abandon(spool);
        self.draft.left.push((counted, free));
    }

    /// Whether anything is yet to be put on record, or to be done when the lock is free.
    pub(super) fn is_changed(&self) -> bool {
        self.tree.has_changed()
            || !self.draft.changes.is_empty()
            || !self.draft.left.is_empty()
            || self.kernel.has_stale()
    }

    /// What is to be put on record, with every inode that was changed, as it is now.
    pub(super) fn take_frame(&mut self) -> Vec<Change> {
        let changed = self.tree.take_changed();
        for ino in changed.iter().copied() {
            match self.tree.get(ino) {
                // What has no name any more is gone with the daemon.
                Some(inode) if inode.links.is_empty() && ino != ROOT => {}
                Some(inode) if inode.recorded => self.record(ino),
                Some(_) => self.materialize(ino),
                None => {}
            }
        }
        self.tree.return_room(changed);
        std::mem::take(&mut self.draft.changes)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use crate::fs::costs::{World, attrs, name_of, path_of};
    use crate::fs::{FsError, SetAttr, State, Stop};
    use crate::namespace::{Content, ROOT};
    use crate::store::journal::Change;

    fn file(world: &World, name: &str) -> crate::namespace::Ino {
        world.fs.mknod(ROOT, &name_of(name), attrs(), libc::S_IFREG, 0).unwrap().ino
    }

    /// What the record has of a path by now, if it is there: a mode and how many names.
    fn recorded(world: &World, path: &str) -> Option<(u16, usize)> {
        let state = world.recorded();
        let (dir, name) = state.place_of(&path_of(path))?;
        let ino = state.tree.child(dir, &name)?;
        state.tree.get(ino).map(|inode| (inode.attrs.mode, inode.links.len()))
    }

    /// Whether anything is appended to the record.
    fn is_recorded(world: &World, work: impl FnOnce()) -> bool {
        let before = world.fs.journal.append(&[]);
        work();
        world.fs.journal.append(&[]) != before
    }

    fn panics(world: &World, op: impl FnOnce(&mut State)) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            world.fs.change(|state| {
                op(state);
                panic!("half-way");
                #[expect(unreachable_code, reason = "a type for the answer")]
                Ok(())
            })
        }));
        assert!(done.is_err());
    }

    #[test]
    fn what_was_changed_is_on_record_without_a_word_of_the_operation() {
        let world = World::on(&["base/below"]);
        let dir = world.fs.lookup(ROOT, &name_of("base")).unwrap().ino;
        let ino = world.fs.lookup(dir, &name_of("below")).unwrap().ino;
        assert_eq!(recorded(&world, "base/below"), None, "the base tells");
        world
            .fs
            .change(|state| {
                state.tree.edit(ino).unwrap().attrs.mode = 0o611;
                Ok(())
            })
            .unwrap();
        assert_eq!(recorded(&world, "base/below"), Some((0o611, 1)), "and the directory above it");
        assert_eq!(world.fs.check(), [""; 0]);
    }

    #[test]
    fn a_panic_half_way_leaves_nothing_to_the_frame_of_another() {
        let world = World::on(&[]);
        let (one, two) = (file(&world, "one"), file(&world, "two"));
        let half = |state: &mut State| {
            state.tree.edit(one).unwrap().attrs.mode = 0o600;
            state.apply(Change::Unlink { parent: ROOT, name: name_of("one"), hide: false });
            state.apply(Change::Link { parent: ROOT, name: name_of("moved"), ino: one });
            state.tree.edit(two).unwrap().attrs.mode = 0o644;
        };
        assert!(is_recorded(&world, || panics(&world, half)), "as a frame of its own");
        assert_eq!(world.fs.check(), [""; 0], "memory and record agree, and the lock is free");
        // Written with the next.
        world.fs.mkdir(ROOT, &name_of("next"), attrs()).unwrap();
        assert_eq!(recorded(&world, "moved"), Some((0o600, 1)));
        assert_eq!((recorded(&world, "one"), recorded(&world, "two")), (None, Some((0o644, 1))));
    }

    #[test]
    fn a_spool_file_that_was_left_before_a_panic_goes_all_the_same() {
        let world = World::on(&[]);
        let ino = file(&world, "gone");
        let spool = match world.fs.lock().content(ino) {
            Some((Content::Local { spool, .. }, _)) => *spool,
            content => panic!("{content:?}"),
        };
        panics(&world, |state| {
            state.uproot(ROOT, &name_of("gone"), ino, &world.fs);
            state.tree.forgotten(ino, 1);
            state.bury(ino);
        });
        world.fs.tidy_all().unwrap();
        assert!(world.fs.spool.file(spool).is_err());
        assert_eq!(world.fs.check(), [""; 0]);
    }

    #[test]
    fn an_operation_that_is_refused_has_changed_nothing() {
        let world = World::on(&[]);
        let ino = file(&world, "file");
        let recorded_now = is_recorded(&world, || {
            let refused = world.fs.change(|state| match state.content(ino) {
                Some(_) => Err::<(), Stop>(FsError::Exists.into()),
                None => Ok(()),
            });
            assert!(matches!(refused, Err(Stop::Error(FsError::Exists))));
        });
        assert!(!recorded_now);
        let half = catch_unwind(AssertUnwindSafe(|| {
            world.fs.change(|state| {
                state.tree.edit(ino).unwrap().attrs.mode = 0;
                Err::<(), Stop>(FsError::Exists.into())
            })
        }));
        assert!(half.is_err(), "that would be told in tests");
        world.fs.setattr(ino, &SetAttr { mode: Some(0o640), ..SetAttr::default() }).unwrap();
        assert_eq!(recorded(&world, "file"), Some((0o640, 1)));
    }

    #[test]
    fn a_change_of_memory_alone_makes_no_frame() {
        let world = World::on(&[]);
        let ino = file(&world, "file");
        assert!(!is_recorded(&world, || world.fs.begin().tree.looked_up(ino)));
        assert!(
            is_recorded(&world, || assert!(world.fs.begin().tree.edit(ino).is_some())),
            "this goes on record at its end"
        );
    }
}
