//! The two requests around a template: [`Agent::prepare`] before a guest is captured, [`Agent::renew`]
//! as the first thing that a clone hears.
//!
//! Both are one write and two replies, since the VMM and the agent let a client send ahead: a clone is
//! ready one round trip after its agent runs.

use std::io;
use std::time::{Duration, Instant};

use rundlet_protocol::frame::{self, FrameError};
use rundlet_protocol::{AGENT_PORT, Renewal, Reply, Request, VERSION};

use super::{Agent, AgentError, Until, agree, read_reply, unexpected};

#[cfg(test)]
mod tests;

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
}
