//! A directory in which operations are done: by the kernel's calls as they are, so that both worlds get the same ones.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path as StdPath;

use super::op::{Bytes, Known, MAPS, Op, Path, ROOT, SLOTS, Step, Time, Who};

/// What an operation gave: a number or an error number, and bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    pub result: Result<i64, i32>,
    pub data: Vec<u8>,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.result {
            Ok(number) => write!(f, "{number}")?,
            Err(SKIPPED) => write!(f, "skipped")?,
            Err(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(errno))?,
        }
        match self.data.len() {
            0 => Ok(()),
            1..300 => write!(f, ", \"{}\"", self.data.escape_ascii()),
            length => write!(f, ", {length} bytes"),
        }
    }
}

/// The error number of what was not tried: there is no such handle.
pub const SKIPPED: i32 = 9999;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: u8,
    pub ino: u64,
}

/// A mapping, and the file by a handle that does not count as open, to ask for its size.
struct Map {
    address: *mut libc::c_void,
    length: usize,
    path_only: OwnedFd,
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing else points into it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// A directory that is read bit by bit.
pub struct Stream {
    pub dir: OwnedFd,
    /// Where the next entries are, as the last entry said.
    at: i64,
    /// A place that can be gone back to, and what had been seen there.
    mark: Option<(i64, Vec<Vec<u8>>)>,
    pub seen: Vec<Vec<u8>>,
    pub ended: bool,
}

pub struct World {
    root: OwnedFd,
    slots: [Option<OwnedFd>; SLOTS],
    maps: [Option<Map>; MAPS],
    pub stream: Option<Stream>,
    /// Bytes go between memory and mappings through a file without a name: touching a page behind the end of its file
    /// gives an error number then, not a signal.
    between: OwnedFd,
}

fn answer(number: impl Into<i64>) -> Result<i64, i32> {
    match number.into() {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        number => Ok(number),
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.0.clone()).unwrap()
}

fn timespecs(times: &[Time; 2]) -> [libc::timespec; 2] {
    times.map(|time| match time {
        Time::Now => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Time::Omit => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Time::At(tv_sec, tv_nsec) => libc::timespec { tv_sec, tv_nsec },
    })
}

/// Makes this thread act as `who` on filesystems.
fn act_as(who: Who) {
    // SAFETY: these change numbers of the thread alone. The group first: only root may change it.
    unsafe {
        if who == ROOT {
            libc::setfsuid(who.uid);
            libc::setfsgid(who.gid);
        } else {
            libc::setfsgid(who.gid);
            libc::setfsuid(who.uid);
        }
    }
}

/// Takes this thread out of root's other groups, which would let every user in.
pub fn leave_groups() {
    // SAFETY: the bare system call, which unlike the C library's function is about this thread alone.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
    assert_eq!(done, 0, "setgroups: {}", std::io::Error::last_os_error());
}

impl World {
    /// A world below `root`, which is a directory.
    pub fn new(root: &StdPath) -> std::io::Result<Self> {
        let root = std::fs::File::open(root)?.into();
        // SAFETY: the name is a C string, and the descriptor is new.
        let between = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"twin".as_ptr(), libc::MFD_CLOEXEC)) };
        Ok(Self { root, slots: Default::default(), maps: Default::default(), stream: None, between })
    }

    /// Does one operation.
    pub fn perform(&mut self, step: &Step) -> Outcome {
        // Nothing may leave the world: these are done as root.
        let absolute = |path: &Path| path.0.starts_with(b"/");
        assert!(!step.op.paths().into_iter().any(absolute), "{step:?}");
        assert!(!matches!(&step.op, Op::Symlink { target, .. } if absolute(target)), "{step:?}");
        act_as(step.who);
        let mut data = Vec::new();
        let result = self.call(&step.op, &mut data);
        act_as(ROOT);
        Outcome { result, data }
    }

    fn fd(&self, slot: usize) -> Result<RawFd, i32> {
        self.slots[slot].as_ref().map(AsRawFd::as_raw_fd).ok_or(SKIPPED)
    }

    fn keep(&mut self, slot: usize, opened: Result<i64, i32>) -> Result<i64, i32> {
        let fd = RawFd::try_from(opened?).unwrap();
        drop(self.unlocked(slot));
        // SAFETY: the kernel just made this descriptor.
        self.slots[slot] = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(0)
    }

    /// Takes a descriptor to be closed, without the lock that it may have: a mapping would keep that, or not.
    fn unlocked(&mut self, slot: usize) -> Option<OwnedFd> {
        let fd = self.slots[slot].take()?;
        // SAFETY: the descriptor is open.
        unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) };
        Some(fd)
    }

    fn call(&mut self, op: &Op, data: &mut Vec<u8>) -> Result<i64, i32> {
        let root = self.root.as_raw_fd();
        // SAFETY, for all calls here: paths are C strings that live until the call returns, buffers are as long as
        // said, and descriptors are open.
        unsafe {
            match op {
                Op::Open { slot, path, flags, mode } => {
                    let opened = answer(libc::openat(root, c(path).as_ptr(), *flags, *mode));
                    self.keep(*slot, opened)
                }
                Op::Tmpfile { slot, dir, flags, mode } => {
                    let flags = flags | libc::O_TMPFILE | libc::O_CLOEXEC;
                    let opened = answer(libc::openat(root, c(dir).as_ptr(), flags, *mode));
                    self.keep(*slot, opened)
                }
                Op::Close { slot } => match self.unlocked(*slot) {
                    Some(fd) => answer(libc::close(std::os::fd::IntoRawFd::into_raw_fd(fd))),
                    None => Err(SKIPPED),
                },
                Op::Write { slot, bytes } => {
                    let bytes = bytes.all();
                    answer(libc::write(self.fd(*slot)?, bytes.as_ptr().cast(), bytes.len()) as i64)
                }
                Op::Pwrite { slot, at, bytes } => {
                    let bytes = bytes.all();
                    answer(libc::pwrite(self.fd(*slot)?, bytes.as_ptr().cast(), bytes.len(), *at as i64) as i64)
                }
                Op::Read { slot, length } => {
                    let mut buffer = vec![0; *length];
                    let read = answer(libc::read(self.fd(*slot)?, buffer.as_mut_ptr().cast(), *length) as i64)?;
                    buffer.truncate(read as usize);
                    *data = buffer;
                    Ok(read)
                }
                Op::Pread { slot, at, length } => {
                    let mut buffer = vec![0; *length];
                    let fd = self.fd(*slot)?;
                    let read = answer(libc::pread(fd, buffer.as_mut_ptr().cast(), *length, *at as i64) as i64)?;
                    buffer.truncate(read as usize);
                    *data = buffer;
                    Ok(read)
                }
                Op::Seek { slot, at, whence } => {
                    let fd = self.fd(*slot)?;
                    if self.stat_slot(*slot).is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR) {
                        return Err(SKIPPED);
                    }
                    if !matches!(*whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
                        return answer(libc::lseek(fd, *at, *whence));
                    }
                    // What is a hole may be told as data: where it leads is not compared, and nothing goes on from there.
                    let here = libc::lseek(fd, 0, libc::SEEK_CUR);
                    let found = answer(libc::lseek(fd, *at, *whence)).map(|_| 0);
                    libc::lseek(fd, here, libc::SEEK_SET);
                    found
                }
                Op::Truncate { path, length } => {
                    // truncate(2) has no form that starts at a directory.
                    let path = [format!("/proc/self/fd/{root}/").as_bytes(), &path.0].concat();
                    answer(libc::truncate(c(&Path(path)).as_ptr(), *length))
                }
                Op::Ftruncate { slot, length } => answer(libc::ftruncate(self.fd(*slot)?, *length)),
                Op::Fsync { slot, data: true } => answer(libc::fdatasync(self.fd(*slot)?)),
                Op::Fsync { slot, data: false } => answer(libc::fsync(self.fd(*slot)?)),
                Op::Fallocate { slot, mode, at, length } => {
                    answer(libc::fallocate(self.fd(*slot)?, *mode, *at, *length))
                }
                Op::CopyRange { from, from_at, to, to_at, length } => {
                    let (mut from_at, mut to_at) = (*from_at, *to_at);
                    let (from, to) = (self.fd(*from)?, self.fd(*to)?);
                    answer(libc::copy_file_range(from, &mut from_at, to, &mut to_at, *length, 0) as i64)
                }
                Op::Rename { from, to, flags } => {
                    answer(libc::renameat2(root, c(from).as_ptr(), root, c(to).as_ptr(), *flags))
                }
                Op::Link { from, to, flags } => {
                    answer(libc::linkat(root, c(from).as_ptr(), root, c(to).as_ptr(), *flags))
                }
                Op::LinkSlot { slot, to } => {
                    let from = CString::new(format!("/proc/self/fd/{}", self.fd(*slot)?)).unwrap();
                    answer(libc::linkat(libc::AT_FDCWD, from.as_ptr(), root, c(to).as_ptr(), libc::AT_SYMLINK_FOLLOW))
                }
                Op::Symlink { target, path } => answer(libc::symlinkat(c(target).as_ptr(), root, c(path).as_ptr())),
                Op::Unlink { path } => answer(libc::unlinkat(root, c(path).as_ptr(), 0)),
                Op::Rmdir { path } => answer(libc::unlinkat(root, c(path).as_ptr(), libc::AT_REMOVEDIR)),
                Op::Mkdir { path, mode } => answer(libc::mkdirat(root, c(path).as_ptr(), *mode)),
                Op::Mknod { path, mode } => answer(libc::mknodat(root, c(path).as_ptr(), *mode, 0)),
                Op::Chmod { path, mode } => answer(libc::fchmodat(root, c(path).as_ptr(), *mode, 0)),
                Op::Fchmod { slot, mode } => answer(libc::fchmod(self.fd(*slot)?, *mode)),
                Op::Chown { path, uid, gid, flags } => {
                    answer(libc::fchownat(root, c(path).as_ptr(), *uid, *gid, *flags))
                }
                Op::Fchown { slot, uid, gid } => answer(libc::fchown(self.fd(*slot)?, *uid, *gid)),
                Op::Utimens { path, times, flags } => {
                    answer(libc::utimensat(root, c(path).as_ptr(), timespecs(times).as_ptr(), *flags))
                }
                Op::Futimens { slot, times } => answer(libc::futimens(self.fd(*slot)?, timespecs(times).as_ptr())),
                Op::Stat { path, flags } => {
                    let mut stat = std::mem::zeroed::<libc::stat>();
                    answer(libc::fstatat(root, c(path).as_ptr(), &mut stat, *flags))
                }
                Op::Access { path, mode } => {
                    // With the identity of filesystem access, which is what this thread changes.
                    answer(libc::syscall(libc::SYS_faccessat2, root, c(path).as_ptr(), *mode, libc::AT_EACCESS))
                }
                Op::Readlink { path } => {
                    let mut buffer = vec![0_u8; 5000];
                    let path = c(path);
                    let length =
                        answer(libc::readlinkat(root, path.as_ptr(), buffer.as_mut_ptr().cast(), 5000) as i64)?;
                    buffer.truncate(length as usize);
                    *data = buffer;
                    Ok(length)
                }
                Op::List { path } => {
                    let dir = self.open_dir(path)?;
                    let mut entries = entries(&dir)?;
                    entries.sort();
                    for entry in &entries {
                        data.extend_from_slice(&entry.name);
                        data.extend_from_slice(&[0, entry.kind]);
                        // What the listing says of an entry is what the entry is.
                        let Some(stat) = stat_at(dir.as_raw_fd(), &entry.name, libc::AT_SYMLINK_NOFOLLOW) else {
                            data.extend_from_slice(b"no such entry");
                            continue;
                        };
                        if stat.st_ino != entry.ino && entry.name != b".." {
                            data.extend_from_slice(b"another number");
                        }
                    }
                    Ok(entries.len() as i64)
                }
                Op::DirOpen { path } => {
                    self.stream = None;
                    let dir = self.open_dir(path)?;
                    self.stream = Some(Stream { dir, at: 0, mark: None, seen: Vec::new(), ended: false });
                    Ok(0)
                }
                Op::DirNext { bytes } => {
                    let stream = self.stream.as_mut().ok_or(SKIPPED)?;
                    if stream.ended {
                        return Ok(0);
                    }
                    let (read, at) = some_entries(&stream.dir, *bytes)?;
                    stream.ended = read.is_empty();
                    stream.at = at.unwrap_or(stream.at);
                    stream.seen.extend(read.into_iter().map(|entry| entry.name));
                    if stream.mark.is_none() && !stream.ended {
                        stream.mark = Some((stream.at, stream.seen.clone()));
                    }
                    Ok(0) // How many fit, and in which order they come, is each filesystem's own affair.
                }
                Op::DirRewind => {
                    let stream = self.stream.as_mut().ok_or(SKIPPED)?;
                    (stream.seen, stream.mark, stream.ended, stream.at) = (Vec::new(), None, false, 0);
                    answer(libc::lseek(stream.dir.as_raw_fd(), 0, libc::SEEK_SET))
                }
                Op::DirBack => {
                    let stream = self.stream.as_mut().ok_or(SKIPPED)?;
                    let Some((at, seen)) = stream.mark.clone() else { return Ok(0) };
                    (stream.seen, stream.ended, stream.at) = (seen, false, at);
                    // ext4 refuses it in a directory that was removed, where there is nothing to see anyway.
                    libc::lseek(stream.dir.as_raw_fd(), at, libc::SEEK_SET);
                    Ok(0)
                }
                Op::Map { map, slot, length } => {
                    let fd = self.fd(*slot)?;
                    self.maps[*map] = None;
                    let protection = libc::PROT_READ | libc::PROT_WRITE;
                    let address = libc::mmap(std::ptr::null_mut(), *length, protection, libc::MAP_SHARED, fd, 0);
                    if address == libc::MAP_FAILED {
                        return answer(-1);
                    }
                    let link = CString::new(format!("/proc/self/fd/{fd}")).unwrap();
                    let path_only = answer(libc::open(link.as_ptr(), libc::O_PATH | libc::O_CLOEXEC))?;
                    let path_only = OwnedFd::from_raw_fd(path_only as RawFd);
                    self.maps[*map] = Some(Map { address, length: *length, path_only });
                    Ok(0)
                }
                Op::MapWrite { map, at, bytes } => {
                    let between = self.between.as_raw_fd();
                    let map = self.maps[*map].as_ref().ok_or(SKIPPED)?;
                    let room = map.room(*at);
                    let bytes = Bytes { length: bytes.length.min(room), ..*bytes }.all();
                    if bytes.is_empty() {
                        return Err(SKIPPED);
                    }
                    libc::pwrite(between, bytes.as_ptr().cast(), bytes.len(), 0);
                    answer(libc::pread(between, map.address.add(*at), bytes.len(), 0) as i64)
                }
                Op::MapRead { map, at, length } => {
                    let between = self.between.as_raw_fd();
                    let map = self.maps[*map].as_ref().ok_or(SKIPPED)?;
                    let length = (*length).min(map.length.saturating_sub(*at));
                    if length == 0 {
                        return Err(SKIPPED);
                    }
                    let read = answer(libc::pwrite(between, map.address.add(*at), length, 0) as i64)?;
                    // Behind the end of the file the last page holds what anybody wrote there.
                    let mut buffer = vec![0; (read as usize).min(map.room(*at))];
                    libc::pread(between, buffer.as_mut_ptr().cast(), buffer.len(), 0);
                    *data = buffer;
                    Ok(read)
                }
                Op::Msync { map } => {
                    let map = self.maps[*map].as_ref().ok_or(SKIPPED)?;
                    answer(libc::msync(map.address, map.length, libc::MS_SYNC))
                }
                Op::Unmap { map } => self.maps[*map].take().map(|_| 0).ok_or(SKIPPED),
                Op::Flock { slot, operation } => answer(libc::flock(self.fd(*slot)?, *operation)),
                Op::RangeLock { slot, kind, at, length } => {
                    let mut lock = std::mem::zeroed::<libc::flock>();
                    (lock.l_type, lock.l_whence) = (*kind as i16, libc::SEEK_SET as i16);
                    (lock.l_start, lock.l_len) = (*at, *length);
                    answer(libc::fcntl(self.fd(*slot)?, libc::F_OFD_SETLK, &lock))
                }
                Op::Statfs { path } => {
                    let path = [format!("/proc/self/fd/{root}/").as_bytes(), &path.0].concat();
                    let mut room = std::mem::zeroed::<libc::statfs>();
                    answer(libc::statfs(c(&Path(path)).as_ptr(), &mut room))?;
                    let sane = room.f_bavail <= room.f_bfree
                        && room.f_bfree <= room.f_blocks
                        && room.f_blocks > 0
                        && room.f_ffree <= room.f_files
                        && room.f_namelen == 255;
                    Ok(i64::from(sane))
                }
                Op::Setxattr { path, name, bytes, flags } => {
                    let (path, name, value) = (self.in_proc(path)?, CString::new(*name).unwrap(), bytes.all());
                    let value = (value.as_ptr().cast(), value.len());
                    answer(libc::setxattr(path.as_ptr(), name.as_ptr(), value.0, value.1, *flags))
                }
                Op::Getxattr { path, name, room } => {
                    let (path, name) = (self.in_proc(path)?, CString::new(*name).unwrap());
                    let mut value = vec![0; *room];
                    let length =
                        answer(libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), *room) as i64)?;
                    value.truncate(length as usize);
                    *data = value;
                    Ok(length)
                }
                Op::Listxattr { path } => {
                    let path = self.in_proc(path)?;
                    let mut names = vec![0_u8; 2000];
                    let length = answer(libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), 2000) as i64)?;
                    names.truncate(length as usize);
                    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
                    names.sort();
                    *data = names.join(&b'\n');
                    Ok(length)
                }
                Op::Removexattr { path, name } => {
                    let (path, name) = (self.in_proc(path)?, CString::new(*name).unwrap());
                    answer(libc::removexattr(path.as_ptr(), name.as_ptr()))
                }
            }
        }
    }

    /// For calls that have no form that starts at a directory.
    fn in_proc(&self, path: &Path) -> Result<CString, i32> {
        let path = [format!("/proc/self/fd/{}/", self.root.as_raw_fd()).as_bytes(), &path.0].concat();
        Ok(c(&Path(path)))
    }

    fn open_dir(&self, path: &Path) -> Result<OwnedFd, i32> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string, and the descriptor is new.
        unsafe {
            let fd = answer(libc::openat(self.root.as_raw_fd(), c(path).as_ptr(), flags))?;
            Ok(OwnedFd::from_raw_fd(fd as RawFd))
        }
    }

    /// What is at a path itself; `None` if nothing is.
    pub fn stat(&self, path: &[u8]) -> Option<libc::stat> {
        stat_at(self.root.as_raw_fd(), path, libc::AT_SYMLINK_NOFOLLOW)
    }

    /// What is behind a handle.
    pub fn stat_slot(&self, slot: usize) -> Option<libc::stat> {
        stat_at(self.fd(slot).ok()?, b"", libc::AT_EMPTY_PATH)
    }

    /// What a mapping shows.
    pub fn stat_map(&self, map: usize) -> Option<libc::stat> {
        self.maps[map].as_ref().and_then(|map| stat_at(map.path_only.as_raw_fd(), b"", libc::AT_EMPTY_PATH))
    }

    /// What there is to work on.
    pub fn known(&self) -> Known {
        let mut known = Known::default();
        let mut dirs = vec![Vec::new()];
        while let Some(dir) = dirs.pop() {
            for name in self.names(&dir).unwrap_or_default() {
                let path = if dir.is_empty() { name } else { [dir.as_slice(), b"/", &name].concat() };
                match self.stat(&path) {
                    Some(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {
                        known.dirs.push(Path(path.clone()));
                        dirs.push(path);
                    }
                    _ => known.files.push(Path(path)),
                }
            }
        }
        known.open = (0..SLOTS).filter(|slot| self.slots[*slot].is_some()).collect();
        known
    }

    /// The names in the directory that is being read, as they are now.
    pub fn stream_names(&self) -> Option<Vec<Vec<u8>>> {
        let stream = self.stream.as_ref()?;
        // SAFETY: the path is a C string, and the descriptor is new.
        let again = unsafe {
            let fd = libc::openat(stream.dir.as_raw_fd(), c".".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            // A directory that was removed cannot be opened by its dot.
            if fd < 0 {
                return Some(Vec::new());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let entries = entries(&again).unwrap_or_default();
        Some(entries.into_iter().map(|entry| entry.name).filter(|name| name != b"." && name != b"..").collect())
    }

    /// The names in a directory, in order.
    pub fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, i32> {
        let path = if path.is_empty() { b".".to_vec() } else { path.to_vec() };
        let entries = entries(&self.open_dir(&Path(path))?)?;
        let mut names: Vec<_> =
            entries.into_iter().map(|entry| entry.name).filter(|name| name != b"." && name != b"..").collect();
        names.sort();
        Ok(names)
    }

    /// All bytes of a file.
    pub fn content(&self, path: &[u8]) -> std::io::Result<Vec<u8>> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: the path is a C string, and the descriptor is new.
        let file = unsafe {
            let fd = libc::openat(self.root.as_raw_fd(), c(&Path(path.to_vec())).as_ptr(), flags);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            std::fs::File::from(OwnedFd::from_raw_fd(fd))
        };
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut content)?;
        Ok(content)
    }

    /// Where a symbolic link leads.
    pub fn target(&mut self, path: &[u8]) -> Outcome {
        self.perform(&Step { who: ROOT, op: Op::Readlink { path: Path(path.to_vec()) } })
    }
}

impl Map {
    /// How many bytes from `at` on are in the mapping and in the file.
    fn room(&self, at: usize) -> usize {
        let size =
            stat_at(self.path_only.as_raw_fd(), b"", libc::AT_EMPTY_PATH).map_or(0, |stat| stat.st_size as usize);
        self.length.min(size).saturating_sub(at)
    }
}

fn stat_at(dir: RawFd, path: &[u8], flags: i32) -> Option<libc::stat> {
    let path = CString::new(path).unwrap();
    // SAFETY: the path is a C string, and the structure is the kernel's to fill.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::stat>();
        (libc::fstatat(dir, path.as_ptr(), &mut stat, flags) == 0).then_some(stat)
    }
}

/// Reads entries into `bytes` bytes; also where the next ones are. None at the end.
fn some_entries(dir: &OwnedFd, bytes: usize) -> Result<(Vec<Entry>, Option<i64>), i32> {
    let mut buffer = vec![0_u8; bytes];
    // SAFETY: the buffer is as long as said.
    let read = unsafe { answer(libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), bytes))? };
    let (mut found, mut next) = (Vec::new(), None);
    let mut rest = &buffer[..read as usize];
    // struct linux_dirent64: u64 number, i64 next offset, u16 length, u8 kind, name until a NUL.
    while !rest.is_empty() {
        let number = |range: std::ops::Range<usize>| {
            rest[range].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let length = number(16..18) as usize;
        let name = rest[19..length].split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        found.push(Entry { name, kind: rest[18], ino: number(0..8) });
        next = Some(number(8..16) as i64);
        rest = &rest[length..];
    }
    Ok((found, next))
}

fn entries(dir: &OwnedFd) -> Result<Vec<Entry>, i32> {
    let mut all = Vec::new();
    loop {
        let (some, _) = some_entries(dir, 32_768)?;
        if some.is_empty() {
            return Ok(all);
        }
        all.extend(some);
    }
}
