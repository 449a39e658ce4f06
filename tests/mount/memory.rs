//! A daemon that may have little memory: it stays within it, however much is written.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::dataset::{full, noise};
use crate::faults::{assert_ends_well, owed};
use crate::http::Tree;
use crate::mounted::TestMount;
use crate::scripted::Scripted;

const LIMIT_BYTES: u64 = 96 << 20;

/// A control group with a limit of memory, of either version. Gone when dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let name = format!("oxenfs-test-{}", std::process::id());
        let (dir, limit) = if v1.is_dir() {
            (v1.join(name), "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup").join(name), "memory.max")
        };
        fs::create_dir(&dir).unwrap();
        let group = Self(dir);
        fs::write(group.0.join(limit), LIMIT_BYTES.to_string()).unwrap();
        group
    }

    /// How often something in it was killed for its memory.
    fn killed(&self) -> u64 {
        let said = ["memory.oom_control", "memory.events"].map(|name| fs::read_to_string(self.0.join(name)));
        let said = said.into_iter().find_map(Result::ok).expect("a count of kills");
        said.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).expect("a count of kills")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root, to limit a daemon's memory: scripts/test has it"]
fn a_daemon_with_little_memory_stages_more_than_it_holds() {
    // A large file, more than its memory, and many small ones.
    let (mebibytes, files) = if full() { (1024, 20_000) } else { (192, 1000) };
    let group = Group::new();
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    test.mount_after(&format!("echo $$ > {}/cgroup.procs", group.0.display())).ok();
    let mut expected = Tree::new();
    let mut large = fs::File::create(test.at("large")).unwrap();
    let mut content = Vec::new();
    for at in 0..mebibytes {
        let part = noise(at, 1 << 20);
        large.write_all(&part).unwrap();
        content.extend(part);
    }
    drop(large);
    expected.insert("large".into(), content);
    for at in 0..files {
        let (path, content) = (format!("dir {}/file {at}", at % 20), noise(at, 3000));
        if at < 20 {
            fs::create_dir(test.at(format!("dir {at}"))).unwrap();
        }
        fs::write(test.at(&path), &content).unwrap();
        expected.insert(path, content);
    }
    test.oxenfs(["sync", test.dir.to_str().unwrap()]).ok();
    assert_eq!(owed(&test.status()), 0);
    let status = fs::read_to_string(format!("/proc/{}/status", test.pid())).unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim().to_owned();
    let held: u64 = held.split(' ').next().unwrap().parse().unwrap();
    assert!(held < LIMIT_BYTES >> 11, "the daemon holds {held} kB");
    assert_ends_well(&test, &server, &expected);
    assert_eq!(group.killed(), 0);
}
