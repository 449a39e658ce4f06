//! What a path was in the base, what it became, and what the commit must hold; with everything staged after each step,
//! so that the server sees every state between.

use std::fs;
use std::path::Path;

use crate::dataset::noise;
use crate::http::assert_same;
use crate::mounted::{Said, TestMount, local_tree, shell};
use crate::scripted::Scripted;

/// A mount with a committed base, beside an ordinary directory to which the same is done.
struct Twins {
    test: TestMount,
    plain: std::path::PathBuf,
}

impl Twins {
    #[track_caller]
    fn new() -> Self {
        let test = TestMount::new();
        let plain = test.beside("plain");
        let twins = Self { test, plain };
        twins.apply(|root| {
            for dir in ["dir/sub/deep", "other", "gone"] {
                fs::create_dir_all(root.join(dir)).unwrap();
            }
            let small = ["a", "b", "same", "dir/one", "dir/two", "dir/sub/three", "dir/sub/deep/four", "other/five"];
            for (at, path) in small.iter().enumerate() {
                fs::write(root.join(path), noise(at as u64, 100 + at)).unwrap();
            }
            fs::write(root.join("gone/six"), noise(6, 300_000)).unwrap();
            fs::write(root.join("large"), noise(7, 300_000)).unwrap();
        });
        twins.test.commit();
        twins
    }

    /// Does the same in both places.
    #[track_caller]
    fn apply(&self, act: impl Fn(&Path)) -> &Self {
        act(&self.test.dir);
        act(&self.plain);
        self
    }

    #[track_caller]
    fn shell(&self, script: &str) -> &Self {
        self.apply(|root| drop(shell(root, script)))
    }

    #[track_caller]
    fn sync(&self) -> &Self {
        self.test.sync();
        self
    }

    /// Another daemon in the same workspace, which knows only what the server has: nothing is listed yet.
    #[track_caller]
    fn fresh(&self) -> &Self {
        let workspace = self.test.status()["workspace"].as_str().unwrap().to_owned();
        self.test.unmount();
        self.test.forget();
        self.test.mount(&["--workspace", &workspace]).ok();
        self
    }

    #[track_caller]
    fn commit_and_compare(&self) {
        self.test.commit();
        let expected = local_tree(&self.plain);
        assert_same(&self.test.committed(), &expected);
        assert_same(&local_tree(&self.test.dir), &expected);
        self.test.unmount();
        assert_same(&self.test.committed(), &expected);
    }
}

#[test]
fn a_file_changed_and_changed_back_is_the_base_file() {
    let twins = Twins::new();
    twins.apply(|root| {
        fs::write(root.join("a"), "changed").unwrap();
        fs::write(root.join("large"), "changed").unwrap();
    });
    twins.sync().apply(|root| {
        fs::write(root.join("a"), noise(0, 100)).unwrap();
        fs::write(root.join("large"), noise(7, 300_000)).unwrap();
        fs::write(root.join("new"), "so that there is something to commit").unwrap();
    });
    twins.sync();
    assert_eq!(twins.test.staged_paths(), ["new"]);
    twins.commit_and_compare();
}

#[test]
fn a_file_removed_and_restored_is_the_base_file() {
    let twins = Twins::new();
    twins.shell("rm a dir/one large").sync().apply(|root| {
        fs::write(root.join("a"), noise(0, 100)).unwrap();
        fs::write(root.join("large"), noise(7, 300_000)).unwrap();
        fs::write(root.join("dir/one"), noise(3, 103)).unwrap();
        fs::write(root.join("new"), "so that there is something to commit").unwrap();
    });
    twins.sync();
    assert_eq!(twins.test.staged_paths(), ["new"]);
    twins.commit_and_compare();
}

#[test]
fn a_file_renamed_away_and_back_is_the_base_file() {
    let twins = Twins::new();
    twins.shell("mv a c; mv large dir/").sync().shell("mv c a; mv dir/large .; echo x > new").sync();
    assert_eq!(twins.test.staged_paths(), ["new"]);
    twins.commit_and_compare();
}

#[test]
fn a_directory_renamed_away_and_back_is_the_base_directory() {
    let twins = Twins::new();
    twins.shell("mv dir moved").sync().shell("mv moved dir; echo x > new").sync();
    assert_eq!(twins.test.staged_paths(), ["new"]);
    twins.commit_and_compare();
}

#[test]
fn a_file_gives_way_to_a_directory() {
    let twins = Twins::new();
    twins.shell("rm a").sync().shell("mkdir a; echo 1 > a/inside; mkdir a/deep; echo 2 > a/deep/er").sync();
    twins.shell("rm b; mkdir b; mv dir/one b/").sync().commit_and_compare();
}

#[test]
fn a_directory_gives_way_to_a_file() {
    let twins = Twins::new();
    twins.shell("rm -r dir").sync().shell("echo a file now > dir").sync();
    twins.shell("rm -r other; mv b other").sync().commit_and_compare();
}

