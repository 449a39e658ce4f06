//! Request bodies of known length, streamed from files without holding them in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tokio::sync::mpsc;

/// Bytes handed to the network at a time: large enough for few system calls and wake-ups, small enough that a dozen
/// requests in flight, each with some of them, need a few MiB.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait for the network while the next is read: neither waits for the other.
const PIECES_AHEAD: usize = 1;
/// Pieces kept for the next requests: memory that is new to the process costs about as much as copying into it.
const SPARE_PIECES: usize = 8;
/// With fewer bytes of holes than this a file is read as one without.
const SPARSE_BYTES: u64 = 1 << 20;

/// A stretch of a body.
#[derive(Debug, Clone)]
pub(super) enum Segment {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Bytes of a file that nobody changes meanwhile.
    File {
        /// The file, read with positioned reads.
        file: Arc<File>,
        /// Where the stretch begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Which of the request's items it belongs to.
        item: usize,
    },
}

impl Segment {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

/// A file that could not be read while its bytes were on their way.
#[derive(Debug)]
pub(super) struct Trouble {
    /// The item it belongs to.
    pub item: usize,
    /// What reading gave.
    pub error: io::Error,
}

/// A body: stretches one after the other. It can be sent any number of times.
#[derive(Debug, Clone)]
pub(super) struct Body {
    segments: Arc<[Segment]>,
    len: u64,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

impl Body {
    /// The stretches in order.
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        let len = segments.iter().map(Segment::len).sum();
        Self { segments: segments.into(), len, trouble: Arc::default() }
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What went wrong on this side since the last call: a request that failed for it says only that it broke.
    pub(super) fn take_trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The body for one request.
    pub(super) fn open(&self) -> reqwest::Body {
        if let [Segment::Bytes(bytes)] = &*self.segments {
            return bytes.clone().into();
        }
        let mut cursor = Cursor { segments: self.segments.clone(), index: 0, at: 0, holes: Holes::default() };
        let (send, receive) = mpsc::channel(PIECES_AHEAD);
        // One thread for the whole body. It ends when the body does, or with the request, which drops the other end.
        tokio::task::spawn_blocking(move || {
            loop {
                let piece = cursor.piece();
                let last = piece.as_ref().map_or(true, Bytes::is_empty);
                if send.blocking_send(piece).is_err() || last {
                    return;
                }
            }
        });
        let start = (receive, self.trouble.clone());
        reqwest::Body::wrap_stream(futures_util::stream::try_unfold(start, |(mut receive, trouble)| async move {
            match receive.recv().await {
                // What was read ahead and never wanted is no trouble of the request's.
                Some(Err(Trouble { item, error })) => {
                    let kind = error.kind();
                    *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(Trouble { item, error });
                    Err(io::Error::from(kind))
                }
                Some(Ok(piece)) if !piece.is_empty() => Ok(Some((piece, (receive, trouble)))),
                Some(Ok(_)) => Ok(None),
                // The thread panicked.
                None => Err(io::ErrorKind::Other.into()),
            }
        }))
    }
}

/// A piece of a body, whose memory is used again.
struct Piece {
    memory: Box<[u8]>,
    len: usize,
}

impl Piece {
    fn spares() -> MutexGuard<'static, Vec<Box<[u8]>>> {
        static SPARES: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());
        SPARES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new() -> Self {
        let spare = Self::spares().pop();
        Self { memory: spare.unwrap_or_else(|| vec![0; PIECE_BYTES].into()), len: 0 }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut spares = Self::spares();
        if spares.len() < SPARE_PIECES {
            spares.push(std::mem::take(&mut self.memory));
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(vec![Segment::Bytes(bytes.into())])
    }
}

/// How far one sending of a body got.
struct Cursor {
    segments: Arc<[Segment]>,
    index: usize,
    at: u64,
    holes: Holes,
}

/// What is known of the holes of the stretch that is being sent.
#[derive(Default)]
struct Holes {
    /// Which stretch, and the length of its file, if it has holes; else 0.
    of: Option<(usize, u64)>,
    /// The data that begins next.
    data: (u64, u64),
}

impl Holes {
    /// Whether all of a range is a hole.
    fn is_hole(&mut self, index: usize, file: &File, at: u64, len: u64) -> bool {
        let size = match self.of {
            Some((known, size)) if known == index => size,
            _ => {
                // Of a short one it is not worth the question.
                let sparse = file.metadata().ok().filter(|found| found.blocks() * 512 + SPARSE_BYTES <= found.len());
                let size = sparse.map_or(0, |found| found.len());
                (self.of, self.data) = (Some((index, size)), (0, 0));
                size
            }
        };
        if at + len > size {
            return false;
        }
        if at >= self.data.1 {
            self.data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => (data, seek(file, SeekFrom::Hole(data)).unwrap_or(size)),
                Err(Errno::NXIO) => (size, size),
                // A filesystem that cannot tell.
                Err(_) => (0, size),
            };
        }
        at + len <= self.data.0
    }
}

impl Cursor {
    /// The next [`PIECE_BYTES`], across stretches; fewer at the end, none behind it.
    fn piece(&mut self) -> Result<Bytes, Trouble> {
        let mut piece = Piece::new();
        while piece.len < PIECE_BYTES {
            let Some(segment) = self.segments.get(self.index) else { break };
            let left = segment.len() - self.at;
            if left == 0 {
                self.index += 1;
                self.at = 0;
                continue;
            }
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES - piece.len);
            let into = &mut piece.memory[piece.len..piece.len + take];
            match segment {
                Segment::Bytes(bytes) => {
                    let start = self.at as usize; // below the length of bytes in memory
                    into.copy_from_slice(&bytes[start..start + take]);
                }
                Segment::File { file, offset, item, .. } => {
                    let at = offset + self.at;
                    // The protocol has no word for a hole in what goes in parts: it is sent as zeros, and not read.
                    match self.holes.is_hole(self.index, file, at, take as u64) {
                        true => into.fill(0),
                        false => file.read_exact_at(into, at).map_err(|error| Trouble { item: *item, error })?,
                    }
                }
            }
            piece.len += take;
            self.at += take as u64;
        }
        Ok(Bytes::from_owner(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn all(body: &Body) -> Result<Vec<u8>, Trouble> {
        let mut cursor = Cursor { segments: body.segments.clone(), index: 0, at: 0, holes: Holes::default() };
        let mut bytes = Vec::new();
        loop {
            let piece = cursor.piece()?;
            if piece.is_empty() {
                return Ok(bytes);
            }
            assert!(piece.len() <= PIECE_BYTES);
            bytes.extend_from_slice(&piece);
        }
    }

    #[test]
    fn stretches_follow_each_other_across_pieces() {
        let long: Vec<u8> = (0..PIECE_BYTES * 2 + 33).map(|i| (i % 251) as u8).collect();
        let body = Body::new(vec![
            Segment::Bytes(Bytes::from_static(b"head")),
            Segment::File { file: file(&long), offset: 3, len: long.len() as u64 - 3, item: 0 },
            Segment::Bytes(Bytes::new()),
            Segment::File { file: file(b""), offset: 0, len: 0, item: 1 },
            Segment::Bytes(Bytes::from_static(b"tail")),
        ]);
        let expected = [b"head", &long[3..], b"tail"].concat();
        assert_eq!(body.len(), expected.len() as u64);
        assert_eq!(all(&body).unwrap(), expected);
    }

    #[test]
    fn holes_are_sent_as_zeros() {
        let mut content = vec![0u8; (8 << 20) + 77];
        let sparse = tempfile::tempfile().unwrap();
        for (at, len) in [(0, 10), ((3 << 20) - 7, 5000), ((8 << 20) + 70, 7)] {
            content[at..at + len].fill(7);
            sparse.write_all_at(&content[at..at + len], at as u64).unwrap();
        }
        let sparse = Arc::new(sparse);
        let stretch = |offset: u64, len: u64| Segment::File { file: sparse.clone(), offset, len, item: 0 };
        let body = Body::new(vec![
            stretch(0, content.len() as u64),
            Segment::Bytes(Bytes::from_static(b"between")),
            stretch(1 << 20, 3 << 20),
        ]);
        let expected = [&content[..], b"between", &content[1 << 20..4 << 20]].concat();
        assert!(all(&body).unwrap() == expected);
    }

    #[test]
    fn a_file_shorter_than_promised_names_its_item() {
        let body = Body::new(vec![
            Segment::File { file: file(b"whole"), offset: 0, len: 5, item: 0 },
            Segment::File { file: file(b"short"), offset: 0, len: 6, item: 1 },
        ]);
        let trouble = all(&body).unwrap_err();
        assert_eq!((trouble.item, trouble.error.kind()), (1, io::ErrorKind::UnexpectedEof));
    }
}
