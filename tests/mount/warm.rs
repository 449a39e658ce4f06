//! `oxenfs warm`: what it asks the server for, what is here afterwards, and that nothing wrong ever is.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::dataset::noise;
use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, local_tree};
use crate::scripted::Scripted;

const SMALL: usize = 300;

/// Small files in three directories, two of them alike, an empty one, and a large one.
fn files() -> Tree {
    let mut files = Tree::new();
    for at in 0..SMALL as u64 {
        files.insert(format!("images/{}/{at:03}", at % 3), noise(at, 5000));
    }
    files.insert("images/alike".into(), noise(7, 5000));
    files.insert("empty".into(), Vec::new());
    files.insert("large".into(), noise(1000, 3 << 20));
    files
}

/// A mount that only reads, of which nothing is here.
fn cold(server: &Scripted, files: &Tree, options: &[&str]) -> TestMount {
    let test = TestMount::committed_by(&server.url(), files);
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    test.mount(&[&["--read-only"], options].concat()).ok();
    test
}

/// How many requests with this method came whose path contains `path`.
fn asked(server: &Scripted, method: &str, path: &str) -> usize {
    server.log().iter().filter(|(used, at, _)| used == method && at.contains(path)).count()
}

/// The files of the cache, by name.
fn cached(test: &TestMount) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![test.state.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.to_str().unwrap().contains("/cache/boot-") {
                found.push(path);
            }
        }
    }
    found
}

/// What a command says when it is done: on a busy machine lines of progress come before.
fn last(said: &Said) -> &str {
    said.err.lines().last().unwrap_or_default()
}

#[test]
fn warm_brings_small_files_many_a_request_and_only_what_is_not_here() {
    let mut server = Scripted::new();
    let files = files();
    let test = cold(&server, &files, &[]);
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["warm", dir]).ok();
    let all = format!("{dir}: 303 files, 4.4 MiB are here");
    // What has no bytes is not asked for.
    assert_eq!(last(&said), format!("{all} (301, 4.4 MiB fetched)"));
    assert_eq!((asked(&server, "QUERY", "/versions"), asked(&server, "GET", "/file/")), (1, 1), "{:#?}", server.log());
    server.stop();
    assert_same(&local_tree(&test.dir), &files);
    assert_eq!(last(&test.oxenfs(["warm", dir]).ok()), format!("{all} (0, 0 B fetched)"));
    assert_eq!(last(&test.oxenfs(["warm", "--check", dir]).ok()), format!("{all}, whole"));

    let some = test.at("images/1");
    let said = test.oxenfs(["warm", "--evict", some.to_str().unwrap()]).ok();
    assert_eq!(last(&said), format!("{dir}: removed 100 files, 488.3 KiB from the cache"));
    let said = test.oxenfs(["warm", "--check", dir]);
    assert_eq!(said.exit, 1);
    assert!(said.err.contains("images/1/001: is not in the cache\n"), "{said:#?}");
    // One more has the same content.
    assert!(said.err.contains(&format!("{all}, whole, but for 101\n")), "{said:#?}");
    server.start(None);
    // A list, with paths as anybody writes them.
    let list = test.beside("lists").join("list");
    let lines: Vec<&[u8]> = vec![some.as_os_str().as_bytes(), b"", dir.as_bytes()];
    fs::write(&list, lines.join(&b'\n')).unwrap();
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    let said = test.oxenfs(["warm", "-f", list.to_str().unwrap()]).ok();
    assert_eq!(last(&said), format!("{all} (100, 488.3 KiB fetched)"));
    assert_eq!((asked(&server, "QUERY", "/versions"), asked(&server, "GET", "/file/")), (1, 0));
    let said = test.oxenfs(["warm", test.at("nowhere").to_str().unwrap()]);
    assert_eq!(
        (said.exit, said.err.lines().find(|line| line.starts_with("error: ")).unwrap_or(&said.err)),
        (1, "error: cannot fetch all into the cache: nowhere: not found")
    );
    test.unmount();
}

#[test]
fn where_a_server_or_a_proxy_refuses_query_files_come_one_by_one() {
    let server = Scripted::new();
    for method in ["QUERY", "POST", "PUT", "PATCH", "DELETE"] {
        server.arm(method, "/never/", None, json!({"status": {"code": 405}}));
    }
    let files = files();
    let test = cold(&server, &files, &[]);
    server.arm("QUERY", "/api/", None, json!({"status": {"code": 405}}));
    test.oxenfs(["warm", test.dir.to_str().unwrap()]).ok();
    assert_eq!(asked(&server, "QUERY", ""), 1, "it is not tried again");
    assert_eq!(asked(&server, "GET", "/file/"), 301);
    assert_same(&local_tree(&test.dir), &files);
    test.unmount();
}

