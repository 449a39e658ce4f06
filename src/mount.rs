//! To be written.

pub mod daemon;
pub mod preflight;
pub mod state_dir;
