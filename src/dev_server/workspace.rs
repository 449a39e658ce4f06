//! Staged changes, and what staging means: which request changes what, and when a commit collides.
//!
//! Each change is appended to the workspace's log, so that staging costs the same however much is staged already; a
//! commit begins a new log.

mod marks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Dialect;
use super::answers::{Refusal, Status};
use super::tree::{DirNode, FileNode, Node, Trees};
use super::versions::{Content, Versions};
use crate::hash::ContentHash;
use crate::path::RepoPath;
pub(super) use marks::goes_back_to_base;

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

/// One line of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    /// A file is staged.
    Stage { path: RepoPath, staged: Staged },
    /// Nothing is staged at this path any more.
    Unstage { path: RepoPath },
    /// Something is staged below this directory.
    Mark { path: RepoPath },
    /// The removal of a directory is staged, beside that of its files.
    RemoveDir { path: RepoPath },
    /// The base's table at this path is in a database, and committed from there.
    Index { path: RepoPath },
}

/// What is staged of a directory itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Something is or was staged below it. Taking that back leaves the mark.
    Touched,
    /// It is removed.
    Removed,
}

/// The staged changes of one workspace. A path is staged as a file or marked as a directory, never both: what came
/// last wins, as on released servers. So a file staged in a directory's place is forgotten when something is staged
/// below it.
#[derive(Debug)]
pub(super) struct Staging {
    files: BTreeMap<RepoPath, Staged>,
    dirs: BTreeMap<RepoPath, Mark>,
    /// Tables that are committed as the base has them, whatever is staged.
    indexed: BTreeSet<RepoPath>,
    log: File,
}

