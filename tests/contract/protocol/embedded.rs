//! What only the embedded server can do: faults on demand, counting, dying and coming back.

use std::time::{Duration, Instant};

use oxenfs::dev_server::{Action, Fault, Options, Server};

use super::*;

contract! {
    only_embedded_0_65: [
        a_scripted_status_has_no_effect,
        a_connection_is_dropped_before_or_after_the_effect,
        paths_are_left_out_of_a_200,
        an_answer_is_cut_short,
        an_answer_is_slowed_down,
        faults_are_armed_over_http,
        content_bytes_are_counted_where_they_arrive,
        parts_can_be_small,
    ];
}

fn server(target: &Target) -> &Server {
    target.server().expect("an embedded server")
}

fn status(code: u16) -> Action {
    Action::Status { code, retry_after: Some(2), body: None }
}

async fn a_scripted_status_has_no_effect(target: &Target) {
    let workspace = target.workspace("w").await;
    let fault = Fault::new("POST", "/files/", status(503)).nth(2).times(1);
    server(target).faults().arm(fault);
    target.add(&workspace, "first", "1").await;
    let large = "x".repeat(5_000_000);
    target.add_form(&workspace, "", &form(&[("second", &large)])).await.refused(503);
    target.add(&workspace, "third", "3").await;
    assert_eq!(target.changes(&workspace).await[0], ["first", "third"]);
    assert_eq!(server(target).faults().fired(), 1);
}

async fn a_connection_is_dropped_before_or_after_the_effect(target: &Target) {
    let workspace = target.workspace("w").await;
    for (action, name) in [(Action::DropBefore, "before"), (Action::DropAfter, "after")] {
        server(target).faults().arm(Fault::new("POST", "/files/", action).times(1));
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let request = target.request("POST", "workspaces/w/files/").header("content-type", kind);
        let answer = request.body(form(&[(name, "x")])).send().await;
        assert!(answer.is_err(), "{name}: {answer:?}");
        server(target).faults().clear();
    }
    assert_eq!(target.changes(&workspace).await[0], ["after"]);
}

async fn paths_are_left_out_of_a_200(target: &Target) {
    let workspace = target.workspace("w").await;
    let action = Action::OmitPaths { containing: "lost".to_owned() };
    server(target).faults().arm(Fault::new("", "/files/", action));
    let body = form(&[("one", "1"), ("lost/two", "2"), ("three", "3")]);
    let answer = target.add_form(&workspace, "d", &body).await.ok();
    assert_eq!(answer["paths"], json!(["d/one", "d/three"]));
    assert_eq!(target.changes(&workspace).await[0], ["d/one", "d/three"]);
}

async fn an_answer_is_cut_short(target: &Target) {
    server(target).faults().arm(Fault::new("GET", "/file/", Action::Truncate { bytes: 3 }));
    let answer = target.request("GET", "file/main/data/a.txt").send().await.expect("a head");
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-length"]), (200, &"6".parse().expect("text")));
    assert!(answer.bytes().await.is_err());
    server(target).faults().arm(Fault::new("GET", "/branches", Action::Truncate { bytes: 3 }));
    let cut = match target.request("GET", "branches").send().await {
        Ok(answer) => answer.bytes().await.is_err(),
        Err(_) => true,
    };
    assert!(cut);
}

async fn an_answer_is_slowed_down(target: &Target) {
    let start = Instant::now();
    server(target).faults().arm(Fault::new("GET", "/file/", Action::Throttle { bytes_per_second: 30 }));
    server(target).faults().arm(Fault::new("GET", "/file/", Action::Latency { ms: 100 }));
    assert_eq!(target.content("main", "data/a.txt").await.as_deref(), Some("alpha\n"));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
}

async fn faults_are_armed_over_http(target: &Target) {
    let faults = format!("{}/_faults", target.base_url);
    let script = json!([{"path": "/branches", "times": 1, "action": {"status": {"code": 429, "retry_after": 7}}}]);
    Answered::of(target.http.post(&faults).json(&script)).await.ok();
    let answer = target.request("GET", "branches").send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"7".parse().expect("text")));
    target.get("branches").await.ok();
    Answered::of(target.http.delete(&faults)).await.ok();
    let wrong = json!({"action": "explode"});
    assert_eq!(Answered::of(target.http.post(&faults).json(&wrong)).await.status, 422);
    let traffic = Answered::of(target.http.get(format!("{}/_traffic", target.base_url))).await.ok();
    assert_eq!(traffic["routes"]["GET branches"]["requests"], 2);
}

