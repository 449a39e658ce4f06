//! Small files of a directory that are read one after another: the next ones are here before they are asked for.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::dataset::noise;
use crate::gateway::{Fault, Gateway};
use crate::http::Tree;
use crate::mounted::TestMount;
use crate::scripted::Scripted;

const FILES: usize = 300;
const BYTES: usize = 16 << 10;

fn content(at: usize) -> Vec<u8> {
    noise(at as u64, BYTES)
}

fn committed(server: &str) -> TestMount {
    let files: Tree = (0..FILES).map(|at| (format!("images/{at}.png"), content(at))).collect();
    TestMount::committed_by(server, &files)
}

/// What was asked for content: requests for many files, and for one.
fn asked(server: &Scripted) -> (usize, usize) {
    let log = server.log();
    let of = |method: &str, path: &str| log.iter().filter(|(used, at, _)| used == method && at.contains(path)).count();
    (of("QUERY", "/versions"), of("GET", "/file/"))
}

fn forget_traffic(server: &Scripted) {
    assert_eq!(server.ask("DELETE", "/_traffic", &Value::Null).0, 200);
}

#[test]
fn files_read_in_a_stable_order_come_many_a_request() {
    let server = Scripted::new();
    let test = committed(&server.url());
    let as_listed = || {
        test.mount(&["--read-only"]).ok();
        let names = fs::read_dir(test.at("images")).unwrap().map(|entry| entry.unwrap().file_name());
        let listed: Vec<usize> =
            names.map(|name| name.to_str().unwrap().trim_end_matches(".png").parse().unwrap()).collect();
        test.unmount();
        listed
    };
    let counted: Vec<usize> = (0..FILES).collect();
    let backwards: Vec<usize> = counted.iter().rev().copied().collect();
    let mut sorted = counted.clone();
    sorted.sort_by_key(usize::to_string);
    for (way, order) in [("counted", counted), ("backwards", backwards), ("sorted", sorted), ("listed", as_listed())] {
        test.forget();
        forget_traffic(&server);
        test.mount(&["--read-only"]).ok();
        for at in &order {
            assert!(fs::read(test.at(format!("images/{at}.png"))).unwrap() == content(*at), "{at}");
        }
        let (many, one) = asked(&server);
        assert!(many + one <= 60, "{way}: {many} for many files and {one} for one");
        assert!(test.status()["cache"]["files_ahead"].as_u64().unwrap() > 250, "{way}");
        test.unmount();
    }
}

#[test]
fn who_reads_in_no_order_gets_next_to_nothing_ahead() {
    let server = Scripted::new();
    let test = committed(&server.url());
    forget_traffic(&server);
    test.mount(&["--read-only"]).ok();
    let mut order: Vec<usize> = (0..FILES).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut order);
    for at in &order[..100] {
        assert!(fs::read(test.at(format!("images/{at}.png"))).unwrap() == content(*at), "{at}");
    }
    let ahead = test.status()["cache"]["files_ahead"].as_u64().unwrap();
    assert!(ahead <= 16, "{ahead} files were fetched ahead");
    test.unmount();
}

#[test]
fn where_query_is_refused_the_next_files_come_one_by_one_and_each_once() {
    let server = Scripted::new();
    let test = committed(&server.url());
    server.arm("QUERY", "/api/", None, json!({"status": {"code": 405}}));
    forget_traffic(&server);
    test.mount(&["--read-only"]).ok();
    for at in 0..FILES {
        assert!(fs::read(test.at(format!("images/{at}.png"))).unwrap() == content(at), "{at}");
    }
    let (many, one) = asked(&server);
    assert_eq!((many, one), (1, FILES));
    assert!(test.status()["cache"]["files_ahead"].as_u64().unwrap() > 200);
    test.unmount();
}

#[test]
fn who_comes_to_a_file_that_is_on_its_way_waits_for_it_and_not_for_long() {
    let server = Scripted::new();
    let gateway = Gateway::new(&server.url());
    let test = committed(&gateway.url());
    let singles = || gateway.log().iter().filter(|passed| passed.path.contains("/file/")).count();
    test.mount(&["--read-only"]).ok();
    let read = |from: usize, to: usize| {
        for at in from..to {
            assert!(fs::read(test.at(format!("images/{at}.png"))).unwrap() == content(at), "{at}");
        }
    };
    gateway.rule(|method, _| (method == "QUERY").then_some(Fault::Delay(Duration::from_millis(100))));
    read(0, 60);
    assert!(singles() < 20, "{}", singles());
    // They never come: each is asked for alone.
    gateway.rule(|method, _| (method == "QUERY").then_some(Fault::Delay(Duration::from_secs(30))));
    read(290, 300);
    test.unmount();
}
