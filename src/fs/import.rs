//! Taking whole files in, many at a time, without the kernel's requests: an import. What a file's name stands for
//! changes from nothing, or the old file, to the new one in one step.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use super::room::even;
use super::{Fs, FsError, Need, Op, State, Stop, now, set_mtime, staging};
use crate::namespace::{Attrs, Body, Content, Dir, Ino, ROOT, SpoolId, Timestamp};
use crate::path::Name;
use crate::store::disk::Act;
use crate::store::journal::Change;
use crate::store::spool::holes::{counted, counted_of, may_have};
use crate::store::spool::{copy_growing, room, room_of};

/// The longest quiet period that is there only for those who write a file bit by bit. What arrives is whole: it waits for
/// no such period, but for a longer one, which somebody asked for.
const FOR_WRITERS: Duration = Duration::from_secs(1);

/// Something to be given a name, in place of whatever has it, but for a directory.
pub struct Arrival {
    /// The directory.
    pub parent: Ino,
    /// The name there.
    pub name: Name,
    /// Modes, owners, times.
    pub attrs: Attrs,
    /// What it is.
    pub arrived: Arrived,
}

/// What is to be given a name.
pub enum Arrived {
    /// A regular file.
    File(Spooled),
    /// A symbolic link and its target.
    Link(Box<[u8]>),
}

/// A file in the spool that has no name yet. It goes, and what it counts for is free, when this is dropped.
pub struct Spooled {
    fs: Arc<Fs>,
    id: Option<SpoolId>,
    size: u64,
    /// What it takes of the disk, in bytes, and what is counted for it.
    room: u64,
    counted: u64,
}

impl Spooled {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its spool file, which gets a name now; and what it takes of the disk.
    pub(super) fn take(&mut self) -> Option<(SpoolId, u64)> {
        self.id.take().map(|id| (id, self.room))
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.fs.spool.remove(id);
            self.fs.spool.release(self.counted);
        }
    }
}

impl State {
    /// Fails where an arrival cannot be, without changing anything.
    fn check_arrival(&self, arrival: &Arrival) -> Op<()> {
        match self.entry(arrival.parent, &arrival.name)? {
            Some(there) if self.tree.dir(there).is_some() => Err(FsError::IsDir.into()),
            Some(_) => Ok(()),
            None => self.vacancy(arrival.parent, &arrival.name),
        }
    }

    /// Gives an arrival its name.
    fn arrive(&mut self, arrival: &mut Arrival, fs: &Fs) -> Op<()> {
        self.check_arrival(arrival)?;
        let (parent, name) = (arrival.parent, &arrival.name);
        let mut replaced = Vec::new();
        if let Some(old) = self.entry(parent, name)? {
            if let Ok(path) = self.tree.path_in(parent, name) {
                replaced = self.writeback.leave_replaced(&path);
            }
            self.uproot(parent, name, old, fs);
            self.bury(old);
            self.kernel.name_changed(parent, name.clone());
        }
        let body = match &mut arrival.arrived {
            Arrived::File(file) => {
                let spool = file.id.take().ok_or(FsError::Stale)?;
                let generation = self.tree.fresh_generation();
                Body::File { content: Content::Local { spool, generation, hash: None }, size: file.size }
            }
            Arrived::Link(target) => Body::Symlink(target.clone()),
        };
        let mut attrs = Attrs { ctime: now(), ..arrival.attrs };
        self.inherit_group(parent, &mut attrs, &body);
        let room = match &arrival.arrived {
            Arrived::File(file) => Some(file.room),
            Arrived::Link(_) => None,
        };
        let is_file = room.is_some();
        let ino = self.add(attrs, body);
        if let Some(room) = room {
            self.note_room(ino, room);
        }
        self.apply(Change::Link { parent, name: name.clone(), ino });
        if is_file && let Ok(path) = self.tree.path_in(parent, name) {
            self.open_account(&path, None);
            let settle = Some(fs.options.settle).filter(|settle| *settle > FOR_WRITERS);
            self.writeback.owe(&path, settle.unwrap_or_default());
            let size = self.content(ino).map_or(0, |(_, size)| size);
            self.writeback.join(&replaced, &path, size, true);
        }
        Ok(())
    }
}

impl Fs {
    /// The directory that `names` lead to, from the mount's root.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`]; [`FsError::ReadOnly`], since it is asked in order to write there.
    pub fn find_dir(&self, names: &[Name]) -> Op<Ino> {
        self.writable_mount()?;
        let state = self.lock();
        let mut at = ROOT;
        for name in names {
            at = state.entry(at, name)?.ok_or(FsError::NotFound)?;
        }
        if state.tree.dir(at).is_some() { Ok(at) } else { Err(FsError::NotDir.into()) }
    }

