//! `oxenfs dev-server`.

use super::args::DevServerArgs;
use super::failure::Failure;

/// `oxenfs dev-server`.
pub fn serve(args: DevServerArgs) -> Result<u8, Failure> {
    let _ = args;
    Err(Failure::new("not part of this build"))
}
