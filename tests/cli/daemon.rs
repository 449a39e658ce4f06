//! A daemon that says what a test scripts: a state directory, its lock, its control socket, and no mount.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use oxenfs::control::{Event, Request};
use oxenfs::mount::state_dir::{Identity, StateDir, prepare_root};

/// Lives until dropped; then its socket refuses and its lock is free.
pub struct Daemon {
    _state: StateDir,
    /// Requests in the order they came.
    pub requests: Receiver<Request>,
}

/// What a mount of `ox/cats` at `mountpoint` is.
pub fn identity(mountpoint: &Path) -> Identity {
    Identity {
        server: "http://127.0.0.1:3000".into(),
        repo: "ox/cats".into(),
        workspace: "w".into(),
        subdir: String::new(),
        branch: "main".into(),
        revision: None,
        mountpoint: mountpoint.to_owned(),
    }
}

/// A state directory below `root` that no daemon has.
pub fn stopped(root: &Path, mountpoint: &Path) -> PathBuf {
    let (root, _) = prepare_root(root, mountpoint).unwrap();
    StateDir::open(&root, &identity(mountpoint)).unwrap().path().to_owned()
}

impl Daemon {
    /// Answers each request with the events that `script` gives for it; after the last one it hangs up if the script
    /// says so, else it keeps the connection open and says nothing more.
    pub fn start(root: &Path, mountpoint: &Path, script: fn(&Request) -> (Vec<Event>, Then)) -> Self {
        let (root, _) = prepare_root(root, mountpoint).unwrap();
        let state = StateDir::open(&root, &identity(mountpoint)).unwrap();
        let listener = state.bind_control().unwrap();
        let (seen, requests) = channel();
        std::thread::spawn(move || serve(&listener, script, |request| drop(seen.send(request))));
        Self { _state: state, requests }
    }
}

/// After the last event.
#[derive(Clone, Copy, PartialEq)]
pub enum Then {
    HangUp,
    Wait,
}

fn serve(listener: &UnixListener, script: fn(&Request) -> (Vec<Event>, Then), mut seen: impl FnMut(Request)) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let Some(request) = read(&stream) else { continue };
        seen(request.clone());
        // Each by itself, as a daemon does.
        std::thread::spawn(move || {
            let (events, then) = script(&request);
            for event in events {
                let mut line = serde_json::to_vec(&event).unwrap();
                line.push(b'\n');
                // A command that gave up does not listen.
                if stream.write_all(&line).is_err() {
                    break;
                }
            }
            if then == Then::Wait {
                // Until the command has gone.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
    }
}

/// Where the process that hangs finds what it is to be.
const HANGS_AT: &str = "OXENFS_TEST_HANGS_AT";

/// A daemon in a process of its own that says nothing to anybody. It ends when this is dropped.
pub struct Hanging(std::process::Child);

impl Hanging {
    /// With a state directory below `root`, mounted at `mountpoint`.
    pub fn start(root: &Path, mountpoint: &Path) -> Self {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "daemon::hangs"]).stdin(std::process::Stdio::piped());
        command.env(HANGS_AT, format!("{}\n{}", root.display(), mountpoint.display()));
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("hangs from now on")));
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "no test: the process of `Hanging`"]
#[expect(clippy::print_stdout, reason = "the parent waits for it")]
fn hangs() {
    let Ok(places) = std::env::var(HANGS_AT) else { return };
    let (root, mountpoint) = places.split_once('\n').unwrap();
    let (root, _) = prepare_root(Path::new(root), Path::new(mountpoint)).unwrap();
    let state = StateDir::open(&root, &identity(Path::new(mountpoint))).unwrap();
    let _listener = state.bind_control().unwrap();
    println!("hangs from now on");
    // Ends with the parent.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

fn read(stream: &UnixStream) -> Option<Request> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).ok()
}
