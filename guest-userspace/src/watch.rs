//! Names for watched descriptors. An event carries the name of its descriptor: a slot, the role in
//! it, and the slot's generation, so that an event of a session that has just ended meets nobody.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

/// Which of a slot's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Listener,
    Children,
    Announcement,
    Connection,
    Report,
    Stdin,
    Stdout,
    Stderr,
}

/// The roles by their code in a [`Token`].
const ROLES: [Role; 8] = [
    Role::Listener,
    Role::Children,
    Role::Announcement,
    Role::Connection,
    Role::Report,
    Role::Stdin,
    Role::Stdout,
    Role::Stderr,
];

/// Name of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) generation: u32,
    pub(crate) slot: u16,
    pub(crate) role: Role,
}

impl Token {
    fn pack(self) -> u64 {
        let role = ROLES.iter().position(|role| *role == self.role);
        let role = role.and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
        u64::from(self.generation) << 32 | u64::from(self.slot) << 16 | u64::from(role)
    }

    pub(crate) fn unpack(value: u64) -> Option<Self> {
        let [g0, g1, g2, g3, s0, s1, _, role] = value.to_be_bytes();
        Some(Token {
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
            slot: u16::from_be_bytes([s0, s1]),
            role: *ROLES.get(usize::from(role))?,
        })
    }
}

/// Where a session has its descriptors watched. Closing a descriptor ends that.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) epoll: &'a OwnedFd,
    pub(crate) generation: u32,
    pub(crate) slot: u16,
}

impl Watch<'_> {
    /// For a session's descriptors: both directions, edge-triggered.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, role: Role) -> io::Result<()> {
        self.add_with(fd, role, EventFlags::IN | EventFlags::OUT | EventFlags::ET)
    }

    pub(crate) fn add_with(
        &self,
        fd: BorrowedFd<'_>,
        role: Role,
        flags: EventFlags,
    ) -> io::Result<()> {
        let token = Token {
            generation: self.generation,
            slot: self.slot,
            role,
        };
        Ok(epoll::add(
            self.epoll,
            fd,
            EventData::new_u64(token.pack()),
            flags,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for role in ROLES {
            let token = Token {
                generation: 0xdead_beef,
                slot: 0x1234,
                role,
            };
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0xff), None);
    }
}
