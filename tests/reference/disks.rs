//! A local disk that becomes full, fails or turns read-only, and recovers, while files are written, renamed, removed and
//! staged. What was acknowledged is there, whatever failed before or after it, now and after a crash; what was refused
//! is as before or as wanted; and once the disk works again everything does, without a restart.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use oxenfs::fs::OpenFlags;
use oxenfs::namespace::ROOT;
use oxenfs::path::{Name, RepoPath};
use oxenfs::store::disk::{Act, Disk, Witness};
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Memory;

use crate::model::{Path, Refusal};
use crate::world::{Manner, Op, World, go, temporary_dir};

const WELL: u8 = 0;
const FULL: u8 = 1;
const BROKEN: u8 = 2;
const READ_ONLY: u8 = 3;

#[derive(Default)]
struct Failing(AtomicU8);

impl Failing {
    fn set(&self, how: u8) {
        self.0.store(how, Ordering::SeqCst);
    }
}

impl Witness for Failing {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let adds = matches!(act, Act::Write(_) | Act::Create(_) | Act::MakeDir(_));
        let code = match self.0.load(Ordering::SeqCst) {
            FULL if adds => libc::ENOSPC,
            BROKEN if adds || matches!(act, Act::Flush(_) | Act::FlushDir(_)) => libc::EIO,
            READ_ONLY if !matches!(act, Act::Flush(_) | Act::FlushDir(_)) => libc::EROFS,
            _ => return work(),
        };
        Err(io::Error::from_raw_os_error(code))
    }
}

fn name(random: &mut fastrand::Rng) -> Path {
    vec![format!("file {}", random.u8(0..6))]
}

fn text(random: &mut fastrand::Rng) -> String {
    (0..random.usize(1..40)).map(|_| random.lowercase()).collect()
}

async fn play(seed: u64, by_hash: ByHash) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = Arc::new(Failing::default());
    let dir = Arc::new(temporary_dir());
    let mut world =
        World::watched(dir, Arc::new(Memory::new(by_hash)), Disk::witnessed(disk.clone()), false, Manner::Plain).await;
    // What a refused operation may or may not have changed.
    let mut unsure: BTreeSet<Path> = BTreeSet::new();
    let mut refused = 0;
    for step in 0..150 {
        if random.u8(0..8) == 0 {
            disk.set(random.choice([FULL, BROKEN, READ_ONLY]).unwrap());
        }
        if random.u8(0..8) == 0 {
            disk.set(WELL);
            for path in std::mem::take(&mut unsure) {
                let op = Op::Replace { path, text: text(&mut random) };
                assert_eq!(
                    world.real(&op).await,
                    Ok(()),
                    "seed {seed}, step {step}: {op:?} on a disk that works again"
                );
                world.modelled(&op).unwrap();
            }
            let next = random.choice([Op::Compact, Op::Crash, Op::Drain, Op::Commit]).unwrap();
            world.step(&next).await;
            continue;
        }
        let (path, to) = (name(&mut random), name(&mut random));
        let op = match random.u8(0..10) {
            0..3 => Op::Write { path, at: random.u64(0..40), text: text(&mut random) },
            3..5 => Op::Replace { path, text: text(&mut random) },
            5 => Op::Unlink(path),
            6..8 if path != to => Op::Rename { from: path, to, mode: 0 },
            8 => Op::Fsync(path),
            _ => {
                // A full disk has room for none, and one that fails leaves the old one in use.
                let _ = world.try_compact();
                continue;
            }
        };
        let touched: Vec<Path> = match &op {
            Op::Rename { from, to, .. } => vec![from.clone(), to.clone()],
            Op::Write { path, .. } | Op::Replace { path, .. } | Op::Unlink(path) => vec![path.clone()],
            _ => Vec::new(),
        };
        if touched.iter().any(|path| unsure.contains(path)) {
            continue;
        }
        match world.real(&op).await {
            Err(Refusal::Disk) => {
                refused += 1;
                unsure.extend(touched);
            }
            _ if matches!(&op, Op::Fsync(path) if unsure.contains(path)) => {}
            done => assert_eq!(done, world.modelled(&op), "seed {seed}, step {step}: {op:?}"),
        }
    }
    refused
}

#[test]
fn a_disk_that_fails_and_recovers_takes_nothing_that_was_acknowledged() {
    let runtime = crate::world::runtime(2);
    let refused: usize = (1..=12)
        .map(|seed| runtime.block_on(play(seed, if seed % 2 == 0 { ByHash::Single } else { ByHash::Never })))
        .sum();
    crate::tell(&format!("{refused} operations refused by the disk"));
    assert!(refused > 100, "only {refused} operations met a failure");
}

/// From memory, as often as it is wanted.
#[test]
fn what_is_not_here_is_read_on_a_full_disk() {
    crate::world::runtime(1).block_on(async {
        let (dir, failing) = (temporary_dir(), Arc::new(Failing::default()));
        let memory = Arc::new(Memory::new(ByHash::Single));
        let path = RepoPath::parse("file").unwrap();
        memory.set_base([(path.clone(), Bytes::from_static(b"of the server"))].into());
        let fs = crate::regressions::listed(&Disk::witnessed(failing.clone()), dir.path(), &memory).await;
        failing.set(FULL);
        let read = OpenFlags { read: true, write: false, truncate: false, execute: false };
        for _ in 0..3 {
            let ino = fs.lookup(ROOT, &Name::new(b"file").unwrap()).unwrap().ino;
            let handle = go(&fs, |fs| fs.open(ino, read)).await.unwrap();
            let bytes = go(&fs, |fs| fs.read(handle, 0, 99)).await.unwrap();
            assert_eq!(bytes, b"of the server");
            fs.release(handle);
        }
        assert_eq!(fs.check(), [""; 0]);
    });
}
