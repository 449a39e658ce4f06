//! Staged changes, and what staging means: which request changes what, and when a commit collides.
//!
//! Each change is appended to the workspace's log, so that staging costs the same however much is staged already; a
//! commit begins a new log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Dialect;
use super::answers::{Refusal, Status};
use super::tree::{DirNode, FileNode, Node, Trees};
use super::versions::Content;
use crate::hash::ContentHash;
use crate::path::RepoPath;

/// What is staged at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Staged {
    /// The base has no such file.
    Added(Content),
    /// The base has other content there.
    Modified(Content),
    /// The base has it.
    Removed,
}

impl Staged {
    /// The content; `None` when removed.
    pub(super) fn content(&self) -> Option<Content> {
        match self {
            Self::Added(content) | Self::Modified(content) => Some(*content),
            Self::Removed => None,
        }
    }

    /// As answers call it.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Added(_) => Status::Added,
            Self::Modified(_) => Status::Modified,
            Self::Removed => Status::Removed,
        }
    }
}

/// The commit a workspace stands on.
pub(super) struct Base<'a> {
    pub(super) trees: &'a Trees,
    pub(super) root: &'a DirNode,
}

impl Base<'_> {
    pub(super) fn find(&self, path: &RepoPath) -> io::Result<Option<Node>> {
        self.trees.find(self.root, path)
    }

    pub(super) fn file(&self, path: &RepoPath) -> io::Result<Option<FileNode>> {
        Ok(match self.find(path)? {
            Some(Node::File(file)) => Some(file),
            _ => None,
        })
    }
}

/// One line of the log: what is staged at a path from now on; nothing when absent.
#[derive(Serialize, Deserialize)]
struct Line {
    path: RepoPath,
    staged: Option<Staged>,
}

/// The staged changes of one workspace.
#[derive(Debug)]
pub(super) struct Staging {
    entries: BTreeMap<RepoPath, Staged>,
    log: File,
}

