//! What the HTTP protocol promises, tried with raw requests.

use crate::server::Target;

contract! {
    everywhere: [
        every_answer_names_the_servers_version,
    ];
}

async fn every_answer_names_the_servers_version(target: &Target) {
    let answer = target.http.get(format!("{}/api/version", target.base_url)).send().await.expect("an answer");
    assert!(answer.status().is_success());
    let header = answer.headers()["oxen-version"].to_str().expect("text").to_owned();
    let body: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(body["oxen_version"], header.as_str());
}
