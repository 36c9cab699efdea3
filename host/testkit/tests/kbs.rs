//! The client of an external key service against a broker of Trustee's protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use cloister_attestation::QuoteProvider as _;
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_session::collateral::Source;
use cloister_session::kbs::{Kbs, KbsError, Resource};
use cloister_testkit::kbs::{Kbs as Broker, Mood};
use cloister_testkit::wards::NOW;

const KEY: &[u8] = b"0123456789abcdef";

fn td() -> (tempfile::TempDir, SimulatedTd) {
    let folder = tempfile::tempdir().unwrap();
    create_authority(folder.path(), NOW).unwrap();
    let td = SimulatedTd::new(&SimulatedAuthority::load(folder.path()).unwrap(), TdValues::default()).unwrap();
    (folder, td)
}

fn fetch(broker: &Broker, over: impl FnOnce(&[u8; 64]) -> [u8; 64], names: &[&str]) -> Result<Vec<Vec<u8>>, KbsError> {
    let (_folder, td) = td();
    let source = Source {
        url: broker.url().to_owned(),
        authorities: None,
        proxy: None,
    };
    let wanted: Vec<Resource> = names.iter().map(|name| name.parse().unwrap()).collect();
    let quote = |report_data: &[u8; 64]| {
        let quote = td.quote(&over(report_data)).map_err(|error| error.to_string())?;
        Ok((quote, Bytes::from_static(b"log")))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let fetched = runtime.block_on(Kbs::new(&source)?.fetch(quote, &wanted))?;
    Ok(fetched.into_iter().map(|one| one.to_vec()).collect())
}

fn broker() -> Broker {
    Broker::start(&[("ward/key/rows", KEY), ("ward/salt/rows", b"salt")])
}

#[test]
fn an_attested_td_gets_what_it_asks_for_in_one_exchange() {
    let broker = broker();
    let got = fetch(
        &broker,
        |data| *data,
        &["kbs:///ward/key/rows", "kbs:///ward/salt/rows"],
    )
    .unwrap();
    assert_eq!(got, [KEY.to_vec(), b"salt".to_vec()]);
    assert_eq!(broker.attested(), 1);
}

#[test]
fn a_quote_over_something_else_gets_nothing() {
    let broker = broker();
    let error = fetch(&broker, |_| [7; 64], &["kbs:///ward/key/rows"]).unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    assert_eq!(broker.attested(), 0);
}

#[test]
fn whatever_the_service_answers_wrongly_is_told() {
    let broker = broker();
    for (mood, wanted) in [
        (Mood::NoCookie, "no cookie"),
        (Mood::NoNonce, "no nonce"),
        (Mood::OtherHash, "another hash"),
        (Mood::Forbidden, "403"),
        (Mood::OtherKey, "does not open"),
        (Mood::OtherAlgorithm, "other algorithms"),
        (Mood::Changed("encrypted_key"), "does not open"),
        (Mood::Changed("iv"), "does not open"),
        (Mood::Changed("ciphertext"), "does not open"),
        (Mood::Changed("tag"), "does not open"),
        (Mood::Html, "a resource that is none"),
    ] {
        broker.mood(mood.clone());
        let error = fetch(&broker, |data| *data, &["kbs:///ward/key/rows"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(wanted) && !error.contains("0123456789abcdef"),
            "{mood:?}: {error}"
        );
    }
    broker.mood(Mood::Honest);
    let error = fetch(&broker, |data| *data, &["kbs:///ward/key/nothing"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("404"), "{error}");
}

#[test]
fn names_that_are_no_resources_are_refused() {
    for name in [
        "",
        "kbs:///",
        "kbs:///a/b",
        "kbs:///a/b/c/d",
        "kbs:///a/../c",
        "kbs:///a//c",
        "kbs://host/a/b/c",
        "secret://a/b",
        "kbs:///a/b/c?x",
        "kbs:///a/b/c d",
    ] {
        assert!(matches!(name.parse::<Resource>(), Err(KbsError::Name(_))), "{name}");
    }
    let name = "kbs:///default/key.v1/tag_1-2";
    assert_eq!(name.parse::<Resource>().unwrap().to_string(), name);
}
