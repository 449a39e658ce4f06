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

/// A directory's name: the hash of what it lists.
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

/// What becomes of one path in a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A file with this content.
    Put(Content),
    /// The file is gone; its directory stays, empty perhaps.
    Remove,
    /// The directory is gone, whatever is below it.
    RemoveDir,
    /// Whatever is there is gone, with all below it: what a server does that loses something.
    Drop,
}

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

    /// Visits `node`, which is at `path`, and everything below it, a directory before what is in it.
    pub(super) fn walk(
        &self,
        path: &RepoPath,
        node: &Node,
        visit: &mut impl FnMut(&RepoPath, &Node),
    ) -> io::Result<()> {
        let mut open = vec![(path.clone(), node.clone())];
        while let Some((path, node)) = open.pop() {
            visit(&path, &node);
            if let Node::Dir(dir) = node {
                for (name, child) in self.load(&dir.id)?.iter() {
                    let name = RepoPath::parse(name).map_err(io::Error::other)?;
                    open.push((path.concat(&name), child.clone()));
                }
            }
        }
        Ok(())
    }

    /// The paths at which two trees differ, with what each has there; a directory in which something differs is one.
    pub(super) fn differences(
        &self,
        old: &DirNode,
        new: &DirNode,
    ) -> io::Result<BTreeMap<RepoPath, [Option<Node>; 2]>> {
        let mut found = BTreeMap::new();
        let mut open = vec![(RepoPath::root(), Some(old.id), Some(new.id))];
        while let Some((dir, old, new)) = open.pop() {
            let load = |id: Option<DirId>| id.map_or_else(|| Ok(Arc::default()), |id| self.load(&id));
            let (old, new) = (load(old)?, load(new)?);
            for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                let sides = [old.get(name).cloned(), new.get(name).cloned()];
                let same = match &sides {
                    [Some(Node::File(old)), Some(Node::File(new))] => old.content == new.content,
                    [old, new] => old == new,
                };
                if same {
                    continue;
                }
                let path = dir.concat(&RepoPath::parse(name).map_err(io::Error::other)?);
                let below = sides.each_ref().map(|side| match side {
                    Some(Node::Dir(dir)) => Some(dir.id),
                    _ => None,
                });
                if below[0] != below[1] {
                    open.push((path.clone(), below[0], below[1]));
                }
                found.insert(path, sides);
            }
        }
        Ok(found)
    }

    /// Every file below `node`, which is at `path`; `node` itself when it is a file.
    pub(super) fn files(&self, path: &RepoPath, node: &Node) -> io::Result<Vec<(RepoPath, FileNode)>> {
        let mut files = Vec::new();
        self.walk(path, node, &mut |path, node| {
            if let Node::File(file) = node {
                files.push((path.clone(), file.clone()));
            }
        })?;
        Ok(files)
    }

    /// The tree that `changes` make of `root`, as of `commit`.
    ///
    /// A file that is put where a directory is, or where something changes below, is lost, even when all that changes
    /// below is removed. Released servers do so; a client removes the directory in a commit of its own first.
    pub(super) fn apply(
        &self,
        root: Option<&DirNode>,
        changes: &BTreeMap<RepoPath, Change>,
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

    /// `entries` after `changes`, which are in tree order: what is below a path directly follows it.
    fn changed(&self, mut entries: Dir, changes: &[(&str, Change)], commit: &str) -> io::Result<Dir> {
        let mut rest = changes;
        while let Some(&(path, first)) = rest.first() {
            let (name, direct) = match path.split_once('/') {
                Some((name, _)) => (name, None),
                None => (path, Some(first)),
            };
            let below = |path: &str| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
            rest = &rest[usize::from(direct.is_some())..];
            let length = rest.iter().take_while(|(path, _)| below(path)).count();
            let inside = rest[..length].iter();
            let inside: Vec<_> = inside.map(|(path, change)| (&path[name.len() + 1..], *change)).collect();
            rest = &rest[length..];
            match (direct, entries.get(name)) {
                (Some(Change::RemoveDir), Some(Node::Dir(_))) => {
                    entries.remove(name);
                }
                (_, there) if !inside.is_empty() => {
                    let before = match there {
                        Some(Node::Dir(dir)) => Some((*self.load(&dir.id)?).clone()),
                        _ => None,
                    };
                    let stays = before.is_some();
                    let after = self.changed(before.unwrap_or_default(), &inside, commit)?;
                    if stays || !after.is_empty() {
                        entries.insert(name.to_owned(), Node::Dir(self.save(after, commit)?));
                    }
                }
                (Some(Change::Put(_)), Some(Node::Dir(_))) => {}
                (Some(Change::Put(content)), _) => {
                    let commit = commit.to_owned();
                    entries.insert(name.to_owned(), Node::File(FileNode { content, commit }));
                }
                (Some(Change::Drop), _) => drop(entries.remove(name)),
                (Some(Change::Remove), Some(Node::File(_))) => {
                    entries.remove(name);
                }
                _ => {}
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

    fn changes(list: &[(&str, Option<&str>)]) -> BTreeMap<RepoPath, Change> {
        let change = |text: &Option<&str>| text.map_or(Change::Remove, |text| Change::Put(content(text)));
        list.iter().map(|(at, text)| (path(at), change(text))).collect()
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
        assert_eq!(listing(&trees, &second), ["a.txt", "a/x", "a/y"]);
        let Some(Node::Dir(b)) = trees.find(&second, &path("b")).unwrap() else {
            panic!("the emptied directory stays");
        };
        assert!(trees.load(&b.id).unwrap().is_empty());
        let gone = BTreeMap::from([(path("b"), Change::RemoveDir)]);
        let third = trees.apply(Some(&second), &gone, "c3").unwrap();
        assert!(trees.find(&third, &path("b")).unwrap().is_none());
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
    fn a_file_in_a_directorys_place_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::new(dir.path().to_owned());
        let first = trees.apply(None, &changes(&[("a/x", Some("1")), ("f", Some("2"))]), "c1").unwrap();
        let clash = changes(&[("a", Some("now a file")), ("f/below", Some("now a directory"))]);
        let second = trees.apply(Some(&first), &clash, "c2").unwrap();
        assert_eq!(listing(&trees, &second), ["a/x", "f/below"]);
        let mut lost = changes(&[("a", Some("now a file")), ("a/x", None)]);
        let third = trees.apply(Some(&first), &lost, "c3").unwrap();
        assert_eq!(listing(&trees, &third), ["f"]);
        assert!(matches!(trees.find(&third, &path("a")).unwrap(), Some(Node::Dir(_))));
        lost.insert(path("a"), Change::RemoveDir);
        let fourth = trees.apply(Some(&first), &lost, "c4").unwrap();
        assert!(trees.find(&fourth, &path("a")).unwrap().is_none());
    }

    #[test]
    fn trees_are_read_back_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let first = Trees::new(dir.path().to_owned());
        let root = first.apply(None, &changes(&[("a/b/c", Some("1"))]), "c1").unwrap();
        assert_eq!(listing(&Trees::new(dir.path().to_owned()), &root), ["a/b/c"]);
    }
}
