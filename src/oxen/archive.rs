//! Many small contents in one answer: `QUERY versions` takes hashes, and answers with a gzip tar archive that has each
//! content under its hash (0.65.2, tried).

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use reqwest::{Method, StatusCode};
use tokio::sync::mpsc;

use super::OxenWorkspace;
use super::http::{Answer, Request};
use super::retry::{Patience, retry};
use super::wire;
use crate::hash::ContentHash;
use crate::workspace::{Object, Take, WorkspaceError};

/// Pieces of an answer that wait to be unpacked.
const PIECES: usize = 16;
/// Unit of an archive.
const BLOCK: u64 = 512;
/// How much is passed over for each file: what some writers put in front of one.
const PASSED_OVER_BYTES: u64 = 64 << 10;
/// What may follow the end of an archive.
const BEHIND_BYTES: u64 = 1 << 20;

/// Contents that have not come yet, and how long each is.
type Left = Arc<Mutex<HashMap<ContentHash, u64>>>;

/// What an answer was.
enum Answered {
    /// All that was asked for.
    Whole,
    /// None, because the server does not have these.
    Missing(Vec<ContentHash>),
    /// Something that an Oxen server that can do this does not say.
    Otherwise,
}

impl OxenWorkspace {
    /// See [`fetch_small`](crate::workspace::Workspace::fetch_small).
    pub(super) async fn fetch_archive(
        &self,
        wanted: &[Object],
        take: &Take,
    ) -> Result<Option<Vec<ContentHash>>, WorkspaceError> {
        if self.no_archives.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let left: Left = Arc::new(Mutex::new(wanted.iter().map(|object| (object.hash, object.size)).collect()));
        let mut missing = Vec::new();
        while !locked(&left).is_empty() {
            match retry(Patience::Several, || self.ask_for_archive(&left, take)).await {
                Ok(Answered::Whole) => {}
                // It sends nothing when any is missing: the others are asked for again.
                Ok(Answered::Missing(named)) => {
                    locked(&left).retain(|hash, _| !named.contains(hash));
                    missing.extend(named);
                }
                Ok(Answered::Otherwise)
                | Err(
                    WorkspaceError::Refused { .. }
                    | WorkspaceError::Forbidden { .. }
                    | WorkspaceError::Server { status: 501, .. },
                ) => {
                    tracing::info!("the server does not give many files at once; they are asked for one by one");
                    self.no_archives.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(missing))
    }

    async fn ask_for_archive(&self, left: &Left, take: &Take) -> Result<Answered, WorkspaceError> {
        let query = Method::from_bytes(b"QUERY").map_err(|error| WorkspaceError::from(io::Error::other(error)))?;
        // The server takes no other than gzip, and panics on what is no whole hash (0.65.2, tried).
        let mut body = GzEncoder::new(Vec::new(), Compression::fast());
        for hash in locked(left).keys() {
            writeln!(body, "{hash}")?;
        }
        let request = Request::new(query, self.repo.url("versions"), "contents by their hashes")
            .body("application/gzip", body.finish()?.into())
            .answered_by(StatusCode::NOT_FOUND);
        let answer = self.repo.http.send(&request).await?;
        if answer.status != StatusCode::NOT_FOUND {
            return unpack(answer, left, take).await.map(|()| Answered::Whole);
        }
        let error = match answer.json::<wire::MissingAnswer>().await {
            Ok(answer) => answer.error,
            // A page of a gateway's, or of a server that has no such route.
            Err(WorkspaceError::Protocol { .. }) => return Ok(Answered::Otherwise),
            Err(error) => return Err(error),
        };
        let named = error.missing_hashes.iter().filter_map(|text| wire::hash(text));
        let named: Vec<ContentHash> = named.filter(|hash| locked(left).contains_key(hash)).collect();
        match error.kind == "version_blobs_missing" && !named.is_empty() {
            true => Ok(Answered::Missing(named)),
            false => Ok(Answered::Otherwise),
        }
    }
}

/// Hands on what is in an archive while it arrives. What was handed on is left no more, also when the rest does not come.
async fn unpack(mut answer: Answer, left: &Left, take: &Take) -> Result<(), WorkspaceError> {
    let request = Some(answer.id());
    let (sender, pieces) = mpsc::channel(PIECES);
    let (still_left, take) = (left.clone(), take.clone());
    // Inflating and writing would hold up the other tasks of a thread. Ends with the sender.
    let unpacking = tokio::task::spawn_blocking(move || {
        let pieces = Pieces { from: pieces, current: Bytes::new() };
        unpack_all(GzDecoder::new(pieces), &still_left, &take)
    });
    let arrived = async {
        while let Some(piece) = answer.piece().await? {
            if sender.send(piece).await.is_err() {
                // It is no such archive, which the other side tells.
                break;
            }
        }
        Ok(())
    };
    let arrived: Result<(), WorkspaceError> = arrived.await;
    drop(sender);
    let unpacked = unpacking.await.map_err(|error| WorkspaceError::from(io::Error::other(error)))?;
    arrived?;
    let lacking = locked(left).len();
    match unpacked {
        Ok(()) if lacking == 0 => Ok(()),
        Ok(()) => Err(WorkspaceError::Protocol { detail: format!("{lacking} contents did not come"), request }),
        Err(error) => Err(WorkspaceError::Protocol { detail: format!("an archive of contents: {error}"), request }),
    }
}

/// What arrives of an answer, as a file is read.
struct Pieces {
    from: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.current.len());
        into[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Reads a POSIX tar archive in which each file is named by its hash. Nothing is taken that was not asked for, or that has
/// another length: what a server sends takes no more memory than what it was asked for.
fn unpack_all(mut archive: impl Read, left: &Left, take: &Take) -> io::Result<()> {
    let mut passed_over = PASSED_OVER_BYTES.saturating_mul(locked(left).len() as u64);
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    loop {
        let mut header = [0; BLOCK as usize];
        match archive.read_exact(&mut header) {
            // Some writers leave out what marks the end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && locked(left).is_empty() => return Ok(()),
            read => read?,
        }
        if header.iter().all(|byte| *byte == 0) {
            // So that the connection can be used again.
            io::copy(&mut archive.take(BEHIND_BYTES), &mut io::sink())?;
            return Ok(());
        }
        let size = size_of(&header).ok_or_else(|| odd("an entry has no length"))?;
        let padding = (BLOCK - size % BLOCK) % BLOCK;
        match header[156] {
            b'0' | 0 => {
                let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
                let name = std::str::from_utf8(name).map_err(|_| odd("an entry's name is not text"))?;
                let hash = name.split('/').rev().find_map(wire::hash).ok_or_else(|| odd("an entry is no content"))?;
                if locked(left).get(&hash) != Some(&size) {
                    return Err(odd(&format!("{hash} of {size} bytes is not what was asked for")));
                }
                let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
                archive.read_exact(&mut bytes)?;
                locked(left).remove(&hash);
                take(Object { hash, size }, bytes);
            }
            _ if size <= passed_over => {
                // An archive without end ends.
                passed_over -= size.max(1);
                io::copy(&mut archive.by_ref().take(size), &mut io::sink())?;
            }
            _ => return Err(odd("an entry is no file")),
        }
        archive.read_exact(&mut [0; BLOCK as usize][..padding as usize])?;
    }
}

/// The length in a header: octal digits, or binary as GNU tar has it.
fn size_of(header: &[u8; BLOCK as usize]) -> Option<u64> {
    let field = &header[124..136];
    if field[0] & 0x80 != 0 {
        return Some(u64::from_be_bytes(field[4..].try_into().ok()?));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(digits, 8).ok()
}

fn locked(left: &Left) -> MutexGuard<'_, HashMap<ContentHash, u64>> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;

    fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK as usize];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        bytes[156] = kind;
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        bytes
    }

    fn unpacked(archive: &[u8], wanted: &[&[u8]]) -> (io::Result<()>, Vec<Vec<u8>>, usize) {
        let hash = |bytes: &&[u8]| (ContentHash::of(HashKind::Xxh3, bytes), bytes.len() as u64);
        let left: Left = Arc::new(Mutex::new(wanted.iter().map(hash).collect()));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let to = taken.clone();
        let take: Take = Arc::new(move |_, bytes| to.lock().unwrap().push(bytes));
        let done = unpack_all(archive, &left, &take);
        let taken = taken.lock().unwrap().clone();
        (done, taken, locked(&left).len())
    }

    #[test]
    fn nothing_is_taken_that_was_not_asked_for() {
        let (one, two) = (&b"one"[..], &b"a second content"[..]);
        let name = |bytes: &[u8]| ContentHash::of(HashKind::Xxh3, bytes).to_string();
        let end = vec![0; 2 * BLOCK as usize];
        let plain = [entry(&name(one), b'0', one), entry(&name(two), 0, two)].concat();
        for whole in [plain.clone(), [plain.clone(), end.clone()].concat()] {
            let (done, taken, left) = unpacked(&whole, &[one, two]);
            done.unwrap();
            assert_eq!((taken, left), (vec![one.to_vec(), two.to_vec()], 0));
        }
        let passed = [entry("about", b'x', b"25 path=what"), entry(&name(one), b'0', one), end.clone()].concat();
        assert_eq!(unpacked(&passed, &[one]).1, [one.to_vec()]);
        for (odd, wanted) in [
            // Of another length, of another name, twice, cut off, no file, no archive.
            (entry(&name(one), b'0', b"longer than one"), &[one][..]),
            (entry(&name(two), b'0', two), &[one]),
            ([entry(&name(one), b'0', one), entry(&name(one), b'0', one)].concat(), &[one]),
            (plain[..plain.len() - BLOCK as usize].to_vec(), &[one, two]),
            (entry(&name(one), b'2', &[0; 1 << 17]), &[one]),
            (b"<html>".repeat(200), &[one]),
        ] {
            assert!(unpacked(&odd, wanted).0.is_err());
        }
        let huge = {
            let mut header = entry(&name(one), b'0', b"");
            header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
            header
        };
        assert!(unpacked(&huge, &[one]).0.is_err());
    }
}
