//! `oxenfs repair`: what can be salvaged of a damaged state directory, and the doing of it.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::args::RepairArgs;
use super::failure::{Doing, FAILED, Failure, quoted};
use super::find;
use super::output::{bytes, count, data, printable};
use super::seams;
use super::vigil::Vigil;
use crate::fs::Repair;
use crate::mount::mountinfo;
use crate::mount::state_dir::{self, StateError};

/// Files that are named one by one; the mount shows all.
const SHOWN: usize = 20;

/// As `--json` has it.
#[derive(Serialize)]
struct Json<'a> {
    repaired: bool,
    damage: Vec<Place<'a>>,
    files: u64,
    owed: u64,
    left_out: u64,
    lost_and_found: Vec<Found<'a>>,
    missing: &'a [String],
}

#[derive(Serialize)]
struct Place<'a> {
    path: String,
    offset: u64,
    what: &'a str,
}

#[derive(Serialize)]
struct Found<'a> {
    name: &'a str,
    label: &'a str,
    path: Option<&'a str>,
    bytes: u64,
}

/// `oxenfs repair`: exit code 1 when something is damaged and was not repaired.
pub fn repair(args: RepairArgs) -> Result<u8, Failure> {
    let state = find::real(&args.state).unwrap_or(args.state);
    let failed = || format!("cannot repair {}", quoted(&state));
    check(&state).doing(failed)?;
    let (found, meta) = seams::repair(&state, args.yes).doing(failed)?;
    let damaged = !found.damage.is_empty() || meta.is_some();
    let repaired = damaged && args.yes;
    if args.json {
        let damage = found.damage.iter().map(|damage| Place {
            path: damage.path.display().to_string(),
            offset: damage.offset,
            what: &damage.what,
        });
        let meta =
            meta.iter().map(|what| Place { path: state.join("meta.json").display().to_string(), offset: 0, what });
        let json = Json {
            repaired,
            damage: damage.chain(meta).collect(),
            files: found.files,
            owed: found.owed,
            left_out: found.left_out,
            lost_and_found: found
                .rescued
                .iter()
                .map(|file| Found {
                    name: &file.name,
                    label: file.label.word(),
                    path: file.path.as_deref(),
                    bytes: file.bytes,
                })
                .collect(),
            missing: &found.missing,
        };
        data(&serde_json::to_string_pretty(&json).map_err(Failure::new)?)?;
    } else {
        data(text(&found, meta.as_deref(), args.yes).trim_end())?;
        if damaged && !args.yes {
            data(&format!("nothing was changed; to do it: oxenfs repair {} --yes", quoted(&state)))?;
        }
    }
    Ok(if damaged && !args.yes { FAILED } else { 0 })
}

/// Refuses what is no state directory because it lies on a mount, and one that a daemon has which does not answer.
fn check(state: &Path) -> Result<(), Failure> {
    let mounts = mountinfo::all().unwrap_or_default();
    if mounts.iter().any(|mount| mount.is_of_process() && state.starts_with(&mount.mountpoint)) {
        return Err(Failure::new("it lies on a mount, and no state directory does")
            .hint("name the one that the refusal of the mount names"));
    }
    if let Err(locked @ StateError::Locked { .. }) = state_dir::hold(state)
        && let StateError::Locked { path, pid, mountpoint } = &locked
    {
        let repeat = format!("oxenfs repair {}", quoted(state));
        if let Some(silence) = Vigil::new(path, mountpoint, Some(*pid), repeat).reason() {
            return Err(silence.about(&locked));
        }
    }
    Ok(())
}

fn text(found: &Repair, meta: Option<&str>, done: bool) -> String {
    let mut text = String::new();
    if found.damage.is_empty() && meta.is_none() {
        return "nothing is damaged\n".into();
    }
    for damage in &found.damage {
        let _ = writeln!(text, "damaged: {}", printable(&damage.to_string()));
    }
    if let Some(meta) = meta {
        let aside = if done { "set aside" } else { "would be set aside" };
        let _ = writeln!(text, "damaged: {}; {aside}, the next mount writes another", printable(meta));
    }
    if found.damage.is_empty() {
        return text;
    }
    let (are, come) = if done { ("are", "come") } else { ("would be", "would come") };
    let _ = writeln!(
        text,
        "{} on this disk {are} on record again under their names; {} owed to the server",
        count(found.files, "file"),
        count(found.owed, "change"),
    );
    if found.left_out > 0 {
        let _ =
            writeln!(text, "{} of the record contradict the rest and are left out", count(found.left_out, "change"));
    }
    if !found.rescued.is_empty() {
        let all: u64 = found.rescued.iter().map(|file| file.bytes).sum();
        let files = count(found.rescued.len() as u64, "file");
        let _ = writeln!(text, "{files}, {}, {come} back under lost+found of the mount:", bytes(all));
        for file in found.rescued.iter().take(SHOWN) {
            let was = file.path.as_deref().map_or_else(String::new, |path| format!(" (was {})", printable(path)));
            let _ = writeln!(text, "  {} {}{was}", printable(&file.name), bytes(file.bytes));
        }
        if found.rescued.len() > SHOWN {
            let _ = writeln!(text, "  and {} more", found.rescued.len() - SHOWN);
        }
    }
    for path in found.missing.iter().take(SHOWN) {
        let _ = writeln!(text, "not on this disk: the bytes of {}, which the server may have", printable(path));
    }
    if done {
        let _ = writeln!(
            text,
            "repaired; mount again to go on: that compares it with the server. The damaged parts are kept in journal/damaged"
        );
    }
    text
}
