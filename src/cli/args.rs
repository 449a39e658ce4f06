//! The command line, as clap sees it. Help texts are product: they are what most people read of the documentation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::config::{MountInput, units};

/// Mount an Oxen workspace as a directory: write datasets with ordinary tools, unmount to finish staging.
#[derive(Debug, Parser)]
#[command(name = "oxenfs", bin_name = "oxenfs", version, arg_required_else_help = true, propagate_version = true, after_help = AFTER)]
pub struct Cli {
    /// Directory for data that the server does not have yet [default: $XDG_STATE_HOME/oxenfs; for root
    /// /var/lib/oxenfs; else ~/.local/state/oxenfs]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub state_dir: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage; 3 changes are still owed to the server, and safe on this disk.

Credentials: the environment variable OXEN_API_KEY, else the file that OXEN_API_KEY_FILE or the configuration names,
else the token that `oxen config --auth HOST TOKEN` stored.

Configuration: ~/.config/oxenfs/config.toml, then /etc/oxenfs/config.toml; `oxenfs config show` tells what holds, and
where it is from.

Example:
  oxenfs mount ox/cats /mnt/cats --server http://127.0.0.1:3000 --create
  cp -r ~/labels /mnt/cats/
  oxenfs unmount /mnt/cats --commit -m \"Label batch 7\"";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a repository's workspace at a directory
    Mount(Box<MountArgs>),
    /// Send what is left to the server, then unmount
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Show mounts, and what the server does not have yet
    Status(StatusArgs),
    /// Show what the next commit would contain
    Diff(DiffArgs),
    /// Copy files and directories into a mount, faster than cp -r
    Import(ImportArgs),
    /// Put files back to what the branch has, and drop what was changed; --undo brings that back
    #[command(visible_alias = "discard")]
    Restore(RestoreArgs),
    /// Fetch files into the local cache before they are read
    Warm(WarmArgs),
    /// Wait until everything, or these paths, are staged on the server
    Sync(SyncArgs),
    /// Send what mounts that have ended on this machine still owe, without a mount and without FUSE
    Send(SendArgs),
    /// Run a command with a mount that is there for it alone; then stage what it wrote, or commit it
    Run(Box<RunArgs>),
    /// Stage what was written up to now, and commit it
    Commit(CommitArgs),
    /// Take in what others committed to the branch
    Refresh(RefreshArgs),
    /// Say which paths are ignored, and by which pattern
    CheckIgnore(CheckIgnoreArgs),
    /// Decide what becomes of files that were changed here and by others
    Resolve(ResolveArgs),
    /// Print a version of a file that was changed here and by others
    Show(VersionArgs),
    /// Print what happens in a mount, as lines of JSON
    Events(EventsArgs),
    /// Print or serve what is measured of all mounts, for Prometheus
    Metrics(MetricsArgs),
    /// Show or change what a running mount logs
    LogLevel(LogLevelArgs),
    /// Look for what may keep a mount from working, and say what to do
    Doctor(DoctorArgs),
    /// Salvage the damaged record of a state directory; shows what it would do
    Repair(RepairArgs),
    /// Show what the configuration says
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work with repositories on a server
    #[command(subcommand)]
    Repo(RepoCommand),
    /// Show what was committed to a branch, or what changed a file or directory of it, newest first
    Log(LogArgs),
    /// List a repository's branches
    Branches(LookArgs),
    /// List a repository's workspaces, or delete some: workspaces delete, workspaces prune
    Workspaces(WorkspacesArgs),

