//! `oxenfs mount --print-unit`: a unit of systemd that does what the command would.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{MountArgs, Unit};
use super::failure::Failure;
use crate::config::MountSettings;

/// What systemd adds to the time in which the daemon sends what is left.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// The unit; `options` are those of the command, `settings` what they come to.
///
/// # Errors
/// When an option has a character that a unit cannot hold.
pub fn unit(
    kind: Unit,
    args: &MountArgs,
    state_dir: Option<&Path>,
    settings: &MountSettings,
) -> Result<String, Failure> {
    let binary = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/oxenfs".into());
    let mut words = vec![text(&binary)?, "mount".to_owned(), args.repo.clone(), text(&settings.mountpoint)?];
    words.push("--foreground".to_owned());
    // Which server a name means may change with the configuration; a unit is about this one.
    if !args.repo.contains("://") || args.repo.starts_with("oxen://") {
        words.extend(["--server".to_owned(), settings.server.to_string()]);
    }
    words.extend(options(args, state_dir)?);
    let command: Vec<String> = words.iter().map(|word| quoted(word)).collect::<Result<_, _>>()?;
    let stop = settings.drain_timeout + STOP_MARGIN;
    let mut unit = String::new();
    let (network, target, mount) = match kind {
        Unit::System | Unit::Auto => (
            "Wants=network-online.target\nAfter=network-online.target remote-fs-pre.target\nBefore=remote-fs.target\n",
            "multi-user.target",
            format!("RequiresMountsFor={}\n", quoted(&text(&settings.state_root)?)?),
        ),
        // A user's manager does not know when the network is there; what fails for that is tried again.
        Unit::User => ("", "default.target", String::new()),
    };
    let shown = format!("{} at {}", settings.repo, settings.mountpoint.display()).replace('%', "%%");
    let _ = write!(
        unit,
        "\
[Unit]
Description=oxenfs: {shown}
Documentation=man:oxenfs-mount(1)
{network}{mount}# Until the server is there.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={}
# What the server lacks is sent before it ends; what is not by then is safe, and sent by the next start (exit code 3).
SuccessExitStatus=3
TimeoutStartSec=5min
TimeoutStopSec={}
KillMode=mixed
Restart=on-failure
RestartSec=5
# A token in a file that only root can read:
#LoadCredential=oxen-token:/etc/oxenfs/token
#Environment=OXEN_API_KEY_FILE=%d/oxen-token

[Install]
WantedBy={target}
",
        command.join(" "),
        stop.as_secs(),
    );
    Ok(unit.trim_end().to_owned())
}

fn text(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).map_err(Failure::new)?;
    absolute.to_str().map(str::to_owned).ok_or_else(|| Failure::new("a path that is not UTF-8 has no place in a unit"))
}

/// One word of a command as `ExecStart=` takes it (systemd.service(5), "Command lines"; `%` is a specifier).
fn quoted(word: &str) -> Result<String, Failure> {
    if word.chars().any(char::is_control) {
        return Err(Failure::new("a control character has no place in a unit"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Ok(word.to_owned());
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            _ => text.push(c),
        }
    }
    text.push('"');
    Ok(text)
}

/// The options as they were given, with paths from the root: a unit has another working directory.
fn options(args: &MountArgs, state_dir: Option<&Path>) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    let mut add = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            words.extend([format!("--{name}"), value.clone()]);
        }
    };
    let place = |path: Option<&PathBuf>| path.map(|path| text(path)).transpose();
    add("branch", &args.branch);
    add("workspace", &args.workspace);
    add("revision", &args.revision);
    add("description", &args.description);
    add("storage", &args.storage);
    add("subdir", &args.subdir);
    add("log", &args.log);
    add("spool-limit", &args.spool_limit);
    add("cache-limit", &args.cache_limit);
    add("fsync", &args.fsync);
    add("settle", &args.settle);
    add("drain-timeout", &args.drain_timeout);
    add("read-timeout", &args.read_timeout);
    add("refresh", &args.refresh);
    add("passthrough", &args.passthrough);
    add("keep-awake", &args.keep_awake);
    add("uid", &args.uid);
    add("gid", &args.gid);
    add("umask", &args.umask);
    add("metrics", &args.metrics);
    add("token-file", &place(args.token_file.as_ref())?);
    add("state-dir", &state_dir.map(text).transpose()?);
    let switches =
        [("read-only", args.read_only), ("write-through", args.write_through), ("allow-other", args.allow_other)];
    for (name, on) in switches {
        words.extend(on.map(|on| if on { format!("--{name}") } else { format!("--{name}=false") }));
    }
    for (name, on) in [("create", args.create), ("public", args.public)] {
        words.extend(on.then(|| format!("--{name}")));
    }
    for pattern in &args.ignore {
        words.extend(["--ignore".to_owned(), pattern.clone()]);
    }
    for list in &args.options {
        words.extend(["-o".to_owned(), list.clone()]);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_command_is_one_word_to_systemd() {
        let one = |word: &str| quoted(word).unwrap();
        assert_eq!(one("/mnt/cats"), "/mnt/cats");
        assert_eq!(one("/mnt/my cats"), "\"/mnt/my cats\"");
        assert_eq!(one("100%$x\"\\"), "\"100%%$$x\\\"\\\\\"");
        assert_eq!(one(""), "\"\"");
        assert!(quoted("a\nExecStart=/bin/sh").is_err());
    }
}
