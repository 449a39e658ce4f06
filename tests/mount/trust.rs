//! Whom a mount and its commands believe: neighbours who swap directories, leave odd files or send odd words, and the
//! limits that a careless shell sets.

mod attacks;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::dataset::noise;
use crate::mounted::{Said, TestMount, kernel_mounts, wait_until};
use crate::scripted::Scripted;
use crate::server;

/// What is mounted below a directory.
fn mounts_below(dir: &std::path::Path) -> Vec<String> {
    let table = kernel_mounts();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with(dir.to_str().unwrap())).map(str::to_owned).collect()
}

/// Answers begin to take longer than what a test does meanwhile.
fn slow(server: &Scripted) {
    server.arm("", "/api/", Some(1), json!({"latency": {"ms": 1500}}));
}

/// Waits until a mount that was begun has looked at its directories: its state is there.
fn wait_looked(state: &std::path::Path) {
    wait_until("the mount to begin", || {
        let below = fs::read_dir(state).into_iter().flatten().flatten();
        below.into_iter().any(|entry| entry.path().join("meta.json").exists())
    });
}

#[test]
fn a_mount_point_that_is_swapped_for_a_link_meanwhile_is_not_followed() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let precious = test.beside("precious");
    slow(&server);
    let mount = test.spawn(["mount", &test.repo, test.dir.to_str().unwrap(), "--server", &server.url(), "--create"]);
    wait_looked(&test.state);
    fs::rename(&test.dir, test.beside("").join("was")).unwrap();
    symlink(&precious, &test.dir).unwrap();
    let said = Said::from(mount.wait_with_output().unwrap());
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("was moved or replaced while it was looked at\nhint: "), "{said:?}");
    assert_eq!(mounts_below(&test.beside("")), [] as [&str; 0]);
    assert_eq!(fs::read_dir(precious).unwrap().count(), 0);
    test.assert_gone();
}

#[test]
fn of_two_mounts_at_one_directory_at_once_one_succeeds() {
    let server = Scripted::new();
    let test = TestMount::unmounted(&server.url());
    let dir = test.dir.to_str().unwrap();
    server.arm("", "/api/version", Some(2), json!({"latency": {"ms": 500}}));
    let mut mounts = Vec::new();
    for number in 0..2 {
        let (state, repo) = (test.beside(&format!("state{number}")), format!("{}-{number}", test.repo));
        let child = test.spawn_with(&state, ["mount", &repo, dir, "--server", &server.url(), "--create"]);
        mounts.push((state, child));
    }
    let ended: Vec<(PathBuf, Said)> =
        mounts.into_iter().map(|(state, child)| (state, child.wait_with_output().unwrap().into())).collect();
    let (done, refused): (Vec<_>, Vec<_>) = ended.iter().partition(|(_, said)| said.exit == 0);
    assert_eq!((done.len(), refused.len()), (1, 1), "{ended:?}");
    let error = format!("oxenfs is already mounted at {dir}\nhint: oxenfs unmount {dir}\n");
    assert!(refused[0].1.err.ends_with(&error), "{refused:?}");
    assert_eq!(mounts_below(&test.dir), [dir]);
    fs::write(test.at("file"), "x").unwrap();
    test.oxenfs_with(&done[0].0, ["unmount", dir]).ok();
    test.assert_gone();
}

