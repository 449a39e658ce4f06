//! From a command to a daemon: fork, leave the terminal, and tell the command how it went.
//!
//! The command waits on a pipe. One JSON line on it says that the mount answers, or why it does not; the end of the
//! pipe without a line means that the child died, and its log tells why.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

/// What the child says once the mount answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What the server says of itself.
    pub server_version: String,
    /// The protocol spoken with it.
    pub dialect: String,
    /// The repository was made.
    pub created: bool,
    /// The server is away.
    pub offline: bool,
    /// Changes of an earlier mount that are being sent now.
    pub resumed: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What the child says when there will be no mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What could not be done.
    pub what: String,
    /// Why.
    pub cause: String,
    /// The command or act that mends it.
    pub hint: Option<String>,
    /// The command's exit code.
    pub exit: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Message {
    Ready(Ready),
    Failed(Report),
}

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The command, after the child said how it went.
    Parent(Outcome),
    /// The daemon to be.
    Child(Notifier),
}

/// How it went.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The mount answers.
    Ready(Ready),
    /// It does not, for this reason.
    Failed(Report),
    /// The child ended without a word.
    Died {
        /// In words: its exit code or signal.
        how: String,
        /// The last lines that it logged, if any.
        log_tail: Vec<String>,
        /// The whole log.
        log: PathBuf,
    },
}

/// What a mount tells whoever waits for it; from any thread. Telling twice has no effect.
pub struct Notifier {
    listener: Arc<Mutex<Option<Listener>>>,
    background: bool,
}

/// Who waits.
enum Listener {
    /// A command, at the other end of a pipe.
    Command(OwnedFd),
    /// This process itself, in the foreground.
    Here(Box<dyn FnOnce(Ready) + Send>),
}

impl Notifier {
    /// For a mount in the foreground: `on_ready` is called when it answers. A failure is `run`'s to return.
    pub fn foreground(on_ready: impl FnOnce(Ready) + Send + 'static) -> Self {
        Self { listener: Arc::new(Mutex::new(Some(Listener::Here(Box::new(on_ready))))), background: false }
    }

    fn background(pipe: OwnedFd) -> Self {
        Self { listener: Arc::new(Mutex::new(Some(Listener::Command(pipe)))), background: true }
    }

    /// Says that the mount answers. From here on the daemon outlives the command.
    ///
    /// # Errors
    /// When the command is gone: the user gave up waiting.
    pub fn ready(&self, ready: Ready) -> io::Result<()> {
        self.tell(Message::Ready(ready))
    }

    /// Says why there is no mount.
    ///
    /// # Errors
    /// When the command is gone.
    pub fn failed(&self, report: Report) -> io::Result<()> {
        self.tell(Message::Failed(report))
    }

    /// Whether a command still waits for a word.
    pub fn is_waited_for(&self) -> bool {
        matches!(*locked(&self.listener), Some(Listener::Command(_)))
    }

    /// Whether this is a daemon: nobody sees what it prints.
    pub fn is_background(&self) -> bool {
        self.background
    }

    fn tell(&self, message: Message) -> io::Result<()> {
        // Taken before anything is written: the command ends upon it, and `end_with_command` must not mind.
        let listener = locked(&self.listener).take();
        match (listener, message) {
            (Some(Listener::Command(pipe)), message) => {
                let mut line = serde_json::to_vec(&message)?;
                line.push(b'\n');
                File::from(pipe).write_all(&line)
            }
            (Some(Listener::Here(on_ready)), Message::Ready(ready)) => {
                on_ready(ready);
                Ok(())
            }
            (Some(Listener::Here(_)), Message::Failed(_)) | (None, _) => Ok(()),
        }
    }

    /// Watches the pipe until something was told: when the command is gone before (Ctrl-C), this process gets SIGTERM,
    /// so that no mount appears that nobody waits for.
    fn end_with_command(&self) -> io::Result<()> {
        let watched = match &*locked(&self.listener) {
            Some(Listener::Command(pipe)) => pipe.try_clone()?,
            _ => return Ok(()),
        };
        let listener = self.listener.clone();
        std::thread::Builder::new().name("handshake".into()).spawn(move || {
            let mut asked = libc::pollfd {
                fd: watched.as_raw_fd(),
                events: 0, // the reader's end reports itself as POLLERR, asked for or not
                revents: 0,
            };
            // SAFETY: one pollfd, alive during the call.
            while unsafe { libc::poll(&raw mut asked, 1, -1) } < 0 {
                if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                    return;
                }
            }
            if locked(&listener).is_some() {
                let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
            }
        })?;
        Ok(())
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let background = self.background;
        f.debug_struct("Notifier").field("background", &background).finish_non_exhaustive()
    }
}

