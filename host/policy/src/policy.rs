//! A parsed policy, and what it says of each node.

use std::collections::BTreeMap;
use std::ops::Deref;

use cloister_attestation::State;
use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::{PublicKey, Role};
use cloister_attestation::measurement::{Entry, EntryRole};
use cloister_tensor::Digest;

use crate::agreement::{Agreement, Dataset, Graph, Module, ModuleRole, Node};
use crate::dataset::DatasetSpec;
use crate::parse;
use crate::reader::PolicyError;
use crate::references::{InForce, ReferenceError, SignedReferences};

/// An agreement together with the digest of the file that says it. Only [`Policy::parse`] makes one, so whoever holds
/// one knows that it is sound: names are unique, what is referred to exists, and each node has what its role needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    agreement: Agreement,
    digest: Digest,
    references: InForce,
}

impl Policy {
    /// Parses the exact bytes of a policy file; `file` names it in errors.
    ///
    /// # Errors
    /// [`PolicyError`] with file, line, column and remedy of what is wrong.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, PolicyError> {
        Ok(Self {
            agreement: parse::parse(bytes, file)?,
            digest: Digest::of(bytes),
            references: InForce::default(),
        })
    }

    /// The same policy, which takes what these reference values vouch for besides. Its digest stays: nodes with different
    /// versions of the values are in one federation.
    #[must_use]
    pub fn with_references(mut self, references: SignedReferences) -> Self {
        self.references = InForce::new(references);
        self
    }

    /// The reference values that it takes besides, at this moment.
    pub fn references(&self) -> Option<SignedReferences> {
        self.references.get()
    }

    /// Takes newer reference values from now on, for every clone of this policy. Says whether they are others than before.
    ///
    /// # Errors
    /// [`ReferenceError::NotNewer`] for others of the same version or an older one.
    pub fn renew_references(&self, newer: SignedReferences) -> Result<bool, ReferenceError> {
        self.references.replace(newer)
    }

    /// SHA-256 of the file's bytes: what nodes measure and participants sign.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What it says.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// What identifies a federation across its policies: SHA-256 over the founders' keys and how many of them sign,
    /// `cloister/anchor/v1` | lp(federation) | threshold (4 bytes, big endian) | for each participant, sorted by name:
    /// lp(name) | lp(public key). `None` for a policy that follows another.
    pub fn anchor(&self) -> Option<Digest> {
        if self.predecessor.is_some() {
            return None;
        }
        let mut founders: Vec<_> = self.participants.iter().collect();
        founders.sort_by(|a, b| a.name.cmp(&b.name));
        let head = Layout::new("cloister/anchor/v1")
            .lp(self.name.as_bytes())
            .raw(&self.consent.threshold.to_be_bytes());
        let layout = founders.into_iter().fold(head, |layout, founder| {
            layout.lp(founder.name.as_bytes()).lp(founder.public_key.as_bytes())
        });
        Some(Digest::of(&layout.into_bytes()))
    }

    /// What that node has to measure in that state, the host's own files apart: the policy, beyond an applicant its datasets and, as
    /// a member, its modules and graphs. `None` if the policy has no such node.
    pub fn expected_entries(&self, node: &str, state: State) -> Option<Vec<Entry>> {
        self.node(node)?;
        let mut entries = vec![Entry::new(EntryRole::Policy, self.name.as_str(), self.digest)];
        if state != State::Applicant {
            let datasets = self.datasets_for(node).into_iter();
            entries.extend(datasets.map(|data| Entry::new(EntryRole::Data, data.name(), data.commitment)));
        }
        if state == State::Member {
            let modules = self.modules_for(node).into_iter();
            entries.extend(modules.map(|module| Entry::new(EntryRole::Module, module.name.as_str(), module.sha256)));
            let graphs = self.graphs_for(node).into_iter();
            entries.extend(graphs.map(|graph| Entry::new(EntryRole::Graph, graph.name.as_str(), graph.sha256)));
        }
        Some(entries)
    }
}

impl Deref for Policy {
    type Target = Agreement;

    fn deref(&self) -> &Agreement {
        &self.agreement
    }
}

impl Agreement {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The nodes of that role, in the policy's order.
    pub fn nodes_with(&self, role: Role) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.role == role)
    }

    /// The public key of a participant.
    pub fn participant_key(&self, participant: &str) -> Option<PublicKey> {
        self.participants
            .iter()
            .find(|known| known.name == participant)
            .map(|known| known.public_key)
    }

    /// The modules that the node runs.
    pub fn modules_for(&self, node: &str) -> Vec<&Module> {
        let role = self.node(node).map(|node| node.role);
        let by_role = |module: &Module| match module.role {
            ModuleRole::Transform => Some(self.transforms(node).any(|name| name == module.name)),
            other => role.map(|role| other.runs_on(role)),
        };
        let runs = |module: &&Module| runs(module.nodes.as_deref(), node, by_role(module));
        self.modules.iter().filter(runs).collect()
    }

    /// The names of the transforms that the node's datasets go through.
    pub fn transforms(&self, node: &str) -> impl Iterator<Item = &str> {
        let datasets = self.datasets_for(node).into_iter();
        datasets.filter_map(|dataset| Some(dataset.spec.transform.as_ref()?.module.as_str()))
    }

    /// The graphs that the node runs.
    pub fn graphs_for(&self, node: &str) -> Vec<&Graph> {
        let role = self.node(node).map(|node| node.role);
        let runs = |graph: &&Graph| runs(graph.nodes.as_deref(), node, role.map(|role| graph.runs_on(role)));
        self.graphs.iter().filter(runs).collect()
    }

    /// The datasets that the node has.
    pub fn datasets_for(&self, node: &str) -> Vec<&Dataset> {
        self.datasets.iter().filter(|dataset| dataset.node == node).collect()
    }

    /// The forms of the node's datasets, by name.
    pub fn dataset_specs(&self, node: &str) -> BTreeMap<&str, &DatasetSpec> {
        self.datasets_for(node)
            .into_iter()
            .map(|dataset| (dataset.name(), &dataset.spec))
            .collect()
    }
}

fn runs(named: Option<&[String]>, node: &str, by_role: Option<bool>) -> bool {
    match named {
        Some(named) => named.iter().any(|name| name == node),
        None => by_role.unwrap_or(false),
    }
}
