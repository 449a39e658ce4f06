//! Appending to the record, and compacting it.

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::format::{self, FORMAT, Header, Kept, RESERVE_BYTES, ROOM_BYTES, UNCHAINED};
use super::mark::{self, Keeper, Mark};
use super::recover::{self, Chain, Found, segment_path, segments};
use super::segment::{Room, ask_for_room, create_segment, cut_off, overwrites_in_place};
use super::{Change, JournalError, Replay, salvage};
use crate::store::disk::Disk;
use crate::sync::{self, Condvar, Locked, Mutex, MutexGuard};

/// Zeros are written up to a multiple of this.
pub(super) const ZEROED_BYTES: u64 = 1 << 20;
/// How soon a full disk is asked for room again: it may take its time to say no.
const ROOM_PAUSE: Duration = Duration::from_millis(200);

/// Names one appended frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The log. All methods take `&self`; see [`append`](Journal::append) for what must be serialized by the caller.
pub struct Journal {
    disk: Disk,
    dir: PathBuf,
    state: Mutex<State>,
    moved: Condvar,
    compacting: Mutex<()>,
    mark: Keeper,
}

/// A compaction under way: one at a time.
pub struct Compaction<'a> {
    journal: &'a Journal,
    _alone: MutexGuard<'a, ()>,
}

struct State {
    segment: u64,
    file: std::sync::Arc<File>,
    /// The segment's.
    format: u32,
    /// Whether all that counts is of the newest one.
    current: bool,
    /// Where the next frame that is written goes on.
    chain: Chain,
    /// Whether what it says of the server was not compared with it since a repair.
    unverified: bool,
    /// Frames before those that were appended here.
    before: u64,
    /// Fields that are not known here.
    kept: Kept,
    /// What the frames hold that are not in the kernel yet, a line each: they are numbered and chained when they are
    /// written, so that a segment can be switched between any two.
    bodies: Vec<u8>,
    appended: u64,
    written: u64,
    synced: u64,
    /// A caller is writing for the others, or switches the segment: frames wait in memory meanwhile.
    writing: bool,
    /// A caller is flushing for the others.
    flushing: bool,
    /// How many wait for one of these: mostly none, and then nobody need be woken.
    waiting: u32,
    /// A caller asks for room.
    extending: bool,
    /// Why the last write failed; its frames are in memory.
    unwritten: Option<io::Error>,
    /// Why a flush failed, until the whole state is in a new segment.
    unflushed: Option<io::Error>,
    /// Length of the segment's frames: where the next write goes.
    bytes: u64,
    /// Length of the file: up to here there is something written, be it zeros.
    zeroed: u64,
    /// Whether the filesystem puts new bytes where the old ones were, so that zeros ahead are of use.
    in_place: bool,
    /// How long the segment was when it was complete; 0 where that is not known.
    whole_bytes: u64,
    room: Room,
    /// No room is asked for before this.
    ask_for_room: Option<Instant>,
}

/// How far a frame has to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Into the kernel.
    Kernel,
    /// Onto stable storage.
    Disk,
    /// Onto stable storage, as the frame that completes a segment: nothing of older ones counts any more.
    NewSegment,
}

impl Journal {
    /// Opens the log in `dir`, and hands every change of every frame to `replay`, oldest first.
    ///
    /// # Errors
    /// [`JournalError`]. What a crash may leave at the end is none: it is cut off and kept as `*.torn`.
    pub fn open(dir: &Path, replay: impl FnMut(Change)) -> Result<Self, JournalError> {
        Self::open_on(&Disk::default(), dir, replay)
    }

