//! The model: a map from path to node, with POSIX's rules and nothing else.

use std::collections::{BTreeMap, BTreeSet};

/// A path from the root.
pub type Path = Vec<String>;

#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Contents of files are shared between names by number.
    File(u64),
    Dir,
    Symlink,
}

/// What a program sees at a path.
#[derive(Clone, PartialEq)]
pub enum Shown {
    Dir,
    Symlink,
    File(Vec<u8>),
    /// A file that cannot be read.
    Unreadable,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir => f.write_str("Dir"),
            Self::Symlink => f.write_str("Symlink"),
            Self::Unreadable => f.write_str("Unreadable"),
            Self::File(content) => {
                let start = &content[..content.len().min(40)];
                write!(f, "File({} bytes: {:?})", content.len(), String::from_utf8_lossy(start))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Exists,
    NotDir,
    IsDir,
    NotEmpty,
    Invalid,
    NotPermitted,
    NoData,
    /// The local disk fails; the model's never does.
    Disk,
}

/// What belongs to a file or directory beside content and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    fn new(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    /// Of what a program makes in a directory: a set-group-id directory hands its group down.
    fn made_in(above: Option<&Meta>, is_dir: bool) -> Self {
        let mut meta = Self::new(MADE_MODE);
        if let Some(above) = above.filter(|above| above.mode & 0o2000 != 0) {
            meta.gid = above.gid;
            meta.mode |= if is_dir { 0o2000 } else { 0 };
        }
        meta
    }
}

/// Of what the base has.
const BASE_FILE_MODE: u16 = 0o644;
const BASE_DIR_MODE: u16 = 0o755;
/// That every program here asks for, of files and directories.
pub const MADE_MODE: u16 = 0o644;

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub nodes: BTreeMap<Path, Node>,
    pub contents: BTreeMap<u64, Vec<u8>>,
    /// Of files, by number; of directories, by path. What belongs to a symbolic link is not followed.
    files: BTreeMap<u64, Meta>,
    dirs: BTreeMap<Path, Meta>,
    next: u64,
}

/// Whose lines keep files here.
pub const PATTERNS: &str = ".oxenignore";

/// What is ignored by these lines, if it is new: as gitignore has it, of names and paths without wildcards, and `*`.
pub fn is_ignored(patterns: &str, path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let decides = |length: usize| {
        let at = &parts[..length];
        patterns.lines().rev().find_map(|line| {
            let (ignores, line) = line.strip_prefix('!').map_or((true, line), |line| (false, line));
            let (dir, line) = line.strip_suffix('/').map_or((false, line), |line| (true, line));
            let matches = match line.trim_start_matches('/') {
                "" => false,
                "*" => true,
                rooted if line.contains('/') => at.join("/") == rooted,
                name => at.last() == Some(&name),
            };
            (matches && (!dir || length < parts.len())).then_some(ignores)
        })
    };
    path != PATTERNS && (1..=parts.len()).any(|length| decides(length) == Some(true))
}

/// The paths of `files` that the server is to have, where it has those of `base` already.
pub fn travels(files: &BTreeMap<String, Vec<u8>>, base: &BTreeSet<String>) -> BTreeSet<String> {
    let patterns = files.get(PATTERNS).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default();
    files.keys().filter(|path| base.contains(*path) || !is_ignored(&patterns, path)).cloned().collect()
}

type Done = Result<(), Refusal>;

impl Model {
    pub fn get(&self, path: &[String]) -> Option<&Node> {
        if path.is_empty() { Some(&Node::Dir) } else { self.nodes.get(path) }
    }

    /// Checks that everything above `path` is a directory.
    fn parent(&self, path: &[String]) -> Done {
        for length in 1..path.len() {
            match self.get(&path[..length]) {
                None => return Err(Refusal::NotFound),
                Some(Node::Dir) => {}
                Some(_) => return Err(Refusal::NotDir),
            }
        }
        Ok(())
    }

    pub fn is_empty_dir(&self, path: &[String]) -> bool {
        !self.nodes.keys().any(|other| other.len() > path.len() && other.starts_with(path))
    }

    pub fn insert_file(&mut self, path: Path, content: Vec<u8>) {
        self.next += 1;
        self.contents.insert(self.next, content);
        self.files.insert(self.next, Meta::new(BASE_FILE_MODE));
        self.nodes.insert(path, Node::File(self.next));
    }

    pub fn insert_base(&mut self, path: &[String], content: Vec<u8>) {
        for length in 1..path.len() {
            self.nodes.insert(path[..length].to_vec(), Node::Dir);
            self.dirs.insert(path[..length].to_vec(), Meta::new(BASE_DIR_MODE));
        }
        self.insert_file(path.to_vec(), content);
    }

    pub fn file(&self, path: &[String]) -> Option<&Vec<u8>> {
        match self.get(path)? {
            Node::File(number) => self.contents.get(number),
            _ => None,
        }
    }

