//! What is measured of mounts, as text that Prometheus reads. Names, labels and meanings are a promise
//! (docs/METRICS.md), which a test compares with this table.

mod page;
mod past;
pub mod serve;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::activity::{DURATION_BOUNDS_SECS, STALLS};
use crate::control::Measures;
use crate::report::Tally;

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Whether everything goes on: why not, else.
///
/// # Errors
/// What somebody has to look at.
pub fn readiness(measures: &Measures) -> Result<(), String> {
    let status = &measures.status;
    if !measures.answers {
        return Err("its daemon does not answer".to_owned());
    }
    if status.phase != "mounted" {
        return Err(format!("it is {}", status.phase));
    }
    if let Some(why) = &status.stalled {
        let how = if status.offline { "offline" } else { "stalled" };
        return Err(format!("{how}: {why}"));
    }
    match &status.disk {
        Some(trouble) => Err(format!("the local disk: {trouble}")),
        None => Ok(()),
    }
}

/// The text for some mounts.
pub fn text(mounts: Vec<Measures>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Mounts(mounts)));
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

#[derive(Debug)]
struct Mounts(Vec<Measures>);

/// One number of a mount: where it is to be told.
struct Gauge {
    name: &'static str,
    help: &'static str,
    value: fn(&Measures) -> Option<f64>,
}

struct Counter {
    /// Without the `_total` that the text has.
    name: &'static str,
    help: &'static str,
    value: fn(&Measures) -> Option<u64>,
}

fn on(yes: bool) -> Option<f64> {
    Some(if yes { 1.0 } else { 0.0 })
}

/// Of a mount whose daemon tells them.
macro_rules! counted {
    ($field:ident) => {
        |measures| Some(measures.counts.as_ref()?.$field)
    };
}

const GAUGES: [Gauge; 19] = [
    Gauge { name: "oxenfs_up", help: "Whether the daemon answers", value: |m| on(m.answers) },
    Gauge { name: "oxenfs_mounted", help: "Whether it is mounted", value: |m| on(m.status.phase == "mounted") },
    Gauge {
        name: "oxenfs_ready",
        help: "Whether everything goes on, as /readyz says",
        value: |m| on(readiness(m).is_ok()),
    },
    Gauge { name: "oxenfs_owed_files", help: "Changes that the server lacks", value: |m| Some(owed(m).files as f64) },
    Gauge {
        name: "oxenfs_owed_bytes",
        help: "Content bytes that the server lacks",
        value: |m| Some(owed(m).bytes as f64),
    },
    Gauge {
        name: "oxenfs_oldest_owed_age_seconds",
        help: "Age of the oldest change that the server lacks; 0 without any",
        value: |m| m.answers.then_some(m.status.oldest_unstaged_secs.unwrap_or(0) as f64),
    },
    Gauge {
        name: "oxenfs_eta_seconds",
        help: "Estimated time until all is sent; absent while that is not known",
        value: |m| m.status.eta_secs.map(|secs| secs as f64),
    },
    Gauge {
        name: "oxenfs_conflict_files",
        help: "Files that were changed here and by others, and wait for somebody",
        value: |m| Some(m.status.counts.conflicts.files as f64),
    },
    Gauge {
        name: "oxenfs_disk_trouble",
        help: "Whether the local disk is full or fails",
        value: |m| on(m.status.disk.is_some()),
    },
    Gauge {
        name: "oxenfs_unreadable_files",
        help: "Files of the server that programs could not read; 100 at most",
        value: |m| Some(m.status.unreadable.len() as f64),
    },
    Gauge {
        name: "oxenfs_spool_bytes",
        help: "Bytes in the spool",
        value: |m| m.answers.then_some(m.status.spool_bytes as f64),
    },
    Gauge {
        name: "oxenfs_spool_limit_bytes",
        help: "The spool's limit; 0 is none but the disk's",
        value: |m| m.answers.then_some(m.status.spool_limit_bytes as f64),
    },
    Gauge {
        name: "oxenfs_cache_bytes",
        help: "Bytes of copies of what the server has",
        value: |m| Some(m.counts.as_ref()?.cache_bytes as f64),
    },
    Gauge {
        name: "oxenfs_cache_limit_bytes",
        help: "The cache's limit",
        value: |m| Some(m.counts.as_ref()?.cache_limit_bytes as f64),
    },
    Gauge {
        name: "oxenfs_start_time_seconds",
        help: "When the daemon started, since 1970",
        value: |m| Some(m.counts.as_ref()?.started_secs as f64),
    },
    Gauge {
        name: "oxenfs_last_commit_time_seconds",
        help: "When the last commit of this daemon was made, since 1970; absent without any",
        value: |m| Some(m.counts.as_ref()?.last_commit_secs? as f64),
    },
    Gauge {
        name: "oxenfs_staged_files",
        help: "Changes that are staged and not committed",
        value: |m| Some(m.status.counts.staged.files as f64),
    },
    Gauge {
        name: "oxenfs_staged_bytes",
        help: "Content bytes that are staged and not committed",
        value: |m| Some(m.status.counts.staged.bytes as f64),
    },
    Gauge {
        name: "oxenfs_remote_only_files",
        help: "Of the staged files, those whose bytes are not here any more",
        value: |m| Some(m.status.counts.remote.files as f64),
    },
];

