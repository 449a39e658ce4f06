//! What the client promises over `Workspace` and the repository API, on every server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oxenfs::dev_server::{Action, Dialect, Fault, Options, Server};
use oxenfs::hash::ContentHash;
use oxenfs::oxen::{
    Claim, Contents, Endpoint, InitialFile, NewRepository, OxenWorkspace, Repository, Secret, Storage, User,
};
use oxenfs::path::RepoPath;
use oxenfs::workspace::{
    ByHash, Change, ChangeKind, CommitId, CommitRequest, Committed, EntryKind, Object, Outcome, Over, Put, Revision,
    Source, Take, Upload, UploadProgress, Workspace, WorkspaceError,
};

use crate::server::{BASE_FILES, Target};

mod history;

contract! {
    everywhere: [
        what_is_committed_is_listed_and_read,
        ranges_are_clamped_to_the_file,
        parts_of_committed_files_come_whole_or_not_at_all,
        what_is_missing_is_told_apart,
        opening_twice_finds_the_same_workspace,
        repositories_and_branches_are_made_and_found,
        binary_first_files_travel_in_a_form,
        a_file_changed_and_changed_back_is_as_before,
        a_file_removed_and_restored_is_as_before,
        a_file_moved_away_and_back_is_as_before,
        a_file_becomes_a_directory_and_a_directory_a_file,
        what_is_staged_in_a_files_place_after_its_removal_is_committed,
        what_is_staged_below_a_file_takes_its_place,
        a_directory_that_is_removed_again_is_gone,
        a_file_that_a_commit_would_lose_is_not_committed,
        paths_that_nobody_has_are_removed_and_unstaged_all_the_same,
        what_is_only_staged_is_removed_without_what_is_around_it,
        odd_names_survive_a_round_trip,
        a_line_break_in_a_name_is_stored_or_refused_alone,
        a_backslash_in_a_name_is_refused_alone,
        empty_files_are_staged,
        tables_are_unstaged_like_other_files,
        a_removed_directory_takes_along_what_is_only_staged_in_it,
        a_file_unstaged_in_a_removed_directory_stays,
        no_way_of_taking_changes_back_drops_a_directory,
        a_directory_with_nothing_else_staged_beside_it_is_kept,
        marks_that_others_left_drop_no_directory,
        directories_named_like_tables_are_kept,
        names_for_a_moment_are_neither_shown_nor_committed,
        tables_are_put_back_by_two_clients_at_once,
        a_workspace_with_nothing_staged_moves_to_the_branchs_head,
        two_thousand_small_files_arrive_in_batches,
        three_thousand_files_of_one_directory_are_listed,
        known_content_is_staged_without_its_bytes,
        content_as_long_as_the_bases_and_as_old_is_staged,
        what_others_staged_is_known_by_content,
        a_large_file_arrives_in_parts,
        a_large_upload_goes_on_after_a_crash,
        a_file_shorter_than_promised_fails_alone,
        a_staged_file_is_moved_on_the_server,
        conflicting_changes_are_found_and_refused,
        changes_that_do_not_collide_are_no_conflict,
        compressed_files_arrive_whole,
        a_revision_is_read_without_a_workspace,
        small_contents_come_many_in_one_answer,
    ];
    current: [
        a_part_that_an_earlier_client_left_with_other_bytes_is_made_good,
    ];
    only_documented: [
        a_directory_with_an_escape_in_its_name_is_refused_where_no_request_can_name_it,
        content_that_such_a_server_cannot_tell_from_the_bases_is_refused_for_good,
    ];
    only_0_58: [
        content_is_never_staged_by_hash,
        a_chunk_that_an_earlier_client_left_with_other_bytes_is_made_good,
    ];
    only_embedded_0_65: [
        remains_of_a_workspace_do_not_keep_its_name_from_being_used,
        a_path_that_is_not_echoed_is_not_done,
        a_batch_whose_answer_is_lost_is_sent_again,
        a_busy_server_says_for_how_long,
        a_part_that_is_held_back_is_sent_again,
        an_upload_that_the_server_forgot_begins_anew,
        a_truncated_download_is_an_error_and_a_second_attempt_heals_it,
        an_answer_that_is_no_json_is_a_protocol_error,
        a_failing_server_is_asked_again,
        a_wrong_token_is_refused_and_a_renewed_one_found,
        a_token_that_expires_is_renewed_under_a_long_upload,
        a_lost_commit_answer_is_found_on_the_branch,
        a_commit_that_never_arrived_is_not_reported,
        nobody_at_the_address_is_unreachable,
    ];
}

// ---- tools

fn endpoint(target: &Target) -> Endpoint {
    Endpoint::new(&target.base_url, &target.namespace, &target.repo)
}

async fn open(target: &Target) -> OxenWorkspace {
    named(target, "work").await
}

async fn named(target: &Target, name: &str) -> OxenWorkspace {
    OxenWorkspace::open(&endpoint(target), name, "main").await.expect("the workspace opens")
}

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text).expect("a path")
}

fn file(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("space for it");
    Arc::new(file)
}

fn put(workspace: &dyn Workspace, at: &str, bytes: &[u8]) -> Put {
    let hash = ContentHash::of(workspace.info().hash_kind, bytes);
    Put {
        path: path(at),
        object: Object { hash, size: bytes.len() as u64 },
        file: Some(file(bytes)),
        over: Over::Other,
    }
}

fn done(outcomes: Vec<Outcome>) {
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    }
}

/// Brings `at` to hold `wanted`, by the table of wanted states: never the base's own content, never an event.
async fn bring(workspace: &dyn Workspace, at: &str, wanted: Option<&[u8]>) {
    let base = workspace.base().await.expect("the base");
    let in_base = content_at(workspace, &base, at).await;
    match wanted {
        Some(bytes) if in_base.as_deref() == Some(bytes) => {
            done(workspace.unstage(&[path(at)]).await.expect("an answer"))
        }
        Some(bytes) => done(workspace.send_small(&[put(workspace, at, bytes)]).await.expect("an answer")),
        None if in_base.is_some() => done(workspace.remove(&[path(at)]).await.expect("an answer")),
        None => done(workspace.unstage(&[path(at)]).await.expect("an answer")),
    }
}

async fn content_at(workspace: &dyn Workspace, commit: &CommitId, at: &str) -> Option<Vec<u8>> {
    let source = Source { revision: Revision::Commit(commit.clone()), path: path(at) };
    match fetched(workspace, &source).await {
        Ok(bytes) => Some(bytes),
        Err(WorkspaceError::NotFound { .. }) => None,
        Err(error) => panic!("{at}: {error}"),
    }
}

async fn fetched(workspace: &dyn Workspace, source: &Source) -> Result<Vec<u8>, WorkspaceError> {
    let into = tempfile::tempfile().expect("a temporary file");
    let len = workspace.fetch(source, u64::MAX, &into).await?;
    let mut bytes = vec![0; len as usize];
    into.read_exact_at(&mut bytes, 0).expect("as many bytes as were said");
    Ok(bytes)
}

fn message(text: &str) -> CommitRequest {
    CommitRequest {
        branch: "main".into(),
        message: text.into(),
        author: "Bessie".into(),
        email: "bessie@example.com".into(),
    }
}

async fn commit(workspace: &dyn Workspace, text: &str) -> Committed {
    workspace.commit(&message(text)).await.expect("the commit goes through")
}

/// All files of a commit, by listing and fetching; checks sizes and hashes on the way.
async fn tree(workspace: &dyn Workspace, commit: &CommitId) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![RepoPath::root()];
    while let Some(dir) = dirs.pop() {
        for entry in workspace.list(commit, &dir).await.expect("a listing") {
            let at = dir.concat(&path(&entry.name));
            match entry.kind {
                EntryKind::Dir => dirs.push(at),
                EntryKind::File(object) => {
                    let bytes = content_at(workspace, commit, at.as_str()).await.expect("a listed file");
                    assert_eq!(object.size, bytes.len() as u64, "{at}");
                    assert_eq!(object.hash, ContentHash::of(workspace.info().hash_kind, &bytes), "{at}");
                    files.insert(at.as_str().to_owned(), bytes);
                }
            }
        }
    }
    files
}

/// That two trees are the same; prints where they differ, and no contents.
fn same(found: BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let paths: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    for path in paths {
        let lengths = (found.get(path).map(Vec::len), expected.get(path).map(Vec::len));
        assert!(found.get(path) == expected.get(path), "{path}: found and expected differ, of lengths {lengths:?}");
    }
}

fn base_tree() -> BTreeMap<String, Vec<u8>> {
    BASE_FILES.map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec())).into()
}

async fn changes(workspace: &dyn Workspace) -> BTreeMap<String, ChangeKind> {
    let changes = workspace.changes().await.expect("the staged changes");
    changes.into_iter().map(|change| (change.path.as_str().to_owned(), change.kind)).collect()
}

/// Bytes that do not compress and differ by `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// What a caller would write down.
#[derive(Default)]
struct Recorded {
    upload: Mutex<Option<Upload>>,
    sent: Mutex<u64>,
    noted: tokio::sync::Notify,
}

impl Recorded {
    fn upload(&self) -> Option<Upload> {
        self.upload.lock().unwrap().clone()
    }

    fn sent(&self) -> u64 {
        *self.sent.lock().unwrap()
    }
}

impl UploadProgress for Recorded {
    fn checkpoint(&self, upload: &Upload) {
        *self.upload.lock().unwrap() = Some(upload.clone());
        if !upload.parts.is_empty() {
            self.noted.notify_one();
        }
    }

    fn sent(&self, bytes: u64) {
        *self.sent.lock().unwrap() += bytes;
    }
}

fn arm(target: &Target, fault: Fault) {
    target.server().expect("an embedded server").faults().arm(fault);
}

fn status(code: u16, retry_after: Option<u64>, body: Option<&str>) -> Action {
    Action::Status { code, retry_after, body: body.map(str::to_owned) }
}

// ---- reading

async fn what_is_committed_is_listed_and_read(target: &Target) {
    let workspace = open(target).await;
    let base = workspace.base().await.expect("the base");
    assert_eq!(*base.0, *target.head("main").await);
    same(tree(&workspace, &base).await, &base_tree());
    for entry in workspace.list(&base, &RepoPath::root()).await.expect("a listing") {
        assert!(entry.modified_secs > 1_700_000_000, "{entry:?}");
    }
    assert!(changes(&workspace).await.is_empty());
}

