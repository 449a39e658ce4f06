//! Large files that are read before all of them is here. They come in blocks (`store/parts.rs`): what is read, and ahead
//! of a program that reads on, so much the more the longer it has done so. One that jumps about gets a block a jump.
//!
//! Each block is asked for once, however many wait for it. A file is asked for in several requests at once, none of them
//! for more than the server is to hold in memory at a time.
//!
//! When all blocks are here, the whole is compared with its hash, and becomes a file of the cache like any other; those
//! who have it open read on there. Until then a block is what the server sent. What turns out to be wrong is dropped,
//! told to the kernel, and fetched whole, so that nobody sees a byte before it is known to be right.
//!
//! What needs all of a file (a writer, a copy, `oxenfs warm`) fetches the blocks that are lacking, if any are here.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;

use super::fetching::Who;
use super::passthrough::Way;
use super::tree::Token;
use super::{Fs, FsError, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Ino};
use crate::report::Cached;
use crate::store::parts::{BLOCK_BYTES, Sparse, Whole};
use crate::store::spool::Found;
use crate::sync::{Mutex, MutexGuard};
use crate::workspace::progress::Progress;
use crate::workspace::{Source, WorkspaceError};

/// A file of up to this length comes whole, with one request: a request for a part of it costs as much.
const WHOLE_BYTES: u64 = 1 << 20;
/// The most that is asked for at a time: the server holds it in memory.
const PIECE_BYTES: u64 = 4 << 20;
/// How far ahead of a reader is fetched at most.
const AHEAD_BYTES: u64 = 16 << 20;
/// A program that has read so much in a row reads on: one that began at the file's beginning, and any other.
const RUN_FROM_START_BYTES: u64 = 256 << 10;
const RUN_BYTES: u64 = 1 << 20;
/// How far behind, and ahead of, where a program is, its next read may be: what the kernel reads ahead for it comes in
/// several requests, in any order.
const BEHIND_BYTES: u64 = 1 << 20;
const BEFORE_BYTES: u64 = 256 << 10;
/// Programs that are told apart, for each file.
const RUNS: usize = 8;
/// Requests at once for what is ahead in one file, and for all of one.
const AHEAD_AT_ONCE: usize = 5;
const WHOLE_AT_ONCE: usize = 4;
/// Requests at once beyond which nothing is fetched ahead in any file: what they bring is in memory, 40 MiB.
const AT_ONCE: usize = 10;
/// How long a file is remembered that nobody has open.
const LINGERS: Duration = Duration::from_secs(5);
/// For how long nothing is fetched ahead after there was no room for it.
const NO_ROOM_FOR: Duration = Duration::from_secs(5);
/// Files of which it is remembered that the kernel may have bytes that were not compared.
const SHOWN: usize = 100_000;
/// How often all of a file is gone for anew, because of blocks that were lost here meanwhile.
const ROUNDS: usize = 3;

type Done = Shared<BoxFuture<'static, Result<(), FsError>>>;

/// Files that are here in part and in use.
#[derive(Default)]
pub(super) struct Blocks {
    files: Mutex<HashMap<ContentHash, Arc<Partial>>>,
    /// Of which inodes the kernel may have bytes that were not compared yet.
    shown: Mutex<HashMap<ContentHash, HashSet<Ino>>>,
    fetched: AtomicU64,
    wrong: AtomicU64,
}

impl Blocks {
    fn files(&self) -> MutexGuard<'_, HashMap<ContentHash, Arc<Partial>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> MutexGuard<'_, HashMap<ContentHash, HashSet<Ino>>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is about to be read in blocks. Returns those of which the kernel is to forget what it has: nobody is going to
    /// remember that they were not compared.
    fn show(&self, hash: ContentHash, ino: Ino) -> Vec<Ino> {
        let mut shown = self.shown();
        shown.entry(hash).or_default().insert(ino);
        let other = if shown.len() > SHOWN { shown.keys().copied().find(|other| *other != hash) } else { None };
        other.and_then(|other| shown.remove(&other)).into_iter().flatten().collect()
    }

