//! `oxenfs metrics`: what is measured of all mounts of a user, printed, served, or written for node_exporter.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::MetricsArgs;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder, at_once, connect_now};
use super::output::{note, verbatim};
use super::status;
use super::vigil::{self, Vigil};
use crate::config::{Address, ConfigError, Environment};
use crate::control::client::ClientError;
use crate::control::{Event, Measures, Request};
use crate::metrics::serve::{Listener, Look};
use crate::metrics::text;
use crate::mount::state_dir::Known;

/// `oxenfs metrics`.
pub fn metrics(args: MetricsArgs, state_dir: Option<PathBuf>, environment: &Environment) -> Result<u8, Failure> {
    let failed = || "cannot tell what is measured".to_owned();
    if let Some(address) = &args.listen {
        let wrong = |()| ConfigError::Invalid { what: "--listen", value: address.clone(), expected: Address::EXPECTED };
        let address = address.parse::<Address>().map_err(wrong).doing(failed)?;
        let environment = environment.clone();
        // Mounts come and go: they are looked up each time.
        let measure = move || {
            let measured = Finder::new(state_dir.as_deref(), &environment);
            measured.and_then(|finder| measured_of(&finder, args.dir.as_deref())).unwrap_or_default()
        };
        return serve(&address, Arc::new(measure)).doing(failed);
    }
    let finder = Finder::new(state_dir.as_deref(), environment)?;
    let text = text(measured_of(&finder, args.dir.as_deref()).doing(failed)?);
    match &args.textfile {
        None => verbatim(text.trim_end())?,
        Some(path) => write(path, &text).doing(|| format!("cannot write {}", quoted(path)))?,
    }
    Ok(0)
}

fn measured_of(finder: &Finder, dir: Option<&Path>) -> Result<Vec<Measures>, Failure> {
    let mut chosen: Vec<&Known> = finder.all().iter().collect();
    if let Some(dir) = dir {
        let real = find::real(dir)?;
        let Some(above) = finder.above(&real) else {
            return Err(Failure::new("no oxenfs mount is there").hint("oxenfs status lists the mounts"));
        };
        chosen.retain(|known| known.path == above.path);
    }
    let mut measured = at_once(&chosen, measure);
    // Of what is neither mounted nor owed there is nothing to tell; and of two states of one mount point, the living one.
    measured.retain(|measures| dir.is_some() || measures.answers || status::is_worth_telling(&measures.status));
    Ok(measured)
}

/// What the daemon tells, or, where none answers, what the state directory does.
fn measure(known: &Known) -> Measures {
    let asked = connect_now(known).and_then(|stream| {
        let Some(stream) = stream else { return Ok(None) };
        let mut vigil = Vigil::over(known, &stream);
        let mut client = vigil::asked(&vigil, stream, &Request::Measures)?;
        match vigil::next(&mut client, &mut vigil)? {
            Event::Measures(measures) => Ok(Some(*measures)),
            Event::Failed(failure) => Err(failure.into()),
            _ => Err(Failure::from(ClientError::NotUnderstood)),
        }
    });
    match asked {
        Ok(Some(measures)) => measures,
        Ok(None) | Err(_) => Measures {
            mountpoint: known.meta.identity.mountpoint.display().to_string(),
            status: status::look(known),
            ..Measures::default()
        },
    }
}

fn serve(address: &Address, look: Look) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    runtime.block_on(async {
        let refused = |error| {
            Failure::new(format_args!("cannot listen at {address}: {error}"))
                .hint("name another address, or see who listens: ss -tlnxp")
        };
        let listener = Listener::bind(address).map_err(refused)?;
        note(format_args!("serving at {}", listener.address().map_err(refused)?));
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(Failure::new)?;
        tokio::select! {
            served = listener.serve(look) => served.map_err(Failure::new)?,
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        Ok(0)
    })
}

/// In one step: node_exporter reads it at any moment, and as another user.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut name = path.file_name().ok_or_else(|| Failure::new("it is no file"))?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        Failure::new(error)
    })
}
