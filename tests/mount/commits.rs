//! Several commits, and writers that do not wait for them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, wait_until};

#[test]
fn each_commit_holds_what_was_written_up_to_it() {
    let test = TestMount::new();
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/a"), "1").unwrap();
        fs::write(root.join("b"), "1").unwrap();
    }
    test.commit();
    assert_same(&test.committed(), &local_tree(&plain));
    for root in [&test.dir, &plain] {
        fs::write(root.join("dir/a"), "2").unwrap();
        fs::remove_file(root.join("b")).unwrap();
        fs::write(root.join("dir/c"), "2").unwrap();
    }
    test.commit();
    assert_same(&test.committed(), &local_tree(&plain));
    // Nothing to commit is no error, and changes nothing.
    test.commit();
    assert_same(&test.committed(), &local_tree(&plain));
    for root in [&test.dir, &plain] {
        fs::rename(root.join("dir"), root.join("moved")).unwrap();
        fs::write(root.join("b"), "3").unwrap();
    }
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&plain));
}

#[test]
fn what_is_written_during_a_commit_lands_in_the_next() {
    let test = TestMount::new();
    fs::write(test.at("before"), "before").unwrap();
    let stop = AtomicBool::new(false);
    let written = AtomicU32::new(0);
    let between = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut at = 0;
            // Bounded: what is written during the first commit is staged by the second.
            while !stop.load(Ordering::Relaxed) && at < 1500 {
                fs::write(test.at(format!("file {at}")), format!("content {at}").repeat(100)).unwrap();
                at += 1;
                written.store(at, Ordering::Relaxed);
            }
        });
        wait_until("some files", || written.load(Ordering::Relaxed) >= 20);
        let at_least = written.load(Ordering::Relaxed);
        test.commit();
        let first = test.committed();
        for at in 0..at_least {
            assert!(first.contains_key(&format!("file {at}")), "file {at} was closed before the commit");
        }
        // What was closed before is whole; the file that was open just then is there as far as it was written.
        for (path, content) in &first {
            if let Some(at) = path.strip_prefix("file ") {
                let whole = format!("content {at}").repeat(100).into_bytes();
                let open = at.parse::<u32>().unwrap() >= at_least;
                assert!(*content == whole || open && whole.starts_with(content), "{path} is torn");
            }
        }
        test.commit();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        first.len()
    });
    let expected = local_tree(&test.dir);
    assert_eq!(expected.len() as u32, written.load(Ordering::Relaxed) + 1);
    assert!(between < expected.len(), "the writer went on during the commit");
    test.unmount_commit();
    assert_same(&test.committed(), &expected);
}
