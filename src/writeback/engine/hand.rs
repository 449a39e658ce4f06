//! What the engine has in hand: paths with the step decided for each, and what may become of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::hash::ContentHash;
use crate::namespace::Ino;
use crate::path::RepoPath;
use crate::workspace::{Outcome, WorkspaceError};
use crate::writeback::index::Step;
use crate::writeback::item::Capture;
use crate::writeback::source::SourceError;

/// Requests at once that carry many small files, and the files and bytes of one. Measured on a server on the same two
/// cores, files of 16 KiB: 100 a request and 4 requests were the fastest (1,288 to 1,371 files/s; one file a request
/// 440/s, 600 a request 956/s).
const SMALL_REQUESTS: usize = 4;
const SMALL_FILES: usize = 100;
const SMALL_BYTES: u64 = 8 << 20;
/// Large files on their way at once; the backend decides how many parts of each are in flight.
const LARGE_REQUESTS: usize = 4;
/// Files of the middle size on their way at once: a question and at most one part each.
const MIDDLE_REQUESTS: usize = 8;
/// Paths in one request that stages by hash, removes or unstages.
const LIST_PATHS: usize = 1000;
/// Requests of that kind at once.
const LIST_REQUESTS: usize = 2;

/// Something that ran beside the plan has ended.
pub(super) enum Done {
    Hashed(Vec<(Capture, io::Result<(ContentHash, u64)>)>),
    Fetched(Box<Capture>, Result<Arc<File>, SourceError>),
    Listed(Box<Capture>, Result<(), SourceError>),
    Rescued(Ino, Result<(), SourceError>),
    /// An item that was refused for long, and whether the server answers what else it is asked.
    Judged(Box<Item>, String, bool),
    Unrecorded {
        kind: Kind,
        items: Vec<Item>,
        dirs: Dirs,
        error: SourceError,
    },
    Request {
        kind: Kind,
        items: Vec<Item>,
        dirs: Dirs,
        /// It, or one that went at the same time, was sent at least once and never answered.
        unanswered: bool,
        /// How many of its kind went at the same time, with it.
        at_once: usize,
        took: Duration,
        result: Result<Vec<Outcome>, WorkspaceError>,
    },
}

/// The directories that a request removes whole.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    pub all: BTreeSet<RepoPath>,
    /// Those that are watched only as long as it is under way.
    pub threatened: Vec<RepoPath>,
}

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unstage,
    Remove,
    Ask,
    Small,
    Middle,
    Large,
}

impl Kind {
    pub const ALL: [Self; 6] = [Self::Unstage, Self::Remove, Self::Ask, Self::Small, Self::Middle, Self::Large];

    /// How many may go at once.
    pub fn limit(self) -> usize {
        match self {
            Self::Small => SMALL_REQUESTS,
            Self::Middle => MIDDLE_REQUESTS,
            Self::Large => LARGE_REQUESTS,
            Self::Unstage | Self::Remove => 1,
            Self::Ask => LIST_REQUESTS,
        }
    }

    /// Whether this many items and bytes are all that a request takes.
    pub fn is_full(self, items: usize, bytes: u64) -> bool {
        match self {
            Self::Small => items >= SMALL_FILES || bytes >= SMALL_BYTES,
            Self::Middle | Self::Large => items >= 1,
            Self::Unstage | Self::Remove | Self::Ask => items >= LIST_PATHS,
        }
    }
}

/// One of each kind.
#[derive(Debug, Default)]
pub(super) struct ByKind<T>(pub [T; Kind::ALL.len()]);

impl<T> std::ops::Index<Kind> for ByKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> std::ops::IndexMut<Kind> for ByKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

/// A path in hand, and the step decided for it.
#[derive(Debug)]
pub(super) struct Item {
    pub capture: Capture,
    pub step: Step,
    /// The server was asked by hash and does not have it.
    pub asked: bool,
    /// It is small, and asked for before it is sent.
    pub worth_asking: bool,
    /// Downloaded bytes of content that the server was thought to have.
    pub fetched: Option<Arc<File>>,
    /// Its content is marked as being sent.
    pub marked: bool,
}

/// Why a path keeps what it has.
pub(super) struct Kept {
    pub why: String,
    /// Nobody need do anything about it.
    pub passes: bool,
}
