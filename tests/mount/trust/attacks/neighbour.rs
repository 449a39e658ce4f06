//! Hostile users of the same machine, and odd things that they leave.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::server::REPO;
use super::victim::{SECRET, TOKEN, Victim};

/// A user and group that own nothing.
const NOBODY: u32 = 65534;

type Kind = fn(&Victim, &mut fastrand::Rng, &str);

const KINDS: [(&str, Kind); 8] = [
    ("the mount point is swapped for a link", swapped_mount_point),
    ("the state directory is swapped for a link", swapped_state),
    ("odd things lie in the state directory", odd_state),
    ("a socket that says odd things is in the state directory", odd_socket),
    ("a link to another's state directory is in the root", foreign_state),
    ("the sources of an import are swapped for links", swapped_source),
    ("a stranger is let in", stranger),
    ("names hold commands for a terminal", odd_names),
];

pub fn attack(victim: &Victim, rng: &mut fastrand::Rng, _number: u64, honest: &str) -> String {
    let (name, attack) = KINDS[rng.usize(..KINDS.len())];
    attack(victim, rng, honest);
    format!("neighbour: {name}")
}

fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn mount<'a>(mnt: &'a str, honest: &'a str, work: &'a str) -> [&'a str; 9] {
    ["mount", REPO, mnt, "--server", honest, "--workspace", work, "--settle", "0.1"]
}

/// A shell of the attacker's, until it is dropped.
struct Attacker(Child);

