//! What report data of a session's quotes commits to.

use cloister_tensor::Digest;
use sha2::{Digest as _, Sha512};

use crate::encoding::Layout;
use crate::measurement::MeasurementRoot;

/// Label of the TLS exporter (RFC 8446, section 7.5) that session evidence is bound to; empty context, 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL-cloister-session-v1";

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Dialled: shows its evidence first.
    Client,
    /// Listened.
    Server,
}

impl Side {
    /// The side's text in the binding.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What one end's evidence in one connection commits to.
#[derive(Clone, Debug)]
pub(crate) struct Binding<'a> {
    /// The end that shows the evidence.
    pub(crate) side: Side,
    pub(crate) exporter: &'a [u8; 32],
    pub(crate) own_spki: &'a [u8; 32],
    pub(crate) peer_spki: &'a [u8; 32],
    /// Nonce out of the Hello of the end that the evidence is shown to.
    pub(crate) peer_nonce: &'a [u8; 32],
}

impl Binding<'_> {
    /// SHA-512(`cloister/session/v1` | lp(client or server) | lp(exporter) | lp(SHA-256 own SPKI) |
    /// lp(SHA-256 peer SPKI) | lp(peer's nonce) | lp(SHA-256 layer-1 claims) | lp(measurement root)).
    pub(crate) fn report_data(&self, claims_digest: &Digest, root: &MeasurementRoot) -> [u8; 64] {
        self.hash(claims_digest.as_bytes(), root.as_bytes())
    }

    /// What a visitor signs: `cloister/visitor/v1` | the same hash over no claims and no root (both empty).
    pub(crate) fn visitor_message(&self) -> Vec<u8> {
        Layout::new("cloister/visitor/v1")
            .raw(&self.hash(&[], &[]))
            .into_bytes()
    }

    fn hash(&self, claims_digest: &[u8], root: &[u8]) -> [u8; 64] {
        let layout = Layout::new("cloister/session/v1")
            .lp(self.side.as_str().as_bytes())
            .lp(self.exporter)
            .lp(self.own_spki)
            .lp(self.peer_spki)
            .lp(self.peer_nonce)
            .lp(claims_digest)
            .lp(root);
        Sha512::digest(layout.into_bytes()).into()
    }
}

/// Report data of roster evidence: SHA-512(`cloister/roster/v1` | lp(challenge) | lp(SHA-256 layer-1 claims) |
/// lp(measurement root)). Each member draws its own challenge and verifies all others against it.
pub fn roster_report_data(challenge: &[u8; 32], claims_digest: &Digest, root: &MeasurementRoot) -> [u8; 64] {
    let layout = Layout::new("cloister/roster/v1")
        .lp(challenge)
        .lp(claims_digest.as_bytes())
        .lp(root.as_bytes());
    Sha512::digest(layout.into_bytes()).into()
}

/// Report data of a TD that applies for its credential: SHA-512(`cloister/applicant/v1` | lp(connection) | lp(SHA-256 claims) |
/// lp(measurement root) | lp(recipient's key)). The connection is its exporter, which both ends have; what is released is sealed
/// to the recipient's key, whose secret half never leaves that TD.
pub fn applicant_report_data(
    connection: &[u8; 32],
    claims_digest: &Digest,
    root: &MeasurementRoot,
    recipient_key: &[u8],
) -> [u8; 64] {
    let layout = Layout::new("cloister/applicant/v1")
        .lp(connection)
        .lp(claims_digest.as_bytes())
        .lp(root.as_bytes())
        .lp(recipient_key);
    Sha512::digest(layout.into_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::hex;
    use crate::measurement::Measurement;

    // Computed apart from this code, with Python's hashlib over the layouts above.
    const SESSION: &str = "e27ad8f476ff012a82549123c5f40e853407b921d20c263b2f9bb1b376611893b9293ba1699c22c21f5e2a21feb48b52a511a8468d57ba6cca78cca3c75179cc";
    const ROSTER: &str = "b42ed1e329b7c7b1e1f15f7fe8de3aa66dad3f789d8e5517460a08d9c6170fd906f4a57c3cee4d297d5522162d2ae8be1607d8fbe371f8ca3c93ee9a01a3f6e5";

    #[test]
    fn the_hashes_are_the_documented_ones() {
        let binding = Binding {
            side: Side::Client,
            exporter: &[1; 32],
            own_spki: &[2; 32],
            peer_spki: &[3; 32],
            peer_nonce: &[4; 32],
        };
        let claims = Digest::of(b"claims");
        let root = Measurement::new(Vec::new()).unwrap().root();
        assert_eq!(hex(&binding.report_data(&claims, &root)), SESSION);
        assert_eq!(hex(&roster_report_data(&[5; 32], &claims, &root)), ROSTER);
        let other = Binding {
            side: Side::Server,
            ..binding.clone()
        };
        assert_ne!(other.report_data(&claims, &root), binding.report_data(&claims, &root));
    }
}
