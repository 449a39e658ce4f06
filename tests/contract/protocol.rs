//! What the HTTP protocol promises, tried with raw requests: the facts that a client is built on.
//!
//! Where a real server and the embedded one could differ, the real one is right.

use std::fmt::Write as _;

use oxenfs::dev_server::Dialect;
use oxenfs::hash::ContentHash;
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{BASE_FILES, Target, text};

contract! {
    everywhere: [
        every_answer_names_the_servers_version,
        agents_that_look_like_an_outdated_official_client_are_refused,
        what_is_not_there_is_404,
        a_repository_is_made_once,
        a_repository_is_made_from_a_form,
        an_empty_repository_gets_a_first_commit_with_its_first_workspace,
        a_branch_is_made_from_another,
        a_workspace_is_found_by_id_and_by_name,
        a_found_workspace_is_answered_under_the_id_that_was_sent,
        a_deleted_workspace_is_gone,
        hashes_have_no_leading_zeros,
        a_listing_is_paged,
        a_listing_nests_below_itself,
        a_workspaces_listing_shows_the_base_and_appends_what_was_added,
        metadata_in_a_workspace_is_true_only_of_added_files,
        a_whole_file_is_sent_whatever_range_is_asked_for,
        staged_content_is_marked,
        a_file_staged_for_removal_can_still_be_read,
        chunks_are_of_committed_content_only,
        changes_are_listed_and_paged,
        the_store_tells_what_it_has,
        many_contents_come_in_one_archive,
        an_added_file_is_committed,
        names_of_parts_are_unescaped_but_not_decoded,
        a_line_end_in_the_name_of_a_part_is_refused,
        one_bad_name_refuses_the_whole_form,
        names_of_oxens_own_directory_are_refused_in_every_spelling,
        a_gzip_part_is_inflated_and_a_broken_one_left_out,
        the_later_part_wins,
        a_form_that_ends_early_stages_nothing,
        putting_the_bases_content_back_is_silently_ignored,
        unstaging_brings_the_base_back,
        unstaging_nothing_is_told_by_path_but_not_by_list,
        removal_tells_what_was_not_there,
        removing_a_directory_removes_what_is_in_it,
        removing_what_is_only_staged_unstages_it,
        a_file_is_moved,
        a_move_onto_something_is_refused,
        moving_away_and_back_is_refused,
        a_commit_without_changes_is_refused,
        a_commit_with_a_field_missing_is_refused,
        a_named_workspace_survives_its_commit,
        an_unnamed_workspace_ends_with_its_commit,
        commits_that_do_not_collide_follow_each_other,
        both_sides_modifying_a_file_collide,
        a_removed_directory_is_gone_from_the_commit,
        a_file_and_a_directory_of_one_name_are_both_accepted,
    ];
    released: [
        documented_routes_do_not_exist,
        a_large_file_is_sent_in_chunks,
    ];
    by_batch: [
        content_in_the_store_is_staged_by_hash_in_batches,
        only_the_last_component_of_a_parts_name_counts,
    ];
    subdirectories: [
        names_of_parts_keep_their_directories,
        names_of_parts_are_normalized,
    ];
    current: [
        content_in_the_store_is_staged_by_its_hash,
        an_upload_of_nothing_is_refused,
        an_upload_beyond_the_repository_is_refused,
        parts_make_a_file_in_any_order,
        a_part_beyond_the_window_is_deferred,
        a_part_of_the_wrong_length_is_refused,
        a_finished_upload_is_forgotten,
        a_wrong_hash_ends_the_upload,
        both_sides_adding_a_path_collide,
        removing_what_the_branch_modified_collides,
        modifying_what_the_branch_removed_collides,
        both_sides_doing_the_same_do_not_collide,
        a_directory_is_moved_with_all_below,
        a_directory_is_not_moved_onto_another,
    ];
    only_documented: [
        released_routes_do_not_exist,
        content_is_named_by_sha256,
    ];
    only_0_58: [
        nothing_is_staged_by_hash,
        later_checks_for_collisions_are_not_made_yet,
    ];
}

/// An answer's status and JSON; null where the body is something else.
struct Answered {
    status: u16,
    body: Value,
}

impl Answered {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let answer = request.send().await.expect("an answer");
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
        self.send("DELETE", &format!("workspaces/{workspace}/files"), json!(paths))
            .await
    }

    async fn rename(&self, workspace: &str, from: &str, to: &str) -> Answered {
        self.send(
            "PATCH",
            &format!("workspaces/{workspace}/files/{from}"),
            json!({"new_path": to}),
        )
        .await
    }

    async fn commit(&self, workspace: &str) -> Answered {
        let body = json!({"author": "Someone", "email": "someone@example.com", "message": "change"});
        self.send("POST", &format!("workspaces/{workspace}/merge/main"), body)
            .await
    }

    /// Staged paths, sorted: added, modified, removed.
    async fn changes(&self, workspace: &str) -> [Vec<String>; 3] {
        let body = self
            .get_json(&format!("workspaces/{workspace}/changes?page_size=1000"))
            .await;
        ["added_files", "modified_files", "removed_files"].map(|list| filenames(&body["staged"][list]["entries"]))
    }

    /// Names in a directory as listed, sorted; nothing when it is not there.
    async fn names(&self, revision: &str, dir: &str) -> Vec<String> {
        let answer = self.get(&format!("dir/{revision}/{dir}?page_size=1000")).await;
        if answer.status == 404 {
            Vec::new()
        } else {
            filenames(&answer.ok()["entries"])
        }
    }

    /// A file's content at a revision; `None` when it is not there.
    async fn content(&self, revision: &str, path: &str) -> Option<String> {
        let answer = self
            .request("GET", &format!("file/{revision}/{path}"))
            .send()
            .await
            .expect("an answer");
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
        Answered::of(
            request
                .header("content-type", "application/octet-stream")
                .body(bytes.to_owned()),
        )
        .await
    }
}

const BOUNDARY: &str = "a-boundary-of-this-suite";

