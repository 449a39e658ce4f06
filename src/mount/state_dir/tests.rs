use super::*;

fn identity(mountpoint: &str) -> Identity {
    Identity {
        server: "http://127.0.0.1:3000".into(),
        repo: "ox/cats".into(),
        workspace: "w".into(),
        subdir: String::new(),
        branch: "main".into(),
        revision: None,
        mountpoint: mountpoint.into(),
    }
}

fn prepared(root: &Path) -> PathBuf {
    prepare_root(root, Path::new("/nowhere")).unwrap().0
}

#[test]
fn one_daemon_has_a_state_directory() {
    let temp = tempfile::tempdir().unwrap();
    let root = prepared(&temp.path().join("state"));
    let held = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    match StateDir::open(&root, &identity("/mnt/b")) {
        Err(StateError::Locked { pid, mountpoint, .. }) => {
            assert_eq!(pid, std::process::id());
            assert_eq!(mountpoint, Path::new("/mnt/a"));
        }
        other => panic!("{other:?}"),
    }
    let listing = StateDir::list(&root).unwrap();
    assert_eq!(listing.known.len(), 1);
    assert_eq!(listing.known[0].holder(), Some(std::process::id()));
    drop(held);
    assert_eq!(listing.known[0].holder(), None);
    let again = StateDir::open(&root, &identity("/mnt/b")).unwrap();
    assert_eq!(again.path(), listing.known[0].path);
}

#[test]
fn mounts_that_differ_in_what_they_show_do_not_share_state() {
    let base = identity("/mnt/a");
    let mut others = vec![base.clone(); 5];
    others[0].server.push('0');
    others[1].repo.push('x');
    others[2].workspace.push('x');
    others[3].subdir.push('x');
    others[4].revision = Some(String::new());
    for other in others {
        assert_ne!(base.dir_name(), other.dir_name());
    }
    let moved = identity("/mnt/b");
    assert_eq!(base.dir_name(), moved.dir_name());
}

#[test]
fn roots_and_directories_are_closed_to_others() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("deep/state");
    let root = prepared(&root);
    let state = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    for dir in [root.as_path(), state.path()] {
        assert_eq!(std::fs::metadata(dir).unwrap().mode() & 0o777, 0o700, "{dir:?}");
    }
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
    prepared(&root);
    assert_eq!(std::fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_directory_with_other_things_that_others_can_enter_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(temp.path().join("thesis.txt"), "x").unwrap();
    let refused = prepare_root(temp.path(), Path::new("/nowhere"));
    assert!(matches!(refused, Err(StateError::Exposed { .. })), "{refused:?}");
}

#[test]
fn a_root_inside_the_mount_point_is_refused_before_it_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let mountpoint = temp.path().canonicalize().unwrap();
    let root = mountpoint.join("a/state");
    let refused = prepare_root(&root, &mountpoint);
    assert!(matches!(refused, Err(StateError::InsideMount { .. })), "{refused:?}");
    assert!(!mountpoint.join("a").exists());
}

#[test]
fn the_control_socket_works_under_a_path_too_long_for_an_address() {
    let temp = tempfile::tempdir().unwrap();
    let root = prepared(&temp.path().join("x".repeat(150)));
    let state = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    let gone = connect_control(state.path()).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    let listener = state.bind_control().unwrap();
    connect_control(state.path()).unwrap();
    listener.accept().unwrap();
    drop(listener);
    let gone = connect_control(state.path()).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    state.bind_control().unwrap();
}

#[test]
fn a_mount_with_another_root_is_found_from_the_default_one() {
    let temp = tempfile::tempdir().unwrap();
    let (root, default) = (prepared(&temp.path().join("a")), temp.path().join("b"));
    let state = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    state.announce(&default).unwrap();
    state.announce(&default).unwrap();
    let listing = StateDir::list(&default).unwrap();
    assert_eq!(listing.known[0].path, state.path());
    // Mounted without naming the other root again, it goes on where the data is.
    drop(state);
    let default = prepared(&default);
    let again = StateDir::open(&default, &identity("/mnt/a")).unwrap();
    assert!(again.path().starts_with(&root));
    drop(again);
    std::fs::remove_dir_all(&root).unwrap();
    assert!(StateDir::list(&default).unwrap().known.is_empty());
    let anew = StateDir::open(&default, &identity("/mnt/a")).unwrap();
    assert!(anew.path().starts_with(&default));
}

