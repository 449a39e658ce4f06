//! Committing: what collides, and what becomes of workspaces and directories.

use super::*;

contract! {
    everywhere: [
        a_commit_without_changes_is_refused,
        a_commit_with_a_field_missing_is_refused,
        a_commit_is_shown_by_its_id,
        a_named_workspace_survives_its_commit,
        an_unnamed_workspace_ends_with_its_commit,
        commits_that_do_not_collide_follow_each_other,
        both_sides_modifying_a_file_collide,
        a_removed_directory_is_gone_from_the_commit,
        a_directory_whose_files_were_removed_stays_until_it_is_removed_itself,
        a_root_without_files_is_empty,
        a_file_in_a_directorys_place_is_lost_at_the_commit,
        a_file_takes_a_directorys_place_in_two_commits,
        a_file_in_a_removed_directorys_place_is_lost_at_the_commit,
        removing_below_a_file_that_took_a_directorys_place_unstages_it,
        a_directory_takes_a_files_place,
        a_directory_that_was_staged_in_for_a_time_makes_an_empty_commit,
        a_directory_left_without_staged_files_disappears_in_the_commit,
        a_directory_left_by_a_move_disappears_in_the_commit,
        unstaging_the_directories_too_keeps_them_in_the_commit,
    ];
    released: [
        a_table_is_not_unstaged,
        moving_a_table_copies_it,
    ];
    current: [
        a_file_staged_below_a_table_and_removed_unstages_the_table,
        both_sides_adding_a_path_collide,
        removing_what_the_branch_modified_collides,
        modifying_what_the_branch_removed_collides,
        both_sides_doing_the_same_do_not_collide,
        a_directory_that_the_branch_changed_is_not_removed,
    ];
    only_0_58: [
        later_checks_for_collisions_are_not_made_yet,
    ];
}

async fn a_commit_without_changes_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.commit(&workspace).await.refused(422);
}

async fn a_commit_with_a_field_missing_is_refused(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "new", "x").await;
    let whole = json!({"author": "a", "email": "e", "message": "m"});
    for field in ["author", "email", "message"] {
        let mut body = whole.clone();
        body.as_object_mut().expect("an object").remove(field);
        target.send("POST", "workspaces/w/merge/main", body).await.refused(400);
    }
    target.send("POST", "workspaces/w/merge/no", whole).await.refused(404);
    assert_eq!(target.changes(&workspace).await[0], ["new"]);
}

async fn a_named_workspace_survives_its_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "first", "1").await;
    let commit = target.commit(&workspace).await.ok();
    let stands = target.get_json("workspaces/w").await;
    assert_eq!(stands["workspace"]["commit"]["id"], commit["commit"]["id"]);
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])]);
    target.add(&workspace, "second", "2").await;
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "data", "first", "second"]);
}

async fn an_unnamed_workspace_ends_with_its_commit(target: &Target) {
    let body = json!({"workspace_id": "w", "branch_name": "main"});
    target.send("PUT", target.workspaces_route(), body).await.ok();
    target.add("w", "first", "1").await;
    target.commit("w").await.ok();
    target.get("workspaces/w").await.refused(404);
    target.add_form("w", "", &form(&[("second", "2")])).await.refused(404);
}

async fn commits_that_do_not_collide_follow_each_other(target: &Target) {
    let (one, two) = (target.workspace("one").await, target.workspace("two").await);
    target.add(&one, "data/one", "1").await;
    target.add(&two, "data/two", "2").await;
    target.add(&two, "README.md", "changed by two").await;
    let first = target.commit(&one).await.ok();
    let merge = target.get_json("workspaces/two/merge/main").await;
    assert_eq!((&merge["is_mergeable"], &merge["conflicts"]), (&json!(true), &json!([])));
    assert_eq!(merge["commits"][0]["id"], first["commit"]["id"]);
    let second = target.commit(&two).await.ok();
    assert_eq!(second["commit"]["parent_ids"], json!([first["commit"]["id"]]));
    assert_eq!(target.names("main", "data").await, ["a.txt", "b.txt", "one", "sub", "two"]);
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("changed by two"));
}

