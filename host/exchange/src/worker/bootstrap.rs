//! Before a node is a member: it fetches what the policy names for it, over a session of the state bootstrap.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cloister_session::{DialOptions, Local, connect};
use cloister_tensor::Digest;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::content::Wanted;
use crate::error::ExchangeError;
use crate::progress::{Happening, Progress};

use super::{Backoff, Retry, retryable};

/// Objects by their digest.
pub type Fetched = BTreeMap<Digest, Bytes>;

/// Fetches all of `wanted`, each at most `limit_bytes`, waiting for what participants have not submitted yet.
pub async fn fetch_all(
    local: &Local,
    dial: &DialOptions,
    wanted: &[Wanted],
    limit_bytes: u64,
    backoff: Backoff,
    progress: &Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<Fetched, ExchangeError> {
    let mut fetched = Fetched::new();
    let mut retry = Retry::new(backoff);
    let mut last = String::new();
    loop {
        let before = fetched.len();
        let attempt = fetch_more(local, dial, wanted, limit_bytes, &mut fetched);
        let result = tokio::select! {
            result = attempt => result,
            () = cancel.cancelled() => return Err(ExchangeError::Cancelled),
        };
        let why = match result {
            Ok(()) => return Ok(fetched),
            Err(error) if retryable(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        if fetched.len() > before {
            retry.succeeded();
        }
        let pause = retry.next(&why)?;
        if why != last {
            progress.happened(&Happening::Waiting {
                why: format!("waiting for content: {why}"),
            });
            last = why;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return Err(ExchangeError::Cancelled),
        }
    }
}

async fn fetch_more(
    local: &Local,
    dial: &DialOptions,
    wanted: &[Wanted],
    limit_bytes: u64,
    fetched: &mut Fetched,
) -> Result<(), ExchangeError> {
    if wanted.iter().all(|wanted| fetched.contains_key(&wanted.digest)) {
        return Ok(());
    }
    let mut client = Client::new(connect(local, dial).await?).await?;
    let present: Vec<Digest> = client
        .list()
        .await?
        .into_iter()
        .filter(|entry| entry.present)
        .map(|entry| entry.digest)
        .collect();
    for object in wanted {
        if present.contains(&object.digest) && !fetched.contains_key(&object.digest) {
            let content = client.fetch(&object.digest, limit_bytes).await?;
            fetched.insert(object.digest, content);
        }
    }
    let missing: Vec<String> = wanted
        .iter()
        .filter(|wanted| !fetched.contains_key(&wanted.digest))
        .map(|wanted| format!("{} {}", wanted.kind.as_str(), wanted.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ExchangeError::Call {
        what: "fetching content".to_owned(),
        code: tonic::Code::NotFound,
        message: format!("not submitted yet: {}", missing.join(", ")),
    })
}
