//! What the daemon says in its log: enough to tell what happened, no token, and nothing that a terminal would obey.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::mounted::{Said, TestMount, run, wait_until};
use crate::scripted::Scripted;

/// All that this mount has logged.
fn log(test: &TestMount) -> String {
    log_in(&test.state)
}

/// All that the mounts with this state have logged.
pub fn log_in(state: &Path) -> String {
    let mut text = String::new();
    for dir in fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for older in ["log.3", "log.2", "log.1", "log"] {
            text += &fs::read_to_string(dir.join(older)).unwrap_or_default();
        }
    }
    text
}

fn wait_log(test: &TestMount, what: &str) {
    wait_until(&format!("{what:?} in the log"), || log(test).contains(what));
}

fn level(test: &TestMount, level: &[&str]) -> Said {
    test.oxenfs([&["log-level", test.dir.to_str().unwrap()], level].concat())
}

/// The id in `(request ...)`, which has 32 digits.
fn request_id(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("(request ")?;
    let (id, _) = rest.split_once(')')?;
    (id.len() == 32 && id.chars().all(|char| char.is_ascii_hexdigit())).then_some(id)
}

#[test]
fn an_outage_is_in_the_log_once_when_it_begins_and_once_when_it_ends() {
    let mut server = Scripted::new();
    let test = TestMount::with(&server.url(), &["--log", "info,oxenfs::stager=debug"]);
    server.stop();
    fs::write(test.at("meanwhile.txt"), "written").unwrap();
    wait_log(&test, "staging pauses again");
    let begins: Vec<String> =
        log(&test).lines().filter(|line| line.contains(" WARN oxenfs::stager: ")).map(str::to_owned).collect();
    assert_eq!(begins.len(), 1, "{begins:#?}");
    let begin = begins[0].as_str();
    assert!(begin.contains("staging pauses; it is tried again and again why=\"cannot reach http://"), "{begin}");
    // Status shows the same, as long as the reason is: it names the request that met it first.
    let stalled = test.status()["stalled"].as_str().unwrap().to_owned();
    assert_eq!(request_id(begin).unwrap(), request_id(&stalled).unwrap());
    server.start(None);
    wait_log(&test, " INFO oxenfs::stager: staging goes on after=");
    test.unmount_commit();
    let text = log(&test);
    assert_eq!(text.matches(" WARN oxenfs::stager: staging").count(), 1, "{text}");
}

#[test]
fn no_token_is_in_any_log() {
    let token = "sesame-0123456789-abcdef";
    let mut server = Scripted::with_token(Some(token));
    let test = TestMount::unmounted(&server.url());
    test.mount_after(&format!("export OXEN_API_KEY={token} OXENFS_LOG=trace")).ok();
    fs::write(test.at("a.txt"), "one").unwrap();
    test.sync();
    server.stop();
    server.start(Some("another-0123456789"));
    fs::write(test.at("b.txt"), "two").unwrap();
    wait_log(&test, "staging pauses; it is tried again and again why=\"the server does not accept the credentials");
    assert_eq!(test.oxenfs(["unmount", test.dir.to_str().unwrap(), "--detach"]).exit, 3);
    let text = log(&test);
    assert!(text.contains("TRACE oxenfs::oxen::http: sending a request request="), "{text}");
    assert!(text.contains("DEBUG oxenfs::oxen::http: a request failed request="), "{text}");
    for hidden in [token, "sesame"] {
        assert!(!text.contains(hidden), "{text}");
    }
}

#[test]
fn what_is_logged_changes_while_it_is_mounted() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    assert_eq!(level(&test, &[]).ok().out, "info\n");
    fs::write(test.at("a.txt"), "one").unwrap();
    test.sync();
    assert!(!log(&test).contains("a request was answered"));
    level(&test, &["warn,oxenfs::oxen=debug"]).ok();
    assert_eq!(level(&test, &[]).ok().out, "warn,oxenfs::oxen=debug\n");
    fs::write(test.at("b.txt"), "two").unwrap();
    test.sync();
    wait_log(&test, "DEBUG oxenfs::oxen::http: a request was answered request=");
    let text = log(&test);
    let line = text.lines().find(|line| line.contains("a request was answered")).unwrap();
    for field in [" method=", " path=api/", " status=200 ", " took=", " attempt=1"] {
        assert!(line.contains(field), "{line}");
    }
    assert!(!text.contains("TRACE"), "{text}");
    level(&test, &["info"]).ok();
    wait_log(&test, "INFO oxenfs::mount::serve: logging changes level=info");
    let wrong = level(&test, &["loud"]);
    assert_eq!(wrong.exit, 2, "{wrong:#?}");
    test.unmount();
}

