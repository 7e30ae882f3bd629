//! Requests to a zygote: through a socket with descriptors, then read. The first byte of the input says
//! how many descriptors come along. Whatever comes, none of them stays open.

#![no_main]

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use libfuzzer_sys::fuzz_target;
use rundlet_vmm::spec::{self, ConsoleSink, ConsoleSpec};
use rundlet_vmm::zygote::channel::{Channel, MAX_DESCRIPTORS, MAX_REQUEST_BYTES, Received};
use rundlet_vmm::zygote::order::{self, Gifts, Order, Wanted};
use rundlet_vmm::zygote::wire::Request;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

fuzz_target!(|data: &[u8]| {
    let Some((&count, json)) = data.split_first() else {
        return;
    };
    let null = File::open("/dev/null").expect("it is always there");
    serve(json, usize::from(count % 8), &null);
    let next = File::open("/dev/null").expect("it is always there");
    assert_eq!(next.as_raw_fd(), null.as_raw_fd() + 1, "a descriptor is still open");
});

fn serve(json: &[u8], count: usize, null: &File) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair of sockets");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = vec![null.as_fd(); count];
    assert!(count == 0 || control.push(SendAncillaryMessage::ScmRights(&rights)));
    sendmsg(&theirs, &[IoSlice::new(json)], &mut control, SendFlags::empty()).expect("room");
    match Channel::from(ours).receive().expect("a datagram") {
        Received::Datagram(datagram) => {
            assert!(json == datagram.bytes && count == datagram.descriptors.len());
            match Order::new(json, datagram.descriptors) {
                Ok(order) => check(order, count),
                Err(error) => refused(json, &error.to_string()),
            }
        }
        Received::TooMuch(_) => assert!(json.len() > MAX_REQUEST_BYTES || count > MAX_DESCRIPTORS),
        other => panic!("{other:?}"),
    }
}

/// "field: what is wrong with it"
fn refused(json: &[u8], error: &str) {
    assert!(error.contains(": "), "{error}");
    let _ = Request::id_of_unreadable(json);
}

fn check(order: Order, count: usize) {
    let Order { id, wanted, gifts } = order;
    assert!(order::usable(&id));
    let console: Option<ConsoleSpec> = match wanted {
        Wanted::Clone(spec) => {
            assert!(spec.disks.len() <= spec::MAX_DISKS);
            assert!(spec.binding.labels().len() <= spec::MAX_LABELS);
            spec.console
        }
        Wanted::Boot(spec) => {
            assert!(spec.devices.disks.len() <= spec::MAX_DISKS);
            assert!(spec::VCPUS.contains(&spec.vcpus));
            spec.devices.console
        }
    };
    let sink = console.map(|console| console.sink);
    let number = gifts.console.as_ref().map(AsRawFd::as_raw_fd);
    match sink {
        Some(ConsoleSink::Fd(sink)) => assert_eq!(Some(sink), number),
        _ => assert_eq!(number, None),
    }
    let Gifts {
        cgroup,
        lifeline,
        stdout,
        stderr,
        console,
    } = gifts;
    let gifts = [cgroup, lifeline, stdout, stderr, console];
    assert_eq!(gifts.iter().flatten().count(), count);
}
