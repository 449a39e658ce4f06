//! The filesystem stressors of stress-ng, with `--verify`.

use std::process::Command;

use super::{Running, config, number, seed};
use crate::mounted::TestMount;
use crate::server;

/// Seconds per stressor of a run that nobody gave a number.
const SECONDS: u64 = 1;

/// What `tests/conformance/stress-ng` lists: a stressor a line, `#` before what is not run and why.
fn stressors() -> Vec<String> {
    let list = std::fs::read_to_string(config("stress-ng")).unwrap();
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Runs one stressor, which must not find anything wrong; how much it did, if it did anything. It takes what a
/// filesystem cannot do for a reason to skip, and says so and no more.
#[track_caller]
fn run(test: &TestMount, stressor: &str, seed: u64, seconds: u64) -> Option<u64> {
    let mut command = Command::new("stress-ng");
    command
        .arg(format!("--{stressor}"))
        .args(["2", "--verify", "--timeout", &seconds.to_string(), "--metrics", "--seed", &seed.to_string()])
        .arg("--temp-path")
        .arg(&test.dir);
    let said = Running::start(command, test.beside("said").join(stressor)).finish();
    assert!(!said.contains(" fail: "), "{stressor}:\n{said}");
    let done = said.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != stressor);
        words.nth(1)?.parse::<u64>().ok()
    });
    done.filter(|done| *done > 0)
}

#[test]
#[ignore = "takes a minute, and needs stress-ng: scripts/suites stress"]
#[expect(clippy::print_stderr, reason = "how much was done belongs to the result")]
fn stress_ng_finds_nothing_wrong() {
    let seed = seed("stress-ng");
    let seconds = number("OXENFS_STRESS_SECONDS", SECONDS);
    let test = TestMount::with(server::url(), &["--settle", "0.05"]);
    let stressors = stressors();
    for stressor in &stressors {
        // On a busy machine one may not get through its first round; it gets more time then, once.
        let done = run(&test, stressor, seed, seconds).or_else(|| run(&test, stressor, seed, seconds * 10));
        assert!(done.is_some(), "{stressor} did nothing");
        // It removes what it makes; what it leaves is compared below.
        std::fs::write(test.at(format!("after {stressor}")), stressor).unwrap();
    }
    eprintln!("stress-ng: {} stressors, {seconds} s each", stressors.len());
    test.unmount_and_compare();
}
