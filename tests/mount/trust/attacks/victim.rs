//! Who is attacked: a mount in directories of its own, commands that are watched, and the judgement.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Worst;

/// What is to be seen nowhere.
pub const TOKEN: &str = "sesame-3f9c1d7b5a2e";
/// What an import or a socket must not get.
pub const SECRET: &str = "the secret of another user";
/// More memory than this came through, of a debug build: so many bytes.
const MOST_MEMORY: u64 = 320 << 20;
/// More of the disk than was written and this, too.
const MOST_DISK: u64 = 96 << 20;

#[derive(Debug)]
pub struct Said {
    pub exit: Option<i32>,
    pub out: String,
    pub err: String,
}

pub struct Victim {
    pub number: u64,
    pub root: PathBuf,
    pub mnt: PathBuf,
    pub state: PathBuf,
    /// What nobody may change; a file in it is secret.
    pub outside: PathBuf,
    before: BTreeMap<PathBuf, Vec<u8>>,
    worst: RefCell<Worst>,
    through: RefCell<Vec<String>>,
    /// Bytes that were written for good reason.
    written: RefCell<u64>,
    temp: tempfile::TempDir,
}

fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                dirs.push(entry.path());
            }
            let of = format!("{:o} {} ", found.mode(), found.uid());
            let content = if found.is_file() { fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
            all.insert(entry.path(), [of.as_bytes(), &content].concat());
        }
    }
    all
}

