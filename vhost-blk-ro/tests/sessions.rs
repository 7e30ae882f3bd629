//! The daemon as a process, against a front end in this one: every kind of request, any shape of
//! chain, several sessions and queues at once.

#[path = "front_end/daemon.rs"]
#[cfg(test)]
mod daemon;
#[path = "front_end/driver.rs"]
#[cfg(test)]
mod driver;

#[cfg(test)]
mod tests {
    use std::thread;

    use vm_memory::{Bytes, GuestAddress};

    use super::daemon::{Daemon, pattern, wait_for};
    use super::driver::*;

    const SECTORS: u64 = (4 << 20) / 512;

    #[test]
    fn an_image_is_read_and_never_written() {
        let daemon = Daemon::start("");
        let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
        assert_ne!(device.features & F_RO, 0);
        assert_eq!(device.features & (F_DISCARD | F_FLUSH | F_MQ), 0);
        assert_eq!(device.capacity().unwrap(), SECTORS);
        assert_eq!(device.read(0, 4096).unwrap(), pattern(0, 4096));
        assert_eq!(
            device.read(1237, 65536).unwrap(),
            pattern(1237 * 512, 65536)
        );
        assert_eq!(device.request(0, T_IN, SECTORS - 1, 1024).unwrap(), IOERR);
        assert_eq!(device.request(0, T_IN, u64::MAX, 512).unwrap(), IOERR);
        assert_eq!(device.write(0, &[0; 512]).unwrap(), IOERR);
        assert_eq!(device.ranges(T_DISCARD, &[(0, 8, 0)]).unwrap(), UNSUPP);
        assert_eq!(device.request(0, T_FLUSH, 0, 0).unwrap(), OK);
        assert_eq!(device.request(0, 77, 0, 0).unwrap(), UNSUPP);
        assert_eq!(device.id().unwrap(), "root");
        assert_eq!(device.read(0, 4096).unwrap(), pattern(0, 4096));
        assert_eq!(
            std::fs::read(daemon.path().join("image")).unwrap(),
            pattern(0, 4 << 20)
        );
    }

    #[test]
    fn a_scratch_disk_takes_everything_and_forgets_it() {
        let daemon = Daemon::start("");
        let connect = || Device::connect(&daemon.scratch(), &Setup::default()).unwrap();
        let (mut one, mut two) = (connect(), connect());
        assert_eq!(one.features & F_RO, 0);
        assert_eq!(one.id().unwrap(), "scratch");
        assert_eq!(one.read(0, 65536).unwrap(), pattern(0, 65536));
        let data = pattern(999, 65536);
        assert_eq!(one.write(64, &data).unwrap(), OK);
        assert_eq!(one.request(0, T_FLUSH, 0, 0).unwrap(), OK);
        assert_eq!(one.read(64, 65536).unwrap(), data);
        assert_eq!(
            two.read(64, 512).unwrap(),
            pattern(64 * 512, 512),
            "layers are private"
        );
        assert_eq!(
            one.ranges(T_DISCARD, &[(64, 8, 0), (80, 1, 0)]).unwrap(),
            OK
        );
        assert_eq!(one.read(64, 4096).unwrap(), vec![0; 4096]);
        assert_eq!(one.read(80, 512).unwrap(), vec![0; 512]);
        assert_eq!(one.ranges(T_WRITE_ZEROES, &[(90, 2, 1)]).unwrap(), OK);
        assert_eq!(one.read(89, 512).unwrap(), data[25 * 512..26 * 512]);
        assert_eq!(one.read(90, 1024).unwrap(), vec![0; 1024]);
        assert_eq!(one.ranges(T_DISCARD, &[(0, 8, 1)]).unwrap(), UNSUPP);
        assert_eq!(
            one.ranges(T_WRITE_ZEROES, &[((16 << 20) / 512, 1, 0)])
                .unwrap(),
            IOERR
        );
        drop(one);
        assert_eq!(
            connect().read(64, 512).unwrap(),
            pattern(64 * 512, 512),
            "gone with its session"
        );
        assert_eq!(
            std::fs::metadata(daemon.path().join("template"))
                .unwrap()
                .len(),
            16 << 20
        );
    }

