//! `oxenfs doctor`: what may keep a mount from working, each with what to do.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::args::DoctorArgs;
use super::failure::{Doing, FAILED, Failure, mount_command, quoted};
use super::find::{self, Finder, at_once, connect_now, owed, status_of};
use super::output::{bytes, count, data, json, printable, seconds, thousands};
use super::repo::place;
use super::seams::{self, Place};
use super::umount;
use crate::config::{Environment, Files, OxenConfig, ServerUrl};
use crate::control::Status;
use crate::mount::mountinfo;
use crate::mount::preflight::{self, Behind};
use crate::mount::state_dir::{self, Known};

/// A clock that is off by more makes tokens and time stamps unreliable.
const CLOCK_TOLERANCE_SECS: u64 = 60;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// One line.
#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    about: String,
    /// What was seen.
    detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn ok(about: &str, detail: impl std::fmt::Display) -> Self {
        Self { verdict: Verdict::Ok, about: about.to_owned(), detail: detail.to_string(), hint: None }
    }

    fn warning(about: &str, detail: impl std::fmt::Display, hint: Option<String>) -> Self {
        Self { verdict: Verdict::Warning, hint, ..Self::ok(about, detail) }
    }

    fn failed(about: &str, failure: Failure) -> Self {
        Self { verdict: Verdict::Failed, hint: failure.hint, ..Self::ok(about, failure.cause) }
    }
}

/// `oxenfs doctor`: exit code 1 when something is wrong.
pub fn doctor(args: DoctorArgs, state_dir: Option<&Path>, environment: &Environment) -> Result<u8, Failure> {
    let finder = Finder::new(state_dir, environment).doing(|| "cannot look at the mounts")?;
    let mut found = vec![kernel(), mounting()];
    found.push(plain_umount());
    found.push(state_root(finder.root()));
    found.extend(gone(&finder));
    let chosen: Vec<&Known> = match &args.dir {
        None => finder.all().iter().collect(),
        Some(dir) => {
            let failed = || format!("cannot look at {}", quoted(dir));
            let real = find::real(dir).doing(failed)?;
            let Some(known) = finder.above(&real) else {
                let failure = Failure::new("no oxenfs mount is there").hint("oxenfs status lists the mounts");
                return Err(failure.doing(failed()));
            };
            vec![known]
        }
    };
    found.extend(servers(&args, &chosen, environment));
    found.extend(at_once(&chosen, mount).into_iter().flatten());
    if args.dir.is_none() {
        found.extend(strays(finder.all()));
    }
    if args.json {
        json(&found, true)?;
    } else {
        data(lines(&found).trim_end())?;
    }
    Ok(if found.iter().any(|finding| finding.verdict == Verdict::Failed) { FAILED } else { 0 })
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    Finding::ok("kernel", format_args!("Linux {}", uname.release().to_string_lossy()))
}

fn mounting() -> Finding {
    match preflight::check_mounting() {
        Ok(()) if rustix::process::geteuid().is_root() => Finding::ok("mounting", "as root, through /dev/fuse"),
        Ok(()) => Finding::ok("mounting", "through fusermount3"),
        Err(error) => Finding::failed("mounting", error.into()),
    }
}

/// Whether `umount(8)` and systemd have what waits for the drain.
fn plain_umount() -> Finding {
    let paths = umount::NAMES.map(|name| Path::new("/sbin").join(name));
    let missing: Vec<String> = paths.iter().filter(|path| !path.exists()).map(quoted).collect();
    if missing.is_empty() {
        return Finding::ok("umount", "waits for what is left");
    }
    let binary = quoted(std::env::current_exe().unwrap_or_else(|_| "/usr/bin/oxenfs".into()));
    let detail = "a plain umount may not wait for what is left, which is then sent in the background";
    let links: Vec<String> = missing.iter().map(|path| format!("sudo ln -s {binary} {path}")).collect();
    Finding::warning("umount", detail, Some(links.join("; ")))
}

fn state_root(root: &Path) -> Finding {
    let about = "spool";
    let facts = match state_dir::examine_root(root) {
        Ok(facts) => facts,
        Err(error) => return Finding::failed(about, error.into()),
    };
    if let Some(warning) = facts.warnings.first() {
        return Finding::warning(about, warning, Some("name another directory: --state-dir DIR".into()));
    }
    let copies = match facts.shares_blocks {
        Some(true) => ", copies share their blocks",
        Some(false) => ", copies are made byte by byte",
        None => "",
    };
    Finding::ok(about, format_args!("{}, {} free{copies}", quoted(&facts.path), bytes(facts.free_bytes)))
}

