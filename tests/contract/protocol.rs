//! What the HTTP protocol promises, tried with raw requests: the facts that a client is built on.
//!
//! Where a real server and the embedded one could differ, the real one is right.

use std::fmt::Write as _;

use oxenfs::dev_server::Dialect;
use oxenfs::hash::ContentHash;
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{BASE_FILES, Target, answered, text};

mod adding;
mod by_hash;
mod committing;
mod embedded;
mod marks;
mod reading;
mod removing;
mod repositories;

/// An answer's status and JSON; null where the body is something else.
struct Answered {
    status: u16,
    body: Value,
}

impl Answered {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let answer = answered(request).await;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.expect("a whole answer");
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { status, body }
    }

    /// The body of an answer that must be a success.
    fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    #[track_caller]
    fn refused(self, status: u16) {
        assert_eq!(self.status, status, "{}", self.body);
    }
}

impl Target {
    fn request(&self, method: &str, below: &str) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        self.http.request(method, self.url(below))
    }

    async fn get(&self, below: &str) -> Answered {
        Answered::of(self.request("GET", below)).await
    }

    async fn send(&self, method: &str, below: &str, body: Value) -> Answered {
        Answered::of(self.request(method, below).json(&body)).await
    }

    /// A workspace named like its id.
    async fn workspace(&self, id: &str) -> String {
        let body = json!({"workspace_id": id, "name": id, "branch_name": "main"});
        self.send("PUT", self.workspaces_route(), body).await.ok();
        id.to_owned()
    }

    fn workspaces_route(&self) -> &'static str {
        match self.dialect {
            Dialect::Documented => "workspaces/get_or_create",
            _ => "workspaces",
        }
    }

    fn hash(&self, content: &[u8]) -> String {
        ContentHash::of(self.dialect.hash_kind(), content).to_string()
    }

    /// Adds one file through a form of its own, as its directory and name, which every dialect understands.
    async fn add(&self, workspace: &str, path: &str, content: &str) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let answer = self.add_form(workspace, dir, &form(&[(name, content)])).await.ok();
        assert_eq!(answer["paths"], json!([path]));
    }

    async fn add_form(&self, workspace: &str, dir: &str, body: &[u8]) -> Answered {
        let request = self.request("POST", &format!("workspaces/{workspace}/files/{dir}"));
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        Answered::of(request.header("content-type", kind).body(body.to_owned())).await
    }

    async fn remove(&self, workspace: &str, paths: &[&str]) -> Answered {
        self.send("DELETE", &format!("workspaces/{workspace}/files"), json!(paths)).await
    }

    async fn rename(&self, workspace: &str, from: &str, to: &str) -> Answered {
        self.send("PATCH", &format!("workspaces/{workspace}/files/{from}"), json!({"new_path": to})).await
    }

    async fn commit(&self, workspace: &str) -> Answered {
        let body = json!({"author": "Someone", "email": "someone@example.com", "message": "change"});
        self.send("POST", &format!("workspaces/{workspace}/merge/main"), body).await
    }

    /// Staged paths, sorted: added, modified, removed.
    async fn changes(&self, workspace: &str) -> [Vec<String>; 3] {
        let body = self.get_json(&format!("workspaces/{workspace}/changes?page_size=1000")).await;
        ["added_files", "modified_files", "removed_files"].map(|list| filenames(&body["staged"][list]["entries"]))
    }

    /// Names in a directory as listed, sorted; nothing when it is not there.
    async fn names(&self, revision: &str, dir: &str) -> Vec<String> {
        let answer = self.get(&format!("dir/{revision}/{dir}?page_size=1000")).await;
        if answer.status == 404 { Vec::new() } else { filenames(&answer.ok()["entries"]) }
    }

    /// A file's content at a revision; `None` when it is not there.
    async fn content(&self, revision: &str, path: &str) -> Option<String> {
        let answer = self.request("GET", &format!("file/{revision}/{path}")).send().await.expect("an answer");
        match answer.status().as_u16() {
            200 => Some(answer.text().await.expect("a whole answer")),
            404 => None,
            status => panic!("{path} at {revision}: {status}"),
        }
    }

    async fn begin(&self, workspace: &str, path: &str, content: &[u8], size: usize) -> Answered {
        let destination = json!({"workspace_id": workspace, "path": path});
        let body = json!({"hash": self.hash(content), "size": size, "destination": destination});
        self.send("POST", "versions/uploads", body).await
    }

    async fn part(&self, upload: &str, number: usize, bytes: &[u8]) -> Answered {
        let request = self.request("PUT", &format!("versions/uploads/{upload}/parts/{number}"));
        Answered::of(request.header("content-type", "application/octet-stream").body(bytes.to_owned())).await
    }
}

const BOUNDARY: &str = "a-boundary-of-this-suite";

/// A form of plain files.
fn form(files: &[(&str, &str)]) -> Vec<u8> {
    let parts: Vec<_> = files.iter().map(|(name, content)| (*name, None, content.as_bytes())).collect();
    form_of(&parts)
}

/// A form of files with a content type of their own; names go in as they are.
fn form_of(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, kind, content) in parts {
        let mut head =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file[]\"; filename=\"{name}\"\r\n");
        if let Some(kind) = kind {
            let _ = write!(head, "Content-Type: {kind}\r\n");
        }
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(b"\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn filenames(entries: &Value) -> Vec<String> {
    let entries = entries.as_array().expect("a list of entries");
    let mut names: Vec<_> = entries.iter().map(|entry| text(&entry["filename"])).collect();
    names.sort();
    names
}

/// The entry called `name` among `entries`.
fn entry<'a>(entries: &'a Value, name: &str) -> &'a Value {
    let entries = entries.as_array().expect("a list of entries");
    let found = entries.iter().find(|entry| entry["filename"] == name);
    found.unwrap_or_else(|| panic!("no {name} among {entries:?}"))
}

fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}
