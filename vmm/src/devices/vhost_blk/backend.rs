//! Finding out what a vhost-user block backend can do, before the guest exists.
//!
//! Each backend is talked to on a thread of its own: the round trips of all disks pass while the main
//! thread loads the kernel, and one that never answers is left behind.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;
use std::time::Duration;

use thiserror::Error;
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::bindings::virtio_ring as ring;

use crate::spec::DiskSpec;

/// How long a backend may take for one conversation.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// VHOST_USER_F_PROTOCOL_FEATURES, between front end and backend only.
pub const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

const READ_ONLY: u64 = 1 << blk::VIRTIO_BLK_F_RO;
const MULTIQUEUE: u64 = 1 << blk::VIRTIO_BLK_F_MQ;
/// Feature bits that work without this process: passed on if the backend has them. Not among them:
/// CONFIG_WCE, whose switch would have to be passed on, too.
const PASSED_ON: u64 = READ_ONLY
    | MULTIQUEUE
    | 1 << blk::VIRTIO_BLK_F_SIZE_MAX
    | 1 << blk::VIRTIO_BLK_F_SEG_MAX
    | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
    | 1 << blk::VIRTIO_BLK_F_TOPOLOGY
    | 1 << blk::VIRTIO_BLK_F_FLUSH
    | 1 << blk::VIRTIO_BLK_F_DISCARD
    | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
    | 1 << ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << ring::VIRTIO_RING_F_EVENT_IDX;
/// `struct virtio_blk_config` up to and including WRITE_ZEROES (virtio 1.2 §5.2.4).
const CONFIG_LEN: u32 = 60;
/// `num_queues` in it.
const NUM_QUEUES: std::ops::Range<usize> = 34..36;

/// A backend that cannot be used.
#[derive(Debug, Error)]
pub enum BackendError {
    /// Nobody there.
    #[error("disk {id}: cannot connect to {}; is its backend running?", socket.display())]
    Connect {
        id: String,
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It hung up or talked nonsense.
    #[error("disk {id}: the backend at {} failed at {what}", socket.display())]
    Talk {
        id: String,
        socket: PathBuf,
        what: &'static str,
        #[source]
        source: vhost::Error,
    },
    /// It took too long.
    #[error("disk {id}: the backend at {} did not answer within {} s", socket.display(), PATIENCE.as_secs())]
    Silent { id: String, socket: PathBuf },
    /// It lacks something.
    #[error("disk {id}: the backend lacks {what}")]
    Lacks { id: String, what: &'static str },
    /// It has fewer queues than asked for.
    #[error("disk {id}: {wanted} queues are wanted, the backend has {have}; lower disks[].queues")]
    Queues { id: String, wanted: u16, have: u64 },
    /// A writable disk where a read-only one was asked for.
    #[error("disk {id}: read_only is asked for, but the backend serves a writable disk")]
    Writable { id: String },
    /// No thread.
    #[error("disk {id}: cannot start a thread")]
    Spawn {
        id: String,
        #[source]
        source: io::Error,
    },
}

/// A connection whose features are agreed on.
pub struct Backend {
    pub(super) frontend: Frontend,
    pub(super) features: u64,
    pub(super) config: Vec<u8>,
    pub(super) queue_sizes: Vec<u16>,
    pub(super) reply_ack: bool,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("features", &self.features)
            .field("queue_sizes", &self.queue_sizes)
            .finish_non_exhaustive()
    }
}

/// A conversation under way.
#[derive(Debug)]
pub struct Connecting {
    disk: DiskSpec,
    done: Receiver<Result<(Backend, UnixStream), BackendError>>,
}

impl Connecting {
    /// Connects and negotiates in the background.
    pub fn start(disk: &DiskSpec) -> Result<Self, BackendError> {
        let (sender, done) = channel();
        let task = disk.clone();
        Builder::new()
            .name("backend".to_owned())
            .spawn(move || {
                // Nobody listens any more if the sandbox was given up; then the connection goes, too.
                let _ = sender.send(negotiate(&task));
            })
            .map_err(|source| BackendError::Spawn {
                id: disk.id.clone(),
                source,
            })?;
        Ok(Self {
            disk: disk.clone(),
            done,
        })
    }