async fn ranges_are_clamped_to_the_file(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(1, 300_000);
    bring(&workspace, "data/noise.bin", Some(&bytes)).await;
    let check = async |revision: Revision| {
        let source = Source { revision, path: path("data/noise.bin") };
        for range in [0..10, 5..5, 299_990..300_000, 299_990..400_000, 300_000..300_001, 900_000..900_010, 0..300_000] {
            let read = workspace.read(&source, range.clone()).await.expect("a range");
            let end = (range.end as usize).min(bytes.len());
            assert_eq!(read, bytes[(range.start as usize).min(end)..end], "{range:?}");
        }
        let missing = Source { path: path("data/none"), ..source };
        let refused = workspace.read(&missing, 0..1).await;
        assert!(matches!(refused, Err(WorkspaceError::NotFound { .. })), "{refused:?}");
    };
    check(Revision::Workspace).await;
    let committed = commit(&workspace, "noise").await;
    check(Revision::Commit(committed.id)).await;
}

async fn parts_of_committed_files_come_whole_or_not_at_all(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(2, 9 << 20);
    bring(&workspace, "data/noise.bin", Some(&bytes)).await;
    let staged = Source { revision: Revision::Workspace, path: path("data/noise.bin") };
    assert!(!workspace.gives_parts(&staged));
    assert_eq!(workspace.read_part(&staged, 0..10).await.expect("an answer"), None);
    let committed = commit(&workspace, "noise").await;
    let source = Source { revision: Revision::Commit(committed.id), ..staged };
    for range in [0..10, (9 << 20) - 1..9 << 20, 5 << 20..(5 << 20) + (128 << 10), 1000..9 << 20] {
        let part = workspace.read_part(&source, range.clone()).await.expect("a part").expect("it gives parts");
        assert!(part == bytes[range.start as usize..range.end as usize], "{range:?}");
    }
    // Past the end, and of a file that is not there.
    assert_eq!(workspace.read_part(&source, (9 << 20) - 5..(9 << 20) + 1).await.expect("an answer"), None);
    let missing = Source { path: path("data/none"), ..source.clone() };
    assert_eq!(workspace.read_part(&missing, 0..1).await.expect("an answer"), None);
    assert!(workspace.gives_parts(&source), "of others it gives them still");
}

async fn what_is_missing_is_told_apart(target: &Target) {
    let workspace = open(target).await;
    let base = workspace.base().await.expect("the base");
    assert!(workspace.list(&base, &path("data/none")).await.expect("an empty listing").entries.is_empty());
    let nowhere = CommitId("0123456789abcdef0123456789abcdef".into());
    for dir in ["", "data"] {
        let refused = workspace.list(&nowhere, &path(dir)).await;
        assert!(matches!(refused, Err(WorkspaceError::NotFound { .. })), "{refused:?}");
    }
    let refused = OxenWorkspace::open(&endpoint(target), "work", "no-such-branch").await.map(|_| ());
    assert!(
        matches!(&refused, Err(WorkspaceError::NotFound { what, .. }) if what.contains("no-such-branch")),
        "{refused:?}"
    );
    let elsewhere = Endpoint { repo: "no-such-repository".into(), ..endpoint(target) };
    let refused = OxenWorkspace::open(&elsewhere, "work", "main").await.map(|_| ());
    assert!(
        matches!(&refused, Err(WorkspaceError::NotFound { what, .. }) if what.contains("no-such-repository")),
        "{refused:?}"
    );
    workspace.repository().delete_workspace("work").await.expect("an answer");
    for refused in [
        workspace.base().await.map(|_| ()),
        workspace.send_small(&[put(&workspace, "x", b"x")]).await.map(|_| ()),
        workspace.remove(&[path("README.md")]).await.map(|_| ()),
        workspace.unstage(&[path("README.md")]).await.map(|_| ()),
        workspace.changes().await.map(|_| ()),
    ] {
        assert!(matches!(refused, Err(WorkspaceError::NotFound { .. })), "{refused:?}");
    }
}

// ---- workspaces and repositories

async fn opening_twice_finds_the_same_workspace(target: &Target) {
    let first = named(target, "mine").await;
    assert!(first.is_new());
    bring(&first, "new.txt", Some(b"new")).await;
    let second = named(target, "mine").await;
    assert!(!second.is_new());
    assert_eq!(first.id(), second.id());
    assert_eq!(changes(&second).await, BTreeMap::from([("new.txt".to_owned(), ChangeKind::Added)]));
    let repository = second.repository();
    let names: Vec<_> = repository.workspaces().await.expect("a list").into_iter().filter_map(|it| it.name).collect();
    assert_eq!(names, ["mine"]);
    assert!(repository.delete_workspace("mine").await.expect("an answer"));
    assert!(!repository.delete_workspace("mine").await.expect("an answer"));
    assert!(repository.workspace("mine").await.expect("an answer").is_none());
}

/// As a deletion leaves them that was under way beside other requests.
async fn remains_of_a_workspace_do_not_keep_its_name_from_being_used(target: &Target) {
    let body = r#"{"status":"error","status_message":"Workspace mine already exists"}"#;
    let (method, path) = (Some("PUT".to_owned()), "/workspaces".to_owned());
    arm(target, Fault { method, path, nth: 1, times: Some(4), action: status(500, None, Some(body)) });
    let first = named(target, "mine").await;
    assert!(first.is_new());
    assert_ne!(&*first.id(), "mine");
    bring(&first, "new.txt", Some(b"new")).await;
    let second = named(target, "mine").await;
    assert!(!second.is_new());
    assert_eq!(first.id(), second.id());
    assert_eq!(changes(&second).await, BTreeMap::from([("new.txt".to_owned(), ChangeKind::Added)]));
    assert!(second.repository().delete_workspace("mine").await.expect("an answer"));
}

async fn repositories_and_branches_are_made_and_found(target: &Target) {
    let fresh = Repository::connect(&Endpoint { repo: format!("{}-fresh", target.repo), ..endpoint(target) })
        .expect("an address");
    assert!(!fresh.server_version().await.expect("a version").is_empty());
    assert!(fresh.get().await.expect("an answer").is_none());
    let user = Some(User { name: "Bessie".into(), email: "bessie@example.com".into() });
    let new = NewRepository {
        description: Some("a repository".into()),
        is_public: Some(false),
        storage: Some(Storage::Local(None)),
        user,
        files: vec![InitialFile { path: "a.txt".into(), contents: Contents::Text("say \"hi\"\n".into()) }],
        ..NewRepository::default()
    };
    let info = fresh.create(&new).await.expect("the repository is made");
    assert!(!info.is_empty);
    let again = fresh.create(&new).await;
    assert!(matches!(again, Err(WorkspaceError::Conflict { .. })), "{again:?}");

    let main = fresh.branch("main").await.expect("an answer").expect("a branch");
    let side = fresh.create_branch("side/way", "main").await.expect("a branch");
    assert_eq!(side.commit_id, main.commit_id);
    let names: BTreeSet<_> = fresh.branches().await.expect("a list").into_iter().map(|branch| branch.name).collect();
    assert_eq!(names, BTreeSet::from(["main".to_owned(), "side/way".to_owned()]));
    assert!(fresh.branch("none").await.expect("an answer").is_none());

    let workspace = fresh.open_workspace("w", "side/way", Claim::Own).await.expect("a workspace");
    let base = workspace.base().await.expect("the base");
    assert_eq!(content_at(&workspace, &base, "a.txt").await.as_deref(), Some(&b"say \"hi\"\n"[..]));

    // An empty one gets its first commit when it is opened.
    let empty = Repository::connect(&Endpoint { repo: format!("{}-empty", target.repo), ..endpoint(target) })
        .expect("an address");
    assert!(empty.create(&NewRepository::default()).await.expect("the repository is made").is_empty);
    let workspace = empty.open_workspace("w", "main", Claim::Own).await.expect("a workspace");
    let base = workspace.base().await.expect("the base");
    assert!(workspace.list(&base, &RepoPath::root()).await.expect("a listing").entries.is_empty());
    bring(&workspace, "first.txt", Some(b"first")).await;
    let committed = commit(&workspace, "first").await;
    assert_eq!(committed.parents, [base]);
    assert_eq!(tree(&workspace, &committed.id).await.len(), 1);
}

async fn binary_first_files_travel_in_a_form(target: &Target) {
    let fresh = Repository::connect(&Endpoint { repo: format!("{}-form", target.repo), ..endpoint(target) })
        .expect("an address");
    let bytes = noise(2, 5000);
    let new = NewRepository {
        user: Some(User { name: "Bessie".into(), email: "bessie@example.com".into() }),
        files: vec![
            InitialFile { path: "noise.bin".into(), contents: Contents::Binary(bytes.clone().into()) },
            InitialFile { path: "text.txt".into(), contents: Contents::Text("text".into()) },
        ],
        ..NewRepository::default()
    };
    fresh.create(&new).await.expect("the repository is made");
    let workspace = fresh.open_workspace("w", "main", Claim::Own).await.expect("a workspace");
    let base = workspace.base().await.expect("the base");
    let expected = BTreeMap::from([("noise.bin".to_owned(), bytes), ("text.txt".to_owned(), b"text".to_vec())]);
    same(tree(&workspace, &base).await, &expected);
}

// ---- the table of wanted states

async fn a_file_changed_and_changed_back_is_as_before(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "data/a.txt", Some(b"other")).await;
    assert_eq!(changes(&workspace).await, BTreeMap::from([("data/a.txt".to_owned(), ChangeKind::Modified)]));
    bring(&workspace, "data/a.txt", Some(b"alpha\n")).await;
    assert!(changes(&workspace).await.is_empty());
    // Away again, so that the commit has something in it.
    bring(&workspace, "data/b.txt", Some(b"other")).await;
    let committed = commit(&workspace, "b").await;
    let mut expected = base_tree();
    expected.insert("data/b.txt".into(), b"other".into());
    same(tree(&workspace, &committed.id).await, &expected);
    assert_eq!(workspace.base().await.expect("the base"), committed.id);
    assert!(changes(&workspace).await.is_empty());
}

async fn a_file_removed_and_restored_is_as_before(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "data/a.txt", None).await;
    assert_eq!(changes(&workspace).await, BTreeMap::from([("data/a.txt".to_owned(), ChangeKind::Removed)]));
    bring(&workspace, "data/a.txt", Some(b"alpha\n")).await;
    assert!(changes(&workspace).await.is_empty());
    bring(&workspace, "data/b.txt", None).await;
    bring(&workspace, "data/b.txt", Some(b"back, but changed")).await;
    bring(&workspace, "README.md", Some(b"changed")).await;
    bring(&workspace, "README.md", None).await;
    bring(&workspace, "new.txt", Some(b"new")).await;
    bring(&workspace, "new.txt", None).await;
    let committed = commit(&workspace, "b").await;
    let mut expected = base_tree();
    expected.insert("data/b.txt".into(), b"back, but changed".into());
    expected.remove("README.md");
    same(tree(&workspace, &committed.id).await, &expected);
}

