//! Immutable directories, each in a file named by the hash of what it lists.
//!
//! A commit's tree shares every directory it did not change with the trees before it, so a commit costs what the
//! directories on the way to its changes cost.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::versions::{Content, write_whole};
use crate::hash::{ContentHash, HashKind};
use crate::path::RepoPath;

/// Directories kept in memory. A thousand cover a walk over one commit; their files may be many, so not more.
const CACHED_DIRS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The directory that lists nothing.
pub(super) type DirId = ContentHash;

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// A committed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileNode {
    #[serde(flatten)]
    pub(super) content: Content,
    /// The commit that last changed it.
    pub(super) commit: String,
}

/// A committed directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DirNode {
    pub(super) id: DirId,
    /// The commit that last changed something below it.
    pub(super) commit: String,
    /// Sum of the sizes of all files below it.
    pub(super) bytes: u64,
}

/// A directory's entries by name.
pub(super) type Dir = BTreeMap<String, Node>;

/// What becomes of one path in a commit: its new content, or nothing.
pub(super) type Change = Option<Content>;

/// The directories of one repository.
#[derive(Debug)]
pub(super) struct Trees {
    dir: PathBuf,
    cached: Mutex<LruCache<DirId, Arc<Dir>>>,
}

impl Trees {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, cached: Mutex::new(LruCache::new(CACHED_DIRS)) }
    }

    /// The directory with this id.
    pub(super) fn load(&self, id: &DirId) -> io::Result<Arc<Dir>> {
        if let Some(dir) = self.cached().get(id) {
            return Ok(Arc::clone(dir));
        }
        let dir: Arc<Dir> = Arc::new(serde_json::from_slice(&fs::read(self.path(id))?)?);
        self.cached().put(*id, Arc::clone(&dir));
        Ok(dir)
    }

    /// What is at `path` below `root`; `None` when nothing is, or a file is on the way.
    pub(super) fn find(&self, root: &DirNode, path: &RepoPath) -> io::Result<Option<Node>> {
        let mut node = Node::Dir(root.clone());
        for name in path.components() {
            let Node::Dir(dir) = &node else {
                return Ok(None);
            };
            match self.load(&dir.id)?.get(name) {
                Some(child) => node = child.clone(),
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Every file below `node`, which is at `path`; `node` itself when it is a file.
    pub(super) fn files(&self, path: &RepoPath, node: &Node) -> io::Result<Vec<(RepoPath, FileNode)>> {
        let mut files = Vec::new();
        let mut open = vec![(path.clone(), node.clone())];
        while let Some((path, node)) = open.pop() {
            match node {
                Node::File(file) => files.push((path, file)),
                Node::Dir(dir) => {
                    for (name, child) in self.load(&dir.id)?.iter() {
                        let name = RepoPath::parse(name).map_err(io::Error::other)?;
                        open.push((path.concat(&name), child.clone()));
                    }
                }
            }
        }
        Ok(files)
    }

    /// The tree that `changes`, in order of their paths, make of `root`, as of `commit`. Directories left without
    /// files are gone, but for the root. Where a file and a path below it are both wanted, the path below wins.
    pub(super) fn apply(
        &self,
        root: Option<&DirNode>,
        changes: &[(RepoPath, Change)],
        commit: &str,
    ) -> io::Result<DirNode> {
        let changes: Vec<_> = changes.iter().map(|(path, change)| (path.as_str(), *change)).collect();
        let entries = match root {
            Some(root) => (*self.load(&root.id)?).clone(),
            None => Dir::new(),
        };
        let entries = self.changed(entries, &changes, commit)?;
        self.save(entries, commit)
    }

    fn changed(&self, mut entries: Dir, changes: &[(&str, Change)], commit: &str) -> io::Result<Dir> {
        let mut rest = changes;
        while let Some(&(path, change)) = rest.first() {
            let Some((name, _)) = path.split_once('/') else {
                match change {
                    Some(content) => {
                        let commit = commit.to_owned();
                        entries.insert(path.to_owned(), Node::File(FileNode { content, commit }));
                    }
                    None if matches!(entries.get(path), Some(Node::File(_))) => {
                        entries.remove(path);
                    }
                    None => {}
                }
                rest = &rest[1..];
                continue;
            };
            // Paths below one directory follow each other.
            let below = |path: &str| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
            let length = rest.iter().take_while(|(path, _)| below(path)).count();
            let inside: Vec<_> =
                rest[..length].iter().map(|(path, change)| (&path[name.len() + 1..], *change)).collect();
            rest = &rest[length..];
            let (before, there) = match entries.get(name) {
                Some(Node::Dir(dir)) => ((*self.load(&dir.id)?).clone(), true),
                Some(Node::File(_)) => (Dir::new(), true),
                None => (Dir::new(), false),
            };
            let after = self.changed(before, &inside, commit)?;
            if !after.is_empty() {
                entries.insert(name.to_owned(), Node::Dir(self.save(after, commit)?));
            } else if there && matches!(entries.get(name), Some(Node::Dir(_))) {
                entries.remove(name);
            }
        }
        Ok(entries)
    }

    fn save(&self, entries: Dir, commit: &str) -> io::Result<DirNode> {
        let json = serde_json::to_vec(&entries)?;
        let id = ContentHash::of(HashKind::Xxh3, &json);
        let path = self.path(&id);
        if !path.exists() {
            if let Some(shelf) = path.parent() {
                fs::create_dir_all(shelf)?;
            }
            write_whole(&path, &json)?;
        }
        let bytes = entries
            .values()
            .map(|node| match node {
                Node::File(file) => file.content.size,
                Node::Dir(dir) => dir.bytes,
            })
            .sum();
        self.cached().put(id, Arc::new(entries));
        Ok(DirNode { id, commit: commit.to_owned(), bytes })
    }

    fn path(&self, id: &DirId) -> PathBuf {
        let text = id.to_string();
        let (shelf, _) = text.split_at(text.len().min(2));
        self.dir.join(shelf).join(&text)
    }

    /// A cache has nothing that a panic could leave half done.
    fn cached(&self) -> std::sync::MutexGuard<'_, LruCache<DirId, Arc<Dir>>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    fn content(text: &str) -> Content {
        Content { hash: ContentHash::of(HashKind::Xxh3, text.as_bytes()), size: text.len() as u64 }
    }

    fn changes(list: &[(&str, Option<&str>)]) -> Vec<(RepoPath, Change)> {
        let mut changes: Vec<_> = list.iter().map(|(at, text)| (path(at), text.map(content))).collect();
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        changes
    }

    fn listing(trees: &Trees, root: &DirNode) -> Vec<String> {
        let files = trees.files(&RepoPath::root(), &Node::Dir(root.clone())).unwrap();
        let mut names: Vec<_> = files.into_iter().map(|(path, _)| path.as_str().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_commit_changes_only_the_directories_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::new(dir.path().to_owned());
        let start = changes(&[("a/x", Some("1")), ("a/y", Some("22")), ("a.txt", Some("")), ("b/z", Some("3"))]);
        let first = trees.apply(None, &start, "c1").unwrap();
        assert_eq!(listing(&trees, &first), ["a.txt", "a/x", "a/y", "b/z"]);
        assert_eq!(first.bytes, 4);
        let second = trees.apply(Some(&first), &changes(&[("b/z", None), ("a/x", Some("9"))]), "c2").unwrap();
        assert_eq!(listing(&trees, &second), ["a.txt", "a/x", "a/y"], "the emptied directory is gone");
        let Some(Node::Dir(a)) = trees.find(&second, &path("a")).unwrap() else {
            panic!("a directory");
        };
        assert_eq!(a.commit, "c2");
        let Some(Node::File(y)) = trees.find(&second, &path("a/y")).unwrap() else {
            panic!("a file");
        };
        assert_eq!(y.commit, "c1");
        assert!(trees.find(&second, &path("a/x/below")).unwrap().is_none());
    }

    #[test]
    fn one_of_a_file_and_a_directory_of_the_same_name_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::new(dir.path().to_owned());
        let first = trees.apply(None, &changes(&[("a/x", Some("1")), ("f", Some("2"))]), "c1").unwrap();
        let clash = changes(&[("a", Some("now a file")), ("f/below", Some("now a directory"))]);
        let second = trees.apply(Some(&first), &clash, "c2").unwrap();
        assert_eq!(listing(&trees, &second), ["a", "f/below"]);
        let swap = changes(&[("a", None), ("a/x", Some("1"))]);
        let third = trees.apply(Some(&second), &swap, "c3").unwrap();
        assert_eq!(listing(&trees, &third), ["a/x", "f/below"]);
    }

    #[test]
    fn trees_are_read_back_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let first = Trees::new(dir.path().to_owned());
        let root = first.apply(None, &changes(&[("a/b/c", Some("1"))]), "c1").unwrap();
        assert_eq!(listing(&Trees::new(dir.path().to_owned()), &root), ["a/b/c"]);
    }
}
