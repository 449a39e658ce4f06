//! Text of others, whoever they are, is shown as text: no command of a terminal, no forged line, no turned order.

use oxenfs::control::{Ahead, Event, Failure, Request, Status};

use oxenfs::mount::state_dir::{Identity, StateDir, prepare_root};
use oxenfs::report::{BadPattern, Counts, Difference, FileError, IgnoredBy, Kind, LocalPath, Tally};

use crate::daemon::{Daemon, Then, identity};
use crate::{User, text};

/// Commands of terminals old and new, a forged line, and what turns or reshapes what follows; no name may have more.
const HOSTILE: &str = "a\x1b]0;t\x07\x1b[2J\u{9b}31m\u{9d}8;;x\u{9c}\r\nerror: forged\t\u{7f}\u{85}\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}z";

/// Nothing of [`HOSTILE`] is raw in what was printed, and some of it was printed.
#[track_caller]
fn assert_shown(what: &str, out: &[u8], err: &[u8]) {
    for printed in [out, err] {
        let printed = std::str::from_utf8(printed).unwrap_or_else(|error| panic!("{what}: {error}: {printed:?}"));
        let raw = |char: char| {
            (char.is_control() && char != '\n')
                || "\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}".contains(char)
                || ('\u{202a}'..='\u{202e}').contains(&char)
                || ('\u{2066}'..='\u{2069}').contains(&char)
        };
        assert!(!printed.contains(raw), "{what}: {printed:?}");
        assert!(!printed.lines().any(|line| line.starts_with("error: forged")), "{what}: {printed}");
    }
    let both = [out, err].concat();
    assert!(String::from_utf8_lossy(&both).contains("]0;t"), "{what}: nothing of it was shown: {both:?}");
}

fn hostile() -> String {
    HOSTILE.to_owned()
}

fn failure() -> Event {
    Event::Failed(Failure { message: hostile(), hint: Some(hostile()), owed: true })
}

/// A daemon that does what it is asked, in hostile words.
fn willing(request: &Request) -> (Vec<Event>, Then) {
    let one = Tally { files: 1, bytes: 1 };
    let status = Status {
        mountpoint: Some(hostile()),
        server: hostile(),
        repo: hostile(),
        branch: hostile(),
        workspace: hostile(),
        phase: hostile(),
        server_version: hostile(),
        dialect: hostile(),
        base: hostile(),
        ahead: Some(Ahead { head: hostile(), commits: None }),
        counts: Counts { failed: one, local: one, ..Counts::default() },
        disk: Some(hostile()),
        passthrough: hostile(),
        stalled: Some(hostile()),
        errors: vec![FileError { path: hostile(), error: hostile(), attempts: 2, parked: true }],
        local: vec![LocalPath { path: hostile(), reason: hostile() }],
        bad_patterns: vec![BadPattern { source: hostile(), line: Some(1), pattern: hostile(), error: hostile() }],
        ..Status::default()
    };
    let change = |kind, from, reason| Difference {
        path: hostile(),
        kind,
        from,
        bytes: 1,
        staged: true,
        reason,
        conflict: Some(hostile()),
        others: false,
    };
    let events = match request {
        Request::Status => vec![Event::Status(Box::new(status))],
        Request::LogLevel { .. } => vec![Event::LogLevel { level: hostile() }],
        Request::CheckIgnore { .. } => {
            vec![Event::Ignored { by: vec![Some(IgnoredBy { source: hostile(), line: None, pattern: hostile() })] }]
        }
        Request::Diff => {
            let changes = vec![
                change(Kind::Added, None, None),
                change(Kind::Renamed, Some(hostile()), None),
                change(Kind::Local, None, Some(hostile())),
            ];
            vec![Event::Differences { changes }, Event::Done]
        }
        Request::Commit { .. } => vec![Event::Committed { id: Some(hostile()) }],
        _ => vec![Event::Stalled { why: Some(hostile()) }, failure()],
    };
    (events, Then::HangUp)
}

/// One that refuses everything.
fn unwilling(request: &Request) -> (Vec<Event>, Then) {
    match request {
        // Without it nothing else is asked.
        Request::Status => willing(request),
        _ => (vec![failure()], Then::HangUp),
    }
}

const AUTHOR: [&str; 4] = ["--author", "A", "--email", "a@x"];

#[test]
fn what_a_daemon_says_is_shown_as_text_by_every_command() {
    for script in [willing, unwilling] {
        let user = User::new();
        let dir = user.dir(HOSTILE);
        let _daemon = Daemon::start(&user.state(), &dir, script);
        let dir = text(&dir);
        let plain: [&[&str]; 15] = [
            &["status"],
            &["status", "--json"],
            &["status", dir],
            &["status", dir, "--json"],
            &["diff", dir],
            &["diff", dir, "--json"],
            &["doctor", dir],
            &["doctor", dir, "--json"],
            &["log-level", dir],
            &["log-level", dir, "debug"],
            &["check-ignore", "-v", dir],
            &["check-ignore", "--json", dir],
            &["sync", dir],
            &["import", "/etc/hostname", dir],
            &["unmount", dir],
        ];
        let mut commands: Vec<Vec<&str>> = plain.iter().map(|command| command.to_vec()).collect();
        commands.push([&["commit", dir, "-m", HOSTILE], &AUTHOR[..]].concat());
        commands.push([&["unmount", dir, "--commit", "-m", HOSTILE], &AUTHOR[..]].concat());
        commands.push(vec!["unmount", dir, "--detach"]);
        for command in commands {
            let output = user.command(&command).output().unwrap();
            assert_shown(&format!("{command:?}"), &output.stdout, &output.stderr);
            if command.contains(&"--json") && output.status.success() {
                let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                let said = json.to_string();
                let kept = serde_json::to_string(HOSTILE).unwrap();
                assert!(said.contains(kept.trim_matches('"')), "{command:?} changed what it means: {said}");
            }
        }
    }
}

