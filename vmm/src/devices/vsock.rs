//! The socket device (virtio 1.2 §5.10): stream sockets between guest programs and unix sockets on the host.
//!
//! A program on the host connects to the sandbox's socket and says `CONNECT <port>\n`; once the guest
//! has accepted it reads `OK <hostport>\n`, and from then on the two talk. A guest that dials port P of the
//! host (context 2) reaches the unix socket `<socket>_<P>`. Everything runs on the main thread.
//!
//! Layers, each importing only those before it: [`bytes`] and [`packet`] (what is in a descriptor chain),
//! [`credit`], [`backlog`] and [`connection`] (one stream), [`muxer`] with its [`listener`],
//! [`handshake`] and [`poller`] (all streams), and this file, which moves packets between the muxer
//! and the virtqueues.
//!
//! A template holds no connections, so the device's only state is its context id, its queues, and whether
//! there were any. If there were, the guest of a clone is told by VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
//! (§5.10.6.7), and nobody is let in before it has taken note: see `farewell`.

pub mod backlog;
pub mod bytes;
pub mod connection;
pub mod credit;
mod farewell;
pub mod handshake;
pub mod ledger;
pub mod listener;
pub mod muxer;
pub mod packet;
pub mod poller;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{QueueOwnedT, QueueT};

use self::farewell::Farewell;
use self::ledger::Kind;
use self::listener::{BindError, Listener};
use self::muxer::{Limits, Muxer};
use self::packet::{RxBuffer, TxPacket};
use super::virtio::{
    ActivateError, Activation, Interrupt, Position, StopError, VirtQueue, VirtioDevice,
};
use crate::events::{EventSet, Registrar, Subscriber};
use crate::memory::GuestMemory;
use crate::outcome::Outcome;
use crate::spec::VsockSpec;

/// Device ID (virtio 1.2 §5.10.1).
const DEVICE_ID: u32 = 19;
/// VIRTIO_VSOCK_F_STREAM (virtio 1.2 §5.10.3): also what a driver assumes that knows no feature bits.
const FEATURE_STREAM: u64 = 1 << 0;
/// Sizes of the receive, transmit and event queue. Linux keeps a page in each receive buffer, so this is
/// 512 KiB of the guest's RAM.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];
/// Packets moved each way before other devices get their turn: half a queue, at most 4 MiB.
const BUDGET: usize = 64;

/// Which of the host's calls is for a command.
const FIRST_COMMAND: u64 = 2;

/// Tokens at the main loop.
const KICK_RX: u32 = 0;
const KICK_TX: u32 = 1;
const HOST: u32 = 2;
const KICK_EVENTS: u32 = 3;

/// Why the device could not be made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The socket could not be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The kernel refused a descriptor.
    #[error("vsock: cannot make the poller")]
    Poller(#[source] io::Error),
}

/// The queues, while the driver has them ready.
#[derive(Debug)]
struct Live {
    memory: GuestMemory,
    interrupt: Interrupt,
    rx: VirtQueue,
    tx: VirtQueue,
    events: VirtQueue,
    farewell: Farewell,
}

/// The device.
pub struct Vsock {
    guest_cid: u64,
    muxer: Muxer,
    /// Called once, when the guest first dials [`muxer::READY_PORT`].
    ready: Option<Box<dyn FnOnce() + Send>>,
    /// Called once, before the guest hears of the first command.
    before_command: Option<Box<dyn FnOnce() + Send>>,
    events: Option<Registrar>,
    live: Option<Live>,
    /// The driver may have connections that nobody here knows.
    stale: bool,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("guest_cid", &self.guest_cid)
            .field("muxer", &self.muxer)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl Vsock {
    /// Binds the socket of `spec`; `ready` is called when the guest first dials [`muxer::READY_PORT`].
    pub fn new(spec: &VsockSpec, ready: Box<dyn FnOnce() + Send>) -> Result<Self, VsockError> {
        let guest_cid = u64::from(spec.cid);
        let listener = Listener::bind(&spec.socket)?;
        let muxer =
            Muxer::new(guest_cid, listener, Limits::default()).map_err(VsockError::Poller)?;
        Ok(Self {
            guest_cid,
            muxer,
            ready: Some(ready),
            before_command: None,
            events: None,
            live: None,
            stale: false,
        })
    }

    /// See [`Listener::moved_into`].
    pub fn moved_into(&mut self, root: &Path) {
        self.muxer.moved_into(root);
    }

    /// What is to be done once, before the guest hears of its first command. A clone's agent is called for the first time to
    /// be renewed, and for every command once more.
    pub fn before_first_command(&mut self, then: Box<dyn FnOnce() + Send>) {
        self.before_command = Some(then);
    }

    /// Goes on for a driver that had another device: whether it had connections then, and from which port
    /// it would have been dialled next. To be said before [`VirtioDevice::activate`].
    pub fn resume(&mut self, stale: bool, next_host_port: u32) {
        self.stale = stale;
        self.muxer.resume(next_host_port);
    }

    /// The port that the driver will be dialled from next.
    #[must_use]
    pub fn next_host_port(&self) -> u32 {
        self.muxer.next_host_port()
    }

    /// True if there are connections that the driver would have to be told of in a clone.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        self.stale || !self.muxer.is_idle()
    }

