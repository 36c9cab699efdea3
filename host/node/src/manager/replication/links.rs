//! Messages between replicas, over attested sessions that this manager dials.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cloister_attestation::identity::Role;
use cloister_replica::{Links, Member, Sent};
use cloister_session::{DialOptions, Local, Proxy, connect};
use tokio::sync::watch;

use crate::manager::client::Client;
use crate::manager::error::ManagerError;

/// A place for a session with one peer, and whether it is being dialled.
type Place = Arc<tokio::sync::Mutex<Option<Client>>>;

/// The sessions to the other managers. Each is dialled when it is needed, and again when it broke.
pub(super) struct Sessions {
    /// This manager's evidence; nothing before it was measured.
    pub(super) local: watch::Receiver<Option<Local>>,
    pub(super) proxy: Option<Proxy>,
    places: Mutex<BTreeMap<String, Place>>,
}

impl Sessions {
    pub(super) fn new(local: watch::Receiver<Option<Local>>, proxy: Option<Proxy>) -> Arc<Self> {
        let places = Mutex::default();
        Arc::new(Self { local, proxy, places })
    }

    pub(super) fn dial(&self, address: &str) -> DialOptions {
        DialOptions {
            address: address.to_owned(),
            proxy: self.proxy.clone(),
            role: Some(Role::Manager),
        }
    }

    /// A session with the manager at an address. It goes on being dialled when who waits for it has no more time.
    pub(super) async fn with(self: &Arc<Self>, address: &str) -> Result<Client, ManagerError> {
        let place = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(places.entry(address.to_owned()).or_default())
        };
        let (own, address) = (Arc::clone(self), address.to_owned());
        let dialled = tokio::spawn(async move {
            let mut place = place.lock().await;
            if let Some(client) = place.as_ref() {
                return Ok(client.clone());
            }
            let local = own.local.borrow().clone();
            let local = local.ok_or_else(|| ManagerError::Ended("it is not measured yet".to_owned()))?;
            let client = Client::new(connect(&local, &own.dial(&address)).await?).await?;
            *place = Some(client.clone());
            Ok(client)
        });
        dialled.await.map_err(|error| ManagerError::Ended(error.to_string()))?
    }

    /// A session that broke is dialled anew; one that was dialled anew since stays.
    async fn drop_broken(&self, address: &str, broken: &Client) {
        let place = {
            let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.get(address).cloned()
        };
        if let Some(place) = place {
            let mut place = place.lock().await;
            if place
                .as_ref()
                .is_some_and(|known| known.peer().connection() == broken.peer().connection())
            {
                *place = None;
            }
        }
    }

    /// Calls a manager; a session that did not carry the call is given up.
    pub(super) async fn call<T, F: Future<Output = Result<T, ManagerError>>>(
        self: &Arc<Self>,
        address: &str,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, ManagerError> {
        let client = self.with(address).await?;
        let answer = ask(client.clone()).await;
        if let Err(error) = &answer
            && (matches!(error, ManagerError::Call { .. }) || error.is("permit-ended"))
        {
            self.drop_broken(address, &client).await;
        }
        answer
    }
}

/// openraft's way to them.
pub(super) struct Ways(pub(super) Arc<Sessions>);

impl Links for Ways {
    fn send(&self, to: &Member, message: Vec<u8>) -> Sent {
        let (sessions, to) = (Arc::clone(&self.0), to.clone());
        Box::pin(async move {
            let name = to.name.clone();
            let sent = sessions.call(&to.address, |mut client| async move {
                let node = client.peer().permit().map(|permit| permit.node().to_owned());
                if node.as_deref() != Some(name.as_str()) {
                    let text = format!("another node than {name} is there");
                    return Err(ManagerError::Ended(text));
                }
                client.replicate(message).await
            });
            let answer = sent.await.map_err(|error| error.to_string())?;
            Ok(answer.to_vec())
        })
    }
}
