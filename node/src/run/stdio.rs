//! Our stdin, stdout and stderr as plain files: unbuffered, and patient when somebody has made them
//! non-blocking (that flag is shared with whoever else has the same terminal or pipe).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

struct Patient(File);

impl Patient {
    fn of(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self(File::from(fd.as_fd().try_clone_to_owned()?)))
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.0, flags)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                other => return other,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn stdin() -> io::Result<Box<dyn Read + Send>> {
    Ok(Box::new(Patient::of(io::stdin())?))
}

pub(crate) fn stdout() -> io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(Patient::of(io::stdout())?))
}

pub(crate) fn stderr() -> io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(Patient::of(io::stderr())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_non_blocking_pipe_loses_nothing() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut out = Patient::of(&ours).unwrap();
        let expected = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; expected.len()];
            theirs.read_exact(&mut all).unwrap();
            theirs.write_all(b"done").unwrap();
            all == expected
        });
        out.write_all(&bytes).unwrap();
        let mut word = [0; 4];
        out.read_exact(&mut word).unwrap();
        assert!(reader.join().unwrap());
    }
}