    /// Commit what several workers staged, each in a workspace of its own, as one
    ///
    /// All of it is committed, or nothing. What two of them made different things of, or the branch has changed since, is
    /// named first. The workspaces stay.
    #[command(after_help = GATHER_AFTER)]
    Gather(GatherArgs),
    /// Serve the Oxen API from a local directory, for trying and for tests
    DevServer(DevServerArgs),
    /// Print a manual page, as man(1) reads it: oxenfs man mount | man -l -
    Man(ManArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `oxenfs mount`.
#[derive(Debug, Clone, Default, Args)]
pub struct MountArgs {
    /// NAMESPACE/NAME, a whole URL such as http://127.0.0.1:3000/ox/cats, or oxen://NAMESPACE:NAME[@REVISION][/PATH]
    pub repo: String,

    /// An empty directory
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// The server [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// The branch to start from and to commit to [default: main]
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,

    /// The workspace; made when it is not there [default: one for this user, machine and branch, so that mounting
    /// again goes on where the last mount stopped]
    #[arg(long, value_name = "NAME")]
    pub workspace: Option<String>,

    /// Show a branch or a commit as it is now, read-only: nothing is changed on the server, and no workspace made
    #[arg(long, value_name = "COMMIT|BRANCH")]
    pub revision: Option<String>,

    /// Make the repository when it is not there
    #[arg(long)]
    pub create: bool,

    /// With --create: its description
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,

    /// With --create: everybody may read it
    #[arg(long)]
    pub public: bool,

    /// With --create: where the server keeps its content: local or s3:BUCKET/PREFIX
    #[arg(long, value_name = "WHERE")]
    pub storage: Option<String>,

    /// Mount this directory of the repository
    #[arg(long, value_name = "PATH")]
    pub subdir: Option<String>,

    /// Show the branch as it is now and refuse every change; as --revision
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub read_only: Option<bool>,

    /// A file that holds the token and nothing else; read again when the server does not accept the token any more
    /// [default: $OXEN_API_KEY, $OXEN_API_KEY_FILE, the configuration's, else the one that the Oxen CLI stored]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Stay in the foreground and log to standard error
    #[arg(long, short = 'f')]
    pub foreground: bool,

    /// What is logged: error, warn, info, debug, trace, or a list such as warn,oxenfs::oxen=debug [default: $OXENFS_LOG,
    /// else info]; oxenfs log-level changes it later
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,

    /// Most bytes that may wait for the server before writes fail with "no space left", for example 10G [default: as
    /// much as the disk has]
    #[arg(long, value_name = "SIZE")]
    pub spool_limit: Option<String>,

    /// Most bytes of local copies of what the server has [default: 10G]
    #[arg(long, value_name = "SIZE")]
    pub cache_limit: Option<String>,

    /// What fsync waits for: local (this disk) or staged (the server) [default: local]
    #[arg(long, value_name = "WHERE")]
    pub fsync: Option<String>,

    /// Closing a file waits until it is staged, and reports the error if it cannot be
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub write_through: Option<bool>,

    /// How long a file must be left alone before it is staged, in seconds [default: 1]
    #[arg(long, value_name = "SECS")]
    pub settle: Option<String>,

    /// How long a plain umount, and a daemon that is told to end, go on sending what is left [default: 20s]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<String>,
    /// How long a program waits for the server while nothing comes, or less than 1 KiB/s, before its read fails, for example
    /// 30s or 10m; 0: for ever. After a quarter of it, at most 30 s, another connection is tried [default: 120s]
    #[arg(long, value_name = "TIME")]
    pub read_timeout: Option<String>,

    /// How often the mount takes in what others committed to the branch, for example 5m; only while no file is open in
    /// it. 0: it does not even look. look:TIME: it looks that often, less often while nothing changes, and tells
    /// `status`, `events` and the log [default: look:60s]
    #[arg(long, value_name = "TIME")]
    pub refresh: Option<String>,

    /// Keep new files that match this pattern on this disk, beside those that .oxenignore matches, of which it has the
    /// syntax; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub ignore: Vec<String>,

    /// Whether reads and writes may go straight to the local disk, past the daemon: auto (as root, where the kernel can)
    /// or never [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub passthrough: Option<String>,

    /// Whether processors are kept from sleeping while requests come thick and fast (as root): auto (in a virtual machine
    /// of few processors whose kernel has halt polling off, where each sleep costs much), always or never [default:
    /// auto]
    #[arg(long, value_name = "WHEN")]
    pub keep_awake: Option<String>,

    /// Serve what is measured, for Prometheus, and /healthz and /readyz, as long as the daemon lives: an address such as
    /// 127.0.0.1:9184, or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,

    /// Let other users enter the mount
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_other: Option<bool>,

    /// Owner shown for files that nobody gave another [default: you]
    #[arg(long, value_name = "ID")]
    pub uid: Option<String>,

    /// Group shown for files that nobody gave another [default: yours]
    #[arg(long, value_name = "ID")]
    pub gid: Option<String>,

    /// Permission bits that files from the server do not have, octal [default: 022]
    #[arg(long, value_name = "MASK")]
    pub umask: Option<String>,

    /// Say what was mounted as a JSON object on standard output
    #[arg(long, conflicts_with_all = ["foreground", "print_unit"])]
    pub json: bool,

    /// Mount nothing; print a unit of systemd that would, for the machine or for a user's own services [default: system
    /// as root, else user]
    #[arg(
        long,
        value_name = "KIND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto"
    )]
    pub print_unit: Option<Unit>,

