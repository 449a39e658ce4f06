//! Files whose bytes programs reach past the daemon: lent to the kernel, looked at, copied, and taken back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::backing::{Look, Seen};
use super::local::quarter_of_descriptors;
use super::passthrough::{Bytes, Opening, Passthrough, Reach, Way};
use super::room::even;
use super::standing::Event;
use super::tree::Token;
use super::{Fs, FsError, State, now};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino, Resolved, SpoolId, Timestamp};
use crate::path::RepoPath;
use crate::store::disk::Act;
use crate::store::journal::Change;
use crate::store::spool::holes::counted;
use crate::store::spool::{self, copy_content};
use crate::writeback::index::Account;
use crate::writeback::queue::Phase;

/// How often a copy is begun anew because its original was written to meanwhile. A program that never pauses gets one
/// that has all that it had written before.
const COPIES: u32 = 3;

/// A file of the cache that is shorter is read with one or two requests, and stays in the kernel's cache from then on.
const WORTHWHILE_BYTES: u64 = 1 << 20;

/// Longer than a step of a filesystem's clock is anywhere (a tick of the kernel, 1 to 10 ms).
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// The kernel, which can be told to use a local file in place of requests.
pub trait Lender: Send + Sync {
    /// Makes a local file known; returns the number it has with the kernel.
    ///
    /// # Errors
    /// The kernel's.
    fn lend(&self, file: &File) -> io::Result<u32>;
    /// It is not needed any more. Those who have it open keep it.
    fn take_back(&self, number: u32);
    /// From which length on, in bytes, a file of the cache is worth lending to those who read it.
    fn worthwhile(&self) -> u64 {
        WORTHWHILE_BYTES
    }
}

/// A local file that the kernel knows by a number, as long as this lives.
pub(super) struct Loan {
    lender: Arc<dyn Lender>,
    number: u32,
}

impl Loan {
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.lender.take_back(self.number);
    }
}

/// What became of a live file.
pub(super) enum Asked {
    /// Somebody can still change it.
    Live,
    /// Nobody can any more. The hash is that of its content, if that is staged.
    Still(Option<ContentHash>),
}

/// Whether nobody at all can write to a file: no descriptor is open for it, and no mapping lives. Tried on ext4, tmpfs
/// and overlayfs: a read lease is refused with `EAGAIN` as long as one does (`fcntl(2)`).
///
/// # Errors
/// When the filesystem has no leases, or the file is somebody else's.
pub(super) fn is_unwritten(file: &File) -> io::Result<bool> {
    takes_lease(file, libc::F_RDLCK)
}

/// Whether nobody at all has a file but by this descriptor, which is for reading: no other is open for it, and no mapping
/// lives. Who opens it afterwards does not show.
///
/// # Errors
/// As [`is_unwritten`].
pub(super) fn is_alone(file: &File) -> io::Result<bool> {
    takes_lease(file, libc::F_WRLCK)
}

fn takes_lease(file: &File, lease: libc::c_int) -> io::Result<bool> {
    static UNHEARD: std::sync::Once = std::sync::Once::new();
    // A writer who opens the file in the same instant would have this process told, and by that ended.
    // SAFETY: a disposition for the whole process, of a signal that nothing else here uses.
    UNHEARD.call_once(|| unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
    });
    // SAFETY: both calls take numbers only, and the descriptor lives.
    let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) };
    if taken == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}

/// Returns when every write that was under way is over: what takes away an attribute waits for them, as for all who
/// change the file (`inode_lock` in `vfs_removexattr`, fs/xattr.c of Linux), and changes nothing if there is none.
fn end_of_writes(file: &File) {
    let _ = rustix::fs::fremovexattr(file, "user.oxenfs.none");
}

/// A spool file whose content the server has, and what is counted for it.
pub(super) struct Adopted {
    pub spool: SpoolId,
    pub hash: ContentHash,
    pub size: u64,
    pub counted: u64,
}

impl State {
    /// Which way an open for writing or not goes.
    pub(super) fn opening(&self, ino: Ino, write: bool, able: bool, fs: &Fs) -> Way {
        let bytes = match self.content(ino) {
            Some((Content::Local { spool, .. }, _)) if self.backing.is_held(*spool) => Bytes::Sealed,
            Some((Content::Local { .. }, _)) => Bytes::Own,
            Some((Content::Remote { .. }, size)) if fs.is_worthwhile(size) => Bytes::Cached,
            _ => Bytes::Away,
        };
        let guarded = self.tree.get(ino).is_some_and(super::is_guarded);
        Opening { able, way: self.handles.way(ino), bytes, live: self.backing.is_live(ino), write, guarded }.way()
    }

