//! Names and repository paths: checked once when built, so that no callee checks again.

pub mod bytes_as_text;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;

use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name Linux filesystems take, in bytes (`NAME_MAX` in `limits.h`).
pub const NAME_MAX: usize = 255;

/// One directory entry's name: 1 to 255 bytes, any but `/` and NUL, not `.` or `..`.
///
/// Every file known has its name in memory twice, in its directory and beside its inode, so most take no allocation.
#[derive(Clone)]
pub struct Name(Stored);

/// How many bytes fit beside a length and a tag into what the longer kind takes anyway.
const SHORT_MAX: usize = 22;

#[derive(Clone)]
enum Stored {
    Short(u8, [u8; SHORT_MAX]),
    Long(Box<[u8]>),
}

/// Why a byte string is not a name or a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No bytes, or `.`, `..`, `/`, NUL in it.
    #[error("not a file name")]
    Invalid,
    /// Over [`NAME_MAX`] bytes.
    #[error("name longer than {NAME_MAX} bytes")]
    TooLong,
    /// Valid here, but no name the server can hold: not UTF-8.
    #[error("name is not UTF-8, which is all that Oxen can store")]
    NotUtf8,
    /// Valid here, but no name the server can hold: its commits turn the backslash into a directory separator
    /// (oxen-server 0.65.2, tried), which would put the file elsewhere, perhaps over another.
    #[error("the server takes the backslash in the name for a directory separator")]
    Backslash,
    /// Valid here, but a spelling of `.oxen`, which Oxen keeps for its own files (oxen-server 0.65.2, tried: one such
    /// name refuses the whole request).
    #[error("the server takes the name for .oxen, which belongs to Oxen itself")]
    Reserved,
    /// In the directory where a repair shows what it salvaged.
    #[error("salvaged by a repair: move or copy it out to have it sent")]
    Salvaged,
    /// A pattern of `.oxenignore` or `--ignore` matches it.
    #[error("ignored")]
    Ignored,
}

impl Name {
    /// Checks and copies `bytes`.
    ///
    /// # Errors
    /// [`PathError::Invalid`] or [`PathError::TooLong`].
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.len() > NAME_MAX {
            return Err(PathError::TooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(PathError::Invalid);
        }
        let mut short = [0; SHORT_MAX];
        Ok(Self(match short.get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                Stored::Short(bytes.len() as u8, short)
            }
            None => Stored::Long(bytes.into()),
        }))
    }

    /// The same, from what the kernel hands over.
    ///
    /// # Errors
    /// As [`Name::new`].
    pub fn from_os(name: &OsStr) -> Result<Self, PathError> {
        Self::new(name.as_bytes())
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Stored::Short(length, bytes) => &bytes[..usize::from(*length)],
            Stored::Long(bytes) => bytes,
        }
    }

    /// As the standard library wants it.
    pub fn as_os(&self) -> &OsStr {
        OsStr::from_bytes(self.as_bytes())
    }

    /// Whether the server can hold this name.
    ///
    /// # Errors
    /// [`PathError::NotUtf8`], [`PathError::Backslash`] or [`PathError::Reserved`]: the file stays local.
    pub fn storable(&self) -> Result<&str, PathError> {
        let text = std::str::from_utf8(self.as_bytes()).map_err(|_| PathError::NotUtf8)?;
        match text {
            _ if names_oxens_own(text) => Err(PathError::Reserved),
            _ if text.contains('\\') => Err(PathError::Backslash),
            _ => Ok(text),
        }
    }
}

