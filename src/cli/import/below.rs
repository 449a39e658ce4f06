//! Directories and what is in them by their descriptors: a name below one that was opened leads nowhere else, whatever
//! somebody puts in the place of a directory meanwhile.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

/// The directory that a source lies in, or is.
#[derive(Debug, Clone)]
pub struct Top {
    dir: Arc<OwnedFd>,
    /// As it was named.
    named: PathBuf,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

impl Top {
    /// As a person named it: links in it are followed.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(named: &Path) -> io::Result<Self> {
        let path = if named.as_os_str().is_empty() { Path::new(".") } else { named };
        let dir = rustix::fs::open(path, OFlags::PATH | DIRECTORY, Mode::empty())?;
        Ok(Self { dir: Arc::new(dir), named: named.to_owned() })
    }

    /// How a path below it is shown.
    pub fn shown(&self, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() { self.named.clone() } else { self.named.join(below) }
    }
}

/// Opens what lies below tops; what it opened last is at hand for the next.
#[derive(Debug, Default)]
pub struct Opener {
    last: Option<(Arc<OwnedFd>, PathBuf, OwnedFd)>,
}

impl Opener {
    /// A directory, by names alone.
    ///
    /// # Errors
    /// When one of the names is not of a directory, a link to one say.
    pub fn dir(&mut self, top: &Top, below: &Path) -> io::Result<&OwnedFd> {
        let at_hand = self.last.as_ref().is_some_and(|(dir, path, _)| Arc::ptr_eq(dir, &top.dir) && path == below);
        if !at_hand {
            let mut dir = rustix::fs::openat(&*top.dir, c".", OFlags::PATH | DIRECTORY, Mode::empty())?;
            for component in below.components() {
                // Those that a listing had, and no others.
                let Component::Normal(name) = component else { return Err(io::ErrorKind::InvalidInput.into()) };
                dir = rustix::fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | DIRECTORY, Mode::empty())
                    .map_err(in_words)?;
            }
            self.last = Some((top.dir.clone(), below.to_owned(), dir));
        }
        match &self.last {
            Some((_, _, dir)) => Ok(dir),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A regular file to be read. What is there now need not be what was listed: neither a link nor a FIFO is followed
    /// or waited for.
    ///
    /// # Errors
    /// When it is a link, or cannot be read.
    pub fn file(&mut self, top: &Top, below: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let name = below.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.dir(top, below.parent().unwrap_or(Path::new("")))?;
        Ok(rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(in_words)?.into())
    }
}

/// A link where none was.
fn in_words(errno: rustix::io::Errno) -> io::Error {
    match errno {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => {
            io::Error::other("it was replaced while it was being imported")
        }
        errno => errno.into(),
    }
}

/// The names in a directory.
///
/// # Errors
/// When it cannot be read.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>> + use<>> {
    let dir = rustix::fs::openat(dir, c".", OFlags::RDONLY | DIRECTORY, Mode::empty())?;
    let entries = rustix::fs::Dir::new(dir)?;
    let name = |entry: Result<rustix::fs::DirEntry, rustix::io::Errno>| Ok(entry?.file_name().to_bytes().to_vec());
    Ok(entries.map(name).filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))))
}

/// What a name stands for; a link is itself.
///
/// # Errors
/// The kernel's.
pub fn stat(dir: impl AsFd, name: &[u8]) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What a link says.
///
/// # Errors
/// The kernel's.
pub fn read_link(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())?.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_put_in_the_place_of_a_directory_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(path("src/a/b")).unwrap();
        std::fs::create_dir_all(path("secret/b")).unwrap();
        std::fs::write(path("src/a/b/f"), "right").unwrap();
        std::fs::write(path("secret/b/f"), "secret").unwrap();
        let (top, mut opener) = (Top::open(&path("src")).unwrap(), Opener::default());
        let read = |opener: &mut Opener| {
            let mut text = String::new();
            opener.file(&top, Path::new("a/b/f"))?.read_to_string(&mut text)?;
            io::Result::Ok(text)
        };
        assert_eq!(read(&mut opener).unwrap(), "right");
        std::fs::rename(path("src/a"), path("src/was")).unwrap();
        symlink(path("secret"), path("src/a")).unwrap();
        // The one that is open is the one that was listed.
        assert_eq!(read(&mut opener).unwrap(), "right");
        let error = read(&mut Opener::default()).unwrap_err();
        assert_eq!(error.to_string(), "it was replaced while it was being imported");
        let error = Opener::default().file(&top, Path::new("a")).unwrap_err();
        assert_eq!(error.to_string(), "it was replaced while it was being imported");
        assert!(Opener::default().dir(&top, Path::new("../secret")).is_err());
    }
}
