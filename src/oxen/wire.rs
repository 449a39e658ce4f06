//! The protocol's JSON, and where each fact about it comes from.
//!
//! "Tried" is oxen-server 0.65.2, "read" the released sources of the version named, "documented" the published API
//! description, "guess" none of them. Fields that are not used here are ignored, and missing ones are forgiven where
//! an answer makes sense without them.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::config::Secret;
use crate::hash::ContentHash;
use crate::path::RepoPath;
use crate::workspace::{CommitId, Flawed};

/// Entries asked for in one page of a listing: about 10 MB of JSON (tried: 100,000 are honoured; a page costs the
/// server the whole directory wherever it lies, so few large pages beat many small ones).
pub(super) const PAGE_ENTRIES: u32 = 10_000;
/// Staged changes asked for in one page. One page is one moment: a workspace that others change moves between pages.
pub(super) const PAGE_CHANGES: u32 = 100_000;
/// The longest page that is taken in. Where one is longer, pages of a tenth as many items are asked for, and of a hundredth.
pub(super) const PAGE_BYTES: usize = 64 << 20;
/// Items of one page: twice as many as any page that is asked for has.
pub(super) const MOST_ITEMS: usize = 200_000;
/// Pages of a directory's listing that are asked for at once: the time to the server and back, and that of reading a page,
/// come once for so many; each is held in memory.
pub(super) const PAGES_AT_ONCE: usize = 4;
/// Pages of one list, and items of all of them: ten times as many files as a directory is made for.
pub(super) const MOST_PAGES: u64 = 10_000;
pub(super) const MOST_LISTED: usize = 1_000_000;
/// Bytes of one JSON list in a request: half of what actix takes (2 MiB, its default).
pub(super) const LIST_BYTES: usize = 1 << 20;
/// Paths of one request that removes files. The server reads the whole directory for each (tried: 20 ms a file in one
/// of 3,000, unoptimized), so short lists cost nothing and an answer comes in time.
pub(super) const REMOVED_PATHS: usize = 100;
/// The length of every chunk but the last on servers where it is the client's choice. It never changes: chunks that
/// are already there count (read, 0.53.4 and 0.65.2: their number must match at the end).
pub(super) const CHUNK_BYTES: u64 = 10 << 20;
/// What a server is asked to hold in memory for one range (tried: it reads the whole chunk before it answers).
pub(super) const RANGE_BYTES: u64 = 4 << 20;

/// `GET /api/version`.
#[derive(Debug, Deserialize)]
pub(super) struct VersionAnswer {
    #[serde(default)]
    pub oxen_version: Option<String>,
}

/// A commit, wherever one is in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its id.
    pub id: String,
    /// The commits it follows.
    #[serde(default)]
    pub parent_ids: Vec<String>,
    /// Its message.
    #[serde(default)]
    pub message: String,
    /// Its author's name.
    #[serde(default)]
    pub author: String,
    /// Its author's address.
    #[serde(default)]
    pub email: String,
    /// When it was made, in RFC 3339.
    #[serde(default)]
    pub timestamp: String,
}

impl Commit {
    /// When it was made, in seconds since the epoch; `None` when the server does not say.
    pub fn made_secs(&self) -> Option<i64> {
        epoch_secs(&self.timestamp)
    }

    /// Its id, as the seam has it.
    pub fn commit_id(&self) -> CommitId {
        CommitId(self.id.as_str().into())
    }
}

/// `GET commits/{id}` and `POST workspaces/{id}/merge/{branch}`.
#[derive(Debug, Deserialize)]
pub(super) struct CommitAnswer {
    pub commit: Commit,
}

/// `GET commits/history/{commit}[/{path}]?page=&page_size=` (tried, 0.65.2; read, 0.65.2: the history of a commit tells
/// how many pages there are, that of a path whether there are more). Releases before it told the pages of both (guess).
#[derive(Debug, Deserialize)]
pub(super) struct HistoryAnswer {
    #[serde(default)]
    pub commits: Vec<Commit>,
    #[serde(default)]
    total_pages: Option<u64>,
    #[serde(default)]
    has_more: Option<bool>,
}

