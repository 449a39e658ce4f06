//! How long the engine waits between attempts.

use std::time::Duration;

/// The longest pause that a server can ask for: its clock or its configuration may be off.
const LONGEST_ASKED: Duration = Duration::from_secs(10 * 60);
/// How many of the longest pauses are long: 2 minutes.
const LONG: u32 = 4;

/// Delays between attempts: doubled from the first to the last, a random half of it taken off.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// After the first failure, and for what waits for another path.
    pub first: Duration,
    /// After many.
    pub last: Duration,
}

impl Default for Delays {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), last: Duration::from_secs(30) }
    }
}

impl Delays {
    /// For how long a server has to refuse a path in the same words before it is believed: proxies are configured, servers
    /// replaced and portals passed meanwhile, most often.
    pub(super) fn long(&self) -> Duration {
        self.last * LONG
    }

    /// The pause after this many failures, from 0: a ceiling that doubles up to the last delay, less a random half; or
    /// what the server asked for, where that is longer.
    pub(super) fn after(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let ceiling = self.first.saturating_mul(1 << failures.min(16)).min(self.last);
        let jittered = ceiling.mul_f64(0.5 + fastrand::f64() / 2.0);
        asked.map_or(jittered, |asked| asked.min(LONGEST_ASKED).max(jittered))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_no_two_are_alike() {
        let delays = Delays::default();
        for failures in 0..100 {
            let ceiling = delays.first.saturating_mul(1 << failures.min(16)).min(delays.last);
            let pauses: HashSet<Duration> = (0..50).map(|_| delays.after(failures, None)).collect();
            assert!(pauses.iter().all(|pause| (ceiling / 2..=ceiling).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.len() > 40, "{failures}: {pauses:?}");
        }
        assert!(delays.after(99, None) >= delays.last / 2);
    }

    #[test]
    fn what_the_server_asks_for_is_waited_within_reason() {
        let delays = Delays::default();
        let asked = |secs| delays.after(0, Some(Duration::from_secs(secs)));
        assert_eq!(asked(45), Duration::from_secs(45));
        assert_eq!(asked(86_400), LONGEST_ASKED);
        assert!(delays.after(20, Some(Duration::from_secs(1))) >= delays.last / 2);
    }
}
