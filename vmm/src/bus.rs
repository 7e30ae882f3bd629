//! Address ranges and the devices behind them.
//!
//! The vCPU loop knows exits, the bus knows ranges, a device knows offsets. What nobody claims reads as
//! all ones and swallows writes, as on real hardware.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use thiserror::Error;

use crate::memory::layout::Range;
use crate::outcome::Outcome;

/// A device as vCPU threads reach it. Offsets count from the start of its range; `offset + data.len()`
/// may run past the range's end, and a device treats such an access as it likes, short of panicking.
pub trait BusDevice: Send + Sync {
    /// Fills `data`, which comes in as all ones.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data`; `Break` ends the sandbox.
    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<Outcome>;
}

/// Two devices want the same addresses.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("range {new:#x?} overlaps {old:#x?}")]
pub struct Overlap {
    new: Range,
    old: Range,
}

/// One address space; it does not change once the vCPUs run, so it needs no lock.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start.
    devices: Vec<(Range, Arc<dyn BusDevice>)>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.devices.iter().map(|(range, _)| range))
            .finish()
    }
}

impl Bus {
    /// Puts a device at a range.
    pub fn insert(&mut self, range: Range, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let clash = |other: &Range| range.start < other.end() && other.start < range.end();
        if let Some((old, _)) = self.devices.iter().find(|(other, _)| clash(other)) {
            return Err(Overlap {
                new: range,
                old: *old,
            });
        }
        let place = self
            .devices
            .partition_point(|(other, _)| other.start < range.start);
        self.devices.insert(place, (range, device));
        Ok(())
    }

    /// A guest's read.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// A guest's write.
    pub fn write(&self, address: u64, data: &[u8]) -> ControlFlow<Outcome> {
        match self.find(address) {
            Some((offset, device)) => device.write(offset, data),
            None => ControlFlow::Continue(()),
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn BusDevice)> {
        let after = self
            .devices
            .partition_point(|(range, _)| range.start <= address);
        let (range, device) = self.devices.get(after.checked_sub(1)?)?;
        range
            .contains(address, 1)
            .then(|| (address - range.start, &**device))
    }
}

/// The two address spaces of x86.
#[derive(Debug, Default)]
pub struct Buses {
    /// I/O ports.
    pub pio: Bus,
    /// Memory that is none.
    pub mmio: Bus,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0x7f).unwrap());
        }

        fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<Outcome> {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn devices_see_offsets_and_the_rest_is_empty() {
        let (a, b) = (Arc::new(Probe::default()), Arc::new(Probe::default()));
        let mut bus = Bus::default();
        bus.insert(Range::new(0x2000, 0x1000), b.clone()).unwrap();
        bus.insert(Range::new(0x1000, 0x10), a.clone()).unwrap();
        let read = |address| {
            let mut byte = [0];
            bus.read(address, &mut byte);
            byte[0]
        };
        assert_eq!(
            [read(0xfff), read(0x1000), read(0x100f), read(0x1010)],
            [0xff, 0, 0xf, 0xff]
        );
        assert_eq!(
            [read(0x1fff), read(0x2000), read(0x2fff), read(0x3000)],
            [0xff, 0, 0x7f, 0xff]
        );
        assert_eq!([read(0), read(u64::MAX)], [0xff, 0xff]);
        assert!(bus.write(0x2004, &[1, 2]).is_continue());
        assert!(bus.write(0x5000, &[1]).is_continue());
        assert_eq!(*b.0.lock().unwrap(), [(4, vec![1, 2])]);
        assert!(a.0.lock().unwrap().is_empty());
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = Bus::default();
        let probe = || Arc::new(Probe::default());
        bus.insert(Range::new(0x100, 0x10), probe()).unwrap();
        for (start, len) in [(0x100, 0x10), (0xff, 2), (0x10f, 1), (0x0, 0x1000)] {
            assert!(
                bus.insert(Range::new(start, len), probe()).is_err(),
                "{start:#x}"
            );
        }
        bus.insert(Range::new(0x110, 1), probe()).unwrap();
        bus.insert(Range::new(0xff, 1), probe()).unwrap();
    }
}
