//! The kernel adapter: decodes a request, calls [`Fs`], answers. Thin on purpose; what an operation means is decided
//! there. The only module beside `mount` that knows fuser.
//!
//! An operation that must wait, for the network or a copy, goes on in a task that owns the reply: no FUSE thread ever
//! waits for it. It ends when it is done, when [`Fs`] gives the server up, or when whoever waits for it is [`killed`].

mod awake;
pub mod device;
mod errno;
mod killed;
mod passthrough;

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags as FuseOpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use crate::fs::{
    Fs, FsError, GRANTED, Keep, Need, Op, OpenFlags, OpenedDir, RangeChange, Reach, RenameMode, Seek, SetAttr, SetIds,
    SetTime, Stale, Stat, Statfs, Stop, XattrMode,
};
use crate::namespace::{Attrs, Ino, Timestamp};
use crate::path::{Name, PathError};
use awake::Awake;
use killed::Callers;

/// The longest write request that the kernel sends by default (`fs.fuse.max_pages_limit`, 256 pages).
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have under way without waiting: read-ahead and releases.
const MAX_BACKGROUND: u16 = 64;
/// Block size that `stat` shows, and the unit of `st_blocks` (`stat(2)`).
const BLOCK_BYTES: u32 = 4096;
const STAT_BLOCK_BYTES: u64 = 512;

/// What a close or fsync waits for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    /// `close` waits until the file is staged, and reports its error.
    pub close: bool,
    /// `fsync` does.
    pub fsync: bool,
}

/// How a mount is served.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// What a close or fsync waits for.
    pub waits: Waits,
    /// Other users may enter.
    pub allow_other: bool,
    /// Why nothing goes past the daemon; `None`: reads and writes do where the kernel can.
    pub no_passthrough: Option<&'static str>,
    /// Whether processors are kept awake while requests come; `None`: where that is known to be worth it.
    pub keep_awake: Option<bool>,
}

/// What a request is served with, by a FUSE thread or by a task that answers later.
#[derive(Clone)]
struct Serving {
    fs: Arc<Fs>,
    runtime: Handle,
    waits: Waits,
    /// There once the session is.
    kernel: Arc<OnceLock<fuser::Notifier>>,
    /// Who waits; `None` where nobody looks after them.
    callers: Option<Arc<Callers>>,
}

/// Serves one mount.
struct Adapter {
    serving: Serving,
    /// Asked of the kernel: how deep the spool's filesystem is stacked.
    passthrough: Option<u32>,
    awake: Option<Arc<Awake>>,
}

/// Serves the connection until it is unmounted. Blocks.
///
/// # Errors
/// When the kernel speaks another protocol, or the connection breaks.
pub fn serve(
    device: OwnedFd,
    fs: Arc<Fs>,
    runtime: Handle,
    manner: Manner,
    ready: impl FnOnce(Notifier),
) -> std::io::Result<()> {
    let mut config = Config::default();
    config.acl = if manner.allow_other { SessionACL::All } else { SessionACL::Owner };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.clamp(2, 8));
    let passthrough = manner.no_passthrough.is_none().then(|| passthrough::stack_depth(fs.spool().dir()));
    let awake = Awake::start(manner.keep_awake);
    let kernel = Arc::new(OnceLock::new());
    let callers = Callers::watch(killed::LOOK_EVERY);
    let callers = callers.inspect_err(|error| tracing::warn!(%error, "who waits for the server cannot be killed"));
    let callers = callers.ok().map(Arc::new);
    let serving = Serving { fs: fs.clone(), runtime, waits: manner.waits, kernel: kernel.clone(), callers };
    let adapter = Adapter { serving, passthrough, awake };
    let session = Session::from_fd(adapter, device, config.acl, config)?;
    let _ = kernel.set(session.notifier());
    match manner.no_passthrough {
        None => {
            let able = fs.lend_to(Arc::new(passthrough::Device(session.as_fd().try_clone_to_owned()?)));
            tracing::info!(passthrough = %able, "the kernel answers");
        }
        Some(why) => fs.lend_nothing(why),
    }
    ready(Notifier(session.notifier()));
    session.run()
}

