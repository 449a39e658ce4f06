//! Immutable file contents, each in a file named by its hash.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::hash::{ContentHash, HashKind, Hasher};

/// Bytes gathered before they are hashed and written: 1 MiB keeps the hops to blocking threads rare. What stays below
/// it is never written twice.
const GATHERED_BYTES: usize = 1 << 20;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) hash: ContentHash,
    pub(super) size: u64,
}

/// The contents of one repository.
#[derive(Debug, Clone)]
pub(super) struct Versions {
    dir: PathBuf,
    /// Where content is until it is complete; on the same filesystem.
    unfinished: PathBuf,
    kind: HashKind,
}

impl Versions {
    pub(super) fn new(dir: PathBuf, unfinished: PathBuf, kind: HashKind) -> Self {
        Self { dir, unfinished, kind }
    }

    /// Where content with this hash is or would be.
    pub(super) fn path(&self, hash: &ContentHash) -> PathBuf {
        let text = hash.to_string();
        // Two digits spread a large store over 256 directories. Short hashes have fewer digits, never none.
        let (shelf, rest) = text.split_at(text.len().min(2));
        self.dir.join(shelf).join(if rest.is_empty() { "-" } else { rest })
    }

    /// The content with this hash, when it is here.
    pub(super) fn find(&self, hash: &ContentHash) -> Option<Content> {
        if hash.kind() != self.kind {
            return None;
        }
        let size = fs::metadata(self.path(hash)).ok()?.len();
        Some(Content { hash: *hash, size })
    }

    /// Removes every content but these; says how many there were.
    pub(super) fn retain(&self, kept: &HashSet<ContentHash>) -> io::Result<u64> {
        let kept: HashSet<PathBuf> = kept.iter().map(|hash| self.path(hash)).collect();
        let mut removed = 0;
        for shelf in fs::read_dir(&self.dir).into_iter().flatten() {
            for file in fs::read_dir(shelf?.path())? {
                let path = file?.path();
                if !kept.contains(&path) {
                    fs::remove_file(path)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Whether contents have one length, and one time at which they were stored.
    pub(super) fn are_alike(&self, one: &Content, other: &Content) -> bool {
        let stored = |content: &Content| fs::metadata(self.path(&content.hash)).and_then(|file| file.modified()).ok();
        one.size == other.size && stored(one).is_some_and(|time| stored(other) == Some(time))
    }

    /// An empty file to be filled and [kept](Versions::keep).
    pub(super) fn draft(&self) -> io::Result<Draft> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.unfinished.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Draft { file, path })
    }

    /// Makes a complete draft the content with this hash. The draft must not be written to any more.
    pub(super) fn keep(&self, draft: &Draft, hash: &ContentHash) -> io::Result<()> {
        if self.path(hash).exists() {
            return Ok(());
        }
        self.keep_anew(draft, hash)
    }

    /// The same, in place of what may be there.
    pub(super) fn keep_anew(&self, draft: &Draft, hash: &ContentHash) -> io::Result<()> {
        let path = self.path(hash);
        match (fs::rename(&draft.path, &path), path.parent()) {
            (Err(error), Some(shelf)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(shelf)?;
                fs::rename(&draft.path, path)
            }
            (renamed, _) => renamed,
        }
    }

    /// Keeps bytes that are in memory.
    pub(super) fn keep_bytes(&self, bytes: &[u8]) -> io::Result<Content> {
        let hash = ContentHash::of(self.kind, bytes);
        let size = bytes.len() as u64;
        if self.find(&hash).is_none() {
            let mut draft = self.draft()?;
            draft.file.write_all(bytes)?;
            self.keep(&draft, &hash)?;
        }
        Ok(Content { hash, size })
    }
}

/// A file that is being filled; gone when dropped, unless it was kept.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) file: File,
    path: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        // A draft that was kept is no longer there.
        let _ = fs::remove_file(&self.path);
    }
}