    /// The same options as in /etc/fstab: ro,branch=dev,spool-limit=10G,...
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// Whose unit is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Unit {
    /// The machine's as root, else the user's.
    Auto,
    /// The machine's.
    System,
    /// A user's.
    User,
}

impl MountArgs {
    /// As unchecked settings; `-o` lists are taken in by the caller.
    pub fn into_input(self, state_dir: Option<PathBuf>) -> MountInput {
        MountInput {
            repo: self.repo,
            mountpoint: self.mountpoint,
            server: self.server,
            branch: self.branch,
            workspace: self.workspace,
            revision: self.revision,
            create: self.create,
            description: self.description,
            public: self.public,
            storage: self.storage,
            subdir: self.subdir,
            read_only: self.read_only,
            foreground: self.foreground,
            log: self.log,
            state_dir,
            spool_limit: self.spool_limit,
            cache_limit: self.cache_limit,
            fsync: self.fsync,
            write_through: self.write_through,
            settle: self.settle,
            drain_timeout: self.drain_timeout,
            read_timeout: self.read_timeout,
            passthrough: self.passthrough,
            keep_awake: self.keep_awake,
            allow_other: self.allow_other,
            noexec: None,
            uid: self.uid,
            gid: self.gid,
            umask: self.umask,
            token_file: self.token_file,
            metrics: self.metrics,
            refresh: self.refresh,
            ignore: (!self.ignore.is_empty()).then(|| self.ignore.join("\n")),
        }
    }
}

/// Called as `mount.oxenfs`, by `mount(8)`.
#[derive(Debug, Parser)]
#[command(name = "mount.oxenfs", bin_name = "mount.oxenfs", version)]
pub struct HelperArgs {
    /// NAMESPACE/NAME with -o server=URL, or a whole URL
    pub repo: String,

    /// An empty directory
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// As in /etc/fstab
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,

    /// Pass over unknown options
    #[arg(short = 's')]
    pub sloppy: bool,

    /// Check everything, mount nothing
    #[arg(short = 'f')]
    pub fake: bool,

    /// Has no effect: there is no /etc/mtab to write
    #[arg(short = 'n')]
    pub no_mtab: bool,

    /// Has no effect
    #[arg(short = 'v')]
    pub verbose: bool,

    /// Has no effect: there is one type
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}

/// Called as `umount.fuse.oxenfs`, by `umount(8)`.
#[derive(Debug, Parser)]
#[command(name = "umount.fuse.oxenfs", bin_name = "umount.fuse.oxenfs", version)]
pub struct UmountArgs {
    /// The mount point
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Unmount at once, from under those who use it too
    #[arg(short = 'l')]
    pub lazy: bool,

    /// Unmount at once, and end what waits for it
    #[arg(short = 'f')]
    pub force: bool,

