//! The command line.

use std::io::Read;
use std::os::fd::RawFd;
use std::path::Path;

use argh::FromArgs;

use crate::config::{Config, Error};

/// Serve disk images and throw-away writable layers to virtual machines over vhost-user.
#[derive(Debug, FromArgs)]
pub struct Cli {
    #[argh(subcommand)]
    pub command: Command,
}

#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub enum Command {
    Serve(Serve),
}

/// Listen on the configured sockets until SIGTERM, SIGINT or the lifeline ends it.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "serve")]
pub struct Serve {
    /// configuration file (JSON), or - for standard input
    #[argh(option)]
    pub config: String,

    /// number of an inherited pipe; when its other end is closed, stop
    #[argh(option)]
    pub lifeline: Option<RawFd>,
}

impl Serve {
    pub fn load(&self) -> anyhow::Result<Config> {
        let named = |source| Error::Read {
            path: self.config.clone().into(),
            source,
        };
        let mut text = String::new();
        if self.config == "-" {
            std::io::stdin().read_to_string(&mut text).map_err(named)?;
        } else {
            text = std::fs::read_to_string(Path::new(&self.config)).map_err(named)?;
        }
        Ok(Config::parse(&text)?)
    }
}
