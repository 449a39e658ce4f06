//! What there is to import, found on a thread of its own while the first of it is already under way.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SendError, SyncSender};

use rustix::fs::{FileType, Stat};

use super::below::{self, Opener, Top};
use super::plan::Root;
use crate::control::Item;
use crate::path::Name;

/// The walk's next finding.
#[derive(Debug)]
pub enum Found {
    /// To be made as it is, but for a regular file, whose content is at its source.
    Item(Item, Source, u64),
    /// Cannot be imported.
    Bad(PathBuf, String),
}

/// Where something is.
#[derive(Debug)]
pub struct Source {
    /// The directory that was named, held open.
    pub top: Top,
    /// The names below it.
    pub below: PathBuf,
}

/// How much was found up to now.
#[derive(Debug, Default)]
pub struct Totals {
    /// Files and links.
    pub files: AtomicU64,
    /// Length of the files.
    pub bytes: AtomicU64,
}

/// Walks.
pub struct Walk<'a> {
    found: SyncSender<Found>,
    totals: &'a Totals,
    /// Nobody wants more.
    stop: &'a AtomicBool,
    /// The number of the directory made last.
    last: usize,
    /// What each directory's time is to be when all is there.
    dated: Vec<(usize, (i64, u32))>,
    opener: Opener,
}

/// Ends the walk.
struct Over;

impl<T> From<SendError<T>> for Over {
    fn from(_: SendError<T>) -> Self {
        Self
    }
}

impl<'a> Walk<'a> {
    /// Finds all of `roots`, and returns what time each new directory is to have, the innermost first.
    pub fn all(
        roots: &[Root],
        found: SyncSender<Found>,
        totals: &'a Totals,
        stop: &'a AtomicBool,
    ) -> Vec<(usize, (i64, u32))> {
        let mut walk = Self { found, totals, stop, last: 0, dated: Vec::new(), opener: Opener::default() };
        for root in roots {
            if walk.root(root).is_err() {
                break;
            }
        }
        walk.dated.reverse();
        walk.dated
    }

    fn root(&mut self, root: &Root) -> Result<(), Over> {
        let Some(name) = &root.name else {
            // Its contents: a link to a directory is followed, as its dot is.
            return match Top::open(&root.source) {
                Ok(top) => self.below(&top, PathBuf::new(), 0),
                Err(error) => self.bad(root.source.clone(), &error),
            };
        };
        // Without the slashes that would follow a link.
        let plain: PathBuf = root.source.components().collect();
        let Some(last) = plain.file_name() else {
            return self.bad(plain.clone(), &io::ErrorKind::InvalidInput.into());
        };
        let top = match Top::open(plain.parent().unwrap_or(Path::new(""))) {
            Ok(top) => top,
            Err(error) => return self.bad(plain.clone(), &error),
        };
        match self.found(&top, Path::new(""), last.as_bytes(), name.clone(), 0)? {
            Some((below, id)) => self.below(&top, below, id),
            None => Ok(()),
        }
    }

    fn below(&mut self, top: &Top, below: PathBuf, into: usize) -> Result<(), Over> {
        let mut open = vec![(below, into)];
        while let Some((dir, into)) = open.pop() {
            let entries = match self.opener.dir(top, &dir).and_then(|dir| below::names(dir.as_fd())) {
                Ok(entries) => entries,
                Err(error) => {
                    self.bad(top.shown(&dir), &error)?;
                    continue;
                }
            };
            for entry in entries {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Over);
                }
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.bad(top.shown(&dir), &error)?;
                        break;
                    }
                };
                match Name::from_os(OsStr::from_bytes(&entry)) {
                    Ok(name) => open.extend(self.found(top, &dir, &entry, name, into)?),
                    Err(error) => {
                        let path = top.shown(&dir.join(OsStr::from_bytes(&entry)));
                        self.found.send(Found::Bad(path, error.to_string()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes in what is called `entry` in a directory below `top`; one to look into is returned with its number.
    fn found(
        &mut self,
        top: &Top,
        dir: &Path,
        entry: &[u8],
        name: Name,
        into: usize,
    ) -> Result<Option<(PathBuf, usize)>, Over> {
        let below = dir.join(OsStr::from_bytes(entry));
        let found = self.opener.dir(top, dir).and_then(|dir| {
            let stat = below::stat(dir, entry)?;
            let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
            Ok((stat, if link { Some(below::read_link(dir, entry)?) } else { None }))
        });
        let (stat, target) = match found {
            Ok(found) => found,
            Err(error) => return self.bad(top.shown(&below), &error).map(|()| None),
        };
        let (item, bytes) = match (FileType::from_raw_mode(stat.st_mode), target) {
            (FileType::Directory, _) => {
                self.last += 1;
                self.dated.push((self.last, mtime(&stat)));
                let item = Item::Dir { id: self.last, into, name, mode: (stat.st_mode & 0o7777) as u16 };
                self.found.send(Found::Item(item, Source { top: top.clone(), below: below.clone() }, 0))?;
                return Ok(Some((below, self.last)));
            }
            (FileType::RegularFile, _) => (Item::File { into, name }, u64::try_from(stat.st_size).unwrap_or(0)),
            (_, Some(target)) => (Item::Link { into, name, target: target.into(), mtime: mtime(&stat) }, 0),
            (kind, None) => {
                let what = match kind {
                    FileType::Fifo => "a FIFO",
                    FileType::Socket => "a socket",
                    _ => "a device",
                };
                self.found.send(Found::Bad(top.shown(&below), format!("it is {what}, not a file")))?;
                return Ok(None);
            }
        };
        self.totals.files.fetch_add(1, Ordering::Relaxed);
        self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.found.send(Found::Item(item, Source { top: top.clone(), below }, bytes))?;
        Ok(None)
    }

    fn bad(&self, path: PathBuf, error: &io::Error) -> Result<(), Over> {
        Ok(self.found.send(Found::Bad(path, super::cause(error)))?)
    }
}

fn mtime(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}
