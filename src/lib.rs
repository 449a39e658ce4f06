//! oxenfs mounts an Oxen workspace as a directory. Ordinary tools write datasets into it at the speed of the local
//! disk; what they wrote is staged on the server in the background, by hash where the server has the bytes already.
//!
//! # Vocabulary
//!
//! - **Spool**: bytes and names that the server does not have yet. **Workspace**: what is staged on the server.
//!   **Branch**: what is committed.
//! - **Base**: the commit the workspace stands on; immutable, listed lazily.
//! - **Generation**: one state of a file's bytes. A **sealed** generation does not change; a writer that meets one
//!   makes the next.
//! - **Live**: a file that programs may change past the daemon, without a request (passthrough).
//! - **Uncached**: a file that programs reach by requests and of which the kernel keeps nothing: whoever opened it first
//!   only writes.
//! - **Borrowed**: a file of the cache that the programs of one inode read past the daemon. Nobody else is given it until
//!   they have closed it; if one comes who writes, it leaves the cache and becomes the inode's own.
//! - **Block**: what of a large file is fetched and kept by itself. **Part**: the blocks of a file that are here while
//!   others are not.
//! - **Unseen**: a file of the spool that an earlier daemon left, and that nobody has looked at since the mount. It is
//!   looked at when it is first asked for or staged, and all of them behind the mount.
//! - **Ledger**: what base and workspace hold at each path that ever differed from the base.
//! - **Settled**: a path nobody has written to for its quiet period; only settled paths are staged, unless a barrier
//!   (`sync`, `commit`, `unmount`) asks for all of them.
//! - **Mark**: a small file beside the record that tells how far it was flushed. **Stray**: a spool file that no record
//!   names; it is set aside in `lost+found`. **Salvaged**: one that a repair shows there.
//! - **Ignored**: a file's name that a pattern of `.oxenignore` or `--ignore` matches: it is here, and has no path on the
//!   server.
//! - **Late**: a request that went without an answer and may be carried out yet, after newer ones.
//! - **Barrier**: somebody waits for what is pending; it follows a file that is renamed meanwhile.
//! - **Cut**: what a commit is to hold: a map of names to pinned content, made at one instant.
//! - **Drain**: bring every path to its wanted state.
//!
//! # Map
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | arguments, every printed word, progress |
//! | [`config`] | validated settings, credentials, state directories |
//! | [`mount`] | a mount's life: preflight, recover, serve, drain, unmount; the one place that wires concrete types |
//! | [`control`] | the daemon's socket: requests, answers, progress events |
//! | [`fuse`] | the kernel adapter and the one errno table |
//! | [`fs`] | what each POSIX operation means here; its owners (`tree`, `writeback`, `backing`, `handles`, `kernel`) and transactions (`txn`) |
//! | [`namespace`] | the inode tree in memory, no I/O |
//! | [`writeback`] | what is owed to the server: per path base, staged, wanted and the next step; which paths are due; no I/O |
//! | [`store`] | bytes and records on the local disk: spool, cache, parts of files, journal |
//! | [`stager`] | the write-back queue: hash, ask, send, confirm |
//! | [`workspace`] | the backend seam: trait, values, errors |
//! | [`oxen`] | its HTTP implementation, dialects, retry |
//! | [`activity`] | what a daemon does: counts for whoever watches it, events for whoever follows it |
//! | [`metrics`] | what is measured, as text for Prometheus, and over HTTP |
//! | [`log`] | the log: where its lines go, what is let through, and that all of it is safe to show |
//! | [`sync`] | locks under which there is memory work alone |
//! | [`report`] | values that people are shown, and that several layers count and pass on |
//! | [`hash`], [`id`], [`path`] | content hashes; numbers that name things; names and paths that are valid once built |
//! | [`count`], [`table`], [`calendar`] | counts that must not be wrong; very many things by number; dates |
//! | [`dev_server`] | an embedded Oxen-compatible server for trying and for tests |
//!
//! # Directions
//!
//! Each module names those on its line and no others, and only ones that have their line below: there is no circle.
//!
//! ```text
//! cli ▸ activity config control dev_server fs log metrics mount path report store workspace
//! mount ▸ activity calendar config control fs fuse hash log metrics namespace oxen path report stager store sync workspace
//! metrics ▸ activity config control log report
//! control ▸ activity path report
//! fuse ▸ fs namespace path workspace
//! stager ▸ activity count fs hash log namespace path store workspace writeback
//! fs ▸ count hash log namespace path report store sync workspace writeback
//! store ▸ count hash id namespace path sync workspace writeback
//! writeback ▸ count hash namespace path report sync table workspace
//! namespace ▸ count hash id path table workspace
//! oxen ▸ activity config hash log path workspace
//! dev_server ▸ calendar hash path
//! config ▸ hash log path
//! workspace ▸ hash path
//! activity ▸ calendar
//! log ▸ calendar
//! calendar ▸
//! count ▸
//! hash ▸
//! id ▸
//! path ▸
//! report ▸
//! sync ▸
//! table ▸
//! ```
//!
//! Within a folder there is no circle either, but in the test server. Only `fuse` names `fuser`; only `oxen` names
//! `reqwest`; only `dev_server` and `metrics` name `axum`; only `metrics` names `prometheus_client`; only `log` names
//! `tracing_subscriber`; only `cli` names `clap`, and prints. `namespace` and `writeback` name neither files nor a
//! runtime. `tests/cli/directions.rs` reads all of it from the syntax of `src`, and this table from here.

pub mod activity;
pub mod calendar;
pub mod cli;
pub mod config;
pub mod control;
pub mod count;
pub mod dev_server;
pub mod fs;
pub mod fuse;
pub mod hash;
pub mod id;
pub mod log;
pub mod metrics;
pub mod mount;
pub mod namespace;
pub mod oxen;
pub mod path;
pub mod report;
pub mod stager;
pub mod store;
pub mod sync;
pub mod table;
pub mod workspace;
pub mod writeback;
