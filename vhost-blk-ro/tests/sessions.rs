//! The daemon as a process, against a front end in this one: every kind of request, several
//! sessions, front ends that vanish, hostile ones, restart.

#[path = "front_end/daemon.rs"]
mod daemon;
#[path = "front_end/driver.rs"]
mod driver;

#[cfg(test)]
mod tests {
    use super::daemon::{Daemon, pattern};
    use super::driver::*;

    #[test]
    fn an_image_is_read_and_never_written() {
        let daemon = Daemon::start("");
        let mut device = Device::connect(&daemon.root(), &Setup::default()).unwrap();
        assert_ne!(device.features & F_RO, 0);
        assert_eq!(device.features & (F_DISCARD | F_FLUSH), 0);
        assert_eq!(device.capacity().unwrap(), 4 << 11);
        assert_eq!(device.read(0, 4096).unwrap(), pattern(0, 4096));
        assert_eq!(
            device.read(1237, 65536).unwrap(),
            pattern(1237 * 512, 65536)
        );
        assert_eq!(device.write(0, &[0; 512]).unwrap(), IOERR);
        assert_eq!(device.ranges(T_DISCARD, &[(0, 8, 0)]).unwrap(), UNSUPP);
        assert_eq!(device.request(0, T_FLUSH, 0, 0).unwrap(), OK);
        assert_eq!(device.id().unwrap(), "root");
        assert_eq!(device.read(0, 4096).unwrap(), pattern(0, 4096));
    }
}