async fn a_file_moved_away_and_back_is_as_before(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "data/moved.txt", Some(b"alpha\n")).await;
    bring(&workspace, "data/a.txt", None).await;
    bring(&workspace, "data/a.txt", Some(b"alpha\n")).await;
    bring(&workspace, "data/moved.txt", None).await;
    assert!(changes(&workspace).await.is_empty());
    bring(&workspace, "elsewhere/c.txt", Some(b"gamma\n")).await;
    bring(&workspace, "data/sub/c.txt", None).await;
    let committed = commit(&workspace, "moved").await;
    let mut expected = base_tree();
    expected.remove("data/sub/c.txt");
    expected.insert("elsewhere/c.txt".into(), b"gamma\n".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

async fn a_file_becomes_a_directory_and_a_directory_a_file(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "README.md", None).await;
    bring(&workspace, "README.md/inside.txt", Some(b"inside")).await;
    bring(&workspace, "data/sub/c.txt", None).await;
    // Or a real server keeps the directory, empty, and the file that takes its place cannot be read.
    done(workspace.remove(&[path("data/sub")]).await.expect("an answer"));
    let committed = commit(&workspace, "kinds").await;
    let names: Vec<String> =
        workspace.list(&committed.id, &path("data")).await.expect("a listing").into_iter().map(|it| it.name).collect();
    assert!(!names.contains(&"sub".to_owned()), "{names:?}");
    let mut expected = base_tree();
    expected.remove("README.md");
    expected.remove("data/sub/c.txt");
    expected.insert("README.md/inside.txt".into(), b"inside".into());
    same(tree(&workspace, &committed.id).await, &expected);
    bring(&workspace, "data/sub", Some(b"a file now")).await;
    let committed = commit(&workspace, "kinds").await;
    expected.insert("data/sub".into(), b"a file now".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

/// As where others put a file in the place of a directory that has changes here, which win.
async fn what_is_staged_in_a_files_place_after_its_removal_is_committed(target: &Target) {
    let workspace = open(target).await;
    for _ in 0..2 {
        bring(&workspace, "README.md/inside.txt", Some(b"inside")).await;
        bring(&workspace, "README.md", None).await;
    }
    bring(&workspace, "README.md/inside.txt", Some(b"inside")).await;
    let changes = workspace.changes().await.expect("a list");
    let staged: Vec<(String, ChangeKind)> =
        changes.into_iter().map(|change| (change.path.to_string(), change.kind)).collect();
    // What is staged below tells the removal.
    assert_eq!(staged, [("README.md/inside.txt".to_owned(), ChangeKind::Added)]);
    let committed = commit(&workspace, "kinds").await;
    let mut expected = base_tree();
    expected.remove("README.md");
    expected.insert("README.md/inside.txt".into(), b"inside".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

/// Its removal need not be staged: nothing tells whether it is, once something is staged below.
async fn what_is_staged_below_a_file_takes_its_place(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "README.md/deep/inside.txt", Some(b"inside")).await;
    let committed = commit(&workspace, "kinds").await;
    let mut expected = base_tree();
    expected.remove("README.md");
    expected.insert("README.md/deep/inside.txt".into(), b"inside".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

/// As where the answer to the first request was lost. Both times by its own name: to remove what was in it alone takes the
/// removal of the directory back.
async fn a_directory_that_is_removed_again_is_gone(target: &Target) {
    let workspace = open(target).await;
    let both = ["data/sub/c.txt", "data/sub"].map(path);
    for _ in 0..2 {
        done(workspace.remove(&both).await.expect("an answer"));
    }
    let committed = commit(&workspace, "gone").await;
    let listed = workspace.list(&committed.id, &path("data")).await.expect("a listing");
    assert!(listed.entries.iter().all(|entry| entry.name != "sub"), "{listed:?}");
}

/// A real server keeps the emptied directory and drops the file.
async fn a_file_that_a_commit_would_lose_is_not_committed(target: &Target) {
    let workspace = open(target).await;
    let before = target.head("main").await;
    bring(&workspace, "data/sub/c.txt", None).await;
    bring(&workspace, "data/sub", Some(b"a file now")).await;
    let refused = workspace.commit(&message("kinds")).await;
    assert!(
        matches!(&refused, Err(WorkspaceError::Refused { message, .. }) if message.contains("data/sub")),
        "{refused:?}"
    );
    assert_eq!(target.head("main").await, before);
    assert_eq!(changes(&workspace).await.len(), 2);
}

async fn paths_that_nobody_has_are_removed_and_unstaged_all_the_same(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "new.txt", Some(b"new")).await;
    let paths = [path("data/a.txt"), path("none.txt"), path("none/below.txt"), path("new.txt")];
    done(workspace.remove(&paths).await.expect("an answer"));
    assert_eq!(changes(&workspace).await, BTreeMap::from([("data/a.txt".to_owned(), ChangeKind::Removed)]));
    done(workspace.remove(&paths).await.expect("an answer"));
    done(workspace.unstage(&paths).await.expect("an answer"));
    assert!(changes(&workspace).await.is_empty());
    done(workspace.unstage(&paths).await.expect("an answer"));
    assert!(workspace.remove(&[]).await.expect("nothing to do").is_empty());
}

async fn what_is_only_staged_is_removed_without_what_is_around_it(target: &Target) {
    let workspace = open(target).await;
    for name in
        ["data/one.txt", "data/two.txt", "data/sub/three.txt", "new/four.txt", "new/five.txt", "new/deep/six.txt"]
    {
        bring(&workspace, name, Some(name.as_bytes())).await;
    }
    let gone = ["data/one.txt", "data/none.txt", "new/four.txt", "new/deep"].map(path);
    done(workspace.remove(&gone).await.expect("an answer"));
    let left = ["data/two.txt", "data/sub/three.txt", "new/five.txt"];
    assert_eq!(changes(&workspace).await, left.map(|name| (name.to_owned(), ChangeKind::Added)).into());
}

async fn a_file_unstaged_in_a_removed_directory_stays(target: &Target) {
    let workspace = open(target).await;
    done(workspace.remove(&[path("data")]).await.expect("an answer"));
    bring(&workspace, "new/deep/one.txt", Some(b"one")).await;
    bring(&workspace, "new/deep/two.txt", Some(b"two")).await;
    bring(&workspace, "gone/deep/three.txt", Some(b"three")).await;
    let back = ["data/sub/c.txt", "new/deep/one.txt", "gone/deep/three.txt"].map(path);
    done(workspace.unstage(&back).await.expect("an answer"));
    let committed = commit(&workspace, "most of a directory").await;
    let mut expected = base_tree();
    expected.remove("data/a.txt");
    expected.remove("data/b.txt");
    expected.insert("new/deep/two.txt".into(), b"two".into());
    same(tree(&workspace, &committed.id).await, &expected);
    let root = workspace.list(&committed.id, &RepoPath::root()).await.expect("a listing");
    assert!(root.entries.iter().all(|entry| entry.name != "gone"), "{root:?}");
}

/// Files of every kind that a server treats in a way of its own, in directories three deep, and committed.
async fn of_every_kind(workspace: &dyn Workspace) -> BTreeMap<String, Vec<u8>> {
    let mut expected = base_tree();
    let mut puts = Vec::new();
    for dir in ["d", "d/s", "d/s/t", "e/s"] {
        for name in ["base.txt", "table.csv", "table.jsonl", "table.parquet", "other.csv", "other.txt"] {
            let (at, bytes) = (format!("{dir}/{name}"), format!("a,b\n1,\"{dir}/{name}\"\n").into_bytes());
            puts.push(put(workspace, &at, &bytes));
            expected.insert(at, bytes);
        }
    }
    done(workspace.send_small(&puts).await.expect("an answer"));
    commit(workspace, "of every kind").await;
    expected
}

/// Commits something else, and compares the whole branch.
async fn commit_and_compare(workspace: &dyn Workspace, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    let mut expected = expected.clone();
    bring(workspace, "something else.txt", Some(what.as_bytes())).await;
    expected.insert("something else.txt".into(), what.as_bytes().to_vec());
    let committed = commit(workspace, what).await;
    let found = tree(workspace, &committed.id).await;
    let missing: Vec<_> = expected.keys().filter(|path| !found.contains_key(*path)).collect();
    assert!(missing.is_empty(), "{what}: missing {missing:?}");
    same(found, &expected);
}

async fn no_way_of_taking_changes_back_drops_a_directory(target: &Target) {
    let workspace = open(target).await;
    let expected = of_every_kind(&workspace).await;
    let dirs = ["d/s/t", "e/s"];
    let tables = ["csv", "jsonl", "parquet", "txt"];
    for dir in dirs {
        let new: Vec<String> = tables.iter().map(|kind| format!("{dir}/new.{kind}")).collect();
        let new_paths: Vec<RepoPath> = new.iter().map(|at| path(at)).collect();
        for way in ["unstaged", "removed", "removed and unstaged"] {
            for at in &new {
                bring(&workspace, at, Some(b"a\n1\n")).await;
            }
            if way != "unstaged" {
                done(workspace.remove(&new_paths).await.expect("an answer"));
            }
            if way != "removed" {
                done(workspace.unstage(&new_paths).await.expect("an answer"));
            }
            assert!(changes(&workspace).await.is_empty(), "{way}");
            commit_and_compare(&workspace, &expected, &format!("new ones in {dir}, {way}")).await;
        }
        let there: Vec<String> = ["table.csv", "table.jsonl", "table.parquet", "base.txt"]
            .iter()
            .map(|name| format!("{dir}/{name}"))
            .collect();
        let there_paths: Vec<RepoPath> = there.iter().map(|at| path(at)).collect();
        for way in ["changed", "removed"] {
            for at in &there {
                bring(&workspace, at, (way == "changed").then_some(b"a\n1\n2\n".as_slice())).await;
            }
            done(workspace.unstage(&there_paths).await.expect("an answer"));
            assert!(changes(&workspace).await.is_empty(), "{way}");
            commit_and_compare(&workspace, &expected, &format!("what was there in {dir}, {way}")).await;
        }
    }
    // Moved to another directory, on the server and by staging it there.
    bring(&workspace, "d/s/t/only staged.txt", Some(b"x")).await;
    workspace.rename(&path("d/s/t/only staged.txt"), &path("e/moved.txt")).await.expect("a move");
    let mut expected = expected;
    expected.insert("e/moved.txt".into(), b"x".to_vec());
    bring(&workspace, "d/s/new.csv", Some(b"a\n1\n")).await;
    bring(&workspace, "e/s/new.csv", Some(b"a\n1\n")).await;
    bring(&workspace, "d/s/new.csv", None).await;
    expected.insert("e/s/new.csv".into(), b"a\n1\n".to_vec());
    commit_and_compare(&workspace, &expected, "moved").await;
}

/// No release before 0.64 finds its way to it without the marks of the directories around it.
async fn a_directory_with_nothing_else_staged_beside_it_is_kept(target: &Target) {
    let workspace = open(target).await;
    let mut expected = of_every_kind(&workspace).await;
    for name in ["d/s/t/new.txt", "d/s/t/new.csv", "d/s/new.txt", "fresh/deep/new.txt", "fresh/other.txt"] {
        bring(&workspace, name, Some(b"a\n1\n")).await;
    }
    for name in ["d/s/t/new.txt", "d/s/t/new.csv", "fresh/other.txt"] {
        bring(&workspace, name, None).await;
    }
    let committed = commit(&workspace, "nothing in the root").await;
    for name in ["d/s/new.txt", "fresh/deep/new.txt"] {
        expected.insert(name.into(), b"a\n1\n".to_vec());
    }
    same(tree(&workspace, &committed.id).await, &expected);
}

async fn marks_that_others_left_drop_no_directory(target: &Target) {
    let workspace = open(target).await;
    let expected = of_every_kind(&workspace).await;
    for at in ["d/s/t/x.txt", "e/s/x.txt", "empty/x.txt"] {
        bring(&workspace, at, Some(b"x")).await;
    }
    for list in [vec!["d/s/t/x.txt", "d"], vec!["e/s/x.txt", "e/s"], vec!["empty/x.txt"]] {
        let list: Vec<RepoPath> = list.into_iter().map(path).collect();
        let request = target.http.delete(target.url(&format!("workspaces/{}/changes", workspace.id())));
        assert_eq!(request.json(&list).send().await.expect("an answer").status().as_u16(), 200);
    }
    assert!(changes(&workspace).await.is_empty());
    commit_and_compare(&workspace, &expected, "marks").await;
}

async fn directories_named_like_tables_are_kept(target: &Target) {
    let workspace = open(target).await;
    let mut expected = base_tree();
    for at in ["d/out.parquet/part-0", "d/out.parquet/sub.csv/part-1"] {
        bring(&workspace, at, Some(at.as_bytes())).await;
        expected.insert(at.into(), at.as_bytes().to_vec());
    }
    commit(&workspace, "named like tables").await;
    for at in ["d/out.parquet/sub.csv/x.txt", "d/out.parquet/sub.csv/x.csv"] {
        bring(&workspace, at, Some(b"a\n1\n")).await;
        bring(&workspace, at, None).await;
        commit_and_compare(&workspace, &expected, at).await;
    }
    let back = ["d/out.parquet/part-0", "d/out.parquet/sub.csv/part-1"];
    done(workspace.remove(&[path("d/out.parquet")]).await.expect("an answer"));
    for at in back {
        bring(&workspace, at, Some(at.as_bytes())).await;
    }
    commit_and_compare(&workspace, &expected, "removed and brought back").await;
    // And some of it stays removed.
    done(workspace.remove(&[path("d")]).await.expect("an answer"));
    bring(&workspace, back[0], Some(back[0].as_bytes())).await;
    expected.remove(back[1]);
    commit_and_compare(&workspace, &expected, "half of it brought back").await;
}

/// As a client leaves them that was killed in the middle of putting a table back.
async fn names_for_a_moment_are_neither_shown_nor_committed(target: &Target) {
    let workspace = open(target).await;
    let expected = of_every_kind(&workspace).await;
    let leave = async |names: &[&str]| {
        for name in names {
            bring(&workspace, name, Some(b"left behind")).await;
        }
    };
    let names = [
        ".workspace-mount-aside-0123456789abcdef",
        "d/s/.workspace-mount-aside-fedcba9876543210",
        ".workspace-mount-aside",
    ];
    leave(&names).await;
    assert_eq!(changes(&workspace).await, BTreeMap::from([(names[2].to_owned(), ChangeKind::Added)]));
    let listed = target.get_json(&format!("workspaces/{}/changes?page_size=1000", workspace.id())).await;
    assert_eq!(listed["staged"]["added_files"]["total_entries"], 1, "whoever lists them takes them away");
    bring(&workspace, names[2], None).await;

    leave(&names[..2]).await;
    commit_and_compare(&workspace, &expected, "with names for a moment").await;
    // Putting a table back does so too.
    leave(&names[..2]).await;
    bring(&workspace, "d/s/table.csv", Some(b"a\n1\n2\n")).await;
    done(workspace.unstage(&[path("d/s/table.csv")]).await.expect("an answer"));
    assert!(changes(&workspace).await.is_empty());
    commit_and_compare(&workspace, &expected, "after a table").await;
}

/// Each takes away what the other has under a name for a moment, and neither minds.
async fn tables_are_put_back_by_two_clients_at_once(target: &Target) {
    let (one, two, third) = (open(target).await, open(target).await, open(target).await);
    let mut expected = base_tree();
    let names: Vec<String> = (0..12).map(|at| format!("t/{}/{at}.csv", at % 3)).collect();
    for name in &names {
        bring(&one, name, Some(b"a,b\n1,2\n")).await;
        expected.insert(name.clone(), b"a,b\n1,2\n".to_vec());
    }
    commit(&one, "tables").await;
    for (at, name) in names.iter().enumerate() {
        bring(&one, name, (at % 4 > 0).then_some(b"a,b\n3,4\n5,6\n".as_slice())).await;
    }
    let paths: Vec<RepoPath> = names.iter().map(|name| path(name)).collect();
    let watch = async {
        for _ in 0..5 {
            for change in third.changes().await.expect("the staged changes") {
                assert!(paths.contains(&change.path), "{change:?}");
            }
        }
    };
    let (first, second, ()) = tokio::join!(one.unstage(&paths[..6]), two.unstage(&paths[6..]), watch);
    done(first.expect("an answer"));
    done(second.expect("an answer"));
    assert!(changes(&one).await.is_empty());
    commit_and_compare(&two, &expected, "put back").await;
}

async fn a_workspace_with_nothing_staged_moves_to_the_branchs_head(target: &Target) {
    let idle = named(target, "idle").await;
    let busy = named(target, "busy").await;
    bring(&busy, "mine.txt", Some(b"mine")).await;
    let before = idle.base().await.expect("the base");
    let theirs = named(target, "theirs").await;
    bring(&theirs, "theirs.txt", Some(b"theirs")).await;
    let head = commit(&theirs, "theirs").await.id;
    assert_eq!(named(target, "idle").await.base().await.expect("the base"), head);
    let again = named(target, "busy").await;
    assert_eq!(again.base().await.expect("the base"), before);
    assert_eq!(changes(&again).await.len(), 1);
}

/// A real server does not unstage tables, and after an attempt to, it loses what is staged there next.
async fn tables_are_unstaged_like_other_files(target: &Target) {
    let workspace = open(target).await;
    let base = b"a,b\n1,2.50\n\"x\",\n".as_slice();
    let names = ["changed.csv", "removed.csv", "twice.csv", "changed.parquet"];
    for name in names {
        bring(&workspace, name, Some(base)).await;
    }
    commit(&workspace, "tables").await;
    for name in names {
        bring(&workspace, name, (name != "removed.csv").then_some(b"a,b\n3,4\n".as_slice())).await;
    }
    bring(&workspace, "added.csv", Some(b"a,b\n5,6\n")).await;
    assert_eq!(changes(&workspace).await.len(), 5);
    for name in names {
        bring(&workspace, name, Some(base)).await;
    }
    bring(&workspace, "added.csv", None).await;
    // The server takes `%61` for an `a` in some places, and a lone `%` for itself.
    bring(&workspace, "100% sure/100%.csv", Some(b"a,b\n5,6\n")).await;
    bring(&workspace, "100% sure/100%.csv", None).await;
    done(
        workspace.unstage(&[path("untouched.csv"), path("data/a.txt"), path("changed.csv")]).await.expect("an answer"),
    );
    assert_eq!(changes(&workspace).await, BTreeMap::new());
    bring(&workspace, "twice.csv", Some(b"a,b\n7,8\n")).await;
    let committed = commit(&workspace, "tables").await;
    let mut expected = base_tree();
    expected.extend(names.map(|name| (name.to_owned(), base.to_vec())));
    expected.insert("twice.csv".into(), b"a,b\n7,8\n".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

async fn a_removed_directory_takes_along_what_is_only_staged_in_it(target: &Target) {
    let workspace = open(target).await;
    for name in ["data/new.txt", "data/new.csv", "data/sub/deep/new.jsonl", "database.txt"] {
        bring(&workspace, name, Some(b"{\"a\": 1}\n")).await;
    }
    bring(&workspace, "data/a.txt", Some(b"changed\n")).await;
    done(workspace.remove(&[path("data")]).await.expect("an answer"));
    let committed = commit(&workspace, "without").await;
    let mut expected = base_tree();
    expected.retain(|path, _| !path.starts_with("data/"));
    expected.insert("database.txt".into(), b"{\"a\": 1}\n".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

// ---- names

const ODD_NAMES: [&str; 15] = [
    "with space.txt",
    "naïve-ÿ-日本語-😀.txt",
    "100%.txt",
    "%22quoted%22.txt",
    "a%2Fb.txt",
    "#hash.txt",
    "what?.txt",
    "a&b=c;d.txt",
    "+plus+.txt",
    "it's \"quoted\".txt",
    "-rf",
    "~tilde",
    "[1]{2}(3)|4^5`6<7>.txt",
    "...",
    "trailing. ",
];

async fn odd_names_survive_a_round_trip(target: &Target) {
    let workspace = open(target).await;
    let long = "n".repeat(255);
    let names: Vec<&str> = ODD_NAMES.into_iter().chain([long.as_str()]).collect();
    let mut expected = base_tree();
    let mut puts = Vec::new();
    for dir in ["", "data/", "new dir & more/"] {
        for name in &names {
            let at = format!("{dir}{name}");
            puts.push(put(&workspace, &at, at.as_bytes()));
            expected.insert(at.clone(), at.into_bytes());
        }
    }
    done(workspace.send_small(&puts).await.expect("an answer"));
    let staged = changes(&workspace).await;
    assert_eq!(
        staged.keys().collect::<Vec<_>>(),
        puts.iter().map(|put| put.path.as_str()).collect::<BTreeSet<_>>().iter().collect::<Vec<_>>()
    );
    for put in &puts {
        let change = Change { path: put.path.clone(), kind: ChangeKind::Added };
        assert_eq!(workspace.staged_object(&change).await.expect("what is staged"), put.object, "{}", put.path);
        let source = Source { revision: Revision::Workspace, path: put.path.clone() };
        assert_eq!(fetched(&workspace, &source).await.expect("its content"), put.path.as_str().as_bytes());
    }
    let committed = commit(&workspace, "odd names").await;
    same(tree(&workspace, &committed.id).await, &expected);

    // Changed, read while staged, unstaged and removed under these names.
    for name in &names {
        bring(&workspace, name, Some(b"changed")).await;
        let change = Change { path: path(name), kind: ChangeKind::Modified };
        let object = workspace.staged_object(&change).await.expect("what is staged");
        assert_eq!(object, put(&workspace, name, b"changed").object, "{name}");
        let source = Source { revision: Revision::Commit(committed.id.clone()), path: path(name) };
        assert_eq!(workspace.read(&source, 1..3).await.expect("a range"), name.as_bytes()[1..3.min(name.len())]);
    }
    let paths: Vec<RepoPath> = names.iter().map(|name| path(name)).collect();
    done(workspace.unstage(&paths).await.expect("an answer"));
    assert!(changes(&workspace).await.is_empty());
    done(workspace.remove(&paths).await.expect("an answer"));
    assert_eq!(changes(&workspace).await.len(), names.len());
    let committed = commit(&workspace, "no odd names").await;
    for name in &names {
        expected.remove(*name);
    }
    same(tree(&workspace, &committed.id).await, &expected);
}

async fn a_line_break_in_a_name_is_stored_or_refused_alone(target: &Target) {
    let workspace = open(target).await;
    let name = "data/line\nbreak\tand tab.txt";
    let puts = [put(&workspace, "plain.txt", b"plain"), put(&workspace, name, b"odd")];
    let outcomes = workspace.send_small(&puts).await.expect("an answer");
    assert!(matches!(outcomes[0], Outcome::Done { sent_bytes: 5 }), "{outcomes:?}");
    match target.dialect {
        Dialect::Documented => {
            assert!(matches!(outcomes[1], Outcome::Failed(WorkspaceError::Unsupported { .. })), "{outcomes:?}");
        }
        _ => {
            assert!(matches!(outcomes[1], Outcome::Done { sent_bytes: 3 }), "{outcomes:?}");
            assert_eq!(changes(&workspace).await.get(name), Some(&ChangeKind::Added));
            let committed = commit(&workspace, "odd").await;
            assert_eq!(content_at(&workspace, &committed.id, name).await.as_deref(), Some(&b"odd"[..]));
            done(workspace.remove(&[path(name)]).await.expect("an answer"));
            assert_eq!(changes(&workspace).await.get(name), Some(&ChangeKind::Removed));
        }
    }
}

/// A real server commits `a\\b` as a file in the directory `a`.
async fn a_backslash_in_a_name_is_refused_alone(target: &Target) {
    let workspace = open(target).await;
    let refused = |outcome: &Outcome| matches!(outcome, Outcome::Failed(WorkspaceError::Unsupported { .. }));
    let puts = [put(&workspace, "back\\slash.txt", b"alpha\n"), put(&workspace, "plain.txt", b"alpha\n")];
    let outcomes = workspace.send_small(&puts).await.expect("an answer");
    assert!(refused(&outcomes[0]) && matches!(outcomes[1], Outcome::Done { .. }), "{outcomes:?}");
    let outcomes = workspace.stage_by_hash(&puts).await.expect("an answer");
    match workspace.info().by_hash {
        ByHash::Never => {}
        _ => assert!(refused(&outcomes[0]) && matches!(outcomes[1], Outcome::Done { .. }), "{outcomes:?}"),
    }
    let outcome = workspace.send_large(&puts[0], None, &Recorded::default()).await.expect("an answer");
    assert!(refused(&outcome), "{outcome:?}");
    assert!(workspace.rename(&path("README.md"), &puts[0].path).await.is_err());
    assert_eq!(changes(&workspace).await.len(), 1);
}

async fn a_directory_with_an_escape_in_its_name_is_refused_where_no_request_can_name_it(target: &Target) {
    let workspace = open(target).await;
    let puts = [put(&workspace, "100%61/a.txt", b"a"), put(&workspace, "b.txt", b"b")];
    let outcomes = workspace.send_small(&puts).await.expect("an answer");
    assert!(matches!(outcomes[0], Outcome::Failed(WorkspaceError::Unsupported { .. })), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Done { .. }), "{outcomes:?}");
}

// ---- staging

async fn empty_files_are_staged(target: &Target) {
    let workspace = open(target).await;
    let without_file = Put { file: None, ..put(&workspace, "data/two.txt", b"") };
    let puts = [put(&workspace, "empty.txt", b""), without_file, put(&workspace, "data/a.txt", b"")];
    done(workspace.send_small(&puts).await.expect("an answer"));
    let large = workspace.send_large(&put(&workspace, "three.txt", b""), None, &Recorded::default()).await;
    assert!(matches!(large, Ok(Outcome::Done { .. })), "{large:?}");
    let committed = commit(&workspace, "empty").await;
    for at in ["empty.txt", "data/two.txt", "data/a.txt", "three.txt"] {
        assert_eq!(content_at(&workspace, &committed.id, at).await.as_deref(), Some(&b""[..]), "{at}");
        let source = Source { revision: Revision::Commit(committed.id.clone()), path: path(at) };
        assert!(workspace.read(&source, 0..10).await.expect("a range").is_empty());
    }
    // By hash too, where that works at all.
    let outcomes = workspace.stage_by_hash(&[Put { file: None, ..put(&workspace, "four.txt", b"") }]).await;
    let outcomes = outcomes.expect("an answer");
    match workspace.info().by_hash {
        ByHash::Never => assert!(matches!(outcomes[0], Outcome::NeedsBytes), "{outcomes:?}"),
        _ => assert!(matches!(outcomes[0], Outcome::Done { sent_bytes: 0 }), "{outcomes:?}"),
    }
}

async fn two_thousand_small_files_arrive_in_batches(target: &Target) {
    let workspace = open(target).await;
    let contents: Vec<(String, Vec<u8>)> =
        (0..2000).map(|i| (format!("many/{}/{i}.txt", i % 7), format!("file {i}\n").into_bytes())).collect();
    for batch in contents.chunks(100) {
        let puts: Vec<Put> = batch.iter().map(|(at, bytes)| put(&workspace, at, bytes)).collect();
        done(workspace.send_small(&puts).await.expect("an answer"));
    }
    assert_eq!(changes(&workspace).await.len(), 2000);
    let committed = commit(&workspace, "many").await;
    let mut listed = 0;
    for dir in 0..7 {
        for entry in workspace.list(&committed.id, &path(&format!("many/{dir}"))).await.expect("a listing") {
            let at = format!("many/{dir}/{}", entry.name);
            let (_, bytes) = contents.iter().find(|(path, _)| *path == at).expect("a path that was written");
            let hash = ContentHash::of(workspace.info().hash_kind, bytes);
            assert_eq!(entry.kind, EntryKind::File(Object { hash, size: bytes.len() as u64 }), "{at}");
            listed += 1;
        }
    }
    assert_eq!(listed, 2000);
}

async fn three_thousand_files_of_one_directory_are_listed(target: &Target) {
    let workspace = open(target).await;
    for batch in 0..6 {
        let puts: Vec<Put> = (batch * 500..(batch + 1) * 500)
            .map(|i| put(&workspace, &format!("one/{i}"), format!("{i}").as_bytes()))
            .collect();
        done(workspace.send_small(&puts).await.expect("an answer"));
    }
    assert_eq!(changes(&workspace).await.len(), 3000);
    let committed = commit(&workspace, "one directory").await;
    let entries = workspace.list(&committed.id, &path("one")).await.expect("a listing");
    let names: BTreeSet<String> = entries.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, (0..3000).map(|i| i.to_string()).collect());
    let removed: Vec<RepoPath> = (0..250).map(|i| path(&format!("one/{i}"))).collect();
    done(workspace.remove(&removed).await.expect("an answer"));
    assert_eq!(changes(&workspace).await.len(), 250);
    let committed = commit(&workspace, "fewer").await;
    assert_eq!(workspace.list(&committed.id, &path("one")).await.expect("a listing").entries.len(), 2750);
}

async fn known_content_is_staged_without_its_bytes(target: &Target) {
    let workspace = open(target).await;
    if workspace.info().by_hash == ByHash::Never {
        return;
    }
    let bytes = noise(3, 70_000);
    bring(&workspace, "first.bin", Some(&bytes)).await;
    if let Some(server) = target.server() {
        server.faults().traffic().clear();
    }
    let known: Vec<Put> =
        (0..40).map(|i| Put { file: None, ..put(&workspace, &format!("data/copy {i} 100%.bin"), &bytes) }).collect();
    let unknown = Put { file: None, ..put(&workspace, "unknown.bin", &noise(4, 1000)) };
    let puts: Vec<Put> = known.iter().cloned().chain([unknown]).collect();
    let outcomes = workspace.stage_by_hash(&puts).await.expect("an answer");
    assert_eq!(outcomes.len(), puts.len());
    for outcome in &outcomes[..40] {
        assert!(matches!(outcome, Outcome::Done { sent_bytes: 0 }), "{outcome:?}");
    }
    assert!(matches!(outcomes[40], Outcome::NeedsBytes), "{outcomes:?}");
    if let Some(server) = target.server() {
        assert!(server.faults().traffic().bytes_received("") < 20_000);
    }
    // A large upload of known content sends nothing either, where asking is its first step.
    if workspace.info().by_hash == ByHash::Single {
        let progress = Recorded::default();
        let outcome = workspace.send_large(&put(&workspace, "large.bin", &bytes), None, &progress).await;
        assert!(matches!(outcome, Ok(Outcome::Done { sent_bytes: 0 })), "{outcome:?}");
        assert_eq!((progress.sent(), progress.upload()), (0, None));
    }
    let committed = commit(&workspace, "copies").await;
    let tree = tree(&workspace, &committed.id).await;
    assert_eq!(tree.get("data/copy 39 100%.bin"), Some(&bytes));
    assert!(!tree.contains_key("unknown.bin"));
}

async fn content_as_long_as_the_bases_and_as_old_is_staged(target: &Target) {
    let workspace = open(target).await;
    // The documented protocol has no way to store known content anew.
    if target.dialect == Dialect::Documented {
        return;
    }
    let contents: Vec<Vec<u8>> = (0..8).map(|seed| noise(100 + seed, 1000)).collect();
    // What is staged for the last cannot be dropped on every server: no request can name it.
    let names = ["hash", "small", "large", "staged", "removed", "odd%20.csv"];
    for (name, content) in names.iter().zip(&contents) {
        bring(&workspace, name, Some(content)).await;
    }
    let (wanted, between) = (&contents[6], &contents[7]);
    bring(&workspace, "wanted", Some(wanted)).await;
    commit(&workspace, "files of one length").await;
    let hash = |bytes: &[u8]| ContentHash::of(workspace.info().hash_kind, bytes).to_string();
    let over = |at: &str, staged: bool| {
        // Whichever of them it is to replace, it looks as old as that.
        let of = names.iter().position(|name| *name == at).expect("a name");
        target.store_together(&hash(&contents[of]), &hash(wanted));
        Put { over: Over::SameLength { staged }, ..put(&workspace, at, wanted) }
    };

    // A server may overlook it, and then wants the bytes; or it has looked closer.
    let asked = workspace.stage_by_hash(&[Put { file: None, ..over("hash", false) }]).await.expect("an answer");
    match &asked[..] {
        [Outcome::Done { .. }] => {}
        [Outcome::NeedsBytes] => {
            done(workspace.send_small(&[over("hash", false)]).await.expect("an answer"));
        }
        other => panic!("{other:?}"),
    }
    done(workspace.send_small(&[over("small", false)]).await.expect("an answer"));
    let large = workspace.send_large(&over("large", false), None, &Recorded::default()).await;
    assert!(matches!(large, Ok(Outcome::Done { .. })), "{large:?}");
    // What is staged already does not stand.
    bring(&workspace, "staged", Some(between)).await;
    bring(&workspace, "odd%20.csv", Some(between)).await;
    done(workspace.remove(&[path("removed")]).await.expect("an answer"));
    for name in ["staged", "removed", "odd%20.csv"] {
        done(workspace.send_small(&[over(name, true)]).await.expect("an answer"));
    }
    let committed = commit(&workspace, "all of one content").await;
    let tree = tree(&workspace, &committed.id).await;
    for name in names {
        assert!(tree.get(name) == Some(wanted), "{name} has other bytes");
    }
}

/// Nothing stores content anew there, however often it is sent.
async fn content_that_such_a_server_cannot_tell_from_the_bases_is_refused_for_good(target: &Target) {
    let workspace = open(target).await;
    let (x, y) = (noise(200, 1000), noise(201, 1000));
    bring(&workspace, "x", Some(&x)).await;
    bring(&workspace, "y", Some(&y)).await;
    commit(&workspace, "files of one length").await;
    let hash = |bytes: &[u8]| ContentHash::of(workspace.info().hash_kind, bytes).to_string();
    target.store_together(&hash(&x), &hash(&y));
    let known = Put { file: None, over: Over::SameLength { staged: false }, ..put(&workspace, "x", &y) };
    let outcomes = workspace.stage_by_hash(&[known]).await.expect("an answer");
    assert!(matches!(outcomes[..], [Outcome::Failed(WorkspaceError::Overlooked)]), "{outcomes:?}");
    let sent = Put { over: Over::SameLength { staged: false }, ..put(&workspace, "x", &y) };
    let outcomes = workspace.send_small(&[sent.clone(), put(&workspace, "z", b"z")]).await.expect("an answer");
    let [Outcome::Failed(error), Outcome::Done { .. }] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert!(matches!(error, WorkspaceError::Overlooked) && !error.is_transient(), "{error}");
    let outcome = workspace.send_large(&sent, None, &Recorded::default()).await.expect("an answer");
    assert!(matches!(&outcome, Outcome::Failed(WorkspaceError::Overlooked)), "{outcome:?}");
    // As a commit makes way for it.
    bring(&workspace, "x", None).await;
    commit(&workspace, "without").await;
    bring(&workspace, "x", Some(&y)).await;
    let committed = commit(&workspace, "with").await;
    assert!(content_at(&workspace, &committed.id, "x").await == Some(y));
}

async fn content_is_never_staged_by_hash(target: &Target) {
    let workspace = open(target).await;
    assert_eq!(workspace.info().by_hash, ByHash::Never);
    let outcomes = workspace.stage_by_hash(&[put(&workspace, "b.txt", b"alpha\n")]).await.expect("an answer");
    assert!(matches!(outcomes[..], [Outcome::NeedsBytes]), "{outcomes:?}");
}

async fn what_others_staged_is_known_by_content(target: &Target) {
    let mine = open(target).await;
    let same = named(target, "work").await;
    let bytes = noise(5, 3_000_000);
    bring(&same, "data/a.txt", Some(&bytes)).await;
    bring(&same, "new.bin", Some(&bytes)).await;
    bring(&same, "data/b.txt", None).await;
    let found = mine.changes().await.expect("the staged changes");
    assert_eq!(found.len(), 3);
    for change in found {
        let object = mine.staged_object(&change).await;
        match change.kind {
            ChangeKind::Removed => assert!(matches!(object, Err(WorkspaceError::NotFound { .. })), "{object:?}"),
            _ => assert_eq!(object.expect("what is staged"), put(&mine, "x", &bytes).object, "{change:?}"),
        }
    }
}

async fn a_large_file_arrives_in_parts(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(6, 25_000_000);
    let sent = put(&workspace, "data/large 100%.bin", &bytes);
    let progress = Recorded::default();
    let outcome = workspace.send_large(&sent, None, &progress).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Done { sent_bytes: 25_000_000 }), "{outcome:?}");
    assert_eq!(progress.sent(), 25_000_000);
    match target.dialect {
        Dialect::Documented => assert_eq!(progress.upload(), None),
        _ => assert_eq!(progress.upload().expect("a checkpoint").parts, [0, 1, 2]),
    }
    assert_eq!(changes(&workspace).await.len(), 1);
    let committed = commit(&workspace, "large").await;
    assert_eq!(content_at(&workspace, &committed.id, "data/large 100%.bin").await, Some(bytes.clone()));
    let source = Source { revision: Revision::Commit(committed.id), path: sent.path };
    let read = workspace.read(&source, 3_000_000..14_000_000).await.expect("a long range");
    assert_eq!(read, bytes[3_000_000..14_000_000]);
}

async fn a_large_upload_goes_on_after_a_crash(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(7, 45_000_000);
    let sent = put(&workspace, "large.bin", &bytes);
    if workspace.info().dialect == "documented" {
        // One request: nothing to go on with.
        return;
    }
    let upload = begun(&workspace, &sent).await;
    let acknowledged = upload.parts.len() as u64;
    assert!((1..5).contains(&acknowledged), "{upload:?}");

    let again = open(target).await;
    let after = Recorded::default();
    let outcome = again.send_large(&sent, Some(upload), &after).await.expect("an answer");
    let left = 45_000_000 - acknowledged * (10 << 20);
    assert!(matches!(outcome, Outcome::Done { sent_bytes } if sent_bytes == left), "{outcome:?}, {left} were left");
    assert_eq!(after.sent(), left);
    let committed = commit(&again, "large").await;
    assert_eq!(content_at(&again, &committed.id, "large.bin").await, Some(bytes));
}

/// An upload that was dropped after its first checkpoint.
async fn begun(workspace: &OxenWorkspace, sent: &Put) -> Upload {
    let before = Recorded::default();
    tokio::select! {
        outcome = workspace.send_large(sent, None, &before) => panic!("it ended before it was dropped: {outcome:?}"),
        () = before.noted.notified() => {}
    }
    before.upload().expect("a checkpoint")
}

/// `PUT`s bytes of some earlier client's.
async fn poison(target: &Target, below: &str, bytes: Vec<u8>) {
    let answer = target.http.put(target.url(below)).header("content-type", "application/octet-stream").body(bytes);
    assert_eq!(answer.send().await.expect("an answer").status().as_u16(), 200, "{below}");
}

async fn a_part_that_an_earlier_client_left_with_other_bytes_is_made_good(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(17, 45_000_000);
    let sent = put(&workspace, "large.bin", &bytes);
    let upload = begun(&workspace, &sent).await;
    assert!(upload.parts.len() < 4 && !upload.parts.contains(&4), "{upload:?}");
    poison(target, &format!("versions/uploads/{}/parts/5", upload.id), noise(18, 45_000_000 - 4 * (10 << 20))).await;

    let again = open(target).await;
    let outcome = again.send_large(&sent, Some(upload), &Recorded::default()).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    let committed = commit(&again, "large").await;
    assert!(content_at(&again, &committed.id, "large.bin").await == Some(bytes));
}

async fn a_chunk_that_an_earlier_client_left_with_other_bytes_is_made_good(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(19, 25_000_000);
    let sent = put(&workspace, "large.bin", &bytes);
    poison(target, &format!("versions/{}/chunks?offset=0", sent.object.hash), noise(20, 10 << 20)).await;
    let outcome = workspace.send_large(&sent, None, &Recorded::default()).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    // Of another length: the number of chunks is not what it should be.
    let other = noise(21, 25_000_000);
    let sent = put(&workspace, "other.bin", &other);
    poison(target, &format!("versions/{}/chunks?offset=77", sent.object.hash), noise(22, 1000)).await;
    let outcome = workspace.send_large(&sent, None, &Recorded::default()).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    let committed = commit(&workspace, "large").await;
    assert!(content_at(&workspace, &committed.id, "large.bin").await == Some(bytes));
    assert!(content_at(&workspace, &committed.id, "other.bin").await == Some(other));
}

async fn a_file_shorter_than_promised_fails_alone(target: &Target) {
    let workspace = open(target).await;
    let mut short = put(&workspace, "data/short.txt", b"short");
    short.object.size = 6;
    let puts = [put(&workspace, "data/one.txt", b"one"), short, put(&workspace, "two.txt", b"two")];
    let outcomes = workspace.send_small(&puts).await.expect("an answer");
    assert!(matches!(outcomes[0], Outcome::Done { .. }), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Failed(WorkspaceError::Io(_))), "{outcomes:?}");
    assert!(matches!(outcomes[2], Outcome::Done { .. }), "{outcomes:?}");
    assert_eq!(changes(&workspace).await.len(), 2);

    let mut short = put(&workspace, "large.bin", &noise(8, 12_000_000));
    short.object.size += 1;
    let outcome = workspace.send_large(&short, None, &Recorded::default()).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Failed(WorkspaceError::Io(_))), "{outcome:?}");
    assert_eq!(changes(&workspace).await.len(), 2);
}

async fn a_staged_file_is_moved_on_the_server(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "new here.txt", Some(b"new")).await;
    workspace.rename(&path("new here.txt"), &path("data/new there.txt")).await.expect("a move");
    workspace.rename(&path("data/a.txt"), &path("moved.txt")).await.expect("a move");
    let refused = workspace.rename(&path("data/b.txt"), &path("README.md")).await;
    assert!(refused.is_err());
    let committed = commit(&workspace, "moves").await;
    let mut expected = base_tree();
    expected.remove("data/a.txt");
    expected.insert("moved.txt".into(), b"alpha\n".into());
    expected.insert("data/new there.txt".into(), b"new".into());
    same(tree(&workspace, &committed.id).await, &expected);
}

