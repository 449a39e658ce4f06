//! Content that the server has, and content that is too large for a form.

use super::*;

contract! {
    released: [
        a_large_file_is_sent_in_chunks,
    ];
    by_batch: [
        content_in_the_store_is_staged_by_hash_in_batches,
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
    ];
    only_0_58: [
        nothing_is_staged_by_hash,
    ];
}

async fn content_in_the_store_is_staged_by_its_hash(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target.begin(&workspace, "copy/of a\nfile", b"alpha\n", 6).await.ok();
    assert_eq!(answer["file"], "already_stored");
    assert_eq!(target.changes(&workspace).await[0], ["copy/of a\nfile"]);
    // The size is not compared.
    assert_eq!(target.begin(&workspace, "again", b"alpha\n", 99).await.ok()["file"], "already_stored");
    assert_eq!(target.content("w", "again").await.as_deref(), Some("alpha\n"));
    assert_eq!(target.begin(&workspace, "data/a.txt", b"alpha\n", 6).await.ok()["file"], "already_stored");
    assert_eq!(target.changes(&workspace).await[1], strings([]), "the base's content changes nothing");
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
    let begun = target.begin(&workspace, "large.bin", &content, content.len()).await.ok();
    assert_eq!((&begun["file"], &begun["num_parts"]), (&json!("awaiting_parts"), &json!(3)));
    assert_eq!((&begun["part_size"], &begun["part_window"]), (&json!(part_bytes), &json!(102)));
    let upload = text(&begun["upload_id"]);
    let parts: Vec<_> = content.chunks(part_bytes).collect();
    for (number, completed) in [(3, false), (3, false), (1, false), (1, false), (2, true)] {
        let answer = target.part(&upload, number, parts[number - 1]).await.ok();
        assert_eq!(answer["completed"], completed, "part {number}");
    }
    let stored = target.request("GET", "file/w/large.bin").send().await.expect("an answer");
    assert!(stored.bytes().await.expect("a body") == content);
}

async fn a_part_beyond_the_window_is_deferred(target: &Target) {
    let workspace = target.workspace("w").await;
    let size = 200 * 10 * 1024 * 1024;
    let begun = target.begin(&workspace, "huge.bin", b"some content nobody has", size).await.ok();
    let upload = text(&begun["upload_id"]);
    for (number, status) in [(103, 429), (201, 400), (0, 400)] {
        let request = target.request("PUT", &format!("versions/uploads/{upload}/parts/{number}")).body("x");
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
    assert_eq!(target.begin(&workspace, "f", b"finished", 8).await.ok()["file"], "already_stored");
}

async fn a_wrong_hash_ends_the_upload(target: &Target) {
    let workspace = target.workspace("w").await;
    let begun = target.begin(&workspace, "f", b"promised", 8).await.ok();
    let upload = text(&begun["upload_id"]);
    target.part(&upload, 1, b"Promised").await.refused(400);
    target.part(&upload, 1, b"promised").await.refused(404);
    assert_eq!(target.changes(&workspace).await[0], strings([]));
    target.get(&format!("versions/{}/metadata", target.hash(b"promised"))).await.refused(404);
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
    let answer = target.send("POST", &format!("workspaces/w/{route}/copies"), body).await.ok();
    let errors = answer["err_files"].as_array().expect("a list");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((&errors[0]["hash"], &errors[0]["path"]), (&json!(missing), &json!("two")));
    assert_eq!(target.changes(&workspace).await[0], ["copies/deep/three", "copies/one"]);
    target.send("POST", &format!("workspaces/no/{route}/x"), json!([])).await.refused(404);
}

async fn nothing_is_staged_by_hash(target: &Target) {
    target.workspace("w").await;
    target.send("POST", "workspaces/w/versions/d", json!([])).await.refused(404);
    target.send("POST", "versions/uploads", json!({})).await.refused(404);
    target.send("POST", "workspaces/w/files/batch/d", json!([])).await.refused(415);
}

async fn a_large_file_is_sent_in_chunks(target: &Target) {
    target.workspace("w").await;
    let content: Vec<u8> = (0..250_000u32).map(|at| (at / 7) as u8).collect();
    let hash = target.hash(&content);
    target.send("POST", &format!("versions/{hash}/create"), json!({})).await.ok();
    let chunks = content.chunks(100_000).enumerate();
    for (number, chunk) in chunks.clone().chain(chunks.clone().take(1)) {
        let below = format!("versions/{hash}/chunks?offset={}", number * 100_000);
        Answered::of(target.request("PUT", &below).body(chunk.to_owned())).await.ok();
    }
    let below = format!("versions/{hash}/complete");
    let complete = |count: usize| {
        let file = json!({"hash": hash, "file_name": "large.bin", "dst_dir": "d", "num_chunks": count});
        target.send("POST", &below, json!({"files": [file], "workspace_id": "w"}))
    };
    complete(2).await.refused(400);
    complete(3).await.ok();
    assert_eq!(target.changes("w").await[0], ["d/large.bin"]);
    let stored = target.request("GET", "file/w/d/large.bin").send().await.expect("an answer");
    assert!(stored.bytes().await.expect("a body") == content);
}
