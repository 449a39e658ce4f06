//! What a command leaves running when it has ended.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::super::output::{count, note};

/// How long it may go on, and how long it has to end once it is told to.
const PATIENCE: Duration = Duration::from_secs(10);
const END_PATIENCE: Duration = Duration::from_secs(5);
const CHECK: Duration = Duration::from_millis(50);

/// Has what a child leaves running become this process's child (`PR_SET_CHILD_SUBREAPER`).
pub fn adopt() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        note(format_args!("what the command leaves running is not waited for: {error}"));
    }
}

/// Waits for all that was left running but for `daemon`, ends it when it takes too long, and at last kills it.
pub fn end_all(daemon: u32) {
    let began = Instant::now();
    let mut told = None::<Instant>;
    let mut killed = false;
    loop {
        let left = children(daemon);
        // What has ended is a child until it is waited for.
        let running: Vec<Pid> = left.into_iter().filter(|child| !has_ended(*child)).collect();
        if running.is_empty() {
            if children(daemon).is_empty() {
                return;
            }
            continue;
        }
        let over = told.is_some_and(|told| told.elapsed() >= END_PATIENCE);
        if over || killed {
            killed = true;
            running.iter().for_each(|child| _ = kill_process(*child, Signal::KILL));
        } else if told.is_none() && began.elapsed() >= PATIENCE {
            let processes = count(running.len() as u64, "process");
            note(format_args!("{processes} that the command left running: told to end"));
            running.iter().for_each(|child| _ = kill_process(*child, Signal::TERM));
            told = Some(Instant::now());
        }
        std::thread::sleep(CHECK);
    }
}

fn has_ended(child: Pid) -> bool {
    // An error: it was waited for already.
    !matches!(waitpid(Some(child), WaitOptions::NOHANG), Ok(None))
}

/// The children of this process but for `daemon`: of each process the fourth field of `/proc/PID/stat` is its parent,
/// behind the name, which may hold anything (`proc_pid_stat(5)`).
fn children(daemon: u32) -> Vec<Pid> {
    let us = std::process::id();
    let is_ours = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        *pid != daemon && after_name.split(' ').nth(1).and_then(|parent| parent.parse().ok()) == Some(us)
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(is_ours).filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).collect()
}
