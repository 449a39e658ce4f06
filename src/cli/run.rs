//! `oxenfs run`: a mount for as long as one command runs, and what it wrote staged or committed when it has ended.

mod children;
mod namespace;

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;

use super::args::{OnFail, RunArgs};
use super::done;
use super::failure::{Doing, Failure, OWED, quoted};
use super::output::{count, json, note, warn, without_credentials};
use super::repo;
use super::seams;
use crate::config::Environment;
use crate::mount::state_dir::StateDir;
use namespace::Namespace;

/// `oxenfs run` itself failed, the command cannot be run, there is no such command: as of env(1).
const OURS: u8 = 125;
const NOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// The command was well, all of it is on the server, and the commit failed.
const NOT_COMMITTED: u8 = 4;

/// How long the daemon may take to end once the mount is gone, and how often that is looked at.
const END_PATIENCE: Duration = Duration::from_secs(30);
const END_CHECK: Duration = Duration::from_millis(20);
/// How often it is looked whether the daemon has ended before it was there.
const READY_CHECK: Duration = Duration::from_millis(200);

/// Who gets the signals that this process is sent.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// `oxenfs run`.
pub fn run(args: RunArgs, state_dir: Option<PathBuf>, environment: &Environment) -> Result<u8, Failure> {
    let what = format!("cannot run a command with {}", without_credentials(&args.repo));
    let ours = |failure: Failure| Failure { exit: OURS, ..failure.doing(&what) };
    let job = Job::make(&args, state_dir, environment).map_err(ours)?;
    // Before there is another thread.
    let namespace = namespace::enter();
    if namespace == Namespace::Host {
        note(format_args!(
            "{} can be seen by others of this user: no mount namespace can be made here",
            quoted(&job.mountpoint)
        ));
    }
    let daemon = job.mount(&args).map_err(|failure| {
        job.remove();
        ours(failure)
    })?;
    forward_signals();
    children::adopt();
    let command = job.command(&args);
    children::end_all(daemon.id());
    if let Err((_, error)) = &command {
        warn(format_args!("cannot run {}: {error}", quoted(Path::new(&args.command[0]))));
    }
    let command_exit = command.map_or_else(|(exit, _)| exit, exit_of);
    job.finish(&args, namespace, daemon, command_exit).map_err(ours)
}

/// What a shell would make of how a command ended.
fn exit_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(OURS),
        (None, Some(signal)) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
        (None, None) => OURS,
    }
}

/// What is left when the mount has gone.
#[derive(Debug, Default)]
struct Left {
    /// Nothing was to be committed, or it was.
    is_committed: bool,
    commit: Option<String>,
    /// `None`: it was dropped.
    workspace: Option<String>,
    staged_files: u64,
    owed_files: u64,
    owed_bytes: u64,
    local_files: u64,
}

/// Where a command's mount and its state are.
struct Job {
    /// The state root of this job.
    state: PathBuf,
    /// It was made for it, and goes when nothing is left in it that is nowhere else.
    is_temporary: bool,
    mountpoint: PathBuf,
    /// So was the directory that it is mounted on.
    is_made: bool,
    /// Where other commands find it.
    announced: PathBuf,
    binary: PathBuf,
}

