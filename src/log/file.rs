//! A file of bounded length, with older ones beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked whether the file is still there, and how soon an open that failed is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// The file, and how it is kept short. Owned by the thread that writes.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    limit: u64,
    older: u32,
    /// Standard output and error of the process are the file, too.
    stdio: bool,
    open: Option<Open>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
    /// The last write ended in the middle of a line.
    torn: bool,
}

impl RotatingFile {
    /// The file at `path`, opened by the first write: at most `limit` bytes (and one write, where that is longer), and
    /// `older` of them that were set aside.
    pub(super) fn new(path: PathBuf, limit: u64, older: u32) -> Self {
        Self { path, limit, older, stdio: false, open: None, looked: None }
    }

    /// With standard output and error, where what is no event comes out: the C library's last words, say.
    pub(super) fn with_stdio(mut self) -> Self {
        self.stdio = true;
        self
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// When they are not, or not all, in the file: the disk is full, say. The next write may go well.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.look()?;
        let length = lines.len() as u64;
        if self.open.as_ref().is_some_and(|open| open.len > 0 && open.len.saturating_add(length) > self.limit) {
            self.rotate()?;
        }
        let Some(open) = self.open.as_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if open.torn {
            open.file.write_all(b"\n")?;
            open.len += 1;
            open.torn = false;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match open.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    open.len += written as u64;
                    rest = &rest[written..];
                    open.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the file when it is not open, or is no longer the one at its path. At most once in a while: nobody is to
    /// wait for a directory that is gone, and whoever removes it just now is not to meet a new file in it.
    fn look(&mut self) -> io::Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let there = std::fs::symlink_metadata(&self.path).ok().map(|there| (there.dev(), there.ino()));
        if let Some(open) = &mut self.open {
            let own = open.file.metadata()?;
            // Others write to it as well: what comes out of standard error.
            open.len = own.len();
            if there == Some((own.dev(), own.ino())) {
                return Ok(());
            }
        }
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        let file = open_private(&self.path)?;
        let len = file.metadata()?.len();
        if self.stdio {
            rustix::stdio::dup2_stdout(&file)?;
            rustix::stdio::dup2_stderr(&file)?;
        }
        self.open = Some(Open { file, len, torn: false });
        Ok(())
    }

    /// Sets the file aside and begins another. Where that cannot be, it is emptied: the newest lines are worth more.
    fn rotate(&mut self) -> io::Result<()> {
        match self.set_aside() {
            Ok(()) => self.reopen(),
            Err(error) => {
                let Some(open) = &mut self.open else { return Err(error) };
                open.file.set_len(0)?;
                (open.len, open.torn) = (0, false);
                Ok(())
            }
        }
    }

    fn set_aside(&self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        if self.older == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (0..self.older).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A regular file to append to, made where it is missing, that nobody but its owner can read.
///
/// # Errors
/// When it cannot be opened, or is something else: a link, a pipe.
pub fn open_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe that nobody reads would be waited for.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if found.mode() & 0o077 != 0 {
        file.set_permissions(PermissionsExt::from_mode(0o600))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Logs {
        temp: tempfile::TempDir,
    }

    impl Logs {
        fn new() -> Self {
            Self { temp: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.temp.path().join(name)
        }

        fn text(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.path(name)).ok()
        }
    }

    #[test]
    fn a_long_log_is_set_aside_and_the_oldest_goes() {
        let logs = Logs::new();
        let mut file = RotatingFile::new(logs.path("log"), 100, 3);
        for line in 0..60 {
            file.write(format!("this is line {line:02} of it\n").as_bytes()).unwrap();
        }
        let names = ["log", "log.1", "log.2", "log.3"];
        let texts = names.map(|name| logs.text(name).unwrap());
        assert!(texts.iter().all(|text| text.len() <= 100), "{texts:?}");
        // The newest, in order, none twice and none missing in between.
        let all: String = texts.iter().rev().map(String::as_str).collect();
        let lines: Vec<&str> = all.lines().collect();
        assert_eq!(lines.last(), Some(&"this is line 59 of it"));
        let first: usize = lines[0][13..15].parse().unwrap();
        assert_eq!(lines.len(), 60 - first);
        assert!(lines.len() > 12, "{lines:?}");
        assert_eq!(fs::read_dir(logs.temp.path()).unwrap().count(), 4);
        for name in names {
            assert_eq!(fs::metadata(logs.path(name)).unwrap().mode() & 0o777, 0o600, "{name}");
        }
        // The next process goes on where this one stopped.
        RotatingFile::new(logs.path("log"), 10_000, 3).write(b"another\n").unwrap();
        assert!(logs.text("log").unwrap().ends_with("line 59 of it\nanother\n"));
    }

    #[test]
    fn a_log_that_cannot_be_set_aside_keeps_its_bound_and_the_newest_lines() {
        let logs = Logs::new();
        // Not empty: nothing can be renamed to it.
        fs::create_dir_all(logs.path("log.1/x")).unwrap();
        let mut file = RotatingFile::new(logs.path("log"), 30, 3);
        for line in 0..9 {
            file.write(format!("line {line} of nine\n").as_bytes()).unwrap();
        }
        assert_eq!(logs.text("log").unwrap(), "line 8 of nine\n");
    }

    #[test]
    fn a_log_that_was_removed_is_made_anew_and_one_in_a_directory_that_is_gone_is_not() {
        let logs = Logs::new();
        let dir = logs.path("dir");
        fs::create_dir(&dir).unwrap();
        let mut file = RotatingFile::new(dir.join("log"), 1000, 1);
        file.write(b"one\n").unwrap();
        fs::remove_file(dir.join("log")).unwrap();
        file.looked = None;
        file.write(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "two\n");
        fs::remove_dir_all(&dir).unwrap();
        file.looked = None;
        assert!(file.write(b"three\n").is_err());
        assert!(!dir.exists());
        // Its owner made it again.
        fs::create_dir(&dir).unwrap();
        file.looked = None;
        file.write(b"four\n").unwrap();
        assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "four\n");
    }

    #[test]
    fn only_its_owner_reads_a_log_and_what_is_no_file_is_none() {
        let logs = Logs::new();
        fs::write(logs.path("log"), "old\n").unwrap();
        fs::set_permissions(logs.path("log"), PermissionsExt::from_mode(0o644)).unwrap();
        RotatingFile::new(logs.path("log"), 1000, 1).write(b"new\n").unwrap();
        assert_eq!(fs::metadata(logs.path("log")).unwrap().mode() & 0o777, 0o600);
        std::os::unix::fs::symlink(logs.path("log"), logs.path("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, logs.path("pipe"), rustix::fs::Mode::RWXU).unwrap();
        for other in ["link", "pipe", "."] {
            assert!(RotatingFile::new(logs.path(other), 1000, 1).write(b"x\n").is_err(), "{other}");
        }
        assert_eq!(logs.text("log").unwrap(), "old\nnew\n");
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        // The kernel's own full disk.
        let mut file = RotatingFile::new("/dev/full".into(), 1000, 1);
        file.open = Some(Open { file: File::options().append(true).open("/dev/full").unwrap(), len: 0, torn: false });
        file.looked = Some(Instant::now() + LOOK);
        assert_eq!(file.write(b"lost\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        let logs = Logs::new();
        file.path = logs.path("log");
        file.looked = None;
        file.write(b"there\n").unwrap();
        assert_eq!(logs.text("log").unwrap(), "there\n");
    }
}
