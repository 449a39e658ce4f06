//! Questions to a filesystem that may never be answered: the process behind a FUSE mount may be stopped, the server behind
//! another away. A child asks, and is left behind where no answer comes: a thread could not be, for a process does not
//! end before all of its threads have, and one that waits for a request that was taken up cannot be killed.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

/// How long a mount may take to answer what it knows by heart.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an unmount may take: what is written and not flushed goes to the daemon first.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a child that was killed is waited for.
const END_PATIENCE: Duration = Duration::from_millis(100);
/// The longest path that is understood.
const PATH_BYTES: usize = 4096;

/// How the process behind a mount is, as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// It answers, or the path is no mount of a process.
    Answers,
    /// It is gone.
    Gone,
    /// No answer came in time.
    Silent,
}

/// Asks the filesystem at `path` how it is.
pub fn behind(path: &Path) -> Behind {
    // Not stat: the kernel answers that from its cache for as long as it was told to.
    let asked = c_path(path).and_then(|path| {
        in_child(PATIENCE, &mut [], |_| {
            // SAFETY: zeroes are a valid statvfs, which the call fills; the path ends with a zero.
            unsafe {
                let mut facts: libc::statvfs = std::mem::zeroed();
                checked(libc::statvfs(path.as_ptr(), &raw mut facts)).map(|_| 0)
            }
        })
    });
    match asked.map_err(|error| error.raw_os_error()) {
        // With the second the kernel ends what waits while the process is going (`fuse_abort_conn`).
        Err(Some(libc::ENOTCONN | libc::ECONNABORTED)) => Behind::Gone,
        Err(Some(libc::ETIMEDOUT)) => Behind::Silent,
        _ => Behind::Answers,
    }
}

/// `path` from the root and without symbolic links.
///
/// # Errors
/// The filesystem's; [`io::ErrorKind::TimedOut`] when one that lies in its way does not answer.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    let path = c_path(path)?;
    let mut real = [0; PATH_BYTES];
    let length = in_child(PATIENCE, &mut real, |real| {
        // SAFETY: the strings end with a zero, and the buffer is as long as said.
        unsafe {
            let found = checked(libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC))?;
            let mut link = *b"/proc/self/fd/0000000000\0";
            let digits = &mut link[b"/proc/self/fd/".len()..][..10];
            digits.iter_mut().rev().fold(found, |rest, digit| {
                *digit = b'0' + (rest % 10) as u8;
                rest / 10
            });
            // No such name has zeros before it.
            let zeros = digits.iter().take(9).take_while(|digit| **digit == b'0').count();
            digits.copy_within(zeros.., 0);
            digits[10 - zeros..].fill(0);
            let length = libc::readlink(link.as_ptr().cast(), real.as_mut_ptr().cast(), real.len());
            match usize::try_from(length) {
                Ok(length) if length < real.len() => Ok(length),
                Ok(_) => Err(libc::ENAMETOOLONG),
                Err(_) => Err(errno()),
            }
        }
    })?;
    let real = PathBuf::from(OsString::from_vec(real[..length].to_vec()));
    if real.is_absolute() { Ok(real) } else { Err(io::ErrorKind::InvalidFilename.into()) }
}