/// A form of plain files.
fn form(files: &[(&str, &str)]) -> Vec<u8> {
    let parts: Vec<_> = files
        .iter()
        .map(|(name, content)| (*name, None, content.as_bytes()))
        .collect();
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

// The server, repositories, branches

async fn every_answer_names_the_servers_version(target: &Target) {
    for path in ["/api/version", "/api/health", "/api/min_version", "/api/nothing"] {
        let answer = target
            .http
            .get(format!("{}{path}", target.base_url))
            .send()
            .await
            .expect("an answer");
        assert!(answer.headers().contains_key("oxen-version"), "{path}");
    }
    let answer = target
        .http
        .get(format!("{}/api/version", target.base_url))
        .send()
        .await
        .expect("an answer");
    let header = answer.headers()["oxen-version"].to_str().expect("text").to_owned();
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!(body["oxen_version"], header.as_str());
}

async fn agents_that_look_like_an_outdated_official_client_are_refused(target: &Target) {
    for (agent, status) in [
        ("oxenfs/0.1.0", 426),
        ("my-OXEN-tool", 426),
        ("Oxen/0.36.0 (linux)", 200),
        ("curl/8", 200),
    ] {
        let request = target.request("GET", "branches").header("user-agent", agent);
        assert_eq!(Answered::of(request).await.status, status, "{agent}");
    }
    let version = target.http.get(format!("{}/api/version", target.base_url));
    Answered::of(version.header("user-agent", "oxenfs/0.1.0")).await.ok();
}

async fn what_is_not_there_is_404(target: &Target) {
    for below in [
        "nothing",
        "branches/no",
        "workspaces/no",
        "workspaces/no/changes",
        "dir/main/no",
        "dir/no",
        "meta/main/no",
        "file/main/no",
        "file/main/data",
        "dir/main/README.md",
        "workspaces/no/merge/main",
    ] {
        let answer = target.get(below).await;
        assert_eq!(answer.status, 404, "{below}: {}", answer.body);
        assert_eq!(answer.body["status"], "error", "{below}");
    }
    let other = format!("{}/api/repos/{}/not-there", target.base_url, target.namespace);
    Answered::of(target.http.get(other)).await.refused(404);
    target.add_form("no", "", &form(&[("a", "b")])).await.refused(404);
    target.remove("no", &["a"]).await.refused(404);
    target.commit("no").await.refused(404);
}

async fn a_repository_is_made_once(target: &Target) {
    let repos = format!("{}/api/repos", target.base_url);
    let make = |name: &str| {
        let body = json!({"namespace": target.namespace, "name": name});
        Answered::of(target.http.post(&repos).json(&body))
    };
    make(&target.repo).await.refused(409);
    make("-bad").await.refused(400);
    let new = format!("{}-new", target.repo);
    let answer = make(&new).await.ok();
    assert_eq!(answer["repository"]["latest_commit"], Value::Null);
    let url = format!("{repos}/{}/{new}", target.namespace);
    let shown = Answered::of(target.http.get(&url)).await.ok();
    assert_eq!(shown["repository"]["is_empty"], true);
    let body = json!({"name": "x"});
    Answered::of(target.http.post(&repos).json(&body)).await.refused(400);
}

async fn a_repository_is_made_from_a_form(target: &Target) {
    let repos = format!("{}/api/repos", target.base_url);
    let name = format!("{}-form", target.repo);
    let new = json!({"namespace": target.namespace, "name": name}).to_string();
    let mut body = String::new();
    for (field, value) in [
        ("new_repo", new.as_str()),
        ("name", "Someone"),
        ("email", "someone@example.com"),
    ] {
        let _ = write!(
            body,
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n"
        );
    }
    let body = [body.into_bytes(), form_of(&[("binary.bin", None, b"\x00\xff\x00")])].concat();
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let request = target.http.post(&repos).header("content-type", kind).body(body);
    let answer = Answered::of(request).await.ok();
    assert_eq!(answer["repository"]["latest_commit"]["author"], "Someone");
    let file = format!("{repos}/{}/{name}/file/main/binary.bin", target.namespace);
    let content = target
        .http
        .get(file)
        .send()
        .await
        .expect("an answer")
        .bytes()
        .await
        .expect("a body");
    assert_eq!(&content[..], b"\x00\xff\x00");
}

async fn an_empty_repository_gets_a_first_commit_with_its_first_workspace(target: &Target) {
    let name = format!("{}-empty", target.repo);
    let repos = format!("{}/api/repos", target.base_url);
    let body = json!({"namespace": target.namespace, "name": name});
    Answered::of(target.http.post(&repos).json(&body)).await.ok();
    let below = format!("{repos}/{}/{name}", target.namespace);
    let body = json!({"workspace_id": "first", "name": "first", "branch_name": "main"});
    let put = target
        .http
        .put(format!("{below}/{}", target.workspaces_route()))
        .json(&body);
    let workspace = Answered::of(put).await.ok();
    let branch = Answered::of(target.http.get(format!("{below}/branches/main")))
        .await
        .ok();
    assert_eq!(workspace["workspace"]["commit"]["id"], branch["branch"]["commit_id"]);
    Answered::of(target.http.get(format!("{below}/dir/main")))
        .await
        .refused(404);
}

async fn a_branch_is_made_from_another(target: &Target) {
    let head = target.head("main").await;
    let body = json!({"new_name": "dev", "from_name": "main"});
    let made = target.send("POST", "branches", body.clone()).await.ok();
    assert_eq!(made["branch"]["commit_id"], head.as_str());
    target.send("POST", "branches", body).await.ok();
    target
        .send("POST", "branches", json!({"new_name": "x", "from_name": "no"}))
        .await
        .refused(404);
    let all = target.get_json("branches").await;
    assert_eq!(all["branches"].as_array().map(Vec::len), Some(2));
    assert_eq!(target.names("dev", "").await, ["README.md", "data"]);
}

// Workspaces

async fn a_workspace_is_found_by_id_and_by_name(target: &Target) {
    let body = json!({"workspace_id": "the-id", "name": "the-name", "branch_name": "main"});
    let made = target.send("PUT", target.workspaces_route(), body.clone()).await.ok();
    assert_eq!(made["status_message"], "resource_created");
    assert_eq!(made["workspace"]["commit"]["id"], target.head("main").await.as_str());
    let found = target.send("PUT", target.workspaces_route(), body).await.ok();
    assert_eq!(found["status_message"], "resource_found");
    for key in ["the-id", "the-name"] {
        let got = target.get_json(&format!("workspaces/{key}")).await;
        assert_eq!(
            (&got["workspace"]["id"], &got["workspace"]["name"]),
            (&json!("the-id"), &json!("the-name"))
        );
        target.add(key, &format!("by-{key}"), "x").await;
    }
    assert_eq!(target.changes("the-name").await[0], ["by-the-id", "by-the-name"]);
    let all = target.get_json("workspaces").await;
    assert_eq!(all["workspaces"].as_array().map(Vec::len), Some(1));
    let body = json!({"workspace_id": "w", "branch_name": "no"});
    target.send("PUT", target.workspaces_route(), body).await.refused(400);
    target
        .send("PUT", target.workspaces_route(), json!({"branch_name": "main"}))
        .await
        .refused(400);
}

async fn a_found_workspace_is_answered_under_the_id_that_was_sent(target: &Target) {
    let make = |id: &str| {
        let body = json!({"workspace_id": id, "name": "shared", "branch_name": "main"});
        target.send("PUT", target.workspaces_route(), body)
    };
    make("true-id").await.ok();
    assert_eq!(make("other-id").await.ok()["workspace"]["id"], "other-id");
    target.get("workspaces/other-id").await.refused(404);
    assert_eq!(target.get_json("workspaces/shared").await["workspace"]["id"], "true-id");
}

async fn a_deleted_workspace_is_gone(target: &Target) {
    let workspace = target.workspace("w").await;
    Answered::of(target.request("DELETE", "workspaces/w")).await.ok();
    target.get("workspaces/w").await.refused(404);
    target.add_form(&workspace, "", &form(&[("a", "b")])).await.refused(404);
    Answered::of(target.request("DELETE", "workspaces/w"))
        .await
        .refused(404);
}

// Reading

async fn hashes_have_no_leading_zeros(target: &Target) {
    let kind = target.dialect.hash_kind();
    // About one content in sixteen has such a hash; each kind prints its own.
    let content = (0..)
        .map(|n| format!("content {n}"))
        .find(|text| match ContentHash::of(kind, text.as_bytes()) {
            ContentHash::Xxh3(bytes) => bytes[0] < 16,
            ContentHash::Sha256(bytes) => bytes[0] < 16,
        });
    let content = content.expect("there are more numbers");
    let hash = target.hash(content.as_bytes());
    let workspace = target.workspace("w").await;
    target.add(&workspace, "short", &content).await;
    target.commit(&workspace).await.ok();
    let listing = target.get_json("dir/main").await;
    assert_eq!(entry(&listing["entries"], "short")["hash"], hash.as_str());
    let stored = target.get_json(&format!("versions/{hash}/metadata")).await;
    assert_eq!(stored["version"], json!({"hash": hash, "size": content.len()}));
}

async fn a_listing_is_paged(target: &Target) {
    let whole = target.get_json("dir/main/data").await;
    assert_eq!(filenames(&whole["entries"]), ["a.txt", "b.txt", "sub"]);
    assert_eq!(whole["entries"][0]["filename"], "sub", "directories come first");
    let (a, sub) = (entry(&whole["entries"], "a.txt"), entry(&whole["entries"], "sub"));
    assert_eq!((&a["is_dir"], &a["size"]), (&json!(false), &json!(6)));
    assert_eq!(a["hash"], target.hash(b"alpha\n").as_str());
    assert_eq!(a["latest_commit"]["id"], target.head("main").await.as_str());
    assert!(text(&a["latest_commit"]["timestamp"]).starts_with("20"));
    assert_eq!(sub["is_dir"], true);
    let mut seen = Vec::new();
    for page in 1..=3 {
        let body = target.get_json(&format!("dir/main/data?page={page}&page_size=1")).await;
        assert_eq!((&body["total_entries"], &body["total_pages"]), (&json!(3), &json!(3)));
        seen.extend(filenames(&body["entries"]));
    }
    seen.sort();
    assert_eq!(seen, ["a.txt", "b.txt", "sub"]);
    assert!(filenames(&target.get_json("dir/main/data?page=9&page_size=1").await["entries"]).is_empty());
    let head = target.head("main").await;
    assert_eq!(target.names(&head, "data").await, ["a.txt", "b.txt", "sub"]);
}

async fn a_listing_nests_below_itself(target: &Target) {
    let body = target.get_json("dir/main?depth=-1").await;
    let data = entry(&body["entries"], "data");
    let sub = entry(&data["children"], "sub");
    assert_eq!(filenames(&sub["children"]), ["c.txt"]);
    assert_eq!(body["total_entries"], 2);
}

async fn a_workspaces_listing_shows_the_base_and_appends_what_was_added(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "longer than before\n").await;
    target.add(&workspace, "data/new.txt", "new").await;
    target.add(&workspace, "fresh/deep/file.txt", "fresh").await;
    target.remove(&workspace, &["data/b.txt"]).await.ok();
    let root = target.get_json("dir/w").await;
    assert_eq!(
        filenames(&root["entries"]),
        ["README.md", "data", "data/new.txt", "fresh/deep/file.txt"]
    );
    assert_eq!(root["total_entries"], 2, "what was added is not counted");
    let readme = entry(&root["entries"], "README.md");
    assert_eq!(readme["changes"]["status"], "Modified");
    assert_eq!(
        (&readme["size"], &readme["hash"]),
        (&json!(5), &json!(target.hash(b"base\n"))),
        "as in the base"
    );
    assert_eq!(entry(&root["entries"], "data/new.txt")["changes"]["status"], "Added");
    let data = target.get_json("dir/w/data").await;
    assert_eq!(entry(&data["entries"], "b.txt")["changes"]["status"], "Removed");
    assert_eq!(
        entry(&data["entries"], "data/new.txt")["hash"],
        target.hash(b"new").as_str()
    );
    target.get("dir/w/fresh").await.refused(404);
}

