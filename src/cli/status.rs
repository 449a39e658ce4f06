//! `oxenfs status`.

use std::fmt::Write;
use std::time::Duration;

use super::args::StatusArgs;
use super::failure::{Doing, Failure, mount_command, quoted};
use super::find::{self, Finder, at_once, connect_now, owed, status_of};
use super::output::{all_but, are, bytes, count, data, json, note, printable, seconds, thousands};
use super::seams;
use super::watch::Watch;
use crate::control::{Ahead, Status};
use crate::mount::state_dir::Known;
use crate::report::{Cached, Counts, Tally};

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const DAY_SECS: u64 = 24 * 3600;

/// `oxenfs status`.
pub fn status(args: StatusArgs, finder: &Finder) -> Result<u8, Failure> {
    let mut chosen: Vec<&Known> = finder.all().iter().collect();
    if let Some(dir) = &args.dir {
        let failed = || format!("cannot show {}", quoted(dir));
        let real = find::real(dir).doing(failed)?;
        let Some(above) = finder.above(&real) else {
            let failure = Failure::new("no oxenfs mount is there").hint("oxenfs status lists the mounts");
            return Err(failure.doing(failed()));
        };
        let mountpoint = &above.meta.identity.mountpoint;
        chosen.retain(|known| known.meta.identity.mountpoint == *mountpoint);
        // As JSON, DIR is one object: what is mounted there, else what was last.
        chosen.sort_by_key(|known| known.path != above.path);
    }
    let mut watch = Watch::new();
    loop {
        let looked = at_once(&chosen, look);
        let mut seen: Vec<(&Known, Status)> = chosen.iter().copied().zip(looked).collect();
        if args.dir.is_none() || chosen.len() > 1 {
            let keep_first = args.dir.is_some();
            let mut at = 0;
            seen.retain(|(_, status)| {
                at += 1;
                is_worth_telling(status) || (keep_first && at == 1)
            });
        }
        if args.json {
            print_json(&args, seen.into_iter().map(|(_, status)| status).collect())?;
        } else if seen.is_empty() && !args.watch {
            note("nothing is mounted, and nothing is owed to a server");
        } else {
            let mut texts: Vec<String> = seen.iter().map(|(known, status)| table(known, status)).collect();
            if args.watch {
                for ((known, status), text) in seen.iter().zip(&mut texts) {
                    if let Some(rate) = watch.rate(&known.path, status) {
                        let _ = writeln!(text, "  {:<11} {rate}", "rate");
                    }
                }
                if texts.is_empty() {
                    texts.push("nothing is mounted, and nothing is owed to a server".into());
                }
                watch.show(texts.join("\n").trim_end())?;
            } else {
                data(texts.join("\n").trim_end())?;
            }
        }
        if !args.watch {
            return Ok(0);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn print_json(args: &StatusArgs, mut seen: Vec<Status>) -> Result<(), Failure> {
    let value = match args.dir {
        Some(_) if !seen.is_empty() => serde_json::to_value(seen.swap_remove(0)),
        _ => serde_json::to_value(seen),
    };
    let value = value.map_err(Failure::new)?;
    json(&value, !args.watch)
}

/// Whether there is anything to tell: of what is neither mounted nor owed there is not.
pub(super) fn is_worth_telling(status: &Status) -> bool {
    status.phase != "stopped" || status.stalled.is_some() || owed(status).0 > 0
}

/// The phase of a mount whose record cannot be read.
const UNREADABLE: &str = "unreadable";

/// What the daemon says, or, where none answers, what its directory says. One mount that cannot be read does not hide
/// the others.
pub(super) fn look(known: &Known) -> Status {
    let daemon = connect_now(known).and_then(|stream| stream.map(|stream| status_of(known, stream)).transpose());
    let (phase, pid, silent) = match daemon {
        Ok(Some(status)) => return status,
        Ok(None) => ("stopped", 0, None),
        Err(failure) => {
            let cause = failure.hint.map_or(failure.cause.clone(), |hint| format!("{}; {hint}", failure.cause));
            ("unresponsive", known.holder().unwrap_or(known.meta.pid), Some(cause))
        }
    };
    let (recorded, unread) = match seams::offline_status(&known.path) {
        Ok(recorded) => (recorded, None),
        Err(failure) => {
            let cause = format!("what it owes the server cannot be read: {}", failure.cause);
            let cause = failure.hint.map_or(cause.clone(), |hint| format!("{cause}; {hint}"));
            let phase = if phase == "stopped" { UNREADABLE } else { phase };
            (Status { phase: phase.into(), ..Status::default() }, Some(cause))
        }
    };
    let identity = &known.meta.identity;
    Status {
        mountpoint: None,
        server: identity.server.clone(),
        repo: identity.repo.clone(),
        branch: identity.branch.clone(),
        workspace: known.meta.workspace(),
        revision: identity.revision.clone(),
        phase: if recorded.phase == UNREADABLE { recorded.phase.clone() } else { phase.into() },
        pid,
        stalled: silent.or(unread),
        ..recorded
    }
}

fn table(known: &Known, status: &Status) -> String {
    let mut text = String::new();
    let mountpoint = &known.meta.identity.mountpoint;
    let _ = writeln!(text, "{}  {} on {}", quoted(mountpoint), printable(&status.repo), printable(&status.server));
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    row(
        "state",
        match status.phase.as_str() {
            "draining" => format!("unmounted, still sending (process {})", status.pid),
            "stopped" => "not mounted, no daemon runs".into(),
            UNREADABLE => "not mounted, and cannot be".into(),
            phase => format!("{} (process {})", printable(phase), status.pid),
        },
    );
    match &status.revision {
        Some(revision) => {
            let commit = if status.base.is_empty() { "" } else { ", commit " };
            row("shows", format!("{}{commit}{}, read-only", printable(revision), printable(&status.base)));
        }
        None => row("branch", format!("{}, workspace {}", printable(&status.branch), printable(&status.workspace))),
    }
    if let Some(ahead) = &status.ahead {
        row("ahead", gone_on(known, status, ahead));
    }
    if !status.server_version.is_empty() {
        row("server", format!("{}, protocol {}", printable(&status.server_version), printable(&status.dialect)));
    }
    if let Some(why) = &status.stalled {
        row(if status.offline { "offline" } else { "stalled" }, printable(why).into_owned());
    }
    // Nobody knows what is to send.
    if status.phase == UNREADABLE {
        return text;
    }
    let counts = &status.counts;
    if status.revision.is_some() {
        // It has nothing to send, ever.
        cache(status).into_iter().for_each(|cache| row("cache", cache));
        if !status.passthrough.is_empty() {
            row("passthrough", printable(&status.passthrough).to_string());
        }
        if let Some(trouble) = &status.disk {
            row("disk", printable(trouble).into_owned());
        }
        unreadable(&mut text, status);
        return text;
    }
    row("to send", to_send(status));
    if counts.failed.files > 0 {
        row("failed", tally(&counts.failed));
    }
    row(
        "staged",
        match counts.staged.files {
            0 => "nothing to commit".into(),
            _ => format!("{}, not committed", tally(&counts.staged)),
        },
    );
    if counts.remote.files > 0 {
        row("", on_the_server_alone(&counts.remote));
    }
    if counts.ignored.files > 0 {
        row("ignored", are_ignored(&counts.ignored));
    }
    if counts.local.files > counts.ignored.files {
        row("local", stays_here(counts));
    }
    if status.phase != "stopped" {
        let limit = match status.spool_limit_bytes {
            0 => String::new(),
            limit => format!(" of {}", bytes(limit)),
        };
        row("spool", format!("{}{limit}", bytes(status.spool_bytes)));
        cache(status).into_iter().for_each(|cache| row("cache", cache));
        if !status.passthrough.is_empty() {
            row("passthrough", printable(&status.passthrough).to_string());
        }
        if let Some(trouble) = &status.disk {
            row("disk", printable(trouble).into_owned());
        }
        row(
            "sent",
            format!(
                "{}, and {} spared because the server had them",
                bytes(status.sent_bytes),
                bytes(status.deduplicated_bytes)
            ),
        );
    }
    conflicts(&mut text, known, status);
    if !status.errors.is_empty() {
        let _ = writeln!(text, "  errors");
        for error in &status.errors {
            let tried =
                if error.attempts == 1 { "tried once".into() } else { format!("tried {} times", error.attempts) };
            let next = if error.parked { "waits for you" } else { "is tried again" };
            let _ = writeln!(text, "    {}: {} ({tried}, {next})", printable(&error.path), printable(&error.error));
        }
    }
    if !status.sparse.is_empty() {
        let _ = writeln!(text, "  holes are sent as zeros (compact the file, or keep it elsewhere)");
        for file in &status.sparse {
            let (length, taken) = (bytes(file.bytes), bytes(file.allocated_bytes));
            let _ = writeln!(text, "    {}: {length} to send, {taken} of data", printable(&file.path));
        }
    }
    unreadable(&mut text, status);
    if !status.bad_patterns.is_empty() {
        let _ = writeln!(text, "  patterns that do not hold; the others do");
        for bad in &status.bad_patterns {
            let line = bad.line.map(|line| format!(", line {line}")).unwrap_or_default();
            let pattern = if bad.pattern.is_empty() { String::new() } else { format!(" {}", printable(&bad.pattern)) };
            let _ = writeln!(text, "    {}{line}:{pattern}: {}", printable(&bad.source), printable(&bad.error));
        }
    }
    if !status.local.is_empty() {
        let _ = writeln!(text, "  stays on this disk");
        for local in &status.local {
            let _ = writeln!(text, "    {}: {}", printable(&local.path), printable(&local.reason));
        }
    }
    if status.phase == "stopped" && owed(status).0 > 0 {
        let _ = writeln!(text, "  to send it: {}", mount_command(known));
    }
    text
}

/// That the branch has commits which the mount does not stand on, and what takes them in.
fn gone_on(known: &Known, status: &Status, ahead: &Ahead) -> String {
    let dir = quoted(&known.meta.identity.mountpoint);
    let (gone_on, them) = match ahead.commits {
        Some(1) => ("the branch is 1 commit ahead".to_owned(), "it"),
        Some(commits) => (format!("the branch is {} ahead", count(commits, "commit")), "them"),
        None => (format!("the branch has gone on, to {}", printable(&ahead.head)), "that"),
    };
    match status.shared {
        true => format!("{gone_on}: the next oxenfs commit {dir} takes {them} in"),
        false => format!("{gone_on}: oxenfs refresh {dir} takes {them} in"),
    }
}

/// How full the cache is, and how often it had what was wanted.
fn cache(status: &Status) -> Option<String> {
    let Cached { bytes: here, limit_bytes, hits, misses, wrong_files, .. } = status.cache;
    if limit_bytes == 0 {
        return None;
    }
    let mut text = format!("{} of {}", bytes(here), bytes(limit_bytes));
    if let Some(rate) = hits.saturating_mul(100).checked_div(hits.saturating_add(misses)) {
        let _ = write!(text, ", had {rate}% of what was wanted");
    }
    if wrong_files > 0 {
        let _ = write!(text, "; {} came wrong and had to be fetched again", count(wrong_files, "file"));
    }
    Some(text)
}

/// What was changed here and by others, and who decides.
fn conflicts(text: &mut String, known: &Known, status: &Status) {
    if status.conflicts.is_empty() {
        return;
    }
    let dir = quoted(&known.meta.identity.mountpoint);
    let _ = writeln!(text, "  in conflict (oxenfs resolve {dir}/PATH --ours, --theirs or --keep-both)");
    for one in &status.conflicts {
        let _ = writeln!(text, "    {} {}", printable(&one.path), printable(&one.what));
    }
    let more = status.counts.conflicts.files.saturating_sub(status.conflicts.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "    and {} more", thousands(more));
    }
}

/// What programs could not read.
fn unreadable(text: &mut String, status: &Status) {
    if !status.unreadable.is_empty() {
        let _ = writeln!(text, "  cannot be read");
        for one in &status.unreadable {
            let _ = writeln!(text, "    {}: {}", printable(&one.path), printable(&one.reason));
        }
    }
}

/// What is staged and not committed, and not here any more: whoever deletes the workspace, or prunes, takes it away.
pub(super) fn on_the_server_alone(remote: &Tally) -> String {
    format!("{} on the server alone, staged and not committed", are(remote.files, "file"))
}

/// What Oxen cannot store, in words that keep apart what is only here and what is there but for its permissions, say.
pub(super) fn stays_here(counts: &Counts) -> String {
    let whole = counts.local.files.saturating_sub(counts.partly.files + counts.ignored.files);
    let whole = (whole > 0).then(|| format!("{} on this disk alone, which Oxen cannot store", are(whole, "path")));
    let partly = (counts.partly.files > 0)
        .then(|| format!("of {} Oxen stores the content alone", count(counts.partly.files, "path")));
    [whole, partly].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// What patterns keep here.
pub(super) fn are_ignored(ignored: &Tally) -> String {
    let those = if ignored.files == 1 { "is" } else { "are" };
    format!("{} ({}) {those} ignored, and on this disk alone", count(ignored.files, "file"), bytes(ignored.bytes))
}

fn to_send(status: &Status) -> String {
    let (files, content) = owed(status);
    if files == 0 {
        return "nothing, all is staged".into();
    }
    let counts = &status.counts;
    let parts: Vec<String> = [
        ("open or just written", counts.dirty),
        ("hashing", counts.hashing),
        ("queued", counts.queued),
        ("uploading", counts.uploading),
        ("failed", counts.failed),
        ("removed", counts.removals),
    ]
    .into_iter()
    .filter(|(_, tally)| tally.files > 0)
    .map(|(name, tally)| format!("{} {name}", thousands(tally.files)))
    .collect();
    let mut text = format!("{}, {} ({})", count(files, "change"), bytes(content), parts.join(", "));
    text += &all_but(counts);
    if let Some(age) = status.oldest_unstaged_secs {
        let _ = write!(text, ", oldest {}", seconds(age));
    }
    if let Some(eta) = status.eta_secs {
        let _ = match eta {
            0..=DAY_SECS => write!(text, ", about {} left", seconds(eta)),
            // Nobody plans by the hour with it.
            _ => write!(text, ", more than a day left"),
        };
    }
    text
}

fn tally(tally: &Tally) -> String {
    format!("{}, {}", count(tally.files, "file"), bytes(tally.bytes))
}