async fn compressed_files_arrive_whole(target: &Target) {
    let endpoint = Endpoint { compress: Some(true), ..endpoint(target) };
    let workspace = OxenWorkspace::open(&endpoint, "work", "main").await.expect("the workspace opens");
    let text = b"all work and no play makes Jack a dull boy\n".repeat(20_000);
    let noise = noise(9, 200_000);
    // Content that is itself compressed is not inflated.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let files = [("text.txt", &text), ("noise.bin", &noise), ("data/text.txt.gz", &gzip)];
    let puts: Vec<Put> = files.iter().map(|(at, bytes)| put(&workspace, at, bytes)).collect();
    if let Some(server) = target.server() {
        server.faults().traffic().clear();
    }
    let outcomes = workspace.send_small(&puts).await.expect("an answer");
    for (outcome, put) in outcomes.iter().zip(&puts) {
        assert!(matches!(outcome, Outcome::Done { sent_bytes } if *sent_bytes == put.object.size), "{outcome:?}");
    }
    if let Some(server) = target.server() {
        assert!(server.faults().traffic().bytes_received("POST") < 400_000);
    }
    let committed = commit(&workspace, "compressed").await;
    for (at, bytes) in files {
        assert_eq!(content_at(&workspace, &committed.id, at).await.as_ref(), Some(bytes), "{at}");
    }
}