    /// From now on a file may change without a request. `file` is read-only.
    pub(super) fn enliven(&mut self, ino: Ino, file: &Arc<File>) {
        if !self.backing.enliven(ino, file) {
            return;
        }
        // A hash that is known is of the bytes up to now.
        self.tree.renew(ino);
    }

    /// Takes note of what programs did to a live file.
    pub(super) fn look(&mut self, ino: Ino, fs: &Fs) {
        // The end of a change by request takes note of all.
        if !self.backing.is_live(ino) || self.handles.is_changing(ino) {
            return;
        }
        let (before, found) = match self.backing.look(ino) {
            None => return,
            Some(Look::Resized(found)) => return self.resized(ino, found.size, fs),
            Some(Look::Changed(before, found)) => (before, found),
        };
        let mut stamp = None;
        self.tree.saw(ino, |attrs| {
            // The clock of the filesystem goes in steps, and may be behind that of the last change made here.
            let floor = attrs.ctime;
            let after = |time: Timestamp| if time > floor { time } else { now() };
            if found.mtime != before.mtime {
                attrs.mtime = after(found.mtime);
                // After a restart the spool file's own is what counts.
                stamp = Some(attrs.mtime).filter(|mtime| *mtime != found.mtime);
            }
            attrs.ctime = after(found.ctime);
        });
        if let Some(Err(error)) = stamp.map(|mtime| self.backing.stamp(ino, mtime)) {
            tracing::debug!(%error, "a restart will show another modification time");
        }
        let length = self.backing.seen(ino).map_or(found.size, |seen| seen.size);
        self.resized(ino, length, fs);
        self.changed(ino, fs);
    }

    /// A live file's length, which its inode has from now on; the spool counts it.
    fn resized(&mut self, ino: Ino, length: u64, fs: &Fs) {
        let before = self.counted(ino);
        self.tree.set_length(ino, length);
        // A filesystem may give more ahead of a writer, and take it back.
        let room = self.backing.seen(ino).map_or(even(length), |seen| seen.room);
        if room < even(length) || self.backing.is_uneven(ino) {
            self.note_room(ino, room);
        }
        fs.spool.recount(before, self.counted(ino));
    }

