//! What is done to the filesystem while it is killed: each operation is one that either happened or did not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oxenfs::workspace::ByHash;

use crate::model::{Model, Node, PATTERNS, Path};
use crate::world::{Amiss, Manner, Op, Vanish, World, base_model, in_time};

pub struct Workload {
    pub seed: u64,
    pub by_hash: ByHash,
    /// Programs write past the daemon.
    pub past: bool,
    pub manner: Manner,
    pub ops: Vec<Op>,
}

impl Workload {
    /// Does it, and returns the model before the first operation and after each; counts the operations done in
    /// `acknowledged`.
    pub async fn play(&self, world: &mut World, acknowledged: &AtomicUsize) -> Vec<Model> {
        let mut models = vec![world.model.clone()];
        let mut random = fastrand::Rng::with_seed(self.seed);
        for op in &self.ops {
            let real = in_time(&format!("seed {}: {op:?}", self.seed), world.real(op)).await;
            let modelled = world.modelled(op);
            assert_eq!(real, modelled, "{op:?}");
            world.keep(op).await;
            models.push(world.model.clone());
            acknowledged.store(models.len() - 1, Ordering::SeqCst);
            // Sometimes on, sometimes while the stager works on it.
            if random.bool() {
                tokio::time::sleep(Duration::from_micros(random.u64(0..4000))).await;
            }
        }
        models
    }
}

fn path(text: &str) -> Path {
    if text.is_empty() { Vec::new() } else { text.split('/').map(str::to_owned).collect() }
}

/// The seeds of the random workloads: `usual`, or what `OXENFS_SWEEP_SEEDS` names.
pub fn seeds(usual: &[u64]) -> Vec<u64> {
    let named = std::env::var("OXENFS_SWEEP_SEEDS").ok();
    named.map_or(usual.to_vec(), |named| named.split_whitespace().map(|seed| seed.parse().expect("a seed")).collect())
}

/// Text that is the same for the same `seed`.
fn text(seed: u64, length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.alphanumeric()).take(length).collect()
}

fn write(at: &str, offset: u64, text: String) -> Op {
    Op::Write { path: path(at), at: offset, text }
}

/// Makes a file, and writes to it: two operations.
fn make(at: &str, text: String) -> [Op; 2] {
    [write(at, 0, String::new()), write(at, 0, text)]
}

fn beside(at: &str, text: String, stage: bool) -> Op {
    Op::Beside { path: path(at), text, stage }
}

fn empty(at: &str) -> Op {
    Op::Replace { path: path(at), text: String::new() }
}

fn rename(from: &str, to: &str, mode: u8) -> Op {
    Op::Rename { from: path(from), to: path(to), mode }
}

fn link(from: &str, to: &str) -> Op {
    Op::Link { from: path(from), to: path(to) }
}

fn truncate(at: &str, size: u64) -> Op {
    Op::Truncate { path: path(at), size }
}