async fn a_commit_is_shown_by_its_id(target: &Target) {
    let head = async || text(&target.get_json("branches/main").await["branch"]["commit_id"]);
    let before = head().await;
    let workspace = target.workspace("shown").await;
    target.add(&workspace, "new", "content").await;
    target.commit(&workspace).await.ok();
    let commit = target.get_json(&format!("commits/{}", head().await)).await["commit"].clone();
    assert_eq!((text(&commit["message"]), text(&commit["author"])), ("change".into(), "Someone".into()));
    assert_eq!(commit["parent_ids"], json!([before]));
    target.get("commits/0123456789abcdef0123456789abcdef").await.refused(404);
}

/// Stages `ours` in one workspace, commits `theirs` from another, and returns how committing ours is answered, with
/// the conflicts that were announced. A change is a path and its new content, or nothing.
async fn race(target: &Target, theirs: &[(&str, Option<&str>)], ours: &[(&str, Option<&str>)]) -> (u16, Vec<String>) {
    let (us, them) = (target.workspace("us").await, target.workspace("them").await);
    for (workspace, changes) in [(&us, ours), (&them, theirs)] {
        for (path, content) in changes {
            match content {
                Some(content) => target.add(workspace, path, content).await,
                None => drop(target.remove(workspace, &[path]).await.ok()),
            }
        }
    }
    target.commit(&them).await.ok();
    let merge = target.get_json("workspaces/us/merge/main").await;
    let conflicts = merge["conflicts"].as_array().expect("a list");
    let mut conflicts: Vec<_> = conflicts.iter().map(|conflict| text(&conflict["path"])).collect();
    conflicts.sort();
    assert_eq!(merge["is_mergeable"], conflicts.is_empty());
    let staged = target.changes(&us).await;
    let answer = target.commit(&us).await;
    if answer.status == 409 {
        assert_eq!(target.changes(&us).await, staged, "nothing is lost");
    }
    (answer.status, conflicts)
}

async fn both_sides_modifying_a_file_collide(target: &Target) {
    let theirs = [("README.md", Some("theirs")), ("data/a.txt", Some("theirs"))];
    let ours = [("README.md", Some("ours")), ("data/b.txt", Some("ours"))];
    assert_eq!(race(target, &theirs, &ours).await, (409, strings(["README.md"])));
    assert_eq!(target.content("main", "README.md").await.as_deref(), Some("theirs"));
}

async fn both_sides_adding_a_path_collide(target: &Target) {
    let outcome = race(target, &[("new", Some("theirs"))], &[("new", Some("ours"))]).await;
    assert_eq!(outcome, (409, strings(["new"])));
}

async fn removing_what_the_branch_modified_collides(target: &Target) {
    let outcome = race(target, &[("README.md", Some("theirs"))], &[("README.md", None)]).await;
    assert_eq!(outcome, (409, strings(["README.md"])));
}

async fn modifying_what_the_branch_removed_collides(target: &Target) {
    let outcome = race(target, &[("README.md", None)], &[("README.md", Some("ours"))]).await;
    assert_eq!(outcome, (409, strings(["README.md"])));
}

async fn both_sides_doing_the_same_do_not_collide(target: &Target) {
    let changes = [("README.md", Some("same")), ("new", Some("same")), ("data/a.txt", None)];
    let ours = [&changes[..], &[("only-ours", Some("x"))]].concat();
    assert_eq!(race(target, &changes, &ours).await, (200, strings([])));
    assert_eq!(target.names("main", "").await, ["README.md", "data", "new", "only-ours"]);
}

async fn later_checks_for_collisions_are_not_made_yet(target: &Target) {
    let outcome = race(target, &[("new", Some("theirs"))], &[("new", Some("ours"))]).await;
    assert_eq!(outcome, (200, strings([])));
    assert_eq!(target.content("main", "new").await.as_deref(), Some("ours"));
}

async fn a_removed_directory_is_gone_from_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["data"]).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md"]);
    target.get("dir/main/data").await.refused(404);
}

