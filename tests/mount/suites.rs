//! Suites that other people wrote, through a real mount. Each takes a minute or more and a program of its own, so they
//! run from `scripts/suites`, bounded or long, and end with [`TestMount::unmount_and_compare`].

mod fio;
mod fsx;
mod stress;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::mounted::TestMount;

/// A file below `tests/conformance`.
fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name)
}

/// A number that `scripts/suites` sets, or what stands for it otherwise.
pub fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        _ => otherwise,
    }
}

/// The seed of this run: `OXENFS_TEST_SEED`, else another one each time, which is printed.
#[expect(clippy::print_stderr, reason = "the seed belongs to the result")]
pub fn seed(suite: &str) -> u64 {
    let seed = number("OXENFS_TEST_SEED", u64::from(fastrand::u32(..)));
    eprintln!("{suite}: OXENFS_TEST_SEED={seed}");
    seed
}

/// A program at work on a mount; killed if the test ends before it.
struct Running {
    child: Child,
    said: PathBuf,
    line: String,
}

impl Running {
    /// Starts it, with what it prints in a file.
    #[track_caller]
    fn start(mut command: Command, said: PathBuf) -> Self {
        let line = format!("{command:?}");
        let file = std::fs::File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).env("LC_ALL", "C");
        let child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}; run it by scripts/suites"));
        Self { child, said, line }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, which must be a success, and returns what it printed.
    #[track_caller]
    fn finish(mut self) -> String {
        let status = self.child.wait().unwrap();
        let said = std::fs::read(&self.said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        // Some print a thousand lines of history first; what is wrong stands around it.
        let lines: Vec<&str> = said.lines().collect();
        let (first, last) = (lines.len().min(20), lines.len().saturating_sub(60));
        assert!(
            status.success(),
            "{}: {status}\n{}\n...\n{}",
            self.line,
            lines[..first].join("\n"),
            lines[last.max(first)..].join("\n")
        );
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Has everything staged, again and again, for as long as `program` runs; says how often.
#[track_caller]
fn stage_while(test: &TestMount, program: &mut Running) -> u32 {
    let mut times = 0;
    while program.is_running() {
        let start = Instant::now();
        test.sync();
        times += 1;
        // Leaves the program most of the machine: it has a number of operations to do.
        std::thread::sleep(start.elapsed() * 3);
    }
    times
}