#[test]
fn no_line_is_about_one_file_unless_somebody_asks_for_it() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    fs::create_dir(test.at("dir")).unwrap();
    for number in 0..200 {
        fs::write(test.at(format!("dir/file-{number:03}")), format!("content {number}")).unwrap();
    }
    test.commit();
    for number in 0..100 {
        fs::remove_file(test.at(format!("dir/file-{number:03}"))).unwrap();
        fs::rename(test.at(format!("dir/file-{:03}", number + 100)), test.at(format!("dir/other-{number:03}")))
            .unwrap();
    }
    test.unmount_commit();
    let text = log(&test);
    for said in
        ["oxenfs::mount: starting version=", "oxenfs::mount: mounted ", "committed id=", "unmounted", "ended owed=0"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("file-") && !text.contains("other-"), "{text}");
    assert!(text.lines().count() < 40, "{text}");
    for dir in fs::read_dir(&test.state).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        assert_eq!(fs::metadata(dir.join("log")).unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_path_that_is_parked_is_told_with_its_request_and_its_name_commands_no_terminal() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    for way in ["/files", "/versions"] {
        server.arm("POST", way, None, serde_json::json!({"status": {"code": 422}}));
    }
    fs::write(test.at("x\u{1b}[31m\u{202e}.txt"), "one").unwrap();
    wait_log(&test, "not staged; it waits for somebody path=x\\u{1b}[31m\\u{202e}.txt error=");
    assert_eq!(test.oxenfs(["unmount", test.dir.to_str().unwrap(), "--detach"]).exit, 3);
    let text = log(&test);
    let line = text.lines().find(|line| line.contains("it waits for somebody")).unwrap();
    assert!(line.contains(" WARN ") && request_id(line).is_some(), "{line}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
}

/// A mount in the foreground, after the shell did something, and unmounted again: what it printed.
fn in_foreground(test: &TestMount, shell: &str) -> String {
    std::thread::scope(|scope| {
        let mounting = scope.spawn(|| test.mount_after(&format!("{shell}\nset -- \"$@\" --foreground")));
        wait_until("the mount", || test.is_mounted() && test.oxenfs(["status"]).out.contains("mounted"));
        fs::write(test.at("a.txt"), "one").unwrap();
        test.unmount();
        mounting.join().unwrap().ok().err
    })
}

#[test]
fn in_the_foreground_the_log_is_standard_error_and_for_the_journal_it_has_priorities() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let err = in_foreground(&test, "");
    let line = err.lines().find(|line| line.contains("INFO oxenfs::mount: mounted ")).expect(&err);
    assert!(line.starts_with("20") && line[..25].contains('T') && line[..25].contains("Z "), "{line}");
    assert_eq!(log(&test), "");
    let err = in_foreground(&test, "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)");
    let line = err.lines().find(|line| line.contains("oxenfs::mount: mounted ")).expect(&err);
    assert!(line.starts_with("<6>oxenfs::mount: mounted "), "{line}");
    // Of somebody else's stream nothing is believed.
    let err = in_foreground(&test, "export JOURNAL_STREAM=1:1");
    assert!(!err.contains("<6>") && err.contains(" INFO oxenfs::mount: mounted "), "{err}");
    assert!(!run("ls", [&test.state]).is_empty());
}

#[test]
fn the_embedded_server_gives_the_id_of_a_request_back() {
    use std::io::{Read, Write};
    let server = Scripted::new();
    let address = server.url().replace("http://", "");
    for path in ["/api/version", "/api/repos/ox/absent"] {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: h\r\nx-oxen-request-id: abc-123\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\r\nx-oxen-request-id: abc-123\r\n"), "{answer}");
    }
}