    /// What is known of a file that comes in blocks.
    pub fn get(&self, hash: ContentHash) -> Option<Arc<Partial>> {
        self.files().get(&hash).filter(|partial| !partial.sparse.is_gone()).cloned()
    }

    /// How many requests may be begun for what is ahead.
    fn room(&self) -> usize {
        let flights: usize = self.files().values().map(|partial| partial.underway().flights.len()).sum();
        AT_ONCE.saturating_sub(flights)
    }

    /// Nobody has a file open any more.
    pub fn closed(&self, ino: Ino) {
        for partial in self.files().values() {
            partial.underway().readers.remove(&ino);
        }
    }

    /// Forgets what nobody uses.
    pub fn tidy(&self) {
        self.files().retain(|_, partial| {
            let underway = partial.underway();
            let used = !underway.readers.is_empty() || !underway.flights.is_empty() || underway.check.is_some();
            used || underway.used.elapsed() < LINGERS
        });
    }
}

/// A file that is here in part.
pub(super) struct Partial {
    hash: ContentHash,
    sparse: Arc<Sparse>,
    runtime: Handle,
    underway: Mutex<Underway>,
}

struct Underway {
    flights: Vec<Flight>,
    last_flight: u64,
    runs: Runs,
    /// Those who have it open, or open it just now.
    readers: HashSet<Ino>,
    /// When somebody began to use it.
    used: Instant,
    /// Its blocks cannot be had, or are not to be trusted: it is to be fetched whole.
    whole: bool,
    /// When there was no room for blocks.
    full: Option<Instant>,
    /// All of it is being compared with its hash.
    check: Option<Shared<BoxFuture<'static, ()>>>,
}

/// A request for some blocks.
struct Flight {
    id: u64,
    blocks: Range<u32>,
    /// Whether it goes on while the server is away.
    patient: bool,
    done: Done,
}

/// Where programs read a file one byte after the other: the one that read last comes first.
#[derive(Default)]
struct Runs(Vec<Run>);

#[derive(Debug, Clone, Copy)]
struct Run {
    /// Whether it began where the file does.
    from_start: bool,
    /// Where the next read begins.
    next: u64,
    /// How much was read in a row.
    length: u64,
}

impl Runs {
    /// Somebody reads these bytes. Returns how much more than them he is going to want soon.
    fn note(&mut self, bytes: &Range<u64>) -> u64 {
        let is_its = |run: &Run| {
            bytes.start <= run.next.saturating_add(BEFORE_BYTES) && bytes.start.saturating_add(BEHIND_BYTES) >= run.next
        };
        let mut run = match self.0.iter().position(is_its) {
            Some(at) => self.0.remove(at),
            None => Run { from_start: bytes.start == 0, next: bytes.start, length: 0 },
        };
        let more = bytes.end.saturating_sub(run.next.max(bytes.start));
        run.length = run.length.saturating_add(more);
        run.next = run.next.max(bytes.end);
        self.0.insert(0, run);
        self.0.truncate(RUNS);
        match run.from_start {
            true if run.length >= RUN_FROM_START_BYTES => run.length.saturating_mul(2).min(AHEAD_BYTES),
            false if run.length >= RUN_BYTES => run.length.min(AHEAD_BYTES),
            _ => 0,
        }
    }
}

impl Partial {
    fn underway(&self) -> MutexGuard<'_, Underway> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is to be fetched whole.
    pub fn is_whole(&self) -> bool {
        self.underway().whole
    }

    fn note_reader(&self, ino: Ino) {
        let mut underway = self.underway();
        underway.readers.insert(ino);
        underway.used = Instant::now();
    }

