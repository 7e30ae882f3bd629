//! Frames: eight bytes of header, then the payload.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind: 1 control, 2 data, 3 end of stream, 4 credit |
//! | 1 | stream: 0 stdin, 1 stdout, 2 stderr; 0 for control |
//! | 2..4 | zero |
//! | 4..8 | length of the payload, little endian |
//!
//! Lengths are limited by kind ([`MAX_CONTROL`], [`MAX_DATA`]) and checked before anything is
//! allocated: the other side may be hostile.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Longest control message in bytes; argv and environment together have to fit (as with `ARG_MAX`,
/// execve(2)).
pub const MAX_CONTROL: usize = 1024 * 1024;

/// Longest data payload in bytes.
pub const MAX_DATA: usize = 64 * 1024;

const CONTROL: u8 = 1;
const DATA: u8 = 2;
const EOF: u8 = 3;
const CREDIT: u8 = 4;

/// One of a command's three streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

impl Stream {
    fn code(self) -> u8 {
        match self {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        match code {
            0 => Ok(Stream::Stdin),
            1 => Ok(Stream::Stdout),
            2 => Ok(Stream::Stderr),
            other => Err(FrameError::Stream(other)),
        }
    }
}

/// One frame, its payload borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A JSON message: [`crate::Request`], [`crate::Reply`] or [`crate::Ready`].
    Control(&'a [u8]),
    /// Bytes of a stream, at most [`MAX_DATA`].
    Data(Stream, &'a [u8]),
    /// No more bytes of this stream will come.
    Eof(Stream),
    /// The sender of this stream may send this many bytes more.
    Credit(Stream, u32),
}

/// Why bytes are not a frame, or a frame not a message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("unknown stream {0}")]
    Stream(u8),
    #[error("reserved bytes of a frame header are not zero")]
    Reserved,
    #[error("frame of kind {kind} has {length} bytes, at most {limit} are allowed")]
    Length { kind: u8, length: u64, limit: usize },
    #[error("a credit frame has 4 bytes, this one has {0}")]
    CreditLength(u32),
    #[error("control message is not understood")]
    Message(#[source] serde_json::Error),
    #[error("connection failed")]
    Io(#[source] io::Error),
}

impl Frame<'_> {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Length`] when the payload is over its limit; `out` is unchanged then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let credit_bytes;
        let (kind, stream, payload): (u8, u8, &[u8]) = match self {
            Frame::Control(message) => (CONTROL, 0, message),
            Frame::Data(stream, bytes) => (DATA, stream.code(), bytes),
            Frame::Eof(stream) => (EOF, stream.code(), &[]),
            Frame::Credit(stream, credit) => {
                credit_bytes = credit.to_le_bytes();
                (CREDIT, stream.code(), &credit_bytes)
            }
        };
        let limit = limit(kind)?;
        let too_long = || FrameError::Length {
            kind,
            length: payload.len() as u64,
            limit,
        };
        if payload.len() > limit {
            return Err(too_long());
        }
        let length = u32::try_from(payload.len()).map_err(|_| too_long())?;
        out.reserve(HEADER + payload.len());
        out.extend_from_slice(&[kind, stream, 0, 0]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(payload);
        Ok(())
    }

    /// Writes the frame with one `write_all`.
    ///
    /// # Errors
    /// As [`Frame::encode`], and [`FrameError::Io`].
    pub fn write(&self, to: &mut impl Write) -> Result<(), FrameError> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes)?;
        to.write_all(&bytes).map_err(FrameError::Io)
    }
}

fn limit(kind: u8) -> Result<usize, FrameError> {
    match kind {
        CONTROL => Ok(MAX_CONTROL),
        DATA => Ok(MAX_DATA),
        EOF => Ok(0),
        CREDIT => Ok(4),
        other => Err(FrameError::Kind(other)),
    }
}

/// Looks for one frame at the start of `bytes`: the frame and how many bytes it took, or `None` when
/// more bytes are needed. For readers that must not block.
///
/// # Errors
/// Whatever makes the bytes no frame; the connection is of no use then.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [kind, stream, zero_1, zero_2, length @ ..] = *header;
    let length = u32::from_le_bytes(length);
    let limit = limit(kind)?;
    if (zero_1, zero_2) != (0, 0) {
        return Err(FrameError::Reserved);
    }
    let long = || FrameError::Length {
        kind,
        length: u64::from(length),
        limit,
    };
    let size = usize::try_from(length).map_err(|_| long())?;
    if size > limit {
        return Err(long());
    }
    let stream = Stream::from_code(stream)?;
    if kind == CREDIT && size != 4 {
        return Err(FrameError::CreditLength(length));
    }
    let Some(payload) = rest.get(..size) else {
        return Ok(None);
    };
    let frame = match (kind, payload) {
        (CONTROL, message) => Frame::Control(message),
        (DATA, data) => Frame::Data(stream, data),
        (EOF, _) => Frame::Eof(stream),
        (CREDIT, &[a, b, c, d]) => Frame::Credit(stream, u32::from_le_bytes([a, b, c, d])),
        (other, _) => return Err(FrameError::Kind(other)),
    };
    Ok(Some((frame, HEADER + size)))
}

