//! Settings that are valid once built: from the command line, `-o` options, the environment and the Oxen CLI's files.
//!
//! The command fills a [`MountInput`] with plain text; [`MountSettings::new`] checks all of it, so that a value from
//! `/etc/fstab` and one from the command line meet the same rules and the same words.

mod address;
mod credentials;
mod environment;
mod file;
mod keys;
mod listen;
mod options;
mod secret;
pub mod units;
mod values;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use address::{OxenUrl, RepoId, Scheme, ServerUrl, resolve};
pub use credentials::{Author, CredentialSource, OxenConfig};
pub use environment::Environment;
pub use file::{Files, Found};
pub use keys::{KEYS, Key};
pub use listen::Address;
pub use secret::Secret;

use crate::log::Filter;
use crate::path::RepoPath;

/// Well within the 90 s that systemd grants.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a path must have been left alone before it is staged, unless `--settle` says otherwise: long enough for
/// the usual write-then-rename of editors and download tools, short enough not to be noticed.
pub const DEFAULT_SETTLE: Duration = Duration::from_secs(1);

/// How long programs wait for a server from which nothing comes, unless `--read-timeout` says otherwise: a server may
/// be started anew within it.
pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a mount looks where its branch is, unless `--refresh` says otherwise.
pub const DEFAULT_LOOK: Duration = Duration::from_secs(60);

/// Space for copies of what the server has, unless `--cache-limit` says otherwise.
pub const DEFAULT_CACHE_LIMIT_BYTES: u64 = 10 << 30;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that does not have the form it must have.
    #[error("{what} {value:?} is not {expected}")]
    Invalid {
        /// The option or argument, as the user typed it.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// Two settings that exclude each other, or one that needs another.
    #[error("{0}")]
    Conflict(String),
    /// A key in `-o` that means nothing here.
    #[error("unknown mount option {0:?}")]
    UnknownOption(String),
    /// Neither the command, nor the environment, nor the Oxen configuration names a server.
    #[error("no server is named")]
    NoServer,
    /// A token or password inside a URL, which other users can read in the process list.
    #[error("{0} contains credentials, which other users could read in the process list")]
    CredentialsInUrl(&'static str),
    /// No home directory to keep state in.
    #[error("there is no home directory to keep data in that the server does not have yet")]
    NoHome,
    /// A configuration file that cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration file of oxenfs that says what cannot be meant.
    #[error("{}, line {line}: {problem}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// In words.
        problem: String,
    },
    /// A file that was named for the token, and has none.
    #[error("{} was named for the token ({said_by}), and {problem}", .path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Who named it.
        said_by: String,
        /// In words; nothing of what it holds.
        problem: String,
    },
    /// What no line of a request's header may hold.
    #[error("{place} holds a line break or another character that no token has")]
    BadToken {
        /// Where it is from.
        place: String,
    },
    /// A configuration file that is not TOML of the expected form. The parser's own words are left out: they may
    /// quote a token.
    #[error("{} is not a valid Oxen configuration{}", .path.display(), .line.map(|n| format!(" (line {n})")).unwrap_or_default())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: Option<usize>,
    },
}

impl ConfigError {
    /// Whether the command was typed wrongly, as opposed to a file or the machine being at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Invalid { .. }
            | Self::Conflict(_)
            | Self::UnknownOption(_)
            | Self::NoServer
            | Self::CredentialsInUrl(_) => true,
            Self::NoHome
            | Self::Unreadable { .. }
            | Self::BadToken { .. }
            | Self::InFile { .. }
            | Self::TokenFile { .. }
            | Self::Malformed { .. } => false,
        }
    }
}