/// Whether a name stands for the directory `.oxen` on any filesystem: in any case, with what Windows drops from the end
/// of names, or by its short name there. The rule is the server's (0.65.2, read: `is_oxen_hidden_dir_name`).
pub fn names_oxens_own(name: &str) -> bool {
    let name = name.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']).to_ascii_lowercase();
    let short = name.strip_prefix("oxen~");
    name == ".oxen" || short.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

/// By their bytes, as they are compared and hashed.
impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// A path inside a repository that the server can hold: UTF-8 components joined by `/`, none of them `.`, `..`,
/// `.oxen`, empty or over [`NAME_MAX`] bytes. The empty path is the root.
///
/// Ordered by components, so that a directory's descendants directly follow it ([`RepoPath::cmp`]).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RepoPath(ArcStr);

impl RepoPath {
    /// The repository's root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks `text`; one leading and one trailing `/` are forgiven.
    ///
    /// # Errors
    /// The first component that is no storable name.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let text = text.strip_prefix('/').unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        if !text.is_empty() {
            for part in text.split('/') {
                match Name::new(part.as_bytes())?.storable() {
                    // A server may name one; only making one is refused.
                    Ok(_) | Err(PathError::Backslash) => {}
                    Err(PathError::Reserved) if part != ".oxen" => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Self(text.into()))
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// When the server cannot hold `name`.
    pub fn join(&self, name: &Name) -> Result<Self, PathError> {
        let name = name.storable()?;
        Ok(Self(if self.is_root() { name.into() } else { format!("{}/{name}", self.0).into() }))
    }

    /// The path of what these names lead to from this directory, the last one first.
    ///
    /// # Errors
    /// When the server cannot hold one of them.
    pub fn descend(&self, names: &[&Name]) -> Result<Self, PathError> {
        let mut text = self.0.to_string();
        for name in names.iter().rev() {
            if !text.is_empty() {
                text.push('/');
            }
            text.push_str(name.storable()?);
        }
        Ok(Self(text.into()))
    }

    /// This path with `below` under it.
    pub fn concat(&self, below: &RepoPath) -> Self {
        match (self.is_root(), below.is_root()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{}/{}", self.0, below.0).into()),
        }
    }

    /// Components joined by `/`, as the server writes them.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        Some(Self(self.0.rsplit_once('/').map_or("", |(dir, _)| dir).into()))
    }

    /// The last component; empty for the root.
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// Whether `self` is `dir` or lies below it.
    pub fn is_in(&self, dir: &RepoPath) -> bool {
        dir.is_root() || self.0.strip_prefix(&*dir.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether `self` is one of `dirs` or lies below one; takes as long as it is deep, however many they are.
    pub fn is_in_any(&self, dirs: &HashSet<Self>) -> bool {
        std::iter::successors(Some(self.clone()), Self::parent).any(|dir| dirs.contains(&dir))
    }

    /// What is left of `self` below `dir`; `None` when it does not lie there.
    pub fn below(&self, dir: &RepoPath) -> Option<RepoPath> {
        if !self.is_in(dir) {
            return None;
        }
        let rest = &self.0[dir.0.len()..];
        Some(Self(rest.strip_prefix('/').unwrap_or(rest).into()))
    }
}

impl PartialOrd for RepoPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RepoPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // `/` sorts before every other byte, so `a`, `a/b`, `a.txt` come in tree order.
        let key = |b: u8| if b == b'/' { 0 } else { b };
        let (ours, theirs) = (self.0.as_bytes(), other.0.as_bytes());
        match ours.iter().zip(theirs).find(|(ours, theirs)| ours != theirs) {
            Some((ours, theirs)) => key(*ours).cmp(&key(*theirs)),
            None => ours.len().cmp(&theirs.len()),
        }
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_root() { "/" } else { &self.0 })
    }
}

impl Serialize for RepoPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RepoPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        RepoPath::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    #[test]
    fn names_that_would_escape_their_directory_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(PathError::Invalid), "{bad:?}");
        }
        assert_eq!(Name::new(&[b'x'; 256]), Err(PathError::TooLong));
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert_eq!(Name::new(b"\xff").unwrap().storable(), Err(PathError::NotUtf8));
        assert_eq!(Name::new(b".oxen").unwrap().storable(), Err(PathError::Reserved));
        assert_eq!(Name::new(b"a\\b").unwrap().storable(), Err(PathError::Backslash));
        for taken in [".OXEN", ".oxen.", ".oxen ", ".oxen:stream", "OXEN~1"] {
            assert_eq!(Name::new(taken.as_bytes()).unwrap().storable(), Err(PathError::Reserved), "{taken}");
        }
        for free in [".oxenfs", "oxen", "oxen~x", "oxen~", ".oxenignore"] {
            assert_eq!(Name::new(free.as_bytes()).unwrap().storable(), Ok(free));
        }
    }

    #[test]
    fn names_of_every_length_are_kept_and_ordered_by_their_bytes() {
        for length in [1, SHORT_MAX - 1, SHORT_MAX, SHORT_MAX + 1, NAME_MAX] {
            let (low, high) = (vec![b'a'; length], vec![b'b'; length]);
            assert_eq!(Name::new(&low).unwrap().as_bytes(), low);
            assert!(Name::new(&low).unwrap() < Name::new(&high).unwrap());
            assert!(Name::new(&low[..length.div_ceil(2)]).unwrap() <= Name::new(&low).unwrap());
        }
        assert_eq!(size_of::<Name>(), 24);
    }

    #[test]
    fn paths_from_a_server_are_checked_by_component() {
        for bad in ["a/../b", "a//b", "./a", "..", "a/.oxen/b", "a//"] {
            assert!(RepoPath::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(path("/a/b/").as_str(), "a/b");
        assert!(path("/").is_root());
    }

    #[test]
    fn descendants_directly_follow_their_directory() {
        let mut paths = ["a.txt", "a/b", "a", "a-b", "a/b/c", "ab"].map(path);
        paths.sort();
        assert_eq!(paths.map(|p| p.as_str().to_owned()), ["a", "a/b", "a/b/c", "a-b", "a.txt", "ab"]);
    }

    #[test]
    fn below_and_parent_take_paths_apart() {
        assert_eq!(path("a/b/c").below(&path("a/b")), Some(path("c")));
        assert_eq!(path("ab").below(&path("a")), None);
        assert_eq!(path("a").below(&path("a")), Some(RepoPath::root()));
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(RepoPath::root()));
        assert_eq!(RepoPath::root().parent(), None);
        let names = ["x", "y"].map(|name| Name::new(name.as_bytes()).unwrap());
        assert_eq!(path("a").descend(&[&names[1], &names[0]]), Ok(path("a/x/y")));
        assert_eq!(RepoPath::root().descend(&[&names[0]]), Ok(path("x")));
        assert_eq!(path("a").descend(&[]), Ok(path("a")));
        assert!(path("a").descend(&[&Name::new(b".oxen").unwrap()]).is_err());
        assert_eq!(path("a/b").concat(&path("c/d")), path("a/b/c/d"));
    }
}
