//! Damage: at any point of a workload with things owed the daemon is killed, and then one file of the state directory is
//! hurt: a bit flipped, cut, removed, zeroed, swapped with another, doubled over another. Then it is looked path by path
//! what became of each file that the tree had: it is whole, or under `lost+found` with its bytes, or the server has it, or
//! it is named as damaged. Anything else is a silent loss.
//!
//! Excluded, as the README says: the bytes of a file of the spool that itself was hurt, which nothing has hashed yet; and
//! frames cut exactly at the end of one, behind the last that the mark knows of.
//!
//! In CI of two fixed workloads; `scripts/sweep damage` has 2,000, of new ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use oxenfs::fs::{LOST, Repair, Shown as Mounted, repair};
use oxenfs::namespace::{BodyRecord, Ino, ROOT, SpoolId};
use oxenfs::path::{Name, RepoPath};
use oxenfs::store::disk::Disk;
use oxenfs::store::journal::{Change, Journal, JournalError};

use crate::course::{Course, SLOW, in_time_at};
use crate::model::{Model, Path, Shown};
use crate::sweep::{self, Remains};
use crate::workload::{self, Workload};
use crate::world::{Manner, World, difference, temporary_dir, write_with_hole};

/// Damages in CI.
const FEW: usize = 60;
/// How long a read is tried again that does not succeed: nobody mends the server here.
const PATIENCE: Duration = Duration::from_millis(500);

/// Damages at once: enough to fill the waits of each.
const AT_ONCE: usize = 8;

/// What was done to which file.
#[derive(Debug)]
struct Hurt {
    what: String,
    /// The files with other bytes than before, or none.
    files: Vec<PathBuf>,
}

/// What became of one file that the tree had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It is where it was, with its bytes.
    Whole,
    /// Its bytes lie under `lost+found`.
    Salvaged,
    /// Its bytes have another name in the mount: the frame that gave it this one is among those that are lost.
    OtherName,
    /// It is staged, under its name or the one before, and `status` names that path as a conflict.
    OnServer,
    /// The commit that the workspace stands on has its bytes, under another name.
    Committed,
    /// The repair or the mount says that its bytes are gone.
    Named,
    /// Its spool file was hurt, which nothing had hashed.
    Excluded,
    /// Nobody says anything.
    Lost,
}

/// How the damages ended.
#[derive(Debug, Default)]
struct Tally {
    /// Of directories.
    whole: usize,
    refused: usize,
    /// The frames behind the mark were cut off just behind a whole one.
    cut_behind_mark: usize,
    /// Of files, in directories that were refused.
    files: BTreeMap<Fate, usize>,
    lost: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.whole += other.whole;
        self.refused += other.refused;
        self.cut_behind_mark += other.cut_behind_mark;
        for (fate, count) in other.files {
            *self.files.entry(fate).or_default() += count;
        }
        self.lost.extend(other.lost);
    }
}

