//! Of which state directories anything is said.

use crate::daemon::stopped;
use crate::{User, text};

#[test]
fn state_directories_that_were_removed_are_one_line_of_doctor_and_none_elsewhere() {
    let user = User::new();
    let (mounted, root) = (user.dir("mnt"), user.state());
    let kept = stopped(&root, &mounted);
    for number in 0..20 {
        std::os::unix::fs::symlink(user.path("nowhere"), root.join(format!("link-{number}"))).unwrap();
        // Removed while its daemon was ending.
        let dir = root.join(format!("dir-{number}"));
        std::fs::create_dir(&dir).unwrap();
        for name in ["log", "log.1", "lock", "README"] {
            std::fs::write(dir.join(name), "x").unwrap();
        }
    }
    for command in
        [&["status"][..], &["status", text(&mounted)], &["diff", text(&mounted)], &["unmount", text(&mounted)]]
    {
        let said = user.run(command);
        assert!(!said.err.contains("warning") && !said.out.contains("link-"), "{command:?}: {said:?}");
    }
    let doctor = user.run(["doctor"]);
    assert_eq!(doctor.err, "");
    let lines: Vec<_> = doctor.out.lines().filter(|line| line.contains("removed, but for their names: ")).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(" and 39 more"), "{doctor:?}");
    // One that may hold data is told by every command.
    std::fs::create_dir(root.join("dir-0/spool")).unwrap();
    assert!(user.run(["status"]).err.contains("dir-0/meta.json"), "what may be of worth is told");
    assert!(kept.exists());
}