/// Blocks until one frame has come; its bytes are in `buffer`. `None` when the connection ended
/// between two frames.
///
/// # Errors
/// Whatever makes the bytes no frame, and [`FrameError::Io`].
pub fn read<'a>(
    from: &mut impl Read,
    buffer: &'a mut Vec<u8>,
) -> Result<Option<Frame<'a>>, FrameError> {
    buffer.clear();
    buffer.resize(HEADER, 0);
    let mut have = 0;
    while let Some(space) = buffer.get_mut(have..).filter(|space| !space.is_empty()) {
        match from.read(space) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
    // Checks kind and length before the payload is made room for.
    decode(buffer)?;
    let length = buffer
        .last_chunk::<4>()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    buffer.resize(HEADER + length as usize, 0);
    match from.read_exact(&mut buffer[HEADER..]) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(FrameError::Truncated);
        }
        Err(error) => return Err(FrameError::Io(error)),
    }
    Ok(decode(buffer)?.map(|(frame, _)| frame))
}

/// Sends one message as a control frame.
///
/// # Errors
/// [`FrameError::Length`] when it is over [`MAX_CONTROL`], [`FrameError::Io`].
pub fn write_message(to: &mut impl Write, message: &impl Serialize) -> Result<(), FrameError> {
    let json = serde_json::to_vec(message).map_err(FrameError::Message)?;
    Frame::Control(&json).write(to)
}

/// Reads the JSON of a control frame.
///
/// # Errors
/// [`FrameError::Message`] with the place in the text.
pub fn parse_message<M: DeserializeOwned>(json: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(json).map_err(FrameError::Message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExecSpec, Request};
    use proptest::prelude::*;

    fn stream() -> impl Strategy<Value = Stream> {
        prop_oneof![
            Just(Stream::Stdin),
            Just(Stream::Stdout),
            Just(Stream::Stderr)
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(s in stream(), data in proptest::collection::vec(any::<u8>(), 0..2000),
                                      credit in any::<u32>()) {
            for frame in [Frame::Control(&data), Frame::Data(s, &data), Frame::Eof(s), Frame::Credit(s, credit)] {
                let mut bytes = Vec::new();
                frame.encode(&mut bytes).unwrap();
                let (decoded, used) = decode(&bytes).unwrap().unwrap();
                prop_assert_eq!(&decoded, &frame);
                prop_assert_eq!(used, bytes.len());
                let mut buffer = Vec::new();
                prop_assert_eq!(read(&mut bytes.as_slice(), &mut buffer).unwrap(), Some(frame));
                for cut in 0..bytes.len() {
                    prop_assert!(decode(&bytes[..cut]).unwrap().is_none());
                }
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, used))) = decode(&bytes) {
                prop_assert!(used <= bytes.len());
            }
            let mut buffer = Vec::new();
            let _ = read(&mut bytes.as_slice(), &mut buffer);
            prop_assert!(buffer.len() <= HEADER + MAX_CONTROL);
        }
    }

    #[test]
    fn too_long_is_refused_before_it_is_read() {
        let header = [DATA, 1, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(decode(&header), Err(FrameError::Length { .. })));
        let mut buffer = Vec::new();
        assert!(read(&mut header.as_slice(), &mut buffer).is_err());
        assert!(buffer.len() <= HEADER);
    }

    #[test]
    fn end_inside_a_frame_is_told_from_end_between_frames() {
        let mut buffer = Vec::new();
        assert!(read(&mut [].as_slice(), &mut buffer).unwrap().is_none());
        let half = [DATA, 1, 0, 0, 4, 0, 0, 0, 1];
        assert!(matches!(
            read(&mut half.as_slice(), &mut buffer),
            Err(FrameError::Truncated)
        ));
    }

    #[test]
    fn unknown_fields_of_a_message_are_refused() {
        let exec = Request::Exec(ExecSpec {
            argv: vec!["true".into()],
            ..ExecSpec::default()
        });
        let json = serde_json::to_vec(&exec).unwrap();
        assert_eq!(parse_message::<Request>(&json).unwrap(), exec);
        let error = parse_message::<Request>(br#"{"exec":{"argv":["true"],"colour":1}}"#);
        assert!(matches!(error, Err(FrameError::Message(_))));
    }
}