impl Staging {
    /// Reads the log at `path`, or begins it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(path)?;
        let mut staging = Self { entries: BTreeMap::new(), log };
        let bytes = fs::read(path)?;
        // A line without its end was cut off by the end of the process, and was never acknowledged.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        staging.log.set_len(whole as u64)?;
        for line in bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let Line { path, staged } = serde_json::from_slice(line)?;
            staging.set(path, staged);
        }
        Ok(staging)
    }

    /// All staged paths in tree order.
    pub(super) fn entries(&self) -> &BTreeMap<RepoPath, Staged> {
        &self.entries
    }

    /// What is staged at `dir` or below it.
    pub(super) fn under(&self, dir: &RepoPath) -> impl Iterator<Item = (&RepoPath, &Staged)> {
        self.entries.range(dir.clone()..).take_while(|(path, _)| path.is_in(dir))
    }

    /// Stages content. A path that has this content in the base is passed over, *even when something else is staged
    /// there*: released servers do so, and leave the old change standing.
    pub(super) fn put(&mut self, base: &Base<'_>, files: &[(RepoPath, Content)]) -> io::Result<()> {
        let mut changes = Vec::with_capacity(files.len());
        for (path, content) in files {
            match base.file(path)? {
                Some(there) if there.content.hash == content.hash => {}
                Some(_) => changes.push((path.clone(), Some(Staged::Modified(*content)))),
                None => changes.push((path.clone(), Some(Staged::Added(*content)))),
            }
        }
        self.apply(changes)
    }

    /// Stages the removal of a file, or of all files of a directory; what is only staged is unstaged. Says whether
    /// there was anything.
    pub(super) fn remove(&mut self, base: &Base<'_>, path: &RepoPath) -> io::Result<bool> {
        let committed = match base.find(path)? {
            Some(node) => base.trees.files(path, &node)?,
            None => Vec::new(),
        };
        let is_file = matches!(committed.as_slice(), [(only, _)] if only == path);
        let mut changes: Vec<_> =
            if is_file { Vec::new() } else { self.under(path).map(|(path, _)| (path.clone(), None)).collect() };
        if committed.is_empty() && changes.is_empty() {
            return Ok(false);
        }
        changes.extend(committed.into_iter().map(|(path, _)| (path, Some(Staged::Removed))));
        self.apply(changes)?;
        Ok(true)
    }

    /// Drops what is staged at exactly this path. Says whether there was anything.
    pub(super) fn unstage(&mut self, path: &RepoPath) -> io::Result<bool> {
        if !self.entries.contains_key(path) {
            return Ok(false);
        }
        self.apply(vec![(path.clone(), None)])?;
        Ok(true)
    }

    /// Moves a file, and where the dialect can, a directory with all below it.
    pub(super) fn rename(
        &mut self,
        base: &Base<'_>,
        dialect: Dialect,
        from: &RepoPath,
        to: &RepoPath,
    ) -> Result<(), Refusal> {
        let in_base = base.find(from)?;
        let is_dir = matches!(in_base, Some(Node::Dir(_))) || self.under(from).any(|(path, _)| path != from);
        let taken = base.find(to)?.is_some();
        if !is_dir && taken {
            return Err(Refusal::bad_request("new_path already exists in the repository"));
        }
        if to.is_in(from) {
            return Err(Refusal::move_into_itself(from));
        }
        if dialect == Dialect::V0_65 {
            self.refuse_below_file(base, to)?;
        }
        if !is_dir {
            return self.rename_file(from, to, in_base);
        }
        if dialect != Dialect::V0_65 {
            return Err(Refusal::no_path(from));
        }
        let mut files: BTreeMap<RepoPath, Option<Staged>> = BTreeMap::new();
        if let Some(node) = in_base {
            for (path, file) in base.trees.files(from, &node)? {
                files.insert(path, Some(Staged::Modified(file.content)));
            }
        }
        let committed: Vec<_> = files.keys().cloned().collect();
        for (path, staged) in self.under(from) {
            files.insert(path.clone(), staged.content().map(|_| *staged));
        }
        let live: Vec<_> =
            files.iter().filter_map(|(path, staged)| Some((path, staged.as_ref()?.content()?))).collect();
        if live.is_empty() {
            return Err(Refusal::no_path(from));
        }
        if taken || self.under(to).next().is_some() {
            return Err(Refusal::destination_staged(to));
        }
        let mut changes = Vec::new();
        for (path, content) in live {
            if let Some(below) = path.below(from) {
                changes.push((to.concat(&below), Some(Staged::Added(content))));
            }
            changes.push((path.clone(), None));
        }
        changes.extend(committed.into_iter().map(|path| (path, Some(Staged::Removed))));
        Ok(self.apply(changes)?)
    }

    fn rename_file(&mut self, from: &RepoPath, to: &RepoPath, in_base: Option<Node>) -> Result<(), Refusal> {
        let committed = match in_base {
            Some(Node::File(file)) => Some(file.content),
            _ => None,
        };
        let content = match self.entries.get(from) {
            Some(Staged::Removed) => return Err(Refusal::staged_for_removal(from)),
            Some(staged) => staged.content(),
            None => committed,
        };
        let content = content.ok_or_else(|| Refusal::no_path(from))?;
        if self.under(to).next().is_some() {
            return Err(Refusal::destination_staged(to));
        }
        let left = committed.map(|_| Staged::Removed);
        Ok(self.apply(vec![(to.clone(), Some(Staged::Added(content))), (from.clone(), left)])?)
    }

    fn refuse_below_file(&self, base: &Base<'_>, path: &RepoPath) -> Result<(), Refusal> {
        let mut above = path.parent();
        while let Some(dir) = above.filter(|dir| !dir.is_root()) {
            let is_file = match self.entries.get(&dir) {
                Some(staged) => *staged != Staged::Removed,
                None => base.file(&dir)?.is_some(),
            };
            if is_file {
                return Err(Refusal::not_a_directory(dir));
            }
            above = dir.parent();
        }
        Ok(())
    }

    /// Writes the changes down, then makes them.
    fn apply(&mut self, changes: Vec<(RepoPath, Option<Staged>)>) -> io::Result<()> {
        let mut lines = Vec::new();
        for (path, staged) in &changes {
            let line = Line { path: path.clone(), staged: *staged };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        self.log.write_all(&lines)?;
        for (path, staged) in changes {
            self.set(path, staged);
        }
        Ok(())
    }

    fn set(&mut self, path: RepoPath, staged: Option<Staged>) {
        match staged {
            Some(staged) => self.entries.insert(path, staged),
            None => self.entries.remove(&path),
        };
    }
}