async fn metadata_in_a_workspace_is_true_only_of_added_files(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "longer than before\n").await;
    target.add(&workspace, "data/new.txt", "new").await;
    target.remove(&workspace, &["data/b.txt"]).await.ok();
    let added = target.get_json("meta/w/data/new.txt").await;
    assert_eq!(added["entry"]["hash"], target.hash(b"new").as_str());
    assert_eq!(
        (&added["entry"]["size"], &added["entry"]["changes"]["status"]),
        (&json!(3), &json!("Added"))
    );
    let modified = target.get_json("meta/w/README.md").await;
    assert_eq!(modified["entry"]["hash"], target.hash(b"base\n").as_str());
    assert_eq!(
        (&modified["entry"]["size"], &modified["entry"]["changes"]["status"]),
        (&json!(5), &json!("Modified"))
    );
    let removed = target.get_json("meta/w/data/b.txt").await;
    assert_eq!(removed["entry"]["changes"]["status"], "Removed");
    let dir = target.get_json("meta/main/data").await;
    assert_eq!(dir["entry"]["is_dir"], true);
}

async fn a_whole_file_is_sent_whatever_range_is_asked_for(target: &Target) {
    let workspace = target.workspace("w").await;
    for below in [
        "file/main/data/a.txt",
        "file/w/data/a.txt",
        &format!("workspaces/{workspace}/files/data/a.txt"),
    ] {
        let request = target.request("GET", below).header("range", "bytes=1-2");
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{below}");
        assert_eq!(answer.headers()["content-length"], "6", "{below}");
        assert_eq!(answer.text().await.expect("a body"), "alpha\n", "{below}");
    }
}

