//! How it went in the last hour, for who looks at the page: what was owed, and what had been sent, at a few moments.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::control::Measures;

/// How often it is noted.
pub const EVERY: Duration = Duration::from_secs(15);
/// How long it is remembered.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// One moment of a mount.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment {
    at: Instant,
    owed_files: u64,
    owed_bytes: u64,
    sent_bytes: u64,
}

/// The same, as the page has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Past {
    /// Seconds ago.
    pub ago_secs: u64,
    /// Changes that the server lacked.
    pub owed_files: u64,
    /// Their bytes.
    pub owed_bytes: u64,
    /// Bytes that were sent since the moment before; 0 for the first of a daemon.
    pub sent_bytes: u64,
}

/// The moments of some mounts, by where they are mounted.
#[derive(Debug, Default)]
pub struct Hour(BTreeMap<String, VecDeque<Moment>>);

impl Hour {
    /// Notes how mounts are; what is older than an hour is forgotten.
    pub fn note(&mut self, now: Instant, mounts: &[Measures]) {
        for measures in mounts.iter().filter(|measures| measures.answers) {
            let (owed_files, owed_bytes) = measures.status.counts.owed();
            let moment = Moment { at: now, owed_files, owed_bytes, sent_bytes: measures.status.sent_bytes };
            self.0.entry(measures.mountpoint.clone()).or_default().push_back(moment);
        }
        self.0.retain(|_, moments| {
            let old = moments.iter().take_while(|moment| now.saturating_duration_since(moment.at) > KEPT).count();
            moments.drain(..old);
            !moments.is_empty()
        });
    }

    /// What is remembered of a mount, oldest first.
    pub fn of(&self, now: Instant, mountpoint: &str) -> Vec<Past> {
        let Some(moments) = self.0.get(mountpoint) else { return Vec::new() };
        // A daemon that was begun anew counts from zero.
        let before = std::iter::once(None).chain(moments.iter().map(|moment| Some(moment.sent_bytes)));
        let past = moments.iter().zip(before).map(|(moment, before)| Past {
            ago_secs: now.saturating_duration_since(moment.at).as_secs(),
            owed_files: moment.owed_files,
            owed_bytes: moment.owed_bytes,
            sent_bytes: before.map_or(0, |before| moment.sent_bytes.checked_sub(before).unwrap_or(moment.sent_bytes)),
        });
        past.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Tally;

    fn measured(owed: u64, sent_bytes: u64) -> Measures {
        let mut measures = Measures { mountpoint: "/m".to_owned(), answers: true, ..Measures::default() };
        measures.status.counts.dirty = Tally { files: 1, bytes: owed };
        measures.status.sent_bytes = sent_bytes;
        measures
    }

    #[test]
    fn an_hour_is_remembered_with_what_was_sent_between_two_moments() {
        let begin = Instant::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut hour = Hour::default();
        hour.note(at(0), &[measured(10, 5)]);
        hour.note(at(3000), &[measured(4, 11)]);
        // It was begun anew, and does not answer later.
        hour.note(at(3600), &[measured(0, 2)]);
        hour.note(at(3601), &[Measures { answers: false, ..measured(9, 9) }]);
        let past = |ago_secs, owed_bytes, sent_bytes| Past { ago_secs, owed_files: 1, owed_bytes, sent_bytes };
        assert_eq!(hour.of(at(3601), "/m"), [past(601, 4, 0), past(1, 0, 2)]);
        assert_eq!(hour.of(at(3601), "/other"), []);
        hour.note(at(9000), &[]);
        assert!(hour.0.is_empty(), "{hour:?}");
    }
}
