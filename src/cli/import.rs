//! `oxenfs import`: files go to the daemon as open files over its socket, and from there into the spool, without a
//! request of the kernel to the mount.

mod below;
mod plan;
mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::args::ImportArgs;
use super::done;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::interrupt;
use super::output::{count, json, note, thousands};
use super::progress::Meter;
use super::vigil::{self, Vigil};
use crate::control::client::{Client, ClientError, Next};
use crate::control::{self, Event, Import, Item, Refusal, Request, passing};
use crate::report::Progress;
use below::Opener;
use plan::{Found as Destination, Plan};
use walk::{Found, Source, Totals, Walk};

/// How often Ctrl-C is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Content in one batch, but for a single larger file: large files are copied several at a time.
const BATCH_BYTES: u64 = 4 << 20;
/// Items in one batch that are no regular files.
const BATCH_ITEMS: usize = 256;
/// Batches on their way or being copied: enough that nobody waits, few enough for the files that are open meanwhile.
const BATCHES_UNDER_WAY: usize = 8;
/// Found and not sent yet.
const FOUND_AHEAD: usize = 16 << 10;
/// How long an interrupted import is waited for: a stretch of a copy.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// `oxenfs import`.
pub fn import(args: ImportArgs, finder: &Finder) -> Result<u8, Failure> {
    let mut sources = args.paths;
    let destination = sources.pop().unwrap_or_default();
    let failed = || format!("cannot import into {}", quoted(&destination));
    let real = find::real(&destination).doing(failed)?;
    let (known, stream) = finder.running(&real).doing(failed)?;
    // What the destination is, the kernel has to ask it.
    vigil::await_answer(known, stream).doing(failed)?;
    let (_, stream) = finder.running(&real).doing(failed)?;
    let mut vigil = Vigil::over(known, &stream);
    let root = &known.meta.identity.mountpoint;
    let plan = planned(&sources, &destination, &real, root).doing(failed)?;
    interrupt::catch();
    let request = Request::Import { into: plan.0.clone() };
    let mut client = vigil::asked(&vigil, stream.try_clone().map_err(Failure::new)?, &request).doing(failed)?;
    match await_event(&mut client, &mut vigil).doing(failed)? {
        Event::Importing => {}
        Event::Failed(refusal) => return Err(Failure::from(refusal).doing(failed())),
        _ => return Err(Failure::from(ClientError::NotUnderstood).doing(failed())),
    }
    let outcome = carry_out(&plan, client, vigil, stream).doing(failed)?;
    if args.json {
        json(&done::Imported { files: outcome.done, found: outcome.total, refused: outcome.bad }, false)?;
    }
    outcome.judge(root).doing(failed)
}

fn await_event(client: &mut Client, vigil: &mut Vigil) -> Result<Event, Failure> {
    loop {
        if interrupt::seen() {
            return Err(Failure::new("interrupted"));
        }
        match client.next(TICK)? {
            Next::Event(event) => {
                vigil.heard();
                return Ok(event);
            }
            Next::Nothing => vigil.check()?,
        }
    }
}

fn planned(sources: &[PathBuf], destination: &Path, real: &Path, root: &Path) -> Result<Plan, Failure> {
    let found = match std::fs::metadata(destination) {
        Ok(metadata) if metadata.is_dir() => Destination::Directory,
        Ok(_) => Destination::Other,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Destination::Nothing,
        Err(error) => return Err(Failure::new(cause(&error))),
    };
    for source in sources {
        // A copy of a directory into itself would never end.
        let inside = std::fs::canonicalize(source).is_ok_and(|source| source.is_dir() && real.starts_with(source));
        if inside {
            return Err(Failure::new(format_args!("it lies in {}, which is to be imported", quoted(source))));
        }
    }
    let below = real.strip_prefix(root).map_err(Failure::new)?;
    let is_dir = |source: &Path| {
        let plain: PathBuf = source.components().collect();
        std::fs::symlink_metadata(plain).is_ok_and(|source| source.is_dir())
    };
    plan::plan(sources, destination, below, found, is_dir)
}

/// What an error of the filesystem means, without its number.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// What sender and listener share.
#[derive(Default)]
struct Shared {
    under_way: Mutex<UnderWay>,
    moved: Condvar,
    totals: Totals,
    /// The walk is to end.
    stop: AtomicBool,
    copied: AtomicU64,
}

#[derive(Default)]
struct UnderWay {
    /// What each unanswered batch consists of.
    batches: HashMap<u64, Vec<(PathBuf, bool)>>,
    done: u64,
    done_bytes: u64,
    /// With their reasons; shown as they come.
    bad: u64,
    no_space: bool,
    /// The daemon says no more.
    over: Option<Result<(), Failure>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no more is to be sent.
    fn ended(&self, state: &UnderWay) -> bool {
        interrupt::seen() || state.no_space || state.over.is_some()
    }

