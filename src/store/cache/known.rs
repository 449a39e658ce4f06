//! Which files a cache has, and which of them goes first.

use std::collections::HashSet;
use std::path::PathBuf;

use lru::LruCache;

use crate::count;
use crate::hash::ContentHash;

/// Which of the files of a cache go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Copies of what a commit has.
    Committed,
    /// Of what is staged alone: whoever deletes the workspace, or prunes, takes it from the server.
    Staged,
}

/// The files that a cache has, by name and length, least recently used first out.
pub(super) struct KnownFiles {
    committed: LruCache<Key, u64>,
    staged: LruCache<Key, u64>,
    /// Bytes of each.
    committed_bytes: u64,
    staged_bytes: u64,
    /// What is staged and not committed, here or not.
    uncommitted: HashSet<Key>,
    /// What came or was used last: its reader is about to open it.
    newest: Option<Key>,
}

impl KnownFiles {
    pub fn new() -> Self {
        Self {
            committed: LruCache::unbounded(),
            staged: LruCache::unbounded(),
            committed_bytes: 0,
            staged_bytes: 0,
            uncommitted: HashSet::new(),
            newest: None,
        }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.committed_bytes + self.staged_bytes
    }

    pub fn class(&mut self, class: Class) -> (&mut LruCache<Key, u64>, &mut u64) {
        match class {
            Class::Committed => (&mut self.committed, &mut self.committed_bytes),
            Class::Staged => (&mut self.staged, &mut self.staged_bytes),
        }
    }

    pub fn class_of(&self, key: &Key) -> Class {
        if self.uncommitted.contains(key) { Class::Staged } else { Class::Committed }
    }

    pub fn is_uncommitted(&self, key: &Key) -> bool {
        self.uncommitted.contains(key)
    }

    pub fn has(&self, key: &Key) -> bool {
        self.committed.contains(key) || self.staged.contains(key)
    }

    pub fn put(&mut self, key: Key, size: u64) {
        self.remove(&key);
        let (files, bytes) = self.class(self.class_of(&key));
        files.put(key, size);
        *bytes += size;
        self.newest = Some(key);
    }

    /// [`put`](Self::put) of a file that was used before all others, if it is new.
    pub fn put_oldest(&mut self, key: Key, size: u64) {
        if !self.has(&key) {
            let (class, newest) = (self.class_of(&key), self.newest);
            self.put(key, size);
            self.class(class).0.demote(&key);
            self.newest = newest.or(Some(key));
        }
    }

    pub fn promote(&mut self, key: &Key) {
        self.committed.promote(key);
        self.staged.promote(key);
        self.newest = Some(*key);
    }

    pub fn remove(&mut self, key: &Key) -> Option<u64> {
        for class in [Class::Committed, Class::Staged] {
            let (files, bytes) = self.class(class);
            if let Some(size) = files.pop(key) {
                count::take(bytes, size, "cache.bytes");
                return Some(size);
            }
        }
        None
    }

    pub fn pop(&mut self, class: Class) -> Option<Key> {
        let (files, bytes) = self.class(class);
        let (key, size) = files.pop_lru()?;
        count::take(bytes, size, "cache.bytes");
        Some(key)
    }

    pub fn note_staged(&mut self, key: Key) {
        let newest = self.newest;
        if self.uncommitted.insert(key)
            && let Some(size) = self.remove(&key)
        {
            self.put(key, size);
        }
        self.newest = newest;
    }

    /// What was committed is newer than what is: it goes last of those.
    pub fn note_all_staged(&mut self, uncommitted: HashSet<Key>) {
        self.uncommitted = uncommitted;
        let mut moved = Vec::new();
        for (key, _) in self.committed.iter().filter(|(key, _)| self.uncommitted.contains(*key)) {
            moved.push(*key);
        }
        for (key, _) in self.staged.iter().rev().filter(|(key, _)| !self.uncommitted.contains(*key)) {
            moved.push(*key);
        }
        let newest = self.newest;
        for key in moved {
            if let Some(size) = self.remove(&key) {
                self.put(key, size);
            }
        }
        self.newest = newest;
    }

    /// What goes first.
    pub fn first(&self) -> Option<Class> {
        let class = if self.committed.is_empty() { Class::Staged } else { Class::Committed };
        (!self.committed.is_empty() || !self.staged.is_empty()).then_some(class)
    }

    /// What goes because there is more than `limit`: never the newest, which its reader is about to open. What is staged
    /// keeps its place beside that, within the limit.
    pub fn over(&self, limit: u64) -> Option<Class> {
        let goes = |files: &LruCache<Key, u64>| files.peek_lru().is_some_and(|(key, _)| self.newest != Some(*key));
        if self.committed_bytes + self.staged_bytes <= limit {
            None
        } else if goes(&self.committed) {
            Some(Class::Committed)
        } else {
            (self.staged_bytes > limit && goes(&self.staged)).then_some(Class::Staged)
        }
    }
}

/// What content is called in the cache: 128 bits of its hash, which is all of an XXH3. There may be millions of them in
/// memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key(pub [u8; 16]);

impl Key {
    pub fn of(hash: ContentHash) -> Self {
        match hash {
            ContentHash::Xxh3(bytes) => Self(bytes),
            ContentHash::Sha256(bytes) => Self(*bytes.first_chunk().unwrap_or(&[0; 16])),
        }
    }

    pub fn name(self) -> PathBuf {
        format!("{:02x}/{:x}", self.0[15], u128::from_be_bytes(self.0)).into()
    }

    pub fn parse(name: &str) -> Option<Self> {
        u128::from_str_radix(name, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}
