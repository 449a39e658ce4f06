//! Shortest ways to what once went wrong.

use std::time::Duration;

use oxenfs::fs::{Fs, Limits, Need, OpenFlags, Options};
use oxenfs::namespace::ROOT;
use oxenfs::path::{Name, RepoPath};
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Memory;

use crate::world::{Op, World};

fn path(text: &str) -> Vec<String> {
    text.split('/').map(str::to_owned).collect()
}

fn write(at: &str, letter: &str) -> Op {
    Op::Write { path: path(at), at: 0, text: letter.repeat(400) }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename { from: path(from), to: path(to), mode: 0 }
}

/// Does `before`, throws the copies of what the server has away, does `after`, drains and compares.
fn check(before: &[Op], after: &[Op]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for by_hash in [ByHash::Never, ByHash::Batch, ByHash::Single] {
        runtime.block_on(async {
            let mut world = World::new(by_hash).await;
            for op in before {
                world.unseen_step(op).await;
            }
            world.lose_cache().await;
            for op in after {
                world.unseen_step(op).await;
            }
            world.step(&Op::Drain).await;
        });
    }
}

#[test]
fn a_staged_file_that_is_renamed_keeps_the_bytes_that_only_the_server_has() {
    check(&[write("x", "x"), Op::Drain], &[rename("x", "z")]);
}

#[test]
fn a_rename_leaves_what_the_base_has_at_the_other_names_of_a_file() {
    let link = Op::Link { from: path("base"), to: path("also") };
    let on = Op::Write { path: path("base"), at: 0, text: "more".into() };
    check(&[link, Op::Commit], &[rename("also", "x"), Op::Drain, on, rename("base", "y"), Op::Drain, Op::Crash]);
}

#[test]
fn renames_that_wait_for_each_other_end() {
    let exchange = Op::Rename { from: path("x"), to: path("y"), mode: 2 };
    let staged = [write("x", "x"), write("y", "y"), write("v", "v"), Op::Drain];
    check(&staged, &[exchange]);
    check(&staged, &[rename("y", "w"), rename("x", "y"), rename("v", "x"), write("v", "n")]);
}

#[test]
fn a_staged_file_takes_a_name_below_its_old_one() {
    let staged = [write("x", "x"), Op::Drain];
    check(&staged, &[rename("x", "t"), Op::Mkdir(path("x")), rename("t", "x/y")]);
}

#[test]
fn a_staged_file_takes_the_name_of_its_directory() {
    let staged = [Op::Mkdir(path("d")), write("d/f", "f"), Op::Drain];
    check(&staged, &[rename("d/f", "t"), Op::Rmdir(path("d")), rename("t", "d")]);
}

#[test]
fn a_name_of_a_staged_file_may_go_while_the_others_bytes_are_only_on_the_server() {
    let link = Op::Link { from: path("x"), to: path("also") };
    check(&[write("x", "x"), Op::Drain], &[link, Op::Unlink(path("x"))]);
}

#[test]
fn a_late_failure_does_not_park_what_the_path_has_become() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let dir = crate::world::temporary_dir();
        let memory = std::sync::Arc::new(Memory::new(ByHash::Never));
        let options = Options { read_only: false, settle: Duration::ZERO, uid: 0, gid: 0, umask: 0 };
        let limits = Limits { spool: None, cache: 0 };
        let fs = Fs::recover(dir.path(), RepoPath::root(), options, limits, memory).unwrap();
        fs.reconcile().await.unwrap();
        fs.satisfy(Need::List(ROOT)).await.unwrap();
        let name = Name::new(b"file").unwrap();
        let flags = OpenFlags { read: false, write: true, truncate: false };
        let (_, handle) = fs.create(ROOT, &name, crate::world::attrs(), flags).unwrap();
        fs.write(handle, 0, b"content").unwrap();
        fs.release(handle);
        let (captures, _) = fs.due(10);
        assert_eq!(captures.len(), 1);
        fs.unlink(ROOT, &name).unwrap();
        fs.step_failed(&captures[0], "its bytes are nowhere", None);
        let (counts, _, errors, _) = fs.report();
        assert_eq!(counts.failed.files, 0, "{errors:?}");
    });
}