    fn progress(&self) -> Progress {
        let state = self.lock();
        Progress {
            files_done: state.done,
            files_total: self.totals.files.load(Ordering::Relaxed),
            bytes_done: self.copied.load(Ordering::Relaxed).max(state.done_bytes),
            bytes_total: self.totals.bytes.load(Ordering::Relaxed),
            files_failed: state.bad,
        }
    }
}

/// How it went.
struct Outcome {
    done: u64,
    total: u64,
    bad: u64,
    no_space: bool,
    interrupted: bool,
}

impl Outcome {
    fn judge(self, root: &Path) -> Result<u8, Failure> {
        let there = format!("{} of {} imported, each whole", thousands(self.done), count(self.total, "file"));
        let there = if self.done == 1 { there } else { there.replace(" imported", " are imported") };
        if self.no_space {
            return Err(Failure::new(format_args!("no space left in the spool; {there}")).hint(format_args!(
                "wait until some of it is on the server, oxenfs sync {}, and repeat the command; or mount with a \
                 larger --spool-limit",
                quoted(root)
            )));
        }
        if self.interrupted {
            return Err(
                Failure::new(format_args!("interrupted; {there}")).hint("repeat the command to import the rest")
            );
        }
        if self.bad > 0 {
            return Err(Failure::new(format_args!("{} could not be imported, the rest was", count(self.bad, "file"))));
        }
        Ok(0)
    }
}

fn carry_out(plan: &Plan, client: Client, vigil: Vigil, stream: UnixStream) -> Result<Outcome, Failure> {
    let shared = Shared::default();
    std::thread::scope(|scope| {
        let shared = &shared;
        let (send, found) = sync_channel(FOUND_AHEAD);
        let walking = scope.spawn(move || Walk::all(&plan.1, send, &shared.totals, &shared.stop));
        let listening = scope.spawn(move || listen(client, vigil, shared));
        let mut sender = Sender {
            stream,
            shared,
            batch: 0,
            next: Vec::new(),
            files: Vec::new(),
            bytes: 0,
            opener: Opener::default(),
        };
        let sent = sender.send_all(&found);
        shared.stop.store(true, Ordering::Relaxed);
        drop(found);
        let sent = match (walking.join(), sent) {
            (Ok(dated), Ok(true)) => sender.end(&dated),
            // A walk that broke off has not found all.
            (_, sent) => sent.map(|_| false),
        };
        // The daemon ends by itself then, and says so.
        let _ = sender.stream.shutdown(std::net::Shutdown::Write);
        let listened = listening.join();
        let state = shared.lock();
        // Not by what was counted: the walk may have stopped before it found the rest.
        let interrupted = interrupt::seen() && !matches!(sent, Ok(true));
        match (&state.over, sent) {
            (Some(Err(failure)), _) if !state.no_space => {
                let cause = format!("{}; {} imported", failure.cause, count(state.done, "file"));
                Err(Failure { cause, ..failure.clone() })
            }
            (_, Err(error)) if !interrupted => Err(Failure::new(error)),
            (_, Ok(false)) if !interrupted && !state.no_space => {
                Err(Failure::new(format_args!("the daemon ended it early; {} imported", count(state.done, "file"))))
            }
            _ if listened.is_err() => Err(Failure::new("the answers could not be followed")),
            _ => Ok(Outcome {
                done: state.done,
                total: shared.totals.files.load(Ordering::Relaxed),
                bad: state.bad,
                no_space: state.no_space,
                interrupted,
            }),
        }
    })
}

/// Takes the daemon's answers in, and shows how far it is.
fn listen(mut client: Client, mut vigil: Vigil, shared: &Shared) {
    let mut meter = Meter::new("imported");
    let mut patience: Option<Instant> = None;
    let over = loop {
        if interrupt::seen() && patience.get_or_insert_with(|| Instant::now() + STOP_PATIENCE) < &mut Instant::now() {
            break Err(ClientError::HungUp.into());
        }
        let next = client.next(TICK);
        if matches!(next, Ok(Next::Event(_))) {
            vigil.heard();
        }
        match next {
            Ok(Next::Nothing) => {
                if let Err(failure) = vigil.check() {
                    // The sender may wait for it to take something.
                    client.hang_up();
                    break Err(failure);
                }
            }
            Ok(Next::Event(Event::Copied { bytes })) => shared.copied.store(bytes, Ordering::Relaxed),
            Ok(Next::Event(Event::Imported { batch, bytes, refused })) => {
                answered(batch, bytes, refused, shared, &meter)
            }
            Ok(Next::Event(Event::Done)) => break Ok(()),
            Ok(Next::Event(_)) => break Err(ClientError::NotUnderstood.into()),
            Err(error) => break Err(error.into()),
        }
        meter.update(shared.progress());
    };
    meter.update(shared.progress());
    let mut state = shared.lock();
    if over.is_ok() && state.bad == 0 && !interrupt::seen() && !state.no_space {
        meter.finish()
    } else {
        meter.clear()
    }
    state.over = Some(over);
    drop(state);
    shared.moved.notify_all();
}