impl Staging {
    /// Reads the log at `path`, or begins it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(path)?;
        let mut staging = Self { files: BTreeMap::new(), dirs: BTreeMap::new(), indexed: BTreeSet::new(), log };
        let bytes = fs::read(path)?;
        // A line without its end was cut off by the end of the process, and was never acknowledged.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        staging.log.set_len(whole as u64)?;
        for line in bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            staging.make(serde_json::from_slice(line)?);
        }
        Ok(staging)
    }

    /// All staged files in tree order.
    pub(super) fn files(&self) -> &BTreeMap<RepoPath, Staged> {
        &self.files
    }

    /// Directories whose removal is staged, in tree order.
    pub(super) fn removed_dirs(&self) -> impl Iterator<Item = &RepoPath> {
        let removed = self.dirs.iter().filter(|(_, mark)| **mark == Mark::Removed);
        removed.map(|(path, _)| path)
    }

    /// Files staged at `dir` or below it.
    pub(super) fn under(&self, dir: &RepoPath) -> impl Iterator<Item = (&RepoPath, &Staged)> {
        self.files.range(dir.clone()..).take_while(|(path, _)| path.is_in(dir))
    }

    /// Directories marked at `dir` or below it.
    fn dirs_under(&self, dir: &RepoPath) -> impl Iterator<Item = (&RepoPath, Mark)> {
        let from = self.dirs.range(dir.clone()..);
        from.take_while(|(path, _)| path.is_in(dir)).map(|(path, mark)| (path, *mark))
    }

    /// Whether anything is staged at exactly this path, a file or a directory's mark.
    pub(super) fn is_staged(&self, path: &RepoPath) -> bool {
        self.files.contains_key(path) || self.dirs.contains_key(path)
    }

    /// Whether anything is staged at `path` or below it.
    fn touches(&self, path: &RepoPath) -> bool {
        self.under(path).next().is_some() || self.dirs_under(path).next().is_some()
    }

    /// Stages content. A path that has this content in the base is passed over, *even when something else is staged
    /// there*: released servers do so, and leave the old change standing. They take content of the same length that
    /// was stored at the same time for the base's, and so does this.
    pub(super) fn put(
        &mut self,
        base: &Base<'_>,
        versions: &Versions,
        files: &[(RepoPath, Content)],
    ) -> io::Result<()> {
        let mut records = Vec::with_capacity(files.len());
        for (path, content) in files {
            let staged = match base.file(path)? {
                Some(there) if there.content.hash == content.hash => continue,
                Some(there) if versions.are_alike(&there.content, content) => continue,
                Some(_) => Staged::Modified(*content),
                None => Staged::Added(*content),
            };
            let path = path.clone();
            records.push(Record::Stage { path, staged });
        }
        self.write(records)
    }

    /// Stages the removal of a file, or of a directory with all its files; what is only staged is unstaged, but for
    /// releases before 0.64, which do not see it (0.53.4, tried; 0.58.0, read). Says whether there was anything.
    pub(super) fn remove(&mut self, base: &Base<'_>, dialect: Dialect, path: &RepoPath) -> io::Result<bool> {
        let dir = match base.find(path)? {
            Some(Node::File(_)) => {
                let (path, staged) = (path.clone(), Staged::Removed);
                self.write(vec![Record::Stage { path, staged }])?;
                return Ok(true);
            }
            Some(Node::Dir(dir)) => Some(dir),
            None => None,
        };
        let sees_staged = !matches!(dialect, Dialect::V0_50 | Dialect::V0_58);
        if dir.is_none() && !(sees_staged && self.touches(path)) {
            return Ok(false);
        }
        let mut records = self.forgetting(path);
        if !sees_staged {
            let added = |path: &RepoPath| matches!(self.files.get(path), Some(Staged::Added(_)));
            records.retain(|record| !matches!(record, Record::Unstage { path } if added(path)));
        }
        records.extend(self.pruning(base, path)?);
        if let Some(dir) = dir {
            records.extend(removal(base, path, dir)?);
        }
        self.write(records)?;
        Ok(true)
    }

    /// Unstages everything at `path` and below it.
    fn forgetting(&self, path: &RepoPath) -> Vec<Record> {
        let files = self.under(path).map(|(path, _)| path);
        let dirs = self.dirs_under(path).map(|(path, _)| path);
        files.chain(dirs).map(|path| Record::Unstage { path: path.clone() }).collect()
    }

    /// Unmarks the directories above `path` that the base does not have, and that nothing else is staged in.
    fn pruning(&self, base: &Base<'_>, path: &RepoPath) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut below = path.clone();
        while let Some(dir) = below.parent().filter(|dir| !dir.is_root()) {
            let other = |path: &RepoPath| *path != dir && !path.is_in(&below);
            let needed =
                self.under(&dir).any(|(path, _)| other(path)) || self.dirs_under(&dir).any(|(path, _)| other(path));
            if needed || matches!(base.find(&dir)?, Some(Node::Dir(_))) {
                break;
            }
            records.push(Record::Unstage { path: dir.clone() });
            below = dir;
        }
        Ok(records)
    }

    /// Drops what is staged at exactly this path, a file or a directory's mark. Says whether there was anything.
    pub(super) fn unstage(&mut self, path: &RepoPath) -> io::Result<bool> {
        if !self.is_staged(path) {
            return Ok(false);
        }
        self.write(vec![Record::Unstage { path: path.clone() }])?;
        Ok(true)
    }

    /// What becomes of a table of the base that is to be unstaged: see [`goes_back_to_base`].
    pub(super) fn index(&mut self, path: &RepoPath) -> io::Result<()> {
        self.write(vec![Record::Index { path: path.clone() }])
    }

    /// Moves a file, and where the dialect can, a directory with all below it.
    pub(super) fn rename(
        &mut self,
        base: &Base<'_>,
        dialect: Dialect,
        from: &RepoPath,
        to: &RepoPath,
    ) -> Result<(), Refusal> {
        // A file that is staged in a directory's place is moved alone.
        let in_place = self.files.get(from).is_some_and(|staged| staged.content().is_some());
        let in_base = base.find(from)?.filter(|node| !in_place || matches!(node, Node::File(_)));
        let staged_below = self.dirs.contains_key(from) || self.under(from).any(|(path, _)| path != from);
        let is_dir = !in_place && (matches!(in_base, Some(Node::Dir(_))) || staged_below);
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
        match in_base {
            Some(Node::File(file)) => self.rename_file(dialect, from, to, Some(file)),
            None if !is_dir => self.rename_file(dialect, from, to, None),
            _ if dialect != Dialect::V0_65 => Err(Refusal::no_path(from)),
            Some(Node::Dir(_)) if self.dirs.get(from) == Some(&Mark::Removed) => Err(Refusal::staged_for_removal(from)),
            _ if taken || self.touches(to) => Err(Refusal::destination_staged(to)),
            Some(Node::Dir(dir)) => self.rename_dir(base, from, to, Some(dir)),
            None => self.rename_dir(base, from, to, None),
        }
    }

    fn rename_file(
        &mut self,
        dialect: Dialect,
        from: &RepoPath,
        to: &RepoPath,
        in_base: Option<FileNode>,
    ) -> Result<(), Refusal> {
        let content = match self.files.get(from) {
            Some(Staged::Removed) => return Err(Refusal::staged_for_removal(from)),
            Some(staged) => staged.content(),
            None => in_base.as_ref().map(|file| file.content),
        };
        let content = content.ok_or_else(|| Refusal::no_path(from))?;
        if self.is_staged(to) {
            return Err(Refusal::destination_staged(to));
        }
        // What released servers do with a table is a copy: what the base has stays.
        let removes = in_base.is_some() && !is_table(dialect, from);
        let mut records = moving(from, to, content, removes).to_vec();
        if in_base.is_some() && !removes && !self.files.contains_key(from) {
            records.truncate(1);
        }
        Ok(self.write(records)?)
    }

    fn rename_dir(
        &mut self,
        base: &Base<'_>,
        from: &RepoPath,
        to: &RepoPath,
        in_base: Option<DirNode>,
    ) -> Result<(), Refusal> {
        let mut files = BTreeMap::new();
        if let Some(dir) = &in_base {
            for (path, file) in base.trees.files(from, &Node::Dir(dir.clone()))? {
                files.insert(path, (Some(file.content), true));
            }
        }
        for (path, staged) in self.under(from) {
            let committed = files.contains_key(path);
            files.insert(path.clone(), (staged.content(), committed));
        }
        let mut records = match &in_base {
            None => self.pruning(base, from)?,
            Some(_) => Vec::new(),
        };
        let dirs = self.dirs_under(from).map(|(path, _)| path.clone());
        records.extend(dirs.map(|path| Record::Unstage { path }));
        for (path, (content, committed)) in files {
            if let (Some(content), Some(below)) = (content, path.below(from)) {
                records.extend(moving(&path, &to.concat(&below), content, committed));
            }
        }
        if let Some(dir) = in_base {
            records.extend(removal(base, from, dir)?);
        }
        Ok(self.write(records)?)
    }

    fn refuse_below_file(&self, base: &Base<'_>, path: &RepoPath) -> Result<(), Refusal> {
        let mut above = path.parent();
        while let Some(dir) = above.filter(|dir| !dir.is_root()) {
            let is_file = match self.files.get(&dir) {
                Some(staged) => *staged != Staged::Removed,
                None => !self.dirs.contains_key(&dir) && base.file(&dir)?.is_some(),
            };
            if is_file {
                return Err(Refusal::not_a_directory(dir));
            }
            above = dir.parent();
        }
        Ok(())
    }

    /// Writes the records down, then makes them true.
    fn write(&mut self, records: Vec<Record>) -> io::Result<()> {
        let mut lines = Vec::new();
        for record in &records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        self.log.write_all(&lines)?;
        records.into_iter().for_each(|record| self.make(record));
        Ok(())
    }

    fn make(&mut self, record: Record) {
        match record {
            Record::Stage { path, staged } => {
                let mut above = path.parent();
                while let Some(dir) = above.filter(|dir| !dir.is_root()) {
                    above = dir.parent();
                    self.files.remove(&dir);
                    self.dirs.insert(dir, Mark::Touched);
                }
                self.dirs.remove(&path);
                if staged == Staged::Removed {
                    self.indexed.remove(&path);
                }
                self.files.insert(path, staged);
            }
            Record::Unstage { path } => {
                self.files.remove(&path);
                self.dirs.remove(&path);
                self.indexed.remove(&path);
            }
            Record::Mark { path } => drop(self.dirs.insert(path, Mark::Touched)),
            Record::Index { path } => drop(self.indexed.insert(path)),
            Record::RemoveDir { path } => {
                self.files.remove(&path);
                self.dirs.insert(path, Mark::Removed);
            }
        }
    }
}