// ---- conflicts

async fn conflicting_changes_are_found_and_refused(target: &Target) {
    type Step = (&'static str, Option<&'static [u8]>);
    let table: [(Step, Step); 4] = [
        (("data/a.txt", Some(b"theirs")), ("data/a.txt", Some(b"mine"))),
        (("both.txt", Some(b"theirs")), ("both.txt", Some(b"mine"))),
        (("data/b.txt", Some(b"theirs")), ("data/b.txt", None)),
        (("README.md", None), ("README.md", Some(b"mine"))),
    ];
    for (at, (theirs, mine)) in table.into_iter().enumerate() {
        let their_workspace = named(target, &format!("theirs-{at}")).await;
        let my_workspace = named(target, &format!("mine-{at}")).await;
        bring(&their_workspace, theirs.0, theirs.1).await;
        bring(&my_workspace, mine.0, mine.1).await;
        bring(&my_workspace, "harmless.txt", Some(format!("harmless {at}").as_bytes())).await;
        assert!(my_workspace.conflicts("main").await.expect("an answer").is_empty());
        commit(&their_workspace, "theirs").await;
        assert_eq!(my_workspace.conflicts("main").await.expect("an answer"), [path(mine.0)], "{mine:?}");
        if !matches!(target.dialect, Dialect::Documented | Dialect::V0_50 | Dialect::V0_58) || at == 0 {
            let refused = my_workspace.commit(&message("mine")).await;
            assert!(matches!(refused, Err(WorkspaceError::Conflict { .. })), "{refused:?}");
        }
        // Nothing was lost by it.
        assert_eq!(changes(&my_workspace).await.len(), 2);
    }
}