fn files(dir: &FsPath) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() { todo.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

fn all_bytes(dir: &FsPath) -> Vec<(PathBuf, Vec<u8>)> {
    files(dir).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Hurts one file of `dir`, as `random` has it; `None` where that changes nothing.
fn hurt(dir: &FsPath, random: &mut fastrand::Rng) -> Option<Hurt> {
    let all = files(dir);
    // Half of the time the record: most of the others are many and small.
    let record: Vec<&PathBuf> =
        all.iter().filter(|path| path.strip_prefix(dir).unwrap().starts_with("journal")).collect();
    let path = if random.bool() { (*random.choice(&record)?).clone() } else { random.choice(&all)?.clone() };
    let old = std::fs::read(&path).unwrap();
    // Where there is something, and now and then behind it.
    let end = old.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let end = if random.u8(0..8) == 0 { old.len() } else { end };
    let name = path.strip_prefix(dir).unwrap().display().to_string();
    let mut new = old.clone();
    let mut touched = vec![path.clone()];
    let what = match random.u8(0..6) {
        0 if end > 0 => {
            let at = random.usize(0..end);
            new[at] ^= 1 << random.u8(0..8);
            format!("a bit of byte {at} of {end} flipped in {name}")
        }
        1 if end > 0 => {
            new.truncate(random.usize(0..end));
            format!("{name} cut at {} of {end}", new.len())
        }
        2 if end > 0 => {
            let from = random.usize(0..end);
            let to = (from + random.usize(1..5000)).min(new.len());
            new[from..to].fill(0);
            format!("{name} zeroed from {from} to {to} of {end}")
        }
        3 => {
            std::fs::remove_file(&path).unwrap();
            return Some(Hurt { what: format!("{name} removed"), files: touched });
        }
        kind => {
            let other = random.choice(&all)?.clone();
            let bytes = std::fs::read(&other).unwrap();
            let told = other.strip_prefix(dir).unwrap().display().to_string();
            new = bytes;
            if kind == 4 {
                touched.push(other.clone());
                write_with_hole(&other, &old);
                format!("{name} swapped with {told}")
            } else {
                format!("{told} doubled over {name}")
            }
        }
    };
    if new == old {
        return None;
    }
    write_with_hole(&path, &new);
    Some(Hurt { what, files: touched })
}

fn mounted() -> Mounted {
    Mounted { root_path: RepoPath::root(), access: None }
}

/// What the record of a directory that is whole says.
struct Record {
    /// The paths of each file of the spool.
    spooled: HashMap<PathBuf, Vec<Path>>,
    /// The last frame that the mark knows of.
    marked: u64,
}

impl Record {
    fn of(dir: &FsPath) -> Self {
        let mut spools: HashMap<Ino, SpoolId> = HashMap::new();
        let mut names: BTreeMap<(Ino, Name), Ino> = BTreeMap::new();
        Journal::read_marked(&dir.join("journal"), &dir.join("journal.mark"), &mut |_, change| {
            match change {
                Change::Inode { ino, record } => match record.body {
                    BodyRecord::Spool(spool) => drop(spools.insert(ino, spool)),
                    _ => drop(spools.remove(&ino)),
                },
                Change::Link { parent, name, ino } => drop(names.insert((parent, name), ino)),
                Change::Unlink { parent, name, .. } => drop(names.remove(&(parent, name))),
                _ => {}
            }
            Ok(())
        })
        .unwrap();
        let above: HashMap<Ino, (Ino, Name)> =
            names.iter().map(|((parent, name), ino)| (*ino, (*parent, name.clone()))).collect();
        let mut spooled: HashMap<PathBuf, Vec<Path>> = HashMap::new();
        for ((parent, name), ino) in &names {
            let Some(spool) = spools.get(ino) else { continue };
            let mut path = vec![name.to_string()];
            let mut at = *parent;
            while let Some((parent, name)) = above.get(&at).filter(|_| at != ROOT) {
                path.insert(0, name.to_string());
                at = *parent;
            }
            let file = dir.join(format!("spool/{:02x}/{:x}", spool.0 % 256, spool.0));
            spooled.entry(file).or_default().push(path);
        }
        let mark = std::fs::read_to_string(dir.join("journal.mark")).unwrap_or_default();
        let field = |name: &str| {
            let from = mark.find(name).map_or("", |at| &mark[at + name.len() + 2..]);
            from.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap_or(0)
        };
        Self { spooled, marked: field("flushed").max(field("written")) }
    }
}

/// The number of the last frame before which none is missing in the segments of a directory.
fn last_frame(dir: &FsPath) -> u64 {
    let mut segments: Vec<PathBuf> = files(&dir.join("journal"));
    segments.sort();
    let Some(last) = segments.last() else { return 0 };
    let bytes = std::fs::read(last).unwrap();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(1);
    let numbers = lines.map_while(|line| {
        let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
        text.split(' ').nth(1)?.parse::<u64>().ok()
    });
    numbers.last().unwrap_or(0)
}

/// What is looked at once a damaged directory is in use.
struct Look<'a> {
    /// The tree as it may have been when the daemon was killed: with the operation under way, or without.
    possible: &'a [Model],
    /// What was staged then.
    staged: &'a BTreeMap<String, Vec<u8>>,
    /// Paths whose spool file was hurt.
    hurt: &'a BTreeSet<Path>,
    repaired: Option<&'a Repair>,
    shown: &'a BTreeMap<Path, Shown>,
    /// Paths that `status` names with an error.
    named: &'a BTreeSet<String>,
    /// What the branch has.
    committed: &'a BTreeSet<Vec<u8>>,
    /// What is staged now.
    view: &'a BTreeMap<String, Vec<u8>>,
}

impl Look<'_> {
    /// What became of each file that the tree had.
    fn fates(&self) -> BTreeMap<Path, Fate> {
        let before = self.possible[0].shown();
        let files = before.iter().filter(|(_, shown)| matches!(shown, Shown::File(_)));
        files
            .map(|(path, _)| (path.clone(), self.possible.iter().map(|model| self.fate(path, model)).min().unwrap()))
            .collect()
    }

    /// What became of the file that `model` has at a path; none there is none to lose.
    fn fate(&self, path: &Path, model: &Model) -> Fate {
        let (before, shown) = (model.shown(), self.shown.get(path));
        if before.get(path) == shown {
            return Fate::Whole;
        }
        let Some(Shown::File(content)) = before.get(path) else { return Fate::Lost };
        if self.repaired.is_none() {
            return match self.hurt.contains(path) {
                _ if shown == Some(&Shown::Unreadable) => Fate::Named,
                true => Fate::Excluded,
                false => Fate::Lost,
            };
        }
        let has = |(other, shown): (&Path, &Shown)| {
            matches!(shown, Shown::File(found) if found == content).then(|| other.clone())
        };
        let elsewhere: Vec<Path> = self.shown.iter().filter_map(has).collect();
        if elsewhere.iter().any(|other| other[0] == LOST) {
            return Fate::Salvaged;
        }
        if !elsewhere.is_empty() {
            return Fate::OtherName;
        }
        // The bytes were on the server, and still are; the mount shows them, or names that path.
        let is_staged = |(name, bytes): (&String, &Vec<u8>)| {
            bytes == content && self.view.get(name) == Some(content) && self.named.contains(name)
        };
        if self.staged.iter().any(is_staged) {
            return Fate::OnServer;
        }
        let name = path.join("/");
        if self.committed.contains(content) {
            return Fate::Committed;
        }
        let missed = self.repaired.is_some_and(|repaired| repaired.missing.contains(&name));
        if missed || shown == Some(&Shown::Unreadable) {
            return Fate::Named;
        }
        if self.hurt.contains(path) { Fate::Excluded } else { Fate::Lost }
    }
}

