//! `oxenfs restore`: what was changed goes back to what the branch has, and comes back by `--undo`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::mounted::{Said, TestMount, local_tree};

fn write(test: &TestMount, name: &str, content: &str) {
    let path = test.at(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// `oxenfs restore` of these paths on the mount, with these options.
fn restore(test: &TestMount, options: &[&str], paths: &[&str]) -> Said {
    let paths: Vec<String> = paths.iter().map(|path| test.at(path).to_str().unwrap().to_owned()).collect();
    let arguments = ["restore"].iter().copied().chain(options.iter().copied()).chain(paths.iter().map(String::as_str));
    test.oxenfs(arguments)
}

/// A mount with four committed files.
fn committed() -> TestMount {
    let test = TestMount::new();
    for name in ["kept", "gone", "dir/old", "dir/same"] {
        write(&test, name, name);
    }
    test.commit();
    test
}

/// One change of each kind.
fn change(test: &TestMount) {
    write(test, "kept", "modified");
    fs::remove_file(test.at("gone")).unwrap();
    fs::rename(test.at("dir/old"), test.at("dir/moved")).unwrap();
    write(test, "made/deep/new", "added");
}

#[test]
fn what_was_changed_goes_back_and_an_undo_brings_it_back() {
    let test = committed();
    let base = local_tree(&test.dir);
    for staged in [false, true] {
        change(&test);
        let changed = local_tree(&test.dir);
        if staged {
            test.sync();
        }
        // Nobody can be asked here.
        let said = restore(&test, &[], &[""]);
        assert_eq!(said.exit, 2, "{said:?}");
        assert!(said.err.contains("remove ") && said.err.contains("made/deep/new"), "{said:?}");
        assert!(said.err.contains("--yes"), "{said:?}");
        assert_eq!(local_tree(&test.dir), changed);
        let said = restore(&test, &["--yes", "--json"], &[""]).ok();
        let told: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(told["restored"].as_array().unwrap().len(), 5, "{said:?}");
        assert_eq!(local_tree(&test.dir), base);
        assert!(!test.at("made").exists());
        test.sync();
        assert_eq!(test.staged_paths(), [""; 0]);
        restore(&test, &["--undo", "--yes"], &[""]).ok();
        assert_eq!(local_tree(&test.dir), changed);
        test.sync();
        assert_eq!(test.staged_paths().len(), 5);
        restore(&test, &["--yes"], &[""]).ok();
    }
    test.unmount_and_compare();
}

#[test]
fn a_directory_and_a_single_file_are_restored_alone() {
    let test = committed();
    change(&test);
    fs::set_permissions(test.at("kept"), fs::Permissions::from_mode(0o640)).unwrap();
    let discard =
        ["discard", "--yes", test.at("dir").to_str().unwrap(), test.at("kept").to_str().unwrap()].map(str::to_owned);
    test.oxenfs(&discard).ok();
    assert_eq!(fs::read(test.at("dir/old")).unwrap(), b"dir/old");
    assert!(!test.at("dir/moved").exists());
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"kept");
    assert_eq!(fs::metadata(test.at("kept")).unwrap().permissions().mode() & 0o777, 0o640, "the mode stays");
    assert!(!test.at("gone").exists());
    assert_eq!(fs::read(test.at("made/deep/new")).unwrap(), b"added");
    // One of them comes back.
    restore(&test, &["--undo", "--yes"], &["kept"]).ok();
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"modified");
    assert!(!test.at("dir/moved").exists());
    restore(&test, &["--undo", "--yes"], &["dir"]).ok();
    assert_eq!(fs::read(test.at("dir/moved")).unwrap(), b"dir/old");
    test.unmount_and_compare();
}

#[test]
fn an_undo_survives_a_remount_and_refuses_what_was_changed_since() {
    let test = committed();
    change(&test);
    restore(&test, &["--yes"], &[""]).ok();
    test.unmount();
    test.mount(&[]).ok();
    write(&test, "kept", "since");
    let before = local_tree(&test.dir);
    let said = restore(&test, &["--undo", "--yes"], &[""]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("kept has changed since"), "{said:?}");
    assert_eq!(local_tree(&test.dir), before);
    // What was not changed comes back by its name.
    restore(&test, &["--undo", "--yes"], &["made", "gone"]).ok();
    assert_eq!(fs::read(test.at("made/deep/new")).unwrap(), b"added");
    assert!(!test.at("gone").exists());
    // With a commit, what was dropped before goes.
    test.commit();
    let said = restore(&test, &["--undo", "--yes"], &["kept"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("nothing that a restore dropped is kept there"), "{said:?}");
    test.unmount_and_compare();
}

#[test]
fn what_a_program_has_open_for_writing_is_not_dropped() {
    let test = committed();
    let mut open = fs::File::create(test.at("kept")).unwrap();
    write(&test, "made/new", "added");
    open.write_all(b"more").unwrap();
    let before = fs::read(test.at("made/new")).unwrap();
    let said = restore(&test, &["--yes"], &[""]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("kept is open for writing"), "{said:?}");
    assert_eq!(fs::read(test.at("made/new")).unwrap(), before);
    drop(open);
    restore(&test, &["--yes"], &[""]).ok();
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"kept");
    test.unmount_and_compare();
}