const COUNTERS: [Counter; 15] = [
    Counter {
        name: "oxenfs_sent_bytes",
        help: "Content bytes sent",
        value: |m| m.answers.then_some(m.status.sent_bytes),
    },
    Counter {
        name: "oxenfs_deduplicated_bytes",
        help: "Content bytes staged without being sent, because the server had them",
        value: |m| m.answers.then_some(m.status.deduplicated_bytes),
    },
    Counter {
        name: "oxenfs_files_staged",
        help: "Files whose content the server confirmed",
        value: counted!(staged_files),
    },
    Counter {
        name: "oxenfs_files_unstaged",
        help: "Removals, and files taken back, that the server confirmed",
        value: counted!(unstaged_files),
    },
    Counter {
        name: "oxenfs_file_failures",
        help: "Attempts to stage a file that failed for a reason of its own",
        value: counted!(failures),
    },
    Counter { name: "oxenfs_stalls", help: "Times that staging paused", value: counted!(stalls) },
    Counter { name: "oxenfs_commits", help: "Commits made", value: counted!(commits) },
    Counter { name: "oxenfs_commit_failures", help: "Commits asked for and not made", value: counted!(failed_commits) },
    Counter {
        name: "oxenfs_commit_conflicts",
        help: "Files that a commit found changed here and on the branch",
        value: counted!(conflicts),
    },
    Counter {
        name: "oxenfs_cache_hits",
        help: "Times that the cache had content that was wanted",
        value: counted!(cache_hits),
    },
    Counter {
        name: "oxenfs_cache_misses",
        help: "Times that content that was wanted had to be fetched",
        value: counted!(cache_misses),
    },
    Counter {
        name: "oxenfs_cache_blocks_fetched",
        help: "Blocks of large files that were fetched",
        value: |m| m.answers.then_some(m.status.cache.blocks_fetched),
    },
    Counter {
        name: "oxenfs_cache_blocks_damaged",
        help: "Blocks in the cache that were not what had come, and were fetched again",
        value: |m| m.answers.then_some(m.status.cache.blocks_damaged),
    },
    Counter {
        name: "oxenfs_cache_wrong_files",
        help: "Files whose blocks together were not what the file should be, and that were fetched again",
        value: |m| m.answers.then_some(m.status.cache.wrong_files),
    },
    Counter {
        name: "oxenfs_cache_files_ahead",
        help: "Small files that were fetched before anybody asked for them",
        value: |m| m.answers.then_some(m.status.cache.files_ahead),
    },
];

/// All that the server lacks; removals count as files.
fn owed(measures: &Measures) -> Tally {
    let (files, bytes) = measures.status.counts.owed();
    Tally { files, bytes }
}

/// The states of files that the server lacks, as the label `state` has them.
fn states(measures: &Measures) -> [(&'static str, Tally); 7] {
    let counts = &measures.status.counts;
    [
        ("dirty", counts.dirty),
        ("hashing", counts.hashing),
        ("queued", counts.queued),
        ("uploading", counts.uploading),
        ("failed", counts.failed),
        ("removed", counts.removals),
        ("local", counts.local),
    ]
}

fn labels(measures: &Measures) -> Labels<'_> {
    let status = &measures.status;
    vec![("mountpoint", &measures.mountpoint), ("repo", &status.repo), ("server", &status.server)]
}