#[test]
fn what_a_state_directory_says_is_shown_as_text() {
    let user = User::new();
    let dir = user.dir(HOSTILE);
    let (root, _) = prepare_root(&user.state(), &dir).unwrap();
    let hostile = Identity {
        server: HOSTILE.into(),
        repo: HOSTILE.into(),
        workspace: HOSTILE.into(),
        subdir: HOSTILE.into(),
        branch: HOSTILE.into(),
        revision: Some(HOSTILE.into()),
        mountpoint: dir.clone(),
    };
    let state = StateDir::open(&root, &hostile).unwrap().path().to_owned();
    let damaged = root.join(HOSTILE);
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join("meta.json"), HOSTILE).unwrap();
    let dir = text(&dir);
    let sync = ["sync", dir];
    for command in [
        &["status"][..],
        &["status", dir],
        &["status", dir, "--json"],
        &["doctor"],
        &["diff", dir],
        &sync,
        &["unmount", dir],
    ] {
        let output = user.command(command).output().unwrap();
        assert_shown(&format!("{command:?}"), &output.stdout, &output.stderr);
    }
    // One that has gone wrong.
    std::fs::write(state.join("meta.json"), format!("{{\"server\": \"{}\"", HOSTILE.escape_default())).unwrap();
    let output = user.command(["status"]).output().unwrap();
    assert_shown("status", &output.stdout, &output.stderr);
}

#[test]
fn what_was_typed_is_shown_as_text() {
    let user = User::new();
    let plain = user.dir("mnt");
    std::fs::write(user.dir("oxen").join("user_config.toml"), "").unwrap();
    let (h, dir) = (HOSTILE, text(&plain));
    let server = ["--server", "127.0.0.1:1"];
    let mount = |options: &[&'static str]| [&["mount", "ox/cats", dir], &server[..], options].concat();
    let mut commands: Vec<Vec<&str>> = vec![
        vec![h],
        vec!["status", "--", h, h],
        vec!["mount", h, dir],
        vec!["mount", "ox/cats", h, "--server", "127.0.0.1:1"],
        vec!["mount", "ox/cats", dir, "--server", h],
        vec!["unmount", h],
        vec!["unmount", dir, "--timeout", h],
        vec!["sync", h],
        vec!["diff", h],
        vec!["status", h],
        vec!["doctor", h],
        vec!["doctor", "--server", h],
        vec!["import", h, dir],
        vec!["log-level", dir, h],
        vec!["commit", dir, "-m", "x", "--branch", h],
        vec!["repo", "create", h],
        vec!["repo", "create", "ox/cats", "--server", "127.0.0.1:1", "--file", h],
        vec!["repo", "create", "ox/cats", "--server", "127.0.0.1:1", "--storage", h],
        vec!["branches", h],
        vec!["workspaces", h],
        vec!["log", h],
        vec!["log", "ox/cats", "--branch", h, "--server", "127.0.0.1:1"],
        vec!["dev-server", dir, "--token-env", h],
        vec!["dev-server", dir, "--dialect", h],
        vec!["dev-server", dir, "--listen", h],
        vec!["completions", h],
    ];
    for option in ["--branch", "--workspace", "--subdir", "--spool-limit", "--fsync", "--umask", "--log", "-o"] {
        commands.push(mount(&[option, h]));
    }
    for command in commands {
        let output = user.command(&command).output().unwrap();
        assert!(!output.status.success(), "{command:?}");
        // Where the device is not there, that is said first.
        if !String::from_utf8_lossy(&output.stderr).contains("/dev/fuse") {
            let shown =
                if output.stderr.windows(4).any(|part| part == b"]0;t") { &output.stderr } else { &b"]0;t"[..] };
            assert_shown(&format!("{command:?}"), shown, &output.stderr);
        }
    }
}

#[test]
fn a_hint_can_be_pasted_whatever_the_directory_is_called() {
    let user = User::new();
    let dir = user.dir("it's $(HOME)\n\u{9b}");
    let (root, _) = prepare_root(&user.state(), &dir).unwrap();
    drop(StateDir::open(&root, &Identity { workspace: "w; reboot".into(), ..identity(&dir) }).unwrap());
    let said = user.run(["sync", text(&dir)]);
    let hint = said.err.split("hint: mount it again: oxenfs ").nth(1).unwrap_or_else(|| panic!("{said:?}"));
    let script = format!("printf '%s\\0' {hint}");
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    let words = [
        b"mount",
        &b"ox/cats"[..],
        text(&dir).as_bytes(),
        b"--server",
        b"http://127.0.0.1:3000",
        b"--branch",
        b"main",
        b"--workspace",
        b"w; reboot",
        b"",
    ];
    assert_eq!(output.stdout.split(|byte| *byte == 0).collect::<Vec<_>>(), words);
}