async fn a_directory_whose_files_were_removed_stays_until_it_is_removed_itself(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["data/sub/c.txt"]).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "data").await, ["a.txt", "b.txt", "sub"]);
    let empty = target.get_json("dir/main/data/sub").await;
    assert_eq!((&empty["entries"], &empty["total_entries"]), (&json!([]), &json!(0)));
    target.remove(&workspace, &["data/sub"]).await.ok();
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "data").await, ["a.txt", "b.txt"]);
}

async fn a_root_without_files_is_empty(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["README.md", "data"]).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.get_json("dir/main").await["entries"], json!([]));
}

async fn a_file_in_a_directorys_place_is_lost_at_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data", "a file now").await;
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "data").await, None);
}

async fn a_file_takes_a_directorys_place_in_two_commits(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["data"]).await.ok();
    target.commit(&workspace).await.ok();
    target.add(&workspace, "data", "a file now").await;
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "data").await.as_deref(), Some("a file now"));
    target.get("dir/main/data").await.refused(404);
}

async fn a_file_in_a_removed_directorys_place_is_lost_at_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["data"]).await.ok();
    target.add(&workspace, "data", "a file now").await;
    assert_eq!(target.changes(&workspace).await[0], ["data"]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "data").await, None);
    assert_eq!(target.names("main", "").await, ["README.md", "data"], "an empty directory");
}

async fn removing_below_a_file_that_took_a_directorys_place_unstages_it(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data", "a file now").await;
    target.remove(&workspace, &["data/a.txt"]).await.ok();
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings(["data/a.txt"])]);
}

async fn a_directory_takes_a_files_place(target: &Target) {
    let workspace = target.workspace("w").await;
    target.remove(&workspace, &["README.md"]).await.ok();
    target.add(&workspace, "README.md/below", "a file below").await;
    assert_eq!(target.changes(&workspace).await, [strings(["README.md/below"]), strings([]), strings([])]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.content("main", "README.md/below").await.as_deref(), Some("a file below"));
}

async fn a_directory_that_was_staged_in_for_a_time_makes_an_empty_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "new.txt", "x").await;
    target.send("DELETE", "workspaces/w/changes", json!(["new.txt"])).await.ok();
    target.commit(&workspace).await.refused(422);
    target.add(&workspace, "fresh/new.txt", "x").await;
    target.send("DELETE", "workspaces/w/changes", json!(["fresh/new.txt"])).await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "data"]);
}

async fn a_directory_that_the_branch_changed_is_not_removed(target: &Target) {
    let outcome = race(target, &[("data/sub/new", Some("theirs"))], &[("data", None)]).await;
    assert_eq!(outcome, (409, strings(["data", "data/sub"])));
}

async fn a_directory_left_without_staged_files_disappears_in_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/new.txt", "x").await;
    target.send("DELETE", "workspaces/w/changes", json!(["data/new.txt"])).await.ok();
    target.add(&workspace, "other.txt", "x").await;
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "other.txt"], "with all the base had in it");
}

async fn a_directory_left_by_a_move_disappears_in_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/new.txt", "x").await;
    target.rename(&workspace, "data/new.txt", "other.txt").await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "other.txt"]);
}

async fn unstaging_the_directories_too_keeps_them_in_the_commit(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "data/sub/new.txt", "x").await;
    target.add(&workspace, "data/kept.txt", "x").await;
    target.add(&workspace, "other.txt", "x").await;
    let list = json!(["data/sub/new.txt", "data/sub", "data"]);
    target.send("DELETE", "workspaces/w/changes", list).await.ok();
    assert_eq!(target.changes(&workspace).await[0], ["data/kept.txt", "other.txt"], "files below stay staged");
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "").await, ["README.md", "data", "other.txt"]);
    assert_eq!(target.names("main", "data").await, ["a.txt", "b.txt", "kept.txt", "sub"]);
    assert_eq!(target.names("main", "data/sub").await, ["c.txt"]);
    target.add(&workspace, "data/new.txt", "x").await;
    target.send("DELETE", "workspaces/w/changes", json!(["data/new.txt", "data"])).await.ok();
    target.commit(&workspace).await.refused(422);
}