async fn staged_content_is_marked(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "staged").await;
    let head = target.head("main").await;
    for (path, revision, content) in [("README.md", "0", "staged"), ("data/a.txt", head.as_str(), "alpha\n")] {
        for below in [format!("file/w/{path}"), format!("workspaces/w/files/{path}")] {
            let answer = target.request("HEAD", &below).send().await.expect("an answer");
            if answer.status().as_u16() == 200 {
                assert_eq!(answer.headers()["oxen-revision-id"], revision, "HEAD {below}");
                assert_eq!(
                    answer.headers()["content-length"],
                    content.len().to_string(),
                    "HEAD {below}"
                );
            } else {
                assert!(below.starts_with("workspaces/"), "HEAD works on file/: {below}");
            }
            let answer = target.request("GET", &below).send().await.expect("an answer");
            assert_eq!(answer.headers()["oxen-revision-id"], revision, "GET {below}");
            assert_eq!(answer.text().await.expect("a body"), content, "GET {below}");
        }
    }
}

async fn a_file_staged_for_removal_can_still_be_read(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["data/a.txt"]).await.ok();
    assert_eq!(target.content("w", "data/a.txt").await.as_deref(), Some("alpha\n"));
    let answer = target
        .request("GET", "workspaces/w/files/data/a.txt")
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.text().await.expect("a body"), "alpha\n");
}

async fn chunks_are_of_committed_content_only(target: &Target) {
    target.workspace("w").await;
    let head = target.head("main").await;
    for revision in ["main", &head] {
        let below = format!("chunk/{revision}/data/a.txt?chunk_start=1&chunk_size=3");
        let answer = target.request("GET", &below).send().await.expect("an answer");
        assert_eq!(answer.text().await.expect("a body"), "lph");
    }
    target
        .get("chunk/main/data/a.txt?chunk_start=4&chunk_size=3")
        .await
        .refused(500);
    target
        .get("chunk/main/data/a.txt?chunk_start=9&chunk_size=1")
        .await
        .refused(500);
    target
        .get("chunk/w/data/a.txt?chunk_start=1&chunk_size=3")
        .await
        .refused(404);
}

async fn changes_are_listed_and_paged(target: &Target) {
    let workspace = target.workspace("w").await;
    for name in ["new-1", "new-2", "data/sub/new-3"] {
        target.add(&workspace, name, name).await;
    }
    target.add(&workspace, "README.md", "modified").await;
    target.remove(&workspace, &["data/a.txt"]).await.ok();
    let [added, modified, removed] = target.changes(&workspace).await;
    assert_eq!(added, ["data/sub/new-3", "new-1", "new-2"]);
    assert_eq!((modified, removed), (strings(["README.md"]), strings(["data/a.txt"])));
    let mut seen = Vec::new();
    for page in 1..=3 {
        let body = target
            .get_json(&format!("workspaces/w/changes?page={page}&page_size=1"))
            .await;
        let list = &body["staged"]["added_files"];
        assert_eq!((&list["total_entries"], &list["total_pages"]), (&json!(3), &json!(3)));
        assert_eq!(
            (&list["entries"][0]["hash"], &list["entries"][0]["size"]),
            (&json!(""), &json!(0))
        );
        seen.extend(filenames(&list["entries"]));
    }
    seen.sort();
    assert_eq!(seen, added);
    let below = target.get_json("workspaces/w/changes/data").await;
    assert_eq!(
        filenames(&below["staged"]["added_files"]["entries"]),
        ["data/sub/new-3"]
    );
    assert_eq!(filenames(&below["staged"]["modified_files"]["entries"]), strings([]));
    target.get("workspaces/w/changes?page_size=0").await.refused(400);
}

async fn the_store_tells_what_it_has(target: &Target) {
    let there = target.hash(b"alpha\n");
    let body = target.get_json(&format!("versions/{there}/metadata")).await;
    assert_eq!(body["version"], json!({"hash": there, "size": 6}));
    let not_there = target.hash(b"nobody sent this");
    target.get(&format!("versions/{not_there}/metadata")).await.refused(404);
}

async fn many_contents_come_in_one_archive(target: &Target) {
    use std::io::Read as _;
    let hashes = BASE_FILES.map(|(_, content)| target.hash(content.as_bytes()));
    let request = target
        .request("QUERY", "versions")
        .body(gzip(hashes.join("\n").as_bytes()));
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    let archive = answer.bytes().await.expect("a whole answer");
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&archive[..])
        .read_to_end(&mut tar)
        .expect("gzip");
    let mut found = Vec::new();
    let mut rest = &tar[..];
    while rest.len() >= 512 && rest[0] != 0 {
        let name = String::from_utf8_lossy(&rest[..100]).trim_end_matches('\0').to_owned();
        let size = String::from_utf8_lossy(&rest[124..135]).into_owned();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).expect("an octal size");
        found.push((name, rest[512..512 + size].to_owned()));
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    found.sort();
    let mut expected = BASE_FILES.map(|(_, content)| (target.hash(content.as_bytes()), content.as_bytes().to_owned()));
    expected.sort();
    assert_eq!(found, expected);
}

// Adding

async fn an_added_file_is_committed(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/sub/new.txt", "new content").await;
    target.add(&workspace, "README.md", "changed").await;
    assert_eq!(
        target.content("w", "data/sub/new.txt").await.as_deref(),
        Some("new content")
    );
    let before = target.head("main").await;
    let commit = target.commit(&workspace).await.ok();
    assert_eq!(commit["commit"]["id"], target.head("main").await.as_str());
    assert_eq!(commit["commit"]["parent_ids"], json!([before]));
    assert_eq!(
        target.content("main", "data/sub/new.txt").await.as_deref(),
        Some("new content")
    );
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("changed"));
    assert_eq!(target.content(&before, "README.md").await.as_deref(), Some("base\n"));
    assert_eq!(target.names("main", "data/sub").await, ["c.txt", "new.txt"]);
}