    /// [`open`](Self::open) by way of `disk`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: &Disk, dir: &Path, mut replay: impl FnMut(Change)) -> Result<Self, JournalError> {
        Self::open_marked(disk, dir, &dir.join("mark"), &mut |_, change| {
            replay(change);
            Ok(())
        })
    }

    /// [`open_on`](Self::open_on) with the mark in another place, and with somebody who need not `believe` a change. What
    /// was replayed is on stable storage when this returns, so that the caller may remove what it no longer needs. Until
    /// all has been replayed, nothing is changed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_marked(disk: &Disk, dir: &Path, mark: &Path, believe: &mut Replay<'_>) -> Result<Self, JournalError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, source }
        };
        let marked = mark::read(mark).map_err(io(mark))?;
        let found = recover::replay(dir, &marked, disk.boot(), believe)?;
        disk.make_dirs(dir).map_err(io(dir))?;
        let (found, file, keeper) = match found {
            Some(found) => {
                let path = segment_path(dir, found.last());
                let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io(&path))?;
                if let Some(torn) = &found.torn {
                    cut_off(disk, &path, &file, found.end, torn).map_err(io(&path))?;
                }
                // A killed daemon's last frames may be in the kernel alone; a segment before the last was flushed
                // when the next was started.
                disk.flush(&file).and_then(|()| disk.flush_dir(dir)).map_err(io(&path))?;
                found.put_away(disk, dir).map_err(io(dir))?;
                let keeper = keep_mark(disk, mark, &marked, &found).map_err(io(mark))?;
                (found, file, keeper)
            }
            None => {
                // Before the segment: whoever finds this one and no segment knows that there was none yet.
                let none = Mark::default();
                let keeper = Keeper::new(disk, mark::make(disk, mark, &none).map_err(io(mark))?, none);
                let found = Found::new(disk.boot());
                let file = create_segment(disk, dir, &found.header(disk), true).map_err(io(dir))?;
                keeper.advance(1, None, 0);
                (found, file, keeper)
            }
        };
        let length = file.metadata().map_err(io(dir))?.len();
        // Not the length of the file: behind the frames may be zeros.
        let bytes = if found.end == 0 { length } else { found.end };
        let continued = found.boot != disk.boot() && found.format != UNCHAINED;
        let mut state = State {
            segment: found.last(),
            in_place: overwrites_in_place(&file),
            file: std::sync::Arc::new(file),
            format: found.format,
            current: found.current,
            chain: Chain { next: found.next, sum: found.sum },
            unverified: found.unverified,
            before: found.next - 1,
            kept: found.kept,
            bodies: Vec::new(),
            appended: 0,
            written: 0,
            synced: 0,
            writing: false,
            flushing: false,
            waiting: 0,
            extending: false,
            unwritten: None,
            unflushed: None,
            bytes,
            zeroed: length,
            whole_bytes: 0,
            room: Room::Until(bytes),
            ask_for_room: None,
        };
        if continued {
            state.append(&[Change::Boot { boot: disk.boot().to_owned() }]);
        }
        let journal = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            state: Mutex::new(state),
            moved: Condvar::new(),
            compacting: Mutex::default(),
            mark: keeper,
        };
        drop(journal.extend_room(journal.lock()));
        Ok(journal)
    }

    /// Hands every change to `replay` as [`open`](Self::open) does, and changes nothing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(dir: &Path, mut replay: impl FnMut(Change)) -> Result<(), JournalError> {
        Self::read_marked(dir, &dir.join("mark"), &mut |_, change| {
            replay(change);
            Ok(())
        })
        .map(|_| ())
    }

    /// [`read`](Self::read) with the mark in another place, and with somebody who need not `believe` a change; whether
    /// there was a log.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read_marked(dir: &Path, mark: &Path, believe: &mut Replay<'_>) -> Result<bool, JournalError> {
        let marked = mark::read(mark).map_err(|source| JournalError::Io { path: mark.to_owned(), source })?;
        recover::replay(dir, &marked, Disk::default().boot(), believe).map(|found| found.is_some())
    }

    /// Whether some of what counts has an older format than this code writes: the whole state is to go into a new segment,
    /// which an older reader refuses.
    pub fn is_outdated(&self) -> bool {
        !self.lock().current
    }

    /// Whether the record was repaired, and what it says of the server was not [compared](Self::note_verified) with it since.
    pub fn is_unverified(&self) -> bool {
        self.lock().unverified
    }

    /// What the record says of the server was compared with it: the next segment says so.
    pub fn note_verified(&self) {
        self.lock().unverified = false;
    }

    /// Has the mark say how far the log is written, in case it is cut off while nothing is flushed. To be called now and
    /// then.
    pub fn note_written(&self) {
        let (segment, written) = {
            let state = self.lock();
            (state.segment, state.before + state.written)
        };
        self.mark.advance(segment, None, written);
    }

    fn lock(&self) -> Locked<'_, State> {
        sync::lock(&self.state)
    }

    /// Takes a frame in; no system call. Frames are replayed in the order of these calls: the caller makes them under
    /// the lock that orders the changes themselves.
    pub fn append(&self, changes: &[Change]) -> Ticket {
        let mut state = self.lock();
        if !changes.is_empty() {
            state.append(changes);
        }
        Ticket(state.appended)
    }

    /// Returns when the frame, and all before it, are in the kernel: `kill -9` does not undo them.
    ///
    /// # Errors
    /// The write failed. The frame is not acknowledged, and goes with the next write that works.
    pub fn commit(&self, ticket: Ticket) -> io::Result<()> {
        self.advance(ticket, Reach::Kernel)
    }

    /// Returns when the frame, and all before it, are on stable storage.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); and after a flush failed, until the state was [rewritten](Self::must_be_rewritten).
    pub fn sync(&self, ticket: Ticket) -> io::Result<()> {
        self.advance(ticket, Reach::Disk)
    }

    fn advance(&self, ticket: Ticket, reach: Reach) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            if state.written < ticket.0 {
                if state.writing {
                    state = self.wait(state);
                    continue;
                }
                state.writing = true;
                let (done, after) = self.write_out(state);
                state = after;
                state.writing = false;
                if let Err(error) = done {
                    self.wake(&state);
                    return Err(error);
                }
                state = self.extend_room(state);
            } else if reach != Reach::Kernel && state.synced < ticket.0 {
                if state.flushing {
                    state = self.wait(state);
                    continue;
                }
                if let Some(error) = &state.unflushed
                    && reach == Reach::Disk
                    && !sync::mistaken("a flush is believed after one that failed")
                {
                    return Err(same(error));
                }
                // Others go on writing meanwhile, and their acknowledgements do not wait for this flush.
                state.flushing = true;
                let upto = state.written;
                let file = state.file.clone();
                drop(state);
                let done = self.disk.flush(&file);
                state = self.lock();
                state.flushing = false;
                match done {
                    Ok(()) => {
                        let all = sync::mistaken("a flush counts for what was written during it");
                        state.synced = if all { state.written } else { upto };
                        if reach == Reach::NewSegment && state.unflushed.take().is_some() {
                            tracing::info!("the journal was written anew, and is on the disk");
                        }
                        // After a flush that failed, what is before it need not be there.
                        let flushed = state.unflushed.is_none().then_some(state.before + upto);
                        let (segment, written) = (state.segment, state.before + state.written);
                        self.wake(&state);
                        drop(state);
                        self.mark.advance(segment, flushed, written);
                        state = self.lock();
                        continue;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the journal cannot be flushed: it is to be written anew");
                        state.unflushed = Some(same(&error));
                        self.wake(&state);
                        return Err(error);
                    }
                }
            } else {
                return Ok(());
            }
            self.wake(&state);
        }
    }

    /// Writes what was appended. For the caller that is `writing`.
    fn write_out<'a>(&'a self, mut state: Locked<'a, State>) -> (io::Result<()>, Locked<'a, State>) {
        if state.bodies.is_empty() {
            return (Ok(()), state);
        }
        let upto = state.appended;
        let mut bodies = std::mem::take(&mut state.bodies);
        let (file, at, format, mut chain) = (state.file.clone(), state.bytes, state.format, state.chain);
        let zeros = state.zeros();
        drop(state);
        let mut bytes = Vec::with_capacity(bodies.len() * 2);
        bodies.split_inclusive(|byte| *byte == b'\n').for_each(|body| chain.frame(body, format, &mut bytes));
        let frames = bytes.len() as u64;
        let end = zeros.up_to(at + frames);
        bytes.resize((end - at) as usize, 0);
        let done = self.disk.write_at(&file, &bytes, at);
        let mut state = self.lock();
        match &done {
            Ok(()) => {
                state.bytes += frames;
                state.zeroed = state.zeroed.max(end);
                state.written = upto;
                state.chain = chain;
                if state.bodies.is_empty() {
                    bodies.clear();
                    state.bodies = bodies;
                }
                if state.unwritten.take().is_some() {
                    tracing::info!("the journal can be written again");
                }
            }
            Err(error) => {
                if sync::mistaken("a failed write puts its frames behind newer ones") {
                    std::mem::swap(&mut bodies, &mut state.bodies);
                }
                bodies.append(&mut state.bodies);
                state.bodies = bodies;
                if state.unwritten.as_ref().is_none_or(|before| before.kind() != error.kind()) {
                    tracing::error!(%error, "the journal cannot be written: nothing is acknowledged until it can");
                }
                state.unwritten = Some(same(error));
            }
        }
        (done, state)
    }

    /// Asks for room well before the end of what there is; of a disk that is nearly full, for what it has.
    fn extend_room<'a>(&'a self, mut state: Locked<'a, State>) -> Locked<'a, State> {
        let Room::Until(end) = state.room else { return state };
        let enough = end >= state.needed() + ROOM_BYTES / 2;
        if enough || state.extending || state.ask_for_room.is_some_and(|at| Instant::now() < at) {
            return state;
        }
        state.extending = true;
        let file = state.file.clone();
        drop(state);
        let room = ask_for_room(&file, end);
        let mut state = self.lock();
        state.extending = false;
        // Of a segment that was left meanwhile the room is of no use.
        if std::sync::Arc::ptr_eq(&file, &state.file) {
            state.ask_for_room = room.is_none().then(|| Instant::now() + ROOM_PAUSE);
            state.room = room.unwrap_or(Room::Until(end));
        }
        self.wake(&state);
        state
    }

    fn wait<'a>(&self, mut state: Locked<'a, State>) -> Locked<'a, State> {
        state.waiting += 1;
        let mut state = state.wait(&self.moved);
        state.waiting -= 1;
        state
    }

    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.moved.notify_all();
        }
    }

    /// Whether changes can be put on record. Where the last write failed, tries once more; costs little otherwise. To
    /// be asked before a change is made, so that what would be refused changes nothing.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> io::Result<()> {
        let ticket = {
            let state = self.lock();
            if state.unwritten.is_none() {
                return Ok(());
            }
            Ticket(state.appended)
        };
        self.commit(ticket)
    }

    /// Why nothing is acknowledged, or nothing counts as flushed, if that is so.
    pub fn trouble(&self) -> Option<io::Error> {
        let state = self.lock();
        state.unwritten.as_ref().or(state.unflushed.as_ref()).map(same)
    }

    /// Whether a flush failed, so that the whole state has to go into a new segment.
    pub fn must_be_rewritten(&self) -> bool {
        self.lock().unflushed.is_some()
    }

    /// Whether there is room for changes that make something new.
    pub fn has_room(&self) -> bool {
        let mut state = self.extend_room(self.lock());
        // Who asks for room may be about to have it.
        while state.extending && !state.has_reserve() {
            state = self.wait(state);
        }
        state.unwritten.is_none() && state.has_reserve()
    }

    /// Whether the segment is `least` bytes long, and twice as long as the state was that it begins with: compacting a
    /// large state again and again would cost more than it saves.
    pub fn is_worth_compacting(&self, least: u64) -> bool {
        let state = self.lock();
        state.bytes >= least.max(state.whole_bytes.saturating_mul(2))
    }

    /// Begins a compaction, after the end of one that is under way: of two at once the first to end would call a segment
    /// complete that has but a part of either's state. Not to be called under the lock that orders the changes.
    pub fn compaction(&self) -> Compaction<'_> {
        let alone = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        Compaction { journal: self, _alone: alone }
    }
}

