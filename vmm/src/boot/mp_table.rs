//! The MP table (Intel MultiProcessor Specification 1.4): how a kernel without ACPI learns of its
//! processors and of the IOAPIC's inputs.
//!
//! One bus (ISA) whose interrupts go to the IOAPIC pin of the same number, as KVM's default routing
//! does; edge triggered, which is what a pulse on an irqfd is.

use crate::memory::layout::{IOAPIC, LAPIC, MP_TABLE};

/// Pins of the IOAPIC that KVM emulates.
const IOAPIC_PINS: u8 = 24;
/// Version register of KVM's APICs.
const APIC_VERSION: u8 = 0x14;
/// Length of the floating pointer structure (§4.1).
const POINTER_LEN: usize = 16;
/// Length of the table header (§4.2).
const HEADER_LEN: usize = 44;
/// MP specification 1.4.
const SPEC_REVISION: u8 = 4;

/// Entry types (§4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types (§4.3.4).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// CPUID signature and feature words of a processor entry: any modern CPU; kernels ask CPUID itself.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// The bytes for [`MP_TABLE`]: floating pointer first, table right behind it.
#[must_use]
pub fn build(vcpus: u8) -> Vec<u8> {
    let (entries, count) = entries(vcpus);
    let table_len = HEADER_LEN + entries.len();
    let mut header = Vec::with_capacity(table_len);
    header.extend_from_slice(b"PCMP");
    header.extend_from_slice(&length(table_len).to_le_bytes());
    header.extend_from_slice(&[SPEC_REVISION, 0]);
    header.extend_from_slice(b"RUNDLET ");
    header.extend_from_slice(b"MICROVM     ");
    header.extend_from_slice(&[0; 6]); // no OEM table
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&low(LAPIC.start).to_le_bytes());
    header.extend_from_slice(&[0; 4]); // no extended table
    header.extend_from_slice(&entries);
    let sum = checksum(&header);
    if let Some(slot) = header.get_mut(7) {
        *slot = sum;
    }

    let table_at = MP_TABLE.start + POINTER_LEN as u64;
    let mut bytes = Vec::with_capacity(POINTER_LEN + table_len);
    bytes.extend_from_slice(b"_MP_");
    bytes.extend_from_slice(&low(table_at).to_le_bytes());
    bytes.extend_from_slice(&[1, SPEC_REVISION, 0]); // length in 16 bytes, revision, checksum
    bytes.extend_from_slice(&[0; 5]); // a table is present; virtual wire mode
    let sum = checksum(&bytes);
    if let Some(slot) = bytes.get_mut(10) {
        *slot = sum;
    }
    bytes.extend_from_slice(&header);
    bytes
}

fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    let mut bytes = Vec::new();
    let mut count = 0;
    let mut add = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 {
            ENABLED | BOOT_PROCESSOR
        } else {
            ENABLED
        };
        let mut entry = vec![PROCESSOR, id, APIC_VERSION, flags];
        entry.extend_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry.extend_from_slice(&CPU_FEATURES.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        add(&entry);
    }
    add(&[&[BUS, ISA_BUS][..], b"ISA   "].concat());
    // The first id after the processors': a kernel only wants it to be nobody else's.
    let ioapic = vcpus;
    let address = low(IOAPIC.start).to_le_bytes();
    add(&[&[IO_APIC, ioapic, APIC_VERSION, ENABLED][..], &address].concat());
    for pin in 0..IOAPIC_PINS {
        add(&[IO_INTERRUPT, INT, 0, 0, ISA_BUS, pin, ioapic, pin]);
    }
    add(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);
    (bytes, count)
}

/// The byte that makes the sum of all bytes zero, where its own place holds zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, &byte| sum.wrapping_add(byte))
        .wrapping_neg()
}

fn length(len: usize) -> u16 {
    u16::try_from(len).expect("16 processors make a table of less than a KiB")
}

fn low(address: u64) -> u32 {
    u32::try_from(address).expect("APICs and tables lie below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_sum_to_zero_and_fit_for_every_vcpu_count() {
        for vcpus in 1..=16 {
            let bytes = build(vcpus);
            assert!(
                bytes.len() as u64 <= MP_TABLE.len,
                "{vcpus} vCPUs: {} bytes",
                bytes.len()
            );
            assert_eq!(&bytes[..4], b"_MP_");
            assert_eq!(bytes[..16].iter().fold(0_u8, |a, &b| a.wrapping_add(b)), 0);
            let table = &bytes[16..];
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(
                usize::from(u16::from_le_bytes([table[4], table[5]])),
                table.len()
            );
            assert_eq!(table.iter().fold(0_u8, |a, &b| a.wrapping_add(b)), 0);
        }
    }

    #[test]
    fn entries_parse_back_to_what_was_meant() {
        let bytes = build(3);
        let mut rest = &bytes[16 + HEADER_LEN..];
        let (mut cpus, mut pins, mut count) = (Vec::new(), Vec::new(), 0_u16);
        while let Some(&kind) = rest.first() {
            let len = if kind == PROCESSOR { 20 } else { 8 };
            match kind {
                PROCESSOR => cpus.push((rest[1], rest[3])),
                IO_INTERRUPT => pins.push((rest[5], rest[7])),
                IO_APIC => assert_eq!(rest[1], 3),
                _ => {}
            }
            rest = &rest[len..];
            count += 1;
        }
        assert_eq!(cpus, [(0, 3), (1, 1), (2, 1)]);
        assert_eq!(pins, (0..24).map(|pin| (pin, pin)).collect::<Vec<_>>());
        assert_eq!(count, u16::from_le_bytes([bytes[16 + 34], bytes[16 + 35]]));
    }
}
