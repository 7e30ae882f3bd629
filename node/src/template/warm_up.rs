//! The command that runs in a sandbox before it becomes a template. It is ready when it has ended well,
//! or when it prints its ready line; then it lives on, in every clone.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use rundlet_protocol::{ExecSpec, ExitStatus};

use super::WarmUp;
use crate::agent::{CommandEvent, Streams};
use crate::run::watch::{News, Watch};
use crate::run::{Cause, signals};
use crate::sandbox::{Tail, printable};

/// Longest line that is looked at in one piece.
const MAX_LINE: usize = 4096;

/// Runs it until it is ready; `said` gets its last lines.
pub(super) fn run(watch: &mut Watch<'_>, warm_up: &WarmUp, said: &Tail) -> Result<(), Cause> {
    let limit = Duration::from_secs(warm_up.timeout_s);
    let deadline = Instant::now() + limit;
    let connection = watch.sandbox.connect()?;
    let tell = watch.teller();
    let streams = streams(warm_up, said, tell.clone());
    // Held until it is ready: dropped earlier, it would be the end of a command that is not to stay.
    let _command = connection.exec(exec_spec(warm_up), streams, move |event| {
        tell(News::Command(event));
    })?;
    loop {
        match watch.next(Some(deadline)) {
            None => return Err(Cause::WarmUpTimeout(limit)),
            Some(News::ReadyLine) => return Ok(()),
            Some(News::Signal(signal)) if signals::asks_for_an_end(signal) => {
                return Err(Cause::Interrupted(signal));
            }
            Some(News::Signal(_)) => {}
            Some(News::Sandbox(event)) => watch.event(event)?,
            Some(News::Command(CommandEvent::Exited(status))) => return ended(warm_up, status),
            Some(News::Command(CommandEvent::Failed(failure))) => {
                return Err(Cause::Command(failure));
            }
            Some(News::Command(CommandEvent::Lost(error))) => {
                watch.hindsight()?;
                return Err(Cause::Agent(error));
            }
            Some(News::Command(_)) => {}
        }
    }
}

fn ended(warm_up: &WarmUp, status: ExitStatus) -> Result<(), Cause> {
    let awaited = warm_up.ready_line.is_some();
    if status == ExitStatus::Code(0) && !awaited {
        return Ok(());
    }
    Err(Cause::WarmUp { status, awaited })
}

fn streams(warm_up: &WarmUp, said: &Tail, tell: impl Fn(News) + Send + 'static) -> Streams {
    let awaited = warm_up.ready_line.clone();
    let watched = move |line: &[u8]| {
        if awaited.as_ref().is_some_and(|it| it.as_bytes() == line) {
            tell(News::ReadyLine);
        }
    };
    Streams {
        stdin: None,
        stdout: Box::new(Lines::new(said.clone(), watched)),
        stderr: Box::new(Lines::new(said.clone(), |_: &[u8]| {})),
    }
}

fn exec_spec(warm_up: &WarmUp) -> ExecSpec {
    ExecSpec {
        argv: warm_up.argv.clone(),
        env: warm_up.env.clone(),
        cwd: warm_up.workdir.clone(),
        user: warm_up.user.clone(),
        tty: None,
        stdin: false,
        keep: warm_up.ready_line.is_some(),
    }
}

/// Takes a stream apart into lines, of which it keeps the last.
struct Lines<F> {
    line: Vec<u8>,
    said: Tail,
    each: F,
}

impl<F: FnMut(&[u8])> Lines<F> {
    fn new(said: Tail, each: F) -> Self {
        Self {
            line: Vec::new(),
            said,
            each,
        }
    }

    fn end_line(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        (self.each)(line);
        self.said.push(printable(line));
        self.line.clear();
    }
}

impl<F: FnMut(&[u8])> Write for Lines<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
                continue;
            }
            if self.line.len() == MAX_LINE {
                self.end_line();
            }
            self.line.push(byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F> Drop for Lines<F> {
    fn drop(&mut self) {
        // A last line without an end.
        if !self.line.is_empty() {
            self.said.push(printable(&self.line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_across_writes_and_long_ones_are_cut() {
        let said = Tail::default();
        let mut found = 0;
        let mut lines = Lines::new(said.clone(), |line: &[u8]| {
            found += usize::from(line == b"ready");
        });
        for part in ["not ready\nre", "ady\r\n", "xready\n", "\x1b[31m"] {
            lines.write_all(part.as_bytes()).unwrap();
        }
        let long = vec![b'x'; MAX_LINE + 1];
        lines.write_all(&long).unwrap();
        drop(lines);
        assert_eq!(found, 1);
        let said = said.last(10);
        assert_eq!(said[..3], ["not ready", "ready", "xready"]);
        assert!(said[3].starts_with("\\u{1b}[31mxxx"), "{}", said[3]);
        assert_eq!(said.len(), 5);
    }
}
