//! Compares what two worlds show.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::divergences::explained;
use super::op::{MAPS, Op, Path, SLOTS, Step, Time};
use super::world::{Outcome, SKIPPED, World};

/// Two clocks read one after the other, with an upload in between perhaps.
const CLOCKS_APART_SECS: i64 = 120;

/// Blocks of `stat` by which files with the same bytes may differ: a local filesystem counts those with attributes
/// and with lists of blocks too.
const BLOCKS_APART: i64 = 16;

/// A name for what a time was seen of.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Seen {
    Path(Vec<u8>),
    Slot(usize),
}

/// What one inode showed in both worlds.
#[derive(Clone, Copy)]
struct Times {
    ino: (u64, u64),
    mtime: ((i64, i64), (i64, i64)),
    ctime: ((i64, i64), (i64, i64)),
}

/// The plain directory, the mount, and what was seen of them.
pub struct Twins {
    pub plain: World,
    pub mount: World,
    times: HashMap<Seen, Times>,
    /// Files of the plain directory whose times the mount cannot know: written through mappings, or written FIFOs.
    pub untimed: HashSet<u64>,
    /// Files of the plain directory that ranges were copied to or allocated in: a hole of the one may be zeros, or room
    /// for what never was written, in the other.
    pub copied: HashSet<u64>,
    /// Names that the directory under way of being read had all the time, and ever, since the reading began.
    always: BTreeSet<Vec<u8>>,
    ever: BTreeSet<Vec<u8>>,
    /// Whether the plain directory's clock tells two changes in a row apart.
    fine_clock: bool,
    /// How many operations succeeded.
    pub succeeded: u64,
    /// How often each divergence was met.
    pub met: HashMap<&'static str, u64>,
}

/// What is at a path, or nothing.
struct Shown {
    what: String,
    plain: libc::stat,
    mount: libc::stat,
}

impl Twins {
    pub fn new(plain: World, mount: World, fine_clock: bool) -> Self {
        Self {
            plain,
            mount,
            times: HashMap::new(),
            untimed: HashSet::new(),
            copied: HashSet::new(),
            always: BTreeSet::new(),
            ever: BTreeSet::new(),
            fine_clock,
            succeeded: 0,
            met: HashMap::new(),
        }
    }

