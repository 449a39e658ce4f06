//! What a restore dropped: kept in the state directory until the next commit, or for a week, or until its room is needed.
//!
//! ```text
//! kept/ID/0 1 2 ...      bytes of files
//! kept/ID/items.json    what they were, and what took their place; one object with the SHA-256 of the rest of it
//! ```
//!
//! The record is written last, and removed first: a directory without one holds nothing that was promised.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::now_secs;
use crate::hash::{ContentHash, HashKind};
use crate::namespace::Attrs;
use crate::path::RepoPath;
use crate::store::disk::{Act, Disk};
use crate::sync::Mutex;
use crate::workspace::{Object, Source};

/// The directory in a state directory.
const KEPT: &str = "kept";
const RECORD: &str = "items.json";
const SUM: &str = "sha256";
/// How long it is kept.
const KEPT_SECS: u64 = 7 * 24 * 3600;
/// The longest record that is read.
const RECORD_BYTES: u64 = 1 << 30;

/// An extended attribute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Xattr {
    #[serde(rename = "n", with = "crate::path::bytes_as_text")]
    pub name: Box<[u8]>,
    #[serde(rename = "v", with = "crate::path::bytes_as_text")]
    pub value: Box<[u8]>,
}

/// What was at a path.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Was {
    /// No file.
    Nothing,
    /// A file whose bytes are kept.
    File {
        /// The number of the file that has them.
        file: u64,
        size: u64,
        attrs: Attrs,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        xattrs: Vec<Xattr>,
    },
    /// A file as a commit has it.
    Committed { object: Object, source: Source },
}

/// One path of a restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Item {
    pub path: RepoPath,
    pub was: Was,
    /// What took its place; `None`: nothing.
    pub now: Option<Object>,
}

/// All of a restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// When, in seconds since the epoch.
    pub made: u64,
    /// What is counted for the bytes.
    pub counted: u64,
    pub items: Vec<Item>,
}

/// What is known of a record without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    pub id: u64,
    pub made: u64,
    pub counted: u64,
}

/// What is kept, and where.
pub(super) struct Kept {
    disk: Disk,
    dir: PathBuf,
    /// In the order in which they were made.
    batches: Mutex<Vec<Batch>>,
}

fn sum_of(object: &serde_json::Map<String, serde_json::Value>) -> serde_json::Result<String> {
    let mut rest = object.clone();
    rest.remove(SUM);
    Ok(ContentHash::of(HashKind::Sha256, &serde_json::to_vec(&rest)?).to_string())
}

