//! What `oxenfs diff` says the next commit holds, and that it is so.

use std::ffi::OsStr;
use std::fs;

use serde_json::Value;

use crate::mounted::{TestMount, shell, wait_until};

/// `oxenfs diff DIR --json`, as kind, path, where it was, and whether it is staged.
#[track_caller]
fn diff(test: &TestMount, dir: &std::path::Path) -> Vec<(String, String, String, bool)> {
    let said = test.oxenfs([OsStr::new("diff"), dir.as_os_str(), OsStr::new("--json")]).ok();
    let found: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |d: &Value| (text(&d["kind"]), text(&d["path"]), text(&d["from"]), d["staged"].as_bool().unwrap());
    found.iter().map(one).collect()
}

fn expected(lines: &[(&str, &str, &str, bool)]) -> Vec<(String, String, String, bool)> {
    lines
        .iter()
        .map(|(kind, path, from, staged)| (kind.to_string(), path.to_string(), from.to_string(), *staged))
        .collect()
}

#[test]
fn diff_tells_what_the_next_commit_holds() {
    let test = TestMount::new();
    shell(&test.dir, "mkdir d; for f in same changed gone moved; do echo $f > d/$f; done");
    test.commit();
    assert_eq!(diff(&test, &test.dir), []);
    shell(&test.dir, "echo more >> d/changed; rm d/gone; mkdir e; mv d/moved e/; echo new > new; ln -s new link");
    // Written and taken back: no change.
    shell(&test.dir, "echo x > passing; rm passing");
    test.sync();
    fs::write(test.at("late"), "late").unwrap();
    let all = [
        ("modified", "d/changed", "", true),
        ("removed", "d/gone", "", true),
        ("renamed", "e/moved", "d/moved", true),
        ("added", "new", "", true),
        ("local", "link", "", false),
    ];
    let with_late = expected(&[&[all[0], all[1], all[2], ("added", "late", "", false)], &all[3..]].concat());
    let found = diff(&test, &test.dir);
    // The last one may have been staged meanwhile.
    let late_staged: Vec<_> = with_late
        .iter()
        .cloned()
        .map(|(kind, path, from, staged)| {
            let staged = staged || path == "late";
            (kind, path, from, staged)
        })
        .collect();
    assert!(found == with_late || found == late_staged, "{found:#?}");
    assert_eq!(diff(&test, &test.at("e")), expected(&all[2..3]));
    test.unmount();
    assert_eq!(diff(&test, &test.dir), late_staged, "without a daemon");
    let plain = test.oxenfs([OsStr::new("diff"), test.dir.as_os_str()]).ok();
    assert!(plain.out.contains("renamed   staged          6 B  d/moved -> e/moved\n"), "{}", plain.out);
    let summary = "2 added, 1 modified, 1 removed, 1 renamed; 1 path of which Oxen cannot store all\n";
    assert_eq!(plain.err, summary);
    test.mount(&[]).ok();
    test.commit();
    assert_eq!(diff(&test, &test.dir), expected(&[("local", "link", "", false)]));
}

#[test]
fn a_file_that_was_written_anew_with_what_the_base_has_is_no_difference() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600"]);
    shell(&test.dir, "echo same > rewritten; echo base > changed; echo base > longer");
    test.commit();
    shell(&test.dir, "echo same > rewritten; echo BASE > changed; echo more >> longer");
    let changed = expected(&[("modified", "changed", "", false), ("modified", "longer", "", false)]);
    // A close arrives an instant after it.
    wait_until("the rewritten file to be compared", || diff(&test, &test.dir) == changed);
    test.signal(rustix::process::Signal::KILL);
    assert_eq!(diff(&test, &test.dir), changed, "without a daemon");
    test.mount(&[]).ok();
    test.unmount();
    let mut staged = test.staged_paths();
    staged.sort();
    assert_eq!(staged, ["changed", "longer"]);
}

#[test]
fn a_file_that_is_committed_while_a_program_has_it_open_is_no_change_then_or_after_its_close() {
    let test = TestMount::new();
    let mut open = fs::File::create(test.at("file")).unwrap();
    std::io::Write::write_all(&mut open, b"content").unwrap();
    test.commit();
    assert_eq!(diff(&test, &test.dir), []);
    drop(open);
    test.wait_status("the close to be seen", |status| status["counts"]["dirty"]["files"] == 0);
    assert_eq!(diff(&test, &test.dir), []);
    fs::remove_file(test.at("file")).unwrap();
    fs::write(test.at("other"), "").unwrap();
    test.unmount_commit();
    assert_eq!(test.committed(), crate::http::Tree::from([("other".into(), Vec::new())]));
}

#[test]
fn status_and_diff_tell_the_same_without_the_daemon_however_it_was_mounted() {
    let test = TestMount::with(crate::server::url(), &["--settle", "600"]);
    shell(&test.dir, "mkdir -p sub/dir; for f in same changed gone; do echo $f > sub/dir/$f; done; echo out > outside");
    test.unmount_commit();
    test.forget();
    let options = ["--settle", "600", "--subdir", "sub", "--uid", "1234", "--gid", "4321", "--umask", "027"];
    test.mount(&options).ok();
    // Put on record by a link, with owner and mode as the mount shows them.
    shell(
        &test.dir,
        "ln dir/same dir/twin; rm dir/gone; mkdir empty; touch mine; chown 1234:4321 mine; chmod 640 mine",
    );
    shell(&test.dir, "chmod 755 dir; echo more >> dir/changed; chown 7:8 dir/changed");
    let told = || {
        let status = test.status();
        (status["counts"].clone(), status["local"].clone(), diff(&test, &test.dir))
    };
    let before = told();
    let reasons: Vec<_> = before.1.as_array().unwrap().iter().map(|local| local["reason"].as_str().unwrap()).collect();
    let expected = [
        "permissions 0755",
        "owner 7:8",
        "hard links, which become copies",
        "empty directory; permissions 0755; owner 0:0",
    ];
    assert_eq!(reasons, expected, "{:#}", before.1);
    assert_eq!((before.0["dirty"]["files"].as_u64(), before.0["removals"]["files"].as_u64()), (Some(3), Some(1)));
    test.signal(rustix::process::Signal::KILL);
    assert_eq!(told(), before);
    test.mount(&options).ok();
    assert_eq!(told().1, before.1);
    test.unmount();
}
