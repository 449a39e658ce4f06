//! The twin: the same random operations through a mount and in a plain directory beside it, with the same answers,
//! contents and attributes after each. Files are staged meanwhile, now and then committed; the daemon is unmounted,
//! mounted again and killed between episodes. Where the two may differ stands in [`divergences`], with reasons.
//!
//! An episode is a list of operations on directories of its own, made from a seed. When one fails, it is made shorter
//! as far as it still fails, and printed. `OXENFS_TEST_SEED` and `OXENFS_TWIN_EPISODE` bring it back.

mod compare;
mod divergences;
mod op;
mod world;

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use compare::Twins;
use op::Step;
use world::World;

use crate::mounted::TestMount;
use crate::server;
use crate::suites::{number, seed};

/// Operations of a run that nobody gave a number: enough to meet every kind, a few seconds.
const OPERATIONS: u64 = 4000;
/// Operations of an episode; few enough to shorten a failing one in a minute.
const EPISODE: usize = 1000;
/// After how many operations everything is compared.
const COMPARE_ALL: usize = 250;
/// How many episodes' files stay.
const KEPT: u64 = 4;
/// How long a failing episode is made shorter.
const SHORTENING: Duration = Duration::from_secs(90);

/// How an episode failed: after how many of its steps, and what differed.
struct Failure {
    steps: usize,
    what: String,
}

impl Failure {
    /// What it says without names and numbers, so that shortening a list does not end at another difference.
    fn kind(&self) -> String {
        let unquoted: String = self.what.split('"').step_by(2).collect();
        unquoted.chars().filter(|char| !char.is_ascii_digit()).collect()
    }
}

/// Whether two changes in a row have different times in `dir`.
fn has_fine_clock(dir: &Path) -> bool {
    let probe = dir.join("clock");
    std::fs::write(&probe, "").unwrap();
    let mut times = Vec::new();
    for mode in [0o600, 0o644, 0o640, 0o604] {
        std::fs::set_permissions(&probe, std::fs::Permissions::from_mode(mode)).unwrap();
        let stat = std::fs::metadata(&probe).unwrap();
        times.push((stat.ctime(), stat.ctime_nsec()));
    }
    std::fs::remove_file(&probe).unwrap();
    times.windows(2).all(|pair| pair[0] != pair[1])
}

/// Both directories of an episode, made anew.
fn twins(plain: &Path, mount: &Path, name: &str, fine_clock: bool) -> Twins {
    let world = |root: &Path| {
        let root = root.join(name);
        std::fs::create_dir(&root).unwrap();
        // Everybody may write there, and in every other episode only remove what is theirs.
        let mode = if name.ends_with(['1', '3', '5', '7', '9']) { 0o1777 } else { 0o777 };
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).unwrap();
        World::new(&root).unwrap()
    };
    Twins::new(world(plain), world(mount), fine_clock)
}

/// Does up to `count` steps, until something differs; each is made by `next` from the plain directory as it is then.
fn play(twins: &mut Twins, count: usize, mut next: impl FnMut(&World) -> Step) -> Result<(), Failure> {
    for at in 1..=count {
        let step = next(&twins.plain);
        let mut done = twins.step(&step);
        if done.is_ok() && (at % COMPARE_ALL == 0 || at == count) {
            done = twins.compare_all();
        }
        done.map_err(|what| Failure { steps: at, what })?;
    }
    Ok(())
}

/// Does the same steps again.
fn replay(twins: &mut Twins, steps: &[Step]) -> Result<(), Failure> {
    let mut rest = steps.iter().cloned();
    play(twins, steps.len(), |_| rest.next().expect("as many as there are"))
}

