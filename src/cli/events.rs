//! `oxenfs events`.

use std::time::Duration;

use super::args::EventsArgs;
use super::failure::{Doing, Failure, quoted};
use super::find::{self, Finder};
use super::output::json;
use super::vigil::{self, Vigil};
use crate::activity::Happening;
use crate::control::client::{ClientError, Next};
use crate::control::{Event, Request};

/// How often it is looked whether a daemon that says nothing is still there: nothing may happen for days.
const TICK: Duration = Duration::from_secs(3600);

/// `oxenfs events`: a line of JSON for all that happens, until the daemon ends.
pub fn events(args: EventsArgs, finder: &Finder) -> Result<u8, Failure> {
    let failed = || format!("cannot follow {}", quoted(&args.dir));
    let (known, stream) = find::real(&args.dir).and_then(|dir| finder.running(&dir)).doing(failed)?;
    let mut vigil = Vigil::over(known, &stream);
    let mut client = vigil::asked(&vigil, stream, &Request::Events).doing(failed)?;
    let mut began = false;
    loop {
        // The first word has to come; after that there may be nothing to say for long.
        let event = match began {
            false => vigil::next(&mut client, &mut vigil).doing(failed)?,
            true => match client.next(TICK) {
                Ok(Next::Event(event)) => event,
                Ok(Next::Nothing) => continue,
                Err(ClientError::HungUp) => {
                    json(&Happening::Ended.now(), false)?;
                    return Ok(0);
                }
                Err(error) => return Err(error).doing(failed),
            },
        };
        match event {
            Event::Happened { what } => json(&what, false)?,
            Event::Failed(failure) => return Err(failure).doing(failed),
            _ => return Err(ClientError::NotUnderstood).doing(failed),
        }
        began = true;
    }
}
