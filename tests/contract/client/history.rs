//! What the client finds out about workspaces, commits and contents: what a commit is checked by.

use super::*;

use oxenfs::dev_server::Meanwhile;
use oxenfs::hash::HashKind;
use oxenfs::workspace::{Differences, InHistory, Scope, Sides};
use serde_json::json;

contract! {
    everywhere: [
        a_workspace_is_told_from_one_made_anew,
        a_workspace_that_was_deleted_is_made_again_where_it_stood,
        a_workspace_that_others_made_under_another_id_is_taken_up,
        commits_and_histories_are_looked_up,
        where_two_commits_differ_is_told,
        a_directory_differs_from_that_of_another_commit_where_something_below_it_does,
        contents_that_the_server_lacks_are_named,
    ];
    current: [
        a_long_list_of_missing_contents_is_read_whole,
        content_that_was_pruned_is_named_and_sent_again,
    ];
    only_documented: [without_a_route_commits_are_not_compared];
    only_0_58: [a_server_that_cannot_tell_what_it_has_is_known];
    only_embedded_0_65: [
        a_commit_that_the_branch_does_not_have_is_an_error,
        a_commit_whose_answer_names_another_is_found_on_the_branch,
        a_directory_that_a_commit_dropped_is_a_difference,
        a_workspace_that_is_deleted_meanwhile_is_missing,
    ];
}

async fn a_workspace_is_told_from_one_made_anew(target: &Target) {
    let workspace = open(target).await;
    let identity = workspace.identity().await.expect("an answer").expect("a workspace");
    assert_eq!(identity.commit, workspace.base().await.expect("the base"));
    let base = identity.commit.clone();
    // A commit moves it, and it is the same.
    bring(&workspace, "a.txt", Some(b"a")).await;
    let committed = commit(&workspace, "first").await;
    let moved = workspace.identity().await.expect("an answer").expect("a workspace");
    assert_eq!(moved.commit, committed.id);
    assert!(moved.is_same_as(&identity) && moved != identity);
    let there = workspace.reopen("main", &base).await.expect("an answer");
    assert_eq!((there.made, &there.identity), (false, &moved));
    // Deleted with what is staged.
    bring(&workspace, "b.txt", Some(b"b")).await;
    let repository = Repository::connect(&endpoint(target)).expect("an address");
    assert!(repository.delete_workspace("work").await.expect("an answer"));
    assert_eq!(workspace.identity().await.expect("an answer"), None);
    for refused in [workspace.base().await.map(drop), workspace.changes().await.map(drop)] {
        assert!(matches!(refused, Err(WorkspaceError::NotFound { .. })), "{refused:?}");
    }
    let anew = workspace.reopen("main", &committed.id).await.expect("it is made again");
    assert!(anew.made && !anew.identity.is_same_as(&moved), "{anew:?}");
    assert_eq!(anew.identity.commit, committed.id);
    assert!(changes(&workspace).await.is_empty());
    bring(&workspace, "b.txt", Some(b"b")).await;
    assert_eq!(changes(&workspace).await.len(), 1);
}

