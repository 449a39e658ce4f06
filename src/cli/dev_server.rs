//! `oxenfs dev-server`.

use tokio::signal::unix::{SignalKind, signal};

use super::args::DevServerArgs;
use super::failure::{Doing, Failure, quoted};
use super::output::{data, note};
use crate::config::{self, Environment};
use crate::dev_server::{Dialect, Options, Server};
use crate::log;

/// `oxenfs dev-server`: serves until it is told to end. Prints its URL once it listens, so that a script which asked
/// for port 0 can read it.
pub fn serve(args: DevServerArgs, environment: &Environment) -> Result<u8, Failure> {
    let failed = || format!("cannot serve {}", quoted(&args.dir));
    let options = options(&args).doing(failed)?;
    let filter = config::log_filter(args.log.as_deref(), environment).doing(failed)?;
    let _log = log::install(&filter, log::Destination::StandardError);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::new).doing(failed)?;
    runtime.block_on(until_told(options)).doing(failed)?;
    Ok(0)
}

fn options(args: &DevServerArgs) -> Result<Options, Failure> {
    let token = match &args.token_env {
        None => None,
        Some(name) => match std::env::var(name) {
            Ok(token) if !token.trim().is_empty() => {
                log::conceal(token.trim());
                Some(token.trim().to_owned())
            }
            _ => {
                let cause = format!("the environment variable {name} holds no token");
                return Err(Failure::usage(cause).hint(format_args!("export {name}, or leave out --token-env")));
            }
        },
    };
    let dialect = match args.dialect.as_deref() {
        None => Dialect::V0_65,
        Some(name) => name.parse().map_err(Failure::usage)?,
    };
    Ok(Options { data: std::path::absolute(&args.dir).map_err(Failure::new)?, listen: args.listen, dialect, token })
}

async fn until_told(options: Options) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::new)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::new)?;
    let server = Server::start(options).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Failure::new(error).hint("name another port, or 0 for any: --listen 127.0.0.1:0")
        }
        _ => Failure::new(error),
    })?;
    data(&server.url())?;
    note(format_args!("mount a repository from it: oxenfs mount ox/cats DIR --server {} --create", server.url()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}
