//! Front ends and drivers that vanish, lie, or send rubbish. Each may end its own session, with one
//! line in the log; the daemon and everybody else's sessions never notice.

#[path = "front_end/daemon.rs"]
#[cfg(test)]
mod daemon;
#[path = "front_end/driver.rs"]
#[cfg(test)]
mod driver;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use vhost::vhost_user::{Frontend, VhostUserFrontend};
    use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    use super::daemon::{Daemon, pattern, wait_for};
    use super::driver::*;

    /// A session that must go on whatever the others do.
    struct Witness(Device);

    impl Witness {
        fn new(daemon: &Daemon) -> Self {
            Self(Device::connect(&daemon.root(), &Setup::default()).unwrap())
        }

        fn testify(&mut self, daemon: &mut Daemon) {
            assert_eq!(self.0.read(9, 4096).unwrap(), pattern(9 * 512, 4096));
            assert!(daemon.is_alive());
            Device::connect(&daemon.root(), &Setup::default())
                .unwrap()
                .read(0, 512)
                .unwrap();
        }
    }

    /// How many sessions ended with a line that says `reason`.
    fn ended(daemon: &Daemon, reason: &str) -> usize {
        let log = daemon.log();
        log.lines()
            .filter(|line| line.contains(": ended: ") && line.contains(reason))
            .count()
    }

    fn expect_end(daemon: &Daemon, reason: &str, count: usize) {
        wait_for(
            || ended(daemon, reason) == count,
            || format!("{count} ends for {reason:?}:\n{}", daemon.log()),
        );
    }

    #[test]
    fn vanishing_with_requests_in_flight_is_nobody_elses_business() {
        let mut daemon = Daemon::start(r#", "queues": 2"#);
        let mut witness = Witness::new(&daemon);
        for round in 0..60u64 {
            let socket = if round % 2 == 0 {
                daemon.root()
            } else {
                daemon.scratch()
            };
            let setup = Setup {
                memory_bytes: 8 << 20,
                queues: 2,
                ..Setup::default()
            };
            let mut device = Device::connect(&socket, &setup).unwrap();
            for queue in 0..2 {
                for slot in 0..40u16 {
                    let at = device.data() + u64::from(slot) * 4096;
                    let kind = if round % 2 == 1 && slot % 2 == 0 {
                        T_OUT
                    } else {
                        T_IN
                    };
                    let flags = if kind == T_IN { WRITE } else { 0 };
                    device
                        .memory
                        .write_obj(header(kind, round), GuestAddress(at))
                        .unwrap();
                    let first = slot * 3;
                    device.put_descriptor(queue, first, (at, 16, NEXT, first + 1));
                    let data = (4 << 20, 1 << 20, NEXT | flags, first + 2);
                    device.put_descriptor(queue, first + 1, data);
                    device.put_descriptor(queue, first + 2, (at + 16, 1, WRITE, 0));
                    device.push(queue, first);
                }
                device.rings[queue].kick.write(1).unwrap();
            }
            std::thread::sleep(Duration::from_micros(round * 37));
            drop(device);
        }
        witness.testify(&mut daemon);
        wait_for(
            || daemon.sessions() == 1,
            || format!("{} sessions", daemon.sessions()),
        );
    }

    #[test]
    fn rubbish_on_the_socket_ends_only_that_session() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        let mut runner = TestRunner::deterministic();
        let bytes = prop::collection::vec(any::<u8>(), 0..600);
        for i in 0..200 {
            let tree = Strategy::new_tree(&bytes, &mut runner).unwrap();
            let mut message = prop::strategy::ValueTree::current(&tree);
            // Half of them with a valid header, so that the bodies are reached.
            if i % 2 == 0 && message.len() >= 12 {
                let body = u32::try_from(message.len() - 12).unwrap();
                let kind = u32::from(message[0]) % 42;
                message[..4].copy_from_slice(&kind.to_le_bytes());
                message[4..8].copy_from_slice(&1u32.to_le_bytes());
                message[8..12].copy_from_slice(&body.to_le_bytes());
            }
            let mut stream = UnixStream::connect(daemon.root()).unwrap();
            // The daemon may hang up before all of it is sent.
            let _ = stream.write_all(&message);
        }
        // Those that stop in the middle of a header keep a thread waiting each, nothing else.
        let halves: Vec<_> = (0..40)
            .map(|_| {
                let mut half = UnixStream::connect(daemon.root()).unwrap();
                half.write_all(&[1, 0, 0]).unwrap();
                half
            })
            .collect();
        wait_for(
            || daemon.threads() > 40,
            || format!("{} threads", daemon.threads()),
        );
        witness.testify(&mut daemon);
        drop(halves);
        wait_for(
            || daemon.sessions() == 1,
            || format!("{} sessions", daemon.sessions()),
        );
    }

    /// Connects by hand up to where the memory table goes.
    fn handshake(daemon: &Daemon) -> Frontend {
        let stream = UnixStream::connect(daemon.root()).unwrap();
        let mut frontend = Frontend::from_stream(stream, 1);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_features(features).unwrap();
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        frontend
    }

    fn region(file: &File, guest: u64, bytes: u64, offset: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: guest,
            memory_size: bytes,
            userspace_addr: 0x1000_0000 + guest,
            mmap_offset: offset,
            mmap_handle: file.as_raw_fd(),
        }
    }

    #[test]
    fn memory_that_could_kill_the_daemon_is_refused() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        let unsealed = Setup {
            sealed: false,
            ..Setup::default()
        };
        assert!(Device::connect(&daemon.root(), &unsealed).is_err());
        expect_end(&daemon, "F_SEAL_SHRINK", 1);
        let (file, _memory) = shared_memory(1 << 20, true).unwrap();
        assert!(
            handshake(&daemon)
                .set_mem_table(&[region(&file, 0, 2 << 20, 0)])
                .is_err()
        );
        assert!(
            handshake(&daemon)
                .set_mem_table(&[region(&file, 0, 4096, 1 << 20)])
                .is_err()
        );
        expect_end(&daemon, "reaches past the end of its file", 2);
        let overlapping = [region(&file, 0, 8192, 0), region(&file, 4096, 8192, 0)];
        assert!(handshake(&daemon).set_mem_table(&overlapping).is_err());
        expect_end(&daemon, "overlap", 1);
        witness.testify(&mut daemon);
    }

    #[test]
    fn a_trusted_front_end_may_share_plain_files() {
        let daemon = Daemon::start("");
        let dir = daemon.path();
        let config = super::daemon::config(dir, "")
            .replacen(r#", "disk""#, r#", "trusted_front_end": true, "disk""#, 1)
            .replace("root.sock", "trusted.sock")
            .replace("scratch.sock", "other.sock");
        let _second = Daemon::start_with(&config);
        let setup = Setup {
            sealed: false,
            ..Setup::default()
        };
        let mut device = Device::connect(&dir.join("trusted.sock"), &setup).unwrap();
        assert_eq!(device.read(0, 512).unwrap(), pattern(0, 512));
    }

    #[test]
    fn ring_addresses_outside_the_memory_end_the_session() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        let (file, _memory) = shared_memory(1 << 20, true).unwrap();
        let base = 0x1000_0000;
        let ring = |desc: u64, avail: u64, used: u64| VringConfigData {
            queue_max_size: 128,
            queue_size: 128,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        let no_memory = handshake(&daemon);
        assert!(
            no_memory
                .set_vring_addr(0, &ring(base, base + 4096, base + 8192))
                .is_err()
        );
        expect_end(&daemon, "before memory", 1);
        let frontend = handshake(&daemon);
        frontend
            .set_mem_table(&[region(&file, 0, 1 << 20, 0)])
            .unwrap();
        assert!(
            frontend
                .set_vring_addr(0, &ring(base, 0, base + 8192))
                .is_err()
        );
        expect_end(&daemon, "is not in the memory", 1);
        // The start is inside, the end is not: only seen at the first kick.
        let mut frontend = handshake(&daemon);
        frontend
            .set_mem_table(&[region(&file, 0, 1 << 20, 0)])
            .unwrap();
        frontend.set_vring_num(0, 128).unwrap();
        let end = base + (1 << 20);
        frontend
            .set_vring_addr(0, &ring(end - 16, base, base + 8192))
            .unwrap();
        let kick = EventFd::new(0).unwrap();
        frontend.set_vring_kick(0, &kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
        kick.write(1).unwrap();
        expect_end(&daemon, "guest broke its queue", 1);
        assert!(handshake(&daemon).set_vring_num(0, 3).is_err());
        witness.testify(&mut daemon);
    }

    #[test]
    fn a_kick_or_call_must_be_an_eventfd() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        // A socket number 5 with SET_VRING_CALL (13): the vhost crate only takes its own eventfds.
        let stream = UnixStream::connect(daemon.root()).unwrap();
        let (pipe, _other) = UnixStream::pair().unwrap();
        let mut message = Vec::new();
        for word in [13u32, 1, 8, 0, 0] {
            message.extend(word.to_le_bytes());
        }
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [std::os::fd::AsFd::as_fd(&pipe)];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let parts = [std::io::IoSlice::new(&message)];
        rustix::net::sendmsg(
            &stream,
            &parts,
            &mut control,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        expect_end(&daemon, "not an eventfd", 1);
        witness.testify(&mut daemon);
    }

    #[test]
    fn drivers_that_break_their_queue_lose_their_session_alone() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        // An index that runs away; a head outside the table; a loop; no status; status nowhere.
        let breaks: [fn(&mut Device); 5] = [
            |d| {
                let avail = 16 * 128 + 2;
                d.memory.write_obj(1000u16, GuestAddress(avail)).unwrap();
            },
            |d| d.push(0, 5000),
            |d| {
                d.put_descriptor(0, 0, (d.data(), 16, NEXT, 1));
                d.put_descriptor(0, 1, (d.data(), 16, NEXT, 0));
                d.push(0, 0);
            },
            |d| {
                d.put_descriptor(0, 0, (d.data(), 16, 0, 0));
                d.push(0, 0);
            },
            |d| {
                d.put_descriptor(0, 0, (d.data(), 16, NEXT, 1));
                d.put_descriptor(0, 1, (1 << 40, 1, WRITE, 0));
                d.push(0, 0);
            },
        ];
        for (count, breaking) in breaks.into_iter().enumerate() {
            let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
            breaking(&mut device);
            device.rings[0].kick.write(1).unwrap();
            expect_end(&daemon, "guest broke its queue", count + 1);
            // The front end sees it as a closed connection.
            assert!(device.frontend.get_features().is_err());
            witness.testify(&mut daemon);
        }
    }

    #[test]
    fn a_broken_queue_ends_the_others_of_its_session() {
        let mut daemon = Daemon::start(r#", "queues": 3"#);
        let mut witness = Witness::new(&daemon);
        let setup = Setup {
            queues: 3,
            ..Setup::default()
        };
        for (count, queue) in (0..3).enumerate() {
            let mut device = Device::connect(&daemon.root(), &setup).unwrap();
            device.read(0, 512).unwrap();
            device.push(queue, 5000);
            device.rings[queue].kick.write(1).unwrap();
            expect_end(&daemon, "guest broke its queue", count + 1);
            assert!(device.frontend.get_features().is_err());
            witness.testify(&mut daemon);
        }
        wait_for(
            || daemon.sessions() == 1,
            || format!("{} sessions", daemon.sessions()),
        );
    }

    #[test]
    fn a_million_failures_are_a_few_lines() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
        let start = Instant::now();
        for _ in 0..500 {
            assert_eq!(device.request(0, T_IN, 1 << 40, 512).unwrap(), IOERR);
        }
        let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
        let lines = daemon
            .log()
            .lines()
            .filter(|l| l.contains("request failed"))
            .count();
        assert!(
            (1..=seconds + 1).contains(&lines),
            "{lines} lines in {seconds} s"
        );
        witness.testify(&mut daemon);
    }

    #[test]
    fn arbitrary_rings_are_harmless() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        let address = prop_oneof![
            0u64..0x20000,
            (1u64 << 21) - 64..(1 << 21) + 64,
            any::<u64>()
        ];
        let len = prop_oneof![0u32..64, Just(512), Just(1 << 20), any::<u32>()];
        let descriptor = (address, len, 0..8u16, 0..12u16);
        let ring = prop::collection::vec(descriptor, 12);
        let mut runner = TestRunner::deterministic();
        for i in 0..150 {
            let socket = if i % 2 == 0 {
                daemon.root()
            } else {
                daemon.scratch()
            };
            let mut device = Device::connect(&socket, &Setup::default()).unwrap();
            let kinds = [T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES];
            for at in (0x8000..0x20000).step_by(64) {
                let kind = kinds[(at / 64 + i) % kinds.len()];
                device
                    .memory
                    .write_obj(header(kind, at as u64 % 100), GuestAddress(at as u64))
                    .unwrap();
            }
            let tree = Strategy::new_tree(&ring, &mut runner).unwrap();
            for (fields, index) in prop::strategy::ValueTree::current(&tree)
                .into_iter()
                .zip(0..)
            {
                device.put_descriptor(0, index, fields);
            }
            for head in 0..12 {
                device.push(0, head);
            }
            device.rings[0].kick.write(1).unwrap();
            // Until the daemon has either answered all or hung up.
            let deadline = Instant::now() + PATIENCE;
            let mut answers = 0;
            while answers < 12 && device.frontend.get_features().is_ok() {
                answers += std::iter::from_fn(|| device.reap(0)).count();
                assert!(Instant::now() < deadline);
            }
        }
        witness.testify(&mut daemon);
        let log = daemon.log();
        assert!(
            !log.contains("panicked") && !log.contains("without an answer"),
            "{log}"
        );
    }

    /// Sets the counter to the most that it holds. The daemon may still owe it the call of the last answer, so
    /// that a single write can find it not empty.
    fn fill(counter: &EventFd) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match counter.write(u64::MAX - 1) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => drop(counter.read()),
                outcome => return outcome.unwrap(),
            }
            assert!(Instant::now() < deadline);
        }
    }

    #[test]
    fn a_full_call_counter_blocks_nobody() {
        let mut daemon = Daemon::start("");
        let mut witness = Witness::new(&daemon);
        let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
        fill(&device.rings[0].call);
        for _ in 0..3 {
            assert_eq!(device.request(0, T_FLUSH, 0, 0).unwrap(), OK);
            fill(&device.rings[0].call);
        }
        drop(device);
        wait_for(
            || daemon.sessions() == 1,
            || format!("{} sessions", daemon.sessions()),
        );
        witness.testify(&mut daemon);
        let mut rest = String::new();
        File::open(daemon.path().join("log"))
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        assert!(!rest.contains("panicked"), "{rest}");
    }
}
