//! What is committed and what is staged.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::PoisonError;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use super::OxenWorkspace;
use super::http::{Request, TOO_LONG, path, segment};
use super::names::is_aside;
use super::retry::Patience;
use super::wire::{self, ChangesPage, DirEntry, Each};
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::workspace::{Change, ChangeKind, CommitId, Entry, EntryKind, Flawed, Listing, Object, WorkspaceError};

/// How often a listing of staged changes is begun anew because they changed between two pages.
const RESTARTS: u32 = 3;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// A file's content, or a directory.
    pub kind: EntryKind,
    /// The workspace asked for removes it.
    pub removed: bool,
    /// The workspace asked for has other content for it than the base.
    pub put: bool,
}

/// The hash of all that is in a directory of a commit, as the server lists it. It changes with anything below the
/// directory, and a commit that changes nothing there leaves it as it is (0.65.2, tried). Empty for a file.
#[derive(Debug)]
pub(super) struct TreeHash(String);

impl TreeHash {
    /// Whether two directories may differ; those whose hashes a server does not tell always may.
    pub(super) fn may_differ(&self, other: &Self) -> bool {
        self.0.is_empty() || self.0 != other.0
    }
}

/// What a listing of the staged changes shows.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// What is staged where, but for the asides.
    pub changes: BTreeMap<RepoPath, ChangeKind>,
    /// Files of a moment's work that ended before it was done, or has not ended yet.
    pub asides: Vec<RepoPath>,
    /// Directories that are marked and hold nothing that is staged: a commit drops them.
    pub left_dirs: BTreeSet<RepoPath>,
    /// Whether all of it is of one moment, as far as the totals tell.
    pub of_one_moment: bool,
}

impl OxenWorkspace {
    /// The commit the workspace stands on.
    pub(super) async fn standing(&self) -> Result<wire::Commit, WorkspaceError> {
        let info = self.repo.workspace(&self.id()).await?;
        let info = info.ok_or_else(|| WorkspaceError::NotFound { what: self.what(), request: None })?;
        self.know(&info.commit.commit_id());
        Ok(info.commit)
    }

    pub(super) async fn list_commit(&self, commit: &CommitId, dir: &RepoPath) -> Result<Listing, WorkspaceError> {
        let (entries, flawed) = self.list_dir(commit, dir).await?;
        Ok(Listing { entries: entries.into_iter().map(|(entry, _)| entry).collect(), flawed })
    }

    /// The same, each directory with the hash of all that is in it.
    pub(super) async fn list_with_trees(
        &self,
        commit: &CommitId,
        dir: &RepoPath,
    ) -> Result<Vec<(Entry, TreeHash)>, WorkspaceError> {
        Ok(self.list_dir(commit, dir).await?.0)
    }

    async fn list_dir(&self, commit: &CommitId, dir: &RepoPath) -> Result<ListedDir, WorkspaceError> {
        let listed = in_pages(wire::PAGE_ENTRIES, |page_size| self.list_pages(commit, dir, page_size)).await?;
        let Some((mut entries, mut flawed)) = listed else {
            self.check_commit(commit).await?;
            return Ok(ListedDir::default());
        };
        drop_doubles(&mut entries, &mut flawed);
        for Flawed { name, why } in &flawed {
            tracing::warn!(%dir, name, why, "an entry of the server's cannot be used");
        }
        self.note_committed(entries.iter().map(|(entry, _)| entry));
        Ok((entries, flawed))
    }

