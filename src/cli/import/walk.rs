//! What there is to import, found on a thread of its own while the first of it is already under way.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SendError, SyncSender};

use super::plan::Root;
use crate::control::Item;
use crate::path::Name;

/// The walk's next finding.
#[derive(Debug)]
pub enum Found {
    /// To be made as it is, but for a regular file, whose content is at the path.
    Item(Item, PathBuf, u64),
    /// Cannot be imported.
    Bad(PathBuf, String),
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
        let mut walk = Self { found, totals, stop, last: 0, dated: Vec::new() };
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
            return self.below(&root.source, 0);
        };
        // Without the slashes that would follow a link.
        let plain: PathBuf = root.source.components().collect();
        match fs::symlink_metadata(&plain) {
            Ok(metadata) => self.entry(plain, name.clone(), 0, &metadata),
            Err(error) => self.bad(plain, &error),
        }
    }

    fn below(&mut self, top: &Path, into: usize) -> Result<(), Over> {
        let mut open = vec![(top.to_owned(), into)];
        while let Some((dir, into)) = open.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) => {
                    self.bad(dir, &error)?;
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
                        self.bad(dir.clone(), &error)?;
                        break;
                    }
                };
                let (path, name) = (entry.path(), Name::from_os(&entry.file_name()));
                match (entry.metadata(), name) {
                    (Ok(metadata), Ok(name)) if metadata.is_dir() => {
                        let id = self.dir(&path, name, into, &metadata)?;
                        open.push((path, id));
                    }
                    (Ok(metadata), Ok(name)) => self.entry(path, name, into, &metadata)?,
                    (Err(error), _) => self.bad(path, &error)?,
                    (_, Err(error)) => self.found.send(Found::Bad(path, error.to_string()))?,
                }
            }
        }
        Ok(())
    }

    fn dir(&mut self, path: &Path, name: Name, into: usize, metadata: &Metadata) -> Result<usize, Over> {
        self.last += 1;
        self.dated.push((self.last, mtime(metadata)));
        let item = Item::Dir { id: self.last, into, name, mode: (metadata.mode() & 0o7777) as u16 };
        self.found.send(Found::Item(item, path.to_owned(), 0))?;
        Ok(self.last)
    }

    fn entry(&mut self, path: PathBuf, name: Name, into: usize, metadata: &Metadata) -> Result<(), Over> {
        let kind = metadata.file_type();
        if kind.is_dir() {
            let id = self.dir(&path, name, into, metadata)?;
            return self.below(&path, id);
        }
        let item = if kind.is_file() {
            Item::File { into, name }
        } else if kind.is_symlink() {
            use std::os::unix::ffi::OsStringExt;
            match fs::read_link(&path) {
                Ok(target) => {
                    let target = target.into_os_string().into_vec().into();
                    Item::Link { into, name, target, mtime: mtime(metadata) }
                }
                Err(error) => return self.bad(path, &error),
            }
        } else {
            let what = match () {
                () if kind.is_fifo() => "a FIFO",
                () if kind.is_socket() => "a socket",
                () => "a device",
            };
            return Ok(self.found.send(Found::Bad(path, format!("it is {what}, not a file")))?);
        };
        let bytes = if kind.is_file() { metadata.len() } else { 0 };
        self.totals.files.fetch_add(1, Ordering::Relaxed);
        self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(self.found.send(Found::Item(item, path, bytes))?)
    }

    fn bad(&self, path: PathBuf, error: &io::Error) -> Result<(), Over> {
        Ok(self.found.send(Found::Bad(path, super::cause(error)))?)
    }
}

fn mtime(metadata: &Metadata) -> (i64, u32) {
    (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0))
}
