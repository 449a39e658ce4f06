//! Which way content travels: pure, by size, by what the server can do, and by what requests took so far.

use std::time::Duration;

use crate::workspace::ByHash;

/// From this size on a question comes before the bytes, where a question stages one file. Below it a file in a
/// batch of a hundred costs the server less than a question (measured on 0.65.2: 1,290 to 1,370 files/s of 16 KiB
/// sent in batches, 1,646 questions/s), and at 64 KiB an answer saves more than it costs on any slower link. Smaller
/// ones are asked for where that [pays](Costs::worth_asking).
const ASK_FROM_BYTES: u64 = 64 << 10;
/// From this size on a file goes in parts: the part size of every released server, 10 MiB.
const PARTS_FROM_BYTES: u64 = 10 << 20;

/// Of the small files that are sent without a question, one in this many is asked for all the same: a question that is
/// asked in vain costs about four times what the file does in a batch. Fewer of them where some were known.
const PROBE_EVERY: u32 = 128;
const PROBE_EVERY_KNOWN: u32 = 8;
/// The share of known content from which on more is looked for.
const SOME: f64 = 0.2;
/// How much the newest counts in what is learned.
const NEWEST: f64 = 0.25;

/// What requests took, and how often the server had what it was asked for.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// Of a small file in a batch: seconds of the way's time, and bytes.
    sent: Option<(f64, f64)>,
    /// Seconds of the way's time for a question that was answered with yes.
    asked: Option<f64>,
    /// The share of questions that were, lately: 0 to 1.
    known: f64,
    unasked: u32,
}

impl Costs {
    /// Whether to ask for a small file, of `size` bytes, before it is sent: where the time that an answer is likely to
    /// save is more than what the question takes; and now and then, to find that out.
    pub(super) fn worth_asking(&mut self, size: u64) -> bool {
        if size == 0 || size >= ASK_FROM_BYTES {
            return false;
        }
        if let (Some((secs, bytes)), Some(asked)) = (self.sent, self.asked)
            && self.known * secs * size as f64 / bytes > asked
        {
            return true;
        }
        self.unasked += 1;
        let every = if self.known >= SOME { PROBE_EVERY_KNOWN } else { PROBE_EVERY };
        let probe = self.unasked >= every;
        if probe {
            self.unasked = 0;
        }
        probe
    }

    /// A batch of small files was sent beside others, `at_once` in all.
    pub(super) fn was_sent(&mut self, files: usize, bytes: u64, took: Duration, at_once: usize) {
        if files == 0 || bytes == 0 {
            return;
        }
        let each = |sum: f64| sum / files as f64;
        let (secs, bytes) = (each(took.as_secs_f64() / at_once.max(1) as f64), each(bytes as f64));
        let (old_secs, old_bytes) = self.sent.unwrap_or((secs, bytes));
        self.sent = Some((newer(old_secs, secs), newer(old_bytes, bytes)));
    }

    /// The server was asked for a file beside others, `at_once` in all, and had it or not.
    pub(super) fn was_asked(&mut self, had: bool, took: Duration, at_once: usize) {
        self.known = newer(self.known, f64::from(u8::from(had)));
        if had {
            let secs = took.as_secs_f64() / at_once.max(1) as f64;
            self.asked = Some(newer(self.asked.unwrap_or(secs), secs));
        }
    }
}

fn newer(old: f64, new: f64) -> f64 {
    old + (new - old) * NEWEST
}

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// By hash, without bytes.
    Ask,
    /// With others in one request.
    Small,
    /// Alone, asking first, in one part.
    Middle,
    /// Alone, asking first, in many parts.
    Large,
}

