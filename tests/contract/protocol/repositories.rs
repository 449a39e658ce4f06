//! Repositories, branches, workspaces, and which routes a dialect has.

use super::*;

contract! {
    everywhere: [
        every_answer_names_the_servers_version,
        agents_that_look_like_an_outdated_official_client_are_refused,
        what_is_not_there_is_404,
        a_repository_is_made_once,
        a_repository_is_made_from_a_form,
        an_empty_repository_gets_a_first_commit_with_its_first_workspace,
        a_branch_is_made_from_another,
        a_workspace_stays_where_its_branch_stood_when_that_is_deleted,
        a_workspace_is_found_by_id_and_by_name,
        a_found_workspace_is_answered_under_the_id_that_was_sent,
        a_deleted_workspace_is_gone,
    ];
    released: [
        a_history_is_told_newest_first_and_in_pages,
        documented_routes_do_not_exist,
    ];
    only_documented: [
        released_routes_do_not_exist,
        content_is_named_by_sha256,
    ];
}

async fn every_answer_names_the_servers_version(target: &Target) {
    for path in ["/api/version", "/api/health", "/api/min_version", "/api/nothing"] {
        let answer = target.http.get(format!("{}{path}", target.base_url)).send().await.expect("an answer");
        assert!(answer.headers().contains_key("oxen-version"), "{path}");
    }
    let answer = target.http.get(format!("{}/api/version", target.base_url)).send().await.expect("an answer");
    let header = answer.headers()["oxen-version"].to_str().expect("text").to_owned();
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!(body["oxen_version"], header.as_str());
}

async fn agents_that_look_like_an_outdated_official_client_are_refused(target: &Target) {
    for (agent, status) in [("oxenfs/0.1.0", 426), ("my-OXEN-tool", 426), ("Oxen/0.36.0 (linux)", 200), ("curl/8", 200)]
    {
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

async fn a_history_is_told_newest_first_and_in_pages(target: &Target) {
    let workspace = target.workspace("history").await;
    let mut made = vec![target.head("main").await];
    for (path, content) in [("log/a", "1"), ("log/b", "1"), ("log/a", "2")] {
        target.add(&workspace, path, content).await;
        target.commit(&workspace).await.ok();
        made.push(target.head("main").await);
    }
    made.reverse();
    let ids = |answer: &Value| -> Vec<String> {
        let commits = answer["commits"].as_array().expect("commits");
        commits.iter().map(|commit| commit["id"].as_str().expect("an id").to_owned()).collect()
    };
    let page = async |resource: &str, page: u32, size: u32| {
        target.get_json(&format!("commits/history/{resource}?page={page}&page_size={size}")).await
    };
    for revision in ["main", &made[0]] {
        let all = page(revision, 1, 1000).await;
        assert_eq!(ids(&all)[..4], made[..]);
        assert_eq!(all["total_pages"], 1);
        assert_eq!(all["commits"][0]["message"], "change");
    }
    let second = page("main", 2, 2).await;
    assert_eq!(ids(&second)[..2], made[2..]);
    assert_eq!(ids(&page(&made[1], 1, 1000).await)[..3], made[1..]);
    // Of a path: those that changed it, in the branch or a commit.
    assert_eq!(ids(&page("main/log/a", 1, 1000).await), [&*made[0], &*made[2]]);
    assert_eq!(ids(&page("main/log", 1, 1000).await), made[..3]);
    assert_eq!(ids(&page(&format!("{}/log/a", made[1]), 1, 1000).await), [&*made[2]]);
    let (first, last) = (page("main/log/a", 1, 1).await, page("main/log/a", 2, 1).await);
    assert_eq!((ids(&first), ids(&last)), (vec![made[0].clone()], vec![made[2].clone()]));
    if target.dialect == Dialect::V0_65 {
        assert_eq!([&first["has_more"], &last["has_more"]], [true, false]);
    }
    for missing in ["main/log/no", "no", "no/log/a"] {
        target.get(&format!("commits/history/{missing}")).await.refused(404);
    }
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
    for (field, value) in [("new_repo", new.as_str()), ("name", "Someone"), ("email", "someone@example.com")] {
        let _ = write!(body, "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n");
    }
    let body = [body.into_bytes(), form_of(&[("binary.bin", None, b"\x00\xff\x00")])].concat();
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let request = target.http.post(&repos).header("content-type", kind).body(body);
    let answer = Answered::of(request).await.ok();
    assert_eq!(answer["repository"]["latest_commit"]["author"], "Someone");
    let file = format!("{repos}/{}/{name}/file/main/binary.bin", target.namespace);
    let content = target.http.get(file).send().await.expect("an answer").bytes().await.expect("a body");
    assert_eq!(&content[..], b"\x00\xff\x00");
}

async fn an_empty_repository_gets_a_first_commit_with_its_first_workspace(target: &Target) {
    let name = format!("{}-empty", target.repo);
    let repos = format!("{}/api/repos", target.base_url);
    let body = json!({"namespace": target.namespace, "name": name});
    Answered::of(target.http.post(&repos).json(&body)).await.ok();
    let below = format!("{repos}/{}/{name}", target.namespace);
    let body = json!({"workspace_id": "first", "name": "first", "branch_name": "main"});
    let put = target.http.put(format!("{below}/{}", target.workspaces_route())).json(&body);
    let workspace = Answered::of(put).await.ok();
    let branch = Answered::of(target.http.get(format!("{below}/branches/main"))).await.ok();
    assert_eq!(workspace["workspace"]["commit"]["id"], branch["branch"]["commit_id"]);
    Answered::of(target.http.get(format!("{below}/dir/main"))).await.refused(404);
}

async fn a_branch_is_made_from_another(target: &Target) {
    let head = target.head("main").await;
    let body = json!({"new_name": "dev", "from_name": "main"});
    let made = target.send("POST", "branches", body.clone()).await.ok();
    assert_eq!(made["branch"]["commit_id"], head.as_str());
    target.send("POST", "branches", body).await.ok();
    target.send("POST", "branches", json!({"new_name": "x", "from_name": "no"})).await.refused(404);
    let all = target.get_json("branches").await;
    assert_eq!(all["branches"].as_array().map(Vec::len), Some(2));
    assert_eq!(target.names("dev", "").await, ["README.md", "data"]);
}

async fn a_workspace_stays_where_its_branch_stood_when_that_is_deleted(target: &Target) {
    let old = target.head("main").await;
    let workspace = target.workspace("w").await;
    target.add(&workspace, "new.txt", "new").await;
    target.commit(&workspace).await.ok();
    let body = json!({"new_name": "there", "commit_id": old});
    let made = target.send("POST", "branches", body.clone()).await.ok();
    assert_eq!(made["branch"]["commit_id"], old.as_str());
    target.send("POST", "branches", body).await.refused(500);
    let unknown = json!({"new_name": "nowhere", "commit_id": "0123456789abcdef0123456789abcdef"});
    target.send("POST", "branches", unknown).await.refused(500);
    target.get("branches/nowhere").await.refused(404);
    // No commit's id is a branch's name.
    target.send("POST", "branches", json!({"new_name": "x", "from_name": old})).await.refused(404);
    let body = json!({"workspace_id": "old", "name": "old", "branch_name": "there"});
    let workspace = target.send("PUT", target.workspaces_route(), body).await.ok();
    assert_eq!(workspace["workspace"]["commit"]["id"], old.as_str());
    target.send("DELETE", "branches/there", json!(null)).await.ok();
    target.send("DELETE", "branches/there", json!(null)).await.refused(404);
    let workspace = target.get_json("workspaces/old").await;
    assert_eq!(workspace["workspace"]["commit"]["id"], old.as_str());
    // And is committed to another branch.
    target.add("old", "other.txt", "other").await;
    target.commit("old").await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "data", "new.txt", "other.txt"]);
}

