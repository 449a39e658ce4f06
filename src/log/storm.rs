//! What repeats is said when it begins, when it changes, when it ends, and now and then in between.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::callsite::Identifier;

/// How many lines of one call are written in a [`WINDOW`]; the others are counted.
pub(super) const BURST: u32 = 20;
/// See [`BURST`].
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// How often a trouble that goes on is said again.
const REMINDER: Duration = Duration::from_secs(10 * 60);
/// How soon after a word another reason is said: two that take turns are one trouble.
const CHANGE: Duration = Duration::from_secs(30);

/// Something that goes wrong again and again until it does not: the server is away, the disk is full.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<Ongoing>>);

#[derive(Debug)]
struct Ongoing {
    since: Instant,
    said: Instant,
    reason: String,
}

/// What is to be said of a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It begins.
    Begins,
    /// It has another reason than was said last.
    Changes,
    /// It has gone on for so long.
    GoesOn(Duration),
    /// It ends, after so long.
    Ends(Duration),
}

impl Trouble {
    /// It was met, for `reason` (without what differs each time, such as a request's number). What is to be said, if
    /// anything is.
    pub fn met(&self, reason: &str) -> Option<Said> {
        self.met_at(reason, Instant::now())
    }

    /// It was not met. What is to be said, if it went on before.
    pub fn over(&self) -> Option<Said> {
        let ongoing = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Said::Ends(ongoing.since.elapsed()))
    }

    fn met_at(&self, reason: &str, now: Instant) -> Option<Said> {
        let mut ongoing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = ongoing.as_mut() else {
            *ongoing = Some(Ongoing { since: now, said: now, reason: reason.to_owned() });
            return Some(Said::Begins);
        };
        let silent = now.duration_since(before.said);
        let said = if before.reason != reason && silent >= CHANGE {
            reason.clone_into(&mut before.reason);
            Said::Changes
        } else if silent >= REMINDER {
            Said::GoesOn(now.duration_since(before.since))
        } else {
            return None;
        };
        before.said = now;
        Some(said)
    }
}

/// How often each call was heard lately.
#[derive(Debug, Default)]
pub(super) struct Bursts(HashMap<Identifier, Burst>);

#[derive(Debug)]
struct Burst {
    since: Instant,
    written: u32,
    left_out: u64,
    level: Level,
    /// The last line that was left out.
    last: String,
}

impl Bursts {
    /// The line, unless its call was heard too often.
    pub(super) fn take(&mut self, call: Identifier, level: Level, body: String, now: Instant) -> Option<String> {
        let fresh = || Burst { since: now, written: 0, left_out: 0, level, last: String::new() };
        let burst = self.0.entry(call).or_insert_with(fresh);
        if burst.left_out == 0 && now.duration_since(burst.since) >= WINDOW {
            *burst = fresh();
        }
        if burst.written < BURST {
            burst.written += 1;
            return Some(body);
        }
        burst.left_out += 1;
        burst.last = body;
        None
    }

    /// When a count of lines that were left out is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter(|burst| burst.left_out > 0).map(|burst| burst.since + WINDOW).min()
    }

    /// The counts that are due, as lines; all of them where `now` is `None`.
    pub(super) fn counts(&mut self, now: Option<Instant>) -> Vec<(Level, String)> {
        let mut counts = Vec::new();
        self.0.retain(|_, burst| {
            if burst.left_out == 0 || now.is_some_and(|now| now.duration_since(burst.since) < WINDOW) {
                return true;
            }
            counts
                .push((burst.level, format!("{} (and {} lines like this before it)", burst.last, burst.left_out - 1)));
            false
        });
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_said_when_it_begins_changes_ends_and_now_and_then() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let trouble = Trouble::default();
        assert_eq!(trouble.over(), None);
        assert_eq!(trouble.met_at("away", at(0)), Some(Said::Begins));
        assert_eq!(trouble.met_at("away", at(60)), None);
        assert_eq!(trouble.met_at("busy", at(61)), Some(Said::Changes));
        // Two reasons that take turns are no storm either, and the one that stays is said.
        assert_eq!(trouble.met_at("away", at(62)), None);
        assert_eq!(trouble.met_at("busy", at(63)), None);
        assert_eq!(trouble.met_at("away", at(100)), Some(Said::Changes));
        assert_eq!(trouble.met_at("away", at(699)), None);
        assert_eq!(trouble.met_at("away", at(700)), Some(Said::GoesOn(Duration::from_secs(700))));
        assert_eq!(trouble.met_at("away", at(701)), None);
        assert!(matches!(trouble.over(), Some(Said::Ends(_))));
        assert_eq!(trouble.over(), None);
        assert_eq!(trouble.met_at("away", at(800)), Some(Said::Begins));
    }

    #[test]
    fn a_call_that_is_made_too_often_is_counted() {
        struct Call;
        impl tracing::Callsite for Call {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &tracing::Metadata<'_> {
                unreachable!("nobody asks for it")
            }
        }
        static CALL: Call = Call;
        let call = || Identifier(&CALL);
        let start = Instant::now();
        let mut bursts = Bursts::default();
        for line in 0..BURST {
            assert!(bursts.take(call(), Level::WARN, line.to_string(), start).is_some());
        }
        assert_eq!(bursts.due(), None);
        for line in 0..5 {
            assert_eq!(bursts.take(call(), Level::WARN, line.to_string(), start), None);
        }
        assert_eq!(bursts.due(), Some(start + WINDOW));
        assert!(bursts.counts(Some(start)).is_empty());
        let counts = bursts.counts(Some(start + WINDOW));
        assert_eq!(counts, [(Level::WARN, "4 (and 4 lines like this before it)".to_owned())]);
        assert!(bursts.take(call(), Level::WARN, String::new(), start + WINDOW).is_some());
    }
}
