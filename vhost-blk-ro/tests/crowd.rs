//! Very many sessions: what they leave behind, what idle ones cost, and that none waits for another.

#[path = "front_end/daemon.rs"]
#[cfg(test)]
mod daemon;
#[path = "front_end/driver.rs"]
#[cfg(test)]
mod driver;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::daemon::{Daemon, pattern, wait_for};
    use super::driver::*;

    /// One that accepts, and those that wait for something to do.
    const IDLE_THREADS: u64 = 1 + 4;

    #[test]
    fn a_thousand_sessions_leave_nothing() {
        let daemon = Daemon::start(r#", "queues": 2"#);
        let session = |i: u64| {
            let socket = if i.is_multiple_of(2) {
                daemon.root()
            } else {
                daemon.scratch()
            };
            let setup = Setup {
                queues: 2,
                ..Setup::default()
            };
            let mut device = Device::connect(&socket, &setup).unwrap();
            assert_eq!(
                device.read(i % 100, 4096).unwrap(),
                pattern(i % 100 * 512, 4096)
            );
        };
        let settled = || {
            wait_for(
                || daemon.sessions() == 0 && daemon.threads() <= IDLE_THREADS,
                || {
                    format!(
                        "{} sessions, {} threads",
                        daemon.sessions(),
                        daemon.threads()
                    )
                },
            );
            (daemon.descriptors(), daemon.status("VmRSS"))
        };
        for i in 0..50 {
            session(i);
        }
        let (descriptors, resident) = settled();
        for i in 0..1000 {
            session(i);
        }
        let (descriptors_after, resident_after) = settled();
        assert_eq!(descriptors_after, descriptors);
        println!("RSS {resident} kB before, {resident_after} kB after 1,000 sessions");
        assert!(
            resident_after <= resident + 512,
            "{resident} -> {resident_after} kB"
        );
        assert_eq!(
            daemon
                .log()
                .matches(": ended: front end disconnected")
                .count(),
            1050
        );
    }

    fn connect(daemon: &Daemon, count: usize) -> Vec<Device> {
        let connect = |i| {
            let socket = if i % 2 == 0 {
                daemon.root()
            } else {
                daemon.scratch()
            };
            let mut device = Device::connect(&socket, &Setup::default()).unwrap();
            for _ in 0..10 {
                device.read(0, 4096).unwrap();
            }
            device
        };
        (0..count).map(connect).collect()
    }

    fn is_idle(daemon: &Daemon) {
        wait_for(
            || daemon.threads() <= IDLE_THREADS,
            || format!("{} threads", daemon.threads()),
        );
    }

    /// How often a thread of the daemon went to sleep: each time it had been woken.
    fn sleeps(daemon: &Daemon) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let of = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        tasks.map(|task| of(task.unwrap())).sum()
    }

    #[test]
    fn idle_sessions_have_no_threads_and_wake_nobody() {
        let daemon = Daemon::start(r#", "poll_us": 200"#);
        let mut devices = connect(&daemon, 1);
        let descriptors = daemon.descriptors();
        devices.extend(connect(&daemon, 199));
        is_idle(&daemon);
        assert_eq!(daemon.sessions(), 200);
        // Connection, epoll set, kick, call, memory; no layer was written.
        assert_eq!(daemon.descriptors() - descriptors, 199 * 5);
        // The last ones that stayed with a queue have left it.
        std::thread::sleep(Duration::from_millis(50));
        let before = sleeps(&daemon);
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(sleeps(&daemon), before);
        for (device, i) in devices.iter_mut().zip(0..) {
            let seen = device.read(i % 100, 512).unwrap();
            assert_eq!(seen, pattern(i % 100 * 512, 512));
        }
    }

    #[test]
    fn parked_sessions_notice_that_the_daemon_stops() {
        let mut daemon = Daemon::start(r#", "queues": 2"#);
        let mut devices = connect(&daemon, 100);
        is_idle(&daemon);
        let pid = i32::try_from(daemon.pid()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(daemon.child().wait().unwrap().success());
        let ended = daemon.log().matches("ended: daemon is stopping").count();
        assert_eq!(ended, 100, "{}", daemon.log());
        assert!(devices.iter_mut().all(|device| device.capacity().is_err()));
    }

    #[test]
    fn sessions_come_and_go_while_others_work() {
        let daemon = Daemon::start(r#", "queues": 2"#);
        std::thread::scope(|scope| {
            for worker in 0..8u64 {
                let daemon = &daemon;
                scope.spawn(move || {
                    for round in 0..20 {
                        let mut devices = connect(daemon, 3);
                        let sector = worker * 20 + round;
                        // Long enough apart, now and then, for a thread to leave.
                        if round % 4 == 0 {
                            std::thread::sleep(Duration::from_millis(11));
                        }
                        let seen = devices[0].read(sector, 4096).unwrap();
                        assert_eq!(seen, pattern(sector * 512, 4096));
                        assert_eq!(devices[1].write(sector, &seen).unwrap(), OK);
                    }
                });
            }
        });
        wait_for(
            || daemon.sessions() == 0,
            || format!("{} sessions", daemon.sessions()),
        );
        is_idle(&daemon);
    }
}
