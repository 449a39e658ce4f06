//! What the commands print as JSON has the forms of docs/output.schema.json.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use oxenfs::activity::Happening;
use oxenfs::control::Measures;
use oxenfs::control::{Ahead, Event, Refreshed, Request, Resolved, Status};
use oxenfs::report::Unreadable;
use oxenfs::report::{BadPattern, IgnoredBy};
use oxenfs::report::{Conflict, Counts, Difference, FileError, Kind, LocalPath, SparseFile, Tally};

use crate::daemon::{Daemon, Then, stopped};
use crate::{User, text};

fn schema() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/output.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What `value` has that its form does not allow. Knows the words that the schema uses, and takes no others.
fn check(root: &Value, form: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    for (word, said) in form.as_object().unwrap() {
        match word.as_str() {
            "description" => {}
            "$ref" => {
                let name = said.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                check(root, &root["$defs"][name], value, at, wrong);
            }
            "type" => {
                let is = |name: &str| match name {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("{at}: the test does not know the type {other}"),
                };
                let fits = match said {
                    Value::String(name) => is(name),
                    names => names.as_array().unwrap().iter().any(|name| is(name.as_str().unwrap())),
                };
                if !fits {
                    wrong.push(format!("{at} is {value}, not {said}"));
                }
            }
            "enum" if !said.as_array().unwrap().contains(value) => wrong.push(format!("{at} is {value}")),
            "enum" => {}
            "required" => {
                let missing =
                    said.as_array().unwrap().iter().filter(|name| value.get(name.as_str().unwrap()).is_none());
                wrong.extend(missing.map(|name| format!("{at} has no {name}")));
            }
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    match said.get(name) {
                        Some(form) => check(root, form, member, &format!("{at}.{name}"), wrong),
                        // More may come: the schema is to say so then.
                        None => wrong.push(format!("{at}.{name} is not in the schema")),
                    }
                }
            }
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, said, item, &format!("{at}[{number}]"), wrong);
                }
            }
            other => panic!("{at}: the test does not know the word {other:?}"),
        }
    }
}

