//! Kill points: a workload runs once, and at every act on the disk and every request, before and after it, the world is
//! copied as a `kill -9` would leave it there: the state directory as the kernel has it, and the server. Each copy is
//! then recovered, looked at and drained. What had been acknowledged must be there, once and whole; the operation under
//! way is there or is not. Each recovery is itself ended at one of its own points, and recovered again.
//!
//! Beside the fixed workload there are random ones, of the same two seeds each time, or of those that
//! `OXENFS_SWEEP_SEEDS` names: `scripts/sweep` draws new ones, and shows ten thousand kills.

use std::hash::{Hash, Hasher};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use oxenfs::store::disk::{Act, Disk, Witness};
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Memory;

use crate::model::Model;
use crate::workload::{self, Workload};
use crate::world::{World, difference, in_time, temporary_dir, write_with_hole};

/// Recoveries at once: enough to fill the waits of each.
const AT_ONCE: usize = 16;

/// Operations after a recovery.
const GOES_ON: usize = 6;

/// What a kill leaves.
pub struct Remains {
    pub dir: Arc<tempfile::TempDir>,
    pub memory: Arc<Memory>,
    /// Operations acknowledged by then.
    pub acknowledged: usize,
    /// Which point it was.
    pub point: String,
}

/// Stands at every point; the world does not move while it copies.
struct Killer {
    dir: PathBuf,
    memory: Arc<Memory>,
    /// Operations acknowledged so far.
    acknowledged: Arc<AtomicUsize>,
    crossed: Mutex<Crossed>,
}

struct Crossed {
    points: usize,
    /// The only point that counts, or all.
    only: Option<usize>,
    /// The directory may go: what still runs is not looked at.
    over: bool,
    remains: Vec<Remains>,
}

impl Killer {
    fn new(dir: &FsPath, memory: &Arc<Memory>, acknowledged: Arc<AtomicUsize>, only: Option<usize>) -> Arc<Self> {
        let crossed = Mutex::new(Crossed { points: 0, only, over: false, remains: Vec::new() });
        let killer = Arc::new(Self { dir: dir.to_owned(), memory: memory.clone(), acknowledged, crossed });
        let weak = Arc::downgrade(&killer);
        memory.set_witness(Arc::new(move |request| {
            if let Some(killer) = weak.upgrade() {
                killer.cross(&mut killer.crossed.lock().unwrap(), || format!("request {request}"));
            }
        }));
        killer
    }

    fn cross(&self, crossed: &mut Crossed, point: impl Fn() -> String) {
        // Read before the copy: what is acknowledged later may be in it, as the operation under way.
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        if !crossed.over && crossed.only.is_none_or(|only| only == crossed.points) {
            let dir = temporary_dir();
            copy(&self.dir, dir.path());
            crossed.remains.push(Remains {
                dir: Arc::new(dir),
                memory: Arc::new(self.memory.fork()),
                acknowledged,
                point: format!("point {} ({})", crossed.points, point()),
            });
        }
        crossed.points += 1;
    }

    fn remains(&self) -> Vec<Remains> {
        let mut crossed = self.crossed.lock().unwrap();
        crossed.over = true;
        std::mem::take(&mut crossed.remains)
    }
}

impl Witness for Killer {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        let mut crossed = self.crossed.lock().unwrap();
        self.cross(&mut crossed, || format!("before {act:?}"));
        let done = work();
        self.cross(&mut crossed, || format!("after {act:?}"));
        done
    }
}

pub fn copy(from: &FsPath, to: &FsPath) {
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            // Made by the processes under test, and removed by them alone between two points.
            let bytes = std::fs::read(entry.path());
            write_with_hole(&to, &bytes.unwrap_or_else(|error| panic!("{}: {error}", entry.path().display())));
        }
    }
}

/// Runs a workload under a killer; the states of the model, and what each kill leaves.
pub async fn run(workload: &Workload) -> (Vec<Model>, Vec<Remains>) {
    let dir = Arc::new(temporary_dir());
    let memory = Arc::new(Memory::new(workload.by_hash));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let killer = Killer::new(dir.path(), &memory, acknowledged.clone(), None);
    let mut world =
        World::watched(dir.clone(), memory, Disk::witnessed(killer.clone()), workload.past, workload.manner).await;
    let models = workload.play(&mut world, &acknowledged).await;
    (models, killer.remains())
}

