//! Which servers are told a token, and of which state directories anything is said.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use oxenfs::mount::state_dir::{Identity, StateDir, prepare_root};

use crate::daemon::{identity, stopped};
use crate::{User, said, text};

/// A server that answers every request with its version, and tells what it was sent.
fn listening() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    read => request.extend_from_slice(&buffer[..read]),
                }
            }
            let _ = tell.send(String::from_utf8_lossy(&request).to_ascii_lowercase());
            let body = r#"{"status":"success","status_message":"resource_found","oxen_version":"0.65.2"}"#;
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (url, told)
}

#[test]
fn doctor_tells_a_token_to_the_server_that_it_is_for_alone() {
    let user = User::new();
    let ((ours, told_ours), (other, told_other)) = (listening(), listening());
    for server in [&ours, &other] {
        let dir = user.dir(&format!("mnt{}", server.len() + usize::from(server == &other)));
        let (root, _) = prepare_root(&user.state(), &dir).unwrap();
        drop(StateDir::open(&root, &Identity { server: server.clone(), ..identity(&dir) }).unwrap());
    }
    let token = "sesame-0123456789";
    let doctor = |arguments: &[&str], named: Option<&str>| {
        let mut command = user.command([&["doctor"], arguments].concat());
        command.env("OXEN_API_KEY", token).envs(named.map(|named| ("OXEN_SERVER", named)));
        let said = said(&mut command);
        assert!(!said.out.contains(token) && !said.err.contains(token), "{said:?}");
        said.out
    };
    let was_told = |told: &Receiver<String>| {
        let requests: Vec<String> = told.try_iter().collect();
        assert!(!requests.is_empty(), "it was not asked at all");
        requests.iter().any(|request| request.contains(token))
    };
    let out = doctor(&[], Some(&ours));
    assert_eq!((was_told(&told_ours), was_told(&told_other)), (true, false));
    let withheld =
        format!("warning  token: OXEN_API_KEY was not sent to {other}: nothing says that it is for that server\n");
    assert!(out.contains(&withheld), "{out}");
    assert!(out.contains(&format!("         hint: to try it there: oxenfs doctor --server {other}\n")), "{out}");
    // Nothing says whose it is.
    doctor(&[], None);
    assert_eq!((was_told(&told_ours), was_told(&told_other)), (false, false));
    doctor(&["--server", &other], Some(&ours));
    assert!(was_told(&told_other) && told_ours.try_recv().is_err());
    // The Oxen configuration has one for the other server, and it is for that alone.
    let host = other.strip_prefix("http://").unwrap();
    let file = format!(
        "default_host = \"{}\"\n[[host_configs]]\nhost = \"{host}\"\nauth_token = \"the-other-token\"\n",
        ours.strip_prefix("http://").unwrap()
    );
    std::fs::write(user.dir("oxen").join("auth_config.toml"), file).unwrap();
    doctor(&[], None);
    assert!(was_told(&told_ours));
    let requests: Vec<String> = told_other.try_iter().collect();
    assert!(requests.iter().any(|request| request.contains("the-other-token")), "{requests:?}");
    assert!(!requests.iter().any(|request| request.contains(token)), "{requests:?}");
}

#[test]
fn state_directories_that_were_removed_are_one_line_of_doctor_and_none_elsewhere() {
    let user = User::new();
    let (mounted, root) = (user.dir("mnt"), user.state());
    let kept = stopped(&root, &mounted);
    for number in 0..20 {
        std::os::unix::fs::symlink(user.path("nowhere"), root.join(format!("link-{number}"))).unwrap();
        // Removed while its daemon was ending.
        let dir = root.join(format!("dir-{number}"));
        std::fs::create_dir(&dir).unwrap();
        for name in ["log", "log.1", "lock", "README"] {
            std::fs::write(dir.join(name), "x").unwrap();
        }
    }
    for command in
        [&["status"][..], &["status", text(&mounted)], &["diff", text(&mounted)], &["unmount", text(&mounted)]]
    {
        let said = user.run(command);
        assert!(!said.err.contains("warning") && !said.out.contains("link-"), "{command:?}: {said:?}");
    }
    let doctor = user.run(["doctor"]);
    assert_eq!(doctor.err, "");
    let lines: Vec<_> = doctor.out.lines().filter(|line| line.contains("removed, but for their names: ")).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(" and 39 more"), "{doctor:?}");
    // One that may hold data is told by every command.
    std::fs::create_dir(root.join("dir-0/spool")).unwrap();
    assert!(user.run(["status"]).err.contains("dir-0/meta.json"), "what may be of worth is told");
    assert!(kept.exists());
}