/// Tells the kernel what it must look up anew.
pub struct Notifier(fuser::Notifier);

impl Notifier {
    /// Drops what the kernel cached. May wait for reads under way: never to be called from a FUSE thread or under a
    /// lock.
    pub fn tell(&self, stale: &Stale) {
        // ENOENT: the kernel did not know it.
        let _ = match stale {
            Stale::Content(ino) => self.0.inval_inode(INodeNo(ino.0), 0, 0),
            Stale::Name(parent, name) => self.0.inval_entry(INodeNo(parent.0), name.as_os()),
        };
    }
}

/// A reply that takes an operation's result: the only place where errors become numbers.
trait Answer<T>: Send + 'static {
    fn answer(self, result: Result<T, FsError>);
}

/// `reply.error` or what `$ok` does.
macro_rules! answer {
    ($reply:ty, $value:ty, |$self:ident, $ok:pat_param| $done:expr) => {
        impl Answer<$value> for $reply {
            fn answer($self, result: Result<$value, FsError>) {
                match result {
                    Ok($ok) => $done,
                    Err(error) => $self.error(code(&error)),
                }
            }
        }
    };
}

answer!(ReplyEmpty, (), |self, ()| self.ok());
answer!(ReplyData, Vec<u8>, |self, bytes| self.data(&bytes));
answer!(ReplyEntry, Stat, |self, stat| self.entry_with_ttls(&attr_ttl(&stat), &GRANTED, &attr(&stat), Generation(0)));
answer!(ReplyAttr, Stat, |self, stat| self.attr(&attr_ttl(&stat), &attr(&stat)));
answer!(ReplyLseek, u64, |self, at| self.offset(i64::try_from(at).unwrap_or(i64::MAX)));
answer!(ReplyWrite, u32, |self, length| self.written(length));
answer!(ReplyStatfs, Statfs, |self, stat| {
    let Statfs { block_bytes, blocks, free_blocks, available_blocks, files, free_files } = stat;
    self.statfs(
        blocks,
        free_blocks,
        available_blocks,
        files,
        free_files,
        block_bytes,
        crate::path::NAME_MAX as u32,
        block_bytes,
    );
});

fn code(error: &FsError) -> Errno {
    match error {
        FsError::Remote(_) | FsError::Io(_) => tracing::warn!(%error, "an operation failed"),
        _ => tracing::trace!(%error, "refused"),
    }
    errno::errno(error)
}

/// How long the kernel may take the size and times of a file for granted.
fn attr_ttl(stat: &Stat) -> Duration {
    if stat.live { Duration::ZERO } else { GRANTED }
}