async fn changes_that_do_not_collide_are_no_conflict(target: &Target) {
    let theirs = named(target, "theirs").await;
    let mine = named(target, "mine").await;
    bring(&theirs, "data/a.txt", Some(b"theirs")).await;
    bring(&theirs, "same.txt", Some(b"same")).await;
    bring(&mine, "data/b.txt", Some(b"mine")).await;
    let their_commit = commit(&theirs, "theirs").await;
    assert!(mine.conflicts("main").await.expect("an answer").is_empty());
    let my_commit = commit(&mine, "mine").await;
    assert_eq!(my_commit.parents, [their_commit.id]);
    let mut expected = base_tree();
    expected.insert("data/a.txt".into(), b"theirs".into());
    expected.insert("data/b.txt".into(), b"mine".into());
    expected.insert("same.txt".into(), b"same".into());
    same(tree(&mine, &my_commit.id).await, &expected);
}

// ---- faults

async fn a_path_that_is_not_echoed_is_not_done(target: &Target) {
    let workspace = open(target).await;
    arm(target, Fault::new("POST", "/files/", Action::OmitPaths { containing: "lost".into() }).times(1));
    let puts = [put(&workspace, "kept.txt", b"kept"), put(&workspace, "data/lost.txt", b"lost")];
    let outcomes = workspace.send_small(&puts).await.expect("an answer");
    assert!(matches!(outcomes[0], Outcome::Done { .. }), "{outcomes:?}");
    assert!(
        matches!(&outcomes[1], Outcome::Failed(error @ WorkspaceError::Unconfirmed { what }) if error.is_transient() && what == "data/lost.txt"),
        "{outcomes:?}"
    );
}

