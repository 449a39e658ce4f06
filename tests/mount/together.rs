//! Several mounts of one repository: state directories of one user, and copies of them, stage apart.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::mounted::{TestMount, run};

/// A second mount of what `test` mounts, with state of its own.
struct Second<'a> {
    test: &'a TestMount,
    dir: std::path::PathBuf,
    state: std::path::PathBuf,
}

impl<'a> Second<'a> {
    fn new(test: &'a TestMount) -> Self {
        Self { test, dir: test.beside("second"), state: test.beside("second-state") }
    }

    fn mount(&self, options: &[&str]) {
        self.test.mount_with(&self.state, &self.dir, options).ok();
    }

    fn status(&self) -> Value {
        let said = self.test.oxenfs_with(&self.state, ["status", self.dir(), "--json"]).ok();
        serde_json::from_str(&said.out).unwrap()
    }

    fn dir(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    fn commit(&self) -> crate::mounted::Said {
        let commit = ["commit", self.dir(), "-m", "second", "--author", "B", "--email", "b@x"];
        self.test.oxenfs_with(&self.state, commit)
    }

    fn run(&self, command: &str) {
        self.test.oxenfs_with(&self.state, [command, self.dir()]).ok();
    }
}

fn workspace(status: &Value) -> String {
    status["workspace"].as_str().unwrap().to_owned()
}

fn write(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join(name), content).unwrap();
}

#[test]
fn two_state_directories_of_one_user_stage_apart() {
    let test = TestMount::new();
    write(&test.dir, "shared", "old");
    test.commit();
    let second = Second::new(&test);
    second.mount(&[]);
    assert_ne!(workspace(&test.status()), workspace(&second.status()));
    for (dir, who) in [(&test.dir, "first"), (&second.dir, "second")] {
        write(dir, "shared", who);
        write(dir, who, who);
    }
    test.sync();
    second.run("sync");
    test.commit();
    assert_eq!(test.committed_file("shared").unwrap(), b"first");
    assert_eq!(test.committed_file("second"), None);
    // Nothing of the first is replaced, and nothing of the second is gone.
    let said = second.commit();
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("shared"), "{said:?}");
    assert_eq!(test.committed_file("shared").unwrap(), b"first");
    assert_eq!(fs::read(second.dir.join("shared")).unwrap(), b"second");
    second.run("unmount");
    test.unmount();
    // Mounted again, each goes on in the workspace that it had.
    let before = workspace(&second.status());
    second.mount(&[]);
    assert_eq!(workspace(&second.status()), before);
    assert_eq!(fs::read(second.dir.join("shared")).unwrap(), b"second");
    second.run("unmount");
}

#[test]
fn a_copied_state_directory_stages_as_another() {
    let test = TestMount::new();
    write(&test.dir, "both", "staged before the copy");
    test.sync();
    let first = workspace(&test.status());
    test.unmount();
    let second = Second::new(&test);
    fs::remove_dir(&second.state).unwrap();
    run("cp", ["-a".as_ref(), test.state.as_os_str(), second.state.as_os_str()]);
    second.mount(&[]);
    assert_ne!(workspace(&second.status()), first);
    write(&second.dir, "copy", "of the copy");
    test.mount(&[]).ok();
    assert_eq!(workspace(&test.status()), first);
    write(&test.dir, "original", "of the original");
    test.commit();
    second.run("sync");
    let said = second.commit();
    assert_eq!(said.exit, 0, "{said:?}");
    let names: Vec<String> = test.committed().into_keys().collect();
    assert_eq!(names, ["both", "copy", "original"]);
    second.run("unmount");
    test.unmount();
}

#[test]
fn both_of_two_mounts_of_one_repository_are_found_without_their_state_directories() {
    let test = TestMount::new();
    let second = Second::new(&test);
    second.mount(&[]);
    // As who never says `--state-dir` sees them.
    let said = test.bare(["status", "--json"]).ok();
    let seen: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let places: Vec<&str> = seen.iter().filter_map(|status| status["mountpoint"].as_str()).collect();
    for dir in [test.dir.to_str().unwrap(), second.dir()] {
        assert!(places.contains(&dir), "{said:?}");
        test.bare(["sync", dir]).ok();
        test.bare(["unmount", dir]).ok();
    }
}

#[test]
fn a_workspace_that_others_may_use_is_not_made_anew_when_the_branch_goes_on() {
    let test = TestMount::new();
    write(&test.dir, "a", "1");
    test.commit();
    let second = Second::new(&test);
    second.mount(&["--workspace", "team"]);
    let stood = second.status()["base"].clone();
    second.run("unmount");
    write(&test.dir, "a", "2");
    test.commit();
    second.mount(&["--workspace", "team"]);
    assert_eq!(second.status()["base"], stood);
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"1");
    // Its commit takes along what the branch has.
    write(&second.dir, "b", "mine");
    let said = second.commit();
    assert_eq!(said.exit, 0, "{said:?}");
    assert_eq!(test.committed_file("a").unwrap(), b"2");
    assert_eq!(fs::read(second.dir.join("a")).unwrap(), b"2");
    second.run("unmount");
    test.unmount();
}
