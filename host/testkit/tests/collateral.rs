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

use cloister_attestation::encoding::hex;
use cloister_attestation::simulated::{
    FMSPC, SimulatedAuthority, SimulatedTd, Standing, TdValues, create_authority, issue_collateral, reissue_collateral,
};
use cloister_attestation::{QuoteProvider as _, TrustRoot};
use cloister_session::collateral::{
    Authority, Client, FetchError, Held, PlatformFamily, Refresher, Source, Store, StoreError, Supply,
};
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
        self.store_of(dir, &[FMSPC.into()])
    }

    fn store_of(&self, dir: &Path, families: &[PlatformFamily]) -> Store {
        let supply = Supply::Service {
            client: self.client(),
            families: families.to_vec(),
        };
        Store::open(dir, self.root(), supply).unwrap()
    }
}

fn issued(sim: &Path, now: u64) -> String {
    reissue_collateral(sim, now).unwrap();
    std::fs::read_to_string(sim.join("collateral.json")).unwrap()
}

async fn begin(store: Store, now: u64) -> Result<Held, StoreError> {
    Held::begin(Arc::new(store), now).await
}

async fn fails(bench: &Bench, mood: Mood) -> FetchError {
    bench.pccs.mood(mood);
    bench.client().fetch(FMSPC.into()).await.unwrap_err()
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
        let collateral = bench.client().fetch(FMSPC.into()).await.unwrap();
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
        async move { client.fetch(FMSPC.into()).await }
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
    let error = bench.client().fetch([7; 6].into()).await.unwrap_err();
    assert!(error.to_string().contains("wanted 070707070707"), "{error}");
    let nobody = Source {
        url: "http://127.0.0.1:1".into(),
        authorities: None,
        proxy: None,
    };
    let nobody = Client::new(&nobody)
        .unwrap()
        .with_patience(Duration::from_millis(10), &nobody);
    assert!(nobody.fetch(FMSPC.into()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_verify_is_not_kept() {
    let bench = Bench::new();
    let other = Bench::new();
    let cache = bench.dir.path().join("cache/collateral-53494d554c41.json");
    bench
        .pccs
        .serve(&std::fs::read_to_string(other.sim().join("collateral.json")).unwrap());
    let error = begin(bench.store(), NOW).await.unwrap_err();
    assert!(error.to_string().contains("collateral.signature"), "{error}");
    let expired = issued(&bench.sim(), NOW - 90 * DAY);
    bench.pccs.serve(&expired);
    let error = begin(bench.store(), NOW).await.unwrap_err();
    assert!(error.to_string().contains("TCBInfo expired"), "{error}");
    assert!(!cache.exists());
    bench.pccs.serve(&issued(&bench.sim(), NOW));
    begin(bench.store(), NOW).await.unwrap();
    assert!(cache.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn older_lists_are_refused_by_a_store_that_saw_newer_ones() {
    let bench = Bench::new();
    let old = issued(&bench.sim(), NOW);
    bench.pccs.serve(&issued(&bench.sim(), NOW + DAY));
    begin(bench.store(), NOW + DAY).await.unwrap();
    assert_eq!(bench.store().floor_unix_s(), NOW + DAY - 60);
    bench.pccs.serve(&old);
    // Another process, the same folder: what was there before is there still.
    let mut held = begin(bench.store(), NOW + DAY).await.unwrap();
    let failed = held.renew(NOW + DAY).await;
    assert!(matches!(&failed[..], [StoreError::Refused { .. }]), "{failed:?}");
    assert!(
        failed[0].to_string().contains("collateral.pck_crl_number"),
        "{failed:?}"
    );
    assert_eq!(held.verifier().collateral().issued_unix_s(), NOW + DAY - 60);
    std::fs::write(bench.dir.path().join("cache/collateral-53494d554c41.json"), &old).unwrap();
    assert!(begin(bench.store(), NOW + DAY).await.is_err(), "put back by hand");
    assert!(bench.store().admit_references("digits", 4).is_ok());
    assert!(bench.store().admit_references("digits", 3).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_verified_again_when_it_is_read() {
    let bench = Bench::new();
    begin(bench.store(), NOW).await.unwrap();
    // Nobody answers any more: what begins does so with the cache.
    bench.pccs.mood(Mood::Status(404, None));
    assert!(begin(bench.store(), NOW).await.is_ok());
    assert!(begin(bench.store(), NOW + 365 * DAY).await.is_err(), "expired");
    let file = bench.dir.path().join("cache/collateral-53494d554c41.json");
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in [
        good.replace("OutOfDate", "UpToDate"),
        good[..good.len() / 2].to_owned(),
        String::new(),
    ] {
        std::fs::write(&file, bad).unwrap();
        assert!(begin(bench.store(), NOW).await.is_err());
    }
    let marks = bench.dir.path().join("cache/watermarks.json");
    std::fs::write(&marks, "{").unwrap();
    let opened = Store::open(marks.parent().unwrap(), bench.root(), Supply::Bundle(file));
    assert!(
        matches!(opened, Err(StoreError::Watermarks { .. })),
        "torn watermarks are no fresh start"
    );
}

const OTHER: [u8; 6] = *b"OTHER1";

/// TCB info of another family, by the same authority.
fn issued_for_other(sim: &Path, now: u64) -> String {
    let standing = Standing {
        fmspc: OTHER,
        ..Standing::default()
    };
    issue_collateral(sim, now, &standing).unwrap();
    std::fs::read_to_string(sim.join("collateral.json")).unwrap()
}

/// Families and the days after [`NOW`] at which their collateral was issued.
fn held_days(held: &Held) -> Vec<(String, u64)> {
    let collateral = held.verifier().collateral();
    let days = |issued: u64| (issued + 60 - NOW) / DAY;
    let mut all: Vec<_> = collateral
        .dates()
        .map(|dates| (dates.fmspc.clone(), days(dates.issued_unix_s)))
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_family_lacks_leaves_the_other_ones_collateral_alone() {
    let bench = Bench::new();
    let (simulated, other) = (hex(&FMSPC), hex(&OTHER));
    let store = |folder: &str| bench.store_of(&bench.dir.path().join(folder), &[FMSPC.into(), OTHER.into()]);
    bench.pccs.serve_family(OTHER, None);
    // At a start one of two is enough; of the other, nothing is there.
    let mut held = begin(store("one"), NOW).await.unwrap();
    assert_eq!(held_days(&held), [(simulated.clone(), 0)]);
    let failed = held.renew(NOW).await;
    assert!(failed.len() == 1 && failed[0].to_string().contains("404"), "{failed:?}");
    bench
        .pccs
        .serve_family(OTHER, Some(&issued_for_other(&bench.sim(), NOW)));
    assert!(held.renew(NOW).await.is_empty());
    assert_eq!(
        held_days(&held),
        [(other.clone(), 0), (simulated.clone(), 0)],
        "now it is"
    );

    // A renewal takes what verified, and keeps the older set where nothing did.
    bench.pccs.serve(&issued(&bench.sim(), NOW + DAY));
    for bad in [None, Some(issued_for_other(&bench.sim(), NOW - 90 * DAY))] {
        bench.pccs.serve_family(OTHER, bad.as_deref());
        let failed = held.renew(NOW + DAY).await;
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(held_days(&held), [(other.clone(), 0), (simulated.clone(), 1)]);
    }
    // It is judged by the verifier that was there before, too.
    let authority = SimulatedAuthority::load(&bench.sim()).unwrap();
    let quote = SimulatedTd::new(&authority, TdValues::default())
        .unwrap()
        .quote(&[5; 64])
        .unwrap();
    let verified = held.verifier().verify(&quote, &[5; 64], NOW + DAY).unwrap();
    assert_eq!(verified.tcb().collateral_issued_unix_s, NOW + DAY - 60);

    // A start with one part of the cache expired, and a service that is gone: what still holds is enough.
    bench.pccs.mood(Mood::Status(404, None));
    let late = NOW + 30 * DAY + 1;
    let held = begin(store("one"), late).await.unwrap();
    assert_eq!(held_days(&held), [(simulated, 1)]);
    let error = begin(store("two"), NOW).await.unwrap_err();
    assert!(error.to_string().contains("404"), "nothing at all: {error}");
    let nothing = begin(bench.store_of(&bench.dir.path().join("none"), &[]), NOW).await;
    assert!(matches!(nothing, Err(StoreError::NoFamily)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_family_under_two_authorities_is_asked_for_twice() {
    let bench = Bench::new();
    let processor = PlatformFamily {
        fmspc: FMSPC,
        authority: Authority::Processor,
    };
    let folder = bench.dir.path().join("both");
    begin(bench.store_of(&folder, &[FMSPC.into(), processor]), NOW)
        .await
        .unwrap();
    for name in ["collateral-53494d554c41.json", "collateral-53494d554c41-processor.json"] {
        assert!(folder.join(name).exists(), "{name}");
    }
    assert_eq!(bench.pccs.targets("pckcrl?ca=platform"), 1);
    assert_eq!(bench.pccs.targets("pckcrl?ca=processor"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_taken_again_when_it_changes_and_never_an_older_one() {
    let bench = Bench::new();
    let path = bench.dir.path().join("bundle.json");
    let folder = bench.dir.path().join("marks");
    let store = || Store::open(&folder, bench.root(), Supply::Bundle(path.clone())).unwrap();
    let missing = begin(store(), NOW).await.unwrap_err();
    assert!(missing.to_string().contains("quote collateral -o FILE"), "{missing}");
    let (old, new) = (issued(&bench.sim(), NOW), issued(&bench.sim(), NOW + DAY));
    std::fs::write(&path, &old).unwrap();
    let mut held = begin(store(), NOW).await.unwrap();
    let issued_at = |held: &Held| held.verifier().collateral().issued_unix_s();
    let before = held.verifier().collateral();
    assert!(held.renew(NOW).await.is_empty());
    assert!(
        Arc::ptr_eq(&before, &held.verifier().collateral()),
        "the same file forgets nobody's verdict"
    );
    std::fs::write(&path, &new).unwrap();
    assert!(held.renew(NOW + DAY).await.is_empty());
    assert_eq!(issued_at(&held), NOW + DAY - 60);
    for (bad, wanted) in [
        (old.as_str(), "collateral.pck_crl_number"),
        (&new[..new.len() / 2], "not the JSON"),
        (&new.replace("OutOfDate", "UpToDate"), "collateral.signature"),
    ] {
        std::fs::write(&path, bad).unwrap();
        let failed = held.renew(NOW + DAY).await;
        assert!(
            failed.len() == 1 && failed[0].to_string().contains(wanted),
            "{wanted}: {failed:?}"
        );
        assert_eq!(issued_at(&held), NOW + DAY - 60, "the newer one stays");
    }
    // After a start, the older bundle is refused just so.
    std::fs::write(&path, &old).unwrap();
    assert!(matches!(
        begin(store(), NOW + DAY).await,
        Err(StoreError::Refused { .. })
    ));
    assert_eq!(bench.pccs.asked(), 0, "no service is asked");
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