    /// Does one step in both worlds, and compares answers and what was touched. The error says what differs.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        let (plain, mount) = (self.plain.perform(step), self.mount.perform(step));
        if plain != mount {
            match explained(step, &plain, &mount) {
                Some(divergence) => *self.met.entry(divergence.name).or_default() += 1,
                None => return Err(format!("the plain directory answers {plain:?}, the mount {mount:?}")),
            }
        }
        self.succeeded += u64::from(mount.result.is_ok());
        if let Op::MapWrite { map, .. } = step.op
            && plain.result.is_ok()
            && let Some(stat) = self.plain.stat_map(map)
        {
            self.untimed.insert(stat.st_ino);
        }
        if let Op::CopyRange { to, .. } | Op::Fallocate { slot: to, .. } = step.op
            && let Some(stat) = self.plain.stat_slot(to)
        {
            self.copied.insert(stat.st_ino);
        }
        if let Op::Write { slot, .. } = step.op
            && let Some(stat) = self.plain.stat_slot(slot)
            && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
        {
            self.untimed.insert(stat.st_ino);
        }
        self.compare_touched(step, &plain)?;
        self.follow_stream(step, &plain)
    }

    fn compare_touched(&mut self, step: &Step, plain: &Outcome) -> Result<(), String> {
        let mut paths: Vec<Vec<u8>> = Vec::new();
        for Path(path) in step.op.paths() {
            let path = path.strip_suffix(b"/").unwrap_or(path);
            paths.push(path.to_vec());
            let above = path.iter().rposition(|byte| *byte == b'/').map_or(b".".as_slice(), |at| &path[..at]);
            paths.push(above.to_vec());
        }
        paths.dedup();
        for path in paths {
            let shown = match (self.plain.stat(&path), self.mount.stat(&path)) {
                (None, None) => {
                    self.times.remove(&Seen::Path(path));
                    continue;
                }
                (plain, Some(mount)) if plain.is_none() => {
                    return Err(format!("{:?} is on the mount alone: mode {:o}", Path(path), mount.st_mode));
                }
                (Some(plain), None) => {
                    return Err(format!("{:?} is in the plain directory alone: mode {:o}", Path(path), plain.st_mode));
                }
                (Some(plain), Some(mount)) => Shown { what: format!("{:?}", Path(path.clone())), plain, mount },
                (None, Some(_)) => continue,
            };
            shown.compare(self)?;
            self.compare_changes(Seen::Path(path), &shown)?;
        }
        for slot in step.op.slots() {
            if let (Some(plain), Some(mount)) = (self.plain.stat_slot(slot), self.mount.stat_slot(slot)) {
                let shown = Shown { what: format!("handle {slot}"), plain, mount };
                shown.compare(self)?;
                self.compare_changes(Seen::Slot(slot), &shown)?;
            } else {
                self.times.remove(&Seen::Slot(slot));
            }
        }
        self.compare_set_times(&step.op, plain)
    }

    /// A time that moved in one world has to have moved in the other.
    fn compare_changes(&mut self, seen: Seen, shown: &Shown) -> Result<(), String> {
        let (plain, mount) = (&shown.plain, &shown.mount);
        let now = Times {
            ino: (plain.st_ino, mount.st_ino),
            mtime: ((plain.st_mtime, plain.st_mtime_nsec), (mount.st_mtime, mount.st_mtime_nsec)),
            ctime: ((plain.st_ctime, plain.st_ctime_nsec), (mount.st_ctime, mount.st_ctime_nsec)),
        };
        let Some(before) = self.times.insert(seen, now) else { return Ok(()) };
        if before.ino != now.ino || self.untimed.contains(&plain.st_ino) {
            return Ok(());
        }
        for (name, before, now) in [("mtime", before.mtime, now.mtime), ("ctime", before.ctime, now.ctime)] {
            let (plain, mount) = (before.0 != now.0, before.1 != now.1);
            if plain && !mount {
                return Err(format!("the {name} of {} moved, and did not on the mount", shown.what));
            }
            if mount && !plain && self.fine_clock {
                return Err(format!("the {name} of {} moved on the mount alone", shown.what));
            }
        }
        Ok(())
    }

    /// Times that were just set are there to the nanosecond.
    fn compare_set_times(&self, op: &Op, plain: &Outcome) -> Result<(), String> {
        let (times, stats, what) = match op {
            _ if plain.result.is_err() => return Ok(()),
            Op::Utimens { path, times, flags } if *flags == libc::AT_SYMLINK_NOFOLLOW => {
                (times, (self.plain.stat(&path.0), self.mount.stat(&path.0)), "path")
            }
            Op::Futimens { slot, times } => {
                (times, (self.plain.stat_slot(*slot), self.mount.stat_slot(*slot)), "handle")
            }
            _ => return Ok(()),
        };
        let (Some(plain), Some(mount)) = stats else { return Ok(()) };
        // A way that leads through what was changed reads it, and moves the access time again.
        let straight = !op.paths().iter().any(|path| path.0.windows(2).any(|two| two == b".."));
        if matches!(times[0], Time::At(..))
            && straight
            && (plain.st_atime, plain.st_atime_nsec) != (mount.st_atime, mount.st_atime_nsec)
        {
            return Err(format!("the atime just set by {what} is {}.{:09}", mount.st_atime, mount.st_atime_nsec));
        }
        if matches!(times[1], Time::At(..))
            && (plain.st_mtime, plain.st_mtime_nsec) != (mount.st_mtime, mount.st_mtime_nsec)
        {
            return Err(format!("the mtime just set by {what} is {}.{:09}", mount.st_mtime, mount.st_mtime_nsec));
        }
        Ok(())
    }

    /// A directory that is read while it changes: what was there all the time comes once, what never was never.
    fn follow_stream(&mut self, step: &Step, plain: &Outcome) -> Result<(), String> {
        let Some(names) = self.plain.stream_names() else { return Ok(()) };
        let names: BTreeSet<_> = names.into_iter().collect();
        match step.op {
            Op::DirOpen { .. } | Op::DirRewind if plain.result.is_ok() => {
                (self.always, self.ever) = (names.clone(), names);
                return Ok(());
            }
            _ => {}
        }
        self.always.retain(|name| names.contains(name));
        self.ever.extend(names.iter().cloned());
        if !matches!(step.op, Op::DirNext { .. }) || plain.result == Err(SKIPPED) {
            return Ok(());
        }
        for (world, what) in [(&self.plain, "the plain directory"), (&self.mount, "the mount")] {
            let Some(stream) = &world.stream else { continue };
            let seen: Vec<_> = stream.seen.iter().filter(|name| *name != b"." && *name != b"..").collect();
            for name in &seen {
                if !self.ever.contains(*name) {
                    return Err(format!("{what} lists {:?}, which never was", Path(name.to_vec())));
                }
                let times = seen.iter().filter(|other| *other == name).count();
                if times > 1 && self.always.contains(*name) {
                    return Err(format!("{what} lists {:?} {times} times", Path(name.to_vec())));
                }
            }
            if stream.ended
                && let Some(missed) = self.always.iter().find(|name| !seen.contains(name))
            {
                return Err(format!("{what} does not list {:?}, which was there all the time", Path(missed.clone())));
            }
        }
        Ok(())
    }

    /// Compares everything below the roots, and everything that is open.
    pub fn compare_all(&mut self) -> Result<(), String> {
        let mut numbers: HashMap<u64, u64> = HashMap::new();
        let mut back: HashMap<u64, u64> = HashMap::new();
        let mut dirs = vec![Vec::new()];
        while let Some(dir) = dirs.pop() {
            let (plain, mount) = (self.plain.names(&dir), self.mount.names(&dir));
            if plain != mount {
                return Err(format!("{:?} holds {}, on the mount {}", Path(dir), named(&plain), named(&mount)));
            }
            for name in plain.unwrap_or_default() {
                let path = if dir.is_empty() { name } else { [dir.as_slice(), b"/", &name].concat() };
                let (Some(plain), Some(mount)) = (self.plain.stat(&path), self.mount.stat(&path)) else {
                    return Err(format!("{:?} is listed, and absent", Path(path)));
                };
                let shown = Shown { what: format!("{:?}", Path(path.clone())), plain, mount };
                shown.compare(self)?;
                let (a, b) = (plain.st_ino, mount.st_ino);
                if *numbers.entry(a).or_insert(b) != b || *back.entry(b).or_insert(a) != a {
                    return Err(format!("{} is a link to another file than in the plain directory", shown.what));
                }
                match plain.st_mode & libc::S_IFMT {
                    libc::S_IFDIR => dirs.push(path),
                    libc::S_IFREG => {
                        let (a, b) = (self.plain.content(&path), self.mount.content(&path));
                        let (a, b) = (a.map_err(|e| e.to_string())?, b.map_err(|e| format!("{}: {e}", shown.what))?);
                        if a != b {
                            let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
                            return Err(format!("the content of {} differs from byte {at} on", shown.what));
                        }
                    }
                    libc::S_IFLNK => {
                        let (a, b) = (self.plain.target(&path), self.mount.target(&path));
                        if a != b {
                            return Err(format!("{} leads to {a:?}, on the mount to {b:?}", shown.what));
                        }
                    }
                    _ => {}
                }
            }
        }
        for slot in 0..SLOTS {
            if let (Some(plain), Some(mount)) = (self.plain.stat_slot(slot), self.mount.stat_slot(slot)) {
                Shown { what: format!("handle {slot}"), plain, mount }.compare(self)?;
            }
        }
        for map in 0..MAPS {
            if let (Some(plain), Some(mount)) = (self.plain.stat_map(map), self.mount.stat_map(map)) {
                Shown { what: format!("mapping {map}"), plain, mount }.compare(self)?;
            }
        }
        Ok(())
    }
}