impl Attacker {
    fn new(dir: &Path, script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("while :; do {script}; done")]).current_dir(dir).uid(NOBODY).gid(NOBODY);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn theirs(victim: &Victim, name: &str) -> PathBuf {
    let dir = victim.root.join(name);
    fs::create_dir_all(&dir).unwrap();
    chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    String::from_utf8_lossy(&table).lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

fn work(victim: &Victim) -> String {
    format!("attack-{}", victim.number)
}

fn swapped_mount_point(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let dir = theirs(victim, "theirs");
    fs::create_dir(dir.join("m")).unwrap();
    chown(dir.join("m"), Some(NOBODY), None).unwrap();
    let pause = format!("0.00{}", rng.u8(0..10));
    let target = victim.outside.display();
    let swap = format!("mv m away && ln -s '{target}' m; sleep {pause}; rm m; mv away m; sleep {pause}");
    let attacker = Attacker::new(&dir, &swap);
    let mnt = dir.join("m");
    for _ in 0..rng.u8(1..4) {
        let workspace = work(victim);
        victim.run(&mut victim.oxenfs(mount(mnt.to_str().unwrap(), honest, &workspace)), secs(60));
        if is_mounted(&victim.outside) {
            victim.came_through("it is mounted over another's directory");
        }
        victim.kill();
    }
    drop(attacker);
}

fn swapped_state(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let mut dir = theirs(victim, "theirs");
    dir.push("state");
    fs::create_dir(&dir).unwrap();
    if rng.bool() {
        chown(&dir, Some(NOBODY), None).unwrap();
    }
    let target = victim.outside.display();
    let pause = format!("0.00{}", rng.u8(0..10));
    let swap =
        format!("mv state away && ln -s '{target}' state; sleep {pause}; rm state; mv away state; sleep {pause}");
    let attacker = Attacker::new(dir.parent().unwrap(), &swap);
    let mnt = victim.mnt.to_str().unwrap();
    for command in [&mount(mnt, honest, "w")[..], &["status"], &["unmount", mnt]] {
        victim.run(&mut victim.oxenfs_in(&dir, command), secs(60));
    }
    drop(attacker);
}

/// A state directory of the victim's, of a mount that is over and owes a file.
fn owing(victim: &Victim, honest: &str) -> PathBuf {
    let mnt = victim.mnt.to_str().unwrap();
    let workspace = work(victim);
    let mount = mount(mnt, honest, &workspace).map(|word| if word == "0.1" { "3600" } else { word });
    let said = victim.run(&mut victim.oxenfs(mount), secs(60));
    assert_eq!(said.exit, Some(0), "{said:?}");
    fs::write(victim.mnt.join("owed"), "owed").unwrap();
    victim.run(&mut victim.oxenfs(["unmount", "--detach", mnt]), secs(30));
    let mut found = fs::read_dir(&victim.state).unwrap().flatten().map(|entry| entry.path());
    found.find(|path| path.join("meta.json").exists()).unwrap()
}

/// Every command that looks at a state directory.
fn all_commands(victim: &Victim, state: &Path, honest: &str) {
    let (mnt, state, workspace) = (victim.mnt.to_str().unwrap(), state.to_str().unwrap(), work(victim));
    let commit = ["commit", mnt, "-m", "x", "--author", "A", "--email", "a@x", "--timeout", "2s"];
    let commands: [&[&str]; 9] = [
        &["status"],
        &["status", "--json"],
        &["diff", mnt],
        &["sync", mnt, "--timeout", "2s"],
        &commit,
        &["log-level", mnt],
        &["unmount", mnt, "--timeout", "2s"],
        &["repair", state],
        &mount(mnt, honest, &workspace),
    ];
    for command in commands {
        victim.run(&mut victim.oxenfs(command), secs(30));
    }
    victim.run(&mut victim.oxenfs(["doctor", "--server", honest]), secs(60));
}

fn odd_state(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let state = owing(victim, honest);
    let names = [
        "meta.json",
        "lock",
        "journal",
        "journal/journal.00000001",
        "journal/journal.00000009",
        "journal.mark",
        "spool",
        "cache",
        "cache/fetching",
        "log",
        "log.1",
        "lost+found",
        "control",
        "control.sock",
        "spool/00/1",
        "spool/zz",
    ];
    for _ in 0..rng.u8(1..3) {
        let odd = state.join(names[rng.usize(..names.len())]);
        // What was made before may lead out of the state directory: not for this.
        if odd.ancestors().skip(1).take_while(|dir| *dir != state).any(Path::is_symlink) {
            continue;
        }
        let _ = fs::remove_dir_all(&odd);
        let _ = fs::remove_file(&odd);
        if let Some(dir) = odd.parent() {
            let _ = fs::create_dir_all(dir);
        }
        let secret = victim.outside.join("secret");
        let made = match rng.u8(..7) {
            0 => Command::new("mkfifo").arg(&odd).status().is_ok(),
            1 => symlink("/dev/zero", &odd).is_ok(),
            2 => symlink(&secret, &odd).is_ok(),
            3 => symlink(&victim.outside, &odd).is_ok(),
            4 => Command::new("mknod").arg(&odd).args(["c", "1", "5"]).status().is_ok(),
            5 => fs::create_dir(&odd).is_ok(),
            // A log shows what others left there as they left it.
            _ if odd.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log")) => true,
            _ => fs::write(&odd, (0..5000).map(|_| rng.u8(..)).collect::<Vec<_>>()).is_ok(),
        };
        assert!(made || odd.exists() || !odd.parent().unwrap().is_dir(), "{}", odd.display());
    }
    all_commands(victim, &state, honest);
}

/// Says something to whoever comes, and keeps what it hears.
fn chatter(path: &Path, what: u8) -> Arc<Mutex<Vec<u8>>> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let hears = hears.clone();
            std::thread::spawn(move || drop(chat(client, what, &hears)));
        }
    });
    heard
}

fn chat(mut client: UnixStream, what: u8, hears: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let mut heard = client.try_clone()?;
    let mut buffer = vec![0; 64 << 10];
    heard.set_read_timeout(Some(secs(1)))?;
    if let Ok(read) = heard.read(&mut buffer) {
        hears.lock().unwrap().extend_from_slice(&buffer[..read]);
    }
    match what {
        0 => std::thread::sleep(secs(600)),
        1 => (0..4096).try_for_each(|_| client.write_all(&[b'{'; 1 << 20]))?,
        2 => client.write_all(&[0xff; 4096])?,
        3 => client.write_all(b"{\"status\":{\"phase\":\"\\u001b[2J\",\"repo\":\"\\u202e\"}}\n{\"done\":{}}\n")?,
        4 => (0..1 << 16).try_for_each(|_| client.write_all(b"{\"progress\":{\"files_done\":0}}\n"))?,
        _ => {}
    }
    Ok(())
}

