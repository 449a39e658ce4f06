//! What a command says when it did not do what it was asked: the deed, the cause, the act that mends it, the exit code.

use std::fmt;

use crate::config::ConfigError;
use crate::control;
use crate::control::client::ClientError;
use crate::fs::FsError;
use crate::log::printable;
pub use crate::log::quoted;
use crate::mount::MountError;
use crate::mount::daemon::Report;
use crate::mount::preflight::{PreflightError, UnmountError};
use crate::mount::state_dir::{Identity, Known, StateError};
use crate::store::journal::JournalError;
use crate::workspace::WorkspaceError;

/// Exit code: it failed.
pub const FAILED: u8 = 1;
/// Exit code: the command was typed wrongly.
pub const USAGE: u8 = 2;
/// Exit code: changes are still owed to the server, and safe.
pub const OWED: u8 = 3;

/// An error as the user sees it. Built from a layer's error by `From`, which knows cause and hint; the command adds
/// with [`doing`](Failure::doing) what it was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What could not be done: `cannot mount ox/cats`.
    pub what: String,
    /// Why not.
    pub cause: String,
    /// The command or act that mends it.
    pub hint: Option<String>,
    /// The exit code.
    pub exit: u8,
}

impl Failure {
    /// With exit code 1.
    pub fn new(cause: impl fmt::Display) -> Self {
        Self { what: String::new(), cause: cause.to_string(), hint: None, exit: FAILED }
    }

    /// With exit code 3.
    pub fn owed(cause: impl fmt::Display) -> Self {
        Self { exit: OWED, ..Self::new(cause) }
    }

    /// With exit code 2.
    pub fn usage(cause: impl fmt::Display) -> Self {
        Self { exit: USAGE, ..Self::new(cause) }
    }

    /// The reader of standard output is gone, as `| head` does: nothing to say, nothing failed.
    pub fn nobody_reads() -> Self {
        Self { exit: 0, ..Self::new("") }
    }

    /// With the act that mends it.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Of a daemon that does not answer, with what that prevents.
    pub fn about(self, what: impl fmt::Display) -> Self {
        Self { cause: format!("{what}, and {}", self.cause), ..self }
    }

    /// With what could not be done, unless that was said already.
    pub fn doing(mut self, what: impl fmt::Display) -> Self {
        if self.what.is_empty() && self.exit != 0 {
            self.what = what.to_string();
        }
        self
    }
}

/// `?` with the deed.
pub trait Doing<T> {
    /// See [`Failure::doing`].
    ///
    /// # Errors
    /// The one at hand.
    fn doing<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T, Failure> {
        self.map_err(|error| error.into().doing(what()))
    }
}

/// The lines for standard error; nothing for [`Failure::nobody_reads`].
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (printable(&self.what), printable(&self.cause)) {
            (what, cause) if what.is_empty() && cause.is_empty() => return Ok(()),
            (what, cause) if what.is_empty() || cause.is_empty() => writeln!(f, "error: {what}{cause}")?,
            (what, cause) => writeln!(f, "error: {what}: {cause}")?,
        }
        match &self.hint {
            Some(hint) => writeln!(f, "hint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::NoServer => "name one: --server http://127.0.0.1:3000, or set OXEN_SERVER".into(),
            ConfigError::CredentialsInUrl(_) => "leave them out and set OXEN_API_KEY to the token".into(),
            ConfigError::UnknownOption(_) => "options are named as in: oxenfs mount --help".into(),
            ConfigError::NoHome => "name a directory: --state-dir DIR".into(),
            ConfigError::Unreadable { path, .. } => format!("look at its permissions: ls -ld {}", quoted(path)),
            ConfigError::BadToken { .. } => {
                "set OXEN_API_KEY to the token alone, or: oxen config --auth HOST TOKEN".into()
            }
            ConfigError::InFile { .. } => {
                "correct that line; oxenfs config show tells what each setting is then".into()
            }
            ConfigError::TokenFile { path, .. } => {
                format!("write the token into it and nothing else: install -m 600 /dev/stdin {}", quoted(path))
            }
            ConfigError::Malformed { .. } => "write it anew: oxen config --auth HOST TOKEN".into(),
            ConfigError::Invalid { .. } | ConfigError::Conflict(_) => "oxenfs --help, or oxenfs mount --help".into(),
        };
        let exit = if error.is_usage() { USAGE } else { FAILED };
        Self { exit, ..Self::new(error).hint(hint) }
    }
}

/// How a container is given what FUSE needs.
const CONTAINER: &str = "docker run --device /dev/fuse --cap-add SYS_ADMIN";

