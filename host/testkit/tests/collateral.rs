//! Collateral out of a service with the shape of a PCCS: its answers, its failures, the cache and the numbers that never go
//! down.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::simulated::{
    FMSPC, SimulatedAuthority, SimulatedTd, TdValues, create_authority, reissue_collateral,
};
use cloister_attestation::{QuoteProvider as _, TrustRoot};
use cloister_session::collateral::{Authority, Client, FetchError, Refresher, Source, Store, StoreError};
use cloister_testkit::https::{Front, HttpsAuthority, Shown};
use cloister_testkit::pccs::{Mood, Pccs};

const NOW: u64 = 1_795_132_800;
const DAY: u64 = 86_400;

struct Bench {
    dir: tempfile::TempDir,
    pccs: Pccs,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_authority(&dir.path().join("sim"), NOW).unwrap();
        let pccs = Pccs::start(&issued(&dir.path().join("sim"), NOW));
        Self { dir, pccs }
    }

    fn sim(&self) -> PathBuf {
        self.dir.path().join("sim")
    }

    fn root(&self) -> TrustRoot {
        TrustRoot::from_file(&self.sim()).unwrap()
    }

    fn client(&self) -> Client {
        let source = Source {
            url: format!("{}/sgx/certification/v4/", self.pccs.url()),
            authorities: None,
            proxy: None,
        };
        Client::new(&source)
            .unwrap()
            .with_patience(Duration::from_millis(100), &source)
    }

    fn store(&self) -> Store {
        self.store_in(&self.dir.path().join("cache"))
    }

    fn store_in(&self, dir: &Path) -> Store {
        Store::open(dir, self.root(), self.client(), vec![(FMSPC, Authority::Platform)]).unwrap()
    }
}

fn issued(sim: &Path, now: u64) -> String {
    reissue_collateral(sim, now).unwrap();
    std::fs::read_to_string(sim.join("collateral.json")).unwrap()
}