impl HistoryAnswer {
    /// Whether no page follows this one, the `page`th of `page_size`.
    pub fn is_last(&self, page: u64, page_size: usize) -> bool {
        match (self.has_more, self.total_pages) {
            (Some(has_more), _) => !has_more,
            (None, Some(pages)) => page >= pages,
            (None, None) => self.commits.len() < page_size,
        }
    }
}

/// `GET compare/entries/{old}..{new}?page=&page_size=` (tried, 0.65.2: everything below the root, directories too).
#[derive(Debug, Deserialize)]
pub(super) struct CompareAnswer {
    pub compare: Compared,
    #[serde(default)]
    pub total_pages: u64,
}

/// The body of [`CompareAnswer`].
#[derive(Debug, Deserialize)]
pub(super) struct Compared {
    #[serde(default, deserialize_with = "each")]
    pub entries: Vec<Each<ComparedEntry>>,
}

/// A path at which two commits differ; `filename` is the whole path. An entry is absent on the side that has nothing
/// there; a directory is listed as modified when something below it is.
#[derive(Debug, Deserialize)]
pub(super) struct ComparedEntry {
    pub filename: String,
    #[serde(default)]
    pub base_entry: Option<DirEntry>,
    #[serde(default)]
    pub head_entry: Option<DirEntry>,
}

/// 404 of `QUERY versions` (tried, 0.65.2): the hashes asked for that the server does not have.
#[derive(Debug, Deserialize)]
pub(super) struct MissingAnswer {
    #[serde(default)]
    pub error: MissingError,
}

/// The body of [`MissingAnswer`].
#[derive(Debug, Default, Deserialize)]
pub(super) struct MissingError {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub missing_hashes: Vec<String>,
}

/// A branch.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Branch {
    /// Its name.
    pub name: String,
    /// The commit it stands on.
    pub commit_id: String,
}

/// `GET branches/{name}`, `POST branches`.
#[derive(Debug, Deserialize)]
pub(super) struct BranchAnswer {
    pub branch: Branch,
}

/// `GET branches`.
#[derive(Debug, Deserialize)]
pub(super) struct BranchesAnswer {
    #[serde(default)]
    pub branches: Vec<Branch>,
}

/// `POST branches`.
#[derive(Debug, Serialize)]
pub(super) struct NewBranch<'a> {
    pub new_name: &'a str,
    pub from_name: &'a str,
}

/// `POST branches`, where no branch stands.
#[derive(Debug, Serialize)]
pub(super) struct NewBranchAt<'a> {
    pub new_name: &'a str,
    pub commit_id: &'a str,
}

/// A workspace, as the server lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WorkspaceInfo {
    /// Its id: what every path takes.
    pub id: String,
    /// Its name, which lets it survive its commits.
    #[serde(default)]
    pub name: Option<String>,
    /// The commit it stands on.
    pub commit: Commit,
    /// When it was made, in RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
}

/// What `GET` of a repository says of its identity: `repo_uuid` (0.65.2, tried).
#[derive(Debug, Deserialize)]
pub(super) struct RepositoryAnswer {
    pub repository: RepositoryMark,
}

/// See [`RepositoryAnswer`].
#[derive(Debug, Deserialize)]
pub(super) struct RepositoryMark {
    #[serde(default)]
    pub repo_uuid: Option<String>,
}

impl WorkspaceInfo {
    /// When it was made, or the commit that it stands on if that is younger, in seconds since the epoch.
    pub fn touched_secs(&self) -> Option<i64> {
        self.created_at.as_deref().and_then(epoch_secs).max(self.commit.made_secs())
    }
}