    fn open(&mut self, path: &[String], create: bool) -> Result<u64, Refusal> {
        self.parent(path)?;
        match self.get(path) {
            Some(Node::File(number)) => Ok(*number),
            Some(Node::Dir) => Err(Refusal::IsDir),
            Some(Node::Symlink) => Err(Refusal::Invalid),
            None if create => {
                self.insert_file(path.to_vec(), Vec::new());
                let meta = Meta::made_in(self.dirs.get(&path[..path.len() - 1]), false);
                self.files.insert(self.next, meta);
                Ok(self.next)
            }
            None => Err(Refusal::NotFound),
        }
    }

    pub fn write(&mut self, path: &[String], at: usize, text: &[u8]) -> Done {
        let number = self.open(path, true)?;
        let content = self.contents.entry(number).or_default();
        if !text.is_empty() {
            let end = at + text.len();
            content.resize(content.len().max(end), 0);
            content[at..end].copy_from_slice(text);
        }
        Ok(())
    }

    /// Writes to the beginning of what is there.
    pub fn overwrite(&mut self, path: &[String], text: &[u8]) -> Done {
        self.open(path, false)?;
        self.write(path, 0, text)
    }

    pub fn replace(&mut self, path: &[String], text: &[u8]) -> Done {
        let number = self.open(path, true)?;
        self.contents.insert(number, text.to_vec());
        Ok(())
    }

    pub fn truncate(&mut self, path: &[String], size: usize) -> Done {
        let number = self.open(path, false)?;
        self.contents.entry(number).or_default().resize(size, 0);
        Ok(())
    }

    pub fn flush(&self, path: &[String]) -> Done {
        self.parent(path)?;
        match self.get(path) {
            None => Err(Refusal::NotFound),
            Some(Node::Symlink) => Err(Refusal::Invalid),
            Some(_) => Ok(()),
        }
    }

    pub fn copy(&mut self, from: &[String], to: &[String]) -> Done {
        let source = self.open(from, false)?;
        let target = self.open(to, true)?;
        self.replace(to, &[])?;
        if source != target {
            let content = self.contents.get(&source).cloned().unwrap_or_default();
            self.replace(to, &content)?;
        }
        Ok(())
    }

    pub fn punch(&mut self, path: &[String], at: usize, length: usize) -> Done {
        let number = self.open(path, false)?;
        let content = self.contents.entry(number).or_default();
        let (begin, end) = (at.min(content.len()), (at + length).min(content.len()));
        content[begin..end].fill(0);
        Ok(())
    }

    pub fn unlink(&mut self, path: &[String]) -> Done {
        self.parent(path)?;
        match self.get(path) {
            None => Err(Refusal::NotFound),
            Some(Node::Dir) => Err(Refusal::IsDir),
            Some(_) => {
                self.nodes.remove(path);
                Ok(())
            }
        }
    }

    pub fn vacancy(&self, path: &[String]) -> Done {
        self.parent(path)?;
        if self.get(path).is_some() { Err(Refusal::Exists) } else { Ok(()) }
    }

    pub fn mkdir(&mut self, path: &[String]) -> Done {
        self.vacancy(path)?;
        let meta = Meta::made_in(self.dirs.get(&path[..path.len() - 1]), true);
        self.dirs.insert(path.to_vec(), meta);
        self.nodes.insert(path.to_vec(), Node::Dir);
        Ok(())
    }

    pub fn symlink(&mut self, path: &[String]) -> Done {
        self.vacancy(path)?;
        self.nodes.insert(path.to_vec(), Node::Symlink);
        Ok(())
    }

    pub fn link(&mut self, from: &[String], to: &[String]) -> Done {
        self.parent(from)?;
        let node = self.get(from).ok_or(Refusal::NotFound)?.clone();
        self.vacancy(to)?;
        if node == Node::Dir {
            return Err(Refusal::NotPermitted);
        }
        // A symlink with two names is one inode too, but the model does not tell them apart.
        self.nodes.insert(to.to_vec(), node);
        Ok(())
    }

    pub fn rmdir(&mut self, path: &[String]) -> Done {
        self.parent(path)?;
        match self.get(path) {
            None => Err(Refusal::NotFound),
            Some(Node::Dir) if self.is_empty_dir(path) => {
                self.nodes.remove(path);
                self.dirs.remove(path);
                Ok(())
            }
            Some(Node::Dir) => Err(Refusal::NotEmpty),
            Some(_) => Err(Refusal::NotDir),
        }
    }