    #[test]
    fn a_layer_full_of_gaps_reads_like_one_file() {
        let daemon = Daemon::start("");
        let mut device = Device::connect(&daemon.scratch(), &Setup::default()).unwrap();
        // The template holds 64 KiB, so half of what is read here is its hole.
        let mut model = pattern(0, 128 << 10);
        model[64 << 10..].fill(0);
        // Every second block, and now and then part of one.
        for block in (0..32u64).step_by(2) {
            let sectors = if block % 8 == 0 { 3 } else { 8 };
            let data = pattern(block * 77, sectors * 512);
            assert_eq!(device.write(block * 8, &data).unwrap(), OK);
            let at = usize::try_from(block * 4096).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
        }
        assert_eq!(device.ranges(T_WRITE_ZEROES, &[(19, 30, 0)]).unwrap(), OK);
        model[19 * 512..49 * 512].fill(0);
        for (sector, bytes) in [(0, 128 << 10), (1, 512), (7, 1024), (5, 100 * 512)] {
            let at = usize::try_from(sector * 512).unwrap();
            let seen = device.read(sector, bytes).unwrap();
            assert!(seen == model[at..at + seen.len()], "{bytes} from {sector}");
        }
    }

    /// Header in three pieces, data in seven, status in the same descriptor as the last of them.
    fn odd_chain(device: &mut Device, indirect: bool) {
        let area = device.data();
        let buffer = device.buffer().0;
        device
            .memory
            .write_obj(header(T_IN, 11), GuestAddress(area))
            .unwrap();
        let mut pieces = vec![
            (area, 5, 0),
            (area + 5, 0, 0),
            (area + 5, 10, 0),
            (area + 15, 1, 0),
        ];
        let lengths = [1, 511, 100, 2000, 1, 1482, 1];
        let mut at = buffer;
        for len in lengths {
            pieces.push((at, len, WRITE));
            at += u64::from(len);
        }
        let last = pieces.len() - 1;
        pieces[last].1 += 1;
        device.memory.write_obj(0xffu8, GuestAddress(at)).unwrap();
        let table = area + 0x800;
        for ((addr, len, flags), i) in pieces.into_iter().zip(0u16..) {
            let link = if usize::from(i) < last { NEXT } else { 0 };
            let fields = (addr, len, flags | link, i + 1);
            if indirect {
                put_descriptor(&device.memory, table + 16 * u64::from(i), fields);
            } else {
                device.put_descriptor(0, i, fields);
            }
        }
        if indirect {
            let bytes = u32::try_from(16 * (last + 1)).unwrap();
            device.put_descriptor(0, 0, (table, bytes, INDIRECT, 0));
        }
        let old = device.avail(0);
        device.push(0, 0);
        device.kick(0, old);
        assert_eq!(device.wait(0).unwrap(), (0, 4096 + 1));
        let total = usize::try_from(at - buffer).unwrap();
        let mut seen = vec![0; total];
        device
            .memory
            .read_slice(&mut seen, GuestAddress(buffer))
            .unwrap();
        let status: u8 = device.memory.read_obj(GuestAddress(at)).unwrap();
        assert_eq!((status, seen), (OK, pattern(11 * 512, total as u64)));
    }

    #[test]
    fn any_shape_of_chain_is_the_same_request() {
        let daemon = Daemon::start("");
        for without in [0, F_EVENT_IDX, F_INDIRECT, F_EVENT_IDX | F_INDIRECT] {
            let setup = Setup {
                without,
                ..Setup::default()
            };
            let mut device = Device::connect(&daemon.root(), &setup).unwrap();
            odd_chain(&mut device, false);
            odd_chain(&mut device, true);
        }
    }

    /// Keeps `depth` single-sector reads under way on every queue and checks each answer.
    fn hammer(device: &mut Device, rounds: u16) {
        let queues = device.setup.queues;
        let depth = 16u16;
        for round in 0..rounds {
            for queue in 0..queues {
                let old = device.avail(queue);
                for slot in 0..depth {
                    let (at, first) = (place(device, queue, slot), slot * 3);
                    let sector = sector_of(round, queue, slot);
                    device
                        .memory
                        .write_obj(header(T_IN, sector), GuestAddress(at))
                        .unwrap();
                    device
                        .memory
                        .write_obj(0xffu8, GuestAddress(at + 16))
                        .unwrap();
                    device.put_descriptor(queue, first, (at, 16, NEXT, first + 1));
                    device.put_descriptor(
                        queue,
                        first + 1,
                        (at + 512, 512, NEXT | WRITE, first + 2),
                    );
                    device.put_descriptor(queue, first + 2, (at + 16, 1, WRITE, 0));
                    device.push(queue, first);
                }
                device.kick(queue, old);
            }
            for queue in 0..queues {
                for slot in 0..depth {
                    assert_eq!(
                        device.wait(queue).unwrap(),
                        (u32::from(slot) * 3, 513),
                        "in order"
                    );
                    let at = place(device, queue, slot);
                    let status: u8 = device.memory.read_obj(GuestAddress(at + 16)).unwrap();
                    let mut seen = [0; 512];
                    device
                        .memory
                        .read_slice(&mut seen, GuestAddress(at + 512))
                        .unwrap();
                    let expected = pattern(sector_of(round, queue, slot) * 512, 512);
                    assert_eq!((status, &seen[..]), (OK, &expected[..]));
                }
            }
        }
    }