#[test]
fn nothing_is_written_after_unmount_returned() {
    let test = TestMount::new();
    for detach in [&[][..], &["--detach"]] {
        for round in 0..5 {
            fs::write(test.at("file"), noise(round, 300_000)).unwrap();
            test.sync();
            let said = test.oxenfs([&["unmount", test.dir.to_str().unwrap()], detach].concat());
            assert!(matches!(said.exit, 0 | 3), "{said:?}");
            assert_eq!(test.daemons(), [] as [i32; 0], "a daemon may still write");
            fs::remove_dir_all(&test.state).unwrap();
            assert!(!test.state.exists());
            test.mount(&[]).ok();
        }
    }
    test.unmount();
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_of_the_write_and_no_end_of_the_daemon() {
    let test = TestMount::unmounted(server::url());
    // Of 512 bytes. By requests: what goes past the daemon is its writer's.
    let said = test.mount_after("ulimit -f 200000; set -- \"$@\" --passthrough never").ok();
    assert!(said.err.starts_with("warning: files longer than 97 MiB cannot be written: ulimit -f\n"), "{said:?}");
    let pid = test.pid();
    let large = fs::File::create(test.at("large")).unwrap();
    large.write_all_at(b"fits", 90 << 20).unwrap();
    let errno = large.write_all_at(b"does not", 110 << 20).unwrap_err().raw_os_error();
    assert!(matches!(errno, Some(libc::EFBIG | libc::ENOSPC)), "{errno:?}");
    let small = noise(2, 100_000);
    fs::write(test.at("small"), &small).unwrap();
    drop(large);
    fs::remove_file(test.at("large")).unwrap();
    assert_eq!(test.pid(), pid);
    test.unmount_commit();
    assert_eq!(test.committed_file("small").unwrap(), small);
}

#[test]
fn a_limit_of_memory_that_no_daemon_can_live_with_is_told_before_anything_is_mounted() {
    let test = TestMount::unmounted(server::url());
    for (limit, option) in [("ulimit -v 300000", "ulimit -v"), ("ulimit -d 100000", "ulimit -d")] {
        let said = test.mount_after(limit);
        assert_eq!(said.exit, 1, "{said:?}");
        assert!(said.err.contains(&format!("MiB of memory alone ({option}), and the daemon takes ")), "{said:?}");
        assert!(said.err.ends_with(&format!("hint: {option} unlimited\n")), "{said:?}");
        test.assert_gone();
    }
    let said = test.mount_after("ulimit -f 2000");
    assert!(
        said.err.contains("may write files of 0 MiB alone (ulimit -f), and the record of changes takes "),
        "{said:?}"
    );
}

#[test]
fn a_mount_point_need_not_be_called_in_utf_8() {
    let mut test = TestMount::unmounted(server::url());
    test.dir = test.beside("").join(OsStr::from_bytes(b"caf\xe9 \x1b[2J"));
    fs::create_dir(&test.dir).unwrap();
    let repo = test.repo.clone();
    let mount = |more: &[&str]| {
        let mut words = vec![OsStr::new("mount"), OsStr::new(&repo), test.dir.as_os_str()];
        words.extend(["--server", server::url()].into_iter().chain(more.iter().copied()).map(OsStr::new));
        test.oxenfs(words)
    };
    mount(&["--create"]).ok();
    fs::write(test.at("file"), "kept").unwrap();
    let status = test.oxenfs(["status"]).ok();
    assert!(status.out.contains("/caf\\xe9 \\x1b[2J'  "), "{status:?}");
    assert_eq!(status.err, "");
    test.signal(Signal::KILL);
    let said = test.oxenfs([OsStr::new("unmount"), test.dir.as_os_str()]);
    // The hint can be pasted.
    let hint = said.err.split("hint: mount again to send them: oxenfs ").nth(1).unwrap_or_else(|| panic!("{said:?}"));
    assert!(hint.contains("caf\\xe9 \\x1b[2J'"), "{said:?}");
    mount(&[]).ok();
    test.oxenfs([OsStr::new("unmount"), test.dir.as_os_str()]).ok();
    wait_until("the daemon to end", || test.daemons().is_empty());
    assert_eq!(test.status()["counts"]["staged"]["files"], 1);
}

#[test]
fn what_is_no_token_is_told_and_a_file_that_cannot_be_read_is_no_end() {
    let test = TestMount::unmounted(server::url());
    let said = test.mount_after("export OXEN_API_KEY=\"$(printf 'sesame-01\\nsesame-02')\"");
    assert_eq!(said.exit, 1);
    let error = "OXEN_API_KEY holds a line break or another character that no token has\n\
                 hint: set OXEN_API_KEY to the token alone, or: oxen config --auth HOST TOKEN\n";
    assert!(said.err.ends_with(error), "{said:?}");
    assert!(!said.err.contains("sesame"), "{said:?}");
    // Root reads every file, and no directory as one.
    let file = test.beside("oxen/auth_config.toml");
    let said = test.mount(&["--create"]).ok();
    let warning =
        format!("warning: cannot read {}: Is a directory (os error 21); going on without a token\n", file.display());
    assert!(said.err.starts_with(&warning), "{said:?}");
    test.unmount();
}

#[test]
fn a_server_that_wants_a_token_wants_it_for_its_traffic_and_faults_too() {
    let server = Scripted::with_token(Some("sesame"));
    for (method, path) in [("GET", "/_traffic"), ("DELETE", "/_traffic"), ("POST", "/_faults"), ("DELETE", "/_faults")]
    {
        for token in [None, Some("sesam"), Some("")] {
            assert_eq!(server.ask_with(token, method, path, &json!([])).0, 401, "{method} {path}");
        }
        assert_eq!(server.ask(method, path, &json!([])).0, 200, "{method} {path}");
    }
}

#[test]
fn a_fifo_or_a_device_in_a_state_directory_is_refused_at_once() {
    let test = TestMount::new();
    fs::write(test.at("file"), "x").unwrap();
    test.sync();
    test.unmount();
    let root = test.beside("odd");
    fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
    let state = fs::read_dir(&test.state).unwrap().flatten().find(|entry| entry.path().join("meta.json").exists());
    let state = state.unwrap().path();
    let copy = root.join("copy");
    for (name, link) in [
        ("meta.json", false),
        ("meta.json", true),
        ("lock", false),
        ("journal", false),
        ("journal/journal.00000009", false),
        ("journal/journal.00000009", true),
    ] {
        let _ = fs::remove_dir_all(&copy);
        crate::mounted::run("cp", [OsStr::new("-a"), state.as_os_str(), copy.as_os_str()]);
        let odd = copy.join(name);
        let _ = fs::remove_dir_all(&odd);
        let _ = fs::remove_file(&odd);
        match link {
            true => symlink("/dev/zero", &odd).unwrap(),
            false => drop(crate::mounted::run("mkfifo", [&odd])),
        }
        for command in [&["status"][..], &["status", "--json"], &["diff", test.dir.to_str().unwrap()], &["doctor"]] {
            let begun = std::time::Instant::now();
            let said = test.oxenfs_with(&root, command);
            assert!(begun.elapsed().as_secs() < 5, "{command:?} with {name} took {:?}", begun.elapsed());
            // Without a daemon nobody needs the lock.
            let told = [&said.out, &said.err].iter().any(|text| text.contains("it is not a "));
            assert!(told || name == "lock" || command.len() == 3, "{command:?} with {name}: {said:?}");
        }
    }
}

#[test]
fn a_pipe_or_a_link_in_the_place_of_the_log_is_refused_at_once_and_not_written_to() {
    let test = TestMount::new();
    test.unmount();
    let state = fs::read_dir(&test.state).unwrap().flatten().find(|entry| entry.path().join("meta.json").exists());
    let log = state.unwrap().path().join("log");
    let precious = test.beside("precious").join("file");
    fs::write(&precious, "precious").unwrap();
    for link in [false, true] {
        fs::remove_file(&log).unwrap();
        match link {
            true => symlink(&precious, &log).unwrap(),
            false => drop(crate::mounted::run("mkfifo", [&log])),
        }
        let begun = std::time::Instant::now();
        let said = test.mount(&[]);
        assert!(begun.elapsed().as_secs() < 5, "it took {:?}", begun.elapsed());
        assert!(said.exit == 1 && said.err.contains(log.to_str().unwrap()), "{said:?}");
        test.assert_gone();
    }
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    fs::remove_file(&log).unwrap();
    test.mount(&[]).ok();
    test.unmount();
}

/// A user and group that own nothing.
const NOBODY: u32 = 65534;

#[test]
#[ignore = "needs root, to be attacked by another user: scripts/test has it"]
fn what_another_user_left_in_the_default_root_is_not_believed() {
    // A mount of another user's, whose daemon says what she likes.
    let server = Scripted::new();
    let theirs = TestMount::unprivileged(&server.url(), &[]);
    let test = TestMount::with(&server.url(), &[]);
    let dir = theirs.dir.to_str().unwrap();
    let state = fs::read_dir(&theirs.state).unwrap().flatten().find(|entry| entry.path().join("meta.json").exists());
    let state = state.unwrap();
    symlink(state.path(), test.state.join(state.file_name())).unwrap();
    let secret = test.beside("secret").join("file");
    fs::write(&secret, "secret").unwrap();
    let commands: [&[&str]; 6] = [
        &["import", secret.to_str().unwrap(), dir],
        &["commit", dir, "-m", "x", "--author", "A", "--email", "a@x"],
        &["sync", dir],
        &["diff", dir],
        &["log-level", dir],
        &["unmount", dir],
    ];
    for command in commands {
        let said = test.oxenfs(command);
        assert_eq!(said.exit, 1, "{command:?}: {said:?}");
        assert!(
            said.err.contains(&format!("belongs to user {NOBODY}, not to user 0: nothing in it is believed")),
            "{said:?}"
        );
    }
    let status = test.oxenfs(["status", "--json"]).ok();
    let seen: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(seen.as_array().unwrap().len(), 1, "{status:?}");
    // One that was root's, and was replaced.
    let own = fs::read_dir(&test.state)
        .unwrap()
        .flatten()
        .find(|entry| entry.path().join("meta.json").exists() && !entry.file_type().unwrap().is_symlink())
        .unwrap();
    chown(own.path(), Some(NOBODY), None).unwrap();
    let said = test.oxenfs(["sync", test.dir.to_str().unwrap()]);
    assert!(said.exit == 1 && said.err.contains("nothing in it is believed"), "{said:?}");
    chown(own.path(), Some(0), None).unwrap();
    test.unmount();
    theirs.unmount();
}
