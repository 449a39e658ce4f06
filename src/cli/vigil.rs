//! Waiting for a daemon that may never answer: one that is stopped, or hangs. One that works is never cut off, however
//! long it takes.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::failure::{Failure, mount_command, quoted};
use crate::control::Request;
use crate::control::client::{Client, ClientError, Next};
use crate::mount::state_dir::{self, Known};

/// How long a daemon may say nothing before it is looked at.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How long one may leave a second connection without an answer while it does nothing at all, and while it works: it may
/// hold a lock that long.
const IDLE_PATIENCE: Duration = Duration::from_secs(5);
const BUSY_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why a daemon does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// By SIGSTOP, or by a terminal.
    Stopped,
    /// By a debugger.
    Traced,
    /// It hangs.
    Hangs,
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    state: u8,
    /// Processor time of all threads, in ticks.
    ticks: u64,
    /// Whether a thread waits for a disk.
    waits_for_disk: bool,
}

impl Process {
    /// `None` when there is none, or none that can be seen from here.
    fn look(pid: u32) -> Option<Self> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let (state, ticks) = stat(&dir)?;
        let threads = std::fs::read_dir(dir.join("task")).into_iter().flatten().flatten();
        let waits_for_disk = threads.filter_map(|thread| stat(&thread.path())).any(|(state, _)| state == b'D');
        Some(Self { state, ticks, waits_for_disk })
    }
}

/// State and processor time (`proc_pid_stat(5)`): fields 3, 14 and 15; the second may hold anything but ends with the last
/// parenthesis.
fn stat(dir: &Path) -> Option<(u8, u64)> {
    let text = std::fs::read(dir.join("stat")).ok()?;
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(&text[after..]).ok()?.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|ticks| ticks.parse::<u64>().ok());
    Some((*fields.first()?.as_bytes().first()?, ticks(14)? + ticks(15)?))
}

/// Watches a daemon while a command waits for it.
pub struct Vigil {
    state_dir: PathBuf,
    mountpoint: PathBuf,
    again: String,
    pid: u32,
    /// Whether it has the state directory: what another process does there is no work.
    is_daemon: bool,
    heard: Instant,
    looked: Instant,
    before: Option<Process>,
    /// When it was last seen to work.
    worked: Instant,
    /// A second connection that waits for an answer.
    ping: Option<Client>,
}

impl Vigil {
    /// Over the daemon of a mount, from now on.
    pub fn over(known: &Known, stream: &UnixStream) -> Self {
        let holder = known.holder();
        let pid = peer(stream).or(holder);
        let vigil = Self::new(&known.path, &known.meta.identity.mountpoint, pid, mount_command(known));
        Self { is_daemon: holder.is_some(), ..vigil }
    }

    /// Over the daemon that has a state directory, from now on; `again` mounts it again.
    pub fn new(state_dir: &Path, mountpoint: &Path, pid: Option<u32>, again: String) -> Self {
        let now = Instant::now();
        Self {
            state_dir: state_dir.to_owned(),
            mountpoint: mountpoint.to_owned(),
            again,
            pid: pid.unwrap_or(0),
            is_daemon: pid.is_some(),
            heard: now,
            looked: now,
            before: None,
            worked: now,
            ping: None,
        }
    }

    /// It said something.
    pub fn heard(&mut self) {
        self.heard = Instant::now();
        self.ping = None;
    }

    /// It said nothing. To be called again and again.
    ///
    /// # Errors
    /// When it will not: with the way out.
    pub fn check(&mut self) -> Result<(), Failure> {
        if self.heard.elapsed() < FIRST_LOOK || self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        let process = Process::look(self.pid);
        match process.map(|process| process.state) {
            Some(b'T') => return Err(self.failure(Silence::Stopped)),
            Some(b't') => return Err(self.failure(Silence::Traced)),
            _ => {}
        }
        let works = |now: Process| now.waits_for_disk || self.before.is_some_and(|before| now.ticks > before.ticks);
        if self.is_daemon && process.is_some_and(works) {
            self.worked = Instant::now();
        }
        self.before = process;
        if self.answers_ping() {
            self.heard();
            return Ok(());
        }
        let silent = self.heard.elapsed();
        if silent > BUSY_PATIENCE || (silent > IDLE_PATIENCE && self.worked.elapsed() > IDLE_PATIENCE) {
            return Err(self.failure(Silence::Hangs));
        }
        Ok(())
    }

