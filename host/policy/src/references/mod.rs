//! Reference values: which registers TDs may show, in a document of its own beside the policy.
//!
//! A policy names who may sign such documents and how many have to; a kernel's patch then needs a new document and no new
//! agreement, and old and new overlap until the old values' date. A document adds what it names to what the policy lists and
//! takes nothing away: it opens doors that its signers vouch for, and closes them by dates alone. Format:
//!
//! ```toml
//! format = 1
//! federation = "digits"       # of one federation
//! version = 7                 # nodes never go back behind the highest that they have seen
//!
//! [[reference]]
//! name = "linux-6.12.9"
//! not_after = 2027-01-31      # the last day, in UTC
//! mrtd = ["..."]              # registers that it does not name are as the policy lists them
//! rtmr1 = ["..."]
//! rtmr2 = ["..."]
//!
//! [[anchor]]                  # as in a policy: what a `mrconfigid` that is listed above is the hash of
//! image = "..."
//! ```
//! A signer signs `cloister/reference-signature/v1` | lp(federation) | lp(signer) | lp(SHA-256 of the file) with Ed25519; the
//! signatures stand in `NAME.sigs`, in the form that a policy's have.

mod registers;
mod signed;

use cloister_attestation::encoding::{Layout, hex};
use cloister_attestation::identity::{PublicKey, SigningKey};
use cloister_tensor::Digest;

use crate::agreement::{AttestationRules, ReferenceRules, Register};
use crate::anchor::Anchor;
use crate::parse::anchor_tables;
use crate::policy::Policy;
use crate::reader::{Fields, Node, PolicyError, Problem, all, date_before, read_document};
use crate::signatures::Signature;

pub(crate) use registers::check_registers;
pub(crate) use signed::InForce;
pub use signed::SignedReferences;

/// The format of documents that this crate reads.
pub const REFERENCES_FORMAT: u64 = 1;

const MAX_REFERENCES: usize = 256;
const MAX_VALUES: usize = 64;

/// The registers that references may name, as keys of policy and document.
pub const REFERENCE_REGISTERS: [&str; 6] = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "mrseam", "mrconfigid"];

/// One state of a TD that is vouched for until a date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its name, for people.
    pub name: String,
    /// First second at which it is not in force any more, since 1970.
    pub until_unix_s: u64,
    /// Accepted values by register, in the order of [`REFERENCE_REGISTERS`]; an empty list leaves it to the policy.
    pub registers: [Vec<Register>; 6],
}

/// A document of reference values, as its file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceValues {
    /// The federation that it is for.
    pub federation: String,
    /// Its version.
    pub version: u64,
    /// What it vouches for.
    pub references: Vec<Reference>,
    /// What its MRCONFIGIDs are the hashes of.
    pub anchors: Vec<Anchor>,
    digest: Digest,
}

/// Why a document of reference values is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The policy takes none.
    #[error(
        "the policy names nobody who may sign reference values: `references` is missing in its section [attestation]"
    )]
    NotWanted,
    /// It is for others.
    #[error("the reference values are for the federation {seen:?}, the policy is {wanted:?}")]
    OtherFederation {
        /// What the document says.
        seen: String,
        /// The policy's name.
        wanted: String,
    },
    /// Somebody signed whom the policy does not name, or with another key.
    #[error("{signer:?} signed the reference values, whom the policy does not name as a signer with the key {seen}")]
    Stranger {
        /// The name at the signature.
        signer: String,
        /// Its key.
        seen: PublicKey,
    },
    /// A signature is not over this document.
    #[error(
        "the signature of {signer:?} is not over these reference values (SHA-256 {digest}): they were changed after signing; sign again"
    )]
    Wrong {
        /// The signer.
        signer: String,
        /// Digest of the document at hand.
        digest: Digest,
    },
    /// Somebody signed twice.
    #[error("{signer:?} signed twice; keep one signature")]
    Twice {
        /// The signer.
        signer: String,
    },
    /// A hash of initdata that nobody can look into.
    #[error(
        "reference {name:?} lists the `mrconfigid` {value}, but neither the document nor the policy has an anchor whose initdata has this \
         hash: whether other containers may start beside the host is left open; `cloister policy from-image` prints the anchor"
    )]
    Unexplained {
        /// The reference.
        name: String,
        /// The hash.
        value: String,
    },
    /// Not newer than what is in force.
    #[error(
        "the reference values changed, but their version is {seen}: wanted one above {wanted}, which was taken before"
    )]
    NotNewer {
        /// The document's version.
        seen: u64,
        /// The version in force.
        wanted: u64,
    },
    /// Too few signed.
    #[error("{seen} signed the reference values, the policy wants {wanted} of {names}")]
    TooFew {
        /// How many signed.
        seen: usize,
        /// How many have to.
        wanted: u32,
        /// Who may.
        names: String,
    },
}

