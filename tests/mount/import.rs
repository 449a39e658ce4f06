//! `oxenfs import`: what it takes in is there at once and as a whole, and reaches the branch byte for byte.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::dataset::{self, noise};
use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, local_tree, run, wait_until};
use crate::server;

fn import(test: &TestMount, paths: &[&Path]) -> Said {
    test.oxenfs([OsStr::new("import")].into_iter().chain(paths.iter().map(|path| path.as_os_str())))
}

/// Modes and modification times of all below a directory, links not followed.
fn looks(root: &Path) -> Vec<String> {
    let script = "cd \"$0\" && find . -mindepth 1 \\( -type l -printf '%P l %l %T@\\n' \\
                  -o -printf '%P %y %m %T@\\n' \\) | LC_ALL=C sort";
    run("sh", ["-c".as_ref(), script.as_ref(), root.as_os_str()]).lines().map(str::to_owned).collect()
}

#[test]
fn an_imported_dataset_looks_the_same_at_once_and_is_committed_byte_for_byte() {
    let test = TestMount::new();
    let source = test.beside("source");
    dataset::write(&source, 300);
    let (year, earlier) = (Duration::from_secs(31_557_600), Duration::new(86_400, 123_456_789));
    for (name, mode) in [("empty", 0o600), ("100%", 0o755), ("a+b", 0o444)] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
        fs::File::open(source.join(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH + year + earlier).unwrap();
    }
    symlink("nowhere/at all", source.join("link")).unwrap();
    fs::create_dir(source.join("nothing")).unwrap();
    fs::set_permissions(source.join("nothing"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::File::open(source.join("nothing")).unwrap().set_modified(SystemTime::UNIX_EPOCH + year).unwrap();
    fs::set_permissions(source.join("nothing"), fs::Permissions::from_mode(0o750)).unwrap();
    // The kernel has seen the directory before, and must not go by that.
    assert_eq!(test.dir.read_dir().unwrap().count(), 0);

    let said = import(&test, &[&source.join("."), &test.dir]).ok();
    assert!(said.out.is_empty() && said.err.contains("imported in"), "{said:#?}");
    assert_same(&local_tree(&test.dir), &local_tree(&source));
    assert_eq!(looks(&test.dir), looks(&source));
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&source));
}

#[test]
fn destinations_are_meant_as_cp_means_them() {
    let test = TestMount::new();
    let source = test.beside("source");
    for (at, name) in ["one", "two", "sub/three"].iter().enumerate() {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), noise(at as u64, 1000)).unwrap();
    }
    let twin = test.beside("twin");
    fs::write(test.at("file"), "old").unwrap();
    fs::write(twin.join("file"), "old").unwrap();
    let (one, sub) = (source.join("one"), source.join("sub"));
    let with_dot = source.join(".");
    let both: [(&[&Path], &str); 8] = [
        (&[&source], ""),
        (&[&source], "renamed"),
        (&[&sub], "slash/"),
        (&[&one, &sub], ""),
        (&[&with_dot], "renamed"),
        (&[&one], "file"),
        (&[&one], "renamed/sub/another"),
        (&[&source], "source"),
    ];
    for (sources, to) in both {
        let (here, there) = (test.at(to), twin.join(to));
        import(&test, &[sources, &[here.as_path()]].concat()).ok();
        let sources = sources.iter().map(|source| source.as_os_str());
        run("cp", [OsStr::new("-r")].into_iter().chain(sources).chain([there.as_os_str()]));
        assert_same(&local_tree(&test.dir), &local_tree(&twin));
    }
    // And what cp refuses.
    for (sources, to, why) in [
        (vec![&one, &sub], "none", "it is not a directory, and there are several sources"),
        (vec![&source], "file", "it is not a directory, and the source is one"),
        (vec![&one], "none/", "there is no such directory"),
        (vec![&one], "none/none", "not found"),
    ] {
        let to = test.at(to);
        let sources: Vec<&Path> = sources.into_iter().map(|source| source.as_path()).collect();
        let said = import(&test, &[&sources[..], &[&to]].concat());
        assert_eq!(said.exit, 1, "{said:#?}");
        let expected = format!("error: cannot import into {}: {why}\n", to.display());
        assert!(said.err.starts_with(&expected), "{said:#?}");
    }
    let itself = import(&test, &[&test.dir, &test.at("renamed")]);
    assert!(itself.exit == 1 && itself.err.contains("which is to be imported"), "{itself:#?}");
    // What is on the mount can be imported too.
    import(&test, &[&test.at("renamed"), &test.at("again")]).ok();
    assert_same(&local_tree(&test.at("again")), &local_tree(&test.at("renamed")));
    test.unmount_and_compare();
}