async fn names_of_parts_are_unescaped_but_not_decoded(target: &Target) {
    let workspace = target.workspace("w").await;
    let names = [
        (r#"q\"uote"#, r#"q"uote"#, "q%22uote"),
        (r"back\\slash", r"back\slash", "back%5Cslash"),
        ("100%25", "100%25", "100%2525"),
        ("ünïcödé 漢", "ünïcödé 漢", "%C3%BCn%C3%AFc%C3%B6d%C3%A9%20%E6%BC%A2"),
        ("a;b=c", "a;b=c", "a%3Bb%3Dc"),
    ];
    for (sent, name, encoded) in names {
        let answer = target.add_form(&workspace, "", &form(&[(sent, name)])).await.ok();
        assert_eq!(answer["paths"], json!([name]));
        assert_eq!(target.content("w", encoded).await.as_deref(), Some(name));
    }
    let long = "x".repeat(255);
    target.add(&workspace, &long, "long").await;
    target.commit(&workspace).await.ok();
    for (_, name, encoded) in names {
        assert_eq!(target.content("main", encoded).await.as_deref(), Some(name));
    }
    assert!(target.names("main", "").await.contains(&long));
}

async fn a_line_end_in_the_name_of_a_part_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target
        .add_form(&workspace, "", &form(&[("a\nb", "x")]))
        .await
        .refused(400);
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings([]), strings([])]
    );
}

async fn one_bad_name_refuses_the_whole_form(target: &Target) {
    let workspace = target.workspace("w").await;
    // Of these, servers that keep only the last component see just that.
    let bad: &[&str] = match target.dialect {
        Dialect::Documented | Dialect::V0_50 => &["..", "a/..", ".oxen"],
        _ => &["../x", "a/../b", "/absolute", ".oxen/x", "a/.oxen"],
    };
    for name in bad {
        target
            .add_form(&workspace, "d", &form(&[("good", "x"), (name, "y")]))
            .await
            .refused(400);
    }
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings([]), strings([])]
    );
}

async fn names_of_oxens_own_directory_are_refused_in_every_spelling(target: &Target) {
    let workspace = target.workspace("w").await;
    for name in [".OXEN", ".oxen.", ".oxen ", ".oxen:stream", "OXEN~1"] {
        target
            .add_form(&workspace, "", &form(&[(name, "x")]))
            .await
            .refused(400);
    }
    for name in [".oxenfs", "oxen", "oxen~x"] {
        target.add(&workspace, name, "x").await;
    }
}

async fn a_gzip_part_is_inflated_and_a_broken_one_left_out(target: &Target) {
    let workspace = target.workspace("w").await;
    let limit = 10 * 1024 * 1024;
    let (most, over) = (gzip(&vec![b'm'; limit]), gzip(&vec![b'o'; limit + 1]));
    let kind = Some("application/gzip");
    let body = form_of(&[
        ("inflated", kind, &gzip(b"plain again")),
        ("broken", kind, b"this is no gzip"),
        ("most", kind, &most),
        ("over", kind, &over),
        ("plain.gz", Some("application/octet-stream"), &gzip(b"kept")),
    ]);
    let answer = target.add_form(&workspace, "", &body).await.ok();
    assert_eq!(answer["paths"], json!(["inflated", "most", "plain.gz"]));
    assert_eq!(target.content("w", "inflated").await.as_deref(), Some("plain again"));
    assert_eq!(
        target.content("w", "most").await.map(|content| content.len()),
        Some(limit)
    );
    let kept = target
        .request("GET", "file/w/plain.gz")
        .send()
        .await
        .expect("an answer");
    assert_eq!(kept.bytes().await.expect("a body"), gzip(b"kept"));
}

async fn the_later_part_wins(target: &Target) {
    let workspace = target.workspace("w").await;
    target
        .add_form(
            &workspace,
            "",
            &form(&[("same", "first"), ("other", "x"), ("same", "second")]),
        )
        .await
        .ok();
    assert_eq!(target.content("w", "same").await.as_deref(), Some("second"));
}

async fn a_form_that_ends_early_stages_nothing(target: &Target) {
    let workspace = target.workspace("w").await;
    let whole = form(&[("one", "1"), ("two", "2")]);
    let cut = &whole[..whole.len() - BOUNDARY.len() - 8];
    target.add_form(&workspace, "", cut).await.refused(400);
    assert_eq!(target.changes(&workspace).await[0], strings([]));
}

async fn names_of_parts_keep_their_directories(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target
        .add_form(&workspace, "top", &form(&[("a/b/c.txt", "1"), ("d.txt", "2")]))
        .await
        .ok();
    assert_eq!(answer["paths"], json!(["top/a/b/c.txt", "top/d.txt"]));
    let answer = target.add_form(&workspace, "", &form(&[("a/b/c.txt", "1")])).await.ok();
    assert_eq!(answer["paths"], json!(["a/b/c.txt"]));
}

async fn names_of_parts_are_normalized(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target
        .add_form(&workspace, "", &form(&[("a//b", "1"), ("c/./d", "2"), ("./e", "3")]))
        .await
        .ok();
    assert_eq!(answer["paths"], json!(["a/b", "c/d", "e"]));
}

async fn only_the_last_component_of_a_parts_name_counts(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target
        .add_form(&workspace, "top", &form(&[("a/b/c.txt", "1")]))
        .await
        .ok();
    assert_eq!(answer["paths"], json!(["top/c.txt"]));
}

// The base's content, unstaging, removing, moving

async fn putting_the_bases_content_back_is_silently_ignored(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "base\n").await;
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings([]), strings([])],
        "untouched"
    );
    target.add(&workspace, "README.md", "changed").await;
    target.remove(&workspace, &["data/a.txt"]).await.ok();
    // Answered with 200 and the path, as if it had been done.
    target.add(&workspace, "README.md", "base\n").await;
    target.add(&workspace, "data/a.txt", "alpha\n").await;
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings(["README.md"]), strings(["data/a.txt"])]
    );
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("changed"));
    assert_eq!(target.content("main", "data/a.txt").await, None);
}

async fn unstaging_brings_the_base_back(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "changed").await;
    target.add(&workspace, "new.txt", "new").await;
    target.add(&workspace, "data/b.txt", "changed too").await;
    target.remove(&workspace, &["data/a.txt"]).await.ok();
    let list = json!(["README.md", "new.txt"]);
    target.send("DELETE", "workspaces/w/changes", list).await.ok();
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings(["data/b.txt"]), strings(["data/a.txt"])]
    );
    for path in ["data/a.txt", "data/b.txt"] {
        Answered::of(target.request("DELETE", &format!("workspaces/w/changes/{path}")))
            .await
            .ok();
    }
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings([]), strings([])]
    );
    assert_eq!(target.content("w", "README.md").await.as_deref(), Some("base\n"));
}

async fn unstaging_nothing_is_told_by_path_but_not_by_list(target: &Target) {
    target.workspace("w").await;
    for path in ["README.md", "no", "no.csv"] {
        Answered::of(target.request("DELETE", &format!("workspaces/w/changes/{path}")))
            .await
            .refused(404);
    }
    target
        .send("DELETE", "workspaces/w/changes", json!(["README.md", "no"]))
        .await
        .ok();
}