async fn fails(bench: &Bench, mood: Mood) -> FetchError {
    bench.pccs.mood(mood);
    bench.client().fetch(FMSPC, Authority::Platform).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_shapes_of_answers_give_collateral_that_verifies() {
    let bench = Bench::new();
    for mood in [
        Mood::Honest,
        Mood::Der,
        Mood::FirstStatus(429, 2),
        Mood::FirstStatus(503, 1),
    ] {
        bench.pccs.mood(mood.clone());
        let collateral = bench.client().fetch(FMSPC, Authority::Platform).await.unwrap();
        let verified = collateral.verify(&bench.root(), NOW);
        assert!(verified.is_ok(), "{mood:?}: {verified:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_https_the_service_is_known_by_a_certificate_of_a_named_authority() {
    let bench = Bench::new();
    let (authority, other) = (HttpsAuthority::new("authority"), HttpsAuthority::new("other"));
    let pem = |name: &str, authority: &HttpsAuthority| {
        let path = bench.dir.path().join(name);
        std::fs::write(&path, &authority.pem).unwrap();
        path
    };
    let (named, others) = (pem("authority.pem", &authority), pem("other.pem", &other));
    let fetch = |url: String, authorities: Option<&Path>| {
        let source = Source {
            url,
            authorities: authorities.map(Path::to_owned),
            proxy: None,
        };
        let client = Client::new(&source)
            .unwrap()
            .with_patience(Duration::from_millis(100), &source);
        async move { client.fetch(FMSPC, Authority::Platform).await }
    };
    let front = Front::start(bench.pccs.url(), &authority, Shown::Good).await;
    for url in [front.url(), front.url_by_number()] {
        let collateral = fetch(url, Some(&named)).await.unwrap();
        assert!(collateral.verify(&bench.root(), NOW).is_ok());
    }
    let before = bench.pccs.asked();
    let mut refused = vec![(fetch(front.url(), Some(&others)).await, "UnknownIssuer")];
    for (shown, wanted) in [
        (Shown::OtherHost, "not valid for"),
        (Shown::Expired, "expired"),
        (Shown::SelfSigned, "UnknownIssuer"),
    ] {
        let front = Front::start(bench.pccs.url(), &authority, shown).await;
        refused.push((fetch(front.url(), Some(&named)).await, wanted));
    }
    for (answer, wanted) in refused {
        let error = answer.unwrap_err();
        assert!(matches!(error, FetchError::Certificate { .. }), "{error:?}");
        let words = error.to_string();
        assert!(
            words.contains(wanted) && words.contains("`authorities`"),
            "{wanted}: {words}"
        );
    }
    // The system trusts no authority of a test; where it trusts none at all, that is said.
    let error = fetch(front.url(), None).await.unwrap_err();
    assert!(error.to_string().contains("`authorities`"), "{error}");
    assert_eq!(bench.pccs.asked(), before, "nothing is asked where TLS did not come up");
    let plain = Front::start(bench.pccs.url(), &authority, Shown::NoTls).await;
    assert!(fetch(plain.url(), Some(&named)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_is_named_and_ends() {
    let bench = Bench::new();
    let before = bench.pccs.asked();
    let error = fails(&bench, Mood::Status(404, None)).await;
    assert!(
        error.to_string().contains("404") && error.to_string().contains("FMSPC"),
        "{error}"
    );
    assert_eq!(
        bench.pccs.asked() - before,
        1,
        "what is not there is not asked for again"
    );
    let before = bench.pccs.asked();
    let error = fails(&bench, Mood::Status(429, Some(3600))).await;
    assert!(error.to_string().contains("answered 429"), "{error}");
    assert_eq!(
        bench.pccs.asked() - before,
        3,
        "an hour's wait is not obeyed beyond patience"
    );
    for (mood, wanted) in [
        (Mood::Status(500, None), "500"),
        (Mood::Status(302, None), "302"),
        (Mood::Silent, "no whole answer"),
        (Mood::CutOff, "tcb?fmspc=53494D554C41"),
        (Mood::Endless, "length limit exceeded"),
        (Mood::EndlessHead, "tcb?fmspc=53494D554C41"),
        (Mood::Html, "not what the API promises"),
        (Mood::NoChains, "TCB-Info-Issuer-Chain"),
    ] {
        let error = fails(&bench, mood.clone()).await;
        assert!(error.to_string().contains(wanted), "{mood:?}: {error}");
    }
    bench.pccs.mood(Mood::Honest);
    let error = bench.client().fetch([7; 6], Authority::Platform).await.unwrap_err();
    assert!(error.to_string().contains("wanted 070707070707"), "{error}");
    let nobody = Source {
        url: "http://127.0.0.1:1".into(),
        authorities: None,
        proxy: None,
    };
    let nobody = Client::new(&nobody)
        .unwrap()
        .with_patience(Duration::from_millis(10), &nobody);
    assert!(nobody.fetch(FMSPC, Authority::Platform).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_verify_is_not_kept() {
    let bench = Bench::new();
    let other = Bench::new();
    let cache = bench.dir.path().join("cache/collateral-53494d554c41.json");
    bench
        .pccs
        .serve(&std::fs::read_to_string(other.sim().join("collateral.json")).unwrap());
    let error = bench.store().fetch(NOW).await.unwrap_err();
    assert!(error.to_string().contains("collateral.signature"), "{error}");
    let expired = issued(&bench.sim(), NOW - 90 * DAY);
    bench.pccs.serve(&expired);
    let error = bench.store().fetch(NOW).await.unwrap_err();
    assert!(error.to_string().contains("TCBInfo expired"), "{error}");
    assert!(!cache.exists());
    bench.pccs.serve(&issued(&bench.sim(), NOW));
    bench.store().fetch(NOW).await.unwrap();
    assert!(cache.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn older_lists_are_refused_by_a_store_that_saw_newer_ones() {
    let bench = Bench::new();
    let old = issued(&bench.sim(), NOW);
    bench.pccs.serve(&issued(&bench.sim(), NOW + DAY));
    bench.store().fetch(NOW + DAY).await.unwrap();
    assert_eq!(bench.store().floor_unix_s(), NOW + DAY - 60);
    bench.pccs.serve(&old);
    // Another process, the same folder.
    let error = bench.store().fetch(NOW + DAY).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("collateral.pck_crl_number"), "{error}");
    assert_eq!(
        bench.store().cached(NOW + DAY).len(),
        1,
        "what was there before is there still"
    );
    std::fs::write(bench.dir.path().join("cache/collateral-53494d554c41.json"), &old).unwrap();
    assert!(bench.store().cached(NOW + DAY).is_empty(), "put back by hand");
    assert!(bench.store().admit_references("digits", 4).is_ok());
    assert!(bench.store().admit_references("digits", 3).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_verified_again_when_it_is_read() {
    let bench = Bench::new();
    bench.store().fetch(NOW).await.unwrap();
    assert_eq!(bench.store().cached(NOW).len(), 1);
    assert!(bench.store().cached(NOW + 365 * DAY).is_empty(), "expired");
    let file = bench.dir.path().join("cache/collateral-53494d554c41.json");
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in [
        good.replace("OutOfDate", "UpToDate"),
        good[..good.len() / 2].to_owned(),
        String::new(),
    ] {
        std::fs::write(&file, bad).unwrap();
        assert!(bench.store().cached(NOW).is_empty());
    }
    let marks = bench.dir.path().join("cache/watermarks.json");
    std::fs::write(&marks, "{").unwrap();
    let opened = Store::open(marks.parent().unwrap(), bench.root(), bench.client(), Vec::new());
    assert!(
        matches!(opened, Err(StoreError::Watermarks { .. })),
        "torn watermarks are no fresh start"
    );
}

#[test]
fn a_node_starts_from_the_service_and_then_from_its_cache() {
    let bench = Bench::new();
    let authority = SimulatedAuthority::load(&bench.sim()).unwrap();
    let quote = SimulatedTd::new(&authority, TdValues::default())
        .unwrap()
        .quote(&[5; 64])
        .unwrap();
    let clock: cloister_session::Clock = Arc::new(|| NOW);
    let (refresher, verifier) = Refresher::start(Arc::new(bench.store()), Arc::clone(&clock)).unwrap();
    assert!(verifier.verify(&quote, &[5; 64], NOW).is_ok());
    drop(refresher);
    let asked = bench.pccs.asked();
    bench.pccs.mood(Mood::Status(500, None));
    let (_refresher, verifier) = Refresher::start(Arc::new(bench.store()), Arc::clone(&clock)).unwrap();
    assert!(verifier.verify(&quote, &[5; 64], NOW).is_ok());
    assert_eq!(bench.pccs.asked(), asked, "the cache was enough");
    let empty = Arc::new(bench.store_in(&bench.dir.path().join("empty")));
    let error = Refresher::start(empty, clock).unwrap_err();
    assert!(error.to_string().contains("500"), "{error}");
}