    /// The failure of a command that gives up for another reason, if the daemon cannot answer now.
    pub fn reason(&self) -> Option<Failure> {
        match Process::look(self.pid)?.state {
            b'T' => Some(self.failure(Silence::Stopped)),
            b't' => Some(self.failure(Silence::Traced)),
            _ => None,
        }
    }

    /// Whether it said anything on a second connection, and be it that it does not understand.
    fn answers_ping(&mut self) -> bool {
        if self.ping.is_none() {
            match state_dir::connect_control(&self.state_dir) {
                Ok(stream) => self.ping = Client::ask(stream, &Request::Ping).ok(),
                // It accepts nobody.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The first connection tells that it has ended.
                Err(_) => return true,
            }
        }
        match self.ping.as_mut().map(|ping| ping.next(Duration::from_millis(1))) {
            Some(Ok(Next::Nothing)) | None => false,
            Some(Ok(Next::Event(_)) | Err(_)) => true,
        }
    }

    fn failure(&self, silence: Silence) -> Failure {
        let pid = self.pid;
        let process = if pid == 0 { String::new() } else { format!(", process {pid},") };
        let (how, goes_on) = match silence {
            Silence::Stopped => ("is stopped", format!("let it go on: kill -CONT {pid}; or end it")),
            Silence::Traced => ("is held by a debugger", "let it go on there; or end it".to_owned()),
            Silence::Hangs => ("does not answer", "end it".to_owned()),
        };
        let (kill, again) = (if pid == 0 { "it".to_owned() } else { pid.to_string() }, &self.again);
        Failure::new(format_args!("its daemon{process} {how}; what was written is safe on this disk")).hint(
            format_args!(
                "{goes_on}, which loses nothing of that: kill -9 {kill}; oxenfs unmount {}; {again}",
                quoted(&self.mountpoint)
            ),
        )
    }
}

/// The process at the other end.
fn peer(stream: &UnixStream) -> Option<u32> {
    let pid = rustix::net::sockopt::socket_peercred(stream).ok()?.pid;
    u32::try_from(pid.as_raw_nonzero().get()).ok()
}

/// The next event of a daemon, however long it takes while it works.
///
/// # Errors
/// When it ends, or does not answer.
pub fn next(client: &mut Client, vigil: &mut Vigil) -> Result<crate::control::Event, Failure> {
    loop {
        match client.next(LOOK_EVERY) {
            Ok(Next::Event(event)) => {
                vigil.heard();
                return Ok(event);
            }
            Ok(Next::Nothing) => vigil.check()?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns when the daemon of a mount answers.
///
/// # Errors
/// When it does not.
pub fn await_answer(known: &Known, stream: UnixStream) -> Result<(), Failure> {
    let mut vigil = Vigil::over(known, &stream);
    let mut ping = asked(&vigil, stream, &Request::Ping)?;
    match next(&mut ping, &mut vigil) {
        // Another version does not know the question, and answers.
        Ok(_) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// [`Client::ask`], with the way out where nobody reads it.
///
/// # Errors
/// As [`Client::ask`].
pub fn asked(vigil: &Vigil, stream: UnixStream, request: &Request) -> Result<Client, Failure> {
    Client::ask(stream, request).map_err(|error| match error {
        ClientError::Silent => vigil.reason().unwrap_or_else(|| vigil.failure(Silence::Hangs)),
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_to_work_and_to_stand_still() {
        let us = Process::look(std::process::id()).unwrap();
        assert_ne!(us.state, b'T');
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        while Process::look(child.id()).unwrap().state != b'T' {
            std::thread::yield_now();
        }
        let vigil = Vigil::new(Path::new("/no"), Path::new("/mnt/my cats"), Some(child.id()), "oxenfs mount x".into());
        let (failure, pid) = (vigil.reason().unwrap(), child.id());
        let cause = format!("its daemon, process {pid}, is stopped; what was written is safe on this disk");
        let hint = format!(
            "let it go on: kill -CONT {pid}; or end it, which loses nothing of that: \
             kill -9 {pid}; oxenfs unmount '/mnt/my cats'; oxenfs mount x"
        );
        assert_eq!((failure.cause, failure.hint), (cause, Some(hint)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Process::look(pid), None);
        assert_eq!(vigil.reason(), None);
    }
}