fn attr(stat: &Stat) -> FileAttr {
    let Attrs { mode, uid, gid, atime, mtime, ctime } = stat.attrs;
    FileAttr {
        ino: INodeNo(stat.ino.0),
        size: stat.size,
        blocks: stat.room.div_ceil(STAT_BLOCK_BYTES),
        atime: atime.into(),
        mtime: mtime.into(),
        ctime: ctime.into(),
        crtime: UNIX_EPOCH,
        kind: kind(stat.format),
        perm: mode,
        nlink: stat.nlink,
        uid,
        gid,
        rdev: stat.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn kind(format: u32) -> FileType {
    match format {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => return SetTime::Now,
    };
    SetTime::At(match UNIX_EPOCH.duration_since(time) {
        // Of seconds before the epoch, fuser 0.18 counts the nanoseconds backwards too; the kernel counts them forwards.
        Ok(before) if !before.is_zero() => Timestamp(-(before.as_secs() as i64), before.subsec_nanos()),
        _ => time.into(),
    })
}

fn name(name: &OsStr) -> Op<Name> {
    Name::from_os(name).map_err(|error| {
        Stop::Error(match error {
            PathError::TooLong => FsError::NameTooLong,
            PathError::Invalid
            | PathError::NotUtf8
            | PathError::Backslash
            | PathError::Reserved
            | PathError::Salvaged
            | PathError::Ignored => FsError::Invalid,
        })
    })
}

fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

/// Capabilities, by their numbers in `linux/capability.h`.
const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// A line of what `/proc` says of the caller, without its name.
fn caller_status(request: &Request, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", request.pid())).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

/// Whether the caller has a capability. Nothing can be read of a process in a container that we do not see: root is
/// taken at its word.
fn capable(request: &Request, capability: u32) -> bool {
    let effective = caller_status(request, "CapEff:").and_then(|digits| u64::from_str_radix(&digits, 16).ok());
    effective.map_or(request.uid() == 0, |bits| bits & (1 << capability) != 0)
}

/// Who the caller is to a file of `group` with set-id bits: whether it has `CAP_FSETID` (`capabilities(7)`), or is in the
/// group. It waits for our answer, so what `/proc` says of it now is what counts.
fn set_ids_before(request: &Request, group: u32) -> SetIds {
    // Root of a user namespace has the capability there, and not here.
    if request.uid() == 0 && capable(request, CAP_FSETID) {
        return SetIds::Privileged;
    }
    let groups = caller_status(request, "Groups:").unwrap_or_default();
    if request.gid() == group || groups.split_ascii_whitespace().any(|member| member.parse() == Ok(group)) {
        SetIds::Member
    } else {
        SetIds::Stranger
    }
}

/// The attributes of something that `request` makes; times are set where it is made.
fn attrs_of(request: &Request, mode: u32) -> Attrs {
    let zero = Timestamp(0, 0);
    Attrs {
        mode: (mode & 0o7777) as u16,
        uid: request.uid(),
        gid: request.gid(),
        atime: zero,
        mtime: zero,
        ctime: zero,
    }
}

/// Set where the kernel opens a file to execute it (`__FMODE_EXEC` of `linux/fs.h`).
const OPEN_TO_EXECUTE: i32 = 0x20;

fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        execute: flags & OPEN_TO_EXECUTE != 0,
    }
}

impl Adapter {
    /// Does an operation now if it can be done from what is known, else in a task that answers later.
    fn run<T: Send + 'static, R: Answer<T>>(
        &self,
        request: &Request,
        reply: R,
        op: impl Fn(&Fs) -> Op<T> + Send + Sync + 'static,
    ) {
        self.awake.iter().for_each(|awake| awake.request());
        match op(&self.serving.fs) {
            Ok(done) => reply.answer(Ok(done)),
            Err(Stop::Error(error)) => reply.answer(Err(error)),
            Err(Stop::Need(need)) => {
                let (serving, caller) = (self.serving.clone(), request.pid());
                let runtime = &self.serving.runtime;
                runtime.spawn(async move { reply.answer(serving.carry_through(caller, need, op).await) });
            }
        }
    }

    /// What the caller's change leaves of a file's set-id bits. Next to nothing where it has none.
    fn set_ids(&self, request: &Request, inode: INodeNo) -> SetIds {
        self.serving.fs.set_id_group(ino(inode)).map_or(SetIds::Privileged, |group| set_ids_before(request, group))
    }

    fn opening<R>(&self, reply: R) -> Opening<R> {
        Opening { reply, flags: self.opened_flags(), fs: self.serving.fs.clone() }
    }

    /// Pages stay cached over opens: what changes them goes through the kernel, or is told to it. Closing needs no
    /// request of its own unless it waits for the server.
    fn opened_flags(&self) -> FopenFlags {
        let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
        if !self.serving.waits.close {
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        flags
    }
}

impl Serving {
    /// [`Fs::clear_set_ids`], of which the kernel is told before the change itself is answered: of what a write or an
    /// open answers it takes in the size alone, and would show the old mode for as long as it may take attributes for
    /// granted.
    fn clear_set_ids(&self, ino: Ino, who: SetIds) -> Op<()> {
        if self.fs.clear_set_ids(ino, who)?
            && let Some(kernel) = self.kernel.get()
        {
            // Of the attributes alone (an offset below zero): that waits for no page and takes no lock of the file, so
            // a thread that serves may do it (`fuse_reverse_inval_inode` in fs/fuse/inode.c of Linux).
            let _ = kernel.inval_inode(INodeNo(ino.0), -1, 0);
        }
        Ok(())
    }

    /// Carries an operation through for a thread that waits for it, unless that is killed meanwhile. What others need too
    /// goes on.
    async fn carry_through<T>(&self, caller: u32, need: Need, op: impl Fn(&Fs) -> Op<T>) -> Result<T, FsError> {
        let done = self.unless_killed(caller, self.fs.run(need, op)).await;
        done.unwrap_or(Err(FsError::Interrupted))
    }

    async fn unless_killed<T>(&self, caller: u32, work: impl Future<Output = T>) -> Option<T> {
        match &self.callers {
            Some(callers) => callers.unless_killed(caller, work).await,
            None => Some(work.await),
        }
    }

    /// Flushes what a handle is of, waits for the server where a flush does, and answers `done`.
    fn when_flushed(&self, caller: u32, handle: u64, done: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        let serving = self.clone();
        self.runtime.spawn_blocking(move || match serving.fs.fsync(handle) {
            Ok(paths) if serving.waits.fsync => serving.when_staged(caller, paths, done),
            Ok(_) => done(Ok(())),
            Err(Stop::Error(error)) => done(Err(code(&error))),
            Err(Stop::Need(_)) => done(Err(Errno::EIO)),
        });
    }

    /// Answers `done` when the paths of an open file are staged.
    fn when_staged(
        &self,
        caller: u32,
        paths: Vec<crate::path::RepoPath>,
        done: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let serving = self.clone();
        self.runtime.spawn(async move {
            let fs = &serving.fs;
            let staged = serving.unless_killed(caller, async {
                // What was staged in a workspace that is gone is owed again.
                if let Err(error) = fs.look_at_workspace().await {
                    tracing::debug!(%error, "it is not known whether the workspace is still there");
                }
                let waiting = fs.barrier_on(paths)?;
                waiting.settled().await.ok().filter(|progress| progress.files_failed == 0)
            });
            done(match staged.await {
                None => Err(Errno::EINTR),
                Some(None) => Err(Errno::EIO),
                Some(Some(_)) => Ok(()),
            });
        });
    }

    /// Answers a write. What is not cached the kernel does not flush either: of a file that was opened so, or for a call
    /// that asks for it, it says so in the flags (`fuse_write_flags` in fs/fuse/file.c of Linux) and leaves it to us.
    fn wrote(&self, write: &Write, result: Result<usize, FsError>, reply: ReplyWrite) {
        let handle = write.handle;
        if write.mapped {
            self.fs.wrote_mapped(write.ino, write.length, &result);
        }
        match result {
            Ok(written) if write.flags.0 & libc::O_DSYNC != 0 && self.fs.reach(handle) == Reach::Uncached => {
                self.when_flushed(write.caller, handle, move |flushed| match flushed {
                    Ok(()) => reply.written(written as u32),
                    Err(errno) => reply.error(errno),
                });
            }
            result => reply.answer(result.map(|written| written as u32)),
        }
    }
}

/// A write, but for its bytes.
struct Write {
    ino: Ino,
    handle: u64,
    length: usize,
    flags: FuseOpenFlags,
    caller: u32,
    /// The kernel writes back what was stored through a mapping.
    mapped: bool,
}

fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send + 'static {
    |done| match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn caching(reach: Reach) -> FopenFlags {
    match reach {
        Reach::Uncached => FopenFlags::FOPEN_DIRECT_IO,
        Reach::Cached | Reach::Past(_) => FopenFlags::empty(),
    }
}

/// The answer to an open.
struct Opening<R> {
    reply: R,
    flags: FopenFlags,
    fs: Arc<Fs>,
}

impl Answer<u64> for Opening<ReplyOpen> {
    fn answer(self, result: Result<u64, FsError>) {
        let Self { reply, flags, fs } = self;
        match result {
            Ok(handle) => match fs.reach(handle) {
                Reach::Past(number) => passthrough::opened(reply, handle, flags, number),
                reach => reply.opened(FileHandle(handle), flags | caching(reach)),
            },
            Err(error) => reply.error(code(&error)),
        }
    }
}

answer!(ReplyOpen, OpenedDir, |self, OpenedDir { handle, keep }| {
    let flags = match keep {
        Keep::All => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        Keep::New => FopenFlags::FOPEN_CACHE_DIR,
        Keep::Nothing => FopenFlags::FOPEN_KEEP_CACHE,
    };
    self.opened(FileHandle(handle), flags);
});

impl Answer<(Stat, u64)> for Opening<ReplyCreate> {
    fn answer(self, result: Result<(Stat, u64), FsError>) {
        let Self { reply, flags, fs } = self;
        match result {
            Ok((stat, handle)) => match fs.reach(handle) {
                Reach::Past(number) => passthrough::created(reply, &stat, handle, flags, number),
                reach => {
                    let flags = flags | caching(reach);
                    reply.created(&GRANTED, &attr(&stat), Generation(0), FileHandle(handle), flags);
                }
            },
            Err(error) => reply.error(code(&error)),
        }
    }
}

/// With the room that the caller has; 0: it asks how much it needs.
impl Answer<Vec<u8>> for (ReplyXattr, u32) {
    fn answer(self, result: Result<Vec<u8>, FsError>) {
        match result {
            Ok(bytes) if self.1 == 0 => self.0.size(bytes.len() as u32),
            Ok(bytes) if bytes.len() > self.1 as usize => self.0.error(code(&FsError::Range)),
            Ok(bytes) => self.0.data(&bytes),
            Err(error) => self.0.error(code(&error)),
        }
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each by itself: a kernel without one still serves without it. Not FUSE_SETXATTR_EXT or FUSE_ALLOW_IDMAP,
        // which fuser 0.18 cannot answer rightly. Nor FUSE_ASYNC_DIO: with it, what the kernel cached of a file stays as
        // it was after a direct write by AIO or io_uring that readers ran beside (xfstests generic/451).
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Set-id bits are ours to clear, and the kernel asks for `security.capability` once a file, not once a
            // write (`process_init_reply` in fs/fuse/inode.c sets SB_NOSEC). fuser 0.18 hides from setattr and open
            // whether to clear them, so `set_ids_before` finds out.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::info!(?missing, "the kernel does not offer this");
            }
        }
        // With it come mappings of what is not cached, and writes that drop what was cached before: since Linux 6.6, but
        // what is stored through such a mapping arrives since 6.9 alone, which is when passthrough came.
        if config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH)
            && config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok()
        {
            self.serving.fs.leave_uncached();
        }
        if let Some(depth) = self.passthrough {
            let able = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            if !able || config.set_max_stack_depth(depth).is_err() {
                tracing::info!("the kernel offers no passthrough");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE_BYTES) {
            tracing::info!(nearest, "writes are shorter than wanted");
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::info!(nearest, "fewer requests in the background than wanted");
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEntry) {
        let entry = name(entry);
        self.run(request, reply, move |fs| fs.lookup(ino(parent), try_name(&entry)?));
    }

    fn forget(&self, _request: &Request, inode: INodeNo, count: u64) {
        self.serving.fs.forget(ino(inode), count);
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.run(request, reply, move |fs| fs.getattr(ino(inode)));
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            set_ids: self.set_ids(request, inode),
        };
        self.run(request, reply, move |fs| fs.setattr(ino(inode), &set));
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        self.run(request, reply, move |fs| fs.readlink(ino(inode)));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (entry, attrs) = (name(entry), attrs_of(request, mode));
        self.run(request, reply, move |fs| fs.mknod(ino(parent), try_name(&entry)?, attrs, mode & libc::S_IFMT, rdev));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, entry: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (entry, attrs) = (name(entry), attrs_of(request, mode));
        self.run(request, reply, move |fs| fs.mkdir(ino(parent), try_name(&entry)?, attrs));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = name(entry);
        self.run(request, reply, move |fs| fs.unlink(ino(parent), try_name(&entry)?));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = name(entry);
        self.run(request, reply, move |fs| fs.rmdir(ino(parent), try_name(&entry)?));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, entry: &OsStr, target: &Path, reply: ReplyEntry) {
        let (entry, attrs) = (name(entry), attrs_of(request, 0o777));
        let target = target.as_os_str().as_bytes().to_vec();
        self.run(request, reply, move |fs| fs.symlink(ino(parent), try_name(&entry)?, &target, attrs));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        to_parent: INodeNo,
        to_entry: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            flags if flags.is_empty() => RenameMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (entry, to_entry) = (name(entry), name(to_entry));
        self.run(request, reply, move |fs| {
            fs.rename(ino(parent), try_name(&entry)?, ino(to_parent), try_name(&to_entry)?, mode)
        });
    }

    fn link(&self, request: &Request, inode: INodeNo, parent: INodeNo, entry: &OsStr, reply: ReplyEntry) {
        let entry = name(entry);
        self.run(request, reply, move |fs| fs.link(ino(inode), ino(parent), try_name(&entry)?));
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: FuseOpenFlags, reply: ReplyOpen) {
        let flags = open_flags(flags.0);
        let who = if flags.truncate { self.set_ids(request, inode) } else { SetIds::Privileged };
        let serving = self.serving.clone();
        self.run(request, self.opening(reply), move |fs| {
            serving.clear_set_ids(ino(inode), who)?;
            fs.open(ino(inode), flags)
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (entry, attrs, flags) = (name(entry), attrs_of(request, mode), open_flags(flags));
        self.run(request, self.opening(reply), move |fs| fs.create(ino(parent), try_name(&entry)?, attrs, flags));
    }

    fn read(
        &self,
        request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: FuseOpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(request, reply, move |fs| fs.read(handle.0, offset, size as usize));
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: FuseOpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let caller = request.pid();
        let asked = Write { ino: ino(inode), handle: handle.0, length: data.len(), flags, caller, mapped };
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            && let Err(Stop::Error(error)) = self.serving.clear_set_ids(ino(inode), self.set_ids(request, inode))
        {
            return self.serving.wrote(&asked, Err(error), reply);
        }
        self.awake.iter().for_each(|awake| awake.request());
        match self.serving.fs.write(handle.0, offset, data) {
            Ok(written) => self.serving.wrote(&asked, Ok(written), reply),
            Err(Stop::Error(error)) => self.serving.wrote(&asked, Err(error), reply),
            Err(Stop::Need(need)) => {
                let (serving, data) = (self.serving.clone(), data.to_vec());
                self.serving.runtime.spawn(async move {
                    let write = move |fs: &Fs| fs.write(handle.0, offset, &data);
                    let done = serving.carry_through(caller, need, write).await;
                    serving.wrote(&asked, done, reply);
                });
            }
        }
    }

    fn flush(&self, request: &Request, _inode: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // May come many times an open, for every duplicate that is closed; finalizes nothing.
        if self.serving.waits.close {
            self.serving.when_staged(request.pid(), self.serving.fs.handle_paths(handle.0), empty(reply));
        } else {
            reply.ok();
        }
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: FuseOpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serving.fs.release(handle.0);
        reply.ok();
    }

    fn fsync(&self, request: &Request, _inode: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.serving.when_flushed(request.pid(), handle.0, empty(reply));
    }

    fn opendir(&self, request: &Request, inode: INodeNo, _flags: FuseOpenFlags, reply: ReplyOpen) {
        self.run(request, reply, move |fs| fs.opendir(ino(inode)));
    }

    fn readdir(&self, _request: &Request, _inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.serving.fs.readdir(handle.0, offset, false, |entry| {
            reply.add(INodeNo(entry.stat.ino.0), entry.next, kind(entry.stat.format), OsStr::from_bytes(entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(Stop::Error(error)) => reply.error(code(&error)),
            Err(Stop::Need(_)) => reply.error(Errno::EIO),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.serving.fs.readdir(handle.0, offset, true, |entry| {
            let number = INodeNo(entry.stat.ino.0);
            reply.add(
                number,
                entry.next,
                OsStr::from_bytes(entry.name),
                &attr_ttl(&entry.stat),
                &attr(&entry.stat),
                Generation(0),
            )
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(Stop::Error(error)) => reply.error(code(&error)),
            Err(Stop::Need(_)) => reply.error(Errno::EIO),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: FuseOpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serving.fs.release(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, inode: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(request, inode, handle, datasync, reply);
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, entry: &OsStr, size: u32, reply: ReplyXattr) {
        let entry = entry.as_bytes().to_vec();
        self.run(request, (reply, size), move |fs| fs.getxattr(ino(inode), &entry));
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let hides = |list: &Vec<u8>| {
            list.split(|byte| *byte == 0).any(|name| name.starts_with(b"trusted.")) && !capable(request, CAP_SYS_ADMIN)
        };
        let listed = match self.serving.fs.listxattr(ino(inode), true) {
            Ok(list) if hides(&list) => self.serving.fs.listxattr(ino(inode), false),
            listed => listed,
        };
        (reply, size).answer(listed.map_err(|stop| match stop {
            Stop::Error(error) => error,
            Stop::Need(_) => FsError::Stale,
        }));
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        entry: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (entry, value) = (entry.as_bytes().to_vec(), value.to_vec());
        self.run(request, reply, move |fs| fs.setxattr(ino(inode), &entry, &value, mode));
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = entry.as_bytes().to_vec();
        self.run(request, reply, move |fs| fs.removexattr(ino(inode), &entry));
    }

    fn fallocate(
        &self,
        request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        use libc::{FALLOC_FL_KEEP_SIZE as KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
        const PUNCH: i32 = FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
        const ZERO: i32 = FALLOC_FL_ZERO_RANGE | KEEP_SIZE;
        let change = match mode {
            0 => RangeChange::Allocate { grow: true },
            KEEP_SIZE => RangeChange::Allocate { grow: false },
            PUNCH => RangeChange::Punch,
            FALLOC_FL_ZERO_RANGE => RangeChange::Zero { grow: true },
            ZERO => RangeChange::Zero { grow: false },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        self.run(request, reply, move |fs| fs.fallocate(handle.0, offset, length, change));
    }

    fn lseek(
        &self,
        request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel asks for these two alone.
        let (Ok(offset), what) = (u64::try_from(offset), whence) else { return reply.error(Errno::ENXIO) };
        let what = match what {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        self.run(request, reply, move |fs| fs.seek(handle.0, offset, what));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _from_inode: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to_inode: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copy = move |fs: &Fs| fs.copy_range((from.0, from_offset), (to.0, to_offset), length);
        let (serving, caller) = (self.serving.clone(), request.pid());
        // As long as the range: not on a thread that serves others.
        self.serving.runtime.spawn_blocking(move || {
            let copied = match copy(&serving.fs) {
                Err(Stop::Need(need)) => serving.runtime.block_on(serving.carry_through(caller, need, copy)),
                Err(Stop::Error(error)) => Err(error),
                Ok(copied) => Ok(copied),
            };
            // A call copies a gibibyte at most.
            reply.answer(copied.map(|copied| copied as u32));
        });
    }

    fn statfs(&self, request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        self.run(request, reply, Fs::statfs);
    }
}

/// A name that was checked when the request came in.
fn try_name(name: &Op<Name>) -> Op<&Name> {
    match name {
        Ok(name) => Ok(name),
        Err(Stop::Error(FsError::NameTooLong)) => Err(FsError::NameTooLong.into()),
        Err(_) => Err(FsError::Invalid.into()),
    }
}
