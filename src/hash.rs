//! Content hashes, in the form the server's dialect uses, and the one streaming pass that computes them.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::str::FromStr;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3Default;

/// Bytes read at a time: 1 MiB keeps the buffer in the second-level cache and the system calls rare.
const CHUNK_BYTES: usize = 1 << 20;
/// As long as files are no longer than this, no more memory is touched: most are.
const FIRST_BYTES: usize = 64 << 10;

/// Which function names content on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashKind {
    /// XXH3-128, seed 0: every released `oxen-server`.
    Xxh3,
    /// SHA-256: the documented API's example.
    Sha256,
}

/// The hash of a file's whole content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContentHash {
    /// Big-endian bytes of the 128-bit number.
    Xxh3([u8; 16]),
    /// The digest.
    Sha256([u8; 32]),
}

impl ContentHash {
    /// Which function made it.
    pub fn kind(&self) -> HashKind {
        match self {
            Self::Xxh3(_) => HashKind::Xxh3,
            Self::Sha256(_) => HashKind::Sha256,
        }
    }

    /// Hashes a byte string.
    pub fn of(kind: HashKind, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(kind);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Hashes a whole file with positioned reads (never through a mapping: a truncation would be a SIGBUS) and
    /// returns its length too. `go_on` is asked before each mebibyte.
    ///
    /// # Errors
    /// What reading gives; [`io::ErrorKind::Interrupted`] when `go_on` said no.
    pub fn of_file(kind: HashKind, file: &File, go_on: impl FnMut() -> bool) -> io::Result<(Self, u64)> {
        Self::of_file_through(kind, file, &mut Vec::new(), go_on)
    }

    /// [`of_file`](Self::of_file) for many files: the buffer is made once.
    ///
    /// # Errors
    /// As [`of_file`](Self::of_file).
    pub fn of_file_through(
        kind: HashKind,
        file: &File,
        buffer: &mut Vec<u8>,
        mut go_on: impl FnMut() -> bool,
    ) -> io::Result<(Self, u64)> {
        if buffer.len() < FIRST_BYTES {
            buffer.resize(FIRST_BYTES, 0);
        }
        let mut hasher = Hasher::new(kind);
        let mut offset = 0;
        let mut holes = Holes::of(file);
        loop {
            if !go_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if offset >= CHUNK_BYTES as u64
                && let Some(zeros) = holes.at(file, offset)
            {
                let zeros = zeros.min(CHUNK_BYTES as u64);
                hasher.update(&ZEROS[..zeros as usize]);
                offset += zeros;
                continue;
            }
            let read = match file.read_at(buffer, offset) {
                Ok(0) => return Ok((hasher.finish(), offset)),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&buffer[..read]);
            offset += read as u64;
            if read == buffer.len() && read < CHUNK_BYTES {
                buffer.resize(CHUNK_BYTES, 0);
            }
        }
    }
}

/// What a hole reads as.
static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// The holes of a file that is hashed from its beginning: nobody has to read them.
struct Holes {
    /// Its length, where it has any; else 0.
    size: u64,
    /// The data that begins next: nothing is asked before it is passed.
    data: (u64, u64),
}

impl Holes {
    fn of(file: &File) -> Self {
        // Of what was written without holes it is known without a question for each stretch.
        let sparse = file.metadata().ok().filter(|found| found.blocks() * 512 < found.len());
        Self { size: sparse.map_or(0, |found| found.len()), data: (0, 0) }
    }

