//! How a member shows itself to the others, and looks at them.

use std::sync::Arc;

use cloister_attestation::identity::Role;
use cloister_policy::{Appraiser, Expected};
use cloister_wire::federation::{self as wire, member_message};

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::Happening;
use crate::roster;

use super::session::{Inbound, Session, out_of_place};

impl Session<'_> {
    pub(super) async fn challenged(&mut self, challenge: wire::RosterChallenge) -> Result<(), ExchangeError> {
        let mut nonces = Vec::with_capacity(challenge.nonces.len());
        for nonce in challenge.nonces {
            let bytes = convert::digest(&nonce.nonce, "a roster challenge")?;
            nonces.push((nonce.node, *bytes.as_bytes()));
        }
        let digest = self.machine.challenged(challenge.epoch, &nonces)?;
        let evidence = roster::make(self.node, challenge.epoch, &digest).await?;
        self.send(member_message::Body::RosterEvidence(evidence)).await;
        Ok(())
    }

    pub(super) async fn roster(&mut self, roster: &wire::Roster, inbound: &mut Inbound) -> Result<(), ExchangeError> {
        let local = &self.options.local;
        let appraiser = Appraiser::new(Arc::clone(&local.policy)).expecting(Expected {
            role: Some(Role::Worker),
            ..Expected::default()
        });
        let own = roster::own_entry(&self.node.identity);
        let mut entries = Vec::with_capacity(roster.members.len());
        for evidence in &roster.members {
            let challenge = self.machine.challenge();
            match roster::verify(evidence, challenge, &local.verifier, &appraiser, (local.clock)()) {
                Ok(verified) => {
                    let entry = roster::entry(&verified);
                    if entry.node != own.node {
                        self.shows(Happening::Verified {
                            node: entry.node.clone(),
                            role: verified.role().as_str().to_owned(),
                            measurement: verified.measurement().root().to_string(),
                            simulated: verified.simulated(),
                        });
                    } else if entry != own {
                        return Err(out_of_place(
                            "a roster",
                            "it shows other evidence under this node's name",
                        ));
                    }
                    entries.push(entry);
                }
                Err(refusal) => {
                    let node = convert::tame(&evidence.node);
                    let refused = wire::RosterRefused {
                        epoch: roster.epoch,
                        node: node.clone(),
                        rules: convert::rule_messages(&refusal),
                    };
                    self.send(member_message::Body::RosterRefused(refused)).await;
                    self.leave("a member of the roster was refused", inbound).await?;
                    return Err(ExchangeError::RosterRefused { node, refusal });
                }
            }
        }
        let digest = self.machine.roster(roster.epoch, &self.aggregator, &entries)?;
        let accepted = wire::RosterAccepted {
            epoch: roster.epoch,
            roster_digest: convert::digest_bytes(&digest),
        };
        self.send(member_message::Body::RosterAccepted(accepted)).await;
        Ok(())
    }
}