fn locked(listener: &Mutex<Option<Listener>>) -> std::sync::MutexGuard<'_, Option<Listener>> {
    listener.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Forks. The child leads a session of its own in `/`, with no input and with `log` for both outputs; of the files
/// that the command inherited it keeps none (a pipe of the caller would stay open as long as the mount). Until it has
/// told how it went, it ends with the command. The parent returns when the child has told how it went.
///
/// # Errors
/// When a thread exists already (a fork would lose it), or a system call fails. In the child, all errors go through
/// the pipe.
pub fn daemonize(log: &Path) -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a thread was started before the fork"));
    }
    let log_file = crate::log::open_private(log)?;
    let log_start = log_file.metadata()?.len();
    let (from_child, to_parent) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread (checked above), so the child may do all that the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(from_child);
            let notifier = Notifier::background(to_parent);
            match leave_terminal(&log_file).and_then(|()| notifier.end_with_command()) {
                Ok(()) => Ok(Fork::Child(notifier)),
                Err(error) => {
                    let _ = notifier.failed(Report {
                        what: "cannot start in the background".into(),
                        cause: error.to_string(),
                        hint: Some("mount with --foreground".into()),
                        exit: 1,
                    });
                    std::process::exit(1);
                }
            }
        }
        child => {
            drop(to_parent);
            Ok(Fork::Parent(await_word(from_child, child, log, log_start)?))
        }
    }
}

fn leave_terminal(log: &File) -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    close_inherited()
}

/// Closes what was inherited from the command's caller. Whatever this process opened itself is close-on-exec, as
/// everything that the standard library opens; what is not came from outside.
fn close_inherited() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) {
            open.push(fd);
        }
    }
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: only asks for flags; a number that is closed by now (the listing's own) gives an error.
        let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) });
        if flags.is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC)) {
            // SAFETY: nothing in this process owns it: see above.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

fn await_word(pipe: OwnedFd, child: i32, log: &Path, log_start: u64) -> io::Result<Outcome> {
    let mut line = Vec::new();
    // A message is a few hundred bytes; a child gone mad must not fill the command's memory.
    BufReader::new(File::from(pipe)).take(1 << 20).read_until(b'\n', &mut line)?;
    match serde_json::from_slice(&line) {
        Ok(Message::Ready(ready)) => Ok(Outcome::Ready(ready)),
        Ok(Message::Failed(report)) => Ok(Outcome::Failed(report)),
        Err(_) => Ok(Outcome::Died {
            how: how_it_ended(child),
            log_tail: tail(log, log_start).unwrap_or_default(),
            log: log.to_owned(),
        }),
    }
}

fn how_it_ended(child: i32) -> String {
    let ended = Pid::from_raw(child).map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::empty()));
    match ended {
        Some(Ok(Some((_, status)))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "an unknown reason".into(),
        },
        _ => "an unknown reason".into(),
    }
}

/// The last lines that were logged from `start` on.
fn tail(log: &Path, start: u64) -> io::Result<Vec<String>> {
    const LINES: usize = 10;
    const BYTES: u64 = 16 << 10;
    let mut file = File::open(log)?;
    let end = file.metadata()?.len();
    // A long log was set aside meanwhile, and this is another.
    let start = if start > end { 0 } else { start };
    file.seek(SeekFrom::Start(start.max(end.saturating_sub(BYTES))))?;
    let mut text = Vec::new();
    file.take(BYTES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    Ok(last.iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let (from_child, to_parent) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let notifier = Notifier::background(to_parent);
        let report = Report { what: "cannot mount ox/cats".into(), cause: "a\nb".into(), hint: None, exit: 1 };
        notifier.failed(report.clone()).unwrap();
        assert!(!notifier.is_waited_for());
        notifier.failed(report.clone()).unwrap();
        let outcome = await_word(from_child, 0, Path::new("/dev/null"), 0).unwrap();
        assert_eq!(outcome, Outcome::Failed(report));
    }

    #[test]
    fn only_what_the_dead_child_logged_is_shown() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log");
        std::fs::write(&log, "an older run\n").unwrap();
        let start = std::fs::metadata(&log).unwrap().len();
        let mut file = File::options().append(true).open(&log).unwrap();
        for line in 0..30 {
            writeln!(file, "line {line}").unwrap();
        }
        let tail = tail(&log, start).unwrap();
        assert_eq!(tail.len(), 10);
        assert_eq!(tail[9], "line 29");
    }
}