/// What is left of state directories that somebody removed; told here alone.
fn gone(finder: &Finder) -> Option<Finding> {
    let gone = finder.gone().first()?;
    let which = match finder.gone().len() - 1 {
        0 => quoted(gone),
        more => format!("{} and {} more", quoted(gone), thousands(more as u64)),
    };
    let hint = "nothing needs them: rm them, if you like".to_owned();
    Some(Finding { hint: Some(hint), ..Finding::ok("state", format_args!("removed, but for their names: {which}")) })
}

/// Each server once: that of the mounts looked at, or the one that a mount would take.
fn servers(args: &DoctorArgs, chosen: &[&Known], environment: &Environment) -> Vec<Finding> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    let of_mounts = chosen.iter().map(|known| (known.meta.identity.server.as_str(), known.meta.identity.repo.as_str()));
    for (server, repo) in of_mounts.filter(|_| args.server.is_none()) {
        if !seen.contains(&server) {
            seen.push(server);
            found.extend(server_checks(Some(server), repo, environment, has_key(server, environment)));
        }
    }
    if args.dir.is_none() && seen.is_empty() {
        // Only the server is asked; the name of a repository belongs to an address.
        found.extend(server_checks(args.server.as_deref(), "any/repository", environment, true));
    }
    found
}

/// Whether the environment's token is for the server of a mount: it was made for the one that the environment, else a
/// configuration, names, and tells no other.
fn has_key(server: &str, environment: &Environment) -> bool {
    let configured = || Files::read(environment).ok()?.text("server", None, None).map(str::to_owned);
    let named = match &environment.server {
        Some(named) => Some(named.clone()),
        None => configured().or_else(|| OxenConfig::new(environment).default_host().ok().flatten()),
    };
    let parsed = |text: &str| ServerUrl::parse("server", text).ok();
    named.and_then(|named| parsed(&named)).is_some_and(|named| parsed(server) == Some(named))
}

/// Looks at one server. Where the environment's token is not `its_key`, it is not sent.
fn server_checks(server: Option<&str>, repo: &str, environment: &Environment, its_key: bool) -> Vec<Finding> {
    let about = "server";
    let variable = match environment.api_key {
        Some(_) => "OXEN_API_KEY",
        None => "OXEN_API_KEY_FILE",
    };
    let withheld = !its_key && (environment.api_key.is_some() || environment.api_key_file.is_some());
    let without = Environment { api_key: None, api_key_file: None, ..environment.clone() };
    let place = match place(repo, server, if withheld { &without } else { environment }) {
        Ok(place) => place,
        Err(failure) if server.is_none() => return vec![Finding::warning(about, failure.cause, failure.hint)],
        Err(failure) => return vec![Finding::failed(about, failure)],
    };
    let mut found = Vec::new();
    let asked = SystemTime::now();
    match seams::look_at_server(&place) {
        Ok((version, time)) => {
            found.push(Finding::ok(about, format_args!("{}, version {}", place.server, version)));
            found.extend(time.map(|time| clock(asked, time)));
        }
        Err(failure) => found.push(Finding::failed(about, failure)),
    }
    found.push(credentials(&place));
    if withheld {
        let detail = format!("{variable} was not sent to {}: nothing says that it is for that server", place.server);
        let hint = format!("to try it there: oxenfs doctor --server {}", quoted(place.server.to_string()));
        found.push(Finding::warning("token", detail, Some(hint)));
    }
    found
}

fn clock(here: SystemTime, there: SystemTime) -> Finding {
    let (off, how) = match there.duration_since(here) {
        Ok(ahead) => (ahead, "behind"),
        Err(error) => (error.duration(), "ahead of"),
    };
    if off.as_secs() <= CLOCK_TOLERANCE_SECS {
        return Finding::ok("clock", "agrees with the server's");
    }
    let detail = format!("this machine's is {} {how} the server's", seconds(off.as_secs()));
    Finding::warning("clock", detail, Some("set it: timedatectl set-ntp true".into()))
}

fn credentials(place: &Place) -> Finding {
    let about = "token";
    match place.credentials.try_read() {
        Ok(Some(_)) if place.server.is_exposed() => {
            let detail = format!("there is one for {}, and it travels unencrypted", place.server);
            Finding::warning(about, detail, Some("use an https:// address".into()))
        }
        Ok(Some(_)) => Finding::ok(about, format_args!("there is one for {}", place.server)),
        Ok(None) => Finding::ok(about, format_args!("none for {}, which some servers do not need", place.server)),
        Err(error) => Finding::failed(about, error.into()),
    }
}

