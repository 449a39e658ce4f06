//! Every pair of changes to one path by two clients becomes what the table in docs/SEMANTICS.md says, with each policy
//! and however far what is here had come. All pairs are directories of one repository; the other client commits once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::http::{self, Tree};
use crate::mounted::{TestMount, local_tree};
use crate::server;

/// A file that each directory has, whatever comes of the rest.
const KEPT: &str = "kept";
const POLICIES: [&str; 3] = ["ours", "theirs", "keep-both"];

/// How far what was changed here had come when the other client committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing of it is on the server.
    Owed,
    /// All of it is staged.
    Staged,
    /// All of it is staged, and the mount is another.
    Unmounted,
    /// Nothing of it is on the server, and the daemon was killed.
    Killed,
}

/// What was at the path before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    File,
    Directory,
}

/// A row of the table.
#[derive(Debug)]
struct Row {
    before: Before,
    here: String,
    there: String,
    /// The path that is in conflict, and where it went.
    conflict: Option<(String, Option<String>)>,
    /// What each policy leaves: paths, and whose content they have.
    left: [Cell; 3],
}

type Cell = BTreeMap<String, String>;

impl Row {
    /// The directory of the repository that is the pair's.
    fn dir(&self) -> String {
        format!("{:?}/{} and {}", self.before, self.here, self.there).replace(' ', "-").to_lowercase()
    }
}

/// The table as people read it.
fn table() -> Vec<Row> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SEMANTICS.md")).unwrap();
    let (mut rows, mut before) = (Vec::new(), None);
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        match cells[0] {
            "nothing there before: here" => before = Some(Before::Nothing),
            "a file before: here" => before = Some(Before::File),
            "a directory before: here" => before = Some(Before::Directory),
            "" => before = None,
            first if first.starts_with('-') => {}
            here => {
                let (Some(before), [_, there, conflict, left @ ..]) = (before, &cells[..]) else { continue };
                let conflict = match *conflict {
                    "no" => None,
                    conflict => match conflict.split_once(", now ") {
                        Some((path, went)) => Some((path.to_owned(), Some(went.to_owned()))),
                        None => Some((conflict.to_owned(), None)),
                    },
                };
                let left = <[&str; 3]>::try_from(left).unwrap_or_else(|_| panic!("a cell is missing: {line}"));
                let left = left.map(|text| cell(if text == "the same" { left[0] } else { text }));
                rows.push(Row { before, here: here.to_owned(), there: (*there).to_owned(), conflict, left });
            }
        }
    }
    rows
}

fn cell(text: &str) -> Cell {
    let parts = text.split(", ").filter(|part| *part != "nothing");
    let parts = parts.map(|part| part.split_once(' ').unwrap_or_else(|| panic!("whose content is {part}?")));
    parts.map(|(path, whose)| (path.to_owned(), whose.to_owned())).collect()
}

/// What was written to `path` of a pair; each content is there once.
fn content(pair: &str, path: &str, whose: &str) -> Vec<u8> {
    format!("{path} of {pair}: {whose}").into_bytes()
}

fn write(root: &Path, pair: &str, path: &str, whose: &str) {
    fs::write(root.join(pair).join(path), content(pair, path, whose)).unwrap();
}

fn write_base(root: &Path, rows: &[Row]) {
    for row in rows {
        let pair = row.dir();
        fs::create_dir_all(root.join(&pair)).unwrap();
        write(root, &pair, KEPT, "base");
        match row.before {
            Before::Nothing => {}
            Before::File => write(root, &pair, "f", "base"),
            Before::Directory => {
                fs::create_dir(root.join(&pair).join("f")).unwrap();
                write(root, &pair, "f/x", "base");
                write(root, &pair, "f/y", "base");
            }
        }
    }
}