/// Recovers what a kill left, twice: once to be killed again on the way.
async fn survive(workload: &Workload, models: &[Model], remains: Remains) -> usize {
    // Where it is killed again follows from where it was killed: a run can be repeated.
    let mut at = std::hash::DefaultHasher::new();
    (remains.acknowledged, remains.point.split(" (").next()).hash(&mut at);
    let mut random = fastrand::Rng::with_seed(at.finish());
    let memory = Arc::new(remains.memory.fork());
    let again = Arc::new(temporary_dir());
    copy(remains.dir.path(), again.path());
    let kill_at = random.usize(0..60);
    let acknowledged = Arc::new(AtomicUsize::new(remains.acknowledged));
    let killer = Killer::new(again.path(), &memory, acknowledged.clone(), Some(kill_at));
    let point = remains.point.clone();
    let disk = Disk::witnessed(killer.clone());
    recover(workload, models, &remains, again.clone(), memory, disk, &acknowledged).await;
    let mut kills = 1;
    for second in killer.remains() {
        let second = Remains { point: format!("{point}, then {}", second.point), ..second };
        let (dir, memory) = (second.dir.clone(), second.memory.clone());
        recover(workload, models, &second, dir, memory, Disk::default(), &AtomicUsize::new(0)).await;
        kills += 1;
    }
    kills
}

async fn recover(
    workload: &Workload,
    models: &[Model],
    remains: &Remains,
    dir: Arc<tempfile::TempDir>,
    memory: Arc<Memory>,
    disk: Disk,
    acknowledged: &AtomicUsize,
) {
    let recovery = recover_and_go_on(workload, models, remains, dir, memory, disk, acknowledged);
    in_time(&format!("seed {}, {}: a recovery", workload.seed, remains.point), recovery).await;
}

async fn recover_and_go_on(
    workload: &Workload,
    models: &[Model],
    remains: &Remains,
    dir: Arc<tempfile::TempDir>,
    memory: Arc<Memory>,
    disk: Disk,
    acknowledged: &AtomicUsize,
) {
    let (point, by, seed) = (&remains.point, remains.acknowledged, workload.seed);
    let underway = workload.ops.get(by);
    let mut world = World::recovered(dir, memory, disk, models[by].clone(), workload.past, workload.manner).await;
    let shown = world.shown().await;
    let possible = &models[by..models.len().min(by + 2)];
    let Some(found) = possible.iter().position(|model| model.shown() == shown) else {
        panic!(
            "seed {seed}, {point}: after {by} operations and perhaps {underway:?}\n{}",
            difference(&shown, &models[by].shown())
        );
    };
    world.model = possible[found].clone();
    // Life goes on, and meets what the dead daemon sent and the server has not carried out yet.
    acknowledged.store(by + found, Ordering::SeqCst);
    for (at, op) in workload.ops.iter().enumerate().skip(by + found).take(GOES_ON) {
        let real = world.real(op).await;
        let modelled = world.modelled(op);
        assert_eq!(real, modelled, "seed {seed}, {point}, then {op:?}");
        acknowledged.store(at + 1, Ordering::SeqCst);
    }
    let shown = world.shown().await;
    let failed = world.stage_all().await;
    assert_eq!(failed, 0, "seed {seed}, {point}: {:?}", world.report());
    let (view, files) = (world.view(), world.travelling());
    assert!(view == files, "seed {seed}, {point}: the workspace has {:?}, the tree {:?}", view.keys(), files.keys());
    let drained = world.shown().await;
    assert!(drained == shown, "seed {seed}, {point}: draining changed {}", difference(&drained, &shown));
}

fn sweep(workload: &Workload) -> usize {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let (models, remains) = run(workload).await;
        let points = remains.len();
        let survivals = futures_util::stream::iter(remains).map(|remains| survive(workload, &models, remains));
        let kills: usize = survivals.buffer_unordered(AT_ONCE).fold(0, |sum, kills| async move { sum + kills }).await;
        crate::tell(&format!(
            "seed {}: {} operations, {points} points, {kills} kills",
            workload.seed,
            workload.ops.len()
        ));
        kills
    })
}

#[test]
fn every_kill_point_of_the_fixed_workload_is_survived() {
    for (by_hash, past) in [(ByHash::Single, false), (ByHash::Never, true)] {
        let kills = sweep(&workload::fixed(by_hash, past));
        assert!(kills > 500, "the workload crosses only {kills} points");
    }
}

/// The workspace goes away, content is pruned, commits are lost and made without a directory, and the daemon is killed.
#[test]
fn what_a_server_loses_is_made_good_whenever_the_daemon_is_killed() {
    let kills: usize = workload::seeds(&[1]).into_iter().map(|seed| sweep(&workload::careful(seed))).sum();
    crate::tell(&format!("{kills} kills"));
    assert!(kills > 0);
}

#[test]
fn random_workloads_survive_every_kill_point() {
    let kills: usize = workload::seeds(&[1, 2]).into_iter().map(|seed| sweep(&workload::random(seed))).sum();
    crate::tell(&format!("{kills} kills, none lost, torn or doubled"));
    assert!(kills > 0);
}