/// The branch has moved on: what is staged again is staged over what it was made from.
async fn a_workspace_that_was_deleted_is_made_again_where_it_stood(target: &Target) {
    let workspace = open(target).await;
    let base = workspace.base().await.expect("the base");
    let theirs = named(target, "theirs").await;
    bring(&theirs, "theirs.txt", Some(b"theirs")).await;
    let head = commit(&theirs, "theirs").await.id;
    let repository = Repository::connect(&endpoint(target)).expect("an address");
    let branches = || async {
        let branches = repository.branches().await.expect("a listing").into_iter();
        branches.map(|branch| branch.name).collect::<Vec<_>>()
    };
    for (wanted, expected) in [(&base, &base), (&head, &head), (&CommitId("".into()), &head)] {
        assert!(repository.delete_workspace("work").await.expect("an answer"));
        let anew = workspace.reopen("main", wanted).await.expect("it is made again");
        assert_eq!((anew.made, &anew.identity.commit), (true, expected));
        assert_eq!(branches().await, ["main"]);
        // Another that does so at the same time finds it.
        let again = workspace.reopen("main", &base).await.expect("an answer");
        assert_eq!((again.made, &again.identity.commit), (false, expected));
    }
    // A commit that the repository does not have, and what a client left that ended amid this.
    assert!(repository.delete_workspace("work").await.expect("an answer"));
    let unknown = CommitId("0123456789abcdef0123456789abcdef".into());
    let anew = workspace.reopen("main", &unknown).await.expect("it is made again");
    assert_eq!((anew.made, &anew.identity.commit), (true, &head));
    assert!(repository.delete_workspace("work").await.expect("an answer"));
    let left = format!("workspace-mount-{}", ContentHash::of(HashKind::Xxh3, b"work"));
    let body = json!({"new_name": left, "commit_id": head.0});
    assert!(crate::server::answered(target.http.post(target.url("branches")).json(&body)).await.status().is_success());
    let anew = workspace.reopen("main", &base).await.expect("it is made again");
    assert_eq!((anew.made, &anew.identity.commit), (true, &base));
    assert_eq!(branches().await, ["main"]);
    bring(&workspace, "ours.txt", Some(b"ours")).await;
    let committed = commit(&workspace, "ours").await.id;
    let names = tree(&workspace, &committed).await.into_keys().filter(|name| name.ends_with("s.txt"));
    assert_eq!(names.collect::<Vec<_>>(), ["ours.txt", "theirs.txt"]);
}

async fn a_workspace_that_others_made_under_another_id_is_taken_up(target: &Target) {
    let workspace = open(target).await;
    let before = workspace.identity().await.expect("an answer").expect("a workspace");
    let base = before.commit.clone();
    let repository = Repository::connect(&endpoint(target)).expect("an address");
    assert!(repository.delete_workspace("work").await.expect("an answer"));
    let route = match target.dialect {
        Dialect::Documented => "workspaces/get_or_create",
        _ => "workspaces",
    };
    let body = json!({"workspace_id": "theirs", "name": "work", "branch_name": "main"});
    let answer = crate::server::answered(target.http.put(target.url(route)).json(&body)).await;
    assert!(answer.status().is_success());
    let found = workspace.identity().await.expect("an answer").expect("a workspace");
    assert!(*found.id == *"theirs" && !found.is_same_as(&before), "{found:?}");
    let there = workspace.reopen("main", &base).await.expect("an answer");
    assert_eq!((there.made, &there.identity), (false, &found));
    bring(&workspace, "data/a.txt", Some(b"changed")).await;
    bring(&workspace, "a.txt", Some(b"a")).await;
    let staged = workspace.staged_object(&Change { path: path("a.txt"), kind: ChangeKind::Added }).await;
    assert_eq!(staged.expect("it is there").size, 1);
    assert_eq!(*workspace.id(), *"theirs");
    commit(&workspace, "through another id").await;
}

async fn commits_and_histories_are_looked_up(target: &Target) {
    let workspace = open(target).await;
    let base = workspace.base().await.expect("the base");
    bring(&workspace, "a.txt", Some(b"a")).await;
    let first = commit(&workspace, "first").await.id;
    bring(&workspace, "b.txt", Some(b"b")).await;
    let second = commit(&workspace, "second").await.id;
    assert_eq!(workspace.head("main").await.expect("the head"), second);
    let info = workspace.commit_info(&second).await.expect("an answer").expect("a commit");
    assert_eq!((&info.id, &info.parents[..]), (&second, &[first.clone()][..]));
    assert_eq!((info.message.as_str(), info.author.as_str()), ("second", "Bessie"));
    let invented = CommitId("0123456789abcdef0123456789abcdef".into());
    for none in [&invented, &CommitId("".into())] {
        assert_eq!(workspace.commit_info(none).await.expect("an answer"), None);
        assert_eq!(workspace.in_history("main", none, None).await.expect("an answer"), InHistory::No, "{none}");
    }
    for (commit, since, expected) in [
        (&second, None, InHistory::Yes),
        (&base, None, InHistory::Yes),
        (&second, Some(&first), InHistory::Yes),
        (&first, Some(&base), InHistory::Yes),
        (&first, Some(&first), InHistory::No),
        (&base, Some(&first), InHistory::No),
    ] {
        let found = workspace.in_history("main", commit, since).await.expect("an answer");
        assert_eq!(found, expected, "{commit} since {since:?}");
    }
    let refused = workspace.in_history("no-such-branch", &first, None).await;
    assert!(matches!(refused, Err(WorkspaceError::NotFound { .. })), "{refused:?}");
}

