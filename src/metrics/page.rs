//! The page for people: how each mount is, what of it needs somebody, and how the last hour went.

use std::net::IpAddr;
use std::time::Instant;

use serde::Serialize;

use super::past::{Hour, Past};
use super::readiness;
use crate::control::{Measures, Status};
use crate::log;
use crate::report::Tally;

/// The page itself; nothing of it comes from elsewhere.
pub const HTML: &str = include_str!("page.html");

/// What it shows.
#[derive(Debug, Serialize)]
pub struct Page {
    mounts: Vec<Shown>,
}

/// One mount of it.
#[derive(Debug, Serialize)]
struct Shown {
    /// Where it is, or was last, mounted.
    mountpoint: String,
    /// The same for a shell.
    quoted: String,
    /// Why not everything goes on; `None` where it does.
    trouble: Option<String>,
    /// What to do about it.
    advice: Option<&'static str>,
    /// What the server does not have yet.
    owed: Tally,
    /// Paths in conflict, and such that wait after an error: how many.
    conflicts: u64,
    failing: u64,
    /// Without names of files, where others than the owner may look.
    status: Status,
    /// Oldest first.
    past: Vec<Past>,
}

impl Page {
    /// What is known at this moment. `to_owner`: only he looks, and may see names of files.
    pub fn of(mounts: Vec<Measures>, hour: &Hour, now: Instant, to_owner: bool) -> Self {
        let shown = |measures: Measures| {
            let trouble = readiness(&measures).err().map(|why| log::hide(&why).into_owned());
            let (files, bytes) = measures.status.counts.owed();
            let advice = trouble.as_ref().and_then(|_| advice(&measures));
            let past = hour.of(now, &measures.mountpoint);
            let Measures { mountpoint, mut status, .. } = measures;
            let (conflicts, failing) = (status.counts.conflicts.files, status.counts.failed.files);
            if !to_owner {
                strip(&mut status);
            }
            let quoted = log::quoted(&mountpoint);
            Shown {
                mountpoint,
                quoted,
                trouble,
                advice,
                owed: Tally { files, bytes },
                conflicts,
                failing,
                status,
                past,
            }
        };
        Self { mounts: mounts.into_iter().map(shown).collect() }
    }
}

/// Leaves out what names files.
fn strip(status: &mut Status) {
    status.conflicts.clear();
    status.errors.clear();
    status.local.clear();
    status.sparse.clear();
    status.unreadable.clear();
    status.bad_patterns.clear();
}

/// What somebody can do about a mount that does not go on.
fn advice(measures: &Measures) -> Option<&'static str> {
    if !measures.answers {
        return Some(
            "Look whether its process runs, and at its log; what was written is on this disk, and the next mount sends it.",
        );
    }
    if measures.status.disk.is_some() {
        return Some("Free some space on the disk of the state directory.");
    }
    Some(match measures.status.stalled_reason.as_deref()? {
        "unreachable" | "timed_out" => {
            "What is written stays on this disk and is sent when the server answers. Look whether it runs and can be reached: oxenfs doctor."
        }
        "busy" => "The server asks to come again later; it is asked again by itself.",
        "server_error" | "protocol" => "The server fails; its operator can tell why. It is asked again by itself.",
        "unauthorized" | "forbidden" => {
            "The token has run out or may not write here: put a valid one into the token file, which is read again, or mount with another."
        }
        "not_found" => "The repository or the branch is not there. Nothing is sent before it is.",
        "conflict" => "Others changed the same files: oxenfs status names them, oxenfs resolve decides.",
        "no_space" => "The server has no space left; its operator can free some.",
        "another_repository" => "Another repository is at this address. Nothing is sent to it.",
        "local_disk" => "Free some space on the disk of the state directory.",
        _ => return None,
    })
}

/// Whether the page was asked for by an address, by a name without a domain, or by this machine's own name. A web page from
/// elsewhere whose name was made to lead here would be allowed to read it otherwise.
pub fn is_of_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => return address.parse::<IpAddr>().is_ok(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let has_no_domain = !name.is_empty() && !name.contains('.');
    name.parse::<IpAddr>().is_ok() || has_no_domain || name.eq_ignore_ascii_case(&own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Conflict, FileError};

    #[test]
    fn only_its_owner_sees_names_of_files() {
        let mut measures = Measures { mountpoint: "/m n".to_owned(), answers: true, ..Measures::default() };
        measures.status.phase = "mounted".to_owned();
        measures.status.stalled = Some("cannot reach it".to_owned());
        measures.status.stalled_reason = Some("unreachable".to_owned());
        measures.status.counts.failed = Tally { files: 2, bytes: 7 };
        measures.status.counts.conflicts = Tally { files: 1, bytes: 3 };
        let (path, what) = ("secret.csv".to_owned(), "changed on both sides".to_owned());
        measures.status.conflicts = vec![Conflict { path: path.clone(), what, renamed_to: None }];
        measures.status.errors =
            vec![FileError { path, error: "secret.csv: no".to_owned(), attempts: 1, parked: true }];
        let text = |to_owner| {
            serde_json::to_string(&Page::of(vec![measures.clone()], &Hour::default(), Instant::now(), to_owner))
                .unwrap()
        };
        let (for_all, for_owner) = (text(false), text(true));
        assert!(for_owner.contains("secret.csv") && !for_all.contains("secret"), "{for_all}");
        let page: serde_json::Value = serde_json::from_str(&for_all).unwrap();
        let shown = &page["mounts"][0];
        assert_eq!((shown["conflicts"].as_u64(), shown["failing"].as_u64()), (Some(1), Some(2)));
        assert_eq!(shown["owed"], serde_json::json!({"files": 2, "bytes": 7}));
        assert_eq!(shown["trouble"], "stalled: cannot reach it");
        assert!(shown["advice"].as_str().unwrap().contains("oxenfs doctor"), "{shown}");
    }

    #[test]
    fn it_is_asked_for_by_an_address_or_a_name_of_this_machine() {
        for host in ["127.0.0.1:9000", "localhost:9000", "[::1]:9000", "10.0.0.7", "node7:80"] {
            assert!(is_of_this_machine(host), "{host}");
        }
        for host in ["", "evil.example:9000", "127.0.0.1.evil.example", "[evil.example]:1"] {
            assert!(!is_of_this_machine(host), "{host}");
        }
    }

    #[test]
    fn every_reason_to_stall_that_somebody_can_mend_has_an_advice() {
        for reason in crate::activity::STALLS {
            let mut measures = Measures { answers: true, ..Measures::default() };
            measures.status.stalled_reason = Some(reason.to_owned());
            assert_eq!(advice(&measures).is_some(), reason != "refused", "{reason}");
        }
    }
}