impl Job {
    fn make(args: &RunArgs, state_dir: Option<PathBuf>, environment: &Environment) -> Result<Self, Failure> {
        let named = state_dir.or_else(|| {
            let of_job = ["OXENFS_JOB_STATE", "SLURM_TMPDIR"].into_iter().filter_map(std::env::var_os);
            of_job.map(PathBuf::from).find(|dir| !dir.as_os_str().is_empty())
        });
        let (state, is_temporary) = match named {
            Some(state) => (std::path::absolute(state).map_err(Failure::new)?, false),
            None => {
                // Beside the state root, in which each directory is one mount's.
                let jobs = environment.state_root()?.with_file_name("oxenfs-jobs");
                let made = private_dir(&jobs).and_then(|()| {
                    let job = jobs.join(format!("{}-{:08x}", std::process::id(), fastrand::u32(..)));
                    private_dir(&job).map(|()| job)
                });
                let cannot =
                    |error| Failure::new(format_args!("cannot make a directory in {}: {error}", quoted(&jobs)));
                (made.map_err(cannot)?, true)
            }
        };
        let made;
        let mountpoint = match &args.mountpoint {
            Some(dir) => dir,
            None => {
                made = std::env::temp_dir().join(format!("oxenfs-{}-{:08x}", std::process::id(), fastrand::u32(..)));
                private_dir(&made)
                    .map_err(|error| Failure::new(format_args!("cannot make {}: {error}", quoted(&made))))?;
                &made
            }
        };
        // Links in it lead where the daemon has it.
        let mountpoint = super::find::real(mountpoint)?;
        let binary = std::env::current_exe().map_err(Failure::new)?;
        Ok(Self {
            state,
            is_temporary,
            mountpoint,
            is_made: args.mountpoint.is_none(),
            announced: environment.state_root()?,
            binary,
        })
    }

    /// Removes what was made for it: of a state that nobody needs any more, also where others would look for it.
    fn remove(&self) {
        self.remove_mountpoint();
        if !self.is_temporary {
            return;
        }
        let links = std::fs::read_dir(&self.announced).into_iter().flatten().flatten().map(|entry| entry.path());
        for link in links.filter(|link| std::fs::read_link(link).is_ok_and(|to| to.starts_with(&self.state))) {
            let _ = std::fs::remove_file(link);
        }
        if let Err(error) = std::fs::remove_dir_all(&self.state) {
            warn(format_args!("{} is left: {error}", quoted(&self.state)));
        }
    }

    fn remove_mountpoint(&self) {
        if self.is_made {
            // Fails where something is mounted on it, or in it.
            let _ = std::fs::remove_dir(&self.mountpoint);
        }
    }

    fn oxenfs(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--state-dir").arg(&self.state).stdin(Stdio::null());
        command
    }

    /// Starts the daemon, which ends with this process, and waits until programs can use the mount.
    fn mount(&self, args: &RunArgs) -> Result<Child, Failure> {
        // Not in the state root, in which there is to be nothing but states.
        let socket = std::env::temp_dir().join(format!("oxenfs-{:016x}.ready", fastrand::u64(..)));
        let ready =
            UnixDatagram::bind(&socket).and_then(|ready| ready.set_read_timeout(Some(READY_CHECK)).map(|()| ready));
        let cannot =
            |error| Failure::new(format_args!("cannot wait for the mount in {}: {error}", quoted(&self.state)));
        let ready = ready.map_err(cannot)?;
        let mut command = self.oxenfs();
        command.arg("mount").arg(&args.repo).arg(&self.mountpoint).arg("--foreground");
        for (name, value) in [
            ("--server", &args.server),
            ("--branch", &args.branch),
            ("--workspace", &args.workspace),
            ("--subdir", &args.subdir),
        ] {
            if let Some(value) = value {
                command.args([name, value]);
            }
        }
        if let Some(file) = &args.token_file {
            command.arg("--token-file").arg(file);
        }
        if args.create {
            command.arg("--create");
        }
        for options in &args.options {
            command.args(["-o", options]);
        }
        // A line for what goes wrong; the command's words are to be found among them.
        if std::env::var_os("OXENFS_LOG").is_none() {
            command.args(["--log", "warn"]);
        }
        command.env("NOTIFY_SOCKET", &socket).stdout(Stdio::null());
        with_us(&mut command, Signal::TERM);
        let mut daemon = command.spawn().map_err(Failure::new)?;
        let mut message = [0; 4096];
        loop {
            let told = ready.recv(&mut message);
            if told.is_ok_and(|length| message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")) {
                let _ = std::fs::remove_file(&socket);
                return Ok(daemon);
            }
            if let Some(status) = daemon.try_wait().map_err(Failure::new)? {
                let _ = std::fs::remove_file(&socket);
                return Err(Failure::new(format_args!("there is no mount ({status})"))
                    .hint("what is said above tells why; try: oxenfs mount"));
            }
        }
    }