/// Every kind of change, on files of the base, staged ones and new ones, settled and in flight.
pub fn fixed(by_hash: ByHash, past: bool) -> Workload {
    let mut ops = Vec::new();
    // New files, small ones and one that goes in parts, while others come.
    ops.extend(make("new", text(1, 300)));
    ops.extend(make("large", text(2, 150_000)));
    ops.push(Op::Mkdir(path("made")));
    ops.extend(make("made/one", text(3, 500)));
    ops.extend(make("made/two", text(4, 500)));
    ops.push(Op::Symlink(path("made/link")));
    ops.push(link("made/one", "also"));
    ops.push(Op::Fsync(path("made/one")));
    // What stays here, before it is said and after, and a name of it for a file that travels.
    ops.extend(make("early", text(17, 600)));
    ops.push(Op::Mkdir(path("scratch")));
    ops.extend(make(PATTERNS, "early\nscratch/\nbase\n".to_owned()));
    ops.extend(make("scratch/one", text(18, 2_000)));
    ops.push(link("made/one", "scratch/also"));
    ops.push(Op::Fsync(path("scratch/one")));
    // Files of the base: over, appended to, cut, emptied, moved, removed.
    ops.push(write("base", 3, text(5, 20)));
    ops.push(write("dir/a", 1, text(6, 50)));
    ops.push(truncate("dir/base", 5));
    ops.push(rename("dir/dir/b", "b", 0));
    ops.push(Op::Drain);
    // The same, now staged; and a write that meets an upload.
    ops.push(write("large", 70_000, text(7, 60_000)));
    ops.push(write("new", 100, text(8, 400)));
    ops.push(write("large", 10, text(9, 10)));
    ops.push(empty("base"));
    ops.push(write("base", 0, text(10, 80_000)));
    ops.push(rename("large", "made/large", 0));
    ops.push(Op::Compact);
    ops.push(rename("made/two", "new", 0));
    // Stays no more, though staged under the other name; staged, and stays; and what is committed, whatever it is called.
    ops.push(rename("early", "late", 0));
    ops.push(rename("b", "scratch/b", 0));
    ops.push(empty(PATTERNS));
    ops.push(write(PATTERNS, 0, "late\nscratch/\nnew\n".to_owned()));
    ops.push(rename("scratch/b", "b", 0));
    ops.push(rename("made", "moved", 0));
    ops.push(Op::Unlink(path("moved/large")));
    ops.push(Op::Fsync(path("")));
    ops.push(Op::Rmdir(path("dir/dir")));
    ops.push(Op::Unlink(path("also")));
    ops.push(Op::Commit);
    // Beside somebody who reads what is cached.
    ops.push(beside("dir/a", text(14, 40_000), false));
    ops.push(beside("b", text(15, 700), true));
    // After the commit: the way of an editor, an exchange, a directory in a file's place.
    ops.extend(make("dir/.tmp", text(11, 700)));
    ops.push(Op::Fsync(path("dir/.tmp")));
    ops.push(rename("dir/.tmp", "dir/base", 0));
    ops.push(rename("new", "b", 2));
    ops.push(Op::Unlink(path("base")));
    ops.push(Op::Mkdir(path("base")));
    ops.push(Op::Unlink(path(PATTERNS)));
    ops.push(write("late", 10, text(19, 700)));
    ops.extend(make(PATTERNS, "hard\nmoved\nagain/\n".to_owned()));
    ops.extend(make("base/inside", text(12, 200_000)));
    ops.push(Op::Compact);
    ops.push(truncate("base/inside", 100_000));
    ops.push(rename("moved", "base/moved", 0));
    ops.push(link("base/inside", "hard"));
    ops.push(write("hard", 50, text(13, 10)));
    ops.push(Op::Drain);
    ops.push(rename("base", "again", 0));
    // A commit amid changes: of what is in it and not staged yet, and of what it has staged.
    ops.push(write("dir/a", 0, text(16, 900)));
    ops.push(Op::Cut);
    ops.push(rename("again", "base", 0));
    ops.push(rename("dir/base", "dir/a", 0));
    ops.push(Op::Publish);
    ops.push(rename("base", "away", 0));
    ops.push(rename("away", "again", 0));
    ops.push(Op::Unlink(path("dir/a")));
    ops.push(link("hard", "dir/a"));
    ops.push(Op::Rebase);
    ops.push(Op::Commit);
    Workload { seed: 0, by_hash, past, manner: Manner::Plain, ops }
}

/// Random operations that mostly succeed.
pub fn random(seed: u64) -> Workload {
    of(seed, Manner::Plain, 60)
}

/// The same where what is staged may go away, and commits go amiss.
pub fn careful(seed: u64) -> Workload {
    of(seed, Manner::Careful, 30)
}

fn of(seed: u64, manner: Manner, length: usize) -> Workload {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = base_model();
    let mut ops = Vec::new();
    while ops.len() < length {
        let op = any(&mut random, &model);
        let known = model.clone();
        // Now and then one that is refused.
        if apply(&mut model, &op).is_err() && random.u8(..) > 20 {
            model = known;
            continue;
        }
        let is_commit = matches!(op, Op::Commit);
        ops.push(op);
        if manner == Manner::Careful && random.u8(0..4) == 0 {
            ops.push(unlucky(&mut random));
        }
        if is_commit && matches!(ops.last(), Some(Op::Commit)) && random.bool() {
            // In its steps, with changes in between.
            ops.pop();
            ops.push(Op::Cut);
            ops.extend(amid(&mut random, &mut model));
            ops.push(Op::Publish);
            ops.extend(amid(&mut random, &mut model));
            ops.push(Op::Rebase);
        }
    }
    let by_hash = random.choice([ByHash::Single, ByHash::Batch, ByHash::Never]).unwrap();
    Workload { seed, by_hash, past: random.bool(), manner, ops }
}

