//! What systemd is told of a mount that it started: that it serves, how it is, and that it needs time to end.
//!
//! Only a mount in the foreground is a service of its own; where no `NOTIFY_SOCKET` is set, nothing is told.

use std::time::Duration;

use sd_notify::NotifyState;

use super::Daemon;
use crate::control::words::count;

/// How often it is looked whether there is something to tell.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// While what is left is sent: how often that is told, and for how long it asks for each time.
const TELL_EVERY: Duration = Duration::from_secs(1);
const MORE_TIME: Duration = Duration::from_secs(30);

/// A service's way to its manager.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager {
    is_there: bool,
}

impl Manager {
    /// The one that started this process, if one did.
    pub(super) fn of_process(foreground: bool) -> Self {
        Self { is_there: foreground && std::env::var_os("NOTIFY_SOCKET").is_some() }
    }

    fn tell(self, states: &[NotifyState<'_>]) {
        if self.is_there
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::debug!(%error, "the service manager was not told");
        }
    }

    /// The mount answers.
    pub(super) fn ready(self, daemon: &Daemon) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&summary(daemon))]);
    }

    /// Tells how it is, when that changes, until dropped.
    pub(super) async fn follow(self, daemon: &Daemon) {
        if !self.is_there {
            return std::future::pending().await;
        }
        let mut last = String::new();
        loop {
            let now = summary(daemon);
            if now != last {
                self.tell(&[NotifyState::Status(&now)]);
                last = now;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks for time while what is left is sent, until dropped.
    pub(super) async fn drain(self, daemon: &Daemon) {
        self.tell(&[NotifyState::Stopping]);
        loop {
            let status = format!("Sending what is left; {}", summary(daemon));
            let more = u32::try_from(MORE_TIME.as_micros()).unwrap_or(u32::MAX);
            self.tell(&[NotifyState::Status(&status), NotifyState::ExtendTimeoutUsec(more)]);
            tokio::time::sleep(TELL_EVERY).await;
        }
    }
}

/// In one line.
fn summary(daemon: &Daemon) -> String {
    let owed = daemon.fs.owed() as u64;
    let owed = if owed == 0 { "all is on the server".to_owned() } else { format!("{} to send", count(owed, "change")) };
    match daemon.meter.stalled() {
        Some(why) => {
            let how = if daemon.fs.is_offline() { "offline" } else { "stalled" };
            format!("{owed}; {how}: {}", crate::log::printable(&why))
        }
        None => owed,
    }
}
