//! What a program on the host says first: `CONNECT <port>\n`.
//!
//! Only the line is taken from the socket, so a client may send its first bytes with it.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

/// `CONNECT 4294967295\n`, and some spaces.
const MAX_LINE: usize = 32;

/// Where the line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Not complete yet.
    Partial,
    /// The guest port wanted.
    Connect(u32),
    /// Something else, or the end: close.
    Refused,
}

/// Looks for the line, and takes it if it is complete.
pub fn read_greeting(stream: &mut UnixStream) -> Greeting {
    let mut seen = [0; MAX_LINE];
    let length = match recv(&*stream, &mut seen, RecvFlags::PEEK).map_err(io::Error::from) {
        Ok((0, _)) => return Greeting::Refused,
        Ok((length, _)) => length,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            return Greeting::Partial;
        }
        Err(_) => return Greeting::Refused,
    };
    let Some(end) = seen[..length].iter().position(|&byte| byte == b'\n') else {
        return if length == MAX_LINE {
            Greeting::Refused
        } else {
            Greeting::Partial
        };
    };
    let Some(port) = parse(&seen[..end]) else {
        return Greeting::Refused;
    };
    match stream.read_exact(&mut seen[..=end]) {
        Ok(()) => Greeting::Connect(port),
        Err(_) => Greeting::Refused,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    match (words.next()?, words.next()?, words.next()) {
        ("CONNECT", port, None) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn the_line_may_come_in_pieces_and_with_what_follows() {
        let (mut ours, mut theirs) = pair();
        assert_eq!(read_greeting(&mut ours), Greeting::Partial);
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(read_greeting(&mut ours), Greeting::Partial);
        theirs.write_all(b"ECT 1024\nhello").unwrap();
        assert_eq!(read_greeting(&mut ours), Greeting::Connect(1024));
        let mut rest = [0; 16];
        assert_eq!(ours.read(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT x\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "CONNECT 1 2\n",
            "connect 1\n",
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT 111111111111111111111111111111",
            "CONNECT \u{663}\n",
        ] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(line.as_bytes()).unwrap();
            assert_eq!(read_greeting(&mut ours), Greeting::Refused, "{line:?}");
        }
    }

    #[test]
    fn the_end_is_refused() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        assert_eq!(read_greeting(&mut ours), Greeting::Refused);
    }
}