    /// After a change by request: what the file shows now is known, whoever else changed it. It gets the time of the
    /// change, which counts after a restart.
    pub(super) fn saw(&mut self, ino: Ino, fs: &Fs) {
        let Some(mtime) = self.tree.get(ino).map(|inode| inode.attrs.mtime) else { return };
        match self.backing.stamp(ino, mtime) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => tracing::debug!(%error, "a restart will show another modification time"),
        }
        let Some(length) = self.backing.seen(ino).map(|seen| seen.size) else { return };
        self.resized(ino, length, fs);
    }

    /// Finds out whether a live file that no program has open for writing can still be changed; asks again later if so.
    pub(super) fn ask_after(&mut self, ino: Ino, fs: &Fs) -> Asked {
        let Some(file) = self.backing.live_file(ino) else { return Asked::Still(None) };
        if self.handles.is_written(ino) {
            return Asked::Live;
        }
        let unwritten = is_unwritten(file).unwrap_or_else(|error| {
            tracing::warn!(%error, "nobody tells who has a file mapped");
            true
        });
        if unwritten {
            // The last time: what was done to it is done.
            self.look(ino, fs);
            let staged = self.backing.staged_live(ino);
            if let Some(room) = self.backing.live_file(ino).and_then(|file| spool::room(file)) {
                self.set_room(ino, room, fs);
            }
            self.step(ino, Event::Rested, |state| state.backing.subdue(ino));
            return Asked::Still(staged);
        }
        self.look(ino, fs);
        match self.handles.is_open(ino) {
            true => self.backing.ask_no_more(ino),
            false => self.backing.linger(ino),
        }
        Asked::Live
    }

    /// Whether a file's content has its turn in the queue yet wherever it has a name. What is in hand is a copy of it.
    fn is_queued(&self, ino: Ino) -> bool {
        let waits = |path: &RepoPath| self.writeback.pending(path).is_some_and(|entry| entry.phase == Phase::Waiting);
        self.tree.file_paths(ino).iter().all(waits)
    }

    /// A file in the spool that nobody changes any more is owed until the server has it: a copy of it may be staged
    /// already or be on its way, and the file does not know of that.
    pub(super) fn owe(&mut self, ino: Ino, fs: &Fs) {
        if matches!(self.content(ino), Some((Content::Local { .. }, _))) && !self.is_queued(ino) {
            self.touch_file(ino, fs.options.settle);
        }
    }

    /// A file that nobody changes any more, while somebody reads it or one of its names has its turn: what its other names
    /// hold on the server is a copy of it, which the file does not know of. They are owed as [`owe`](Self::owe) has it.
    pub(super) fn owe_other_names(&mut self, ino: Ino, fs: &Fs) {
        if matches!(self.content(ino), Some((Content::Local { .. }, _))) {
            let mut paths = self.tree.file_paths(ino);
            paths.retain(|path| !self.writeback.is_pending(path));
            self.touch(&paths, fs.options.settle);
        }
    }

    /// A file that was live, and that nobody has open, is what the server has: returns its spool file, which the cache may
    /// take over. Else it is owed.
    pub(super) fn come_to_rest(&mut self, ino: Ino, staged: Option<ContentHash>, fs: &Fs) -> Option<Adopted> {
        let (spool, size) = match self.content(ino) {
            Some((Content::Local { spool, .. }, size)) => (*spool, size),
            _ => return None,
        };
        let paths = self.tree.file_paths(ino);
        // Staged, or committed since.
        let has = |path: &RepoPath, hash| {
            let shown = self.writeback.account(path).and_then(|account| account.shown()).flatten();
            shown.is_some_and(|object| object.hash == hash) && !self.writeback.is_pending(path)
        };
        let hash = staged.filter(|hash| !paths.is_empty() && paths.iter().all(|path| has(path, *hash)));
        let Some(hash) = hash.filter(|_| !self.backing.is_held(spool)) else {
            self.owe(ino, fs);
            return None;
        };
        let counted = self.counted(ino);
        self.step(ino, Event::Rested, |state| state.set_content(ino, Content::Remote { hash, origin: None }, size));
        for path in paths {
            let settled = self.writeback.account(&path).filter(Account::is_settled);
            if settled.is_some_and(|account| self.agrees(&path, account.base)) {
                self.apply(Change::Account { path, account: None });
            }
        }
        Some(Adopted { spool, hash, size, counted })
    }

    /// Before a barrier: what was written unseen up to now belongs to it.
    pub(super) fn stir(&mut self, chosen: &impl Fn(&RepoPath) -> bool, fs: &Fs) {
        let live: Vec<Ino> = self.backing.live().collect();
        for ino in live {
            if self.tree.file_paths(ino).iter().any(chosen) {
                self.stir_file(ino, fs);
            }
        }
    }

    /// [`stir`](Self::stir) of some paths, without a look at all others.
    pub(super) fn stir_at(&mut self, paths: &[RepoPath], fs: &Fs) {
        for path in paths {
            if let Resolved::Inode(ino) = self.tree.resolve(path)
                && self.backing.is_live(ino)
            {
                self.stir_file(ino, fs);
            }
        }
    }

    fn stir_file(&mut self, ino: Ino, fs: &Fs) {
        self.look(ino, fs);
        if self.backing.staged_live(ino).is_none() {
            self.touch_file(ino, fs.options.settle);
        }
    }

    /// Asks after the files that somebody still had when they were closed. Returns what the server has of them.
    pub(super) fn ask_after_lingering(&mut self, fs: &Fs, rested: &mut Vec<Adopted>) {
        let now = Instant::now();
        while let Some(ino) = self.backing.take_question(now) {
            // Opened since: its last close asks. As long as somebody has it open it stays a file of its own, or a writer
            // who follows would write to the cache's.
            if self.handles.is_open(ino) {
                continue;
            }
            if let Asked::Still(staged) = self.ask_after(ino, fs) {
                rested.extend(self.come_to_rest(ino, staged, fs));
            }
        }
    }

    /// A spool file that an earlier daemon left, and that a program of then may still have open.
    pub(super) fn left_live(&mut self, ino: Ino, file: &Arc<File>) {
        if is_unwritten(file).unwrap_or(true) {
            return;
        }
        self.enliven(ino, file);
        self.backing.linger(ino);
    }
}

impl Fs {
    /// Lets the kernel go past the daemon, if it can and the spool's filesystem allows it. To be called once, before
    /// anything is served.
    pub fn lend_to(&self, lender: Arc<dyn Lender>) -> Passthrough {
        let able = self.try_lending(&*lender);
        let borrows = able == Passthrough::On && self.try_borrowing();
        let _ = self.worthwhile.set(borrows.then(|| lender.worthwhile()));
        let _ = self.lender.set((able == Passthrough::On).then_some(lender));
        let _ = self.passthrough.set(able.clone());
        able
    }