impl ReferenceValues {
    /// Parses a document; whether the right ones signed it is for [`SignedReferences::new`] to say.
    ///
    /// # Errors
    /// [`PolicyError`] with file, line, column and remedy of what is wrong.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, PolicyError> {
        read_document(
            bytes,
            file,
            &["format", "federation", "version", "reference", "anchor"],
            |top| {
                let format = top.required("format")?;
                if format.integer(0..=u64::MAX)? != REFERENCES_FORMAT {
                    let message = format_args!("is not {REFERENCES_FORMAT}, the one that this host reads");
                    return Err(format.problem(message).into());
                }
                let mut names: Vec<String> = Vec::new();
                let nodes = top.required("reference")?.list(MAX_REFERENCES)?;
                let references = all(nodes.iter().map(|node| {
                    let reference = read_reference(node)?;
                    if names.contains(&reference.name) {
                        return Err(node.problem(format_args!("is {:?} a second time", reference.name)));
                    }
                    names.push(reference.name.clone());
                    Ok(reference)
                }))?;
                Ok(Self {
                    federation: top.required("federation")?.party_name()?,
                    version: top.required("version")?.integer(1..=u64::from(u32::MAX))?,
                    references,
                    anchors: anchor_tables(top)?,
                    digest: Digest::of(bytes),
                })
            },
        )
    }

    /// SHA-256 of the file's bytes: what is signed.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The text of a document.
    pub fn to_text(federation: &str, version: u64, references: &[Reference], anchors: &[Anchor]) -> String {
        let mut text = format!(
            "# Reference values: which registers TDs may show, until when. `cloister policy reference sign` signs them.\n\
             format = {REFERENCES_FORMAT}\nfederation = \"{federation}\"\nversion = {version}\n"
        );
        for reference in references {
            let until = date_before(reference.until_unix_s);
            text.push_str(&format!(
                "\n[[reference]]\nname = \"{}\"\nnot_after = {until}\n",
                reference.name
            ));
            for (name, values) in REFERENCE_REGISTERS.iter().zip(&reference.registers) {
                if !values.is_empty() {
                    let values: Vec<_> = values.iter().map(|value| format!("\"{}\"", hex(value))).collect();
                    text.push_str(&format!("{name} = [{}]\n", values.join(", ")));
                }
            }
        }
        for anchor in anchors {
            text.push_str(&format!("\n{}", anchor.to_toml("anchor")));
        }
        text
    }

    /// Signs the document as one of the policy's signers of reference values.
    ///
    /// # Errors
    /// [`ReferenceError`] if the policy does not name signer and key, or is of another federation.
    pub fn sign(&self, policy: &Policy, signer: &str, key: &SigningKey) -> Result<Signature, ReferenceError> {
        let rules = self.check(policy)?;
        known(rules, signer, key.public())?;
        Ok(Signature {
            participant: signer.to_owned(),
            public_key: key.public(),
            signature: key.sign(&self.message(signer)),
        })
    }

    /// Whether a policy would take these values, if enough signed them: it names signers, is of the same federation, and what the values
    /// name of MRCONFIGID is explained.
    ///
    /// # Errors
    /// [`ReferenceError`] says what is wrong.
    pub fn check<'p>(&self, policy: &'p Policy) -> Result<&'p ReferenceRules, ReferenceError> {
        let rules = self.wanted_by(policy)?;
        self.check_explained(&policy.attestation)?;
        Ok(rules)
    }

    fn wanted_by<'p>(&self, policy: &'p Policy) -> Result<&'p ReferenceRules, ReferenceError> {
        let rules = policy
            .attestation
            .references
            .as_ref()
            .ok_or(ReferenceError::NotWanted)?;
        if self.federation == policy.name {
            return Ok(rules);
        }
        Err(ReferenceError::OtherFederation {
            seen: self.federation.clone(),
            wanted: policy.name.clone(),
        })
    }

    /// As a policy's own, each MRCONFIGID has to be the hash of initdata that can be looked into; in simulation hashes may stand
    /// alone, since nothing is proven.
    fn check_explained(&self, rules: &AttestationRules) -> Result<(), ReferenceError> {
        let anchors = || rules.anchors.iter().chain(&self.anchors);
        if rules.simulated && anchors().next().is_none() {
            return Ok(());
        }
        let hashes: Vec<Register> = anchors().map(Anchor::mrconfigid).collect();
        for reference in &self.references {
            let [.., listed] = &reference.registers;
            if let Some(bare) = listed.iter().find(|value| !hashes.contains(value)) {
                return Err(ReferenceError::Unexplained {
                    name: reference.name.clone(),
                    value: hex(bare),
                });
            }
        }
        Ok(())
    }

    fn message(&self, signer: &str) -> Vec<u8> {
        Layout::new("cloister/reference-signature/v1")
            .lp(self.federation.as_bytes())
            .lp(signer.as_bytes())
            .lp(self.digest.as_bytes())
            .into_bytes()
    }
}

fn known(rules: &ReferenceRules, signer: &str, key: PublicKey) -> Result<(), ReferenceError> {
    let named = rules
        .signers
        .iter()
        .any(|known| known.name == signer && known.public_key == key);
    if named {
        return Ok(());
    }
    Err(ReferenceError::Stranger {
        signer: signer.to_owned(),
        seen: key,
    })
}

fn read_reference(node: &Node<'_>) -> Result<Reference, Problem> {
    let fields = node.fields(&[
        "name",
        "not_after",
        "mrtd",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "mrseam",
        "mrconfigid",
    ])?;
    let registers = REFERENCE_REGISTERS.map(|key| read_registers(&fields, key));
    let mut values = [const { Vec::new() }; 6];
    for (value, read) in values.iter_mut().zip(registers) {
        *value = read?;
    }
    if values.iter().all(Vec::is_empty) {
        return Err(node.problem("names no register, so it vouches for nothing"));
    }
    Ok(Reference {
        name: fields.required("name")?.name()?,
        until_unix_s: fields.required("not_after")?.end_of_day_unix_s()?,
        registers: values,
    })
}

fn read_registers(fields: &Fields<'_>, key: &str) -> Result<Vec<Register>, Problem> {
    let values: Vec<Register> = fields
        .list(key, MAX_VALUES)?
        .iter()
        .map(Node::bytes)
        .collect::<Result<_, _>>()?;
    if values.contains(&[0; 48]) && key != "mrseam" {
        return Err(fields.problem(format_args!("has a `{key}` of zeros, which was never measured into")));
    }
    Ok(values)
}