/// `PUT workspaces`, `GET workspaces/{id}`. `status_message` is `resource_created` or `resource_found` (tried).
#[derive(Debug, Deserialize)]
pub(super) struct WorkspaceAnswer {
    #[serde(default)]
    pub status_message: String,
    pub workspace: WorkspaceInfo,
}

/// `GET workspaces`.
#[derive(Debug, Deserialize)]
pub(super) struct WorkspacesAnswer {
    #[serde(default)]
    pub workspaces: Vec<WorkspaceInfo>,
}

/// `PUT workspaces` (released, tried) and `PUT workspaces/get_or_create` (documented).
#[derive(Debug, Serialize)]
pub(super) struct NewWorkspace<'a> {
    pub workspace_id: &'a str,
    pub name: &'a str,
    pub branch_name: &'a str,
}

/// An item of a list, or of what it should be one: one that is none costs itself alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Each<T> {
    Sound(T),
    Flawed(Flawed),
}

impl<T> Each<T> {
    pub(super) fn sound(self) -> Option<T> {
        match self {
            Self::Sound(item) => Some(item),
            Self::Flawed(_) => None,
        }
    }
}

/// A list item by item, of at most [`MOST_ITEMS`].
fn each<'de, D, T>(list: D) -> Result<Vec<Each<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    struct Items<T>(std::marker::PhantomData<T>);

    impl<'de, T: serde::de::DeserializeOwned> serde::de::Visitor<'de> for Items<T> {
        type Value = Vec<Each<T>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(raw) = list.next_element::<Box<RawValue>>()? {
                if items.len() == MOST_ITEMS {
                    return Err(serde::de::Error::custom(format_args!("a list of more than {MOST_ITEMS} items")));
                }
                items.push(
                    serde_json::from_str(raw.get())
                        .map_or_else(|error| Each::Flawed(flawed(&raw, &error)), Each::Sound),
                );
            }
            Ok(items)
        }
    }

    list.deserialize_any(Items(std::marker::PhantomData))
}

fn flawed(raw: &RawValue, error: &serde_json::Error) -> Flawed {
    #[derive(Deserialize)]
    struct Named {
        filename: String,
    }
    let name = serde_json::from_str::<Named>(raw.get()).ok().map(|named| named.filename);
    // Without the place in it, which nobody can look at.
    let why = error.to_string();
    let why = why.rsplit_once(" at line ").map_or(&*why, |(why, _)| why);
    Flawed { name, why: format!("the server lists it in a way that is not understood: {why}") }
}

/// A page of `GET dir/{revision}/{path}`.
#[derive(Debug, Deserialize)]
pub(super) struct DirPage {
    #[serde(default, deserialize_with = "each")]
    pub entries: Vec<Each<DirEntry>>,
    #[serde(default)]
    pub total_pages: u64,
}

/// A file or directory in a listing, and the entry of `GET meta/{revision}/{path}`.
#[derive(Debug, Deserialize)]
pub(super) struct DirEntry {
    pub filename: String,
    #[serde(default)]
    pub hash: String,
    #[serde(default)]
    pub is_dir: bool,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub latest_commit: Option<Stamp>,
    #[serde(default)]
    pub changes: Option<ChangeMark>,
}

/// The part of an entry's last commit that matters: the rest repeats in every entry.
#[derive(Debug, Deserialize)]
pub(super) struct Stamp {
    #[serde(default)]
    pub timestamp: String,
}

/// What a workspace does to an entry: `Added`, `Modified` or `Removed` (tried).
#[derive(Debug, Deserialize)]
pub(super) struct ChangeMark {
    #[serde(default)]
    pub status: String,
}

/// `GET meta/{revision}/{path}`.
#[derive(Debug, Deserialize)]
pub(super) struct MetaAnswer {
    pub entry: DirEntry,
}

/// `GET workspaces/{id}/changes`: three lists, paged alike (tried; hashes and sizes in it are empty), and all directories
/// on every page.
#[derive(Debug, Deserialize)]
pub(super) struct ChangesAnswer {
    pub staged: Staged,
}

