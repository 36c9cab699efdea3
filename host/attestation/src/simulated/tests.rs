use std::time::{Duration, Instant};

use super::*;
use crate::provider::QuoteProvider as _;
use crate::quote::Quote;
use crate::refusal::Refusal;
use crate::verify::{Collateral, TrustRoot, Verifier};

const NOW: u64 = 1_795_132_800;
const DAY: u64 = 86_400;
const DATA: [u8; 64] = [0x5a; 64];

struct Bench {
    dir: tempfile::TempDir,
    authority: SimulatedAuthority,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority");
        create_authority(&path, NOW).unwrap();
        let authority = SimulatedAuthority::load(&path).unwrap();
        Self { dir, authority }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("authority")
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(
            self.authority.root().clone(),
            Collateral::from_file(&self.path()).unwrap(),
        )
    }

    fn quote(&self, change: impl FnOnce(&mut TdValues)) -> Vec<u8> {
        let mut values = TdValues::default();
        change(&mut values);
        SimulatedTd::new(&self.authority, values).unwrap().quote(&DATA).unwrap()
    }

    fn refused(&self, quote: &[u8]) -> Refusal {
        self.verifier().verify(quote, &DATA, NOW).unwrap_err()
    }
}

#[test]
fn a_simulated_quote_verifies_under_its_root() {
    let bench = Bench::new();
    let quote = bench.quote(|_| ());
    assert!((4000..5000).contains(&quote.len()), "{} bytes", quote.len());
    let verified = bench.verifier().verify(&quote, &DATA, NOW).unwrap();
    assert!(verified.simulated());
    assert_eq!(verified.tcb().status, "UpToDate");
    assert_eq!(verified.td().mrtd, TdValues::default().mrtd);
    assert_eq!(verified.platform().fmspc, FMSPC);
    assert_eq!(verified.platform().smt_enabled, Some(true));
    assert_eq!(verified.root_key_id(), bench.authority.root().key_id());
    assert_eq!(verified.tcb().collateral_issued_unix_s, NOW - 60);
    assert!(bench.authority.root().to_string().contains("SIMULATED"));
    // In plain sight in the quote's header, too.
    assert_eq!(&quote[28..37], b"SIMULATED");
}

#[test]
fn every_value_shows_in_the_quote() {
    let bench = Bench::new();
    let quote = bench.quote(|values| {
        values.mrtd = [1; 48];
        values.rtmr = [[2; 48], [3; 48], [4; 48], [5; 48]];
        values.mrconfigid = [6; 48];
        values.mrseam = [7; 48];
    });
    let td = bench.verifier().verify(&quote, &DATA, NOW).unwrap().td().clone();
    assert_eq!((td.mrtd, td.mrconfigid, td.mrseam), ([1; 48], [6; 48], [7; 48]));
    assert_eq!(td.rtmr, [[2; 48], [3; 48], [4; 48], [5; 48]]);
}

#[test]
fn all_64_bytes_of_report_data_count() {
    let bench = Bench::new();
    let quote = bench.quote(|_| ());
    for at in [0, 7, 8, 31, 32, 63] {
        let mut other = DATA;
        other[at] ^= 1;
        let refusal = bench.verifier().verify(&quote, &other, NOW).unwrap_err();
        assert!(refusal.names("quote.report_data"), "{refusal}");
    }
}

#[test]
fn debug_and_profiled_tds_are_refused() {
    let bench = Bench::new();
    let debug = bench.quote(|values| values.attributes[0] = 1);
    let refusal = bench.refused(&debug);
    assert!(
        refusal.names("attestation.debug") && refusal.to_string().contains("0100001000000000"),
        "{refusal}"
    );
    assert!(
        bench
            .verifier()
            .allow_debug(true)
            .verify(&debug, &DATA, NOW)
            .unwrap()
            .td()
            .debug()
    );
    let profiled = bench.refused(&bench.quote(|values| values.attributes[0] = 0x10));
    assert!(profiled.to_string().contains("profiling"), "{profiled}");
    let no_sept = bench.refused(&bench.quote(|values| values.attributes = [0; 8]));
    assert!(no_sept.to_string().contains("SEPT_VE_DISABLE"), "{no_sept}");
}

#[test]
fn migratable_tds_and_service_tds_are_refused() {
    let bench = Bench::new();
    // Bits 29 and 17 of the attributes (TDX module 1.5 ABI): MIGRATABLE, SERVTD_EXT.
    let migratable = bench.refused(&bench.quote(|values| values.attributes[3] |= 0x20));
    assert!(migratable.names("attestation.migration"), "{migratable}");
    let served = bench.refused(&bench.quote(|values| values.attributes[2] |= 0x02));
    assert!(served.names("attestation.service_td"), "{served}");
}

#[test]
fn an_old_tdx_module_is_out_of_date() {
    let bench = Bench::new();
    let quote = bench.quote(|values| values.tee_tcb_svn[0] = 4);
    let verified = bench.verifier().verify(&quote, &DATA, NOW).unwrap();
    assert_eq!(verified.tcb().status, "OutOfDate");
    assert_eq!(verified.tcb().advisory_ids, ["SIMULATED-SA-00001"]);
}

