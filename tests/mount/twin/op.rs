//! The operations, and random lists of them. An operation names paths and numbered handles, never what is behind them,
//! so that every part of a list is a list.

use std::fmt;

use super::divergences::{Capability, has};

/// Numbered handles of open files and directories.
pub const SLOTS: usize = 6;
/// Numbered mappings.
pub const MAPS: usize = 2;
/// No file grows longer by a write; truncating may go further.
const LENGTH: u64 = 100_000;

/// A path relative to the root of a world, as it is handed to the kernel.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(pub Vec<u8>);

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > 80 {
            write!(f, "\"{}\"...({} bytes)", self.0[..40].escape_ascii(), self.0.len())
        } else {
            write!(f, "\"{}\"", self.0.escape_ascii())
        }
    }
}

/// Bytes to write, told by their seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    pub seed: u64,
    pub length: usize,
}

impl Bytes {
    pub fn all(self) -> Vec<u8> {
        crate::dataset::noise(self.seed, self.length)
    }
}

/// A time for `utimensat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    Now,
    Omit,
    At(i64, i64),
}

/// Who acts: root, or a user with a group of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
}

pub const ROOT: Who = Who { uid: 0, gid: 0 };

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub who: Who,
    pub op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Open { slot: usize, path: Path, flags: i32, mode: u32 },
    Tmpfile { slot: usize, dir: Path, flags: i32, mode: u32 },
    Close { slot: usize },
    Write { slot: usize, bytes: Bytes },
    Pwrite { slot: usize, at: u64, bytes: Bytes },
    Read { slot: usize, length: usize },
    Pread { slot: usize, at: u64, length: usize },
    Seek { slot: usize, at: i64, whence: i32 },
    Truncate { path: Path, length: i64 },
    Ftruncate { slot: usize, length: i64 },
    Fsync { slot: usize, data: bool },
    Fallocate { slot: usize, mode: i32, at: i64, length: i64 },
    CopyRange { from: usize, from_at: i64, to: usize, to_at: i64, length: usize },
    Rename { from: Path, to: Path, flags: u32 },
    Link { from: Path, to: Path, flags: i32 },
    LinkSlot { slot: usize, to: Path },
    Symlink { target: Path, path: Path },
    Unlink { path: Path },
    Rmdir { path: Path },
    Mkdir { path: Path, mode: u32 },
    Mknod { path: Path, mode: u32 },
    Chmod { path: Path, mode: u32 },
    Fchmod { slot: usize, mode: u32 },
    Chown { path: Path, uid: u32, gid: u32, flags: i32 },
    Fchown { slot: usize, uid: u32, gid: u32 },
    Utimens { path: Path, times: [Time; 2], flags: i32 },
    Futimens { slot: usize, times: [Time; 2] },
    Stat { path: Path, flags: i32 },
    Access { path: Path, mode: i32 },
    Readlink { path: Path },
    List { path: Path },
    DirOpen { path: Path },
    DirNext { bytes: usize },
    DirRewind,
    DirBack,
    Map { map: usize, slot: usize, length: usize },
    MapWrite { map: usize, at: usize, bytes: Bytes },
    MapRead { map: usize, at: usize, length: usize },
    Msync { map: usize },
    Unmap { map: usize },
    Flock { slot: usize, operation: i32 },
    RangeLock { slot: usize, kind: i32, at: i64, length: i64 },
    Statfs { path: Path },
    Setxattr { path: Path, name: &'static str, bytes: Bytes, flags: i32 },
    Getxattr { path: Path, name: &'static str, room: usize },
    Listxattr { path: Path },
    Removexattr { path: Path, name: &'static str },
}

impl Op {
    /// The paths that it names.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Op::Open { path, .. }
            | Op::Tmpfile { dir: path, .. }
            | Op::Truncate { path, .. }
            | Op::Symlink { path, .. }
            | Op::Unlink { path }
            | Op::Rmdir { path }
            | Op::Mkdir { path, .. }
            | Op::Mknod { path, .. }
            | Op::Chmod { path, .. }
            | Op::Chown { path, .. }
            | Op::Utimens { path, .. }
            | Op::Stat { path, .. }
            | Op::Access { path, .. }
            | Op::Readlink { path }
            | Op::List { path }
            | Op::DirOpen { path }
            | Op::Statfs { path }
            | Op::Setxattr { path, .. }
            | Op::Getxattr { path, .. }
            | Op::Listxattr { path }
            | Op::Removexattr { path, .. }
            | Op::LinkSlot { to: path, .. } => vec![path],
            Op::Rename { from, to, .. } | Op::Link { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        }
    }

    /// The handles that it uses.
    pub fn slots(&self) -> Vec<usize> {
        match self {
            Op::Open { slot, .. }
            | Op::Tmpfile { slot, .. }
            | Op::Write { slot, .. }
            | Op::Pwrite { slot, .. }
            | Op::Read { slot, .. }
            | Op::Pread { slot, .. }
            | Op::Seek { slot, .. }
            | Op::Ftruncate { slot, .. }
            | Op::Fsync { slot, .. }
            | Op::Fallocate { slot, .. }
            | Op::LinkSlot { slot, .. }
            | Op::Fchmod { slot, .. }
            | Op::Fchown { slot, .. }
            | Op::Futimens { slot, .. } => vec![*slot],
            Op::CopyRange { from, to, .. } => vec![*from, *to],
            _ => Vec::new(),
        }
    }
}

/// Names that meet each other often, and some that are hard.
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", "\u{e9}\u{732b}".as_bytes(), b" x.tmp~"];

const ATTRIBUTES: [&str; 5] = ["user.a", "user.b", "user.\u{e9}", "trusted.a", "unknown.a"];

/// What there is to work on.
#[derive(Default)]
pub struct Known {
    pub files: Vec<Path>,
    pub dirs: Vec<Path>,
    pub open: Vec<usize>,
}

/// Makes operations that mostly mean something.
struct Random(fastrand::Rng, Known);

impl Random {
    fn one_in(&mut self, many: u32) -> bool {
        self.0.u32(..many) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.usize(..choices.len())]
    }

    fn name(&mut self) -> Vec<u8> {
        match self.0.u32(..300) {
            0 => vec![b'n'; 255],
            1 => vec![b'n'; 256],
            2 => "\u{732b}".repeat(85).into_bytes(),
            3 if has(Capability::AnyName) => b"\xff\xfe".to_vec(),
            4 if has(Capability::AnyName) => b"back\\slash".to_vec(),
            _ => self.of(&NAMES).to_vec(),
        }
    }

    /// A path where something is.
    fn found(&mut self) -> Path {
        let paths = if self.one_in(5) { &self.1.dirs } else { &self.1.files };
        if paths.is_empty() || self.0.u32(..8) == 0 {
            return self.path();
        }
        paths[self.0.usize(..paths.len())].clone()
    }

    /// A directory.
    fn dir(&mut self) -> Path {
        match self.0.u32(..12) {
            0..3 => Path(b".".to_vec()),
            3 => self.path(),
            _ if self.1.dirs.is_empty() => Path(b".".to_vec()),
            _ => self.1.dirs[self.0.usize(..self.1.dirs.len())].clone(),
        }
    }

    fn path(&mut self) -> Path {
        if !self.one_in(4) {
            let (dir, name) = (self.dir().0, self.name());
            if !dir.is_empty() {
                return Path([dir, b"/".to_vec(), name].concat());
            }
        }
        if self.one_in(300) {
            return Path(self.of(&[b"".as_slice(), b".", b"./", b"a//b"]).to_vec());
        }
        let depth = self.of(&[1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
        let mut path = self.name();
        for _ in 1..depth {
            // Never above the root: what is before `..` is below it.
            path.extend_from_slice(self.of(&[
                b"/".as_slice(),
                b"/",
                b"/",
                b"/",
                b"/",
                b"/",
                b"/",
                b"/",
                b"/./",
                b"/../",
            ]));
            path.extend_from_slice(&self.name());
        }
        if self.one_in(40) {
            path.push(b'/');
        }
        Path(path)
    }

    /// Downwards only, so that no path leads out of the world.
    fn target(&mut self) -> Path {
        match self.0.u32(..60) {
            0 => Path(Vec::new()),
            1 => Path(vec![b't'; 4095]),
            2 => Path(vec![b't'; 4096]),
            3 => Path(vec![b't'; 1000]),
            _ => {
                let mut path = self.of(&NAMES).to_vec();
                if self.one_in(2) {
                    path.push(b'/');
                    path.extend_from_slice(self.of(&NAMES));
                }
                Path(path)
            }
        }
    }

    fn slot(&mut self) -> usize {
        match self.1.open.len() {
            open if open > 0 && !self.one_in(10) => self.1.open[self.0.usize(..open)],
            _ => self.0.usize(..SLOTS),
        }
    }

    fn map(&mut self) -> usize {
        self.0.usize(..MAPS)
    }

    fn mode(&mut self) -> u32 {
        let mode = match self.0.u32(..10) {
            0..4 => self.of(&[0o644, 0o755, 0o600, 0o777, 0o700]),
            4..6 => self.of(&[0o4755, 0o2755, 0o2644, 0o1777, 0o6755, 0o2775]),
            6 => 0,
            _ => self.0.u32(..0o10000),
        };
        if has(Capability::SetIds) { mode } else { mode & 0o1777 }
    }

    fn at(&mut self) -> u64 {
        match self.0.u32(..10) {
            0..3 => 0,
            3..6 => 4096 * self.0.u64(..LENGTH / 4096),
            _ => self.0.u64(..LENGTH),
        }
    }

    fn bytes(&mut self) -> Bytes {
        let length = match self.0.u32(..10) {
            0 => 0,
            1 => 4096 * self.0.usize(1..5),
            2..5 => self.0.usize(..200),
            _ => self.0.usize(..9000),
        };
        Bytes { seed: self.0.u64(..1 << 32), length }
    }

    fn length(&mut self) -> i64 {
        match self.0.u32(..40) {
            0 => -1,
            // More than the local filesystem can.
            1 => 1 << 60,
            2..12 => 0,
            12..15 => 3 * LENGTH as i64,
            _ => self.at() as i64,
        }
    }

    fn time(&mut self) -> Time {
        match self.0.u32(..10) {
            0 => Time::Omit,
            1 => Time::Now,
            2 => Time::At(-2, 500_000_000),
            3 => Time::At(-2_000_000_000, 1),
            4 => Time::At(0, 0),
            5 => Time::At(4_102_444_800, 999_999_999),
            6 => Time::At(1, self.of(&[1_000_000_000, -1])),
            _ => Time::At(self.0.i64(1..1_600_000_000), self.0.i64(..1_000_000_000)),
        }
    }

    fn times(&mut self) -> [Time; 2] {
        [self.time(), self.time()]
    }

    fn follow(&mut self) -> i32 {
        if self.one_in(2) { libc::AT_SYMLINK_NOFOLLOW } else { 0 }
    }

    /// Owner and group; one of the two may stay.
    fn owners(&mut self) -> (u32, u32) {
        let (stays, owner) = (u32::MAX, self.of(&[0, 1000, 1001, 1002]));
        match self.0.u32(..3) {
            0 => (owner, stays),
            1 => (stays, owner),
            _ => (owner, self.of(&[0, 1000, 1001, 1002])),
        }
    }

    fn open_flags(&mut self) -> i32 {
        // A FIFO would have to wait for its other end.
        let mut flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        flags |= self.of(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
        let chances = [
            (libc::O_CREAT, 2),
            (libc::O_EXCL, 5),
            (libc::O_TRUNC, 5),
            (libc::O_APPEND, 6),
            (libc::O_DIRECTORY, 15),
            (libc::O_NOFOLLOW, 10),
            (libc::O_NOATIME, 20),
            (libc::O_DSYNC, 100),
        ];
        for (flag, one_in) in chances {
            if self.one_in(one_in) {
                flags |= flag;
            }
        }
        // O_EXCL without O_CREAT is undefined.
        if flags & libc::O_CREAT == 0 {
            flags &= !libc::O_EXCL;
        }
        flags
    }

    fn who(&mut self) -> Who {
        match self.0.u32(..10) {
            0..8 => ROOT,
            8 => Who { uid: 1000, gid: 1000 },
            _ => Who { uid: 1001, gid: self.of(&[1000, 1001]) },
        }
    }

    fn op(&mut self) -> Op {
        loop {
            if let Some(op) = self.try_op() {
                return op;
            }
        }
    }

    /// None where the choice fell on what the mount cannot do yet.
    fn try_op(&mut self) -> Option<Op> {
        let (slot, new, path) = (self.slot(), self.path(), self.found());
        Some(match self.0.u32(..1000) {
            0..160 => {
                let flags = self.open_flags();
                let path = if flags & libc::O_CREAT != 0 && self.one_in(2) { new } else { path };
                Op::Open { slot: self.0.usize(..SLOTS), path, flags, mode: self.mode() }
            }
            160..200 => Op::Close { slot },
            200..260 => Op::Pwrite { slot, at: self.at(), bytes: self.bytes() },
            260..290 => Op::Write { slot, bytes: self.bytes() },
            290..330 => Op::Pread { slot, at: self.at(), length: self.0.usize(..20_000) },
            330..350 => Op::Read { slot, length: self.0.usize(..20_000) },
            350..360 => Op::Seek {
                slot,
                at: self.length().min(LENGTH as i64),
                whence: self.of(&[libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END]),
            },
            360..380 => Op::Truncate { path, length: self.length() },
            380..410 => Op::Ftruncate { slot, length: self.length() },
            410..415 => Op::Fsync { slot, data: self.one_in(2) },
            415..505 => {
                let flags = self.of(&[0, 0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
                let odd = self.of(&[flags, flags, flags, flags, flags, flags, flags, flags, flags, 3]);
                Op::Rename { from: path, to: if self.one_in(2) { new } else { self.found() }, flags: odd }
            }
            505..540 => Op::Link { from: path, to: new, flags: self.of(&[0, 0, libc::AT_SYMLINK_FOLLOW]) },
            540..545 => Op::LinkSlot { slot, to: new },
            545..575 => Op::Symlink { target: self.target(), path: new },
            575..625 => Op::Unlink { path },
            625..645 => Op::Rmdir { path: self.dir() },
            645..695 => Op::Mkdir { path: new, mode: self.mode() },
            695..710 => {
                Op::Mknod { path: new, mode: self.mode() | self.of(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, 0]) }
            }
            710..740 => Op::Chmod { path, mode: self.mode() },
            740..750 => Op::Fchmod { slot, mode: self.mode() },
            750..770 => {
                let (uid, gid) = self.owners();
                Op::Chown { path, uid, gid, flags: self.follow() }
            }
            770..775 => {
                let (uid, gid) = self.owners();
                Op::Fchown { slot, uid, gid }
            }
            775..795 => Op::Utimens { path, times: self.times(), flags: self.follow() },
            795..805 => Op::Futimens { slot, times: self.times() },
            805..820 => Op::Stat { path, flags: self.follow() },
            820..825 => Op::Access { path, mode: self.0.i32(..8) },
            825..835 => Op::Readlink { path },
            835..850 => Op::List { path: self.dir() },
            850..855 => Op::DirOpen { path: self.dir() },
            855..872 => Op::DirNext { bytes: self.of(&[300, 300, 400, 4000]) },
            872..874 => Op::DirRewind,
            874..876 => Op::DirBack,
            876..886 => Op::Map { map: self.map(), slot, length: self.0.usize(1..60_000) },
            886..900 => Op::MapWrite { map: self.map(), at: self.0.usize(..60_000), bytes: self.bytes() },
            900..910 => Op::MapRead { map: self.map(), at: self.0.usize(..60_000), length: self.0.usize(..20_000) },
            910..912 => Op::Msync { map: self.map() },
            912..916 => Op::Unmap { map: self.map() },
            916..921 => {
                let operation = self.of(&[libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN]);
                Op::Flock { slot, operation: operation | libc::LOCK_NB }
            }
            921..926 => {
                let kind = self.of(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK]);
                Op::RangeLock { slot, kind, at: self.0.i64(..100), length: self.0.i64(..100) }
            }
            926..928 => Op::Statfs { path },
            928..938 if has(Capability::Fallocate) => {
                let mode = self.of(&[0, 1, 3, 3, 0x10, 0x11, 2, 0x40]);
                Op::Fallocate { slot, mode, at: self.at() as i64, length: self.length().min(LENGTH as i64) }
            }
            938..945 if has(Capability::CopyRange) => {
                let (from_at, to_at) = (self.at() as i64, self.at() as i64);
                Op::CopyRange { from: slot, from_at, to: self.slot(), to_at, length: self.0.usize(..30_000) }
            }
            945..950 if has(Capability::SeekHole) => {
                Op::Seek { slot, at: self.at() as i64, whence: self.of(&[libc::SEEK_DATA, libc::SEEK_HOLE]) }
            }
            950..965 if has(Capability::Xattrs) => {
                let bytes = Bytes { seed: self.0.u64(..1 << 32), length: self.0.usize(..200) };
                Op::Setxattr { path, name: self.of(&ATTRIBUTES), bytes, flags: self.of(&[0, 0, 1, 2]) }
            }
            965..975 if has(Capability::Xattrs) => {
                Op::Getxattr { path, name: self.of(&ATTRIBUTES), room: self.of(&[0, 10, 300]) }
            }
            975..985 if has(Capability::Xattrs) => Op::Listxattr { path },
            985..992 if has(Capability::Xattrs) => Op::Removexattr { path, name: self.of(&ATTRIBUTES) },
            992..1000 if has(Capability::Tmpfile) => {
                Op::Tmpfile { slot, dir: path, flags: self.of(&[libc::O_RDWR, libc::O_WRONLY]), mode: self.mode() }
            }
            _ => return None,
        })
    }
}

/// Makes steps one after the other; the same for the same seed and the same answers.
pub struct Maker {
    random: Random,
    users: bool,
}

impl Maker {
    /// Users other than root act only where `users` says so.
    pub fn new(seed: u64, users: bool) -> Self {
        Self { random: Random(fastrand::Rng::with_seed(seed), Known::default()), users }
    }

    /// The next step, on what there is.
    pub fn next(&mut self, known: Known) -> Step {
        self.random.1 = known;
        let who = self.random.who();
        Step { who: if self.users { who } else { ROOT }, op: self.random.op() }
    }
}
