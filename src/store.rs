//! Bytes and records on the local disk.
//!
//! | module | owns |
//! |---|---|
//! | [`disk`] | the way to the local filesystem, where a test can stand in between |
//! | [`spool`] | files with the bytes that the server lacks |
//! | [`cache`] | complete copies of content that it has, by hash |
//! | [`copy`], [`holes`] | copies of files, and their holes |
//! | `shards` | the directories that files are spread over |
//! | [`journal`] | the durable record of all that must survive a crash |

pub mod cache;
pub mod copy;
pub mod disk;
pub mod holes;
pub mod journal;
mod shards;
pub mod spool;