/// Whether committing `staged` would undo what a branch did: `base` is what the workspace's commit has at the path,
/// `branch` what the branch has there now.
pub(super) fn collides(
    dialect: Dialect,
    staged: &Staged,
    base: Option<ContentHash>,
    branch: Option<ContentHash>,
) -> bool {
    if base == branch {
        return false;
    }
    match dialect {
        Dialect::V0_65 => branch != staged.content().map(|content| content.hash),
        // Earlier releases look only at paths that both commits have: what only one side has passes unseen.
        Dialect::Documented | Dialect::V0_50 | Dialect::V0_58 => base.is_some() && branch.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    fn content(text: &str) -> Content {
        Content { hash: ContentHash::of(HashKind::Xxh3, text.as_bytes()), size: text.len() as u64 }
    }

    /// A base with `a` = "a", `d/x` = "x", `d/y` = "y", and an empty workspace on it.
    struct World {
        dir: tempfile::TempDir,
        trees: Trees,
        root: DirNode,
        staging: Staging,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let trees = Trees::new(dir.path().join("trees"));
            let files = ["a", "d/x", "d/y"].map(|at| (path(at), Some(content(at.trim_start_matches("d/")))));
            let root = trees.apply(None, &files, "c1").unwrap();
            let staging = Staging::open(&dir.path().join("log")).unwrap();
            Self { dir, trees, root, staging }
        }

        fn put(&mut self, at: &str, text: &str) {
            let base = Base { trees: &self.trees, root: &self.root };
            self.staging.put(&base, &[(path(at), content(text))]).unwrap();
        }

        fn remove(&mut self, at: &str) -> bool {
            let base = Base { trees: &self.trees, root: &self.root };
            self.staging.remove(&base, &path(at)).unwrap()
        }

        fn rename(&mut self, from: &str, to: &str) -> Result<(), Refusal> {
            let base = Base { trees: &self.trees, root: &self.root };
            self.staging.rename(&base, Dialect::V0_65, &path(from), &path(to))
        }

        fn staged(&self) -> Vec<(String, Staged)> {
            let entries = self.staging.entries().iter();
            entries.map(|(path, staged)| (path.as_str().to_owned(), *staged)).collect()
        }
    }

    #[test]
    fn the_bases_content_leaves_an_older_change_standing() {
        let mut world = World::new();
        world.put("a", "a");
        assert!(world.staged().is_empty(), "untouched");
        world.put("a", "other");
        world.put("a", "a");
        assert_eq!(world.staged(), [("a".to_owned(), Staged::Modified(content("other")))]);
        assert!(world.remove("a"));
        world.put("a", "a");
        assert_eq!(world.staged(), [("a".to_owned(), Staged::Removed)]);
    }

    #[test]
    fn removing_a_directory_removes_its_files_and_forgets_what_was_only_staged() {
        let mut world = World::new();
        world.put("d/new", "new");
        world.put("d/x", "changed");
        assert!(world.remove("d"));
        assert_eq!(world.staged(), ["d/x", "d/y"].map(|at| (at.to_owned(), Staged::Removed)));
        world.put("n/1", "1");
        assert!(world.remove("n"));
        assert!(!world.remove("n"), "nothing is there any more");
    }

    #[test]
    fn moving_a_directory_takes_committed_and_staged_files_along() {
        let mut world = World::new();
        world.put("d/new", "new");
        world.put("d/x", "changed");
        assert!(world.remove("d/y"));
        world.rename("d", "e").unwrap();
        let expected = [
            ("d/x", Staged::Removed),
            ("d/y", Staged::Removed),
            ("e/new", Staged::Added(content("new"))),
            ("e/x", Staged::Added(content("changed"))),
        ];
        assert_eq!(world.staged(), expected.map(|(at, staged)| (at.to_owned(), staged)));
        assert!(world.rename("a", "e").is_err(), "something is staged below");
        assert!(world.rename("e", "e/inside").is_err());
        assert!(world.rename("nothing", "f").is_err());
    }

    #[test]
    fn the_log_brings_everything_back_and_forgets_a_torn_line() {
        let mut world = World::new();
        world.put("new\nline", "n");
        world.put("a", "other");
        assert!(world.remove("d/x"));
        assert!(world.staging.unstage(&path("a")).unwrap());
        let log = world.dir.path().join("log");
        let mut torn = fs::read(&log).unwrap();
        torn.extend_from_slice(br#"{"path":"half"#);
        fs::write(&log, torn).unwrap();
        let before = world.staged();
        world.staging = Staging::open(&log).unwrap();
        assert_eq!(world.staged(), before);
        world.put("after", "1");
        world.staging = Staging::open(&log).unwrap();
        assert_eq!(world.staged().len(), before.len() + 1);
    }

    #[test]
    fn a_change_collides_with_what_the_branch_did_to_its_path() {
        let [one, two, three] = ["1", "2", "3"].map(|text| Some(content(text).hash));
        let put = |text| Staged::Modified(content(text));
        let table = [
            ("the branch left it alone", put("2"), one, one, false, false),
            ("both modified it", put("2"), one, three, true, true),
            ("both to the same", put("2"), one, two, false, true),
            ("both added it", put("2"), None, three, true, false),
            ("both added the same", put("2"), None, two, false, false),
            ("modified here, removed there", put("2"), one, None, true, false),
            ("removed here, modified there", Staged::Removed, one, two, true, true),
            ("both removed it", Staged::Removed, one, None, false, false),
        ];
        for (what, staged, base, branch, now, before) in table {
            assert_eq!(collides(Dialect::V0_65, &staged, base, branch), now, "0.65: {what}");
            assert_eq!(collides(Dialect::V0_58, &staged, base, branch), before, "0.58: {what}");
        }
    }
}