    /// Bytes from `offset` on, if they are here.
    pub fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.sparse.read(offset, length)
    }

    /// Somebody reads these bytes. Returns what is worth being fetched ahead, a request each.
    fn plan(&self, bytes: &Range<u64>, limit: u64, room: usize) -> Vec<Range<u32>> {
        let mut underway = self.underway();
        // What cannot be kept until it is wanted is not fetched ahead.
        let ahead = underway.runs.note(bytes).min(limit / 4 / BLOCK_BYTES * BLOCK_BYTES);
        if ahead == 0 || underway.whole || underway.full.is_some_and(|since| since.elapsed() < NO_ROOM_FOR) {
            return Vec::new();
        }
        let end = bytes.end.saturating_add(ahead).min(self.sparse.size());
        let blocks = self.sparse.blocks_of(&(bytes.end..end));
        let piece = ((ahead / 4).clamp(BLOCK_BYTES, PIECE_BYTES) / BLOCK_BYTES) as u32;
        let mut room = AHEAD_AT_ONCE.saturating_sub(underway.flights.len()).min(room);
        let mut pieces = Vec::new();
        if room == 0 {
            return pieces;
        }
        let last = blocks.end;
        for run in runs_of(underway.unasked(self.sparse.absent(blocks))) {
            for some in pieces_of(run, piece) {
                // What is short grows until it is worth a request, if it can.
                let grows = some.end == last && last < self.sparse.blocks() && some.end - some.start < piece;
                if room > 0 && !grows {
                    pieces.push(some);
                    room -= 1;
                }
            }
        }
        pieces
    }

    /// Begins a request for each of these pieces of which nobody asks for any block yet.
    fn ask(self: &Arc<Self>, fs: &Arc<Fs>, source: &Source, pieces: Vec<Range<u32>>, who: Who) {
        for piece in pieces {
            let mut underway = self.underway();
            if underway.flights.iter().all(|flight| !overlap(&flight.blocks, &piece)) {
                drop(self.fly(&mut underway, fs, source, piece, who));
            }
        }
    }

    fn fly(
        self: &Arc<Self>,
        underway: &mut Underway,
        fs: &Arc<Fs>,
        source: &Source,
        blocks: Range<u32>,
        who: Who,
    ) -> Done {
        underway.last_flight += 1;
        let id = underway.last_flight;
        let work = {
            let (partial, fs, source, blocks) = (self.clone(), fs.clone(), source.clone(), blocks.clone());
            async move {
                let done = fs.bring_some(&partial, &source, blocks, who).await;
                partial.underway().flights.retain(|flight| flight.id != id);
                if partial.sparse.is_complete() {
                    drop(partial.check(&fs));
                }
                done
            }
        };
        // It goes on when those who wait for it are killed: it is not long.
        let task = self.runtime.spawn(work);
        let done = async move { task.await.unwrap_or_else(|error| Err(io::Error::other(error).into())) };
        let done = done.boxed().shared();
        underway.flights.push(Flight { id, blocks, patient: who == Who::Program, done: done.clone() });
        done
    }

    /// Sees to it that some blocks come. Returns what is to be waited for, and whether that goes on while the server is
    /// away; nothing if all are here. `kept`: those that are in memory alone are to come too.
    fn demand(
        self: &Arc<Self>,
        fs: &Arc<Fs>,
        source: &Source,
        blocks: Range<u32>,
        who: Who,
        kept: bool,
    ) -> Vec<(bool, Done)> {
        let mut underway = self.underway();
        let absent = if kept { self.sparse.absent_on_disk(blocks) } else { self.sparse.absent(blocks) };
        let asked = |flight: &&Flight| absent.iter().any(|block| flight.blocks.contains(block));
        let mut waits: Vec<(bool, Done)> =
            underway.flights.iter().filter(asked).map(|flight| (flight.patient, flight.done.clone())).collect();
        for run in runs_of(underway.unasked(absent)) {
            for piece in pieces_of(run, (PIECE_BYTES / BLOCK_BYTES) as u32) {
                waits.push((who == Who::Program, self.fly(&mut underway, fs, source, piece, who)));
            }
        }
        waits
    }

    /// Compares all of it with its hash, once at a time.
    fn check(self: &Arc<Self>, fs: &Arc<Fs>) -> Shared<BoxFuture<'static, ()>> {
        let mut underway = self.underway();
        if let Some(check) = &underway.check {
            return check.clone();
        }
        let task = self.runtime.spawn(fs.clone().check_partial(self.clone()));
        let check = async move { drop(task.await) }.boxed().shared();
        underway.check = Some(check.clone());
        check
    }
}