    /// The mount namespace it is in: a process, or a file such as /proc/1/ns/mnt
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<PathBuf>,

    /// Has no effect: there is no /etc/mtab to write
    #[arg(short = 'n')]
    pub no_mtab: bool,

    /// Has no effect: a mount that cannot be taken away stays as it is
    #[arg(short = 'r')]
    pub read_only: bool,

    /// Has no effect
    #[arg(short = 'v')]
    pub verbose: bool,

    /// Has no effect: there is one type
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}

/// `oxenfs unmount`.
#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// The mount point
    pub dir: PathBuf,

    /// Commit what is staged before unmounting
    #[arg(long, requires = "message")]
    pub commit: bool,

    /// With --commit: the commit's message
    #[arg(short, long, value_name = "TEXT", requires = "commit")]
    pub message: Option<String>,

    /// With --commit: who commits
    #[command(flatten)]
    pub author: AuthorArgs,

    /// Give up waiting after this time, for example 30s or 5m, the commit included; the rest goes on in the background
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// Unmount at once; what the server does not have stays on this disk for the next mount
    #[arg(long, conflicts_with = "timeout")]
    pub detach: bool,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// Who commits.
#[derive(Debug, Default, Args)]
pub struct AuthorArgs {
    /// The author's name [default: from the Oxen configuration]
    #[arg(long, value_name = "NAME")]
    pub author: Option<String>,

    /// The author's address [default: from the Oxen configuration]
    #[arg(long, value_name = "ADDRESS")]
    pub email: Option<String>,
}

/// `oxenfs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only the mount at, or above, this directory
    pub dir: Option<PathBuf>,

    /// As JSON: an object with DIR, else a list
    #[arg(long)]
    pub json: bool,

    /// Again every second: on a terminal drawn in place, with the rate of the last minute; elsewhere when something has
    /// changed
    #[arg(long)]
    pub watch: bool,
}

/// `oxenfs log-level`.
#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// The mount point, or a directory on the mount
    pub dir: PathBuf,

    /// What is to be logged from now on: error, warn, info, debug, trace, or a list such as warn,oxenfs::oxen=debug
    /// [default: only show what is logged]
    pub level: Option<String>,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

const EVENTS_AFTER: &str = "\
One JSON object a line, until the mount's daemon ends: staged, unstaged, failed, conflict, committed, stalled, resumed.
docs/METRICS.md has them all.";

/// `oxenfs events`.
#[derive(Debug, Args)]
#[command(after_help = EVENTS_AFTER)]
pub struct EventsArgs {
    /// The mount point, or a directory on the mount
    pub dir: PathBuf,
}

/// `oxenfs metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Only the mount at, or above, this directory
    pub dir: Option<PathBuf>,

    /// Serve it at an address such as 127.0.0.1:9184, or unix:PATH, with /healthz and /readyz, instead of printing it
    #[arg(long, value_name = "ADDRESS", conflicts_with = "textfile")]
    pub listen: Option<String>,

    /// Write it to this file, in one step, instead of printing it: for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
}

/// `oxenfs doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Only the mount at, or above, this directory
    pub dir: Option<PathBuf>,

    /// The server to look at [default: those of the mounts; without mounts OXEN_SERVER, else the Oxen
    /// configuration's]
    #[arg(long, value_name = "URL", conflicts_with = "dir")]
    pub server: Option<String>,

    /// As a JSON list
    #[arg(long)]
    pub json: bool,
}

const REPAIR_AFTER: &str = "\
A mount that finds its record damaged is refused, and changes nothing. This puts what is whole of the record in order: all
files that it names are there again at the next mount, and are sent. Files on this disk that no record names any more show
in the mount under lost+found, read-only, each named after what is known of it: new, replaced or deleted. They are not sent
until you move or copy them out; remove those that you do not want. Nothing is destroyed: the damaged parts are kept. The
next mount compares every path with the server; what differs there in bytes that are here alone waits until you sync it.
Needs next to no room, can be ended at any time, and repeated.";

