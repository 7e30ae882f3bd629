//! The two requests around a template: [`Agent::prepare`] before a guest is captured, [`Agent::renew`]
//! as the first thing that a clone hears.
//!
//! Both are one write and two replies, since the VMM and the agent let a client send ahead: a clone is
//! ready one round trip after its agent runs.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rundlet_protocol::frame::{self, FrameError};
use rundlet_protocol::{AGENT_PORT, Renewal, Reply, Request, VERSION};

use super::{Agent, AgentError, Until, agree, read_answer, read_reply, unexpected};

#[cfg(test)]
mod tests;

/// A guest that refuses does so at once; a reset that comes later is the VMM's own patience at its end
/// (ten seconds), and on a host where hundreds start at once the guest may still come.
const NO_REFUSAL: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 5000 });

impl Agent {
    /// Has the guest freeze its programs and write its scratch disk: what is captured next is a template.
    ///
    /// # Errors
    /// The agent cannot be reached or does not answer by `deadline`, or it refuses: nothing is frozen then.
    pub fn prepare(&self, deadline: Instant) -> Result<(), AgentError> {
        match self.ask(&Request::Prepare {}, "prepare", deadline)? {
            Reply::Prepared {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes the guest unlike every other clone of its template, then lets its programs run. How long that took in
    /// the guest, by the guest's word.
    ///
    /// # Errors
    /// A field of `renewal` cannot be used (nothing is sent then), the agent cannot be reached or does not
    /// answer by `deadline`, or a step failed in the guest. None of its programs has run then.
    pub fn renew(&self, renewal: &Renewal, deadline: Instant) -> Result<Duration, AgentError> {
        renewal.check()?;
        match self.ask(&Request::Renew(renewal.clone()), "renew", deadline)? {
            Reply::Renewed { took_us } => Ok(Duration::from_micros(took_us)),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(
        &self,
        request: &Request,
        name: &'static str,
        deadline: Instant,
    ) -> Result<Reply, AgentError> {
        let mut bytes = format!("CONNECT {AGENT_PORT}\n").into_bytes();
        frame::write_message(&mut bytes, &Request::Hello { version: VERSION })?;
        frame::write_message(&mut bytes, request)?;
        let answer = || {
            let stream = self.reach(&bytes, deadline)?;
            let mut timed = Until {
                stream: &stream,
                deadline,
            };
            agree(&read_reply(&mut timed)?)?;
            read_reply(timed)
        };
        match answer() {
            Ok(Reply::Failed(failure)) => Err(AgentError::Failed(failure)),
            Err(AgentError::NoAgent(error) | AgentError::Frame(FrameError::Io(error)))
                if error.kind() == io::ErrorKind::TimedOut =>
            {
                Err(AgentError::Late { request: name })
            }
            other => other,
        }
    }

    /// A connection on which the guest has been sent `bytes`.
    fn reach(&self, bytes: &[u8], deadline: Instant) -> Result<UnixStream, AgentError> {
        loop {
            let begun = Instant::now();
            let stream = self.open()?;
            let mut timed = Until {
                stream: &stream,
                deadline,
            };
            let sent = timed.write_all(bytes).map_err(AgentError::NoAgent);
            match sent.and_then(|()| read_answer(timed)) {
                Ok(()) => return Ok(stream),
                // The VMM gave up on a guest that is slow to run, before it passed anything on.
                Err(AgentError::NoAgent(error))
                    if error.kind() == io::ErrorKind::ConnectionReset
                        && begun.elapsed() >= NO_REFUSAL => {}
                Err(error) => return Err(error),
            }
        }
    }
}