#[test]
fn a_file_that_is_there_is_replaced_in_one_step() {
    let test = TestMount::new();
    fs::write(test.at("kept"), "kept").unwrap();
    for name in ["open", "staged", "committed"] {
        fs::write(test.at(name), format!("the old {name}")).unwrap();
    }
    test.commit();
    fs::write(test.at("staged"), "staged, not committed").unwrap();
    test.sync();
    let open = fs::File::open(test.at("open")).unwrap();
    let before: Vec<u64> = ["open", "staged"].iter().map(|name| test.at(name).metadata().unwrap().ino()).collect();
    symlink("kept", test.at("link")).unwrap();

    let source = test.beside("source");
    for name in ["open", "staged", "committed", "link"] {
        fs::write(source.join(name), format!("the new {name}, which is longer")).unwrap();
    }
    import(&test, &[&source.join("."), &test.dir]).ok();
    for name in ["open", "staged", "committed", "link"] {
        assert_eq!(fs::read_to_string(test.at(name)).unwrap(), format!("the new {name}, which is longer"));
    }
    assert!(test.at("link").symlink_metadata().unwrap().is_file(), "a link is replaced, not followed");
    assert_eq!(fs::read_to_string(test.at("kept")).unwrap(), "kept");
    assert!(!before.contains(&test.at("open").metadata().unwrap().ino()));
    // Who had the old file open still has it.
    let mut old = [0; 12];
    open.read_exact_at(&mut old, 0).unwrap();
    assert_eq!(&old, b"the old open");
    drop(open);
    test.unmount_and_compare();
}

#[test]
fn what_cannot_be_imported_is_named_and_the_rest_is_there() {
    let test = TestMount::new();
    fs::write(test.at("dir"), "in the way").unwrap();
    fs::create_dir(test.at("file")).unwrap();
    let source = test.beside("source");
    fs::create_dir(source.join("dir")).unwrap();
    for name in ["dir/below", "file", "good", "not to be read"] {
        fs::write(source.join(name), name).unwrap();
    }
    run("mkfifo", [source.join("pipe")]);
    fs::write(source.join(OsString::from_vec(b"latin\xe9".to_vec())), "1").unwrap();
    let missing = source.join("missing");
    let said = import(&test, &[&source.join("."), &missing, &test.dir]);
    assert_eq!(said.exit, 1, "{said:#?}");
    let source = source.display();
    let mut lines: Vec<_> = said.err.lines().collect();
    let last = lines.pop().unwrap();
    lines.retain(|line| line.starts_with("not imported"));
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            format!("not imported: {source}/./dir: something that is not a directory has that name already"),
            format!("not imported: {source}/./file: a directory of that name is there already"),
            format!("not imported: {source}/./pipe: it is a FIFO, not a file"),
            format!("not imported: {source}/missing: no such file or directory"),
        ]
    );
    let dir = test.dir.display();
    assert_eq!(last, format!("error: cannot import into {dir}: 5 files could not be imported, the rest was"));
    assert_eq!(fs::read_to_string(test.at("good")).unwrap(), "good");
    assert_eq!(fs::read(test.at(OsString::from_vec(b"latin\xe9".to_vec()))).unwrap(), b"1");
    test.unmount_commit();
    let committed: Vec<_> = test.committed().into_keys().collect();
    assert_eq!(committed, ["dir", "good", "not to be read"]);
}

/// Every file that is there is one of the source, whole.
#[track_caller]
fn assert_whole(test: &TestMount, source: &Tree) -> usize {
    let there = local_tree(&test.dir);
    for (name, content) in &there {
        assert!(source.get(name) == Some(content), "{name} is there with {} bytes", content.len());
    }
    there.len()
}

/// Many files and a large one.
fn many(test: &TestMount) -> (std::path::PathBuf, Tree) {
    let source = test.beside("source");
    for at in 0..2000 {
        let dir = source.join(format!("dir{}", at % 7));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{at}")), noise(at, 3000 + at as usize)).unwrap();
    }
    fs::write(source.join("large"), noise(1, 50 << 20)).unwrap();
    let tree = local_tree(&source);
    (source, tree)
}

