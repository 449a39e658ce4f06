//! A hostile server, at any moment of a mount's life.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::liar::{Liar, Lie};
use super::victim::{TOKEN, Victim};
use crate::dataset::noise;
use crate::scripted::Scripted;

/// The repository that all attacks of a worker find.
pub const REPO: &str = "attacked/base";

/// A server that does what it says, with something to read.
pub struct Honest(Scripted);

impl Honest {
    pub fn start(worker: u64) -> Self {
        let server = Scripted::with_token(Some(TOKEN));
        let victim = Victim::new(u64::MAX - worker);
        let mnt = victim.mnt.to_str().unwrap();
        let ok = |command: &mut Command| {
            let said = victim.run(command, Duration::from_secs(60));
            assert_eq!(said.exit, Some(0), "{said:?}");
        };
        ok(&mut victim.oxenfs(["mount", REPO, mnt, "--server", &server.url(), "--create"]));
        for (dir, count) in [("", 3), ("d", 5), ("d/e", 5)] {
            fs::create_dir_all(victim.mnt.join(dir)).unwrap();
            for number in 0..count {
                fs::write(victim.mnt.join(dir).join(format!("f{number}")), noise(number, 20_000)).unwrap();
            }
        }
        fs::write(victim.mnt.join("d/large"), noise(9, 2 << 20)).unwrap();
        let commit = ["unmount", mnt, "--commit", "-m", "x", "--author", "A", "--email", "a@x"];
        ok(&mut victim.oxenfs(commit));
        let (_, through) = victim.judge();
        assert_eq!(through, [] as [String; 0]);
        Self(server)
    }

    pub fn url(&self) -> String {
        self.0.url()
    }
}

/// Kinds of which the end depends on how long the victim waits: they take minutes.
const WAITING: [Lie; 5] = [Lie::EndlessBodies, Lie::EndlessListings, Lie::Trickle, Lie::Silence, Lie::LongError];

fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// Files of several kinds, to be copied into the mount.
fn source(dir: &Path, rng: &mut fastrand::Rng) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for number in 0..rng.u32(3..12) {
        let size = [0, 10, 5_000, 70_000, 300_000][rng.usize(..5)];
        files.insert(format!("new/{number}"), noise(rng.u32(..).into(), size));
    }
    if rng.u8(..4) == 0 {
        files.insert("new/large".to_owned(), noise(rng.u32(..).into(), 11 << 20));
    }
    files.insert("f0".to_owned(), noise(rng.u32(..).into(), 30_000));
    for (name, content) in &files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    files
}

pub fn attack(victim: &Victim, rng: &mut fastrand::Rng, number: u64, honest: &str) -> String {
    let lies: Vec<Lie> = Lie::ALL.into_iter().filter(|lie| !super::is_quick() || !WAITING.contains(lie)).collect();
    let lie = lies[rng.usize(..lies.len())];
    // From the mount on, from the first read, from the first write, or from the commit.
    let from = rng.u8(..4);
    let liar = Liar::new(honest, number, lie, rng.u64(..));
    let mnt = victim.mnt.to_str().unwrap().to_owned();
    let work = format!("attack-{number}");
    let url = liar.url();
    // Some twenty files and directories are read one after the other, and each may wait for so long.
    let patience = ["--read-timeout", "3"];
    let mount = ["mount", REPO, &mnt, "--server", &url, "--workspace", &work, "--settle", "0.1"];
    let mount = [&mount[..], &patience].concat();
    liar.lie(from == 0);
    // A mount waits up to half a minute for each answer, and asks some.
    let said = victim.run(&mut victim.oxenfs(&mount), secs(240));
    let mut acknowledged = BTreeMap::new();
    if said.exit == Some(0) {
        liar.lie(from <= 1);
        let read = "find . -type f -exec cat {} + >/dev/null 2>&1; ls -laR . >/dev/null 2>&1; true";
        victim.run(Command::new("sh").args(["-c", read]).current_dir(&victim.mnt), secs(150));
        liar.lie(from <= 2);
        let from_dir = victim.root.join("source");
        let files = source(&from_dir, rng);
        victim.wrote(files.values().map(|content| 3 * content.len() as u64).sum());
        for (name, content) in &files {
            let copy = format!("mkdir -p \"$(dirname '{name}')\" && cp '{}' '{name}'", from_dir.join(name).display());
            let done = victim.run(Command::new("sh").args(["-c", &copy]).current_dir(&victim.mnt), secs(150));
            if done.exit == Some(0) {
                acknowledged.insert(name.clone(), content.clone());
            }
        }
        commands(victim, &mnt, &liar, rng);
        match rng.bool() {
            true => victim.kill(),
            false => {
                victim.run(&mut victim.oxenfs(["unmount", "--detach", &mnt]), secs(30));
                victim.kill();
            }
        }
    } else if from > 0 {
        victim.came_through(format!("an honest server could not be mounted: {}", said.err));
    }
    for head in liar.elsewhere() {
        if head.contains(TOKEN) {
            victim.came_through(format!("the token went to another host: {head}"));
        }
    }
    liar.lie(false);
    afterwards(victim, &mount, &acknowledged);
    format!("server: {lie:?}")
}

/// What a person does then.
fn commands(victim: &Victim, mnt: &str, liar: &Liar, rng: &mut fastrand::Rng) {
    victim.run(&mut victim.oxenfs(["sync", mnt, "--timeout", "2s"]), secs(15));
    for command in [&["status", mnt][..], &["status", mnt, "--json"], &["diff", mnt]] {
        victim.run(&mut victim.oxenfs(command), secs(15));
    }
    liar.lie(true);
    let commit = ["commit", mnt, "-m", "x", "--author", "A", "--email", "a@x", "--timeout", "2s"];
    victim.run(&mut victim.oxenfs(commit), secs(15));
    victim.run(&mut victim.oxenfs(["status", mnt]), secs(15));
    if rng.u8(..4) == 0 {
        victim.run(&mut victim.oxenfs(["unmount", mnt, "--timeout", "2s"]), secs(30));
    }
}

/// With an honest server all that was acknowledged is there.
fn afterwards(victim: &Victim, mount: &[&str], acknowledged: &BTreeMap<String, Vec<u8>>) {
    let said = victim.run(&mut victim.oxenfs(mount), secs(60));
    if said.exit != Some(0) {
        return victim.came_through(format!("it cannot be mounted again: {}", said.err));
    }
    for (name, content) in acknowledged {
        let read = victim.run(Command::new("sha256sum").arg(victim.mnt.join(name)), secs(60));
        let expected = oxenfs::hash::ContentHash::of(oxenfs::hash::HashKind::Sha256, content).to_string();
        if !read.out.starts_with(&expected) {
            let status = victim.run(&mut victim.oxenfs(["status", mount[2]]), secs(15));
            victim.came_through(format!("{name} was acknowledged and is not there: {}, {}", read.err, status.out));
        }
    }
    victim.run(&mut victim.oxenfs(["unmount", mount[2], "--timeout", "20s"]), secs(60));
}
