//! Power loss: the kernel's memory is gone, and of what was not flushed the disk has whatever it likes. A witness
//! follows what is flushed; at every point it makes up a disk that could be left: each unflushed name there or not, each
//! unflushed sector old, new or zero. What `fsync` of a file or a directory, `sync` or a commit secured must be there,
//! byte for byte; names must be those of one moment; what was not secured may be lost, and then says so.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use futures_util::StreamExt;
use oxenfs::store::disk::{Act, Disk, Witness};
use oxenfs::workspace::memory::Memory;

use crate::model::{Model, Node, PATTERNS, Path, Shown, travels};
use crate::workload::{self, Workload};
use crate::world::{Manner, Op, World, difference, in_time, temporary_dir, write_with_hole};

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;
const AT_ONCE: usize = 16;
/// Up to here a new record has zeros behind its frames.
const ZEROS_END: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Entry {
    Dir,
    File(u64),
}

/// A change of names that need not be on the disk yet.
#[derive(Clone)]
struct Unflushed {
    remove: Option<PathBuf>,
    add: Option<(PathBuf, Entry)>,
}

impl Unflushed {
    fn is_of(&self, dir: &FsPath) -> bool {
        let paths = self.remove.iter().chain(self.add.as_ref().map(|(path, _)| path));
        paths.into_iter().any(|path| path.parent() == Some(dir))
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(path) = &self.remove {
            names.remove(path);
        }
        if let Some((path, entry)) = &self.add {
            names.insert(path.clone(), *entry);
        }
    }
}

/// What a cut leaves.
struct Remains {
    dir: Arc<tempfile::TempDir>,
    memory: Arc<Memory>,
    acknowledged: usize,
    point: String,
}

struct Power {
    dir: PathBuf,
    memory: Arc<Memory>,
    acknowledged: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names that are on the disk.
    flushed: BTreeMap<PathBuf, Entry>,
    unflushed: Vec<Unflushed>,
    /// Every file that was made, by number, which no other gets while it is open here; and its bytes on the disk.
    files: HashMap<u64, (File, Vec<u8>)>,
    points: usize,
    over: bool,
    random: fastrand::Rng,
    remains: Vec<Remains>,
}

fn now(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

impl State {
    fn note(&mut self, act: &Act<'_>) {
        let number = |path: &FsPath| std::fs::metadata(path).unwrap().ino();
        match act {
            Act::MakeDir(path) => self.change(None, Some((path, Entry::Dir))),
            Act::Create(path) => {
                let ino = number(path);
                // Emptied, if it was there.
                if let hash_map::Entry::Vacant(place) = self.files.entry(ino) {
                    place.insert((File::open(path).unwrap(), Vec::new()));
                    self.change(None, Some((path, Entry::File(ino))));
                }
            }
            Act::Rename(from, to) => self.change(Some(from), Some((to, Entry::File(number(to))))),
            Act::Link(_, to) => self.change(None, Some((to, Entry::File(number(to))))),
            Act::Remove(path) | Act::RemoveDir(path) => self.change(Some(path), None),
            Act::Write(_) | Act::Resize(_) => {}
            Act::Flush(file) => {
                if let Some((file, flushed)) = self.files.get_mut(&file.metadata().unwrap().ino()) {
                    *flushed = now(file);
                }
            }
            Act::FlushDir(dir) => {
                let (of, left) = std::mem::take(&mut self.unflushed).into_iter().partition(|change| change.is_of(dir));
                let of: Vec<Unflushed> = of;
                of.iter().for_each(|change| change.apply(&mut self.flushed));
                self.unflushed = left;
            }
        }
    }

    fn change(&mut self, remove: Option<&FsPath>, add: Option<(&FsPath, Entry)>) {
        let add = add.map(|(path, entry)| (path.to_owned(), entry));
        self.unflushed.push(Unflushed { remove: remove.map(FsPath::to_owned), add });
    }

    /// Puts a disk that could be left into `into`.
    fn leave(&mut self, root: &FsPath, into: &FsPath) {
        let mut names = self.flushed.clone();
        let share = self.random.choice([0, 1, 2]).unwrap();
        for change in &self.unflushed {
            // None, all, or any of them, and in any case what an earlier one made possible.
            if share == 2 || share == 1 && self.random.bool() {
                change.apply(&mut names);
            }
        }
        for (path, entry) in &names {
            let to = into.join(path.strip_prefix(root).unwrap());
            // Below a directory that is not there, nothing is.
            if !to.parent().unwrap().is_dir() {
                continue;
            }
            match entry {
                Entry::Dir => std::fs::create_dir(&to).unwrap(),
                Entry::File(ino) => {
                    let (file, flushed) = &self.files[ino];
                    let bytes = torn(flushed, &now(file), &mut self.random);
                    write_with_hole(&to, &bytes);
                }
            }
        }
    }
}

/// What a disk may have of a file that held `old` when it was flushed and `new` when the power went.
fn torn(old: &[u8], new: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let how = random.u8(0..4);
    let length = match how {
        0 => old.len(),
        1 | 2 => new.len(),
        _ => random.choice([old.len(), new.len()]).unwrap(),
    };
    let mut bytes = vec![0; length];
    for (at, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        let of = |whole: &[u8]| {
            let start = (at * SECTOR).min(whole.len());
            let mut bytes = whole[start..(start + sector.len()).min(whole.len())].to_vec();
            bytes.resize(sector.len(), 0);
            bytes
        };
        let fresh = match how {
            0 | 2 => false,
            1 => true,
            _ => random.bool(),
        };
        sector.copy_from_slice(&if fresh { of(new) } else { of(old) });
    }
    bytes
}

impl Power {
    fn new(dir: &FsPath, memory: &Arc<Memory>, acknowledged: Arc<AtomicUsize>, seed: u64) -> Arc<Self> {
        let state = State { random: fastrand::Rng::with_seed(seed), ..State::default() };
        let power = Self { dir: dir.to_owned(), memory: memory.clone(), acknowledged, state: Mutex::new(state) };
        let power = Arc::new(power);
        let weak: Weak<Self> = Arc::downgrade(&power);
        memory.set_witness(Arc::new(move |request| {
            if let Some(power) = weak.upgrade() {
                power.cut(&mut power.state.lock().unwrap(), || format!("request {request}"));
            }
        }));
        power
    }

    fn cut(&self, state: &mut State, point: impl Fn() -> String) {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        state.points += 1;
        if state.over || state.random.u8(0..3) > 0 {
            return;
        }
        let dir = temporary_dir();
        state.leave(&self.dir, dir.path());
        let point = format!("cut {} ({})", state.points, point());
        let memory = Arc::new(self.memory.fork());
        state.remains.push(Remains { dir: Arc::new(dir), memory, acknowledged, point });
    }

    fn remains(&self) -> Vec<Remains> {
        let mut state = self.state.lock().unwrap();
        state.over = true;
        std::mem::take(&mut state.remains)
    }
}

impl Witness for Power {
    fn around(&self, act: &Act<'_>, work: &mut dyn FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.over {
            return work();
        }
        self.cut(&mut state, || format!("before {act:?}"));
        let done = work();
        if done.is_ok() {
            state.note(act);
        }
        done
    }
}