/// What `mount` was asked for, unchecked. `None` is "not said".
#[derive(Debug, Clone, Default)]
pub struct MountInput {
    /// `NAMESPACE/NAME` or a whole URL.
    pub repo: String,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// `--server`.
    pub server: Option<String>,
    /// `--branch`.
    pub branch: Option<String>,
    /// `--workspace`.
    pub workspace: Option<String>,
    /// `--revision`.
    pub revision: Option<String>,
    /// `--create`.
    pub create: bool,
    /// `--description`.
    pub description: Option<String>,
    /// `--public`.
    pub public: bool,
    /// `--storage`.
    pub storage: Option<String>,
    /// `--subdir`.
    pub subdir: Option<String>,
    /// `--read-only`.
    pub read_only: Option<bool>,
    /// `--foreground`.
    pub foreground: bool,
    /// `--log`.
    pub log: Option<String>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--spool-limit`.
    pub spool_limit: Option<String>,
    /// `--cache-limit`.
    pub cache_limit: Option<String>,
    /// `--fsync`.
    pub fsync: Option<String>,
    /// `--write-through`.
    pub write_through: Option<bool>,
    /// `--settle`.
    pub settle: Option<String>,
    /// `--drain-timeout`.
    pub drain_timeout: Option<String>,
    /// `--read-timeout`.
    pub read_timeout: Option<String>,
    /// `--passthrough`.
    pub passthrough: Option<String>,
    /// `--keep-awake`.
    pub keep_awake: Option<String>,
    /// `--allow-other`.
    pub allow_other: Option<bool>,
    /// `-o noexec`.
    pub noexec: Option<bool>,
    /// `--uid`.
    pub uid: Option<String>,
    /// `--gid`.
    pub gid: Option<String>,
    /// `--umask`.
    pub umask: Option<String>,
    /// `--token-file`.
    pub token_file: Option<PathBuf>,
    /// `--metrics`.
    pub metrics: Option<String>,
    /// `--refresh`.
    pub refresh: Option<String>,
    /// `--ignore`: patterns, one a line; those of the command line together.
    pub ignore: Option<String>,
}

/// A mount, checked.
#[derive(Debug, Clone)]
pub struct MountSettings {
    /// Where; absolute. Preflight resolves its symbolic links.
    pub mountpoint: PathBuf,
    /// The server.
    pub server: ServerUrl,
    /// The repository on it.
    pub repo: RepoId,
    /// The branch that the workspace starts from and commits go to; empty where a revision is shown that was not called a
    /// branch.
    pub branch: String,
    /// The workspace's name, which is also its id; empty where a revision is shown.
    pub workspace: String,
    /// Nobody named the workspace. Then this is what all of this user's on this machine are called, and each state
    /// directory has one of its own.
    pub own_workspace: bool,
    /// The branch or commit that is shown as it is now, in place of a workspace. Such a mount is read-only, and changes
    /// nothing on the server.
    pub revision: Option<String>,
    /// To be made when the repository does not exist; `None`: that is an error.
    pub create: Option<CreateRepo>,
    /// The directory of the repository that is the mount's root.
    pub subdir: RepoPath,
    /// Stay in the foreground, log to standard error.
    pub foreground: bool,
    /// What is logged.
    pub log: Filter,
    /// The directory with one state directory a mount.
    pub state_root: PathBuf,
    /// Most bytes that wait for the server before writes get ENOSPC; 0 is none but the disk's.
    pub spool_limit_bytes: u64,
    /// Most bytes of copies of what the server has.
    pub cache_limit_bytes: u64,
    /// What `fsync` waits for.
    pub fsync: FsyncPolicy,
    /// `close` returns when the file is staged, with its error.
    pub write_through: bool,
    /// How long a path must be left alone before it is staged.
    pub settle: Duration,
    /// How long a plain `umount`, and a daemon told to end, go on staging.
    pub drain_timeout: Duration,
    /// How long programs wait for a server from which nothing comes; `None`: for ever.
    pub read_timeout: Option<Duration>,
    /// Reads and writes go past the daemon where the kernel can.
    pub passthrough: bool,
    /// Processors are kept awake while requests come; `None`: where that is known to be worth it.
    pub keep_awake: Option<bool>,
    /// Who sees the mount, and as whose.
    pub access: Access,
    /// Where what is measured is served.
    pub metrics: Option<Address>,
    /// What the mount does about commits of others to its branch.
    pub refresh: Refresh,
    /// Patterns of files that stay here, beside those of `.oxenignore`.
    pub ignore: Vec<String>,
    /// Where the token comes from; asked for every request.
    pub credentials: CredentialSource,
}

/// What a mount does by itself about commits of others to its branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Nothing: it does not look.
    Never,
    /// It looks this often, less often while nothing changes, and tells.
    Look(Duration),
    /// It looks this often, and takes them in while no file is open.
    Move(Duration),
}

impl Default for Refresh {
    fn default() -> Self {
        Self::Look(DEFAULT_LOOK)
    }
}

/// Who sees the mount, and as whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Others than its owner may enter.
    pub allow_other: bool,
    /// No program on it can be run.
    pub noexec: bool,
    /// Owner of files that nobody gave another.
    pub uid: u32,
    /// Group of files that nobody gave another.
    pub gid: u32,
    /// Permission bits that files from the server do not have.
    pub umask: u32,
}

/// What `fsync` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// The local disk.
    Local,
    /// The server.
    Staged,
}

/// A repository to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateRepo {
    /// In words.
    pub description: Option<String>,
    /// Everybody may read it.
    pub public: bool,
    /// Where the server keeps its content; `None` is the server's own choice.
    pub storage: Option<Storage>,
}

/// Where a server keeps content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// On its disk.
    Local,
    /// In an S3 bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// What its keys begin with.
        prefix: String,
    },
}

impl std::str::FromStr for Storage {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text == "local" {
            return Ok(Self::Local);
        }
        match text.strip_prefix("s3:") {
            Some(place) if !place.is_empty() && !place.starts_with('/') => {
                let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
            }
            _ => Err(ConfigError::Invalid {
                what: "--storage",
                value: text.to_owned(),
                expected: "local or s3:BUCKET/PREFIX",
            }),
        }
    }
}

/// What of what makes no sense of a revision was said by the command, and not by a file for all mounts of the repository.
#[derive(Debug, Clone, Copy)]
struct Said {
    branch: bool,
    workspace: bool,
    write_through: bool,
    refresh: bool,
}

/// What a mount shows.
struct Shown {
    branch: String,
    workspace: String,
    revision: Option<String>,
}

impl MountInput {
    /// To be asked before files and environment are applied.
    fn said(&self) -> Said {
        Said {
            branch: self.branch.is_some(),
            workspace: self.workspace.is_some(),
            write_through: self.write_through == Some(true),
            refresh: self.refresh.is_some(),
        }
    }

    /// What is to be shown: a revision where one is named or the mount is read-only, else a workspace.
    fn shown(&self, named: Option<&OxenUrl>, said: Said, environment: &Environment) -> Result<Shown, ConfigError> {
        let read_only = self.read_only == Some(true);
        let in_url = named.and_then(|url| url.revision.as_deref());
        let revision = match (self.revision.as_deref(), in_url) {
            (Some(revision), Some(in_url)) if revision != in_url => {
                return Err(ConfigError::Conflict(format!("REPO names {in_url}, but --revision says {revision}")));
            }
            (revision, in_url) => revision.or(in_url),
        };
        let what = match revision {
            Some(_) => "--revision",
            None => "--read-only",
        };
        if revision.is_some() || read_only {
            let others = [
                ("--create", self.create),
                ("--write-through", said.write_through),
                ("--refresh", said.refresh),
                ("--workspace", said.workspace),
                ("--branch", said.branch && revision.is_some()),
            ];
            if let Some((other, _)) = others.iter().find(|(_, said)| *said) {
                return Err(ConfigError::Conflict(format!("{other} and {what} exclude each other")));
            }
        }
        if let Some(revision) = revision {
            let revision = checked_revision(revision)?;
            return Ok(Shown { branch: String::new(), workspace: String::new(), revision: Some(revision) });
        }
        let branch = checked_branch(self.branch.as_deref().unwrap_or("main"))?;
        if read_only {
            return Ok(Shown { branch: branch.clone(), workspace: String::new(), revision: Some(branch) });
        }
        let workspace = match &self.workspace {
            Some(name) => checked_workspace(name)?,
            None => default_workspace(&environment.user, &environment.host, &branch),
        };
        Ok(Shown { branch, workspace, revision: None })
    }

    /// What of `--description`, `--public` and `--storage` was said, if `--create` was.
    fn create_repo(&self) -> Result<Option<CreateRepo>, ConfigError> {
        if !self.create {
            let said = [
                ("--description", self.description.is_some()),
                ("--public", self.public),
                ("--storage", self.storage.is_some()),
            ];
            return match said.iter().find(|(_, said)| *said) {
                Some((option, _)) => Err(ConfigError::Conflict(format!("{option} needs --create"))),
                None => Ok(None),
            };
        }
        Ok(Some(CreateRepo {
            description: self.description.clone(),
            public: self.public,
            storage: self.storage.as_deref().map(str::parse).transpose()?,
        }))
    }
}

impl MountSettings {
    /// Whether every change is refused.
    pub fn is_read_only(&self) -> bool {
        self.revision.is_some()
    }

    /// Checks `input` and fills in what it does not say.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn new(mut input: MountInput, environment: &Environment) -> Result<Self, ConfigError> {
        let oxen = OxenConfig::new(environment);
        let files = Files::read(environment)?;
        let said = input.said();
        file::apply_environment(&mut input, environment)?;
        let (server, repo) = resolve(&input.repo, input.server.as_deref(), environment, &oxen, &files)?;
        let told = input.token_file.take();
        files.apply(&mut input, &server, &repo)?;
        let configured = input.token_file.take();
        let create = input.create_repo()?;
        let named = OxenUrl::parse(&input.repo).transpose()?;
        let Shown { branch, workspace, revision } = input.shown(named.as_ref(), said, environment)?;
        let is_read_only = revision.is_some();
        let in_url = named.as_ref().map_or("", |url| url.path.as_str());
        let subdir = match input.subdir.as_deref() {
            Some(said) if !in_url.is_empty() && said != in_url => {
                return Err(ConfigError::Conflict(format!("REPO names {in_url:?}, but --subdir says {said:?}")));
            }
            Some(said) => said,
            None => in_url,
        };
        let subdir = RepoPath::parse(subdir).map_err(|_| ConfigError::Invalid {
            what: "--subdir",
            value: subdir.to_owned(),
            expected: "a path inside the repository",
        })?;
        let fsync = input.fsync.as_deref().map_or(Ok(FsyncPolicy::Local), |text| values::fsync("--fsync", text))?;
        let passthrough =
            input.passthrough.as_deref().map_or(Ok(true), |text| values::passthrough("--passthrough", text));
        let keep_awake =
            input.keep_awake.as_deref().map_or(Ok(None), |text| values::keep_awake("--keep-awake", text))?;
        let bytes = |what, text: &Option<String>, default| match text {
            Some(text) => values::bytes(what, text),
            None => Ok(default),
        };
        let time = |what, text: &Option<String>, default| match text {
            Some(text) => values::time(what, text),
            None => Ok(default),
        };
        let settle = time("--settle", &input.settle, DEFAULT_SETTLE)?;
        let drain_timeout = time("--drain-timeout", &input.drain_timeout, DEFAULT_DRAIN_TIMEOUT)?;
        let read_timeout = time("--read-timeout", &input.read_timeout, DEFAULT_READ_TIMEOUT)?;
        let id = |what, text: &Option<String>, own| match text {
            Some(text) => values::id(what, text),
            None => Ok(own),
        };
        let umask = input.umask.as_deref().map_or(Ok(0o022), |text| values::umask("--umask", text))?;
        let state_root = match &input.state_dir {
            Some(dir) => absolute(dir.clone())?,
            None => environment.state_root()?,
        };
        // Earlier versions named the default in the commands that they told people to repeat.
        let own_workspace = workspace == default_workspace(&environment.user, &environment.host, &branch);
        Ok(Self {
            mountpoint: absolute(input.mountpoint)?,
            credentials: CredentialSource::new(environment, &server, told, configured)?,
            server,
            repo,
            branch,
            own_workspace,
            workspace,
            revision,
            create,
            subdir,
            foreground: input.foreground,
            log: log_filter(input.log.as_deref(), environment)?,
            state_root,
            spool_limit_bytes: bytes("--spool-limit", &input.spool_limit, 0)?,
            cache_limit_bytes: bytes("--cache-limit", &input.cache_limit, DEFAULT_CACHE_LIMIT_BYTES)?,
            fsync,
            write_through: input.write_through == Some(true) && !is_read_only,
            settle,
            drain_timeout,
            read_timeout: (!read_timeout.is_zero()).then_some(read_timeout),
            passthrough: passthrough?,
            keep_awake,
            access: Access {
                allow_other: input.allow_other == Some(true),
                noexec: input.noexec == Some(true),
                uid: id("--uid", &input.uid, environment.uid)?,
                gid: id("--gid", &input.gid, environment.gid)?,
                umask,
            },
            refresh: match &input.refresh {
                // A revision stays what it is.
                _ if is_read_only => Refresh::Never,
                Some(text) => values::refresh("--refresh", text)?,
                None => Refresh::default(),
            },
            metrics: input.metrics.as_deref().map(|text| values::address("--metrics", text)).transpose()?,
            ignore: input.ignore.as_deref().map_or(Ok(Vec::new()), |text| values::patterns("--ignore", text))?,
        })
    }
}

/// What `--log` says is logged, else `OXENFS_LOG`.
///
/// # Errors
/// When it says no levels.
pub fn log_filter(option: Option<&str>, environment: &Environment) -> Result<Filter, ConfigError> {
    let said = option.map(|text| ("--log", text));
    let Some((what, text)) = said.or_else(|| Some(("OXENFS_LOG", environment.log.as_deref()?))) else {
        return Ok(Filter::default());
    };
    text.parse().map_err(|_| ConfigError::Invalid { what, value: text.to_owned(), expected: Filter::EXPECTED })
}

/// `path` from the root; the daemon's working directory is not the command's.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|source| ConfigError::Unreadable { path, source })
}

/// A branch name that can stand in a URL and a request.
pub(crate) fn checked_branch(name: &str) -> Result<String, ConfigError> {
    let bad = name.is_empty()
        || name.len() > 200
        || name.starts_with(['/', '-'])
        || name.ends_with('/')
        || name.contains("..")
        || name.chars().any(|c| c.is_control() || c.is_whitespace());
    if bad {
        return Err(ConfigError::Invalid { what: "--branch", value: name.to_owned(), expected: "a branch name" });
    }
    Ok(name.to_owned())
}

/// The name of a branch, or a commit's id.
fn checked_revision(name: &str) -> Result<String, ConfigError> {
    checked_branch(name).map_err(|_| ConfigError::Invalid {
        what: "--revision",
        value: name.to_owned(),
        expected: "a branch name or a commit id",
    })
}

/// A workspace name is a segment of URLs.
fn checked_workspace(name: &str) -> Result<String, ConfigError> {
    if is_segment(name) && name.len() <= 200 {
        return Ok(name.to_owned());
    }
    Err(ConfigError::Invalid {
        what: "--workspace",
        value: name.to_owned(),
        expected: "a name of letters, digits, '.', '_' and '-'",
    })
}

/// Whether `text` is a path segment that no server and no proxy takes for something else.
fn is_segment(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// The same name for the same user, host and branch, so that a remount goes on where the last one stopped, and for no
/// others: where a character had to be replaced, part of a hash of the original is added.
pub fn default_workspace(user: &str, host: &str, branch: &str) -> String {
    let plain = format!("oxenfs-{user}-{host}-{branch}");
    let name: String = plain
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(100)
        .collect();
    if name == plain {
        return name;
    }
    let hash = crate::hash::ContentHash::of(crate::hash::HashKind::Sha256, plain.as_bytes()).to_string();
    format!("{name}-{}", &hash[..8])
}
