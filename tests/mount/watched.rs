//! Mounts that are watched from outside: what is measured, over HTTP and by the command, and what happens, as JSON.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::mounted::{TestMount, wait_until};
use crate::scripted::Scripted;
use crate::server::free_port;

/// The value of a metric of the one mount that a text is about; labels in `with` have to be there.
fn value(text: &str, name: &str, with: &str) -> Option<f64> {
    let of = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(with);
    text.lines().find(of)?.rsplit(' ').next()?.parse().ok()
}

fn get(address: &str, path: &str) -> (u16, String) {
    let (status, body) = http::get(address, path).unwrap();
    (status, String::from_utf8(body).unwrap())
}

/// What the page shows of the one mount.
fn shown(address: &str) -> Value {
    let (status, text) = get(address, "/page.json");
    assert_eq!(status, 200, "{text}");
    let page: Value = serde_json::from_str(&text).unwrap();
    page["mounts"][0].clone()
}

#[test]
fn a_scrape_during_an_outage_shows_what_is_owed_and_readyz_turns() {
    let mut server = Scripted::new();
    let address = format!("http://127.0.0.1:{}", free_port());
    let listen = address.strip_prefix("http://").unwrap();
    let test = TestMount::with(&server.url(), &["--metrics", listen]);
    fs::write(test.at("a.txt"), "one").unwrap();
    test.sync();
    let (status, text) = get(&address, "/metrics");
    assert_eq!(status, 200, "{text}");
    let of = |text: &str, name: &str| value(text, name, "");
    assert_eq!((of(&text, "oxenfs_up"), of(&text, "oxenfs_owed_files")), (Some(1.0), Some(0.0)), "{text}");
    assert_eq!((of(&text, "oxenfs_files_staged_total"), of(&text, "oxenfs_staged_files")), (Some(1.0), Some(1.0)));
    assert!(value(&text, "oxenfs_requests_total", "outcome=\"ok\"").is_some_and(|number| number >= 1.0), "{text}");
    assert_eq!(get(&address, "/readyz"), (200, "ok\n".to_owned()));

    server.stop();
    fs::write(test.at("b.txt"), "twelve bytes").unwrap();
    wait_until("readyz to turn", || get(&address, "/readyz").0 == 503);
    let why = get(&address, "/readyz").1;
    assert!(why.contains("stalled: cannot reach http://127.0.0.1:"), "{why}");
    assert_eq!(get(&address, "/healthz"), (200, "ok\n".to_owned()));
    let (_, text) = get(&address, "/metrics");
    assert_eq!((of(&text, "oxenfs_owed_files"), of(&text, "oxenfs_owed_bytes")), (Some(1.0), Some(12.0)), "{text}");
    assert_eq!(value(&text, "oxenfs_stalled", "reason=\"unreachable\""), Some(1.0), "{text}");
    assert_eq!(value(&text, "oxenfs_stalled", "reason=\"busy\""), Some(0.0), "{text}");
    let (status, page) = get(&address, "/");
    assert!(status == 200 && page.starts_with("<!doctype html>"), "{page}");
    // Nothing is fetched from elsewhere.
    assert!(!page.contains("src=") && !page.contains("href=") && page.matches("http").count() == 1, "{page}");
    let shown = shown(&address);
    assert_eq!(shown["owed"], json!({"files": 1, "bytes": 12}), "{shown:#}");
    assert!(shown["trouble"].as_str().unwrap().starts_with("stalled: cannot reach"), "{shown:#}");
    assert!(shown["advice"].as_str().unwrap().contains("is sent when the server answers"), "{shown:#}");
    assert_eq!(shown["past"][0]["owed_files"], 0, "{shown:#}");
    // Any user of the machine may ask there.
    assert!(!shown.to_string().contains("b.txt"), "{shown:#}");
    let age = of(&text, "oxenfs_oldest_owed_age_seconds").unwrap();
    wait_until("the age to grow", || of(&get(&address, "/metrics").1, "oxenfs_oldest_owed_age_seconds") > Some(age));
    assert!(value(&text, "oxenfs_requests_total", "outcome=\"unreachable\"").is_some(), "{text}");

    server.start(None);
    wait_until("readyz to turn back", || get(&address, "/readyz").0 == 200);
    test.wait_status("everything to be staged", |status| crate::faults::owed(status) == 0);
    test.commit();
    let (_, text) = get(&address, "/metrics");
    assert_eq!((of(&text, "oxenfs_commits_total"), of(&text, "oxenfs_stalls_total")), (Some(1.0), Some(1.0)), "{text}");
    // Where somebody listens, no other mount does, and the command says so.
    let other = TestMount::unmounted(&server.url());
    let refused = other.mount(&["--create", "--metrics", listen]);
    assert_eq!(refused.exit, 1, "{refused:?}");
    assert!(refused.err.contains(&format!("cannot serve what is measured at {listen}: ")), "{refused:?}");
    assert!(!other.is_mounted());
    test.unmount();
    wait_until("nobody to listen", || http::get(&address, "/metrics").is_err());
}