    /// The directory `name`, made when it is not there. Says whether it was.
    ///
    /// # Errors
    /// [`FsError::NotDir`] when something else has the name; as [`mkdir`](Self::mkdir).
    pub fn ensure_dir(&self, parent: Ino, name: &Name, mut attrs: Attrs) -> Op<(Ino, bool)> {
        self.admit()?;
        self.change(|state| {
            if let Some(there) = state.entry(parent, name)? {
                return match state.tree.dir(there) {
                    Some(_) => Ok((there, false)),
                    None => Err(FsError::NotDir.into()),
                };
            }
            state.vacancy(parent, name)?;
            let body = Body::Dir(Box::new(Dir { listed: true, ..Dir::default() }));
            let time = now();
            (attrs.atime, attrs.mtime, attrs.ctime) = (time, time, time);
            state.inherit_group(parent, &mut attrs, &body);
            state.stamp_dir(parent, time);
            let ino = state.add(attrs, body);
            state.apply(Change::Link { parent, name: name.clone(), ino });
            state.shift(parent);
            Ok((ino, true))
        })
    }

    /// Sets when a directory was last changed.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn date(&self, ino: Ino, mtime: Timestamp) -> Op<()> {
        self.change(|state| {
            state.tree.edit(ino).ok_or(FsError::Stale)?.attrs.mtime = mtime;
            state.kernel.content_changed(ino);
            Ok(())
        })
    }

    /// Copies an open file into the spool, by sharing its blocks where the filesystem can. Returns it with its modes,
    /// its times, and the owner that it has there. `go_on` is told of bytes that were copied now and then, and
    /// ends the copy by an error.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Unsupported`] for anything but a regular file, the local filesystem's.
    pub fn spool_in(
        &self,
        from: &File,
        buffer: &mut Vec<u8>,
        mut go_on: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(Spooled, Attrs), FsError> {
        let found = from.metadata()?;
        if !found.is_file() {
            return Err(FsError::Unsupported);
        }
        staging::into_plain(self.admit())?;
        self.make_room(counted_of(&found));
        let fs = self.this.upgrade().ok_or(FsError::Stale)?;
        let (id, to) = self.spool.create()?;
        let mut spooled = Spooled { fs, id: Some(id), size: 0, room: 0, counted: 0 };
        let mut told = 0;
        // Its holes are the copy's.
        let sparse = may_have(&found);
        let most = |upto: u64| match sparse {
            true => upto.min(room_of(&found) + upto.saturating_sub(found.len())),
            false => upto,
        };
        let copied = self.spool.disk().act(Act::Write(&to), || {
            copy_growing(from, &to, buffer, |copied, upto| {
                go_on(copied - std::mem::replace(&mut told, copied))?;
                self.spool.reserve(most(upto).saturating_sub(spooled.counted))?;
                spooled.counted = spooled.counted.max(most(upto));
                Ok(())
            })
        })?;
        spooled.size = copied;
        // Of one without holes it is known.
        spooled.room = sparse.then(|| room(&to)).flatten().unwrap_or_else(|| even(copied));
        let taken = counted(copied, spooled.room);
        self.spool.recount(std::mem::replace(&mut spooled.counted, taken), taken);
        go_on(copied.saturating_sub(told))?;
        let time = |secs, nanos: i64| Timestamp(secs, u32::try_from(nanos).unwrap_or(0));
        let attrs = Attrs {
            mode: (found.mode() & 0o7777) as u16,
            uid: found.uid(),
            gid: found.gid(),
            atime: time(found.atime(), found.atime_nsec()),
            mtime: time(found.mtime(), found.mtime_nsec()),
            ctime: now(),
        };
        // After a crash the spool file's own time is what counts.
        set_mtime(&to, attrs.mtime)?;
        Ok((spooled, attrs))
    }

    /// Gives arrivals their names, all in one frame of the record. The outcomes come in their order.
    ///
    /// # Errors
    /// When the record cannot be written: for all of them.
    pub fn take_in(&self, arrivals: &mut [Arrival]) -> Op<Vec<Result<(), FsError>>> {
        let done = self.change(|state| {
            // Before anything changes: what is needed makes all of it begin again.
            for arrival in arrivals.iter() {
                if let Err(Stop::Need(need)) = state.check_arrival(arrival) {
                    return Err(Stop::Need(need));
                }
            }
            let mut parents = BTreeSet::new();
            let mut outcomes = Vec::with_capacity(arrivals.len());
            for arrival in arrivals.iter_mut() {
                outcomes.push(match state.arrive(arrival, self) {
                    Ok(()) => {
                        parents.insert(arrival.parent);
                        Ok(())
                    }
                    Err(Stop::Error(error)) => Err(error),
                    Err(Stop::Need(Need::List(_) | Need::ListAll(_))) => Err(FsError::NotFound),
                    Err(Stop::Need(_)) => Err(FsError::Stale),
                });
            }
            let time = now();
            for parent in parents {
                state.stamp_dir(parent, time);
                state.shift(parent);
            }
            Ok(outcomes)
        });
        self.wake.notify_one();
        done
    }
}