async fn outcome(workload: &Workload, models: &[Model], remains: &Remains, seed: u64, course: &Course) -> Tally {
    let mut tally = Tally::default();
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = Arc::new(temporary_dir());
    sweep::copy(remains.dir.path(), dir.path());
    let record = Record::of(dir.path());
    let whole_until = last_frame(dir.path());
    let before_damage = all_bytes(dir.path());
    let Some(hurt) = hurt(dir.path(), &mut random) else { return tally };
    let left = last_frame(dir.path());
    let told = format!("seed {}, damage {seed}, {}: {}", workload.seed, remains.point, hurt.what);
    let by = remains.acknowledged;
    let possible = &models[by..models.len().min(by + 2)];
    let memory = Arc::new(remains.memory.fork());
    let staged: BTreeMap<String, Vec<u8>> =
        memory.view().into_iter().map(|(path, content)| (path.as_str().to_owned(), content.to_vec())).collect();
    let committed: BTreeSet<Vec<u8>> = memory.base_tree().into_values().map(|content| content.to_vec()).collect();
    let hurt_paths: BTreeSet<Path> =
        hurt.files.iter().filter_map(|file| record.spooled.get(file)).flatten().cloned().collect();
    let open = async |memory| {
        let opened = World::try_recovered(
            dir.clone(),
            memory,
            Disk::default(),
            models[by].clone(),
            workload.past,
            Manner::Plain,
        );
        opened.await.map(|world| world.with_patience(PATIENCE).along(course))
    };
    let before = all_bytes(dir.path());
    course.step(format!("{} is opened", hurt.what));
    let (world, repaired) = match open(memory.clone()).await {
        Ok(world) => {
            tally.whole += 1;
            (world, None)
        }
        Err(JournalError::Damaged(_)) => {
            tally.refused += 1;
            assert!(before == all_bytes(dir.path()), "{told}: refused, and changed");
            course.step("it is repaired");
            let shown = repair(&Disk::default(), dir.path(), &mounted(), false).unwrap();
            assert!(!shown.damage.is_empty(), "{told}: a repair sees no damage where a mount does");
            let repaired = repair(&Disk::default(), dir.path(), &mounted(), true).unwrap();
            course.step("it is opened again");
            let opened = open(memory).await;
            (opened.unwrap_or_else(|error| panic!("{told}: refused after the repair: {error}")), Some(repaired))
        }
        Err(other) => panic!("{told}: refused as {other}"),
    };
    let look = |world: &World, shown: &BTreeMap<Path, Shown>| {
        let (view, named) = (&world.view(), &world.errors());
        let (staged, hurt, repaired) = (&staged, &hurt_paths, repaired.as_ref());
        let committed = &committed;
        Look { possible, named, committed, staged, hurt, repaired, shown, view }.fates()
    };
    let shown = world.shown().await;
    let fates = look(&world, &shown);
    // Once the rest is on its way, nothing has been taken from what was there.
    course.step("it settles");
    world.settle().await;
    let later = world.shown().await;
    let drained = look(&world, &later);
    course.step("it is checked");
    let broken = world.broken();
    assert!(broken.is_empty(), "{told}: {broken:#?}");
    let lost: Vec<(&Path, Fate, Fate)> = fates
        .iter()
        .map(|(path, fate)| (path, *fate, drained[path]))
        .filter(|(_, at_first, later)| *at_first == Fate::Lost || *later == Fate::Lost)
        .collect();
    if repaired.is_none() && !lost.is_empty() {
        // Exactly the tree of an earlier moment, by a cut behind what the mark knows of.
        let is_earlier = models[..by].iter().any(|model| {
            let expected = model.shown();
            shown.len() == expected.len() && shown.iter().all(|(path, shown)| expected.get(path) == Some(shown))
        });
        if is_earlier
            && hurt.files.iter().all(|file| file.starts_with(dir.path().join("journal")))
            && record.marked < whole_until
            && left >= record.marked
        {
            tally.whole -= 1;
            tally.cut_behind_mark += 1;
            return tally;
        }
    }
    if !lost.is_empty() {
        let was = models[by].shown();
        let places: Vec<String> = lost
            .iter()
            .map(|(path, ..)| {
                let Some(Shown::File(content)) = was.get(*path) else { return String::new() };
                let on_disk = before_damage.iter().filter(|(_, bytes)| bytes == content).map(|(path, _)| path);
                let staged = staged.iter().filter(|(_, bytes)| *bytes == content).map(|(path, _)| path);
                format!(
                    "{}: at the kill on disk as {:?}, staged as {:?}, committed: {}",
                    path.join("/"),
                    on_disk.collect::<Vec<_>>(),
                    staged.collect::<Vec<_>>(),
                    committed.contains(content)
                )
            })
            .collect();
        if let Some(keep) = std::env::var_os("OXENFS_SWEEP_KEEP") {
            let to = PathBuf::from(keep).join(seed.to_string());
            std::fs::create_dir_all(&to).unwrap();
            for (path, bytes) in &before {
                let to = to.join(path.strip_prefix(dir.path()).unwrap());
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                write_with_hole(&to, bytes);
            }
        }
        tally.lost.push(format!(
            "{told}\n{}\nlost: {lost:?}\nafter: {:?}\nrepaired: {repaired:?}\n{}\n{:?}",
            places.join("\n"),
            &workload.ops[by.saturating_sub(4)..workload.ops.len().min(by + 1)],
            difference(&shown, &models[by].shown()),
            world.report()
        ));
    } else if repaired.is_some() {
        for fate in fates.into_values() {
            *tally.files.entry(fate).or_default() += 1;
        }
    }
    tally
}

