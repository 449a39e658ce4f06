//! Hashing of what was taken in hand: beside everything else, many small files at a time.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;

use super::Engine;
use super::hand::Done;
use crate::count;
use crate::hash::{ContentHash, HashKind};
use crate::writeback::item::{Capture, Held, Want};
use crate::writeback::source::Failed;

/// Hashing tasks at once: each reads the page cache at several GB/s, so two keep two cores busy. And the files and bytes
/// of one: handing a small file to another thread costs more than hashing it.
const HASHING: usize = 2;
const HASHED_FILES: usize = 32;
const HASHED_BYTES: u64 = 1 << 20;

impl Engine {
    /// Starts all hashing that may run now.
    pub(super) fn start_hashing(&mut self) {
        while self.hashing < HASHING && !self.to_hash.is_empty() {
            let (mut captures, mut bytes) = (Vec::new(), 0u64);
            while let Some(next) = self.to_hash.front() {
                bytes = bytes.saturating_add(next.want.size());
                // A long one goes alone: whoever writes to another would wait for it.
                if !captures.is_empty() && (captures.len() == HASHED_FILES || bytes > HASHED_BYTES) {
                    break;
                }
                captures.extend(self.to_hash.pop_front());
            }
            self.hashing += 1;
            self.running.push(hash(captures, self.hash_kind).boxed());
        }
    }

    pub(super) fn hashed(&mut self, capture: Capture, result: io::Result<(ContentHash, u64)>) {
        let Want::Sealed { ino, generation, size, ref held, .. } = capture.want else {
            return;
        };
        match result {
            Ok((found, length)) if length == size => {
                self.source.hashed(ino, generation, found);
                let held = held.clone();
                let want = Want::Sealed { ino, generation, hash: Some(found), size, held };
                self.decide(Capture { want, ..capture }, None, false);
            }
            // A writer wants the file, or it is longer or shorter than when it was captured: look again.
            Ok(_) => self.put_back(&capture.path),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.put_back(&capture.path),
            Err(error) => {
                count::take(&mut self.in_hand, 1, "staging.in-hand");
                self.fail(&capture, &format!("cannot read the spooled bytes: {error}"), Failed::Parked);
            }
        }
    }
}

async fn hash(captures: Vec<Capture>, kind: HashKind) -> Done {
    let held: Vec<_> = captures.iter().map(|capture| capture.held().cloned()).collect();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut buffer = Vec::new();
        let hash = |held: Option<Arc<Held>>| {
            let held = held.ok_or(io::ErrorKind::InvalidInput)?;
            let file = held.file().ok_or(io::ErrorKind::InvalidInput)?;
            ContentHash::of_file_through(kind, file, &mut buffer, || !held.cancelled().is_cancelled())
        };
        held.into_iter().map(hash).collect::<Vec<_>>()
    });
    let results = match hashed.await {
        Ok(results) => results,
        Err(error) => captures.iter().map(|_| Err(io::Error::other(error.to_string()))).collect(),
    };
    Done::Hashed(captures.into_iter().zip(results).collect())
}