    /// Nothing goes past the daemon, and why.
    pub fn lend_nothing(&self, why: &str) {
        let _ = self.lender.set(None);
        let _ = self.passthrough.set(Passthrough::Off(why.to_owned()));
    }

    /// Whether reads and writes go past the daemon.
    pub fn passthrough(&self) -> Passthrough {
        self.passthrough.get().cloned().unwrap_or_else(|| Passthrough::Off("nothing is served yet".to_owned()))
    }

    fn try_lending(&self, lender: &dyn Lender) -> Passthrough {
        if self.spool.limit().is_some() {
            return Passthrough::Off("--spool-limit counts every write before it is made".to_owned());
        }
        let (id, file) = match self.spool.create_to_read() {
            Ok(made) => made,
            Err(error) => return Passthrough::Off(format!("no file can be made in the spool: {error}")),
        };
        let leases = is_unwritten(&file).map_err(|error| format!("the spool's filesystem has no leases: {error}"));
        let lent = leases.and_then(|_| lender.lend(&file).map_err(|error| format!("the kernel refuses: {error}")));
        self.spool.remove(id);
        match lent {
            Ok(number) => {
                lender.take_back(number);
                Passthrough::On
            }
            Err(why) => Passthrough::Off(why),
        }
    }

    /// Lends a local file to the kernel; `None` when it cannot be.
    pub(super) fn lend(&self, file: &File) -> Option<Arc<Loan>> {
        let lender = self.lender.get()?.clone()?;
        match lender.lend(file) {
            Ok(number) => Some(Arc::new(Loan { lender, number })),
            Err(error) => {
                tracing::debug!(%error, "a file is served by requests: the kernel does not take it");
                None
            }
        }
    }

    /// Whether another file may become one that changes without a request. Each that lingers after its close is an open
    /// file here: a quarter of those that the daemon may have, and the next are served by requests.
    pub(super) fn may_pass(&self, state: &State) -> bool {
        static MOST: OnceLock<usize> = OnceLock::new();
        self.able() && state.backing.lingering() < *MOST.get_or_init(quarter_of_descriptors)
    }

    /// Whether the kernel can go past the daemon.
    pub(super) fn able(&self) -> bool {
        self.lender.get().is_some_and(Option::is_some)
    }

    /// How the kernel is to reach the bytes of an open file.
    pub fn reach(&self, handle: u64) -> Reach {
        let state = self.lock();
        state.handles.file(handle).map_or(Reach::Cached, |ino| state.handles.reach(ino))
    }

    /// Copies a spool file that may be written to meanwhile. The copy has all that was written before; it may have some
    /// of what is written while it is made, where a program never pauses. `None`: the file has other content by now.
    pub(super) fn copy_live(&self, of: Token) -> Result<Option<Copied>, FsError> {
        let Some(from) = self.spool_file_to_read(of)? else { return Ok(None) };
        for attempt in 1.. {
            let before = Seen::of(&from)?;
            // A change in the same step of the filesystem's clock would not show.
            let age = SystemTime::now().duration_since(before.ctime.into()).unwrap_or_default();
            std::thread::sleep(CLOCK_STEP.saturating_sub(age));
            // A write gives the file its time first, and then its bytes.
            end_of_writes(&from);
            let rested = Seen::of(&from)? == before;
            if !rested && attempt < COPIES {
                continue;
            }
            // What programs do from here on to pages that they have mapped shows in the times: those are written out, and
            // the first store to each is noticed.
            self.spool.disk().flush(&from)?;
            let (id, to) = self.spool.create()?;
            let copied = self.spool.disk().act(Act::Write(&to), || {
                copy_content(&from, &to)?;
                Ok(to.metadata()?.len())
            });
            match copied {
                Ok(size) => {
                    let seen = Some(Seen::of(&from)?).filter(|after| rested && *after == before);
                    if seen.is_some() || attempt == COPIES {
                        let counted = spool::room(&to).map_or(size, |room| counted(size, room));
                        self.spool.charge(counted);
                        return Ok(Some(Copied { id, file: Arc::new(to), size, counted, seen }));
                    }
                    self.spool.remove(id);
                }
                Err(error) => {
                    self.spool.remove(id);
                    return Err(error.into());
                }
            }
        }
        Ok(None)
    }
}

/// A copy of a file's content, for the stager alone.
pub(super) struct Copied {
    pub id: SpoolId,
    pub file: Arc<File>,
    pub size: u64,
    /// What is counted for it.
    pub counted: u64,
    /// What the original looked like, if that stayed so.
    pub seen: Option<Seen>,
}
