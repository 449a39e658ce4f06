//! Bytes and records on the local disk.
//!
//! | module | owns |
//! |---|---|
//! | [`disk`] | the way to the local filesystem, where a test can stand in between |
//! | [`listings`] | listings of directories of commits |
//! | [`parts`] | large files of which some blocks are here, by hash |
//! | [`spool`] | files with the bytes that the server lacks, and complete copies of those it has, by hash |
//! | [`journal`] | the durable record of all that must survive a crash |

pub mod disk;
pub mod journal;
pub mod listings;
pub mod parts;
pub mod spool;
