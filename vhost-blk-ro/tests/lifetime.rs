//! Beginnings and ends: restart, signals, lifeline, sockets, a full disk, a changed image.

#[path = "front_end/daemon.rs"]
#[cfg(test)]
mod daemon;
#[path = "front_end/driver.rs"]
#[cfg(test)]
mod driver;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};
    use vm_memory::{Bytes, GuestAddress};

    use super::daemon::{Daemon, config, pattern, wait_for};
    use super::driver::*;

    fn signal(daemon: &Daemon, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Makes a one-sector request available for each slot.
    fn submit(device: &mut Device, kind: u32, slots: std::ops::Range<u16>) {
        for slot in slots {
            let at = device.data() + u64::from(slot) * 1024;
            device
                .memory
                .write_obj(header(kind, u64::from(slot)), GuestAddress(at))
                .unwrap();
            device
                .memory
                .write_obj(0xffu8, GuestAddress(at + 16))
                .unwrap();
            let first = slot * 3;
            device.put_descriptor(0, first, (at, 16, NEXT, first + 1));
            device.put_descriptor(0, first + 1, (at + 512, 512, NEXT | WRITE, first + 2));
            device.put_descriptor(0, first + 2, (at + 16, 1, WRITE, 0));
            device.push(0, first);
        }
    }

    #[test]
    fn a_front_end_resumes_at_a_restarted_daemon() {
        let mut daemon = Daemon::start("");
        for round in 0..10u64 {
            let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
            submit(&mut device, T_IN, 0..40);
            device.rings[0].kick.write(1).unwrap();
            std::thread::sleep(Duration::from_micros(round * 60));
            daemon.kill();
            let mut answered: Vec<_> = std::iter::from_fn(|| device.reap(0)).collect();
            // The stale socket file is the killed daemon's; the new one takes its place.
            daemon.restart();
            let base = u16::try_from(answered.len()).unwrap();
            let setup = Setup {
                base,
                ..Setup::default()
            };
            let Device { file, memory, .. } = device;
            let mut device = Device::connect_with(&daemon.root(), &setup, file, memory).unwrap();
            device.set_avail(0, 40);
            device.rings[0].kick.write(1).unwrap();
            for _ in base..40 {
                answered.push(device.wait(0).unwrap());
            }
            let expected: Vec<_> = (0..40).map(|slot| (slot * 3, 513)).collect();
            assert_eq!(answered, expected, "each exactly once, in order");
            for slot in 0..40u64 {
                let mut seen = [0; 512];
                let at = GuestAddress(device.data() + slot * 1024 + 512);
                device.memory.read_slice(&mut seen, at).unwrap();
                assert_eq!(seen[..], pattern(slot * 512, 512));
            }
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(device.reap(0), None);
        }
    }

    #[test]
    fn a_scratch_disk_does_not_pretend_to_resume() {
        let daemon = Daemon::start("");
        let setup = Setup {
            base: 7,
            ..Setup::default()
        };
        assert!(Device::connect(&daemon.scratch(), &setup).is_err());
        let text = "only a socket for clones";
        wait_for(|| daemon.log().contains(text), || daemon.log());
    }

    #[test]
    fn sigterm_ends_sessions_and_removes_sockets() {
        for which in [Signal::TERM, Signal::INT] {
            let mut daemon = Daemon::start("");
            let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
            device.read(0, 512).unwrap();
            let start = Instant::now();
            signal(&daemon, which);
            let status = daemon.child().wait().unwrap();
            assert!(status.success(), "{status}\n{}", daemon.log());
            assert!(start.elapsed() < Duration::from_secs(2));
            assert!(!daemon.root().exists() && !daemon.scratch().exists());
            assert!(device.capacity().is_err(), "the front end sees the end");
            assert!(daemon.log().contains("ended: daemon is stopping"));
        }
    }

    #[test]
    fn the_lifeline_ends_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), [1; 512]).unwrap();
        std::fs::write(dir.path().join("template"), [1; 512]).unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, config(dir.path(), "")).unwrap();
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        // The shell hands the reading end on as descriptor 9.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" serve --config "$1" --lifeline 9 9<&0"#])
            .args([
                env!("CARGO_BIN_EXE_vhost-blk-ro").as_ref(),
                path.as_os_str(),
            ])
            .stdin(Stdio::from(ours))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(
            || dir.path().join("scratch.sock").exists(),
            || "not listening".into(),
        );
        std::thread::sleep(Duration::from_millis(50));
        assert!(child.try_wait().unwrap().is_none());
        drop(theirs);
        assert!(child.wait().unwrap().success());
        assert!(!dir.path().join("root.sock").exists());
    }

    fn refused(dir: &Path, config: &str) -> (i32, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vhost-blk-ro"))
            .args(["serve", "--config", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir(dir)
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.as_bytes())
            .unwrap();
        let out = child.wait_with_output().unwrap();
        (
            out.status.code().unwrap(),
            String::from_utf8(out.stderr).unwrap(),
        )
    }

    #[test]
    fn what_cannot_be_served_is_said_before_listening() {
        let mut daemon = Daemon::start("");
        let dir = daemon.path().to_path_buf();
        let usual = config(&dir, "");
        let (code, said) = refused(&dir, &usual.replace("\"disk\"", "\"disc\""));
        assert!(
            code == 2 && said.contains("unknown field `disc`"),
            "{code} {said}"
        );
        let (code, said) = refused(&dir, &usual);
        assert!(
            code == 1 && said.contains("root.sock is in use by another process"),
            "{said}"
        );
        assert!(
            daemon.root().exists() && daemon.is_alive(),
            "the one in use is left alone"
        );
        let elsewhere = usual.replace(".sock", ".sock2");
        let (code, said) = refused(&dir, &elsewhere.replace("/image\"", "/none\""));
        assert!(
            code == 1 && said.contains("/none") && said.contains("No such file"),
            "{said}"
        );
        std::fs::write(dir.join("root.sock2"), "precious").unwrap();
        let (code, said) = refused(&dir, &elsewhere);
        assert!(code == 1 && said.contains("is not a socket"), "{said}");
        assert_eq!(std::fs::read(dir.join("root.sock2")).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_somebody_replaced_is_left_alone() {
        let mut daemon = Daemon::start("");
        std::fs::remove_file(daemon.root()).unwrap();
        let _other = UnixListener::bind(daemon.root()).unwrap();
        signal(&daemon, Signal::TERM);
        daemon.child().wait().unwrap();
        assert!(daemon.root().exists() && !daemon.scratch().exists());
    }

    #[test]
    fn a_changed_image_is_refused_and_the_rest_goes_on() {
        let daemon = Daemon::start("");
        let image = File::options()
            .write(true)
            .open(daemon.path().join("image"))
            .unwrap();
        image.write_all_at(b"other", 0).unwrap();
        assert!(Device::connect(&daemon.root(), &Setup::default()).is_err());
        wait_for(
            || daemon.log().contains("changed after it was opened"),
            || daemon.log(),
        );
        Device::connect(&daemon.scratch(), &Setup::default())
            .unwrap()
            .read(0, 512)
            .unwrap();
    }

    /// Writes 64 KiB pieces until one fails; returns how many went in.
    fn fill(device: &mut Device, pieces: u64) -> u64 {
        for piece in 0..pieces {
            let data = pattern(piece * 1000 + 1, 65536);
            match device.write(piece * 128, &data).unwrap() {
                OK => {}
                IOERR => return piece,
                other => panic!("status {other}"),
            }
        }
        panic!("the disk never got full");
    }

    fn full_disk(device: &mut Device, daemon: &Daemon) {
        let written = fill(device, 256);
        assert!(written > 0);
        for piece in 0..written {
            let seen = device.read(piece * 128, 65536).unwrap();
            assert_eq!(seen, pattern(piece * 1000 + 1, 65536), "piece {piece}");
        }
        assert!(
            daemon.log().contains("request failed: the host failed"),
            "{}",
            daemon.log()
        );
        // Room again: the disk goes on as if nothing had been.
        assert_eq!(device.ranges(T_DISCARD, &[(0, 256, 0)]).unwrap(), OK);
    }

    #[test]
    fn a_full_file_system_is_an_io_error() {
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("none", &small, "tmpfs", flags, Some(c"size=4m")) {
            println!("skipped: a_full_file_system_is_an_io_error: cannot mount a tmpfs: {error}");
            return;
        }
        let outcome = std::panic::catch_unwind(|| {
            std::fs::File::create(dir.path().join("template"))
                .unwrap()
                .set_len(16 << 20)
                .unwrap();
            std::fs::write(dir.path().join("image"), [1; 512]).unwrap();
            let place = format!("\"directory\": \"{}\"", dir.path().display());
            let config = config(dir.path(), "")
                .replace(&place, &format!("\"directory\": \"{}\"", small.display()));
            let daemon = Daemon::start_with(&config);
            let socket = dir.path().join("scratch.sock");
            let mut device = Device::connect(&socket, &Setup::default()).unwrap();
            full_disk(&mut device, &daemon);
            assert_eq!(device.write(300, &[5; 4096]).unwrap(), OK);
            drop(device);
            wait_for(|| daemon.sessions() == 0, || "session stays".into());
        });
        rustix::mount::unmount(&small, rustix::mount::UnmountFlags::empty()).unwrap();
        outcome.unwrap();
    }

    #[test]
    fn a_file_size_limit_is_an_io_error_too() {
        let daemon = Daemon::start("");
        let mut device = Device::connect(&daemon.scratch(), &Setup::default()).unwrap();
        // The layer has its file before the limit, which would not even allow that.
        assert_eq!(device.write(0, &[1; 512]).unwrap(), OK);
        let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
        let limit = Rlimit {
            current: Some(3 << 20),
            maximum: Some(3 << 20),
        };
        rustix::process::prlimit(pid, Resource::Fsize, limit).unwrap();
        full_disk(&mut device, &daemon);
    }

    #[test]
    fn one_image_behind_many_sockets_is_open_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), pattern(0, 8192)).unwrap();
        let image = dir.path().join("image").display().to_string();
        let listeners: Vec<_> = (0..20)
            .map(|i| {
                let socket = dir.path().join(format!("{i}.sock")).display().to_string();
                format!(r#"{{"socket": "{socket}", "disk": {{"image": {{"path": "{image}"}}}}}}"#)
            })
            .collect();
        let config = format!(r#"{{"listeners": [{}]}}"#, listeners.join(","));
        let daemon = Daemon::start_with(&config);
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .filter(|entry| {
                let path = entry.as_ref().unwrap().path();
                std::fs::read_link(path).is_ok_and(|target| target == Path::new(&image))
            })
            .count();
        assert_eq!(open, 1);
        for i in [0, 19] {
            let socket = dir.path().join(format!("{i}.sock"));
            let mut device = Device::connect(&socket, &Setup::default()).unwrap();
            assert_eq!(device.read(3, 512).unwrap(), pattern(3 * 512, 512));
        }
    }
}