impl Compaction<'_> {
    /// Starts a segment. What is appended from now on goes into it, and waits in memory while it is made; the caller then
    /// appends the whole state, in any portions between other frames, and calls [`complete`](Self::complete). Waits for
    /// the disk: not to be called under the lock that orders the changes.
    ///
    /// # Errors
    /// The old segment could not be finished, or the new one not be made with some room in it; the old one stays in use.
    pub fn start_segment(&self) -> io::Result<()> {
        let journal = self.journal;
        // Most of the flush is done while others go on.
        let (ticket, reach) = {
            let state = journal.lock();
            // What a flush lost is not to be had by another.
            (Ticket(state.appended), if state.unflushed.is_some() { Reach::Kernel } else { Reach::Disk })
        };
        journal.advance(ticket, reach)?;
        let mut state = journal.lock();
        while state.writing && !sync::mistaken("a segment is switched amid a write") {
            state = journal.wait(state);
        }
        state.writing = true;
        let (done, mut state) = journal.write_out(state);
        let old = (state.file.clone(), state.bytes, state.written);
        let flush = state.unflushed.is_none();
        let header =
            Header { unverified: state.unverified, ..state.chain.header(state.segment + 1, journal.disk.boot()) };
        drop(state);
        let made = done.and_then(|()| {
            // A segment that is not the last is whole on stable storage, whatever happens to the machine.
            if flush && let Err(error) = journal.disk.flush(&old.0) {
                tracing::error!(%error, "the journal cannot be flushed: it is to be written anew");
                journal.lock().unflushed = Some(same(&error));
                return Err(error);
            }
            let file = create_segment(&journal.disk, &journal.dir, &header, true)?;
            let length = file.metadata()?.len();
            Ok((std::sync::Arc::new(file), length))
        });
        state = journal.lock();
        state.writing = false;
        let done = made.map(|(file, length)| {
            state.format = FORMAT;
            (state.file, state.segment) = (file, header.segment);
            (state.bytes, state.zeroed, state.room) = (length, length, Room::Until(length));
            state.ask_for_room = None;
            if flush {
                state.synced = state.synced.max(old.2);
            }
        });
        journal.wake(&state);
        drop(state);
        done?;
        // The room ahead of its end is the new one's.
        let _ = journal.disk.resize(&old.0, old.1);
        drop(journal.extend_room(journal.lock()));
        Ok(())
    }

    /// Marks the segment as holding the whole state, and removes the older ones.
    ///
    /// # Errors
    /// When it could not be flushed or they could not be removed; both are tried again at the next open.
    pub fn complete(self) -> io::Result<()> {
        let journal = self.journal;
        let ticket = journal.append(&[Change::Complete]);
        journal.advance(ticket, Reach::NewSegment)?;
        let current = {
            let mut state = journal.lock();
            state.whole_bytes = state.bytes;
            state.current = true;
            state.segment
        };
        for old in segments(&journal.dir)?.into_iter().filter(|segment| *segment < current) {
            journal.disk.remove(&segment_path(&journal.dir, old))?;
        }
        journal.disk.flush_dir(&journal.dir)
    }
}