/// Does what one side does to a pair; `moved` is what it calls that which it renames.
fn change(root: &Path, row: &Row, what: &str, whose: &str, moved: &str) {
    let pair = row.dir();
    let (what, whose, moved) = match what.strip_suffix(" the same") {
        Some(what) => (what, "same", "i"),
        None => (what, whose, moved),
    };
    let f = root.join(&pair).join("f");
    let was_file = row.before == Before::File;
    match (row.before, what) {
        (_, "unchanged") => {}
        (Before::Nothing, "added") | (Before::File, "edited") => write(root, &pair, "f", whose),
        (Before::Directory, "edited") => write(root, &pair, "f/x", whose),
        (Before::Directory, "added") => write(root, &pair, "f/z", whose),
        (Before::File, "removed") => fs::remove_file(f).unwrap(),
        (Before::Directory, "removed") => fs::remove_dir_all(f).unwrap(),
        (Before::File | Before::Directory, "renamed") => fs::rename(&f, f.with_file_name(moved)).unwrap(),
        (Before::Nothing | Before::File, "directory") => {
            if was_file {
                fs::remove_file(&f).unwrap();
            }
            fs::create_dir(f).unwrap();
            write(root, &pair, "f/x", whose);
        }
        (Before::Directory, "file") => {
            fs::remove_dir_all(f).unwrap();
            write(root, &pair, "f", whose);
        }
        (before, what) => panic!("{what} {before:?}"),
    }
}

/// What a tree has of a pair, as the table has it: a version beside another by a star, and of each file whose it is.
fn left_of(tree: &Tree, pair: &str) -> Cell {
    let inside = tree.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(pair)?.strip_prefix('/')?, bytes)));
    let said = inside.map(|(path, bytes)| {
        let starred: Vec<String> = path.split('/').map(starred).collect();
        let text = String::from_utf8_lossy(bytes);
        let (of, whose) = text.rsplit_once(": ").unwrap_or(("", &text));
        // What is called otherwise by now has the content of what it was.
        let mut was = starred.join("/").replace('*', "");
        if ["g", "h", "i"].iter().any(|moved| was == *moved || was.starts_with(&format!("{moved}/"))) {
            was.replace_range(..1, "f");
        }
        let whose = if of == format!("{was} of {pair}") { whose.to_owned() } else { format!("({text})") };
        (starred.join("/"), whose)
    });
    said.collect()
}

