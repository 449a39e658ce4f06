//! How fast content goes to the server, and how long the rest will take: only where that is known.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A rate over less time on the way than this tells nothing.
const LEAST_BUSY: Duration = Duration::from_secs(5);
/// What was measured is no longer ago than this, in time on the way: the way may have changed since.
const MOST_BUSY: Duration = Duration::from_secs(60);
/// A second is fine enough, and bounds the memory.
const BUCKET: Duration = Duration::from_secs(1);
/// Of what is to come a rate tells nothing that was measured on less than this share of it, or this much: many small
/// files go at another rate than a large one.
const LEAST_SHARE: u64 = 100;
const LEAST_BYTES: u64 = 8 << 20;

/// Bytes and the time that they were on the way. Time in which nothing was to be sent does not count.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Since when something is on its way, or since the last bucket was closed.
    busy: Option<Instant>,
    bytes: u64,
    buckets: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// Whether anything is on its way from now on.
    pub(super) fn set_busy(&mut self, busy: bool, now: Instant) {
        match (busy, self.busy) {
            (true, None) => self.busy = Some(now),
            (false, Some(_)) => {
                self.close(now);
                self.busy = None;
            }
            _ => {}
        }
    }

    /// The server took bytes.
    pub(super) fn sent(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if self.busy.is_some_and(|since| now.duration_since(since) >= BUCKET) {
            self.close(now);
            self.busy = Some(now);
        }
    }

    fn close(&mut self, now: Instant) {
        let Some(since) = self.busy else { return };
        self.buckets.push_back((now.duration_since(since), std::mem::take(&mut self.bytes)));
        let mut total: Duration = self.buckets.iter().map(|(busy, _)| *busy).sum();
        // One that is too long by itself stays: it is all there is.
        while total > MOST_BUSY
            && self.buckets.len() > 1
            && let Some((oldest, _)) = self.buckets.pop_front()
        {
            total -= oldest;
        }
    }

    /// Until this much is sent; `None` when nobody knows.
    pub(super) fn left(&self, owed_bytes: u64, now: Instant) -> Option<Duration> {
        let under_way = self.busy.map_or(Duration::ZERO, |since| now.duration_since(since));
        let busy = under_way + self.buckets.iter().map(|(busy, _)| *busy).sum::<Duration>();
        let bytes = self.bytes + self.buckets.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let enough = bytes >= LEAST_BYTES.min(owed_bytes / LEAST_SHARE).max(1);
        if owed_bytes == 0 || busy < LEAST_BUSY || !enough {
            return None;
        }
        let rate = bytes as f64 / busy.as_secs_f64();
        Duration::try_from_secs_f64(owed_bytes as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn secs(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_few_small_files_tell_nothing_of_a_large_one() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.set_busy(true, start);
        for second in 1..=10 {
            pace.sent(2000, start + secs(second));
        }
        pace.set_busy(false, start + secs(10));
        assert_eq!(pace.left(20 << 30, start + secs(11)), None);
        assert_eq!(pace.left(20_000, start + secs(11)), Some(secs(10)));
        assert_eq!(pace.left(0, start + secs(11)), None);
    }

    #[test]
    fn nothing_is_said_before_some_seconds_and_without_a_byte() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.left(MIB, start), None);
        pace.set_busy(true, start);
        assert_eq!(pace.left(MIB, start + secs(60)), None);
        pace.sent(100 * MIB, start + secs(4));
        assert_eq!(pace.left(1000 * MIB, start + secs(4)), None);
        pace.sent(25 * MIB, start + secs(5));
        assert_eq!(pace.left(1000 * MIB, start + secs(5)), Some(secs(40)));
    }

    #[test]
    fn time_without_anything_to_send_does_not_count() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.set_busy(true, start);
        pace.sent(60 * MIB, start + secs(6));
        pace.set_busy(false, start + secs(6));
        let later = start + secs(100_000);
        pace.set_busy(true, later);
        assert_eq!(pace.left(600 * MIB, later), Some(secs(60)));
        // A server that stands still shows, also within one part.
        assert_eq!(pace.left(600 * MIB, later + secs(6)), Some(secs(120)));
    }

    #[test]
    fn what_was_measured_is_of_the_last_minute_on_the_way() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.set_busy(true, start);
        for second in 1..=200 {
            pace.sent(if second <= 100 { MIB } else { 2 * MIB }, start + secs(second));
        }
        assert_eq!(pace.left(200 * MIB, start + secs(200)), Some(secs(100)));
        assert!(pace.buckets.len() <= 61, "{}", pace.buckets.len());
    }
}
