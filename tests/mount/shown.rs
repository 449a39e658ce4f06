//! A server's words, whatever they are, are shown as text by every command and in every log line.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};

use crate::mounted::TestMount;
use crate::scripted::Scripted;

/// Without what no name can hold.
const HOSTILE: &str = "a\x1b]0;t\x07\x1b[2J\u{9b}31m\u{85}\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\nerror: forged\tz";

#[track_caller]
fn assert_text(what: &str, printed: &str) {
    let raw = |char: char| {
        (char.is_control() && char != '\n')
            || "\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}".contains(char)
            || ('\u{202a}'..='\u{202e}').contains(&char)
            || ('\u{2066}'..='\u{2069}').contains(&char)
    };
    assert!(!printed.contains(raw), "{what}: {printed:?}");
    assert!(!printed.lines().any(|line| line.starts_with("error: forged")), "{what}: {printed}");
}

struct Hostile {
    server: Scripted,
    test: TestMount,
    shown: std::cell::Cell<usize>,
}

impl Hostile {
    /// Runs a command, and looks at every byte it prints.
    #[track_caller]
    fn run(&self, command: &[&str]) -> String {
        let said = self.test.oxenfs(command);
        let both = said.out + &said.err;
        assert_text(&format!("{command:?}"), &both);
        self.shown.set(self.shown.get() + usize::from(both.contains("]0;t")));
        both
    }

    fn answers(&self, method: &str, path: &str, code: u16, body: &Value) {
        self.server.arm(method, path, None, json!({"status": {"code": code, "body": body.to_string()}}));
    }
}

#[test]
fn what_a_server_says_is_shown_as_text() {
    let (server, mut test) = (Scripted::new(), TestMount::unmounted("http://127.0.0.1:1"));
    // The mount's own path too.
    test.dir = test.beside("").join(std::ffi::OsStr::from_bytes(HOSTILE.as_bytes()));
    fs::create_dir(&test.dir).unwrap();
    let (dir, repo, url) = (test.dir.to_str().unwrap().to_owned(), test.repo.clone(), server.url());
    let hostile = Hostile { server, test, shown: Default::default() };
    let refusal = json!({"status": "error", "status_message": HOSTILE, "status_description": HOSTILE});
    let mount = ["mount", &repo, &dir, "--server", &url, "--create"];
    // Each kind of refusal before there is a mount.
    for code in [400, 401, 403, 404, 409, 422, 500] {
        hostile.answers("", "/api/", code, &refusal);
        for command in [&mount[..], &["branches", &repo, "--server", &url], &["workspaces", &repo, "--server", &url]] {
            hostile.run(command);
        }
        hostile.run(&["repo", "create", &repo, "--server", &url]);
        hostile.run(&["doctor", "--server", &url, "--json"]);
        hostile.server.disarm();
    }
    hostile.answers(
        "GET",
        "/api/version",
        200,
        &json!({"status": "success", "status_message": HOSTILE, "oxen_version": HOSTILE}),
    );
    hostile.run(&["doctor", "--server", &url]);
    hostile.run(&mount);
    hostile.server.disarm();
    hostile.run(&mount);
    let listed = json!({"branches": [{"name": HOSTILE, "commit_id": HOSTILE}], "workspaces": [{"id": "w", "name": HOSTILE, "commit": {"id": HOSTILE}}]});
    for (command, path) in [("branches", "/branches"), ("workspaces", "/workspaces")] {
        hostile.answers("GET", path, 200, &listed);
        hostile.run(&[command, &repo, "--server", &url]);
        hostile.run(&[command, &repo, "--server", &url, "--json"]);
        hostile.server.disarm();
    }
    let commits = json!({"commits": [{"id": HOSTILE, "author": HOSTILE, "email": HOSTILE, "timestamp": HOSTILE, "message": HOSTILE, "parent_ids": [HOSTILE, HOSTILE]}]});
    hostile.answers("GET", "/commits/history", 200, &commits);
    hostile.run(&["log", &repo, "--server", &url]);
    hostile.run(&["log", &dir, "--json"]);
    hostile.server.disarm();
    // Names on the mount, of files that are refused, staged, committed, in conflict.
    let name = HOSTILE.to_owned();
    let author = ["--author", HOSTILE, "--email", "a@x"];
    let commit = [&["commit", &dir, "-m", HOSTILE], &author[..]].concat();
    hostile.answers("POST", "/workspaces/", 422, &refusal);
    fs::write(hostile.test.at(&name), "content").unwrap();
    std::os::unix::fs::symlink(HOSTILE, hostile.test.at(format!("{name} link"))).unwrap();
    let every = [
        vec!["sync", &dir],
        vec!["status", &dir],
        vec!["status", &dir, "--json"],
        vec!["status"],
        vec!["diff", &dir],
        vec!["diff", &dir, "--json"],
        vec!["doctor", &dir],
        vec!["unmount", &dir, "--timeout", "2s"],
    ];
    every.iter().for_each(|command| drop(hostile.run(command)));
    hostile.run(&commit);
    hostile.server.disarm();
    hostile.answers("GET", "/merge/", 200, &json!({"conflicts": [{"path": HOSTILE}, {"path": "/../x"}]}));
    hostile.run(&commit);
    hostile.server.disarm();
    hostile.server.arm("POST", "/merge/", Some(1), json!({"name_commit": {"id": HOSTILE}}));
    hostile.run(&commit);
    hostile.run(&commit);
    every[..7].iter().for_each(|command| drop(hostile.run(command)));
    hostile.run(&["unmount", &dir]);
    hostile.run(&["status", &dir]);
    hostile.run(&mount);
    hostile.run(&["unmount", &dir, "--detach"]);
    assert!(hostile.shown.get() > 30, "the server's words were shown {} times alone", hostile.shown.get());
    // What was logged all the while.
    let mut logs = 0;
    for state in fs::read_dir(&hostile.test.state).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let log = String::from_utf8(fs::read(state.path().join("log")).unwrap()).unwrap();
        assert!(log.contains("]0;t"), "{log}");
        assert_text("log", &log);
        logs += 1;
    }
    assert_eq!(logs, 1);
}
