//! A listening socket and the disk that each of its connections gets.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use crate::config::{DiskConfig, ListenerConfig};
use crate::disk::Disk;
use crate::event::{self, Event};
use crate::image::{self, Image, Source};
use crate::scratch::keep::{self, Keep};
use crate::scratch::{self, Layer, Place, Template};
use crate::session::{self, Crew, Options, Outcome, Rings};
use crate::socket::{self, Socket};

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot use the image")]
    Image(#[from] image::Error),
    #[error("cannot use the scratch disk")]
    Scratch(#[from] scratch::Error),
    #[error("cannot keep the scratch disk")]
    Keep(#[from] keep::Error),
    #[error(transparent)]
    Socket(#[from] socket::Error),
}

/// Images already open, by what they are: the same file behind two sockets is opened once.
pub type Images = HashMap<image::Identity, Arc<Image>>;

/// Whether what is opened must be of use without any path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walls {
    None,
    Jail,
}

/// Where a session's disk comes from.
#[derive(Debug)]
enum Served {
    Image(Arc<Image>),
    Scratch(Arc<Template>),
}

impl Served {
    fn open(config: &DiskConfig, images: &mut Images, walls: Walls) -> Result<Self, Error> {
        match config {
            DiskConfig::Image { path } => {
                let source = Source::open(path)?;
                let shared = images.entry(source.identity());
                let image = shared.or_insert_with(|| Arc::new(Image::new(source)));
                Ok(Self::Image(Arc::clone(image)))
            }
            DiskConfig::Scratch {
                template,
                directory,
                flush,
                keep,
                resumes: _,
            } => {
                let source = Source::open(template)?;
                let keep = keep.as_deref().map(Keep::new).transpose()?;
                // What is kept is made where it will be, so that a name is all it needs in the end.
                let directory = keep.as_ref().map_or(&**directory, Keep::directory);
                let place = match walls {
                    Walls::None => Place::open(directory)?,
                    Walls::Jail => Place::detach(directory)?,
                };
                Ok(Self::Scratch(Template::new(source, place, *flush, keep)?))
            }
        }
    }

    fn keep(&self) -> Option<&Keep> {
        match self {
            Self::Image(_) => None,
            Self::Scratch(template) => template.keep(),
        }
    }

    fn disk(&self) -> Result<Disk, Error> {
        match self {
            Self::Image(image) => {
                image.source().check()?;
                Ok(Disk::Image(Arc::clone(image)))
            }
            Self::Scratch(template) => Ok(Disk::Layer(template.layer()?)),
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    shared: Arc<Shared>,
}

/// What the sessions of one socket share.
#[derive(Debug)]
struct Shared {
    served: Served,
    options: Arc<Options>,
    name: String,
}

impl Listener {
    pub fn bind(
        config: &ListenerConfig,
        options: Options,
        images: &mut Images,
        walls: Walls,
    ) -> Result<Self, Error> {
        let served = Served::open(&config.disk, images, walls)?;
        let socket = Socket::bind(&config.socket)?;
        let name = socket.path().display().to_string();
        let shared = Arc::new(Shared {
            served,
            options: Arc::new(options),
            name,
        });
        Ok(Self { socket, shared })
    }

    /// Whether sessions can have what they need, as who this process is now.
    pub fn check(&self) -> Result<(), Error> {
        if let Served::Scratch(template) = &self.shared.served {
            template.trial()?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// The next waiting connection, if there is one.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        self.socket.accept()
    }

    /// Has `crew` serve `connection`; `alive` is dropped when that ends.
    pub fn begin<T: Send + 'static>(
        &self,
        crew: &Crew,
        connection: UnixStream,
        number: u64,
        alive: T,
    ) -> io::Result<()> {
        let name = &self.shared.name;
        log::info!("session {number} on {name}: started");
        let disk = match self.shared.served.disk() {
            Ok(disk) => Arc::new(disk),
            Err(error) => {
                let error = anyhow::Error::new(error);
                log::error!("session {number} on {name}: refused: {error:#}");
                return Ok(());
            }
        };
        let shared = Arc::clone(&self.shared);
        let left = Arc::clone(&disk);
        let done = Box::new(move |outcome| {
            shared.ended(number, &left, outcome);
            drop(alive);
        });
        session::begin(crew, connection, number, disk, &self.shared.options, done)
    }
}

impl Shared {
    fn ended(&self, number: u64, disk: &Disk, outcome: Outcome) {
        let Outcome { end, rings, stats } = outcome;
        let tidy = end.is_tidy();
        log::log!(
            end.level(),
            "session {number} on {}: ended: {:#}; {} requests, {} failed, {} bytes read, {} written",
            self.name,
            anyhow::Error::new(end),
            stats.counts.requests,
            stats.counts.failed,
            stats.counts.bytes_read,
            stats.counts.bytes_written,
        );
        if let (Some(keep), Disk::Layer(layer)) = (self.served.keep(), disk) {
            publish(keep, layer, tidy, rings);
        }
    }
}

/// Keeps what a session left, if it left it whole, and says how that went. A connection that never
/// used the disk is nothing to speak of.
fn publish(keep: &Keep, layer: &Layer, tidy: bool, rings: Rings) {
    let outcome = match rings {
        Rings::Unused => return,
        Rings::Stopped if tidy => keep.publish(layer).map_err(anyhow::Error::new),
        Rings::Stopped | Rings::Running => Err(anyhow::anyhow!(
            "the front end left without stopping every ring (GET_VRING_BASE)"
        )),
    };
    let path = keep.path();
    let said = match outcome {
        Ok(()) => {
            log::info!("kept {}", path.display());
            event::say(&Event::Kept { path })
        }
        Err(error) => {
            let reason = format!("{error:#}");
            log::error!("not kept: {}: {reason}", path.display());
            let reason = &reason;
            event::say(&Event::NotKept { path, reason })
        }
    };
    if let Err(error) = said {
        log::warn!("cannot write to standard output: {error}");
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
