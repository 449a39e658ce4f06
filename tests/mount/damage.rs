//! State directories that are damaged, forged or in somebody's way: refused in words with nothing changed, and what they
//! hold comes back. One test for each input of the list of faults under "Recovery destroys".

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use sha2::{Digest, Sha256};

use crate::faults::owed;
use crate::http::{Tree, assert_same};
use crate::mounted::{Said, TestMount, local_tree};
use crate::scripted::Scripted;

/// The directory of the only mount.
pub fn state_of(test: &TestMount) -> PathBuf {
    let entries = fs::read_dir(&test.state).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.join("meta.json").is_file()).expect("a state directory")
}

fn files_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

/// What a daemon must not have changed.
fn held(state: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    ["journal", "spool", "lost+found"].iter().flat_map(|part| files_below(&state.join(part))).collect()
}

/// A mount is refused in such words, with a hint that fits, and nothing is changed.
#[track_caller]
pub fn assert_refused(test: &TestMount, words: &[&str]) -> Said {
    let state = state_of(test);
    let before = held(&state);
    let said = test.mount(&[]);
    assert_eq!(said.exit, 1, "{said:#?}");
    for word in words {
        assert!(said.err.contains(word), "{word:?} is not in {said:#?}");
    }
    assert!(!said.err.contains("df -h"), "{said:#?}");
    assert!(!test.is_mounted());
    assert!(held(&state) == before, "refused, and changed");
    said
}

/// Sixty files, each fsynced, none sent; the daemon is killed.
fn killed_with_sixty(server: &Scripted) -> (TestMount, BTreeSet<Vec<u8>>) {
    let test = TestMount::with(&server.url(), &["--settle", "600s"]);
    let mut contents = BTreeSet::new();
    fs::create_dir(test.at("d")).unwrap();
    for at in 0..60 {
        let content = format!("the content of file {at}, of which there is no other copy\n").into_bytes();
        let mut file = fs::File::create(test.at(format!("d/f{at}"))).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        contents.insert(content);
    }
    test.signal(Signal::KILL);
    test.detach();
    (test, contents)
}

/// Repairs, mounts, and finds every content again, in its place or under `lost+found`.
#[track_caller]
fn assert_all_come_back(test: &TestMount, contents: &BTreeSet<Vec<u8>>) -> usize {
    let state = state_of(test);
    let state = state.to_str().unwrap();
    let before = held(Path::new(state));
    let shown = test.bare(["repair", state]);
    assert_eq!(shown.exit, 1, "{shown:#?}");
    assert!(held(Path::new(state)) == before, "shown, and done");
    test.bare(["repair", state, "--yes"]).ok();
    test.mount(&[]).ok();
    let tree: Tree = local_tree(&test.dir);
    let back: BTreeSet<Vec<u8>> = tree.values().cloned().collect();
    assert!(back == *contents, "{} of {} came back", back.len(), contents.len());
    tree.keys().filter(|path| path.starts_with("lost+found/")).count()
}

