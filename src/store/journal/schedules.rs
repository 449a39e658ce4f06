//! The journal in many schedules: who appends, writes, flushes and compacts beside whom. See [`crate::sync::schedules`].
//!
//! Behind each window is a disk of which is known what a power loss leaves: of a file what it held when its last flush
//! began, of a directory the names of its last flush, of a removal that it happened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shuttle::rand::Rng;
use shuttle::thread;

use super::{Change, Journal, Ticket, mark, recover};
use crate::namespace::Ino;
use crate::store::disk::{Act, Disk, Witness};
use crate::sync::schedules::{self, check, finds};
use crate::sync::{self, Condvar, Mutex};

/// What a power loss leaves.
#[derive(Debug, Clone, Default)]
struct Durable {
    /// Of each file, by its number.
    bytes: BTreeMap<u64, Vec<u8>>,
    /// The files' numbers, by name.
    names: BTreeMap<PathBuf, u64>,
}

/// Knows what is durable, and lets others go on before and after each operation on the disk.
#[derive(Default)]
struct Platter {
    // Never held where another thread goes on.
    durable: std::sync::Mutex<Durable>,
    /// The next flush of a file fails, and what it was to flush never gets there.
    flush_fails: AtomicBool,
    /// The next write fails.
    write_fails: AtomicBool,
    /// The number of the file of which a flush failed.
    broken: AtomicUsize,
}

/// Bytes up to the zeros behind their end.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    const AT_A_TIME: usize = 4096;
    // Many at a time: there may be a mebibyte of them.
    while bytes.len() >= AT_A_TIME && bytes[bytes.len() - AT_A_TIME..] == [0; AT_A_TIME] {
        bytes.truncate(bytes.len() - AT_A_TIME);
    }
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    bytes
}

/// A file up to the zeros behind its end.
fn content(file: &File) -> Vec<u8> {
    trimmed(fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap())
}