async fn removal_tells_what_was_not_there(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target
        .remove(&workspace, &["README.md", "no", "data/a.txt", "no/such"])
        .await;
    assert_eq!(answer.status, 206, "{}", answer.body);
    assert_eq!(answer.body["paths"], json!(["no", "no/such"]));
    assert_eq!(target.changes(&workspace).await[2], ["README.md", "data/a.txt"]);
    target.remove(&workspace, &["README.md"]).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["data"]);
    let answer = target.remove(&workspace, &["README.md"]).await;
    assert_eq!(answer.status, 206, "it is committed now");
}

async fn removing_a_directory_removes_what_is_in_it(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/new.txt", "new").await;
    target.add(&workspace, "data/a.txt", "changed").await;
    target.remove(&workspace, &["data"]).await.ok();
    let changes = target.changes(&workspace).await;
    assert_eq!(
        changes,
        [
            strings([]),
            strings([]),
            strings(["data/a.txt", "data/b.txt", "data/sub/c.txt"])
        ]
    );
}

async fn removing_what_is_only_staged_unstages_it(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "fresh/one", "1").await;
    target.add(&workspace, "fresh/deep/two", "2").await;
    target.add(&workspace, "three", "3").await;
    target.remove(&workspace, &["three"]).await.ok();
    assert_eq!(target.changes(&workspace).await[0], ["fresh/deep/two", "fresh/one"]);
    target.remove(&workspace, &["fresh"]).await.ok();
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings([]), strings([])]
    );
}

async fn a_file_is_moved(target: &Target) {
    let workspace = target.workspace("w").await;
    target.rename(&workspace, "data/a.txt", "moved/a.txt").await.ok();
    target.add(&workspace, "staged.txt", "staged").await;
    target.rename(&workspace, "staged.txt", "moved/staged.txt").await.ok();
    let changes = target.changes(&workspace).await;
    assert_eq!(
        changes,
        [
            strings(["moved/a.txt", "moved/staged.txt"]),
            strings([]),
            strings(["data/a.txt"])
        ]
    );
    target.rename(&workspace, "no", "x").await.refused(404);
    target.rename(&workspace, "README.md", "").await.refused(400);
    target.rename(&workspace, "README.md", "../x").await.refused(400);
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "moved/a.txt").await.as_deref(), Some("alpha\n"));
    assert_eq!(
        target.content("main", "moved/staged.txt").await.as_deref(),
        Some("staged")
    );
    assert_eq!(target.content("main", "data/a.txt").await, None);
}

async fn a_move_onto_something_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "staged.txt", "staged").await;
    target.rename(&workspace, "data/a.txt", "data/b.txt").await.refused(400);
    target.rename(&workspace, "data/a.txt", "staged.txt").await.refused(409);
    target.rename(&workspace, "staged.txt", "README.md").await.refused(400);
    assert_eq!(
        target.changes(&workspace).await,
        [strings(["staged.txt"]), strings([]), strings([])]
    );
}

async fn moving_away_and_back_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.rename(&workspace, "data/a.txt", "elsewhere.txt").await.ok();
    target
        .rename(&workspace, "elsewhere.txt", "data/a.txt")
        .await
        .refused(400);
}

async fn a_directory_is_moved_with_all_below(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/new.txt", "new").await;
    target.add(&workspace, "data/a.txt", "changed").await;
    target.remove(&workspace, &["data/b.txt"]).await.ok();
    target.rename(&workspace, "data", "moved/here").await.ok();
    let [added, modified, removed] = target.changes(&workspace).await;
    assert_eq!(
        added,
        ["moved/here/a.txt", "moved/here/new.txt", "moved/here/sub/c.txt"]
    );
    assert_eq!(modified, strings([]));
    assert_eq!(removed, ["data/a.txt", "data/b.txt", "data/sub/c.txt"]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "moved"]);
    assert_eq!(
        target.content("main", "moved/here/a.txt").await.as_deref(),
        Some("changed")
    );
}

async fn a_directory_is_not_moved_onto_another(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "fresh/file", "x").await;
    target.rename(&workspace, "data/sub", "fresh").await.refused(409);
    target.rename(&workspace, "fresh", "data").await.refused(409);
    target.rename(&workspace, "data", "data/sub/inside").await.refused(400);
    target
        .rename(&workspace, "fresh/file", "README.md/below")
        .await
        .refused(409);
}

// Committing

async fn a_commit_without_changes_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.commit(&workspace).await.refused(422);
}

async fn a_commit_with_a_field_missing_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "new", "x").await;
    let whole = json!({"author": "a", "email": "e", "message": "m"});
    for field in ["author", "email", "message"] {
        let mut body = whole.clone();
        body.as_object_mut().expect("an object").remove(field);
        target.send("POST", "workspaces/w/merge/main", body).await.refused(400);
    }
    target.send("POST", "workspaces/w/merge/no", whole).await.refused(404);
    assert_eq!(target.changes(&workspace).await[0], ["new"]);
}

async fn a_named_workspace_survives_its_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "first", "1").await;
    let commit = target.commit(&workspace).await.ok();
    let stands = target.get_json("workspaces/w").await;
    assert_eq!(stands["workspace"]["commit"]["id"], commit["commit"]["id"]);
    assert_eq!(
        target.changes(&workspace).await,
        [strings([]), strings([]), strings([])]
    );
    target.add(&workspace, "second", "2").await;
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "data", "first", "second"]);
}

async fn an_unnamed_workspace_ends_with_its_commit(target: &Target) {
    let body = json!({"workspace_id": "w", "branch_name": "main"});
    target.send("PUT", target.workspaces_route(), body).await.ok();
    target.add("w", "first", "1").await;
    target.commit("w").await.ok();
    target.get("workspaces/w").await.refused(404);
    target.add_form("w", "", &form(&[("second", "2")])).await.refused(404);
}

async fn commits_that_do_not_collide_follow_each_other(target: &Target) {
    let (one, two) = (target.workspace("one").await, target.workspace("two").await);
    target.add(&one, "data/one", "1").await;
    target.add(&two, "data/two", "2").await;
    target.add(&two, "README.md", "changed by two").await;
    let first = target.commit(&one).await.ok();
    let merge = target.get_json("workspaces/two/merge/main").await;
    assert_eq!(
        (&merge["is_mergeable"], &merge["conflicts"]),
        (&json!(true), &json!([]))
    );
    assert_eq!(merge["commits"][0]["id"], first["commit"]["id"]);
    let second = target.commit(&two).await.ok();
    assert_eq!(second["commit"]["parent_ids"], json!([first["commit"]["id"]]));
    assert_eq!(
        target.names("main", "data").await,
        ["a.txt", "b.txt", "one", "sub", "two"]
    );
    assert_eq!(
        target.content("main", "README.md").await.as_deref(),
        Some("changed by two")
    );
}