fn of(workspace: &dyn Workspace, content: &[u8]) -> Option<EntryKind> {
    let hash = ContentHash::of(workspace.info().hash_kind, content);
    Some(EntryKind::File(Object { hash, size: content.len() as u64 }))
}

const DIR: Option<EntryKind> = Some(EntryKind::Dir);

fn differences<const N: usize>(expected: [(&str, Option<EntryKind>, Option<EntryKind>); N]) -> Differences {
    expected.into_iter().map(|(at, old, new)| (path(at), Sides { old, new })).collect()
}

async fn where_two_commits_differ_is_told(target: &Target) {
    let workspace = open(target).await;
    let old = workspace.base().await.expect("the base");
    bring(&workspace, "data/a.txt", Some(b"changed")).await;
    bring(&workspace, "data/new/deep/x", Some(b"x")).await;
    done(workspace.remove(&[path("data/sub")]).await.expect("an answer"));
    bring(&workspace, "README.md", None).await;
    let new = commit(&workspace, "changes").await.id;
    let of = |content: &[u8]| of(&workspace, content);
    let everything = [
        ("README.md", of(b"base\n"), None),
        ("data/a.txt", of(b"alpha\n"), of(b"changed")),
        ("data/new", None, DIR),
        ("data/new/deep", None, DIR),
        ("data/new/deep/x", None, of(b"x")),
        ("data/sub", DIR, None),
        ("data/sub/c.txt", of(b"gamma\n"), None),
    ];
    let dirs = ["", "data", "data/new", "data/new/deep", "data/sub"].map(path);
    let found = workspace.compare(&old, &new, Scope::Directories(&dirs)).await.expect("an answer");
    let mut expected = differences(everything);
    expected.insert(path("data"), Sides { old: DIR, new: DIR });
    assert_eq!(found, expected);
    let [readme, ..] = everything;
    let found = workspace.compare(&old, &new, Scope::Directories(&dirs[..1])).await.expect("an answer");
    assert_eq!(found, differences([readme, ("data", DIR, DIR)]));
    match workspace.compare(&old, &new, Scope::Everything).await {
        Ok(found) => assert_eq!(found, differences(everything)),
        Err(error) => assert!(matches!(error, WorkspaceError::Unsupported { .. }), "{error}"),
    }
    let same = workspace.compare(&new, &new, Scope::Directories(&dirs)).await.expect("an answer");
    assert!(same.is_empty(), "{same:?}");
    // A commit that does not exist is not one without files.
    let nowhere = CommitId("0123456789abcdef0123456789abcdef".into());
    for scope in [Scope::Directories(&dirs), Scope::Everything] {
        let refused = workspace.compare(&old, &nowhere, scope).await;
        let unsupported = target.dialect == Dialect::Documented && scope == Scope::Everything;
        assert!(
            matches!(refused, Err(WorkspaceError::NotFound { .. }))
                || unsupported && matches!(refused, Err(WorkspaceError::Unsupported { .. })),
            "{refused:?}"
        );
    }
}