/// What others, the server or the way to it do.
fn unlucky(random: &mut fastrand::Rng) -> Op {
    let dir = random.choice(["dir", "dir/dir", "dir/a", "x", "base"]).unwrap();
    match random.u8(0..10) {
        8 => Op::Vanish(Vanish::Pruned),
        9 => Op::CommitAmiss(Amiss::Pruned),
        0..=1 => Op::Vanish(Vanish::Deleted),
        2 => Op::Vanish(Vanish::Emptied),
        3 => Op::CommitAmiss(Amiss::Lost),
        4 => Op::CommitAmiss(Amiss::AnswerLost),
        5..=6 => Op::CommitAmiss(Amiss::Drops(path(dir), random.u8(1..3))),
        _ => Op::CommitAmiss(Amiss::LeavesOut(path(dir))),
    }
}

/// Some changes that wait for nothing to be staged.
fn amid(random: &mut fastrand::Rng, model: &mut Model) -> Vec<Op> {
    let mut ops = Vec::new();
    while ops.len() < 4 {
        let op = any(random, model);
        let waits = matches!(op, Op::Drain | Op::Commit | Op::Beside { .. });
        let known = model.clone();
        if waits || apply(model, &op).is_err() {
            *model = known;
            continue;
        }
        ops.push(op);
    }
    ops
}

fn any(random: &mut fastrand::Rng, model: &Model) -> Op {
    let known: Vec<&Path> = model.nodes.keys().collect();
    let mut some = |dirs: bool| {
        let mut pick = Path::new();
        for _ in 0..20 {
            pick = random.choice(&known).map(|path| (*path).clone()).unwrap_or_default();
            if dirs == (model.get(&pick) == Some(&Node::Dir)) {
                break;
            }
        }
        pick
    };
    let (file, other, mut dir) = (some(false), some(false), some(true));
    if random.u8(0..3) == 0 {
        dir = Path::new();
    }
    let fresh = [dir.clone(), vec![random.choice(["x", "y", "z", "w"]).unwrap().to_owned()]].concat();
    let target = if random.bool() { fresh.clone() } else { other };
    let length = random.choice([1, 40, 3000, 100_000]).unwrap();
    match random.u8(0..35) {
        32 if random.u8(0..4) == 0 && model.get(&path(PATTERNS)).is_some() => empty(PATTERNS),
        32 | 33 if model.get(&path(PATTERNS)).is_none() => {
            Op::Write { path: path(PATTERNS), at: 0, text: String::new() }
        }
        32 | 33 => write(PATTERNS, 0, patterns(random)),
        34 if random.bool() => Op::Rename { from: file, to: path(PATTERNS), mode: 0 },
        34 => Op::Unlink(path(PATTERNS)),
        0..=4 => Op::Write { path: fresh, at: 0, text: String::new() },
        5..=11 => {
            let at = random.u64(0..200);
            Op::Write { path: file, at, text: text(random.u64(..), length) }
        }
        12..=13 => Op::Replace { path: file, text: String::new() },
        14..=15 => Op::Truncate { path: file, size: random.u64(0..3000) },
        16..=17 => Op::Unlink(file),
        18 => Op::Mkdir(fresh),
        19 | 24 if dir.is_empty() => Op::Compact,
        19 => Op::Rmdir(dir),
        20..=23 => Op::Rename { from: file, to: target, mode: random.u8(0..4) },
        24 => Op::Rename { from: dir, to: target, mode: 0 },
        // The model does not tell the names of one symbolic link apart.
        25 if model.file(&file).is_none() => Op::Symlink(fresh),
        25 => Op::Link { from: file, to: fresh },
        26 => Op::Symlink(fresh),
        27..=28 => Op::Fsync(if random.bool() { file } else { dir }),
        29 => Op::Drain,
        30 if random.bool() => Op::Beside { path: file, text: text(random.u64(..), length), stage: random.bool() },
        30 => Op::Commit,
        _ => Op::Compact,
    }
}

/// Lines of which some match what is made here.
fn patterns(random: &mut fastrand::Rng) -> String {
    const LINES: [&str; 10] = ["x", "y", "/z", "w", "!x", "*", "dir/", "dir/x", "!y", "base"];
    let many = random.usize(0..4);
    (0..many).map(|_| format!("{}\n", random.choice(LINES).unwrap())).collect()
}

fn apply(model: &mut Model, op: &Op) -> Result<(), crate::model::Refusal> {
    crate::world::on_model(model, op)
}