/// The workload done, with its states.
struct History<'a> {
    workload: &'a Workload,
    models: Vec<Model>,
}

impl History<'_> {
    /// Whether operation `at` secures all that was acknowledged before it.
    fn secures_all(&self, at: usize) -> bool {
        matches!(self.workload.ops[at], Op::Drain | Op::Commit)
    }

    /// The state since which names are secured.
    fn names_since(&self, by: usize) -> usize {
        let flushes = |at: &usize| {
            let flushed = |path: &Path| self.models[*at].flush(path).is_ok();
            self.secures_all(*at) || matches!(&self.workload.ops[*at], Op::Fsync(path) if flushed(path))
        };
        (0..by).rev().find(flushes).map_or(0, |at| at + 1)
    }

    /// The state since which a file's content is secured.
    fn content_since(&self, file: u64, by: usize) -> Option<usize> {
        let secures = |at: &usize| {
            let is_it = |path: &Path| self.models[*at].get(path) == Some(&Node::File(file));
            self.models[*at].contents.contains_key(&file)
                && (self.secures_all(*at) || matches!(&self.workload.ops[*at], Op::Fsync(path) if is_it(path)))
        };
        let last = (0..by).rev().find(secures).map(|at| at + 1);
        last.or_else(|| self.models[0].contents.contains_key(&file).then_some(0))
    }

    /// What is wrong with `found` as the content of `file`, if `by` operations were acknowledged.
    fn wrong_content(&self, file: u64, found: &Shown, by: usize) -> Option<String> {
        let since = self.content_since(file, by)?;
        let states = &self.models[since..self.models.len().min(by + 2)];
        let versions: Vec<&Vec<u8>> = states.iter().filter_map(|model| model.contents.get(&file)).collect();
        match found {
            Shown::File(found) => {
                let fits = |at: usize, byte: u8| {
                    versions.iter().any(|version| version.get(at).map_or(byte == 0, |known| *known == byte))
                };
                let lengths = || versions.iter().map(|version| version.len());
                let length = (lengths().min()..=lengths().max()).contains(&Some(found.len()));
                let wrong = found.iter().enumerate().position(|(at, byte)| !fits(at, *byte));
                match (length, wrong) {
                    (true, None) => None,
                    (true, Some(at)) => Some(format!("byte {at} was never there")),
                    (false, _) => Some(format!("it is {} bytes long", found.len())),
                }
            }
            // Emptied since, and the empty file was not flushed.
            Shown::Unreadable if versions.iter().any(|version| version.is_empty()) => None,
            _ => Some("it cannot be read".into()),
        }
    }
}