    /// Runs the command until it has ended. The error has the exit code that tells why it was not run.
    fn command(&self, args: &RunArgs) -> Result<ExitStatus, (u8, io::Error)> {
        let mut command = Command::new(&args.command[0]);
        command.args(&args.command[1..]).env("OXENFS_DIR", &self.mountpoint);
        with_us(&mut command, Signal::KILL);
        namespace::without_rights(&mut command);
        let run = command.spawn().and_then(|mut child| wait(&mut child));
        run.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => (NOT_FOUND, error),
            _ => (NOT_RUN, error),
        })
    }

    /// `oxenfs unmount`, with its answer.
    fn unmount(&self, more: &[OsString]) -> Result<(u8, Value), Failure> {
        let mut command = self.oxenfs();
        command.arg("unmount").arg(&self.mountpoint).arg("--json").args(more).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::new)?;
        let mut said = String::new();
        CHILD.store(child_id(child.id()), Ordering::Release);
        if let Some(out) = &mut child.stdout {
            let _ = out.read_to_string(&mut said);
        }
        let status = wait(&mut child).map_err(Failure::new)?;
        Ok((exit_of(status), said.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()))
    }

    /// Stages what the command wrote, and commits or drops it, as `args` have it.
    fn finish(&self, args: &RunArgs, namespace: Namespace, mut daemon: Child, command_exit: u8) -> Result<u8, Failure> {
        let is_well = command_exit == 0;
        let left = match !is_well && args.on_fail == OnFail::Discard {
            true => self.discard(args, &mut daemon)?,
            false => self.stage(args, args.commit && (is_well || args.on_fail == OnFail::Commit), &mut daemon)?,
        };
        let exit = match (command_exit, left.owed_files, left.is_committed) {
            (0, 0, true) => 0,
            (0, 0, false) => NOT_COMMITTED,
            (0, ..) => OWED,
            (exit, ..) => exit,
        };
        let is_all_there = left.owed_files == 0 && left.local_files == 0;
        let keeps = left.workspace.is_some() && !(exit == 0 && is_all_there);
        match keeps {
            true => self.remove_mountpoint(),
            false => self.remove(),
        }
        if keeps && left.owed_files > 0 {
            let state = quoted(&self.state);
            let changes = count(left.owed_files, "change");
            note(format_args!(
                "{changes} not on the server yet, and safe on this disk: oxenfs --state-dir {state} send"
            ));
        } else if keeps && exit == 0 {
            let files = count(left.local_files, "file");
            note(format_args!(
                "{files} on this disk alone, as Oxen cannot store them: {} is kept",
                quoted(&self.state)
            ));
        }
        if args.json {
            json(
                &done::Ran {
                    exit,
                    command_exit,
                    namespace: namespace.said(),
                    mountpoint: self.mountpoint.clone(),
                    workspace: left.workspace,
                    commit: left.commit,
                    staged_files: left.staged_files,
                    owed_files: left.owed_files,
                    owed_bytes: left.owed_bytes,
                    state: keeps.then(|| self.state.clone()),
                },
                false,
            )?;
        }
        Ok(exit)
    }

    /// Unmounts when all is staged, and commits it before if it `commits`.
    fn stage(&self, args: &RunArgs, commits: bool, daemon: &mut Child) -> Result<Left, Failure> {
        let mut left = Left { is_committed: true, ..Left::default() };
        let mut bound: Vec<OsString> = Vec::new();
        if let Some(timeout) = args.timeout {
            bound.extend(["--timeout".into(), format!("{}ms", timeout.as_millis()).into()]);
        }
        let mut ended = (NOT_COMMITTED, Value::Null);
        if commits {
            let mut more = bound.clone();
            more.push("--commit".into());
            let said =
                [("--message", &args.message), ("--author", &args.author.author), ("--email", &args.author.email)];
            for (name, value) in said {
                if let Some(value) = value {
                    more.extend([name.into(), value.into()]);
                }
            }
            ended = self.unmount(&more)?;
            left.is_committed = ended.0 == 0;
        }
        // What was not committed is staged all the same, unless that took too long already.
        if ![0, OWED].contains(&ended.0) {
            ended = self.unmount(&bound)?;
        }
        let (exit, said) = ended;
        if exit != 0 {
            self.unmount(&["--detach".into()])?;
        }
        left.workspace = self.known()?.map(|(workspace, _)| workspace);
        self.end(daemon);
        let number = |name: &str| said[name].as_u64().unwrap_or(0);
        (left.staged_files, left.local_files) = (number("staged_files"), number("local_files"));
        left.commit = said["commit"].as_str().map(str::to_owned);
        if exit != 0
            && let Some((_, state)) = self.known()?
        {
            // As the record has it; one that cannot be read owes something.
            (left.owed_files, left.owed_bytes) =
                seams::offline_status(&state).map_or((1, 0), |status| status.counts.owed());
        }
        Ok(left)
    }

    /// Drops what the command wrote, here and on the server.
    fn discard(&self, args: &RunArgs, daemon: &mut Child) -> Result<Left, Failure> {
        self.unmount(&["--detach".into()])?;
        self.end(daemon);
        if let Some((workspace, _)) = self.known()? {
            let place = repo::place(&args.repo, args.server.as_deref(), &Environment::of_process())?;
            seams::delete_workspace(place, &workspace).doing(|| format!("cannot discard workspace {workspace}"))?;
        }
        Ok(Left { is_committed: true, ..Left::default() })
    }

    /// The workspace that it stages in, and its state directory.
    fn known(&self) -> Result<Option<(String, PathBuf)>, Failure> {
        let listing = StateDir::list(&self.state)?;
        let here = listing.known.into_iter().find(|known| known.meta.identity.mountpoint == self.mountpoint);
        Ok(here.map(|known| (known.meta.workspace(), known.path)))
    }

    /// Waits until the daemon has ended, which it does once its mount is gone.
    fn end(&self, daemon: &mut Child) {
        let began = Instant::now();
        let mut told = false;
        while matches!(daemon.try_wait(), Ok(None)) {
            if began.elapsed() > END_PATIENCE && !told {
                told = true;
                if let Some(pid) = Pid::from_raw(child_id(daemon.id())) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            std::thread::sleep(END_CHECK);
        }
    }
}

/// A directory for nobody else, which may be there.
fn private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Has a process told when this one ends, however it does.
fn with_us(command: &mut Command, signal: Signal) {
    // SAFETY: a system call.
    unsafe {
        command.pre_exec(move || set_parent_process_death_signal(Some(signal)).map_err(io::Error::from));
    }
}

fn child_id(id: u32) -> i32 {
    // The kernel's numbers of processes are below 2^22.
    i32::try_from(id).unwrap_or(0)
}

/// Waits for a child, which gets the signals that this process is sent.
fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    CHILD.store(child_id(child.id()), Ordering::Release);
    let ended = child.wait();
    CHILD.store(0, Ordering::Release);
    ended
}

/// From now on SIGTERM and SIGHUP go to the child that is waited for; and SIGINT does nothing here, as a terminal sends it
/// to both.
fn forward_signals() {
    extern "C" fn forward(signal: libc::c_int) {
        let child = CHILD.load(Ordering::Acquire);
        if child > 0 && signal != libc::SIGINT {
            // SAFETY: a system call that a handler may make.
            unsafe { libc::kill(child, signal) };
        }
    }
    let handler: extern "C" fn(libc::c_int) = forward;
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        // SAFETY: the handler makes a system call and reads a number.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}
