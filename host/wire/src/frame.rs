//! Frames: a u32 length, big endian, and that many bytes of protobuf.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Longest message in a frame, in bytes, without the length in front of it.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// Length of the length, in bytes.
const PREFIX: usize = 4;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The peer announces more than a frame may hold, or a message to send is longer.
    #[error("a frame of {len} bytes, wanted at most {MAX_FRAME_BYTES}; the other end does not speak cloister/1")]
    TooLong {
        /// Length announced, in bytes.
        len: usize,
    },
    /// The bytes in the frame are not the message that is due.
    #[error("a frame that is no {wanted} message: {cause}")]
    Malformed {
        /// Name of the message that was due.
        wanted: &'static str,
        /// What the decoder found.
        cause: String,
    },
}

/// Writes a message as a frame: length, then protobuf.
///
/// # Errors
/// [`FrameError::TooLong`] if the message takes more than [`MAX_FRAME_BYTES`].
pub fn encode_frame(message: &impl Message) -> Result<Bytes, FrameError> {
    let len = message.encoded_len();
    if len > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { len });
    }
    let mut out = BytesMut::with_capacity(PREFIX + len);
    out.put_u32(u32::try_from(len).map_err(|_| FrameError::TooLong { len })?);
    out.put_slice(&message.encode_to_vec());
    Ok(out.freeze())
}

/// Reads a message out of a frame's body (without the length).
///
/// # Errors
/// [`FrameError::TooLong`] for more than [`MAX_FRAME_BYTES`], [`FrameError::Malformed`] if it is not that message.
pub fn decode<M: Message + Default>(body: &Bytes, wanted: &'static str) -> Result<M, FrameError> {
    if body.len() > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { len: body.len() });
    }
    M::decode(body.clone()).map_err(|error| FrameError::Malformed {
        wanted,
        cause: error.to_string(),
    })
}

/// Cuts a stream of bytes into frames. Holds at most one frame and what arrived behind it.
///
/// Feed it what the socket gives, take frames until it has none. Bytes behind the last frame of the handshake
/// belong to HTTP/2: [`FrameReader::into_rest`] gives them back.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// A reader with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes have to arrive before the next frame can be taken: read no more than this and nothing behind
    /// the frame is ever taken from the stream.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] if the announced length is above the cap.
    pub fn missing(&self) -> Result<usize, FrameError> {
        match self.announced()? {
            None => Ok(PREFIX - self.buffer.len()),
            Some(len) => Ok((PREFIX + len).saturating_sub(self.buffer.len())),
        }
    }

    /// Adds bytes as they came from the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole frame's body, if it is there.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as a length above the cap is announced.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(len) = self.announced()? else { return Ok(None) };
        if self.buffer.len() < PREFIX + len {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Bytes that arrived behind the last frame taken.
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }

    fn announced(&self) -> Result<Option<usize>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong { len });
        }
        Ok(Some(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{FailedRule, Hello, Verdict};

    fn hello() -> Hello {
        Hello {
            version: 1,
            role: "worker".into(),
            node: "worker-a".into(),
            nonce: Bytes::from(vec![7; 32]),
            ..Hello::default()
        }
    }

    #[test]
    fn frames_come_back_whole_however_they_arrive() {
        let bytes = [
            encode_frame(&hello()).unwrap(),
            encode_frame(&Verdict::default()).unwrap(),
        ]
        .concat();
        for step in 1..bytes.len() {
            let mut reader = FrameReader::new();
            let mut frames = Vec::new();
            for part in bytes.chunks(step) {
                reader.feed(part);
                while let Some(frame) = reader.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 2);
            assert_eq!(decode::<Hello>(&frames[0], "Hello").unwrap(), hello());
            assert_eq!(decode::<Verdict>(&frames[1], "Verdict").unwrap(), Verdict::default());
            assert!(reader.into_rest().is_empty());
        }
    }

    #[test]
    fn missing_never_reaches_behind_the_frame() {
        let frame = encode_frame(&hello()).unwrap();
        let mut reader = FrameReader::new();
        assert_eq!(reader.missing().unwrap(), 4);
        reader.feed(&frame[..4]);
        assert_eq!(reader.missing().unwrap(), frame.len() - 4);
        reader.feed(&frame[4..]);
        assert_eq!(reader.missing().unwrap(), 0);
    }

    #[test]
    fn a_long_frame_is_refused_at_its_length() {
        let mut reader = FrameReader::new();
        reader.feed(b"GET / HTTP/1.1\r\n");
        assert!(matches!(
            reader.next_frame(),
            Err(FrameError::TooLong { len: 0x4745_5420 })
        ));
        let rules = vec![FailedRule {
            rule: "x".repeat(MAX_FRAME_BYTES),
            ..FailedRule::default()
        }];
        assert!(matches!(
            encode_frame(&Verdict { accepted: false, rules }),
            Err(FrameError::TooLong { .. })
        ));
    }

    #[test]
    fn garbage_names_the_message_that_was_due() {
        let error = decode::<Hello>(&Bytes::from_static(&[0xff; 9]), "Hello").unwrap_err();
        assert!(error.to_string().starts_with("a frame that is no Hello message"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut reader = FrameReader::new();
            reader.feed(&bytes);
            while let Ok(Some(frame)) = reader.next_frame() {
                let _ = decode::<Hello>(&frame, "Hello");
                let _ = decode::<Verdict>(&frame, "Verdict");
            }
        }
    }
}
