//! What the next commit would change, and what no commit can hold.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;

use super::recovery::Shown;
use super::{Fs, Options, State};
use crate::hash::ContentHash;
use crate::namespace::{Content, Resolved, SpoolId};
use crate::path::RepoPath;
use crate::report::{Counts, Difference, Kind};
use crate::store::journal::JournalError;
use crate::store::spool::Spool;
use crate::workspace::Object;

/// Files that were written and are not hashed yet are compared with the base by their content where they have the same
/// length, up to so many bytes in all: a fraction of a second.
const COMPARED_BYTES: u64 = 256 << 20;

/// A file that may have the content of the base: its path, where its bytes are, and what they would have to be.
type Unsure = (RepoPath, SpoolId, Object);

impl Fs {
    /// Every path that the next commit would change, in tree order, then those that stay local. Changes nothing.
    pub fn differences(&self) -> Vec<Difference> {
        let (found, unsure) = self.lock().differences(&self.options, |_, size| size);
        without_same(found, &unsure, |spool| self.spool.file_to_read(spool))
    }
}

/// Takes out what has the content of the base.
fn without_same(
    mut found: Vec<Difference>,
    unsure: &[Unsure],
    open: impl Fn(SpoolId) -> io::Result<File>,
) -> Vec<Difference> {
    let (mut same, mut left) = (HashSet::new(), COMPARED_BYTES);
    for (path, spool, base) in unsure {
        if base.size > left {
            continue;
        }
        left -= base.size;
        // What cannot be read, or is staged meanwhile, counts as changed.
        let hashed = open(*spool).and_then(|file| ContentHash::of_file(base.hash.kind(), &file, || true));
        if hashed.is_ok_and(|(hash, _)| hash == base.hash) {
            same.insert(path.as_str());
        }
    }
    found.retain(|difference| difference.kind != Kind::Modified || !same.contains(difference.path.as_str()));
    found
}

/// The same of a state directory that no daemon has.
///
/// # Errors
/// When its journal cannot be read.
pub fn recorded_differences(dir: &Path, shown: &Shown) -> Result<Vec<Difference>, JournalError> {
    let (state, options) = super::recovery::recorded(dir, shown)?;
    let spool_dir = dir.join("spool");
    let (found, unsure) = state.differences(&options, |spool, _| Spool::length(&spool_dir, spool));
    Ok(without_same(found, &unsure, |spool| Spool::file_in(&spool_dir, spool)))
}

impl State {
    /// What differs, and of that what may not, for all that is known without a look at the bytes.
    fn differences(&self, options: &Options, length: impl Fn(SpoolId, u64) -> u64) -> (Vec<Difference>, Vec<Unsure>) {
        let (mut found, mut unsure) = (Vec::<Difference>::new(), Vec::new());
        // Which content went away and which appeared, by place in `found`.
        let (mut gone, mut new) = (HashMap::<ContentHash, Vec<usize>>::new(), Vec::new());
        for (path, account) in self.writeback.ledger().iter() {
            let wanted = match self.tree.resolve(path) {
                Resolved::AsBase => continue,
                Resolved::Absent => None,
                Resolved::Inode(ino) => self.content(ino).map(|(content, size)| match content {
                    Content::Remote { hash, .. } => (Some(*hash), size),
                    Content::Local { spool, hash, .. } => {
                        let (hash, size) = (hash.or_else(|| self.backing.staged_live(ino)), length(*spool, size));
                        if let (None, Some(base)) = (hash, account.base)
                            && base.size == size
                            && !self.handles.is_written(ino)
                        {
                            unsure.push((path.clone(), *spool, base));
                        }
                        (hash, size)
                    }
                }),
            };
            let (kind, bytes) = match (account.base, wanted) {
                (None, None) => continue,
                (Some(base), Some((Some(hash), _))) if base.hash == hash => continue,
                (Some(_), Some((_, size))) => (Kind::Modified, size),
                (Some(base), None) => {
                    // Files without bytes are all alike: that says nothing about where they went.
                    if base.size > 0 {
                        gone.entry(base.hash).or_default().push(found.len());
                    }
                    (Kind::Removed, base.size)
                }
                (None, Some((hash, size))) => {
                    new.extend(hash.map(|hash| (hash, found.len())));
                    (Kind::Added, size)
                }
            };
            let staged = !self.owes(path, &account);
            let conflict = self.writeback.conflict(path).map(|conflict| self.told_conflict(path, conflict).what);
            let (path, others) = (path.as_str().to_owned(), account.theirs);
            found.push(Difference { path, kind, from: None, bytes, staged, reason: None, conflict, others });
        }
        pair_renames(&mut found, gone, new);
        let local = self.local_paths(options, &mut Counts::default(), &length).into_iter();
        found.extend(local.map(|local| Difference {
            path: local.path,
            kind: Kind::Local,
            from: None,
            bytes: 0,
            staged: false,
            reason: Some(local.reason),
            conflict: None,
            others: false,
        }));
        (found, unsure)
    }
}

