//! A request that was given up, and is carried out much later: into a commit, and over what is read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use oxenfs::fs::Choice;
use oxenfs::workspace::ByHash;
use oxenfs::workspace::memory::Fault;

use super::{Mount, repo_path, tree};
use crate::world::{in_time, runtime};

impl Mount {
    /// The next request of that name is given up by the client, and carried out when the test says so.
    async fn gives_up(&self, name: &'static str, work: impl AsyncFnOnce()) {
        let mut left = 1;
        self.memory.hold_late();
        self.memory.set_fault(move |request| match request == name && left > 0 {
            true => {
                left -= 1;
                Fault::Late
            }
            false => Fault::None,
        });
        work().await;
        assert_eq!(self.drain().await, 0);
        self.memory.forget_faults();
        assert_eq!(self.memory.come_late(), 0);
    }

    /// What was given up is carried out when the server is asked for a commit; others commit, or do not, just then.
    fn meets_a_commit(&self, others_commit: bool) {
        let (memory, met) = (Arc::downgrade(&self.memory), AtomicBool::new(false));
        self.memory.set_witness(Arc::new(move |request| {
            let Some(memory) = memory.upgrade().filter(|_| request == "commit" && !met.swap(true, Ordering::SeqCst))
            else {
                return;
            };
            memory.end_late();
            if others_commit {
                let mut tree = memory.head_tree();
                tree.insert(repo_path("dir/of others"), "theirs".into());
                memory.commit_foreign(tree);
            }
        }));
    }
}

/// Nobody staged it in the end, and nobody else's workspace is it.
#[test]
fn what_comes_late_into_a_commit_is_taken_out_again() {
    for (answers_are_lost, others_commit) in [(false, false), (true, false), (false, true), (true, true)] {
        runtime(1).block_on(async {
            let mount = Mount::new(&[("kept", "old"), ("dir/kept", "old")]).await;
            mount.gives_up("send_small", async || mount.write("dir/gone", "not wanted any more").await).await;
            mount.unlink("dir/gone").await;
            assert_eq!(mount.drain().await, 0);
            mount.write("new", "new").await;
            assert_eq!(mount.drain().await, 0);
            mount.meets_a_commit(others_commit);
            // Nor can it be taken out at once: it is owed then.
            let mut left = u8::from(answers_are_lost);
            mount.memory.set_fault(move |request| match request == "remove" && left > 0 {
                true => {
                    left -= 1;
                    Fault::Lost
                }
                false => Fault::None,
            });
            mount.commit().await.unwrap();
            assert!(mount.memory.come_late() > 0, "nothing came late");
            let mut expected = tree(&[("dir/kept", "old"), ("kept", "old"), ("new", "new")]);
            if others_commit {
                expected.insert("dir/of others".to_owned(), "theirs".to_owned());
            }
            assert_eq!(mount.view().await, expected);
            assert_eq!(mount.head(), expected);
            mount.assert_sound();
        });
    }
}

/// It makes a directory of what is a file by now.
#[test]
fn what_comes_late_below_a_file_makes_way_for_it() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("kept", "old")]).await;
        mount.gives_up("send_small", async || mount.write("path/below", "not wanted any more").await).await;
        mount.remove_all("path").await.unwrap();
        mount.write("path", "a file").await;
        assert_eq!(mount.drain().await, 0);
        mount.meets_a_commit(false);
        mount.commit().await.unwrap();
        assert!(mount.memory.come_late() > 0, "nothing came late");
        let expected = tree(&[("kept", "old"), ("path", "a file")]);
        assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
        mount.assert_sound();
    });
}

/// In a workspace that others use too it may be theirs.
#[test]
fn what_comes_into_the_commit_of_a_shared_workspace_is_left_in_it() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[("kept", "old")]).await;
        mount.fs.share();
        mount.gives_up("send_small", async || mount.write("gone", "whose is it").await).await;
        mount.unlink("gone").await;
        assert_eq!(mount.drain().await, 0);
        mount.write("new", "new").await;
        assert_eq!(mount.drain().await, 0);
        mount.meets_a_commit(false);
        assert!(mount.commit_shared().await);
        assert_eq!(mount.head(), tree(&[("gone", "whose is it"), ("kept", "old"), ("new", "new")]));
    });
}

/// Its bytes are not here any more.
#[test]
fn what_was_staged_and_a_late_request_replaced_is_read_as_it_was_staged() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[]).await;
        mount.write("second", "the second").await;
        mount.gives_up("send_small", async || mount.write("new", "the first").await).await;
        mount.try_rename("second", "new").await.unwrap();
        assert_eq!(mount.drain().await, 0);
        let mount = mount.without_copies().await;
        mount.memory.end_late();
        assert!(mount.memory.come_late() > 0, "nothing came late");
        assert_eq!(mount.text("new").await.as_deref(), Some("the second"));
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[("new", "the second")]));
        mount.assert_sound();
    });
}