/// By this the check of a commit finds what it did not look for.
async fn a_directory_differs_from_that_of_another_commit_where_something_below_it_does(target: &Target) {
    let workspace = open(target).await;
    for at in ["d/s/t/base.txt", "d/keep.txt", "e/s/t/base.csv"] {
        bring(&workspace, at, Some(b"base")).await;
    }
    let old = commit(&workspace, "base").await.id;
    bring(&workspace, "d/s/t/new", Some(b"new")).await;
    let new = commit(&workspace, "changed").await.id;
    let root = workspace.compare(&old, &new, Scope::Directories(&[path("")])).await.expect("an answer");
    assert_eq!(root, differences([("d", DIR, DIR)]), "and neither data nor e");
    let below = workspace.compare(&old, &new, Scope::Directories(&[path("d"), path("e")])).await.expect("an answer");
    assert_eq!(below, differences([("d/s", DIR, DIR)]));
    // A mark that another client left drops one.
    bring(&workspace, "d/s/t/x", Some(b"x")).await;
    let unstage = target.http.delete(target.url(&format!("workspaces/{}/changes", workspace.id())));
    assert!(crate::server::answered(unstage.json(&["d/s/t/x"])).await.status().is_success());
    bring(&workspace, "other.txt", Some(b"other")).await;
    let theirs = json!({"author": "B", "email": "b@example.com", "message": "dropped"});
    let merge = target.http.post(target.url(&format!("workspaces/{}/merge/main", workspace.id())));
    assert!(crate::server::answered(merge.json(&theirs)).await.status().is_success());
    let dropped = workspace.head("main").await.expect("the head");
    let root = workspace.compare(&new, &dropped, Scope::Directories(&[path("")])).await.expect("an answer");
    let other = ("other.txt", None, of(&workspace, b"other"));
    assert_eq!(root, differences([("d", DIR, DIR), other]));
    let below = workspace.compare(&new, &dropped, Scope::Directories(&[path("d/s")])).await.expect("an answer");
    assert_eq!(below, differences([("d/s/t", DIR, None)]));
}

async fn without_a_route_commits_are_not_compared(target: &Target) {
    let workspace = open(target).await;
    let base = workspace.base().await.expect("the base");
    let traffic = target.server().expect("an embedded server").traffic();
    for _ in 0..2 {
        let refused = workspace.compare(&base, &base, Scope::Everything).await;
        assert!(matches!(refused, Err(WorkspaceError::Unsupported { .. })), "{refused:?}");
    }
    let asked = traffic.log().iter().filter(|logged| logged.path.contains("/compare/")).count();
    assert_eq!(asked, 1, "it is known after the first time");
}

async fn contents_that_the_server_lacks_are_named(target: &Target) {
    let workspace = open(target).await;
    // What a commit holds is known from a listing.
    let base = workspace.base().await.expect("the base");
    assert!(!workspace.list(&base, &path("data")).await.expect("a listing").entries.is_empty());
    bring(&workspace, "staged.txt", Some(b"staged")).await;
    let hash = |content: &[u8]| ContentHash::of(workspace.info().hash_kind, content);
    let (there, staged, not_there) = (hash(b"alpha\n"), hash(b"staged"), hash(b"nobody sent this"));
    assert_eq!(workspace.missing(&[]).await.expect("an answer"), Some(vec![]));
    assert_eq!(workspace.missing(&[not_there]).await.expect("an answer"), Some(vec![not_there]));
    let asked = [there, not_there, staged, not_there];
    assert_eq!(workspace.missing(&asked).await.expect("an answer"), Some(vec![not_there]));
    assert_eq!(workspace.missing(&[there, staged]).await.expect("an answer"), Some(vec![]));
}

async fn a_long_list_of_missing_contents_is_read_whole(target: &Target) {
    let workspace = open(target).await;
    let hashes: Vec<_> =
        (0..12_000u32).map(|n| ContentHash::of(workspace.info().hash_kind, &n.to_le_bytes())).collect();
    bring(&workspace, "one", Some(&7u32.to_le_bytes())).await;
    let missing: BTreeSet<_> =
        workspace.missing(&hashes).await.expect("an answer").expect("it can tell").into_iter().collect();
    assert_eq!(missing.len(), 11_999);
    assert!(!missing.contains(&hashes[7]));
}

