//! The daemon's side of an import: takes open files from the command, copies them into the spool, several at a time,
//! and gives them their names, a batch in one frame of the record.
//!
//! The command opens the files: whatever the daemon may read, nobody imports what they may not read themselves.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::control::passing;
use crate::control::{Event, Import, Item, Refusal, Refused};
use crate::fs::{Arrival, Arrived, Fs, FsError, Op, Stop};
use crate::namespace::{Attrs, Ino, Timestamp};
use crate::path::Name;

/// How often the command is told how many bytes were copied.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Set-user-id and set-group-id.
const SET_IDS: u16 = 0o6000;

/// Who asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One import.
struct Session<'a> {
    fs: &'a Arc<Fs>,
    runtime: Handle,
    peer: Peer,
    /// Where answers go, one writer at a time.
    answers: Mutex<UnixStream>,
    copied: AtomicU64,
    /// The command is gone or wants no more.
    stopped: AtomicBool,
}

/// What a batch still needs: open files to be copied and links, with the directories they lie in.
struct Work {
    batch: u64,
    items: Vec<(usize, Ino, Name, What)>,
    refused: Vec<Refused>,
}

enum What {
    File(OwnedFd),
    Link(Box<[u8]>, Timestamp),
}

/// A directory of the import, by the command's number.
#[derive(Clone, Copy)]
struct Into {
    ino: Ino,
    /// Made by this import.
    made: bool,
}

/// Carries an import into the directory `into` out. Blocks until the command has said that it is over, or hung up;
/// says which. Nothing is read ahead from `stream` yet.
///
/// # Errors
/// The socket's.
pub(super) fn take(stream: UnixStream, fs: &Arc<Fs>, runtime: Handle, peer: Peer, into: Ino) -> io::Result<bool> {
    let session = Session {
        fs,
        runtime,
        peer,
        answers: Mutex::new(stream.try_clone()?),
        copied: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    };
    session.answer(&Event::Importing)?;
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let (send, receive) = sync_channel(workers);
    let receive = Mutex::new(receive);
    let over = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| session.tell(&over));
        let copying: Vec<_> = (0..workers).map(|_| scope.spawn(|| session.copy(&receive))).collect();
        let ended = session.receive(passing::Receiver::new(stream), into, send);
        if !matches!(ended, Ok(true)) {
            session.stopped.store(true, Ordering::Relaxed);
        }
        for copying in copying {
            // A panic is on record already, and its batch is never answered: the command sees the import end early.
            let _ = copying.join();
        }
        *over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        over.1.notify_all();
        ended
    })
}