impl State {
    fn append(&mut self, changes: &[Change]) {
        format::encode_body(changes, &mut self.kept, &mut self.bodies);
        self.appended += 1;
    }

    /// How long the segment is at most with all that was appended.
    fn needed(&self) -> u64 {
        let around = (self.appended - self.written) * format::AROUND_BYTES as u64;
        self.bytes + self.bodies.len() as u64 + around
    }

    /// Whether what is kept back for removals and confirmations is there.
    fn has_reserve(&self) -> bool {
        match self.room {
            Room::Until(end) => end >= self.needed() + RESERVE_BYTES,
            Room::Unknown => true,
        }
    }

    fn zeros(&self) -> Zeros {
        let room = match self.room {
            // After a write that failed only what must be written is.
            Room::Until(room) if self.in_place && self.unwritten.is_none() => room,
            _ => 0,
        };
        Zeros { written: self.zeroed, room }
    }
}

/// The zeros behind the frames: they take up no room that is not the segment's already.
struct Zeros {
    /// Up to here something is written.
    written: u64,
    /// Up to here is room.
    room: u64,
}

impl Zeros {
    /// How far a write goes whose frames end at `end`.
    fn up_to(&self, end: u64) -> u64 {
        match end > self.written {
            true => end.next_multiple_of(ZEROED_BYTES).min(self.room).max(end),
            false => end,
        }
    }
}