    /// A commit has these.
    pub(super) fn note_committed<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>) {
        let mut files = entries.into_iter().filter_map(|entry| match entry.kind {
            EntryKind::File(object) => Some(object.hash),
            EntryKind::Dir => None,
        });
        if let Some(hash) = files.next() {
            self.stored.is_committed(hash);
        }
    }

    /// All pages; `None` where the directory is not there.
    async fn list_pages(
        &self,
        commit: &CommitId,
        dir: &RepoPath,
        page_size: u32,
    ) -> Result<Option<ListedDir>, WorkspaceError> {
        let (mut entries, mut flawed) = ListedDir::default();
        let mut begun = BTreeSet::new();
        let what = &*format!("directory {dir} of commit {commit}");
        let ask = |page: u64| async move {
            let place = format!("dir/{}/{}?page={page}&page_size={page_size}", segment(&commit.0), path(dir));
            let request = Request::get(self.repo.url(&place), what).answer_bytes(wire::PAGE_BYTES);
            Ok::<_, WorkspaceError>((page, self.repo.http.find::<wire::DirPage>(&request).await?))
        };
        let mut asked = FuturesOrdered::from_iter([ask(1)]);
        let mut next = 2;
        while let Some(answer) = asked.next().await {
            let (page, Some(answer)) = answer? else { return Ok(None) };
            let last = answer.entries.is_empty() || page >= answer.total_pages;
            if let Some(Each::Sound(first)) = answer.entries.first()
                && !begun.insert(first.filename.clone())
            {
                let detail = format!("{what} is listed without end: page {page} of {} again", answer.total_pages);
                return Err(WorkspaceError::Refused { status: TOO_LONG, message: detail, request: None });
            }
            for found in answer.entries {
                match found {
                    Each::Sound(found) => match entry(&found) {
                        Ok(sound) => entries.push(sound),
                        Err(why) => flawed.push(Flawed { name: Some(found.filename), why }),
                    },
                    Each::Flawed(one) => flawed.push(one),
                }
            }
            if last {
                return Ok(Some((entries, flawed)));
            }
            if entries.len() + flawed.len() > wire::MOST_LISTED {
                break;
            }
            // The first page tells how many there are.
            while asked.len() < wire::PAGES_AT_ONCE && next <= answer.total_pages.min(wire::MOST_PAGES) {
                asked.push_back(ask(next));
                next += 1;
            }
        }
        Err(too_much(what))
    }

    /// That `commit` exists: a directory is missing in it, or it is missing itself, and the answer is the same 404.
    pub(super) async fn check_commit(&self, commit: &CommitId) -> Result<(), WorkspaceError> {
        if self.known_commits.lock().unwrap_or_else(PoisonError::into_inner).contains(commit) {
            return Ok(());
        }
        if self.repo.has_commit(commit).await? {
            self.know(commit);
            return Ok(());
        }
        match self.repo.get().await? {
            Some(_) => Err(WorkspaceError::NotFound { what: format!("commit {commit}"), request: None }),
            None => Err(WorkspaceError::NotFound { what: self.repo.what(), request: None }),
        }
    }

    pub(super) fn know(&self, commit: &CommitId) {
        self.known_commits.lock().unwrap_or_else(PoisonError::into_inner).insert(commit.clone());
    }

    /// Everything staged. What a moment's work of some client of ours has left is taken away by the way: whoever is at
    /// it does so next, and finds that it is done.
    pub(super) async fn staged_changes(&self) -> Result<Vec<Change>, WorkspaceError> {
        let listed = self.read_changes().await?;
        if let Err(error) = self.drop_asides(&listed.asides).await {
            tracing::warn!(%error, "files that were staged for a moment are there still; a commit takes them away first");
        }
        Ok(listed.changes.into_iter().map(|(path, kind)| Change { path, kind }).collect())
    }

    /// What is staged, for whom the absence of a path must mean something.
    pub(super) async fn kinds_staged(&self) -> Result<BTreeMap<RepoPath, ChangeKind>, WorkspaceError> {
        Ok(self.listed_staged().await?.changes)
    }

    /// The same, with what is staged beside.
    pub(super) async fn listed_staged(&self) -> Result<Listed, WorkspaceError> {
        let listed = self.read_changes().await?;
        match listed.of_one_moment {
            true => Ok(listed),
            false => Err(WorkspaceError::Unconfirmed { what: "what is staged: it changes all the time".into() }),
        }
    }

    async fn read_changes(&self) -> Result<Listed, WorkspaceError> {
        let mut listed = Listed::default();
        for _ in 0..RESTARTS {
            listed = self.page_changes().await?;
            if listed.of_one_moment {
                break;
            }
        }
        Ok(listed)
    }

    /// Reads all pages, as long as they are of one moment.
    async fn page_changes(&self) -> Result<Listed, WorkspaceError> {
        in_pages(wire::PAGE_CHANGES, |page_size| self.changes_in_pages(page_size)).await
    }

    async fn changes_in_pages(&self, page_size: u32) -> Result<Listed, WorkspaceError> {
        let mut listed = Listed::default();
        let mut totals = None;
        for page in 1.. {
            if page > wire::MOST_PAGES || listed.changes.len() > wire::MOST_LISTED {
                return Err(too_much(&format!("what is staged in {}", self.what())));
            }
            let place = format!("changes?page={page}&page_size={page_size}");
            let request = Request::get(self.url(&place), self.what()).answer_bytes(wire::PAGE_BYTES);
            let answer: wire::ChangesAnswer = self.repo.http.json_with(Patience::Several, &request).await?;
            let staged = answer.staged;
            let lists = [
                (staged.added_files, ChangeKind::Added),
                (staged.modified_files, ChangeKind::Modified),
                (staged.removed_files, ChangeKind::Removed),
            ];
            let these = lists.each_ref().map(|(list, _)| list.total_entries);
            let is_of_first_moment = *totals.get_or_insert(these) == these;
            let last = lists.iter().all(|(list, _)| page >= list.total_pages || list.entries.is_empty());
            for (list, kind) in lists {
                note(&mut listed.changes, list, kind);
            }
            if !is_of_first_moment || last {
                listed.left_dirs = left_dirs(&staged.added_dirs);
                listed.of_one_moment = is_of_first_moment;
                break;
            }
        }
        listed.asides = listed.changes.keys().filter(|path| is_aside(path)).cloned().collect();
        listed.changes.retain(|path, _| !is_aside(path));
        Ok(listed)
    }

    /// What `meta/` says about a path, in a commit or in the workspace.
    pub(super) async fn meta(&self, revision: &str, at: &RepoPath) -> Result<Option<Meta>, WorkspaceError> {
        let url = self.repo.url(&format!("meta/{}/{}", segment(revision), path(at)));
        let Some(answer): Option<wire::MetaAnswer> = self.repo.http.find(&Request::get(url, at.to_string())).await?
        else {
            return Ok(None);
        };
        let status = answer.entry.changes.as_ref().map(|changes| changes.status.as_str());
        let (removed, put) = (status == Some("Removed"), matches!(status, Some("Added" | "Modified")));
        Ok(Some(Meta { kind: kind(&answer.entry)?, removed, put }))
    }

    pub(super) async fn what_is_staged(&self, change: &Change) -> Result<Object, WorkspaceError> {
        // A modified file still shows the hash and size of the base there; a path that is not staged any more is
        // answered 500 (0.65.2, tried).
        if change.kind == ChangeKind::Added
            && let Ok(Some(Meta { kind: EntryKind::File(object), removed: false, .. })) =
                self.meta(&self.id(), &change.path).await
            && object.hash.kind() == self.info.hash_kind
        {
            return Ok(object);
        }
        if change.kind == ChangeKind::Removed {
            return Err(WorkspaceError::NotFound { what: format!("staged content of {}", change.path), request: None });
        }
        self.hash_staged(&change.path).await
    }
}