    pub fn rename(&mut self, from: &[String], to: &[String], mode: u8) -> Done {
        self.parent(from)?;
        let node = self.get(from).ok_or(Refusal::NotFound)?.clone();
        self.parent(to)?;
        let target = self.get(to).cloned();
        let is_dir = node == Node::Dir;
        if is_dir && to.len() > from.len() && to.starts_with(from) {
            return Err(Refusal::Invalid);
        }
        match (mode, &target) {
            (1, Some(_)) => return Err(Refusal::Exists),
            (2, None) => return Err(Refusal::NotFound),
            (2, Some(target)) => {
                if from == to || (matches!(node, Node::File(_)) && *target == node) {
                    return Ok(());
                }
                if *target == Node::Dir && from.len() > to.len() && from.starts_with(to) {
                    return Err(Refusal::Invalid);
                }
                let (a, b) = (self.cut(from), self.cut(to));
                self.paste(to, a);
                self.paste(from, b);
                return Ok(());
            }
            (_, Some(target)) => {
                if from == to || (matches!(node, Node::File(_)) && *target == node) {
                    return Ok(());
                }
                match (is_dir, *target == Node::Dir) {
                    (true, false) => return Err(Refusal::NotDir),
                    (false, true) => return Err(Refusal::IsDir),
                    (true, true) if !self.is_empty_dir(to) => return Err(Refusal::NotEmpty),
                    _ => {}
                }
            }
            (_, None) => {}
        }
        let moved = self.cut(from);
        self.nodes.remove(to);
        self.dirs.remove(to);
        self.paste(to, moved);
        Ok(())
    }

    fn cut(&mut self, path: &[String]) -> Vec<(Path, Node, Option<Meta>)> {
        let keys: Vec<Path> = self.nodes.keys().filter(|key| key.starts_with(path)).cloned().collect();
        let cut = keys
            .into_iter()
            .filter_map(|key| Some((key[path.len()..].to_vec(), self.nodes.remove(&key)?, self.dirs.remove(&key))));
        cut.collect()
    }

    fn paste(&mut self, path: &[String], nodes: Vec<(Path, Node, Option<Meta>)>) {
        for (below, node, meta) in nodes {
            let path = [path, &below].concat();
            self.dirs.extend(meta.map(|meta| (path.clone(), meta)));
            self.nodes.insert(path, node);
        }
    }

    fn meta(&mut self, path: &[String]) -> Result<&mut Meta, Refusal> {
        self.parent(path)?;
        let meta = match self.get(path).ok_or(Refusal::NotFound)?.clone() {
            Node::File(number) => self.files.get_mut(&number),
            Node::Dir => self.dirs.get_mut(path),
            Node::Symlink => return Err(Refusal::NotPermitted),
        };
        Ok(meta.expect("each has one"))
    }

    pub fn chmod(&mut self, path: &[String], mode: u16) -> Done {
        self.meta(path)?.mode = mode;
        Ok(())
    }

    pub fn chown(&mut self, path: &[String], uid: Option<u32>, gid: Option<u32>) -> Done {
        let is_dir = self.get(path) == Some(&Node::Dir);
        let meta = self.meta(path)?;
        (meta.uid, meta.gid) = (uid.unwrap_or(meta.uid), gid.unwrap_or(meta.gid));
        // A new owner is not who the bits were given to.
        if !is_dir {
            meta.mode &= if meta.mode & 0o010 != 0 { 0o1777 } else { 0o3777 };
        }
        Ok(())
    }

    pub fn set_xattr(&mut self, path: &[String], name: &str, value: &[u8], mode: u8) -> Done {
        let xattrs = &mut self.meta(path)?.xattrs;
        match (mode, xattrs.contains_key(name)) {
            (1, true) => Err(Refusal::Exists),
            (2, false) => Err(Refusal::NoData),
            _ => {
                xattrs.insert(name.to_owned(), value.to_vec());
                Ok(())
            }
        }
    }

    pub fn remove_xattr(&mut self, path: &[String], name: &str) -> Done {
        self.meta(path)?.xattrs.remove(name).map(|_| ()).ok_or(Refusal::NoData)
    }

    /// What belongs to every file and directory.
    pub fn metas(&self) -> BTreeMap<Path, Meta> {
        let meta = |(path, node): (&Path, &Node)| match node {
            Node::File(number) => Some((path.clone(), self.files.get(number)?.clone())),
            Node::Dir => Some((path.clone(), self.dirs.get(path)?.clone())),
            Node::Symlink => None,
        };
        self.nodes.iter().filter_map(meta).collect()
    }

    pub fn remove_all(&mut self, path: &[String]) -> Done {
        self.parent(path)?;
        match self.get(path) {
            None => Err(Refusal::NotFound),
            Some(_) => {
                self.cut(path);
                Ok(())
            }
        }
    }

    /// Everything there is.
    pub fn shown(&self) -> BTreeMap<Path, Shown> {
        let shown = |(path, node): (&Path, &Node)| {
            let shown = match node {
                Node::Dir => Shown::Dir,
                Node::Symlink => Shown::Symlink,
                Node::File(number) => Shown::File(self.contents.get(number).cloned().unwrap_or_default()),
            };
            (path.clone(), shown)
        };
        self.nodes.iter().map(shown).collect()
    }

    /// What a server should hold of it.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.nodes.keys().filter_map(|path| Some((path.join("/"), self.file(path)?.clone())));
        files.collect()
    }
}
