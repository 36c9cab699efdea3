//! Messages and descriptors between keeper and runner.
//!
//! One packet of a `SOCK_SEQPACKET` socket pair is one message: a byte that says where the message is (0: behind it, 1: in
//! the first descriptor, which is sealed memory), the message in CBOR (RFC 8949), and descriptors by `SCM_RIGHTS`. A packet
//! is at most [`MAX_PACKET_BYTES`], a message [`MAX_MESSAGE_BYTES`], descriptors [`MAX_DESCRIPTORS`]; bytes in bulk travel as
//! sealed memory beside the message. Both sides check all of it: either may be the hostile one.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::blob::{BlobError, SealedBlob, SharedBlob};

/// Bytes of a packet at most; larger messages travel as sealed memory.
pub(crate) const MAX_PACKET_BYTES: usize = 32 << 10;
/// Bytes of a message at most.
pub(crate) const MAX_MESSAGE_BYTES: u64 = 32 << 20;
/// Descriptors beside a message at most: the message's own, a model's, and those of an aggregator's slots.
pub(crate) const MAX_DESCRIPTORS: usize = 2 + cloister_sandbox::MAX_SLOTS;

const INLINE: u8 = 0;
const IN_MEMORY: u8 = 1;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("the other process closed the connection")]
    Closed,
    #[error("nothing came in time")]
    Deadline,
    #[error("the other process broke the protocol: {0}")]
    Protocol(String),
    #[error("shared memory of a message")]
    Blob(#[from] BlobError),
    #[error("the socket pair failed")]
    Socket(#[source] std::io::Error),
}

/// A message with what came beside it.
#[derive(Debug)]
pub(crate) struct Received<M> {
    pub(crate) message: M,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// One end of the socket pair.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A keeper's end, and the socket for the runner.
    pub(crate) fn pair() -> Result<(Self, OwnedFd), ChannelError> {
        let (own, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed)?;
        Ok((Self { socket: own }, other))
    }

    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends a message; waits for room until the deadline.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<(), ChannelError> {
        // Settings may be secrets; a packet that fits grows nowhere, and leaves no copy.
        let mut packet = Zeroizing::new(Vec::with_capacity(MAX_PACKET_BYTES + 1));
        packet.push(INLINE);
        ciborium::into_writer(message, &mut *packet)
            .map_err(|error| ChannelError::Protocol(format!("an own message cannot be written: {error}")))?;
        let memory = if packet.len() > MAX_PACKET_BYTES {
            let memory = SharedBlob::copy_of(&packet[1..])?;
            packet = Zeroizing::new(vec![IN_MEMORY]);
            Some(memory)
        } else {
            None
        };
        let passed: Vec<BorrowedFd<'_>> = memory
            .iter()
            .map(SealedBlob::as_fd)
            .chain(descriptors.iter().copied())
            .collect();
        if passed.len() > MAX_DESCRIPTORS {
            return Err(ChannelError::Protocol(format!(
                "{} descriptors for one message",
                passed.len()
            )));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !passed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&passed));
        }
        loop {
            self.wait(PollFlags::OUT, deadline)?;
            match sendmsg(
                &self.socket,
                &[IoSlice::new(&packet)],
                &mut control,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(ChannelError::Closed),
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Waits for a message until the deadline.
    pub(crate) fn receive<M: DeserializeOwned>(&self, deadline: Option<Instant>) -> Result<Received<M>, ChannelError> {
        let (packet, mut descriptors) = self.receive_packet(deadline)?;
        let message = match packet.split_first() {
            Some((&INLINE, message)) => read(message)?,
            Some((&IN_MEMORY, [])) if !descriptors.is_empty() => {
                let memory = SealedBlob::accept(descriptors.remove(0), MAX_MESSAGE_BYTES)?;
                read(memory.bytes())?
            }
            _ => return Err(ChannelError::Protocol("a packet of unknown form".to_owned())),
        };
        Ok(Received { message, descriptors })
    }

    fn receive_packet(&self, deadline: Option<Instant>) -> Result<(Zeroizing<Vec<u8>>, Vec<OwnedFd>), ChannelError> {
        let mut packet = Zeroizing::new(vec![0; MAX_PACKET_BYTES]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            self.wait(PollFlags::IN, deadline)?;
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::CONNRESET) => return Err(ChannelError::Closed),
                Err(error) => return Err(failed(error)),
            }
        };
        let mut descriptors = Vec::new();
        for control in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = control {
                descriptors.extend(passed);
            }
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            let problem = format!("a packet of more than {MAX_PACKET_BYTES} bytes or {MAX_DESCRIPTORS} descriptors");
            return Err(ChannelError::Protocol(problem));
        }
        packet.truncate(received.bytes);
        Ok((packet, descriptors))
    }

    /// Waits until the socket is ready or gone (what follows tells which).
    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<(), ChannelError> {
        loop {
            let left = match deadline {
                None => None,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    Some(timespec(left))
                }
            };
            match poll(&mut [PollFd::new(&self.socket, what)], left.as_ref()) {
                Ok(0) => return Err(ChannelError::Deadline),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn timespec(time: Duration) -> Timespec {
    // A longer wait than this (a year) is none that anybody means.
    let time = time.min(Duration::from_secs(31_536_000));
    Timespec {
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

fn failed(error: Errno) -> ChannelError {
    ChannelError::Socket(error.into())
}

/// Reads one message and nothing behind it.
fn read<M: DeserializeOwned>(mut bytes: &[u8]) -> Result<M, ChannelError> {
    let message = ciborium::from_reader(&mut bytes).map_err(|error| {
        let cause: String = error.to_string().chars().take(200).collect();
        ChannelError::Protocol(format!("an unreadable message: {cause}"))
    })?;
    if bytes.is_empty() {
        Ok(message)
    } else {
        Err(ChannelError::Protocol("bytes behind a message".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::net::send;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = Channel::pair().unwrap();
        (one, Channel::new(other))
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(5))
    }

    #[test]
    fn messages_small_and_large_come_with_their_descriptors() {
        let (one, other) = pair();
        let blob = SharedBlob::copy_of(b"beside").unwrap();
        for size in [0, 10, MAX_PACKET_BYTES - 4, MAX_PACKET_BYTES, 3 << 20] {
            let message = "x".repeat(size);
            one.send(&message, &[blob.as_fd()], soon()).unwrap();
            let mut received = other.receive::<String>(soon()).unwrap();
            assert_eq!(received.message, message);
            let beside = SealedBlob::accept(received.descriptors.remove(0), 100).unwrap();
            assert_eq!(beside.bytes().as_ref(), b"beside");
            assert!(received.descriptors.is_empty());
        }
    }

    #[test]
    fn silence_ends_at_the_deadline_and_a_closed_end_at_once() {
        let (one, other) = pair();
        let deadline = Some(Instant::now() + Duration::from_millis(20));
        assert!(matches!(one.receive::<String>(deadline), Err(ChannelError::Deadline)));
        drop(other);
        assert!(matches!(one.receive::<String>(None), Err(ChannelError::Closed)));
        assert!(matches!(one.send(&"x", &[], None), Err(ChannelError::Closed)));
    }

    #[test]
    fn an_end_that_does_not_read_cannot_hold_the_sender() {
        let (one, _other) = pair();
        let message = "x".repeat(MAX_PACKET_BYTES - 16);
        let deadline = Instant::now() + Duration::from_millis(50);
        let end = (0..10_000).find_map(|_| one.send(&message, &[], Some(deadline)).err());
        assert!(matches!(end, Some(ChannelError::Deadline)));
    }

    #[test]
    fn packets_of_a_wrong_form_are_refused() {
        let refused = |packet: &[u8]| {
            let (one, other) = pair();
            send(&one, packet, SendFlags::empty()).unwrap();
            other.receive::<String>(soon()).unwrap_err().to_string()
        };
        assert!(refused(&[7]).contains("unknown form"));
        assert!(refused(&[IN_MEMORY]).contains("unknown form"));
        assert!(refused(&[INLINE]).contains("unreadable"));
        assert!(refused(&[INLINE, 0x61, b'x', 0]).contains("behind a message"));
        assert!(
            refused(&[INLINE, 0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).contains("unreadable"),
            "a lying length"
        );
        assert!(refused(&vec![INLINE; MAX_PACKET_BYTES + 1]).contains("more than"));
        assert!(
            refused(&[vec![INLINE], vec![0x81; 20_000]].concat()).contains("unreadable"),
            "nested without end"
        );
    }

    #[test]
    fn too_many_descriptors_and_unsealed_memory_are_refused() {
        let (one, other) = pair();
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let descriptors = [file.as_fd(); MAX_DESCRIPTORS + 3];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        for (packet, count, wanted) in [
            (INLINE, MAX_DESCRIPTORS + 3, "descriptors"),
            (IN_MEMORY, 1, "shared memory"),
        ] {
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors[..count]));
            sendmsg(&one, &[IoSlice::new(&[packet])], &mut control, SendFlags::empty()).unwrap();
            assert!(
                other
                    .receive::<String>(soon())
                    .unwrap_err()
                    .to_string()
                    .contains(wanted)
            );
        }
        assert!(one.send(&"x", &descriptors, None).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_message_or_an_error(packet in proptest::collection::vec(any::<u8>(), 1..300)) {
            let (one, other) = pair();
            send(&one, &packet, SendFlags::empty()).unwrap();
            let _ = other.receive::<crate::message::Reply>(soon());
        }
    }
}