fn note(changes: &mut BTreeMap<RepoPath, ChangeKind>, list: ChangesPage, kind: ChangeKind) {
    for entry in list.entries {
        let entry = match entry {
            Each::Sound(entry) => entry,
            Each::Flawed(Flawed { why, .. }) => {
                tracing::warn!(why, "a staged path is left alone");
                continue;
            }
        };
        match wire::normalized(&entry.filename) {
            Some(path) if !path.is_root() => {
                changes.insert(path, kind);
            }
            _ => tracing::warn!(path = entry.filename, "a staged path that is none is left alone"),
        }
    }
}

fn left_dirs(dirs: &wire::StagedDirs) -> BTreeSet<RepoPath> {
    let left = dirs.paths.values().flatten().filter(|dir| dir.num_files_staged == Some(0));
    left.filter_map(|dir| wire::normalized(&dir.path)).filter(|dir| !dir.is_root()).collect()
}

/// The entries of a directory, and those that are none.
type ListedDir = (Vec<(Entry, TreeHash)>, Vec<Flawed>);

/// A list that `list` gets in pages of this size; of a tenth and a hundredth where they are too long.
async fn in_pages<T, F>(most: u32, list: impl Fn(u32) -> F) -> Result<T, WorkspaceError>
where
    F: Future<Output = Result<T, WorkspaceError>>,
{
    for page_size in [most, most / 10] {
        match list(page_size).await {
            Err(WorkspaceError::Refused { status: TOO_LONG, .. }) => {}
            listed => return listed,
        }
    }
    list(most / 100).await
}