/// The lists of [`ChangesAnswer`].
#[derive(Debug, Deserialize)]
pub(super) struct Staged {
    #[serde(default, deserialize_with = "known_dirs")]
    pub added_dirs: StagedDirs,
    #[serde(default)]
    pub added_files: ChangesPage,
    #[serde(default)]
    pub modified_files: ChangesPage,
    #[serde(default)]
    pub removed_files: ChangesPage,
}

/// The directories with something staged in them, by their first components. One that is marked and holds nothing that
/// is staged is there with no files (0.53.4, 0.58.0 and 0.65.2, read: `status_from_dir_entries`).
#[derive(Debug, Default, Deserialize)]
pub(super) struct StagedDirs {
    #[serde(default)]
    pub paths: HashMap<String, Vec<StagedDir>>,
}

/// Directories in any other form are none: no description says what they look like.
fn known_dirs<'de, D: Deserializer<'de>>(dirs: D) -> Result<StagedDirs, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Known(StagedDirs),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Form::deserialize(dirs)? {
        Form::Known(dirs) => dirs,
        Form::Other(_) => StagedDirs::default(),
    })
}

/// One of them; `path` is the whole path.
#[derive(Debug, Deserialize)]
pub(super) struct StagedDir {
    pub path: String,
    #[serde(default)]
    pub num_files_staged: Option<u64>,
}

/// A page of one of the lists; `filename` is the whole path (tried).
#[derive(Debug, Default, Deserialize)]
pub(super) struct ChangesPage {
    #[serde(default, deserialize_with = "each")]
    pub entries: Vec<Each<ChangedFile>>,
    #[serde(default)]
    pub total_pages: u64,
    #[serde(default)]
    pub total_entries: u64,
}

/// An entry of [`ChangesPage`].
#[derive(Debug, Deserialize)]
pub(super) struct ChangedFile {
    pub filename: String,
}

/// `POST workspaces/{id}/files/{dir}`, `DELETE workspaces/{id}/files`, `DELETE workspaces/{id}/changes`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PathsAnswer {
    #[serde(default)]
    pub paths: Vec<String>,
}

/// An item of `POST workspaces/{id}/versions/{dir}` (read, 0.50 to 0.53) and of `files/batch/{dir}` (documented).
/// With an empty `dir` the path is the whole one (read, 0.53.4: it is joined to `dir`).
#[derive(Debug, Serialize)]
pub(super) struct FileWithHash<'a> {
    pub path: &'a str,
    pub hash: String,
}

/// Its answer.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorFilesAnswer {
    #[serde(default)]
    pub err_files: Vec<ErrorFile>,
}

/// A file that was not staged: its content is not there, or staging it failed; the words tell which, and do not count.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorFile {
    #[serde(default)]
    pub hash: String,
    #[serde(default)]
    pub path: Option<String>,
}

/// `POST versions/uploads` (tried).
#[derive(Debug, Serialize)]
pub(super) struct BeginUpload<'a> {
    pub hash: String,
    pub size: u64,
    pub destination: Destination<'a>,
}

/// Where the content is staged once it is whole.
#[derive(Debug, Serialize)]
pub(super) struct Destination<'a> {
    pub workspace_id: &'a str,
    pub path: &'a str,
}

/// Its answer. `file` is `already_stored`, which is also staged, or `awaiting_parts` with the other fields.
#[derive(Debug, Deserialize)]
pub(super) struct BegunUpload {
    pub file: String,
    #[serde(default)]
    pub upload_id: String,
    #[serde(default)]
    pub part_size: u64,
    #[serde(default)]
    pub num_parts: u64,
    /// How far ahead of the first unhashed part a part may be.
    #[serde(default)]
    pub part_window: u64,
}

/// `PUT versions/uploads/{id}/parts/{n}`.
#[derive(Debug, Deserialize)]
pub(super) struct PartAnswer {
    #[serde(default)]
    pub completed: bool,
}

