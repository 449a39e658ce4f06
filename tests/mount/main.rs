//! The whole path, as a user has it: the real binary, the kernel's FUSE, a real server; each test ends by comparing
//! what was committed with what was written, byte for byte.
//!
//! The server is the one that `scripts/oxen-server install` built, or the one at `OXENFS_TEST_SERVER_URL`. The tests
//! look at it over HTTP alone, with a client of their own. `OXENFS_TEST_FULL=1` makes the datasets large.

mod ahead;
mod bad_ways;
mod blocks;
mod borrowed;
mod clocks;
mod commits;
mod configured;
mod copies;
mod crashes;
mod cuts;
mod damage;
mod dataset;
mod differences;
mod direct;
mod disks;
mod exits;
mod faults;
mod gateway;
mod http;
mod import;
mod listings;
mod logs;
mod mapped;
mod matrix;
mod memory;
mod metadata;
mod mounted;
mod passthrough;
mod posix;
mod programs;
mod proxy;
mod ranges;
mod refusals;
mod restores;
mod revisions;
mod run;
mod scripted;
mod send;
mod server;
mod service;
mod shown;
mod silence;
mod soak;
mod sparse;
mod suites;
mod tables;
mod team;
mod together;
mod tools;
mod transcripts;
mod trust;
mod twin;
mod umounts;
mod uncached;
mod verified;
mod waits;
mod wanted_states;
mod warm;
mod watched;
mod which;
mod words;
mod workspaces;
