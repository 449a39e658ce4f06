//! The `fsx` crate: random operations on one file, each read compared with what must be there.

use std::process::Command;

use super::{Running, config, number, seed, stage_while};
use crate::mounted::TestMount;
use crate::proxy::Proxy;
use crate::server;

/// Operations of a run that nobody gave a number.
const OPERATIONS: u64 = 20_000;

/// The most operations of one process. fsx 0.3.2 takes no mapping away that it has read through, and a process may have
/// 65,530 (`vm.max_map_count`): enough for some 700,000 operations, each slower than the one before.
const AT_A_TIME: u64 = 200_000;

/// An fsx at work on `name`.
fn fsx(test: &TestMount, name: &str, configured: &str, operations: u64, seed: u64) -> Running {
    let program = std::env::var_os("OXENFS_FSX").unwrap_or_else(|| "fsx".into());
    let mut command = Command::new(program);
    command.arg("-f").arg(config(configured)).args(["-N", &operations.to_string(), "-S", &seed.to_string()]);
    command.arg("-P").arg(test.beside("artifacts")).arg(test.at(name));
    Running::start(command, test.beside("said").join(name))
}

#[test]
#[ignore = "takes minutes, and needs fsx: scripts/suites fsx"]
#[expect(clippy::print_stderr, reason = "how much was done belongs to the result")]
fn fsx_finds_no_difference_while_uploads_run() {
    let operations = number("OXENFS_FSX_OPERATIONS", OPERATIONS);
    let seed = seed("fsx");
    let proxy = Proxy::new(server::url());
    // A short quiet period: a file that is closed and opened again is due in between.
    let test = TestMount::with(&proxy.url(), &["--settle", "0.02"]);
    // Small steps on a file that is mapped, closed and opened all the time; beside it large ones on a file whose
    // upload takes long enough to be overtaken.
    let before = proxy.sent();
    let (mut times, mut done) = (0, 0);
    while done < operations {
        let (count, seed) = (AT_A_TIME.min(operations - done), seed.wrapping_add(2 * (done / AT_A_TIME)));
        let mut small = fsx(&test, "small steps", "fsx.toml", count, seed);
        let large = fsx(&test, "large steps", "fsx-large.toml", count / 20, seed.wrapping_add(1));
        times += stage_while(&test, &mut small);
        small.finish();
        large.finish();
        done += count;
        eprintln!("fsx: {done} of {operations} operations, the last {count} with seed {seed}");
    }
    let during = proxy.sent() - before;
    eprintln!("fsx: {operations} operations; staged {times} times meanwhile, {during} bytes");
    assert!(times > 0 && during > 1 << 20, "nothing was uploaded while fsx wrote: {during} bytes in {times} times");
    test.unmount_and_compare();
}