/// Makes one rename of each pair of a removal and an addition of the same content; of several candidates the one with
/// the same file name.
fn pair_renames(
    found: &mut Vec<Difference>,
    mut gone: HashMap<ContentHash, Vec<usize>>,
    new: Vec<(ContentHash, usize)>,
) {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut by_name: HashMap<(ContentHash, String), Vec<usize>> = HashMap::new();
    for (hash, places) in &gone {
        for at in places {
            by_name.entry((*hash, name(&found[*at].path))).or_default().push(*at);
        }
    }
    let mut used = vec![false; found.len()];
    let take = |places: Option<&mut Vec<usize>>, used: &mut Vec<bool>| {
        let places = places?;
        while let Some(at) = places.pop() {
            if !used[at] {
                used[at] = true;
                return Some(at);
            }
        }
        None
    };
    let mut pairs = Vec::new();
    let mut left = Vec::new();
    for (hash, at) in new {
        match take(by_name.get_mut(&(hash, name(&found[at].path))), &mut used) {
            Some(from) => pairs.push((from, at)),
            None => left.push((hash, at)),
        }
    }
    for (hash, at) in left {
        if let Some(from) = take(gone.get_mut(&hash), &mut used) {
            pairs.push((from, at));
        }
    }
    for (from, at) in pairs {
        let (path, staged) = (found[from].path.clone(), found[from].staged);
        let to = &mut found[at];
        (to.kind, to.from, to.staged) = (Kind::Renamed, Some(path), to.staged && staged);
    }
    let mut at = 0;
    found.retain(|_| {
        at += 1;
        !used[at - 1]
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;

    fn difference(path: &str, kind: Kind) -> Difference {
        let (from, reason, conflict, others) = (None, None, None, false);
        Difference { path: path.into(), kind, from, bytes: 1, staged: true, reason, conflict, others }
    }

    #[test]
    fn a_rename_is_found_by_content_and_then_by_name() {
        let hash = ContentHash::of(HashKind::Xxh3, b"same");
        let mut found: Vec<_> = ["a/one", "a/two", "b/two", "c/three", "d/four"]
            .into_iter()
            .zip([Kind::Removed, Kind::Removed, Kind::Added, Kind::Added, Kind::Added])
            .map(|(path, kind)| difference(path, kind))
            .collect();
        found[0].staged = false;
        let gone = HashMap::from([(hash, vec![0, 1])]);
        pair_renames(&mut found, gone, vec![(hash, 4), (hash, 2), (hash, 3)]);
        let said: Vec<_> = found.iter().map(|d| (d.path.as_str(), d.kind, d.from.as_deref(), d.staged)).collect();
        let renamed = Kind::Renamed;
        assert_eq!(
            said,
            [
                ("b/two", renamed, Some("a/two"), true),
                ("c/three", Kind::Added, None, true),
                ("d/four", renamed, Some("a/one"), false)
            ]
        );
    }
}
