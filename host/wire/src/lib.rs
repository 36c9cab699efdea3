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

/// Messages and gRPC service of a federation (`cloister.federation.v1`). Every message is at most
/// [`MAX_MESSAGE_BYTES`], tensors come in chunks of at most [`MAX_CHUNK_BYTES`].
#[cfg(feature = "grpc")]
pub mod federation {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        reason = "generated; documented in proto/federation.proto"
    )]
    include!(concat!(env!("OUT_DIR"), "/cloister.federation.v1.rs"));
}

/// Messages and gRPC service by which a model gets to another TD (`cloister.export.v1`).
#[cfg(feature = "grpc")]
pub mod export {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        reason = "generated; documented in proto/export.proto"
    )]
    include!(concat!(env!("OUT_DIR"), "/cloister.export.v1.rs"));
}

/// Messages and gRPC service of a federation's manager (`cloister.manager.v1`). Every message is at most [`MAX_MESSAGE_BYTES`].
#[cfg(feature = "grpc")]
pub mod manager {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        reason = "generated; documented in proto/manager.proto"
    )]
    include!(concat!(env!("OUT_DIR"), "/cloister.manager.v1.rs"));

    impl std::fmt::Debug for PutSecretRequest {
        fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.debug_struct("PutSecretRequest")
                .field("secret", &self.secret)
                .finish_non_exhaustive()
        }
    }
}

/// Longest gRPC message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most payload of one chunk, in bytes.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;

pub use frame::{FrameError, FrameReader, MAX_FRAME_BYTES, decode, encode_frame};