/// `POST versions/{hash}/complete` (read, 0.53.4 and 0.65.2).
#[derive(Debug, Serialize)]
pub(super) struct CompleteUpload<'a> {
    pub files: [CompletedFile<'a>; 1],
    pub workspace_id: &'a str,
}

/// The file of [`CompleteUpload`]. `dst_dir` and `file_name` are joined.
#[derive(Debug, Serialize)]
pub(super) struct CompletedFile<'a> {
    pub hash: String,
    pub file_name: &'a str,
    pub dst_dir: Option<&'a str>,
    pub num_chunks: u64,
}

/// `PATCH workspaces/{id}/files/{path}`.
#[derive(Debug, Serialize)]
pub(super) struct Rename<'a> {
    pub new_path: &'a str,
}

/// `GET workspaces/{id}/merge/{branch}`.
#[derive(Debug, Deserialize)]
pub(super) struct MergeAnswer {
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
}

/// A path of it.
#[derive(Debug, Deserialize)]
pub(super) struct Conflict {
    pub path: String,
}

/// `POST workspaces/{id}/merge/{branch}`: all three are required (tried).
#[derive(Debug, Serialize)]
pub(super) struct NewCommit<'a> {
    pub author: &'a str,
    pub email: &'a str,
    pub message: &'a str,
}

/// Any answer whose body does not matter.
#[derive(Debug, Deserialize)]
pub(super) struct Anything {}

/// The server's own words in an error's body, shortened; `None` where it has none that a person should read.
///
/// Two shapes (tried): `{"status_message", "status_description"}` and `{"error": {"title", "detail"}}`; extractors of
/// the framework answer plain text (tried: `Json deserialize error: ...`), gateways HTML.
/// A body that is `cut` may end within a token.
pub(super) fn refusal_message(body: &[u8], cut: bool, token: Option<&Secret>) -> Option<String> {
    const SHOWN_CHARS: usize = 300;
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(json) => [
            &json["error"]["detail"],
            &json["error"]["title"],
            &json["status_description"],
            &json["status_message"],
            &json["error"],
            &json["message"],
        ]
        .into_iter()
        .find_map(|value| value.as_str().filter(|text| !text.is_empty()))?
        .to_owned(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    // Before anything is shortened: the beginning of a token is none that would be found.
    let text = if cut { crate::log::hide_cut(&text) } else { crate::log::hide(&text) };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() || line.starts_with(['<', '{', '[']) {
        return None;
    }
    let mut line: String = line.chars().filter(|char| !char.is_control()).collect();
    if let Some(token) = token.map(Secret::expose).filter(|token| !token.is_empty()) {
        line = line.replace(token, "(token)");
    }
    let line = crate::log::hide(&line).into_owned();
    Some(match line.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    })
}

/// A path from an answer as the server means it: `a//b` and `a/./b` are `a/b` (tried). `None` for what is no path of a
/// repository.
pub(super) fn normalized(path: &str) -> Option<RepoPath> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    RepoPath::parse(&parts.join("/")).ok()
}

/// A hash from an answer; `None` where there is none.
pub(super) fn hash(text: &str) -> Option<ContentHash> {
    text.parse().ok()
}

