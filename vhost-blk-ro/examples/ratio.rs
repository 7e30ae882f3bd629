//! Two vhost-user-blk backends over the same image, measured in turns by the same front end:
//!
//! ```text
//! cargo run --release -p vhost-blk-ro --example ratio -- OURS.sock THEIRS.sock [ROUNDS [IMAGE]]
//! ```
//!
//! Prints one JSON object: median requests or MiB per second of each, and the first over the second.
//! With IMAGE, its pages are dropped from the cache before each turn. The front end sleeps on its interrupt as a guest would; guest memory is a sealed memfd.

#[path = "../tests/front_end/driver.rs"]
mod driver;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use driver::{Device, NEXT, OK, Result, Setup, T_IN, WRITE, header};
use vm_memory::{Bytes, GuestAddress};

const TURN: Duration = Duration::from_millis(400);
const MEMORY: u64 = 64 << 20;
const SLOT: u64 = 1 << 20;

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    bytes: u32,
    depth: u16,
    random: bool,
}

const LOADS: [Load; 4] = [
    Load {
        name: "read_4k_random_depth_1",
        bytes: 4096,
        depth: 1,
        random: true,
    },
    Load {
        name: "read_4k_random_depth_32",
        bytes: 4096,
        depth: 32,
        random: true,
    },
    Load {
        name: "read_1m_sequential_depth_1",
        bytes: 1 << 20,
        depth: 1,
        random: false,
    },
    Load {
        name: "read_1m_sequential_depth_4",
        bytes: 1 << 20,
        depth: 4,
        random: false,
    },
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (ours, theirs, rounds, image) = match &args[..] {
        [ours, theirs] => (ours, theirs, 9, None),
        [ours, theirs, rounds] => (ours, theirs, rounds.parse()?, None),
        [ours, theirs, rounds, image] => (ours, theirs, rounds.parse()?, Some(File::open(image)?)),
        _ => return Err("usage: ratio OURS.sock THEIRS.sock [ROUNDS [IMAGE]]".into()),
    };
    let setup = Setup {
        memory_bytes: MEMORY,
        ..Setup::default()
    };
    let mut devices = Vec::new();
    for socket in [ours, theirs] {
        devices.push(Device::connect(Path::new(socket), &setup)?);
    }
    let mut lines = Vec::new();
    for load in LOADS {
        let mut results = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (device, results) in devices.iter_mut().zip(&mut results) {
                if let Some(image) = &image {
                    rustix::fs::fadvise(image, 0, None, rustix::fs::Advice::DontNeed)?;
                }
                results.push(turn(device, load)?);
            }
        }
        let [ours, theirs] = results.map(median);
        lines.push(format!(
            r#"  "{}": {{"ours": {ours:.0}, "theirs": {theirs:.0}, "ratio": {:.2}}}"#,
            load.name,
            ours / theirs
        ));
    }
    println!("{{\n{}\n}}", lines.join(",\n"));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Requests per second.
fn turn(device: &mut Device, load: Load) -> Result<f64> {
    let sectors = device.capacity()?;
    let per_request = u64::from(load.bytes) / 512;
    let places = sectors / per_request;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut place = 0u64;
    let mut next = || {
        if load.random {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % places * per_request
        } else {
            place = (place + 1) % places;
            place * per_request
        }
    };
    for slot in 0..load.depth {
        prepare(device, slot, load.bytes)?;
    }
    let old = device.avail(0);
    for slot in 0..load.depth {
        submit(device, slot, next())?;
    }
    device.kick(0, old);
    let start = Instant::now();
    let (mut done, mut inflight) = (0u64, load.depth);
    while inflight > 0 {
        let mut answer = Some(device.wait(0)?);
        let old = device.avail(0);
        let more = start.elapsed() < TURN;
        while let Some((head, _)) = answer {
            let slot = u16::try_from(head / 3)?;
            let status: u8 = device
                .memory
                .read_obj(GuestAddress(area(device, slot) + 16))?;
            if status != OK {
                return Err(format!("status {status}").into());
            }
            done += 1;
            if more {
                submit(device, slot, next())?;
            } else {
                inflight -= 1;
            }
            answer = device.reap(0);
        }
        if device.avail(0) != old {
            device.kick(0, old);
        }
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

fn area(device: &Device, slot: u16) -> u64 {
    device.data() + u64::from(slot) * (SLOT + 4096)
}

fn prepare(device: &Device, slot: u16, bytes: u32) -> Result<()> {
    let (at, first) = (area(device, slot), slot * 3);
    device.put_descriptor(0, first, (at, 16, NEXT, first + 1));
    device.put_descriptor(0, first + 1, (at + 4096, bytes, NEXT | WRITE, first + 2));
    device.put_descriptor(0, first + 2, (at + 16, 1, WRITE, 0));
    Ok(())
}

fn submit(device: &mut Device, slot: u16, sector: u64) -> Result<()> {
    let at = area(device, slot);
    device
        .memory
        .write_obj(header(T_IN, sector), GuestAddress(at))?;
    device.memory.write_obj(0xffu8, GuestAddress(at + 16))?;
    device.push(0, slot * 3);
    Ok(())
}