fn labels_and<'a>(measures: &'a Measures, more: &[(&'static str, &'a str)]) -> Labels<'a> {
    let mut all = labels(measures);
    all.extend_from_slice(more);
    all
}

fn gauge(encoder: &mut MetricEncoder<'_>, labels: &Labels<'_>, value: f64) -> fmt::Result {
    encoder.encode_family(labels)?.encode_gauge(&value)
}

fn counter(encoder: &mut MetricEncoder<'_>, labels: &Labels<'_>, value: u64) -> fmt::Result {
    encoder.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

impl Collector for Mounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mounts = &self.0;
        let mut info =
            encoder.encode_descriptor("oxenfs_mount_info", "What is mounted; always 1", None, MetricType::Gauge)?;
        for mount in mounts {
            let status = &mount.status;
            let more = [
                ("branch", status.branch.as_str()),
                ("workspace", &status.workspace),
                ("dialect", &status.dialect),
                ("server_version", &status.server_version),
                ("version", env!("CARGO_PKG_VERSION")),
            ];
            gauge(&mut info, &labels_and(mount, &more), 1.0)?;
        }
        for of in &GAUGES {
            let mut family = encoder.encode_descriptor(of.name, of.help, None, MetricType::Gauge)?;
            for mount in mounts {
                if let Some(value) = (of.value)(mount) {
                    gauge(&mut family, &labels(mount), value)?;
                }
            }
        }
        let what = "Whether staging is paused for this reason";
        let mut stalled = encoder.encode_descriptor("oxenfs_stalled", what, None, MetricType::Gauge)?;
        for mount in mounts {
            for reason in STALLS {
                let is = mount.status.stalled_reason.as_deref() == Some(reason);
                gauge(&mut stalled, &labels_and(mount, &[("reason", reason)]), f64::from(u8::from(is)))?;
            }
        }
        let what = "Paths by state";
        let mut files = encoder.encode_descriptor("oxenfs_files", what, None, MetricType::Gauge)?;
        for mount in mounts {
            for (state, tally) in states(mount) {
                gauge(&mut files, &labels_and(mount, &[("state", state)]), tally.files as f64)?;
            }
        }
        for of in &COUNTERS {
            let mut family = encoder.encode_descriptor(of.name, of.help, None, MetricType::Counter)?;
            for mount in mounts {
                if let Some(value) = (of.value)(mount) {
                    counter(&mut family, &labels(mount), value)?;
                }
            }
        }
        self.requests(encoder)
    }
}

