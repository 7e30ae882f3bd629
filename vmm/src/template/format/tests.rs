use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::devices::serial::SerialState;
use crate::devices::state::{DevicesState, DiskState, VsockState};
use crate::devices::virtio::mmio::state::tests::sample as transport;
use crate::kvm::state::VmState;
use crate::template::state::{MemoryState, file_lengths};
use crate::vcpu::state::VcpuState;

/// A made-up sandbox of 64 MiB with every kind of device.
pub(in crate::template) fn sample_state() -> State {
    let label = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    State {
        binding: [("kernel", "aa"), ("image", "bb")].map(label).into(),
        memory: MemoryState {
            mib: 64,
            window_mib: 1,
        },
        vm: VmState::sample(),
        vcpus: vec![VcpuState::sample()],
        devices: DevicesState {
            console: Some(SerialState::default()),
            disks: vec![DiskState {
                id: "root".to_owned(),
                read_only: true,
                queue_size: 128,
                config: (0..60).collect(),
                transport: transport(),
            }],
            vsock: Some(VsockState {
                cid: 3,
                stale: true,
                next_host_port: 1 << 30,
                transport: transport(),
            }),
            rng: transport(),
        },
    }
}

fn sample_header() -> Header {
    let (memory, window) = file_lengths(&sample_state().memory.into());
    Header {
        host: Host {
            build: 0x0123_4567_89ab_cdef,
            vendor: *b"AuthenticAMD",
            signature: 0x0080_0f12,
            features: 0xfedc_ba98_7654_3210,
        },
        memory: Pages {
            len: memory,
            data: 4096,
            sum: 1,
        },
        window: Pages {
            len: window,
            data: 8192,
            sum: 2,
        },
    }
}

fn sample() -> Vec<u8> {
    encode(&sample_header(), &sample_state()).unwrap()
}

/// The golden file. When it differs, templates of yesterday are not read any more, or are read wrongly: raise
/// the epoch, write a new file with RUNDLET_WRITE_GOLDEN=1, and describe the change in
/// docs/template-format.md.
#[test]
fn the_golden_template_is_read_and_made_as_ever() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/epoch-{EPOCH}.state"));
    if std::env::var_os("RUNDLET_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, sample()).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert!(golden == sample(), "the format has changed");
    let (header, state) = parse(&golden).unwrap();
    assert_eq!(header, sample_header());
    assert_eq!(state.devices, sample_state().devices);
    assert!(encode(&header, &state).unwrap() == golden);
}

#[test]
fn other_files_are_no_templates() {
    for file in [&b""[..], b"RUNDLET", &MAGIC] {
        let found = file.len() as u64;
        let expected = 128;
        assert_eq!(
            parse(file).unwrap_err(),
            FormatError::Length { found, expected }
        );
    }
    assert_eq!(parse(&[0; 4096]).unwrap_err(), FormatError::Magic);
    assert_eq!(parse(b"\x7fELF").unwrap_err(), FormatError::Magic);
}

#[test]
fn another_epoch_is_named_before_anything_else_is_looked_at() {
    let mut file = sample();
    file[at::EPOCH] = 7;
    file[40] ^= 1;
    let error = parse(&file).unwrap_err();
    assert_eq!(error, FormatError::Epoch { found: 7 });
    assert_eq!(
        error.to_string(),
        "state: its format has epoch 7, this program knows epoch 1"
    );
}

#[test]
fn every_byte_counts() {
    let whole = sample();
    for at in (0..HEADER).chain((HEADER..whole.len()).step_by(97)) {
        let mut file = whole.clone();
        file[at] ^= 0x40;
        assert!(parse(&file).is_err(), "byte {at}");
    }
    for len in (0..HEADER).chain((HEADER..whole.len()).step_by(97)) {
        assert!(parse(&whole[..len]).is_err(), "{len} bytes");
    }
    assert!(parse(&[whole, vec![0]].concat()).is_err());
}

/// A body that is whole but says what cannot be.
#[test]
fn numbers_that_do_not_belong_together_are_refused() {
    let refused = |change: fn(&mut State)| {
        let mut state = sample_state();
        change(&mut state);
        let file = encode(&sample_header(), &state).unwrap();
        match parse(&file) {
            Err(FormatError::Body(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    refused(|state| state.memory.mib = 65);
    refused(|state| state.memory.mib = u32::MAX);
    refused(|state| state.memory.window_mib = 3);
    refused(|state| state.vcpus.clear());
    refused(|state| state.vcpus.extend((0..16).map(|_| VcpuState::sample())));
    refused(|state| state.devices.rng.queues.clear());
    refused(|state| state.devices.disks[0].queue_size = 3);
    refused(|state| state.devices.disks = vec![state.devices.disks[0].clone(); 15]);
    refused(|state| {
        let label = |number: u32| (number.to_string(), String::new());
        state.binding.extend((0..16).map(label));
    });
}

/// The file as it would be with another body, its checksums right.
fn with_body(body: &[u8]) -> Vec<u8> {
    let mut file = [&sample()[..HEADER], body].concat();
    let len = body.len() as u64;
    file[at::BODY_LEN..at::BODY_SUM].copy_from_slice(&len.to_le_bytes());
    file[at::BODY_SUM..at::MEMORY].copy_from_slice(&sum(body).to_le_bytes());
    let header_sum = sum(&file[..at::SUM]);
    file[at::SUM..HEADER].copy_from_slice(&header_sum.to_le_bytes());
    file
}

proptest! {
    #[test]
    fn bodies_of_any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = parse(&with_body(&body));
    }

    #[test]
    fn mangled_bodies_are_survived(
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        len in any::<prop::sample::Index>(),
    ) {
        let mut body = sample()[HEADER..].to_vec();
        let at = at.index(body.len());
        body[at] = value;
        let _ = parse(&with_body(&body));
        let len = len.index(body.len());
        body.truncate(len);
        prop_assert!(parse(&with_body(&body)).is_err());
    }
}