#[test]
fn the_command_tells_of_all_mounts_and_a_socket_is_for_its_owner_alone() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let socket = test.beside("run").join("metrics.sock");
    let listen = format!("unix:{}", socket.display());
    test.mount(&["--create", "--metrics", &listen]).ok();
    fs::write(test.at("a.txt"), "one").unwrap();
    test.sync();
    let mut stream = UnixStream::connect(&socket).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.contains("version=0.0.4"), "{answer}");
    assert_eq!(value(&answer, "oxenfs_files_staged_total", ""), Some(1.0), "{answer}");

    let second = test.beside("second");
    test.mount_with(&test.state, &second, &["--workspace", "second"]).ok();
    let text = test.oxenfs(["metrics"]).ok().out;
    for dir in [&test.dir, &second] {
        let with = format!("mountpoint=\"{}\"", dir.display());
        assert_eq!(value(&text, "oxenfs_mounted", &with), Some(1.0), "{text}");
    }
    assert_eq!(text.matches("# TYPE oxenfs_up gauge").count(), 1, "{text}");
    test.oxenfs(["unmount", second.to_str().unwrap()]).ok();
    // For node_exporter, in one step, to be read by others.
    let file = test.beside("textfiles").join("oxenfs.prom");
    test.oxenfs(["metrics", "--textfile", file.to_str().unwrap()]).ok();
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.matches("\noxenfs_up{").count(), 1, "{text}");
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    test.unmount();
    assert!(!socket.exists());
}

/// Lines that a command prints, as they come.
pub fn lines(output: impl Read + Send + 'static) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str(&line).unwrap());
        }
    });
    receiver
}

#[test]
fn what_happens_is_told_as_lines_of_json_until_the_daemon_ends() {
    let mut server = Scripted::new();
    let test = TestMount::through(&server.url());
    let mut command = Command::new(test.binary());
    command.args(["events", test.dir.to_str().unwrap(), "--state-dir"]).arg(&test.state);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let said = lines(child.stdout.take().unwrap());
    let wait = |event: &str| loop {
        let seen = said.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("no {event} was told"));
        assert!(seen["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{seen}");
        if seen["event"] == event {
            return seen;
        }
    };
    let following = wait("following");
    assert_eq!((&following["owed_files"], &following["stalled"]), (&0.into(), &Value::Null), "{following}");
    fs::write(test.at("a.txt"), "one").unwrap();
    let staged = wait("staged");
    assert_eq!((&staged["path"], &staged["bytes"]), (&"a.txt".into(), &3.into()), "{staged}");
    // Of "one", as the server writes it: without leading zeros.
    assert_eq!(staged["hash"], "a1c6d4cf41eb499911faba7321fe1a0", "{staged}");
    test.commit();
    let committed = wait("committed");
    assert_eq!(
        (committed["branch"].as_str(), committed["id"].as_str().map(str::is_empty)),
        (Some("main"), Some(false))
    );
    server.stop();
    fs::remove_file(test.at("a.txt")).unwrap();
    let stalled = wait("stalled");
    assert_eq!(stalled["reason"], "unreachable", "{stalled}");
    server.start(None);
    wait("resumed");
    assert_eq!(wait("unstaged")["path"], "a.txt");
    test.unmount();
    wait("ended");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