async fn a_workspace_is_found_by_id_and_by_name(target: &Target) {
    let body = json!({"workspace_id": "the-id", "name": "the-name", "branch_name": "main"});
    let made = target.send("PUT", target.workspaces_route(), body.clone()).await.ok();
    assert_eq!(made["status_message"], "resource_created");
    assert_eq!(made["workspace"]["commit"]["id"], target.head("main").await.as_str());
    let found = target.send("PUT", target.workspaces_route(), body).await.ok();
    assert_eq!(found["status_message"], "resource_found");
    for key in ["the-id", "the-name"] {
        let got = target.get_json(&format!("workspaces/{key}")).await;
        assert_eq!((&got["workspace"]["id"], &got["workspace"]["name"]), (&json!("the-id"), &json!("the-name")));
        target.add(key, &format!("by-{key}"), "x").await;
    }
    assert_eq!(target.changes("the-name").await[0], ["by-the-id", "by-the-name"]);
    let all = target.get_json("workspaces").await;
    assert_eq!(all["workspaces"].as_array().map(Vec::len), Some(1));
    let body = json!({"workspace_id": "w", "branch_name": "no"});
    target.send("PUT", target.workspaces_route(), body).await.refused(400);
    target.send("PUT", target.workspaces_route(), json!({"branch_name": "main"})).await.refused(400);
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
    Answered::of(target.request("DELETE", "workspaces/w")).await.refused(404);
}

async fn documented_routes_do_not_exist(target: &Target) {
    target.workspace("w").await;
    let body = json!({"workspace_id": "x", "branch_name": "main"});
    target.send("PUT", "workspaces/get_or_create", body).await.refused(404);
    target.send("POST", "workspaces/w/files/batch/d", json!([])).await.refused(415);
}

async fn released_routes_do_not_exist(target: &Target) {
    target.workspace("w").await;
    let body = json!({"workspace_id": "x", "branch_name": "main"});
    target.send("PUT", "workspaces", body).await.refused(404);
    target.send("POST", "workspaces/w/versions/d", json!([])).await.refused(404);
    target.send("POST", "versions/uploads", json!({})).await.refused(404);
}

async fn content_is_named_by_sha256(target: &Target) {
    let body = target.get_json("meta/main/README.md").await;
    assert_eq!(text(&body["entry"]["hash"]).len(), 64);
}