/// `oxenfs repair`.
#[derive(Debug, Args)]
#[command(after_help = REPAIR_AFTER)]
pub struct RepairArgs {
    /// The state directory, which the refusal names
    #[arg(value_name = "STATE")]
    pub state: PathBuf,

    /// Do it; without this only show it
    #[arg(long, short)]
    pub yes: bool,

    /// As a JSON object
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The mount point, or a directory on the mount to look below
    pub dir: PathBuf,

    /// As a JSON list
    #[arg(long)]
    pub json: bool,
}

const IMPORT_AFTER: &str = "\
As with cp -r, the sources go into DIR when that is a directory; else the one source gets that name. SRC/. means what
lies in SRC. A file that is there already is replaced in one step, directories are merged. Permissions and modification
times are kept; the files belong to you. Symbolic links are kept as links, and stay on this disk. Each file is there as
a whole or not at all, however the command ends.

Example:
  oxenfs import ~/labels ~/images /mnt/cats/";

/// `oxenfs import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_AFTER, override_usage = "oxenfs import [OPTIONS] <SRC>... <DIR>")]
pub struct ImportArgs {
    /// Files and directories, and last the directory on a mount that they go into
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

const RESTORE_AFTER: &str = "\
Directories mean all below them that was changed and not committed: what was added goes, what was removed comes back, and
what was modified is again as it was. What is dropped is kept on this disk until the next commit, for a week at most, and
makes way when room is short (--spool-limit); --undo brings it back, as long as nothing else was done there. Symbolic
links and empty directories stay, and so does what others staged in a workspace that is shared.

Examples:
  oxenfs restore /mnt/cats/labels
  oxenfs restore --source release --yes /mnt/cats/labels/7.txt
  oxenfs restore --undo /mnt/cats/labels";

/// `oxenfs restore`.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_AFTER)]
pub struct RestoreArgs {
    /// Files and directories on a mount [default, with --undo: what the last restore dropped in the mount at .]
    #[arg(value_name = "PATH", required_unless_present = "undo")]
    pub paths: Vec<PathBuf>,

    /// To what a branch or a commit has [default: the commit that the mount stands on]
    #[arg(long, value_name = "COMMIT|BRANCH", conflicts_with = "undo")]
    pub source: Option<String>,

    /// Only unstage: what is here stays, and is not staged again until it is written, or named to oxenfs sync
    #[arg(long, conflicts_with_all = ["source", "undo"])]
    pub staged: bool,

    /// Bring back what a restore dropped
    #[arg(long)]
    pub undo: bool,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

const WARM_AFTER: &str = "\
Directories mean all below them. Many small files come in one request where the server can do that. What is in the cache
already is not fetched again, so a command that was ended goes on when it is repeated. All of it has to fit into the cache
(--cache-limit of the mount); what is fetched later may take its place.

Examples:
  oxenfs warm /mnt/cats/images
  find /mnt/cats -name '*.json' | oxenfs warm -f -
  oxenfs warm --check /mnt/cats/images && train /mnt/cats/images";

/// `oxenfs warm`.
#[derive(Debug, Args)]
#[command(after_help = WARM_AFTER)]
pub struct WarmArgs {
    /// Files and directories on a mount
    #[arg(value_name = "PATH", required_unless_present = "list")]
    pub paths: Vec<PathBuf>,

    /// A file with more of them, one a line; - for standard input
    #[arg(short = 'f', long, value_name = "LIST")]
    pub list: Option<PathBuf>,

    /// Fetch nothing: read what is in the cache, and fail if anything is not there or was altered
    #[arg(long, conflicts_with = "evict")]
    pub check: bool,

    /// Remove it from the cache
    #[arg(long)]
    pub evict: bool,
}

/// `oxenfs sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Mount points, or files and directories on a mount
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Give up waiting after this time, for example 30s or 5m; staging goes on
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// State directories, or where they were mounted; none: each that owes anything and has no mount
    #[arg(value_name = "STATE")]
    pub states: Vec<PathBuf>,

