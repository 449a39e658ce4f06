//! Directories as they are read, and what the kernel may keep of that.
//!
//! Every answer is of now, from the place behind the last entry on. So a listing can go on where another one ended: of
//! what is there all the time, nothing is missed and nothing seen twice. The kernel needs both. It puts together what it
//! keeps from the answers to whoever comes next (`fuse_add_dirent_to_cache` in fs/fuse/readdir.c of Linux), so that an
//! answer from before a change would stay; and it goes on with ours where it has dropped what it kept.

use std::time::{Duration, Instant};

use super::{DirEntry, Fs, FsError, Need, Op, Stop};
use crate::namespace::{DOTS, Ino};
use crate::path::Name;

/// How long the kernel may take an answer for granted. Everything changes through it or is told to it, but for what
/// others commit.
pub const GRANTED: Duration = Duration::from_secs(60);
/// Entries looked at before the reply is asked for room.
const AT_ONCE: usize = 64;

/// What the kernel may keep of a directory's listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// What it has, and what it reads now.
    All,
    /// What it reads now.
    New,
    /// What it has may lack changes, and listings that began before those may still be read: it is to leave both alone.
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

impl Fs {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`FsError::NotDir`]; the server's when it must be listed.
    pub fn opendir(&self, ino: Ino) -> Op<OpenedDir> {
        let mut state = self.begin();
        state.need_seen_in(ino)?;
        let doubts = state.kernel.doubts();
        let opens = state.tree.get(ino).ok_or(FsError::Stale)?.opens;
        if !state.tree.dir(ino).ok_or(FsError::NotDir)?.listed {
            return Err(Stop::Need(Need::List(ino)));
        }
        let Some(view) = state.tree.view(ino) else { return Err(FsError::NotDir.into()) };
        view.shifted |= view.doubts != doubts;
        view.doubts = doubts;
        // A listing that is read anew brings the attributes of the entries along, which are wanted by then.
        let old = view.read.is_some_and(|read| read.elapsed() > GRANTED);
        let keep = match opens {
            0 if view.shifted || old => Keep::New,
            0 => Keep::All,
            // The kernel looks whether anything has changed only where a listing begins (`fuse_readdir_cached`).
            _ if view.shifted || view.mixed => Keep::Nothing,
            _ => Keep::All,
        };
        view.shifted &= keep == Keep::Nothing;
        state.tree.opened(ino);
        let handle = state.handles.open_dir(ino);
        Ok(OpenedDir { handle, keep })
    }

    /// Hands the entries from `offset` on to `take` until it says that it is full. With `count`, those it took count
    /// as looked up, but for `.` and `..`.
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
        let mut state = self.begin();
        let state = &mut *state;
        let ino = state.handles.dir(handle)?;
        if let Some(view) = state.tree.view(ino)
            && offset == 0
        {
            view.read = Some(Instant::now());
        }
        let parent = state.tree.get(ino).and_then(|inode| inode.links.first()).map_or(ino, |(parent, _)| *parent);
        let dots: [(&[u8], Ino); DOTS as usize] = [(b".", ino), (b"..", parent)];
        for (next, (name, child)) in (1..).zip(dots).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if take(&DirEntry { name, stat: state.stat(child)?, next }) {
                return Ok(());
            }
        }
        let mut at = offset.max(DOTS);
        loop {
            let Some(order) = state.tree.order(ino) else { return Ok(()) };
            let some: Vec<(u64, Name)> =
                order.after(at).take(AT_ONCE).map(|(place, name)| (place, name.clone())).collect();
            if some.is_empty() {
                return Ok(());
            }
            for (place, name) in some {
                at = place;
                let Some(child) = state.tree.child(ino, &name) else { continue };
                let stat = self.stat(state, child)?;
                if take(&DirEntry { name: name.as_bytes(), stat, next: place }) {
                    return Ok(());
                }
                if count {
                    state.tree.looked_up(child);
                }
            }
        }
    }
}