/// Stages `ours` in one workspace, commits `theirs` from another, and returns how committing ours is answered, with
/// the conflicts that were announced. A change is a path and its new content, or nothing.
async fn race(target: &Target, theirs: &[(&str, Option<&str>)], ours: &[(&str, Option<&str>)]) -> (u16, Vec<String>) {
    let (us, them) = (target.workspace("us").await, target.workspace("them").await);
    for (workspace, changes) in [(&us, ours), (&them, theirs)] {
        for (path, content) in changes {
            match content {
                Some(content) => target.add(workspace, path, content).await,
                None => drop(target.remove(workspace, &[path]).await.ok()),
            }
        }
    }
    target.commit(&them).await.ok();
    let merge = target.get_json("workspaces/us/merge/main").await;
    let conflicts = merge["conflicts"].as_array().expect("a list");
    let mut conflicts: Vec<_> = conflicts.iter().map(|conflict| text(&conflict["path"])).collect();
    conflicts.sort();
    assert_eq!(merge["is_mergeable"], conflicts.is_empty());
    let staged = target.changes(&us).await;
    let answer = target.commit(&us).await;
    if answer.status == 409 {
        assert_eq!(target.changes(&us).await, staged, "nothing is lost");
    }
    (answer.status, conflicts)
}

async fn both_sides_modifying_a_file_collide(target: &Target) {
    let theirs = [("README.md", Some("theirs")), ("data/a.txt", Some("theirs"))];
    let ours = [("README.md", Some("ours")), ("data/b.txt", Some("ours"))];
    assert_eq!(race(target, &theirs, &ours).await, (409, strings(["README.md"])));
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("theirs"));
}

async fn both_sides_adding_a_path_collide(target: &Target) {
    let outcome = race(target, &[("new", Some("theirs"))], &[("new", Some("ours"))]).await;
    assert_eq!(outcome, (409, strings(["new"])));
}

async fn removing_what_the_branch_modified_collides(target: &Target) {
    let outcome = race(target, &[("README.md", Some("theirs"))], &[("README.md", None)]).await;
    assert_eq!(outcome, (409, strings(["README.md"])));
}

async fn modifying_what_the_branch_removed_collides(target: &Target) {
    let outcome = race(target, &[("README.md", None)], &[("README.md", Some("ours"))]).await;
    assert_eq!(outcome, (409, strings(["README.md"])));
}

async fn both_sides_doing_the_same_do_not_collide(target: &Target) {
    let changes = [("README.md", Some("same")), ("new", Some("same")), ("data/a.txt", None)];
    let ours = [&changes[..], &[("only-ours", Some("x"))]].concat();
    assert_eq!(race(target, &changes, &ours).await, (200, strings([])));
    assert_eq!(
        target.names("main", "").await,
        ["README.md", "data", "new", "only-ours"]
    );
}

async fn later_checks_for_collisions_are_not_made_yet(target: &Target) {
    let outcome = race(target, &[("new", Some("theirs"))], &[("new", Some("ours"))]).await;
    assert_eq!(outcome, (200, strings([])));
    assert_eq!(target.content("main", "new").await.as_deref(), Some("ours"));
}

async fn a_removed_directory_is_gone_from_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["data"]).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md"]);
    target.get("dir/main/data").await.refused(404);
    target.add(&workspace, "one/two/three", "3").await;
    target.commit(&workspace).await.ok();
    target.remove(&workspace, &["one/two/three"]).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(
        target.names("main", "").await,
        ["README.md"],
        "emptied directories go too"
    );
}

async fn a_file_and_a_directory_of_one_name_are_both_accepted(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data", "a file where a directory is").await;
    target.add(&workspace, "README.md/below", "a file below a file").await;
    target.commit(&workspace).await.ok();
    // Which of the two is kept is not promised; that the rest is untouched is.
    let names = target.names("main", "").await;
    assert!(
        names.contains(&"data".to_owned()) && names.contains(&"README.md".to_owned()),
        "{names:?}"
    );
}

// By hash

async fn content_in_the_store_is_staged_by_its_hash(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target.begin(&workspace, "copy/of a\nfile", b"alpha\n", 6).await.ok();
    assert_eq!(answer["file"], "already_stored");
    assert_eq!(target.changes(&workspace).await[0], ["copy/of a\nfile"]);
    // The size is not compared.
    assert_eq!(
        target.begin(&workspace, "again", b"alpha\n", 99).await.ok()["file"],
        "already_stored"
    );
    assert_eq!(target.content("w", "again").await.as_deref(), Some("alpha\n"));
    assert_eq!(
        target.begin(&workspace, "data/a.txt", b"alpha\n", 6).await.ok()["file"],
        "already_stored"
    );
    assert_eq!(
        target.changes(&workspace).await[1],
        strings([]),
        "the base's content changes nothing"
    );
}

async fn an_upload_of_nothing_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.begin(&workspace, "empty", b"", 0).await.refused(400);
    target.add(&workspace, "empty", "").await;
    assert_eq!(target.content("w", "empty").await.as_deref(), Some(""));
}

async fn an_upload_beyond_the_repository_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    for path in ["../x", "/x", ".oxen/x", ""] {
        target.begin(&workspace, path, b"alpha\n", 6).await.refused(400);
    }
    target.begin("no", "x", b"alpha\n", 6).await.refused(404);
    let body = json!({"hash": "not hex", "size": 1});
    target.send("POST", "versions/uploads", body).await.refused(400);
}

/// Content of `parts` parts of the size that servers ask for, the last one of `last` bytes; all different.
fn large(parts: usize, last: usize) -> (usize, Vec<u8>) {
    /// What real servers say.
    const PART_BYTES: usize = 10 * 1024 * 1024;
    let size = (parts - 1) * PART_BYTES + last;
    let content = (0..size).map(|at| (at / 3 + at / PART_BYTES) as u8).collect();
    (PART_BYTES, content)
}