#[test]
fn a_file_gives_way_to_a_directory_and_comes_back() {
    let twins = Twins::new();
    twins.shell("mv a aside; mkdir a; echo 1 > a/inside").sync().shell("rm -r a; mv aside a; echo x > new").sync();
    assert_eq!(twins.test.staged_paths(), ["new"]);
    twins.commit_and_compare();
}

#[test]
fn two_files_change_places() {
    let twins = Twins::new();
    twins.shell("mv a t; mv b a; mv t b").sync().shell("mv large t").sync().shell("mv dir/one large; mv t dir/one");
    twins.sync().commit_and_compare();
}

#[test]
fn two_directories_change_places() {
    let twins = Twins::new();
    twins.shell("mv dir t; mv other dir; mv t other").sync().commit_and_compare();
}

#[test]
fn a_directory_takes_the_name_of_one_removed_before() {
    let twins = Twins::new();
    twins.shell("rm -r other; mv dir other").sync().commit_and_compare();
    let twins = Twins::new();
    twins.shell("rm -r other").sync().shell("mv dir other").sync().shell("echo 7 > other/seven").commit_and_compare();
}

#[test]
fn a_directory_that_nobody_listed_is_renamed_whole() {
    let twins = Twins::new();
    twins.fresh().shell("mv dir moved").sync().shell("mv moved/sub other/sub; mv gone moved/gone").sync();
    twins.commit_and_compare();
}

#[test]
fn a_directory_that_nobody_listed_is_removed_whole() {
    let twins = Twins::new();
    twins.fresh().shell("rm -r dir; mv other dir").sync().commit_and_compare();
}

#[test]
fn a_renamed_directory_survives_a_remount_before_it_is_committed() {
    let twins = Twins::new();
    twins.shell("mv dir moved; echo more >> moved/one; rm moved/two").fresh();
    assert_same(&local_tree(&twins.test.dir), &local_tree(&twins.plain));
    twins.shell("mv moved/sub sub").commit_and_compare();
}

#[test]
fn a_removed_directory_leaves_no_empty_one_in_the_commit() {
    let twins = Twins::new();
    twins.shell("rm -r dir/sub/deep").sync().shell("rm -r gone; rm other/five").sync().commit_and_compare();
}

#[test]
fn a_directory_whose_last_file_was_only_staged_leaves_no_empty_one_either() {
    let twins = Twins::new();
    twins.shell("echo new > dir/sub/deep/new").sync().shell("rm dir/sub/deep/four").sync();
    twins.shell("rm dir/sub/deep/new").sync().shell("rm -r dir/sub").sync().commit_and_compare();
}

#[test]
fn a_directory_of_links_and_fifos_alone_is_none_in_the_commit() {
    let twins = Twins::new();
    twins.shell("ln -s nowhere dir/sub/deep/link; mkfifo other/fifo").sync();
    twins.shell("rm dir/sub/deep/four other/five; rm -r gone").sync();
    twins.shell("rm -r dir/sub other").sync().commit_and_compare();
}

#[test]
fn a_directory_that_only_an_unstaged_file_kept_leaves_no_empty_one_either() {
    let twins = Twins::new();
    let open = |root: &Path| fs::File::create(root.join("dir/sub/deep/open")).unwrap();
    let files = [open(&twins.test.dir), open(&twins.plain)];
    // The rest is staged while the file, still open, is not.
    twins.shell("rm dir/sub/deep/four dir/sub/three; ln -s x dir/sub/link");
    twins.test.wait_status("the removals to be staged", |status| {
        let counts = &status["counts"];
        counts["removals"]["files"] == 0 && counts["staged"]["files"] == 2
    });
    twins.shell("rm dir/sub/deep/open");
    drop(files);
    twins.shell("rmdir dir/sub/deep").commit_and_compare();
}

#[test]
fn a_directory_emptied_a_little_at_a_time_leaves_no_empty_one_either() {
    let test = TestMount::unmounted(crate::server::url());
    // So short that removals are staged while others are made.
    test.mount(&["--create", "--settle", "0.02"]).ok();
    fs::write(test.at("keep"), "kept").unwrap();
    for round in 0..10 {
        shell(&test.dir, "mkdir -p E/b/c; echo 1 > E/a; echo 2 > E/b/b; echo 3 > E/b/c/c");
        test.commit();
        shell(&test.dir, "rm E/b/b; rm E/a E/b/c/c; sleep 0.05; rm -r E");
        test.commit();
        assert_eq!(test.committed().into_keys().collect::<Vec<_>>(), ["keep"], "round {round}");
    }
}