#[test]
fn a_flipped_bit_in_the_record_loses_none_of_sixty_files() {
    let server = Scripted::new();
    let (test, contents) = killed_with_sixty(&server);
    let segment = state_of(&test).join("journal/journal.00000001");
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end / 2] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let place = format!("{} is damaged at byte ", segment.display());
    let command = format!("hint: oxenfs repair {}", state_of(&test).display());
    let owed = "files here that it may lack: 60,";
    assert_refused(&test, &[&place, "nothing was changed; known to be owed to the server: ", owed, &command]);
    let status = test.oxenfs(["status"]);
    assert!(status.out.contains("is damaged at byte") && !status.out.contains("nothing to commit"), "{status:#?}");
    let aside = assert_all_come_back(&test, &contents);
    assert!(aside <= 1, "{aside} files have no name, and one frame was hurt");
    // Moved out, they are files like any other.
    for (path, _) in local_tree(&test.dir).iter().filter(|(path, _)| path.starts_with("lost+found/")) {
        assert_eq!(fs::write(test.at(path), "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        fs::rename(test.at(path), test.at(format!("d/{}", path.rsplit('/').next().unwrap()))).unwrap();
    }
    test.commit();
    let committed: BTreeSet<Vec<u8>> = server.committed(&test.repo).into_values().collect();
    assert!(committed == contents);
    test.unmount();
}

#[test]
fn a_record_that_was_removed_loses_none_of_sixty_files() {
    let server = Scripted::new();
    let (test, contents) = killed_with_sixty(&server);
    fs::remove_dir_all(state_of(&test).join("journal")).unwrap();
    fs::create_dir(state_of(&test).join("journal")).unwrap();
    let gone = "journal is damaged at byte 0: it has no record, though the spool has files";
    assert_refused(&test, &[gone, "files here that it may lack: 60,"]);
    assert_eq!(assert_all_come_back(&test, &contents), 60);
    test.oxenfs(["unmount", test.dir.to_str().unwrap()]).ok();
}

/// Cuts the only segment behind the first frame that names `name`.
fn cut_behind(test: &TestMount, name: &str) {
    let segment = state_of(test).join("journal/journal.00000001");
    let record = fs::read(&segment).unwrap();
    let name = format!(r#""n":"{name}""#);
    let at = record.windows(name.len()).position(|part| part == name.as_bytes()).unwrap();
    let end = at + record[at..].iter().position(|byte| *byte == b'\n').unwrap();
    fs::write(&segment, &record[..=end]).unwrap();
}

/// A file that was staged, renamed, staged, changed and staged, of which the repaired record knows but the rename: it has
/// older bytes, which the server has nowhere else any more.
fn repaired_with_conflict(server: &Scripted) -> TestMount {
    let test = TestMount::through(&server.url());
    fs::write(test.at("old"), "older").unwrap();
    test.sync();
    fs::rename(test.at("old"), test.at("renamed")).unwrap();
    test.sync();
    fs::write(test.at("renamed"), "newer").unwrap();
    fs::write(test.at("old"), "older").unwrap();
    fs::write(test.at("other"), "of no concern").unwrap();
    test.sync();
    test.signal(Signal::KILL);
    test.detach();
    cut_behind(&test, "renamed");
    assert_refused(&test, &["is damaged at byte ", "hint: oxenfs repair "]);
    test.bare(["repair", state_of(&test).to_str().unwrap(), "--yes"]).ok();
    test.mount(&[]).ok();
    test
}

fn staged(server: &Scripted, test: &TestMount, path: &str) -> Option<String> {
    test.staged_content_on(&server.url(), path).map(|content| String::from_utf8(content).unwrap())
}

#[test]
fn a_conflict_after_a_repair_is_ended_by_a_sync_of_that_path_and_by_nothing_else() {
    let server = Scripted::new();
    let test = repaired_with_conflict(&server);
    let dir = test.dir.to_str().unwrap();
    let in_conflict = || {
        let status = test.wait_status("all else to be staged", |status| owed(status) == 1);
        assert_eq!(status["counts"]["failed"]["files"], 1, "{status:#}");
        assert_eq!(status["errors"][0]["path"], "renamed", "{status:#}");
        assert_eq!(staged(&server, &test, "renamed").as_deref(), Some("newer"));
        assert_eq!(fs::read_to_string(test.at("renamed")).unwrap(), "older");
    };
    in_conflict();
    let told = test.oxenfs(["status", dir]).ok();
    let words = "is on the server otherwise than the repaired record says; `oxenfs sync` on it by name";
    assert!(told.out.contains("renamed") && told.out.contains(words), "{told:#?}");
    let commit = ["commit", dir, "-m", "m", "--author", "a", "--email", "a@example.org"];
    for (command, exit) in [(&["sync", dir][..], 3), (&commit, 3), (&["unmount", dir, "--timeout", "30s"], 3)] {
        let said = test.oxenfs(command);
        assert_eq!(said.exit, exit, "{command:?}: {said:#?}");
        assert!(said.err.contains("renamed"), "{command:?}: {said:#?}");
        in_conflict();
    }
    fs::write(test.at("renamed"), "older").unwrap();
    test.oxenfs(["sync", dir]);
    in_conflict();
    // The next mount has it as well.
    test.signal(Signal::KILL);
    test.detach();
    test.mount(&[]).ok();
    in_conflict();

    test.oxenfs(["sync", test.at("renamed").to_str().unwrap()]).ok();
    assert_eq!(staged(&server, &test, "renamed").as_deref(), Some("older"));
    test.commit();
    // What was made under the old name has the bytes that came back under the new one.
    let expected = [("other", "of no concern"), ("renamed", "older")];
    assert_same(&server.committed(&test.repo), &expected.map(|(path, text)| (path.into(), text.into())).into());
    test.unmount();
}

#[test]
fn what_is_moved_elsewhere_after_a_repair_leaves_the_servers_version_in_its_place() {
    let server = Scripted::new();
    let test = repaired_with_conflict(&server);
    fs::rename(test.at("renamed"), test.at("mine")).unwrap();
    // It is a conflict yet: what is there may not go without a word either.
    let dir = test.dir.to_str().unwrap();
    let said = test.oxenfs(["unmount", dir]);
    assert!(said.exit == 3 && said.err.contains("oxenfs unmount --detach"), "{said:#?}");
    assert_eq!(test.oxenfs(["unmount", dir, "--detach"]).exit, 3);
    test.mount(&[]).ok();
    assert_eq!(fs::read_to_string(test.at("renamed")).unwrap(), "newer");
    assert_eq!(fs::read_to_string(test.at("mine")).unwrap(), "older");
    test.unmount_commit();
    let expected = [("other", "of no concern"), ("renamed", "newer"), ("mine", "older")];
    assert_same(&server.committed(&test.repo), &expected.map(|(path, text)| (path.into(), text.into())).into());
}

/// A record of the first format, which all versions read, of these frames.
fn forge(test: &TestMount, frames: &[&str]) {
    let state = state_of(test);
    let _ = fs::remove_file(state.join("journal.mark"));
    fs::remove_dir_all(state.join("journal")).unwrap();
    fs::create_dir(state.join("journal")).unwrap();
    let mut bytes = b"{\"oxenfs_journal\":1}\n".to_vec();
    for frame in frames {
        let sum: String = Sha256::digest(frame).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        bytes.extend(format!("{sum} {frame}\n").into_bytes());
    }
    fs::write(state.join("journal/journal.00000001"), bytes).unwrap();
}

fn inode(ino: u64, body: &str) -> String {
    format!(r#"{{"k":"inode","i":{ino},"at":{{"m":420,"u":0,"g":0,"a":[9,0],"t":[9,0],"c":[9,0]}},"b":{body}}}"#)
}

fn unused(server: &Scripted) -> TestMount {
    let test = TestMount::through(&server.url());
    test.signal(Signal::KILL);
    test.detach();
    test
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_stays() {
    let server = Scripted::new();
    let test = unused(&server);
    let file = |ino: u64, spool: u64| {
        let inode = inode(ino, &format!(r#"{{"spool":{spool}}}"#));
        format!(
            r#"[{inode},{{"k":"link","p":1,"n":"f{ino}","i":{ino}}},{{"k":"account","p":"f{ino}","a":{{"s":"nothing"}}}}]"#
        )
    };
    forge(&test, &[&file(2, 2), r#"[{"k":"hologram","i":2}]"#, &file(3, 3)]);
    for id in 2..4 {
        let shard = state_of(&test).join(format!("spool/{id:02x}"));
        fs::create_dir_all(&shard).unwrap();
        fs::write(shard.join(format!("{id:x}")), format!("content {id}")).unwrap();
    }
    assert_refused(&test, &["was written by a newer oxenfs", "a change of the kind \"hologram\""]);
    assert_eq!(test.bare(["repair", state_of(&test).to_str().unwrap(), "--yes"]).exit, 1);
    assert_eq!(held(&state_of(&test)).len(), 3);
}

#[test]
fn a_forged_cycle_of_directories_is_refused_at_once() {
    let server = Scripted::new();
    let test = unused(&server);
    let dir = |ino| inode(ino, r#"{"dir":{"based":false}}"#);
    let cycle =
        format!(r#"[{},{},{{"k":"link","p":2,"n":"a","i":3}},{{"k":"link","p":3,"n":"b","i":2}}]"#, dir(2), dir(3));
    let spooled = inode(4, r#"{"spool":4}"#);
    forge(&test, &[&cycle, &format!(r#"[{spooled},{{"k":"link","p":3,"n":"f","i":4}}]"#)]);
    assert_refused(&test, &["is damaged at byte 21", "lies within itself"]);
    let status = test.oxenfs(["status"]);
    assert!(status.out.contains("lies within itself"), "{status:#?}");
}

#[test]
fn a_lock_file_that_was_removed_lets_no_second_daemon_in() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    fs::remove_file(state_of(&test).join("lock")).unwrap();
    let other = test.beside("other");
    let said = test.mount_with(&test.state, &other, &[]);
    assert_eq!(said.exit, 1, "{said:#?}");
    assert!(said.err.contains("is in use by"), "{said:#?}");
    fs::write(test.at("file"), "content").unwrap();
    test.unmount_commit();
}

#[test]
fn what_is_in_the_way_is_named() {
    let server = Scripted::new();
    let test = unused(&server);
    for (path, is_dir) in [("spool/notes.txt", false), ("cache/fetching/photos", true)] {
        let path = state_of(&test).join(path);
        match is_dir {
            true => fs::create_dir_all(&path).unwrap(),
            false => fs::write(&path, "mine").unwrap(),
        }
        let named = format!("{} is in the way", path.display());
        assert_refused(&test, &[&named, "hint: if it is not yours, move it out of there: mv "]);
        assert!(path.exists());
        let aside = test.beside("aside").join("it");
        fs::rename(&path, &aside).unwrap();
        if is_dir { fs::remove_dir(aside).unwrap() } else { fs::remove_file(aside).unwrap() }
    }
    let segment = state_of(&test).join("journal/journal.00000001");
    fs::write(&segment, "").unwrap();
    assert_refused(
        &test,
        &[&format!("{} is damaged at byte 0: it is empty", segment.display()), "hint: oxenfs repair "],
    );
}

#[test]
fn a_cached_file_that_was_altered_is_neither_shown_nor_sent_on() {
    let server = Scripted::new();
    let test = TestMount::through(&server.url());
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    for name in ["read", "appended"] {
        fs::write(test.at(name), [name.as_bytes(), &content].concat()).unwrap();
    }
    test.unmount_commit();
    test.mount(&[]).ok();
    for name in ["read", "appended"] {
        assert!(fs::read(test.at(name)).unwrap() == [name.as_bytes(), &content].concat());
    }
    test.unmount();
    let mut cached = files_below(&state_of(&test).join("cache"));
    cached.retain(|(path, _)| path.to_str().unwrap().contains("/cache/boot-"));
    assert_eq!(cached.len(), 2, "the cache holds {:?}", cached.iter().map(|(path, _)| path).collect::<Vec<_>>());
    for (path, mut bytes) in cached {
        bytes[1000] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    test.mount(&[]).ok();
    assert!(fs::read(test.at("read")).unwrap() == [b"read", &content[..]].concat());
    fs::OpenOptions::new().append(true).open(test.at("appended")).unwrap().write_all(b"more").unwrap();
    test.unmount_commit();
    let expected = [b"appended", &content[..], b"more"].concat();
    assert!(server.committed(&test.repo)["appended"] == expected);
}