    /// How much from `offset` on is a hole, if anything is.
    fn at(&mut self, file: &File, offset: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        if offset >= self.data.1 {
            self.data = match seek(file, SeekFrom::Data(offset)) {
                Ok(data) => (data, seek(file, SeekFrom::Hole(data)).unwrap_or(self.size)),
                Err(Errno::NXIO) => (self.size, self.size),
                // A filesystem that cannot tell.
                Err(_) => (0, self.size),
            };
        }
        Some(self.data.0.min(self.size).saturating_sub(offset)).filter(|hole| *hole > 0)
    }
}

/// A hash under way.
pub enum Hasher {
    /// XXH3-128.
    Xxh3(Box<Xxh3Default>),
    /// SHA-256.
    Sha256(Box<Sha256>),
}

impl Hasher {
    /// An empty one.
    pub fn new(kind: HashKind) -> Self {
        match kind {
            HashKind::Xxh3 => Self::Xxh3(Box::new(Xxh3Default::new())),
            HashKind::Sha256 => Self::Sha256(Box::new(Sha256::new())),
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Xxh3(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// The hash of all bytes taken in.
    pub fn finish(self) -> ContentHash {
        match self {
            Self::Xxh3(hasher) => ContentHash::Xxh3(hasher.digest128().to_be_bytes()),
            Self::Sha256(hasher) => ContentHash::Sha256((*hasher).finalize().into()),
        }
    }
}

/// Lower-case hex. XXH3 has no leading zeros, as the server prints it (`{:x}` of a `u128`); SHA-256 has all 64 digits.
impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xxh3(bytes) => write!(f, "{:x}", u128::from_be_bytes(*bytes)),
            Self::Sha256(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Tells a part of a file from what it is not: XXH3-64, seed 0. For nothing that leaves this machine.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The same in 128 bits: XXH3-128, seed 0, also to name what has no content hash.
pub fn wide_checksum(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// The text is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a content hash: {0:?}")]
pub struct BadHash(String);

/// 64 hex digits are SHA-256; 1 to 32 are XXH3-128, leading zeros or not.
impl FromStr for ContentHash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        let bad = || BadHash(text.chars().take(80).collect());
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        match text.len() {
            64 => {
                let mut bytes = [0; 32];
                for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
                }
                Ok(Self::Sha256(bytes))
            }
            1..=32 => Ok(Self::Xxh3(u128::from_str_radix(text, 16).map_err(|_| bad())?.to_be_bytes())),
            _ => Err(bad()),
        }
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn agrees_with_the_server_on_known_content() {
        // Printed by oxen-server 0.65.2 for an empty file and for `hello`.
        assert_eq!(ContentHash::of(HashKind::Xxh3, b"").to_string(), "99aa06d3014798d86001c324468d497f");
        assert_eq!(ContentHash::of(HashKind::Xxh3, b"hello").to_string(), "b5e9c1ad071b3e7fc779cfaa5e523818");
        // FIPS 180-2, the digest of the empty string.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(ContentHash::of(HashKind::Sha256, b"").to_string(), empty);
    }

    #[test]
    fn short_hex_is_the_same_number() {
        let short: ContentHash = "ed934864edb1b4105884a96c438a35".parse().unwrap();
        let long: ContentHash = "00ed934864edb1b4105884a96c438a35".parse().unwrap();
        assert_eq!(short, long);
        assert_eq!(long.to_string(), "ed934864edb1b4105884a96c438a35");
    }

    #[test]
    fn text_that_is_no_hash_is_refused() {
        for bad in ["", "xyz", &"a".repeat(33), &"a".repeat(65), "-1"] {
            assert!(bad.parse::<ContentHash>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_hashes_like_its_bytes_across_chunks() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 77).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for kind in [HashKind::Xxh3, HashKind::Sha256] {
            let (hash, size) = ContentHash::of_file(kind, &file, || true).unwrap();
            assert_eq!((hash, size), (ContentHash::of(kind, &bytes), bytes.len() as u64));
        }
        assert!(ContentHash::of_file(HashKind::Xxh3, &file, || false).is_err());
    }

    #[test]
    fn holes_are_hashed_as_the_zeros_that_they_read_as() {
        let mut odd = vec![0u8; (9 << 20) + 777];
        let file = tempfile::tempfile().unwrap();
        for (at, len) in [(0, 10), (3 << 20, 5000), ((5 << 20) + 1, 1 << 20), ((9 << 20) + 700, 77)] {
            odd[at..at + len].fill(at as u8 | 1);
            file.write_all_at(&odd[at..at + len], at as u64).unwrap();
        }
        assert!(file.metadata().unwrap().blocks() * 512 < 3 << 20, "it has holes");
        for end in [odd.len(), 9 << 20, (4 << 20) + 3] {
            file.set_len(end as u64).unwrap();
            for kind in [HashKind::Xxh3, HashKind::Sha256] {
                let (found, size) = ContentHash::of_file(kind, &file, || true).unwrap();
                assert_eq!((found, size), (ContentHash::of(kind, &odd[..end]), end as u64));
            }
        }
        // Nobody reads a terabyte of nothing: what is asked for now and then is whether to go on.
        file.set_len(1 << 40).unwrap();
        let mut asked = 0;
        let stopped = ContentHash::of_file(HashKind::Xxh3, &file, || {
            asked += 1;
            asked < 100
        });
        assert_eq!((stopped.unwrap_err().kind(), asked), (io::ErrorKind::Interrupted, 100));
    }
}
