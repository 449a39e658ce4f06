//! Manual pages, units, and what the package is made of.

use std::path::Path;

use crate::{User, text};

#[test]
fn a_manual_page_is_printed_for_each_command_and_all_are_written_into_a_directory() {
    let user = User::new();
    let page = user.run(["man", "mount"]);
    assert_eq!((page.exit, page.err.as_str()), (0, ""), "{page:?}");
    assert!(page.out.contains(".TH OXENFS-MOUNT 1"), "{}", page.out);
    assert!(page.out.contains("\\-\\-drain\\-timeout"), "{}", page.out);
    assert!(user.run(["man"]).out.contains(".TH OXENFS 1"));
    let wrong = user.run(["man", "mount", "cats"]);
    let expected = "error: there is no command \"mount cats\"\nhint: oxenfs --help lists the commands\n";
    assert_eq!((wrong.exit, wrong.out.as_str(), wrong.err.as_str()), (2, "", expected));
    let dir = user.path("man");
    let written = user.run(["man", "--dir", text(&dir)]);
    for name in written.out.lines() {
        assert!(std::fs::metadata(dir.join(name)).unwrap().len() > 200, "{name}");
    }
    assert!(written.out.contains("mount.fuse.oxenfs.8") && written.out.contains("oxenfs-config-show.1"), "{written:?}");
}

#[test]
fn a_unit_does_what_the_command_would_and_is_not_printed_where_that_would_be_refused() {
    let user = User::new();
    let dir = user.dir("my cats 100%");
    let arguments = ["mount", "ox/cats", text(&dir), "--server", "gpu-7:3000", "--read-only", "--umask", "077"];
    let mut command = user.command(arguments);
    command.args(["--print-unit=system", "--token-file", "secret/token", "-o", "settle=5"]);
    let unit = crate::said(command.current_dir(user.home.path()));
    assert_eq!((unit.exit, unit.err.as_str()), (0, ""), "{unit:?}");
    let line = |key: &str| {
        let line = unit.out.lines().find(|line| line.starts_with(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("{key}: {}", unit.out)).to_owned()
    };
    let home = user.home.path().canonicalize().unwrap();
    let expected = format!(
        "ExecStart={} mount ox/cats \"{}/my cats 100%%\" --foreground --server https://gpu-7:3000 --umask 077 \
         --token-file {}/secret/token --read-only -o settle=5",
        Path::new(env!("CARGO_BIN_EXE_oxenfs")).canonicalize().unwrap().display(),
        home.display(),
        home.display(),
    );
    assert_eq!(line("ExecStart"), expected);
    assert_eq!(line("Type"), "Type=notify");
    // The time to send what is left, and some more.
    assert_eq!(line("TimeoutStopSec"), "TimeoutStopSec=50");
    assert_eq!(line("WantedBy"), "WantedBy=multi-user.target");
    assert!(unit.out.contains("After=network-online.target"), "{}", unit.out);
    let own = user.run(["mount", "http://h:1/ox/cats", text(&dir), "--print-unit=user", "--drain-timeout", "5m"]);
    assert!(own.out.contains("WantedBy=default.target") && own.out.contains("TimeoutStopSec=330"), "{own:?}");
    assert!(!own.out.contains("network-online") && !own.out.contains("--server"), "{own:?}");
    let wrong = user.run(["mount", "ox/cats", text(&dir), "--server", "h", "--print-unit", "--settle", "soon"]);
    assert_eq!((wrong.exit, wrong.out.as_str()), (2, ""));
    assert!(wrong.err.starts_with("error: cannot print a unit for ox/cats: --settle \"soon\""), "{wrong:?}");
}

#[test]
fn what_the_package_takes_is_there_and_its_configuration_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let assets = manifest.split_once("assets = [").unwrap().1.split_once("\n]").unwrap().0;
    let mut seen = 0;
    for line in assets.lines().filter(|line| !line.trim().is_empty()) {
        let source = line.split('"').nth(1).unwrap();
        // What scripts/package makes is looked at by scripts/package-check.
        if !source.starts_with("target/") && !source.contains('*') {
            assert!(root.join(source).is_file(), "{source}");
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen}");
    // With all of it switched on, as somebody would who removes the signs.
    let sample = std::fs::read_to_string(root.join("packaging/config.toml")).unwrap();
    let switched_on: Vec<&str> = sample
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .collect();
    let user = User::new();
    let file = user.path("config.toml");
    std::fs::write(&file, switched_on.join("\n")).unwrap();
    let shown = crate::said(user.command(["config", "show", "ox/cats"]).env("OXENFS_CONFIG", &file));
    assert_eq!((shown.exit, shown.err.as_str()), (0, ""), "{shown:?}");
    assert!(shown.out.contains("https://hub.oxen.ai"), "{}", shown.out);
}