/// An error to be told more than once.
fn same(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Has the mark say what is so once a log was opened and flushed.
fn keep_mark(disk: &Disk, path: &Path, marked: &mark::Found, found: &Found) -> io::Result<Keeper> {
    let last = found.next - 1;
    let mark = Mark { segment: found.last(), flushed: last, written: last, boot: disk.boot().to_owned() };
    match marked {
        mark::Found::Mark(before) => {
            let file = OpenOptions::new().write(true).open(path)?;
            let keeper = Keeper::new(disk, file, Mark { written: 0, ..before.clone() });
            keeper.advance(mark.segment, Some(last), last);
            Ok(keeper)
        }
        mark::Found::Nothing | mark::Found::Damaged => Ok(Keeper::new(disk, mark::make(disk, path, &mark)?, mark)),
    }
}

impl Chain {
    /// The header of a segment that goes on from here.
    pub(super) fn header(&self, segment: u64, boot: &str) -> Header {
        Header {
            oxenfs_journal: FORMAT,
            segment,
            first: self.next,
            link: String::from_utf8_lossy(&format::link_of(&self.sum)).into_owned(),
            boot: boot.to_owned(),
            needs: Vec::new(),
            repaired: false,
            unverified: false,
        }
    }
}

impl Found {
    /// A record that begins.
    fn new(boot: &str) -> Self {
        Self {
            segments: Vec::new(),
            first: None,
            repaired: false,
            unverified: false,
            end: 0,
            torn: None,
            format: FORMAT,
            current: true,
            next: Chain::START.next,
            sum: Chain::START.sum,
            boot: boot.to_owned(),
            kept: Kept::default(),
        }
    }

    fn header(&self, disk: &Disk) -> Header {
        Chain { next: self.next, sum: self.sum }.header(self.last(), disk.boot())
    }

    /// The segment in use.
    fn last(&self) -> u64 {
        self.segments.last().copied().unwrap_or(1)
    }

    /// Removes the segments that do not count any more; what a repair replaced is set aside instead.
    fn put_away(&self, disk: &Disk, dir: &Path) -> io::Result<()> {
        for old in self.segments.iter().filter(|segment| Some(**segment) < self.first) {
            match self.repaired {
                true => drop(salvage::set_aside(disk, dir, &segment_path(dir, *old))?),
                false => disk.remove(&segment_path(dir, *old))?,
            }
        }
        Ok(())
    }
}