#[track_caller]
fn assert_has_form(name: &str, value: &Value) {
    let schema = schema();
    let mut wrong = Vec::new();
    check(&schema, &schema["$defs"][name], value, name, &mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[track_caller]
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

fn full_status() -> Status {
    let tally = Tally { files: 1, bytes: 2 };
    let path = || "a".to_owned();
    Status {
        mountpoint: Some("/mnt".into()),
        phase: "mounted".into(),
        counts: Counts { dirty: tally, conflicts: tally, ..Counts::default() },
        stalled: Some("why".into()),
        stalled_reason: Some("unreachable".into()),
        eta_secs: Some(1),
        disk: Some("full".into()),
        ahead: Some(Ahead { head: "c0ffee".into(), commits: Some(3) }),
        conflicts: vec![Conflict { path: path(), what: "w".into(), renamed_to: Some(path()) }],
        errors: vec![FileError { path: path(), error: "e".into(), attempts: 1, parked: true }],
        local: vec![LocalPath { path: path(), reason: "r".into() }],
        sparse: vec![SparseFile { path: path(), bytes: 1, allocated_bytes: 0 }],
        unreadable: vec![Unreadable { path: path(), reason: "r".into() }],
        bad_patterns: vec![BadPattern { source: path(), line: Some(1), pattern: "[".into(), error: "e".into() }],
        ..Status::default()
    }
}

fn difference(kind: Kind) -> Difference {
    let (from, reason) = (Some("b".to_owned()), Some("r".to_owned()));
    let others = kind == Kind::Modified;
    Difference { path: "a".into(), kind, from, bytes: 1, staged: others, reason, conflict: Some("c".into()), others }
}

fn answers(request: &Request) -> (Vec<Event>, Then) {
    let events = match request {
        Request::Status => vec![Event::Status(Box::new(full_status()))],
        Request::Measures => vec![Event::Measures(Box::<Measures>::default())],
        Request::Diff => {
            let kinds = [Kind::Added, Kind::Modified, Kind::Removed, Kind::Renamed, Kind::Local];
            vec![Event::Differences { changes: kinds.map(difference).into() }, Event::Done]
        }
        Request::Refresh => vec![Event::Refreshed(Refreshed { stays: Some("why".into()), ..Refreshed::default() })],
        Request::Resolve { .. } => {
            let resolved = vec![Resolved { path: "a".into(), beside: Some("b".into()) }];
            vec![Event::Resolved { resolved, left: 1 }]
        }
        Request::Restore { .. } => vec![Event::Differences { changes: vec![difference(Kind::Added)] }, Event::Done],
        Request::LogLevel { .. } => vec![Event::LogLevel { level: "info".into() }],
        Request::Commit { .. } => {
            let ignored = Tally { files: 1, bytes: 2 };
            vec![Event::Ignores(ignored), Event::Committed { id: Some("c0ffee".into()) }]
        }
        Request::CheckIgnore { paths } => {
            let by = IgnoredBy { source: ".oxenignore".into(), line: Some(1), pattern: "*".into() };
            vec![Event::Ignored { by: paths.iter().map(|path| (path == "a").then(|| by.clone())).collect() }]
        }
        Request::Events => {
            let staged = Happening::Staged { path: "a".into(), bytes: 1, hash: "h".into() };
            let following =
                Happening::Following { mountpoint: "/mnt".into(), owed_files: 1, stalled: None, offline: false };
            let ahead = Happening::BranchAhead { branch: "main".into(), head: "h".into(), commits: None };
            let refreshed = Happening::Refreshed { base: "b".into(), conflicts: 1 };
            [following, staged, ahead, refreshed].into_iter().map(|what| Event::Happened { what: what.now() }).collect()
        }
        _ => vec![Event::Done],
    };
    (events, Then::HangUp)
}

#[test]
fn what_commands_print_as_json_has_the_form_that_is_documented() {
    let user = User::new();
    let dir = user.dir("mnt");
    let _daemon = Daemon::start(&user.state(), &dir, answers);
    let who = ["--author", "Ann", "--email", "ann@example.com"];
    let [a, b] = ["a", "b"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    for (name, arguments) in [
        ("status", vec!["status", text(&dir), "--json"]),
        ("diff", vec!["diff", text(&dir), "--json"]),
        ("doctor", vec!["doctor", "--json"]),
        ("config show", vec!["config", "show", "ox/cats", "--json"]),
        ("log-level", vec!["log-level", text(&dir), "--json"]),
        ("check-ignore", vec!["check-ignore", "--json", &a, &b]),
        ("sync", vec!["sync", text(&dir), "--json"]),
        ("refresh", vec!["refresh", text(&dir), "--json"]),
        ("resolve", vec!["resolve", text(&dir), "--ours", "--json"]),
        ("restore", vec!["restore", text(&dir), "--yes", "--json"]),
        ("commit", [&["commit", text(&dir), "-m", "x", "--json"], &who[..]].concat()),
        ("unmount", vec!["unmount", text(&dir), "--json"]),
    ] {
        let seen = user.run(&arguments);
        assert!(!seen.out.is_empty(), "{name}: {seen:?}");
        assert_has_form(name, &parsed(&seen.out));
    }
    let listed = parsed(&user.run(["status", "--json"]).out);
    assert_has_form("status", &listed[0]);
    let events = user.run(["events", text(&dir)]);
    let told: Vec<Value> = events.out.lines().map(parsed).collect();
    assert_eq!(told.len(), 5, "{events:?}");
    for event in &told {
        assert_has_form("events", event);
    }
    let committed = user.run([&["commit", text(&dir), "-m", "x", "--json"], &who[..]].concat());
    assert_eq!(committed.out, "{\"commit\":\"c0ffee\",\"staged_files\":0,\"ignored_files\":1,\"ignored_bytes\":2}\n");
}

/// An embedded server with a repository that has one commit.
struct Server {
    child: std::process::Child,
    url: String,
}

impl Server {
    fn with_a_commit(user: &User) -> Self {
        let data = user.dir("data");
        let mut command = user.command(["dev-server", text(&data), "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let server = Self { child, url: url.trim().to_owned() };
        let file = user.path("README.md");
        std::fs::write(&file, "content").unwrap();
        let who = ["--author", "Ann", "--email", "ann@example.com"];
        let create = ["repo", "create", "ox/cats", "--server", &server.url, "--file", text(&file)];
        let seen = user.run([&create[..], &who[..]].concat());
        assert_eq!(seen.exit, 0, "{seen:?}");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_a_server_is_asked_has_the_form_that_is_documented() {
    let user = User::new();
    let server = Server::with_a_commit(&user);
    for (name, arguments) in [
        ("log", vec!["log", "ox/cats"]),
        ("log", vec!["log", "oxen://ox:cats@main/README.md"]),
        ("branches", vec!["branches", "ox/cats"]),
        ("workspaces", vec!["workspaces", "ox/cats"]),
    ] {
        let seen = user.run([&arguments[..], &["--server", &server.url, "--json"]].concat());
        assert_eq!(seen.exit, 0, "{name}: {seen:?}");
        let value = parsed(&seen.out);
        assert_has_form(name, &value);
        assert_eq!(value.as_array().unwrap().len(), usize::from(name != "workspaces"), "{name}: {seen:?}");
    }
}

#[test]
fn without_a_daemon_the_forms_are_the_same() {
    let user = User::new();
    let dir = user.dir("mnt");
    let state = stopped(&user.state(), &dir);
    for (name, arguments) in [
        ("status", vec!["status", text(&dir), "--json"]),
        ("diff", vec!["diff", text(&dir), "--json"]),
        ("repair", vec!["repair", text(&state), "--json"]),
        ("unmount", vec!["unmount", text(&dir), "--json"]),
    ] {
        let seen = user.run(&arguments);
        assert_eq!(seen.exit, 0, "{name}: {seen:?}");
        assert_has_form(name, &parsed(&seen.out));
    }
}

#[test]
fn every_command_that_prints_json_has_a_form_and_the_test_knows_when_one_does_not_fit() {
    let user = User::new();
    let schema = schema();
    let help = user.run(["--help"]).out;
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    for name in commands.take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next()) {
        let below: &[&str] = match name {
            "repo" => &["create"],
            "config" => &["show"],
            _ => &[],
        };
        let words: Vec<&str> = [&[name], below].concat();
        let help = user.run([&words[..], &["--help"]].concat()).out;
        if help.contains("--json") {
            let form = words.join(" ");
            assert!(schema["$defs"].get(&form).is_some(), "{form} has no form in docs/output.schema.json");
        }
    }
    for (value, what) in [
        (serde_json::json!({}), "commit has no \"staged_files\""),
        (serde_json::json!({"commit": 1, "staged_files": 0}), "commit.commit is 1"),
        (serde_json::json!({"commit": null, "staged_files": 0, "more": 1}), "commit.more is not in the schema"),
    ] {
        let mut wrong = Vec::new();
        check(&schema, &schema["$defs"]["commit"], &value, "commit", &mut wrong);
        assert!(wrong.iter().any(|wrong| wrong.contains(what)), "{wrong:?}");
    }
}