/// Content that is arriving in pieces of any size: hashed on the way, on disk as soon as it is longer than
/// [`GATHERED_BYTES`].
pub(super) struct Arriving {
    versions: Versions,
    gathered: Vec<u8>,
    spilled: Option<Spilled>,
}

struct Spilled {
    draft: Draft,
    hasher: Hasher,
    size: u64,
}

impl Arriving {
    pub(super) fn new(versions: &Versions) -> Self {
        Self { versions: versions.clone(), gathered: Vec::new(), spilled: None }
    }

    /// Takes in the next bytes.
    pub(super) async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() < GATHERED_BYTES {
            return Ok(());
        }
        let spilled = match self.spilled.take() {
            Some(spilled) => spilled,
            None => Spilled { draft: self.versions.draft()?, hasher: Hasher::new(self.versions.kind), size: 0 },
        };
        let gathered = std::mem::take(&mut self.gathered);
        let (gathered, spilled) = blocking(move || spilled.write(gathered)).await?;
        self.gathered = gathered;
        self.spilled = Some(spilled);
        Ok(())
    }

    /// Keeps what arrived.
    pub(super) async fn finish(self) -> io::Result<Content> {
        let Self { versions, gathered, spilled } = self;
        blocking(move || {
            let Some(spilled) = spilled else {
                return versions.keep_bytes(&gathered);
            };
            let (_, Spilled { draft, hasher, size }) = spilled.write(gathered)?;
            let hash = hasher.finish();
            versions.keep(&draft, &hash)?;
            Ok(Content { hash, size })
        })
        .await
    }
}

impl Spilled {
    /// Hashes and writes the bytes; hands back their buffer, emptied.
    fn write(mut self, mut bytes: Vec<u8>) -> io::Result<(Vec<u8>, Self)> {
        self.hasher.update(&bytes);
        self.draft.file.write_all(&bytes)?;
        self.size += bytes.len() as u64;
        bytes.clear();
        Ok((bytes, self))
    }
}

/// Inflates a gzip stream of at most `limit` bytes inflated; `None` when it is longer or no gzip.
pub(super) fn inflate(deflated: &[u8], limit: u64) -> Option<Vec<u8>> {
    let mut inflated = Vec::new();
    let read = flate2::read::GzDecoder::new(deflated).take(limit + 1).read_to_end(&mut inflated);
    (read.is_ok() && inflated.len() as u64 <= limit).then_some(inflated)
}

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Writes a small file so that it is there whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(dir: &Path, kind: HashKind) -> Versions {
        let unfinished = dir.join("unfinished");
        fs::create_dir_all(&unfinished).unwrap();
        Versions::new(dir.join("versions"), unfinished, kind)
    }

    #[tokio::test]
    async fn content_is_kept_under_its_hash_whether_it_spilled_or_not() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [HashKind::Xxh3, HashKind::Sha256] {
            let versions = versions(dir.path(), kind);
            for size in [0, 5, GATHERED_BYTES - 1, GATHERED_BYTES, 3 * GATHERED_BYTES + 77] {
                let bytes: Vec<u8> = (0..size).map(|at| (at % 253) as u8).collect();
                let mut arriving = Arriving::new(&versions);
                for piece in bytes.chunks(100_003) {
                    arriving.push(piece).await.unwrap();
                }
                let content = arriving.finish().await.unwrap();
                assert_eq!(content.hash, ContentHash::of(kind, &bytes));
                assert_eq!(versions.find(&content.hash), Some(content));
                assert_eq!(fs::read(versions.path(&content.hash)).unwrap(), bytes);
            }
        }
        assert_eq!(fs::read_dir(dir.path().join("unfinished")).unwrap().count(), 0);
    }

    #[test]
    fn inflating_stops_at_the_limit() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&[7; 1000]).unwrap();
        let deflated = encoder.finish().unwrap();
        assert_eq!(inflate(&deflated, 1000).map(|bytes| bytes.len()), Some(1000));
        assert_eq!(inflate(&deflated, 999), None);
        assert_eq!(inflate(b"no gzip", 999), None);
    }
}