#[test]
fn intels_root_refuses_simulated_quotes_and_the_other_way_round() {
    let bench = Bench::new();
    let quote = bench.quote(|_| ());
    let intel = Verifier::new(
        TrustRoot::intel().unwrap(),
        Collateral::from_file(&bench.path()).unwrap(),
    );
    let refusal = intel.verify(&quote, &DATA, NOW).unwrap_err();
    assert!(refusal.names("attestation.root_key_id"), "{refusal}");
    let text = refusal.to_string();
    assert!(
        text.contains("SIMULATED Cloister Root CA") && text.contains("Intel's root"),
        "{text}"
    );
    let other = Bench::new();
    assert!(other.refused(&quote).names("attestation.root_key_id"));
}

#[test]
fn a_chain_without_its_root_does_not_get_around_the_root() {
    // Without the root in the chain the early check says nothing; the verification has to refuse by itself.
    let bench = Bench::new();
    let mut authority = SimulatedAuthority::load(&bench.path()).unwrap();
    let text = String::from_utf8(authority.pck_chain.clone()).unwrap();
    let root_at = text.rfind("-----BEGIN").unwrap();
    authority.pck_chain = text.as_bytes()[..root_at].to_vec();
    let quote = SimulatedTd::new(&authority, TdValues::default())
        .unwrap()
        .quote(&DATA)
        .unwrap();
    assert!(bench.verifier().verify(&quote, &DATA, NOW).is_ok());
    let intel = Verifier::new(
        TrustRoot::intel().unwrap(),
        Collateral::from_file(&bench.path()).unwrap(),
    );
    let refusal = intel.verify(&quote, &DATA, NOW).unwrap_err();
    assert!(refusal.names("quote.verification"), "{refusal}");
    let other = Bench::new();
    assert!(other.refused(&quote).names("quote.verification"));
}

#[test]
fn collateral_holds_for_its_time_and_is_reissued() {
    let bench = Bench::new();
    let quote = bench.quote(|_| ());
    let late = NOW + COLLATERAL_DAYS * DAY + 1;
    assert!(
        bench
            .verifier()
            .verify(&quote, &DATA, NOW + COLLATERAL_DAYS * DAY - 1)
            .is_ok()
    );
    let expired = bench.verifier().verify(&quote, &DATA, late).unwrap_err();
    assert!(
        expired.to_string().contains("re-issues simulated collateral"),
        "{expired}"
    );
    assert!(expired.to_string().to_lowercase().contains("expired"), "{expired}");
    let early = bench.verifier().verify(&quote, &DATA, NOW - 61).unwrap_err();
    assert!(
        early.names("collateral.tcb_info") && early.names("collateral.qe_identity") && !early.names("collateral.crl"),
        "{early}"
    );
    assert!(!reissue_if_stale(&bench.path(), NOW + DAY).unwrap());
    assert!(reissue_if_stale(&bench.path(), late).unwrap());
    assert!(bench.verifier().verify(&quote, &DATA, late).is_ok());
}

#[test]
fn verifiers_need_no_keys_and_makers_do() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    let key = bench.path().join("keys/pck.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let quote = bench.quote(|_| ());
    std::fs::remove_dir_all(bench.path().join("keys")).unwrap();
    assert!(bench.verifier().verify(&quote, &DATA, NOW).is_ok());
    assert!(!reissue_if_stale(&bench.path(), NOW + 300 * DAY).unwrap());
    let error = SimulatedAuthority::load(&bench.path()).unwrap_err();
    assert!(error.to_string().contains("keys/pck.pem"), "{error}");
}

#[test]
fn an_authority_is_not_overwritten() {
    let bench = Bench::new();
    let before = std::fs::read(bench.path().join("root.der")).unwrap();
    assert!(create_authority(&bench.path(), NOW).is_err());
    assert_eq!(std::fs::read(bench.path().join("root.der")).unwrap(), before);
}

#[test]
fn padding_is_cut_and_other_trailing_bytes_are_refused() {
    let bench = Bench::new();
    let mut quote = bench.quote(|_| ());
    quote.resize(8000, 0);
    assert!(bench.verifier().verify(&quote, &DATA, NOW).is_ok());
    quote[7999] = 1;
    assert!(bench.refused(&quote).to_string().contains("follow the quote"));
}

#[test]
fn a_changed_byte_never_verifies() {
    let bench = Bench::new();
    let quote = bench.quote(|_| ());
    let verifier = bench.verifier();
    // One byte in every field of the fixed part, then every 97th of the rest.
    for at in (0..636).step_by(13).chain((636..quote.len()).step_by(97)) {
        let mut broken = quote.clone();
        broken[at] ^= 0x40;
        if let Ok(verified) = verifier.verify(&broken, &DATA, NOW) {
            // What is signed by nobody: text around the PEM blocks. Nothing that is reported may differ.
            let chain = Quote::parse(&quote).unwrap().pck_chain;
            assert!(at >= quote.len() - chain.len(), "byte {at}");
            assert_eq!(verified.td(), &Quote::parse(&quote).unwrap().report);
        }
    }
}

#[test]
fn quotes_take_their_time_one_after_the_other() {
    let bench = Bench::new();
    let td = SimulatedTd::new(&bench.authority, TdValues::default())
        .unwrap()
        .with_latency_ms(30);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| td.quote(&DATA).unwrap());
        }
    });
    assert!(start.elapsed() >= Duration::from_millis(90));
}
