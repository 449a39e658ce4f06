//! What many workers staged, put together: pure, of paths and hashes alone.

use std::collections::BTreeMap;
use std::fmt;

use crate::path::RepoPath;
use crate::workspace::Object;

/// What a worker made of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A file.
    File(Object),
    /// It removed the file.
    Gone,
}

/// What one worker staged.
pub(super) type Work = BTreeMap<RepoPath, Wanted>;

/// What becomes of a path of which two workers made two things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnCollision {
    /// Nothing is committed.
    #[default]
    Fail,
    /// The worker that is named first has it.
    First,
    /// The one that is named last.
    Last,
}

/// What becomes of a path that the branch changed since the worker's commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Nothing is committed.
    #[default]
    Fail,
    /// What was gathered goes over it.
    Ours,
    /// What the branch has stays.
    Theirs,
}

/// Two workers made two things of one path, or a file where the other has a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// The path.
    pub path: RepoPath,
    /// The worker that is named first.
    pub first: String,
    /// The other.
    pub last: String,
    /// Whether one has a file where the other has a directory: no choice decides that.
    pub places: bool,
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if self.places { f.write_str(" (a file and a directory)") } else { Ok(()) }
    }
}

/// All of it, each path with the place of the worker that has it.
///
/// # Errors
/// What collides and is not decided by `choice`, by path.
pub(super) fn combine(
    workers: &[(&str, &Work)],
    choice: OnCollision,
) -> Result<BTreeMap<RepoPath, (Wanted, usize)>, Vec<Collision>> {
    let mut all: BTreeMap<RepoPath, (Wanted, usize)> = BTreeMap::new();
    let mut collisions = Vec::new();
    let collide = |path: &RepoPath, first: usize, last: usize, places| Collision {
        path: path.clone(),
        first: workers[first.min(last)].0.to_owned(),
        last: workers[first.max(last)].0.to_owned(),
        places,
    };
    for (at, (_, work)) in workers.iter().enumerate() {
        for (path, wanted) in *work {
            match all.get(path) {
                Some((there, first)) if there != wanted => match choice {
                    OnCollision::Fail => collisions.push(collide(path, *first, at, false)),
                    OnCollision::First => {}
                    OnCollision::Last => _ = all.insert(path.clone(), (*wanted, at)),
                },
                Some(_) => {}
                None => _ = all.insert(path.clone(), (*wanted, at)),
            }
        }
    }
    for (path, (wanted, at)) in &all {
        if *wanted == Wanted::Gone {
            continue;
        }
        for above in std::iter::successors(path.parent(), RepoPath::parent) {
            if let Some((Wanted::File(_), other)) = all.get(&above) {
                collisions.push(collide(&above, *other, *at, true));
            }
        }
    }
    collisions.sort_by(|one, other| one.path.cmp(&other.path));
    collisions.dedup();
    if collisions.is_empty() { Ok(all) } else { Err(collisions) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{ContentHash, HashKind};

    fn file(text: &str) -> Wanted {
        let hash = ContentHash::of(HashKind::Xxh3, text.as_bytes());
        Wanted::File(Object { hash, size: text.len() as u64 })
    }

    fn work(of: &[(&str, Wanted)]) -> Work {
        of.iter().map(|(path, wanted)| (RepoPath::parse(path).unwrap(), *wanted)).collect()
    }

    #[test]
    fn what_is_the_same_or_apart_is_put_together() {
        let one = work(&[("a/1", file("1")), ("both", file("same")), ("gone", Wanted::Gone)]);
        let two = work(&[("a/2", file("2")), ("both", file("same")), ("gone", Wanted::Gone)]);
        let all = combine(&[("one", &one), ("two", &two)], OnCollision::Fail).unwrap();
        let has = |path: &str| all[&RepoPath::parse(path).unwrap()];
        assert_eq!(all.len(), 4);
        assert_eq!((has("a/1"), has("a/2")), ((file("1"), 0), (file("2"), 1)));
        assert_eq!((has("both"), has("gone")), ((file("same"), 0), (Wanted::Gone, 0)));
    }

    #[test]
    fn what_differs_is_named_or_decided_by_the_order() {
        let one = work(&[("a", file("1")), ("b", Wanted::Gone), ("c", file("1"))]);
        let two = work(&[("a", file("2")), ("b", file("2"))]);
        let workers = [("one", &one), ("two", &two)];
        let named: Vec<String> =
            combine(&workers, OnCollision::Fail).unwrap_err().iter().map(|one| one.path.to_string()).collect();
        assert_eq!(named, ["a", "b"]);
        let has = |choice| {
            let all = combine(&workers, choice).unwrap();
            ["a", "b", "c"].map(|path| all[&RepoPath::parse(path).unwrap()])
        };
        assert_eq!(has(OnCollision::First), [(file("1"), 0), (Wanted::Gone, 0), (file("1"), 0)]);
        assert_eq!(has(OnCollision::Last), [(file("2"), 1), (file("2"), 1), (file("1"), 0)]);
    }

    #[test]
    fn a_file_where_another_has_a_directory_collides_whatever_is_chosen() {
        let one = work(&[("d", file("1"))]);
        let two = work(&[("d/below/it", file("2"))]);
        for choice in [OnCollision::Fail, OnCollision::First, OnCollision::Last] {
            let collisions = combine(&[("one", &one), ("two", &two)], choice).unwrap_err();
            assert_eq!(collisions.len(), 1);
            assert!(collisions[0].places);
            assert_eq!(collisions[0].to_string(), "d (a file and a directory)");
        }
        // A worker that makes a directory of a file removes that.
        let three = work(&[("d", Wanted::Gone), ("d/x", file("3"))]);
        assert_eq!(combine(&[("three", &three)], OnCollision::Fail).unwrap().len(), 2);
    }
}