    /// Give up after this time, for example 30s or 5m; what is left is safe on this disk, and the exit code is 3
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// A file that holds the token and nothing else, as of `mount`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// What is logged to standard error: error, warn, info, debug, trace [default: $OXENFS_LOG, else warn]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,

    /// Say what was done as a JSON array on standard output
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// As of `mount`: NAMESPACE/NAME, a whole URL, or oxen://NAMESPACE:NAME
    pub repo: String,

    /// An empty directory to mount on [default: one that is made for it; the command has it in $OXENFS_DIR]
    #[arg(value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,

    /// The server, as of `mount`
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// The branch, as of `mount`
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,

    /// The workspace, as of `mount`
    #[arg(long, value_name = "NAME")]
    pub workspace: Option<String>,

    /// Mount this directory of the repository
    #[arg(long, value_name = "PATH")]
    pub subdir: Option<String>,

    /// Make the repository when it is not there
    #[arg(long)]
    pub create: bool,

    /// A file that holds the token and nothing else, as of `mount`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// More options of `mount`, as in /etc/fstab: settle=5s,cache-limit=20G
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,

    /// Commit what the command wrote, if it ends well
    #[arg(long, requires = "message")]
    pub commit: bool,

    /// With --commit: the commit's message
    #[arg(short, long, value_name = "TEXT", requires = "commit")]
    pub message: Option<String>,

    /// With --commit: who commits
    #[command(flatten)]
    pub author: AuthorArgs,

    /// What becomes of what a command wrote that failed: keep has it staged and not committed, discard drops it here and on
    /// the server, commit commits it all the same
    #[arg(long, value_enum, value_name = "WHAT", default_value = "keep")]
    pub on_fail: OnFail,

    /// How long what the command wrote may take to be staged and committed, for example 30s or 5m; what is left is safe on
    /// this disk, and the exit code is 3
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// Say how it ended as a JSON object on standard output, after what the command said there
    #[arg(long)]
    pub json: bool,

    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// What becomes of what a command wrote that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnFail {
    /// It is staged and not committed.
    Keep,
    /// It is dropped, here and on the server.
    Discard,
    /// It is committed all the same.
    Commit,
}

/// `oxenfs commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// The mount point
    pub dir: PathBuf,

    /// The commit's message
    #[arg(short, long, value_name = "TEXT")]
    pub message: String,

    /// Who commits.
    #[command(flatten)]
    pub author: AuthorArgs,

    /// Commit to this branch [default: the mount's]
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,

    /// What becomes of files that others changed too: the commit fails and changes nothing, yours go over theirs, theirs
    /// take the place of yours, or yours go beside theirs under another name
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub on_conflict: OnConflict,

    /// Give up waiting after this time, for example 30s or 5m; staging goes on
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// What a commit does with files that others changed too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnConflict {
    /// It fails, and changes nothing.
    #[default]
    Fail,
    /// Yours go over theirs.
    Ours,
    /// Theirs take the place of yours.
    Theirs,
    /// Yours go beside theirs.
    KeepBoth,
}

/// `oxenfs refresh`.
#[derive(Debug, Args)]
pub struct RefreshArgs {
    /// The mount point
    pub dir: PathBuf,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

const CHECK_IGNORE_AFTER: &str = "\
New files that a pattern of .oxenignore at the repository's root matches, or one of mount --ignore, stay on this disk. What
the branch has is never ignored, nor is .oxenignore itself. Paths need not be there; one that ends with / is taken for a
directory.

Exit codes: 0 some of the paths are ignored; 1 none is, or it is not known; 2 wrong usage.

Examples:
  oxenfs check-ignore -v /mnt/cats/scratch/a.tmp
  find /mnt/cats -type f | xargs -d '\\n' oxenfs check-ignore";

/// `oxenfs check-ignore`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_IGNORE_AFTER)]
pub struct CheckIgnoreArgs {
    /// Files and directories on a mount
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Before each path print where the pattern is from, its line and the pattern
    #[arg(long, short)]
    pub verbose: bool,

