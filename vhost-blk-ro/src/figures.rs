//! Who asks for figures gets them: a connection is answered with one line of JSON, and closed.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;

use crate::socket::{Error, Socket};
use crate::stats::Told;

/// All figures of a moment.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Sessions under way.
    pub sessions: usize,
    #[serde(flatten)]
    pub totals: Told,
}

/// Where they are asked for.
#[derive(Debug)]
pub struct Desk(Socket);

impl Desk {
    pub fn bind(path: &Path) -> Result<Self, Error> {
        Socket::bind(path).map(Self)
    }

    /// Answers whoever comes next. It does not wait for anybody: what fits into a new connection is there at once.
    pub fn answer(&self, figures: &Figures) -> io::Result<()> {
        let Some(connection) = self.0.accept()? else {
            return Ok(());
        };
        if let Err(error) = write(connection, figures) {
            log::debug!("figures were not taken: {error}");
        }
        Ok(())
    }
}

fn write(mut connection: UnixStream, figures: &Figures) -> io::Result<()> {
    connection.set_nonblocking(true)?;
    let mut line = serde_json::to_vec(figures)?;
    line.push(b'\n');
    connection.write_all(&line)
}

impl AsFd for Desk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
