//! Waiting for a daemon to carry out a request, with progress, a deadline and Ctrl-C.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::interrupt;
use super::output::{bytes, count, note, takes_along};
use super::progress::Meter;
use super::vigil::{self, Vigil};
use crate::control::client::{Client, ClientError, Next};
use crate::control::{Event, Failure as Refusal, Request};
use crate::mount::state_dir::Known;
use crate::report::{Progress, TakenAlong, Tally};

/// When waiting ends: once for all that a command waits for.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// From now on; `None` is never.
    pub fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// What is left of it.
    pub fn left(self) -> Option<Duration> {
        self.0.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// As long as usual, or what is left.
    pub fn or_sooner(self, usual: Duration) -> Duration {
        self.left().map_or(usual, |left| left.min(usual))
    }
}

/// How often Ctrl-C and the deadline are looked at.
const TICK: Duration = Duration::from_millis(200);

/// How long a daemon that has unmounted may take to end.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a daemon that said so is gone: it hangs up with its end, and writes nothing to its directory after that.
fn await_end(client: &mut Client, deadline: Deadline) {
    let deadline = Instant::now() + deadline.or_sooner(END_PATIENCE);
    while Instant::now() < deadline && !interrupt::seen() {
        if client.next(TICK).is_err() {
            return;
        }
    }
    note("its daemon is still ending; leave its state directory alone until oxenfs status says that none runs");
}

/// How waiting ended.
#[derive(Debug)]
pub enum End {
    /// It was carried out, so many files were staged for it, and so much was ignored of what it was asked for.
    Done(u64, Tally),
    /// The commit was made, so many files were staged for it, it holds these of others, and so much was ignored; `None`:
    /// there was nothing to commit.
    Committed(Option<String>, u64, TakenAlong, Tally),
    /// It was not carried out.
    Refused(Refusal),
    /// Ctrl-C, or the deadline passed; the request is withdrawn, the daemon goes on.
    GaveUp(GaveUp),
}

/// Why waiting was given up, and what was left then.
#[derive(Debug)]
pub struct GaveUp {
    why: Why,
    left: Progress,
}

#[derive(Debug)]
enum Why {
    Interrupted,
    TimedOut,
    Stalled(String),
}

impl GaveUp {
    /// Whether the user wanted it.
    pub fn is_interrupted(&self) -> bool {
        matches!(self.why, Why::Interrupted)
    }
}

/// What was interrupted, and how much of it is left.
impl std::fmt::Display for GaveUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.why {
            Why::Stalled(why) => f.write_str(why)?,
            Why::Interrupted => f.write_str("interrupted")?,
            Why::TimedOut => f.write_str("timed out")?,
        }
        let files = self.left.files_total.saturating_sub(self.left.files_done);
        let content = self.left.bytes_total.saturating_sub(self.left.bytes_done);
        match files {
            0 => Ok(()),
            _ => write!(f, " with {} ({}) not on the server yet", count(files, "file"), bytes(content)),
        }
    }
}

/// Sends `request` and shows progress until its last event.
///
/// # Errors
/// When the daemon ends first, or does not answer.
pub fn follow(known: &Known, stream: UnixStream, request: &Request, deadline: Deadline) -> Result<End, Failure> {
    follow_while_it_goes_on(known, stream, request, deadline, None)
}

/// How long a drain is followed that does not get on.
pub struct Patience<'a> {
    /// While the daemon says that nothing goes on.
    pub stalled: Duration,
    /// Without progress, before it is looked why.
    pub quiet: Duration,
    /// Why nothing is to be hoped for, if that is so.
    pub look: &'a dyn Fn() -> Option<String>,
}

/// [`follow`], but only for as long as it gets on.
///
/// # Errors
/// As [`follow`].
pub fn follow_while_it_goes_on(
    known: &Known,
    stream: UnixStream,
    request: &Request,
    deadline: Deadline,
    patience: Option<&Patience<'_>>,
) -> Result<End, Failure> {
    let mut stalled: Option<(Instant, String)> = None;
    let mut moved = (Instant::now(), Progress::default());
    let (mut taken, mut ignored) = (TakenAlong::default(), Tally::default());
    interrupt::catch();
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, request)?;
    let mut meter = Meter::new("staged");
    loop {
        let given_up = match deadline.left() {
            _ if interrupt::seen() => Some(Why::Interrupted),
            Some(left) if left.is_zero() => Some(Why::TimedOut),
            _ => patience
                .and_then(|patience| match &stalled {
                    Some((since, why)) => (since.elapsed() >= patience.stalled).then(|| why.clone()),
                    None if moved.0.elapsed() < patience.quiet => None,
                    None => {
                        let why = (patience.look)();
                        moved.0 = Instant::now();
                        why
                    }
                })
                .map(Why::Stalled),
        };
        if let Some(why) = given_up {
            let left = meter.last();
            meter.clear();
            if let Some(failure) = vigil.reason() {
                return Err(failure);
            }
            return Ok(End::GaveUp(GaveUp { why, left }));
        }
        let event = match client.next(deadline.or_sooner(TICK)) {
            Ok(Next::Event(event)) => event,
            Ok(Next::Nothing) => match vigil.check() {
                Ok(()) => continue,
                Err(failure) => {
                    meter.clear();
                    return Err(failure);
                }
            },
            Err(error) => {
                meter.clear();
                return Err(error.into());
            }
        };
        vigil.heard();
        match event {
            Event::Progress(progress) => {
                if progress != moved.1 {
                    moved = (Instant::now(), progress);
                }
                meter.update(progress);
            }
            Event::Stalled { why } => {
                let since = stalled.take().map_or_else(Instant::now, |(since, _)| since);
                stalled = why.clone().map(|why| (since, why));
                meter.stalled(why);
            }
            Event::Done => {
                let staged = meter.last().files_done;
                meter.finish();
                if matches!(request, Request::Unmount | Request::Detach) {
                    await_end(&mut client, deadline);
                }
                return Ok(End::Done(staged, ignored));
            }
            Event::Committed { id } => {
                let staged = meter.last().files_done;
                meter.finish();
                return Ok(End::Committed(id, staged, taken, ignored));
            }
            Event::TakesAlong(others) => {
                meter.aside(|| note(takes_along(&others)));
                taken = others;
            }
            Event::Ignores(tally) => ignored = tally,
            Event::Failed(refusal) => {
                meter.clear();
                return Ok(End::Refused(refusal));
            }
            Event::Status(_)
            | Event::Measures(_)
            | Event::Happened { .. }
            | Event::LogLevel { .. }
            | Event::Differences { .. }
            | Event::Warmed(_)
            | Event::Importing
            | Event::Copied { .. }
            | Event::Imported { .. }
            | Event::Refreshed(_)
            | Event::Resolved { .. }
            | Event::Ignored { .. }
            | Event::Chunk { .. } => {
                meter.clear();
                return Err(ClientError::NotUnderstood.into());
            }
        }
    }
}
