//! What a state directory holds is believed when the directory belongs to us and the file is one: anybody can make a
//! directory, a FIFO or a link where a command looks for a mount.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{LOCK, META, StateError, io_error};

/// The longest `meta.json`: a few names and a path.
const META_BYTES: u64 = 1 << 20;

const NOT_REGULAR: &str = "it is not a regular file";

/// Neither a link is followed nor a FIFO waited for.
pub(super) const PLAIN: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a directory of ours; what is below the descriptor stays that directory's whatever happens to the path.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, StateError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| io_error("open", path)(errno.into()))?;
    let owner = rustix::fs::fstat(&dir).map_err(|errno| io_error("read", path)(errno.into()))?.st_uid;
    let us = rustix::process::geteuid().as_raw();
    if owner != us {
        return Err(StateError::NotOurs { path: path.to_owned(), owner, us });
    }
    Ok(dir)
}

/// Whether an open file is a regular one; the error of one that is not.
pub(super) fn regular(file: &File) -> io::Result<()> {
    match file.metadata()?.is_file() {
        true => Ok(()),
        false => Err(io::Error::other(NOT_REGULAR)),
    }
}

/// Opens a regular file to read it.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    match File::options().read(true).custom_flags(PLAIN).open(path) {
        Ok(file) => regular(&file).map(|()| file),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(io::Error::other(NOT_REGULAR)),
        Err(error) => Err(error),
    }
}

/// All of a `meta.json`.
pub(super) fn read_meta_text(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open_plain(path)?.take(META_BYTES + 1).read_to_end(&mut text)?;
    match text.len() as u64 > META_BYTES {
        true => Err(io::Error::other("it is far too long")),
        false => Ok(text),
    }
}

/// Refuses a record that is not made of directories and regular files, before anything of it is opened: its reader
/// would wait for a FIFO's writer, or read a device without end.
pub(super) fn check_record(dir: &Path) -> Result<(), StateError> {
    drop(open_dir(dir)?);
    let odd = |path: PathBuf, wanted| StateError::Io {
        action: "use",
        path,
        source: io::Error::other(format!("it is not a {wanted}")),
    };
    let segments = dir.join("journal");
    match std::fs::symlink_metadata(&segments) {
        Ok(found) if !found.is_dir() => return Err(odd(segments, "directory")),
        _ => {}
    }
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries(dir).chain(entries(&segments)) {
        let name = entry.file_name();
        let read = [META, LOCK].iter().any(|read| name == *read) || name.as_encoded_bytes().starts_with(b"journal");
        match entry.file_type() {
            Ok(kind) if read && !kind.is_file() && !kind.is_dir() => return Err(odd(entry.path(), "regular file")),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a daemon that is another user's: whatever it says would be believed, and it would be given open files.
pub(super) fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if peer != rustix::process::geteuid() {
        let what = format!("who listens there is user {}, not this one", peer.as_raw());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// Whether a directory without a `meta.json` holds nothing else either that would be missed: what a daemon that was just
/// ending wrote into one that was being removed, say.
pub(super) fn is_empty(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.into_iter().all(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let own = [super::README, LOCK, super::LOG, super::SOCKET, "meta.new"].iter().any(|own| name == *own);
            own || name.as_encoded_bytes().starts_with(b"log.")
        })
    })
}

/// A path in JSON: text where it is UTF-8, as early versions wrote all of them.
pub(super) mod any_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserializer, Serializer};

    use crate::path::bytes_as_text;

    pub(in super::super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        bytes_as_text::serialize(path.as_os_str().as_bytes(), serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let bytes = bytes_as_text::deserialize(deserializer)?;
        Ok(OsString::from_vec(bytes.into()).into())
    }
}
