//! A transport saved and restored.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::registers::{QueueRegisters, Registers};
use super::{MmioTransport, VERSION_1};
use crate::devices::virtio::{ActivateError, Activation, Position, StopError};
use crate::lock::lock;
use crate::spec::{DISK_QUEUES, QUEUE_SIZE};

/// Why a saved transport is not this one.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// Another device.
    #[error("it has {here} queues, in the template it had {saved}")]
    Queues { here: usize, saved: usize },
    /// The driver relies on what is not there.
    #[error("its driver uses the feature bits {0:#x}, which it does not offer any more")]
    Features(u64),
    /// It did not go live.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

/// The registers of a transport, and how far its device was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub status: u32,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub driver_features: u64,
    pub queue_sel: u32,
    pub interrupt_status: u32,
    pub config_generation: u32,
    pub queues: Vec<QueueState>,
}

/// One queue of a transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    pub size: u16,
    pub ready: bool,
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
    /// How far the device was with it, if it worked on it.
    pub position: Option<Position>,
}

impl TransportState {
    /// Whether the numbers are within the limits of any device; the words say which are not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let count = self.queues.len();
        if u16::try_from(count).map_or(true, |count| !DISK_QUEUES.contains(&count)) {
            return Err(format!("a device with {count} queues"));
        }
        Ok(())
    }

    /// True if the device worked.
    fn was_active(&self) -> bool {
        self.queues.iter().any(|queue| queue.position.is_some())
    }
}

/// Whether a disk may have queues of this size.
pub(crate) fn is_queue_size(size: u16) -> bool {
    QUEUE_SIZE.contains(&size) && size.is_power_of_two()
}

impl MmioTransport {
    /// Stops the device for good and says how it all stands. All vCPUs must be paused.
    pub fn save(&self) -> Result<TransportState, StopError> {
        let registers = lock(&self.registers);
        let positions = lock(&self.device).stop()?;
        let Registers {
            status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues,
        } = &*registers;
        let queues = (0_u16..).zip(queues).map(|(index, queue)| {
            let QueueRegisters {
                size,
                ready,
                desc,
                driver,
                device,
            } = *queue;
            let position = positions.iter().find(|(at, _)| *at == index);
            QueueState {
                size,
                ready,
                desc,
                driver,
                device,
                position: position.map(|(_, position)| *position),
            }
        });
        Ok(TransportState {
            status: *status,
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            driver_features: *driver_features,
            queue_sel: *queue_sel,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            queues: queues.collect(),
        })
    }

    /// Lays the state on a transport in its reset state, whose device is attached. The device goes on
    /// where it stopped; see [`MmioTransport::wake`].
    pub fn restore(&self, state: &TransportState) -> Result<(), ResumeError> {
        let TransportState {
            status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            interrupt_status,
            config_generation,
            queues,
        } = state;
        let (here, saved) = (self.queue_sizes.len(), queues.len());
        if here != saved {
            return Err(ResumeError::Queues { here, saved });
        }
        let active = state.was_active();
        let missing = driver_features & !self.features;
        if active && missing != 0 {
            return Err(ResumeError::Features(missing));
        }
        if active && driver_features & VERSION_1 == 0 {
            return Err(ResumeError::Features(VERSION_1));
        }
        let (queues, positions): (Vec<_>, Vec<_>) = queues.iter().map(restore_queue).unzip();
        let mut registers = lock(&self.registers);
        *registers = Registers {
            status: *status,
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            driver_features: *driver_features,
            queue_sel: *queue_sel,
            queues,
        };
        self.interrupt
            .restore(*interrupt_status, *config_generation);
        if active {
            let queues = self.make_queues(&registers, &positions)?;
            lock(&self.device).activate(Activation {
                memory: self.memory.clone(),
                features: registers.driver_features,
                queues,
                interrupt: self.interrupt.clone(),
                resumed: true,
            })?;
        }
        Ok(())
    }

    /// Repeats to both sides of a live device what one may have told the other at the moment of the
    /// pause. Both look at their rings and find them as they are; to be told for nothing is allowed.
    pub fn wake(&self) {
        let ready: Vec<bool> = {
            let registers = lock(&self.registers);
            registers.queues.iter().map(|queue| queue.ready).collect()
        };
        for (queue, _) in (0..).zip(&ready).filter(|(_, ready)| **ready) {
            self.ring_doorbell(queue);
        }
        if ready.contains(&true) {
            self.interrupt.signal_used();
        }
    }
}

fn restore_queue(state: &QueueState) -> (QueueRegisters, Option<Position>) {
    let QueueState {
        size,
        ready,
        desc,
        driver,
        device,
        position,
    } = *state;
    let registers = QueueRegisters {
        size,
        ready,
        desc,
        driver,
        device,
    };
    (registers, position)
}

#[cfg(test)]
pub(crate) mod tests;
