//! Directories as they are read: the place that each entry has in a listing, and what the kernel may keep of one.
//!
//! An entry's place comes from its name alone, as in ext4's hashed directories. So a listing can go on where another one
//! ended: of what is there from the first to the last, nothing is missed and nothing seen twice, whatever comes and
//! goes meanwhile. The kernel needs that: it begins in a listing that it kept, and goes on with ours once it has dropped
//! that (`fuse_readdir_cached` in fs/fuse/readdir.c of Linux).

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{DirEntry, Fs, FsError, Handle, Need, Op, State, Stop};
use crate::namespace::{Body, Ino};
use crate::path::Name;

/// Entries by their places, which grow.
pub(super) type Snapshot = Arc<[(u64, Name)]>;

/// The places behind `.` and `..`, whose own are 0 and 1.
const DOTS: u64 = 2;
/// Names that hash alike have places one behind the other. One in 70,000 directories of a million names has such a pair;
/// when one of the two goes, the other one's place may change.
const ALIKE_BITS: u32 = 8;

/// What the kernel may keep of a directory's listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// What it has, and what it reads now.
    All,
    /// What it reads now. What it has may lack changes that did not come through it.
    New,
    /// Nothing: a listing that began before such a change may still be read.
    Nothing,
}

/// A directory that was opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenedDir {
    /// To be released.
    pub handle: u64,
    /// What the kernel may keep.
    pub keep: Keep,
}

/// Gives each name its place.
fn places(names: Vec<Name>) -> Snapshot {
    // Positive as an `off_t`, and behind the dots.
    let hashed = |name: &Name| (xxh3_64(name.as_bytes()) >> (ALIKE_BITS + 1)).max(1) << ALIKE_BITS;
    let mut places: Vec<(u64, Name)> = names.into_iter().map(|name| (hashed(&name), name)).collect();
    places.sort_unstable();
    let mut last = 0;
    for (place, _) in &mut places {
        if *place <= last {
            *place = last + 1;
        }
        last = *place;
    }
    places.into()
}

impl State {
    /// Entries of a directory come or go without the kernel's doing.
    pub(super) fn shift(&mut self, dir: Ino) {
        if let Some(dir) = self.tree.dir_mut(dir) {
            dir.shifted = true;
        }
    }

    /// The snapshot that a handle reads.
    fn snapshot(&self, handle: u64) -> Op<(Ino, Option<Snapshot>)> {
        match self.handles.get(&handle) {
            Some(Handle::Dir { ino, entries }) => Ok((*ino, entries.clone())),
            _ => Err(FsError::BadHandle.into()),
        }
    }
}

impl Fs {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`FsError::NotDir`]; the server's when it must be listed.
    pub fn opendir(&self, ino: Ino) -> Op<OpenedDir> {
        let mut state = self.lock();
        state.need_seen_in(ino)?;
        let inode = state.tree.get_mut(ino).ok_or(FsError::Stale)?;
        let Body::Dir(dir) = &mut inode.body else { return Err(FsError::NotDir.into()) };
        if !dir.listed {
            return Err(Stop::Need(Need::List(ino)));
        }
        let keep = match (dir.shifted, inode.opens) {
            (false, _) => Keep::All,
            (true, 0) => Keep::New,
            (true, _) => Keep::Nothing,
        };
        dir.shifted = keep == Keep::Nothing;
        inode.opens += 1;
        let handle = state.fresh_handle();
        state.handles.insert(handle, Handle::Dir { ino, entries: None });
        Ok(OpenedDir { handle, keep })
    }

    /// Hands the entries from `offset` on to `take` until it says that it is full. With `count`, those it took count
    /// as looked up, but for `.` and `..`.
    ///
    /// A listing that starts at 0 shows the directory as it is then; it goes on over the same snapshot, so that no
    /// entry is missed or seen twice however the directory changes meanwhile.
    ///
    /// # Errors
    /// [`FsError::BadHandle`].
    pub fn readdir(
        &self,
        handle: u64,
        offset: u64,
        count: bool,
        mut take: impl FnMut(&DirEntry<'_>) -> bool,
    ) -> Op<()> {
        let snapshot = self.snapshot(handle, offset == 0)?;
        let mut state = self.lock();
        let state = &mut *state;
        let (ino, _) = state.snapshot(handle)?;
        let parent = state.tree.get(ino).and_then(|inode| inode.links.first()).map_or(ino, |(parent, _)| *parent);
        let dots: [(&[u8], Ino); DOTS as usize] = [(b".", ino), (b"..", parent)];
        for (next, (name, child)) in (1..).zip(dots).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if take(&DirEntry { name, stat: state.stat(child)?, next }) {
                return Ok(());
            }
        }
        let begin = snapshot.partition_point(|(place, _)| *place <= offset);
        for (place, name) in &snapshot[begin..] {
            // What the name stands for now: the kernel believes what a listing says of an entry, and one that was
            // removed meanwhile would be back.
            let Some(child) = state.tree.child(ino, name) else { continue };
            let stat = self.stat(state, child)?;
            if take(&DirEntry { name: name.as_bytes(), stat, next: *place }) {
                break;
            }
            if count && let Some(inode) = state.tree.get_mut(child) {
                inode.lookups += 1;
            }
        }
        Ok(())
    }

    /// The snapshot that a handle reads: the one it has, or one of now. It is sorted without the lock.
    fn snapshot(&self, handle: u64, anew: bool) -> Op<Snapshot> {
        let names: Vec<Name> = {
            let state = self.lock();
            match state.snapshot(handle)? {
                (_, Some(snapshot)) if !anew => return Ok(snapshot),
                (ino, _) => state.tree.dir(ino).into_iter().flat_map(|dir| dir.children.keys().cloned()).collect(),
            }
        };
        let snapshot = places(names);
        if let Some(Handle::Dir { entries, .. }) = self.lock().handles.get_mut(&handle) {
            *entries = Some(snapshot.clone());
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u32) -> Name {
        Name::new(format!("image_{number:07}.jpg").as_bytes()).unwrap()
    }

    #[test]
    fn places_are_of_names_alone_and_fit_an_off_t() {
        let all = places((0..10_000).map(name).collect());
        let some = places((0..10_000).step_by(7).map(name).collect());
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(all.iter().all(|(place, _)| *place > DOTS && i64::try_from(*place).is_ok()));
        assert!(some.iter().all(|entry| all.contains(entry)));
    }
}
