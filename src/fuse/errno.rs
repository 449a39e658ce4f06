//! The one table from errors to `errno`. No wildcard arm: a new error does not compile until someone chooses.

use fuser::Errno;

use crate::fs::FsError;
use crate::workspace::WorkspaceError;

/// The `errno` that a program sees for an error.
pub(super) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDir => Errno::ENOTDIR,
        FsError::IsDir => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::Invalid => Errno::EINVAL,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::ReadOnly => Errno::EROFS,
        FsError::NotPermitted => Errno::EPERM,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::BadHandle => Errno::EBADF,
        FsError::TextBusy => Errno::ETXTBSY,
        FsError::Busy => Errno::EBUSY,
        FsError::Stale => Errno::ESTALE,
        FsError::NoData => Errno::ENODATA,
        FsError::PastEnd => Errno::ENXIO,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::Range => Errno::ERANGE,
        FsError::TooBig => Errno::E2BIG,
        FsError::Interrupted => Errno::EINTR,
        FsError::Unsupported => Errno::EOPNOTSUPP,
        FsError::Remote(error) => remote(error),
        FsError::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_i32),
    }
}

fn remote(error: &WorkspaceError) -> Errno {
    match error {
        WorkspaceError::Unauthorized { .. } | WorkspaceError::Forbidden { .. } => Errno::EACCES,
        // The file was there when it was listed.
        WorkspaceError::NotFound { .. } | WorkspaceError::Conflict { .. } => Errno::ESTALE,
        WorkspaceError::NoSpace { .. } => Errno::EDQUOT,
        WorkspaceError::Unsupported { .. } => Errno::EOPNOTSUPP,
        WorkspaceError::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_i32),
        WorkspaceError::Unreachable { .. }
        | WorkspaceError::TimedOut { .. }
        | WorkspaceError::Busy { .. }
        | WorkspaceError::Server { .. }
        | WorkspaceError::Refused { .. }
        | WorkspaceError::Unconfirmed { .. }
        | WorkspaceError::Overlooked
        | WorkspaceError::Another { .. }
        | WorkspaceError::Protocol { .. } => Errno::EIO,
    }
}
