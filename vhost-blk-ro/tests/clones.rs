//! Disks of templates and clones: a layer that is kept, and guests that arrive in the middle of their
//! lives.

#[path = "front_end/daemon.rs"]
#[cfg(test)]
mod daemon;
#[path = "front_end/driver.rs"]
#[cfg(test)]
mod driver;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use vhost::VhostBackend;
    use vhost::vhost_user::VhostUserFrontend;
    use vm_memory::{Bytes, GuestAddress};

    use super::daemon::{Daemon, pattern, wait_for};
    use super::driver::*;

    const KEEP: &str = r#""keep": "DIR/kept","#;

    /// What is left of a guest that was stopped: its memory, and where its ring stands.
    struct Saved {
        memory: Vec<u8>,
        base: u16,
        avail: u16,
    }

    /// Stops the only ring and disconnects, as the capture of a guest does.
    fn save(device: &mut Device) -> Saved {
        device.frontend.set_vring_enable(0, false).unwrap();
        let base = device.frontend.get_vring_base(0).unwrap();
        let mut memory = vec![0; usize::try_from(device.setup.memory_bytes).unwrap()];
        let start = GuestAddress(0);
        device.memory.read_slice(&mut memory, start).unwrap();
        Saved {
            memory,
            base: u16::try_from(base).unwrap(),
            avail: device.avail(0),
        }
    }

    impl Saved {
        /// A guest that goes on from here.
        fn resume(&self, socket: &Path, setup: &Setup) -> Result<Device> {
            let (file, memory) = shared_memory(setup.memory_bytes, true)?;
            memory.write_slice(&self.memory, GuestAddress(0))?;
            let base = self.base;
            let setup = Setup {
                base,
                ..setup.clone()
            };
            let mut device = Device::connect_with(socket, &setup, file, memory)?;
            device.set_avail(0, self.avail);
            Ok(device)
        }
    }

    /// A flush at descriptors 0 and 1, available and not kicked.
    fn submit(device: &mut Device) {
        let at = device.data();
        device
            .memory
            .write_obj(header(T_FLUSH, 0), GuestAddress(at))
            .unwrap();
        device.put_descriptor(0, 0, (at, 16, NEXT, 1));
        device.put_descriptor(0, 1, (at + 16, 1, WRITE, 0));
        device.push(0, 0);
    }

    fn kept_event(path: &Path) -> String {
        format!("{{\"event\":\"kept\",\"path\":\"{}\"}}\n", path.display())
    }

    #[test]
    fn clones_go_on_where_their_template_stopped() {
        let mut daemon = Daemon::start_scratch("", KEEP);
        let (kept, setup) = (daemon.path().join("kept"), Setup::default());
        let mut device = Device::connect(&daemon.scratch(), &setup).unwrap();
        assert_eq!(device.write(1000, &pattern(5, 65536)).unwrap(), OK);
        assert_eq!(device.ranges(T_DISCARD, &[(8, 8, 0)]).unwrap(), OK);
        let saved = save(&mut device);
        assert!(!kept.exists());
        drop(device);
        assert_eq!(daemon.event(), kept_event(&kept));
        let before = std::fs::read(&kept).unwrap();
        assert_eq!(before.len(), 16 << 20);
        assert_eq!(before[..4096], pattern(0, 4096));
        assert_eq!(before[4096..8192], [0; 4096]);
        assert_eq!(before[512_000..512_000 + 65536], pattern(5, 65536));
        assert!(std::fs::metadata(&kept).unwrap().blocks() * 512 < 1 << 20);

        let clones = Daemon::start_clones(&kept);
        let mut devices: Vec<_> = (0..5u8)
            .map(|i| {
                let mut device = saved.resume(&clones.scratch(), &setup).unwrap();
                assert_eq!(device.read(1000, 65536).unwrap(), pattern(5, 65536));
                assert_eq!(device.write(1000, &[i; 4096]).unwrap(), OK);
                device
            })
            .collect();
        for (device, i) in devices.iter_mut().zip(0u8..) {
            assert_eq!(device.read(1000, 4096).unwrap(), [i; 4096]);
            assert_eq!(device.read(8, 4096).unwrap(), [0; 4096]);
        }
        assert!(std::fs::read(&kept).unwrap() == before);
    }

    #[test]
    fn what_was_pending_is_done_without_a_kick() {
        let daemon = Daemon::start_scratch("", r#""resumes": true,"#);
        for without in [0, F_EVENT_IDX] {
            let setup = Setup {
                without,
                ..Setup::default()
            };
            let mut device = Device::connect(&daemon.scratch(), &setup).unwrap();
            device.read(0, 512).unwrap();
            // Made available too late for this session: the ring is disabled already.
            device.frontend.set_vring_enable(0, false).unwrap();
            submit(&mut device);
            let mut saved = save(&mut device);
            drop(device);
            assert_eq!(saved.avail, saved.base + 1);
            // Stopped while the daemon was looking by itself: the driver would not kick.
            let used = 16 * 128 + 6 + 2 * 128 + 2;
            saved.memory[used] = 1;
            let mut device = saved.resume(&daemon.scratch(), &setup).unwrap();
            assert_eq!(device.wait(0).unwrap(), (0, 1));
            // And from here on by kicks, as the driver is asked to.
            for sector in 0..20 {
                let seen = device.read(sector, 512).unwrap();
                assert_eq!(seen, pattern(sector * 512, 512));
            }
        }
    }

    #[test]
    fn indices_wrap_around_in_a_clone() {
        let daemon = Daemon::start_scratch("", r#""resumes": true,"#);
        let setup = Setup::default();
        let mut device = Device::connect(&daemon.scratch(), &setup).unwrap();
        let mut saved = save(&mut device);
        saved.base = u16::MAX - 3;
        saved.avail = saved.base;
        for at in [16 * 128 + 2, 16 * 128 + 6 + 2 * 128 + 2 + 2] {
            saved.memory[at..at + 2].copy_from_slice(&saved.base.to_le_bytes());
        }
        let mut device = saved.resume(&daemon.scratch(), &setup).unwrap();
        for sector in 0..10 {
            device.read(sector, 512).unwrap();
        }
        assert_eq!(device.frontend.get_vring_base(0).unwrap(), 6);
    }

    #[test]
    fn requests_in_flight_are_not_forgotten_silently() {
        let daemon = Daemon::start_scratch("", r#""resumes": true,"#);
        let setup = Setup::default();
        let mut device = Device::connect(&daemon.scratch(), &setup).unwrap();
        for _ in 0..5 {
            device.read(0, 512).unwrap();
        }
        let mut saved = save(&mut device);
        assert_eq!((saved.base, saved.avail), (5, 5));
        saved.base = 7;
        assert!(saved.resume(&daemon.scratch(), &setup).is_err());
        let text = "the ring resumes at 7, but its guest has answers up to 5";
        wait_for(|| daemon.log().contains(text), || daemon.log());
    }

    #[test]
    fn hostile_positions_harm_their_own_session_alone() {
        let daemon = Daemon::start_scratch("", r#""resumes": true,"#);
        let setup = Setup::default();
        let mut witness = Device::connect(&daemon.scratch(), &setup).unwrap();
        let index = || prop_oneof![Just(0u16), Just(1), Just(u16::MAX), any::<u16>()];
        let mut runner = TestRunner::deterministic();
        for _ in 0..200 {
            let tree = Strategy::new_tree(&(index(), index(), index()), &mut runner).unwrap();
            let (base, available, used) = prop::strategy::ValueTree::current(&tree);
            let mut memory = vec![0; 2 << 20];
            // Every head is descriptor 0, which is a request of 0 bytes without a status.
            memory[16 * 128 + 2..][..2].copy_from_slice(&available.to_le_bytes());
            memory[16 * 128 + 264..][..2].copy_from_slice(&used.to_le_bytes());
            let saved = Saved {
                memory,
                base,
                avail: available,
            };
            if let Ok(mut device) = saved.resume(&daemon.scratch(), &setup) {
                // Sits there, is answered or hung up on; all the same here.
                let _ = device.rings[0].kick.write(1);
                let _ = device.reap(0);
            }
        }
        assert_eq!(witness.read(3, 512).unwrap(), pattern(3 * 512, 512));
        let log = daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    #[test]
    fn only_a_layer_whose_rings_were_stopped_is_kept() {
        let mut daemon = Daemon::start_scratch(r#", "queues": 2"#, KEEP);
        let (kept, socket) = (daemon.path().join("kept"), daemon.scratch());
        // A look whether somebody listens is no session to keep.
        drop(UnixStream::connect(&socket).unwrap());
        let setup = Setup {
            queues: 2,
            ..Setup::default()
        };
        let mut device = Device::connect(&socket, &setup).unwrap();
        assert_eq!(device.write(0, &[7; 512]).unwrap(), OK);
        device.frontend.get_vring_base(0).unwrap();
        drop(device);
        let said = daemon.event();
        assert!(
            said.contains(r#""event":"not_kept""#) && said.contains("stopping every ring"),
            "{said}"
        );
        assert!(!kept.exists());
        let mut device = Device::connect(&socket, &setup).unwrap();
        assert_eq!(device.write(0, &[8; 512]).unwrap(), OK);
        for ring in 0..2 {
            device.frontend.get_vring_base(ring).unwrap();
        }
        drop(device);
        assert_eq!(daemon.event(), kept_event(&kept));
        assert_eq!(std::fs::read(&kept).unwrap()[..512], [8; 512]);
        // The next one finds the name taken.
        let device = Device::connect(&socket, &setup).unwrap();
        for ring in 0..2 {
            device.frontend.get_vring_base(ring).unwrap();
        }
        drop(device);
        let said = daemon.event();
        assert!(
            said.contains("not_kept") && said.contains("exists already"),
            "{said}"
        );
        assert_eq!(std::fs::read(&kept).unwrap()[..512], [8; 512]);
        let mut names: Vec<_> = std::fs::read_dir(daemon.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "image",
                "kept",
                "log",
                "root.sock",
                "scratch.sock",
                "template"
            ]
        );
    }

    #[test]
    fn a_full_file_system_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("none", &small, "tmpfs", flags, Some(c"size=1m")) {
            println!("skipped: a_full_file_system_keeps_nothing: cannot mount a tmpfs: {error}");
            return;
        }
        let outcome = std::panic::catch_unwind(|| {
            std::fs::write(dir.path().join("template"), pattern(0, 4 << 20)).unwrap();
            std::fs::write(dir.path().join("image"), [1; 512]).unwrap();
            let keep = small.join("kept");
            let setting = format!(r#"{{"keep": "{}", "template""#, keep.display());
            let config = super::daemon::config(dir.path(), "").replace(r#"{"template""#, &setting);
            let mut daemon = Daemon::start_with(&config);
            let socket = dir.path().join("scratch.sock");
            let mut device = Device::connect(&socket, &Setup::default()).unwrap();
            // There is room for what this guest writes, not for the rest of its disk.
            assert_eq!(device.write(8, &[7; 4096]).unwrap(), OK);
            save(&mut device);
            drop(device);
            let said = daemon.event();
            assert!(
                said.contains("not_kept") && said.contains("No space left"),
                "{said}"
            );
            assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
        });
        rustix::mount::unmount(&small, rustix::mount::UnmountFlags::empty()).unwrap();
        outcome.unwrap();
    }
}