#[test]
fn what_is_kept_counts_against_the_limit_and_makes_way_for_a_writer() {
    let test = TestMount::with(crate::server::url(), &["--spool-limit", "1M"]);
    fs::write(test.at("large"), vec![7; 600 << 10]).unwrap();
    test.sync();
    restore(&test, &["--yes"], &[""]).ok();
    let status = test.wait_status("the spool to hold what is kept alone", |status| {
        status["spool_bytes"].as_u64().unwrap() < 700 << 10
    });
    assert!(status["spool_bytes"].as_u64().unwrap() >= 600 << 10, "{status:#}");
    fs::write(test.at("other"), vec![8; 700 << 10]).unwrap();
    let said = restore(&test, &["--undo", "--yes"], &["large"]);
    assert_eq!(said.exit, 1, "{said:?}");
    test.sync();
    test.unmount_and_compare();
}

#[test]
fn another_revision_is_put_in_place_and_staged() {
    let test = committed();
    let old = test.status()["base"].as_str().unwrap().to_owned();
    let before = local_tree(&test.dir);
    change(&test);
    test.commit();
    let after = local_tree(&test.dir);
    write(&test, "kept", "not committed");
    let said = restore(&test, &["--source", &old, "--yes"], &[""]).ok();
    assert!(said.err.contains("5 files restored"), "{said:?}");
    assert_eq!(local_tree(&test.dir), before);
    restore(&test, &["--undo", "--yes"], &[""]).ok();
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"not committed");
    restore(&test, &["--source", "main", "--yes"], &[""]).ok();
    assert_eq!(local_tree(&test.dir), after);
    restore(&test, &["--source", &old, "--yes"], &["dir", "gone"]).ok();
    assert_eq!(fs::read(test.at("gone")).unwrap(), b"gone");
    assert!(test.at("dir/old").exists() && !test.at("dir/moved").exists());
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"modified");
    let said = restore(&test, &["--source", "nowhere", "--yes"], &["dir"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("no branch and no commit nowhere"), "{said:?}");
    test.unmount_and_compare();
}

#[test]
fn a_file_in_the_place_of_a_directory_goes_and_the_other_way_round() {
    let test = committed();
    fs::remove_dir_all(test.at("dir")).unwrap();
    write(&test, "dir", "a file");
    fs::remove_file(test.at("gone")).unwrap();
    write(&test, "gone/below", "in a directory");
    let said = restore(&test, &["--yes"], &["dir/old"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("dir is in the way of dir/old"), "{said:?}");
    std::os::unix::fs::symlink("x", test.at("gone/link")).unwrap();
    let said = restore(&test, &["--yes"], &["gone"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("gone/link is in the way of gone"), "{said:?}");
    fs::remove_file(test.at("gone/link")).unwrap();
    restore(&test, &["--yes"], &[""]).ok();
    assert_eq!(fs::read(test.at("dir/old")).unwrap(), b"dir/old");
    assert_eq!(fs::read(test.at("gone")).unwrap(), b"gone");
    test.unmount_and_compare();
}

#[test]
fn what_is_only_unstaged_is_held_back_until_it_is_written_again() {
    let test = committed();
    write(&test, "kept", "held");
    write(&test, "made/new", "staged");
    fs::remove_file(test.at("gone")).unwrap();
    test.sync();
    let said = restore(&test, &["--staged", "--yes"], &["kept", "gone"]).ok();
    assert!(said.err.contains("2 files unstaged"), "{said:?}");
    assert_eq!(test.staged_paths(), ["made/new"]);
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"held");
    // Neither a barrier nor a commit takes it along, nor one waits for it.
    test.sync();
    test.commit();
    assert_eq!(test.committed_file("kept").unwrap(), b"kept");
    assert_eq!(test.committed_file("gone").unwrap(), b"gone");
    assert_eq!(test.committed_file("made/new").unwrap(), b"staged");
    assert_eq!(fs::read(test.at("kept")).unwrap(), b"held");
    let said = test.oxenfs(["unmount", test.dir.to_str().unwrap()]);
    assert_eq!(said.exit, 3, "{said:?}");
    test.assert_gone();
    test.mount(&[]).ok();
    test.sync();
    assert_eq!(test.staged_paths(), [""; 0]);
    assert!(!test.at("gone").exists());
    // Written again, or named, it goes.
    write(&test, "kept", "written again");
    test.sync();
    assert_eq!(test.staged_paths(), ["kept"]);
    test.oxenfs(["sync", test.at("gone").to_str().unwrap()]).ok();
    assert_eq!(test.staged_paths().len(), 2);
    test.unmount_and_compare();
}