fn answered(batch: u64, bytes: u64, refused: Vec<control::Refused>, shared: &Shared, meter: &Meter) {
    let mut state = shared.lock();
    let items = state.batches.remove(&batch).unwrap_or_default();
    let files = items.iter().filter(|(_, file)| *file).count() as u64;
    let mut missing = 0;
    for refused in refused {
        let Some((path, file)) = items.get(refused.item) else { continue };
        missing += u64::from(*file);
        match refused.why {
            // What stopped it is said once, at the end.
            Refusal::NoSpace => state.no_space = true,
            Refusal::Stopped => {}
            // The directory itself was named.
            Refusal::Above => state.bad += u64::from(*file),
            Refusal::Alone => {
                state.bad += 1;
                complain(path, &refused.error, meter);
            }
        }
    }
    state.done += files - missing.min(files);
    state.done_bytes += bytes;
    drop(state);
    shared.moved.notify_all();
}

fn complain(path: &Path, why: &str, meter: &Meter) {
    meter.aside(|| note(format_args!("not imported: {}: {}", quoted(path), why)));
}

/// Opens files and sends them, a batch at a time.
struct Sender<'a> {
    stream: UnixStream,
    shared: &'a Shared,
    batch: u64,
    next: Vec<(Item, PathBuf)>,
    files: Vec<File>,
    bytes: u64,
    opener: Opener,
}

impl Sender<'_> {
    /// Sends what the walk finds. Says whether that was all.
    fn send_all(&mut self, found: &Receiver<Found>) -> io::Result<bool> {
        loop {
            let Ok(found) = found.recv() else {
                return self.flush();
            };
            match found {
                Found::Bad(path, why) => self.bad(&path, &why),
                Found::Item(item, Source { top, below }, bytes) => {
                    let path = top.shown(&below);
                    if matches!(item, Item::File { .. }) {
                        // What is there now need not be what the walk has seen.
                        match self.opener.file(&top, &below) {
                            Ok(file) => self.files.push(file),
                            Err(error) => {
                                self.bad(&path, &cause(&error));
                                continue;
                            }
                        }
                    }
                    self.next.push((item, path));
                    self.bytes += bytes;
                }
            }
            let full =
                self.files.len() >= passing::FILES_MAX || self.next.len() >= BATCH_ITEMS || self.bytes >= BATCH_BYTES;
            if full && !self.flush()? {
                return Ok(false);
            }
        }
    }

    fn bad(&self, path: &Path, why: &str) {
        self.shared.lock().bad += 1;
        note(format_args!("not imported: {}: {why}", quoted(path)));
    }

    /// Sends the batch when there is room for it. Says whether to go on.
    fn flush(&mut self) -> io::Result<bool> {
        let (items, paths): (Vec<Item>, Vec<PathBuf>) = std::mem::take(&mut self.next).into_iter().unzip();
        let files = std::mem::take(&mut self.files);
        self.bytes = 0;
        let mut state = self.shared.lock();
        loop {
            if self.shared.ended(&state) {
                return Ok(false);
            }
            if items.is_empty() {
                return Ok(true);
            }
            if state.batches.len() < BATCHES_UNDER_WAY {
                break;
            }
            state = self.shared.moved.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let counts = |item: &Item| matches!(item, Item::File { .. } | Item::Link { .. });
        let known = paths.into_iter().zip(&items).map(|(path, item)| (path, counts(item))).collect();
        state.batches.insert(self.batch, known);
        drop(state);
        let mut line = serde_json::to_vec(&Import::Batch { batch: self.batch, items })?;
        line.push(b'\n');
        self.batch += 1;
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        match passing::send(&mut self.stream, &line, &files) {
            // The listener knows why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            sent => sent.map(|()| true),
        }
    }

    /// Waits for all answers, dates the new directories, and says that it is over. Says whether it came so far.
    fn end(&mut self, dated: &[(usize, (i64, u32))]) -> io::Result<bool> {
        if !self.settled() {
            return Ok(false);
        }
        for (id, mtime) in dated {
            self.next.push((Item::Dated { id: *id, mtime: *mtime }, PathBuf::new()));
            if self.next.len() >= BATCH_ITEMS && !self.flush()? {
                return Ok(false);
            }
        }
        if !self.flush()? || !self.settled() {
            return Ok(false);
        }
        passing::send(&mut self.stream, b"\"end\"\n", &[]).map(|()| true)
    }

    /// Waits for all answers; says whether to go on.
    fn settled(&self) -> bool {
        let mut state = self.shared.lock();
        loop {
            if self.shared.ended(&state) {
                return false;
            }
            if state.batches.is_empty() {
                return true;
            }
            state = self.shared.moved.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_in_words_alone() {
        assert_eq!(cause(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
    }
}