fn named(names: &Result<Vec<Vec<u8>>, i32>) -> String {
    match names {
        Ok(names) => format!("{:?}", names.iter().map(|name| Path(name.clone())).collect::<Vec<_>>()),
        Err(errno) => std::io::Error::from_raw_os_error(*errno).to_string(),
    }
}

impl Shown {
    /// Attributes that have to be equal.
    fn compare(&self, twins: &Twins) -> Result<(), String> {
        let (a, b) = (&self.plain, &self.mount);
        let differs = |name: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
            Err(format!("{}: {name} {a}, on the mount {b}", self.what))
        };
        if a.st_mode != b.st_mode {
            return Err(format!("{}: mode {:o}, on the mount {:o}", self.what, a.st_mode, b.st_mode));
        }
        if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid) {
            return Err(format!(
                "{}: owner {}:{}, on the mount {}:{}",
                self.what, a.st_uid, a.st_gid, b.st_uid, b.st_gid
            ));
        }
        if a.st_nlink != b.st_nlink {
            return differs("links", &a.st_nlink, &b.st_nlink);
        }
        let dir = a.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if !dir && a.st_size != b.st_size {
            return differs("size", &a.st_size, &b.st_size);
        }
        if a.st_rdev != b.st_rdev {
            return differs("device", &a.st_rdev, &b.st_rdev);
        }
        if twins.untimed.contains(&a.st_ino) {
            return Ok(());
        }
        let full = (a.st_size + 4095) / 4096 * 8;
        let least = if twins.copied.contains(&a.st_ino) { 0 } else { a.st_blocks.min(full) - BLOCKS_APART };
        let most = a.st_blocks.max(full) + BLOCKS_APART;
        if a.st_mode & libc::S_IFMT == libc::S_IFREG && !(least..=most).contains(&b.st_blocks) {
            return differs("blocks", &a.st_blocks, &b.st_blocks);
        }
        let (set, now) = ((a.st_mtime, a.st_mtime_nsec), (b.st_mtime, b.st_mtime_nsec));
        // A time far from all clocks was set, and stays to the nanosecond.
        if (a.st_mtime - a.st_ctime).abs() > 86_400 && set != now {
            return Err(format!("{}: mtime {}.{:09}, on the mount {}.{:09}", self.what, set.0, set.1, now.0, now.1));
        }
        if (a.st_mtime - b.st_mtime).abs() > CLOCKS_APART_SECS {
            return differs("mtime", &a.st_mtime, &b.st_mtime);
        }
        if (a.st_ctime - b.st_ctime).abs() > CLOCKS_APART_SECS {
            return differs("ctime", &a.st_ctime, &b.st_ctime);
        }
        Ok(())
    }
}
