//! Runs a window, some threads that share something, in one schedule after another: shuttle decides at each lock, wait
//! and disk operation who goes on. What fails can be repeated, as everything is drawn from one number.
//!
//! `OXENFS_SCHEDULES` has how many for each window, 1,000 where it is not set; `OXENFS_SCHEDULES_SEED` what they are drawn
//! from; `OXENFS_SCHEDULE` one schedule, as a failure prints it, to be run alone.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

const SCHEDULES: usize = 1000;
const SEED: u64 = 19;
/// Schedules that are tried to find a mistake that was made on purpose.
const TO_FIND: usize = 1000;
/// Of the priority scheduler: so many times a schedule somebody else comes first of a sudden. Most races take two.
const TURNS: usize = 3;
/// A thread opens and replays a journal on it.
const STACK_BYTES: usize = 1 << 20;

thread_local! {
    /// The mistake that is made on this thread, and all threads of its schedules run on it.
    static MISTAKE: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// Where the files of a run are.
    static DIR: RefCell<PathBuf> = const { RefCell::new(PathBuf::new()) };
}

/// Whether this mistake is made.
pub(crate) fn mistaken(mistake: &str) -> bool {
    MISTAKE.get().is_some_and(|made| made == mistake)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs `window` in half of the schedules with whoever comes by chance, in the other half by changing priorities.
///
/// # Panics
/// When it panics in one, or nobody in it can go on.
pub(crate) fn check(window: fn()) {
    let schedules = number("OXENFS_SCHEDULES").map_or(SCHEDULES, |many| many as usize);
    let seed = number("OXENFS_SCHEDULES_SEED").unwrap_or(SEED);
    if let Ok(schedule) = std::env::var("OXENFS_SCHEDULE") {
        return with_dir(|| shuttle::replay(window, &schedule));
    }
    // What failed, and in which schedule, was printed by then.
    let done = catch_unwind(AssertUnwindSafe(|| run(window, seed, schedules)));
    assert!(done.is_ok(), "in one of {schedules} schedules, OXENFS_SCHEDULES_SEED={seed}");
}

/// A directory for one schedule, in memory where the machine has that.
pub(crate) fn dir() -> tempfile::TempDir {
    DIR.with_borrow(|dir| tempfile::tempdir_in(dir)).unwrap()
}

/// Runs with a directory for what windows leave there: of a schedule that fails, all is left as it is.
fn with_dir<T>(run: impl FnOnce() -> T) -> T {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    DIR.set(dir.path().to_owned());
    run()
}

fn run(window: fn(), seed: u64, schedules: usize) {
    with_dir(|| run_both(window, seed, schedules));
}

fn run_both(window: fn(), seed: u64, schedules: usize) {
    run_by(RandomScheduler::new_from_seed(seed, schedules - schedules / 2), window);
    run_by(PctScheduler::new_from_seed(seed, TURNS, schedules / 2), window);
}

fn run_by(scheduler: impl Scheduler + 'static, window: fn()) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    Runner::new(scheduler, config).run(window);
}

/// That `window` fails in some schedule when `mistake` is made: it can tell.
///
/// # Panics
/// When it fails in none.
pub(crate) fn finds(mistake: &'static str, window: fn()) {
    MISTAKE.set(Some(mistake));
    let found = catch_unwind(AssertUnwindSafe(|| run(window, SEED, TO_FIND))).is_err();
    MISTAKE.set(None);
    assert!(found, "{TO_FIND} schedules do not find: {mistake}");
}