fn damage(workload: &Workload, count: usize) -> Tally {
    let runtime = crate::world::runtime(2);
    runtime.block_on(async {
        let (models, remains) = sweep::run(workload).await;
        let mut random = fastrand::Rng::with_seed(workload.seed);
        let chosen: Vec<(&Remains, u64)> =
            (0..count).map(|_| (random.choice(&remains).unwrap(), random.u64(..))).collect();
        let outcomes = futures_util::stream::iter(chosen).map(async |(remains, seed)| {
            let what = format!("seed {}, damage {seed}, {}", workload.seed, remains.point);
            let (course, begun) = (Course::default(), Instant::now());
            let tally = in_time_at(&what, &course, outcome(workload, &models, remains, seed, &course)).await;
            if begun.elapsed() > SLOW {
                crate::tell(&format!("{what} took {:?}:\n{}", begun.elapsed(), course.told()));
            }
            tally
        });
        let add = async |mut all: Tally, one| {
            all.add(one);
            all
        };
        outcomes.buffer_unordered(AT_ONCE).fold(Tally::default(), add).await
    })
}

#[test]
fn whatever_is_damaged_comes_back_whole_or_is_refused_and_salvaged() {
    let seeds = workload::seeds(&[2001, 2002]);
    let count = std::env::var("OXENFS_SWEEP_DAMAGES").map_or(FEW, |count| count.parse().unwrap());
    let mut all = Tally::default();
    for seed in &seeds {
        all.add(damage(&workload::random(*seed), count / seeds.len()));
    }
    crate::tell(&format!(
        "seeds {seeds:?}: {} whole, {} refused, {} cut behind the mark, {} with something lost in silence; of the files of \
         those that were refused and repaired: {:?}",
        all.whole,
        all.refused,
        all.cut_behind_mark,
        all.lost.len(),
        all.files,
    ));
    assert!(all.lost.is_empty(), "{}", all.lost.join("\n\n"));
    assert!(all.refused > count / 10, "{all:?}");
}
