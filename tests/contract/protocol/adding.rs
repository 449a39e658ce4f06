//! Content in forms, and how their parts are named.

use super::*;

contract! {
    everywhere: [
        an_added_file_is_committed,
        names_of_parts_are_unescaped_but_not_decoded,
        a_name_with_a_percent_sign_cannot_be_said_in_a_workspaces_url,
        a_line_end_in_the_name_of_a_part_is_refused,
        one_bad_name_refuses_the_whole_form,
        a_gzip_part_is_inflated_and_a_broken_one_left_out,
        the_later_part_wins,
        a_form_that_ends_early_stages_nothing,
        putting_the_bases_content_back_is_silently_ignored,
    ];
    newer: [
        a_backslash_in_a_name_loses_the_file_at_its_commit,
        names_of_oxens_own_directory_are_refused_in_every_spelling,
    ];
    subdirectories: [
        names_of_parts_keep_their_directories,
        names_of_parts_are_normalized,
    ];
    only_documented: [only_the_last_component_of_a_parts_name_counts];
    only_0_50: [only_the_last_component_of_a_parts_name_counts];
}

async fn an_added_file_is_committed(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/sub/new.txt", "new content").await;
    target.add(&workspace, "README.md", "changed").await;
    assert_eq!(target.content("w", "data/sub/new.txt").await.as_deref(), Some("new content"));
    let before = target.head("main").await;
    let commit = target.commit(&workspace).await.ok();
    assert_eq!(commit["commit"]["id"], target.head("main").await.as_str());
    assert_eq!(commit["commit"]["parent_ids"], json!([before]));
    assert_eq!(target.content("main", "data/sub/new.txt").await.as_deref(), Some("new content"));
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("changed"));
    assert_eq!(target.content(&before, "README.md").await.as_deref(), Some("base\n"));
    assert_eq!(target.names("main", "data/sub").await, ["c.txt", "new.txt"]);
}

async fn names_of_parts_are_unescaped_but_not_decoded(target: &Target) {
    let workspace = target.workspace("w").await;
    let names = [
        (r#"q\"uote"#, r#"q"uote"#, "q%22uote"),
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

async fn a_backslash_in_a_name_loses_the_file_at_its_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target.add_form(&workspace, "", &form(&[(r"back\\slash", "x")])).await.ok();
    assert_eq!(answer["paths"], json!([r"back\slash"]));
    assert_eq!(target.content("w", "back%5Cslash").await.as_deref(), Some("x"));
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "back", "data"]);
    assert_eq!(target.names("main", "back").await, [r"back\slash"]);
    for path in ["back%5Cslash", "back/slash"] {
        assert_eq!(target.content("main", path).await, None, "{path}");
    }
}

async fn a_name_with_a_percent_sign_cannot_be_said_in_a_workspaces_url(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "100%", "x").await;
    assert_eq!(target.content("w", "100%25").await.as_deref(), Some("x"));
    target.get("workspaces/w/files/100%25").await.refused(404);
    target.rename(&workspace, "100%25", "moved").await.refused(404);
    target.send("DELETE", "workspaces/w/changes", json!(["100%"])).await.ok();
    assert_eq!(target.changes(&workspace).await[0], strings([]));
}

async fn a_line_end_in_the_name_of_a_part_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add_form(&workspace, "", &form(&[("a\nb", "x")])).await.refused(400);
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])]);
}

async fn one_bad_name_refuses_the_whole_form(target: &Target) {
    let workspace = target.workspace("w").await;
    // Of these, servers that keep only the last component see just that. 0.53.4 takes `.oxen` for a name like another.
    let bad: &[&str] = match target.dialect {
        Dialect::Documented => &["..", "a/..", ".oxen"],
        Dialect::V0_50 => &["..", "a/.."],
        _ => &["../x", "a/../b", "/absolute", ".oxen/x", "a/.oxen"],
    };
    for name in bad {
        target.add_form(&workspace, "d", &form(&[("good", "x"), (name, "y")])).await.refused(400);
    }
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])]);
}

async fn names_of_oxens_own_directory_are_refused_in_every_spelling(target: &Target) {
    let workspace = target.workspace("w").await;
    for name in [".OXEN", ".oxen.", ".oxen ", ".oxen:stream", "OXEN~1"] {
        target.add_form(&workspace, "", &form(&[(name, "x")])).await.refused(400);
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
    assert_eq!(target.content("w", "most").await.map(|content| content.len()), Some(limit));
    let kept = target.request("GET", "file/w/plain.gz").send().await.expect("an answer");
    assert_eq!(kept.bytes().await.expect("a body"), gzip(b"kept"));
}

async fn the_later_part_wins(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add_form(&workspace, "", &form(&[("same", "first"), ("other", "x"), ("same", "second")])).await.ok();
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
    let answer = target.add_form(&workspace, "top", &form(&[("a/b/c.txt", "1"), ("d.txt", "2")])).await.ok();
    assert_eq!(answer["paths"], json!(["top/a/b/c.txt", "top/d.txt"]));
    let answer = target.add_form(&workspace, "", &form(&[("a/b/c.txt", "1")])).await.ok();
    assert_eq!(answer["paths"], json!(["a/b/c.txt"]));
}

async fn names_of_parts_are_normalized(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target.add_form(&workspace, "", &form(&[("a//b", "1"), ("c/./d", "2"), ("./e", "3")])).await.ok();
    assert_eq!(answer["paths"], json!(["a/b", "c/d", "e"]));
}

async fn only_the_last_component_of_a_parts_name_counts(target: &Target) {
    let workspace = target.workspace("w").await;
    let answer = target.add_form(&workspace, "top", &form(&[("a/b/c.txt", "1")])).await.ok();
    assert_eq!(answer["paths"], json!(["top/c.txt"]));
}

async fn putting_the_bases_content_back_is_silently_ignored(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "README.md", "base\n").await;
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])], "untouched");
    target.add(&workspace, "README.md", "changed").await;
    target.remove(&workspace, &["data/a.txt"]).await.ok();
    // Answered with 200 and the path, as if it had been done.
    target.add(&workspace, "README.md", "base\n").await;
    target.add(&workspace, "data/a.txt", "alpha\n").await;
    assert_eq!(target.changes(&workspace).await, [strings([]), strings(["README.md"]), strings(["data/a.txt"])]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("changed"));
    assert_eq!(target.content("main", "data/a.txt").await, None);
}