impl From<PreflightError> for Failure {
    fn from(error: PreflightError) -> Self {
        use PreflightError as E;
        let hint = match error {
            E::State(error) => return error.into(),
            E::Missing(ref path) => format!("mkdir -p {}", quoted(path)),
            E::NotADirectory(_) => "name an empty directory".into(),
            E::NotEmpty(_) => {
                "name an empty directory; files are added by copying them there once it is mounted".into()
            }
            E::Moved(_) => "name a directory that nobody else can change, or try again".into(),
            E::AlreadyMounted(ref path) => format!("oxenfs unmount {}", quoted(path)),
            E::ForeignMount { .. } => "name another directory".into(),
            E::Unanswered(_) => "name another directory, or see how it is: oxenfs status".into(),
            E::ForeignStale { ref path, .. } => format!("umount -l {}", quoted(path)),
            E::Stale { ref path, .. } => format!("sudo umount -l {}", quoted(path)),
            E::NotWritable(ref path) => format!("name a directory of your own, or: sudo chown $USER {}", quoted(path)),
            E::NoDevice => format!("sudo modprobe fuse; for a container: {CONTAINER}"),
            E::DeviceRefused(_) => format!("sudo chmod 666 /dev/fuse; for a container: {CONTAINER}"),
            E::NoRight => format!("start the container with: {CONTAINER}"),
            E::NoHelper => "sudo apt-get install fuse3".into(),
            E::ShortFiles { .. } => "ulimit -f unlimited".into(),
            E::LittleMemory { option, .. } => format!("{option} unlimited"),
            E::OthersNotAllowed => "echo user_allow_other | sudo tee -a /etc/fuse.conf".into(),
            E::Io { ref path, .. } => format!("look at it: ls -ld {}", quoted(path)),
        };
        Self::new(error).hint(hint)
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        use StateError as E;
        let hint = match &error {
            E::Locked { mountpoint, .. } => format!("oxenfs unmount {}", quoted(mountpoint)),
            E::Exposed { path } => {
                let path = quoted(path);
                format!("name a directory for oxenfs alone: --state-dir {path}/oxenfs, or: chmod 700 {path}")
            }
            E::NotOurs { .. } | E::OnFuse { .. } | E::InsideMount { .. } | E::Io { .. } => {
                "name a directory of your own on a local disk: --state-dir DIR".into()
            }
            E::Newer { .. } => "use the newer oxenfs, or another --state-dir".into(),
            E::Damaged { path, .. } => {
                let dir = path.parent().unwrap_or(path);
                format!("oxenfs repair {} sets it aside; the data beside it is kept", quoted(dir))
            }
        };
        Self::new(error).hint(hint)
    }
}