async fn parts_make_a_file_in_any_order(target: &Target) {
    let workspace = target.workspace("w").await;
    let (part_bytes, content) = large(3, 12_345);
    let begun = target
        .begin(&workspace, "large.bin", &content, content.len())
        .await
        .ok();
    assert_eq!(
        (&begun["file"], &begun["num_parts"]),
        (&json!("awaiting_parts"), &json!(3))
    );
    assert_eq!(
        (&begun["part_size"], &begun["part_window"]),
        (&json!(part_bytes), &json!(102))
    );
    let upload = text(&begun["upload_id"]);
    let parts: Vec<_> = content.chunks(part_bytes).collect();
    for (number, completed) in [(3, false), (3, false), (1, false), (1, false), (2, true)] {
        let answer = target.part(&upload, number, parts[number - 1]).await.ok();
        assert_eq!(answer["completed"], completed, "part {number}");
    }
    let stored = target
        .request("GET", "file/w/large.bin")
        .send()
        .await
        .expect("an answer");
    assert!(stored.bytes().await.expect("a body") == content);
}

async fn a_part_beyond_the_window_is_deferred(target: &Target) {
    let workspace = target.workspace("w").await;
    let size = 200 * 10 * 1024 * 1024;
    let begun = target
        .begin(&workspace, "huge.bin", b"some content nobody has", size)
        .await
        .ok();
    let upload = text(&begun["upload_id"]);
    for (number, status) in [(103, 429), (201, 400), (0, 400)] {
        let request = target
            .request("PUT", &format!("versions/uploads/{upload}/parts/{number}"))
            .body("x");
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "part {number}");
        assert_eq!(answer.headers().contains_key("retry-after"), status == 429);
    }
}

async fn a_part_of_the_wrong_length_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    let begun = target.begin(&workspace, "f", b"hello there", 11).await.ok();
    let upload = text(&begun["upload_id"]);
    target.part(&upload, 1, b"hello").await.refused(400);
    target.part(&upload, 1, b"hello there and more").await.refused(400);
    assert_eq!(target.part(&upload, 1, b"hello there").await.ok()["completed"], true);
    assert_eq!(target.content("w", "f").await.as_deref(), Some("hello there"));
}

async fn a_finished_upload_is_forgotten(target: &Target) {
    let workspace = target.workspace("w").await;
    let begun = target.begin(&workspace, "f", b"finished", 8).await.ok();
    let upload = text(&begun["upload_id"]);
    assert_eq!(target.part(&upload, 1, b"finished").await.ok()["completed"], true);
    target.part(&upload, 1, b"finished").await.refused(404);
    target.part("never-begun", 1, b"x").await.refused(404);
    assert_eq!(
        target.begin(&workspace, "f", b"finished", 8).await.ok()["file"],
        "already_stored"
    );
}

async fn a_wrong_hash_ends_the_upload(target: &Target) {
    let workspace = target.workspace("w").await;
    let begun = target.begin(&workspace, "f", b"promised", 8).await.ok();
    let upload = text(&begun["upload_id"]);
    target.part(&upload, 1, b"Promised").await.refused(400);
    target.part(&upload, 1, b"promised").await.refused(404);
    assert_eq!(target.changes(&workspace).await[0], strings([]));
    target
        .get(&format!("versions/{}/metadata", target.hash(b"promised")))
        .await
        .refused(404);
}

async fn content_in_the_store_is_staged_by_hash_in_batches(target: &Target) {
    let workspace = target.workspace("w").await;
    let route = match target.dialect {
        Dialect::Documented => "files/batch",
        _ => "versions",
    };
    let (there, missing) = (target.hash(b"alpha\n"), target.hash(b"nobody sent this"));
    let body = json!([
        {"hash": there, "path": "one"},
        {"hash": missing, "path": "two"},
        {"hash": there, "path": "deep/three"},
    ]);
    let answer = target
        .send("POST", &format!("workspaces/w/{route}/copies"), body)
        .await
        .ok();
    let errors = answer["err_files"].as_array().expect("a list");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        (&errors[0]["hash"], &errors[0]["path"]),
        (&json!(missing), &json!("two"))
    );
    assert_eq!(target.changes(&workspace).await[0], ["copies/deep/three", "copies/one"]);
    target
        .send("POST", &format!("workspaces/no/{route}/x"), json!([]))
        .await
        .refused(404);
}

async fn nothing_is_staged_by_hash(target: &Target) {
    target.workspace("w").await;
    target
        .send("POST", "workspaces/w/versions/d", json!([]))
        .await
        .refused(404);
    target.send("POST", "versions/uploads", json!({})).await.refused(404);
    target
        .send("POST", "workspaces/w/files/batch/d", json!([]))
        .await
        .refused(415);
}

async fn a_large_file_is_sent_in_chunks(target: &Target) {
    target.workspace("w").await;
    let content: Vec<u8> = (0..250_000u32).map(|at| (at / 7) as u8).collect();
    let hash = target.hash(&content);
    target
        .send("POST", &format!("versions/{hash}/create"), json!({}))
        .await
        .ok();
    let chunks = content.chunks(100_000).enumerate();
    for (number, chunk) in chunks.clone().chain(chunks.clone().take(1)) {
        let below = format!("versions/{hash}/chunks?offset={}", number * 100_000);
        Answered::of(target.request("PUT", &below).body(chunk.to_owned()))
            .await
            .ok();
    }
    let below = format!("versions/{hash}/complete");
    let complete = |count: usize| {
        let file = json!({"hash": hash, "file_name": "large.bin", "dst_dir": "d", "num_chunks": count});
        target.send("POST", &below, json!({"files": [file], "workspace_id": "w"}))
    };
    complete(2).await.refused(400);
    complete(3).await.ok();
    assert_eq!(target.changes("w").await[0], ["d/large.bin"]);
    let stored = target
        .request("GET", "file/w/d/large.bin")
        .send()
        .await
        .expect("an answer");
    assert!(stored.bytes().await.expect("a body") == content);
}

// Dialects

async fn documented_routes_do_not_exist(target: &Target) {
    target.workspace("w").await;
    let body = json!({"workspace_id": "x", "branch_name": "main"});
    target.send("PUT", "workspaces/get_or_create", body).await.refused(404);
    target
        .send("POST", "workspaces/w/files/batch/d", json!([]))
        .await
        .refused(415);
}

async fn released_routes_do_not_exist(target: &Target) {
    target.workspace("w").await;
    let body = json!({"workspace_id": "x", "branch_name": "main"});
    target.send("PUT", "workspaces", body).await.refused(404);
    target
        .send("POST", "workspaces/w/versions/d", json!([]))
        .await
        .refused(404);
    target.send("POST", "versions/uploads", json!({})).await.refused(404);
}

async fn content_is_named_by_sha256(target: &Target) {
    let body = target.get_json("meta/main/README.md").await;
    assert_eq!(text(&body["entry"]["hash"]).len(), 64);
}