/// A server goes on listing.
pub(super) fn too_much(what: &str) -> WorkspaceError {
    let detail = format!("{what} has more than {} entries", wire::MOST_LISTED);
    WorkspaceError::Refused { status: TOO_LONG, message: detail, request: None }
}

/// Leaves one of the entries that say the same of one name, and none of those that do not.
fn drop_doubles(entries: &mut Vec<(Entry, TreeHash)>, flawed: &mut Vec<Flawed>) {
    entries.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    // What changes between two pages of an answer may be on both.
    entries.dedup_by(|(one, _), (other, _)| one == other);
    let doubled: BTreeSet<String> =
        entries.windows(2).filter(|two| two[0].0.name == two[1].0.name).map(|two| two[0].0.name.clone()).collect();
    if doubled.is_empty() {
        return;
    }
    entries.retain(|(entry, _)| !doubled.contains(&entry.name));
    let why = "the server lists it more than once, with different content";
    flawed.extend(doubled.into_iter().map(|name| Flawed { name: Some(name), why: why.into() }));
}

fn entry(found: &DirEntry) -> Result<(Entry, TreeHash), String> {
    let kind = checked_kind(found)?;
    let stamp = found.latest_commit.as_ref();
    let modified_secs = stamp.and_then(|stamp| wire::epoch_secs(&stamp.timestamp)).unwrap_or(0);
    let tree = if kind == EntryKind::Dir { found.hash.clone() } else { String::new() };
    Ok((Entry { name: found.filename.clone(), kind, modified_secs }, TreeHash(tree)))
}

pub(super) fn kind(found: &DirEntry) -> Result<EntryKind, WorkspaceError> {
    let named = |why| WorkspaceError::Protocol { detail: format!("{}: {why}", found.filename), request: None };
    checked_kind(found).map_err(named)
}