/// Whether servers of this dialect take a file for a table, and treat it in ways of their own: by its extension alone.
pub(super) fn is_table(dialect: Dialect, path: &RepoPath) -> bool {
    const EXTENSIONS: [&str; 6] = ["csv", "tsv", "parquet", "arrow", "ndjson", "jsonl"];
    let extension = path.file_name().rsplit_once('.').map_or("", |(_, extension)| extension);
    dialect != Dialect::Documented && EXTENSIONS.iter().any(|table| extension.eq_ignore_ascii_case(table))
}

/// Moves one file; what is at the old path is removed, or only unstaged.
fn moving(from: &RepoPath, to: &RepoPath, content: Content, removes: bool) -> [Record; 2] {
    let stage = |path: &RepoPath, staged| Record::Stage { path: path.clone(), staged };
    let left = match removes {
        true => stage(from, Staged::Removed),
        false => Record::Unstage { path: from.clone() },
    };
    [stage(to, Staged::Added(content)), left]
}

/// Removes every file below a committed directory, then every directory, itself included; those above it are marked.
fn removal(base: &Base<'_>, path: &RepoPath, dir: DirNode) -> io::Result<Vec<Record>> {
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    base.trees.walk(path, &Node::Dir(dir), &mut |path, node| match node {
        Node::File(_) => files.push(Record::Stage { path: path.clone(), staged: Staged::Removed }),
        Node::Dir(_) => dirs.push(Record::RemoveDir { path: path.clone() }),
    })?;
    let above = std::iter::successors(path.parent(), RepoPath::parent).take_while(|dir| !dir.is_root());
    files.extend(above.map(|path| Record::Mark { path }));
    files.extend(dirs);
    Ok(files)
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
    use super::super::tree::Change;
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
            let files = ["a", "d/x", "d/y"].map(|at| (path(at), Change::Put(content(at.trim_start_matches("d/")))));
            let files = BTreeMap::from(files);
            let root = trees.apply(None, &files, "c1").unwrap();
            let staging = Staging::open(&dir.path().join("log")).unwrap();
            Self { dir, trees, root, staging }
        }

        fn put(&mut self, at: &str, text: &str) {
            let base = Base { trees: &self.trees, root: &self.root };
            let versions = Versions::new(self.dir.path().join("versions"), self.dir.path().join("new"), HashKind::Xxh3);
            self.staging.put(&base, &versions, &[(path(at), content(text))]).unwrap();
        }

        fn remove(&mut self, at: &str) -> bool {
            let base = Base { trees: &self.trees, root: &self.root };
            self.staging.remove(&base, Dialect::V0_65, &path(at)).unwrap()
        }

        fn rename(&mut self, from: &str, to: &str) -> Result<(), Refusal> {
            let base = Base { trees: &self.trees, root: &self.root };
            self.staging.rename(&base, Dialect::V0_65, &path(from), &path(to))
        }

        fn is_empty(&self) -> bool {
            self.staging.files.is_empty() && self.staging.dirs.is_empty()
        }

        fn staged(&self) -> Vec<(String, Staged)> {
            let entries = self.staging.files().iter();
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
    fn a_path_is_a_file_or_a_directory_and_the_last_word_wins() {
        let mut world = World::new();
        world.put("d", "a file now");
        assert!(world.remove("d/x"));
        assert_eq!(world.staged(), [("d/x".to_owned(), Staged::Removed)], "the file is forgotten");
        assert!(world.remove("a"));
        world.put("a/below", "1");
        assert_eq!(world.staged()[0].0, "a/below", "so is a file's removal");
        assert!(world.remove("d"));
        assert_eq!(world.staging.removed_dirs().map(RepoPath::as_str).collect::<Vec<_>>(), ["d"]);
        world.put("d/new", "2");
        assert_eq!(world.staging.removed_dirs().count(), 0, "it is needed again");
    }

    #[test]
    fn a_directory_that_nothing_is_left_in_is_known() {
        let mut world = World::new();
        let left = |world: &World| world.staging.left_dirs().iter().map(ToString::to_string).collect::<Vec<_>>();
        world.put("d/e/1", "1");
        world.put("d/2", "2");
        assert!(left(&world).is_empty());
        assert!(world.staging.unstage(&path("d/e/1")).unwrap());
        assert_eq!(left(&world), ["d/e"]);
        assert!(world.staging.unstage(&path("d/2")).unwrap());
        assert_eq!(left(&world), ["d/e"], "which is a mark in d");
        assert!(world.staging.unstage(&path("d/e")).unwrap());
        assert_eq!(left(&world), ["d"]);
        assert!(world.staging.unstage(&path("d")).unwrap());
        assert!(world.is_empty());
    }

    #[test]
    fn a_directory_that_was_staged_in_is_a_change_until_removed() {
        let mut world = World::new();
        world.put("n/deep/1", "1");
        assert!(world.staging.unstage(&path("n/deep/1")).unwrap());
        assert!(!world.is_empty());
        assert!(world.remove("n"));
        assert!(world.is_empty());
        world.put("n/deep/1", "1");
        assert!(world.remove("n/deep/1"));
        assert!(world.is_empty(), "removal takes the directories along");
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
    fn the_log_grows_by_what_is_staged_not_by_what_was() {
        let mut world = World::new();
        let mut lengths = [0; 2];
        for (half, length) in lengths.iter_mut().enumerate() {
            for number in 0..1_000 {
                world.put(&format!("many/{half}/{number}"), "x");
            }
            *length = fs::metadata(world.dir.path().join("log")).unwrap().len();
        }
        assert_eq!(lengths[1], 2 * lengths[0]);
        assert_eq!(world.staging.files().len(), 2_000);
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
