//! Listings, metadata, content.

use super::*;

contract! {
    everywhere: [
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
    ];
    current: [
        contents_that_are_missing_are_named_and_none_is_sent,
        two_commits_are_compared_path_by_path,
        pruning_removes_what_is_only_staged,
    ];
}

async fn hashes_have_no_leading_zeros(target: &Target) {
    let kind = target.dialect.hash_kind();
    // About one content in sixteen has such a hash; each kind prints its own.
    let content = (0..).map(|n| format!("content {n}")).find(|text| match ContentHash::of(kind, text.as_bytes()) {
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
    assert_eq!(filenames(&root["entries"]), ["README.md", "data", "data/new.txt", "fresh/deep/file.txt"]);
    assert_eq!(root["total_entries"], 2, "what was added is not counted");
    let readme = entry(&root["entries"], "README.md");
    assert_eq!(readme["changes"]["status"], "Modified");
    assert_eq!((&readme["size"], &readme["hash"]), (&json!(5), &json!(target.hash(b"base\n"))), "as in the base");
    assert_eq!(entry(&root["entries"], "data/new.txt")["changes"]["status"], "Added");
    let data = target.get_json("dir/w/data").await;
    assert_eq!(entry(&data["entries"], "b.txt")["changes"]["status"], "Removed");
    assert_eq!(entry(&data["entries"], "data/new.txt")["hash"], target.hash(b"new").as_str());
    target.get("dir/w/fresh").await.refused(404);
}

async fn metadata_in_a_workspace_is_true_only_of_added_files(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "longer than before\n").await;
    target.add(&workspace, "data/new.txt", "new").await;
    target.remove(&workspace, &["data/b.txt"]).await.ok();
    let added = target.get_json("meta/w/data/new.txt").await;
    assert_eq!(added["entry"]["hash"], target.hash(b"new").as_str());
    assert_eq!((&added["entry"]["size"], &added["entry"]["changes"]["status"]), (&json!(3), &json!("Added")));
    let modified = target.get_json("meta/w/README.md").await;
    assert_eq!(modified["entry"]["hash"], target.hash(b"base\n").as_str());
    assert_eq!((&modified["entry"]["size"], &modified["entry"]["changes"]["status"]), (&json!(5), &json!("Modified")));
    let removed = target.get_json("meta/w/data/b.txt").await;
    assert_eq!(removed["entry"]["changes"]["status"], "Removed");
    let dir = target.get_json("meta/main/data").await;
    assert_eq!(dir["entry"]["is_dir"], true);
}

async fn a_whole_file_is_sent_whatever_range_is_asked_for(target: &Target) {
    let workspace = target.workspace("w").await;
    for below in ["file/main/data/a.txt", "file/w/data/a.txt", &format!("workspaces/{workspace}/files/data/a.txt")] {
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
                assert_eq!(answer.headers()["content-length"], content.len().to_string(), "HEAD {below}");
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
    let answer = target.request("GET", "workspaces/w/files/data/a.txt").send().await.expect("an answer");
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
    target.get("chunk/main/data/a.txt?chunk_start=4&chunk_size=3").await.refused(500);
    target.get("chunk/main/data/a.txt?chunk_start=9&chunk_size=1").await.refused(500);
    target.get("chunk/w/data/a.txt?chunk_start=1&chunk_size=3").await.refused(404);
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
    for page in 1..=3 {
        let below = format!("workspaces/w/changes?page={page}&page_size=1");
        let list = &target.get_json(&below).await["staged"]["added_files"];
        assert_eq!((&list["total_entries"], &list["total_pages"]), (&json!(3), &json!(3)));
        let entry = &list["entries"][0];
        assert_eq!((&entry["hash"], &entry["size"]), (&json!(""), &json!(0)));
        // Which one it is changes from one request to the next: pages overlap, only a page that holds all is complete.
        assert!(added.contains(&text(&entry["filename"])));
    }
    let below = target.get_json("workspaces/w/changes/data").await;
    assert_eq!(filenames(&below["staged"]["added_files"]["entries"]), ["data/sub/new-3"]);
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
    let request = target.request("QUERY", "versions").body(gzip(hashes.join("\n").as_bytes()));
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    let archive = answer.bytes().await.expect("a whole answer");
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&archive[..]).read_to_end(&mut tar).expect("gzip");
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

async fn contents_that_are_missing_are_named_and_none_is_sent(target: &Target) {
    let (there, impossible) = (target.hash(b"alpha\n"), "f".repeat(32));
    let request = target.request("QUERY", "versions").body(gzip(format!("{there}\n{impossible}\n").as_bytes()));
    let answer = Answered::of(request).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.body["error"]["type"], "version_blobs_missing");
    assert_eq!(answer.body["error"]["missing_hashes"], json!([impossible]));
}

async fn two_commits_are_compared_path_by_path(target: &Target) {
    let (workspace, old) = (target.workspace("w").await, target.head("main").await);
    target.add(&workspace, "data/new", "new").await;
    target.add(&workspace, "data/a.txt", "changed").await;
    target.remove(&workspace, &["data/sub"]).await.ok();
    target.commit(&workspace).await.ok();
    let new = target.head("main").await;
    let body = target.get_json(&format!("compare/entries/{old}..{new}?page_size=100000")).await;
    let entries = body["compare"]["entries"].as_array().expect("a list");
    let hash_of = |entry: &Value| entry.get("hash").map_or(json!(null), Value::clone);
    let mut found: Vec<_> = entries
        .iter()
        .map(|entry| {
            let [base, head] = ["base_entry", "head_entry"].map(|side| hash_of(&entry[side]));
            let is_dir = entry["is_dir"] == true;
            let shown = |side: Value| if is_dir { json!(!side.is_null()) } else { side };
            (text(&entry["filename"]), is_dir, shown(base), shown(head))
        })
        .filter(|(name, ..)| !name.is_empty())
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let hash = |content: &str| json!(target.hash(content.as_bytes()));
    let expected = [
        ("data", true, json!(true), json!(true)),
        ("data/a.txt", false, hash("alpha\n"), hash("changed")),
        ("data/new", false, json!(null), hash("new")),
        ("data/sub", true, json!(true), json!(false)),
        ("data/sub/c.txt", false, hash("gamma\n"), json!(null)),
    ];
    assert_eq!(found, expected.map(|(name, is_dir, base, head)| (name.to_owned(), is_dir, base, head)));
}

async fn pruning_removes_what_is_only_staged(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "staged", "only staged").await;
    target.send("POST", "prune", json!({"dry_run": false})).await.ok();
    target.get(&format!("versions/{}/metadata", target.hash(b"only staged"))).await.refused(404);
    assert_eq!(target.changes(&workspace).await[0], ["staged"]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "data", "staged"]);
    target.get("file/main/staged").await.refused(500);
    assert_eq!(target.content("main", "data/a.txt").await.as_deref(), Some("alpha\n"));
}
