//! A mount as a service of systemd: what its manager is told, by a socket that stands for the manager.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::mounted::TestMount;
use crate::scripted::Scripted;

/// The next message that has this word in it.
fn wait_for(manager: &UnixDatagram, word: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{word} was not told: {error}"));
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.contains(word) {
            return message;
        }
    }
}

#[test]
fn a_service_tells_its_manager_when_it_is_there_how_it_is_and_that_it_needs_time() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let socket = test.beside("run").join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = Command::new(test.binary());
    command.args(["mount", &test.repo, test.dir.to_str().unwrap(), "--create", "--foreground", "--state-dir"]);
    command.arg(&test.state).args(["--server", &server.url(), "--settle", "3600", "--drain-timeout", "60s"]);
    command.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let ready = wait_for(&manager, "READY=1");
    assert!(ready.contains("STATUS=all is on the server"), "{ready}");
    assert!(test.is_mounted());
    fs::write(test.at("a.txt"), "one").unwrap();
    wait_for(&manager, "STATUS=1 change to send");
    // A server that takes its time with what is left, and says so.
    server.arm("", "/workspaces/", None, json!({"latency": {"ms": 1500}}));
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
    wait_for(&manager, "STOPPING=1");
    let more = wait_for(&manager, "EXTEND_TIMEOUT_USEC=30000000");
    assert!(more.contains("STATUS=Sending what is left; "), "{more}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!test.is_mounted());
    server.disarm();
    test.mount(&[]).ok();
    test.unmount_commit();
    assert_eq!(server.committed(&test.repo)["a.txt"], b"one");
}
