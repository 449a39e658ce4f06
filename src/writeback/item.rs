//! What is staged: a path, what it is to hold as of one moment, and what keeps those bytes as they are.

use std::fs::File;
use std::sync::{Arc, Weak};

use tokio_util::sync::CancellationToken;

use super::index::Account;
use crate::hash::ContentHash;
use crate::namespace::{Generation, Ino, SpoolId};
use crate::path::RepoPath;
use crate::store::journal::PathUpload;
use crate::workspace::{Object, Source};

/// A path and what it should be, as of one moment.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Which path.
    pub path: RepoPath,
    /// Which state of it.
    pub(crate) seq: u64,
    /// What base and workspace have there.
    pub account: Account,
    /// What it should be.
    pub want: Want,
    /// To be sent in a request of its own.
    pub alone: bool,
    /// How far an earlier upload of it came.
    pub upload: Option<PathUpload>,
}

impl Capture {
    /// What keeps its bytes as they are, where they are here.
    pub fn held(&self) -> Option<&Arc<Held>> {
        match &self.want {
            Want::Sealed { held, .. } => Some(held),
            _ => None,
        }
    }

    /// Whether a writer waits for its bytes to be let go of.
    pub fn is_wanted_back(&self) -> bool {
        self.held().is_some_and(|held| held.cancelled().is_cancelled())
    }
}

/// What a path should be.
#[derive(Debug, Clone)]
pub enum Want {
    /// No file.
    Absent,
    /// Whatever the base has.
    AsBase,
    /// Content in the spool, which does not change while this is held.
    Sealed {
        /// Whose content.
        ino: Ino,
        /// Which generation of it.
        generation: Generation,
        /// Its hash, if known.
        hash: Option<ContentHash>,
        /// Its length in bytes.
        size: u64,
        /// Keeps it from changing.
        held: Arc<Held>,
    },
    /// Content that the server had when last heard of.
    Remote {
        /// Whose content.
        ino: Ino,
        /// What.
        object: Object,
        /// Where it can be read.
        source: Option<Source>,
    },
}

impl Want {
    /// The wanted content; `None` twice over: no file, or not hashed yet.
    pub fn object(&self) -> Option<Object> {
        match self {
            Self::Sealed { hash, size, .. } => hash.map(|hash| Object { hash, size: *size }),
            Self::Remote { object, .. } => Some(*object),
            Self::Absent | Self::AsBase => None,
        }
    }

    /// Whether it is this content of this file, on the server.
    pub(crate) fn is_remote(&self, ino: Ino, hash: ContentHash) -> bool {
        matches!(self, Self::Remote { ino: whose, object, .. } if (*whose, object.hash) == (ino, hash))
    }

    /// Length in bytes of the wanted content.
    pub fn size(&self) -> u64 {
        match self {
            Self::Sealed { size, .. } => *size,
            Self::Remote { object, .. } => object.size,
            Self::Absent | Self::AsBase => 0,
        }
    }
}

/// Who keeps the files that are [held](Held).
pub(crate) trait Keeper: Send + Sync {
    /// A spool file is held once less; `by_cut`: by a commit.
    fn let_go(&self, spool: SpoolId, by_cut: bool);
}

/// A spool file that nobody changes while this lives. A writer in a hurry [cancels](Held::cancelled) it.
pub struct Held {
    keeper: Weak<dyn Keeper>,
    spool: SpoolId,
    /// Not where it is held by a commit: that holds very many, and there are only so many open files.
    file: Option<Arc<File>>,
    cancel: CancellationToken,
}

impl Held {
    /// Bytes that `keeper` keeps from changing, until this is dropped; `file`: `None` for a commit's. `cancel` tells
    /// that a writer waits.
    pub(crate) fn new(
        keeper: Weak<dyn Keeper>,
        spool: SpoolId,
        file: Option<Arc<File>>,
        cancel: CancellationToken,
    ) -> Self {
        Self { keeper, spool, file, cancel }
    }

    /// Which spool file it is.
    pub(crate) fn spool(&self) -> SpoolId {
        self.spool
    }

    /// The bytes; always there in what is [taken in hand](super::Source::take_due).
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Completes when a writer waits for the file: let go of it.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({})", self.spool.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.upgrade() {
            keeper.let_go(self.spool, self.file.is_none());
        }
    }
}