/// Whether text may not go to a terminal.
fn commands_a_terminal(text: &str) -> bool {
    text.chars().any(|char| {
        (char.is_control() && !"\n\t".contains(char))
            || matches!(char, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    })
}

/// The most memory that a process had, if it lives.
fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

impl Victim {
    pub fn new(number: u64) -> Self {
        let temp = tempfile::Builder::new().prefix("oxenfs-attack").tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        let at = |name: &str| {
            let path = root.join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (mnt, outside) = (at("mnt"), at("outside"));
        at("home");
        fs::write(outside.join("secret"), SECRET).unwrap();
        fs::set_permissions(outside.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        Self {
            number,
            state: root.join("state"),
            before: snapshot(&outside),
            mnt,
            outside,
            root,
            worst: RefCell::default(),
            through: RefCell::default(),
            written: RefCell::default(),
            temp,
        }
    }

    /// Something came through.
    pub fn came_through(&self, what: impl Into<String>) {
        self.through.borrow_mut().push(what.into());
    }

    pub fn wrote(&self, bytes: u64) {
        *self.written.borrow_mut() += bytes;
    }

    /// `oxenfs`, as the victim runs it.
    pub fn oxenfs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.oxenfs_in(&self.state, arguments)
    }

    /// With another state directory.
    pub fn oxenfs_in<S: AsRef<OsStr>>(&self, state: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oxenfs"));
        command.args(arguments).arg("--state-dir").arg(state);
        self.at_home(&mut command);
        command
    }

    /// With the victim's environment.
    pub fn at_home<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("HOME", self.root.join("home")).env("OXEN_CONFIG_DIR", self.root.join("home/oxen"));
        command.env("OXEN_API_KEY", TOKEN).current_dir("/");
        for name in ["OXEN_SERVER", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "OXENFS_LOG"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command that has to end within `bound`.
    pub fn run(&self, command: &mut Command, bound: Duration) -> Said {
        let begun = Instant::now();
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap();
        let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let name = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
        let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
        let exit = self.wait(&mut child, bound, &name);
        let took = begun.elapsed();
        let mut worst = self.worst.borrow_mut();
        if took > worst.took {
            (worst.took, worst.command) = (took, words.first().cloned().unwrap_or(name.clone()));
        }
        drop(worst);
        if exit.is_none() {
            // Whoever holds the other ends may hold them for ever.
            return Said { exit, out: String::new(), err: String::new() };
        }
        let text =
            |reader: std::thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().unwrap()).into_owned();
        let said = Said { exit, out: text(out), err: text(err) };
        if name.contains("oxenfs") {
            for text in [&said.out, &said.err] {
                self.look_at_text(&name, text);
            }
        }
        said
    }

    fn wait(&self, child: &mut Child, bound: Duration, name: &str) -> Option<i32> {
        let begun = Instant::now();
        loop {
            self.note_memory(child.id());
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status.code().unwrap_or(-1));
            }
            if begun.elapsed() > bound {
                self.came_through(format!("{name}: not over after {} s", bound.as_secs()));
                let _ = child.kill();
                let deadline = Instant::now() + Duration::from_secs(5);
                while child.try_wait().unwrap().is_none() {
                    if Instant::now() > deadline {
                        self.came_through(format!("{name}: outlives SIGKILL"));
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn note_memory(&self, pid: u32) {
        // Between fork and exec a command is this program still, and has its memory.
        if fs::read_link(format!("/proc/{pid}/exe")).ok() == std::env::current_exe().ok() {
            return;
        }
        let mut worst = self.worst.borrow_mut();
        let memory = memory_of(pid);
        if memory > worst.memory {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            (worst.memory, worst.process) = (memory, words.chars().take(200).collect());
        }
    }

    fn look_at_text(&self, name: &str, text: &str) {
        if text.contains(TOKEN) {
            self.came_through(format!("{name}: the token is shown"));
        }
        if commands_a_terminal(text) {
            self.came_through(format!("{name}: commands for a terminal in {text:?}"));
        }
        if text.contains("panicked") {
            self.came_through(format!("{name}: {text}"));
        }
    }

    /// The daemons of this victim.
    pub fn daemons(&self) -> Vec<u32> {
        let mark = self.root.to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            if command.starts_with(env!("CARGO_BIN_EXE_oxenfs")) && command.contains(mark) {
                found.push(pid);
                if command.contains(TOKEN) {
                    self.came_through("the token is in an argument list");
                }
            }
        }
        found
    }

    /// Looks at what the daemons take, and ends them at once.
    pub fn kill(&self) {
        for pid in self.daemons() {
            self.note_memory(pid);
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        crate::mounted::wait_until("the daemons to be gone", || self.daemons().is_empty());
        self.detach();
    }

    pub fn detach(&self) {
        // Names need not be UTF-8.
        let table = fs::read("/proc/self/mountinfo").unwrap();
        let lines = table.split(|byte| *byte == b'\n');
        let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
        for point in points.filter(|point| point.starts_with(self.root.to_str().unwrap().as_bytes())) {
            // Octal escapes of what a name may hold: `umount` knows them by the directory.
            let _ = Command::new("umount").args(["-l", "-i"]).arg(unescape(point)).stderr(Stdio::null()).status();
        }
    }

    /// What lies where, and what the state directory says, when all is over.
    pub fn judge(self) -> (Worst, Vec<String>) {
        self.kill();
        if snapshot(&self.outside) != self.before {
            self.came_through(format!("what lies outside has changed: {:?}", snapshot(&self.outside).keys()));
        }
        let mark = format!("escaped-{}", self.number);
        let parents = [self.root.clone(), std::env::temp_dir(), "/".into(), self.mnt.clone(), self.root.join("home")];
        for dir in &parents {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(&mark) {
                    self.came_through(format!("{} was made", entry.path().display()));
                }
            }
        }
        if fs::read_dir(&self.mnt).into_iter().flatten().count() > 0 {
            self.came_through("something was written below the mount");
        }
        self.look_at_state();
        // One that is run alone is to be looked at.
        if std::env::var_os("OXENFS_ATTACK").is_some() {
            std::mem::forget(self.temp);
        }
        (self.worst.into_inner(), self.through.into_inner())
    }

    fn look_at_state(&self) {
        let mut disk = 0;
        let mut dirs = vec![self.state.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let Ok(found) = entry.metadata() else { continue };
                if found.is_dir() {
                    dirs.push(entry.path());
                } else if found.is_file() {
                    disk += found.blocks() * 512;
                    let content = fs::read(entry.path()).unwrap_or_default();
                    if content.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()) {
                        self.came_through(format!("the token is in {}", entry.path().display()));
                    }
                    if entry.file_name().to_string_lossy().starts_with("log") {
                        self.look_at_text("the log", &String::from_utf8_lossy(&content));
                    }
                }
            }
        }
        let beyond = disk.saturating_sub(*self.written.borrow());
        let mut worst = self.worst.borrow_mut();
        worst.disk = worst.disk.max(beyond);
        let (memory, process) = (worst.memory, worst.process.clone());
        drop(worst);
        if beyond > MOST_DISK {
            self.came_through(format!("{beyond} bytes of disk"));
        }
        if memory > MOST_MEMORY {
            self.came_through(format!("{memory} bytes of memory: {process}"));
        }
    }
}

fn reader(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        // More than any command has reason to say.
        let _ = from.map(|from| from.take(16 << 20).read_to_end(&mut all));
        all
    })
}

fn unescape(bytes: &[u8]) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| bytes[at] == b'\\') {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out)
}
