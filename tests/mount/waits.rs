//! What programs wait for: servers that send next to nothing, nothing, or without end, and what ends the wait.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dataset::noise;
use crate::mounted::{TestMount, wait_until};
use crate::scripted::Scripted;

/// Much longer than the two seconds that are promised, for machines that are busy.
const SOON: Duration = Duration::from_secs(30);

/// A program that waits, and is killed with the test.
struct Program(Child);

impl Program {
    fn start(test: &TestMount, script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-ec", &format!("exec {script}")]).current_dir(&test.dir);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(piped.spawn().unwrap())
    }

    /// The same, when it waits for the daemon: for an answer, where a signal has it wait on in state D
    /// (`request_wait_answer` in fs/fuse/dev.c of Linux), or for a page that the kernel has asked for (mm/filemap.c).
    #[track_caller]
    fn waiting(test: &TestMount, script: &str) -> Self {
        let program = Self::start(test, script);
        wait_until(script, || program.waits());
        program
    }

    fn waits(&self) -> bool {
        let place = fs::read_to_string(format!("/proc/{}/wchan", self.0.id())).unwrap_or_default();
        place == "request_wait_answer" || place.starts_with("folio_wait")
    }

    /// Whether it ends by itself, and what it prints, errors last.
    #[track_caller]
    fn ended_within(mut self, limit: Duration) -> (bool, String) {
        let began = Instant::now();
        let status = loop {
            match self.0.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(began.elapsed() < limit, "it still waits after {limit:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (status.success(), text)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// A mount of what was committed before, of which nothing is here but the root's listing.
fn remounted(server: &Scripted, files: &Files, options: &[&str], faults: &[(&str, Value)]) -> TestMount {
    let test = TestMount::committed_by(&server.url(), files.iter().map(|(path, content)| (path, content)));
    for (path, action) in faults {
        server.arm("GET", path, None, action.clone());
    }
    test.mount(options).ok();
    test
}

type Files = Vec<(String, Vec<u8>)>;

/// Files of different content.
fn some(paths: &[&str]) -> Files {
    (0..).zip(paths).map(|(at, path)| ((*path).to_owned(), noise(at, 5000))).collect()
}

#[track_caller]
fn assert_reads(test: &TestMount, files: &Files) {
    for (path, content) in files {
        assert_eq!(fs::read(test.at(path)).unwrap(), *content, "{path}");
    }
}

fn drip() -> Value {
    json!({"drip": {"ms": 1000}})
}

/// No answer at all.
fn silence() -> Value {
    json!({"latency": {"ms": 3_600_000}})
}

fn hang() -> Value {
    json!("hang")
}

#[test]
fn whoever_waits_for_a_server_is_killed_at_once() {
    let server = Scripted::new();
    let names = ["drip", "hang", "silent", "append", "cut"];
    let dirs = ["dir-drip/x", "dir-hang/x", "dir-silent/x", "dir-moved/x", "dir-removed/x"];
    let files = some(&[&names[..], &dirs].concat());
    let faults = [
        ("/drip", drip()),
        ("/hang", hang()),
        ("/silent", silence()),
        ("/append", drip()),
        ("/cut", hang()),
        ("/dir-drip", drip()),
        ("/dir-hang", hang()),
        ("/dir-silent", silence()),
        ("/dir-moved", silence()),
        ("/dir-removed", hang()),
    ];
    let test = remounted(&server, &files, &[], &faults);
    let scripts = [
        "cat drip",
        "cat hang",
        "cat silent",
        "dd if=/dev/zero of=append bs=1 count=1 oflag=append conv=notrunc",
        "truncate -s 7 cut",
        "ls dir-drip",
        "stat dir-drip/x",
        "ls dir-hang",
        "cat dir-silent/x",
        "mv dir-moved/x dir-moved/y",
        "rm dir-removed/x",
    ];
    let programs = scripts.map(|script| (script, Program::waiting(&test, script)));
    let status = test.status();
    assert_eq!(status["phase"], "mounted");
    let killed = programs.map(|(script, mut program)| {
        program.0.kill().unwrap();
        (script, program)
    });
    for (script, program) in killed {
        let (succeeded, text) = program.ended_within(SOON);
        assert!(!succeeded, "{script}: {text}");
    }
    server.disarm();
    assert_reads(&test, &files);
    test.unmount();
}

#[test]
fn what_one_was_killed_for_others_get() {
    let server = Scripted::new();
    let files = vec![("file".into(), noise(2, 300))];
    let slow = json!({"drip": {"ms": 10}});
    let test = remounted(&server, &files, &[], &[("/file/", slow)]);
    let mut first = Program::waiting(&test, "cat file");
    let second = Program::waiting(&test, "cmp file file");
    first.0.kill().unwrap();
    let (succeeded, _) = first.ended_within(SOON);
    assert!(!succeeded);
    let (succeeded, text) = second.ended_within(SOON);
    assert!(succeeded, "{text}");
    assert_reads(&test, &files);
    let asked = server.log().iter().filter(|(_, path, _)| path.contains("/file/")).count();
    assert_eq!(asked, 1, "{:#?}", server.log());
    test.unmount();
}

#[test]
fn ctrl_c_ends_a_reader_and_what_only_that_wanted() {
    let server = Scripted::new();
    let files = some(&["file"]);
    let test = remounted(&server, &files, &[], &[("/file/", hang())]);
    // A shell that started the tests in the background has them ignore it.
    let reader = Program::waiting(&test, "env --default-signal=INT cat file");
    let pid = rustix::process::Pid::from_child(&reader.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (succeeded, _) = reader.ended_within(SOON);
    assert!(!succeeded);
    server.disarm();
    assert_reads(&test, &files);
    test.unmount();
}

#[test]
fn a_close_that_waits_for_the_server_is_killed_too() {
    let server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--write-through"]);
    fs::write(test.at("before"), "x").unwrap();
    server.arm("", "/workspaces/", None, silence());
    // One closes, of the other the kernel closes what it had open.
    let mut closes = Program::waiting(&test, "python3 -c 'f = open(\"one\", \"w\"); f.write(\"1\"); f.close()'");
    let mut open = Program::start(
        &test,
        "python3 -c 'import time; f = open(\"two\", \"w\", 1); f.write(\"2\\n\"); time.sleep(600)'",
    );
    wait_until("it to be written", || fs::metadata(test.at("two")).is_ok_and(|file| file.len() == 2));
    closes.0.kill().unwrap();
    assert!(!closes.ended_within(SOON).0);
    open.0.kill().unwrap();
    assert!(!open.ended_within(SOON).0);
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap(), "--detach"]);
    assert_eq!(said.exit, 3, "{said:#?}");
}

#[test]
fn a_reader_is_told_when_nothing_comes_and_the_next_one_asks_anew() {
    let server = Scripted::new();
    let files = some(&["drip", "hang", "silent", "dir-drip/x"]);
    let faults = [("/drip", drip()), ("/hang", hang()), ("/silent", silence()), ("/dir-drip", drip())];
    let test = remounted(&server, &files, &["--read-timeout", "2"], &faults);
    let programs: Vec<_> = files.iter().map(|(path, _)| Program::start(&test, &format!("cat {path}"))).collect();
    for program in programs {
        let (succeeded, text) = program.ended_within(SOON);
        assert!(!succeeded && text.contains("Input/output error"), "{text}");
    }
    let status = test.status();
    let unreadable: Vec<_> = status["unreadable"].as_array().unwrap().iter().map(|one| one["path"].clone()).collect();
    assert_eq!(unreadable, ["dir-drip", "drip", "hang", "silent"], "{status:#}");
    assert!(status["unreadable"][0]["reason"].as_str().unwrap().contains("no answer within"), "{status:#}");
    let said = test.oxenfs(["status", test.dir.to_str().unwrap()]).ok();
    assert!(said.out.contains("cannot be read") && said.out.contains("hang: no answer within"), "{}", said.out);
    server.disarm();
    assert_reads(&test, &files);
    assert_eq!(test.status()["unreadable"], json!([]));
    test.unmount();
}

#[test]
fn what_could_not_be_read_is_no_longer_told_when_it_came_for_another() {
    let server = Scripted::new();
    let files = some(&["silent", "hang"]);
    let test = remounted(&server, &files, &["--read-timeout", "2"], &[("/silent", silence()), ("/hang", hang())]);
    for (path, _) in &files {
        let (succeeded, text) = Program::start(&test, &format!("cat {path}")).ended_within(SOON);
        assert!(!succeeded, "{text}");
    }
    let told = || test.status()["unreadable"].as_array().unwrap().len();
    assert_eq!(told(), 2);
    server.disarm();
    test.oxenfs(["warm", test.at("silent").to_str().unwrap()]).ok();
    assert_eq!(told(), 1, "{:#}", test.status());
    test.oxenfs(["warm", test.at("hang").to_str().unwrap()]).ok();
    assert_eq!(told(), 0, "{:#}", test.status());
    assert_reads(&test, &files);
    test.unmount();
}

#[test]
fn a_server_that_is_started_anew_costs_a_reader_nothing_but_time() {
    let mut server = Scripted::new();
    let files = vec![("away".into(), noise(5, 5000)), ("amid".into(), noise(6, 3 << 20))];
    let test = remounted(&server, &files, &[], &[]);
    server.arm("GET", "/chunk/", Some(1), json!({"throttle": {"bytes_per_second": 32 << 10}}));
    server.arm("GET", "/chunk/", Some(1), json!({"truncate": {"bytes": 64 << 10}}));
    let amid = Program::waiting(&test, "cksum amid");
    wait_until("it to be asked for", || server.log().iter().any(|(_, path, _)| path.contains("/amid")));
    server.stop();
    let away = Program::waiting(&test, "cmp away away");
    // Longer than a request is repeated for.
    let began = Instant::now();
    wait_until("the time to pass", || began.elapsed() > Duration::from_secs(3));
    server.start(None);
    for program in [amid, away] {
        let (succeeded, text) = program.ended_within(SOON);
        assert!(succeeded, "{text}");
    }
    assert_reads(&test, &files);
    assert_eq!(test.status()["unreadable"], json!([]));
    test.unmount();
}

#[test]
fn a_silent_server_ends_a_mount_and_a_look_at_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // The kernel takes connections, and nobody ever reads from them.
    let test = TestMount::unmounted(&url);
    let began = Instant::now();
    let doctor = test.spawn(["doctor", "--server", &url]);
    let said = test.mount(&["--read-timeout", "4"]);
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.contains("no answer within"), "{said:#?}");
    assert!(said.err.contains("hint: look at the server, and at the way to it"), "{said:#?}");
    let output = doctor.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // Whichever of the two is first to notice.
    let failed =
        ["failed   server: no answer within".to_owned(), format!("failed   server: {url} did not answer within")];
    assert!(failed.iter().any(|failed| text.contains(failed)), "{text}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn many_readers_of_slow_files_hold_no_other_up() {
    let server = Scripted::new();
    let slow: Vec<String> = (0..20).map(|at| format!("slow-{at}")).collect();
    let slow: Vec<&str> = slow.iter().map(String::as_str).collect();
    let files = some(&[&["quick", "quick-dir/x", "slow-dir/x"], &slow[..]].concat());
    let test = remounted(&server, &files, &[], &[("/slow-", hang())]);
    // Or they would come with others, by their hashes.
    server.arm("QUERY", "/versions", None, json!({"status": {"code": 405}}));
    let mut waiting: Vec<Program> = slow.iter().map(|path| Program::waiting(&test, &format!("cat {path}"))).collect();
    waiting.extend((0..80).map(|_| Program::start(&test, "cat slow-0")));
    waiting.extend((0..20).map(|_| Program::start(&test, "ls slow-dir")));
    wait_until("all to wait", || waiting.iter().all(Program::waits));
    for path in ["quick", "quick-dir/x"] {
        let (succeeded, text) = Program::start(&test, &format!("cmp {path} {path}")).ended_within(SOON);
        assert!(succeeded, "{text}");
    }
    fs::write(test.at("quick-dir/new"), "new").unwrap();
    assert_eq!(test.status()["phase"], "mounted");
    test.oxenfs(["sync", test.dir.to_str().unwrap(), "--timeout", "10s"]).ok();
    for program in &mut waiting {
        program.0.kill().unwrap();
    }
    for program in waiting {
        assert!(!program.ended_within(SOON).0);
    }
    server.disarm();
    test.unmount();
}

/// What the server says of a directory of branch main, to be altered.
fn listing(server: &Scripted, test: &TestMount, dir: &str) -> Value {
    let (status, body) =
        server.ask("GET", &format!("/api/repos/{}/dir/main/{dir}?page=1&page_size=10000", test.repo), &Value::Null);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn answer(body: &Value) -> Value {
    json!({"status": {"code": 200, "body": body.to_string()}})
}

/// The most memory that the daemon ever had, in MiB.
fn peak_mib(test: &TestMount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", test.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

fn bytes_below(dir: &std::path::Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let lengths = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        meta => meta.map_or(0, |meta| meta.len()),
    });
    lengths.sum()
}

#[test]
fn a_body_without_end_ends_where_the_file_does() {
    let server = Scripted::new();
    let files = some(&["file", "other"]);
    let test = remounted(&server, &files, &[], &[("/file/", json!("endless"))]);
    let before = bytes_below(&test.state);
    let (succeeded, text) = Program::start(&test, "cat file").ended_within(SOON);
    assert!(!succeeded && text.contains("Input/output error"), "{text}");
    assert!(bytes_below(&test.state) < before + (1 << 20));
    let status = test.status();
    let why = status["unreadable"][0]["reason"].as_str().unwrap();
    assert!(why.contains("file has more than the 5000 bytes that it is listed with"), "{status:#}");
    server.disarm();
    assert_reads(&test, &files);
    test.unmount();
}

#[test]
fn a_bad_entry_costs_itself_and_not_its_directory() {
    let server = Scripted::new();
    let files = some(&["good", "short", "dir/good"]);
    let test = remounted(&server, &files, &[], &[]);
    test.unmount();
    test.forget();
    let mut root = listing(&server, &test, "");
    let entries = root["entries"].as_array_mut().unwrap();
    let good = entries.iter().find(|entry| entry["filename"] == "good").unwrap().clone();
    let hash = good["hash"].clone();
    for entry in entries.iter_mut().filter(|entry| entry["filename"] == "short") {
        entry["size"] = json!(4000);
    }
    let long = "x".repeat(300);
    for (name, hash, size) in [
        ("no-hash", json!(""), json!(5)),
        ("null-hash", Value::Null, json!(5)),
        ("long-hash", json!("f".repeat(99)), json!(5)),
        ("negative", hash.clone(), json!(-1)),
        ("huge", hash.clone(), json!(u64::MAX)),
        ("empty", hash.clone(), json!(0)),
        ("doubled", hash.clone(), json!(5)),
        ("doubled", hash.clone(), json!(6)),
        ("good", hash.clone(), good["size"].clone()),
        ("a/b", hash.clone(), json!(5)),
        ("..", hash.clone(), json!(5)),
        (&long, hash.clone(), json!(5)),
    ] {
        let mut entry = good.clone();
        (entry["filename"], entry["hash"], entry["size"]) = (json!(name), hash, size);
        entries.push(entry);
    }
    entries.extend([json!(7), Value::Null, json!({"filename": 7}), json!({"filename": "is-dir", "is_dir": "yes"})]);
    // The commit is asked for by its id; only the root is altered.
    server.arm("GET", "/?page=", None, answer(&root));
    test.mount(&[]).ok();
    let mut names: Vec<_> =
        fs::read_dir(&test.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["dir", "good", "short"]);
    let good: Files = files.iter().filter(|(path, _)| path != "short").cloned().collect();
    assert_reads(&test, &good);
    assert!(fs::read(test.at("short")).is_err());
    for name in ["no-hash", "null-hash", "long-hash", "negative", "huge", "empty", "doubled", "is-dir"] {
        let read = fs::read(test.at(name)).unwrap_err();
        let written = fs::write(test.at(name), "mine").unwrap_err();
        assert_eq!([read.raw_os_error(), written.raw_os_error()], [Some(5); 2], "{name}");
    }
    let status = test.status();
    let text = status["unreadable"].to_string();
    for name in
        ["no-hash", "null-hash", "long-hash", "negative", "huge", "empty", "doubled", "is-dir", "a/b", "..", &long]
    {
        assert!(text.contains(&format!("\"path\":\"{name}\"")), "{name}: {status:#}");
    }
    fs::write(test.at("new"), "new").unwrap();
    test.sync();
    server.disarm();
    // What was listed too short is as long as it is.
    assert_reads(&test, &files);
    assert_eq!(fs::metadata(test.at("short")).unwrap().len(), 5000);
    test.unmount();
}

#[test]
fn lengths_of_which_no_number_holds_the_sum_stop_nothing() {
    let server = Scripted::new();
    let files = some(&["file"]);
    let test = remounted(&server, &files, &[], &[]);
    test.unmount();
    test.forget();
    let mut root = listing(&server, &test, "");
    let entries = root["entries"].as_array_mut().unwrap();
    for name in ["vast-1", "vast-2", "vast-3"] {
        let mut entry = entries[0].clone();
        (entry["filename"], entry["size"]) = (json!(name), json!(i64::MAX));
        entries.push(entry);
    }
    server.arm("GET", "/?page=", None, answer(&root));
    test.mount(&["--settle", "3600"]).ok();
    for number in 1..=3 {
        fs::rename(test.at(format!("vast-{number}")), test.at(format!("moved-{number}"))).unwrap();
    }
    assert_eq!(test.status()["counts"]["dirty"], json!({"files": 3, "bytes": u64::MAX}));
    // They are as long as they are when they are staged.
    let dir = test.dir.to_str().unwrap();
    test.oxenfs(["sync", dir, "--timeout", "2s"]);
    test.status();
    server.disarm();
    test.oxenfs(["unmount", dir, "--detach"]);
}

#[test]
fn listings_without_end_are_errors_and_take_little_memory() {
    let server = Scripted::new();
    let files = some(&["pages/x", "bytes/x", "good/x"]);
    let test = remounted(&server, &files, &[], &[]);
    test.unmount();
    test.forget();
    let mut pages = listing(&server, &test, "pages");
    pages["total_pages"] = json!(1_u64 << 63);
    server.arm("GET", "/pages?page=", None, answer(&pages));
    server.arm("GET", "/bytes?page=", None, json!("endless"));
    test.mount(&[]).ok();
    for (dir, why) in [("pages", "is listed without end"), ("bytes", "longer than 67108864 bytes")] {
        let (succeeded, text) = Program::start(&test, &format!("ls {dir}")).ended_within(SOON);
        assert!(!succeeded && text.contains("Input/output error"), "{text}");
        let status = test.status();
        let found = status["unreadable"].as_array().unwrap().iter().find(|one| one["path"] == dir);
        assert!(found.is_some_and(|one| one["reason"].as_str().unwrap().contains(why)), "{status:#}");
    }
    assert!(peak_mib(&test) < 400, "{} MiB", peak_mib(&test));
    assert_eq!(fs::read(test.at("good/x")).unwrap(), files[2].1);
    server.disarm();
    assert_reads(&test, &files);
    test.unmount();
}

#[test]
fn a_server_does_not_make_of_a_file_any_number_of_parts() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let size = 30 << 20;
    let begun = |part_size: u64, num_parts: u64| {
        answer(&json!({
            "status": "success", "file": "awaiting_parts", "upload_id": "u",
            "part_size": part_size, "num_parts": num_parts, "part_window": u64::MAX,
        }))
    };
    for (name, part_size, num_parts) in [("bytes", 1, size), ("one", 1 << 60, 1)] {
        server.arm("POST", "/versions/uploads", Some(1), begun(part_size, num_parts));
        fs::write(test.at(name), noise(part_size, size as usize)).unwrap();
        test.sync();
    }
    assert!(peak_mib(&test) < 200, "{} MiB", peak_mib(&test));
    let expected = crate::mounted::local_tree(&test.dir);
    test.unmount_commit();
    crate::http::assert_same(&server.committed(&test.repo), &expected);
}