#[test]
fn a_daemon_killed_in_an_import_leaves_each_file_whole_or_absent() {
    let test = TestMount::new();
    let (source, tree) = many(&test);
    let importing = test.spawn([OsStr::new("import"), source.join(".").as_os_str(), test.dir.as_os_str()]);
    wait_until("a part to be there", || test.at("dir3").read_dir().is_ok_and(|dir| dir.count() > 20));
    test.signal(Signal::KILL);
    let said = Said::from(importing.wait_with_output().unwrap());
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.contains("the mount's daemon ended before it answered"), "{said:#?}");
    test.mount(&[]).ok();
    let there = assert_whole(&test, &tree);
    assert!((20..tree.len()).contains(&there), "{there}: the kill came too early or too late");
    // Again, and now to the end.
    import(&test, &[&source.join("."), &test.dir]).ok();
    assert_same(&local_tree(&test.dir), &tree);
    test.signal(Signal::KILL);
    test.mount(&[]).ok();
    assert_same(&local_tree(&test.dir), &tree);
    test.unmount_commit();
    assert_same(&test.committed(), &tree);
}

#[test]
fn an_interrupted_import_stops_and_says_what_is_there() {
    let test = TestMount::new();
    let (source, tree) = many(&test);
    let importing = test.spawn([OsStr::new("import"), source.join(".").as_os_str(), test.dir.as_os_str()]);
    wait_until("a part to be there", || test.at("dir3").read_dir().is_ok_and(|dir| dir.count() > 20));
    let pid = rustix::process::Pid::from_child(&importing);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let said = Said::from(importing.wait_with_output().unwrap());
    assert_eq!(said.exit, 1, "{said:#?}");
    let there = assert_whole(&test, &tree);
    assert!(there < tree.len(), "the interrupt came too late");
    assert!(said.err.contains(": interrupted; ") && said.err.contains(" are imported, each whole"), "{said:#?}");
    assert!(said.err.ends_with("hint: repeat the command to import the rest\n"), "{said:#?}");
    // Nothing comes after the command has ended, and nothing is left in the way.
    assert_eq!(assert_whole(&test, &tree), there);
    import(&test, &[&source.join("."), &test.dir]).ok();
    assert_same(&local_tree(&test.dir), &tree);
    test.unmount_and_compare();
}

#[test]
fn a_full_spool_ends_an_import_in_words() {
    let test = TestMount::with(server::url(), &["--spool-limit", "1M", "--settle", "3600"]);
    let source = test.beside("source");
    for at in 0..20 {
        fs::write(source.join(format!("{at:02}")), noise(at, 100_000)).unwrap();
    }
    let tree = local_tree(&source);
    let said = import(&test, &[&source.join("."), &test.dir]);
    assert_eq!(said.exit, 1, "{said:#?}");
    let dir = test.dir.display();
    assert!(said.err.contains(&format!("error: cannot import into {dir}: no space left in the spool; ")), "{said:#?}");
    assert!(
        said.err.contains(&format!("hint: wait until some of it is on the server, oxenfs sync {dir}, ")),
        "{said:#?}"
    );
    let there = assert_whole(&test, &tree);
    assert!((1..=10).contains(&there), "{there} files of 100 kB in 1 MiB");
    while import(&test, &[&source.join("."), &test.dir]).exit != 0 {
        test.sync();
        for at in 0..20 {
            // What is there need not be imported again.
            if test.at(format!("{at:02}")).exists() {
                let _ = fs::remove_file(source.join(format!("{at:02}")));
            }
        }
    }
    assert_same(&local_tree(&test.dir), &tree);
    test.unmount_and_compare();
}

#[test]
fn a_read_only_mount_and_no_mount_take_nothing_in() {
    let test = TestMount::new();
    let source = test.beside("source");
    fs::write(source.join("file"), "1").unwrap();
    let nowhere = test.beside("nowhere");
    let said = import(&test, &[&source, &nowhere]);
    let expected = format!("error: cannot import into {}: no oxenfs mount is there\n", nowhere.display());
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.starts_with(&expected), "{said:#?}");
    test.unmount();
    test.mount(&["--read-only"]).ok();
    let said = import(&test, &[&source, &test.dir]);
    assert_eq!(said.err, format!("error: cannot import into {}: read-only mount\n", test.dir.display()));
    assert_eq!(said.exit, 1);
    test.unmount();
}
