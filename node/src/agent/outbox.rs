//! What waits to be sent to the agent.
//!
//! Control messages go first, then credit, then stdin, so that a signal overtakes a full stdin. Nobody
//! but the writer thread ever blocks on the socket. All of it is bounded: control by [`MAX_CONTROL`],
//! credit is a number, stdin is one frame.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rundlet_protocol::frame::{self, Frame, MAX_DATA};
use rundlet_protocol::{Request, WINDOW};

use super::{AgentError, Stream};

/// Control messages that may wait for a guest that does not read.
const MAX_CONTROL: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    control: VecDeque<Vec<u8>>,
    stdout_credit: u32,
    stderr_credit: u32,
    /// One encoded frame of stdin, data or end.
    stdin: Option<Vec<u8>>,
    /// Bytes of stdin that the guest has room for.
    allowance: u32,
    closed: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                control: VecDeque::new(),
                stdout_credit: 0,
                stderr_credit: 0,
                stdin: None,
                allowance: WINDOW,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Queues a request.
    pub(super) fn request(&self, request: &Request) -> Result<(), AgentError> {
        let mut bytes = Vec::new();
        frame::write_message(&mut bytes, request)?;
        let mut state = self.lock();
        if state.closed {
            return Err(AgentError::Closed);
        }
        if state.control.len() >= MAX_CONTROL {
            return Err(AgentError::Backlog);
        }
        state.control.push_back(bytes);
        self.changed.notify_all();
        Ok(())
    }

    /// Tells the guest that `bytes` of an output stream have been passed on.
    pub(super) fn give_credit(&self, stream: Stream, bytes: u32) {
        let mut state = self.lock();
        let credit = match stream {
            Stream::Stderr => &mut state.stderr_credit,
            Stream::Stdin | Stream::Stdout => &mut state.stdout_credit,
        };
        *credit = credit.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// The guest has taken `bytes` of stdin.
    pub(super) fn take_credit(&self, bytes: u32) -> Result<(), AgentError> {
        let mut state = self.lock();
        let allowance = state.allowance.checked_add(bytes);
        state.allowance = allowance.filter(|sum| *sum <= WINDOW).ok_or_else(|| {
            AgentError::Protocol("it gave more credit for stdin than it was sent".into())
        })?;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until stdin may be sent; how many bytes, or `None` once the connection is over.
    pub(super) fn stdin_room(&self) -> Option<usize> {
        let state = self
            .changed
            .wait_while(self.lock(), |state| {
                !state.closed && (state.stdin.is_some() || state.allowance == 0)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let room = usize::try_from(state.allowance).unwrap_or(MAX_DATA);
        (!state.closed).then_some(room.min(MAX_DATA))
    }

    /// Queues bytes of stdin, not more than [`Outbox::stdin_room`] said; empty is the end of stdin.
    pub(super) fn stdin(&self, bytes: &[u8]) -> Result<(), AgentError> {
        let mut encoded = Vec::new();
        if bytes.is_empty() {
            Frame::Eof(Stream::Stdin).encode(&mut encoded)?;
        } else {
            Frame::Data(Stream::Stdin, bytes).encode(&mut encoded)?;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut state = self.lock();
        state.allowance = state.allowance.saturating_sub(length);
        state.stdin = Some(encoded);
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing more will be sent; wakes everybody who waits.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Sends what is queued until the outbox is closed or the connection breaks.
    pub(super) fn pump(&self, mut to: impl Write) {
        while let Some(bytes) = self.next() {
            if let Err(error) = to.write_all(&bytes) {
                log::debug!("agent connection: sending failed: {error}");
                self.close();
                return;
            }
        }
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(bytes) = state.next() {
                self.changed.notify_all();
                return Some(bytes);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(control) = self.control.pop_front() {
            return Some(control);
        }
        let credit = if self.stdout_credit > 0 {
            Frame::Credit(Stream::Stdout, std::mem::take(&mut self.stdout_credit))
        } else if self.stderr_credit > 0 {
            Frame::Credit(Stream::Stderr, std::mem::take(&mut self.stderr_credit))
        } else {
            return self.stdin.take();
        };
        let mut bytes = Vec::new();
        credit.encode(&mut bytes).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_overtake_stdin_and_credit_is_summed() {
        let outbox = Outbox::new();
        outbox.stdin(b"abc").unwrap();
        outbox.give_credit(Stream::Stdout, 5);
        outbox.give_credit(Stream::Stdout, 6);
        outbox.request(&Request::Signal { signal: 2 }).unwrap();
        let mut sent = Vec::new();
        for _ in 0..3 {
            sent.extend(outbox.next().unwrap());
        }
        let mut rest = sent.as_slice();
        let mut frames = Vec::new();
        while let Some((frame, used)) = frame::decode(rest).unwrap() {
            frames.push(format!("{frame:?}"));
            rest = &rest[used..];
        }
        assert!(frames[0].starts_with("Control"), "{frames:?}");
        assert_eq!(
            frames[1..],
            ["Credit(Stdout, 11)", "Data(Stdin, [97, 98, 99])"]
        );
    }

    #[test]
    fn a_guest_that_reads_nothing_is_not_kept_for_without_limit() {
        let outbox = Outbox::new();
        let signal = Request::Signal { signal: 2 };
        let mut last = Ok(());
        for _ in 0..=MAX_CONTROL {
            last = outbox.request(&signal);
        }
        assert!(matches!(last, Err(AgentError::Backlog)));
    }

    #[test]
    fn stdin_stops_at_the_window_and_goes_on_with_credit() {
        let outbox = Outbox::new();
        let mut sent = 0;
        while sent < WINDOW as usize {
            let room = outbox.stdin_room().unwrap();
            outbox.stdin(&vec![0; room]).unwrap();
            outbox.next().unwrap();
            sent += room;
        }
        assert_eq!(sent, WINDOW as usize);
        assert!(matches!(
            outbox.take_credit(WINDOW + 1),
            Err(AgentError::Protocol(_))
        ));
        outbox.take_credit(7).unwrap();
        assert_eq!(outbox.stdin_room(), Some(7));
        outbox.close();
        assert_eq!(outbox.stdin_room(), None);
    }
}