    fn place(device: &Device, queue: usize, slot: u16) -> u64 {
        device.data() + (queue as u64 * 16 + u64::from(slot)) * 1024
    }

    fn sector_of(round: u16, queue: usize, slot: u16) -> u64 {
        (u64::from(round) * 7919 + queue as u64 * 104_729 + u64::from(slot) * 31) % SECTORS
    }

    #[test]
    fn sessions_and_queues_run_side_by_side() {
        let daemon = Daemon::start(r#", "queues": 4"#);
        let sockets = [daemon.root(), daemon.root(), daemon.root(), daemon.root()];
        thread::scope(|scope| {
            for (socket, queues) in sockets.iter().zip([4, 1, 2, 4]) {
                scope.spawn(move || {
                    let setup = Setup {
                        queues,
                        ..Setup::default()
                    };
                    let mut device = Device::connect(socket, &setup).unwrap();
                    assert_ne!(device.features & F_MQ, 0);
                    hammer(&mut device, 200);
                });
            }
        });
    }

    #[test]
    fn a_queue_can_be_stopped_and_resumed() {
        use vhost::VhostBackend;
        use vhost::vhost_user::VhostUserFrontend;
        for settings in [r#", "queues": 2"#, ""] {
            let daemon = Daemon::start(settings);
            let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
            for _ in 0..20 {
                hammer(&mut device, 3);
                let base = device.frontend.get_vring_base(0).unwrap();
                assert_eq!(base, u32::from(device.avail(0)));
                device.rings.clear();
                device.start_queue(0, u16::try_from(base).unwrap()).unwrap();
            }
            // Disabled: kicks wait; enabled again: they are answered.
            device.frontend.set_vring_enable(0, false).unwrap();
            let old = device.avail(0);
            device
                .memory
                .write_obj(header(T_FLUSH, 0), GuestAddress(device.data()))
                .unwrap();
            device.put_descriptor(0, 0, (device.data(), 16, NEXT, 1));
            device.put_descriptor(0, 1, (device.data() + 16, 1, WRITE, 0));
            device.push(0, 0);
            device.rings[0].kick.write(1).unwrap();
            thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(device.reap(0), None);
            assert_eq!(device.avail(0), old + 1);
            device.frontend.set_vring_enable(0, true).unwrap();
            assert_eq!(device.wait(0).unwrap(), (0, 1));
        }
    }

    /// What the daemon tells, whole: it closes the connection.
    fn figures(daemon: &Daemon) -> serde_json::Value {
        let socket = daemon.path().join("figures.sock");
        let mut text = String::new();
        let mut connection = std::os::unix::net::UnixStream::connect(socket).unwrap();
        std::io::Read::read_to_string(&mut connection, &mut text).unwrap();
        assert!(text.ends_with('\n'), "{text:?}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn figures_are_told_to_whoever_asks() {
        let daemon = Daemon::start(r#", "figures": "DIR/figures.sock""#);
        assert_eq!(figures(&daemon)["reads"], 0);
        let mut image = Device::connect(&daemon.root(), &Setup::default()).unwrap();
        let mut layer = Device::connect(&daemon.scratch(), &Setup::default()).unwrap();
        assert_eq!(image.read(0, 4096).unwrap(), pattern(0, 4096));
        assert_eq!(image.read(8, 8192).unwrap(), pattern(4096, 8192));
        assert_eq!(image.request(0, T_IN, u64::MAX, 512).unwrap(), IOERR);
        assert_eq!(layer.write(0, &[1; 512]).unwrap(), OK);
        // A batch is told after it is answered.
        wait_for(
            || figures(&daemon)["writes"] == 1 && figures(&daemon)["errors"] == 1,
            || figures(&daemon).to_string(),
        );
        let told = figures(&daemon);
        assert_eq!(told["sessions"], 2, "{told}");
        assert_eq!(
            (&told["reads"], &told["read_bytes"]),
            (&3.into(), &(12_288 + 512).into())
        );
        assert_eq!(told["written_bytes"], 512);
        let cached = ["cache_hits", "cache_misses"].map(|name| told[name].as_u64().unwrap());
        // Two reads succeeded; a file system may not tell.
        assert!([0, 2].contains(&cached.iter().sum()), "{told}");
        drop((image, layer));
        wait_for(
            || figures(&daemon)["sessions"] == 0,
            || figures(&daemon).to_string(),
        );
        assert_eq!(
            figures(&daemon)["reads"],
            3,
            "sessions that have ended count"
        );
    }
}
