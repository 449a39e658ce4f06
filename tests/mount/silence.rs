//! Daemons that are stopped: every command answers in seconds, and says how to go on without losing anything.

use std::ffi::OsStr;
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::dataset::noise;
use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, local_tree};

/// How long any command may take that finds a stopped daemon. By itself it takes some 1.5 s, and where a path below the
/// mount is named 2 s more; all run at once, on a machine that others use.
const SOON: Duration = Duration::from_secs(12);

fn write_some(test: &TestMount) -> Tree {
    fs::create_dir(test.at("dir")).unwrap();
    let files = (0..30).map(|at| (format!("dir/file {at}"), noise(at, 3000 * at as usize)));
    let tree: Tree = files.collect();
    for (path, content) in &tree {
        fs::write(test.at(path), content).unwrap();
    }
    tree
}

/// Waits for all of them, and says how long the last took.
fn all_end(begun: Instant, mut children: Vec<(String, Child)>) -> Vec<(String, Said)> {
    let deadline = begun + 3 * SOON;
    let mut ended = Vec::new();
    for (name, child) in &mut children {
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{name} hangs");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    for (name, child) in children {
        ended.push((name, child.wait_with_output().unwrap().into()));
    }
    ended
}

#[test]
fn commands_on_a_stopped_daemon_name_the_way_out_which_loses_nothing() {
    let test = TestMount::with(crate::server::url(), &["--settle", "3600"]);
    let expected = write_some(&test);
    let pid = test.signal(Signal::STOP);
    let (dir, file) = (test.dir.to_str().unwrap(), test.at("dir/file 1"));
    let file = file.to_str().unwrap();
    let who = ["-m", "x", "--author", "A", "--email", "a@x"];
    let source = test.beside("source");
    fs::write(source.join("f"), "f").unwrap();
    let source = source.to_str().unwrap();
    let state = fs::read_dir(&test.state).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    let state = state.unwrap();
    let free = test.beside("free");
    let mount = |at: &str| {
        ["mount".to_owned(), test.repo.clone(), at.to_owned(), "--server".into(), crate::server::url().into()]
    };
    let (there, elsewhere) = (mount(dir), mount(free.to_str().unwrap()));
    let texts = |arguments: &[String]| arguments.iter().map(|text| text.as_str().to_owned()).collect::<Vec<String>>();
    let cases: Vec<Vec<String>> = vec![
        texts(&["diff", dir].map(String::from)),
        texts(&["sync", dir].map(String::from)),
        texts(&["sync", file].map(String::from)),
        ["commit", dir].into_iter().chain(who).map(String::from).collect(),
        texts(&["unmount", dir].map(String::from)),
        texts(&["unmount", dir, "--detach"].map(String::from)),
        ["unmount", dir, "--commit"].into_iter().chain(who).map(String::from).collect(),
        texts(&["import", source, dir].map(String::from)),
        texts(&["log-level", dir].map(String::from)),
        texts(&["repair", state.to_str().unwrap()].map(String::from)),
        texts(&there),
        texts(&elsewhere),
    ];
    let begun = Instant::now();
    let children = cases.iter().map(|case| (case.join(" "), test.spawn(case))).collect();
    for (name, said) in all_end(begun, children) {
        assert_eq!((said.exit, said.out.as_str()), (1, ""), "{name}: {said:?}");
        let is = format!("its daemon, process {pid}, is stopped; what was written is safe on this disk\n");
        assert!(said.err.contains(&is), "{name}: {said:?}");
        let out =
            format!("hint: let it go on: kill -CONT {pid}; or end it, which loses nothing of that: kill -9 {pid}; ");
        assert!(said.err.contains(&out), "{name}: {said:?}");
    }
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");

    // These tell of more than one mount.
    let begun = Instant::now();
    let looks = [&["status"][..], &["status", dir], &["doctor"], &["doctor", dir], &["doctor", "--json"]];
    let children = looks.iter().map(|case| (case.join(" "), test.spawn(*case))).collect();
    for (name, said) in all_end(begun, children) {
        assert!(said.out.contains("is stopped") && said.out.contains(&format!("kill -CONT {pid}")), "{name}: {said:?}");
        assert_eq!(said.exit, i32::from(name.starts_with("doctor")), "{name}: {said:?}");
    }
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");

    // What the hint says, word for word.
    let said = test.oxenfs([OsStr::new("unmount"), test.dir.as_os_str()]);
    let hint = said.err.split_once("hint: ").unwrap().1.trim();
    let out = hint.split_once("loses nothing of that: ").unwrap().1;
    for command in out.split("; ") {
        match command.strip_prefix("oxenfs ") {
            None => {
                assert_eq!(command, format!("kill -9 {pid}"));
                assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
            }
            // Changes are owed, it says.
            Some(unmount) if unmount.starts_with("unmount ") => {
                let said = test.oxenfs(unmount.split(' '));
                assert_eq!(said.exit, 3, "{command}: {said:?}");
                assert!(!test.is_mounted());
            }
            Some(mount) => drop(test.oxenfs(mount.split(' ')).ok()),
        }
    }
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}

#[test]
fn a_daemon_that_goes_on_is_as_it_was_and_one_stopped_meanwhile_ends_the_wait() {
    let server = crate::scripted::Scripted::new();
    let test = TestMount::through(&server.url());
    let expected = write_some(&test);
    // A sync that nothing comes of: it waits as long as the daemon works.
    server.arm("", "/workspaces/", None, serde_json::json!("drop_before"));
    let waiting = test.spawn([OsStr::new("sync"), test.dir.as_os_str()]);
    test.wait_status("staging to wait for the server", |status| !status["stalled"].is_null());
    let begun = Instant::now();
    let pid = test.signal(Signal::STOP);
    let said = all_end(begun, vec![("sync".into(), waiting)]).remove(0).1;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(said.err.contains("is stopped") && said.exit == 1, "{said:?}");
    server.disarm();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).unwrap();
    test.sync();
    crate::faults::assert_ends_well(&test, &server, &expected);
}
