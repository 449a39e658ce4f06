//! Waiting for a daemon to carry out a request, with progress, a deadline and Ctrl-C.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::interrupt;
use super::output::{bytes, count};
use super::progress::Meter;
use crate::control::client::{Client, ClientError, Next};
use crate::control::{Event, Failure as Refusal, Progress, Request};

/// How often Ctrl-C and the deadline are looked at.
const TICK: Duration = Duration::from_millis(200);

/// How waiting ended.
#[derive(Debug)]
pub enum End {
    /// It was carried out.
    Done,
    /// The commit was made; `None`: there was nothing to commit.
    Committed(Option<String>),
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
}

/// What was interrupted, and how much of it is left.
impl std::fmt::Display for GaveUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.why {
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
/// When the daemon ends first.
pub fn follow(stream: UnixStream, request: &Request, timeout: Option<Duration>) -> Result<End, ClientError> {
    interrupt::catch();
    let began = Instant::now();
    let mut client = Client::ask(stream, request)?;
    let mut meter = Meter::new("staged");
    loop {
        let given_up = match timeout {
            _ if interrupt::seen() => Some(Why::Interrupted),
            Some(timeout) if began.elapsed() >= timeout => Some(Why::TimedOut),
            _ => None,
        };
        if let Some(why) = given_up {
            let left = meter.last();
            meter.clear();
            return Ok(End::GaveUp(GaveUp { why, left }));
        }
        let left = timeout.map_or(TICK, |timeout| timeout.saturating_sub(began.elapsed()).min(TICK));
        let event = match client.next(left) {
            Ok(Next::Event(event)) => event,
            Ok(Next::Nothing) => continue,
            Err(error) => {
                meter.clear();
                return Err(error);
            }
        };
        match event {
            Event::Progress(progress) => meter.update(progress),
            Event::Stalled { why } => meter.stalled(why),
            Event::Done => {
                meter.finish();
                return Ok(End::Done);
            }
            Event::Committed { id } => {
                meter.finish();
                return Ok(End::Committed(id));
            }
            Event::Failed(refusal) => {
                meter.clear();
                return Ok(End::Refused(refusal));
            }
            Event::Status(_)
            | Event::LogLevel { .. }
            | Event::Differences { .. }
            | Event::Importing
            | Event::Copied { .. }
            | Event::Imported { .. } => {
                meter.clear();
                return Err(ClientError::NotUnderstood);
            }
        }
    }
}