impl Mounts {
    fn requests(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counted = || self.0.iter().filter_map(|mount| Some((mount, mount.counts.as_ref()?)));
        let what = "Requests that were made again because an attempt failed";
        let mut retries = encoder.encode_descriptor("oxenfs_request_retries", what, None, MetricType::Counter)?;
        for (mount, counts) in counted() {
            counter(&mut retries, &labels(mount), counts.retries)?;
        }
        let what = "Requests to the server by kind and outcome";
        let mut requests = encoder.encode_descriptor("oxenfs_requests", what, None, MetricType::Counter)?;
        for (mount, counts) in counted() {
            for of in &counts.requests {
                for (outcome, number) in &of.outcomes {
                    let more = [("kind", of.kind.as_str()), ("method", &of.method), ("outcome", outcome)];
                    counter(&mut requests, &labels_and(mount, &more), *number)?;
                }
            }
        }
        let what = "How long requests took until the answer began, or they failed";
        let name = "oxenfs_request_duration_seconds";
        let mut durations = encoder.encode_descriptor(name, what, None, MetricType::Histogram)?;
        for (mount, counts) in counted() {
            for of in &counts.requests {
                // The last class, which has no bound, is added by the encoder, from the count of all.
                let classes: Vec<(f64, u64)> = DURATION_BOUNDS_SECS.into_iter().zip(of.classes).collect();
                let more = [("kind", of.kind.as_str()), ("method", &of.method)];
                let labels = labels_and(mount, &more);
                durations.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    of.seconds,
                    of.classes.iter().sum(),
                    &classes,
                    None,
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::activity::Activity;
    use crate::control::Status;
    use crate::report::Counts;

    fn measures() -> Measures {
        let activity = Activity::default();
        activity.request("workspace_files", "POST", "ok", std::time::Duration::from_millis(20), 1);
        activity.request("workspace_files", "POST", "unreachable", std::time::Duration::from_secs(100), 2);
        activity.committed("c0ffee", "main");
        let counts = Counts {
            dirty: Tally { files: 2, bytes: 10 },
            removals: Tally { files: 1, bytes: 0 },
            staged: Tally { files: 5, bytes: 50 },
            ..Counts::default()
        };
        Measures {
            mountpoint: "/mnt/a \"b\"\\\n".into(),
            answers: true,
            status: Status {
                repo: "ox/cats".into(),
                server: "http://h".into(),
                phase: "mounted".into(),
                stalled: Some("cannot reach http://h".into()),
                stalled_reason: Some("unreachable".into()),
                eta_secs: Some(7),
                counts,
                ..Status::default()
            },
            counts: Some(activity.counts()),
        }
    }

    #[test]
    fn what_is_measured_is_text_that_prometheus_reads() {
        let text = text(vec![measures()]);
        let of = "mountpoint=\"/mnt/a \\\"b\\\"\\\\\\n\",repo=\"ox/cats\",server=\"http://h\"";
        for line in [
            "# TYPE oxenfs_owed_files gauge".to_owned(),
            format!("oxenfs_owed_files{{{of}}} 3.0"),
            format!("oxenfs_owed_bytes{{{of}}} 10.0"),
            format!("oxenfs_files{{{of},state=\"dirty\"}} 2.0"),
            format!("oxenfs_stalled{{{of},reason=\"unreachable\"}} 1.0"),
            format!("oxenfs_stalled{{{of},reason=\"busy\"}} 0.0"),
            format!("oxenfs_ready{{{of}}} 0.0"),
            "# TYPE oxenfs_commits_total counter".to_owned(),
            format!("oxenfs_commits_total{{{of}}} 1"),
            format!("oxenfs_request_retries_total{{{of}}} 1"),
            format!("oxenfs_requests_total{{{of},kind=\"workspace_files\",method=\"POST\",outcome=\"unreachable\"}} 1"),
            "# TYPE oxenfs_request_duration_seconds histogram".to_owned(),
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}\n{text}");
        }
        let classes: Vec<&str> = text.lines().filter(|line| line.contains("_seconds_bucket")).collect();
        assert_eq!(classes.len(), DURATION_BOUNDS_SECS.len() + 1, "{classes:#?}");
        assert!(classes.last().unwrap().contains("le=\"+Inf\"} 2"), "{classes:#?}");
        assert!(
            text.contains(&format!(
                "oxenfs_request_duration_seconds_count{{{of},kind=\"workspace_files\",method=\"POST\"}} 2"
            )),
            "{text}"
        );
    }

    #[test]
    fn of_a_mount_without_a_daemon_only_what_is_on_record_is_told() {
        let stopped = Measures { answers: false, counts: None, ..measures() };
        let text = text(vec![stopped]);
        let has = |name: &str| text.lines().any(|line| line.starts_with(&format!("{name}{{")));
        assert!(has("oxenfs_up") && has("oxenfs_owed_files"), "{text}");
        assert!(!has("oxenfs_sent_bytes_total") && !has("oxenfs_oldest_owed_age_seconds"), "{text}");
    }

    #[test]
    fn every_name_is_documented_and_every_documented_name_is_told() {
        let text = text(vec![measures()]);
        let told: BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let page = include_str!("../docs/METRICS.md");
        let documented: BTreeSet<&str> =
            page.lines().filter_map(|line| line.strip_prefix("| `oxenfs_")?.split(['`', '{']).next()).collect();
        let told: BTreeSet<&str> = told.iter().filter_map(|name| name.strip_prefix("oxenfs_")).collect();
        assert_eq!(told, documented);
        for reason in STALLS {
            assert!(page.contains(&format!("`{reason}`")), "{reason}");
        }
    }
}