/// Unmounts `mountpoint`.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::TimedOut`] when it was not done in time: it is gone from the tree by then, or not, and
/// what was written to it goes to its daemon when that goes on.
pub(super) fn unmount(mountpoint: &Path, flags: UnmountFlags) -> io::Result<()> {
    let path = c_path(mountpoint)?;
    let flags = flags.bits() as i32;
    // SAFETY: the path ends with a zero.
    in_child(UNMOUNT_PATIENCE, &mut [], |_| checked(unsafe { libc::umount2(path.as_ptr(), flags) }).map(|_| 0))?;
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn checked(returned: i32) -> Result<i32, i32> {
    if returned < 0 { Err(errno()) } else { Ok(returned) }
}

/// Has a child do `work`, which may make system calls alone: this process may have other threads. It fills `answer` and
/// tells how far, or an errno.
fn in_child(
    patience: Duration,
    answer: &mut [u8],
    work: impl FnOnce(&mut [u8]) -> Result<usize, i32>,
) -> io::Result<usize> {
    let deadline = Instant::now() + patience;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the child makes system calls alone, and ends by one.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: numbers of open files, and memory of this process.
            unsafe {
                hold_nothing_but(null.as_raw_fd(), theirs.as_raw_fd());
                let (head, length) = match work(answer) {
                    Ok(length) => (length as i64, length),
                    Err(errno) => (-i64::from(errno), 0),
                };
                let head = head.to_ne_bytes();
                libc::write(PIPE, head.as_ptr().cast(), head.len());
                libc::write(PIPE, answer.as_ptr().cast(), length);
                libc::_exit(0)
            }
        }
        child => {
            drop(theirs);
            let told = listen(&ours, answer, deadline);
            end(child, told.is_err());
            told?
        }
    }
}

/// Where the child has its end of the pipe.
const PIPE: RawFd = 3;

/// Lets go of all that the caller has open: nobody is to wait for the end of a pipe that a child left behind holds.
///
/// # Safety
/// In a child that uses none of its parent's open files any more.
unsafe fn hold_nothing_but(null: RawFd, pipe: RawFd) {
    unsafe {
        // Out of the way of the numbers that they get.
        let null = libc::fcntl(null, libc::F_DUPFD, 10);
        let pipe = libc::fcntl(pipe, libc::F_DUPFD, 10);
        for standard in 0..3 {
            libc::dup2(null, standard);
        }
        libc::dup2(pipe, PIPE);
        libc::syscall(libc::SYS_close_range, PIPE as u32 + 1, u32::MAX, 0);
    }
}

/// What the child tells. The outer error is that it told nothing in time.
fn listen(pipe: &OwnedFd, answer: &mut [u8], deadline: Instant) -> io::Result<io::Result<usize>> {
    let mut head = [0; 8];
    read_exact(pipe, &mut head, deadline)?;
    let length = i64::from_ne_bytes(head);
    let Ok(length) = usize::try_from(length) else {
        return Ok(Err(io::Error::from_raw_os_error(i32::try_from(-length).unwrap_or(libc::EIO))));
    };
    match answer.get_mut(..length) {
        Some(answer) => read_exact(pipe, answer, deadline).map(|()| Ok(length)),
        None => Ok(Err(io::ErrorKind::InvalidData.into())),
    }
}

fn read_exact(pipe: &OwnedFd, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let mut asked = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, alive during the call.
        match unsafe { libc::poll(&raw mut asked, 1, i32::try_from(left).unwrap_or(i32::MAX)) } {
            0 => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            1.. => match rustix::io::read(pipe, &mut *buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => buffer = &mut buffer[read..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Takes leave of the child: it has ended, or is told to and left behind.
fn end(child: libc::pid_t, kill: bool) {
    let deadline = Instant::now() + END_PATIENCE;
    // SAFETY: a child of this process that nobody waited for yet.
    unsafe {
        if kill {
            libc::kill(child, libc::SIGKILL);
        }
        while libc::waitpid(child, std::ptr::null_mut(), if kill { libc::WNOHANG } else { 0 }) == 0
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_resolved_as_the_standard_library_does() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("a dir")).unwrap();
        std::os::unix::fs::symlink("a dir", root.join("link")).unwrap();
        for path in [root.join("link"), root.join("link/../a dir/."), "/".into(), ".".into()] {
            assert_eq!(real_path(&path).unwrap(), path.canonicalize().unwrap());
        }
        assert_eq!(real_path(&root.join("no")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(real_path(Path::new("a\0b")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(behind(&root), Behind::Answers);
    }

    #[test]
    fn a_child_that_does_not_answer_is_left_behind() {
        let began = Instant::now();
        let asked = in_child(Duration::from_millis(50), &mut [], |_| {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        });
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
