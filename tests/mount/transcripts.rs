//! docs/TOGETHER.md is what happens: each of its commands runs on a machine of its prompt's name, which is a home directory
//! here, and prints what stands below it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server;

/// A command of the page, and what it prints.
struct Step {
    machine: String,
    command: String,
    printed: Vec<String>,
}

fn steps(page: &str) -> Vec<Step> {
    let (mut steps, mut is_inside) = (Vec::<Step>::new(), false);
    for line in page.lines() {
        let prompt = line.split_once("$ ").filter(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase()));
        match (line, prompt) {
            ("```console", _) => is_inside = true,
            ("```", _) => is_inside = false,
            (_, Some((machine, command))) if is_inside => {
                let (machine, command) = (machine.to_owned(), command.to_owned());
                steps.push(Step { machine, command, printed: Vec::new() });
            }
            _ if is_inside => steps.last_mut().expect("a block begins with a command").printed.push(line.to_owned()),
            _ => {}
        }
    }
    steps
}

/// Whether a line is what the page has, where `…` stands for anything.
fn is_like(line: &str, expected: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let at = if parts.peek().is_none() {
            rest.ends_with(part).then(|| rest.len() - part.len())
        } else {
            rest.find(part)
        };
        let Some(at) = at else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// The home directories, and nothing mounted below them afterwards.
struct Machines(PathBuf, #[expect(dead_code, reason = "held until the end")] tempfile::TempDir);

impl Machines {
    fn mounted(&self) -> Vec<String> {
        let table = crate::mounted::kernel_mounts();
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        places.filter(|place| Path::new(place).starts_with(&self.0)).map(str::to_owned).collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for place in self.mounted() {
            let _ = Command::new("fusermount3").args(["-u", "-z", "-q", &place]).status();
        }
    }
}

#[test]
fn the_page_about_several_people_is_what_happens() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/TOGETHER.md")).unwrap();
    let steps = steps(&page);
    let names: BTreeSet<&str> = steps.iter().map(|step| &*step.machine).collect();
    assert!(steps.len() > 50 && names.len() == 3, "{} commands of {names:?}", steps.len());
    let temp = tempfile::Builder::new().prefix("oxenfs-test-mount").tempdir().unwrap();
    let machines = Machines(temp.path().canonicalize().unwrap(), temp);
    let root = machines.0.to_str().unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_oxenfs")).parent().unwrap().to_str().unwrap();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap());
    // A server that outlives the process must not meet a name twice.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let namespace = format!("pages-{}-{now}/", std::process::id());
    for Step { machine, command, printed } in steps {
        let home = format!("{root}/{machine}");
        fs::create_dir_all(&home).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>&1; {}", command.replace("ox/", &namespace))]).current_dir(&home);
        shell.env_clear().stdin(Stdio::null());
        shell.envs([("PATH", &*path), ("HOME", &*home), ("USER", &*machine), ("LC_ALL", "C")]);
        shell.envs([("XDG_STATE_HOME", &*format!("{home}/.local/state")), ("OXEN_SERVER", server::url())]);
        let output = shell.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let text = text.replace(&format!("{root}/"), "/home/").replace(&namespace, "ox/");
        // How far it is, and how long it took, if it took any time.
        let is_progress = |line: &str| {
            line.starts_with(|c: char| c.is_ascii_digit()) && [" file, ", " files, "].iter().any(|of| line.contains(of))
        };
        let found: Vec<&str> = text.lines().filter(|line| !is_progress(line)).collect();
        let alike = found.len() == printed.len() && found.iter().zip(&printed).all(|(line, like)| is_like(line, like));
        assert!(alike, "{machine}$ {command}\nprinted:\n{text}\nand not:\n{}", printed.join("\n"));
        let is_refused = printed.iter().any(|line| line.starts_with("error: "));
        assert_eq!(output.status.success(), !is_refused, "{machine}$ {command}: {}", output.status);
    }
    assert_eq!(machines.mounted(), Vec::<String>::new());
}

#[test]
fn a_line_is_like_another_where_the_rest_is() {
    for (line, like) in [("a", "a"), ("abc", "…"), ("abc", "a…"), ("abc", "…c"), ("abc", "a…c"), ("xaybzb", "x…y…b")]
    {
        assert!(is_like(line, like), "{line} {like}");
    }
    for (line, like) in [("a", "b"), ("abc", "b…"), ("abc", "…b"), ("ab", "a…b…b"), ("aa", "a"), ("a", "aa")] {
        assert!(!is_like(line, like), "{line} {like}");
    }
}