/// Seconds since the epoch of an RFC 3339 time such as `2026-11-21T09:12:34.475478164Z`; `None` for anything else.
///
/// Written here because one field of one answer needs it: fractions are cut off, and a leap second counts as the next
/// second.
pub(super) fn epoch_secs(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark = |at: usize, marks: &[u8]| text.as_bytes().get(at).is_some_and(|byte| marks.contains(byte));
    if !(mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt ") && mark(13, b":") && mark(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let leap_year = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap_year => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|char: char| char.is_ascii_digit()),
        None => rest,
    };
    let offset = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), ..] if zone.len() == 6 && zone.as_bytes()[3] == b':' => {
            let at = text.len() - 6;
            let (hours, minutes) = (number(at + 1..at + 3)?, number(at + 4..at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 3600 + minutes * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    // Days since 1970-01-01, counting years from March so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_date_says() {
        // As `date -u -d TEXT +%s` prints them.
        let table = [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-21T09:12:34.475478164Z", 1_795_252_354),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2024-12-31T23:59:60Z", 1_735_689_600),
            ("1969-12-31T23:59:59Z", -1),
            ("2025-01-01T10:00:00+02:00", 1_735_718_400),
            ("2025-01-01T10:00:00.5-05:30", 1_735_745_400),
        ];
        for (text, secs) in table {
            assert_eq!(epoch_secs(text), Some(secs), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for bad in [
            "",
            "yesterday",
            "2025-01-01",
            "2025-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2025-01-01T24:00:00Z",
            "2025-01-01T00:00:00",
            "2025-01-01T00:00:00+2:00",
            "2025-01-01T00:00:00é:00",
            "+025-01-01T00:00:00Z",
        ] {
            assert_eq!(epoch_secs(bad), None, "{bad}");
        }
    }

    #[test]
    fn both_error_shapes_and_plain_text_give_a_sentence() {
        let table: [(&str, Option<&str>); 7] = [
            (
                r#"{"error":{"detail":"Could not find path: x","title":"Path does not exist","type":"t"},"status":"error"}"#,
                Some("Could not find path: x"),
            ),
            (
                r#"{"status":"error","status_message":"resource_not_found","status_description":"Repository 'a/b' not found"}"#,
                Some("Repository 'a/b' not found"),
            ),
            (r#"{"status":"error","status_message":"Repo already exists."}"#, Some("Repo already exists.")),
            ("Json deserialize error: missing field\n  `hash`", Some("Json deserialize error: missing field `hash`")),
            ("<html><h1>502 Bad Gateway</h1></html>", None),
            ("{\"status\":", None),
            ("", None),
        ];
        for (body, message) in table {
            assert_eq!(refusal_message(body.as_bytes(), false, None).as_deref(), message, "{body}");
        }
        let long = refusal_message("é".repeat(1000).as_bytes(), false, None).unwrap();
        assert_eq!(long.chars().count(), 303);
        // A token that the cut goes through is hidden as a whole.
        let token = Secret::new("sesame-0123456789");
        let body = format!("{} {} rest", "x".repeat(290), token.expose());
        let message = refusal_message(body.as_bytes(), false, Some(&token)).unwrap();
        assert_eq!(message, format!("{} (token) r...", "x".repeat(290)));
        // So is one that the end of what is read goes through, with nothing but blanks before it.
        for length in 1..token.expose().len() {
            let body = format!("no{}{}", " ".repeat(1000), &token.expose()[..length]);
            assert_eq!(refusal_message(body.as_bytes(), true, Some(&token)).unwrap(), "no (token)");
        }
    }

    #[test]
    fn staged_directories_in_a_form_that_nobody_described_are_none() {
        let dirs = |added_dirs: &str| {
            let answer: ChangesAnswer =
                serde_json::from_str(&format!(r#"{{"staged": {{"added_dirs": {added_dirs}}}}}"#)).unwrap();
            answer.staged.added_dirs.paths.into_values().flatten().map(|dir| (dir.path, dir.num_files_staged)).collect()
        };
        let known: Vec<_> =
            dirs(r#"{"num_files_staged": 1, "paths": {"d": [{"path": "d/s", "num_files_staged": 0}]}}"#);
        assert_eq!(known, [("d/s".to_owned(), Some(0))]);
        for other in ["null", "[]", r#"["d"]"#, "{}", r#"{"paths": {"d": 7}}"#, r#"{"paths": {"d": [{"name": "d"}]}}"#]
        {
            assert!(dirs(other).is_empty(), "{other}");
        }
    }

    #[test]
    fn paths_are_compared_as_the_server_means_them() {
        assert_eq!(normalized("./a//b/./c").unwrap().as_str(), "a/b/c");
        assert_eq!(normalized("a/../b"), None);
    }
}