async fn content_that_was_pruned_is_named_and_sent_again(target: &Target) {
    let workspace = open(target).await;
    let (small, large) = (noise(20, 100_000), noise(21, 12_000_000));
    bring(&workspace, "data/staged.bin", Some(&small)).await;
    let sent = put(&workspace, "large.bin", &large);
    let outcome = workspace.send_large(&sent, None, &Recorded::default()).await;
    assert!(matches!(outcome, Ok(Outcome::Done { .. })), "{outcome:?}");
    let pruned = crate::server::answered(target.http.post(target.url("prune")).json(&json!({"dry_run": false}))).await;
    assert!(pruned.status().is_success());
    let hashes = [&small, &large].map(|content| ContentHash::of(workspace.info().hash_kind, content));
    let missing: BTreeSet<_> =
        workspace.missing(&hashes).await.expect("an answer").expect("it can tell").into_iter().collect();
    assert_eq!(missing, hashes.into());
    // The server does not mind.
    let committed = commit(&workspace, "pruned").await.id;
    let source = |at: &str| Source { revision: Revision::Commit(committed.clone()), path: path(at) };
    let lost = fetched(&workspace, &source("data/staged.bin")).await;
    assert!(matches!(lost, Err(WorkspaceError::Server { status: 500, .. })), "{lost:?}");
    // Staged where the commit has it, content is stored and nothing is staged.
    done(workspace.send_small(&[put(&workspace, "data/staged.bin", &small)]).await.expect("an answer"));
    let outcome = workspace.send_large(&sent, None, &Recorded::default()).await;
    assert!(matches!(outcome, Ok(Outcome::Done { .. })), "{outcome:?}");
    assert!(changes(&workspace).await.is_empty());
    assert_eq!(workspace.missing(&hashes).await.expect("an answer"), Some(vec![]));
    for (at, content) in [("data/staged.bin", &small), ("large.bin", &large)] {
        assert!(fetched(&workspace, &source(at)).await.expect("it is there again") == *content, "{at}");
    }
}

async fn a_server_that_cannot_tell_what_it_has_is_known(target: &Target) {
    let workspace = open(target).await;
    let base = workspace.base().await.expect("the base");
    assert!(!workspace.list(&base, &path("data")).await.expect("a listing").entries.is_empty());
    arm(target, Fault::new("GET", "/metadata", status(404, None, None)));
    let hash = |content: &[u8]| ContentHash::of(workspace.info().hash_kind, content);
    assert_eq!(workspace.missing(&[hash(b"alpha\n"), hash(b"x")]).await.expect("an answer"), None);
    target.server().expect("an embedded server").faults().clear();
    assert_eq!(workspace.missing(&[hash(b"x")]).await.expect("an answer"), Some(vec![hash(b"x")]));
    // Known to tell by now.
    arm(target, Fault::new("GET", "/metadata", status(500, None, None)));
    let failed = workspace.missing(&[hash(b"x")]).await;
    assert!(matches!(failed, Err(WorkspaceError::Server { status: 500, .. })), "{failed:?}");
}

// ---- faults

async fn a_commit_that_the_branch_does_not_have_is_an_error(_: &Target) {
    // Made up, none, and the commit before.
    let answers = [Some("0123456789abcdef0123456789abcdef"), Some(""), None].map(|id| async move {
        // Each on a server of its own: after such an answer the branch is looked at for a while.
        let target = Target::embedded(Dialect::V0_65).await;
        let head = target.head("main").await;
        let id = id.unwrap_or(&head).to_owned();
        let workspace = open(&target).await;
        bring(&workspace, "a.txt", Some(b"a")).await;
        let body = json!({"commit": {"id": id, "parent_ids": [], "message": "x", "author": "Bessie"}}).to_string();
        arm(&target, Fault::new("POST", "/merge/", status(200, None, Some(&body))));
        let refused = workspace.commit(&message("x")).await;
        assert!(
            matches!(&refused, Err(WorkspaceError::Protocol { detail, .. }) if detail.contains(&id)),
            "{refused:?}"
        );
        assert_eq!(changes(&workspace).await.len(), 1, "it is still staged");
    });
    for answer in answers.map(tokio::spawn) {
        answer.await.expect("no panic");
    }
}