async fn run(workload: &Workload) -> (Vec<Model>, Vec<Remains>) {
    let dir = Arc::new(temporary_dir());
    let memory = Arc::new(Memory::new(workload.by_hash));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let power = Power::new(dir.path(), &memory, acknowledged.clone(), workload.seed);
    let mut world =
        World::watched(dir.clone(), memory, Disk::witnessed(power.clone()), workload.past, workload.manner).await;
    // With some the record grows past the zeros that lie behind its frames.
    if workload.past {
        world.lengthen_record(ZEROS_END - workload.seed % 1000).await;
    }
    let models = workload.play(&mut world, &acknowledged).await;
    (models, power.remains())
}

fn kinds(shown: &BTreeMap<Path, Shown>) -> BTreeMap<&Path, u8> {
    let kind = |shown: &Shown| match shown {
        Shown::Dir => 0,
        Shown::Symlink => 1,
        Shown::File(_) | Shown::Unreadable => 2,
    };
    shown.iter().map(|(path, shown)| (path, kind(shown))).collect()
}

async fn survive(history: &History<'_>, remains: Remains) {
    let Remains { dir, memory, acknowledged: by, point } = remains;
    let at = format!("seed {}, {point}, after {by} operations", history.workload.seed);
    let world =
        World::recovered(dir, memory, Disk::restarted(1), history.models[by].clone(), false, Manner::Plain).await;
    let shown = world.shown().await;
    let since = history.names_since(by);
    let possible = &history.models[since..history.models.len().min(by + 2)];
    let mut wrong = Vec::new();
    let fits = possible.iter().any(|model| {
        if kinds(&model.shown()) != kinds(&shown) {
            return false;
        }
        let mut all = BTreeSet::new();
        for (path, node) in &model.nodes {
            if let Node::File(file) = node
                && let Some(why) = history.wrong_content(*file, &shown[path], by)
            {
                all.insert(format!("{}: {why}", path.join("/")));
            }
        }
        let fits = all.is_empty();
        wrong.extend(all);
        fits
    });
    let newest = || difference(&shown, &history.models[by].shown());
    assert!(fits, "{at}, names secured since {since}: {wrong:?}\n{}", newest());

    // What could not be saved is told, and hinders nothing else.
    let lost: BTreeSet<String> =
        shown.iter().filter(|(_, shown)| **shown == Shown::Unreadable).map(|(path, _)| path.join("/")).collect();
    let failed = world.stage_all().await;
    if lost.contains(PATTERNS) {
        // Whatever they were, they hold no more.
        return;
    }
    let bytes = |shown: &Shown| match shown {
        Shown::File(content) => Some(content.clone()),
        Shown::Unreadable => Some(Vec::new()),
        Shown::Dir | Shown::Symlink => None,
    };
    let files = shown.iter().filter_map(|(path, shown)| Some((path.join("/"), bytes(shown)?))).collect();
    let travels = travels(&files, &world.based());
    let owed = lost.iter().filter(|path| travels.contains(*path)).count();
    assert_eq!(failed, owed as u64, "{at}: {lost:?}\n{:?}", world.report());
    let mut view = world.view();
    view.retain(|path, _| !lost.contains(path));
    let whole = shown.iter().filter_map(|(path, shown)| match shown {
        Shown::File(content) => Some((path.join("/"), content.clone())),
        _ => None,
    });
    let whole = whole.filter(|(path, _)| travels.contains(path));
    let whole: BTreeMap<String, Vec<u8>> = whole.collect();
    assert!(view == whole, "{at}: the workspace has {:?}, the tree {:?}", view.keys(), whole.keys());
}

/// Cuts a workload at about every third point; how many cuts.
fn cut(workload: &Workload) -> usize {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let (models, remains) = run(workload).await;
        let cuts = remains.len();
        let history = History { workload, models };
        let survivals = futures_util::stream::iter(remains).map(|remains| {
            let recovery = format!("seed {}, {}: a recovery", workload.seed, remains.point);
            let survival = survive(&history, remains);
            async move { in_time(&recovery, survival).await }
        });
        survivals.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        crate::tell(&format!("seed {}: {} operations, {cuts} cuts", workload.seed, workload.ops.len()));
        cuts
    })
}

#[test]
fn what_was_flushed_survives_a_power_loss_at_every_point() {
    use oxenfs::workspace::ByHash;
    let fixed = [(ByHash::Single, true), (ByHash::Never, false)].map(|(by_hash, past)| workload::fixed(by_hash, past));
    let random = workload::seeds(&[1001, 1002]).into_iter().map(workload::random);
    let cuts: usize = fixed.into_iter().chain(random).map(|workload| cut(&workload)).sum();
    crate::tell(&format!("{cuts} cuts, nothing flushed was lost"));
    assert!(cuts >= 500, "only {cuts} cuts");
}