impl Session<'_> {
    fn answer(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }

    /// Tells how many bytes were copied, until it is over.
    fn tell(&self, over: &(Mutex<bool>, Condvar)) {
        let mut told = 0;
        let mut ended = over.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = over.1.wait_timeout(ended, TELL_EVERY).unwrap_or_else(PoisonError::into_inner).0;
            let bytes = self.copied.load(Ordering::Relaxed);
            if bytes != std::mem::replace(&mut told, bytes) && self.answer(&Event::Copied { bytes }).is_err() {
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Takes batches in: makes their directories at once, in order, and hands the rest on. Says whether the command
    /// ended it in words.
    fn receive(&self, mut from: passing::Receiver, into: Ino, work: SyncSender<Work>) -> io::Result<bool> {
        let mut dirs = vec![Some(Into { ino: into, made: false })];
        while let Some(line) = from.line()? {
            match serde_json::from_slice(&line)? {
                Import::End => return Ok(true),
                Import::Batch { batch, items } => {
                    let batch = self.prepare(batch, items, &mut from, &mut dirs);
                    if work.send(batch).is_err() {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    }

    fn prepare(
        &self,
        batch: u64,
        items: Vec<Item>,
        from: &mut passing::Receiver,
        dirs: &mut Vec<Option<Into>>,
    ) -> Work {
        let mut work = Work { batch, items: Vec::new(), refused: Vec::new() };
        let wanted = items.iter().filter(|item| matches!(item, Item::File { .. })).count();
        let files = if wanted > 0 { from.files() } else { Vec::new() };
        // Were one missing, each after it would be taken for another.
        let lost = files.len() != wanted;
        let mut files = files.into_iter();
        for (at, item) in items.into_iter().enumerate() {
            let dir = |number: usize| dirs.get(number).copied().flatten().ok_or(FsError::NotFound);
            let done = match item {
                Item::Dir { id, into, name, mode } => {
                    let attrs = self.owned(mode & !SET_IDS);
                    let made = dir(into).and_then(|dir| self.finish(|fs| fs.ensure_dir(dir.ino, &name, attrs)));
                    if dirs.len() <= id {
                        dirs.resize(id.min(dirs.len() + (1 << 20)) + 1, None);
                    }
                    made.map(|(ino, made)| {
                        if let Some(slot) = dirs.get_mut(id) {
                            *slot = Some(Into { ino, made });
                        }
                    })
                }
                Item::File { into, name } => {
                    let file = files.next().filter(|_| !lost);
                    dir(into).and_then(|dir| {
                        let file = file.ok_or_else(|| FsError::from(std::io::Error::from(rustix::io::Errno::MFILE)))?;
                        work.items.push((at, dir.ino, name, What::File(file)));
                        Ok(())
                    })
                }
                Item::Link { into, name, target, mtime: (secs, nanos) } => dir(into).map(|dir| {
                    work.items.push((at, dir.ino, name, What::Link(target, Timestamp(secs, nanos))));
                }),
                Item::Dated { id, mtime: (secs, nanos) } => match dir(id) {
                    Ok(dir) if dir.made => self.finish(|fs| fs.date(dir.ino, Timestamp(secs, nanos))),
                    _ => Ok(()),
                },
            };
            if let Err(error) = done {
                let above = matches!(error, FsError::NotFound);
                let why = if above { Refusal::Above } else { self.meaning(&error) };
                work.refused.push(Refused { item: at, why, error: words(&error) });
            }
        }
        work
    }

    /// Copies batches and gives them their names until there are no more.
    fn copy(&self, work: &Mutex<Receiver<Work>>) {
        let mut buffer = Vec::new();
        loop {
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(Work { batch, items, mut refused }) = next else { return };
            let mut numbers = Vec::with_capacity(items.len());
            let mut arrivals = Vec::with_capacity(items.len());
            for (item, parent, name, what) in items {
                match self.arrival(parent, name, what, &mut buffer) {
                    Ok(arrival) => {
                        numbers.push(item);
                        arrivals.push(arrival);
                    }
                    Err(error) => {
                        refused.push(Refused { item, why: self.meaning(&error), error: words(&error) });
                    }
                }
            }
            let outcomes = if arrivals.is_empty() { Ok(Vec::new()) } else { self.finish_mut(&mut arrivals) };
            let mut bytes = 0;
            let refuse = |item: usize, error: &FsError| Refused { item, why: self.meaning(error), error: words(error) };
            match outcomes {
                Ok(outcomes) => {
                    for ((item, arrival), outcome) in numbers.into_iter().zip(&arrivals).zip(outcomes) {
                        match (outcome, &arrival.arrived) {
                            (Ok(()), Arrived::File(file)) => bytes += file.size(),
                            (Ok(()), Arrived::Link(_)) => {}
                            (Err(error), _) => refused.push(refuse(item, &error)),
                        }
                    }
                }
                Err(error) => refused.extend(numbers.into_iter().map(|item| refuse(item, &error))),
            }
            if self.answer(&Event::Imported { batch, bytes, refused }).is_err() {
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    fn arrival(&self, parent: Ino, name: Name, what: What, buffer: &mut Vec<u8>) -> Result<Arrival, FsError> {
        let go_on = |copied| {
            self.copied.fetch_add(copied, Ordering::Relaxed);
            if self.stopped.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        };
        match what {
            What::File(file) => {
                let (file, found) = self.fs.spool_in(&File::from(file), buffer, go_on)?;
                // Set-id bits are for their owner's programs: they do not pass to whoever imports a copy.
                let kept = found.uid == self.peer.uid && found.gid == self.peer.gid;
                let mode = if kept { found.mode } else { found.mode & !SET_IDS };
                let attrs = Attrs { atime: found.atime, mtime: found.mtime, ..self.owned(mode) };
                Ok(Arrival { parent, name, attrs, arrived: Arrived::File(file) })
            }
            What::Link(target, time) => {
                go_on(0)?;
                let attrs = Attrs { atime: time, mtime: time, ..self.owned(0o777) };
                Ok(Arrival { parent, name, attrs, arrived: Arrived::Link(target) })
            }
        }
    }

    fn owned(&self, mode: u16) -> Attrs {
        let never = Timestamp(0, 0);
        let mode = mode & 0o7777;
        Attrs { mode, uid: self.peer.uid, gid: self.peer.gid, atime: never, mtime: never, ctime: never }
    }

    /// Does an operation, getting what it needs.
    fn finish<T>(&self, op: impl Fn(&Fs) -> Op<T>) -> Result<T, FsError> {
        match op(self.fs) {
            Ok(done) => Ok(done),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Need(need)) => self.runtime.block_on(self.fs.run(need, op)),
        }
    }

    fn finish_mut(&self, arrivals: &mut [Arrival]) -> Result<Vec<Result<(), FsError>>, FsError> {
        loop {
            match self.fs.take_in(arrivals) {
                Ok(done) => return Ok(done),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Need(need)) => self.runtime.block_on(self.fs.satisfy(need))?,
            }
        }
    }

    fn meaning(&self, error: &FsError) -> Refusal {
        match error {
            FsError::NoSpace => Refusal::NoSpace,
            FsError::Io(error) if error.kind() == io::ErrorKind::Interrupted => Refusal::Stopped,
            _ => Refusal::Alone,
        }
    }
}

/// Why an item was not made.
fn words(error: &FsError) -> String {
    match error {
        FsError::IsDir => "a directory of that name is there already".to_owned(),
        FsError::NotDir => "something that is not a directory has that name already".to_owned(),
        FsError::NotFound | FsError::Stale => "the directory it belongs in is not there".to_owned(),
        FsError::Unsupported => "it is not a regular file any more".to_owned(),
        error => error.to_string(),
    }
}