/// The lane of content of `size` bytes, which are `here` or only on the server, which the server may have been `asked`
/// for in vain, and for which a question of its own is `worth` it.
pub(super) fn lane(by_hash: ByHash, size: u64, here: bool, asked: bool, worth: bool) -> Lane {
    if !here {
        return Lane::Ask;
    }
    match by_hash {
        ByHash::Single if size >= PARTS_FROM_BYTES => Lane::Large,
        ByHash::Single if size >= ASK_FROM_BYTES || worth => Lane::Middle,
        ByHash::Batch if !asked && size > 0 => Lane::Ask,
        _ if size >= PARTS_FROM_BYTES => Lane::Large,
        _ => Lane::Small,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stages_one_by_hash_is_asked_for_what_is_worth_it() {
        assert_eq!(lane(ByHash::Single, 0, true, false, false), Lane::Small);
        assert_eq!(lane(ByHash::Single, ASK_FROM_BYTES - 1, true, false, false), Lane::Small);
        assert_eq!(lane(ByHash::Single, ASK_FROM_BYTES, true, false, false), Lane::Middle);
        assert_eq!(lane(ByHash::Single, PARTS_FROM_BYTES, true, false, false), Lane::Large);
        assert_eq!(lane(ByHash::Single, 1, true, false, true), Lane::Middle);
        assert_eq!(lane(ByHash::Single, PARTS_FROM_BYTES, true, false, true), Lane::Large);
    }

    /// Plays files of `size` bytes, of which the server knows all or none: how many of the last half were asked for.
    fn asked_of(files: u32, size: u64, known: bool, link_bytes_a_sec: f64, round_trip: Duration) -> u32 {
        let mut costs = Costs::default();
        let mut asked = 0;
        for at in 0..files {
            if costs.worth_asking(size) {
                asked += u32::from(at >= files / 2);
                costs.was_asked(known, round_trip, 8);
            } else {
                let took = Duration::from_secs_f64(size as f64 * 100.0 / link_bytes_a_sec);
                costs.was_sent(100, size * 100, took, 1);
            }
        }
        asked
    }

    #[test]
    fn small_files_that_the_server_has_are_asked_for_where_that_is_faster() {
        let trip = Duration::from_millis(40);
        assert_eq!(asked_of(2000, 16 << 10, true, 1e6, trip), 1000, "16 ms to send, 5 to ask");
        assert!(asked_of(2000, 16 << 10, true, 1e8, trip) <= 1000 / PROBE_EVERY_KNOWN, "0.2 ms to send");
        assert!(asked_of(2000, 16 << 10, false, 1e6, trip) <= 1000 / PROBE_EVERY + 1, "the server has none");
        assert_eq!(asked_of(2000, 0, true, 1e3, trip), 0, "nothing to save");
    }

    #[test]
    fn a_server_that_has_no_more_of_it_is_soon_asked_no_more() {
        let mut costs = Costs::default();
        let trip = Duration::from_millis(8);
        costs.was_sent(100, 100 * 50_000, Duration::from_secs(5), 1);
        (0..20).for_each(|_| costs.was_asked(true, trip, 8));
        assert!(costs.worth_asking(50_000));
        let in_vain = (0..1000).filter(|_| {
            let asks = costs.worth_asking(50_000);
            if asks {
                costs.was_asked(false, trip, 8);
            }
            asks
        });
        assert!((1..40).contains(&in_vain.count()));
    }

    #[test]
    fn a_server_that_stages_many_by_hash_is_always_asked_once() {
        assert_eq!(lane(ByHash::Batch, 1, true, false, false), Lane::Ask);
        assert_eq!(lane(ByHash::Batch, 1, true, true, false), Lane::Small);
        assert_eq!(lane(ByHash::Batch, PARTS_FROM_BYTES, true, true, false), Lane::Large);
    }

    #[test]
    fn what_is_only_on_the_server_is_asked_for_and_nothing_else() {
        for by_hash in [ByHash::Single, ByHash::Batch, ByHash::Never] {
            assert_eq!(lane(by_hash, 5, false, false, false), Lane::Ask);
        }
        assert_eq!(lane(ByHash::Never, 5, true, false, false), Lane::Small);
    }
}