impl Underway {
    /// Those of some blocks that nobody asks for.
    fn unasked(&self, mut blocks: Vec<u32>) -> Vec<u32> {
        blocks.retain(|block| !self.flights.iter().any(|flight| flight.blocks.contains(block)));
        blocks
    }
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Numbers that follow each other, as ranges.
fn runs_of(blocks: Vec<u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

fn pieces_of(run: Range<u32>, length: u32) -> impl Iterator<Item = Range<u32>> {
    run.clone().step_by(length as usize).map(move |start| start..run.end.min(start + length))
}

impl State {
    /// The content of a file that the server has, and where it is to be had.
    fn remote(&self, ino: Ino) -> Option<(ContentHash, u64, Source)> {
        match self.content(ino)? {
            (Content::Remote { hash, .. }, size) => Some((*hash, size, self.source(ino)?)),
            (Content::Local { .. }, _) => None,
        }
    }
}

impl Fs {
    /// Whether files of this length are read before all of them is here.
    pub(super) fn comes_in_blocks(&self, size: u64) -> bool {
        size > WHOLE_BYTES
    }

    /// Writes down which blocks came and what was listed, and closes what nobody reads. May wait for the disk.
    pub(super) fn tidy_parts(&self) {
        self.cache.write_out_listings();
        self.blocks.tidy();
        self.cache.parts().tidy();
        self.tidy_neighbours();
    }

    /// How much of a file is here, in bytes; `None`: it is none that the server has.
    pub(super) fn cached_bytes(&self, ino: Ino) -> Option<(u64, u64)> {
        let (hash, size, _) = self.lock().remote(ino)?;
        let here = if size == 0 || self.cache.has_some(hash) { size } else { self.cache.parts().bytes_of(hash) };
        Some((here.min(size), size))
    }

    /// What is here of what the server has, and what was fetched of it.
    pub fn cached(&self) -> Cached {
        let (bytes, limit_bytes) = self.cache.used_and_limit();
        let (hits, misses) = self.cache.hits_and_misses();
        Cached {
            bytes,
            limit_bytes,
            hits,
            misses,
            blocks_fetched: self.blocks.fetched.load(Ordering::Relaxed),
            blocks_damaged: self.cache.parts().damaged(),
            wrong_files: self.blocks.wrong.load(Ordering::Relaxed),
            files_ahead: self.ahead.fetched(),
        }
    }

    /// A program reads a file in blocks.
    pub(super) fn note_reader(&self, partial: &Partial, ino: Ino) {
        partial.note_reader(ino);
        let forgotten = self.blocks.show(partial.hash, ino);
        if !forgotten.is_empty() {
            let mut state = self.begin();
            forgotten.into_iter().for_each(|ino| state.kernel.content_changed(ino));
        }
    }

    /// Fetches ahead what a reader of these bytes is going to want. To be called from any thread.
    pub(super) fn read_ahead(&self, ino: Ino, partial: &Arc<Partial>, bytes: &Range<u64>) {
        let pieces = partial.plan(bytes, self.cache.limit(), self.blocks.room());
        if pieces.is_empty() {
            return;
        }
        let source = self.lock().remote(ino).filter(|(hash, ..)| *hash == partial.hash);
        if let (Some(fs), Some((.., source))) = (self.this.upgrade(), source) {
            partial.ask(&fs, &source, pieces, Who::Staging);
        }
    }

    /// What is known of a file that comes in blocks. `None`: it is here already, or is to be fetched whole.
    async fn begin_partial(&self, ino: Ino) -> Result<Option<Arc<Partial>>, FsError> {
        let Some((hash, size, source)) = self.lock().remote(ino) else { return Ok(None) };
        let found = self.blocks.get(hash);
        if found.is_some() || !self.comes_in_blocks(size) || !self.workspace.gives_parts(&source) {
            return Ok(found);
        }
        // Neither costs a request.
        let is_here = move |fs: &Fs| {
            Ok(!matches!(fs.cache.find(hash), Found::Nowhere) || fs.find_without_server(hash, size).is_some())
        };
        if self.blocking(is_here).await? {
            return Ok(None);
        }
        self.cache.was_wanted(false);
        self.partial(hash, size).await
    }

    /// The file of which blocks are kept, or will be.
    async fn partial(&self, hash: ContentHash, size: u64) -> Result<Option<Arc<Partial>>, FsError> {
        if let Some(partial) = self.blocks.get(hash) {
            return Ok(Some(partial));
        }
        let Some(sparse) = self.blocking(move |fs| Ok(fs.cache.parts().get(hash, size))).await? else {
            return Ok(None);
        };
        let underway = Underway {
            flights: Vec::new(),
            last_flight: 0,
            runs: Runs::default(),
            readers: HashSet::new(),
            used: Instant::now(),
            whole: false,
            full: None,
            check: None,
        };
        let new = Partial { hash, sparse, runtime: Handle::current(), underway: Mutex::new(underway) };
        let partial = {
            let mut files = self.blocks.files();
            match files.get(&hash).filter(|partial| !partial.sparse.is_gone()) {
                Some(partial) => partial.clone(),
                None => {
                    let new = Arc::new(new);
                    files.insert(hash, new.clone());
                    new
                }
            }
        };
        if partial.sparse.is_complete()
            && let Some(fs) = self.this.upgrade()
        {
            // Left so by a daemon that was killed.
            drop(partial.check(&fs));
        }
        Ok(Some(partial))
    }

    /// Has some bytes of a file here, or all of it where it does not come in blocks.
    pub(super) async fn bring_blocks(&self, ino: Ino, bytes: Range<u64>) -> Result<(), FsError> {
        let fs = self.this.upgrade().ok_or(FsError::Stale)?;
        loop {
            let Some(partial) = self.begin_partial(ino).await? else { return self.bring(ino).await };
            self.note_reader(&partial, ino);
            if partial.is_whole() {
                return self.bring(ino).await;
            }
            let source = self.lock().remote(ino).filter(|(hash, ..)| *hash == partial.hash);
            // It has other content by now, of which the operation finds out.
            let Some((.., source)) = source else { return Ok(()) };
            let waits = partial.demand(&fs, &source, partial.sparse.blocks_of(&bytes), Who::Program, false);
            if waits.is_empty() {
                return Ok(());
            }
            partial.ask(&fs, &source, partial.plan(&bytes, self.cache.limit(), self.blocks.room()), Who::Staging);
            for (patient, done) in waits {
                let done = done.await;
                if patient {
                    self.note_read(Some(source.path.clone()), &done);
                    done?;
                }
            }
        }
    }

    /// Fetches all of a file, which those who have it open read from then on.
    pub(super) async fn bring(&self, ino: Ino) -> Result<(), FsError> {
        let fetched = match self.fetch(ino, false).await {
            Err(FsError::Remote(
                WorkspaceError::NotFound { .. } | WorkspaceError::Conflict { .. } | WorkspaceError::Protocol { .. },
            )) if self.look_again_at_others(ino).await => self.fetch(ino, false).await,
            fetched => fetched,
        };
        if let Some((hash, file)) = fetched? {
            self.attach_whole(ino, hash, &file);
        }
        Ok(())
    }

    /// Those who have a file open, and wait for its bytes, find them in `file`.
    fn attach_whole(&self, ino: Ino, hash: ContentHash, file: &Arc<File>) {
        let mut state = self.begin();
        let waits = state.handles.way(ino) == Some(Way::Requests) && state.handles.local(ino).is_none();
        if waits && state.tree.still(Token::of_server(ino, hash)) {
            state.handles.attach_first(ino, file.clone());
        }
    }

    /// Has some blocks here: those that another mount has from there, the others from the server.
    async fn bring_some(
        &self,
        partial: &Arc<Partial>,
        source: &Source,
        blocks: Range<u32>,
        who: Who,
    ) -> Result<(), FsError> {
        if self.is_nowhere_else(partial.hash) {
            return self.fetch_blocks(partial, source, blocks, who).await;
        }
        let (taker, all) = (partial.clone(), blocks.clone());
        let absent = self.blocking(move |fs| Ok(fs.take_blocks(&taker, all))).await?;
        for run in absent {
            self.fetch_blocks(partial, source, run, who).await?;
        }
        Ok(())
    }

    /// Takes what other mounts have of some blocks. Returns those that none has.
    fn take_blocks(&self, partial: &Partial, blocks: Range<u32>) -> Vec<Range<u32>> {
        let others = self.parts_of_neighbours(partial.hash, partial.sparse.size());
        if others.is_empty() {
            return vec![blocks];
        }
        let mut absent = Vec::new();
        for block in blocks {
            match others.iter().find_map(|part| part.block(block)) {
                Some(bytes) => self.keep_blocks(partial, block, &bytes.into()),
                None => absent.push(block),
            }
        }
        runs_of(absent)
    }

    async fn fetch_blocks(
        &self,
        partial: &Arc<Partial>,
        source: &Source,
        blocks: Range<u32>,
        who: Who,
    ) -> Result<(), FsError> {
        let range = partial.sparse.range(&blocks);
        let progress = Arc::new(Progress::default());
        let read = self.patiently(who, &progress, &source.path, || {
            let read = async { Ok(self.workspace.read_part(source, range.clone()).await?) };
            (0, read)
        });
        match read.await {
            Ok(Some(bytes)) if bytes.len() as u64 == range.end - range.start => {
                self.blocks.fetched.fetch_add(u64::from(blocks.end - blocks.start), Ordering::Relaxed);
                let partial = partial.clone();
                self.blocking(move |fs| {
                    fs.keep_blocks(&partial, blocks.start, &bytes);
                    Ok(())
                })
                .await
            }
            // Whoever fetches it whole finds out what is wrong, and where else it may be had.
            Ok(_) => {
                tracing::debug!(path = %source.path, "the server gives no parts of a file; it is fetched whole");
                partial.underway().whole = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn keep_blocks(&self, partial: &Partial, first: u32, bytes: &Bytes) {
        let length = bytes.len() as u64;
        self.make_room(length);
        let room = self.cache.has_room(length);
        let kept = partial.sparse.put(first, bytes, room);
        if let Err(error) = &kept {
            tracing::debug!(%error, "blocks of a file are in memory alone");
        }
        partial.underway().full = (!room || kept.is_err()).then(Instant::now);
        self.cache.evict();
    }

    /// All blocks of a file are here: compares them with its hash.
    async fn check_partial(self: Arc<Self>, partial: Arc<Partial>) {
        let (hash, checked) = (partial.hash, partial.clone());
        let _pin = partial.sparse.pin();
        let found = self.blocking(move |fs| {
            let found = checked.sparse.check()?;
            match found {
                Whole::Right => fs.cache.take_part(hash, checked.sparse.size())?,
                Whole::Wrong => _ = fs.cache.parts().remove(hash),
                Whole::Damaged => {}
            }
            Ok(found)
        });
        let found = found.await;
        let readers: Vec<Ino> = partial.underway().readers.iter().copied().collect();
        match found {
            Ok(Whole::Right) => {
                let file = self.blocking(move |fs| Ok(fs.cache.file(hash))).await.ok().flatten().map(Arc::new);
                for (ino, file) in readers.iter().filter_map(|ino| Some((*ino, file.as_ref()?))) {
                    self.attach_whole(ino, hash, file);
                }
                self.blocks.files().remove(&hash);
                self.blocks.shown().remove(&hash);
            }
            Ok(Whole::Wrong) => {
                tracing::warn!(%hash, "the blocks of a file are not what it should be; it is fetched anew, whole");
                self.blocks.wrong.fetch_add(1, Ordering::Relaxed);
                // Who reads on waits for the whole.
                let whole = self.partial(hash, partial.sparse.size()).await.ok().flatten();
                for partial in [Some(partial.clone()), whole].into_iter().flatten() {
                    let mut underway = partial.underway();
                    underway.whole = true;
                    underway.readers.extend(&readers);
                }
                let shown = self.blocks.shown().remove(&hash).unwrap_or_default();
                let mut state = self.begin();
                shown.into_iter().for_each(|ino| state.kernel.content_changed(ino));
            }
            Ok(Whole::Damaged) => {}
            Err(error) => {
                tracing::warn!(%hash, %error, "a file that came in blocks cannot be looked at");
                partial.underway().whole = true;
            }
        }
        partial.underway().check = None;
    }

    /// All of a file, by what is lacking of it, where some is here. `None`: there is none, or it does not come so.
    pub(super) async fn complete_blocks(
        &self,
        hash: ContentHash,
        size: u64,
        source: &Source,
        who: Who,
    ) -> Result<Option<Arc<File>>, FsError> {
        // All of what does not fit would have to be here at a time.
        let fits = self.comes_in_blocks(size) && size <= self.cache.limit();
        if !fits || !self.workspace.gives_parts(source) {
            return Ok(None);
        }
        let some_is_here = self.blocks.get(hash).is_some() || self.cache.parts().bytes_of(hash) > 0;
        if !some_is_here && self.blocking(move |fs| Ok(fs.parts_of_neighbours(hash, size).is_empty())).await? {
            return Ok(None);
        }
        let (Some(fs), Some(partial)) = (self.this.upgrade(), self.partial(hash, size).await?) else { return Ok(None) };
        let _pin = partial.sparse.pin();
        for _ in 0..ROUNDS {
            if partial.is_whole() {
                return Ok(None);
            }
            if partial.sparse.is_complete() {
                partial.check(&fs).await;
                match self.cache.find(hash) {
                    Found::Here(file) => return Ok(Some(Arc::new(file))),
                    _ => continue,
                }
            }
            let absent = partial.sparse.absent_on_disk(0..partial.sparse.blocks());
            let longest = (PIECE_BYTES / BLOCK_BYTES) as u32;
            let pieces: Vec<Range<u32>> = runs_of(absent).into_iter().flat_map(|run| pieces_of(run, longest)).collect();
            let bring = |piece| {
                let waits = partial.demand(&fs, source, piece, who, true);
                async move {
                    for (_, done) in waits {
                        done.await?;
                    }
                    Ok::<(), FsError>(())
                }
            };
            stream::iter(pieces).map(bring).buffer_unordered(WHOLE_AT_ONCE).try_collect::<()>().await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_gets_ever_more_ahead_and_who_jumps_gets_none() {
        let mut runs = Runs::default();
        let mut ahead = Vec::new();
        for at in 0..128 {
            ahead.push(runs.note(&(at * 131_072..(at + 1) * 131_072)));
        }
        assert_eq!(ahead[..4], [0, 512 << 10, 768 << 10, 1 << 20]);
        assert!(ahead.is_sorted() && ahead[127] == AHEAD_BYTES);
        // Two that read on at other places, of one of which the requests come in another order.
        let (one, other) = (1 << 30, 1 << 32);
        for at in 0..16 {
            let ahead = runs.note(&(one + at * 131_072..one + (at + 1) * 131_072));
            assert_eq!(ahead, if at < 7 { 0 } else { (at + 1) * 131_072 });
            for at in [at * 2 + 1, at * 2] {
                runs.note(&(other + at * 65_536..other + (at + 1) * 65_536));
            }
        }
        assert!(runs.note(&(other + (2 << 20)..other + (2 << 20) + 4096)) >= 1 << 20);
        let mut random = fastrand::Rng::with_seed(1);
        let mut runs = Runs::default();
        for _ in 0..20_000 {
            let at = random.u64(..1 << 28) / 4096 * 4096;
            assert_eq!(runs.note(&(at..at + 4096)), 0);
        }
    }

    #[test]
    fn blocks_that_follow_each_other_are_one_request_up_to_its_limit() {
        assert_eq!(runs_of(vec![1, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
        assert_eq!(pieces_of(3..10, 3).collect::<Vec<_>>(), [3..6, 6..9, 9..10]);
        assert!(overlap(&(1..3), &(2..9)) && !overlap(&(1..3), &(3..9)));
    }
}
