use super::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::os::fd::AsRawFd;

fn pair() -> (Channel, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    (Channel::from(ours), theirs)
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let bytes = [IoSlice::new(bytes)];
    sendmsg(socket, &bytes, &mut control, SendFlags::empty()).unwrap();
}

/// True once nobody else holds the pipe's write end.
fn is_closed(mut reader: &std::io::PipeReader) -> bool {
    rustix::io::ioctl_fionbio(reader, true).unwrap();
    matches!(io::Read::read(&mut reader, &mut [0]), Ok(0))
}

#[test]
fn datagrams_keep_their_borders_and_descriptors() {
    let (mut channel, peer) = pair();
    assert!(matches!(channel.receive().unwrap(), Received::Nothing));
    let files: Vec<File> = (0..MAX_DESCRIPTORS)
        .map(|_| File::open("/dev/null").unwrap())
        .collect();
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    send(&peer, b"first", &files);
    send(&peer, b"second", &[]);
    for (bytes, count) in [(&b"first"[..], MAX_DESCRIPTORS), (b"second", 0)] {
        let Received::Datagram(datagram) = channel.receive().unwrap() else {
            panic!("no datagram");
        };
        assert_eq!(datagram.bytes, bytes);
        assert_eq!(datagram.descriptors.len(), count);
        for descriptor in &datagram.descriptors {
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
}

#[test]
fn surplus_descriptors_are_refused_and_closed() {
    let (mut channel, peer) = pair();
    for count in [MAX_DESCRIPTORS + 1, MAX_DESCRIPTORS + 2, 64] {
        let (reader, writer) = io::pipe().unwrap();
        send(&peer, b"x", &vec![writer.as_fd(); count]);
        drop(writer);
        let Received::TooMuch(message) = channel.receive().unwrap() else {
            panic!("{count} were taken");
        };
        assert_eq!(message, "a request brings at most 5 descriptors");
        assert!(is_closed(&reader), "{count}: one is still open");
    }
}

#[test]
fn a_long_datagram_is_refused_and_what_it_brought_is_closed() {
    let (mut channel, peer) = pair();
    let (reader, writer) = io::pipe().unwrap();
    send(&peer, &vec![b' '; MAX_REQUEST_BYTES + 1], &[writer.as_fd()]);
    drop(writer);
    assert!(matches!(
        channel.receive().unwrap(),
        Received::TooMuch(message) if message == "a request has at most 65536 bytes"
    ));
    assert!(is_closed(&reader));
    send(&peer, &vec![b' '; MAX_REQUEST_BYTES], &[]);
    assert!(matches!(
        channel.receive().unwrap(),
        Received::Datagram(Datagram { bytes, .. }) if bytes.len() == MAX_REQUEST_BYTES
    ));
}

#[test]
fn sending_tells_a_full_socket_from_a_closed_one() {
    let (channel, peer) = pair();
    let file = File::open("/dev/null").unwrap();
    let mut sent = 0;
    while channel.send(&[b'x'; 1000], Some(file.as_fd())).unwrap() == Sent::Yes {
        sent += 1;
        assert!(sent < 100_000, "it never fills up");
    }
    assert!(sent > 0);
    assert_eq!(channel.send(b"x", None).unwrap(), Sent::Full);
    drop(peer);
    assert_eq!(channel.send(b"x", None).unwrap(), Sent::Closed);
}

#[test]
fn only_a_seqpacket_socket_is_adopted_and_its_number_is_free_then() {
    let file = File::open("/dev/null").unwrap();
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    for number in [-1, 1_000_000, file.as_raw_fd(), stream.as_raw_fd()] {
        assert!(Channel::adopt(number).is_err(), "{number}");
    }
    let (ours, theirs) = pair();
    let number = std::os::fd::IntoRawFd::into_raw_fd(ours.socket);
    let mut channel = Channel::adopt(number).unwrap();
    send(&theirs, b"hello", &[]);
    assert!(matches!(channel.receive().unwrap(), Received::Datagram(_)));
    drop(channel);
    let error = sendmsg(
        &theirs,
        &[IoSlice::new(b"x")],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    );
    assert_eq!(error.unwrap_err(), Errno::PIPE, "a duplicate is still open");
}