    /// Waits for the end of it. The stream is a second handle on the connection, to watch it with.
    pub fn wait(self) -> Result<(Backend, UnixStream), BackendError> {
        let DiskSpec { id, socket, .. } = self.disk;
        self.done
            .recv_timeout(PATIENCE)
            .unwrap_or(Err(BackendError::Silent { id, socket }))
    }
}

fn negotiate(disk: &DiskSpec) -> Result<(Backend, UnixStream), BackendError> {
    let connect = |source| BackendError::Connect {
        id: disk.id.clone(),
        socket: disk.socket.clone(),
        source,
    };
    let talk = |what| {
        move |source| BackendError::Talk {
            id: disk.id.clone(),
            socket: disk.socket.clone(),
            what,
            source,
        }
    };
    let stream = UnixStream::connect(&disk.socket).map_err(connect)?;
    let watched = stream.try_clone().map_err(connect)?;
    let mut frontend = Frontend::from_stream(stream, u64::from(disk.queues));
    frontend.set_owner().map_err(talk("SET_OWNER"))?;
    let offered = frontend.get_features().map_err(talk("GET_FEATURES"))?;
    if offered & PROTOCOL_FEATURES == 0 {
        return Err(lacks(disk, "VHOST_USER_F_PROTOCOL_FEATURES"));
    }
    let protocol = agree_on_protocol(&mut frontend, disk)?;
    if disk.read_only && offered & READ_ONLY == 0 {
        return Err(BackendError::Writable {
            id: disk.id.clone(),
        });
    }
    let (_, mut config) = frontend
        .get_config(
            0,
            CONFIG_LEN,
            VhostUserConfigFlags::empty(),
            &[0; CONFIG_LEN as usize],
        )
        .map_err(talk("GET_CONFIG"))?;
    if let Some(place) = config.get_mut(NUM_QUEUES) {
        place.copy_from_slice(&disk.queues.to_le_bytes());
    }
    let multiqueue = if disk.queues > 1 { MULTIQUEUE } else { 0 };
    let backend = Backend {
        frontend,
        features: offered & PASSED_ON & !MULTIQUEUE | multiqueue,
        config,
        queue_sizes: vec![disk.queue_size; usize::from(disk.queues)],
        reply_ack: protocol.contains(Protocol::REPLY_ACK),
    };
    Ok((backend, watched))
}

fn agree_on_protocol(frontend: &mut Frontend, disk: &DiskSpec) -> Result<Protocol, BackendError> {
    let talk = |what| {
        move |source| BackendError::Talk {
            id: disk.id.clone(),
            socket: disk.socket.clone(),
            what,
            source,
        }
    };
    let offered = frontend
        .get_protocol_features()
        .map_err(talk("GET_PROTOCOL_FEATURES"))?;
    if !offered.contains(Protocol::CONFIG) {
        return Err(lacks(disk, "VHOST_USER_PROTOCOL_F_CONFIG"));
    }
    let agreed = offered & (Protocol::CONFIG | Protocol::MQ | Protocol::REPLY_ACK);
    frontend
        .set_protocol_features(agreed)
        .map_err(talk("SET_PROTOCOL_FEATURES"))?;
    let have = if agreed.contains(Protocol::MQ) {
        frontend.get_queue_num().map_err(talk("GET_QUEUE_NUM"))?
    } else {
        1
    };
    if have < u64::from(disk.queues) {
        return Err(BackendError::Queues {
            id: disk.id.clone(),
            wanted: disk.queues,
            have,
        });
    }
    Ok(agreed)
}

fn lacks(disk: &DiskSpec, what: &'static str) -> BackendError {
    BackendError::Lacks {
        id: disk.id.clone(),
        what,
    }
}