/// All files below a directory, relative to it.
pub fn paths_in(root: &Path) -> Vec<String> {
    let (mut paths, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => paths.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    paths
}

/// All files of a mount; of one that cannot be read, why.
fn shown_in(root: &Path) -> Tree {
    let content = |path: &str| fs::read(root.join(path)).unwrap_or_else(|error| error.to_string().into_bytes());
    paths_in(root).into_iter().map(|path| (path.clone(), content(&path))).collect()
}

fn starred(name: &str) -> String {
    name.split_once(" (oxenfs ").map_or(name.to_owned(), |(stem, _)| format!("{stem}*"))
}

fn ask(method: &str, repo: &str, below: &str, body: &Value) {
    let (status, answer) = http::ask(server::url(), method, &format!("/api/repos/{repo}/{below}"), body).unwrap();
    assert!((200..300).contains(&status), "{method} {below}: {status} {}", String::from_utf8_lossy(&answer));
}

/// A mount of a branch of `repo`, which begins at what both sides begin with and goes on to what is in main.
fn mount_of(repo: &str, branch: &str, state: State, rows: &[Row]) -> TestMount {
    let mut test = TestMount::unmounted(server::url());
    test.repo = repo.to_owned();
    let owed = matches!(state, State::Owed | State::Killed);
    let settle = if owed { "600" } else { "0.1" };
    test.mount(&["--branch", branch, "--settle", settle]).ok();
    if state == State::Staged {
        // It knows all there is, not only what it changes.
        shown_in(&test.dir);
    }
    for row in rows {
        change(&test.dir, row, &row.here, "ours", "g");
    }
    match state {
        State::Owed => {}
        State::Staged => test.sync(),
        State::Unmounted => test.unmount(),
        State::Killed => {
            test.signal(rustix::process::Signal::KILL);
            test.detach();
        }
    }
    ask("DELETE", repo, &format!("branches/{branch}"), &Value::Null);
    ask("POST", repo, "branches", &json!({"new_name": branch, "from_name": "main"}));
    if matches!(state, State::Unmounted | State::Killed) {
        test.mount(&["--branch", branch]).ok();
    }
    test
}

/// One commit with a policy. Returns what is not as the table says.
fn try_policy(repo: &str, main: &Tree, rows: &[Row], state: State, number: usize) -> Vec<String> {
    let (policy, branch) = (POLICIES[number], format!("{state:?}-{}", POLICIES[number]).to_lowercase());
    let mut wrong = Vec::new();
    let test = mount_of(repo, &branch, state, rows);
    let dir = test.dir.to_str().unwrap();
    let commit = |policy: &str| {
        let commit = ["commit", dir, "-m", "here", "--author", "A", "--email", "a@x", "--on-conflict", policy];
        test.oxenfs(commit)
    };
    if matches!(state, State::Staged | State::Killed) {
        let said = commit("fail");
        if said.exit != 1 {
            wrong.push(format!("a commit beside conflicts: {said:?}"));
        }
        if http::tree_of(server::url(), repo, &branch) != *main {
            wrong.push("a commit that fails changed the branch".to_owned());
        }
        let status = test.status();
        let told = |one: &Value| (one["path"].clone(), one["renamed_to"].clone());
        let conflicts: BTreeMap<String, Value> = status["conflicts"]
            .as_array()
            .unwrap()
            .iter()
            .map(told)
            .map(|(path, to)| (path.as_str().unwrap().to_owned(), to))
            .collect();
        let expected: BTreeMap<String, Value> = rows
            .iter()
            .filter_map(|row| {
                let (path, went) = row.conflict.as_ref()?;
                let at = |path: &str| format!("{}/{path}", row.dir());
                Some((at(path), went.as_ref().map_or(Value::Null, |went| json!(at(went)))))
            })
            .collect();
        for (path, went) in &expected {
            match conflicts.get(path) {
                None => wrong.push(format!("{path} is not in conflict")),
                Some(told) if told != went => wrong.push(format!("{path} went to {went}, not {told}")),
                Some(_) => {}
            }
        }
        let more = conflicts.keys().filter(|path| !expected.contains_key(*path));
        wrong.extend(more.map(|path| format!("{path} is in conflict")));
    }
    let said = commit(policy);
    if said.exit != 0 {
        wrong.push(format!("the commit: {said:?}"));
        return wrong.into_iter().map(|what| format!("{branch}: {what}")).collect();
    }
    let (committed, shown) = (http::tree_of(server::url(), repo, &branch), shown_in(&test.dir));
    for row in rows {
        let pair = row.dir();
        let mut expected = row.left[number].clone();
        expected.insert(KEPT.to_owned(), "base".to_owned());
        for (place, tree) in [("branch", &committed), ("mount", &shown)] {
            let found = left_of(tree, &pair);
            if found != expected {
                wrong.push(format!("{pair} in the {place}: {found:?}, expected {expected:?}"));
            }
        }
    }
    if committed != shown {
        wrong.push("the mount does not show what the branch has".to_owned());
    }
    let status = test.status();
    if status["conflicts"] != json!([]) || status["counts"]["staged"]["files"] != 0 {
        wrong.push(format!("something is left: {status:#}"));
    }
    test.unmount();
    wrong.into_iter().map(|what| format!("{branch}: {what}")).collect()
}

#[test]
fn every_pair_of_changes_becomes_what_the_table_says() {
    let rows = table();
    for (before, least) in [(Before::Nothing, 10), (Before::File, 27), (Before::Directory, 39)] {
        let found = rows.iter().filter(|row| row.before == before).count();
        assert!(found >= least, "{found} pairs of changes of {before:?} in docs/SEMANTICS.md");
    }
    let states = [State::Owed, State::Staged, State::Unmounted, State::Killed];
    let test = TestMount::new();
    write_base(&test.dir, &rows);
    test.commit();
    for branch in states.iter().flat_map(|state| POLICIES.map(|policy| format!("{state:?}-{policy}").to_lowercase())) {
        ask("POST", &test.repo, "branches", &json!({"new_name": branch, "from_name": "main"}));
    }
    for row in &rows {
        change(&test.dir, row, &row.there, "theirs", "h");
    }
    test.commit();
    let main = test.committed();
    http::assert_same(&main, &local_tree(&test.dir));
    test.unmount();
    let (rows, main, repo) = (&rows, &main, &test.repo);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let one = |state| move || (0..3).flat_map(|number| try_policy(repo, main, rows, state, number)).collect();
        let all = states.map(|state| scope.spawn(one(state)));
        all.into_iter().flat_map(|one| -> Vec<String> { one.join().unwrap() }).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