fn number(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

impl Witness for Platter {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        thread::yield_now();
        match act {
            Act::Flush(file) => {
                let before = content(file);
                thread::yield_now();
                work()?;
                let number = number(file);
                if self.flush_fails.swap(false, Ordering::Relaxed) {
                    self.broken.store(number as usize, Ordering::Relaxed);
                    return Err(io::ErrorKind::Other.into());
                }
                // The kernel has forgotten what the flush that failed did not bring there.
                if self.broken.load(Ordering::Relaxed) != number as usize {
                    self.durable.lock().unwrap().bytes.insert(number, before);
                }
            }
            Act::FlushDir(dir) => {
                let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
                let names = entries.map(|entry| (entry.path(), entry.metadata().unwrap().ino())).collect();
                thread::yield_now();
                work()?;
                self.durable.lock().unwrap().names = names;
            }
            Act::Remove(path) => {
                work()?;
                self.durable.lock().unwrap().names.remove(*path);
            }
            Act::Write(file) if self.write_fails.swap(false, Ordering::Relaxed) => {
                // Part of it arrives.
                work()?;
                let end = content(file).len() as u64;
                file.set_len(end - end.min(3))?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            _ => work()?,
        }
        thread::yield_now();
        Ok(())
    }
}

impl Platter {
    /// Puts into `dir` what a power loss would leave at this moment, beside the newest mark.
    fn lose_power(&self, from: &Path, dir: &Path) {
        fs::create_dir(dir).unwrap();
        let durable = self.durable.lock().unwrap();
        for (name, number) in &durable.names {
            let name = name.file_name().unwrap();
            let bytes = match name == "mark" {
                true => fs::read(from.join("mark")).unwrap(),
                false => durable.bytes.get(number).cloned().unwrap_or_default(),
            };
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// A journal and what was put into it.
struct World {
    dir: tempfile::TempDir,
    platter: Arc<Platter>,
    journal: Journal,
    /// What was appended, in that order, under the lock that orders it.
    told: Mutex<Vec<Change>>,
    /// How many of them are known to be on stable storage.
    synced: AtomicUsize,
    /// The power losses: what was left, and how many were known to be on stable storage then.
    losses: Mutex<Vec<(PathBuf, usize)>>,
}

fn fact(thread: u64, nth: u8) -> Change {
    Change::Xattr { ino: Ino(thread), name: b"n".to_vec().into(), value: vec![b'0' + nth].into() }
}

impl World {
    fn new() -> Arc<Self> {
        let dir = schedules::dir();
        let platter = Arc::new(Platter::default());
        let journal = Journal::open_on(&Disk::witnessed(platter.clone()), &dir.path().join("journal"), |_| ()).unwrap();
        let (told, synced, losses) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { dir, platter, journal, told, synced, losses })
    }

    /// Makes a change, as the filesystem does: under one lock, appended there.
    fn append(&self, change: Change) -> (Ticket, usize) {
        let mut told = sync::lock(&self.told);
        let ticket = self.journal.append(std::slice::from_ref(&change));
        told.push(change);
        (ticket, told.len())
    }

    /// Has the `upto` first ones on stable storage.
    fn sync(&self, ticket: Ticket, upto: usize) -> io::Result<()> {
        self.journal.sync(ticket)?;
        self.synced.fetch_max(upto, Ordering::Relaxed);
        Ok(())
    }

    fn lose_power(&self) {
        let mut losses = sync::lock(&self.losses);
        let dir = self.dir.path().join(format!("left {}", losses.len()));
        self.platter.lose_power(&self.dir.path().join("journal"), &dir);
        losses.push((dir, self.synced.load(Ordering::Relaxed)));
    }

    /// Whether a change is in the kernel: what a kill leaves.
    fn is_in_kernel(&self, change: &Change) -> bool {
        let text = serde_json::to_vec(change).unwrap();
        let entries = fs::read_dir(self.dir.path().join("journal")).unwrap();
        let mut files = entries.map(|entry| trimmed(fs::read(entry.unwrap().path()).unwrap()));
        files.any(|bytes| memchr::memmem::find(&bytes, &text).is_some())
    }

    /// Looks at what the power losses and the end left. `is` tells whether what was replayed is what some first part of
    /// all that was told gives; this part is at least what was known to be on stable storage.
    fn judge(&self, is: impl Fn(&[Change], &[Change]) -> bool) {
        let told = sync::lock(&self.told).clone();
        let end = self.dir.path().join("end");
        fs::create_dir(&end).unwrap();
        for entry in fs::read_dir(self.dir.path().join("journal")).unwrap() {
            let entry = entry.unwrap();
            fs::write(end.join(entry.file_name()), trimmed(fs::read(entry.path()).unwrap())).unwrap();
        }
        let losses = sync::lock(&self.losses).clone();
        for (nth, (dir, synced)) in losses.into_iter().chain([(end, told.len())]).enumerate() {
            let mut replayed = Vec::new();
            let marked = mark::read(&dir.join("mark")).unwrap();
            let found = recover::replay(&dir, &marked, "after a loss of power", &mut |_, change| {
                replayed.push(change);
                Ok(())
            });
            if let Err(error) = found {
                panic!("after the loss of power {nth}: {error}");
            }
            replayed.retain(|change| !matches!(change, Change::Boot { .. } | Change::Complete));
            let some = (synced..=told.len()).any(|many| is(&replayed, &told[..many]));
            assert!(some, "loss {nth}: {synced} were on stable storage of {told:?}, and there are {replayed:?}");
        }
    }
}

/// What the last fact about each thing says.
fn state(changes: &[Change]) -> BTreeMap<(Ino, Vec<u8>), Vec<u8>> {
    let mut state = BTreeMap::new();
    for change in changes {
        match change {
            Change::Xattr { ino, name, value } => drop(state.insert((*ino, name.to_vec()), value.to_vec())),
            Change::DropXattr { ino, name } => drop(state.remove(&(*ino, name.to_vec()))),
            other => panic!("not told: {other:?}"),
        }
    }
    state
}

/// Spawns `threads`, and returns when all have ended.
fn together(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let running: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    running.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Three append, commit and flush; the power goes at some moment, and again at the end.
fn batching() {
    let world = World::new();
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for who in 0..3 {
        let world = world.clone();
        threads.push(Box::new(move || {
            for nth in 0..2 {
                let change = fact(who, nth);
                let (ticket, upto) = world.append(change.clone());
                if shuttle::rand::thread_rng().gen_bool(0.5) {
                    world.journal.commit(ticket).unwrap();
                    assert!(world.is_in_kernel(&change), "{change:?} was acknowledged");
                } else {
                    world.sync(ticket, upto).unwrap();
                }
            }
        }));
    }
    let loser = world.clone();
    threads.push(Box::new(move || loser.lose_power()));
    together(threads);
    world.lose_power();
    world.judge(|replayed, told| replayed == told);
}

/// A write fails, in part done, while others wait for the same one; who was refused asks again.
fn failing_writes() {
    let world = World::new();
    world.platter.write_fails.store(true, Ordering::Relaxed);
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for who in 0..3 {
        let world = world.clone();
        threads.push(Box::new(move || {
            let (ticket, upto) = world.append(fact(who, 0));
            if world.journal.commit(ticket).is_err() {
                while world.journal.ready().is_err() {}
                world.journal.commit(ticket).unwrap();
            }
            assert!(world.is_in_kernel(&fact(who, 0)));
            world.sync(ticket, upto).unwrap();
        }));
    }
    together(threads);
    assert!(world.journal.trouble().is_none());
    world.lose_power();
    world.judge(|replayed, told| replayed == told);
}

/// Puts the whole state into a new segment, as the filesystem does: in portions, between which others append.
fn compact(world: &World) -> io::Result<()> {
    let compaction = world.journal.compaction();
    compaction.start_segment()?;
    let things: Vec<(Ino, Vec<u8>)> = {
        let told = sync::lock(&world.told);
        state(&told).into_keys().collect()
    };
    for (ino, name) in things {
        // Under the lock that orders the changes.
        let told = sync::lock(&world.told);
        let value = state(&told).get(&(ino, name.clone())).cloned();
        let portion = value.map(|value| Change::Xattr { ino, name: name.into(), value: value.into() });
        world.journal.append(portion.as_slice());
    }
    compaction.complete()
}

/// Two write and flush while a compaction switches the segment under them, and another follows it.
fn compaction() {
    let world = World::new();
    for who in 0..2 {
        let (ticket, upto) = world.append(fact(who, 0));
        world.sync(ticket, upto).unwrap();
    }
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for who in 0..2 {
        let world = world.clone();
        threads.push(Box::new(move || {
            let gone = Change::DropXattr { ino: Ino(who), name: b"n".to_vec().into() };
            for change in [fact(who, 1), gone, fact(who + 2, 2)] {
                let (ticket, upto) = world.append(change);
                match shuttle::rand::thread_rng().gen_bool(0.5) {
                    true => world.journal.commit(ticket).unwrap(),
                    false => world.sync(ticket, upto).unwrap(),
                }
            }
        }));
    }
    for _ in 0..2 {
        let world = world.clone();
        threads.push(Box::new(move || compact(&world).unwrap()));
    }
    let loser = world.clone();
    threads.push(Box::new(move || loser.lose_power()));
    together(threads);
    let (ticket, upto) = { (world.journal.append(&[]), sync::lock(&world.told).len()) };
    world.sync(ticket, upto).unwrap();
    world.lose_power();
    world.judge(|replayed, told| state(replayed) == state(told));
}

/// A flush fails, and the kernel forgets what it was to flush: nothing counts as flushed until all is in a new segment.
fn failing_flushes() {
    let world = World::new();
    world.platter.flush_fails.store(true, Ordering::Relaxed);
    let rewritten = Arc::new((Mutex::new(false), Condvar::new()));
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for who in 0..2 {
        let (world, rewritten) = (world.clone(), rewritten.clone());
        threads.push(Box::new(move || {
            for nth in 0..2 {
                let (ticket, upto) = world.append(fact(who, nth));
                if world.sync(ticket, upto).is_err() {
                    let mut done = sync::lock(&rewritten.0);
                    while !*done {
                        done = done.wait(&rewritten.1);
                    }
                    drop(done);
                    world.sync(ticket, upto).unwrap();
                } else {
                    // Before all is in a new segment: what is believed here has to be there.
                    world.lose_power();
                }
            }
        }));
    }
    let mender = world.clone();
    threads.push(Box::new(move || {
        while !mender.journal.must_be_rewritten() {
            thread::yield_now();
        }
        compact(&mender).unwrap();
        *sync::lock(&rewritten.0) = true;
        rewritten.1.notify_all();
    }));
    let loser = world.clone();
    threads.push(Box::new(move || loser.lose_power()));
    together(threads);
    assert!(!world.journal.must_be_rewritten() && world.journal.trouble().is_none());
    world.lose_power();
    world.judge(|replayed, told| state(replayed) == state(told));
}

#[test]
fn schedules_of_batching_acknowledge_what_is_there() {
    check(batching);
}

#[test]
fn schedules_of_failing_writes_lose_and_mix_nothing() {
    check(failing_writes);
}

#[test]
fn schedules_of_compaction_keep_what_is_written_meanwhile() {
    check(compaction);
}

#[test]
fn schedules_of_failing_flushes_count_nothing_as_flushed() {
    check(failing_flushes);
}

#[test]
fn schedules_find_a_flush_that_counts_for_what_came_during_it() {
    finds("a flush counts for what was written during it", batching);
}

#[test]
fn schedules_find_frames_that_a_failed_write_puts_behind_newer_ones() {
    finds("a failed write puts its frames behind newer ones", failing_writes);
}

#[test]
fn schedules_find_a_segment_that_is_switched_amid_a_write() {
    finds("a segment is switched amid a write", compaction);
}

#[test]
fn schedules_find_a_flush_that_is_believed_after_one_that_failed() {
    finds("a flush is believed after one that failed", failing_flushes);
}
