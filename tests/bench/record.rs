//! What the record costs: bytes a frame, processor time a frame written, and processor time to open a record of many files.
//!
//!     cargo bench --bench record [FILES]        a million files, by default
//!
//! Uses nothing but what every version of the library has, so that the same file measures an older one: copy it there.

#![allow(clippy::print_stdout)] // what it is for

use std::path::Path;
use std::time::Instant;

use oxenfs::namespace::{Attrs, BodyRecord, Ino, InodeRecord, ROOT, SpoolId, Timestamp};
use oxenfs::path::{Name, RepoPath};
use oxenfs::store::journal::{Change, Journal};
use oxenfs::writeback::index::Account;

/// Files in a directory.
const IN_ONE: u64 = 1000;

/// Processor time of this process, in seconds.
fn processor() -> f64 {
    // SAFETY: `usage` is what getrusage(2) fills in.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn inode(ino: u64, body: BodyRecord) -> Change {
    let time = Timestamp(1_790_000_000, 123_456_789);
    let attrs = Attrs { mode: 0o644, uid: 1000, gid: 1000, atime: time, mtime: time, ctime: time };
    Change::Inode { ino: Ino(ino), record: InodeRecord { attrs, body } }
}

fn link(parent: u64, name: &str, ino: u64) -> Change {
    Change::Link { parent: Ino(parent), name: Name::new(name.as_bytes()).unwrap(), ino: Ino(ino) }
}

/// What the making of a file puts on record.
fn file(at: u64) -> [Change; 3] {
    let (dir, ino) = (2 + at / IN_ONE, 1_000_000 + at);
    let name = format!("image-{at:07}.jpg");
    let path = RepoPath::parse(&format!("d{dir}/{name}")).unwrap();
    [
        inode(ino, BodyRecord::Spool(SpoolId(at + 1))),
        link(dir, &name, ino),
        Change::Account { path, account: Some(Account::default()) },
    ]
}

fn record(dir: &Path, files: u64) {
    let journal = Journal::open(&dir.join("journal"), |_| ()).unwrap();
    for at in 0..=files / IN_ONE {
        let ino = 2 + at;
        journal.append(&[inode(ino, BodyRecord::Dir { based: false }), link(ROOT.0, &format!("d{ino}"), ino)]);
    }
    let (began, used) = (Instant::now(), processor());
    for at in 0..files {
        journal.commit(journal.append(&file(at))).unwrap();
    }
    let (took, used) = (began.elapsed().as_secs_f64(), processor() - used);
    drop(journal);
    let bytes = std::fs::read(dir.join("journal/journal.00000001")).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    println!("bytes a frame: {:.1}", end as f64 / files as f64);
    println!(
        "written, µs a frame: {:.2} of the processor, {:.2} in all",
        used * 1e6 / files as f64,
        took * 1e6 / files as f64
    );
}

fn main() {
    let files = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(1_000_000);
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), files);
    for _ in 0..2 {
        let (began, used, mut changes) = (Instant::now(), processor(), 0_u64);
        let journal = Journal::open(&dir.path().join("journal"), |_| changes += 1).unwrap();
        drop(journal);
        println!(
            "opened, {changes} changes: {:.2} s of the processor, {:.2} s",
            processor() - used,
            began.elapsed().as_secs_f64()
        );
    }
    // Beside the record, where a mount looks for it; one of the first versions has none.
    let _ = std::fs::rename(dir.path().join("journal/mark"), dir.path().join("journal.mark"));
    let shown = oxenfs::fs::Shown { root_path: RepoPath::root(), access: None };
    let (began, used) = (Instant::now(), processor());
    let counts = oxenfs::fs::survey(dir.path(), &shown, 0).unwrap().counts;
    let (took, used) = (began.elapsed().as_secs_f64(), processor() - used);
    println!("replayed into a tree, {counts:?}: {used:.2} s of the processor, {took:.2} s");
}
