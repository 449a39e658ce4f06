//! Getting out of a damaged record what is whole, and putting a whole one in its place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::format::{self, Kept, LEAST_ROOM_BYTES, RESERVE_BYTES, ROOM_BYTES};
use super::mark::{self, Mark};
use super::recover::{self, Chain, segment_path, segments, zeros_from};
use super::{Change, Damage, JournalError, Replay};
use crate::store::disk::{Act, Disk};

/// Where segments go that a repair has replaced.
const DAMAGED: &str = "damaged";

/// What was got out of a record.
pub struct Salvaged {
    /// Every place that is damaged.
    pub damage: Vec<Damage>,
    /// Files in the place of a segment in which nothing is of a record: perhaps somebody's bytes.
    pub strangers: Vec<PathBuf>,
    chain: Chain,
    kept: Kept,
}

/// Reads all whole frames of the log in `dir`, also those behind damage, and hands their changes over in their order, each
/// with whether all before it is known. Where none is damaged, looks as a mount does, which need not `believe` what it reads.
/// Changes nothing.
///
/// # Errors
/// When a file cannot be read, or a newer oxenfs wrote it.
pub fn salvage(
    dir: &Path,
    mark: &Path,
    take: &mut dyn FnMut(bool, Change),
    believe: &mut Replay<'_>,
) -> Result<Salvaged, JournalError> {
    let marked = mark::read(mark).map_err(|source| JournalError::Io { path: mark.to_owned(), source })?;
    let recover::Whole { mut damage, mut chain, kept, strangers } = recover::salvage(dir, take)?;
    if damage.is_empty() {
        // What is missing at the end, and what only the checks of a mount see.
        match recover::replay(dir, &marked, Disk::default().boot(), believe) {
            Ok(_) => {}
            Err(JournalError::Damaged(found)) => damage.push(*found),
            Err(error) => return Err(error),
        }
    }
    if let Some(mark) = marked.mark() {
        // The numbers of frames that are gone are not given again.
        chain.next = chain.next.max(mark.flushed + 1).max(mark.written + 1);
    }
    Ok(Salvaged { damage, strangers, chain, kept })
}

/// A whole record that is about to take the place of another.
pub struct Rewritten<'a> {
    disk: &'a Disk,
    dir: &'a Path,
    mark: &'a Path,
    file: File,
    at: u64,
    segment: u64,
    chain: Chain,
    kept: Kept,
}

/// Begins a segment beside those of `dir`, to go on from what was salvaged.
///
/// # Errors
/// The filesystem's.
pub fn rewrite<'a>(disk: &'a Disk, dir: &'a Path, mark: &'a Path, salvaged: Salvaged) -> io::Result<Rewritten<'a>> {
    disk.make_dirs(dir)?;
    let marked = mark::read(mark)?;
    let last = segments(dir)?.last().copied().unwrap_or(0);
    let segment = marked.mark().map_or(last, |mark| mark.segment.max(last)) + 1;
    let Salvaged { chain, kept, .. } = salvaged;
    // What begins the numbering is told apart from what goes on.
    let chain = Chain { next: chain.next.max(2), ..chain };
    let header = format::Header { repaired: true, unverified: true, ..chain.header(segment, disk.boot()) };
    let new = new_path(dir);
    let mut open = OpenOptions::new();
    open.create(true).read(true).write(true).truncate(true).mode(0o600);
    let file = disk.act(Act::Create(&new), || open.open(&new))?;
    let mut rewritten = Rewritten { disk, dir, mark, file, at: 0, segment, chain, kept };
    let line = header.line()?;
    rewritten.write(&line)?;
    Ok(rewritten)
}

fn new_path(dir: &Path) -> PathBuf {
    dir.join("journal.repair")
}

impl Rewritten<'_> {
    /// Takes a frame in.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let (mut body, mut frame) = (Vec::new(), Vec::new());
        format::encode_body(changes, &mut self.kept, &mut body);
        self.chain.frame(&body, format::FORMAT, &mut frame);
        self.write(&frame)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.disk.write_at(&self.file, bytes, self.at) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // The old segments hold room for frames that they will not get.
                give_back_room(self.disk, self.dir)?;
                self.disk.write_at(&self.file, bytes, self.at)?;
            }
            done => done?,
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Asks for room for what makes room, as removals and confirmations do: on a full disk others take whatever the old
    /// segments give back. Whether there was enough, as far as the filesystem tells.
    fn reserve(&self) -> bool {
        let mut bytes = ROOM_BYTES;
        while bytes >= LEAST_ROOM_BYTES {
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.at, bytes) {
                Err(Errno::NOSPC | Errno::DQUOT) => bytes /= 2,
                _ => break,
            }
        }
        bytes >= RESERVE_BYTES
    }

    /// Puts it in the place of the old one, by one rename, and sets the old segments aside.
    ///
    /// # Errors
    /// The filesystem's; before the rename nothing has changed, after it the next open does the rest.
    pub fn complete(mut self) -> io::Result<()> {
        self.append(&[Change::Complete])?;
        self.disk.flush(&self.file)?;
        self.disk.rename(&new_path(self.dir), &segment_path(self.dir, self.segment))?;
        self.disk.flush_dir(self.dir)?;
        let mut aside = Vec::new();
        for old in segments(self.dir)?.into_iter().filter(|old| *old < self.segment) {
            aside.push(set_aside(self.disk, self.dir, &segment_path(self.dir, old))?);
        }
        let last = self.chain.next - 1;
        let boot = self.disk.boot().to_owned();
        let mark = Mark { segment: self.segment, flushed: last, written: last, boot };
        mark::make(self.disk, self.mark, &mark)?;
        // Last: what is above needs a block or two.
        if !self.reserve() {
            aside.iter().try_for_each(|path| give_back(self.disk, path))?;
            self.reserve();
        }
        Ok(())
    }
}

/// Gives up what segments have behind their frames, which is zeros: on a full disk a repair has no other room.
///
/// # Errors
/// The filesystem's.
pub fn give_back_room(disk: &Disk, dir: &Path) -> io::Result<()> {
    segments(dir)?.into_iter().try_for_each(|segment| give_back(disk, &segment_path(dir, segment)))
}

fn give_back(disk: &Disk, path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(());
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut end = file.metadata()?.len();
    let mut block = vec![0; 1 << 20];
    while end > 0 {
        let from = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - from) as usize];
        file.read_exact_at(part, from)?;
        end = from + zeros_from(part) as u64;
        if end > from {
            break;
        }
    }
    // Also what is allocated behind its end.
    disk.resize(&file, end + 1)?;
    disk.resize(&file, end)
}

/// Moves a segment out of the way, and destroys nothing; where it is then.
pub(super) fn set_aside(disk: &Disk, dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let aside = dir.join(DAMAGED);
    disk.make_dirs(&aside)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (0..).map(|n| if n == 0 { name.clone() } else { format!("{name}.{n}") });
    let to = free.map(|name| aside.join(name)).find(|to| fs::symlink_metadata(to).is_err());
    let to = to.unwrap_or_else(|| aside.join(&name));
    disk.rename(path, &to)?;
    disk.flush_dir(&aside)?;
    disk.flush_dir(dir)?;
    Ok(to)
}
