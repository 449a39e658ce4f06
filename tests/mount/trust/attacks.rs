//! Attacks at random: a hostile server, and hostile users of the same machine. Each attack has a victim of its own, and
//! afterwards the same things are looked at, each of which can fail: what lies outside the mount and the state directory,
//! where the token went, how much memory and disk were taken, how long commands took, what they printed, and whether all
//! that was acknowledged is there.
//!
//! `scripts/attack N [SEED]` runs many; the test by itself a dozen, of the kinds that are over soon.

mod liar;
mod neighbour;
mod server;
mod victim;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use victim::Victim;

/// As many at a time, if none of them waits for minutes; else more.
const AT_ONCE: u64 = 4;
const WAITING_AT_ONCE: u64 = 10;

/// What an attack cost, at most.
#[derive(Debug, Default, Clone)]
pub struct Worst {
    /// Of any one process, in bytes, and which.
    pub memory: u64,
    pub process: String,
    /// Of the state directory, in bytes, beyond what was written.
    pub disk: u64,
    /// The slowest command.
    pub took: Duration,
    pub command: String,
}

impl Worst {
    fn or(self, other: Self) -> Self {
        let (slower, faster) = if self.took >= other.took { (&self, &other) } else { (&other, &self) };
        let (larger, smaller) = if self.memory >= other.memory { (&self, &other) } else { (&other, &self) };
        Self {
            memory: larger.memory.max(smaller.memory),
            process: larger.process.clone(),
            disk: self.disk.max(other.disk),
            took: slower.took.max(faster.took),
            command: slower.command.clone(),
        }
    }
}

/// Whether what waits for an end that is minutes away is left out.
fn is_quick() -> bool {
    number("OXENFS_ATTACKS_QUICK", 1) == 1
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

/// One attack, by its number: what it is called, what it cost, and what came through.
fn attack(number: u64, seed: u64, honest: &str) -> (String, Worst, Vec<String>) {
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number));
    let victim = Victim::new(number);
    let name = match number % 3 {
        0 | 1 => server::attack(&victim, &mut rng, number, honest),
        _ => neighbour::attack(&victim, &mut rng, number, honest),
    };
    let (worst, through) = victim.judge();
    (name, worst, through)
}

#[test]
#[allow(clippy::print_stderr, reason = "the numbers are what a person runs it for")]
#[ignore = "needs root, to attack as another user: scripts/test has it"]
fn a_hostile_server_and_hostile_neighbours_get_nothing_through() {
    let (count, seed) = (number("OXENFS_ATTACKS", 12), number("OXENFS_TEST_SEED", 1));
    let only = std::env::var("OXENFS_ATTACK").ok().map(|text| text.parse::<u64>().expect("a number"));
    let (next, begun) = (AtomicU64::new(0), Instant::now());
    let (worst, through) = (Mutex::new(Worst::default()), Mutex::new(Vec::new()));
    let kinds = Mutex::new(BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        for worker in 0..if is_quick() { AT_ONCE } else { WAITING_AT_ONCE } {
            let (next, worst, through, kinds) = (&next, &worst, &through, &kinds);
            scope.spawn(move || {
                let honest = server::Honest::start(worker);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if only.is_some_and(|only| only != number) {
                        continue;
                    }
                    let (name, cost, came) = attack(number, seed, &honest.url());
                    *kinds.lock().unwrap().entry(name.clone()).or_default() += 1;
                    let mut all = worst.lock().unwrap();
                    *all = all.clone().or(cost);
                    for what in came {
                        eprintln!("attack {number} ({name}) came through: {what}");
                        through.lock().unwrap().push(format!("{number} ({name}): {what}"));
                    }
                }
            });
        }
    });
    let (worst, through) = (worst.into_inner().unwrap(), through.into_inner().unwrap());
    eprintln!("{:#?}", kinds.into_inner().unwrap());
    eprintln!(
        "{count} attacks with seed {seed} in {} s: {} came through; at most {} MiB of memory ({}), {} MiB of disk, {:.1} s ({})",
        begun.elapsed().as_secs(),
        through.len(),
        worst.memory >> 20,
        worst.process,
        worst.disk >> 20,
        worst.took.as_secs_f64(),
        worst.command,
    );
    assert!(through.is_empty(), "seed {seed}: {through:#?}");
}
