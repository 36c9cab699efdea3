//! How a node that has no policy yet comes by one: it asks for the chain of policies by its federation's anchor.
//!
//! No session can be had without a policy to judge the peer by, and a node of which nothing is known but where its manager
//! listens and the federation's anchor has none. So a listener may tell its policies on an ALPN of their own, behind TLS and before any
//! evidence. What comes is worth what its signatures are: the chain begins with the anchor, and each policy after it is signed as the
//! one before demands (`cloister_policy::follow`). That it is the newest shows in the session that follows, in which the listener is
//! verified under it. Nothing secret is said here; who asks has to know the anchor.
//!
//! ```text
//! asks:  anchor (32 bytes)
//! told:  u32be count | for each: lp(policy file) | lp(its signatures)       count 0: none of that anchor
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_policy::MAX_VERSIONS;
use cloister_tensor::Digest;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::HANDSHAKE_S;
use crate::dial::{DialOptions, tcp};
use crate::error::SessionError;
use crate::tls;

/// The application protocol by which policies are told.
pub(crate) const POLICIES_ALPN: &[u8] = b"cloister-policies/1";
/// Longest policy and longest file of signatures that are told, in bytes.
pub const MAX_POLICY_FILE_BYTES: usize = 1024 * 1024;
/// All of them together, in bytes.
pub const MAX_POLICIES_BYTES: usize = 64 * 1024 * 1024;

/// A policy and the signatures under it, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// The policy's exact bytes.
    pub policy: Bytes,
    /// The text of its signatures.
    pub signatures: Bytes,
}

/// The policies of a federation, the founding one first.
#[derive(Clone, Debug)]
pub struct PolicyBook {
    anchor: Digest,
    told: Arc<[PolicyFile]>,
}

impl PolicyBook {
    /// A book of that federation. Beyond the limits of this module the newest are left out, and whoever asks can't follow to
    /// the end; a federation is far below them.
    pub fn new(anchor: Digest, policies: Vec<PolicyFile>) -> Self {
        let mut left = MAX_POLICIES_BYTES;
        let fits = move |file: &PolicyFile| {
            let bytes = file.policy.len() + file.signatures.len();
            let fits = file.policy.len().max(file.signatures.len()) <= MAX_POLICY_FILE_BYTES && bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        };
        let told = policies.into_iter().take(MAX_VERSIONS).take_while(fits);
        Self {
            anchor,
            told: told.collect(),
        }
    }

    /// Answers one that asks.
    pub(crate) async fn tell<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> std::io::Result<()> {
        let mut asked = [0; 32];
        stream.read_exact(&mut asked).await?;
        let told: &[PolicyFile] = if asked == *self.anchor.as_bytes() {
            &self.told
        } else {
            &[]
        };
        stream.write_all(&length(told.len())).await?;
        for part in told.iter().flat_map(|file| [&file.policy, &file.signatures]) {
            stream.write_all(&length(part.len())).await?;
            stream.write_all(part).await?;
        }
        stream.shutdown().await
    }
}

fn length(length: usize) -> [u8; 4] {
    // Bounded far below by this module's limits.
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Asks a node for the policies of the federation with that anchor; `identity` is any visitor's. What comes proves nothing by
/// itself.
///
/// # Errors
/// [`SessionError`]: nobody answers, it tells no policies, none of that anchor, or more than is taken.
pub async fn fetch_policies(
    options: &DialOptions,
    anchor: &Digest,
    identity: &VisitorIdentity,
) -> Result<Vec<PolicyFile>, SessionError> {
    let address = &options.address;
    let broken = |cause: String| SessionError::Broken {
        address: address.clone(),
        cause,
    };
    let asking = async {
        let stream = tcp(options).await?;
        let own = |error: rustls::Error| SessionError::Own {
            cause: error.to_string(),
        };
        let mut config = tls::client_config(&identity.cert_der, &identity.key_pkcs8).map_err(own)?;
        config.alpn_protocols = vec![POLICIES_ALPN.to_vec()];
        let name = ServerName::try_from("cloister.invalid").map_err(|error| broken(error.to_string()))?;
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| tls::failed(address, &error))?;
        if stream.get_ref().1.alpn_protocol() != Some(POLICIES_ALPN) {
            return Err(broken("it tells no policies: it is no manager".to_owned()));
        }
        let asked = stream.write_all(anchor.as_bytes()).await;
        asked.map_err(|error| broken(error.to_string()))?;
        read(&mut stream).await.map_err(|error| broken(error.to_string()))
    };
    let told = tokio::time::timeout(Duration::from_secs(HANDSHAKE_S), asking)
        .await
        .map_err(|_| SessionError::TooSlow {
            address: address.clone(),
            seconds: HANDSHAKE_S,
        })??;
    if told.is_empty() {
        return Err(SessionError::NoPolicies {
            address: address.clone(),
            anchor: *anchor,
        });
    }
    Ok(told)
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Vec<PolicyFile>> {
    let count = stream.read_u32().await? as usize;
    if count > MAX_VERSIONS {
        return Err(too_much(format!("{count} policies, at most {MAX_VERSIONS} are taken")));
    }
    let mut left = MAX_POLICIES_BYTES;
    let mut told = Vec::new();
    for _ in 0..count {
        let policy = part(stream, &mut left).await?;
        let signatures = part(stream, &mut left).await?;
        told.push(PolicyFile { policy, signatures });
    }
    Ok(told)
}

async fn part<S: AsyncRead + Unpin>(stream: &mut S, left: &mut usize) -> std::io::Result<Bytes> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_POLICY_FILE_BYTES || length > *left {
        return Err(too_much(format!(
            "a policy of {length} bytes, at most {MAX_POLICY_FILE_BYTES} and {MAX_POLICIES_BYTES} in all are taken"
        )));
    }
    *left -= length;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes.into())
}

fn too_much(text: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> PolicyBook {
        let file = |text: &'static [u8]| PolicyFile {
            policy: Bytes::from_static(text),
            signatures: Bytes::from_static(b"signed"),
        };
        PolicyBook::new(Digest::of(b"anchor"), vec![file(b"one"), file(b"two")])
    }

    async fn told(asked: &[u8]) -> std::io::Result<Vec<PolicyFile>> {
        let (mut one, mut other) = tokio::io::duplex(64);
        let asking = async {
            one.write_all(asked).await?;
            read(&mut one).await
        };
        let (answer, _) = tokio::join!(asking, async { book().tell(&mut other).await });
        answer
    }

    #[tokio::test]
    async fn policies_are_told_to_who_knows_the_anchor() {
        let answer = told(Digest::of(b"anchor").as_bytes()).await.unwrap();
        assert_eq!(answer.len(), 2);
        assert_eq!(answer[1].policy, &b"two"[..]);
        assert!(told(Digest::of(b"other").as_bytes()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn more_than_is_taken_is_refused_at_its_length() {
        for hostile in [
            &[0xff, 0xff, 0xff, 0xff][..],
            &[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff],
            &[0, 0, 0, 1, 0, 0, 0, 9, 1],
            &[0, 0],
        ] {
            let mut bytes = hostile;
            assert!(read(&mut bytes).await.is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn a_book_holds_what_can_be_told() {
        let large = PolicyFile {
            policy: Bytes::from(vec![b'#'; MAX_POLICY_FILE_BYTES + 1]),
            signatures: Bytes::new(),
        };
        let small = book().told[0].clone();
        let told = PolicyBook::new(Digest::of(b"anchor"), vec![small, large]).told;
        assert_eq!(told.len(), 1);
    }
}
