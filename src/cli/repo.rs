//! `oxenfs repo create`, `oxenfs branches`, `oxenfs workspaces`.

use super::args::{CreateArgs, LookArgs};
use super::failure::Failure;
use crate::config::Environment;

/// `oxenfs repo create`.
pub fn create(args: CreateArgs, environment: &Environment) -> Result<u8, Failure> {
    let _ = (args, environment);
    Err(Failure::new("not part of this build"))
}

/// `oxenfs branches`.
pub fn branches(args: LookArgs, environment: &Environment) -> Result<u8, Failure> {
    let _ = (args, environment);
    Err(Failure::new("not part of this build"))
}

/// `oxenfs workspaces`.
pub fn workspaces(args: LookArgs, environment: &Environment) -> Result<u8, Failure> {
    let _ = (args, environment);
    Err(Failure::new("not part of this build"))
}