    /// Lets programs in, once the driver is fit for it.
    fn open(&mut self) -> io::Result<()> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        if !live.farewell.is_over(&live.events, &live.memory) {
            return Ok(());
        }
        self.stale = false;
        self.muxer.listen()
    }

    /// One round of work: packets both ways, as many as the budget allows.
    fn work(&mut self, now: Instant) -> io::Result<()> {
        if self.muxer.host_calls() >= FIRST_COMMAND
            && let Some(then) = self.before_command.take()
        {
            then();
        }
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        let moved = live
            .transmit(&mut self.muxer, now)
            .and_then(|sent_all| Ok(live.receive(&mut self.muxer, now)? && sent_all));
        if self.muxer.take_guest_ready()
            && let Some(ready) = self.ready.take()
        {
            ready();
        }
        match moved {
            Ok(true) => {}
            Ok(false) => self.muxer.poller().again()?,
            Err(error) => self.give_up(&error),
        }
        self.muxer.set_timer(now)
    }

    /// The driver's rings make no sense: nothing more is done with them until it resets the device.
    fn give_up(&mut self, error: &virtio_queue::Error) {
        log::warn!("vsock: the guest broke its queues, device stopped: {error}");
        self.stop_working();
    }

    fn stop_working(&mut self) {
        if let (Some(live), Some(events)) = (self.live.take(), &self.events) {
            for queue in [&live.rx, &live.tx, &live.events] {
                if let Err(error) = events.remove(queue.kick.as_ref()) {
                    log::warn!("vsock: cannot stop watching queue {}: {error}", queue.index);
                }
            }
        }
        self.muxer.reset_all();
    }
}

impl Live {
    /// Takes packets from the guest. False if it stopped with work left.
    fn transmit(&mut self, muxer: &mut Muxer, now: Instant) -> Result<bool, virtio_queue::Error> {
        let (queue, memory) = (&mut self.tx.queue, &self.memory);
        let mut moved = 0;
        let sent_all = loop {
            queue.disable_notification(memory)?;
            while moved < BUDGET
                && let Some(chain) = queue.iter(memory)?.next()
            {
                let head = chain.head_index();
                muxer.receive(TxPacket::parse(memory, chain), now);
                queue.add_used(memory, head, 0)?;
                moved += 1;
            }
            if moved == BUDGET {
                break false;
            }
            if !queue.enable_notification(memory)? {
                break true;
            }
        };
        if moved > 0 && queue.needs_notification(memory)? {
            self.interrupt.signal_used();
        }
        Ok(sent_all)
    }

    /// Fills the guest's buffers with packets. False if it stopped with work left.
    fn receive(&mut self, muxer: &mut Muxer, now: Instant) -> Result<bool, virtio_queue::Error> {
        let (queue, memory) = (&mut self.rx.queue, &self.memory);
        let mut moved = 0;
        // New buffers are news only while packets wait for them.
        queue.disable_notification(memory)?;
        while moved < BUDGET && muxer.has_packet() {
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let used = match RxBuffer::parse(memory, chain) {
                Ok(buffer) => match muxer.produce(&buffer, now) {
                    Some(used) => used,
                    None => {
                        queue.go_to_previous_position();
                        break;
                    }
                },
                Err(error) => {
                    muxer.ledger().report(Kind::BadChain, &error, now);
                    0
                }
            };
            queue.add_used(memory, head, used)?;
            moved += 1;
        }
        if moved > 0 && queue.needs_notification(memory)? {
            self.interrupt.signal_used();
        }
        Ok(moved < BUDGET)
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// struct virtio_vsock_config: the guest's context id (virtio 1.2 §5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let start = usize::try_from(offset).map_or(config.len(), |offset| offset.min(config.len()));
        for (target, source) in data.iter_mut().zip(&config[start..]) {
            *target = *source;
        }
    }

    fn attach(&mut self, events: Registrar) -> io::Result<()> {
        events.add(self.muxer.poller(), HOST, EventSet::IN)?;
        self.events = Some(events);
        Ok(())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let [rx, tx, mut events] = activation.take_queues()?;
        let stale = self.stale && activation.resumed;
        let farewell = if stale {
            Farewell::send(&mut events, &activation.memory)
        } else {
            Farewell::not_needed()
        };
        let live = self.live.insert(Live {
            memory: activation.memory,
            interrupt: activation.interrupt,
            rx,
            tx,
            events,
            farewell,
        });
        let io = |what| move |source| ActivateError::Io { what, source };
        if let Some(events) = &self.events {
            let queues = [
                (&live.rx, KICK_RX),
                (&live.tx, KICK_TX),
                (&live.events, KICK_EVENTS),
            ];
            for (queue, token) in queues {
                events
                    .add(queue.kick.as_ref(), token, EventSet::IN)
                    .map_err(io("watch a queue of the vsock device"))?;
            }
        }
        self.open()
            .map_err(io("listen for connections to the guest"))
    }

    fn stop(&mut self) -> Result<Vec<(u16, Position)>, StopError> {
        let queues = self.live.as_ref();
        let queues = queues.map(|live| [&live.rx, &live.tx, &live.events].map(VirtQueue::position));
        self.stop_working();
        Ok(queues.into_iter().flatten().collect())
    }

    fn reset(&mut self) {
        self.stale = false;
        self.stop_working();
    }
}

impl Subscriber for Vsock {
    fn ready(&mut self, token: u32, _: EventSet) -> ControlFlow<Outcome> {
        let now = Instant::now();
        let handled = match (token, &self.live) {
            (HOST, _) => self.muxer.host_events(now),
            (KICK_RX, Some(live)) => acknowledge(&live.rx),
            (KICK_TX, Some(live)) => acknowledge(&live.tx),
            (KICK_EVENTS, Some(live)) => acknowledge(&live.events).and_then(|()| self.open()),
            _ => Ok(()),
        };
        match handled.and_then(|()| self.work(now)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Outcome::Error(format!("vsock device: {error}"))),
        }
    }
}

/// Takes a kick out of its eventfd; an event that came twice finds none.
fn acknowledge(queue: &VirtQueue) -> io::Result<()> {
    match queue.kick.read() {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod support;
#[cfg(test)]
mod tests;