    /// As a JSON list, of all paths
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs resolve`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("choice").required(true).args(["ours", "theirs", "keep_both"])))]
pub struct ResolveArgs {
    /// Files in conflict, or directories: all below
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// What is here goes over what the branch has
    #[arg(long)]
    pub ours: bool,

    /// What the branch has takes the place of what is here
    #[arg(long)]
    pub theirs: bool,

    /// The branch's version keeps the name, and what is here goes beside it under another
    #[arg(long)]
    pub keep_both: bool,

    /// Say what was done as a JSON list on standard output
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs show`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("wanted").required(true).args(["ours", "theirs", "base"])))]
pub struct VersionArgs {
    /// A file on a mount
    pub path: PathBuf,

    /// What is here
    #[arg(long)]
    pub ours: bool,

    /// What the branch has
    #[arg(long)]
    pub theirs: bool,

    /// What both began with
    #[arg(long)]
    pub base: bool,
}

/// `oxenfs repo ...`.
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Make a repository
    Create(CreateArgs),
}

/// `oxenfs repo create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// NAMESPACE/NAME, or a whole URL
    pub repo: String,

    /// The server [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// Its description
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,

    /// Everybody may read it
    #[arg(long)]
    pub public: bool,

    /// Where the server keeps its content: local or s3:BUCKET/PREFIX
    #[arg(long, value_name = "WHERE")]
    pub storage: Option<String>,

    /// A file for its first commit; may be given several times
    #[arg(long = "file", value_name = "SRC")]
    pub files: Vec<PathBuf>,

    /// Who makes the first commit.
    #[command(flatten)]
    pub author: AuthorArgs,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show each setting that a mount would have, and where it is from
    Show(ShowArgs),
}

