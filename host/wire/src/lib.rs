//! Protobuf messages of Cloister and their size caps.
//!
//! [`session`] holds what peers exchange on a fresh TLS stream before HTTP/2, in frames of [`MAX_FRAME_BYTES`] at most.
//! The gRPC service of a federation comes with the feature `grpc`.

pub mod frame;

/// Messages of the attested session (`cloister.session.v1`).
pub mod session {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; documented in proto/session.proto"
    )]
    include!(concat!(env!("OUT_DIR"), "/cloister.session.v1.rs"));
}

pub use frame::{FrameError, FrameReader, MAX_FRAME_BYTES, decode, encode_frame};
