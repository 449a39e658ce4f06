//! `fio --verify`: blocks with a checksum each, written in every order and read back.

use std::process::Command;

use super::{Running, config, number, seed, stage_while};
use crate::mounted::TestMount;
use crate::server;

/// Megabytes per file of a run that nobody gave a number.
const MEGABYTES: u64 = 8;

#[track_caller]
fn fio(job: &str) {
    let seed = seed("fio");
    let test = TestMount::with(server::url(), &["--settle", "0.05"]);
    let mut command = Command::new("fio");
    command
        .arg(format!("--directory={}", test.dir.display()))
        .arg(format!("--randseed={seed}"))
        .arg(format!("--filesize={}m", number("OXENFS_FIO_MEGABYTES", MEGABYTES)))
        .arg(format!("--aux-path={}", test.beside("aux").display()))
        .arg(config(&format!("fio/{job}.fio")))
        .current_dir(test.beside("aux"));
    let mut running = Running::start(command, test.beside("said").join(job));
    let times = stage_while(&test, &mut running);
    let said = running.finish();
    assert!(times > 0 && said.contains("err= 0"), "{said}");
    test.unmount_and_compare();
}

#[test]
#[ignore = "needs fio: scripts/suites fio"]
fn fio_verifies_what_it_wrote_in_sequence() {
    fio("sequential");
}

#[test]
#[ignore = "needs fio: scripts/suites fio"]
fn fio_verifies_what_it_wrote_at_random() {
    fio("random");
}

#[test]
#[ignore = "needs fio: scripts/suites fio"]
fn fio_verifies_what_it_wrote_through_mappings() {
    fio("mmap");
}
