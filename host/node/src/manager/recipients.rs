//! Files in which participants say which key their recovery share is to be sealed to: JSON, signed, no secret.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_manager::{Recipient, RecoveryPlan, SealingPublicKey};
use cloister_policy::Policy;
use cloister_policy::agreement::Participant;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::ui::{Exit, failed};

/// Longest file, in bytes.
const MAX_BYTES: u64 = 4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipientFile {
    format: u32,
    participant: String,
    key: SealingPublicKey,
    signature: String,
}

/// The file's text.
pub fn to_text(recipient: &Recipient) -> String {
    let file = RecipientFile {
        format: 1,
        participant: recipient.participant.clone(),
        key: recipient.key,
        signature: STANDARD.encode(recipient.signature),
    };
    // Strings and numbers: this cannot fail.
    serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
}

fn read(path: &Path) -> Result<Recipient, miette::Report> {
    let no = |why: String| {
        failed(
            Exit::Usage,
            format!("{} says no participant's key: {why}", path.display()),
            Some("`cloister manager recipient` writes such a file".into()),
        )
    };
    let file: RecipientFile =
        serde_json::from_slice(&files::read(path, MAX_BYTES)?).map_err(|error| no(error.to_string()))?;
    if file.format != 1 {
        return Err(no(format!("format {}, wanted 1", file.format)));
    }
    let signature = STANDARD
        .decode(&file.signature)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    Ok(Recipient {
        participant: file.participant,
        key: file.key,
        signature: signature.ok_or_else(|| no("its signature is not base64 of 64 bytes".to_owned()))?,
    })
}

/// A participant's word about its sealing key, if the participant said it.
fn signed(path: &Path, policy: &Policy, participant: &Participant) -> Result<Recipient, miette::Report> {
    let recipient = read(path)?;
    if recipient.participant == participant.name && recipient.verify(&policy.name, &participant.public_key) {
        return Ok(recipient);
    }
    Err(failed(
        Exit::Denied,
        format!(
            "{} is not signed by {} for the federation {}",
            path.display(),
            participant.name,
            policy.name
        ),
        Some(format!(
            "{} makes it anew: cloister manager recipient",
            participant.name
        )),
    ))
}

/// The key that a participant says is its own.
pub fn of(path: &Path, policy: &Policy, participant: &Participant) -> Result<SealingPublicKey, miette::Report> {
    signed(path, policy, participant).map(|recipient| recipient.key)
}

/// Who gets a share of the state's key, and how many of them open it: all participants, and as many as the policy says. Each has to
/// have said its key.
pub fn plan(folder: &Path, policy: &Policy) -> Result<RecoveryPlan, miette::Report> {
    let mut holders = Vec::new();
    let mut missing = Vec::new();
    for holder in &policy.participants {
        let path = folder.join(format!("{}.recipient", holder.name));
        if !path.exists() {
            missing.push(holder.name.as_str());
            continue;
        }
        holders.push(signed(&path, policy, holder)?);
    }
    if !missing.is_empty() {
        return Err(failed(
            Exit::Usage,
            format!(
                "in {} there is no key of {} to seal a recovery share to",
                folder.display(),
                missing.join(", ")
            ),
            Some("each participant makes NAME.recipient: cloister manager recipient".into()),
        ));
    }
    let threshold = u8::try_from(policy.consent.recovery_shares).map_err(|_| {
        failed(
            Exit::Usage,
            "more than 255 recovery shares are asked for; keys can't be split among so many",
            None,
        )
    })?;
    Ok(RecoveryPlan { threshold, holders })
}
