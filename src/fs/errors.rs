//! Why an operation stops: it cannot be done, or it lacks something first.

use std::io;
use std::sync::Arc;

use crate::namespace::Ino;
use crate::workspace::WorkspaceError;

/// Why an operation cannot be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such file or directory.
    #[error("not found")]
    NotFound,
    /// The name is taken.
    #[error("exists already")]
    Exists,
    /// A directory was expected.
    #[error("not a directory")]
    NotDir,
    /// Anything but a directory was expected.
    #[error("is a directory")]
    IsDir,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The name is over 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// Mounted read-only.
    #[error("read-only mount")]
    ReadOnly,
    /// The caller may not.
    #[error("not permitted")]
    NotPermitted,
    /// The spool's limit or the local disk is reached.
    #[error("no space left in the spool")]
    NoSpace,
    /// Not an open handle, or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// A program runs from it.
    #[error("being executed")]
    TextBusy,
    /// Programs still read what it was before somebody else's commit.
    #[error("being read as it was before another commit")]
    Busy,
    /// The inode is gone.
    #[error("stale handle")]
    Stale,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoData,
    /// Nothing of the kind from there to the end of the file.
    #[error("past the end")]
    PastEnd,
    /// A file has as many names as it may.
    #[error("too many links")]
    TooManyLinks,
    /// It does not fit where it is wanted.
    #[error("out of range")]
    Range,
    /// An extended attribute's value is longer than any may be.
    #[error("value too long")]
    TooBig,
    /// Whoever waits for it was killed.
    #[error("interrupted")]
    Interrupted,
    /// Not on this kind of file, or not with these flags.
    #[error("not supported")]
    Unsupported,
    /// The server or the way to it said no.
    #[error(transparent)]
    Remote(#[from] WorkspaceError),
    /// The local filesystem said no.
    #[error("local filesystem: {0}")]
    Io(#[source] Arc<io::Error>),
}

impl FsError {
    /// In words, without what differs each time: two that have the same are one and the same trouble.
    pub fn reason(&self) -> String {
        match self {
            Self::Remote(error) => error.reason(),
            error => error.to_string(),
        }
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

/// What an operation lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// The base's entries of a directory.
    List(Ino),
    /// The base's entries of a directory and all below it.
    ListAll(Ino),
    /// A file's bytes, to read.
    Fetch(Ino),
    /// A spool file with a file's bytes, to change.
    Own(Ino),
    /// An empty spool file in place of a file's bytes.
    Empty(Ino),
    /// A look at a file in the spool that an earlier daemon left.
    Look(Ino),
    /// A look at all such files of a directory.
    LookIn(Ino),
}

/// Why an operation stopped.
#[derive(Debug)]
pub enum Stop {
    /// It cannot be done.
    Error(FsError),
    /// It can, once this is there.
    Need(Need),
}

/// What an operation answers.
pub type Op<T> = Result<T, Stop>;

impl<E: Into<FsError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}