const SHOW_AFTER: &str = "\
What the command line says goes before the environment, that before ~/.config/oxenfs/config.toml, that before
/etc/oxenfs/config.toml. In a file, [repository.\"NAMESPACE/NAME\"] goes before [server.\"URL\"], and that before
[defaults]. OXENFS_CONFIG names one file to be read instead of both.";

/// `oxenfs config show`.
#[derive(Debug, Args)]
#[command(after_help = SHOW_AFTER)]
pub struct ShowArgs {
    /// For a mount of this repository: NAMESPACE/NAME, or a whole URL [default: what holds for any]
    pub repo: Option<String>,

    /// On this server
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// As a JSON object
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// A mount, or a file or directory in one; or a repository: NAMESPACE/NAME, a whole URL, or
    /// oxen://NAMESPACE:NAME[@REVISION][/PATH]
    #[arg(value_name = "DIR|PATH|REPO")]
    pub target: PathBuf,

    /// Show so many commits at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub number: u32,

    /// The branch, or a commit [default: what the mount shows; of a repository, main]
    #[arg(long, alias = "revision", value_name = "NAME")]
    pub branch: Option<String>,

    /// The server of a repository [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs branches`, and `oxenfs workspaces` without more.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// NAMESPACE/NAME, or a whole URL
    pub repo: String,

    /// The server [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

const WORKSPACES_AFTER: &str = "\
Yours on this machine come first. At most twenty are asked what is staged in them.

Examples:
  oxenfs workspaces ox/cats
  oxenfs workspaces delete ox/cats team-b
  oxenfs workspaces prune ox/cats --older 30d --yes";

/// `oxenfs workspaces`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = WORKSPACES_AFTER)]
pub struct WorkspacesArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Option<WorkspacesCommand>,

    /// Which to list.
    #[command(flatten)]
    pub look: Option<LookArgs>,
}

/// `oxenfs workspaces ...`.
#[derive(Debug, Subcommand)]
pub enum WorkspacesCommand {
    /// Delete a workspace, with what is staged in it
    Delete(DeleteWorkspaceArgs),
    /// Delete those of yours that are empty and old
    Prune(PruneWorkspacesArgs),
}

/// `oxenfs workspaces delete`.
#[derive(Debug, Args)]
pub struct DeleteWorkspaceArgs {
    /// NAMESPACE/NAME, or a whole URL
    pub repo: String,

    /// The workspace
    pub name: String,

    /// The server [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// Also if changes are staged in it and not committed
    #[arg(long)]
    pub force: bool,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs workspaces prune`.
#[derive(Debug, Args)]
pub struct PruneWorkspacesArgs {
    /// NAMESPACE/NAME, or a whole URL
    pub repo: String,

    /// The server [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// Those that were made, and committed last, so long ago, for example 30d
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub older: Duration,

    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// `oxenfs man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// A command, such as mount or repo create [default: the page about all of them]
    pub command: Vec<String>,

    /// Write all pages into this directory, and print their names
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// `oxenfs dev-server`.
#[derive(Debug, Args)]
pub struct DevServerArgs {
    /// Where it keeps everything; made when it is not there
    pub dir: PathBuf,

    /// Address and port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,

    /// The protocol to speak
    #[arg(long, value_name = "NAME")]
    pub dialect: Option<String>,

    /// Demand the token that this environment variable holds
    #[arg(long, value_name = "VARIABLE")]
    pub token_env: Option<String>,

    /// What is logged to standard error: error, warn, info, debug, trace [default: $OXENFS_LOG, else info]; debug has a
    /// line for each request
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

fn time(text: &str) -> Result<Duration, &'static str> {
    units::parse_duration(text).ok_or("not a time such as 30s or 5m")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        super::Cli::command().debug_assert();
        super::HelperArgs::command().debug_assert();
        super::UmountArgs::command().debug_assert();
    }
}

/// What `oxenfs gather --help` ends with.
const GATHER_AFTER: &str = "Examples:
  oxenfs gather ox/cats --from job-7-0 --from job-7-1 -m \"Batch 7\"
  oxenfs gather ox/cats --list workers.txt -m \"Batch 7\" --delete-workspaces

Exit codes: 0 all of it is in the branch; 1 nothing was committed; 2 wrong usage.";

/// `oxenfs gather`.
#[derive(Debug, Args)]
pub struct GatherArgs {
    /// NAMESPACE/NAME, or a whole URL
    pub repo: String,

    /// A worker's workspace; repeated, in the order in which --on-collision counts them
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    pub from: Vec<String>,

    /// A file that names workspaces, one a line; - for standard input
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,

    /// The commit's message
    #[arg(short, long, value_name = "TEXT")]
    pub message: String,

    /// Who commits.
    #[command(flatten)]
    pub author: AuthorArgs,

    /// The branch to commit to
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub branch: String,

    /// What becomes of a path of which two workers made different things: nothing is committed, or the one has it that is
    /// named first, or last
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub on_collision: OnCollision,

    /// What becomes of a path that the branch changed since the worker began: nothing is committed, the worker's goes over
    /// it, or the branch's stays
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub on_conflict: OnBranchConflict,

    /// Delete the workers' workspaces when the commit was found whole, but for those in which something was staged meanwhile
    #[arg(long)]
    pub delete_workspaces: bool,

    /// The server [default: $OXEN_SERVER, else the default host of the Oxen configuration]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// Say what was done as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// What is gathered of a path of which two workers made different things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnCollision {
    /// Nothing of all.
    #[default]
    Fail,
    /// What the worker has that is named first.
    First,
    /// What the worker has that is named last.
    Last,
}

/// What is gathered of a path that the branch changed too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnBranchConflict {
    /// Nothing of all.
    #[default]
    Fail,
    /// The worker's goes over the branch's.
    Ours,
    /// The branch's stays.
    Theirs,
}
