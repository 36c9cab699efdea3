//! What managers ask of each other: the state's key, a part in it, and what Raft says. Only a node of the role manager in the policy in
//! force, attested as every peer is, is heard.

use cloister_policy::Permit;
use cloister_replica::{Member, ReplicaError, ReplicaId};
use cloister_wire::manager as wire;
use serde_json::json;
use tonic::{Code, Status};

use super::{ManagerService, word, wrong};
use crate::keeper::config::address;
use crate::manager::convert;
use crate::manager::replication::{Replication, handed_to};
use crate::manager::standing::{FOUNDING, RUNNING};

/// Longest address of another manager.
const MAX_ADDRESS_BYTES: usize = 320;

impl ManagerService {
    fn replication(&self) -> Result<&Replication, Status> {
        let text = "this manager runs alone: its node file has no [store.replicas]";
        let replication = self.standing.replication();
        Ok(replication.ok_or_else(|| word("alone", Code::PermissionDenied, text))?)
    }

    /// The state's key, sealed to the TD that asks: by the one that leads, after most of the others have it in their logs.
    pub(super) async fn hand_over(&self, who: &Permit, request: &wire::JoinRequest) -> Result<wire::JoinReply, Status> {
        let recipient = convert::recipient(&request.recipient).map_err(wrong)?;
        let replica = self.replication()?.replica().ok_or_else(not_yet)?;
        let phase = self.standing.phase();
        let serving = phase == RUNNING;
        if serving {
            let what = json!({ "node": who.node(), "participant": who.participant() });
            self.turn(move |turn| turn.note("replica-joins", what)).await?;
        } else if phase != FOUNDING || !replica.leads() {
            return Err(not_yet());
        }
        let ledger = replica.ledger();
        let sealed = ledger.hand_over(&recipient, &handed_to(who.node(), who.connection()));
        let sealed = sealed.map_err(|error| Status::internal(error.to_string()))?;
        let position = ledger.position().ok_or_else(not_yet)?;
        Ok(wire::JoinReply {
            sealed: sealed.to_bytes().into(),
            serving,
            version: position.version,
        })
    }

    pub(super) async fn let_take_part(
        &self,
        who: &Permit,
        request: wire::TakePartRequest,
    ) -> Result<wire::TakePartReply, Status> {
        let replica = self.replication()?.replica().ok_or_else(not_yet)?;
        let bytes = request.address.len();
        if bytes > MAX_ADDRESS_BYTES {
            return Err(wrong(format!(
                "an address of {bytes} bytes; at most {MAX_ADDRESS_BYTES} are taken"
            )));
        }
        let member = Member {
            name: who.node().to_owned(),
            address: address(&request.address).map_err(wrong)?,
        };
        let names = crate::manager::replication::managers(&self.policy);
        let admitted = replica.admit(ReplicaId(request.replica), member, &names).await;
        admitted.map_err(|error| later(&error))?;
        Ok(wire::TakePartReply {})
    }

    pub(super) async fn take_message(&self, request: &wire::ReplicateRequest) -> Result<wire::ReplicateReply, Status> {
        let replica = self.replication()?.replica().ok_or_else(not_yet)?;
        let answer = replica.receive(&request.message).await.map_err(|error| match &error {
            ReplicaError::Message(_) => wrong(error.to_string()),
            _ => later(&error),
        })?;
        Ok(wire::ReplicateReply { message: answer.into() })
    }
}

fn not_yet() -> Status {
    word("not-leading", Code::Unavailable, "this manager does not lead")
}

fn later(error: &ReplicaError) -> Status {
    word("not-leading", Code::Unavailable, &error.to_string())
}
