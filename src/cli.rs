//! The commands: what a person types, and every word they read in answer.
//!
//! Each command is a function that returns its exit code or a [`Failure`]; only [`main`] prints failures.

#![allow(clippy::print_stdout)]

mod args;
mod asking;
mod check_ignore;
mod config;
mod dev_server;
mod diff;
mod doctor;
mod done;
mod events;
mod failure;
mod find;
mod follow;
mod gather;
mod history;
mod import;
mod interrupt;
mod log_level;
mod man;
mod metrics;
mod mount;
mod output;
mod progress;
mod repair;
mod repo;
mod resolve;
mod restore;
mod run;
mod seams;
mod send;
mod status;
mod sync;
mod umount;
mod unit;
mod unmount;
mod vigil;
mod warm;
mod watch;
mod workspaces;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ContextValue;
use clap::{CommandFactory, Parser};

pub use failure::Failure;
pub use seams::{NewRepo, Place};

use crate::config::Environment;
use crate::log;
use args::{Cli, Command, HelperArgs, UmountArgs};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Past a limit on the size of files a write then fails, and the file's owner is told.
    // SAFETY: sets what a signal does, before there are other threads.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let arguments: Vec<_> = std::env::args_os().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    let environment = Environment::of_process();
    let called = called.and_then(OsStr::to_str);
    let umount = called.filter(|called| umount::NAMES.contains(called));
    let outcome = match called {
        Some("mount.oxenfs" | "mount.fuse.oxenfs") => {
            HelperArgs::try_parse_from(&arguments).map(|args| mount::helper(args, &environment))
        }
        Some(called) if umount.is_some() => {
            UmountArgs::try_parse_from(&arguments).map(|args| umount::helper(called, args, &environment))
        }
        _ => Cli::try_parse_from(&arguments).map(|cli| dispatch(cli, &environment)),
    };
    let exit = match outcome {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => {
            output::note_exact(&failure);
            failure.exit
        }
        Err(usage) => {
            let exit = u8::try_from(usage.exit_code()).unwrap_or(failure::USAGE);
            // As umount(8) has it.
            let exit = if umount.is_some() && exit != 0 { failure::FAILED } else { exit };
            if usage.use_stderr() {
                output::note_exact(without_commands(usage).render());
                return ExitCode::from(exit);
            }
            // Help and version are no errors and go to standard output; who closed that does not want them.
            let _ = usage.print();
            exit
        }
    };
    ExitCode::from(exit)
}

/// The error with every argument in it as text: clap takes some sequences of a terminal out, and leaves the rest. Also
/// without colours, which could not be told from what an argument brings.
fn without_commands(mut usage: clap::Error) -> clap::Error {
    let safe = |value: &ContextValue| match value {
        ContextValue::String(text) => Some(ContextValue::String(log::printable(text).into_owned())),
        ContextValue::Strings(texts) => {
            Some(ContextValue::Strings(texts.iter().map(|text| log::printable(text).into_owned()).collect()))
        }
        _ => None,
    };
    let replaced: Vec<_> = usage.context().filter_map(|(kind, value)| Some((kind, safe(value)?))).collect();
    for (kind, value) in replaced {
        usage.insert(kind, value);
    }
    usage
}

fn dispatch(cli: Cli, environment: &Environment) -> Result<u8, Failure> {
    let state_dir = cli.state_dir.or_else(|| environment.settings.get("state-dir").map(PathBuf::from));
    let find = || find::Finder::new(state_dir.as_deref(), environment);
    match cli.command {
        Command::Mount(args) => mount::mount(*args, state_dir, environment),
        Command::Unmount(args) => unmount::unmount(args, &find()?, environment),
        Command::Status(args) => status::status(args, &find()?),
        Command::Diff(args) => diff::diff(args, &find()?),
        Command::Doctor(args) => doctor::doctor(args, state_dir.as_deref(), environment),
        Command::Import(args) => import::import(args, &find()?),
        Command::Restore(args) => restore::restore(args, &find()?),
        Command::Warm(args) => warm::warm(args, &find()?),
        Command::Run(args) => run::run(*args, state_dir, environment),
        Command::Send(args) => send::send(args, &find()?, environment),
        Command::Sync(args) => sync::sync(args, &find()?),
        Command::Commit(args) => sync::commit(args, &find()?, environment),
        Command::Refresh(args) => resolve::refresh(args, &find()?),
        Command::CheckIgnore(args) => check_ignore::check_ignore(args, &find()?),
        Command::Resolve(args) => resolve::resolve(args, &find()?),
        Command::Show(args) => resolve::show(args, &find()?),
        Command::Repair(args) => repair::repair(args),
        Command::Config(args::ConfigCommand::Show(args)) => config::show(args, state_dir.as_deref(), environment),
        Command::Repo(args::RepoCommand::Create(args)) => repo::create(args, environment),
        Command::Branches(args) => workspaces::branches(args, environment),
        Command::Gather(args) => gather::gather(args, state_dir.as_deref(), environment),
        Command::Log(args) => history::log(args, &find()?, environment),
        Command::Workspaces(args) => workspaces::workspaces(args, state_dir.as_deref(), environment),
        Command::Events(args) => events::events(args, &find()?),
        Command::Metrics(args) => metrics::metrics(args, state_dir, environment),
        Command::LogLevel(args) => log_level::log_level(args, &find()?),
        Command::DevServer(args) => dev_server::serve(args, environment),
        Command::Man(args) => man::man(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "oxenfs", &mut script);
            output::verbatim(String::from_utf8_lossy(&script).trim_end())?;
            Ok(0)
        }
    }
}
