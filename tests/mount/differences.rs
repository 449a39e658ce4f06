//! What `oxenfs diff` says the next commit holds, and that it is so.

use std::ffi::OsStr;
use std::fs;

use serde_json::Value;

use crate::mounted::{TestMount, shell};

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
    let summary = "2 added, 1 modified, 1 removed, 1 renamed; 1 path on this disk alone, which Oxen cannot store\n";
    assert_eq!(plain.err, summary);
    test.mount(&[]).ok();
    test.commit();
    assert_eq!(diff(&test, &test.dir), expected(&[("local", "link", "", false)]));
}
