//! Before it is a member: an aggregator takes what participants submit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cloister_exchange::content::ContentStore;
use cloister_exchange::service::{FederationService, serve};
use cloister_session::{ListenLimits, Listener};
use tokio_util::sync::CancellationToken;

use crate::events::{Event, Teller};
use crate::keeper::{Keeper, contents};
use crate::roles::watch::Watch;
use crate::ui::{Exit, fail, failed, root_in_words};

/// How often the store is looked at while content is missing.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Serves the content store with a bootstrap certificate until everything that the policy names is there.
pub(super) async fn collect(
    keeper: &Keeper,
    certificate: &Arc<cloister_attestation::RaTlsIdentity>,
    teller: Teller,
    cancel: &CancellationToken,
) -> Result<SocketAddr, miette::Report> {
    let address = keeper
        .config
        .listen
        .ok_or_else(|| failed(Exit::Usage, "an aggregator's node file wants `listen`", None))?;
    let store = open_store(keeper).await?;
    let named = contents::collected(keeper);
    if contents::at_hand(keeper, &named)?.1.is_empty() {
        return Ok(address);
    }
    let listener = listen(keeper, address, certificate, Watch::new(teller, keeper)).await?;
    // With port 0 the system chose one; the members that were told of it must find the aggregator there again.
    let address = listener.address();
    teller.tell(&Event::measured("bootstrap", certificate));
    teller.tell(&Event::Listening {
        address: address.to_string(),
    });
    let done = CancellationToken::new();
    let service = FederationService {
        policy: Arc::clone(&keeper.policy),
        clock: keeper.clock(),
        store: store.clone(),
        aggregator: None,
    };
    let serving = tokio::spawn(serve(listener, service, done.clone().cancelled_owned()));
    let mut said = String::new();
    loop {
        let mut still = Vec::new();
        for item in &named {
            let there = store.stored(&item.digest).await;
            if there.is_none() {
                still.push(item.clone());
            }
        }
        if still.is_empty() || cancel.is_cancelled() {
            break;
        }
        let words = format!("submission of {}", contents::in_words(&still));
        if words != said {
            teller.tell(&Event::Waiting { what: words.clone() });
            said = words;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = cancel.cancelled() => {}
        }
    }
    done.cancel();
    // Connections that are still open are cut when the server is dropped: members come back to the new certificate.
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    Ok(address)
}

pub(super) async fn open_store(keeper: &Keeper) -> Result<ContentStore, miette::Report> {
    let limit = keeper.policy.limits.content_mib << 20;
    ContentStore::open(keeper.config.content.dir.clone(), contents::collected(keeper), limit)
        .await
        .map_err(|error| fail(Exit::Failed, error))
}

pub(super) async fn listen(
    keeper: &Keeper,
    address: SocketAddr,
    certificate: &Arc<cloister_attestation::RaTlsIdentity>,
    watch: Watch,
) -> Result<Listener, miette::Report> {
    let root = root_in_words(keeper.quotes.simulated());
    let audit = keeper.audit.clone();
    let refused: cloister_session::OnRefused = Arc::new(move |error| match error.refusal() {
        Some(_) => {
            tracing::warn!("not let in{root}: {error}");
            audit.refused(&error.to_string());
            watch.session_refused(error);
        }
        None => tracing::warn!("not let in: {error}"),
    });
    Listener::bind(
        keeper.local(certificate),
        &address.to_string(),
        ListenLimits::default(),
        refused,
    )
    .await
    .map_err(|error| fail(Exit::Failed, error))
}