impl Kept {
    /// What is kept in a state directory. What was begun and not ended goes; what is damaged stays as it is.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn open(disk: &Disk, state: &Path) -> io::Result<Self> {
        let kept = Self { disk: disk.clone(), dir: state.join(KEPT), batches: Mutex::default() };
        let entries = match fs::read_dir(&kept.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok()) else { continue };
            match kept.read(id) {
                Ok(record) => found.push(Batch { id, made: record.made, counted: record.counted }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => kept.remove(id),
                Err(error) => tracing::warn!(%error, id, "what a restore kept cannot be read; it stays as it is"),
            }
        }
        found.sort_unstable_by_key(|batch| batch.id);
        *kept.lock() = found;
        Ok(kept)
    }

    fn lock(&self) -> crate::sync::MutexGuard<'_, Vec<Batch>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, the newest last.
    pub fn batches(&self) -> Vec<Batch> {
        self.lock().clone()
    }

    fn dir_of(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}"))
    }

    /// Where the bytes of a file are.
    pub fn file(&self, id: u64, file: u64) -> PathBuf {
        self.dir_of(id).join(file.to_string())
    }

    /// Begins one; returns its number.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn begin(&self) -> io::Result<u64> {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX >> 1);
        let last = self.lock().last().map_or(0, |batch| batch.id);
        let mut id = now.max(last + 1);
        while self.dir_of(id).exists() {
            id += 1;
        }
        self.disk.make_dirs(&self.dir_of(id))?;
        Ok(id)
    }

    /// Makes a file for bytes, empty.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn create(&self, id: u64, file: u64) -> io::Result<File> {
        let path = self.file(id, file);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create_new(true).mode(0o600);
        self.disk.act(Act::Create(&path), || open.open(&path))
    }

    /// Puts a record on stable storage, in place of the one of before.
    fn write(&self, id: u64, record: &Record) -> io::Result<()> {
        let dir = self.dir_of(id);
        let mut value = serde_json::to_value(record)?;
        if let Some(object) = value.as_object_mut() {
            object.insert(SUM.into(), sum_of(object)?.into());
        }
        let text = serde_json::to_vec(&value)?;
        let (new, path) = (dir.join("items.new"), dir.join(RECORD));
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600);
        let mut file = self.disk.act(Act::Create(&new), || open.open(&new))?;
        self.disk.act(Act::Write(&file), || (&file).write_all(&text))?;
        file.flush()?;
        self.disk.flush(&file)?;
        self.disk.rename(&new, &path)?;
        self.disk.flush_dir(&dir)?;
        self.disk.flush_dir(&self.dir)
    }

    /// Ends one: from here on it is kept.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn finish(&self, id: u64, record: &Record) -> io::Result<()> {
        self.write(id, record)?;
        self.lock().push(Batch { id, made: record.made, counted: record.counted });
        Ok(())
    }

    /// Keeps these items alone of one.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn rewrite(&self, id: u64, record: &Record) -> io::Result<()> {
        self.write(id, record)
    }

    /// What is on record of one.
    ///
    /// # Errors
    /// The filesystem's; [`io::ErrorKind::InvalidData`] when it is not as it was written.
    pub fn read(&self, id: u64) -> io::Result<Record> {
        let path = self.dir_of(id).join(RECORD);
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path)?;
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        if !file.metadata()?.is_file() {
            return Err(damaged("it is no file"));
        }
        let mut text = Vec::new();
        file.take(RECORD_BYTES).read_to_end(&mut text)?;
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
        let sum = sum_of(&object)?;
        if object.remove(SUM).and_then(|found| found.as_str().map(str::to_owned)) != Some(sum) {
            return Err(damaged("it is not as it was written"));
        }
        serde_json::from_value(object.into()).map_err(|error| damaged(&error.to_string()))
    }

    /// Forgets one, and removes it.
    pub fn remove(&self, id: u64) {
        self.lock().retain(|batch| batch.id != id);
        let dir = self.dir_of(id);
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let remove = |path: &Path| match self.disk.remove(path) {
            Err(error) if !gone(&error) => tracing::warn!(%error, path = %path.display(), "cannot be removed"),
            _ => {}
        };
        remove(&dir.join(RECORD));
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            remove(&entry.path());
        }
        if let Err(error) = self.disk.remove_dir(&dir)
            && !gone(&error)
        {
            tracing::warn!(%error, path = %dir.display(), "cannot be removed");
        }
    }

    /// Those that have been kept for long enough.
    pub fn expired(&self) -> Vec<Batch> {
        let now = now_secs();
        self.lock().iter().filter(|batch| now.saturating_sub(batch.made) >= KEPT_SECS).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_what_was_not_ended_goes() {
        let temp = tempfile::tempdir().unwrap();
        let open = || Kept::open(&Disk::default(), temp.path()).unwrap();
        let kept = open();
        assert_eq!(kept.batches(), []);
        let path = RepoPath::parse("a/b").unwrap();
        let items = vec![Item { path, was: Was::Nothing, now: None }];
        let record = Record { made: now_secs(), counted: 7, items };
        let (whole, begun) = (kept.begin().unwrap(), kept.begin().unwrap());
        drop(kept.create(whole, 0).unwrap());
        drop(kept.create(begun, 0).unwrap());
        kept.finish(whole, &record).unwrap();
        let kept = open();
        assert_eq!(kept.batches(), [Batch { id: whole, made: record.made, counted: 7 }]);
        assert!(!kept.dir_of(begun).exists());
        assert_eq!(kept.read(whole).unwrap().items.len(), 1);
        // One that is damaged is neither believed nor removed.
        let file = kept.dir_of(whole).join(RECORD);
        let text = fs::read_to_string(&file).unwrap().replace("a/b", "a/c");
        fs::write(&file, text).unwrap();
        let kept = open();
        assert_eq!(kept.batches(), []);
        assert_eq!(kept.read(whole).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(kept.file(whole, 0).exists());
        kept.remove(whole);
        assert!(!kept.dir_of(whole).exists());
    }
}