fn checked_kind(found: &DirEntry) -> Result<EntryKind, String> {
    if found.is_dir {
        return Ok(EntryKind::Dir);
    }
    let hash =
        wire::hash(&found.hash).ok_or_else(|| format!("the server lists it with {:?} for a hash", found.hash))?;
    // No file of any system is longer, and content has the length that its hash is of: nobody would ask for the bytes of
    // an empty file, and so find that it is none.
    match i64::try_from(found.size) {
        Ok(0) if hash != ContentHash::of(hash.kind(), b"") => {
            Err("the server lists it with no bytes, and with the hash of some".into())
        }
        Ok(_) => Ok(EntryKind::File(Object { hash, size: found.size })),
        Err(_) => Err(format!("the server lists it with {} bytes", found.size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashKind;

    fn parse(json: &str) -> Result<Entry, String> {
        entry(&serde_json::from_str(json).unwrap()).map(|(entry, _)| entry)
    }

    #[test]
    fn entries_keep_what_a_mount_needs() {
        let file = parse(
            r#"{"filename":"README.md","hash":"b5e9c1ad071b3e7fc779cfaa5e523818","is_dir":false,
                "latest_commit":{"id":"c","timestamp":"2026-11-21T09:12:34.47Z"},"size":5,"data_type":"text"}"#,
        );
        let object = Object { hash: ContentHash::of(HashKind::Xxh3, b"hello"), size: 5 };
        let expected = Entry { name: "README.md".into(), kind: EntryKind::File(object), modified_secs: 1_795_252_354 };
        assert_eq!(file.unwrap(), expected);
        let dir = parse(r#"{"filename":"data","hash":"x","is_dir":true,"size":8,"latest_commit":null}"#).unwrap();
        assert_eq!((dir.kind, dir.modified_secs), (EntryKind::Dir, 0));
    }

    #[test]
    fn an_entry_that_is_none_costs_itself_alone() {
        let good = r#"{"filename":"good","hash":"b5e9c1ad071b3e7fc779cfaa5e523818","size":5}"#;
        for (bad, name) in [
            (r#"{"filename":"x","hash":""}"#, Some("x")),
            (r#"{"filename":"x","hash":"b5e9c1ad071b3e7fc779cfaa5e523818","size":9223372036854775808}"#, Some("x")),
            (r#"{"filename":"x","hash":"b5e9c1ad071b3e7fc779cfaa5e523818","size":-1}"#, Some("x")),
            (r#"{"filename":"x","hash":"b5e9c1ad071b3e7fc779cfaa5e523818","size":1e300}"#, Some("x")),
            (r#"{"filename":"x","hash":"b5e9c1ad071b3e7fc779cfaa5e523818","size":0}"#, Some("x")),
            (r#"{"filename":"x","hash":null}"#, Some("x")),
            (r#"{"filename":"x","is_dir":"yes"}"#, Some("x")),
            (r#"{"filename":7,"is_dir":true}"#, None),
            (r#"{"filename":"\ud800","is_dir":true}"#, None),
            ("null", None),
            ("[1]", None),
        ] {
            let page: wire::DirPage = serde_json::from_str(&format!(r#"{{"entries":[{bad},{good}]}}"#)).unwrap();
            let found = page.entries.into_iter().map(|each| match each {
                Each::Sound(found) => entry(&found).map(|_| ()).map_err(|_| Some(found.filename)),
                Each::Flawed(flawed) => Err(flawed.name),
            });
            let found = found.collect::<Vec<_>>();
            assert_eq!(found, [Err(name.map(str::to_owned)), Ok(())], "{bad}");
        }
        assert!(serde_json::from_str::<wire::DirPage>(r#"{"entries":null}"#).unwrap().entries.is_empty());
    }

    #[test]
    fn what_is_listed_twice_is_taken_once_or_not_at_all() {
        let listed = |name: &str, size| {
            let object = Object { hash: ContentHash::of(HashKind::Xxh3, b""), size };
            let entry = Entry { name: name.into(), kind: EntryKind::File(object), modified_secs: 0 };
            (entry, TreeHash(String::new()))
        };
        let mut entries = vec![listed("b", 1), listed("a", 1), listed("c", 1), listed("a", 1), listed("b", 2)];
        let mut flawed = Vec::new();
        drop_doubles(&mut entries, &mut flawed);
        let names: Vec<_> = entries.iter().map(|(entry, _)| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(flawed.iter().map(|one| one.name.as_deref()).collect::<Vec<_>>(), [Some("b")]);
    }

    #[test]
    fn staged_paths_that_are_none_are_left_out() {
        let list = ChangesPage {
            entries: ["a//b", "../c", "", "d"]
                .map(|name| Each::Sound(wire::ChangedFile { filename: name.into() }))
                .into(),
            ..ChangesPage::default()
        };
        let mut changes = BTreeMap::new();
        note(&mut changes, list, ChangeKind::Added);
        let paths: Vec<&str> = changes.keys().map(RepoPath::as_str).collect();
        assert_eq!(paths, ["a/b", "d"]);
    }
}