fn socket_of(state: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = fs::read_dir(state).unwrap().flatten();
    let socket = found.find(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    Some(socket?.path())
}

fn odd_socket(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let state = owing(victim, honest);
    let path = socket_of(&state).unwrap_or_else(|| state.join("control"));
    // Silence, or no end.
    let waiting = [0, 1, 4];
    let others = [2, 3, 5];
    let what = if super::is_quick() || rng.bool() { others } else { waiting };
    let heard = chatter(&path, what[rng.usize(..3)]);
    all_commands(victim, &state, honest);
    if String::from_utf8_lossy(&heard.lock().unwrap()).contains(TOKEN) {
        victim.came_through("the token went to a socket");
    }
}

fn foreign_state(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let state = owing(victim, honest);
    let dir = theirs(victim, "theirs");
    let copy = dir.join(state.file_name().unwrap());
    crate::mounted::run("cp", [OsStr::new("-a"), state.as_os_str(), copy.as_os_str()]);
    let heard =
        chatter(&socket_of(&state).map_or(copy.join("control"), |path| copy.join(path.file_name().unwrap())), 3);
    crate::mounted::run("chown", [OsStr::new("-R"), OsStr::new("65534:65534"), copy.as_os_str()]);
    let link = match rng.bool() {
        // In place of what was there.
        true => {
            fs::remove_dir_all(&state).unwrap();
            state.clone()
        }
        false => victim.state.join("another"),
    };
    symlink(&copy, link).unwrap();
    let (mnt, secret) = (victim.mnt.to_str().unwrap(), victim.outside.join("secret"));
    victim.run(&mut victim.oxenfs(["import", secret.to_str().unwrap(), mnt]), secs(30));
    all_commands(victim, &copy, honest);
    let heard = heard.lock().unwrap();
    if !heard.is_empty() {
        victim.came_through(format!("another's socket was told {:?}", String::from_utf8_lossy(&heard)));
    }
}

fn swapped_source(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let mnt = victim.mnt.to_str().unwrap();
    let workspace = work(victim);
    let said = victim.run(&mut victim.oxenfs(mount(mnt, honest, &workspace)), secs(60));
    assert_eq!(said.exit, Some(0), "{said:?}");
    let dir = theirs(victim, "theirs");
    let tree = "mkdir -p s/a/b; for i in $(seq 300); do echo $i >s/a/b/$i; echo $i >s/a/$i; done";
    let made = Command::new("sh").args(["-c", tree]).current_dir(&dir).uid(NOBODY).gid(NOBODY).status();
    assert!(made.unwrap().success());
    let target = victim.outside.display();
    let swap = match rng.u8(..3) {
        0 => format!("mv s/a/b away && ln -s '{target}' s/a/b; rm s/a/b; mv away s/a/b"),
        1 => format!("mv s/a/150 away && ln -s '{target}/secret' s/a/150; rm s/a/150; mv away s/a/150"),
        _ => format!("mv s/a away && ln -s '{target}' s/a; rm s/a; mv away s/a"),
    };
    let attacker = Attacker::new(&dir, &swap);
    let source = dir.join("s");
    for round in 0..4 {
        let into = victim.mnt.join(format!("round{round}"));
        fs::create_dir(&into).unwrap();
        victim.run(&mut victim.oxenfs(["import", source.to_str().unwrap(), into.to_str().unwrap()]), secs(60));
    }
    drop(attacker);
    let found = victim.run(Command::new("grep").args(["-rl", SECRET, mnt]), secs(60));
    if !found.out.is_empty() {
        victim.came_through(format!("an import took another's secret: {}", found.out));
    }
    victim.wrote(4 * 1024 * 4096 * 2);
}

fn stranger(victim: &Victim, _rng: &mut fastrand::Rng, honest: &str) {
    let mnt = victim.mnt.to_str().unwrap();
    let workspace = work(victim);
    let options = [&mount(mnt, honest, &workspace)[..], &["--allow-other"]].concat();
    let said = victim.run(&mut victim.oxenfs(options), secs(60));
    assert_eq!(said.exit, Some(0), "{said:?}");
    let prepared = "umask 022; echo private >private; chmod 600 private; echo text >text; mkdir shut; echo x >shut/x; \
                    chmod 700 shut; cp /bin/true program; chmod 6777 program; echo word >open; chmod 666 open";
    victim.run(Command::new("sh").args(["-c", prepared]).current_dir(&victim.mnt), secs(30));
    let tried = "cat private; cat shut/x; echo y >>text; rm -f text; mv text t2; chmod 777 text; chown 65534 text; \
                 setfattr -n user.x -v 1 text; setfattr -n user.oxenfs.state -v clean open; ln text l; mkdir made; \
                 touch made2; printf z | dd of=program conv=notrunc bs=1 2>/dev/null; mknod n c 1 5; chmod 4777 open; \
                 truncate -s 0 text; ln -s text link";
    let mut command = Command::new("sh");
    command.args(["-c", tried]).current_dir(&victim.mnt).uid(NOBODY).gid(NOBODY);
    let said = victim.run(&mut command, secs(30));
    let looked = "cat text; ls; stat -c %a private text shut program open; stat -c %u text";
    let is = victim.run(Command::new("sh").args(["-c", looked]).current_dir(&victim.mnt), secs(30));
    let modes = is.out.ends_with("600\n644\n700\n777\n666\n0\n");
    if said.out.contains("private") || said.out.contains('x') || !is.out.starts_with("text\n") || !modes {
        victim.came_through(format!("a stranger got {:?}, and left {}", said.out, is.out));
    }
    for name in ["made", "made2", "t2", "link", "n"] {
        if is.out.lines().any(|line| line == name) {
            victim.came_through(format!("a stranger made {name}"));
        }
    }
    victim.wrote(8 << 20);
    // The stranger's own commands.
    for command in [&["status"][..], &["unmount", mnt], &["sync", mnt], &["diff", mnt]] {
        let mut command = victim.oxenfs(command);
        let said = victim.run(command.uid(NOBODY).gid(NOBODY).env("OXEN_API_KEY", "of-the-stranger"), secs(30));
        if said.out.contains(REPO) {
            victim.came_through(format!("a stranger was told of the mount: {said:?}"));
        }
    }
    if !is_mounted(&victim.mnt) {
        victim.came_through("a stranger unmounted it");
    }
}

fn odd_names(victim: &Victim, rng: &mut fastrand::Rng, honest: &str) {
    let odd: [&[u8]; 7] = [
        b"\x1b]0;owned\x07",
        b"\x1b[2J",
        "\u{202e}gpj.exe".as_bytes(),
        "\u{9b}31m".as_bytes(),
        b"line\nbreak\r",
        b"\xff\xfe\x1b[31m",
        b"-rf --commit",
    ];
    let mut name = || OsString::from_vec(odd[rng.usize(..odd.len())].to_vec());
    let mnt = victim.mnt.join(name());
    fs::create_dir(&mnt).unwrap();
    let workspace = work(victim);
    let words = mount("", honest, &workspace)
        .map(OsString::from)
        .map(|word| if word.is_empty() { mnt.clone().into() } else { word });
    let mounted = victim.run(&mut victim.oxenfs(words), secs(60)).exit == Some(0);
    let place = if mounted { mnt.clone() } else { victim.root.join("source") };
    fs::create_dir_all(&place).unwrap();
    for _ in 0..3 {
        let _ = fs::write(place.join(name()), "x");
        let _ = fs::create_dir(place.join(name()));
        let _ = symlink(name(), place.join(name()));
    }
    let word = |text: &str| OsString::from(text);
    let commit = ["commit", "-m", "x", "--author", "A", "--email", "a@x", "--timeout", "5s", "--"];
    let commands: [Vec<OsString>; 6] = [
        vec![word("status"), word("--"), mnt.clone().into()],
        vec![word("diff"), word("--"), mnt.clone().into()],
        vec![word("sync"), word("--timeout"), word("5s"), word("--"), mnt.clone().into()],
        vec![word("import"), word("--"), place.join(name()).into(), mnt.clone().into()],
        commit.iter().map(|text| word(text)).chain([mnt.clone().into()]).collect(),
        vec![word("unmount"), word("--timeout"), word("5s"), word("--"), mnt.clone().into()],
    ];
    for command in commands {
        // What follows `--` are operands: the state directory comes before it.
        let mut run = Command::new(env!("CARGO_BIN_EXE_oxenfs"));
        run.arg("--state-dir").arg(&victim.state).args(command);
        victim.run(victim.at_home(&mut run), secs(30));
    }
    if mounted {
        victim.kill();
    }
    let _ = fs::remove_dir(&mnt);
}
