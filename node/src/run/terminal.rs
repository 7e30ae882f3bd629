//! Our terminal: its size, and raw mode for as long as the command owns it.

use std::io;

use rundlet_protocol::TtySize;
use rustix::termios::{self, OptionalActions, Termios};

/// For a command that wants a terminal while we have none.
const DEFAULT: TtySize = TtySize {
    rows: 24,
    columns: 80,
};

/// The size of the terminal on stdout, or on stdin.
pub(crate) fn size() -> TtySize {
    let size = termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TtySize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        _ => DEFAULT,
    }
}

/// Keys go to the command one by one, Ctrl-C included; dropped, the terminal is as it was. Does nothing
/// when stdin is no terminal.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Option<Termios>,
}

impl Raw {
    pub(crate) fn enter() -> Self {
        let before = termios::tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            if let Err(error) = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw) {
                log::warn!("the terminal stays in its mode: {error}");
            }
        }
        Self { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = termios::tcsetattr(io::stdin(), OptionalActions::Drain, before)
        {
            log::warn!("the terminal stays in raw mode: {error}");
        }
    }
}
