//! The file `state` of a template: as it is, and its body behind checksums that are right. What is read is
//! made again as it was understood.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rundlet_vmm::spec::MemorySpec;
use rundlet_vmm::template::format::{self, Header, Pages};
use rundlet_vmm::template::host::Host;
use rundlet_vmm::template::state::file_lengths;

fuzz_target!(|data: &[u8]| {
    if let Err(error) = format::parse(data) {
        assert!(error.to_string().starts_with("state: "), "{error}");
    }
    let header = header();
    let Ok(state) = format::parse_body(data, &header) else {
        return;
    };
    assert_eq!((state.memory.mib, state.memory.window_mib), (64, 1));
    let file = format::encode(&header, &state).expect("what was read can be written");
    let (again, state) = format::parse(&file).expect("what was written can be read");
    assert_eq!(again, header);
    assert!(format::encode(&again, &state).expect("a second time") == file);
});

/// Of the guest that the seed was made from: 64 MiB with a window of one.
fn header() -> Header {
    let spec = MemorySpec {
        mib: 64,
        window_mib: 1,
    };
    let (memory, window) = file_lengths(&spec);
    let pages = |len| Pages {
        len,
        ..Pages::default()
    };
    Header {
        host: Host {
            build: 1,
            vendor: *b"AuthenticAMD",
            signature: 2,
            features: 3,
        },
        memory: pages(memory),
        window: pages(window),
    }
}
