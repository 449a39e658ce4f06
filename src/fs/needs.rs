//! Needs: an operation is run again until it lacks nothing.

use super::fetching::Who;
use super::{Fs, FsError, Need, Op, Stop, borrowed};

impl Fs {
    /// Carries an operation through: gets what it needs until it is done.
    ///
    /// # Errors
    /// The operation's own, or that a need could not be met.
    pub async fn run<T>(&self, mut stopped: Need, op: impl Fn(&Fs) -> Op<T>) -> Result<T, FsError> {
        loop {
            self.satisfy(stopped).await?;
            match op(self) {
                Ok(out) => return Ok(out),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Need(need)) => stopped = need,
            }
        }
    }

    /// Gets one thing that an operation needs.
    ///
    /// # Errors
    /// From the server for listings and bytes, from the local filesystem for spool files.
    pub async fn satisfy(&self, need: Need) -> Result<(), FsError> {
        match need {
            Need::List(dir) => self.list(dir, Who::Program).await,
            Need::ListAll(dir) => self.list_all(dir).await,
            Need::Fetch(ino) if self.is_being_borrowed(ino) => {
                tokio::time::sleep(borrowed::SOON).await;
                Ok(())
            }
            Need::Fetch(ino) => self.fetch(ino, false).await.map(drop),
            Need::Own(ino) => self.own(ino).await,
            Need::Empty(ino) => self.blocking(move |fs| fs.empty(ino)).await,
            Need::Look(ino) => self.blocking(move |fs| Ok(fs.look_at(ino)?)).await,
            Need::LookIn(dir) => self.blocking(move |fs| Ok(fs.look_in(dir)?)).await,
        }
    }
}