async fn a_commit_whose_answer_names_another_is_found_on_the_branch(target: &Target) {
    let workspace = open(target).await;
    for (number, id) in ["", "0123456789abcdef0123456789abcdef", &target.head("main").await].into_iter().enumerate() {
        let before = target.head("main").await;
        bring(&workspace, "a.txt", Some(&[b'a', number as u8])).await;
        let named = Action::NameCommit { id: id.to_owned() };
        arm(target, Fault::new("POST", "/merge/", named).nth(number as u32 + 1).times(1));
        let committed = commit(&workspace, "named").await;
        assert_eq!(*committed.id.0, *target.head("main").await);
        assert_eq!(committed.parents, [CommitId(before.as_str().into())]);
        target.server().expect("an embedded server").faults().clear();
    }
}

async fn a_directory_that_a_commit_dropped_is_a_difference(target: &Target) {
    let workspace = open(target).await;
    let old = workspace.base().await.expect("the base");
    bring(&workspace, "a.txt", Some(b"a")).await;
    bring(&workspace, "data/b.txt", Some(b"b")).await;
    bring(&workspace, "z.txt", Some(b"z")).await;
    for action in [Action::DropFromCommit { path: path("data") }, Action::LeaveOut { path: path("z.txt") }] {
        arm(target, Fault::new("POST", "/merge/", action).times(1));
    }
    let new = commit(&workspace, "drops").await.id;
    let of = |content: &[u8]| of(&workspace, content);
    let found = workspace.compare(&old, &new, Scope::Directories(&[path("")])).await.expect("an answer");
    assert_eq!(found, differences([("a.txt", None, of(b"a")), ("data", DIR, None)]));
    let found = workspace.compare(&old, &new, Scope::Everything).await.expect("an answer");
    let expected = [
        ("a.txt", None, of(b"a")),
        ("data", DIR, None),
        ("data/a.txt", of(b"alpha\n"), None),
        ("data/b.txt", of(b"beta\n"), None),
        ("data/sub", DIR, None),
        ("data/sub/c.txt", of(b"gamma\n"), None),
    ];
    assert_eq!(found, differences(expected));
}

async fn a_workspace_that_is_deleted_meanwhile_is_missing(target: &Target) {
    let workspace = open(target).await;
    let before = workspace.identity().await.expect("an answer").expect("a workspace");
    let base = before.commit.clone();
    bring(&workspace, "a.txt", Some(b"a")).await;
    arm(target, Fault::new("GET", "/changes", Action::Meanwhile(Meanwhile::DeleteWorkspace)).times(1));
    let refused = workspace.changes().await;
    assert!(matches!(refused, Err(WorkspaceError::NotFound { .. })), "{refused:?}");
    workspace.reopen("main", &base).await.expect("it is made again");
    bring(&workspace, "a.txt", Some(b"a")).await;
    let remade = Meanwhile::RemakeWorkspace { branch: "main".into() };
    arm(target, Fault::new("POST", "/merge/", Action::Meanwhile(remade)).times(1));
    let refused = workspace.commit(&message("nothing")).await;
    assert!(matches!(refused, Err(WorkspaceError::Refused { status: 422, .. })), "{refused:?}");
    assert!(!workspace.identity().await.expect("an answer").expect("a workspace").is_same_as(&before));
    bring(&workspace, "a.txt", Some(b"a")).await;
    arm(target, Fault::new("POST", "/merge/", Action::Meanwhile(Meanwhile::Prune)).times(1));
    let committed = commit(&workspace, "pruned").await;
    let hash = ContentHash::of(workspace.info().hash_kind, b"a");
    assert_eq!(workspace.missing(&[hash]).await.expect("an answer"), Some(vec![hash]));
    assert_eq!(*committed.id.0, *target.head("main").await);
}