fn mount(known: &Known) -> Vec<Finding> {
    let mountpoint = &known.meta.identity.mountpoint;
    let about = format!("mount {}", quoted(mountpoint));
    let status = match connect_now(known).and_then(|stream| stream.map(|stream| status_of(known, stream)).transpose()) {
        Ok(Some(status)) => status,
        Ok(None) => return vec![stopped(known, &about)],
        Err(failure) => return vec![Finding::failed(&about, failure)],
    };
    let mut found = vec![working(&status, &about, mountpoint)];
    if !status.passthrough.is_empty() {
        let about = format!("passthrough {}", quoted(mountpoint));
        found.push(Finding::ok(&about, &status.passthrough));
    }
    found
}

/// What a daemon says of itself.
fn working(status: &Status, about: &str, mountpoint: &Path) -> Finding {
    if let Some(why) = &status.stalled {
        let hint = "nothing is lost; it goes on by itself when that ends".to_owned();
        return Finding::warning(about, format_args!("stalled: {}", why), Some(hint));
    }
    if status.counts.failed.files > 0 {
        let failed = count(status.counts.failed.files, "file");
        let hint = format!("oxenfs status {}", quoted(mountpoint));
        return Finding::warning(about, format_args!("{failed} could not be staged"), Some(hint));
    }
    match status.phase.as_str() {
        "mounted" => Finding::ok(about, "works"),
        _ => Finding::ok(about, "unmounted, and sending what is left"),
    }
}

/// A state directory that no daemon has.
fn stopped(known: &Known, about: &str) -> Finding {
    let mountpoint = &known.meta.identity.mountpoint;
    let is_ours = mountinfo::top(mountpoint).ok().flatten().is_some_and(|mount| mount.is_ours());
    let broken = is_ours && preflight::is_stale(mountpoint);
    let owed = match seams::offline_status(&known.path) {
        Ok(status) => owed(&status).0,
        Err(failure) => return Finding::failed(about, failure),
    };
    match (broken, owed) {
        (false, 0) => Finding::ok(about, "not mounted, nothing is owed"),
        (true, 0) => {
            let hint = format!("oxenfs unmount {}", quoted(mountpoint));
            Finding::warning(about, "its daemon has ended, and left a broken mount", Some(hint))
        }
        (_, owed) => {
            let detail =
                format!("no daemon runs; owed to the server, and safe on this disk: {}", count(owed, "change"));
            let failure = Failure::new(detail).hint(mount_command(known));
            Finding::failed(about, failure)
        }
    }
}

/// Broken mounts of ours that no state directory here belongs to.
fn strays(all: &[Known]) -> Vec<Finding> {
    let known: Vec<&PathBuf> = all.iter().map(|known| &known.meta.identity.mountpoint).collect();
    let mounts = mountinfo::all().unwrap_or_default().into_iter();
    mounts
        .filter(|mount| mount.is_ours() && !known.contains(&&mount.mountpoint))
        .filter_map(|mount| {
            let about = format!("mount {}", quoted(&mount.mountpoint));
            match preflight::behind(&mount.mountpoint) {
                Behind::Answers => None,
                Behind::Gone => {
                    let hint = format!("oxenfs unmount {}", quoted(&mount.mountpoint));
                    Some(Finding::warning(&about, "its daemon has ended, and left a broken mount", Some(hint)))
                }
                Behind::Silent => {
                    let hint = "name the state directory it was mounted with: oxenfs doctor --state-dir DIR".to_owned();
                    Some(Finding::warning(&about, "its daemon does not answer", Some(hint)))
                }
            }
        })
        .collect()
}

fn lines(found: &[Finding]) -> String {
    let mut text = String::new();
    for finding in found {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        text += &format!("{verdict:<8} {}: {}\n", printable(&finding.about), printable(&finding.detail));
        if let Some(hint) = &finding.hint {
            text += &format!("{:<8} hint: {}\n", "", printable(hint));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_may_be_off_by_a_little() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let off = |secs| clock(now, now + Duration::from_secs(secs));
        assert_eq!(off(60).verdict, Verdict::Ok);
        assert_eq!(off(200).detail, "this machine's is 3 min 20 s behind the server's");
        let behind = clock(now, now - Duration::from_secs(61));
        assert_eq!(behind.detail, "this machine's is 1 min 1 s ahead of the server's");
        assert_eq!(behind.verdict, Verdict::Warning);
    }
}