/// The shortest list found that still fails, and how.
fn shorten(steps: &[Step], mut fails: impl FnMut(&[Step]) -> Option<Failure>) -> (Vec<Step>, Option<Failure>) {
    let mut shortest = steps.to_vec();
    let Some(mut failure) = fails(&shortest) else { return (shortest, None) };
    let deadline = Instant::now() + SHORTENING;
    shortest.truncate(failure.steps);
    let mut chunk = shortest.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        let before = shortest.len();
        while at < shortest.len() && Instant::now() < deadline {
            let end = (at + chunk).min(shortest.len());
            let without = [&shortest[..at], &shortest[end..]].concat();
            match fails(&without) {
                Some(other) => {
                    shortest = without;
                    shortest.truncate(other.steps);
                    failure = other;
                }
                None => at = end,
            }
        }
        if Instant::now() >= deadline {
            break;
        }
        if chunk == 1 && shortest.len() == before {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
    (shortest, Some(failure))
}

/// An answer of the list of divergences that a long run never met is no divergence any more.
fn assert_all_met(met: &HashMap<&'static str, u64>, operations: u64) {
    for divergence in divergences::DIVERGENCES {
        let times = met.get(divergence.name).copied().unwrap_or_default();
        assert!(operations < 200_000 || times > 0, "{} was not met: {}", divergence.name, divergence.why);
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "how much was done, and how it failed, is the result")]
fn a_mount_and_a_plain_directory_stay_equal_under_random_operations() {
    let operations = number("OXENFS_TWIN_OPERATIONS", OPERATIONS);
    let seed = seed("twin");
    let only = number("OXENFS_TWIN_EPISODE", u64::MAX);
    // Only root can act as somebody else, and let others in.
    let users = rustix::process::geteuid().is_root();
    let mut options = vec!["--settle", "0.02", "--cache-limit", "1M"];
    if users {
        options.push("--allow-other");
        world::leave_groups();
    }
    let test = TestMount::with(server::url(), &options);
    let plain = test.beside("plain");
    // An episode may leave no regular file, and a branch that never had one has no listing.
    std::fs::write(test.at("a file"), "that stays").unwrap();
    let fine_clock = has_fine_clock(&plain);
    let mut met = HashMap::new();
    // Of each episode, the files whose times cannot be compared, and those whose holes cannot.
    let mut known = HashMap::new();
    let (mut done, mut succeeded, mut commits, mut mounts, mut kills) = (0, 0, 0, 0, 0);
    let mut episode = 0;
    let start = Instant::now();
    while done < operations {
        let count = EPISODE.min((operations - done) as usize);
        episode += 1;
        done += count as u64;
        if only != u64::MAX && only != episode {
            continue;
        }
        let mut maker = op::Maker::new(seed.wrapping_add(episode << 32), users);
        let mut steps = Vec::new();
        let name = format!("episode {episode}");
        let played = std::thread::scope(|scope| {
            // In every other episode a barrier meets the operations; in the others only time does.
            let staging = (episode % 2 == 1).then(|| scope.spawn(|| test.sync()));
            let mut twins = twins(&plain, &test.dir, &name, fine_clock);
            let played = play(&mut twins, count, |plain| {
                steps.push(maker.next(plain.known()));
                steps[steps.len() - 1].clone()
            });
            succeeded += twins.succeeded;
            for (name, times) in &twins.met {
                *met.entry(*name).or_insert(0) += times;
            }
            known.insert(episode, (twins.untimed, twins.copied));
            drop(staging);
            played
        });
        if let Err(failure) = played {
            eprintln!("twin: episode {episode}, step {}: {}", failure.steps, failure.what);
            for step in &steps[failure.steps.saturating_sub(20)..failure.steps] {
                eprintln!("    {step:?}");
            }
            let (mut tries, kind) = (0, failure.kind());
            let (shortest, again) = shorten(&steps[..failure.steps], |steps| {
                tries += 1;
                let mut twins = twins(&plain, &test.dir, &format!("try {tries} of {episode}"), fine_clock);
                replay(&mut twins, steps).err().filter(|other| other.kind() == kind)
            });
            match again {
                Some(again) => {
                    eprintln!("twin: the shortest list found in {tries} tries:");
                    for step in &shortest {
                        eprintln!("    {step:?}");
                    }
                    eprintln!("twin: {}", again.what);
                }
                None => eprintln!("twin: the same list alone does not fail; it takes what happened around it"),
            }
            panic!("OXENFS_TEST_SEED={seed} OXENFS_TWIN_EPISODE={episode}: {}", failure.what);
        }
        let look_again = |when: &str| {
            for kept in episode.saturating_sub(KEPT - 1).max(1)..=episode {
                let name = format!("episode {kept}");
                if !plain.join(&name).exists() {
                    continue;
                }
                let worlds = [&plain, &test.dir].map(|root| World::new(&root.join(&name)).unwrap());
                let [plain, mount] = worlds;
                let mut twins = Twins::new(plain, mount, fine_clock);
                (twins.untimed, twins.copied) = known[&kept].clone();
                if let Err(what) = twins.compare_all() {
                    panic!("OXENFS_TEST_SEED={seed}, {when} episode {episode}, in episode {kept}: {what}");
                }
            }
        };
        if let Some(old) = episode.checked_sub(KEPT).filter(|old| plain.join(format!("episode {old}")).exists()) {
            for root in [&plain, &test.dir] {
                std::fs::remove_dir_all(root.join(format!("episode {old}"))).unwrap();
            }
        }
        if episode % 3 == 0 {
            test.commit();
            commits += 1;
            look_again("after a commit after");
        }
        if episode % 5 == 4 {
            test.unmount();
            test.mount(&options).ok();
            mounts += 1;
            look_again("mounted again after");
        }
        if episode % 7 == 2 {
            test.signal(rustix::process::Signal::KILL);
            test.mount(&options).ok();
            kills += 1;
            look_again("killed and mounted again after");
        }
    }
    eprintln!(
        "twin: {done} operations, {succeeded} successful, in {episode} episodes, {:.0} s; {commits} commits, {mounts} remounts, {kills} kills",
        start.elapsed().as_secs_f32()
    );
    for (name, times) in &met {
        eprintln!("twin: {times} times: {name}");
    }
    if only == u64::MAX {
        assert_all_met(&met, operations);
    }
    test.unmount_and_compare();
}