async fn moving_a_table_copies_it(target: &Target) {
    let workspace = target.workspace("w").await;
    target.add(&workspace, "t/table.csv", "a,b\n1,2\n").await;
    target.rename(&workspace, "t/table.csv", "t/renamed.csv").await.ok();
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "t").await, ["renamed.csv"], "one that is only staged is moved");
    target.rename(&workspace, "t/renamed.csv", "t/again.csv").await.ok();
    assert_eq!(target.changes(&workspace).await, [strings(["t/again.csv"]), strings([]), strings([])]);
    target.add(&workspace, "t/renamed.csv", "a,b\n3,4\n").await;
    target.rename(&workspace, "t/renamed.csv", "t/third.csv").await.ok();
    assert_eq!(target.changes(&workspace).await, [strings(["t/again.csv", "t/third.csv"]), strings([]), strings([])]);
    target.commit(&workspace).await.ok();
    assert_eq!(target.names("main", "t").await, ["again.csv", "renamed.csv", "third.csv"]);
    assert_eq!(target.content("main", "t/renamed.csv").await.as_deref(), Some("a,b\n1,2\n"));
    assert_eq!(target.content("main", "t/third.csv").await.as_deref(), Some("a,b\n3,4\n"));
}

async fn a_table_is_not_unstaged(target: &Target) {
    let workspace = target.workspace("w").await;
    let tables = ["t/changed.csv", "t/removed.csv"];
    for table in tables {
        target.add(&workspace, table, "a,b\n1,2\n").await;
    }
    target.commit(&workspace).await.ok();
    target.add(&workspace, "t/changed.csv", "a,b\n3,4\n").await;
    target.remove(&workspace, &["t/removed.csv"]).await.ok();
    let staged = [strings([]), strings(["t/changed.csv"]), strings(["t/removed.csv"])];
    target.send("DELETE", "workspaces/w/changes", json!(tables)).await.ok();
    assert_eq!(target.changes(&workspace).await, staged, "answered as if it were done");
    for table in tables {
        Answered::of(target.request("DELETE", &format!("workspaces/w/changes/{table}"))).await.ok();
    }
    assert_eq!(target.changes(&workspace).await, staged);
    target.add(&workspace, "t/new.csv", "a,b\n5,6\n").await;
    let answer = target.send("DELETE", "workspaces/w/changes", json!(["t/new.csv"])).await;
    assert_eq!((answer.status, &answer.body["paths"]), (206, &json!(["t/new.csv"])));
    if matches!(target.dialect, Dialect::V0_50 | Dialect::V0_58) {
        target.remove(&workspace, &["t/new.csv"]).await.refused(206);
        // Neither way; but moved to a name that is no table's it can be unstaged.
        target.rename(&workspace, "t/new.csv", "aside").await.ok();
        target.send("DELETE", "workspaces/w/changes", json!(["aside"])).await.ok();
    } else {
        target.remove(&workspace, &["t/new.csv"]).await.ok();
    }
    assert_eq!(target.changes(&workspace).await, staged, "a new one can be removed");
}

/// A file staged below a path makes servers forget what is staged at it; removing that file forgets the rest.
async fn a_file_staged_below_a_table_and_removed_unstages_the_table(target: &Target) {
    let workspace = target.workspace("w").await;
    for table in ["t/changed.csv", "t/removed.csv"] {
        target.add(&workspace, table, "a,b\n1,2\n").await;
    }
    target.commit(&workspace).await.ok();
    target.add(&workspace, "t/changed.csv", "a,b\n3,4\n").await;
    target.remove(&workspace, &["t/removed.csv"]).await.ok();
    let below = ["t/changed.csv/x", "t/removed.csv/x"];
    for path in below {
        target.add(&workspace, path, "x").await;
    }
    assert_eq!(target.changes(&workspace).await, [below.map(str::to_owned).to_vec(), strings([]), strings([])]);
    target.remove(&workspace, &below).await.ok();
    target.send("DELETE", "workspaces/w/changes", json!(["t"])).await.ok();
    assert_eq!(target.changes(&workspace).await, [strings([]), strings([]), strings([])]);
    target.commit(&workspace).await.refused(422);
    assert_eq!(target.content("w", "t/changed.csv").await.as_deref(), Some("a,b\n1,2\n"));
    assert_eq!(target.names("main", "t").await, ["changed.csv", "removed.csv"]);
}