async fn content_bytes_are_counted_where_they_arrive(target: &Target) {
    let workspace = target.workspace("w").await;
    let traffic = server(target).traffic();
    traffic.clear();
    target.begin(&workspace, "copy", b"alpha\n", 6).await.ok();
    assert_eq!((traffic.requests("POST versions/uploads"), traffic.requests("")), (1, 1));
    assert_eq!(traffic.bytes_received("/files/") + traffic.bytes_received("/parts/"), 0, "no content was sent");
    let body = form(&[("new", "content")]);
    target.add_form(&workspace, "", &body).await.ok();
    assert_eq!(traffic.bytes_received("/files/"), body.len() as u64);
    let last = traffic.log().pop().expect("a request");
    assert_eq!((last.method.as_str(), last.status), ("POST", 200));
}

async fn parts_can_be_small(target: &Target) {
    let workspace = target.workspace("w").await;
    server(target).set_parts(10, 2);
    let content = b"a file of three parts, less or more";
    let begun = target.begin(&workspace, "f", content, content.len()).await.ok();
    assert_eq!((&begun["part_size"], &begun["num_parts"]), (&json!(10), &json!(4)));
    let upload = text(&begun["upload_id"]);
    target.part(&upload, 3, &content[20..30]).await.refused(429);
    for number in [2, 1, 3, 4] {
        let end = content.len().min(number * 10);
        target.part(&upload, number, &content[(number - 1) * 10..end]).await.ok();
    }
    assert_eq!(target.content("w", "f").await.map(String::into_bytes), Some(content.to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_with_all_it_acknowledged() {
    for dialect in [Dialect::Documented, Dialect::V0_50, Dialect::V0_58, Dialect::V0_65] {
        let mut target = Target::embedded(dialect).await;
        let workspace = target.workspace("w").await;
        target.add(&workspace, "committed", "1").await;
        target.commit(&workspace).await.ok();
        target.add(&workspace, "data/staged", "2").await;
        target.add(&workspace, "README.md", "changed").await;
        target.remove(&workspace, &["data/sub"]).await.ok();
        let (head, staged) = (target.head("main").await, target.changes(&workspace).await);
        target.restart().await;
        assert_eq!(target.head("main").await, head);
        assert_eq!(target.changes(&workspace).await, staged);
        assert_eq!(target.content("w", "data/staged").await.as_deref(), Some("2"));
        target.commit(&workspace).await.ok();
        target.restart().await;
        assert_eq!(target.names("main", "data").await, ["a.txt", "b.txt", "staged"]);
        assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_again_forgets_its_uploads() {
    let mut target = Target::embedded(Dialect::V0_65).await;
    let workspace = target.workspace("w").await;
    let begun = target.begin(&workspace, "f", b"0123456789", 10).await.ok();
    target.restart().await;
    target.part(&text(&begun["upload_id"]), 1, b"0123456789").await.refused(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_drops_requests_under_way() {
    let target = Target::embedded(Dialect::V0_65).await;
    let fault = Fault::new("GET", "/branches", Action::Latency { ms: 60_000 });
    server(&target).faults().arm(fault);
    let waiting = tokio::spawn(target.request("GET", "branches").send());
    while server(&target).traffic().requests("GET branches") == 0 {
        tokio::task::yield_now().await;
    }
    server(&target).kill();
    assert!(waiting.await.expect("no panic").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_token_every_request_is_refused() {
    let target = Target::embedded(Dialect::V0_65).await;
    let data = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(Options {
        data: data.path().to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        dialect: Dialect::V0_65,
        token: Some("secret".to_owned()),
    });
    let server = server.await.expect("it starts");
    let version = || target.http.get(format!("{}/api/version", server.url()));
    Answered::of(version()).await.refused(401);
    Answered::of(version().bearer_auth("wrong")).await.refused(401);
    Answered::of(version().bearer_auth("secret")).await.ok();
    server.stop().await;
}
