//! Mounts that go by a configuration file, and by a token that stands in a file of its own.

use std::fs;

use crate::faults::owed;
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree};
use crate::scripted::Scripted;

#[test]
fn a_mount_goes_by_its_configuration_file_and_a_token_that_is_renewed_there_resumes_the_queue() {
    let mut server = Scripted::with_token(Some("old-0123456789"));
    let test = TestMount::unmounted(&server.url());
    let token = test.beside("secrets").join("token");
    fs::write(&token, "old-0123456789\n").unwrap();
    // As `$HOME/.config` has it; the command line names the server alone.
    let file = format!(
        "[defaults]\nsettle = 0.1\n\n[server.{:?}]\ntoken-file = {token:?}\n\n[repository.{:?}]\nworkspace = \"by-the-file\"\n",
        server.url(),
        test.repo
    );
    fs::write(test.beside(".config/oxenfs").join("config.toml"), file).unwrap();
    test.mount(&["--create"]).ok();
    assert_eq!(test.status()["workspace"], "by-the-file");
    server.stop();
    server.start(Some("new-0123456789"));
    fs::write(test.at("meanwhile.txt"), "written").unwrap();
    let expected = local_tree(&test.dir);
    test.wait_status("the refusal to show", |status| {
        status["stalled"].as_str().is_some_and(|why| why.contains("credentials"))
    });
    // As a secret is renewed where it is mounted: another file takes its place.
    let next = token.with_extension("next");
    fs::write(&next, "new-0123456789\n").unwrap();
    fs::rename(&next, &token).unwrap();
    test.wait_status("everything to be staged", |status| owed(status) == 0);
    test.unmount_commit();
    server.stop();
    server.start(None);
    assert_same(&server.committed(&test.repo), &expected);
}