async fn a_batch_whose_answer_is_lost_is_sent_again(target: &Target) {
    let workspace = open(target).await;
    arm(target, Fault::new("POST", "/files/", Action::DropAfter).times(1));
    done(workspace.send_small(&[put(&workspace, "a.txt", b"a")]).await.expect("an answer"));
    arm(target, Fault::new("DELETE", "/files", Action::DropAfter).times(1));
    done(workspace.remove(&[path("README.md"), path("a.txt")]).await.expect("an answer"));
    arm(target, Fault::new("DELETE", "/changes", Action::DropAfter).times(1));
    done(workspace.unstage(&[path("README.md")]).await.expect("an answer"));
    assert!(changes(&workspace).await.is_empty());
    // Gone for good: nothing is known, and the caller is told so.
    arm(target, Fault::new("POST", "/files/", Action::DropBefore));
    let lost = workspace.send_small(&[put(&workspace, "a.txt", b"a"), put(&workspace, "b.txt", b"b")]).await;
    assert!(matches!(lost, Err(WorkspaceError::Unreachable { .. })), "{lost:?}");
}

async fn a_busy_server_says_for_how_long(target: &Target) {
    let workspace = open(target).await;
    arm(target, Fault::new("POST", "/files/", status(429, Some(17), None)).times(1));
    let busy = workspace.send_small(&[put(&workspace, "a.txt", b"a")]).await;
    match busy {
        Err(error @ WorkspaceError::Busy { .. }) => assert_eq!(error.retry_after(), Some(Duration::from_secs(17))),
        other => panic!("{other:?}"),
    }
    let server = target.server().expect("an embedded server");
    server.faults().clear();
    for (code, is_it) in [
        (403, (|error| matches!(error, WorkspaceError::Forbidden { .. })) as fn(&WorkspaceError) -> bool),
        (413, |error| matches!(error, WorkspaceError::NoSpace { .. })),
        (507, |error| matches!(error, WorkspaceError::NoSpace { .. })),
        (400, |error| matches!(error, WorkspaceError::Refused { status: 400, .. })),
        (426, |error| matches!(error, WorkspaceError::Refused { status: 426, .. })),
        (409, |error| matches!(error, WorkspaceError::Conflict { .. })),
        (302, |error| matches!(error, WorkspaceError::Refused { status: 302, .. })),
        (502, |error| matches!(error, WorkspaceError::Server { status: 502, .. })),
    ] {
        arm(target, Fault::new("POST", "/files/", status(code, None, Some("<html>no</html>"))));
        let refused = workspace.send_small(&[put(&workspace, "a.txt", b"a")]).await;
        assert!(refused.as_ref().is_err_and(is_it), "{code}: {refused:?}");
        server.faults().clear();
    }
}

async fn a_part_that_is_held_back_is_sent_again(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(10, 32_000_000);
    arm(target, Fault::new("PUT", "/parts/2", status(429, Some(0), None)).times(1));
    arm(target, Fault::new("PUT", "/parts/3", Action::DropAfter).times(1));
    // The answer that says that the file is whole is lost too.
    arm(target, Fault::new("PUT", "/parts/4", Action::DropAfter).times(1));
    let outcome = workspace.send_large(&put(&workspace, "large.bin", &bytes), None, &Recorded::default()).await;
    assert!(matches!(outcome, Ok(Outcome::Done { .. })), "{outcome:?}");
    let committed = commit(&workspace, "large").await;
    assert_eq!(content_at(&workspace, &committed.id, "large.bin").await, Some(bytes));
}

async fn an_upload_that_the_server_forgot_begins_anew(_: &Target) {
    let mut target = Target::embedded(Dialect::V0_65).await;
    let workspace = open(&target).await;
    let bytes = noise(11, 45_000_000);
    let sent = put(&workspace, "large.bin", &bytes);
    let upload = begun(&workspace, &sent).await;
    target.restart().await;
    let again = open(&target).await;
    let after = Recorded::default();
    let outcome = again.send_large(&sent, Some(upload.clone()), &after).await;
    assert!(matches!(outcome, Ok(Outcome::Done { sent_bytes: 45_000_000 })), "{outcome:?}");
    assert_ne!(after.upload().expect("a checkpoint").id, upload.id);
    // All parts sent, and the end not told: beginning again finds the file whole.
    let complete = Recorded::default();
    let outcome = again.send_large(&sent, after.upload(), &complete).await;
    assert!(matches!(outcome, Ok(Outcome::Done { sent_bytes: 0 })), "{outcome:?}");
}

async fn a_truncated_download_is_an_error_and_a_second_attempt_heals_it(target: &Target) {
    let workspace = open(target).await;
    let bytes = noise(12, 2_000_000);
    bring(&workspace, "large.bin", Some(&bytes)).await;
    let committed = commit(&workspace, "large").await;
    let source = Source { revision: Revision::Commit(committed.id), path: path("large.bin") };
    arm(target, Fault::new("GET", "/file/", Action::Truncate { bytes: 1_500_000 }).times(1));
    assert_eq!(fetched(&workspace, &source).await.expect("the second attempt"), bytes);
    arm(target, Fault::new("GET", "/file/", Action::Truncate { bytes: 1_500_000 }));
    let short = fetched(&workspace, &source).await;
    assert!(matches!(short, Err(WorkspaceError::Protocol { .. })), "{short:?}");
    arm(target, Fault::new("GET", "/chunk/", Action::Truncate { bytes: 10 }).times(1));
    assert_eq!(workspace.read(&source, 100..10_000).await.expect("the second attempt"), bytes[100..10_000]);
}