/// It is to be ignored under its new name, so that its bytes are brought here before they are staged no more.
#[test]
fn what_a_late_request_replaced_is_brought_here_though_its_file_has_another_name() {
    runtime(1).block_on(async {
        let mount = Mount::new(&[(".oxenignore", "*.tmp")]).await;
        mount.gives_up("send_small", async || mount.write("file", "the first").await).await;
        mount.write("file", "the second").await;
        assert_eq!(mount.drain().await, 0);
        let mount = mount.without_copies().await;
        mount.fs.judge().await.unwrap();
        mount.memory.end_late();
        mount.try_rename("file", "file.tmp").await.unwrap();
        assert_eq!(in_time("what is owed", mount.drain()).await, 0);
        assert_eq!(mount.text("file.tmp").await.as_deref(), Some("the second"));
        mount.commit().await.unwrap();
        assert_eq!(mount.head(), tree(&[(".oxenignore", "*.tmp")]));
        mount.assert_sound();
    });
}

/// A file of the base was staged under another name, and then renamed over one that is in conflict, which waits for a person;
/// its workspace was deleted.
#[test]
fn what_was_renamed_and_is_in_conflict_is_read_though_its_workspace_is_gone() {
    for by_hash in [ByHash::Never, ByHash::Single] {
        runtime(1).block_on(async {
            let mut mount = Mount::on(by_hash, &[("old", "renamed"), ("new", "base")]).await;
            mount.try_rename("old", "between").await.unwrap();
            assert_eq!(mount.drain().await, 0);
            mount.write("new", "ours").await;
            assert_eq!(mount.drain().await, 0);
            mount.they(&[("new", Some("theirs"))]);
            mount.refresh().await;
            assert_eq!(mount.conflicts(), ["new"]);
            mount.they(&[("between", Some("theirs too"))]);
            mount.memory.delete_workspace();
            mount.stop().await;
            mount.try_rename("between", "new").await.unwrap();
            let mount = mount.remount().await;
            assert_eq!(mount.conflicts(), ["new"]);
            assert_eq!(mount.text("new").await.as_deref(), Some("renamed"));
            mount.resolve("new", Choice::Ours).await;
            mount.commit().await.unwrap();
            let expected = tree(&[("between", "theirs too"), ("new", "renamed")]);
            assert_eq!((mount.head(), mount.view().await), (expected.clone(), expected));
            mount.assert_sound();
        });
    }
}

/// What it differs from is not what was known when the refresh began.
#[test]
fn what_is_decided_while_a_refresh_looks_at_the_branch_is_settled() {
    for choice in [Choice::Theirs, Choice::KeepBoth] {
        runtime(1).block_on(async {
            let mount = Mount::new(&[("file", "base")]).await;
            mount.write("file", "ours").await;
            assert_eq!(mount.drain().await, 0);
            mount.they(&[("file", Some("theirs"))]);
            mount.refresh().await;
            assert_eq!(mount.conflicts(), ["file"]);
            mount.they(&[("file", Some("theirs, and newer"))]);
            let ((looked, looks), (decided, decides)) = (channel(), channel());
            let (decides, left) = (Mutex::new(Some(decides)), Mutex::new(vec!["base", "changes", "renew"]));
            mount.memory.set_witness(Arc::new(move |request| {
                let mut left = left.lock().unwrap();
                if left.last() == Some(&request) {
                    left.pop();
                }
                // The last look before the record is brought up to what was found.
                if left.is_empty()
                    && let Some(decides) = decides.lock().unwrap().take()
                {
                    looked.send(()).unwrap();
                    decides.recv().unwrap();
                }
            }));
            let fs = mount.fs.clone();
            let refresh = tokio::spawn(async move { fs.follow_branch().await.unwrap() });
            tokio::task::block_in_place(|| looks.recv().unwrap());
            mount.resolve("file", choice).await;
            decided.send(()).unwrap();
            assert!(in_time("a refresh", refresh).await.unwrap().taken.moved);
            assert_eq!(in_time("what is owed", mount.drain()).await, 0);
            assert_eq!(mount.text("file").await.as_deref(), Some("theirs, and newer"));
            mount.commit().await.unwrap();
            assert_eq!(mount.head(), mount.view().await);
            mount.assert_sound();
        });
    }
}
