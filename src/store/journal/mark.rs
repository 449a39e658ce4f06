//! The mark: a small file beside the record with the number of the last frame that is known to be on stable storage.
//!
//! What a record of a later boot lacks in front of the mark is damage; behind it a power loss may have taken it. The mark
//! is written over after a flush of the record and not flushed itself, so it may lag by one flush, and never runs ahead. It
//! also has the last frame that was written, as of the last flush or the last second: that counts within the boot alone,
//! where nothing that was written is lost.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::format::{LAST_NUMBER, Sum, checksum};
use crate::store::disk::{Act, Disk};
use crate::sync::Mutex;

/// Its length, always: written at once within a sector.
const LENGTH: usize = 256;

/// How far a record is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The last segment; 0 when there is none yet.
    pub segment: u64,
    /// The number of the last frame on stable storage.
    pub flushed: u64,
    /// That of the last frame written in `boot`.
    pub written: u64,
    /// The boot of the machine that `written` is of.
    pub boot: String,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none.
    Nothing,
    /// It is not as it was written.
    Damaged,
    /// This.
    Mark(Mark),
}

impl Found {
    pub fn mark(&self) -> Option<&Mark> {
        match self {
            Self::Mark(mark) => Some(mark),
            _ => None,
        }
    }
}

impl Mark {
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut body = serde_json::to_vec(self)?;
        let sum: Sum = checksum(&body);
        body.push(b' ');
        body.extend_from_slice(&sum);
        if body.len() >= LENGTH {
            return Err(io::ErrorKind::InvalidData.into());
        }
        body.resize(LENGTH - 1, b' ');
        body.push(b'\n');
        Ok(body)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = bytes.trim_ascii_end();
        let at = text.iter().rposition(|byte| *byte == b' ')?;
        let mark = (checksum(&text[..at]) == text[at + 1..]).then(|| serde_json::from_slice::<Self>(&text[..at]).ok());
        mark.flatten().filter(|mark| mark.segment.max(mark.flushed).max(mark.written) <= LAST_NUMBER)
    }
}

/// Reads it.
pub(super) fn read(path: &Path) -> io::Result<Found> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
        Ok(file) if !file.is_file() || file.len() > LENGTH as u64 => return Ok(Found::Damaged),
        Ok(_) => {}
    }
    Ok(Mark::parse(&fs::read(path)?).map_or(Found::Damaged, Found::Mark))
}

/// Makes it, in place of what is there, and has it on stable storage with its name.
pub(super) fn make(disk: &Disk, path: &Path, mark: &Mark) -> io::Result<File> {
    let new = PathBuf::from(path.as_os_str().to_owned()).with_extension("new");
    let mut open = OpenOptions::new();
    open.create(true).write(true).truncate(true).mode(0o600);
    let file = disk.act(Act::Create(&new), || open.open(&new))?;
    disk.write_at(&file, &mark.bytes()?, 0)?;
    disk.flush(&file)?;
    disk.rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| disk.flush_dir(dir))?;
    Ok(file)
}

/// The file while its record is in use.
pub(super) struct Keeper {
    disk: Disk,
    state: Mutex<(File, Mark)>,
}

impl Keeper {
    pub fn new(disk: &Disk, file: File, mark: Mark) -> Self {
        Self { disk: disk.clone(), state: Mutex::new((file, mark)) }
    }

    /// Moves it on. That it cannot be written costs nothing but what it would have told.
    pub fn advance(&self, segment: u64, flushed: Option<u64>, written: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, mark) = &mut *state;
        let next = Mark {
            segment: mark.segment.max(segment),
            flushed: mark.flushed.max(flushed.unwrap_or(0)),
            written: mark.written.max(written),
            boot: self.disk.boot().to_owned(),
        };
        if next == *mark {
            return;
        }
        match next.bytes().and_then(|bytes| self.disk.write_at(file, &bytes, 0)) {
            Ok(()) => *mark = next,
            Err(error) => tracing::debug!(%error, "the journal's mark lags"),
        }
    }
}