impl From<UnmountError> for Failure {
    fn from(error: UnmountError) -> Self {
        let hint = match &error {
            UnmountError::Busy { .. } => Some("close what is open there, leave the directory, and repeat the command"),
            UnmountError::NoHelper => Some("sudo apt-get install fuse3"),
            UnmountError::NotMounted => Some("oxenfs status lists the mounts"),
            UnmountError::Foreign { .. } | UnmountError::Failed(_) => None,
        };
        let failure = Self::new(error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<WorkspaceError> for Failure {
    fn from(error: WorkspaceError) -> Self {
        use WorkspaceError as E;
        let hint = match &error {
            E::Unreachable { server, .. } => format!("is it running? curl {}", quoted(format!("{server}/api/health"))),
            E::TimedOut { .. } => {
                "look at the server, and at the way to it: curl -m 10 URL/api/health; then try again".into()
            }
            E::Busy { .. } | E::Server { .. } => "try again in a while".into(),
            E::Unauthorized { .. } => "set OXEN_API_KEY to a valid token, or: oxen config --auth HOST TOKEN".into(),
            E::Forbidden { .. } => "use a token that may write there: set OXEN_API_KEY".into(),
            E::NotFound { .. } => "check the names: oxenfs branches REPO, oxenfs workspaces REPO".into(),
            E::Protocol { .. } => "check the address: --server http://HOST:PORT".into(),
            E::Another { .. } => "once the repository of before is back there, mount again, and what waits here is sent; to mount what is there now, with nothing of this: --state-dir DIR".into(),
            E::Conflict { .. }
            | E::NoSpace { .. }
            | E::Refused { .. }
            | E::Unconfirmed { .. }
            | E::Unsupported { .. }
            | E::Overlooked
            | E::Io(_) => return Self::new(error),
        };
        Self::new(error).hint(hint)
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        match error {
            MountError::Server(error) | MountError::Fs(FsError::Remote(error)) => error.into(),
            MountError::State(error) => error.into(),
            MountError::Place(error) => error.into(),
            MountError::NoRepository { .. } => {
                Self::new(error).hint("add --create to make it, or check the name: NAMESPACE/NAME")
            }
            MountError::NoBranch { ref identity, ref other, .. } => {
                let hint = match other {
                    // The state directory goes by the workspace: what waits in it goes along.
                    Some(other) => {
                        let branch = other.clone();
                        format!(
                            "to go on with what is here on another branch: {}",
                            command_for(&Identity { branch, ..(**identity).clone() })
                        )
                    }
                    None => format!(
                        "make it again there, and repeat the command; what waits here is kept: oxenfs branches {} --server {}",
                        quoted(&identity.repo),
                        quoted(&identity.server)
                    ),
                };
                Self::new(error).hint(hint)
            }
            MountError::Journal(JournalError::Newer { .. } | JournalError::Unknown { .. }) => {
                Self::new(error).hint("use the newer oxenfs, or another --state-dir")
            }
            MountError::Journal(JournalError::Damaged(damage)) => {
                let journal = damage.path.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "journal"));
                let state =
                    journal.and_then(std::path::Path::parent).unwrap_or(std::path::Path::new("STATE")).to_owned();
                Self::new(damage).hint(format_args!("oxenfs repair {} shows what can be salvaged", quoted(state)))
            }
            MountError::Journal(JournalError::Stray { path }) => {
                let hint = format!("if it is not yours, move it out of there: mv {} /somewhere/else", quoted(&path));
                Self::new(JournalError::Stray { path }).hint(hint)
            }
            MountError::Journal(_) | MountError::Fs(_) => {
                Self::new(error).hint("look at the disk of the state directory: df -h, ls -ld")
            }
            MountError::Metrics { .. } => {
                Self::new(error).hint("name another with --metrics, or see who listens: ss -tlnxp")
            }
            MountError::Attach(_) => Self::new(error).hint("look at what the kernel says: dmesg | tail"),
            MountError::Setup(error) => Self::new(error),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::HungUp => {
                "what was written is safe on this disk; oxenfs status shows it, mounting again sends it"
            }
            ClientError::Silent => "oxenfs status tells how it is",
            ClientError::NotUnderstood => "use the version of oxenfs that mounted it: oxenfs status --json",
            ClientError::Io(_) => "oxenfs status",
        };
        Self::new(error).hint(hint)
    }
}

impl From<control::Failure> for Failure {
    fn from(failure: control::Failure) -> Self {
        Self {
            what: String::new(),
            cause: failure.message,
            hint: failure.hint,
            exit: if failure.owed { OWED } else { FAILED },
        }
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self { what: report.what, cause: report.cause, hint: report.hint, exit: report.exit }
    }
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        Self { what: failure.what, cause: failure.cause, hint: failure.hint, exit: failure.exit }
    }
}

/// The command that mounts it again.
pub fn mount_command(known: &Known) -> String {
    command_for(&known.meta.identity)
}

fn command_for(identity: &Identity) -> String {
    let mut command = format!("oxenfs mount {} {}", quoted(&identity.repo), quoted(&identity.mountpoint));
    let mut option = |name, value: &str| command += &format!(" {name} {}", quoted(value));
    option("--server", &identity.server);
    match &identity.revision {
        Some(revision) => option("--revision", revision),
        None => {
            // All of it: a configuration file may say otherwise by now.
            option("--branch", &identity.branch);
            option("--workspace", &identity.workspace);
        }
    }
    if !identity.subdir.is_empty() {
        option("--subdir", &identity.subdir);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_two_lines_without_a_final_period() {
        let failure = Failure::from(PreflightError::Missing("/mnt/my cats".into())).doing("cannot mount ox/cats");
        assert_eq!(
            failure.to_string(),
            "error: cannot mount ox/cats: /mnt/my cats does not exist\nhint: mkdir -p '/mnt/my cats'\n"
        );
        assert_eq!(failure.exit, FAILED);
    }

    #[test]
    fn nobody_forges_a_line_of_an_error() {
        let hostile = "a\nhint: rm -r ~\u{9b}\u{202e}";
        let failure = Failure::new(hostile).doing(hostile).hint(hostile);
        let shown = "a\\nhint: rm -r ~\\u{9b}\\u{202e}";
        assert_eq!(failure.to_string(), format!("error: {shown}: {shown}\nhint: {shown}\n"));
    }

    #[test]
    fn what_was_typed_wrongly_exits_with_2() {
        assert_eq!(Failure::from(ConfigError::NoServer).exit, USAGE);
        assert_eq!(Failure::from(ConfigError::NoHome).exit, FAILED);
    }
}
