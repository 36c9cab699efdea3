//! Transforms in a policy: where they run, who uses them, what a reader is told.
#![allow(clippy::unwrap_used, reason = "a test that panics says where")]

mod common;

use std::collections::BTreeMap;

use cloister_attestation::State;
use cloister_attestation::identity::SigningKey;
use cloister_attestation::measurement::EntryRole;
use cloister_policy::agreement::{Agreement, Module, TensorAccess};
use cloister_policy::{
    Area, Damaged, InputType, MadeSpec, ModuleRole, Policy, Slice, TransformSpec, WarningKind, diff, draft, explain,
    warnings,
};
use cloister_tensor::Digest;

/// Two workers whose rows go through `augment`, and a test set that goes through `centre`: one file, two settings.
fn agreement() -> Agreement {
    let (alpha, beta) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let mut agreement = common::digits(&alpha, &beta);
    for name in ["augment", "centre"] {
        agreement.modules.push(Module {
            name: name.to_owned(),
            role: ModuleRole::Transform,
            sha256: Digest::of(b"augment.wasm"),
            tensor_access: TensorAccess::Handles,
            settings: BTreeMap::new(),
            scalars: BTreeMap::new(),
            reads: Vec::new(),
            nodes: None,
        });
    }
    for dataset in &mut agreement.datasets {
        let module = if dataset.node == "hub" { "centre" } else { "augment" };
        let made = MadeSpec {
            shape: vec![1, 6, 6],
            dtype: InputType::F32,
        };
        dataset.spec.transform = Some(TransformSpec {
            module: module.to_owned(),
            makes: BTreeMap::from([("x".to_owned(), made)]),
        });
        dataset.spec.damaged = Damaged::Skip;
    }
    agreement
}

fn parsed(agreement: &Agreement) -> Policy {
    Policy::parse(draft(agreement).unwrap().as_bytes(), "p.toml").unwrap()
}

fn refused(change: impl FnOnce(&mut Agreement)) -> String {
    let mut agreement = agreement();
    change(&mut agreement);
    draft(&agreement).unwrap_err().to_string()
}

#[test]
fn a_transform_runs_and_is_measured_where_a_dataset_names_it() {
    let policy = parsed(&agreement());
    assert_eq!(*policy.agreement(), parsed(&policy).agreement().clone());
    let measured = |node: &str| -> Vec<String> {
        let entries = policy.expected_entries(node, State::Member).unwrap();
        let modules = entries.into_iter().filter(|entry| entry.role == EntryRole::Module);
        modules.map(|entry| entry.name).collect()
    };
    for (node, own, other) in [("worker-a", "augment", "centre"), ("hub", "centre", "augment")] {
        let names = measured(node);
        assert!(
            names.contains(&own.to_owned()) && !names.contains(&other.to_owned()),
            "{names:?}"
        );
    }
}

#[test]
fn a_reader_is_told_what_it_means() {
    let policy = parsed(&agreement());
    let words = explain(&policy).join("\n");
    for wanted in [
        "READS the rows and makes what graphs see of them",
        "the transform \"augment\" makes x (f32 of shape [1, 6, 6]) of it",
        "rows that can't be read are left out",
    ] {
        assert!(words.contains(wanted), "{wanted}: {words}");
    }
    let augment = policy.modules.iter().find(|module| module.name == "augment").unwrap();
    assert_eq!(
        augment.effective_access(),
        TensorAccess::ReadWrite,
        "what consents are asked for"
    );
    let warned = warnings(&policy);
    let warned = warned
        .iter()
        .filter(|warning| warning.kind == WarningKind::TensorAccess);
    assert_eq!(warned.count(), 2, "one for each transform");
}

#[test]
fn a_successor_that_adds_one_is_told_as_a_change_of_code_and_data() {
    let new = agreement();
    let mut old = new.clone();
    old.modules.retain(|module| module.role != ModuleRole::Transform);
    for dataset in &mut old.datasets {
        dataset.spec.transform = None;
        dataset.spec.damaged = Damaged::Stop;
    }
    let changes = diff(&parsed(&old), &parsed(&new));
    let said = |area: Area, words: &str| {
        let found = changes
            .iter()
            .any(|change| change.area == area && format!("{change:?}").contains(words));
        assert!(found, "{words}: {changes:?}");
    };
    said(Area::Code, "a new transform");
    said(Area::Data, "makes x of dataset");
    said(Area::Data, "damaged rows of dataset");
}

#[test]
fn a_dataset_may_be_some_rows_of_a_file_and_readers_are_told() {
    let mut new = agreement();
    for dataset in &mut new.datasets {
        dataset.spec.slice = Slice::parse("0..599");
    }
    let policy = parsed(&new);
    assert_eq!(policy.datasets[0].spec.slice.map(Slice::rows), Some(599));
    let words = explain(&policy).join("\n");
    assert!(words.contains("they are the rows 0..599 of a file"), "{words}");
    let changes = diff(&parsed(&agreement()), &policy);
    let told = changes.iter().map(|change| format!("{change:?}")).collect::<String>();
    assert!(
        told.contains("rows of the file of dataset") && told.contains("0..599"),
        "{told}"
    );
}

#[test]
fn what_leads_nowhere_is_refused() {
    let words = refused(|agreement| {
        agreement.modules.retain(|module| module.name != "centre");
    });
    assert!(words.contains("no [[module]] of that name"), "{words}");
    let words = refused(|agreement| {
        for dataset in &mut agreement.datasets {
            dataset.spec.transform = None;
        }
    });
    assert!(words.contains("no dataset names"), "{words}");
    let words = refused(|agreement| agreement.modules.last_mut().unwrap().nodes = Some(vec!["worker-a".into()]));
    assert!(words.contains("does not run on \"hub\""), "{words}");
    let words = refused(|agreement| agreement.modules.last_mut().unwrap().tensor_access = TensorAccess::Read);
    assert!(words.contains("has no other grants"), "{words}");
    let words = refused(|agreement| {
        let trainer = agreement.modules[0].name.clone();
        agreement.datasets[0].spec.transform.as_mut().unwrap().module = trainer;
    });
    assert!(words.contains("a module of the role trainer"), "{words}");
}