#[test]
fn what_comes_broken_or_was_altered_here_is_never_taken_for_the_files_content() {
    let server = Scripted::new();
    let files = files();
    let test = cold(&server, &files, &[]);
    let dir = test.dir.to_str().unwrap();
    // The first answers end early, and one is no archive at all.
    server.arm("QUERY", "/versions", Some(2), json!({"truncate": {"bytes": 300_000}}));
    server.arm("QUERY", "/versions", Some(3), json!({"status": {"code": 200, "body": "<html>"}}));
    test.oxenfs(["warm", dir]).ok();
    test.oxenfs(["warm", "--check", dir]).ok();
    // One that cannot be told by its time.
    let victim = cached(&test).into_iter().find(|path| fs::metadata(path).unwrap().len() == 5000).unwrap();
    let time = fs::metadata(&victim).unwrap().modified().unwrap();
    let mut altered = fs::read(&victim).unwrap();
    altered[2500] ^= 1;
    fs::write(&victim, altered).unwrap();
    fs::File::options().write(true).open(&victim).unwrap().set_modified(time).unwrap();
    let said = test.oxenfs(["warm", "--check", dir]);
    assert_eq!(said.exit, 1);
    assert!(said.err.contains(": is not in the cache\n"), "{said:#?}");
    assert_same(&local_tree(&test.dir), &files);
    test.oxenfs(["warm", dir]).ok();
    test.oxenfs(["warm", "--check", dir]).ok();
    test.unmount();
}

#[test]
fn what_does_not_fit_into_the_cache_is_not_begun() {
    let server = Scripted::new();
    let files = files();
    let test = cold(&server, &files, &["--cache-limit", "2MiB"]);
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["warm", dir]);
    let cause = "error: cannot fetch all into the cache: it is 4.4 MiB, and the cache holds 2.0 MiB";
    assert_eq!((said.exit, said.err.lines().find(|line| line.starts_with("error: ")).unwrap_or(&said.err)), (1, cause));
    assert_eq!((asked(&server, "QUERY", "/versions"), asked(&server, "GET", "/file/")), (0, 0));
    test.oxenfs(["warm", test.at("images").to_str().unwrap()]).ok();
    assert_same(&local_tree(&test.dir), &files);
    test.unmount();
}

#[test]
fn what_another_mount_of_the_repository_has_is_not_asked_for_again() {
    let server = Scripted::new();
    let files = files();
    let test = cold(&server, &files, &[]);
    let (dir, other) = (test.dir.to_str().unwrap(), test.beside("other"));
    test.oxenfs(["warm", dir]).ok();
    // One is not what it was, and cannot be told by its time; a link is no file of ours.
    let mut small = cached(&test).into_iter().filter(|path| fs::metadata(path).unwrap().len() == 5000);
    let (victim, link) = (small.next().unwrap(), small.next().unwrap());
    let time = fs::metadata(&victim).unwrap().modified().unwrap();
    fs::write(&victim, vec![0; 5000]).unwrap();
    fs::File::options().write(true).open(&victim).unwrap().set_modified(time).unwrap();
    fs::rename(&link, test.beside("elsewhere").join("file")).unwrap();
    std::os::unix::fs::symlink(test.beside("elsewhere").join("file"), &link).unwrap();
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    // Another view of it, and one that may be written to.
    test.mount_with(&test.state, &other, &[]).ok();
    assert_same(&local_tree(&other), &files);
    // The two that cannot be taken over, each alone or both at once.
    let requests = asked(&server, "QUERY", "/versions") + asked(&server, "GET", "/file/");
    assert!((1..=2).contains(&requests), "{:#?}", server.log());
    fs::write(other.join("large"), "changed there").unwrap();
    test.oxenfs(["unmount", other.to_str().unwrap()]).ok();
    assert_eq!(fs::read(test.at("large")).unwrap(), files["large"]);
    test.unmount();
    // It has what the other mount has, also where no daemon has it now.
    fs::remove_file(&victim).unwrap();
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
    test.mount(&["--read-only"]).ok();
    test.oxenfs(["warm", dir]).ok();
    assert_eq!((asked(&server, "QUERY", "/versions"), asked(&server, "GET", "/file/")), (0, 0));
    assert_same(&local_tree(&test.dir), &files);
    test.unmount();
}
