//! What the server holds, asked over HTTP without a line of the client under test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Paths and contents; a directory without entries is its path with a slash at the end, and no content.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// The status and the body of a GET. HTTP/1.0, so that the body is what follows until the end.
pub fn get(server: &str, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
    /// The server has not read the request in the five seconds that it gives a new connection: this machine is busy.
    const REQUEST_TIMEOUT: u16 = 408;
    for _ in 0..5 {
        let (status, body) = get_once(server, path)?;
        if status != REQUEST_TIMEOUT {
            return Ok((status, body));
        }
    }
    panic!("the server has no time for GET {path}");
}

fn get_once(server: &str, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
    answer(server, "GET", path, "", "")
}

fn answer(server: &str, method: &str, path: &str, head: &str, body: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let host = server.strip_prefix("http://").expect("the tests speak plain HTTP").trim_end_matches('/');
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: test\r\n{head}\r\n{body}")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer");
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(malformed)?;
    let status = answer.split(|byte| *byte == b' ').nth(1).and_then(|code| std::str::from_utf8(code).ok());
    let status = status.and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    let length = String::from_utf8_lossy(&answer[..head])
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse::<usize>().ok());
    let body = answer.split_off(head + 4);
    assert!(length.is_none_or(|length| length == body.len()), "{method} {path}: the answer was cut off");
    Ok((status, body))
}

/// The status and the body of what a request with a body of JSON, or none, is answered.
pub fn ask(server: &str, method: &str, path: &str, body: &Value) -> std::io::Result<(u16, Vec<u8>)> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    answer(
        server,
        method,
        path,
        &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
        &body,
    )
}

/// The status and the body of what a request is answered that stages one file of a workspace.
pub fn add_file(server: &str, files: &str, dir: &str, name: &str, text: &str) -> std::io::Result<(u16, Vec<u8>)> {
    const BOUNDARY: &str = "a-line-that-no-file-has";
    let body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{text}\r\n--{BOUNDARY}--\r\n"
    );
    let head = format!("Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {}\r\n", body.len());
    answer(server, "POST", &format!("{files}/{}", escaped(dir)), &head, &body)
}

/// A path with every byte escaped that is not plain.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            out.push(byte.into());
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn join(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") }
}

fn listing(server: &str, repo: &str, branch: &str, dir: &str) -> Vec<Value> {
    let mut entries = Vec::new();
    for page in 1.. {
        let path = format!("/api/repos/{repo}/dir/{branch}/{}?page={page}&page_size=10000", escaped(dir));
        let (status, body) = get(server, &path).unwrap();
        assert_eq!(status, 200, "GET {path}: {}", String::from_utf8_lossy(&body));
        let body: Value = serde_json::from_slice(&body).unwrap();
        entries.extend(body["entries"].as_array().expect("entries").iter().cloned());
        if body["total_pages"].as_u64().unwrap_or(1) <= page {
            break;
        }
    }
    entries
}

/// The paths of all files of branch main.
pub fn committed_paths(server: &str, repo: &str) -> BTreeSet<String> {
    let (mut paths, mut dirs) = (BTreeSet::new(), vec![String::new()]);
    while let Some(dir) = dirs.pop() {
        for entry in listing(server, repo, "main", &dir) {
            let path = join(&dir, entry["filename"].as_str().expect("filename"));
            match entry["is_dir"] == true {
                true => dirs.push(path),
                false => _ = paths.insert(path),
            }
        }
    }
    paths
}

/// All of branch main.
pub fn committed_tree(server: &str, repo: &str) -> Tree {
    tree_of(server, repo, "main")
}

/// All of a branch. The sizes in the listing are compared with the contents.
pub fn tree_of(server: &str, repo: &str, branch: &str) -> Tree {
    let mut tree = Tree::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let entries = listing(server, repo, branch, &dir);
        if entries.is_empty() && !dir.is_empty() {
            tree.insert(format!("{dir}/"), Vec::new());
        }
        for entry in entries {
            let path = join(&dir, entry["filename"].as_str().expect("filename"));
            if entry["is_dir"] == true {
                dirs.push(path);
                continue;
            }
            let content =
                file_of(server, repo, branch, &path).unwrap_or_else(|| panic!("{path} is listed, and absent"));
            assert_eq!(entry["size"], content.len(), "the listed size of {path}");
            tree.insert(path, content);
        }
    }
    tree
}

/// One file of branch main.
pub fn committed_file(server: &str, repo: &str, path: &str) -> Option<Vec<u8>> {
    file_of(server, repo, "main", path)
}

fn file_of(server: &str, repo: &str, branch: &str, path: &str) -> Option<Vec<u8>> {
    let (status, body) = get(server, &format!("/api/repos/{repo}/file/{branch}/{}", escaped(path))).unwrap();
    match status {
        200 => Some(body),
        404 => None,
        other => panic!("file {path}: {other} {}", String::from_utf8_lossy(&body)),
    }
}

/// The messages of branch main's commits, the newest first, by way of each one's first parent.
pub fn commit_messages(server: &str, repo: &str) -> Vec<String> {
    let ask = |path: String| -> Value {
        let (status, body) = get(server, &format!("/api/repos/{repo}/{path}")).unwrap();
        assert_eq!(status, 200, "GET {path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    };
    let mut messages = Vec::new();
    let mut next = ask("branches/main".into())["branch"]["commit_id"].as_str().map(str::to_owned);
    while let Some(id) = next {
        let commit = &ask(format!("commits/{id}"))["commit"];
        messages.push(commit["message"].as_str().expect("message").to_owned());
        next = commit["parent_ids"].as_array().and_then(|ids| ids.first()?.as_str().map(str::to_owned));
    }
    messages
}

/// Fails with the names of what is missing, too much or different.
#[track_caller]
pub fn assert_same(found: &Tree, expected: &Tree) {
    let missing: Vec<_> = expected.keys().filter(|path| !found.contains_key(*path)).collect();
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    let different: Vec<_> = expected
        .iter()
        .filter_map(|(path, content)| Some((path, content, found.get(path)?)))
        .filter(|(_, content, found)| content != found)
        .map(|(path, content, found)| {
            let at = content.iter().zip(found.iter()).take_while(|(a, b)| a == b).count();
            format!("{path} (expected {} bytes, found {}, same up to {at})", content.len(), found.len())
        })
        .collect();
    assert!(
        missing.is_empty() && extra.is_empty() && different.is_empty(),
        "missing {missing:?}\nnot expected {extra:?}\ndifferent {different:?}"
    );
}
