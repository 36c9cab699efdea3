//! Platforms that are not in good standing, and TDX 1.5: revoked certificates and TCBs, TDs to be started anew, service TDs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::path::PathBuf;

use cloister_attestation::quote::Body;
use cloister_attestation::simulated::{
    Revocable, SimulatedAuthority, SimulatedTd, Standing, TdOf15, TdValues, create_authority, issue_collateral,
};
use cloister_attestation::{Collateral, Quote, QuoteProvider as _, Refusal, VerifiedQuote, Verifier};

const NOW: u64 = 1_795_132_800;
const DATA: [u8; 64] = [0x5a; 64];

struct Platform {
    dir: tempfile::TempDir,
    authority: SimulatedAuthority,
}

impl Platform {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_authority(&dir.path().join("sim"), NOW).unwrap();
        let authority = SimulatedAuthority::load(&dir.path().join("sim")).unwrap();
        Self { dir, authority }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("sim")
    }

    fn collateral(&self, standing: &Standing) -> Collateral {
        issue_collateral(&self.path(), NOW, standing).unwrap();
        Collateral::from_file(&self.path()).unwrap()
    }

    fn verifier(&self, standing: &Standing) -> Verifier {
        Verifier::new(self.authority.root().clone(), self.collateral(standing))
    }

    fn quote(&self, td15: Option<TdOf15>, change: impl FnOnce(&mut TdValues)) -> Vec<u8> {
        let mut values = TdValues {
            td15,
            ..TdValues::default()
        };
        change(&mut values);
        SimulatedTd::new(&self.authority, values).unwrap().quote(&DATA).unwrap()
    }

    fn judged(&self, quote: &[u8], standing: &Standing) -> Result<VerifiedQuote, Refusal> {
        let verifier = self.verifier(standing);
        let verdict = verifier.verify(quote, &DATA, NOW);
        assert_eq!(
            verifier.examine(quote, None, NOW).verdict.is_ok(),
            verdict.is_ok(),
            "looked at for people it is the same"
        );
        verdict
    }
}

fn with_status(status: &str) -> Standing {
    Standing {
        tcb_status: status.into(),
        ..Standing::default()
    }
}

/// A TD that an old TDX module started, and that a new one runs now.
fn preserved(values: &mut TdValues) {
    values.tee_tcb_svn[0] = 4;
}

#[test]
fn a_revoked_certificate_anywhere_in_the_chains_is_refused() {
    let platform = Platform::new();
    let quote = platform.quote(None, |_| ());
    assert!(platform.judged(&quote, &Standing::default()).is_ok());
    for revoked in Revocable::ALL {
        let standing = Standing {
            revoked: vec![revoked],
            ..Standing::default()
        };
        let refusal = platform.judged(&quote, &standing).unwrap_err();
        assert!(
            refusal.names("quote.verification") && refusal.to_string().contains("Revoked"),
            "{revoked:?}: {refusal}"
        );
        // Collateral whose own signers were taken back is none, whatever quote it is for.
        let verified = platform.collateral(&standing).verify(platform.authority.root(), NOW);
        match revoked {
            Revocable::Platform => assert!(verified.is_ok(), "{verified:?}"),
            Revocable::PlatformAuthority | Revocable::TcbSigner => {
                let refusal = verified.unwrap_err();
                assert!(refusal.to_string().contains("a revoked certificate"), "{refusal}");
            }
        }
    }
}

#[test]
fn a_revoked_tcb_is_refused_whatever_the_policy_and_other_statuses_are_told() {
    let platform = Platform::new();
    let (v4, v5) = (
        platform.quote(None, |_| ()),
        platform.quote(Some(TdOf15::default()), |_| ()),
    );
    for quote in [&v4, &v5] {
        let refusal = platform.judged(quote, &with_status("Revoked")).unwrap_err();
        assert!(refusal.to_string().contains("Revoked"), "{refusal}");
        for status in [
            "UpToDate",
            "SWHardeningNeeded",
            "ConfigurationNeeded",
            "ConfigurationAndSWHardeningNeeded",
            "OutOfDate",
            "OutOfDateConfigurationNeeded",
        ] {
            let verified = platform.judged(quote, &with_status(status)).unwrap();
            assert_eq!(verified.tcb().status, status);
        }
        assert!(platform.judged(quote, &with_status("Splendid")).is_err());
    }
    // Revoked is what runs now, even if the TD was started by a module that only is old.
    let relaunch = platform.quote(Some(TdOf15::default()), preserved);
    assert!(platform.judged(&relaunch, &with_status("Revoked")).is_err());
}

#[test]
fn a_td_that_an_old_module_started_is_told_to_be_started_anew() {
    let platform = Platform::new();
    let relaunch = platform.quote(Some(TdOf15::default()), preserved);
    for (now, told) in [
        ("UpToDate", "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("OutOfDate", "OutOfDate"),
    ] {
        let verified = platform.judged(&relaunch, &with_status(now)).unwrap();
        assert_eq!(verified.tcb().status, told);
        assert_eq!(verified.tcb().advisory_ids, ["SIMULATED-SA-00001"]);
    }
    // What started the TD counts, too: an old module that runs a TD of a new one is not up to date by its launch.
    let old = TdOf15 {
        tee_tcb_svn2: [0; 16],
        ..TdOf15::default()
    };
    let verified = platform.judged(&platform.quote(Some(old), preserved), &Standing::default());
    assert_eq!(verified.unwrap().tcb().status, "OutOfDate");
}

#[test]
fn a_quote_of_version_5_with_a_report_of_tdx_1_5_verifies_and_its_fields_are_told() {
    let platform = Platform::new();
    let bytes = platform.quote(Some(TdOf15::default()), |_| ());
    let quote = Quote::parse(&bytes).unwrap();
    assert_eq!((quote.version, quote.body), (5, Body::Td15));
    let verified = platform.judged(&bytes, &Standing::default()).unwrap();
    assert_eq!(verified.tcb().status, "UpToDate");
    assert_eq!(verified.td(), &quote.report);
    assert_eq!(verified.td().tee_tcb_svn2, Some(TdOf15::default().tee_tcb_svn2));
    assert_eq!(verified.td().mrservicetd, Some([0; 48]));
    // Each of the bytes that version 5 adds is signed.
    let verifier = platform.verifier(&Standing::default());
    for at in (48..54).chain((54 + 584..54 + 648).step_by(7)) {
        let mut broken = bytes.clone();
        broken[at] ^= 1;
        assert!(verifier.verify(&broken, &DATA, NOW).is_err(), "byte {at}");
    }
}

#[test]
fn a_td_with_a_service_td_is_refused() {
    let platform = Platform::new();
    for at in [0, 47] {
        let mut td15 = TdOf15::default();
        td15.mrservicetd[at] = 1;
        let refusal = platform
            .judged(&platform.quote(Some(td15), |_| ()), &Standing::default())
            .unwrap_err();
        assert!(refusal.names("attestation.service_td"), "{refusal}");
    }
}