async fn an_answer_that_is_no_json_is_a_protocol_error(target: &Target) {
    let workspace = open(target).await;
    arm(target, Fault::new("GET", "/changes", status(200, None, Some("<html>welcome</html>"))));
    let answer = workspace.changes().await;
    assert!(matches!(answer, Err(WorkspaceError::Protocol { .. })), "{answer:?}");
    arm(target, Fault::new("POST", "/files/", status(200, None, Some("{}"))).times(1));
    let outcomes = workspace.send_small(&[put(&workspace, "a.txt", b"a")]).await.expect("an answer");
    assert!(matches!(outcomes[..], [Outcome::Failed(WorkspaceError::Unconfirmed { .. })]), "{outcomes:?}");
}

async fn a_failing_server_is_asked_again(target: &Target) {
    let workspace = open(target).await;
    arm(target, Fault::new("GET", "/changes", status(503, Some(0), None)).times(1));
    arm(target, Fault::new("GET", "/changes", status(500, None, None)).times(1));
    arm(target, Fault::new("GET", "/changes", Action::DropBefore).times(1));
    assert!(changes(&workspace).await.is_empty());
    assert_eq!(target.server().expect("an embedded server").faults().fired(), 3);
}

async fn a_wrong_token_is_refused_and_a_renewed_one_found(_: &Target) {
    let data = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        data: data.path().to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        dialect: Dialect::V0_65,
        token: Some("right-token".into()),
    };
    let server = Server::start(options).await.expect("the embedded server starts");
    let reads = Arc::new(AtomicUsize::new(0));
    let tokens = |tokens: &'static [&'static str]| {
        let reads = reads.clone();
        reads.store(0, Ordering::Relaxed);
        Endpoint {
            credentials: Arc::new(move || {
                let read = reads.fetch_add(1, Ordering::Relaxed);
                tokens.get(read).or(tokens.last()).map(|token| Secret::new(*token))
            }),
            ..Endpoint::new(server.url(), "ox", "private")
        }
    };
    for wrong in [&[][..], &["wrong-token"], &["wrong\ntoken"]] {
        let refused = Repository::connect(&tokens(wrong)).expect("an address").get().await;
        match refused {
            Err(error @ WorkspaceError::Unauthorized { .. }) => assert!(!error.to_string().contains("token")),
            other => panic!("{other:?}"),
        }
    }
    let repository = Repository::connect(&tokens(&["old-token", "right-token"])).expect("an address");
    repository.create(&NewRepository::default()).await.expect("the repository is made");
    let workspace = repository.open_workspace("w", "main", Claim::Own).await.expect("a workspace");
    // Read at the start and after the refusal, and not again.
    assert_eq!(reads.load(Ordering::Relaxed), 2);
    done(workspace.send_small(&[put(&workspace, "a.txt", b"a")]).await.expect("an answer"));
    assert_eq!(reads.load(Ordering::Relaxed), 2);
    assert!(!format!("{:?} {repository:?}", tokens(&["right-token"])).contains("right-token"));
}

async fn a_token_that_expires_is_renewed_under_a_long_upload(target: &Target) {
    let reads = AtomicUsize::new(0);
    let endpoint = Endpoint {
        credentials: Arc::new(move || Some(Secret::new(format!("token-{}", reads.fetch_add(1, Ordering::Relaxed))))),
        ..endpoint(target)
    };
    let workspace = OxenWorkspace::open(&endpoint, "work", "main").await.expect("the workspace opens");
    // Refused before the body is read, so that the answer may be lost; then refused when asked why.
    let repository = format!("/api/repos/{}/{}", target.namespace, target.repo);
    arm(target, Fault::new("POST", "/files/", status(401, None, None)).times(1));
    arm(target, Fault::new("GET", &repository, status(401, None, None)).times(1));
    done(workspace.send_small(&[put(&workspace, "large.bin", &noise(13, 8_000_000))]).await.expect("an answer"));
}

async fn a_lost_commit_answer_is_found_on_the_branch(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "a.txt", Some(b"a")).await;
    let before = target.head("main").await;
    arm(target, Fault::new("POST", "/merge/", Action::DropAfter).times(1));
    let committed = commit(&workspace, "once").await;
    assert_eq!(*committed.id.0, *target.head("main").await);
    assert_eq!(committed.parents, [CommitId(before.as_str().into())]);
    assert_eq!(
        target.server().expect("an embedded server").faults().traffic().requests("POST workspaces/{workspace}/merge"),
        1
    );
    assert!(changes(&workspace).await.is_empty());
}

async fn a_commit_that_never_arrived_is_not_reported(target: &Target) {
    let workspace = open(target).await;
    bring(&workspace, "a.txt", Some(b"a")).await;
    let before = target.head("main").await;
    arm(target, Fault::new("POST", "/merge/", Action::DropBefore));
    let lost = workspace.commit(&message("never")).await;
    assert!(matches!(lost, Err(WorkspaceError::Unreachable { .. })), "{lost:?}");
    assert_eq!(target.head("main").await, before);
    assert_eq!(changes(&workspace).await.len(), 1);
    assert_eq!(
        target.server().expect("an embedded server").faults().traffic().requests("POST workspaces/{workspace}/merge"),
        1
    );
}

async fn nobody_at_the_address_is_unreachable(_: &Target) {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
    let url = format!("http://127.0.0.1:{port}");
    let refused = Repository::connect(&Endpoint::new(&url, "ox", "cats")).expect("an address").get().await;
    match refused {
        Err(WorkspaceError::Unreachable { server, cause, .. }) => {
            assert_eq!(server, url);
            assert!(cause.to_lowercase().contains("refused"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    for bad in ["", "127.0.0.1", "ftp://127.0.0.1", "http://"] {
        assert!(Repository::connect(&Endpoint::new(bad, "ox", "cats")).is_err(), "{bad}");
    }
    // Encryption is offered where the address asks for it.
    let refused = Repository::connect(&Endpoint::new(format!("https://127.0.0.1:{port}"), "ox", "cats"));
    let refused = refused.expect("an address").get().await;
    assert!(matches!(refused, Err(WorkspaceError::Unreachable { .. })), "{refused:?}");
}

#[test]
fn the_agent_is_not_taken_for_the_official_client() {
    assert!(!oxenfs::oxen::USER_AGENT.to_lowercase().contains("oxen"));
}

// ---- many contents in one answer

async fn small_contents_come_many_in_one_answer(target: &Target) {
    let workspace = open(target).await;
    // Staged content is content too, and so is none at all.
    let staged: Vec<Put> =
        (0..50).map(|at| put(&workspace, &format!("many/{at}"), &noise(at, 300 * at as usize))).collect();
    done(workspace.send_small(&staged).await.expect("an answer"));
    let wanted: Vec<Object> = staged.iter().map(|put| put.object).collect();
    let taken = Arc::new(Mutex::new(BTreeMap::new()));
    let to = taken.clone();
    let kind = workspace.info().hash_kind;
    let take: Take = Arc::new(move |object, bytes| {
        assert_eq!((ContentHash::of(kind, &bytes), bytes.len() as u64), (object.hash, object.size));
        to.lock().unwrap().insert(object.hash.to_string(), bytes);
    });
    let fetched = workspace.fetch_small(&wanted, &take).await.expect("an answer");
    // A server may have no such request; the embedded ones do.
    assert!(fetched == Some(Vec::new()) || fetched.is_none() && target.server().is_none(), "{fetched:?}");
    if fetched.is_some() {
        assert_eq!(taken.lock().unwrap().len(), wanted.len());
    }
    taken.lock().unwrap().clear();
    let nowhere = Object { hash: ContentHash::of(kind, b"nobody ever stored this"), size: 23 };
    let fetched = workspace.fetch_small(&[&wanted[..], &[nowhere]].concat(), &take).await.expect("an answer");
    if target.dialect == Dialect::V0_65 {
        assert_eq!(fetched, Some(vec![nowhere.hash]));
        assert_eq!(taken.lock().unwrap().len(), wanted.len());
    }
}

// ---- revisions

async fn a_revision_is_read_without_a_workspace(target: &Target) {
    let workspace = open(target).await;
    let first = workspace.base().await.expect("a base");
    let new = put(&workspace, "new/file", b"later");
    done(workspace.send_small(std::slice::from_ref(&new)).await.expect("an answer"));
    let second = commit(&workspace, "more").await.id;
    let before = target.get_json("workspaces").await["workspaces"].as_array().expect("a list").len();
    let reading = Endpoint { read_only: true, ..endpoint(target) };
    let repository = Repository::connect(&reading).expect("a way to it");
    let name = |commit: &CommitId| commit.to_string();
    for (revision, commit, holds) in
        [(name(&first), &first, false), (name(&second), &second, true), ("main".to_owned(), &second, true)]
    {
        let shown = repository.open_revision(&revision).await.expect("it is there");
        assert_eq!(shown.base().await.expect("a base"), *commit);
        assert_eq!(shown.identity().await.expect("one").map(|found| found.commit), Some(commit.clone()));
        assert!(shown.changes().await.expect("none").is_empty());
        assert_eq!(shown.info().hash_kind, workspace.info().hash_kind);
        let listed = shown.list(commit, &path("new")).await.expect("a listing").entries;
        assert_eq!(listed.len(), usize::from(holds));
        if holds {
            let source = Source { revision: Revision::Commit(commit.clone()), path: path("new/file") };
            assert_eq!(&shown.read(&source, 1..3).await.expect("its bytes")[..], b"at");
            let into = tempfile::tempfile().expect("a file");
            assert_eq!(shown.fetch(&source, 5, &into).await.expect("all of it"), 5);
        }
        // Refused here, not there.
        let refused = shown.send_small(std::slice::from_ref(&new)).await;
        let none_done = |outcomes: Vec<Outcome>| outcomes.iter().all(|one| matches!(one, Outcome::Failed(_)));
        assert!(refused.is_err() || refused.is_ok_and(none_done));
        shown.commit(&message("no")).await.expect_err("it cannot be committed");
    }
    let nowhere = repository.open_revision("nowhere").await;
    assert!(matches!(nowhere, Err(WorkspaceError::NotFound { .. })), "{:?}", nowhere.err());
    assert_eq!(target.get_json("workspaces").await["workspaces"].as_array().expect("a list").len(), before);
}
