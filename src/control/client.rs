//! The command's end of the control socket. Blocking: the command has nothing else to do.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Event, Request};

/// A line from the daemon longer than this is no event: the longest, a status, is some tens of kilobytes.
const LINE_LIMIT_BYTES: usize = 16 << 20;
/// How long a daemon may take to read what it is sent, where that is more than a socket holds.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It ended, or closed the connection, before its last event.
    #[error("the mount's daemon ended before it answered")]
    HungUp,
    /// It does not read what it is asked.
    #[error("the mount's daemon does not answer")]
    Silent,
    /// What it said is no event: another version of oxenfs, say.
    #[error("the mount's daemon gave an answer that this oxenfs does not understand")]
    NotUnderstood,
    /// The socket failed.
    #[error("the mount's daemon cannot be reached: {0}")]
    Io(#[from] io::Error),
}

/// A connection with one request on it. Dropping it hangs up, which withdraws the request.
pub struct Client {
    stream: UnixStream,
    /// Bytes received that are not a whole line yet.
    partial: Vec<u8>,
}

/// What came within the time that the caller had.
#[derive(Debug)]
pub enum Next {
    /// An event.
    Event(Event),
    /// Nothing yet.
    Nothing,
}

impl Client {
    /// Sends `request` over a fresh connection (`mount::state_dir::connect_control`).
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn ask(mut stream: UnixStream, request: &Request) -> Result<Self, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        stream.write_all(&line).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::HungUp,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent,
            _ => ClientError::Io(error),
        })?;
        stream.set_write_timeout(None)?;
        Ok(Self { stream, partial: Vec::new() })
    }

    /// Ends the conversation, for everybody who holds the connection.
    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The next event, if it comes within `patience`.
    ///
    /// # Errors
    /// [`ClientError::HungUp`] at the end of the stream.
    pub fn next(&mut self, patience: Duration) -> Result<Next, ClientError> {
        let deadline = std::time::Instant::now() + patience;
        let mut buffer = [0; 64 << 10];
        let mut searched = 0;
        loop {
            if let Some(end) = self.partial[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=searched + end).collect();
                let event = serde_json::from_slice(&line).map_err(|_| ClientError::NotUnderstood)?;
                return Ok(Next::Event(event));
            }
            searched = self.partial.len();
            if searched > LINE_LIMIT_BYTES {
                return Err(ClientError::NotUnderstood);
            }
            // A timeout of zero would be refused, and mean "for ever".
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::HungUp),
                Ok(read) => self.partial.extend_from_slice(&buffer[..read]),
                // A signal: the caller looks whether it was meant for it.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Next::Nothing),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(Next::Nothing);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ClientError::HungUp),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(request: &Request) -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::ask(ours, request).unwrap(), theirs)
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn events_arrive_whole_however_they_are_cut() {
        let (mut client, mut daemon) = pair(&Request::Unmount);
        daemon.write_all(b"{\"event\":\"do").unwrap();
        assert!(matches!(client.next(Duration::from_millis(5)), Ok(Next::Nothing)));
        daemon.write_all(b"ne\"}\n{\"event\":\"committed\",\"id\":null}\n{").unwrap();
        assert!(matches!(client.next(LONG), Ok(Next::Event(Event::Done))));
        assert!(matches!(client.next(LONG), Ok(Next::Event(Event::Committed { id: None }))));
        drop(daemon);
        assert!(matches!(client.next(LONG), Err(ClientError::HungUp)));
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        let (mut client, mut daemon) = pair(&Request::Status);
        daemon.write_all(b"hello\n").unwrap();
        assert!(matches!(client.next(LONG), Err(ClientError::NotUnderstood)));
    }
}