#[test]
fn a_directory_without_its_description_is_reported_not_hidden() {
    let temp = tempfile::tempdir().unwrap();
    let root = prepared(temp.path());
    let state = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    std::fs::write(state.path().join(META), "{").unwrap();
    let listing = StateDir::list(&root).unwrap();
    assert!(listing.known.is_empty());
    assert_eq!(listing.unreadable[0].0, state.path());
}

#[test]
fn who_removes_the_lock_file_lets_no_second_daemon_in() {
    let temp = tempfile::tempdir().unwrap();
    let root = prepared(&temp.path().join("state"));
    let held = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    std::fs::remove_file(held.path().join(LOCK)).unwrap();
    match StateDir::open(&root, &identity("/mnt/b")) {
        Err(StateError::Locked { pid, .. }) => assert_eq!(pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(hold(held.path()), Err(StateError::Locked { .. })));
    assert_eq!(StateDir::list(&root).unwrap().known[0].holder(), Some(std::process::id()));
    drop(held);
    assert_eq!(StateDir::list(&root).unwrap().known[0].holder(), None);
    StateDir::open(&root, &identity("/mnt/b")).unwrap();
}

#[test]
fn a_description_that_is_not_as_it_was_written_is_refused_before_anything_is_touched() {
    let temp = tempfile::tempdir().unwrap();
    let root = prepared(&temp.path().join("state"));
    let path = StateDir::open(&root, &identity("/mnt/a")).unwrap().path().join(META);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 7);
        std::fs::write(&path, &bytes).unwrap();
        match StateDir::open(&root, &identity("/mnt/b")) {
            Err(StateError::Damaged { path: named, .. }) => assert_eq!(named, path),
            // White space says nothing.
            Ok(state) => assert!(whole[at].is_ascii_whitespace(), "byte {at}: {:?}", state.meta),
            other => panic!("byte {at}: {other:?}"),
        }
        if !whole[at].is_ascii_whitespace() {
            assert!(std::fs::read(&path).unwrap() == bytes, "refused, and changed");
        }
    }
    std::fs::write(&path, &whole).unwrap();
    let aside = path.with_file_name("meta.json.damaged");
    assert_eq!(set_meta_aside(path.parent().unwrap()).unwrap(), aside);
    StateDir::open(&root, &identity("/mnt/a")).unwrap();
    assert!(path.exists() && aside.exists());
}

#[test]
fn a_description_of_a_newer_oxenfs_is_refused_and_its_fields_are_kept() {
    let temp = tempfile::tempdir().unwrap();
    let root = prepared(&temp.path().join("state"));
    let mut state = StateDir::open(&root, &identity("/mnt/a")).unwrap();
    state.meta.rest.insert("colour".into(), "green".into());
    state.write_meta().unwrap();
    let path = state.path().to_owned();
    drop(state);
    let mut state = StateDir::open(&root, &identity("/mnt/b")).unwrap();
    assert!(std::fs::read_to_string(path.join(META)).unwrap().contains("\"colour\": \"green\""));
    let newer = [
        Formats { journal: 99, ..Formats::default() },
        Formats { cache: 99, ..Formats::default() },
        Formats { rest: [("index".into(), 1.into())].into_iter().collect(), ..Formats::default() },
    ];
    for formats in newer {
        state.meta.formats = Some(formats);
        state.write_meta().unwrap();
        assert!(matches!(read_meta(&path), Err(StateError::Newer { .. })));
    }
    drop(state);
    let before = std::fs::read(path.join(META)).unwrap();
    assert!(matches!(StateDir::open(&root, &identity("/mnt/b")), Err(StateError::Newer { .. })));
    assert!(std::fs::read(path.join(META)).unwrap() == before);
}