/// As where somebody deleted the workspace, or a machine was cloned.
#[test]
fn what_is_removed_and_staged_again_by_a_mount_that_never_looked_there_leaves_no_empty_directory_either() {
    let url = crate::server::url();
    let files = ["keep", "E/a", "E/b/c/c", "F/g/h/i"].map(|path| (path.to_owned(), path.as_bytes().to_vec()));
    for synced in [false, true] {
        let test = TestMount::committed_by(url, files.iter().map(|(path, bytes)| (path, bytes)));
        test.mount(&[]).ok();
        shell(&test.dir, "rm E/a E/b/c/c F/g/h/i");
        test.sync();
        let workspace = test.status()["workspace"].as_str().unwrap().to_owned();
        test.signal(rustix::process::Signal::KILL);
        test.detach();
        let at = format!("/api/repos/{}/workspaces/{workspace}", test.repo);
        assert_eq!(crate::http::ask(url, "DELETE", &at, &serde_json::Value::Null).unwrap().0, 200);
        test.mount(&["--settle", "3600"]).ok();
        if synced {
            test.sync();
        }
        test.commit();
        assert_eq!(test.committed().into_keys().collect::<Vec<_>>(), ["keep"], "synced: {synced}");
        test.unmount();
    }
}

#[test]
fn removing_everything_leaves_an_empty_branch() {
    let twins = Twins::new();
    twins.shell("rm -r ./*").sync().commit_and_compare();
}

#[test]
fn files_of_one_length_that_were_stored_together_exchange_their_contents() {
    const FILES: usize = 400;
    let test = TestMount::new();
    for at in 0..FILES {
        fs::write(test.at(format!("file{at}")), noise(at as u64, 100)).unwrap();
    }
    test.unmount_commit();
    test.mount(&["--settle", "3600"]).ok();
    for at in (0..FILES).step_by(2) {
        let [one, other, aside] =
            [format!("file{at}"), format!("file{}", at + 1), "aside".to_owned()].map(|name| test.at(&name));
        fs::rename(&one, &aside).unwrap();
        fs::rename(&other, &one).unwrap();
        fs::rename(&aside, &other).unwrap();
    }
    test.unmount_and_compare();
}

#[test]
fn what_is_changed_soon_after_it_was_committed_is_committed_again() {
    let test = TestMount::new();
    let names = ["a", "b", "c"];
    let mut content = noise(4, 3 << 20);
    for name in names {
        fs::write(test.at(name), &content).unwrap();
    }
    test.commit();
    // As long as before, and so large that they travel at the same time.
    for name in names {
        content[..1].copy_from_slice(name.as_bytes());
        fs::write(test.at(name), &content).unwrap();
    }
    test.unmount_and_compare();
}

/// Servers take such content for what the branch has there, and one kind cannot be told otherwise: there a commit makes
/// way for it first (T3).
#[test]
fn contents_of_one_length_that_were_stored_together_change_places_on_every_server() {
    const WAYS: [&str; 5] = [
        "cp y x",
        "mv y x",
        "mv x t; mv y x; mv t y",
        "mv d/x t; mv d/y d/x; mv t d/y; cp z y; echo other > other",
        "rm x; mv y x; cp x d/y; mv d/x y",
    ];
    std::thread::scope(|scope| {
        for dialect in ["documented", "0.50", "0.58", "0.65"] {
            scope.spawn(move || {
                let server = Scripted::speaking(dialect);
                for (at, way) in WAYS.into_iter().enumerate() {
                    one_length(&server, dialect, way, at);
                }
            });
        }
    });
}

fn one_length(server: &Scripted, dialect: &str, way: &str, at: usize) {
    let test = TestMount::through(&server.url());
    let plain = test.beside("plain");
    for root in [&test.dir, &plain] {
        fs::create_dir(root.join("d")).unwrap();
        for (seed, name) in ["x", "y", "z", "d/x", "d/y"].into_iter().enumerate() {
            fs::write(root.join(name), noise(seed as u64, 1000)).unwrap();
        }
    }
    test.commit();
    server.store_together();
    if at.is_multiple_of(2) {
        // Only the server has the bytes.
        test.unmount();
        test.forget();
        test.mount(&[]).ok();
    }
    shell(&test.dir, way);
    shell(&plain, way);
    let expected = local_tree(&plain);
    let dir = test.dir.to_str().unwrap();
    if at >= 2 {
        let said: Said = test.oxenfs(["sync", dir]);
        match dialect {
            "documented" => assert!(said.exit == 3 && said.err.contains("the next commit brings it"), "{said:#?}"),
            _ => drop(said.ok()),
        }
    }
    if at == 3 {
        test.signal(rustix::process::Signal::KILL);
        test.mount(&[]).ok();
    }
    if at == 4 {
        test.unmount_commit();
    } else {
        let said = test.oxenfs(["commit", dir, "-m", "a way", "--author", "A", "--email", "a@x"]);
        assert!(said.exit == 0, "{dialect}, {way}: {said:#?}");
        assert_same(&local_tree(&test.dir), &expected);
        test.unmount();
    }
    assert_same(&server.committed(&test.repo), &expected);
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &expected);
    test.unmount();
}
